//! Named CPUID profiles.
//!
//! SDM Vol. 2A, "CPUID-CPU Identification". The vendor string is Intel's, since VMX and the rules
//! for what is undefined are Intel's; the model number is that of a server processor of the third
//! generation, or of the processor that a profile is named after. Two of these are also profiles of
//! `vmx-model`; of them only what this crate executes is offered (no transactions, no SGX, no MPX).

use super::feature::{Feature, FeatureSet};
use super::{CpuidEntry, CpuidTable};
use Feature as F;

/// A named set of features.
#[derive(Clone, Copy, Debug)]
pub struct Profile {
    /// The name that users give.
    pub name: &'static str,
    features: &'static [&'static [Feature]],
    physical_address_bits: u8,
    linear_address_bits: u8,
    /// Leaf 1, EAX: family, model, stepping.
    signature: u32,
    /// The brand string.
    brand: &'static str,
}

/// Family 6, model 6AH, stepping 6: a server processor of the third generation.
const SIGNATURE: u32 = 0x000_606a6;
const BRAND: &str = "softvmx virtual processor";

/// The features of every 32-bit processor that this crate models.
#[rustfmt::skip]
const P6: &[Feature] = &[
    F::Fpu, F::Vme, F::De, F::Pse, F::Tsc, F::Msr, F::Pae, F::Mce, F::Cx8, F::Apic, F::Sep, F::Mtrr,
    F::Pge, F::Mca, F::Cmov, F::Pat, F::Pse36, F::Mmx, F::Fxsr,
];

/// What long-mode software expects.
#[rustfmt::skip]
const X86_64: &[Feature] = &[
    F::Clfsh, F::Sse, F::Sse2, F::Ss, F::Syscall, F::Nx, F::LongMode,
];

/// What x86-64-v2 adds (x86-64 psABI, "Low Level System Information").
#[rustfmt::skip]
const V2: &[Feature] = &[
    F::LahfLm, F::Cx16, F::Popcnt, F::Sse3, F::Sse41, F::Sse42, F::Ssse3,
];

/// What x86-64-v3 adds, of the integer instructions.
#[rustfmt::skip]
const V3_INTEGER: &[Feature] = &[F::Bmi1, F::Bmi2, F::Lzcnt, F::Movbe];

/// What x86-64-v3 adds, of the vector instructions.
#[rustfmt::skip]
const V3_VECTOR: &[Feature] = &[F::Avx, F::Avx2, F::F16c, F::Fma];

/// What x86-64-v4 adds.
#[rustfmt::skip]
const V4: &[Feature] = &[
    F::Avx512f, F::Avx512bw, F::Avx512cd, F::Avx512dq, F::Avx512vl,
];

/// Instruction sets beside the levels, of the time of x86-64-v3.
#[rustfmt::skip]
const CRYPTOGRAPHY: &[Feature] = &[F::Aes, F::Pclmulqdq, F::Adx, F::Sha];

/// System features that every profile of 64-bit processors has.
#[rustfmt::skip]
const COMMON_SYSTEM: &[Feature] = &[
    F::Monitor, F::Vmx, F::Pcid, F::X2apic, F::TscDeadline, F::Xsave, F::Rdrand, F::Arat,
    F::Fsgsbase, F::TscAdjust, F::Smep, F::Erms, F::Invpcid, F::FcsFdsDeprecated, F::Rdseed,
    F::Smap, F::Xsaveopt, F::Page1gb, F::Rdtscp, F::InvariantTsc,
];

/// System features of the server processor.
#[rustfmt::skip]
const SYSTEM: &[Feature] = &[
    F::Clflushopt, F::Clwb, F::Umip, F::Pku, F::Rdpid, F::Fsrm, F::Serialize, F::ArchCapabilities,
    F::Xsavec, F::Xgetbv1, F::Xsaves, F::Cldemote, F::La57, F::Prefetchw, F::Movdiri,
];

/// System features that the default profile does not have.
#[rustfmt::skip]
const RARE: &[Feature] = &[F::Pks, F::Waitpkg, F::Movdir64b, F::CetSs, F::CetIbt];

/// Vector instruction sets that no level has.
#[rustfmt::skip]
const BESIDE_V4: &[Feature] = &[
    F::Gfni, F::Vaes, F::Vpclmulqdq, F::Avx512ifma, F::Avx512vbmi, F::Avx512vbmi2, F::Avx512vnni,
    F::Avx512bitalg, F::Avx512vpopcntdq,
];

