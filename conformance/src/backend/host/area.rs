//! Mappings, and access to them that is checked against their length.
#![expect(unsafe_code, reason = "system calls: mmap; accesses to what they map")]

use super::last_errno;
use crate::backend::Errno;
use std::os::fd::RawFd;

/// A mapping that is unmapped when dropped.
#[derive(Debug)]
pub(in crate::backend) struct Area {
    address: *mut u8,
    length: usize,
    /// Bytes mapped without access on either side.
    guard: usize,
}

impl Area {
    pub(super) fn new(
        length: usize,
        protection: i32,
        flags: i32,
        fd: RawFd,
        at: i64,
    ) -> Result<Area, Errno> {
        // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
        let address =
            unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, fd, at) };
        if address == libc::MAP_FAILED {
            return Err(last_errno());
        }
        Ok(Area {
            address: address.cast(),
            length,
            guard: 0,
        })
    }

    /// Memory between two pages that nobody may touch: what goes beyond it is found out.
    pub(in crate::backend) fn anonymous(length: usize) -> Result<Area, Errno> {
        const GUARD: usize = 4096;
        let pages = length.checked_next_multiple_of(4096).filter(|&l| l != 0);
        let whole = pages.and_then(|pages| pages.checked_add(2 * GUARD));
        let (pages, whole) = pages.zip(whole).ok_or(Errno(libc::EINVAL))?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let mut area = Area::new(whole, libc::PROT_NONE, flags, -1, 0)?;
        let address = area.address.wrapping_add(GUARD);
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: inside the mapping that was made just now.
        if unsafe { libc::mprotect(address.cast(), pages, access) } != 0 {
            return Err(last_errno());
        }
        (area.address, area.length, area.guard) = (address, length, GUARD);
        Ok(area)
    }

    /// The address of `length` bytes at an offset.
    pub(in crate::backend) fn at(&self, offset: u64, length: usize) -> Result<*mut u8, Errno> {
        let offset = usize::try_from(offset).map_err(|_| Errno(libc::EFAULT))?;
        match offset.checked_add(length) {
            Some(end) if end <= self.length => Ok(self.address.wrapping_add(offset)),
            _ => Err(Errno(libc::EFAULT)),
        }
    }

    pub(super) fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Errno> {
        let from = self.at(offset, into.len())?;
        for (i, byte) in into.iter_mut().enumerate() {
            // SAFETY: in bounds by `at`; volatile because a vCPU may write at the same time.
            *byte = unsafe { from.wrapping_add(i).read_volatile() };
        }
        Ok(())
    }

    /// The address behind the last byte.
    pub(in crate::backend) fn end(&mut self) -> *mut u8 {
        self.address.wrapping_add(self.length)
    }

    pub(super) fn write(&self, offset: u64, from: &[u8]) -> Result<(), Errno> {
        let into = self.at(offset, from.len())?;
        for (i, byte) in from.iter().enumerate() {
            // SAFETY: in bounds by `at`; volatile because a vCPU may read at the same time.
            unsafe { into.wrapping_add(i).write_volatile(*byte) };
        }
        Ok(())
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nothing points into it any more but VMs of the case.
        unsafe {
            let begin = self.address.wrapping_sub(self.guard);
            libc::munmap(
                begin.cast(),
                self.length.next_multiple_of(4096) + 2 * self.guard,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_is_not_accessed_outside() {
        let area = Area::anonymous(4096).expect("one page");
        assert_eq!(area.write(4090, &[1; 6]), Ok(()));
        assert_eq!(area.write(4090, &[1; 7]), Err(Errno(libc::EFAULT)));
        assert_eq!(area.read(u64::MAX, &mut [0]), Err(Errno(libc::EFAULT)));
    }
}
