//! Checks on the VM-exit control fields.
//!
//! SDM Vol. 3C, "VM-Exit Control Fields" of "Checks on VMX Controls".

use super::checks;
use super::helpers::{allowed, area_end, beyond_structures, zero};
use crate::controls::{ExitControls, PinControls};
use crate::field::Field as F;

checks! {
    ExitControls |v|

    /// Reserved bits in the primary VM-exit controls must be set properly.
    "exit-ctl-reserved" exit_ctl_reserved [EXIT_CONTROLS]
        when true
        => allowed(v, F::EXIT_CONTROLS, v.caps().exit());

    /// If the secondary VM-exit controls are activated, their reserved bits must be cleared.
    "exit-ctl2-reserved" exit_ctl2_reserved [EXIT_CONTROLS, SECONDARY_EXIT_CONTROLS]
        when v.exit()?.contains(ExitControls::ACTIVATE_SECONDARY_CONTROLS)
        => zero(v, F::SECONDARY_EXIT_CONTROLS, !v.caps().secondary_exit_may1().bits());

    /// If "activate VMX-preemption timer" is 0, "save VMX-preemption timer value" must be 0.
    "exit-save-preemption-requires-activate" exit_save_preemption_requires_activate
        [PIN_CONTROLS, EXIT_CONTROLS]
        when !v.pin()?.contains(PinControls::ACTIVATE_VMX_PREEMPTION_TIMER)
        => zero(v, F::EXIT_CONTROLS, ExitControls::SAVE_VMX_PREEMPTION_TIMER_VALUE.bits().into());

    /// Bits 3:0 of the VM-exit MSR-store address must be 0 if the count is not 0.
    "exit-msr-store-align" exit_msr_store_align
        [VM_EXIT_MSR_STORE_COUNT, VM_EXIT_MSR_STORE_ADDRESS]
        when v.get(F::VM_EXIT_MSR_STORE_COUNT)? != 0
        => zero(v, F::VM_EXIT_MSR_STORE_ADDRESS, 0xf);

    /// The VM-exit MSR-store address must not set any bit beyond the physical-address width.
    "exit-msr-store-width" exit_msr_store_width
        [VM_EXIT_MSR_STORE_COUNT, VM_EXIT_MSR_STORE_ADDRESS]
        when v.get(F::VM_EXIT_MSR_STORE_COUNT)? != 0
        => zero(v, F::VM_EXIT_MSR_STORE_ADDRESS, beyond_structures(v));

    /// The last byte of the VM-exit MSR-store area must not lie beyond the physical-address width.
    "exit-msr-store-last-byte" exit_msr_store_last_byte
        [VM_EXIT_MSR_STORE_COUNT, VM_EXIT_MSR_STORE_ADDRESS]
        when v.get(F::VM_EXIT_MSR_STORE_COUNT)? != 0
            && v.get(F::VM_EXIT_MSR_STORE_ADDRESS)? & beyond_structures(v) == 0
        => area_end(v, F::VM_EXIT_MSR_STORE_ADDRESS, F::VM_EXIT_MSR_STORE_COUNT);

    /// Bits 3:0 of the VM-exit MSR-load address must be 0 if the count is not 0.
    "exit-msr-load-align" exit_msr_load_align [VM_EXIT_MSR_LOAD_COUNT, VM_EXIT_MSR_LOAD_ADDRESS]
        when v.get(F::VM_EXIT_MSR_LOAD_COUNT)? != 0
        => zero(v, F::VM_EXIT_MSR_LOAD_ADDRESS, 0xf);

    /// The VM-exit MSR-load address must not set any bit beyond the physical-address width.
    "exit-msr-load-width" exit_msr_load_width [VM_EXIT_MSR_LOAD_COUNT, VM_EXIT_MSR_LOAD_ADDRESS]
        when v.get(F::VM_EXIT_MSR_LOAD_COUNT)? != 0
        => zero(v, F::VM_EXIT_MSR_LOAD_ADDRESS, beyond_structures(v));

    /// The last byte of the VM-exit MSR-load area must not lie beyond the physical-address width.
    "exit-msr-load-last-byte" exit_msr_load_last_byte
        [VM_EXIT_MSR_LOAD_COUNT, VM_EXIT_MSR_LOAD_ADDRESS]
        when v.get(F::VM_EXIT_MSR_LOAD_COUNT)? != 0
            && v.get(F::VM_EXIT_MSR_LOAD_ADDRESS)? & beyond_structures(v) == 0
        => area_end(v, F::VM_EXIT_MSR_LOAD_ADDRESS, F::VM_EXIT_MSR_LOAD_COUNT);
}
