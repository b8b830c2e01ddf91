//! Near-valid VMCSs through VM entry: VMLAUNCH against the whole table of checks.
//!
//! Each case launches a near-valid VMCS and one of random values, on one profile after the other,
//! and holds that the first failure of the fast checks is the first of all failures, that it still
//! is when the fast checks remember what held before, and that VMLAUNCH ends as that check says.

use super::{Case, Target};
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use vmx_model::arch::ArchState;
use vmx_model::capability::VmxProfile;
use vmx_model::checks::{Check, Consequence};
use vmx_model::exit_reason::ExitReason;
use vmx_model::msr_area::MsrAccess;
use vmx_model::outcome::VmxOutcome;
use vmx_model::processor::{EntryOutcome, LogicalProcessor, Registers};
use vmx_model::registry::{CpuId, VmcsRegistry};
use vmx_model::sample::near_valid::{CURRENT_VMCS, Surroundings, VMXON_POINTER, generate, uniform};
use vmx_model::sample::valid_vmcs;
use vmx_model::vmcs::Vmcs;

/// How many checks a near-valid VMCS has broken, at most.
const MOST_BROKEN: u64 = 3;
/// A failed VM entry is such an exit reason.
const ENTRY_FAILURE: u32 = 1 << 31;

/// See the module.
#[derive(Debug)]
pub struct Entry {
    surroundings: Vec<Surroundings>,
    cases: u64,
    near_valid: Reached,
    uniform: Reached,
}

/// What VM entries came to.
#[derive(Debug, Default)]
struct Reached {
    outcomes: BTreeSet<String>,
    entered: u64,
}

impl Reached {
    fn note(&mut self, outcome: String) {
        self.entered += u64::from(outcome.starts_with("entered"));
        self.outcomes.insert(outcome);
    }
}

impl Default for Entry {
    fn default() -> Self {
        let profiles = VmxProfile::all().into_iter();
        Self {
            surroundings: profiles.map(Surroundings::new).collect(),
            cases: 0,
            near_valid: Reached::default(),
            uniform: Reached::default(),
        }
    }
}

impl Target for Entry {
    fn name(&self) -> &'static str {
        "entry"
    }

    fn run(&mut self, case: Case) -> Result<(), String> {
        let turn = case.number % self.surroundings.len() as u64;
        let around = &self.surroundings[turn as usize];
        let run = catch_unwind(AssertUnwindSafe(|| {
            Ok::<_, String>((enter_near_valid(around, case.seed)?, {
                let vmcs = uniform(case.seed);
                enter(around, vmcs.clone(), vmcs)?
            }))
        }));
        let run = run.unwrap_or_else(|_| Err("panicked".to_owned()));
        let (near, random) =
            run.map_err(|what| format!("profile {}: {what}", around.profile.name))?;
        self.near_valid.note(near);
        self.uniform.note(random);
        self.cases += 1;
        Ok(())
    }

    fn summary(&self) -> String {
        format!(
            "{} near-valid VMCSs and as many of random values: the fast checks, all checks and \
             VMLAUNCH agree; near-valid: {} distinct outcomes, {} entered; random: {} distinct \
             outcomes, {} entered",
            self.cases,
            self.near_valid.outcomes.len(),
            self.near_valid.entered,
            self.uniform.outcomes.len(),
            self.uniform.entered
        )
    }
}

fn enter_near_valid(around: &Surroundings, seed: u64) -> Result<String, String> {
    let near = generate(around, seed, (seed >> 32 & MOST_BROKEN) as usize);
    let fresh = near.vmcs(&around.profile);
    // The sample's checks held; then the changes are written.
    let mut warm = valid_vmcs(&around.profile, near.guest);
    if let Some(check) = warm.first_failure(around.environment()) {
        return Err(format!("the sample {:?} breaks {check:?}", near.guest));
    }
    for (field, value) in &near.changes {
        warm.set(*field, *value);
    }
    enter(around, fresh, warm).map_err(|what| format!("{what}\n{near:#x?}"))
}

/// Enters with a VMCS; `warm` has the same fields and remembers checks that held.
fn enter(around: &Surroundings, mut fresh: Vmcs, mut warm: Vmcs) -> Result<String, String> {
    let all = around.diagnose(&fresh);
    let first = all.first().map(|failure| failure.check);
    for (which, vmcs) in [("fast", &mut fresh), ("incremental", &mut warm)] {
        let found = vmcs.first_failure(around.environment());
        if found != first {
            return Err(format!(
                "{which} checks find {found:?}, all checks {first:?}"
            ));
        }
    }
    let outcome = launch(around, warm);
    if is_outcome_of(&outcome, first) {
        Ok(name_of(&outcome, first))
    } else {
        Err(format!(
            "VMLAUNCH ended with {outcome:?}, all checks {first:?}"
        ))
    }
}

