//! Lanes of single and double precision, and which of them are special.

use core::arch::x86_64::*;

/// Elements of a precision in a vector.
///
/// # Safety
/// Of all functions: the host has AVX2 and FMA.
pub(super) trait Lanes {
    /// The least normal number, in each element.
    const LEAST_NORMAL: i64;
    /// Infinity, in each element.
    const INFINITY: i64;
    /// All bits but the sign, in each element.
    const MAGNITUDE: i64;
    /// 1 in each element, of an integer.
    const ONE: i64;
    /// Where integers of the elements' width are equal.
    unsafe fn same(a: __m256i, b: __m256i) -> __m256i;
    /// Where signed integers are greater.
    unsafe fn above(a: __m256i, b: __m256i) -> __m256i;
    unsafe fn add(a: __m256i, b: __m256i) -> __m256i;
    unsafe fn subtract(a: __m256i, b: __m256i) -> __m256i;
    unsafe fn multiply(a: __m256i, b: __m256i) -> __m256i;
    unsafe fn divide(a: __m256i, b: __m256i) -> __m256i;
    unsafe fn root(a: __m256i) -> __m256i;
    unsafe fn minimum(a: __m256i, b: __m256i) -> __m256i;
    unsafe fn maximum(a: __m256i, b: __m256i) -> __m256i;
    /// `a * b + c`, rounded once.
    unsafe fn multiply_add(a: __m256i, b: __m256i, c: __m256i) -> __m256i;
    unsafe fn less(a: __m256i, b: __m256i) -> __m256i;
    unsafe fn equal(a: __m256i, b: __m256i) -> __m256i;
    /// To the nearest, down, up, toward zero.
    unsafe fn round(a: __m256i, how: i32) -> __m256i;
    /// The elements with even numbers of each lane of `a`, then of `b`.
    unsafe fn even(a: __m256i, b: __m256i) -> __m256i;
    /// Those with odd numbers.
    unsafe fn odd(a: __m256i, b: __m256i) -> __m256i;
}

/// Elements of single precision.
pub(super) struct Singles;
/// Elements of double precision.
pub(super) struct Doubles;

macro_rules! lanes {
    ($name:ident: $least:literal, $infinity:literal, $magnitude:literal, $one:literal;
     $to:ident, $from:ident, $round:ident;
     $($f:ident($($x:ident),+) => $body:expr;)*) => {
        impl Lanes for $name {
            const LEAST_NORMAL: i64 = $least;
            const INFINITY: i64 = $infinity;
            const MAGNITUDE: i64 = $magnitude;
            const ONE: i64 = $one;
            $(
                #[inline(always)]
                unsafe fn $f($($x: __m256i),+) -> __m256i {
                    // SAFETY: the caller's.
                    unsafe { $body }
                }
            )*
            #[inline(always)]
            unsafe fn round(a: __m256i, how: i32) -> __m256i {
                // SAFETY: the caller's.
                unsafe {
                    let a = $to(a);
                    $from(match how & 3 {
                        0 => $round::<_MM_FROUND_TO_NEAREST_INT>(a),
                        1 => $round::<_MM_FROUND_TO_NEG_INF>(a),
                        2 => $round::<_MM_FROUND_TO_POS_INF>(a),
                        _ => $round::<_MM_FROUND_TO_ZERO>(a),
                    })
                }
            }
        }
    };
}

use _mm256_castpd_si256 as from_pd;
use _mm256_castps_si256 as from_ps;
use _mm256_castsi256_pd as pd;
use _mm256_castsi256_ps as ps;

lanes! { Singles: 0x0080_0000_0080_0000, 0x7f80_0000_7f80_0000, 0x7fff_ffff_7fff_ffff, 0x1_0000_0001;
    ps, from_ps, _mm256_round_ps;
    same(a, b) => _mm256_cmpeq_epi32(a, b);
    above(a, b) => _mm256_cmpgt_epi32(a, b);
    add(a, b) => from_ps(_mm256_add_ps(ps(a), ps(b)));
    subtract(a, b) => from_ps(_mm256_sub_ps(ps(a), ps(b)));
    multiply(a, b) => from_ps(_mm256_mul_ps(ps(a), ps(b)));
    divide(a, b) => from_ps(_mm256_div_ps(ps(a), ps(b)));
    root(a) => from_ps(_mm256_sqrt_ps(ps(a)));
    minimum(a, b) => from_ps(_mm256_min_ps(ps(a), ps(b)));
    maximum(a, b) => from_ps(_mm256_max_ps(ps(a), ps(b)));
    multiply_add(a, b, c) => from_ps(_mm256_fmadd_ps(ps(a), ps(b), ps(c)));
    less(a, b) => from_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(ps(a), ps(b)));
    equal(a, b) => from_ps(_mm256_cmp_ps::<_CMP_EQ_OQ>(ps(a), ps(b)));
    even(a, b) => from_ps(_mm256_shuffle_ps::<0b10_00_10_00>(ps(a), ps(b)));
    odd(a, b) => from_ps(_mm256_shuffle_ps::<0b11_01_11_01>(ps(a), ps(b)));
}

