//! VM exits: what is recorded, what is saved, what the host gets.
//!
//! SDM Vol. 3C, chapter "VM Exits". A VM exit is done in this order: [`record_exit`],
//! [`save_guest_state`], the VM-exit MSR-store area, [`host_state`], the VM-exit MSR-load area (both
//! areas in [`crate::msr_area`]). Who executes instructions makes the [`VmExit`].

use crate::addr::{Gpa, Hpa};
use crate::arch::{
    AccessRights, Activity, ArchState, Cr0, Cr4, DescriptorTable, Efer, Interruptibility, Rflags,
    Segment, SegmentRegister,
};
use crate::capability::VmxProfile;
use crate::controls::{EntryControls, ExitControls, PinControls, SecondaryControls};
use crate::event::{Event, EventType, Exception, InterruptionInfo, vector};
use crate::exit_reason::{ExitKind, ExitReason};
use crate::field::Field;
use crate::memory::PhysicalMemory;
use crate::vmcs::Vmcs;

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

/// The fields of one guest segment register: selector, base, limit, access rights.
pub(crate) const GUEST_SEGMENTS: [(SegmentRegister, [Field; 4]); 8] = [
    (
        SegmentRegister::Es,
        [
            Field::GUEST_ES_SELECTOR,
            Field::GUEST_ES_BASE,
            Field::GUEST_ES_LIMIT,
            Field::GUEST_ES_ACCESS_RIGHTS,
        ],
    ),
    (
        SegmentRegister::Cs,
        [
            Field::GUEST_CS_SELECTOR,
            Field::GUEST_CS_BASE,
            Field::GUEST_CS_LIMIT,
            Field::GUEST_CS_ACCESS_RIGHTS,
        ],
    ),
    (
        SegmentRegister::Ss,
        [
            Field::GUEST_SS_SELECTOR,
            Field::GUEST_SS_BASE,
            Field::GUEST_SS_LIMIT,
            Field::GUEST_SS_ACCESS_RIGHTS,
        ],
    ),
    (
        SegmentRegister::Ds,
        [
            Field::GUEST_DS_SELECTOR,
            Field::GUEST_DS_BASE,
            Field::GUEST_DS_LIMIT,
            Field::GUEST_DS_ACCESS_RIGHTS,
        ],
    ),
    (
        SegmentRegister::Fs,
        [
            Field::GUEST_FS_SELECTOR,
            Field::GUEST_FS_BASE,
            Field::GUEST_FS_LIMIT,
            Field::GUEST_FS_ACCESS_RIGHTS,
        ],
    ),
    (
        SegmentRegister::Gs,
        [
            Field::GUEST_GS_SELECTOR,
            Field::GUEST_GS_BASE,
            Field::GUEST_GS_LIMIT,
            Field::GUEST_GS_ACCESS_RIGHTS,
        ],
    ),
    (
        SegmentRegister::Ldtr,
        [
            Field::GUEST_LDTR_SELECTOR,
            Field::GUEST_LDTR_BASE,
            Field::GUEST_LDTR_LIMIT,
            Field::GUEST_LDTR_ACCESS_RIGHTS,
        ],
    ),
    (
        SegmentRegister::Tr,
        [
            Field::GUEST_TR_SELECTOR,
            Field::GUEST_TR_BASE,
            Field::GUEST_TR_LIMIT,
            Field::GUEST_TR_ACCESS_RIGHTS,
        ],
    ),
];

/// Returns a guest segment register as the guest-state area holds it.
#[must_use]
pub fn guest_segment(vmcs: &Vmcs, register: SegmentRegister) -> Segment {
    let [selector, base, limit, access] = GUEST_SEGMENTS[register as usize].1;
    Segment {
        base: vmcs.get(base),
        limit: vmcs.get(limit) as u32,
        access: AccessRights(vmcs.get(access) as u32),
        selector: vmcs.get(selector) as u16,
    }
}

