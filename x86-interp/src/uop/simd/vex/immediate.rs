//! Operations with an immediate byte that selects or shifts. The host's instructions have it in their
//! encoding, so it becomes a vector of selectors here.

use core::arch::x86_64::*;

use iced_x86::Mnemonic;

use super::integer::kernels;
use super::{Forms, Kernel, Size, Sources, float, forms, packed};

/// Returns the handlers of an instruction with an immediate.
pub(super) fn table(mnemonic: Mnemonic, length: u8) -> Option<Forms> {
    shifts(mnemonic, length)
        .or_else(|| shuffles(mnemonic, length))
        .or_else(|| blends(mnemonic, length))
        .or_else(|| float::with_immediate(mnemonic, length))
}

/// A count in the low quadword.
#[inline(always)]
unsafe fn count(imm: i32) -> __m128i {
    // SAFETY: every x86-64 processor has SSE2.
    unsafe { _mm_cvtsi32_si128(imm & 0xff) }
}

kernels! { shifts:
    packed(Size::Whole) {
        Vpsllw => |_, b, _, i| _mm256_sll_epi16(b, count(i));
        Vpslld => |_, b, _, i| _mm256_sll_epi32(b, count(i));
        Vpsllq => |_, b, _, i| _mm256_sll_epi64(b, count(i));
        Vpsrlw => |_, b, _, i| _mm256_srl_epi16(b, count(i));
        Vpsrld => |_, b, _, i| _mm256_srl_epi32(b, count(i));
        Vpsrlq => |_, b, _, i| _mm256_srl_epi64(b, count(i));
        Vpsraw => |_, b, _, i| _mm256_sra_epi16(b, count(i));
        Vpsrad => |_, b, _, i| _mm256_sra_epi32(b, count(i));
        Vpslldq => |_, b, _, i| _mm256_shuffle_epi8(b, from_byte(-(i & 0xff).min(16)));
        Vpsrldq => |_, b, _, i| _mm256_shuffle_epi8(b, from_byte((i & 0xff).min(16)));
        Vpalignr => |a, b, _, i| {
            let by = (i & 0xff).min(32);
            let low = _mm256_shuffle_epi8(b, from_byte(by));
            _mm256_or_si256(low, _mm256_shuffle_epi8(a, from_byte(by - 16)))
        };
    }
}

/// Selectors for VPSHUFB: the bytes of each lane from number `first` on, 0 for those outside.
#[inline(always)]
unsafe fn from_byte(first: i32) -> __m256i {
    // SAFETY: the caller's host has AVX2.
    unsafe {
        let lane = _mm_set_epi64x(0x0f0e_0d0c_0b0a_0908, 0x0706_0504_0302_0100);
        let numbers = _mm256_add_epi8(
            _mm256_broadcastsi128_si256(lane),
            _mm256_set1_epi8(first as i8),
        );
        // Bit 7 is set from 16 on, and stays so in the negative ones.
        _mm256_adds_epu8(numbers, _mm256_set1_epi8(0x70))
    }
}

/// Four selectors of two bits, as numbers of pairs: 2n and 2n + 1 in two bytes each.
#[inline(always)]
unsafe fn pairs(imm: i32) -> i64 {
    // SAFETY: the caller's host has BMI2.
    let numbers = unsafe { _pdep_u64(u64::from(imm as u8), 0x0003_0003_0003_0003) };
    (numbers * 0x0202 + 0x0100_0100_0100_0100) as i64
}

/// Selectors of doublewords within lanes: two bits of the immediate each.
#[inline(always)]
unsafe fn doublewords(imm: i32) -> __m256i {
    // SAFETY: the caller's host has AVX2.
    unsafe {
        let by = _mm256_set_epi32(6, 4, 2, 0, 6, 4, 2, 0);
        _mm256_srlv_epi32(_mm256_set1_epi32(imm), by)
    }
}

#[inline(always)]
unsafe fn pick(from: __m256i, selectors: __m256i) -> __m256i {
    // SAFETY: the caller's host has AVX2.
    unsafe { _mm256_castps_si256(_mm256_permutevar_ps(_mm256_castsi256_ps(from), selectors)) }
}

/// Words 0 to 3 (`HIGH` false) or 4 to 7 of each lane.
#[inline(always)]
unsafe fn words<const HIGH: bool>(from: __m256i, imm: i32) -> __m256i {
    // SAFETY: the caller's host has AVX2.
    unsafe {
        let selectors = pairs(imm);
        let lane = if HIGH {
            let offset = 0x0808_0808_0808_0808;
            _mm_set_epi64x(selectors + offset, 0x0706_0504_0302_0100)
        } else {
            _mm_set_epi64x(0x0f0e_0d0c_0b0a_0908, selectors)
        };
        _mm256_shuffle_epi8(from, _mm256_broadcastsi128_si256(lane))
    }
}

