//! Integer arithmetic, comparison, conversion, shuffle and shift of XMM registers.
//!
//! SDM Vol. 1, "SSE2 128-Bit SIMD Integer Instructions", "SSSE3 Instructions" and "Packed Integer"
//! of SSE4; the functions follow the "Operation" sections of SDM Vol. 2.

use iced_x86::{Code, Mnemonic};
use vmx_model::arch::Rflags;

use super::crypto;
use super::lanes::{build, compare, get, horizontal, map, pack, unpack, zip};
use super::vector::{Elements, Faults, each_lane, is_vector_form};
use crate::exec::Row;
use crate::exec::form::plain;
use crate::insn::{Insn, Operand, Plain};
use crate::{Cpu, Exec};

/// A handler: each element, of so many bytes, becomes a function of those of both sources.
macro_rules! two {
    ($bytes:literal, $f:expr) => {{
        fn handler(cpu: &mut Cpu, insn: &Insn) -> Exec {
            cpu.lane_by_lane(insn, $bytes, Faults::Suppressed, |a, b, _| $f(a, b))
        }
        handler as Plain
    }};
}

/// A handler: each lane becomes a function of those of both sources.
macro_rules! whole {
    ($bytes:literal, $f:expr) => {{
        fn handler(cpu: &mut Cpu, insn: &Insn) -> Exec {
            cpu.lane_by_lane(insn, $bytes, Faults::Whole, |a, b, _| $f(a, b))
        }
        handler as Plain
    }};
}

/// A handler: each element becomes a function of that of the last source.
macro_rules! one {
    ($bytes:literal, $f:expr) => {{
        fn handler(cpu: &mut Cpu, insn: &Insn) -> Exec {
            cpu.lane_by_lane(insn, $bytes, Faults::Suppressed, |_, b, _| $f(b))
        }
        handler as Plain
    }};
}

/// A handler: each element becomes a function of one that is so many times narrower.
macro_rules! widen {
    ($bytes:literal, $ratio:literal, $f:expr) => {{
        fn handler(cpu: &mut Cpu, insn: &Insn) -> Exec {
            cpu.widen(insn, $bytes, $ratio, $f)
        }
        handler as Plain
    }};
}

/// A handler: each lane becomes a function of those of both sources and the immediate; every
/// lane takes its own `$bits` bits of the immediate, or all take the same.
macro_rules! three {
    ($bytes:literal, $f:expr) => {
        three!($bytes, 0, $f)
    };
    ($bytes:literal, $bits:literal, $f:expr) => {{
        fn handler(cpu: &mut Cpu, insn: &Insn) -> Exec {
            let byte = insn.immediate_byte();
            cpu.lane_by_lane(insn, $bytes, Faults::Whole, |a, b, lane| {
                $f(a, b, byte >> ($bits * lane))
            })
        }
        handler as Plain
    }};
}

