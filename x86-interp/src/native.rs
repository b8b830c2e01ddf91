//! What native software does with a processor besides running it: a hypervisor in the host program
//! that uses one as its instruction emulator, or executes INVEPT and INVVPID on one.

use vmx_model::event::Exception;
use vmx_model::processor::Invalidation;

use crate::stop::Stop;
use crate::{Cpu, Fault};

/// Why an instruction that was executed alone did not complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotCompleted {
    /// It raised an exception, which was not delivered.
    Exception(Exception),
    /// The processor has to stop: a device suspends the access, or the instruction is not
    /// implemented.
    Stop(Stop),
}

impl Cpu {
    /// Executes the instruction at RIP by its plain handler, outside any run: events are not looked
    /// for, and what it raises is not delivered.
    ///
    /// # Errors
    /// Why it did not complete; a repeated string instruction is at its last completed iteration.
    pub fn execute_one(&mut self) -> Result<(), NotCompleted> {
        self.outside_may_have_written();
        self.execute_plain().map_err(|fault| match fault {
            Fault::Exception(exception) => NotCompleted::Exception(exception),
            Fault::VmExit => NotCompleted::Stop(Stop::VmExit),
            Fault::Stop => NotCompleted::Stop(self.take_stop()),
        })
    }

    /// Drops the translations that INVEPT or INVVPID, executed by software in VMX root operation,
    /// names.
    pub fn drop_translations(&mut self, which: Invalidation) {
        match which {
            Invalidation::SingleContextEpt { ep4ta } => self.note_invept(Some(ep4ta)),
            Invalidation::AllContextsEpt => self.note_invept(None),
            _ => {}
        }
        match which {
            Invalidation::SingleContextEpt { ep4ta } => self.flush_tlb_ep4ta(ep4ta),
            Invalidation::IndividualAddress { address, .. } => self.flush_tlb_page(address),
            Invalidation::SingleContext { vpid }
            | Invalidation::SingleContextRetainingGlobals { vpid } => self.flush_tlb_vpid(vpid),
            Invalidation::AllContextsEpt | Invalidation::AllContexts => self.flush_tlb_all(),
        }
    }
}
