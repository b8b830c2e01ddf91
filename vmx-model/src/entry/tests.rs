//! Tests of VM entry: the state, what is left to do, and what a failure writes.

use super::*;
use crate::addr::Hpa;
use crate::capability::VmxProfile;
use crate::msr_area::{LOAD_RULES, MsrArea};
use crate::sample::{Guest, root_state, valid_vmcs};

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

/// What a VM entry comes to.
#[derive(Debug, PartialEq)]
struct Entered {
    state: ArchState,
    msr_loads: MsrArea,
    rest: EntryRest,
}

/// Enters `guest` with some fields changed.
fn enter(guest: Guest, changes: &[(Field, u64)], word: u64) -> Result<Entered, EntryFailure> {
    let profile = VmxProfile::everything();
    let mut vmcs = valid_vmcs(&profile, guest);
    for &(field, value) in changes {
        vmcs.set(field, value);
    }
    let mut state = root_state(&profile);
    state.pat = 0x0606;
    state.dr7 = 0x401;
    let environment = EntryEnvironment {
        profile: &profile,
        state: &state,
        current_vmcs: Hpa(0x2000),
        memory: &Everywhere(word),
    };
    check_entry(&mut vmcs, environment)?;
    let rest = load_guest_state(&mut state, &vmcs, &Everywhere(word));
    Ok(Entered {
        state,
        msr_loads: MsrArea::entry_load(&vmcs),
        rest,
    })
}

/// Returns the VM-entry controls of `guest` with more of them set.
fn entry_controls(guest: Guest, more: EntryControls) -> (Field, u64) {
    let vmcs = valid_vmcs(&VmxProfile::everything(), guest);
    (Field::ENTRY_CONTROLS, (vmcs.entry() | more).bits().into())
}

#[test]
fn the_guest_gets_its_registers() {
    let entered = enter(
        Guest::Long,
        &[
            (Field::GUEST_RIP, 0x1234),
            (Field::GUEST_RSP, 0x5678),
            (Field::GUEST_CR3, 0x7000),
        ],
        0,
    );
    let entered = entered.unwrap();
    assert_eq!(
        (entered.state.rip, entered.state.rsp, entered.state.cr3),
        (0x1234, 0x5678, 0x7000)
    );
    assert_eq!(entered.state.efer, Efer::LMA | Efer::LME);
    assert_eq!(entered.rest.event, None);
    assert_eq!(entered.rest.preemption_timer, None);
    assert!(
        entered.rest.flushes_vpid_0
            && !entered.rest.has_pending_mtf
            && entered.msr_loads.is_empty()
    );
}

#[test]
fn what_is_loaded_by_control_stays_without() {
    let changes = [(Field::GUEST_IA32_PAT, 0x0404), (Field::GUEST_DR7, 0xf7ff)];
    let entered = enter(Guest::Long, &changes, 0).unwrap();
    assert_eq!((entered.state.pat, entered.state.dr7), (0x0606, 0x401));
    let loads = EntryControls::LOAD_IA32_PAT | EntryControls::LOAD_DEBUG_CONTROLS;
    let [pat, dr7] = changes;
    let entered = enter(
        Guest::Long,
        &[pat, dr7, entry_controls(Guest::Long, loads)],
        0,
    )
    .unwrap();
    assert_eq!(
        (entered.state.pat, entered.state.dr7),
        (0x0404, 0x27ff),
        "DR7: 12 and 15:14 are 0"
    );
}

#[test]
fn efer_follows_the_mode_where_it_is_not_loaded() {
    let without = |guest| {
        let controls = valid_vmcs(&VmxProfile::everything(), guest).entry();
        let controls = controls.difference(EntryControls::LOAD_IA32_EFER);
        let field = (Field::ENTRY_CONTROLS, controls.bits().into());
        enter(guest, &[field], 0).unwrap().state.efer
    };
    assert_eq!(without(Guest::Long), Efer::LMA | Efer::LME);
    assert_eq!(without(Guest::Protected), Efer::empty());
    assert_eq!(
        without(Guest::Real),
        Efer::LME,
        "LME stays where CR0.PG is 0"
    );
}

