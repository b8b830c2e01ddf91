//! What happens between instructions: traps, breakpoints, blocking, interrupts, HLT, INIT.

use vmx_model::arch::{Activity, Cr4, Interruptibility, Rflags, SegmentRegister};
use vmx_model::event::Exception;

use super::{CODE, STACKS, TARGET, World, sel};
use crate::Stop;
use crate::mode::Mode;

const NOP: u8 = 0x90;
const HLT: u8 = 0xf4;
const STI: u8 = 0xfb;
const MOV_SS_AX: [u8; 2] = [0x8e, 0xd0];

/// A processor at level 0 whose handlers of #DB (vector 1), NMI and vector 21H halt.
fn world(code: &[u8]) -> World {
    let mut world = World::protected(0, code);
    world.write(TARGET, &[HLT]);
    for vector in [1, 2, 0x21] {
        world.set_gate(vector, sel::CODE0, 0x8e);
    }
    world.cpu.gpr[0] = sel::DATA0.into();
    world
}

/// Runs into a handler: the interrupted RIP as offset from the code.
fn interrupted_at(world: &mut World) -> u64 {
    world.run_to_halt();
    assert_eq!(world.cpu.state.rip, TARGET + 1, "a handler ran");
    u64::from(world.doubleword(world.cpu.gpr[4])) - CODE
}

#[test]
fn single_step_traps_behind_each_instruction() {
    let mut w = world(&[NOP, NOP]);
    w.set_flags(Rflags::TF);
    assert_eq!(interrupted_at(&mut w), 1);
    assert_eq!(w.cpu.system.dr6 & 0xf00f, 0x4000);
    assert_eq!(w.doubleword(STACKS[0] - 4) & 0x100, 0x100);
}

#[test]
fn popf_that_sets_tf_traps_behind_the_next_instruction() {
    // PUSH 102H; POPFD; NOP; NOP
    let mut w = world(&[0x68, 2, 1, 0, 0, 0x9d, NOP, NOP]);
    assert_eq!(interrupted_at(&mut w), 7);
}

#[test]
fn popf_that_clears_tf_still_traps() {
    let mut w = world(&[0x9d, NOP]);
    w.write_doubleword(STACKS[0] - 4, 2);
    w.cpu.gpr[4] = STACKS[0] - 4;
    w.set_flags(Rflags::TF);
    assert_eq!(interrupted_at(&mut w), 1);
}

#[test]
fn a_software_interrupt_averts_its_single_step_trap() {
    let mut w = world(&[0xcd, 0x21]);
    w.set_flags(Rflags::TF);
    w.run_to_halt();
    assert_eq!(w.cpu.system.dr6 & 0x4000, 0, "no trap in the handler");
    assert_eq!(u64::from(w.doubleword(STACKS[0] - 12)), CODE + 2);
}

#[test]
fn mov_ss_delays_the_single_step_trap() {
    let code = [MOV_SS_AX.as_slice(), &[NOP, NOP]].concat();
    let mut w = world(&code);
    w.set_flags(Rflags::TF);
    assert_eq!(interrupted_at(&mut w), 3);
}

/// The trap behind MOV SS is suppressed, not kept for the handler that the next instruction enters.
#[test]
fn an_event_behind_mov_ss_loses_the_single_step_trap() {
    const INT1: u8 = 0xf1;
    for next in [&[INT1][..], &[0xcd, 0x21], &[0x0f, 0x0b]] {
        let mut w = world(&[MOV_SS_AX.as_slice(), next, &[NOP]].concat());
        w.set_gate(6, sel::CODE0, 0x8e);
        w.set_flags(Rflags::TF);
        let is_fault = next == [0x0f, 0x0b];
        let saved = 2 + if is_fault { 0 } else { next.len() as u64 };
        assert_eq!(interrupted_at(&mut w), saved, "{next:x?}");
        assert_eq!(w.cpu.system.dr6 & 0x4000, 0, "{next:x?}");
        assert_eq!(w.cpu.state.pending_debug, 0, "{next:x?}");
    }
}

