//! Read-modify-write of operands: once, for registers and memory, with and without LOCK.

use crate::insn::{Insn, Operand};
use crate::width::Width;
use crate::{Cpu, Exec};

impl Cpu {
    /// Replaces operand `n` of `insn` by what `f` makes of it, and returns what else `f` returns.
    ///
    /// The access faults as a write. With a LOCK prefix the update of memory is atomic; `f` may
    /// then run several times, so that it must depend on its argument only.
    pub(crate) fn update<W: Width, T>(
        &mut self,
        insn: &Insn,
        n: usize,
        mut f: impl FnMut(W) -> (W, T),
    ) -> Exec<T> {
        if let Operand::Register(r) = insn.operands[n] {
            let (value, rest) = f(self.register(r));
            self.set_register(r, value);
            return Ok(rest);
        }
        let offset = self.effective_address(insn);
        self.update_at(insn, offset, f)
    }

    /// As [`Self::update`], of memory at `offset` in the segment of the instruction's operand.
    pub(crate) fn update_at<W: Width, T>(
        &mut self,
        insn: &Insn,
        offset: u64,
        mut f: impl FnMut(W) -> (W, T),
    ) -> Exec<T> {
        let segment = insn.memory.segment;
        let (value, rest) = f(self.load_for_update(segment, offset)?);
        self.store(segment, offset, value)?;
        Ok(rest)
    }
}
