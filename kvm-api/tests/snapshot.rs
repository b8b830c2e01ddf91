//! A VM that is saved in the middle of its run and loaded into a fresh one goes on as if nothing
//! had happened: the same exits, registers and memory, bit for bit, with the instruction clock.
#![allow(
    unsafe_code,
    reason = "guest memory and the run page are shared memory"
)]

mod common;

use common::Guest;
use kvm_api::Kvm;
use kvm_api::snapshot::VmState;
use kvm_bindings::*;

/// Exits that a guest makes at most.
const EXITS: usize = 24;

/// What one KVM_RUN showed: exit reason, what the run page says of it, registers.
#[derive(Clone, Debug, PartialEq)]
struct Exit {
    reason: u32,
    words: [u64; 4],
    data: u32,
    regs: kvm_regs,
    rip: u64,
}

/// The guests, in real mode at 0x1000.
const GUESTS: &[(&str, &[u8])] = &[
    // inc ax; out 0x10, ax; jmp
    ("out", &[0x40, 0xe7, 0x10, 0xeb, 0xfb]),
    // in al, 0x60; mov [0x3000], al; inc word [0x3002]; jmp
    (
        "in",
        &[
            0xe4, 0x60, 0xa2, 0x00, 0x30, 0xff, 0x06, 0x02, 0x30, 0xeb, 0xf5,
        ],
    ),
    // rdtsc; out 0x10, eax; jmp
    (
        "time-stamp counter",
        &[0x0f, 0x31, 0x66, 0xe7, 0x10, 0xeb, 0xf9],
    ),
    // mov ax, 0x9000; mov ds, ax; l: mov [0x10], ax; inc ax; jmp l
    (
        "mmio store",
        &[0xb8, 0, 0x90, 0x8e, 0xd8, 0xa3, 0x10, 0, 0x40, 0xeb, 0xfa],
    ),
    // mov ax, 0x9000; mov ds, ax; l: mov ax, [0x20]; jmp l
    (
        "mmio load",
        &[0xb8, 0, 0x90, 0x8e, 0xd8, 0xa1, 0x20, 0, 0xeb, 0xfb],
    ),
    // mov ax, 0x9000; mov ds, ax; l: inc byte [0x30]; jmp l
    (
        "mmio read-modify-write",
        &[0xb8, 0, 0x90, 0x8e, 0xd8, 0xfe, 0x06, 0x30, 0, 0xeb, 0xfa],
    ),
    // mov cx, 4; mov di, 0x4000; mov dx, 0x60; rep insb; jmp
    (
        "rep insb",
        &[
            0xb9, 4, 0, 0xbf, 0, 0x40, 0xba, 0x60, 0, 0xf3, 0x6c, 0xeb, 0xf3,
        ],
    ),
    // mov cx, 5; mov si, 0x1000; mov dx, 0x60; rep outsb; jmp
    (
        "rep outsb",
        &[
            0xb9, 5, 0, 0xbe, 0, 0x10, 0xba, 0x60, 0, 0xf3, 0x6e, 0xeb, 0xf3,
        ],
    ),
    // hlt; inc bx; cpuid; jmp
    ("hlt and cpuid", &[0xf4, 0x43, 0x0f, 0xa2, 0xeb, 0xfa]),
    // mov ecx, 0xc0000081; inc eax; wrmsr; rdmsr; out 0x11, eax; fninit; fnstcw [0x3100]; jmp
    (
        "msr and fpu",
        &[
            0x66, 0xb9, 0x81, 0, 0, 0xc0, 0x66, 0x40, 0x0f, 0x30, 0x0f, 0x32, 0x66, 0xe7, 0x11,
            0xdb, 0xe3, 0xd9, 0x3e, 0, 0x31, 0xeb, 0xef,
        ],
    ),
    // int 0x20 with a handler that counts and returns; out 0x12, ax
    ("interrupts", &[0xcd, 0x20, 0xe7, 0x12, 0xeb, 0xfa]),
];

fn guest(code: &[u8]) -> Guest {
    let guest = Guest::new(code);
    // inc ax; iret
    guest.write(0x2000, &[0x40, 0xcf]);
    guest.write(0x20 * 4, &[0x00, 0x20, 0x00, 0x00]);
    guest
}

/// Runs once, and answers what was asked with a number that depends on the round.
fn step(guest: &Guest, round: usize) -> Exit {
    let reason = guest.run();
    let exit = Exit {
        reason,
        words: guest.page(32),
        data: guest.page(4096),
        regs: guest.regs(),
        rip: guest.regs().rip,
    };
    if reason == KVM_EXIT_MMIO && guest.mmio().2 == 0 {
        guest.set_page(40, 0x1100 + round as u64);
    }
    if reason == KVM_EXIT_IO && guest.io().0 == 0 {
        guest.set_page(4096, 0x0403_0201 + round as u32);
    }
    exit
}

/// Saves to JSON and loads into a fresh VM with a copy of the memory.
fn move_to_fresh_vm(guest: &Guest) -> Guest {
    let json = serde_json::to_string(&guest.vm.save().expect("a state")).expect("plain data");
    let state: VmState = serde_json::from_str(&json).expect("what was written");
    let memory = guest.copy_memory();
    let vm = Kvm::new()
        .load_vm(&state, |_| memory as u64)
        .expect("a good state");
    let vcpu = vm.vcpu(0).expect("it was saved");
    Guest::from_parts(vm, vcpu, memory)
}

fn trace(code: &[u8], moves: impl Fn(usize) -> bool) -> (Vec<Exit>, Vec<u8>) {
    let mut guest = guest(code);
    let mut exits = Vec::new();
    for round in 0..EXITS {
        exits.push(step(&guest, round));
        if moves(round) {
            guest = move_to_fresh_vm(&guest);
        }
    }
    (exits, guest.memory_bytes())
}

#[test]
fn a_run_goes_on_bit_for_bit_after_every_exit() {
    Kvm::new().count_instructions(true);
    for (name, code) in GUESTS {
        let (exits, memory) = trace(code, |_| false);
        for every in [1, 3] {
            let (moved, moved_memory) = trace(code, |round| round % every == 0);
            assert_eq!(moved, exits, "{name}, moved every {every} exits");
            assert!(moved_memory == memory, "{name}: memory differs");
        }
    }
}

#[test]
fn a_state_of_another_version_is_refused() {
    let guest = guest(&[0xf4]);
    let mut json = serde_json::to_value(guest.vm.save().expect("a state")).expect("plain data");
    json["version"] = 99.into();
    let state: VmState = serde_json::from_value(json).expect("the shape is right");
    let loaded = Kvm::new().load_vm(&state, |slot| slot.userspace_addr);
    assert_eq!(loaded.err(), Some(kvm_api::Errno::EINVAL));
}
