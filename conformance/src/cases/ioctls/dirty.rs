//! Dirty logging (api.rst, "KVM_GET_DIRTY_LOG", "KVM_CLEAR_DIRTY_LOG").

use crate::backend::{Memory, Pointer, outcome_text};
use crate::guest::layout::MEMORY;
use crate::guest::machine::Slot;
use crate::guest::{Machine, Mode};
use crate::probe::{Probe, Words, hex};
use crate::requests::*;
use iced_x86::code_asm::*;

const MANUAL_PROTECT2: u32 = 168;

struct Log {
    machine: Machine,
    bitmap: Memory,
}

impl Log {
    fn flags(&self, probe: &mut Probe<'_>, flags: u32) {
        let backing = Some((self.machine.memory, 0));
        let slot = Slot {
            flags,
            size: MEMORY,
            backing,
            ..Slot::default()
        };
        let _ = self.machine.vm.set_slot(probe, &slot);
    }

    /// KVM_GET_DIRTY_LOG: the outcome and the bitmap of the 128 pages.
    fn get(&self, probe: &mut Probe<'_>, slot: u32) -> String {
        let pointers = [Pointer {
            offset: 8,
            memory: self.bitmap,
            at: 0,
        }];
        let log = Words::sized(16).u32(0, slot);
        let got = probe.send_pointers(self.machine.vm.vm, KVM_GET_DIRTY_LOG, log, &pointers);
        outcome_text(got)
    }

    fn expect_bitmap(&self, probe: &mut Probe<'_>, case: &str, want: &str) {
        let got = self.get(probe, 0);
        let bits = hex(&probe.read(self.bitmap, 0, 16));
        probe.check(case, &format!("0 {want:0<32}"), &format!("{got} {bits}"));
    }

    fn clear(&self, probe: &mut Probe<'_>, slot: u32, first: u64, count: u32) -> String {
        let pointers = [Pointer {
            offset: 16,
            memory: self.bitmap,
            at: 0,
        }];
        let log = Words::sized(24).u32(0, slot).u32(4, count).u64(8, first);
        let got = probe.send_pointers(self.machine.vm.vm, KVM_CLEAR_DIRTY_LOG, log, &pointers);
        outcome_text(got)
    }
}

pub(super) fn script(probe: &mut Probe<'_>) {
    let machine = Machine::new(probe, Mode::Real);
    let log = Log {
        machine,
        bitmap: probe.allocate(4096),
    };
    let got = log.get(probe, 0);
    probe.check("nolog", "ENOENT", &got);
    automatic(probe, &log);
    refusals(probe, &log);
    manual(probe, &log);
    write_kinds(probe);
}

fn automatic(probe: &mut Probe<'_>, log: &Log) {
    log.flags(probe, 1);
    probe.write(log.bitmap, 0, &[0xee; 32]);
    log.expect_bitmap(probe, "clean", "");
    let behind = probe.read_number(log.bitmap, 16, 1);
    probe.check("bitmap_ends", "0xee", &format!("{behind:#x}"));
    log.machine.load(probe, |a| a.mov(byte_ptr(0x5000), 0x11));
    log.machine.set_registers(probe, &[]);
    log.machine.case(probe, "run", "HLT");
    // The page of the code too: a read maps what the VMM has written for writes, and counts it.
    log.expect_bitmap(probe, "page5", "22");
    log.expect_bitmap(probe, "cleared", "");
    log.machine.poke(probe, 0x7000, &[1]);
    log.expect_bitmap(probe, "hostwrite", "");
    log.machine.set_registers(probe, &[]);
    log.machine.case(probe, "run_again", "HLT");
    log.expect_bitmap(probe, "page5_again", "20");
}

fn refusals(probe: &mut Probe<'_>, log: &Log) {
    for (case, want, slot) in [
        ("noslot", "ENOENT", 3),
        ("badslot", "EINVAL", 40000),
        ("badas", "EINVAL", 0x2_0000),
    ] {
        let got = log.get(probe, slot);
        probe.check(case, want, &got);
    }
    let vm = log.machine.vm.vm;
    let got = probe.send(vm, KVM_GET_DIRTY_LOG, Words::sized(16));
    probe.expect("nullbm", "EFAULT", got);
    let got = probe.value(vm, KVM_GET_DIRTY_LOG, 0);
    probe.expect("null", "EFAULT", got);
    for (case, want, slot, first, count) in [
        ("clear_auto", "0", 0, 0, 64),
        ("clear_first1", "EINVAL", 0, 1, 64),
        ("clear_num65", "EINVAL", 0, 0, 65),
        ("clear_all", "0", 0, 0, 128),
        ("clear_beyond", "EINVAL", 0, 0, 192),
        ("clear_zero", "0", 0, 0, 0),
        ("clear_noslot", "ENOENT", 5, 0, 64),
    ] {
        let got = log.clear(probe, slot, first, count);
        probe.check(case, want, &got);
    }
}

fn manual(probe: &mut Probe<'_>, log: &Log) {
    for (case, want, value) in [
        ("manual_4", "EINVAL", 4),
        ("manual_2", "EINVAL", 2),
        ("manual_1", "0", 1),
    ] {
        let got = log.machine.vm.enable(probe, MANUAL_PROTECT2, value);
        probe.expect(case, want, got);
    }
    log.machine.load(probe, |a| a.mov(byte_ptr(0x6000), 0x11));
    log.machine.set_registers(probe, &[]);
    log.machine.case(probe, "man_run", "HLT");
    log.expect_bitmap(probe, "man_get1", "40");
    log.expect_bitmap(probe, "man_get2", "40");
    probe.write(log.bitmap, 0, &[0xff; 16]);
    let got = log.clear(probe, 0, 0, 128);
    probe.check("man_clear", "0", &got);
    log.expect_bitmap(probe, "man_get3", "");
    let got = log.machine.vm.enable(probe, MANUAL_PROTECT2, 3);
    probe.expect("manual_3", "0", got);
    log.flags(probe, 0);
    log.flags(probe, 1);
    log.expect_bitmap(probe, "initset", &"f".repeat(32));
    let got = log.machine.vm.enable(probe, MANUAL_PROTECT2, 0);
    probe.expect("manual_0", "0", got);
}

/// Every way in which a guest writes sets the bit: strings, read-modify-write, pushes, page walks.
fn write_kinds(probe: &mut Probe<'_>) {
    let machine = Machine::new(probe, Mode::Long);
    let log = Log {
        machine,
        bitmap: probe.allocate(4096),
    };
    machine.load(probe, |a| {
        a.mov(edi, 0x1_8000)?;
        a.mov(ecx, 0x1001)?;
        a.rep().stosb()?;
        a.inc(byte_ptr(0x5000))?;
        a.mov(esp, 0x7000)?;
        a.push(rax)
    });
    log.flags(probe, 1);
    machine.case(probe, "kinds_run", "HLT");
    let _ = log.get(probe, 0);
    let bits = probe.read(log.bitmap, 0, 16);
    // Pages 1 (the code), 5, 6, 0x18 and 0x19; the paging structures if the walk's own writes are
    // logged.
    let seen = u32::from_le_bytes([bits[0], bits[1], bits[2], bits[3]]) & !(0xf << 0x10);
    probe.check("kinds", "0x3000062", &format!("{seen:#x}"));
}
