//! The words that the rows of checks are written in: what may be wrong with a field.

use super::view::View;
use super::{Finding, Offence};
use crate::addr::Hpa;
use crate::arch::{Cr0, Cr4, Rflags, SegmentRegister};
use crate::capability::Allowed;
use crate::controls::SecondaryControls;
use crate::event::{EventType, InterruptionInfo, vector};
use crate::exit::pdpte_reserved_bits;
use crate::field::Field;

/// Requires `holds`; `bits` of `field` are to blame if it does not.
#[inline(always)]
pub(super) fn holds(holds: bool, field: Field, bits: u64) -> Finding {
    Some(if holds {
        Ok(())
    } else {
        Err(Offence { field, bits })
    })
}

/// Requires the bits `mask` of a field to be 0.
#[inline(always)]
pub(super) fn zero<V: View>(v: &V, field: Field, mask: u64) -> Finding {
    let bits = v.get(field)? & mask;
    holds(bits == 0, field, bits)
}

/// Requires the bits `mask` of a field to be 1.
#[inline(always)]
pub(super) fn ones<V: View>(v: &V, field: Field, mask: u64) -> Finding {
    let bits = !v.get(field)? & mask;
    holds(bits == 0, field, bits)
}

/// Requires a control word to have an allowed setting.
#[inline(always)]
pub(super) fn allowed<V: View>(v: &V, field: Field, allowed: Allowed) -> Finding {
    let value = v.get(field)? as u32;
    let bits = !value & allowed.must1 | value & !allowed.may1;
    holds(bits == 0, field, bits.into())
}

/// The bits that an address may not have: those beyond the physical-address width.
#[inline(always)]
pub(super) fn beyond_physical<V: View>(v: &V) -> u64 {
    let width = u32::from(v.facts().physical_address_bits);
    if width >= 64 { 0 } else { u64::MAX << width }
}

/// The bits that the address of a VMX structure may not have: those beyond the physical-address
/// width, or beyond 32 where IA32_VMX_BASIC\[48\] says so.
#[inline(always)]
pub(super) fn beyond_structures<V: View>(v: &V) -> u64 {
    let limit = if v.caps().limits_addresses_to_32_bits() {
        u64::MAX << 32
    } else {
        0
    };
    beyond_physical(v) | limit
}

/// Requires the last byte of an MSR area to lie within the physical-address width.
#[inline(always)]
pub(super) fn area_end<V: View>(v: &V, address: Field, count: Field) -> Finding {
    let last = u128::from(v.get(address)?) + 16 * u128::from(v.get(count)?);
    let last = last.saturating_sub(1);
    holds(
        last >> 64 == 0 && last as u64 & beyond_structures(v) == 0,
        count,
        0,
    )
}

/// Requires a field to hold a canonical address.
#[inline(always)]
pub(super) fn canonical<V: View>(v: &V, field: Field) -> Finding {
    holds(v.facts().is_canonical(v.get(field)?), field, 0)
}

/// Requires bits 63:N of a field to be identical, N being the linear-address width.
#[inline(always)]
pub(super) fn identical_high_bits<V: View>(v: &V, field: Field) -> Finding {
    let high = v.get(field)? >> v.facts().linear_address_bits;
    let ones = u64::MAX >> v.facts().linear_address_bits;
    holds(high == 0 || high == ones, field, 0)
}

/// Requires every byte of an IA32_PAT field to be a memory type: 0, 1, 4, 5, 6 or 7.
#[inline(always)]
pub(super) fn memory_types<V: View>(v: &V, field: Field) -> Finding {
    let value = v.get(field)?;
    let mut bits = value & 0xf8f8_f8f8_f8f8_f8f8;
    // 2 and 3 are reserved: bit 1 without bit 2.
    bits |= value & !(value >> 1) & 0x0202_0202_0202_0202;
    holds(bits == 0, field, bits)
}

/// Requires the bits `mask` of a field all to be as `expected`.
#[inline(always)]
pub(super) fn equal_to<V: View>(v: &V, field: Field, mask: u64, expected: bool) -> Finding {
    if expected {
        ones(v, field, mask)
    } else {
        zero(v, field, mask)
    }
}

/// Whether the guest is in virtual-8086 mode.
#[inline(always)]
pub(super) fn is_v86<V: View>(v: &V) -> Option<bool> {
    Some(v.rflags()?.contains(Rflags::VM))
}

