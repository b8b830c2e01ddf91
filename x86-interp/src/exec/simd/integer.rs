//! Integer arithmetic, comparison, conversion, shuffle and shift of XMM registers.
//!
//! SDM Vol. 1, "SSE2 128-Bit SIMD Integer Instructions", "SSSE3 Instructions" and "Packed Integer"
//! of SSE4; the functions follow the "Operation" sections of SDM Vol. 2.

use iced_x86::Code;
use vmx_model::arch::Rflags;

use super::crypto;
use super::lanes::{build, compare, get, horizontal, map, pack, unpack, zip};
use super::{immediate, join};
use crate::exec::Row;
use crate::exec::form::plain;
use crate::insn::{Insn, Operand, Plain};
use crate::{Cpu, Exec};

/// A handler: operand 0 becomes a function of itself and operand 1.
macro_rules! two {
    ($f:expr) => {{
        fn handler(cpu: &mut Cpu, insn: &Insn) -> Exec {
            binary(cpu, insn, $f)
        }
        handler as Plain
    }};
}

/// A handler: operand 0 becomes a function of operand 1, of so many bytes in memory.
macro_rules! one {
    ($bytes:literal, $f:expr) => {{
        fn handler(cpu: &mut Cpu, insn: &Insn) -> Exec {
            cpu.check_sse()?;
            let source = cpu.read_lanes::<$bytes>(insn, 1)?;
            cpu.write_lanes(insn, $f(source))
        }
        handler as Plain
    }};
}

/// A handler: operand 0 becomes a function of itself, operand 1 and the immediate.
macro_rules! three {
    ($f:expr) => {{
        fn handler(cpu: &mut Cpu, insn: &Insn) -> Exec {
            let byte = immediate(insn, 2);
            binary(cpu, insn, |a, b| $f(a, b, byte))
        }
        handler as Plain
    }};
}

/// A handler: operand 0 is shifted by the count in operand 1.
macro_rules! shift {
    ($f:expr) => {{
        fn handler(cpu: &mut Cpu, insn: &Insn) -> Exec {
            cpu.check_sse()?;
            let count = match insn.operands[1] {
                Operand::Immediate(value) => value,
                _ => cpu.read_lanes::<16>(insn, 1)? as u64,
            };
            let value = join(cpu.destination(insn));
            cpu.write_lanes(insn, $f(value, count))
        }
        handler as Plain
    }};
}

/// Returns who executes an instruction of this file.
pub(crate) fn lookup(code: Code) -> Option<Row> {
    let tables = [
        arithmetic,
        compare_and_select,
        reorder,
        convert,
        shifts,
        cryptography,
    ];
    tables.iter().find_map(|table| table(code)).and_then(plain)
}