lanes! { Doubles: 0x0010_0000_0000_0000, 0x7ff0_0000_0000_0000, 0x7fff_ffff_ffff_ffff, 1;
    pd, from_pd, _mm256_round_pd;
    same(a, b) => _mm256_cmpeq_epi64(a, b);
    above(a, b) => _mm256_cmpgt_epi64(a, b);
    add(a, b) => from_pd(_mm256_add_pd(pd(a), pd(b)));
    subtract(a, b) => from_pd(_mm256_sub_pd(pd(a), pd(b)));
    multiply(a, b) => from_pd(_mm256_mul_pd(pd(a), pd(b)));
    divide(a, b) => from_pd(_mm256_div_pd(pd(a), pd(b)));
    root(a) => from_pd(_mm256_sqrt_pd(pd(a)));
    minimum(a, b) => from_pd(_mm256_min_pd(pd(a), pd(b)));
    maximum(a, b) => from_pd(_mm256_max_pd(pd(a), pd(b)));
    multiply_add(a, b, c) => from_pd(_mm256_fmadd_pd(pd(a), pd(b), pd(c)));
    less(a, b) => from_pd(_mm256_cmp_pd::<_CMP_LT_OQ>(pd(a), pd(b)));
    equal(a, b) => from_pd(_mm256_cmp_pd::<_CMP_EQ_OQ>(pd(a), pd(b)));
    even(a, b) => _mm256_unpacklo_epi64(a, b);
    odd(a, b) => _mm256_unpackhi_epi64(a, b);
}

/// The same value in each quadword.
///
/// # Safety
/// As of [`Lanes`]; as of all functions here.
#[inline(always)]
pub(super) unsafe fn all(quadword: i64) -> __m256i {
    // SAFETY: the caller's.
    unsafe { _mm256_set1_epi64x(quadword) }
}

/// Without signs.
#[inline(always)]
pub(super) unsafe fn magnitude<L: Lanes>(v: __m256i) -> __m256i {
    // SAFETY: the caller's.
    unsafe { _mm256_and_si256(v, all(L::MAGNITUDE)) }
}

#[inline(always)]
pub(super) unsafe fn is_zero<L: Lanes>(v: __m256i) -> __m256i {
    // SAFETY: the caller's.
    unsafe { L::same(magnitude::<L>(v), _mm256_setzero_si256()) }
}

#[inline(always)]
pub(super) unsafe fn is_denormal<L: Lanes>(v: __m256i) -> __m256i {
    // SAFETY: the caller's.
    unsafe {
        let is_small = L::above(all(L::LEAST_NORMAL), magnitude::<L>(v));
        _mm256_andnot_si256(is_zero::<L>(v), is_small)
    }
}

/// Whether an operand raises a flag in itself, where infinity is a number: a NaN or denormal.
#[inline(always)]
pub(super) unsafe fn is_no_number<L: Lanes>(v: __m256i) -> __m256i {
    // SAFETY: the caller's.
    unsafe {
        let is_nan = L::above(magnitude::<L>(v), all(L::INFINITY));
        _mm256_or_si256(is_nan, is_denormal::<L>(v))
    }
}

/// Whether a result may be tiny, or is infinite or a NaN. The least normal number may have been
/// tiny before it was rounded (SDM Vol. 1, "Numeric Underflow Exception (#U)"). A zero may be exact
/// where `zeros` says so.
#[inline(always)]
pub(super) unsafe fn is_loud<L: Lanes>(result: __m256i, zeros: __m256i) -> __m256i {
    // SAFETY: the caller's.
    unsafe {
        let m = magnitude::<L>(result);
        let is_small = L::above(all(L::LEAST_NORMAL + L::ONE), m);
        let is_exact = _mm256_and_si256(is_zero::<L>(result), zeros);
        let is_large = L::above(m, all(L::INFINITY - L::ONE));
        _mm256_or_si256(_mm256_andnot_si256(is_exact, is_small), is_large)
    }
}

/// The union of three.
#[inline(always)]
pub(super) unsafe fn or3(a: __m256i, b: __m256i, c: __m256i) -> __m256i {
    // SAFETY: the caller's.
    unsafe { _mm256_or_si256(_mm256_or_si256(a, b), c) }
}
