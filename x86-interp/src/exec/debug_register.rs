//! Debug registers: MOV DR.
//!
//! SDM Vol. 2, "MOV-Move to/from Debug Registers"; Vol. 3B, "Debug Registers".

use crate::vmx::info;
use iced_x86::Code;
use vmx_model::arch::Cr4;
use vmx_model::event::Exception;
use vmx_model::intercept::Instruction;
use vmx_model::intercept::control_register::{Direction, mov_dr_qualification};

use super::{Row, Traits};
use crate::insn::{Insn, Operand, Plain};
use crate::system::{DR6_FIXED1, DR7_FIXED1};
use crate::{Cpu, Exec};

/// General-detect enable.
const DR7_GD: u64 = 1 << 13;
/// The L and G bits of the four breakpoints.
const DR7_ENABLES: u64 = 0xff;
/// Bits of DR7 that can be changed: those of the four breakpoints, LE, GE, GD.
const DR7_WRITABLE: u64 = 0xffff_23ff;
/// Bits of DR6 that can be changed: B0 to B3, BD, BS, BT.
const DR6_WRITABLE: u64 = 0xe00f;
/// BD in the payload of #DB.
const DEBUG_REGISTER_ACCESS: u64 = 1 << 13;

/// Returns who executes an instruction of this file.
pub(crate) fn lookup(code: Code) -> Option<Row> {
    let (plain, traits): (Plain, Traits) = match code {
        Code::Mov_r32_dr | Code::Mov_r64_dr => (mov_from_dr, Traits::empty()),
        Code::Mov_dr_r32 | Code::Mov_dr_r64 => (mov_to_dr, Traits::ENDS_BLOCK),
        _ => return None,
    };
    Some(Row { plain, traits })
}

/// MOV from DR0 to DR7.
fn mov_from_dr(cpu: &mut Cpu, insn: &Insn) -> Exec {
    ask(cpu, insn, Direction::From)?;
    let number = debug_register(cpu, insn.operands[1])?;
    let value = match number {
        6 => cpu.system.dr6,
        7 => cpu.state.dr7,
        n => cpu.system.breakpoints[usize::from(n)],
    };
    cpu.write_native(insn, 0, value)
}

/// MOV to DR0 to DR7.
fn mov_to_dr(cpu: &mut Cpu, insn: &Insn) -> Exec {
    ask(cpu, insn, Direction::To)?;
    let number = debug_register(cpu, insn.operands[0])?;
    let value = cpu.read_native(insn, 1)?;
    if number >= 6 && value >> 32 != 0 {
        return Err(Exception::gp(0).into());
    }
    let was_enabled = cpu.state.dr7 & DR7_ENABLES != 0;
    match number {
        6 => cpu.system.dr6 = value & DR6_WRITABLE | DR6_FIXED1,
        7 => cpu.state.dr7 = value & DR7_WRITABLE | DR7_FIXED1,
        n => cpu.system.breakpoints[usize::from(n)] = value,
    }
    if number != 6 && (was_enabled || cpu.state.dr7 & DR7_ENABLES != 0) {
        // Pages with watchpoints have no fast translations.
        cpu.flush_tlb_all();
    }
    Ok(())
}

/// Asks whether MOV DR leaves the guest: this comes before every fault of the instruction (SDM
/// Vol. 3C, "Relative Priority of Faults and VM Exits" has it as the exception).
fn ask(cpu: &mut Cpu, insn: &Insn, direction: Direction) -> Exec {
    if !cpu.is_non_root() {
        return Ok(());
    }
    let (register, gpr) = match direction {
        Direction::To => (insn.operands[0], insn.operands[1]),
        Direction::From => (insn.operands[1], insn.operands[0]),
    };
    let Operand::Debug(number) = register else {
        return Ok(());
    };
    let gpr = info::register_number(gpr) as u8;
    let qualification = mov_dr_qualification(number, direction, gpr);
    cpu.ask_about(Instruction::MovDr, insn, qualification, 0)
}

/// Returns the number of the register behind an operand: DR4 and DR5 are other names of DR6 and
/// DR7 unless CR4.DE is set. #UD, #GP(0), #DB (general detect), in this order.
fn debug_register(cpu: &Cpu, operand: Operand) -> Exec<u8> {
    let number = match operand {
        Operand::Debug(n @ (4 | 5)) if !cpu.state.cr4.contains(Cr4::DE) => n + 2,
        Operand::Debug(n @ (0..=3 | 6 | 7)) => n,
        _ => return Err(Exception::UD.into()),
    };
    cpu.require_cpl0()?;
    if cpu.state.dr7 & DR7_GD != 0 {
        return Err(Exception::db(DEBUG_REGISTER_ACCESS).into());
    }
    Ok(number)
}

#[cfg(test)]
mod tests;
