//! Near control transfers: JMP, CALL, RET, LOOPcc, JrCXZ; BOUND (SDM Vol. 1, "Control Transfer
//! Instructions").
//!
//! Intel processors ignore the operand-size prefix of near branches in 64-bit mode: the operand
//! size is 64 bits; the decoder reports it so.

use iced_x86::{Code, Mnemonic};
use vmx_model::arch::{Rflags, SegmentRegister};
use vmx_model::event::{Exception, vector};

use super::Row;
use super::form::{ending, operand_bytes};
use crate::cet::Cp;
use crate::insn::{Insn, Operand, Plain};
use crate::mem::access::address_mask;
use crate::mode::Mode;
use crate::width::Width;
use crate::{Cpu, Exec};

/// Returns the row of a near control transfer.
pub(crate) fn lookup(code: Code) -> Option<Row> {
    let is_near = code.is_jmp_short_or_near()
        || code.is_jmp_near_indirect()
        || code.is_call_near()
        || code.is_call_near_indirect();
    let handler: Plain = match code.mnemonic() {
        Mnemonic::Jmp if is_near => by_bytes(code, [jmp::<u16>, jmp::<u32>, jmp::<u64>]),
        Mnemonic::Call if is_near => by_bytes(code, [call::<u16>, call::<u32>, call::<u64>]),
        Mnemonic::Ret => by_bytes(code, [ret::<u16>, ret::<u32>, ret::<u64>]),
        Mnemonic::Loop => r#loop,
        Mnemonic::Loope => loope,
        Mnemonic::Loopne => loopne,
        Mnemonic::Jcxz | Mnemonic::Jecxz | Mnemonic::Jrcxz => jrcxz,
        Mnemonic::Bound => match operand_bytes(code, 0) {
            Some(2) => bound::<u16>,
            _ => bound::<u32>,
        },
        _ => return None,
    };
    ending(handler)
}

fn by_bytes(code: Code, handlers: [Plain; 3]) -> Plain {
    match code.op_code().operand_size() {
        16 => handlers[0],
        32 => handlers[1],
        _ => handlers[2],
    }
}

/// Makes `target` the next instruction: #GP(0) if it is not canonical (64-bit mode) or beyond the
/// limit of CS.
pub(crate) fn jump_to(cpu: &mut Cpu, target: u64) -> Exec {
    check_target(cpu, target)?;
    cpu.next_rip = target;
    Ok(())
}

fn check_target(cpu: &Cpu, target: u64) -> Exec {
    let inside = if cpu.mode() == Mode::Long {
        cpu.is_canonical(target)
    } else {
        target <= u64::from(cpu.state.segment(SegmentRegister::Cs).limit)
    };
    if inside {
        Ok(())
    } else {
        Err(Exception::gp(0).into())
    }
}

/// JMP, near: relative, or to the address in a register or memory.
pub(crate) fn jmp<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let target = cpu.read::<W>(insn, 0)?.to_u64();
    jump_to(cpu, target)?;
    if !is_direct(insn) {
        cpu.track_near(insn.is_no_track);
    }
    Ok(())
}

fn is_direct(insn: &Insn) -> bool {
    matches!(insn.operands[0], Operand::Branch(_))
}

/// CALL, near: relative, or to the address in a register or memory.
pub(crate) fn call<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let target = cpu.read::<W>(insn, 0)?.to_u64();
    check_target(cpu, target)?;
    // A call of the next instruction reads RIP: it will not return.
    let is_pushed = !is_direct(insn) || target != cpu.next_rip;
    if is_pushed && cpu.has_shadow_stack() {
        push_both::<W>(cpu)?;
    } else {
        cpu.push(W::from_u64(cpu.next_rip))?;
    }
    cpu.next_rip = target;
    if !is_direct(insn) {
        cpu.track_near(insn.is_no_track);
    }
    Ok(())
}

/// Returns the size of a return address on the shadow stack: that of IP is padded.
fn shadow_bytes<W: Width>() -> usize {
    W::BYTES.max(4)
}

/// Pushes the return address on the stack and on the shadow stack, or on neither.
fn push_both<W: Width>(cpu: &mut Cpu) -> Exec {
    let value = W::from_u64(cpu.next_rip);
    let (bytes, level) = (shadow_bytes::<W>(), cpu.cpl());
    let top = cpu.stack_offset((W::BYTES as u64).wrapping_neg());
    cpu.check_store_to::<W>(SegmentRegister::Ss, top)?;
    let ssp = cpu.shadow_offset(cpu.state.ssp, (bytes as u64).wrapping_neg());
    cpu.check_shadow_store(ssp, bytes, level)?;
    cpu.push(value)?;
    cpu.store_shadow(ssp, value.to_u64(), bytes, level)?;
    cpu.state.ssp = ssp;
    Ok(())
}

