//! The VMX instructions (SDM Vol. 3C, chapter "VMX Instruction Reference").
//!
//! Mode, privilege and the VM exits of VMX non-root operation are judged first
//! ([`Cpu::check_vmx`]); then the operand is read; then the logical processor does the work.

use iced_x86::{Code, Mnemonic};
use vmx_model::addr::Hpa;
use vmx_model::arch::Rflags;
use vmx_model::event::Exception;
use vmx_model::outcome::VmxOutcome;
use vmx_model::precondition::{Instruction, NotExecuted, ShadowAccess};
use vmx_model::processor::{EntryOutcome, Invalidation, LogicalProcessor, Vmfunc, Vmread};

use super::{Row, Traits};
use crate::insn::{Insn, Operand, Plain};
use crate::mem::phys::PhysMap;
use crate::mode::Mode;
use crate::stop::Stop;
use crate::vmx::EntryInstruction;
use crate::{Cpu, Exec};

/// Returns who executes a VMX instruction.
pub(crate) fn lookup(code: Code) -> Option<Row> {
    let plain: Plain = match code.mnemonic() {
        Mnemonic::Vmxon => vmxon,
        Mnemonic::Vmxoff => vmxoff,
        Mnemonic::Vmclear => vmclear,
        Mnemonic::Vmptrld => vmptrld,
        Mnemonic::Vmptrst => vmptrst,
        Mnemonic::Vmread => return Some(inside(vmread)),
        Mnemonic::Vmwrite => return Some(inside(vmwrite)),
        Mnemonic::Vmlaunch => vmlaunch,
        Mnemonic::Vmresume => vmresume,
        Mnemonic::Vmcall => vmcall,
        Mnemonic::Vmfunc => vmfunc,
        Mnemonic::Invept => invept,
        Mnemonic::Invvpid => invvpid,
        Mnemonic::Getsec => getsec,
        _ => return None,
    };
    Some(Row {
        plain,
        traits: Traits::ENDS_BLOCK,
    })
}

const fn inside(plain: Plain) -> Row {
    Row {
        plain,
        traits: Traits::empty(),
    }
}

impl Cpu {
    /// Sets the six status flags as `outcome` says.
    fn conclude(&mut self, outcome: VmxOutcome) {
        let rflags = outcome.apply(self.rflags());
        self.set_rflags(rflags);
    }

    /// Lets the logical processor work with physical memory at hand.
    fn with_processor<T>(
        &mut self,
        work: impl FnOnce(&mut LogicalProcessor, &mut &PhysMap) -> Result<T, NotExecuted>,
        instruction: Instruction,
        insn: &Insn,
    ) -> Exec<T> {
        let Some((processor, mut memory)) = self.processor_and_memory() else {
            return Err(Exception::UD.into());
        };
        let done = work(processor, &mut memory);
        done.map_err(|e| self.not_executed(e, instruction, insn))
    }

    /// Reads the 64-bit memory operand, whatever the mode.
    fn region_operand(&mut self, insn: &Insn) -> Exec<Hpa> {
        let offset = self.effective_address(insn);
        self.load(insn.memory.segment, offset).map(Hpa)
    }

    /// Reads the 128-bit descriptor of INVEPT and INVVPID.
    fn descriptor_operand(&mut self, insn: &Insn) -> Exec<[u64; 2]> {
        let offset = self.effective_address(insn);
        let segment = insn.memory.segment;
        let low = self.load(segment, offset)?;
        let high = self.load(segment, offset.wrapping_add(8) & address_mask(insn))?;
        Ok([low, high])
    }

    /// Reads a register operand with the width that VMREAD and its like have: 64 bits in 64-bit
    /// mode, else 32.
    fn register_operand(&mut self, insn: &Insn, n: usize) -> Exec<u64> {
        if self.code_bits() == 64 {
            self.read::<u64>(insn, n)
        } else {
            self.read::<u32>(insn, n).map(u64::from)
        }
    }
}

fn address_mask(insn: &Insn) -> u64 {
    crate::mem::access::address_mask(insn.address_bytes)
}

