//! Ports: IN, OUT, INS, OUTS.
//!
//! SDM Vol. 1, "Input/Output"; Vol. 2: the instructions. A port access that the bus suspends leaves
//! the instruction (or the iteration) without effect; it is made again when the processor runs on.

use iced_x86::{Code, Mnemonic};
use vmx_model::addr::Linear;
use vmx_model::arch::{Cr0, Rflags, SegmentRegister};
use vmx_model::event::Exception;
use vmx_model::intercept::bitmap::{IoAccess, IoDirection};

use super::string::{RDI, RSI, advance, repeat};
use super::{Row, Traits};
use crate::insn::{Insn, Operand, Plain, Repeat};
use crate::mem::{Access, Privilege};
use crate::mode::Mode;
use crate::width::Width;
use crate::{Cpu, Exec};

/// Where a 32-bit TSS has the offset of its I/O permission bitmap.
const TSS_IO_MAP_BASE: u64 = 0x66;

/// Returns who executes an instruction of this file.
pub(crate) fn lookup(code: Code) -> Option<Row> {
    let plain: Plain = match code {
        Code::In_AL_imm8 | Code::In_AL_DX => input::<u8>,
        Code::In_AX_imm8 | Code::In_AX_DX => input::<u16>,
        Code::In_EAX_imm8 | Code::In_EAX_DX => input::<u32>,
        Code::Out_imm8_AL | Code::Out_DX_AL => output::<u8>,
        Code::Out_imm8_AX | Code::Out_DX_AX => output::<u16>,
        Code::Out_imm8_EAX | Code::Out_DX_EAX => output::<u32>,
        _ => match code.mnemonic() {
            Mnemonic::Insb => ins::<u8>,
            Mnemonic::Insw => ins::<u16>,
            Mnemonic::Insd => ins::<u32>,
            Mnemonic::Outsb => outs::<u8>,
            Mnemonic::Outsw => outs::<u16>,
            Mnemonic::Outsd => outs::<u32>,
            _ => return None,
        },
    };
    let traits = Traits::ENDS_BLOCK | Traits::OUTSIDE;
    Some(Row { plain, traits })
}

/// IN.
fn input<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let port = cpu.read::<u16>(insn, 1)?;
    cpu.check_port(port, W::BYTES)?;
    ask::<W>(cpu, insn, port, IoDirection::In, None)?;
    let value = cpu.port_read::<W>(port)?;
    cpu.write(insn, 0, value)
}

/// OUT.
fn output<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let port = cpu.read::<u16>(insn, 0)?;
    cpu.check_port(port, W::BYTES)?;
    ask::<W>(cpu, insn, port, IoDirection::Out, None)?;
    let value = cpu.read::<W>(insn, 1)?;
    cpu.port_write(port, value)
}

/// INS: the destination is checked before the port is read.
fn ins<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let port = cpu.dx();
    cpu.check_port(port, W::BYTES)?;
    repeat(cpu, insn, |cpu| {
        let offset = cpu.address_register(RDI, insn.address_bytes);
        let operand = (SegmentRegister::Es, offset);
        ask::<W>(cpu, insn, port, IoDirection::In, Some(operand))?;
        let bytes = W::BYTES as u64;
        let linear = cpu.linear(SegmentRegister::Es, offset, bytes, Access::Write)?;
        cpu.translate(linear, Access::Write, Privilege::Current)?;
        let last = linear.offset(bytes - 1);
        cpu.translate(last, Access::Write, Privilege::Current)?;
        let value = cpu.port_read::<W>(port)?;
        cpu.store_linear(linear, value, Privilege::Current)?;
        advance::<W>(cpu, insn, RDI);
        Ok(())
    })
}

