//! `/dev/kvm`: the system ioctls (api.rst, "System ioctls").

use crate::caps;
use crate::dispatch::Row;
use crate::errno::{Errno, Result};
use crate::fd::Backing;
use crate::registry::{self, Object};
use crate::uapi::{
    API_VERSION, KVM_CHECK_EXTENSION, KVM_CREATE_VM, KVM_GET_API_VERSION, KVM_GET_VCPU_MMAP_SIZE,
    VCPU_MMAP_SIZE,
};
use crate::vm::Vm;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::sync::Arc;

/// The system ioctls. A request that is not here is EINVAL.
pub(crate) const IOCTLS: &[Row<Arc<Kvm>>] = &[
    Row::new(KVM_GET_API_VERSION, |_, arg| {
        no_argument(arg).map(|()| API_VERSION)
    }),
    Row::new(KVM_CREATE_VM, |kvm, arg| create_vm_fd(kvm, arg)),
    Row::new(KVM_CHECK_EXTENSION, |kvm, arg| Ok(kvm.check_extension(arg))),
    Row::new(KVM_GET_VCPU_MMAP_SIZE, |_, arg| {
        no_argument(arg).map(|()| VCPU_MMAP_SIZE.cast_signed())
    }),
];

/// The KVM system: what an open `/dev/kvm` is.
///
/// # Examples
/// ```
/// let kvm = kvm_api::Kvm::new();
/// assert_eq!(kvm.get_api_version(), 12);
/// let _vm = kvm.create_vm(0)?;
/// # Ok::<(), kvm_api::Errno>(())
/// ```
#[derive(Debug, Default)]
pub struct Kvm {
    /// Keeps the inode of a descriptor; the Rust API needs none.
    _backing: Option<Backing>,
}

impl Kvm {
    /// Opens the system.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Opens the system behind a descriptor.
    pub(crate) fn with_backing(backing: Backing) -> Self {
        Self {
            _backing: Some(backing),
        }
    }

    /// Returns the version of the API: api.rst, "KVM_GET_API_VERSION".
    #[must_use]
    pub fn get_api_version(&self) -> i32 {
        API_VERSION as i32
    }

    /// Returns the value of a capability, 0 if it is not known: api.rst, "KVM_CHECK_EXTENSION".
    #[must_use]
    pub fn check_extension(&self, capability: u64) -> i64 {
        caps::system_value(capability)
    }

    /// Returns the size of the memory that a vCPU shares with user space: api.rst,
    /// "KVM_GET_VCPU_MMAP_SIZE".
    #[must_use]
    pub fn get_vcpu_mmap_size(&self) -> usize {
        VCPU_MMAP_SIZE as usize
    }

    /// Makes a VM: api.rst, "KVM_CREATE_VM".
    ///
    /// # Errors
    /// EMFILE or ENFILE: no descriptor; EINVAL: a machine type that is not 0.
    pub fn create_vm(self: &Arc<Self>, machine_type: u64) -> Result<Arc<Vm>> {
        self.create_vm_with_fd(machine_type).map(|(vm, _)| vm)
    }

    fn create_vm_with_fd(self: &Arc<Self>, machine_type: u64) -> Result<(Arc<Vm>, OwnedFd)> {
        let (backing, fd) = Backing::new(c"kvm-vm", 0)?;
        if machine_type != 0 {
            return Err(Errno::EINVAL);
        }
        Ok((Arc::new(Vm::new(backing)), fd))
    }
}

fn create_vm_fd(kvm: &Arc<Kvm>, machine_type: u64) -> Result<i64> {
    registry::sweep();
    let (vm, fd) = kvm.create_vm_with_fd(machine_type)?;
    registry::insert(vm.file(), Object::Vm(vm));
    Ok(i64::from(fd.into_raw_fd()))
}

/// Checks that an ioctl without argument got none.
pub(crate) fn no_argument(arg: u64) -> Result<()> {
    if arg == 0 { Ok(()) } else { Err(Errno::EINVAL) }
}
