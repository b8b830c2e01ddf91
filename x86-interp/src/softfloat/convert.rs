//! Conversions: to and from single and double precision, integers, decimals; rounding to integers.

pub(crate) use super::format::Format;
use super::{
    BIAS, Class, Env, F80, Finite, Out, Rounding, denormals, flag, round_at, shift_right_jam,
    special_one,
};

/// Extends a number of a smaller format as it is; DE for a denormal.
pub(crate) fn widen(bits: u64, format: Format) -> Out {
    let fraction_bits = format.fraction_bits;
    let sign = bits & format.sign(true) != 0;
    let exponent = (bits >> fraction_bits) as i32 & format.largest_exponent();
    let fraction = bits & format.fraction_mask();
    let low = 1 << 63 | fraction << (63 - fraction_bits);
    if exponent == format.largest_exponent() {
        return Out::exact(F80::new(sign, super::MAX_EXPONENT, low));
    }
    if exponent != 0 {
        return Out::exact(F80::new(sign, exponent - format.bias() + BIAS, low));
    }
    if fraction == 0 {
        return Out::exact(F80::zero(sign));
    }
    let shift = fraction.leading_zeros();
    let exponent = BIAS - format.bias() + 1 + (63 - fraction_bits as i32) - shift as i32;
    Out::exact(F80::new(sign, exponent, fraction << shift)).with(flag::DE)
}

/// Rounds to a smaller format. An unmasked overflow or underflow gives nothing to be stored.
pub(crate) fn narrow(value: F80, format: Format, env: &Env) -> Out<Option<u64>> {
    let nan = |v: F80| {
        let fraction = v.low >> (63 - format.fraction_bits);
        format.encode(v.sign(), format.largest_exponent(), fraction)
    };
    if let Some(out) = special_one(value) {
        return Out::exact(Some(nan(out.value))).with(out.flags);
    }
    let sign = value.sign();
    match value.class() {
        Class::Zero => Out::exact(Some(format.encode(sign, 0, 0))),
        Class::Infinity => Out::exact(Some(format.encode(sign, format.largest_exponent(), 0))),
        _ => narrow_finite(value.unpack(), format, env),
    }
}

fn narrow_finite(value: Finite, format: Format, env: &Env) -> Out<Option<u64>> {
    let Finite { sign, .. } = value;
    let drop = 127 - format.fraction_bits;
    let significand = u128::from(value.significand) << 64;
    let rounded = round_at(sign, significand, drop, env.rounding);
    let exponent = value.exponent - BIAS + format.bias();
    let full = exponent + i32::from(rounded.has_carried);
    if full >= format.largest_exponent() {
        if env.unmasked & flag::OE != 0 {
            return Out::exact(None).with(flag::OE);
        }
        let value = format.overflowed(sign, env.rounding);
        return Out {
            value: Some(value),
            flags: flag::OE | flag::PE,
            is_rounded_up: value == format.infinity(sign),
        };
    }
    let mut flags = 0;
    let (rounded, is_denormal) = if full <= 0 {
        if env.unmasked & flag::UE != 0 {
            return Out::exact(None).with(flag::UE);
        }
        let small = shift_right_jam(significand, (1 - exponent) as u32);
        let rounded = round_at(sign, small, drop, env.rounding);
        if rounded.is_inexact {
            flags |= flag::UE;
        }
        let is_denormal = rounded.significand >> 127 == 0;
        (rounded, is_denormal)
    } else {
        (rounded, false)
    };
    if rounded.is_inexact {
        flags |= flag::PE;
    }
    let exponent = if is_denormal { 0 } else { full.max(1) };
    let fraction = (rounded.significand >> drop) as u64;
    Out {
        value: Some(format.encode(sign, exponent, fraction)),
        flags,
        is_rounded_up: rounded.is_up,
    }
}

/// Converts a signed integer: always exact.
pub(crate) fn from_integer(value: i64) -> F80 {
    if value == 0 {
        return F80::ZERO;
    }
    let magnitude = value.unsigned_abs();
    let shift = magnitude.leading_zeros();
    F80::new(value < 0, BIAS + 63 - shift as i32, magnitude << shift)
}

