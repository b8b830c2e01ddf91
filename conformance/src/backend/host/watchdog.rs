//! A timer that ends a system call which lasts too long.
#![expect(unsafe_code, reason = "system calls: signals and timers")]

use std::time::Duration;

extern "C" fn ignore(_signal: libc::c_int) {}

/// SIGALRM interrupts system calls and does nothing else.
pub(super) fn catch_alarms() {
    let handler = ignore as extern "C" fn(libc::c_int);
    // SAFETY: the handler does nothing; the mask is empty; no SA_RESTART, so that KVM_RUN ends.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as libc::sighandler_t;
        libc::sigaction(libc::SIGALRM, &action, std::ptr::null_mut());
    }
}

/// Sends SIGALRM to its thread after a time, and then every 20 ms, until dropped.
pub(in crate::backend) struct Watchdog(libc::timer_t);

impl Watchdog {
    pub(in crate::backend) fn start(limit: Duration) -> Watchdog {
        let mut timer = std::ptr::null_mut();
        // SAFETY: the event and the times are plain structs of ours; the timer is deleted on drop.
        unsafe {
            let mut event: libc::sigevent = std::mem::zeroed();
            event.sigev_notify = libc::SIGEV_THREAD_ID;
            event.sigev_signo = libc::SIGALRM;
            event.sigev_notify_thread_id = libc::gettid();
            libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut timer);
            let mut time: libc::itimerspec = std::mem::zeroed();
            time.it_value.tv_sec = limit.as_secs() as i64;
            time.it_value.tv_nsec = limit.subsec_nanos().into();
            time.it_interval.tv_nsec = 20_000_000;
            libc::timer_settime(timer, 0, &time, std::ptr::null_mut());
        }
        Watchdog(timer)
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        // SAFETY: made by `start`.
        unsafe { libc::timer_delete(self.0) };
    }
}
