//! [`Errno`]: what the KVM API answers when it refuses (api.rst, "General description").

use core::fmt;

/// An error number of the kernel, positive.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(i32);

/// What an ioctl gives.
pub type Result<T> = core::result::Result<T, Errno>;

macro_rules! errnos {
    ($($(#[$doc:meta])* $name:ident)*) => {
        impl Errno {
            $($(#[$doc])* pub const $name: Self = Self(libc::$name);)*

            /// Returns the symbolic name, if it is one that KVM uses.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $(libc::$name => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

errnos! {
    /// Operation not permitted.
    EPERM
    /// No such entry.
    ENOENT
    /// Interrupted by a signal.
    EINTR
    /// Another address space than the one that made the VM.
    EIO
    /// No such device or address.
    ENXIO
    /// Argument list too long.
    E2BIG
    /// Not a file descriptor.
    EBADF
    /// Try again.
    EAGAIN
    /// Out of memory.
    ENOMEM
    /// Bad address.
    EFAULT
    /// Resource busy.
    EBUSY
    /// It exists.
    EEXIST
    /// No such device.
    ENODEV
    /// Invalid argument.
    EINVAL
    /// Too many open files in the system.
    ENFILE
    /// Too many open files.
    EMFILE
    /// Not an ioctl of this descriptor.
    ENOTTY
    /// No space left.
    ENOSPC
    /// Not supported.
    EOPNOTSUPP
}

impl Errno {
    /// Makes an error number of a raw value.
    #[must_use]
    pub const fn from_raw(raw: i32) -> Self {
        Self(raw)
    }

    /// Returns the raw, positive value.
    #[must_use]
    pub const fn raw(self) -> i32 {
        self.0
    }

    /// Returns the calling thread's `errno`.
    pub(crate) fn last() -> Self {
        Self(
            std::io::Error::last_os_error()
                .raw_os_error()
                .unwrap_or(libc::EIO),
        )
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "errno {}", self.0),
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&std::io::Error::from_raw_os_error(self.0), f)
    }
}

impl std::error::Error for Errno {}

impl From<Errno> for std::io::Error {
    fn from(errno: Errno) -> Self {
        Self::from_raw_os_error(errno.0)
    }
}
