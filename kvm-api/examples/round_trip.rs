//! How long one KVM_RUN takes that ends with an OUT: ours, by the raw ABI, and the host's
//! /dev/kvm, if there is one.
//!
//! `cargo run --release -p kvm-api --example round_trip`
#![allow(unsafe_code, reason = "memory for guests")]

use kvm_api::uapi::*;
use kvm_api::{Kvm, abi};
use std::time::Instant;

const ROUNDS: u32 = 200_000;
/// out 0x10, al; jmp to it.
const CODE: [u8; 4] = [0xe6, 0x10, 0xeb, 0xfc];
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

fn report(name: &str, started: Instant, rounds: u32) {
    let nanos = started.elapsed().as_nanos() / u128::from(rounds);
    println!("{name}: {nanos} ns a round trip");
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
    let started = Instant::now();
    for _ in 0..ROUNDS {
        vcpu.run()?;
    }
    report("Vcpu::run", started, ROUNDS);
    Ok(())
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
    let started = Instant::now();
    for _ in 0..ROUNDS {
        ioctl(vcpu, KVM_RUN, 0)?;
    }
    report("abi::ioctl(KVM_RUN)", started, ROUNDS);
    Ok(())
}

fn host() -> Result<(), kvm_ioctls::Error> {
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
    let rounds = ROUNDS / 10;
    let started = Instant::now();
    for _ in 0..rounds {
        vcpu.run()?;
    }
    report("/dev/kvm", started, rounds);
    Ok(())
}

fn main() -> kvm_api::Result<()> {
    rust_api()?;
    raw_abi()?;
    if let Err(e) = host() {
        println!("/dev/kvm: skipped ({e})");
    }
    Ok(())
}
