//! Shadow stacks and trackers in far transfers, events, returns and fast calls.

use vmx_model::arch::{Cr0, Cr4, SegmentRegister};
use vmx_model::event::{Event, EventType, Exception, vector};

use super::{CODE, IDT, STACKS, TARGET, World, sel};

/// Tops of the shadow stacks of the levels.
pub(super) const SSP: [u64; 4] = [0x1_0818, 0x1_1818, 0x1_2818, 0x1_3818];
/// The interrupt shadow-stack table, and the shadow stack that its entry 1 names.
const TABLE: u64 = 0x1_4000;
const IST_SSP: u64 = 0x1_5818;
pub(super) const VECTOR: u8 = 0x21;
pub(super) const INT: &[u8] = &[0xcd, VECTOR];
const RETF: &[u8] = &[0xcb];
pub(super) const IRET: &[u8] = &[0xcf];
const IRETQ: &[u8] = &[0x48, 0xcf];
const INTERRUPT_GATE: u8 = 0xee;
pub(super) const FAR_RET: Exception = Exception::with_code(vector::CP, 2);
/// SH_STK_EN and ENDBR_EN.
pub(super) const BOTH: u64 = 5;
pub(super) const WAITS: u64 = 1 << 11;
const SUPPRESS: u64 = 1 << 10;

/// CET in use at all levels; the tokens of the supervisor shadow stacks are free.
fn with_cet(mut world: World) -> World {
    let level = usize::from(world.cpu.cpl());
    world.cpu.state.cr0 |= Cr0::WP;
    world.cpu.state.cr4 |= Cr4::CET;
    world.cpu.state.s_cet = BOTH;
    world.cpu.msrs.u_cet = BOTH;
    world.cpu.state.ssp = SSP[level] - 0x100;
    world.cpu.msrs.pl_ssp = SSP;
    for at in SSP.into_iter().take(3).chain([IST_SSP]) {
        world.write(at, &at.to_le_bytes());
    }
    world.write(TABLE + 8, &IST_SSP.to_le_bytes());
    world.cpu.state.interrupt_ssp_table = TABLE;
    world
}

pub(super) fn protected(cpl: u8, code: &[u8]) -> World {
    with_cet(World::protected(cpl, code))
}

fn long(cpl: u8, code: &[u8]) -> World {
    with_cet(World::long(cpl, code))
}

/// CALL or JMP selector:TARGET, in 32-bit code.
pub(super) fn direct(opcode: u8, selector: u16) -> Vec<u8> {
    let mut code = vec![opcode];
    code.extend((TARGET as u32).to_le_bytes());
    code.extend(selector.to_le_bytes());
    code
}

pub(super) const JMP: u8 = 0xea;
pub(super) const CALL: u8 = 0x9a;

/// SSP, LIP and CS of a frame on a shadow stack.
pub(super) fn frame(world: &World, at: u64) -> [u64; 3] {
    [0, 8, 16].map(|n| world.quadword(at + n))
}

pub(super) fn put_frame(world: &mut World, at: u64, values: [u64; 3]) {
    for (n, value) in (0..).zip(values) {
        world.write(at + 8 * n, &value.to_le_bytes());
    }
}

/// Puts doublewords on the ordinary stack, the first one lowest.
fn push_all(world: &mut World, values: &[u32]) {
    let top = world.cpu.gpr[4] - 4 * values.len() as u64;
    for (n, value) in (0..).zip(values) {
        world.write_doubleword(top + 4 * n, *value);
    }
    world.cpu.gpr[4] = top;
}

fn push_quadwords(world: &mut World, values: &[u64]) {
    let words = values.iter().flat_map(|v| [*v as u32, (v >> 32) as u32]);
    push_all(world, &words.collect::<Vec<_>>());
}

