//! Hardware task switches: checks, what is saved and loaded, links and busy bits.

use vmx_model::arch::{Cr0, Rflags, SegmentRegister};
use vmx_model::event::Exception;

use super::{CODE, GDT, IDT, OTHER_TSS, STACKS, TARGET, TSS, World, gate, sel};
use crate::fault::Fault;

const IRET: &[u8] = &[0xcf];
const INT: &[u8] = &[0xcd, 0x21];

/// JMP or CALL selector:0.
fn direct(opcode: u8, selector: u16) -> Vec<u8> {
    let mut code = vec![opcode, 0, 0, 0, 0];
    code.extend(selector.to_le_bytes());
    code
}

const JMP: u8 = 0xea;
const CALL: u8 = 0x9a;

/// The selectors of the new task: ES, CS, SS, DS, FS, GS, LDT.
type Selectors = [u16; 7];

const GOOD: Selectors = [sel::DATA0, sel::CODE0, sel::DATA0, sel::DATA0, 0, 0, 0];

/// Fills the 32-bit TSS of the new task.
fn fill(world: &mut World, selectors: Selectors, flags: u32) {
    world.write_doubleword(OTHER_TSS + 32, TARGET as u32);
    world.write_doubleword(OTHER_TSS + 36, flags);
    for n in 0..8 {
        world.write_doubleword(OTHER_TSS + 40 + 4 * n, 0x1111_1111 * n as u32);
    }
    world.write_doubleword(OTHER_TSS + 56, 0x7800);
    for (n, selector) in selectors.into_iter().enumerate() {
        world.write_doubleword(OTHER_TSS + 72 + 4 * n as u64, selector.into());
    }
}

fn is_busy(world: &World, selector: u16) -> bool {
    world.quadword(GDT + u64::from(selector)) >> 41 & 1 != 0
}

/// Who switches to the task of TSS_FREE: a program that executes `code`.
fn switching(code: &[u8]) -> World {
    let mut world = World::protected(0, code);
    fill(&mut world, GOOD, 0x2);
    let at = IDT + 0x21 * 8;
    world.write(at, &gate(sel::TSS_FREE, 0, 0x85, 0).to_le_bytes());
    world
}

/// SDM Vol. 3A, table "Effect of a Task Switch on Busy Flag, NT Flag, Previous Task Link Field,
/// and TS Flag".
#[test]
fn busy_bits_links_and_nt_follow_the_table() {
    let back = |world: &mut World| {
        // IRET goes back to the task that the current TSS links to.
        world.write_word(TSS, sel::TSS_FREE);
        let busy = 0x8b_u8;
        world.write(GDT + u64::from(sel::TSS_FREE) + 5, &[busy]);
        world.set_flags(Rflags::NT);
    };
    // (instruction, old stays busy, link is set, NT in the new task)
    let rows: [(Vec<u8>, bool, bool, bool); 5] = [
        (direct(JMP, sel::TSS_FREE), false, false, false),
        (direct(CALL, sel::TSS_FREE), true, true, true),
        (direct(JMP, sel::TASK_GATE), false, false, false),
        (INT.to_vec(), true, true, true),
        (IRET.to_vec(), false, false, false),
    ];
    for (code, old_busy, linked, nested) in rows {
        let mut world = switching(&code);
        if code == IRET {
            back(&mut world);
        }
        world.execute().expect("a good task");
        assert_eq!(is_busy(&world, sel::TSS_BUSY), old_busy, "{code:x?}");
        assert!(is_busy(&world, sel::TSS_FREE), "{code:x?}");
        let link = if linked { sel::TSS_BUSY } else { 0 };
        assert_eq!(world.word(OTHER_TSS), link, "{code:x?}");
        let flags = world.cpu.rflags();
        assert_eq!(flags.contains(Rflags::NT), nested, "{code:x?}");
        assert!(world.cpu.state.cr0.contains(Cr0::TS));
        assert_eq!(world.selector(SegmentRegister::Tr), sel::TSS_FREE);
        let saved = world.doubleword(TSS + 36);
        assert_eq!(
            saved & 0x4000,
            0,
            "{code:x?}: IRET clears NT in the old image"
        );
    }
}

