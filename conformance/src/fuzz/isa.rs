//! Every instruction form that the interpreter has, against the host CPU.
//!
//! A case is one instruction with random operands, prefixes, registers, control words and memory.
//! The host executes it in a child process (`host`, `worker`), the interpreter by its plain
//! handler (`emulated`); registers, flags, x87 and vector state, memory and exceptions with their
//! addresses have to be the same, but for what `differences` names. New instructions are found by
//! asking [`x86_interp::implements`].
//!
//! Case n of a form depends on the seed, the form and n alone.

mod aim;
mod case;
pub mod coverage;
mod differences;
mod emulated;
pub mod forms;
mod generate;
mod host;
mod random;
mod stub;
mod worker;

use crate::cli::progress_bar;
use anyhow::{Context, Result};
use clap::ValueEnum;
use emulated::Emulated;
use generate::Generator;
use host::Host;
use iced_x86::Code;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// How many differing cases of a form are shown.
const EXAMPLES: usize = 2;

/// 64-bit code, or 32-bit code in compatibility mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
pub enum Bits {
    /// 64-bit mode.
    #[value(name = "64")]
    B64,
    /// Compatibility mode with 32-bit segments.
    #[value(name = "32")]
    B32,
}

impl Bits {
    /// Both.
    pub const ALL: [Self; 2] = [Self::B64, Self::B32];

    const fn number(self) -> u32 {
        match self {
            Self::B64 => 64,
            Self::B32 => 32,
        }
    }
}

/// The options of a run.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// The seed: the same seed gives the same cases.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// How many cases there are of each form.
    #[arg(long, default_value_t = 1000)]
    pub cases: u64,
    /// Runs only part i of n of the forms.
    #[arg(long, default_value = "1/1")]
    pub shard: super::Shard,
    /// Only forms whose name (iced-x86's `Code`) contains this.
    #[arg(long)]
    pub code: Option<String>,
    /// Executes by micro-ops, as in a program, what has some; by plain handlers alone otherwise.
    #[arg(long)]
    pub translated: bool,
    /// Only code of this kind.
    #[arg(long, value_enum)]
    pub bits: Option<Bits>,
    /// Skips the forms that the file of `--state` has: goes on where a run stopped.
    #[arg(long)]
    pub resume: bool,
    /// The file that `--resume` reads; a run keeps it up to date and removes it when it is done.
    #[arg(long, default_value = "conformance-fuzz-isa.json")]
    pub state: PathBuf,
    /// Adds the number of proved cases of each form to this file.
    #[arg(long)]
    pub record: Option<PathBuf>,
}

/// A form and how often to run it.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    code: Code,
    bits: Bits,
    seed: u64,
    cases: u64,
    is_translated: bool,
}

impl Job {
    fn name(&self) -> String {
        name(self.code, self.bits)
    }
}

/// The name of a form in code of so many bits.
fn name(code: Code, bits: Bits) -> String {
    format!("{code:?}/{}", bits.number())
}

/// What came of the cases of a form.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct FormResult {
    /// Cases that agree.
    agreed: u64,
    /// Cases in which nothing can be compared.
    incomparable: u64,
    /// Cases that could not be made.
    unmade: u64,
    /// Cases in which the host does not have the instruction.
    absent: u64,
    /// Cases that the interpreter does not support after all.
    unsupported: u64,
    differences: u64,
    /// Some cases that differ.
    examples: Vec<String>,
}

impl FormResult {
    fn add(&mut self, other: Self) {
        self.agreed += other.agreed;
        self.incomparable += other.incomparable;
        self.unmade += other.unmade;
        self.absent += other.absent;
        self.unsupported += other.unsupported;
        self.differences += other.differences;
        self.examples.extend(other.examples);
    }
}

/// Both sides, in the child.
pub(crate) struct Sides {
    host: Host,
    emulated: Emulated,
    memory: Box<[u8; case::DATA_BYTES]>,
}

impl Sides {
    fn new(bits: Bits, is_translated: bool) -> Self {
        let host = Host::new(bits);
        let emulated = Emulated::new(bits, host.selectors(), is_translated);
        Self {
            host,
            emulated,
            memory: Box::new([0; case::DATA_BYTES]),
        }
    }