#[rustfmt::skip]
fn arithmetic(code: Code) -> Option<Plain> {
    use Code as C;
    Some(match code {
        C::Paddb_xmm_xmmm128 => two!(|a, b| zip(a, b, u8::wrapping_add)),
        C::Paddw_xmm_xmmm128 => two!(|a, b| zip(a, b, u16::wrapping_add)),
        C::Paddd_xmm_xmmm128 => two!(|a, b| zip(a, b, u32::wrapping_add)),
        C::Paddq_xmm_xmmm128 => two!(|a, b| zip(a, b, u64::wrapping_add)),
        C::Psubb_xmm_xmmm128 => two!(|a, b| zip(a, b, u8::wrapping_sub)),
        C::Psubw_xmm_xmmm128 => two!(|a, b| zip(a, b, u16::wrapping_sub)),
        C::Psubd_xmm_xmmm128 => two!(|a, b| zip(a, b, u32::wrapping_sub)),
        C::Psubq_xmm_xmmm128 => two!(|a, b| zip(a, b, u64::wrapping_sub)),
        C::Paddsb_xmm_xmmm128 => two!(|a, b| zip(a, b, i8::saturating_add)),
        C::Paddsw_xmm_xmmm128 => two!(|a, b| zip(a, b, i16::saturating_add)),
        C::Paddusb_xmm_xmmm128 => two!(|a, b| zip(a, b, u8::saturating_add)),
        C::Paddusw_xmm_xmmm128 => two!(|a, b| zip(a, b, u16::saturating_add)),
        C::Psubsb_xmm_xmmm128 => two!(|a, b| zip(a, b, i8::saturating_sub)),
        C::Psubsw_xmm_xmmm128 => two!(|a, b| zip(a, b, i16::saturating_sub)),
        C::Psubusb_xmm_xmmm128 => two!(|a, b| zip(a, b, u8::saturating_sub)),
        C::Psubusw_xmm_xmmm128 => two!(|a, b| zip(a, b, u16::saturating_sub)),
        C::Pavgb_xmm_xmmm128 => two!(|a, b| zip(a, b, |x: u8, y: u8| (u16::from(x) + u16::from(y)).div_ceil(2) as u8)),
        C::Pavgw_xmm_xmmm128 => two!(|a, b| zip(a, b, |x: u16, y: u16| (u32::from(x) + u32::from(y)).div_ceil(2) as u16)),
        C::Pmullw_xmm_xmmm128 => two!(|a, b| zip(a, b, u16::wrapping_mul)),
        C::Pmulld_xmm_xmmm128 => two!(|a, b| zip(a, b, u32::wrapping_mul)),
        C::Pmulhw_xmm_xmmm128 => two!(|a, b| zip(a, b, |x: i16, y: i16| ((i32::from(x) * i32::from(y)) >> 16) as i16)),
        C::Pmulhuw_xmm_xmmm128 => two!(|a, b| zip(a, b, |x: u16, y: u16| ((u32::from(x) * u32::from(y)) >> 16) as u16)),
        C::Pmulhrsw_xmm_xmmm128 => two!(|a, b| zip(a, b, |x: i16, y: i16| ((((i32::from(x) * i32::from(y)) >> 14) + 1) >> 1) as i16)),
        C::Pmuludq_xmm_xmmm128 => two!(|a, b| zip(a, b, |x: u64, y: u64| (x & 0xffff_ffff) * (y & 0xffff_ffff))),
        C::Pmuldq_xmm_xmmm128 => two!(|a, b| zip(a, b, |x: i64, y: i64| i64::from(x as i32) * i64::from(y as i32))),
        C::Pmaddwd_xmm_xmmm128 => two!(|a, b| build(4, |n| multiply_add_words(a, b, n))),
        C::Pmaddubsw_xmm_xmmm128 => two!(|a, b| build(8, |n| multiply_add_bytes(a, b, n))),
        C::Psadbw_xmm_xmmm128 => two!(|a, b| build(2, |n| sum_of_differences(a, b, n))),
        C::Phaddw_xmm_xmmm128 => two!(|a, b| horizontal(a, b, u16::wrapping_add)),
        C::Phaddd_xmm_xmmm128 => two!(|a, b| horizontal(a, b, u32::wrapping_add)),
        C::Phaddsw_xmm_xmmm128 => two!(|a, b| horizontal(a, b, i16::saturating_add)),
        C::Phsubw_xmm_xmmm128 => two!(|a, b| horizontal(a, b, u16::wrapping_sub)),
        C::Phsubd_xmm_xmmm128 => two!(|a, b| horizontal(a, b, u32::wrapping_sub)),
        C::Phsubsw_xmm_xmmm128 => two!(|a, b| horizontal(a, b, i16::saturating_sub)),
        C::Pabsb_xmm_xmmm128 => one!(16, |b| map(b, i8::wrapping_abs)),
        C::Pabsw_xmm_xmmm128 => one!(16, |b| map(b, i16::wrapping_abs)),
        C::Pabsd_xmm_xmmm128 => one!(16, |b| map(b, i32::wrapping_abs)),
        C::Psignb_xmm_xmmm128 => two!(|a, b| zip(a, b, |x: i8, y: i8| x.wrapping_mul(y.signum()))),
        C::Psignw_xmm_xmmm128 => two!(|a, b| zip(a, b, |x: i16, y: i16| x.wrapping_mul(y.signum()))),
        C::Psignd_xmm_xmmm128 => two!(|a, b| zip(a, b, |x: i32, y: i32| x.wrapping_mul(y.signum()))),
        _ => return None,
    })
}

