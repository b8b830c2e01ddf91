//! Arithmetic of the x87 FPU in integers: double extended-precision numbers, exact on every host.
//!
//! SDM Vol. 1, "Programming with the x87 FPU" and "Floating-Point Exceptions". A function of this
//! module takes operands and an [`Env`] and answers with an [`Out`]: the value that a masked
//! response gives (with unmasked overflow or underflow the scaled one), the exceptions, and C1.

pub(crate) mod arithmetic;
pub(crate) mod compare;
pub(crate) mod convert;
pub(crate) mod format;
pub(crate) mod remainder;
pub(crate) mod transcendental;
mod wide;

/// Exceptions, at their places in the control, status and MXCSR words.
pub(crate) mod flag {
    /// Invalid operation.
    pub(crate) const IE: u8 = 1 << 0;
    /// Denormal operand.
    pub(crate) const DE: u8 = 1 << 1;
    /// Division by zero.
    pub(crate) const ZE: u8 = 1 << 2;
    /// Overflow.
    pub(crate) const OE: u8 = 1 << 3;
    /// Underflow.
    pub(crate) const UE: u8 = 1 << 4;
    /// Inexact result.
    pub(crate) const PE: u8 = 1 << 5;
}

/// The bias of the exponent.
pub(crate) const BIAS: i32 = 16383;
/// The largest exponent: infinities and NaNs.
pub(crate) const MAX_EXPONENT: i32 = 0x7fff;
/// What unmasked overflow and underflow move the exponent by ("Numeric Overflow Exception").
const SCALE: i32 = 24576;
const INTEGER_BIT: u64 = 1 << 63;
const QUIET_BIT: u64 = 1 << 62;

/// Rounding control.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rounding {
    Nearest,
    Down,
    Up,
    Zero,
}

impl Rounding {
    /// Returns what the two bits of a control word mean.
    pub(crate) const fn of(bits: u16) -> Self {
        match bits & 3 {
            0 => Self::Nearest,
            1 => Self::Down,
            2 => Self::Up,
            _ => Self::Zero,
        }
    }
}

/// How to compute: what of the control word matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Env {
    pub(crate) rounding: Rounding,
    /// Bits of a significand: 24, 53 or 64.
    pub(crate) precision: u32,
    /// Exceptions that are not masked.
    pub(crate) unmasked: u8,
}

impl Env {
    /// Returns what an x87 control word says.
    pub(crate) const fn of(control: u16) -> Self {
        Self {
            rounding: Rounding::of(control >> 10),
            precision: match control >> 8 & 3 {
                0 => 24,
                2 => 53,
                _ => 64,
            },
            unmasked: !control as u8 & 0x3f,
        }
    }

    /// The same with 64 bits of precision.
    pub(crate) const fn full(self) -> Self {
        Self {
            precision: 64,
            ..self
        }
    }
}

/// A double extended-precision number as a register holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct F80 {
    /// Sign and exponent.
    pub(crate) high: u16,
    /// Significand, with its integer bit.
    pub(crate) low: u64,
}

/// What kind of number it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    Zero,
    /// Denormals and pseudo-denormals.
    Denormal,
    Normal,
    Infinity,
    QuietNan,
    SignalingNan,
    /// Unnormals, pseudo-infinities, pseudo-NaNs.
    Unsupported,
}

impl F80 {
    pub(crate) const ZERO: Self = Self::new(false, 0, 0);
    pub(crate) const ONE: Self = Self::new(false, BIAS, INTEGER_BIT);
    /// The QNaN floating-point indefinite.
    pub(crate) const INDEFINITE: Self = Self::new(true, MAX_EXPONENT, INTEGER_BIT | QUIET_BIT);

    pub(crate) const fn new(sign: bool, exponent: i32, low: u64) -> Self {
        Self {
            high: (sign as u16) << 15 | exponent as u16 & 0x7fff,
            low,
        }
    }

    pub(crate) const fn zero(sign: bool) -> Self {
        Self::new(sign, 0, 0)
    }

    pub(crate) const fn infinity(sign: bool) -> Self {
        Self::new(sign, MAX_EXPONENT, INTEGER_BIT)
    }

