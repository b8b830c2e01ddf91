//! One HTML page that needs nothing else, for bug reports.

use super::{escaped, verdict_word};
use crate::verdict::{CaseResult, Summary, Verdict};

const STYLE: &str = "body{font:14px sans-serif;margin:2em}table{border-collapse:collapse}\
td,th{border:1px solid #ccc;padding:2px 8px;text-align:left;vertical-align:top}\
code{font:12px monospace;white-space:pre-wrap}.fail{background:#fdd}.explained{background:#ffd}\
.skip{color:#888}.pass{color:#080}";

/// The page.
#[must_use]
pub fn render(summary: &Summary) -> String {
    let mut out = format!(
        "<!DOCTYPE html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <title>conformance</title><style>{STYLE}</style></head><body><h1>conformance</h1><ul>"
    );
    for line in summary.closing_lines() {
        out.push_str(&format!("<li>{}</li>", escaped(&line)));
    }
    for entry in &summary.stale {
        out.push_str(&format!(
            "<li class=\"fail\">stale entry: {}</li>",
            escaped(entry)
        ));
    }
    out.push_str("</ul><table><tr><th>case</th><th>wanted</th>");
    for backend in summary.tallies.keys() {
        out.push_str(&format!("<th>{backend}</th>"));
    }
    out.push_str("</tr>\n");
    summary
        .cases
        .iter()
        .for_each(|case| out.push_str(&row(summary, case)));
    out.push_str("</table></body></html>\n");
    out
}

fn row(summary: &Summary, case: &CaseResult) -> String {
    let (id, want) = (escaped(&case.id), escaped(&case.want));
    let mut out = format!("<tr><td>{id}</td><td><code>{want}</code></td>");
    for backend in summary.tallies.keys() {
        let Some(seen) = case.seen.get(backend) else {
            out.push_str("<td></td>");
            continue;
        };
        let word = verdict_word(&seen.verdict);
        let details = match &seen.verdict {
            Verdict::Pass => String::new(),
            Verdict::Fail => format!("<br><code>{}</code>", escaped(&seen.got)),
            Verdict::Explained { kind, reason } => {
                let got = escaped(&seen.got);
                format!("<br><code>{got}</code><br>{kind}: {}", escaped(reason))
            }
            Verdict::Skip { reason } => format!("<br>{}", escaped(reason)),
        };
        out.push_str(&format!(
            "<td class=\"{}\">{word}{details}</td>",
            word.to_lowercase()
        ));
    }
    out.push_str("</tr>\n");
    out
}