#[test]
fn pdptes_come_from_memory_without_ept_and_from_fields_with() {
    let entered = enter(Guest::Pae, &[], 0x1001).unwrap();
    assert_eq!(entered.state.pdptes, [0x1001; 4]);
    let failure = enter(Guest::Pae, &[], 0x1003).unwrap_err();
    assert!(matches!(failure, EntryFailure::Guest(check) if check.id == "guest-pdpte0-reserved"));
    let secondary = u64::from(SecondaryControls::ENABLE_EPT.bits());
    let ept = [
        (Field::SECONDARY_PROC_CONTROLS, secondary),
        (Field::EPT_POINTER, 0x1e),
        (Field::GUEST_PDPTE2, 0x5001),
    ];
    let entered = enter(Guest::Pae, &ept, 0x1003).unwrap();
    assert_eq!(entered.state.pdptes, [0, 0, 0x5001, 0]);
}

const INFO: Field = Field::VM_ENTRY_INTERRUPTION_INFORMATION;

#[test]
fn events_are_injected_with_what_belongs_to_them() {
    let rest = [
        (Field::VM_ENTRY_EXCEPTION_ERROR_CODE, 0x18),
        (Field::VM_ENTRY_INSTRUCTION_LENGTH, 2),
        (Field::GUEST_RFLAGS, 0x202),
    ];
    let inject = |info| {
        let [code, length, rflags] = rest;
        enter(Guest::Long, &[(INFO, info), code, length, rflags], 0).unwrap()
    };
    let event = |vector, kind, error_code, instruction_length| {
        Some(Event {
            vector,
            kind,
            error_code,
            instruction_length,
            payload: 0,
        })
    };
    let check = |info, expected| assert_eq!(inject(info).rest.event, expected, "{info:#x}");
    check(0x30, None);
    check(
        0x8000_0030,
        event(0x30, EventType::ExternalInterrupt, None, 0),
    );
    check(
        0x8000_0b0d,
        event(13, EventType::HardwareException, Some(0x18), 0),
    );
    check(0x8000_0306, event(6, EventType::HardwareException, None, 0));
    check(
        0x8000_0480,
        event(0x80, EventType::SoftwareInterrupt, None, 2),
    );
    check(0x8000_0603, event(3, EventType::SoftwareException, None, 2));
    check(0x8000_0700, None);
    assert!(inject(0x8000_0700).rest.has_pending_mtf);
}

#[test]
fn a_vectoring_entry_wakes_the_guest_and_ends_blocking() {
    let hlt = (Field::GUEST_ACTIVITY_STATE, 1);
    let entered = enter(Guest::Long, &[hlt, (INFO, 0x8000_0202)], 0).unwrap();
    assert_eq!(entered.state.activity, Activity::Active);
    assert_eq!(entered.state.interruptibility, Interruptibility::NMI);
    assert_eq!(
        enter(Guest::Long, &[hlt], 0).unwrap().state.activity,
        Activity::Hlt
    );
    let blocking = (Field::GUEST_INTERRUPTIBILITY_STATE, 2);
    let entered = enter(Guest::Long, &[blocking, (INFO, 0x8000_0306)], 0).unwrap();
    assert_eq!(entered.state.interruptibility, Interruptibility::empty());
    let entered = enter(Guest::Long, &[blocking], 0).unwrap();
    assert_eq!(entered.state.interruptibility, Interruptibility::MOV_SS);
}

