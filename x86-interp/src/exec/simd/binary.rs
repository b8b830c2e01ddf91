//! Numbers in the binary formats of half, single and double precision under MXCSR: taken apart,
//! rounded, and put together again, in integers.
//!
//! SDM Vol. 1, "Floating-Point Data Types", "Rounding" and "SIMD Floating-Point Exceptions". A
//! function of elements gets them as bits, and an [`Env`] in which it notes the exceptions; results
//! are those of the masked responses, exceptions those that the guest's masks lead to.

use super::lanes::{Lane, get};
use super::under_mxcsr::Rounded;
use crate::insn::Insn;
pub(super) use crate::softfloat::format::Format;
use crate::softfloat::{Rounding, round_at, shift_right_jam};
use crate::{Cpu, Exec};

/// Exceptions, at their places in MXCSR.
pub(super) mod flag {
    pub(crate) const IE: u32 = 1 << 0;
    pub(crate) const DE: u32 = 1 << 1;
    pub(crate) const ZE: u32 = 1 << 2;
    pub(crate) const OE: u32 = 1 << 3;
    pub(crate) const UE: u32 = 1 << 4;
    pub(crate) const PE: u32 = 1 << 5;
    /// All.
    pub(crate) const ALL: u32 = 0x3f;
}

/// How to compute, as MXCSR says it, and the exceptions so far.
#[derive(Clone, Copy, Debug)]
pub(super) struct Env {
    pub(super) rounding: Rounding,
    /// Denormal operands are zeros.
    pub(super) is_daz: bool,
    /// Tiny results become zero.
    pub(super) is_ftz: bool,
    /// Those of overflow and underflow that are not masked.
    unmasked_range: u32,
    flags: u32,
}

impl Env {
    const DAZ: u32 = 1 << 6;
    const RC_SHIFT: u32 = 13;
    const FTZ: u32 = 1 << 15;
    const MASK_SHIFT: u32 = 7;

    /// Returns what MXCSR says.
    pub(super) const fn of(mxcsr: u32) -> Self {
        Self {
            rounding: Rounding::of((mxcsr >> Self::RC_SHIFT) as u16),
            is_daz: mxcsr & Self::DAZ != 0,
            is_ftz: mxcsr & Self::FTZ != 0,
            unmasked_range: !(mxcsr >> Self::MASK_SHIFT) & (flag::OE | flag::UE),
            flags: mxcsr & flag::ALL,
        }
    }

    /// Returns those of [`flag::OE`] and [`flag::UE`] that are not masked.
    pub(super) const fn unmasked_range(&self) -> u32 {
        self.unmasked_range
    }

    /// Notes exceptions.
    pub(super) fn raise(&mut self, flags: u32) {
        self.flags |= flags;
    }

    /// Computes and forgets the exceptions but for `kept`.
    pub(super) fn keeping<T>(&mut self, kept: u32, f: impl FnOnce(&mut Self) -> T) -> T {
        let mut own = *self;
        own.flags = 0;
        let value = f(&mut own);
        self.raise(own.flags & kept);
        value
    }

    /// Computes with the rounding control of an immediate: MXCSR's if bit 2 is set.
    pub(super) fn rounding_by(&mut self, immediate: u8) {
        if immediate & 4 == 0 {
            self.rounding = Rounding::of(u16::from(immediate));
        }
    }
}

/// A lane that holds a number of a binary format.
pub(super) trait Element: Lane {
    /// The format.
    const FORMAT: Format;
    /// Returns its bits.
    fn widen(self) -> u64 {
        self.give() as u64
    }
}

impl Element for u16 {
    const FORMAT: Format = Format::HALF;
}

impl Element for u32 {
    const FORMAT: Format = Format::SINGLE;
}

impl Element for u64 {
    const FORMAT: Format = Format::DOUBLE;
}

/// A function of the elements of both sources and the immediate byte.
pub(super) type Operation = fn(Format, u64, u64, u8, &mut Env) -> u64;

