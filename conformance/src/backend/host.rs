//! The edge to the operating system: descriptors, mappings, signals.
//!
//! [`SystemBackend`] performs calls on real descriptors; a [`Kernel`] says what open, ioctl and close
//! mean. [`HostKernel`] is `/dev/kvm`. The emulator's descriptors are real ones too, so both kernels
//! share everything else, and a case that passes on one has asked the very same of the other.
//!
//! Unsafe code of the backends is here, in the two modules below and in `elsewhere`. The obligations:
//! an address handed to an ioctl is that of a buffer or a mapping that outlives the call and is as
//! large as the request says (the buffer is padded to [`LARGEST_STRUCT`]).
#![expect(unsafe_code, reason = "system calls: open, ioctl, close")]

mod area;
mod watchdog;

pub(super) use self::area::Area;
pub(super) use self::watchdog::Watchdog;
use self::watchdog::catch_alarms;

use super::{
    Argument, Backend, Bytes, Call, DescriptorCall, Errno, Handle, Mapping, Memory, Outcome, Reply,
};
use std::collections::HashMap;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStringExt;
use std::time::Duration;

/// No struct of the KVM API that a case passes by value is larger.
pub const LARGEST_STRUCT: usize = 32 << 10;

/// What a descriptor of KVM does.
pub trait Kernel: Copy + Send + Sync {
    /// Opens the system, for reading and writing or (`O_RDONLY`) for reading.
    ///
    /// # Errors
    /// The errno of open.
    fn open(&self, mode: i32) -> Result<RawFd, Errno>;

    /// Performs an ioctl; `argument` may be the address of a struct.
    ///
    /// # Errors
    /// The errno of the ioctl.
    fn ioctl(&self, fd: RawFd, request: u32, argument: u64) -> Result<i64, Errno>;

    /// Closes a descriptor.
    ///
    /// # Errors
    /// EBADF.
    fn close(&self, fd: RawFd) -> Result<(), Errno>;

    /// Runs an image on a bare machine: see [`Call::Machine`]. A KVM has none: ENODEV.
    fn machine(&self, _image: &Bytes, _reads: &[(u64, u32)], _limit_ticks: u64) -> Reply {
        Reply::bare(Err(Errno(libc::ENODEV)))
    }
}

/// The kernel of this machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostKernel;

impl Kernel for HostKernel {
    fn open(&self, mode: i32) -> Result<RawFd, Errno> {
        // SAFETY: the path is a C string.
        let fd = unsafe { libc::open(c"/dev/kvm".as_ptr(), mode | libc::O_CLOEXEC) };
        checked(fd.into()).map(|fd| fd as RawFd)
    }

    fn ioctl(&self, fd: RawFd, request: u32, argument: u64) -> Result<i64, Errno> {
        // SAFETY: see the module: `argument` is a number, a bad address, or a live large buffer.
        checked(unsafe { libc::ioctl(fd, request.into(), argument) }.into())
    }

    fn close(&self, fd: RawFd) -> Result<(), Errno> {
        // SAFETY: the backend owns its descriptors.
        checked(unsafe { libc::close(fd) }.into()).map(drop)
    }
}

fn last_errno() -> Errno {
    Errno(std::io::Error::last_os_error().raw_os_error().unwrap_or(0))
}

pub(super) fn checked(result: i64) -> Outcome {
    if result == -1 {
        Err(last_errno())
    } else {
        Ok(result)
    }
}

/// Performs calls on real descriptors.
#[derive(Debug)]
pub struct SystemBackend<K> {
    pub(super) kernel: K,
    pub(super) descriptors: HashMap<Handle, RawFd>,
    areas: HashMap<Memory, Area>,
    exhausting: Vec<RawFd>,
}

impl<K: Kernel> SystemBackend<K> {
    /// A backend without descriptors.
    pub fn new(kernel: K) -> SystemBackend<K> {
        catch_alarms();
        SystemBackend {
            kernel,
            descriptors: HashMap::new(),
            areas: HashMap::new(),
            exhausting: Vec::new(),
        }
    }

    pub(super) fn fd(&self, handle: Handle) -> RawFd {
        self.descriptors.get(&handle).copied().unwrap_or(-1)
    }

    pub(super) fn area(&self, memory: Memory) -> Result<&Area, Errno> {
        self.areas.get(&memory).ok_or(Errno(libc::EFAULT))
    }

