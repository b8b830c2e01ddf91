//! The case on [`x86_interp::Cpu`]: user-mode code, identity-mapped at the same addresses.
#![expect(unsafe_code, reason = "looks at guest RAM directly")]

use super::Bits;
use super::case::{CODE, CODE_BYTES, Case, DATA, DATA_BYTES, Outcome, State};
use std::sync::Arc;
use vmx_model::addr::Hpa;
use vmx_model::arch::{AccessRights, ArchState, Cr0, Cr4, Efer, Rflags, Segment};
use x86_interp::bus::{EmptyBus, InstructionClock};
use x86_interp::cpuid::{CpuidTable, Feature, Profile};
use x86_interp::mem::phys::{OwnedRam, PhysMap};
use x86_interp::{Cpu, Fault, Stop};

/// Physical addresses of the paging structures.
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const DIRECTORY: u64 = 0x3000;
const TABLE: u64 = 0x4000;

/// Present, writable, user, accessed, dirty.
const ENTRY: u64 = 0x67;
const WRITABLE: u64 = 2;

/// Selectors that instructions can read: ES, CS, SS, DS, FS, GS.
pub(super) type Selectors = [u16; 6];

/// Returns the CPUID leaves of a processor that has every feature which this crate knows.
pub(super) fn widest() -> CpuidTable {
    let mut entries = Profile::EVERYTHING.table().entries().to_vec();
    for &(_, leaf, subleaf, output, bit) in Feature::ALL {
        let entry = entries
            .iter_mut()
            .find(|e| e.function == leaf && (!e.has_index || e.index == subleaf));
        if let Some(entry) = entry {
            *entry.output_mut(output) |= 1 << bit;
        }
    }
    CpuidTable::new(entries)
}

/// The processor under test with its memory.
pub(super) struct Emulated {
    cpu: Cpu,
    code: Arc<OwnedRam>,
    data: Arc<OwnedRam>,
    arch: ArchState,
    /// Instructions run as parts of blocks.
    is_translated: bool,
}

impl Emulated {
    /// Returns a processor in user mode, with the host's selectors; whether it executes by micro-ops
    /// what has some.
    pub(super) fn new(bits: Bits, selectors: Selectors, is_translated: bool) -> Self {
        let phys = PhysMap::new();
        let tables = ram(8);
        let (code, data) = (ram(CODE_BYTES / 4096), ram(DATA_BYTES / 4096));
        for (base, ram) in [(0, &tables), (CODE, &code), (DATA, &data)] {
            phys.add_owned(Hpa(base), Arc::clone(ram))
                .expect("regions do not overlap");
        }
        map(&phys);
        bytes_of(&code).fill(0xcc);
        let clock = Box::new(InstructionClock::default());
        let mut cpu = Cpu::new(phys, Box::new(EmptyBus), clock);
        cpu.set_cpuid(widest());
        cpu.system_registers_mut().xcr0 = 0xe7;
        let arch = user_state(bits, selectors);
        cpu.set_arch_state(&arch);
        Self {
            cpu,
            code,
            data,
            arch,
            is_translated,
        }
    }

    /// Executes the instruction; `memory` is before it. Nothing if the interpreter does not support
    /// it.
    pub(super) fn run(&mut self, case: &Case, memory: &[u8]) -> Option<Outcome> {
        let plain = self.run_plain(case, memory)?;
        let next = case.state.rip + case.bytes.len() as u64;
        let is_straight = plain.exception.is_none() && plain.state.rip == next;
        // Each repetition counts for one.
        if !self.is_translated || !is_straight || case.instruction.is_string_instruction() {
            return Some(plain);
        }
        Some(self.run_translated(case, memory))
    }

    /// Executes an instruction that goes on with the next one in a block, with a NOP behind it: a
    /// single one would be executed by its plain handler. The second time, translations are known.
    fn run_translated(&mut self, case: &Case, memory: &[u8]) -> Outcome {
        const NOP: u8 = 0x90;
        let mut stop = Stop::Budget;
        for _ in 0..2 {
            self.prepare(case, memory, &[NOP]);
            stop = self.cpu.run(2);
        }
        let mut state = self.state();
        state.rip = state.rip.wrapping_sub(1);
        // The plain handler raised nothing, so this is a difference: a vector that nobody has.
        let exception = (stop != Stop::Budget).then_some((u8::MAX, 0, 0));
        Outcome { state, exception }
    }