#[test]
fn pending_debug_exceptions_survive_where_they_can_be_delivered() {
    let pending = |bits, more: &[(Field, u64)]| {
        let mut changes = vec![(Field::GUEST_PENDING_DEBUG_EXCEPTIONS, bits)];
        changes.extend(more);
        enter(Guest::Long, &changes, 0).unwrap().state.pending_debug
    };
    assert_eq!(pending(0x1001, &[]), 0x1001);
    assert_eq!(
        pending(0x1, &[]),
        0,
        "without bit 12 or 14 nothing is pending"
    );
    assert_eq!(pending(0x1001, &[(INFO, 0x8000_0306)]), 0);
    let int3 = [(INFO, 0x8000_0603), (Field::VM_ENTRY_INSTRUCTION_LENGTH, 1)];
    assert_eq!(pending(0x1001, &int3), 0);
    let [info, length] = int3;
    let blocking = (Field::GUEST_INTERRUPTIBILITY_STATE, 2);
    assert_eq!(pending(0x1001, &[info, length, blocking]), 0x1001);
    assert_eq!(pending(0x1001, &[(Field::GUEST_ACTIVITY_STATE, 2)]), 0);
}

#[test]
fn the_timer_and_the_vpid_are_taken_from_the_controls() {
    let profile = VmxProfile::everything();
    let pin = valid_vmcs(&profile, Guest::Long).pin() | PinControls::ACTIVATE_VMX_PREEMPTION_TIMER;
    let changes = [
        (Field::PIN_CONTROLS, pin.bits().into()),
        (Field::VMX_PREEMPTION_TIMER_VALUE, 99),
        (
            Field::SECONDARY_PROC_CONTROLS,
            SecondaryControls::ENABLE_VPID.bits().into(),
        ),
        (Field::VPID, 1),
    ];
    let entered = enter(Guest::Long, &changes, 0).unwrap();
    assert_eq!(entered.rest.preemption_timer, Some(99));
    assert!(!entered.rest.flushes_vpid_0);
}

#[test]
fn a_failure_writes_nothing_else() {
    let check = |changes: &[(Field, u64)], outcome, expected: &[(Field, u64)]| {
        let failure = enter(Guest::Long, changes, 0).unwrap_err();
        assert_eq!(failure.outcome(), outcome);
        let mut vmcs = Vmcs::new();
        failure.record(&mut vmcs);
        let written: Vec<_> = vmcs
            .differences(&Vmcs::new())
            .map(|field| (field, vmcs.get(field)))
            .collect();
        assert_eq!(written, expected);
    };
    let error = |number| [(Field::VM_INSTRUCTION_ERROR, number)];
    check(
        &[(Field::CR3_TARGET_COUNT, 5)],
        Some(VmxOutcome::FailValid(7)),
        &error(7),
    );
    check(
        &[(Field::HOST_CS_SELECTOR, 0)],
        Some(VmxOutcome::FailValid(8)),
        &error(8),
    );
    check(
        &[(Field::GUEST_RFLAGS, 0)],
        None,
        &[(Field::EXIT_REASON, 0x8000_0021)],
    );
    let link = [
        (Field::EXIT_REASON, 0x8000_0021),
        (Field::EXIT_QUALIFICATION, 4),
    ];
    check(&[(Field::VMCS_LINK_POINTER, 1)], None, &link);
    let mut vmcs = Vmcs::new();
    let entry = LoadFailure {
        number: 3,
        rule: &LOAD_RULES[0],
    };
    EntryFailure::MsrLoad(entry).record(&mut vmcs);
    assert_eq!(vmcs.get(Field::EXIT_REASON), 0x8000_0022);
    assert_eq!(vmcs.get(Field::EXIT_QUALIFICATION), 3);
}

#[test]
fn the_stages_fail_in_their_order() {
    let both = |changes: &[(Field, u64)]| enter(Guest::Long, changes, 0).unwrap_err();
    let control = (Field::CR3_TARGET_COUNT, 5);
    let host = (Field::HOST_CS_SELECTOR, 0);
    let guest = (Field::GUEST_RFLAGS, 0);
    assert!(matches!(
        both(&[guest, host, control]),
        EntryFailure::Control(_)
    ));
    assert!(matches!(both(&[guest, host]), EntryFailure::Host(_)));
}
