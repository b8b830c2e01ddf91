//! Shadow-stack management, and ENDBRANCH.
//!
//! SDM Vol. 2: INCSSPD/INCSSPQ, RDSSPD/RDSSPQ, SAVEPREVSSP, RSTORSSP, WRSSD/WRSSQ, WRUSSD/WRUSSQ,
//! SETSSBSY, CLRSSBSY, ENDBR32, ENDBR64; Vol. 1, "Shadow Stack Management Instructions", "Switching
//! Shadow Stacks". RDSSP and ENDBRANCH lie in the NOP space: they do nothing where CET is not in use.

use iced_x86::{Code, Mnemonic};
use vmx_model::addr::Linear;
use vmx_model::arch::{Cr0, Cr4, Rflags};
use vmx_model::event::Exception;

use super::Row;
use super::form::{ending, plain};
use crate::cet::{CetControl, Cp};
use crate::insn::{Insn, Plain};
use crate::mem::Access;
use crate::mode::Mode;
use crate::width::Width;
use crate::{Cpu, Exec};

/// Bit 1 of the token that RSTORSSP leaves: it is a previous-SSP token.
const PREVIOUS: u64 = 1 << 1;

/// Returns the row of an instruction of this file.
pub(crate) fn lookup(code: Code) -> Option<Row> {
    let handler: Plain = match code.mnemonic() {
        Mnemonic::Endbr32 => return plain(endbr32),
        Mnemonic::Endbr64 => return plain(endbr64),
        Mnemonic::Rdsspd => return plain(rdssp::<u32>),
        Mnemonic::Rdsspq => return plain(rdssp::<u64>),
        Mnemonic::Incsspd => return plain(incssp::<u32>),
        Mnemonic::Incsspq => return plain(incssp::<u64>),
        Mnemonic::Wrssd => wrss::<u32>,
        Mnemonic::Wrssq => wrss::<u64>,
        Mnemonic::Wrussd => wruss::<u32>,
        Mnemonic::Wrussq => wruss::<u64>,
        Mnemonic::Saveprevssp => saveprevssp,
        Mnemonic::Rstorssp => rstorssp,
        Mnemonic::Setssbsy => setssbsy,
        Mnemonic::Clrssbsy => clrssbsy,
        _ => return None,
    };
    ending(handler)
}

/// ENDBR32: ends an indirect branch in legacy and compatibility mode.
fn endbr32(cpu: &mut Cpu, _: &Insn) -> Exec {
    if cpu.mode() != Mode::Long {
        cpu.end_branch();
    }
    Ok(())
}

/// ENDBR64: ends an indirect branch in 64-bit mode.
fn endbr64(cpu: &mut Cpu, _: &Insn) -> Exec {
    if cpu.mode() == Mode::Long {
        cpu.end_branch();
    }
    Ok(())
}

/// RDSSPD, RDSSPQ: SSP, if shadow stacks are in use at CPL.
fn rdssp<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    if !cpu.has_shadow_stack() {
        return Ok(());
    }
    cpu.write(insn, 0, W::from_u64(cpu.state.ssp))
}

/// INCSSPD, INCSSPQ: pops as many elements as the low byte of the register says; the first and the
/// last one are read.
fn incssp<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    require_shadow_stack(cpu)?;
    let count = u64::from(cpu.read::<W>(insn, 0)?.to_u64() as u8);
    let (ssp, level) = (cpu.state.ssp, cpu.cpl());
    let at = |cpu: &Cpu, n: u64| cpu.shadow_offset(ssp, n * W::BYTES as u64);
    cpu.load_shadow(ssp, W::BYTES, level)?;
    if count > 0 {
        let last = at(cpu, count - 1);
        cpu.load_shadow(last, W::BYTES, level)?;
    }
    cpu.state.ssp = at(cpu, count);
    Ok(())
}

/// WRSSD, WRSSQ: a store to a shadow stack of CPL.
fn wrss<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    if !cpu.cet().contains(CetControl::SHADOW_STACK) {
        return Err(Exception::UD.into());
    }
    let level = cpu.cpl();
    store::<W>(cpu, insn, level)
}

/// WRUSSD, WRUSSQ: a store to a user shadow stack, by level 0.
fn wruss<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let has_protection = cpu.state.cr0.contains(Cr0::PE) && cpu.mode() != Mode::Virtual8086;
    if !cpu.state.cr4.contains(Cr4::CET) || !has_protection {
        return Err(Exception::UD.into());
    }
    cpu.require_cpl0()?;
    store::<W>(cpu, insn, 3)
}

fn store<W: Width>(cpu: &mut Cpu, insn: &Insn, level: u8) -> Exec {
    let at = aligned(cpu, insn, W::BYTES, Access::Write)?;
    let value = cpu.read::<W>(insn, 1)?.to_u64();
    cpu.store_shadow(at.0, value, W::BYTES, level)
}

