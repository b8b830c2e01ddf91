//! KVM_RUN beyond one exit: completion, signals, interrupts, debugging, registers in `kvm_run`
//! (api.rst, "KVM_RUN", "KVM_INTERRUPT", "KVM_SET_GUEST_DEBUG", "KVM_X86_SET_MSR_FILTER").

use crate::backend::{Argument, Bytes, Call, Outcome, Pointer, outcome_text};
use crate::cases::Script;
use crate::guest::Mode::{Long, Protected32, Real};
use crate::guest::{Code, Machine, Mode};
use crate::probe::{Probe, Words, hex};
use crate::requests::*;
use iced_x86::code_asm::*;

/// KVM_CAP_X86_USER_SPACE_MSR.
const USER_SPACE_MSR: u32 = 188;
/// Fields of `kvm_run`.
const REQUEST_WINDOW: u64 = 0;
const IMMEDIATE_EXIT: u64 = 1;
const EXIT_REASON: u64 = 8;
const CR8: u64 = 16;
const VALID_REGS: u64 = 288;
const DIRTY_REGS: u64 = 296;
const SYNC_RAX: u64 = 304;
const SYNC_RIP: u64 = 304 + 128;
const SYNC_CR0: u64 = 448 + 224;

/// A machine about to execute code.
fn machine(probe: &mut Probe<'_>, mode: Mode, code: Code) -> Machine {
    let machine = Machine::new(probe, mode);
    machine.load(probe, code);
    machine
}

fn run(probe: &mut Probe<'_>, machine: &Machine, case: &str, want: &str, limit_ms: u32) {
    let got = probe.run(machine.vcpu, limit_ms);
    probe.expect(case, want, got);
}

/// The parts, each with machines of its own.
pub(super) const PARTS: &[(&str, Script)] = &[
    ("run/entry", entry),
    ("run/completion", completion),
    ("run/interrupts", interrupts),
    ("run/nmi", non_maskable),
    ("run/msrs", msr_exits),
    ("run/cpuid", cpuid),
    ("run/debugging", debugging),
    ("run/sync", sync_registers),
    ("run/failures", failures),
    ("run/code", code_changes),
    ("run/vcpus", several_vcpus),
    ("run/threads", two_threads),
    ("run/backing", no_backing),
];

fn entry(probe: &mut Probe<'_>) {
    let m = machine(probe, Real, |a| a.hlt());
    let got = probe.value(m.vcpu, KVM_RUN, 1);
    probe.expect("arg1", "EINVAL", got);
    m.case(
        probe,
        "hlt",
        "HLT rip=0x1001 run.if_flag=0x0 run.ready=0x0 run.flags=0x0",
    );
    m.case(probe, "hlt2", "HLT rip=0x1002");
    m.load(probe, |a| a.db(&[0xeb, 0xfe]));
    m.set_registers(probe, &[]);
    run(probe, &m, "signal", "EINTR", 60);
    m.case(probe, "signal_state", "run.exit_reason=0xa rip=0x1000");
    let everything_open = Words::sized(12).u32(0, 8);
    let _ = probe.send(m.vcpu, KVM_SET_SIGNAL_MASK, everything_open);
    let (got, is_pending) = probe.run_with_pending(m.vcpu, 500);
    probe.expect("sigmask_unblocks", "EINTR", got);
    probe.check("sigmask_still_pending", "true", &is_pending.to_string());
    let _ = probe.value(m.vcpu, KVM_SET_SIGNAL_MASK, 0);
    m.set_run(probe, IMMEDIATE_EXIT, &[1]);
    m.set_run(probe, EXIT_REASON, &[0x55]);
    run(probe, &m, "immediate", "EINTR", 1000);
    m.case(
        probe,
        "immediate_state",
        "run.exit_reason=0x55 run.immediate_exit=0x1 rip=0x1000",
    );
}

