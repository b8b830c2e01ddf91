//! Delivery of exceptions and interrupts through the interrupt table of the current mode.
//!
//! SDM Vol. 3A, "Interrupt and Exception Handling": "Exception and Interrupt Handling", "Exception
//! and Interrupt Handling in 64-bit Mode", "Error Code", "Interrupt 8-Double Fault Exception
//! (#DF)"; Vol. 3B, "8086 Emulation"; Vol. 2A, INT n/INTO/INT3/INT1, "Operation".
//!
//! [`Cpu::raise`] delivers what an instruction raised, [`Cpu::deliver`] an event between
//! instructions, [`Cpu::deliver_software`] what an INT instruction asks for. While an event is on
//! its way it is in `Cpu::delivering`: that is what makes a second exception a double fault, and
//! what a VM exit reports as IDT-vectoring information.

use vmx_model::arch::{Activity, Interruptibility, Rflags, Segment, SegmentRegister};
use vmx_model::event::{Event, EventType, Exception, vector};
use vmx_model::exit::VmExit;
use vmx_model::exit_reason::ExitReason;

use crate::cet::transfer::{Entry, Source};
use crate::descriptor::{Column, Descriptor, Selector, System};
use crate::exec::interrupt::IntTarget;
use crate::fault::Fault;
use crate::mem::stack::Stack;
use crate::mode::Mode;
use crate::segmentation::null_stack_segment;
use crate::stop::Stop;
use crate::{Cpu, Exec};

/// Bits of DR6 that a debug exception sets: B0 to B3, BD, BS, BT.
const DR6_CAUSES: u64 = 0xe00f;
/// DR6.B0 to B3.
const DR6_BREAKPOINTS: u64 = 0xf;
/// DR7.GD.
const DR7_GENERAL_DETECT: u64 = 1 << 13;
/// IA32_DEBUGCTL.LBR and BTF, which a debug exception clears.
const DEBUGCTL_CLEARED: u64 = 3;
/// The IDT bit of an error code (SDM Vol. 3A, "Error Code").
const ERROR_CODE_IDT: u32 = 2;

/// The classes of SDM Vol. 3A, table "Interrupt and Exception Classes".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Benign,
    Contributory,
    PageFault,
    DoubleFault,
}

const fn class(event: &Event) -> Class {
    if !matches!(event.kind, EventType::HardwareException) {
        return Class::Benign;
    }
    match event.vector {
        vector::DE | vector::TS..=vector::GP | vector::CP => Class::Contributory,
        vector::PF | vector::VE => Class::PageFault,
        vector::DF => Class::DoubleFault,
        _ => Class::Benign,
    }
}

/// What becomes of an exception during the delivery of an event (SDM Vol. 3A, table "Conditions
/// for Generating a Double Fault").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Combined {
    /// They are handled serially: the second one is delivered.
    Serial,
    DoubleFault,
    /// The processor enters the shutdown state.
    Shutdown,
}

const fn combine(first: Class, second: Class) -> Combined {
    match (first, second) {
        (Class::DoubleFault, Class::Contributory | Class::PageFault | Class::DoubleFault) => {
            Combined::Shutdown
        }
        (Class::Contributory | Class::PageFault, Class::Contributory)
        | (Class::PageFault, Class::PageFault) => Combined::DoubleFault,
        _ => Combined::Serial,
    }
}

/// Whether the event comes from outside the program: the EXT bit of error codes.
const fn is_external(event: &Event) -> bool {
    !matches!(
        event.kind,
        EventType::SoftwareInterrupt | EventType::SoftwareException
    )
}

/// Whether the event is reported at the instruction that caused it and sets RF in the flags that
/// are pushed (SDM Vol. 3B, "Instruction-Breakpoint Exception Condition").
const fn is_fault(event: &Event) -> bool {
    const GENERAL_DETECT: u64 = 1 << 13;
    if !matches!(event.kind, EventType::HardwareException) {
        return false;
    }
    match event.vector {
        vector::DB => event.payload & GENERAL_DETECT != 0,
        vector::BP | vector::OF | vector::DF | vector::MC => false,
        _ => true,
    }
}

/// Where a gate leads.
struct Target {
    /// The code segment, not yet marked as accessed.
    descriptor: Descriptor,
    /// What CS will hold: with the new CPL as RPL.
    selector: Selector,
    /// The new CPL.
    level: u8,
    /// The new instruction pointer.
    offset: u64,
}

