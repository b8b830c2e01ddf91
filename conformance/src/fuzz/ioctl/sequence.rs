//! Makes the sequences: calls with structured arguments on a few descriptors.

use crate::backend::{Argument, Bytes, Call, Handle, Memory, Pointer};
use crate::guest::machine::{enable_cap, region};
use crate::probe::Words;
use crate::requests::*;

const SYSTEM: Handle = Handle(1);
pub(super) const VMS: [Handle; 2] = [Handle(2), Handle(3)];
pub(super) const VCPUS: [Handle; 4] = [Handle(4), Handle(5), Handle(6), Handle(7)];
const BACKING: Memory = Memory(1);
const BACKING_SIZE: u64 = 0x10_0000;
/// The calls of a sequence, at most.
const LONGEST: u64 = 40;

/// Random numbers (SplitMix64).
pub(super) struct Random(pub(super) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        super::super::mix(self.0, 0)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }

    /// True once in `n`.
    fn once_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// Structs of a vCPU that nobody has touched.
pub(super) struct Fresh {
    pub(super) sregs: Vec<u8>,
    pub(super) events: Vec<u8>,
    pub(super) xsave: Vec<u8>,
    pub(super) fpu: Vec<u8>,
    pub(super) debugregs: Vec<u8>,
}

pub(super) fn make_vcpu(vm: Handle, id: u64, into: Handle) -> Call {
    Call::Create(vm, KVM_CREATE_VCPU, Argument::Value(id), into)
}

pub(super) fn prologue() -> Vec<Call> {
    vec![
        Call::Open(SYSTEM),
        Call::Create(SYSTEM, KVM_CREATE_VM, Argument::Value(0), VMS[0]),
        Call::Allocate(BACKING, BACKING_SIZE),
    ]
}

/// A sequence: one VM and some memory, then anything.
pub(super) fn sequence(random: &mut Random, fresh: &Fresh) -> Vec<Call> {
    let mut calls = prologue();
    let length = 5 + random.below(LONGEST - 5);
    let mut vcpus = 0;
    if !random.once_in(8) {
        calls.push(make_vcpu(VMS[0], 0, VCPUS[0]));
        vcpus = 1;
    }
    for _ in 0..length {
        let call = match random.below(10) {
            0 => on_system(random),
            1..=3 => on_vm(random),
            4 if vcpus < VCPUS.len() => {
                vcpus += 1;
                let id = random.one(&[0, 1, 2, 5, 4095, 4096, u64::MAX, 1 << 31]);
                make_vcpu(random.one(&VMS), id, VCPUS[vcpus - 1])
            }
            _ => on_vcpu(random, fresh),
        };
        calls.push(call);
    }
    calls
}

fn plain(handle: Handle, request: u32, value: u64) -> Call {
    Call::Ioctl(handle, request, Argument::Value(value))
}

fn send(handle: Handle, request: u32, bytes: impl Into<Vec<u8>>) -> Call {
    Call::Ioctl(handle, request, Argument::Bytes(Bytes(bytes.into())))
}

/// A request that is nobody's, or somebody else's.
fn stray(random: &mut Random) -> u32 {
    let kind = random.one(b"\xae\xaeXT");
    match random.below(3) {
        // 0xe0 and up: device and newer requests that one side may know.
        0 => foreign(kind, 0xf0 | random.below(16) as u8),
        1 => random.one(&[
            KVM_CREATE_VM,
            KVM_RUN,
            KVM_GET_REGS,
            KVM_CREATE_VCPU,
            KVM_SET_TSS_ADDR,
        ]),
        _ => misshapen(random.below(4) as u32, random.one(&[0x81, 0x83, 0x46]), 24),
    }
}

fn on_system(random: &mut Random) -> Call {
    match random.below(6) {
        0 => plain(SYSTEM, KVM_GET_API_VERSION, random.below(2)),
        1 => plain(SYSTEM, KVM_GET_VCPU_MMAP_SIZE, random.below(2)),
        2 => {
            let kind = Argument::Value(random.one(&[0, 0, 0, 6, 31, 1 << 32]));
            Call::Create(SYSTEM, KVM_CREATE_VM, kind, VMS[1])
        }
        // Capabilities of common code: USER_MEMORY, NR_MEMSLOTS, SYNC_REGS, IMMEDIATE_EXIT, none.
        3 => {
            let capability = random.one(&[3, 10, 74, 136, 9999, 1 << 32, u64::MAX]);
            plain(SYSTEM, KVM_CHECK_EXTENSION, capability)
        }
        4 => send(
            SYSTEM,
            KVM_GET_MSRS,
            Words::sized(24).u32(0, random.one(&[0, 256, 300])),
        ),
        _ => plain(
            SYSTEM,
            misplaced(random, &[KVM_CREATE_VM, KVM_GET_API_VERSION]),
            0,
        ),
    }
}

