//! Drives the processors and the naive model with the same random sequences and compares them.

use std::sync::Arc;

use super::invariants::{self, Snapshot};
use super::machine::Machine;
use super::sequence::{self, Discipline, Random, Step};
use super::{Answer, NaiveMachine};
use crate::addr::Hpa;
use crate::capability::VmxProfile;
use crate::field::Field;
use crate::region::{RegionHeader, RegionLayout};
use crate::registry::CpuId;

/// The names of the invariants that are checked after each step.
pub const INVARIANTS: &[&str] = &invariants::NAMES;

/// About how many steps a sequence has.
pub const LENGTH: usize = 64;

/// How often things happened, so that a test can see that the sequences reach what they should.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Sequences that were run.
    pub sequences: u64,
    /// Steps.
    pub steps: u64,
    /// Successful VM entries.
    pub entries: u64,
    /// VM entries that failed after the checks on controls and host state.
    pub failed_entries: u64,
    /// VM exits.
    pub exits: u64,
    /// VMfail of any kind.
    pub failures: u64,
    /// Accesses to a shadow VMCS in VMX non-root operation.
    pub shadow_accesses: u64,
    /// Undefined uses that both models named.
    pub misuses: u64,
}

impl Statistics {
    /// Adds another run's figures.
    pub const fn add(&mut self, other: &Self) {
        self.sequences += other.sequences;
        self.steps += other.steps;
        self.entries += other.entries;
        self.failed_entries += other.failed_entries;
        self.exits += other.exits;
        self.failures += other.failures;
        self.shadow_accesses += other.shadow_accesses;
        self.misuses += other.misuses;
    }
}

/// Where the two models differ, or where an invariant does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Divergence {
    /// The seed of the sequence, for [`run_sequence`].
    pub seed: u64,
    /// The steps up to and including the one that shows it.
    pub steps: Vec<Step>,
    /// What differs.
    pub what: String,
}

impl core::fmt::Display for Divergence {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        writeln!(f, "seed {:#x}: {}", self.seed, self.what)?;
        for step in &self.steps {
            writeln!(f, "  cpu {}: {:x?}", step.cpu, step.action)?;
        }
        Ok(())
    }
}

impl std::error::Error for Divergence {}

/// Runs `count` random sequences, the first with `seed`, the next with `seed` + 1 and so on, on
/// `cpus` processors.
///
/// # Errors
///
/// The first divergence, shortened to the steps that are needed to show it.
pub fn run_sequences(
    profile: &Arc<VmxProfile>,
    seed: u64,
    count: u64,
    cpus: u32,
) -> Result<Statistics, Divergence> {
    let mut statistics = Statistics::default();
    for n in 0..count {
        statistics.add(&run_sequence(profile, seed.wrapping_add(n), cpus)?);
    }
    Ok(statistics)
}

/// Runs the random sequence of a seed.
///
/// # Errors
///
/// The divergence, shortened to the steps that are needed to show it.
pub fn run_sequence(
    profile: &Arc<VmxProfile>,
    seed: u64,
    cpus: u32,
) -> Result<Statistics, Divergence> {
    let discipline = if seed.is_multiple_of(2) {
        Discipline::WellBehaved
    } else {
        Discipline::Wild
    };
    let steps = sequence::sequence(&mut Random::new(seed), discipline, cpus, LENGTH);
    run_steps(profile, discipline, &steps, cpus)
        .map_err(|found| shrink(profile, discipline, seed, found, cpus))
}

/// Runs the given steps. With [`Discipline::WellBehaved`] any report of an undefined use of the state
/// machine is a divergence.
///
/// # Errors
///
/// The divergence, not shortened; its seed is 0.
pub fn run_steps(
    profile: &Arc<VmxProfile>,
    discipline: Discipline,
    steps: &[Step],
    cpus: u32,
) -> Result<Statistics, Divergence> {
    let mut pair = Pair {
        machine: Machine::new(profile, cpus),
        naive: NaiveMachine::new(Arc::clone(profile), cpus),
        discipline,
        has_misuse: false,
        statistics: Statistics {
            sequences: 1,
            ..Statistics::default()
        },
    };
    let diverged = |n: usize, what| Divergence {
        seed: 0,
        steps: steps[..n].to_vec(),
        what,
    };
    for (n, step) in steps.iter().enumerate() {
        pair.step(*step).map_err(|what| diverged(n + 1, what))?;
    }
    pair.compare_memory()
        .map_err(|what| diverged(steps.len(), what))?;
    Ok(pair.statistics)
}

/// Leaves out steps as long as there still is a divergence.
fn shrink(
    profile: &Arc<VmxProfile>,
    discipline: Discipline,
    seed: u64,
    mut found: Divergence,
    cpus: u32,
) -> Divergence {
    let mut n = found.steps.len();
    while n > 0 {
        n -= 1;
        let mut fewer = found.steps.clone();
        fewer.remove(n);
        if let Err(shorter) = run_steps(profile, discipline, &fewer, cpus) {
            found = shorter;
            n = n.min(found.steps.len());
        }
    }
    Divergence { seed, ..found }
}