impl Cpu {
    /// Delivers what the instruction at RIP raised, or what the delivery of an event raised.
    ///
    /// # Errors
    /// [`Fault::Stop`] or [`Fault::VmExit`] if the delivery did not complete.
    pub(crate) fn raise(&mut self, exception: Exception) -> Exec {
        let mut exception = exception;
        loop {
            let event = self.event_for(exception)?;
            self.ask_about_event(&event)?;
            self.note_exception(&exception);
            self.delivering = Some(event);
            self.vmx.is_injecting = false;
            match self.deliver_through_table(&event) {
                Err(Fault::Exception(second)) => exception = second,
                Err(other) => return Err(other),
                Ok(()) => {
                    self.delivering = None;
                    self.note_monitor_trap();
                    return Ok(());
                }
            }
        }
    }

    /// Delivers an event between instructions.
    ///
    /// # Errors
    /// As [`Self::raise`].
    pub(crate) fn deliver(&mut self, event: Event) -> Exec {
        self.delivering = Some(event);
        match self.deliver_through_table(&event) {
            Err(Fault::Exception(second)) => self.raise(second),
            Err(other) => Err(other),
            Ok(()) => {
                self.delivering = None;
                self.note_monitor_trap();
                Ok(())
            }
        }
    }

    /// Delivers the event of an INT instruction. What that raises is the instruction's own fault.
    pub(crate) fn deliver_software(&mut self, event: Event) -> Exec {
        self.ask_about_event(&event)?;
        self.delivering = Some(event);
        let result = self.deliver_through_table(&event);
        if matches!(result, Ok(()) | Err(Fault::Stop)) {
            self.delivering = None;
        }
        result
    }

    /// Sets what an exception leaves in CR2, DR6, DR7 and IA32_DEBUGCTL.
    fn note_exception(&mut self, exception: &Exception) {
        match exception.vector {
            vector::PF => self.system.cr2 = exception.payload,
            vector::DB => self.note_debug_causes(exception.payload),
            _ => {}
        }
    }

    /// Combines an exception with the event in delivery, if there is one.
    fn event_for(&mut self, exception: Exception) -> Exec<Event> {
        let mut event = Event::from(exception);
        if let Some(first) = self.delivering {
            if is_external(&first) && matches!(event.vector, vector::TS..=vector::GP) {
                event.error_code = event.error_code.map(|code| code | 1);
            }
            match combine(class(&first), class(&event)) {
                Combined::Serial => {}
                Combined::DoubleFault => event = Exception::with_code(vector::DF, 0).into(),
                Combined::Shutdown => return Err(self.shut_down()),
            }
        }
        if self.mode() == Mode::Real {
            event.error_code = None;
        }
        Ok(event)
    }

    /// Enters the shutdown state (SDM Vol. 3A, "Interrupt 8-Double Fault Exception (#DF)").
    fn shut_down(&mut self) -> Fault {
        if self.is_non_root() {
            return self.vm_exit(VmExit::new(ExitReason::TRIPLE_FAULT));
        }
        self.delivering = None;
        self.state.activity = Activity::Shutdown;
        self.stop(Stop::Shutdown)
    }

    fn deliver_through_table(&mut self, event: &Event) -> Exec {
        match self.mode() {
            Mode::Real => self.deliver_real(event)?,
            Mode::Compatibility | Mode::Long => self.deliver_ia32e(event)?,
            Mode::Virtual8086 if self.is_injected_int_n(event) => self.deliver_int_n(event)?,
            Mode::Protected | Mode::Virtual8086 => self.deliver_protected(event)?,
        }
        self.complete_delivery(event);
        Ok(())
    }

    /// Whether VM entry injects the event as an INT n instruction.
    fn is_injected_int_n(&self, event: &Event) -> bool {
        self.vmx.is_injecting && event.kind == EventType::SoftwareInterrupt
    }

    /// INT n injected into virtual-8086 mode: IOPL and, with CR4.VME, the redirection bitmap decide
    /// as for the instruction (SDM Vol. 3C, "Details of Vectored-Event Injection").
    fn deliver_int_n(&mut self, event: &Event) -> Exec {
        self.next_rip = self.return_rip(event);
        match self.int_n_target(event.vector)? {
            IntTarget::Program => self.redirect_interrupt(event.vector),
            IntTarget::Table => self.deliver_protected(event),
        }
    }

    /// The changes that every delivered event makes.
    fn complete_delivery(&mut self, event: &Event) {
        self.vmx.is_injecting = false;
        self.state.rip = self.next_rip;
        self.state.activity = Activity::Active;
        self.end_blocking();
        if event.kind == EventType::Nmi {
            self.state.interruptibility |= Interruptibility::NMI;
        }
    }

