//! Which host pages hold decoded code: how a store finds out that it changes instructions.
//!
//! For each page of host memory there is a [`CodePage`]: a mask of its 64-byte lines that hold
//! decoded code, and a generation that moves with each store to such a line. Blocks remember the
//! generation. Regions over the same host memory share one table.
//!
//! Orders that matter between processors: whoever decodes marks the lines, then reads the
//! generation, then the bytes (if the lines are marked already, reads the generation, then looks at
//! the lines, then reads the bytes); whoever stores writes the bytes, then looks at the lines, clears
//! them, then moves the generation.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What is known about the code in one host page.
#[derive(Debug, Default)]
pub(crate) struct CodePage {
    lines: AtomicU64,
    generation: AtomicU64,
}

impl CodePage {
    /// Returns the generation, for as long as the table lives.
    pub(crate) fn generation(&self) -> &AtomicU64 {
        &self.generation
    }

    /// Whether some line of the page holds decoded code.
    #[inline]
    pub(crate) fn has_code(&self) -> bool {
        self.lines.load(Ordering::SeqCst) != 0
    }

    /// Marks the lines of `length` bytes at `offset`; true if the page had no code before.
    pub(crate) fn mark(&self, offset: u64, length: usize) -> bool {
        self.lines.fetch_or(lines(offset, length), Ordering::SeqCst) == 0
    }

    /// Returns the generation if the lines of `length` bytes at `offset` are marked already: they
    /// are looked at after it, so that whoever clears them moves it later.
    #[inline]
    pub(crate) fn marked_generation(&self, offset: u64, length: usize) -> Option<u64> {
        let generation = self.generation.load(Ordering::SeqCst);
        let mask = lines(offset, length);
        (self.lines.load(Ordering::SeqCst) & mask == mask).then_some(generation)
    }

    /// Tells that `length` bytes at `offset` have been written; true if a line held code.
    #[inline]
    pub(crate) fn written(&self, offset: u64, length: usize) -> bool {
        if self.lines.load(Ordering::SeqCst) & lines(offset, length) == 0 {
            return false;
        }
        self.lines.store(0, Ordering::SeqCst);
        self.generation.fetch_add(1, Ordering::SeqCst);
        true
    }
}

/// Returns the mask of the 64-byte lines that `length` bytes at `offset` of a page touch.
#[inline]
fn lines(offset: u64, length: usize) -> u64 {
    let first = (offset & 0xfff) >> 6;
    let last = ((offset & 0xfff) + (length.max(1) as u64 - 1)).min(0xfff) >> 6;
    (u64::MAX >> (63 - (last - first))) << first
}

/// The [`CodePage`]s of a range of host memory.
#[derive(Debug)]
pub(crate) struct CodeTable {
    host: u64,
    pages: Box<[CodePage]>,
}

impl CodeTable {
    /// Makes a table of `bytes` bytes of host memory at `host`, both multiples of 4096.
    pub(crate) fn new(host: u64, bytes: u64) -> Arc<Self> {
        let pages = (0..bytes / 4096).map(|_| CodePage::default()).collect();
        Arc::new(Self { host, pages })
    }

    /// Returns the host range.
    pub(crate) fn range(&self) -> core::ops::Range<u64> {
        self.host..self.host + self.pages.len() as u64 * 4096
    }

    /// Returns the page that holds the host address, which lies in the range.
    pub(crate) fn page(&self, host: u64) -> &CodePage {
        &self.pages[((host - self.host) / 4096) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_to_a_line_with_code_moves_the_generation_once() {
        let page = CodePage::default();
        assert!(page.mark(0x100, 0x41));
        assert!(!page.mark(0xfff, 1));
        assert!(!page.written(0xff, 1));
        assert!(!page.written(0x180, 4));
        assert_eq!(page.generation().load(Ordering::SeqCst), 0);
        assert!(page.written(0x17c, 8));
        assert!(!page.written(0x17c, 8));
        assert_eq!(page.generation().load(Ordering::SeqCst), 1);
    }
}
