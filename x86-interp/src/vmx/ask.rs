//! Asking the model whether an instruction or an event leaves the guest (SDM Vol. 3C, chapter "VMX
//! Non-Root Operation").
//!
//! Handlers ask when the faults that have priority over the VM exit are out of the way. In VMX root
//! operation and outside VMX operation the answer is always "execute".

use vmx_model::event::{Event, EventType, Exception};
use vmx_model::exit::VmExit;
use vmx_model::exit_reason::ExitReason;
use vmx_model::intercept::bitmap::{self, IoAccess};
use vmx_model::intercept::{self, Disposition, Instruction, TaskSwitchSource};
use vmx_model::vmcs::Vmcs;

use super::info;
use crate::insn::Insn;
use crate::{Cpu, Exec};

/// VM-exit interruption information: NMI unblocking due to IRET.
const NMI_UNBLOCKING: u32 = 1 << 12;

impl Cpu {
    /// Returns the VMCS that controls the guest, in VMX non-root operation.
    #[inline]
    pub(crate) fn guest_vmcs(&self) -> Option<&Vmcs> {
        if self.is_non_root() {
            self.processor()?.current_vmcs()
        } else {
            None
        }
    }

    /// Asks about an instruction whose VM exit has neither qualification nor information.
    ///
    /// # Errors
    /// The VM exit, or #UD for what is not enabled.
    pub(crate) fn ask(&mut self, instruction: Instruction, insn: &Insn) -> Exec {
        self.ask_about(instruction, insn, 0, 0)
    }

