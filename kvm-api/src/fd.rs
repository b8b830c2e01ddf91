//! Real file descriptors for KVM's objects.
//!
//! Each object has a memfd behind it: `dup`, `close`, close-on-exec, `SCM_RIGHTS` and, for a
//! vCPU, `mmap` are then the kernel's own. An object is known by the memfd's device and inode;
//! [`Backing`] holds a mapping, so that the inode lives, and is not given anew, as long as the
//! object does. The file position, which these descriptors have no other use for, repeats the inode
//! behind a mark: asking for it is the cheapest system call that tells whose descriptor it is,
//! however it came here. What a memfd does otherwise than an anonymous inode (its name, `read`, `lseek`,
//! `mmap` of a VM) is a known difference.
#![expect(unsafe_code, reason = "the fd and mmap edge")]

use crate::errno::{Errno, Result};
use crate::uapi::PAGE_SIZE;
use crate::watch;
use core::ffi::CStr;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Device and inode of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct FileId {
    pub(crate) device: u64,
    pub(crate) inode: u64,
}

/// What the file position of our descriptors is above: "KVM", and room for the inode. No file is
/// that long.
const MARK: u64 = 0x004b_564d << 40;
/// Inodes that there is room for.
const INODES: u64 = 1 << 40;

/// The device of memory files, once there is one: they all have the same.
static MEMORY_DEVICE: AtomicU64 = AtomicU64::new(0);

/// Returns the identity that the file position of `fd` tells; nothing if it is not marked.
pub(crate) fn marked_identity(fd: RawFd) -> Option<FileId> {
    // SAFETY: asks for the position only; any `fd` may be asked.
    let position = unsafe { libc::lseek(fd, 0, libc::SEEK_CUR) };
    let inode = u64::try_from(position).ok()?.checked_sub(MARK)?;
    (inode < INODES).then(|| FileId {
        device: MEMORY_DEVICE.load(Ordering::Relaxed),
        inode,
    })
}

/// Marks a descriptor of ours with its identity. Without a mark, which the caller's `lseek` takes
/// away, it is known by [`identity`].
pub(crate) fn mark(fd: RawFd, id: FileId) {
    MEMORY_DEVICE.store(id.device, Ordering::Relaxed);
    if let (0..INODES, Ok(position)) = (id.inode, libc::off_t::try_from(MARK | id.inode)) {
        // SAFETY: a descriptor of ours. A failure leaves it without a mark.
        unsafe { libc::lseek(fd, position, libc::SEEK_SET) };
    }
}

/// Returns the identity of the file that `fd` names, if it is open.
pub(crate) fn identity(fd: RawFd) -> Option<FileId> {
    let mut stat = core::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: `stat` is writable and of the right size; any `fd` may be asked.
    if unsafe { libc::fstat(fd, stat.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: fstat succeeded, so it filled the struct.
    let stat = unsafe { stat.assume_init() };
    Some(FileId {
        device: stat.st_dev,
        inode: stat.st_ino,
    })
}

/// Returns another descriptor, close-on-exec, of the same open file.
///
/// # Errors
/// EBADF, EMFILE.
pub(crate) fn duplicate(fd: RawFd) -> Result<OwnedFd> {
    // SAFETY: any `fd` may be asked for.
    let new = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0) };
    if new < 0 {
        return Err(Errno::last());
    }
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(new) })
}

