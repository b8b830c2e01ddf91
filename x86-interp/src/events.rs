//! What happens between instructions: blocking, pending events, traps, breakpoints.
//!
//! SDM Vol. 3A, "Prioritization of Concurrent Events" and "Nonmaskable Interrupt (NMI)", "Masking
//! Exceptions and Interrupts When Switching Stacks"; Vol. 3B, "Debug Exceptions", "Debug Control
//! Register (DR7)".
//!
//! The run loop calls `Cpu::attend` at instruction boundaries. While `Cpu::needs_step` holds,
//! it executes one instruction at a time between `Cpu::begin_step` and `Cpu::end_step`.

use serde::{Deserialize, Serialize};
use vmx_model::addr::Linear;
use vmx_model::arch::{Activity, Cr4, Interruptibility, Rflags};
use vmx_model::event::{Event, EventType, Exception, vector};
use vmx_model::exit::VmExit;
use vmx_model::exit_reason::ExitReason;
use vmx_model::processor::InitOutcome;

use crate::mem::Access;
use crate::mode::Mode;
use crate::stop::Stop;
use crate::{Cpu, Exec};

/// Pending debug exceptions: an enabled breakpoint was met (SDM Vol. 3C, "Guest Non-Register
/// State").
const ENABLED_BREAKPOINT: u64 = 1 << 12;
/// Pending debug exceptions and DR6: single step.
const SINGLE_STEP: u64 = 1 << 14;
/// DR6: task switch.
const TASK_SWITCH: u64 = 1 << 15;
/// The four breakpoints in DR6 and in the pending debug exceptions.
const BREAKPOINTS: u64 = 0xf;
/// DR7: the local and global enable bits of the four breakpoints.
const DR7_ENABLES: u64 = 0xff;
/// IA32_APIC_BASE: this is the bootstrap processor.
const APIC_BASE_BSP: u64 = 1 << 8;

/// Blocking that lasts for one instruction.
pub(crate) const SHADOW: Interruptibility = Interruptibility::STI.union(Interruptibility::MOV_SS);

/// Events that wait for an instruction boundary, and what the instruction in progress has left to
/// do there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Events {
    /// Blocking that the instruction in progress starts; it holds for the next one.
    shadow: Interruptibility,
    /// A non-maskable interrupt waits.
    nmi: bool,
    /// The vector of the external interrupt whose line is raised.
    interrupt_line: Option<u8>,
    /// INIT waits.
    init: bool,
    /// INIT is blocked by VMX root operation: the logical processor holds it.
    is_init_blocked: bool,
    /// The vector of a start-up IPI that waits.
    start_up: Option<u8>,
    /// A task switch met the T flag of the new TSS.
    task_trap: bool,
    /// Data and I/O breakpoints that the instruction in progress has met, enabled or not.
    met: u64,
    /// How many events have been delivered.
    deliveries: u64,
    /// The instruction at RIP is a repeated string instruction that has completed an iteration.
    pub(crate) is_mid_repeat: bool,
    /// The instruction in progress has loaded RF.
    pub(crate) keeps_rf: bool,
    /// The instruction in progress averts its single-step trap: it has entered a handler.
    pub(crate) averts_step_trap: bool,
    /// An IRET that faulted has ended the blocking of NMIs.
    pub(crate) is_nmi_unblocked: bool,
    /// MONITOR has armed address-range monitoring, and nothing has ended that.
    pub(crate) is_monitoring: bool,
}

/// What was true before an instruction in step mode.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    flags: Rflags,
}

/// Whether the run loop goes on with an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Boundary {
    /// Nothing is pending: execute.
    Execute,
    /// An event was delivered: look around again.
    Delivered,
}

impl Events {
    /// Returns how many events have been delivered since the processor was made.
    pub(crate) const fn deliveries(&self) -> u64 {
        self.deliveries
    }
}

impl Cpu {
    /// Returns the events that wait for an instruction boundary.
    #[must_use]
    pub fn events(&self) -> &Events {
        &self.events
    }

    /// Replaces the events that wait for an instruction boundary.
    pub fn set_events(&mut self, events: &Events) {
        self.events = events.clone();
    }

    /// Returns the event that is in delivery: after [`Stop::Suspended`] or a host fault, one whose
    /// delivery starts anew when the processor runs again.
    #[must_use]
    pub fn event_in_delivery(&self) -> Option<Event> {
        self.delivering
    }

