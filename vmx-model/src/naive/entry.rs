//! VM entry for the naive model: values with which it succeeds, and its verdict by the whole list
//! of checks.

use super::NaiveMachine;
use super::sequence::BITMAPS;
use crate::addr::Hpa;
use crate::arch::{ArchState, Cr0, Cr4, Efer, Rflags};
use crate::capability::{Allowed, VmxProfile};
use crate::checks::{self, Consequence, EntryEnvironment, FullView};
use crate::controls::{EntryControls, ExitControls, ProcControls, SecondaryControls};
use crate::field::{Field, Kind};
use crate::memory::PhysicalMemory;
use crate::vmcs::Vmcs;

/// How a VM entry ends, as far as its checks decide.
pub(super) enum Verdict {
    ControlsFail,
    HostStateFails,
    /// With this exit qualification.
    GuestStateFails(u64),
    Enters,
}

/// Judges a VM entry by all checks that do not hold.
pub(super) fn judge(vmcs: &Vmcs, pointer: Hpa, machine: &NaiveMachine) -> Verdict {
    let state = root_state(&machine.profile);
    let memory = Headers(machine);
    let view = FullView::new(
        vmcs,
        EntryEnvironment {
            profile: &machine.profile,
            state: &state,
            current_vmcs: pointer,
            memory: &memory,
        },
    );
    let failures = checks::diagnose(&view);
    let of = |consequence| {
        let mut failures = failures.iter().map(|failure| failure.check);
        failures.find(|check| check.group.consequence() == consequence)
    };
    if of(Consequence::InvalidControls).is_some() {
        Verdict::ControlsFail
    } else if of(Consequence::InvalidHostState).is_some() {
        Verdict::HostStateFails
    } else if let Some(check) = of(Consequence::InvalidGuestState) {
        Verdict::GuestStateFails(check.qualification)
    } else {
        Verdict::Enters
    }
}

/// The memory of the naive model: the first dword of each region, otherwise zeroes.
struct Headers<'a>(&'a NaiveMachine);

impl PhysicalMemory for Headers<'_> {
    fn read(&self, address: Hpa, bytes: &mut [u8]) {
        for (n, byte) in (0..).zip(bytes) {
            let at = address.offset(n);
            *byte = match (self.0.pages.get(&at.page()), at.page_offset()) {
                (Some(page), offset @ 0..4) => page.header.to_le_bytes()[offset as usize],
                (Some(_), _) => 0,
                (None, _) => 0xff,
            };
        }
    }

    fn write(&mut self, _address: Hpa, _bytes: &[u8]) {}
}

/// Returns the state of a processor in 64-bit mode that is about to enter a guest.
pub(super) fn root_state(profile: &VmxProfile) -> ArchState {
    ArchState {
        cr0: Cr0::from_bits_retain(profile.caps.cr0_fixed0()) | Cr0::PE | Cr0::PG | Cr0::NE,
        cr4: Cr4::from_bits_retain(profile.caps.cr4_fixed0()) | Cr4::PAE | Cr4::VMXE,
        efer: Efer::LME | Efer::LMA,
        rflags: Rflags::FIXED1,
        dr7: 0x400,
        ..ArchState::default()
    }
}

/// Returns encodings and values of all writable fields, so that VM entry succeeds: a 64-bit host
/// and a 64-bit guest, with VMCS shadowing if there is a link pointer.
pub(super) fn valid_values(profile: &VmxProfile, link: Option<Hpa>) -> Vec<(u64, u64)> {
    let vmcs = valid_vmcs(profile, link);
    let writable = profile.fields.iter();
    writable
        .filter(|field| field.kind() != Kind::ReadOnly)
        .map(move |field| (u64::from(field.encoding()), vmcs.get(field)))
        .collect()
}

const fn allowed(word: Allowed, wanted: u32) -> u64 {
    ((word.must1 | wanted) & word.may1) as u64
}

fn valid_vmcs(profile: &VmxProfile, link: Option<Hpa>) -> Vmcs {
    let mut vmcs = Vmcs::new();
    set_controls(&mut vmcs, profile, link);
    set_host(&mut vmcs, profile);
    set_guest(&mut vmcs, profile);
    vmcs
}

