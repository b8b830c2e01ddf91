//! Read-modify-write of operands: once, for registers and memory, with and without LOCK.

use vmx_model::event::Exception;

use super::{Access, Privilege};
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

    /// Replaces operand `n` by `new` and returns its old value: atomic in memory, with or without
    /// LOCK.
    pub(crate) fn exchange<W: Width>(&mut self, insn: &Insn, n: usize, new: W) -> Exec<W> {
        self.update(insn, n, |old| (new, old))
    }

    /// Replaces the 16-byte memory operand by `new` if it is `expected`, and returns its old
    /// value: #GP(0) unless it is aligned to 16 bytes. It is written in any case.
    pub(crate) fn compare_exchange_16(
        &mut self,
        insn: &Insn,
        expected: u128,
        new: u128,
    ) -> Exec<u128> {
        let offset = self.effective_address(insn);
        let linear = self.linear(insn.memory.segment, offset, 16, Access::Write)?;
        if linear.0 % 16 != 0 {
            return Err(Exception::gp(0).into());
        }
        let mut bytes = [0; 16];
        self.load_bytes_linear(linear, &mut bytes, Access::Write, Privilege::Current)?;
        let old = u128::from_le_bytes(bytes);
        let value = if old == expected { new } else { old };
        self.store_bytes_linear(linear, &value.to_le_bytes(), Privilege::Current)?;
        Ok(old)
    }
}
