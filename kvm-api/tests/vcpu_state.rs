//! The state of a vCPU through the Rust API: reset values, validation, round trips.

use kvm_api::{Errno, Kvm, Vcpu, Vm};
use kvm_bindings::*;
use std::sync::Arc;

fn vm() -> Arc<Vm> {
    Kvm::new().create_vm(0).expect("a VM")
}

fn vcpu() -> Arc<Vcpu> {
    vm().create_vcpu(0).expect("a vCPU")
}

#[test]
fn a_fresh_vcpu_is_in_the_reset_state() {
    let vcpu = vcpu();
    let regs = kvm_regs {
        rip: 0xfff0,
        rflags: 2,
        rdx: 0x600,
        ..Default::default()
    };
    assert_eq!(vcpu.get_regs(), Ok(regs));
    let sregs = vcpu.get_sregs().expect("they are there");
    let code = kvm_segment {
        base: 0xffff_0000,
        limit: 0xffff,
        selector: 0xf000,
        type_: 11,
        present: 1,
        s: 1,
        ..Default::default()
    };
    assert_eq!(sregs.cs, code);
    assert_eq!((sregs.cr0, sregs.cr4, sregs.efer), (0x6000_0010, 0, 0));
    assert_eq!((sregs.apic_base, sregs.gdt.limit), (0xfee0_0900, 0xffff));
    assert_eq!((sregs.tr.type_, sregs.tr.s, sregs.ldt.type_), (11, 0, 2));
    let debug = vcpu.get_debug_regs().expect("they are there");
    assert_eq!((debug.dr6, debug.dr7), (0xffff_0ff0, 0x400));
    assert_eq!(vcpu.get_vcpu_events().expect("they are there").flags, 0xd);
    assert_eq!(vcpu.get_mp_state(), Ok(kvm_mp_state { mp_state: 0 }));
    assert_eq!(vcpu.get_xcrs().expect("it is there").xcrs[0].value, 1);
}

fn sregs_after(change: impl FnOnce(&mut kvm_sregs)) -> Result<kvm_sregs, Errno> {
    let vcpu = vcpu();
    let mut sregs = vcpu.get_sregs()?;
    change(&mut sregs);
    vcpu.set_sregs(&sregs)?;
    vcpu.get_sregs()
}

#[test]
fn special_registers_are_checked_as_in_the_kernel() {
    type Change = fn(&mut kvm_sregs);
    let refused: &[Change] = &[
        |s| s.cr0 |= 1 << 31,
        |s| s.cr0 = 1 << 29,
        |s| s.cr0 |= 1 << 32,
        |s| s.cr4 |= 1 << 15,
        |s| s.cr4 |= 1 << 40,
        |s| s.efer |= 1 << 10,
        |s| s.cs.l = 1,
        |s| s.apic_base |= 1,
        |s| s.apic_base |= 1 << 10,
        |s| s.apic_base = 1 << 52,
    ];
    for (index, change) in refused.iter().enumerate() {
        assert_eq!(sregs_after(change), Err(Errno::EINVAL), "change {index}");
    }
    let accepted: &[Change] = &[
        |_| {},
        |s| s.cr0 |= 1 << 6 | 1 << 28,
        |s| s.cr0 &= !0x10,
        |s| s.cr4 |= 0x7ff,
        |s| s.apic_base = 0,
        |s| s.cr8 = 16,
        |s| s.cr3 = u64::MAX,
        |s| s.cs.unusable = 1,
    ];
    for (index, change) in accepted.iter().enumerate() {
        assert!(sregs_after(change).is_ok(), "change {index}");
    }
}

#[test]
fn long_mode_is_entered_whole_or_not_at_all() {
    let long = |s: &mut kvm_sregs| {
        s.efer = 0x500;
        s.cr0 = 0x8000_0011;
        s.cr4 = 0x20;
    };
    let set = sregs_after(long).expect("a consistent long mode");
    assert_eq!((set.efer, set.cr0, set.cr4), (0x500, 0x8000_0011, 0x20));
    let without = |change: fn(&mut kvm_sregs)| {
        sregs_after(|s| {
            long(s);
            change(s);
        })
    };
    assert_eq!(without(|s| s.cr4 = 0), Err(Errno::EINVAL));
    assert_eq!(without(|s| s.efer = 0x100), Err(Errno::EINVAL));
    assert_eq!(without(|s| s.cr3 = 1 << 52), Err(Errno::EINVAL));
}

