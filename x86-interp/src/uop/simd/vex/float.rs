//! Floating-point arithmetic, comparisons and conversions.
//!
//! As in [`super::super::float`]: only what raises no exception flag that is not set already.

use core::arch::x86_64::*;
use core::marker::PhantomData;

use iced_x86::Mnemonic;

use super::lanes::{
    Doubles, Lanes, Singles, all, is_denormal, is_loud, is_no_number, is_zero, magnitude, or3,
};
use super::{Forms, Kernel, Size, Sources, forms, packed};

/// Defines kernels of elements `L`: their names and bodies.
macro_rules! elementwise {
    ($($(#[$doc:meta])* $name:ident => |$s:ident| $body:block)*) => {$(
        $(#[$doc])*
        pub(super) struct $name<L, const BYTES: usize>(PhantomData<L>);
        impl<L: Lanes, const BYTES: usize> Kernel for $name<L, BYTES> {
            const MEMORY: Size = match BYTES {
                0 => Size::Whole,
                n => Size::Bytes(n),
            };
            const IS_FLOAT: bool = true;
            #[inline(always)]
            unsafe fn apply($s: Sources) -> (__m256i, __m256i) {
                // SAFETY: the caller's.
                unsafe { $body }
            }
        }
    )*};
}

elementwise! {
    Add => |s| { sum::<L>(s.a, s.b, L::add(s.a, s.b)) }
    Subtract => |s| { sum::<L>(s.a, s.b, L::subtract(s.a, s.b)) }
    Multiply => |s| {
        let result = L::multiply(s.a, s.b);
        let zeros = _mm256_or_si256(is_zero::<L>(s.a), is_zero::<L>(s.b));
        (result, of_two::<L>(s.a, s.b, is_loud::<L>(result, zeros)))
    }
    Divide => |s| {
        let result = L::divide(s.a, s.b);
        (result, of_two::<L>(s.a, s.b, is_loud::<L>(result, is_zero::<L>(s.a))))
    }
    Root => |s| {
        let result = L::root(s.b);
        let is_loud = is_loud::<L>(result, all(-1));
        (result, _mm256_or_si256(is_loud, is_denormal::<L>(s.b)))
    }
    Minimum => |s| { (L::minimum(s.a, s.b), are_no_numbers::<L>(s.a, s.b)) }
    Maximum => |s| { (L::maximum(s.a, s.b), are_no_numbers::<L>(s.a, s.b)) }
    /// Neighbours of `a`, then of `b`.
    AddNeighbours => |s| {
        let (even, odd) = (L::even(s.a, s.b), L::odd(s.a, s.b));
        sum::<L>(even, odd, L::add(even, odd))
    }
    /// Its immediate is an entry of [`TRUTH`].
    Compare => |s| {
        let where_set = |bit: i32| _mm256_set1_epi32(-(s.imm >> bit & 1));
        let (less, equal) = (L::less(s.a, s.b), L::equal(s.a, s.b));
        let is_more = _mm256_andnot_si256(_mm256_or_si256(less, equal), where_set(2));
        let is_less = _mm256_and_si256(less, where_set(0));
        let is_equal = _mm256_and_si256(equal, where_set(1));
        (or3(is_less, is_equal, is_more), are_no_numbers::<L>(s.a, s.b))
    }
    /// Bit 2 of the immediate takes MXCSR's rounding, which is to the nearest here.
    Round => |s| {
        let how = if s.imm & 4 != 0 { 0 } else { s.imm };
        (L::round(s.b, how), is_no_number::<L>(s.b))
    }
}

/// A sum that was rounded: one of zero is exact.
#[inline(always)]
unsafe fn sum<L: Lanes>(a: __m256i, b: __m256i, result: __m256i) -> (__m256i, __m256i) {
    // SAFETY: the caller's.
    unsafe { (result, of_two::<L>(a, b, is_loud::<L>(result, all(-1)))) }
}

#[inline(always)]
unsafe fn of_two<L: Lanes>(a: __m256i, b: __m256i, is_loud: __m256i) -> __m256i {
    // SAFETY: the caller's.
    unsafe { or3(is_denormal::<L>(a), is_denormal::<L>(b), is_loud) }
}

#[inline(always)]
unsafe fn are_no_numbers<L: Lanes>(a: __m256i, b: __m256i) -> __m256i {
    // SAFETY: the caller's.
    unsafe { _mm256_or_si256(is_no_number::<L>(a), is_no_number::<L>(b)) }
}

/// What the predicates of VCMPPS answer where the first number is less (bit 0), equal (bit 1) or
/// greater (bit 2). Whether they raise an exception for a NaN does not matter here.
const TRUTH: [u8; 32] = {
    let first = [2, 1, 3, 0, 5, 6, 4, 7, 2, 1, 3, 0, 5, 6, 4, 7];
    let mut table = [0; 32];
    let mut n = 0;
    while n < 32 {
        table[n] = first[n % 16];
        n += 1;
    }
    table
};

/// Returns what a kernel of this file takes for the immediate byte.
pub(crate) fn immediate(mnemonic: Mnemonic, byte: u8) -> u8 {
    use Mnemonic as M;
    match mnemonic {
        M::Vcmpps | M::Vcmppd | M::Vcmpss | M::Vcmpsd => TRUTH[usize::from(byte & 31)],
        _ => byte,
    }
}

/// Defines conversions: the memory of the source and the body.
macro_rules! conversions {
    ($($name:ident($size:expr) => |$b:ident| $body:block)*) => {$(
        struct $name;
        impl Kernel for $name {
            const MEMORY: Size = $size;
            const IS_FLOAT: bool = true;
            #[inline(always)]
            unsafe fn apply(s: Sources) -> (__m256i, __m256i) {
                let $b = s.b;
                // SAFETY: the caller's.
                unsafe { $body }
            }
        }
    )*};
}

conversions! {
    // Infinity is a number here.
    SinglesToDoubles(Size::Half) => |b| { widened(b) }
    SingleToDouble(Size::Bytes(4)) => |b| { widened(b) }
    DoublesToSingles(Size::Whole) => |b| { narrowed(b) }
    DoubleToSingle(Size::Bytes(8)) => |b| { narrowed(b) }
    IntegersToSingles(Size::Whole) => |b| {
        (_mm256_castps_si256(_mm256_cvtepi32_ps(b)), _mm256_setzero_si256())
    }
    SinglesTruncated(Size::Whole) => |b| {
        (_mm256_cvttps_epi32(_mm256_castsi256_ps(b)), is_beyond_i32::<Singles>(b))
    }
    SinglesRounded(Size::Whole) => |b| {
        (_mm256_cvtps_epi32(_mm256_castsi256_ps(b)), is_beyond_i32::<Singles>(b))
    }
    DoublesTruncated(Size::Whole) => |b| {
        let result = _mm256_cvttpd_epi32(_mm256_castsi256_pd(b));
        (_mm256_zextsi128_si256(result), any_in_all(is_beyond_i32::<Doubles>(b)))
    }
    DoublesRounded(Size::Whole) => |b| {
        let result = _mm256_cvtpd_epi32(_mm256_castsi256_pd(b));
        (_mm256_zextsi128_si256(result), any_in_all(is_beyond_i32::<Doubles>(b)))
    }
}

/// Single to double precision: exact.
#[inline(always)]
unsafe fn widened(b: __m256i) -> (__m256i, __m256i) {
    // SAFETY: the caller's.
    unsafe {
        let low = _mm256_castsi256_si128(b);
        let result = _mm256_castpd_si256(_mm256_cvtps_pd(_mm_castsi128_ps(low)));
        // Each element's answer is as wide as its result.
        let bad = is_no_number::<Singles>(b);
        (result, _mm256_cvtepi32_epi64(_mm256_castsi256_si128(bad)))
    }
}

/// Double to single precision.
#[inline(always)]
unsafe fn narrowed(b: __m256i) -> (__m256i, __m256i) {
    // SAFETY: the caller's.
    unsafe {
        let result = _mm256_cvtpd_ps(_mm256_castsi256_pd(b));
        let again = magnitude::<Doubles>(_mm256_castpd_si256(_mm256_cvtps_pd(result)));
        // As in `is_loud`, of the numbers that single precision has.
        let least = all(f64::to_bits(f32::MIN_POSITIVE as f64) as i64 + 1);
        let is_exact = is_zero::<Doubles>(b);
        let is_small = _mm256_andnot_si256(is_exact, Doubles::above(least, again));
        let is_large = Doubles::above(again, all(f64::to_bits(f32::MAX as f64) as i64));
        let bad = _mm256_or_si256(is_small, is_large);
        (
            _mm256_zextsi128_si256(_mm_castps_si128(result)),
            any_in_all(bad),
        )
    }
}

/// All ones if there is a bit in `bad`: the result has its elements elsewhere.
#[inline(always)]
unsafe fn any_in_all(bad: __m256i) -> __m256i {
    // SAFETY: the caller's.
    unsafe { _mm256_set1_epi32(-i32::from(_mm256_movemask_epi8(bad) != 0)) }
}

/// Whether a number may have no integer of 32 bits, or is denormal.
#[inline(always)]
unsafe fn is_beyond_i32<L: Lanes>(b: __m256i) -> __m256i {
    // 2^31 less one or 128.
    let limit = if L::ONE == 1 {
        f64::to_bits(2_147_483_647.0) as i64
    } else {
        i64::from(f32::to_bits(2_147_483_520.0)) * L::ONE
    };
    // SAFETY: the caller's.
    unsafe {
        let is_beyond = L::above(magnitude::<L>(b), all(limit));
        _mm256_or_si256(is_beyond, is_denormal::<L>(b))
    }
}

/// The handlers of the operations that have all four shapes.
macro_rules! shapes {
    ($m:ident, $length:ident: $($kernel:ident: $ps:ident $pd:ident $ss:ident $sd:ident;)*) => {
        match $m {
            $(
                Mnemonic::$ps => return Some(packed::<$kernel<Singles, 0>>($length)),
                Mnemonic::$pd => return Some(packed::<$kernel<Doubles, 0>>($length)),
                Mnemonic::$ss => return Some(forms::<$kernel<Singles, 4>, 4>()),
                Mnemonic::$sd => return Some(forms::<$kernel<Doubles, 8>, 8>()),
            )*
            _ => {}
        }
    };
}
pub(super) use shapes;

/// Returns the handlers of an instruction without an immediate.
#[rustfmt::skip]
pub(super) fn table(mnemonic: Mnemonic, length: u8) -> Option<Forms> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Vaddps => packed::<Add<Singles, 0>>(length),
        M::Vaddpd => packed::<Add<Doubles, 0>>(length),
        M::Vsubps => packed::<Subtract<Singles, 0>>(length),
        M::Vsubpd => packed::<Subtract<Doubles, 0>>(length),
        M::Vmulps => packed::<Multiply<Singles, 0>>(length),
        M::Vmulpd => packed::<Multiply<Doubles, 0>>(length),
        M::Vdivps => packed::<Divide<Singles, 0>>(length),
        M::Vdivpd => packed::<Divide<Doubles, 0>>(length),
        M::Vsqrtps => packed::<Root<Singles, 0>>(length),
        M::Vsqrtpd => packed::<Root<Doubles, 0>>(length),
        M::Vminps => packed::<Minimum<Singles, 0>>(length),
        M::Vminpd => packed::<Minimum<Doubles, 0>>(length),
        M::Vmaxps => packed::<Maximum<Singles, 0>>(length),
        M::Vmaxpd => packed::<Maximum<Doubles, 0>>(length),
        M::Vhaddps => packed::<AddNeighbours<Singles, 0>>(length),
        M::Vhaddpd => packed::<AddNeighbours<Doubles, 0>>(length),
        M::Vcvtps2pd => packed::<SinglesToDoubles>(length),
        M::Vcvtss2sd => forms::<SingleToDouble, 8>(),
        M::Vcvtpd2ps => packed::<DoublesToSingles>(length),
        M::Vcvtsd2ss => forms::<DoubleToSingle, 4>(),
        M::Vcvtdq2ps => packed::<IntegersToSingles>(length),
        M::Vcvttps2dq => packed::<SinglesTruncated>(length),
        M::Vcvtps2dq => packed::<SinglesRounded>(length),
        M::Vcvttpd2dq => packed::<DoublesTruncated>(length),
        M::Vcvtpd2dq => packed::<DoublesRounded>(length),
        _ => return None,
    })
}

/// Returns the handlers of an instruction with an immediate.
pub(super) fn with_immediate(mnemonic: Mnemonic, length: u8) -> Option<Forms> {
    shapes! { mnemonic, length:
        Compare: Vcmpps Vcmppd Vcmpss Vcmpsd;
        Round: Vroundps Vroundpd Vroundss Vroundsd;
    }
    None
}
