//! VM entry: from a VMCS to the guest's state, and to what the executor has left to do.
//!
//! SDM Vol. 3C, chapter "VM Entries". [`check_entry`] makes the checks, in order;
//! [`load_guest_state`] turns the state of the processor into the guest's. Then the VM-entry MSR-load
//! area is loaded with [`msr_area::load`](crate::msr_area::load), and the executor delivers the event.

use crate::arch::{
    AccessRights, Activity, ArchState, Cr0, Cr4, DescriptorTable, Efer, Interruptibility, Rflags,
    SegmentRegister,
};
use crate::checks::{Check, Consequence, EntryEnvironment};
use crate::controls::{EntryControls, PinControls, SecondaryControls};
use crate::error;
use crate::event::{Event, EventType, InterruptionInfo};
use crate::exit::{
    CR0_UNCHANGED, GUEST_PDPTES, GUEST_SEGMENTS, guest_segment, read_pdptes, uses_pae_paging,
};
use crate::exit_reason::{ENTRY_FAILURE, ExitReason};
use crate::field::Field;
use crate::memory::PhysicalMemory;
use crate::msr_area::LoadFailure;
use crate::outcome::VmxOutcome;
use crate::vmcs::Vmcs;

/// What a VM entry does when the guest's state has been loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryRest {
    /// The activity state that was loaded.
    pub activity: Activity,
    /// The event to deliver, before the first instruction.
    pub event: Option<Event>,
    /// Whether an MTF VM exit is pending, before the first instruction.
    pub has_pending_mtf: bool,
    /// What the VMX-preemption timer starts at, if it is active.
    pub preemption_timer: Option<u32>,
    /// Whether the entry invalidates the linear and combined mappings of VPID 0000H.
    pub flushes_vpid_0: bool,
}