#[test]
fn the_old_task_is_saved_and_the_new_one_loaded() {
    let mut world = switching(&direct(JMP, sel::TSS_FREE));
    for n in 0..8 {
        world.cpu.gpr[n] = 0xa0a0_0000 + n as u64;
    }
    world.cpu.gpr[4] = STACKS[0];
    world.cpu.state.dr7 = 0x455;
    world.execute().expect("a good task");
    assert_eq!(u64::from(world.doubleword(TSS + 32)), CODE + 7);
    assert_eq!(world.doubleword(TSS + 36), 2);
    assert_eq!(world.doubleword(TSS + 40), 0xa0a0_0000);
    assert_eq!(u64::from(world.doubleword(TSS + 56)), STACKS[0]);
    assert_eq!(world.word(TSS + 76), sel::CODE0);
    assert_eq!(world.word(TSS + 80), sel::DATA0);
    assert_eq!(world.cpu.state.rip, TARGET);
    assert_eq!(world.cpu.gpr[1], 0x1111_1111);
    assert_eq!(world.cpu.gpr[4], 0x7800);
    assert_eq!(world.cpu.gpr[7], 0x7777_7777);
    assert_eq!(world.cpu.state.dr7, 0x400, "local breakpoints are off");
    assert!(world.segment(SegmentRegister::Fs).access.is_unusable());
}

/// What is wrong with the TSS itself is a fault in the old task, which stays as it was.
#[test]
fn the_tss_is_checked_in_the_old_task() {
    use sel::*;
    let rows = [
        (TSS_BUSY, Exception::gp(TSS_BUSY.into())),
        (ABSENT_TSS, Exception::np(ABSENT_TSS.into())),
        (SHORT_TSS, Exception::ts(SHORT_TSS.into())),
        (TSS_FREE | 3, Exception::gp(TSS_FREE.into())),
    ];
    for (selector, expected) in rows {
        for opcode in [JMP, CALL] {
            let mut world = switching(&direct(opcode, selector));
            assert_eq!(world.execute(), Err(expected), "{selector:#x}");
            assert!(!is_busy(&world, TSS_FREE));
        }
    }
    let mut world = switching(IRET);
    world.set_flags(Rflags::NT);
    world.write_word(TSS, TSS_FREE);
    assert_eq!(
        world.execute(),
        Err(Exception::ts(TSS_FREE.into())),
        "not busy"
    );
    world.write_word(TSS, DATA0);
    assert_eq!(world.execute(), Err(Exception::ts(DATA0.into())));
    let mut world = World::protected(3, &direct(JMP, TSS_FREE));
    assert_eq!(world.execute(), Err(Exception::gp(TSS_FREE.into())), "DPL");
}

/// What is wrong with the segments is a fault in the new task.
#[test]
fn segments_are_checked_in_the_new_task() {
    use sel::*;
    let with = |n: usize, selector: u16| {
        let mut s = GOOD;
        s[n] = selector;
        s
    };
    let ts = |code: u16| Exception::ts(code.into());
    let np = |code: u16| Exception::np(code.into());
    const ES: usize = 0;
    const CS: usize = 1;
    const SS: usize = 2;
    const LDTR: usize = 6;
    let rows = [
        (with(LDTR, DATA0), ts(DATA0)),
        (with(LDTR, 4), ts(4)),
        (with(LDTR, ABSENT_LDT), ts(ABSENT_LDT)),
        (with(CS, 0), ts(0)),
        (with(CS, DATA0), ts(DATA0)),
        (with(CS, CODE3), ts(CODE3)),
        (with(CS, CONFORMING3), ts(CONFORMING3)),
        (with(CS, ABSENT_CODE0), np(ABSENT_CODE0)),
        (with(CS, BEYOND), ts(BEYOND)),
        (with(SS, 0), ts(0)),
        (with(SS, READ_ONLY0), ts(READ_ONLY0)),
        (with(SS, DATA3), ts(DATA3)),
        (with(SS, ABSENT_DATA0), Exception::ss(ABSENT_DATA0.into())),
        (with(ES, EXECUTE_ONLY0), ts(EXECUTE_ONLY0)),
        (with(ES, ABSENT_DATA0), np(ABSENT_DATA0)),
        (with(ES, DATA0 | 3), ts(DATA0)),
        (with(CS, SMALL_CODE0), Exception::gp(0)),
    ];
    for (selectors, expected) in rows {
        let mut world = switching(&direct(JMP, TSS_FREE));
        fill(&mut world, selectors, 2);
        let result = world.cpu.execute_plain();
        assert_eq!(result, Err(Fault::Exception(expected)), "{selectors:x?}");
        assert_eq!(world.cpu.state.rip, TARGET, "{selectors:x?}");
        assert_eq!(world.selector(SegmentRegister::Tr), TSS_FREE);
    }
}

