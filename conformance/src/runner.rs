//! Runs units on a backend that lives in a process of its own.
//!
//! The worker is this very program; it reads names of units from its standard input and writes a
//! line for each result. A unit that crashes or never ends is that unit's failure: the worker is
//! replaced and the next unit runs.

use crate::backend::emulated::EmulatedKernel;
use crate::backend::host::{HostKernel, Kernel, SystemBackend};
use crate::backend::recorded::{Exchange, FORMAT, RecordedBackend, Recorder, Recording};
use crate::backend::{Backend, BackendName};
use crate::cases::{Unit, units};
use crate::probe::Record;
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// No unit lasts longer.
const UNIT_LIMIT: Duration = Duration::from_secs(60);

/// A line from the worker.
#[derive(Debug, Serialize, Deserialize)]
enum Line {
    /// A result.
    Result(Record),
    /// Every call of the unit, if it is recorded.
    Calls(Vec<Exchange>),
    /// The unit was not run, and why.
    Skipped(String),
    /// The unit is done.
    Done,
}

/// Whether a worker records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Results only.
    Results,
    /// Calls and replies as well.
    Calls,
}

/// What a unit gave on one backend.
#[derive(Debug, Default)]
pub struct UnitOutcome {
    /// Its results, as far as it came.
    pub records: Vec<Record>,
    /// Why it was not run.
    pub skipped: Option<String>,
    /// Why it did not come to its end.
    pub broken: Option<String>,
    /// Its calls, if recorded.
    pub calls: Vec<Exchange>,
}

/// The recording that this crate carries.
///
/// # Panics
/// If the recording, which is part of the program, is malformed.
#[must_use]
pub fn embedded_recording() -> Recording {
    let recording: Recording = serde_json::from_str(include_str!("../recordings/host.json"))
        .expect("the recording is part of the program and tested");
    assert_eq!(
        recording.format, FORMAT,
        "the recording has the format of this program"
    );
    recording
}

/// The KVM of this machine by the name of its module, if there is one that can be used.
///
/// # Errors
/// Why there is none.
pub fn host_kvm() -> Result<String, String> {
    let fd = HostKernel
        .open(libc::O_RDWR)
        .map_err(|errno| format!("no /dev/kvm here ({errno})"))?;
    let _ = HostKernel.close(fd);
    let vendors = ["kvm_intel", "kvm_amd", "kvm_pvm"];
    let loaded = |name: &&&str| std::path::Path::new("/sys/module").join(name).exists();
    // A kernel with everything built in shows no vendor module: then the processor decides.
    let vendor = vendors.iter().rev().find(loaded).copied();
    Ok(vendor
        .unwrap_or_else(|| {
            if has_flag("vmx") {
                "kvm_intel"
            } else {
                "kvm_pvm"
            }
        })
        .to_owned())
}

fn has_flag(flag: &str) -> bool {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    info.split_whitespace().any(|word| word == flag)
}

/// The name under which `known_differences.toml` speaks of a backend, or why it cannot run.
///
/// # Errors
/// Why the backend is skipped.
pub fn kvm_of(backend: BackendName) -> Result<String, String> {
    match backend {
        BackendName::Emulated => Ok("emulated".to_owned()),
        BackendName::Host => host_kvm(),
        BackendName::Recorded => Ok(embedded_recording().backend),
    }
}

/// A backend in a process of its own.
pub struct Worker {
    backend: BackendName,
    keep: Keep,
    process: Option<Process>,
}

