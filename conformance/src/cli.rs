//! The command line.

use crate::backend::BackendName;
use crate::backend::recorded::{FORMAT, Recording};
use crate::cases::{Unit, units};
use crate::fuzz;
use crate::known;
use crate::probe::Record;
use crate::report::{html, junit, table};
use crate::runner::{self, Keep, UnitOutcome, Worker};
use crate::verdict::{self, CaseResult, Names, Seen, Summary, Verdict};
use anyhow::{Context, Result};
use clap::{Parser, Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use std::collections::{BTreeMap, HashMap};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The same guest on the emulator and on /dev/kvm, and where they differ.
#[derive(Debug, Parser)]
#[command(name = "conformance", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the cases and compares the backends.
    Run(RunArguments),
    /// Lists the cases with what they want.
    List {
        /// Only cases whose id contains this, or matches it as a glob.
        filter: Option<String>,
    },
    /// Records what a backend answers.
    Record {
        /// The backend.
        #[arg(long, value_enum)]
        backend: BackendArgument,
        /// The file.
        #[arg(long)]
        out: PathBuf,
        /// Only cases whose id contains this, or matches it as a glob.
        filter: Option<String>,
    },
    /// Runs random cases on two sides until they differ.
    #[command(subcommand)]
    Fuzz(FuzzCommand),
    /// Runs units named on standard input: for `run` itself.
    #[command(hide = true)]
    Worker {
        #[arg(long, value_enum)]
        backend: BackendArgument,
        #[arg(long)]
        calls: bool,
    },
}

#[derive(Debug, Subcommand)]
enum FuzzCommand {
    /// VMX instruction sequences on several processors, against the naive model of vmx-model.
    Vmx(fuzz::Options),
    /// Near-valid VMCSs and random ones through VM entry, against the whole table of checks.
    Entry(fuzz::Options),
    /// Random bytes as guest code on the emulator.
    Code(fuzz::Options),
    /// Random sequences of ioctls, compared with /dev/kvm.
    Ioctl(fuzz::Options),
    /// Every instruction form of the interpreter with random operands, against the host CPU.
    Isa(fuzz::isa::Options),
}

