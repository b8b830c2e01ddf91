//! The page `docs/kvm-api.md` and the fidelity table of the README are what the tables say.
//!
//! `UPDATE=1 cargo test -p conformance --test pages` writes both anew.
#![expect(clippy::unwrap_used, reason = "a failure is the test's failure")]

use conformance::cases;
use conformance::fuzz::isa::coverage;
use conformance::known::{self, Kind, KnownDifference};
use kvm_api::abi::{Descriptor, offered};
use kvm_api::caps::CAPABILITIES;
use kvm_api::uapi::{REQUESTS, request_name};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use vmx_model::controls::{CONTROLS, Scope};
use vmx_model::exit_reason::ExitReason;
use vmx_model::field::Field;
use vmx_model::msr_area::LOAD_RULES;
use vmx_model::precondition::Instruction;

const BEGIN: &str = "<!-- generated: fidelity -->\n";
const END: &str = "<!-- end -->\n";

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name)
}

/// Compares a file with what it should be, or makes it so.
fn hold(name: &str, wanted: &str) {
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(file(name), wanted).unwrap();
    }
    let written = std::fs::read_to_string(file(name)).unwrap_or_default();
    assert!(
        written == wanted,
        "{name} is stale: run this test with UPDATE=1"
    );
}

#[test]
fn the_page_of_the_kvm_api_is_what_its_tables_say() {
    hold("docs/kvm-api.md", &kvm_page());
}

#[test]
fn the_fidelity_table_of_the_readme_is_what_the_tables_say() {
    let readme = std::fs::read_to_string(file("README.md")).unwrap();
    let (head, rest) = readme.split_once(BEGIN).unwrap();
    let (_, tail) = rest.split_once(END).unwrap();
    hold(
        "README.md",
        &format!("{head}{BEGIN}{}{END}{tail}", fidelity()),
    );
}

fn all_offered() -> Vec<u32> {
    [Descriptor::System, Descriptor::Vm, Descriptor::Vcpu]
        .into_iter()
        .flat_map(offered)
        .collect()
}

/// A row of the fidelity table: what, how much, the page that lists it.
type FidelityRow = (&'static str, String, &'static str);

fn fidelity() -> String {
    let (executed, forms) = coverage::executed();
    let forms = (
        "instruction forms, up to x86-64-v4 and beside it",
        format!("{executed} of {forms}"),
        "isa-coverage.md",
    );
    let rows = [vec![forms], vmx_rows(), kvm_rows(), case_rows()].concat();
    let mut text = String::from("| what | how much | list |\n| --- | --- | --- |\n");
    for (what, how_much, page) in rows {
        writeln!(text, "| {what} | {how_much} | [{page}](docs/{page}) |").unwrap();
    }
    text
}

fn vmx_rows() -> Vec<FidelityRow> {
    let in_scope = |scope: Scope| scope == Scope::In;
    let reasons: Vec<ExitReason> = ExitReason::all().collect();
    let reasons_in = reasons.iter().filter(|r| r.scope().is_some_and(in_scope));
    let controls_in = CONTROLS.iter().filter(|control| in_scope(control.scope));
    let checks = vmx_model::checks::all().count();
    let steps: usize = Instruction::ALL.iter().map(|i| i.steps().len()).sum();
    let rows = [
        ("VMCS fields", Field::COUNT.to_string()),
        (
            "VMX controls",
            format!("{} of {}", controls_in.count(), CONTROLS.len()),
        ),
        (
            "rules of VM entry: checks of a VMCS, and of MSRs to load",
            format!("{checks} + {}", LOAD_RULES.len()),
        ),
        (
            "exit reasons",
            format!("{} of {}", reasons_in.count(), reasons.len()),
        ),
        (
            "ordered preconditions of VMX instructions",
            format!("{steps} of {} instructions", Instruction::ALL.len()),
        ),
    ];
    rows.map(|(what, how_much)| (what, how_much, "vmx-model.md"))
        .into()
}

