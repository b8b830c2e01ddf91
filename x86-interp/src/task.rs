//! Hardware task switches.
//!
//! SDM Vol. 3A, "Task Management": "Task Switching", "Task-State Segment (TSS)", "16-Bit
//! Task-State Segment (TSS)", "Task Linking", tables "Exception Conditions Checked During a Task
//! Switch" and "Effect of a Task Switch on Busy Flag, NT Flag, Previous Task Link Field, and TS
//! Flag". There are none in IA-32e mode.
//!
//! Everything up to the commit point may fault in the context of the old task and changes nothing.
//! Behind it the segments of the new task are loaded, and what goes wrong there is the new task's
//! exception: then the processor's state *has* changed, also when an instruction's handler returns
//! the fault.

use vmx_model::addr::Linear;
use vmx_model::arch::{AccessRights, Cr0, Cr4, Rflags, Segment, SegmentRegister};
use vmx_model::event::Exception;

use crate::cet::task::{TSS_LIMIT, TaskShadow};
use crate::descriptor::{Descriptor, Selector, System, TSS_BUSY};
use crate::exec::iret::EFLAGS_MASK;
use crate::mem::{Access, Privilege};
use crate::segmentation::{null_segment, virtual_8086_segment};
use crate::{Cpu, Exec};

/// What initiates a task switch.
pub(crate) use vmx_model::intercept::TaskSwitchSource as TaskSource;

/// Whether the new task is nested in the old one.
const fn is_nesting(source: TaskSource) -> bool {
    matches!(source, TaskSource::Call | TaskSource::TaskGate)
}

/// Where a TSS keeps what: one row per format.
struct Layout {
    /// Size of the general registers in bytes.
    size: u8,
    /// Size of the TSS in bytes.
    bytes: usize,
    /// CR3, in the 32-bit TSS.
    cr3: Option<usize>,
    /// EIP, EFLAGS, EAX, ECX, EDX, EBX, ESP, EBP, ESI, EDI in a row.
    registers: usize,
    /// ES, CS, SS, DS (FS, GS) in a row.
    segments: usize,
    /// How many segment registers.
    segment_count: usize,
    /// LDT selector.
    ldt: usize,
    /// The doubleword with the T flag, in the 32-bit TSS.
    trap: Option<usize>,
}

const TSS32: Layout = Layout {
    size: 4,
    bytes: 104,
    cr3: Some(28),
    registers: 32,
    segments: 72,
    segment_count: 6,
    ldt: 96,
    trap: Some(100),
};

const TSS16: Layout = Layout {
    size: 2,
    bytes: 44,
    cr3: None,
    registers: 14,
    segments: 34,
    segment_count: 4,
    ldt: 42,
    trap: None,
};

impl Layout {
    const fn of(size: u8) -> &'static Self {
        if size == 2 { &TSS16 } else { &TSS32 }
    }

    /// Where the dynamic fields end that a switch saves.
    const fn saved_end(&self) -> usize {
        self.segments + self.segment_count * self.size as usize
    }

    fn get(&self, image: &[u8], at: usize) -> u32 {
        let mut bytes = [0; 4];
        let size = usize::from(self.size);
        bytes[..size].copy_from_slice(&image[at..at + size]);
        u32::from_le_bytes(bytes)
    }

    fn put(&self, image: &mut [u8], at: usize, value: u32) {
        let size = usize::from(self.size);
        image[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
    }

    fn register(&self, image: &[u8], n: usize) -> u32 {
        self.get(image, self.registers + n * usize::from(self.size))
    }

    fn selector(&self, image: &[u8], n: usize) -> Selector {
        if n >= self.segment_count {
            return Selector(0);
        }
        Selector(self.get(image, self.segments + n * usize::from(self.size)) as u16)
    }
}

/// A task switch whose TSS descriptor has been checked.
struct Switch {
    source: TaskSource,
    selector: Selector,
    descriptor: Descriptor,
    layout: &'static Layout,
    /// Instruction pointer of the old task.
    return_rip: u64,
}

