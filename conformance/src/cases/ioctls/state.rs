//! The state of a fresh vCPU, and translation (api.rst, "vcpu ioctls").

use crate::guest::{Machine, Mode};
use crate::probe::{Probe, Words, hex};
use crate::requests::*;
use kvm_bindings::kvm_regs;

/// Segments and tables as INIT-less reset leaves them (SDM Vol. 3A, "Processor State After Reset").
const FRESH: &[(&str, &str)] = &[
    ("regs", "rip=0xfff0 rflags=0x2 rdx=0x600 rsp=0x0"),
    (
        "cs",
        "cs=0xf000 cs.base=0xffff0000 cs.limit=0xffff cs.type=0xb cs.s=0x1 cs.present=0x1 cs.dpl=0x0 cs.db=0x0 cs.l=0x0 cs.g=0x0",
    ),
    (
        "ds",
        "ds=0x0 ds.base=0x0 ds.limit=0xffff ds.type=0x3 ds.s=0x1 ds.present=0x1 ds.unusable=0x0",
    ),
    (
        "ss",
        "ss=0x0 ss.base=0x0 ss.limit=0xffff ss.type=0x3 ss.s=0x1 ss.present=0x1 ss.db=0x0",
    ),
    (
        "tr",
        "tr=0x0 tr.base=0x0 tr.limit=0xffff tr.type=0xb tr.s=0x0 tr.present=0x1",
    ),
    (
        "ldt",
        "ldt=0x0 ldt.base=0x0 ldt.limit=0xffff ldt.type=0x2 ldt.s=0x0 ldt.present=0x1",
    ),
    (
        "tables",
        "gdt.base=0x0 gdt.limit=0xffff idt.base=0x0 idt.limit=0xffff",
    ),
    (
        "sregs",
        "cr0=0x60000010 cr2=0x0 cr3=0x0 cr4=0x0 cr8=0x0 efer=0x0 apic_base=0xfee00900",
    ),
    (
        "debugregs",
        "dr0=0x0 dr1=0x0 dr2=0x0 dr3=0x0 dr6=0xffff0ff0 dr7=0x400",
    ),
    (
        "events",
        "events.flags=0xd events.exception.injected=0x0 events.interrupt.injected=0x0 events.nmi.pending=0x0 events.nmi.masked=0x0",
    ),
    ("mp", "mp_state=0x0"),
    ("msr_pat", "msr:0x277=0x7040600070406"),
    (
        "msr_mtrr",
        "msr:0xfe=0x508 msr:0x2ff=0x0 msr:0x200=0x0 msr:0x250=0x0",
    ),
    ("msr_mce", "msr:0x179=0x20 msr:0x17a=0x0"),
    (
        "msr_syscall",
        "msr:0xc0000080=0x0 msr:0xc0000081=0x0 msr:0xc0000082=0x0 msr:0xc0000084=0x0 msr:0xc0000102=0x0",
    ),
    ("msr_sysenter", "msr:0x174=0x0 msr:0x175=0x0 msr:0x176=0x0"),
    (
        "msr_fixed",
        "msr:0x17=0x0 msr:0x2a=0x0 msr:0xcd=0x3 msr:0xce=0x80000000 msr:0x198=0x400000003e8",
    ),
    ("msr_poll_control", "msr:0x4b564d05=0x1"),
];

pub(super) fn script(probe: &mut Probe<'_>) {
    let machine = Machine::bare(probe);
    for (case, want) in FRESH {
        machine.case(probe, &format!("noirqchip.{case}"), want);
    }
    let regs: kvm_regs = probe.read_struct(machine.vcpu, KVM_GET_REGS);
    let others =
        regs.rax | regs.rbx | regs.rcx | regs.rsi | regs.rdi | regs.rbp | regs.r8 | regs.r15;
    probe.check("noirqchip.other_registers", "0", &others.to_string());
    structs(probe, &machine);
}

/// KVM_TRANSLATE, without paging and in two modes.
pub(super) fn translation(probe: &mut Probe<'_>) {
    let machine = Machine::bare(probe);
    translate(probe, &machine);
    long_mode(probe);
}

