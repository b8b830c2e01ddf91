//! RESET and INIT.
//!
//! SDM Vol. 3C, "Restrictions on VMX Operation" (INIT is blocked in VMX root operation) and "Other
//! Causes of VM Exits".

use super::LogicalProcessor;
use crate::arch::Activity;
use crate::observer::{Completion, Operation};
use crate::precondition::VmxOperation;

/// What an INIT signal does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum InitOutcome {
    /// The processor goes through INIT.
    Init,
    /// The signal is blocked and stays pending.
    Pending,
    /// VM exit with basic exit reason 3.
    Exit,
}

impl LogicalProcessor {
    /// An INIT signal arrives at a processor in the given activity state.
    pub fn init(&mut self, activity: Activity) -> InitOutcome {
        let outcome = self.judge_init(activity);
        self.is_init_pending = outcome == InitOutcome::Pending;
        self.report_current(Operation::Init, Completion::Done);
        outcome
    }

    fn judge_init(&self, activity: Activity) -> InitOutcome {
        match (self.operation, activity) {
            // A VMX abort ends with RESET only.
            _ if self.abort.is_some() => InitOutcome::Pending,
            (VmxOperation::Outside, _) => InitOutcome::Init,
            (VmxOperation::NonRoot, Activity::Active | Activity::Hlt | Activity::Shutdown) => {
                InitOutcome::Exit
            }
            (VmxOperation::NonRoot, Activity::WaitForSipi) | (VmxOperation::Root, _) => {
                InitOutcome::Pending
            }
        }
    }

    /// Takes the pending INIT signal if it is not blocked any more: outside VMX operation it is an
    /// INIT, in VMX non-root operation a VM exit. To be asked after VMXOFF and after VM entry.
    pub fn take_pending_init(&mut self, activity: Activity) -> Option<InitOutcome> {
        let is_free = self.judge_init(activity) != InitOutcome::Pending;
        (self.is_init_pending && is_free).then(|| self.init(activity))
    }

    /// RESET: the processor is outside VMX operation; the VMCS data that it held are lost.
    pub fn reset(&mut self) {
        let before = self.current_pointer();
        self.current = None;
        self.registry.reset(self.id);
        self.operation = VmxOperation::Outside;
        self.vmxon_pointer = None;
        self.is_init_pending = false;
        self.abort = None;
        self.report(Operation::Reset, before, Completion::Done, None);
    }
}
