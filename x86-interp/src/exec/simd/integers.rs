//! Conversions between numbers and the integers that SSE cannot convert: unsigned ones, and vectors
//! of quadwords.
//!
//! SDM Vol. 2, "VCVTPS2UDQ", "VCVTPD2QQ", "VCVTUQQ2PS", "VCVTSS2USI", "VCVTUSI2SS" and their kin; Vol. 1,
//! "Integer indefinite": what is out of range becomes the most negative or the largest unsigned one.

use iced_x86::{Code, Mnemonic};

use super::binary::{Element, Env, Format, flag, to_multiple, under};
use super::lanes::{Lane, get};
use super::under_mxcsr::Rounded;
use super::vector::is_vector_form;
use crate::exec::Row;
use crate::exec::form::plain;
use crate::insn::{Insn, Plain};
use crate::softfloat::Rounding;
use crate::{Cpu, Exec};

/// An integer type: signed or not, and its width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Integer {
    is_signed: bool,
    bits: u32,
}

/// Doublewords.
pub(super) const SIGNED_32: Integer = Integer {
    is_signed: true,
    bits: 32,
};
const SIGNED_64: Integer = Integer {
    is_signed: true,
    bits: 64,
};
const UNSIGNED_32: Integer = Integer {
    is_signed: false,
    bits: 32,
};
const UNSIGNED_64: Integer = Integer {
    is_signed: false,
    bits: 64,
};

/// Whether a conversion rounds as MXCSR says, or truncates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    Rounded,
    Truncated,
}

/// A handler: numbers of type `$f` become integers of a type.
macro_rules! to_integers {
    ($method:ident $bytes:literal, $f:ident $g:ident, $integer:ident, $how:ident) => {{
        fn handler(cpu: &mut Cpu, insn: &Insn) -> Exec {
            cpu.$method(insn, $bytes, to_integers::<$f, $g>($integer, How::$how))
        }
        handler as Plain
    }};
}

/// A handler: integers become numbers.
macro_rules! from_integers {
    ($method:ident $bytes:literal, $f:ident $g:ident, $integer:ident) => {{
        fn handler(cpu: &mut Cpu, insn: &Insn) -> Exec {
            cpu.$method(insn, $bytes, from_integers::<$f, $g>($integer))
        }
        handler as Plain
    }};
}

/// Returns who executes an instruction of this file.
pub(super) fn lookup(code: Code) -> Option<Row> {
    if !is_vector_form(code) {
        return None;
    }
    let mnemonic = code.mnemonic();
    to_vectors(mnemonic)
        .or_else(|| from_vectors(mnemonic))
        .or_else(|| general(mnemonic))
        .and_then(plain)
}

#[rustfmt::skip]
fn to_vectors(mnemonic: Mnemonic) -> Option<Plain> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Vcvtps2udq => to_integers!(packed_convert 4, u32 u32, UNSIGNED_32, Rounded),
        M::Vcvttps2udq => to_integers!(packed_convert 4, u32 u32, UNSIGNED_32, Truncated),
        M::Vcvtpd2udq => to_integers!(narrowing_convert 4, u64 u32, UNSIGNED_32, Rounded),
        M::Vcvttpd2udq => to_integers!(narrowing_convert 4, u64 u32, UNSIGNED_32, Truncated),
        M::Vcvtps2qq => to_integers!(widening_float 8, u32 u64, SIGNED_64, Rounded),
        M::Vcvttps2qq => to_integers!(widening_float 8, u32 u64, SIGNED_64, Truncated),
        M::Vcvtps2uqq => to_integers!(widening_float 8, u32 u64, UNSIGNED_64, Rounded),
        M::Vcvttps2uqq => to_integers!(widening_float 8, u32 u64, UNSIGNED_64, Truncated),
        M::Vcvtpd2qq => to_integers!(packed_convert 8, u64 u64, SIGNED_64, Rounded),
        M::Vcvttpd2qq => to_integers!(packed_convert 8, u64 u64, SIGNED_64, Truncated),
        M::Vcvtpd2uqq => to_integers!(packed_convert 8, u64 u64, UNSIGNED_64, Rounded),
        M::Vcvttpd2uqq => to_integers!(packed_convert 8, u64 u64, UNSIGNED_64, Truncated),
        _ => return None,
    })
}

#[rustfmt::skip]
fn from_vectors(mnemonic: Mnemonic) -> Option<Plain> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Vcvtudq2ps => from_integers!(packed_convert 4, u32 u32, UNSIGNED_32),
        M::Vcvtudq2pd => from_integers!(widening_float 8, u32 u64, UNSIGNED_32),
        M::Vcvtqq2ps => from_integers!(narrowing_convert 4, u64 u32, SIGNED_64),
        M::Vcvtqq2pd => from_integers!(packed_convert 8, u64 u64, SIGNED_64),
        M::Vcvtuqq2ps => from_integers!(narrowing_convert 4, u64 u32, UNSIGNED_64),
        M::Vcvtuqq2pd => from_integers!(packed_convert 8, u64 u64, UNSIGNED_64),
        _ => return None,
    })
}

#[rustfmt::skip]
fn general(mnemonic: Mnemonic) -> Option<Plain> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Vcvtss2usi => |cpu, insn| to_general::<u32>(cpu, insn, How::Rounded),
        M::Vcvttss2usi => |cpu, insn| to_general::<u32>(cpu, insn, How::Truncated),
        M::Vcvtsd2usi => |cpu, insn| to_general::<u64>(cpu, insn, How::Rounded),
        M::Vcvttsd2usi => |cpu, insn| to_general::<u64>(cpu, insn, How::Truncated),
        M::Vcvtusi2ss => |cpu, insn| from_general(cpu, insn, Format::SINGLE),
        M::Vcvtusi2sd => |cpu, insn| from_general(cpu, insn, Format::DOUBLE),
        _ => return None,
    })
}

