//! A VMM whose signal handlers use its vCPU: a timer's asks for the registers, another one adds up
//! what is sent with the signal. It prints what has to hold on every KVM.
//!
//! It knows nothing of softvmx: run it under the preload library, or with a real /dev/kvm.
#![allow(unsafe_code, reason = "signal handlers, and ioctls in them")]

use core::ffi::{c_int, c_ulong, c_void};
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};
use kvm_bindings::{KVM_EXIT_IO, kvm_regs, kvm_sregs, kvm_userspace_memory_region};

const KVM_CREATE_VM: c_ulong = 0xae01;
const KVM_CREATE_VCPU: c_ulong = 0xae41;
const KVM_SET_USER_MEMORY_REGION: c_ulong = 0x4020_ae46;
const KVM_RUN: c_ulong = 0xae80;
const KVM_GET_REGS: c_ulong = 0x8090_ae81;
const KVM_SET_REGS: c_ulong = 0x4090_ae82;
const KVM_GET_SREGS: c_ulong = 0x8138_ae83;
const KVM_SET_SREGS: c_ulong = 0x4138_ae84;

/// inc ax; out 0x10, ax; jmp back. At 0x1010: jmp to itself.
const CODE: &[u8] = &[0x40, 0xe7, 0x10, 0xeb, 0xfb];
const ENDLESS: &[u8] = &[0xeb, 0xfe];
const ENDLESS_RIP: u64 = 0x1010;
const BYTES: usize = 0x10000;
const ROUNDS: u32 = 40_000;
const SENT: u64 = 200;

static VCPU: AtomicI32 = AtomicI32::new(-1);
static TICKS: AtomicU32 = AtomicU32::new(0);
static IS_WRONG: AtomicBool = AtomicBool::new(false);
static SUM: AtomicU64 = AtomicU64::new(0);

fn ioctl<T>(fd: c_int, request: c_ulong, argument: *mut T) -> c_int {
    // SAFETY: each caller gives what the request takes.
    unsafe { libc::ioctl(fd, request, argument) }
}

fn number(fd: c_int, request: c_ulong) -> c_int {
    ioctl(fd, request, core::ptr::null_mut::<c_void>())
}

/// Whether the vCPU stands where a KVM_RUN may have left it, with AX as the guest counts it.
fn are_regs_consistent() -> bool {
    let mut regs = kvm_regs::default();
    let vcpu = VCPU.load(Ordering::Relaxed);
    if ioctl(vcpu, KVM_GET_REGS, &raw mut regs) != 0 {
        return false;
    }
    (0x1000..0x1005).contains(&regs.rip) || regs.rip == ENDLESS_RIP
}

extern "C" fn tick(_: c_int) {
    TICKS.fetch_add(1, Ordering::Relaxed);
    if !are_regs_consistent() {
        IS_WRONG.store(true, Ordering::Relaxed);
    }
}

extern "C" fn add(_: c_int, info: *mut libc::siginfo_t, _: *mut c_void) {
    // SAFETY: sent by `sigqueue`.
    let value = unsafe { (*info).si_value() }.sival_ptr as u64;
    SUM.fetch_add(value, Ordering::Relaxed);
}

fn handle(signal: c_int, handler: usize, flags: c_int) -> libc::sigaction {
    // SAFETY: the handler is of the type that the flags tell.
    unsafe {
        let (mut new, mut old): (libc::sigaction, libc::sigaction) =
            (core::mem::zeroed(), core::mem::zeroed());
        new.sa_sigaction = handler;
        new.sa_flags = flags;
        assert_eq!(libc::sigaction(signal, &raw const new, &raw mut old), 0);
        old
    }
}

/// Lets the timer tick each 150 microseconds, or no more.
fn set_timer(microseconds: i64) {
    let each = libc::timeval {
        tv_sec: 0,
        tv_usec: microseconds,
    };
    let timer = libc::itimerval {
        it_interval: each,
        it_value: each,
    };
    // SAFETY: the timer is a value.
    unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, core::ptr::null_mut()) };
}