    /// Puts the case in place, with `behind` behind the instruction.
    fn prepare(&mut self, case: &Case, memory: &[u8], behind: &[u8]) {
        let at = (case.state.rip - CODE) as usize;
        let length = case.bytes.len();
        let code = &mut bytes_of(&self.code)[at..];
        code[..16].fill(0xcc);
        code[..length].copy_from_slice(&case.bytes);
        code[length..length + behind.len()].copy_from_slice(behind);
        bytes_of(&self.data).copy_from_slice(memory);
        let cpu = &mut self.cpu;
        cpu.set_general_registers(&case.state.gpr);
        cpu.set_rip(case.state.rip);
        cpu.set_rflags(Rflags::from_bits_retain(case.state.rflags));
        *cpu.fpu_mut() = case.state.fpu.clone();
    }

    fn state(&self) -> State {
        let cpu = &self.cpu;
        State {
            gpr: cpu.general_registers(),
            rip: cpu.rip(),
            rflags: cpu.rflags().bits(),
            fpu: cpu.fpu().clone(),
        }
    }

    /// Executes the instruction by its plain handler.
    fn run_plain(&mut self, case: &Case, memory: &[u8]) -> Option<Outcome> {
        self.prepare(case, memory, &[]);
        let cpu = &mut self.cpu;
        let exception = match cpu.execute_plain() {
            Ok(()) => None,
            Err(Fault::Exception(e)) => Some((e.vector, e.error_code.unwrap_or(0), e.payload)),
            Err(_) => {
                cpu.set_arch_state(&self.arch);
                return None;
            }
        };
        let state = self.state();
        Some(Outcome { state, exception })
    }

    /// Returns the data pages after the instruction.
    pub(super) fn data(&self) -> &[u8] {
        bytes_of(&self.data)
    }
}

fn ram(pages: usize) -> Arc<OwnedRam> {
    Arc::new(OwnedRam::new(pages).expect("memory for a few pages"))
}

#[expect(clippy::mut_from_ref, reason = "guest RAM is shared by nature")]
fn bytes_of(ram: &OwnedRam) -> &mut [u8] {
    // SAFETY: no processor runs while its memory is looked at, and only one thread does.
    unsafe { core::slice::from_raw_parts_mut(ram.as_ptr().as_ptr(), ram.len_bytes()) }
}

/// Maps the code page and the data pages, and nothing else.
fn map(phys: &PhysMap) {
    let put = |at: u64, entry: u64| phys.write_bytes(Hpa(at), &entry.to_le_bytes());
    put(PML4, PDPT | ENTRY);
    put(PDPT, DIRECTORY | ENTRY);
    const { assert!(CODE >> 21 == DATA >> 21, "one page table is enough") };
    put(DIRECTORY + 8 * (CODE >> 21), TABLE | ENTRY);
    for (page, entry) in [
        (CODE, ENTRY & !WRITABLE),
        (DATA, ENTRY),
        (DATA + 4096, ENTRY),
    ] {
        put(TABLE + 8 * ((page >> 12) & 511), page | entry);
    }
}

fn user_state(bits: Bits, selectors: Selectors) -> ArchState {
    let mut state = ArchState {
        cr0: Cr0::PE | Cr0::PG | Cr0::ET | Cr0::NE | Cr0::WP | Cr0::MP | Cr0::AM,
        cr3: PML4,
        cr4: Cr4::PAE | Cr4::OSFXSR | Cr4::OSXMMEXCPT | Cr4::OSXSAVE,
        efer: Efer::LME | Efer::LMA | Efer::NXE | Efer::SCE,
        ..ArchState::default()
    };
    let code = match bits {
        Bits::B64 => 0xa0fb,
        Bits::B32 => 0xc0fb,
    };
    for (n, &selector) in selectors.iter().enumerate() {
        let access = match (n, selector) {
            (1, _) => AccessRights(code),
            (_, 0) => AccessRights::UNUSABLE,
            _ => AccessRights(0xc0f3),
        };
        state.segments[n] = Segment {
            base: 0,
            limit: u32::MAX,
            access,
            selector,
        };
    }
    state
}
