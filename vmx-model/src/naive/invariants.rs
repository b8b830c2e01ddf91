//! The invariants of the VMCS state machine, checked after each step of a sequence.

use std::collections::BTreeMap;

use super::Answer;
use super::machine::Machine;
use super::sequence::{Action, REGIONS, Step};
use crate::addr::Hpa;
use crate::arch::Rflags;
use crate::field::{Field, Half};
use crate::outcome::VmxOutcome;
use crate::precondition::VmxOperation;
use crate::registry::{LaunchState, RegionStatus};
use crate::sanitizer::Item;
use crate::vmcs::Vmcs;

/// What the invariants look at.
pub(super) struct Snapshot {
    cpus: Vec<Cpu>,
    regions: BTreeMap<Hpa, RegionStatus>,
}

struct Cpu {
    operation: VmxOperation,
    vmxon_pointer: Option<Hpa>,
    current: Option<(Hpa, Vmcs)>,
}

impl Snapshot {
    pub(super) fn take(machine: &Machine) -> Self {
        let cpus = machine.cpus.iter().map(|cpu| Cpu {
            operation: cpu.operation(),
            vmxon_pointer: cpu.vmxon_pointer(),
            current: cpu.current_pointer().zip(cpu.current_vmcs().cloned()),
        });
        let status = |pointer| (pointer, machine.registry.status(pointer));
        Self {
            cpus: cpus.collect(),
            regions: REGIONS.into_iter().map(status).collect(),
        }
    }

    /// Whether `step`, from this state, accessed a shadow VMCS.
    pub(super) fn is_shadow_access(&self, step: Step, answer: Answer) -> bool {
        self.cpus[step.cpu as usize].operation == VmxOperation::NonRoot
            && matches!(step.action, Action::Vmread(_) | Action::Vmwrite(..))
            && matches!(
                answer,
                Answer::Value(_) | Answer::Outcome(VmxOutcome::Succeed)
            )
    }

    fn error(&self, cpu: usize) -> Option<(Hpa, u64)> {
        let (pointer, vmcs) = self.cpus[cpu].current.as_ref()?;
        Some((*pointer, vmcs.get(Field::VM_INSTRUCTION_ERROR)))
    }
}

/// Whether an item is about the state machine itself, and not about what a VMCS names.
pub(super) const fn is_state_misuse(item: Item) -> bool {
    matches!(
        item,
        Item::UseBeforeVmclear
            | Item::ActiveOnTwoCpus
            | Item::VmclearForeignActive
            | Item::VmresumeAfterVmxoff
            | Item::VmxoffWithActive
            | Item::SharedRegion
    )
}

/// What an invariant sees: the states around a step, the step and its answer.
struct Context<'a> {
    before: &'a Snapshot,
    after: &'a Snapshot,
    step: Step,
    answer: Answer,
    has_misuse: bool,
}