/// Rounds a finite number to an integer: its magnitude, `None` above 2^64 - 1.
fn to_magnitude(value: F80, rounding: Rounding) -> Out<Option<u64>> {
    if value.class() == Class::Zero {
        return Out::exact(Some(0));
    }
    let v = value.unpack();
    let power = v.exponent - BIAS;
    if power > 63 {
        return Out::exact(None);
    }
    // The point is between the halves.
    let fixed = shift_right_jam(u128::from(v.significand) << 64, (63 - power) as u32);
    let rounded = round_at(v.sign, fixed, 64, rounding);
    let magnitude = (rounded.significand >> 64) as u64;
    Out {
        value: (!rounded.has_carried).then_some(magnitude),
        flags: if rounded.is_inexact { flag::PE } else { 0 },
        is_rounded_up: rounded.is_up,
    }
}

/// Rounds to a signed integer of so many bits; invalid, and the integer indefinite, if there is
/// none.
pub(crate) fn to_integer(value: F80, bits: u32, rounding: Rounding) -> Out<i64> {
    let indefinite = Out::exact(i64::MIN >> (64 - bits)).with(flag::IE);
    if special_one(value).is_some() || value.class() == Class::Infinity {
        return indefinite;
    }
    let out = to_magnitude(value, rounding);
    let limit = 1_u64 << (bits - 1);
    let integer = match out.value {
        Some(m) if !value.sign() && m < limit => m as i64,
        Some(m) if value.sign() && m <= limit => (m as i64).wrapping_neg(),
        _ => return indefinite,
    };
    Out {
        value: integer,
        flags: out.flags,
        is_rounded_up: out.is_rounded_up,
    }
}

/// The packed BCD indefinite.
const DECIMAL_INDEFINITE: [u8; 10] = [0, 0, 0, 0, 0, 0, 0, 0xc0, 0xff, 0xff];
const LARGEST_DECIMAL: u64 = 999_999_999_999_999_999;

/// Rounds to 18 packed decimal digits.
pub(crate) fn to_decimal(value: F80, rounding: Rounding) -> Out<[u8; 10]> {
    let invalid = Out::exact(DECIMAL_INDEFINITE).with(flag::IE);
    if special_one(value).is_some() || value.class() == Class::Infinity {
        return invalid;
    }
    let out = to_magnitude(value, rounding);
    let Some(mut rest) = out.value.filter(|&m| m <= LARGEST_DECIMAL) else {
        return invalid;
    };
    let mut bytes = [0; 10];
    for byte in &mut bytes[..9] {
        let two = rest % 100;
        rest /= 100;
        *byte = (((two / 10) << 4) | (two % 10)) as u8;
    }
    bytes[9] = u8::from(value.sign()) << 7;
    Out {
        value: bytes,
        flags: out.flags,
        is_rounded_up: out.is_rounded_up,
    }
}

/// Converts 18 packed decimal digits. What digits above 9 mean is not defined: here their value.
pub(crate) fn from_decimal(bytes: &[u8; 10]) -> F80 {
    let magnitude = bytes[..9].iter().rev().fold(0_u64, |n, &b| {
        n.wrapping_mul(100)
            .wrapping_add(u64::from(b >> 4) * 10 + u64::from(b & 15))
    });
    let sign = bytes[9] & 0x80 != 0;
    if magnitude == 0 {
        return F80::zero(sign);
    }
    let shift = magnitude.leading_zeros();
    F80::new(sign, BIAS + 63 - shift as i32, magnitude << shift)
}

/// Rounds to an integral value: FRNDINT.
pub(crate) fn round_to_integral(value: F80, env: &Env) -> Out {
    if let Some(out) = special_one(value) {
        return out;
    }
    if matches!(value.class(), Class::Zero | Class::Infinity) {
        return Out::exact(value);
    }
    let flags = denormals(&[value]);
    if value.unpack().exponent - BIAS >= 63 {
        return Out::exact(value).with(flags);
    }
    let out = to_magnitude(value, env.rounding);
    let magnitude = out.value.unwrap_or(0);
    let shift = magnitude.leading_zeros();
    let integral = if magnitude == 0 {
        F80::zero(value.sign())
    } else {
        F80::new(value.sign(), BIAS + 63 - shift as i32, magnitude << shift)
    };
    Out {
        value: integral,
        flags: out.flags | flags,
        is_rounded_up: out.is_rounded_up,
    }
}
