//! Calls that another process makes, or a thread that has a signal pending.
#![expect(
    unsafe_code,
    reason = "fork, clone, descriptors in messages, and signal masks"
)]

use super::host::{Area, Kernel, SystemBackend, Watchdog, checked, pack};
use super::{Backend, Bytes, Call, Errno, Handle, Memory, Outcome, Place, Reply};
use std::ffi::{c_int, c_void};
use std::os::fd::RawFd;
use std::time::Duration;

/// Bytes of stack for a child that shares our memory.
const STACK: usize = 1 << 20;

impl<K: Kernel> SystemBackend<K> {
    /// Performs a call in another place; what it makes is lost.
    pub(super) fn elsewhere(&mut self, place: Place, call: &Call) -> Reply {
        let outcome = match place {
            Place::Forked => self.forked(|backend| backend.perform(call).outcome),
            Place::Vforked => self.vforked(call),
            Place::Receiver(handle) => self.receiver(handle, call),
        };
        Reply::bare(outcome)
    }

    fn forked(&mut self, work: impl FnOnce(&mut Self) -> Outcome) -> Outcome {
        let bytes = self.in_child(|backend| pack(&[work(backend)]).0)?;
        super::unpack(&bytes, 1)[0]
    }

    /// What `work` gives in a forked child, which has memory of its own; the number of the signal
    /// that ended it, if one did.
    pub(super) fn in_child(
        &mut self,
        work: impl FnOnce(&mut Self) -> Vec<u8>,
    ) -> Result<Vec<u8>, Errno> {
        let mut ends = [0; 2];
        // SAFETY: an array of two descriptors.
        checked(unsafe { libc::pipe(ends.as_mut_ptr()) }.into())?;
        let [reader, writer] = ends;
        // SAFETY: this process has one thread while a case runs calls of this kind, so that the
        // child may do what it likes; it leaves through _exit.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let result = work(self);
            // SAFETY: the pipe is open and the buffer is live; then the child ends.
            unsafe {
                libc::write(writer, result.as_ptr().cast(), result.len());
                libc::_exit(0);
            }
        }
        // SAFETY: our ends of our pipe, and our child.
        unsafe {
            libc::close(writer);
            let mut result = vec![0; 4096];
            let length = libc::read(reader, result.as_mut_ptr().cast(), result.len());
            libc::close(reader);
            let mut status = 0;
            libc::waitpid(child, &mut status, 0);
            result.truncate(length.max(0) as usize);
            if libc::WIFSIGNALED(status) {
                result = vec![libc::WTERMSIG(status) as u8];
            }
            Ok(result)
        }
    }

    /// In a child that shares our memory, while this thread waits for it.
    fn vforked(&mut self, call: &Call) -> Outcome {
        struct Work<'a, K> {
            backend: &'a mut SystemBackend<K>,
            call: &'a Call,
            outcome: Outcome,
        }
        extern "C" fn child<K: Kernel>(work: *mut c_void) -> c_int {
            // SAFETY: the parent's `work`, which it does not touch until the child has ended.
            let work = unsafe { &mut *work.cast::<Work<'_, K>>() };
            work.outcome = work.backend.perform(work.call).outcome;
            0
        }
        let mut stack = Area::anonymous(STACK)?;
        let mut work = Work {
            backend: self,
            call,
            outcome: Err(Errno(libc::ECHILD)),
        };
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        // SAFETY: the stack and `work` live until the child has ended, which CLONE_VFORK waits for;
        // it ends by returning, which destroys nothing of this process.
        let pid = unsafe {
            let work = (&raw mut work).cast();
            libc::clone(child::<K>, stack.end().cast(), flags, work)
        };
        checked(pid.into())?;
        // SAFETY: our child.
        unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
        work.outcome
    }

    /// In a child that has got the descriptor by a message.
    fn receiver(&mut self, handle: Handle, call: &Call) -> Outcome {
        let mut ends = [0; 2];
        // SAFETY: an array of two descriptors.
        let made =
            unsafe { libc::socketpair(libc::AF_UNIX, libc::SOCK_STREAM, 0, ends.as_mut_ptr()) };
        checked(made.into())?;
        let sent = Message::new(self.fd(handle)).send(ends[0]);
        let outcome = sent.and_then(|()| {
            self.forked(|backend| {
                let fd = Message::new(-1).receive(ends[1])?;
                backend.descriptors.insert(handle, fd);
                backend.perform(call).outcome
            })
        });
        for end in ends {
            // SAFETY: ours.
            unsafe { libc::close(end) };
        }
        outcome
    }

    /// The number of the signal that a load raises, or 0.
    pub(super) fn touch(&mut self, memory: Memory, offset: u64) -> Outcome {
        let address = self.area(memory)?.at(offset, 1)?;
        let signal = self.in_child(|_| {
            // SAFETY: in the mapping; if nothing is behind it, the signal is the result.
            let _ = unsafe { address.read_volatile() };
            vec![0]
        })?;
        Ok(signal.first().copied().unwrap_or(0).into())
    }

    /// KVM_RUN while SIGUSR1 is blocked and pending in this thread. The reply's only byte says
    /// whether it still is.
    pub(super) fn run_with_pending(&self, vcpu: Handle, limit: Duration) -> Reply {
        let (kernel, fd) = (self.kernel, self.fd(vcpu));
        // SAFETY: sets of our own; the signal is taken away and the mask restored before the end.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            let mut before = set;
            libc::sigaddset(&mut set, libc::SIGUSR1);
            libc::pthread_sigmask(libc::SIG_BLOCK, &set, &mut before);
            libc::pthread_kill(libc::pthread_self(), libc::SIGUSR1);
            let outcome = {
                let _watchdog = Watchdog::start(limit);
                kernel.ioctl(fd, super::host::KVM_RUN, 0)
            };
            let now = libc::timespec {
                tv_sec: 0,
                tv_nsec: 0,
            };
            let is_pending = libc::sigtimedwait(&set, std::ptr::null_mut(), &now) == libc::SIGUSR1;
            libc::pthread_sigmask(libc::SIG_SETMASK, &before, std::ptr::null_mut());
            Reply {
                outcome,
                bytes: Bytes(vec![is_pending.into()]),
            }
        }
    }
}

