//! Decimal arithmetic: SDM Vol. 1, "Decimal Arithmetic Instructions". Not in 64-bit mode.

use iced_x86::{Code, Mnemonic};
use vmx_model::arch::Rflags;
use vmx_model::event::Exception;

use super::Row;
use super::form::plain;
use crate::alu::bcd;
use crate::insn::Insn;
use crate::{Cpu, Exec};

/// Returns the row of a decimal arithmetic instruction.
pub(crate) fn lookup(code: Code) -> Option<Row> {
    plain(match code.mnemonic() {
        Mnemonic::Daa => daa,
        Mnemonic::Das => das,
        Mnemonic::Aaa => aaa,
        Mnemonic::Aas => aas,
        Mnemonic::Aam => aam,
        Mnemonic::Aad => aad,
        _ => return None,
    })
}

/// DAA.
pub(crate) fn daa(cpu: &mut Cpu, _: &Insn) -> Exec {
    adjust_al(cpu, bcd::daa)
}

/// DAS.
pub(crate) fn das(cpu: &mut Cpu, _: &Insn) -> Exec {
    adjust_al(cpu, bcd::das)
}

fn adjust_al(cpu: &mut Cpu, f: fn(u8, Rflags) -> (u8, Rflags)) -> Exec {
    let (al, flags) = f(cpu.register(0), cpu.rflags());
    cpu.set_register(0, al);
    cpu.set_status(Rflags::STATUS, flags);
    Ok(())
}

/// AAA.
pub(crate) fn aaa(cpu: &mut Cpu, _: &Insn) -> Exec {
    adjust_ax(cpu, bcd::aaa)
}

/// AAS.
pub(crate) fn aas(cpu: &mut Cpu, _: &Insn) -> Exec {
    adjust_ax(cpu, bcd::aas)
}

fn adjust_ax(cpu: &mut Cpu, f: fn(u16, Rflags) -> (u16, Rflags)) -> Exec {
    let (ax, flags) = f(cpu.register(0), cpu.rflags());
    cpu.set_register(0, ax);
    cpu.set_status(Rflags::STATUS, flags);
    Ok(())
}

/// AAM: #DE if the base is 0.
pub(crate) fn aam(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let base = cpu.read(insn, 0)?;
    let (ax, flags) = bcd::aam(cpu.register(0), base).ok_or(Exception::DE)?;
    cpu.set_register(0, ax);
    cpu.set_status(Rflags::STATUS, flags);
    Ok(())
}

/// AAD.
pub(crate) fn aad(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let base = cpu.read(insn, 0)?;
    let (ax, flags) = bcd::aad(cpu.register(0), base);
    cpu.set_register(0, ax);
    cpu.set_status(Rflags::STATUS, flags);
    Ok(())
}
