//! The processors under test, with memory and registers, doing the steps of a sequence.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::sequence::{self, Action, Blocking};
use super::{Answer, entry};
use crate::addr::Hpa;
use crate::arch::{Activity, ArchState, Interruptibility};
use crate::capability::VmxProfile;
use crate::exit::VmExit;
use crate::exit_reason::ExitReason;
use crate::memory::PhysicalMemory;
use crate::msr_area::MsrAccess;
use crate::outcome::VmxOutcome;
use crate::precondition::{Instruction, NotExecuted, ShadowAccess, VmxOperation};
use crate::processor::{EntryOutcome, InitOutcome, LogicalProcessor, Registers, Vmfunc, Vmread};
use crate::registry::{CpuId, VmcsRegistry};
use crate::sanitizer::{Item, Sanitizer};

/// Memory of a few pages.
#[derive(Clone, Debug, Default)]
pub struct Pages(BTreeMap<Hpa, Box<[u8; 4096]>>);

impl Pages {
    /// Adds a page of zeroes.
    pub fn add(&mut self, page: Hpa) {
        self.0.insert(page.page(), Box::new([0; 4096]));
    }

    /// Copies a page.
    pub fn copy(&mut self, from: Hpa, to: Hpa) {
        let bytes = self.0.get(&from).cloned();
        if let (Some(bytes), Some(page)) = (bytes, self.0.get_mut(&to)) {
            *page = bytes;
        }
    }
}

impl PhysicalMemory for Pages {
    fn read(&self, address: Hpa, bytes: &mut [u8]) {
        let mut at = address;
        let mut rest = bytes;
        while !rest.is_empty() {
            let (part, later) = rest.split_at_mut(in_page(at, rest.len()));
            let offset = at.page_offset() as usize;
            match self.0.get(&at.page()) {
                Some(page) => part.copy_from_slice(&page[offset..offset + part.len()]),
                None => part.fill(0xff),
            }
            at = at.offset(part.len() as u64);
            rest = later;
        }
    }

    fn write(&mut self, address: Hpa, bytes: &[u8]) {
        let mut at = address;
        let mut rest = bytes;
        while !rest.is_empty() {
            let (part, later) = rest.split_at(in_page(at, rest.len()));
            let offset = at.page_offset() as usize;
            if let Some(page) = self.0.get_mut(&at.page()) {
                page[offset..offset + part.len()].copy_from_slice(part);
            }
            at = at.offset(part.len() as u64);
            rest = later;
        }
    }
}

/// Returns how many of `length` bytes from `at` on are in its page.
fn in_page(at: Hpa, length: usize) -> usize {
    length.min(0x1000 - at.page_offset() as usize)
}

/// Registers that hold what was loaded last; every MSR can be written.
#[derive(Clone, Debug, Default)]
pub struct PlainRegisters {
    /// The state that was loaded.
    pub state: ArchState,
}

impl MsrAccess for PlainRegisters {
    fn read_msr(&mut self, _index: u32) -> Option<u64> {
        Some(0)
    }

    fn write_msr(&mut self, _index: u32, _value: u64) -> Option<()> {
        Some(())
    }
}

impl Registers for PlainRegisters {
    fn state(&self) -> &ArchState {
        &self.state
    }

    fn state_mut(&mut self) -> &mut ArchState {
        &mut self.state
    }

    fn state_is_loaded(&mut self) {}
}

/// The processors under test.
#[derive(Debug)]
pub struct Machine {
    profile: Arc<VmxProfile>,
    /// The processors.
    pub cpus: Vec<LogicalProcessor>,
    /// Their registers.
    pub registers: Vec<PlainRegisters>,
    /// Their memory.
    pub memory: Pages,
    /// What they know together.
    pub registry: Arc<VmcsRegistry>,
    sanitizer: Sanitizer,
}

impl Machine {
    /// Returns `cpus` processors outside VMX operation.
    #[must_use]
    pub fn new(profile: &Arc<VmxProfile>, cpus: u32) -> Self {
        let registry = VmcsRegistry::new();
        let sanitizer = Sanitizer::new(profile.caps.clone());
        let processor = |n| {
            let mut cpu =
                LogicalProcessor::new(CpuId(n), Arc::clone(profile), Arc::clone(&registry));
            cpu.set_observer(Some(Box::new(sanitizer.clone())));
            cpu
        };
        let registers = PlainRegisters {
            state: entry::root_state(profile),
        };
        Self {
            cpus: (0..cpus).map(processor).collect(),
            registers: vec![registers; cpus as usize],
            memory: memory(profile.caps.revision_id(), cpus),
            profile: Arc::clone(profile),
            registry,
            sanitizer,
        }
    }

