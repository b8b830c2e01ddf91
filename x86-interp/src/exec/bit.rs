//! Bit test, bit scan, byte swap, BMI, CRC32: SDM Vol. 1, "Bit and Byte Instructions" and "Bit
//! Manipulation Instructions (BMI1 and BMI2)".

use iced_x86::{Code, EncodingKind, Mnemonic};
use vmx_model::arch::Rflags;

use super::Row;
use super::form::{by_operand, sized};
use crate::alu::bits::{self, BitOp};
use crate::alu::{crc32 as crc, extract};
use crate::insn::{Insn, Operand};
use crate::mem::access::address_mask;
use crate::width::Width;
use crate::{Cpu, Exec, alu};

/// Returns the row of a bit instruction.
pub(crate) fn lookup(code: Code) -> Option<Row> {
    if code.encoding() == EncodingKind::XOP {
        return None;
    }
    let (operand, handlers) = match code.mnemonic() {
        Mnemonic::Bt => (0, sized!(bt)),
        Mnemonic::Bts => (0, sized!(bts)),
        Mnemonic::Btr => (0, sized!(btr)),
        Mnemonic::Btc => (0, sized!(btc)),
        Mnemonic::Bsf => (0, sized!(bsf)),
        Mnemonic::Bsr => (0, sized!(bsr)),
        Mnemonic::Tzcnt => (0, sized!(tzcnt)),
        Mnemonic::Lzcnt => (0, sized!(lzcnt)),
        Mnemonic::Popcnt => (0, sized!(popcnt)),
        Mnemonic::Bswap => (0, sized!(bswap)),
        Mnemonic::Movbe => (0, sized!(movbe)),
        Mnemonic::Crc32 => (1, sized!(crc32)),
        Mnemonic::Bextr => (0, sized!(bextr)),
        Mnemonic::Bzhi => (0, sized!(bzhi)),
        Mnemonic::Blsi => (0, sized!(blsi)),
        Mnemonic::Blsmsk => (0, sized!(blsmsk)),
        Mnemonic::Blsr => (0, sized!(blsr)),
        Mnemonic::Mulx => (0, sized!(mulx)),
        Mnemonic::Pdep => (0, sized!(pdep)),
        Mnemonic::Pext => (0, sized!(pext)),
        _ => return None,
    };
    by_operand(code, operand, handlers)
}

/// Returns the bit index, and the offset of the unit of memory that holds the bit: a bit index in
/// a register reaches beyond the operand, by its signed quotient; an immediate does not.
fn bit_place<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec<(u64, u64)> {
    let offset = cpu.effective_address(insn);
    let index = cpu.read::<W>(insn, 1)?;
    let Operand::Register(_) = insn.operands[1] else {
        return Ok((index.to_u64(), offset));
    };
    let units = index.to_i64() >> W::BITS.trailing_zeros();
    let distance = units.wrapping_mul(W::BYTES as i64) as u64;
    let mask = address_mask(insn.address_bytes);
    Ok((index.to_u64(), offset.wrapping_add(distance) & mask))
}

/// BT. Only CF changes.
pub(crate) fn bt<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let (index, value) = if let Operand::Memory = insn.operands[0] {
        let (index, offset) = bit_place::<W>(cpu, insn)?;
        (index, cpu.load::<W>(insn.memory.segment, offset)?)
    } else {
        let index = cpu.read::<W>(insn, 1)?.to_u64();
        (index, cpu.read::<W>(insn, 0)?)
    };
    set_carry(cpu, bits::test(value, index));
    Ok(())
}

/// BTS.
pub(crate) fn bts<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    test_and_change::<W>(cpu, insn, BitOp::Set)
}

/// BTR.
pub(crate) fn btr<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    test_and_change::<W>(cpu, insn, BitOp::Reset)
}

/// BTC.
pub(crate) fn btc<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    test_and_change::<W>(cpu, insn, BitOp::Complement)
}

fn test_and_change<W: Width>(cpu: &mut Cpu, insn: &Insn, op: BitOp) -> Exec {
    let carry = if let Operand::Memory = insn.operands[0] {
        let (index, offset) = bit_place::<W>(cpu, insn)?;
        cpu.update_at::<W, _>(insn, offset, |a| {
            (bits::change(a, index, op), bits::test(a, index))
        })?
    } else {
        let index = cpu.read::<W>(insn, 1)?.to_u64();
        cpu.update::<W, _>(insn, 0, |a| {
            (bits::change(a, index, op), bits::test(a, index))
        })?
    };
    set_carry(cpu, carry);
    Ok(())
}