/// Whether a write to `fd` would not wait.
pub(crate) fn is_writable(fd: RawFd) -> bool {
    let mut poll = libc::pollfd {
        fd,
        events: libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: one `pollfd`, and no time to wait.
    unsafe { libc::poll(&raw mut poll, 1, 0) == 1 && poll.revents & libc::POLLOUT != 0 }
}

/// Closes a descriptor.
pub(crate) fn close(fd: RawFd) -> Result<()> {
    // SAFETY: closing is what the caller of the ABI asks for; a bad `fd` is EBADF.
    if unsafe { libc::close(fd) } == 0 {
        Ok(())
    } else {
        Err(Errno::last())
    }
}

/// The memory file behind an object, mapped by us.
#[derive(Debug)]
pub(crate) struct Backing {
    id: FileId,
    map: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to the value and lives as long as it does; access to the bytes goes
// through `RunPage`, which treats them as shared with the caller.
unsafe impl Send for Backing {}
// SAFETY: as above.
unsafe impl Sync for Backing {}

impl Backing {
    /// Makes a memory file of `bytes` bytes, sealed against changes of size, and maps it. Its
    /// descriptor, close-on-exec, is the caller's to hand out.
    ///
    /// # Errors
    /// EMFILE, ENFILE, ENOMEM.
    pub(crate) fn new(name: &CStr, bytes: u64) -> Result<(Self, OwnedFd)> {
        // SAFETY: `name` is a C string.
        let raw = unsafe {
            libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING)
        };
        if raw < 0 {
            return Err(Errno::last());
        }
        // SAFETY: a new descriptor that nobody else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        set_size(&fd, bytes)?;
        let len = usize::try_from(bytes.max(PAGE_SIZE)).expect("at most a few pages");
        let map = map_shared(raw, len)?;
        // The number may have been another object's, closed unseen.
        watch::begin_descriptor_change();
        watch::end_descriptor_change();
        let id = identity(raw).ok_or(Errno::EBADF)?;
        mark(raw, id);
        let backing = Self { id, map, len };
        Ok((backing, fd))
    }

    /// Maps the memory file of an object that another program made, which may have been this
    /// process before `exec`.
    ///
    /// # Errors
    /// ENOMEM.
    pub(crate) fn adopt(fd: RawFd, id: FileId) -> Result<Self> {
        let len = usize::try_from(PAGE_SIZE).expect("a page");
        let map = map_shared(fd, len)?;
        Ok(Self { id, map, len })
    }

    /// Returns the file's identity.
    pub(crate) const fn id(&self) -> FileId {
        self.id
    }

    /// Returns the first byte of the mapping.
    pub(crate) const fn start(&self) -> NonNull<u8> {
        self.map
    }
}

impl Drop for Backing {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new`, has this length, and nothing refers to it any
        // more: `RunPage` borrows it through the `Arc` that holds this value.
        unsafe { libc::munmap(self.map.as_ptr().cast(), self.len) };
    }
}

fn set_size(fd: &OwnedFd, bytes: u64) -> Result<()> {
    let size = libc::off_t::try_from(bytes).expect("at most a few pages");
    // SAFETY: our own descriptor.
    if unsafe { libc::ftruncate(fd.as_raw_fd(), size) } != 0 {
        return Err(Errno::last());
    }
    // Without F_SEAL_SHRINK the caller could take the pages from under our mapping.
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: our own descriptor.
    if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals) } != 0 {
        return Err(Errno::last());
    }
    Ok(())
}

fn map_shared(fd: RawFd, len: usize) -> Result<NonNull<u8>> {
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let map = unsafe { libc::mmap(core::ptr::null_mut(), len, prot, libc::MAP_SHARED, fd, 0) };
    if map == libc::MAP_FAILED {
        return Err(Errno::last());
    }
    Ok(NonNull::new(map.cast()).expect("mmap does not give null without MAP_FIXED"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dup_has_the_same_identity_and_another_file_has_not() {
        let (a, fd) = Backing::new(c"a", PAGE_SIZE).expect("a descriptor");
        let (b, _other) = Backing::new(c"b", 0).expect("a descriptor");
        let dup = fd.try_clone().expect("a descriptor");
        assert_eq!(identity(dup.as_raw_fd()), Some(a.id()));
        assert_ne!(a.id(), b.id());
        assert_eq!(identity(-1), None);
    }

    #[test]
    fn a_descriptor_is_known_by_its_mark_until_it_is_moved() {
        let (a, fd) = Backing::new(c"a", PAGE_SIZE).expect("a descriptor");
        let dup = fd.try_clone().expect("a descriptor");
        assert_eq!(marked_identity(dup.as_raw_fd()), Some(a.id()));
        // SAFETY: a descriptor of this test's.
        unsafe { libc::lseek(dup.as_raw_fd(), 5, libc::SEEK_SET) };
        assert_eq!(marked_identity(fd.as_raw_fd()), None);
        mark(fd.as_raw_fd(), a.id());
        assert_eq!(marked_identity(dup.as_raw_fd()), Some(a.id()));
        assert_eq!(marked_identity(-1), None);
    }

    #[test]
    fn the_size_is_sealed() {
        let (_backing, fd) = Backing::new(c"a", PAGE_SIZE).expect("a descriptor");
        // SAFETY: a descriptor of this test's.
        assert_eq!(unsafe { libc::ftruncate(fd.as_raw_fd(), 0) }, -1);
    }
}
