//! A VMM whose descriptors are closed, and whose numbers are used again, between two KVM_RUNs. It
//! prints what has to hold on every KVM.
//!
//! It knows nothing of softvmx: run it under the preload library, or with a real /dev/kvm.
#![allow(unsafe_code, reason = "ioctls and guest memory")]

use core::ffi::{c_int, c_ulong, c_void};
use kvm_bindings::{kvm_regs, kvm_sregs, kvm_userspace_memory_region};

const KVM_CREATE_VM: c_ulong = 0xae01;
const KVM_CREATE_VCPU: c_ulong = 0xae41;
const KVM_SET_USER_MEMORY_REGION: c_ulong = 0x4020_ae46;
const KVM_RUN: c_ulong = 0xae80;
const KVM_GET_REGS: c_ulong = 0x8090_ae81;
const KVM_SET_REGS: c_ulong = 0x4090_ae82;
const KVM_GET_SREGS: c_ulong = 0x8138_ae83;
const KVM_SET_SREGS: c_ulong = 0x4138_ae84;

/// inc ax; out 0x10, ax; jmp back.
const CODE: &[u8] = &[0x40, 0xe7, 0x10, 0xeb, 0xfb];
const BYTES: usize = 0x10000;

fn ioctl<T>(fd: c_int, request: c_ulong, argument: *mut T) -> c_int {
    // SAFETY: each caller gives what the request takes.
    unsafe { libc::ioctl(fd, request, argument) }
}

fn number(fd: c_int, request: c_ulong) -> c_int {
    ioctl(fd, request, core::ptr::null_mut::<c_void>())
}

fn open(path: &core::ffi::CStr) -> c_int {
    // SAFETY: a C string.
    unsafe { libc::open(path.as_ptr(), libc::O_RDWR) }
}

/// Makes a VM with a vCPU that counts in AX, from `start`.
fn new_vcpu(system: c_int, start: u64) -> c_int {
    let vm = number(system, KVM_CREATE_VM);
    let (both, how) = (
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
    );
    // SAFETY: new memory, kept for the life of the process; the code lies within.
    let memory = unsafe {
        let memory = libc::mmap(core::ptr::null_mut(), BYTES, both, how, -1, 0).cast::<u8>();
        memory.add(0x1000).copy_from(CODE.as_ptr(), CODE.len());
        memory
    };
    let mut region = kvm_userspace_memory_region {
        memory_size: BYTES as u64,
        userspace_addr: memory as u64,
        ..Default::default()
    };
    assert_eq!(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &raw mut region), 0);
    let vcpu = number(vm, KVM_CREATE_VCPU);
    let mut sregs = kvm_sregs::default();
    assert_eq!(ioctl(vcpu, KVM_GET_SREGS, &raw mut sregs), 0);
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    assert_eq!(ioctl(vcpu, KVM_SET_SREGS, &raw mut sregs), 0);
    let mut regs = kvm_regs {
        rip: 0x1000,
        rax: start,
        rflags: 2,
        ..Default::default()
    };
    assert_eq!(ioctl(vcpu, KVM_SET_REGS, &raw mut regs), 0);
    vcpu
}

/// Runs a vCPU to its next OUT and returns AX, or errno.
fn count(vcpu: c_int) -> Result<u64, c_int> {
    let mut regs = kvm_regs::default();
    for (request, argument) in [
        (KVM_RUN, core::ptr::null_mut()),
        (KVM_GET_REGS, &raw mut regs),
    ] {
        if ioctl(vcpu, request, argument) != 0 {
            let error = std::io::Error::last_os_error();
            return Err(error.raw_os_error().unwrap_or_default());
        }
    }
    Ok(regs.rax)
}

/// Declares calls that take descriptors.
macro_rules! calls {
    ($($name:ident($($argument:ident: $type:ty),*) = $call:expr;)*) => {$(
        fn $name($($argument: $type),*) -> c_int {
            // SAFETY: descriptors of this program, which nothing else uses.
            let answer = unsafe { $call };
            assert_ne!(answer, -1);
            answer
        }
    )*};
}

calls! {
    dup(fd: c_int) = libc::dup(fd);
    dup2(old: c_int, new: c_int) = libc::dup2(old, new);
    dup3(old: c_int, new: c_int) = libc::dup3(old, new, libc::O_CLOEXEC);
    close(fd: c_int) = libc::close(fd);
    close_range(fd: u32) = libc::close_range(fd, fd, 0);
    close_unseen(fd: c_int) = libc::syscall(libc::SYS_close, fd) as c_int;
}

fn main() {
    let system = open(c"/dev/kvm");
    let not_kvm = Err(libc::ENOTTY);
    let (vcpu, other) = (new_vcpu(system, 0), new_vcpu(system, 100));
    println!(
        "both run: {}",
        (count(vcpu), count(other)) == (Ok(1), Ok(101))
    );

    let dup = dup(vcpu);
    close(vcpu);
    println!(
        "close: {}",
        open(c"/dev/null") == vcpu && count(vcpu) == not_kvm
    );
    println!("the copy runs: {}", count(dup) == Ok(2));

    dup2(other, dup);
    println!("dup2: {}", count(dup) == Ok(102));
    dup3(vcpu, dup);
    println!("dup3: {}", count(dup) == not_kvm);
    println!("the other runs: {}", count(other) == Ok(103));

    close_range(other.cast_unsigned());
    println!("close_range: {}", count(other) == Err(libc::EBADF));

    let vcpu = new_vcpu(system, 200);
    println!("a new one runs: {}", count(vcpu) == Ok(201));
    // Closed unseen; its number is that of the next VM, or of its vCPU.
    close_unseen(vcpu);
    let newer = new_vcpu(system, 300);
    let is_newer = newer == vcpu || count(vcpu) != Ok(202);
    println!(
        "the newer one runs: {}",
        is_newer && count(newer) == Ok(301)
    );
}
