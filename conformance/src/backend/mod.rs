//! The raw ABI as data: what a case asks of a KVM, and what the KVM answered.
//!
//! A case speaks [`Call`]s and hears [`Reply`]s; it never knows who answers. [`host`] is
//! `/dev/kvm`, [`emulated`] is `kvm-api`, [`recorded`] replays a recording, [`dry`] answers nothing
//! and is there to list the cases. Descriptors and mappings are numbered by the case
//! ([`Handle`], [`Memory`]), so that a recording holds no address and no descriptor number of the
//! process that made it.

pub mod dry;
mod elsewhere;
pub mod emulated;
pub mod host;
pub mod recorded;

use serde::{Deserialize, Serialize};
use std::fmt;

/// A descriptor, numbered by the case in the order of creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Handle(pub u32);

/// A mapping, numbered by the case in the order of creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Memory(pub u32);

/// An error number of Linux, printed by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Errno(pub i32);

const ERRNO_NAMES: &[(i32, &str)] = &[
    (libc::EPERM, "EPERM"),
    (libc::ENOENT, "ENOENT"),
    (libc::EINTR, "EINTR"),
    (libc::EIO, "EIO"),
    (libc::ENXIO, "ENXIO"),
    (libc::E2BIG, "E2BIG"),
    (libc::EBADF, "EBADF"),
    (libc::EAGAIN, "EAGAIN"),
    (libc::ENOMEM, "ENOMEM"),
    (libc::EACCES, "EACCES"),
    (libc::EFAULT, "EFAULT"),
    (libc::EBUSY, "EBUSY"),
    (libc::EEXIST, "EEXIST"),
    (libc::ENODEV, "ENODEV"),
    (libc::EINVAL, "EINVAL"),
    (libc::ENFILE, "ENFILE"),
    (libc::EMFILE, "EMFILE"),
    (libc::ENOTTY, "ENOTTY"),
    (libc::ENOSPC, "ENOSPC"),
    (libc::ESPIPE, "ESPIPE"),
    (libc::EOPNOTSUPP, "EOPNOTSUPP"),
    (libc::ENOSYS, "ENOSYS"),
];

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match ERRNO_NAMES.iter().find(|(number, _)| *number == self.0) {
            Some((_, name)) => f.write_str(name),
            None => write!(f, "errno {}", self.0),
        }
    }
}

/// What a call gives: a number, or an error number.
pub type Outcome = Result<i64, Errno>;

/// An outcome as the expectations write it: `0`, `12`, `EINVAL`.
#[must_use]
pub fn outcome_text(outcome: Outcome) -> String {
    match outcome {
        Ok(value) => value.to_string(),
        Err(errno) => errno.to_string(),
    }
}

/// The third argument of an ioctl.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Argument {
    /// A number, or an address that the case chose because it is bad.
    #[serde(rename = "v")]
    Value(u64),
    /// A pointer to these bytes; the kernel may change them.
    #[serde(rename = "b")]
    Bytes(Bytes),
    /// The same, where some words of the struct are themselves addresses.
    #[serde(rename = "p")]
    Pointers(Bytes, Vec<Pointer>),
    /// The same, where 32-bit words at these offsets are the numbers of descriptors.
    #[serde(rename = "d")]
    Descriptors(Bytes, Vec<(u32, Handle)>),
}

/// A word of a struct that is to hold the address of a place in a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pointer {
    /// The byte offset of the word in the struct.
    #[serde(rename = "o")]
    pub offset: u32,
    /// The mapping that the word points into.
    #[serde(rename = "m")]
    pub memory: Memory,
    /// Where in the mapping.
    #[serde(rename = "a")]
    pub at: u64,
}

/// Bytes, written into recordings as hexadecimal with runs shortened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

/// How a descriptor is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mapping {
    /// `PROT_READ | PROT_WRITE`, `MAP_SHARED`.
    Shared,
    /// `PROT_READ | PROT_WRITE`, `MAP_PRIVATE`.
    Private,
    /// `PROT_READ`, `MAP_SHARED`.
    ReadOnly,
}

/// A system call on a descriptor that is not an ioctl.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DescriptorCall {
    /// `read` of so many bytes, which come back.
    Read(u32),
    /// `write` of eight bytes.
    Write,
    /// `lseek(offset, SEEK_SET)`.
    Seek(i64),
    /// `fcntl(F_GETFD) & FD_CLOEXEC`.
    CloseOnExec,
    /// `fcntl(F_GETFL) & O_ACCMODE`.
    AccessMode,
    /// `poll(POLLIN | POLLOUT, 0)`: the events that came back.
    Poll,
}

/// Who makes a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Place {
    /// A forked child.
    Forked,
    /// A child that shares the memory.
    Vforked,
    /// A forked child that has got this descriptor by a message.
    Receiver(Handle),
}

