//! What KVM_RUN has to finish before the guest goes on: the access that user space was asked for
//! (`vcpu->arch.complete_userspace_io`).

use serde::{Deserialize, Serialize};

/// One access to a port or to memory without RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct IoAccess {
    pub(crate) space: IoSpace,
    /// Port number or guest-physical address.
    pub(crate) address: u64,
    /// Bytes.
    pub(crate) size: u8,
    pub(crate) data: u64,
}

/// Ports or memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum IoSpace {
    Port,
    Memory,
}

/// What is left to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Completion {
    /// Nothing.
    #[default]
    None,
    /// OUT: step over the instruction, if RIP is still on it.
    PortOut { linear_rip: u64 },
    /// IN: take the value, and step over the instruction, if RIP is still on it.
    PortIn { linear_rip: u64, size: u8 },
    /// The emulator reads: give it the value, and go on with the instruction. Of a port as many
    /// values as were asked for.
    EmulatedRead { access: IoAccess, count: u32 },
    /// The emulator has written: the rest of the writes follows.
    EmulatedWrite,
    /// RDMSR: take the value or raise #GP.
    ReadMsr,
    /// WRMSR: step over or raise #GP.
    WriteMsr,
    /// VMCALL: take the result and step over.
    Hypercall,
}

/// An instruction that the emulator is in the middle of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Emulation {
    /// What its reads gave so far, in order.
    pub(crate) replies: Vec<u64>,
    /// Its writes that user space has not seen yet.
    pub(crate) writes: Vec<IoAccess>,
}