    /// Runs one case on both.
    fn run(&mut self, case: &case::Case, pool: &[u8], result: &mut FormResult) -> Option<String> {
        let memory = case.memory(pool, &mut self.memory);
        let Some(ours) = self.emulated.run(case, memory) else {
            result.unsupported += 1;
            return None;
        };
        let host = self.host.run(case, memory);
        let is_ud = |o: &case::Outcome| matches!(o.exception, Some((6, ..)));
        if is_ud(&host) && !is_ud(&ours) {
            result.absent += 1;
            return Some(format!("host #UD, ours {:x?}", ours.exception));
        }
        let is_untouched = ours.state == case.state && self.emulated.data() == memory;
        if differences::is_incomparable(case, &host, &ours, is_untouched) {
            result.incomparable += 1;
            return None;
        }
        let memory = [self.host.data(), self.emulated.data()];
        let difference = differences::difference(case, &host, &ours, memory);
        if difference.is_none() {
            result.agreed += 1;
        }
        difference
    }
}

/// Runs the cases of a form from `begin` on; `progress` hears of each before it runs.
pub(crate) fn run_form(
    sides: &mut Sides,
    job: &Job,
    begin: u64,
    mut progress: impl FnMut(u64),
) -> FormResult {
    let generator = Generator::new(job.code, job.bits, job.seed);
    let mut result = FormResult::default();
    for number in begin..job.cases {
        progress(number);
        let Some(case) = generator.case(number) else {
            result.unmade += 1;
            continue;
        };
        if let Some(difference) = sides.run(&case, generator.pool(), &mut result) {
            result.differences += 1;
            if result.examples.len() < EXAMPLES {
                let text = format!("case {number}: {case}\n  {difference}");
                result.examples.push(text);
            }
        }
    }
    if result.absent > 0 && result.agreed == 0 && result.absent == result.differences {
        // The host does not have it at all.
        (result.differences, result.examples) = (0, Vec::new());
    }
    result
}

/// Returns the jobs of a run.
fn jobs(options: &Options) -> Vec<Job> {
    let kinds = Bits::ALL.into_iter();
    let kinds = kinds.filter(|&b| options.bits.is_none_or(|wanted| wanted == b));
    let all = kinds.flat_map(|bits| forms::all(bits).into_iter().map(move |code| (bits, code)));
    let is_wanted = |code: Code| {
        let wanted = options.code.as_deref();
        wanted.is_none_or(|text| format!("{code:?}").contains(text))
    };
    let mine = |n: usize| n as u64 % options.shard.count == options.shard.index - 1;
    all.enumerate()
        .filter(|&(n, (_, code))| mine(n) && is_wanted(code))
        .map(|(_, (bits, code))| Job {
            code,
            bits,
            seed: options.seed,
            cases: options.cases,
            is_translated: options.translated,
        })
        .collect()
}

/// What a run remembers.
#[derive(Default, Serialize, Deserialize)]
struct State {
    seed: u64,
    cases: u64,
    forms: BTreeMap<String, FormResult>,
}

impl State {
    fn begin(options: &Options) -> Result<Self> {
        let fresh = Self {
            seed: options.seed,
            cases: options.cases,
            forms: BTreeMap::new(),
        };
        let file = &options.state;
        if !options.resume || !file.exists() {
            return Ok(fresh);
        }
        let text = std::fs::read_to_string(file)
            .with_context(|| format!("cannot read {}", file.display()))?;
        let saved: Self = serde_json::from_str(&text)
            .with_context(|| format!("{} is not the state of a run", file.display()))?;
        let is_same = (saved.seed, saved.cases) == (fresh.seed, fresh.cases);
        anyhow::ensure!(is_same, "{} is of another run", file.display());
        Ok(saved)
    }

    fn save(&self, file: &Path) -> Result<()> {
        std::fs::write(file, serde_json::to_string(self)?)
            .with_context(|| format!("cannot write {}", file.display()))
    }
}

