//! An eventfd of the caller's, held by a descriptor of our own.

use crate::errno::{Errno, Result};
use crate::fd;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, RawFd};

/// An eventfd.
#[derive(Debug)]
pub(super) struct Event {
    file: File,
    id: u64,
}

impl Event {
    /// Takes hold of the eventfd that a descriptor names.
    ///
    /// # Errors
    /// EBADF; EINVAL: it is something else.
    pub(super) fn of(fd: RawFd) -> Result<Self> {
        let file = File::from(fd::duplicate(fd)?);
        let id = identity(file.as_raw_fd()).ok_or(Errno::EINVAL)?;
        Ok(Self { file, id })
    }

    /// Names the eventfd: equal for two descriptors of the same.
    pub(super) const fn id(&self) -> u64 {
        self.id
    }

    /// Adds 1; nothing if the counter is full.
    pub(super) fn signal(&self) {
        if fd::is_writable(self.file.as_raw_fd()) {
            // Fails only where somebody else has filled the counter meanwhile.
            let _ = (&self.file).write(&1_u64.to_ne_bytes());
        }
    }
}

/// Returns the id that /proc gives to an eventfd; `None` for another file.
fn identity(fd: RawFd) -> Option<u64> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).ok()?;
    let id = info.lines().find_map(|l| l.strip_prefix("eventfd-id:"))?;
    id.trim().parse().ok()
}
