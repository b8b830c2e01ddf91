//! VM exits: what is recorded, what is saved, what the host gets.
//!
//! SDM Vol. 3C, chapter "VM Exits". A VM exit is done in this order: [`record_exit`],
//! [`save_guest_state`], the VM-exit MSR-store area, [`load_host_state`], the VM-exit MSR-load area (both
//! areas in [`crate::msr_area`]). Who executes instructions makes the [`VmExit`].

mod host;
mod segments;

use crate::addr::Gpa;
use crate::arch::{ArchState, Cr0, Cr4, Efer, Interruptibility, Rflags};
use crate::capability::VmxProfile;
use crate::controls::{EntryControls, ExitControls, SecondaryControls};
use crate::event::{Event, EventType, Exception, InterruptionInfo, vector};
use crate::exit_reason::{ExitKind, ExitReason};
use crate::field::Field;
use crate::vmcs::Vmcs;
pub(crate) use host::CR0_UNCHANGED;
pub use host::{VmxAbort, load_host_state, pdpte_reserved_bits, read_pdptes};
pub(crate) use segments::GUEST_SEGMENTS;
use segments::set_guest_segments;
pub use segments::{guest_segment, set_guest_segment};

/// A VM exit: the contents of the VM-exit information fields.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct VmExit {
    /// The basic exit reason.
    pub reason: ExitReason,
    /// The exit qualification; 0 where the reason has none.
    pub qualification: u64,
    /// The VM-exit instruction length in bytes; 0 where it is undefined.
    pub instruction_length: u8,
    /// The VM-exit instruction information; 0 where it is undefined.
    pub instruction_info: u32,
    /// The guest-linear address, where the reason defines it.
    pub guest_linear_address: Option<u64>,
    /// The guest-physical address, where the reason defines it.
    pub guest_physical_address: Option<Gpa>,
    /// The VM-exit interruption information; not valid for most reasons.
    pub interruption: InterruptionInfo,
    /// The VM-exit interruption error code.
    pub interruption_error_code: u32,
    /// The event whose delivery the exit interrupted: the IDT-vectoring information.
    pub idt_vectoring: Option<Event>,
    /// The value of the VMX-preemption timer.
    pub preemption_timer: u32,
}

impl VmExit {
    /// Returns a VM exit for `reason` with nothing else to tell.
    #[must_use]
    pub const fn new(reason: ExitReason) -> Self {
        Self {
            reason,
            qualification: 0,
            instruction_length: 0,
            instruction_info: 0,
            guest_linear_address: None,
            guest_physical_address: None,
            interruption: InterruptionInfo(0),
            interruption_error_code: 0,
            idt_vectoring: None,
            preemption_timer: 0,
        }
    }

    /// Returns the exit with this qualification.
    #[must_use]
    pub const fn qualified(mut self, qualification: u64) -> Self {
        self.qualification = qualification;
        self
    }

    /// Returns the exit with this VM-exit instruction length, in bytes.
    #[must_use]
    pub const fn of_length(mut self, bytes: u8) -> Self {
        self.instruction_length = bytes;
        self
    }

    /// Returns the exit with this VM-exit instruction information.
    #[must_use]
    pub const fn informed(mut self, instruction_info: u32) -> Self {
        self.instruction_info = instruction_info;
        self
    }

    /// Returns the exit with this guest-linear address.
    #[must_use]
    pub const fn at_linear(mut self, address: u64) -> Self {
        self.guest_linear_address = Some(address);
        self
    }

    /// Returns the exit with this guest-physical address.
    #[must_use]
    pub const fn at_physical(mut self, address: Gpa) -> Self {
        self.guest_physical_address = Some(address);
        self
    }

    /// Returns the exit as met while `event` was being delivered.
    #[must_use]
    pub const fn during(mut self, event: Option<Event>) -> Self {
        self.idt_vectoring = event;
        self
    }

