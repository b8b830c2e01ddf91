//! What the processor offers: CPUID leaves, named profiles, and the feature set derived from them.
//!
//! SDM Vol. 2A, "CPUID-CPU Identification". A [`CpuidTable`] holds the leaves of one processor;
//! [`FeatureSet`] is its cached digest, which decides what instructions and control bits exist.

mod feature;
mod profile;

pub use feature::{Feature, FeatureSet, Output};
pub use profile::Profile;
pub(crate) use profile::subleaf;

use serde::{Deserialize, Serialize};
use vmx_model::arch::{CpuFacts, Cr4, Efer};

/// One leaf or subleaf of CPUID.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuidEntry {
    /// EAX on input.
    pub function: u32,
    /// ECX on input, where [`Self::has_index`].
    pub index: u32,
    /// Whether the leaf has subleaves.
    pub has_index: bool,
    /// EAX on output.
    pub eax: u32,
    /// EBX on output.
    pub ebx: u32,
    /// ECX on output.
    pub ecx: u32,
    /// EDX on output.
    pub edx: u32,
}

impl CpuidEntry {
    /// Returns one output register.
    #[must_use]
    pub const fn output(&self, output: Output) -> u32 {
        match output {
            Output::Eax => self.eax,
            Output::Ebx => self.ebx,
            Output::Ecx => self.ecx,
            Output::Edx => self.edx,
        }
    }

    /// Returns one output register for changing it.
    pub const fn output_mut(&mut self, output: Output) -> &mut u32 {
        match output {
            Output::Eax => &mut self.eax,
            Output::Ebx => &mut self.ebx,
            Output::Ecx => &mut self.ecx,
            Output::Edx => &mut self.edx,
        }
    }
}

/// The CPUID leaves of one processor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<CpuidEntry>", into = "Vec<CpuidEntry>")]
pub struct CpuidTable {
    entries: Vec<CpuidEntry>,
    features: FeatureSet,
    physical_address_bits: u8,
}

impl From<Vec<CpuidEntry>> for CpuidTable {
    fn from(entries: Vec<CpuidEntry>) -> Self {
        Self::new(entries)
    }
}

impl From<CpuidTable> for Vec<CpuidEntry> {
    fn from(table: CpuidTable) -> Self {
        table.entries
    }
}

impl CpuidTable {
    /// Returns the table of these leaves.
    #[must_use]
    pub fn new(entries: Vec<CpuidEntry>) -> Self {
        let mut table = Self {
            entries,
            features: FeatureSet::default(),
            physical_address_bits: 36,
        };
        for &(feature, leaf, subleaf, output, bit) in Feature::ALL {
            let word = table.find(leaf, subleaf).map_or(0, |e| e.output(output));
            if word >> bit & 1 != 0 {
                table.features = table.features.with(feature);
            }
        }
        if let Some(sizes) = table.find(0x8000_0008, 0) {
            // More than 52 bits have no place in a page-table entry.
            table.physical_address_bits = (sizes.eax as u8).clamp(32, 52);
        }
        table
    }

    /// Returns the leaves.
    #[must_use]
    pub fn entries(&self) -> &[CpuidEntry] {
        &self.entries
    }

    /// Returns the features.
    #[must_use]
    pub const fn features(&self) -> FeatureSet {
        self.features
    }

    /// Returns MAXPHYADDR.
    #[must_use]
    pub const fn physical_address_bits(&self) -> u8 {
        self.physical_address_bits
    }

    /// Returns exactly this leaf, if the table has it.
    #[must_use]
    pub fn find(&self, function: u32, index: u32) -> Option<&CpuidEntry> {
        self.entries
            .iter()
            .find(|e| e.function == function && (!e.has_index || e.index == index))
    }

