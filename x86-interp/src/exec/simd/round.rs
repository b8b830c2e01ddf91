//! Rounding to integers and to multiples of a power of two, and what rounding takes away.
//!
//! SDM Vol. 2, "ROUNDPS", "VRNDSCALEPS", "VREDUCEPS".

use iced_x86::{Code, Mnemonic};

use super::binary::{Env, Format, Number, flag, in_software, to_multiple};
use super::fused::{Signs, fused_multiply_add};
use super::under_mxcsr::Rounded;
use super::vector::is_vector_form;
use crate::exec::Row;
use crate::exec::form::plain;
use crate::insn::{Insn, Plain};
use crate::{Cpu, Exec};

/// Returns who executes an instruction of this file.
#[rustfmt::skip]
pub(super) fn lookup(code: Code) -> Option<Row> {
    use Mnemonic as M;
    if !is_vector_form(code) {
        return None;
    }
    plain(match code.mnemonic() {
        M::Roundps | M::Vroundps => in_software!(packed u32 Never, round),
        M::Roundpd | M::Vroundpd => in_software!(packed u64 Never, round),
        M::Roundss | M::Vroundss => in_software!(scalar u32 Never, round),
        M::Roundsd | M::Vroundsd => in_software!(scalar u64 Never, round),
        M::Vrndscaleps => in_software!(packed u32 Never, round_scale),
        M::Vrndscalepd => in_software!(packed u64 Never, round_scale),
        M::Vrndscaless => in_software!(scalar u32 Never, round_scale),
        M::Vrndscalesd => in_software!(scalar u64 Never, round_scale),
        M::Vreduceps => in_software!(packed u32 Never, reduce),
        M::Vreducepd => in_software!(packed u64 Never, reduce),
        M::Vreducess => in_software!(scalar u32 Never, reduce),
        M::Vreducesd => in_software!(scalar u64 Never, reduce),
        _ => return None,
    })
}

/// Bit 3 of the immediate: precision exceptions are not reported.
const SUPPRESS_PRECISION: u8 = 1 << 3;

/// ROUNDPS and its kin: to an integer.
fn round(format: Format, a: u64, b: u64, immediate: u8, env: &mut Env) -> u64 {
    round_scale(format, a, b, immediate & 0xf, env)
}

/// VRNDSCALEPS and its kin: to a multiple of `2^-M`, M in bits 7:4 of the immediate.
fn round_scale(format: Format, _: u64, b: u64, immediate: u8, env: &mut Env) -> u64 {
    let number = format.unpack(b, env);
    if let Some(nan) = format.nan_of(number, number, env) {
        return nan;
    }
    rounded(format, number, immediate, env)
}

/// Rounds a number that is no NaN.
fn rounded(format: Format, number: Number, immediate: u8, env: &mut Env) -> u64 {
    let unit = -i32::from(immediate >> 4);
    let is_multiple = number.exponent - format.fraction_bits as i32 >= unit;
    if !number.is_finite_nonzero() || is_multiple {
        return number.bits;
    }
    let mut exact = *env;
    exact.rounding_by(immediate);
    let (multiple, is_inexact) = to_multiple(number, unit, exact.rounding);
    if is_inexact && immediate & SUPPRESS_PRECISION == 0 {
        env.raise(flag::PE);
    }
    format.scaled_integer(number.is_negative, multiple, unit, &mut exact)
}

/// VREDUCEPS and its kin: the number less what VRNDSCALEPS makes of it.
fn reduce(format: Format, _: u64, b: u64, immediate: u8, env: &mut Env) -> u64 {
    let number = format.unpack(b, env);
    if let Some(nan) = format.nan_of(number, number, env) {
        return nan;
    }
    if number.is_infinite() {
        return 0;
    }
    let multiple = env.keeping(0, |own| rounded(format, number, immediate, own));
    let kept = match immediate & SUPPRESS_PRECISION {
        0 => flag::PE,
        _ => 0,
    };
    env.keeping(kept, |own| {
        own.rounding_by(immediate);
        let one = format.power(0);
        let less = Signs {
            negates_product: false,
            negates_addend: true,
        };
        fused_multiply_add(format, [number.bits, one, multiple], less, own)
    })
}
