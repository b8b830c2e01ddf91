//! User-level waiting: UMONITOR, UMWAIT, TPAUSE.
//!
//! SDM Vol. 2: the instructions; Vol. 3C, "Changes to Instruction Behavior in VMX Non-Root
//! Operation".

use iced_x86::{Code, Mnemonic};
use vmx_model::arch::{Cr4, Rflags, SegmentRegister};
use vmx_model::event::Exception;
use vmx_model::intercept::Instruction;

use super::{Row, Traits};
use crate::insn::{Insn, Operand, Plain};
use crate::mem::{Access, Privilege};
use crate::vmx::info;
use crate::{Cpu, Exec};

/// Returns who executes an instruction of this file.
pub(crate) fn lookup(code: Code) -> Option<Row> {
    let plain: Plain = match code.mnemonic() {
        Mnemonic::Umonitor => umonitor,
        Mnemonic::Umwait => umwait,
        Mnemonic::Tpause => tpause,
        _ => return None,
    };
    Some(Row {
        plain,
        traits: Traits::empty(),
    })
}

/// UMONITOR: a byte load from DS:operand.
fn umonitor(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.require_enabled(Instruction::Umonitor)?;
    let Operand::Register(register) = insn.operands[0] else {
        return Err(Exception::UD.into());
    };
    let mask = crate::mem::access::address_mask(insn.address_bytes);
    let offset = cpu.register::<u64>(register) & mask;
    let segment = match insn.memory.segment {
        SegmentRegister::Es => SegmentRegister::Ds,
        other => other,
    };
    let linear = cpu.linear(segment, offset, 1, Access::Read)?;
    cpu.translate(linear, Access::Read, Privilege::Current)?;
    Ok(())
}

/// UMWAIT.
fn umwait(cpu: &mut Cpu, insn: &Insn) -> Exec {
    wait(cpu, insn, Instruction::Umwait)
}

/// TPAUSE.
fn tpause(cpu: &mut Cpu, insn: &Insn) -> Exec {
    wait(cpu, insn, Instruction::Tpause)
}

/// Choice: the wait is over at once, as if another event had ended it; that is always allowed. CF
/// is 0: it was not the operating system's time limit.
fn wait(cpu: &mut Cpu, insn: &Insn, instruction: Instruction) -> Exec {
    cpu.require_enabled(instruction)?;
    if cpu.state.cr4.contains(Cr4::TSD) {
        cpu.require_cpl0()?;
    }
    cpu.ask_about(instruction, insn, 0, info::random(insn))?;
    let state = cpu.read::<u32>(insn, 0)?;
    if state & !1 != 0 {
        return Err(Exception::gp(0).into());
    }
    cpu.set_status(Rflags::STATUS, Rflags::empty());
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::cpuid::Profile;
    use crate::test_cpu::{DATA, GP, UD, execute, long_mode, user};
    use vmx_model::arch::{Cr4, Rflags};

    const UMONITOR_RDI: [u8; 4] = [0xf3, 0x0f, 0xae, 0xf7];
    const UMWAIT_ECX: [u8; 4] = [0xf2, 0x0f, 0xae, 0xf1];
    const TPAUSE_ECX: [u8; 4] = [0x66, 0x0f, 0xae, 0xf1];

    #[test]
    fn a_wait_ends_at_once_and_clears_the_status_flags() {
        for code in [UMWAIT_ECX, TPAUSE_ECX] {
            let mut cpu = long_mode();
            cpu.set_rflags(Rflags::FIXED1 | Rflags::STATUS);
            assert_eq!(execute(&mut cpu, &code), Ok(()));
            assert_eq!(cpu.rflags(), Rflags::FIXED1);
            cpu.gpr[1] = 2;
            assert_eq!(execute(&mut cpu, &code), GP, "a reserved bit");
            let mut cpu = user(cpu);
            cpu.gpr[1] = 0;
            assert_eq!(execute(&mut cpu, &code), Ok(()));
            cpu.state.cr4 |= Cr4::TSD;
            assert_eq!(execute(&mut cpu, &code), GP, "CR4.TSD");
        }
    }

    #[test]
    fn without_waitpkg_they_are_undefined() {
        for code in [UMONITOR_RDI, UMWAIT_ECX, TPAUSE_ECX] {
            let mut cpu = long_mode();
            cpu.set_cpuid(Profile::DEFAULT.table());
            cpu.gpr[7] = DATA;
            assert_eq!(execute(&mut cpu, &code), UD);
        }
    }

    #[test]
    fn umonitor_faults_as_a_read_does() {
        let mut cpu = long_mode();
        cpu.gpr[7] = DATA;
        assert_eq!(execute(&mut cpu, &UMONITOR_RDI), Ok(()));
        cpu.gpr[7] = 1 << 63;
        assert_eq!(execute(&mut cpu, &UMONITOR_RDI), GP);
    }
}
