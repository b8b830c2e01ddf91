//! Why an instruction did not complete.

use vmx_model::event::Exception;

/// Result of executing (a part of) an instruction: `?` is fault delivery.
pub type Exec<T = ()> = Result<T, Fault>;

/// What ended an instruction before it completed. Whoever returns one has left the architectural
/// state as it was before the instruction (or, for a repeated string instruction, as it was after
/// the last completed iteration).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The instruction raises an exception.
    Exception(Exception),
    /// The instruction causes a VM exit; its description lies in `Cpu::pending_exit`.
    VmExit,
    /// The run loop has to return to its caller; the reason lies in `Cpu::pending_stop`.
    Stop,
}

impl From<Exception> for Fault {
    fn from(e: Exception) -> Self {
        Self::Exception(e)
    }
}
