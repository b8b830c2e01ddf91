//! Micro-ops: what a block is made of.
//!
//! A [`Uop`] is 32 bytes with the address of its handler first. A handler does its work and goes
//! on to the next one: by a call in tail position, which the optimiser turns into a jump, or by
//! returning it to a loop (`build.rs` selects; the macro `next!` is the only place that knows).
//! A handler that has to leave the run returns null.
//!
//! While handlers run, RIP is not stored: each micro-op knows its instruction's offset from the
//! block's start, and the header in front of the block's first micro-op knows the block.
//!
//! Every hot handler has a way out: where it cannot do its work fast (a TLB miss, a segment that
//! is not what it expects) it hands over to [`plain::run_plain`], which executes the whole
//! instruction by its plain handler. A hot handler therefore never raises a fault, and changes
//! nothing but the spare register before it knows that it will complete.
//!
//! # Safety
//! The contract of every handler in this module and below, stated once: `cpu` points to a
//! processor that nothing else accesses during the call, and `op` to a micro-op inside a block
//! that this processor's cache owns; blocks are freed by [`crate::Cpu::run`] only, never while a
//! handler runs. Register fields hold offsets below `18 * 8`. Guest memory is accessed through
//! host pointers that a valid TLB entry holds, inside the one page of the entry.
#![expect(unsafe_code, reason = "micro-op handlers and their dispatch")]

pub(crate) mod alu;
pub(crate) mod bmi;
pub(crate) mod branch;
pub(crate) mod moves;
pub(crate) mod operand;
pub(crate) mod plain;
pub(crate) mod select;
#[cfg(target_arch = "x86_64")]
pub(crate) mod simd;
pub(crate) mod stack;
pub(crate) mod x87;

use std::sync::atomic::AtomicU64;

use crate::Cpu;
use crate::block::Block;
use crate::insn::RegisterOffset;

/// The code of a micro-op.
pub(crate) type Handler = unsafe fn(*mut Cpu, *const Uop) -> *const Uop;

/// A micro-op.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Uop {
    pub(crate) handler: Handler,
    /// Displacement or absolute offset; also a 64-bit immediate.
    pub(crate) disp: u64,
    pub(crate) imm: i32,
    pub(crate) dst: RegisterOffset,
    pub(crate) src: RegisterOffset,
    pub(crate) base: RegisterOffset,
    pub(crate) index: RegisterOffset,
    pub(crate) scale_shift: u8,
    /// This micro-op's slot, counted from the block's header.
    pub(crate) slot: u8,
    /// The number of its instruction in the block.
    pub(crate) insn: u8,
    /// How many micro-ops further on the next instruction's begin.
    pub(crate) rest: u8,
    /// Offset of the instruction behind this one from the block's start.
    pub(crate) next_offset: u16,
    /// What is special to one handler.
    pub(crate) detail: u16,
}

/// What lies in front of a block's first micro-op.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Header {
    /// Number of instructions in the block.
    pub(crate) count: i64,
    /// The block may be entered while `generation + Hot::epoch` equals this.
    pub(crate) stamp: u64,
    /// Code generation of the block's page.
    pub(crate) generation: *const AtomicU64,
    pub(crate) block: *const Block,
}

/// The successors of a block that ends in a direct branch; lies behind the branch's micro-op.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Link {
    /// First micro-op of the branch target; null while unknown.
    pub(crate) taken: *const Uop,
    /// First micro-op of the code behind the branch; null while unknown.
    pub(crate) fall: *const Uop,
    pub(crate) taken_rip: u64,
    pub(crate) fall_rip: u64,
}

/// 32 bytes of a block.
#[derive(Clone, Copy)]
pub(crate) union Slot {
    pub(crate) uop: Uop,
    pub(crate) header: Header,
    pub(crate) link: Link,
}

const _: () = assert!(size_of::<Slot>() == 32);

/// Why handlers returned to the run loop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Left {
    /// `state.rip` says where to go on.
    #[default]
    Onward,
    /// The instruction at `state.rip` did not complete; `Engine::fault` says why.
    Fault,
}

/// Goes on to the micro-op `$op`; inside an `unsafe` block.
macro_rules! next {
    ($cpu:expr, $op:expr) => {{
        let op: *const $crate::uop::Uop = $op;
        #[cfg(tail_dispatch)]
        return ((*op).handler)($cpu, op);
        #[cfg(not(tail_dispatch))]
        return op;
    }};
}
pub(crate) use next;

/// Executes the whole instruction of `$op` by its plain handler instead, and goes on behind it.
macro_rules! bail {
    ($cpu:expr, $op:expr) => {
        return $crate::uop::plain::bail($cpu, $op)
    };
}
pub(crate) use bail;

/// Enters the block whose first micro-op is `$entry`, or leaves the run at its start if the budget
/// does not allow it, somebody wants attention, or its code may have changed.
macro_rules! enter {
    ($cpu:expr, $entry:expr) => {{
        let entry: *const $crate::uop::Uop = $entry;
        let header = entry.cast::<$crate::uop::Header>().sub(1);
        let hot = &raw mut (*$cpu).hot;
        let budget = (*hot).budget.wrapping_sub((*header).count);
        let generation = (*(*header).generation).load(core::sync::atomic::Ordering::Relaxed);
        if budget < (*hot).limit.load(core::sync::atomic::Ordering::Relaxed)
            || generation.wrapping_add((*hot).epoch) != (*header).stamp
        {
            return $crate::uop::branch::reconsider($cpu, entry);
        }
        (*hot).budget = budget;
        $crate::uop::next!($cpu, entry)
    }};
}
pub(crate) use enter;

/// The host address of a `$W` at linear address `$va` through the TLB tag `$tag`; bails out if the
/// tag does not fit.
macro_rules! host {
    ($cpu:expr, $op:expr, $va:expr, $W:ty, $tag:ident) => {{
        let va: u64 = $va;
        let entry: *const $crate::mem::tlb::Entry = (*$cpu).tlb.entry(va);
        if (*entry).$tag != $crate::mem::tlb::tag::<$W>(va, (*$cpu).hot.context) {
            $crate::uop::bail!($cpu, $op);
        }
        // Not optimised away: a fault of the host at the access looks for it.
        (&raw mut (*$cpu).hot.at.0).write_volatile($op);
        va.wrapping_add((*entry).addend)
    }};
}
pub(crate) use host;

/// Runs micro-ops from `op` until one leaves the run.
///
/// # Safety
/// See the module.
#[inline(always)]
pub(crate) unsafe fn dispatch(cpu: *mut Cpu, op: *const Uop) {
    #[cfg(tail_dispatch)]
    // SAFETY: `uop`, "Safety".
    unsafe {
        ((*op).handler)(cpu, op);
    }
    #[cfg(not(tail_dispatch))]
    {
        let mut op = op;
        while !op.is_null() {
            // SAFETY: `uop`, "Safety".
            op = unsafe { ((*op).handler)(cpu, op) };
        }
    }
}

/// Returns the header of the block that `op` belongs to.
///
/// # Safety
/// See the module.
#[inline(always)]
pub(crate) unsafe fn header(op: *const Uop) -> *const Header {
    // SAFETY: slot 0 of the block is its header.
    unsafe { op.sub(usize::from((*op).slot)).cast() }
}

#[cfg(test)]
mod tail_calls;
#[cfg(test)]
mod tests;
