//! Conversions between numbers in XMM registers and doublewords in MMX registers.
//!
//! SDM Vol. 2, "CVTPI2PS", "CVTPI2PD", "CVTPS2PI", "CVTPD2PI" and the truncating forms.

use iced_x86::Code;

use super::binary::{Format, under};
use super::integers::{How, SIGNED_32, from_integer, to_integer};
use super::vector::Elements;
use crate::exec::Row;
use crate::exec::form::plain;
use crate::insn::{Insn, Operand, Plain};
use crate::{Cpu, Exec};

/// Returns who executes an instruction of this file.
pub(super) fn lookup(code: Code) -> Option<Row> {
    let handler: Plain = match code {
        Code::Cvtpi2ps_xmm_mmm64 => |cpu, insn| from_doublewords(cpu, insn, Format::SINGLE),
        Code::Cvtpi2pd_xmm_mmm64 => |cpu, insn| from_doublewords(cpu, insn, Format::DOUBLE),
        Code::Cvtps2pi_mm_xmmm64 => {
            |cpu, insn| to_doublewords(cpu, insn, Format::SINGLE, How::Rounded)
        }
        Code::Cvttps2pi_mm_xmmm64 => {
            |cpu, insn| to_doublewords(cpu, insn, Format::SINGLE, How::Truncated)
        }
        Code::Cvtpd2pi_mm_xmmm128 => {
            |cpu, insn| to_doublewords(cpu, insn, Format::DOUBLE, How::Rounded)
        }
        Code::Cvttpd2pi_mm_xmmm128 => {
            |cpu, insn| to_doublewords(cpu, insn, Format::DOUBLE, How::Truncated)
        }
        _ => return None,
    };
    plain(handler)
}

/// CVTPI2PS, which keeps the high half, and CVTPI2PD. Only an MMX register as the source makes it an
/// MMX instruction of CVTPI2PD.
fn from_doublewords(cpu: &mut Cpu, insn: &Insn, format: Format) -> Exec {
    cpu.check_sse()?;
    let is_mmx = format == Format::SINGLE || insn.operands[1] != Operand::Memory;
    if is_mmx {
        cpu.check_mmx()?;
    }
    let from = cpu.read_mmx(insn, 1, 8)?;
    let bits = format.bits();
    let convert = |mxcsr: &mut u32| {
        under(mxcsr, |env| {
            let low = from_integer(format, from & 0xffff_ffff, SIGNED_32, env);
            let high = from_integer(format, from >> 32, SIGNED_32, env);
            u128::from(high) << bits | u128::from(low)
        })
    };
    let value = cpu.compute(&insn.vector, |_| false, convert)?;
    if is_mmx {
        cpu.enter_mmx();
    }
    let rest = match format {
        Format::SINGLE => cpu.register_lanes(insn, 0)[0] >> 64 << 64,
        _ => 0,
    };
    cpu.write_vector(insn, [value | rest, 0, 0, 0], Elements::of(insn, 16))
}

/// CVTPS2PI, CVTPD2PI and the truncating forms.
fn to_doublewords(cpu: &mut Cpu, insn: &Insn, format: Format, how: How) -> Exec {
    cpu.check_sse()?;
    cpu.check_mmx()?;
    let bits = format.bits();
    let from = cpu.read_element(insn, 1, bits as usize / 4)?;
    let convert = |mxcsr: &mut u32| {
        under(mxcsr, |env| {
            let element = |n: u32| (from >> (n * bits)) as u64 & u64::MAX >> (64 - bits);
            let low = to_integer(format, element(0), SIGNED_32, how, env);
            let high = to_integer(format, element(1), SIGNED_32, how, env);
            high << 32 | low
        })
    };
    let value = cpu.compute(&insn.vector, |_| false, convert)?;
    cpu.write_mmx(insn, value);
    Ok(())
}