/// RSTORSSP: replaces the restore token at the operand by a previous-SSP token, and goes on with
/// that shadow stack.
fn rstorssp(cpu: &mut Cpu, insn: &Insn) -> Exec {
    require_shadow_stack(cpu)?;
    let at = aligned(cpu, insn, 8, Access::Write)?.0;
    let is_long = u64::from(cpu.mode() == Mode::Long);
    let previous = cpu.state.ssp | is_long | PREVIOUS;
    let is_restore_token = |token: u64| {
        let ssp = token & !1;
        token & 3 == is_long && (is_long != 0 || token >> 32 == 0) && ssp.wrapping_sub(8) & !7 == at
    };
    let token = cpu.update_shadow(at, cpu.cpl(), |token| {
        is_restore_token(token).then_some(previous)
    })?;
    if !is_restore_token(token) {
        return Err(Cp::Rstorssp.into());
    }
    cpu.state.ssp = at;
    // There is an alignment hole below the SSP of the token.
    set_carry(cpu, token & 4 != 0);
    Ok(())
}

/// SAVEPREVSSP: pops the previous-SSP token, and the alignment hole that CF tells of; pushes a
/// restore token on the shadow stack that the popped token names.
fn saveprevssp(cpu: &mut Cpu, _: &Insn) -> Exec {
    require_shadow_stack(cpu)?;
    let gp: Exec = Err(Exception::gp(0).into());
    let (ssp, level) = (cpu.state.ssp, cpu.cpl());
    let is_long = cpu.mode() == Mode::Long;
    if ssp & 7 != 0 {
        return gp;
    }
    let token = cpu.load_shadow(ssp, 8, level)?;
    let mut after = cpu.shadow_offset(ssp, 8);
    if cpu.rflags().contains(Rflags::CF) {
        // A hole is left by 32-bit code only.
        if is_long || cpu.load_shadow(after, 4, level)? != 0 {
            return gp;
        }
        after = cpu.shadow_offset(after, 4);
    }
    if token & PREVIOUS == 0 || !is_long && token >> 32 != 0 {
        return gp;
    }
    let old = token & !3;
    let hole = cpu.shadow_offset(old, 4_u64.wrapping_neg());
    let place = cpu.shadow_offset(old & !7, 8_u64.wrapping_neg());
    cpu.check_shadow_store(hole, 4, level)?;
    cpu.check_shadow_store(place, 8, level)?;
    cpu.store_shadow(hole, 0, 4, level)?;
    cpu.store_shadow(place, old | u64::from(is_long), 8, level)?;
    cpu.state.ssp = after;
    Ok(())
}

/// SETSSBSY: sets the busy bit of the token at IA32_PL0_SSP, and goes on with that shadow stack.
fn setssbsy(cpu: &mut Cpu, _: &Insn) -> Exec {
    require_supervisor_shadow_stack(cpu)?;
    let ssp = cpu.msrs.pl_ssp[0];
    if ssp & 7 != 0 {
        return Err(Exception::gp(0).into());
    }
    if !cpu.set_token_busy(ssp, 0)? {
        return Err(Cp::Setssbsy.into());
    }
    cpu.state.ssp = ssp;
    Ok(())
}

/// CLRSSBSY: clears the busy bit of the token at the operand; CF tells that it is no such token.
fn clrssbsy(cpu: &mut Cpu, insn: &Insn) -> Exec {
    require_supervisor_shadow_stack(cpu)?;
    let at = aligned(cpu, insn, 8, Access::Write)?;
    let is_cleared = cpu.clear_token_busy(at.0, 0)?;
    set_carry(cpu, !is_cleared);
    cpu.state.ssp = 0;
    Ok(())
}

/// #UD unless shadow stacks are in use at CPL.
fn require_shadow_stack(cpu: &Cpu) -> Exec {
    if cpu.has_shadow_stack() {
        Ok(())
    } else {
        Err(Exception::UD.into())
    }
}

/// #UD unless supervisor shadow stacks are enabled, #GP(0) unless CPL is 0.
fn require_supervisor_shadow_stack(cpu: &Cpu) -> Exec {
    let is_virtual = cpu.mode() == Mode::Virtual8086;
    if is_virtual || !cpu.has_shadow_stack_at(0) {
        return Err(Exception::UD.into());
    }
    cpu.require_cpl0()
}

/// Returns the linear address of the memory operand: #GP(0) unless it is aligned to its size.
fn aligned(cpu: &Cpu, insn: &Insn, bytes: usize, access: Access) -> Exec<Linear> {
    let linear = cpu.operand_linear(insn, bytes, access)?;
    if linear.0 & (bytes as u64 - 1) != 0 {
        return Err(Exception::gp(0).into());
    }
    Ok(linear)
}

/// Sets CF, and clears the other status flags.
fn set_carry(cpu: &mut Cpu, carry: bool) {
    let flags = if carry { Rflags::CF } else { Rflags::empty() };
    cpu.set_status(Rflags::STATUS, flags);
}
