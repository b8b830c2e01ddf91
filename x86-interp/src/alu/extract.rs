//! BMI1 and BMI2 value functions (SDM Vol. 1, "Bit Manipulation Instructions (BMI1 and BMI2)").
//!
//! AF and PF are undefined after these instructions, SF too after BEXTR: SF and PF follow the
//! result, AF is 0.

use vmx_model::arch::Rflags;

use super::{flag_if, zsp};
use crate::width::Width;

/// BEXTR: extracts `control[15:8]` bits from bit `control[7:0]`.
pub(crate) fn bextr<W: Width>(a: W, control: W) -> (W, Rflags) {
    let start = control.to_u64() as u8;
    let length = (control.to_u64() >> 8) as u8;
    let shifted = a.to_u64().checked_shr(u32::from(start)).unwrap_or(0);
    let result = W::from_u64(shifted & low_bits(length));
    (result, flag_if(Rflags::ZF, result == W::default()))
}

/// BZHI: clears the bits from `index[7:0]` on; CF tells that the index is not below the width.
pub(crate) fn bzhi<W: Width>(a: W, index: W) -> (W, Rflags) {
    let index = index.to_u64() as u8;
    let result = W::from_u64(a.to_u64() & low_bits(index));
    let beyond = u32::from(index) >= W::BITS;
    (result, zsp(result) | flag_if(Rflags::CF, beyond))
}

/// BLSI: the lowest set bit; CF tells that the operand is not 0.
pub(crate) fn blsi<W: Width>(a: W) -> (W, Rflags) {
    let value = a.to_u64();
    let result = W::from_u64(value & value.wrapping_neg());
    (result, zsp(result) | flag_if(Rflags::CF, value != 0))
}

/// BLSMSK: a mask up to and including the lowest set bit; CF tells that the operand is 0.
pub(crate) fn blsmsk<W: Width>(a: W) -> (W, Rflags) {
    let value = a.to_u64();
    let result = W::from_u64(value ^ value.wrapping_sub(1));
    let flags = zsp(result).difference(Rflags::ZF);
    (result, flags | flag_if(Rflags::CF, value == 0))
}

/// BLSR: clears the lowest set bit; CF tells that the operand is 0.
pub(crate) fn blsr<W: Width>(a: W) -> (W, Rflags) {
    let value = a.to_u64();
    let result = W::from_u64(value & value.wrapping_sub(1));
    (result, zsp(result) | flag_if(Rflags::CF, value == 0))
}

/// PDEP: scatters the low bits of `a` to the set bits of `mask`.
pub(crate) fn pdep<W: Width>(a: W, mask: W) -> W {
    let (mut source, mut rest, mut result) = (a.to_u64(), mask.to_u64(), 0);
    while rest != 0 {
        let bit = rest & rest.wrapping_neg();
        if source & 1 != 0 {
            result |= bit;
        }
        source >>= 1;
        rest ^= bit;
    }
    W::from_u64(result)
}

/// PEXT: gathers the bits of `a` at the set bits of `mask`.
pub(crate) fn pext<W: Width>(a: W, mask: W) -> W {
    let (mut rest, mut result) = (mask.to_u64(), 0);
    let mut place = 1u64;
    while rest != 0 {
        let bit = rest & rest.wrapping_neg();
        if a.to_u64() & bit != 0 {
            result |= place;
        }
        place = place.wrapping_shl(1);
        rest ^= bit;
    }
    W::from_u64(result)
}

/// Returns a mask of the `count` lowest bits; all ones from 64 on.
fn low_bits(count: u8) -> u64 {
    match count {
        0..64 => (1 << count) - 1,
        _ => u64::MAX,
    }
}
