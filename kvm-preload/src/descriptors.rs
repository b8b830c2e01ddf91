//! The calls by which a program closes descriptors: [`kvm_api::abi::begin_descriptor_change`] is told of
//! each, so that it need not ask the kernel at each KVM_RUN whose descriptor it is. Some of them are
//! cancellation points: a thread may end in them, and nothing here waits to be dropped.

use crate::next::Next;
use core::ffi::{c_int, c_uint, c_void};
use kvm_api::abi;

/// Declares interposed functions that close descriptors: the next definition's, as a change.
macro_rules! interpose_change {
    ($($name:ident($($argument:ident: $type:ty),*) $(-> $answer:ty, $fail:expr)?;)*) => {$(
        /// See the C library's function of this name.
        ///
        /// # Safety
        /// That of the C library's function.
        #[unsafe(no_mangle)]
        pub unsafe extern "C-unwind" fn $name($($argument: $type),*) $(-> $answer)? {
            static NEXT: Next = Next::new(
                // SAFETY: the literal ends in its only zero byte.
                unsafe {
                    core::ffi::CStr::from_bytes_with_nul_unchecked(
                        concat!(stringify!($name), "\0").as_bytes(),
                    )
                }
            );
            let next = NEXT.get();
            if next.is_null() {
                return $($fail)?;
            }
            abi::begin_descriptor_change();
            // SAFETY: the symbol of this name has this type; the arguments are the caller's.
            let answer = unsafe {
                core::mem::transmute::<
                    *mut c_void,
                    unsafe extern "C-unwind" fn($($type),*) $(-> $answer)?,
                >(next)($($argument),*)
            };
            abi::end_descriptor_change();
            answer
        }
    )*};
}

interpose_change! {
    close(fd: c_int) -> c_int, crate::fail(libc::ENOSYS);
    closefrom(first: c_int);
    close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int, crate::fail(libc::ENOSYS);
    dup2(old: c_int, new: c_int) -> c_int, crate::fail(libc::ENOSYS);
    dup3(old: c_int, new: c_int, flags: c_int) -> c_int, crate::fail(libc::ENOSYS);
}
