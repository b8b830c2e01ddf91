//! Delivery of exceptions and interrupts: gates, stacks, error codes, double and triple faults.

use vmx_model::arch::{Activity, Cr4, Interruptibility, Rflags, SegmentRegister};
use vmx_model::event::{Event, EventType, Exception};

use super::{CODE, GDT, IDT, STACKS, TARGET, TSS, World, descriptor, sel};
use crate::Stop;
use crate::fault::Fault;

/// Name, CPL, selector of the gate, its access byte, outcome.
type Row<'a> = (&'a str, u8, u16, u8, Result<u16, Exception>);

const VECTOR: u8 = 0x21;
const INT: &[u8] = &[0xcd, VECTOR];
const INTERRUPT_GATE: u8 = 0x8e;
const TRAP_GATE: u8 = 0x8f;
const USER: u8 = 0x60;
const UD2: &[u8] = &[0x0f, 0x0b];

fn gp(code: u32) -> Result<u16, Exception> {
    Err(Exception::gp(code))
}

/// INT 21H through a gate.
#[test]
fn gates_are_checked() {
    use sel::*;
    let of_gate = u32::from(VECTOR) * 8 + 2;
    let np = |code: u32| Err(Exception::np(code));
    // (name, CPL, selector, access byte of the gate, outcome)
    let rows: [Row<'_>; 15] = [
        ("interrupt gate", 0, CODE0, INTERRUPT_GATE, Ok(CODE0)),
        ("trap gate", 0, CODE0, TRAP_GATE, Ok(CODE0)),
        ("16-bit gate", 0, CODE0, 0x86, Ok(CODE0)),
        ("inner", 3, CODE0, INTERRUPT_GATE | USER, Ok(CODE0)),
        (
            "conforming",
            3,
            CONFORMING0,
            INTERRUPT_GATE | USER,
            Ok(CONFORMING0 | 3),
        ),
        ("RPL is ignored", 0, CODE0 | 3, INTERRUPT_GATE, Ok(CODE0)),
        ("gate DPL below CPL", 3, CODE0, INTERRUPT_GATE, gp(of_gate)),
        ("call gate", 0, CODE0, 0x8c, gp(of_gate)),
        ("absent gate", 0, CODE0, 0x0e, np(of_gate)),
        ("absent gate of a lower level", 3, CODE0, 0x0e, gp(of_gate)),
        ("null", 0, 0, INTERRUPT_GATE, gp(0)),
        ("beyond", 0, BEYOND, INTERRUPT_GATE, gp(BEYOND.into())),
        ("data", 0, DATA0, INTERRUPT_GATE, gp(DATA0.into())),
        ("outer code", 0, CODE3, INTERRUPT_GATE, gp(CODE3.into())),
        (
            "absent code",
            0,
            ABSENT_CODE0,
            INTERRUPT_GATE,
            np(ABSENT_CODE0.into()),
        ),
    ];
    for (name, cpl, selector, kind, expected) in rows {
        let mut world = World::protected(cpl, INT);
        world.set_gate(VECTOR, selector, kind);
        let result = world
            .execute()
            .map(|()| world.selector(SegmentRegister::Cs));
        assert_eq!(result, expected, "{name}");
        if result.is_ok() {
            assert_eq!(world.cpu.state.rip, TARGET, "{name}");
        }
    }
}

#[test]
fn a_vector_beyond_the_idt_faults() {
    let mut world = World::protected(0, INT);
    world.set_gate(VECTOR, sel::CODE0, INTERRUPT_GATE);
    world.cpu.state.idtr.limit = u16::from(VECTOR) * 8 + 6;
    assert_eq!(
        world.execute().err(),
        Some(Exception::gp(u32::from(VECTOR) * 8 + 2))
    );
    world.cpu.state.idtr.limit += 1;
    world.execute().expect("inside the limit");
}

