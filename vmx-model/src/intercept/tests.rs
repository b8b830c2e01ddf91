//! Tests of the decisions that are made here: events, windows, instructions.

use super::*;
use crate::controls::CONTROLS;
use crate::event::Exception;

fn vmcs(pin: PinControls, proc: ProcControls, secondary: SecondaryControls) -> Vmcs {
    let mut vmcs = Vmcs::new();
    let proc = proc | ProcControls::ACTIVATE_SECONDARY_CONTROLS;
    vmcs.set(Field::PIN_CONTROLS, pin.bits().into());
    vmcs.set(Field::PROC_CONTROLS, proc.bits().into());
    vmcs.set(Field::SECONDARY_PROC_CONTROLS, secondary.bits().into());
    vmcs
}

/// For every instruction: its exit reason, the controls without which it is #UD, and those with
/// which it exits (none: always).
const INSTRUCTIONS: [(Instruction, ExitReason, &[&str], &[&str]); 21] = {
    use ExitReason as E;
    use Instruction as I;
    [
        (I::Cpuid, E::CPUID, &[], &[]),
        (I::Getsec, E::GETSEC, &[], &[]),
        (I::Invd, E::INVD, &[], &[]),
        (I::Xsetbv, E::XSETBV, &[], &[]),
        (I::Hlt, E::HLT, &[], &["proc.hlt-exiting"]),
        (I::Invlpg, E::INVLPG, &[], &["proc.invlpg-exiting"]),
        (I::Monitor, E::MONITOR, &[], &["proc.monitor-exiting"]),
        (I::Mwait, E::MWAIT, &[], &["proc.mwait-exiting"]),
        (I::MovDr, E::DR_ACCESS, &[], &["proc.mov-dr-exiting"]),
        (I::Rdpmc, E::RDPMC, &[], &["proc.rdpmc-exiting"]),
        (I::Rdtsc, E::RDTSC, &[], &["proc.rdtsc-exiting"]),
        (
            I::GdtrIdtr,
            E::GDTR_IDTR_ACCESS,
            &[],
            &["proc2.descriptor-table-exiting"],
        ),
        (
            I::LdtrTr,
            E::LDTR_TR_ACCESS,
            &[],
            &["proc2.descriptor-table-exiting"],
        ),
        (I::Wbinvd, E::WBINVD, &[], &["proc2.wbinvd-exiting"]),
        (I::Rdrand, E::RDRAND, &[], &["proc2.rdrand-exiting"]),
        (I::Rdseed, E::RDSEED, &[], &["proc2.rdseed-exiting"]),
        (
            I::Rdtscp,
            E::RDTSCP,
            &["proc2.enable-rdtscp"],
            &["proc.rdtsc-exiting"],
        ),
        (
            I::Invpcid,
            E::INVPCID,
            &["proc2.enable-invpcid"],
            &["proc.invlpg-exiting"],
        ),
        (
            I::Tpause,
            E::TPAUSE,
            &["proc2.enable-user-wait-and-pause"],
            &["proc.rdtsc-exiting"],
        ),
        (
            I::Umwait,
            E::UMWAIT,
            &["proc2.enable-user-wait-and-pause"],
            &["proc.rdtsc-exiting"],
        ),
        (
            I::Umonitor,
            E(0xffff),
            &["proc2.enable-user-wait-and-pause"],
            &["never"],
        ),
    ]
};

/// Returns a VMCS with exactly these controls, by their stable names.
fn with_controls(ids: &[&str]) -> Vmcs {
    let (mut proc, mut secondary) = (0, 0);
    for id in ids {
        let control = CONTROLS.iter().find(|control| control.id == *id).unwrap();
        match control.word {
            crate::controls::ControlWord::Proc => proc |= 1 << control.bit,
            _ => secondary |= 1 << control.bit,
        }
    }
    vmcs(
        PinControls::empty(),
        ProcControls::from_bits_retain(proc),
        SecondaryControls::from_bits_retain(secondary),
    )
}

