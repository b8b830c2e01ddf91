//! Flag instructions: SDM Vol. 1, "Flag Control (EFLAG) Instructions"; LAHF, SAHF, SALC.
//!
//! CLI and STI change when interrupts are recognised; they are with the events.

use iced_x86::{Code, Mnemonic};
use vmx_model::arch::Rflags;

use super::Row;
use super::form::plain;
use crate::insn::Insn;
use crate::{Cpu, Exec};

/// The flags in AH of LAHF and SAHF.
const LOW_STATUS: Rflags = Rflags::STATUS.difference(Rflags::OF);

/// Returns the row of a flag instruction.
pub(crate) fn lookup(code: Code) -> Option<Row> {
    plain(match code.mnemonic() {
        Mnemonic::Clc => clc,
        Mnemonic::Stc => stc,
        Mnemonic::Cmc => cmc,
        Mnemonic::Cld => cld,
        Mnemonic::Std => std,
        Mnemonic::Lahf => lahf,
        Mnemonic::Sahf => sahf,
        Mnemonic::Salc => salc,
        _ => return None,
    })
}

/// CLC.
pub(crate) fn clc(cpu: &mut Cpu, _: &Insn) -> Exec {
    cpu.set_status(Rflags::CF, Rflags::empty());
    Ok(())
}

/// STC.
pub(crate) fn stc(cpu: &mut Cpu, _: &Insn) -> Exec {
    cpu.set_status(Rflags::CF, Rflags::CF);
    Ok(())
}

/// CMC.
pub(crate) fn cmc(cpu: &mut Cpu, _: &Insn) -> Exec {
    let complement = !cpu.rflags() & Rflags::CF;
    cpu.set_status(Rflags::CF, complement);
    Ok(())
}

/// CLD.
pub(crate) fn cld(cpu: &mut Cpu, _: &Insn) -> Exec {
    let flags = cpu.rflags().difference(Rflags::DF);
    cpu.set_rflags(flags);
    Ok(())
}

/// STD.
pub(crate) fn std(cpu: &mut Cpu, _: &Insn) -> Exec {
    let flags = cpu.rflags() | Rflags::DF;
    cpu.set_rflags(flags);
    Ok(())
}

/// LAHF: the low byte of the flags to AH.
pub(crate) fn lahf(cpu: &mut Cpu, _: &Insn) -> Exec {
    let image = (cpu.rflags() & LOW_STATUS) | Rflags::FIXED1;
    cpu.set_register(1, image.bits() as u8);
    Ok(())
}

/// SAHF: AH to SF, ZF, AF, PF and CF.
pub(crate) fn sahf(cpu: &mut Cpu, _: &Insn) -> Exec {
    let image = u64::from(cpu.register::<u8>(1));
    cpu.set_status(LOW_STATUS, Rflags::from_bits_retain(image));
    Ok(())
}

/// SALC: AL becomes FFH if CF is set, else 0. No flag changes.
pub(crate) fn salc(cpu: &mut Cpu, _: &Insn) -> Exec {
    let carry = cpu.rflags().contains(Rflags::CF);
    cpu.set_register(0, if carry { 0xffu8 } else { 0 });
    Ok(())
}