/// MOV SS meets a data breakpoint: INT1 reports it, other software interrupts are entered first and
/// the trap comes in their handler.
#[test]
fn a_data_breakpoint_of_mov_ss_waits_for_the_next_instruction() {
    const MOV_SS_MEMORY: [u8; 6] = [0x8e, 0x15, 0, 0x60, 0, 0];
    for (next, saved) in [(&[0xf1][..], CODE + 7), (&[0xcd, 0x21], TARGET)] {
        let mut w = world(&[MOV_SS_MEMORY.as_slice(), next, &[NOP]].concat());
        w.write(0x6000, &sel::DATA0.to_le_bytes());
        w.cpu.system.breakpoints[0] = 0x6000;
        w.cpu.state.dr7 = 0x3_0401;
        assert_eq!(
            interrupted_at(&mut w).wrapping_add(CODE),
            saved,
            "{next:x?}"
        );
        assert_eq!(w.cpu.system.dr6 & 0x400f, 1, "{next:x?}");
        assert_eq!(w.cpu.state.pending_debug, 0, "{next:x?}");
    }
}

#[test]
fn sti_and_mov_ss_delay_interrupts_by_one_instruction() {
    let sti = [STI, NOP, NOP];
    let mov_ss = [MOV_SS_AX.as_slice(), &[NOP, NOP]].concat();
    // (code, IF before, offset of the interrupted instruction)
    let rows: [(&[u8], bool, u64); 3] = [(&sti, false, 2), (&sti, true, 0), (&mov_ss, true, 0)];
    for (code, enabled, expected) in rows {
        let mut w = world(code);
        if enabled {
            w.set_flags(Rflags::IF);
        }
        w.cpu.set_interrupt_line(Some(0x21));
        assert_eq!(interrupted_at(&mut w), expected, "{code:x?} {enabled}");
    }
    // Raised while MOV SS has just been executed: one more instruction.
    let mut w = world(&mov_ss);
    w.set_flags(Rflags::IF);
    assert_eq!(w.cpu.run(1), Stop::Budget);
    assert_eq!(
        w.cpu.arch_state().interruptibility,
        Interruptibility::MOV_SS
    );
    w.cpu.set_interrupt_line(Some(0x21));
    assert_eq!(interrupted_at(&mut w), 3);
}

#[test]
fn only_the_first_mov_ss_in_a_row_blocks() {
    let code = [MOV_SS_AX, MOV_SS_AX, MOV_SS_AX].concat();
    let mut w = world(&code);
    w.set_flags(Rflags::IF);
    assert_eq!(w.cpu.run(1), Stop::Budget);
    w.cpu.set_interrupt_line(Some(0x21));
    assert_eq!(interrupted_at(&mut w), 4);
}

#[test]
fn sti_hlt_sleeps_before_the_interrupt() {
    let mut w = world(&[STI, HLT, NOP]);
    w.cpu.set_interrupt_line(Some(0x21));
    assert_eq!(interrupted_at(&mut w), 2);
}

#[test]
fn events_wake_a_halted_processor() {
    let mut w = world(&[HLT, NOP]);
    w.run_to_halt();
    assert_eq!(w.cpu.state.rip, CODE + 1);
    w.cpu.set_interrupt_line(Some(0x21));
    assert_eq!(w.cpu.run(10), Stop::Halt, "IF is clear");
    assert_eq!(w.cpu.state.rip, CODE + 1);
    w.cpu.inject_nmi();
    assert_eq!(interrupted_at(&mut w), 1);
}

#[test]
fn an_nmi_goes_before_an_interrupt() {
    let mut w = world(&[NOP]);
    w.set_flags(Rflags::IF);
    w.cpu.inject_nmi();
    w.cpu.set_interrupt_line(Some(0x21));
    w.run_to_halt();
    assert!(w.cpu.state.interruptibility.contains(Interruptibility::NMI));
    assert_eq!(w.cpu.gpr[4], STACKS[0] - 12, "its handler has IF clear");
}

#[test]
fn hlt_is_privileged() {
    let mut w = World::protected(3, &[HLT]);
    assert_eq!(w.execute(), Err(Exception::gp(0)));
}

