//! How a tool looks over the processor's shoulder.
//!
//! An [`Observer`] sees every VMX instruction, VM entry and VM exit of a logical processor as a
//! [`Transition`], and what it is told about accesses to memory and about the TLB. A processor
//! without one pays one comparison an instruction. The [`crate::sanitizer`] is an observer; so is
//! a trace.

use crate::addr::Hpa;
use crate::arch::ArchState;
use crate::event::Exception;
use crate::exit_reason::ExitReason;
use crate::outcome::VmxOutcome;
use crate::registry::CpuId;
use crate::vmcs::Vmcs;

/// What a logical processor did, with its operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[expect(
    missing_docs,
    reason = "the names are the mnemonics and their operands"
)]
pub enum Operation {
    Vmxon { pointer: Hpa },
    Vmxoff,
    Vmclear { pointer: Hpa },
    Vmptrld { pointer: Hpa },
    Vmptrst,
    Vmread { encoding: u64 },
    Vmwrite { encoding: u64, value: u64 },
    Vmlaunch,
    Vmresume,
    Vmcall,
    Vmfunc { eax: u32, ecx: u32 },
    Invept { kind: u64, descriptor: [u64; 2] },
    Invvpid { kind: u64, descriptor: [u64; 2] },
    VmExit { reason: u32 },
    Init,
    Reset,
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Completion {
    /// VMsucceed or VMfail.
    Outcome(VmxOutcome),
    /// VMsucceed, with what VMREAD read or VMPTRST stored.
    Value(u64),
    /// The instruction faulted.
    Fault(Exception),
    /// The instruction caused a VM exit with this basic exit reason.
    Exits(ExitReason),
    /// VM entry succeeded: the processor is in VMX non-root operation.
    Entered,
    /// VM entry failed with this exit reason (bit 31 set), host state was loaded.
    EntryFailed(u32),
    /// A VMX abort with this indicator.
    Aborted(u32),
    /// An event or VM exit was carried out.
    Done,
}

/// One step of a logical processor, as it is shown after it happened.
#[derive(Clone, Copy, Debug)]
pub struct Transition<'a> {
    /// The processor.
    pub cpu: CpuId,
    /// What was done.
    pub operation: Operation,
    /// The current VMCS before it.
    pub vmcs: Option<Hpa>,
    /// How it ended.
    pub completion: Completion,
    /// The values of the current VMCS after it.
    pub values: Option<&'a Vmcs>,
    /// For a VM entry: the state of the processor before it, where there is one (software that is
    /// native code has none).
    pub host: Option<&'a ArchState>,
}

/// Whether an access reads or writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum AccessKind {
    /// A load.
    Read,
    /// A store that is not locked.
    Write,
    /// A locked read-modify-write.
    LockedWrite,
}

/// An ordinary access of software to physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct MemoryAccess {
    /// The processor whose software accesses memory.
    pub cpu: CpuId,
    /// The first byte.
    pub address: Hpa,
    /// How many bytes.
    pub length_bytes: u64,
    /// Read or write.
    pub kind: AccessKind,
}

/// A translation that the TLB used although the paging structures do not back it any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct StaleTranslation {
    /// The processor that used it.
    pub cpu: CpuId,
    /// The VPID of its tag.
    pub vpid: u16,
    /// The EP4TA of its tag, if EPT was in use.
    pub ep4ta: Option<u64>,
    /// The guest-physical or, without EPT, linear address that was translated.
    pub address: u64,
}

/// Sees what logical processors do.
pub trait Observer: Send {
    /// A VMX instruction, VM entry, VM exit, INIT or RESET happened.
    fn transition(&mut self, transition: &Transition<'_>);

    /// What the processor does next is the doing of the software at this RIP; where that is native
    /// code, nobody says so.
    fn software_at(&mut self, cpu: CpuId, rip: u64) {
        let _ = (cpu, rip);
    }

    /// Whether the observer wants to be told of accesses to memory and of the use of translations:
    /// that costs the processor its fast ways to memory.
    fn watches_memory(&self) -> bool {
        false
    }

    /// Software accessed physical memory by ordinary instructions.
    fn memory_access(&mut self, access: &MemoryAccess) {
        let _ = access;
    }

    /// Software gave the page of physical memory at `page` to another use.
    fn memory_freed(&mut self, cpu: CpuId, page: Hpa) {
        let _ = (cpu, page);
    }

    /// The memory type (0 UC ... 6 WB) with which software maps the page at `page`, when it is
    /// used for a VMX structure.
    fn memory_type(&mut self, cpu: CpuId, page: Hpa, memory_type: u8) {
        let _ = (cpu, page, memory_type);
    }

    /// The TLB used a stale translation.
    fn stale_translation(&mut self, translation: &StaleTranslation) {
        let _ = translation;
    }
}
