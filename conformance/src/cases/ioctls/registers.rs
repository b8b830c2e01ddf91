//! What the ioctls that set registers accept (api.rst, "KVM_SET_SREGS", "KVM_SET_XCRS", ...).

use crate::guest::Machine;
use crate::probe::{Probe, Words, hex};
use crate::requests::*;
use kvm_bindings::{kvm_debugregs, kvm_regs, kvm_sregs};

type Change = fn(&mut kvm_sregs);

const LONG: u64 = 0x500;
const PAGED: u64 = 0x8000_0001;
const PAE: u64 = 0x20;

/// Before KVM_SET_CPUID2: case, wanted, change of a fresh vCPU's registers.
#[rustfmt::skip]
const SREGS: &[(&str, &str, Change)] = &[
    ("same", "0", |_| {}),
    ("cr0_pg_nope", "EINVAL", |s| s.cr0 |= 1 << 31),
    ("cr0_nw_nocd", "EINVAL", |s| s.cr0 = (s.cr0 | 1 << 29) & !(1 << 30)),
    ("cr0_hi", "EINVAL", |s| s.cr0 |= 1 << 32),
    ("cr0_rsvd", "0", |s| s.cr0 |= 1 << 6),
    ("cr0_rsvd28", "0", |s| s.cr0 |= 1 << 28),
    ("cr0_et0", "0", |s| s.cr0 &= !16),
    ("pe", "0", |s| s.cr0 |= 1),
    ("cr4_pae", "0", |s| s.cr4 |= PAE),
    ("cr4_rsvd15", "EINVAL", |s| s.cr4 |= 1 << 15),
    ("cr4_rsvd31", "EINVAL", |s| s.cr4 |= 1 << 31),
    ("cr4_hi", "EINVAL", |s| s.cr4 |= 1 << 40),
    ("cr4_low", "0", |s| s.cr4 |= 0x7df),
    ("efer_lma", "EINVAL", |s| s.efer |= 1 << 10),
    ("cs_l", "EINVAL", |s| s.cs.l = 1),
    ("apic_low", "EINVAL", |s| s.apic_base |= 1),
    ("apic_bit9", "EINVAL", |s| s.apic_base |= 1 << 9),
    ("apic_x2", "EINVAL", |s| s.apic_base |= 1 << 10),
    ("apic_x2_noen", "EINVAL", |s| s.apic_base = (s.apic_base | 1 << 10) & !(1 << 11)),
    ("apic_dis", "0", |s| s.apic_base &= !(1 << 11)),
    ("apic_0", "0", |s| s.apic_base = 0),
    ("apic_hi", "EINVAL", |s| s.apic_base |= 1 << 52),
    ("apic_nobsp", "0", |s| s.apic_base &= !(1 << 8)),
    ("cr8_15", "0", |s| s.cr8 = 15),
    ("cr8_16", "0", |s| s.cr8 = 16),
    ("cr3_hi", "0", |s| s.cr3 = u64::MAX),
    ("seg_junk", "0", |s| { s.ds.base = u64::MAX; s.ds.limit = u32::MAX; s.ds.type_ = 0xff; s.ds.dpl = 0xff; }),
    ("cs_unusable", "0", |s| s.cs.unusable = 1),
    ("tr_unusable", "0", |s| s.tr.unusable = 1),
    ("tr_type0", "0", |s| s.tr.type_ = 0),
    ("gdt_noncanon", "0", |s| s.gdt.base = 1 << 60),
    ("irqbm_two", "0", |s| s.interrupt_bitmap[0] = 1 << 40 | 1 << 33),
];

/// After KVM_SET_CPUID2 with the supported table.
#[rustfmt::skip]
const SREGS_CPUID: &[(&str, &str, Change)] = &[
    ("lm_nopae", "EINVAL", |s| { s.efer |= LONG; s.cr0 |= PAGED; }),
    ("lm_nolma", "EINVAL", |s| { s.efer |= 0x100; s.cr0 |= PAGED; s.cr4 |= PAE; }),
    ("lm_ok", "0", |s| { s.efer |= LONG; s.cr0 |= PAGED; s.cr4 |= PAE; s.cr3 = 0x1000; }),
    ("lm_cr3", "EINVAL", |s| { s.efer |= LONG; s.cr0 |= PAGED; s.cr4 |= PAE; s.cr3 = 1 << 52; }),
    ("lma_nopg", "EINVAL", |s| s.efer |= LONG),
    ("lme_nopg", "0", |s| s.efer |= 0x100),
    ("pae_cr3", "0", |s| { s.cr0 |= PAGED; s.cr4 |= PAE; s.cr3 = 0x2000; }),
    ("paging32", "0", |s| { s.cr0 |= PAGED; s.cr3 = 0x1000; }),
    ("nx", "0", |s| s.efer |= 1 << 11),
    ("wp_nopg", "0", |s| s.cr0 |= 1 << 16),
];

