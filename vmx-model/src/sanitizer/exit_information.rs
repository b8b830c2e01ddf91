//! Which VM-exit information fields are defined after which VM exit.
//!
//! SDM Vol. 3C, "Recording VM-Exit Information and Updating VM-entry Control Fields".

use crate::event::{EventType, InterruptionInfo};
use crate::field::Field;
use crate::vmcs::Vmcs;

const EXCEPTION_OR_NMI: u64 = 0;
const CR_ACCESS: u64 = 28;
const IO_INSTRUCTION: u64 = 30;
const APIC_ACCESS: u64 = 44;
const EPT_VIOLATION: u64 = 48;
const EPT_MISCONFIGURATION: u64 = 49;
const SPP_RELATED_EVENT: u64 = 66;

/// Basic exit reasons after which the VM-exit instruction length is undefined, unless the exit
/// happened during the delivery of a software interrupt or software exception: events, not
/// instructions.
const NO_INSTRUCTION: &[u64] = &[
    1, 2, 3, 4, 5, 6, 7, 8, 37, 41, 43, 45, 48, 49, 52, 56, 62, 66, 74, 75,
];

/// Basic exit reasons that write the VM-exit instruction information.
const INSTRUCTION_INFORMATION: &[u64] = &[
    19, 21, 22, 23, 25, 27, 30, 46, 47, 50, 53, 57, 58, 61, 63, 64, 67, 68,
];

/// Whether VMREAD of `field` after the last VM exit recorded in `vmcs` reads a defined value.
pub(super) fn is_defined(vmcs: &Vmcs, field: Field) -> bool {
    let reason = vmcs.get(Field::EXIT_REASON);
    // After a failed VM entry the fields still hold what an earlier exit left.
    if reason >> 31 != 0 {
        return true;
    }
    let basic = reason & 0xffff;
    match field {
        Field::GUEST_LINEAR_ADDRESS => is_linear_address_defined(vmcs, basic),
        Field::GUEST_PHYSICAL_ADDRESS => matches!(
            basic,
            EPT_VIOLATION | EPT_MISCONFIGURATION | SPP_RELATED_EVENT
        ),
        Field::VM_EXIT_INTERRUPTION_ERROR_CODE => has_code(interruption(vmcs)),
        Field::IDT_VECTORING_ERROR_CODE => has_code(idt_vectoring(vmcs)),
        Field::VM_EXIT_INSTRUCTION_LENGTH => is_length_defined(vmcs, basic),
        Field::VM_EXIT_INSTRUCTION_INFORMATION => INSTRUCTION_INFORMATION.contains(&basic),
        // Only SMM VM exits write these.
        Field::IO_RCX | Field::IO_RSI | Field::IO_RDI | Field::IO_RIP => false,
        _ => true,
    }
}

fn interruption(vmcs: &Vmcs) -> InterruptionInfo {
    InterruptionInfo(vmcs.get(Field::VM_EXIT_INTERRUPTION_INFORMATION) as u32)
}

fn idt_vectoring(vmcs: &Vmcs) -> InterruptionInfo {
    InterruptionInfo(vmcs.get(Field::IDT_VECTORING_INFORMATION) as u32)
}

fn has_code(info: InterruptionInfo) -> bool {
    info.is_valid() && info.has_error_code()
}

fn is_software(info: InterruptionInfo) -> bool {
    info.is_valid()
        && matches!(
            info.kind(),
            Some(
                EventType::SoftwareInterrupt
                    | EventType::PrivilegedSoftwareException
                    | EventType::SoftwareException
            )
        )
}

fn is_linear_address_defined(vmcs: &Vmcs, basic: u64) -> bool {
    match basic {
        CR_ACCESS | IO_INSTRUCTION | APIC_ACCESS => true,
        EPT_VIOLATION => vmcs.get(Field::EXIT_QUALIFICATION) & 1 << 7 != 0,
        _ => false,
    }
}

fn is_length_defined(vmcs: &Vmcs, basic: u64) -> bool {
    if is_software(idt_vectoring(vmcs)) {
        return true;
    }
    match basic {
        EXCEPTION_OR_NMI => is_software(interruption(vmcs)),
        _ => !NO_INSTRUCTION.contains(&basic),
    }
}