fn completion(probe: &mut Probe<'_>) {
    let m = machine(probe, Real, |a| a.in_(al, 0x60));
    m.case(probe, "in_al", "in:0x60/1<3c rip=0x1000");
    m.set_run(probe, IMMEDIATE_EXIT, &[1]);
    run(probe, &m, "immediate_completes_io", "EINTR", 1000);
    m.case(probe, "immediate_completes_io_state", "rip=0x1002 rax=0x3c");
    let m = machine(probe, Real, |a| {
        a.mov(ax, 0x9000)?;
        a.mov(ds, ax)?;
        a.mov(al, byte_ptr(0x20))
    });
    m.case(probe, "mmio_r8", "read:0x90020/1<4d rip=0x1005");
    m.set_run(probe, IMMEDIATE_EXIT, &[1]);
    run(probe, &m, "immediate_completes_mmio", "EINTR", 1000);
    m.case(probe, "immediate_completes_mmio_state", "rax=0x904d");
    let m = machine(probe, Real, |a| {
        a.mov(al, 0x5a)?;
        a.out(0x7e, al)
    });
    m.case(probe, "out_7e", "out:0x7e/1=5a rip=0x1004 HLT rip=0x1005");
    m.load(probe, |a| {
        a.mov(al, 0x5a)?;
        a.out(0x10, al)
    });
    m.set_registers(probe, &[]);
    m.case(probe, "out_imm8", "out:0x10/1=5a rip=0x1002 HLT");
}

/// The memory behind a slot is gone, before and after a guest has used it.
fn no_backing(probe: &mut Probe<'_>) {
    let m = machine(probe, Real, |a| a.mov(byte_ptr(0x5000), 7));
    probe.unmap(m.memory);
    run(probe, &m, "backing_unmapped", "EFAULT", 1000);
    let m = machine(probe, Real, |a| a.mov(byte_ptr(0x5000), 7));
    m.case(probe, "backing_used", "HLT m1:0x5000=0x7");
    m.set_registers(probe, &[]);
    probe.unmap(m.memory);
    run(probe, &m, "backing_unmapped_later", "EFAULT", 1000);
}

fn interrupts(probe: &mut Probe<'_>) {
    let m = machine(probe, Real, |a| {
        a.sti()?;
        a.nop()?;
        a.nop()
    });
    let got = m.interrupt(probe, 0x20);
    probe.expect("inject_queued", "0", got);
    m.set_registers(probe, &[("rflags", 0x202)]);
    m.case(
        probe,
        "inject_if1",
        "INT(0x20)@+0x0 m2:0x7ffe=0x202 rflags=0x2",
    );
    m.set_registers(probe, &[]);
    let _ = m.interrupt(probe, 0x20);
    m.case(probe, "inject_if0", "FAIL_ENTRY(0x80000021)");
    let m = machine(probe, Real, |a| {
        a.in_(al, 0x60)?;
        a.sti()?;
        a.inc(bx)?;
        a.inc(bx)
    });
    m.case(
        probe,
        "rfi_cli",
        "in:0x60/1<00 run.if_flag=0x0 run.ready=0x0",
    );
    m.set_run(probe, REQUEST_WINDOW, &[1]);
    let want = "IRQ_WINDOW_OPEN rbx=0x1 run.if_flag=0x1 run.ready=0x1";
    m.case(probe, "irqwin", want);
    let got = m.interrupt(probe, 0x21);
    probe.expect("irqwin_inject", "0", got);
    m.set_run(probe, REQUEST_WINDOW, &[0]);
    m.case(probe, "irqwin_delivered", "INT(0x21)@+0x4 rbx=0x1");
    let m = machine(probe, Real, |a| {
        a.mov(ax, ss)?;
        a.sti()?;
        a.mov(ss, ax)?;
        a.inc(bx)
    });
    m.set_run(probe, REQUEST_WINDOW, &[1]);
    m.case(probe, "mov_ss_shadow", "IRQ_WINDOW_OPEN rbx=0x1");
    let m = machine(probe, Long, |a| a.nop());
    m.set_registers(probe, &[("rflags", 0x202)]);
    let _ = m.interrupt(probe, 0x80);
    m.case(
        probe,
        "inject_long",
        "INT(0x80)@+0x0 rsp=0x7fd8 m8:0x7ff8=0x10",
    );
}

