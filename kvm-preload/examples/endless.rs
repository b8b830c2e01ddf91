//! A VMM whose guests never end: a signal from another thread gets each of them out of KVM_RUN. It
//! prints what has to hold on every KVM.
//!
//! It knows nothing of softvmx: run it under the preload library, or with a real /dev/kvm.
#![allow(unsafe_code, reason = "ioctls, guest memory and a signal handler")]

use core::ffi::{c_int, c_ulong, c_void};
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
use kvm_bindings::{kvm_regs, kvm_sregs, kvm_userspace_memory_region};
use std::time::Duration;

const KVM_CREATE_VM: c_ulong = 0xae01;
const KVM_CREATE_VCPU: c_ulong = 0xae41;
const KVM_SET_USER_MEMORY_REGION: c_ulong = 0x4020_ae46;
const KVM_RUN: c_ulong = 0xae80;
const KVM_SET_REGS: c_ulong = 0x4090_ae82;
const KVM_GET_SREGS: c_ulong = 0x8138_ae83;
const KVM_SET_SREGS: c_ulong = 0x4138_ae84;

/// Endless loops of 16-bit code at 0x1000.
const LOOPS: [(&str, &[u8]); 5] = [
    ("jump", &[0xeb, 0xfe]),
    // inc byte [0x1005]; mov bl, imm8, whose operand that is; jmp back.
    (
        "self-modifying",
        &[0xfe, 0x06, 0x05, 0x10, 0xb3, 0, 0xeb, 0xf8],
    ),
    // mov si, 0x2000; mov di, 0x6000; mov cx, 0x4000; repe cmpsb; jmp back.
    (
        "comparisons",
        &[
            0xbe, 0, 0x20, 0xbf, 0, 0x60, 0xb9, 0, 0x40, 0xf3, 0xa6, 0xeb, 0xf3,
        ],
    ),
    // int 0x80, whose handler is an iret at 0x1800; jmp back.
    ("interrupts", &[0xcd, 0x80, 0xeb, 0xfc]),
    // cpuid; jmp back.
    ("exits", &[0x0f, 0xa2, 0xeb, 0xfc]),
];
const IRET: usize = 0x1800;
const BYTES: usize = 0x10000;
const ROUNDS: usize = 9;
/// Far more than a signal may wait, far less than a guest takes that nobody interrupts.
const PATIENCE: Duration = Duration::from_millis(100);

/// `immediate_exit` of the vCPU: what the handler sets, so that no signal is lost that comes before
/// KVM_RUN.
static IMMEDIATE_EXIT: AtomicPtr<u8> = AtomicPtr::new(core::ptr::null_mut());
static HANDLED: AtomicU32 = AtomicU32::new(0);

extern "C" fn handler(_: c_int) {
    HANDLED.fetch_add(1, Ordering::Relaxed);
    // SAFETY: the run page, which is mapped for the life of the process.
    unsafe { IMMEDIATE_EXIT.load(Ordering::Relaxed).write_volatile(1) };
}

fn ioctl<T>(fd: c_int, request: c_ulong, argument: *mut T) -> c_int {
    // SAFETY: each caller gives what the request takes.
    unsafe { libc::ioctl(fd, request, argument) }
}

fn number(fd: c_int, request: c_ulong) -> c_int {
    ioctl(fd, request, core::ptr::null_mut::<c_void>())
}

/// Makes a VM and its vCPU, and returns the vCPU and the guest's memory.
fn new_vcpu() -> (c_int, *mut u8) {
    let (both, anonymous) = (
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
    );
    // SAFETY: new mappings, kept for the life of the process; what is written lies within.
    unsafe {
        let system = libc::open(c"/dev/kvm".as_ptr(), libc::O_RDWR);
        let vm = number(system, KVM_CREATE_VM);
        let memory = libc::mmap(core::ptr::null_mut(), BYTES, both, anonymous, -1, 0).cast::<u8>();
        memory.add(IRET).write(0xcf);
        let vector = memory.add(4 * 0x80).cast::<u16>();
        vector.write(u16::try_from(IRET).expect("an offset"));
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
        let run = libc::mmap(core::ptr::null_mut(), 4096, both, libc::MAP_SHARED, vcpu, 0);
        IMMEDIATE_EXIT.store(run.cast::<u8>().add(1), Ordering::Relaxed);
        (vcpu, memory)
    }
}

fn cpu_time(clock: libc::clockid_t) -> Duration {
    // SAFETY: the time is writable.
    let now = unsafe {
        let mut now: libc::timespec = core::mem::zeroed();
        libc::clock_gettime(clock, &raw mut now);
        now
    };
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// Runs the guest until another thread sends a signal some time later: whether KVM_RUN has ended
/// with EINTR, and how long this thread has computed since then.
fn interrupted(vcpu: c_int, delay: Duration) -> (bool, Duration) {
    // SAFETY: this thread outlives the sender; the clock is writable.
    let (thread, clock) = unsafe {
        let thread = libc::pthread_self();
        let mut clock = 0;
        assert_eq!(libc::pthread_getcpuclockid(thread, &raw mut clock), 0);
        (thread, clock)
    };
    let sender = std::thread::spawn(move || {
        std::thread::sleep(delay);
        let sent = cpu_time(clock);
        // SAFETY: the signal has a handler, and the thread waits for this one.
        unsafe { libc::pthread_kill(thread, libc::SIGUSR1) };
        sent
    });
    let ended = number(vcpu, KVM_RUN);
    let error = std::io::Error::last_os_error().raw_os_error();
    let returned = cpu_time(libc::CLOCK_THREAD_CPUTIME_ID);
    let sent = sender.join().expect("no panic");
    let is_interrupted = ended == -1 && error == Some(libc::EINTR);
    (is_interrupted, returned.saturating_sub(sent))
}

fn main() {
    // SAFETY: the handler has the type that `signal` takes.
    unsafe { libc::signal(libc::SIGUSR1, handler as *const () as usize) };
    let (vcpu, memory) = new_vcpu();
    for (name, code) in LOOPS {
        let mut waits = Vec::new();
        let mut are_interrupted = true;
        for round in 0..ROUNDS {
            // SAFETY: within the guest's memory, while the guest does not run.
            unsafe { memory.add(0x1000).copy_from(code.as_ptr(), code.len()) };
            let mut regs = kvm_regs {
                rip: 0x1000,
                rsp: 0x8000,
                rflags: 2,
                ..Default::default()
            };
            assert_eq!(ioctl(vcpu, KVM_SET_REGS, &raw mut regs), 0);
            let before = HANDLED.load(Ordering::Relaxed);
            let delay = Duration::from_micros(300 * round as u64);
            let (is_interrupted, wait) = interrupted(vcpu, delay);
            let is_handled = HANDLED.load(Ordering::Relaxed) == before + 1;
            are_interrupted &= is_interrupted && is_handled;
            waits.push(wait);
            // SAFETY: the run page.
            unsafe { IMMEDIATE_EXIT.load(Ordering::Relaxed).write_volatile(0) };
        }
        waits.sort();
        // Others may have kept the sender from sending: not most of the times.
        let is_soon = waits[ROUNDS / 2] < PATIENCE;
        println!("{name}: {}", are_interrupted && is_soon);
    }
}
