//! Near branches: CALL and RET on the shadow stack, the tracker, by plain handlers and in blocks.

use vmx_model::addr::Hpa;
use vmx_model::arch::{Cr4, Rflags};
use vmx_model::event::Exception;

use super::{ABSENT, Cp, SSP, SUPERVISOR, USER, cet, cp, doubleword, map, pf, quadword, store};
use crate::cpuid::Profile;
use crate::test_cpu::{CODE, DATA, GP, execute, protected_mode, user};
use crate::{Cpu, Stop};

/// The tracker waits.
const WAITS: u64 = 1 << 11;
const SUPPRESS: u64 = 1 << 10;
/// ENDBR_EN.
const TRACK: u64 = 4;
const ENDBR64: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];
const ENDBR32: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfb];

/// 32-bit protected mode without paging, shadow stacks at SSP[0].
fn cet32() -> Cpu {
    let mut cpu = protected_mode();
    cpu.state.cr0 |= vmx_model::arch::Cr0::WP;
    cpu.state.cr4 |= Cr4::CET;
    (cpu.state.s_cet, cpu.msrs.u_cet) = (1, 1);
    cpu.state.ssp = SSP[0];
    cpu.gpr[4] = 0x6000;
    cpu
}

#[test]
fn call_pushes_on_both_stacks() {
    // (code, 64-bit mode, bytes on the shadow stack)
    let rows: [(&[u8], bool, u64); 8] = [
        (&[0xe8, 0x10, 0, 0, 0], true, 8),
        (&[0xff, 0xd0], true, 8),
        (&[0xff, 0x16], true, 8),
        (&[0xe8, 0x10, 0, 0, 0], false, 4),
        (&[0x66, 0xe8, 0x10, 0], false, 4),
        (&[0xff, 0xd0], false, 4),
        (&[0x66, 0xff, 0xd0], false, 4),
        // CALL of the next instruction pushes nothing there.
        (&[0xe8, 0, 0, 0, 0], true, 0),
    ];
    for (code, is_long, bytes) in rows {
        let mut cpu = if is_long { cet(0) } else { cet32() };
        cpu.gpr[0] = 0x1400;
        cpu.gpr[6] = DATA;
        store(&mut cpu, DATA, 0x1400);
        store(&mut cpu, SSP[0] - 8, u64::MAX);
        assert_eq!(execute(&mut cpu, code), Ok(()), "{code:x?}");
        assert_eq!(cpu.state.ssp, SSP[0] - bytes, "{code:x?}");
        let next = CODE + code.len() as u64;
        let top = cpu.gpr[4];
        assert_eq!(u64::from(doubleword(&cpu, top) as u16), next & 0xffff);
        match bytes {
            8 => assert_eq!(quadword(&cpu, SSP[0] - 8), next),
            4 => assert_eq!(u64::from(doubleword(&cpu, SSP[0] - 4)), next),
            _ => assert_eq!(quadword(&cpu, SSP[0] - 8), u64::MAX),
        }
    }
}

#[test]
fn ret_compares_both_stacks() {
    let rows: [(&[u8], bool, u64, u64); 6] = [
        (&[0xc3], true, 8, 8),
        (&[0xc2, 0x10, 0], true, 8, 0x18),
        (&[0xc3], false, 4, 4),
        (&[0xc2, 0x10, 0], false, 4, 0x14),
        (&[0x66, 0xc3], false, 4, 2),
        (&[0x66, 0xc2, 0x10, 0], false, 4, 0x12),
    ];
    for (code, is_long, bytes, released) in rows {
        for (wrong, end) in [
            (0, Ok(())),
            (1, cp(Cp::NearRet)),
            (1 << 16, cp(Cp::NearRet)),
        ] {
            let mut cpu = if is_long { cet(0) } else { cet32() };
            let top = cpu.gpr[4];
            store(&mut cpu, top, 0x1400);
            store(&mut cpu, SSP[0], 0x1400 ^ wrong);
            let before = cpu.arch_state();
            assert_eq!(execute(&mut cpu, code), end, "{code:x?} {wrong:#x}");
            if end == Ok(()) {
                assert_eq!(cpu.state.rip, 0x1400);
                assert_eq!(cpu.state.ssp, SSP[0] + bytes);
                assert_eq!(cpu.gpr[4], top + released);
            } else {
                assert_eq!(cpu.arch_state(), before);
            }
        }
    }
}

