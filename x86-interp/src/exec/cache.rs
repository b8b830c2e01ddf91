//! Caches, ordering, waiting: WBINVD, INVD, WBNOINVD, CLFLUSH, CLFLUSHOPT, CLWB, CLDEMOTE, LFENCE,
//! SFENCE, MFENCE, SERIALIZE, PAUSE; and RSM, which is undefined outside SMM.
//!
//! SDM Vol. 2: the instructions. There is no cache to flush; what these instructions check, they
//! check.

use std::sync::atomic::{Ordering, fence};
use vmx_model::intercept::Instruction;

use iced_x86::{Code, Mnemonic};
use vmx_model::event::Exception;

use super::{Row, Traits};
use crate::insn::{Insn, Plain};
use crate::mem::{Access, Privilege};
use crate::{Cpu, Exec};

/// Returns who executes an instruction of this file.
pub(crate) fn lookup(code: Code) -> Option<Row> {
    let (plain, traits): (Plain, Traits) = match code.mnemonic() {
        Mnemonic::Wbinvd | Mnemonic::Invd | Mnemonic::Wbnoinvd => (wbinvd, Traits::OUTSIDE),
        Mnemonic::Clflush | Mnemonic::Clflushopt | Mnemonic::Clwb => (clflush, Traits::empty()),
        Mnemonic::Cldemote => (nothing, Traits::empty()),
        Mnemonic::Pause => (pause, Traits::empty()),
        Mnemonic::Lfence | Mnemonic::Sfence | Mnemonic::Mfence => (mfence, Traits::empty()),
        Mnemonic::Serialize => (mfence, Traits::OUTSIDE),
        Mnemonic::Rsm => (rsm, Traits::ENDS_BLOCK),
        _ => return None,
    };
    let ends = if traits.contains(Traits::OUTSIDE) {
        Traits::ENDS_BLOCK
    } else {
        Traits::empty()
    };
    Some(Row {
        plain,
        traits: traits | ends,
    })
}

/// WBINVD, INVD, WBNOINVD.
fn wbinvd(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.require_cpl0()?;
    match insn.code.mnemonic() {
        Mnemonic::Invd => cpu.ask(Instruction::Invd, insn),
        _ => cpu.ask(Instruction::Wbinvd, insn),
    }
}

/// CLFLUSH, CLFLUSHOPT, CLWB: "permission checking as a byte load".
fn clflush(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let linear = cpu.operand_linear(insn, 1, Access::Read)?;
    cpu.translate(linear, Access::Read, Privilege::Current)?;
    Ok(())
}

/// CLDEMOTE: a hint.
fn nothing(_: &mut Cpu, _: &Insn) -> Exec {
    Ok(())
}

/// PAUSE: a hint, but in VMX non-root operation perhaps a VM exit.
fn pause(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.ask_about_pause(insn)
}

/// MFENCE, LFENCE, SFENCE, SERIALIZE: later accesses of this processor come after earlier ones,
/// also as other processors, which are other host threads, see them.
fn mfence(_: &mut Cpu, _: &Insn) -> Exec {
    fence(Ordering::SeqCst);
    Ok(())
}

/// RSM: there is no SMM.
fn rsm(_: &mut Cpu, _: &Insn) -> Exec {
    Err(Exception::UD.into())
}

#[cfg(test)]
mod tests {
    use crate::test_cpu::{DATA, GP, UD, execute, long_mode, user};
    use crate::{Exec, Fault};
    use vmx_model::event::{Exception, vector};

    #[test]
    fn privileged_ones_fault_in_user_mode() {
        let rows: &[(&str, &[u8], Exec)] = &[
            ("WBINVD", &[0x0f, 0x09], GP),
            ("INVD", &[0x0f, 0x08], GP),
            ("MFENCE", &[0x0f, 0xae, 0xf0], Ok(())),
            ("PAUSE", &[0xf3, 0x90], Ok(())),
        ];
        for (name, code, expected) in rows {
            let mut cpu = long_mode();
            cpu.gpr[0] = DATA;
            assert_eq!(execute(&mut cpu, code), Ok(()), "{name}");
            assert_eq!(execute(&mut user(cpu), code), *expected, "{name}");
        }
        assert_eq!(execute(&mut long_mode(), &[0x0f, 0xaa]), UD, "RSM");
    }

    #[test]
    fn clflush_faults_as_a_load() {
        let mut cpu = long_mode();
        cpu.gpr[0] = 1 << 40;
        let result = execute(&mut cpu, &[0x0f, 0xae, 0x38]);
        let Err(Fault::Exception(Exception {
            vector, payload, ..
        })) = result
        else {
            panic!("{result:?}");
        };
        assert_eq!((vector, payload), (vector::PF, 1 << 40));
    }
}
