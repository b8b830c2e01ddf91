//! Exponents and significands of numbers, and scaling by powers of two.
//!
//! SDM Vol. 2, "VGETEXPPS", "VGETMANTPS", "VSCALEFPS".

use iced_x86::{Code, Mnemonic};

use super::binary::{Class, Env, Format, Number, flag, in_software, to_multiple};
use super::under_mxcsr::Rounded;
use super::vector::is_vector_form;
use crate::exec::Row;
use crate::exec::form::plain;
use crate::insn::{Insn, Plain};
use crate::softfloat::Rounding;
use crate::{Cpu, Exec};

/// Returns who executes an instruction of this file.
#[rustfmt::skip]
pub(super) fn lookup(code: Code) -> Option<Row> {
    use Mnemonic as M;
    if !is_vector_form(code) {
        return None;
    }
    plain(match code.mnemonic() {
        M::Vgetexpps => in_software!(packed u32 Never, exponent),
        M::Vgetexppd => in_software!(packed u64 Never, exponent),
        M::Vgetexpss => in_software!(scalar u32 Never, exponent),
        M::Vgetexpsd => in_software!(scalar u64 Never, exponent),
        M::Vgetmantps => in_software!(packed u32 Never, mantissa),
        M::Vgetmantpd => in_software!(packed u64 Never, mantissa),
        M::Vgetmantss => in_software!(scalar u32 Never, mantissa),
        M::Vgetmantsd => in_software!(scalar u64 Never, mantissa),
        M::Vscalefps => in_software!(packed u32 Single, scale),
        M::Vscalefpd => in_software!(packed u64 Double, scale),
        M::Vscalefss => in_software!(scalar u32 Single, scale),
        M::Vscalefsd => in_software!(scalar u64 Double, scale),
        _ => return None,
    })
}

/// VGETEXPPS and its kin: floor(log2(|b|)).
fn exponent(format: Format, _: u64, b: u64, _: u8, env: &mut Env) -> u64 {
    let number = format.unpack(b, env);
    if let Some(nan) = format.nan_of(number, number, env) {
        return nan;
    }
    format.note_denormals(&[number], env);
    match number.class {
        Class::Zero => format.infinity(true),
        Class::Infinity => format.infinity(false),
        _ => {
            let magnitude = u64::from(number.exponent.unsigned_abs());
            format.scaled_integer(number.exponent < 0, magnitude, 0, env)
        }
    }
}

/// VGETMANTPS and its kin: the significand in the interval of bits 1:0 of the immediate, with the
/// sign that bits 3:2 say.
fn mantissa(format: Format, _: u64, b: u64, immediate: u8, env: &mut Env) -> u64 {
    let number = format.unpack(b, env);
    if let Some(nan) = format.nan_of(number, number, env) {
        return nan;
    }
    let is_negative = number.is_negative && immediate & 4 == 0;
    let refuses_negative = immediate & 8 != 0;
    if number.is_zero() {
        return format.sign(is_negative) | format.power(0);
    }
    if number.is_negative && refuses_negative {
        env.raise(flag::IE);
        return format.indefinite();
    }
    if number.is_infinite() {
        return format.sign(is_negative) | format.power(0);
    }
    format.note_denormals(&[number], env);
    let is_upper_half = number.significand >> 62 & 1 != 0;
    let exponent = match immediate & 3 {
        0 => 0,
        1 => -(number.exponent & 1),
        2 => -1,
        _ => -i32::from(is_upper_half),
    };
    let significand = u128::from(number.significand) << 64;
    format.round(is_negative, exponent, significand, env)
}

/// VSCALEFPS and its kin: a * 2^floor(b). A denormal b is not reported.
fn scale(format: Format, a: u64, b: u64, _: u8, env: &mut Env) -> u64 {
    let (x, y) = (format.unpack(a, env), format.unpack(b, env));
    if let Some(special) = scale_special(format, x, y, env) {
        return special;
    }
    format.note_denormals(&[x], env);
    if !x.is_finite_nonzero() {
        return x.bits;
    }
    let by = floor(y);
    let significand = u128::from(x.significand) << 64;
    format.round(x.is_negative, x.exponent + by, significand, env)
}

/// NaNs and infinities: a QNaN to an infinite power is as any number is.
fn scale_special(format: Format, x: Number, y: Number, env: &mut Env) -> Option<u64> {
    let is_quiet = x.class == Class::QuietNan;
    if is_quiet && y.is_infinite() {
        return Some(match y.is_negative {
            true => 0,
            false => format.infinity(false),
        });
    }
    if let Some(nan) = format.nan_of(x, y, env) {
        return Some(nan);
    }
    if !y.is_infinite() {
        return None;
    }
    let is_invalid = match y.is_negative {
        true => x.is_infinite(),
        false => x.is_zero(),
    };
    if is_invalid {
        env.raise(flag::IE);
        return Some(format.indefinite());
    }
    format.note_denormals(&[x], env);
    Some(match y.is_negative {
        true => format.sign(x.is_negative),
        false => format.infinity(x.is_negative),
    })
}

/// Returns the floor of a finite number, or a number of its sign that is far beyond any exponent.
fn floor(number: Number) -> i32 {
    const FAR: i32 = 1 << 20;
    let (magnitude, _) = match number.exponent {
        20.. => (FAR as u64, false),
        _ => to_multiple(number, 0, Rounding::Down),
    };
    match number.is_negative {
        true => -(magnitude as i32),
        false => magnitude as i32,
    }
}
