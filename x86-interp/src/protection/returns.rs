//! RET far and IRET: to the same and to an outer level, to and from virtual-8086 mode, in 64-bit
//! mode.

use vmx_model::arch::{Cr4, Interruptibility, Rflags, SegmentRegister};
use vmx_model::event::Exception;

use super::{STACKS, TARGET, World, sel};

const RETF: &[u8] = &[0xcb];
const IRET: &[u8] = &[0xcf];
const IRETQ: &[u8] = &[0x48, 0xcf];

fn gp(code: u16) -> Result<u16, Exception> {
    Err(Exception::gp(code.into()))
}

/// Puts doublewords below the top of the stack of the current level, the first one lowest.
fn push_all(world: &mut World, values: &[u32]) {
    let top = world.cpu.gpr[4] - 4 * values.len() as u64;
    for (n, value) in values.iter().enumerate() {
        world.write_doubleword(top + 4 * n as u64, *value);
    }
    world.cpu.gpr[4] = top;
}

/// What RETF and IRET check alike, at level `cpl`: CS, and SS for a return to an outer level.
#[test]
fn selectors_are_checked() {
    use sel::*;
    let np = |code: u16| Err(Exception::np(code.into()));
    let ss = |code: u16| Err(Exception::ss(code.into()));
    // (name, CPL, CS, SS, outcome)
    type Row<'a> = (&'a str, u8, u16, u16, Result<u16, Exception>);
    let rows: [Row<'_>; 21] = [
        ("same", 0, CODE0, 0, Ok(CODE0)),
        ("same, 3", 3, CODE3 | 3, 0, Ok(CODE3 | 3)),
        ("outer", 0, CODE3 | 3, DATA3 | 3, Ok(CODE3 | 3)),
        (
            "conforming outer",
            0,
            CONFORMING0 | 3,
            DATA3 | 3,
            Ok(CONFORMING0 | 3),
        ),
        ("null", 0, 0, 0, gp(0)),
        ("beyond", 0, BEYOND, 0, gp(BEYOND)),
        ("data", 0, DATA0, 0, gp(DATA0)),
        ("gate", 0, GATE0, 0, gp(GATE0)),
        ("inner", 3, CODE0, 0, gp(CODE0)),
        ("DPL below RPL", 0, CODE0 | 3, DATA3 | 3, gp(CODE0)),
        ("DPL above RPL", 0, CODE3, 0, gp(CODE3)),
        (
            "conforming DPL above RPL",
            0,
            CONFORMING3,
            0,
            gp(CONFORMING3),
        ),
        ("absent", 0, ABSENT_CODE0, 0, np(ABSENT_CODE0)),
        (
            "absent outer",
            0,
            ABSENT_CODE3 | 3,
            DATA3 | 3,
            np(ABSENT_CODE3),
        ),
        ("beyond the limit of CS", 0, SMALL_CODE0, 0, gp(0)),
        ("null SS", 0, CODE3 | 3, 0, gp(0)),
        ("SS beyond", 0, CODE3 | 3, BEYOND | 3, gp(BEYOND)),
        ("SS RPL", 0, CODE3 | 3, DATA3, gp(DATA3)),
        ("SS DPL", 0, CODE3 | 3, DATA0 | 3, gp(DATA0)),
        ("SS is code", 0, CODE3 | 3, CODE3 | 3, gp(CODE3)),
        (
            "SS absent",
            0,
            CODE3 | 3,
            ABSENT_DATA3 | 3,
            ss(ABSENT_DATA3),
        ),
    ];
    for (name, cpl, cs, stack, expected) in rows {
        for code in [RETF, IRET] {
            let mut world = World::protected(cpl, code);
            let (ip, cs, stack) = (TARGET as u32, u32::from(cs), u32::from(stack));
            if code == RETF {
                push_all(&mut world, &[ip, cs, 0xb000, stack]);
            } else {
                push_all(&mut world, &[ip, cs, 0x202, 0xb000, stack]);
            }
            let result = world
                .execute()
                .map(|()| world.selector(SegmentRegister::Cs));
            assert_eq!(result, expected, "{name} {code:x?}");
            if let Ok(cs) = result {
                assert_eq!(u16::from(world.cpu.cpl()), cs & 3, "{name}");
                assert_eq!(world.cpu.state.rip, TARGET, "{name}");
            }
        }
    }
}

