//! The raw ABI: KVM's ioctls on real file descriptors (api.rst, "General description").
//!
//! [`open_system`] gives what `open("/dev/kvm")` gives; [`ioctl`] answers for the descriptors of
//! this module and says of any other that it is not ours. `mmap`, `dup` and `close` are the plain
//! system calls; [`close`] also lets the object go at once.
//!
//! The order of checks is the kernel's: another address space (a forked child) gets EIO from VM,
//! vCPU and device descriptors before the request is looked at; then a foreign request is EINVAL
//! on the system and on a vCPU, ENOTTY on a VM and a device.

use crate::deferral::Inside;
use crate::dispatch::{find, requests};
use crate::errno::{Errno, Result};
use crate::fd::{self, Backing};
use crate::mm;
use crate::registry::{self, Entry, Object};
use crate::system::{self, Kvm};
use crate::uapi::{KVMIO, request_type};
use crate::vcpu;
use crate::vm;
use std::os::fd::{IntoRawFd, RawFd};
use std::sync::Arc;

pub use crate::deferral::{defer_signal, handlers_defer, set_handlers_defer};
pub use crate::watch::{begin_descriptor_change, end_descriptor_change, watch_descriptors};

/// Opens the system, as `open("/dev/kvm", O_RDWR | O_CLOEXEC)` does.
///
/// # Errors
/// EMFILE, ENFILE, ENOMEM; EINTR as from [`ioctl`].
///
/// # Examples
/// ```
/// use kvm_api::{abi, uapi::KVM_GET_API_VERSION};
/// let system = abi::open_system()?;
/// assert_eq!(abi::ioctl(system, KVM_GET_API_VERSION, 0), Some(Ok(12)));
/// abi::close(system)?;
/// # Ok::<(), kvm_api::Errno>(())
/// ```
pub fn open_system() -> Result<RawFd> {
    let _inside = Inside::enter().ok_or(Errno::EINTR)?;
    let (backing, fd) = Backing::new(c"kvm", 0)?;
    registry::insert(
        backing.id(),
        Object::System(Arc::new(Kvm::with_backing(backing))),
    );
    Ok(fd.into_raw_fd())
}

/// Performs an ioctl; nothing if `fd` is not one of ours.
///
/// The caller answers for `arg` as it does towards the kernel: where the request says that memory
/// is written, it is. A signal handler that has interrupted an ioctl of its own thread, without
/// asking [`defer_signal`], gets EINTR: the objects may be half changed.
pub fn ioctl(fd: RawFd, request: u32, arg: u64) -> Option<Result<i64>> {
    let Some(_inside) = Inside::enter() else {
        return registry::is_known_at_once(fd).then_some(Err(Errno::EINTR));
    };
    let entry = match request_type(request) {
        KVMIO => registry::lookup_again(fd),
        _ => registry::lookup(fd),
    }?;
    Some(perform(&entry, request, arg))
}

fn perform(entry: &Entry, request: u32, arg: u64) -> Result<i64> {
    match &entry.object {
        Object::System(kvm) => match find(system::IOCTLS, request) {
            Some(handler) => handler(kvm, arg),
            None => Err(Errno::EINVAL),
        },
        _ if entry.owner != mm::current() => Err(Errno::EIO),
        Object::Vm(vm) => match find(vm::IOCTLS, request) {
            Some(handler) => handler(vm, arg),
            None => Err(Errno::ENOTTY),
        },
        Object::Vcpu(vcpu) => match find(vcpu::IOCTLS, request) {
            Some(handler) => handler(vcpu, arg),
            None => Err(Errno::EINVAL),
        },
        Object::Stranger => Err(Errno::EIO),
    }
}

/// A kind of descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Descriptor {
    /// That of `/dev/kvm`.
    System,
    /// That of a VM.
    Vm,
    /// That of a vCPU.
    Vcpu,
}

/// Returns the requests that a kind of descriptor answers; [`crate::uapi::request_name`] names them.
///
/// # Examples
/// ```
/// use kvm_api::abi::{Descriptor, offered};
/// use kvm_api::uapi::KVM_RUN;
/// assert!(offered(Descriptor::Vcpu).contains(&KVM_RUN));
/// assert!(!offered(Descriptor::Vm).contains(&KVM_RUN));
/// ```
#[must_use]
pub fn offered(descriptor: Descriptor) -> Vec<u32> {
    match descriptor {
        Descriptor::System => requests(system::IOCTLS),
        Descriptor::Vm => requests(vm::IOCTLS),
        Descriptor::Vcpu => requests(vcpu::IOCTLS),
    }
}

/// Whether a descriptor is one of ours.
#[must_use]
pub fn owns(fd: RawFd) -> bool {
    let Some(_inside) = Inside::enter() else {
        return registry::is_known_at_once(fd);
    };
    registry::lookup(fd).is_some()
}

/// Closes a descriptor, and the object behind it if this was its last reference.
///
/// # Errors
/// EBADF; EINTR as from [`ioctl`].
pub fn close(fd: RawFd) -> Result<()> {
    let _inside = Inside::enter().ok_or(Errno::EINTR)?;
    let ours = registry::lookup(fd).is_some();
    begin_descriptor_change();
    let closed = fd::close(fd);
    end_descriptor_change();
    closed?;
    if ours {
        registry::sweep();
    }
    Ok(())
}