#[test]
fn the_lowest_bit_of_the_interrupt_bitmap_is_injected() {
    let set = sregs_after(|s| s.interrupt_bitmap = [0, 0, 6, 1]).expect("any bitmap");
    assert_eq!(set.interrupt_bitmap, [0, 0, 2, 0]);
}

#[test]
fn events_make_a_round_trip() {
    let vcpu = vcpu();
    let mut events = vcpu.get_vcpu_events().expect("they are there");
    events.exception = kvm_vcpu_events__bindgen_ty_1 {
        injected: 1,
        nr: 13,
        has_error_code: 1,
        pending: 0,
        error_code: 0x1234,
    };
    events.interrupt = kvm_vcpu_events__bindgen_ty_2 {
        injected: 1,
        nr: 0x44,
        soft: 0,
        shadow: 1,
    };
    events.nmi = kvm_vcpu_events__bindgen_ty_3 {
        injected: 1,
        pending: 3,
        masked: 1,
        pad: 0,
    };
    assert_eq!(vcpu.set_vcpu_events(&events), Ok(()));
    events.nmi.pending = 1;
    assert_eq!(vcpu.get_vcpu_events(), Ok(events));
    events.exception.nr = 2;
    assert_eq!(vcpu.set_vcpu_events(&events), Err(Errno::EINVAL));
    events.exception.nr = 32;
    assert_eq!(vcpu.set_vcpu_events(&events), Err(Errno::EINVAL));
    events.flags |= 0x40;
    events.exception.nr = 0;
    assert_eq!(vcpu.set_vcpu_events(&events), Err(Errno::EINVAL));
}

#[test]
fn pending_nmis_saturate_at_two() {
    let vcpu = vcpu();
    for _ in 0..4 {
        vcpu.nmi().expect("it never fails");
    }
    assert_eq!(
        vcpu.get_vcpu_events().expect("they are there").nmi.pending,
        2
    );
}

fn msr_after(index: u32, data: u64) -> (usize, u64) {
    let vcpu = vcpu();
    let mut entry = [kvm_msr_entry {
        index,
        data,
        ..Default::default()
    }];
    let written = vcpu.set_msrs(&entry).expect("a vCPU");
    assert_eq!(vcpu.get_msrs(&mut entry), Ok(1), "{index:#x}");
    (written, entry[0].data)
}

#[test]
fn msrs_hold_what_they_may() {
    let rows = [
        (0x277, 0x0007_0406_0007_0406, (1, 0x0007_0406_0007_0406)),
        (0x277, 0x0202_0202_0202_0202, (0, 0x0007_0406_0007_0406)),
        (0x176, 1 << 60, (1, 0)),
        (0xc000_0100, 1 << 60, (0, 0)),
        (0xc000_0082, 1 << 60, (0, 0)),
        (
            0xc000_0081,
            0x1122_3344_5566_7788,
            (1, 0x1122_3344_5566_7788),
        ),
        (0xc000_0080, 0x100, (1, 0x100)),
        (0xc000_0080, 0x2, (0, 0)),
        (0x1b, 0xfee0_0901, (0, 0xfee0_0900)),
        (0x1a0, 1, (1, 1)),
        (0x2ff, 0xc06, (1, 0xc06)),
        (0x2ff, 0xc02, (0, 0)),
        (0x200, 2, (0, 0)),
        (0x17a, 1, (1, 1)),
        (0x179, 0, (0, 0x20)),
        (0x6e0, 5, (1, 0)),
        (0x3a, 1, (1, 1)),
        (0xfe, 0, (0, 0x508)),
    ];
    for (index, value, expected) in rows {
        assert_eq!(msr_after(index, value), expected, "{index:#x} = {value:#x}");
    }
}

#[test]
fn an_unknown_msr_ends_the_list() {
    let vcpu = vcpu();
    let entry = |index| kvm_msr_entry {
        index,
        data: 0x99,
        ..Default::default()
    };
    let mut entries = [entry(0x277), entry(0x1234_5678), entry(0x175)];
    assert_eq!(vcpu.get_msrs(&mut entries), Ok(1));
    assert_eq!(
        (entries[0].data, entries[2].data),
        (0x0007_0406_0007_0406, 0x99)
    );
    assert_eq!(vcpu.set_msrs(&entries), Ok(1));
}