/// OUTS.
fn outs<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let port = cpu.dx();
    cpu.check_port(port, W::BYTES)?;
    repeat(cpu, insn, |cpu| {
        let offset = cpu.address_register(RSI, insn.address_bytes);
        let operand = (insn.memory.segment, offset);
        ask::<W>(cpu, insn, port, IoDirection::Out, Some(operand))?;
        let value = cpu.load::<W>(insn.memory.segment, offset)?;
        cpu.port_write(port, value)?;
        advance::<W>(cpu, insn, RSI);
        Ok(())
    })
}

/// Asks whether a port access leaves the guest; `memory` is the memory operand of a string
/// instruction.
fn ask<W: Width>(
    cpu: &mut Cpu,
    insn: &Insn,
    port: u16,
    direction: IoDirection,
    memory: Option<(SegmentRegister, u64)>,
) -> Exec {
    if !cpu.is_non_root() {
        return Ok(());
    }
    let access = IoAccess {
        port,
        bytes: W::BYTES as u8,
        direction,
        is_string: memory.is_some(),
        is_repeated: insn.repeat != Repeat::None,
        is_immediate: insn
            .operands
            .iter()
            .any(|o| matches!(o, Operand::Immediate(_))),
    };
    let linear = memory.map(|(segment, offset)| cpu.linear_without_checks(segment, offset).0);
    cpu.ask_about_port(&access, insn, linear)
}

impl Cpu {
    fn dx(&self) -> u16 {
        self.gpr[2] as u16
    }

    fn port_read<W: Width>(&mut self, port: u16) -> Exec<W> {
        self.bus.time_passes(self.retired);
        let answer = self.bus.port_read(port, W::BYTES);
        let value = answer.map_err(|_| self.suspend())?;
        self.note_port_access(port, W::BYTES);
        Ok(W::from_u64(u64::from(value)))
    }

    fn port_write<W: Width>(&mut self, port: u16, value: W) -> Exec {
        self.bus.time_passes(self.retired);
        let answer = self.bus.port_write(port, W::BYTES, value.to_u64() as u32);
        answer.map_err(|_| self.suspend())?;
        self.note_port_access(port, W::BYTES);
        Ok(())
    }

    /// #GP(0) unless the current privilege may access `bytes` ports from `port` on: by IOPL (not in
    /// virtual-8086 mode), or by the I/O permission bitmap of the TSS.
    fn check_port(&mut self, port: u16, bytes: usize) -> Exec {
        if !self.state.cr0.contains(Cr0::PE) {
            return Ok(());
        }
        let iopl = (self.state.rflags & Rflags::IOPL).bits() >> 12;
        if self.mode() != Mode::Virtual8086 && u64::from(self.cpl()) <= iopl {
            return Ok(());
        }
        if self.is_port_permitted(port, bytes)? {
            Ok(())
        } else {
            Err(Exception::gp(0).into())
        }
    }

    fn is_port_permitted(&mut self, port: u16, bytes: usize) -> Exec<bool> {
        let tr = *self.state.segment(SegmentRegister::Tr);
        // A 16-bit TSS (type 1 or 3) has no bitmap.
        let has_bitmap = !tr.access.is_unusable() && tr.access.segment_type() & 0xd == 9;
        let limit = u64::from(tr.limit);
        if !has_bitmap || limit < TSS_IO_MAP_BASE + 1 {
            return Ok(false);
        }
        let base: u16 = self.load_tss(tr.base, TSS_IO_MAP_BASE)?;
        let offset = u64::from(base) + u64::from(port / 8);
        if offset + 1 > limit {
            return Ok(false);
        }
        let map: u16 = self.load_tss(tr.base, offset)?;
        let ports = ((1 << bytes) - 1) << (port % 8);
        Ok(map & ports == 0)
    }

    fn load_tss(&mut self, base: u64, offset: u64) -> Exec<u16> {
        let mut linear = base.wrapping_add(offset);
        if !self.mode().is_ia32e() {
            linear &= 0xffff_ffff;
        }
        self.load_linear(Linear(linear), Access::Read, Privilege::Supervisor)
    }
}

#[cfg(test)]
mod tests;
