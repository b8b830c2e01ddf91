//! Moves, and what goes between vector registers and general-purpose registers or flags.

use core::arch::asm;
use core::arch::x86_64::*;

use iced_x86::Mnemonic;

use super::super::float::{ROUNDING_NOTED, Real, SIGNIFICANT};
use super::integer::kernels;
use super::{Forms, Kernel, Size, Sources, forms, get_32, host_bytes, low, place, put, read};
use crate::Cpu;
use crate::flags::LazyFlags;
use crate::mem::tlb::Unaligned;
use crate::uop::operand::{self, address};
use crate::uop::{Handler, Uop, bail, next};
use crate::width::Width;

/// By kind of address: `BASE`, `INDEXED`.
type Kinds = [Handler; 2];

/// One handler for each kind of address.
macro_rules! kinds {
    ($f:ident $(, $x:tt)*) => {
        [$f::<$($x,)* 0>, $f::<$($x,)* 1>]
    };
}

/// Aligned loads of 16 and 32 bytes.
pub(crate) const LOAD_ALIGNED: [Kinds; 2] = [kinds!(load_aligned, 16), kinds!(load_aligned, 32)];
/// Stores of 32 bytes: aligned and any.
pub(crate) const STORE_32: [Kinds; 2] = [kinds!(store_32, true), kinds!(store_32, false)];
/// VEXTRACTF128, VEXTRACTI128 to memory.
pub(crate) const STORE_LANE: Kinds = kinds!(store_lane);
/// VPTEST of 16 and 32 bytes: of a register and memory.
pub(crate) const TEST: [(Handler, Kinds); 2] = [
    (test_register::<16>, kinds!(test_memory, 16)),
    (test_register::<32>, kinds!(test_memory, 32)),
];
/// VMOVD, VMOVQ from a general-purpose register.
pub(crate) const FROM_GENERAL: [Handler; 2] = [from_general::<u32>, from_general::<u64>];
/// VPMOVMSKB, VMOVMSKPS, VMOVMSKPD of 32 bytes.
pub(crate) const SIGNS: [Handler; 3] = [signs::<8>, signs::<32>, signs::<64>];
/// VPINSRB, VPINSRW, VPINSRD, VPINSRQ from a general-purpose register.
pub(crate) const INSERT: [Handler; 4] = [insert::<u8>, insert::<u16>, insert::<u32>, insert::<u64>];
/// VPEXTRB, VPEXTRW, VPEXTRD, VPEXTRQ to a general-purpose register.
pub(crate) const EXTRACT: [Handler; 4] = [
    extract::<u8>,
    extract::<u16>,
    extract::<u32>,
    extract::<u64>,
];
/// VCVTSI2SS and VCVTSI2SD from a general-purpose register of 32 or 64 bits.
pub(crate) const FROM_INTEGER: [[Handler; 2]; 2] = [
    [from_integer::<f32, u32>, from_integer::<f32, u64>],
    [from_integer::<f64, u32>, from_integer::<f64, u64>],
];
/// VZEROUPPER of 8 and 16 registers.
pub(crate) const ZERO_UPPER: [Handler; 2] = [zero::<8, true>, zero::<16, true>];
/// VZEROALL.
pub(crate) const ZERO_ALL: [Handler; 2] = [zero::<8, false>, zero::<16, false>];

#[target_feature(enable = "avx2")]
unsafe fn load_aligned<const LENGTH: usize, const A: u8>(
    cpu: *mut Cpu,
    op: *const Uop,
) -> *const Uop {
    // SAFETY: `uop`, "Safety"; chosen only where the host is good for it.
    unsafe {
        let va = address::<A>(cpu, op);
        if va & (LENGTH as u64 - 1) != 0 {
            bail!(cpu, op);
        }
        let at = host_bytes!(cpu, op, va, LENGTH, read);
        let value = read(at, LENGTH);
        put(cpu, (*op).dst, LENGTH, value, value);
        next!(cpu, op.add(1))
    }
}

