//! The page `docs/vmx-model.md` is what the tables of this crate say.
//!
//! `UPDATE=1 cargo test -p vmx-model --test coverage_page` writes it anew.
#![expect(clippy::unwrap_used, reason = "a failure is the test's failure")]

mod scene;
mod violations;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use scene::Scene;
use violations::Violation;
use vmx_model::capability::{VmxCapabilities, VmxProfile};
use vmx_model::checks::{self, Beyond, Consequence, Group};
use vmx_model::controls::{CONTROLS, Control, ControlWord, Scope};
use vmx_model::error;
use vmx_model::exit_reason::{ExitKind, ExitReason};
use vmx_model::field::{Condition, Field, Kind, Width};
use vmx_model::msr_area::LOAD_RULES;
use vmx_model::precondition::Instruction;
use vmx_model::sanitizer::Item;

#[test]
fn the_page_is_what_the_tables_say() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/vmx-model.md");
    let page = page();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &page).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == page,
        "docs/vmx-model.md is stale: run this test with UPDATE=1"
    );
}

fn page() -> String {
    let mut page = String::from(
        "# What vmx-model covers\n\n\
         Generated from the crate's tables by `vmx-model/tests/coverage_page.rs`; a test fails when\n\
         page and tables differ. Sections are titles of the Intel SDM, Vol. 3C.\n\n\
         Scope: *in* is modelled; *stub* is named, and no profile allows it; *out* is left out (SMM\n\
         dual-monitor treatment, SMX, SEAM).\n\n",
    );
    let profiles = VmxProfile::all();
    let shown = shown_alone();
    shown_part(&mut page, &shown);
    checks_part(&mut page, &shown);
    exit_reasons_part(&mut page);
    errors_part(&mut page);
    controls_part(&mut page, &profiles);
    fields_part(&mut page, &profiles);
    page
}

fn line(page: &mut String, cells: &[&str]) {
    writeln!(page, "| {} |", cells.join(" | ")).unwrap();
}

fn heading(page: &mut String, cells: &[&str]) {
    line(page, cells);
    line(page, &vec!["---"; cells.len()]);
}

/// The lists of the specification, to count by.
mod spec {
    pub(super) const CHECKS: &str = include_str!("data/vm-entry-checks.toml");
    pub(super) const STEPS: &str = include_str!("data/instruction-steps.toml");
    pub(super) const EXIT_REASONS: &str = include_str!("data/exit-reasons.toml");
    pub(super) const STATE_MACHINE: &str = include_str!("data/state-machine.toml");
    pub(super) const BEHAVIOURS: &str = include_str!("../../x86-interp/tests/data/behaviours.toml");

    /// Counts the rules of VM entry in scope whose id is wanted.
    pub(super) fn checks_in_scope(is_wanted: impl Fn(&str) -> bool) -> usize {
        let in_scope = CHECKS
            .split("[[check]]")
            .filter(|c| c.contains("scope = \"in\""));
        let ids = in_scope.filter_map(|check| check.split('"').nth(1));
        ids.filter(|id| is_wanted(id)).count()
    }
}

/// The profiles over which the tests enumerate the tables.
fn enumerated() -> [VmxProfile; 3] {
    [
        VmxProfile::emulator_default(),
        VmxProfile::everything(),
        VmxProfile::minimal(),
    ]
}

/// Whether a VMCS that is valid on `profile` breaks the check of `violation` and no other.
fn fails_alone(violation: &Violation, profile: Option<VmxProfile>) -> bool {
    let (guest, _) = violation.guest();
    if profile
        .as_ref()
        .is_some_and(|profile| !guest.is_possible(profile))
    {
        return false;
    }
    let setting = match profile {
        Some(profile) => violations::base_on(violation, profile),
        None => violations::base(violation),
    };
    let mut vmcs = setting.vmcs;
    let scene = Scene::of(setting.profile, setting.state);
    // Without the environment that breaks it, the VMCS is valid.
    let is_valid = violation.environment.is_some() || scene.diagnose(&vmcs).is_empty();
    violation.apply(&mut vmcs);
    is_valid && scene.diagnose(&vmcs) == [&*violation.check]
}