fn vmxon(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_vmx(Instruction::Vmxon, insn)?;
    // In VMX root operation the operand is not read.
    let is_outside = cpu.processor().is_some_and(|p| p.vmxon_pointer().is_none());
    let pointer = if is_outside {
        cpu.region_operand(insn)?
    } else {
        Hpa(0)
    };
    let outcome = cpu.with_processor(
        |p, memory| p.vmxon(pointer, memory),
        Instruction::Vmxon,
        insn,
    )?;
    cpu.conclude(outcome);
    Ok(())
}

fn vmxoff(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_vmx(Instruction::Vmxoff, insn)?;
    let outcome = cpu.with_processor(|p, _| p.vmxoff(), Instruction::Vmxoff, insn)?;
    cpu.conclude(outcome);
    Ok(())
}

fn vmclear(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_vmx(Instruction::Vmclear, insn)?;
    let pointer = cpu.region_operand(insn)?;
    let outcome = cpu.with_processor(
        |p, memory| p.vmclear(pointer, memory),
        Instruction::Vmclear,
        insn,
    )?;
    cpu.conclude(outcome);
    Ok(())
}

fn vmptrld(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_vmx(Instruction::Vmptrld, insn)?;
    let pointer = cpu.region_operand(insn)?;
    let outcome = cpu.with_processor(
        |p, memory| p.vmptrld(pointer, memory),
        Instruction::Vmptrld,
        insn,
    )?;
    cpu.conclude(outcome);
    Ok(())
}

fn vmptrst(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_vmx(Instruction::Vmptrst, insn)?;
    let pointer = cpu.with_processor(|p, _| p.vmptrst(), Instruction::Vmptrst, insn)?;
    let offset = cpu.effective_address(insn);
    cpu.store(insn.memory.segment, offset, pointer.0)?;
    cpu.conclude(VmxOutcome::Succeed);
    Ok(())
}

/// Looks at the shadow bitmaps in VMX non-root operation, then judges the preconditions.
fn check_field_access(
    cpu: &mut Cpu,
    instruction: Instruction,
    insn: &Insn,
    encoding: u64,
) -> Exec<bool> {
    let mut access = ShadowAccess::Exits;
    if cpu.is_non_root() {
        access = cpu.processor().map_or(ShadowAccess::Exits, |p| {
            p.shadow_access(instruction, encoding, &&*cpu.phys)
        });
    }
    cpu.check_vmx_access(instruction, insn, access)?;
    Ok(access == ShadowAccess::Shadowed)
}

/// Whether what [`Cpu::check_vmx`] judges is plain: 64-bit mode, most privileged.
fn is_plain_software(cpu: &Cpu) -> bool {
    cpu.mode() == Mode::Long && cpu.cpl() == 0
}

/// VMREAD and VMWRITE of registers in VMX root operation, as hypervisors execute them all the
/// time; false if nothing was done.
fn try_registers(cpu: &mut Cpu, instruction: Instruction, insn: &Insn) -> bool {
    let (Operand::Register(first), Operand::Register(second)) =
        (insn.operands[0], insn.operands[1])
    else {
        return false;
    };
    if !is_plain_software(cpu) {
        return false;
    }
    let (destination, source) = (cpu.register::<u64>(first), cpu.register::<u64>(second));
    let Some(processor) = cpu.processor_mut() else {
        return false;
    };
    if instruction == Instruction::Vmwrite {
        if !processor.try_vmwrite(destination, source) {
            return false;
        }
    } else {
        let Some(value) = processor.try_vmread(source) else {
            return false;
        };
        cpu.set_register::<u64>(first, value);
    }
    cpu.set_status(Rflags::STATUS, Rflags::empty());
    true
}

