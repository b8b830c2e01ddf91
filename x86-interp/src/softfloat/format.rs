//! The binary interchange formats of half, single and double precision (SDM Vol. 1, "Floating-Point
//! Data Types").

use super::Rounding;

/// A binary interchange format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Format {
    exponent_bits: u32,
    /// Bits of the fraction.
    pub(crate) fraction_bits: u32,
}

impl Format {
    /// Half precision.
    pub(crate) const HALF: Self = Self {
        exponent_bits: 5,
        fraction_bits: 10,
    };
    /// Single precision.
    pub(crate) const SINGLE: Self = Self {
        exponent_bits: 8,
        fraction_bits: 23,
    };
    /// Double precision.
    pub(crate) const DOUBLE: Self = Self {
        exponent_bits: 11,
        fraction_bits: 52,
    };

    pub(crate) const fn bits(self) -> u32 {
        1 + self.exponent_bits + self.fraction_bits
    }

    /// The bias of the exponent.
    pub(crate) const fn bias(self) -> i32 {
        (1 << (self.exponent_bits - 1)) - 1
    }

    pub(crate) const fn fraction_mask(self) -> u64 {
        (1 << self.fraction_bits) - 1
    }

    /// The exponent of infinities and NaNs.
    pub(crate) const fn largest_exponent(self) -> i32 {
        (1 << self.exponent_bits) - 1
    }

    /// The sign bit.
    pub(crate) const fn sign(self, is_negative: bool) -> u64 {
        (is_negative as u64) << (self.bits() - 1)
    }

    pub(crate) const fn infinity(self, is_negative: bool) -> u64 {
        self.sign(is_negative) | (self.largest_exponent() as u64) << self.fraction_bits
    }

    /// The finite number of the largest magnitude.
    pub(crate) const fn largest(self, is_negative: bool) -> u64 {
        self.infinity(is_negative) - 1
    }

    pub(crate) const fn quiet_bit(self) -> u64 {
        1 << (self.fraction_bits - 1)
    }

    /// The QNaN floating-point indefinite.
    pub(crate) const fn indefinite(self) -> u64 {
        self.infinity(true) | self.quiet_bit()
    }

    /// Returns a NaN, quiet.
    pub(crate) const fn quiet(self, nan: u64) -> u64 {
        nan | self.quiet_bit()
    }

    /// Returns 2^exponent, a normal number.
    pub(crate) const fn power(self, exponent: i32) -> u64 {
        ((exponent + self.bias()) as u64) << self.fraction_bits
    }

    /// 90.0.
    pub(crate) const fn ninety(self) -> u64 {
        self.power(6) | 0x1a << (self.fraction_bits - 6)
    }

    /// The number next to pi / 2.
    pub(crate) const fn half_pi(self) -> u64 {
        match self.fraction_bits {
            52 => 0x3ff9_21fb_5444_2d18,
            _ => 0x3fc9_0fdb,
        }
    }

    /// Returns the number with this sign, biased exponent and fraction.
    pub(crate) const fn encode(self, is_negative: bool, exponent: i32, fraction: u64) -> u64 {
        let exponent = (exponent as u64) << self.fraction_bits;
        self.sign(is_negative) | exponent | fraction & self.fraction_mask()
    }

    /// Returns the masked response to overflow (SDM Vol. 1, "Masked Responses to Numeric Overflow").
    pub(crate) const fn overflowed(self, is_negative: bool, rounding: Rounding) -> u64 {
        let is_infinite = match rounding {
            Rounding::Nearest => true,
            Rounding::Down => is_negative,
            Rounding::Up => !is_negative,
            Rounding::Zero => false,
        };
        match is_infinite {
            true => self.infinity(is_negative),
            false => self.largest(is_negative),
        }
    }
}
