//! The softvmx command line.

mod diagnose;
mod explain;
mod kvm;
mod run;
mod trace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// An Intel VT-x processor and a KVM, in user space.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Boots an image on the bare machine.
    Run(run::Options),
    /// Runs a program whose /dev/kvm is softvmx.
    Kvm(kvm::Options),
    /// Prints what the software in VMX root operation does.
    #[command(subcommand)]
    Trace(trace::Command),
    /// Prints what the tables know of a VMCS field, an exit reason, an instruction error or a check.
    Explain(explain::Options),
    /// Says which checks of VM entry the VMCS dumps in a log violate.
    Doctor(diagnose::Options),
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("softvmx: {error:#}");
            ExitCode::from(1)
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode> {
    match cli.command {
        Command::Run(options) => run::run(&options),
        Command::Kvm(options) => kvm::run(&options),
        Command::Trace(command) => trace::run(&command),
        Command::Explain(options) => explain::run(&options),
        Command::Doctor(options) => diagnose::run(&options),
    }
}
