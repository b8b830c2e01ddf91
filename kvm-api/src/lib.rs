//! Linux's KVM ioctl semantics: a hypervisor on a software VT-x processor.
//!
//! [`Kvm`], [`Vm`] and [`Vcpu`] have one method for each ioctl, in the types of `kvm-bindings`;
//! code written for the `kvm-ioctls` crate ports by changing its imports. Below them, [`abi`] is
//! the kernel's own interface: request numbers, layouts, errnos and order of checks, on real file
//! descriptors. We follow Linux 6.12 on an Intel host (`Documentation/virt/kvm/api.rst`, cited by
//! section; the SDM's edition is that of `vmx-model`).

pub mod abi;
pub mod caps;
mod clock;
mod cpuid;
mod deferral;
mod dispatch;
mod enable_cap;
pub mod errno;
mod fd;
mod guest_memory;
mod host;
mod host_fault;
mod io_bus;
mod memory;
mod memslots;
mod mm;
mod msr_filter;
mod registry;
mod run_page;
mod signals;
pub mod snapshot;
mod system;
pub mod trace;
mod uaccess;
pub mod uapi;
mod vcpu;
mod vm;
mod vmx;
mod watch;

pub use cpuid::{ProcessorError, choose_processor};
pub use errno::{Errno, Result};
pub use system::Kvm;
pub use vcpu::Vcpu;
pub use vm::Vm;
