//! Signals during KVM_RUN: a pending one ends it with EINTR (api.rst, "KVM_RUN",
//! "KVM_SET_SIGNAL_MASK").
//!
//! The kernel looks at the thread's pending signals under the effective mask. We block all
//! signals while the guest runs, look at what is pending between slices, and restore the mask at
//! the end, so that handlers run when KVM_RUN returns, as they do there. SIGSEGV and SIGBUS are not
//! blocked: see `host_fault`.
//!
//! Blocking takes two system calls. Where handlers ask `deferral` first they cannot come in
//! between, and signals are blocked only when the guest runs on. So for a caller of
//! [`crate::Vcpu::run`], which is Rust code whose handlers call nothing of ours: there a signal
//! that is handled during the first instructions came before KVM_RUN.
#![expect(unsafe_code, reason = "signal masks")]

use crate::deferral;
use crate::host_fault;
use core::cell::Cell;
use core::mem::MaybeUninit;
use std::time::{Duration, Instant};
use x86_interp::run::Slice;

/// A set of signals as a word: bit n - 1 for signal n.
pub(crate) type Mask = u64;

/// Signals that the default disposition ignores.
const IGNORED_BY_DEFAULT: [i32; 4] = [libc::SIGCHLD, libc::SIGURG, libc::SIGWINCH, libc::SIGCONT];

/// Those of a failed access to guest memory: blocked, they would end the process.
pub(crate) const FAULTS: Mask =
    1 << (host_fault::SIGNALS[0] - 1) | 1 << (host_fault::SIGNALS[1] - 1);

/// When signals are blocked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Block {
    /// During all of KVM_RUN.
    AtOnce,
    /// When the guest has not exited to user space within [`UNBLOCKED`].
    Later,
}

/// How far the guest may run before signals are blocked.
pub(crate) const UNBLOCKED: Slice = Slice {
    instructions: 256,
    work: 64,
};

/// The signals of one KVM_RUN; the thread's mask is restored when it is dropped.
#[derive(Debug)]
pub(crate) struct Signals {
    /// The thread's mask before all that can be were blocked.
    before: Cell<Option<Mask>>,
    /// The mask in effect for KVM_RUN instead of the thread's own.
    mask: Cell<Option<Mask>>,
    looked: Cell<Looked>,
    /// A handler has run before signals were blocked: it has asked for `immediate_exit`, or it could
    /// not wait.
    is_interrupted: Cell<bool>,
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

impl Signals {
    /// Prepares for a KVM_RUN. To be dropped when the vCPU is unlocked: then handlers run.
    pub(crate) fn new(block: Block) -> Self {
        host_fault::install();
        let signals = Self {
            before: Cell::new(None),
            mask: Cell::new(None),
            looked: Cell::new(Looked::JustNow),
            is_interrupted: Cell::new(false),
        };
        if block == Block::AtOnce {
            // Before the vCPU is locked: that may take long, and what is handled meanwhile has to
            // end this KVM_RUN.
            signals.block_all();
        }
        signals
    }

    /// Begins the KVM_RUN; `mask` is in effect instead of the thread's own.
    pub(crate) fn begin(&self, mask: Option<Mask>) {
        self.mask.set(mask);
        if mask.is_some() || deferral::mask_before().is_some() {
            self.looked.set(Looked::Never);
        }
        if mask.is_some() && !self.are_blocked() {
            self.block_all();
        }
    }

    fn block_all(&self) {
        let held = exchange(!FAULTS);
        // A signal that was deferred until here has left nothing else unblocked.
        self.before
            .set(Some(deferral::mask_before().unwrap_or(held)));
        if deferral::was_handled() {
            self.is_interrupted.set(true);
        }
    }

    /// Whether signals are blocked.
    pub(crate) fn are_blocked(&self) -> bool {
        self.before.get().is_some()
    }

    /// Blocks signals if they are not. What a handler has asked for until then ends the run.
    pub(crate) fn block(&self, immediate_exit: impl Fn() -> bool) {
        if !self.are_blocked() {
            self.block_all();
            if immediate_exit() {
                self.is_interrupted.set(true);
            }
        }
    }

    /// As [`Self::is_pending`], but looks only now and then: at least every 200 microseconds.
    pub(crate) fn is_pending_lately(&self) -> bool {
        if self.is_interrupted.get() {
            return true;
        }
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
        if self.is_interrupted.get() {
            return true;
        }
        let effective = self.mask.get().or(self.before.get()).unwrap_or(Mask::MAX);
        let pending = pending() & !effective;
        pending != 0 && (1..=64).any(|signal| pending >> (signal - 1) & 1 != 0 && counts(signal))
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        if let Some(before) = self.before.get() {
            deferral::restore(before);
        }
    }
}

/// Bytes of the kernel's signal set.
const KERNEL_SET_BYTES: usize = 8;

/// Replaces the thread's mask by the kernel's own call: the C library would keep two signals.
pub(crate) fn exchange(mask: Mask) -> Mask {
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

    fn begun(mask: Option<Mask>, block: Block) -> Signals {
        let signals = Signals::new(block);
        signals.begin(mask);
        signals
    }

    #[test]
    fn a_signal_with_a_handler_is_seen_and_an_ignored_one_is_not() {
        // SAFETY: the handler does nothing.
        unsafe { libc::signal(libc::SIGUSR2, nothing as *const () as usize) };
        let blocked = begun(None, Block::AtOnce);
        assert!(!blocked.is_pending());
        raise(libc::SIGWINCH);
        assert!(!blocked.is_pending());
        raise(libc::SIGUSR2);
        assert!(blocked.is_pending());
        drop(blocked);
        assert!(!begun(None, Block::AtOnce).is_pending());
    }

    #[test]
    fn a_signal_outside_the_effective_mask_does_not_count() {
        // SAFETY: the handler does nothing.
        unsafe { libc::signal(libc::SIGUSR1, nothing as *const () as usize) };
        let blocked = begun(Some(1 << (libc::SIGUSR1 - 1)), Block::AtOnce);
        raise(libc::SIGUSR1);
        assert!(!blocked.is_pending());
    }

    #[test]
    fn signals_are_blocked_later_and_an_early_wish_counts() {
        let signals = begun(None, Block::Later);
        assert!(!signals.are_blocked());
        signals.block(|| false);
        assert!(signals.are_blocked());
        assert!(!signals.is_pending());
        let signals = begun(None, Block::Later);
        signals.block(|| true);
        assert!(signals.is_pending_lately());
        assert!(begun(Some(0), Block::Later).are_blocked());
    }
}
