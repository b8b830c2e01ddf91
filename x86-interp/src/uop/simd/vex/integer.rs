//! Integers, bitwise logic and the order of elements: all lanes alike, no exceptions.

use core::arch::x86_64::*;

use iced_x86::Mnemonic;

use super::{Forms, Kernel, Size, Sources, forms, packed};

/// Defines kernels and the table of their handlers. A group says how much memory the last source is
/// and how long the result.
macro_rules! kernels {
    ($table:ident: $($made:ident($size:expr) {
        $($name:ident $(| $more:ident)* => |$a:pat_param, $b:pat_param, $c:pat_param, $i:pat_param| $body:expr;)*
    })*) => {
        mod $table {
            $($(
                #[derive(Clone, Copy)]
                pub(super) struct $name;
            )*)*
        }
        $($(
            impl Kernel for $table::$name {
                const MEMORY: Size = $size;
                #[inline(always)]
                #[allow(unused_unsafe, reason = "some need no intrinsic")]
                unsafe fn apply(s: Sources) -> (__m256i, __m256i) {
                    let ($a, $b, $c, $i) = (s.a, s.b, s.c, s.imm);
                    // SAFETY: the caller's.
                    unsafe { ($body, _mm256_setzero_si256()) }
                }
            }
        )*)*
        pub(super) fn $table(mnemonic: Mnemonic, length: u8) -> Option<Forms> {
            // Not every group has two lengths.
            let _ = length;
            Some(match mnemonic {
                $($(
                    Mnemonic::$name $(| Mnemonic::$more)* => kernels!(@$made $table::$name, length),
                )*)*
                _ => return None,
            })
        }
    };
    (@packed $K:ty, $length:ident) => { packed::<$K>($length) };
    (@single $K:ty, $length:ident) => { forms::<$K, 4>() };
    (@double $K:ty, $length:ident) => { forms::<$K, 8>() };
    (@lane $K:ty, $length:ident) => { forms::<$K, 16>() };
}
pub(super) use kernels;

/// Returns the handlers of an instruction without an immediate.
pub(super) fn table(mnemonic: Mnemonic, length: u8) -> Option<Forms> {
    arithmetic(mnemonic, length).or_else(|| order(mnemonic, length))
}

