//! KVM_RUN: small guests in real mode and what they exit with.
#![allow(
    unsafe_code,
    reason = "guest memory and the run page are shared memory"
)]

mod common;

use common::Guest;
use kvm_bindings::*;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

#[test]
fn hlt_leaves_rip_behind_it_and_runs_on() {
    let guest = Guest::new(&[0xf4, 0xf4]);
    assert_eq!(guest.run(), KVM_EXIT_HLT);
    assert_eq!(guest.regs().rip, 0x1001);
    assert_eq!(guest.run(), KVM_EXIT_HLT);
    assert_eq!(guest.regs().rip, 0x1002);
}

#[test]
fn an_out_is_stepped_over_by_the_next_run() {
    // mov al, 0x5a; out 0x10, al; hlt
    let guest = Guest::new(&[0xb0, 0x5a, 0xe6, 0x10, 0xf4]);
    assert_eq!(guest.run(), KVM_EXIT_IO);
    assert_eq!(guest.io(), (1, 1, 0x10, 1));
    assert_eq!(guest.page::<u8>(4096), 0x5a);
    assert_eq!(guest.regs().rip, 0x1002);
    assert_eq!(guest.run(), KVM_EXIT_HLT);
    assert_eq!(guest.regs().rip, 0x1005);
}

#[test]
fn an_in_takes_the_value_from_the_page() {
    // in ax, dx; hlt
    let guest = Guest::new(&[0xed, 0xf4]);
    assert_eq!(guest.run(), KVM_EXIT_IO);
    assert_eq!(guest.io().0, 0);
    guest.set_page(4096, 0xbeef_u16);
    assert_eq!(guest.run(), KVM_EXIT_HLT);
    assert_eq!(guest.regs().rax, 0xbeef);
}

#[test]
fn memory_without_a_slot_is_mmio() {
    // mov ax, 0x9000; mov ds, ax; mov byte [0x10], 0xab; mov al, [0x20]; hlt
    let code = [
        0xb8, 0, 0x90, 0x8e, 0xd8, 0xc6, 0x06, 0x10, 0, 0xab, 0xa0, 0x20, 0, 0xf4,
    ];
    let guest = Guest::new(&code);
    assert_eq!(guest.run(), KVM_EXIT_MMIO);
    assert_eq!(guest.mmio(), (0x90010, 1, 1, 0xab));
    assert_eq!(guest.regs().rip, 0x100a);
    assert_eq!(guest.run(), KVM_EXIT_MMIO);
    let (address, len, is_write, _) = guest.mmio();
    assert_eq!((address, len, is_write), (0x90020, 1, 0));
    assert_eq!(guest.regs().rip, 0x100a);
    guest.set_page(40, 0x99_u64);
    assert_eq!(guest.run(), KVM_EXIT_HLT);
    assert_eq!(guest.regs().rax, 0x9099);
}

#[test]
fn a_read_modify_write_of_mmio_exits_twice() {
    // mov ax, 0x9000; mov ds, ax; inc byte [0x10]; hlt
    let guest = Guest::new(&[0xb8, 0, 0x90, 0x8e, 0xd8, 0xfe, 0x06, 0x10, 0, 0xf4]);
    assert_eq!(guest.run(), KVM_EXIT_MMIO);
    guest.set_page(40, 0x0f_u64);
    assert_eq!(guest.run(), KVM_EXIT_MMIO);
    assert_eq!(guest.mmio(), (0x90010, 1, 1, 0x10));
    assert_eq!(guest.run(), KVM_EXIT_HLT);
}

#[test]
fn an_injected_interrupt_runs_its_handler() {
    // sti; nop; hlt; at 0x2000: mov al, 0x77; hlt
    let guest = Guest::new(&[0xfb, 0x90, 0xf4]);
    guest.write(0x2000, &[0xb0, 0x77, 0xf4]);
    guest.write(0x20 * 4, &[0x00, 0x20, 0x00, 0x00]);
    let mut regs = guest.regs();
    regs.rflags = 0x202;
    guest.vcpu.set_regs(&regs).expect("any registers");
    guest.vcpu.interrupt(0x20).expect("a vector");
    assert_eq!(guest.run(), KVM_EXIT_HLT);
    assert_eq!((guest.regs().rip, guest.regs().rax), (0x2003, 0x77));
}

#[test]
fn an_exception_goes_through_the_vector_table() {
    // ud2; at 0x2000: mov al, 0x55; hlt
    let guest = Guest::new(&[0x0f, 0x0b]);
    guest.write(0x2000, &[0xb0, 0x55, 0xf4]);
    guest.write(6 * 4, &[0x00, 0x20, 0x00, 0x00]);
    assert_eq!(guest.run(), KVM_EXIT_HLT);
    assert_eq!(guest.regs().rax, 0x55);
}

#[test]
fn an_endless_loop_ends_with_a_signal() {
    let guest = Guest::new(&[0xeb, 0xfe]);
    // SAFETY: the handler does nothing; the timer is this thread's.
    let result = unsafe { common::run_with_alarm(&guest, 20) };
    assert_eq!(result, Err(kvm_api::Errno::EINTR));
    assert_eq!(guest.page::<u32>(8), KVM_EXIT_INTR);
    assert_eq!(guest.regs().rip, 0x1000);
}

