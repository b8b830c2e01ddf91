//! The reports: a table for people, JSON and JUnit XML for machines, HTML for bug reports.

pub mod html;
pub mod junit;
pub mod table;

use crate::verdict::Verdict;

/// The word for a verdict.
#[must_use]
pub fn verdict_word(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Pass => "pass",
        Verdict::Fail => "FAIL",
        Verdict::Explained { .. } => "explained",
        Verdict::Skip { .. } => "skip",
    }
}

/// Text with the characters that XML and HTML reserve replaced.
#[must_use]
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn reserved_characters_are_replaced() {
        assert_eq!(
            super::escaped("in:0x60/1<77 \"&\""),
            "in:0x60/1&lt;77 &quot;&amp;&quot;"
        );
    }
}