struct Pair {
    machine: Machine,
    naive: NaiveMachine,
    discipline: Discipline,
    has_misuse: bool,
    statistics: Statistics,
}

impl Pair {
    fn step(&mut self, step: Step) -> Result<(), String> {
        let Step { cpu, action } = step;
        let before = Snapshot::take(&self.machine);
        let ours = self.machine.execute(cpu, action);
        let theirs = self.naive.execute(cpu, action);
        if ours != theirs {
            return Err(format!(
                "the processor answers {ours:x?}, the model {theirs:x?}"
            ));
        }
        self.count(&before, step, ours);
        if let (Answer::Exited, Some(vmcs)) = (ours, self.machine.cpus[cpu as usize].current_vmcs())
        {
            self.naive.adopt_saved_state(cpu, vmcs);
        }
        self.compare_misuse()?;
        self.compare_pointers()?;
        self.compare_current(cpu)?;
        let after = Snapshot::take(&self.machine);
        invariants::check(&before, &after, step, ours, self.has_misuse)
    }

    fn count(&mut self, before: &Snapshot, step: Step, answer: Answer) {
        let s = &mut self.statistics;
        s.steps += 1;
        match answer {
            Answer::Entered => s.entries += 1,
            Answer::EntryFailed(..) => s.failed_entries += 1,
            Answer::Exited => s.exits += 1,
            Answer::Outcome(outcome) if !outcome.is_success() => s.failures += 1,
            _ => {}
        }
        if before.is_shadow_access(step, answer) {
            s.shadow_accesses += 1;
        }
    }

    /// The sanitizer and the naive model name the same undefined uses. The naive model does not
    /// know those that concern what a VMCS names.
    fn compare_misuse(&mut self) -> Result<(), String> {
        let mut ours = self.machine.take_misuse();
        ours.retain(|item| invariants::is_state_misuse(*item));
        let mut theirs = self.naive.take_misuse();
        ours.sort();
        theirs.sort();
        if ours != theirs {
            return Err(format!(
                "the sanitizer reports {ours:?}, the model {theirs:?}"
            ));
        }
        if self.discipline == Discipline::WellBehaved && !ours.is_empty() {
            return Err(format!("well-behaved software is reported for {ours:?}"));
        }
        self.has_misuse |= !ours.is_empty();
        self.statistics.misuses += ours.len() as u64;
        Ok(())
    }

    fn compare_pointers(&self) -> Result<(), String> {
        for (n, cpu) in (0..).zip(&self.machine.cpus) {
            let ours = (cpu.operation(), cpu.vmxon_pointer(), cpu.current_pointer());
            let theirs = self.naive.pointers(n);
            if ours != theirs {
                return Err(format!(
                    "processor {n} has {ours:x?}, the model {theirs:x?}"
                ));
            }
        }
        for pointer in sequence::REGIONS {
            self.compare_region(pointer)?;
        }
        Ok(())
    }

    fn compare_region(&self, pointer: Hpa) -> Result<(), String> {
        let status = self.machine.registry.status(pointer);
        let active_on: Vec<u32> = status.active_on.iter().map(|CpuId(n)| *n).collect();
        let ours = (status.launch, active_on, status.is_left_by_vmxoff);
        let theirs = (
            self.naive.launch(pointer),
            self.naive.active_on(pointer),
            self.naive.is_left_by_vmxoff(pointer),
        );
        if ours == theirs {
            Ok(())
        } else {
            Err(format!(
                "region {pointer:#x} has {ours:?}, the model {theirs:?}"
            ))
        }
    }

    fn compare_current(&self, n: u32) -> Result<(), String> {
        let ours = self.machine.cpus[n as usize].current_vmcs();
        let theirs = self.naive.current_values(n);
        if ours == theirs.as_ref() {
            return Ok(());
        }
        let differ: Vec<Field> = match (ours, &theirs) {
            (Some(ours), Some(theirs)) => ours.differences(theirs).collect(),
            _ => Vec::new(),
        };
        Err(format!(
            "the current VMCS of processor {n} differs in {differ:?}"
        ))
    }

    /// Compares what the memory of every region holds.
    fn compare_memory(&self) -> Result<(), String> {
        for pointer in sequence::REGIONS {
            let header = RegionHeader::read(&self.machine.memory, pointer);
            let layout = RegionLayout::of_revision(header.revision());
            let ours = (header.0, *layout.read(&self.machine.memory, pointer));
            if Some(&ours) != self.naive.memory_values(pointer).as_ref() {
                return Err(format!("the memory of region {pointer:#x} differs"));
            }
        }
        Ok(())
    }
}
