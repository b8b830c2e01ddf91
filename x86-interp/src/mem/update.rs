//! Read-modify-write of operands: once, for registers and memory, with and without LOCK.

use std::sync::Mutex;

use vmx_model::arch::SegmentRegister;
use vmx_model::event::Exception;

use super::{Access, Privilege};
use crate::insn::{Insn, Operand};
use crate::width::Width;
use crate::{Cpu, Exec};

/// Held during locked updates that the host cannot do in one operation.
static SPLIT_LOCK: Mutex<()> = Mutex::new(());

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
        if insn.locked {
            return self.update_atomically(segment, offset, f);
        }
        let (value, rest) = f(self.load_for_update(segment, offset)?);
        self.store(segment, offset, value)?;
        Ok(rest)
    }

    /// As [`Self::update_at`], atomically.
    ///
    /// A naturally aligned operand in RAM is updated by the host's compare-and-exchange. Any other
    /// (split or device memory) excludes other updates of this kind, but not aligned ones.
    fn update_atomically<W: Width, T>(
        &mut self,
        segment: SegmentRegister,
        offset: u64,
        mut f: impl FnMut(W) -> (W, T),
    ) -> Exec<T> {
        let linear = self.linear(segment, offset, W::BYTES as u64, Access::Write)?;
        let is_aligned = linear.0 % W::BYTES as u64 == 0;
        let is_split = !is_aligned || self.is_watching();
        let _guard = is_split.then(|| SPLIT_LOCK.lock().unwrap_or_else(|e| e.into_inner()));
        // Every check, every translation, and the watchpoints.
        let mut old = self.load_for_update::<W>(segment, offset)?;
        let context = self.context();
        while is_aligned && self.tlb.is_writable::<W>(linear.0, context) {
            let (new, rest) = f(old);
            match self.tlb.compare_exchange(linear.0, context, old, new) {
                Some(Ok(hit)) => {
                    self.hot.code_written |= hit;
                    return Ok(rest);
                }
                Some(Err(now)) => old = now,
                // The store below says which memory is not there.
                None => break,
            }
        }
        let (value, rest) = f(old);
        self.note_locked(true);
        let stored = self.store(segment, offset, value);
        self.note_locked(false);
        stored.map(|()| rest)
    }

    /// Replaces operand `n` by `new` and returns its old value: atomic in memory, with or without
    /// LOCK.
    pub(crate) fn exchange<W: Width>(&mut self, insn: &Insn, n: usize, new: W) -> Exec<W> {
        if insn.operands[n] == Operand::Memory {
            let offset = self.effective_address(insn);
            return self.update_atomically(insn.memory.segment, offset, |old| (new, old));
        }
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
        let _guard = SPLIT_LOCK.lock().unwrap_or_else(|e| e.into_inner());
        let mut bytes = [0; 16];
        self.load_bytes_linear(linear, &mut bytes, Access::Write, Privilege::Current)?;
        let old = u128::from_le_bytes(bytes);
        let value = if old == expected { new } else { old };
        self.note_locked(insn.locked);
        let stored = self.store_bytes_linear(linear, &value.to_le_bytes(), Privilege::Current);
        self.note_locked(false);
        stored.map(|()| old)
    }
}
