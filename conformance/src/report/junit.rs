//! JUnit XML: one test suite for each backend.

use super::escaped;
use crate::backend::BackendName;
use crate::verdict::{CaseResult, Seen, Summary, Verdict};

/// The report.
#[must_use]
pub fn render(summary: &Summary) -> String {
    let mut out = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n");
    for (backend, tally) in &summary.tallies {
        let tests = tally.passed + tally.failed + tally.skipped + tally.explained;
        out.push_str(&format!(
            "  <testsuite name=\"{backend}\" tests=\"{tests}\" failures=\"{}\" skipped=\"{}\">\n",
            tally.failed,
            tally.skipped + tally.explained
        ));
        let cases = summary.cases.iter();
        cases
            .filter_map(|case| test_case(*backend, case))
            .for_each(|text| out.push_str(&text));
        out.push_str("  </testsuite>\n");
    }
    out.push_str("</testsuites>\n");
    out
}

fn test_case(backend: BackendName, case: &CaseResult) -> Option<String> {
    let seen = case.seen.get(&backend)?;
    let (group, name) = case.id.split_once('.').unwrap_or(("", &case.id));
    let body = body(case, seen);
    let head = format!(
        "    <testcase classname=\"{}\" name=\"{}\"",
        escaped(group),
        escaped(name)
    );
    Some(if body.is_empty() {
        format!("{head}/>\n")
    } else {
        format!("{head}>{body}</testcase>\n")
    })
}

fn body(case: &CaseResult, seen: &Seen) -> String {
    let seen_text = || {
        format!(
            "wanted: {}\nseen: {}",
            escaped(&case.want),
            escaped(&seen.got)
        )
    };
    match &seen.verdict {
        Verdict::Pass => String::new(),
        Verdict::Fail => format!(
            "<failure message=\"not as wanted\">{}</failure>",
            seen_text()
        ),
        Verdict::Explained { kind, reason } => {
            format!("<skipped message=\"{kind}: {}\"/>", escaped(reason))
        }
        Verdict::Skip { reason } => format!("<skipped message=\"{}\"/>", escaped(reason)),
    }
}