fn non_maskable(probe: &mut Probe<'_>) {
    let m = machine(probe, Real, |a| a.nop());
    let _ = probe.value(m.vcpu, KVM_NMI, 0);
    m.case(probe, "nmi", "#NMI@+0x0 events.nmi.masked=0x1");
    let _ = probe.value(m.vcpu, KVM_NMI, 0);
    m.poke(probe, 0x4011, &[0xcf, 0xf4]);
    // The handler's IRET opens the door for the second one.
    m.case(probe, "nmi_after_iret", "#NMI@+0x0 events.nmi.pending=0x0");
    let m = machine(probe, Protected32, |a| {
        a.sti()?;
        a.nop()
    });
    let _ = probe.value(m.vcpu, KVM_NMI, 0);
    m.case(probe, "nmi_protected", "#NMI@+0x0 rflags=0x2");
}

fn msr_exits(probe: &mut Probe<'_>) {
    let m = machine(probe, Protected32, |a| {
        a.mov(ecx, 0x1234_5678)?;
        a.rdmsr()?;
        a.wrmsr()
    });
    let got = m.vm.enable(probe, USER_SPACE_MSR, 7);
    probe.expect("usermsr", "0", got);
    let want = "rdmsr:0x12345678/2<8877665544332211 wrmsr:0x12345678/2=1122334455667788<! \
                #GP(0x0)@+0x7 rax=0x55667788 rdx=0x11223344";
    m.case(probe, "usermsr_rd", want);
    usermsr_steps(probe, &m);
    let bitmap = probe.allocate(4096);
    // One range: read and write of 8 MSRs from IA32_PAT on, none allowed.
    let range = Words::sized(392).u32(8, 3).u32(12, 8).u32(16, 0x277);
    let pointers = [Pointer {
        offset: 24,
        memory: bitmap,
        at: 0,
    }];
    let got = probe.send_pointers(m.vm.vm, KVM_X86_SET_MSR_FILTER, range, &pointers);
    probe.expect("filter", "0", got);
    m.load(probe, |a| {
        a.mov(ecx, 0x277)?;
        a.rdmsr()
    });
    m.set_registers(probe, &[]);
    m.case(
        probe,
        "filter_rd",
        "rdmsr:0x277/4<5500000000000000 HLT rax=0x55 rdx=0x0",
    );
    m.set_registers(probe, &[("rax", 0x1111), ("rdx", 0x2222)]);
    let want = "rdmsr:0x277/4<5566778811223344 HLT rax=0x88776655 rdx=0x44332211";
    m.case(probe, "filter_rd_cont", want);
    m.set_registers(probe, &[]);
    m.case(probe, "filter_rd_refused", "rdmsr:0x277/4<! #GP(0x0)@+0x5");
    let plain = Words::sized(392);
    let rows = [
        ("filter_flags", "EINVAL", plain.clone().u32(0, 2)),
        ("filter_empty_deny", "EINVAL", plain.clone().u32(0, 1)),
        ("filter_empty", "0", plain.clone()),
        (
            "filter_rflags4",
            "EINVAL",
            plain.clone().u32(8, 4).u32(12, 8),
        ),
        ("filter_rflags0", "EINVAL", plain.clone().u32(12, 8)),
        (
            "filter_big",
            "EINVAL",
            plain.clone().u32(8, 1).u32(12, 0x600 * 8 + 1),
        ),
        (
            "filter_fault",
            "EFAULT",
            plain.u32(8, 1).u32(12, 8).u64(24, 8),
        ),
    ];
    for (case, want, filter) in rows {
        let got = probe.send(m.vm.vm, KVM_X86_SET_MSR_FILTER, filter);
        probe.expect(case, want, got);
    }
    let got = probe.value(m.vm.vm, KVM_X86_SET_MSR_FILTER, 0);
    probe.expect("filter_null", "EFAULT", got);
    m.set_registers(probe, &[]);
    m.case(probe, "filter_off", "HLT rax=0x70406");
}