#[rustfmt::skip]
fn compare_and_select(code: Code) -> Option<Plain> {
    use Code as C;
    Some(match code {
        C::Pcmpeqb_xmm_xmmm128 => two!(|a, b| compare(a, b, |x: u8, y| x == y)),
        C::Pcmpeqw_xmm_xmmm128 => two!(|a, b| compare(a, b, |x: u16, y| x == y)),
        C::Pcmpeqd_xmm_xmmm128 => two!(|a, b| compare(a, b, |x: u32, y| x == y)),
        C::Pcmpeqq_xmm_xmmm128 => two!(|a, b| compare(a, b, |x: u64, y| x == y)),
        C::Pcmpgtb_xmm_xmmm128 => two!(|a, b| compare(a, b, |x: i8, y| x > y)),
        C::Pcmpgtw_xmm_xmmm128 => two!(|a, b| compare(a, b, |x: i16, y| x > y)),
        C::Pcmpgtd_xmm_xmmm128 => two!(|a, b| compare(a, b, |x: i32, y| x > y)),
        C::Pcmpgtq_xmm_xmmm128 => two!(|a, b| compare(a, b, |x: i64, y| x > y)),
        C::Pmaxub_xmm_xmmm128 => two!(|a, b| zip(a, b, |x: u8, y| x.max(y))),
        C::Pmaxuw_xmm_xmmm128 => two!(|a, b| zip(a, b, |x: u16, y| x.max(y))),
        C::Pmaxud_xmm_xmmm128 => two!(|a, b| zip(a, b, |x: u32, y| x.max(y))),
        C::Pmaxsb_xmm_xmmm128 => two!(|a, b| zip(a, b, |x: i8, y| x.max(y))),
        C::Pmaxsw_xmm_xmmm128 => two!(|a, b| zip(a, b, |x: i16, y| x.max(y))),
        C::Pmaxsd_xmm_xmmm128 => two!(|a, b| zip(a, b, |x: i32, y| x.max(y))),
        C::Pminub_xmm_xmmm128 => two!(|a, b| zip(a, b, |x: u8, y| x.min(y))),
        C::Pminuw_xmm_xmmm128 => two!(|a, b| zip(a, b, |x: u16, y| x.min(y))),
        C::Pminud_xmm_xmmm128 => two!(|a, b| zip(a, b, |x: u32, y| x.min(y))),
        C::Pminsb_xmm_xmmm128 => two!(|a, b| zip(a, b, |x: i8, y| x.min(y))),
        C::Pminsw_xmm_xmmm128 => two!(|a, b| zip(a, b, |x: i16, y| x.min(y))),
        C::Pminsd_xmm_xmmm128 => two!(|a, b| zip(a, b, |x: i32, y| x.min(y))),
        C::Ptest_xmm_xmmm128 => ptest,
        C::Pmovmskb_r32_xmm | C::Pmovmskb_r64_xmm => signs::<8>,
        C::Movmskps_r32_xmm | C::Movmskps_r64_xmm => signs::<32>,
        C::Movmskpd_r32_xmm | C::Movmskpd_r64_xmm => signs::<64>,
        _ => return None,
    })
}