#[test]
fn a_far_call_pushes_cs_lip_and_ssp_and_ret_goes_back() {
    for (hole, base) in [(0, 0), (4, 0), (0, 0x10)] {
        let code = direct(CALL, sel::CODE0);
        let mut world = protected(0, &code);
        world.cpu.state.segment_mut(SegmentRegister::Cs).base = base;
        world.cpu.state.rip -= base;
        let ssp = world.cpu.state.ssp + hole;
        world.cpu.state.ssp = ssp;
        world.write(ssp - 8, &[0xff; 8]);
        world.execute().expect("a good target");
        let top = ssp - hole - 24;
        let next = CODE + code.len() as u64;
        assert_eq!(world.cpu.state.ssp, top);
        assert_eq!(frame(&world, top), [ssp, next, sel::CODE0.into()]);
        if hole != 0 {
            assert_eq!(world.doubleword(ssp - 4), 0);
        }
        assert_eq!(world.cpu.state.s_cet, BOTH | WAITS);
        // The return goes to CS:next with base 0.
        world.cpu.state.s_cet = BOTH;
        world.write(TARGET, RETF);
        let back = (next - base) as u32;
        assert_eq!(world.doubleword(world.cpu.gpr[4]), back);
        let result = world.execute();
        if base == 0 {
            assert_eq!(result, Ok(()));
            assert_eq!((world.cpu.state.rip, world.cpu.state.ssp), (next, ssp));
            assert_eq!(world.cpu.state.s_cet, BOTH, "a return is not tracked");
        } else {
            assert_eq!(result, Err(FAR_RET), "another linear address");
        }
    }
}

/// What a far JMP or CALL from 64-bit code to compatibility code makes of a wide SSP.
#[test]
fn ssp_must_fit_compatibility_mode() {
    // JMP and CALL m16:32, at [RSI].
    for opcode in [0x2e, 0x1e] {
        for (ssp, end) in [(SSP[0], Ok(())), (1 << 32, Err(Exception::gp(0)))] {
            let mut world = long(0, &[0xff, opcode]);
            world.cpu.gpr[6] = 0x2800;
            world.write_doubleword(0x2800, TARGET as u32);
            world.write_word(0x2804, sel::CODE0);
            world.cpu.state.ssp = ssp;
            assert_eq!(world.execute(), end);
            if end == Ok(()) {
                assert_eq!(world.cpu.state.s_cet, BOTH | WAITS);
            }
        }
    }
}

/// CALL through the gate to level 0: SSP, the token, and what is pushed.
#[test]
fn a_call_to_an_inner_level_takes_the_shadow_stack_of_that_level() {
    for (cpl, code) in [(3, sel::CODE3 | 3), (1, sel::CODE1 | 1)] {
        let call = direct(CALL, sel::GATE_TO_CODE0 | u16::from(cpl));
        let mut world = protected(cpl, &call);
        let old = world.cpu.state.ssp;
        world.cpu.msrs.pl_ssp[3] = 0x44;
        world.cpu.state.s_cet = BOTH | SUPPRESS;
        world.execute().expect("a good gate");
        assert_eq!(world.quadword(SSP[0]), SSP[0] | 1, "busy");
        if cpl == 3 {
            assert_eq!(world.cpu.state.ssp, SSP[0]);
            assert_eq!(world.cpu.msrs.pl_ssp[3], old);
        } else {
            let top = SSP[0] - 24;
            let next = CODE + call.len() as u64;
            assert_eq!(world.cpu.state.ssp, top);
            assert_eq!(frame(&world, top), [old, next, code.into()]);
            assert_eq!(world.cpu.msrs.pl_ssp[3], 0x44);
        }
        assert_eq!(world.cpu.state.s_cet, BOTH | WAITS);
        assert_eq!(world.cpu.msrs.u_cet, BOTH, "the user's tracker stays");
    }
}