impl Profile {
    /// The default: x86-64-v3 and the instruction sets that its processors have beside it.
    pub const DEFAULT: Self = Self::server(
        "default",
        &[
            P6,
            X86_64,
            V2,
            V3_INTEGER,
            V3_VECTOR,
            CRYPTOGRAPHY,
            COMMON_SYSTEM,
            SYSTEM,
        ],
    );
    /// Every instruction set that this crate executes; protection keys for supervisor pages,
    /// user-level waiting, shadow stacks and indirect-branch tracking.
    pub const EVERYTHING: Self = Self {
        physical_address_bits: 52,
        ..Self::server(
            "everything",
            &[
                P6,
                X86_64,
                V2,
                V3_INTEGER,
                V3_VECTOR,
                V4,
                CRYPTOGRAPHY,
                BESIDE_V4,
                COMMON_SYSTEM,
                SYSTEM,
                RARE,
            ],
        )
    };
    /// A 32-bit processor without extensions.
    pub const MINIMAL: Self = Self {
        physical_address_bits: 36,
        linear_address_bits: 32,
        ..Self::server("minimal", &[P6])
    };
    /// The lowest level of 64-bit instructions (x86-64 psABI, "Low Level System Information"), with
    /// the system features of the default.
    pub const X86_64_V1: Self = Self::server("x86-64-v1", &[P6, X86_64, COMMON_SYSTEM, SYSTEM]);
    /// The second level: SSE3 to SSE4.2, POPCNT.
    pub const X86_64_V2: Self = Self::server("x86-64-v2", &[P6, X86_64, V2, COMMON_SYSTEM, SYSTEM]);
    /// The third level: AVX2, BMI, FMA.
    pub const X86_64_V3: Self = Self::server(
        "x86-64-v3",
        &[P6, X86_64, V2, V3_INTEGER, V3_VECTOR, COMMON_SYSTEM, SYSTEM],
    );
    /// The fourth level: AVX-512.
    pub const X86_64_V4: Self = Self::server(
        "x86-64-v4",
        &[
            P6,
            X86_64,
            V2,
            V3_INTEGER,
            V3_VECTOR,
            V4,
            COMMON_SYSTEM,
            SYSTEM,
        ],
    );
    /// The processor of `VmxProfile::broadwell`.
    pub const BROADWELL: Self = Self {
        name: "broadwell-i7-5600u",
        features: &[
            P6,
            X86_64,
            V2,
            V3_INTEGER,
            V3_VECTOR,
            &[F::Aes, F::Pclmulqdq, F::Adx, F::Prefetchw],
            COMMON_SYSTEM,
        ],
        physical_address_bits: 39,
        linear_address_bits: 48,
        signature: 0x000_306d4,
        brand: "Intel(R) Core(TM) i7-5600U CPU @ 2.60GHz",
    };
    /// The processor of `VmxProfile::coffee_lake`.
    pub const COFFEE_LAKE: Self = Self {
        name: "coffee-lake-i7-8750h-class",
        features: &[
            P6,
            X86_64,
            V2,
            V3_INTEGER,
            V3_VECTOR,
            &[F::Aes, F::Pclmulqdq, F::Adx, F::Prefetchw],
            COMMON_SYSTEM,
            &[F::Clflushopt, F::Xsavec, F::Xgetbv1, F::Xsaves],
        ],
        physical_address_bits: 39,
        linear_address_bits: 48,
        signature: 0x000_906ea,
        brand: "Intel(R) Core(TM) i7-8750H CPU @ 2.20GHz",
    };
    /// Every profile.
    pub const ALL: &[Self] = &[
        Self::DEFAULT,
        Self::EVERYTHING,
        Self::MINIMAL,
        Self::X86_64_V1,
        Self::X86_64_V2,
        Self::X86_64_V3,
        Self::X86_64_V4,
        Self::BROADWELL,
        Self::COFFEE_LAKE,
    ];

    /// The server processor with these features.
    const fn server(name: &'static str, features: &'static [&'static [Feature]]) -> Self {
        Self {
            name,
            features,
            physical_address_bits: 46,
            linear_address_bits: 57,
            signature: SIGNATURE,
            brand: BRAND,
        }
    }

    /// Returns the profile of this name.
    #[must_use]
    pub fn by_name(name: &str) -> Option<&'static Self> {
        Self::ALL.iter().find(|p| p.name == name)
    }

    /// Returns the features.
    #[must_use]
    pub fn features(&self) -> FeatureSet {
        let all = self.features.iter().flat_map(|group| group.iter());
        all.fold(FeatureSet::default(), |set, &f| set.with(f))
    }