    /// Debug exceptions set DR6 and clear DR7.GD, IA32_DEBUGCTL.LBR and BTF.
    pub(crate) fn note_debug_causes(&mut self, causes: u64) {
        self.system.dr6 = self.system.dr6 & !DR6_BREAKPOINTS | causes & DR6_CAUSES;
        self.state.dr7 &= !DR7_GENERAL_DETECT;
        self.state.debugctl &= !DEBUGCTL_CLEARED;
    }

    /// Returns the instruction pointer that the event saves.
    fn return_rip(&self, event: &Event) -> u64 {
        let length = match event.kind {
            EventType::SoftwareInterrupt
            | EventType::PrivilegedSoftwareException
            | EventType::SoftwareException => event.instruction_length,
            _ => 0,
        };
        self.state.rip.wrapping_add(u64::from(length)) & self.rip_mask()
    }

    /// Returns RFLAGS as the event saves them.
    fn flags_image(&self, event: &Event) -> u64 {
        let flags = self.rflags();
        // What VM entry injects saves RF as the guest's RFLAGS have it.
        let sets_rf = is_fault(event) && !self.vmx.is_injecting;
        if sets_rf || self.events.is_mid_repeat {
            (flags | Rflags::RF).bits()
        } else {
            flags.bits()
        }
    }

    /// Real-address mode: the interrupt vector table.
    fn deliver_real(&mut self, event: &Event) -> Exec {
        let offset = u64::from(event.vector) * 4;
        if offset + 3 > u64::from(self.state.idtr.limit) {
            return Err(Exception::gp(error_code_of_vector(event)).into());
        }
        let at = self.system_linear(self.state.idtr.base, offset);
        let pointer: u32 = self.load_linear(
            at,
            crate::mem::Access::Read,
            crate::mem::Privilege::Supervisor,
        )?;
        let frame = [
            self.flags_image(event),
            u64::from(self.state.segment(SegmentRegister::Cs).selector),
            self.return_rip(event),
        ];
        let mut stack = self.stack();
        self.push_frame(&mut stack, 2, &frame)?;
        self.set_stack_pointer(&stack);
        let cs = self.real_segment(SegmentRegister::Cs, Selector((pointer >> 16) as u16));
        self.set_segment(SegmentRegister::Cs, cs);
        self.next_rip = u64::from(pointer & 0xffff);
        let cleared = Rflags::IF | Rflags::TF | Rflags::AC | Rflags::RF;
        self.set_rflags(self.rflags().difference(cleared));
        Ok(())
    }

    /// Protected and virtual-8086 mode: an IDT of eight-byte gates.
    fn deliver_protected(&mut self, event: &Event) -> Exec {
        let gate = self.gate(event, 8)?;
        match gate.system(Column::Legacy) {
            System::TaskGate => self.task_gate(event, gate),
            System::InterruptGate(size) | System::TrapGate(size) => {
                self.through_gate(event, gate, size)
            }
            _ => Err(Exception::gp(error_code_of_vector(event)).into()),
        }
    }

    /// Reads and checks the gate for `event`, of `bytes` bytes.
    fn gate(&mut self, event: &Event, bytes: u64) -> Exec<Descriptor> {
        let code = error_code_of_vector(event);
        let offset = u64::from(event.vector) * bytes;
        if offset + bytes - 1 > u64::from(self.state.idtr.limit) {
            return Err(Exception::gp(code).into());
        }
        let at = self.system_linear(self.state.idtr.base, offset);
        let low = self.load_system(at)?;
        let high = match bytes {
            16 => self.load_system(at.offset(8))?,
            _ => 0,
        };
        let gate = Descriptor { low, high };
        self.check_gate(event, gate)?;
        Ok(gate)
    }

    fn check_gate(&mut self, event: &Event, gate: Descriptor) -> Exec {
        let code = error_code_of_vector(event);
        let is_gate = match gate.system(self.column()) {
            System::InterruptGate(_) | System::TrapGate(_) => true,
            System::TaskGate => self.column() == Column::Legacy,
            _ => false,
        };
        let is_software = matches!(
            event.kind,
            EventType::SoftwareInterrupt | EventType::SoftwareException
        );
        if !is_gate || is_software && gate.access().dpl() < self.cpl() {
            return Err(Exception::gp(code).into());
        }
        if !gate.access().is_present() {
            return Err(Exception::np(code).into());
        }
        Ok(())
    }

    fn task_gate(&mut self, event: &Event, gate: Descriptor) -> Exec {
        let return_rip = self.return_rip(event);
        self.task_switch_by_event(gate.gate_selector(), return_rip, event.error_code)
    }