/// A handler: each element is shifted by the same count.
macro_rules! shift {
    ($bytes:literal, $f:expr) => {{
        fn handler(cpu: &mut Cpu, insn: &Insn) -> Exec {
            shift_all(cpu, insn, $bytes, $f)
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
    if !is_vector_form(code) {
        return None;
    }
    let mnemonic = code.mnemonic();
    tables
        .iter()
        .find_map(|table| table(mnemonic))
        .and_then(plain)
}

#[rustfmt::skip]
fn arithmetic(mnemonic: Mnemonic) -> Option<Plain> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Paddb | M::Vpaddb => two!(1, |a, b| zip(a, b, u8::wrapping_add)),
        M::Paddw | M::Vpaddw => two!(2, |a, b| zip(a, b, u16::wrapping_add)),
        M::Paddd | M::Vpaddd => two!(4, |a, b| zip(a, b, u32::wrapping_add)),
        M::Paddq | M::Vpaddq => two!(8, |a, b| zip(a, b, u64::wrapping_add)),
        M::Psubb | M::Vpsubb => two!(1, |a, b| zip(a, b, u8::wrapping_sub)),
        M::Psubw | M::Vpsubw => two!(2, |a, b| zip(a, b, u16::wrapping_sub)),
        M::Psubd | M::Vpsubd => two!(4, |a, b| zip(a, b, u32::wrapping_sub)),
        M::Psubq | M::Vpsubq => two!(8, |a, b| zip(a, b, u64::wrapping_sub)),
        M::Paddsb | M::Vpaddsb => two!(1, |a, b| zip(a, b, i8::saturating_add)),
        M::Paddsw | M::Vpaddsw => two!(2, |a, b| zip(a, b, i16::saturating_add)),
        M::Paddusb | M::Vpaddusb => two!(1, |a, b| zip(a, b, u8::saturating_add)),
        M::Paddusw | M::Vpaddusw => two!(2, |a, b| zip(a, b, u16::saturating_add)),
        M::Psubsb | M::Vpsubsb => two!(1, |a, b| zip(a, b, i8::saturating_sub)),
        M::Psubsw | M::Vpsubsw => two!(2, |a, b| zip(a, b, i16::saturating_sub)),
        M::Psubusb | M::Vpsubusb => two!(1, |a, b| zip(a, b, u8::saturating_sub)),
        M::Psubusw | M::Vpsubusw => two!(2, |a, b| zip(a, b, u16::saturating_sub)),
        M::Pavgb | M::Vpavgb => two!(1, |a, b| zip(a, b, |x: u8, y: u8| (u16::from(x) + u16::from(y)).div_ceil(2) as u8)),
        M::Pavgw | M::Vpavgw => two!(2, |a, b| zip(a, b, |x: u16, y: u16| (u32::from(x) + u32::from(y)).div_ceil(2) as u16)),
        M::Pmullw | M::Vpmullw => two!(2, |a, b| zip(a, b, u16::wrapping_mul)),
        M::Pmulld | M::Vpmulld => two!(4, |a, b| zip(a, b, u32::wrapping_mul)),
        M::Pmulhw | M::Vpmulhw => two!(2, |a, b| zip(a, b, |x: i16, y: i16| ((i32::from(x) * i32::from(y)) >> 16) as i16)),
        M::Pmulhuw | M::Vpmulhuw => two!(2, |a, b| zip(a, b, |x: u16, y: u16| ((u32::from(x) * u32::from(y)) >> 16) as u16)),
        M::Pmulhrsw | M::Vpmulhrsw => two!(2, |a, b| zip(a, b, |x: i16, y: i16| ((((i32::from(x) * i32::from(y)) >> 14) + 1) >> 1) as i16)),
        M::Pmuludq | M::Vpmuludq => two!(8, |a, b| zip(a, b, |x: u64, y: u64| (x & 0xffff_ffff) * (y & 0xffff_ffff))),
        M::Pmuldq | M::Vpmuldq => two!(8, |a, b| zip(a, b, |x: i64, y: i64| i64::from(x as i32) * i64::from(y as i32))),
        M::Pmaddwd | M::Vpmaddwd => whole!(4, |a, b| build(4, |n| multiply_add_words(a, b, n))),
        M::Pmaddubsw | M::Vpmaddubsw => whole!(2, |a, b| build(8, |n| multiply_add_bytes(a, b, n))),
        M::Mpsadbw | M::Vmpsadbw => three!(2, 3, |a, b, i| build(8, |n| sum_of_four_differences(a, b, i, n))),
        M::Phminposuw | M::Vphminposuw => one!(16, smallest_word),
        M::Psadbw | M::Vpsadbw => whole!(8, |a, b| build(2, |n| sum_of_differences(a, b, n))),
        M::Phaddw | M::Vphaddw => whole!(2, |a, b| horizontal(a, b, u16::wrapping_add)),
        M::Phaddd | M::Vphaddd => whole!(4, |a, b| horizontal(a, b, u32::wrapping_add)),
        M::Phaddsw | M::Vphaddsw => whole!(2, |a, b| horizontal(a, b, i16::saturating_add)),
        M::Phsubw | M::Vphsubw => whole!(2, |a, b| horizontal(a, b, u16::wrapping_sub)),
        M::Phsubd | M::Vphsubd => whole!(4, |a, b| horizontal(a, b, u32::wrapping_sub)),
        M::Phsubsw | M::Vphsubsw => whole!(2, |a, b| horizontal(a, b, i16::saturating_sub)),
        M::Pabsb | M::Vpabsb => one!(1, |b| map(b, i8::wrapping_abs)),
        M::Pabsw | M::Vpabsw => one!(2, |b| map(b, i16::wrapping_abs)),
        M::Pabsd | M::Vpabsd => one!(4, |b| map(b, i32::wrapping_abs)),
        M::Psignb | M::Vpsignb => two!(1, |a, b| zip(a, b, |x: i8, y: i8| x.wrapping_mul(y.signum()))),
        M::Psignw | M::Vpsignw => two!(2, |a, b| zip(a, b, |x: i16, y: i16| x.wrapping_mul(y.signum()))),
        M::Psignd | M::Vpsignd => two!(4, |a, b| zip(a, b, |x: i32, y: i32| x.wrapping_mul(y.signum()))),
        _ => return None,
    })
}

