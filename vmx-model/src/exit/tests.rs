//! Tests of VM exits: what is recorded, saved and loaded.

use super::*;
use crate::addr::Hpa;
use crate::arch::{AccessRights, Activity, Segment, SegmentRegister};
use crate::checks::EntryEnvironment;
use crate::entry::{check_entry, load_guest_state};
use crate::memory::PhysicalMemory;
use crate::sample::{Guest, root_state, valid_vmcs};
use proptest::prelude::*;

/// Memory that holds one 64-bit word everywhere.
struct Everywhere(u64);

impl PhysicalMemory for Everywhere {
    fn read(&self, address: Hpa, bytes: &mut [u8]) {
        for (n, byte) in (0..).zip(bytes) {
            *byte = self.0.to_le_bytes()[(address.offset(n).0 & 7) as usize];
        }
    }

    fn write(&mut self, _: Hpa, _: &[u8]) {
        unreachable!("nothing is written");
    }
}

fn exception(vector: u8, kind: EventType, length: u8) -> Event {
    Event {
        vector,
        kind,
        error_code: None,
        instruction_length: length,
        payload: 0,
    }
}

#[test]
fn a_page_fault_reports_address_and_error_code() {
    let mut vmcs = Vmcs::new();
    vmcs.set(Field::VM_ENTRY_INTERRUPTION_INFORMATION, 0x8000_0030);
    record_exit(
        &mut vmcs,
        &VmExit::by_exception(Exception::pf(6, 0x1234), None),
    );
    let expected = [
        (Field::EXIT_REASON, 0),
        (Field::EXIT_QUALIFICATION, 0x1234),
        (Field::VM_EXIT_INTERRUPTION_INFORMATION, 0x8000_0b0e),
        (Field::VM_EXIT_INTERRUPTION_ERROR_CODE, 6),
        (Field::IDT_VECTORING_INFORMATION, 0),
        (Field::VM_ENTRY_INTERRUPTION_INFORMATION, 0x30),
    ];
    for (field, value) in expected {
        assert_eq!(vmcs.get(field), value, "{field:?}");
    }
}

#[test]
fn an_exit_during_delivery_reports_the_event_and_its_length() {
    let mut vmcs = Vmcs::new();
    let int = exception(0x80, EventType::SoftwareInterrupt, 2);
    record_exit(
        &mut vmcs,
        &VmExit::by_exception(Exception::gp(0x402), Some(int)),
    );
    assert_eq!(vmcs.get(Field::IDT_VECTORING_INFORMATION), 0x8000_0480);
    assert_eq!(vmcs.get(Field::VM_EXIT_INSTRUCTION_LENGTH), 2);
    assert_eq!(
        vmcs.get(Field::VM_EXIT_INTERRUPTION_INFORMATION),
        0x8000_0b0d
    );
    let interrupt = exception(0x30, EventType::ExternalInterrupt, 0);
    let exit = VmExit::new(ExitReason::EPT_VIOLATION).at_physical(Gpa(0x5000));
    record_exit(&mut vmcs, &exit.during(Some(interrupt)));
    assert_eq!(vmcs.get(Field::IDT_VECTORING_INFORMATION), 0x8000_0030);
    assert_eq!(vmcs.get(Field::VM_EXIT_INSTRUCTION_LENGTH), 0);
    assert_eq!(vmcs.get(Field::GUEST_PHYSICAL_ADDRESS), 0x5000);
    assert_eq!(vmcs.get(Field::VM_EXIT_INTERRUPTION_INFORMATION), 0);
}

#[test]
fn an_acknowledged_interrupt_is_reported() {
    let acknowledged = VmExit::by_external_interrupt(Some(0x41));
    assert_eq!(acknowledged.interruption.0, 0x8000_0041);
    assert!(!VmExit::by_external_interrupt(None).interruption.is_valid());
}

#[test]
fn the_resume_flag_is_saved_as_the_reason_prescribes() {
    let check = |exit: VmExit, from_clear: bool, from_set: bool| {
        for (before, after) in [(false, from_clear), (true, from_set)] {
            let mut rflags = Rflags::FIXED1;
            rflags.set(Rflags::RF, before);
            assert_eq!(
                exit.saved_rflags(rflags).contains(Rflags::RF),
                after,
                "{exit:?}"
            );
        }
    };
    let event = exception(0x30, EventType::ExternalInterrupt, 0);
    check(VmExit::new(ExitReason::CPUID), false, false);
    check(VmExit::new(ExitReason::EPT_VIOLATION), true, true);
    check(
        VmExit::new(ExitReason::EPT_VIOLATION).during(Some(event)),
        false,
        true,
    );
    check(VmExit::new(ExitReason::TASK_SWITCH), false, true);
    check(VmExit::by_external_interrupt(None), false, true);
    check(VmExit::by_exception(Exception::gp(0), None), true, true);
    check(VmExit::by_exception(Exception::db(1), None), false, true);
    check(
        VmExit::by_event(&exception(3, EventType::SoftwareException, 1)),
        false,
        true,
    );
    check(VmExit::new(ExitReason::TRIPLE_FAULT), false, true);
}