fn set_controls(vmcs: &mut Vmcs, profile: &VmxProfile, link: Option<Hpa>) {
    let caps = &profile.caps;
    let secondary = match link {
        Some(_) => SecondaryControls::VMCS_SHADOWING,
        None => SecondaryControls::empty(),
    };
    let may_shadow = caps
        .secondary_may1()
        .contains(SecondaryControls::VMCS_SHADOWING);
    let proc = ProcControls::ACTIVATE_SECONDARY_CONTROLS;
    vmcs.set(Field::PIN_CONTROLS, allowed(caps.pin(), 0));
    vmcs.set(Field::PROC_CONTROLS, allowed(caps.proc(), proc.bits()));
    vmcs.set(
        Field::SECONDARY_PROC_CONTROLS,
        allowed(caps.secondary(), secondary.bits()),
    );
    let exit = ExitControls::HOST_ADDRESS_SPACE_SIZE;
    let entry = EntryControls::IA32E_MODE_GUEST;
    vmcs.set(Field::EXIT_CONTROLS, allowed(caps.exit(), exit.bits()));
    vmcs.set(Field::ENTRY_CONTROLS, allowed(caps.entry(), entry.bits()));
    let link = link.filter(|_| may_shadow);
    vmcs.set(
        Field::VMCS_LINK_POINTER,
        link.map_or(u64::MAX, |link| link.0),
    );
    vmcs.set(Field::VMREAD_BITMAP_ADDRESS, BITMAPS[2].0);
    vmcs.set(Field::VMWRITE_BITMAP_ADDRESS, BITMAPS[0].0);
}

fn set_host(vmcs: &mut Vmcs, profile: &VmxProfile) {
    let state = root_state(profile);
    vmcs.set(Field::HOST_CR0, state.cr0.bits());
    vmcs.set(Field::HOST_CR4, state.cr4.bits());
    vmcs.set(Field::HOST_CS_SELECTOR, 0x08);
    vmcs.set(Field::HOST_SS_SELECTOR, 0x10);
    vmcs.set(Field::HOST_TR_SELECTOR, 0x18);
    vmcs.set(Field::HOST_RIP, 0x1000);
}

/// Selector, base and limit 0, unusable.
const UNUSABLE: u64 = 1 << 16;

fn set_guest(vmcs: &mut Vmcs, profile: &VmxProfile) {
    let state = root_state(profile);
    vmcs.set(Field::GUEST_CR0, state.cr0.bits());
    vmcs.set(Field::GUEST_CR4, state.cr4.bits());
    vmcs.set(Field::GUEST_RFLAGS, state.rflags.bits());
    vmcs.set(Field::GUEST_DR7, 0x400);
    vmcs.set(Field::GUEST_CS_SELECTOR, 0x08);
    // 64-bit code: execute/read, accessed, S, present, L, G.
    vmcs.set(Field::GUEST_CS_ACCESS_RIGHTS, 0xa09b);
    vmcs.set(Field::GUEST_CS_LIMIT, 0xffff_ffff);
    vmcs.set(Field::GUEST_SS_SELECTOR, 0x10);
    // Data: read/write, accessed, S, present, B, G.
    vmcs.set(Field::GUEST_SS_ACCESS_RIGHTS, 0xc093);
    vmcs.set(Field::GUEST_SS_LIMIT, 0xffff_ffff);
    for field in [
        Field::GUEST_ES_ACCESS_RIGHTS,
        Field::GUEST_DS_ACCESS_RIGHTS,
        Field::GUEST_FS_ACCESS_RIGHTS,
        Field::GUEST_GS_ACCESS_RIGHTS,
        Field::GUEST_LDTR_ACCESS_RIGHTS,
    ] {
        vmcs.set(field, UNUSABLE);
    }
    // A busy 64-bit TSS.
    vmcs.set(Field::GUEST_TR_ACCESS_RIGHTS, 0x8b);
    vmcs.set(Field::GUEST_TR_LIMIT, 0x67);
}