    pub(crate) fn from_bytes(bytes: &[u8; 10]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j] = *bytes;
        Self {
            high: u16::from_le_bytes([i, j]),
            low: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
        }
    }

    pub(crate) fn to_bytes(self) -> [u8; 10] {
        let mut bytes = [0; 10];
        bytes[..8].copy_from_slice(&self.low.to_le_bytes());
        bytes[8..].copy_from_slice(&self.high.to_le_bytes());
        bytes
    }

    pub(crate) const fn sign(self) -> bool {
        self.high >> 15 != 0
    }

    /// Returns the exponent field.
    pub(crate) const fn exponent(self) -> i32 {
        (self.high & 0x7fff) as i32
    }

    pub(crate) const fn class(self) -> Class {
        let has_integer_bit = self.low & INTEGER_BIT != 0;
        match self.exponent() {
            0 if self.low == 0 => Class::Zero,
            0 => Class::Denormal,
            _ if !has_integer_bit => Class::Unsupported,
            MAX_EXPONENT if self.low == INTEGER_BIT => Class::Infinity,
            MAX_EXPONENT if self.low & QUIET_BIT != 0 => Class::QuietNan,
            MAX_EXPONENT => Class::SignalingNan,
            _ => Class::Normal,
        }
    }

    /// Whether it is a normal number: what nearly every operand is.
    #[inline]
    pub(crate) const fn is_normal(self) -> bool {
        let exponent = self.high & 0x7fff;
        exponent.wrapping_sub(1) < 0x7ffe && self.low & INTEGER_BIT != 0
    }

    pub(crate) const fn is_nan(self) -> bool {
        matches!(self.class(), Class::QuietNan | Class::SignalingNan)
    }

    /// Returns the NaN, quiet.
    pub(crate) const fn quiet(self) -> Self {
        Self {
            low: self.low | QUIET_BIT,
            ..self
        }
    }

    pub(crate) const fn negate(self) -> Self {
        Self {
            high: self.high ^ 0x8000,
            ..self
        }
    }

    /// Returns sign, exponent and normalized significand of a finite number that is not zero.
    pub(crate) const fn unpack(self) -> Finite {
        let shift = self.low.leading_zeros();
        let exponent = if self.exponent() == 0 {
            1 - shift as i32
        } else {
            self.exponent()
        };
        Finite {
            sign: self.sign(),
            exponent,
            significand: self.low << (shift & 63),
        }
    }
}

/// A number that is not zero: `significand / 2^63 * 2^(exponent - BIAS)`, its highest bit set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Finite {
    pub(crate) sign: bool,
    pub(crate) exponent: i32,
    pub(crate) significand: u64,
}

/// What an operation gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Out<T = F80> {
    pub(crate) value: T,
    pub(crate) flags: u8,
    /// The result was rounded up in magnitude: C1.
    pub(crate) is_rounded_up: bool,
}

impl<T> Out<T> {
    /// An exact result.
    pub(crate) const fn exact(value: T) -> Self {
        Self {
            value,
            flags: 0,
            is_rounded_up: false,
        }
    }

    /// The same with more exceptions.
    pub(crate) fn with(self, flags: u8) -> Self {
        Self {
            flags: self.flags | flags,
            ..self
        }
    }
}

impl Out {
    /// An invalid operation.
    pub(crate) const INVALID: Self = Self {
        value: F80::INDEFINITE,
        flags: flag::IE,
        is_rounded_up: false,
    };
}

/// A significand after rounding.
pub(crate) struct Rounded {
    pub(crate) significand: u128,
    /// It became 2.0: the significand is 1.0 now, of the next exponent.
    pub(crate) has_carried: bool,
    pub(crate) is_inexact: bool,
    pub(crate) is_up: bool,
}

/// Rounds away the lowest `drop` bits, 1 to 127.
pub(crate) fn round_at(sign: bool, significand: u128, drop: u32, rounding: Rounding) -> Rounded {
    let unit = 1_u128 << drop;
    let rest = significand & (unit - 1);
    let half = unit >> 1;
    let kept = significand - rest;
    let is_inexact = rest != 0;
    let is_up = match rounding {
        Rounding::Nearest => rest > half || rest == half && kept & unit != 0,
        Rounding::Down => is_inexact && sign,
        Rounding::Up => is_inexact && !sign,
        Rounding::Zero => false,
    };
    let (significand, has_carried) = if is_up {
        kept.overflowing_add(unit)
    } else {
        (kept, false)
    };
    Rounded {
        significand: if has_carried { 1 << 127 } else { significand },
        has_carried,
        is_inexact,
        is_up,
    }
}

/// Shifts right; what falls out is kept as a sticky bit.
pub(crate) const fn shift_right_jam(value: u128, by: u32) -> u128 {
    if by == 0 {
        value
    } else if by >= 128 {
        (value != 0) as u128
    } else {
        let lost = value << (128 - by) != 0;
        value >> by | lost as u128
    }
}

/// Rounds `significand / 2^127 * 2^(exponent - BIAS)`, whose highest bit is set and whose lowest is
/// sticky, to a result.
#[inline]
pub(crate) fn round_pack(sign: bool, exponent: i32, significand: u128, env: &Env) -> Out {
    let is_far_from_limits = (1..MAX_EXPONENT - 1).contains(&exponent);
    if is_far_from_limits && env.rounding == Rounding::Nearest {
        round_to_nearest(sign, exponent, significand, env.precision)
    } else {
        round_anyhow(sign, exponent, significand, env)
    }
}