kernels! { arithmetic:
    packed(Size::Whole) {
        Vpxor | Vxorps | Vxorpd => |a, b, _, _| _mm256_xor_si256(a, b);
        Vpor | Vorps | Vorpd => |a, b, _, _| _mm256_or_si256(a, b);
        Vpand | Vandps | Vandpd => |a, b, _, _| _mm256_and_si256(a, b);
        Vpandn | Vandnps | Vandnpd => |a, b, _, _| _mm256_andnot_si256(a, b);
        Vpaddb => |a, b, _, _| _mm256_add_epi8(a, b);
        Vpaddw => |a, b, _, _| _mm256_add_epi16(a, b);
        Vpaddd => |a, b, _, _| _mm256_add_epi32(a, b);
        Vpaddq => |a, b, _, _| _mm256_add_epi64(a, b);
        Vpsubb => |a, b, _, _| _mm256_sub_epi8(a, b);
        Vpsubw => |a, b, _, _| _mm256_sub_epi16(a, b);
        Vpsubd => |a, b, _, _| _mm256_sub_epi32(a, b);
        Vpsubq => |a, b, _, _| _mm256_sub_epi64(a, b);
        Vpaddsb => |a, b, _, _| _mm256_adds_epi8(a, b);
        Vpaddsw => |a, b, _, _| _mm256_adds_epi16(a, b);
        Vpaddusb => |a, b, _, _| _mm256_adds_epu8(a, b);
        Vpaddusw => |a, b, _, _| _mm256_adds_epu16(a, b);
        Vpsubsb => |a, b, _, _| _mm256_subs_epi8(a, b);
        Vpsubsw => |a, b, _, _| _mm256_subs_epi16(a, b);
        Vpsubusb => |a, b, _, _| _mm256_subs_epu8(a, b);
        Vpsubusw => |a, b, _, _| _mm256_subs_epu16(a, b);
        Vpavgb => |a, b, _, _| _mm256_avg_epu8(a, b);
        Vpavgw => |a, b, _, _| _mm256_avg_epu16(a, b);
        Vpmullw => |a, b, _, _| _mm256_mullo_epi16(a, b);
        Vpmulld => |a, b, _, _| _mm256_mullo_epi32(a, b);
        Vpmulhw => |a, b, _, _| _mm256_mulhi_epi16(a, b);
        Vpmulhuw => |a, b, _, _| _mm256_mulhi_epu16(a, b);
        Vpmulhrsw => |a, b, _, _| _mm256_mulhrs_epi16(a, b);
        Vpmuludq => |a, b, _, _| _mm256_mul_epu32(a, b);
        Vpmuldq => |a, b, _, _| _mm256_mul_epi32(a, b);
        Vpmaddwd => |a, b, _, _| _mm256_madd_epi16(a, b);
        Vpmaddubsw => |a, b, _, _| _mm256_maddubs_epi16(a, b);
        Vpsadbw => |a, b, _, _| _mm256_sad_epu8(a, b);
        Vphaddw => |a, b, _, _| _mm256_hadd_epi16(a, b);
        Vphaddd => |a, b, _, _| _mm256_hadd_epi32(a, b);
        Vphaddsw => |a, b, _, _| _mm256_hadds_epi16(a, b);
        Vphsubw => |a, b, _, _| _mm256_hsub_epi16(a, b);
        Vphsubd => |a, b, _, _| _mm256_hsub_epi32(a, b);
        Vphsubsw => |a, b, _, _| _mm256_hsubs_epi16(a, b);
        Vpabsb => |_, b, _, _| _mm256_abs_epi8(b);
        Vpabsw => |_, b, _, _| _mm256_abs_epi16(b);
        Vpabsd => |_, b, _, _| _mm256_abs_epi32(b);
        Vpsignb => |a, b, _, _| _mm256_sign_epi8(a, b);
        Vpsignw => |a, b, _, _| _mm256_sign_epi16(a, b);
        Vpsignd => |a, b, _, _| _mm256_sign_epi32(a, b);
        Vpmaxub => |a, b, _, _| _mm256_max_epu8(a, b);
        Vpmaxuw => |a, b, _, _| _mm256_max_epu16(a, b);
        Vpmaxud => |a, b, _, _| _mm256_max_epu32(a, b);
        Vpmaxsb => |a, b, _, _| _mm256_max_epi8(a, b);
        Vpmaxsw => |a, b, _, _| _mm256_max_epi16(a, b);
        Vpmaxsd => |a, b, _, _| _mm256_max_epi32(a, b);
        Vpminub => |a, b, _, _| _mm256_min_epu8(a, b);
        Vpminuw => |a, b, _, _| _mm256_min_epu16(a, b);
        Vpminud => |a, b, _, _| _mm256_min_epu32(a, b);
        Vpminsb => |a, b, _, _| _mm256_min_epi8(a, b);
        Vpminsw => |a, b, _, _| _mm256_min_epi16(a, b);
        Vpminsd => |a, b, _, _| _mm256_min_epi32(a, b);
        Vpcmpeqb => |a, b, _, _| _mm256_cmpeq_epi8(a, b);
        Vpcmpeqw => |a, b, _, _| _mm256_cmpeq_epi16(a, b);
        Vpcmpeqd => |a, b, _, _| _mm256_cmpeq_epi32(a, b);
        Vpcmpeqq => |a, b, _, _| _mm256_cmpeq_epi64(a, b);
        Vpcmpgtb => |a, b, _, _| _mm256_cmpgt_epi8(a, b);
        Vpcmpgtw => |a, b, _, _| _mm256_cmpgt_epi16(a, b);
        Vpcmpgtd => |a, b, _, _| _mm256_cmpgt_epi32(a, b);
        Vpcmpgtq => |a, b, _, _| _mm256_cmpgt_epi64(a, b);
        Vpsllvd => |a, b, _, _| _mm256_sllv_epi32(a, b);
        Vpsllvq => |a, b, _, _| _mm256_sllv_epi64(a, b);
        Vpsrlvd => |a, b, _, _| _mm256_srlv_epi32(a, b);
        Vpsrlvq => |a, b, _, _| _mm256_srlv_epi64(a, b);
        Vpsravd => |a, b, _, _| _mm256_srav_epi32(a, b);
    }
    // The count is the low half of 16 bytes, whatever the length.
    packed(Size::Bytes(16)) {
        Vpsllw => |a, b, _, _| _mm256_sll_epi16(a, _mm256_castsi256_si128(b));
        Vpslld => |a, b, _, _| _mm256_sll_epi32(a, _mm256_castsi256_si128(b));
        Vpsllq => |a, b, _, _| _mm256_sll_epi64(a, _mm256_castsi256_si128(b));
        Vpsrlw => |a, b, _, _| _mm256_srl_epi16(a, _mm256_castsi256_si128(b));
        Vpsrld => |a, b, _, _| _mm256_srl_epi32(a, _mm256_castsi256_si128(b));
        Vpsrlq => |a, b, _, _| _mm256_srl_epi64(a, _mm256_castsi256_si128(b));
        Vpsraw => |a, b, _, _| _mm256_sra_epi16(a, _mm256_castsi256_si128(b));
        Vpsrad => |a, b, _, _| _mm256_sra_epi32(a, _mm256_castsi256_si128(b));
    }
}