#[test]
fn only_interrupt_gates_clear_if() {
    for (kind, enabled) in [(INTERRUPT_GATE, false), (TRAP_GATE, true)] {
        let mut world = World::protected(0, INT);
        world.set_flags(Rflags::IF | Rflags::TF | Rflags::NT | Rflags::CF);
        world.set_gate(VECTOR, sel::CODE0, kind);
        world.execute().expect("a good gate");
        let flags = world.cpu.rflags();
        assert_eq!(flags.contains(Rflags::IF), enabled);
        assert!(!flags.intersects(Rflags::TF | Rflags::NT));
        assert!(flags.contains(Rflags::CF));
        let image = world.doubleword(STACKS[0] - 4);
        assert_eq!(image & 0x4301, 0x4301, "the pushed flags are the old ones");
    }
}

/// Delivers an exception to the flat handler and returns the frame, lowest doubleword first.
fn frame_of(world: &mut World, exception: Exception, length: u64) -> Vec<u32> {
    world.set_gate(exception.vector, sel::CODE0, INTERRUPT_GATE);
    world.cpu.raise(exception).expect("a good handler");
    let top = world.cpu.gpr[4];
    (0..length).map(|n| world.doubleword(top + 4 * n)).collect()
}

#[test]
fn faults_push_their_error_code_and_rf() {
    let mut world = World::protected(0, &[]);
    let frame = frame_of(&mut world, Exception::gp(0x1234), 4);
    let code = u32::from(sel::CODE0);
    assert_eq!(frame, [0x1234, CODE as u32, code, 0x1_0002]);
    let mut world = World::protected(3, &[]);
    let frame = frame_of(&mut world, Exception::UD, 5);
    let expected = [
        CODE as u32,
        u32::from(sel::CODE3 | 3),
        0x1_0002,
        STACKS[3] as u32,
        u32::from(sel::DATA3 | 3),
    ];
    assert_eq!(frame, expected);
    assert_eq!(world.cpu.gpr[4], STACKS[0] - 20);
    assert_eq!(world.selector(SegmentRegister::Ss), sel::DATA0);
}

#[test]
fn page_faults_set_cr2_and_debug_exceptions_dr6() {
    let mut world = World::protected(0, &[]);
    frame_of(&mut world, Exception::pf(2, 0x1234_5678), 1);
    assert_eq!(world.cpu.system.cr2, 0x1234_5678);
    let mut world = World::protected(0, &[]);
    world.cpu.state.dr7 = 0x2400;
    world.cpu.system.dr6 = 0xffff_0ff8;
    let frame = frame_of(&mut world, Exception::db(1 << 14), 3);
    assert_eq!(world.cpu.system.dr6, 0xffff_4ff0);
    assert_eq!(world.cpu.state.dr7, 0x400, "GD is cleared");
    assert_eq!(frame[2], 2, "a trap does not set RF");
}

#[test]
fn software_interrupts_push_the_following_instruction() {
    let rows: [(&[u8], u8); 4] = [(INT, VECTOR), (&[0xcc], 3), (&[0xce], 4), (&[0xf1], 1)];
    for (code, vector) in rows {
        let mut world = World::protected(0, code);
        world.set_flags(Rflags::OF);
        world.set_gate(vector, sel::CODE0, TRAP_GATE);
        world.execute().expect("a good gate");
        let pushed = u64::from(world.doubleword(STACKS[0] - 12));
        assert_eq!(pushed, CODE + code.len() as u64, "{code:x?}");
    }
    let mut world = World::protected(0, &[0xce]);
    world.execute().expect("INTO without overflow does nothing");
    assert_eq!(world.cpu.state.rip, CODE + 1);
}

#[test]
fn int1_needs_no_privilege() {
    let mut world = World::protected(3, &[0xf1]);
    world.set_gate(1, sel::CODE0, INTERRUPT_GATE);
    world.execute().expect("the DPL of the gate does not count");
    let mut world = World::protected(3, &[0xcc]);
    world.set_gate(3, sel::CODE0, INTERRUPT_GATE);
    assert_eq!(world.execute(), Err(Exception::gp(3 * 8 + 2)));
}