    /// An interrupt or trap gate of 16 or 32 bits.
    fn through_gate(&mut self, event: &Event, gate: Descriptor, size: u8) -> Exec {
        let target = self.gate_target(gate, size)?;
        let from_virtual = self.mode() == Mode::Virtual8086;
        if from_virtual && target.level != 0 {
            return Err(Exception::gp(target.selector.error_code()).into());
        }
        let is_inner = from_virtual || target.level < self.cpl();
        let mut stack = if is_inner {
            self.stack_of_level(target.level)?
        } else {
            self.stack()
        };
        if target.offset > u64::from(target.descriptor.limit()) {
            return Err(Exception::gp(0).into());
        }
        let code = self.accessed(target.selector, target.descriptor)?;
        let source = if is_inner {
            Source::Level
        } else {
            Source::Current
        };
        self.push_event(event, &mut stack, size, is_inner, &target, source)?;
        if from_virtual {
            self.clear_data_segments();
        }
        if is_inner {
            self.set_segment(SegmentRegister::Ss, stack.segment);
        }
        self.enter_handler(gate, code, target.offset);
        self.set_stack_pointer(&stack);
        Ok(())
    }

    /// Pushes the frame of `event` on the stack, and what belongs to it on the shadow stack.
    fn push_event(
        &mut self,
        event: &Event,
        stack: &mut Stack,
        size: u8,
        is_inner: bool,
        target: &Target,
        source: Source,
    ) -> Exec {
        let (frame, count) = self.event_frame(event, is_inner);
        let entry = Entry {
            level: target.level,
            source,
            to_long: size == 8,
            return_lip: self.lip_of(self.return_rip(event)),
        };
        let checked = self.check_entry_under_cet(stack, size, count, &entry)?;
        self.push_frame(stack, size, &frame[..count])?;
        self.enter_shadow(checked)
    }

    /// Returns the frame of `event`, what is interrupted and the error code, and how many values it
    /// has.
    fn event_frame(&self, event: &Event, is_inner: bool) -> ([u64; 10], usize) {
        let selector = |cpu: &Self, s| u64::from(cpu.state.segment(s).selector);
        let mut frame = [0; 10];
        let mut count = 0;
        let mut push = |value: u64| {
            frame[count] = value;
            count += 1;
        };
        if self.mode() == Mode::Virtual8086 {
            for s in VIRTUAL_8086_SAVED {
                push(selector(self, s));
            }
        }
        if is_inner {
            push(selector(self, SegmentRegister::Ss));
            push(self.gpr[4]);
        }
        push(self.flags_image(event));
        push(selector(self, SegmentRegister::Cs));
        push(self.return_rip(event));
        if let Some(code) = event.error_code {
            push(u64::from(code));
        }
        (frame, count)
    }

    /// Loads CS:RIP and the flags of a handler.
    fn enter_handler(&mut self, gate: Descriptor, code: Segment, offset: u64) {
        self.set_segment(SegmentRegister::Cs, code);
        self.next_rip = offset;
        let mut cleared = Rflags::TF | Rflags::VM | Rflags::RF | Rflags::NT;
        if matches!(gate.system(self.column()), System::InterruptGate(_)) {
            cleared |= Rflags::IF;
        }
        self.set_rflags(self.rflags().difference(cleared));
    }

    /// Checks the code segment that a gate of the IDT leads to.
    fn gate_target(&mut self, gate: Descriptor, size: u8) -> Exec<Target> {
        let selector = gate.gate_selector();
        let code = selector.error_code();
        if selector.is_null() {
            return Err(Exception::gp(0).into());
        }
        let descriptor = self.descriptor(selector, Exception::gp)?;
        let rights = descriptor.access();
        let cpl = self.cpl();
        let is_wrong_size = size == 8 && (!rights.is_long() || rights.is_big());
        if !rights.is_code() || rights.dpl() > cpl || is_wrong_size {
            return Err(Exception::gp(code).into());
        }
        if !rights.is_present() {
            return Err(Exception::np(code).into());
        }
        let level = if rights.is_conforming() {
            cpl
        } else {
            rights.dpl()
        };
        Ok(Target {
            descriptor,
            selector: selector.with_rpl(level),
            level,
            offset: gate.gate_offset(size),
        })
    }