#[test]
fn a_fault_of_either_stack_leaves_the_other() {
    const CALL: &[u8] = &[0xff, 0xd0];
    for level in [0, 3] {
        let bits = if level == 3 { 4 } else { 0 };
        // (RSP, SSP, outcome): the ordinary stack is pushed first.
        for (rsp, ssp, end) in [
            (ABSENT + 8, DATA, pf(2 | bits, ABSENT)),
            (0x6000, DATA + 8, pf(0x43 | bits, DATA)),
            (0x6000, ABSENT + 8, pf(0x42 | bits, ABSENT)),
            (1 << 63, SSP[0], Err(Exception::ss(0).into())),
            (0x6000, (1 << 47) + 8, GP),
        ] {
            let mut cpu = cet(level);
            cpu.gpr[0] = 0x1400;
            cpu.gpr[4] = rsp;
            cpu.state.ssp = ssp;
            store(&mut cpu, 0x5ff8, 0x55);
            let before = cpu.arch_state();
            assert_eq!(execute(&mut cpu, CALL), end, "{rsp:#x} {ssp:#x}");
            assert_eq!(cpu.arch_state(), before);
            assert_eq!(quadword(&cpu, 0x5ff8), 0x55);
        }
        // RET to an address that is not canonical is #GP, before the shadow stack is looked at.
        let mut cpu = cet(level);
        store(&mut cpu, 0x6000, 1 << 63);
        assert_eq!(execute(&mut cpu, &[0xc3]), GP);
        store(&mut cpu, 0x6000, 0x1400);
        cpu.state.ssp = DATA;
        assert_eq!(execute(&mut cpu, &[0xc3]), pf(0x41 | bits, DATA));
    }
}

#[test]
fn only_the_enabled_level_has_a_shadow_stack() {
    for (level, s_cet, u_cet, pushed) in [(0, 1, 0, 8), (0, 0, 1, 0), (3, 1, 0, 0), (3, 0, 1, 8)] {
        let mut cpu = cet(level);
        (cpu.state.s_cet, cpu.msrs.u_cet) = (s_cet, u_cet);
        let before = cpu.state.ssp;
        assert_eq!(execute(&mut cpu, &[0xe8, 0x10, 0, 0, 0]), Ok(()));
        assert_eq!(cpu.state.ssp, before - pushed);
    }
}

/// IA32_S_CET before, the instruction, IA32_S_CET after.
#[test]
fn near_indirect_branches_are_tracked() {
    let rows: [(u64, &[u8], u64); 14] = [
        (TRACK, &[0xff, 0xe0], TRACK | WAITS),
        (TRACK, &[0xff, 0xd0], TRACK | WAITS),
        (TRACK, &[0xff, 0x26], TRACK | WAITS),
        (TRACK, &[0xff, 0x16], TRACK | WAITS),
        (TRACK, &[0xeb, 0x10], TRACK),
        (TRACK, &[0xe8, 0x10, 0, 0, 0], TRACK),
        (TRACK, &[0x74, 0x10], TRACK),
        (TRACK, &[0xc3], TRACK),
        (TRACK | SUPPRESS, &[0xff, 0xe0], TRACK | SUPPRESS),
        // NOTRACK counts where NO_TRACK_EN is set.
        (TRACK, &[0x3e, 0xff, 0xe0], TRACK | WAITS),
        (TRACK | 0x10, &[0x3e, 0xff, 0xe0], TRACK | 0x10),
        (TRACK | 0x10, &[0x3e, 0xff, 0xd0], TRACK | 0x10),
        (TRACK | 0x10, &[0x2e, 0xff, 0xe0], TRACK | 0x10 | WAITS),
        (0, &[0xff, 0xe0], 0),
    ];
    for (before, code, after) in rows {
        for level in [0, 3] {
            let mut cpu = cet(level);
            let register = |cpu: &Cpu| {
                if level == 3 {
                    cpu.msrs.u_cet
                } else {
                    cpu.state.s_cet
                }
            };
            (cpu.state.s_cet, cpu.msrs.u_cet) = (before, before);
            cpu.gpr[0] = 0x1400;
            cpu.gpr[6] = DATA;
            store(&mut cpu, DATA, 0x1400);
            store(&mut cpu, 0x6000, 0x1400);
            assert_eq!(execute(&mut cpu, code), Ok(()), "{code:x?}");
            assert_eq!(register(&cpu), after, "{code:x?}");
            let other = if level == 3 {
                cpu.state.s_cet
            } else {
                cpu.msrs.u_cet
            };
            assert_eq!(other, before, "the other tracker stays");
        }
    }
}

