//! The instruction emulator: a second processor, on guest-physical memory, that executes one
//! instruction of the guest in software (`x86_emulate_instruction()`).
//!
//! It takes what VMX leaves to software: accesses to memory without RAM, string I/O, control
//! registers, task switches. Ports and such memory are its bus. A read that user space has to
//! answer suspends the instruction; with the answer it starts anew, and the reads it made before
//! give again what they gave. Writes go to user space when the instruction has completed.

mod repeat;

use self::repeat::Repeat;
use crate::cpuid;
use crate::errno::{Errno, Result};
use crate::guest_memory::GuestMemory;
use crate::host::lock;
use crate::run_page::offset;
use crate::uaccess::UserPtr;
use crate::vcpu::Loaded;
use crate::vcpu::completion::{Completion, Emulation, IoAccess, IoSpace};
use crate::vcpu::run::Next;
use crate::vcpu::state::RSP;
use crate::vm::Vm;
use std::sync::{Arc, Mutex};
use vmx_model::addr::{Gpa, Hpa};
use vmx_model::arch::{
    AccessRights, ArchState, Cr0, Cr4, DescriptorTable, Efer, Interruptibility, Rflags, Segment,
    SegmentRegister,
};
use vmx_model::event::vector;
use vmx_model::exit::guest_segment;
use vmx_model::field::Field;
use x86_interp::Cpu;
use x86_interp::bus::{Bus, Suspend};
use x86_interp::native::NotCompleted;
use x86_interp::stop::Stop;

const RCX: usize = 1;
const RDI: usize = 7;

/// The emulator of one vCPU.
pub(crate) struct Emulator {
    cpu: Box<Cpu>,
    io: Arc<Mutex<EmulatorIo>>,
}

/// What the emulator's bus shares with the vCPU.
#[derive(Debug, Default)]
struct EmulatorIo {
    /// What the reads of the instruction give, in order.
    replies: Vec<u64>,
    /// How many it has made.
    used: usize,
    /// The read that has no answer yet.
    request: Option<IoAccess>,
    /// The writes it has made.
    writes: Vec<IoAccess>,
}

struct EmulatorBus {
    io: Arc<Mutex<EmulatorIo>>,
    memory: Arc<GuestMemory>,
}

impl EmulatorBus {
    fn read(
        &self,
        space: IoSpace,
        address: u64,
        size: usize,
    ) -> core::result::Result<u64, Suspend> {
        let mut io = lock(&self.io);
        if let Some(value) = io.replies.get(io.used).copied() {
            io.used += 1;
            return Ok(value & (u64::MAX >> (64 - 8 * size.clamp(1, 8))));
        }
        io.request = Some(IoAccess {
            space,
            address,
            size: size as u8,
            data: 0,
        });
        Err(Suspend)
    }

    fn write(&self, space: IoSpace, address: u64, size: usize, data: u64) {
        let access = IoAccess {
            space,
            address,
            size: size as u8,
            data,
        };
        let writes = &mut lock(&self.io).writes;
        if !writes.last_mut().is_some_and(|last| join(last, &access)) {
            writes.push(access);
        }
    }
}

/// Joins the pieces of a write that the bus gets in powers of two: 3 bytes come as 2 and 1. What
/// user space sees is split only at page ends, and above eight bytes.
fn join(last: &mut IoAccess, next: &IoAccess) -> bool {
    let end = last.address.wrapping_add(u64::from(last.size));
    let is_piece = last.space == IoSpace::Memory
        && next.space == IoSpace::Memory
        && end == next.address
        && end & 0xfff != 0
        && next.size < last.size.next_power_of_two()
        && last.size + next.size < 8;
    if is_piece {
        last.data |= next.data << (8 * u32::from(last.size));
        last.size += next.size;
    }
    is_piece
}

impl Bus for EmulatorBus {
    fn memory_read(&mut self, at: Hpa, size: usize) -> core::result::Result<u64, Suspend> {
        self.read(IoSpace::Memory, at.0, size)
    }

