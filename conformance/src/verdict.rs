//! What a result means: per backend, and where backends differ.

use crate::backend::BackendName;
use crate::known::{Kind, KnownDifference};
use crate::probe::Record;
use serde::Serialize;
use std::collections::BTreeMap;

/// What is to be said of one result of one backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "verdict")]
pub enum Verdict {
    /// It is what was wanted.
    Pass,
    /// It is not, and nobody knows why.
    Fail,
    /// It is not, and `known_differences.toml` says why.
    Explained {
        /// The kind of the difference.
        kind: Kind,
        /// The reason.
        reason: String,
    },
    /// It was not run.
    Skip {
        /// Why.
        reason: String,
    },
}

/// One result of one backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Seen {
    /// What was seen; empty if it was skipped.
    pub got: String,
    /// What is to be said of it.
    #[serde(flatten)]
    pub verdict: Verdict,
}

/// One result of a case on all backends that were asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CaseResult {
    /// `group.case`.
    pub id: String,
    /// What is wanted.
    pub want: String,
    /// By backend.
    pub seen: BTreeMap<BackendName, Seen>,
}

/// How the results of one backend add up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// As wanted.
    pub passed: usize,
    /// Not as wanted, unexplained.
    pub failed: usize,
    /// Not run.
    pub skipped: usize,
    /// Not as wanted, explained.
    pub explained: usize,
}

/// Everything that a run gave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// The results, in order.
    pub cases: Vec<CaseResult>,
    /// By backend.
    pub tallies: BTreeMap<BackendName, Tally>,
    /// Differences between backends, explained.
    pub explained: usize,
    /// Differences between backends, unexplained.
    pub unexplained: usize,
    /// Entries of `known_differences.toml` that no longer explain anything.
    pub stale: Vec<String>,
}

/// What one backend gave to one record.
pub fn judge(record: &Record, kvm: &str, known: &[KnownDifference]) -> Seen {
    let entry = known.iter().find(|entry| entry.covers(&record.id, kvm));
    let verdict = match entry {
        _ if record.holds() => Verdict::Pass,
        Some(entry) => Verdict::Explained {
            kind: entry.kind,
            reason: entry.reason.clone(),
        },
        None => Verdict::Fail,
    };
    Seen {
        got: record.got.clone(),
        verdict,
    }
}

impl CaseResult {
    /// Whether two backends that ran saw different things.
    #[must_use]
    pub fn differs(&self) -> bool {
        let mut ran = self
            .seen
            .values()
            .filter(|seen| !matches!(seen.verdict, Verdict::Skip { .. }));
        let first = ran.next();
        ran.any(|seen| Some(&seen.got) != first.map(|seen| &seen.got))
    }

    /// Whether nobody failed without explanation.
    #[must_use]
    pub fn is_accounted_for(&self) -> bool {
        self.seen.values().all(|seen| seen.verdict != Verdict::Fail)
    }
}

/// The names by which `known_differences.toml` calls the backends of this run.
pub type Names = BTreeMap<BackendName, String>;

/// Adds everything up. `whole` says whether every case ran, so that an entry without any case to
/// explain is stale too.
#[must_use]
pub fn summarize(
    cases: Vec<CaseResult>,
    names: &Names,
    known: &[KnownDifference],
    whole: bool,
) -> Summary {
    let mut tallies: BTreeMap<BackendName, Tally> = BTreeMap::new();
    for (backend, seen) in cases.iter().flat_map(|case| &case.seen) {
        let tally = tallies.entry(*backend).or_default();
        match seen.verdict {
            Verdict::Pass => tally.passed += 1,
            Verdict::Fail => tally.failed += 1,
            Verdict::Explained { .. } => tally.explained += 1,
            Verdict::Skip { .. } => tally.skipped += 1,
        }
    }
    let (explained, unexplained): (Vec<_>, Vec<_>) = cases
        .iter()
        .filter(|case| case.differs())
        .partition(|case| case.is_accounted_for());
    let (explained, unexplained) = (explained.len(), unexplained.len());
    let stale = stale(&cases, names, known, whole);
    Summary {
        cases,
        tallies,
        explained,
        unexplained,
        stale,
    }
}