    /// Returns the CPUID leaves.
    ///
    /// # Examples
    /// ```
    /// use x86_interp::cpuid::{Feature, Profile};
    ///
    /// let table = Profile::DEFAULT.table();
    /// assert!(table.features().has(Feature::Vmx));
    /// assert_eq!(table.physical_address_bits(), 46);
    /// assert_eq!(table.answer(0, 0).ebx.to_le_bytes(), *b"Genu");
    /// ```
    #[must_use]
    pub fn table(&self) -> CpuidTable {
        let set = self.features();
        let mut entries = self.leaves(set);
        for &(feature, leaf, subleaf, output, bit) in Feature::ALL {
            if set.has(feature) {
                let entry = entries
                    .iter_mut()
                    .find(|e| e.function == leaf && (!e.has_index || e.index == subleaf))
                    .expect("`leaves` makes every leaf that reports a feature of the profile");
                *entry.output_mut(output) |= 1 << bit;
            }
        }
        CpuidTable::new(entries)
    }

    /// Returns the leaves without feature bits.
    fn leaves(&self, set: FeatureSet) -> Vec<CpuidEntry> {
        let mut leaves = vec![
            leaf(
                0,
                [
                    if set.has(F::Xsave) { 0xd } else { 2 },
                    text(b"Genu"),
                    text(b"ntel"),
                    text(b"ineI"),
                ],
            ),
            // CLFLUSH line of 64 bytes, one logical processor.
            leaf(1, [self.signature, 0x0001_0800, 0, 0]),
            // "No cache information here, see leaf 4."
            leaf(2, [0x00fe_ff01, 0xf0, 0, 0]),
        ];
        if set.has(F::LongMode) {
            leaves.extend(
                CACHES
                    .iter()
                    .map(|&(index, words)| subleaf(4, index, words)),
            );
            leaves.extend([
                leaf(5, [0x40, 0x40, 3, 0x20]),
                leaf(6, [0; 4]),
                subleaf(7, 0, [0; 4]),
                leaf(0xa, [0; 4]),
                subleaf(0xb, 0, [0, 1, 0x100, 0]),
                subleaf(0xb, 1, [0, 1, 0x201, 0]),
            ]);
        }
        if set.has(F::Xsave) {
            leaves.extend(crate::xstate::leaves(set));
        }
        leaves.push(leaf(0x8000_0000, [0x8000_0008, 0, 0, 0]));
        leaves.push(leaf(0x8000_0001, [0; 4]));
        leaves.extend(brand(self.brand));
        leaves.push(leaf(0x8000_0006, [0, 0, 0x0100_6040, 0]));
        leaves.push(leaf(0x8000_0007, [0; 4]));
        let sizes =
            u32::from(self.linear_address_bits) << 8 | u32::from(self.physical_address_bits);
        leaves.push(leaf(0x8000_0008, [sizes, 0, 0, 0]));
        leaves
    }
}

/// Leaf 4: 32 KiB of L1 data and instruction cache, 1 MiB of L2, 16 MiB of L3; lines of 64 bytes.
const CACHES: &[(u32, [u32; 4])] = &[
    (0, [0x0000_0121, 0x01c0_003f, 0x3f, 0]),
    (1, [0x0000_0122, 0x01c0_003f, 0x3f, 0]),
    (2, [0x0000_0143, 0x03c0_003f, 0x3ff, 0]),
    (3, [0x0000_0163, 0x03c0_003f, 0x3fff, 0]),
    (4, [0; 4]),
];

fn leaf(function: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> CpuidEntry {
    CpuidEntry {
        function,
        eax,
        ebx,
        ecx,
        edx,
        ..CpuidEntry::default()
    }
}

/// Returns one subleaf.
pub(crate) fn subleaf(function: u32, index: u32, words: [u32; 4]) -> CpuidEntry {
    CpuidEntry {
        index,
        has_index: true,
        ..leaf(function, words)
    }
}

const fn text(letters: &[u8; 4]) -> u32 {
    u32::from_le_bytes(*letters)
}

/// Leaves 80000002H to 80000004H: the brand string.
fn brand(name: &str) -> [CpuidEntry; 3] {
    let name = name.as_bytes();
    let mut bytes = [0; 48];
    bytes[..name.len()].copy_from_slice(name);
    [0, 1, 2].map(|part| {
        let word = |n: usize| {
            let at = part * 16 + n * 4;
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        leaf(
            0x8000_0002 + part as u32,
            [word(0), word(1), word(2), word(3)],
        )
    })
}
