//! The checks of VM entry: against the specification's list, each with a VMCS that breaks it, and
//! the three consumers against each other.
#![expect(clippy::unwrap_used, reason = "a failure is the test's failure")]

mod scene;
mod violations;

use proptest::prelude::*;
use scene::Scene;
use serde::Deserialize;
use violations::Setting;
use vmx_model::capability::VmxProfile;
use vmx_model::checks::{self, Beyond, Check, Consequence, FullView, PartialView, Verdict, View};
use vmx_model::field::Field;
use vmx_model::sample::{Guest, root_state, valid_vmcs};
use vmx_model::vmcs::Vmcs;

/// Software in VMX root operation.
fn scene_of(profile: VmxProfile) -> Scene {
    let state = root_state(&profile);
    Scene::of(profile, state)
}

#[test]
fn every_sample_is_valid_on_every_profile() {
    for profile in VmxProfile::all() {
        let scene = scene_of(profile);
        for guest in Guest::ALL {
            if guest.is_possible(&scene.profile) {
                let vmcs = valid_vmcs(&scene.profile, guest);
                assert!(
                    scene.diagnose(&vmcs).is_empty(),
                    "{} {guest:?}",
                    scene.profile.name
                );
            }
        }
    }
}

#[derive(Deserialize)]
struct SpecCheck {
    id: String,
    group: String,
    result: String,
    scope: String,
}

#[derive(Deserialize)]
struct SpecTable {
    check: Vec<SpecCheck>,
}

fn spec() -> Vec<SpecCheck> {
    toml::from_str::<SpecTable>(include_str!("data/vm-entry-checks.toml"))
        .unwrap()
        .check
}

/// Returns the end of a VM entry as the specification writes it.
fn result_of(check: &Check) -> String {
    match (check.group.consequence(), check.qualification) {
        (Consequence::InvalidControls, _) => "VMfailValid(7)".into(),
        (Consequence::InvalidHostState, _) => "VMfailValid(8)".into(),
        (Consequence::InvalidGuestState, 0) => "exit 33".into(),
        (Consequence::InvalidGuestState, n) => format!("exit 33, qual {n}"),
    }
}

#[test]
fn every_check_in_scope_is_in_the_table_in_order_and_has_its_result() {
    let spec = spec();
    let known: Vec<&str> = checks::all().map(|check| check.id).collect();
    let expected: Vec<&str> = spec
        .iter()
        .filter(|check| check.scope == "in" && check.group != "msr-loading")
        .map(|check| &*check.id)
        .collect();
    assert_eq!(expected.len(), 284);
    let in_scope: Vec<&str> = known
        .iter()
        .copied()
        .filter(|id| expected.contains(id))
        .collect();
    assert_eq!(in_scope, expected);
    for id in known {
        let row = spec.iter().find(|check| check.id == id).unwrap();
        assert_eq!(row.result, result_of(checks::by_id(id).unwrap()), "{id}");
    }
}

