//! Does this leave the guest? The decisions that an executor asks for in VMX non-root operation.
//!
//! SDM Vol. 3C, chapter "VMX Non-Root Operation". Each function is pure: the VMCS, what is about to
//! happen and, for bitmaps, memory go in; whether there is a VM exit, and its exit qualification,
//! come out. Faults that come before the VM exit ("Relative Priority of Faults and VM Exits") are
//! the executor's: it asks when they are out of the way.
//!
//! - here: events, windows, and instructions that one control decides;
//! - [`control_register`]: CR0, CR3, CR4, CR8, CLTS, LMSW; MOV DR;
//! - [`bitmap`]: I/O and MSR bitmaps;
//! - [`time`]: the time-stamp counter, the VMX-preemption timer, PAUSE loops.

pub mod bitmap;
pub mod control_register;
pub mod time;

use crate::addr::Hpa;
use crate::arch::{Activity, Interruptibility, Rflags};
use crate::controls::{ExitControls, PinControls, ProcControls, SecondaryControls};
use crate::event::{Event, EventType, vector};
use crate::exit::VmExit;
use crate::exit_reason::ExitReason;
use crate::field::Field;
use crate::vmcs::Vmcs;

/// What becomes of an instruction in VMX non-root operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use]
pub enum Disposition {
    /// It executes as ever.
    Execute,
    /// It causes a VM exit with this basic reason.
    Exit(ExitReason),
    /// It is not enabled and raises #UD.
    Undefined,
}

/// Instructions that cause VM exits by one control, or always.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are the mnemonics")]
pub enum Instruction {
    Cpuid,
    Getsec,
    Hlt,
    Invd,
    Invlpg,
    Invpcid,
    /// LGDT, LIDT, SGDT and SIDT.
    GdtrIdtr,
    /// LLDT, LTR, SLDT and STR.
    LdtrTr,
    Monitor,
    Mwait,
    MovDr,
    Rdpmc,
    Rdrand,
    Rdseed,
    Rdtsc,
    Rdtscp,
    Tpause,
    Umonitor,
    Umwait,
    Wbinvd,
    Xsetbv,
}

/// Returns what becomes of an instruction.
///
/// SDM Vol. 3C, "Instructions That Cause VM Exits Unconditionally", "Instructions That Cause VM
/// Exits Conditionally", "Changes to Instruction Behavior in VMX Non-Root Operation".
///
/// # Examples
/// ```
/// use vmx_model::exit_reason::ExitReason;
/// use vmx_model::intercept::{Disposition, Instruction, instruction};
/// use vmx_model::vmcs::Vmcs;
/// let vmcs = Vmcs::new();
/// assert_eq!(instruction(&vmcs, Instruction::Hlt), Disposition::Execute);
/// assert_eq!(instruction(&vmcs, Instruction::Cpuid), Disposition::Exit(ExitReason::CPUID));
/// assert_eq!(instruction(&vmcs, Instruction::Rdtscp), Disposition::Undefined);
/// ```
pub fn instruction(vmcs: &Vmcs, instruction: Instruction) -> Disposition {
    use Instruction as I;
    use ProcControls as P;
    use SecondaryControls as S;
    let proc = vmcs.proc();
    let always = |reason| Disposition::Exit(reason);
    let primary = |control, reason| exit_if(proc.contains(control), reason);
    let secondary = |control, reason| exit_if(vmcs.secondary().contains(control), reason);
    let enabled = |enable, control, reason| match vmcs.secondary().contains(enable) {
        true => primary(control, reason),
        false => Disposition::Undefined,
    };
    match instruction {
        I::Cpuid => always(ExitReason::CPUID),
        I::Getsec => always(ExitReason::GETSEC),
        I::Invd => always(ExitReason::INVD),
        I::Xsetbv => always(ExitReason::XSETBV),
        I::Hlt => primary(P::HLT_EXITING, ExitReason::HLT),
        I::Invlpg => primary(P::INVLPG_EXITING, ExitReason::INVLPG),
        I::Monitor => primary(P::MONITOR_EXITING, ExitReason::MONITOR),
        I::Mwait => primary(P::MWAIT_EXITING, ExitReason::MWAIT),
        I::MovDr => primary(P::MOV_DR_EXITING, ExitReason::DR_ACCESS),
        I::Rdpmc => primary(P::RDPMC_EXITING, ExitReason::RDPMC),
        I::Rdtsc => primary(P::RDTSC_EXITING, ExitReason::RDTSC),
        I::GdtrIdtr => secondary(S::DESCRIPTOR_TABLE_EXITING, ExitReason::GDTR_IDTR_ACCESS),
        I::LdtrTr => secondary(S::DESCRIPTOR_TABLE_EXITING, ExitReason::LDTR_TR_ACCESS),
        I::Wbinvd => secondary(S::WBINVD_EXITING, ExitReason::WBINVD),
        I::Rdrand => secondary(S::RDRAND_EXITING, ExitReason::RDRAND),
        I::Rdseed => secondary(S::RDSEED_EXITING, ExitReason::RDSEED),
        I::Rdtscp => enabled(S::ENABLE_RDTSCP, P::RDTSC_EXITING, ExitReason::RDTSCP),
        I::Invpcid => enabled(S::ENABLE_INVPCID, P::INVLPG_EXITING, ExitReason::INVPCID),
        I::Tpause => enabled(
            S::ENABLE_USER_WAIT_AND_PAUSE,
            P::RDTSC_EXITING,
            ExitReason::TPAUSE,
        ),
        I::Umwait => enabled(
            S::ENABLE_USER_WAIT_AND_PAUSE,
            P::RDTSC_EXITING,
            ExitReason::UMWAIT,
        ),
        I::Umonitor if vmcs.secondary().contains(S::ENABLE_USER_WAIT_AND_PAUSE) => {
            Disposition::Execute
        }
        I::Umonitor => Disposition::Undefined,
    }
}

