//! The CPUID that KVM offers to guests (api.rst, "KVM_GET_SUPPORTED_CPUID").
//!
//! It is one of the interpreter's profiles as far as KVM passes it on: without what needs an
//! in-kernel local APIC or nested VMX, and with the hypervisor's own leaves.

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use std::sync::{LazyLock, OnceLock};
use thiserror::Error;
use x86_interp::cpuid::{CpuidEntry, CpuidTable, Feature, Output, Profile};
use x86_interp::xstate;

/// What the processor has but KVM does not offer: MONITOR exits, nested VMX, what needs a local APIC
/// in the kernel, and CET, for whose SSP there is no register here (`KVM_REG_GUEST_SSP`).
const WITHHELD: &[Feature] = &[
    Feature::Monitor,
    Feature::Vmx,
    Feature::X2apic,
    Feature::TscDeadline,
    Feature::CetSs,
    Feature::CetIbt,
];

/// The processor on which KVM runs.
static PROCESSOR: OnceLock<&'static Profile> = OnceLock::new();

/// Why a processor cannot be chosen.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ProcessorError {
    /// No profile has this name.
    #[error("no CPUID profile is called {name}; there are {}", names().join(", "))]
    Unknown {
        /// The name.
        name: String,
    },
    /// KVM needs 64-bit mode, VMX, and addresses that the VMX profile covers.
    #[error("KVM does not run on the processor {name}")]
    Unsuitable {
        /// The name.
        name: String,
    },
    /// Somebody has asked KVM about its processor already.
    #[error("the processor of KVM is in use already")]
    InUse,
}

/// Returns the processors that [`choose_processor`] takes: the CPUID profiles of `x86-interp` on
/// which KVM runs.
fn names() -> Vec<&'static str> {
    let all = Profile::ALL.iter();
    all.filter(|p| is_suitable(p)).map(|p| p.name).collect()
}

fn is_suitable(profile: &Profile) -> bool {
    let (wide, own) = (Profile::DEFAULT.table().facts(), profile.table().facts());
    let features = profile.features();
    features.has(Feature::LongMode)
        && features.has(Feature::Vmx)
        && own.physical_address_bits <= wide.physical_address_bits
}

/// Chooses the processor on which KVM runs in this process, by the name of a CPUID profile
/// ([`Profile`]): what KVM_GET_SUPPORTED_CPUID offers follows. Without a choice it is
/// [`Profile::DEFAULT`].
///
/// # Errors
/// If there is no such profile, KVM does not run on it, or it is too late.
///
/// # Examples
/// ```
/// kvm_api::choose_processor("x86-64-v4")?;
/// let avx512f = |e: &kvm_bindings::kvm_cpuid_entry2| e.function == 7 && e.ebx >> 16 & 1 != 0;
/// assert!(kvm_api::Kvm::new().get_supported_cpuid().iter().any(avx512f));
/// assert!(kvm_api::choose_processor("x86-64-v5").is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn choose_processor(name: &str) -> Result<(), ProcessorError> {
    let name = || name.to_owned();
    let profile =
        Profile::by_name(&name()).ok_or_else(|| ProcessorError::Unknown { name: name() })?;
    if !is_suitable(profile) {
        return Err(ProcessorError::Unsuitable { name: name() });
    }
    PROCESSOR.set(profile).map_err(|_| ProcessorError::InUse)
}

fn processor() -> &'static Profile {
    PROCESSOR.get_or_init(|| &Profile::DEFAULT)
}

static SUPPORTED: LazyLock<Vec<kvm_cpuid_entry2>> = LazyLock::new(|| offered_by(processor()));

/// Returns what KVM offers on such a processor.
fn offered_by(profile: &Profile) -> Vec<kvm_cpuid_entry2> {
    let mut table = from_profile(&profile.table());
    for feature in WITHHELD {
        set(&mut table, *feature, false);
    }
    table.retain(|entry| !is_supervisor_component(entry));
    if let Some(xss) = find_mut(&mut table, 0xd, 1) {
        (xss.ecx, xss.edx) = (0, 0);
    }
    set(&mut table, Feature::Hypervisor, true);
    // The signature "KVMKVMKVM", without a paravirtual feature behind it.
    table.push(leaf(
        0x4000_0000,
        [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d],
    ));
    table.push(leaf(0x4000_0001, [0; 4]));
    table.sort_by_key(|entry| (entry.function, entry.index));
    table
}

/// Whether it is the leaf of a state component that IA32_XSS enables: those are CET's.
fn is_supervisor_component(entry: &kvm_cpuid_entry2) -> bool {
    let mut components = xstate::EXTENDED.iter().filter(|c| c.is_supervisor);
    entry.function == 0xd && components.any(|c| c.mask.trailing_zeros() == entry.index)
}

fn from_profile(table: &CpuidTable) -> Vec<kvm_cpuid_entry2> {
    let entry = |e: &CpuidEntry| kvm_cpuid_entry2 {
        index: e.index,
        flags: if e.has_index {
            KVM_CPUID_FLAG_SIGNIFCANT_INDEX
        } else {
            0
        },
        ..leaf(e.function, [e.eax, e.ebx, e.ecx, e.edx])
    };
    table.entries().iter().map(entry).collect()
}

fn leaf(function: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 {
        function,
        eax,
        ebx,
        ecx,
        edx,
        ..Default::default()
    }
}