    /// IA-32e mode: an IDT of 16-byte gates.
    fn deliver_ia32e(&mut self, event: &Event) -> Exec {
        let gate = self.gate(event, 16)?;
        let target = self.gate_target(gate, 8)?;
        let is_inner = target.level < self.cpl();
        let mut stack = self.ia32e_stack(gate.interrupt_stack(), &target, is_inner)?;
        if !self.is_canonical(target.offset) {
            return Err(Exception::gp(0).into());
        }
        let code = self.accessed(target.selector, target.descriptor)?;
        let source = match gate.interrupt_stack() {
            0 if is_inner => Source::Level,
            0 => Source::Current,
            index => Source::Table(index),
        };
        self.push_event(event, &mut stack, 8, true, &target, source)?;
        if is_inner {
            self.set_segment(SegmentRegister::Ss, stack.segment);
        }
        self.enter_handler(gate, code, target.offset);
        self.set_stack_pointer(&stack);
        Ok(())
    }

    /// Returns the stack of a 64-bit handler, aligned: of the interrupt-stack table, of the new
    /// privilege level, or the current one.
    fn ia32e_stack(&mut self, index: u8, target: &Target, is_inner: bool) -> Exec<Stack> {
        let pointer = match index {
            0 if !is_inner => self.gpr[4],
            0 => self.tss_pointer(4 + 8 * u64::from(target.level))?,
            n => self.tss_pointer(28 + 8 * u64::from(n))?,
        };
        if !self.is_canonical(pointer) {
            return Err(Exception::ss(0).into());
        }
        let mut stack = if is_inner {
            let level = target.level;
            let segment = null_stack_segment(Selector(u16::from(level)), level);
            Stack::long(segment, pointer)
        } else {
            self.stack_as_long()
        };
        stack.pointer = pointer & !0xf;
        Ok(stack)
    }

    /// Reads a stack pointer of the 64-bit TSS.
    pub(crate) fn tss_pointer(&mut self, offset: u64) -> Exec<u64> {
        let tr = *self.state.segment(SegmentRegister::Tr);
        if tr.access.is_unusable() || offset + 7 > u64::from(tr.limit) {
            return Err(Exception::ts(Selector(tr.selector).error_code()).into());
        }
        let at = self.system_linear(tr.base, offset);
        self.load_system(at)
    }

    /// Returns the stack that the 16- or 32-bit TSS holds for privilege level `level`, checked.
    pub(crate) fn stack_of_level(&mut self, level: u8) -> Exec<Stack> {
        let (selector, pointer) = self.tss_stack(level)?;
        if selector.is_null() {
            return Err(Exception::ts(0).into());
        }
        let segment = self.stack_segment_at(selector, level, Exception::ts)?;
        Ok(Stack::inner(segment, pointer, selector.error_code()))
    }

    /// Reads SS and (E)SP of a privilege level from the 16- or 32-bit TSS.
    fn tss_stack(&mut self, level: u8) -> Exec<(Selector, u64)> {
        let tr = *self.state.segment(SegmentRegister::Tr);
        let is_wide = tr.access.segment_type() & 8 != 0;
        let (offset, bytes) = if is_wide {
            (u64::from(level) * 8 + 4, 6)
        } else {
            (u64::from(level) * 4 + 2, 4)
        };
        if tr.access.is_unusable() || offset + bytes - 1 > u64::from(tr.limit) {
            return Err(Exception::ts(Selector(tr.selector).error_code()).into());
        }
        let at = self.system_linear(tr.base, offset);
        let mut image = [0; 8];
        self.load_bytes_linear(
            at,
            &mut image[..bytes as usize],
            crate::mem::Access::Read,
            crate::mem::Privilege::Supervisor,
        )?;
        let word = |i: usize| u16::from_le_bytes([image[i], image[i + 1]]);
        Ok(if is_wide {
            (
                Selector(word(4)),
                u64::from(word(0)) | u64::from(word(2)) << 16,
            )
        } else {
            (Selector(word(2)), u64::from(word(0)))
        })
    }

    /// Loads DS, ES, FS and GS with null selectors: a handler has left virtual-8086 mode.
    pub(crate) fn clear_data_segments(&mut self) {
        for s in VIRTUAL_8086_SAVED {
            self.set_segment(s, crate::segmentation::null_segment(Selector(0)));
        }
    }
}

/// The data segments that an event in virtual-8086 mode saves, in the order of the pushes.
const VIRTUAL_8086_SAVED: [SegmentRegister; 4] = [
    SegmentRegister::Gs,
    SegmentRegister::Fs,
    SegmentRegister::Ds,
    SegmentRegister::Es,
];

/// Returns the error code that refers to the gate of `event`, without EXT.
fn error_code_of_vector(event: &Event) -> u32 {
    u32::from(event.vector) * 8 + ERROR_CODE_IDT
}
