//! Why [`crate::Cpu::run`] returned.

use vmx_model::addr::Hpa;

/// Why the processor stopped running and handed control to the host program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Stop {
    /// The instruction budget is used up, or the time that so many instructions take, by repeated
    /// string instructions or by events whose delivery faults.
    Budget,
    /// Another thread (or this one, earlier) asked for the processor's attention.
    Kick,
    /// A VM exit completed and the software in VMX root operation is native code: the VMCS holds
    /// the exit information.
    VmExit,
    /// The processor is halted, waits for a startup IPI, or otherwise cannot go on without an
    /// event.
    Halt,
    /// The processor waits at MWAIT: [`crate::Cpu::set_waits_at_mwait`].
    Wait,
    /// The processor is in the shutdown state (triple fault outside VMX non-root operation).
    Shutdown,
    /// The bus asked to be called again later; the instruction has not completed.
    Suspended,
    /// The backing host memory of a physical page cannot be accessed.
    HostFault(Hpa),
    /// A VMX abort happened, with this indicator (SDM Vol. 3C, "VMX Aborts").
    VmxAbort(u32),
    /// An instruction that the processor's CPUID profile offers but this crate does not implement.
    Unimplemented(Unimplemented),
}

/// The instruction behind [`Stop::Unimplemented`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unimplemented {
    /// RIP of the instruction.
    pub rip: u64,
    /// Its bytes; the first `length` count.
    pub bytes: [u8; 15],
    /// Length in bytes.
    pub length: u8,
}