/// Quadwords across the lanes.
#[inline(always)]
unsafe fn quadwords(from: __m256i, imm: i32) -> __m256i {
    // SAFETY: the caller's host has AVX2.
    unsafe {
        let selectors = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(pairs(imm)));
        _mm256_permutevar8x32_epi32(from, selectors)
    }
}

/// One lane of those of `a` and `b`, or 0, in both lanes.
#[inline(always)]
unsafe fn lane(a: __m256i, b: __m256i, selector: i32) -> __m256i {
    // SAFETY: the caller's host has AVX2.
    unsafe {
        let mask = |bit: i32| _mm256_set1_epi32(-(selector >> bit & 1));
        let from = _mm256_blendv_epi8(a, b, mask(1));
        let low = _mm256_permute2x128_si256::<0x00>(from, from);
        let high = _mm256_permute2x128_si256::<0x11>(from, from);
        _mm256_andnot_si256(mask(3), _mm256_blendv_epi8(low, high, mask(0)))
    }
}

kernels! { shuffles:
    packed(Size::Whole) {
        Vpshufd | Vpermilps => |_, b, _, i| pick(b, doublewords(i));
        Vpermilpd => |_, b, _, i| {
            // Bit 1 of each quadword selects.
            let by = _mm256_set_epi64x(2, 1, 0, 0);
            let first = _mm256_set_epi64x(0, 0, 0, 1);
            let selectors = _mm256_srlv_epi64(_mm256_set1_epi64x(i64::from(i)), by);
            let selectors = _mm256_sllv_epi64(selectors, first);
            _mm256_castpd_si256(_mm256_permutevar_pd(_mm256_castsi256_pd(b), selectors))
        };
        Vpshuflw => |_, b, _, i| words::<false>(b, i);
        Vpshufhw => |_, b, _, i| words::<true>(b, i);
        Vshufps => |a, b, _, i| {
            let selectors = doublewords(i);
            _mm256_blend_epi32::<0b1100_1100>(pick(a, selectors), pick(b, selectors))
        };
        Vshufpd => |a, b, _, i| {
            let bits = _mm256_set_epi64x(8, 4, 2, 1);
            let chosen = _mm256_and_si256(_mm256_set1_epi64x(i64::from(i)), bits);
            let chosen = _mm256_cmpeq_epi64(chosen, bits);
            let low = _mm256_unpacklo_epi64(a, b);
            _mm256_blendv_epi8(low, _mm256_unpackhi_epi64(a, b), chosen)
        };
        Vpermq | Vpermpd => |_, b, _, i| quadwords(b, i);
        Vperm2i128 | Vperm2f128 => |a, b, _, i| {
            _mm256_blend_epi32::<0b1111_0000>(lane(a, b, i), lane(a, b, i >> 4))
        };
    }
    packed(Size::Bytes(16)) {
        Vinserti128 | Vinsertf128 => |a, b, _, i| {
            let b = _mm256_broadcastsi128_si256(_mm256_castsi256_si128(b));
            if i & 1 == 0 {
                _mm256_blend_epi32::<0b0000_1111>(a, b)
            } else {
                _mm256_blend_epi32::<0b1111_0000>(a, b)
            }
        };
    }
    lane(Size::Bytes(16)) {
        Vextracti128 | Vextractf128 => |_, b, _, i| {
            if i & 1 == 0 {
                b
            } else {
                _mm256_permute2x128_si256::<0x11>(b, b)
            }
        };
    }
}

/// Takes `b` where the bits of the immediate that `numbers` has are set.
macro_rules! blend {
    ($a:ident, $b:ident, $i:ident, $set1:ident, $eq:ident, $bits:expr) => {{
        let bits = $bits;
        let chosen = $eq(_mm256_and_si256($set1($i as _), bits), bits);
        _mm256_blendv_epi8($a, $b, chosen)
    }};
}

kernels! { blends:
    packed(Size::Whole) {
        Vpblendd | Vblendps => |a, b, _, i| blend!(a, b, i, _mm256_set1_epi32, _mm256_cmpeq_epi32,
            _mm256_set_epi32(128, 64, 32, 16, 8, 4, 2, 1));
        Vblendpd => |a, b, _, i| blend!(a, b, i, _mm256_set1_epi64x, _mm256_cmpeq_epi64,
            _mm256_set_epi64x(8, 4, 2, 1));
        Vpblendw => |a, b, _, i| blend!(a, b, i, _mm256_set1_epi16, _mm256_cmpeq_epi16,
            _mm256_broadcastsi128_si256(_mm_set_epi16(128, 64, 32, 16, 8, 4, 2, 1)));
    }
}