#[test]
fn pending_debug_exceptions_are_saved_for_some_exits_only() {
    let profile = VmxProfile::everything();
    let saved = |reason, blocking| {
        let mut vmcs = valid_vmcs(&profile, Guest::Long);
        let state = ArchState {
            pending_debug: 0x4000,
            interruptibility: blocking,
            ..root_state(&profile)
        };
        save_guest_state(&mut vmcs, &state, &VmExit::new(reason), &profile);
        vmcs.get(Field::GUEST_PENDING_DEBUG_EXCEPTIONS)
    };
    let none = Interruptibility::empty();
    assert_eq!(saved(ExitReason::INIT_SIGNAL, none), 0x4000);
    assert_eq!(saved(ExitReason::MONITOR_TRAP_FLAG, none), 0x4000);
    assert_eq!(saved(ExitReason::CPUID, none), 0);
    assert_eq!(saved(ExitReason::CPUID, Interruptibility::MOV_SS), 0x4000);
}

#[test]
fn what_is_saved_by_control_is_not_saved_without() {
    let profile = VmxProfile::everything();
    let state = ArchState {
        pat: 0x0606,
        debugctl: 1,
        dr7: 0x455,
        ..root_state(&profile)
    };
    let saved = |controls: ExitControls| {
        let mut vmcs = valid_vmcs(&profile, Guest::Long);
        let exit = vmcs.exit() | controls;
        vmcs.set(Field::EXIT_CONTROLS, exit.bits().into());
        let exit = VmExit {
            preemption_timer: 7,
            ..VmExit::new(ExitReason::CPUID)
        };
        save_guest_state(&mut vmcs, &state, &exit, &profile);
        [
            Field::GUEST_IA32_PAT,
            Field::GUEST_DR7,
            Field::VMX_PREEMPTION_TIMER_VALUE,
        ]
        .map(|field| vmcs.get(field))
    };
    assert_eq!(saved(ExitControls::empty()), [0, 0x400, 0]);
    assert_eq!(saved(ExitControls::SAVE_IA32_PAT), [0x0606, 0x400, 0]);
    assert_eq!(saved(ExitControls::SAVE_DEBUG_CONTROLS), [0, 0x455, 0]);
    assert_eq!(
        saved(ExitControls::SAVE_VMX_PREEMPTION_TIMER_VALUE),
        [0, 0x400, 7]
    );
}

fn host_state(
    vmcs: &Vmcs,
    guest: &ArchState,
    exit: &VmExit,
    profile: &VmxProfile,
    memory: &Everywhere,
) -> Result<ArchState, VmxAbort> {
    let mut state = guest.clone();
    load_host_state(&mut state, vmcs, exit, profile, memory)?;
    Ok(state)
}

fn exit_to_host(vmcs: &Vmcs, guest: &ArchState, word: u64) -> Result<ArchState, VmxAbort> {
    let exit = VmExit::new(ExitReason::CPUID);
    host_state(
        vmcs,
        guest,
        &exit,
        &VmxProfile::everything(),
        &Everywhere(word),
    )
}

#[test]
fn the_host_gets_the_values_that_the_manual_fixes() {
    let profile = VmxProfile::everything();
    let mut vmcs = valid_vmcs(&profile, Guest::Long);
    vmcs.set(Field::HOST_FS_SELECTOR, 0);
    vmcs.set(Field::HOST_FS_BASE, 0xffff_8000_0000_0000);
    vmcs.set(Field::HOST_TR_BASE, 0x9000);
    let guest = ArchState {
        rflags: Rflags::from_bits_retain(0x246),
        dr7: 0x455,
        debugctl: 1,
        activity: Activity::Hlt,
        cr0: Cr0::from_bits_retain(0xe000_0031),
        ..root_state(&profile)
    };
    let host = exit_to_host(&vmcs, &guest, 0).unwrap();
    assert_eq!(host.rflags, Rflags::FIXED1);
    assert_eq!(
        (host.dr7, host.debugctl, host.activity),
        (0x400, 0, Activity::Active)
    );
    assert_eq!(host.cr0.bits(), 0xe001_0031, "CD and NW stay, WP is loaded");
    assert_eq!(
        host.segment(SegmentRegister::Cs).access,
        AccessRights(0xa09b)
    );
    let ds = Segment {
        base: 0,
        limit: u32::MAX,
        access: AccessRights(0xc093),
        selector: 0x10,
    };
    assert_eq!(host.segment(SegmentRegister::Ds), &ds);
    let fs = host.segment(SegmentRegister::Fs);
    assert!(fs.access.is_unusable());
    assert_eq!(fs.base, 0xffff_8000_0000_0000, "loaded though unusable");
    let tr = host.segment(SegmentRegister::Tr);
    assert_eq!(
        (tr.base, tr.limit, tr.access),
        (0x9000, 0x67, AccessRights(0x8b))
    );
    assert!(host.segment(SegmentRegister::Ldtr).access.is_unusable());
    assert_eq!((host.gdtr.limit, host.idtr.limit), (0xffff, 0xffff));
}

