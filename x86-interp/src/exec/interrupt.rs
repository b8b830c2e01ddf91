//! Software interrupts, the interrupt flag, HLT.
//!
//! SDM Vol. 2: INT n/INTO/INT3/INT1, CLI, STI, HLT; Vol. 3B, "8086 Emulation": "Class 2-Maskable
//! Hardware Interrupt Handling in Virtual-8086 Mode Using the Virtual Interrupt Mechanism",
//! "Class 3-Software Interrupt Handling in Virtual-8086 Mode", "Protected-Mode Virtual
//! Interrupts".

use iced_x86::{Code, Mnemonic};
use vmx_model::arch::{Activity, Cr4, Interruptibility, Rflags, SegmentRegister};
use vmx_model::event::{Event, EventType, Exception, vector};
use vmx_model::intercept::Instruction;

use super::{Row, Traits};
use crate::descriptor::Selector;
use crate::insn::{Insn, Plain};
use crate::mem::{Access, Privilege};
use crate::mode::Mode;
use crate::segmentation::virtual_8086_segment;
use crate::{Cpu, Exec};

/// Returns who executes an instruction of this file.
pub(crate) fn lookup(code: Code) -> Option<Row> {
    let plain: Plain = match code.mnemonic() {
        Mnemonic::Int => int_n,
        Mnemonic::Int3 => int3,
        Mnemonic::Into => into,
        Mnemonic::Int1 => int1,
        Mnemonic::Cli => cli,
        Mnemonic::Sti => sti,
        Mnemonic::Hlt => hlt,
        _ => return None,
    };
    let traits = Traits::ENDS_BLOCK;
    Some(Row { plain, traits })
}

fn software_event(insn: &Insn, vector: u8, kind: EventType) -> Event {
    Event {
        vector,
        kind,
        error_code: None,
        instruction_length: insn.length,
        payload: 0,
    }
}

/// INT n. In virtual-8086 mode IOPL and the redirection bitmap decide where it goes.
fn int_n(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let vector = cpu.read::<u8>(insn, 0)?;
    if cpu.mode() == Mode::Virtual8086 && cpu.int_n_target(vector)? == IntTarget::Program {
        return cpu.redirect_interrupt(vector);
    }
    cpu.deliver_software(software_event(insn, vector, EventType::SoftwareInterrupt))
}

fn int3(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.deliver_software(software_event(
        insn,
        vector::BP,
        EventType::SoftwareException,
    ))
}

fn into(cpu: &mut Cpu, insn: &Insn) -> Exec {
    if !cpu.rflags().contains(Rflags::OF) {
        return Ok(());
    }
    cpu.deliver_software(software_event(
        insn,
        vector::OF,
        EventType::SoftwareException,
    ))
}

/// INT1: #DB without any effect on DR6, and without a check of the gate's DPL.
///
/// Choice: data breakpoints that MOV SS has met before it are reported by the same #DB.
fn int1(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.deliver_software(software_event(
        insn,
        vector::DB,
        EventType::PrivilegedSoftwareException,
    ))?;
    cpu.merge_pending_debug();
    Ok(())
}

/// Where INT n goes in virtual-8086 mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IntTarget {
    /// To the 8086 program's own handler.
    Program,
    /// Through the interrupt-descriptor table.
    Table,
}

impl Cpu {
    /// Returns where INT n goes in virtual-8086 mode.
    ///
    /// # Errors
    /// #GP(0): to the monitor, for want of IOPL.
    pub(crate) fn int_n_target(&mut self, vector: u8) -> Exec<IntTarget> {
        let has_extensions = self.state.cr4.contains(Cr4::VME);
        if has_extensions && !self.is_vector_monitored(vector)? {
            return Ok(IntTarget::Program);
        }
        match self.iopl() {
            3 => Ok(IntTarget::Table),
            _ => Err(Exception::gp(0).into()),
        }
    }

