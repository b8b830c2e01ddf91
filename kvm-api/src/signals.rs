//! Signals during KVM_RUN: a pending one ends it with EINTR (api.rst, "KVM_RUN",
//! "KVM_SET_SIGNAL_MASK").
//!
//! The kernel looks at the thread's pending signals under the effective mask. We block all
//! signals while the guest runs, look at what is pending between slices, and restore the mask at
//! the end, so that handlers run when KVM_RUN returns, as they do there. SIGSEGV and SIGBUS are not
//! blocked: see `host_fault`.
#![expect(unsafe_code, reason = "signal masks")]

use crate::host_fault;
use core::cell::Cell;
use core::mem::MaybeUninit;
use std::time::{Duration, Instant};

/// A set of signals as a word: bit n - 1 for signal n.
type Mask = u64;

/// Signals that the default disposition ignores.
const IGNORED_BY_DEFAULT: [i32; 4] = [libc::SIGCHLD, libc::SIGURG, libc::SIGWINCH, libc::SIGCONT];

/// Those of a failed access to guest memory: blocked, they would end the process.
const FAULTS: Mask = 1 << (host_fault::SIGNALS[0] - 1) | 1 << (host_fault::SIGNALS[1] - 1);

/// All signals blocked that can be, until it is dropped.
#[derive(Debug)]
pub(crate) struct Blocked {
    /// The thread's mask before.
    before: Mask,
    /// The mask in effect for KVM_RUN.
    effective: Mask,
    looked: Cell<Looked>,
}

/// When the pending signals were last looked at.
#[derive(Clone, Copy, Debug)]
enum Looked {
    /// Never: the mask may let old ones through.
    Never,
    /// Just now: what was pending and not blocked has been delivered.
    JustNow,
    At(Instant),
}

/// How long a signal may wait until it is seen.
const PATIENCE: Duration = Duration::from_micros(200);

impl Blocked {
    /// Blocks all signals; `mask` is in effect instead of the thread's own.
    pub(crate) fn new(mask: Option<Mask>) -> Self {
        host_fault::install();
        let before = exchange(!FAULTS);
        let looked = match mask {
            Some(_) => Looked::Never,
            None => Looked::JustNow,
        };
        Self {
            before,
            effective: mask.unwrap_or(before),
            looked: Cell::new(looked),
        }
    }

    /// As [`Self::is_pending`], but looks only now and then: at least every 200 microseconds.
    pub(crate) fn is_pending_lately(&self) -> bool {
        let is_fresh = match self.looked.get() {
            Looked::Never => false,
            // The clock is not read in a run that ends at its first VM exit.
            Looked::JustNow => {
                self.looked.set(Looked::Never);
                return false;
            }
            Looked::At(then) => then.elapsed() < PATIENCE,
        };
        if is_fresh {
            return false;
        }
        self.looked.set(Looked::At(Instant::now()));
        self.is_pending()
    }

    /// Whether a signal is pending that would be delivered or would end the process.
    pub(crate) fn is_pending(&self) -> bool {
        let pending = pending() & !self.effective;
        pending != 0 && (1..=64).any(|signal| pending >> (signal - 1) & 1 != 0 && counts(signal))
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        exchange(self.before);
    }
}

/// Bytes of the kernel's signal set.
const KERNEL_SET_BYTES: usize = 8;

/// Replaces the thread's mask by the kernel's own call: the C library would keep two signals.
fn exchange(mask: Mask) -> Mask {
    let mut old: Mask = 0;
    // SAFETY: both sets are words of the size given. The C library's internal signals are blocked
    // for the length of one KVM_RUN only, and looked at in every slice.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const mask,
            &raw mut old,
            KERNEL_SET_BYTES,
        );
    }
    old
}

fn pending() -> Mask {
    let mut set: Mask = 0;
    // SAFETY: the set is a word of the size given.
    unsafe { libc::syscall(libc::SYS_rt_sigpending, &raw mut set, KERNEL_SET_BYTES) };
    set
}

/// Whether a pending signal counts: while it is blocked, even one that is ignored is kept.
fn counts(signal: i32) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: only asks for the disposition; `action` is writable.
    if unsafe { libc::sigaction(signal, core::ptr::null(), action.as_mut_ptr()) } != 0 {
        // The C library's internal signals, which have handlers.
        return true;
    }
    // SAFETY: the call has filled it; zeros are valid as well.
    let handler = unsafe { action.assume_init() }.sa_sigaction;
    let by_default = handler == libc::SIG_DFL && IGNORED_BY_DEFAULT.contains(&signal);
    handler != libc::SIG_IGN && !by_default
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends a signal to this thread.
    fn raise(signal: i32) {
        // SAFETY: the thread is this one; the signal is blocked or ignored.
        unsafe { libc::pthread_kill(libc::pthread_self(), signal) };
    }

    extern "C" fn nothing(_: i32) {}

    #[test]
    fn a_signal_with_a_handler_is_seen_and_an_ignored_one_is_not() {
        // SAFETY: the handler does nothing.
        unsafe { libc::signal(libc::SIGUSR2, nothing as *const () as usize) };
        let blocked = Blocked::new(None);
        assert!(!blocked.is_pending());
        raise(libc::SIGWINCH);
        assert!(!blocked.is_pending());
        raise(libc::SIGUSR2);
        assert!(blocked.is_pending());
        drop(blocked);
        assert!(!Blocked::new(None).is_pending());
    }

    #[test]
    fn a_signal_outside_the_effective_mask_does_not_count() {
        // SAFETY: the handler does nothing.
        unsafe { libc::signal(libc::SIGUSR1, nothing as *const () as usize) };
        let blocked = Blocked::new(Some(1 << (libc::SIGUSR1 - 1)));
        raise(libc::SIGUSR1);
        assert!(!blocked.is_pending());
    }
}
