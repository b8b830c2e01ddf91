//! Differential test: user-mode integer instructions, executed by the host CPU and by
//! [`x86_interp::Cpu`] from the same state, must leave the same registers, flags and memory, or
//! raise the same exception.
//!
//! The host is an x86-64 Linux machine of any vendor; what differs between vendors, and what the
//! SDM leaves undefined, is listed in `differences`. `HOST_CPU_CASES` sets the number of cases for
//! each instruction form, `HOST_CPU_SEED` the seed.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

mod differences;
mod emulated;
mod forms;
mod generate;
mod native;

use std::collections::BTreeMap;
use std::sync::Mutex;

use crate::emulated::Emulated;
use crate::generate::{Case, Generator};
use crate::native::Native;

/// Cases for each form unless `HOST_CPU_CASES` says otherwise.
const CASES: u64 = 60;

/// Code bits of a run: 64-bit code, or 32-bit code in compatibility mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bits {
    /// 64-bit mode.
    B64,
    /// Compatibility mode with 32-bit segments.
    B32,
}

/// Native execution uses signals of the process: one test at a time.
static ONE: Mutex<()> = Mutex::new(());

#[test]
fn sixty_four_bit_forms_agree_with_the_host_cpu() {
    run(Bits::B64);
}

#[test]
fn compatibility_mode_forms_agree_with_the_host_cpu() {
    run(Bits::B32);
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn run(bits: Bits) {
    let _one = ONE.lock().unwrap_or_else(|e| e.into_inner());
    let cases = number("HOST_CPU_CASES").unwrap_or(CASES);
    let seed = number("HOST_CPU_SEED").unwrap_or(1);
    let mut native = Native::new(bits);
    let mut emulated = Emulated::new(bits, native.selectors());
    let forms = forms::all(bits);
    let mut failures: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut executed = 0u64;
    for (n, &code) in forms.iter().enumerate() {
        let mut generator = Generator::new(seed.wrapping_mul(0x1_0000_0001) + n as u64, bits);
        for _ in 0..cases {
            let Some(case) = generator.case(code) else {
                continue;
            };
            executed += 1;
            if let Some(difference) = compare(&case, &mut native, &mut emulated) {
                let list = failures.entry(format!("{code:?}")).or_default();
                list.push(difference);
            }
        }
    }
    println!("{bits:?}: {} forms, {executed} cases", forms.len());
    for (code, list) in &failures {
        println!(
            "{code}: {} differences, the first:\n{}",
            list.len(),
            list[0]
        );
    }
    assert!(
        executed > cases * forms.len() as u64 / 2,
        "too few cases could be made"
    );
    assert!(failures.is_empty(), "{} forms differ", failures.len());
}

/// Runs one case on both; says what differs.
fn compare(case: &Case, native: &mut Native, emulated: &mut Emulated) -> Option<String> {
    native.prepare(case);
    emulated.prepare(case);
    let inherited = native.flags();
    let host = native.run(case);
    let mut ours = emulated.run(case, inherited);
    if differences::is_incomparable(case, &host) {
        emulated.copy_memory_from(native);
        return None;
    }
    if differences::is_other_comparand(case, &host, &ours) {
        ours.exception = host.exception;
    }
    let mask = differences::compared_flags(case, &host);
    let mut what = host.difference(&ours, mask);
    if what.is_none() && !native.memory_equals(emulated) {
        what = Some("memory".to_owned());
    }
    emulated.copy_memory_from(native);
    what.map(|w| format!("  {case}\n  {w}\n  host {host:x?}\n  ours {ours:x?}"))
}