/// Each way in which user space answers for an MSR, by itself.
fn usermsr_steps(probe: &mut Probe<'_>, m: &Machine) {
    m.load(probe, |a| {
        a.mov(ecx, 0x1234_5678)?;
        a.rdmsr()
    });
    m.set_registers(probe, &[]);
    let want = "rdmsr:0x12345678/2<8877665544332211 HLT rax=0x55667788 rdx=0x11223344";
    m.case(probe, "usermsr_rd_cont", want);
    m.load(probe, |a| {
        a.mov(ecx, 0x1234_5678)?;
        a.mov(eax, 0xaa)?;
        a.mov(edx, 0xbb)?;
        a.wrmsr()
    });
    m.set_registers(probe, &[]);
    let want = "wrmsr:0x12345678/2=bb000000aa HLT rax=0xaa";
    m.case(probe, "usermsr_wr", want);
    m.set_registers(probe, &[]);
    let want = "wrmsr:0x12345678/2=bb000000aa<! #GP(0x0)@+0xf rax=0xaa";
    m.case(probe, "usermsr_wr_err", want);
}

/// `kvm_cpuid2` of entries of a function and EAX to EDX.
fn cpuid_table(entries: &[(u32, [u32; 4])]) -> Words {
    let mut words = Words::sized(8 + 40 * entries.len()).u32(0, entries.len() as u32);
    for (index, (function, values)) in entries.iter().enumerate() {
        let at = 8 + 40 * index;
        words.put(at, 4, (*function).into());
        for (register, value) in values.iter().enumerate() {
            words.put(at + 12 + 4 * register, 4, (*value).into());
        }
    }
    words
}

fn cpuid(probe: &mut Probe<'_>) {
    const INTEL: [u32; 4] = [2, 0x756e_6547, 0x6c65_746e, 0x4965_6e69];
    const AMD: [u32; 4] = [2, 0x6874_7541, 0x444d_4163, 0x6974_6e65];
    let leaf_2 = (2, [0x22, 0x33, 0, 0]);
    let m = machine(probe, Real, |a| a.cpuid());
    let intel = cpuid_table(&[(0, INTEL), leaf_2, (0x4000_0000, [0x77, 0, 0, 0])]);
    let got = probe.send(m.vcpu, KVM_SET_CPUID2, intel.clone());
    probe.expect("cpuid_set", "0", got);
    for (case, leaf, want) in [
        ("cpuid_2", 2, "HLT rax=0x22 rbx=0x33"),
        ("cpuid_9", 9, "HLT rax=0x22 rbx=0x33"),
        ("cpuid_hv", 0x4000_0000, "HLT rax=0x77 rbx=0x0"),
        ("cpuid_hv1", 0x4000_0001, "HLT rax=0x22"),
        ("cpuid_ext", 0x8000_0000, "HLT rax=0x22"),
    ] {
        m.set_registers(probe, &[("rax", leaf)]);
        m.case(probe, case, want);
    }
    let got = probe.send(m.vcpu, KVM_SET_CPUID2, intel);
    probe.expect("cpuid_after_run_same_nol1", "0", got);
    let changed = (2, [0x23, 0x33, 0, 0]);
    let leaf_hv = (0x4000_0000, [0x77, 0, 0, 0]);
    let other = cpuid_table(&[(0, INTEL), changed, leaf_hv]);
    let got = probe.send(m.vcpu, KVM_SET_CPUID2, other);
    probe.expect("cpuid_after_run_diff_nol1", "EINVAL", got);
    let got = probe.send(m.vcpu, KVM_SET_CPUID2, cpuid_table(&[(0, INTEL), leaf_2]));
    probe.expect("cpuid_after_run_fewer", "EINVAL", got);
    let leaf_1 = |version: u32| (1, [version, 0x100_0000, 0, 0]);
    let m = machine(probe, Real, |a| a.cpuid());
    let table = cpuid_table(&[(0, INTEL), leaf_1(0x1234), leaf_2]);
    let _ = probe.send(m.vcpu, KVM_SET_CPUID2, table);
    m.set_registers(probe, &[("rax", 1)]);
    m.case(probe, "cpuid_1", "HLT rax=0x1234 rbx=0x1000000");
    let table = cpuid_table(&[(0, INTEL), leaf_1(1), leaf_2]);
    let got = probe.send(m.vcpu, KVM_SET_CPUID2, table);
    probe.expect("cpuid_after_run_diff", "EINVAL", got);
    let m = machine(probe, Real, |a| a.cpuid());
    let _ = probe.send(m.vcpu, KVM_SET_CPUID2, cpuid_table(&[(0, AMD), leaf_2]));
    m.set_registers(probe, &[("rax", 9)]);
    m.case(probe, "cpuid_9_amd", "HLT rax=0x0 rbx=0x0");
}

