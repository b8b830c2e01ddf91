//! Whether what a descriptor names can have changed since somebody looked.
//!
//! To ask the kernel whose descriptor it is takes one system call, about a third of a short
//! KVM_RUN. Whoever sees all calls by which the program can close a descriptor, as the preload
//! library does, tells of them by
//! [`begin_descriptor_change`]; then what a thread has found out holds
//! until the next such call, but for [`TRUSTED_USES`] uses at most: a `close` by the raw system call
//! is not seen.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// How many uses of a descriptor are believed after one look.
pub(crate) const TRUSTED_USES: u32 = 256;

/// Changes that are under way, in the low half, and those done, in the high one.
static CHANGES: AtomicU64 = AtomicU64::new(0);
const UNDER_WAY: u64 = 0xffff_ffff;
const DONE: u64 = 1 << 32;

static IS_WATCHED: AtomicBool = AtomicBool::new(false);

/// Says that from now on [`begin_descriptor_change`] is told of each call, but raw system calls,
/// that may close a descriptor.
pub fn watch_descriptors() {
    IS_WATCHED.store(true, Ordering::Relaxed);
}

/// Says that the program is about to close descriptors, or to put others in their places.
pub fn begin_descriptor_change() {
    CHANGES.fetch_add(1, Ordering::SeqCst);
}

/// Says that it has done so. A change that never ends, because its thread does, costs system calls
/// only.
pub fn end_descriptor_change() {
    CHANGES.fetch_add(DONE - 1, Ordering::SeqCst);
}

/// The time of a look at a descriptor; two are equal if nothing can have changed between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moment(u64);

/// Returns the present moment; nothing while a descriptor changes, or if nobody watches.
pub(crate) fn now() -> Option<Moment> {
    let changes = CHANGES.load(Ordering::SeqCst);
    let is_quiet = changes & UNDER_WAY == 0 && IS_WATCHED.load(Ordering::Relaxed);
    is_quiet.then_some(Moment(changes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_moment_is_in_a_change_and_none_is_the_same_after_it() {
        assert_eq!(now(), None);
        watch_descriptors();
        let before = now().expect("nothing changes");
        begin_descriptor_change();
        begin_descriptor_change();
        assert_eq!(now(), None);
        end_descriptor_change();
        assert_eq!(now(), None);
        end_descriptor_change();
        assert_ne!(now().expect("nothing changes"), before);
    }
}