fn kvm_rows() -> Vec<FidelityRow> {
    let mut ioctls = all_offered();
    ioctls.sort_unstable();
    ioctls.dedup();
    let caps = CAPABILITIES.iter().filter(|cap| cap.value != 0).count();
    let rows = [
        (
            "KVM ioctls",
            format!("{} of {}", ioctls.len(), REQUESTS.len()),
        ),
        (
            "KVM capabilities offered",
            format!("{caps} of {}", CAPABILITIES.len()),
        ),
    ];
    rows.map(|(what, how_much)| (what, how_much, "kvm-api.md"))
        .into()
}

fn case_rows() -> Vec<FidelityRow> {
    let units = cases::units();
    let guests = units.iter().filter(|unit| unit.is_guest()).count();
    let results: usize = units.iter().map(|unit| unit.results().len()).sum();
    let known = known::differences();
    let gaps: Vec<&KnownDifference> = known.iter().filter(|d| d.kind == Kind::OurGap).collect();
    let is_gap = |id: &str| {
        gaps.iter()
            .flat_map(|gap| &gap.cases)
            .any(|p| known::matches(p, id))
    };
    let all = units.iter().flat_map(|unit| unit.results());
    let gap_results = all.filter(|result| is_gap(&result.id)).count();
    let rows = [
        ("conformance results", format!("{results}; {guests} guests")),
        (
            "known gaps of the emulator among them",
            format!("{gap_results}, of {} causes", gaps.len()),
        ),
    ];
    rows.map(|(what, how_much)| (what, how_much, "kvm-api.md"))
        .into()
}

fn kvm_page() -> String {
    let mut page = String::from(
        "# What kvm-api answers\n\n\
         Generated from the tables by `conformance/tests/pages.rs`; a test fails when page and\n\
         tables differ. Names are those of Linux's `include/uapi/linux/kvm.h`; each has its section\n\
         in `api.rst`.\n\n",
    );
    ioctls_part(&mut page);
    capabilities_part(&mut page);
    cases_part(&mut page);
    differences_part(&mut page);
    page
}

fn ioctls_part(page: &mut String) {
    writeln!(page, "## Ioctls\n").unwrap();
    for (title, descriptor) in [
        ("system", Descriptor::System),
        ("VM", Descriptor::Vm),
        ("vCPU", Descriptor::Vcpu),
    ] {
        let names: Vec<&str> = offered(descriptor)
            .into_iter()
            .filter_map(request_name)
            .collect();
        writeln!(page, "{title} ({}): {}.\n", names.len(), names.join(", ")).unwrap();
    }
    let here = all_offered();
    let missing: Vec<&str> = REQUESTS
        .iter()
        .filter(|(_, request)| !here.contains(request))
        .map(|(name, _)| *name)
        .collect();
    writeln!(
        page,
        "Not offered ({}); the errno is that of a kernel without it: {}.\n",
        missing.len(),
        missing.join(", ")
    )
    .unwrap();
}

fn capabilities_part(page: &mut String) {
    writeln!(page, "## Capabilities\n\n| number | name | value |").unwrap();
    writeln!(page, "| --- | --- | --- |").unwrap();
    for cap in CAPABILITIES {
        let value = match cap.value {
            0 => "not offered".to_owned(),
            value => value.to_string(),
        };
        writeln!(page, "| {} | {} | {value} |", cap.number, cap.name).unwrap();
    }
}

fn cases_part(page: &mut String) {
    writeln!(page, "\n## Conformance cases\n\n| group | results |").unwrap();
    writeln!(page, "| --- | --- |").unwrap();
    let mut groups = BTreeMap::<String, usize>::new();
    for record in cases::units().iter().flat_map(cases::Unit::results) {
        let group = record.id.split('.').next().unwrap_or_default();
        *groups.entry(group.to_owned()).or_default() += 1;
    }
    for (group, results) in groups {
        writeln!(page, "| {group} | {results} |").unwrap();
    }
}

fn differences_part(page: &mut String) {
    writeln!(page, "\n## Known differences\n").unwrap();
    writeln!(page, "| whose | kind | why | cases |").unwrap();
    writeln!(page, "| --- | --- | --- | --- |").unwrap();
    for entry in known::differences() {
        let cases = entry.cases.join(", ").replace('*', "\\*");
        let (kvm, kind, reason) = (&entry.kvm, entry.kind, &entry.reason);
        writeln!(page, "| {kvm} | {kind} | {reason} | {cases} |").unwrap();
    }
}
