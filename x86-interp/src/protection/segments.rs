//! Loading segment registers, and the instructions that look at descriptors.

use vmx_model::arch::{AccessRights, Cr4, Rflags, SegmentRegister};
use vmx_model::event::Exception;

use super::{GDT, LDT, STACKS, World, descriptor, sel};

/// MOV DS, AX; MOV SS, AX; LLDT AX; LTR AX.
const MOV_DS: &[u8] = &[0x8e, 0xd8];
const MOV_SS: &[u8] = &[0x8e, 0xd0];
const LLDT: &[u8] = &[0x0f, 0x00, 0xd0];
const LTR: &[u8] = &[0x0f, 0x00, 0xd8];

/// Name, instruction, CPL, selector in AX, outcome.
type Row<'a> = (&'a str, &'a [u8], u8, u16, Result<(), Exception>);

fn gp(code: u16) -> Result<(), Exception> {
    Err(Exception::gp(code.into()))
}

fn np(code: u16) -> Result<(), Exception> {
    Err(Exception::np(code.into()))
}

fn ss(code: u16) -> Result<(), Exception> {
    Err(Exception::ss(code.into()))
}

fn check(rows: &[Row<'_>]) {
    for &(name, code, cpl, selector, expected) in rows {
        let mut world = World::protected(cpl, code);
        world.cpu.gpr[0] = selector.into();
        assert_eq!(world.execute(), expected, "{name}");
    }
}

#[test]
fn data_segments_are_checked() {
    use sel::*;
    check(&[
        ("null", MOV_DS, 0, 0, Ok(())),
        ("null with RPL 3", MOV_DS, 3, 3, Ok(())),
        ("data", MOV_DS, 0, DATA0, Ok(())),
        ("read-only data", MOV_DS, 0, READ_ONLY0, Ok(())),
        ("readable code", MOV_DS, 0, CODE0, Ok(())),
        (
            "conforming code of level 0 from 3",
            MOV_DS,
            3,
            CONFORMING0 | 3,
            Ok(()),
        ),
        ("outer data", MOV_DS, 0, DATA3, Ok(())),
        ("beyond the limit", MOV_DS, 0, BEYOND, gp(BEYOND)),
        ("beyond, with RPL", MOV_DS, 0, BEYOND | 3, gp(BEYOND)),
        ("LDT selector without LDT", MOV_DS, 0, 4, gp(4)),
        (
            "execute-only code",
            MOV_DS,
            0,
            EXECUTE_ONLY0,
            gp(EXECUTE_ONLY0),
        ),
        ("system segment", MOV_DS, 0, TSS_FREE, gp(TSS_FREE)),
        ("RPL above DPL", MOV_DS, 0, DATA0 | 3, gp(DATA0)),
        ("CPL above DPL", MOV_DS, 3, DATA0, gp(DATA0)),
        ("code with RPL above DPL", MOV_DS, 0, CODE0 | 1, gp(CODE0)),
        ("absent", MOV_DS, 0, ABSENT_DATA0, np(ABSENT_DATA0)),
        (
            "absent and unreachable",
            MOV_DS,
            3,
            ABSENT_DATA0,
            gp(ABSENT_DATA0),
        ),
    ]);
}

#[test]
fn stack_segments_are_checked() {
    use sel::*;
    check(&[
        ("data", MOV_SS, 0, DATA0, Ok(())),
        ("data of level 3", MOV_SS, 3, DATA3 | 3, Ok(())),
        ("null", MOV_SS, 0, 0, gp(0)),
        ("beyond the limit", MOV_SS, 0, BEYOND, gp(BEYOND)),
        ("RPL is not CPL", MOV_SS, 0, DATA0 | 1, gp(DATA0)),
        ("DPL is not CPL", MOV_SS, 0, DATA3, gp(DATA3)),
        ("RPL below CPL", MOV_SS, 3, DATA3, gp(DATA3)),
        ("read-only", MOV_SS, 0, READ_ONLY0, gp(READ_ONLY0)),
        ("code", MOV_SS, 0, CODE0, gp(CODE0)),
        ("absent", MOV_SS, 0, ABSENT_DATA0, ss(ABSENT_DATA0)),
    ]);
}

#[test]
fn ldtr_and_tr_are_checked() {
    use sel::*;
    check(&[
        ("LLDT", LLDT, 0, LDT, Ok(())),
        ("LLDT null", LLDT, 0, 0, Ok(())),
        ("LLDT at level 3", LLDT, 3, LDT, gp(0)),
        ("LLDT of data", LLDT, 0, DATA0, gp(DATA0)),
        ("LLDT of a TSS", LLDT, 0, TSS_FREE, gp(TSS_FREE)),
        ("LLDT from the LDT", LLDT, 0, 4, gp(4)),
        ("LLDT beyond", LLDT, 0, BEYOND, gp(BEYOND)),
        ("LLDT absent", LLDT, 0, ABSENT_LDT, np(ABSENT_LDT)),
        ("LTR", LTR, 0, TSS_FREE, Ok(())),
        ("LTR of 16 bits", LTR, 0, TSS16_FREE, Ok(())),
        ("LTR null", LTR, 0, 0, gp(0)),
        ("LTR at level 3", LTR, 3, TSS_FREE, gp(0)),
        ("LTR busy", LTR, 0, TSS_BUSY, gp(TSS_BUSY)),
        ("LTR of an LDT", LTR, 0, LDT, gp(LDT)),
        ("LTR from the LDT", LTR, 0, 0x0c, gp(0x0c)),
        ("LTR absent", LTR, 0, ABSENT_TSS, np(ABSENT_TSS)),
    ]);
}

#[test]
fn a_loaded_segment_has_the_descriptors_contents_and_is_marked_accessed() {
    let mut world = World::protected(0, MOV_DS);
    world.cpu.gpr[0] = sel::FRESH_DATA0.into();
    world.execute().expect("a good segment");
    let ds = world.segment(SegmentRegister::Ds);
    assert_eq!((ds.base, ds.limit), (0x1234, 0xfff));
    assert_eq!(ds.access, AccessRights(0x4093));
    assert_eq!(
        world.quadword(GDT + 0xf0) >> 40 & 1,
        1,
        "accessed in memory"
    );
}

#[test]
fn ltr_marks_the_tss_busy() {
    let mut world = World::protected(0, LTR);
    world.cpu.gpr[0] = sel::TSS_FREE.into();
    world.execute().expect("a free TSS");
    assert_eq!(world.segment(SegmentRegister::Tr).access.0, 0x8b);
    assert_eq!(world.quadword(GDT + 0x58) >> 40 & 0xf, 0xb);
}

#[test]
fn ltr_of_ia32e_mode_takes_a_64_bit_base() {
    let mut world = World::long(0, LTR);
    world.write(GDT + 0x148, &0xffff_8000_u64.to_le_bytes());
    world.cpu.gpr[0] = sel::TSS64_FREE.into();
    world.execute().expect("a free TSS");
    let tr = world.segment(SegmentRegister::Tr);
    assert_eq!(tr.base, 0xffff_8000_0000_5800);
}

#[test]
fn ltr_of_ia32e_mode_refuses_a_type_in_the_upper_half_and_a_base_that_is_not_canonical() {
    for upper in [0x0000_0100_0000_0000_u64, 0x0000_0000_0100_0000] {
        let mut world = World::long(0, LTR);
        world.write(GDT + 0x148, &upper.to_le_bytes());
        world.cpu.gpr[0] = sel::TSS64_FREE.into();
        assert_eq!(world.execute(), gp(sel::TSS64_FREE), "{upper:#x}");
    }
}

#[test]
fn segments_of_the_ldt_are_loaded() {
    let code = [LLDT, MOV_DS].concat();
    let mut world = World::protected(0, &code);
    world.write(LDT + 0x18, &descriptor(0x4000, 0x123, 0x93).to_le_bytes());
    world.cpu.gpr[0] = sel::LDT.into();
    world.execute().expect("a good LDT");
    world.cpu.gpr[0] = 0x1c;
    world.execute().expect("a good segment");
    assert_eq!(world.segment(SegmentRegister::Ds).base, 0x4000);
    // The limit of the LDT is 1FH.
    world.cpu.state.rip -= 2;
    world.cpu.gpr[0] = 0x24;
    assert_eq!(world.execute(), gp(0x24));
}

#[test]
fn null_stack_segments_exist_in_64_bit_mode_below_level_3() {
    // (CPL, selector, outcome)
    let rows = [(0, 0, Ok(())), (0, 1, gp(0)), (3, 3, gp(0)), (3, 0, gp(0))];
    for (cpl, selector, expected) in rows {
        let mut world = World::long(cpl, MOV_SS);
        world.cpu.gpr[0] = selector;
        assert_eq!(world.execute(), expected, "{cpl} {selector}");
        assert_eq!(world.cpu.cpl(), cpl);
    }
}

#[test]
fn mov_to_cs_is_undefined() {
    let mut world = World::protected(0, &[0x8e, 0xc8]);
    assert_eq!(world.execute(), Err(Exception::UD));
}

#[test]
fn real_mode_changes_the_base_and_keeps_the_limit() {
    let mut world = World::real(MOV_DS);
    let mut state = world.cpu.arch_state();
    state.segment_mut(SegmentRegister::Ds).limit = u32::MAX;
    world.cpu.set_arch_state(&state);
    world.cpu.gpr[0] = 0x1234;
    world.execute().expect("no checks in real-address mode");
    let ds = world.segment(SegmentRegister::Ds);
    assert_eq!((ds.base, ds.limit), (0x1_2340, u32::MAX));
}

#[test]
fn virtual_8086_mode_sets_the_whole_segment() {
    let mut world = World::virtual_8086(0, MOV_SS);
    world.cpu.gpr[0] = 0xffff;
    world.execute().expect("no checks in virtual-8086 mode");
    let ss = world.segment(SegmentRegister::Ss);
    assert_eq!((ss.base, ss.limit, ss.access.0), (0xf_fff0, 0xffff, 0xf3));
}

#[test]
fn pop_of_a_segment_moves_the_pointer_only_if_it_succeeds() {
    let mut world = World::protected(0, &[0x1f]);
    let top = STACKS[0] - 4;
    world.cpu.gpr[4] = top;
    world.write_doubleword(top, u32::from(sel::BEYOND));
    assert_eq!(world.execute(), gp(sel::BEYOND));
    assert_eq!(world.cpu.gpr[4], top);
    world.write_doubleword(top, 0xdead_0000 | u32::from(sel::DATA3));
    world.execute().expect("a good segment");
    assert_eq!(world.selector(SegmentRegister::Ds), sel::DATA3);
    assert_eq!(world.cpu.gpr[4], STACKS[0]);
}

#[test]
fn far_pointers_load_register_and_segment_together() {
    // LES EBX, [EAX]
    let mut world = World::protected(0, &[0xc4, 0x18]);
    world.cpu.gpr[0] = 0x6000;
    world.write_doubleword(0x6000, 0x1234_5678);
    world.write_word(0x6004, sel::BEYOND);
    assert_eq!(world.execute(), gp(sel::BEYOND));
    world.write_word(0x6004, sel::DATA3);
    world.execute().expect("a good pointer");
    assert_eq!(world.cpu.gpr[3], 0x1234_5678);
    assert_eq!(world.selector(SegmentRegister::Es), sel::DATA3);
}

/// LAR EBX, EAX; LSL EBX, EAX; VERR AX; VERW AX.
#[test]
fn descriptors_are_looked_at_without_faults() {
    use sel::*;
    const LAR: &[u8] = &[0x0f, 0x02, 0xd8];
    const LSL: &[u8] = &[0x0f, 0x03, 0xd8];
    const VERR: &[u8] = &[0x0f, 0x00, 0xe0];
    const VERW: &[u8] = &[0x0f, 0x00, 0xe8];
    // (instruction, CPL, selector, EBX if ZF is set)
    let rows: &[(&[u8], u8, u16, Option<u64>)] = &[
        (LAR, 0, CODE0, Some(0x00cf_9b00)),
        (LAR, 0, 0, None),
        (LAR, 0, BEYOND, None),
        (LAR, 3, DATA0, None),
        (LAR, 3, DATA3, Some(0x00cf_f300)),
        (LAR, 3, CONFORMING0, Some(0x00cf_9f00)),
        (LAR, 0, DATA0 | 3, None),
        (LAR, 0, TSS_FREE, Some(0x8900)),
        (LAR, 0, GATE0, Some(0x8c00)),
        (LAR, 0, TASK_GATE, Some(0xe500)),
        (LSL, 0, CODE0, Some(0xffff_ffff)),
        (LSL, 0, FRESH_DATA0, Some(0xfff)),
        (LSL, 0, TSS_FREE, Some(0x67)),
        (LSL, 0, LDT, Some(0x1f)),
        (LSL, 0, GATE0, None),
        (LSL, 3, DATA0, None),
        (VERR, 0, DATA0, Some(0)),
        (VERR, 0, EXECUTE_ONLY0, None),
        (VERR, 3, DATA0, None),
        (VERR, 3, CONFORMING0, Some(0)),
        (VERR, 0, TSS_FREE, None),
        (VERW, 0, DATA0, Some(0)),
        (VERW, 0, READ_ONLY0, None),
        (VERW, 0, CODE0, None),
        (VERW, 3, DATA3 | 3, Some(0)),
    ];
    for &(code, cpl, selector, expected) in rows {
        let mut world = World::protected(cpl, code);
        world.cpu.gpr[0] = selector.into();
        world.execute().expect("no fault");
        let found = world.cpu.rflags().contains(Rflags::ZF);
        let result = found.then_some(world.cpu.gpr[3]);
        assert_eq!(result, expected, "{code:x?} {cpl} {selector:#x}");
    }
}

#[test]
fn arpl_raises_the_rpl() {
    // ARPL CX, AX: (destination, source, result, ZF)
    let rows = [
        (0x10, 0x03, 0x13, true),
        (0x12, 0x02, 0x12, false),
        (0x13, 0x01, 0x13, false),
        (0x11, 0x02, 0x12, true),
    ];
    for (destination, source, result, zero) in rows {
        let mut world = World::protected(3, &[0x63, 0xc1]);
        world.cpu.gpr[1] = destination;
        world.cpu.gpr[0] = source;
        world.execute().expect("no fault");
        assert_eq!(world.cpu.gpr[1], result);
        assert_eq!(world.cpu.rflags().contains(Rflags::ZF), zero);
    }
}

#[test]
fn descriptor_instructions_are_undefined_without_protection() {
    let instructions: [&[u8]; 7] = [
        LLDT,
        LTR,
        &[0x0f, 0x00, 0xc0],
        &[0x0f, 0x00, 0xc8],
        &[0x0f, 0x02, 0xd8],
        &[0x0f, 0x03, 0xd8],
        &[0x0f, 0x00, 0xe0],
    ];
    for code in instructions {
        assert_eq!(World::real(code).execute(), Err(Exception::UD), "{code:x?}");
        let mut world = World::virtual_8086(3, code);
        assert_eq!(world.execute(), Err(Exception::UD), "{code:x?}");
    }
}

#[test]
fn table_registers_are_loaded_and_stored() {
    // LGDT [EAX]; SGDT [EBX]; with an operand-size prefix the base has 24 bits.
    for (prefix, base) in [(None, 0x1234_5678_u32), (Some(0x66), 0x0034_5678)] {
        let mut code: Vec<u8> = prefix.into_iter().collect();
        code.extend([0x0f, 0x01, 0x10, 0x0f, 0x01, 0x03]);
        let mut world = World::protected(0, &code);
        world.cpu.gpr[0] = 0x6000;
        world.cpu.gpr[3] = 0x6100;
        world.write_word(0x6000, 0xabcd);
        world.write_doubleword(0x6002, 0x1234_5678);
        world.execute().expect("LGDT");
        world.execute().expect("SGDT");
        assert_eq!(world.word(0x6100), 0xabcd);
        assert_eq!(world.doubleword(0x6102), base);
    }
}

#[test]
fn lgdt_is_privileged_and_refuses_a_base_that_is_not_canonical() {
    const LGDT: &[u8] = &[0x0f, 0x01, 0x10];
    let mut world = World::protected(3, LGDT);
    world.cpu.gpr[0] = 0x6000;
    assert_eq!(world.execute(), gp(0));
    let mut world = World::long(0, LGDT);
    world.cpu.gpr[0] = 0x6000;
    // 57 bits are taken also where CR4.LA57 is clear.
    world.write(0x6002, &0x0100_0000_0000_0000_u64.to_le_bytes());
    assert_eq!(world.execute(), gp(0));
    world.write(0x6002, &0xff45_4545_4500_0000_u64.to_le_bytes());
    world.execute().expect("a base of 57 bits");
    world.cpu.state.rip -= 3;
    world.write(0x6002, &0xffff_8000_0000_0000_u64.to_le_bytes());
    world.execute().expect("a canonical base");
}

#[test]
fn umip_keeps_the_tables_from_user_mode() {
    // SGDT [EAX], SIDT [EAX], SLDT AX, STR AX.
    let instructions: [&[u8]; 4] = [
        &[0x0f, 0x01, 0x00],
        &[0x0f, 0x01, 0x08],
        &[0x0f, 0x00, 0xc0],
        &[0x0f, 0x00, 0xc8],
    ];
    for code in instructions {
        for (cpl, umip, expected) in [(3, true, gp(0)), (3, false, Ok(())), (0, true, Ok(()))] {
            let mut world = World::protected(cpl, code);
            world.cpu.gpr[0] = 0x6000;
            world.cpu.state.cr4.set(Cr4::UMIP, umip);
            assert_eq!(world.execute(), expected, "{code:x?} {cpl} {umip}");
        }
    }
}

#[test]
fn bases_are_read_and_written_by_their_own_instructions() {
    // WRGSBASE RAX; RDGSBASE RBX.
    let code = [0xf3, 0x48, 0x0f, 0xae, 0xd8, 0xf3, 0x48, 0x0f, 0xae, 0xcb];
    let mut world = World::long(3, &code);
    assert_eq!(world.execute(), Err(Exception::UD));
    world.cpu.state.cr4 |= Cr4::FSGSBASE;
    world.cpu.gpr[0] = 0x0100_0000_0000_0000;
    assert_eq!(world.execute(), gp(0));
    world.cpu.gpr[0] = 0xffff_8000_0000_1234;
    world.execute().expect("WRGSBASE");
    world.execute().expect("RDGSBASE");
    assert_eq!(world.cpu.gpr[3], 0xffff_8000_0000_1234);
}
