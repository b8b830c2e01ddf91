//! Approximations of reciprocals and of reciprocals of square roots.
//!
//! SDM Vol. 2, "RCPPS", "RSQRTPS" (relative error at most 1.5 * 2^-12), "VRCP14PS", "VRSQRT14PS" (less
//! than 2^-14). Processors differ within these bounds; the results here are those of IEEE double
//! precision, cut to 13 or 15 bits, so that a guest computes the same on every host.
//! They raise no exceptions.

use iced_x86::{Code, Mnemonic};

use super::binary::{Class, Env, Format, Number, on_elements, on_lowest};
use super::under_mxcsr::{Rounded, all_masked};
use super::vector::is_vector_form;
use crate::exec::Row;
use crate::exec::form::plain;
use crate::insn::{Insn, Plain};
use crate::softfloat::Rounding;
use crate::{Cpu, Exec};

/// A handler: `$f` on elements of type `$e`. MXCSR.FTZ has its effect even while underflow is
/// unmasked, as there are no exceptions.
macro_rules! approximate {
    ($shape:ident $e:ident, $f:expr) => {{
        fn handler(cpu: &mut Cpu, insn: &Insn) -> Exec {
            let bytes = <$e>::BITS as usize / 8;
            let mxcsr = all_masked(cpu.fpu.mxcsr);
            approximate!(@$shape cpu insn bytes $e $f, mxcsr)
        }
        handler as Plain
    }};
    (@packed $cpu:ident $insn:ident $bytes:ident $e:ident $f:expr, $mxcsr:ident) => {
        $cpu.packed_float($insn, $bytes, Rounded::Never, |a, b, _| {
            on_elements::<$e>($f, 0)(a, b, &mut $mxcsr.clone())
        })
    };
    (@scalar $cpu:ident $insn:ident $bytes:ident $e:ident $f:expr, $mxcsr:ident) => {
        $cpu.scalar_float($insn, $bytes, Rounded::Never, |a, b, _| {
            on_lowest::<$e>($f, 0)(a, b, &mut $mxcsr.clone())
        })
    };
}

/// Returns who executes an instruction of this file.
#[rustfmt::skip]
pub(super) fn lookup(code: Code) -> Option<Row> {
    use Mnemonic as M;
    if !is_vector_form(code) {
        return None;
    }
    plain(match code.mnemonic() {
        M::Rcpps | M::Vrcpps => approximate!(packed u32, rcp),
        M::Rcpss | M::Vrcpss => approximate!(scalar u32, rcp),
        M::Rsqrtps | M::Vrsqrtps => approximate!(packed u32, rsqrt),
        M::Rsqrtss | M::Vrsqrtss => approximate!(scalar u32, rsqrt),
        M::Vrcp14ps => approximate!(packed u32, rcp14),
        M::Vrcp14pd => approximate!(packed u64, rcp14),
        M::Vrcp14ss => approximate!(scalar u32, rcp14),
        M::Vrcp14sd => approximate!(scalar u64, rcp14),
        M::Vrsqrt14ps => approximate!(packed u32, rsqrt14),
        M::Vrsqrt14pd => approximate!(packed u64, rsqrt14),
        M::Vrsqrt14ss => approximate!(scalar u32, rsqrt14),
        M::Vrsqrt14sd => approximate!(scalar u64, rsqrt14),
        _ => return None,
    })
}

/// Bits of the significands of RCPPS and RSQRTPS.
const LOW_PRECISION: u32 = 13;
/// Bits of the significands of VRCP14PS and VRSQRT14PS.
const HIGH_PRECISION: u32 = 15;

/// RCPPS, whatever MXCSR says: denormal operands are zeros, and tiny results become zero.
fn rcp(format: Format, _: u64, b: u64, _: u8, _: &mut Env) -> u64 {
    let mut env = Env::of(u32::MAX);
    reciprocal(format, b, LOW_PRECISION, &mut env)
}

/// RSQRTPS, whatever MXCSR says: denormal operands are zeros.
fn rsqrt(format: Format, _: u64, b: u64, _: u8, _: &mut Env) -> u64 {
    let mut env = Env::of(u32::MAX);
    reciprocal_of_root(format, b, LOW_PRECISION, &mut env)
}

