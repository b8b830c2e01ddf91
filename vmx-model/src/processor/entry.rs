//! VMLAUNCH and VMRESUME: from VMX root to VMX non-root operation.
//!
//! SDM Vol. 3C, "VMLAUNCH/VMRESUME" of the chapter "VMX Instruction Reference" and the chapter "VM
//! Entries". The checks and the state to load are decided by [`crate::entry`].

use super::{LogicalProcessor, Registers, VmxoffDetection};
use crate::arch::{ArchState, Interruptibility};
use crate::checks::EntryEnvironment;
use crate::entry::{self, EntryFailure, EntryRest};
use crate::error;
use crate::exit::{self, VmExit, VmxAbort};
use crate::exit_reason::{ENTRY_FAILURE, ExitReason};
use crate::field::Field;
use crate::memory::PhysicalMemory;
use crate::msr_area::{self, MsrArea};
use crate::observer::{Completion, Operation};
use crate::outcome::VmxOutcome;
use crate::precondition::{Instruction, NotExecuted, VmxOperation};
use crate::registry::LaunchState;

/// What VMLAUNCH or VMRESUME comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum EntryOutcome {
    /// VMfail: the next instruction is executed.
    Fail(VmxOutcome),
    /// VM entry failed while or after guest state was checked or loaded: host state was loaded, as
    /// by a VM exit.
    Failed(EntryFailed),
    /// As `Failed`, but the loading of host state ended in a VMX abort: the processor is in
    /// shutdown until RESET.
    Aborted(VmxAbort),
    /// The processor is in VMX non-root operation and guest state was loaded. This remains to be
    /// done, such as the injection of an event.
    Entered(EntryRest),
}

/// A failed VM entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct EntryFailed {
    /// The exit reason, with bit 31 set.
    pub reason: u32,
    /// The exit qualification.
    pub qualification: u64,
}

impl LogicalProcessor {
    /// VMLAUNCH by a processor with these registers. Guest state is loaded into them.
    ///
    /// # Errors
    ///
    /// Outside VMX operation #UD; in VMX non-root operation a VM exit.
    pub fn vmlaunch(
        &mut self,
        memory: &mut dyn PhysicalMemory,
        registers: &mut dyn Registers,
    ) -> Result<EntryOutcome, NotExecuted> {
        self.require_root(Instruction::Vmlaunch, Operation::Vmlaunch)?;
        Ok(self.vm_entry(Operation::Vmlaunch, LaunchState::Clear, memory, registers))
    }

    /// VMRESUME by a processor with these registers. Guest state is loaded into them.
    ///
    /// # Errors
    ///
    /// Outside VMX operation #UD; in VMX non-root operation a VM exit.
    pub fn vmresume(
        &mut self,
        memory: &mut dyn PhysicalMemory,
        registers: &mut dyn Registers,
    ) -> Result<EntryOutcome, NotExecuted> {
        self.require_root(Instruction::Vmresume, Operation::Vmresume)?;
        Ok(self.vm_entry(
            Operation::Vmresume,
            LaunchState::Launched,
            memory,
            registers,
        ))
    }

    fn vm_entry(
        &mut self,
        operation: Operation,
        needed: LaunchState,
        memory: &mut dyn PhysicalMemory,
        registers: &mut dyn Registers,
    ) -> EntryOutcome {
        if self.observer.is_none() {
            return self.enter(needed, memory, registers);
        }
        let host = registers.state().clone();
        let outcome = self.enter(needed, memory, registers);
        self.report_entry(operation, &outcome, &host);
        outcome
    }

    fn enter(
        &mut self,
        needed: LaunchState,
        memory: &mut dyn PhysicalMemory,
        registers: &mut dyn Registers,
    ) -> EntryOutcome {
        if let Err(failed) = self.check_launch(needed, registers.state()) {
            return EntryOutcome::Fail(failed);
        }
        match self.check_entry(registers.state(), memory) {
            Ok(()) => self.load_guest(memory, registers),
            Err(failure) => self.fail_entry(failure, memory, registers),
        }
    }