/// Returns for each check where a VMCS breaks it and no other.
fn shown_alone() -> BTreeMap<String, Vec<String>> {
    let mut shown = BTreeMap::new();
    for violation in violations::violations() {
        let (_, is_own) = violation.guest();
        let mut places: Vec<String> = Vec::new();
        if is_own {
            let name = match violations::base(&violation).profile.name {
                "changed" => "everything, changed",
                name => name,
            };
            places.extend(fails_alone(&violation, None).then(|| name.to_owned()));
        } else {
            let profiles = enumerated().into_iter();
            let failing = profiles.filter(|p| fails_alone(&violation, Some(p.clone())));
            places.extend(failing.map(|profile| profile.name.to_owned()));
        }
        let is_possible = !violation.with_others;
        assert_eq!(is_possible, !places.is_empty(), "{}", violation.check);
        shown.insert(violation.check, places);
    }
    shown
}

fn shown_part(page: &mut String, shown: &BTreeMap<String, Vec<String>>) {
    let checks = checks::all().count();
    let anywhere = shown.values().filter(|places| !places.is_empty()).count();
    let never: Vec<&str> = shown
        .iter()
        .filter(|(_, places)| places.is_empty())
        .map(|(check, _)| &**check)
        .collect();
    let steps: usize = Instruction::ALL.iter().map(|i| i.steps().len()).sum();
    let in_scope = ExitReason::all().filter(|reason| reason.scope() == Some(Scope::In));
    let reasons = in_scope.count();
    let behaviours = spec::BEHAVIOURS.matches("[[behaviour]]").count();
    let untested = spec::BEHAVIOURS.matches("tests = []").count();
    writeln!(page, "## What the tests show\n").unwrap();
    heading(page, &["what", "shown", "by"]);
    let mut row = |what: &str, count: usize, of: usize, by: &str| {
        line(page, &[what, &format!("{count} of {of}"), by]);
    };
    row(
        "rules of VM entry in scope, each broken and kept by a VMCS, through the model and by a \
         guest's VMLAUNCH",
        spec::checks_in_scope(|id| shown.contains_key(id) || is_load_rule(id)),
        spec::checks_in_scope(|_| true),
        "`vmx-model/tests/checks.rs`, `vmx-model/src/msr_area/tests.rs`, \
         `x86-interp/tests/vmx/entry_checks.rs`",
    );
    row(
        "checks of a VMCS, with those beyond the scope and without those of MSR-load areas",
        shown.len(),
        checks,
        "the same",
    );
    row(
        "of these, the only one that the VMCS violates",
        anywhere,
        checks,
        "this page",
    );
    for profile in enumerated() {
        let here = |places: &&Vec<String>| places.iter().any(|name| name == profile.name);
        let count = shown.values().filter(here).count();
        let what = format!("so on the profile `{}`", profile.name);
        row(&what, count, checks, "this page");
    }
    row(
        "steps of VMX instructions, each precondition in its order",
        steps,
        spec::STEPS.matches("[[step]]").count(),
        "`vmx-model/tests/preconditions.rs`",
    );
    row(
        "exit reasons in scope, caused by a guest",
        reasons,
        spec::EXIT_REASONS.matches("scope = \"in\"").count(),
        "`x86-interp/tests/vmx/exit_reasons.rs`",
    );
    row(
        "rules of behaviour in scope, each held by tests that are named",
        behaviours - untested,
        behaviours,
        "`x86-interp/tests/vmx/behaviours.rs`",
    );
    row(
        "items of the sanitizer, each reported once and silent on a clean trace",
        Item::ALL.len(),
        spec::STATE_MACHINE.matches("[[sanitizer]]").count(),
        "`vmx-model/tests/sanitizer.rs`",
    );
    writeln!(
        page,
        "\nNo VMCS violates these alone, as what they forbid breaks another check as well: {}.\n",
        never.join(", ")
    )
    .unwrap();
}

