//! Shadow stacks in task switches.

use vmx_model::arch::SegmentRegister;
use vmx_model::event::Exception;

use super::shadow_stacks::{
    BOTH, CALL, FAR_RET, INT, IRET, JMP, SSP, VECTOR, WAITS, direct, frame, protected, put_frame,
};
use super::{CODE, GDT, IDT, OTHER_TSS, TARGET, TSS, World, descriptor, gate, sel};

/// A program at level 0 that switches to the task of TSS_FREE, of level `level`.
fn switching(code: &[u8], level: u16) -> World {
    let mut world = protected(0, code);
    let (cs, data) = match level {
        3 => (sel::CODE3 | 3, sel::DATA3 | 3),
        _ => (sel::CODE0, sel::DATA0),
    };
    for (n, selector) in (0..).zip([data, cs, data, data, 0, 0, 0]) {
        world.write_doubleword(OTHER_TSS + 72 + 4 * n, u32::from(selector));
    }
    world.write_doubleword(OTHER_TSS + 32, TARGET as u32);
    world.write_doubleword(OTHER_TSS + 36, 2);
    world.write_doubleword(OTHER_TSS + 56, 0x7800);
    world.write_doubleword(OTHER_TSS + 104, SSP[2] as u32);
    let tss = descriptor(OTHER_TSS, 0x6b, 0x89);
    world.write(GDT + u64::from(sel::TSS_FREE), &tss.to_le_bytes());
    let at = IDT + 8 * u64::from(VECTOR);
    world.write(at, &gate(sel::TSS_FREE, 0, 0x85, 0).to_le_bytes());
    world.cpu.state.segment_mut(SegmentRegister::Tr).limit = 0x6b;
    world
}

#[test]
fn a_task_switch_takes_the_shadow_stack_of_the_new_tss() {
    let call = direct(CALL, sel::TSS_FREE);
    let jump = direct(JMP, sel::TSS_FREE);
    for (code, is_nesting) in [(&call[..], true), (&jump, false), (INT, true)] {
        for level in [0, 3] {
            let mut world = switching(code, level);
            let old = world.cpu.state.ssp;
            world.cpu.execute_plain().expect("a good task");
            assert_eq!(world.quadword(SSP[2]), SSP[2] | 1);
            if is_nesting {
                let next = CODE + code.len() as u64;
                assert_eq!(world.cpu.state.ssp, SSP[2] - 24);
                assert_eq!(frame(&world, SSP[2] - 24), [old, next, sel::CODE0.into()]);
            } else {
                assert_eq!(world.cpu.state.ssp, SSP[2]);
            }
            let register = if level == 3 {
                world.cpu.msrs.u_cet
            } else {
                world.cpu.state.s_cet
            };
            assert_eq!(register, BOTH | WAITS);
        }
    }
    // From a user's task to one of level 0: the user's SSP is kept in IA32_PL3_SSP.
    let mut world = switching(INT, 0);
    let gate = gate(sel::TSS_FREE, 0, 0xe5, 0);
    world.write(IDT + 8 * u64::from(VECTOR), &gate.to_le_bytes());
    let mut state = world.cpu.arch_state();
    super::set_level(&mut state, 3);
    state.ssp = SSP[3] - 0x80;
    world.cpu.set_arch_state(&state);
    world.cpu.execute_plain().expect("a good task");
    assert_eq!(world.cpu.msrs.pl_ssp[3], SSP[3] - 0x80);
    assert_eq!(world.cpu.state.ssp, SSP[2]);
}

#[test]
fn iret_to_a_task_goes_back_to_its_shadow_stack() {
    for (lip, end) in [(0, Ok(())), (1, Err(FAR_RET.into()))] {
        let call = direct(CALL, sel::TSS_FREE);
        let mut world = switching(&call, 0);
        let old = world.cpu.state.ssp;
        world.cpu.execute_plain().expect("a good task");
        world.cpu.state.s_cet = BOTH;
        world.write(TARGET, IRET);
        let old_tss = descriptor(TSS, 0x6b, 0x8b);
        world.write(GDT + u64::from(sel::TSS_BUSY), &old_tss.to_le_bytes());
        let top = SSP[2] - 24;
        let [ssp, next, cs] = frame(&world, top);
        put_frame(&mut world, top, [ssp, next + lip, cs]);
        assert_eq!(world.cpu.execute_plain(), end);
        assert_eq!(world.quadword(SSP[2]), SSP[2], "free");
        if end == Ok(()) {
            assert_eq!((world.cpu.state.ssp, world.cpu.state.rip), (old, next));
        }
    }
}

#[test]
fn a_task_that_cannot_have_its_shadow_stack_is_ts() {
    let selector = u32::from(sel::TSS_FREE);
    let ts = Err(Exception::ts(selector).into());
    type Spoil = fn(&mut World);
    let rows: [Spoil; 6] = [
        |w| w.write_doubleword(OTHER_TSS + 104, SSP[2] as u32 + 4),
        |w| w.write(SSP[2], &(SSP[2] | 1).to_le_bytes()),
        |w| w.write(SSP[2], &[0; 8]),
        |w| {
            let short = descriptor(OTHER_TSS, 0x6a, 0x89);
            w.write(GDT + u64::from(sel::TSS_FREE), &short.to_le_bytes());
        },
        |w| {
            let narrow = descriptor(OTHER_TSS, 0x6b, 0x81);
            w.write(GDT + u64::from(sel::TSS_FREE), &narrow.to_le_bytes());
        },
        // Virtual-8086 mode, with CET enabled for level 3.
        |w| w.write_doubleword(OTHER_TSS + 36, 0x2_0002),
    ];
    for (n, spoil) in rows.into_iter().enumerate() {
        let mut world = switching(&direct(JMP, sel::TSS_FREE), 0);
        spoil(&mut world);
        assert_eq!(world.cpu.execute_plain(), ts, "row {n}");
    }
}
