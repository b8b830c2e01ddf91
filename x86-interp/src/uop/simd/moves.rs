//! Moves between vector registers, general-purpose registers and memory.
//!
//! A register is always written whole: a host processor cannot forward two stores to one load.

use core::arch::x86_64::*;

use super::{get, host_16, kinds, place, read_16, set, write_16};
use crate::Cpu;
use crate::mem::tlb::{read_host, write_host};
use crate::uop::operand::{self, address};
use crate::uop::{Handler, Uop, host, next};
use crate::width::Width;

/// By kind of address.
type Kinds = [Handler; 3];

/// MOVAPS and its like between registers.
pub(crate) const MOVE: Handler = move_register;
/// MOVAPS and its like, and (second) MOVUPS and its like, from memory.
pub(crate) const LOAD: [Kinds; 2] = [kinds!(load_aligned), kinds!(load_any)];
/// To memory.
pub(crate) const STORE: [Kinds; 2] = [kinds!(store_aligned), kinds!(store_any)];
/// A load of 4 or (second) 8 bytes: the rest of the register is cleared.
pub(crate) const LOAD_LOW: [Kinds; 2] = [kinds!(load_low, u32), kinds!(load_low, u64)];
/// A store of the low 4 or 8 bytes.
pub(crate) const STORE_LOW: [Kinds; 2] = [kinds!(store_low, u32), kinds!(store_low, u64)];
/// MOVSS, MOVSD between registers: the rest stays.
pub(crate) const MERGE_LOW: [Handler; 2] = [merge_low::<u32>, merge_low::<u64>];
/// MOVQ between registers: the rest is cleared.
pub(crate) const MOVE_LOW: Handler = move_low;
/// MOVD, MOVQ from a general-purpose register.
pub(crate) const FROM_GENERAL: [Handler; 2] = [from_general::<u32>, from_general::<u64>];
/// MOVD, MOVQ to a general-purpose register.
pub(crate) const TO_GENERAL: [Handler; 2] = [to_general::<u32>, to_general::<u64>];
/// MOVLPS, MOVLPD and (second) MOVHPS, MOVHPD from memory.
pub(crate) const LOAD_HALF: [Kinds; 2] = [
    [load_half::<0, 0>, load_half::<0, 1>, load_half::<0, 2>],
    [load_half::<1, 0>, load_half::<1, 1>, load_half::<1, 2>],
];
/// To memory.
pub(crate) const STORE_HALF: [Kinds; 2] = [
    [store_half::<0, 0>, store_half::<0, 1>, store_half::<0, 2>],
    [store_half::<1, 0>, store_half::<1, 1>, store_half::<1, 2>],
];

/// A register whose low half is `value`, the other 0.
#[inline(always)]
fn low(value: u64) -> __m128i {
    // SAFETY: every x86-64 processor has SSE2.
    unsafe { _mm_cvtsi64_si128(value as i64) }
}

/// Returns `to` with the low 32 or 64 bits of `from`.
#[inline(always)]
pub(super) fn merge<W: Width>(to: __m128i, from: __m128i) -> __m128i {
    // SAFETY: every x86-64 processor has SSE2.
    unsafe {
        if W::BITS == 32 {
            _mm_castps_si128(_mm_move_ss(_mm_castsi128_ps(to), _mm_castsi128_ps(from)))
        } else {
            _mm_castpd_si128(_mm_move_sd(_mm_castsi128_pd(to), _mm_castsi128_pd(from)))
        }
    }
}

unsafe fn move_register(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe {
        set(cpu, (*op).dst, get(cpu, (*op).src));
        next!(cpu, op.add(1))
    }
}

unsafe fn load_aligned<const A: u8>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe {
        let at = host_16!(cpu, op, address::<A>(cpu, op), read, true);
        set(cpu, (*op).dst, read_16(at));
        next!(cpu, op.add(1))
    }
}

unsafe fn load_any<const A: u8>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe {
        let at = host_16!(cpu, op, address::<A>(cpu, op), read, false);
        set(cpu, (*op).dst, read_16(at));
        next!(cpu, op.add(1))
    }
}

unsafe fn store_aligned<const A: u8>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe {
        let at = host_16!(cpu, op, address::<A>(cpu, op), write, true);
        write_16(at, get(cpu, (*op).src));
        next!(cpu, op.add(1))
    }
}

unsafe fn store_any<const A: u8>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe {
        let at = host_16!(cpu, op, address::<A>(cpu, op), write, false);
        write_16(at, get(cpu, (*op).src));
        next!(cpu, op.add(1))
    }
}

unsafe fn load_low<W: Width, const A: u8>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe {
        let at = host!(cpu, op, address::<A>(cpu, op), W, read);
        set(cpu, (*op).dst, low(read_host::<W>(at).to_u64()));
        next!(cpu, op.add(1))
    }
}

unsafe fn store_low<W: Width, const A: u8>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe {
        let at = host!(cpu, op, address::<A>(cpu, op), W, write);
        write_host(at, W::from_u64((*place(cpu, (*op).src))[0]));
        next!(cpu, op.add(1))
    }
}

unsafe fn merge_low<W: Width>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe {
        let (to, from) = (get(cpu, (*op).dst), get(cpu, (*op).src));
        set(cpu, (*op).dst, merge::<W>(to, from));
        next!(cpu, op.add(1))
    }
}

unsafe fn move_low(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe {
        set(cpu, (*op).dst, _mm_move_epi64(get(cpu, (*op).src)));
        next!(cpu, op.add(1))
    }
}

unsafe fn from_general<W: Width>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe {
        let value = operand::get::<W>(cpu, (*op).src).to_u64();
        set(cpu, (*op).dst, low(value));
        next!(cpu, op.add(1))
    }
}

unsafe fn to_general<W: Width>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe {
        let value = W::from_u64((*place(cpu, (*op).src))[0]);
        operand::set(cpu, (*op).dst, value);
        next!(cpu, op.add(1))
    }
}

unsafe fn load_half<const HALF: usize, const A: u8>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe {
        let at = host!(cpu, op, address::<A>(cpu, op), u64, read);
        let (old, new) = (get(cpu, (*op).dst), low(read_host::<u64>(at)));
        let value = if HALF == 0 {
            merge::<u64>(old, new)
        } else {
            _mm_unpacklo_epi64(old, new)
        };
        set(cpu, (*op).dst, value);
        next!(cpu, op.add(1))
    }
}

unsafe fn store_half<const HALF: usize, const A: u8>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe {
        let at = host!(cpu, op, address::<A>(cpu, op), u64, write);
        write_host(at, (*place(cpu, (*op).src))[HALF]);
        next!(cpu, op.add(1))
    }
}

/// All handlers of this file.
#[cfg(test)]
pub(super) fn handlers() -> Vec<Handler> {
    let mut all = vec![MOVE, MOVE_LOW];
    for table in [LOAD, STORE, LOAD_LOW, STORE_LOW, LOAD_HALF, STORE_HALF] {
        all.extend(table.iter().flatten());
    }
    for pair in [MERGE_LOW, FROM_GENERAL, TO_GENERAL] {
        all.extend(pair);
    }
    all
}
