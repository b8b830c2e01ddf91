//! Random differential runs: a [`Target`] makes a case from a number, runs it on two sides and says
//! where they differ.
//!
//! Case n of a run depends on the seed and on n alone, so that a shard (`--shard i/n`: the cases n,
//! n + i, ...) is independent of the others, a run can be resumed, and a failing case can be run
//! alone.

pub mod code;
pub mod entry;
pub mod ioctl;
pub mod isa;
pub mod vmx;

use crate::cli::progress_bar;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;

/// How often the state of a run is saved, in cases.
const SAVE_EVERY: u64 = 500;

/// What is compared with what.
pub trait Target {
    /// Returns the name, as on the command line.
    fn name(&self) -> &'static str;

    /// Runs one case.
    ///
    /// # Errors
    /// What differs, with the shortened steps that show it.
    fn run(&mut self, case: Case) -> Result<(), String>;

    /// Returns what the cases have reached so far, in a line.
    fn summary(&self) -> String;
}

/// One case of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    /// Its number, from 0.
    pub number: u64,
    /// The seed of everything random in it.
    pub seed: u64,
}

/// A part of a run: number `index`, from 1, of `count`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    index: u64,
    count: u64,
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = |text: &str| text.parse::<u64>().ok();
        let parts = text.split_once('/');
        let parts = parts.and_then(|(index, count)| parse(index).zip(parse(count)));
        match parts {
            Some((index, count)) if (1..=count).contains(&index) => Ok(Self { index, count }),
            _ => Err(format!("{text:?} is not i/n with i from 1 to n")),
        }
    }
}

/// The options of a run.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// The seed: the same seed gives the same cases.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// How many cases there are, in all shards together.
    #[arg(long, default_value_t = 1000)]
    pub cases: u64,
    /// Runs only part i of n.
    #[arg(long, default_value = "1/1")]
    pub shard: Shard,
    /// Goes on where an interrupted run of the same seed, cases and shard stopped.
    #[arg(long)]
    pub resume: bool,
    /// The file that `--resume` reads; a run keeps it up to date and removes it when it is done.
    #[arg(long)]
    pub state: Option<PathBuf>,
}

/// What a run remembers, to be resumed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    target: String,
    seed: u64,
    cases: u64,
    shard: Shard,
    /// The first case that has not been run.
    next: u64,
}

impl State {
    fn new(target: &str, options: &Options) -> Self {
        Self {
            target: target.to_owned(),
            seed: options.seed,
            cases: options.cases,
            shard: options.shard,
            next: options.shard.index - 1,
        }
    }

    /// Returns the state to begin with: the saved one if it is of the same run.
    fn begin(target: &str, options: &Options, file: &Path) -> Result<Self> {
        let fresh = Self::new(target, options);
        if !options.resume || !file.exists() {
            return Ok(fresh);
        }
        let text = std::fs::read_to_string(file)
            .with_context(|| format!("cannot read {}", file.display()))?;
        let saved: Self = serde_json::from_str(&text)
            .with_context(|| format!("{} is not the state of a run", file.display()))?;
        let is_same_run = Self {
            next: fresh.next,
            ..saved.clone()
        } == fresh;
        anyhow::ensure!(is_same_run, "{} is of another run", file.display());
        Ok(saved)
    }

    fn save(&self, file: &Path) -> Result<()> {
        std::fs::write(file, serde_json::to_string(self)?)
            .with_context(|| format!("cannot write {}", file.display()))
    }

    const fn case(&self) -> Case {
        Case {
            number: self.next,
            seed: mix(self.seed, self.next),
        }
    }

    /// How many cases of the shard are left.
    const fn left(&self) -> u64 {
        self.cases
            .saturating_sub(self.next)
            .div_ceil(self.shard.count)
    }
}

/// Returns a seed for case `number` (the finaliser of SplitMix64).
const fn mix(seed: u64, number: u64) -> u64 {
    let mut z = seed.wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Runs the cases of a shard until one shows a difference.
///
/// # Errors
/// If the state cannot be read or written.
pub fn run(target: &mut dyn Target, options: &Options) -> Result<ExitCode> {
    let name = target.name();
    let default = || PathBuf::from(format!("conformance-fuzz-{name}.json"));
    let file = options.state.clone().unwrap_or_else(default);
    let mut state = State::begin(name, options, &file)?;
    let bar = progress_bar(state.left());
    while state.next < state.cases {
        let case = state.case();
        if let Err(difference) = target.run(case) {
            bar.finish_and_clear();
            state.save(&file)?;
            println!("{name}: case {} (seed {}):", case.number, options.seed);
            println!("{difference}");
            return Ok(ExitCode::FAILURE);
        }
        state.next = state.next.saturating_add(state.shard.count);
        if (state.next / state.shard.count).is_multiple_of(SAVE_EVERY) {
            state.save(&file)?;
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    if file.exists() {
        std::fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
    }
    println!("{name}: {}", target.summary());
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Remembers its cases; case `fails` differs.
    #[derive(Default)]
    struct Counting {
        cases: Vec<Case>,
        fails: Option<u64>,
    }

    impl Target for Counting {
        fn name(&self) -> &'static str {
            "counting"
        }

        fn run(&mut self, case: Case) -> Result<(), String> {
            if self.fails == Some(case.number) {
                return Err("differs".to_owned());
            }
            self.cases.push(case);
            Ok(())
        }

        fn summary(&self) -> String {
            format!("{} cases", self.cases.len())
        }
    }

    fn options(directory: &Path, shard: &str) -> Options {
        Options {
            seed: 7,
            cases: 100,
            shard: shard.parse().unwrap(),
            resume: true,
            state: Some(directory.join("state.json")),
        }
    }

    fn cases_of(shard: &str) -> Vec<Case> {
        let directory = tempfile::tempdir().unwrap();
        let mut target = Counting::default();
        let _ = run(&mut target, &options(directory.path(), shard)).unwrap();
        target.cases
    }

    #[test]
    fn shards_together_are_the_whole_run() {
        let mut shards = [cases_of("1/3"), cases_of("2/3"), cases_of("3/3")].concat();
        shards.sort_by_key(|case| case.number);
        assert_eq!(shards, cases_of("1/1"));
        assert_eq!(shards.len(), 100);
    }

    #[test]
    fn a_shard_is_parsed_or_refused() {
        assert!("2/2".parse::<Shard>().is_ok());
        for wrong in ["", "1", "0/2", "3/2", "1/0", "a/b", "-1/2"] {
            assert!(wrong.parse::<Shard>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_run_that_stopped_goes_on_with_the_case_that_stopped_it() {
        let directory = tempfile::tempdir().unwrap();
        let options = options(directory.path(), "2/3");
        let mut first = Counting {
            fails: Some(40),
            ..Counting::default()
        };
        let stopped = run(&mut first, &options).unwrap();
        assert_eq!(stopped, ExitCode::FAILURE);
        let mut second = Counting::default();
        let done = run(&mut second, &options).unwrap();
        assert_eq!(done, ExitCode::SUCCESS);
        assert_eq!([first.cases, second.cases].concat(), cases_of("2/3"));
    }

    #[test]
    fn the_state_of_another_run_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let mut target = Counting {
            fails: Some(3),
            ..Counting::default()
        };
        let mut options = options(directory.path(), "1/1");
        let _ = run(&mut target, &options).unwrap();
        options.seed = 8;
        assert!(run(&mut target, &options).is_err());
    }
}
