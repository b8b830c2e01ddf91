//! Every vendor-independent observation of a real /dev/kvm has its case, or a reason why not.

use conformance::cases::{Unit, units};
use conformance::known::matches;
use serde::Deserialize;
use std::collections::BTreeSet;

#[derive(Deserialize)]
struct Observed {
    ids: Vec<String>,
    without: Vec<Without>,
}

#[derive(Deserialize)]
struct Without {
    needs: String,
    ids: Vec<String>,
}

fn observed() -> Observed {
    toml::from_str(include_str!("data/observed.toml")).expect("the table is well-formed")
}

fn cases() -> BTreeSet<String> {
    units()
        .iter()
        .flat_map(Unit::results)
        .map(|record| record.id)
        .collect()
}

#[test]
fn every_observation_has_its_case_or_a_reason() {
    let (observed, cases) = (observed(), cases());
    let has_reason = |id: &str| {
        observed
            .without
            .iter()
            .flat_map(|w| &w.ids)
            .any(|pattern| matches(pattern, id))
    };
    let lost: Vec<&String> = observed
        .ids
        .iter()
        .filter(|id| !cases.contains(*id) && !has_reason(id))
        .collect();
    assert!(lost.is_empty(), "{lost:#?}");
}

#[test]
fn no_reason_is_given_for_an_observation_that_has_its_case() {
    let (observed, cases) = (observed(), cases());
    for without in &observed.without {
        for pattern in &without.ids {
            let of: Vec<&String> = observed
                .ids
                .iter()
                .filter(|id| matches(pattern, id))
                .collect();
            assert!(
                !of.is_empty(),
                "{pattern} ({}) is no observation",
                without.needs
            );
            let with: Vec<_> = of.iter().filter(|id| cases.contains(**id)).collect();
            assert!(
                with.is_empty(),
                "{pattern} ({}) has cases: {with:?}",
                without.needs
            );
        }
    }
}

#[test]
fn most_observations_have_their_case() {
    let (observed, cases) = (observed(), cases());
    let with = observed.ids.iter().filter(|id| cases.contains(*id)).count();
    assert!(
        observed.ids.len() == 704 && with >= 450,
        "{with} of {}",
        observed.ids.len()
    );
}