#[test]
fn the_listed_msrs_can_be_read_and_written_back() {
    let kvm = Kvm::new();
    let vcpu = kvm
        .create_vm(0)
        .expect("a VM")
        .create_vcpu(0)
        .expect("a vCPU");
    vcpu.set_cpuid2(&kvm.get_supported_cpuid())
        .expect("the supported table");
    let list = kvm.get_msr_index_list();
    let mut entries: Vec<_> = list
        .iter()
        .map(|index| kvm_msr_entry {
            index: *index,
            ..Default::default()
        })
        .collect();
    assert_eq!(vcpu.get_msrs(&mut entries), Ok(list.len()));
    assert_eq!(vcpu.set_msrs(&entries), Ok(list.len()));
}

#[test]
fn cpuid_is_kept_and_checked() {
    let vcpu = vcpu();
    let entry = kvm_cpuid_entry2 {
        function: 0x8000_0008,
        eax: 0x3200,
        ..Default::default()
    };
    assert_eq!(vcpu.set_cpuid2(&[entry]), Err(Errno::EINVAL));
    let entry = kvm_cpuid_entry2 {
        eax: 0x3030,
        padding: [0, 0, 5],
        ..entry
    };
    assert_eq!(vcpu.set_cpuid2(&[entry, entry]), Ok(()));
    assert_eq!(vcpu.get_cpuid2(), Ok(vec![entry, entry]));
    assert_eq!(vcpu.set_cpuid2(&[entry; 257]), Err(Errno::E2BIG));
    assert_eq!(vcpu.set_cpuid2(&[]), Ok(()));
}

#[test]
fn xcr0_follows_cpuid() {
    let kvm = Kvm::new();
    let vcpu = kvm
        .create_vm(0)
        .expect("a VM")
        .create_vcpu(0)
        .expect("a vCPU");
    vcpu.set_cpuid2(&kvm.get_supported_cpuid())
        .expect("the supported table");
    let set = |value| {
        let mut xcrs = kvm_xcrs {
            nr_xcrs: 1,
            ..Default::default()
        };
        xcrs.xcrs[0].value = value;
        vcpu.set_xcrs(&xcrs)
    };
    assert_eq!(set(3), Ok(()));
    for bad in [0, 2, 5, 0x27, 1 << 62] {
        assert_eq!(set(bad), Err(Errno::EINVAL), "{bad:#x}");
    }
}

#[test]
fn a_vcpu_moves_between_threads() {
    let vcpu = vcpu();
    for round in 0..4_u64 {
        let here = vcpu.clone();
        let regs = kvm_regs {
            rax: round,
            rflags: 2 | round << 2,
            ..Default::default()
        };
        let there = std::thread::spawn(move || here.set_regs(&regs).and_then(|()| here.get_regs()));
        assert_eq!(there.join().expect("no panic"), Ok(regs));
        assert_eq!(vcpu.get_regs(), Ok(regs));
    }
}

#[test]
fn many_threads_use_many_vcpus() {
    let vm = vm();
    let vcpus: Vec<_> = (0..4)
        .map(|id| vm.create_vcpu(id).expect("a vCPU"))
        .collect();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let vcpus = &vcpus;
            scope.spawn(move || {
                for round in 0..200 {
                    let vcpu = &vcpus[(thread + round) % 4];
                    let regs = vcpu.get_regs().expect("they are there");
                    vcpu.set_regs(&regs).expect("any registers");
                }
            });
        }
    });
}

#[test]
fn ids_are_taken_for_good() {
    let vm = vm();
    drop(vm.create_vcpu(5).expect("a vCPU"));
    assert_eq!(vm.create_vcpu(5).err(), Some(Errno::EEXIST));
    assert_eq!(vm.create_vcpu(4096).err(), Some(Errno::EINVAL));
    assert_eq!(vm.create_vcpu(1 << 32).err(), Some(Errno::EINVAL));
    assert_eq!(vm.set_boot_cpu_id(0), Err(Errno::EBUSY));
}

#[test]
fn addresses_are_translated_without_paging() {
    let translation = vcpu().translate_gva(0x1234).expect("a vCPU");
    assert_eq!(
        (translation.physical_address, translation.valid),
        (0x1234, 1)
    );
}
