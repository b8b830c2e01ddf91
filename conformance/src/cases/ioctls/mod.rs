//! Scripts of the ioctl layer: one for each subject. The results of a script are in order and may
//! build on earlier ones.

mod bus;
mod capabilities;
mod descriptors;
mod dirty;
mod events;
mod lifetime;
mod memory;
mod msrs;
mod registers;
mod state;
mod system;
mod vcpus;

use super::Script;
use crate::probe::Probe;

/// The scripts, by group.
pub(super) const GROUPS: &[(&str, Script)] = &[
    ("system", system::script),
    ("fds", descriptors::script),
    ("create_vcpu", vcpus::script),
    ("mem", memory::script),
    ("dirty", dirty::script),
    ("state", state::script),
    ("valid", valid),
    ("msr", msrs::script),
    ("enable_cap", capabilities::script),
    ("lifetime", lifetime::script),
    ("bus", bus::script),
];

/// What the state ioctls of a vCPU accept.
fn valid(probe: &mut Probe<'_>) {
    registers::script(probe);
    events::script(probe);
    state::translation(probe);
}
