//! MMX (SDM Vol. 1, "Programming with Intel MMX Technology"): the registers are the significands of
//! the x87 registers. Each instruction but EMMS makes TOP 0 and all registers valid, and fills the
//! exponent of what it writes with ones.
//!
//! A function of values works on 128 bits, of which the low 64 count.

use iced_x86::Code;

use super::immediate;
use super::integer::{multiply_add_bytes, multiply_add_words, selector, sum_of_differences};
use super::lanes::{Lane, build, compare, get, horizontal, map, pack, unpack, zip};
use super::vector::Elements;
use crate::exec::Row;
use crate::exec::form::plain;
use crate::insn::{Insn, Operand, Plain};
use crate::{Cpu, Exec};

/// Returns who executes an instruction of this file.
#[rustfmt::skip]
pub(crate) fn lookup(code: Code) -> Option<Row> {
    use Code as C;
    let handler: Plain = match code {
        C::Movd_mm_rm32 => |cpu, insn| load(cpu, insn, 4),
        C::Movq_mm_rm64 | C::Movq_mm_mmm64 => |cpu, insn| load(cpu, insn, 8),
        C::Movd_rm32_mm => store::<u32>,
        C::Movq_rm64_mm | C::Movq_mmm64_mm | C::Movntq_m64_mm => store::<u64>,
        C::Movq2dq_xmm_mm => movq2dq,
        C::Movdq2q_mm_xmm => movdq2q,
        C::Pshufw_mm_mmm64_imm8 => pshufw,
        C::Palignr_mm_mmm64_imm8 => palignr,
        C::Pinsrw_mm_r32m16_imm8 | C::Pinsrw_mm_r64m16_imm8 => pinsrw,
        C::Pextrw_r32_mm_imm8 | C::Pextrw_r64_mm_imm8 => pextrw,
        C::Pmovmskb_r32_mm | C::Pmovmskb_r64_mm => pmovmskb,
        C::Maskmovq_rDI_mm_mm => maskmovq,
        _ if function(code).is_some() => binary,
        _ if shift(code).is_some() => shifted,
        _ => return None,
    };
    plain(handler)
}

type Function = fn(u128, u128) -> u128;

/// Both operands side by side: what the 128-bit form does with one of them.
const fn beside(a: u128, b: u128) -> u128 {
    a | b << 64
}

fn mean<L: Lane + Into<u32>>(a: u128, b: u128) -> u128 {
    zip(a, b, |x: L, y: L| {
        let sum: u32 = x.into() + y.into();
        L::take(u128::from(sum.div_ceil(2)))
    })
}

