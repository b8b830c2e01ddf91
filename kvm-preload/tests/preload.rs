//! Unmodified programs on the `kvm-ioctls` crate, and on system calls, work under the preload library.
//!
//! The programs are the examples; the library is built here, because Cargo does not build a
//! `cdylib` for the tests of its package.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The folder that holds this build's artefacts.
fn artefacts() -> PathBuf {
    let test = std::env::current_exe().expect("this test is a file");
    let folder = test
        .parent()
        .and_then(Path::parent)
        .expect("target/PROFILE/deps/test");
    folder.to_owned()
}

fn library() -> PathBuf {
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--package", "kvm-preload", "--lib"]);
    let folder = artefacts();
    let target = folder.parent().expect("target/PROFILE");
    build.arg("--target-dir").arg(target);
    if folder.ends_with("release") {
        build.arg("--release");
    }
    assert!(
        build.status().expect("cargo runs").success(),
        "the library does not build"
    );
    folder.join("libkvm_preload.so")
}

fn run_example(name: &str, library: &Path) -> Output {
    let example = artefacts().join("examples").join(name);
    assert!(example.exists(), "cargo builds examples for tests");
    Command::new(example)
        .env("LD_PRELOAD", library)
        .output()
        .expect("the example runs")
}

#[test]
fn a_vmm_on_kvm_ioctls_runs_guests_in_four_modes() {
    let output = run_example("modes", &library());
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let expected = "API version 12\nReal: 0x1234\nProtected: 0x1234\nPaged: 0x1234\nLong: 0x1234\n";
    assert_eq!(text, expected);
}

/// Runs an example that prints facts, and expects these, and that they hold.
fn expect_facts(example: &str, facts: &[&str]) {
    let output = run_example(example, &library());
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let expected: String = facts.iter().map(|fact| format!("{fact}: true\n")).collect();
    assert_eq!(text, expected);
}

#[test]
fn signal_handlers_run_between_the_calls_of_kvm_run() {
    let facts = [
        "own handler",
        "no gap",
        "EINTR",
        "handled",
        "all sent",
        "consistent",
        "reset",
    ];
    expect_facts("signals", &facts);
}

#[test]
fn a_signal_ends_every_endless_guest_soon() {
    let loops = [
        "jump",
        "self-modifying",
        "comparisons",
        "interrupts",
        "exits",
    ];
    expect_facts("endless", &loops);
}

#[test]
fn open_heeds_its_flags_and_success_leaves_errno_alone() {
    let facts = [
        "open",
        "ioctl",
        "others",
        "nonblock",
        "append",
        "creat",
        "excl",
        "directory",
        "tmpfile",
        "path",
        "no path",
        "another",
    ];
    expect_facts("opens", &facts);
}

#[test]
fn a_number_that_is_another_files_now_is_not_taken_for_a_vcpu() {
    let facts = [
        "both run",
        "close",
        "the copy runs",
        "dup2",
        "dup3",
        "the other runs",
        "close_range",
        "a new one runs",
        "the newer one runs",
    ];
    expect_facts("descriptors", &facts);
}

#[test]
fn descriptors_survive_exec_and_belong_to_the_program_that_made_them() {
    let facts = [
        "the system is everybody's",
        "the VM was another's",
        "so was the vCPU",
        "whatever is asked",
        "a new VM works",
    ];
    expect_facts("exec", &facts);
}
