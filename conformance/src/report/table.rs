//! The table for people: only the cases of which there is something to say.

use super::verdict_word;
use crate::verdict::{CaseResult, Summary, Verdict};
use comfy_table::{ContentArrangement, Table, presets};

/// Failures, one row for each backend that failed; empty if there are none.
#[must_use]
pub fn failures(summary: &Summary) -> Option<String> {
    let failed = summary.cases.iter().filter(|case| !case.is_accounted_for());
    rows(failed, |verdict| *verdict == Verdict::Fail)
}

/// Everything that is not as wanted or was not run.
#[must_use]
pub fn remarkable(summary: &Summary) -> Option<String> {
    rows(summary.cases.iter(), |verdict| *verdict != Verdict::Pass)
}

fn rows<'c>(
    cases: impl Iterator<Item = &'c CaseResult>,
    worth: impl Fn(&Verdict) -> bool,
) -> Option<String> {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(["case", "backend", "verdict", "wanted", "seen", "reason"]);
    for case in cases {
        for (backend, seen) in case.seen.iter().filter(|(_, seen)| worth(&seen.verdict)) {
            let reason = match &seen.verdict {
                Verdict::Explained { kind, reason } => format!("{kind}: {reason}"),
                Verdict::Skip { reason } => reason.clone(),
                _ => String::new(),
            };
            let word = verdict_word(&seen.verdict);
            table.add_row([
                &case.id,
                backend.as_str(),
                word,
                &case.want,
                &seen.got,
                &reason,
            ]);
        }
    }
    (!table.is_empty()).then(|| table.to_string())
}