/// Returns what an instruction makes of its two operands.
#[rustfmt::skip]
fn function(code: Code) -> Option<Function> {
    use Code as C;
    Some(match code {
        C::Paddb_mm_mmm64 => |a, b| zip(a, b, u8::wrapping_add),
        C::Paddw_mm_mmm64 => |a, b| zip(a, b, u16::wrapping_add),
        C::Paddd_mm_mmm64 => |a, b| zip(a, b, u32::wrapping_add),
        C::Paddq_mm_mmm64 => |a, b| zip(a, b, u64::wrapping_add),
        C::Psubb_mm_mmm64 => |a, b| zip(a, b, u8::wrapping_sub),
        C::Psubw_mm_mmm64 => |a, b| zip(a, b, u16::wrapping_sub),
        C::Psubd_mm_mmm64 => |a, b| zip(a, b, u32::wrapping_sub),
        C::Psubq_mm_mmm64 => |a, b| zip(a, b, u64::wrapping_sub),
        C::Paddsb_mm_mmm64 => |a, b| zip(a, b, i8::saturating_add),
        C::Paddsw_mm_mmm64 => |a, b| zip(a, b, i16::saturating_add),
        C::Paddusb_mm_mmm64 => |a, b| zip(a, b, u8::saturating_add),
        C::Paddusw_mm_mmm64 => |a, b| zip(a, b, u16::saturating_add),
        C::Psubsb_mm_mmm64 => |a, b| zip(a, b, i8::saturating_sub),
        C::Psubsw_mm_mmm64 => |a, b| zip(a, b, i16::saturating_sub),
        C::Psubusb_mm_mmm64 => |a, b| zip(a, b, u8::saturating_sub),
        C::Psubusw_mm_mmm64 => |a, b| zip(a, b, u16::saturating_sub),
        C::Pavgb_mm_mmm64 => mean::<u8>,
        C::Pavgw_mm_mmm64 => mean::<u16>,
        C::Pmullw_mm_mmm64 => |a, b| zip(a, b, u16::wrapping_mul),
        C::Pmulhw_mm_mmm64 => |a, b| zip(a, b, |x: i16, y: i16| ((i32::from(x) * i32::from(y)) >> 16) as i16),
        C::Pmulhuw_mm_mmm64 => |a, b| zip(a, b, |x: u16, y: u16| ((u32::from(x) * u32::from(y)) >> 16) as u16),
        C::Pmulhrsw_mm_mmm64 => |a, b| zip(a, b, |x: i16, y: i16| ((((i32::from(x) * i32::from(y)) >> 14) + 1) >> 1) as i16),
        C::Pmuludq_mm_mmm64 => |a, b| zip(a, b, |x: u64, y: u64| (x & 0xffff_ffff) * (y & 0xffff_ffff)),
        C::Pmaddwd_mm_mmm64 => |a, b| build(2, |n| multiply_add_words(a, b, n)),
        C::Pmaddubsw_mm_mmm64 => |a, b| build(4, |n| multiply_add_bytes(a, b, n)),
        C::Psadbw_mm_mmm64 => |a, b| build(1, |n| sum_of_differences(a, b, n)),
        C::Phaddw_mm_mmm64 => |a, b| horizontal(beside(a, b), 0, u16::wrapping_add),
        C::Phaddd_mm_mmm64 => |a, b| horizontal(beside(a, b), 0, u32::wrapping_add),
        C::Phaddsw_mm_mmm64 => |a, b| horizontal(beside(a, b), 0, i16::saturating_add),
        C::Phsubw_mm_mmm64 => |a, b| horizontal(beside(a, b), 0, u16::wrapping_sub),
        C::Phsubd_mm_mmm64 => |a, b| horizontal(beside(a, b), 0, u32::wrapping_sub),
        C::Phsubsw_mm_mmm64 => |a, b| horizontal(beside(a, b), 0, i16::saturating_sub),
        C::Pabsb_mm_mmm64 => |_, b| map(b, i8::wrapping_abs),
        C::Pabsw_mm_mmm64 => |_, b| map(b, i16::wrapping_abs),
        C::Pabsd_mm_mmm64 => |_, b| map(b, i32::wrapping_abs),
        C::Psignb_mm_mmm64 => |a, b| zip(a, b, |x: i8, y: i8| x.wrapping_mul(y.signum())),
        C::Psignw_mm_mmm64 => |a, b| zip(a, b, |x: i16, y: i16| x.wrapping_mul(y.signum())),
        C::Psignd_mm_mmm64 => |a, b| zip(a, b, |x: i32, y: i32| x.wrapping_mul(y.signum())),
        C::Pcmpeqb_mm_mmm64 => |a, b| compare(a, b, |x: u8, y| x == y),
        C::Pcmpeqw_mm_mmm64 => |a, b| compare(a, b, |x: u16, y| x == y),
        C::Pcmpeqd_mm_mmm64 => |a, b| compare(a, b, |x: u32, y| x == y),
        C::Pcmpgtb_mm_mmm64 => |a, b| compare(a, b, |x: i8, y| x > y),
        C::Pcmpgtw_mm_mmm64 => |a, b| compare(a, b, |x: i16, y| x > y),
        C::Pcmpgtd_mm_mmm64 => |a, b| compare(a, b, |x: i32, y| x > y),
        C::Pmaxub_mm_mmm64 => |a, b| zip(a, b, |x: u8, y| x.max(y)),
        C::Pmaxsw_mm_mmm64 => |a, b| zip(a, b, |x: i16, y| x.max(y)),
        C::Pminub_mm_mmm64 => |a, b| zip(a, b, |x: u8, y| x.min(y)),
        C::Pminsw_mm_mmm64 => |a, b| zip(a, b, |x: i16, y| x.min(y)),
        C::Punpcklbw_mm_mmm32 => |a, b| unpack::<u8>(a, b, 0),
        C::Punpcklwd_mm_mmm32 => |a, b| unpack::<u16>(a, b, 0),
        C::Punpckldq_mm_mmm32 => |a, b| unpack::<u32>(a, b, 0),
        C::Punpckhbw_mm_mmm64 => |a, b| unpack::<u8>(a, b, 0) >> 64,
        C::Punpckhwd_mm_mmm64 => |a, b| unpack::<u16>(a, b, 0) >> 64,
        C::Punpckhdq_mm_mmm64 => |a, b| unpack::<u32>(a, b, 0) >> 64,
        C::Packsswb_mm_mmm64 => |a, b| pack(beside(a, b), 0, |x: i16| x.clamp(-0x80, 0x7f) as i8),
        C::Packuswb_mm_mmm64 => |a, b| pack(beside(a, b), 0, |x: i16| x.clamp(0, 0xff) as u8),
        C::Packssdw_mm_mmm64 => |a, b| pack(beside(a, b), 0, |x: i32| x.clamp(-0x8000, 0x7fff) as i16),
        C::Pshufb_mm_mmm64 => |a, b| map(b, |n: u8| if n & 0x80 != 0 { 0 } else { get(a, u32::from(n & 7)) }),
        C::Pand_mm_mmm64 => |a, b| a & b,
        C::Pandn_mm_mmm64 => |a, b| !a & b,
        C::Por_mm_mmm64 => |a, b| a | b,
        C::Pxor_mm_mmm64 => |a, b| a ^ b,
        _ => return None,
    })
}