#[test]
fn a_task_may_be_its_own_successor() {
    let mut world = switching(IRET);
    world.set_flags(Rflags::NT);
    world.write_word(TSS, sel::TSS_BUSY);
    world.cpu.gpr[3] = 0x1234;
    world.execute().expect("a busy task");
    assert_eq!(world.cpu.state.rip, CODE + 1);
    assert_eq!(world.cpu.gpr[3], 0x1234);
    assert!(!world.cpu.rflags().contains(Rflags::NT));
}

#[test]
fn a_task_at_an_outer_level_starts_there() {
    let mut world = switching(&direct(JMP, sel::TSS_FREE));
    let selectors = [
        sel::DATA3 | 3,
        sel::CODE3 | 3,
        sel::DATA3 | 3,
        sel::DATA3 | 3,
        0,
        0,
        sel::LDT,
    ];
    fill(&mut world, selectors, 0x202);
    world.execute().expect("a good task");
    assert_eq!(world.cpu.cpl(), 3);
    assert_eq!(world.selector(SegmentRegister::Ldtr), sel::LDT);
}

#[test]
fn a_task_in_virtual_8086_mode_takes_its_selectors_as_they_are() {
    let mut world = switching(&direct(JMP, sel::TSS_FREE));
    fill(
        &mut world,
        [0x1111, 0x2222, 0x3333, 0x4444, 1, 2, 0],
        0x2_0002,
    );
    world.execute().expect("a good task");
    assert_eq!(world.segment(SegmentRegister::Cs).base, 0x2_2220);
    assert_eq!(world.segment(SegmentRegister::Ss).access.0, 0xf3);
    assert_eq!(world.cpu.cpl(), 3);
}

#[test]
fn a_fault_through_a_task_gate_pushes_its_error_code_in_the_new_task() {
    let mut world = switching(&[]);
    world.write(IDT + 13 * 8, &gate(sel::TSS_FREE, 0, 0x85, 0).to_le_bytes());
    world.cpu.raise(Exception::gp(0x1234)).expect("a good task");
    assert_eq!(world.cpu.gpr[4], 0x7800 - 4);
    assert_eq!(world.doubleword(0x7800 - 4), 0x1234);
    assert_eq!(u64::from(world.doubleword(TSS + 32)), CODE);
}

#[test]
fn the_t_flag_traps_before_the_first_instruction() {
    let mut world = switching(&direct(JMP, sel::TSS_FREE));
    world.write_doubleword(OTHER_TSS + 100, 1);
    world.set_gate(1, sel::CODE0, 0x8e);
    world.execute().expect("a good task");
    world.cpu.attend().expect("a good handler");
    assert_eq!(world.cpu.system.dr6 & 0x8000, 0x8000);
    assert_eq!(u64::from(world.doubleword(0x7800 - 12)), TARGET);
}

#[test]
fn a_16_bit_tss_holds_words() {
    let mut world = switching(&direct(JMP, sel::TSS16_FREE));
    let words = [
        (14, TARGET as u16),
        (16, 2),
        (18, 0xaaaa),
        (26, 0x7800),
        (34, sel::DATA0),
        (36, sel::CODE0),
        (38, sel::DATA0),
        (40, sel::DATA0),
        (42, 0),
    ];
    for (offset, value) in words {
        world.write_word(OTHER_TSS + offset, value);
    }
    world.execute().expect("a good task");
    assert_eq!(world.cpu.gpr[0], 0xaaaa);
    assert_eq!(world.cpu.gpr[4], 0x7800);
    assert_eq!(world.cpu.state.rip, TARGET);
    assert!(world.segment(SegmentRegister::Gs).access.is_unusable());
}
