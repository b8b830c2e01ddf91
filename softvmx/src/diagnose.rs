//! `softvmx doctor FILE...`: the command around [`softvmx::doctor`].

use std::io::{ErrorKind, IsTerminal, Read, Write};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use softvmx::doctor::report::{self, Colour};
use softvmx::doctor::{self, dump};
use vmx_model::capability::{PROFILE_NAMES, VmxProfile};

/// Arguments of `softvmx doctor`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Logs with VMCS dumps of Linux or Xen, or JSON objects of fields; `-`, or none of them behind a
    /// pipe, is the standard input.
    files: Vec<String>,
    /// The processor that the VMCS was for; without it, checks that depend on it are undecided.
    #[arg(long, value_parser = PROFILE_NAMES)]
    profile: Option<String>,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
    /// Prints what the tables know of a field, a check, an exit reason or an instruction error.
    #[arg(long, value_name = "FIELD|CHECK|EXIT|ERROR")]
    explain: Option<String>,
}

/// Examines the dumps; the status is 2 if a check does not hold.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    if let Some(name) = &options.explain {
        return Ok(crate::explain::print(name));
    }
    let files = match options.files.as_slice() {
        [] if std::io::stdin().is_terminal() => bail!("no file is named; see --help"),
        [] => &["-".to_owned()],
        files => files,
    };
    let profile = options.profile.as_deref().and_then(VmxProfile::by_name);
    let mut reports = Vec::new();
    let mut has_failures = false;
    for file in files {
        let dumps = dump::find(&read(file)?);
        if dumps.is_empty() {
            bail!("{file}: no VMCS dump found");
        }
        for dump in &dumps {
            let diagnosis = doctor::examine(dump, profile.as_ref());
            has_failures |= !diagnosis.failures.is_empty();
            if options.json {
                reports.push(report::json(&diagnosis, file));
            } else {
                let caps = profile.as_ref().map(|profile| &profile.caps);
                print(&report::text(&diagnosis, file, caps, colour()))?;
            }
        }
    }
    if options.json {
        print(&format!("{:#}", serde_json::Value::Array(reports)))?;
    }
    Ok(ExitCode::from(if has_failures { 2 } else { 0 }))
}

/// Prints a line; a reader that went away is no error.
fn print(text: &str) -> Result<()> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

fn colour() -> Colour {
    let is_wanted = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    if is_wanted {
        Colour::Always
    } else {
        Colour::Never
    }
}

fn read(file: &str) -> Result<String> {
    let mut bytes = Vec::new();
    if file == "-" {
        std::io::stdin().read_to_end(&mut bytes)?;
    } else {
        bytes = std::fs::read(file).with_context(|| format!("cannot read {file}"))?;
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