fn structs(probe: &mut Probe<'_>, machine: &Machine) {
    let mut get = |request: u32, length: usize, of: &dyn Fn(&Words) -> String| {
        let mut words = Words::sized(length);
        let outcome = probe.bytes(machine.vcpu, request, words.bytes_mut());
        format!("{} {}", crate::backend::outcome_text(outcome), of(&words))
    };
    let fpu = get(KVM_GET_FPU, 416, &|f| {
        format!(
            "fcw={:#x} fsw={:#x} mxcsr={:#x}",
            f.get(128, 2),
            f.get(130, 2),
            f.get(408, 4)
        )
    });
    let sregs2 = get(KVM_GET_SREGS2, 320, &|s| {
        format!(
            "flags={:#x} pdptrs={}",
            s.get(280, 8),
            hex(&s.bytes()[288..296])
        )
    });
    let xcrs = get(KVM_GET_XCRS, 392, &|x| {
        format!(
            "nr={} xcr={} value={}",
            x.get(0, 4),
            x.get(8, 4),
            x.get(16, 8)
        )
    });
    let xsave = get(KVM_GET_XSAVE, 4096, &|x| {
        format!(
            "fcw={:#x} mxcsr={:#x} bv={:#x}",
            x.get(0, 2),
            x.get(24, 4),
            x.get(512, 8)
        )
    });
    probe.check("noirqchip.fpu", "0 fcw=0x37f fsw=0x0 mxcsr=0x0", &fpu);
    probe.check(
        "noirqchip.sregs2",
        "0 flags=0x0 pdptrs=0000000000000000",
        &sregs2,
    );
    probe.check("noirqchip.xcrs", "0 nr=1 xcr=0 value=1", &xcrs);
    probe.check("noirqchip.xsave", "0 fcw=0x37f mxcsr=0x1f80 bv=0x0", &xsave);
    let run = probe.read(machine.run, 0, 2352);
    let zero = run.iter().all(|byte| *byte == 0);
    probe.check("noirqchip.run_page_is_zero", "true", &zero.to_string());
    let lapic = probe.send(machine.vcpu, KVM_GET_LAPIC, Words::sized(1024));
    probe.expect("noirqchip.lapic", "EINVAL", lapic);
}

fn translated(probe: &mut Probe<'_>, machine: &Machine, linear: u64) -> String {
    let mut words = Words::sized(24).u64(0, linear);
    let outcome = probe.bytes(machine.vcpu, KVM_TRANSLATE, words.bytes_mut());
    let text = crate::backend::outcome_text(outcome);
    let (pa, valid) = (words.get(8, 8), words.get(16, 1));
    format!(
        "{text} pa={pa:#x} valid={valid} writeable={} usermode={}",
        words.get(17, 1),
        words.get(18, 1)
    )
}

fn translate(probe: &mut Probe<'_>, machine: &Machine) {
    for (case, linear, want) in [
        (
            "translate",
            0x1234,
            "0 pa=0x1234 valid=1 writeable=1 usermode=0",
        ),
        (
            "translate_nomem",
            0xffff_f000,
            "0 pa=0xfffff000 valid=1 writeable=1 usermode=0",
        ),
    ] {
        let got = translated(probe, machine, linear);
        probe.check(case, want, &got);
    }
    let got = probe.value(machine.vcpu, KVM_TRANSLATE, 0);
    probe.expect("translate_null", "EFAULT", got);
    let paged = Machine::with_pages(probe, Mode::Paged32, &[(0x40_5000, 0x7003)]);
    let got = translated(probe, &paged, 0x40_5123);
    probe.check(
        "translate_pg",
        "0 pa=0x7123 valid=1 writeable=1 usermode=0",
        &got,
    );
    let got = translated(probe, &paged, 0x40_6000);
    let want = "0 pa=0xffffffffffffffff valid=0 writeable=1 usermode=0";
    probe.check("translate_unmapped", want, &got);
    paged.case(probe, "pg_readback_32", "cr0=0x80010031");
}

fn long_mode(probe: &mut Probe<'_>) {
    let machine = Machine::with_pages(probe, Mode::Long, &[(0x40_5000, 0x7003)]);
    machine.case(
        probe,
        "lm.set",
        "cr0=0x80010031 efer=0xd00 cr4=0x20 cs.l=0x1",
    );
    let got = translated(probe, &machine, 0x40_5123);
    probe.check(
        "lm.translate",
        "0 pa=0x7123 valid=1 writeable=1 usermode=0",
        &got,
    );
    let got = translated(probe, &machine, 0x40_6000);
    let want = "0 pa=0xffffffffffffffff valid=0 writeable=1 usermode=0";
    probe.check("lm.translate_unmapped", want, &got);
}
