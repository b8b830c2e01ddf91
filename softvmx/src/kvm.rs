//! `softvmx kvm -- COMMAND`: runs an unmodified, dynamically linked program under the preload
//! library.

use std::env;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use clap::Args;

/// The library's file name.
const LIBRARY: &str = "libkvm_preload.so";
/// Names the library's path.
const VARIABLE: &str = "SOFTVMX_PRELOAD";

/// Names the processor to the library.
const PROCESSOR: &str = "SOFTVMX_CPU";

/// Arguments of `softvmx kvm`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The processor on which KVM runs, by the name of a CPUID profile; what
    /// KVM_GET_SUPPORTED_CPUID offers follows.
    #[arg(long, value_name = "PROFILE")]
    cpu: Option<String>,
    /// The program and its arguments.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    command: Vec<OsString>,
}

/// Replaces this process by the program; returns only if that fails.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let library = find_library()?;
    let (program, arguments) = options.command.split_first().context("no program")?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("LD_PRELOAD", preload_list(&library));
    if let Some(name) = &options.cpu {
        kvm_api::choose_processor(name)?;
        command.env(PROCESSOR, name);
    }
    let error = command.exec();
    Err(error).with_context(|| format!("cannot run {}", program.display()))
}

/// Puts the library before what is preloaded already.
fn preload_list(library: &Path) -> OsString {
    let mut list = library.as_os_str().to_owned();
    if let Some(others) = env::var_os("LD_PRELOAD").filter(|o| !o.is_empty()) {
        list.push(":");
        list.push(others);
    }
    list
}

/// Finds the library: `SOFTVMX_PRELOAD`, beside this executable, or in `../lib`.
fn find_library() -> Result<PathBuf> {
    if let Some(path) = env::var_os(VARIABLE).map(PathBuf::from) {
        if path.is_file() {
            return Ok(path);
        }
        bail!("{VARIABLE} names {}, which is not a file", path.display());
    }
    let executable = env::current_exe().context("cannot find this executable")?;
    let folder = executable
        .parent()
        .context("this executable is in no folder")?;
    let candidates = [folder.join(LIBRARY), folder.join("../lib").join(LIBRARY)];
    match candidates.iter().find(|path| path.is_file()) {
        Some(path) => Ok(path.clone()),
        None => bail!(
            "{LIBRARY} is neither in {} nor in its ../lib; build it with \
             `cargo build -p kvm-preload`, or name it with {VARIABLE}",
            folder.display()
        ),
    }
}
