//! Scripts of the ioctl layer: one for each subject. The results of a script are in order and may
//! build on earlier ones.

mod capabilities;
mod descriptors;
mod dirty;
mod lifetime;
mod memory;
mod system;
mod vcpus;

use super::Script;

/// The scripts, by group.
pub(super) const GROUPS: &[(&str, Script)] = &[
    ("system", system::script),
    ("fds", descriptors::script),
    ("create_vcpu", vcpus::script),
    ("mem", memory::script),
    ("dirty", dirty::script),
    ("enable_cap", capabilities::script),
    ("lifetime", lifetime::script),
];
