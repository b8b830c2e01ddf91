//! Memory slots (api.rst, "KVM_SET_USER_MEMORY_REGION").

use crate::backend::{Memory, Pointer};
use crate::guest::machine::{Slot, region};
use crate::guest::{Machine, Vm};
use crate::probe::{Probe, Words};
use crate::requests::*;

/// A row: case, wanted, slot, flags, guest-physical address, size, where the memory is.
type Row = (&'static str, &'static str, u32, u32, u64, u64, At);

/// The userspace address.
#[derive(Clone, Copy)]
enum At {
    /// In the mapping of the script.
    Map(u64),
    /// A number.
    Number(u64),
}
use At::{Map, Number};

const PAGE: u64 = 0x1000;
const KERNEL: u64 = 0xffff_8880_0000_0000;

#[rustfmt::skip]
const ROWS: &[Row] = &[
    ("create", "0", 0, 0, 0, 0x1_0000, Map(0)),
    ("same", "0", 0, 0, 0, 0x1_0000, Map(0)),
    ("resize", "EINVAL", 0, 0, 0, 0x2_0000, Map(0)),
    ("newhva", "EINVAL", 0, 0, 0, 0x1_0000, Map(PAGE)),
    ("move", "0", 0, 0, 0x4_0000, 0x1_0000, Map(0)),
    ("moveback", "0", 0, 0, 0, 0x1_0000, Map(0)),
    ("overlap", "EEXIST", 1, 0, 0x8000, 0x1_0000, Map(0)),
    ("overlap_last", "EEXIST", 1, 0, 0xf000, PAGE, Map(0)),
    ("adjacent", "0", 1, 0, 0x1_0000, PAGE, Map(0)),
    ("move_overlap", "EEXIST", 1, 0, 0, PAGE, Map(0)),
    ("delete_adjacent", "0", 1, 0, 0, 0, Number(0)),
    ("move_self_overlap", "0", 0, 0, PAGE, 0x1_0000, Map(0)),
    ("move_self_back", "0", 0, 0, 0, 0x1_0000, Map(0)),
    ("samehva", "0", 2, 0, 0x8_0000, 0x1_0000, Map(0)),
    ("delete", "0", 2, 0, 0, 0, Number(0)),
    ("delete_again", "EINVAL", 2, 0, 0, 0, Number(0)),
    ("samehva_again", "0", 2, 0, 0x8_0000, 0x1_0000, Map(0)),
    ("delete_badhva", "EINVAL", 2, 0, 0, 0, Number(1)),
    ("delete_badgpa", "EINVAL", 2, 0, 1, 0, Number(0)),
    ("delete_kernhva", "EINVAL", 2, 0, 0, 0, Number(0xffff_8000_0000_0000)),
    ("delete_at_last", "0", 2, 0, 0, 0, Number(0)),
    ("size_unaligned", "EINVAL", 3, 0, 0x10_0000, PAGE + 1, Map(0)),
    ("gpa_unaligned", "EINVAL", 3, 0, 0x10_0800, PAGE, Map(0)),
    ("hva_unaligned", "EINVAL", 3, 0, 0x10_0000, PAGE, Map(8)),
    ("hva_null", "0", 3, 0, 0x10_0000, PAGE, Number(0)),
    ("hva_null_delete", "0", 3, 0, 0, 0, Number(0)),
    ("hva_unmapped", "0", 3, 0, 0x10_0000, PAGE, Number(0x1_0000)),
    ("hva_unmapped_delete", "0", 3, 0, 0, 0, Number(0)),
    ("hva_kernel", "EINVAL", 3, 0, 0x10_0000, PAGE, Number(KERNEL)),
    ("hva_top", "EINVAL", 3, 0, 0x10_0000, 2 * PAGE, Number(0x7fff_ffff_f000)),
    ("flags_dirty", "0", 4, 1, 0x20_0000, PAGE, Map(0)),
    ("flags_clear", "0", 4, 0, 0x20_0000, PAGE, Map(0)),
    ("flags_ro_change", "EINVAL", 4, 2, 0x20_0000, PAGE, Map(0)),
    ("flags_ro", "0", 5, 2, 0x30_0000, PAGE, Map(0)),
    ("flags_ro_drop", "EINVAL", 5, 0, 0x30_0000, PAGE, Map(0)),
    ("flags_ro_dirty", "0", 6, 3, 0x40_0000, PAGE, Map(0)),
    ("flags_4", "EINVAL", 7, 4, 0x50_0000, PAGE, Map(0)),
    ("flags_8", "EINVAL", 7, 8, 0x50_0000, PAGE, Map(0)),
    ("flags_hi", "EINVAL", 7, 1 << 16, 0x50_0000, PAGE, Map(0)),
    ("flags_bad_on_delete", "EINVAL", 4, 8, 0, 0, Number(0)),
    ("slot_last", "0", 32763, 0, 0x60_0000, PAGE, Map(0)),
    ("slot_over", "EINVAL", 32764, 0, 0x70_0000, PAGE, Map(0)),
    ("slot_ffff", "EINVAL", 0xffff, 0, 0x70_0000, PAGE, Map(0)),
    ("as2", "EINVAL", 0x2_0000, 0, 0, PAGE, Map(0)),
    ("gpa_wrap", "EINVAL", 8, 0, 0xffff_ffff_ffff_f000, 2 * PAGE, Map(0)),
    ("gpa_top", "EINVAL", 8, 0, 0xffff_ffff_ffff_e000, PAGE, Map(0)),
    ("gpa_above52", "EINVAL", 8, 0, 1 << 52, PAGE, Map(0)),
    ("size_2p43", "EINVAL", 9, 0, 0x10_0000_0000, 1 << 43, Number(0)),
    ("size_max", "0", 9, 0, 0x100_0000_0000, 1 << 36, Number(0)),
    ("size_max_delete", "0", 9, 0, 0, 0, Number(0)),
    ("size_zero_new", "EINVAL", 9, 0, 0x80_0000, 0, Number(0)),
];

