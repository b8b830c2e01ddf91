//! Writes that end in the KVM: events and coalesced zones (api.rst, "KVM_IOEVENTFD",
//! "KVM_REGISTER_COALESCED_MMIO").

use crate::backend::{DescriptorCall, Handle, Outcome};
use crate::guest::{Machine, Mode};
use crate::probe::{Probe, Words};
use crate::requests::*;
use iced_x86::code_asm::*;

pub(super) fn script(probe: &mut Probe<'_>) {
    events(probe);
    zones(probe);
    many_zones(probe);
    closed(probe);
}

/// Which descriptor an event is asked for with.
#[derive(Clone, Copy)]
enum Fd {
    First,
    Second,
    System,
    None,
}
use Fd::{First, None, Second, System};

const DATAMATCH: u32 = 1;
const PIO: u32 = 2;
const DEASSIGN: u32 = 4;
const CCW: u32 = 8;

/// Case, wanted, address, length, descriptor, flags, value.
type Row = (&'static str, &'static str, u64, u32, Fd, u32, u64);

#[rustfmt::skip]
const EVENTS: &[Row] = &[
    ("ioev", "0", 0x9_0000, 4, First, 0, 0),
    ("ioev_dup", "EEXIST", 0x9_0000, 4, First, 0, 0),
    ("ioev_dup_otherfd", "EEXIST", 0x9_0000, 4, Second, 0, 0),
    ("ioev_dm_vs_wild", "EEXIST", 0x9_0000, 4, Second, DATAMATCH, 5),
    ("ioev_otherlen", "0", 0x9_0000, 2, Second, 0, 5),
    ("ioev_len0_coll", "EEXIST", 0x9_0000, 0, Second, 0, 5),
    ("ioev_len3", "EINVAL", 0x9_0000, 3, Second, 0, 5),
    ("ioev_wrap", "EINVAL", u64::MAX - 1, 4, Second, 0, 5),
    ("ioev_flags", "EINVAL", 0x9_1000, 4, Second, 0x20, 5),
    ("ioev_len0_dm", "EINVAL", 0x9_1000, 0, Second, DATAMATCH, 5),
    ("ioev_badfd", "EBADF", 0x9_1000, 4, None, 0, 5),
    ("ioev_notevent", "EINVAL", 0x9_1000, 4, System, 0, 5),
    ("ioev_len0", "0", 0x9_1000, 0, Second, 0, 5),
    ("ioev_pio", "0", 0x50, 1, Second, PIO, 5),
    ("ioev_pio_dm7", "0", 0x51, 1, Second, PIO | DATAMATCH, 7),
    ("ioev_pio_dm8", "0", 0x51, 1, Second, PIO | DATAMATCH, 8),
    ("ioev_ccw", "0", 0x9_2000, 1, Second, CCW, 8),
    ("ioev_deassign_none", "ENOENT", 0x9_9000, 4, First, DEASSIGN, 0),
    ("ioev_deassign_badfd", "EBADF", 0x9_9000, 4, None, DEASSIGN, 0),
    ("ioev_deassign_wrongfd", "ENOENT", 0x9_0000, 4, Second, DEASSIGN, 0),
    ("ioev_deassign_badflags", "0", 0x9_0000, 4, First, DEASSIGN | 0x40, 0),
    ("ioev_deassign_again", "ENOENT", 0x9_0000, 4, First, DEASSIGN, 0),
];

