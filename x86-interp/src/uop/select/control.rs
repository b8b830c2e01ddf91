//! Which micro-ops branches and instructions on the stack become.

use iced_x86::Mnemonic;

use super::{Branches, Candidate, Emit, Fields, Use, condition, size_of_operand, small};
use crate::insn::{Insn, Operand};
use crate::uop::alu::BySize;
use crate::uop::operand::SPARE;
use crate::uop::{Handler, branch, stack};

impl Emit<'_> {
    /// Emits one micro-op for a comparing instruction and the Jcc behind it; false if there is
    /// none.
    pub(crate) fn fused(&mut self, c: Candidate<'_>, jcc: Candidate<'_>) -> bool {
        let Some((handler, fields)) = fused_handler(c, jcc) else {
            return false;
        };
        let Some(target) = self.direct_target(jcc.insn) else {
            return false;
        };
        self.next_offset += u16::from(jcc.insn.length);
        self.with(handler, fields);
        self.link(target, self.next_rip());
        true
    }

    /// An instruction whose handlers go by operand size and kind of stack.
    pub(super) fn by_stack(
        &mut self,
        c: Candidate<'_>,
        table: &[[Handler; 3]; 3],
        f: Fields,
    ) -> Option<()> {
        let size = c.insn.operand_bytes.trailing_zeros() as usize;
        let handler = *table
            .get(size.checked_sub(1)?)?
            .get(self.mode.stack as usize)?;
        self.with(handler, f);
        Some(())
    }

    pub(super) fn push_operand(&mut self, c: Candidate<'_>) -> Option<()> {
        let size = c.insn.operand_bytes.trailing_zeros() as usize;
        match c.insn.operands[0] {
            Operand::Register(src) if src & 7 == 0 => self.by_stack(
                c,
                &stack::PUSH_R,
                Fields {
                    src,
                    ..Fields::default()
                },
            ),
            Operand::Immediate(value) => {
                let imm = small(value, size)?;
                self.by_stack(
                    c,
                    &stack::PUSH_I,
                    Fields {
                        imm,
                        ..Fields::default()
                    },
                )
            }
            Operand::Memory => {
                self.load(c, size)?;
                let fields = Fields {
                    src: SPARE,
                    ..Fields::default()
                };
                self.by_stack(c, &stack::PUSH_R, fields)
            }
            _ => None,
        }
    }

    pub(super) fn pop_operand(&mut self, c: Candidate<'_>) -> Option<()> {
        match c.insn.operands[0] {
            Operand::Register(dst) if dst & 7 == 0 => self.by_stack(
                c,
                &stack::POP_R,
                Fields {
                    dst,
                    ..Fields::default()
                },
            ),
            _ => None,
        }
    }

    pub(super) fn implicit(&mut self, c: Candidate<'_>, table: &BySize) -> Option<()> {
        let size = match c.iced.mnemonic() {
            Mnemonic::Cbw | Mnemonic::Cwd => 1,
            Mnemonic::Cwde | Mnemonic::Cdq => 2,
            _ => 3,
        };
        self.with(table[size], Fields::default());
        Some(())
    }

    /// Returns the target of a direct near branch, if it is one that may be jumped to.
    pub(super) fn direct_target(&self, insn: &Insn) -> Option<u64> {
        let Operand::Branch(target) = insn.operands[0] else {
            return None;
        };
        let is_plain_target = if self.mode.bits == 64 {
            (target << 16) as i64 >> 16 == target as i64
        } else {
            target <= self.mode.cs_limit
        };
        is_plain_target.then_some(target)
    }

    pub(super) fn jcc(&mut self, c: Candidate<'_>) -> Option<()> {
        let target = self.direct_target(c.insn)?;
        self.with(branch::JCC[condition(c.iced)?], Fields::default());
        self.link(target, self.next_rip());
        Some(())
    }

    pub(super) fn jmp(&mut self, c: Candidate<'_>) -> Option<()> {
        if c.iced.is_jmp_short_or_near() {
            let target = self.direct_target(c.insn)?;
            self.with(branch::jump, Fields::default());
            self.link(target, target);
            return Some(());
        }
        if !c.iced.is_jmp_near_indirect() {
            return None;
        }
        let size = size_of_operand(c.iced, 0)?.checked_sub(1)?;
        match c.insn.operands[0] {
            Operand::Register(src) => {
                self.with(
                    branch::JUMP_R[size],
                    Fields {
                        src,
                        ..Fields::default()
                    },
                );
            }
            Operand::Memory => {
                let memory = self.memory(c, 2 << size, Use::Read)?;
                let handler = branch::JUMP_M[memory.kind][size];
                self.with_memory(handler, &memory, Fields::default());
            }
            _ => return None,
        }
        self.leave();
        Some(())
    }

    pub(super) fn call(&mut self, c: Candidate<'_>) -> Option<()> {
        if c.iced.is_call_near() {
            let target = self.direct_target(c.insn)?;
            self.by_stack(c, &branch::CALL, Fields::default())?;
            self.link(target, self.next_rip());
            self.leave();
            return Some(());
        }
        if !c.iced.is_call_near_indirect() {
            return None;
        }
        let size = size_of_operand(c.iced, 0)?;
        let src = self.source(c, 0, size)?;
        let disp = self.next_rip();
        self.by_stack(
            c,
            &branch::CALL_R,
            Fields {
                src,
                disp,
                ..Fields::default()
            },
        )?;
        self.leave();
        Some(())
    }

    pub(super) fn ret(&mut self, c: Candidate<'_>) -> Option<()> {
        let imm = match c.insn.operands[0] {
            Operand::None => 0,
            Operand::Immediate(value) => (value & 0xffff) as i32,
            _ => return None,
        };
        self.by_stack(
            c,
            &branch::RET,
            Fields {
                imm,
                ..Fields::default()
            },
        )?;
        self.leave();
        Some(())
    }
}

