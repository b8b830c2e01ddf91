//! The backend that is `kvm-api` through its raw ABI, and `x86-machine` for bare machines.

use super::host::Kernel;
use super::{Bytes, Errno, Reply};
use std::os::fd::RawFd;
use vmx_model::addr::Hpa;
use x86_machine::{Config, End, Image, Machine, Outcome as Ended};

/// The RAM of a bare machine.
const MACHINE_MIB: u64 = 4;

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

    fn machine(&self, image: &Bytes, reads: &[(u64, u32)], limit_ticks: u64) -> Reply {
        run(image, reads, limit_ticks).unwrap_or_else(|()| Reply::bare(Err(Errno(libc::ENOEXEC))))
    }
}

/// A failure is an image that cannot be loaded; a machine that ended otherwise than by its
/// debug-exit port is EIO.
fn run(image: &Bytes, reads: &[(u64, u32)], limit_ticks: u64) -> Result<Reply, ()> {
    let config = Config {
        memory_mib: MACHINE_MIB,
        ..Config::default()
    };
    let mut machine = Machine::new(&config, Box::new(std::io::sink())).map_err(drop)?;
    let image = Image {
        bytes: image.0.clone(),
        ..Image::default()
    };
    machine.load(&image).map_err(drop)?;
    let outcome = match machine.run(limit_ticks) {
        Ended::End(End::DebugExit(value)) => Ok(value.into()),
        Ended::Limit | Ended::Idle => Err(Errno(libc::ETIMEDOUT)),
        _ => Err(Errno(libc::EIO)),
    };
    let mut bytes = Vec::new();
    for (at, length) in reads {
        let mut read = vec![0; *length as usize];
        machine.memory().read_bytes(Hpa(*at), &mut read);
        bytes.extend(read);
    }
    Ok(Reply {
        outcome,
        bytes: Bytes(bytes),
    })
}

fn number(errno: kvm_api::Errno) -> Errno {
    Errno(errno.raw())
}