fn vmread(cpu: &mut Cpu, insn: &Insn) -> Exec {
    if try_registers(cpu, Instruction::Vmread, insn) {
        return Ok(());
    }
    let encoding = cpu.register_operand(insn, 1)?;
    let is_shadowed = check_field_access(cpu, Instruction::Vmread, insn, encoding)?;
    let read = if is_shadowed {
        let work =
            |p: &mut LogicalProcessor, memory: &mut &PhysMap| Ok(p.shadow_vmread(encoding, memory));
        cpu.with_processor(work, Instruction::Vmread, insn)?
    } else {
        let Some(processor) = cpu.processor_mut() else {
            return Err(Exception::UD.into());
        };
        let read = processor.vmread(encoding);
        read.map_err(|e| cpu.not_executed(e, Instruction::Vmread, insn))?
    };
    match read {
        Vmread::Value(value) if cpu.code_bits() == 64 => cpu.write(insn, 0, value)?,
        Vmread::Value(value) => cpu.write(insn, 0, value as u32)?,
        Vmread::Fail(outcome) => {
            cpu.conclude(outcome);
            return Ok(());
        }
    }
    cpu.conclude(VmxOutcome::Succeed);
    Ok(())
}

fn vmwrite(cpu: &mut Cpu, insn: &Insn) -> Exec {
    if try_registers(cpu, Instruction::Vmwrite, insn) {
        return Ok(());
    }
    let encoding = cpu.register_operand(insn, 0)?;
    let is_shadowed = check_field_access(cpu, Instruction::Vmwrite, insn, encoding)?;
    let target = cpu.processor().map(LogicalProcessor::access_target);
    if let Some(Err(outcome)) = target {
        cpu.conclude(outcome);
        return Ok(());
    }
    let value = cpu.register_operand(insn, 1)?;
    let work = |p: &mut LogicalProcessor, memory: &mut &PhysMap| {
        if is_shadowed {
            Ok(p.shadow_vmwrite(encoding, value, memory))
        } else {
            p.vmwrite(encoding, value)
        }
    };
    let outcome = cpu.with_processor(work, Instruction::Vmwrite, insn)?;
    cpu.conclude(outcome);
    Ok(())
}

fn vmcall(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_vmx(Instruction::Vmcall, insn)?;
    let outcome = cpu.with_processor(|p, _| p.vmcall(), Instruction::Vmcall, insn)?;
    cpu.conclude(outcome);
    Ok(())
}

fn getsec(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_vmx(Instruction::Getsec, insn)?;
    // Outside VMX non-root operation: CPUID does not offer SMX.
    Err(Exception::UD.into())
}

fn invept(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_vmx(Instruction::Invept, insn)?;
    let kind = cpu.register_operand(insn, 0)?;
    let checked = cpu.with_processor(
        |p, _| Ok(p.check_invept_type(kind)),
        Instruction::Invept,
        insn,
    )?;
    if let Err(outcome) = checked {
        cpu.conclude(outcome);
        return Ok(());
    }
    let descriptor = cpu.descriptor_operand(insn)?;
    let judged =
        cpu.with_processor(|p, _| p.invept(kind, descriptor), Instruction::Invept, insn)?;
    invalidate(cpu, judged);
    Ok(())
}

fn invvpid(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_vmx(Instruction::Invvpid, insn)?;
    let kind = cpu.register_operand(insn, 0)?;
    let checked = cpu.with_processor(
        |p, _| Ok(p.check_invvpid_type(kind)),
        Instruction::Invvpid,
        insn,
    )?;
    if let Err(outcome) = checked {
        cpu.conclude(outcome);
        return Ok(());
    }
    let descriptor = cpu.descriptor_operand(insn)?;
    let judged = cpu.with_processor(
        |p, _| p.invvpid(kind, descriptor),
        Instruction::Invvpid,
        insn,
    )?;
    invalidate(cpu, judged);
    Ok(())
}

/// Drops the translations that INVEPT or INVVPID names, or fails.
fn invalidate(cpu: &mut Cpu, judged: Result<Invalidation, VmxOutcome>) {
    match judged {
        Ok(which) => cpu.drop_translations(which),
        Err(outcome) => return cpu.conclude(outcome),
    }
    cpu.conclude(VmxOutcome::Succeed);
}

fn vmlaunch(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_vmx(Instruction::Vmlaunch, insn)?;
    enter(cpu, EntryInstruction::Vmlaunch, insn)
}

fn vmresume(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_vmx(Instruction::Vmresume, insn)?;
    enter(cpu, EntryInstruction::Vmresume, insn)
}