/// (vector of the first exception, gate of it, expected last vector and its error code)
#[test]
fn exceptions_during_delivery_are_combined() {
    const NO_CODE: u32 = u32::MAX;
    // The handler of `first` is absent: #NP. Which handler runs in the end, and with what code?
    let rows = [
        (Exception::UD, 11, 6 * 8 + 3),
        (Exception::NM, 11, 7 * 8 + 3),
        (Exception::DE, 8, 0),
        (Exception::gp(0), 8, 0),
        (Exception::pf(0, 0), 8, 0),
        (Exception::db(0), 11, 8 + 3),
    ];
    for (first, vector, code) in rows {
        let mut world = World::protected(0, &[]);
        for v in 0..32 {
            world.set_gate(v, sel::CODE0, INTERRUPT_GATE);
        }
        world.set_gate(first.vector, sel::CODE0, 0x0e);
        // Each handler has its own offset, to tell which one runs.
        for v in 0..32_u64 {
            world.write_word(IDT + 8 * v, 0x2000 + v as u16);
        }
        world.cpu.raise(first).expect("some handler");
        assert_eq!(world.cpu.state.rip, TARGET + vector, "{first:?}");
        if code != NO_CODE {
            assert_eq!(world.doubleword(world.cpu.gpr[4]), code, "{first:?}");
        }
        assert_eq!(world.cpu.delivering, None);
    }
}

#[test]
fn the_ext_bit_is_for_events_from_outside() {
    let rows = [
        (EventType::ExternalInterrupt, 1),
        (EventType::Nmi, 1),
        (EventType::HardwareException, 1),
        (EventType::PrivilegedSoftwareException, 1),
        (EventType::SoftwareInterrupt, 0),
        (EventType::SoftwareException, 0),
    ];
    for (kind, ext) in rows {
        let mut world = World::protected(0, &[]);
        world.set_gate(13, sel::CODE0, INTERRUPT_GATE);
        let event = Event {
            vector: VECTOR,
            kind,
            error_code: None,
            instruction_length: 0,
            payload: 0,
        };
        world.cpu.deliver(event).expect("#GP is delivered");
        let code = world.doubleword(world.cpu.gpr[4]);
        assert_eq!(code, u32::from(VECTOR) * 8 + 2 + ext, "{kind:?}");
    }
}

#[test]
fn a_third_fault_shuts_the_processor_down() {
    let mut world = World::protected(0, UD2);
    world.cpu.state.idtr.limit = 0;
    assert_eq!(world.cpu.run(10), Stop::Shutdown);
    assert_eq!(world.cpu.state.activity, Activity::Shutdown);
    assert_eq!(world.cpu.run(10), Stop::Shutdown);
    assert_eq!(world.cpu.state.rip, CODE);
}

#[test]
fn an_absent_double_fault_handler_is_a_third_fault() {
    let mut world = World::protected(0, &[]);
    assert_eq!(world.cpu.raise(Exception::gp(0)), Err(Fault::Stop));
    assert_eq!(world.cpu.pending_stop, Some(Stop::Shutdown));
}

#[test]
fn the_stack_of_the_handler_is_checked() {
    let ts = |code: u16| Exception::ts(u32::from(code) | 1);
    let ss = |code: u16| Exception::ss(u32::from(code) | 1);
    // (SS0 in the TSS, what the delivery of #UD raises)
    let rows = [
        (0, ts(0)),
        (sel::BEYOND, ts(sel::BEYOND)),
        (sel::DATA0 | 1, ts(sel::DATA0)),
        (sel::DATA3, ts(sel::DATA3)),
        (sel::ABSENT_DATA0, ss(sel::ABSENT_DATA0)),
    ];
    for (selector, expected) in rows {
        let mut world = World::protected(3, &[]);
        world.write_word(TSS + 8, selector);
        world.set_gate(6, sel::CODE0, INTERRUPT_GATE);
        // The second exception has a conforming handler, which needs no stack.
        for vector in [10, 12] {
            world.set_gate(vector, sel::CONFORMING0, INTERRUPT_GATE);
        }
        world
            .cpu
            .raise(Exception::UD)
            .expect("a conforming handler");
        let code = world.doubleword(world.cpu.gpr[4]);
        assert_eq!(Some(code), expected.error_code, "{selector:#x}");
    }
}