    /// Whether the bit of `vector` in the software-interrupt redirection bitmap is set: the
    /// interrupt goes to the protected-mode handler.
    fn is_vector_monitored(&mut self, vector: u8) -> Exec<bool> {
        const IO_MAP_BASE: u64 = 102;
        const BITMAP_BYTES: u64 = 32;
        let tr = *self.state.segment(SegmentRegister::Tr);
        let limit = u64::from(tr.limit);
        if tr.access.is_unusable() || limit < IO_MAP_BASE + 1 {
            return Err(Exception::gp(0).into());
        }
        let at = self.system_linear(tr.base, IO_MAP_BASE);
        let base: u16 = self.load_linear(at, Access::Read, Privilege::Supervisor)?;
        // Choice: a bitmap that would begin before the TSS is as one beyond its limit.
        let start = u64::from(base).checked_sub(BITMAP_BYTES);
        let byte = start.map(|start| start + u64::from(vector >> 3));
        let Some(byte) = byte.filter(|&byte| byte <= limit) else {
            return Err(Exception::gp(0).into());
        };
        let at = self.system_linear(tr.base, byte);
        let bits: u8 = self.load_linear(at, Access::Read, Privilege::Supervisor)?;
        Ok(bits >> (vector & 7) & 1 != 0)
    }

    /// Virtual-8086 mode extensions: the interrupt goes to the 8086 program's own handler, by the
    /// vector table at linear address 0. With IOPL below 3, VIF stands for IF.
    pub(crate) fn redirect_interrupt(&mut self, vector: u8) -> Exec {
        let at = vmx_model::addr::Linear(u64::from(vector) * 4);
        let pointer: u32 = self.load_linear(at, Access::Read, Privilege::Current)?;
        let mut image = self.rflags();
        let virtual_flag = if self.iopl() == 3 {
            Rflags::IF
        } else {
            image.set(Rflags::IF, image.contains(Rflags::VIF));
            image |= Rflags::IOPL;
            Rflags::VIF
        };
        let cs = u64::from(self.state.segment(SegmentRegister::Cs).selector);
        let mut stack = self.stack();
        self.push_frame(&mut stack, 2, &[image.bits(), cs, self.next_rip])?;
        self.set_stack_pointer(&stack);
        let cleared = Rflags::TF | Rflags::RF | virtual_flag;
        self.set_rflags(self.rflags().difference(cleared));
        let code = virtual_8086_segment(Selector((pointer >> 16) as u16).0);
        self.enter_code(code, u64::from(pointer & 0xffff));
        Ok(())
    }

    /// Returns the flag that CLI and STI change: IF, or VIF under the virtual-interrupt
    /// mechanisms.
    fn interrupt_flag(&self) -> Exec<Rflags> {
        let cpl = self.cpl();
        let mode = self.mode();
        let has_virtual = match mode {
            Mode::Virtual8086 => self.state.cr4.contains(Cr4::VME),
            _ => cpl == 3 && self.state.cr4.contains(Cr4::PVI),
        };
        if mode == Mode::Real || cpl <= self.iopl() {
            Ok(Rflags::IF)
        } else if has_virtual {
            Ok(Rflags::VIF)
        } else {
            Err(Exception::gp(0).into())
        }
    }
}

fn cli(cpu: &mut Cpu, _: &Insn) -> Exec {
    let flag = cpu.interrupt_flag()?;
    cpu.set_rflags(cpu.rflags().difference(flag));
    Ok(())
}

/// STI: interrupts stay blocked for one more instruction if they were disabled.
fn sti(cpu: &mut Cpu, _: &Insn) -> Exec {
    let flag = cpu.interrupt_flag()?;
    let old = cpu.rflags();
    if flag == Rflags::VIF && old.contains(Rflags::VIP) {
        return Err(Exception::gp(0).into());
    }
    if flag == Rflags::IF && !old.contains(Rflags::IF) {
        cpu.block_events(Interruptibility::STI);
    }
    cpu.set_rflags(old | flag);

    Ok(())
}

/// HLT: the run loop waits for an event behind it.
fn hlt(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.require_cpl0()?;
    cpu.ask(Instruction::Hlt, insn)?;
    cpu.state.activity = Activity::Hlt;

    Ok(())
}