/// Returns how an instruction shifts its first operand by a count.
#[rustfmt::skip]
fn shift(code: Code) -> Option<fn(u128, u32) -> u128> {
    use Code as C;
    Some(match code {
        C::Psllw_mm_mmm64 | C::Psllw_mm_imm8 => |a, c| map(a, |x: u16| x.checked_shl(c).unwrap_or(0)),
        C::Pslld_mm_mmm64 | C::Pslld_mm_imm8 => |a, c| map(a, |x: u32| x.checked_shl(c).unwrap_or(0)),
        C::Psllq_mm_mmm64 | C::Psllq_mm_imm8 => |a, c| map(a, |x: u64| x.checked_shl(c).unwrap_or(0)),
        C::Psrlw_mm_mmm64 | C::Psrlw_mm_imm8 => |a, c| map(a, |x: u16| x.checked_shr(c).unwrap_or(0)),
        C::Psrld_mm_mmm64 | C::Psrld_mm_imm8 => |a, c| map(a, |x: u32| x.checked_shr(c).unwrap_or(0)),
        C::Psrlq_mm_mmm64 | C::Psrlq_mm_imm8 => |a, c| map(a, |x: u64| x.checked_shr(c).unwrap_or(0)),
        C::Psraw_mm_mmm64 | C::Psraw_mm_imm8 => |a, c| map(a, |x: i16| x >> c.min(15)),
        C::Psrad_mm_mmm64 | C::Psrad_mm_imm8 => |a, c| map(a, |x: i32| x >> c.min(31)),
        _ => return None,
    })
}

impl Cpu {
    fn mmx(&self, n: u8) -> u64 {
        let bytes = self.fpu.registers[usize::from(n & 7)];
        bytes[..8]
            .iter()
            .rev()
            .fold(0, |v, &b| v << 8 | u64::from(b))
    }

    /// Reads operand `n`: a register, or so many bytes of memory.
    pub(super) fn read_mmx(&mut self, insn: &Insn, n: usize, bytes: usize) -> Exec<u64> {
        match insn.operands[n] {
            Operand::Mmx(register) => Ok(self.mmx(register)),
            _ if bytes == 4 => self.read::<u32>(insn, n).map(u64::from),
            _ => self.read::<u64>(insn, n),
        }
    }

    /// What each instruction but EMMS does to the x87 state.
    pub(super) fn enter_mmx(&mut self) {
        self.fpu.set_top(0);
        self.fpu.valid = 0xff;
    }

    /// Writes operand 0, a register.
    pub(super) fn write_mmx(&mut self, insn: &Insn, value: u64) {
        self.enter_mmx();
        if let Operand::Mmx(n) = insn.operands[0] {
            let register = &mut self.fpu.registers[usize::from(n & 7)];
            register[..8].copy_from_slice(&value.to_le_bytes());
            register[8..].fill(0xff);
        }
    }