#[test]
fn an_instruction_obeys_its_controls_and_no_other() {
    for (what, reason, enable, exit) in INSTRUCTIONS {
        for control in CONTROLS {
            let alone = match control.id.split_once('.') {
                Some(("proc" | "proc2", _)) => with_controls(&[control.id]),
                _ => continue,
            };
            let expected = match (enable, exit) {
                ([needed], _) if *needed != control.id => Disposition::Undefined,
                (_, []) => Disposition::Exit(reason),
                (_, [control_id]) if *control_id == control.id => Disposition::Exit(reason),
                _ => Disposition::Execute,
            };
            assert_eq!(
                instruction(&alone, what),
                expected,
                "{what:?} with {}",
                control.id
            );
        }
        if let ([enable], [exit]) = (enable, exit)
            && *exit != "never"
        {
            let both = with_controls(&[enable, exit]);
            assert_eq!(
                instruction(&both, what),
                Disposition::Exit(reason),
                "{what:?}"
            );
        }
    }
}

#[test]
fn page_faults_are_filtered_by_mask_and_match() {
    let mut vmcs = Vmcs::new();
    let mut check = |bit: u64, mask, matching, code, exits| {
        vmcs.set(Field::EXCEPTION_BITMAP, bit << 14);
        vmcs.set(Field::PAGE_FAULT_ERROR_CODE_MASK, mask);
        vmcs.set(Field::PAGE_FAULT_ERROR_CODE_MATCH, matching);
        assert_eq!(exception_exits(&vmcs, vector::PF, code), exits);
    };
    check(1, 0, 0, 7, true);
    check(0, 0, 0, 7, false);
    check(1, 0, u64::MAX, 7, false);
    check(0, 0, u64::MAX, 7, true);
    check(1, 1, 1, 5, true);
    check(1, 1, 1, 4, false);
    check(0, 1, 1, 4, true);
    check(0, 1, 1, 5, false);
}

#[test]
fn an_event_exits_by_its_bit_or_control() {
    let mut vmcs = vmcs(
        PinControls::empty(),
        ProcControls::empty(),
        SecondaryControls::empty(),
    );
    vmcs.set(Field::EXCEPTION_BITMAP, u64::MAX);
    let event = |number, kind| Event {
        vector: number,
        kind,
        error_code: None,
        instruction_length: 1,
        payload: 0,
    };
    let exits = |vmcs: &Vmcs, number, kind| event_exit(vmcs, &event(number, kind), None).is_some();
    assert!(exits(&vmcs, vector::BP, EventType::SoftwareException));
    assert!(exits(
        &vmcs,
        vector::DB,
        EventType::PrivilegedSoftwareException
    ));
    assert!(exits(&vmcs, vector::UD, EventType::HardwareException));
    assert!(
        !exits(&vmcs, vector::BP, EventType::SoftwareInterrupt),
        "INT 3 is not INT3"
    );
    assert!(!exits(&vmcs, 14, EventType::ExternalInterrupt));
    assert!(!exits(&vmcs, vector::NMI, EventType::Nmi));
    vmcs.set(Field::EXCEPTION_BITMAP, 0);
    vmcs.set(Field::PIN_CONTROLS, PinControls::NMI_EXITING.bits().into());
    assert!(exits(&vmcs, vector::NMI, EventType::Nmi));
    assert!(!exits(&vmcs, vector::UD, EventType::HardwareException));
    vmcs.set(Field::EXCEPTION_BITMAP, 1 << vector::GP);
    let first = event(0x30, EventType::ExternalInterrupt);
    let exit = event_exit(&vmcs, &Exception::gp(0x183).into(), Some(first)).unwrap();
    assert_eq!(exit.idt_vectoring, Some(first));
    assert_eq!(exit.interruption_error_code, 0x183);
}

