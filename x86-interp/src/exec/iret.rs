//! IRET in all its variants.
//!
//! SDM Vol. 2A, IRET/IRETD/IRETQ, "Operation"; Vol. 3A, "Handling Multiple NMIs", "Task Linking";
//! Vol. 3B, "Entering Virtual-8086 Mode", "Interrupt and Exception Handling in Virtual-8086 Mode".

use iced_x86::{Code, Mnemonic};
use vmx_model::arch::{Cr4, Interruptibility, Rflags, SegmentRegister};
use vmx_model::event::Exception;

use super::{Row, Traits};
use crate::cet::transfer::Return;
use crate::descriptor::{Column, Selector};
use crate::fault::Fault;
use crate::insn::Insn;
use crate::mem::stack::Stack;
use crate::mode::Mode;
use crate::segmentation::virtual_8086_segment;
use crate::task::TaskSource;
use crate::{Cpu, Exec};

/// The defined bits of EFLAGS.
pub(crate) const EFLAGS_MASK: u64 = 0x3f_7fd5;

/// Returns who executes an instruction of this file.
pub(crate) fn lookup(code: Code) -> Option<Row> {
    match code.mnemonic() {
        Mnemonic::Iret | Mnemonic::Iretd | Mnemonic::Iretq => Some(Row {
            plain: iret,
            traits: Traits::ENDS_BLOCK,
        }),
        _ => None,
    }
}

/// The part of the frame that every IRET pops.
struct Frame {
    offset: u64,
    selector: Selector,
    flags: Rflags,
    /// The operand size in bytes.
    size: u8,
    /// The stack above it.
    stack: Stack,
}

/// IRET. It ends the blocking of NMIs even if it faults.
fn iret(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let was_blocking = cpu.state.interruptibility.contains(Interruptibility::NMI);
    let result = cpu.iret_by_mode(insn.operand_bytes);
    match result {
        Ok(()) | Err(Fault::Exception(_)) => {
            if cpu.unblocks_nmi() {
                cpu.state.interruptibility.remove(Interruptibility::NMI);
                cpu.events.is_nmi_unblocked = was_blocking && result.is_err();
            }
            cpu.events.keeps_rf = result.is_ok();
        }
        Err(_) => {}
    }
    result
}

impl Cpu {
    fn iret_by_mode(&mut self, size: u8) -> Exec {
        let mode = self.mode();
        if mode == Mode::Virtual8086 && self.iopl() < 3 {
            return self.iret_by_vme(size);
        }
        let is_nested = self.rflags().contains(Rflags::NT);
        match mode {
            Mode::Real | Mode::Virtual8086 => self.iret_real(size),
            Mode::Protected if is_nested => self.iret_to_task(),
            Mode::Compatibility | Mode::Long if is_nested => Err(Exception::gp(0).into()),
            _ => self.iret_protected(size),
        }
    }

    /// Returns the I/O privilege level.
    pub(crate) fn iopl(&self) -> u8 {
        ((self.rflags() & Rflags::IOPL).bits() >> 12) as u8
    }

    fn iret_frame(&mut self, size: u8) -> Exec<Frame> {
        let mut stack = self.stack();
        let offset = self.pop_value(&mut stack, size)?;
        let selector = Selector(self.pop_value(&mut stack, size)? as u16);
        let flags = Rflags::from_bits_retain(self.pop_value(&mut stack, size)?);
        Ok(Frame {
            offset,
            selector,
            flags,
            size,
            stack,
        })
    }

    /// Real-address mode, and virtual-8086 mode with IOPL 3.
    fn iret_real(&mut self, size: u8) -> Exec {
        let frame = self.iret_frame(size)?;
        let code = self.real_style_code(frame.selector);
        let offset = self.code_offset(&code, frame.offset)?;
        let mut kept = Rflags::VM | Rflags::VIF | Rflags::VIP;
        if self.mode() == Mode::Virtual8086 {
            kept |= Rflags::IOPL;
        }
        self.set_stack_pointer(&frame.stack);
        self.enter_code(code, offset);
        let loaded = flags_of_size(size).difference(kept);
        self.load_flags(frame.flags, loaded);
        Ok(())
    }

    /// Virtual-8086 mode with IOPL below 3: with CR4.VME, the 16-bit form loads VIF for IF.
    fn iret_by_vme(&mut self, size: u8) -> Exec {
        if size != 2 || !self.state.cr4.contains(Cr4::VME) {
            return Err(Exception::gp(0).into());
        }
        let frame = self.iret_frame(size)?;
        let code = self.real_style_code(frame.selector);
        let offset = self.code_offset(&code, frame.offset)?;
        let enables = frame.flags.contains(Rflags::IF);
        let is_pending = self.rflags().contains(Rflags::VIP);
        if enables && is_pending || frame.flags.contains(Rflags::TF) {
            return Err(Exception::gp(0).into());
        }
        self.set_stack_pointer(&frame.stack);
        self.enter_code(code, offset);
        let loaded = flags_of_size(2).difference(Rflags::IOPL | Rflags::IF);
        self.load_flags(frame.flags, loaded);
        let mut flags = self.rflags();
        flags.set(Rflags::VIF, enables);
        self.set_rflags(flags);
        Ok(())
    }