fn checks_part(page: &mut String, shown: &BTreeMap<String, Vec<String>>) {
    let rows = checks::all().count();
    writeln!(page, "## Checks of VM entry\n").unwrap();
    writeln!(
        page,
        "{rows} checks in the SDM's order, and {} rules for loading MSRs.\n",
        LOAD_RULES.len()
    )
    .unwrap();
    for group in Group::ALL {
        let end = match group.consequence() {
            Consequence::InvalidControls => "VMfailValid(7)",
            Consequence::InvalidHostState => "VMfailValid(8)",
            Consequence::InvalidGuestState => "VM exit 33",
        };
        let count = group.checks().len();
        writeln!(page, "### {} ({count}; {end})\n", group.section()).unwrap();
        heading(page, &["check", "rule", "looks at", "fails alone on"]);
        for check in group.checks() {
            let beyond = match check.beyond {
                Beyond::Nothing => "fields",
                Beyond::Processor => "fields, processor",
                Beyond::Memory => "fields, memory",
            };
            let mut rule = check.sentence.to_owned();
            if check.qualification != 0 {
                write!(rule, " Qualification {}.", check.qualification).unwrap();
            }
            let places = shown[check.id].join(", ");
            line(page, &[check.id, &rule, beyond, &places]);
        }
        page.push('\n');
    }
    writeln!(
        page,
        "### Loading MSRs ({}; VM exit 34)\n",
        LOAD_RULES.len()
    )
    .unwrap();
    heading(
        page,
        &["rule", "of each entry of the VM-entry MSR-load area"],
    );
    for rule in LOAD_RULES {
        line(page, &[rule.id, rule.sentence]);
    }
    page.push('\n');
}

fn is_load_rule(id: &str) -> bool {
    LOAD_RULES.iter().any(|rule| rule.id == id)
}

fn scope(scope: Scope) -> &'static str {
    match scope {
        Scope::In => "in",
        Scope::Stub => "stub",
        Scope::Out => "out",
    }
}

fn exit_reasons_part(page: &mut String) {
    writeln!(page, "## Basic exit reasons\n").unwrap();
    heading(page, &["number", "reason", "name", "kind", "scope"]);
    for reason in ExitReason::all() {
        let kind = match reason.kind().unwrap() {
            ExitKind::Instruction => "instruction",
            ExitKind::Fault => "fault",
            ExitKind::Trap => "trap",
            ExitKind::Event => "event",
            ExitKind::EntryFailure => "entry failure",
        };
        let number = reason.0.to_string();
        let scope = scope(reason.scope().unwrap());
        line(
            page,
            &[
                &number,
                reason.id().unwrap(),
                reason.name().unwrap(),
                kind,
                scope,
            ],
        );
    }
    page.push('\n');
}

fn errors_part(page: &mut String) {
    writeln!(page, "## VM-instruction errors\n").unwrap();
    heading(page, &["number", "error", "meaning", "scope"]);
    for number in error::all() {
        let scope = scope(error::scope(number).unwrap());
        let (id, meaning) = (error::id(number).unwrap(), error::meaning(number).unwrap());
        line(page, &[&number.to_string(), id, meaning, scope]);
    }
    page.push('\n');
}

fn may1(caps: &VmxCapabilities, word: ControlWord) -> u64 {
    match word {
        ControlWord::Pin => caps.pin_may1().bits().into(),
        ControlWord::Proc => caps.proc_may1().bits().into(),
        ControlWord::Secondary => caps.secondary_may1().bits().into(),
        ControlWord::Tertiary => caps.tertiary_may1().bits(),
        ControlWord::Exit => caps.exit_may1().bits().into(),
        ControlWord::Entry => caps.entry_may1().bits().into(),
        ControlWord::SecondaryExit => caps.secondary_exit_may1().bits(),
        ControlWord::VmFunction => caps.vm_function_may1().bits(),
    }
}