fn events(probe: &mut Probe<'_>) {
    let machine = Machine::new(probe, Mode::Real);
    let (first, second) = (probe.event(), probe.event());
    for &(case, want, address, length, fd, flags, value) in EVENTS {
        let args = Words::sized(64).u64(0, value).u64(8, address);
        let args = args.u32(16, length).u32(20, u32::MAX).u32(24, flags);
        let fd = match fd {
            First => Some(first),
            Second => Some(second),
            System => Some(machine.vm.system),
            None => Option::None,
        };
        let fds: Vec<_> = fd.map(|fd| (20, fd)).into_iter().collect();
        let got = probe.send_descriptors(machine.vm.vm, KVM_IOEVENTFD, args, &fds);
        probe.expect(case, want, got);
    }
    let got = probe.value(machine.vm.vm, KVM_IOEVENTFD, 0);
    probe.expect("ioev_null", "EFAULT", got);
    machine.load(probe, |a| {
        a.mov(al, 7)?;
        a.out(0x50, al)?;
        a.out(0x51, al)?;
        a.mov(al, 9)?;
        a.out(0x51, al)
    });
    machine.case(probe, "ioev_fire", "out:0x51/1=09 HLT");
    check_count(probe, "ioev_fire_count", "8 2", second);
    machine.load(probe, |a| {
        a.mov(ax, 0x9000)?;
        a.mov(ds, ax)?;
        a.mov(word_ptr(0), 0x1234)?;
        a.mov(dword_ptr(0x1000), 1)?;
        a.mov(byte_ptr(0x1000), 1)?;
        a.mov(al, byte_ptr(0x20))
    });
    machine.set_registers(probe, &[]);
    machine.case(probe, "ioev_memory", "read:0x90020/1<99 HLT");
    check_count(probe, "ioev_memory_count", "8 3", second);
}

/// Notes what a read of an eventfd gives: the outcome and the count.
fn check_count(probe: &mut Probe<'_>, case: &str, want: &str, event: Handle) {
    let (outcome, bytes) = probe.read_descriptor(event, 8);
    let count = bytes
        .iter()
        .rev()
        .fold(0_u64, |n, b| n << 8 | u64::from(*b));
    let text = crate::backend::outcome_text(outcome);
    probe.check(case, want, &format!("{text} {count}"));
}

fn zone(
    probe: &mut Probe<'_>,
    vm: Handle,
    request: u32,
    (at, size, pio): (u64, u32, u32),
) -> Outcome {
    let zone = Words::sized(16).u64(0, at).u32(8, size).u32(12, pio);
    probe.send(vm, request, zone)
}

const RING: u64 = 0x2000;
/// `KVM_COALESCED_MMIO_MAX`.
const ENTRIES: u32 = 170;

fn zones(probe: &mut Probe<'_>) {
    let machine = Machine::new(probe, Mode::Real);
    let (vm, memory) = (machine.vm.vm, (0x9_0000, 0x100, 0));
    for (case, want, request, what) in [
        ("coal", "0", KVM_REGISTER_COALESCED_MMIO, memory),
        ("coal_dup", "0", KVM_REGISTER_COALESCED_MMIO, memory),
        (
            "coal_pio2",
            "EINVAL",
            KVM_REGISTER_COALESCED_MMIO,
            (0, 1, 2),
        ),
        ("coal_pio", "0", KVM_REGISTER_COALESCED_MMIO, (0x60, 1, 1)),
    ] {
        let got = zone(probe, vm, request, what);
        probe.expect(case, want, got);
    }
    let got = probe.value(vm, KVM_REGISTER_COALESCED_MMIO, 0);
    probe.expect("coal_null", "EFAULT", got);
    machine.load(probe, |a| {
        a.mov(ax, 0x9000)?;
        a.mov(ds, ax)?;
        a.mov(byte_ptr(0x10), 0xab)?;
        a.mov(word_ptr(0xff), 0x1234)
    });
    machine.case(probe, "coal_run", "write:0x900ff/2=3412 HLT");
    check_ring(
        probe,
        &machine,
        "coal_run_ring",
        "0 1 0x90010 1 0 ab00000000000000",
        0,
    );
    machine.load(probe, |a| {
        a.mov(al, 0x33)?;
        a.out(0x60, al)
    });
    machine.set_registers(probe, &[]);
    machine.case(probe, "coal_pio_run", "HLT");
    check_ring(
        probe,
        &machine,
        "coal_pio_run_ring",
        "0 2 0x60 1 1 3300000000000000",
        1,
    );
    full(probe, &machine);
    for (case, want, what) in [
        ("coal_unreg", "0", memory),
        ("coal_unreg_again", "0", memory),
        ("coal_unreg_pio2", "EINVAL", (0, 1, 2)),
    ] {
        let got = zone(probe, vm, KVM_UNREGISTER_COALESCED_MMIO, what);
        probe.expect(case, want, got);
    }
    store_one(probe, &machine, (0, 0));
    machine.case(probe, "coal_unreg_run", "write:0x90010/1=ab HLT");
}

