//! The same on [`x86_interp::Cpu`]: user-mode code, identity-mapped at the same addresses.
#![expect(unsafe_code, reason = "looks at guest RAM directly")]

use std::sync::Arc;

use vmx_model::addr::Hpa;
use vmx_model::arch::{AccessRights, ArchState, Cr0, Cr4, Efer, Rflags, Segment};
use x86_interp::bus::{EmptyBus, InstructionClock};
use x86_interp::cpuid::Profile;
use x86_interp::mem::phys::{OwnedRam, PhysMap};
use x86_interp::{Cpu, Fault};

use crate::Bits;
use crate::generate::{CODE, Case, DATA, PAGE};
use crate::native::{Native, Outcome, Selectors};

/// Physical addresses of the paging structures.
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const DIRECTORY: u64 = 0x3000;
const TABLE: u64 = 0x4000;

/// Present, writable, user, accessed, dirty.
const ENTRY: u64 = 0x67;

/// The processor under test with its memory.
pub(crate) struct Emulated {
    cpu: Cpu,
    code: Arc<OwnedRam>,
    data: Arc<OwnedRam>,
    state: ArchState,
}

impl Emulated {
    /// Returns a processor in user mode, with the host's selectors.
    pub(crate) fn new(bits: Bits, selectors: Selectors) -> Self {
        let phys = PhysMap::new();
        let tables = ram(8);
        let (code, data) = (ram(1), ram(1));
        for (base, ram) in [(0, &tables), (CODE, &code), (DATA, &data)] {
            phys.add_owned(Hpa(base), Arc::clone(ram))
                .expect("regions do not overlap");
        }
        map(&phys);
        let state = user_state(bits, selectors);
        let clock = Box::new(InstructionClock::default());
        let mut cpu = Cpu::new(phys, Box::new(EmptyBus), clock);
        cpu.set_cpuid(Profile::EVERYTHING.table());
        Self {
            cpu,
            code,
            data,
            state,
        }
    }

    /// Puts the case's instruction and operands into memory.
    pub(crate) fn prepare(&mut self, case: &Case) {
        let code = bytes_of(&self.code);
        code.fill(0xcc);
        code[case.code_offset()..][..case.bytes.len()].copy_from_slice(&case.bytes);
        let data = bytes_of(&self.data);
        for (offset, bytes) in &case.memory {
            data[*offset..][..bytes.len()].copy_from_slice(bytes);
        }
    }

    /// Executes the instruction by its plain handler, with `inherited` added to its flags.
    pub(crate) fn run(&mut self, case: &Case, inherited: u64) -> Outcome {
        let mut state = self.state.clone();
        state.rsp = case.gpr[4];
        state.rip = case.rip;
        state.rflags = Rflags::from_bits_retain(case.rflags | inherited);
        self.cpu.set_arch_state(&state);
        for (n, &value) in case.gpr.iter().enumerate() {
            self.cpu.set_gpr(n, value);
        }
        let exception = match self.cpu.execute_plain() {
            Ok(()) => None,
            Err(Fault::Exception(e)) => Some((e.vector, e.error_code.unwrap_or(0), e.payload)),
            Err(other) => panic!("{case}: {other:?}"),
        };
        Outcome {
            gpr: core::array::from_fn(|n| self.cpu.gpr(n)),
            rip: self.cpu.rip(),
            rflags: self.cpu.rflags().bits(),
            exception,
        }
    }

    /// Returns the data page.
    pub(crate) fn data(&self) -> &[u8] {
        bytes_of(&self.data)
    }

    /// Makes the data page the host's.
    pub(crate) fn copy_memory_from(&mut self, native: &Native) {
        bytes_of(&self.data).copy_from_slice(native.data());
    }
}

fn ram(pages: usize) -> Arc<OwnedRam> {
    Arc::new(OwnedRam::new(pages).expect("memory for a few pages"))
}

#[expect(clippy::mut_from_ref, reason = "guest RAM is shared by nature")]
fn bytes_of(ram: &OwnedRam) -> &mut [u8] {
    // SAFETY: no processor runs while the test looks at its memory, and only one thread does.
    unsafe { core::slice::from_raw_parts_mut(ram.as_ptr().as_ptr(), ram.len_bytes()) }
}

/// Maps the code page and the data page, and nothing else.
fn map(phys: &PhysMap) {
    let put = |at: u64, entry: u64| phys.write_bytes(Hpa(at), &entry.to_le_bytes());
    put(PML4, PDPT | ENTRY);
    put(PDPT, DIRECTORY | ENTRY);
    assert_eq!(CODE >> 21, DATA >> 21, "one page table is enough");
    put(DIRECTORY + 8 * (CODE >> 21), TABLE | ENTRY);
    for page in [CODE, DATA] {
        put(TABLE + 8 * (page >> 12 & 511), page | ENTRY);
    }
}

fn user_state(bits: Bits, selectors: Selectors) -> ArchState {
    let mut state = ArchState {
        cr0: Cr0::PE | Cr0::PG | Cr0::ET | Cr0::NE | Cr0::WP | Cr0::MP | Cr0::AM,
        cr3: PML4,
        cr4: Cr4::PAE | Cr4::OSFXSR,
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
const _: () = assert!(PAGE == 4096);
