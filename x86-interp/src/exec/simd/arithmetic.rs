//! Addition, subtraction, multiplication and division of elements in software, and what they are for
//! beside the host's: whether a result that overflows or underflows has lost precision.
//!
//! While overflow or underflow is unmasked, PE tells whether the result is inexact with an unbounded
//! exponent (SDM Vol. 1, "Numeric Overflow Exception (#O)", "Numeric Underflow Exception (#U)"). The
//! host, which computes with all exceptions masked, does not tell it.

use super::binary::{Element, Env, Format, flag, under};
use super::fused::{Signs, fused_multiply_add};
use super::lanes::get;

/// A function of two elements.
pub(super) type OfElements = fn(Format, u64, u64, &mut Env) -> u64;

const PLAIN: Signs = Signs {
    negates_product: false,
    negates_addend: false,
};
const NEGATED_ADDEND: Signs = Signs {
    negates_addend: true,
    ..PLAIN
};

pub(super) fn add(format: Format, a: u64, b: u64, env: &mut Env) -> u64 {
    fused_multiply_add(format, [a, format.power(0), b], PLAIN, env)
}

pub(super) fn subtract(format: Format, a: u64, b: u64, env: &mut Env) -> u64 {
    fused_multiply_add(format, [a, format.power(0), b], NEGATED_ADDEND, env)
}

pub(super) fn multiply(format: Format, a: u64, b: u64, env: &mut Env) -> u64 {
    // The sign of an addend of zero is that of the product.
    let is_negative = (a ^ b) & format.sign(true) != 0;
    fused_multiply_add(format, [a, b, format.sign(is_negative)], PLAIN, env)
}

/// Divides finite numbers that are not zero; what else there is has no range to leave: zero.
pub(super) fn divide(format: Format, a: u64, b: u64, env: &mut Env) -> u64 {
    let [a, b] = [a, b].map(|bits| format.unpack(bits, env));
    if !a.is_finite_nonzero() || !b.is_finite_nonzero() {
        return 0;
    }
    let dividend = u128::from(a.significand) << 64;
    let (quotient, rest) = (
        dividend / u128::from(b.significand),
        dividend % u128::from(b.significand),
    );
    let shift = quotient.leading_zeros();
    let significand = quotient << shift | u128::from(rest != 0);
    let exponent = a.exponent - b.exponent + 63 - shift as i32;
    format.round(a.is_negative != b.is_negative, exponent, significand, env)
}

/// Rounds the second element, of double precision, to the format.
pub(super) fn narrow(format: Format, _: u64, b: u64, env: &mut Env) -> u64 {
    let number = Format::DOUBLE.unpack(b, env);
    if !number.is_finite_nonzero() {
        return 0;
    }
    let significand = u128::from(number.significand) << 64;
    format.round(number.is_negative, number.exponent, significand, env)
}

/// Which elements of two lanes are taken together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pairs {
    /// Those with the same number.
    Each,
    /// The lowest.
    Lowest,
    /// Neighbours in a lane.
    Neighbours,
}

/// What an instruction computes: the pairs, and the function of those with even numbers and of the
/// others.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arithmetic {
    pub(super) pairs: Pairs,
    /// The format of the result.
    pub(super) format: Format,
    pub(super) functions: [OfElements; 2],
}

impl Arithmetic {
    /// Notes the exceptions of a result whose elements are those of the sources.
    fn note<E: Element>(self, a: u128, b: u128, mxcsr: &mut u32) {
        let count = match self.pairs {
            Pairs::Lowest => 1,
            Pairs::Each | Pairs::Neighbours => 128 / E::BITS,
        };
        under(mxcsr, |env| {
            for n in 0..count {
                let [x, y] = match self.pairs {
                    Pairs::Each | Pairs::Lowest => [get::<E>(a, n), get::<E>(b, n)],
                    Pairs::Neighbours => {
                        let (lane, first) = if n < count / 2 {
                            (a, 2 * n)
                        } else {
                            (b, 2 * n - count)
                        };
                        [get::<E>(lane, first), get::<E>(lane, first + 1)]
                    }
                };
                self.functions[(n & 1) as usize](self.format, x.widen(), y.widen(), env);
            }
        });
    }

    /// Makes of a function of the host one that says of results out of range whether they are
    /// inexact.
    pub(super) fn on_host<E: Element>(
        self,
        host: impl Fn(u128, u128, &mut u32) -> u128,
    ) -> impl Fn(u128, u128, &mut u32) -> u128 {
        move |a, b, mxcsr| {
            with_precision(
                mxcsr,
                |mxcsr| host(a, b, mxcsr),
                |mxcsr| self.note::<E>(a, b, mxcsr),
            )
        }
    }
}

/// Computes by the host. Where it flags an overflow or underflow that the guest does not mask, PE is
/// what `software` notes.
pub(super) fn with_precision<T>(
    mxcsr: &mut u32,
    host: impl FnOnce(&mut u32) -> T,
    software: impl FnOnce(&mut u32),
) -> T {
    let before = *mxcsr & flag::ALL;
    *mxcsr &= !flag::ALL;
    let initial = *mxcsr;
    let value = host(mxcsr);
    if *mxcsr & Env::of(initial).unmasked_range() != 0 {
        let mut exact = initial;
        software(&mut exact);
        *mxcsr = *mxcsr & !flag::PE | exact & flag::PE;
    }
    *mxcsr |= before;
    value
}
