//! The KVM API: a KVM_RUN that ends with an OUT, and the making of VMs and vCPUs; on ours, and on
//! the host's /dev/kvm where there is one.
#![expect(unsafe_code, reason = "guest memory for the host's KVM")]

use criterion::{Criterion, criterion_group, criterion_main};
use kvm_api::Kvm;
use kvm_bindings::{kvm_regs, kvm_userspace_memory_region};

/// out 0x10, al; jmp to it.
const CODE: [u8; 4] = [0xe6, 0x10, 0xeb, 0xfc];
const BYTES: usize = 0x10000;
const ENTRY: u64 = 0x1000;

/// Memory that holds the code; it stays until the process ends.
fn region() -> kvm_userspace_memory_region {
    let pages: &'static mut [u8] = Box::leak(vec![0; 2 * BYTES].into_boxed_slice());
    let start = pages.as_ptr().align_offset(4096);
    pages[start + ENTRY as usize..][..CODE.len()].copy_from_slice(&CODE);
    kvm_userspace_memory_region {
        memory_size: BYTES as u64,
        userspace_addr: pages.as_ptr() as u64 + start as u64,
        ..Default::default()
    }
}

fn entry() -> kvm_regs {
    kvm_regs {
        rip: ENTRY,
        rflags: 2,
        ..Default::default()
    }
}

fn ours(c: &mut Criterion) {
    let mut group = c.benchmark_group("kvm-api");
    let vm = Kvm::new().create_vm(0).expect("a VM");
    vm.set_user_memory_region(region()).expect("a slot");
    let vcpu = vm.create_vcpu(0).expect("a vCPU");
    let mut sregs = vcpu.get_sregs().expect("registers");
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    vcpu.set_sregs(&sregs).expect("registers");
    vcpu.set_regs(&entry()).expect("registers");
    group.bench_function("KVM_RUN to an OUT", |b| {
        b.iter(|| vcpu.run().expect("an exit"));
    });
    group.bench_function("KVM_CREATE_VM", |b| {
        b.iter(|| Kvm::new().create_vm(0).expect("a VM"));
    });
    group.bench_function("KVM_CREATE_VM and KVM_CREATE_VCPU", |b| {
        b.iter(|| {
            let vm = Kvm::new().create_vm(0).expect("a VM");
            vm.create_vcpu(0).expect("a vCPU")
        });
    });
    group.finish();
}

fn host(c: &mut Criterion) {
    let kvm = match kvm_ioctls::Kvm::new() {
        Ok(kvm) => kvm,
        Err(e) => {
            println!("/dev/kvm: skipped ({e})");
            return;
        }
    };
    let mut group = c.benchmark_group("/dev/kvm");
    let vm = kvm.create_vm().expect("a VM");
    // SAFETY: the memory lives as long as the process.
    unsafe { vm.set_user_memory_region(region()).expect("a slot") };
    let mut vcpu = vm.create_vcpu(0).expect("a vCPU");
    let mut sregs = vcpu.get_sregs().expect("registers");
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    vcpu.set_sregs(&sregs).expect("registers");
    vcpu.set_regs(&entry()).expect("registers");
    group.bench_function("KVM_RUN to an OUT", |b| {
        b.iter(|| {
            vcpu.run().expect("an exit");
        });
    });
    group.bench_function("KVM_CREATE_VM", |b| {
        b.iter(|| kvm.create_vm().expect("a VM"));
    });
    group.bench_function("KVM_CREATE_VM and KVM_CREATE_VCPU", |b| {
        b.iter(|| {
            let vm = kvm.create_vm().expect("a VM");
            vm.create_vcpu(0).expect("a vCPU")
        });
    });
    group.finish();
}

criterion_group!(benches, ours, host);
criterion_main!(benches);
