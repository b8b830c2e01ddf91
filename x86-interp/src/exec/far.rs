//! Far transfers: JMP, CALL and RET between code segments, through call gates, and to tasks.
//!
//! SDM Vol. 2: JMP, CALL, RET, "Operation"; Vol. 3A, "Program Control Transfers: Privilege Level
//! Checking When Transferring Program Control Between Code Segments", "Call Gates", "IA-32e Mode
//! Call Gates", "Stack Switching", "Returning from a Called Procedure".

use iced_x86::{Code, Mnemonic};
use vmx_model::arch::{Segment, SegmentRegister};
use vmx_model::event::Exception;

use super::{Row, Traits};
use crate::cet::transfer::{Entry, Return, Source};
use crate::descriptor::{Column, Descriptor, Selector, System};
use crate::insn::{Insn, Operand, Plain};
use crate::mem::access::address_mask;
use crate::mem::stack::Stack;
use crate::mode::Mode;
use crate::segmentation::{null_segment, null_stack_segment, virtual_8086_segment};
use crate::task::TaskSource;
use crate::{Cpu, Exec};

/// Returns who executes an instruction of this file.
pub(crate) fn lookup(code: Code) -> Option<Row> {
    let plain: Plain = match code.mnemonic() {
        _ if code.is_jmp_far() || code.is_jmp_far_indirect() => jmp_far,
        _ if code.is_call_far() || code.is_call_far_indirect() => call_far,
        Mnemonic::Retf => ret_far,
        _ => return None,
    };
    let traits = Traits::ENDS_BLOCK;
    Some(Row { plain, traits })
}

/// A far pointer, and what reaches it.
#[derive(Clone, Copy)]
struct Far {
    selector: Selector,
    offset: u64,
    /// The operand size in bytes.
    size: u8,
    transfer: Transfer,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Transfer {
    Jump,
    Call,
}

fn jmp_far(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let far = cpu.far_operand(insn, Transfer::Jump)?;
    cpu.far_transfer(far)
}

fn call_far(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let far = cpu.far_operand(insn, Transfer::Call)?;
    cpu.far_transfer(far)
}

impl Cpu {
    fn far_operand(&mut self, insn: &Insn, transfer: Transfer) -> Exec<Far> {
        let (selector, offset) = match insn.operands[0] {
            Operand::Far { selector, offset } => (Selector(selector), u64::from(offset)),
            _ => self.read_far_pointer(insn)?,
        };
        Ok(Far {
            selector,
            offset,
            size: insn.operand_bytes,
            transfer,
        })
    }

    fn far_transfer(&mut self, far: Far) -> Exec {
        if self.mode().is_real_style() {
            return self.far_transfer_real(far);
        }
        if far.selector.is_null() {
            return Err(Exception::gp(0).into());
        }
        let descriptor = self.descriptor(far.selector, Exception::gp)?;
        if descriptor.access().is_code_or_data() {
            return self.enter_code_segment(far, descriptor);
        }
        let descriptor = self.system_descriptor(far.selector, Exception::gp)?;
        let system = descriptor.system(self.column());
        let code = far.selector.error_code();
        let is_known = matches!(
            system,
            System::CallGate(_) | System::TaskGate | System::Tss { .. }
        );
        let is_task = !matches!(system, System::CallGate(_));
        if !is_known || is_task && self.column() == Column::Ia32e {
            return Err(Exception::gp(code).into());
        }
        if descriptor.access().dpl() < self.cpl().max(far.selector.rpl()) {
            return Err(Exception::gp(code).into());
        }
        match system {
            // The task switch checks the rest of the TSS descriptor.
            System::Tss { .. } => self.enter_task(far, far.selector),
            _ if !descriptor.access().is_present() => Err(Exception::np(code).into()),
            System::CallGate(size) => self.through_call_gate(far, descriptor, size),
            _ => self.enter_task(far, descriptor.gate_selector()),
        }
    }

    fn enter_task(&mut self, far: Far, selector: Selector) -> Exec {
        let source = match far.transfer {
            Transfer::Jump => TaskSource::Jmp,
            Transfer::Call => TaskSource::Call,
        };
        self.task_switch(selector, source, self.next_rip)
    }