    /// Returns the items of the reports that the sanitizer made since the last call.
    pub fn take_misuse(&mut self) -> Vec<Item> {
        let reports = self.sanitizer.take_reports();
        reports.iter().map(|report| report.item).collect()
    }

    /// Does one step.
    pub fn execute(&mut self, n: u32, action: Action) -> Answer {
        let memory = &mut self.memory;
        let cpu = &mut self.cpus[n as usize];
        match action {
            Action::Vmxon(pointer) => outcome(cpu.vmxon(pointer, memory)),
            Action::Vmxoff => self.vmxoff(n),
            Action::Vmclear(pointer) => outcome(cpu.vmclear(pointer, memory)),
            Action::Vmptrld(pointer) => outcome(cpu.vmptrld(pointer, memory)),
            Action::Vmptrst => answer(cpu.vmptrst(), |pointer| Answer::Value(pointer.0)),
            Action::Vmread(encoding) => self.vmread(n, encoding),
            Action::Vmwrite(encoding, value) => self.vmwrite(n, encoding, value),
            Action::Vmlaunch(blocking) => self.vm_entry(n, blocking, LogicalProcessor::vmlaunch),
            Action::Vmresume(blocking) => self.vm_entry(n, blocking, LogicalProcessor::vmresume),
            Action::Vmcall => outcome(cpu.vmcall()),
            Action::Vmfunc(eax, ecx) => match cpu.vmfunc(eax, ecx, memory) {
                Vmfunc::Undefined => Answer::Undefined,
                Vmfunc::Exit => Answer::Exits(ExitReason::VMFUNC),
                Vmfunc::Switched { .. } => Answer::Done,
            },
            Action::Invept(kind, descriptor) => answer(cpu.invept(kind, descriptor), |judged| {
                Answer::Outcome(judged.err().unwrap_or(VmxOutcome::Succeed))
            }),
            Action::Invvpid(kind, descriptor) => answer(cpu.invvpid(kind, descriptor), |judged| {
                Answer::Outcome(judged.err().unwrap_or(VmxOutcome::Succeed))
            }),
            Action::Prepare(link) => self.prepare(n, link),
            Action::Exit(reason) => self.exit(n, reason),
            Action::Init => init(cpu.init(Activity::Active)),
            Action::Reset => {
                cpu.reset();
                self.registers[n as usize].state = entry::root_state(&self.profile);
                Answer::Done
            }
            Action::RemoteVmclear(owner, pointer) => {
                let _ = cpu.remote_vmclear(CpuId(owner), pointer, memory);
                Answer::Done
            }
            Action::StoreHeader(pointer, header) => {
                memory.write_u32(pointer, header.dword(self.profile.caps.revision_id()));
                Answer::Done
            }
            Action::Copy(from, to) => {
                memory.copy(from, to);
                Answer::Done
            }
        }
    }

    fn vmxoff(&mut self, n: u32) -> Answer {
        let cpu = &mut self.cpus[n as usize];
        let answer = outcome(cpu.vmxoff());
        // A pending INIT is taken now; it does not change VMX state.
        let _ = cpu.take_pending_init(Activity::Active);
        answer
    }

    fn vmread(&mut self, n: u32, encoding: u64) -> Answer {
        let cpu = &mut self.cpus[n as usize];
        let shadow = cpu.shadow_access(Instruction::Vmread, encoding, &self.memory);
        let is_shadowed =
            cpu.operation() == VmxOperation::NonRoot && shadow == ShadowAccess::Shadowed;
        let read = if is_shadowed {
            Ok(cpu.shadow_vmread(encoding, &self.memory))
        } else {
            cpu.vmread(encoding)
        };
        answer(read, |read| match read {
            Vmread::Value(value) => Answer::Value(value),
            Vmread::Fail(outcome) => Answer::Outcome(outcome),
        })
    }