#[rustfmt::skip]
fn compare_and_select(mnemonic: Mnemonic) -> Option<Plain> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Pcmpeqb | M::Vpcmpeqb => two!(1, |a, b| compare(a, b, |x: u8, y| x == y)),
        M::Pcmpeqw | M::Vpcmpeqw => two!(2, |a, b| compare(a, b, |x: u16, y| x == y)),
        M::Pcmpeqd | M::Vpcmpeqd => two!(4, |a, b| compare(a, b, |x: u32, y| x == y)),
        M::Pcmpeqq | M::Vpcmpeqq => two!(8, |a, b| compare(a, b, |x: u64, y| x == y)),
        M::Pcmpgtb | M::Vpcmpgtb => two!(1, |a, b| compare(a, b, |x: i8, y| x > y)),
        M::Pcmpgtw | M::Vpcmpgtw => two!(2, |a, b| compare(a, b, |x: i16, y| x > y)),
        M::Pcmpgtd | M::Vpcmpgtd => two!(4, |a, b| compare(a, b, |x: i32, y| x > y)),
        M::Pcmpgtq | M::Vpcmpgtq => two!(8, |a, b| compare(a, b, |x: i64, y| x > y)),
        M::Pmaxub | M::Vpmaxub => two!(1, |a, b| zip(a, b, |x: u8, y| x.max(y))),
        M::Pmaxuw | M::Vpmaxuw => two!(2, |a, b| zip(a, b, |x: u16, y| x.max(y))),
        M::Pmaxud | M::Vpmaxud => two!(4, |a, b| zip(a, b, |x: u32, y| x.max(y))),
        M::Pmaxsb | M::Vpmaxsb => two!(1, |a, b| zip(a, b, |x: i8, y| x.max(y))),
        M::Pmaxsw | M::Vpmaxsw => two!(2, |a, b| zip(a, b, |x: i16, y| x.max(y))),
        M::Pmaxsd | M::Vpmaxsd => two!(4, |a, b| zip(a, b, |x: i32, y| x.max(y))),
        M::Pminub | M::Vpminub => two!(1, |a, b| zip(a, b, |x: u8, y| x.min(y))),
        M::Pminuw | M::Vpminuw => two!(2, |a, b| zip(a, b, |x: u16, y| x.min(y))),
        M::Pminud | M::Vpminud => two!(4, |a, b| zip(a, b, |x: u32, y| x.min(y))),
        M::Pminsb | M::Vpminsb => two!(1, |a, b| zip(a, b, |x: i8, y| x.min(y))),
        M::Pminsw | M::Vpminsw => two!(2, |a, b| zip(a, b, |x: i16, y| x.min(y))),
        M::Pminsd | M::Vpminsd => two!(4, |a, b| zip(a, b, |x: i32, y| x.min(y))),
        M::Ptest | M::Vptest => |cpu, insn| test(cpu, insn, u128::MAX),
        M::Vtestps => |cpu, insn| test(cpu, insn, build(4, |_| 1_u32 << 31)),
        M::Vtestpd => |cpu, insn| test(cpu, insn, build(2, |_| 1_u64 << 63)),
        M::Pmovmskb | M::Vpmovmskb => signs::<8>,
        M::Movmskps | M::Vmovmskps => signs::<32>,
        M::Movmskpd | M::Vmovmskpd => signs::<64>,
        _ => return None,
    })
}