kernels! { order:
    packed(Size::Whole) {
        Vmovdqu | Vmovups | Vmovupd | Vlddqu => |_, b, _, _| b;
        Vpunpcklbw => |a, b, _, _| _mm256_unpacklo_epi8(a, b);
        Vpunpcklwd => |a, b, _, _| _mm256_unpacklo_epi16(a, b);
        Vpunpckldq | Vunpcklps => |a, b, _, _| _mm256_unpacklo_epi32(a, b);
        Vpunpcklqdq | Vunpcklpd => |a, b, _, _| _mm256_unpacklo_epi64(a, b);
        Vpunpckhbw => |a, b, _, _| _mm256_unpackhi_epi8(a, b);
        Vpunpckhwd => |a, b, _, _| _mm256_unpackhi_epi16(a, b);
        Vpunpckhdq | Vunpckhps => |a, b, _, _| _mm256_unpackhi_epi32(a, b);
        Vpunpckhqdq | Vunpckhpd => |a, b, _, _| _mm256_unpackhi_epi64(a, b);
        Vpacksswb => |a, b, _, _| _mm256_packs_epi16(a, b);
        Vpackssdw => |a, b, _, _| _mm256_packs_epi32(a, b);
        Vpackuswb => |a, b, _, _| _mm256_packus_epi16(a, b);
        Vpackusdw => |a, b, _, _| _mm256_packus_epi32(a, b);
        Vpshufb => |a, b, _, _| _mm256_shuffle_epi8(a, b);
        Vpermd | Vpermps => |a, b, _, _| _mm256_permutevar8x32_epi32(b, a);
        Vpermilps => |a, b, _, _| _mm256_castps_si256(_mm256_permutevar_ps(_mm256_castsi256_ps(a), b));
        Vpermilpd => |a, b, _, _| _mm256_castpd_si256(_mm256_permutevar_pd(_mm256_castsi256_pd(a), b));
        Vmovshdup => |_, b, _, _| _mm256_shuffle_epi32::<0b11_11_01_01>(b);
        Vmovsldup => |_, b, _, _| _mm256_shuffle_epi32::<0b10_10_00_00>(b);
        Vpblendvb => |a, b, c, _| _mm256_blendv_epi8(a, b, c);
        Vblendvps => |a, b, c, _| {
            let [a, b, c] = [a, b, c].map(|v| _mm256_castsi256_ps(v));
            _mm256_castps_si256(_mm256_blendv_ps(a, b, c))
        };
        Vblendvpd => |a, b, c, _| {
            let [a, b, c] = [a, b, c].map(|v| _mm256_castsi256_pd(v));
            _mm256_castpd_si256(_mm256_blendv_pd(a, b, c))
        };
    }
    packed(Size::EightOrWhole) {
        Vmovddup => |_, b, _, _| _mm256_unpacklo_epi64(b, b);
    }
    packed(Size::Bytes(1)) {
        Vpbroadcastb => |_, b, _, _| _mm256_broadcastb_epi8(_mm256_castsi256_si128(b));
    }
    packed(Size::Bytes(2)) {
        Vpbroadcastw => |_, b, _, _| _mm256_broadcastw_epi16(_mm256_castsi256_si128(b));
    }
    packed(Size::Bytes(4)) {
        Vpbroadcastd | Vbroadcastss => |_, b, _, _| _mm256_broadcastd_epi32(_mm256_castsi256_si128(b));
    }
    packed(Size::Bytes(8)) {
        Vpbroadcastq | Vbroadcastsd => |_, b, _, _| _mm256_broadcastq_epi64(_mm256_castsi256_si128(b));
    }
    packed(Size::Bytes(16)) {
        Vbroadcasti128 | Vbroadcastf128 => |_, b, _, _| _mm256_broadcastsi128_si256(_mm256_castsi256_si128(b));
    }
    packed(Size::Half) {
        Vpmovsxbw => |_, b, _, _| _mm256_cvtepi8_epi16(_mm256_castsi256_si128(b));
        Vpmovsxwd => |_, b, _, _| _mm256_cvtepi16_epi32(_mm256_castsi256_si128(b));
        Vpmovsxdq => |_, b, _, _| _mm256_cvtepi32_epi64(_mm256_castsi256_si128(b));
        Vpmovzxbw => |_, b, _, _| _mm256_cvtepu8_epi16(_mm256_castsi256_si128(b));
        Vpmovzxwd => |_, b, _, _| _mm256_cvtepu16_epi32(_mm256_castsi256_si128(b));
        Vpmovzxdq => |_, b, _, _| _mm256_cvtepu32_epi64(_mm256_castsi256_si128(b));
        // Exact.
        Vcvtdq2pd => |_, b, _, _| _mm256_castpd_si256(_mm256_cvtepi32_pd(_mm256_castsi256_si128(b)));
    }
    packed(Size::Quarter) {
        Vpmovsxbd => |_, b, _, _| _mm256_cvtepi8_epi32(_mm256_castsi256_si128(b));
        Vpmovsxwq => |_, b, _, _| _mm256_cvtepi16_epi64(_mm256_castsi256_si128(b));
        Vpmovzxbd => |_, b, _, _| _mm256_cvtepu8_epi32(_mm256_castsi256_si128(b));
        Vpmovzxwq => |_, b, _, _| _mm256_cvtepu16_epi64(_mm256_castsi256_si128(b));
    }
    packed(Size::Eighth) {
        Vpmovsxbq => |_, b, _, _| _mm256_cvtepi8_epi64(_mm256_castsi256_si128(b));
        Vpmovzxbq => |_, b, _, _| _mm256_cvtepu8_epi64(_mm256_castsi256_si128(b));
    }
    lane(Size::Bytes(8)) {
        Vmovhps | Vmovhpd | Vmovlhps => |a, b, _, _| _mm256_unpacklo_epi64(a, b);
        Vmovlps | Vmovlpd => |a, b, _, _| _mm256_blend_epi32::<0b11>(a, b);
        Vmovhlps => |a, b, _, _| _mm256_unpackhi_epi64(b, a);
        Vmovq => |_, b, _, _| _mm256_zextsi128_si256(_mm_move_epi64(_mm256_castsi256_si128(b)));
    }
    lane(Size::Bytes(4)) {
        Vmovd => |_, b, _, _| b;
    }
}