const fn exit_if(condition: bool, reason: ExitReason) -> Disposition {
    if condition {
        Disposition::Exit(reason)
    } else {
        Disposition::Execute
    }
}

/// Returns what becomes of XSAVES (`reason` [`ExitReason::XSAVES`]) or XRSTORS, whose state
/// components are `requested` (EDX:EAX), where IA32_XSS is `xss`.
pub fn xsaves(vmcs: &Vmcs, reason: ExitReason, requested: u64, xss: u64) -> Disposition {
    if !vmcs
        .secondary()
        .contains(SecondaryControls::ENABLE_XSAVES_XRSTORS)
    {
        return Disposition::Undefined;
    }
    exit_if(
        requested & xss & vmcs.get(Field::XSS_EXITING_BITMAP) != 0,
        reason,
    )
}

/// Whether an exception with this vector and error code causes a VM exit instead of being
/// delivered.
///
/// SDM Vol. 3C, "Exception Bitmap": for a page fault the mask and the match decide whether the bit
/// for #PF means "exit" or "do not exit".
#[must_use]
pub fn exception_exits(vmcs: &Vmcs, number: u8, error_code: u32) -> bool {
    let bit = vmcs.get(Field::EXCEPTION_BITMAP) >> (number & 31) & 1 != 0;
    if number != vector::PF {
        return bit;
    }
    let mask = vmcs.get(Field::PAGE_FAULT_ERROR_CODE_MASK);
    let matches = u64::from(error_code) & mask == vmcs.get(Field::PAGE_FAULT_ERROR_CODE_MATCH);
    bit == matches
}

/// Returns the VM exit that `event` causes instead of being delivered, if it does; `delivering` is
/// the event during whose delivery it arose.
///
/// Injected events, software interrupts and virtual interrupts never cause one; an external
/// interrupt is the business of [`external_interrupt_exits`].
#[must_use]
pub fn event_exit(vmcs: &Vmcs, event: &Event, delivering: Option<Event>) -> Option<VmExit> {
    let exits = match event.kind {
        EventType::Nmi => nmi_exits(vmcs),
        EventType::HardwareException
        | EventType::PrivilegedSoftwareException
        | EventType::SoftwareException => {
            exception_exits(vmcs, event.vector, event.error_code.unwrap_or(0))
        }
        EventType::ExternalInterrupt | EventType::SoftwareInterrupt | EventType::Other => false,
    };
    exits.then(|| VmExit::by_event(event).during(delivering))
}

/// Whether NMIs cause VM exits.
#[must_use]
pub const fn nmi_exits(vmcs: &Vmcs) -> bool {
    vmcs.pin().contains(PinControls::NMI_EXITING)
}

/// Whether external interrupts cause VM exits.
#[must_use]
pub const fn external_interrupt_exits(vmcs: &Vmcs) -> bool {
    vmcs.pin().contains(PinControls::EXTERNAL_INTERRUPT_EXITING)
}

/// Whether a VM exit by an external interrupt acknowledges it.
#[must_use]
pub const fn acknowledges_interrupt(vmcs: &Vmcs) -> bool {
    vmcs.exit()
        .contains(ExitControls::ACKNOWLEDGE_INTERRUPT_ON_EXIT)
}