#[test]
fn windows_open_where_nothing_blocks() {
    let window = vmcs(
        PinControls::empty(),
        ProcControls::INTERRUPT_WINDOW_EXITING | ProcControls::NMI_WINDOW_EXITING,
        SecondaryControls::empty(),
    );
    let closed = Vmcs::new();
    let none = Interruptibility::empty();
    for blocking in (0..16).map(Interruptibility::from_bits_retain) {
        for activity in [
            Activity::Active,
            Activity::Hlt,
            Activity::Shutdown,
            Activity::WaitForSipi,
        ] {
            let awake = matches!(activity, Activity::Active | Activity::Hlt);
            let open = blocking.bits() & 3 == 0 && awake;
            assert_eq!(
                interrupt_window_exits(&window, Rflags::IF, blocking, activity),
                open
            );
            assert!(!interrupt_window_exits(
                &window,
                Rflags::empty(),
                blocking,
                activity
            ));
            assert!(!interrupt_window_exits(
                &closed,
                Rflags::IF,
                blocking,
                activity
            ));
            let nmi = blocking.bits() & 11 == 0 && activity != Activity::WaitForSipi;
            assert_eq!(nmi_window_exits(&window, blocking, activity), nmi);
            assert!(!nmi_window_exits(&closed, blocking, activity));
        }
    }
    let exiting = PinControls::EXTERNAL_INTERRUPT_EXITING;
    let exiting = vmcs(exiting, ProcControls::empty(), SecondaryControls::empty());
    let blocks = |vmcs, rflags, blocking, activity| {
        blocks_external_interrupt(vmcs, rflags, blocking, activity)
    };
    assert!(blocks(&closed, Rflags::empty(), none, Activity::Active));
    assert!(!blocks(&exiting, Rflags::empty(), none, Activity::Active));
    assert!(blocks(
        &exiting,
        Rflags::IF,
        Interruptibility::STI,
        Activity::Active
    ));
    assert!(blocks(&exiting, Rflags::IF, none, Activity::Shutdown));
}

#[test]
fn iret_unblocks_by_the_nmi_controls() {
    let check = |pin, expected| {
        let vmcs = vmcs(pin, ProcControls::empty(), SecondaryControls::empty());
        assert_eq!(iret(&vmcs), expected);
    };
    check(PinControls::empty(), IretUnblocks::Nmi);
    check(PinControls::NMI_EXITING, IretUnblocks::Nothing);
    check(
        PinControls::NMI_EXITING | PinControls::VIRTUAL_NMIS,
        IretUnblocks::VirtualNmi,
    );
}

#[test]
fn xsaves_exits_for_components_that_all_three_name() {
    let mut enabled = with_controls(&["proc2.enable-xsaves-xrstors"]);
    enabled.set(Field::XSS_EXITING_BITMAP, 0b0110);
    let exit = Disposition::Exit(ExitReason::XSAVES);
    let check = |vmcs: &Vmcs, requested, xss, expected| {
        assert_eq!(xsaves(vmcs, ExitReason::XSAVES, requested, xss), expected);
    };
    check(&enabled, 0b0010, 0b0011, exit);
    check(&enabled, 0b0010, 0b0101, Disposition::Execute);
    check(&enabled, 0b1001, 0b1111, Disposition::Execute);
    check(&Vmcs::new(), 0b0010, 0b0011, Disposition::Undefined);
}

#[test]
fn qualifications_have_their_layout() {
    assert_eq!(
        task_switch_qualification(0x28, TaskSwitchSource::TaskGate),
        0xc000_0028
    );
    assert_eq!(
        task_switch_qualification(0x28, TaskSwitchSource::Iret),
        0x4000_0028
    );
    assert_eq!(apic_access_qualification(ApicAccess::Write, 0x300), 0x1300);
    assert_eq!(
        apic_access_qualification(ApicAccess::Physical, 0x300),
        0xf000
    );
}

#[test]
fn the_tag_is_0_without_vpids() {
    let mut vmcs = with_controls(&["proc2.enable-vpid"]);
    vmcs.set(Field::VPID, 7);
    assert_eq!(vpid(&vmcs), 7);
    vmcs.set(Field::SECONDARY_PROC_CONTROLS, 0);
    assert_eq!(vpid(&vmcs), 0);
}