#[test]
fn cli_and_sti_obey_iopl_and_the_virtual_flags() {
    // (instruction, CPL, IOPL, CR4.PVI, VIP, outcome: the flag that is set afterwards)
    let none = Rflags::empty();
    let fault = Err(Exception::gp(0));
    let rows = [
        (STI, 0, 0, false, false, Ok(Rflags::IF)),
        (STI, 3, 3, false, false, Ok(Rflags::IF)),
        (STI, 3, 0, false, false, fault),
        (STI, 3, 0, true, false, Ok(Rflags::VIF)),
        (STI, 3, 0, true, true, fault),
        (0xfa, 0, 0, false, false, Ok(none)),
        (0xfa, 3, 0, false, false, fault),
        (0xfa, 3, 0, true, true, Ok(none)),
    ];
    for (code, cpl, iopl, pvi, vip, expected) in rows {
        let mut w = World::protected(cpl, &[code]);
        w.cpu.state.cr4.set(Cr4::PVI, pvi);
        let mut flags = Rflags::from_bits_retain(2 | iopl << 12);
        flags.set(Rflags::VIP, vip);
        w.cpu.set_rflags(flags);
        let result = w.execute();
        let result = result.map(|()| w.cpu.rflags() & (Rflags::IF | Rflags::VIF));
        assert_eq!(result, expected, "{code:x} {cpl} {iopl} {pvi} {vip}");
    }
}

#[test]
fn a_virtual_interrupt_that_is_pending_and_enabled_faults_at_the_boundary() {
    for (vme, flags, faults) in [
        (true, Rflags::VIF | Rflags::VIP, true),
        (true, Rflags::VIP, false),
        (true, Rflags::VIF, false),
        (false, Rflags::VIF | Rflags::VIP, false),
    ] {
        let mut w = World::virtual_8086(0, &[NOP, NOP]);
        w.set_gate(13, sel::CODE0, 0x8e);
        w.cpu.state.cr4.set(Cr4::VME, vme);
        w.set_flags(flags);
        assert_eq!(w.cpu.run(1), Stop::Budget);
        assert_eq!(w.cpu.mode() == Mode::Protected, faults, "{vme} {flags:?}");
    }
}

#[test]
fn code_breakpoints_fault_before_the_instruction_once() {
    let mut w = world(&[NOP, NOP, NOP]);
    w.cpu.system.breakpoints[1] = CODE + 1;
    w.cpu.state.dr7 = 0x408;
    assert_eq!(interrupted_at(&mut w), 1);
    assert_eq!(w.cpu.system.dr6 & 0xf, 2);
    assert_eq!(
        w.doubleword(STACKS[0] - 4) & 0x1_0000,
        0,
        "RF is the handler's task"
    );

    let mut w = world(&[NOP, NOP, HLT]);
    w.cpu.system.breakpoints[1] = CODE + 1;
    w.cpu.state.dr7 = 0x408;
    w.cpu.state.rip = CODE + 1;
    w.set_flags(Rflags::RF);
    w.run_to_halt();
    assert_eq!(w.cpu.state.rip, CODE + 3);
    assert!(
        !w.cpu.rflags().contains(Rflags::RF),
        "the instruction cleared RF"
    );
}

#[test]
fn data_breakpoints_trap_behind_the_access() {
    const STORE: [u8; 2] = [0x88, 0x03];
    const LOAD: [u8; 2] = [0x8a, 0x03];
    // (DR7, instruction, address of the access, what DR6 gets)
    let rows = [
        (0xd_0401, STORE, 0x6000, 1),
        (0xd_0401, STORE, 0x6003, 1),
        (0xd_0401, STORE, 0x6004, 0),
        (0xd_0401, LOAD, 0x6000, 0),
        (0xf_0402, LOAD, 0x6001, 1),
        (0xf_0400, LOAD, 0x6001, 0),
        (0x1_0401, STORE, 0x6000, 1),
        (0x1_0401, STORE, 0x6001, 0),
    ];
    for (dr7, instruction, address, expected) in rows {
        let code = [instruction.as_slice(), &[HLT]].concat();
        let mut w = world(&code);
        w.cpu.system.breakpoints[0] = 0x6000;
        w.cpu.state.dr7 = dr7;
        w.cpu.gpr[3] = address;
        w.run_to_halt();
        assert_eq!(w.cpu.system.dr6 & 0xf, expected, "{dr7:#x} {address:#x}");
        if expected != 0 {
            assert_eq!(u64::from(w.doubleword(STACKS[0] - 12)), CODE + 2);
        }
    }
}

#[test]
fn init_resets_and_an_application_processor_waits_for_its_start_up() {
    let mut w = world(&[NOP]);
    w.cpu.msrs.apic_base &= !0x100;
    w.cpu.signal_init();
    assert_eq!(w.cpu.run(10), Stop::Halt);
    assert_eq!(w.cpu.state.activity, Activity::WaitForSipi);
    w.write(0x1_2000, &[HLT]);
    w.cpu.signal_start_up(0x12);
    w.run_to_halt();
    let cs = w.segment(SegmentRegister::Cs);
    assert_eq!(
        (cs.selector, cs.base, w.cpu.state.rip),
        (0x1200, 0x1_2000, 1)
    );
}

