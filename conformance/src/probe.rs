//! [`Probe`]: the hand with which a case touches a backend, and the book of its results.
//!
//! Each result is a [`Record`]: what is wanted and what was seen, both as text, so that one string
//! is the expectation, the capture list, the line of the report and what two backends are compared
//! by.
#![expect(
    clippy::missing_errors_doc,
    reason = "an outcome is what a case looks at, not an error of ours"
)]

use crate::backend::{
    Argument, Backend, Bytes, Call, DescriptorCall, Errno, Handle, Mapping, Memory, Outcome, Place,
    Pointer, Reply, outcome_text, unpack,
};
use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// One result of a case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// `group.case`.
    pub id: String,
    /// What the SDM and the API want to be seen.
    pub want: String,
    /// What was seen.
    pub got: String,
}

impl Record {
    /// Whether that is what was wanted.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.want == self.got
    }
}

/// A backend in the hand of a case.
pub struct Probe<'a> {
    backend: &'a mut dyn Backend,
    group: String,
    handles: u32,
    memories: u32,
    note: &'a mut dyn FnMut(&Record),
}

impl<'a> Probe<'a> {
    /// Takes a backend; results are named `group.case` and handed to `note`.
    pub fn new(
        backend: &'a mut dyn Backend,
        group: &str,
        note: &'a mut dyn FnMut(&Record),
    ) -> Probe<'a> {
        Probe {
            backend,
            group: group.to_owned(),
            handles: 0,
            memories: 0,
            note,
        }
    }

    /// The name of the unit.
    #[must_use]
    pub fn group(&self) -> &str {
        &self.group
    }

    /// Notes a result. An empty `case` names the group itself.
    pub fn check(&mut self, case: &str, want: &str, got: &str) {
        let id = match case {
            "" => self.group.clone(),
            _ => format!("{}.{case}", self.group),
        };
        (self.note)(&Record {
            id,
            want: want.to_owned(),
            got: got.to_owned(),
        });
    }

    /// Notes the outcome of a call.
    pub fn expect(&mut self, case: &str, want: &str, got: Outcome) {
        self.check(case, want, &outcome_text(got));
    }

    fn perform(&mut self, call: &Call) -> Reply {
        self.backend.perform(call)
    }

    fn next_handle(&mut self) -> Handle {
        self.handles += 1;
        Handle(self.handles)
    }

    fn next_memory(&mut self) -> Memory {
        self.memories += 1;
        Memory(self.memories)
    }

    /// Opens the system.
    pub fn open(&mut self) -> Handle {
        let handle = self.next_handle();
        let _ = self.perform(&Call::Open(handle));
        handle
    }

    /// Opens the system for reading only.
    pub fn open_read_only(&mut self) -> Handle {
        let handle = self.next_handle();
        let _ = self.perform(&Call::OpenReadOnly(handle));
        handle
    }

    /// Makes a descriptor with an ioctl that takes a number; the outcome says 0 for a descriptor.
    pub fn create(&mut self, of: Handle, request: u32, value: u64) -> (Handle, Outcome) {
        let made = self.next_handle();
        let reply = self.perform(&Call::Create(of, request, Argument::Value(value), made));
        (made, reply.outcome)
    }

    /// Notes whether an ioctl made a descriptor: `fd`, or the errno.
    pub fn expect_fd(&mut self, case: &str, want: &str, got: (Handle, Outcome)) -> Handle {
        let text = got
            .1
            .map_or_else(|errno| errno.to_string(), |_| "fd".to_owned());
        self.check(case, want, &text);
        got.0
    }

    /// An ioctl whose argument is a number or a bad address.
    pub fn value(&mut self, of: Handle, request: u32, value: u64) -> Outcome {
        self.perform(&Call::Ioctl(of, request, Argument::Value(value)))
            .outcome
    }

    /// An ioctl on bytes, which it may change.
    pub fn bytes(&mut self, of: Handle, request: u32, bytes: &mut Vec<u8>) -> Outcome {
        let argument = Argument::Bytes(Bytes(bytes.clone()));
        let reply = self.perform(&Call::Ioctl(of, request, argument));
        if !reply.bytes.is_empty() {
            *bytes = reply.bytes.0;
        }
        reply.outcome
    }

    /// An ioctl that reads bytes.
    pub fn send(&mut self, of: Handle, request: u32, bytes: impl Into<Vec<u8>>) -> Outcome {
        self.bytes(of, request, &mut bytes.into())
    }

    /// An ioctl that reads bytes some words of which are addresses.
    pub fn send_pointers(
        &mut self,
        of: Handle,
        request: u32,
        bytes: impl Into<Vec<u8>>,
        pointers: &[Pointer],
    ) -> Outcome {
        let argument = Argument::Pointers(Bytes(bytes.into()), pointers.to_vec());
        self.perform(&Call::Ioctl(of, request, argument)).outcome
    }

    /// An ioctl that reads bytes some words of which are the numbers of descriptors.
    pub fn send_descriptors(
        &mut self,
        of: Handle,
        request: u32,
        bytes: impl Into<Vec<u8>>,
        words: &[(u32, Handle)],
    ) -> Outcome {
        let argument = Argument::Descriptors(Bytes(bytes.into()), words.to_vec());
        self.perform(&Call::Ioctl(of, request, argument)).outcome
    }

    /// A new eventfd.
    pub fn event(&mut self) -> Handle {
        let made = self.next_handle();
        let _ = self.perform(&Call::Event(made));
        made
    }

    /// An ioctl that reads a struct.
    pub fn set<T: IntoBytes + Immutable>(
        &mut self,
        of: Handle,
        request: u32,
        of_what: &T,
    ) -> Outcome {
        self.send(of, request, of_what.as_bytes())
    }

    /// An ioctl that fills a struct.
    pub fn get<T>(&mut self, of: Handle, request: u32, into: &mut T) -> Outcome
    where
        T: IntoBytes + FromBytes + Immutable,
    {
        let mut bytes = into.as_bytes().to_vec();
        let outcome = self.bytes(of, request, &mut bytes);
        if let Ok((value, _)) = T::read_from_prefix(&bytes) {
            *into = value;
        }
        outcome
    }

    /// The struct that an ioctl fills, whatever its outcome.
    pub fn read_struct<T>(&mut self, of: Handle, request: u32) -> T
    where
        T: IntoBytes + FromBytes + Immutable,
    {
        let mut value = T::new_zeroed();
        let _ = self.get(of, request, &mut value);
        value
    }

    /// `dup`.
    pub fn duplicate(&mut self, of: Handle) -> Handle {
        let made = self.next_handle();
        let _ = self.perform(&Call::Duplicate(of, made));
        made
    }

    /// `close`.
    pub fn close(&mut self, handle: Handle) {
        let _ = self.perform(&Call::Close(handle));
    }

    /// Fresh zeroed memory.
    pub fn allocate(&mut self, length: u64) -> Memory {
        let memory = self.next_memory();
        let _ = self.perform(&Call::Allocate(memory, length));
        memory
    }

    /// `mmap` of `(length, offset)` of a descriptor.
    pub fn map(&mut self, of: Handle, span: (u64, u64), how: Mapping) -> (Memory, Outcome) {
        let call = self.mapping_of(of, span, how);
        let outcome = self.perform(&call).outcome;
        (Memory(self.memories), outcome)
    }

    /// The call that [`Self::map`] makes, for [`Self::elsewhere`].
    pub fn mapping_of(&mut self, of: Handle, span: (u64, u64), how: Mapping) -> Call {
        Call::Map(self.next_memory(), of, span.0, span.1, how)
    }

    /// `munmap`.
    pub fn unmap(&mut self, memory: Memory) {
        let _ = self.perform(&Call::Unmap(memory));
    }

    /// The bytes of a mapping; zeroes outside it.
    pub fn read(&mut self, memory: Memory, offset: u64, length: u32) -> Vec<u8> {
        let mut bytes = self.perform(&Call::Read(memory, offset, length)).bytes.0;
        bytes.resize(length as usize, 0);
        bytes
    }

    /// The little-endian number of at most eight bytes at a place of a mapping.
    pub fn read_number(&mut self, memory: Memory, offset: u64, length: u32) -> u64 {
        let bytes = self.read(memory, offset, length);
        bytes
            .iter()
            .rev()
            .fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    /// Writes bytes into a mapping.
    pub fn write(&mut self, memory: Memory, offset: u64, bytes: &[u8]) {
        let _ = self.perform(&Call::Write(memory, offset, Bytes(bytes.to_vec())));
    }

    /// KVM_RUN; a signal ends it after so many milliseconds.
    pub fn run(&mut self, vcpu: Handle, limit_ms: u32) -> Outcome {
        self.perform(&Call::Run(vec![vcpu], limit_ms)).outcome
    }

    /// KVM_RUN on several vCPUs at once.
    pub fn run_together(&mut self, vcpus: &[Handle], limit_ms: u32) -> Vec<Outcome> {
        let reply = self.perform(&Call::Run(vcpus.to_vec(), limit_ms));
        unpack(&reply.bytes.0, vcpus.len())
    }

    /// Another call while a thread runs a vCPU, which a signal ends after so many milliseconds:
    /// the outcomes of the call and of the run.
    pub fn run_while(&mut self, vcpu: Handle, limit_ms: u32, call: Call) -> (Outcome, Outcome) {
        let reply = self.perform(&Call::RunWhile(vcpu, limit_ms, Box::new(call)));
        let run = unpack(&reply.bytes.0, 1)
            .pop()
            .unwrap_or(Err(Errno(libc::EIO)));
        (reply.outcome, run)
    }

    /// An ioctl that makes a descriptor, while a thread runs a vCPU.
    pub fn create_while(
        &mut self,
        (vcpu, limit_ms): (Handle, u32),
        of: Handle,
        request: u32,
        value: u64,
    ) -> (Handle, Outcome) {
        let made = self.next_handle();
        let call = Call::Create(of, request, Argument::Value(value), made);
        let (outcome, _) = self.run_while(vcpu, limit_ms, call);
        (made, outcome)
    }

    /// ioctls with argument 0, from a forked child.
    pub fn forked(&mut self, calls: &[(Handle, u32)]) -> Vec<Outcome> {
        let reply = self.perform(&Call::Forked(calls.to_vec()));
        unpack(&reply.bytes.0, calls.len())
    }

    /// A call that somebody else makes.
    pub fn elsewhere(&mut self, place: Place, call: Call) -> Outcome {
        self.perform(&Call::Elsewhere(place, Box::new(call)))
            .outcome
    }

    /// KVM_RUN while SIGUSR1 is blocked and pending: the outcome, and whether it still is pending.
    pub fn run_with_pending(&mut self, vcpu: Handle, limit_ms: u32) -> (Outcome, bool) {
        let reply = self.perform(&Call::RunWithPending(vcpu, limit_ms));
        (reply.outcome, reply.bytes.0 == [1])
    }

    /// A bare machine that runs an image for at most so many ticks: what it wrote to the debug-exit
    /// port, and the bytes at these places of its memory.
    pub fn machine(
        &mut self,
        image: Vec<u8>,
        reads: &[(u64, u32)],
        limit_ticks: u64,
    ) -> (Outcome, Vec<u8>) {
        let reply = self.perform(&Call::Machine(Bytes(image), reads.to_vec(), limit_ticks));
        (reply.outcome, reply.bytes.0)
    }

    /// What /proc calls a descriptor.
    pub fn link(&mut self, handle: Handle) -> String {
        let bytes = self.perform(&Call::Link(handle)).bytes.0;
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Another system call on a descriptor.
    pub fn descriptor(&mut self, handle: Handle, call: DescriptorCall) -> Outcome {
        self.perform(&Call::Descriptor(handle, call)).outcome
    }

    /// The bytes that `read` gives from a descriptor, and its outcome.
    pub fn read_descriptor(&mut self, handle: Handle, length: u32) -> (Outcome, Vec<u8>) {
        let reply = self.perform(&Call::Descriptor(handle, DescriptorCall::Read(length)));
        (reply.outcome, reply.bytes.0)
    }

    /// The signal that a load from a mapping raises, or 0.
    pub fn touch(&mut self, memory: Memory, offset: u64) -> Outcome {
        self.perform(&Call::Touch(memory, offset)).outcome
    }

    /// Takes away all free descriptors, or gives them back.
    pub fn exhaust_descriptors(&mut self, exhausted: bool) {
        let _ = self.perform(&Call::ExhaustDescriptors(exhausted));
    }
}

/// A struct of the ABI, built by offset: for those that have no type with plain bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Words(Vec<u8>);

impl Words {
    /// A zeroed struct of so many bytes.
    #[must_use]
    pub fn sized(length: usize) -> Words {
        Words(vec![0; length])
    }

    /// A struct that is these bytes.
    #[must_use]
    pub fn from_bytes(bytes: Vec<u8>) -> Words {
        Words(bytes)
    }

    /// With a number of `width` bytes at an offset.
    #[must_use]
    pub fn with(mut self, offset: usize, width: usize, value: u64) -> Words {
        self.put(offset, width, value);
        self
    }

    /// With a 32-bit word at an offset.
    #[must_use]
    pub fn u32(self, offset: usize, value: u32) -> Words {
        self.with(offset, 4, value.into())
    }

    /// With a 64-bit word at an offset.
    #[must_use]
    pub fn u64(self, offset: usize, value: u64) -> Words {
        self.with(offset, 8, value)
    }

    /// Puts a number of `width` bytes at an offset.
    pub fn put(&mut self, offset: usize, width: usize, value: u64) {
        self.0[offset..offset + width].copy_from_slice(&value.to_le_bytes()[..width]);
    }

    /// The number of `width` bytes at an offset.
    #[must_use]
    pub fn get(&self, offset: usize, width: usize) -> u64 {
        let bytes = self.0[offset..offset + width].iter().rev();
        bytes.fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    /// The bytes, for an ioctl that changes them.
    pub fn bytes_mut(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl From<Words> for Vec<u8> {
    fn from(words: Words) -> Vec<u8> {
        words.0
    }
}

/// Bytes as the expectations write them.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