/// IA32_PL0_SSP and the token there, for a CALL gate and for an interrupt.
#[test]
fn a_token_that_is_not_free_is_gp() {
    for (ssp, token) in [
        (SSP[0] + 4, SSP[0] + 4),
        // The frame would not lie in one region of 32 bytes.
        (SSP[0] + 8, SSP[0] + 8),
        (SSP[0] - 8, SSP[0] - 8),
        (SSP[0], SSP[0] | 1),
        (SSP[0], SSP[0] | 2),
        (SSP[0], 0),
        (SSP[0] | 1 << 32, SSP[0] | 1 << 32),
    ] {
        for code in [&direct(CALL, sel::GATE_TO_CODE0 | 3)[..], INT] {
            let mut world = protected(3, code);
            world.set_gate(VECTOR, sel::CODE0, INTERRUPT_GATE);
            world.cpu.msrs.pl_ssp[0] = ssp;
            world.write(ssp & 0xffff_ffff, &token.to_le_bytes());
            let pl3 = world.cpu.msrs.pl_ssp[3];
            assert_eq!(
                world.execute(),
                Err(Exception::gp(0)),
                "{ssp:#x} {token:#x}"
            );
            assert_eq!(world.cpu.msrs.pl_ssp[3], pl3);
            assert_eq!(world.doubleword(STACKS[0] - 4), 0, "nothing was pushed");
        }
    }
}

/// A return within a level: what is on the shadow stack, and the outcome.
#[test]
fn returns_compare_cs_lip_and_ssp() {
    let (rip, cs) = (TARGET, u64::from(sel::CODE0));
    let previous = SSP[0] - 0x40;
    for (values, ssp, end) in [
        ([previous, rip, cs], 0, Ok(())),
        ([previous + 4, rip, cs], 0, Ok(())),
        ([previous, rip, cs], 4, Err(FAR_RET)),
        ([previous, rip + 1, cs], 0, Err(FAR_RET)),
        ([previous, rip | 1 << 32, cs], 0, Err(FAR_RET)),
        ([previous, rip, cs | 3], 0, Err(FAR_RET)),
        ([previous, rip, cs | 1 << 16], 0, Err(FAR_RET)),
        ([previous + 1, rip, cs], 0, Err(FAR_RET)),
        ([previous + 2, rip, cs], 0, Err(FAR_RET)),
        ([previous | 1 << 32, rip, cs], 0, Err(Exception::gp(0))),
    ] {
        for code in [RETF, IRET] {
            let mut world = protected(0, code);
            if code == IRET {
                push_all(&mut world, &[2]);
            }
            push_all(&mut world, &[rip as u32, cs as u32]);
            let at = world.cpu.state.ssp;
            put_frame(&mut world, at, values);
            world.cpu.state.ssp = at + ssp;
            assert_eq!(world.execute(), end, "{values:x?}");
            if end == Ok(()) {
                assert_eq!(world.cpu.state.ssp, values[0]);
            }
        }
    }
}

#[test]
fn returns_to_an_outer_level_set_the_token_free() {
    for (level, code, data) in [(3, sel::CODE3, sel::DATA3), (1, sel::CODE1, sel::DATA1)] {
        let cs = u64::from(code | level);
        for (token, after) in [(SSP[0] | 1, SSP[0]), (SSP[0], SSP[0]), (7, 7)] {
            for insn in [RETF, IRET] {
                let mut world = protected(0, insn);
                push_all(&mut world, &[0x7000, (data | level).into()]);
                if insn == IRET {
                    push_all(&mut world, &[2]);
                }
                push_all(&mut world, &[TARGET as u32, cs as u32]);
                world.write(SSP[0], &token.to_le_bytes());
                world.cpu.state.ssp = SSP[0];
                let mut expected = SSP[3];
                if level != 3 {
                    expected = SSP[1] - 0x20;
                    put_frame(&mut world, SSP[0] - 24, [expected, TARGET, cs]);
                    world.cpu.state.ssp = SSP[0] - 24;
                }
                world.execute().expect("a good frame");
                assert_eq!(world.cpu.state.ssp, expected);
                assert_eq!(world.quadword(SSP[0]), after, "token {token:#x}");
            }
        }
        // SSP that is not aligned is #CP, a user SSP beyond 4 GiB is #GP.
        for (ssp, pl3, end) in [
            (SSP[0] + 4, SSP[3], FAR_RET),
            (SSP[0], 1 << 32, Exception::gp(0)),
        ] {
            let mut world = protected(0, RETF);
            push_all(
                &mut world,
                &[TARGET as u32, cs as u32, 0x7000, (data | level).into()],
            );
            world.cpu.state.ssp = ssp;
            world.cpu.msrs.pl_ssp[3] = pl3;
            let end = if level == 3 { end } else { FAR_RET };
            assert_eq!(world.execute(), Err(end));
        }
    }
}