#[test]
fn a_far_return_releases_the_parameters_of_both_stacks() {
    // RETF 8
    let mut world = World::protected(0, &[0xca, 8, 0]);
    let frame = [
        TARGET as u32,
        u32::from(sel::CODE3 | 3),
        1,
        2,
        STACKS[3] as u32 - 8,
        u32::from(sel::DATA3 | 3),
    ];
    push_all(&mut world, &frame);
    world.execute().expect("a good return");
    assert_eq!(world.cpu.gpr[4], STACKS[3]);
    let mut world = World::protected(0, &[0xca, 8, 0]);
    push_all(&mut world, &[TARGET as u32, u32::from(sel::CODE0), 1, 2]);
    world.execute().expect("a good return");
    assert_eq!(world.cpu.gpr[4], STACKS[0]);
}

#[test]
fn a_return_outward_drops_segments_of_the_inner_level() {
    for code in [RETF, IRET] {
        let mut world = World::protected(0, code);
        world.cpu.state.segment_mut(SegmentRegister::Es).access.0 |= 0x60;
        world.cpu.state.segment_mut(SegmentRegister::Fs).access.0 = 0xc09f;
        world.cpu.state.segment_mut(SegmentRegister::Gs).base = 0x40_0000;
        let mut frame = vec![TARGET as u32, u32::from(sel::CODE3 | 3)];
        if code == IRET {
            frame.push(0x202);
        }
        frame.extend([STACKS[3] as u32, u32::from(sel::DATA3 | 3)]);
        push_all(&mut world, &frame);
        world.execute().expect("a good return");
        for (register, stays) in [
            (SegmentRegister::Ds, false),
            (SegmentRegister::Es, true),
            (SegmentRegister::Fs, true),
            (SegmentRegister::Gs, false),
        ] {
            let access = world.segment(register).access;
            assert_eq!(!access.is_unusable(), stays, "{register:?} {code:x?}");
        }
        let gs = world.segment(SegmentRegister::Gs);
        assert_eq!((gs.selector, gs.base), (0, 0x40_0000));
    }
}

#[test]
fn flags_are_loaded_by_privilege() {
    let all = 0x3f_7fd7 & !(1 << 17);
    // (CPL, IOPL, flags after an image of all ones without VM)
    let rows = [
        (0, 0, all),
        (3, 3, all & !(3 << 19)),
        (3, 0, all & !(3 << 19) & !(1 << 9) & !(3 << 12)),
    ];
    for (cpl, iopl, expected) in rows {
        let mut world = World::protected(cpl, IRET);
        world.set_flags(Rflags::from_bits_retain(iopl << 12));
        let cs = if cpl == 0 { sel::CODE0 } else { sel::CODE3 | 3 };
        push_all(&mut world, &[TARGET as u32, cs.into(), !(1 << 17)]);
        world.execute().expect("a good return");
        assert_eq!(world.cpu.rflags().bits(), expected, "{cpl} {iopl}");
    }
}

#[test]
fn a_16_bit_iret_keeps_the_upper_flags() {
    let mut world = World::protected(0, &[0x66, 0xcf]);
    world.set_flags(Rflags::AC | Rflags::ID);
    let top = STACKS[0] - 6;
    world.write_word(top, TARGET as u16);
    world.write_word(top + 2, sel::CODE0);
    world.write_word(top + 4, 0x0001);
    world.cpu.gpr[4] = top;
    world.execute().expect("a good return");
    let expected = Rflags::AC | Rflags::ID | Rflags::CF | Rflags::FIXED1;
    assert_eq!(world.cpu.rflags(), expected);
}