impl Cpu {
    /// A task gate in the IDT: switches, then pushes the error code on the new task's stack.
    pub(crate) fn task_switch_by_event(
        &mut self,
        selector: Selector,
        return_rip: u64,
        error_code: Option<u32>,
    ) -> Exec {
        let size = self.switch_task(selector, TaskSource::TaskGate, return_rip)?;
        if let Some(code) = error_code {
            let mut stack = self.stack();
            self.push_frame(&mut stack, size, &[u64::from(code)])?;
            self.set_stack_pointer(&stack);
        }
        self.check_task_entry()
    }

    /// JMP or CALL to a TSS or task gate, or IRET from a nested task.
    pub(crate) fn task_switch(
        &mut self,
        selector: Selector,
        source: TaskSource,
        return_rip: u64,
    ) -> Exec {
        self.switch_task(selector, source, return_rip)?;
        self.check_task_entry()
    }

    fn check_task_entry(&mut self) -> Exec {
        let limit = self.state.segment(SegmentRegister::Cs).limit;
        if self.next_rip > u64::from(limit) {
            return Err(Exception::gp(0).into());
        }
        Ok(())
    }

    /// Returns the size of the new task's registers.
    fn switch_task(&mut self, selector: Selector, source: TaskSource, return_rip: u64) -> Exec<u8> {
        let (descriptor, size) = self.checked_tss(selector, source)?;
        self.ask_about_task_switch(selector.0, source)?;
        let switch = Switch {
            source,
            selector,
            descriptor,
            layout: Layout::of(size),
            return_rip,
        };
        let image = self.read_tss(&switch)?;
        let shadow = self.task_shadow(&switch, &image)?;
        self.save_task(&switch)?;
        self.leave_task_shadow(&shadow)?;
        // Read again: the task may be its own successor.
        let image = self.read_tss(&switch)?;
        self.load_task(&switch, &image)?;
        self.enter_task_shadow(&shadow, selector)?;
        Ok(size)
    }

    fn task_shadow(&mut self, switch: &Switch, image: &[u8]) -> Exec<TaskShadow> {
        let layout = switch.layout;
        let cs = layout.selector(image, SegmentRegister::Cs as usize);
        let flags = Rflags::from_bits_retain(u64::from(layout.register(image, 1)));
        let base = switch.descriptor.base();
        self.check_task_shadow(switch.source, base, cs, flags, switch.return_rip)
    }

    /// Checks the descriptor of the TSS to switch to.
    fn checked_tss(&mut self, selector: Selector, source: TaskSource) -> Exec<(Descriptor, u8)> {
        let code = selector.error_code();
        let fault = match source {
            TaskSource::Iret => Exception::ts,
            _ => Exception::gp,
        };
        if selector.is_ldt() || selector.is_null() {
            return Err(fault(code).into());
        }
        let descriptor = self.descriptor(selector, fault)?;
        let System::Tss { size, is_busy } = descriptor.system(self.column()) else {
            return Err(fault(code).into());
        };
        if is_busy != (source == TaskSource::Iret) {
            return Err(fault(code).into());
        }
        if !descriptor.access().is_present() {
            return Err(Exception::np(code).into());
        }
        // With CET there is SSP behind the other fields, which the 16-bit TSS has not.
        let has_cet = self.state.cr4.contains(Cr4::CET);
        let is_too_short = descriptor.limit() < TSS_LIMIT || size == 2;
        if (descriptor.limit() as usize) < Layout::of(size).bytes - 1 || has_cet && is_too_short {
            return Err(Exception::ts(code).into());
        }
        Ok((descriptor, size))
    }

    /// Reads the new task's TSS, and sees to it that its link and the old TSS can be written.
    fn read_tss(&mut self, switch: &Switch) -> Exec<[u8; TSS32.bytes]> {
        let mut image = [0; TSS32.bytes];
        let at = self.system_linear(switch.descriptor.base(), 0);
        let part = &mut image[..switch.layout.bytes];
        self.load_bytes_linear(at, part, Access::Read, Privilege::Supervisor)?;
        if is_nesting(switch.source) {
            self.probe_store(at, 2)?;
        }
        Ok(image)
    }

