//! Guests: one table for each subject.

mod arithmetic;

use super::Script;
use crate::guest::Guest;

/// The tables, by group.
pub(super) const GROUPS: &[(&str, fn() -> Vec<Guest>)] = &[("arithmetic", arithmetic::rows)];

/// Guests that need more than one act: scripts.
pub(super) const SCRIPTS: &[(&str, Script)] = &[];