    fn vmwrite(&mut self, n: u32, encoding: u64, value: u64) -> Answer {
        let cpu = &mut self.cpus[n as usize];
        let shadow = cpu.shadow_access(Instruction::Vmwrite, encoding, &self.memory);
        let is_shadowed =
            cpu.operation() == VmxOperation::NonRoot && shadow == ShadowAccess::Shadowed;
        if is_shadowed {
            return Answer::Outcome(cpu.shadow_vmwrite(encoding, value, &mut self.memory));
        }
        outcome(cpu.vmwrite(encoding, value))
    }

    fn prepare(&mut self, n: u32, link: Option<Hpa>) -> Answer {
        for (encoding, value) in entry::valid_values(&self.profile, link) {
            let answer = self.vmwrite(n, encoding, value);
            if answer != Answer::Outcome(VmxOutcome::Succeed) {
                return answer;
            }
        }
        Answer::Done
    }

    fn vm_entry(&mut self, n: u32, blocking: Blocking, execute: VmEntry) -> Answer {
        let registers = &mut self.registers[n as usize];
        if blocking == Blocking::MovSs {
            registers.state.interruptibility |= Interruptibility::MOV_SS;
        }
        let executed = execute(&mut self.cpus[n as usize], &mut self.memory, registers);
        if blocking == Blocking::MovSs {
            // It has not entered; the next instruction is not blocked.
            registers.state.interruptibility -= Interruptibility::MOV_SS;
        }
        answer(executed, |entry| match entry {
            EntryOutcome::Fail(outcome) => Answer::Outcome(outcome),
            EntryOutcome::Failed(failed) => {
                Answer::EntryFailed(failed.reason, failed.qualification)
            }
            EntryOutcome::Aborted(_) => Answer::Done,
            EntryOutcome::Entered(_) => Answer::Entered,
        })
    }

    fn exit(&mut self, n: u32, reason: ExitReason) -> Answer {
        let cpu = &mut self.cpus[n as usize];
        if cpu.operation() != VmxOperation::NonRoot {
            return Answer::Done;
        }
        let registers = &mut self.registers[n as usize];
        match cpu.vm_exit(&VmExit::new(reason), &mut self.memory, registers) {
            Ok(()) => Answer::Exited,
            Err(_) => Answer::Done,
        }
    }
}

type VmEntry = fn(
    &mut LogicalProcessor,
    &mut dyn PhysicalMemory,
    &mut dyn Registers,
) -> Result<EntryOutcome, NotExecuted>;

const IA32_PAT: u32 = 0x277;
const IA32_FS_BASE: u32 = 0xc000_0100;

fn memory(revision: u32, cpus: u32) -> Pages {
    let mut memory = Pages::default();
    let own = (0..cpus).map(sequence::vmxon_region);
    for page in sequence::REGIONS.into_iter().chain(own) {
        memory.add(page);
        memory.write_u32(page, revision);
    }
    for (page, factor) in sequence::BITMAPS.into_iter().zip([0, 0, 37]) {
        memory.add(page);
        let bytes: Vec<u8> = (0..4096_u64).map(|n| (factor * n) as u8).collect();
        memory.write(page, &bytes);
    }
    memory.write(sequence::BITMAPS[1], &[0xff; 4096]);
    for (area, index) in sequence::MSR_AREAS
        .into_iter()
        .zip([IA32_PAT, IA32_FS_BASE])
    {
        memory.add(area);
        memory.write_u32(area, index);
    }
    memory
}

fn answer<T>(executed: Result<T, NotExecuted>, then: impl FnOnce(T) -> Answer) -> Answer {
    match executed {
        Ok(value) => then(value),
        Err(NotExecuted::Fault(_)) => Answer::Undefined,
        Err(NotExecuted::Exit(reason)) => Answer::Exits(reason),
    }
}

fn outcome(executed: Result<VmxOutcome, NotExecuted>) -> Answer {
    answer(executed, Answer::Outcome)
}

fn init(outcome: InitOutcome) -> Answer {
    match outcome {
        InitOutcome::Init => Answer::Init,
        InitOutcome::Pending => Answer::Pending,
        InitOutcome::Exit => Answer::Exits(ExitReason::INIT_SIGNAL),
    }
}