#[rustfmt::skip]
fn reorder(mnemonic: Mnemonic) -> Option<Plain> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Punpcklbw | M::Vpunpcklbw => whole!(1, |a, b| unpack::<u8>(a, b, 0)),
        M::Punpcklwd | M::Vpunpcklwd => whole!(2, |a, b| unpack::<u16>(a, b, 0)),
        M::Punpckldq | M::Vpunpckldq | M::Unpcklps | M::Vunpcklps => whole!(4, |a, b| unpack::<u32>(a, b, 0)),
        M::Punpcklqdq | M::Vpunpcklqdq | M::Unpcklpd | M::Vunpcklpd => whole!(8, |a, b| unpack::<u64>(a, b, 0)),
        M::Punpckhbw | M::Vpunpckhbw => whole!(1, |a, b| unpack::<u8>(a, b, 1)),
        M::Punpckhwd | M::Vpunpckhwd => whole!(2, |a, b| unpack::<u16>(a, b, 1)),
        M::Punpckhdq | M::Vpunpckhdq | M::Unpckhps | M::Vunpckhps => whole!(4, |a, b| unpack::<u32>(a, b, 1)),
        M::Punpckhqdq | M::Vpunpckhqdq | M::Unpckhpd | M::Vunpckhpd => whole!(8, |a, b| unpack::<u64>(a, b, 1)),
        M::Pshufb | M::Vpshufb => whole!(1, |a, b| map(b, |n: u8| if n & 0x80 != 0 { 0 } else { get(a, u32::from(n & 15)) })),
        M::Pshufd | M::Vpshufd => three!(4, |_, b, i| build(4, |n| get::<u32>(b, selector(i, n)))),
        M::Pshuflw | M::Vpshuflw => three!(2, |_, b, i| (b >> 64) << 64 | build(4, |n| get::<u16>(b, selector(i, n)))),
        M::Pshufhw | M::Vpshufhw => three!(2, |_, b, i| u128::from(b as u64) | build(4, |n| get::<u16>(b >> 64, selector(i, n))) << 64),
        M::Shufps | M::Vshufps => three!(4, |a, b, i| build(4, |n| get::<u32>(if n < 2 { a } else { b }, selector(i, n)))),
        M::Shufpd | M::Vshufpd => three!(8, 2, |a, b, i: u8| build(2, |n| get::<u64>(if n == 0 { a } else { b }, u32::from(i >> n & 1)))),
        M::Pblendw | M::Vpblendw => three!(2, |a, b, i: u8| build(8, |n| get::<u16>(if i >> n & 1 == 0 { a } else { b }, n))),
        M::Blendps | M::Vblendps | M::Vpblendd => three!(4, 4, |a, b, i: u8| build(4, |n| get::<u32>(if i >> n & 1 == 0 { a } else { b }, n))),
        M::Blendpd | M::Vblendpd => three!(8, 2, |a, b, i: u8| build(2, |n| get::<u64>(if i >> n & 1 == 0 { a } else { b }, n))),
        M::Palignr | M::Vpalignr => three!(1, align_right),
        M::Movddup | M::Vmovddup => movddup,
        M::Movsldup | M::Vmovsldup => whole!(4, |_, b| build(4, |n| get::<u32>(b, n & !1))),
        M::Movshdup | M::Vmovshdup => whole!(4, |_, b| build(4, |n| get::<u32>(b, n | 1))),
        _ => return None,
    })
}

#[rustfmt::skip]
fn convert(mnemonic: Mnemonic) -> Option<Plain> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Packsswb | M::Vpacksswb => whole!(1, |a, b| pack(a, b, |x: i16| x.clamp(-0x80, 0x7f) as i8)),
        M::Packuswb | M::Vpackuswb => whole!(1, |a, b| pack(a, b, |x: i16| x.clamp(0, 0xff) as u8)),
        M::Packssdw | M::Vpackssdw => whole!(2, |a, b| pack(a, b, |x: i32| x.clamp(-0x8000, 0x7fff) as i16)),
        M::Packusdw | M::Vpackusdw => whole!(2, |a, b| pack(a, b, |x: i32| x.clamp(0, 0xffff) as u16)),
        M::Pmovsxbw | M::Vpmovsxbw => widen!(2, 2, |b| build(8, |n| i16::from(get::<i8>(b, n)))),
        M::Pmovsxbd | M::Vpmovsxbd => widen!(4, 4, |b| build(4, |n| i32::from(get::<i8>(b, n)))),
        M::Pmovsxbq | M::Vpmovsxbq => widen!(8, 8, |b| build(2, |n| i64::from(get::<i8>(b, n)))),
        M::Pmovsxwd | M::Vpmovsxwd => widen!(4, 2, |b| build(4, |n| i32::from(get::<i16>(b, n)))),
        M::Pmovsxwq | M::Vpmovsxwq => widen!(8, 4, |b| build(2, |n| i64::from(get::<i16>(b, n)))),
        M::Pmovsxdq | M::Vpmovsxdq => widen!(8, 2, |b| build(2, |n| i64::from(get::<i32>(b, n)))),
        M::Pmovzxbw | M::Vpmovzxbw => widen!(2, 2, |b| build(8, |n| u16::from(get::<u8>(b, n)))),
        M::Pmovzxbd | M::Vpmovzxbd => widen!(4, 4, |b| build(4, |n| u32::from(get::<u8>(b, n)))),
        M::Pmovzxbq | M::Vpmovzxbq => widen!(8, 8, |b| build(2, |n| u64::from(get::<u8>(b, n)))),
        M::Pmovzxwd | M::Vpmovzxwd => widen!(4, 2, |b| build(4, |n| u32::from(get::<u16>(b, n)))),
        M::Pmovzxwq | M::Vpmovzxwq => widen!(8, 4, |b| build(2, |n| u64::from(get::<u16>(b, n)))),
        M::Pmovzxdq | M::Vpmovzxdq => widen!(8, 2, |b| build(2, |n| u64::from(get::<u32>(b, n)))),
        _ => return None,
    })
}

