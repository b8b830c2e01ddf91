//! Addition and subtraction (SDM Vol. 1, "Binary Arithmetic Instructions").

use vmx_model::arch::Rflags;

use super::{flag_if, sign, zsp};
use crate::width::Width;

/// ADD, ADC: `a + b + carry`.
#[inline(always)]
pub(crate) fn add<W: Width>(a: W, b: W, carry: bool) -> (W, Rflags) {
    let (x, y) = (a.to_u64(), b.to_u64());
    let sum = x.wrapping_add(y).wrapping_add(u64::from(carry));
    let carries = (x & y) | ((x | y) & !sum);
    let overflow = (x ^ sum) & (y ^ sum);
    let result = W::from_u64(sum);
    (result, flags(result, carries, overflow))
}

/// SUB, SBB, CMP: `a - b - borrow`.
#[inline(always)]
pub(crate) fn sub<W: Width>(a: W, b: W, borrow: bool) -> (W, Rflags) {
    let (x, y) = (a.to_u64(), b.to_u64());
    let difference = x.wrapping_sub(y).wrapping_sub(u64::from(borrow));
    let borrows = (!x & y) | ((!x | y) & difference);
    let overflow = (x ^ y) & (x ^ difference);
    let result = W::from_u64(difference);
    (result, flags(result, borrows, overflow))
}

/// NEG: `0 - a`; CF is set unless the operand is 0.
#[inline(always)]
pub(crate) fn neg<W: Width>(a: W) -> (W, Rflags) {
    sub(W::default(), a, false)
}

/// INC: all status flags but CF.
#[inline(always)]
pub(crate) fn inc<W: Width>(a: W) -> (W, Rflags) {
    let (result, flags) = add(a, W::from_u64(1), false);
    (result, flags.difference(Rflags::CF))
}

/// DEC: all status flags but CF.
#[inline(always)]
pub(crate) fn dec<W: Width>(a: W) -> (W, Rflags) {
    let (result, flags) = sub(a, W::from_u64(1), false);
    (result, flags.difference(Rflags::CF))
}

#[inline(always)]
fn flags<W: Width>(result: W, carries: u64, overflow: u64) -> Rflags {
    zsp(result)
        | flag_if(Rflags::CF, sign(W::from_u64(carries)))
        | flag_if(Rflags::AF, carries & 8 != 0)
        | flag_if(Rflags::OF, sign(W::from_u64(overflow)))
}