fn launch(around: &Surroundings, vmcs: Vmcs) -> EntryOutcome {
    let profile = Arc::new(around.profile.clone());
    let mut memory = around.memory.clone();
    let mut processor = LogicalProcessor::new(CpuId(0), profile, VmcsRegistry::new());
    for executed in [
        processor.vmxon(VMXON_POINTER, &memory),
        processor.vmclear(CURRENT_VMCS, &mut memory),
        processor.vmptrld(CURRENT_VMCS, &memory),
    ] {
        assert_eq!(executed, Ok(VmxOutcome::Succeed), "the regions are valid");
    }
    *processor.current_vmcs_mut().expect("VMPTRLD succeeded") = vmcs;
    let mut registers = PlainRegisters(around.state.clone());
    processor
        .vmlaunch(&mut memory, &mut registers)
        .expect("the processor is in VMX root operation")
}

/// Whether VM entry may end like this if that is the first check that does not hold. If all hold,
/// the MSR-load area still may be at fault.
fn is_outcome_of(outcome: &EntryOutcome, first: Option<&Check>) -> bool {
    let reason = |reason: ExitReason| ENTRY_FAILURE | u32::from(reason.0);
    let Some(check) = first else {
        return match outcome {
            EntryOutcome::Entered(_) | EntryOutcome::Aborted(_) => true,
            EntryOutcome::Failed(failed) => {
                failed.reason == reason(ExitReason::ENTRY_FAIL_MSR_LOADING)
            }
            EntryOutcome::Fail(_) => false,
        };
    };
    match (check.group.consequence(), outcome) {
        (Consequence::InvalidControls, EntryOutcome::Fail(VmxOutcome::FailValid(n))) => *n == 7,
        (Consequence::InvalidHostState, EntryOutcome::Fail(VmxOutcome::FailValid(n))) => *n == 8,
        (Consequence::InvalidGuestState, EntryOutcome::Failed(failed)) => {
            failed.reason == reason(ExitReason::ENTRY_FAIL_GUEST_STATE)
                && failed.qualification == check.qualification
        }
        // The exit that a failed entry is may end in a VMX abort.
        (Consequence::InvalidGuestState, EntryOutcome::Aborted(_)) => true,
        _ => false,
    }
}

/// What distinguishes outcomes: how the entry ended, and by which check.
fn name_of(outcome: &EntryOutcome, first: Option<&Check>) -> String {
    let by = first.map_or("", |check| check.id);
    match outcome {
        EntryOutcome::Fail(failed) => format!("{failed:?} {by}"),
        EntryOutcome::Failed(failed) => format!("exit {:#x} {by}", failed.reason),
        EntryOutcome::Aborted(abort) => format!("{abort:?} {by}"),
        EntryOutcome::Entered(rest) => {
            let event = rest.event.as_ref().map(|event| event.kind);
            format!("entered {:?} {event:?}", rest.activity)
        }
    }
}

/// Registers of no consequence, and MSRs of which number 0 cannot be written: an MSR-load area of
/// zeroes ends at its first entry, however long it says it is.
struct PlainRegisters(ArchState);

impl MsrAccess for PlainRegisters {
    fn read_msr(&mut self, _index: u32) -> Option<u64> {
        Some(0)
    }

    fn write_msr(&mut self, index: u32, _value: u64) -> Option<()> {
        (index != 0).then_some(())
    }
}

impl Registers for PlainRegisters {
    fn state(&self) -> &ArchState {
        &self.0
    }

    fn state_mut(&mut self) -> &mut ArchState {
        &mut self.0
    }

    fn state_is_loaded(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(cases: u64) -> Entry {
        let mut target = Entry::default();
        for number in 0..cases {
            let seed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            assert_eq!(target.run(Case { number, seed }), Ok(()));
        }
        target
    }

    #[test]
    fn near_valid_vmcss_reach_more_than_random_ones() {
        let target = run(2000);
        assert!(target.near_valid.outcomes.len() > 100);
        assert!(target.near_valid.outcomes.len() > 10 * target.uniform.outcomes.len());
        assert!(target.near_valid.entered > 200);
        assert_eq!(target.uniform.entered, 0);
    }

    #[test]
    fn an_outcome_that_no_check_explains_is_found() {
        let around = Surroundings::new(VmxProfile::emulator_default());
        let first = uniform(1).first_failure(around.environment());
        let failed = EntryOutcome::Fail(VmxOutcome::FailValid(7));
        assert!(is_outcome_of(&failed, first));
        assert!(!is_outcome_of(&failed, None));
        assert!(!is_outcome_of(
            &EntryOutcome::Fail(VmxOutcome::FailInvalid),
            first
        ));
    }
}