    /// "TASK-RETURN": to the task that the current TSS links to.
    fn iret_to_task(&mut self) -> Exec {
        let tr = *self.state.segment(SegmentRegister::Tr);
        let at = self.system_linear(tr.base, 0);
        let link: u16 = self.load_linear(
            at,
            crate::mem::Access::Read,
            crate::mem::Privilege::Supervisor,
        )?;
        self.task_switch(Selector(link), TaskSource::Iret, self.next_rip)
    }

    /// Protected mode and IA-32e mode.
    fn iret_protected(&mut self, size: u8) -> Exec {
        let frame = self.iret_frame(size)?;
        let to_virtual = size == 4
            && frame.flags.contains(Rflags::VM)
            && self.cpl() == 0
            && self.column() == Column::Legacy;
        if to_virtual {
            return self.iret_to_virtual_8086(&frame);
        }
        let (code, descriptor) = self.return_code_segment(frame.selector)?;
        let to = |offset| Return {
            code: &code,
            selector: frame.selector,
            offset,
            is_iret: true,
        };
        let level = frame.selector.rpl();
        // "IF instruction began in 64-bit mode": it pops SS:RSP whatever the levels are.
        let pops_stack = level > self.cpl() || self.mode() == Mode::Long;
        let mut stack = frame.stack;
        let loaded = self.flags_by_privilege(size);
        if !pops_stack {
            let offset = self.code_offset(&code, frame.offset)?;
            self.leave_code(&to(offset), descriptor)?;
            self.set_stack_pointer(&stack);
            self.enter_code(code, offset);
        } else {
            let pointer = self.pop_value(&mut stack, size)?;
            let ss = Selector(self.pop_value(&mut stack, size)? as u16);
            let segment = self.return_stack_segment(ss, level, &code)?;
            let offset = self.code_offset(&code, frame.offset)?;
            self.leave_code(&to(offset), descriptor)?;
            self.return_outward(code, offset, segment, pointer, 0);
        }
        self.load_flags(frame.flags, loaded);
        Ok(())
    }

    /// "RETURN-TO-VIRTUAL-8086-MODE", from privilege level 0.
    fn iret_to_virtual_8086(&mut self, frame: &Frame) -> Exec {
        let mut stack = frame.stack;
        let pointer = self.pop_value(&mut stack, frame.size)?;
        let mut selectors = [0; 5];
        for selector in &mut selectors {
            *selector = self.pop_value(&mut stack, frame.size)? as u16;
        }
        if frame.offset > 0xffff {
            return Err(Exception::gp(0).into());
        }
        self.leave_shadow_to_virtual_8086()?;
        self.load_flags(frame.flags, Rflags::from_bits_retain(EFLAGS_MASK));
        self.enter_code(virtual_8086_segment(frame.selector.0), frame.offset);
        for (register, selector) in POPPED_SEGMENTS.into_iter().zip(selectors) {
            self.set_segment(register, virtual_8086_segment(selector));
        }
        self.gpr[4] = pointer;
        Ok(())
    }

    /// Returns the flags that IRET of `size` bytes may load at the current privilege level.
    fn flags_by_privilege(&self, size: u8) -> Rflags {
        let cpl = self.cpl();
        let mut kept = Rflags::VM;
        if cpl > self.iopl() {
            kept |= Rflags::IF;
        }
        if cpl != 0 {
            kept |= Rflags::IOPL | Rflags::VIF | Rflags::VIP;
        }
        flags_of_size(size).difference(kept)
    }

    fn load_flags(&mut self, image: Rflags, loaded: Rflags) {
        let old = self.rflags();
        self.set_rflags(old.difference(loaded) | image.intersection(loaded));
    }
}

/// The order in which a return to virtual-8086 mode pops the segments behind ESP.
const POPPED_SEGMENTS: [SegmentRegister; 5] = [
    SegmentRegister::Ss,
    SegmentRegister::Es,
    SegmentRegister::Ds,
    SegmentRegister::Fs,
    SegmentRegister::Gs,
];

/// Returns the flags that an image of `size` bytes holds.
fn flags_of_size(size: u8) -> Rflags {
    let mask = if size == 2 { 0xffff } else { u64::MAX };
    Rflags::from_bits_retain(EFLAGS_MASK & mask)
}
