//! Guests: one table for each subject.

mod arithmetic;
mod control;
mod exceptions;
mod io;
mod paging;
mod ports;
mod run;
mod segmentation;
mod strings;
mod system;

use super::Script;
use crate::guest::Guest;

/// A group and its rows.
pub(super) type Table = (&'static str, fn() -> Vec<Guest>);

/// The tables, by group.
pub(super) const GROUPS: &[Table] = &[
    ("arithmetic", arithmetic::rows),
    ("control", control::rows),
    ("segmentation", segmentation::rows),
    ("paging", paging::rows),
    ("exceptions", exceptions::rows),
    ("strings", strings::rows),
    ("io", io::rows),
    ("processor", system::rows),
];

/// Guests that need more than one act: scripts.
pub(super) const SCRIPTS: &[&[(&str, Script)]] = &[run::PARTS, ports::PARTS];