/// Makes a VM and its vCPU, and returns the vCPU's run page.
fn new_vcpu() -> *const u8 {
    let (both, private) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE);
    // SAFETY: new mappings, kept for the life of the process; the code lies within.
    unsafe {
        let system = libc::open(c"/dev/kvm".as_ptr(), libc::O_RDWR);
        let vm = number(system, KVM_CREATE_VM);
        let anonymous = private | libc::MAP_ANONYMOUS;
        let memory = libc::mmap(core::ptr::null_mut(), BYTES, both, anonymous, -1, 0).cast::<u8>();
        memory.add(0x1000).copy_from(CODE.as_ptr(), CODE.len());
        memory
            .add(0x1010)
            .copy_from(ENDLESS.as_ptr(), ENDLESS.len());
        let mut region = kvm_userspace_memory_region {
            memory_size: BYTES as u64,
            userspace_addr: memory as u64,
            ..Default::default()
        };
        assert_eq!(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &raw mut region), 0);
        let vcpu = number(vm, KVM_CREATE_VCPU);
        VCPU.store(vcpu, Ordering::Relaxed);
        let mut sregs = kvm_sregs::default();
        assert_eq!(ioctl(vcpu, KVM_GET_SREGS, &raw mut sregs), 0);
        (sregs.cs.base, sregs.cs.selector) = (0, 0);
        assert_eq!(ioctl(vcpu, KVM_SET_SREGS, &raw mut sregs), 0);
        libc::mmap(core::ptr::null_mut(), 4096, both, libc::MAP_SHARED, vcpu, 0).cast()
    }
}

fn start_at(rip: u64) {
    let mut regs = kvm_regs {
        rip,
        rflags: 2,
        ..Default::default()
    };
    let vcpu = VCPU.load(Ordering::Relaxed);
    assert_eq!(ioctl(vcpu, KVM_SET_REGS, &raw mut regs), 0);
}

/// KVM_RUN; false if a signal has ended it.
fn run() -> bool {
    let vcpu = VCPU.load(Ordering::Relaxed);
    if number(vcpu, KVM_RUN) == 0 {
        return true;
    }
    let error = std::io::Error::last_os_error();
    assert_eq!(error.raw_os_error(), Some(libc::EINTR));
    false
}

/// Counts with the guest; whether no OUT was lost or seen twice.
fn counts_without_gap(page: *const u8) -> bool {
    (1..=ROUNDS).all(|expected| {
        while !run() {}
        // SAFETY: the run page; the data of an OUT are in the page behind, which RAX repeats.
        let reason = unsafe { page.add(8).cast::<u32>().read_volatile() };
        let mut regs = kvm_regs::default();
        ioctl(VCPU.load(Ordering::Relaxed), KVM_GET_REGS, &raw mut regs);
        reason == KVM_EXIT_IO && regs.rax == u64::from(expected as u16)
    })
}

/// Sends values to this thread from another one while the guest runs, and returns the sum that the
/// handler has made of them.
fn sum_of_sent() -> u64 {
    let signal = libc::SIGRTMIN() + 2;
    handle(signal, add as *const () as usize, libc::SA_SIGINFO);
    // SAFETY: this thread outlives the sender.
    let receiver = unsafe { libc::pthread_self() };
    let sender = std::thread::spawn(move || {
        for value in 1..=SENT {
            let value = libc::sigval {
                sival_ptr: value as *mut c_void,
            };
            // SAFETY: the signal has a handler.
            unsafe { libc::pthread_sigqueue(receiver, signal, value) };
            std::thread::yield_now();
        }
    });
    while !sender.is_finished() {
        run();
    }
    sender.join().expect("no panic");
    SUM.load(Ordering::Relaxed)
}

fn main() {
    let (tick, nothing) = (tick as *const () as usize, libc::SIG_DFL);
    // One handler is there before /dev/kvm is opened, the other comes after.
    // SAFETY: the handler has the type that `signal` takes.
    assert_eq!(unsafe { libc::signal(libc::SIGALRM, tick) }, nothing);
    let page = new_vcpu();
    println!(
        "own handler: {}",
        handle(libc::SIGALRM, tick, 0).sa_sigaction == tick
    );
    start_at(0x1000);
    set_timer(150);
    println!("no gap: {}", counts_without_gap(page));
    start_at(ENDLESS_RIP);
    let before = TICKS.load(Ordering::Relaxed);
    println!("EINTR: {}", !run());
    println!("handled: {}", TICKS.load(Ordering::Relaxed) != before);
    start_at(0x1000);
    println!("all sent: {}", sum_of_sent() == SENT * (SENT + 1) / 2);
    set_timer(0);
    println!("consistent: {}", !IS_WRONG.load(Ordering::Relaxed));
    handle(libc::SIGALRM, tick, libc::SA_RESETHAND);
    // SAFETY: the signal has a handler.
    unsafe { libc::raise(libc::SIGALRM) };
    println!(
        "reset: {}",
        handle(libc::SIGALRM, tick, 0).sa_sigaction == nothing
    );
}