#[test]
fn a_branch_that_faults_is_not_tracked() {
    for code in [[0xff, 0xe0], [0xff, 0xd0]] {
        let mut cpu = cet(0);
        cpu.state.s_cet = TRACK;
        cpu.gpr[0] = 1 << 63;
        assert_eq!(execute(&mut cpu, &code), GP);
        assert_eq!(cpu.state.s_cet, TRACK);
    }
}

/// The instruction where the tracker waits, in 64-bit mode or 32-bit mode, and the outcome.
#[test]
fn the_tracker_waits_for_endbranch_of_its_mode() {
    let missing = || cp(Cp::Endbranch);
    let rows: [(bool, &[u8], crate::Exec, bool); 9] = [
        (true, &ENDBR64, Ok(()), false),
        (true, &ENDBR32, missing(), true),
        (false, &ENDBR32, Ok(()), false),
        (false, &ENDBR64, missing(), true),
        (true, &[0x90], missing(), true),
        // The missing ENDBRANCH comes before what the decoder finds.
        (true, &[0x0f, 0x0b], missing(), true),
        (true, &[0x06], missing(), true),
        (true, &[0x66; 15], missing(), true),
        // NOP of the same group.
        (true, &[0xf3, 0x0f, 0x1e, 0xf9], missing(), true),
    ];
    for (is_long, code, end, waits) in rows {
        for suppress in [0, SUPPRESS] {
            let mut cpu = if is_long { cet(0) } else { cet32() };
            cpu.state.s_cet = TRACK | WAITS;
            assert_eq!(execute(&mut cpu, code), end, "{code:x?}");
            let expected = if waits { TRACK | WAITS } else { TRACK };
            assert_eq!(cpu.state.s_cet, expected, "{code:x?}");
            // ENDBRANCH ends the suppression; other instructions keep it.
            cpu.state.s_cet = TRACK | suppress;
            let result = execute(&mut cpu, code);
            let kept = if waits { suppress } else { 0 };
            assert_eq!(cpu.state.s_cet, TRACK | kept, "{code:x?} {result:?}");
        }
    }
}

#[test]
fn the_tracker_of_the_other_level_and_without_its_enable_bit_does_not_matter() {
    for (level, s_cet, u_cet) in [(0, 0, TRACK | WAITS), (3, TRACK | WAITS, 0), (0, WAITS, 0)] {
        let mut cpu = cet(level);
        (cpu.state.s_cet, cpu.msrs.u_cet) = (s_cet, u_cet);
        assert_eq!(execute(&mut cpu, &[0x90]), Ok(()));
        cpu.state.cr4 -= Cr4::CET;
        (cpu.state.s_cet, cpu.msrs.u_cet) = (TRACK | WAITS, TRACK | WAITS);
        assert_eq!(execute(&mut cpu, &[0x90]), Ok(()));
    }
}

/// INT3 and INT1 are let through, and the tracker of the level goes on waiting: here without an
/// IDT. INT 3 of two bytes is not.
#[test]
fn breakpoint_instructions_come_before_a_missing_endbranch() {
    for (code, end) in [
        (&[0xcc][..], Err(Exception::gp(0x1a).into())),
        (&[0xf1], Err(Exception::gp(0xa).into())),
        (&[0xcd, 3], cp(Cp::Endbranch)),
    ] {
        let mut cpu = cet(0);
        cpu.state.s_cet = TRACK | WAITS;
        cpu.state.idtr.limit = 0;
        assert_eq!(execute(&mut cpu, code), end);
        assert_eq!(cpu.state.s_cet, TRACK | WAITS);
    }
}

#[test]
fn a_fault_of_the_fetch_comes_first() {
    let mut cpu = cet(0);
    cpu.state.s_cet = TRACK | WAITS;
    cpu.state.rip = ABSENT;
    assert_eq!(cpu.execute_plain(), pf(0x10, ABSENT));
    // The first byte is a whole instruction: the next page is not needed.
    cpu.phys.write_bytes(Hpa(USER + 0xfff), &[0x90]);
    cpu.state.rip = USER + 0xfff;
    assert_eq!(cpu.execute_plain(), cp(Cp::Endbranch));
    cpu.phys.write_bytes(Hpa(USER + 0xfff), &[0xf3]);
    assert_eq!(cpu.execute_plain(), pf(0x10, ABSENT));
}

