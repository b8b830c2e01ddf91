//! Engines that are other programs: the image boots from a disk, the marks come through a pipe.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use benches::image::{BEGIN, END, Image};
use benches::programs::Group;
use tempfile::TempDir;

use crate::engine::{Engine, Measurement};

/// Longest that a machine may take to boot and run.
const PATIENCE: Duration = Duration::from_secs(120);

/// Debian's Bochs, package `bochs`.
pub(crate) struct Bochs;

impl Engine for Bochs {
    fn name(&self) -> &'static str {
        "bochs"
    }

    fn check(&self) -> Result<()> {
        ensure!(
            find("bochs"),
            "bochs is not installed (Debian: bochs bochsbios vgabios)"
        );
        ensure!(
            Path::new(BOCHS_BIOS).exists(),
            "{BOCHS_BIOS} is not installed"
        );
        Ok(())
    }

    fn runs(&self, _: Group) -> bool {
        true
    }

    fn run(&mut self, image: &Image) -> Result<Measurement> {
        let folder = TempDir::new()?;
        let at = |name: &str| folder.path().join(name).display().to_string();
        fs::write(at("disk"), image.disk())?;
        // Debian's build has the debugger in it: the command file lets it continue.
        fs::write(at("commands"), "c\n")?;
        fs::write(at("bochsrc"), bochsrc(&at("disk"), &at("log")))?;
        let mut command = Command::new("bochs");
        command.args(["-q", "-f", &at("bochsrc"), "-rc", &at("commands")]);
        watch(command)
    }
}

const BOCHS_BIOS: &str = "/usr/share/bochs/BIOS-bochs-latest";

fn bochsrc(disk: &str, log: &str) -> String {
    format!(
        "config_interface: textconfig\n\
         display_library: rfb, options=\"timeout=0\"\n\
         romimage: file={BOCHS_BIOS}\n\
         vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest\n\
         megs: 64\n\
         cpu: model=corei7_haswell_4770, ips=500000000\n\
         clock: sync=none\n\
         sound: driver=dummy, waveoutdrv=dummy\n\
         port_e9_hack: enabled=1\n\
         ata0: enabled=1\n\
         ata0-master: type=disk, path=\"{disk}\", mode=flat, cylinders=20, heads=16, spt=63\n\
         boot: disk\n\
         log: {log}\n"
    )
}

/// Debian's QEMU, package `qemu-system-x86`.
pub(crate) struct Qemu;

impl Engine for Qemu {
    fn name(&self) -> &'static str {
        "qemu-tcg"
    }

    fn check(&self) -> Result<()> {
        ensure!(
            find("qemu-system-x86_64"),
            "qemu-system-x86_64 is not installed"
        );
        Ok(())
    }

    fn run(&mut self, image: &Image) -> Result<Measurement> {
        let folder = TempDir::new()?;
        let disk = folder.path().join("disk");
        fs::write(&disk, image.disk())?;
        let drive = format!("file={},format=raw", disk.display());
        let mut command = Command::new("qemu-system-x86_64");
        command.args([
            "-accel",
            "tcg",
            "-cpu",
            "max",
            "-m",
            "64",
            "-nodefaults",
            "-display",
            "none",
        ]);
        command.args([
            "-vga",
            "none",
            "-device",
            "isa-debug-exit,iobase=0xf4,iosize=4",
        ]);
        command.args(["-drive", &drive, "-debugcon", "stdio"]);
        watch(command)
    }
}

fn find(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// A child that does not outlive us.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a machine and takes the time between the marks in its output.
fn watch(mut command: Command) -> Result<Measurement> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut machine = Machine(command.spawn().context("cannot start")?);
    let mut output = machine.0.stdout.take().context("no output")?;
    let started = Instant::now();
    let (mut begin, mut seconds, mut digits) = (None, None, Vec::new());
    let mut byte = [0];
    while started.elapsed() < PATIENCE {
        if output.read(&mut byte)? == 0 {
            bail!("the machine ended without a result");
        }
        match (byte[0], begin, seconds) {
            (BEGIN, _, None) => begin = Some(Instant::now()),
            (END, Some(at), None) => seconds = Some(Instant::now().duration_since(at)),
            (b'\n', _, Some(time)) if digits.len() == 16 => {
                let text = std::str::from_utf8(&digits)?;
                let result = u64::from_str_radix(text, 16)?;
                return Ok(Measurement {
                    seconds: time.as_secs_f64(),
                    result,
                });
            }
            (digit, _, Some(_)) => digits.push(digit),
            _ => {}
        }
    }
    bail!("no result in {} s", PATIENCE.as_secs())
}
