//! The differences that are known and accepted: `known_differences.toml`.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Why a difference is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The processor may do either.
    HardwareRule,
    /// Any KVM does so.
    KvmQuirk,
    /// This host's KVM does so.
    HostKvmQuirk,
    /// The emulator does not do it yet.
    OurGap,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::HardwareRule => "hardware rule",
            Kind::KvmQuirk => "KVM quirk",
            Kind::HostKvmQuirk => "quirk of this host's KVM",
            Kind::OurGap => "our gap",
        })
    }
}

/// One accepted difference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KnownDifference {
    /// Ids of results, or globs.
    pub cases: Vec<String>,
    /// Who differs: `emulated`, or the KVM of a host.
    pub kvm: String,
    /// Why it is accepted.
    pub kind: Kind,
    /// The same in a sentence.
    pub reason: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    difference: Vec<KnownDifference>,
}

/// The entries of the file.
///
/// # Panics
/// If the file, which is part of the program, is malformed.
#[must_use]
pub fn differences() -> Vec<KnownDifference> {
    let file: File = toml::from_str(include_str!("../known_differences.toml"))
        .expect("the file is part of the program and tested");
    file.difference
}

impl KnownDifference {
    /// Whether it speaks of this result of this KVM.
    #[must_use]
    pub fn covers(&self, id: &str, kvm: &str) -> bool {
        self.kvm == kvm && self.cases.iter().any(|pattern| matches(pattern, id))
    }
}

/// Whether an id matches a glob in which `*` stands for any characters.
#[must_use]
pub fn matches(pattern: &str, id: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == id,
        Some((head, rest)) => id.strip_prefix(head).is_some_and(|tail| {
            (0..=tail.len()).any(|at| tail.is_char_boundary(at) && matches(rest, &tail[at..]))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_glob_matches_whole_ids() {
        assert!(matches("run.*", "run.hlt"));
        assert!(matches("run.*_cont", "run.in_al_cont"));
        assert!(!matches("run.*_cont", "run.in_al"));
        assert!(!matches("run", "run.hlt"));
        assert!(matches("*", "anything"));
    }

    #[test]
    fn every_entry_gives_a_reason() {
        for entry in differences() {
            assert!(
                !entry.reason.is_empty() && !entry.cases.is_empty(),
                "{entry:?}"
            );
        }
    }
}
