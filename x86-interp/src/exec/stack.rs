//! Stack instructions: PUSH, POP, PUSHA, POPA, PUSHF, POPF, ENTER, LEAVE (SDM Vol. 1, "Stack
//! Manipulation Instructions"; POP to a segment register is with the segment instructions).
//!
//! The width of the stack pointer is 64 bits in 64-bit mode, else what the B flag of SS tells.

use iced_x86::{Code, Mnemonic, OpCodeOperandKind};
use vmx_model::arch::{Cr4, Rflags, SegmentRegister};
use vmx_model::event::Exception;

use super::Row;
use super::form::{by_operand_size, ending, operand_bytes};
use crate::insn::{Insn, Plain};
use crate::mem::access::address_mask;
use crate::mode::Mode;
use crate::width::Width;
use crate::{Cpu, Exec};

const RSP: u8 = 4;
const RBP: u8 = 5;

/// A handler for the operand sizes 16, 32 and 64 bits.
macro_rules! wide {
    ($f:ident) => {
        [$f::<u16>, $f::<u32>, $f::<u64>]
    };
}

/// Returns the row of a stack instruction.
pub(crate) fn lookup(code: Code) -> Option<Row> {
    let handlers: [Plain; 3] = match code.mnemonic() {
        Mnemonic::Push if is_segment(code) => wide!(push_segment),
        Mnemonic::Push => wide!(push),
        Mnemonic::Pop if operand_bytes(code, 0).is_some() => wide!(pop),
        Mnemonic::Pusha | Mnemonic::Pushad => wide!(pusha),
        Mnemonic::Popa | Mnemonic::Popad => wide!(popa),
        Mnemonic::Pushf | Mnemonic::Pushfd | Mnemonic::Pushfq => wide!(pushf),
        Mnemonic::Popf | Mnemonic::Popfd | Mnemonic::Popfq => {
            // It may set TF or IF: whoever runs the blocks has to look.
            return by_operand_size(code, wide!(popf)).and_then(|row| ending(row.plain));
        }
        Mnemonic::Enter => wide!(enter),
        Mnemonic::Leave => wide!(leave),
        _ => return None,
    };
    by_operand_size(code, handlers)
}

fn is_segment(code: Code) -> bool {
    matches!(
        code.op_code().op_kind(0),
        OpCodeOperandKind::es
            | OpCodeOperandKind::cs
            | OpCodeOperandKind::ss
            | OpCodeOperandKind::ds
            | OpCodeOperandKind::fs
            | OpCodeOperandKind::gs
    )
}

impl Cpu {
    /// Returns the width of the stack pointer in bytes: 2, 4 or 8.
    pub(crate) fn stack_bytes(&self) -> u8 {
        if self.mode() == Mode::Long {
            8
        } else if self.state.segment(SegmentRegister::Ss).access.is_big() {
            4
        } else {
            2
        }
    }

    /// Returns SP, ESP or RSP plus `distance`, wrapped to the width of the stack pointer.
    pub(crate) fn stack_offset(&self, distance: u64) -> u64 {
        self.gpr[usize::from(RSP)].wrapping_add(distance) & address_mask(self.stack_bytes())
    }

    /// Pushes `value`.
    pub(crate) fn push<W: Width>(&mut self, value: W) -> Exec {
        let top = self.stack_offset((W::BYTES as u64).wrapping_neg());
        self.store(SegmentRegister::Ss, top, value)?;
        self.set_stack_offset(top);
        Ok(())
    }

    /// Pops a value.
    pub(crate) fn pop<W: Width>(&mut self) -> Exec<W> {
        let value = self.peek(0)?;
        self.release_stack(W::BYTES as u64);
        Ok(value)
    }

    /// Loads the value `distance` bytes above the top of the stack.
    pub(crate) fn peek<W: Width>(&mut self, distance: u64) -> Exec<W> {
        let offset = self.stack_offset(distance);
        self.load(SegmentRegister::Ss, offset)
    }

    /// Adds `bytes` to the stack pointer.
    pub(crate) fn release_stack(&mut self, bytes: u64) {
        let top = self.stack_offset(bytes);
        self.set_stack_offset(top);
    }

