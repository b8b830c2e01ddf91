//! Checks on the VM-entry control fields and on event injection.
//!
//! SDM Vol. 3C, "VM-Entry Control Fields" of "Checks on VMX Controls".

use super::Finding;
use super::checks;
use super::helpers::{
    allowed, area_end, beyond_structures, has_error_code, holds, injects, is_real_mode, ones, zero,
};
use super::view::View;
use crate::controls::{EntryControls, ProcControls};
use crate::event::EventType;
use crate::field::Field as F;

checks! {
    EntryControls |v|

    /// Reserved bits in the VM-entry controls must be set properly.
    "entry-ctl-reserved" entry_ctl_reserved [ENTRY_CONTROLS]
        when true
        => allowed(v, F::ENTRY_CONTROLS, v.caps().entry());

    /// The interruption type must not be 1 (reserved).
    "inj-type-reserved" inj_type_reserved [VM_ENTRY_INTERRUPTION_INFORMATION]
        when v.event()?.is_valid()
        => holds(v.event()?.kind().is_some(), F::VM_ENTRY_INTERRUPTION_INFORMATION, 0x700);

    /// The interruption type must not be 7 (other event) if the processor does not support the monitor trap flag.
    "inj-type-other-unsupported" inj_type_other_unsupported [VM_ENTRY_INTERRUPTION_INFORMATION]
        when injects(v, EventType::Other)?
        => holds(
            v.caps().proc_may1().contains(ProcControls::MONITOR_TRAP_FLAG),
            F::VM_ENTRY_INTERRUPTION_INFORMATION,
            0x700,
        );

    /// If the type is NMI, the vector must be 2.
    "inj-nmi-vector" inj_nmi_vector [VM_ENTRY_INTERRUPTION_INFORMATION]
        when injects(v, EventType::Nmi)?
        => holds(v.event()?.vector() == 2, F::VM_ENTRY_INTERRUPTION_INFORMATION, 0xff);

    /// If the type is hardware exception, the vector must be at most 31.
    "inj-hw-exception-vector" inj_hw_exception_vector [VM_ENTRY_INTERRUPTION_INFORMATION]
        when injects(v, EventType::HardwareException)?
        => zero(v, F::VM_ENTRY_INTERRUPTION_INFORMATION, 0xe0);

    /// If the type is other event, the vector must be 0 (pending MTF VM exit).
    "inj-other-vector" inj_other_vector [VM_ENTRY_INTERRUPTION_INFORMATION]
        when injects(v, EventType::Other)?
        => zero(v, F::VM_ENTRY_INTERRUPTION_INFORMATION, 0xff);

    /// An exception that has an error code must be injected with one, unless in real-address mode or where the processor allows either.
    "inj-error-code-required" inj_error_code_required
        [VM_ENTRY_INTERRUPTION_INFORMATION, PROC_CONTROLS, SECONDARY_PROC_CONTROLS, GUEST_CR0]
        when injects(v, EventType::HardwareException)? && !is_real_mode(v)?
            && !v.caps().injects_any_error_code() && has_error_code(v, v.event()?)
        => ones(v, F::VM_ENTRY_INTERRUPTION_INFORMATION, 1 << 11);

    /// An exception that has no error code must be injected without one, unless the processor allows either.
    "inj-error-code-forbidden-vector" inj_error_code_forbidden_vector
        [VM_ENTRY_INTERRUPTION_INFORMATION]
        when injects(v, EventType::HardwareException)? && !v.caps().injects_any_error_code()
            && !has_error_code(v, v.event()?)
        => zero(v, F::VM_ENTRY_INTERRUPTION_INFORMATION, 1 << 11);

    /// In real-address mode an exception must be injected without error code.
    "inj-error-code-forbidden-real-mode" inj_error_code_forbidden_real_mode
        [VM_ENTRY_INTERRUPTION_INFORMATION, PROC_CONTROLS, SECONDARY_PROC_CONTROLS, GUEST_CR0]
        when injects(v, EventType::HardwareException)? && is_real_mode(v)?
        => zero(v, F::VM_ENTRY_INTERRUPTION_INFORMATION, 1 << 11);

    /// An event that is not a hardware exception must be injected without error code.
    "inj-error-code-forbidden-type" inj_error_code_forbidden_type
        [VM_ENTRY_INTERRUPTION_INFORMATION]
        when v.event()?.is_valid() && !injects(v, EventType::HardwareException)?
        => zero(v, F::VM_ENTRY_INTERRUPTION_INFORMATION, 1 << 11);

    /// Bits 30:12 of the VM-entry interruption information must be 0.
    "inj-reserved-bits" inj_reserved_bits [VM_ENTRY_INTERRUPTION_INFORMATION]
        when v.event()?.is_valid()
        => zero(v, F::VM_ENTRY_INTERRUPTION_INFORMATION, 0x7fff_f000 & !nested_exception_bit(v)?);

    /// Bits 31:16 of the VM-entry exception error code must be 0.
    "inj-error-code-high" inj_error_code_high
        [VM_ENTRY_INTERRUPTION_INFORMATION, VM_ENTRY_EXCEPTION_ERROR_CODE]
        when v.event()?.is_valid() && v.event()?.has_error_code()
        => zero(v, F::VM_ENTRY_EXCEPTION_ERROR_CODE, 0xffff_0000);

    /// For software interrupts and exceptions the VM-entry instruction length must be 1 to 15, or 0 where the processor allows that.
    "inj-instruction-length" inj_instruction_length
        [VM_ENTRY_INTERRUPTION_INFORMATION, VM_ENTRY_INSTRUCTION_LENGTH]
        when injects_software(v)?
        => instruction_length(v);

    /// Bits 3:0 of the VM-entry MSR-load address must be 0 if the count is not 0.
    "entry-msr-load-align" entry_msr_load_align
        [VM_ENTRY_MSR_LOAD_COUNT, VM_ENTRY_MSR_LOAD_ADDRESS]
        when v.get(F::VM_ENTRY_MSR_LOAD_COUNT)? != 0
        => zero(v, F::VM_ENTRY_MSR_LOAD_ADDRESS, 0xf);

    /// The VM-entry MSR-load address must not set any bit beyond the physical-address width.
    "entry-msr-load-width" entry_msr_load_width
        [VM_ENTRY_MSR_LOAD_COUNT, VM_ENTRY_MSR_LOAD_ADDRESS]
        when v.get(F::VM_ENTRY_MSR_LOAD_COUNT)? != 0
        => zero(v, F::VM_ENTRY_MSR_LOAD_ADDRESS, beyond_structures(v));

    /// The last byte of the VM-entry MSR-load area must not lie beyond the physical-address width.
    "entry-msr-load-last-byte" entry_msr_load_last_byte
        [VM_ENTRY_MSR_LOAD_COUNT, VM_ENTRY_MSR_LOAD_ADDRESS]
        when v.get(F::VM_ENTRY_MSR_LOAD_COUNT)? != 0
            && v.get(F::VM_ENTRY_MSR_LOAD_ADDRESS)? & beyond_structures(v) == 0
        => area_end(v, F::VM_ENTRY_MSR_LOAD_ADDRESS, F::VM_ENTRY_MSR_LOAD_COUNT);

    /// Outside SMM, "entry to SMM" and "deactivate dual-monitor treatment" must be 0.
    "entry-smm-outside-smm" entry_smm_outside_smm [ENTRY_CONTROLS]
        when true
        => holds(
            !v.entry()?.intersects(SMM_CONTROLS),
            F::ENTRY_CONTROLS,
            SMM_CONTROLS.bits().into(),
        );
}

/// The controls of the dual-monitor treatment, which only SMM may use.
const SMM_CONTROLS: EntryControls =
    EntryControls::ENTRY_TO_SMM.union(EntryControls::DEACTIVATE_DUAL_MONITOR_TREATMENT);

/// Returns bit 13 where it means a nested exception.
fn nested_exception_bit<V: View>(v: &V) -> Option<u64> {
    let allowed = v.caps().has_nested_exceptions() && injects(v, EventType::HardwareException)?;
    Some(u64::from(allowed) << 13)
}

/// Whether the event is one that an instruction raises: INT n, INT1, INT3, INTO.
fn injects_software<V: View>(v: &V) -> Option<bool> {
    Some(v.event()?.is_valid() && matches!((v.event()?.0 >> 8) & 7, 4..=6))
}

fn instruction_length<V: View>(v: &V) -> Finding {
    let length = v.get(F::VM_ENTRY_INSTRUCTION_LENGTH)?;
    let is_valid = matches!(length, 1..=15) || length == 0 && v.caps().injects_zero_length();
    holds(is_valid, F::VM_ENTRY_INSTRUCTION_LENGTH, length)
}