/// Pops the return address from the shadow stack: #CP(NEAR-RET) if it is not `target`.
fn pop_shadow<W: Width>(cpu: &mut Cpu, target: u64) -> Exec {
    let (ssp, bytes) = (cpu.state.ssp, shadow_bytes::<W>());
    if cpu.load_shadow(ssp, bytes, cpu.cpl())? != target {
        return Err(Cp::NearRet.into());
    }
    cpu.state.ssp = cpu.shadow_offset(ssp, bytes as u64);
    Ok(())
}

/// RET, near: pops the return address, then releases the bytes that the immediate tells.
pub(crate) fn ret<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let target = cpu.peek::<W>(0)?.to_u64();
    check_target(cpu, target)?;
    if cpu.has_shadow_stack() {
        pop_shadow::<W>(cpu, target)?;
    }
    cpu.next_rip = target;
    let release = cpu.read::<u16>(insn, 0).unwrap_or(0);
    cpu.release_stack(W::BYTES as u64 + u64::from(release));
    Ok(())
}

/// LOOP.
pub(crate) fn r#loop(cpu: &mut Cpu, insn: &Insn) -> Exec {
    loop_if(cpu, insn, true)
}

/// LOOPE.
pub(crate) fn loope(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let equal = cpu.rflags().contains(Rflags::ZF);
    loop_if(cpu, insn, equal)
}

/// LOOPNE.
pub(crate) fn loopne(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let equal = cpu.rflags().contains(Rflags::ZF);
    loop_if(cpu, insn, !equal)
}

/// Decrements CX, ECX or RCX by the address size, and jumps if it is not 0 and `condition` holds.
fn loop_if(cpu: &mut Cpu, insn: &Insn, condition: bool) -> Exec {
    let count = cpu.counter(insn).wrapping_sub(1) & address_mask(insn.address_bytes);
    if condition && count != 0 {
        let target = cpu.read(insn, 0)?;
        jump_to(cpu, target)?;
    }
    cpu.set_counter(insn, count);
    Ok(())
}

/// JCXZ, JECXZ, JRCXZ, by the address size.
pub(crate) fn jrcxz(cpu: &mut Cpu, insn: &Insn) -> Exec {
    if cpu.counter(insn) != 0 {
        return Ok(());
    }
    let target = cpu.read(insn, 0)?;
    jump_to(cpu, target)
}

/// BOUND: #BR if the signed index is below the first or above the second word in memory.
pub(crate) fn bound<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let index = cpu.read::<W>(insn, 0)?.to_i64();
    let offset = cpu.effective_address(insn);
    let second = offset.wrapping_add(W::BYTES as u64) & address_mask(insn.address_bytes);
    let lower = cpu.load::<W>(insn.memory.segment, offset)?.to_i64();
    let upper = cpu.load::<W>(insn.memory.segment, second)?.to_i64();
    if index < lower || index > upper {
        return Err(Exception::plain(vector::BR).into());
    }
    Ok(())
}

impl Cpu {
    /// Returns CX, ECX or RCX, by the address size of `insn`.
    pub(crate) fn counter(&self, insn: &Insn) -> u64 {
        self.address_register(1, insn.address_bytes)
    }

    /// Sets CX, ECX or RCX, by the address size of `insn`.
    pub(crate) fn set_counter(&mut self, insn: &Insn, value: u64) {
        self.set_address_register(1, insn.address_bytes, value);
    }

    /// Returns general-purpose register `number` at a width of `bytes`: 2, 4 or 8.
    pub(crate) fn address_register(&self, number: u8, bytes: u8) -> u64 {
        self.gpr[usize::from(number & 15)] & address_mask(bytes)
    }

    /// Sets general-purpose register `number` at a width of `bytes`: 2, 4 or 8.
    pub(crate) fn set_address_register(&mut self, number: u8, bytes: u8, value: u64) {
        let offset = (number & 15) * 8;
        match bytes {
            2 => self.set_register(offset, value as u16),
            4 => self.set_register(offset, value as u32),
            _ => self.set_register(offset, value),
        }
    }
}