/// Why a VM entry does not enter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryFailure {
    /// VMfailValid(7): this check on the controls does not hold.
    Control(&'static Check),
    /// VMfailValid(8): this check on the host-state area does not hold.
    Host(&'static Check),
    /// VM exit with reason 33: this check on the guest-state area does not hold.
    Guest(&'static Check),
    /// VM exit with reason 34: an entry of the MSR-load area cannot be loaded.
    MsrLoad(LoadFailure),
}

impl EntryFailure {
    const fn of(check: &'static Check) -> Self {
        match check.group.consequence() {
            Consequence::InvalidControls => Self::Control(check),
            Consequence::InvalidHostState => Self::Host(check),
            Consequence::InvalidGuestState => Self::Guest(check),
        }
    }

    /// Returns how VMLAUNCH or VMRESUME ends if it ends as an instruction; `None` if the failure
    /// loads the host state as a VM exit does.
    #[must_use]
    pub const fn outcome(self) -> Option<VmxOutcome> {
        match self {
            Self::Control(_) => Some(VmxOutcome::FailValid(error::ENTRY_INVALID_CONTROL)),
            Self::Host(_) => Some(VmxOutcome::FailValid(error::ENTRY_INVALID_HOST_STATE)),
            Self::Guest(_) | Self::MsrLoad(_) => None,
        }
    }

    /// Writes what a failed VM entry writes to the VMCS: the exit reason and qualification, or the
    /// VM-instruction error.
    ///
    /// SDM Vol. 3C, "VM-Entry Failures During or After Loading Guest State": no other field is
    /// written.
    pub fn record(self, vmcs: &mut Vmcs) {
        let (reason, qualification) = match self {
            Self::Control(_) => {
                vmcs.set(
                    Field::VM_INSTRUCTION_ERROR,
                    error::ENTRY_INVALID_CONTROL.into(),
                );
                return;
            }
            Self::Host(_) => {
                vmcs.set(
                    Field::VM_INSTRUCTION_ERROR,
                    error::ENTRY_INVALID_HOST_STATE.into(),
                );
                return;
            }
            Self::Guest(check) => (ExitReason::ENTRY_FAIL_GUEST_STATE, check.qualification),
            Self::MsrLoad(entry) => (ExitReason::ENTRY_FAIL_MSR_LOADING, entry.number),
        };
        vmcs.set(
            Field::EXIT_REASON,
            (ENTRY_FAILURE | u32::from(reason.0)).into(),
        );
        vmcs.set(Field::EXIT_QUALIFICATION, qualification);
    }
}

/// Checks a VM entry.
///
/// # Errors
/// The first failure in the SDM's order; [`EntryFailure::MsrLoad`] is not among them, as the MSRs
/// are loaded later.
pub fn check_entry(vmcs: &mut Vmcs, environment: EntryEnvironment<'_>) -> Result<(), EntryFailure> {
    match vmcs.first_failure(environment) {
        Some(check) => Err(EntryFailure::of(check)),
        None => Ok(()),
    }
}

/// Turns `state`, which is that in VMX root operation, into the guest's: RIP is that at which the
/// guest runs or, if there is an event, which its delivery pushes. The VMCS has passed
/// [`check_entry`].
pub fn load_guest_state(
    state: &mut ArchState,
    vmcs: &Vmcs,
    memory: &dyn PhysicalMemory,
) -> EntryRest {
    load_registers(state, vmcs);
    load_msrs(state, vmcs);
    for (register, _) in GUEST_SEGMENTS {
        *state.segment_mut(register) = guest_segment(vmcs, register);
    }
    load_pdptes(state, vmcs, memory);
    let injected = injected_event(vmcs);
    load_non_register_state(state, vmcs, injected.as_ref());
    let has_pending_mtf = injected.is_some_and(|event| event.kind == EventType::Other);
    let has_timer = vmcs
        .pin()
        .contains(PinControls::ACTIVATE_VMX_PREEMPTION_TIMER);
    EntryRest {
        activity: state.activity,
        event: injected.filter(|_| !has_pending_mtf),
        has_pending_mtf,
        preemption_timer: has_timer.then(|| vmcs.get(Field::VMX_PREEMPTION_TIMER_VALUE) as u32),
        flushes_vpid_0: !vmcs.secondary().contains(SecondaryControls::ENABLE_VPID),
    }
}

/// Bits of DR7 that are always 0 (12, 15:14) and always 1 (10).
const DR7_ZERO: u64 = 0xd000;
const DR7_ONE: u64 = 0x400;

/// "Loading Guest Control Registers, Debug Registers, and MSRs": the registers; "Loading Guest
/// RIP, RSP, RFLAGS, and SSP"; "Loading Guest Descriptor-Table Registers".
fn load_registers(state: &mut ArchState, vmcs: &Vmcs) {
    let cr0 = vmcs.get(Field::GUEST_CR0) & !CR0_UNCHANGED | state.cr0.bits() & CR0_UNCHANGED;
    state.cr0 = Cr0::from_bits_retain(cr0);
    state.cr3 = vmcs.get(Field::GUEST_CR3);
    state.cr4 = Cr4::from_bits_retain(vmcs.get(Field::GUEST_CR4));
    if vmcs.entry().contains(EntryControls::LOAD_DEBUG_CONTROLS) {
        state.dr7 = vmcs.get(Field::GUEST_DR7) & !DR7_ZERO | DR7_ONE;
    }
    state.rip = vmcs.get(Field::GUEST_RIP);
    state.rsp = vmcs.get(Field::GUEST_RSP);
    state.rflags = Rflags::from_bits_retain(vmcs.get(Field::GUEST_RFLAGS));
    state.gdtr = DescriptorTable {
        base: vmcs.get(Field::GUEST_GDTR_BASE),
        limit: vmcs.get(Field::GUEST_GDTR_LIMIT) as u16,
    };
    state.idtr = DescriptorTable {
        base: vmcs.get(Field::GUEST_IDTR_BASE),
        limit: vmcs.get(Field::GUEST_IDTR_LIMIT) as u16,
    };
}

/// "Loading Guest Control Registers, Debug Registers, and MSRs": the MSRs.
fn load_msrs(state: &mut ArchState, vmcs: &Vmcs) {
    let controls = vmcs.entry();
    let loads = |control| controls.contains(control);
    state.sysenter_cs = vmcs.get(Field::GUEST_IA32_SYSENTER_CS);
    state.sysenter_esp = vmcs.get(Field::GUEST_IA32_SYSENTER_ESP);
    state.sysenter_eip = vmcs.get(Field::GUEST_IA32_SYSENTER_EIP);
    if loads(EntryControls::LOAD_DEBUG_CONTROLS) {
        state.debugctl = vmcs.get(Field::GUEST_IA32_DEBUGCTL);
    }
    if loads(EntryControls::LOAD_IA32_EFER) {
        state.efer = Efer::from_bits_retain(vmcs.get(Field::GUEST_IA32_EFER));
    } else {
        let is_ia32e = loads(EntryControls::IA32E_MODE_GUEST);
        state.efer.set(Efer::LMA, is_ia32e);
        if state.cr0.contains(Cr0::PG) {
            state.efer.set(Efer::LME, is_ia32e);
        }
    }
    if loads(EntryControls::LOAD_IA32_PAT) {
        state.pat = vmcs.get(Field::GUEST_IA32_PAT);
    }
    if loads(EntryControls::LOAD_IA32_PERF_GLOBAL_CTRL) {
        state.perf_global_ctrl = vmcs.get(Field::GUEST_IA32_PERF_GLOBAL_CTRL);
    }
    if loads(EntryControls::LOAD_PKRS) {
        state.pkrs = vmcs.get(Field::GUEST_IA32_PKRS);
    }
    if loads(EntryControls::LOAD_CET_STATE) {
        state.s_cet = vmcs.get(Field::GUEST_IA32_S_CET);
        state.ssp = vmcs.get(Field::GUEST_SSP);
        state.interrupt_ssp_table = vmcs.get(Field::GUEST_IA32_INTERRUPT_SSP_TABLE_ADDR);
    }
}

/// "Loading Page-Directory-Pointer-Table Entries": from the fields with EPT, otherwise from memory.
fn load_pdptes(state: &mut ArchState, vmcs: &Vmcs, memory: &dyn PhysicalMemory) {
    if !uses_pae_paging(state.cr0, state.cr4, state.efer) {
        return;
    }
    state.pdptes = if vmcs.secondary().contains(SecondaryControls::ENABLE_EPT) {
        GUEST_PDPTES.map(|field| vmcs.get(field))
    } else {
        read_pdptes(state.cr3, memory)
    };
}

/// Returns the event that the VM-entry interruption-information field asks for.
fn injected_event(vmcs: &Vmcs) -> Option<Event> {
    let info = InterruptionInfo(vmcs.get(Field::VM_ENTRY_INTERRUPTION_INFORMATION) as u32);
    let kind = info.kind().filter(|_| info.is_valid())?;
    let has_length = matches!(
        kind,
        EventType::SoftwareInterrupt
            | EventType::PrivilegedSoftwareException
            | EventType::SoftwareException
    );
    let length = vmcs.get(Field::VM_ENTRY_INSTRUCTION_LENGTH) as u8;
    let code = vmcs.get(Field::VM_ENTRY_EXCEPTION_ERROR_CODE) as u32;
    Some(Event {
        vector: info.vector(),
        kind,
        error_code: info.has_error_code().then_some(code),
        instruction_length: if has_length { length } else { 0 },
        payload: 0,
    })
}

/// Bits 12 (enabled breakpoint) and 14 (BS) of the pending debug exceptions: without either,
/// nothing is delivered.
const PENDING_DEBUG: u64 = 1 << 12 | 1 << 14;

/// "Interruptibility State", "Activity State" and "Delivery of Pending Debug Exceptions after VM
/// Entry" of "Event Injection" and "Special Features of VM Entry".
fn load_non_register_state(state: &mut ArchState, vmcs: &Vmcs, event: Option<&Event>) {
    let blocking = vmcs.get(Field::GUEST_INTERRUPTIBILITY_STATE) as u32;
    state.interruptibility = Interruptibility::from_bits_retain(blocking);
    state.pending_debug = vmcs.get(Field::GUEST_PENDING_DEBUG_EXCEPTIONS);
    state.activity = match vmcs.get(Field::GUEST_ACTIVITY_STATE) {
        1 => Activity::Hlt,
        2 => Activity::Shutdown,
        3 => Activity::WaitForSipi,
        _ => Activity::Active,
    };
    match event {
        Some(event) if event.kind != EventType::Other => vector_event(state, event),
        _ => {
            let sleeps = matches!(state.activity, Activity::Shutdown | Activity::WaitForSipi);
            if sleeps || state.pending_debug & PENDING_DEBUG == 0 {
                state.pending_debug = 0;
            }
        }
    }
}

/// What the injection of an event changes: a vectoring VM entry leaves the processor active and
/// without blocking by STI and MOV SS.
fn vector_event(state: &mut ArchState, event: &Event) {
    let keeps_pending_debug = state.interruptibility.contains(Interruptibility::MOV_SS)
        && matches!(
            event.kind,
            EventType::SoftwareInterrupt | EventType::SoftwareException
        );
    if !keeps_pending_debug || state.pending_debug & PENDING_DEBUG == 0 {
        state.pending_debug = 0;
    }
    state.activity = Activity::Active;
    state.interruptibility -= Interruptibility::STI | Interruptibility::MOV_SS;
    if event.kind == EventType::Nmi {
        state.interruptibility |= Interruptibility::NMI;
    }
}

/// Returns the CPL of a guest: the DPL of SS.
#[must_use]
pub fn guest_cpl(vmcs: &Vmcs) -> u8 {
    let [_, _, _, access] = GUEST_SEGMENTS[SegmentRegister::Ss as usize].1;
    AccessRights(vmcs.get(access) as u32).dpl()
}

#[cfg(test)]
mod tests;
