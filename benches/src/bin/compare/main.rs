//! Runs the same guest images on this project's emulator, Debian's Bochs, Debian's QEMU
//! (`-accel tcg`) and the real /dev/kvm, one after the other in one run, checks that the results
//! agree, and prints MIPS and ratios.
//!
//! Iterations are scaled so that each engine runs about as long. An engine that is not installed
//! is skipped by name.

mod engine;
mod process;
mod vm;

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use benches::bare;
use benches::image::Image;
use benches::programs::{Bits, Group, PROGRAMS, Program};
use clap::Parser;
use comfy_table::{CellAlignment, Table};

use engine::{Engine, Measurement};

/// Compares engines on the same guests.
#[derive(Debug, Parser)]
struct Options {
    /// Only programs whose name contains this.
    #[arg(default_value = "")]
    filter: String,
    /// Only these engines (by name), separated by commas.
    #[arg(long, value_delimiter = ',')]
    engines: Vec<String>,
    /// Seconds that each measured run should take.
    #[arg(long, default_value_t = 0.5)]
    seconds: f64,
    /// Measured runs per program and engine; the fastest counts.
    #[arg(long, default_value_t = 3)]
    runs: u32,
}

/// The engine that the others are divided by.
const BASELINE: &str = "bochs";

fn main() -> Result<()> {
    let options = Options::parse();
    let mut engines = engine::all();
    engines.retain(|e| options.engines.is_empty() || options.engines.contains(&e.name().into()));
    engines.retain(|e| match e.check() {
        Ok(()) => true,
        Err(reason) => {
            println!("{}: skipped: {reason:#}", e.name());
            false
        }
    });
    let programs: Vec<_> = PROGRAMS
        .iter()
        .filter(|p| p.name.contains(&options.filter))
        .collect();
    let mut report = Report::default();
    for program in &programs {
        for engine in engines.iter_mut().filter(|e| e.runs(program.group)) {
            let outcome = measure(engine.as_mut(), program, &options);
            report.add(program, engine.name(), outcome);
        }
    }
    let names: Vec<_> = engines.iter().map(|e| e.name()).collect();
    report.print(&programs, &names);
    ensure!(
        report.failures.is_empty(),
        "{} runs failed",
        report.failures.len()
    );
    Ok(())
}

/// Finds a number of iterations that takes about the wanted time, then takes the fastest of the
/// measured runs. Returns instructions per microsecond.
fn measure(engine: &mut dyn Engine, program: &Program, options: &Options) -> Result<f64> {
    let mut iterations = engine.first_iterations(program);
    let mut best = run_checked(engine, program, iterations)?;
    while best.seconds < options.seconds / 4.0 && iterations < u32::MAX / 64 {
        let factor = (options.seconds / best.seconds.max(1e-4)).clamp(2.0, 50.0);
        iterations = (f64::from(iterations) * factor) as u32;
        best = run_checked(engine, program, iterations)?;
    }
    for _ in 1..options.runs {
        let next = run_checked(engine, program, iterations)?;
        if next.seconds < best.seconds {
            best = next;
        }
    }
    Ok(bare::instructions(program, iterations)? as f64 / best.seconds / 1e6)
}

fn run_checked(engine: &mut dyn Engine, program: &Program, n: u32) -> Result<Measurement> {
    let image = Image::new(program, n);
    let measured = engine
        .run(&image)
        .with_context(|| format!("{} x{n}", program.name))?;
    let mut expected = program.expected(n, Image::DATA);
    if program.bits == Bits::Flat32 {
        expected &= 0xffff_ffff;
    }
    ensure!(
        measured.result == expected,
        "{} x{n}: result {:#x}, expected {expected:#x}",
        program.name,
        measured.result
    );
    Ok(measured)
}

#[derive(Default)]
struct Report {
    /// MIPS by program and engine.
    mips: BTreeMap<(&'static str, &'static str), f64>,
    failures: Vec<String>,
}

impl Report {
    fn add(&mut self, program: &Program, engine: &'static str, outcome: Result<f64>) {
        match outcome {
            Ok(mips) => {
                eprintln!("{engine:14} {:8} {mips:10.2} MIPS", program.name);
                self.mips.insert((program.name, engine), mips);
            }
            Err(e) => {
                eprintln!("{engine:14} {:8} FAILED: {e:#}", program.name);
                self.failures
                    .push(format!("{engine} {}: {e:#}", program.name));
            }
        }
    }

    fn print(&self, programs: &[&Program], engines: &[&'static str]) {
        let mut table = Table::new();
        let mut header = vec!["MIPS".to_owned()];
        header.extend(engines.iter().map(|e| (*e).to_owned()));
        let ratios: Vec<_> = engines.iter().filter(|e| **e != BASELINE).collect();
        header.extend(ratios.iter().map(|e| format!("{e} / {BASELINE}")));
        table.set_header(header);
        for program in programs {
            let mut row = vec![program.name.to_owned()];
            row.extend(engines.iter().map(|e| self.cell(program, e)));
            row.extend(ratios.iter().map(|e| show(self.ratio(program, e))));
            table.add_row(row);
        }
        for group in Group::ALL {
            let members: Vec<_> = programs.iter().filter(|p| p.group == group).collect();
            if members.is_empty() {
                continue;
            }
            let mut row = vec![format!("geomean {} ({})", group.name(), members.len())];
            let mean = |f: &dyn Fn(&Program) -> Option<f64>| {
                geomean(members.iter().map(|p| f(p)).collect::<Option<Vec<_>>>())
            };
            row.extend(engines.iter().map(|e| show(mean(&|p| self.get(p, e)))));
            row.extend(ratios.iter().map(|e| show(mean(&|p| self.ratio(p, e)))));
            table.add_row(row);
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        println!("{table}");
        for failure in &self.failures {
            println!("failed: {failure}");
        }
        println!(
            "results: {} runs agree with the expected values",
            self.mips.len()
        );
    }

    fn get(&self, program: &Program, engine: &'static str) -> Option<f64> {
        self.mips.get(&(program.name, engine)).copied()
    }

    fn ratio(&self, program: &Program, engine: &'static str) -> Option<f64> {
        Some(self.get(program, engine)? / self.get(program, BASELINE)?)
    }

    fn cell(&self, program: &Program, engine: &'static str) -> String {
        show(self.get(program, engine))
    }
}

fn show(value: Option<f64>) -> String {
    value.map_or_else(
        || "-".to_owned(),
        |v| {
            if v < 10.0 {
                format!("{v:.2}")
            } else {
                format!("{v:.0}")
            }
        },
    )
}

/// Returns the geometric mean; `None` if there are no values or some are missing.
fn geomean(values: Option<Vec<f64>>) -> Option<f64> {
    let values = values.filter(|v| !v.is_empty())?;
    Some((values.iter().map(|v| v.ln()).sum::<f64>() / values.len() as f64).exp())
}
