//! The page `docs/vmx-model.md` is what the tables of this crate say.
//!
//! `UPDATE=1 cargo test -p vmx-model --test coverage_page` writes it anew.
#![expect(clippy::unwrap_used, reason = "a failure is the test's failure")]

use std::fmt::Write;
use std::path::Path;

use vmx_model::capability::{VmxCapabilities, VmxProfile};
use vmx_model::checks::{self, Beyond, Consequence, Group};
use vmx_model::controls::{CONTROLS, Control, ControlWord, Scope};
use vmx_model::error;
use vmx_model::exit_reason::{ExitKind, ExitReason};
use vmx_model::field::{Condition, Field, Kind, Width};

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
    checks_part(&mut page);
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

fn checks_part(page: &mut String) {
    let rows = checks::all().count();
    writeln!(page, "## Checks of VM entry\n").unwrap();
    writeln!(
        page,
        "{rows} checks in the SDM's order, and the 8 rules for loading MSRs in `msr_area`.\n"
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
        heading(page, &["check", "rule", "looks at"]);
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
            line(page, &[check.id, &rule, beyond]);
        }
        page.push('\n');
    }
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