    /// Asks about an instruction whose VM exit has this qualification and information.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub(crate) fn ask_about(
        &mut self,
        instruction: Instruction,
        insn: &Insn,
        qualification: u64,
        information: u32,
    ) -> Exec {
        let Some(vmcs) = self.guest_vmcs() else {
            return Ok(());
        };
        match intercept::instruction(vmcs, instruction) {
            Disposition::Execute => Ok(()),
            Disposition::Undefined => Err(Exception::UD.into()),
            Disposition::Exit(reason) => {
                Err(self.exit_by(reason, insn, qualification, information))
            }
        }
    }

    /// Asks about an instruction whose qualification is its displacement and whose information
    /// describes its memory operand: INVPCID, LGDT and its like, LLDT and its like.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub(crate) fn ask_about_operand(
        &mut self,
        instruction: Instruction,
        insn: &Insn,
        information: fn(&Insn) -> u32,
    ) -> Exec {
        if !self.is_non_root() {
            return Ok(());
        }
        self.ask_about(
            instruction,
            insn,
            info::displacement(insn),
            information(insn),
        )
    }

    /// Records the VM exit of `insn`.
    pub(crate) fn exit_by(
        &mut self,
        reason: ExitReason,
        insn: &Insn,
        qualification: u64,
        information: u32,
    ) -> crate::Fault {
        let exit = VmExit::new(reason)
            .of_length(insn.length)
            .qualified(qualification)
            .informed(information);
        self.vm_exit(exit)
    }

    /// Asks about a port access; `linear` is the address of the memory operand of a string
    /// instruction.
    ///
    /// # Errors
    /// The VM exit.
    pub(crate) fn ask_about_port(
        &mut self,
        access: &IoAccess,
        insn: &Insn,
        linear: Option<u64>,
    ) -> Exec {
        let Some(vmcs) = self.guest_vmcs() else {
            return Ok(());
        };
        if !bitmap::io_exits(vmcs, &&*self.phys, access.port, access.bytes) {
            return Ok(());
        }
        let mut exit = VmExit::new(ExitReason::IO_INSTRUCTION)
            .of_length(insn.length)
            .qualified(access.qualification());
        if let Some(linear) = linear {
            exit = exit.at_linear(linear).informed(info::string_port(insn));
        }
        Err(self.vm_exit(exit))
    }

    /// Asks about RDMSR.
    ///
    /// # Errors
    /// The VM exit.
    pub(crate) fn ask_about_rdmsr(&mut self, index: u32, insn: &Insn) -> Exec {
        self.ask_about_msr(bitmap::rdmsr_exits, ExitReason::RDMSR, index, insn)
    }

    /// Asks about WRMSR.
    ///
    /// # Errors
    /// The VM exit.
    pub(crate) fn ask_about_wrmsr(&mut self, index: u32, insn: &Insn) -> Exec {
        self.ask_about_msr(bitmap::wrmsr_exits, ExitReason::WRMSR, index, insn)
    }

    fn ask_about_msr(
        &mut self,
        exits: fn(&Vmcs, &dyn vmx_model::memory::PhysicalMemory, u32) -> bool,
        reason: ExitReason,
        index: u32,
        insn: &Insn,
    ) -> Exec {
        match self.guest_vmcs() {
            Some(vmcs) if exits(vmcs, &&*self.phys, index) => Err(self.exit_by(reason, insn, 0, 0)),
            _ => Ok(()),
        }
    }

    /// #UD for an instruction that is not enabled in VMX non-root operation; this comes before its
    /// other faults.
    ///
    /// # Errors
    /// #UD.
    pub(crate) fn require_enabled(&self, instruction: Instruction) -> Exec {
        match self
            .guest_vmcs()
            .map(|vmcs| intercept::instruction(vmcs, instruction))
        {
            Some(Disposition::Undefined) => Err(Exception::UD.into()),
            _ => Ok(()),
        }
    }

    /// #UD for XSAVES and XRSTORS where they are not enabled in VMX non-root operation.
    ///
    /// # Errors
    /// #UD.
    pub(crate) fn require_xsaves(&self) -> Exec {
        let answer = self
            .guest_vmcs()
            .map(|v| intercept::xsaves(v, ExitReason::XSAVES, 0, 0));
        match answer {
            Some(Disposition::Undefined) => Err(Exception::UD.into()),
            _ => Ok(()),
        }
    }

    /// Asks about XSAVES or XRSTORS.
    ///
    /// # Errors
    /// The VM exit.
    pub(crate) fn ask_about_xsaves(&mut self, reason: ExitReason, insn: &Insn) -> Exec {
        let (requested, xss) = (self.edx_eax(), self.msrs.xss);
        let Some(vmcs) = self.guest_vmcs() else {
            return Ok(());
        };
        match intercept::xsaves(vmcs, reason, requested, xss) {
            Disposition::Exit(reason) => {
                let qualification = info::displacement(insn);
                Err(self.exit_by(reason, insn, qualification, info::memory_operand(insn)))
            }
            _ => Ok(()),
        }
    }

    /// Asks about PAUSE.
    ///
    /// # Errors
    /// The VM exit.
    pub(crate) fn ask_about_pause(&mut self, insn: &Insn) -> Exec {
        if !self.is_non_root() {
            return Ok(());
        }
        let (cpl, tsc) = (self.cpl(), self.clock.tsc(self.retired));
        let mut pause_loop = self.vmx.pause_loop;
        let exits = self
            .guest_vmcs()
            .is_some_and(|v| pause_loop.pause_exits(v, cpl, tsc));
        self.vmx.pause_loop = pause_loop;
        if exits {
            Err(self.exit_by(ExitReason::PAUSE, insn, 0, 0))
        } else {
            Ok(())
        }
    }

    /// Whether IRET ends the blocking of NMIs, or of virtual NMIs.
    pub(crate) fn unblocks_nmi(&self) -> bool {
        let unblocks = self.guest_vmcs().map(intercept::iret);
        unblocks != Some(intercept::IretUnblocks::Nothing)
    }

    /// Asks about an event that is about to be delivered.
    ///
    /// # Errors
    /// The VM exit that it causes instead.
    pub(crate) fn ask_about_event(&mut self, event: &Event) -> Exec {
        let delivering = self.delivering;
        let exit = self
            .guest_vmcs()
            .and_then(|v| intercept::event_exit(v, event, delivering));
        match exit {
            None => Ok(()),
            Some(mut exit) => {
                let is_by_iret = core::mem::take(&mut self.events.is_nmi_unblocked);
                if is_by_iret && delivering.is_none() && event.kind != EventType::Nmi {
                    exit.interruption.0 |= NMI_UNBLOCKING;
                }
                Err(self.vm_exit(exit))
            }
        }
    }

    /// Asks about a task switch: in VMX non-root operation it always causes a VM exit.
    ///
    /// # Errors
    /// The VM exit.
    pub(crate) fn ask_about_task_switch(
        &mut self,
        tss_selector: u16,
        source: TaskSwitchSource,
    ) -> Exec {
        if !self.is_non_root() {
            return Ok(());
        }
        // For a task gate in the IDT the length is that of the INT instruction, if it is one: it
        // comes from the event in delivery.
        let length = match source {
            TaskSwitchSource::TaskGate => 0,
            _ => self.next_rip.wrapping_sub(self.state.rip) as u8,
        };
        let qualification = intercept::task_switch_qualification(tss_selector, source);
        let exit = VmExit::new(ExitReason::TASK_SWITCH)
            .of_length(length)
            .qualified(qualification);
        Err(self.vm_exit(exit))
    }
}