#[test]
fn a_full_stack_is_a_stack_fault() {
    let mut world = World::protected(0, INT);
    world.set_gate(VECTOR, sel::CODE0, INTERRUPT_GATE);
    world.cpu.state.segment_mut(SegmentRegister::Ss).limit = 0x7ff3;
    assert_eq!(world.execute(), Err(Exception::ss(0)));
    world.cpu.state.segment_mut(SegmentRegister::Ss).limit = 0x7fff;
    world.execute().expect("room");
}

#[test]
fn handlers_beyond_their_segment_fault() {
    let mut world = World::protected(0, INT);
    world.set_gate(VECTOR, sel::SMALL_CODE0, INTERRUPT_GATE);
    assert_eq!(world.execute(), Err(Exception::gp(0)));
}

#[test]
fn real_mode_uses_the_vector_table() {
    let mut world = World::real(INT);
    world.set_flags(Rflags::IF | Rflags::TF | Rflags::AC);
    world.write_word(u64::from(VECTOR) * 4, 0x5678);
    world.write_word(u64::from(VECTOR) * 4 + 2, 0x1234);
    world.execute().expect("a good vector");
    let cs = world.segment(SegmentRegister::Cs);
    assert_eq!((cs.selector, cs.base), (0x1234, 0x1_2340));
    assert_eq!(world.cpu.state.rip, 0x5678);
    assert_eq!(world.cpu.rflags(), Rflags::FIXED1);
    let frame: Vec<u16> = (0..3).map(|n| world.word(STACKS[0] - 6 + 2 * n)).collect();
    assert_eq!(frame, [CODE as u16 + 2, 0, 0x0302]);
}

#[test]
fn real_mode_has_a_limit_but_no_error_codes() {
    let mut world = World::real(INT);
    world.cpu.state.idtr.limit = u16::from(VECTOR) * 4 + 2;
    assert!(world.execute().is_err());
    world.write_word(13 * 4, 0x3000);
    world.cpu.raise(Exception::gp(0)).expect("a vector");
    assert_eq!(world.cpu.gpr[4], STACKS[0] - 6);
}

#[test]
fn virtual_8086_mode_leaves_by_the_idt_with_all_segments() {
    let mut world = World::virtual_8086(3, INT);
    world.cpu.state.segment_mut(SegmentRegister::Gs).selector = 0x4321;
    world.set_gate(VECTOR, sel::CODE0, INTERRUPT_GATE | USER);
    world.execute().expect("a good gate");
    let top = world.cpu.gpr[4];
    assert_eq!(top, STACKS[0] - 36);
    let frame: Vec<u32> = (0..9).map(|n| world.doubleword(top + 4 * n)).collect();
    let flags = 0x2_3002;
    assert_eq!(
        frame,
        [
            CODE as u32 + 2,
            0,
            flags,
            STACKS[3] as u32,
            0,
            0,
            0,
            0,
            0x4321
        ]
    );
    assert!(!world.cpu.rflags().contains(Rflags::VM));
    for register in [SegmentRegister::Ds, SegmentRegister::Gs] {
        assert_eq!(world.selector(register), 0);
        assert!(world.segment(register).access.is_unusable());
    }
}

#[test]
fn virtual_8086_mode_reaches_handlers_of_level_0_only() {
    for selector in [sel::CODE1, sel::CONFORMING0, sel::CODE3] {
        let mut world = World::virtual_8086(3, INT);
        world.set_gate(VECTOR, selector, INTERRUPT_GATE | USER);
        assert_eq!(world.execute(), Err(Exception::gp(selector.into())));
    }
}

/// Delivers INT n as an event that VM entry injects.
fn inject_int_n(world: &mut World) -> Result<(), Exception> {
    world.cpu.vmx.is_injecting = true;
    let event = Event {
        vector: VECTOR,
        kind: EventType::SoftwareInterrupt,
        error_code: None,
        instruction_length: 2,
        payload: 0,
    };
    world.cpu.deliver(event).expect("a handler");
    Ok(())
}

