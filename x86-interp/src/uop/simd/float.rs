//! Floating-point arithmetic.
//!
//! Only what cannot raise an exception flag that is not set already is done here: numbers that are
//! normal or zero, rounding to nearest, all exceptions masked and inexact results noted in MXCSR
//! (as they are after the first one). Then the host's arithmetic gives the result, and MXCSR stays.

use core::arch::x86_64::*;

use iced_x86::Code;

use super::moves::merge;
use super::{Forms, get, host_16, kinds, read_16, set};
use crate::Cpu;
use crate::flags::LazyFlags;
use crate::mem::tlb::read_host;
use crate::uop::operand::{self, address};
use crate::uop::{Handler, Uop, bail, host, next};
use crate::width::Width;

/// MXCSR but for the flags of exceptions that do not occur here.
pub(super) const SIGNIFICANT: u32 = 0xffe0;
/// Rounding to nearest, all exceptions masked, no special treatment of denormals, PE set.
pub(super) const ROUNDING_NOTED: u32 = 0x1fa0;

/// A number of single or double precision.
pub(super) trait Real: Copy + PartialOrd {
    /// Its bits.
    type Bits: Width;
    fn from_bits(bits: Self::Bits) -> Self;
    fn bits(self) -> Self::Bits;
    /// Whether it is neither zero, denormal, infinite nor NaN, nor of the least exponent: a result of
    /// that may have been tiny before it was rounded.
    fn is_normal(self) -> bool;
    /// Whether it is denormal.
    fn is_denormal(self) -> bool;
    fn is_zero(self) -> bool;
    fn add(self, other: Self) -> Self;
    fn subtract(self, other: Self) -> Self;
    fn multiply(self, other: Self) -> Self;
    fn divide(self, other: Self) -> Self;
    fn root(self) -> Self;
    fn to_f64(self) -> f64;
    fn from_f64(value: f64) -> Self;
    fn from_i64(value: i64) -> Self;
    /// Rounds toward zero; of numbers in range.
    fn truncate(self) -> i64;
}

macro_rules! real {
    ($t:ty, $bits:ty, $fraction:literal, $exponents:literal) => {
        impl Real for $t {
            type Bits = $bits;
            #[inline(always)]
            fn from_bits(bits: $bits) -> Self {
                <$t>::from_bits(bits)
            }
            #[inline(always)]
            fn bits(self) -> $bits {
                self.to_bits()
            }
            #[inline(always)]
            fn is_normal(self) -> bool {
                let exponent = self.to_bits() << 1 >> ($fraction + 1);
                exponent.wrapping_sub(2) < $exponents
            }
            #[inline(always)]
            fn is_denormal(self) -> bool {
                (self.to_bits() << 1).wrapping_sub(1) < (1 << ($fraction + 1)) - 1
            }
            #[inline(always)]
            fn is_zero(self) -> bool {
                self.to_bits() << 1 == 0
            }
            #[inline(always)]
            fn add(self, other: Self) -> Self {
                self + other
            }
            #[inline(always)]
            fn subtract(self, other: Self) -> Self {
                self - other
            }
            #[inline(always)]
            fn multiply(self, other: Self) -> Self {
                self * other
            }
            #[inline(always)]
            fn divide(self, other: Self) -> Self {
                self / other
            }
            #[inline(always)]
            fn root(self) -> Self {
                self.sqrt()
            }
            #[inline(always)]
            fn to_f64(self) -> f64 {
                f64::from(self)
            }
            #[inline(always)]
            fn from_f64(value: f64) -> Self {
                value as $t
            }
            #[inline(always)]
            fn from_i64(value: i64) -> Self {
                value as $t
            }
            #[inline(always)]
            fn truncate(self) -> i64 {
                self as i64
            }
        }
    };
}
real!(f32, u32, 23, 0xfd);
real!(f64, u64, 52, 0x7fd);

/// An operation that rounds.
pub(super) trait Rounding {
    fn apply<F: Real>(a: F, b: F) -> F;
    /// The same of four lanes of single precision.
    fn singles(a: __m128, b: __m128) -> __m128;
    /// Whether a result of zero is exact.
    fn may_be_zero<F: Real>(a: F, b: F) -> bool;
    /// The same of lanes, given where `a` and `b` are zero.
    fn zeros(a: __m128i, b: __m128i) -> __m128i;
}