/// Makes a function of lanes from one of elements.
pub(super) fn on_elements<E: Element>(
    f: Operation,
    immediate: u8,
) -> impl Fn(u128, u128, &mut u32) -> u128 {
    move |a, b, mxcsr| {
        under(mxcsr, |env| {
            (0..128 / E::BITS).fold(0, |all, n| {
                let (x, y) = (get::<E>(a, n).widen(), get::<E>(b, n).widen());
                let element = f(E::FORMAT, x, y, immediate, env);
                all | u128::from(element) << (n * E::BITS)
            })
        })
    }
}

/// As [`on_elements`], of the lowest elements; the others are those of the first source.
pub(super) fn on_lowest<E: Element>(
    f: Operation,
    immediate: u8,
) -> impl Fn(u128, u128, &mut u32) -> u128 {
    move |a, b, mxcsr| {
        let (x, y) = (E::take(a).widen(), E::take(b).widen());
        let element = under(mxcsr, |env| f(E::FORMAT, x, y, immediate, env));
        a >> E::BITS << E::BITS | u128::from(element)
    }
}

impl Cpu {
    /// Each element of operand 0 becomes a function of those of both sources and the immediate.
    pub(super) fn packed_in_software<E: Element>(
        &mut self,
        insn: &Insn,
        rounded: Rounded,
        f: Operation,
    ) -> Exec {
        let bytes = E::BITS as usize / 8;
        self.packed_float(
            insn,
            bytes,
            rounded,
            on_elements::<E>(f, insn.immediate_byte()),
        )
    }

    /// As [`Self::packed_in_software`], of the lowest elements.
    pub(super) fn scalar_in_software<E: Element>(
        &mut self,
        insn: &Insn,
        rounded: Rounded,
        f: Operation,
    ) -> Exec {
        let bytes = E::BITS as usize / 8;
        self.scalar_float(
            insn,
            bytes,
            rounded,
            on_lowest::<E>(f, insn.immediate_byte()),
        )
    }
}

/// A handler: `$f` on elements of type `$e`, packed or scalar; what the result may be.
macro_rules! in_software {
    (packed $e:ident $rounded:ident, $f:expr) => {{
        fn handler(cpu: &mut Cpu, insn: &Insn) -> Exec {
            cpu.packed_in_software::<$e>(insn, Rounded::$rounded, $f)
        }
        handler as Plain
    }};
    (scalar $e:ident $rounded:ident, $f:expr) => {{
        fn handler(cpu: &mut Cpu, insn: &Insn) -> Exec {
            cpu.scalar_in_software::<$e>(insn, Rounded::$rounded, $f)
        }
        handler as Plain
    }};
}
pub(super) use in_software;

/// Computes a value that is no vector under a given MXCSR.
pub(super) fn under<T>(mxcsr: &mut u32, f: impl FnOnce(&mut Env) -> T) -> T {
    let mut env = Env::of(*mxcsr);
    let value = f(&mut env);
    *mxcsr |= env.flags;
    value
}

/// What kind of number it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Zero,
    Denormal,
    Normal,
    Infinity,
    QuietNan,
    SignalingNan,
}

/// A number taken apart: if it is finite and not zero, `significand / 2^63 * 2^exponent`, the
/// highest bit of the significand set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Number {
    pub(super) class: Class,
    pub(super) is_negative: bool,
    pub(super) exponent: i32,
    pub(super) significand: u64,
    /// The bits of the number, or of the zero that a denormal counts as.
    pub(super) bits: u64,
}

impl Number {
    pub(super) const fn is_nan(self) -> bool {
        matches!(self.class, Class::QuietNan | Class::SignalingNan)
    }

    pub(super) fn is_signaling(self) -> bool {
        self.class == Class::SignalingNan
    }

    pub(super) fn is_zero(self) -> bool {
        self.class == Class::Zero
    }

    pub(super) fn is_infinite(self) -> bool {
        self.class == Class::Infinity
    }

    /// Whether it is finite and not zero.
    pub(super) const fn is_finite_nonzero(self) -> bool {
        matches!(self.class, Class::Denormal | Class::Normal)
    }
}

