//! Checks and accesses that many system instructions share.

use vmx_model::addr::Linear;
use vmx_model::arch::SegmentRegister;

use crate::insn::Insn;
use crate::mem::{Access, Privilege};
use crate::mode::Mode;
use crate::width::Width;
use crate::{Cpu, Exec};

impl Cpu {
    /// Reads operand `n`, a register or memory of 64 bits in 64-bit mode and of 32 elsewhere.
    pub(crate) fn read_native(&mut self, insn: &Insn, n: usize) -> Exec<u64> {
        if self.mode() == Mode::Long {
            self.read::<u64>(insn, n)
        } else {
            Ok(self.read::<u32>(insn, n)?.to_u64())
        }
    }

    /// Writes operand `n`: 64 bits in 64-bit mode, 32 elsewhere.
    pub(crate) fn write_native(&mut self, insn: &Insn, n: usize, value: u64) -> Exec {
        if self.mode() == Mode::Long {
            self.write(insn, n, value)
        } else {
            self.write(insn, n, value as u32)
        }
    }

    /// Returns the 64-bit value in EDX:EAX.
    pub(crate) fn edx_eax(&self) -> u64 {
        self.gpr[2] << 32 | self.gpr[0] & 0xffff_ffff
    }

    /// Puts a 64-bit value into EDX:EAX, clearing the upper halves of RDX and RAX.
    pub(crate) fn set_edx_eax(&mut self, value: u64) {
        self.gpr[0] = value & 0xffff_ffff;
        self.gpr[2] = value >> 32;
    }

    /// Returns the linear address of `bytes` bytes at the memory operand.
    pub(crate) fn operand_linear(&self, insn: &Insn, bytes: usize, access: Access) -> Exec<Linear> {
        let offset = self.effective_address(insn);
        self.linear(insn.memory.segment, offset, bytes as u64, access)
    }

    /// Returns the linear address of the memory operand without any check.
    pub(crate) fn unchecked_linear(&self, insn: &Insn) -> Linear {
        self.linear_without_checks(insn.memory.segment, self.effective_address(insn))
    }

    /// Returns the linear address of `register:offset`, without any check.
    pub(crate) fn linear_without_checks(&self, register: SegmentRegister, offset: u64) -> Linear {
        let base = self.state.segment(register).base;
        if self.mode() != Mode::Long {
            return Linear(base.wrapping_add(offset) & 0xffff_ffff);
        }
        match register {
            SegmentRegister::Fs | SegmentRegister::Gs => Linear(base.wrapping_add(offset)),
            _ => Linear(offset),
        }
    }

    /// Fills `bytes` from the memory operand.
    pub(crate) fn load_operand(&mut self, insn: &Insn, bytes: &mut [u8]) -> Exec {
        let linear = self.operand_linear(insn, bytes.len(), Access::Read)?;
        self.load_bytes_linear(linear, bytes, Access::Read, Privilege::Current)
    }

    /// Stores `bytes` at the memory operand.
    pub(crate) fn store_operand(&mut self, insn: &Insn, bytes: &[u8]) -> Exec {
        let linear = self.operand_linear(insn, bytes.len(), Access::Write)?;
        self.store_bytes_linear(linear, bytes, Privilege::Current)
    }

    /// Faults as a store of so many bytes to the memory operand would.
    pub(crate) fn probe_operand(&mut self, insn: &Insn, bytes: usize) -> Exec {
        let first = self.operand_linear(insn, bytes, Access::Write)?;
        let last = Linear(first.0.wrapping_add(bytes as u64 - 1));
        self.translate(first, Access::Write, Privilege::Current)?;
        if first.0 >> 12 != last.0 >> 12 {
            let second_page = Linear(last.0 & !0xfff);
            self.translate(second_page, Access::Write, Privilege::Current)?;
        }
        Ok(())
    }
}
