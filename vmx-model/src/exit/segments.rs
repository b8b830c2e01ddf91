//! The guest segment registers in the guest-state area.
//!
//! SDM Vol. 3C, "Guest Register State" and "Saving Segment Registers and Descriptor-Table
//! Registers".

use crate::arch::{AccessRights, ArchState, Segment, SegmentRegister};
use crate::field::Field;
use crate::vmcs::Vmcs;

/// The fields of one guest segment register: selector, base, limit, access rights.
pub(crate) const GUEST_SEGMENTS: [(SegmentRegister, [Field; 4]); 8] = [
    (
        SegmentRegister::Es,
        [
            Field::GUEST_ES_SELECTOR,
            Field::GUEST_ES_BASE,
            Field::GUEST_ES_LIMIT,
            Field::GUEST_ES_ACCESS_RIGHTS,
        ],
    ),
    (
        SegmentRegister::Cs,
        [
            Field::GUEST_CS_SELECTOR,
            Field::GUEST_CS_BASE,
            Field::GUEST_CS_LIMIT,
            Field::GUEST_CS_ACCESS_RIGHTS,
        ],
    ),
    (
        SegmentRegister::Ss,
        [
            Field::GUEST_SS_SELECTOR,
            Field::GUEST_SS_BASE,
            Field::GUEST_SS_LIMIT,
            Field::GUEST_SS_ACCESS_RIGHTS,
        ],
    ),
    (
        SegmentRegister::Ds,
        [
            Field::GUEST_DS_SELECTOR,
            Field::GUEST_DS_BASE,
            Field::GUEST_DS_LIMIT,
            Field::GUEST_DS_ACCESS_RIGHTS,
        ],
    ),
    (
        SegmentRegister::Fs,
        [
            Field::GUEST_FS_SELECTOR,
            Field::GUEST_FS_BASE,
            Field::GUEST_FS_LIMIT,
            Field::GUEST_FS_ACCESS_RIGHTS,
        ],
    ),
    (
        SegmentRegister::Gs,
        [
            Field::GUEST_GS_SELECTOR,
            Field::GUEST_GS_BASE,
            Field::GUEST_GS_LIMIT,
            Field::GUEST_GS_ACCESS_RIGHTS,
        ],
    ),
    (
        SegmentRegister::Ldtr,
        [
            Field::GUEST_LDTR_SELECTOR,
            Field::GUEST_LDTR_BASE,
            Field::GUEST_LDTR_LIMIT,
            Field::GUEST_LDTR_ACCESS_RIGHTS,
        ],
    ),
    (
        SegmentRegister::Tr,
        [
            Field::GUEST_TR_SELECTOR,
            Field::GUEST_TR_BASE,
            Field::GUEST_TR_LIMIT,
            Field::GUEST_TR_ACCESS_RIGHTS,
        ],
    ),
];

/// Returns a guest segment register as the guest-state area holds it.
#[must_use]
pub fn guest_segment(vmcs: &Vmcs, register: SegmentRegister) -> Segment {
    let [selector, base, limit, access] = GUEST_SEGMENTS[register as usize].1;
    Segment {
        base: vmcs.get(base),
        limit: vmcs.get(limit) as u32,
        access: AccessRights(vmcs.get(access) as u32),
        selector: vmcs.get(selector) as u16,
    }
}

/// Writes a guest segment register to the guest-state area.
#[inline(always)]
pub fn set_guest_segment(vmcs: &mut Vmcs, register: SegmentRegister, segment: &Segment) {
    let [selector, base, limit, access] = GUEST_SEGMENTS[register as usize].1;
    vmcs.set(selector, segment.selector.into());
    vmcs.set(base, segment.base);
    vmcs.set(limit, segment.limit.into());
    vmcs.set(access, segment.access.0.into());
}

/// Writes all guest segment registers to the guest-state area. One by one, not in a loop: so each
/// field is a constant, and with it its width.
pub(crate) fn set_guest_segments(vmcs: &mut Vmcs, state: &ArchState) {
    use SegmentRegister::{Cs, Ds, Es, Fs, Gs, Ldtr, Ss, Tr};
    set_guest_segment(vmcs, Es, state.segment(Es));
    set_guest_segment(vmcs, Cs, state.segment(Cs));
    set_guest_segment(vmcs, Ss, state.segment(Ss));
    set_guest_segment(vmcs, Ds, state.segment(Ds));
    set_guest_segment(vmcs, Fs, state.segment(Fs));
    set_guest_segment(vmcs, Gs, state.segment(Gs));
    set_guest_segment(vmcs, Ldtr, state.segment(Ldtr));
    set_guest_segment(vmcs, Tr, state.segment(Tr));
}