const NUMBERS: &[(&str, &str, u32, u64)] = &[
    ("null", "EFAULT", KVM_SET_USER_MEMORY_REGION, 0),
    ("v2_null", "EFAULT", KVM_SET_USER_MEMORY_REGION2, 0),
    ("old_set_memory_region", "ENOTTY", misshapen(1, 0x40, 24), 0),
    ("old_memalias", "ENOTTY", misshapen(1, 0x43, 32), 0),
    ("tss", "0", KVM_SET_TSS_ADDR, 0xfffb_d000),
    ("tss_again", "0", KVM_SET_TSS_ADDR, 0xfffb_d000),
    ("tss_high", "EINVAL", KVM_SET_TSS_ADDR, 0xffff_e000),
    ("tss_edge", "0", KVM_SET_TSS_ADDR, 0xffff_d000),
    ("ident_late_null", "EINVAL", KVM_SET_IDENTITY_MAP_ADDR, 0),
    ("mmupages", "0", KVM_SET_NR_MMU_PAGES, 64),
    ("mmupages63", "EINVAL", KVM_SET_NR_MMU_PAGES, 63),
];

pub(super) fn script(probe: &mut Probe<'_>) {
    let vm = Vm::new(probe);
    let memory = probe.allocate(0x10_0000);
    let nr = probe.value(vm.system, KVM_CHECK_EXTENSION, 10);
    probe.expect("nr_memslots", "32764", nr);
    for row in ROWS {
        play(probe, &vm, memory, row);
    }
    second_version(probe, &vm, memory);
    let _ = vm.vcpu(probe, 0);
    for (case, want, request, argument) in NUMBERS {
        let got = probe.value(vm.vm, *request, *argument);
        probe.expect(case, want, got);
    }
    let got = probe.send(
        vm.vm,
        KVM_SET_IDENTITY_MAP_ADDR,
        0xfffb_c000_u64.to_le_bytes(),
    );
    probe.expect("ident_late", "EINVAL", got);
    identity_map(probe);
    shared_pages(probe);
}