    /// Replaces the event in delivery.
    pub fn set_event_in_delivery(&mut self, event: Option<Event>) {
        self.delivering = event;
    }

    /// Makes a non-maskable interrupt pending.
    pub fn inject_nmi(&mut self) {
        self.events.nmi = true;
    }

    /// Raises the external-interrupt line with a vector, or lowers it. With a local APIC attached,
    /// the APIC's requests come in addition.
    pub fn set_interrupt_line(&mut self, vector: Option<u8>) {
        self.events.interrupt_line = vector;
    }

    /// Makes INIT pending.
    pub fn signal_init(&mut self) {
        self.events.init = true;
    }

    /// Makes a start-up IPI pending; a processor that does not wait for one drops it.
    pub fn signal_start_up(&mut self, vector: u8) {
        if self.state.activity == Activity::WaitForSipi || self.events.init {
            self.events.start_up = Some(vector);
        }
    }

    /// Blocks events until after the next instruction, by STI or by MOV or POP to SS.
    ///
    /// Of several such instructions in a row only the first one blocks.
    pub(crate) fn block_events(&mut self, by: Interruptibility) {
        if !self.state.interruptibility.intersects(by) {
            self.events.shadow |= by;
        }
    }

    /// The instruction in progress has loaded blocking by STI or MOV SS, as VM entry does: it is in
    /// effect for the next instruction, not for this one.
    pub(crate) fn keep_loaded_blocking(&mut self) {
        self.events.shadow = self.state.interruptibility.intersection(SHADOW);
    }

    /// An event has been delivered: blocking by STI and MOV SS ends, and so does the instruction that
    /// was in progress. The single-step trap behind MOV SS is lost, while data breakpoints that it
    /// met are still due (SDM Vol. 3A, "Masking Exceptions and Interrupts When Switching Stacks").
    pub(crate) fn end_blocking(&mut self) {
        if self.is_blocked(Interruptibility::MOV_SS) {
            self.state.pending_debug &= !SINGLE_STEP;
        }
        self.state.interruptibility.remove(SHADOW);
        self.events.shadow = Interruptibility::empty();
        self.events.is_mid_repeat = false;
        self.events.is_nmi_unblocked = false;
        self.events.averts_step_trap = true;
        self.events.deliveries += 1;
    }

    /// #DB has been delivered: it reports the data breakpoints that were pending.
    pub(crate) fn merge_pending_debug(&mut self) {
        let pending = core::mem::take(&mut self.state.pending_debug);
        if pending & ENABLED_BREAKPOINT != 0 {
            self.note_debug_causes(pending & BREAKPOINTS);
        }
    }

    /// The task that is switched to has the T flag set: #DB before its first instruction.
    pub(crate) fn set_task_trap(&mut self) {
        self.events.task_trap = true;
    }

    /// Delivers at most one event, in the SDM's order of priority.
    ///
    /// # Errors
    /// [`crate::Fault::Stop`] if the processor cannot go on without an event, or as
    /// [`Self::raise`].
    pub(crate) fn attend(&mut self) -> Exec<Boundary> {
        if self.is_quiet() {
            return Ok(Boundary::Execute);
        }
        let outcome = self.attend_in_order();
        if !matches!(outcome, Ok(Boundary::Execute)) {
            self.monitor.wake();
        }
        let boundary = outcome?;
        self.events.is_mid_repeat = false;
        self.engine.is_apic_quiet = !self.apic.as_mut().is_some_and(|apic| apic.has_interrupt());
        self.attend_to_wait()?;
        Ok(boundary)
    }

    /// Whether nothing can be pending.
    fn is_quiet(&self) -> bool {
        let e = &self.events;
        let has_interrupt_source = e.interrupt_line.is_some() || self.may_apic_interrupt();
        let has_own = e.init || e.is_init_blocked || e.nmi || e.task_trap || e.is_mid_repeat;
        !(has_own || has_interrupt_source || self.has_virtual_interrupt())
            && self.delivering.is_none()
            && !self.has_vmx_boundary_work()
            && self.state.activity == Activity::Active
            && !self.monitor.is_waiting()
            && self.state.pending_debug == 0
            && self.state.dr7 & DR7_ENABLES == 0
    }

