//! A VMM that starts itself anew by `exec`, while another of its threads runs a vCPU, and keeps its
//! descriptors. It prints what has to hold on every KVM.
//!
//! It knows nothing of softvmx: run it under the preload library, or with a real /dev/kvm.
#![allow(unsafe_code, reason = "ioctls and guest memory")]

use core::ffi::{c_int, c_ulong, c_void};
use kvm_bindings::{kvm_regs, kvm_sregs, kvm_userspace_memory_region};
use std::os::unix::process::CommandExt;

const KVM_GET_API_VERSION: c_ulong = 0xae00;
const KVM_CREATE_VM: c_ulong = 0xae01;
const KVM_CREATE_VCPU: c_ulong = 0xae41;
const KVM_SET_USER_MEMORY_REGION: c_ulong = 0x4020_ae46;
const KVM_RUN: c_ulong = 0xae80;
const KVM_SET_REGS: c_ulong = 0x4090_ae82;
const KVM_GET_SREGS: c_ulong = 0x8138_ae83;
const KVM_SET_SREGS: c_ulong = 0x4138_ae84;

/// jmp to itself.
const ENDLESS: &[u8] = &[0xeb, 0xfe];
const BYTES: usize = 0x10000;

fn ioctl<T>(fd: c_int, request: c_ulong, argument: *mut T) -> Result<c_int, c_int> {
    // SAFETY: each caller gives what the request takes.
    match unsafe { libc::ioctl(fd, request, argument) } {
        -1 => Err(std::io::Error::last_os_error()
            .raw_os_error()
            .unwrap_or_default()),
        value => Ok(value),
    }
}

fn number(fd: c_int, request: c_ulong) -> Result<c_int, c_int> {
    ioctl(fd, request, core::ptr::null_mut::<c_void>())
}

/// Makes a vCPU that never exits.
fn new_vcpu(vm: c_int) -> Result<c_int, c_int> {
    let (both, how) = (
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
    );
    // SAFETY: new memory, kept for the life of the program; the code lies within.
    let memory = unsafe {
        let memory = libc::mmap(core::ptr::null_mut(), BYTES, both, how, -1, 0).cast::<u8>();
        memory
            .add(0x1000)
            .copy_from(ENDLESS.as_ptr(), ENDLESS.len());
        memory
    };
    let mut region = kvm_userspace_memory_region {
        memory_size: BYTES as u64,
        userspace_addr: memory as u64,
        ..Default::default()
    };
    ioctl(vm, KVM_SET_USER_MEMORY_REGION, &raw mut region)?;
    let vcpu = number(vm, KVM_CREATE_VCPU)?;
    let mut sregs = kvm_sregs::default();
    ioctl(vcpu, KVM_GET_SREGS, &raw mut sregs)?;
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    ioctl(vcpu, KVM_SET_SREGS, &raw mut sregs)?;
    let mut regs = kvm_regs {
        rip: 0x1000,
        rflags: 2,
        ..Default::default()
    };
    ioctl(vcpu, KVM_SET_REGS, &raw mut regs)?;
    Ok(vcpu)
}

/// Makes a VM, runs its vCPU on a thread, and starts the program anew.
fn start_anew() -> Result<(), c_int> {
    // SAFETY: a C string.
    let system = unsafe { libc::open(c"/dev/kvm".as_ptr(), libc::O_RDWR) };
    let vm = number(system, KVM_CREATE_VM)?;
    let vcpu = new_vcpu(vm)?;
    std::thread::spawn(move || number(vcpu, KVM_RUN));
    std::thread::sleep(std::time::Duration::from_millis(20));
    let mut again = std::process::Command::new(std::env::current_exe().expect("a file"));
    for fd in [system, vm, vcpu] {
        // SAFETY: takes close-on-exec from a descriptor of this program.
        unsafe { libc::fcntl(fd, libc::F_SETFD, 0) };
        again.arg(fd.to_string());
    }
    Err(again.exec().raw_os_error().unwrap_or_default())
}

fn main() -> Result<(), c_int> {
    let inherited: Vec<c_int> = std::env::args()
        .skip(1)
        .filter_map(|argument| argument.parse().ok())
        .collect();
    let [system, vm, vcpu] = inherited[..] else {
        return start_anew();
    };
    println!(
        "the system is everybody's: {}",
        number(system, KVM_GET_API_VERSION) == Ok(12)
    );
    let not_ours = Err(libc::EIO);
    println!(
        "the VM was another's: {}",
        number(vm, KVM_CREATE_VCPU) == not_ours
    );
    println!("so was the vCPU: {}", number(vcpu, KVM_RUN) == not_ours);
    println!("whatever is asked: {}", number(vcpu, 0) == not_ours);
    let new = number(system, KVM_CREATE_VM)?;
    println!("a new VM works: {}", new_vcpu(new).is_ok());
    Ok(())
}