#[test]
fn iret_enters_virtual_8086_mode_from_level_0_only() {
    let frame = [
        0x1234, 0x2000, 0x2_0202, 0x4_5678, 0x1111, 0x2222, 0x3333, 0x4444, 0x5555,
    ];
    let mut world = World::protected(0, IRET);
    push_all(&mut world, &frame);
    world.execute().expect("a good return");
    assert!(world.cpu.rflags().contains(Rflags::VM));
    assert_eq!(world.cpu.cpl(), 3);
    assert_eq!(world.cpu.state.rip, 0x1234);
    assert_eq!(world.cpu.gpr[4], 0x4_5678);
    let selectors: Vec<u16> = world.cpu.state.segments[..6]
        .iter()
        .map(|s| s.selector)
        .collect();
    assert_eq!(selectors, [0x2222, 0x2000, 0x1111, 0x3333, 0x4444, 0x5555]);
    assert!(
        world.cpu.state.segments[..6]
            .iter()
            .all(|s| s.access.0 == 0xf3)
    );

    let mut world = World::protected(0, IRET);
    push_all(&mut world, &[0x1_0000, 0x2000, 0x2_0202, 0, 0, 0, 0, 0, 0]);
    assert_eq!(world.execute(), Err(Exception::gp(0)), "EIP above FFFFH");

    let mut world = World::protected(3, IRET);
    push_all(
        &mut world,
        &[TARGET as u32, u32::from(sel::CODE3 | 3), 0x2_0202],
    );
    world.execute().expect("VM is ignored");
    assert!(!world.cpu.rflags().contains(Rflags::VM));
}

#[test]
fn iret_in_virtual_8086_mode_needs_iopl_3_or_vme() {
    let frame = |world: &mut World, flags: u16| {
        world.write_word(0xb000 - 6, 0x1234);
        world.write_word(0xb000 - 4, 0x2000);
        world.write_word(0xb000 - 2, flags);
        world.cpu.gpr[4] = 0xb000 - 6;
    };
    let mut world = World::virtual_8086(3, IRET);
    frame(&mut world, 0x0200);
    world.execute().expect("IOPL 3");
    let flags = world.cpu.rflags();
    assert!(flags.contains(Rflags::IF | Rflags::VM | Rflags::IOPL));
    assert_eq!(world.segment(SegmentRegister::Cs).base, 0x2_0000);

    let mut world = World::virtual_8086(0, IRET);
    frame(&mut world, 0x0200);
    assert_eq!(world.execute(), Err(Exception::gp(0)), "IOPL 0");
    world.cpu.state.cr4 |= Cr4::VME;
    world.execute().expect("VME");
    let flags = world.cpu.rflags();
    assert!(flags.contains(Rflags::VIF) && !flags.contains(Rflags::IF));

    for (vip, image) in [(true, 0x0200), (false, 0x0100)] {
        let mut world = World::virtual_8086(0, IRET);
        world.cpu.state.cr4 |= Cr4::VME;
        if vip {
            world.set_flags(Rflags::VIP);
        }
        frame(&mut world, image);
        assert_eq!(world.execute(), Err(Exception::gp(0)), "{vip} {image:#x}");
    }
}

#[test]
fn iretq_always_pops_the_stack() {
    use sel::*;
    // (CS, SS, RIP, outcome)
    let rows: [(u16, u16, u64, Result<u16, Exception>); 8] = [
        (CODE64, 0, TARGET, Ok(CODE64)),
        (CODE3 | 3, DATA3 | 3, TARGET | 1 << 63, Ok(CODE3 | 3)),
        (CODE64, DATA0, TARGET, Ok(CODE64)),
        (CODE64_3 | 3, DATA3 | 3, TARGET, Ok(CODE64_3 | 3)),
        (CODE3 | 3, DATA3 | 3, TARGET, Ok(CODE3 | 3)),
        (CODE64_3 | 3, 3, TARGET, gp(0)),
        (CODE0, 0, TARGET, gp(0)),
        (CODE64, 0, 0x8000_0000_0000, gp(0)),
    ];
    for (cs, ss, rip, expected) in rows {
        let mut world = World::long(0, IRETQ);
        let top = STACKS[0] - 40;
        let frame = [rip, cs.into(), 0x202, 0x7770, ss.into()];
        for (n, value) in frame.into_iter().enumerate() {
            world.write(top + 8 * n as u64, &value.to_le_bytes());
        }
        world.cpu.gpr[4] = top;
        let result = world
            .execute()
            .map(|()| world.selector(SegmentRegister::Cs));
        assert_eq!(result, expected, "{cs:#x} {ss:#x} {rip:#x}");
        if result.is_ok() {
            assert_eq!(world.cpu.gpr[4], 0x7770);
            assert_eq!(world.selector(SegmentRegister::Ss), ss);
        }
    }
}

