//! Tests of protection, control transfer and events: one table of descriptors, many short cases.
//!
//! Each case is a row: what the processor does, at which privilege level, and the outcome that the
//! SDM's "Operation" of the instruction gives. A fault must leave the processor as it was.

use std::sync::Arc;

use vmx_model::addr::Hpa;
use vmx_model::arch::{AccessRights, ArchState, Cr0, Efer, Rflags, Segment, SegmentRegister};
use vmx_model::event::Exception;

use crate::bus::{EmptyBus, InstructionClock};
use crate::fault::Fault;
use crate::mem::phys::{OwnedRam, PhysMap};
use crate::{Cpu, Stop};

mod events;
mod far;
mod interrupts;
mod random;
mod returns;
mod segments;
mod shadow_stacks;
mod task_shadow_stacks;
mod tasks;

pub(crate) const CODE: u64 = 0x1000;
pub(crate) const GDT: u64 = 0x3000;
pub(crate) const LDT: u64 = 0x3800;
pub(crate) const IDT: u64 = 0x4000;
pub(crate) const TSS: u64 = 0x5000;
pub(crate) const OTHER_TSS: u64 = 0x5800;
/// Tops of the stacks of the privilege levels.
pub(crate) const STACKS: [u64; 4] = [0x8000, 0x9000, 0xa000, 0xb000];
/// Where gates and far pointers lead.
pub(crate) const TARGET: u64 = 0x2000;
const PAGES: usize = 32;

/// Selectors of the GDT, without RPL.
#[allow(missing_docs, reason = "the table below explains them")]
pub(crate) mod sel {
    pub(crate) const CODE0: u16 = 0x08;
    pub(crate) const DATA0: u16 = 0x10;
    pub(crate) const CODE3: u16 = 0x18;
    pub(crate) const DATA3: u16 = 0x20;
    pub(crate) const CONFORMING0: u16 = 0x28;
    pub(crate) const CONFORMING3: u16 = 0x30;
    pub(crate) const READ_ONLY0: u16 = 0x38;
    pub(crate) const ABSENT_DATA0: u16 = 0x40;
    pub(crate) const ABSENT_CODE0: u16 = 0x48;
    pub(crate) const EXECUTE_ONLY0: u16 = 0x50;
    pub(crate) const TSS_FREE: u16 = 0x58;
    pub(crate) const TSS_BUSY: u16 = 0x60;
    pub(crate) const LDT: u16 = 0x68;
    pub(crate) const ABSENT_LDT: u16 = 0x70;
    pub(crate) const ABSENT_TSS: u16 = 0x78;
    pub(crate) const CODE1: u16 = 0x80;
    pub(crate) const DATA1: u16 = 0x88;
    pub(crate) const GATE_TO_CODE0: u16 = 0x90;
    pub(crate) const GATE0: u16 = 0x98;
    pub(crate) const ABSENT_GATE: u16 = 0xa0;
    pub(crate) const GATE_TO_NULL: u16 = 0xa8;
    pub(crate) const GATE_TO_DATA: u16 = 0xb0;
    pub(crate) const GATE_TO_CONFORMING: u16 = 0xb8;
    pub(crate) const GATE_TO_ABSENT: u16 = 0xc0;
    pub(crate) const GATE16: u16 = 0xc8;
    pub(crate) const TASK_GATE: u16 = 0xd0;
    pub(crate) const TSS16_FREE: u16 = 0xd8;
    pub(crate) const SHORT_TSS: u16 = 0xe0;
    pub(crate) const CODE16: u16 = 0xe8;
    pub(crate) const FRESH_DATA0: u16 = 0xf0;
    pub(crate) const ABSENT_DATA3: u16 = 0xf8;
    pub(crate) const GATE_TO_BEYOND: u16 = 0x100;
    pub(crate) const SMALL_CODE0: u16 = 0x108;
    pub(crate) const CODE64: u16 = 0x110;
    pub(crate) const CODE64_3: u16 = 0x118;
    pub(crate) const CODE_L_AND_D: u16 = 0x120;
    /// A system descriptor of 16 bytes in IA-32e mode.
    pub(crate) const GATE64: u16 = 0x130;
    /// A system descriptor of 16 bytes in IA-32e mode: a free TSS.
    pub(crate) const TSS64_FREE: u16 = 0x140;
    pub(crate) const ABSENT_CODE3: u16 = 0x150;
    pub(crate) const CODE3_16: u16 = 0x158;
    pub(crate) const DATA3_16: u16 = 0x160;
    /// The first selector beyond the limit.
    pub(crate) const BEYOND: u16 = 0x168;
}

