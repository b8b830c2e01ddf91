//! Random bytes as guest code, in every mode, on the emulator: whatever they are, KVM_RUN returns, and
//! what it returns is an exit or an errno that a guest can cause.

use super::{Case, Target};
use crate::backend::emulated::EmulatedKernel;
use crate::backend::host::SystemBackend;
use crate::backend::{Backend, Errno, Outcome};
use crate::guest::{Machine, Mode};
use crate::probe::Probe;
use std::panic::{AssertUnwindSafe, catch_unwind};

const MODES: [Mode; 10] = [
    Mode::Real,
    Mode::Protected16,
    Mode::Protected32,
    Mode::User32,
    Mode::Paged32,
    Mode::PagedPse,
    Mode::PagedPae,
    Mode::Long,
    Mode::LongUser,
    Mode::Compatibility,
];

/// The bytes of code.
const LENGTH: usize = 64;
/// The runs of a case, and how long each may last.
const RUNS: u32 = 6;
const RUN_LIMIT_MS: u32 = 10;
/// The KVM_EXIT_* that a guest can cause: IO, DEBUG, HLT, MMIO, SHUTDOWN, FAIL_ENTRY, SET_TPR,
/// INTERNAL_ERROR.
const EXITS: [u64; 8] = [2, 4, 5, 6, 8, 9, 11, 17];

/// Executes random bytes.
pub struct Code {
    backend: SystemBackend<EmulatedKernel>,
    exits: std::collections::BTreeMap<u64, u64>,
    endless: u64,
}

impl Default for Code {
    fn default() -> Code {
        let backend = SystemBackend::new(EmulatedKernel);
        Code {
            backend,
            exits: std::collections::BTreeMap::new(),
            endless: 0,
        }
    }
}

/// Random bytes and registers (SplitMix64).
fn words(seed: u64) -> impl Iterator<Item = u64> {
    (0..).map(move |number| super::mix(seed, number))
}

impl Code {
    /// What each run of a case gave: the outcome, and the exit reason.
    fn execute(&mut self, mode: Mode, code: &[u8], seed: u64) -> Vec<(Outcome, u64)> {
        self.backend.reset();
        let mut ignore = |_: &crate::probe::Record| {};
        let mut probe = Probe::new(&mut self.backend, "code", &mut ignore);
        let machine = Machine::new(&mut probe, mode);
        machine.poke(&mut probe, crate::guest::layout::CODE, code);
        let mut random = words(!seed);
        let mut word = || random.next().unwrap_or(0);
        let small = [word() & 0xffff, word() & 0xf_ffff, word()];
        machine.set_registers(
            &mut probe,
            &[
                ("rax", small[2]),
                ("rbx", small[1]),
                ("rcx", small[0] & 0xff),
                ("rdx", small[0]),
                ("rsi", small[1]),
                ("rdi", small[0]),
            ],
        );
        let mut seen = Vec::new();
        for _ in 0..RUNS {
            let outcome = probe.run(machine.vcpu, RUN_LIMIT_MS);
            seen.push((outcome, probe.read_number(machine.run, 8, 4)));
            if outcome.is_err() {
                break;
            }
        }
        seen
    }
}

impl Target for Code {
    fn name(&self) -> &'static str {
        "code"
    }

    fn run(&mut self, case: Case) -> Result<(), String> {
        let mode = MODES[(case.number % MODES.len() as u64) as usize];
        let code: Vec<u8> = words(case.seed)
            .flat_map(u64::to_le_bytes)
            .take(LENGTH)
            .collect();
        let described = || format!("{mode:?} {}", crate::probe::hex(&code));
        let seen = catch_unwind(AssertUnwindSafe(|| self.execute(mode, &code, case.seed)));
        let seen = seen.map_err(|_| format!("panic: {}", described()))?;
        for (outcome, reason) in seen {
            match outcome {
                Ok(0) if EXITS.contains(&reason) => *self.exits.entry(reason).or_default() += 1,
                Err(Errno(libc::EINTR)) => self.endless += 1,
                _ => return Err(format!("{outcome:?}, exit {reason}: {}", described())),
            }
        }
        Ok(())
    }

    fn summary(&self) -> String {
        let exits: Vec<String> = self
            .exits
            .iter()
            .map(|(reason, count)| format!("{count} of reason {reason}"))
            .collect();
        format!(
            "exits: {}; {} endless runs ended by a signal",
            exits.join(", "),
            self.endless
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_bytes_do_no_harm() {
        let mut target = Code::default();
        for number in 0..200 {
            assert_eq!(
                target.run(Case {
                    number,
                    seed: super::super::mix(9, number)
                }),
                Ok(())
            );
        }
        assert!(
            target.exits.values().sum::<u64>() > 100,
            "{}",
            target.summary()
        );
    }
}