#[target_feature(enable = "avx2")]
unsafe fn store_32<const ALIGNED: bool, const A: u8>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: as in `load_aligned`.
    unsafe {
        let va = address::<A>(cpu, op);
        if ALIGNED && va & 31 != 0 {
            bail!(cpu, op);
        }
        let at = host_bytes!(cpu, op, va, 32, write);
        // A volatile access of 32 bytes would go by way of the stack.
        asm!(
            "vmovdqu ymmword ptr [{at}], {value}",
            at = in(reg) at, value = in(ymm_reg) get_32(cpu, (*op).src),
            options(nostack, preserves_flags),
        );
        next!(cpu, op.add(1))
    }
}

#[target_feature(enable = "avx2")]
unsafe fn store_lane<const A: u8>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: as in `load_aligned`; the lane is one of the register's.
    unsafe {
        let at = host_bytes!(cpu, op, address::<A>(cpu, op), 16, write);
        let lanes = place(cpu, (*op).src).cast::<Unaligned<__m128i>>();
        let value = *lanes.add((*op).imm as usize & 1);
        (at as *mut Unaligned<__m128i>).write_volatile(value);
        next!(cpu, op.add(1))
    }
}

/// VMOVD, VMOVQ from a general-purpose register.
#[target_feature(enable = "avx2")]
unsafe fn from_general<W: Width>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: as in `load_aligned`.
    unsafe {
        let value = operand::get::<W>(cpu, (*op).src).to_u64();
        let value = _mm256_zextsi128_si256(_mm_cvtsi64_si128(value as i64));
        put(cpu, (*op).dst, 16, value, value);
        next!(cpu, op.add(1))
    }
}

/// VPMOVMSKB, VMOVMSKPS, VMOVMSKPD of 32 bytes, in lanes of so many bits.
#[target_feature(enable = "avx2")]
unsafe fn signs<const BITS: u32>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: as in `load_aligned`.
    unsafe {
        let value = get_32(cpu, (*op).src);
        let mask = match BITS {
            8 => _mm256_movemask_epi8(value),
            32 => _mm256_movemask_ps(_mm256_castsi256_ps(value)),
            _ => _mm256_movemask_pd(_mm256_castsi256_pd(value)),
        };
        operand::set(cpu, (*op).dst, mask as u32);
        next!(cpu, op.add(1))
    }
}

/// The flags of VPTEST: ZF if `a & b` is 0, CF if `!a & b` is 0.
#[inline(always)]
unsafe fn tested(a: __m256i, b: __m256i) -> LazyFlags {
    // SAFETY: the caller's host has AVX2.
    unsafe { LazyFlags::ordered(_mm256_testz_si256(a, b) != 0, _mm256_testc_si256(a, b) != 0) }
}

#[target_feature(enable = "avx2")]
unsafe fn test_register<const LENGTH: usize>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: as in `load_aligned`.
    unsafe {
        let (a, b) = (get_32(cpu, (*op).dst), get_32(cpu, (*op).src));
        (*cpu).flags = tested(low(a, LENGTH), low(b, LENGTH));
        next!(cpu, op.add(1))
    }
}

#[target_feature(enable = "avx2")]
unsafe fn test_memory<const LENGTH: usize, const A: u8>(
    cpu: *mut Cpu,
    op: *const Uop,
) -> *const Uop {
    // SAFETY: as in `load_aligned`.
    unsafe {
        let at = host_bytes!(cpu, op, address::<A>(cpu, op), LENGTH, read);
        let a = get_32(cpu, (*op).dst);
        (*cpu).flags = tested(low(a, LENGTH), read(at, LENGTH));
        next!(cpu, op.add(1))
    }
}

