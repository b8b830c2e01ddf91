//! `softvmx doctor`: says which checks of VM entry the VMCSs in a log violate.
//!
//! SDM Vol. 3C, "VM Entries". [`dump`] finds the dumps, [`examine`] judges one by the table of
//! [`vmx_model::checks`], [`report`] prints. What a dump lacks is unknown, and a check that depends on
//! it is *undecided*, never a failure.

pub mod dump;
pub mod outcome;
pub mod report;

use vmx_model::capability::VmxProfile;
use vmx_model::checks::{self, Check, Failure, PartialView, Verdict};
use vmx_model::controls::EntryControls;
use vmx_model::field::Field;

use dump::{Dump, Fields};
use outcome::Outcome;
use vmx_model::msr_area::MsrEntry;

/// Checks that ask what the processor supports: undecided as long as it is not known.
const ASK_THE_PROCESSOR: [&str; 20] = [
    "ctl-pin-reserved",
    "ctl-proc-reserved",
    "ctl-proc2-reserved",
    "ctl-proc3-reserved",
    "ctl-vmfunc-reserved",
    "ctl-eptp-memory-type",
    "ctl-eptp-walk-length",
    "ctl-cr3-target-count",
    "exit-ctl-reserved",
    "exit-ctl2-reserved",
    "entry-ctl-reserved",
    "guest-cr4-must-zero",
    "host-cr4-must-zero",
    "guest-cr0-must-one",
    "guest-debugctl",
    "guest-efer-reserved",
    "host-efer-reserved",
    "guest-perf-global-ctrl",
    "host-perf-global-ctrl",
    "guest-activity-reserved",
];

/// What the checks say about a dump.
#[derive(Clone, Debug)]
pub struct Diagnosis {
    /// The line of the log where the dump begins.
    pub line: usize,
    /// What is known of the VMCS.
    pub fields: Fields,
    /// The checks that do not hold, in the SDM's order.
    pub failures: Vec<Failure>,
    /// The checks that could not be decided.
    pub undecided: Vec<&'static Check>,
    /// Of these, the checks that cannot hold if the control words that the dump lacks have their
    /// default1 bits set, as most hypervisors leave them.
    pub suspects: Vec<&'static Check>,
    /// How many checks hold.
    pub passed: usize,
    /// What the processor recorded of the VM entry, if the dump has it.
    pub outcome: Option<Outcome>,
    /// The MSR that could not be loaded, if the log names it.
    pub msr: Option<MsrEntry>,
}

impl Diagnosis {
    /// Returns what the processor recorded, as a sentence.
    #[must_use]
    pub fn recorded(&self) -> Option<String> {
        let outcome = self.outcome?;
        Some(outcome.sentence(self.msr.as_ref()))
    }

    /// Returns the fields that a check reads and the dump lacks; empty if the check asks for the
    /// processor, its state or memory.
    pub fn missing(&self, check: &Check) -> impl Iterator<Item = Field> {
        let inputs = check.inputs.iter().copied();
        inputs.filter(|field| !self.fields.contains_key(field))
    }
}

/// Judges a dump; without a profile, by what any processor may support.
#[must_use]
pub fn examine(dump: &Dump, profile: Option<&VmxProfile>) -> Diagnosis {
    let any = VmxProfile::everything();
    let fields = dump.fields.iter().map(|(&field, &value)| (field, value));
    let view = PartialView::new(profile.unwrap_or(&any), fields.clone());
    let narrow = narrowest();
    let narrow = PartialView::new(&narrow, fields);
    let mut diagnosis = Diagnosis {
        line: dump.line,
        fields: dump.fields.clone(),
        failures: Vec::new(),
        undecided: Vec::new(),
        suspects: Vec::new(),
        passed: 0,
        outcome: Outcome::of(dump),
        msr: dump.msr,
    };
    for check in checks::all() {
        let asks = profile.is_none() && ASK_THE_PROCESSOR.contains(&check.id);
        let depends = || matches!(checks::judge(check, &narrow), Verdict::Fail(_));
        match checks::judge(check, &view) {
            Verdict::Pass if profile.is_none() && depends() => diagnosis.undecided.push(check),
            Verdict::Pass => diagnosis.passed += 1,
            Verdict::Fail(offence) if !asks => diagnosis.failures.push(Failure { check, offence }),
            Verdict::Fail(_) | Verdict::Unknown => diagnosis.undecided.push(check),
        }
    }
    diagnosis.suspects = suspects(&diagnosis, profile.unwrap_or(&any));
    diagnosis
}

/// Returns what any processor may support, but for the narrowest addresses that one with VMX has.
fn narrowest() -> VmxProfile {
    let mut profile = VmxProfile::everything();
    profile.facts.physical_address_bits = 36;
    profile.facts.linear_address_bits = 48;
    profile
}

/// The control words with their default1 class (SDM Vol. 3D, "VMX Capability Reporting Facility",
/// "Reserved Controls and Default Settings").
const DEFAULT1: [(Field, u64); 4] = [
    (Field::PIN_CONTROLS, 0x16),
    (Field::PROC_CONTROLS, 0x0401_e172),
    (Field::EXIT_CONTROLS, 0x3_6dff),
    (Field::ENTRY_CONTROLS, 0x11ff),
];

/// Returns the undecided checks that fail under the default1 settings, be it for a guest in IA-32e
/// mode or for another.
fn suspects(diagnosis: &Diagnosis, profile: &VmxProfile) -> Vec<&'static Check> {
    let fails = |check: &Check, mode: u64| {
        let mut fields = diagnosis.fields.clone();
        for (field, bits) in DEFAULT1 {
            let is_entry = field == Field::ENTRY_CONTROLS;
            let bits = if is_entry { bits | mode } else { bits };
            fields.entry(field).or_insert(bits);
        }
        let view = PartialView::new(profile, fields);
        matches!(checks::judge(check, &view), Verdict::Fail(_))
    };
    let lacks = |check: &Check| diagnosis.missing(check).next().is_some();
    let ia32e = u64::from(EntryControls::IA32E_MODE_GUEST.bits());
    let undecided = diagnosis.undecided.iter().copied();
    undecided
        .filter(|check| lacks(check) && fails(check, 0) && fails(check, ia32e))
        .collect()
}
