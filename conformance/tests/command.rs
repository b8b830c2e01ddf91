//! The `conformance` command as a user runs it.

use std::process::{Command, Output};

fn conformance(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_conformance"))
        .args(arguments)
        .output()
        .expect("the command starts")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// `NAME: N passed, N failed, N skipped`.
fn is_tally(line: &str, name: &str) -> bool {
    let Some(rest) = line
        .strip_prefix(name)
        .and_then(|rest| rest.strip_prefix(": "))
    else {
        return false;
    };
    let words: Vec<&str> = rest.split(", ").collect();
    let is_count = |word: &str, of: &str| {
        word.strip_suffix(of)
            .is_some_and(|n| n.trim_end().parse::<usize>().is_ok())
    };
    words.len() == 3
        && is_count(words[0], "passed")
        && is_count(words[1], "failed")
        && is_count(words[2], "skipped")
}

#[test]
fn every_case_holds_on_the_emulator_and_no_entry_is_stale() {
    let output = conformance(&["run", "--backend", "emulated"]);
    let text = stdout(&output);
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(!text.contains("stale entry"), "{text}");
    assert!(text.contains(" 0 failed, 0 skipped"), "{text}");
}

#[test]
fn the_recording_agrees_with_the_cases_and_the_known_differences() {
    let output = conformance(&["run", "--backend", "recorded"]);
    assert!(output.status.success(), "{}", stdout(&output));
}

#[test]
fn the_closing_lines_are_one_for_each_backend_and_the_differences() {
    let output = conformance(&["run", "arithmetic.add", "--backend", "all"]);
    let text = stdout(&output);
    let lines: Vec<&str> = text.lines().rev().take(4).collect();
    assert!(is_tally(lines[3], "emulated"), "{text}");
    assert!(is_tally(lines[2], "host"), "{text}");
    assert!(is_tally(lines[1], "recorded"), "{text}");
    assert!(lines[0].starts_with("differs: "), "{text}");
}

#[test]
fn reports_are_written() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = |name: &str| directory.path().join(name).to_string_lossy().into_owned();
    let (json, junit, html) = (path("r.json"), path("r.xml"), path("r.html"));
    let output = conformance(&[
        "run",
        "arithmetic.add8",
        "--backend",
        "emulated",
        "--json",
        &json,
        "--junit",
        &junit,
        "--html",
        &html,
    ]);
    assert!(output.status.success(), "{}", stdout(&output));
    let read = |path: &str| std::fs::read_to_string(path).expect("the report is there");
    let value: serde_json::Value = serde_json::from_str(&read(&json)).expect("JSON");
    assert_eq!(value["cases"][0]["id"], "arithmetic.add8_overflow");
    assert_eq!(value["cases"][0]["seen"]["emulated"]["verdict"], "pass");
    assert!(read(&junit).contains("<testsuite name=\"emulated\" tests=\"2\" failures=\"0\""));
    assert!(read(&html).contains("arithmetic.add8_carry"));
}

#[test]
fn an_unknown_backend_is_refused() {
    assert_eq!(
        conformance(&["run", "--backend", "elsewhere"])
            .status
            .code(),
        Some(2)
    );
}

#[test]
fn the_list_names_the_cases() {
    let output = conformance(&["list", "system.api_version"]);
    assert!(stdout(&output).starts_with("system.api_version\t12\n"));
}
