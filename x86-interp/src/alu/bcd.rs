//! Decimal arithmetic (SDM Vol. 1, "Decimal Arithmetic Instructions").
//!
//! Undefined by the SDM: OF of DAA and DAS, OF, SF, ZF, PF of AAA and AAS, OF, AF, CF of AAM and
//! AAD. SF, ZF and PF follow AL, the others are 0.

use vmx_model::arch::Rflags;

use super::{flag_if, zsp};

/// DAA: adjusts AL after an addition of packed digits; `flags` supplies CF and AF.
pub(crate) fn daa(al: u8, flags: Rflags) -> (u8, Rflags) {
    let (low, high) = needs_adjustment(al, flags);
    let low_part = if low { 6u8 } else { 0 };
    let high_part = if high { 0x60 } else { 0 };
    let result = al.wrapping_add(low_part).wrapping_add(high_part);
    (result, packed_flags(result, low, high))
}

/// DAS: adjusts AL after a subtraction of packed digits; `flags` supplies CF and AF.
pub(crate) fn das(al: u8, flags: Rflags) -> (u8, Rflags) {
    let (low, high) = needs_adjustment(al, flags);
    let low_part = if low { 6u8 } else { 0 };
    let high_part = if high { 0x60 } else { 0 };
    let borrow = low && al < 6;
    let result = al.wrapping_sub(low_part).wrapping_sub(high_part);
    (result, packed_flags(result, low, high || borrow))
}

/// AAA: adjusts AX after an addition of unpacked digits; `flags` supplies AF.
pub(crate) fn aaa(ax: u16, flags: Rflags) -> (u16, Rflags) {
    unpacked(ax, flags, ax.wrapping_add(0x106))
}

/// AAS: adjusts AX after a subtraction of unpacked digits; `flags` supplies AF.
pub(crate) fn aas(ax: u16, flags: Rflags) -> (u16, Rflags) {
    let [al, ah] = ax.wrapping_sub(6).to_le_bytes();
    unpacked(ax, flags, u16::from_le_bytes([al, ah.wrapping_sub(1)]))
}

/// AAM: AH = AL / base, AL = AL mod base; `None` is #DE.
pub(crate) fn aam(al: u8, base: u8) -> Option<(u16, Rflags)> {
    let (quotient, remainder) = (al.checked_div(base)?, al.checked_rem(base)?);
    Some((u16::from_le_bytes([remainder, quotient]), zsp(remainder)))
}

/// AAD: AL = AL + AH * base, AH = 0.
pub(crate) fn aad(ax: u16, base: u8) -> (u16, Rflags) {
    let [al, ah] = ax.to_le_bytes();
    let result = al.wrapping_add(ah.wrapping_mul(base));
    (u16::from(result), zsp(result))
}

/// Whether the low and the high digit of AL need an adjustment.
fn needs_adjustment(al: u8, flags: Rflags) -> (bool, bool) {
    let low = al & 0xf > 9 || flags.contains(Rflags::AF);
    let high = al > 0x99 || flags.contains(Rflags::CF);
    (low, high)
}

fn packed_flags(al: u8, low: bool, carry: bool) -> Rflags {
    zsp(al) | flag_if(Rflags::AF, low) | flag_if(Rflags::CF, carry)
}

fn unpacked(ax: u16, flags: Rflags, adjusted: u16) -> (u16, Rflags) {
    let adjust = ax & 0xf > 9 || flags.contains(Rflags::AF);
    let result = if adjust { adjusted } else { ax } & 0xff0f;
    let flags = flag_if(Rflags::AF | Rflags::CF, adjust);
    (result, zsp(result as u8) | flags)
}