    fn keep(&mut self, handle: Handle, fd: Outcome) -> Outcome {
        self.descriptors.insert(handle, fd? as RawFd);
        Ok(0)
    }

    fn keep_area(&mut self, memory: Memory, area: Result<Area, Errno>) -> Outcome {
        self.areas.insert(memory, area?);
        Ok(0)
    }

    /// The ioctl, and the bytes of its struct afterwards if they changed.
    fn ioctl(&self, handle: Handle, request: u32, argument: &Argument) -> Reply {
        let (bytes, pointers) = match argument {
            Argument::Value(value) => {
                return Reply::bare(self.kernel.ioctl(self.fd(handle), request, *value));
            }
            Argument::Bytes(bytes) => (bytes, &[][..]),
            Argument::Pointers(bytes, pointers) => (bytes, &pointers[..]),
            Argument::Descriptors(bytes, words) => {
                return self.ioctl_on_descriptors(handle, request, bytes, words);
            }
        };
        let mut buffer = bytes.0.clone();
        buffer.resize(buffer.len().max(LARGEST_STRUCT), 0);
        for pointer in pointers {
            let Ok(address) = self
                .area(pointer.memory)
                .and_then(|area| area.at(pointer.at, 0))
            else {
                return Reply::bare(Err(Errno(libc::EFAULT)));
            };
            let at = pointer.offset as usize;
            buffer[at..at + 8].copy_from_slice(&(address as u64).to_le_bytes());
        }
        let outcome = self.kernel.ioctl(
            self.fd(handle),
            request,
            buffer.as_mut_ptr() as usize as u64,
        );
        buffer.truncate(bytes.0.len());
        for pointer in pointers {
            let at = pointer.offset as usize;
            buffer[at..at + 8].copy_from_slice(&bytes.0[at..at + 8]);
        }
        let changed = if buffer == bytes.0 {
            Vec::new()
        } else {
            buffer
        };
        Reply {
            outcome,
            bytes: Bytes(changed),
        }
    }

    /// An ioctl that only reads its struct, of which some words name descriptors.
    fn ioctl_on_descriptors(
        &self,
        handle: Handle,
        request: u32,
        bytes: &Bytes,
        words: &[(u32, Handle)],
    ) -> Reply {
        let mut buffer = bytes.0.clone();
        buffer.resize(buffer.len().max(LARGEST_STRUCT), 0);
        for (at, named) in words {
            let at = *at as usize;
            buffer[at..at + 4].copy_from_slice(&self.fd(*named).to_le_bytes());
        }
        let address = buffer.as_mut_ptr() as usize as u64;
        Reply::bare(self.kernel.ioctl(self.fd(handle), request, address))
    }

    fn map(&mut self, memory: Memory, handle: Handle, span: (u64, u64), how: Mapping) -> Outcome {
        let (length, offset) = span;
        let read_write = libc::PROT_READ | libc::PROT_WRITE;
        let (protection, flags) = match how {
            Mapping::Shared => (read_write, libc::MAP_SHARED),
            Mapping::Private => (read_write, libc::MAP_PRIVATE),
            Mapping::ReadOnly => (libc::PROT_READ, libc::MAP_SHARED),
        };
        let area = Area::new(
            length as usize,
            protection,
            flags,
            self.fd(handle),
            offset as i64,
        );
        self.keep_area(memory, area)
    }

    fn run(&self, vcpus: &[Handle], limit: Duration) -> Reply {
        let kernel = self.kernel;
        let run = |fd: RawFd| {
            let _watchdog = Watchdog::start(limit);
            kernel.ioctl(fd, KVM_RUN, 0)
        };
        let fds: Vec<RawFd> = vcpus.iter().map(|handle| self.fd(*handle)).collect();
        if let [only] = fds[..] {
            return Reply::bare(run(only));
        }
        let outcomes = std::thread::scope(|scope| {
            let threads: Vec<_> = fds.iter().map(|fd| scope.spawn(|| run(*fd))).collect();
            let joined = threads.into_iter().map(|thread| thread.join());
            joined
                .map(|run| run.unwrap_or(Err(Errno(libc::EIO))))
                .collect::<Vec<Outcome>>()
        });
        Reply {
            outcome: Ok(0),
            bytes: pack(&outcomes),
        }
    }