const XCRS: &[(&str, &str, u32, u32, u32, u64)] = &[
    ("xcrs.0", "EINVAL", 1, 0, 0, 0),
    ("xcrs.1", "0", 1, 0, 0, 1),
    ("xcrs.2", "EINVAL", 1, 0, 0, 2),
    ("xcrs.5", "EINVAL", 1, 0, 0, 5),
    ("xcrs.27", "EINVAL", 1, 0, 0, 0x27),
    ("xcrs.hi", "EINVAL", 1, 0, 0, 1 << 62 | 1),
    ("xcrs.flags", "EINVAL", 1, 1, 0, 1),
    ("xcrs.17", "EINVAL", 17, 0, 0, 1),
    ("xcrs.xcr1", "0", 1, 0, 1, 0),
    ("xcrs.nr0", "0", 0, 0, 0, 0),
];

pub(super) fn script(probe: &mut Probe<'_>) {
    let machine = Machine::bare(probe);
    sregs(probe, &machine, SREGS);
    readbacks(probe, &machine);
    let machine = Machine::bare(probe);
    let got = machine.adopt_cpuid(probe);
    probe.expect("cpuid.host", "0", got);
    sregs(probe, &machine, SREGS_CPUID);
    sregs2(probe, &machine);
    regs(probe, &machine);
    fpu(probe, &machine);
    xsave(probe, &machine);
    for (case, want, nr, flags, xcr, value) in XCRS {
        let words = Words::sized(392)
            .u32(0, *nr)
            .u32(4, *flags)
            .u32(8, *xcr)
            .u64(16, *value);
        let got = probe.send(machine.vcpu, KVM_SET_XCRS, words);
        probe.expect(case, want, got);
    }
    debug_registers(probe, &machine);
}

fn sregs(probe: &mut Probe<'_>, machine: &Machine, rows: &[(&str, &str, Change)]) {
    let fresh: kvm_sregs = probe.read_struct(machine.vcpu, KVM_GET_SREGS);
    for (case, want, change) in rows {
        let mut sregs = fresh;
        change(&mut sregs);
        let got = probe.set(machine.vcpu, KVM_SET_SREGS, &sregs);
        probe.expect(&format!("sregs.{case}"), want, got);
        let _ = probe.set(machine.vcpu, KVM_SET_SREGS, &fresh);
    }
}

/// What reads back after a change of a fresh vCPU's registers.
const READBACKS: &[(&str, &str, Change)] = &[
    ("sregs.et_readback", "cr0=0x60000000", |s| s.cr0 &= !16),
    ("sregs.cr8_readback", "cr8=0x9", |s| s.cr8 = 9),
    ("sregs.cr8_16_readback", "cr8=0x0", |s| s.cr8 = 16),
    (
        "sregs.refused_changes_nothing",
        "cr3=0x0 cr8=0x0 ds=0x0",
        |s| {
            (s.cr3, s.cr8, s.ds.selector, s.cr4) = (0x5000, 3, 0x33, 1 << 40);
        },
    ),
];

fn readbacks(probe: &mut Probe<'_>, machine: &Machine) {
    let fresh: kvm_sregs = probe.read_struct(machine.vcpu, KVM_GET_SREGS);
    for (case, want, change) in READBACKS {
        let mut sregs = fresh;
        change(&mut sregs);
        let _ = probe.set(machine.vcpu, KVM_SET_SREGS, &sregs);
        machine.case(probe, case, want);
        let _ = probe.set(machine.vcpu, KVM_SET_SREGS, &fresh);
    }
    let mut sregs = fresh;
    sregs.interrupt_bitmap[0] = 1 << 40 | 1 << 33;
    let _ = probe.set(machine.vcpu, KVM_SET_SREGS, &sregs);
    let sregs: kvm_sregs = probe.read_struct(machine.vcpu, KVM_GET_SREGS);
    probe.check(
        "sregs.irqbm_read",
        "0x200000000",
        &format!("{:#x}", sregs.interrupt_bitmap[0]),
    );
    let got = probe.value(machine.vcpu, KVM_SET_SREGS, 0);
    probe.expect("sregs.null", "EFAULT", got);
    let got = probe.value(machine.vcpu, KVM_GET_SREGS, 0);
    probe.expect("sregs.get_null", "EFAULT", got);
}

fn sregs2(probe: &mut Probe<'_>, machine: &Machine) {
    let mut fresh = Words::sized(320);
    let _ = probe.bytes(machine.vcpu, KVM_GET_SREGS2, fresh.bytes_mut());
    let rows = [
        ("sregs2.flags2", "EINVAL", fresh.clone().u64(280, 2)),
        ("sregs2.pdptr_nopae", "EINVAL", fresh.clone().u64(280, 1)),
        ("sregs2.same", "0", fresh),
    ];
    for (case, want, words) in rows {
        let got = probe.send(machine.vcpu, KVM_SET_SREGS2, words);
        probe.expect(case, want, got);
    }
}