#[derive(Debug, clap::Args)]
struct RunArguments {
    /// Only cases whose id contains this, or matches it as a glob.
    filter: Option<String>,
    /// Who is asked.
    #[arg(long, value_enum, default_value = "all")]
    backend: BackendArgument,
    /// Writes the results as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Writes the results as JUnit XML.
    #[arg(long)]
    junit: Option<PathBuf>,
    /// Writes the results as one HTML page.
    #[arg(long)]
    html: Option<PathBuf>,
    /// Shows explained differences and skipped cases too.
    #[arg(long, short)]
    verbose: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum BackendArgument {
    Emulated,
    Host,
    Recorded,
    All,
}

impl BackendArgument {
    fn names(self) -> Vec<BackendName> {
        match self {
            BackendArgument::Emulated => vec![BackendName::Emulated],
            BackendArgument::Host => vec![BackendName::Host],
            BackendArgument::Recorded => vec![BackendName::Recorded],
            BackendArgument::All => BackendName::ALL.to_vec(),
        }
    }
}

/// Runs the command line.
pub fn main() -> ExitCode {
    match dispatch(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("conformance: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn dispatch(command: Command) -> Result<ExitCode> {
    match command {
        Command::Run(arguments) => run(&arguments),
        Command::List { filter } => {
            for record in units().iter().flat_map(Unit::results) {
                if is_wanted(filter.as_deref(), &record.id) {
                    println!("{}\t{}", record.id, record.want);
                }
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Record {
            backend,
            out,
            filter,
        } => record(backend, &out, filter.as_deref()),
        Command::Fuzz(FuzzCommand::Entry(options)) => {
            fuzz::run(&mut fuzz::entry::Entry::default(), &options)
        }
        Command::Fuzz(FuzzCommand::Code(options)) => {
            // The widest processor that KVM runs on.
            kvm_api::choose_processor("x86-64-v4")?;
            fuzz::run(&mut fuzz::code::Code::default(), &options)
        }
        Command::Fuzz(FuzzCommand::Ioctl(options)) => {
            runner::host_kvm().map_err(|reason| anyhow::anyhow!("host skipped: {reason}"))?;
            fuzz::run(&mut fuzz::ioctl::Ioctl::new(), &options)
        }
        Command::Fuzz(FuzzCommand::Isa(options)) => fuzz::isa::run(&options),
        Command::Fuzz(FuzzCommand::Vmx(options)) => {
            fuzz::run(&mut fuzz::vmx::Vmx::default(), &options)
        }
        Command::Worker { backend, calls } => {
            let keep = if calls { Keep::Calls } else { Keep::Results };
            for name in backend.names() {
                runner::work(name, keep)?;
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn is_wanted(filter: Option<&str>, id: &str) -> bool {
    filter.is_none_or(|filter| id.contains(filter) || known::matches(filter, id))
}

fn run(arguments: &RunArguments) -> Result<ExitCode> {
    let summary = run_cases(arguments.filter.as_deref(), &arguments.backend.names())?;
    let shown = if arguments.verbose {
        table::remarkable(&summary)
    } else {
        table::failures(&summary)
    };
    if let Some(table) = shown {
        println!("{table}");
    }
    write(arguments.json.as_deref(), || {
        serde_json::to_string_pretty(&summary).unwrap_or_default()
    })?;
    write(arguments.junit.as_deref(), || junit::render(&summary))?;
    write(arguments.html.as_deref(), || html::render(&summary))?;
    for entry in &summary.stale {
        println!("stale entry in known_differences.toml: {entry}");
    }
    for line in summary.closing_lines() {
        println!("{line}");
    }
    Ok(if summary.is_success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn write(path: Option<&Path>, text: impl FnOnce() -> String) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    std::fs::write(path, text()).with_context(|| format!("cannot write {}", path.display()))
}

/// Runs the cases that the filter wants on the backends.
fn run_cases(filter: Option<&str>, backends: &[BackendName]) -> Result<Summary> {
    let chosen = chosen_units(filter);
    let known = known::differences();
    let mut names = Names::new();
    let mut cases: Vec<CaseResult> = Vec::new();
    for (_, results) in &chosen {
        cases.extend(results.iter().map(|record| CaseResult {
            id: record.id.clone(),
            want: record.want.clone(),
            seen: BTreeMap::new(),
        }));
    }
    let bar = progress_bar((chosen.len() * backends.len()) as u64);
    for backend in backends {
        let kvm = runner::kvm_of(*backend);
        if let Ok(kvm) = &kvm {
            names.insert(*backend, kvm.clone());
        }
        let mut worker = Worker::new(*backend, Keep::Results);
        let mut at = 0;
        for (unit, results) in &chosen {
            bar.set_message(format!("{backend} {}", unit.name));
            let outcome = match &kvm {
                Ok(_) => worker.play(&unit.name)?,
                Err(reason) => UnitOutcome {
                    skipped: Some(reason.clone()),
                    ..UnitOutcome::default()
                },
            };
            for record in results {
                let kvm = kvm.as_deref().unwrap_or("");
                cases[at]
                    .seen
                    .insert(*backend, seen(record, &outcome, kvm, &known));
                at += 1;
            }
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    Ok(verdict::summarize(cases, &names, &known, filter.is_none()))
}

/// The units that have a wanted result, with those results.
fn chosen_units(filter: Option<&str>) -> Vec<(Unit, Vec<Record>)> {
    let with_results = units().into_iter().map(|unit| {
        let mut results = unit.results();
        results.retain(|record| is_wanted(filter, &record.id));
        (unit, results)
    });
    with_results
        .filter(|(_, results)| !results.is_empty())
        .collect()
}

fn seen(
    wanted: &Record,
    outcome: &UnitOutcome,
    kvm: &str,
    known: &[known::KnownDifference],
) -> Seen {
    if let Some(reason) = &outcome.skipped {
        return Seen {
            got: String::new(),
            verdict: Verdict::Skip {
                reason: reason.clone(),
            },
        };
    }
    match outcome.records.iter().find(|record| record.id == wanted.id) {
        Some(record) => verdict::judge(record, kvm, known),
        None => {
            let why = outcome
                .broken
                .clone()
                .unwrap_or_else(|| "no result".to_owned());
            let record = Record {
                got: format!("({why})"),
                ..wanted.clone()
            };
            verdict::judge(&record, kvm, known)
        }
    }
}

/// A bar on a terminal, nothing elsewhere.
pub(crate) fn progress_bar(length: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} {eta} {msg}");
    ProgressBar::new(length).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn record(backend: BackendArgument, out: &Path, filter: Option<&str>) -> Result<ExitCode> {
    let [name] = backend.names()[..] else {
        anyhow::bail!("record one backend at a time")
    };
    let kvm = runner::kvm_of(name).map_err(anyhow::Error::msg)?;
    let mut worker = Worker::new(name, Keep::Calls);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let kernel = kernel.trim().to_owned();
    let mut recording = Recording {
        format: FORMAT,
        backend: kvm,
        kernel,
        ..Recording::default()
    };
    let mut seen = HashMap::new();
    for (unit, _) in chosen_units(filter) {
        let outcome = worker.play(&unit.name)?;
        if outcome.skipped.is_some() {
            continue;
        }
        match outcome.broken {
            Some(broken) => eprintln!("{}: {broken}: not recorded", unit.name),
            None => recording.add(&unit.name, outcome.calls, &mut seen),
        }
    }
    std::fs::write(out, serde_json::to_string(&recording)?)
        .with_context(|| format!("cannot write {}", out.display()))?;
    Ok(ExitCode::SUCCESS)
}