    /// Real-address and virtual-8086 mode.
    fn far_transfer_real(&mut self, far: Far) -> Exec {
        let code = self.real_style_code(far.selector);
        let offset = self.code_offset(&code, far.offset)?;
        if far.transfer == Transfer::Call {
            let mut stack = self.stack();
            self.push_return(&mut stack, far.size)?;
            self.set_stack_pointer(&stack);
        }
        self.enter_code(code, offset);
        Ok(())
    }

    /// Returns CS after a far transfer in real-address or virtual-8086 mode.
    pub(crate) fn real_style_code(&self, selector: Selector) -> Segment {
        if self.mode() == Mode::Virtual8086 {
            virtual_8086_segment(selector.0)
        } else {
            self.real_segment(SegmentRegister::Cs, selector)
        }
    }

    /// "CONFORMING-CODE-SEGMENT" and "NONCONFORMING-CODE-SEGMENT".
    fn enter_code_segment(&mut self, far: Far, descriptor: Descriptor) -> Exec {
        let rights = descriptor.access();
        let cpl = self.cpl();
        let is_reachable = if rights.is_conforming() {
            rights.dpl() <= cpl
        } else {
            far.selector.rpl() <= cpl && rights.dpl() == cpl
        };
        let code = far.selector.error_code();
        if !rights.is_code() || !is_reachable || self.is_reserved_size(descriptor) {
            return Err(Exception::gp(code).into());
        }
        if !rights.is_present() {
            return Err(Exception::np(code).into());
        }
        let offset = far.offset & address_mask(far.size);
        let offset = self.code_offset(&descriptor.segment(far.selector), offset)?;
        let mut segment = self.accessed(far.selector, descriptor)?;
        segment.selector = far.selector.with_rpl(cpl).0;
        match far.transfer {
            Transfer::Call => self.call_same_level(self.stack(), far.size, &segment)?,
            Transfer::Jump => self.jump_under_cet(&segment)?,
        }
        self.enter_code(segment, offset);
        Ok(())
    }

    /// Whether L and D are both set, which IA-32e mode reserves.
    fn is_reserved_size(&self, descriptor: Descriptor) -> bool {
        let rights = descriptor.access();
        self.column() == Column::Ia32e && rights.is_long() && rights.is_big()
    }

    /// Returns the instruction pointer for `offset` in a code segment: RIP in a 64-bit one, else
    /// EIP. #GP(0) unless it is canonical, or within the limit.
    pub(crate) fn code_offset(&self, code: &Segment, offset: u64) -> Exec<u64> {
        let (offset, is_inside) = if self.column() == Column::Ia32e && code.access.is_long() {
            (offset, self.is_canonical(offset))
        } else {
            let eip = offset & 0xffff_ffff;
            (eip, eip <= u64::from(code.limit))
        };
        if is_inside {
            Ok(offset)
        } else {
            Err(Exception::gp(0).into())
        }
    }

    /// Pushes CS and the address of the next instruction.
    fn push_return(&mut self, stack: &mut Stack, size: u8) -> Exec {
        let cs = u64::from(self.state.segment(SegmentRegister::Cs).selector);
        self.push_frame(stack, size, &[cs, self.next_rip])
    }

    /// Pushes the return address, also on the shadow stack: a CALL that does not change the
    /// privilege level.
    fn call_same_level(&mut self, mut stack: Stack, size: u8, code: &Segment) -> Exec {
        let entry = Entry {
            level: self.cpl(),
            source: Source::Current,
            to_long: self.is_long_code(code),
            return_lip: self.lip_of(self.next_rip),
        };
        let checked = self.check_entry_under_cet(&stack, size, 2, &entry)?;
        self.push_return(&mut stack, size)?;
        self.enter_shadow(checked)?;
        self.set_stack_pointer(&stack);
        Ok(())
    }

    /// JMP to a code segment, which does not change the privilege level.
    fn jump_under_cet(&mut self, code: &Segment) -> Exec {
        self.check_shadow_jump(code)?;
        self.track_far(self.cpl());
        Ok(())
    }

    /// Loads CS and the instruction pointer.
    pub(crate) fn enter_code(&mut self, code: Segment, offset: u64) {
        self.set_segment(SegmentRegister::Cs, code);
        self.next_rip = offset;
    }