    /// Sets SP, ESP or RSP, by the width of the stack pointer.
    pub(crate) fn set_stack_offset(&mut self, value: u64) {
        let bytes = self.stack_bytes();
        self.set_address_register(RSP, bytes, value);
    }
}

/// PUSH of a register, memory or an immediate. PUSH of the stack pointer pushes its old value.
pub(crate) fn push<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let value = cpu.read::<W>(insn, 0)?;
    cpu.push(value)
}

/// PUSH of a segment register. The 32-bit form moves the stack pointer by four bytes but writes
/// two, as all recent Intel processors.
pub(crate) fn push_segment<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let selector = cpu.read::<u16>(insn, 0)?;
    if W::BITS != 32 {
        return cpu.push(W::from_u64(u64::from(selector)));
    }
    let top = cpu.stack_offset(4u64.wrapping_neg());
    cpu.store(SegmentRegister::Ss, top, selector)?;
    cpu.set_stack_offset(top);
    Ok(())
}

/// POP. A memory operand that is addressed by the stack pointer uses its value after the pop; the
/// stack pointer changes only if the store succeeds.
pub(crate) fn pop<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let value = cpu.peek::<W>(0)?;
    let before = cpu.gpr[usize::from(RSP)];
    cpu.release_stack(W::BYTES as u64);
    cpu.write(insn, 0, value)
        .inspect_err(|_| cpu.gpr[usize::from(RSP)] = before)
}

/// PUSHA: all eight registers, with the old stack pointer. Nothing is pushed unless all can be;
/// the fault is that of the first push that cannot.
pub(crate) fn pusha<W: Width>(cpu: &mut Cpu, _: &Insn) -> Exec {
    let bytes = W::BYTES as u64;
    for place in 1..=8 {
        let offset = cpu.stack_offset((place * bytes).wrapping_neg());
        cpu.load_for_update::<W>(SegmentRegister::Ss, offset)?;
    }
    for number in 0..8u64 {
        let offset = cpu.stack_offset(((number + 1) * bytes).wrapping_neg());
        let value = cpu.register::<W>(number as u8 * 8);
        cpu.store(SegmentRegister::Ss, offset, value)?;
    }
    cpu.release_stack((8 * bytes).wrapping_neg());
    Ok(())
}

/// POPA: all eight registers but the stack pointer, whose image is skipped.
pub(crate) fn popa<W: Width>(cpu: &mut Cpu, _: &Insn) -> Exec {
    let bytes = W::BYTES as u64;
    let mut values = [W::default(); 8];
    for (place, value) in values.iter_mut().enumerate() {
        *value = cpu.peek(place as u64 * bytes)?;
    }
    for (number, value) in values.into_iter().rev().enumerate() {
        if number as u8 != RSP {
            cpu.set_register(number as u8 * 8, value);
        }
    }
    cpu.release_stack(8 * bytes);
    Ok(())
}

/// PUSHF. In virtual-8086 mode with IOPL below 3: the 16-bit form of a processor with CR4.VME
/// pushes VIF in the place of IF and 3 as IOPL; otherwise #GP(0).
pub(crate) fn pushf<W: Width>(cpu: &mut Cpu, _: &Insn) -> Exec {
    let mut image = cpu.rflags().difference(Rflags::VM | Rflags::RF);
    if is_below_iopl_in_virtual_8086(cpu) {
        if W::BITS != 16 || !cpu.state.cr4.contains(Cr4::VME) {
            return Err(Exception::gp(0).into());
        }
        image.set(Rflags::IF, image.contains(Rflags::VIF));
        image |= Rflags::IOPL;
    }
    cpu.push(W::from_u64(image.bits()))
}

fn is_below_iopl_in_virtual_8086(cpu: &Cpu) -> bool {
    cpu.mode() == Mode::Virtual8086 && !cpu.rflags().contains(Rflags::IOPL)
}

/// The flags that POPF changes at every privilege level.
const POPF_ALWAYS: Rflags = Rflags::STATUS
    .union(Rflags::TF)
    .union(Rflags::DF)
    .union(Rflags::NT)
    .union(Rflags::AC)
    .union(Rflags::ID);