/// Whether shadow stacks or indirect-branch tracking have a part in the instruction.
pub(super) fn is_under_cet(i: &iced_x86::Instruction) -> bool {
    match i.mnemonic() {
        Mnemonic::Call | Mnemonic::Ret | Mnemonic::Endbr32 | Mnemonic::Endbr64 => true,
        Mnemonic::Jmp => i.is_jmp_near_indirect(),
        _ => false,
    }
}

/// Returns the micro-op for a comparing instruction with a Jcc behind it.
fn fused_handler(c: Candidate<'_>, jcc: Candidate<'_>) -> Option<(Handler, Fields)> {
    if !jcc.iced.is_jcc() || c.insn.locked {
        return None;
    }
    let size = [0, 2, 3]
        .iter()
        .position(|&s| Some(s) == size_of_operand(c.iced, 0))?;
    let Operand::Register(dst) = c.insn.operands[0] else {
        return None;
    };
    let cc = condition(jcc.iced)?;
    let op = match c.iced.mnemonic() {
        Mnemonic::Cmp => 0,
        Mnemonic::Test => 1,
        Mnemonic::Sub => 2,
        Mnemonic::And => 3,
        Mnemonic::Add => 4,
        Mnemonic::Dec | Mnemonic::Inc => 5,
        _ => return None,
    };
    let fields = Fields {
        dst,
        ..Fields::default()
    };
    match (op, c.insn.operands[1]) {
        (5, _) => {
            let imm = if c.iced.mnemonic() == Mnemonic::Dec {
                1
            } else {
                -1
            };
            Some((branch::FUSED_RI[op][size][cc], Fields { imm, ..fields }))
        }
        (_, Operand::Register(src)) => {
            Some((branch::FUSED_RR[op][size][cc], Fields { src, ..fields }))
        }
        (_, Operand::Immediate(value)) => {
            let imm = small(
                value,
                c.iced.op0_register().size().trailing_zeros() as usize,
            )?;
            Some((branch::FUSED_RI[op][size][cc], Fields { imm, ..fields }))
        }
        _ => None,
    }
}