    /// Whether the exit counts as one during event delivery if it happens there: not a double fault
    /// that exits, and not a triple fault ("Information for VM Exits That Occur During Event
    /// Delivery").
    #[must_use]
    pub fn interrupts_delivery(&self) -> bool {
        let is_double_fault = self.reason == ExitReason::EXCEPTION_OR_NMI
            && self.interruption.is_valid()
            && self.interruption.vector() == vector::DF
            && self.interruption.kind() == Some(EventType::HardwareException);
        !is_double_fault && self.reason != ExitReason::TRIPLE_FAULT
    }

    /// Returns the exit that `event` causes instead of being delivered: an exception whose bit in
    /// the exception bitmap is 1, or an NMI.
    ///
    /// The qualification is the payload of a page fault or debug exception. The length is that of
    /// the instruction for INT1, INT3 and INTO.
    #[must_use]
    pub const fn by_event(event: &Event) -> Self {
        let mut exit = Self::new(ExitReason::EXCEPTION_OR_NMI);
        exit.interruption = InterruptionInfo::for_event(event);
        if let Some(code) = event.error_code {
            exit.interruption_error_code = code;
        }
        if matches!(event.vector, vector::PF | vector::DB)
            && !matches!(event.kind, EventType::Nmi | EventType::ExternalInterrupt)
        {
            exit.qualification = event.payload;
        }
        exit.instruction_length = event.instruction_length;
        exit
    }

    /// Returns the exit that an exception raised by an instruction or by the delivery of
    /// `delivering` causes.
    #[must_use]
    pub fn by_exception(exception: Exception, delivering: Option<Event>) -> Self {
        Self::by_event(&exception.into()).during(delivering)
    }

    /// Returns the exit for an external interrupt; `acknowledged` is its vector if "acknowledge
    /// interrupt on exit" is 1.
    #[must_use]
    pub const fn by_external_interrupt(acknowledged: Option<u8>) -> Self {
        let mut exit = Self::new(ExitReason::EXTERNAL_INTERRUPT);
        if let Some(vector) = acknowledged {
            exit.interruption = InterruptionInfo(InterruptionInfo::VALID | vector as u32);
        }
        exit
    }

    /// Returns RFLAGS as they are saved: RF is what the reason prescribes.
    ///
    /// SDM Vol. 3C, "Saving RIP, RSP, RFLAGS, and SSP".
    #[must_use]
    pub fn saved_rflags(&self, rflags: Rflags) -> Rflags {
        match self.reason {
            ExitReason::EXCEPTION_OR_NMI if self.is_by_fault() => rflags | Rflags::RF,
            ExitReason::TASK_SWITCH => rflags,
            reason => match reason.kind() {
                Some(ExitKind::Instruction) => rflags.difference(Rflags::RF),
                Some(ExitKind::Fault) if self.idt_vectoring.is_none() => rflags | Rflags::RF,
                _ => rflags,
            },
        }
    }

    /// Whether the exit is by a hardware exception of which delivery pushes RF as 1.
    fn is_by_fault(&self) -> bool {
        self.interruption.kind() == Some(EventType::HardwareException)
            && !matches!(
                self.interruption.vector(),
                vector::DB | vector::DF | vector::MC
            )
    }

    /// Whether the pending debug exceptions are saved as they are; otherwise as none.
    ///
    /// SDM Vol. 3C, "Saving Non-Register State".
    fn keeps_pending_debug(&self, state: &ArchState) -> bool {
        let is_debug_exception = self.reason == ExitReason::EXCEPTION_OR_NMI
            && self.interruption.kind() == Some(EventType::HardwareException)
            && self.interruption.vector() == vector::DB;
        let held = state.interruptibility.contains(Interruptibility::MOV_SS) && !is_debug_exception;
        held || matches!(
            self.reason,
            ExitReason::INIT_SIGNAL
                | ExitReason::TPR_BELOW_THRESHOLD
                | ExitReason::VIRTUALIZED_EOI
                | ExitReason::APIC_WRITE
                | ExitReason::MONITOR_TRAP_FLAG
                | ExitReason::BUS_LOCK
        )
    }
}