/// A stray request that is none of those a handle knows.
fn misplaced(random: &mut Random, known: &[u32]) -> u32 {
    let request = stray(random);
    if known.contains(&request) {
        foreign(b'X', 1)
    } else {
        request
    }
}

const SIZES: &[u64] = &[0, 0x1000, 0x2000, 0x1_0000, 0x8_0000, 0x1001, 1 << 43];
const PLACES: &[u64] = &[
    0,
    0x1000,
    0x8000,
    0x1_0000,
    0x8_0000,
    0x800,
    1 << 32,
    1 << 52,
    u64::MAX - 0xfff,
];

fn set_region(random: &mut Random, vm: Handle) -> Call {
    let slot = random.one(&[0, 0, 1, 1, 2, 3, 32763, 32764, 0x2_0000]);
    let flags = random.one(&[0, 0, 0, 1, 1, 2, 3, 4, 8, 1 << 16]);
    let region = region(slot, flags, random.one(PLACES), random.one(SIZES));
    if random.once_in(8) {
        let address = random.one(&[0, 1, 0xffff_8880_0000_0000, 0x7fff_ffff_f000]);
        return send(vm, KVM_SET_USER_MEMORY_REGION, region.u64(24, address));
    }
    let at = random.one(&[0, 0, 0, 0x1000, 8]);
    let pointer = Pointer {
        offset: 24,
        memory: BACKING,
        at,
    };
    let argument = Argument::Pointers(Bytes(region.into()), vec![pointer]);
    Call::Ioctl(vm, KVM_SET_USER_MEMORY_REGION, argument)
}

fn dirty_log(random: &mut Random, vm: Handle) -> Call {
    let slot = random.one(&[0, 1, 2, 3, 40000, 0x2_0000]);
    let (request, words, offset) = if random.once_in(2) {
        (KVM_GET_DIRTY_LOG, Words::sized(16).u32(0, slot), 8)
    } else {
        let count = random.one(&[0, 1, 64, 65, 128]);
        let first = random.one(&[0, 1, 64, 1 << 40]);
        (
            KVM_CLEAR_DIRTY_LOG,
            Words::sized(24).u32(0, slot).u32(4, count).u64(8, first),
            16,
        )
    };
    let pointer = Pointer {
        offset,
        memory: BACKING,
        at: 0x8_0000,
    };
    Call::Ioctl(
        vm,
        request,
        Argument::Pointers(Bytes(words.into()), vec![pointer]),
    )
}

/// Capabilities that common code enables, with arguments good and bad.
const ENABLE: &[(u32, u64)] = &[
    (9999, 0),
    (3, 0),
    (116, u64::MAX),
    (164, 0),
    (164, 1),
    (218, 0),
    (218, 1),
    (188, 7),
    (188, 16),
    (168, 0),
    (168, 1),
    (168, 2),
    (168, 3),
    (168, 4),
    (128, 4),
    (128, 100_000),
    (204, 1),
    (204, 2),
    (182, 0),
    (182, 1 << 32),
];

fn on_vm(random: &mut Random) -> Call {
    let vm = random.one(&[VMS[0], VMS[0], VMS[0], VMS[1]]);
    match random.below(12) {
        0..=4 => set_region(random, vm),
        5 | 6 => dirty_log(random, vm),
        7 => plain(
            vm,
            KVM_SET_TSS_ADDR,
            random.one(&[0xfffb_d000, 0xffff_d000, 0xffff_e000]),
        ),
        8 => match random.below(3) {
            0 => plain(vm, KVM_SET_BOOT_CPU_ID, random.one(&[0, 1, 3, 5000])),
            1 => plain(vm, KVM_SET_IDENTITY_MAP_ADDR, 0),
            _ => send(vm, KVM_SET_IDENTITY_MAP_ADDR, 0xfffb_c000_u64.to_le_bytes()),
        },
        9 | 10 => {
            let (capability, argument) = random.one(ENABLE);
            let flags = random.one(&[0, 0, 0, 0, 1]);
            send(
                vm,
                KVM_ENABLE_CAP,
                enable_cap(capability, argument).u32(4, flags),
            )
        }
        _ => plain(
            vm,
            misplaced(random, &[KVM_CREATE_VCPU, KVM_SET_TSS_ADDR]),
            0,
        ),
    }
}

