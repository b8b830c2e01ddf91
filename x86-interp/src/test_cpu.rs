//! Processors in a given mode for the unit tests of system instructions.

use std::sync::Arc;

use vmx_model::addr::Hpa;
use vmx_model::arch::{AccessRights, Cr0, Cr4, Efer, Segment, SegmentRegister};
use vmx_model::event::Exception;

use crate::bus::{EmptyBus, InstructionClock};
use crate::cpuid::{CpuidEntry, CpuidTable, Feature, Profile};
use crate::mem::phys::{OwnedRam, PhysMap};
use crate::{Cpu, Exec, Fault};

/// Where [`execute`] puts the code.
pub(crate) const CODE: u64 = 0x1000;
/// Free memory.
pub(crate) const DATA: u64 = 0x2000;
/// Paging structures.
const TABLES: u64 = 0x10000;
const RAM_PAGES: usize = 32;

/// A processor with flat segments and 128 KiB of RAM in 64-bit mode, CPL 0.
pub(crate) fn long_mode() -> Cpu {
    let mut cpu = protected_mode();
    cpu.phys
        .write_bytes(Hpa(TABLES), &(TABLES + 0x1007).to_le_bytes());
    // An identity-mapped page of 1 GiB.
    cpu.phys
        .write_bytes(Hpa(TABLES + 0x1000), &0x87_u64.to_le_bytes());
    cpu.state.cr3 = TABLES;
    cpu.state.cr4 |= Cr4::PAE;
    cpu.state.efer |= Efer::LME | Efer::LMA | Efer::NXE;
    cpu.state.cr0 |= Cr0::PG;
    cpu.state.segment_mut(SegmentRegister::Cs).access = AccessRights(0xa09b);
    cpu
}

/// The same in 32-bit protected mode without paging.
pub(crate) fn protected_mode() -> Cpu {
    let mut cpu = real_mode();
    cpu.state.cr0 |= Cr0::PE;
    cpu.state.segments = [segment(0xc093, u32::MAX); 8];
    *cpu.state.segment_mut(SegmentRegister::Cs) = segment(0xc09b, u32::MAX);
    *cpu.state.segment_mut(SegmentRegister::Tr) = segment(0x8b, 0x67);
    cpu
}

/// The same in real-address mode; the profile has every feature.
pub(crate) fn real_mode() -> Cpu {
    let phys = PhysMap::new();
    let ram = Arc::new(OwnedRam::new(RAM_PAGES).expect("memory is there"));
    phys.add_owned(Hpa(0), ram).expect("the map is empty");
    let clock = Box::new(InstructionClock::default());
    let mut cpu = Cpu::new(phys, Box::new(EmptyBus), clock);
    cpu.set_cpuid(Profile::EVERYTHING.table());
    cpu.state.cr0 = Cr0::ET | Cr0::NE;
    cpu.state.segments = [segment(0x93, 0xffff); 8];
    cpu.state.rip = CODE;
    cpu
}

/// Makes CPL 3.
pub(crate) fn user(mut cpu: Cpu) -> Cpu {
    for register in [SegmentRegister::Cs, SegmentRegister::Ss] {
        let segment = cpu.state.segment_mut(register);
        segment.access = segment.access.with_dpl(3);
        segment.selector |= 3;
    }
    cpu
}

fn segment(access: u32, limit: u32) -> Segment {
    Segment {
        base: 0,
        limit,
        access: AccessRights(access),
        selector: 8,
    }
}

/// Executes one instruction.
pub(crate) fn execute(cpu: &mut Cpu, code: &[u8]) -> Exec {
    cpu.phys.write_bytes(Hpa(CODE), code);
    cpu.state.rip = CODE;
    cpu.execute_plain()
}

/// Returns the leaves of a processor with every feature and AVX-512F.
pub(crate) fn avx512_cpuid() -> CpuidTable {
    let features = Profile::EVERYTHING.features().with(Feature::Avx512f);
    let mut entries = Profile::EVERYTHING.table().entries().to_vec();
    entries.retain(|e| e.function != 0xd);
    entries.extend(crate::xstate::leaves(features));
    for &(feature, leaf, subleaf, output, bit) in Feature::ALL {
        let is_place = |e: &&mut CpuidEntry| {
            e.function == leaf && (!e.has_index || e.index == subleaf) && features.has(feature)
        };
        if let Some(entry) = entries.iter_mut().find(is_place) {
            *entry.output_mut(output) |= 1 << bit;
        }
    }
    CpuidTable::new(entries)
}

/// #GP(0) as the end of an instruction.
pub(crate) const GP: Exec = Err(Fault::Exception(Exception::gp(0)));
/// #UD as the end of an instruction.
pub(crate) const UD: Exec = Err(Fault::Exception(Exception::UD));
/// #NM as the end of an instruction.
pub(crate) const NM: Exec = Err(Fault::Exception(Exception::NM));
