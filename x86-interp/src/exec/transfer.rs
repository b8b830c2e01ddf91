//! Data transfer: SDM Vol. 1, "Data Transfer Instructions", and LEA, XLAT.

use iced_x86::{Code, Mnemonic, OpCodeOperandKind};
use vmx_model::arch::{Rflags, SegmentRegister};
use vmx_model::event::Exception;

use super::Row;
use super::form::{by_operand, by_operand_size, operand_bytes, plain, sized};
use crate::insn::{Insn, Operand, Plain};
use crate::mem::access::address_mask;
use crate::mem::{Access, Privilege};
use crate::width::Width;
use crate::{Cpu, Exec, alu};

/// Returns the row of a data transfer instruction.
pub(crate) fn lookup(code: Code) -> Option<Row> {
    let handlers = match code.mnemonic() {
        Mnemonic::Mov => return mov_row(code),
        Mnemonic::Movnti | Mnemonic::Movdiri => sized!(mov),
        Mnemonic::Movdir64b => return plain(movdir64b),
        Mnemonic::Movzx => return extension_row(code, MOVZX),
        Mnemonic::Movsx | Mnemonic::Movsxd => return extension_row(code, MOVSX),
        Mnemonic::Xchg => sized!(xchg),
        Mnemonic::Xadd => sized!(xadd),
        Mnemonic::Cmpxchg => sized!(cmpxchg),
        Mnemonic::Cmpxchg8b => return plain(cmpxchg8b),
        Mnemonic::Cmpxchg16b => return plain(cmpxchg16b),
        Mnemonic::Lea => sized!(lea),
        Mnemonic::Xlatb => return plain(xlat),
        Mnemonic::Cbw => return plain(cbw::<u8, u16>),
        Mnemonic::Cwde => return plain(cbw::<u16, u32>),
        Mnemonic::Cdqe => return plain(cbw::<u32, u64>),
        Mnemonic::Cwd => return plain(cwd::<u16>),
        Mnemonic::Cdq => return plain(cwd::<u32>),
        Mnemonic::Cqo => return plain(cwd::<u64>),
        _ => return None,
    };
    by_operand(code, 0, handlers)
}

/// MOV between general-purpose registers, memory and immediates, and from a segment register.
fn mov_row(code: Code) -> Option<Row> {
    match code.op_code().op_kind(1) {
        OpCodeOperandKind::seg_reg => by_operand_size(code, SELECTOR),
        _ => {
            operand_bytes(code, 0)?;
            let both_known = operand_bytes(code, 1).is_some() || code.op_code().op_count() == 2;
            let special = is_special(code, 0) || is_special(code, 1);
            if !both_known || special {
                return None;
            }
            by_operand(code, 0, sized!(mov))
        }
    }
}

fn is_special(code: Code, n: u32) -> bool {
    matches!(
        code.op_code().op_kind(n),
        OpCodeOperandKind::cr_reg
            | OpCodeOperandKind::dr_reg
            | OpCodeOperandKind::tr_reg
            | OpCodeOperandKind::seg_reg
    )
}

const SELECTOR: [Plain; 3] = [
    mov_from_segment::<u16>,
    mov_from_segment::<u32>,
    mov_from_segment::<u64>,
];

/// Handlers by source (8, 16, 32 bits) and destination (16, 32, 64 bits).
type Extensions = [[Plain; 3]; 3];

const MOVZX: Extensions = [
    [movzx::<u8, u16>, movzx::<u8, u32>, movzx::<u8, u64>],
    [movzx::<u16, u16>, movzx::<u16, u32>, movzx::<u16, u64>],
    [movzx::<u32, u16>, movzx::<u32, u32>, movzx::<u32, u64>],
];
const MOVSX: Extensions = [
    [movsx::<u8, u16>, movsx::<u8, u32>, movsx::<u8, u64>],
    [movsx::<u16, u16>, movsx::<u16, u32>, movsx::<u16, u64>],
    [movsx::<u32, u16>, movsx::<u32, u32>, movsx::<u32, u64>],
];