/// Makes a segment descriptor; `access` in the VMCS's format. A limit over 0xfffff is in pages.
pub(crate) fn descriptor(base: u64, limit: u32, access: u32) -> u64 {
    let (raw, granular) = if limit > 0xf_ffff {
        (u64::from(limit >> 12), 0x8000)
    } else {
        (u64::from(limit), 0)
    };
    let access = u64::from(access | granular);
    raw & 0xffff
        | (base & 0xff_ffff) << 16
        | access << 40
        | (raw & 0xf_0000) << 32
        | (base & 0xff00_0000) << 32
}

/// Makes the lower half of a gate; `kind` is the access byte.
pub(crate) fn gate(selector: u16, offset: u64, kind: u8, count: u8) -> u64 {
    offset & 0xffff
        | u64::from(selector) << 16
        | u64::from(count) << 32
        | u64::from(kind) << 40
        | (offset & 0xffff_0000) << 32
}

fn gdt() -> Vec<(u16, u64)> {
    use sel::{
        ABSENT_CODE0, ABSENT_CODE3, ABSENT_DATA0, ABSENT_DATA3, ABSENT_GATE, ABSENT_LDT,
        ABSENT_TSS, BEYOND, CODE_L_AND_D, CODE0, CODE1, CODE3, CODE3_16, CODE16, CODE64, CODE64_3,
        CONFORMING0, CONFORMING3, DATA0, DATA1, DATA3, DATA3_16, EXECUTE_ONLY0, FRESH_DATA0,
        GATE_TO_ABSENT, GATE_TO_BEYOND, GATE_TO_CODE0, GATE_TO_CONFORMING, GATE_TO_DATA,
        GATE_TO_NULL, GATE0, GATE16, GATE64, READ_ONLY0, SHORT_TSS, SMALL_CODE0, TASK_GATE,
        TSS_BUSY, TSS_FREE, TSS16_FREE, TSS64_FREE,
    };
    const ALL: u32 = u32::MAX;
    vec![
        (CODE0, descriptor(0, ALL, 0x409b)),
        (DATA0, descriptor(0, ALL, 0x4093)),
        (CODE3, descriptor(0, ALL, 0x40fb)),
        (DATA3, descriptor(0, ALL, 0x40f3)),
        (CONFORMING0, descriptor(0, ALL, 0x409f)),
        (CONFORMING3, descriptor(0, ALL, 0x40ff)),
        (READ_ONLY0, descriptor(0, ALL, 0x4091)),
        (ABSENT_DATA0, descriptor(0, ALL, 0x4013)),
        (ABSENT_CODE0, descriptor(0, ALL, 0x401b)),
        (EXECUTE_ONLY0, descriptor(0, ALL, 0x4099)),
        (TSS_FREE, descriptor(OTHER_TSS, 0x67, 0x89)),
        (TSS_BUSY, descriptor(TSS, 0x67, 0x8b)),
        (sel::LDT, descriptor(LDT, 0x1f, 0x82)),
        (ABSENT_LDT, descriptor(LDT, 0x1f, 0x02)),
        (ABSENT_TSS, descriptor(OTHER_TSS, 0x67, 0x09)),
        (CODE1, descriptor(0, ALL, 0x40bb)),
        (DATA1, descriptor(0, ALL, 0x40b3)),
        (GATE_TO_CODE0, gate(CODE0, TARGET, 0xec, 2)),
        (GATE0, gate(CODE0, TARGET, 0x8c, 0)),
        (ABSENT_GATE, gate(CODE0, TARGET, 0x6c, 0)),
        (GATE_TO_NULL, gate(0, TARGET, 0xec, 0)),
        (GATE_TO_DATA, gate(DATA0, TARGET, 0xec, 0)),
        (GATE_TO_CONFORMING, gate(CONFORMING0, TARGET, 0xec, 0)),
        (GATE_TO_ABSENT, gate(ABSENT_CODE0, TARGET, 0xec, 0)),
        (GATE16, gate(CODE0, TARGET, 0xe4, 1)),
        (TASK_GATE, gate(TSS_FREE, 0, 0xe5, 0)),
        (TSS16_FREE, descriptor(OTHER_TSS, 0x2b, 0x81)),
        (SHORT_TSS, descriptor(OTHER_TSS, 0x66, 0x89)),
        (CODE16, descriptor(0, 0xffff, 0x9b)),
        (FRESH_DATA0, descriptor(0x1234, 0xfff, 0x4092)),
        (ABSENT_DATA3, descriptor(0, ALL, 0x4073)),
        (GATE_TO_BEYOND, gate(BEYOND, TARGET, 0xec, 0)),
        (SMALL_CODE0, descriptor(0, 0x1fff, 0x409b)),
        (CODE64, descriptor(0, ALL, 0x209b)),
        (CODE64_3, descriptor(0, ALL, 0x20fb)),
        (CODE_L_AND_D, descriptor(0, ALL, 0x609b)),
        (GATE64, gate(CODE64, TARGET, 0xec, 0)),
        (TSS64_FREE, descriptor(OTHER_TSS, 0x67, 0x89)),
        (ABSENT_CODE3, descriptor(0, ALL, 0x407b)),
        (CODE3_16, descriptor(0, 0xffff, 0xfb)),
        (DATA3_16, descriptor(0, 0xffff, 0xf3)),
    ]
}