#[test]
fn levels_without_shadow_stacks_are_left_alone() {
    // (IA32_S_CET, IA32_U_CET, SSP in the handler, IA32_PL3_SSP, SSP behind IRET)
    let user = SSP[3] - 0x100;
    for (s_cet, u_cet, handler, saved, back) in [
        (1, 1, SSP[0], user, user),
        (1, 0, SSP[0], SSP[3], SSP[0]),
        (0, 1, user, user, user),
        (0, 0, user, SSP[3], user),
    ] {
        let mut world = protected(3, INT);
        world.set_gate(VECTOR, sel::CODE0, INTERRUPT_GATE);
        (world.cpu.state.s_cet, world.cpu.msrs.u_cet) = (s_cet, u_cet);
        world.execute().expect("a good gate");
        assert_eq!(world.cpu.state.ssp, handler);
        assert_eq!(world.cpu.msrs.pl_ssp[3], saved);
        assert_eq!(world.quadword(SSP[0]), SSP[0] | s_cet);
        world.write(TARGET, IRET);
        world.execute().expect("a good frame");
        assert_eq!(world.cpu.state.ssp, back);
        assert_eq!(world.quadword(SSP[0]), SSP[0]);
    }
}

#[test]
fn an_interrupt_within_a_level_pushes_on_the_same_shadow_stack() {
    for is_long in [false, true] {
        let mut world = if is_long {
            long(0, INT)
        } else {
            protected(0, INT)
        };
        world.set_gate(VECTOR, sel::CODE0, INTERRUPT_GATE);
        if is_long {
            world.set_gate64(VECTOR, sel::CODE64, INTERRUPT_GATE, 0);
        }
        let ssp = world.cpu.state.ssp + 4;
        world.cpu.state.ssp = ssp;
        let cs = world.selector(SegmentRegister::Cs);
        world.execute().expect("a good gate");
        let top = ssp - 4 - 24;
        assert_eq!(world.cpu.state.ssp, top);
        assert_eq!(frame(&world, top), [ssp, CODE + 2, cs.into()]);
        assert_eq!(world.cpu.state.s_cet, BOTH | WAITS);
        world.cpu.state.s_cet = BOTH | SUPPRESS;
        world.write(TARGET, if is_long { IRETQ } else { IRET });
        world.execute().expect("a good frame");
        assert_eq!(world.cpu.state.ssp, ssp);
        assert_eq!(world.cpu.state.s_cet, BOTH | SUPPRESS);
    }
}

/// Gates with an interrupt stack, from level 0 and from level 3.
#[test]
fn the_interrupt_shadow_stack_table_names_the_shadow_stack() {
    for cpl in [0, 3] {
        let mut world = long(cpl, INT);
        world.set_gate64(VECTOR, sel::CODE64, INTERRUPT_GATE, 1);
        let old = world.cpu.state.ssp;
        let cs = world.selector(SegmentRegister::Cs);
        world.execute().expect("a good gate");
        assert_eq!(world.quadword(IST_SSP), IST_SSP | 1, "busy");
        if cpl == 0 {
            assert_eq!(world.cpu.state.ssp, IST_SSP - 24);
            assert_eq!(frame(&world, IST_SSP - 24), [old, CODE + 2, cs.into()]);
        } else {
            assert_eq!(world.cpu.state.ssp, IST_SSP);
            assert_eq!(world.cpu.msrs.pl_ssp[3], old);
        }
        world.cpu.state.s_cet = BOTH;
        world.write(TARGET, IRETQ);
        world.execute().expect("a good frame");
        assert_eq!(world.cpu.state.ssp, old);
        assert_eq!(world.quadword(IST_SSP), IST_SSP, "free");
    }
}