fn regs(probe: &mut Probe<'_>, machine: &Machine) {
    let vcpu = machine.vcpu;
    let got = probe.set(vcpu, KVM_SET_REGS, &kvm_regs::default());
    probe.expect("regs.zero", "0", got);
    machine.case(probe, "regs.rflags_bit_1", "rflags=0x2");
    let regs = kvm_regs {
        rflags: 2,
        rip: 1 << 60,
        ..kvm_regs::default()
    };
    let got = probe.set(vcpu, KVM_SET_REGS, &regs);
    probe.expect("regs.rip_noncanon", "0", got);
    machine.case(probe, "regs.rip_readback", "rip=0x1000000000000000");
    for (case, request) in [("regs.null", KVM_SET_REGS), ("regs.get_null", KVM_GET_REGS)] {
        let got = probe.value(vcpu, request, 0);
        probe.expect(case, "EFAULT", got);
    }
}

fn fpu(probe: &mut Probe<'_>, machine: &Machine) {
    let mut fpu = Words::sized(416);
    let _ = probe.bytes(machine.vcpu, KVM_GET_FPU, fpu.bytes_mut());
    // Control word, last opcode, MXCSR.
    let junk = fpu
        .with(128, 2, 0xffff)
        .with(134, 2, 0xffff)
        .u32(408, u32::MAX);
    let got = probe.send(machine.vcpu, KVM_SET_FPU, junk);
    let mut fpu = Words::sized(416);
    let _ = probe.bytes(machine.vcpu, KVM_GET_FPU, fpu.bytes_mut());
    let got = crate::backend::outcome_text(got);
    let [control, opcode, mxcsr] = [fpu.get(128, 2), fpu.get(134, 2), fpu.get(408, 4)];
    let got = format!("{got} fcw={control:#x} opcode={opcode:#x} mxcsr={mxcsr:#x}");
    probe.check("fpu.junk", "0 fcw=0xffff opcode=0xffff mxcsr=0x0", &got);
}

fn xsave(probe: &mut Probe<'_>, machine: &Machine) {
    let vcpu = machine.vcpu;
    let mut same = Words::sized(4096);
    let _ = probe.bytes(vcpu, KVM_GET_XSAVE, same.bytes_mut());
    let plain = same.clone().u64(512, 0).u32(24, 0x1f80);
    let rows = [
        ("xsave.same", "0", same),
        ("xsave.bv62", "EINVAL", plain.clone().u64(512, 1 << 62)),
        ("xsave.mxcsr", "0", plain.clone().u32(24, 0xffff_0000)),
        (
            "xsave.mxcsr_with_sse",
            "EINVAL",
            plain.clone().u32(24, 0xffff_0000).u64(512, 2),
        ),
        ("xsave.compact", "EINVAL", plain.clone().u64(520, 1 << 63)),
        ("xsave.hdrrsvd", "EINVAL", plain.clone().u64(528, 1)),
        ("xsave.xmm0", "0", plain.u64(512, 3).u64(160, 0xaa)),
    ];
    for (case, want, words) in rows {
        let got = probe.send(vcpu, KVM_SET_XSAVE, words);
        probe.expect(case, want, got);
    }
    let mut back = Words::sized(4096);
    let _ = probe.bytes(vcpu, KVM_GET_XSAVE, back.bytes_mut());
    let got = format!("{} bv={}", hex(&back.bytes()[160..168]), back.get(512, 8));
    probe.check("xsave.xmm0_read", "aa00000000000000 bv=3", &got);
    for (case, request) in [
        ("xsave.null", KVM_SET_XSAVE),
        ("xsave.get_null", KVM_GET_XSAVE),
    ] {
        let got = probe.value(vcpu, request, 0);
        probe.expect(case, "EFAULT", got);
    }
}

fn debug_registers(probe: &mut Probe<'_>, machine: &Machine) {
    let usual = kvm_debugregs {
        dr6: 0xffff_0ff0,
        dr7: 0x400,
        ..kvm_debugregs::default()
    };
    let rows = [
        ("dr.ok", "0", usual),
        ("dr.flags", "EINVAL", kvm_debugregs { flags: 1, ..usual }),
        (
            "dr.dr6hi",
            "EINVAL",
            kvm_debugregs {
                dr6: 1 << 32,
                ..usual
            },
        ),
        (
            "dr.dr7hi",
            "EINVAL",
            kvm_debugregs {
                dr7: 1 << 32,
                ..usual
            },
        ),
        ("dr.zero", "0", kvm_debugregs::default()),
    ];
    for (case, want, registers) in rows {
        let got = probe.set(machine.vcpu, KVM_SET_DEBUGREGS, &registers);
        probe.expect(case, want, got);
    }
    machine.case(probe, "dr.zero_read", "dr6=0x0 dr7=0x0");
    let high = kvm_debugregs {
        db: [1 << 60, 0, 0, 0],
        ..usual
    };
    let got = probe.set(machine.vcpu, KVM_SET_DEBUGREGS, &high);
    probe.expect("dr.db_noncanon", "0", got);
}
