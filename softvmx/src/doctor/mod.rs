//! `softvmx doctor`: says which checks of VM entry the VMCSs in a log violate.
//!
//! SDM Vol. 3C, "VM Entries". [`dump`] finds the dumps, [`examine`] judges one by the table of
//! [`vmx_model::checks`], [`report`] prints. What a dump lacks is unknown, and a check that depends on
//! it is *undecided*, never a failure.

pub mod dump;
pub mod report;

use vmx_model::capability::VmxProfile;
use vmx_model::checks::{self, Check, Failure, PartialView, Verdict};
use vmx_model::field::Field;

use dump::{Dump, Fields};

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
    /// How many checks hold.
    pub passed: usize,
}

impl Diagnosis {
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
    let view = PartialView::new(profile.unwrap_or(&any), fields);
    let mut diagnosis = Diagnosis {
        line: dump.line,
        fields: dump.fields.clone(),
        failures: Vec::new(),
        undecided: Vec::new(),
        passed: 0,
    };
    for check in checks::all() {
        let asks = profile.is_none() && ASK_THE_PROCESSOR.contains(&check.id);
        match checks::judge(check, &view) {
            Verdict::Pass => diagnosis.passed += 1,
            Verdict::Fail(offence) if !asks => diagnosis.failures.push(Failure { check, offence }),
            Verdict::Fail(_) | Verdict::Unknown => diagnosis.undecided.push(check),
        }
    }
    diagnosis
}