fn play(probe: &mut Probe<'_>, vm: &Vm, memory: Memory, row: &Row) {
    let (case, want, slot, flags, at, size, place) = *row;
    let got = match place {
        Map(offset) => {
            let backing = Some((memory, offset));
            vm.set_slot(
                probe,
                &Slot {
                    slot,
                    flags,
                    at,
                    size,
                    backing,
                },
            )
        }
        Number(address) => {
            let region = region(slot, flags, at, size).u64(24, address);
            probe.send(vm.vm, KVM_SET_USER_MEMORY_REGION, region)
        }
    };
    probe.expect(case, want, got);
}

fn second_version(probe: &mut Probe<'_>, vm: &Vm, memory: Memory) {
    let region = Words::sized(160).u32(0, 20).u64(8, 0x90_0000).u64(16, PAGE);
    let rows = [
        ("v2", "0", region.clone()),
        ("v2_pad", "0", region.clone().u32(44, 7)),
        ("v2_nocap", "EINVAL", region.u32(4, 1 << 5)),
    ];
    for (case, want, region) in rows {
        let pointers = [Pointer {
            offset: 24,
            memory,
            at: 0,
        }];
        let got = probe.send_pointers(vm.vm, KVM_SET_USER_MEMORY_REGION2, region, &pointers);
        probe.expect(case, want, got);
    }
}

fn identity_map(probe: &mut Probe<'_>) {
    let vm = Vm::new(probe).vm;
    for (case, address) in [
        ("ident", 0xfffb_c000_u64),
        ("ident0", 0),
        ("ident_unal", 0x123),
    ] {
        let got = probe.send(vm, KVM_SET_IDENTITY_MAP_ADDR, address.to_le_bytes());
        probe.expect(case, "0", got);
    }
    let got = probe.value(vm, KVM_SET_IDENTITY_MAP_ADDR, 0);
    probe.expect("ident_null", "EFAULT", got);
}

/// Slots as a guest sees them: one page in two places, moved, deleted.
fn shared_pages(probe: &mut Probe<'_>) {
    let machine = Machine::new(probe, crate::guest::Mode::Protected32);
    let page = probe.allocate(PAGE);
    probe.write(page, 0, &[0x11, 0x22, 0x33, 0x44]);
    let slot = Slot {
        slot: 1,
        at: 0x9_0000,
        size: PAGE,
        backing: Some((page, 0)),
        ..Slot::default()
    };
    let _ = machine.vm.set_slot(probe, &slot);
    let _ = machine.vm.set_slot(
        probe,
        &Slot {
            slot: 2,
            at: 0x9_8000,
            ..slot
        },
    );
    machine.load(probe, |a| {
        use iced_x86::code_asm::*;
        a.mov(byte_ptr(0x9_8000), 0x55)?;
        a.mov(eax, dword_ptr(0x9_0000))
    });
    machine.set_registers(probe, &[]);
    machine.case(probe, "two_slots_one_page", "HLT rax=0x44332255");
    let _ = machine.vm.set_slot(
        probe,
        &Slot {
            at: 0x9_4000,
            ..slot
        },
    );
    machine.set_registers(probe, &[]);
    machine.case(
        probe,
        "slot_moved",
        "read:0x90000/4<01020304 HLT rax=0x4030201",
    );
    let _ = machine.vm.set_slot(
        probe,
        &Slot {
            slot: 2,
            size: 0,
            backing: None,
            ..slot
        },
    );
    machine.set_registers(probe, &[]);
    machine.case(
        probe,
        "slot_deleted",
        "write:0x98000/1=55 read:0x90000/4<01020304 HLT",
    );
    let _ = machine.vm.set_slot(
        probe,
        &Slot {
            slot: 3,
            flags: 2,
            at: 0x9_8000,
            ..slot
        },
    );
    machine.set_registers(probe, &[]);
    machine.case(
        probe,
        "read_only_write",
        "write:0x98000/1=55 read:0x90000/4<01020304 HLT",
    );
    let byte = probe.read_number(page, 0, 1);
    probe.check("read_only_unchanged", "0x55", &format!("{byte:#x}"));
}