/// IRETQ to the same shadow stack does not touch a token that happens to lie behind the frame.
#[test]
fn iret_to_the_same_shadow_stack_leaves_its_token() {
    let mut world = long(0, INT);
    world.set_gate64(VECTOR, sel::CODE64, INTERRUPT_GATE, 0);
    world.write(SSP[0], &(SSP[0] | 1).to_le_bytes());
    world.cpu.state.ssp = SSP[0];
    world.execute().expect("a good gate");
    world.cpu.state.s_cet = BOTH;
    world.write(TARGET, IRETQ);
    world.execute().expect("a good frame");
    assert_eq!(world.cpu.state.ssp, SSP[0]);
    assert_eq!(world.quadword(SSP[0]), SSP[0] | 1);
}

/// A busy token is #GP with EXT during an external interrupt.
#[test]
fn the_error_code_tells_of_external_events() {
    for (kind, code) in [
        (EventType::ExternalInterrupt, 1),
        (EventType::SoftwareInterrupt, 0),
    ] {
        let mut world = long(3, &[]);
        world.set_gate64(VECTOR, sel::CODE64, INTERRUPT_GATE, 0);
        world.set_gate64(vector::GP, sel::CODE64, INTERRUPT_GATE, 1);
        world.write(SSP[0], &(SSP[0] | 1).to_le_bytes());
        let event = Event {
            vector: VECTOR,
            kind,
            error_code: None,
            instruction_length: 2,
            payload: 0,
        };
        world.cpu.deliver(event).expect("the handler of #GP");
        assert_eq!(world.quadword(world.cpu.gpr[4]), code);
    }
}

/// #CP is contributory: together with #GP it makes a double fault, with an interrupt it does not;
/// its error code has no EXT bit.
#[test]
fn cp_is_contributory() {
    for (first, expected) in [
        (Exception::gp(0), (vector::DF, 0)),
        (Exception::UD, (vector::CP, 2)),
    ] {
        let mut world = protected(0, &[]);
        world.set_gate(vector::CP, sel::CODE0, INTERRUPT_GATE);
        world.set_gate(vector::DF, sel::CODE0, INTERRUPT_GATE);
        let event = Event {
            kind: EventType::HardwareException,
            ..Event::from(first)
        };
        world.cpu.set_event_in_delivery(Some(event));
        // The handler of the wrong exception is not there.
        let other = if expected.0 == vector::DF {
            vector::CP
        } else {
            vector::DF
        };
        world.write(IDT + 8 * u64::from(other), &[0; 8]);
        world.cpu.raise(FAR_RET).expect("a handler");
        assert_eq!(world.doubleword(world.cpu.gpr[4]), expected.1);
    }
}

/// SYSCALL and SYSENTER from 64-bit code, and the ways back.
#[test]
fn fast_calls_save_the_user_ssp_and_clear_ssp() {
    const SYSCALL: &[u8] = &[0x0f, 0x05];
    const SYSENTER: &[u8] = &[0x0f, 0x34];
    const SYSRETQ: &[u8] = &[0x48, 0x0f, 0x07];
    const SYSEXITQ: &[u8] = &[0x48, 0x0f, 0x35];
    for (enter, leave) in [(SYSCALL, SYSRETQ), (SYSENTER, SYSEXITQ)] {
        for (s_cet, u_cet) in [(BOTH, BOTH), (0, BOTH), (BOTH, 0), (4, 4)] {
            let mut world = long(3, enter);
            (world.cpu.state.s_cet, world.cpu.msrs.u_cet) = (s_cet, u_cet | SUPPRESS);
            world.cpu.msrs.star = 0x13_0008_0000_0000;
            world.cpu.msrs.lstar = TARGET;
            world.cpu.state.sysenter_cs = 8;
            world.cpu.state.sysenter_eip = TARGET;
            let user = world.cpu.state.ssp;
            world.execute().expect("enabled");
            let saved = if u_cet & 1 != 0 { user } else { SSP[3] };
            assert_eq!(world.cpu.msrs.pl_ssp[3], saved);
            let ssp = if s_cet & 1 != 0 { 0 } else { user };
            assert_eq!(world.cpu.state.ssp, ssp);
            let waits = if s_cet & 4 != 0 { WAITS } else { 0 };
            assert_eq!(world.cpu.state.s_cet, s_cet | waits);
            assert_eq!(world.cpu.msrs.u_cet, u_cet | SUPPRESS);
            world.cpu.state.s_cet = s_cet;
            (world.cpu.gpr[1], world.cpu.gpr[2]) = (CODE, CODE);
            world.write(TARGET, leave);
            world.execute().expect("level 0");
            let back = if u_cet & 1 != 0 { saved } else { ssp };
            assert_eq!(world.cpu.state.ssp, back);
            assert_eq!(
                world.cpu.msrs.u_cet,
                u_cet | SUPPRESS,
                "a return is not tracked"
            );
        }
    }
}

