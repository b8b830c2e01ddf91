//! Numbers with 128 bits of significand, for functions whose results are rounded to 64: errors of
//! the last bits here do not reach there but in the rarest of cases.

use super::{BIAS, Env, F80, Finite, Out, round_pack};

/// Zero, or `significand / 2^127 * 2^exponent` with the highest bit set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wide {
    pub(crate) sign: bool,
    pub(crate) exponent: i32,
    pub(crate) significand: u128,
}

/// Returns the high half of a product.
const fn high_product(a: u128, b: u128) -> u128 {
    const LOW: u128 = u64::MAX as u128;
    let (a1, a0, b1, b0) = (a >> 64, a & LOW, b >> 64, b & LOW);
    let low = a0 * b0;
    let (left, right) = (a1 * b0, a0 * b1);
    let middle = (low >> 64) + (left & LOW) + (right & LOW);
    a1 * b1 + (left >> 64) + (right >> 64) + (middle >> 64)
}

impl Wide {
    pub(crate) const ZERO: Self = Self {
        sign: false,
        exponent: 0,
        significand: 0,
    };
    pub(crate) const ONE: Self = Self::of(1);
    pub(crate) const PI: Self = Self {
        sign: false,
        exponent: 1,
        significand: 0xc90f_daa2_2168_c234_c4c6_628b_80dc_1cd1,
    };
    /// The natural logarithm of 2.
    pub(crate) const LN_2: Self = Self {
        sign: false,
        exponent: -1,
        significand: 0xb172_17f7_d1cf_79ab_c9e3_b398_03f2_f6af,
    };

    /// Returns a small integer.
    pub(crate) const fn of(value: i64) -> Self {
        if value == 0 {
            return Self::ZERO;
        }
        let magnitude = value.unsigned_abs() as u128;
        let shift = magnitude.leading_zeros();
        Self {
            sign: value < 0,
            exponent: 127 - shift as i32,
            significand: magnitude << shift,
        }
    }

    pub(crate) const fn from_finite(value: Finite) -> Self {
        Self {
            sign: value.sign,
            exponent: value.exponent - BIAS,
            significand: (value.significand as u128) << 64,
        }
    }

    pub(crate) const fn is_zero(self) -> bool {
        self.significand == 0
    }

    pub(crate) const fn negate(self) -> Self {
        Self {
            sign: !self.sign,
            ..self
        }
    }

    /// Multiplies by a power of 2.
    pub(crate) const fn scale(self, by: i32) -> Self {
        Self {
            exponent: self.exponent + by,
            ..self
        }
    }

    /// Adds; the sum is rounded toward zero.
    pub(crate) fn add(self, other: Self) -> Self {
        if self.is_zero() || other.is_zero() {
            return if self.is_zero() { other } else { self };
        }
        let is_first = (self.exponent, self.significand) >= (other.exponent, other.significand);
        let (large, small) = if is_first {
            (self, other)
        } else {
            (other, self)
        };
        let distance = (large.exponent - small.exponent) as u32;
        let small_bits = small.significand.checked_shr(distance).unwrap_or(0);
        if large.sign != small.sign {
            let back = small_bits.checked_shl(distance).unwrap_or(0);
            let lost = u128::from(back != small.significand);
            let rest = large.significand - small_bits - lost;
            if rest == 0 {
                return Self::ZERO;
            }
            let shift = rest.leading_zeros();
            return Self {
                sign: large.sign,
                exponent: large.exponent - shift as i32,
                significand: rest << shift,
            };
        }
        let (sum, has_carried) = large.significand.overflowing_add(small_bits);
        Self {
            sign: large.sign,
            exponent: large.exponent + i32::from(has_carried),
            significand: if has_carried {
                sum >> 1 | 1 << 127
            } else {
                sum
            },
        }
    }

    pub(crate) fn subtract(self, other: Self) -> Self {
        self.add(other.negate())
    }

    pub(crate) fn multiply(self, other: Self) -> Self {
        if self.is_zero() || other.is_zero() {
            return Self::ZERO;
        }
        let product = high_product(self.significand, other.significand);
        let shift = product.leading_zeros();
        Self {
            sign: self.sign != other.sign,
            exponent: self.exponent + other.exponent + 1 - shift as i32,
            significand: product << shift,
        }
    }

    /// Divides by a number that is not zero.
    pub(crate) fn divide_by_small(self, divisor: u32) -> Self {
        // Digit by digit, of 32 bits, two of them behind the point.
        let (mut rest, mut quotient, mut below) = (0_u64, 0_u128, 0_u64);
        for at in 0..6 {
            let digit = if at < 4 {
                self.significand >> (96 - 32 * at)
            } else {
                0
            };
            let dividend = rest << 32 | u64::from(digit as u32);
            let part = dividend / u64::from(divisor);
            rest = dividend % u64::from(divisor);
            if at < 4 {
                quotient = quotient << 32 | u128::from(part);
            } else {
                below = below << 32 | part;
            }
        }
        if quotient == 0 {
            return Self::ZERO;
        }
        let shift = quotient.leading_zeros();
        let fraction = u128::from(below).checked_shr(64 - shift).unwrap_or(0);
        Self {
            exponent: self.exponent - shift as i32,
            significand: quotient << shift | fraction,
            ..self
        }
    }

    /// Divides; the divisor is not zero.
    pub(crate) fn divide(self, other: Self) -> Self {
        if self.is_zero() {
            return Self::ZERO;
        }
        // Bit by bit: the quotient is between 1/2 and 2.
        let is_less = self.significand < other.significand;
        let (mut rest, mut quotient) = (self.significand, 0_u128);
        let mut overflows = false;
        if is_less {
            overflows = rest >> 127 != 0;
            rest <<= 1;
        }
        for _ in 0..128 {
            let fits = overflows || rest >= other.significand;
            quotient = quotient << 1 | u128::from(fits);
            if fits {
                rest = rest.wrapping_sub(other.significand);
            }
            overflows = rest >> 127 != 0;
            rest <<= 1;
        }
        Self {
            sign: self.sign != other.sign,
            exponent: self.exponent - other.exponent - i32::from(is_less),
            significand: quotient,
        }
    }

    /// Rounds to a result that is never exact.
    pub(crate) fn round(self, env: &Env) -> Out {
        if self.is_zero() {
            return Out::exact(F80::zero(self.sign));
        }
        let exponent = self.exponent + BIAS;
        round_pack(self.sign, exponent, self.significand | 1, &env.full())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: Wide, b: Wide) {
        let difference = a.subtract(b);
        let is_close = difference.is_zero() || difference.exponent < a.exponent - 124;
        assert!(is_close, "{a:x?} {b:x?}");
    }

    #[test]
    fn arithmetic_agrees_with_itself() {
        let (three, seven) = (Wide::of(3), Wide::of(-7));
        assert_eq!(three.add(seven), Wide::of(-4));
        assert_eq!(three.multiply(seven), Wide::of(-21));
        close(three.divide(seven).multiply(seven), three);
        close(Wide::PI.divide_by_small(77), Wide::PI.divide(Wide::of(77)));
        assert_eq!(Wide::of(12).divide_by_small(4), three);
        close(Wide::PI.divide(Wide::LN_2).multiply(Wide::LN_2), Wide::PI);
        assert_eq!(Wide::ONE.subtract(Wide::ONE), Wide::ZERO);
        assert_eq!(
            Wide::of(1 << 40).divide(Wide::of(1 << 20)),
            Wide::of(1 << 20)
        );
    }
}
