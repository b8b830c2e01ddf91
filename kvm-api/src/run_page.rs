//! The pages that a vCPU shares with user space: `struct kvm_run`, the port I/O data and the
//! coalesced ring (api.rst, "The kvm_run structure").
//!
//! User space may change them at any time, so every access is a volatile copy of a plain value
//! at an offset within the mapping; nothing is ever borrowed from it.
#![expect(unsafe_code, reason = "memory shared with the caller")]

use crate::fd::Backing;
use crate::uaccess::Plain;
use crate::uapi::VCPU_MMAP_SIZE;
use std::sync::Arc;

/// Offsets in `struct kvm_run`.
pub(crate) mod offset {
    pub(crate) const REQUEST_INTERRUPT_WINDOW: usize = 0;
    pub(crate) const IMMEDIATE_EXIT: usize = 1;
    pub(crate) const EXIT_REASON: usize = 8;
    pub(crate) const READY_FOR_INTERRUPT_INJECTION: usize = 12;
    pub(crate) const IF_FLAG: usize = 13;
    pub(crate) const FLAGS: usize = 14;
    pub(crate) const CR8: usize = 16;
    pub(crate) const APIC_BASE: usize = 24;
    /// The union of what the exit reasons say.
    pub(crate) const EXIT: usize = 32;
    pub(crate) const VALID_REGS: usize = 288;
    pub(crate) const DIRTY_REGS: usize = 296;
    pub(crate) const SYNC_REGS: usize = 304;
    pub(crate) const SYNC_SREGS: usize = 448;
    pub(crate) const SYNC_EVENTS: usize = 760;
    /// The page of port I/O data.
    pub(crate) const PIO_DATA: usize = 4096;
    /// The page of the coalesced ring: first, last, entries.
    pub(crate) const COALESCED_RING: usize = 8192;
}

/// A vCPU's pages.
///
/// Invariant: the backing is a mapping of `VCPU_MMAP_SIZE` bytes of a file whose size is sealed.
#[derive(Clone, Debug)]
pub(crate) struct RunPage {
    backing: Arc<Backing>,
}

impl RunPage {
    /// Wraps the memory file of a vCPU, which must have `VCPU_MMAP_SIZE` bytes.
    pub(crate) const fn new(backing: Arc<Backing>) -> Self {
        Self { backing }
    }

    /// Returns the file behind the pages.
    pub(crate) const fn backing(&self) -> &Arc<Backing> {
        &self.backing
    }

    /// Reads a value.
    pub(crate) fn read<T: Plain>(&self, offset: usize) -> T {
        check::<T>(offset, 1);
        // SAFETY: within the mapping (checked), which lives as long as `backing`; any bytes are a
        // valid `T`; unaligned values are read bytewise by `read_unaligned` of a volatile copy.
        unsafe {
            let at = self.backing.start().as_ptr().add(offset).cast::<T>();
            if at.is_aligned() {
                at.read_volatile()
            } else {
                at.read_unaligned()
            }
        }
    }

    /// Writes a value.
    pub(crate) fn write<T: Plain>(&self, offset: usize, value: T) {
        check::<T>(offset, 1);
        // SAFETY: within the mapping (checked), which lives as long as `backing`.
        unsafe {
            let at = self.backing.start().as_ptr().add(offset).cast::<T>();
            if at.is_aligned() {
                at.write_volatile(value);
            } else {
                at.write_unaligned(value);
            }
        }
    }

    /// Copies bytes in, as the caller has left them.
    pub(crate) fn read_bytes(&self, offset: usize, bytes: &mut [u8]) {
        check::<u8>(offset, bytes.len());
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = self.read(offset + index);
        }
    }

    /// Copies bytes out.
    pub(crate) fn write_bytes(&self, offset: usize, bytes: &[u8]) {
        check::<u8>(offset, bytes.len());
        for (index, byte) in bytes.iter().enumerate() {
            self.write(offset + index, *byte);
        }
    }
}

/// Holds the module's invariant: an offset outside the pages is our own bug.
fn check<T>(offset: usize, count: usize) {
    let end = size_of::<T>()
        .checked_mul(count)
        .and_then(|bytes| bytes.checked_add(offset));
    assert!(
        end.is_some_and(|end| end as u64 <= VCPU_MMAP_SIZE),
        "offsets are constants of struct kvm_run"
    );
}