/// Writes the VM-exit information fields, and clears the valid bit of the VM-entry
/// interruption-information field.
///
/// Choice: a guest-linear or guest-physical address that the reason leaves undefined keeps its
/// former value.
pub fn record_exit(vmcs: &mut Vmcs, exit: &VmExit) {
    vmcs.set(Field::EXIT_REASON, exit.reason.0.into());
    vmcs.set(Field::EXIT_QUALIFICATION, exit.qualification);
    vmcs.set(
        Field::VM_EXIT_INTERRUPTION_INFORMATION,
        exit.interruption.0.into(),
    );
    vmcs.set(
        Field::VM_EXIT_INTERRUPTION_ERROR_CODE,
        exit.interruption_error_code.into(),
    );
    vmcs.set(
        Field::VM_EXIT_INSTRUCTION_INFORMATION,
        exit.instruction_info.into(),
    );
    record_idt_vectoring(vmcs, exit);
    if let Some(address) = exit.guest_linear_address {
        vmcs.set(Field::GUEST_LINEAR_ADDRESS, address);
    }
    if let Some(address) = exit.guest_physical_address {
        vmcs.set(Field::GUEST_PHYSICAL_ADDRESS, address.0);
    }
    let info = vmcs.get(Field::VM_ENTRY_INTERRUPTION_INFORMATION);
    let valid = u64::from(InterruptionInfo::VALID);
    vmcs.set(Field::VM_ENTRY_INTERRUPTION_INFORMATION, info & !valid);
}

/// Writes the IDT-vectoring fields and the instruction length, which is that of the event's
/// instruction if the exit came while a software event was being delivered.
fn record_idt_vectoring(vmcs: &mut Vmcs, exit: &VmExit) {
    let Some(event) = &exit.idt_vectoring else {
        vmcs.set(Field::IDT_VECTORING_INFORMATION, 0);
        vmcs.set(
            Field::VM_EXIT_INSTRUCTION_LENGTH,
            exit.instruction_length.into(),
        );
        return;
    };
    let info = InterruptionInfo::for_event(event);
    vmcs.set(Field::IDT_VECTORING_INFORMATION, info.0.into());
    vmcs.set(
        Field::IDT_VECTORING_ERROR_CODE,
        event.error_code.unwrap_or(0).into(),
    );
    let is_software = matches!(
        event.kind,
        EventType::SoftwareInterrupt
            | EventType::PrivilegedSoftwareException
            | EventType::SoftwareException
    );
    let length = if is_software {
        event.instruction_length
    } else {
        exit.instruction_length
    };
    vmcs.set(Field::VM_EXIT_INSTRUCTION_LENGTH, length.into());
}

/// The fields of the guest PDPTEs.
pub(crate) const GUEST_PDPTES: [Field; 4] = [
    Field::GUEST_PDPTE0,
    Field::GUEST_PDPTE1,
    Field::GUEST_PDPTE2,
    Field::GUEST_PDPTE3,
];

/// Whether paging with these registers is PAE paging, which uses PDPTE registers.
#[must_use]
pub const fn uses_pae_paging(cr0: Cr0, cr4: Cr4, efer: Efer) -> bool {
    cr0.contains(Cr0::PG) && cr4.contains(Cr4::PAE) && !efer.contains(Efer::LMA)
}

/// Saves the guest's state into the guest-state area, as `exit` prescribes.
///
/// SDM Vol. 3C, "Saving Guest State". RIP and RSP of `state` are those to save; RF of RFLAGS is
/// chosen here. With virtual NMIs the NMI bit of the interruptibility is virtual-NMI blocking.
pub fn save_guest_state(vmcs: &mut Vmcs, state: &ArchState, exit: &VmExit, profile: &VmxProfile) {
    vmcs.set(Field::GUEST_RIP, state.rip);
    vmcs.set(Field::GUEST_RSP, state.rsp);
    vmcs.set(Field::GUEST_RFLAGS, exit.saved_rflags(state.rflags).bits());
    vmcs.set(Field::GUEST_CR0, state.cr0.bits());
    vmcs.set(Field::GUEST_CR3, state.cr3);
    vmcs.set(Field::GUEST_CR4, state.cr4.bits());
    set_guest_segments(vmcs, state);
    vmcs.set(Field::GUEST_GDTR_BASE, state.gdtr.base);
    vmcs.set(Field::GUEST_GDTR_LIMIT, state.gdtr.limit.into());
    vmcs.set(Field::GUEST_IDTR_BASE, state.idtr.base);
    vmcs.set(Field::GUEST_IDTR_LIMIT, state.idtr.limit.into());
    save_msrs(vmcs, state, profile);
    save_non_register_state(vmcs, state, exit);
}

