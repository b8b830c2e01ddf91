//! Shifts and rotates (SDM Vol. 1, "Shift and Rotate Instructions").
//!
//! Counts arrive as they stand in CL or the immediate; each function masks them to five bits, six
//! for 64-bit operands. Every function returns the result, the flags, and the mask of the flags
//! that it changes: a masked count of 0 changes none.
//!
//! Undefined by the SDM, and chosen: AF after a shift is 0. OF for counts other than 1 is what the
//! rule for a count of 1 gives on the result. CF of a SHL or SHR by more than the width is 0. A
//! 16-bit double shift by more than 16 shifts through destination:source:destination.

use vmx_model::arch::Rflags;

use super::{flag_if, sign, zsp};
use crate::width::Width;

/// The result of a shift or rotate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shifted<W> {
    /// The value to write back.
    pub(crate) value: W,
    /// The flags to set, of those in `mask`.
    pub(crate) flags: Rflags,
    /// The flags that change.
    pub(crate) mask: Rflags,
}

impl<W: Width> Shifted<W> {
    fn unchanged(value: W) -> Self {
        Self {
            value,
            flags: Rflags::empty(),
            mask: Rflags::empty(),
        }
    }

    fn shift(value: W, carry: bool, overflow: bool) -> Self {
        Self {
            value,
            flags: zsp(value) | carry_overflow(carry, overflow),
            mask: Rflags::STATUS,
        }
    }

    fn rotate(value: W, carry: bool, overflow: bool) -> Self {
        Self {
            value,
            flags: carry_overflow(carry, overflow),
            mask: Rflags::CF | Rflags::OF,
        }
    }
}

/// SHL (SAL).
pub(crate) fn shl<W: Width>(a: W, count: u8) -> Shifted<W> {
    let count = masked::<W>(count);
    if count == 0 {
        return Shifted::unchanged(a);
    }
    let wide = u128::from(a.to_u64()) << count;
    let result = W::from_u64(wide as u64);
    let carry = (wide >> W::BITS) & 1 != 0;
    Shifted::shift(result, carry, carry != sign(result))
}

/// SHR.
pub(crate) fn shr<W: Width>(a: W, count: u8) -> Shifted<W> {
    let count = masked::<W>(count);
    if count == 0 {
        return Shifted::unchanged(a);
    }
    let result = W::from_u64(a.to_u64() >> count);
    let carry = (a.to_u64() >> (count - 1)) & 1 != 0;
    Shifted::shift(result, carry, top_bits_differ(result))
}

/// SAR.
pub(crate) fn sar<W: Width>(a: W, count: u8) -> Shifted<W> {
    let count = masked::<W>(count);
    if count == 0 {
        return Shifted::unchanged(a);
    }
    let result = W::from_u64((a.to_i64() >> count) as u64);
    let carry = (a.to_i64() >> (count - 1)) & 1 != 0;
    Shifted::shift(result, carry, false)
}

/// ROL.
pub(crate) fn rol<W: Width>(a: W, count: u8) -> Shifted<W> {
    let count = masked::<W>(count);
    if count == 0 {
        return Shifted::unchanged(a);
    }
    let result = rotate_left(a, count % W::BITS);
    let carry = result.to_u64() & 1 != 0;
    Shifted::rotate(result, carry, carry != sign(result))
}

/// ROR.
pub(crate) fn ror<W: Width>(a: W, count: u8) -> Shifted<W> {
    let count = masked::<W>(count);
    if count == 0 {
        return Shifted::unchanged(a);
    }
    let result = rotate_left(a, (W::BITS - count % W::BITS) % W::BITS);
    Shifted::rotate(result, sign(result), top_bits_differ(result))
}

/// RCL: a rotate of BITS + 1 bits through CF.
pub(crate) fn rcl<W: Width>(a: W, count: u8, carry: bool) -> Shifted<W> {
    let count = masked::<W>(count) % (W::BITS + 1);
    if count == 0 {
        return Shifted::unchanged(a);
    }
    let (result, carry) = rotate_through_carry(a, count, carry);
    Shifted::rotate(result, carry, carry != sign(result))
}

/// RCR: a rotate of BITS + 1 bits through CF.
pub(crate) fn rcr<W: Width>(a: W, count: u8, carry: bool) -> Shifted<W> {
    let count = masked::<W>(count) % (W::BITS + 1);
    if count == 0 {
        return Shifted::unchanged(a);
    }
    let (result, carry) = rotate_through_carry(a, W::BITS + 1 - count, carry);
    Shifted::rotate(result, carry, top_bits_differ(result))
}

/// SHLD: shifts `a` left, filling with the upper bits of `b`.
pub(crate) fn shld<W: Width>(a: W, b: W, count: u8) -> Shifted<W> {
    let count = masked::<W>(count);
    if count == 0 {
        return Shifted::unchanged(a);
    }
    let wide = joined(a, b) << count;
    let again = if count > W::BITS {
        a.to_u64() >> (2 * W::BITS - count)
    } else {
        0
    };
    let result = W::from_u64((wide >> W::BITS) as u64 | again);
    let carry = if count <= W::BITS {
        (a.to_u64() >> (W::BITS - count)) & 1 != 0
    } else {
        (b.to_u64() >> (2 * W::BITS - count)) & 1 != 0
    };
    Shifted::shift(result, carry, carry != sign(result))
}

/// SHRD: shifts `a` right, filling with the lower bits of `b`.
pub(crate) fn shrd<W: Width>(a: W, b: W, count: u8) -> Shifted<W> {
    let count = masked::<W>(count);
    if count == 0 {
        return Shifted::unchanged(a);
    }
    let wide = joined(b, a) >> (count - 1);
    let again = if count > W::BITS {
        a.to_u64() << (2 * W::BITS - count)
    } else {
        0
    };
    let result = W::from_u64((wide >> 1) as u64 | again);
    Shifted::shift(result, wide & 1 != 0, top_bits_differ(result))
}

/// Returns the count that the processor uses.
#[inline(always)]
fn masked<W: Width>(count: u8) -> u32 {
    u32::from(count) & if W::BITS == 64 { 0x3f } else { 0x1f }
}

#[inline(always)]
fn carry_overflow(carry: bool, overflow: bool) -> Rflags {
    flag_if(Rflags::CF, carry) | flag_if(Rflags::OF, overflow)
}

/// Whether the two most significant bits differ.
#[inline(always)]
fn top_bits_differ<W: Width>(value: W) -> bool {
    let v = value.to_u64();
    (v ^ (v << 1)) & W::SIGN != 0
}

/// Returns `high:low` as one number.
#[inline(always)]
fn joined<W: Width>(high: W, low: W) -> u128 {
    u128::from(high.to_u64()) << W::BITS | u128::from(low.to_u64())
}

/// Rotates left by less than the width.
#[inline(always)]
fn rotate_left<W: Width>(a: W, count: u32) -> W {
    let twice = joined(a, a);
    W::from_u64(((twice << count) >> W::BITS) as u64)
}

/// Rotates carry:a left by 1 to BITS places; returns the value and the new carry.
#[inline(always)]
fn rotate_through_carry<W: Width>(a: W, count: u32, carry: bool) -> (W, bool) {
    let size = W::BITS + 1;
    let ring = u128::from(carry) << W::BITS | u128::from(a.to_u64());
    let turned = ring << count | ring >> (size - count);
    (W::from_u64(turned as u64), (turned >> W::BITS) & 1 != 0)
}
