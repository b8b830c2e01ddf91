//! Operands of hot micro-ops: registers by byte offset, addresses.

use super::Uop;
use crate::Cpu;
use crate::insn::{RegisterOffset, ZERO_REGISTER};
use crate::mem::tlb::Unaligned;
use crate::width::Width;

/// The register-file slot that micro-ops of one instruction use among themselves.
pub(crate) const SPARE: RegisterOffset = 16 * 8;

/// Base + displacement, 64-bit addresses, no segment base.
pub(crate) const BASE: u8 = 0;
/// Base + scaled index + displacement, 64-bit addresses, no segment base.
pub(crate) const INDEXED: u8 = 1;
/// Base + scaled index + displacement, 32-bit addresses in a flat segment.
pub(crate) const FLAT32: u8 = 2;

const _: () = assert!(core::mem::offset_of!(Cpu, gpr) == 0);
const _: () = assert!(ZERO_REGISTER == 17 * 8);

/// Reads a register.
///
/// A place of a packed type instead of `read_unaligned`: with debug assertions that takes the
/// address of a local, and a handler with one cannot go on by a jump.
///
/// # Safety
/// `uop`, "Safety".
#[inline(always)]
pub(crate) unsafe fn get<W: Width>(cpu: *const Cpu, register: RegisterOffset) -> W {
    // SAFETY: the register file is the processor's first field, and offsets lie inside it.
    unsafe {
        let slot = cpu.cast::<u8>().wrapping_add(usize::from(register));
        (*slot.cast::<Unaligned<W>>()).0
    }
}

/// Writes a register; 32 bits clear the upper half.
///
/// # Safety
/// `uop`, "Safety".
#[inline(always)]
pub(crate) unsafe fn set<W: Width>(cpu: *mut Cpu, register: RegisterOffset, value: W) {
    // SAFETY: as in `get`.
    unsafe {
        let slot = cpu.cast::<u8>().wrapping_add(usize::from(register));
        if W::BITS == 32 {
            (*slot.cast::<Unaligned<u64>>()).0 = value.to_u64();
        } else {
            (*slot.cast::<Unaligned<W>>()).0 = value;
        }
    }
}

/// Returns the immediate, sign-extended.
///
/// # Safety
/// `uop`, "Safety".
#[inline(always)]
pub(crate) unsafe fn imm<W: Width>(op: *const Uop) -> W {
    // SAFETY: `uop`, "Safety".
    W::from_u64(i64::from(unsafe { (*op).imm }) as u64)
}

/// Returns the linear address of the memory operand.
///
/// # Safety
/// `uop`, "Safety".
#[inline(always)]
pub(crate) unsafe fn address<const A: u8>(cpu: *const Cpu, op: *const Uop) -> u64 {
    // SAFETY: `uop`, "Safety".
    unsafe {
        let at = get::<u64>(cpu, (*op).base).wrapping_add((*op).disp);
        if A == BASE {
            return at;
        }
        let index = get::<u64>(cpu, (*op).index).wrapping_shl(u32::from((*op).scale_shift));
        let at = at.wrapping_add(index);
        if A == INDEXED { at } else { at & 0xffff_ffff }
    }
}