/// SDM Vol. 3B, table "Software Interrupt Handling Methods While in Virtual-8086 Mode", for the
/// instruction and for VM entry that injects it.
#[test]
fn the_redirection_bitmap_decides_in_virtual_8086_mode() {
    #[derive(Debug, PartialEq)]
    enum Way {
        Protected,
        Program,
        Fault,
    }
    // (CR4.VME, IOPL, bit in the bitmap, way)
    let rows = [
        (false, 3, 0, Way::Protected),
        (false, 0, 0, Way::Fault),
        (true, 3, 1, Way::Protected),
        (true, 0, 1, Way::Fault),
        (true, 3, 0, Way::Program),
        (true, 0, 0, Way::Program),
    ];
    for ((vme, iopl, bit, expected), is_injected) in
        rows.iter().flat_map(|r| [(r, false), (r, true)])
    {
        let (vme, iopl, bit) = (*vme, *iopl, *bit);
        let mut world = World::virtual_8086(iopl, INT);
        world.cpu.state.cr4.set(Cr4::VME, vme);
        world.cpu.state.segment_mut(SegmentRegister::Tr).limit = 0xff;
        world.write_word(TSS + 102, 0x90);
        world.write(TSS + 0x70 + u64::from(VECTOR / 8), &[bit << (VECTOR % 8)]);
        world.set_gate(VECTOR, sel::CODE0, INTERRUPT_GATE | USER);
        world.write_word(u64::from(VECTOR) * 4, 0x1111);
        world.write_word(u64::from(VECTOR) * 4 + 2, 0x0100);
        // An injected INT n delivers its own fault: with an error code behind the nine words.
        world.set_gate(13, sel::CODE0, INTERRUPT_GATE);
        let done = match is_injected {
            true => inject_int_n(&mut world),
            false => world.execute(),
        };
        let way = match done {
            Ok(()) if world.cpu.rflags().contains(Rflags::VM) => Way::Program,
            Ok(()) if world.cpu.gpr[4] == STACKS[0] - 36 => Way::Protected,
            Ok(()) => Way::Fault,
            Err(e) => {
                assert_eq!(e, Exception::gp(0));
                Way::Fault
            }
        };
        assert_eq!(way, *expected, "{vme} {iopl} {bit} {is_injected}");
        if way == Way::Program {
            assert_eq!(world.word(STACKS[3] - 6), CODE as u16 + 2);
            assert_eq!(world.segment(SegmentRegister::Cs).base, 0x1000);
            let image = world.word(STACKS[3] - 2);
            assert_eq!(image >> 12 & 3, 3, "the image has IOPL 3");
        }
    }
}

#[test]
fn a_redirection_bitmap_outside_the_tss_is_a_fault() {
    for base in [0x10_u16, 0x1f, 0x120, 0xffff] {
        let mut world = World::virtual_8086(3, INT);
        world.cpu.state.cr4 |= Cr4::VME;
        world.cpu.state.segment_mut(SegmentRegister::Tr).limit = 0xff;
        world.write_word(TSS + 102, base);
        assert_eq!(world.execute(), Err(Exception::gp(0)), "{base:#x}");
    }
}

#[test]
fn ia32e_gates_are_checked() {
    use sel::*;
    let of_gate = u32::from(VECTOR) * 8 + 2;
    // (name, CPL, selector, access byte, outcome)
    let rows: [Row<'_>; 8] = [
        ("same", 0, CODE64, INTERRUPT_GATE, Ok(CODE64)),
        ("inner", 3, CODE64, INTERRUPT_GATE | USER, Ok(CODE64)),
        ("DPL below CPL", 3, CODE64, INTERRUPT_GATE, gp(of_gate)),
        ("16-bit type", 0, CODE64, 0x86, gp(of_gate)),
        ("task gate", 0, TSS_FREE, 0x85, gp(of_gate)),
        ("32-bit code", 0, CODE0, INTERRUPT_GATE, gp(CODE0.into())),
        (
            "L and D",
            0,
            CODE_L_AND_D,
            INTERRUPT_GATE,
            gp(CODE_L_AND_D.into()),
        ),
        ("null", 0, 0, INTERRUPT_GATE, gp(0)),
    ];
    for (name, cpl, selector, kind, expected) in rows {
        let mut world = World::long(cpl, INT);
        world.set_gate64(VECTOR, selector, kind, 0);
        let result = world
            .execute()
            .map(|()| world.selector(SegmentRegister::Cs));
        assert_eq!(result, expected, "{name}");
    }
}

