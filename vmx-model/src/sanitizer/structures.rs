//! The structures in memory that a VMCS names, as ranges of physical addresses.
//!
//! SDM Vol. 3C, "Software Access to Related Structures" and the sections on the fields.

use crate::addr::Hpa;
use crate::controls::{PinControls, ProcControls, SecondaryControls};
use crate::field::Field;
use crate::vmcs::Vmcs;

/// Who writes a structure while the VMCS is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WrittenBy {
    /// Nobody.
    Nobody,
    /// The processor.
    Processor,
    /// The processor, and other processors by locked accesses.
    ProcessorAndLocked,
}

/// A structure in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Structure {
    pub(super) name: &'static str,
    pub(super) start: Hpa,
    pub(super) length_bytes: u64,
    pub(super) written_by: WrittenBy,
}

impl Structure {
    /// Whether the structure and the bytes from `start` on have a byte in common.
    pub(super) fn overlaps(&self, start: Hpa, length_bytes: u64) -> bool {
        let end = u128::from(self.start.0) + u128::from(self.length_bytes);
        let other_end = u128::from(start.0) + u128::from(length_bytes);
        self.length_bytes != 0
            && length_bytes != 0
            && u128::from(start.0) < end
            && u128::from(self.start.0) < other_end
    }
}

/// When a structure is in use.
#[derive(Clone, Copy)]
enum InUse {
    Pin(PinControls),
    Proc(ProcControls),
    Secondary(SecondaryControls),
    EptpSwitching,
}

impl InUse {
    fn holds(self, vmcs: &Vmcs) -> bool {
        match self {
            Self::Pin(control) => vmcs.pin().contains(control),
            Self::Proc(control) => vmcs.proc().contains(control),
            Self::Secondary(control) => vmcs.secondary().contains(control),
            Self::EptpSwitching => !vmcs.vm_functions().is_empty(),
        }
    }
}

/// Name, address field, length, when it is in use, who writes it.
const STRUCTURES: &[(&str, Field, u64, InUse, WrittenBy)] = &[
    (
        "I/O bitmap A",
        Field::IO_BITMAP_A_ADDRESS,
        4096,
        InUse::Proc(ProcControls::USE_IO_BITMAPS),
        WrittenBy::Nobody,
    ),
    (
        "I/O bitmap B",
        Field::IO_BITMAP_B_ADDRESS,
        4096,
        InUse::Proc(ProcControls::USE_IO_BITMAPS),
        WrittenBy::Nobody,
    ),
    (
        "MSR bitmaps",
        Field::MSR_BITMAP_ADDRESS,
        4096,
        InUse::Proc(ProcControls::USE_MSR_BITMAPS),
        WrittenBy::Nobody,
    ),
    (
        "VMREAD bitmap",
        Field::VMREAD_BITMAP_ADDRESS,
        4096,
        InUse::Secondary(SecondaryControls::VMCS_SHADOWING),
        WrittenBy::Nobody,
    ),
    (
        "VMWRITE bitmap",
        Field::VMWRITE_BITMAP_ADDRESS,
        4096,
        InUse::Secondary(SecondaryControls::VMCS_SHADOWING),
        WrittenBy::Nobody,
    ),
    (
        "virtual-APIC page",
        Field::VIRTUAL_APIC_ADDRESS,
        4096,
        InUse::Proc(ProcControls::USE_TPR_SHADOW),
        WrittenBy::Processor,
    ),
    (
        "posted-interrupt descriptor",
        Field::POSTED_INTERRUPT_DESCRIPTOR_ADDRESS,
        64,
        InUse::Pin(PinControls::PROCESS_POSTED_INTERRUPTS),
        WrittenBy::ProcessorAndLocked,
    ),
    (
        "page-modification log",
        Field::PML_ADDRESS,
        4096,
        InUse::Secondary(SecondaryControls::ENABLE_PML),
        WrittenBy::Processor,
    ),
    (
        "EPTP list",
        Field::EPTP_LIST_ADDRESS,
        4096,
        InUse::EptpSwitching,
        WrittenBy::Nobody,
    ),
    (
        "virtualization-exception information area",
        Field::VE_INFORMATION_ADDRESS,
        4096,
        InUse::Secondary(SecondaryControls::EPT_VIOLATION_VE),
        WrittenBy::Processor,
    ),
];

/// Name, address field, count field, who writes the list.
pub(super) const MSR_LISTS: &[(&str, Field, Field, WrittenBy)] = &[
    (
        "VM-exit MSR-store area",
        Field::VM_EXIT_MSR_STORE_ADDRESS,
        Field::VM_EXIT_MSR_STORE_COUNT,
        WrittenBy::Processor,
    ),
    (
        "VM-exit MSR-load area",
        Field::VM_EXIT_MSR_LOAD_ADDRESS,
        Field::VM_EXIT_MSR_LOAD_COUNT,
        WrittenBy::Nobody,
    ),
    (
        "VM-entry MSR-load area",
        Field::VM_ENTRY_MSR_LOAD_ADDRESS,
        Field::VM_ENTRY_MSR_LOAD_COUNT,
        WrittenBy::Nobody,
    ),
];

/// Returns the structures that `vmcs`, whose region is at `pointer`, makes the processor use.
pub(super) fn of(vmcs: &Vmcs, pointer: Hpa) -> Vec<Structure> {
    let region = Structure {
        name: "VMCS region",
        start: pointer,
        length_bytes: 4096,
        written_by: WrittenBy::Processor,
    };
    let named = STRUCTURES.iter().filter(|row| row.3.holds(vmcs)).map(
        |(name, address, length_bytes, _, written_by)| Structure {
            name,
            start: Hpa(vmcs.get(*address)),
            length_bytes: *length_bytes,
            written_by: *written_by,
        },
    );
    let lists = MSR_LISTS
        .iter()
        .map(|(name, address, count, written_by)| Structure {
            name,
            start: Hpa(vmcs.get(*address)),
            length_bytes: 16 * vmcs.get(*count),
            written_by: *written_by,
        });
    std::iter::once(region).chain(named).chain(lists).collect()
}

/// Returns the first pair of structures that share memory in a harmful way: the processor writes
/// one of them. That the VM-exit MSR-store area is also the VM-entry MSR-load area is the usual
/// way to keep a guest's MSRs.
pub(super) fn harmful_overlap(structures: &[Structure]) -> Option<(Structure, Structure)> {
    structures.iter().enumerate().find_map(|(n, one)| {
        let others = structures[n + 1..].iter();
        let mut harmful = others.filter(|other| is_harmful(one, other));
        harmful.next().map(|other| (*one, *other))
    })
}

fn is_harmful(one: &Structure, other: &Structure) -> bool {
    let is_written = one.written_by != WrittenBy::Nobody || other.written_by != WrittenBy::Nobody;
    let are_msr_lists = |list: &Structure| MSR_LISTS.iter().any(|row| row.0 == list.name);
    let is_shared_list = one.start == other.start && are_msr_lists(one) && are_msr_lists(other);
    is_written && !is_shared_list && one.overlaps(other.start, other.length_bytes)
}
