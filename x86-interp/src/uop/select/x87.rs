//! Which micro-ops an x87 instruction becomes.

use iced_x86::Code;

use super::{Candidate, Emit, Use};
use crate::insn::Operand;
use crate::uop::Uop;
use crate::uop::operand::SPARE;
use crate::uop::x87;

/// Whether the instruction has a hot form.
pub(super) fn is_hot(code: Code) -> bool {
    x87::register_form(code).is_some() || x87::memory_forms(code).is_some()
}

/// Number of a register operand.
fn register(operand: Operand) -> u8 {
    match operand {
        Operand::X87(n) => n,
        _ => 0,
    }
}

impl Emit<'_> {
    /// Emits a micro-op for an x87 instruction.
    pub(super) fn x87(&mut self, c: Candidate<'_>) -> Option<()> {
        let code = c.iced.code();
        let pops = if x87::pops(code) {
            x87::detail::POPS
        } else {
            0
        };
        let operands = c.insn.operands;
        if let Some(handler) = x87::register_form(code) {
            let (dst, src) = if c.iced.op_count() == 1 {
                (operands[0], operands[0])
            } else {
                (operands[0], operands[1])
            };
            self.push(Uop {
                dst: register(dst),
                src: register(src),
                detail: pops,
                ..super::blank(handler)
            });
            return Some(());
        }
        let (handlers, bytes) = x87::memory_forms(code)?;
        let is_store = matches!(
            c.iced.mnemonic(),
            iced_x86::Mnemonic::Fst
                | iced_x86::Mnemonic::Fstp
                | iced_x86::Mnemonic::Fist
                | iced_x86::Mnemonic::Fistp
        );
        let how = if is_store { Use::Write } else { Use::Read };
        let memory = self.memory(c, bytes, how)?;
        if memory.operand.base == SPARE {
            // The operand pointer is the offset in the segment, which is not known any more.
            return None;
        }
        self.push(Uop {
            disp: memory.operand.displacement,
            base: memory.operand.base,
            index: memory.operand.index,
            scale_shift: memory.operand.scale_shift,
            detail: pops | memory.operand.segment as u16,
            ..super::blank(handlers[memory.kind])
        });
        Some(())
    }
}
