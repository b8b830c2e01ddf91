//! Arguments whose binding in `kvm-bindings` has a union or a flexible array; here without.

/// `struct kvm_dirty_log`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct DirtyLog {
    /// Slot, with the address space in the high half.
    pub slot: u32,
    /// Unused.
    pub padding1: u32,
    /// Address of the bitmap.
    pub dirty_bitmap: u64,
}

/// `struct kvm_clear_dirty_log`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ClearDirtyLog {
    /// Slot, with the address space in the high half.
    pub slot: u32,
    /// Pages.
    pub num_pages: u32,
    /// First page, counted from the slot's start.
    pub first_page: u64,
    /// Address of the bitmap.
    pub dirty_bitmap: u64,
}

/// `struct kvm_coalesced_mmio_zone`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct CoalescedZone {
    /// First address.
    pub addr: u64,
    /// Bytes.
    pub size: u32,
    /// 1 for ports, 0 for memory.
    pub pio: u32,
}

const _: () = {
    assert!(size_of::<CoalescedZone>() == size_of::<kvm_bindings::kvm_coalesced_mmio_zone>());
    assert!(size_of::<DirtyLog>() == size_of::<kvm_bindings::kvm_dirty_log>());
    assert!(size_of::<ClearDirtyLog>() == size_of::<kvm_bindings::kvm_clear_dirty_log>());
};