macro_rules! rounding {
    ($($name:ident, $method:ident, $singles:ident, |$a:ident, $b:ident| $zero:expr, $zeros:expr;)*) => {$(
        pub(super) struct $name;
        impl Rounding for $name {
            #[inline(always)]
            fn apply<F: Real>(a: F, b: F) -> F {
                a.$method(b)
            }
            #[inline(always)]
            fn singles(a: __m128, b: __m128) -> __m128 {
                // SAFETY: every x86-64 processor has SSE2.
                unsafe { $singles(a, b) }
            }
            #[inline(always)]
            fn may_be_zero<F: Real>($a: F, $b: F) -> bool {
                $zero
            }
            #[inline(always)]
            #[allow(unused_unsafe, reason = "not every operation calls something")]
            fn zeros($a: __m128i, $b: __m128i) -> __m128i {
                // SAFETY: every x86-64 processor has SSE2.
                unsafe { $zeros }
            }
        }
    )*};
}

rounding! {
    Add, add, _mm_add_ps, |_a, _b| true, _mm_set1_epi32(-1);
    Subtract, subtract, _mm_sub_ps, |_a, _b| true, _mm_set1_epi32(-1);
    Multiply, multiply, _mm_mul_ps, |a, b| a.is_zero() || b.is_zero(), _mm_or_si128(a, b);
    Divide, divide, _mm_div_ps, |a, _b| a.is_zero(), a;
}

/// Whether the operation is one for here.
#[inline(always)]
pub(super) fn is_quiet<O: Rounding, F: Real>(a: F, b: F, result: F) -> bool {
    (result.is_normal() || result.is_zero() && O::may_be_zero(a, b))
        && !a.is_denormal()
        && !b.is_denormal()
}

/// Reads the low lane of an XMM register.
///
/// # Safety
/// As [`get`].
#[inline(always)]
pub(super) unsafe fn lane<F: Real>(cpu: *mut Cpu, number: u8) -> F {
    // SAFETY: as in `get`.
    unsafe {
        let low = _mm_cvtsi128_si64(get(cpu, number)) as u64;
        F::from_bits(F::Bits::from_u64(low))
    }
}

/// Writes the low lane.
///
/// # Safety
/// As [`get`].
#[inline(always)]
unsafe fn set_lane<F: Real>(cpu: *mut Cpu, number: u8, value: F) {
    // SAFETY: as in `get`.
    unsafe {
        let new = _mm_cvtsi64_si128(value.bits().to_u64() as i64);
        set(cpu, number, merge::<F::Bits>(get(cpu, number), new));
    }
}

/// The source operand, in a register or (`$A` an address) in memory.
macro_rules! source {
    ($cpu:expr, $op:expr, $F:ty, register) => {
        lane::<$F>($cpu, (*$op).src)
    };
    ($cpu:expr, $op:expr, $F:ty, memory $A:ident) => {{
        let at = host!(
            $cpu,
            $op,
            address::<$A>($cpu, $op),
            <$F as Real>::Bits,
            read
        );
        <$F>::from_bits(read_host::<<$F as Real>::Bits>(at))
    }};
}

/// Defines the two handlers, `register` and `memory`, in a module of this name; the body gets the
/// source operand.
macro_rules! scalar {
    ($name:ident<$F:ident $(, $O:ident: $bound:ident)?>, |$cpu:ident, $op:ident, $b:ident| $body:block) => {
        mod $name {
            use super::*;
            pub(super) unsafe fn register<$F: Real $(, $O: $bound)?>(
                $cpu: *mut Cpu,
                $op: *const Uop,
            ) -> *const Uop {
                // SAFETY: `uop`, "Safety".
                unsafe {
                    let $b = source!($cpu, $op, $F, register);
                    $body
                    next!($cpu, $op.add(1))
                }
            }
            pub(super) unsafe fn memory<$F: Real $(, $O: $bound)?, const A: u8>(
                $cpu: *mut Cpu,
                $op: *const Uop,
            ) -> *const Uop {
                // SAFETY: `uop`, "Safety".
                unsafe {
                    let $b = source!($cpu, $op, $F, memory A);
                    $body
                    next!($cpu, $op.add(1))
                }
            }
        }
    };
}

