//! Control registers, IA32_EFER and debug registers: from the guest's view to the VMCS
//! (`vmx_set_cr0()`, `vmx_set_cr4()`, `vmx_set_efer()`, `kvm_update_dr7()`), with EPT and
//! "unrestricted guest".

use crate::vcpu::Loaded;
use crate::vcpu::state::GuestDebug;
use kvm_bindings::{
    KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, KVM_GUESTDBG_USE_HW_BP, KVM_GUESTDBG_USE_SW_BP,
};
use vmx_model::arch::{Cr0, Cr4, Efer};
use vmx_model::controls::EntryControls;
use vmx_model::field::Field;

/// CR0 bits that the guest owns: TS and WP.
pub(crate) const CR0_GUEST_OWNED: u64 = Cr0::TS.bits() | Cr0::WP.bits();
/// CR4 bits that the guest may own: PVI TSD DE PGE PCE OSFXSR OSXMMEXCPT FSGSBASE.
const CR4_POSSIBLE_GUEST_OWNED: u64 = 0x1_078e;
/// #DB #UD #AC #MC.
const EXCEPTION_BITMAP: u64 = 1 << 1 | 1 << 6 | 1 << 17 | 1 << 18;

impl GuestDebug {
    /// Whether user space debugs the guest.
    pub(crate) const fn is_enabled(&self) -> bool {
        self.control & KVM_GUESTDBG_ENABLE != 0
    }

    /// Whether user space steps through the guest.
    pub(crate) const fn single_steps(&self) -> bool {
        self.control & KVM_GUESTDBG_SINGLESTEP != 0
    }

    /// Whether user space's breakpoints replace the guest's.
    pub(crate) const fn uses_hardware_breakpoints(&self) -> bool {
        self.control & KVM_GUESTDBG_USE_HW_BP != 0
    }

    /// Whether INT3 goes to user space.
    pub(crate) const fn uses_software_breakpoints(&self) -> bool {
        self.control & KVM_GUESTDBG_USE_SW_BP != 0
    }
}

impl Loaded<'_> {
    /// `vmx_set_cr0()`: the read shadow holds the guest's value; CD and NW are taken out, NE is
    /// put in.
    pub(crate) fn set_cr0(&mut self, cr0: u64) {
        let had_paging = self.state.cr0 & Cr0::PG.bits() != 0;
        let has_paging = cr0 & Cr0::PG.bits() != 0;
        let hardware = cr0 & !(Cr0::NW | Cr0::CD).bits() | Cr0::NE.bits();
        self.vmcs.write(Field::CR0_READ_SHADOW, cr0);
        self.vmcs.write(Field::GUEST_CR0, hardware);
        self.state.cr0 = cr0;
        if self.state.efer & Efer::LME.bits() != 0 && had_paging != has_paging {
            let lma = if has_paging { Efer::LMA.bits() } else { 0 };
            self.set_efer(self.state.efer & !Efer::LMA.bits() | lma);
        }
    }

    /// `vmx_set_cr4()`: the read shadow holds the guest's value; VMXE and the host's MCE are put
    /// in.
    pub(crate) fn set_cr4(&mut self, cr4: u64) {
        self.state.cr4 = cr4;
        self.vmcs.write(Field::CR4_READ_SHADOW, cr4);
        let hardware = cr4 | (Cr4::VMXE | Cr4::MCE).bits();
        self.vmcs.write(Field::GUEST_CR4, hardware);
    }

    /// `vmx_set_efer()`: with the controls that switch IA32_EFER, and "IA-32e mode guest" as LMA.
    pub(crate) fn set_efer(&mut self, efer: u64) {
        self.state.efer = efer;
        let ia32e = u64::from(EntryControls::IA32E_MODE_GUEST.bits());
        let held = self.state.controls.entry;
        let entry = if efer & Efer::LMA.bits() != 0 {
            held | ia32e
        } else {
            held & !ia32e
        };
        self.write_entry_controls(entry);
        self.vmcs.write(Field::GUEST_IA32_EFER, efer);
    }

    /// Writes the VM-entry controls if they change.
    pub(crate) fn write_entry_controls(&mut self, value: u64) {
        if self.state.controls.entry != value {
            self.vmcs.write(Field::ENTRY_CONTROLS, value);
            self.state.controls.entry = value;
        }
    }

    /// Writes the VM-exit controls if they change.
    pub(crate) fn write_exit_controls(&mut self, value: u64) {
        if self.state.controls.exit != value {
            self.vmcs.write(Field::EXIT_CONTROLS, value);
            self.state.controls.exit = value;
        }
    }

    /// Writes the primary processor-based controls if they change.
    pub(crate) fn write_proc_controls(&mut self, value: u64) {
        if self.state.controls.proc != value {
            self.vmcs.write(Field::PROC_CONTROLS, value);
            self.state.controls.proc = value;
        }
    }

    /// Writes the secondary processor-based controls if they change.
    pub(crate) fn write_secondary_controls(&mut self, value: u64) {
        if self.state.controls.secondary != value {
            self.vmcs.write(Field::SECONDARY_PROC_CONTROLS, value);
            self.state.controls.secondary = value;
        }
    }

    /// `set_cr4_guest_host_mask()`: the guest owns what is not reserved for it.
    pub(crate) fn update_cr4_mask(&mut self) {
        let owned = CR4_POSSIBLE_GUEST_OWNED & !self.cr4_guest_reserved();
        self.vmcs.write(Field::CR4_GUEST_HOST_MASK, !owned);
    }

    fn cr4_guest_reserved(&self) -> u64 {
        if self.state.has_cpuid {
            super::regs::cr4_reserved(&self.state.cpuid)
        } else {
            0
        }
    }

    /// Puts the breakpoints in effect: user space's, if it has set some, else the guest's.
    pub(crate) fn update_debug_registers(&mut self) {
        let dr7 = if self.state.debug.uses_hardware_breakpoints() {
            self.state.debug.dr7
        } else {
            self.state.debug.effective_db = self.state.db;
            self.state.dr7
        };
        self.vmcs.write(Field::GUEST_DR7, dr7);
    }

    /// `vmx_update_exception_bitmap()`.
    pub(crate) fn update_exception_bitmap(&mut self) {
        let debug = &self.state.debug;
        let int3 = debug.is_enabled() && debug.uses_software_breakpoints();
        self.vmcs.write(Field::PAGE_FAULT_ERROR_CODE_MASK, 0);
        self.vmcs.write(Field::PAGE_FAULT_ERROR_CODE_MATCH, 0);
        self.vmcs.write(
            Field::EXCEPTION_BITMAP,
            EXCEPTION_BITMAP | u64::from(int3) << 3,
        );
    }
}