/// KVM_SET_GUEST_DEBUG with these bits and breakpoint registers 0 and 7.
fn guest_debug(probe: &mut Probe<'_>, m: &Machine, control: u32, address: u64, enable: u64) {
    let debug = Words::sized(72)
        .u32(0, control)
        .u64(8, address)
        .u64(8 + 56, enable);
    let _ = probe.send(m.vcpu, KVM_SET_GUEST_DEBUG, debug);
}

fn debugging(probe: &mut Probe<'_>) {
    let m = machine(probe, Real, |a| {
        a.nop()?;
        a.nop()?;
        a.nop()
    });
    guest_debug(probe, &m, 3, 0, 0);
    m.case(probe, "step1", "DEBUG(1)@+0x1/0xffff4ff0 rip=0x1001");
    m.case(probe, "step2", "DEBUG(1)@+0x2/0xffff4ff0 rip=0x1002");
    m.case(probe, "step_dr7", "run.dr7=0x400");
    guest_debug(probe, &m, 0, 0, 0);
    m.case(probe, "step_off", "HLT rip=0x1004 rflags=0x2");
    let m = machine(probe, Protected32, |a| {
        a.nop()?;
        a.int3()?;
        a.nop()
    });
    guest_debug(probe, &m, 0x1_0001, 0, 0);
    m.case(probe, "swbp", "DEBUG(3)@+0x1/0xffff0ff0 rip=0x1001");
    guest_debug(probe, &m, 0, 0, 0);
    m.case(probe, "swbp_off", "#BP@+0x2");
    let m = machine(probe, Protected32, |a| {
        a.nop()?;
        a.nop()?;
        a.nop()
    });
    guest_debug(probe, &m, 0x2_0001, 0x1001, 0x402);
    m.case(probe, "hwbp", "DEBUG(1)@+0x1/0xffff0ff1 rip=0x1001");
    let m = machine(probe, Long, |a| {
        a.mov(byte_ptr(0x5000), 1)?;
        a.nop()
    });
    guest_debug(probe, &m, 0x2_0001, 0x5000, 0x1_0402);
    m.case(
        probe,
        "watchpoint",
        "DEBUG(1)@+0x8/0xffff0ff1 m1:0x5000=0x1",
    );
    let m = machine(probe, Real, |a| {
        a.mov(cx, 3)?;
        a.rep().stosb()?;
        a.nop()
    });
    guest_debug(probe, &m, 3, 0, 0);
    let want = "DEBUG(1)@+0x3/0xffff4ff0 DEBUG(1)@+0x3/0xffff4ff0 rcx=0x2 \
                DEBUG(1)@+0x3/0xffff4ff0 rcx=0x1 DEBUG(1)@+0x5/0xffff4ff0 rcx=0x0";
    m.case(probe, "step_rep", want);
}