#[test]
fn every_check_fails_alone_where_only_it_is_broken() {
    let violations = violations::violations();
    let broken: Vec<&str> = violations
        .iter()
        .map(|violation| &*violation.check)
        .collect();
    let all: Vec<&str> = checks::all().map(|check| check.id).collect();
    assert_eq!(broken, all, "one violation for every check, in order");
    let mut wrong = Vec::new();
    for violation in &violations {
        let Setting {
            profile,
            state,
            mut vmcs,
        } = violations::base(violation);
        let scene = Scene::of(profile, state);
        if !violation.with_others && violation.environment.is_none() {
            let before = scene.diagnose(&vmcs);
            assert!(before.is_empty(), "{}: {before:?} before", violation.check);
        }
        violation.apply(&mut vmcs);
        let found = scene.diagnose(&vmcs);
        let as_expected = if violation.with_others {
            found.contains(&&*violation.check)
        } else {
            found == [&*violation.check]
        };
        if !as_expected {
            wrong.push((violation.check.clone(), found));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A VMCS with a few fields of a valid one changed, by small or wild values.
fn changed_vmcs() -> impl Strategy<Value = (usize, Guest, Vec<(Field, u64)>)> {
    let field = (0..Field::COUNT).prop_map(|index| Field::from_index(index).unwrap());
    let value = prop_oneof![
        any::<u64>(),
        0..16_u64,
        (0..64_u32).prop_map(|bit| 1 << bit),
        Just(u64::MAX),
        (0..8_u64).prop_map(|page| page << 12),
    ];
    let guest = proptest::sample::select(&Guest::ALL[..4]);
    (
        0..5_usize,
        guest,
        proptest::collection::vec((field, value), 0..6),
    )
}

fn build(profile: usize, guest: Guest, changes: &[(Field, u64)]) -> (Scene, Vmcs) {
    let scene = scene_of(VmxProfile::all().remove(profile));
    let mut vmcs = valid_vmcs(&scene.profile, guest);
    for &(field, value) in changes {
        vmcs.set(field, value);
    }
    (scene, vmcs)
}

proptest! {
    /// VM entry finds the first of what `diagnose` finds, also when it has cached what held.
    #[test]
    fn the_first_failure_is_the_first_of_all(
        (profile, guest, changes) in changed_vmcs(),
        later in proptest::collection::vec(changed_vmcs(), 1..4),
    ) {
        let (scene, mut vmcs) = build(profile, guest, &changes);
        for round in std::iter::once(Vec::new()).chain(later.into_iter().map(|(_, _, c)| c)) {
            for (field, value) in round {
                vmcs.set(field, value);
            }
            let expected = scene.diagnose(&vmcs).first().copied();
            for _ in 0..2 {
                let found = vmcs.first_failure(scene.environment()).map(|check| check.id);
                prop_assert_eq!(found, expected);
            }
        }
    }

    /// Back to valid: a group that failed is run again.
    #[test]
    fn a_mended_vmcs_passes((profile, guest, changes) in changed_vmcs()) {
        let (scene, mut vmcs) = build(profile, guest, &changes);
        let _ = vmcs.first_failure(scene.environment());
        let valid = valid_vmcs(&scene.profile, guest);
        for field in Field::ALL {
            vmcs.set(field, valid.get(field));
        }
        prop_assert_eq!(vmcs.first_failure(scene.environment()), None);
        prop_assert_eq!(vmcs.clean_groups().count(), 12);
    }

    /// A check reads no field that it does not declare.
    #[test]
    fn the_declared_inputs_decide((profile, guest, changes) in changed_vmcs()) {
        let (scene, vmcs) = build(profile, guest, &changes);
        let full = FullView::new(&vmcs, scene.environment());
        let failures = checks::diagnose(&full);
        for check in checks::all().filter(|check| check.beyond == Beyond::Nothing) {
            let inputs = check.inputs.iter().map(|&field| (field, vmcs.get(field)));
            let partial = PartialView::new(&scene.profile, inputs);
            let failure = failures.iter().find(|failure| failure.check == check);
            let expected = failure.map_or(Verdict::Pass, |failure| Verdict::Fail(failure.offence));
            prop_assert_eq!(checks::judge(check, &partial), expected, "{}", check.id);
        }
    }

    /// What is known of a part never contradicts the whole.
    #[test]
    fn a_verdict_on_a_part_holds_for_the_whole(
        (profile, guest, changes) in changed_vmcs(),
        known in proptest::collection::vec(any::<bool>(), Field::COUNT),
    ) {
        let (scene, vmcs) = build(profile, guest, &changes);
        let full = FullView::new(&vmcs, scene.environment());
        let fields = Field::ALL.into_iter().filter(|field| known[field.index()]);
        let partial =
            PartialView::new(&scene.profile, fields.map(|field| (field, vmcs.get(field))));
        let failures = checks::diagnose(&full);
        for check in checks::all() {
            let failure = failures.iter().find(|failure| failure.check == check);
            match checks::judge(check, &partial) {
                Verdict::Pass => prop_assert!(failure.is_none(), "{}", check.id),
                Verdict::Fail(_) => prop_assert!(failure.is_some(), "{}", check.id),
                Verdict::Unknown => {}
            }
        }
        prop_assert_eq!(full.get(Field::GUEST_RIP), Some(vmcs.get(Field::GUEST_RIP)));
    }
}