/// Returns a VMCS with a 32-bit host that uses PAE paging.
fn pae_host() -> Vmcs {
    let mut vmcs = valid_vmcs(&VmxProfile::everything(), Guest::Pae);
    let exit = vmcs
        .exit()
        .difference(ExitControls::HOST_ADDRESS_SPACE_SIZE);
    vmcs.set(Field::EXIT_CONTROLS, exit.bits().into());
    vmcs.set(Field::HOST_IA32_EFER, 0);
    vmcs
}

#[test]
fn a_32_bit_host_loads_pdptes_or_aborts() {
    let vmcs = pae_host();
    let guest = ArchState {
        efer: Efer::empty(),
        ..root_state(&VmxProfile::everything())
    };
    assert_eq!(
        exit_to_host(&vmcs, &guest, 0x1001).unwrap().pdptes,
        [0x1001; 4]
    );
    assert_eq!(
        exit_to_host(&vmcs, &guest, 0x1003),
        Err(VmxAbort::HostPdptes)
    );
    assert_eq!(
        exit_to_host(&vmcs, &guest, 0x1002).unwrap().pdptes,
        [0x1002; 4],
        "not present"
    );
    let host = exit_to_host(&vmcs, &guest, 0).unwrap();
    assert_eq!(
        host.segment(SegmentRegister::Cs).access,
        AccessRights(0xc09b)
    );
}

#[test]
fn leaving_ia32e_mode_to_a_32_bit_host_aborts() {
    let guest = root_state(&VmxProfile::everything());
    assert_eq!(
        exit_to_host(&pae_host(), &guest, 0),
        Err(VmxAbort::LeavingIa32eMode)
    );
}

#[test]
fn an_exit_by_nmi_blocks_nmis() {
    let profile = VmxProfile::everything();
    let mut vmcs = valid_vmcs(&profile, Guest::Long);
    let guest = root_state(&profile);
    let blocked = ArchState {
        interruptibility: Interruptibility::NMI,
        ..guest.clone()
    };
    let after = |vmcs: &Vmcs, guest: &ArchState, exit: &VmExit| {
        let host = host_state(vmcs, guest, exit, &profile, &Everywhere(0)).unwrap();
        host.interruptibility
    };
    let nmi = VmExit::by_event(&exception(2, EventType::Nmi, 0));
    let other = VmExit::new(ExitReason::CPUID);
    assert_eq!(after(&vmcs, &guest, &nmi), Interruptibility::NMI);
    assert_eq!(after(&vmcs, &guest, &other), Interruptibility::empty());
    assert_eq!(after(&vmcs, &blocked, &other), Interruptibility::NMI);
    let virtual_nmis = u64::from(crate::controls::PinControls::VIRTUAL_NMIS.bits());
    vmcs.set(
        Field::PIN_CONTROLS,
        vmcs.get(Field::PIN_CONTROLS) | virtual_nmis,
    );
    assert_eq!(after(&vmcs, &blocked, &other), Interruptibility::empty());
}

proptest! {
    /// Entry and exit without a change between them leave every check as it was known to hold.
    #[test]
    fn an_exit_of_an_unchanged_guest_keeps_the_checks(guest in 0..6_usize, profile in 0..5_usize) {
        let profile = VmxProfile::all().remove(profile);
        let guest = Guest::ALL[guest];
        prop_assume!(guest.is_possible(&profile));
        let mut vmcs = valid_vmcs(&profile, guest);
        let root = root_state(&profile);
        let memory = Everywhere(0);
        let environment = EntryEnvironment {
            profile: &profile,
            state: &root,
            current_vmcs: Hpa(0x2000),
            memory: &memory,
        };
        check_entry(&mut vmcs, environment).unwrap();
        let mut entered = root.clone();
        load_guest_state(&mut entered, &vmcs, &memory);
        let before = vmcs.clone();
        prop_assert_eq!(vmcs.clean_groups().count(), 12);
        let exit = VmExit::new(ExitReason::EXTERNAL_INTERRUPT);
        record_exit(&mut vmcs, &exit);
        save_guest_state(&mut vmcs, &entered, &exit, &profile);
        prop_assert_eq!(vmcs.clean_groups().count(), 12);
        let guest_fields = before.differences(&vmcs).filter(|f| f.kind() == crate::field::Kind::Guest);
        prop_assert_eq!(guest_fields.collect::<Vec<_>>(), []);
        // Another RIP, other flags: the segments need not be looked at again.
        let state = ArchState { rip: 0x77, rflags: Rflags::from_bits_retain(0x246), ..entered };
        save_guest_state(&mut vmcs, &state, &exit, &profile);
        prop_assert!(vmcs.clean_groups().any(|g| g == crate::checks::Group::GuestSegments)
            || guest == Guest::Virtual8086);
        let host = host_state(&vmcs, &state, &exit, &profile, &memory).unwrap();
        prop_assert_eq!(host.rip, vmcs.get(Field::HOST_RIP));
    }
}
