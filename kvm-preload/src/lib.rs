//! `LD_PRELOAD=libkvm_preload.so PROGRAM`: an unmodified, dynamically linked program's /dev/kvm.
//!
//! Interposed are, and nothing else:
//! - `open`, `open64`, `openat`, `openat64` and their fortified forms `__open_2`, `__open64_2`,
//!   `__openat_2`, `__openat64_2`: the path `/dev/kvm` opens [`kvm_api`]'s system, whether there is
//!   a real one or not;
//! - `ioctl`: descriptors of [`kvm_api`] are answered by it;
//! - `close`, `closefrom`, `close_range`, `dup2` and `dup3`, to notice that a descriptor may have
//!   become another file's;
//! - `sigaction`, `signal` and their like: see `handlers`.
//!
//! `SOFTVMX_CPU=NAME` chooses the processor on which KVM runs, by the name of a CPUID profile.
//!
//! Every other call goes to the next definition of the symbol. `mmap`, `dup` and the rest need no
//! help, as the descriptors are real ones. A program that makes system calls itself
//! (statically linked, or a Go program) is not reached.
#![expect(unsafe_code, reason = "the C ABI of interposed functions")]

pub mod descriptors;
pub mod handlers;
mod next;

use core::ffi::{CStr, c_char, c_int, c_ulong, c_void};

use std::sync::OnceLock;

use kvm_api::{Errno, abi};
use next::Next;

pub(crate) fn fail(errno: c_int) -> c_int {
    // SAFETY: the address of this thread's errno.
    unsafe { *libc::__errno_location() = errno };
    -1
}

/// Whether a path names the KVM system.
///
/// # Safety
/// `path` is null or a C string.
unsafe fn is_kvm(path: *const c_char) -> bool {
    // SAFETY: the caller's.
    !path.is_null() && unsafe { CStr::from_ptr(path) } == c"/dev/kvm"
}

/// Names the processor on which KVM runs; see [`kvm_api::choose_processor`].
const PROCESSOR: &str = "SOFTVMX_CPU";

/// Heeds `SOFTVMX_CPU`; a name that does not fit is told, and makes KVM unavailable (ENODEV).
fn choose_processor() -> Result<(), c_int> {
    static CHOSEN: OnceLock<Result<(), c_int>> = OnceLock::new();
    *CHOSEN.get_or_init(|| {
        let Some(name) = std::env::var_os(PROCESSOR).filter(|name| !name.is_empty()) else {
            return Ok(());
        };
        kvm_api::choose_processor(&name.to_string_lossy()).map_err(|error| {
            eprintln!("{PROCESSOR}: {error}");
            libc::ENODEV
        })
    })
}

/// What `open("/dev/kvm", flags)` gives.
fn open_kvm(flags: c_int) -> c_int {
    if let Err(errno) = choose_processor() {
        return fail(errno);
    }
    let fd = match abi::open_system() {
        Ok(fd) => fd,
        Err(errno) => return fail(errno.raw()),
    };
    handlers::adopt_all();
    abi::watch_descriptors();
    if flags & libc::O_CLOEXEC == 0 {
        // SAFETY: a descriptor that was just made.
        unsafe { libc::fcntl(fd, libc::F_SETFD, 0) };
    }
    fd
}

type Open = unsafe extern "C" fn(*const c_char, c_int, libc::mode_t) -> c_int;
type OpenAt = unsafe extern "C" fn(c_int, *const c_char, c_int, libc::mode_t) -> c_int;
type Open2 = unsafe extern "C" fn(*const c_char, c_int) -> c_int;
type OpenAt2 = unsafe extern "C" fn(c_int, *const c_char, c_int) -> c_int;
type Ioctl = unsafe extern "C" fn(c_int, c_ulong, *mut c_void) -> c_int;

/// Declares an interposed function of the `open` family: the path `/dev/kvm` is ours, the rest is
/// the next definition's. The variadic mode is declared as a parameter, which the calling
/// conventions of the supported hosts allow.
macro_rules! interpose_open {
    ($($name:ident: $type:ty = ([$($before:ident: $before_type:ty)?] path, flags [$($mode:ident: $mode_type:ty)?]);)*) => {$(
        /// See the C library's function of this name.
        ///
        /// # Safety
        /// That of the C library's function.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(
            $($before: $before_type,)?
            path: *const c_char,
            flags: c_int
            $(, $mode: $mode_type)?
        ) -> c_int {
            static NEXT: Next = Next::new(
                // SAFETY: the literal ends in its only zero byte.
                unsafe { CStr::from_bytes_with_nul_unchecked(concat!(stringify!($name), "\0").as_bytes()) }
            );
            // SAFETY: the caller's.
            if unsafe { is_kvm(path) } {
                return open_kvm(flags);
            }
            let next = NEXT.get();
            if next.is_null() {
                return fail(libc::ENOSYS);
            }
            // SAFETY: the symbol of this name has this type; the arguments are the caller's.
            unsafe { core::mem::transmute::<*mut c_void, $type>(next)($($before,)? path, flags $(, $mode)?) }
        }
    )*};
}

interpose_open! {
    open: Open = ([] path, flags [mode: libc::mode_t]);
    open64: Open = ([] path, flags [mode: libc::mode_t]);
    openat: OpenAt = ([directory: c_int] path, flags [mode: libc::mode_t]);
    openat64: OpenAt = ([directory: c_int] path, flags [mode: libc::mode_t]);
    __open_2: Open2 = ([] path, flags []);
    __open64_2: Open2 = ([] path, flags []);
    __openat_2: OpenAt2 = ([directory: c_int] path, flags []);
    __openat64_2: OpenAt2 = ([directory: c_int] path, flags []);
}

/// Requests that the kernel answers for every descriptor before it asks the file.
const OF_EVERY_FILE: [c_ulong; 4] = [libc::FIOCLEX, libc::FIONCLEX, libc::FIONBIO, libc::FIOASYNC];

/// See the C library's `ioctl`.
///
/// # Safety
/// That of the C library's function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ioctl(fd: c_int, request: c_ulong, argument: *mut c_void) -> c_int {
    static NEXT: Next = Next::new(c"ioctl");
    // The kernel takes 32 bits of the request.
    let number = request as u32;
    if !OF_EVERY_FILE.contains(&c_ulong::from(number))
        && let Some(answer) = abi::ioctl(fd, number, argument as u64)
    {
        return answer.map_or_else(|e: Errno| fail(e.raw()), |value| value as c_int);
    }
    let next = NEXT.get();
    if next.is_null() {
        return fail(libc::ENOSYS);
    }
    // SAFETY: the symbol of this name has this type; the arguments are the caller's.
    unsafe { core::mem::transmute::<*mut c_void, Ioctl>(next)(fd, request, argument) }
}