scalar!(arithmetic<F, O: Rounding>, |cpu, op, b| {
    let a = lane::<F>(cpu, (*op).dst);
    let result = O::apply(a, b);
    if (*cpu).fpu.mxcsr & SIGNIFICANT != ROUNDING_NOTED || !is_quiet::<O, F>(a, b, result) {
        bail!(cpu, op);
    }
    set_lane(cpu, (*op).dst, result);
});

scalar!(root<F>, |cpu, op, b| {
    let result = b.root();
    let is_quiet = !b.is_denormal() && (result.is_normal() || result.is_zero());
    if (*cpu).fpu.mxcsr & SIGNIFICANT != ROUNDING_NOTED || !is_quiet {
        bail!(cpu, op);
    }
    set_lane(cpu, (*op).dst, result);
});

/// Whether both are numbers, and not denormal: comparing them raises nothing.
#[inline(always)]
pub(super) fn are_plain<F: Real>(a: F, b: F) -> bool {
    a.partial_cmp(&b).is_some() && !a.is_denormal() && !b.is_denormal()
}

scalar!(compare<F>, |cpu, op, b| {
    let a = lane::<F>(cpu, (*op).dst);
    if !are_plain(a, b) {
        bail!(cpu, op);
    }
    (*cpu).flags = LazyFlags::ordered(a == b, a < b);
});

scalar!(minimum<F>, |cpu, op, b| {
    let a = lane::<F>(cpu, (*op).dst);
    if !are_plain(a, b) {
        bail!(cpu, op);
    }
    set_lane(cpu, (*op).dst, if a < b { a } else { b });
});

scalar!(maximum<F>, |cpu, op, b| {
    let a = lane::<F>(cpu, (*op).dst);
    if !are_plain(a, b) {
        bail!(cpu, op);
    }
    set_lane(cpu, (*op).dst, if a > b { a } else { b });
});

// CVTSS2SD: exact.
scalar!(widen<F>, |cpu, op, b| {
    if !b.is_normal() && !b.is_zero() {
        bail!(cpu, op);
    }
    set_lane(cpu, (*op).dst, b.to_f64());
});

// CVTSD2SS.
scalar!(narrow<F>, |cpu, op, b| {
    let result = f32::from_f64(b.to_f64());
    let is_quiet = Real::is_normal(result) || b.is_zero();
    if (*cpu).fpu.mxcsr & SIGNIFICANT != ROUNDING_NOTED || !is_quiet {
        bail!(cpu, op);
    }
    set_lane(cpu, (*op).dst, result);
});

/// CVTTSS2SI, CVTTSD2SI.
trait Integer {
    type Destination: Width;
}
struct Doubleword;
struct Quadword;
impl Integer for Doubleword {
    type Destination = u32;
}
impl Integer for Quadword {
    type Destination = u64;
}

scalar!(truncate<F, I: Integer>, |cpu, op, b| {
    let value = b.to_f64();
    // Of both precisions, and of both sizes of integer: beyond, the range decides.
    let limit = if <I::Destination as Width>::BITS == 32 {
        2_147_483_648.0
    } else {
        9_223_372_036_854_775_808.0
    };
    let is_in_range = value.abs() < limit && !b.is_denormal();
    if (*cpu).fpu.mxcsr & SIGNIFICANT != ROUNDING_NOTED || !is_in_range {
        bail!(cpu, op);
    }
    let integer = I::Destination::from_u64(b.truncate() as u64);
    operand::set(cpu, (*op).dst, integer);
});

/// Converts an integer of a general-purpose register.
unsafe fn convert<F: Real, W: Width>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe {
        let value = operand::get::<W>(cpu, (*op).src).to_i64();
        let is_exact = W::BITS == 32 && <F::Bits as Width>::BITS == 64;
        if !is_exact && (*cpu).fpu.mxcsr & SIGNIFICANT != ROUNDING_NOTED {
            bail!(cpu, op);
        }
        set_lane(cpu, (*op).dst, F::from_i64(value));
        next!(cpu, op.add(1))
    }
}

