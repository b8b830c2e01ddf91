//! Signal handlers wait until an ioctl is done.
//!
//! In the kernel no handler runs in the middle of an ioctl: a signal ends KVM_RUN with EINTR, and
//! its handler runs when the call has returned. There it may ask the vCPU for its registers, or
//! leave by `siglongjmp`. Our ioctl is a call of a function, in which a handler may come at any
//! instruction. To keep it out by blocking signals takes two system calls for each KVM_RUN; so
//! whoever stands between the program and its handlers, as the preload library does, asks
//! [`defer_signal`] first: within an ioctl the signal is queued again, blocked until the end of
//! the call, and then delivered as if it had come there.
//!
//! [`Inside`] marks the thread as being within an ioctl. It is taken before any lock and let go
//! after all.
#![expect(unsafe_code, reason = "signals, and the frame of a handler")]

use crate::signals::{FAULTS, Mask, exchange};
use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering, compiler_fence};

/// What a thread and the handlers that interrupt it know of each other.
struct State {
    is_inside: AtomicBool,
    /// Signals are blocked until the end of the ioctl; the thread's mask was `before`.
    is_blocked: AtomicBool,
    before: AtomicU64,
    /// A handler has run within the ioctl, because its signal could not be queued again.
    was_handled: AtomicBool,
}

thread_local! {
    // Without a destructor and initialised by a constant: a handler may use it at any time.
    static STATE: State = const {
        State {
            is_inside: AtomicBool::new(false),
            is_blocked: AtomicBool::new(false),
            before: AtomicU64::new(0),
            was_handled: AtomicBool::new(false),
        }
    };
}

static HANDLERS_DEFER: AtomicBool = AtomicBool::new(false);

/// Says whether every signal handler of this process asks [`defer_signal`] first, but for those of
/// SIGSEGV and SIGBUS. If not, KVM_RUN blocks signals, which takes two system calls.
pub fn set_handlers_defer(defer: bool) {
    HANDLERS_DEFER.store(defer, Ordering::Relaxed);
}

/// Whether every signal handler of this process asks [`defer_signal`] first.
#[must_use]
pub fn handlers_defer() -> bool {
    HANDLERS_DEFER.load(Ordering::Relaxed)
}

/// Asks, in a signal handler, whether the signal has to wait: true if the thread is within an
/// ioctl of this library. The handler then returns at once; it is called again when the ioctl is
/// done. Of several queued signals of one number the first may so come last.
///
/// # Safety
/// The arguments are those of a handler that was installed with SA_SIGINFO, and that returns, if
/// the answer is true.
pub unsafe fn defer_signal(
    signal: c_int,
    info: *mut libc::siginfo_t,
    context: *mut c_void,
) -> bool {
    STATE.with(|state| {
        if !state.is_inside.load(Ordering::Relaxed) {
            return false;
        }
        // With SA_NODEFER it would come back before the handler has returned.
        let in_handler = exchange(!FAULTS);
        // SAFETY: the caller's.
        if !unsafe { queue_again(signal, info) } {
            exchange(in_handler);
            state.was_handled.store(true, Ordering::Relaxed);
            return false;
        }
        // SAFETY: the frame of the handler, from which the kernel takes the thread's mask. It has
        // a word of it. Frames of handlers that this one has interrupted lie outside: the last
        // to store is the outermost, which has the thread's own mask.
        unsafe {
            let mask = (&raw mut (*context.cast::<libc::ucontext_t>()).uc_sigmask).cast::<Mask>();
            state.before.store(mask.read(), Ordering::Relaxed);
            mask.write(!FAULTS);
        }
        state.is_blocked.store(true, Ordering::Relaxed);
        true
    })
}

/// Sends a signal to this thread with all that is known about it; false if the queue is full.
///
/// # Safety
/// `info` is a handler's argument.
unsafe fn queue_again(signal: c_int, info: *mut libc::siginfo_t) -> bool {
    // SAFETY: the thread sends to itself; errno is put back, as the interrupted code may be about
    // to read it.
    unsafe {
        let errno = libc::__errno_location();
        let before = *errno;
        let (process, thread) = (libc::getpid(), libc::syscall(libc::SYS_gettid));
        let sent = libc::syscall(libc::SYS_rt_tgsigqueueinfo, process, thread, signal, info);
        *errno = before;
        sent == 0
    }
}

/// This thread is within an ioctl.
#[derive(Debug)]
pub(crate) struct Inside(());