    /// Whether the local APIC has to be asked for an interrupt.
    fn may_apic_interrupt(&self) -> bool {
        self.apic.is_some() && !self.engine.is_apic_quiet
    }

    fn attend_in_order(&mut self) -> Exec<Boundary> {
        if let Some(event) = self.delivering {
            self.deliver(event)?;
            return Ok(Boundary::Delivered);
        }
        const ORDER: [fn(&mut Cpu) -> Exec<Boundary>; 13] = [
            Cpu::attend_to_virtual_apic,
            Cpu::attend_to_init,
            Cpu::attend_to_monitor_trap,
            Cpu::attend_to_traps,
            Cpu::attend_to_preemption_timer,
            Cpu::attend_to_nmi_window,
            Cpu::attend_to_nmi,
            Cpu::attend_to_interrupt_window,
            Cpu::attend_to_virtual_interrupt_delivery,
            Cpu::attend_to_interrupt,
            Cpu::attend_to_activity,
            Cpu::attend_to_virtual_interrupt,
            Cpu::attend_to_code_breakpoint,
        ];
        for attend in ORDER {
            if attend(self)? == Boundary::Delivered {
                return Ok(Boundary::Delivered);
            }
        }
        Ok(Boundary::Execute)
    }

    fn attend_to_init(&mut self) -> Exec<Boundary> {
        match self.init_outcome() {
            None => {}
            Some(InitOutcome::Init) => self.perform_init(),
            Some(InitOutcome::Exit) => {
                return Err(self.vm_exit(VmExit::new(ExitReason::INIT_SIGNAL)));
            }
            Some(InitOutcome::Pending) => {
                self.events.is_init_blocked = true;
                if self.state.activity != Activity::WaitForSipi {
                    self.events.start_up = None;
                }
            }
        }
        if self.state.activity != Activity::WaitForSipi {
            return Ok(Boundary::Execute);
        }
        if let Some(vector) = self.events.start_up.take() {
            if self.is_non_root() {
                let exit = VmExit::new(ExitReason::SIPI).qualified(vector.into());
                return Err(self.vm_exit(exit));
            }
            self.start_up(vector);
        }
        Ok(Boundary::Execute)
    }

    /// Returns what an INIT signal that has come now, or that was blocked until now, does.
    fn init_outcome(&mut self) -> Option<InitOutcome> {
        let is_new = core::mem::take(&mut self.events.init);
        let activity = self.state.activity;
        match self.processor_mut() {
            None => is_new.then_some(InitOutcome::Init),
            Some(processor) if is_new => Some(processor.init(activity)),
            Some(processor) => {
                let outcome = processor.take_pending_init(activity);
                self.events.is_init_blocked &= outcome.is_none();
                outcome
            }
        }
    }

    fn perform_init(&mut self) {
        let start_up = self.events.start_up;
        self.init();
        self.events.start_up = start_up;
        if let Some(apic) = &mut self.apic {
            apic.init();
        }
        if self.msrs.apic_base & APIC_BASE_BSP == 0 {
            self.state.activity = Activity::WaitForSipi;
        }
    }

    /// Traps on the previous instruction: single step, data and I/O breakpoints, T flag.
    fn attend_to_traps(&mut self) -> Exec<Boundary> {
        let pending = self.state.pending_debug;
        let is_due = pending & (ENABLED_BREAKPOINT | SINGLE_STEP) != 0 || self.events.task_trap;
        let is_blocked = self.is_blocked(Interruptibility::MOV_SS) || !self.is_listening();
        if !is_due || is_blocked {
            return Ok(Boundary::Execute);
        }
        let mut causes = pending & (BREAKPOINTS | SINGLE_STEP);
        if self.events.task_trap {
            causes |= TASK_SWITCH;
        }
        self.state.pending_debug = 0;
        self.events.task_trap = false;
        self.raise(Exception::db(causes))?;
        Ok(Boundary::Delivered)
    }

    fn attend_to_nmi(&mut self) -> Exec<Boundary> {
        let blocking = SHADOW | Interruptibility::NMI;
        if !self.events.nmi || self.is_blocked(blocking) || !self.is_listening() {
            return Ok(Boundary::Execute);
        }
        self.events.nmi = false;
        let event = interrupt(vector::NMI, EventType::Nmi);
        self.ask_about_event(&event)?;
        self.deliver(event)?;
        Ok(Boundary::Delivered)
    }