fn extension_row(code: Code, handlers: Extensions) -> Option<Row> {
    // MOVSXD r16, r/m16: the source has the size of the destination.
    let destination = operand_bytes(code, 0)?.ilog2() as usize;
    let source = operand_bytes(code, 1)?.ilog2() as usize;
    plain(*handlers.get(source)?.get(destination.checked_sub(1)?)?)
}

/// MOVDIR64B: 64 bytes to ES:register, a multiple of 64 or #GP(0).
fn movdir64b(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let Operand::Register(register) = insn.operands[0] else {
        return Err(Exception::UD.into());
    };
    let offset = cpu.address_register(register / 8, insn.address_bytes);
    let to = cpu.linear(SegmentRegister::Es, offset, 64, Access::Write)?;
    if to.0 % 64 != 0 {
        return Err(Exception::gp(0).into());
    }
    let mut bytes = [0; 64];
    cpu.load_operand(insn, &mut bytes)?;
    cpu.store_bytes_linear(to, &bytes, Privilege::Current)
}

/// MOV, MOVNTI, MOVDIRI.
pub(crate) fn mov<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let value = cpu.read::<W>(insn, 1)?;
    cpu.write(insn, 0, value)
}

/// MOV from a segment register: 16 bits to memory, zero-extended to a register.
pub(crate) fn mov_from_segment<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let selector = cpu.read::<u16>(insn, 1)?;
    if let Operand::Memory = insn.operands[0] {
        return cpu.write(insn, 0, selector);
    }
    cpu.write(insn, 0, W::from_u64(u64::from(selector)))
}

/// MOVZX.
pub(crate) fn movzx<S: Width, D: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let value = cpu.read::<S>(insn, 1)?;
    cpu.write(insn, 0, D::from_u64(value.to_u64()))
}

/// MOVSX, MOVSXD.
pub(crate) fn movsx<S: Width, D: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let value = cpu.read::<S>(insn, 1)?;
    cpu.write(insn, 0, D::from_u64(value.to_i64() as u64))
}

/// XCHG. With a memory operand it is atomic, with or without LOCK.
pub(crate) fn xchg<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let (memory, register) = match insn.operands[0] {
        Operand::Memory => (0, 1),
        _ => (1, 0),
    };
    let new = cpu.read::<W>(insn, register)?;
    let old = cpu.exchange(insn, memory, new)?;
    cpu.write(insn, register, old)
}

/// XADD: the destination gets the sum, the source the old destination.
pub(crate) fn xadd<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let b = cpu.read::<W>(insn, 1)?;
    let (old, sum, flags) = cpu.update::<W, _>(insn, 0, |a| {
        let (sum, flags) = alu::add::add(a, b, false);
        (sum, (a, sum, flags))
    })?;
    cpu.write(insn, 1, old)?;
    if insn.operands[0] == insn.operands[1] {
        cpu.write(insn, 0, sum)?;
    }
    cpu.set_status(Rflags::STATUS, flags);
    Ok(())
}

/// CMPXCHG. Memory is written in any case: with its old value if the comparison fails.
pub(crate) fn cmpxchg<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let new = cpu.read::<W>(insn, 1)?;
    let accumulator = cpu.register::<W>(0);
    let choose = |old| if old == accumulator { new } else { old };
    let old = if let Operand::Memory = insn.operands[0] {
        cpu.update::<W, _>(insn, 0, |old| (choose(old), old))?
    } else {
        let old = cpu.read::<W>(insn, 0)?;
        if old == accumulator {
            cpu.write(insn, 0, new)?;
        }
        old
    };
    if old != accumulator {
        cpu.set_register(0, old);
    }
    cpu.set_status(Rflags::STATUS, alu::add::sub(accumulator, old, false).1);
    Ok(())
}