/// Returns the interpreter's form of a guest's table.
pub(crate) fn to_interpreter(table: &[kvm_cpuid_entry2]) -> CpuidTable {
    let entry = |e: &kvm_cpuid_entry2| CpuidEntry {
        function: e.function,
        index: e.index,
        has_index: e.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0,
        eax: e.eax,
        ebx: e.ebx,
        ecx: e.ecx,
        edx: e.edx,
    };
    CpuidTable::new(table.iter().map(entry).collect())
}

/// Returns what a guest may be given: api.rst, "KVM_GET_SUPPORTED_CPUID".
pub(crate) fn supported() -> &'static [kvm_cpuid_entry2] {
    &SUPPORTED
}

/// Returns what software emulates though no guest need be told of it: api.rst,
/// "KVM_GET_EMULATED_CPUID". MOVBE and RDPID.
pub(crate) fn emulated() -> Vec<kvm_cpuid_entry2> {
    let mut seventh = leaf(7, [0, 0, 1 << 22, 0]);
    seventh.flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
    vec![leaf(0, [7, 0, 0, 0]), leaf(1, [0, 0, 1 << 22, 0]), seventh]
}

/// Returns the bits of XCR0 that a guest may be given.
pub(crate) fn supported_xcr0() -> u64 {
    static XCR0: LazyLock<u64> = LazyLock::new(|| xstate::supported(processor().features()));
    *XCR0
}

/// Returns the entry for a leaf (`kvm_find_cpuid_entry_index()`).
pub(crate) fn find(
    table: &[kvm_cpuid_entry2],
    function: u32,
    index: u32,
) -> Option<&kvm_cpuid_entry2> {
    table.iter().find(|entry| is_leaf(entry, function, index))
}

/// Returns the entry for a leaf, to be changed.
pub(crate) fn find_mut(
    table: &mut [kvm_cpuid_entry2],
    function: u32,
    index: u32,
) -> Option<&mut kvm_cpuid_entry2> {
    table
        .iter_mut()
        .find(|entry| is_leaf(entry, function, index))
}

fn is_leaf(entry: &kvm_cpuid_entry2, function: u32, index: u32) -> bool {
    let significant = entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0;
    entry.function == function && (!significant || entry.index == index)
}

fn place(feature: Feature) -> (u32, u32, Output, u32) {
    let row = Feature::ALL.iter().find(|row| row.0 == feature);
    let &(_, leaf, subleaf, output, bit) = row.expect("every feature has its row");
    (leaf, subleaf, output, bit)
}

/// Whether a table has a feature.
pub(crate) fn has(table: &[kvm_cpuid_entry2], feature: Feature) -> bool {
    let (leaf, subleaf, output, bit) = place(feature);
    find(table, leaf, subleaf).is_some_and(|entry| {
        let word = match output {
            Output::Eax => entry.eax,
            Output::Ebx => entry.ebx,
            Output::Ecx => entry.ecx,
            Output::Edx => entry.edx,
        };
        word & (1 << bit) != 0
    })
}

/// Sets or clears a feature in a table that has its leaf.
pub(crate) fn set(table: &mut [kvm_cpuid_entry2], feature: Feature, on: bool) {
    let (leaf, subleaf, output, bit) = place(feature);
    set_bit(table, (leaf, subleaf, output, bit), on);
}

/// Sets or clears a bit of a leaf, if the table has it.
pub(crate) fn set_bit(
    table: &mut [kvm_cpuid_entry2],
    (leaf, subleaf, output, bit): (u32, u32, Output, u32),
    on: bool,
) {
    let Some(entry) = find_mut(table, leaf, subleaf) else {
        return;
    };
    let word = match output {
        Output::Eax => &mut entry.eax,
        Output::Ebx => &mut entry.ebx,
        Output::Ecx => &mut entry.ecx,
        Output::Edx => &mut entry.edx,
    };
    *word = *word & !(1 << bit) | u32::from(on) << bit;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vendor_is_intel_and_leaves_are_in_order() {
        let table = supported();
        let mut vendor = Vec::new();
        for word in [table[0].ebx, table[0].edx, table[0].ecx] {
            vendor.extend(word.to_le_bytes());
        }
        assert_eq!(vendor, b"GenuineIntel");
        assert!(table.is_sorted_by_key(|entry| (entry.function, entry.index)));
    }

    #[test]
    fn what_is_withheld_is_not_there() {
        assert!(WITHHELD.iter().all(|feature| !has(supported(), *feature)));
        assert!(has(supported(), Feature::LongMode) && has(supported(), Feature::Hypervisor));
    }

    #[test]
    fn a_processor_with_cet_has_none_under_kvm() {
        let everything = Profile::EVERYTHING;
        assert!(everything.features().has(Feature::CetSs));
        let table = offered_by(&everything);
        assert!(WITHHELD.iter().all(|feature| !has(&table, *feature)));
        let of_xsave = table.iter().filter(|entry| entry.function == 0xd);
        let components: Vec<u32> = of_xsave.map(|entry| entry.index).collect();
        assert_eq!(components, [0, 1, 2, 5, 6, 7, 9]);
        let xss = table.iter().find(|e| (e.function, e.index) == (0xd, 1));
        assert_eq!(xss.map(|e| (e.ecx, e.edx)), Some((0, 0)));
    }

    #[test]
    fn the_interpreter_takes_the_table_back() {
        let table = to_interpreter(supported());
        assert!(table.features().has(Feature::Xsave));
        assert!(!table.features().has(Feature::Vmx));
    }
}