impl Inside {
    /// Enters an ioctl; nothing if the thread is within one, which a signal handler has
    /// interrupted that did not ask [`defer_signal`].
    pub(crate) fn enter() -> Option<Self> {
        let was_inside = STATE.with(|state| {
            let was = state.is_inside.load(Ordering::Relaxed);
            state.is_inside.store(true, Ordering::Relaxed);
            was
        });
        compiler_fence(Ordering::SeqCst);
        // Not `then_some`: a second value would be dropped, which ends the first.
        (!was_inside).then(|| Self(()))
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        compiler_fence(Ordering::SeqCst);
        STATE.with(|state| {
            state.is_inside.store(false, Ordering::Relaxed);
            compiler_fence(Ordering::SeqCst);
            state.was_handled.store(false, Ordering::Relaxed);
            // While it is set no handler runs, so nobody comes between.
            if state.is_blocked.load(Ordering::Relaxed) {
                state.is_blocked.store(false, Ordering::Relaxed);
                exchange(state.before.load(Ordering::Relaxed));
            }
        });
    }
}

/// Returns the thread's own mask, if a deferred signal has blocked all.
pub(crate) fn mask_before() -> Option<Mask> {
    STATE.with(|state| {
        let is_blocked = state.is_blocked.load(Ordering::Relaxed);
        is_blocked.then(|| state.before.load(Ordering::Relaxed))
    })
}

/// Whether a handler has run within this ioctl: then KVM_RUN ends with EINTR, as if the signal had
/// come in the kernel.
pub(crate) fn was_handled() -> bool {
    STATE.with(|state| state.was_handled.load(Ordering::Relaxed))
}

/// Gives the thread its mask back: within an ioctl, when that ends.
pub(crate) fn restore(before: Mask) {
    STATE.with(|state| {
        if state.is_inside.load(Ordering::Relaxed) {
            state.before.store(before, Ordering::Relaxed);
            state.is_blocked.store(true, Ordering::Relaxed);
        } else {
            exchange(before);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    thread_local! {
        static HANDLED: Cell<u32> = const { Cell::new(0) };
    }

    extern "C" fn handler(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
        // SAFETY: the kernel's arguments; the handler returns.
        if !unsafe { defer_signal(signal, info, context) } {
            HANDLED.set(HANDLED.get() + 1);
        }
    }

    fn handle(signal: c_int, flags: c_int) {
        // SAFETY: the handler has the type that SA_SIGINFO asks for.
        unsafe {
            let mut action: libc::sigaction = core::mem::zeroed();
            action.sa_sigaction = handler as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | flags;
            assert_eq!(
                libc::sigaction(signal, &raw const action, core::ptr::null_mut()),
                0
            );
        }
    }

    fn raise(signal: c_int) {
        // SAFETY: the signal has a handler.
        unsafe { libc::raise(signal) };
    }

    #[test]
    fn signals_wait_for_the_end_of_the_ioctl_and_the_mask_is_as_before() {
        let signals = [libc::SIGPROF, libc::SIGRTMIN() + 3, libc::SIGVTALRM];
        handle(signals[0], 0);
        handle(signals[1], libc::SA_NODEFER);
        handle(signals[2], 0);
        let mask = exchange(1 << (libc::SIGHUP - 1));
        let inside = Inside::enter().expect("not yet within one");
        assert!(Inside::enter().is_none());
        signals.into_iter().for_each(raise);
        assert_eq!(HANDLED.get(), 0);
        assert_eq!(mask_before(), Some(1 << (libc::SIGHUP - 1)));
        drop(inside);
        assert_eq!(HANDLED.get(), 3);
        assert_eq!(exchange(mask), 1 << (libc::SIGHUP - 1));
        raise(signals[0]);
        assert_eq!(HANDLED.get(), 4);
    }

    /// With the queue of signals full a handler cannot wait: KVM_RUN has to end nevertheless.
    #[test]
    fn a_handler_that_cannot_wait_is_known_to_have_run() {
        let signal = libc::SIGRTMIN() + 4;
        handle(signal, 0);
        let mut limit = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        let before = HANDLED.get();
        let inside = Inside::enter().expect("not yet within one");
        assert!(!was_handled());
        // SAFETY: the limit is readable and writable; the signal has a handler.
        unsafe {
            libc::getrlimit(libc::RLIMIT_SIGPENDING, &raw mut limit);
            let none = libc::rlimit {
                rlim_cur: 0,
                ..limit
            };
            // What the kernel itself sends is not counted: a timer has its room reserved.
            let mut timer = core::mem::zeroed();
            let mut event: libc::sigevent = core::mem::zeroed();
            event.sigev_notify = libc::SIGEV_THREAD_ID;
            event.sigev_signo = signal;
            event.sigev_notify_thread_id = libc::syscall(libc::SYS_gettid) as c_int;
            let made = libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer);
            assert_eq!(made, 0);
            libc::setrlimit(libc::RLIMIT_SIGPENDING, &raw const none);
            let mut soon: libc::itimerspec = core::mem::zeroed();
            soon.it_value.tv_nsec = 1;
            libc::timer_settime(timer, 0, &raw const soon, core::ptr::null_mut());
            while HANDLED.get() == before {
                std::thread::yield_now();
            }
            libc::setrlimit(libc::RLIMIT_SIGPENDING, &raw const limit);
            libc::timer_delete(timer);
        }
        assert!(was_handled());
        drop(inside);
        assert!(!was_handled());
    }
}
