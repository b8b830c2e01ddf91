//! Arithmetic on the lowest elements: as the legacy forms, with the checks of one number.

use core::arch::x86_64::{_mm_cvtsi64_si128, _mm256_zextsi128_si256};

use iced_x86::Mnemonic;

use super::super::float::{
    Add, Divide, Multiply, ROUNDING_NOTED, Real, Rounding, SIGNIFICANT, Subtract, are_plain,
    is_quiet, lane,
};
use super::{Forms, get_32, put};
use crate::Cpu;
use crate::mem::tlb::read_host;
use crate::uop::operand::{BASE, INDEXED, address};
use crate::uop::{Uop, bail, host, next};
use crate::width::Width;

/// An operation on two numbers.
trait Scalar {
    /// Returns the result and whether it is one for here.
    fn apply<F: Real>(a: F, b: F) -> (F, bool);
}

/// One that rounds.
struct Rounded<O>(core::marker::PhantomData<O>);
impl<O: Rounding> Scalar for Rounded<O> {
    #[inline(always)]
    fn apply<F: Real>(a: F, b: F) -> (F, bool) {
        let result = O::apply(a, b);
        (result, is_quiet::<O, F>(a, b, result))
    }
}

struct Root;
impl Scalar for Root {
    #[inline(always)]
    fn apply<F: Real>(_: F, b: F) -> (F, bool) {
        let result = b.root();
        let is_number = result.is_normal() || result.is_zero();
        (result, is_number && !b.is_denormal())
    }
}

struct Minimum;
impl Scalar for Minimum {
    #[inline(always)]
    fn apply<F: Real>(a: F, b: F) -> (F, bool) {
        (if a < b { a } else { b }, are_plain(a, b))
    }
}

struct Maximum;
impl Scalar for Maximum {
    #[inline(always)]
    fn apply<F: Real>(a: F, b: F) -> (F, bool) {
        (if a > b { a } else { b }, are_plain(a, b))
    }
}

/// Computes and writes; false if this is for the plain handler.
///
/// # Safety
/// `uop`, "Safety"; the host has AVX2.
#[inline(always)]
unsafe fn complete<F: Real, O: Scalar>(cpu: *mut Cpu, op: *const Uop, b: F) -> bool {
    // SAFETY: the caller's.
    unsafe {
        let first = (*op).detail as u8 & 31;
        let (result, is_quiet) = O::apply(lane::<F>(cpu, first), b);
        if (*cpu).fpu.mxcsr & SIGNIFICANT != ROUNDING_NOTED || !is_quiet {
            return false;
        }
        let value = _mm_cvtsi64_si128(result.bits().to_u64() as i64);
        let length = <F::Bits as Width>::BYTES;
        let value = _mm256_zextsi128_si256(value);
        put(cpu, (*op).dst, length, value, get_32(cpu, first));
        true
    }
}

#[target_feature(enable = "avx2")]
unsafe fn register<F: Real, O: Scalar>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety"; chosen only where the host is good for it.
    unsafe {
        if !complete::<F, O>(cpu, op, lane::<F>(cpu, (*op).src)) {
            bail!(cpu, op);
        }
        next!(cpu, op.add(1))
    }
}

#[target_feature(enable = "avx2")]
unsafe fn memory<F: Real, O: Scalar, const A: u8>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: as in `register`.
    unsafe {
        let at = host!(cpu, op, address::<A>(cpu, op), F::Bits, read);
        if !complete::<F, O>(cpu, op, F::from_bits(read_host::<F::Bits>(at))) {
            bail!(cpu, op);
        }
        next!(cpu, op.add(1))
    }
}

fn forms<F: Real, O: Scalar>() -> Forms {
    Forms {
        register: register::<F, O>,
        memory: [memory::<F, O, BASE>, memory::<F, O, INDEXED>],
        bytes: <F::Bits as Width>::BYTES,
    }
}

/// Returns the handlers of an instruction.
pub(super) fn table(mnemonic: Mnemonic) -> Option<Forms> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Vaddss => forms::<f32, Rounded<Add>>(),
        M::Vaddsd => forms::<f64, Rounded<Add>>(),
        M::Vsubss => forms::<f32, Rounded<Subtract>>(),
        M::Vsubsd => forms::<f64, Rounded<Subtract>>(),
        M::Vmulss => forms::<f32, Rounded<Multiply>>(),
        M::Vmulsd => forms::<f64, Rounded<Multiply>>(),
        M::Vdivss => forms::<f32, Rounded<Divide>>(),
        M::Vdivsd => forms::<f64, Rounded<Divide>>(),
        M::Vsqrtss => forms::<f32, Root>(),
        M::Vsqrtsd => forms::<f64, Root>(),
        M::Vminss => forms::<f32, Minimum>(),
        M::Vminsd => forms::<f64, Minimum>(),
        M::Vmaxss => forms::<f32, Maximum>(),
        M::Vmaxsd => forms::<f64, Maximum>(),
        _ => return None,
    })
}