#[rustfmt::skip]
fn reorder(code: Code) -> Option<Plain> {
    use Code as C;
    Some(match code {
        C::Punpcklbw_xmm_xmmm128 => two!(|a, b| unpack::<u8>(a, b, 0)),
        C::Punpcklwd_xmm_xmmm128 => two!(|a, b| unpack::<u16>(a, b, 0)),
        C::Punpckldq_xmm_xmmm128 | C::Unpcklps_xmm_xmmm128 => two!(|a, b| unpack::<u32>(a, b, 0)),
        C::Punpcklqdq_xmm_xmmm128 | C::Unpcklpd_xmm_xmmm128 => two!(|a, b| unpack::<u64>(a, b, 0)),
        C::Punpckhbw_xmm_xmmm128 => two!(|a, b| unpack::<u8>(a, b, 1)),
        C::Punpckhwd_xmm_xmmm128 => two!(|a, b| unpack::<u16>(a, b, 1)),
        C::Punpckhdq_xmm_xmmm128 | C::Unpckhps_xmm_xmmm128 => two!(|a, b| unpack::<u32>(a, b, 1)),
        C::Punpckhqdq_xmm_xmmm128 | C::Unpckhpd_xmm_xmmm128 => two!(|a, b| unpack::<u64>(a, b, 1)),
        C::Pshufb_xmm_xmmm128 => two!(|a, b| map(b, |n: u8| if n & 0x80 != 0 { 0 } else { get(a, u32::from(n & 15)) })),
        C::Pshufd_xmm_xmmm128_imm8 => three!(|_, b, i| build(4, |n| get::<u32>(b, selector(i, n)))),
        C::Pshuflw_xmm_xmmm128_imm8 => three!(|_, b, i| (b >> 64) << 64 | build(4, |n| get::<u16>(b, selector(i, n)))),
        C::Pshufhw_xmm_xmmm128_imm8 => three!(|_, b, i| u128::from(b as u64) | build(4, |n| get::<u16>(b >> 64, selector(i, n))) << 64),
        C::Shufps_xmm_xmmm128_imm8 => three!(|a, b, i| build(4, |n| get::<u32>(if n < 2 { a } else { b }, selector(i, n)))),
        C::Shufpd_xmm_xmmm128_imm8 => three!(|a, b, i: u8| build(2, |n| get::<u64>(if n == 0 { a } else { b }, u32::from(i >> n & 1)))),
        C::Pblendw_xmm_xmmm128_imm8 => three!(|a, b, i: u8| build(8, |n| get::<u16>(if i >> n & 1 == 0 { a } else { b }, n))),
        C::Blendps_xmm_xmmm128_imm8 => three!(|a, b, i: u8| build(4, |n| get::<u32>(if i >> n & 1 == 0 { a } else { b }, n))),
        C::Blendpd_xmm_xmmm128_imm8 => three!(|a, b, i: u8| build(2, |n| get::<u64>(if i >> n & 1 == 0 { a } else { b }, n))),
        C::Palignr_xmm_xmmm128_imm8 => three!(align_right),
        C::Movddup_xmm_xmmm64 => one!(8, |b| build(2, |_| b as u64)),
        C::Movsldup_xmm_xmmm128 => one!(16, |b| build(4, |n| get::<u32>(b, n & !1))),
        C::Movshdup_xmm_xmmm128 => one!(16, |b| build(4, |n| get::<u32>(b, n | 1))),
        C::Pinsrw_xmm_r32m16_imm8 | C::Pinsrw_xmm_r64m16_imm8 => insert_word,
        C::Pextrw_r32_xmm_imm8 | C::Pextrw_r64_xmm_imm8 => extract_word,
        _ => return None,
    })
}