    fn attend_to_interrupt(&mut self) -> Exec<Boundary> {
        if self.attend_to_exiting_interrupt()? == Boundary::Delivered {
            return Ok(Boundary::Delivered);
        }
        let is_open = self.state.rflags.contains(Rflags::IF) && !self.is_blocked(SHADOW);
        if !is_open || !self.is_listening() || self.has_exiting_interrupts() {
            return Ok(Boundary::Execute);
        }
        let Some(vector) = self.acknowledge_interrupt() else {
            return Ok(Boundary::Execute);
        };
        self.deliver(interrupt(vector, EventType::ExternalInterrupt))?;
        Ok(Boundary::Delivered)
    }

    /// Whether an external interrupt waits.
    pub(crate) fn has_external_interrupt(&mut self) -> bool {
        self.events.interrupt_line.is_some()
            || self.apic.as_mut().is_some_and(|apic| apic.has_interrupt())
    }

    /// Whether the external-interrupt line is raised.
    pub(crate) fn has_interrupt_line(&self) -> bool {
        self.events.interrupt_line.is_some()
    }

    /// Takes the vector of the external interrupt with the highest priority.
    pub(crate) fn acknowledge_interrupt(&mut self) -> Option<u8> {
        let line = self.events.interrupt_line.take();
        line.or_else(|| {
            let apic = self.apic.as_mut()?;
            apic.has_interrupt().then(|| apic.acknowledge()).flatten()
        })
    }

    /// Whether the activity state lets events through.
    pub(crate) fn is_listening(&self) -> bool {
        matches!(self.state.activity, Activity::Active | Activity::Hlt)
    }

    pub(crate) fn is_blocked(&self, by: Interruptibility) -> bool {
        self.state.interruptibility.intersects(by)
    }

    fn attend_to_activity(&mut self) -> Exec<Boundary> {
        match self.state.activity {
            Activity::Active => Ok(Boundary::Execute),
            Activity::Shutdown => Err(self.stop(Stop::Shutdown)),
            Activity::Hlt | Activity::WaitForSipi => Err(self.stop(Stop::Halt)),
        }
    }

    /// A virtual interrupt is pending and enabled, in virtual-8086 mode with CR4.VME or at level 3
    /// with CR4.PVI: #GP(0), so that the monitor delivers it (SDM Vol. 3B, "Method 6").
    ///
    /// Choice: at every IOPL, as in Bochs.
    fn attend_to_virtual_interrupt(&mut self) -> Exec<Boundary> {
        if !self.has_virtual_interrupt() {
            return Ok(Boundary::Execute);
        }
        let has_mechanism = match self.mode() {
            Mode::Virtual8086 => self.state.cr4.contains(Cr4::VME),
            Mode::Real => false,
            _ => self.cpl() == 3 && self.state.cr4.contains(Cr4::PVI),
        };
        if !has_mechanism {
            return Ok(Boundary::Execute);
        }
        self.raise(Exception::gp(0))?;
        Ok(Boundary::Delivered)
    }

    fn has_virtual_interrupt(&self) -> bool {
        self.state.rflags.contains(Rflags::VIF | Rflags::VIP)
    }

    /// Instruction breakpoints: a fault before the instruction, unless RF is set.
    fn attend_to_code_breakpoint(&mut self) -> Exec<Boundary> {
        let is_armed = self.state.dr7 & DR7_ENABLES != 0;
        let is_blocked = self.is_blocked(Interruptibility::MOV_SS);
        if !is_armed || is_blocked || self.state.rflags.contains(Rflags::RF) {
            return Ok(Boundary::Execute);
        }
        let met = self.breakpoints_met(self.linear_rip(), 1, Watch::Execute);
        if met & self.breakpoints_enabled() == 0 {
            return Ok(Boundary::Execute);
        }
        self.raise(Exception::db(met))?;
        Ok(Boundary::Delivered)
    }

    /// Whether instructions have to be executed one by one.
    pub(crate) fn needs_step(&self) -> bool {
        self.state.rflags.intersects(Rflags::TF | Rflags::RF)
            || self.state.dr7 & DR7_ENABLES != 0
            || self.is_blocked(SHADOW)
            || self.has_monitor_trap_flag()
    }