    fn mmx_destination(&self, insn: &Insn) -> u128 {
        match insn.operands[0] {
            Operand::Mmx(n) => self.mmx(n).into(),
            _ => 0,
        }
    }
}

/// An instruction with two operands.
fn binary(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_mmx()?;
    let is_half = matches!(
        insn.code,
        Code::Punpcklbw_mm_mmm32 | Code::Punpcklwd_mm_mmm32 | Code::Punpckldq_mm_mmm32
    );
    let from = cpu.read_mmx(insn, 1, if is_half { 4 } else { 8 })?;
    let to = cpu.mmx_destination(insn);
    if let Some(f) = function(insn.code) {
        cpu.write_mmx(insn, f(to, from.into()) as u64);
    }
    Ok(())
}

/// A shift by a register, memory or an immediate.
fn shifted(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_mmx()?;
    let count = match insn.operands[1] {
        Operand::Immediate(count) => count & 0xff,
        _ => cpu.read_mmx(insn, 1, 8)?,
    };
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    let to = cpu.mmx_destination(insn);
    if let Some(f) = shift(insn.code) {
        cpu.write_mmx(insn, f(to, count) as u64);
    }
    Ok(())
}

/// MOVD and MOVQ to a register.
fn load(cpu: &mut Cpu, insn: &Insn, bytes: usize) -> Exec {
    cpu.check_mmx()?;
    let value = cpu.read_mmx(insn, 1, bytes)?;
    cpu.write_mmx(insn, value);
    Ok(())
}

/// MOVD, MOVQ and MOVNTQ from a register.
fn store<W: crate::width::Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_mmx()?;
    let value = cpu.read_mmx(insn, 1, 8)?;
    if let Operand::Mmx(_) = insn.operands[0] {
        cpu.write_mmx(insn, value);
        return Ok(());
    }
    cpu.write(insn, 0, W::from_u64(value))?;
    cpu.enter_mmx();
    Ok(())
}

fn movq2dq(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_sse()?;
    cpu.check_mmx()?;
    let value = cpu.read_mmx(insn, 1, 8)?;
    cpu.enter_mmx();
    cpu.write_vector(insn, [value.into(), 0, 0, 0], Elements::of(insn, 8))
}

fn movdq2q(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_sse()?;
    cpu.check_mmx()?;
    let value = cpu.register_lanes(insn, 1)[0];
    cpu.write_mmx(insn, value as u64);
    Ok(())
}

fn pshufw(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_mmx()?;
    let from = u128::from(cpu.read_mmx(insn, 1, 8)?);
    let by = immediate(insn, 2);
    let value = build(4, |n| get::<u16>(from, selector(by, n)));
    cpu.write_mmx(insn, value as u64);
    Ok(())
}

fn palignr(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_mmx()?;
    let from = u128::from(cpu.read_mmx(insn, 1, 8)?);
    let both = beside(from, cpu.mmx_destination(insn));
    let bits = u32::from(immediate(insn, 2)) * 8;
    cpu.write_mmx(insn, both.checked_shr(bits).unwrap_or(0) as u64);
    Ok(())
}

fn pinsrw(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_mmx()?;
    let word = cpu.read::<u16>(insn, 1)?;
    let at = u32::from(immediate(insn, 2) & 3);
    let to = cpu.mmx_destination(insn);
    let value = build(4, |n| if n == at { word } else { get(to, n) });
    cpu.write_mmx(insn, value as u64);
    Ok(())
}

fn pextrw(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_mmx()?;
    let value = cpu.read_mmx(insn, 1, 8)?;
    cpu.enter_mmx();
    let at = 16 * u32::from(immediate(insn, 2) & 3);
    cpu.write(insn, 0, value >> at & 0xffff)
}

fn pmovmskb(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_mmx()?;
    let value = cpu.read_mmx(insn, 1, 8)?;
    cpu.enter_mmx();
    let mask = (0..8).fold(0, |mask, n| mask | (value >> (8 * n + 7) & 1) << n);
    cpu.write::<u64>(insn, 0, mask)
}

/// MASKMOVQ: bytes of operand 1 whose mask bytes are negative, to memory at DS:RDI.
fn maskmovq(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_mmx()?;
    let value = cpu.read_mmx(insn, 1, 8)?;
    let mask = cpu.read_mmx(insn, 2, 8)?;
    let lanes = |low: u64| [low.into(), 0, 0, 0];
    cpu.store_masked_bytes(insn, lanes(value), &lanes(mask), 8)?;
    cpu.enter_mmx();
    Ok(())
}