/// VPINSRB and its like: an element from a general-purpose register, the others from the first
/// source.
#[target_feature(enable = "avx2")]
unsafe fn insert<W: Width>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: as in `load_aligned`.
    unsafe {
        let a = get_32(cpu, (*op).detail as u8 & 31);
        let new = operand::get::<W>(cpu, (*op).src).to_u64();
        let number = (*op).imm & (16 / W::BYTES as i32 - 1);
        let (new, chosen) = match W::BYTES {
            1 => {
                let numbers = _mm_set_epi64x(0x0f0e_0d0c_0b0a_0908, 0x0706_0504_0302_0100);
                let chosen = _mm_cmpeq_epi8(numbers, _mm_set1_epi8(number as i8));
                (_mm_set1_epi8(new as i8), chosen)
            }
            2 => {
                let numbers = _mm_set_epi16(7, 6, 5, 4, 3, 2, 1, 0);
                let chosen = _mm_cmpeq_epi16(numbers, _mm_set1_epi16(number as i16));
                (_mm_set1_epi16(new as i16), chosen)
            }
            4 => {
                let numbers = _mm_set_epi32(3, 2, 1, 0);
                let chosen = _mm_cmpeq_epi32(numbers, _mm_set1_epi32(number));
                (_mm_set1_epi32(new as i32), chosen)
            }
            _ => {
                let numbers = _mm_set_epi64x(1, 0);
                let chosen = _mm_cmpeq_epi64(numbers, _mm_set1_epi64x(i64::from(number)));
                (_mm_set1_epi64x(new as i64), chosen)
            }
        };
        let lane = _mm_blendv_epi8(_mm256_castsi256_si128(a), new, chosen);
        put(cpu, (*op).dst, 16, _mm256_zextsi128_si256(lane), a);
        next!(cpu, op.add(1))
    }
}

/// VPEXTRB and its like: an element to a general-purpose register, the rest of which is cleared.
unsafe fn extract<W: Width>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety"; the element is one of the register's.
    unsafe {
        let number = (*op).imm as usize & (16 / W::BYTES - 1);
        let elements = place(cpu, (*op).src).cast::<Unaligned<W>>();
        let value = (*elements.add(number)).0.to_u64();
        operand::set(cpu, (*op).dst, value);
        next!(cpu, op.add(1))
    }
}

/// VCVTSI2SS, VCVTSI2SD.
#[target_feature(enable = "avx2")]
unsafe fn from_integer<F: Real, W: Width>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: as in `load_aligned`.
    unsafe {
        let is_exact = W::BITS == 32 && <F::Bits as Width>::BITS == 64;
        if !is_exact && (*cpu).fpu.mxcsr & SIGNIFICANT != ROUNDING_NOTED {
            bail!(cpu, op);
        }
        let value = F::from_i64(operand::get::<W>(cpu, (*op).src).to_i64());
        let value = _mm_cvtsi64_si128(value.bits().to_u64() as i64);
        let a = get_32(cpu, (*op).detail as u8 & 31);
        put(
            cpu,
            (*op).dst,
            <F::Bits as Width>::BYTES,
            _mm256_zextsi128_si256(value),
            a,
        );
        next!(cpu, op.add(1))
    }
}

/// VZEROUPPER (`LOW` true), VZEROALL: of so many registers.
#[target_feature(enable = "avx2")]
unsafe fn zero<const COUNT: u8, const LOW: bool>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: as in `load_aligned`.
    unsafe {
        let mut number = 0;
        while number < COUNT {
            let value = if LOW {
                get_32(cpu, number)
            } else {
                _mm256_setzero_si256()
            };
            put(cpu, number, 16, value, value);
            number += 1;
        }
        next!(cpu, op.add(1))
    }
}

kernels! { scalars:
    single(Size::Bytes(4)) {
        Vmovss => |_, b, _, _| b;
    }
    double(Size::Bytes(8)) {
        Vmovsd => |_, b, _, _| b;
    }
}

/// Returns the handlers of VMOVSS and VMOVSD between registers.
pub(super) fn table(mnemonic: Mnemonic) -> Option<Forms> {
    scalars(mnemonic, 16)
}

/// All handlers of this file.
#[cfg(test)]
pub(super) fn handlers() -> Vec<Handler> {
    let mut all: Vec<Handler> = STORE_LANE.into();
    for table in [LOAD_ALIGNED, STORE_32, FROM_INTEGER] {
        all.extend(table.iter().flatten());
    }
    for table in [FROM_GENERAL, ZERO_UPPER, ZERO_ALL] {
        all.extend(table);
    }
    for (register, memory) in TEST {
        all.push(register);
        all.extend(memory);
    }
    all.extend(SIGNS.iter().chain(&INSERT).chain(&EXTRACT));
    all
}
