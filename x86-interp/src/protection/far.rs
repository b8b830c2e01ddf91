//! Far JMP and CALL: to code segments, through call gates, in every mode.

use vmx_model::arch::SegmentRegister;
use vmx_model::event::Exception;

use super::{CODE, GDT, STACKS, TARGET, TSS, World, descriptor, sel};

const JMP: u8 = 0xea;
const CALL: u8 = 0x9a;

/// JMP or CALL selector:TARGET, in 32-bit code.
fn direct(opcode: u8, selector: u16) -> Vec<u8> {
    let mut code = vec![opcode];
    code.extend((TARGET as u32).to_le_bytes());
    code.extend(selector.to_le_bytes());
    code
}

fn gp(code: u16) -> Result<u16, Exception> {
    Err(Exception::gp(code.into()))
}

fn np(code: u16) -> Result<u16, Exception> {
    Err(Exception::np(code.into()))
}

/// Name, opcode, CPL, selector, outcome.
type Row<'a> = (&'a str, u8, u8, u16, Result<u16, Exception>);

/// Each row ends in the new CS, or the exception.
fn check(rows: &[Row<'_>]) {
    for &(name, opcode, cpl, selector, expected) in rows {
        let mut world = World::protected(cpl, &direct(opcode, selector));
        let result = world.execute().map(|()| {
            assert_eq!(world.cpu.state.rip, TARGET, "{name}");
            world.selector(SegmentRegister::Cs)
        });
        assert_eq!(result, expected, "{name}");
        if let Ok(cs) = result {
            assert_eq!(u16::from(world.cpu.cpl()), cs & 3, "{name}");
        }
    }
}

#[test]
fn code_segments_are_checked() {
    use sel::*;
    for opcode in [JMP, CALL] {
        check(&[
            ("same level", opcode, 0, CODE0, Ok(CODE0)),
            ("same level from 3", opcode, 3, CODE3 | 3, Ok(CODE3 | 3)),
            ("RPL below CPL", opcode, 3, CODE3, Ok(CODE3 | 3)),
            (
                "conforming, inner",
                opcode,
                3,
                CONFORMING0 | 3,
                Ok(CONFORMING0 | 3),
            ),
            (
                "conforming, same",
                opcode,
                0,
                CONFORMING0 | 3,
                Ok(CONFORMING0),
            ),
            ("conforming, outer", opcode, 0, CONFORMING3, gp(CONFORMING3)),
            ("null", opcode, 0, 0, gp(0)),
            ("null with RPL", opcode, 0, 3, gp(0)),
            ("beyond", opcode, 0, BEYOND, gp(BEYOND)),
            ("LDT selector without LDT", opcode, 0, 0x0c, gp(0x0c)),
            ("data", opcode, 0, DATA0, gp(DATA0)),
            ("inner", opcode, 3, CODE0, gp(CODE0)),
            ("outer", opcode, 0, CODE3, gp(CODE3)),
            ("RPL above CPL", opcode, 0, CODE0 | 3, gp(CODE0)),
            ("absent", opcode, 0, ABSENT_CODE0, np(ABSENT_CODE0)),
            ("beyond the target's limit", opcode, 0, SMALL_CODE0, gp(0)),
            ("LDT descriptor", opcode, 0, LDT, gp(LDT)),
        ]);
    }
}

#[test]
fn call_gates_are_checked() {
    use sel::*;
    check(&[
        ("call inner", CALL, 3, GATE_TO_CODE0 | 3, Ok(CODE0)),
        ("call same", CALL, 0, GATE_TO_CODE0, Ok(CODE0)),
        ("jump same", JMP, 0, GATE_TO_CODE0, Ok(CODE0)),
        ("jump inner", JMP, 3, GATE_TO_CODE0, gp(CODE0)),
        (
            "call conforming",
            CALL,
            3,
            GATE_TO_CONFORMING,
            Ok(CONFORMING0 | 3),
        ),
        (
            "jump conforming",
            JMP,
            3,
            GATE_TO_CONFORMING,
            Ok(CONFORMING0 | 3),
        ),
        ("gate DPL below CPL", CALL, 3, GATE0, gp(GATE0)),
        ("gate DPL below RPL", CALL, 0, GATE0 | 3, gp(GATE0)),
        ("absent gate", CALL, 3, ABSENT_GATE, np(ABSENT_GATE)),
        ("gate to null", CALL, 3, GATE_TO_NULL, gp(0)),
        ("gate to data", CALL, 3, GATE_TO_DATA, gp(DATA0)),
        ("gate beyond", CALL, 3, GATE_TO_BEYOND, gp(BEYOND)),
        (
            "gate to absent code",
            CALL,
            3,
            GATE_TO_ABSENT,
            np(ABSENT_CODE0),
        ),
        ("16-bit gate", CALL, 3, GATE16, Ok(CODE0)),
    ]);
}

#[test]
fn a_call_pushes_its_return_address() {
    let mut world = World::protected(0, &direct(CALL, sel::CODE0));
    world.execute().expect("a good call");
    let top = world.cpu.gpr[4];
    assert_eq!(top, STACKS[0] - 8);
    assert_eq!(u64::from(world.doubleword(top)), CODE + 7);
    assert_eq!(world.doubleword(top + 4), u32::from(sel::CODE0));
}

#[test]
fn a_gate_to_an_inner_level_switches_the_stack_and_copies_parameters() {
    let mut world = World::protected(3, &direct(CALL, sel::GATE_TO_CODE0));
    let outer = STACKS[3] - 8;
    world.cpu.gpr[4] = outer;
    world.write_doubleword(outer, 0x1111);
    world.write_doubleword(outer + 4, 0x2222);
    world.execute().expect("a good call");
    let top = world.cpu.gpr[4];
    assert_eq!(top, STACKS[0] - 24);
    let frame: Vec<u32> = (0..6).map(|n| world.doubleword(top + 4 * n)).collect();
    let expected = [
        CODE as u32 + 7,
        u32::from(sel::CODE3 | 3),
        0x1111,
        0x2222,
        outer as u32,
        u32::from(sel::DATA3 | 3),
    ];
    assert_eq!(frame, expected);
    assert_eq!(world.selector(SegmentRegister::Ss), sel::DATA0);
}

#[test]
fn a_16_bit_gate_pushes_words() {
    let mut world = World::protected(3, &direct(CALL, sel::GATE16));
    world.write_word(STACKS[3] - 2, 0x7777);
    world.cpu.gpr[4] = STACKS[3] - 2;
    world.execute().expect("a good call");
    let top = world.cpu.gpr[4];
    assert_eq!(top, STACKS[0] - 10);
    let frame: Vec<u16> = (0..5).map(|n| world.word(top + 2 * n)).collect();
    let expected = [
        CODE as u16 + 7,
        sel::CODE3 | 3,
        0x7777,
        (STACKS[3] - 2) as u16,
        sel::DATA3 | 3,
    ];
    assert_eq!(frame, expected);
}

/// What is wrong with the inner stack is #TS, or #SS if it is absent or too small.
#[test]
fn the_inner_stack_is_checked() {
    let ts = |code: u16| Exception::ts(code.into());
    // (SS in the TSS, limit of the TSS, outcome)
    let rows = [
        (0, 0x67, ts(0)),
        (sel::BEYOND, 0x67, ts(sel::BEYOND)),
        (sel::DATA0 | 1, 0x67, ts(sel::DATA0)),
        (sel::DATA3, 0x67, ts(sel::DATA3)),
        (sel::READ_ONLY0, 0x67, ts(sel::READ_ONLY0)),
        (sel::CODE0, 0x67, ts(sel::CODE0)),
        (
            sel::ABSENT_DATA0,
            0x67,
            Exception::ss(sel::ABSENT_DATA0.into()),
        ),
        (sel::DATA0, 8, ts(sel::TSS_BUSY)),
    ];
    for (ss, limit, expected) in rows {
        let mut world = World::protected(3, &direct(CALL, sel::GATE_TO_CODE0));
        world.write_word(TSS + 8, ss);
        world.cpu.state.segment_mut(SegmentRegister::Tr).limit = limit;
        assert_eq!(world.execute(), Err(expected), "{ss:#x} {limit:#x}");
    }
    let mut world = World::protected(3, &direct(CALL, sel::GATE_TO_CODE0));
    let small = descriptor(0, 0x7ff0, 0x4093);
    world.write(GDT + u64::from(sel::DATA0), &small.to_le_bytes());
    assert_eq!(world.execute(), Err(Exception::ss(sel::DATA0.into())));
}

#[test]
fn a_stack_without_room_faults_before_the_transfer() {
    let mut world = World::protected(0, &direct(CALL, sel::CODE0));
    world.cpu.state.segment_mut(SegmentRegister::Ss).limit = 0xffff;
    world.cpu.gpr[4] = 0x1_0004;
    assert_eq!(world.execute(), Err(Exception::ss(0)));
}

#[test]
fn real_mode_loads_cs_by_its_selector() {
    // JMP 1234:5678; CALL 0123:0456.
    let mut world = World::real(&[JMP, 0x78, 0x56, 0x34, 0x12]);
    world.execute().expect("a good jump");
    let cs = world.segment(SegmentRegister::Cs);
    assert_eq!((cs.selector, cs.base), (0x1234, 0x1_2340));
    assert_eq!(world.cpu.state.rip, 0x5678);
    let mut world = World::real(&[CALL, 0x56, 0x04, 0x23, 0x01]);
    world.execute().expect("a good call");
    assert_eq!(world.word(STACKS[0] - 2), 0);
    assert_eq!(u64::from(world.word(STACKS[0] - 4)), CODE + 5);
    assert_eq!(world.cpu.gpr[4], STACKS[0] - 4);
}

#[test]
fn a_real_mode_jump_beyond_the_limit_faults() {
    // JMP 0000:00010000, 32-bit operand size.
    let mut world = World::real(&[0x66, JMP, 0, 0, 1, 0, 0, 0]);
    assert_eq!(world.execute(), Err(Exception::gp(0)));
}

#[test]
fn an_indirect_far_jump_reads_the_pointer_from_memory() {
    // JMP FAR [EAX]
    let mut world = World::protected(0, &[0xff, 0x28]);
    world.cpu.gpr[0] = 0x6000;
    world.write_doubleword(0x6000, TARGET as u32);
    world.write_word(0x6004, sel::CODE16);
    world.execute().expect("a good jump");
    assert_eq!(world.selector(SegmentRegister::Cs), sel::CODE16);
    assert_eq!(world.cpu.code_bits(), 16);
}

/// JMP FAR [RAX] in 64-bit mode.
#[test]
fn ia32e_mode_has_its_own_rules() {
    use sel::*;
    // (selector, offset, outcome)
    let rows: [(u16, u64, Result<u16, Exception>); 8] = [
        (CODE64, TARGET, Ok(CODE64)),
        (CODE0, TARGET, Ok(CODE0)),
        (CODE_L_AND_D, TARGET, gp(CODE_L_AND_D)),
        (SMALL_CODE0, 0x2000, gp(0)),
        (GATE64, 0, Ok(CODE64)),
        (TSS64_FREE, 0, gp(TSS64_FREE)),
        (TASK_GATE, 0, gp(TASK_GATE)),
        (GATE16, 0, gp(GATE16)),
    ];
    for (selector, offset, expected) in rows {
        let mut world = World::long(0, &[0xff, 0x28]);
        world.cpu.gpr[0] = 0x6000;
        world.write_doubleword(0x6000, offset as u32);
        world.write_word(0x6004, selector);
        let result = world
            .execute()
            .map(|()| world.selector(SegmentRegister::Cs));
        assert_eq!(result, expected, "{selector:#x}");
    }
}

#[test]
fn a_64_bit_gate_takes_the_stack_pointer_of_the_tss_and_a_null_ss() {
    let mut world = World::long(3, &[0xff, 0x18]);
    world.cpu.gpr[0] = 0x6000;
    world.write_word(0x6004, sel::GATE64 | 3);
    world.execute().expect("a good call");
    let top = world.cpu.gpr[4];
    assert_eq!(top, STACKS[0] - 32);
    let frame: Vec<u64> = (0..4).map(|n| world.quadword(top + 8 * n)).collect();
    let expected = [
        CODE + 2,
        u64::from(sel::CODE64_3 | 3),
        STACKS[3],
        u64::from(sel::DATA3 | 3),
    ];
    assert_eq!(frame, expected);
    assert_eq!(world.selector(SegmentRegister::Ss), 0);
    assert_eq!(world.cpu.cpl(), 0);
}

#[test]
fn a_64_bit_gate_needs_64_bit_code_and_a_canonical_target() {
    let mut world = World::long(0, &[0xff, 0x28]);
    world.cpu.gpr[0] = 0x6000;
    world.write_word(0x6004, sel::GATE64);
    world.write(GDT + u64::from(sel::GATE64) + 8, &0x8000_u64.to_le_bytes());
    assert_eq!(world.execute(), Err(Exception::gp(0)));
    world.write(GDT + u64::from(sel::GATE64) + 8, &[0; 8]);
    world.write_word(GDT + u64::from(sel::GATE64) + 2, sel::CODE0);
    assert_eq!(world.execute(), Err(Exception::gp(sel::CODE0.into())));
}
