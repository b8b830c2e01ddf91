//! PUSH, POP, LEAVE: the hot forms, for three kinds of stack.

use super::alu::BySize;
use super::branch::stacks;
use super::moves::is_simple;
use super::operand::{get, imm, set};
use super::{Handler, Uop, host, next};
use crate::Cpu;
use crate::mem::tlb::{read_host, write_host};
use crate::width::Width;
use vmx_model::arch::SegmentRegister;

/// RSP, without a segment: 64-bit mode.
pub(crate) const LONG: u8 = 0;
/// ESP in a flat segment.
pub(crate) const FLAT: u8 = 1;
/// SP or ESP in a segment with base and limit.
pub(crate) const SEGMENTED: u8 = 2;

/// RSP's place in the register file.
const RSP: u8 = 4 * 8;
/// RBP's place in the register file.
const RBP: u8 = 5 * 8;

/// A linear address that is never canonical, hence in no TLB.
const NOWHERE: u64 = 1 << 63;

/// Returns the linear address of a `W` at stack offset `offset`, or one that is in no TLB.
///
/// # Safety
/// `uop`, "Safety".
#[inline(always)]
unsafe fn place<W: Width, const S: u8>(cpu: *const Cpu, offset: u64) -> u64 {
    if S != SEGMENTED {
        return offset;
    }
    // SAFETY: `uop`, "Safety".
    let segment = unsafe { &(*cpu).state.segments[SegmentRegister::Ss as usize] };
    if is_simple(segment.access.0, true)
        && offset + (W::BYTES as u64 - 1) <= u64::from(segment.limit)
    {
        segment.base.wrapping_add(offset) & 0xffff_ffff
    } else {
        NOWHERE
    }
}

/// Returns the bits of RSP that count.
///
/// # Safety
/// `uop`, "Safety".
#[inline(always)]
unsafe fn pointer_mask<const S: u8>(cpu: *const Cpu) -> u64 {
    if S == LONG {
        return u64::MAX;
    }
    // SAFETY: `uop`, "Safety".
    let is_big = unsafe {
        (*cpu).state.segments[SegmentRegister::Ss as usize]
            .access
            .is_big()
    };
    if S == FLAT || is_big {
        0xffff_ffff
    } else {
        0xffff
    }
}

/// Returns the stack pointer below a new `W`, and that place's linear address.
///
/// # Safety
/// `uop`, "Safety".
#[inline(always)]
pub(crate) unsafe fn push_place<W: Width, const S: u8>(cpu: *const Cpu) -> (u64, u64) {
    // SAFETY: `uop`, "Safety".
    unsafe {
        let rsp = get::<u64>(cpu, RSP);
        let pointer = rsp.wrapping_sub(W::BYTES as u64) & pointer_mask::<S>(cpu);
        (pointer, place::<W, S>(cpu, pointer))
    }
}

/// Returns the stack pointer above the `W` on top, and the linear address of that.
///
/// # Safety
/// `uop`, "Safety".
#[inline(always)]
pub(crate) unsafe fn pop_place<W: Width, const S: u8>(cpu: *const Cpu) -> (u64, u64) {
    // SAFETY: `uop`, "Safety".
    unsafe {
        let top = get::<u64>(cpu, RSP) & pointer_mask::<S>(cpu);
        (top.wrapping_add(W::BYTES as u64), place::<W, S>(cpu, top))
    }
}

/// Sets the stack pointer, modulo the stack-address size; the rest of RSP stays.
///
/// # Safety
/// `uop`, "Safety".
#[inline(always)]
pub(crate) unsafe fn set_stack_pointer<const S: u8>(cpu: *mut Cpu, pointer: u64) {
    // SAFETY: `uop`, "Safety".
    unsafe {
        let mask = pointer_mask::<S>(cpu);
        let rest = if S == LONG {
            0
        } else {
            get::<u64>(cpu, RSP) & !mask
        };
        set::<u64>(cpu, RSP, rest | pointer & mask);
    }
}

/// PUSH register, by operand size (16, 32, 64 bits) and kind of stack.
pub(crate) const PUSH_R: [[Handler; 3]; 3] = stacks!(push_r);
/// PUSH immediate.
pub(crate) const PUSH_I: [[Handler; 3]; 3] = stacks!(push_i);
/// POP register.
pub(crate) const POP_R: [[Handler; 3]; 3] = stacks!(pop_r);
/// LEAVE.
pub(crate) const LEAVE: [[Handler; 3]; 3] = stacks!(leave);

unsafe fn push_r<W: Width, const S: u8>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe {
        let (pointer, place) = push_place::<W, S>(cpu);
        let at = host!(cpu, op, place, W, write);
        write_host(at, get::<W>(cpu, (*op).src));
        set_stack_pointer::<S>(cpu, pointer);
        next!(cpu, op.add(1))
    }
}

unsafe fn push_i<W: Width, const S: u8>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe {
        let (pointer, place) = push_place::<W, S>(cpu);
        let at = host!(cpu, op, place, W, write);
        write_host(at, imm::<W>(op));
        set_stack_pointer::<S>(cpu, pointer);
        next!(cpu, op.add(1))
    }
}

unsafe fn pop_r<W: Width, const S: u8>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe {
        let (pointer, place) = pop_place::<W, S>(cpu);
        let at = host!(cpu, op, place, W, read);
        let value = read_host::<W>(at);
        set_stack_pointer::<S>(cpu, pointer);
        set(cpu, (*op).dst, value);
        next!(cpu, op.add(1))
    }
}

unsafe fn leave<W: Width, const S: u8>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe {
        let frame = get::<u64>(cpu, RBP) & pointer_mask::<S>(cpu);
        let at = host!(cpu, op, place::<W, S>(cpu, frame), W, read);
        let value = read_host::<W>(at);
        set_stack_pointer::<S>(cpu, frame.wrapping_add(W::BYTES as u64));
        set(cpu, RBP, value);
        next!(cpu, op.add(1))
    }
}

/// CBW and kin: sign-extends the lower half of RAX, by the size of the result (16, 32, 64 bits in
/// places 1 to 3).
pub(crate) const EXTEND_A: BySize = [
    extend_a::<u8, u8>,
    extend_a::<u8, u16>,
    extend_a::<u16, u32>,
    extend_a::<u32, u64>,
];
/// CWD and kin: fills RDX with the sign of RAX.
pub(crate) const SIGN_D: BySize = [sign_d::<u8>, sign_d::<u16>, sign_d::<u32>, sign_d::<u64>];

unsafe fn extend_a<H: Width, W: Width>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe {
        set(cpu, 0, W::from_u64(get::<H>(cpu, 0).to_i64() as u64));
        next!(cpu, op.add(1))
    }
}

unsafe fn sign_d<W: Width>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe {
        set(
            cpu,
            16,
            W::from_u64((get::<W>(cpu, 0).to_i64() >> 63) as u64),
        );
        next!(cpu, op.add(1))
    }
}
