//! Bitwise logic: SDM Vol. 1, "Logical Instructions"; TEST; ANDN.

use iced_x86::{Code, Mnemonic};
use vmx_model::arch::Rflags;

use super::Row;
use super::form::{by_operand, sized};
use crate::alu;
use crate::insn::Insn;
use crate::width::Width;
use crate::{Cpu, Exec};

/// Returns the row of a logical instruction.
pub(crate) fn lookup(code: Code) -> Option<Row> {
    let handlers = match code.mnemonic() {
        Mnemonic::And => sized!(and),
        Mnemonic::Or => sized!(or),
        Mnemonic::Xor => sized!(xor),
        Mnemonic::Not => sized!(not),
        Mnemonic::Test => sized!(test),
        Mnemonic::Andn => sized!(andn),
        _ => return None,
    };
    by_operand(code, 0, handlers)
}

fn binary<W: Width>(cpu: &mut Cpu, insn: &Insn, f: fn(W, W) -> (W, Rflags)) -> Exec {
    let b = cpu.read::<W>(insn, 1)?;
    let flags = cpu.update(insn, 0, |a| f(a, b))?;
    cpu.set_status(Rflags::STATUS, flags);
    Ok(())
}

/// AND.
pub(crate) fn and<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    binary::<W>(cpu, insn, alu::logic::and)
}

/// OR.
pub(crate) fn or<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    binary::<W>(cpu, insn, alu::logic::or)
}

/// XOR.
pub(crate) fn xor<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    binary::<W>(cpu, insn, alu::logic::xor)
}

/// NOT: no flag changes.
pub(crate) fn not<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.update::<W, _>(insn, 0, |a| (alu::logic::not(a), ()))
}

/// TEST.
pub(crate) fn test<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let a = cpu.read::<W>(insn, 0)?;
    let b = cpu.read::<W>(insn, 1)?;
    cpu.set_status(Rflags::STATUS, alu::logic::and(a, b).1);
    Ok(())
}

/// ANDN (BMI1): the complement of the first source and the second.
pub(crate) fn andn<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let b = cpu.read::<W>(insn, 2)?;
    let a = cpu.read::<W>(insn, 1)?;
    let (result, flags) = alu::logic::andn(a, b);
    cpu.write(insn, 0, result)?;
    cpu.set_status(Rflags::STATUS, flags);
    Ok(())
}