/// CMPXCHG8B: EDX:EAX, ECX:EBX. Only ZF changes.
pub(crate) fn cmpxchg8b(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let pair = |cpu: &Cpu, high: u8, low: u8| {
        u64::from(cpu.register::<u32>(high * 8)) << 32 | u64::from(cpu.register::<u32>(low * 8))
    };
    let (expected, new) = (pair(cpu, 2, 0), pair(cpu, 1, 3));
    let old = cpu.update::<u64, _>(insn, 0, |old| {
        (if old == expected { new } else { old }, old)
    })?;
    if old != expected {
        cpu.set_register(0, old as u32);
        cpu.set_register(2 * 8, (old >> 32) as u32);
    }
    set_zero(cpu, old == expected);
    Ok(())
}

/// CMPXCHG16B: RDX:RAX, RCX:RBX; #GP(0) unless the operand is aligned to 16 bytes. Only ZF
/// changes.
pub(crate) fn cmpxchg16b(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let pair = |cpu: &Cpu, high: usize, low: usize| {
        u128::from(cpu.gpr[high]) << 64 | u128::from(cpu.gpr[low])
    };
    let (expected, new) = (pair(cpu, 2, 0), pair(cpu, 1, 3));
    let old = cpu.compare_exchange_16(insn, expected, new)?;
    if old != expected {
        cpu.gpr[0] = old as u64;
        cpu.gpr[2] = (old >> 64) as u64;
    }
    set_zero(cpu, old == expected);
    Ok(())
}

fn set_zero(cpu: &mut Cpu, zero: bool) {
    cpu.set_status(Rflags::ZF, alu::flag_if(Rflags::ZF, zero));
}

/// LEA: #UD with a register operand.
pub(crate) fn lea<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let Operand::Memory = insn.operands[1] else {
        return Err(Exception::UD.into());
    };
    let offset = cpu.effective_address(insn);
    cpu.write(insn, 0, W::from_u64(offset))
}

/// XLAT: AL indexes a table at BX, EBX or RBX.
pub(crate) fn xlat(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let index = u64::from(cpu.register::<u8>(0));
    let offset = cpu.gpr[3].wrapping_add(index) & address_mask(insn.address_bytes);
    let value = cpu.load::<u8>(insn.memory.segment, offset)?;
    cpu.set_register(0, value);
    Ok(())
}

/// CBW, CWDE, CDQE.
pub(crate) fn cbw<S: Width, D: Width>(cpu: &mut Cpu, _: &Insn) -> Exec {
    let value = cpu.register::<S>(0).to_i64();
    cpu.set_register(0, D::from_u64(value as u64));
    Ok(())
}

/// CWD, CDQ, CQO.
pub(crate) fn cwd<W: Width>(cpu: &mut Cpu, _: &Insn) -> Exec {
    let sign = if alu::sign(cpu.register::<W>(0)) {
        W::MASK
    } else {
        0
    };
    cpu.set_register(2 * 8, W::from_u64(sign));
    Ok(())
}

#[cfg(test)]
mod tests {
    use vmx_model::addr::Hpa;

    use crate::test_cpu::{DATA, GP, execute, long_mode};

    /// SDM Vol. 2, "MOVDIR64B". No processor at hand executes it: the manual is the oracle.
    #[test]
    fn movdir64b_stores_64_aligned_bytes_from_anywhere() {
        // MOVDIR64B RAX, [RBX].
        let code = [0x66, 0x0f, 0x38, 0xf8, 0x03];
        let mut cpu = long_mode();
        let from: [u8; 64] = core::array::from_fn(|n| n as u8 + 1);
        cpu.phys.write_bytes(Hpa(DATA + 3), &from);
        (cpu.gpr[0], cpu.gpr[3]) = (DATA + 0x100, DATA + 3);
        assert_eq!(execute(&mut cpu, &code), Ok(()));
        let mut to = [0; 64];
        cpu.phys.read_bytes(Hpa(DATA + 0x100), &mut to);
        assert_eq!(to, from);
        cpu.gpr[0] = DATA + 0x120;
        assert_eq!(execute(&mut cpu, &code), GP);
    }
}
