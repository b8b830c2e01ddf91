//! `/dev/kvm`: the system ioctls (api.rst, "System ioctls").

use crate::caps;
use crate::cpuid;
use crate::dispatch::{Row, done, get, put};
use crate::errno::{Errno, Result};
use crate::fd::Backing;
use crate::host::Host;
use crate::registry::{self, Object};
use crate::uaccess::UserPtr;
use crate::uapi::*;
use crate::vcpu::{self, read_msr_entries};
use crate::vm::Vm;
use kvm_bindings::{kvm_cpuid_entry2, kvm_device_attr, kvm_msr_entry};
use std::os::fd::{IntoRawFd, OwnedFd};
use std::sync::Arc;

/// The system ioctls. A request that is not here is EINVAL.
pub(crate) const IOCTLS: &[Row<Arc<Kvm>>] = &[
    Row::new(KVM_GET_API_VERSION, |_, arg| {
        no_argument(arg).map(|()| API_VERSION)
    }),
    Row::new(KVM_CREATE_VM, create_vm_fd),
    Row::new(KVM_CHECK_EXTENSION, |kvm, arg| Ok(kvm.check_extension(arg))),
    Row::new(KVM_GET_VCPU_MMAP_SIZE, |_, arg| {
        no_argument(arg).map(|()| VCPU_MMAP_SIZE.cast_signed())
    }),
    Row::new(KVM_GET_SUPPORTED_CPUID, |kvm, arg| {
        cpuid_list(arg, Padding::Any, &kvm.get_supported_cpuid())
    }),
    Row::new(KVM_GET_EMULATED_CPUID, |kvm, arg| {
        cpuid_list(arg, Padding::Zero, &kvm.get_emulated_cpuid())
    }),
    Row::new(KVM_GET_MSR_INDEX_LIST, |kvm, arg| {
        msr_list(arg, &kvm.get_msr_index_list())
    }),
    Row::new(KVM_GET_MSR_FEATURE_INDEX_LIST, |kvm, arg| {
        msr_list(arg, &kvm.get_msr_feature_index_list())
    }),
    Row::new(KVM_GET_MSRS, get_feature_msrs),
    Row::new(KVM_HAS_DEVICE_ATTR, |_, arg| {
        done(get(arg).and_then(|a| xcomp_attribute(&a)))
    }),
    Row::new(KVM_GET_DEVICE_ATTR, |_, arg| {
        let attr: kvm_device_attr = get(arg)?;
        xcomp_attribute(&attr)?;
        put(attr.addr, &cpuid::supported_xcr0())
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

    /// Returns the machine under KVM.
    pub(crate) fn host(&self) -> Arc<Host> {
        Host::of_process()
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

    /// Returns what a guest may be given by KVM_SET_CPUID2: api.rst, "KVM_GET_SUPPORTED_CPUID".
    #[must_use]
    pub fn get_supported_cpuid(&self) -> Vec<kvm_cpuid_entry2> {
        cpuid::supported().to_vec()
    }

    /// Returns what is emulated though the processor need not have it: api.rst,
    /// "KVM_GET_EMULATED_CPUID".
    #[must_use]
    pub fn get_emulated_cpuid(&self) -> Vec<kvm_cpuid_entry2> {
        cpuid::emulated()
    }

    /// Returns the MSRs that user space saves and restores: api.rst, "KVM_GET_MSR_INDEX_LIST".
    #[must_use]
    pub fn get_msr_index_list(&self) -> Vec<u32> {
        vcpu::index_list()
    }

    /// Returns the MSRs that describe features: api.rst, "KVM_GET_MSR_FEATURE_INDEX_LIST".
    #[must_use]
    pub fn get_msr_feature_index_list(&self) -> Vec<u32> {
        vcpu::feature_index_list()
    }

    /// Reads feature MSRs into the entries until one is not known, and returns how many were:
    /// api.rst, "KVM_GET_MSRS".
    #[must_use]
    pub fn get_msrs(&self, entries: &mut [kvm_msr_entry]) -> usize {
        let mut count = 0;
        for entry in entries {
            let Some(value) = vcpu::system_value(entry.index) else {
                break;
            };
            entry.data = value;
            count += 1;
        }
        count
    }

    /// Lets the time-stamp counters of this process's guests count retired instructions (true), so
    /// that the same inputs give the same trace, or follow the host's clock (false, the default).
    /// Guests that have read the counter before see it jump.
    pub fn count_instructions(&self, count: bool) {
        self.host().count_instructions(count);
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
        Ok((Arc::new(Vm::new(backing, self.host())?), fd))
    }
}

fn create_vm_fd(kvm: &Arc<Kvm>, machine_type: u64) -> Result<i64> {
    registry::sweep();
    let (vm, fd) = kvm.create_vm_with_fd(machine_type)?;
    registry::insert(vm.file(), Object::Vm(vm));
    Ok(i64::from(fd.into_raw_fd()))
}

/// Whether the padding of the entries passed in must be zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Padding {
    Any,
    Zero,
}

/// The most entries that the caller's count stands for.
const MAX_CPUID_ENTRIES: u32 = 256;

/// Copies a CPUID table out; a count that is too small stays as it is.
fn cpuid_list(arg: u64, padding: Padding, table: &[kvm_cpuid_entry2]) -> Result<i64> {
    let header: [u32; 2] = get(arg)?;
    let room = header[0].min(MAX_CPUID_ENTRIES) as usize;
    if room == 0 {
        return Err(Errno::E2BIG);
    }
    let entries = UserPtr(arg).offset(8);
    if padding == Padding::Zero {
        let given: Vec<kvm_cpuid_entry2> = entries.read_array(room)?;
        if given.iter().any(|entry| entry.padding != [0; 3]) {
            return Err(Errno::EINVAL);
        }
    }
    if room < table.len() {
        return Err(Errno::E2BIG);
    }
    entries.write_array(table)?;
    put(arg, &(table.len() as u32))
}

/// Copies a list of MSRs out; the caller always learns how many there are.
fn msr_list(arg: u64, list: &[u32]) -> Result<i64> {
    let room: u32 = get(arg)?;
    put(arg, &(list.len() as u32))?;
    if (room as usize) < list.len() {
        return Err(Errno::E2BIG);
    }
    UserPtr(arg).offset(4).write_array(list).map(|()| 0)
}

fn get_feature_msrs(kvm: &Arc<Kvm>, arg: u64) -> Result<i64> {
    let mut entries = read_msr_entries(arg)?;
    let count = kvm.get_msrs(&mut entries);
    UserPtr(arg).offset(8).write_array(&entries)?;
    Ok(count as i64)
}

/// Group 0 with its one attribute, `KVM_X86_XCOMP_GUEST_SUPP`.
fn xcomp_attribute(attr: &kvm_device_attr) -> Result<()> {
    if attr.group == 0 && attr.attr == 0 {
        Ok(())
    } else {
        Err(Errno::ENXIO)
    }
}

/// Checks that an ioctl without argument got none.
pub(crate) fn no_argument(arg: u64) -> Result<()> {
    if arg == 0 { Ok(()) } else { Err(Errno::EINVAL) }
}
