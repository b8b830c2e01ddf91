//! Identity of the caller's address space (`kvm->mm`): a VM belongs to the one that made it.
//!
//! A page that the kernel wipes on fork tells a child from its parent, and a `vfork` child or a
//! thread, which share the address space, from neither.
#![expect(unsafe_code, reason = "a page with MADV_WIPEONFORK")]

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::OnceLock;

/// Names an address space; two are equal if they are the same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MmId(u64);

impl MmId {
    /// None of this line of processes.
    pub(crate) const NOBODY: Self = Self(0);
}

struct Page(NonNull<AtomicU64>);

// SAFETY: the page is mapped for the life of the process and is only used as an atomic.
unsafe impl Send for Page {}
// SAFETY: as above.
unsafe impl Sync for Page {}

static PAGE: OnceLock<Page> = OnceLock::new();
/// The last identity given in this line of processes; a child inherits it, and goes on from it.
static LAST: AtomicU64 = AtomicU64::new(0);

/// Returns the identity of the current address space.
pub(crate) fn current() -> MmId {
    let page = PAGE.get_or_init(map_page);
    // SAFETY: the page is mapped, aligned and lives as long as the process.
    let cell = unsafe { page.0.as_ref() };
    match cell.load(Ordering::Relaxed) {
        0 => {
            let fresh = LAST.fetch_add(1, Ordering::Relaxed) + 1;
            // A race between two threads of one process: the first one's value stands.
            match cell.compare_exchange(0, fresh, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => MmId(fresh),
                Err(other) => MmId(other),
            }
        }
        id => MmId(id),
    }
}

fn map_page() -> Page {
    let (prot, flags) = (
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
    );
    // SAFETY: a new anonymous mapping at an address of the kernel's choice.
    let page = unsafe { libc::mmap(core::ptr::null_mut(), 4096, prot, flags, -1, 0) };
    assert_ne!(page, libc::MAP_FAILED, "one page of memory");
    // SAFETY: the mapping was made above. Before Linux 4.14 the advice fails: a child is then
    // taken for its parent and misses its EIO; it works on its own copy of everything.
    unsafe { libc::madvise(page, 4096, libc::MADV_WIPEONFORK) };
    Page(NonNull::new(page.cast()).expect("mmap does not give null without MAP_FIXED"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_share_it_and_a_forked_child_does_not() {
        let here = current();
        assert_eq!(std::thread::spawn(current).join().expect("no panic"), here);
        // SAFETY: the child only reads memory and leaves by `_exit`.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let code = i32::from(current() == here);
            // SAFETY: leaves the child at once.
            unsafe { libc::_exit(code) };
        }
        let mut status = -1;
        // SAFETY: waits for the child made above.
        unsafe { libc::waitpid(child, &raw mut status, 0) };
        assert_eq!(status, 0, "the child saw another address space");
    }
}