fn enter(cpu: &mut Cpu, instruction: EntryInstruction, insn: &Insn) -> Exec {
    match cpu.vm_entry(instruction) {
        Ok(EntryOutcome::Fail(outcome)) => cpu.conclude(outcome),
        Ok(EntryOutcome::Aborted(abort)) => return Err(cpu.stop(Stop::VmxAbort(abort as u32))),
        // Guest state or, after a failure, host state was loaded.
        Ok(EntryOutcome::Entered(_) | EntryOutcome::Failed(_)) => {
            cpu.next_rip = cpu.state.rip;
            cpu.keep_loaded_blocking();
        }
        Err(answer) => {
            let instruction = match instruction {
                EntryInstruction::Vmlaunch => Instruction::Vmlaunch,
                EntryInstruction::Vmresume => Instruction::Vmresume,
            };
            return Err(cpu.not_executed(answer, instruction, insn));
        }
    }
    Ok(())
}

fn vmfunc(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_vmx(Instruction::Vmfunc, insn)?;
    let (eax, ecx) = (cpu.gpr[0] as u32, cpu.gpr[1] as u32);
    let work = |p: &mut LogicalProcessor, memory: &mut &PhysMap| Ok(p.vmfunc(eax, ecx, memory));
    match cpu.with_processor(work, Instruction::Vmfunc, insn)? {
        Vmfunc::Undefined => Err(Exception::UD.into()),
        Vmfunc::Exit => {
            let reason = NotExecuted::Exit(Instruction::Vmfunc.exit_reason());
            Err(cpu.not_executed(reason, Instruction::Vmfunc, insn))
        }
        Vmfunc::Switched { eptp } => {
            cpu.switch_eptp(eptp);
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use vmx_model::addr::Hpa;
    use vmx_model::arch::Interruptibility;
    use vmx_model::capability::VmxProfile;
    use vmx_model::field::Field;
    use vmx_model::processor::LogicalProcessor;
    use vmx_model::registry::{CpuId, VmcsRegistry};

    use crate::test_cpu::{CODE, long_mode};
    use crate::vmx::RootSoftware;

    #[test]
    fn in_64_bit_mode_vmwrite_and_vmread_move_64_bits() {
        let mut cpu = long_mode();
        let profile = Arc::new(VmxProfile::emulator_default());
        let (vmxon, vmcs) = (Hpa(0x1_8000), Hpa(0x1_9000));
        for region in [vmxon, vmcs] {
            let revision = profile.caps.revision_id().to_le_bytes();
            cpu.phys.write_bytes(region, &revision);
        }
        let mut p = LogicalProcessor::new(CpuId(0), profile, VmcsRegistry::new());
        let mut memory = &*cpu.phys;
        assert!(p.vmxon(vmxon, &memory).expect("executed").is_success());
        assert!(p.vmclear(vmcs, &mut memory).expect("executed").is_success());
        assert!(p.vmptrld(vmcs, &memory).expect("executed").is_success());
        let _ = cpu.attach_processor(Box::new(p), RootSoftware::Guest);
        // VMWRITE RAX, RBX; VMREAD RCX, RAX.
        let code = [0x0f, 0x79, 0xc3, 0x0f, 0x78, 0xc1];
        cpu.phys.write_bytes(Hpa(CODE), &code);
        cpu.gpr[0] = u64::from(Field::TSC_OFFSET.encoding());
        cpu.gpr[3] = 0x0123_4567_89ab_cdef;
        cpu.execute_plain().expect("VMWRITE");
        cpu.execute_plain().expect("VMREAD");
        assert_eq!(cpu.gpr[1], 0x0123_4567_89ab_cdef);
    }

    #[test]
    fn blocking_that_vm_entry_loads_lasts_for_the_first_instruction_of_the_guest() {
        let mut cpu = long_mode();
        for blocking in [Interruptibility::STI, Interruptibility::MOV_SS] {
            cpu.state.interruptibility = blocking;
            cpu.keep_loaded_blocking();
            // VMLAUNCH completes, then the guest's instruction.
            cpu.commit_shadow();
            assert_eq!(cpu.state.interruptibility, blocking);
            cpu.commit_shadow();
            assert!(cpu.state.interruptibility.is_empty());
        }
    }
}