#[rustfmt::skip]
fn cryptography(mnemonic: Mnemonic) -> Option<Plain> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Aesenc | M::Vaesenc => whole!(16, crypto::encrypt),
        M::Aesenclast | M::Vaesenclast => whole!(16, crypto::encrypt_last),
        M::Aesdec | M::Vaesdec => whole!(16, crypto::decrypt),
        M::Aesdeclast | M::Vaesdeclast => whole!(16, crypto::decrypt_last),
        M::Aesimc | M::Vaesimc => one!(16, crypto::inverse_mix),
        M::Aeskeygenassist | M::Vaeskeygenassist => three!(16, crypto::assist),
        M::Pclmulqdq | M::Vpclmulqdq => three!(16, crypto::carryless),
        M::Gf2p8mulb | M::Vgf2p8mulb => two!(1, |a, b| zip(a, b, crypto::multiply)),
        M::Gf2p8affineqb | M::Vgf2p8affineqb => three!(1, crypto::affine),
        M::Gf2p8affineinvqb | M::Vgf2p8affineinvqb => three!(1, |a, b, i| crypto::affine(map(a, crypto::inverse), b, i)),
        _ => return None,
    })
}

#[rustfmt::skip]
fn shifts(mnemonic: Mnemonic) -> Option<Plain> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Psllw | M::Vpsllw => shift!(2, |a, c| map(a, |x: u16| count(c).and_then(|c| x.checked_shl(c)).unwrap_or(0))),
        M::Pslld | M::Vpslld => shift!(4, |a, c| map(a, |x: u32| count(c).and_then(|c| x.checked_shl(c)).unwrap_or(0))),
        M::Psllq | M::Vpsllq => shift!(8, |a, c| map(a, |x: u64| count(c).and_then(|c| x.checked_shl(c)).unwrap_or(0))),
        M::Psrlw | M::Vpsrlw => shift!(2, |a, c| map(a, |x: u16| count(c).and_then(|c| x.checked_shr(c)).unwrap_or(0))),
        M::Psrld | M::Vpsrld => shift!(4, |a, c| map(a, |x: u32| count(c).and_then(|c| x.checked_shr(c)).unwrap_or(0))),
        M::Psrlq | M::Vpsrlq => shift!(8, |a, c| map(a, |x: u64| count(c).and_then(|c| x.checked_shr(c)).unwrap_or(0))),
        M::Vpsllvd => two!(4, |a, b| zip(a, b, |x: u32, c: u32| x.checked_shl(c).unwrap_or(0))),
        M::Vpsllvq => two!(8, |a, b| zip(a, b, |x: u64, c| count(c).and_then(|c| x.checked_shl(c)).unwrap_or(0))),
        M::Vpsrlvd => two!(4, |a, b| zip(a, b, |x: u32, c: u32| x.checked_shr(c).unwrap_or(0))),
        M::Vpsrlvq => two!(8, |a, b| zip(a, b, |x: u64, c| count(c).and_then(|c| x.checked_shr(c)).unwrap_or(0))),
        M::Vpsravd => two!(4, |a, b| zip(a, b, |x: i32, c: i32| x >> c.cast_unsigned().min(31))),
        M::Psraw | M::Vpsraw => shift!(2, |a, c: u64| map(a, |x: i16| x >> c.min(15))),
        M::Psrad | M::Vpsrad => shift!(4, |a, c: u64| map(a, |x: i32| x >> c.min(31))),
        M::Pslldq | M::Vpslldq => shift!(1, |a: u128, c| count(c).and_then(|c| a.checked_shl(c * 8)).unwrap_or(0)),
        M::Psrldq | M::Vpsrldq => shift!(1, |a: u128, c| count(c).and_then(|c| a.checked_shr(c * 8)).unwrap_or(0)),
        _ => return None,
    })
}

