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
//! help, as the descriptors are real ones.
//!
//! Not reached, so that the program meets the real /dev/kvm or none:
//! - system calls that the program makes itself (statically linked, a Go program, `syscall`);
//! - other names of the file: relative, with `//` or `..`, a symbolic link; `fopen` and `creat`, which
//!   the C library carries out without its own `open`;
//! - `open` with O_PATH.
//!
//! Otherwise than the kernel's the descriptors are memory files that are open for reading and
//! writing: `read`, `write`, `lseek`, `ftruncate`, `fchmod`, `mmap` of a VM, seals, `/proc/self/fd` and the
//! ioctls of file systems show it.
#![expect(unsafe_code, reason = "the C ABI of interposed functions")]

pub mod descriptors;
pub mod handlers;
mod next;

use core::ffi::{CStr, c_char, c_int, c_ulong, c_void};

use std::sync::OnceLock;

use kvm_api::{Errno, abi};
use next::Next;

pub(crate) fn fail(errno: c_int) -> c_int {
    set_errno(errno);
    -1
}

/// Below this no memory is mapped (`vm.mmap_min_addr`): the kernel answers EFAULT.
const LOWEST_ADDRESS: usize = 0x1_0000;

/// Whether `open` of a path with flags gives the KVM system.
///
/// # Safety
/// `path` is a C string, or below [`LOWEST_ADDRESS`].
unsafe fn is_kvm(path: *const c_char, flags: c_int) -> bool {
    let is_path = path.addr() >= LOWEST_ADDRESS;
    // SAFETY: the caller's.
    is_path && flags & libc::O_PATH == 0 && unsafe { CStr::from_ptr(path) } == c"/dev/kvm"
}

fn errno() -> c_int {
    // SAFETY: the address of this thread's errno.
    unsafe { *libc::__errno_location() }
}

fn set_errno(errno: c_int) {
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
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
    // A call that succeeds leaves errno as it is.
    let before = errno();
    match try_open_kvm(flags) {
        Ok(fd) => {
            set_errno(before);
            fd
        }
        Err(errno) => fail(errno),
    }
}

fn try_open_kvm(flags: c_int) -> Result<c_int, c_int> {
    const EXCLUSIVE: c_int = libc::O_CREAT | libc::O_EXCL;
    if flags & EXCLUSIVE == EXCLUSIVE {
        return Err(libc::EEXIST);
    }
    // O_TMPFILE has this bit too.
    if flags & libc::O_DIRECTORY != 0 {
        return Err(libc::ENOTDIR);
    }
    choose_processor()?;
    let fd = abi::open_system().map_err(Errno::raw)?;
    handlers::adopt_all();
    abi::watch_descriptors();
    if flags & libc::O_CLOEXEC == 0 {
        // SAFETY: a descriptor that was just made.
        unsafe { libc::fcntl(fd, libc::F_SETFD, 0) };
    }
    let status = flags & (libc::O_NONBLOCK | libc::O_APPEND);
    if status != 0 {
        // SAFETY: as above.
        unsafe { libc::fcntl(fd, libc::F_SETFL, status) };
    }
    Ok(fd)
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
            if unsafe { is_kvm(path, flags) } {
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
const OF_EVERY_FILE: [c_ulong; 6] = [
    libc::FIOCLEX,
    libc::FIONCLEX,
    libc::FIONBIO,
    libc::FIOASYNC,
    FIGETBSZ,
    FS_IOC_FIEMAP,
];
const FIGETBSZ: c_ulong = 2;
const FS_IOC_FIEMAP: c_ulong = 0xc020_660b;

/// See the C library's `ioctl`.
///
/// # Safety
/// That of the C library's function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ioctl(fd: c_int, request: c_ulong, argument: *mut c_void) -> c_int {
    static NEXT: Next = Next::new(c"ioctl");
    // The kernel takes 32 bits of the request.
    let number = request as u32;
    if !OF_EVERY_FILE.contains(&c_ulong::from(number)) {
        // A call that succeeds leaves errno as it is, whoever answers it.
        let before = errno();
        let answer = abi::ioctl(fd, number, argument as u64);
        if let Some(Err(errno)) = answer {
            return fail(errno.raw());
        }
        set_errno(before);
        if let Some(Ok(value)) = answer {
            return value as c_int;
        }
    }
    let next = NEXT.get();
    if next.is_null() {
        return fail(libc::ENOSYS);
    }
    // SAFETY: the symbol of this name has this type; the arguments are the caller's.
    unsafe { core::mem::transmute::<*mut c_void, Ioctl>(next)(fd, request, argument) }
}
