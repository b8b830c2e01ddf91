//! Rights to data: STAC, CLAC, RDPKRU, WRPKRU.
//!
//! SDM Vol. 2: the instructions; Vol. 3A, "Determination of Access Rights", "Protection Keys".

use iced_x86::{Code, Mnemonic};
use vmx_model::arch::{Cr4, Rflags};
use vmx_model::event::Exception;

use super::{Row, Traits};
use crate::insn::{Insn, Plain};
use crate::{Cpu, Exec};

/// Returns who executes an instruction of this file.
pub(crate) fn lookup(code: Code) -> Option<Row> {
    let (plain, traits): (Plain, Traits) = match code.mnemonic() {
        Mnemonic::Stac => (stac, Traits::ENDS_BLOCK),
        Mnemonic::Clac => (clac, Traits::ENDS_BLOCK),
        Mnemonic::Rdpkru => (rdpkru, Traits::empty()),
        Mnemonic::Wrpkru => (wrpkru, Traits::ENDS_BLOCK),
        _ => return None,
    };
    Some(Row { plain, traits })
}

/// STAC.
fn stac(cpu: &mut Cpu, _: &Insn) -> Exec {
    set_ac(cpu, true)
}

/// CLAC.
fn clac(cpu: &mut Cpu, _: &Insn) -> Exec {
    set_ac(cpu, false)
}

/// #UD unless the CPL is 0.
fn set_ac(cpu: &mut Cpu, value: bool) -> Exec {
    if cpu.require_cpl0().is_err() {
        return Err(Exception::UD.into());
    }
    let mut rflags = cpu.rflags();
    rflags.set(Rflags::AC, value);
    cpu.set_rflags(rflags);
    Ok(())
}

/// RDPKRU.
fn rdpkru(cpu: &mut Cpu, _: &Insn) -> Exec {
    require_pke(cpu)?;
    if cpu.gpr[1] as u32 != 0 {
        return Err(Exception::gp(0).into());
    }
    cpu.set_edx_eax(u64::from(cpu.system.pkru));
    Ok(())
}

/// WRPKRU.
fn wrpkru(cpu: &mut Cpu, _: &Insn) -> Exec {
    require_pke(cpu)?;
    if cpu.gpr[1] as u32 != 0 || cpu.gpr[2] as u32 != 0 {
        return Err(Exception::gp(0).into());
    }
    cpu.write_pkru(cpu.gpr[0] as u32);
    Ok(())
}

/// #UD unless CR4.PKE is set.
fn require_pke(cpu: &Cpu) -> Exec {
    if cpu.state.cr4.contains(Cr4::PKE) {
        return Ok(());
    }
    Err(Exception::UD.into())
}

impl Cpu {
    /// Loads PKRU; cached translations follow.
    pub(crate) fn write_pkru(&mut self, value: u32) {
        if self.system.pkru != value {
            self.system.pkru = value;
            self.flush_tlb_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use vmx_model::arch::{Cr4, Rflags};

    use crate::test_cpu::{GP, UD, execute, long_mode, user};

    const STAC: [u8; 3] = [0x0f, 0x01, 0xcb];
    const CLAC: [u8; 3] = [0x0f, 0x01, 0xca];
    const RDPKRU: [u8; 3] = [0x0f, 0x01, 0xee];
    const WRPKRU: [u8; 3] = [0x0f, 0x01, 0xef];

    #[test]
    fn stac_and_clac_are_for_supervisors() {
        let mut cpu = long_mode();
        assert_eq!(execute(&mut cpu, &STAC), Ok(()));
        assert!(cpu.rflags().contains(Rflags::AC));
        assert_eq!(execute(&mut cpu, &CLAC), Ok(()));
        assert!(!cpu.rflags().contains(Rflags::AC));
        assert_eq!(execute(&mut user(cpu), &STAC), UD);
    }

    #[test]
    fn pkru_needs_pke_and_zeros() {
        let mut cpu = user(long_mode());
        assert_eq!(execute(&mut cpu, &RDPKRU), UD);
        assert_eq!(execute(&mut cpu, &WRPKRU), UD);
        cpu.state.cr4 |= Cr4::PKE;
        (cpu.gpr[0], cpu.gpr[1], cpu.gpr[2]) = (0x1234_5678, 0, 0);
        assert_eq!(execute(&mut cpu, &WRPKRU), Ok(()));
        (cpu.gpr[0], cpu.gpr[2]) = (u64::MAX, u64::MAX);
        assert_eq!(execute(&mut cpu, &WRPKRU), GP);
        assert_eq!(execute(&mut cpu, &RDPKRU), Ok(()));
        assert_eq!((cpu.gpr[0], cpu.gpr[2]), (0x1234_5678, 0));
        cpu.gpr[1] = 1;
        assert_eq!(execute(&mut cpu, &RDPKRU), GP);
        assert_eq!(execute(&mut cpu, &WRPKRU), GP);
    }
}