/// Shifts by an immediate, or by the low 64 bits of an XMM register or 16 bytes of memory.
pub(super) fn shift_all(
    cpu: &mut Cpu,
    insn: &Insn,
    element_bytes: usize,
    f: impl Fn(u128, u64) -> u128,
) -> Exec {
    cpu.check_vector(insn)?;
    let elements = Elements::of(insn, element_bytes);
    let last = insn.last_source();
    let immediate = insn.operands.iter().find_map(|o| match o {
        Operand::Immediate(value) => Some(*value),
        _ => None,
    });
    let (value, count) = match immediate {
        Some(count) => (
            cpu.read_vector(insn, last, elements, Faults::Suppressed)?,
            count,
        ),
        None => {
            let sixteen = Elements {
                bytes: 16,
                count: 1,
            };
            let count = cpu.read_vector(insn, last, sixteen, Faults::Whole)?;
            (
                cpu.register_lanes(insn, insn.first_source()),
                count[0] as u64,
            )
        }
    };
    let shifted = each_lane(insn.lane_count(), |lane| f(value[lane], count));
    cpu.write_vector(insn, shifted, elements)
}

/// MOVDDUP: the 128-bit form reads 8 bytes of memory.
fn movddup(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_vector(insn)?;
    let elements = Elements::of(insn, 8);
    let read = match insn.vector.bytes {
        16 => Elements { bytes: 8, count: 1 },
        _ => elements,
    };
    let source = cpu.read_vector(insn, insn.last_source(), read, Faults::Whole)?;
    let value = each_lane(insn.lane_count(), |lane| build(2, |_| source[lane] as u64));
    cpu.write_vector(insn, value, elements)
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

/// MPSADBW, one word: four bytes of `a`, from byte n or n + 4 on, against a group of four of `b`.
fn sum_of_four_differences(a: u128, b: u128, immediate: u8, n: u32) -> u16 {
    let (group, first) = (u32::from(immediate & 3) * 4, u32::from(immediate & 4) + n);
    let difference = |k| get::<u8>(a, first + k).abs_diff(get::<u8>(b, group + k));
    (0..4).map(|k| u16::from(difference(k))).sum()
}

/// PHMINPOSUW: the smallest unsigned word, then the number of the first that is as small.
fn smallest_word(b: u128) -> u128 {
    let words = (0..8).map(|n| (get::<u16>(b, n), n));
    let (word, n) = words.min().unwrap_or((0, 0));
    u128::from(word) | u128::from(n) << 16
}

/// PMOVMSKB, MOVMSKPS, MOVMSKPD: the sign bits of the lanes of `BITS` bits.
fn signs<const BITS: usize>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_vector(insn)?;
    let value = cpu.register_lanes(insn, 1);
    let count = usize::from(insn.vector.bytes) * 8 / BITS;
    let sign = |n: usize| {
        let bit = n * BITS + BITS - 1;
        (value[bit / 128] >> (bit % 128) & 1) as u64
    };
    let mask = (0..count).fold(0, |mask, n| mask | sign(n) << n);
    cpu.write::<u64>(insn, 0, mask)
}

/// PTEST, and VTESTPS and VTESTPD, which look at the sign bits alone: ZF and CF; the other status
/// flags are cleared.
fn test(cpu: &mut Cpu, insn: &Insn, bits: u128) -> Exec {
    cpu.check_vector(insn)?;
    let source = cpu.read_vector(insn, 1, Elements::of(insn, 16), Faults::Whole)?;
    let value = cpu.register_lanes(insn, 0);
    let lanes = 0..insn.lane_count();
    let is_zero =
        |f: fn(u128, u128) -> u128| lanes.clone().all(|n| f(source[n], value[n]) & bits == 0);
    let mut flags = Rflags::empty();
    flags.set(Rflags::ZF, is_zero(|source, value| source & value));
    flags.set(Rflags::CF, is_zero(|source, value| source & !value));
    cpu.set_status(Rflags::STATUS, flags);
    Ok(())
}
