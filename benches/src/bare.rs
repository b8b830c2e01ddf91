//! An image on one bare processor with VMX: no hypervisor, no devices.

use std::sync::Arc;

use anyhow::{Result, bail, ensure};
use vmx_model::addr::Hpa;
use vmx_model::arch::{AccessRights, Cr0, Cr4, DescriptorTable, Efer, Segment, SegmentRegister};
use vmx_model::capability::VmxProfile;
use vmx_model::processor::LogicalProcessor;
use vmx_model::registry::{CpuId, VmcsRegistry};
use x86_interp::bus::{EmptyBus, InstructionClock};
use x86_interp::mem::phys::{OwnedRam, PhysMap};
use x86_interp::vmx::RootSoftware;
use x86_interp::{Cpu, Stop};

use crate::image::Image;
use crate::programs::{Bits, Program};

/// Returns a processor that is about to execute the first instruction of `image`.
///
/// # Errors
/// If the memory cannot be had.
pub fn processor(image: &Image) -> Result<Cpu> {
    let phys = PhysMap::new();
    let Some(ram) = OwnedRam::new((Image::RAM_BYTES / 4096) as usize) else {
        bail!("no memory for a guest");
    };
    phys.add_owned(Hpa(0), Arc::new(ram))?;
    phys.write_bytes(Hpa(Image::BASE), &image.bytes);
    let mut cpu = Cpu::new(
        phys,
        Box::new(EmptyBus),
        Box::new(InstructionClock::default()),
    );
    let profile = Arc::new(VmxProfile::emulator_default());
    let processor = LogicalProcessor::new(CpuId(0), profile, VmcsRegistry::new());
    cpu.attach_processor(Box::new(processor), RootSoftware::Guest);
    set_state(&mut cpu, image.bits);
    Ok(cpu)
}

/// The state that the boot sector makes.
fn set_state(cpu: &mut Cpu, bits: Bits) {
    let mut state = cpu.arch_state();
    let data = |selector, access| Segment {
        base: 0,
        limit: u32::MAX,
        access: AccessRights(access),
        selector,
    };
    for register in [
        SegmentRegister::Es,
        SegmentRegister::Ss,
        SegmentRegister::Ds,
        SegmentRegister::Fs,
        SegmentRegister::Gs,
    ] {
        *state.segment_mut(register) = data(0x10, 0xc093);
    }
    state.gdtr = DescriptorTable {
        base: Image::BASE,
        limit: 31,
    };
    state.rip = Image::ENTRY;
    state.cr0 = Cr0::PE | Cr0::ET;
    let cs = if bits == Bits::Long64 {
        state.cr0 |= Cr0::PG;
        state.cr3 = Image::CR3;
        state.cr4 = Cr4::PAE;
        state.efer = Efer::LME | Efer::LMA;
        data(0x08, 0xa09b)
    } else {
        data(0x18, 0xc09b)
    };
    *state.segment_mut(SegmentRegister::Cs) = cs;
    cpu.set_arch_state(&state);
}

/// Returns the result of a program that has run to the HLT of its image: the stub keeps it in R8
/// (EBX for 32-bit code) while it prints it.
#[must_use]
pub fn result(cpu: &Cpu, bits: Bits) -> u64 {
    let registers = cpu.general_registers();
    match bits {
        Bits::Long64 => registers[8],
        Bits::Flat32 => registers[3] & 0xffff_ffff,
    }
}

/// Counts the instructions that the image of a program with `iterations` executes up to its HLT.
///
/// # Errors
/// If the processor stops before that.
pub fn instructions(program: &Program, iterations: u32) -> Result<u64> {
    let mut cpu = processor(&Image::new(program, iterations))?;
    let stop = cpu.run(u64::MAX);
    ensure!(
        stop == Stop::Halt,
        "{} x{iterations}: {stop:?}",
        program.name
    );
    Ok(cpu.retired())
}
#[cfg(test)]
mod tests {
    use super::*;
    use crate::programs::PROGRAMS;

    #[test]
    fn every_program_gives_its_result_on_a_bare_processor() {
        for program in PROGRAMS {
            for iterations in [1, 2] {
                let mut cpu = processor(&Image::new(program, iterations)).expect("a processor");
                let stop = cpu.run(50_000_000);
                assert_eq!(stop, Stop::Halt, "{} x{iterations}", program.name);
                let result = result(&cpu, program.bits);
                let expected = program.expected(iterations, Image::DATA);
                assert_eq!(result, expected, "{} x{iterations}", program.name);
            }
        }
    }
}
