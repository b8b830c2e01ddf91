//! Conversions from and to half precision (F16C and AVX-512).
//!
//! SDM Vol. 2, "VCVTPH2PS", "VCVTPS2PH": MXCSR.DAZ does not apply to half-precision operands, and
//! MXCSR.FTZ not to half-precision results.

use iced_x86::{Code, Mnemonic};

use super::binary::{Class, Env, Format, flag, under};
use super::lanes::get;
use super::under_mxcsr::Rounded;
use super::vector::{Elements, is_vector_form};
use crate::exec::Row;
use crate::exec::form::plain;
use crate::insn::{Insn, Operand, Plain};
use crate::{Cpu, Exec};

/// Returns who executes an instruction of this file.
pub(super) fn lookup(code: Code) -> Option<Row> {
    if !is_vector_form(code) {
        return None;
    }
    plain(match code.mnemonic() {
        Mnemonic::Vcvtph2ps => vcvtph2ps as Plain,
        Mnemonic::Vcvtps2ph => vcvtps2ph as Plain,
        _ => return None,
    })
}

fn vcvtph2ps(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.widening_float(insn, 4, |_, halves, mxcsr| {
        under(mxcsr, |env| {
            (0..4).fold(0, |all, n| {
                let single = to_single(get::<u16>(halves, n).into(), env);
                all | u128::from(single) << (32 * n)
            })
        })
    })
}

/// VCVTPS2PH: what the store would fault with comes before #XM.
fn vcvtps2ph(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_vector(insn)?;
    if insn.operands[0] == Operand::Memory {
        let singles = Elements::of(insn, 4);
        let halves = Elements {
            bytes: 2,
            ..singles
        };
        cpu.probe_elements(insn, halves)?;
    }
    let immediate = insn.immediate_byte();
    cpu.narrowing_float(insn, 2, Rounded::Half, |_, singles, mxcsr| {
        under(mxcsr, |env| {
            env.rounding_by(immediate);
            env.is_ftz = false;
            (0..4).fold(0, |all, n| {
                let half = to_half(get::<u32>(singles, n).into(), env);
                all | u128::from(half) << (16 * n)
            })
        })
    })
}

fn to_single(half: u64, env: &mut Env) -> u64 {
    let number = Format::HALF.unpack_any(half);
    let sign = number.is_negative;
    match number.class {
        Class::Zero => Format::SINGLE.sign(sign),
        Class::Infinity => Format::SINGLE.infinity(sign),
        Class::QuietNan | Class::SignalingNan => {
            if number.is_signaling() {
                env.raise(flag::IE);
            }
            Format::SINGLE.quiet(Format::SINGLE.infinity(sign) | (half & 0x3ff) << 13)
        }
        Class::Denormal | Class::Normal => {
            let significand = u128::from(number.significand) << 64;
            Format::SINGLE.round(sign, number.exponent, significand, env)
        }
    }
}

fn to_half(single: u64, env: &mut Env) -> u64 {
    let number = Format::SINGLE.unpack(single, env);
    let sign = number.is_negative;
    match number.class {
        Class::Zero => Format::HALF.sign(sign),
        Class::Infinity => Format::HALF.infinity(sign),
        Class::QuietNan | Class::SignalingNan => {
            if number.is_signaling() {
                env.raise(flag::IE);
            }
            Format::HALF.quiet(Format::HALF.infinity(sign) | (single & 0x7f_ffff) >> 13)
        }
        Class::Denormal | Class::Normal => {
            Format::SINGLE.note_denormals(&[number], env);
            let significand = u128::from(number.significand) << 64;
            Format::HALF.round(sign, number.exponent, significand, env)
        }
    }
}