    /// Returns what CPUID answers, before the bits that depend on the processor's state.
    ///
    /// A leaf above the highest one answers as the highest basic leaf does; a missing subleaf or a
    /// missing leaf below the highest one answers zeros.
    #[must_use]
    pub fn answer(&self, function: u32, index: u32) -> CpuidEntry {
        let asked = CpuidEntry {
            function,
            index,
            ..CpuidEntry::default()
        };
        if let Some(entry) = self.find(function, index) {
            return *entry;
        }
        let highest = |base: u32| self.find(base, 0).map_or(0, |e| e.eax);
        let is_basic = function < 0x8000_0000;
        let limit = highest(if is_basic { 0 } else { 0x8000_0000 });
        if function <= limit {
            return asked;
        }
        self.find(highest(0), index).copied().unwrap_or(asked)
    }

    /// Returns the width of the widest linear address: 48, or 57 with LA57.
    #[must_use]
    pub const fn linear_address_bits(&self) -> u8 {
        if self.features.has(Feature::La57) {
            57
        } else {
            48
        }
    }

    /// Returns the bits of CR4 that may be set.
    #[must_use]
    pub fn cr4_supported(&self) -> Cr4 {
        let offered = CR4_FEATURES.iter().filter(|row| self.features.has(row.1));
        offered.fold(Cr4::PCE, |bits, row| bits | row.0)
    }

    /// Returns the bits of IA32_EFER that may be set.
    #[must_use]
    pub fn efer_supported(&self) -> Efer {
        let offered = EFER_FEATURES.iter().filter(|row| self.features.has(row.1));
        offered.fold(Efer::empty(), |bits, row| bits | row.0)
    }

    /// Returns what a VMX model has to know about this processor.
    #[must_use]
    pub fn facts(&self) -> CpuFacts {
        CpuFacts {
            physical_address_bits: self.physical_address_bits,
            linear_address_bits: self.linear_address_bits(),
            cr4_supported: self.cr4_supported(),
            efer_supported: self.efer_supported(),
            debugctl_supported: crate::msr::DEBUGCTL_SUPPORTED,
            perf_global_ctrl_supported: 0,
            has_rtm: self.features.has(Feature::Rtm),
            has_sgx: false,
            has_long_mode: self.features.has(Feature::LongMode),
        }
    }
}

/// The bits of CR4 and the features that bring them. CR4.PCE is always there.
const CR4_FEATURES: &[(Cr4, Feature)] = &[
    (Cr4::VME, Feature::Vme),
    (Cr4::PVI, Feature::Vme),
    (Cr4::TSD, Feature::Tsc),
    (Cr4::DE, Feature::De),
    (Cr4::PSE, Feature::Pse),
    (Cr4::PAE, Feature::Pae),
    (Cr4::MCE, Feature::Mce),
    (Cr4::PGE, Feature::Pge),
    (Cr4::OSFXSR, Feature::Fxsr),
    (Cr4::OSXMMEXCPT, Feature::Sse),
    (Cr4::UMIP, Feature::Umip),
    (Cr4::LA57, Feature::La57),
    (Cr4::VMXE, Feature::Vmx),
    (Cr4::SMXE, Feature::Smx),
    (Cr4::FSGSBASE, Feature::Fsgsbase),
    (Cr4::PCIDE, Feature::Pcid),
    (Cr4::OSXSAVE, Feature::Xsave),
    (Cr4::SMEP, Feature::Smep),
    (Cr4::SMAP, Feature::Smap),
    (Cr4::PKE, Feature::Pku),
    (Cr4::CET, Feature::CetSs),
    (Cr4::CET, Feature::CetIbt),
    (Cr4::PKS, Feature::Pks),
];

/// The bits of IA32_EFER and the features that bring them.
const EFER_FEATURES: &[(Efer, Feature)] = &[
    (Efer::SCE, Feature::Syscall),
    (Efer::LME, Feature::LongMode),
    (Efer::LMA, Feature::LongMode),
    (Efer::NXE, Feature::Nx),
];

#[cfg(test)]
mod tests;