impl Cpu {
    fn packed_convert(
        &mut self,
        insn: &Insn,
        bytes: usize,
        f: impl Fn(u128, u128, &mut u32) -> u128,
    ) -> Exec {
        self.packed_float(insn, bytes, Rounded::Never, f)
    }

    fn narrowing_convert(
        &mut self,
        insn: &Insn,
        bytes: usize,
        f: impl Fn(u128, u128, &mut u32) -> u128,
    ) -> Exec {
        self.narrowing_float(insn, bytes, Rounded::Never, f)
    }
}

/// Makes a function of lanes from one of elements: as many as fit the wider type.
fn each<F: Lane, G: Lane>(value: u128, mut f: impl FnMut(u64) -> u64) -> u128 {
    let count = 128 / F::BITS.max(G::BITS);
    (0..count).fold(0, |all, n| {
        let result = f(get::<F>(value, n).give() as u64);
        all | u128::from(result) << (n * G::BITS)
    })
}

fn to_integers<F: Element, G: Lane>(
    integer: Integer,
    how: How,
) -> impl Fn(u128, u128, &mut u32) -> u128 {
    move |_, b, mxcsr| {
        under(mxcsr, |env| {
            each::<F, G>(b, |bits| to_integer(F::FORMAT, bits, integer, how, env))
        })
    }
}

fn from_integers<F: Lane, G: Element>(integer: Integer) -> impl Fn(u128, u128, &mut u32) -> u128 {
    move |_, b, mxcsr| {
        under(mxcsr, |env| {
            each::<F, G>(b, |bits| from_integer(G::FORMAT, bits, integer, env))
        })
    }
}

/// Converts a number to an integer.
pub(super) fn to_integer(
    format: Format,
    bits: u64,
    integer: Integer,
    how: How,
    env: &mut Env,
) -> u64 {
    let number = format.unpack(bits, env);
    let width = integer.bits;
    let rounding = match how {
        How::Rounded => env.rounding,
        How::Truncated => Rounding::Zero,
    };
    let is_far = number.is_finite_nonzero() && number.exponent > 63;
    let is_number = !number.is_nan() && !number.is_infinite() && !is_far;
    let (magnitude, is_inexact) = match is_number {
        true => to_multiple(number, 0, rounding),
        false => (0, false),
    };
    let magnitude = u128::from(magnitude);
    let fits = match (integer.is_signed, number.is_negative) {
        (true, true) => magnitude <= 1 << (width - 1),
        (true, false) => magnitude < 1 << (width - 1),
        (false, true) => magnitude == 0,
        (false, false) => magnitude < 1 << width,
    };
    let mask = u64::MAX >> (64 - width);
    if !is_number || !fits {
        env.raise(flag::IE);
        return match integer.is_signed {
            true => 1 << (width - 1),
            false => mask,
        };
    }
    if is_inexact {
        env.raise(flag::PE);
    }
    let magnitude = magnitude as u64;
    mask & match number.is_negative {
        true => magnitude.wrapping_neg(),
        false => magnitude,
    }
}

/// Converts an integer to a number.
pub(super) fn from_integer(format: Format, bits: u64, integer: Integer, env: &mut Env) -> u64 {
    let shift = 64 - integer.bits;
    let is_negative = integer.is_signed && bits >> (integer.bits - 1) & 1 != 0;
    let value = match integer.is_signed {
        true => ((bits << shift) as i64 >> shift).unsigned_abs(),
        false => bits << shift >> shift,
    };
    format.scaled_integer(is_negative, value, 0, env)
}

/// VCVTSS2USI and its kin.
fn to_general<F: Element>(cpu: &mut Cpu, insn: &Insn, how: How) -> Exec {
    cpu.check_vector(insn)?;
    let from = cpu.read_element(insn, 1, F::BITS as usize / 8)?;
    let integer = type_of_general(insn, 0);
    let bits = F::take(from).widen();
    let convert =
        |mxcsr: &mut u32| under(mxcsr, |env| to_integer(F::FORMAT, bits, integer, how, env));
    let value = cpu.compute(&insn.vector, |_| false, convert)?;
    // The upper half of a doubleword's register is cleared.
    cpu.write(insn, 0, value)
}

/// VCVTUSI2SS and its kin.
fn from_general(cpu: &mut Cpu, insn: &Insn, format: Format) -> Exec {
    cpu.check_vector(insn)?;
    let integer = type_of_general(insn, 2);
    let from = match integer.bits {
        64 => cpu.read::<u64>(insn, 2)?,
        _ => u64::from(cpu.read::<u32>(insn, 2)?),
    };
    let convert = |mxcsr: &mut u32| under(mxcsr, |env| from_integer(format, from, integer, env));
    let low = cpu.compute(&insn.vector, |_| false, convert)?;
    let rest = cpu.register_lanes(insn, 1)[0] >> format.bits() << format.bits();
    cpu.write_scalar(insn, rest | u128::from(low), format.bits() as usize / 8)
}

/// The unsigned type of a general-purpose operand.
fn type_of_general(insn: &Insn, n: u32) -> Integer {
    use iced_x86::OpCodeOperandKind as K;
    match insn.code.op_code().op_kind(n) {
        K::r64_reg | K::r64_or_mem => UNSIGNED_64,
        _ => UNSIGNED_32,
    }
}