fn rcp14(format: Format, _: u64, b: u64, _: u8, env: &mut Env) -> u64 {
    reciprocal(format, b, HIGH_PRECISION, env)
}

fn rsqrt14(format: Format, _: u64, b: u64, _: u8, env: &mut Env) -> u64 {
    reciprocal_of_root(format, b, HIGH_PRECISION, env)
}

fn reciprocal(format: Format, bits: u64, precision: u32, env: &mut Env) -> u64 {
    let number = format.unpack(bits, env);
    match number.class {
        Class::QuietNan | Class::SignalingNan => format.quiet(bits),
        Class::Zero => format.infinity(number.is_negative),
        Class::Infinity => format.sign(number.is_negative),
        Class::Denormal | Class::Normal => {
            let value = 1.0 / significand(number);
            cut(format, number, (value, -number.exponent), precision, env)
        }
    }
}

fn reciprocal_of_root(format: Format, bits: u64, precision: u32, env: &mut Env) -> u64 {
    let number = format.unpack(bits, env);
    match number.class {
        Class::QuietNan | Class::SignalingNan => format.quiet(bits),
        Class::Zero => format.infinity(number.is_negative),
        _ if number.is_negative => format.indefinite(),
        Class::Infinity => format.sign(false),
        Class::Denormal | Class::Normal => {
            let is_odd = number.exponent & 1;
            let value = significand(number) * f64::from(1 + is_odd);
            let exponent = -(number.exponent - is_odd) / 2;
            cut(
                format,
                number,
                (1.0 / value.sqrt(), exponent),
                precision,
                env,
            )
        }
    }
}

/// Returns the significand of a finite number, from 1 to 2.
fn significand(number: Number) -> f64 {
    const UNIT: f64 = (1_u64 << 52) as f64;
    (number.significand >> 11) as f64 / UNIT
}

/// Cuts `value * 2^exponent`, with the sign of `operand`, to so many bits: towards zero, so that what
/// does not overflow is not made to.
fn cut(
    format: Format,
    operand: Number,
    (value, exponent): (f64, i32),
    precision: u32,
    env: &mut Env,
) -> u64 {
    let value = Format::DOUBLE.unpack_any(value.to_bits());
    let wide = u128::from(value.significand) << 64;
    let kept = wide >> (128 - precision) << (128 - precision);
    env.rounding = Rounding::Nearest;
    format.round(operand.is_negative, exponent + value.exponent, kept, env)
}

#[cfg(test)]
mod tests {
    use super::super::masking_tests::ready;
    use super::*;
    use crate::test_cpu::execute;

    #[test]
    fn approximations_are_within_their_bounds() {
        let bits = (0x0080_0000..0x7e80_0000_u64).step_by(0x1357);
        for bits in bits {
            let x = f64::from(f32::from_bits(bits as u32));
            let check = |f: super::super::binary::Operation, exact: f64, bound: f64| {
                let mut env = Env::of(0x1f80);
                let ours = f(Format::SINGLE, 0, bits, 0, &mut env);
                let error = f64::from(f32::from_bits(ours as u32)) / exact - 1.0;
                assert!(error.abs() <= bound, "{x}: {error}");
            };
            check(rcp, 1.0 / x, 1.5 / 4096.0);
            check(rsqrt, 1.0 / x.sqrt(), 1.5 / 4096.0);
            check(rcp14, 1.0 / x, 1.0 / 16384.0);
            check(rsqrt14, 1.0 / x.sqrt(), 1.0 / 16384.0);
        }
    }

    #[test]
    fn tiny_approximations_are_flushed_even_while_underflow_is_unmasked() {
        // VRCP14PS XMM0, XMM1.
        let code = [0x62, 0xf2, 0x7d, 0x08, 0x4c, 0xc1];
        for (mxcsr, result) in [(0x9f80, 0), (0x9780, 0), (0x1780, 0x0040_0000)] {
            let mut cpu = ready(0, 0);
            cpu.fpu.mxcsr = mxcsr;
            // 2^127.
            cpu.fpu.set_xmm(1, [0x7f00_0000, 0]);
            assert_eq!(execute(&mut cpu, &code), Ok(()));
            assert_eq!(cpu.fpu.xmm(0)[0] as u32, result, "{mxcsr:x}");
            assert_eq!(cpu.fpu.mxcsr, mxcsr);
        }
    }
}