/// Returns the handler of CVTSI2SS, CVTSI2SD with a register as its source.
pub(crate) fn from_integer(code: Code) -> Option<Handler> {
    Some(match code {
        Code::Cvtsi2ss_xmm_rm32 => convert::<f32, u32>,
        Code::Cvtsi2ss_xmm_rm64 => convert::<f32, u64>,
        Code::Cvtsi2sd_xmm_rm32 => convert::<f64, u32>,
        Code::Cvtsi2sd_xmm_rm64 => convert::<f64, u64>,
        _ => return None,
    })
}

/// Packed arithmetic.
trait Packed {
    /// The result, and whether the operation is one for here.
    fn apply(a: __m128i, b: __m128i) -> (__m128i, bool);
}

/// Lanes of single precision.
struct Singles<O>(core::marker::PhantomData<O>);
/// Lanes of double precision.
struct Doubles<O>(core::marker::PhantomData<O>);

impl<O: Rounding> Packed for Doubles<O> {
    #[inline(always)]
    fn apply(a: __m128i, b: __m128i) -> (__m128i, bool) {
        // SAFETY: every x86-64 processor has SSE2.
        unsafe {
            let low = |v: __m128i| f64::from_bits(_mm_cvtsi128_si64(v) as u64);
            let high = |v: __m128i| low(_mm_unpackhi_epi64(v, v));
            let (a, b) = ([low(a), high(a)], [low(b), high(b)]);
            let result = [O::apply(a[0], b[0]), O::apply(a[1], b[1])];
            let is_quiet = is_quiet::<O, f64>(a[0], b[0], result[0])
                && is_quiet::<O, f64>(a[1], b[1], result[1]);
            let [low, high] = result.map(|v| v.to_bits() as i64);
            (_mm_set_epi64x(high, low), is_quiet)
        }
    }
}

impl<O: Rounding> Packed for Singles<O> {
    #[inline(always)]
    fn apply(a: __m128i, b: __m128i) -> (__m128i, bool) {
        // SAFETY: every x86-64 processor has SSE2.
        unsafe {
            let result = O::singles(_mm_castsi128_ps(a), _mm_castsi128_ps(b));
            let result = _mm_castps_si128(result);
            let (zero, special) = (_mm_setzero_si128(), _mm_set1_epi32(0x7f80_0000));
            let exponent = |v| _mm_and_si128(v, special);
            let is_zero = |v| _mm_cmpeq_epi32(_mm_slli_epi32::<1>(v), zero);
            let is_small = |v| _mm_cmpeq_epi32(exponent(v), zero);
            let is_denormal = |v| _mm_andnot_si128(is_zero(v), is_small(v));
            let exact = _mm_and_si128(is_zero(result), O::zeros(is_zero(a), is_zero(b)));
            // As in `Real::is_normal`.
            let least = _mm_set1_epi32(0x0100_0000);
            let tiny = _mm_cmpgt_epi32(least, exponent(result));
            let tiny = _mm_andnot_si128(exact, tiny);
            let large = _mm_cmpeq_epi32(exponent(result), special);
            let inputs = _mm_or_si128(is_denormal(a), is_denormal(b));
            let bad = _mm_or_si128(_mm_or_si128(tiny, large), inputs);
            (result, _mm_movemask_epi8(bad) == 0)
        }
    }
}

unsafe fn packed_register<P: Packed>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe {
        let (result, is_quiet) = P::apply(get(cpu, (*op).dst), get(cpu, (*op).src));
        if (*cpu).fpu.mxcsr & SIGNIFICANT != ROUNDING_NOTED || !is_quiet {
            bail!(cpu, op);
        }
        set(cpu, (*op).dst, result);
        next!(cpu, op.add(1))
    }
}

