//! Fused multiply-add. The third source of the micro-op is the destination.

use core::arch::x86_64::*;
use core::marker::PhantomData;

use iced_x86::Mnemonic;

use super::float::shapes;
use super::lanes::{Doubles, Lanes, Singles, all, is_denormal, is_loud, is_zero, or3};
use super::{Forms, Kernel, Size, Sources, forms, packed};

/// Which sources are multiplied, and what is negated: bit 0 the addend, bit 1 the product.
struct Fused<L, const ORDER: u32, const SIGNS: u8, const BYTES: usize>(PhantomData<L>);

impl<L: Lanes, const ORDER: u32, const SIGNS: u8, const BYTES: usize> Kernel
    for Fused<L, ORDER, SIGNS, BYTES>
{
    const MEMORY: Size = match BYTES {
        0 => Size::Whole,
        n => Size::Bytes(n),
    };
    const IS_FLOAT: bool = true;
    const KEEPS_THIRD: bool = true;

    #[inline(always)]
    unsafe fn apply(s: Sources) -> (__m256i, __m256i) {
        // SAFETY: the caller's.
        unsafe {
            // The operands 1, 2 and 3.
            let [to, second, third] = [s.c, s.a, s.b];
            let [a, b, c] = match ORDER {
                132 => [to, third, second],
                213 => [second, to, third],
                _ => [second, third, to],
            };
            let negated = |v, bit: u8| match SIGNS & bit {
                0 => v,
                _ => _mm256_xor_si256(v, _mm256_andnot_si256(all(L::MAGNITUDE), all(-1))),
            };
            let result = L::multiply_add(negated(a, 2), b, negated(c, 1));
            // Only without a product is a sum of zero surely exact.
            let zeros = _mm256_or_si256(is_zero::<L>(a), is_zero::<L>(b));
            let are_denormal = or3(
                is_denormal::<L>(a),
                is_denormal::<L>(b),
                is_denormal::<L>(c),
            );
            (
                result,
                _mm256_or_si256(is_loud::<L>(result, zeros), are_denormal),
            )
        }
    }
}

macro_rules! fused {
    ($($name:ident = $order:literal, $signs:literal;)*) => {$(
        type $name<L, const BYTES: usize> = Fused<L, $order, $signs, BYTES>;
    )*};
}

fused! {
    Add132 = 132, 0;
    Add213 = 213, 0;
    Add231 = 231, 0;
    Subtract132 = 132, 1;
    Subtract213 = 213, 1;
    Subtract231 = 231, 1;
    NegatedAdd132 = 132, 2;
    NegatedAdd213 = 213, 2;
    NegatedAdd231 = 231, 2;
    NegatedSubtract132 = 132, 3;
    NegatedSubtract213 = 213, 3;
    NegatedSubtract231 = 231, 3;
}

/// Returns the handlers of an instruction.
pub(super) fn table(mnemonic: Mnemonic, length: u8) -> Option<Forms> {
    shapes! { mnemonic, length:
        Add132: Vfmadd132ps Vfmadd132pd Vfmadd132ss Vfmadd132sd;
        Add213: Vfmadd213ps Vfmadd213pd Vfmadd213ss Vfmadd213sd;
        Add231: Vfmadd231ps Vfmadd231pd Vfmadd231ss Vfmadd231sd;
        Subtract132: Vfmsub132ps Vfmsub132pd Vfmsub132ss Vfmsub132sd;
        Subtract213: Vfmsub213ps Vfmsub213pd Vfmsub213ss Vfmsub213sd;
        Subtract231: Vfmsub231ps Vfmsub231pd Vfmsub231ss Vfmsub231sd;
        NegatedAdd132: Vfnmadd132ps Vfnmadd132pd Vfnmadd132ss Vfnmadd132sd;
        NegatedAdd213: Vfnmadd213ps Vfnmadd213pd Vfnmadd213ss Vfnmadd213sd;
        NegatedAdd231: Vfnmadd231ps Vfnmadd231pd Vfnmadd231ss Vfnmadd231sd;
        NegatedSubtract132: Vfnmsub132ps Vfnmsub132pd Vfnmsub132ss Vfnmsub132sd;
        NegatedSubtract213: Vfnmsub213ps Vfnmsub213pd Vfnmsub213ss Vfnmsub213sd;
        NegatedSubtract231: Vfnmsub231ps Vfnmsub231pd Vfnmsub231ss Vfnmsub231sd;
    }
    None
}
