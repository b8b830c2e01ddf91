//! VMCSs that pass every check of VM entry, to start from in tests and tools.
//!
//! Each is as plain as its profile allows: the controls that must be 1, 64-bit host, flat segments,
//! and for a guest that needs them EPT and "unrestricted guest".

pub mod near_valid;
#[cfg(feature = "proptest")]
pub mod strategy;

use crate::arch::{
    AccessRights, ArchState, Cr0, Cr4, DescriptorTable, Efer, Rflags, Segment, SegmentRegister,
};
use crate::capability::VmxProfile;
use crate::controls::{EntryControls, ExitControls, ProcControls, SecondaryControls};
use crate::exit::set_guest_segment;
use crate::field::Field;
use crate::vmcs::Vmcs;

/// The mode that the guest of a sample is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Guest {
    /// 64-bit mode, CPL 0.
    Long,
    /// Protected mode with 32-bit paging, CPL 0.
    Protected,
    /// Protected mode with PAE paging, CPL 0.
    Pae,
    /// Virtual-8086 mode.
    Virtual8086,
    /// Real-address mode, in an unrestricted guest.
    Real,
    /// Protected mode without paging, in an unrestricted guest.
    Unpaged,
}

impl Guest {
    /// Every mode.
    pub const ALL: [Self; 6] = [
        Self::Long,
        Self::Protected,
        Self::Pae,
        Self::Virtual8086,
        Self::Real,
        Self::Unpaged,
    ];

    /// Whether the guest has to be unrestricted.
    #[must_use]
    pub const fn is_unrestricted(self) -> bool {
        matches!(self, Self::Real | Self::Unpaged)
    }

    /// Whether a processor can run such a guest.
    #[must_use]
    pub fn is_possible(self, profile: &VmxProfile) -> bool {
        let may1 = profile.caps.secondary_may1();
        !self.is_unrestricted() || may1.contains(SecondaryControls::UNRESTRICTED_GUEST)
    }
}

const DATA: u32 = 0xc093;
const CODE_32: u32 = 0xc09b;
const CODE_64: u32 = 0xa09b;
const REAL_DATA: u32 = 0x93;
const REAL_CODE: u32 = 0x9b;
const V86: u32 = 0xf3;
const TSS: u32 = 0x8b;
const UNUSABLE: u32 = 0x1_0000;

/// EPTP: write-back, page-walk length 4, no flags, table at 0.
const EPTP: u64 = 0x1e;

/// Returns a VMCS for `guest` that passes every check of VM entry on a processor of this profile
/// in the state [`root_state`].
///
/// The EPT tables of an unrestricted guest and the page tables are at address 0; the current-VMCS
/// pointer may be anything.
#[must_use]
pub fn valid_vmcs(profile: &VmxProfile, guest: Guest) -> Vmcs {
    let mut vmcs = Vmcs::new();
    set_controls(&mut vmcs, profile, guest);
    set_host_state(&mut vmcs, profile);
    set_guest_registers(&mut vmcs, profile, guest);
    set_guest_segments(&mut vmcs, guest);
    vmcs.set(Field::VMCS_LINK_POINTER, u64::MAX);
    vmcs
}

fn set_controls(vmcs: &mut Vmcs, profile: &VmxProfile, guest: Guest) {
    let caps = &profile.caps;
    let mut proc = ProcControls::from_bits_retain(caps.proc().must1);
    proc |= caps.proc_may1() & ProcControls::ACTIVATE_SECONDARY_CONTROLS;
    let mut secondary = SecondaryControls::from_bits_retain(caps.secondary().must1);
    if guest.is_unrestricted() {
        secondary |= SecondaryControls::ENABLE_EPT | SecondaryControls::UNRESTRICTED_GUEST;
        vmcs.set(Field::EPT_POINTER, EPTP);
    }
    let mut exit = ExitControls::from_bits_retain(caps.exit().must1);
    exit |= ExitControls::HOST_ADDRESS_SPACE_SIZE;
    exit |= caps.exit_may1() & ExitControls::LOAD_IA32_EFER;
    let mut entry = EntryControls::from_bits_retain(caps.entry().must1);
    entry |= caps.entry_may1() & EntryControls::LOAD_IA32_EFER;
    entry.set(EntryControls::IA32E_MODE_GUEST, guest == Guest::Long);
    vmcs.set(Field::PIN_CONTROLS, caps.pin().must1.into());
    vmcs.set(Field::PROC_CONTROLS, proc.bits().into());
    vmcs.set(Field::SECONDARY_PROC_CONTROLS, secondary.bits().into());
    vmcs.set(Field::EXIT_CONTROLS, exit.bits().into());
    vmcs.set(Field::ENTRY_CONTROLS, entry.bits().into());
}

