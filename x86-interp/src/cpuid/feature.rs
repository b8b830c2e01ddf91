//! Features: where CPUID reports each, and which instructions need it.
//!
//! SDM Vol. 2A, "CPUID-CPU Identification", tables of feature information.

use iced_x86::{Code, CpuidFeature, DecoderOptions};
use serde::{Deserialize, Serialize};

/// A register of a CPUID leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the documentation")]
pub enum Output {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// Declares the features: where CPUID reports each of them.
macro_rules! features {
    ($($name:ident = $leaf:literal, $subleaf:literal, $output:ident, $bit:literal;)*) => {
        /// A feature that CPUID reports in one bit.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        #[allow(missing_docs, reason = "the names are CPUID's own")]
        pub enum Feature { $($name),* }

        impl Feature {
            /// Every feature with the leaf, subleaf, register and bit that report it.
            pub const ALL: &[(Feature, u32, u32, Output, u32)] =
                &[$((Feature::$name, $leaf, $subleaf, Output::$output, $bit)),*];
        }
    };
}

features! {
    Fpu = 1, 0, Edx, 0;
    Vme = 1, 0, Edx, 1;
    De = 1, 0, Edx, 2;
    Pse = 1, 0, Edx, 3;
    Tsc = 1, 0, Edx, 4;
    Msr = 1, 0, Edx, 5;
    Pae = 1, 0, Edx, 6;
    Mce = 1, 0, Edx, 7;
    Cx8 = 1, 0, Edx, 8;
    Apic = 1, 0, Edx, 9;
    Sep = 1, 0, Edx, 11;
    Mtrr = 1, 0, Edx, 12;
    Pge = 1, 0, Edx, 13;
    Mca = 1, 0, Edx, 14;
    Cmov = 1, 0, Edx, 15;
    Pat = 1, 0, Edx, 16;
    Pse36 = 1, 0, Edx, 17;
    Clfsh = 1, 0, Edx, 19;
    Mmx = 1, 0, Edx, 23;
    Fxsr = 1, 0, Edx, 24;
    Sse = 1, 0, Edx, 25;
    Sse2 = 1, 0, Edx, 26;
    Ss = 1, 0, Edx, 27;
    Htt = 1, 0, Edx, 28;
    Sse3 = 1, 0, Ecx, 0;
    Pclmulqdq = 1, 0, Ecx, 1;
    Monitor = 1, 0, Ecx, 3;
    Vmx = 1, 0, Ecx, 5;
    Smx = 1, 0, Ecx, 6;
    Ssse3 = 1, 0, Ecx, 9;
    Fma = 1, 0, Ecx, 12;
    Cx16 = 1, 0, Ecx, 13;
    Pcid = 1, 0, Ecx, 17;
    Sse41 = 1, 0, Ecx, 19;
    Sse42 = 1, 0, Ecx, 20;
    X2apic = 1, 0, Ecx, 21;
    Movbe = 1, 0, Ecx, 22;
    Popcnt = 1, 0, Ecx, 23;
    TscDeadline = 1, 0, Ecx, 24;
    Aes = 1, 0, Ecx, 25;
    Xsave = 1, 0, Ecx, 26;
    Avx = 1, 0, Ecx, 28;
    F16c = 1, 0, Ecx, 29;
    Rdrand = 1, 0, Ecx, 30;
    Hypervisor = 1, 0, Ecx, 31;
    Arat = 6, 0, Eax, 2;
    Fsgsbase = 7, 0, Ebx, 0;
    TscAdjust = 7, 0, Ebx, 1;
    Bmi1 = 7, 0, Ebx, 3;
    Hle = 7, 0, Ebx, 4;
    Avx2 = 7, 0, Ebx, 5;
    FdpExcptnOnly = 7, 0, Ebx, 6;
    Smep = 7, 0, Ebx, 7;
    Bmi2 = 7, 0, Ebx, 8;
    Erms = 7, 0, Ebx, 9;
    Invpcid = 7, 0, Ebx, 10;
    Rtm = 7, 0, Ebx, 11;
    FcsFdsDeprecated = 7, 0, Ebx, 13;
    Avx512f = 7, 0, Ebx, 16;
    Avx512dq = 7, 0, Ebx, 17;
    Rdseed = 7, 0, Ebx, 18;
    Adx = 7, 0, Ebx, 19;
    Smap = 7, 0, Ebx, 20;
    Avx512ifma = 7, 0, Ebx, 21;
    Clflushopt = 7, 0, Ebx, 23;
    Clwb = 7, 0, Ebx, 24;
    Avx512cd = 7, 0, Ebx, 28;
    Sha = 7, 0, Ebx, 29;
    Avx512bw = 7, 0, Ebx, 30;
    Avx512vl = 7, 0, Ebx, 31;
    Avx512vbmi = 7, 0, Ecx, 1;
    Umip = 7, 0, Ecx, 2;
    Pku = 7, 0, Ecx, 3;
    Ospke = 7, 0, Ecx, 4;
    Waitpkg = 7, 0, Ecx, 5;
    Avx512vbmi2 = 7, 0, Ecx, 6;
    CetSs = 7, 0, Ecx, 7;
    Gfni = 7, 0, Ecx, 8;
    Vaes = 7, 0, Ecx, 9;
    Vpclmulqdq = 7, 0, Ecx, 10;
    Avx512vnni = 7, 0, Ecx, 11;
    Avx512bitalg = 7, 0, Ecx, 12;
    Avx512vpopcntdq = 7, 0, Ecx, 14;
    La57 = 7, 0, Ecx, 16;
    Rdpid = 7, 0, Ecx, 22;
    Cldemote = 7, 0, Ecx, 25;
    Movdiri = 7, 0, Ecx, 27;
    Movdir64b = 7, 0, Ecx, 28;
    Pks = 7, 0, Ecx, 31;
    Fsrm = 7, 0, Edx, 4;
    MdClear = 7, 0, Edx, 10;
    Serialize = 7, 0, Edx, 14;
    CetIbt = 7, 0, Edx, 20;
    SpecCtrl = 7, 0, Edx, 26;
    ArchCapabilities = 7, 0, Edx, 29;
    Xsaveopt = 0xd, 1, Eax, 0;
    Xsavec = 0xd, 1, Eax, 1;
    Xgetbv1 = 0xd, 1, Eax, 2;
    Xsaves = 0xd, 1, Eax, 3;
    LahfLm = 0x8000_0001, 0, Ecx, 0;
    Lzcnt = 0x8000_0001, 0, Ecx, 5;
    Prefetchw = 0x8000_0001, 0, Ecx, 8;
    Syscall = 0x8000_0001, 0, Edx, 11;
    Nx = 0x8000_0001, 0, Edx, 20;
    Page1gb = 0x8000_0001, 0, Edx, 26;
    Rdtscp = 0x8000_0001, 0, Edx, 27;
    LongMode = 0x8000_0001, 0, Edx, 29;
    InvariantTsc = 0x8000_0007, 0, Edx, 8;
}

/// A set of features.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FeatureSet(u128);

impl FeatureSet {
    /// Whether `feature` is in the set.
    #[must_use]
    pub const fn has(self, feature: Feature) -> bool {
        self.0 >> feature as u8 & 1 != 0
    }