fn sync_registers(probe: &mut Probe<'_>) {
    let m = machine(probe, Real, |a| a.mov(al, 0x42));
    m.set_run(probe, VALID_REGS, &[8]);
    run(probe, &m, "sync_badvalid", "EINVAL", 1000);
    m.set_run(probe, VALID_REGS, &[0]);
    m.set_run(probe, DIRTY_REGS, &[8]);
    run(probe, &m, "sync_baddirty", "EINVAL", 1000);
    m.set_run(probe, DIRTY_REGS, &[0]);
    m.set_run(probe, VALID_REGS, &[7]);
    let want = "HLT run.sync.rip=0x1003 run.sync.rax=0x42 run.sync.cr0=0x60000010";
    m.case(probe, "sync_valid", want);
    m.set_run(probe, SYNC_RIP, &0x1000_u64.to_le_bytes());
    m.set_run(probe, SYNC_RAX, &0x1100_u64.to_le_bytes());
    m.set_run(probe, DIRTY_REGS, &[1]);
    m.case(probe, "sync_dirty", "HLT rax=0x1142 run.dirty_regs=0x0");
    m.set_run(probe, SYNC_CR0, &0x8000_0000_u64.to_le_bytes());
    m.set_run(probe, DIRTY_REGS, &[3]);
    run(probe, &m, "sync_bad_sregs", "EINVAL", 1000);
    m.case(probe, "sync_bad_sregs_state", "run.dirty_regs=0x2");
    let m = machine(probe, Real, |_| Ok(()));
    m.set_run(probe, CR8, &[16]);
    run(probe, &m, "cr8_bad", "EINVAL", 1000);
    m.set_run(probe, CR8, &[5]);
    m.case(probe, "cr8_5", "HLT run.cr8=0x5 cr8=0x5");
    let m = machine(probe, Real, |_| Ok(()));
    m.case(probe, "apic_base_in_run", "HLT run.apic_base=0xfee00900");
}

fn failures(probe: &mut Probe<'_>) {
    let m = machine(probe, Real, |a| a.nop());
    let _ = m.vm.enable(probe, 218, 1);
    let mut events: kvm_bindings::kvm_vcpu_events = probe.read_struct(m.vcpu, KVM_GET_VCPU_EVENTS);
    (events.flags, events.triple_fault.pending) = (events.flags | 0x20, 1);
    let _ = probe.set(m.vcpu, KVM_SET_VCPU_EVENTS, &events);
    m.case(probe, "triple_event", "SHUTDOWN rip=0x1000");
    m.case(probe, "triple_event_again", "HLT rip=0x1002");
    let m = machine(probe, Real, |a| a.db(&[0xea, 0, 0, 0, 0x90]));
    m.case(
        probe,
        "fetch_nomem",
        "INTERNAL_ERROR(1) run.ndata=0x6 rip=0x0",
    );
    let m = Machine::bare(probe);
    m.set_registers(probe, &[("rip", 0xfff0)]);
    m.case(probe, "reset_vector_nomem", "INTERNAL_ERROR(1) rip=0xfff0");
    let m = machine(probe, Protected32, |a| a.nop());
    m.set_registers(probe, &[("rflags", 0x2_8002 | 1 << 63)]);
    m.case(probe, "bad_rflags", "FAIL_ENTRY(0x80000021)");
    let m = machine(probe, Long, |a| a.nop());
    let _ = m.change_system(probe, |s| s.tr.type_ = 3);
    m.case(probe, "bad_tr", "FAIL_ENTRY(0x80000021)");
}

/// Code that somebody else changes: the VMM between two runs, another vCPU, another slot.
fn code_changes(probe: &mut Probe<'_>) {
    let m = machine(probe, Protected32, |a| a.mov(al, 1));
    m.case(probe, "smc_vmm_before", "HLT rax=0x1");
    m.poke(probe, 0x1001, &[9]);
    m.set_registers(probe, &[]);
    m.case(probe, "smc_vmm", "HLT rax=0x9");
    let other = m.another(probe, 1);
    other.load_at(probe, 0x2000, |a| a.mov(byte_ptr(0x1001), 0x33));
    other.set_registers(probe, &[("rip", 0x2000)]);
    other.case(probe, "smc_vcpu_writer", "HLT rip=0x2008");
    m.set_registers(probe, &[]);
    m.case(probe, "smc_vcpu", "HLT rax=0x33");
    let page = probe.allocate(0x1000);
    probe.write(page, 0, &[0xb0, 0x77, 0xf4]);
    let slot = crate::guest::machine::Slot {
        slot: 1,
        at: 0x9_0000,
        size: 0x1000,
        backing: Some((page, 0)),
        ..Default::default()
    };
    let _ = m.vm.set_slot(probe, &slot);
    m.set_registers(probe, &[("rip", 0x9_0000)]);
    m.case(probe, "code_in_a_new_slot", "HLT rax=0x77");
    let again = probe.allocate(0x1000);
    probe.write(again, 0, &[0xb0, 0x78, 0xf4]);
    let _ = m.vm.set_slot(
        probe,
        &crate::guest::machine::Slot {
            size: 0,
            backing: None,
            ..slot
        },
    );
    let with = crate::guest::machine::Slot {
        backing: Some((again, 0)),
        ..slot
    };
    let _ = m.vm.set_slot(probe, &with);
    m.set_registers(probe, &[("rip", 0x9_0000)]);
    m.case(probe, "code_in_a_replaced_slot", "HLT rax=0x78");
}