#[test]
fn ia32e_handlers_always_get_an_aligned_stack_with_ss_and_rsp() {
    // (CPL, IST, top of the handler's stack before the pushes, SS afterwards)
    let rows = [
        (0, 0, STACKS[0] - 16, sel::DATA0),
        (0, 1, 0xc100, sel::DATA0),
        (3, 0, STACKS[0], 0),
        (3, 7, 0xc700, 0),
    ];
    for (cpl, ist, top, ss) in rows {
        let mut world = World::long(cpl, INT);
        let old = STACKS[usize::from(cpl)] - 12;
        world.cpu.gpr[4] = old;
        world.set_gate64(VECTOR, sel::CODE64, INTERRUPT_GATE | USER, ist);
        world.execute().expect("a good gate");
        assert_eq!(world.cpu.gpr[4], top - 40, "{cpl} {ist}");
        assert_eq!(world.quadword(top - 16), old, "{cpl} {ist}");
        assert_eq!(world.quadword(top - 40), CODE + 2);
        assert_eq!(world.selector(SegmentRegister::Ss), ss, "{cpl} {ist}");
        assert_eq!(world.cpu.cpl(), 0);
    }
}

#[test]
fn ia32e_stacks_and_targets_must_be_canonical() {
    let mut world = World::long(3, INT);
    world.set_gate64(VECTOR, sel::CODE64, INTERRUPT_GATE | USER, 0);
    world.write(TSS + 4, &0x8000_0000_0000_u64.to_le_bytes());
    assert_eq!(world.execute(), Err(Exception::ss(0)));
    let mut world = World::long(0, INT);
    world.set_gate64(VECTOR, sel::CODE64, INTERRUPT_GATE, 0);
    world.write(IDT + u64::from(VECTOR) * 16 + 8, &0x8000_u32.to_le_bytes());
    assert_eq!(world.execute(), Err(Exception::gp(0)));
    let mut world = World::long(3, INT);
    world.set_gate64(VECTOR, sel::CODE64, INTERRUPT_GATE | USER, 7);
    world.cpu.state.segment_mut(SegmentRegister::Tr).limit = 90;
    assert_eq!(world.execute(), Err(Exception::ts(sel::TSS_BUSY.into())));
}

#[test]
fn an_nmi_blocks_nmis() {
    let mut world = World::protected(0, &[]);
    world.set_gate(2, sel::CODE0, INTERRUPT_GATE);
    world.cpu.inject_nmi();
    world.cpu.attend().expect("a good handler");
    assert_eq!(world.cpu.state.interruptibility, Interruptibility::NMI);
    assert_eq!(world.cpu.state.rip, TARGET);
    world.cpu.inject_nmi();
    let before = world.cpu.gpr[4];
    world.cpu.attend().expect("nothing to do");
    assert_eq!(world.cpu.gpr[4], before);
}

#[test]
fn the_handlers_code_segment_is_marked_accessed() {
    let mut world = World::protected(0, INT);
    let fresh = descriptor(0, u32::MAX, 0x409a);
    world.write(GDT + u64::from(sel::CODE0), &fresh.to_le_bytes());
    world.set_gate(VECTOR, sel::CODE0, INTERRUPT_GATE);
    world.execute().expect("a good gate");
    assert_eq!(world.quadword(GDT + 8) >> 40 & 1, 1);
    assert!(world.segment(SegmentRegister::Cs).access.0 & 1 != 0);
}
