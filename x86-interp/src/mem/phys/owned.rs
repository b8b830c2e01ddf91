//! Host memory for a machine that brings its own RAM.

use std::alloc::Layout;
use std::ptr::NonNull;

use super::PAGE;

/// Zeroed, page-aligned host memory that this crate owns.
#[derive(Debug)]
pub struct OwnedRam {
    /// The first page boundary in the allocation.
    pointer: NonNull<u8>,
    bytes: usize,
    /// The allocation, one page larger: the allocator clears what it must align, and takes
    /// untouched pages from the system for what it need not.
    allocation: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the memory is plain bytes without thread affinity; all accesses through `PhysMap` are
// volatile or atomic.
unsafe impl Send for OwnedRam {}
// SAFETY: as above.
unsafe impl Sync for OwnedRam {}

impl OwnedRam {
    /// Allocates `pages` pages of 4 KiB; `None` if `pages` is 0, too large, or memory is short.
    #[must_use]
    pub fn new(pages: usize) -> Option<Self> {
        let bytes = pages.checked_mul(PAGE as usize).filter(|&b| b != 0)?;
        let layout = Layout::from_size_align(bytes.checked_add(PAGE as usize)?, 1).ok()?;
        // SAFETY: the layout has a non-zero size.
        let allocation = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) })?;
        let past = allocation.addr().get() % PAGE as usize;
        // SAFETY: at most one page further, and that page is more than `bytes`.
        let pointer = unsafe { allocation.add((PAGE as usize - past) % PAGE as usize) };
        Some(Self {
            pointer,
            bytes,
            allocation,
            layout,
        })
    }

    /// Returns the address of the first byte.
    #[must_use]
    pub fn as_ptr(&self) -> NonNull<u8> {
        self.pointer
    }

    /// Returns the size in bytes.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for OwnedRam {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { std::alloc::dealloc(self.allocation.as_ptr(), self.layout) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_pages_are_aligned_and_clear() {
        for pages in [1, 3, 600] {
            let ram = OwnedRam::new(pages).expect("not much");
            assert_eq!(ram.len_bytes(), 4096 * pages);
            assert_eq!(ram.as_ptr().addr().get() % 4096, 0);
            // SAFETY: all of it is allocated, and nobody else has it.
            let bytes =
                unsafe { std::slice::from_raw_parts_mut(ram.as_ptr().as_ptr(), 4096 * pages) };
            assert!(bytes.iter().all(|&byte| byte == 0));
            bytes.fill(0xff);
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        assert!(OwnedRam::new(0).is_none());
        assert!(OwnedRam::new(usize::MAX / 4096).is_none());
        assert!(OwnedRam::new(usize::MAX).is_none());
    }
}