fn set_carry(cpu: &mut Cpu, carry: bool) {
    cpu.set_status(Rflags::CF, alu::flag_if(Rflags::CF, carry));
}

/// BSF.
pub(crate) fn bsf<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    scan::<W>(cpu, insn, bits::bsf)
}

/// BSR.
pub(crate) fn bsr<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    scan::<W>(cpu, insn, bits::bsr)
}

/// If the source is 0, only ZF changes, and the destination stays as a whole.
fn scan<W: Width>(cpu: &mut Cpu, insn: &Insn, f: fn(W) -> Option<W>) -> Exec {
    let source = cpu.read::<W>(insn, 1)?;
    let Some(index) = f(source) else {
        cpu.set_status(Rflags::ZF, Rflags::ZF);
        return Ok(());
    };
    cpu.write(insn, 0, index)?;
    cpu.set_status(Rflags::STATUS, bits::scan_flags(index));
    Ok(())
}

/// Writes `f` of operand 1 to operand 0, and all status flags.
fn unary<W: Width>(cpu: &mut Cpu, insn: &Insn, f: fn(W) -> (W, Rflags)) -> Exec {
    let (result, flags) = f(cpu.read(insn, 1)?);
    cpu.write(insn, 0, result)?;
    cpu.set_status(Rflags::STATUS, flags);
    Ok(())
}

/// Writes `f` of operands 1 and 2 to operand 0, and all status flags.
fn binary<W: Width>(cpu: &mut Cpu, insn: &Insn, f: fn(W, W) -> (W, Rflags)) -> Exec {
    let (a, b) = (cpu.read(insn, 1)?, cpu.read(insn, 2)?);
    let (result, flags) = f(a, b);
    cpu.write(insn, 0, result)?;
    cpu.set_status(Rflags::STATUS, flags);
    Ok(())
}

/// TZCNT.
pub(crate) fn tzcnt<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    unary::<W>(cpu, insn, bits::tzcnt)
}

/// LZCNT.
pub(crate) fn lzcnt<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    unary::<W>(cpu, insn, bits::lzcnt)
}

/// POPCNT.
pub(crate) fn popcnt<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    unary::<W>(cpu, insn, bits::popcnt)
}

/// BLSI (BMI1).
pub(crate) fn blsi<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    unary::<W>(cpu, insn, extract::blsi)
}

/// BLSMSK (BMI1).
pub(crate) fn blsmsk<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    unary::<W>(cpu, insn, extract::blsmsk)
}

/// BLSR (BMI1).
pub(crate) fn blsr<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    unary::<W>(cpu, insn, extract::blsr)
}

/// BEXTR (BMI1).
pub(crate) fn bextr<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    binary::<W>(cpu, insn, extract::bextr)
}

/// BZHI (BMI2).
pub(crate) fn bzhi<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    binary::<W>(cpu, insn, extract::bzhi)
}

/// PDEP (BMI2): no flag changes.
pub(crate) fn pdep<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let (a, mask) = (cpu.read::<W>(insn, 1)?, cpu.read(insn, 2)?);
    cpu.write(insn, 0, extract::pdep(a, mask))
}

/// PEXT (BMI2): no flag changes.
pub(crate) fn pext<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let (a, mask) = (cpu.read::<W>(insn, 1)?, cpu.read(insn, 2)?);
    cpu.write(insn, 0, extract::pext(a, mask))
}

/// MULX (BMI2): RDX times operand 2; the lower half goes to operand 1, then the upper half to
/// operand 0. No flag changes.
pub(crate) fn mulx<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let b = cpu.read::<W>(insn, 2)?;
    let (low, high, _) = alu::multiply::mul(cpu.register(2 * 8), b);
    cpu.write(insn, 1, low)?;
    cpu.write(insn, 0, high)
}

/// BSWAP. The SDM leaves the 16-bit form undefined; Intel processors clear the register's 16 bits.
pub(crate) fn bswap<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let a = cpu.read::<W>(insn, 0)?;
    let result = if W::BITS == 16 {
        W::default()
    } else {
        bits::bswap(a)
    };
    cpu.write(insn, 0, result)
}

/// MOVBE: a move that reverses the bytes.
pub(crate) fn movbe<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let value = cpu.read::<W>(insn, 1)?;
    cpu.write(insn, 0, bits::bswap(value))
}

/// CRC32: accumulates operand 1 into the low 32 bits of operand 0 and clears the others.
pub(crate) fn crc32<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let data = cpu.read::<W>(insn, 1)?;
    let accumulator = cpu.read::<u32>(insn, 0)?;
    cpu.write(insn, 0, crc::crc32(accumulator, data))
}