/// One thing a case asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Call {
    /// Open the system; the descriptor becomes this handle.
    Open(Handle),
    /// The same, for reading only.
    OpenReadOnly(Handle),
    /// `ioctl(handle, request, argument)`.
    Ioctl(Handle, u32, Argument),
    /// An ioctl whose result is a descriptor, which becomes the last handle.
    Create(Handle, u32, Argument, Handle),
    /// A new eventfd, which does not block.
    Event(Handle),
    /// `dup` of the first handle.
    Duplicate(Handle, Handle),
    /// `close`.
    Close(Handle),
    /// Fresh zeroed memory of so many bytes.
    Allocate(Memory, u64),
    /// `mmap` of a descriptor: bytes, and the offset in bytes.
    Map(Memory, Handle, u64, u64, Mapping),
    /// `munmap`.
    Unmap(Memory),
    /// Read so many bytes at an offset of a mapping.
    Read(Memory, u64, u32),
    /// Write bytes at an offset of a mapping.
    Write(Memory, u64, Bytes),
    /// KVM_RUN once on each vCPU, at the same time if there are several; a signal ends a run that
    /// is longer than so many milliseconds.
    Run(Vec<Handle>, u32),
    /// Another call, while a thread runs a vCPU; as in `Run`, a signal ends that run.
    RunWhile(Handle, u32, Box<Call>),
    /// Another system call on a descriptor.
    Descriptor(Handle, DescriptorCall),
    /// ioctls without structs, from a forked child.
    Forked(Vec<(Handle, u32)>),
    /// Another call, made by somebody else. What it makes is lost.
    Elsewhere(Place, Box<Call>),
    /// KVM_RUN while SIGUSR1 is blocked and pending in the thread; a signal ends a run that is
    /// longer than so many milliseconds.
    RunWithPending(Handle, u32),
    /// What /proc calls a descriptor.
    Link(Handle),
    /// A bare machine with one processor that loads this image and runs it for at most so many
    /// ticks; then the bytes at these places of its memory. The outcome is what the image wrote to
    /// the debug-exit port.
    Machine(Bytes, Vec<(u64, u32)>, u64),
    /// The number of the signal that a load from this place of a mapping raises, or 0.
    Touch(Memory, u64),
    /// No descriptor may be free (`true`), or all may be used again (`false`).
    ExhaustDescriptors(bool),
}

/// What was answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// The outcome of the call.
    #[serde(rename = "r")]
    pub outcome: Outcome,
    /// What the call left in its struct, or read; empty where a call changes nothing.
    #[serde(rename = "b", default, skip_serializing_if = "Bytes::is_empty")]
    pub bytes: Bytes,
}

impl Reply {
    /// A reply that is an outcome alone.
    #[must_use]
    pub fn bare(outcome: Outcome) -> Reply {
        Reply {
            outcome,
            bytes: Bytes::default(),
        }
    }
}

/// Somebody who answers.
pub trait Backend {
    /// Performs one call.
    fn perform(&mut self, call: &Call) -> Reply;

    /// Forgets everything that the last case made.
    fn reset(&mut self);
}

/// The names of the backends, as the command line writes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendName {
    /// `kvm-api`.
    Emulated,
    /// `/dev/kvm`.
    Host,
    /// The recording that this crate carries.
    Recorded,
}

impl BackendName {
    /// All of them, in the order of the reports.
    pub const ALL: [BackendName; 3] = [
        BackendName::Emulated,
        BackendName::Host,
        BackendName::Recorded,
    ];

    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            BackendName::Emulated => "emulated",
            BackendName::Host => "host",
            BackendName::Recorded => "recorded",
        }
    }
}

impl fmt::Display for BackendName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Bytes {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Outcomes as [`Call::Run`] and its like reply them.
pub(crate) fn unpack(bytes: &[u8], count: usize) -> Vec<Outcome> {
    let mut outcomes: Vec<Outcome> = bytes
        .chunks_exact(8)
        .map(|word| {
            let value = i64::from_le_bytes(word.try_into().expect("a chunk of eight"));
            if value < 0 {
                Err(Errno(value.unsigned_abs() as i32))
            } else {
                Ok(value)
            }
        })
        .collect();
    outcomes.resize(count, Err(Errno(libc::ENODATA)));
    outcomes
}

/// The shortest run of equal bytes that is written as a run.
const MIN_RUN: usize = 6;

impl Serialize for Bytes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&shorten(&self.0))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        let text = String::deserialize(deserializer)?;
        expand(&text)
            .map(Bytes)
            .ok_or_else(|| serde::de::Error::custom("bad bytes"))
    }
}

/// `00112233(00*512)ff`: hexadecimal, with long runs as `(byte*count)`.
fn shorten(bytes: &[u8]) -> String {
    let mut text = String::new();
    for run in bytes.chunk_by(|a, b| a == b) {
        if run.len() >= MIN_RUN {
            text.push_str(&format!("({:02x}*{})", run[0], run.len()));
        } else {
            run.iter()
                .for_each(|byte| text.push_str(&format!("{byte:02x}")));
        }
    }
    text
}

fn expand(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        if let Some(run) = rest.strip_prefix('(') {
            let (inside, after) = run.split_once(')')?;
            let (byte, count) = inside.split_once('*')?;
            let byte = u8::from_str_radix(byte, 16).ok()?;
            bytes.resize(bytes.len() + count.parse::<usize>().ok()?, byte);
            rest = after;
        } else {
            let (pair, after) = rest.split_at_checked(2)?;
            bytes.push(u8::from_str_radix(pair, 16).ok()?);
            rest = after;
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_survive_the_short_form() {
        for bytes in [
            vec![],
            vec![1, 2, 3],
            vec![0; 300],
            [vec![7; 5], vec![0; 6], vec![9]].concat(),
        ] {
            assert_eq!(expand(&shorten(&bytes)), Some(bytes));
        }
        assert_eq!(shorten(&[0; 300]), "(00*300)");
        assert_eq!(expand("0"), None);
        assert_eq!(expand("(00*"), None);
    }

    #[test]
    fn an_errno_is_printed_by_name() {
        assert_eq!(outcome_text(Err(Errno(libc::EINVAL))), "EINVAL");
        assert_eq!(outcome_text(Ok(12)), "12");
    }
}