/// Returns a column per profile: whether it has something.
fn columns(profiles: &[VmxProfile], has: impl Fn(&VmxProfile) -> bool) -> Vec<&'static str> {
    profiles
        .iter()
        .map(|profile| if has(profile) { "yes" } else { "" })
        .collect()
}

fn controls_part(page: &mut String, profiles: &[VmxProfile]) {
    writeln!(
        page,
        "## Controls\n\nA profile's column says whether the control may be 1.\n"
    )
    .unwrap();
    let names: Vec<&str> = profiles.iter().map(|profile| profile.name).collect();
    heading(
        page,
        &[&["control", "name", "bit", "scope"], &names[..]].concat(),
    );
    for control in CONTROLS {
        let &Control {
            id,
            name,
            word,
            bit,
            ..
        } = control;
        let allowed = columns(profiles, |profile| {
            may1(&profile.caps, word) & 1 << bit != 0
        });
        let bit = bit.to_string();
        line(
            page,
            &[&[id, name, &bit, scope(control.scope)], &allowed[..]].concat(),
        );
    }
    page.push('\n');
}

/// Returns a condition in words.
fn condition(condition: &Condition) -> String {
    let (word, bits) = match *condition {
        Condition::Always => return "always".into(),
        Condition::Seam => return "SEAM".into(),
        Condition::Cr3Targets(n) => return format!("{n} CR3-target values"),
        Condition::Pin(c) => (ControlWord::Pin, u64::from(c.bits())),
        Condition::Proc(c) => (ControlWord::Proc, u64::from(c.bits())),
        Condition::Secondary(c) => (ControlWord::Secondary, u64::from(c.bits())),
        Condition::Tertiary(c) => (ControlWord::Tertiary, c.bits()),
        Condition::Exit(c) => (ControlWord::Exit, u64::from(c.bits())),
        Condition::Entry(c) => (ControlWord::Entry, u64::from(c.bits())),
        Condition::SecondaryExit(c) => (ControlWord::SecondaryExit, c.bits()),
        Condition::VmFunction(c) => (ControlWord::VmFunction, c.bits()),
    };
    let named = |control: &&Control| control.word == word && 1 << control.bit == bits;
    CONTROLS.iter().find(named).unwrap().id.into()
}

fn fields_part(page: &mut String, profiles: &[VmxProfile]) {
    let high = Field::ALL
        .iter()
        .filter(|field| field.width() == Width::W64)
        .count();
    writeln!(
        page,
        "## VMCS fields\n\n{} fields, {} encodings: a 64-bit field has one more, for its high half.\n\
         A profile's column says whether the field exists.\n",
        Field::COUNT,
        Field::COUNT + high,
    )
    .unwrap();
    let names: Vec<&str> = profiles.iter().map(|profile| profile.name).collect();
    heading(
        page,
        &[
            &["encoding", "field", "width", "kind", "exists if"],
            &names[..],
        ]
        .concat(),
    );
    for field in Field::ALL {
        let encoding = format!("{:#06x}", field.encoding());
        let width = match field.width() {
            Width::W16 => "16",
            Width::W32 => "32",
            Width::W64 => "64",
            Width::Natural => "natural",
        };
        let kind = match field.kind() {
            Kind::Control => "control",
            Kind::ReadOnly => "read-only",
            Kind::Guest => "guest",
            Kind::Host => "host",
        };
        let conditions: Vec<String> = field.exists_if().iter().map(condition).collect();
        let conditions = conditions.join(" or ");
        let exists = columns(profiles, |profile| profile.fields.contains(field));
        let cells = [&encoding, field.name(), width, kind, &conditions];
        line(page, &[&cells, &exists[..]].concat());
    }
}