/// Runs the cases and shows what differs.
///
/// # Errors
/// If there is no child, or a file cannot be read or written.
pub fn run(options: &Options) -> Result<ExitCode> {
    let mut state = State::begin(options)?;
    let mut jobs = jobs(options);
    jobs.retain(|job| !state.forms.contains_key(&job.name()));
    let bar = progress_bar(jobs.len() as u64);
    let mut since_saved = 0;
    worker::run_all(&jobs, |job, result| {
        bar.set_message(job.name());
        bar.inc(1);
        for example in &result.examples {
            println!("{}: {example}", job.name());
        }
        state.forms.entry(job.name()).or_default().add(result);
        since_saved += 1;
        if since_saved % 50 == 0 {
            state.save(&options.state)?;
        }
        Ok(())
    })?;
    bar.finish_and_clear();
    // There is nothing left to resume.
    let _ = std::fs::remove_file(&options.state);
    if let Some(file) = &options.record {
        record(&state, file)?;
    }
    Ok(summarize(&state.forms))
}

/// Prints the totals.
fn summarize(forms: &BTreeMap<String, FormResult>) -> ExitCode {
    let mut total = FormResult::default();
    for (name, result) in forms {
        if result.differences > 0 {
            println!("{name}: {} cases differ", result.differences);
        }
        if result.unsupported > 0 {
            println!("{name}: {} cases are not supported", result.unsupported);
        }
        if result.agreed == 0 && result.absent > 0 {
            println!("{name}: the host does not have it");
        } else if result.agreed == 0 {
            println!(
                "{name}: nothing compared ({} not made, {} incomparable)",
                result.unmade, result.incomparable
            );
        }
        total.add(FormResult {
            examples: Vec::new(),
            ..result.clone()
        });
    }
    let proved = forms
        .values()
        .filter(|r| r.agreed > 0 && r.differences == 0);
    println!(
        "isa: {} of {} forms agree; {} cases agree, {} differ, {} are incomparable, {} were not made",
        proved.count(),
        forms.len(),
        total.agreed,
        total.differences,
        total.incomparable,
        total.unmade
    );
    match total.differences {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// The cases that have proved each form, by the form's name and kind.
pub type Proved = BTreeMap<String, u64>;

/// Reads a file of proved cases: a name and a number in each line.
#[must_use]
pub fn parse_proved(text: &str) -> Proved {
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    let numbers = lines.filter_map(|(name, count)| Some((name.to_owned(), count.parse().ok()?)));
    numbers.collect()
}

/// Returns how many cases have proved a form in code of so many bits.
#[must_use]
pub fn proved_cases(proved: &Proved, code: Code, bits: Bits) -> u64 {
    proved.get(&name(code, bits)).copied().unwrap_or(0)
}

/// Enters a run into a file of proved cases: the larger number counts, and none where a case
/// differs.
fn record(state: &State, file: &Path) -> Result<()> {
    let old = std::fs::read_to_string(file).unwrap_or_default();
    let mut proved = parse_proved(&old);
    for (name, result) in &state.forms {
        let count = proved.entry(name.clone()).or_default();
        *count = match result.differences {
            0 => result.agreed.max(*count),
            _ => 0,
        };
    }
    let lines = proved.iter().filter(|&(_, &count)| count > 0);
    let text: String = lines
        .map(|(name, count)| format!("{name} {count}\n"))
        .collect();
    std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cases of each form.
    const CASES: u64 = 25;

    fn slice(bits: Bits, translated: bool) {
        let directory = tempfile::tempdir().unwrap();
        let options = Options {
            translated,
            seed: 1,
            cases: CASES,
            shard: "1/1".parse().unwrap(),
            code: None,
            bits: Some(bits),
            resume: false,
            state: directory.path().join("state.json"),
            record: None,
        };
        let jobs = jobs(&options);
        assert!(jobs.len() > 500, "only {} forms", jobs.len());
        let mut total = FormResult::default();
        worker::run_all(&jobs, |job, result| {
            let named = result
                .examples
                .iter()
                .map(|e| format!("{}: {e}", job.name()));
            total.examples.extend(named);
            total.agreed += result.agreed;
            Ok(())
        })
        .unwrap();
        assert!(total.examples.is_empty(), "{}", total.examples.join("\n"));
        assert!(total.agreed > jobs.len() as u64 * CASES / 2);
    }

    #[test]
    fn sixty_four_bit_forms_agree_by_micro_ops() {
        slice(Bits::B64, true);
    }

    #[test]
    fn sixty_four_bit_forms_agree_with_the_host_cpu() {
        slice(Bits::B64, false);
    }

    #[test]
    fn compatibility_mode_forms_agree_with_the_host_cpu() {
        slice(Bits::B32, false);
    }
}