fn several_vcpus(probe: &mut Probe<'_>) {
    let m = machine(probe, Protected32, |a| {
        a.mov(ecx, 1000)?;
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.lock().inc(dword_ptr(0x5000))?;
        a.dec(ecx)?;
        a.jnz(top)
    });
    let others: Vec<Machine> = (1..3).map(|id| m.another(probe, id)).collect();
    let vcpus = [m.vcpu, others[0].vcpu, others[1].vcpu];
    let outcomes = probe.run_together(&vcpus, 5000);
    let texts: Vec<String> = outcomes.into_iter().map(outcome_text).collect();
    probe.check("three_vcpus", "0 0 0", &texts.join(" "));
    m.case(probe, "three_vcpus_sum", "m4:0x5000=0xbb8");
    let m = machine(probe, Protected32, |a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.cmp(dword_ptr(0x5000), 0)?;
        a.je(top)?;
        a.mov(dword_ptr(0x5004), 5)
    });
    let other = m.another(probe, 1);
    other.load_at(probe, 0x2000, |a| {
        let mut top = a.create_label();
        a.mov(dword_ptr(0x5000), 1)?;
        a.set_label(&mut top)?;
        a.cmp(dword_ptr(0x5004), 5)?;
        a.jne(top)
    });
    other.set_registers(probe, &[("rip", 0x2000)]);
    let outcomes = probe.run_together(&[m.vcpu, other.vcpu], 5000);
    let texts: Vec<String> = outcomes.into_iter().map(outcome_text).collect();
    probe.check("two_vcpus_talk", "0 0", &texts.join(" "));
    let bytes = probe.read(m.memory, 0x5000, 8);
    probe.check("two_vcpus_memory", "0100000005000000", &hex(&bytes));
}

/// The second KVM_RUN of one vCPU waits for the first.
fn two_threads(probe: &mut Probe<'_>) {
    let m = machine(probe, Protected32, |a| a.db(&[0xeb, 0xfe]));
    let outcomes: Vec<Outcome> = probe.run_together(&[m.vcpu, m.vcpu], 100);
    let texts: Vec<String> = outcomes.into_iter().map(outcome_text).collect();
    probe.check("two_threads", "EINTR EINTR", &texts.join(" "));
    while_running(probe, &m);
}

/// What another thread may do while a vCPU runs an endless loop.
fn while_running(probe: &mut Probe<'_>, m: &Machine) {
    let got = probe.create_while((m.vcpu, 60), m.vm.vm, KVM_CREATE_VCPU, 1);
    let _ = probe.expect_fd("vmioctl_while_running", "fd", got);
    let memory = probe.allocate(0x1000);
    let region = Words::sized(32).u32(0, 7).u64(8, 0x20_0000).u64(16, 0x1000);
    let pointer = Pointer {
        offset: 24,
        memory,
        at: 0,
    };
    let argument = Argument::Pointers(Bytes(region.into()), vec![pointer]);
    let call = Call::Ioctl(m.vm.vm, KVM_SET_USER_MEMORY_REGION, argument);
    let (got, _) = probe.run_while(m.vcpu, 60, call);
    probe.expect("mem_while_running", "0", got);
    let call = Call::Write(m.run, IMMEDIATE_EXIT, Bytes(vec![1]));
    let (_, run) = probe.run_while(m.vcpu, 60, call);
    probe.expect("imm_while_running", "EINTR", run);
    // The signal has ended it: `immediate_exit` alone leaves the reason as it was.
    m.case(probe, "imm_while_running_state", "run.exit_reason=0xa");
}