type Invariant = fn(&Context<'_>) -> bool;

/// The invariants that can be seen from one step. The others need steps of their own: they are
/// properties in the tests of this crate.
const INVARIANTS: &[(&str, Invariant)] = &[
    ("current-implies-root", current_implies_root),
    ("current-not-vmxon", current_not_vmxon),
    ("current-is-active", current_is_active),
    ("nonroot-implies-launched", nonroot_implies_launched),
    ("single-active", single_active),
    ("launch-monotone", launch_monotone),
    ("failed-entry-pure", failed_entry_pure),
    ("flags-exactly-one", flags_exactly_one),
    ("error-only-on-valid", error_only_on_valid),
    ("fields-independent", fields_independent),
    ("region-isolation", region_isolation),
    ("vmread-roundtrip", vmread_roundtrip),
    ("vmptrst-inverse", vmptrst_inverse),
];

/// The names of the invariants that are checked after each step.
pub(super) const NAMES: [&str; INVARIANTS.len()] = {
    let mut names = [""; INVARIANTS.len()];
    let mut n = 0;
    while n < names.len() {
        names[n] = INVARIANTS[n].0;
        n += 1;
    }
    names
};

/// Checks the invariants around a step. Some hold only for software that never did what the
/// sanitizer reports.
pub(super) fn check(
    before: &Snapshot,
    after: &Snapshot,
    step: Step,
    answer: Answer,
    has_misuse: bool,
) -> Result<(), String> {
    let context = Context {
        before,
        after,
        step,
        answer,
        has_misuse,
    };
    match INVARIANTS.iter().find(|(_, holds)| !holds(&context)) {
        None => Ok(()),
        Some((name, _)) => Err(format!("invariant {name} does not hold")),
    }
}

fn current_implies_root(c: &Context<'_>) -> bool {
    let mut cpus = c.after.cpus.iter();
    cpus.all(|cpu| cpu.current.is_none() || cpu.operation != VmxOperation::Outside)
}

fn current_not_vmxon(c: &Context<'_>) -> bool {
    c.after.cpus.iter().all(|cpu| {
        let current = cpu.current.as_ref().map(|(pointer, _)| *pointer);
        current.is_none() || current != cpu.vmxon_pointer
    })
}

fn current_is_active(c: &Context<'_>) -> bool {
    let cpus = c.after.cpus.iter().zip(0..);
    cpus.filter_map(|(cpu, n)| Some((cpu.current.as_ref()?.0, n)))
        .filter_map(|(pointer, n)| Some((c.after.regions.get(&pointer)?, n)))
        .all(|(region, n)| region.active_on.iter().any(|cpu| cpu.0 == n))
}

fn nonroot_implies_launched(c: &Context<'_>) -> bool {
    let mut guests = c.after.cpus.iter().filter_map(|cpu| {
        let (pointer, _) = cpu.current.as_ref()?;
        (cpu.operation == VmxOperation::NonRoot).then_some(c.after.regions.get(pointer)?)
    });
    let mut cpus = c.after.cpus.iter();
    let has_current =
        cpus.all(|cpu| cpu.operation != VmxOperation::NonRoot || cpu.current.is_some());
    has_current && (c.has_misuse || guests.all(|region| region.launch == LaunchState::Launched))
}

fn single_active(c: &Context<'_>) -> bool {
    let mut regions = c.after.regions.values();
    c.has_misuse || regions.all(|region| region.active_on.len() <= 1)
}

fn launch_monotone(c: &Context<'_>) -> bool {
    let is_vmclear = |pointer| match c.step.action {
        Action::Vmclear(p) | Action::RemoteVmclear(_, p) => p == pointer,
        _ => false,
    };
    let is_launch = matches!(c.step.action, Action::Vmlaunch(_)) && c.answer == Answer::Entered;
    c.after.regions.iter().all(|(pointer, after)| {
        match (c.before.regions[pointer].launch, after.launch) {
            (before, after) if before == after => true,
            (LaunchState::Clear, LaunchState::Launched) => is_launch,
            (_, LaunchState::Clear) => is_vmclear(*pointer),
            _ => false,
        }
    })
}

fn is_vm_entry(action: Action) -> bool {
    matches!(action, Action::Vmlaunch(_) | Action::Vmresume(_))
}

fn failed_entry_pure(c: &Context<'_>) -> bool {
    if !is_vm_entry(c.step.action) || !matches!(c.answer, Answer::Outcome(_)) {
        return true;
    }
    let n = c.step.cpu as usize;
    let (before, after) = (&c.before.cpus[n], &c.after.cpus[n]);
    let is_values_kept = match (&before.current, &after.current) {
        (Some((_, before)), Some((_, after))) => before
            .differences(after)
            .all(|field| field == Field::VM_INSTRUCTION_ERROR),
        (None, None) => true,
        _ => false,
    };
    is_values_kept && before.operation == after.operation && c.before.regions == c.after.regions
}

fn flags_exactly_one(c: &Context<'_>) -> bool {
    let Answer::Outcome(outcome) = c.answer else {
        return true;
    };
    [Rflags::empty(), Rflags::all()].into_iter().all(|rflags| {
        let status = outcome.apply(rflags).intersection(Rflags::STATUS);
        let others = outcome.apply(rflags).difference(Rflags::STATUS);
        others == rflags.difference(Rflags::STATUS)
            && status
                == match outcome {
                    VmxOutcome::Succeed => Rflags::empty(),
                    VmxOutcome::FailInvalid => Rflags::CF,
                    VmxOutcome::FailValid(_) => Rflags::ZF,
                }
    })
}

fn error_only_on_valid(c: &Context<'_>) -> bool {
    let n = c.step.cpu as usize;
    let number = match c.answer {
        Answer::Outcome(VmxOutcome::FailValid(number)) => Some(u64::from(number)),
        _ => None,
    };
    match (c.before.error(n), c.after.error(n)) {
        (_, Some((_, after))) if number.is_some() => Some(after) == number,
        (Some((before, old)), Some((after, new))) if before == after => {
            old == new || matches!(c.step.action, Action::Vmwrite(..) | Action::Prepare(_))
        }
        _ => true,
    }
}

fn fields_independent(c: &Context<'_>) -> bool {
    let n = c.step.cpu as usize;
    let (Action::Vmwrite(encoding, _), Answer::Outcome(VmxOutcome::Succeed)) =
        (c.step.action, c.answer)
    else {
        return true;
    };
    let written = u32::try_from(encoding).ok().and_then(Field::from_encoding);
    match (&c.before.cpus[n].current, &c.after.cpus[n].current) {
        (Some((_, before)), Some((_, after))) => before
            .differences(after)
            .all(|field| written.is_some_and(|(written, _)| written == field)),
        _ => true,
    }
}

/// A step on one processor changes no values that another processor holds.
fn region_isolation(c: &Context<'_>) -> bool {
    let others = c.before.cpus.iter().zip(&c.after.cpus).zip(0..);
    others
        .filter(|(_, n)| *n != c.step.cpu)
        .all(|((before, after), _)| before.current == after.current)
}

fn vmread_roundtrip(c: &Context<'_>) -> bool {
    let n = c.step.cpu as usize;
    let (Action::Vmwrite(encoding, value), Answer::Outcome(VmxOutcome::Succeed)) =
        (c.step.action, c.answer)
    else {
        return true;
    };
    let written = u32::try_from(encoding).ok().and_then(Field::from_encoding);
    match (written, &c.after.cpus[n].current) {
        (Some((field, half)), Some((_, vmcs)))
            if c.before.cpus[n].operation == VmxOperation::Root =>
        {
            let mask = match half {
                Half::Full => field.value_mask(),
                Half::High => 0xffff_ffff,
            };
            vmcs.read(field, half) == value & mask
        }
        _ => true,
    }
}

fn vmptrst_inverse(c: &Context<'_>) -> bool {
    let (Action::Vmptrld(pointer), Answer::Outcome(VmxOutcome::Succeed)) =
        (c.step.action, c.answer)
    else {
        return true;
    };
    let current = &c.after.cpus[c.step.cpu as usize].current;
    current
        .as_ref()
        .is_some_and(|(current, _)| *current == pointer)
}
