//! A guest with 512 KiB of memory at 0 that starts in real mode at 0x1000.
#![allow(dead_code, reason = "each test binary uses some of it")]

use kvm_api::{Kvm, Result, Vcpu, Vm};
use kvm_bindings::*;
use std::sync::Arc;

const BYTES: usize = 0x80000;

pub(crate) struct Guest {
    pub vm: Arc<Vm>,
    pub vcpu: Arc<Vcpu>,
    pub memory: *mut u8,
}

impl Guest {
    pub(crate) fn new(code: &[u8]) -> Self {
        Self::with_flags(code, 0)
    }

    pub(crate) fn with_flags(code: &[u8], flags: u32) -> Self {
        let vm = Kvm::new().create_vm(0).expect("a VM");
        let memory = new_memory();
        let region = kvm_userspace_memory_region {
            flags,
            memory_size: BYTES as u64,
            userspace_addr: memory as u64,
            ..Default::default()
        };
        vm.set_user_memory_region(region).expect("a good region");
        let vcpu = vm.create_vcpu(0).expect("a vCPU");
        let guest = Self { vm, vcpu, memory };
        guest.write(0x1000, code);
        let mut sregs = guest.vcpu.get_sregs().expect("they are there");
        sregs.cs.selector = 0;
        sregs.cs.base = 0;
        guest.vcpu.set_sregs(&sregs).expect("real mode");
        let regs = kvm_regs {
            rip: 0x1000,
            rsp: 0x800,
            rflags: 2,
            ..Default::default()
        };
        guest.vcpu.set_regs(&regs).expect("any registers");
        guest
    }

    pub(crate) fn from_parts(vm: Arc<Vm>, vcpu: Arc<Vcpu>, memory: *mut u8) -> Self {
        Self { vm, vcpu, memory }
    }

    pub(crate) fn memory_bytes(&self) -> Vec<u8> {
        // SAFETY: the guest's memory, which lives as long as the process; no vCPU runs.
        unsafe { core::slice::from_raw_parts(self.memory, BYTES) }.to_vec()
    }

    /// Returns new memory with the same contents.
    pub(crate) fn copy_memory(&self) -> *mut u8 {
        let memory = new_memory();
        // SAFETY: both have this many bytes.
        unsafe { memory.copy_from(self.memory, BYTES) };
        memory
    }

    pub(crate) fn write(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= BYTES);
        // SAFETY: within the guest's memory.
        unsafe { self.memory.add(at).copy_from(bytes.as_ptr(), bytes.len()) };
    }

    pub(crate) fn run(&self) -> u32 {
        self.vcpu.run().expect("it runs");
        let reason = self.page(8);
        if matches!(reason, KVM_EXIT_FAIL_ENTRY | KVM_EXIT_INTERNAL_ERROR) {
            eprintln!(
                "exit {reason}: {:#x} {:x?}",
                self.page::<u64>(32),
                self.page::<[u64; 8]>(40)
            );
        }
        reason
    }

    pub(crate) fn regs(&self) -> kvm_regs {
        self.vcpu.get_regs().expect("they are there")
    }

    /// Direction, size, port and count of KVM_EXIT_IO.
    pub(crate) fn io(&self) -> (u8, u8, u16, u32) {
        (self.page(32), self.page(33), self.page(34), self.page(36))
    }

    /// Address, length, direction and first byte of KVM_EXIT_MMIO.
    pub(crate) fn mmio(&self) -> (u64, u32, u8, u8) {
        (self.page(32), self.page(48), self.page(52), self.page(40))
    }

    pub(crate) fn page<T: Copy>(&self, offset: usize) -> T {
        // SAFETY: within the three pages; integers only.
        unsafe {
            self.vcpu
                .run_page()
                .as_ptr()
                .add(offset)
                .cast::<T>()
                .read_unaligned()
        }
    }

    pub(crate) fn set_page<T: Copy>(&self, offset: usize, value: T) {
        // SAFETY: as above.
        unsafe {
            self.vcpu
                .run_page()
                .as_ptr()
                .add(offset)
                .cast::<T>()
                .write_unaligned(value);
        };
    }
}

fn new_memory() -> *mut u8 {
    let (prot, how) = (
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
    );
    // SAFETY: new memory, kept for the life of the process.
    unsafe { libc::mmap(core::ptr::null_mut(), BYTES, prot, how, -1, 0) }.cast()
}

extern "C" fn nothing(_: i32) {}

/// Runs the guest with a signal to this thread after some milliseconds.
///
/// # Safety
/// SIGUSR1 belongs to the test.
pub(crate) unsafe fn run_with_alarm(guest: &Guest, milliseconds: u64) -> Result<()> {
    // SAFETY: the handler does nothing.
    unsafe { libc::signal(libc::SIGUSR1, nothing as *const () as usize) };
    // SAFETY: names this thread, which lives until the other is joined.
    let this = unsafe { libc::pthread_self() } as u64;
    let alarm = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(milliseconds));
        // SAFETY: the thread waits for this one.
        unsafe { libc::pthread_kill(this as libc::pthread_t, libc::SIGUSR1) };
    });
    let result = guest.vcpu.run();
    alarm.join().expect("no panic");
    result
}

/// Returns the time that this thread has spent on a processor.
pub(crate) fn thread_time() -> std::time::Duration {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the time is writable.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut now) };
    std::time::Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}
