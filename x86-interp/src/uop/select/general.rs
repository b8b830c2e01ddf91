//! Which micro-ops arithmetic, logic and moves of general-purpose registers become.

use super::{Candidate, Emit, Fields, Memory, Use, condition, size_of_operand, small};
use crate::insn::{Operand, ZERO_REGISTER};
use crate::uop::operand::{BASE, FLAT32, INDEXED};
use crate::uop::{alu, moves};

impl Emit<'_> {
    pub(super) fn binary(&mut self, c: Candidate<'_>, op: usize) -> Option<()> {
        let size = size_of_operand(c.iced, 0)?;
        let how = if op >= 7 { Use::Read } else { Use::Write };
        match (c.insn.operands[0], c.insn.operands[1]) {
            (Operand::Register(dst), Operand::Register(src)) => {
                let table = if c.is_dead { &alu::RR_DEAD } else { &alu::RR };
                let fields = Fields {
                    dst,
                    src,
                    ..Fields::default()
                };
                self.with(table[op][size], fields);
            }
            (Operand::Register(dst), Operand::Immediate(value)) => {
                let imm = small(value, size)?;
                let table = if c.is_dead { &alu::RI_DEAD } else { &alu::RI };
                let fields = Fields {
                    dst,
                    imm,
                    ..Fields::default()
                };
                self.with(table[op][size], fields);
            }
            (Operand::Register(dst), Operand::Memory) => {
                let memory = self.memory(c, 1 << size, Use::Read)?;
                let fields = Fields {
                    dst,
                    ..Fields::default()
                };
                self.with_memory(alu::RM[op][memory.kind][size], &memory, fields);
            }
            (Operand::Memory, Operand::Register(src)) => {
                let memory = self.memory(c, 1 << size, how)?;
                let fields = Fields {
                    src,
                    ..Fields::default()
                };
                self.with_memory(alu::MR[op][memory.kind][size], &memory, fields);
            }
            (Operand::Memory, Operand::Immediate(value)) => {
                let imm = small(value, size)?;
                let memory = self.memory(c, 1 << size, how)?;
                let fields = Fields {
                    imm,
                    ..Fields::default()
                };
                self.with_memory(alu::MI[op][memory.kind][size], &memory, fields);
            }
            _ => return None,
        }
        Some(())
    }

    pub(super) fn unary(&mut self, c: Candidate<'_>, op: usize) -> Option<()> {
        let size = size_of_operand(c.iced, 0)?;
        match c.insn.operands[0] {
            Operand::Register(dst) => {
                let table = if c.is_dead {
                    &alu::UNARY_R_DEAD
                } else {
                    &alu::UNARY_R
                };
                let fields = Fields {
                    dst,
                    ..Fields::default()
                };
                self.with(table[op][size], fields);
            }
            Operand::Memory => {
                let memory = self.memory(c, 1 << size, Use::Write)?;
                let handler = alu::UNARY_M[op][memory.kind][size];
                self.with_memory(handler, &memory, Fields::default());
            }
            _ => return None,
        }
        Some(())
    }

    pub(super) fn shift(&mut self, c: Candidate<'_>, op: usize) -> Option<()> {
        let size = size_of_operand(c.iced, 0)?;
        let Operand::Register(dst) = c.insn.operands[0] else {
            return None;
        };
        match c.insn.operands[1] {
            Operand::Immediate(value) => {
                let imm = (value & if size == 3 { 0x3f } else { 0x1f }) as i32;
                if imm == 0 {
                    return None;
                }
                let table = if c.is_dead {
                    &alu::SHIFT_I_DEAD
                } else {
                    &alu::SHIFT_I
                };
                let fields = Fields {
                    dst,
                    imm,
                    ..Fields::default()
                };
                self.with(table[op][size], fields);
            }
            Operand::Register(8) => {
                let fields = Fields {
                    dst,
                    ..Fields::default()
                };
                self.with(alu::SHIFT_CL[op][size], fields);
            }
            _ => return None,
        }
        Some(())
    }

    pub(super) fn mov(&mut self, c: Candidate<'_>) -> Option<()> {
        let size = size_of_operand(c.iced, 0)?;
        match (c.insn.operands[0], c.insn.operands[1]) {
            (Operand::Register(dst), Operand::Register(src)) => {
                let fields = Fields {
                    dst,
                    src,
                    ..Fields::default()
                };
                self.with(moves::MOV_RR[size], fields);
            }
            (Operand::Register(dst), Operand::Immediate(disp)) => {
                let fields = Fields {
                    dst,
                    disp,
                    ..Fields::default()
                };
                self.with(moves::MOV_RI[size], fields);
            }
            (Operand::Register(dst), Operand::Memory) => {
                let memory = self.memory(c, 1 << size, Use::Read)?;
                let fields = Fields {
                    dst,
                    ..Fields::default()
                };
                self.with_memory(moves::MOV_RM[memory.kind][size], &memory, fields);
            }
            (Operand::Memory, Operand::Register(src)) => {
                let memory = self.memory(c, 1 << size, Use::Write)?;
                let fields = Fields {
                    src,
                    ..Fields::default()
                };
                self.with_memory(moves::MOV_MR[memory.kind][size], &memory, fields);
            }
            (Operand::Memory, Operand::Immediate(value)) => {
                let imm = small(value, size)?;
                let memory = self.memory(c, 1 << size, Use::Write)?;
                let fields = Fields {
                    imm,
                    ..Fields::default()
                };
                self.with_memory(moves::MOV_MI[memory.kind][size], &memory, fields);
            }
            _ => return None,
        }
        Some(())
    }

    /// MOVZX (0), MOVSX and MOVSXD (1).
    pub(super) fn extend(&mut self, c: Candidate<'_>, signed: usize) -> Option<()> {
        let to = size_of_operand(c.iced, 0)?.checked_sub(1)?;
        let from = size_of_operand(c.iced, 1)?;
        let Operand::Register(dst) = c.insn.operands[0] else {
            return None;
        };
        match c.insn.operands[1] {
            Operand::Register(src) => {
                let fields = Fields {
                    dst,
                    src,
                    ..Fields::default()
                };
                self.with(*moves::EXTEND_R[signed].get(from)?.get(to)?, fields);
            }
            Operand::Memory => {
                let memory = self.memory(c, 1 << from, Use::Read)?;
                let fields = Fields {
                    dst,
                    ..Fields::default()
                };
                let handler = *moves::EXTEND_M[signed][memory.kind].get(from)?.get(to)?;
                self.with_memory(handler, &memory, fields);
            }
            _ => return None,
        }
        Some(())
    }

    pub(super) fn lea(&mut self, c: Candidate<'_>) -> Option<()> {
        let size = size_of_operand(c.iced, 0)?;
        let Operand::Register(dst) = c.insn.operands[0] else {
            return None;
        };
        let operand = c.insn.memory;
        let kind = match c.insn.address_bytes {
            8 if operand.index == ZERO_REGISTER => BASE,
            8 => INDEXED,
            4 => FLAT32,
            // A 16-bit destination takes the low bits of any address.
            _ if size == 1 => FLAT32,
            _ => return None,
        };
        let kind = usize::from(kind);
        let fields = Fields {
            dst,
            ..Fields::default()
        };
        self.with_memory(moves::LEA[kind][size], &Memory { kind, operand }, fields);
        Some(())
    }

    pub(super) fn xchg(&mut self, c: Candidate<'_>) -> Option<()> {
        let size = size_of_operand(c.iced, 0)?;
        let (Operand::Register(dst), Operand::Register(src)) =
            (c.insn.operands[0], c.insn.operands[1])
        else {
            return None;
        };
        let fields = Fields {
            dst,
            src,
            ..Fields::default()
        };
        self.with(moves::XCHG_RR[size], fields);
        Some(())
    }

    pub(super) fn imul(&mut self, c: Candidate<'_>) -> Option<()> {
        if c.iced.op_count() < 2 {
            return None;
        }
        let size = size_of_operand(c.iced, 0)?;
        let Operand::Register(dst) = c.insn.operands[0] else {
            return None;
        };
        let src = self.source(c, 1, size)?;
        if let Operand::Immediate(value) = c.insn.operands[2] {
            let imm = small(value, size)?;
            let fields = Fields {
                dst,
                src,
                imm,
                ..Fields::default()
            };
            self.with(alu::IMUL_RI[size], fields);
        } else {
            let fields = Fields {
                dst,
                src,
                ..Fields::default()
            };
            self.with(alu::IMUL_RR[size], fields);
        }
        Some(())
    }

    pub(super) fn setcc(&mut self, c: Candidate<'_>) -> Option<()> {
        let Operand::Register(dst) = c.insn.operands[0] else {
            return None;
        };
        if size_of_operand(c.iced, 0)? != 0 {
            return None;
        }
        self.with(
            moves::SETCC[condition(c.iced)?],
            Fields {
                dst,
                ..Fields::default()
            },
        );
        Some(())
    }

    pub(super) fn cmovcc(&mut self, c: Candidate<'_>) -> Option<()> {
        let size = size_of_operand(c.iced, 0)?;
        let Operand::Register(dst) = c.insn.operands[0] else {
            return None;
        };
        let table = moves::CMOVCC.get(size.checked_sub(2)?)?;
        let src = self.source(c, 1, size)?;
        self.with(
            table[condition(c.iced)?],
            Fields {
                dst,
                src,
                ..Fields::default()
            },
        );
        Some(())
    }
}