struct Process {
    child: Child,
    input: ChildStdin,
    lines: Receiver<Line>,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Worker {
    /// A worker that is started when it is first needed.
    #[must_use]
    pub fn new(backend: BackendName, keep: Keep) -> Worker {
        Worker {
            backend,
            keep,
            process: None,
        }
    }

    fn start(&self) -> Result<Process> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["worker", "--backend", self.backend.as_str()]);
        if self.keep == Keep::Calls {
            command.arg("--calls");
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start a worker")?;
        let input = child.stdin.take().context("the worker has an input")?;
        let output = BufReader::new(child.stdout.take().context("the worker has an output")?);
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let Ok(line) = serde_json::from_str(&line) else {
                    return;
                };
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Process {
            child,
            input,
            lines,
        })
    }

    /// Runs a unit.
    ///
    /// # Errors
    /// If no worker can be started.
    pub fn play(&mut self, unit: &str) -> Result<UnitOutcome> {
        let mut process = match self.process.take() {
            Some(process) => process,
            None => self.start()?,
        };
        let mut outcome = UnitOutcome::default();
        if writeln!(process.input, "{unit}").is_err() {
            outcome.broken = Some("the worker is gone".to_owned());
            return Ok(outcome);
        }
        let deadline = Instant::now() + UNIT_LIMIT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match process.lines.recv_timeout(left) {
                Ok(Line::Result(record)) => outcome.records.push(record),
                Ok(Line::Calls(calls)) => outcome.calls = calls,
                Ok(Line::Skipped(reason)) => outcome.skipped = Some(reason),
                Ok(Line::Done) => break,
                Err(error) => {
                    outcome.broken = Some(obituary(&mut process, error));
                    return Ok(outcome);
                }
            }
        }
        self.process = Some(process);
        Ok(outcome)
    }
}

fn obituary(process: &mut Process, error: RecvTimeoutError) -> String {
    if error == RecvTimeoutError::Timeout {
        return format!("not done after {} s", UNIT_LIMIT.as_secs());
    }
    match process.child.wait() {
        Ok(status) => format!("crashed: {status}"),
        Err(error) => format!("crashed: {error}"),
    }
}

/// The worker's side.
///
/// # Errors
/// If the parent cannot be read or written.
pub fn work(backend: BackendName, keep: Keep) -> Result<()> {
    let units = units();
    let recording = match backend {
        BackendName::Recorded => embedded_recording(),
        _ => Recording::default(),
    };
    let mut live: Option<Box<dyn Backend>> = match backend {
        BackendName::Emulated => Some(Box::new(SystemBackend::new(EmulatedKernel))),
        BackendName::Host => Some(Box::new(SystemBackend::new(HostKernel))),
        BackendName::Recorded => None,
    };
    for name in std::io::stdin().lock().lines() {
        let name = name?;
        let Some(unit) = units.iter().find(|unit| unit.name == name) else {
            bail!("no unit {name}");
        };
        match &mut live {
            Some(_) if backend == BackendName::Host && unit.needs_bare_machine() => {
                say(&Line::Skipped(
                    "a KVM gives no bare machine with VMX".to_owned(),
                ));
            }
            Some(backend) if keep == Keep::Calls => {
                let mut recorder = Recorder::new(&mut **backend);
                unit.play(&mut recorder, &mut tell);
                say(&Line::Calls(recorder.into_calls()));
            }
            Some(backend) => {
                unit.play(&mut **backend, &mut tell);
            }
            None => replay(unit, recording.unit(&name)),
        }
        say(&Line::Done);
    }
    Ok(())
}

fn replay(unit: &Unit, calls: Option<Vec<Exchange>>) {
    let Some(calls) = calls else {
        say(&Line::Skipped("not in the recording".to_owned()));
        return;
    };
    let mut backend = RecordedBackend::new(calls);
    let mut records = Vec::new();
    unit.play(&mut backend, &mut |record| records.push(record.clone()));
    if backend.departed() {
        say(&Line::Skipped(
            "the recording was made with other inputs".to_owned(),
        ));
        return;
    }
    records
        .into_iter()
        .for_each(|record| say(&Line::Result(record)));
}

fn tell(record: &Record) {
    say(&Line::Result(record.clone()));
}

fn say(line: &Line) {
    let text = serde_json::to_string(line).expect("lines are plain data");
    let mut out = std::io::stdout().lock();
    // The parent may have gone: then the next read of a name ends the worker.
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}
