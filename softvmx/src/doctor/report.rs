//! What the doctor found, as text and as JSON.

use serde_json::{Value, json};
use vmx_model::capability::VmxCapabilities;
use vmx_model::checks::{Consequence, Failure};
use vmx_model::field::Field;

use super::Diagnosis;

/// Whether text is coloured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colour {
    /// With the escape sequences of a terminal.
    Always,
    /// Plain.
    Never,
}

impl Colour {
    fn paint(self, code: &str, text: &str) -> String {
        match self {
            Self::Always => format!("\x1b[{code}m{text}\x1b[0m"),
            Self::Never => text.to_owned(),
        }
    }
}

/// Returns how VM entry ends.
#[must_use]
pub const fn consequence(consequence: Consequence) -> &'static str {
    match consequence {
        Consequence::InvalidControls => "VMfailValid(7), invalid control field(s)",
        Consequence::InvalidHostState => "VMfailValid(8), invalid host-state field(s)",
        Consequence::InvalidGuestState => "exit reason 33, invalid guest state",
    }
}

/// Returns a diagnosis as text.
#[must_use]
pub fn text(
    diagnosis: &Diagnosis,
    source: &str,
    caps: Option<&VmxCapabilities>,
    colour: Colour,
) -> String {
    let at = format!("{source}:{}", diagnosis.line);
    let counts = format!(
        "{} fields known; {} checks hold, {} do not, {} undecided",
        diagnosis.fields.len(),
        diagnosis.passed,
        diagnosis.failures.len(),
        diagnosis.undecided.len(),
    );
    let mut lines = vec![format!("{}: {counts}", colour.paint("1", &at))];
    lines.extend(
        diagnosis
            .recorded()
            .map(|said| format!("  recorded: {said}")),
    );
    for failure in &diagnosis.failures {
        failure_lines(diagnosis, failure, caps, colour, &mut lines);
    }
    for check in &diagnosis.suspects {
        let suspect = format!("suspect: {}", check.id);
        let suspect = colour.paint("33", &suspect);
        lines.push(format!(
            "  {suspect} {}\n    does not hold if the controls that the dump lacks are the default1 ones",
            check.sentence
        ));
    }
    if !diagnosis.undecided.is_empty() {
        lines.push(colour.paint("2", "  undecided:"));
    }
    for check in &diagnosis.undecided {
        let reason = format!("    {}: {}", check.id, why(diagnosis, check));
        lines.push(colour.paint("2", &reason));
    }
    lines.join("\n")
}

fn why(diagnosis: &Diagnosis, check: &vmx_model::checks::Check) -> String {
    let missing: Vec<&str> = diagnosis.missing(check).map(Field::id).collect();
    if missing.is_empty() {
        "depends on the processor, its state or memory".to_owned()
    } else {
        format!("the dump lacks {}", missing.join(", "))
    }
}

fn failure_lines(
    diagnosis: &Diagnosis,
    failure: &Failure,
    caps: Option<&VmxCapabilities>,
    colour: Colour,
    lines: &mut Vec<String>,
) {
    let check = failure.check;
    lines.push(format!(
        "  {} {}",
        colour.paint("1;31", check.id),
        check.sentence
    ));
    lines.push(format!(
        "    SDM Vol. 3C, \"{}\"; {}",
        check.group.section(),
        consequence(check.group.consequence()),
    ));
    let mut shown: Vec<Field> = vec![failure.offence.field];
    shown.extend(check.inputs.iter().filter(|f| **f != failure.offence.field));
    for field in shown {
        let Some(value) = diagnosis.fields.get(&field) else {
            continue;
        };
        let mut line = format!("    {} = {value:#x}", field.name());
        if field == failure.offence.field && failure.offence.bits != 0 {
            let bits = format!("{:#x}", failure.offence.bits);
            line.push_str(&format!(", bits {}", colour.paint("33", &bits)));
        }
        if let Some((must1, may1)) = caps.and_then(|caps| allowed(field, caps)) {
            line.push_str(&format!("; must be 1: {must1:#x}, may be 1: {may1:#x}"));
        }
        lines.push(line);
    }
}

/// Returns the bits of a field that a processor wants to be 1, and those that it allows to be 1.
fn allowed(field: Field, caps: &VmxCapabilities) -> Option<(u64, u64)> {
    let pair = |allowed: vmx_model::capability::Allowed| {
        Some((u64::from(allowed.must1), u64::from(allowed.may1)))
    };
    match field {
        Field::PIN_CONTROLS => pair(caps.pin()),
        Field::PROC_CONTROLS => pair(caps.proc()),
        Field::SECONDARY_PROC_CONTROLS => pair(caps.secondary()),
        Field::EXIT_CONTROLS => pair(caps.exit()),
        Field::ENTRY_CONTROLS => pair(caps.entry()),
        Field::GUEST_CR0 | Field::HOST_CR0 => Some((caps.cr0_fixed0(), caps.cr0_fixed1())),
        Field::GUEST_CR4 | Field::HOST_CR4 => Some((caps.cr4_fixed0(), caps.cr4_fixed1())),
        _ => None,
    }
}

/// Returns a diagnosis as JSON.
#[must_use]
pub fn json(diagnosis: &Diagnosis, source: &str) -> Value {
    let failures = diagnosis.failures.iter().map(|failure| {
        let offence = failure.offence;
        json!({
            "check": failure.check.id,
            "sentence": failure.check.sentence,
            "section": failure.check.group.section(),
            "result": consequence(failure.check.group.consequence()),
            "field": offence.field.id(),
            "bits": format!("{:#x}", offence.bits),
            "found": diagnosis.fields.get(&offence.field).map(|v| format!("{v:#x}")),
        })
    });
    let undecided = diagnosis.undecided.iter().map(|check| {
        let missing: Vec<&str> = diagnosis.missing(check).map(Field::id).collect();
        json!({ "check": check.id, "missing": missing })
    });
    json!({
        "source": source,
        "line": diagnosis.line,
        "recorded": diagnosis.recorded(),
        "passed": diagnosis.passed,
        "suspects": diagnosis.suspects.iter().map(|check| check.id).collect::<Vec<_>>(),
        "failures": failures.collect::<Vec<_>>(),
        "undecided": undecided.collect::<Vec<_>>(),
    })
}
