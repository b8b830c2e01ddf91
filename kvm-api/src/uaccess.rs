//! Copies from and to the caller's memory, where any address may be bad.
//!
//! The kernel's `copy_from_user()` and `copy_to_user()`: a fault is EFAULT, never a signal. We use
//! `process_vm_readv` and `process_vm_writev` on our own process, which check each page.
#![expect(unsafe_code, reason = "system calls on the caller's addresses")]

use crate::errno::{Errno, Result};
use core::mem::MaybeUninit;

/// A value that any bytes make: integers, and structs and arrays of these.
///
/// # Safety
/// Every bit pattern of the type's size is a valid value.
pub(crate) unsafe trait Plain: Copy {}

macro_rules! plain {
    ($($kind:ty),* $(,)?) => {
        $(
            // SAFETY: integers, or a `repr(C)` struct of the kernel's interface, made of integers,
            // raw pointers and arrays of these only.
            unsafe impl Plain for $kind {}
        )*
    };
}

plain!(u8, u16, u32, u64, i32, i64, [u32; 2]);
plain!(
    crate::uapi::ClearDirtyLog,
    crate::uapi::CoalescedZone,
    crate::uapi::DirtyLog,
    kvm_bindings::kvm_clock_data,
    kvm_bindings::kvm_ioeventfd,
    kvm_bindings::kvm_cpuid_entry,
    kvm_bindings::kvm_cpuid_entry2,
    kvm_bindings::kvm_create_device,
    kvm_bindings::kvm_debugregs,
    kvm_bindings::kvm_device_attr,
    kvm_bindings::kvm_enable_cap,
    kvm_bindings::kvm_fpu,
    kvm_bindings::kvm_guest_debug,
    kvm_bindings::kvm_interrupt,
    kvm_bindings::kvm_mp_state,
    kvm_bindings::kvm_msr_entry,
    kvm_bindings::kvm_msr_filter,
    kvm_bindings::kvm_regs,
    kvm_bindings::kvm_sregs,
    kvm_bindings::kvm_sregs2,
    kvm_bindings::kvm_translation,
    kvm_bindings::kvm_userspace_memory_region,
    kvm_bindings::kvm_userspace_memory_region2,
    kvm_bindings::kvm_vcpu_events,
    kvm_bindings::kvm_xcrs,
);

/// An address of the caller's, not trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UserPtr(pub(crate) u64);

impl UserPtr {
    /// Returns the address `bytes` further on.
    pub(crate) const fn offset(self, bytes: u64) -> Self {
        Self(self.0.wrapping_add(bytes))
    }

    /// Copies a value in.
    pub(crate) fn read<T: Plain>(self) -> Result<T> {
        let mut value = MaybeUninit::<T>::uninit();
        copy_in(self.0, value.as_mut_ptr().cast(), size_of::<T>())?;
        // SAFETY: all bytes of `value` have been written, and any bytes are a valid `T: Plain`.
        Ok(unsafe { value.assume_init() })
    }

    /// Copies a value out.
    pub(crate) fn write<T: Plain>(self, value: &T) -> Result<()> {
        copy_out(self.0, core::ptr::from_ref(value).cast(), size_of::<T>())
    }

    /// Copies `count` values in.
    pub(crate) fn read_array<T: Plain>(self, count: usize) -> Result<Vec<T>> {
        let mut values = Vec::<T>::with_capacity(count);
        copy_in(self.0, values.as_mut_ptr().cast(), count * size_of::<T>())?;
        // SAFETY: `count` elements have been written within the capacity; any bytes are valid.
        unsafe { values.set_len(count) };
        Ok(values)
    }

    /// Copies values out.
    pub(crate) fn write_array<T: Plain>(self, values: &[T]) -> Result<()> {
        copy_out(self.0, values.as_ptr().cast(), size_of_val(values))
    }
}

fn copy_in(address: u64, to: *mut u8, len: usize) -> Result<()> {
    if len == 0 {
        return Ok(());
    }
    let local = libc::iovec {
        iov_base: to.cast(),
        iov_len: len,
    };
    let remote = libc::iovec {
        iov_base: address as *mut libc::c_void,
        iov_len: len,
    };
    // SAFETY: `local` names `len` writable bytes of ours; the kernel checks `remote`.
    let done = unsafe { libc::process_vm_readv(libc::getpid(), &local, 1, &remote, 1, 0) };
    whole(done, len)
}

fn copy_out(address: u64, from: *const u8, len: usize) -> Result<()> {
    if len == 0 {
        return Ok(());
    }
    let local = libc::iovec {
        iov_base: from.cast_mut().cast(),
        iov_len: len,
    };
    let remote = libc::iovec {
        iov_base: address as *mut libc::c_void,
        iov_len: len,
    };
    // SAFETY: `local` names `len` readable bytes of ours. `remote` is checked by the kernel, and
    // lies where the caller of the ioctl asked us to write: that the caller may do by the contract
    // of the ABI, as with the kernel itself.
    let done = unsafe { libc::process_vm_writev(libc::getpid(), &local, 1, &remote, 1, 0) };
    whole(done, len)
}

fn whole(done: isize, len: usize) -> Result<()> {
    if usize::try_from(done) == Ok(len) {
        Ok(())
    } else {
        Err(Errno::EFAULT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_both_ways() {
        let mut value = 0x1122_3344_5566_7788_u64;
        let here = UserPtr(&raw mut value as u64);
        assert_eq!(here.read::<u64>(), Ok(0x1122_3344_5566_7788));
        assert_eq!(here.offset(4).write(&7_u32), Ok(()));
        assert_eq!(here.read_array::<u32>(2), Ok(vec![0x5566_7788, 7]));
    }

    #[test]
    fn a_bad_address_is_efault() {
        for address in [0, 8, 0xffff_8000_0000_0000, u64::MAX - 3] {
            assert_eq!(
                UserPtr(address).read::<u64>(),
                Err(Errno::EFAULT),
                "{address:#x}"
            );
            assert_eq!(
                UserPtr(address).write(&0_u64),
                Err(Errno::EFAULT),
                "{address:#x}"
            );
        }
    }

    #[test]
    fn constant_memory_refuses_writes() {
        static CONSTANT: [u64; 2] = [1, 2];
        let here = UserPtr(CONSTANT.as_ptr() as u64);
        assert_eq!(here.read::<u64>(), Ok(1));
        assert_eq!(here.write(&5_u64), Err(Errno::EFAULT));
    }
}