impl Format {
    /// Takes a number apart; denormals count as zeros if MXCSR.DAZ says so.
    pub(super) fn unpack(self, bits: u64, env: &Env) -> Number {
        let number = self.unpack_any(bits);
        match number.class {
            Class::Denormal if env.is_daz => self.unpack_any(self.sign(number.is_negative)),
            _ => number,
        }
    }

    /// Takes a number apart, whatever MXCSR.DAZ says.
    pub(super) fn unpack_any(self, bits: u64) -> Number {
        let fraction = bits & self.fraction_mask();
        let biased = (bits >> self.fraction_bits) as i32 & self.largest_exponent();
        let class = match (biased, fraction) {
            (0, 0) => Class::Zero,
            (0, _) => Class::Denormal,
            (e, 0) if e == self.largest_exponent() => Class::Infinity,
            (e, f) if e == self.largest_exponent() => match f & self.quiet_bit() {
                0 => Class::SignalingNan,
                _ => Class::QuietNan,
            },
            _ => Class::Normal,
        };
        let aligned = fraction << (63 - self.fraction_bits);
        let (exponent, significand) = match class {
            Class::Denormal => {
                let shift = aligned.leading_zeros();
                (1 - self.bias() - shift as i32, aligned << shift)
            }
            _ => (biased - self.bias(), aligned | 1 << 63),
        };
        Number {
            class,
            is_negative: bits >> (self.bits() - 1) & 1 != 0,
            exponent,
            significand,
            bits,
        }
    }

    /// Rounds `significand / 2^127 * 2^exponent`, whose highest bit is set and whose lowest is
    /// sticky.
    pub(super) fn round(
        self,
        is_negative: bool,
        exponent: i32,
        significand: u128,
        env: &mut Env,
    ) -> u64 {
        let drop = 127 - self.fraction_bits;
        let rounded = round_at(is_negative, significand, drop, env.rounding);
        let biased = exponent + self.bias() + i32::from(rounded.has_carried);
        if rounded.is_inexact {
            env.raise(flag::PE);
        }
        if biased >= self.largest_exponent() {
            return self.overflow(is_negative, env);
        }
        if biased <= 0 {
            return self.underflow(is_negative, exponent, significand, env);
        }
        let fraction = (rounded.significand >> drop) as u64 & self.fraction_mask();
        self.sign(is_negative) | (biased as u64) << self.fraction_bits | fraction
    }

    /// A result that is too large. While #O is masked, the result is inexact by that.
    fn overflow(self, is_negative: bool, env: &mut Env) -> u64 {
        env.raise(match env.unmasked_range & flag::OE {
            0 => flag::OE | flag::PE,
            _ => flag::OE,
        });
        self.overflowed(is_negative, env.rounding)
    }

    /// A result that is tiny after rounding with an unbounded exponent. While #U is masked, it counts
    /// if the denormal result is inexact.
    fn underflow(self, is_negative: bool, exponent: i32, significand: u128, env: &mut Env) -> u64 {
        let sign = self.sign(is_negative);
        if env.unmasked_range & flag::UE != 0 {
            env.raise(flag::UE);
        } else if env.is_ftz {
            env.raise(flag::UE | flag::PE);
            return sign;
        }
        let drop = 127 - self.fraction_bits;
        let by = (1 - exponent - self.bias()).max(0) as u32;
        let small = shift_right_jam(significand, by);
        let rounded = round_at(is_negative, small, drop, env.rounding);
        if rounded.is_inexact && env.unmasked_range & flag::UE == 0 {
            env.raise(flag::UE | flag::PE);
        }
        // The integer bit, if rounding has set it, is the exponent of the smallest normal number.
        sign | (rounded.significand >> drop) as u64
    }

    /// Rounds an integer times `2^unit`.
    pub(super) fn scaled_integer(
        self,
        is_negative: bool,
        magnitude: u64,
        unit: i32,
        env: &mut Env,
    ) -> u64 {
        if magnitude == 0 {
            return self.sign(is_negative);
        }
        let shift = magnitude.leading_zeros();
        let significand = u128::from(magnitude << shift) << 64;
        self.round(is_negative, 63 - shift as i32 + unit, significand, env)
    }

