//! How long one KVM_RUN takes that ends with an OUT: ours, by the Rust API, by the raw ABI, and for
//! a program on the `kvm-ioctls` crate under the preload library, if that was built; and the host's
//! /dev/kvm, if there is one. The best of many short series counts: on a machine that others use, which
//! share its caches and execution units, few of them are undisturbed.
//!
//! `cargo build --release -p kvm-preload && cargo run --release -p kvm-api --example round_trip`
#![allow(unsafe_code, reason = "memory for guests")]

use kvm_api::uapi::*;
use kvm_api::{Kvm, abi};
use std::time::Duration;

const ROUNDS: u32 = 1000;
const SERIES: u32 = 400;
/// out 0x10, al; jmp to it.
const CODE: [u8; 4] = [0xe6, 0x10, 0xeb, 0xfc];
const UNDER_PRELOAD: &str = "under kvm-preload";
const BYTES: usize = 0x10000;

fn memory() -> *mut u8 {
    let (prot, how) = (
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
    );
    // SAFETY: new memory, kept for the life of the process.
    let memory = unsafe { libc::mmap(core::ptr::null_mut(), BYTES, prot, how, -1, 0) };
    // SAFETY: within the new memory.
    unsafe {
        memory
            .cast::<u8>()
            .add(0x1000)
            .copy_from(CODE.as_ptr(), CODE.len());
    };
    memory.cast()
}

fn region() -> kvm_bindings::kvm_userspace_memory_region {
    kvm_bindings::kvm_userspace_memory_region {
        memory_size: BYTES as u64,
        userspace_addr: memory() as u64,
        ..Default::default()
    }
}

/// The time that this thread has spent on a processor, in its own code and in the kernel: other
/// programs on the machine do not lengthen it.
fn thread_time() -> Duration {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the time is writable.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut now) };
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// Measures, and prints what it is the time of.
fn measure<E>(name: &str, mut run: impl FnMut() -> Result<(), E>) -> Result<(), E> {
    let mut best = u128::MAX;
    for _ in 0..SERIES {
        let started = thread_time();
        for _ in 0..ROUNDS {
            run()?;
        }
        best = best.min((thread_time() - started).as_nanos() / u128::from(ROUNDS));
    }
    println!("{name}: {best} ns a round trip");
    Ok(())
}

fn rust_api() -> kvm_api::Result<()> {
    let vm = Kvm::new().create_vm(0)?;
    vm.set_user_memory_region(region())?;
    let vcpu = vm.create_vcpu(0)?;
    let mut sregs = vcpu.get_sregs()?;
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&kvm_bindings::kvm_regs {
        rip: 0x1000,
        rflags: 2,
        ..Default::default()
    })?;
    measure("Vcpu::run", || vcpu.run())
}

fn raw_abi() -> kvm_api::Result<()> {
    let ioctl = |fd, request, arg: u64| abi::ioctl(fd, request, arg).expect("a descriptor of ours");
    let system = abi::open_system()?;
    let vm = ioctl(system, KVM_CREATE_VM, 0)? as i32;
    let region = region();
    ioctl(vm, KVM_SET_USER_MEMORY_REGION, &raw const region as u64)?;
    let vcpu = ioctl(vm, KVM_CREATE_VCPU, 0)? as i32;
    let mut sregs = kvm_bindings::kvm_sregs::default();
    ioctl(vcpu, KVM_GET_SREGS, &raw mut sregs as u64)?;
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    ioctl(vcpu, KVM_SET_SREGS, &raw const sregs as u64)?;
    let regs = kvm_bindings::kvm_regs {
        rip: 0x1000,
        rflags: 2,
        ..Default::default()
    };
    ioctl(vcpu, KVM_SET_REGS, &raw const regs as u64)?;
    measure("abi::ioctl(KVM_RUN)", || {
        ioctl(vcpu, KVM_RUN, 0).map(|_| ())
    })
}

/// The program that knows nothing of softvmx.
fn host(name: &str) -> Result<(), kvm_ioctls::Error> {
    let vm = kvm_ioctls::Kvm::new()?.create_vm()?;
    // SAFETY: the memory lives as long as the process.
    unsafe { vm.set_user_memory_region(region())? };
    let mut vcpu = vm.create_vcpu(0)?;
    let mut sregs = vcpu.get_sregs()?;
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&kvm_bindings::kvm_regs {
        rip: 0x1000,
        rflags: 2,
        ..Default::default()
    })?;
    measure(name, || vcpu.run().map(|_| ()))
}

/// Runs this program again under the preload library.
fn preloaded() -> std::io::Result<()> {
    let program = std::env::current_exe()?;
    let built = program.parent().and_then(std::path::Path::parent);
    let library = built.map(|folder| folder.join("libkvm_preload.so"));
    match library.filter(|library| library.exists()) {
        Some(library) => {
            let mut again = std::process::Command::new(program);
            again.arg(UNDER_PRELOAD).env("LD_PRELOAD", library);
            again.status().map(|_| ())
        }
        None => Err(std::io::Error::other("libkvm_preload.so is not built")),
    }
}

fn main() -> kvm_api::Result<()> {
    if std::env::args().any(|argument| argument == UNDER_PRELOAD) {
        host(UNDER_PRELOAD).expect("the library gives a /dev/kvm");
        return Ok(());
    }
    rust_api()?;
    raw_abi()?;
    if let Err(e) = preloaded() {
        println!("{UNDER_PRELOAD}: skipped ({e})");
    }
    if let Err(e) = host("/dev/kvm") {
        println!("/dev/kvm: skipped ({e})");
    }
    Ok(())
}
