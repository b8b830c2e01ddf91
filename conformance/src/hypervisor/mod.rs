//! Hypervisors: an image for a bare machine whose code is in VMX root operation, enters a guest and
//! writes down each VM exit.
//!
//! [`image`] lays the image out: a multiboot ELF file that needs nothing but a processor with VMX;
//! `root` is its code. The VMCS begins as a valid one of `vmx_model::sample`, changed by the case;
//! the hypervisor writes it by VMWRITE. SDM Vol. 3C, "VMX Instruction Reference", "VM Entries" and
//! "VM Exits".

pub mod image;
mod root;

use crate::backend::Outcome;
use crate::guest::Code;
use crate::probe::Probe;
use iced_x86::IcedError;
use iced_x86::code_asm::CodeAssembler;
use vmx_model::capability::VmxProfile;
use vmx_model::field::Field;
use vmx_model::sample::{self, Guest as Mode};
use vmx_model::vmcs::Vmcs;

/// No hypervisor of a case runs longer, in ticks of the machine's clock.
const LIMIT_TICKS: u64 = 2_000_000;

/// How a hypervisor ends: the value that it writes to the debug-exit port.
mod end {
    /// All exits were seen.
    pub(super) const DONE: u32 = 1;
    /// VM entry failed with the VM-instruction error in the first result.
    pub(super) const ENTRY_FAILED: u32 = 2;
    /// Another VMX instruction failed; its place is the first result.
    pub(super) const FAILED: u32 = 3;
    /// VMXON succeeded, and that was all.
    pub(super) const VMX_OPERATION: u32 = 4;
    /// An exception or NMI in root operation, or before VMXON, in bits 15:8 the vector; the first
    /// result is the error code.
    pub(super) const EXCEPTION: u32 = 5;
}

/// What the hypervisor does before it enters the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// It goes to 64-bit mode, executes VMXON and enters the guest.
    Enter,
    /// It executes VMXON in protected mode without paging, and that is all.
    VmxonUnpaged,
    /// It executes VMXON in 64-bit mode, and that is all.
    VmxonPaged,
}

/// A row of a table of cases.
#[derive(Clone)]
pub struct Hypervisor {
    /// The name of the case in its group.
    pub id: &'static str,
    /// What is to be seen: for each exit the fields that are read, or why there was none.
    pub want: &'static str,
    start: Start,
    mode: Mode,
    code: Code,
    change: fn(&mut Vmcs),
    between: Code,
    exits: usize,
    fields: &'static [Field],
    words: &'static [u64],
}

/// A hypervisor that enters a guest of this mode with this code, once.
#[must_use]
pub fn hypervisor(id: &'static str, mode: Mode, code: Code, want: &'static str) -> Hypervisor {
    Hypervisor {
        id,
        want,
        start: Start::Enter,
        mode,
        code,
        change: |_| {},
        between: |_| Ok(()),
        exits: 1,
        fields: &[Field::EXIT_REASON],
        words: &[],
    }
}

/// A hypervisor that executes VMXON and has no guest.
#[must_use]
pub fn vmxon(id: &'static str, start: Start, want: &'static str) -> Hypervisor {
    Hypervisor {
        start,
        ..hypervisor(id, Mode::Long, |_| Ok(()), want)
    }
}

impl Hypervisor {
    /// What its VMCS has else than the sample.
    #[must_use]
    pub fn vmcs(self, change: fn(&mut Vmcs)) -> Self {
        Self { change, ..self }
    }

    /// The fields that it reads at each exit.
    #[must_use]
    pub fn reads(self, fields: &'static [Field]) -> Self {
        Self { fields, ..self }
    }

    /// The 64-bit words of memory that are looked at in the end, by address.
    #[must_use]
    pub fn words(self, words: &'static [u64]) -> Self {
        Self { words, ..self }
    }

    /// So many exits; between them it executes this and VMRESUME. The guest goes on where it was.
    #[must_use]
    pub fn resumes(self, exits: usize, between: Code) -> Self {
        Self {
            exits,
            between,
            ..self
        }
    }

    /// The image.
    ///
    /// # Errors
    /// If its code cannot be encoded.
    pub fn image(&self) -> Result<Vec<u8>, IcedError> {
        let profile = VmxProfile::emulator_default();
        let mut vmcs = sample::valid_vmcs(&profile, self.mode);
        image::adapt(&mut vmcs, self.mode);
        (self.change)(&mut vmcs);
        let bits = match self.mode {
            Mode::Long => 64,
            Mode::Protected | Mode::Pae | Mode::Unpaged => 32,
            Mode::Virtual8086 | Mode::Real => 16,
        };
        Ok(image::Image {
            entry: root::protected(self.start)?,
            enter: root::enter(self.start)?,
            exit: root::exit(self.between)?,
            handlers: root::handlers()?,
            guest: assemble(bits, image::GUEST, self.code)?,
            nmi: assemble(bits, image::GUEST_NMI, |a| a.vmcall())?,
            vmcs,
            fields: self.fields,
            exits: self.exits,
        }
        .elf())
    }

    /// Runs it and notes what was seen.
    pub fn play(&self, probe: &mut Probe<'_>) {
        let image = match self.image() {
            Ok(image) => image,
            Err(error) => return probe.check("", self.want, &error.to_string()),
        };
        let results = (self.exits * self.fields.len().max(1) * 8) as u32;
        let mut reads = vec![(image::RESULTS, results)];
        reads.extend(self.words.iter().map(|at| (*at, 8)));
        let (outcome, bytes) = probe.machine(image, &reads, LIMIT_TICKS);
        let words: Vec<u64> = bytes
            .chunks_exact(8)
            .map(|word| word.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b)))
            .collect();
        probe.check("", self.want, &self.describe(outcome, &words));
    }

    /// What was seen, in the words of the expectation.
    fn describe(&self, outcome: Outcome, words: &[u64]) -> String {
        let first = words.first().copied().unwrap_or_default();
        let value = match outcome {
            Ok(value) => value as u32,
            Err(errno) => return errno.to_string(),
        };
        match value & 0xff {
            end::DONE => self.describe_exits(words),
            end::ENTRY_FAILED => format!("VMfailValid({first})"),
            end::FAILED => format!("a VMX instruction failed (step {first:#x})"),
            end::VMX_OPERATION => "VMX operation".to_owned(),
            end::EXCEPTION => format!("exception {} ({first:#x})", value >> 8),
            _ => format!("ended with {value:#x}"),
        }
    }

    fn describe_exits(&self, words: &[u64]) -> String {
        let (exits, memory) = words.split_at(words.len().min(self.exits * self.fields.len()));
        let mut parts: Vec<String> = exits
            .chunks(self.fields.len().max(1))
            .map(|exit| {
                let pairs = self.fields.iter().zip(exit);
                let each = pairs.map(|(field, value)| format!("{}={value:#x}", field.id()));
                each.collect::<Vec<_>>().join(" ")
            })
            .collect();
        let pairs = self.words.iter().zip(memory);
        parts.extend(pairs.map(|(at, word)| format!("[{at:#x}]={word:#x}")));
        parts.join("; ")
    }
}

fn assemble(
    bits: u32,
    at: u64,
    code: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(bits)?;
    code(&mut a)?;
    if a.instructions().is_empty() {
        return Ok(Vec::new());
    }
    a.assemble(at)
}