    /// The NaN that two operands give, of which the first wins; `None` if none is a NaN. An SNaN is
    /// an invalid operand.
    pub(super) fn nan_of(self, a: Number, b: Number, env: &mut Env) -> Option<u64> {
        if a.is_signaling() || b.is_signaling() {
            env.raise(flag::IE);
        }
        let nan = [a, b].into_iter().find(|n| n.is_nan())?;
        Some(self.quiet(nan.bits))
    }

    /// Returns an integer that orders numbers as they are ordered; both zeros are equal.
    pub(super) const fn ordinal(self, bits: u64) -> i64 {
        let magnitude = (bits & !self.sign(true)) as i64;
        match bits & self.sign(true) {
            0 => magnitude,
            _ => -magnitude,
        }
    }

    /// Notes denormal operands.
    pub(super) fn note_denormals(self, numbers: &[Number], env: &mut Env) {
        if numbers.iter().any(|n| n.class == Class::Denormal) {
            env.raise(flag::DE);
        }
    }
}

/// Rounds a finite number to a multiple of `2^unit`: the multiple, and whether it is another.
///
/// Numbers from `2^(63 + unit)` on, which are such multiples in every format, are not for here.
pub(super) fn to_multiple(number: Number, unit: i32, rounding: Rounding) -> (u64, bool) {
    if !number.is_finite_nonzero() {
        return (0, false);
    }
    // The significand is `value * 2^(63 - exponent)`; one unit of the multiple is bit 64 here.
    let by = 63 - number.exponent + unit;
    let wide = u128::from(number.significand) << 63;
    let fixed = shift_right_jam(wide, by.clamp(0, 127) as u32);
    let rounded = round_at(number.is_negative, fixed, 63, rounding);
    ((rounded.significand >> 63) as u64, rounded.is_inexact)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_taken_apart_and_rounded_back() {
        let mut env = Env::of(0x1f80);
        for bits in [1_u64, 0x7f_ffff, 0x80_0000, 0x3f80_0001, 0xff7f_ffff] {
            let number = Format::SINGLE.unpack(bits, &env);
            let significand = u128::from(number.significand) << 64;
            let again =
                Format::SINGLE.round(number.is_negative, number.exponent, significand, &mut env);
            assert_eq!(again, bits);
            let double =
                Format::DOUBLE.round(number.is_negative, number.exponent, significand, &mut env);
            let native = f64::from(f32::from_bits(bits as u32));
            assert_eq!(double, native.to_bits());
        }
        assert_eq!(env.flags, 0);
    }

    #[test]
    fn tiny_results_are_flushed_or_denormal() {
        for (mxcsr, value, flags) in [
            (0x1f80, 0x40_0000, 0),
            (0x9f80, 0, flag::UE | flag::PE),
            (0xdf80, 0, flag::UE | flag::PE),
        ] {
            let mut env = Env::of(mxcsr);
            assert_eq!(Format::SINGLE.round(false, -127, 1 << 127, &mut env), value);
            assert_eq!(env.flags, flags);
        }
    }

    #[test]
    fn multiples_are_rounded_as_asked() {
        let env = Env::of(0x1f80);
        let number = |x: f64| Format::DOUBLE.unpack(x.to_bits(), &env);
        assert_eq!(to_multiple(number(2.5), 0, Rounding::Nearest), (2, true));
        assert_eq!(to_multiple(number(2.5), 0, Rounding::Up), (3, true));
        assert_eq!(to_multiple(number(-2.5), 0, Rounding::Up), (2, true));
        assert_eq!(to_multiple(number(2.5), -1, Rounding::Up), (5, false));
        assert_eq!(to_multiple(number(1e-300), 0, Rounding::Up), (1, true));
        let large = 9_223_372_036_854_774_784.0;
        let whole = 9_223_372_036_854_774_784;
        assert_eq!(to_multiple(number(large), 0, Rounding::Up), (whole, false));
    }
}
