//! Time, identity and random numbers: RDTSC, RDTSCP, RDPMC, RDPID, RDRAND, RDSEED.
//!
//! SDM Vol. 2: the instructions; Vol. 3B, "Time-Stamp Counter", "Invariant TSC".

use crate::vmx::info;
use iced_x86::{Code, Mnemonic};
use vmx_model::arch::{Cr4, Rflags};
use vmx_model::event::Exception;
use vmx_model::intercept::Instruction;
use vmx_model::intercept::time::guest_tsc;

use super::{Row, Traits};
use crate::insn::{Insn, Plain};
use crate::{Cpu, Exec};

/// Returns who executes an instruction of this file.
pub(crate) fn lookup(code: Code) -> Option<Row> {
    let (plain, traits): (Plain, Traits) = match code.mnemonic() {
        Mnemonic::Rdtsc => (rdtsc, Traits::empty()),
        Mnemonic::Rdtscp => (rdtscp, Traits::empty()),
        Mnemonic::Rdpmc => (rdpmc, Traits::empty()),
        Mnemonic::Rdpid => (rdpid, Traits::empty()),
        Mnemonic::Rdrand | Mnemonic::Rdseed => (random, Traits::empty()),
        _ => return None,
    };
    Some(Row { plain, traits })
}

/// RDTSC.
fn rdtsc(cpu: &mut Cpu, insn: &Insn) -> Exec {
    check_tsd(cpu)?;
    cpu.ask(Instruction::Rdtsc, insn)?;
    let tsc = cpu.tsc();
    cpu.set_edx_eax(tsc);
    Ok(())
}

/// RDTSCP.
fn rdtscp(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.require_enabled(Instruction::Rdtscp)?;
    check_tsd(cpu)?;
    cpu.ask(Instruction::Rdtscp, insn)?;
    let tsc = cpu.tsc();
    cpu.set_edx_eax(tsc);
    cpu.gpr[1] = cpu.msrs.tsc_aux & 0xffff_ffff;
    Ok(())
}

/// #GP(0) if CR4.TSD is set and the CPL is not 0.
fn check_tsd(cpu: &Cpu) -> Exec {
    if cpu.state.cr4.contains(Cr4::TSD) {
        cpu.require_cpl0()?;
    }
    Ok(())
}

/// RDPMC: there is no performance counter, so ECX never names one.
fn rdpmc(cpu: &mut Cpu, insn: &Insn) -> Exec {
    if !cpu.state.cr4.contains(Cr4::PCE) {
        cpu.require_cpl0()?;
    }
    cpu.ask(Instruction::Rdpmc, insn)?;
    Err(Exception::gp(0).into())
}

/// RDPID.
fn rdpid(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.require_enabled(Instruction::Rdtscp)?;
    let value = cpu.msrs.tsc_aux & 0xffff_ffff;
    cpu.write_native(insn, 0, value)
}

/// RDRAND and RDSEED: a number from a seeded generator, always there.
fn random(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let instruction = match insn.code.mnemonic() {
        Mnemonic::Rdrand => Instruction::Rdrand,
        _ => Instruction::Rdseed,
    };
    cpu.ask_about(instruction, insn, 0, info::random(insn))?;
    let value = cpu.system.next_random();
    match insn.operand_bytes {
        2 => cpu.write(insn, 0, value as u16)?,
        4 => cpu.write(insn, 0, value as u32)?,
        _ => cpu.write(insn, 0, value)?,
    }
    cpu.set_status(Rflags::STATUS, Rflags::CF);
    Ok(())
}

impl Cpu {
    /// Returns the time-stamp counter.
    pub(crate) fn tsc(&mut self) -> u64 {
        let counter = self.clock.tsc(self.retired);
        let tsc = counter.wrapping_add(self.msrs.tsc_offset);
        self.guest_vmcs().map_or(tsc, |vmcs| guest_tsc(vmcs, tsc))
    }
}

#[cfg(test)]
mod tests {
    use vmx_model::arch::{Cr4, Rflags};

    use crate::test_cpu::{GP, execute, long_mode, user};

    #[test]
    fn rdtsc_counts_instructions_under_the_instruction_clock() {
        let mut cpu = long_mode();
        cpu.msrs.tsc_offset = 0x1_0000_0000;
        cpu.msrs.tsc_aux = 42;
        let mut seen = vec![];
        for _ in 0..3 {
            execute(&mut cpu, &[0x0f, 0x01, 0xf9]).expect("RDTSCP is there");
            seen.push((cpu.gpr[2], cpu.gpr[0], cpu.gpr[1]));
        }
        assert_eq!(seen, [(1, 0, 42), (1, 1, 42), (1, 2, 42)]);
    }

    #[test]
    fn tsd_is_for_user_mode() {
        let mut cpu = long_mode();
        cpu.state.cr4 |= Cr4::TSD;
        assert_eq!(execute(&mut cpu, &[0x0f, 0x31]), Ok(()));
        assert_eq!(execute(&mut user(cpu), &[0x0f, 0x31]), GP);
        assert_eq!(execute(&mut user(long_mode()), &[0x0f, 0x31]), Ok(()));
        assert_eq!(execute(&mut long_mode(), &[0x0f, 0x33]), GP);
    }

    #[test]
    fn random_numbers_come_in_all_sizes_and_repeat() {
        let draw = || {
            let mut cpu = long_mode();
            cpu.gpr[0] = 0;
            cpu.set_rflags(Rflags::STATUS);
            execute(&mut cpu, &[0x66, 0x0f, 0xc7, 0xf0]).expect("RDRAND AX");
            let word = cpu.gpr[0];
            assert_eq!(cpu.rflags() & Rflags::STATUS, Rflags::CF);
            execute(&mut cpu, &[0x48, 0x0f, 0xc7, 0xf8]).expect("RDSEED RAX");
            (word, cpu.gpr[0])
        };
        assert_eq!(draw(), draw());
        assert!(draw().0 < 1 << 16);
        assert_ne!(draw().0, draw().1 & 0xffff);
    }
}
