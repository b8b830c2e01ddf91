//! Bitwise logic, integer arithmetic, comparisons, shuffles and shifts of whole XMM registers: those
//! that every x86-64 host executes itself.

use core::arch::x86_64::*;

use iced_x86::Code;

use super::{Forms, get, host_16, kinds, place, read_16, set};
use crate::Cpu;
use crate::uop::operand::{self, address};
use crate::uop::{Handler, Uop, next};

/// An operation on two registers and an immediate.
trait Whole {
    fn apply(a: __m128i, b: __m128i, immediate: i32) -> __m128i;
}

unsafe fn register<O: Whole>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe {
        let (a, b) = (get(cpu, (*op).dst), get(cpu, (*op).src));
        set(cpu, (*op).dst, O::apply(a, b, (*op).imm));
        next!(cpu, op.add(1))
    }
}

unsafe fn memory<O: Whole, const A: u8>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe {
        let at = host_16!(cpu, op, address::<A>(cpu, op), read, true);
        let (a, b) = (get(cpu, (*op).dst), read_16(at));
        set(cpu, (*op).dst, O::apply(a, b, (*op).imm));
        next!(cpu, op.add(1))
    }
}

/// PMOVMSKB, MOVMSKPS, MOVMSKPD of lanes of so many bits.
unsafe fn signs<const BITS: u32>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe {
        let value = get(cpu, (*op).src);
        let mask = match BITS {
            8 => _mm_movemask_epi8(value),
            32 => _mm_movemask_ps(_mm_castsi128_ps(value)),
            _ => _mm_movemask_pd(_mm_castsi128_pd(value)),
        };
        operand::set(cpu, (*op).dst, mask as u32);
        next!(cpu, op.add(1))
    }
}

/// PSHUFD, SHUFPS of registers: the first two lanes are those of the source (or the destination).
unsafe fn shuffle<const FROM_SOURCE: bool>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety"; lane numbers are below 4.
    unsafe {
        let second = place(cpu, (*op).src).cast::<i32>();
        let first = if FROM_SOURCE {
            second
        } else {
            place(cpu, (*op).dst).cast::<i32>()
        };
        let number = |n: u32| (*op).imm as usize >> (2 * n) & 3;
        let value = _mm_set_epi32(
            *second.add(number(3)),
            *second.add(number(2)),
            *first.add(number(1)),
            *first.add(number(0)),
        );
        set(cpu, (*op).dst, value);
        next!(cpu, op.add(1))
    }
}

/// Returns the handlers of an instruction.
pub(crate) fn forms(code: Code) -> Option<Forms> {
    let forms = operation_forms(code)?;
    let register = match code {
        Code::Pshufd_xmm_xmmm128_imm8 => shuffle::<true>,
        Code::Shufps_xmm_xmmm128_imm8 => shuffle::<false>,
        _ => forms.register,
    };
    Some(Forms { register, ..forms })
}

/// PMOVMSKB, MOVMSKPS, MOVMSKPD.
pub(crate) const SIGNS: [Handler; 3] = [signs::<8>, signs::<32>, signs::<64>];

/// Returns the handler of a move of sign bits to a general-purpose register.
pub(crate) fn mask_of_signs(code: Code) -> Option<Handler> {
    Some(match code {
        Code::Pmovmskb_r32_xmm | Code::Pmovmskb_r64_xmm => SIGNS[0],
        Code::Movmskps_r32_xmm | Code::Movmskps_r64_xmm => SIGNS[1],
        Code::Movmskpd_r32_xmm | Code::Movmskpd_r64_xmm => SIGNS[2],
        _ => return None,
    })
}

/// Defines operations and the table of those that have two operands and perhaps an immediate.
macro_rules! operations {
    ($($($code:ident)|+ => |$a:pat_param, $b:pat_param, $i:pat_param| $body:expr;)*) => {
        mod operation {
            $(operations!(@type $($code)|+);)*
        }
        $(operations!(@impl $($code)|+ => |$a, $b, $i| $body);)*
        fn operation_forms(code: Code) -> Option<Forms> {
            Some(match code {
                $($(Code::$code)|+ => operations!(@forms $($code)|+),)*
                _ => return None,
            })
        }
    };
    (@type $code:ident $(| $more:ident)*) => {
        #[expect(non_camel_case_types, reason = "the decoder's name of the instruction")]
        pub(super) struct $code;
    };
    (@impl $code:ident $(| $more:ident)* => |$a:pat_param, $b:pat_param, $i:pat_param| $body:expr) => {
        impl Whole for operation::$code {
            #[inline(always)]
            #[allow(unused_unsafe, reason = "some intrinsics are safe, some are not")]
            fn apply($a: __m128i, $b: __m128i, $i: i32) -> __m128i {
                // SAFETY: every x86-64 processor has SSE2.
                unsafe { $body }
            }
        }
    };
    (@forms $code:ident $(| $more:ident)*) => {
        Forms {
            register: register::<operation::$code>,
            memory: kinds!(memory, operation::$code),
            bytes: 16,
        }
    };
}

