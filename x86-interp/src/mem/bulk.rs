//! Moving and filling whole pieces of pages: the bulk way of repeated string instructions.
//!
//! What is not RAM that the TLB already knows, or does not fit, goes element by element, with all
//! checks; so nothing here raises a fault.

use vmx_model::arch::SegmentRegister;

use super::Access;
use crate::Cpu;
use crate::width::Width;

/// A logical address.
type Logical = (SegmentRegister, u64);

impl Cpu {
    /// Copies upward, at most `bytes` bytes and not beyond a page; returns how many, a multiple of
    /// `element`, or `None` if that cannot be done in bulk.
    pub(crate) fn copy_in_pages(
        &mut self,
        from: Logical,
        to: Logical,
        bytes: u64,
        element: u64,
    ) -> Option<u64> {
        let source = self.piece_of_page(from, bytes, element, Access::Read)?;
        let destination = self.piece_of_page(to, bytes, element, Access::Write)?;
        let bytes = source.1.min(destination.1);
        let context = self.context();
        self.tlb
            .copy(source.0, destination.0, context, bytes)
            .then_some(bytes)
    }

    /// Fills upward with `value`, at most `bytes` bytes and not beyond a page; returns how many, or
    /// `None` if that cannot be done in bulk.
    pub(crate) fn fill_page<W: Width>(&mut self, to: Logical, bytes: u64, value: W) -> Option<u64> {
        let (linear, bytes) = self.piece_of_page(to, bytes, W::BYTES as u64, Access::Write)?;
        let context = self.context();
        self.tlb
            .fill(linear, context, bytes, value)
            .then_some(bytes)
    }

    /// Returns the linear address, and how many bytes from there lie in one page.
    fn piece_of_page(
        &self,
        (segment, offset): Logical,
        bytes: u64,
        element: u64,
        access: Access,
    ) -> Option<(u64, u64)> {
        let linear = self.linear(segment, offset, 1, access).ok()?;
        let bytes = bytes.min(4096 - linear.page_offset());
        let bytes = bytes - bytes % element;
        // The last byte: inside the limit, and no wrap of the offset, which the limit or the
        // 64-bit address space ends.
        let last = self.linear(segment, offset, bytes.max(1), access).ok()?;
        let is_whole = offset.checked_add(bytes).is_some() && last == linear;
        (bytes >= element && is_whole).then_some((linear.0, bytes))
    }
}