    /// Prepares for one instruction in step mode.
    pub(crate) fn begin_step(&mut self) -> Step {
        self.events.met = 0;
        self.events.keeps_rf = false;
        self.events.averts_step_trap = false;
        Step {
            flags: self.state.rflags,
        }
    }

    /// Finishes an instruction of step mode that has completed, or an iteration of it.
    pub(crate) fn end_step(&mut self, step: Step) {
        self.commit_shadow();
        self.note_monitor_trap();
        if step.flags.contains(Rflags::RF) && !self.events.keeps_rf && !self.events.is_mid_repeat {
            self.state.rflags.remove(Rflags::RF);
        }
        // Differs: IA32_DEBUGCTL.BTF is not honoured; the trap comes behind every instruction.
        if step.flags.contains(Rflags::TF) && !self.events.averts_step_trap {
            self.state.pending_debug |= SINGLE_STEP;
        }
        let met = core::mem::take(&mut self.events.met);
        if met & self.breakpoints_enabled() != 0 {
            self.state.pending_debug |= met | ENABLED_BREAKPOINT;
        }
    }

    /// An instruction has completed: the blocking that was in effect for it ends, the blocking
    /// that it started begins.
    pub(crate) fn commit_shadow(&mut self) {
        let shadow = core::mem::take(&mut self.events.shadow);
        self.state.interruptibility = self.state.interruptibility.difference(SHADOW) | shadow;
    }

    /// Returns the breakpoints that DR7 enables, locally or globally, as bits 3:0.
    fn breakpoints_enabled(&self) -> u64 {
        let pairs = self.state.dr7 | self.state.dr7 >> 1;
        (0..4).fold(0, |all, n| all | (pairs >> (2 * n) & 1) << n)
    }

    /// Returns the breakpoints, enabled or not, whose address and kind an access meets.
    fn breakpoints_met(&self, at: Linear, bytes: u64, watch: Watch) -> u64 {
        let mut met = 0;
        for n in 0..4_usize {
            let control = self.state.dr7 >> (16 + 4 * n);
            let length = LENGTHS[(control >> 2 & 3) as usize];
            let first = self.system.breakpoints[n] & !(length - 1);
            let is_near = at.0.wrapping_sub(first) < length || first.wrapping_sub(at.0) < bytes;
            if is_near && self.watches(control & 3, watch) {
                met |= 1 << n;
            }
        }
        met
    }

    /// Whether a breakpoint with this R/W field looks at this kind of access.
    fn watches(&self, read_write: u64, watch: Watch) -> bool {
        match (read_write, watch) {
            (0, Watch::Execute) | (1, Watch::Write) | (3, Watch::Read | Watch::Write) => true,
            (2, Watch::Port) => self.state.cr4.contains(Cr4::DE),
            _ => false,
        }
    }

    /// Notes a data access by the instruction in progress.
    #[inline(always)]
    pub(crate) fn note_data_access(&mut self, at: Linear, bytes: usize, access: Access) {
        if self.state.dr7 & DR7_ENABLES != 0 {
            self.note_watched(at, bytes, access);
        }
    }

    #[cold]
    fn note_watched(&mut self, at: Linear, bytes: usize, access: Access) {
        let watch = match access {
            Access::Read => Watch::Read,
            Access::Write => Watch::Write,
            Access::Execute => return,
        };
        self.events.met |= self.breakpoints_met(at, bytes as u64, watch);
    }

    /// Notes a port access by the instruction in progress: I/O breakpoints.
    pub(crate) fn note_port_access(&mut self, port: u16, bytes: usize) {
        if self.state.dr7 & DR7_ENABLES != 0 {
            let at = Linear(u64::from(port));
            self.events.met |= self.breakpoints_met(at, bytes as u64, Watch::Port);
        }
    }
}

/// What a breakpoint looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Watch {
    Execute,
    Read,
    Write,
    Port,
}

/// Lengths of the four values of DR7.LEN.
const LENGTHS: [u64; 4] = [1, 2, 8, 4];

pub(crate) const fn interrupt(vector: u8, kind: EventType) -> Event {
    Event {
        vector,
        kind,
        error_code: None,
        instruction_length: 0,
        payload: 0,
    }
}
