//! Random sequences of ioctls: the emulator and this machine's /dev/kvm.
//!
//! A sequence is made of calls with structured arguments on a few descriptors, which may not exist
//! yet. Both sides perform it; outcomes and structs must be equal but for what `MASKS` leaves out.
//! What depends on the vendor of the processor is not asked at all: the choices below are those
//! of common KVM code.

mod sequence;

use super::{Case, Target};
use crate::backend::emulated::EmulatedKernel;
use crate::backend::host::{HostKernel, SystemBackend};
use crate::backend::{Argument, Backend, Bytes, Call, Reply};
use crate::requests::*;
use sequence::{Fresh, Random, VCPUS, VMS, make_vcpu, prologue, sequence};

/// What is not compared: request, the bytes of its struct (start and end), and why.
const MASKS: &[(u32, usize, usize, &str)] = &[
    (
        KVM_GET_XSAVE,
        0,
        416,
        "KVM_SET_FPU leaves XSTATE_BV alone in Linux, and ours sets x87 and SSE in it",
    ),
    (KVM_GET_XSAVE, 512, 520, "the same"),
    (
        KVM_GET_FPU,
        0,
        416,
        "Linux gives stale memory for components that XSTATE_BV says are initial",
    ),
    (
        KVM_GET_XSAVE,
        464,
        512,
        "the software bytes hold the host's XCR0",
    ),
    (
        KVM_GET_MSRS,
        16,
        24,
        "values of MSRs are compared by the cases, profile by profile",
    ),
];

/// Compares sequences on the emulator and on /dev/kvm.
pub struct Ioctl {
    emulated: SystemBackend<EmulatedKernel>,
    host: SystemBackend<HostKernel>,
    fresh: Fresh,
    sequences: u64,
    calls: u64,
    failed_calls: u64,
}

impl Ioctl {
    /// Looks at a fresh vCPU of the emulator.
    #[must_use]
    pub fn new() -> Ioctl {
        let mut emulated = SystemBackend::new(EmulatedKernel);
        for call in prologue()
            .into_iter()
            .chain([make_vcpu(VMS[0], 0, VCPUS[0])])
        {
            let _ = emulated.perform(&call);
        }
        let mut get = |request: u32, size: usize| {
            let argument = Argument::Bytes(Bytes(vec![0; size]));
            let reply = emulated.perform(&Call::Ioctl(VCPUS[0], request, argument));
            let mut bytes = reply.bytes.0;
            bytes.resize(size, 0);
            bytes
        };
        let fresh = Fresh {
            sregs: get(KVM_GET_SREGS, 312),
            events: get(KVM_GET_VCPU_EVENTS, 64),
            xsave: get(KVM_GET_XSAVE, 4096),
            fpu: get(KVM_GET_FPU, 416),
            debugregs: get(KVM_GET_DEBUGREGS, 128),
        };
        emulated.reset();
        let host = SystemBackend::new(HostKernel);
        Ioctl {
            emulated,
            host,
            fresh,
            sequences: 0,
            calls: 0,
            failed_calls: 0,
        }
    }

    /// The first call on whose reply the two sides differ.
    fn difference(&mut self, calls: &[Call]) -> Option<(usize, Reply, Reply)> {
        let mut found = None;
        for (at, call) in calls.iter().enumerate() {
            let ours = masked(call, self.emulated.perform(call));
            let theirs = masked(call, self.host.perform(call));
            self.failed_calls += u64::from(theirs.outcome.is_err());
            if ours != theirs {
                found = Some((at, ours, theirs));
                break;
            }
        }
        self.emulated.reset();
        self.host.reset();
        found
    }

    /// The fewest calls, in order, that still differ.
    fn shorten(&mut self, mut calls: Vec<Call>) -> Vec<Call> {
        let mut at = calls.len();
        while at > 0 {
            at -= 1;
            let mut fewer = calls.clone();
            fewer.remove(at);
            if let Some((last, ..)) = self.difference(&fewer) {
                fewer.truncate(last + 1);
                at = at.min(fewer.len());
                calls = fewer;
            }
        }
        calls
    }
}

impl Default for Ioctl {
    fn default() -> Ioctl {
        Ioctl::new()
    }
}

impl Target for Ioctl {
    fn name(&self) -> &'static str {
        "ioctl"
    }

    fn run(&mut self, case: Case) -> Result<(), String> {
        let mut calls = sequence(&mut Random(case.seed), &self.fresh);
        self.sequences += 1;
        self.calls += calls.len() as u64;
        let Some((at, ..)) = self.difference(&calls) else {
            return Ok(());
        };
        calls.truncate(at + 1);
        let calls = self.shorten(calls);
        let mut text: String = calls
            .iter()
            .map(|call| format!("  {}\n", describe(call)))
            .collect();
        if let Some((_, ours, theirs)) = self.difference(&calls) {
            text.push_str(&format!("emulated: {}\n", shown(&ours)));
            text.push_str(&format!("host:     {}", shown(&theirs)));
        }
        Err(text)
    }

    fn summary(&self) -> String {
        let Ioctl {
            sequences,
            calls,
            failed_calls,
            ..
        } = self;
        format!("{sequences} sequences agree with /dev/kvm: {calls} calls, {failed_calls} refused")
    }
}

fn describe(call: &Call) -> String {
    let text = serde_json::to_string(call).unwrap_or_default();
    let request = match call {
        Call::Ioctl(_, request, _) | Call::Create(_, request, ..) => *request,
        _ => return text,
    };
    let name = ALL.iter().find(|(_, number)| *number == request);
    format!(
        "{} {text}",
        name.map_or("unknown request", |(name, _)| name)
    )
}

fn shown(reply: &Reply) -> String {
    serde_json::to_string(reply).unwrap_or_default()
}

/// The reply without what [`MASKS`] leaves out.
fn masked(call: &Call, mut reply: Reply) -> Reply {
    let Call::Ioctl(_, request, argument) = call else {
        return reply;
    };
    if reply.bytes.is_empty() {
        // Nothing changed: the same as having changed to what was there.
        if let Argument::Bytes(bytes) | Argument::Pointers(bytes, _) = argument {
            reply.bytes = bytes.clone();
        }
    }
    for (_, start, end, _) in MASKS.iter().filter(|(of, ..)| of == request) {
        let end = reply.bytes.0.len().min(*end);
        if let Some(bytes) = reply.bytes.0.get_mut(*start..end) {
            bytes.fill(0);
        }
    }
    reply
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_calls_again() {
        let target = Ioctl::new();
        let make = |seed| sequence(&mut Random(seed), &target.fresh);
        assert_eq!(make(5), make(5));
        assert_ne!(make(5), make(6));
    }

    #[test]
    fn sequences_do_not_break_the_emulator() {
        let mut target = Ioctl::new();
        for seed in 0..100 {
            for call in sequence(&mut Random(seed), &target.fresh) {
                let _ = target.emulated.perform(&call);
            }
            target.emulated.reset();
        }
    }
}