    /// The checks before those of the VMCS: "Basic VM-Entry Checks".
    fn check_launch(&mut self, needed: LaunchState, state: &ArchState) -> Result<(), VmxOutcome> {
        let Some(current) = &self.current else {
            return Err(VmxOutcome::FailInvalid);
        };
        if current.header.is_shadow() {
            return Err(VmxOutcome::FailInvalid);
        }
        let launch = current.flags.launch();
        let is_left = current.flags.is_left_by_vmxoff();
        if state.interruptibility.contains(Interruptibility::MOV_SS) {
            return Err(self.fail(error::ENTRY_MOVSS_BLOCKING));
        }
        match needed {
            LaunchState::Launched if launch != needed => {
                Err(self.fail(error::VMRESUME_NON_LAUNCHED))
            }
            LaunchState::Launched
                if is_left && self.vmxoff_detection == VmxoffDetection::Noticed =>
            {
                Err(self.fail(error::VMRESUME_AFTER_VMXOFF))
            }
            _ if launch != needed => Err(self.fail(error::VMLAUNCH_NON_CLEAR)),
            _ => Ok(()),
        }
    }

    fn check_entry(
        &mut self,
        state: &ArchState,
        memory: &dyn PhysicalMemory,
    ) -> Result<(), EntryFailure> {
        let current = self.current.as_mut().expect("the launch state was checked");
        let environment = EntryEnvironment {
            profile: &self.profile,
            state,
            current_vmcs: current.pointer,
            memory,
        };
        entry::check_entry(&mut current.values, environment)
    }

    fn load_guest(
        &mut self,
        memory: &mut dyn PhysicalMemory,
        registers: &mut dyn Registers,
    ) -> EntryOutcome {
        let current = self.current.as_ref().expect("the launch state was checked");
        let vmcs = &*current.values;
        let rest = entry::load_guest_state(registers.state_mut(), vmcs, memory);
        registers.state_is_loaded();
        let msrs = MsrArea::entry_load(vmcs);
        if !msrs.is_empty()
            && let Err(entry) = msr_area::load(msrs, &self.profile.caps, memory, registers)
        {
            return self.fail_entry(EntryFailure::MsrLoad(entry), memory, registers);
        }
        current.flags.set_launch(LaunchState::Launched);
        self.operation = VmxOperation::NonRoot;
        EntryOutcome::Entered(rest)
    }

    /// VMfail, or "VM-Entry Failures During or After Loading Guest State": then host state is loaded
    /// as by a VM exit.
    #[cold]
    fn fail_entry(
        &mut self,
        failure: EntryFailure,
        memory: &mut dyn PhysicalMemory,
        registers: &mut dyn Registers,
    ) -> EntryOutcome {
        let current = self.current.as_mut().expect("the launch state was checked");
        let vmcs = &mut *current.values;
        failure.record(vmcs);
        let exit = match (failure.outcome(), failure) {
            (Some(outcome), _) => return EntryOutcome::Fail(outcome),
            (None, EntryFailure::MsrLoad(_)) => VmExit::new(ExitReason::ENTRY_FAIL_MSR_LOADING),
            (None, _) => VmExit::new(ExitReason::ENTRY_FAIL_GUEST_STATE),
        };
        let failed = EntryFailed {
            reason: ENTRY_FAILURE | u32::from(exit.reason.0),
            qualification: vmcs.get(Field::EXIT_QUALIFICATION),
        };
        let profile = &self.profile;
        let loaded = exit::load_host_state(registers.state_mut(), vmcs, &exit, profile, memory)
            .map(|()| registers.state_is_loaded())
            .and_then(|()| self.load_exit_msrs(memory, registers));
        match loaded {
            Ok(()) => EntryOutcome::Failed(failed),
            Err(abort) => {
                self.shut_down(abort, memory);
                EntryOutcome::Aborted(abort)
            }
        }
    }

    fn report_entry(&mut self, operation: Operation, outcome: &EntryOutcome, host: &ArchState) {
        let completion = match outcome {
            EntryOutcome::Fail(outcome) => Completion::Outcome(*outcome),
            EntryOutcome::Failed(failed) => Completion::EntryFailed(failed.reason),
            EntryOutcome::Aborted(abort) => Completion::Aborted(*abort as u32),
            EntryOutcome::Entered(_) => Completion::Entered,
        };
        self.report(operation, self.current_pointer(), completion, Some(host));
    }
}
