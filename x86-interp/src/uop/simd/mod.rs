//! Vector registers: the hot forms of SSE and SSE2, and ([`vex`]) of AVX, AVX2 and FMA.
//!
//! A block holds them only if CR0 and CR4 allow SSE (`CodeMode::has_sse`), so no handler asks. The
//! register fields of their micro-ops are register numbers. What needs more than the common case
//! (a misaligned operand, an exception flag that is not yet set, a denormal number, a NaN) goes to
//! the plain handler.

pub(crate) mod float;
pub(crate) mod integer;
pub(crate) mod moves;
pub(crate) mod vex;

use core::arch::x86_64::__m128i;

use super::Handler;
use crate::Cpu;
use crate::insn::RegisterOffset;
use crate::mem::tlb::Unaligned;

/// The handlers of an operation: its source a register; memory, by kind of address.
#[derive(Clone, Copy)]
pub(crate) struct Forms {
    pub(crate) register: Handler,
    pub(crate) memory: [Handler; 3],
    /// Size of the operand in memory.
    pub(crate) bytes: usize,
}

/// One handler for each kind of address.
macro_rules! kinds {
    ($($f:ident)::+ $(, $x:ty)*) => {
        [$($f)::+::<$($x,)* 0>, $($f)::+::<$($x,)* 1>, $($f)::+::<$($x,)* 2>]
    };
}
use kinds;

/// Where a vector register begins.
///
/// # Safety
/// `uop`, "Safety"; `number` is below 32.
#[inline(always)]
unsafe fn place(cpu: *mut Cpu, number: RegisterOffset) -> *mut [u64; 8] {
    // SAFETY: the register is one of the processor's.
    unsafe {
        let first = (&raw mut (*cpu).fpu.vector).cast::<[u64; 8]>();
        first.add(usize::from(number))
    }
}

/// Reads an XMM register.
///
/// # Safety
/// As [`place`].
#[inline(always)]
unsafe fn get(cpu: *mut Cpu, number: RegisterOffset) -> __m128i {
    // SAFETY: as in `place`.
    unsafe { (*place(cpu, number).cast::<Unaligned<__m128i>>()).0 }
}

/// Writes an XMM register; the rest of the YMM register stays.
///
/// # Safety
/// As [`place`].
#[inline(always)]
unsafe fn set(cpu: *mut Cpu, number: RegisterOffset, value: __m128i) {
    // SAFETY: as in `place`.
    unsafe { (*place(cpu, number).cast::<Unaligned<__m128i>>()).0 = value }
}

/// The host address of 16 bytes at linear address `$va` through the TLB tag `$tag`; bails out if
/// the tag does not fit, or (`$aligned`) if the address is not a multiple of 16.
macro_rules! host_16 {
    ($cpu:expr, $op:expr, $va:expr, $tag:ident, $aligned:expr) => {{
        let va: u64 = $va;
        let entry: *const $crate::mem::tlb::Entry = (*$cpu).tlb.entry(va);
        if ($aligned && va & 15 != 0)
            || (*entry).$tag != $crate::mem::tlb::tag_16(va, (*$cpu).hot.context)
        {
            $crate::uop::bail!($cpu, $op);
        }
        // As in `host`.
        (&raw mut (*$cpu).hot.at.0).write_volatile($op);
        va.wrapping_add((*entry).addend)
    }};
}
use host_16;

/// Reads 16 bytes of guest memory.
///
/// # Safety
/// `host` is readable.
#[inline(always)]
unsafe fn read_16(host: u64) -> __m128i {
    // SAFETY: the caller's.
    unsafe { (host as *const Unaligned<__m128i>).read_volatile().0 }
}

/// Writes 16 bytes of guest memory.
///
/// # Safety
/// `host` is writable.
#[inline(always)]
unsafe fn write_16(host: u64, value: __m128i) {
    // SAFETY: the caller's.
    unsafe { (host as *mut Unaligned<__m128i>).write_volatile(Unaligned(value)) }
}

/// All handlers, for the guard of tail dispatch.
#[cfg(test)]
pub(crate) fn handlers() -> Vec<Handler> {
    let mut all = moves::handlers();
    let forms =
        iced_x86::Code::values().filter_map(|code| integer::forms(code).or(float::forms(code)));
    for forms in forms {
        all.push(forms.register);
        all.extend(forms.memory);
    }
    all.extend(vex::handlers());
    all
}