#[cfg(test)]
mod tests {
    use vmx_model::addr::Hpa;
    use vmx_model::arch::Cr0;
    use vmx_model::event::Exception;

    use crate::exec::simd::masking_tests::{HOLE, assert_page_fault, ready};
    use crate::test_cpu::{DATA, NM, UD, execute, long_mode};
    use crate::{Cpu, Fault};

    const VALUE: u64 = 0x8122_3344_5566_f788;

    /// MM1 is [`VALUE`], by MOVQ MM1, RAX.
    fn loaded() -> Cpu {
        loaded_into(long_mode())
    }

    fn loaded_into(mut cpu: Cpu) -> Cpu {
        cpu.fpu.set_top(5);
        cpu.gpr[0] = VALUE;
        execute(&mut cpu, &[0x48, 0x0f, 0x6e, 0xc8]).expect("MOVQ");
        assert_eq!((cpu.fpu.top(), cpu.fpu.valid), (0, 0xff));
        assert_eq!(cpu.fpu.registers[1][8..], [0xff, 0xff]);
        cpu
    }

    #[test]
    fn words_and_signs_go_to_general_registers_and_come_from_them() {
        let mut cpu = loaded();
        // PEXTRW EDX, MM1, 6; PMOVMSKB EBX, MM1; MOVD ECX, MM1.
        execute(&mut cpu, &[0x0f, 0xc5, 0xd1, 6]).expect("PEXTRW");
        execute(&mut cpu, &[0x0f, 0xd7, 0xd9]).expect("PMOVMSKB");
        execute(&mut cpu, &[0x0f, 0x7e, 0xc9]).expect("MOVD");
        assert_eq!(cpu.gpr[1..4], [0x5566_f788, 0x3344, 0x83]);
        // PINSRW MM1, EAX, 5; MOVQ RDX, MM1.
        cpu.gpr[0] = 0xabcd;
        execute(&mut cpu, &[0x0f, 0xc4, 0xc8, 5]).expect("PINSRW");
        execute(&mut cpu, &[0x48, 0x0f, 0x7e, 0xca]).expect("MOVQ");
        assert_eq!(cpu.gpr[2], 0x8122_3344_abcd_f788);
    }

    #[test]
    fn maskmovq_stores_the_bytes_that_the_mask_names() {
        let mut cpu = loaded();
        cpu.gpr[7] = DATA;
        // MASKMOVQ MM1, MM1.
        execute(&mut cpu, &[0x0f, 0xf7, 0xc9]).expect("MASKMOVQ");
        let mut bytes = [0; 8];
        cpu.phys.read_bytes(Hpa(DATA), &mut bytes);
        assert_eq!(bytes, [0x88, 0xf7, 0, 0, 0, 0, 0, 0x81]);
    }

    #[test]
    fn maskmovq_that_faults_stores_nothing() {
        let mut cpu = loaded_into(ready(HOLE - 4, 0));
        cpu.phys.write_bytes(Hpa(HOLE - 4), &[0x55; 4]);
        let before = (cpu.fpu.clone(), cpu.gpr);
        assert_page_fault(execute(&mut cpu, &[0x0f, 0xf7, 0xc9]), HOLE + 3, 2);
        assert_eq!((cpu.fpu.clone(), cpu.gpr), before);
        let mut bytes = [0; 4];
        cpu.phys.read_bytes(Hpa(HOLE - 4), &mut bytes);
        assert_eq!(bytes, [0x55; 4]);
    }

    #[test]
    fn emulation_is_undefined_and_a_task_switch_is_seen() {
        for (cr0, fault) in [(Cr0::EM, UD), (Cr0::TS, NM)] {
            let mut cpu = loaded();
            cpu.state.cr0 |= cr0;
            assert_eq!(execute(&mut cpu, &[0x0f, 0xfc, 0xc9]), fault);
        }
        let mut cpu = loaded();
        cpu.fpu.status |= 0x81;
        let pending = Err(Fault::Exception(Exception::plain(16)));
        assert_eq!(execute(&mut cpu, &[0x0f, 0xfc, 0xc9]), pending);
    }
}