/// Writes a guest segment register to the guest-state area.
pub fn set_guest_segment(vmcs: &mut Vmcs, register: SegmentRegister, segment: &Segment) {
    let [selector, base, limit, access] = GUEST_SEGMENTS[register as usize].1;
    vmcs.set(selector, segment.selector.into());
    vmcs.set(base, segment.base);
    vmcs.set(limit, segment.limit.into());
    vmcs.set(access, segment.access.0.into());
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
    for (register, _) in GUEST_SEGMENTS {
        set_guest_segment(vmcs, register, state.segment(register));
    }
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

/// Why a VM exit cannot be completed: the VMX-abort indicator.
///
/// SDM Vol. 3C, "VMX Aborts". The processor writes the indicator to bytes 7:4 of the current VMCS
/// region and shuts down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[repr(u32)]
pub enum VmxAbort {
    /// There was a failure in saving guest MSRs.
    SavingGuestMsrs = 1,
    /// Host checking of the page-directory-pointer-table entries failed.
    HostPdptes = 2,
    /// The current VMCS has been corrupted.
    CorruptedVmcs = 3,
    /// There was a failure on loading host MSRs.
    LoadingHostMsrs = 4,
    /// There was a machine-check event during the VM exit.
    MachineCheck = 5,
    /// The processor was in IA-32e mode and "host address-space size" was 0.
    LeavingIa32eMode = 6,
}

/// Bits of CR0 that neither VM entry nor VM exit changes: ET, CD, NW, 63:32, 28:19, 17 and 15:6.
pub(crate) const CR0_UNCHANGED: u64 = 0xffff_ffff_7ffa_ffd0;

/// Returns the state that a VM exit leaves the processor in, from `guest`, the state at the exit.
///
/// SDM Vol. 3C, "Loading Host State".
///
/// # Errors
/// The VMX abort that the exit ends in.
pub fn host_state(
    vmcs: &Vmcs,
    guest: &ArchState,
    exit: &VmExit,
    profile: &VmxProfile,
    memory: &dyn PhysicalMemory,
) -> Result<ArchState, VmxAbort> {
    let is_64_bit = vmcs.exit().contains(ExitControls::HOST_ADDRESS_SPACE_SIZE);
    if guest.efer.contains(Efer::LMA) && !is_64_bit {
        return Err(VmxAbort::LeavingIa32eMode);
    }
    let mut host = guest.clone();
    load_host_control_registers(&mut host, vmcs, profile);
    load_host_msrs(&mut host, vmcs);
    load_host_segments(&mut host, vmcs, is_64_bit);
    host.rip = vmcs.get(Field::HOST_RIP);
    host.rsp = vmcs.get(Field::HOST_RSP);
    host.rflags = Rflags::FIXED1;
    host.activity = Activity::Active;
    host.interruptibility = host_interruptibility(vmcs, guest, exit);
    host.pending_debug = 0;
    if uses_pae_paging(host.cr0, host.cr4, host.efer) {
        host.pdptes = read_pdptes(host.cr3, memory);
        if host
            .pdptes
            .iter()
            .any(|&pdpte| pdpte_reserved_bits(pdpte, profile) != 0)
        {
            return Err(VmxAbort::HostPdptes);
        }
    }
    Ok(host)
}

/// "Loading Host Control Registers, Debug Registers, MSRs": the registers.
fn load_host_control_registers(host: &mut ArchState, vmcs: &Vmcs, profile: &VmxProfile) {
    let cr0 = vmcs.get(Field::HOST_CR0) & !CR0_UNCHANGED | host.cr0.bits() & CR0_UNCHANGED;
    host.cr0 = Cr0::from_bits_retain(cr0);
    let width = u32::from(profile.facts.physical_address_bits.min(63));
    host.cr3 = vmcs.get(Field::HOST_CR3) & ((1 << width) - 1);
    host.cr4 = Cr4::from_bits_retain(vmcs.get(Field::HOST_CR4));
    if vmcs.exit().contains(ExitControls::HOST_ADDRESS_SPACE_SIZE) {
        host.cr4 |= Cr4::PAE;
    } else {
        host.cr4 -= Cr4::PCIDE;
    }
    host.dr7 = 0x400;
    host.debugctl = 0;
}

/// "Loading Host Control Registers, Debug Registers, MSRs": the MSRs.
fn load_host_msrs(host: &mut ArchState, vmcs: &Vmcs) {
    let controls = vmcs.exit();
    host.sysenter_cs = vmcs.get(Field::HOST_IA32_SYSENTER_CS);
    host.sysenter_esp = vmcs.get(Field::HOST_IA32_SYSENTER_ESP);
    host.sysenter_eip = vmcs.get(Field::HOST_IA32_SYSENTER_EIP);
    if controls.contains(ExitControls::LOAD_IA32_EFER) {
        host.efer = Efer::from_bits_retain(vmcs.get(Field::HOST_IA32_EFER));
    } else {
        let is_64_bit = controls.contains(ExitControls::HOST_ADDRESS_SPACE_SIZE);
        host.efer.set(Efer::LMA | Efer::LME, is_64_bit);
    }
    if controls.contains(ExitControls::LOAD_IA32_PAT) {
        host.pat = vmcs.get(Field::HOST_IA32_PAT);
    }
    if controls.contains(ExitControls::LOAD_IA32_PERF_GLOBAL_CTRL) {
        host.perf_global_ctrl = vmcs.get(Field::HOST_IA32_PERF_GLOBAL_CTRL);
    }
    if controls.contains(ExitControls::LOAD_PKRS) {
        host.pkrs = vmcs.get(Field::HOST_IA32_PKRS);
    }
    if controls.contains(ExitControls::LOAD_CET_STATE) {
        host.s_cet = vmcs.get(Field::HOST_IA32_S_CET);
        host.ssp = vmcs.get(Field::HOST_SSP);
        host.interrupt_ssp_table = vmcs.get(Field::HOST_IA32_INTERRUPT_SSP_TABLE_ADDR);
    }
}

/// Flat data: type 3, S, DPL 0, P, D/B, G.
const HOST_DATA: AccessRights = AccessRights(0xc093);
/// Flat 32-bit code: type 11, S, DPL 0, P, D, G.
const HOST_CODE_32: AccessRights = AccessRights(0xc09b);
/// 64-bit code: type 11, S, DPL 0, P, L, G.
const HOST_CODE_64: AccessRights = AccessRights(0xa09b);
/// Busy 32- or 64-bit TSS, present.
const HOST_TSS: AccessRights = AccessRights(0x8b);

/// "Loading Host Segment and Descriptor-Table Registers".
fn load_host_segments(host: &mut ArchState, vmcs: &Vmcs, is_64_bit: bool) {
    let selector = |field| vmcs.get(field) as u16;
    let data = |field, base| {
        let selector = selector(field);
        let access = if selector == 0 {
            AccessRights::UNUSABLE
        } else {
            HOST_DATA
        };
        Segment {
            base,
            limit: u32::MAX,
            access,
            selector,
        }
    };
    host.segments = [
        data(Field::HOST_ES_SELECTOR, 0),
        Segment {
            base: 0,
            limit: u32::MAX,
            access: if is_64_bit {
                HOST_CODE_64
            } else {
                HOST_CODE_32
            },
            selector: selector(Field::HOST_CS_SELECTOR),
        },
        data(Field::HOST_SS_SELECTOR, 0),
        data(Field::HOST_DS_SELECTOR, 0),
        data(Field::HOST_FS_SELECTOR, vmcs.get(Field::HOST_FS_BASE)),
        data(Field::HOST_GS_SELECTOR, vmcs.get(Field::HOST_GS_BASE)),
        Segment {
            access: AccessRights::UNUSABLE,
            ..Segment::default()
        },
        Segment {
            base: vmcs.get(Field::HOST_TR_BASE),
            limit: 0x67,
            access: HOST_TSS,
            selector: selector(Field::HOST_TR_SELECTOR),
        },
    ];
    host.gdtr = DescriptorTable {
        base: vmcs.get(Field::HOST_GDTR_BASE),
        limit: 0xffff,
    };
    host.idtr = DescriptorTable {
        base: vmcs.get(Field::HOST_IDTR_BASE),
        limit: 0xffff,
    };
}

/// "Updating Non-Register State": NMIs are blocked after an exit that an NMI caused directly, and
/// where the guest ran with them blocked physically.
fn host_interruptibility(vmcs: &Vmcs, guest: &ArchState, exit: &VmExit) -> Interruptibility {
    let by_nmi = exit.reason == ExitReason::EXCEPTION_OR_NMI
        && exit.interruption.kind() == Some(EventType::Nmi);
    let was_blocked = !vmcs.pin().contains(PinControls::VIRTUAL_NMIS)
        && guest.interruptibility.contains(Interruptibility::NMI);
    if by_nmi || was_blocked {
        Interruptibility::NMI
    } else {
        Interruptibility::empty()
    }
}

/// Reads the four PDPTEs that CR3 points to.
#[must_use]
pub fn read_pdptes(cr3: u64, memory: &dyn PhysicalMemory) -> [u64; 4] {
    let table = Hpa(cr3 & 0xffff_ffe0);
    [0, 8, 16, 24].map(|offset| memory.read_u64(table.offset(offset)))
}

/// Returns the reserved bits that a present PDPTE has set: 2:1, 8:5 and those beyond MAXPHYADDR.
#[must_use]
pub const fn pdpte_reserved_bits(pdpte: u64, profile: &VmxProfile) -> u64 {
    if pdpte & 1 == 0 {
        return 0;
    }
    let width = profile.facts.physical_address_bits as u32;
    let beyond = if width >= 64 { 0 } else { u64::MAX << width };
    pdpte & (0x1e6 | beyond)
}
