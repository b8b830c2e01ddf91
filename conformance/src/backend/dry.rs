//! The backend that answers nothing: every call succeeds with 0. Running a case on it tells which
//! results the case has, without a KVM.

use super::{Argument, Backend, Bytes, Call, Reply};

/// See the module.
#[derive(Debug, Default)]
pub struct DryBackend;

impl Backend for DryBackend {
    fn perform(&mut self, call: &Call) -> Reply {
        let bytes = match call {
            Call::Read(_, _, length) => vec![0; *length as usize],
            Call::Ioctl(
                _,
                _,
                Argument::Bytes(bytes)
                | Argument::Pointers(bytes, _)
                | Argument::Descriptors(bytes, _),
            ) => bytes.0.clone(),
            Call::Run(vcpus, _) => vec![0; vcpus.len() * 8],
            Call::Machine(_, reads, _) => {
                let lengths = reads.iter().map(|(_, length)| *length as usize);
                vec![0; lengths.sum()]
            }
            Call::RunWhile(..) => vec![0; 8],
            Call::Forked(calls) => vec![0; calls.len() * 8],
            _ => Vec::new(),
        };
        Reply {
            outcome: Ok(0),
            bytes: Bytes(bytes),
        }
    }

    fn reset(&mut self) {}
}
