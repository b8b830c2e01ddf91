//! The system descriptor (api.rst, "System ioctls").

use crate::probe::Probe;
use crate::requests::*;

pub(super) fn script(probe: &mut Probe<'_>) {
    let system = probe.open();
    let got = probe.value(system, KVM_GET_API_VERSION, 0);
    probe.expect("api_version", "12", got);
}