    /// Takes the fault that a store would take.
    fn probe_store(&mut self, at: Linear, bytes: usize) -> Exec {
        self.translate(at, Access::Write, Privilege::Supervisor)?;
        let last = at.offset(bytes as u64 - 1);
        self.translate(last, Access::Write, Privilege::Supervisor)?;
        Ok(())
    }

    /// Saves the old task and sets busy bits and link: the commit point is behind the first store.
    fn save_task(&mut self, switch: &Switch) -> Exec {
        let tr = *self.state.segment(SegmentRegister::Tr);
        let old = Selector(tr.selector);
        let layout = Layout::of(if tr.access.segment_type() & 8 != 0 {
            4
        } else {
            2
        });
        if tr.access.is_unusable() || (tr.limit as usize) < layout.saved_end() - 1 {
            return Err(Exception::ts(old.error_code()).into());
        }
        self.probe_type_change(old)?;
        self.probe_type_change(switch.selector)?;
        let image = self.task_image(switch, layout);
        let at = self.system_linear(tr.base, layout.registers as u64);
        let dynamic = &image[layout.registers..layout.saved_end()];
        self.store_bytes_linear(at, dynamic, Privilege::Supervisor)?;
        if !is_nesting(switch.source) {
            self.clear_busy(old)?;
        }
        if switch.source != TaskSource::Iret {
            self.set_busy(switch.selector)?;
        }
        if is_nesting(switch.source) {
            let link = self.system_linear(switch.descriptor.base(), 0);
            self.store_linear(link, tr.selector, Privilege::Supervisor)?;
        }
        Ok(())
    }

    fn task_image(&self, switch: &Switch, layout: &Layout) -> [u8; TSS32.bytes] {
        let mut image = [0; TSS32.bytes];
        let mut flags = self.rflags();
        if switch.source == TaskSource::Iret {
            flags.remove(Rflags::NT);
        }
        let size = usize::from(layout.size);
        let head = [switch.return_rip as u32, flags.bits() as u32];
        let registers = self.gpr[..8].iter().map(|&r| r as u32);
        for (n, value) in head.into_iter().chain(registers).enumerate() {
            layout.put(&mut image, layout.registers + n * size, value);
        }
        for n in 0..layout.segment_count {
            let selector = u32::from(self.state.segments[n].selector);
            layout.put(&mut image, layout.segments + n * size, selector);
        }
        image
    }

    /// Loads the new task.
    fn load_task(&mut self, switch: &Switch, image: &[u8]) -> Exec {
        let layout = switch.layout;
        let descriptor = Descriptor {
            low: switch.descriptor.low | TSS_BUSY,
            high: 0,
        };
        self.set_segment(SegmentRegister::Tr, descriptor.segment(switch.selector));
        self.load_task_registers(switch, image);
        let cr3 = layout.cr3.map(|at| u64::from(layout.get(image, at)));
        if let Some(cr3) = cr3.filter(|_| self.state.cr0.contains(Cr0::PG)) {
            self.write_cr3(cr3)?;
        }
        let ldt = Selector(layout.get(image, layout.ldt) as u16);
        let ldtr = self.local_table_for(ldt, Exception::ts, Exception::ts)?;
        self.set_segment(SegmentRegister::Ldtr, ldtr);
        if !self.rflags().contains(Rflags::VM) {
            self.load_task_segments(layout, image)?;
        }
        if layout.trap.is_some_and(|at| image[at] & 1 != 0) {
            self.set_task_trap();
        }
        Ok(())
    }

