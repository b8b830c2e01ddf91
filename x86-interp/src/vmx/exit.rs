//! VM exits: from the recorded exit to host state (SDM Vol. 3C, chapter "VM Exits").

use vmx_model::arch::ArchState;
use vmx_model::controls::ExitControls;
use vmx_model::exit::VmExit;
use vmx_model::exit_reason::ExitReason;
use vmx_model::processor::Registers;

use super::{Attached, RootSoftware};
use crate::stop::Stop;
use crate::{Cpu, Exec};

/// Whoever passes a processor on as registers has brought its state up to date.
impl Registers for Cpu {
    fn state(&self) -> &ArchState {
        &self.state
    }

    fn state_mut(&mut self) -> &mut ArchState {
        &mut self.state
    }

    fn state_is_loaded(&mut self) {
        self.gpr[4] = self.state.rsp;
        self.set_rflags(self.state.rflags);
    }
}

impl Cpu {
    /// Leaves VMX non-root operation at this instruction boundary, as for an external interrupt, but
    /// also where one is held back (blocking by STI or by MOV SS).
    pub fn force_vm_exit(&mut self) {
        if self.is_non_root() {
            let _ = self.vm_exit(VmExit::new(ExitReason::EXTERNAL_INTERRUPT));
            let _ = self.complete_vm_exit();
            self.pending_stop = None;
        }
    }

    /// Carries out the VM exit that was recorded with [`crate::Fault::VmExit`].
    ///
    /// # Errors
    /// [`crate::Fault::Stop`] if the software in VMX root operation is native code, or after a VMX abort.
    pub(crate) fn complete_vm_exit(&mut self) -> Exec {
        self.tell_where_software_is();
        let (Some(mut exit), Some(mut attached)) =
            (self.vmx.pending_exit.take(), self.vmx.attached.take())
        else {
            return Ok(());
        };
        let Attached { processor, memory } = &mut attached;
        let saves_timer = processor.current_vmcs().is_some_and(|vmcs| {
            vmcs.exit()
                .contains(ExitControls::SAVE_VMX_PREEMPTION_TIMER_VALUE)
        });
        if saves_timer {
            exit.preemption_timer = self.preemption_timer_value();
        }
        let delivering = self.delivering.take();
        exit.idt_vectoring = None;
        if let Some(event) = delivering.filter(|_| exit.interrupts_delivery()) {
            if exit.instruction_length == 0 {
                exit.instruction_length = event.instruction_length;
            }
            exit.idt_vectoring = Some(event);
        }
        self.bring_state_up_to_date();
        let done = processor.vm_exit(&exit, &mut &**memory, self);
        self.vmx.attached = Some(attached);
        self.enter_root();
        match (done, self.vmx.root) {
            (Err(abort), _) => Err(self.stop(Stop::VmxAbort(abort as u32))),
            (Ok(()), RootSoftware::Native) => Err(self.stop(Stop::VmExit)),
            (Ok(()), RootSoftware::Guest) => Ok(()),
        }
    }
}