/// Requests that fill a struct, with its size.
const GETTERS: &[(u32, usize)] = &[
    (KVM_GET_REGS, 144),
    (KVM_GET_SREGS, 312),
    (KVM_GET_FPU, 416),
    (KVM_GET_XSAVE, 4096),
    (KVM_GET_XCRS, 392),
    (KVM_GET_DEBUGREGS, 128),
    (KVM_GET_VCPU_EVENTS, 64),
    (KVM_GET_MP_STATE, 4),
];

/// MSRs of common code, and none.
const MSRS: &[u32] = &[
    0x174,
    0x175,
    0x1b,
    0x277,
    0xc000_0081,
    0xc000_0102,
    0x1234_5678,
];

fn on_vcpu(random: &mut Random, fresh: &Fresh) -> Call {
    let vcpu = random.one(&[VCPUS[0], VCPUS[0], VCPUS[0], VCPUS[0], VCPUS[1], VCPUS[2]]);
    match random.below(20) {
        0..=4 => {
            let (request, size) = random.one(GETTERS);
            if random.once_in(20) {
                plain(vcpu, request, 0)
            } else {
                send(vcpu, request, vec![0; size])
            }
        }
        5 | 6 => set_regs(random, vcpu),
        7..=9 => set_sregs(random, vcpu, fresh),
        10 | 11 => set_events(random, vcpu, fresh),
        12 => set_debug_registers(random, vcpu, fresh),
        13 => set_extended(random, vcpu, fresh),
        14 => send(
            vcpu,
            KVM_SET_MP_STATE,
            (random.below(12) as u32).to_le_bytes(),
        ),
        15 => match random.below(3) {
            0 => plain(vcpu, KVM_NMI, 0),
            _ => send(
                vcpu,
                KVM_INTERRUPT,
                random.one(&[0_u32, 3, 32, 255, 256]).to_le_bytes(),
            ),
        },
        16 => {
            let request = random.one(&[KVM_GET_MSRS, KVM_SET_MSRS]);
            let count = random.one(&[0, 1, 1, 1, 256]);
            let data = random.one(&[0, 0x10, 0xfee0_0900, 1 << 60]);
            // The other side may take IA32_PAT with any type: this one is good or untouched.
            let index = random.one(MSRS);
            let data = if index == 0x277 {
                0x0007_0406_0007_0406
            } else {
                data & 0xffff_ffff
            };
            send(
                vcpu,
                request,
                Words::sized(24).u32(0, count).u32(8, index).u64(16, data),
            )
        }
        17 => {
            let length = random.one(&[4, 8, 16]);
            send(vcpu, KVM_SET_SIGNAL_MASK, Words::sized(20).u32(0, length))
        }
        18 => {
            let control = random.one(&[0, 1, 3, 0x1_0001, 0x2_0001]);
            send(vcpu, KVM_SET_GUEST_DEBUG, Words::sized(72).u32(0, control))
        }
        _ => match random.below(2) {
            0 => plain(vcpu, KVM_RUN, 1 + random.below(9)),
            _ => plain(vcpu, misplaced(random, &[KVM_RUN, KVM_GET_REGS]), 0),
        },
    }
}

fn set_regs(random: &mut Random, vcpu: Handle) -> Call {
    let mut regs = Words::sized(144);
    for register in 0..17 {
        regs = regs.u64(
            register * 8,
            random.one(&[0, 1, 0xffff_ffff, u64::MAX, 1 << 60]),
        );
    }
    let flags = random.one(&[0, 2, 0x202, 0x246, 0xed7]);
    send(vcpu, KVM_SET_REGS, regs.u64(136, flags))
}

/// Byte offsets in `kvm_sregs`.
mod sregs {
    pub(super) const CR0: usize = 224;
    pub(super) const CR2: usize = 232;
    pub(super) const CR3: usize = 240;
    pub(super) const CR4: usize = 248;
    pub(super) const CR8: usize = 256;
    pub(super) const EFER: usize = 264;
    pub(super) const APIC_BASE: usize = 272;
    pub(super) const INTERRUPTS: usize = 280;
    pub(super) const SEGMENT: usize = 24;
}