/// A processor with the tables above.
pub(crate) struct World {
    pub(crate) cpu: Cpu,
}

/// Returns a segment register's contents for flat 32-bit protected mode.
fn flat(selector: u16, access: u32) -> Segment {
    Segment {
        base: 0,
        limit: u32::MAX,
        access: AccessRights(access),
        selector,
    }
}

impl World {
    /// 32-bit protected mode at privilege level `cpl` (0 or 3), about to execute `code`.
    pub(crate) fn protected(cpl: u8, code: &[u8]) -> Self {
        let map = PhysMap::new();
        let ram = OwnedRam::new(PAGES).expect("some pages of RAM");
        map.add_owned(Hpa(0), Arc::new(ram)).expect("an empty map");
        let cpu = Cpu::new(map, Box::new(EmptyBus), Box::<InstructionClock>::default());
        let mut world = Self { cpu };
        world.write(CODE, code);
        for (selector, descriptor) in gdt() {
            world.write(GDT + u64::from(selector), &descriptor.to_le_bytes());
        }
        let mut state = world.cpu.arch_state();
        state.cr0 = Cr0::PE | Cr0::ET;
        state.rip = CODE;
        state.rsp = STACKS[usize::from(cpl)];
        state.gdtr.base = GDT;
        state.gdtr.limit = sel::BEYOND - 1;
        state.idtr.base = IDT;
        state.idtr.limit = 0x7ff;
        set_level(&mut state, cpl);
        *state.segment_mut(SegmentRegister::Ldtr) = Segment {
            access: AccessRights::UNUSABLE,
            ..Segment::default()
        };
        *state.segment_mut(SegmentRegister::Tr) = Segment {
            base: TSS,
            limit: 0x67,
            access: AccessRights(0x8b),
            selector: sel::TSS_BUSY,
        };
        world.cpu.set_arch_state(&state);
        world.fill_tss(TSS);
        world
    }

    /// 64-bit mode (without paging: the mode bits are what these tests are about).
    pub(crate) fn long(cpl: u8, code: &[u8]) -> Self {
        let mut world = Self::protected(cpl, code);
        let mut state = world.cpu.arch_state();
        state.efer = Efer::LME | Efer::LMA | Efer::SCE;
        state.idtr.limit = 0xfff;
        let (selector, access) = if cpl == 0 {
            (sel::CODE64, 0xa09b)
        } else {
            (sel::CODE64_3 | 3, 0xa0fb)
        };
        *state.segment_mut(SegmentRegister::Cs) = flat(selector, access);
        world.cpu.set_arch_state(&state);
        let stacks = [STACKS[0], STACKS[1], STACKS[2]];
        for (n, stack) in stacks.into_iter().enumerate() {
            world.write(TSS + 4 + 8 * n as u64, &stack.to_le_bytes());
        }
        for n in 1..8_u64 {
            world.write(TSS + 28 + 8 * n, &(0xc000 + 0x100 * n + 8).to_le_bytes());
        }
        world
    }

    /// Real-address mode, with the interrupt table at 0.
    pub(crate) fn real(code: &[u8]) -> Self {
        let mut world = Self::protected(0, code);
        let mut state = world.cpu.arch_state();
        state.cr0 = Cr0::ET;
        state.idtr.base = 0;
        state.idtr.limit = 0x3ff;
        for s in &mut state.segments[..6] {
            *s = Segment {
                base: 0,
                limit: 0xffff,
                access: AccessRights(0x93),
                selector: 0,
            };
        }
        world.cpu.set_arch_state(&state);
        world
    }

