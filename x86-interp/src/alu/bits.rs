//! Bit test, bit scan, byte swap (SDM Vol. 1, "Bit and Byte Instructions").

use vmx_model::arch::Rflags;

use super::{flag_if, zsp};
use crate::width::Width;

/// What BT, BTS, BTR, BTC do with the selected bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BitOp {
    /// BTS.
    Set,
    /// BTR.
    Reset,
    /// BTC.
    Complement,
}

/// Returns bit `index` (modulo the width): the CF of BT, BTS, BTR and BTC. The other status flags
/// stay: ZF by definition, OF, SF, AF and PF (undefined) as on Intel processors.
#[inline(always)]
pub(crate) fn test<W: Width>(a: W, index: u64) -> bool {
    (a.to_u64() >> (index % u64::from(W::BITS))) & 1 != 0
}

/// Returns `a` with bit `index` (modulo the width) changed.
#[inline(always)]
pub(crate) fn change<W: Width>(a: W, index: u64, op: BitOp) -> W {
    let bit = 1u64 << (index % u64::from(W::BITS));
    let value = a.to_u64();
    W::from_u64(match op {
        BitOp::Set => value | bit,
        BitOp::Reset => value & !bit,
        BitOp::Complement => value ^ bit,
    })
}

/// BSF: `None` if the operand is 0, else the index of the lowest set bit.
pub(crate) fn bsf<W: Width>(a: W) -> Option<W> {
    let value = a.to_u64();
    (value != 0).then(|| W::from_u64(u64::from(value.trailing_zeros())))
}

/// BSR: `None` if the operand is 0, else the index of the highest set bit.
pub(crate) fn bsr<W: Width>(a: W) -> Option<W> {
    let value = a.to_u64();
    (value != 0).then(|| W::from_u64(u64::from(63 - value.leading_zeros())))
}

/// The flags of BSF and BSR of a non-zero operand. Only ZF is defined; PF follows the result, the
/// others are 0.
pub(crate) fn scan_flags<W: Width>(index: W) -> Rflags {
    zsp(index).difference(Rflags::ZF)
}

/// TZCNT. CF: the operand is 0; ZF: the result is 0; PF follows the result, the others are 0.
pub(crate) fn tzcnt<W: Width>(a: W) -> (W, Rflags) {
    let count = a.to_u64().trailing_zeros().min(W::BITS);
    counted(a, count)
}

/// LZCNT. Flags as [`tzcnt`].
pub(crate) fn lzcnt<W: Width>(a: W) -> (W, Rflags) {
    let count = a.to_u64().leading_zeros() - (64 - W::BITS);
    counted(a, count)
}

fn counted<W: Width>(a: W, count: u32) -> (W, Rflags) {
    let result = W::from_u64(u64::from(count));
    let flags = zsp(result) | flag_if(Rflags::CF, a == W::default());
    (result, flags)
}

/// POPCNT: ZF tells that the operand is 0; all others are cleared.
pub(crate) fn popcnt<W: Width>(a: W) -> (W, Rflags) {
    let result = W::from_u64(u64::from(a.to_u64().count_ones()));
    (result, flag_if(Rflags::ZF, a == W::default()))
}

/// Reverses the bytes of the operand (BSWAP, MOVBE).
#[inline(always)]
pub(crate) fn bswap<W: Width>(a: W) -> W {
    W::from_u64(a.to_u64().swap_bytes() >> (64 - W::BITS))
}