#[test]
fn the_bootstrap_processor_starts_at_the_reset_vector() {
    let mut w = world(&[NOP]);
    w.cpu.signal_init();
    w.cpu.attend().expect("INIT raises nothing");
    assert_eq!(w.cpu.linear_rip().0, 0xffff_fff0);
    assert_eq!(w.cpu.state.activity, Activity::Active);
}

#[test]
fn endless_faults_use_up_the_budget() {
    // The handler of #UD is an undefined instruction in a stack that wraps.
    let mut w = World::real(&[0x0f, 0x0b]);
    w.write_word(6 * 4, CODE as u16);
    assert_eq!(w.cpu.run(1000), Stop::Budget);
    assert_eq!(w.cpu.retired(), 0);
}

#[test]
fn syscall_and_sysret_go_there_and_back() {
    // SYSCALL; at the entry point SYSRETQ.
    let mut w = World::long(3, &[0x0f, 0x05]);
    w.write(TARGET, &[0x48, 0x0f, 0x07]);
    w.cpu.msrs.star = 0x0013_0008_0000_0000;
    w.cpu.msrs.lstar = TARGET;
    w.cpu.msrs.fmask = Rflags::IF.bits();
    w.set_flags(Rflags::IF | Rflags::CF);
    w.execute().expect("SYSCALL");
    assert_eq!(w.cpu.cpl(), 0);
    assert_eq!(w.cpu.gpr[1], CODE + 2);
    assert_eq!(w.cpu.gpr[11], 0x203);
    assert_eq!(w.cpu.rflags().bits(), 3);
    assert_eq!(w.selector(SegmentRegister::Cs), 8);
    assert_eq!(w.selector(SegmentRegister::Ss), 0x10);
    w.cpu.gpr[1] = 0x8000_0000_0000;
    assert_eq!(w.execute(), Err(Exception::gp(0)));
    w.cpu.gpr[1] = CODE + 2;
    w.execute().expect("SYSRET");
    assert_eq!((w.cpu.cpl(), w.cpu.state.rip), (3, CODE + 2));
    assert_eq!(w.selector(SegmentRegister::Cs), 0x23);
    assert_eq!(w.selector(SegmentRegister::Ss), 0x1b);
    assert_eq!(w.cpu.rflags().bits(), 0x203);
}

#[test]
fn sysenter_and_sysexit_go_there_and_back() {
    let mut w = World::protected(3, &[0x0f, 0x34]);
    assert_eq!(w.execute(), Err(Exception::gp(0)), "no selector");
    w.write(TARGET, &[0x0f, 0x35]);
    w.cpu.state.sysenter_cs = 0x0b;
    w.cpu.state.sysenter_esp = 0x7000;
    w.cpu.state.sysenter_eip = TARGET;
    w.set_flags(Rflags::IF);
    w.execute().expect("SYSENTER");
    assert_eq!((w.cpu.cpl(), w.cpu.gpr[4]), (0, 0x7000));
    assert!(!w.cpu.rflags().contains(Rflags::IF));
    assert_eq!(w.selector(SegmentRegister::Cs), 8);
    assert_eq!(w.selector(SegmentRegister::Ss), 0x10);
    w.cpu.gpr[1] = 0xb000;
    w.cpu.gpr[2] = CODE;
    w.execute().expect("SYSEXIT");
    assert_eq!(
        (w.cpu.cpl(), w.cpu.gpr[4], w.cpu.state.rip),
        (3, 0xb000, CODE)
    );
    assert_eq!(w.selector(SegmentRegister::Cs), 0x1b);
    assert_eq!(w.selector(SegmentRegister::Ss), 0x23);
}

#[test]
fn swapgs_exchanges_the_bases() {
    let mut w = World::long(0, &[0x0f, 0x01, 0xf8]);
    w.cpu.msrs.kernel_gs_base = 0x1234;
    w.execute().expect("SWAPGS");
    assert_eq!(w.segment(SegmentRegister::Gs).base, 0x1234);
    assert_eq!(w.cpu.msrs.kernel_gs_base, 0);
    let mut w = World::long(3, &[0x0f, 0x01, 0xf8]);
    assert_eq!(w.execute(), Err(Exception::gp(0)));
}