fn fixed_cr0(profile: &VmxProfile) -> Cr0 {
    Cr0::from_bits_retain(profile.caps.cr0_fixed0()) | Cr0::PE | Cr0::PG | Cr0::WP | Cr0::ET
}

fn fixed_cr4(profile: &VmxProfile) -> Cr4 {
    Cr4::from_bits_retain(profile.caps.cr4_fixed0())
}

const LONG_MODE: Efer = Efer::LMA.union(Efer::LME);

fn set_host_state(vmcs: &mut Vmcs, profile: &VmxProfile) {
    vmcs.set(Field::HOST_CR0, fixed_cr0(profile).bits());
    vmcs.set(Field::HOST_CR4, (fixed_cr4(profile) | Cr4::PAE).bits());
    vmcs.set(Field::HOST_IA32_EFER, LONG_MODE.bits());
    vmcs.set(Field::HOST_CS_SELECTOR, 0x08);
    for selector in [
        Field::HOST_ES_SELECTOR,
        Field::HOST_SS_SELECTOR,
        Field::HOST_DS_SELECTOR,
        Field::HOST_FS_SELECTOR,
        Field::HOST_GS_SELECTOR,
    ] {
        vmcs.set(selector, 0x10);
    }
    vmcs.set(Field::HOST_TR_SELECTOR, 0x18);
    vmcs.set(Field::HOST_RIP, 0x1000);
}

fn set_guest_registers(vmcs: &mut Vmcs, profile: &VmxProfile, guest: Guest) {
    let mut cr0 = fixed_cr0(profile);
    cr0.set(Cr0::PE, guest != Guest::Real);
    cr0.set(Cr0::PG, !guest.is_unrestricted());
    let mut cr4 = fixed_cr4(profile);
    cr4.set(Cr4::PAE, matches!(guest, Guest::Long | Guest::Pae));
    let mut rflags = Rflags::FIXED1;
    rflags.set(Rflags::VM, guest == Guest::Virtual8086);
    let efer = if guest == Guest::Long {
        LONG_MODE
    } else {
        Efer::empty()
    };
    vmcs.set(Field::GUEST_CR0, cr0.bits());
    vmcs.set(Field::GUEST_CR4, cr4.bits());
    vmcs.set(Field::GUEST_RFLAGS, rflags.bits());
    vmcs.set(Field::GUEST_IA32_EFER, efer.bits());
    vmcs.set(Field::GUEST_DR7, 0x400);
}

fn set_guest_segments(vmcs: &mut Vmcs, guest: Guest) {
    let (code, data, limit, selector) = match guest {
        Guest::Long => (CODE_64, DATA, u32::MAX, 0x08),
        Guest::Protected | Guest::Pae | Guest::Unpaged => (CODE_32, DATA, u32::MAX, 0x08),
        Guest::Virtual8086 => (V86, V86, 0xffff, 0),
        Guest::Real => (REAL_CODE, REAL_DATA, 0xffff, 0),
    };
    let segment = |selector, limit, access| Segment {
        base: 0,
        limit,
        access: AccessRights(access),
        selector,
    };
    let data = segment(selector * 2, limit, data);
    for register in [
        SegmentRegister::Es,
        SegmentRegister::Ss,
        SegmentRegister::Ds,
        SegmentRegister::Fs,
        SegmentRegister::Gs,
    ] {
        set_guest_segment(vmcs, register, &data);
    }
    set_guest_segment(vmcs, SegmentRegister::Cs, &segment(selector, limit, code));
    set_guest_segment(vmcs, SegmentRegister::Ldtr, &segment(0, 0, UNUSABLE));
    set_guest_segment(vmcs, SegmentRegister::Tr, &segment(0x18, 0x67, TSS));
}

/// Returns the state of a processor of this profile in VMX root operation and 64-bit mode.
#[must_use]
pub fn root_state(profile: &VmxProfile) -> ArchState {
    let flat = |selector, access| Segment {
        base: 0,
        limit: u32::MAX,
        access: AccessRights(access),
        selector,
    };
    let data = flat(0x10, DATA);
    let code = flat(0x08, CODE_64);
    let ldtr = Segment {
        access: AccessRights::UNUSABLE,
        ..Segment::default()
    };
    let tr = Segment {
        limit: 0x67,
        ..flat(0x18, TSS)
    };
    ArchState {
        cr0: fixed_cr0(profile),
        cr4: fixed_cr4(profile) | Cr4::PAE,
        efer: LONG_MODE,
        dr7: 0x400,
        rflags: Rflags::FIXED1,
        segments: [data, code, data, data, data, data, ldtr, tr],
        gdtr: DescriptorTable {
            base: 0,
            limit: 0xffff,
        },
        idtr: DescriptorTable {
            base: 0,
            limit: 0xffff,
        },
        ..ArchState::default()
    }
}