unsafe fn packed_memory<P: Packed, const A: u8>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe {
        let at = host_16!(cpu, op, address::<A>(cpu, op), read, true);
        let (result, is_quiet) = P::apply(get(cpu, (*op).dst), read_16(at));
        if (*cpu).fpu.mxcsr & SIGNIFICANT != ROUNDING_NOTED || !is_quiet {
            bail!(cpu, op);
        }
        set(cpu, (*op).dst, result);
        next!(cpu, op.add(1))
    }
}

macro_rules! scalar_forms {
    ($name:ident, $bytes:literal, $($x:ty),+) => {
        Forms {
            register: $name::register::<$($x),+>,
            memory: kinds!($name::memory, $($x),+),
            bytes: $bytes,
        }
    };
}

macro_rules! packed_forms {
    ($lanes:ident, $operation:ty) => {
        Forms {
            register: packed_register::<$lanes<$operation>>,
            memory: kinds!(packed_memory, $lanes<$operation>),
            bytes: 16,
        }
    };
}

/// Returns the handlers of an instruction.
#[rustfmt::skip]
pub(crate) fn forms(code: Code) -> Option<Forms> {
    use Code as C;
    Some(match code {
        C::Addss_xmm_xmmm32 => scalar_forms!(arithmetic, 4, f32, Add),
        C::Addsd_xmm_xmmm64 => scalar_forms!(arithmetic, 8, f64, Add),
        C::Addps_xmm_xmmm128 => packed_forms!(Singles, Add),
        C::Addpd_xmm_xmmm128 => packed_forms!(Doubles, Add),
        C::Subss_xmm_xmmm32 => scalar_forms!(arithmetic, 4, f32, Subtract),
        C::Subsd_xmm_xmmm64 => scalar_forms!(arithmetic, 8, f64, Subtract),
        C::Subps_xmm_xmmm128 => packed_forms!(Singles, Subtract),
        C::Subpd_xmm_xmmm128 => packed_forms!(Doubles, Subtract),
        C::Mulss_xmm_xmmm32 => scalar_forms!(arithmetic, 4, f32, Multiply),
        C::Mulsd_xmm_xmmm64 => scalar_forms!(arithmetic, 8, f64, Multiply),
        C::Mulps_xmm_xmmm128 => packed_forms!(Singles, Multiply),
        C::Mulpd_xmm_xmmm128 => packed_forms!(Doubles, Multiply),
        C::Divss_xmm_xmmm32 => scalar_forms!(arithmetic, 4, f32, Divide),
        C::Divsd_xmm_xmmm64 => scalar_forms!(arithmetic, 8, f64, Divide),
        C::Divps_xmm_xmmm128 => packed_forms!(Singles, Divide),
        C::Divpd_xmm_xmmm128 => packed_forms!(Doubles, Divide),
        C::Sqrtss_xmm_xmmm32 => scalar_forms!(root, 4, f32),
        C::Sqrtsd_xmm_xmmm64 => scalar_forms!(root, 8, f64),
        C::Ucomiss_xmm_xmmm32 | C::Comiss_xmm_xmmm32 => scalar_forms!(compare, 4, f32),
        C::Ucomisd_xmm_xmmm64 | C::Comisd_xmm_xmmm64 => scalar_forms!(compare, 8, f64),
        C::Minss_xmm_xmmm32 => scalar_forms!(minimum, 4, f32),
        C::Minsd_xmm_xmmm64 => scalar_forms!(minimum, 8, f64),
        C::Maxss_xmm_xmmm32 => scalar_forms!(maximum, 4, f32),
        C::Maxsd_xmm_xmmm64 => scalar_forms!(maximum, 8, f64),
        C::Cvtss2sd_xmm_xmmm32 => scalar_forms!(widen, 4, f32),
        C::Cvtsd2ss_xmm_xmmm64 => scalar_forms!(narrow, 8, f64),
        C::Cvttss2si_r32_xmmm32 => scalar_forms!(truncate, 4, f32, Doubleword),
        C::Cvttss2si_r64_xmmm32 => scalar_forms!(truncate, 4, f32, Quadword),
        C::Cvttsd2si_r32_xmmm64 => scalar_forms!(truncate, 8, f64, Doubleword),
        C::Cvttsd2si_r64_xmmm64 => scalar_forms!(truncate, 8, f64, Quadword),
        _ => return None,
    })
}