/// "Saving Control Registers, Debug Registers, and MSRs": those that are saved by control.
fn save_msrs(vmcs: &mut Vmcs, state: &ArchState, profile: &VmxProfile) {
    vmcs.set(Field::GUEST_IA32_SYSENTER_CS, state.sysenter_cs);
    vmcs.set(Field::GUEST_IA32_SYSENTER_ESP, state.sysenter_esp);
    vmcs.set(Field::GUEST_IA32_SYSENTER_EIP, state.sysenter_eip);
    let controls = vmcs.exit();
    if controls.contains(ExitControls::SAVE_DEBUG_CONTROLS) {
        vmcs.set(Field::GUEST_DR7, state.dr7);
        vmcs.set(Field::GUEST_IA32_DEBUGCTL, state.debugctl);
    }
    if controls.contains(ExitControls::SAVE_IA32_PAT) {
        vmcs.set(Field::GUEST_IA32_PAT, state.pat);
    }
    if controls.contains(ExitControls::SAVE_IA32_EFER) {
        vmcs.set(Field::GUEST_IA32_EFER, state.efer.bits());
    }
    if controls.contains(ExitControls::SAVE_IA32_PERF_GLOBAL_CTRL) {
        vmcs.set(Field::GUEST_IA32_PERF_GLOBAL_CTRL, state.perf_global_ctrl);
    }
    let may = profile.caps.entry_may1();
    if may.contains(EntryControls::LOAD_CET_STATE) {
        vmcs.set(Field::GUEST_IA32_S_CET, state.s_cet);
        vmcs.set(Field::GUEST_SSP, state.ssp);
        vmcs.set(
            Field::GUEST_IA32_INTERRUPT_SSP_TABLE_ADDR,
            state.interrupt_ssp_table,
        );
    }
    if may.contains(EntryControls::LOAD_PKRS) {
        vmcs.set(Field::GUEST_IA32_PKRS, state.pkrs);
    }
    if profile.caps.stores_efer_lma_on_exit() {
        let mut entry = vmcs.entry();
        entry.set(
            EntryControls::IA32E_MODE_GUEST,
            state.efer.contains(Efer::LMA),
        );
        vmcs.set(Field::ENTRY_CONTROLS, entry.bits().into());
    }
}

/// "Saving Non-Register State".
fn save_non_register_state(vmcs: &mut Vmcs, state: &ArchState, exit: &VmExit) {
    vmcs.set(Field::GUEST_ACTIVITY_STATE, state.activity as u64);
    vmcs.set(
        Field::GUEST_INTERRUPTIBILITY_STATE,
        state.interruptibility.bits().into(),
    );
    let pending = if exit.keeps_pending_debug(state) {
        state.pending_debug
    } else {
        0
    };
    vmcs.set(Field::GUEST_PENDING_DEBUG_EXCEPTIONS, pending);
    if vmcs
        .exit()
        .contains(ExitControls::SAVE_VMX_PREEMPTION_TIMER_VALUE)
    {
        vmcs.set(
            Field::VMX_PREEMPTION_TIMER_VALUE,
            exit.preemption_timer.into(),
        );
    }
    if vmcs.secondary().contains(SecondaryControls::ENABLE_EPT)
        && uses_pae_paging(state.cr0, state.cr4, state.efer)
    {
        for (field, pdpte) in GUEST_PDPTES.into_iter().zip(state.pdptes) {
            vmcs.set(field, pdpte);
        }
    }
}

#[cfg(test)]
mod tests;
