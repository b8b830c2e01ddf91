//! Every transition of the VMCS state machine, and every step of an instruction that the logical
//! processor decides, by the specification's number.
#![expect(clippy::unwrap_used, reason = "a failure is the test's failure")]

mod host;
mod table;

use std::collections::BTreeSet;

use self::host::*;
use self::table::{STEPS, Step, TRANSITIONS};
use serde::Deserialize;
use vmx_model::controls::{SecondaryControls, VmFunctionControls};
use vmx_model::exit_reason::ExitReason;
use vmx_model::field::Field;
use vmx_model::memory::PhysicalMemory;
use vmx_model::naive::Answer;
use vmx_model::naive::compare::INVARIANTS;
use vmx_model::naive::sequence::{Action, Header, REGIONS};
use vmx_model::precondition::{Instruction, Rule};
use vmx_model::processor::Vmfunc;
use vmx_model::sanitizer::Item;

#[derive(Deserialize)]
struct Transition {
    n: u32,
}

#[derive(Deserialize)]
struct Named {
    id: String,
}

#[derive(Deserialize)]
struct StateMachine {
    invariant: Vec<Named>,
    transition: Vec<Transition>,
    sanitizer: Vec<Named>,
}

fn state_machine() -> StateMachine {
    toml::from_str(include_str!("../data/state-machine.toml")).unwrap()
}

#[test]
#[cfg_attr(miri, ignore = "parses a long table")]
fn every_transition_has_its_test() {
    let listed: Vec<u32> = state_machine().transition.iter().map(|t| t.n).collect();
    let tested: Vec<u32> = TRANSITIONS.iter().map(|(n, _)| *n).collect();
    assert_eq!(tested, listed);
    assert_eq!(tested.len(), 52);
}

#[test]
fn every_transition_is_as_specified() {
    for (n, transition) in TRANSITIONS {
        println!("transition {n}");
        transition();
    }
}

#[test]
#[cfg_attr(miri, ignore = "parses a long table")]
fn the_sanitizer_has_the_items_of_the_specification() {
    let listed: Vec<String> = state_machine()
        .sanitizer
        .into_iter()
        .map(|s| s.id)
        .collect();
    let ours: Vec<&str> = Item::ALL.iter().map(|item| item.name()).collect();
    assert_eq!(ours, listed);
    assert_eq!(ours.len(), 17);
}

#[test]
#[cfg_attr(miri, ignore = "parses a long table")]
fn every_invariant_is_checked() {
    // Those that need more than one step are properties in `state_machine.rs`.
    let properties = ["high-low", "vmclear-flush", "exit-reentry"];
    let ours: BTreeSet<&str> = INVARIANTS.iter().copied().chain(properties).collect();
    let listed = state_machine().invariant;
    let listed: BTreeSet<&str> = listed
        .iter()
        .map(|invariant| invariant.id.as_str())
        .collect();
    assert_eq!(ours, listed);
    assert_eq!(ours.len(), 16);
}

#[test]
fn every_step_that_the_processor_decides_has_its_test() {
    let ours = Instruction::ALL.into_iter().flat_map(|instruction| {
        let steps = instruction.steps().iter();
        steps
            .filter(|step| matches!(step.rule, Rule::Processor))
            .map(move |step| (instruction, step.applies.name(), step.order))
    });
    let ours: BTreeSet<Step> = ours.collect();
    let tested: BTreeSet<Step> = STEPS.iter().map(|(step, _)| *step).collect();
    assert_eq!(tested, ours);
    let known: BTreeSet<u32> = TRANSITIONS.iter().map(|(n, _)| *n).chain([0]).collect();
    assert!(
        STEPS
            .iter()
            .all(|(_, by)| by.iter().all(|n| known.contains(n)))
    );
}

#[test]
fn vmcall_in_root_operation_fails_with_error_1() {
    Host::root().then(Action::Vmcall, INVALID);
    Host::current().then(Action::Vmcall, valid(1)).error(1);
}