    fn memory_write(
        &mut self,
        at: Hpa,
        size: usize,
        value: u64,
    ) -> core::result::Result<(), Suspend> {
        // A slot that logs is read-only on this map, so that its writes are seen here.
        if !self
            .memory
            .write_logged(Gpa(at.0), &value.to_le_bytes()[..size.min(8)])
        {
            self.write(IoSpace::Memory, at.0, size, value);
        }
        Ok(())
    }

    fn port_read(&mut self, port: u16, size: usize) -> core::result::Result<u32, Suspend> {
        self.read(IoSpace::Port, u64::from(port), size)
            .map(|value| value as u32)
    }

    fn port_write(
        &mut self,
        port: u16,
        size: usize,
        value: u32,
    ) -> core::result::Result<(), Suspend> {
        self.write(IoSpace::Port, u64::from(port), size, u64::from(value));
        Ok(())
    }
}

impl Emulator {
    fn new(vm: &Vm) -> Self {
        let io = Arc::<Mutex<EmulatorIo>>::default();
        let memory = vm.memory_handle();
        let physical = memory.physical().clone();
        let bus = EmulatorBus {
            io: io.clone(),
            memory,
        };
        let clock = Box::new(vm.host().clock());
        Self {
            cpu: Box::new(Cpu::new(physical, Box::new(bus), clock)),
            io,
        }
    }
}

/// What became of an instruction.
enum Emulated {
    Completed,
    Exception(vmx_model::event::Exception),
    /// It needs an answer.
    Reads(IoAccess),
    Failed,
    /// The caller's page behind guest memory has vanished.
    HostFault,
}