/// Patterns of entries whose every case that ran passed.
fn stale(
    cases: &[CaseResult],
    names: &Names,
    known: &[KnownDifference],
    whole: bool,
) -> Vec<String> {
    let mut stale = Vec::new();
    for entry in known {
        let backends: Vec<_> = names
            .iter()
            .filter(|(_, kvm)| **kvm == entry.kvm)
            .map(|(name, _)| *name)
            .collect();
        for pattern in &entry.cases {
            let results: Vec<&Seen> = cases
                .iter()
                .filter(|case| crate::known::matches(pattern, &case.id))
                .flat_map(|case| backends.iter().filter_map(|name| case.seen.get(name)))
                .collect();
            let skipped = |seen: &&&Seen| matches!(seen.verdict, Verdict::Skip { .. });
            let all_pass = results.iter().all(|seen| seen.verdict == Verdict::Pass);
            let could_tell = match results.iter().find(skipped) {
                Some(_) => false,
                None => !results.is_empty() || whole && !backends.is_empty(),
            };
            if all_pass && could_tell && (whole || !pattern.contains('*')) {
                stale.push(format!("{} on {}", pattern, entry.kvm));
            }
        }
    }
    stale
}

impl Summary {
    /// Whether the run succeeded.
    #[must_use]
    pub fn is_success(&self) -> bool {
        let nothing_failed = self.tallies.values().all(|tally| tally.failed == 0);
        nothing_failed && self.unexplained == 0 && self.stale.is_empty()
    }

    /// The closing lines: one for each backend, then the differences.
    #[must_use]
    pub fn closing_lines(&self) -> Vec<String> {
        let backend = |(name, tally): (&BackendName, &Tally)| {
            let Tally {
                passed,
                failed,
                skipped,
                ..
            } = tally;
            format!("{name}: {passed} passed, {failed} failed, {skipped} skipped")
        };
        let mut lines: Vec<String> = self.tallies.iter().map(backend).collect();
        let (explained, unexplained) = (self.explained, self.unexplained);
        lines.push(format!(
            "differs: {explained} explained, {unexplained} unexplained"
        ));
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(cases: &str, kvm: &str) -> KnownDifference {
        KnownDifference {
            cases: vec![cases.to_owned()],
            kvm: kvm.to_owned(),
            kind: Kind::HostKvmQuirk,
            reason: "because".to_owned(),
        }
    }

    fn case(id: &str, seen: &[(BackendName, &str)], known: &[KnownDifference]) -> CaseResult {
        let judged = seen.iter().map(|(name, got)| {
            let record = Record {
                id: id.to_owned(),
                want: "0".to_owned(),
                got: (*got).to_owned(),
            };
            let kvm = if *name == BackendName::Host {
                "kvm_pvm"
            } else {
                "emulated"
            };
            (*name, judge(&record, kvm, known))
        });
        CaseResult {
            id: id.to_owned(),
            want: "0".to_owned(),
            seen: judged.collect(),
        }
    }

    fn sum(seen: &[(BackendName, &str)], known: &[KnownDifference]) -> Summary {
        let names = [
            (BackendName::Emulated, "emulated".to_owned()),
            (BackendName::Host, "kvm_pvm".to_owned()),
        ];
        summarize(vec![case("g.c", seen, known)], &names.into(), known, true)
    }

    const BOTH_RIGHT: [(BackendName, &str); 2] =
        [(BackendName::Emulated, "0"), (BackendName::Host, "0")];
    const HOST_DIFFERS: [(BackendName, &str); 2] =
        [(BackendName::Emulated, "0"), (BackendName::Host, "EINVAL")];

    #[test]
    fn an_unexplained_difference_fails_the_run() {
        let summary = sum(&HOST_DIFFERS, &[]);
        assert_eq!((summary.explained, summary.unexplained), (0, 1));
        assert!(!summary.is_success());
    }

    #[test]
    fn an_explained_difference_does_not() {
        let summary = sum(&HOST_DIFFERS, &[entry("g.*", "kvm_pvm")]);
        assert_eq!((summary.explained, summary.unexplained), (1, 0));
        assert!(summary.is_success());
        assert_eq!(
            summary.closing_lines(),
            [
                "emulated: 1 passed, 0 failed, 0 skipped",
                "host: 0 passed, 0 failed, 0 skipped",
                "differs: 1 explained, 0 unexplained"
            ]
        );
    }

    #[test]
    fn an_entry_that_explains_nothing_is_stale() {
        let summary = sum(&BOTH_RIGHT, &[entry("g.c", "kvm_pvm")]);
        assert_eq!(summary.stale, ["g.c on kvm_pvm"]);
        assert!(!summary.is_success());
        assert_eq!(
            sum(&BOTH_RIGHT, &[entry("no.such", "kvm_pvm")]).stale.len(),
            1
        );
        assert!(
            sum(&BOTH_RIGHT, &[entry("g.c", "kvm_intel")])
                .stale
                .is_empty()
        );
    }

    #[test]
    fn what_both_do_wrong_is_a_failure_and_no_difference() {
        let summary = sum(
            &[(BackendName::Emulated, "1"), (BackendName::Host, "1")],
            &[],
        );
        assert_eq!((summary.explained, summary.unexplained), (0, 0));
        assert!(!summary.is_success());
    }
}
