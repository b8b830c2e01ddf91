//! `softvmx trace`: the VMX operations of the software in VMX root operation.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use kvm_api::Kvm;
use kvm_api::trace::{self, Phase, VmxOperation};

/// What to trace.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// From the first KVM_CREATE_VM to the end of KVM_CREATE_VCPU.
    CreateVcpu(Format),
}

/// How to print it.
#[derive(Debug, Args)]
pub(crate) struct Format {
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
}

/// Traces and prints.
pub(crate) fn run(command: &Command) -> Result<ExitCode> {
    let Command::CreateVcpu(format) = command;
    let operations = trace::create_vcpu(&Kvm::new()).context("creating a vCPU")?;
    let mut output = io::stdout().lock();
    for operation in &operations {
        let printed = if format.json {
            writeln!(output, "{}", serde_json::to_string(operation)?)
        } else {
            writeln!(output, "{}", line(operation))
        };
        match printed {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => break,
            other => other?,
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn line(operation: &VmxOperation) -> String {
    let phase = match operation.phase {
        Phase::Enable => "enable",
        Phase::Create => "create",
    };
    let field = operation.field.unwrap_or_default();
    let value = operation
        .value
        .map_or_else(String::new, |v| format!("{v:#x}"));
    format!("{phase} {:8} {field:32} {value}", operation.op)
        .trim_end()
        .to_owned()
}