    /// Loads general registers, EIP, EFLAGS and the visible parts of the segment registers; sets
    /// CR0.TS and clears the local breakpoints.
    fn load_task_registers(&mut self, switch: &Switch, image: &[u8]) {
        const DR7_LOCAL: u64 = 0x155;
        let layout = switch.layout;
        self.next_rip = u64::from(layout.register(image, 0));
        self.state.rip = self.next_rip;
        let bits = u64::from(layout.register(image, 1)) & EFLAGS_MASK;
        let mut flags = Rflags::from_bits_retain(bits);
        if is_nesting(switch.source) {
            flags |= Rflags::NT;
        }
        self.set_rflags(flags);
        for n in 0..8 {
            // Choice: a 16-bit TSS leaves the upper halves zero.
            self.gpr[n] = u64::from(layout.register(image, n + 2));
        }
        self.load_task_selectors(layout, image, flags);
        let ldt = Selector(layout.get(image, layout.ldt) as u16);
        self.set_segment(SegmentRegister::Ldtr, null_segment(ldt));
        self.state.cr0 |= Cr0::TS;
        self.state.dr7 &= !DR7_LOCAL;
    }

    /// Until their descriptors are loaded, the segments are unusable.
    ///
    /// Choice: SS holds CPL 3 meanwhile, as in Bochs, so that a handler of a fault gets a stack of
    /// the new TSS rather than the one that is not there.
    fn load_task_selectors(&mut self, layout: &Layout, image: &[u8], flags: Rflags) {
        for register in TASK_SEGMENTS {
            let selector = layout.selector(image, register as usize);
            let mut segment = null_segment(selector);
            if flags.contains(Rflags::VM) {
                segment = virtual_8086_segment(selector.0);
            } else if register == SegmentRegister::Ss {
                segment.access = AccessRights::UNUSABLE.with_dpl(3);
            }
            self.set_segment(register, segment);
        }
    }

    /// Loads the descriptors of CS, SS, DS, ES, FS and GS outside virtual-8086 mode.
    fn load_task_segments(&mut self, layout: &Layout, image: &[u8]) -> Exec {
        let selector = |r: SegmentRegister| layout.selector(image, r as usize);
        let code = self.task_code_segment(selector(SegmentRegister::Cs))?;
        self.set_segment(SegmentRegister::Cs, code);
        let level = selector(SegmentRegister::Cs).rpl();
        let ss = selector(SegmentRegister::Ss);
        if ss.is_null() {
            return Err(Exception::ts(0).into());
        }
        let stack = self.stack_segment_at(ss, level, Exception::ts)?;
        self.set_segment(SegmentRegister::Ss, stack);
        for register in DATA_SEGMENTS {
            let selector = selector(register);
            if !selector.is_null() {
                let data = self.data_segment_at(selector, level, Exception::ts)?;
                self.set_segment(register, data);
            }
        }
        Ok(())
    }

    /// Checks CS of a new task, whose RPL is the new CPL.
    fn task_code_segment(&mut self, selector: Selector) -> Exec<Segment> {
        let code = selector.error_code();
        if selector.is_null() {
            return Err(Exception::ts(0).into());
        }
        let descriptor = self.descriptor(selector, Exception::ts)?;
        let rights = descriptor.access();
        let is_level_right = if rights.is_conforming() {
            rights.dpl() <= selector.rpl()
        } else {
            rights.dpl() == selector.rpl()
        };
        if !rights.is_code() || !is_level_right {
            return Err(Exception::ts(code).into());
        }
        if !rights.is_present() {
            return Err(Exception::np(code).into());
        }
        self.accessed(selector, descriptor)
    }
}

const DATA_SEGMENTS: [SegmentRegister; 4] = [
    SegmentRegister::Ds,
    SegmentRegister::Es,
    SegmentRegister::Fs,
    SegmentRegister::Gs,
];

const TASK_SEGMENTS: [SegmentRegister; 6] = [
    SegmentRegister::Es,
    SegmentRegister::Cs,
    SegmentRegister::Ss,
    SegmentRegister::Ds,
    SegmentRegister::Fs,
    SegmentRegister::Gs,
];
