//! Model-specific registers: RDMSR, WRMSR.
//!
//! SDM Vol. 2: the instructions. The registers are in [`crate::msr`].

use iced_x86::{Code, Mnemonic};

use super::{Row, Traits};
use crate::insn::{Insn, Plain};
use crate::{Cpu, Exec};

/// Returns who executes an instruction of this file.
pub(crate) fn lookup(code: Code) -> Option<Row> {
    let (plain, traits): (Plain, Traits) = match code.mnemonic() {
        Mnemonic::Rdmsr => (rdmsr, Traits::empty()),
        Mnemonic::Wrmsr => (wrmsr, Traits::ENDS_BLOCK | Traits::OUTSIDE),
        _ => return None,
    };
    Some(Row { plain, traits })
}

/// RDMSR.
fn rdmsr(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.require_cpl0()?;
    cpu.ask_about_rdmsr(cpu.gpr[1] as u32, insn)?;
    let index = cpu.gpr[1] as u32;
    let value = match cpu.read_virtual_x2apic(index) {
        Some(value) => value,
        None => cpu.read_msr(index)?,
    };
    cpu.set_edx_eax(value);
    Ok(())
}

/// WRMSR.
fn wrmsr(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.require_cpl0()?;
    cpu.ask_about_wrmsr(cpu.gpr[1] as u32, insn)?;
    let (index, value) = (cpu.gpr[1] as u32, cpu.edx_eax());
    if cpu.write_virtual_x2apic(index, value)? {
        return Ok(());
    }
    cpu.write_msr(index, value)
}