#[rustfmt::skip]
fn convert(code: Code) -> Option<Plain> {
    use Code as C;
    Some(match code {
        C::Packsswb_xmm_xmmm128 => two!(|a, b| pack(a, b, |x: i16| x.clamp(-0x80, 0x7f) as i8)),
        C::Packuswb_xmm_xmmm128 => two!(|a, b| pack(a, b, |x: i16| x.clamp(0, 0xff) as u8)),
        C::Packssdw_xmm_xmmm128 => two!(|a, b| pack(a, b, |x: i32| x.clamp(-0x8000, 0x7fff) as i16)),
        C::Packusdw_xmm_xmmm128 => two!(|a, b| pack(a, b, |x: i32| x.clamp(0, 0xffff) as u16)),
        C::Pmovsxbw_xmm_xmmm64 => one!(8, |b| build(8, |n| i16::from(get::<i8>(b, n)))),
        C::Pmovsxbd_xmm_xmmm32 => one!(4, |b| build(4, |n| i32::from(get::<i8>(b, n)))),
        C::Pmovsxbq_xmm_xmmm16 => one!(2, |b| build(2, |n| i64::from(get::<i8>(b, n)))),
        C::Pmovsxwd_xmm_xmmm64 => one!(8, |b| build(4, |n| i32::from(get::<i16>(b, n)))),
        C::Pmovsxwq_xmm_xmmm32 => one!(4, |b| build(2, |n| i64::from(get::<i16>(b, n)))),
        C::Pmovsxdq_xmm_xmmm64 => one!(8, |b| build(2, |n| i64::from(get::<i32>(b, n)))),
        C::Pmovzxbw_xmm_xmmm64 => one!(8, |b| build(8, |n| u16::from(get::<u8>(b, n)))),
        C::Pmovzxbd_xmm_xmmm32 => one!(4, |b| build(4, |n| u32::from(get::<u8>(b, n)))),
        C::Pmovzxbq_xmm_xmmm16 => one!(2, |b| build(2, |n| u64::from(get::<u8>(b, n)))),
        C::Pmovzxwd_xmm_xmmm64 => one!(8, |b| build(4, |n| u32::from(get::<u16>(b, n)))),
        C::Pmovzxwq_xmm_xmmm32 => one!(4, |b| build(2, |n| u64::from(get::<u16>(b, n)))),
        C::Pmovzxdq_xmm_xmmm64 => one!(8, |b| build(2, |n| u64::from(get::<u32>(b, n)))),
        _ => return None,
    })
}

#[rustfmt::skip]
fn cryptography(code: Code) -> Option<Plain> {
    use Code as C;
    Some(match code {
        C::Aesenc_xmm_xmmm128 => two!(crypto::encrypt),
        C::Aesenclast_xmm_xmmm128 => two!(crypto::encrypt_last),
        C::Aesdec_xmm_xmmm128 => two!(crypto::decrypt),
        C::Aesdeclast_xmm_xmmm128 => two!(crypto::decrypt_last),
        C::Aesimc_xmm_xmmm128 => one!(16, crypto::inverse_mix),
        C::Aeskeygenassist_xmm_xmmm128_imm8 => three!(crypto::assist),
        C::Pclmulqdq_xmm_xmmm128_imm8 => three!(crypto::carryless),
        _ => return None,
    })
}

#[rustfmt::skip]
fn shifts(code: Code) -> Option<Plain> {
    use Code as C;
    Some(match code {
        C::Psllw_xmm_xmmm128 | C::Psllw_xmm_imm8 => shift!(|a, c| map(a, |x: u16| count(c).and_then(|c| x.checked_shl(c)).unwrap_or(0))),
        C::Pslld_xmm_xmmm128 | C::Pslld_xmm_imm8 => shift!(|a, c| map(a, |x: u32| count(c).and_then(|c| x.checked_shl(c)).unwrap_or(0))),
        C::Psllq_xmm_xmmm128 | C::Psllq_xmm_imm8 => shift!(|a, c| map(a, |x: u64| count(c).and_then(|c| x.checked_shl(c)).unwrap_or(0))),
        C::Psrlw_xmm_xmmm128 | C::Psrlw_xmm_imm8 => shift!(|a, c| map(a, |x: u16| count(c).and_then(|c| x.checked_shr(c)).unwrap_or(0))),
        C::Psrld_xmm_xmmm128 | C::Psrld_xmm_imm8 => shift!(|a, c| map(a, |x: u32| count(c).and_then(|c| x.checked_shr(c)).unwrap_or(0))),
        C::Psrlq_xmm_xmmm128 | C::Psrlq_xmm_imm8 => shift!(|a, c| map(a, |x: u64| count(c).and_then(|c| x.checked_shr(c)).unwrap_or(0))),
        C::Psraw_xmm_xmmm128 | C::Psraw_xmm_imm8 => shift!(|a, c: u64| map(a, |x: i16| x >> c.min(15))),
        C::Psrad_xmm_xmmm128 | C::Psrad_xmm_imm8 => shift!(|a, c: u64| map(a, |x: i32| x >> c.min(31))),
        C::Pslldq_xmm_imm8 => shift!(|a: u128, c| count(c).and_then(|c| a.checked_shl(c * 8)).unwrap_or(0)),
        C::Psrldq_xmm_imm8 => shift!(|a: u128, c| count(c).and_then(|c| a.checked_shr(c * 8)).unwrap_or(0)),
        _ => return None,
    })
}