#[test]
fn every_iret_of_64_bit_mode_pops_the_stack_and_none_of_compatibility_mode_needs_to() {
    // IRETD in 64-bit mode.
    let mut world = World::long(0, IRET);
    push_all(
        &mut world,
        &[TARGET as u32, sel::CODE64.into(), 2, 0x7770, 0],
    );
    world.execute().expect("a good return");
    assert_eq!(world.cpu.gpr[4], 0x7770);
    assert_eq!(world.selector(SegmentRegister::Ss), 0);
    // The same in compatibility mode.
    let mut world = World::long(0, IRET);
    let mut state = world.cpu.arch_state();
    state.segment_mut(SegmentRegister::Cs).access.0 = 0xc09b;
    world.cpu.set_arch_state(&state);
    push_all(
        &mut world,
        &[TARGET as u32, sel::CODE64.into(), 2, 0x7770, 0],
    );
    world.execute().expect("a good return");
    assert_eq!(world.cpu.gpr[4], STACKS[0] - 8);
    assert_eq!(world.selector(SegmentRegister::Ss), sel::DATA0);
}

#[test]
fn nested_tasks_do_not_exist_in_ia32e_mode() {
    let mut world = World::long(0, IRETQ);
    world.set_flags(Rflags::NT);
    assert_eq!(world.execute(), Err(Exception::gp(0)));
}

#[test]
fn iret_ends_the_blocking_of_nmis_even_if_it_faults() {
    for (cs, faults) in [(sel::CODE0, false), (sel::BEYOND, true)] {
        let mut world = World::protected(0, IRET);
        world.cpu.state.interruptibility = Interruptibility::NMI;
        push_all(&mut world, &[TARGET as u32, cs.into(), 2]);
        assert_eq!(world.cpu.execute_plain().is_err(), faults);
        assert_eq!(world.cpu.state.interruptibility, Interruptibility::empty());
        assert_eq!(world.cpu.events.is_nmi_unblocked, faults);
    }
}

#[test]
fn a_return_to_a_16_bit_stack_keeps_the_upper_half_of_the_stack_pointer() {
    let mut world = World::protected(0, IRET);
    let frame = [
        TARGET as u32,
        u32::from(sel::CODE3 | 3),
        2,
        0x1234_5678,
        u32::from(sel::DATA3_16 | 3),
    ];
    world.cpu.gpr[4] = 0x1_9000;
    push_all(&mut world, &frame);
    world.execute().expect("a good return");
    assert_eq!(world.cpu.gpr[4], 0x1_5678);
}

#[test]
fn real_mode_returns_load_cs_by_its_selector() {
    for (code, size) in [(RETF, 4), (IRET, 6)] {
        let mut world = World::real(code);
        let top = STACKS[0] - size;
        world.write_word(top, 0x5678);
        world.write_word(top + 2, 0x1234);
        world.write_word(top + 4, 0x0ed7);
        world.cpu.gpr[4] = top;
        world.execute().expect("a good return");
        assert_eq!(world.segment(SegmentRegister::Cs).base, 0x1_2340);
        assert_eq!(world.cpu.state.rip, 0x5678);
        assert_eq!(world.cpu.gpr[4], STACKS[0]);
        let expected = if code == IRET { 0x0ed7 } else { 2 };
        assert_eq!(world.cpu.rflags().bits(), expected);
    }
}