/// POPF: SDM Vol. 2, "POPF/POPFD/POPFQ", table "Effect of POPF/POPFD/POPFQ on the EFLAGS
/// Register".
pub(crate) fn popf<W: Width>(cpu: &mut Cpu, _: &Insn) -> Exec {
    if is_below_iopl_in_virtual_8086(cpu) {
        return popf_virtual::<W>(cpu);
    }
    let old = cpu.rflags();
    let image = Rflags::from_bits_retain(cpu.pop::<W>()?.to_u64());
    let mut writable = POPF_ALWAYS;
    if cpu.cpl() == 0 {
        writable |= Rflags::IOPL;
    }
    if u64::from(cpu.cpl()) <= iopl(old) || cpu.mode() == Mode::Virtual8086 {
        writable |= Rflags::IF;
    }
    let writable = writable & Rflags::from_bits_retain(W::MASK);
    let merged = old.difference(writable) | image.intersection(writable);
    // A 32- or 64-bit POPF clears RF; the 16-bit form does not reach it.
    let cleared = Rflags::RF & Rflags::from_bits_retain(W::MASK);
    cpu.set_rflags(merged.difference(cleared));
    Ok(())
}

fn iopl(flags: Rflags) -> u64 {
    (flags & Rflags::IOPL).bits() >> 12
}

/// POPF in virtual-8086 mode with IOPL below 3: with CR4.VME the 16-bit form sets VIF from the
/// image's IF; #GP(0) if it would enable virtual interrupts while VIP is set, or set TF.
fn popf_virtual<W: Width>(cpu: &mut Cpu) -> Exec {
    if W::BITS != 16 || !cpu.state.cr4.contains(Cr4::VME) {
        return Err(Exception::gp(0).into());
    }
    let old = cpu.rflags();
    let image = Rflags::from_bits_retain(u64::from(cpu.peek::<u16>(0)?));
    let enables = image.contains(Rflags::IF) && old.contains(Rflags::VIP);
    if enables || image.contains(Rflags::TF) {
        return Err(Exception::gp(0).into());
    }
    let writable = POPF_ALWAYS & Rflags::from_bits_retain(0xffff);
    let mut merged = old.difference(writable) | image.intersection(writable);
    merged.set(Rflags::VIF, image.contains(Rflags::IF));
    cpu.release_stack(2);
    cpu.set_rflags(merged);
    Ok(())
}

/// ENTER: pushes the frame pointer and the frame pointers of the enclosing levels, makes the new
/// frame, and reserves space; the last word must be writable.
pub(crate) fn enter<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let size = cpu.read::<u64>(insn, 0)? & 0xffff;
    let level = cpu.read::<u64>(insn, 1)? & 0x1f;
    let before = cpu.gpr[usize::from(RSP)];
    build_frame::<W>(cpu, size, level).inspect_err(|_| cpu.gpr[usize::from(RSP)] = before)
}

fn build_frame<W: Width>(cpu: &mut Cpu, size: u64, level: u64) -> Exec {
    cpu.push(cpu.register::<W>(RBP * 8))?;
    let frame = cpu.gpr[usize::from(RSP)];
    for outer in 1..level {
        let distance = (outer * W::BYTES as u64).wrapping_neg();
        let display = cpu.gpr[usize::from(RBP)].wrapping_add(distance);
        let offset = display & address_mask(cpu.stack_bytes());
        let pointer = cpu.load::<W>(SegmentRegister::Ss, offset)?;
        cpu.push(pointer)?;
    }
    if level > 0 {
        cpu.push(W::from_u64(frame))?;
    }
    cpu.release_stack(size.wrapping_neg());
    let top = cpu.stack_offset(0);
    cpu.load_for_update::<W>(SegmentRegister::Ss, top)?;
    cpu.set_register(RBP * 8, W::from_u64(frame));
    Ok(())
}

/// LEAVE: releases the frame.
pub(crate) fn leave<W: Width>(cpu: &mut Cpu, _: &Insn) -> Exec {
    let bytes = cpu.stack_bytes();
    let frame = cpu.address_register(RBP, bytes);
    let value = cpu.load::<W>(SegmentRegister::Ss, frame)?;
    cpu.set_stack_offset(frame.wrapping_add(W::BYTES as u64) & address_mask(bytes));
    cpu.set_register(RBP * 8, value);
    Ok(())
}