fn binary(cpu: &mut Cpu, insn: &Insn, f: impl Fn(u128, u128) -> u128) -> Exec {
    cpu.check_sse()?;
    let source = cpu.read_lanes::<16>(insn, 1)?;
    let value = f(join(cpu.destination(insn)), source);
    cpu.write_lanes(insn, value)
}

/// A shift count; `None` if it is beyond any width.
fn count(count: u64) -> Option<u32> {
    u32::try_from(count).ok().filter(|&c| c < 256)
}

/// Selector `n`, two bits of a shuffle's immediate.
pub(super) fn selector(immediate: u8, n: u32) -> u32 {
    u32::from(immediate >> (2 * n) & 3)
}

/// PALIGNR: 16 bytes of the concatenation of both, from byte `count` on.
fn align_right(a: u128, b: u128, count: u8) -> u128 {
    let bits = u32::from(count) * 8;
    let low = b.checked_shr(bits).unwrap_or(0);
    match bits {
        0 => b,
        1..128 => low | a << (128 - bits),
        _ => a.checked_shr(bits - 128).unwrap_or(0),
    }
}

/// PMADDWD, one lane: only the product of four times 8000H wraps.
pub(super) fn multiply_add_words(a: u128, b: u128, n: u32) -> i32 {
    let product = |n| i32::from(get::<i16>(a, n)) * i32::from(get::<i16>(b, n));
    product(2 * n).wrapping_add(product(2 * n + 1))
}

/// PMADDUBSW, one lane: unsigned times signed bytes, the sum saturated.
pub(super) fn multiply_add_bytes(a: u128, b: u128, n: u32) -> i16 {
    let product = |n| i16::from(get::<u8>(a, n)) * i16::from(get::<i8>(b, n));
    product(2 * n).saturating_add(product(2 * n + 1))
}

/// PSADBW, one lane.
pub(super) fn sum_of_differences(a: u128, b: u128, n: u32) -> u64 {
    let lanes = 8 * n..8 * n + 8;
    let difference = |n| get::<u8>(a, n).abs_diff(get::<u8>(b, n));
    lanes.map(|n| u64::from(difference(n))).sum()
}

/// PMOVMSKB, MOVMSKPS, MOVMSKPD: the sign bits of the lanes of `BITS` bits.
fn signs<const BITS: usize>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_sse()?;
    let value = cpu.read_lanes::<16>(insn, 1)?;
    let sign = |n: usize| (value >> (n * BITS + BITS - 1) & 1) as u64;
    let mask = (0..128 / BITS).fold(0, |mask, n| mask | sign(n) << n);
    cpu.write::<u64>(insn, 0, mask)
}

/// PINSRW.
fn insert_word(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_sse()?;
    let word = cpu.read::<u16>(insn, 1)?;
    let at = u32::from(immediate(insn, 2) & 7);
    let value = join(cpu.destination(insn));
    let inserted = build(8, |n| if n == at { word } else { get(value, n) });
    cpu.write_lanes(insn, inserted)
}

/// PEXTRW to a register, the rest of which is cleared.
fn extract_word(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_sse()?;
    let at = u32::from(immediate(insn, 2) & 7);
    let value = cpu.read_lanes::<16>(insn, 1)?;
    cpu.write(insn, 0, u64::from(get::<u16>(value, at)))
}

/// PTEST: ZF and CF; the other status flags are cleared.
fn ptest(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_sse()?;
    let source = cpu.read_lanes::<16>(insn, 1)?;
    let value = join(cpu.destination(insn));
    let zf = if source & value == 0 {
        Rflags::ZF
    } else {
        Rflags::empty()
    };
    let cf = if source & !value == 0 {
        Rflags::CF
    } else {
        Rflags::empty()
    };
    cpu.set_status(Rflags::STATUS, zf | cf);
    Ok(())
}
