//! The backend that is `kvm-api` through its raw ABI.

use super::Errno;
use super::host::Kernel;
use std::os::fd::RawFd;

/// The emulator, seen as a kernel.
#[derive(Clone, Copy, Debug, Default)]
pub struct EmulatedKernel;

impl Kernel for EmulatedKernel {
    // The mode of the opening is not looked at, as in the kernel.
    fn open(&self, _: i32) -> Result<RawFd, Errno> {
        kvm_api::abi::open_system().map_err(number)
    }

    fn ioctl(&self, fd: RawFd, request: u32, argument: u64) -> Result<i64, Errno> {
        match kvm_api::abi::ioctl(fd, request, argument) {
            Some(outcome) => outcome.map_err(number),
            None => Err(Errno(libc::EBADF)),
        }
    }

    fn close(&self, fd: RawFd) -> Result<(), Errno> {
        kvm_api::abi::close(fd).map_err(number)
    }
}

fn number(errno: kvm_api::Errno) -> Errno {
    Errno(errno.raw())
}