/// [`round_pack`] where neither overflow nor underflow is near.
#[inline]
fn round_to_nearest(sign: bool, exponent: i32, significand: u128, precision: u32) -> Out {
    let (high, low) = ((significand >> 64) as u64, significand as u64);
    let unit = 1_u64 << (64 - precision);
    let kept = high & unit.wrapping_neg();
    // What is rounded away: its highest bit, and whether there is more.
    let (half, rest) = if precision == 64 {
        (low >> 63 != 0, low << 1)
    } else {
        let below = high - kept;
        (below & unit >> 1 != 0, below & ((unit >> 1) - 1) | low)
    };
    let is_up = half && (rest != 0 || kept & unit != 0);
    let (sum, has_carried) = kept.overflowing_add(if is_up { unit } else { 0 });
    let low = if has_carried { INTEGER_BIT } else { sum };
    Out {
        value: F80::new(sign, exponent + i32::from(has_carried), low),
        flags: if half || rest != 0 { flag::PE } else { 0 },
        is_rounded_up: is_up,
    }
}

/// [`round_pack`] in general.
fn round_anyhow(sign: bool, exponent: i32, significand: u128, env: &Env) -> Out {
    let drop = 128 - env.precision;
    let rounded = round_at(sign, significand, drop, env.rounding);
    let full = exponent + i32::from(rounded.has_carried);
    if full >= MAX_EXPONENT {
        return overflow(sign, full, &rounded, env);
    }
    if full <= 0 {
        return underflow(sign, (exponent, significand), (full, &rounded), env);
    }
    pack(sign, full, &rounded, 0)
}

fn pack(sign: bool, exponent: i32, rounded: &Rounded, flags: u8) -> Out {
    let inexact = if rounded.is_inexact { flag::PE } else { 0 };
    Out {
        value: F80::new(sign, exponent, (rounded.significand >> 64) as u64),
        flags: flags | inexact,
        is_rounded_up: rounded.is_up,
    }
}

fn overflow(sign: bool, exponent: i32, rounded: &Rounded, env: &Env) -> Out {
    if env.unmasked & flag::OE != 0 {
        let scaled = exponent - SCALE;
        if scaled < MAX_EXPONENT {
            return pack(sign, scaled, rounded, flag::OE);
        }
        // Too large even so: FSCALE only.
        return Out {
            value: F80::infinity(sign),
            flags: flag::OE | flag::PE,
            is_rounded_up: true,
        };
    }
    let is_infinite = match env.rounding {
        Rounding::Nearest => true,
        Rounding::Down => sign,
        Rounding::Up => !sign,
        Rounding::Zero => false,
    };
    let value = if is_infinite {
        F80::infinity(sign)
    } else {
        F80::new(sign, MAX_EXPONENT - 1, u64::MAX << (64 - env.precision))
    };
    Out {
        value,
        flags: flag::OE | flag::PE,
        is_rounded_up: is_infinite,
    }
}

fn underflow(
    sign: bool,
    (exponent, significand): (i32, u128),
    (full, rounded): (i32, &Rounded),
    env: &Env,
) -> Out {
    if env.unmasked & flag::UE != 0 {
        let scaled = full + SCALE;
        if scaled > 0 {
            return pack(sign, scaled, rounded, flag::UE);
        }
        // Too small even so: FSCALE only.
        return Out::exact(F80::zero(sign)).with(flag::UE | flag::PE);
    }
    let small = shift_right_jam(significand, (1 - exponent) as u32);
    let rounded = round_at(sign, small, 128 - env.precision, env.rounding);
    let is_normal = rounded.significand >> 127 != 0;
    let flags = if rounded.is_inexact { flag::UE } else { 0 };
    pack(sign, i32::from(is_normal), &rounded, flags)
}

/// What operands that are NaNs or unsupported give ("Operating on SNaNs and QNaNs"); `None` if no
/// operand is.
pub(crate) fn special(a: F80, b: F80) -> Option<Out> {
    use Class::{QuietNan, SignalingNan, Unsupported};
    let (left, right) = (a.class(), b.class());
    if left == Unsupported || right == Unsupported {
        return Some(Out::INVALID);
    }
    let value = match (left, right) {
        (SignalingNan, SignalingNan) | (QuietNan, QuietNan) => larger(a, b),
        (QuietNan, _) => a,
        (_, QuietNan) => b,
        (SignalingNan, _) => a,
        (_, SignalingNan) => b,
        _ => return None,
    };
    let is_signaling = left == SignalingNan || right == SignalingNan;
    let flags = if is_signaling { flag::IE } else { 0 };
    Some(Out::exact(value.quiet()).with(flags))
}

/// As [`special`], of one operand.
pub(crate) fn special_one(a: F80) -> Option<Out> {
    special(a, F80::ONE)
}

/// The NaN with the larger significand; of two equal ones the positive one.
fn larger(a: F80, b: F80) -> F80 {
    match a.low.cmp(&b.low) {
        core::cmp::Ordering::Greater => a,
        core::cmp::Ordering::Less => b,
        core::cmp::Ordering::Equal if a.sign() => b,
        core::cmp::Ordering::Equal => a,
    }
}

/// DE if an operand is denormal.
pub(crate) fn denormals(operands: &[F80]) -> u8 {
    let has = operands.iter().any(|v| v.class() == Class::Denormal);
    if has { flag::DE } else { 0 }
}
