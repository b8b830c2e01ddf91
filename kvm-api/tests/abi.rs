//! The raw ABI through its public face: descriptors, errnos, order of checks.
#![allow(unsafe_code, reason = "fork and raw system calls")]

use kvm_api::uapi::*;
use kvm_api::{Errno, Result, abi};
use kvm_bindings::kvm_userspace_memory_region;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};

fn system() -> i32 {
    abi::open_system().expect("a descriptor")
}

fn ioctl(fd: i32, request: u32, arg: u64) -> Result<i64> {
    abi::ioctl(fd, request, arg).expect("a descriptor of ours")
}

fn vm(system: i32) -> i32 {
    ioctl(system, KVM_CREATE_VM, 0).expect("a VM") as i32
}

#[test]
fn system_requests_answer_as_the_kernel() {
    let fd = system();
    let rows = [
        (KVM_GET_API_VERSION, 0, Ok(12)),
        (KVM_GET_API_VERSION, 1, Err(Errno::EINVAL)),
        (KVM_GET_VCPU_MMAP_SIZE, 0, Ok(12288)),
        (KVM_GET_VCPU_MMAP_SIZE, 1, Err(Errno::EINVAL)),
        (KVM_CREATE_VM, 6, Err(Errno::EINVAL)),
        (KVM_CREATE_VM, u64::MAX, Err(Errno::EINVAL)),
        (KVM_CHECK_EXTENSION, 3, Ok(1)),
        (KVM_CHECK_EXTENSION, 1 << 32 | 3, Ok(0)),
        (KVM_CREATE_VCPU, 0, Err(Errno::EINVAL)),
        (KVM_RUN, 0, Err(Errno::EINVAL)),
        (0xaeff, 0, Err(Errno::EINVAL)),
        (0x5899, 0, Err(Errno::EINVAL)),
    ];
    for (request, arg, expected) in rows {
        assert_eq!(ioctl(fd, request, arg), expected, "{request:#x} {arg:#x}");
    }
    abi::close(fd).expect("it is open");
}

#[test]
fn a_foreign_request_on_a_vm_is_enotty() {
    let fd = system();
    let vm = vm(fd);
    for request in [0xaeff, 0x5899, KVM_CREATE_VM, KVM_GET_API_VERSION, KVM_RUN] {
        assert_eq!(ioctl(vm, request, 0), Err(Errno::ENOTTY), "{request:#x}");
    }
    assert_eq!(ioctl(vm, KVM_SET_USER_MEMORY_REGION, 0), Err(Errno::EFAULT));
}

#[test]
fn a_dup_is_the_same_object_and_a_closed_one_is_none() {
    let fd = system();
    // SAFETY: duplicates a descriptor of this test's.
    let dup = unsafe { libc::dup(fd) };
    abi::close(fd).expect("it is open");
    assert_eq!(ioctl(dup, KVM_GET_API_VERSION, 0), Ok(12));
    abi::close(dup).expect("it is open");
    assert_eq!(abi::ioctl(-1, KVM_GET_API_VERSION, 0), None);
}

#[test]
fn a_forked_child_gets_eio_before_all_else() {
    let fd = system();
    let vm = vm(fd);
    // SAFETY: the child only issues ioctls and leaves by `_exit`.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let good = ioctl(vm, 0x5899, 0) == Err(Errno::EIO)
            && ioctl(vm, KVM_CHECK_EXTENSION, 0) == Err(Errno::EIO)
            && ioctl(fd, KVM_GET_API_VERSION, 0) == Ok(12);
        // SAFETY: leaves the child at once.
        unsafe { libc::_exit(i32::from(!good)) };
    }
    let mut status = -1;
    // SAFETY: waits for the child made above.
    unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!(status, 0);
    assert_eq!(ioctl(vm, 0x5899, 0), Err(Errno::ENOTTY));
}

#[test]
fn a_slot_is_set_through_the_caller_s_memory() {
    let vm = vm(system());
    let mut region = kvm_userspace_memory_region {
        memory_size: 0x10000,
        userspace_addr: 0x10000,
        ..Default::default()
    };
    let address = |region: &kvm_userspace_memory_region| core::ptr::from_ref(region) as u64;
    assert_eq!(
        ioctl(vm, KVM_SET_USER_MEMORY_REGION, address(&region)),
        Ok(0)
    );
    region.slot = 1;
    let overlap = ioctl(vm, KVM_SET_USER_MEMORY_REGION, address(&region));
    assert_eq!(overlap, Err(Errno::EEXIST));
}

static VCPU: AtomicI32 = AtomicI32::new(-1);
static INTERRUPTIONS: AtomicU32 = AtomicU32::new(0);
static OTHER_ANSWERS: AtomicU32 = AtomicU32::new(0);

/// Asks for the registers of a vCPU that the interrupted thread may be using.
extern "C" fn ask(_: i32) {
    let mut regs = kvm_bindings::kvm_regs::default();
    let asked = abi::ioctl(
        VCPU.load(Ordering::Relaxed),
        KVM_GET_REGS,
        &raw mut regs as u64,
    );
    match asked {
        Some(Err(Errno::EINTR)) => INTERRUPTIONS.fetch_add(1, Ordering::Relaxed),
        // Nothing: the list of descriptors is being changed.
        Some(Ok(0)) | None => 0,
        Some(_) => OTHER_ANSWERS.fetch_add(1, Ordering::Relaxed),
    };
}

#[test]
fn a_handler_that_interrupts_an_ioctl_is_told_so_and_does_not_hang() {
    let vm = vm(system());
    let vcpu = ioctl(vm, KVM_CREATE_VCPU, 0).expect("a vCPU") as i32;
    VCPU.store(vcpu, Ordering::Relaxed);
    // SAFETY: the handler makes system calls and uses atomics; this thread outlives the sender.
    let here = unsafe {
        libc::signal(libc::SIGUSR1, ask as *const () as usize);
        libc::pthread_self()
    };
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_done.load(Ordering::Relaxed) {
                // SAFETY: the thread is there until `is_done`, and has a handler.
                unsafe { libc::pthread_kill(here, libc::SIGUSR1) };
                std::thread::sleep(std::time::Duration::from_micros(20));
            }
        });
        let mut regs = kvm_bindings::kvm_regs::default();
        let began = std::time::Instant::now();
        while INTERRUPTIONS.load(Ordering::Relaxed) < 20 && began.elapsed().as_secs() < 20 {
            let answer = ioctl(vcpu, KVM_GET_REGS, &raw mut regs as u64);
            assert_eq!(answer, Ok(0), "the interrupted one is not disturbed");
        }
        is_done.store(true, Ordering::Relaxed);
    });
    assert_eq!(INTERRUPTIONS.load(Ordering::Relaxed).min(20), 20);
    assert_eq!(OTHER_ANSWERS.load(Ordering::Relaxed), 0);
}