    /// Virtual-8086 mode with I/O privilege level `iopl`.
    pub(crate) fn virtual_8086(iopl: u64, code: &[u8]) -> Self {
        let mut world = Self::protected(3, code);
        let mut state = world.cpu.arch_state();
        state.rflags = Rflags::from_bits_retain(0x2 | 1 << 17 | iopl << 12);
        for s in &mut state.segments[..6] {
            *s = crate::segmentation::virtual_8086_segment(0);
        }
        world.cpu.set_arch_state(&state);
        world
    }

    /// Fills the stacks of a 32-bit TSS.
    fn fill_tss(&mut self, at: u64) {
        for (level, selector) in [(0, sel::DATA0), (1, sel::DATA1 | 1)] {
            self.write(
                at + 4 + 8 * level,
                &(STACKS[level as usize] as u32).to_le_bytes(),
            );
            self.write(at + 8 + 8 * level, &u32::from(selector).to_le_bytes());
        }
    }

    pub(crate) fn write(&mut self, at: u64, bytes: &[u8]) {
        self.cpu.phys.write_bytes(Hpa(at), bytes);
    }

    pub(crate) fn write_word(&mut self, at: u64, value: u16) {
        self.write(at, &value.to_le_bytes());
    }

    pub(crate) fn write_doubleword(&mut self, at: u64, value: u32) {
        self.write(at, &value.to_le_bytes());
    }

    pub(crate) fn word(&self, at: u64) -> u16 {
        self.read(at, 2) as u16
    }

    pub(crate) fn doubleword(&self, at: u64) -> u32 {
        self.read(at, 4) as u32
    }

    pub(crate) fn quadword(&self, at: u64) -> u64 {
        self.read(at, 8)
    }

    fn read(&self, at: u64, size: usize) -> u64 {
        let mut bytes = [0; 8];
        self.cpu.phys.read_bytes(Hpa(at), &mut bytes[..size]);
        u64::from_le_bytes(bytes)
    }

    /// Puts a gate into the IDT of protected mode.
    pub(crate) fn set_gate(&mut self, vector: u8, selector: u16, kind: u8) {
        let at = IDT + u64::from(vector) * 8;
        self.write(at, &gate(selector, TARGET, kind, 0).to_le_bytes());
    }

    /// Puts a gate into the IDT of IA-32e mode.
    pub(crate) fn set_gate64(&mut self, vector: u8, selector: u16, kind: u8, stack: u8) {
        let at = IDT + u64::from(vector) * 16;
        self.write(at, &gate(selector, TARGET, kind, stack).to_le_bytes());
        self.write(at + 8, &[0; 8]);
    }

    pub(crate) fn segment(&self, register: SegmentRegister) -> Segment {
        *self.cpu.state.segment(register)
    }

    pub(crate) fn selector(&self, register: SegmentRegister) -> u16 {
        self.segment(register).selector
    }

    pub(crate) fn set_flags(&mut self, flags: Rflags) {
        self.cpu.set_rflags(self.cpu.rflags() | flags);
    }

    /// Executes the instruction at RIP: the exception that it raises, if it does. One that does
    /// must have changed nothing.
    pub(crate) fn execute(&mut self) -> Result<(), Exception> {
        let before = (self.cpu.arch_state(), self.cpu.general_registers());
        let result = self.cpu.execute_plain();
        match result {
            Ok(()) => Ok(()),
            Err(Fault::Exception(e)) => {
                let after = (self.cpu.arch_state(), self.cpu.general_registers());
                assert_eq!(before, after, "{e:?} changed the processor");
                Err(e)
            }
            Err(other) => panic!("{other:?}: {:?}", self.cpu.pending_stop),
        }
    }

    /// Runs until HLT.
    pub(crate) fn run_to_halt(&mut self) {
        assert_eq!(self.cpu.run(1000), Stop::Halt);
    }
}

/// Loads flat code, stack and data segments of privilege level 0, 1 or 3.
pub(crate) fn set_level(state: &mut ArchState, cpl: u8) {
    let (code, data) = match cpl {
        0 => (sel::CODE0, sel::DATA0),
        1 => (sel::CODE1, sel::DATA1),
        _ => (sel::CODE3, sel::DATA3),
    };
    let rights = u32::from(cpl) << 5;
    for s in &mut state.segments[..6] {
        *s = flat(data | u16::from(cpl), 0xc093 | rights);
    }
    *state.segment_mut(SegmentRegister::Cs) = flat(code | u16::from(cpl), 0xc09b | rights);
}
