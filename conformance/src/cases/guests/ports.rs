//! Ports, devices and exceptions in real-address mode, step by step: what each KVM_RUN shows.

use crate::cases::Script;
use crate::guest::Mode::{Protected32, Real};
use crate::guest::machine::Slot;
use crate::guest::{Code, Machine};
use crate::probe::Probe;
use crate::requests::*;
use iced_x86::code_asm::*;

/// The parts of the group `run` that are here.
pub(super) const PARTS: &[(&str, Script)] = &[
    ("run/steps", steps),
    ("run/read-only", read_only),
    ("run/running", while_running),
];

/// Code, and each KVM_RUN with its name.
type Steps = (Code, &'static [(&'static str, &'static str)]);

/// DS covers the device at 0x90000.
fn device(a: &mut CodeAssembler) -> Result<(), iced_x86::IcedError> {
    a.mov(ax, 0x9000)?;
    a.mov(ds, ax)
}

#[rustfmt::skip]
const STEPS: &[Steps] = &[
    (|a| { a.mov(al, 0x5a)?; a.out(0x10, al) }, &[("out_imm8_first", "out:0x10/1=5a"), ("out_imm8_cont", "HLT rip=0x1005 rax=0x5a")]),
    (|a| { a.mov(al, 0x5a)?; a.out(0x7e, al) }, &[("out_7e_first", "out:0x7e/1=5a rip=0x1004"), ("out_7e_cont", "HLT rip=0x1005 rax=0x5a")]),
    (|a| { a.mov(dx, 0x1234)?; a.mov(ax, 0x1122)?; a.out(dx, ax) }, &[("out_dx_ax", "out:0x1234/2=2211"), ("out_dx_ax_cont", "HLT rip=0x1008 rax=0x1122")]),
    (|a| { a.mov(dx, 0x1234)?; a.mov(eax, 0x1122_3344)?; a.out(dx, eax) }, &[("out_dx_eax", "out:0x1234/4=44332211"), ("out_dx_eax_cont", "HLT rip=0x100c rax=0x11223344")]),
    (|a| a.in_(al, 0x60), &[("in_al_first", "in:0x60/1<77 rip=0x1000"), ("in_al_cont", "HLT rip=0x1003 rax=0x77")]),
    (|a| { a.mov(dx, 0x60)?; a.in_(ax, dx) }, &[("in_ax", "in:0x60/2<efbe rip=0x1003"), ("in_ax_cont", "HLT rip=0x1005 rax=0xbeef")]),
    (|a| { a.mov(dx, 0x60)?; a.in_(eax, dx) }, &[("in_eax", "in:0x60/4<efcdab89 rip=0x1003"), ("in_eax_cont", "HLT rip=0x1006 rax=0x89abcdef")]),
    (|a| { a.mov(dx, 0x60)?; a.mov(di, 0x6000)?; a.cld()?; a.insb() }, &[("insb", "in:0x60/1<41 rip=0x1007"), ("insb_cont", "HLT rip=0x1009 m1:0x6000=0x41")]),
    (|a| { device(a)?; a.mov(byte_ptr(0x10), 0xab) }, &[("mmio_w8", "write:0x90010/1=ab rip=0x100a"), ("mmio_w8_cont", "HLT rip=0x100b")]),
    (|a| { device(a)?; a.mov(word_ptr(0x10), 0xabcd) }, &[("mmio_w16", "write:0x90010/2=cdab rip=0x100b"), ("mmio_w16_cont", "HLT rip=0x100c")]),
    (|a| { device(a)?; a.mov(dword_ptr(0x10), 0x1234_5678) }, &[("mmio_w32", "write:0x90010/4=78563412 rip=0x100e"), ("mmio_w32_cont", "HLT rip=0x100f")]),
    (|a| { device(a)?; a.mov(al, byte_ptr(0x20)) }, &[("mmio_r8_first", "read:0x90020/1<99 rip=0x1005"), ("mmio_r8_cont", "HLT rax=0x9099")]),
    (|a| { device(a)?; a.mov(eax, dword_ptr(0x21)) }, &[("mmio_r32_unaligned", "read:0x90021/4<04030201 rip=0x1005"), ("mmio_r32_unaligned_cont", "HLT rax=0x1020304")]),
    (|a| { device(a)?; a.mov(eax, dword_ptr(0xffe)) }, &[("mmio_r32_cross", "read:0x90ffe/2<1122 rip=0x1005"), ("mmio_r32_cross2", "read:0x91000/2<3344 rip=0x1005"), ("mmio_r32_cross3", "HLT rax=0x44332211")]),
    (|a| { a.mov(ax, 0x7fff)?; a.mov(ds, ax)?; a.mov(word_ptr(0xe), 0xeeee_u32)?; a.mov(eax, dword_ptr(0xe)) }, &[("ram_mmio_cross", "read:0x80000/2<3344"), ("ram_mmio_cross2", "HLT rax=0x4433eeee")]),
    (|a| { device(a)?; a.inc(byte_ptr(0x10)) }, &[("mmio_rmw", "read:0x90010/1<0f rip=0x1005"), ("mmio_rmw2", "write:0x90010/1=10 rip=0x1009"), ("mmio_rmw3", "HLT rip=0x100a rflags=0x12")]),
    (|a| { device(a)?; a.mov(di, 0x6000)?; a.mov(cx, 2)?; a.rep().movsb() }, &[("mmio_movs", "read:0x90000/1<61 rip=0x100b"), ("mmio_movs_cont", "read:0x90001/1<62 rip=0x100b"), ("mmio_movs_cont#2", "HLT rip=0x100e rcx=0x0 m2:0x6000=0x6261")]),
    (|a| a.ud2(), &[("ud2", "#UD@+0x0 rsp=0x7ffa")]),
    (|a| { a.xor(cx, cx)?; a.div(cx) }, &[("div0", "#DE@+0x2 rflags=0x46 m2:0x7ffe=0x46")]),
    (|a| { a.mov(cx, 0xffff)?; a.rdmsr() }, &[("rdmsr_unknown", "#GP@+0x3")]),
    (|a| a.int3(), &[("int3_plain", "#BP@+0x1")]),
];

fn steps(probe: &mut Probe<'_>) {
    for (code, runs) in STEPS {
        let machine = Machine::new(probe, Real);
        machine.load(probe, *code);
        for (case, want) in *runs {
            machine.case(probe, case, want);
        }
    }
    let machine = Machine::new(probe, Protected32);
    machine.load(probe, |a| a.ud2());
    let _ = machine.change_system(probe, |s| s.idt.limit = 0);
    machine.case(probe, "triple_pm", "SHUTDOWN rip=0x1000");
    for (case, want, capability, argument) in [
        ("usermsr_bad", "EINVAL", 188, 16),
        ("exit_emul", "0", 204, 1),
        ("exit_emul2", "EINVAL", 204, 2),
    ] {
        let got = machine.vm.enable(probe, capability, argument);
        probe.expect(case, want, got);
    }
}

fn read_only(probe: &mut Probe<'_>) {
    let machine = Machine::new(probe, Real);
    let page = probe.allocate(0x1000);
    probe.write(page, 0, &[0x42]);
    let backing = Some((page, 0));
    let slot = Slot {
        slot: 1,
        flags: 2,
        at: 0x9_0000,
        size: 0x1000,
        backing,
    };
    let _ = machine.vm.set_slot(probe, &slot);
    machine.load(probe, |a| {
        device(a)?;
        a.mov(al, byte_ptr(0))
    });
    machine.case(probe, "ro_read", "HLT rax=0x9042");
    machine.load(probe, |a| {
        device(a)?;
        a.mov(byte_ptr(0), 0x55)
    });
    machine.set_registers(probe, &[]);
    machine.case(probe, "ro_write", "write:0x90000/1=55 rip=0x100a");
    machine.case(probe, "ro_write_cont", "HLT rip=0x100b");
    let byte = probe.read_number(page, 0, 1);
    probe.check("ro_byte", "0x42", &format!("{byte:#x}"));
}

/// What other ioctls do between two runs of a guest that never ends.
fn while_running(probe: &mut Probe<'_>) {
    let machine = Machine::new(probe, Real);
    machine.load(probe, |a| a.db(&[0xeb, 0xfe]));
    let got = probe.run(machine.vcpu, 30);
    probe.expect("endless", "EINTR", got);
    let made = probe.create(machine.vm.vm, KVM_CREATE_VCPU, 1);
    probe.expect_fd("vcpu_after_a_run", "fd", made);
    let backing = Some((machine.memory, 0));
    let slot = Slot {
        slot: 7,
        flags: 0,
        at: 0x20_0000,
        size: 0x1000,
        backing,
    };
    let got = machine.vm.set_slot(probe, &slot);
    probe.expect("slot_after_a_run", "0", got);
    let got = probe.run(machine.vcpu, 30);
    probe.expect("endless_again", "EINTR", got);
    machine.case(probe, "endless_state", "rip=0x1000 run.exit_reason=0xa");
}
