//! What VMX adds at instruction boundaries: MTF VM exits, the VMX-preemption timer, windows, and
//! interrupts that exit (SDM Vol. 3C, "Other Causes of VM Exits", "Monitor Trap Flag").

use vmx_model::arch::Activity;
use vmx_model::controls::ProcControls;
use vmx_model::exit::VmExit;
use vmx_model::exit_reason::ExitReason;
use vmx_model::intercept;

use super::RootSoftware;
use crate::events::Boundary;
use crate::stop::Stop;
use crate::{Cpu, Exec, Fault};

/// The vector of the interprocessor interrupt that a kick stands for: the highest one.
const RESCHEDULE_VECTOR: u8 = 0xff;

impl Cpu {
    /// Whether anything here can be due at the next instruction boundary.
    #[inline]
    pub(crate) fn has_vmx_boundary_work(&self) -> bool {
        self.vmx.is_non_root
            && (self.vmx.has_pending_mtf
                || self.vmx.apic.has_boundary_work()
                || self.has_preemption_timer_work()
                || self.vmx.has_window)
    }

    /// Whether instructions have to be executed one by one for the monitor trap flag.
    #[inline]
    pub(crate) fn has_monitor_trap_flag(&self) -> bool {
        self.vmx.is_non_root && self.vmx.has_monitor_trap_flag
    }

    /// An instruction has completed or an event has been delivered under the monitor trap flag.
    pub(crate) fn note_monitor_trap(&mut self) {
        if self.has_monitor_trap_flag() {
            self.vmx.has_pending_mtf = true;
        }
    }

    /// MTF VM exits have priority over debug traps.
    pub(crate) fn attend_to_monitor_trap(&mut self) -> Exec<Boundary> {
        if !self.vmx.is_non_root || !self.vmx.has_pending_mtf {
            return Ok(Boundary::Execute);
        }
        self.vmx.has_pending_mtf = false;
        Err(self.vm_exit(VmExit::new(ExitReason::MONITOR_TRAP_FLAG)))
    }

    /// The preemption timer comes after debug traps and before the NMI window.
    pub(crate) fn attend_to_preemption_timer(&mut self) -> Exec<Boundary> {
        let can_exit = self.state.activity != Activity::WaitForSipi;
        if self.vmx.is_non_root && can_exit && self.is_preemption_timer_expired() {
            return Err(self.vm_exit(VmExit::new(ExitReason::PREEMPTION_TIMER)));
        }
        Ok(Boundary::Execute)
    }

    /// The NMI window comes before NMIs.
    pub(crate) fn attend_to_nmi_window(&mut self) -> Exec<Boundary> {
        let (blocking, activity) = (self.state.interruptibility, self.state.activity);
        let is_open = self
            .guest_vmcs()
            .is_some_and(|vmcs| intercept::nmi_window_exits(vmcs, blocking, activity));
        if is_open {
            return Err(self.vm_exit(VmExit::new(ExitReason::NMI_WINDOW)));
        }
        Ok(Boundary::Execute)
    }

    /// The interrupt window comes before external interrupts.
    pub(crate) fn attend_to_interrupt_window(&mut self) -> Exec<Boundary> {
        let (blocking, activity) = (self.state.interruptibility, self.state.activity);
        let rflags = self.rflags();
        let is_open = self.guest_vmcs().is_some_and(|vmcs| {
            intercept::interrupt_window_exits(vmcs, rflags, blocking, activity)
        });
        if is_open {
            return Err(self.vm_exit(VmExit::new(ExitReason::INTERRUPT_WINDOW)));
        }
        Ok(Boundary::Execute)
    }

    /// Whether external interrupts cause VM exits.
    pub(crate) fn has_exiting_interrupts(&self) -> bool {
        self.guest_vmcs()
            .is_some_and(intercept::external_interrupt_exits)
    }

    /// An external interrupt that causes a VM exit does so whatever RFLAGS.IF says.
    ///
    /// # Errors
    /// The VM exit.
    pub(crate) fn attend_to_exiting_interrupt(&mut self) -> Exec<Boundary> {
        let state = &self.state;
        let (blocking, activity) = (state.interruptibility, state.activity);
        let rflags = self.rflags();
        let Some(vmcs) = self.guest_vmcs() else {
            return Ok(Boundary::Execute);
        };
        if !intercept::external_interrupt_exits(vmcs)
            || intercept::blocks_external_interrupt(vmcs, rflags, blocking, activity)
        {
            return Ok(Boundary::Execute);
        }
        let acknowledges = intercept::acknowledges_interrupt(vmcs);
        if !self.has_external_interrupt() {
            return Ok(Boundary::Execute);
        }
        let vector = if acknowledges {
            let is_by_apic = !self.has_interrupt_line();
            let vector = self.acknowledge_interrupt();
            if self.process_posted_interrupts(vector, is_by_apic)? {
                return Ok(Boundary::Delivered);
            }
            vector
        } else {
            None
        };
        Err(self.vm_exit(VmExit::by_external_interrupt(vector)))
    }

    /// What a kick by another thread comes to: for native software in VMX root operation it is an
    /// interprocessor interrupt, which takes its guest out of VMX non-root operation.
    pub(crate) fn kicked(&mut self) -> Fault {
        let is_native = self.vmx.root == RootSoftware::Native;
        let exits = is_native && self.has_exiting_interrupts();
        if !exits || self.state.activity == Activity::WaitForSipi {
            return self.stop(Stop::Kick);
        }
        let vector = self
            .guest_vmcs()
            .is_some_and(intercept::acknowledges_interrupt)
            .then_some(RESCHEDULE_VECTOR);
        self.vm_exit(VmExit::by_external_interrupt(vector))
    }

    /// Notes which of the controls that matter at boundaries are 1.
    pub(crate) fn note_boundary_controls(&mut self, proc: ProcControls) {
        let windows = ProcControls::INTERRUPT_WINDOW_EXITING | ProcControls::NMI_WINDOW_EXITING;
        self.vmx.has_window = proc.intersects(windows);
        self.vmx.has_monitor_trap_flag = proc.contains(ProcControls::MONITOR_TRAP_FLAG);
    }
}
