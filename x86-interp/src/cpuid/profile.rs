//! Named CPUID profiles.
//!
//! SDM Vol. 2A, "CPUID-CPU Identification". The vendor string is Intel's, since VMX and the rules
//! for what is undefined are Intel's; the model number is that of a server processor which has the
//! features of the `default` profile.

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
}

/// The features of every 32-bit processor that this crate models.
const P6: &[Feature] = &[
    F::Fpu,
    F::Vme,
    F::De,
    F::Pse,
    F::Tsc,
    F::Msr,
    F::Pae,
    F::Mce,
    F::Cx8,
    F::Apic,
    F::Sep,
    F::Mtrr,
    F::Pge,
    F::Mca,
    F::Cmov,
    F::Pat,
    F::Pse36,
    F::Mmx,
    F::Fxsr,
];

/// What long-mode software expects.
const X86_64: &[Feature] = &[
    F::Clfsh,
    F::Sse,
    F::Sse2,
    F::Ss,
    F::Syscall,
    F::Nx,
    F::LongMode,
];

/// What x86-64-v2 adds, of the integer instructions.
const V2_INTEGER: &[Feature] = &[F::LahfLm, F::Cx16];

/// System features.
const SYSTEM: &[Feature] = &[
    F::Monitor,
    F::Vmx,
    F::Pcid,
    F::X2apic,
    F::TscDeadline,
    F::Xsave,
    F::Rdrand,
    F::Arat,
    F::Fsgsbase,
    F::TscAdjust,
    F::Smep,
    F::Erms,
    F::Invpcid,
    F::FcsFdsDeprecated,
    F::Rdseed,
    F::Smap,
    F::Clflushopt,
    F::Clwb,
    F::Umip,
    F::Pku,
    F::Rdpid,
    F::Fsrm,
    F::Serialize,
    F::ArchCapabilities,
    F::Xsaveopt,
    F::Xsavec,
    F::Xgetbv1,
    F::Xsaves,
    F::Page1gb,
    F::Rdtscp,
    F::InvariantTsc,
    F::Cldemote,
    F::La57,
];

/// Integer instruction sets.
const INTEGER: &[Feature] = &[
    F::Movbe,
    F::Popcnt,
    F::Bmi1,
    F::Bmi2,
    F::Adx,
    F::Lzcnt,
    F::Prefetchw,
    F::Movdiri,
];

/// System features that the default profile does not have.
const RARE: &[Feature] = &[F::Pks, F::Waitpkg];

/// Vector instruction sets, most of which stop with `Stop::Unimplemented` today.
const VECTOR: &[Feature] = &[
    F::Sse3,
    F::Ssse3,
    F::Sse41,
    F::Sse42,
    F::Pclmulqdq,
    F::Aes,
    F::Avx,
    F::F16c,
    F::Fma,
    F::Avx2,
    F::Sha,
];

impl Profile {
    /// What this crate executes: the default.
    pub const DEFAULT: Self = Self {
        name: "default",
        features: &[P6, X86_64, V2_INTEGER, SYSTEM, INTEGER],
        physical_address_bits: 46,
        linear_address_bits: 57,
    };
    /// The default, protection keys for supervisor pages, user-level waiting, and the vector instruction sets that this
    /// crate knows by name.
    pub const EVERYTHING: Self = Self {
        name: "everything",
        features: &[P6, X86_64, V2_INTEGER, SYSTEM, INTEGER, RARE, VECTOR],
        physical_address_bits: 52,
        linear_address_bits: 57,
    };
    /// A 32-bit processor without extensions.
    pub const MINIMAL: Self = Self {
        name: "minimal",
        features: &[P6],
        physical_address_bits: 36,
        linear_address_bits: 32,
    };
    /// The lowest level of 64-bit instructions (x86-64 psABI, "Low Level System Information"), with
    /// the system features of the default.
    pub const X86_64_V1: Self = Self {
        name: "x86-64-v1",
        features: &[P6, X86_64, SYSTEM],
        physical_address_bits: 46,
        linear_address_bits: 57,
    };
    /// Every profile.
    pub const ALL: &[Self] = &[
        Self::DEFAULT,
        Self::EVERYTHING,
        Self::MINIMAL,
        Self::X86_64_V1,
    ];

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
            // Family 6, model 6AH, stepping 6; CLFLUSH line of 64 bytes, one logical processor.
            leaf(1, [0x000_606a6, 0x0001_0800, 0, 0]),
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
        leaves.extend(brand());
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
fn brand() -> [CpuidEntry; 3] {
    let mut bytes = [0; 48];
    let name = b"softvmx virtual processor";
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
