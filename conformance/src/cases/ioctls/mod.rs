//! Scripts of the ioctl layer: one for each subject.

mod system;

use super::Script;

/// The scripts, by group.
pub(super) const GROUPS: &[(&str, Script)] = &[("system", system::script)];