    /// The reply is the other call's outcome, and the run's.
    fn run_while(&mut self, vcpu: Handle, limit: Duration, call: &Call) -> Reply {
        let (kernel, fd) = (self.kernel, self.fd(vcpu));
        std::thread::scope(|scope| {
            let running = scope.spawn(move || {
                let _watchdog = Watchdog::start(limit);
                kernel.ioctl(fd, KVM_RUN, 0)
            });
            std::thread::sleep(limit / 3);
            let outcome = self.perform(call).outcome;
            let run = running.join().unwrap_or(Err(Errno(libc::EIO)));
            Reply {
                outcome,
                bytes: pack(&[run]),
            }
        })
    }

    fn exhaust(&mut self, exhausted: bool) -> Outcome {
        for fd in self.exhausting.drain(..) {
            // SAFETY: made below, used by nobody.
            unsafe { libc::close(fd) };
        }
        let mut limit = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        // SAFETY: the struct is ours.
        checked(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) }.into())?;
        limit.rlim_cur = if exhausted {
            64
        } else {
            limit.rlim_max.min(1024)
        };
        // SAFETY: the struct is ours.
        checked(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }.into())?;
        if !exhausted {
            return Ok(0);
        }
        loop {
            // SAFETY: standard error is open; the new descriptor is kept.
            let fd = unsafe { libc::dup(2) };
            if fd < 0 {
                break;
            }
            self.exhausting.push(fd);
        }
        Ok(0)
    }

    fn descriptor(&self, handle: Handle, call: DescriptorCall) -> Reply {
        let fd = self.fd(handle);
        let mut buffer = vec![0; 8];
        // SAFETY: plain system calls on a descriptor and a buffer of ours.
        let result = unsafe {
            match call {
                DescriptorCall::Read(length) => {
                    buffer.resize(length as usize, 0);
                    let read = libc::read(fd, buffer.as_mut_ptr().cast(), buffer.len()) as i64;
                    let outcome = checked(read);
                    return Reply {
                        outcome,
                        bytes: Bytes(buffer),
                    };
                }
                DescriptorCall::Write => libc::write(fd, buffer.as_ptr().cast(), 8) as i64,
                DescriptorCall::Seek(to) => libc::lseek(fd, to, libc::SEEK_SET),
                DescriptorCall::CloseOnExec => {
                    i64::from(libc::fcntl(fd, libc::F_GETFD) & libc::FD_CLOEXEC != 0)
                }
                DescriptorCall::AccessMode => {
                    i64::from(libc::fcntl(fd, libc::F_GETFL) & libc::O_ACCMODE)
                }
                DescriptorCall::Poll => {
                    let events = libc::POLLIN | libc::POLLOUT;
                    let mut poll = libc::pollfd {
                        fd,
                        events,
                        revents: 0,
                    };
                    libc::poll(&mut poll, 1, 0);
                    i64::from(poll.revents)
                }
            }
        };
        Reply::bare(checked(result))
    }

    /// What /proc calls a descriptor.
    fn link(&self, handle: Handle) -> Reply {
        match std::fs::read_link(format!("/proc/self/fd/{}", self.fd(handle))) {
            Ok(link) => Reply {
                outcome: Ok(0),
                bytes: Bytes(link.into_os_string().into_vec()),
            },
            Err(error) => Reply::bare(Err(Errno(error.raw_os_error().unwrap_or(libc::EIO)))),
        }
    }

    fn access(&self, call: &Call) -> Option<Reply> {
        match call {
            Call::Read(memory, offset, length) => {
                let mut bytes = vec![0; *length as usize];
                let read = self
                    .area(*memory)
                    .and_then(|area| area.read(*offset, &mut bytes));
                Some(Reply {
                    outcome: read.map(|()| 0),
                    bytes: Bytes(bytes),
                })
            }
            Call::Write(memory, offset, bytes) => {
                let written = self
                    .area(*memory)
                    .and_then(|area| area.write(*offset, &bytes.0));
                Some(Reply::bare(written.map(|()| 0)))
            }
            _ => None,
        }
    }

    fn make(&mut self, call: &Call) -> Outcome {
        match call {
            Call::Open(handle) => {
                let fd = self.kernel.open(libc::O_RDWR);
                self.keep(*handle, fd.map(i64::from))
            }
            Call::OpenReadOnly(handle) => {
                let fd = self.kernel.open(libc::O_RDONLY);
                self.keep(*handle, fd.map(i64::from))
            }
            Call::Event(handle) => {
                let flags = libc::EFD_NONBLOCK | libc::EFD_CLOEXEC;
                // SAFETY: a new descriptor.
                let fd = checked(unsafe { libc::eventfd(0, flags) }.into());
                self.keep(*handle, fd)
            }
            Call::Duplicate(from, into) => {
                // SAFETY: a new descriptor for an old one.
                let fd = checked(unsafe { libc::dup(self.fd(*from)) }.into());
                self.keep(*into, fd)
            }
            Call::Close(handle) => {
                let fd = self.descriptors.remove(handle).unwrap_or(-1);
                self.kernel.close(fd).map(|()| 0)
            }
            Call::Allocate(memory, length) => {
                self.keep_area(*memory, Area::anonymous(*length as usize))
            }
            Call::Map(memory, handle, length, offset, how) => {
                self.map(*memory, *handle, (*length, *offset), *how)
            }
            Call::Unmap(memory) => self
                .areas
                .remove(memory)
                .map(|_| 0)
                .ok_or(Errno(libc::EINVAL)),
            Call::Touch(memory, offset) => self.touch(*memory, *offset),
            Call::ExhaustDescriptors(exhausted) => self.exhaust(*exhausted),
            _ => Err(Errno(libc::ENOSYS)),
        }
    }
}

