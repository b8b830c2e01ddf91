//! The behaviour rules of VMX, by the specification's names: which tests hold each of them.

use std::path::Path;

use serde::Deserialize;

#[derive(Deserialize)]
struct Behaviour {
    id: String,
    area: String,
    tests: Vec<String>,
}

#[derive(Deserialize)]
struct Behaviours {
    behaviour: Vec<Behaviour>,
}

fn behaviours() -> Vec<Behaviour> {
    let table = include_str!("../data/behaviours.toml");
    let table: Behaviours = toml::from_str(table).expect("the table");
    table.behaviour
}

/// Whether `path` has a function of this name, `test` being `path: name`.
fn exists(test: &str) -> bool {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let (path, name) = test.split_once(": ").expect("a path and a name");
    let source = std::fs::read_to_string(root.join(path)).expect("a source file");
    source.contains(&format!("fn {name}("))
}

#[test]
fn every_behaviour_names_tests_that_exist() {
    let behaviours = behaviours();
    assert_eq!(behaviours.len(), 155);
    let missing: Vec<&String> = behaviours
        .iter()
        .flat_map(|b| &b.tests)
        .filter(|test| !exists(test))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
    assert!(behaviours.iter().all(|b| !b.area.is_empty()));
}

#[test]
fn every_behaviour_has_a_test() {
    let behaviours = behaviours();
    let untested: Vec<&str> = behaviours
        .iter()
        .filter(|b| b.tests.is_empty())
        .map(|b| &*b.id)
        .collect();
    assert!(untested.is_empty(), "{untested:?}");
}
