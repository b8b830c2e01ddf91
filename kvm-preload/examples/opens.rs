//! What `open("/dev/kvm")` makes of its flags, and that calls which succeed leave `errno` alone. It
//! prints what has to hold on every KVM.
//!
//! It knows nothing of softvmx: run it under the preload library, or with a real /dev/kvm.
#![allow(unsafe_code, reason = "calls of the C library")]

use core::ffi::{CStr, c_char, c_int, c_ulong, c_void};

const KVM_GET_API_VERSION: c_ulong = 0xae00;
const KVM_CREATE_VM: c_ulong = 0xae01;
/// What no call here sets errno to.
const UNTOUCHED: c_int = libc::EXFULL;

fn set_errno(errno: c_int) {
    // SAFETY: this thread's errno.
    unsafe { *libc::__errno_location() = errno };
}

fn errno() -> c_int {
    // SAFETY: this thread's errno.
    unsafe { *libc::__errno_location() }
}

fn open_at(path: *const c_char, flags: c_int) -> Result<c_int, c_int> {
    set_errno(UNTOUCHED);
    // SAFETY: what is asked for here opens nothing else, also if the path is no path.
    let fd = unsafe { libc::open(path, flags, 0o600) };
    if fd < 0 { Err(errno()) } else { Ok(fd) }
}

fn open(flags: c_int) -> Result<c_int, c_int> {
    open_at(c"/dev/kvm".as_ptr(), flags)
}

fn ioctl(fd: c_int, request: c_ulong, argument: *mut c_void) -> c_int {
    // SAFETY: the requests here take no pointer, or room for what they store.
    unsafe { libc::ioctl(fd, request, argument) }
}

fn number(fd: c_int, request: c_ulong) -> c_int {
    ioctl(fd, request, core::ptr::null_mut())
}

fn status_flags(fd: c_int) -> c_int {
    // SAFETY: asks for flags.
    unsafe { libc::fcntl(fd, libc::F_GETFL) }
}

/// Whether an `open` with these flags opens KVM, whose descriptor has them.
fn keeps(flags: c_int) -> bool {
    open(libc::O_RDWR | flags)
        .is_ok_and(|fd| status_flags(fd) & flags == flags && number(fd, KVM_GET_API_VERSION) == 12)
}

/// Bytes that can be read from a pipe with three.
fn bytes_in_a_pipe() -> c_int {
    let (mut ends, mut count) = ([0; 2], 0);
    // SAFETY: room for two descriptors; three bytes; the ioctl stores an int.
    unsafe {
        assert_eq!(libc::pipe(ends.as_mut_ptr()), 0);
        assert_eq!(libc::write(ends[1], c"abc".as_ptr().cast(), 3), 3);
        ioctl(ends[0], libc::FIONREAD, (&raw mut count).cast());
    }
    count
}

fn main() {
    let system = open(libc::O_RDWR | libc::O_CLOEXEC).expect("a KVM");
    println!("open: {}", errno() == UNTOUCHED);
    set_errno(UNTOUCHED);
    let vm = number(system, KVM_CREATE_VM);
    println!("ioctl: {}", vm >= 0 && errno() == UNTOUCHED);
    set_errno(UNTOUCHED);
    println!("others: {}", bytes_in_a_pipe() == 3 && errno() == UNTOUCHED);

    println!("nonblock: {}", keeps(libc::O_NONBLOCK));
    println!("append: {}", keeps(libc::O_APPEND));
    println!(
        "creat: {}",
        keeps(0) && open(libc::O_RDWR | libc::O_CREAT).is_ok()
    );
    let exclusive = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL;
    println!("excl: {}", open(exclusive) == Err(libc::EEXIST));
    let directory = libc::O_RDWR | libc::O_DIRECTORY;
    println!("directory: {}", open(directory) == Err(libc::ENOTDIR));
    let temporary = libc::O_RDWR | libc::O_TMPFILE;
    println!("tmpfile: {}", open(temporary) == Err(libc::ENOTDIR));
    let is_no_kvm = open(libc::O_PATH).map_or(true, |fd| number(fd, KVM_GET_API_VERSION) == -1);
    println!("path: {is_no_kvm}");

    let nowhere = [0, 8].map(|at| open_at(core::ptr::without_provenance(at), libc::O_RDWR));
    println!("no path: {}", nowhere == [Err(libc::EFAULT); 2]);
    let name: &CStr = c"/dev/kvm0";
    println!(
        "another: {}",
        open_at(name.as_ptr(), libc::O_RDWR) == Err(libc::ENOENT)
    );
}
