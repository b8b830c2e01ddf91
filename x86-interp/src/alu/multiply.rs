//! Multiplication and division (SDM Vol. 1, "Multiply and Divide Instructions").
//!
//! SF, ZF, AF and PF after a multiplication are undefined: SF, ZF and PF follow the lower half, AF
//! is 0. All flags after a division are undefined: they stay.

use vmx_model::arch::Rflags;

use super::{flag_if, zsp};
use crate::width::Width;

/// A double-width product: lower half, upper half, flags.
pub(crate) type Product<W> = (W, W, Rflags);

/// MUL: CF and OF tell that the upper half is not 0.
pub(crate) fn mul<W: Width>(a: W, b: W) -> Product<W> {
    let wide = u128::from(a.to_u64()) * u128::from(b.to_u64());
    let (low, high) = halves(wide);
    let carry = high != W::default();
    (
        low,
        high,
        zsp(low) | flag_if(Rflags::CF | Rflags::OF, carry),
    )
}

/// IMUL: CF and OF tell that the lower half, sign-extended, is not the product.
pub(crate) fn imul<W: Width>(a: W, b: W) -> Product<W> {
    let wide = i128::from(a.to_i64()) * i128::from(b.to_i64());
    let (low, high): (W, W) = halves(wide as u128);
    let carry = i128::from(low.to_i64()) != wide;
    (
        low,
        high,
        zsp(low) | flag_if(Rflags::CF | Rflags::OF, carry),
    )
}

/// DIV of `high:low`: quotient and remainder; `None` is #DE.
pub(crate) fn div<W: Width>(high: W, low: W, divisor: W) -> Option<(W, W)> {
    let dividend = u128::from(high.to_u64()) << W::BITS | u128::from(low.to_u64());
    let divisor = u128::from(divisor.to_u64());
    let quotient = dividend.checked_div(divisor)?;
    if quotient > u128::from(W::MASK) {
        return None;
    }
    let remainder = dividend % divisor;
    Some((W::from_u64(quotient as u64), W::from_u64(remainder as u64)))
}

/// IDIV of `high:low`: quotient, rounded toward zero, and remainder; `None` is #DE.
pub(crate) fn idiv<W: Width>(high: W, low: W, divisor: W) -> Option<(W, W)> {
    let dividend = i128::from(high.to_i64()) << W::BITS | i128::from(low.to_u64());
    let divisor = i128::from(divisor.to_i64());
    let quotient = dividend.checked_div(divisor)?;
    let result = W::from_u64(quotient as u64);
    if i128::from(result.to_i64()) != quotient {
        return None;
    }
    let remainder = dividend.checked_rem(divisor)?;
    Some((result, W::from_u64(remainder as u64)))
}

fn halves<W: Width>(wide: u128) -> (W, W) {
    (
        W::from_u64(wide as u64),
        W::from_u64((wide >> W::BITS) as u64),
    )
}
