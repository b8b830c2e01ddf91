//! Which micro-ops an instruction of BMI1, BMI2 or a bit count becomes.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::{Candidate, Emit, Fields, size_of_operand};
use crate::insn::{Operand, RegisterOffset};
use crate::uop::bmi;
use crate::uop::operand::SPARE;

/// The place of an operation of one operand in `bmi::UNARY`.
fn unary(m: Mnemonic) -> Option<usize> {
    const ORDER: [Mnemonic; 6] = [
        Mnemonic::Blsr,
        Mnemonic::Blsi,
        Mnemonic::Blsmsk,
        Mnemonic::Tzcnt,
        Mnemonic::Lzcnt,
        Mnemonic::Popcnt,
    ];
    ORDER.iter().position(|&o| o == m)
}

/// The place of an operation of two operands in `bmi::BINARY`.
fn binary(m: Mnemonic) -> Option<usize> {
    const ORDER: [Mnemonic; 8] = [
        Mnemonic::Andn,
        Mnemonic::Bzhi,
        Mnemonic::Bextr,
        Mnemonic::Shlx,
        Mnemonic::Shrx,
        Mnemonic::Sarx,
        Mnemonic::Pdep,
        Mnemonic::Pext,
    ];
    ORDER.iter().position(|&o| o == m)
}

/// Whether the instruction is one for this file.
pub(super) fn is_hot(i: &Instruction) -> bool {
    let m = i.mnemonic();
    let is_known = unary(m).or(binary(m)).is_some() || matches!(m, Mnemonic::Rorx | Mnemonic::Mulx);
    // Not the forms of 16 bits.
    is_known && i.op0_kind() == OpKind::Register && i.op0_register().size() >= 4
}

impl Emit<'_> {
    pub(super) fn bmi(&mut self, c: Candidate<'_>) -> Option<()> {
        let m = c.iced.mnemonic();
        let size = size_of_operand(c.iced, 0)?;
        let place = size.checked_sub(2)?;
        let Operand::Register(dst) = c.insn.operands[0] else {
            return None;
        };
        let source = |emit: &mut Self, n: usize| -> Option<RegisterOffset> {
            match c.insn.operands[n] {
                Operand::Register(register) => Some(register),
                Operand::Memory => emit.load(c, size).map(|()| SPARE),
                _ => None,
            }
        };
        let src = source(self, if m == Mnemonic::Mulx { 2 } else { 1 })?;
        let mut fields = Fields {
            dst,
            src,
            ..Fields::default()
        };
        if let Some(op) = unary(m) {
            self.with(bmi::UNARY[op][place], fields);
        } else if let Some(op) = binary(m) {
            fields.base = source(self, 2)?;
            self.with(bmi::binary(op)[place], fields);
        } else if m == Mnemonic::Rorx {
            let Operand::Immediate(by) = c.insn.operands[2] else {
                return None;
            };
            fields.imm = (by & 0xff) as i32;
            self.with(bmi::RORX[place], fields);
        } else {
            let Operand::Register(low) = c.insn.operands[1] else {
                return None;
            };
            fields.index = low;
            self.with(bmi::MULX[place], fields);
        }
        Some(())
    }
}