/// Whether the guest is not in virtual-8086 mode and the segment register is usable.
#[inline(always)]
pub(super) fn is_checked<V: View>(v: &V, register: SegmentRegister) -> Option<bool> {
    Some(!is_v86(v)? && !v.access(register)?.is_unusable())
}

/// Whether an event of this type is injected.
#[inline(always)]
pub(super) fn injects<V: View>(v: &V, kind: EventType) -> Option<bool> {
    let event = v.event()?;
    Some(event.is_valid() && event.kind() == Some(kind))
}

/// Whether a hardware exception with this vector has an error code.
#[inline(always)]
pub(super) fn has_error_code<V: View>(v: &V, event: InterruptionInfo) -> bool {
    match event.vector() {
        vector::DF | vector::TS..=vector::PF | vector::AC => true,
        vector::CP => v.facts().cr4_supported.contains(Cr4::CET),
        _ => false,
    }
}

/// Requires the limit and the granularity of a segment to agree: bits 11:0 of the limit.
#[inline(always)]
pub(super) fn granular_low<V: View>(v: &V, limit: Field, register: SegmentRegister) -> Finding {
    let low = v.get(limit)? & 0xfff;
    holds(
        low == 0xfff || !v.access(register)?.is_granular(),
        limit,
        !low & 0xfff,
    )
}

/// Requires the limit and the granularity of a segment to agree: bits 31:20 of the limit.
#[inline(always)]
pub(super) fn granular_high<V: View>(v: &V, limit: Field, register: SegmentRegister) -> Finding {
    let high = v.get(limit)? & 0xfff0_0000;
    holds(high == 0 || v.access(register)?.is_granular(), limit, high)
}

/// Requires a guest PDPTE to have no reserved bit set, if it is present. It comes from its field
/// with EPT, otherwise from the table that CR3 points to.
#[inline(always)]
pub(super) fn pdpte<V: View>(v: &V, field: Field, number: u64) -> Finding {
    let has_ept = v.secondary()?.contains(SecondaryControls::ENABLE_EPT);
    let entry = if has_ept {
        v.get(field)?
    } else {
        let table = Hpa(v.get(Field::GUEST_CR3)? & 0xffff_ffe0);
        v.read_u64(table.offset(8 * number))?
    };
    let bits = pdpte_reserved_bits(entry, v.profile());
    holds(
        bits == 0,
        if has_ept { field } else { Field::GUEST_CR3 },
        bits,
    )
}

/// Requires the data that the VMCS link pointer refers to to begin with the right word.
#[inline(always)]
pub(super) fn link_word<V: View>(v: &V, mask: u32, expected: u32) -> Finding {
    let pointer = Hpa(v.get(Field::VMCS_LINK_POINTER)?);
    let bits = (v.read_u32(pointer)? ^ expected) & mask;
    holds(bits == 0, Field::VMCS_LINK_POINTER, 0)
}

/// Requires `bits`, the difference of a field from what it should be, to be 0 within `mask`.
#[inline(always)]
pub(super) fn zero_bits(difference: u64, field: Field, mask: u64) -> Finding {
    let bits = difference & mask;
    holds(bits == 0, field, bits)
}

/// Requires a secondary processor-based control to be 1.
#[inline(always)]
pub(super) fn has(controls: SecondaryControls, required: SecondaryControls) -> Finding {
    let bits = required.bits().into();
    holds(
        controls.contains(required),
        Field::SECONDARY_PROC_CONTROLS,
        bits,
    )
}

/// Requires a secondary processor-based control to be 0.
#[inline(always)]
pub(super) fn lacks(controls: SecondaryControls, forbidden: SecondaryControls) -> Finding {
    let bits = (controls & forbidden).bits().into();
    holds(bits == 0, Field::SECONDARY_PROC_CONTROLS, bits)
}

/// Whether a field holds an address that a VMX structure of 4 KiB can have.
#[inline(always)]
pub(super) fn is_structure<V: View>(v: &V, field: Field) -> Option<bool> {
    Some(v.get(field)? & (beyond_structures(v) | 0xfff) == 0)
}

/// Whether the guest will be in real-address mode, which only an unrestricted guest can be.
#[inline(always)]
pub(super) fn is_real_mode<V: View>(v: &V) -> Option<bool> {
    let is_unrestricted = v
        .secondary()?
        .contains(SecondaryControls::UNRESTRICTED_GUEST);
    Some(is_unrestricted && !v.cr0()?.contains(Cr0::PE))
}
