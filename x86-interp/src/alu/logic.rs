//! Bitwise logic (SDM Vol. 1, "Logical Instructions"): CF and OF are cleared.
//!
//! AF is undefined; Intel processors clear it.

use vmx_model::arch::Rflags;

use super::zsp;
use crate::width::Width;

/// AND, TEST.
#[inline(always)]
pub(crate) fn and<W: Width>(a: W, b: W) -> (W, Rflags) {
    with_flags(a.to_u64() & b.to_u64())
}

/// OR.
#[inline(always)]
pub(crate) fn or<W: Width>(a: W, b: W) -> (W, Rflags) {
    with_flags(a.to_u64() | b.to_u64())
}

/// XOR.
#[inline(always)]
pub(crate) fn xor<W: Width>(a: W, b: W) -> (W, Rflags) {
    with_flags(a.to_u64() ^ b.to_u64())
}

/// NOT: no flag changes.
#[inline(always)]
pub(crate) fn not<W: Width>(a: W) -> W {
    W::from_u64(!a.to_u64())
}

/// ANDN: `!a & b`. PF is undefined; it follows the result.
#[inline(always)]
pub(crate) fn andn<W: Width>(a: W, b: W) -> (W, Rflags) {
    with_flags(!a.to_u64() & b.to_u64())
}

#[inline(always)]
fn with_flags<W: Width>(value: u64) -> (W, Rflags) {
    let result = W::from_u64(value);
    (result, zsp(result))
}