    /// "CALL-GATE": of `size` bytes, already checked itself.
    fn through_call_gate(&mut self, far: Far, gate: Descriptor, size: u8) -> Exec {
        let selector = gate.gate_selector();
        let code = selector.error_code();
        if selector.is_null() {
            return Err(Exception::gp(0).into());
        }
        let descriptor = self.descriptor(selector, Exception::gp)?;
        let rights = descriptor.access();
        let cpl = self.cpl();
        let is_inner = !rights.is_conforming() && rights.dpl() < cpl;
        let is_wrong_size = size == 8 && (!rights.is_long() || rights.is_big());
        if !rights.is_code() || rights.dpl() > cpl || is_wrong_size {
            return Err(Exception::gp(code).into());
        }
        if is_inner && far.transfer == Transfer::Jump {
            return Err(Exception::gp(code).into());
        }
        if !rights.is_present() {
            return Err(Exception::np(code).into());
        }
        let level = if is_inner { rights.dpl() } else { cpl };
        let code = descriptor.segment(selector);
        let offset = self.code_offset(&code, gate.gate_offset(size))?;
        let mut segment = self.accessed(selector, descriptor)?;
        segment.selector = selector.with_rpl(level).0;
        match far.transfer {
            Transfer::Jump => self.jump_under_cet(&segment)?,
            Transfer::Call if is_inner => self.call_inner(gate, size, level, &segment)?,
            Transfer::Call => self.call_same_level(self.stack_for_gate(size), size, &segment)?,
        }
        self.enter_code(segment, offset);
        Ok(())
    }

    fn stack_for_gate(&self, size: u8) -> Stack {
        if size == 8 {
            self.stack_as_long()
        } else {
            self.stack()
        }
    }

    /// "MORE-PRIVILEGE": switches the stack, copies the parameters, pushes the return address.
    fn call_inner(&mut self, gate: Descriptor, size: u8, level: u8, code: &Segment) -> Exec {
        let mut inner = if size == 8 {
            let pointer = self.tss_pointer(4 + 8 * u64::from(level))?;
            let selector = Selector(u16::from(level));
            Stack::long(null_stack_segment(selector, level), pointer)
        } else {
            self.stack_of_level(level)?
        };
        let count = if size == 8 { 0 } else { gate.parameter_count() };
        let outer = self.stack();
        let mut frame = [0; 35];
        frame[0] = u64::from(outer.segment.selector);
        frame[1] = self.gpr[4];
        for n in 0..count {
            let displacement = (count - 1 - n) as u64 * u64::from(size);
            frame[2 + n] = self.stack_value(&outer, displacement, size)?;
        }
        frame[2 + count] = u64::from(self.state.segment(SegmentRegister::Cs).selector);
        frame[3 + count] = self.next_rip;
        let entry = Entry {
            level,
            source: Source::Level,
            to_long: self.is_long_code(code),
            return_lip: self.lip_of(self.next_rip),
        };
        let checked = self.check_entry_under_cet(&inner, size, 4 + count, &entry)?;
        self.push_frame(&mut inner, size, &frame[..4 + count])?;
        self.enter_shadow(checked)?;
        self.set_segment(SegmentRegister::Ss, inner.segment);
        self.set_stack_pointer(&inner);
        Ok(())
    }
}

/// RET far, with or without an immediate.
fn ret_far(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let parameters = match insn.operands[0] {
        Operand::Immediate(n) => n & 0xffff,
        _ => 0,
    };
    let size = insn.operand_bytes;
    let mut stack = cpu.stack();
    let offset = cpu.pop_value(&mut stack, size)?;
    let selector = Selector(cpu.pop_value(&mut stack, size)? as u16);
    if cpu.mode().is_real_style() {
        let code = cpu.real_style_code(selector);
        let offset = cpu.code_offset(&code, offset)?;
        stack.move_by(parameters);
        cpu.set_stack_pointer(&stack);
        cpu.enter_code(code, offset);
        return Ok(());
    }
    cpu.ret_far_protected(stack, selector, offset, size, parameters)
}

impl Cpu {
    fn ret_far_protected(
        &mut self,
        mut stack: Stack,
        selector: Selector,
        offset: u64,
        size: u8,
        parameters: u64,
    ) -> Exec {
        let (code, descriptor) = self.return_code_segment(selector)?;
        let to = |offset| Return {
            code: &code,
            selector,
            offset,
            is_iret: false,
        };
        stack.move_by(parameters);
        if selector.rpl() == self.cpl() {
            let offset = self.code_offset(&code, offset)?;
            self.leave_code(&to(offset), descriptor)?;
            self.set_stack_pointer(&stack);
            self.enter_code(code, offset);
            return Ok(());
        }
        let pointer = self.pop_value(&mut stack, size)?;
        let ss = Selector(self.pop_value(&mut stack, size)? as u16);
        let segment = self.return_stack_segment(ss, selector.rpl(), &code)?;
        let offset = self.code_offset(&code, offset)?;
        self.leave_code(&to(offset), descriptor)?;
        self.return_outward(code, offset, segment, pointer, parameters);
        Ok(())
    }