#[test]
fn the_legacy_code_page_bitmap_lets_its_pages_pass() {
    const LEGACY: u64 = 8;
    const SUPPRESS_DIS: u64 = 0x20;
    let base = DATA;
    for (bits, control, end, after) in [
        (1 << (CODE >> 12), LEGACY, Ok(()), LEGACY | SUPPRESS),
        (
            1 << (CODE >> 12),
            LEGACY | SUPPRESS_DIS,
            Ok(()),
            LEGACY | SUPPRESS_DIS,
        ),
        (
            !(1 << (CODE >> 12)),
            LEGACY,
            cp(Cp::Endbranch),
            LEGACY | WAITS,
        ),
        (u64::MAX, 0, cp(Cp::Endbranch), WAITS),
    ] {
        for level in [0, 3] {
            let mut cpu = cet(level);
            let value = base | TRACK | WAITS | control;
            (cpu.state.s_cet, cpu.msrs.u_cet) = (value, value);
            store(&mut cpu, base, bits);
            assert_eq!(execute(&mut cpu, &[0x90]), end);
            let register = if level == 3 {
                cpu.msrs.u_cet
            } else {
                cpu.state.s_cet
            };
            assert_eq!(register, base | TRACK | after);
        }
    }
    // The bitmap is read; its page may be missing, or not for users.
    for (level, flags, code) in [(0, 0, 0), (3, 0, 4), (3, 0x63, 5)] {
        let mut cpu = cet(level);
        let value = ABSENT | TRACK | WAITS | LEGACY;
        (cpu.state.s_cet, cpu.msrs.u_cet) = (value, value);
        map(&mut cpu, ABSENT, flags);
        assert_eq!(execute(&mut cpu, &[0x90]), pf(code, ABSENT));
    }
}

/// CALL RAX, to code that calls another function and returns; then HLT.
fn program(cpu: &mut Cpu) {
    // call rax; hlt
    cpu.phys.write_bytes(Hpa(CODE), &[0xff, 0xd0, 0xf4]);
    // endbr64; call +1; ret; nop; dec ecx; jnz -6 to the call of a function that returns
    let callee = [
        &ENDBR64[..],
        &[0xe8, 1, 0, 0, 0, 0xc3, 0x90, 0xff, 0xc9, 0xc3],
    ]
    .concat();
    cpu.phys.write_bytes(Hpa(0x1400), &callee);
    cpu.gpr[0] = 0x1400;
    cpu.state.rip = CODE;
}

/// The engine takes no hot handlers where CET is in use, and the same code with CET and without.
#[test]
fn blocks_know_whether_cet_is_in_use() {
    let mut cpu = cet(0);
    for control in [0, 1 | TRACK, 0, 1, TRACK, 0] {
        program(&mut cpu);
        cpu.state.s_cet = control;
        cpu.state.ssp = SSP[0];
        cpu.gpr[4] = 0x6000;
        cpu.state.activity = vmx_model::arch::Activity::Active;
        store(&mut cpu, SUPERVISOR + 0x7f0, u64::MAX);
        assert_eq!(cpu.run(100), Stop::Halt);
        assert_eq!(cpu.state.s_cet, control);
        assert_eq!((cpu.state.ssp, cpu.gpr[4]), (SSP[0], 0x6000));
        let pushed = if control & 1 != 0 { 0x1409 } else { u64::MAX };
        assert_eq!(quadword(&cpu, SUPERVISOR + 0x7f0), pushed);
    }
}

/// A return address that is overwritten ends in #CP, whatever runs before: here without a handler,
/// in shutdown.
#[test]
fn a_block_ends_in_cp_at_a_wrong_return_address() {
    for (level, start) in [(0, 0x1400_u64), (3, 0x1400)] {
        let mut cpu = cet(level);
        // inc qword [rsp]; ret
        cpu.phys
            .write_bytes(Hpa(0x1400), &[0x48, 0xff, 0x04, 0x24, 0xc3]);
        // call 0x1400
        cpu.phys.write_bytes(Hpa(CODE), &[0xe8, 0xfb, 3, 0, 0]);
        cpu.state.rip = CODE;
        cpu.state.idtr.limit = 0;
        assert_eq!(cpu.run(100), Stop::Shutdown);
        assert_eq!(cpu.state.rip, start + 4, "at the RET");
    }
}

#[test]
fn without_the_feature_endbranch_is_a_nop() {
    for code in [ENDBR32, ENDBR64] {
        let mut cpu = user(cet(0));
        cpu.set_cpuid(Profile::DEFAULT.table());
        cpu.state.cr4 -= Cr4::CET;
        cpu.msrs.u_cet = TRACK | SUPPRESS;
        cpu.set_rflags(Rflags::STATUS);
        assert_eq!(execute(&mut cpu, &code), Ok(()));
        assert_eq!(cpu.msrs.u_cet, TRACK | SUPPRESS);
    }
}