fn set_sregs(random: &mut Random, vcpu: Handle, fresh: &Fresh) -> Call {
    let mut words = Words::from_bytes(fresh.sregs.clone());
    for _ in 0..1 + random.below(3) {
        let (offset, value) = match random.below(9) {
            0 => (
                sregs::CR0,
                random.one(&[0x11, 0x6000_0010, 0x2000_0010, 1 << 32, 0x5000_0031]),
            ),
            1 => (sregs::CR2, random.next()),
            2 => (sregs::CR3, random.one(&[0, 0x1000, u64::MAX])),
            3 => (
                sregs::CR4,
                random.one(&[0, 0x20, 0x10, 0x7df, 1 << 15, 1 << 40]),
            ),
            4 => (sregs::CR8, random.below(18)),
            5 => (sregs::EFER, random.one(&[0, 0, 1 << 10])),
            6 => {
                let base = random.one(&[
                    0,
                    0xfee0_0900,
                    0xfee0_0800,
                    0xfee0_0901,
                    0xfee0_0d00,
                    1 << 52,
                ]);
                (sregs::APIC_BASE, base)
            }
            7 => (sregs::INTERRUPTS, 1 << random.below(64)),
            // The base of a segment.
            _ => (
                sregs::SEGMENT * random.below(8) as usize,
                random.one(&[0, 0x1_0000, 0xffff_0000]),
            ),
        };
        words.put(offset, 8, value);
    }
    send(vcpu, KVM_SET_SREGS, words)
}

fn set_events(random: &mut Random, vcpu: Handle, fresh: &Fresh) -> Call {
    let mut words = Words::from_bytes(fresh.events.clone());
    // Injected, vector, has an error code, pending; then interrupt and NMI; then the flags.
    for _ in 0..1 + random.below(4) {
        let (offset, width, value) = match random.below(8) {
            0 => (0, 1, random.below(2)),
            1 => (1, 1, random.one(&[0, 1, 2, 3, 13, 31, 32, 255])),
            2 => (8, 1, random.below(2)),
            3 => (9, 1, random.below(256)),
            // Both shadows at once become one on VT-x and stay two on this host.
            4 => (11, 1, random.below(3)),
            5 => (12, 1, random.below(2)),
            6 => (13 + random.below(2) as usize, 1, random.below(4)),
            // Without VALID_SMM: this host's KVM may be built without SMM.
            _ => (20, 4, random.one(&[0, 1, 2, 4, 5, 0x10, 0x20, 0x40])),
        };
        words.put(offset, width, value);
    }
    send(vcpu, KVM_SET_VCPU_EVENTS, words)
}

fn set_debug_registers(random: &mut Random, vcpu: Handle, fresh: &Fresh) -> Call {
    let words = Words::from_bytes(fresh.debugregs.clone());
    let words = match random.below(4) {
        0 => words.u64(8 * random.below(4) as usize, random.next()),
        1 => words.u64(32, random.one(&[0, 0xffff_0ff0, 1 << 32])),
        2 => words.u64(40, random.one(&[0, 0x400, 0x455, 1 << 32])),
        _ => words.u64(48, random.below(2)),
    };
    send(vcpu, KVM_SET_DEBUGREGS, words)
}

fn set_extended(random: &mut Random, vcpu: Handle, fresh: &Fresh) -> Call {
    match random.below(3) {
        0 => {
            let value = random.one(&[0, 1, 2, 5, 0x27, 1 << 62 | 1]);
            let nr = random.one(&[0, 1, 1, 1, 17]);
            send(
                vcpu,
                KVM_SET_XCRS,
                Words::sized(392).u32(0, nr).u64(16, value),
            )
        }
        1 => {
            let words = Words::from_bytes(fresh.fpu.clone());
            let words = words
                .with(128, 2, random.below(0x1_0000))
                .u64(0, random.next());
            send(vcpu, KVM_SET_FPU, words)
        }
        _ => {
            let words = Words::from_bytes(fresh.xsave.clone());
            let words = match random.below(4) {
                0 => words.u64(512, random.one(&[0, 1, 2, 3, 1 << 62])),
                1 => words.u64(520, random.one(&[0, 1 << 63])),
                2 => words.u64(528, random.below(2)),
                _ => words.u64(512, 3).u64(160, random.next()),
            };
            send(vcpu, KVM_SET_XSAVE, words)
        }
    }
}