    /// Pops the frame of the shadow stack, and marks the code segment that RET or IRET returns to as
    /// accessed: nothing before has changed anything, nothing after may fail.
    pub(crate) fn leave_code(&mut self, to: &Return<'_>, descriptor: Descriptor) -> Exec {
        let shadow = self.check_shadow_return(to)?;
        self.accessed(to.selector, descriptor)?;
        self.leave_shadow(&shadow)
    }

    /// Checks the code segment that RET or IRET returns to. It is not yet marked as accessed in
    /// memory.
    pub(crate) fn return_code_segment(
        &mut self,
        selector: Selector,
    ) -> Exec<(Segment, Descriptor)> {
        let code = selector.error_code();
        if selector.is_null() {
            return Err(Exception::gp(0).into());
        }
        let descriptor = self.descriptor(selector, Exception::gp)?;
        let rights = descriptor.access();
        let is_level_right = if rights.is_conforming() {
            rights.dpl() <= selector.rpl()
        } else {
            rights.dpl() == selector.rpl()
        };
        let is_inward = selector.rpl() < self.cpl();
        let is_reserved = self.is_reserved_size(descriptor);
        if !rights.is_code() || is_inward || !is_level_right || is_reserved {
            return Err(Exception::gp(code).into());
        }
        if !rights.is_present() {
            return Err(Exception::np(code).into());
        }
        let low = descriptor.low | crate::descriptor::ACCESSED;
        let segment = Descriptor { low, high: 0 }.segment(selector);
        Ok((segment, descriptor))
    }

    /// Checks the stack segment that RET or IRET returns to, for privilege level `level`. A null
    /// selector may have any RPL.
    pub(crate) fn return_stack_segment(
        &mut self,
        selector: Selector,
        level: u8,
        code: &Segment,
    ) -> Exec<Segment> {
        if !selector.is_null() {
            return self.stack_segment_at(selector, level, Exception::gp);
        }
        let to_long = self.column() == Column::Ia32e && code.access.is_long();
        if to_long && level < 3 {
            Ok(null_stack_segment(selector, level))
        } else {
            Err(Exception::gp(0).into())
        }
    }

    /// Completes a return to an outer privilege level, or to the same one with a new stack:
    /// releases `parameters` bytes of its stack, and data segments that it may not use.
    pub(crate) fn return_outward(
        &mut self,
        code: Segment,
        offset: u64,
        ss: Segment,
        pointer: u64,
        parameters: u64,
    ) {
        self.enter_code(code, offset);
        self.set_segment(SegmentRegister::Ss, ss);
        let mut stack = self.stack();
        stack.pointer = pointer;
        stack.move_by(parameters);
        self.set_stack_pointer(&stack);
        self.drop_inaccessible_segments();
    }

    /// Nulls the data segments that the new CPL has no right to (SDM Vol. 3A, "Returning from a
    /// Called Procedure").
    ///
    /// Choice: base and limit stay, which 64-bit mode uses with FS and GS, as KVM, QEMU and Bochs
    /// have it.
    fn drop_inaccessible_segments(&mut self) {
        let cpl = self.cpl();
        for register in [
            SegmentRegister::Es,
            SegmentRegister::Fs,
            SegmentRegister::Gs,
            SegmentRegister::Ds,
        ] {
            let old = *self.state.segment(register);
            let access = old.access;
            let is_private = !access.is_conforming() && access.dpl() < cpl;
            if !access.is_unusable() && is_private {
                let null = Segment {
                    base: old.base,
                    limit: old.limit,
                    ..null_segment(Selector(0))
                };
                self.set_segment(register, null);
            }
        }
    }
}