impl Loaded<'_> {
    /// Emulates the instruction at RIP.
    pub(crate) fn emulate(&mut self) -> Result<Next> {
        self.state.emulation = Emulation::default();
        self.continue_emulation()
    }

    /// Goes on with an instruction that has got an answer.
    fn continue_emulation(&mut self) -> Result<Next> {
        let mut bytes = [0; 15];
        let length = self.read_linear(self.linear_rip(), &mut bytes);
        let repeat = Repeat::of(&bytes[..length], self.code_bits());
        let regs = self.state.regs;
        let count = repeat.as_ref().map(|repeat| repeat.count(&regs));
        if count == Some(0) {
            // Nothing is repeated: the emulator steps over it.
            return self.conclude(None, &bytes[..length]);
        }
        self.conclude(repeat, &bytes[..length])
    }

    fn conclude(&mut self, repeat: Option<Repeat>, bytes: &[u8]) -> Result<Next> {
        match self.emulate_once(repeat.as_ref()) {
            Emulated::Completed => {
                let trap = self.vmcs.read(Field::GUEST_RFLAGS) & Rflags::TF.bits() != 0;
                if trap && self.state.emulation.writes.is_empty() {
                    return Ok(self.single_step_trap());
                }
                self.complete_write()
            }
            Emulated::Exception(exception) => {
                self.state.emulation = Emulation::default();
                if exception.vector == vector::PF {
                    self.state.cr2 = exception.payload;
                }
                let payload = (exception.vector == vector::DB).then_some(exception.payload);
                self.queue_exception(exception.vector, exception.error_code, payload);
                Ok(Next::Resume)
            }
            Emulated::Reads(access) => Ok(self.read_exit(access, repeat)),
            Emulated::Failed => {
                self.state.emulation = Emulation::default();
                Ok(self.emulation_failure(bytes))
            }
            Emulated::HostFault => {
                self.state.emulation = Emulation::default();
                Err(Errno::EFAULT)
            }
        }
    }

    /// Asks user space for what the instruction reads; of a port at once as much as REP INS takes.
    fn read_exit(&mut self, access: IoAccess, repeat: Option<Repeat>) -> Next {
        let count = match (access.space, &repeat) {
            (IoSpace::Port, Some(repeat)) => self.port_batch(repeat, access.size),
            _ => 1,
        };
        self.state.completion = Completion::EmulatedRead { access, count };
        match access.space {
            IoSpace::Port => self.port_exit(&access, true, count),
            IoSpace::Memory => self.mmio_exit(&access, false),
        }
    }

    /// How many elements REP INS reads at once: within a page, a buffer of 1 KiB, and the count.
    fn port_batch(&self, repeat: &Repeat, size: u8) -> u32 {
        let offset = self.state.regs[RDI] & 0xfff;
        let down = self.vmcs.read(Field::GUEST_RFLAGS) & Rflags::DF.bits() != 0;
        let in_page = if down { offset } else { 4096 - offset } / u64::from(size);
        let count = repeat.count(&self.state.regs);
        in_page.min(1024 / u64::from(size)).min(count).max(1) as u32
    }

    /// Takes what user space has read, and goes on.
    pub(crate) fn complete_read(&mut self, access: IoAccess, count: u32) -> Result<Next> {
        if access.space == IoSpace::Memory {
            let value = self.run.read(offset::EXIT + 8);
            self.state.emulation.replies.push(value);
            return self.continue_emulation();
        }
        for index in 0..count as usize {
            let mut bytes = [0; 8];
            let size = usize::from(access.size);
            self.run
                .read_bytes(offset::PIO_DATA + index * size, &mut bytes[..size]);
            self.state.emulation = Emulation {
                replies: vec![u64::from_le_bytes(bytes)],
                writes: Vec::new(),
            };
            let next = self.continue_emulation()?;
            if next == Next::Return || self.state.exception.pending {
                return Ok(next);
            }
        }
        Ok(Next::Resume)
    }

    /// Shows user space the next write of the instruction; there may be none.
    pub(crate) fn complete_write(&mut self) -> Result<Next> {
        let access = loop {
            if self.state.emulation.writes.is_empty() {
                self.state.emulation = Emulation::default();
                return Ok(Next::Resume);
            }
            let access = self.state.emulation.writes.remove(0);
            if !self.vm.io_bus().takes(&access) {
                break access;
            }
        };
        self.state.completion = Completion::EmulatedWrite;
        Ok(match access.space {
            IoSpace::Port => {
                self.run.write(offset::PIO_DATA, access.data as u32);
                self.port_exit(&access, false, 1)
            }
            IoSpace::Memory => self.mmio_exit(&access, true),
        })
    }

    /// Lets the emulator execute the instruction at RIP; of a repeated one, one iteration.
    fn emulate_once(&mut self, repeat: Option<&Repeat>) -> Emulated {
        let mut emulator = self
            .caches
            .emulator
            .take()
            .unwrap_or_else(|| Box::new(Emulator::new(self.vm)));
        let replies = core::mem::take(&mut self.state.emulation.replies);
        *lock(&emulator.io) = EmulatorIo {
            replies,
            ..EmulatorIo::default()
        };
        let before = self.state.regs;
        let rip = self.state.rip;
        self.give_to(&mut emulator.cpu, repeat);
        let result = {
            let _guard = self.vm.memory().enter();
            emulator.cpu.execute_one()
        };
        let io = core::mem::take(&mut *lock(&emulator.io));
        let emulated = match result {
            Ok(()) => {
                self.take_from(&emulator.cpu);
                self.state.emulation.writes = io.writes;
                if let Some(repeat) = repeat {
                    self.finish_iteration(repeat, &before, rip);
                }
                Emulated::Completed
            }
            Err(NotCompleted::Exception(exception)) => Emulated::Exception(exception),
            Err(NotCompleted::Stop(Stop::Suspended)) => {
                self.state.emulation.replies = io.replies;
                io.request.map_or(Emulated::Failed, Emulated::Reads)
            }
            Err(NotCompleted::Stop(Stop::HostFault(_))) => Emulated::HostFault,
            Err(NotCompleted::Stop(_)) => Emulated::Failed,
        };
        self.caches.emulator = Some(emulator);
        emulated
    }

    /// One iteration has been done with a count of 1: the rest of the count stays, and RIP goes
    /// back to the instruction unless this was the last.
    fn finish_iteration(&mut self, repeat: &Repeat, before: &[u64; 16], rip: u64) {
        let left = repeat.count(before) - 1;
        self.state.regs[RCX] = repeat.with_count(before[RCX], left);
        let zero = self.vmcs.read(Field::GUEST_RFLAGS) & Rflags::ZF.bits() != 0;
        if left != 0 && repeat.goes_on(zero) {
            self.state.rip = rip;
        }
    }

    /// Gives the guest's state, as the guest sees it, to the emulator.
    fn give_to(&mut self, cpu: &mut Cpu, repeat: Option<&Repeat>) {
        cpu.set_arch_state(&self.arch_state());
        let mut regs = self.state.regs;
        if let Some(repeat) = repeat {
            regs[RCX] = repeat.with_count(regs[RCX], 1);
        }
        cpu.set_general_registers(&regs);
        if self.caches.emulator_cpuid != Some(self.caches.cpuid_generation) {
            cpu.set_cpuid(cpuid::to_interpreter(if self.state.has_cpuid {
                &self.state.cpuid
            } else {
                cpuid::supported()
            }));
            self.caches.emulator_cpuid = Some(self.caches.cpuid_generation);
        }
        let system = cpu.system_registers_mut();
        system.cr2 = self.state.cr2;
        system.cr8 = self.state.cr8;
        system.breakpoints = self.state.db;
        system.dr6 = self.state.dr6;
        system.xcr0 = self.state.xcr0;
        let fpu = self.vmcs.processor().cpu(self.vm.host()).fpu();
        cpu.fpu_mut().clone_from(fpu);
    }

    /// Takes the state back, and writes what differs as software does for the guest.
    fn take_from(&mut self, cpu: &Cpu) {
        let (old, new) = (self.arch_state(), cpu.arch_state());
        self.state.regs = cpu.general_registers();
        self.state.regs[RSP] = new.rsp;
        self.state.rip = new.rip;
        self.state.cr2 = cpu.system_registers().cr2;
        let fpu = self.vmcs.processor().cpu(self.vm.host()).fpu_mut();
        fpu.clone_from(cpu.fpu());
        self.vmcs.write(Field::GUEST_RFLAGS, new.rflags.bits());
        self.vmcs.write(
            Field::GUEST_INTERRUPTIBILITY_STATE,
            u64::from(new.interruptibility.bits()),
        );
        if old.cr3 != new.cr3 {
            self.state.cr3 = new.cr3;
            self.state.pdptrs = new.pdptes;
        }
        if old.cr0 != new.cr0 {
            self.set_cr0(new.cr0.bits());
        }
        if old.cr4 != new.cr4 {
            self.set_cr4(new.cr4.bits());
            self.update_cpuid_runtime();
        }
        if (old.cr0, old.cr3, old.cr4) != (new.cr0, new.cr3, new.cr4) {
            self.state.pdptrs = new.pdptes;
            self.caches.ept = None;
        }
        for register in SEGMENT_REGISTERS {
            if old.segment(register) != new.segment(register) {
                self.write_segment_state(register, new.segment(register));
            }
        }
    }

    /// Returns the guest's state as the guest sees it.
    fn arch_state(&mut self) -> ArchState {
        let segments = {
            let vmcs = self.vmcs.vmx().current_vmcs().expect("the vCPU is loaded");
            SEGMENT_REGISTERS.map(|register| guest_segment(vmcs, register))
        };
        let table = |base: Field, limit: Field| DescriptorTable {
            base: self.vmcs.read(base),
            limit: self.vmcs.read(limit) as u16,
        };
        ArchState {
            cr0: Cr0::from_bits_retain(self.state.cr0),
            cr3: self.state.cr3,
            cr4: Cr4::from_bits_retain(self.state.cr4),
            dr7: self.state.dr7,
            rsp: self.state.regs[RSP],
            rip: self.state.rip,
            rflags: Rflags::from_bits_retain(self.rflags()),
            segments,
            gdtr: table(Field::GUEST_GDTR_BASE, Field::GUEST_GDTR_LIMIT),
            idtr: table(Field::GUEST_IDTR_BASE, Field::GUEST_IDTR_LIMIT),
            efer: Efer::from_bits_retain(self.state.efer),
            pat: self.vmcs.read(Field::GUEST_IA32_PAT),
            pdptes: self.state.pdptrs,
            interruptibility: Interruptibility::from_bits_retain(
                self.vmcs.read(Field::GUEST_INTERRUPTIBILITY_STATE) as u32,
            ) - Interruptibility::STI
                - Interruptibility::MOV_SS,
            ..ArchState::default()
        }
    }

    fn write_segment_state(&mut self, register: SegmentRegister, segment: &Segment) {
        let [selector, base, limit, access] = super::regs::segment_fields(register);
        self.vmcs.write(selector, u64::from(segment.selector));
        self.vmcs.write(base, segment.base);
        self.vmcs.write(limit, u64::from(segment.limit));
        self.vmcs.write(access, u64::from(segment.access.0));
    }

    /// Returns the default operand size of the code, in bits.
    fn code_bits(&self) -> u32 {
        let access = AccessRights(self.vmcs.read(Field::GUEST_CS_ACCESS_RIGHTS) as u32);
        match () {
            () if self.is_long_mode() && access.is_long() => 64,
            () if access.is_big() => 32,
            () => 16,
        }
    }

    /// Reads guest memory at a linear address, and returns how many bytes there were.
    pub(crate) fn read_linear(&self, linear: u64, bytes: &mut [u8]) -> usize {
        let slots = self.vm.memslots();
        let mut done = 0;
        while done < bytes.len() {
            let at = linear.wrapping_add(done as u64);
            let Some(gpa) = self.guest_physical(at) else {
                break;
            };
            let Some(slot) = slots.find(gpa >> 12) else {
                break;
            };
            let part = (4096 - (gpa & 0xfff) as usize).min(bytes.len() - done);
            let from = UserPtr(slot.page_address(gpa >> 12)).offset(gpa & 0xfff);
            let Ok(read) = from.read_array::<u8>(part) else {
                break;
            };
            bytes[done..done + part].copy_from_slice(&read);
            done += part;
        }
        done
    }

    /// Writes guest memory at a linear address; false if there is none.
    pub(crate) fn write_linear(&self, linear: u64, bytes: &[u8]) -> bool {
        let slots = self.vm.memslots();
        bytes.iter().enumerate().all(|(index, byte)| {
            let at = linear.wrapping_add(index as u64);
            let Some(gpa) = self.guest_physical(at) else {
                return false;
            };
            let slot = slots.find(gpa >> 12).filter(|slot| !slot.is_read_only());
            let Some(slot) = slot else { return false };
            self.vm.memory().mark_dirty(Gpa(gpa));
            UserPtr(slot.page_address(gpa >> 12))
                .offset(gpa & 0xfff)
                .write(byte)
                .is_ok()
        })
    }
}

const SEGMENT_REGISTERS: [SegmentRegister; 8] = [
    SegmentRegister::Es,
    SegmentRegister::Cs,
    SegmentRegister::Ss,
    SegmentRegister::Ds,
    SegmentRegister::Fs,
    SegmentRegister::Gs,
    SegmentRegister::Ldtr,
    SegmentRegister::Tr,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_a_write_are_joined() {
        let at = |address, size, data| IoAccess {
            space: IoSpace::Memory,
            address,
            size,
            data,
        };
        let mut write = at(0x90ffd, 2, 0x3322);
        assert!(join(&mut write, &at(0x90fff, 1, 0x44)));
        assert_eq!(write, at(0x90ffd, 3, 0x44_3322));
        assert!(!join(&mut write, &at(0x91000, 1, 0)));
        let mut write = at(0x90000, 4, 0);
        assert!(!join(&mut write, &at(0x90004, 4, 0)));
    }
}