pub(super) const KVM_RUN: u32 = 0xae80;

pub(super) fn pack(outcomes: &[Outcome]) -> Bytes {
    let number = |outcome: &Outcome| match outcome {
        Ok(value) => *value,
        Err(errno) => -i64::from(errno.0),
    };
    Bytes(
        outcomes
            .iter()
            .flat_map(|outcome| number(outcome).to_le_bytes())
            .collect(),
    )
}

impl<K: Kernel> Backend for SystemBackend<K> {
    fn perform(&mut self, call: &Call) -> Reply {
        if let Some(reply) = self.access(call) {
            return reply;
        }
        match call {
            Call::Ioctl(handle, request, argument) => self.ioctl(*handle, *request, argument),
            Call::Create(handle, request, argument, made) => {
                let Reply { outcome, bytes } = self.ioctl(*handle, *request, argument);
                Reply {
                    outcome: self.keep(*made, outcome),
                    bytes,
                }
            }
            Call::Run(vcpus, limit) => self.run(vcpus, Duration::from_millis((*limit).into())),
            Call::RunWhile(vcpu, limit, call) => {
                self.run_while(*vcpu, Duration::from_millis((*limit).into()), call)
            }
            Call::RunWithPending(vcpu, limit) => {
                self.run_with_pending(*vcpu, Duration::from_millis((*limit).into()))
            }
            Call::Elsewhere(place, call) => self.elsewhere(*place, call),
            Call::Link(handle) => self.link(*handle),
            Call::Machine(image, reads, limit) => self.kernel.machine(image, reads, *limit),
            Call::Descriptor(handle, call) => self.descriptor(*handle, *call),
            Call::Forked(calls) => {
                let bytes = self.in_child(|backend| {
                    let each = calls.iter().map(|(handle, request)| {
                        backend.kernel.ioctl(backend.fd(*handle), *request, 0)
                    });
                    pack(&each.collect::<Vec<_>>()).0
                });
                match bytes {
                    Ok(bytes) => Reply {
                        outcome: Ok(0),
                        bytes: Bytes(bytes),
                    },
                    Err(errno) => Reply::bare(Err(errno)),
                }
            }
            _ => Reply::bare(self.make(call)),
        }
    }

    fn reset(&mut self) {
        self.areas.clear();
        for (_, fd) in self.descriptors.drain() {
            // A case may have closed it behind our back; then there is nothing to do.
            let _ = self.kernel.close(fd);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_handle_is_a_bad_descriptor() {
        let mut backend = SystemBackend::new(HostKernel);
        let call = Call::Ioctl(Handle(7), KVM_RUN, Argument::Value(0));
        assert_eq!(backend.perform(&call), Reply::bare(Err(Errno(libc::EBADF))));
    }
}