/// A guest with VM functions as `controls` say, whose EPTP list is the page C.
fn vmfunc_guest(controls: VmFunctionControls) -> Host {
    let list = REGIONS[2];
    let eptp = REGIONS[4].0 | 0x1e;
    Host::guest().changed(|m| {
        m.memory.write_u64(list, eptp);
        m.memory.write_u64(list.offset(8), eptp | 7);
        let vmcs = m.cpus[0].current_vmcs_mut().unwrap();
        let secondary = vmcs.get(Field::SECONDARY_PROC_CONTROLS);
        let enable = SecondaryControls::ENABLE_VM_FUNCTIONS.bits();
        vmcs.set(
            Field::SECONDARY_PROC_CONTROLS,
            secondary | u64::from(enable),
        );
        vmcs.set(Field::VM_FUNCTION_CONTROLS, controls.bits());
        vmcs.set(Field::EPTP_LIST_ADDRESS, list.0);
    })
}

fn vmfunc(host: &mut Host, eax: u32, ecx: u32) -> Vmfunc {
    host.0.cpus[0].vmfunc(eax, ecx, &host.0.memory)
}

#[test]
fn vmfunc_decides_in_its_order() {
    let switching = VmFunctionControls::EPTP_SWITCHING;
    for mut host in [Host::root(), Host::guest(), Host::outside()] {
        assert_eq!(vmfunc(&mut host, 0, 0), Vmfunc::Undefined);
    }
    let mut host = vmfunc_guest(switching);
    assert_eq!(vmfunc(&mut host, 64, 0), Vmfunc::Undefined);
    assert_eq!(vmfunc(&mut host, u32::MAX, 0), Vmfunc::Undefined);
    assert_eq!(vmfunc(&mut host, 1, 0), Vmfunc::Exit);
    assert_eq!(vmfunc(&mut host, 0, 512), Vmfunc::Exit);
    assert_eq!(vmfunc(&mut host, 0, 1), Vmfunc::Exit);
    let mut without = vmfunc_guest(VmFunctionControls::empty());
    assert_eq!(vmfunc(&mut without, 0, 0), Vmfunc::Exit);
    let eptp = REGIONS[4].0 | 0x1e;
    assert_eq!(vmfunc(&mut host, 0, 0), Vmfunc::Switched { eptp });
    assert_eq!(host.field(Field::EPT_POINTER), eptp);
    assert_eq!(host.field(Field::EPTP_INDEX), 0);
}

#[test]
fn operands_of_invept_and_invvpid_are_judged() {
    let eptp = REGIONS[4].0 | 0x1e;
    let wide = 1 << 63;
    let cases = [
        (Action::Invept(1, [eptp, 0]), SUCCEED),
        (Action::Invept(1, [eptp | 7, 0]), valid(28)),
        (Action::Invept(1, [eptp | wide, 0]), valid(28)),
        (Action::Invept(1, [eptp | 1 << 8, 0]), valid(28)),
        (Action::Invept(3, [eptp, 0]), valid(28)),
        (Action::Invept(1 << 32 | 1, [eptp, 0]), valid(28)),
        (Action::Invvpid(4, [1, 0]), valid(28)),
        (Action::Invvpid(2, [1 << 16, 0]), valid(28)),
        (Action::Invvpid(2, [0, 0]), SUCCEED),
        (Action::Invvpid(3, [0, 0]), valid(28)),
        (Action::Invvpid(0, [1, 1 << 62]), valid(28)),
        (Action::Invvpid(0, [1, 0x1000]), SUCCEED),
        (Action::Invvpid(1, [1, 1 << 62]), SUCCEED),
    ];
    for (action, answer) in cases {
        Host::current().then(action, answer);
        let without_current = match answer {
            SUCCEED => SUCCEED,
            _ => INVALID,
        };
        Host::root().then(action, without_current);
    }
}

/// Choice: see `LogicalProcessor::shadow_vmread`.
#[test]
fn a_shadow_vmcs_that_is_active_is_accessed_where_its_data_are() {
    Host::root()
        .then(Action::Vmclear(B), SUCCEED)
        .then(Action::StoreHeader(B, Header::Shadow), Answer::Done)
        .then(Action::Vmptrld(B), SUCCEED)
        .write(Field::TSC_OFFSET, 0x1234)
        .enter_with_shadow()
        .reads(Field::TSC_OFFSET, 0x1234)
        .write(Field::TSC_OFFSET, 0x5678)
        .active_on(B, &[0])
        .then(Action::Exit(ExitReason::CPUID), Answer::Exited)
        .reads(Field::TSC_OFFSET, 0)
        .then(Action::Vmptrld(B), SUCCEED)
        .reads(Field::TSC_OFFSET, 0x5678);
}
