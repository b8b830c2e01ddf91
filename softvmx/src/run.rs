//! `softvmx run IMAGE`: boots an image on the bare machine. Its serial line is standard input and
//! output.

use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use vmx_model::capability::{PROFILE_NAMES, VmxProfile};
use x86_interp::cpuid::Profile;
use x86_machine::{ClockSource, Config, End, Image, Machine, Outcome, SerialLine};

/// What the image runs on.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Kind {
    /// The bare processor, with VMX in root operation.
    #[default]
    Bare,
}

/// What time is.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Time {
    /// A tick per instruction: every run is the same.
    #[default]
    Instructions,
    /// The host's clock.
    Host,
}

/// Arguments of `softvmx run`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// A Linux kernel (bzImage or vmlinux), a multiboot, PVH or ELF image, or a boot sector.
    image: PathBuf,
    /// The machine.
    #[arg(long, value_enum, default_value_t)]
    machine: Kind,
    /// The command line for the image.
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    append: String,
    /// A file that the image finds as its module or initial RAM disk.
    #[arg(long)]
    initrd: Option<PathBuf>,
    /// Processors.
    #[arg(long, default_value_t = 1)]
    cpus: usize,
    /// Memory in MiB.
    #[arg(long, default_value_t = 128)]
    mem: u64,
    /// What time is.
    #[arg(long, value_enum, default_value_t)]
    clock: Time,
    /// Reports uses of VMCSs that the SDM leaves undefined; then the exit status is at least 1.
    #[arg(long)]
    sanitize: bool,
    /// What CPUID offers: default, everything, minimal, or a level: x86-64-v1.
    #[arg(long, default_value = "default")]
    profile: String,
    /// The VMX capabilities, by the name of a processor.
    #[arg(long, default_value = "emulator-default")]
    vmx_profile: String,
}

/// Boots the image; its debug-exit port gives the exit status.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let Kind::Bare = options.machine;
    let read = |path: &PathBuf| {
        std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
    };
    let image = Image {
        bytes: read(&options.image)?,
        command_line: options.append.clone(),
        module: options.initrd.as_ref().map(read).transpose()?,
    };
    let mut machine = Machine::new(&config(options)?, Box::new(std::io::stdout()))?;
    machine
        .load(&image)
        .with_context(|| format!("cannot boot {}", options.image.display()))?;
    let line = machine.serial_line();
    std::thread::spawn(move || type_in(&line));
    let outcome = machine.run(u64::MAX);
    let reports = machine.take_reports();
    for report in &reports {
        eprintln!("softvmx: {report}");
    }
    let status = status_of(&machine, outcome);
    Ok(ExitCode::from(if reports.is_empty() {
        status
    } else {
        status.max(1)
    }))
}

/// Sends standard input to the machine, no faster than it reads.
fn type_in(line: &SerialLine) {
    const ENOUGH: usize = 4096;
    let mut bytes = [0; ENOUGH];
    let mut input = std::io::stdin().lock();
    while let Ok(count @ 1..) = input.read(&mut bytes) {
        line.send(&bytes[..count]);
        while line.unread() > ENOUGH {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn config(options: &Options) -> Result<Config> {
    let cpuid = Profile::by_name(&options.profile)
        .with_context(|| format!("no CPUID profile is called {}", options.profile))?;
    let vmx = VmxProfile::by_name(&options.vmx_profile)
        .with_context(|| format!("VMX profiles are {}", PROFILE_NAMES.join(", ")))?;
    Ok(Config {
        cpus: options.cpus,
        memory_mib: options.mem,
        clock: match options.clock {
            Time::Instructions => ClockSource::Instructions,
            Time::Host => ClockSource::Host,
        },
        cpuid,
        vmx,
        sanitizes: options.sanitize,
    })
}

/// Returns the exit status; what is not the image's own wish is said, and is 125.
fn status_of(machine: &Machine, outcome: Outcome) -> u8 {
    const FAILED: u8 = 125;
    match outcome {
        Outcome::End(End::DebugExit(value)) => (value << 1 | 1) as u8,
        Outcome::End(End::Reset | End::PowerOff) => 0,
        other => {
            eprintln!("softvmx: {other:x?}");
            for cpu in (0..).map_while(|n| machine.processor(n)) {
                let state = cpu.arch_state();
                eprintln!("softvmx: rip {:#x}, {:?}", state.rip, state.activity);
            }
            FAILED
        }
    }
}