operations! {
    Xorps_xmm_xmmm128 | Xorpd_xmm_xmmm128 | Pxor_xmm_xmmm128 => |a, b, _| _mm_xor_si128(a, b);
    Orps_xmm_xmmm128 | Orpd_xmm_xmmm128 | Por_xmm_xmmm128 => |a, b, _| _mm_or_si128(a, b);
    Andps_xmm_xmmm128 | Andpd_xmm_xmmm128 | Pand_xmm_xmmm128 => |a, b, _| _mm_and_si128(a, b);
    Andnps_xmm_xmmm128 | Andnpd_xmm_xmmm128 | Pandn_xmm_xmmm128 => |a, b, _| _mm_andnot_si128(a, b);
    Paddb_xmm_xmmm128 => |a, b, _| _mm_add_epi8(a, b);
    Paddw_xmm_xmmm128 => |a, b, _| _mm_add_epi16(a, b);
    Paddd_xmm_xmmm128 => |a, b, _| _mm_add_epi32(a, b);
    Paddq_xmm_xmmm128 => |a, b, _| _mm_add_epi64(a, b);
    Psubb_xmm_xmmm128 => |a, b, _| _mm_sub_epi8(a, b);
    Psubw_xmm_xmmm128 => |a, b, _| _mm_sub_epi16(a, b);
    Psubd_xmm_xmmm128 => |a, b, _| _mm_sub_epi32(a, b);
    Psubq_xmm_xmmm128 => |a, b, _| _mm_sub_epi64(a, b);
    Paddsb_xmm_xmmm128 => |a, b, _| _mm_adds_epi8(a, b);
    Paddsw_xmm_xmmm128 => |a, b, _| _mm_adds_epi16(a, b);
    Paddusb_xmm_xmmm128 => |a, b, _| _mm_adds_epu8(a, b);
    Paddusw_xmm_xmmm128 => |a, b, _| _mm_adds_epu16(a, b);
    Psubsb_xmm_xmmm128 => |a, b, _| _mm_subs_epi8(a, b);
    Psubsw_xmm_xmmm128 => |a, b, _| _mm_subs_epi16(a, b);
    Psubusb_xmm_xmmm128 => |a, b, _| _mm_subs_epu8(a, b);
    Psubusw_xmm_xmmm128 => |a, b, _| _mm_subs_epu16(a, b);
    Pavgb_xmm_xmmm128 => |a, b, _| _mm_avg_epu8(a, b);
    Pavgw_xmm_xmmm128 => |a, b, _| _mm_avg_epu16(a, b);
    Pmullw_xmm_xmmm128 => |a, b, _| _mm_mullo_epi16(a, b);
    Pmulhw_xmm_xmmm128 => |a, b, _| _mm_mulhi_epi16(a, b);
    Pmulhuw_xmm_xmmm128 => |a, b, _| _mm_mulhi_epu16(a, b);
    Pmuludq_xmm_xmmm128 => |a, b, _| _mm_mul_epu32(a, b);
    Pmaddwd_xmm_xmmm128 => |a, b, _| _mm_madd_epi16(a, b);
    Psadbw_xmm_xmmm128 => |a, b, _| _mm_sad_epu8(a, b);
    Pmaxub_xmm_xmmm128 => |a, b, _| _mm_max_epu8(a, b);
    Pmaxsw_xmm_xmmm128 => |a, b, _| _mm_max_epi16(a, b);
    Pminub_xmm_xmmm128 => |a, b, _| _mm_min_epu8(a, b);
    Pminsw_xmm_xmmm128 => |a, b, _| _mm_min_epi16(a, b);
    Pcmpeqb_xmm_xmmm128 => |a, b, _| _mm_cmpeq_epi8(a, b);
    Pcmpeqw_xmm_xmmm128 => |a, b, _| _mm_cmpeq_epi16(a, b);
    Pcmpeqd_xmm_xmmm128 => |a, b, _| _mm_cmpeq_epi32(a, b);
    Pcmpgtb_xmm_xmmm128 => |a, b, _| _mm_cmpgt_epi8(a, b);
    Pcmpgtw_xmm_xmmm128 => |a, b, _| _mm_cmpgt_epi16(a, b);
    Pcmpgtd_xmm_xmmm128 => |a, b, _| _mm_cmpgt_epi32(a, b);
    Punpcklbw_xmm_xmmm128 => |a, b, _| _mm_unpacklo_epi8(a, b);
    Punpcklwd_xmm_xmmm128 => |a, b, _| _mm_unpacklo_epi16(a, b);
    Punpckldq_xmm_xmmm128 | Unpcklps_xmm_xmmm128 => |a, b, _| _mm_unpacklo_epi32(a, b);
    Punpcklqdq_xmm_xmmm128 | Unpcklpd_xmm_xmmm128 => |a, b, _| _mm_unpacklo_epi64(a, b);
    Punpckhbw_xmm_xmmm128 => |a, b, _| _mm_unpackhi_epi8(a, b);
    Punpckhwd_xmm_xmmm128 => |a, b, _| _mm_unpackhi_epi16(a, b);
    Punpckhdq_xmm_xmmm128 | Unpckhps_xmm_xmmm128 => |a, b, _| _mm_unpackhi_epi32(a, b);
    Punpckhqdq_xmm_xmmm128 | Unpckhpd_xmm_xmmm128 => |a, b, _| _mm_unpackhi_epi64(a, b);
    Packsswb_xmm_xmmm128 => |a, b, _| _mm_packs_epi16(a, b);
    Packssdw_xmm_xmmm128 => |a, b, _| _mm_packs_epi32(a, b);
    Packuswb_xmm_xmmm128 => |a, b, _| _mm_packus_epi16(a, b);
    Pshufd_xmm_xmmm128_imm8 => |_, b, i| pick(b, b, i);
    Shufps_xmm_xmmm128_imm8 => |a, b, i| pick(a, b, i);
    Shufpd_xmm_xmmm128_imm8 => |a, b, i| match i & 3 {
        0 => _mm_unpacklo_epi64(a, b),
        1 => _mm_or_si128(_mm_srli_si128(a, 8), _mm_slli_si128(b, 8)),
        2 => _mm_castpd_si128(_mm_move_sd(_mm_castsi128_pd(b), _mm_castsi128_pd(a))),
        _ => _mm_unpackhi_epi64(a, b),
    };
    Psllw_xmm_xmmm128 => |a, b, _| _mm_sll_epi16(a, b);
    Pslld_xmm_xmmm128 => |a, b, _| _mm_sll_epi32(a, b);
    Psllq_xmm_xmmm128 => |a, b, _| _mm_sll_epi64(a, b);
    Psrlw_xmm_xmmm128 => |a, b, _| _mm_srl_epi16(a, b);
    Psrld_xmm_xmmm128 => |a, b, _| _mm_srl_epi32(a, b);
    Psrlq_xmm_xmmm128 => |a, b, _| _mm_srl_epi64(a, b);
    Psraw_xmm_xmmm128 => |a, b, _| _mm_sra_epi16(a, b);
    Psrad_xmm_xmmm128 => |a, b, _| _mm_sra_epi32(a, b);
    Psllw_xmm_imm8 => |a, _, i| _mm_sll_epi16(a, _mm_cvtsi32_si128(i));
    Pslld_xmm_imm8 => |a, _, i| _mm_sll_epi32(a, _mm_cvtsi32_si128(i));
    Psllq_xmm_imm8 => |a, _, i| _mm_sll_epi64(a, _mm_cvtsi32_si128(i));
    Psrlw_xmm_imm8 => |a, _, i| _mm_srl_epi16(a, _mm_cvtsi32_si128(i));
    Psrld_xmm_imm8 => |a, _, i| _mm_srl_epi32(a, _mm_cvtsi32_si128(i));
    Psrlq_xmm_imm8 => |a, _, i| _mm_srl_epi64(a, _mm_cvtsi32_si128(i));
    Psraw_xmm_imm8 => |a, _, i| _mm_sra_epi16(a, _mm_cvtsi32_si128(i));
    Psrad_xmm_imm8 => |a, _, i| _mm_sra_epi32(a, _mm_cvtsi32_si128(i));
    Pslldq_xmm_imm8 => |a, _, i| shift_bytes(a, i, u128::checked_shl);
    Psrldq_xmm_imm8 => |a, _, i| shift_bytes(a, i, u128::checked_shr);
    Movhlps_xmm_xmm => |a, b, _| _mm_unpackhi_epi64(b, a);
    Movlhps_xmm_xmm => |a, b, _| _mm_unpacklo_epi64(a, b);
}

/// Two doublewords of `a`, then two of `b`, as the immediate selects.
#[inline(always)]
fn pick(a: __m128i, b: __m128i, immediate: i32) -> __m128i {
    let [a, b] = [bits(a), bits(b)];
    let lane = |from: u128, n: u32| {
        let selector = immediate as u32 >> (2 * n) & 3;
        u64::from((from >> (32 * selector)) as u32)
    };
    let (low, high) = (lane(a, 0) | lane(a, 1) << 32, lane(b, 2) | lane(b, 3) << 32);
    // SAFETY: every x86-64 processor has SSE2.
    unsafe { _mm_set_epi64x(high as i64, low as i64) }
}

#[inline(always)]
fn bits(value: __m128i) -> u128 {
    // SAFETY: both have 16 bytes, and any bits are a value of each.
    unsafe { core::mem::transmute(value) }
}

/// PSLLDQ, PSRLDQ: by so many bytes.
#[inline(always)]
fn shift_bytes(a: __m128i, count: i32, shift: fn(u128, u32) -> Option<u128>) -> __m128i {
    let shifted = shift(bits(a), 8 * (count as u32 & 0xff)).unwrap_or(0);
    // SAFETY: as in `bits`.
    unsafe { core::mem::transmute(shifted) }
}