#[test]
fn virtual_8086_mode_knows_no_cet() {
    // IRET to virtual-8086 mode.
    for (u_cet, ssp, end) in [
        (0, SSP[0], Ok(())),
        (2, SSP[0], Ok(())),
        (1, SSP[0], Err(Exception::gp(0))),
        (4, SSP[0], Err(Exception::gp(0))),
        (0, SSP[0] + 4, Err(FAR_RET)),
    ] {
        let mut world = protected(0, IRET);
        world.cpu.msrs.u_cet = u_cet;
        world.cpu.state.ssp = ssp;
        world.write(SSP[0], &(SSP[0] | 1).to_le_bytes());
        push_all(
            &mut world,
            &[TARGET as u32, 0, 0x2_0002, 0x100, 0, 0, 0, 0, 0],
        );
        assert_eq!(world.execute(), end);
        let busy = u64::from(end.is_err());
        assert_eq!(world.quadword(SSP[0]), SSP[0] | busy);
    }
    // An interrupt from there: SSP of virtual-8086 mode is not saved, nothing is pushed.
    let mut world = with_cet(World::virtual_8086(3, INT));
    world.set_gate(VECTOR, sel::CODE0, INTERRUPT_GATE);
    world.execute().expect("a good gate");
    assert_eq!(world.cpu.state.ssp, SSP[0]);
    assert_eq!(world.cpu.msrs.pl_ssp[3], SSP[3]);
    assert_eq!(world.quadword(SSP[0]), SSP[0] | 1);
    // CALL there, with CET enabled for level 3.
    let mut world = with_cet(World::virtual_8086(3, &[0xe8, 0x10, 0]));
    let ssp = world.cpu.state.ssp;
    world.execute().expect("a call");
    assert_eq!(world.cpu.state.ssp, ssp);
}

/// The frame of an IRETQ to level 3, with flags: SSP comes from IA32_PL3_SSP, canonical or not.
#[test]
fn iretq_to_level_3_takes_the_user_ssp() {
    let mut world = long(0, IRETQ);
    let frame = [
        TARGET,
        u64::from(sel::CODE64_3 | 3),
        2,
        0x7000,
        u64::from(sel::DATA3 | 3),
    ];
    push_quadwords(&mut world, &frame);
    world.cpu.msrs.pl_ssp[3] = 0x7fff_0000_1000;
    world.write(SSP[0], &(SSP[0] | 1).to_le_bytes());
    world.cpu.state.ssp = SSP[0];
    world.execute().expect("a good frame");
    assert_eq!(world.cpu.state.ssp, 0x7fff_0000_1000);
    assert_eq!(world.quadword(SSP[0]), SSP[0]);
    // One that is not canonical is #GP.
    let mut world = long(0, IRETQ);
    push_quadwords(&mut world, &frame);
    world.cpu.msrs.pl_ssp[3] = 1 << 47;
    world.cpu.state.ssp = SSP[0];
    assert_eq!(world.execute(), Err(Exception::gp(0)));
}
