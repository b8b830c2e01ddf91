//! What of the kernel's user-space interface `kvm-bindings` lacks: request numbers and a few
//! constants of `include/uapi/linux/kvm.h`.

mod plain;
mod requests;

pub use plain::{ClearDirtyLog, CoalescedZone, DirtyLog};
pub use requests::*;

/// Version of the API (api.rst, "KVM_GET_API_VERSION").
pub const API_VERSION: i64 = 12;
/// Size of a page.
pub const PAGE_SIZE: u64 = 4096;
/// Bytes of a vCPU descriptor: the run page, the port I/O page and the coalesced ring.
pub const VCPU_MMAP_SIZE: u64 = 3 * PAGE_SIZE;
/// Page of the vCPU descriptor that holds port I/O data.
pub const PIO_PAGE_OFFSET: u64 = 1;
/// Page of the vCPU descriptor that holds the ring of coalesced MMIO.
pub const COALESCED_MMIO_PAGE_OFFSET: u64 = 2;
/// Memory slots that user space may use: 32767 less 3 private ones.
pub const USER_MEM_SLOTS: u32 = 32764;
/// The most vCPUs of one VM.
pub const MAX_VCPUS: u32 = 1024;
/// vCPU ids are below this.
pub const MAX_VCPU_IDS: u32 = 4096;
/// The most pages of one memory slot.
pub const MEM_MAX_NR_PAGES: u64 = (1 << 31) - 1;
/// End of the addresses of user space (four-level paging).
pub const TASK_SIZE_MAX: u64 = 0x7fff_ffff_f000;