    /// Returns the set with `feature` in it.
    #[must_use]
    pub const fn with(self, feature: Feature) -> Self {
        Self(self.0 | 1 << feature as u8)
    }

    /// Returns the set of `features`.
    #[must_use]
    pub fn of(features: &[Feature]) -> Self {
        features.iter().fold(Self::default(), |set, &f| set.with(f))
    }

    /// Returns how to decode: without their features TZCNT and LZCNT are BSF and BSR with a prefix
    /// that is ignored.
    #[must_use]
    pub const fn decoder_options(self) -> u32 {
        let tzcnt = if self.has(Feature::Bmi1) {
            DecoderOptions::NONE
        } else {
            DecoderOptions::NO_MPFX_0FBC
        };
        let lzcnt = if self.has(Feature::Lzcnt) {
            DecoderOptions::NONE
        } else {
            DecoderOptions::NO_MPFX_0FBD
        };
        tzcnt | lzcnt
    }

    /// Whether a processor with these features has the instruction; one that it lacks is #UD.
    #[must_use]
    pub fn allows(self, code: Code) -> bool {
        code.cpuid_features().iter().all(|&f| match requirement(f) {
            Requirement::None => true,
            Requirement::Feature(feature) => self.has(feature),
            Requirement::Never => false,
        }) || is_hint(code)
    }
}

/// What an instruction set of the decoder's list needs.
enum Requirement {
    /// Every processor that this crate models has it.
    None,
    /// The processor has it if CPUID says so.
    Feature(Feature),
    /// No processor that this crate models has it.
    Never,
}

/// Whether an instruction lies in the NOP space: without its feature it does nothing.
fn is_hint(code: Code) -> bool {
    matches!(
        code,
        Code::Rdsspd_r32 | Code::Rdsspq_r64 | Code::Cldemote_m8 | Code::Prefetchw_m8
    )
}

/// Returns what the decoder's instruction set `set` needs.
fn requirement(set: CpuidFeature) -> Requirement {
    use CpuidFeature as S;
    if matches!(
        set,
        S::INTEL8086
            | S::INTEL186
            | S::INTEL286
            | S::INTEL386
            | S::INTEL486
            | S::CPUID
            | S::MULTIBYTENOP
            | S::PAUSE
            | S::RDPMC
            | S::SMM
            | S::CET_IBT
            | S::WBNOINVD
            | S::PREFETCHWT1
    ) {
        return Requirement::None;
    }
    let row = REQUIREMENTS.iter().find(|row| row.0 == set);
    row.map_or(Requirement::Never, |row| Requirement::Feature(row.1))
}

/// The decoder's instruction sets and the CPUID feature behind each. A set that is missing here is
/// not modelled: its instructions are #UD.
const REQUIREMENTS: &[(CpuidFeature, Feature)] = &[
    (CpuidFeature::X64, Feature::LongMode),
    (CpuidFeature::ADX, Feature::Adx),
    (CpuidFeature::AES, Feature::Aes),
    (CpuidFeature::AVX, Feature::Avx),
    (CpuidFeature::AVX2, Feature::Avx2),
    (CpuidFeature::AVX512F, Feature::Avx512f),
    (CpuidFeature::AVX512DQ, Feature::Avx512dq),
    (CpuidFeature::AVX512_IFMA, Feature::Avx512ifma),
    (CpuidFeature::AVX512CD, Feature::Avx512cd),
    (CpuidFeature::AVX512BW, Feature::Avx512bw),
    (CpuidFeature::AVX512VL, Feature::Avx512vl),
    (CpuidFeature::AVX512_VBMI, Feature::Avx512vbmi),
    (CpuidFeature::AVX512_VBMI2, Feature::Avx512vbmi2),
    (CpuidFeature::AVX512_VNNI, Feature::Avx512vnni),
    (CpuidFeature::AVX512_BITALG, Feature::Avx512bitalg),
    (CpuidFeature::AVX512_VPOPCNTDQ, Feature::Avx512vpopcntdq),
    (CpuidFeature::BMI1, Feature::Bmi1),
    (CpuidFeature::BMI2, Feature::Bmi2),
    (CpuidFeature::CET_SS, Feature::CetSs),
    (CpuidFeature::CLDEMOTE, Feature::Cldemote),
    (CpuidFeature::CLFLUSHOPT, Feature::Clflushopt),
    (CpuidFeature::CLFSH, Feature::Clfsh),
    (CpuidFeature::CLWB, Feature::Clwb),
    (CpuidFeature::CMOV, Feature::Cmov),
    (CpuidFeature::CMPXCHG16B, Feature::Cx16),
    (CpuidFeature::CX8, Feature::Cx8),
    (CpuidFeature::F16C, Feature::F16c),
    (CpuidFeature::FMA, Feature::Fma),
    (CpuidFeature::FPU, Feature::Fpu),
    (CpuidFeature::FPU287, Feature::Fpu),
    (CpuidFeature::FPU387, Feature::Fpu),
    (CpuidFeature::FSGSBASE, Feature::Fsgsbase),
    (CpuidFeature::FXSR, Feature::Fxsr),
    (CpuidFeature::GFNI, Feature::Gfni),
    (CpuidFeature::INVEPT, Feature::Vmx),
    (CpuidFeature::INVVPID, Feature::Vmx),
    (CpuidFeature::INVPCID, Feature::Invpcid),
    (CpuidFeature::LZCNT, Feature::Lzcnt),
    (CpuidFeature::MMX, Feature::Mmx),
    (CpuidFeature::MONITOR, Feature::Monitor),
    (CpuidFeature::MOVBE, Feature::Movbe),
    (CpuidFeature::MOVDIR64B, Feature::Movdir64b),
    (CpuidFeature::MOVDIRI, Feature::Movdiri),
    (CpuidFeature::MSR, Feature::Msr),
    (CpuidFeature::PCLMULQDQ, Feature::Pclmulqdq),
    (CpuidFeature::PKU, Feature::Pku),
    (CpuidFeature::POPCNT, Feature::Popcnt),
    (CpuidFeature::PREFETCHW, Feature::Prefetchw),
    (CpuidFeature::RDPID, Feature::Rdpid),
    (CpuidFeature::RDRAND, Feature::Rdrand),
    (CpuidFeature::RDSEED, Feature::Rdseed),
    (CpuidFeature::RDTSCP, Feature::Rdtscp),
    (CpuidFeature::RTM, Feature::Rtm),
    (CpuidFeature::SEP, Feature::Sep),
    (CpuidFeature::SERIALIZE, Feature::Serialize),
    (CpuidFeature::SHA, Feature::Sha),
    (CpuidFeature::SMAP, Feature::Smap),
    (CpuidFeature::SMX, Feature::Smx),
    (CpuidFeature::SSE, Feature::Sse),
    (CpuidFeature::SSE2, Feature::Sse2),
    (CpuidFeature::SSE3, Feature::Sse3),
    (CpuidFeature::SSE4_1, Feature::Sse41),
    (CpuidFeature::SSE4_2, Feature::Sse42),
    (CpuidFeature::SSSE3, Feature::Ssse3),
    (CpuidFeature::SYSCALL, Feature::Syscall),
    (CpuidFeature::TSC, Feature::Tsc),
    (CpuidFeature::VAES, Feature::Vaes),
    (CpuidFeature::VMX, Feature::Vmx),
    (CpuidFeature::VPCLMULQDQ, Feature::Vpclmulqdq),
    (CpuidFeature::WAITPKG, Feature::Waitpkg),
    (CpuidFeature::XSAVE, Feature::Xsave),
    (CpuidFeature::XSAVEC, Feature::Xsavec),
    (CpuidFeature::XSAVEOPT, Feature::Xsaveopt),
    (CpuidFeature::XSAVES, Feature::Xsaves),
];
