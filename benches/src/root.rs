//! A guest that leaves at once, under native software in VMX root operation.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use vmx_model::addr::Hpa;
use vmx_model::capability::VmxProfile;
use vmx_model::field::Field;
use vmx_model::processor::{EntryOutcome, LogicalProcessor};
use vmx_model::registry::{CpuId, VmcsRegistry};
use vmx_model::sample::{Guest, root_state, valid_vmcs};
use x86_interp::bus::{EmptyBus, InstructionClock};
use x86_interp::mem::phys::{OwnedRam, PhysMap};
use x86_interp::vmx::{EntryInstruction, RootSoftware};
use x86_interp::{Cpu, Stop};

const VMXON: Hpa = Hpa(0x1000);
const VMCS: Hpa = Hpa(0x2000);
/// EPT paging structures, a page each: PML4, PDPT, directory, table.
const TABLES: u64 = 0x3000;
/// Where the guest's only page is, guest-physical and host-physical.
const CODE: u64 = 0x1000;
const CODE_HPA: u64 = 0x8000;
/// Read, write, execute; in a leaf also write-back.
const RIGHTS: u64 = 7;
const WRITE_BACK: u64 = 6 << 3;
/// VMCALL.
const VMCALL: [u8; 3] = [0x0f, 0x01, 0xc1];

/// A processor in VMX root operation with a current VMCS, whose real-mode guest executes VMCALL.
pub struct Root {
    cpu: Cpu,
}

impl Root {
    /// Makes the processor, executes VMXON, VMCLEAR and VMPTRLD, and launches the guest once.
    ///
    /// # Errors
    /// If there is no memory, or an instruction fails.
    pub fn new() -> Result<Self> {
        let profile = Arc::new(VmxProfile::emulator_default());
        let phys = PhysMap::new();
        let ram = OwnedRam::new(16).context("16 pages")?;
        phys.add_owned(Hpa(0), Arc::new(ram))?;
        fill(&phys, &profile);
        let mut processor =
            LogicalProcessor::new(CpuId(0), Arc::clone(&profile), VmcsRegistry::new());
        let mut memory = &*phys;
        let executed = [
            processor.vmxon(VMXON, &memory),
            processor.vmclear(VMCS, &mut memory),
            processor.vmptrld(VMCS, &memory),
        ];
        for outcome in executed {
            ensure!(outcome.is_ok_and(|o| o.is_success()), "VMX operation");
        }
        let mut sample = valid_vmcs(&profile, Guest::Real);
        sample.set(Field::EPT_POINTER, TABLES | 0x1e);
        sample.set(Field::GUEST_RIP, CODE);
        *processor.current_vmcs_mut().context("a current VMCS")? = sample;
        let clock = Box::<InstructionClock>::default();
        let mut cpu = Cpu::new(phys, Box::new(EmptyBus), clock);
        cpu.set_arch_state(&root_state(&profile));
        cpu.attach_processor(Box::new(processor), RootSoftware::Native);
        let mut root = Self { cpu };
        root.round_trip_by(EntryInstruction::Vmlaunch)?;
        Ok(root)
    }

    /// Into the guest by VMRESUME, and out by its VMCALL.
    ///
    /// # Errors
    /// If the guest is not entered, or does not exit.
    pub fn round_trip(&mut self) -> Result<()> {
        self.round_trip_by(EntryInstruction::Vmresume)
    }

    fn round_trip_by(&mut self, instruction: EntryInstruction) -> Result<()> {
        let entered = self.cpu.vm_entry(instruction);
        ensure!(matches!(entered, Ok(EntryOutcome::Entered(_))), "VM entry");
        ensure!(self.cpu.run(16) == Stop::VmExit, "VM exit");
        Ok(())
    }

    /// Returns the VMX state, for VMREAD and VMWRITE.
    ///
    /// # Errors
    /// If it is not attached, which it is.
    pub fn processor(&mut self) -> Result<&mut LogicalProcessor> {
        self.cpu.processor_mut().context("attached")
    }
}

fn fill(phys: &PhysMap, profile: &VmxProfile) {
    let revision = profile.caps.revision_id().to_le_bytes();
    phys.write_bytes(VMXON, &revision);
    phys.write_bytes(VMCS, &revision);
    for level in 0..3 {
        let table = TABLES + 0x1000 * level;
        let entry = (table + 0x1000) | RIGHTS;
        phys.write_bytes(Hpa(table), &entry.to_le_bytes());
    }
    let leaf = CODE_HPA | RIGHTS | WRITE_BACK;
    let at = TABLES + 0x3000 + 8 * (CODE >> 12);
    phys.write_bytes(Hpa(at), &leaf.to_le_bytes());
    phys.write_bytes(Hpa(CODE_HPA), &VMCALL);
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmx_model::exit_reason::ExitReason;

    #[test]
    fn the_guest_leaves_by_vmcall_each_time() {
        let mut root = Root::new().expect("a guest");
        for _ in 0..3 {
            root.round_trip().expect("in and out");
            let processor = root.processor().expect("attached");
            let reason = processor.read(Field::EXIT_REASON).expect("a field");
            assert_eq!(ExitReason(reason as u16), ExitReason::VMCALL);
        }
    }
}