#[test]
fn a_signal_ends_endless_repetitions_as_soon_as_other_loops() {
    // xor si, si; mov cx, 0xffff; rep lodsb; jmp to the first
    let guest = Guest::new(&[0x31, 0xf6, 0xb9, 0xff, 0xff, 0xf3, 0xac, 0xeb, 0xf7]);
    let before = common::thread_time();
    for _ in 0..3 {
        // SAFETY: the handler does nothing; the timer is this thread's.
        let result = unsafe { common::run_with_alarm(&guest, 20) };
        assert_eq!(result, Err(kvm_api::Errno::EINTR));
    }
    // So many instructions as are executed between two looks at signals would take ten times as
    // long, if each repeated one were like another.
    assert!(common::thread_time() - before < Duration::from_secs(1));
}

#[test]
fn the_dirty_log_shows_what_was_written() {
    // mov byte [0x5000], 1; hlt
    let guest = Guest::with_flags(&[0xc6, 0x06, 0, 0x50, 1, 0xf4], KVM_MEM_LOG_DIRTY_PAGES);
    assert_eq!(guest.run(), KVM_EXIT_HLT);
    // The page of the code, which this test has written, counts when it is mapped.
    let bits = 1 << 5 | 1 << 1;
    assert_eq!(guest.vm.get_dirty_log(0).expect("it logs"), [bits, 0]);
    assert_eq!(guest.vm.get_dirty_log(0).expect("it logs"), [0, 0]);
}

#[test]
fn a_write_across_pages_is_split_there_only() {
    // mov ax, 0x9000; mov ds, ax; mov eax, 0x11223344; mov [0xffd], eax; hlt
    let code = [
        0xb8, 0, 0x90, 0x8e, 0xd8, 0x66, 0xb8, 0x44, 0x33, 0x22, 0x11, 0x66, 0xa3, 0xfd, 0x0f, 0xf4,
    ];
    let guest = Guest::new(&code);
    assert_eq!(guest.run(), KVM_EXIT_MMIO);
    assert_eq!(guest.mmio(), (0x90ffd, 3, 1, 0x44));
    assert_eq!(guest.run(), KVM_EXIT_MMIO);
    assert_eq!(guest.mmio(), (0x91000, 1, 1, 0x11));
    assert_eq!(guest.run(), KVM_EXIT_HLT);
}

#[test]
fn floating_point_registers_go_with_the_vcpu_from_thread_to_thread() {
    // fld1; then again and again: out 0x10, al; fld1; faddp.
    let code = [0xd9, 0xe8, 0xe6, 0x10, 0xd9, 0xe8, 0xde, 0xc1, 0xeb, 0xf8];
    let guests = [Guest::new(&code), Guest::new(&code)];
    let run = |which: usize| guests[which].vcpu.run().expect("it exits");
    let (to_other, of_other) = mpsc::channel::<usize>();
    let (to_first, of_first) = mpsc::channel::<()>();
    let vcpus = guests.each_ref().map(|guest| Arc::clone(&guest.vcpu));
    let other = thread::spawn(move || {
        for which in of_other {
            vcpus[which].run().expect("it exits");
            to_first.send(()).expect("it waits");
        }
    });
    let mut runs = [0_u16; 2];
    // Each stays on a thread, changes places with the other there, and comes back to it.
    for (which, is_here) in [
        (0, true),
        (0, true),
        (0, false),
        (0, true),
        (1, true),
        (0, true),
        (1, false),
        (0, false),
        (0, true),
        (1, true),
        (1, true),
        (0, false),
        (1, false),
        (1, true),
        (0, true),
    ] {
        if is_here {
            run(which);
        } else {
            to_other.send(which).expect("it listens");
            of_first.recv().expect("it answers");
        }
        runs[which] += 1;
    }
    drop(to_other);
    other.join().expect("it ends");
    for (guest, runs) in guests.iter().zip(runs) {
        let st0 = guest.vcpu.get_fpu().expect("it is there").fpr[0];
        let (exponent, mantissa) = (u16::from_le_bytes([st0[8], st0[9]]), &st0[..8]);
        let mantissa = u64::from_le_bytes(mantissa.try_into().expect("8 bytes"));
        assert_eq!(mantissa >> (63 - (exponent - 0x3fff)), u64::from(runs));
    }
}

/// With its memory gone a guest cannot even be told so: the fault that is injected meets another, that
/// makes a double fault, and the next shuts it down, as the host's KVM finds.
#[test]
fn a_guest_whose_slot_is_deleted_shuts_down() {
    // out 0x10, al; jmp back
    let guest = Guest::new(&[0xe6, 0x10, 0xeb, 0xfc]);
    const LARGE_PAGE: u32 = 0x83;
    guest.write(0x4000, &LARGE_PAGE.to_le_bytes());
    let mut sregs = guest.vcpu.get_sregs().expect("they are there");
    (sregs.cr0, sregs.cr3, sregs.cr4) = (0x8000_0011, 0x4000, 0x10);
    (sregs.cs.db, sregs.cs.g, sregs.cs.limit) = (1, 1, u32::MAX);
    (sregs.cs.type_, sregs.cs.selector) = (11, 8);
    guest.vcpu.set_sregs(&sregs).expect("protected mode");
    assert_eq!(guest.run(), KVM_EXIT_IO);
    let nothing = kvm_userspace_memory_region::default();
    guest.vm.set_user_memory_region(nothing).expect("a slot");
    let (vcpu, (tell, told)) = (Arc::clone(&guest.vcpu), mpsc::channel());
    thread::spawn(move || tell.send(vcpu.run()));
    let result = told.recv_timeout(Duration::from_secs(60));
    assert_eq!(result, Ok(Ok(())), "KVM_RUN ends");
    assert_eq!(guest.page::<u32>(8), KVM_EXIT_SHUTDOWN);
}