/// A ring that is full, and one whose `last` user space has put out of range.
fn full(probe: &mut Probe<'_>, machine: &Machine) {
    for (case, last) in [("coal_full", ENTRIES - 1), ("coal_lastbad", 5000)] {
        store_one(probe, machine, (0, last));
        machine.case(probe, case, "write:0x90010/1=ab HLT");
    }
    store_one(probe, machine, (0, ENTRIES - 2));
    machine.case(probe, "coal_max", "HLT");
    let last = probe.read_number(machine.run, RING + 4, 4);
    probe.check("coal_max_last", "169", &last.to_string());
}

/// Sets the ring, and has a byte stored into the zone.
fn store_one(probe: &mut Probe<'_>, machine: &Machine, (first, last): (u32, u32)) {
    probe.write(machine.run, RING, &first.to_le_bytes());
    probe.write(machine.run, RING + 4, &last.to_le_bytes());
    machine.load(probe, |a| {
        a.mov(ax, 0x9000)?;
        a.mov(ds, ax)?;
        a.mov(byte_ptr(0x10), 0xab)
    });
    machine.set_registers(probe, &[]);
}

/// Notes first, last, and an entry: address, length, whether it is a port, data.
fn check_ring(probe: &mut Probe<'_>, machine: &Machine, case: &str, want: &str, entry: u64) {
    let mut number = |at, length| probe.read_number(machine.run, RING + at, length);
    let (first, last) = (number(0, 4), number(4, 4));
    let at = 8 + 24 * entry;
    let (address, length, pio) = (number(at, 8), number(at + 8, 4), number(at + 12, 4));
    let data = probe.read(machine.run, RING + at + 16, 8);
    let data = crate::probe::hex(&data);
    let got = format!("{first} {last} {address:#x} {length} {pio} {data}");
    probe.check(case, want, &got);
}

fn many_zones(probe: &mut Probe<'_>) {
    let vm = crate::guest::machine::Vm::new(probe).vm;
    let add = |probe: &mut Probe<'_>, n: u64| {
        let what = (0x10_0000 + 16 * n, 8, 0);
        zone(probe, vm, KVM_REGISTER_COALESCED_MMIO, what)
    };
    let outcomes: Vec<_> = (0..=1000).map(|n| add(probe, n)).collect();
    let taken = outcomes.iter().filter(|o| o.is_ok()).count();
    probe.check("coal_many", "1000", &taken.to_string());
    probe.expect("coal_many_more", "ENOSPC", outcomes[1000]);
}

/// Closing the caller's descriptor does not end an event.
fn closed(probe: &mut Probe<'_>) {
    let machine = Machine::new(probe, Mode::Real);
    let event = probe.event();
    let kept = probe.duplicate(event);
    let args = Words::sized(64).u64(8, 0x50).u32(16, 1).u32(24, PIO);
    let got = probe.send_descriptors(machine.vm.vm, KVM_IOEVENTFD, args, &[(20, event)]);
    probe.expect("ioev_to_be_closed", "0", got);
    probe.close(event);
    machine.load(probe, |a| a.out(0x50, al));
    machine.case(probe, "ioev_closed", "HLT");
    check_count(probe, "ioev_closed_count", "8 1", kept);
    let poll = probe.descriptor(kept, DescriptorCall::Poll);
    probe.expect("ioev_closed_poll", "4", poll);
}
