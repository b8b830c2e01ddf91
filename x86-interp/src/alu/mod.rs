//! Pure value functions of the integer instructions: values in, value and flags out.
//!
//! Nothing here knows a processor. Each file holds one group of SDM Vol. 1, "Instruction Set
//! Summary"; the plain handlers of [`crate::exec`] and the micro-operations share these functions.
//!
//! Flags that the SDM calls undefined are as on Intel processors where that is known; otherwise
//! the function names its choice.

pub(crate) mod add;
pub(crate) mod bcd;
pub(crate) mod bits;
pub(crate) mod crc32;
pub(crate) mod extract;
pub(crate) mod logic;
pub(crate) mod multiply;
pub(crate) mod shift;

use vmx_model::arch::Rflags;

use crate::width::Width;

/// Returns `flag` if `condition` holds, else nothing.
#[inline(always)]
pub(crate) fn flag_if(flag: Rflags, condition: bool) -> Rflags {
    if condition { flag } else { Rflags::empty() }
}

/// Returns ZF, SF and PF of a result (PF looks at the lowest byte only).
#[inline(always)]
pub(crate) fn zsp<W: Width>(result: W) -> Rflags {
    let value = result.to_u64();
    flag_if(Rflags::ZF, value == 0)
        | flag_if(Rflags::SF, value & W::SIGN != 0)
        | flag_if(Rflags::PF, (value & 0xff).count_ones().is_multiple_of(2))
}

/// Whether the sign bit of `value` is set.
#[inline(always)]
pub(crate) fn sign<W: Width>(value: W) -> bool {
    value.to_u64() & W::SIGN != 0
}