/// A message of one byte and one descriptor.
struct Message {
    control: [u64; 8],
    byte: [u8; 1],
}

impl Message {
    fn new(fd: RawFd) -> Self {
        let mut message = Self {
            control: [0; 8],
            byte: [0],
        };
        let header = message.header_mut();
        // SAFETY: the control buffer is large enough and aligned for one descriptor.
        unsafe {
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(size_of::<RawFd>() as u32) as usize;
            libc::CMSG_DATA(header).cast::<RawFd>().write_unaligned(fd);
        }
        message
    }

    fn header_mut(&mut self) -> *mut libc::cmsghdr {
        self.control.as_mut_ptr().cast()
    }

    /// Calls `transfer` with a header that names this message.
    fn with_header(&mut self, transfer: impl FnOnce(*mut libc::msghdr) -> isize) -> Outcome {
        let mut part = libc::iovec {
            iov_base: self.byte.as_mut_ptr().cast(),
            iov_len: 1,
        };
        // SAFETY: all zeroes is a header without parts.
        let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
        header.msg_iov = &mut part;
        header.msg_iovlen = 1;
        header.msg_control = self.control.as_mut_ptr().cast();
        // SAFETY: only computes.
        header.msg_controllen = unsafe { libc::CMSG_SPACE(size_of::<RawFd>() as u32) } as usize;
        checked(transfer(&mut header) as i64)
    }

    fn send(&mut self, socket: RawFd) -> Result<(), Errno> {
        // SAFETY: the header names live buffers.
        let sent = self.with_header(|header| unsafe { libc::sendmsg(socket, header, 0) });
        sent.map(drop)
    }

    fn receive(&mut self, socket: RawFd) -> Result<RawFd, Errno> {
        // SAFETY: the header names live buffers.
        self.with_header(|header| unsafe { libc::recvmsg(socket, header, 0) })?;
        let header = self.header_mut();
        // SAFETY: the buffer holds one message with one descriptor, sent by `send`.
        Ok(unsafe { libc::CMSG_DATA(header).cast::<RawFd>().read_unaligned() })
    }
}