/// Whether an external interrupt is blocked: by RFLAGS.IF, unless it causes a VM exit, and by the
/// interruptibility and activity states.
#[must_use]
pub fn blocks_external_interrupt(
    vmcs: &Vmcs,
    rflags: Rflags,
    blocking: Interruptibility,
    activity: Activity,
) -> bool {
    let by_flag = !external_interrupt_exits(vmcs) && !rflags.contains(Rflags::IF);
    by_flag
        || blocking.intersects(Interruptibility::STI | Interruptibility::MOV_SS)
        || matches!(activity, Activity::Shutdown | Activity::WaitForSipi)
}

/// Whether there is an interrupt window, and with it a VM exit, at this instruction boundary.
#[must_use]
pub fn interrupt_window_exits(
    vmcs: &Vmcs,
    rflags: Rflags,
    blocking: Interruptibility,
    activity: Activity,
) -> bool {
    vmcs.proc().contains(ProcControls::INTERRUPT_WINDOW_EXITING)
        && rflags.contains(Rflags::IF)
        && !blocking.intersects(Interruptibility::STI | Interruptibility::MOV_SS)
        && !matches!(activity, Activity::Shutdown | Activity::WaitForSipi)
}

/// Whether there is an NMI window, and with it a VM exit, at this instruction boundary.
///
/// Choice: blocking by STI delays the window, which the SDM leaves to the processor.
#[must_use]
pub fn nmi_window_exits(vmcs: &Vmcs, blocking: Interruptibility, activity: Activity) -> bool {
    let closed = Interruptibility::NMI | Interruptibility::MOV_SS | Interruptibility::STI;
    vmcs.proc().contains(ProcControls::NMI_WINDOW_EXITING)
        && !blocking.intersects(closed)
        && activity != Activity::WaitForSipi
}

/// What IRET does to the blocking of NMIs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IretUnblocks {
    /// It removes blocking by NMI.
    Nmi,
    /// It removes virtual-NMI blocking, and nothing else.
    VirtualNmi,
    /// It leaves all blocking as it is.
    Nothing,
}

/// Returns what IRET does to the blocking of NMIs.
#[must_use]
pub const fn iret(vmcs: &Vmcs) -> IretUnblocks {
    let pin = vmcs.pin();
    if !pin.contains(PinControls::NMI_EXITING) {
        IretUnblocks::Nmi
    } else if pin.contains(PinControls::VIRTUAL_NMIS) {
        IretUnblocks::VirtualNmi
    } else {
        IretUnblocks::Nothing
    }
}

/// Where a task switch comes from: bits 31:30 of its exit qualification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskSwitchSource {
    /// A CALL instruction.
    Call = 0,
    /// An IRET instruction.
    Iret = 1,
    /// A JMP instruction.
    Jmp = 2,
    /// A task gate in the IDT.
    TaskGate = 3,
}

/// Returns the exit qualification of a task switch, which always causes a VM exit.
#[must_use]
pub const fn task_switch_qualification(tss_selector: u16, source: TaskSwitchSource) -> u64 {
    tss_selector as u64 | (source as u64) << 30
}

/// How the APIC-access page is accessed: bits 15:12 of the exit qualification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApicAccess {
    /// Linear access for a data read.
    Read = 0,
    /// Linear access for a data write.
    Write = 1,
    /// Linear access for an instruction fetch.
    Fetch = 2,
    /// Linear access during event delivery.
    Delivery = 3,
    /// Guest-physical access during event delivery.
    PhysicalDelivery = 10,
    /// Guest-physical access for an instruction fetch or during instruction execution.
    Physical = 15,
}

/// Returns the exit qualification of an access to the APIC-access page.
#[must_use]
pub const fn apic_access_qualification(access: ApicAccess, page_offset: u16) -> u64 {
    let offset = match access {
        ApicAccess::PhysicalDelivery | ApicAccess::Physical => 0,
        _ => page_offset as u64 & 0xfff,
    };
    offset | (access as u64) << 12
}

/// Returns the APIC-access page, if APIC accesses are virtualized.
#[must_use]
pub fn apic_access_page(vmcs: &Vmcs) -> Option<Hpa> {
    let is_virtualized = vmcs
        .secondary()
        .contains(SecondaryControls::VIRTUALIZE_APIC_ACCESSES);
    is_virtualized.then(|| Hpa(vmcs.get(Field::APIC_ACCESS_ADDRESS)))
}

/// Returns the VPID that tags the guest's translations; 0 if VPIDs are not enabled.
#[must_use]
pub const fn vpid(vmcs: &Vmcs) -> u16 {
    if vmcs.secondary().contains(SecondaryControls::ENABLE_VPID) {
        vmcs.get(Field::VPID) as u16
    } else {
        0
    }
}

#[cfg(test)]
mod tests;
