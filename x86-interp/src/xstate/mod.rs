//! XSAVE state components: numbers, sizes, places.
//!
//! SDM Vol. 1, "XSAVE-Supported Features and State-Component Bitmaps", "Managing State Using the
//! XSAVE Feature Set". The instructions are in `exec::xsave`.

mod area;
pub(crate) mod legacy;

pub use area::AREA_BYTES;

use crate::cpuid::{CpuidEntry, Feature, FeatureSet, subleaf};

/// Bytes of the legacy region (the FXSAVE image).
pub const LEGACY_BYTES: u32 = 512;
/// Bytes of the XSAVE header.
pub const HEADER_BYTES: u32 = 64;
/// Where the extended region begins.
pub const EXTENDED_OFFSET: u32 = LEGACY_BYTES + HEADER_BYTES;

/// State component 0.
pub const X87: u64 = 1 << 0;
/// State component 1: XMM registers and MXCSR.
pub const SSE: u64 = 1 << 1;
/// State component 2: upper halves of the YMM registers.
pub const AVX: u64 = 1 << 2;
/// State component 5: the opmask registers.
pub const OPMASK: u64 = 1 << 5;
/// State component 6: upper halves of ZMM0 to ZMM15.
pub const ZMM_HI256: u64 = 1 << 6;
/// State component 7: ZMM16 to ZMM31.
pub const HI16_ZMM: u64 = 1 << 7;
/// The state components of AVX-512.
pub const AVX512: u64 = OPMASK | ZMM_HI256 | HI16_ZMM;
/// State component 9.
pub const PKRU: u64 = 1 << 9;
/// State component 11: IA32_U_CET and IA32_PL3_SSP.
pub const CET_U: u64 = 1 << 11;
/// State component 12: IA32_PL0_SSP, IA32_PL1_SSP and IA32_PL2_SSP.
pub const CET_S: u64 = 1 << 12;

/// A state component of the extended region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Component {
    /// Bit in the state-component bitmaps.
    pub mask: u64,
    /// Bytes.
    pub size: u32,
    /// Place in the standard form.
    pub offset: u32,
    /// Whether it is aligned to 64 bytes in the compacted form.
    pub is_aligned: bool,
    /// Whether IA32_XSS enables it, rather than XCR0: it has no place in the standard form.
    pub is_supervisor: bool,
    /// Which features bring it.
    pub features: &'static [Feature],
}

impl Component {
    /// Whether a processor with these features has it.
    #[must_use]
    pub fn is_offered(&self, features: FeatureSet) -> bool {
        self.features.iter().any(|&feature| features.has(feature))
    }
}

/// The state components of the extended region, in ascending order.
pub const EXTENDED: &[Component] = &[
    Component {
        mask: AVX,
        size: 256,
        offset: 576,
        is_aligned: false,
        is_supervisor: false,
        features: &[Feature::Avx],
    },
    Component {
        mask: OPMASK,
        size: 64,
        offset: 1088,
        is_aligned: false,
        is_supervisor: false,
        features: &[Feature::Avx512f],
    },
    Component {
        mask: ZMM_HI256,
        size: 512,
        offset: 1152,
        is_aligned: false,
        is_supervisor: false,
        features: &[Feature::Avx512f],
    },
    Component {
        mask: HI16_ZMM,
        size: 1024,
        offset: 1664,
        is_aligned: false,
        is_supervisor: false,
        features: &[Feature::Avx512f],
    },
    Component {
        mask: PKRU,
        size: 8,
        offset: 2688,
        is_aligned: false,
        is_supervisor: false,
        features: &[Feature::Pku],
    },
    Component {
        mask: CET_U,
        size: 16,
        offset: 0,
        is_aligned: false,
        is_supervisor: true,
        features: &[Feature::CetSs, Feature::CetIbt],
    },
    Component {
        mask: CET_S,
        size: 24,
        offset: 0,
        is_aligned: false,
        is_supervisor: true,
        features: &[Feature::CetSs],
    },
];

/// Returns the bits of XCR0 that a processor with these features supports.
#[must_use]
pub fn supported(features: FeatureSet) -> u64 {
    offered(features, false).fold(X87 | SSE, |mask, c| mask | c.mask)
}

/// Returns the bits of IA32_XSS that a processor with these features supports.
#[must_use]
pub fn supported_by_xss(features: FeatureSet) -> u64 {
    offered(features, true).fold(0, |mask, c| mask | c.mask)
}

fn offered(features: FeatureSet, is_supervisor: bool) -> impl Iterator<Item = &'static Component> {
    EXTENDED
        .iter()
        .filter(move |c| c.is_supervisor == is_supervisor && c.is_offered(features))
}

/// Returns the size of the standard form of a save area for the components of `mask`.
#[must_use]
pub fn standard_bytes(mask: u64) -> u32 {
    let ends = EXTENDED.iter().filter(|c| mask & c.mask != 0);
    ends.map(|c| c.offset + c.size)
        .fold(EXTENDED_OFFSET, u32::max)
}

/// Returns the components of `mask` in the extended region with their places in the compacted form
/// for `mask`.
pub fn compacted(mask: u64) -> impl Iterator<Item = (Component, u32)> {
    let mut next = EXTENDED_OFFSET;
    EXTENDED
        .iter()
        .filter(move |c| mask & c.mask != 0)
        .map(move |c| {
            let at = if c.is_aligned {
                next.next_multiple_of(64)
            } else {
                next
            };
            next = at + c.size;
            (*c, at)
        })
}

/// Returns the size of the compacted form of a save area for the components of `mask`.
#[must_use]
pub fn compacted_bytes(mask: u64) -> u32 {
    compacted(mask)
        .last()
        .map_or(EXTENDED_OFFSET, |(c, at)| at + c.size)
}

/// Returns CPUID leaf DH of a processor with these features, without feature bits.
pub(crate) fn leaves(features: FeatureSet) -> Vec<CpuidEntry> {
    let all = supported(features);
    let supervisor = if features.has(Feature::Xsaves) {
        supported_by_xss(features)
    } else {
        0
    };
    let mut leaves = vec![
        subleaf(
            0xd,
            0,
            [
                all as u32,
                standard_bytes(X87),
                standard_bytes(all),
                (all >> 32) as u32,
            ],
        ),
        subleaf(0xd, 1, [0, 0, supervisor as u32, (supervisor >> 32) as u32]),
    ];
    let offered = EXTENDED.iter().filter(|c| c.is_offered(features));
    leaves.extend(offered.map(|c| {
        let flags = u32::from(c.is_aligned) << 1 | u32::from(c.is_supervisor);
        subleaf(0xd, c.mask.trailing_zeros(), [c.size, c.offset, flags, 0])
    }));
    leaves
}
