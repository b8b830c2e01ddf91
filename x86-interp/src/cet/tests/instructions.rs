//! The instructions that manage shadow stacks: every condition of a fault, tokens, flags.

use vmx_model::arch::{AccessRights, Cr4, Rflags, SegmentRegister};

use super::{
    ABSENT, Cp, SHADOW_STACKS, SSP, SUPERVISOR, USER, cet, cp, doubleword, pf, quadword, store,
};
use crate::Cpu;
use crate::cpuid::Profile;
use crate::test_cpu::{DATA, GP, UD, execute, protected_mode, real_mode, user};

const INCSSPD: &[u8] = &[0xf3, 0x0f, 0xae, 0xe8];
const INCSSPQ: &[u8] = &[0xf3, 0x48, 0x0f, 0xae, 0xe8];
const RDSSPD: &[u8] = &[0xf3, 0x0f, 0x1e, 0xc8];
const RDSSPQ: &[u8] = &[0xf3, 0x48, 0x0f, 0x1e, 0xc8];
const SAVEPREVSSP: &[u8] = &[0xf3, 0x0f, 0x01, 0xea];
const SETSSBSY: &[u8] = &[0xf3, 0x0f, 0x01, 0xe8];
/// With the memory operand [RSI].
const RSTORSSP: &[u8] = &[0xf3, 0x0f, 0x01, 0x2e];
const CLRSSBSY: &[u8] = &[0xf3, 0x0f, 0xae, 0x36];
/// With the memory operand [RSI] and the register RAX.
const WRSSD: &[u8] = &[0x0f, 0x38, 0xf6, 0x06];
const WRSSQ: &[u8] = &[0x48, 0x0f, 0x38, 0xf6, 0x06];
const WRUSSD: &[u8] = &[0x66, 0x0f, 0x38, 0xf5, 0x06];
const WRUSSQ: &[u8] = &[0x66, 0x48, 0x0f, 0x38, 0xf5, 0x06];

/// #UD where shadow stacks are not in use at CPL.
const BY_LEVEL: [&[u8]; 6] = [INCSSPD, INCSSPQ, SAVEPREVSSP, RSTORSSP, WRSSD, WRSSQ];
/// Those of system software.
const OF_SUPERVISOR: [&[u8]; 4] = [SETSSBSY, CLRSSBSY, WRUSSD, WRUSSQ];

/// 32-bit protected mode without paging.
fn cet32() -> Cpu {
    let mut cpu = protected_mode();
    cpu.state.cr0 |= vmx_model::arch::Cr0::WP;
    cpu.state.cr4 |= Cr4::CET;
    cpu.state.s_cet = SHADOW_STACKS;
    cpu.state.ssp = SSP[0];
    cpu.gpr[4] = 0x6000;
    cpu
}

/// The instruction leaves everything as it was.
fn is_unchanged(cpu: &mut Cpu, code: &[u8], end: crate::Exec) {
    let before = (cpu.arch_state(), cpu.general_registers());
    assert_eq!(execute(cpu, code), end, "{code:x?}");
    let mut after = cpu.arch_state();
    after.rip = before.0.rip;
    assert_eq!((after, cpu.general_registers()), before, "{code:x?}");
}

#[test]
fn instructions_are_undefined_where_shadow_stacks_are_not_in_use() {
    for level in [0, 3] {
        let off: [fn(&mut Cpu); 3] = [
            |cpu| cpu.state.cr4 -= Cr4::CET,
            |cpu| (cpu.state.s_cet, cpu.msrs.u_cet) = (4, 4),
            |cpu| cpu.set_cpuid(Profile::DEFAULT.table()),
        ];
        for (n, switch) in off.into_iter().enumerate() {
            for code in BY_LEVEL {
                let mut cpu = cet(level);
                switch(&mut cpu);
                cpu.gpr[6] = SSP[0];
                is_unchanged(&mut cpu, code, UD);
            }
            for code in OF_SUPERVISOR {
                let mut cpu = cet(level);
                switch(&mut cpu);
                cpu.gpr[6] = SSP[0];
                // WRUSS asks for CR4.CET only.
                let is_wruss = code[0] == 0x66;
                let end = match (is_wruss && n == 1, level) {
                    (false, _) => UD,
                    (true, 3) => GP,
                    (true, _) => pf(0x47, SSP[0]),
                };
                is_unchanged(&mut cpu, code, end);
            }
        }
    }
    // WRSS has an enable bit of its own.
    for (level, code) in [(0, WRSSD), (3, WRSSD), (0, WRSSQ), (3, WRSSQ)] {
        let mut cpu = cet(level);
        (cpu.state.s_cet, cpu.msrs.u_cet) = (1, 1);
        cpu.gpr[6] = SSP[usize::from(level == 3)];
        is_unchanged(&mut cpu, code, UD);
        (cpu.state.s_cet, cpu.msrs.u_cet) = (2, 2);
        is_unchanged(&mut cpu, code, UD);
    }
}

#[test]
fn instructions_are_undefined_in_real_address_and_virtual_8086_mode() {
    let virtual_8086 = || {
        let mut cpu = user(cet32());
        cpu.msrs.u_cet = SHADOW_STACKS;
        cpu.state.rflags |= Rflags::VM;
        cpu.state.segment_mut(SegmentRegister::Cs).access = AccessRights(0xf3);
        cpu
    };
    let real = || {
        let mut cpu = real_mode();
        cpu.state.cr4 |= Cr4::CET;
        cpu.state.s_cet = SHADOW_STACKS;
        cpu
    };
    for make in [real, virtual_8086 as fn() -> Cpu] {
        for code in [INCSSPD, SAVEPREVSSP, SETSSBSY, &[0xf3, 0x0f, 0x01, 0x2c]] {
            is_unchanged(&mut make(), code, UD);
        }
        for code in [
            &[0xf3, 0x0f, 0xae, 0x34][..],
            &[0x0f, 0x38, 0xf6, 0x04],
            &[0x66, 0x0f, 0x38, 0xf5, 0x04],
        ] {
            is_unchanged(&mut make(), code, UD);
        }
        is_unchanged(&mut make(), RDSSPD, Ok(()));
    }
}

#[test]
fn system_instructions_need_level_0() {
    for code in OF_SUPERVISOR {
        let mut cpu = cet(3);
        cpu.gpr[6] = SSP[1];
        is_unchanged(&mut cpu, code, GP);
    }
}

#[test]
fn lock_is_undefined() {
    for code in [BY_LEVEL.as_slice(), &OF_SUPERVISOR].concat() {
        let mut cpu = cet(0);
        cpu.gpr[6] = SSP[0];
        let locked = [&[0xf0], code].concat();
        is_unchanged(&mut cpu, &locked, UD);
    }
}

#[test]
fn rdssp_reads_ssp_and_is_a_nop_elsewhere() {
    for level in [0, 3] {
        let mut cpu = cet(level);
        cpu.state.ssp |= 0x12_0000_0000;
        cpu.gpr[0] = u64::MAX;
        assert_eq!(execute(&mut cpu, RDSSPQ), Ok(()));
        assert_eq!(cpu.gpr[0], cpu.state.ssp);
        cpu.gpr[0] = u64::MAX;
        assert_eq!(execute(&mut cpu, RDSSPD), Ok(()));
        assert_eq!(cpu.gpr[0], cpu.state.ssp & 0xffff_ffff);
        (cpu.state.s_cet, cpu.msrs.u_cet) = if level == 0 { (4, 3) } else { (3, 4) };
        is_unchanged(&mut cpu, RDSSPQ, Ok(()));
        is_unchanged(&mut cpu, RDSSPD, Ok(()));
    }
}

#[test]
fn incssp_reads_the_first_and_the_last_element() {
    for (code, bytes) in [(INCSSPD, 4), (INCSSPQ, 8)] {
        for (level, page) in [(0, SUPERVISOR), (3, USER)] {
            for count in [0, 1, 2, 0x42, 0x1234_5600, 0xffff_ff10] {
                let mut cpu = cet(level);
                cpu.gpr[0] = count;
                assert_eq!(execute(&mut cpu, code), Ok(()));
                let moved = (count & 0xff) * bytes;
                assert_eq!(cpu.state.ssp, page + 0x800 + moved);
            }
            // The last element lies beyond the page; the one behind it is not read.
            let fault = |at| pf(0x41 | if level == 3 { 4 } else { 0 }, at);
            let mut cpu = cet(level);
            cpu.state.ssp = page + 0x1000 - 2 * bytes;
            cpu.gpr[0] = 2;
            assert_eq!(execute(&mut cpu, code), Ok(()));
            assert_eq!(cpu.state.ssp, page + 0x1000);
            cpu.state.ssp = page + 0x1000 - 2 * bytes;
            cpu.gpr[0] = 3;
            if level == 0 {
                is_unchanged(&mut cpu, code, fault(page + 0x1000));
            }
            cpu.state.ssp = DATA;
            cpu.gpr[0] = 0;
            is_unchanged(&mut cpu, code, fault(DATA));
        }
    }
}

#[test]
fn wrss_and_wruss_store_to_shadow_stacks() {
    // (code, level, shadow stack, size)
    for (code, level, at, bytes) in [
        (WRSSD, 0, SSP[0], 4),
        (WRSSQ, 0, SSP[0], 8),
        (WRSSD, 3, SSP[1], 4),
        (WRSSQ, 3, SSP[1], 8),
        (WRUSSD, 0, SSP[1], 4),
        (WRUSSQ, 0, SSP[1], 8),
    ] {
        let mut cpu = cet(level);
        cpu.gpr[0] = 0x1122_3344_5566_7788;
        cpu.gpr[6] = at;
        store(&mut cpu, at, u64::MAX);
        is_unchanged(&mut cpu, code, Ok(()));
        let expected = if bytes == 8 {
            0x1122_3344_5566_7788
        } else {
            0xffff_ffff_5566_7788
        };
        assert_eq!(quadword(&cpu, at), expected);
        for offset in 1..bytes {
            cpu.gpr[6] = at + offset;
            is_unchanged(&mut cpu, code, GP);
        }
        let is_user = at == SSP[1];
        let level_bit = if is_user { 4 } else { 0 };
        for (at, present) in [(DATA, 1), (ABSENT, 0)] {
            cpu.gpr[6] = at;
            is_unchanged(&mut cpu, code, pf(0x42 | level_bit | present, at));
        }
        let other = SSP[usize::from(!is_user)];
        cpu.gpr[6] = other;
        is_unchanged(&mut cpu, code, pf(0x43 | level_bit, other));
        cpu.gpr[6] = 1 << 63;
        is_unchanged(&mut cpu, code, GP);
    }
}

#[test]
fn setssbsy_takes_a_free_token_only() {
    for (token, end) in [
        (SSP[0], Ok(())),
        (SSP[0] | 1, cp(Cp::Setssbsy)),
        (SSP[0] | 2, cp(Cp::Setssbsy)),
        (SSP[0] + 8, cp(Cp::Setssbsy)),
        (0, cp(Cp::Setssbsy)),
    ] {
        let mut cpu = cet(0);
        cpu.msrs.pl_ssp[0] = SSP[0];
        cpu.state.ssp = 0x1238;
        store(&mut cpu, SSP[0], token);
        if end == Ok(()) {
            cpu.set_rflags(Rflags::STATUS);
            assert_eq!(execute(&mut cpu, SETSSBSY), end);
            assert_eq!(cpu.state.ssp, SSP[0]);
            assert_eq!(quadword(&cpu, SSP[0]), token | 1);
            assert!(cpu.rflags().contains(Rflags::STATUS), "no flag changes");
        } else {
            is_unchanged(&mut cpu, SETSSBSY, end);
            assert_eq!(quadword(&cpu, SSP[0]), token);
        }
    }
    let mut cpu = cet(0);
    for (at, end) in [
        (SSP[0] + 4, GP),
        (DATA, pf(0x43, DATA)),
        (USER, pf(0x43, USER)),
    ] {
        cpu.msrs.pl_ssp[0] = at;
        is_unchanged(&mut cpu, SETSSBSY, end);
    }
}

#[test]
fn clrssbsy_clears_a_busy_token_and_tells_by_cf() {
    for (token, after, carry) in [
        (SSP[0] | 1, SSP[0], false),
        (SSP[0], SSP[0], true),
        (SSP[0] | 3, SSP[0] | 3, true),
        (5, 5, true),
    ] {
        let mut cpu = cet(0);
        cpu.gpr[6] = SSP[0];
        store(&mut cpu, SSP[0], token);
        cpu.set_rflags(Rflags::STATUS | Rflags::DF);
        assert_eq!(execute(&mut cpu, CLRSSBSY), Ok(()));
        assert_eq!(quadword(&cpu, SSP[0]), after);
        assert_eq!(cpu.state.ssp, 0);
        let carried = if carry { Rflags::CF } else { Rflags::empty() };
        assert_eq!(cpu.rflags(), Rflags::FIXED1 | Rflags::DF | carried);
    }
    let mut cpu = cet(0);
    for (at, end) in [
        (SSP[0] + 4, GP),
        (DATA, pf(0x43, DATA)),
        (USER, pf(0x43, USER)),
        (ABSENT, pf(0x42, ABSENT)),
        (1 << 63, GP),
    ] {
        cpu.gpr[6] = at;
        is_unchanged(&mut cpu, CLRSSBSY, end);
    }
}

#[test]
fn rstorssp_takes_a_restore_token_of_its_mode() {
    let at = SUPERVISOR + 0x400;
    // (64-bit mode, token, outcome, CF)
    for (is_long, token, end, carry) in [
        (true, (at + 8) | 1, Ok(()), false),
        (true, (at + 12) | 1, Ok(()), true),
        (true, at + 8, cp(Cp::Rstorssp), false),
        (true, (at + 8) | 3, cp(Cp::Rstorssp), false),
        (true, (at + 16) | 1, cp(Cp::Rstorssp), false),
        (true, at | 1, cp(Cp::Rstorssp), false),
        (false, at + 8, Ok(()), false),
        (false, at + 12, Ok(()), true),
        (false, (at + 8) | 1, cp(Cp::Rstorssp), false),
        (false, (at + 8) | 2, cp(Cp::Rstorssp), false),
        (false, (at + 8) | 1 << 32, cp(Cp::Rstorssp), false),
    ] {
        let mut cpu = if is_long { cet(0) } else { cet32() };
        store(&mut cpu, at, token);
        cpu.gpr[6] = at;
        if end != Ok(()) {
            is_unchanged(&mut cpu, RSTORSSP, end);
            assert_eq!(quadword(&cpu, at), token);
            continue;
        }
        cpu.set_rflags(Rflags::STATUS);
        assert_eq!(execute(&mut cpu, RSTORSSP), Ok(()), "{token:#x}");
        assert_eq!(cpu.state.ssp, at);
        assert_eq!(quadword(&cpu, at), SSP[0] | 2 | u64::from(is_long));
        let carried = if carry { Rflags::CF } else { Rflags::empty() };
        assert_eq!(cpu.rflags(), Rflags::FIXED1 | carried);
    }
    for (level, at, end) in [
        (0, at + 4, GP),
        (0, DATA, pf(0x43, DATA)),
        (0, USER, pf(0x43, USER)),
        (3, SUPERVISOR, pf(0x47, SUPERVISOR)),
        (3, ABSENT, pf(0x46, ABSENT)),
        (0, 1 << 63, GP),
    ] {
        let mut cpu = cet(level);
        cpu.gpr[6] = at;
        is_unchanged(&mut cpu, RSTORSSP, end);
    }
}

#[test]
fn saveprevssp_leaves_a_restore_token_on_the_old_shadow_stack() {
    let old = SUPERVISOR + 0x400;
    // (64-bit mode, token, CF, what follows it, outcome, restore token, SSP after)
    for (is_long, token, carry, hole, end, saved, moved) in [
        (true, old | 3, false, 9, Ok(()), old | 1, 8),
        (true, old | 2, false, 9, Ok(()), old | 1, 8),
        (true, (old + 4) | 3, false, 9, Ok(()), (old + 4) | 1, 8),
        (true, old | 1, false, 9, GP, 0, 0),
        (true, old | 3, true, 0, GP, 0, 0),
        (false, old | 2, false, 9, Ok(()), old, 8),
        (false, old | 2, true, 0, Ok(()), old, 12),
        (false, (old + 4) | 2, false, 9, Ok(()), old + 4, 8),
        (false, old | 2, true, 9, GP, 0, 0),
        (false, old, false, 9, GP, 0, 0),
        (false, old | 2 | 1 << 32, false, 9, GP, 0, 0),
    ] {
        let mut cpu = if is_long { cet(0) } else { cet32() };
        store(&mut cpu, old - 8, u64::MAX);
        store(&mut cpu, old, u64::MAX);
        store(&mut cpu, SSP[0], token);
        store(&mut cpu, SSP[0] + 8, hole);
        cpu.set_rflags(if carry { Rflags::CF } else { Rflags::ZF });
        if end != Ok(()) {
            is_unchanged(&mut cpu, SAVEPREVSSP, end);
            assert_eq!(quadword(&cpu, old - 8), u64::MAX);
            continue;
        }
        let flags = cpu.rflags();
        assert_eq!(execute(&mut cpu, SAVEPREVSSP), Ok(()));
        assert_eq!(quadword(&cpu, old - 8), saved, "{token:#x}");
        assert_eq!(cpu.state.ssp, SSP[0] + moved);
        assert_eq!(cpu.rflags(), flags);
        // An alignment hole is filled with zeros.
        let expected = if token & 4 != 0 { 0 } else { u32::MAX };
        assert_eq!(doubleword(&cpu, old), expected);
    }
    let mut cpu = cet(0);
    cpu.state.ssp = SSP[0] + 4;
    is_unchanged(&mut cpu, SAVEPREVSSP, GP);
    let mut cpu = cet(0);
    store(&mut cpu, SSP[0], (USER + 0x400) | 3);
    cpu.set_rflags(Rflags::empty());
    is_unchanged(&mut cpu, SAVEPREVSSP, pf(0x43, USER + 0x3fc));
}

/// RSTORSSP and SAVEPREVSSP go to another shadow stack and back.
#[test]
fn two_shadow_stacks_are_switched_to_and_fro() {
    for is_long in [false, true] {
        let mut cpu = if is_long { cet(0) } else { cet32() };
        let (first, second) = (SSP[0], SUPERVISOR + 0x400);
        store(&mut cpu, second - 8, second | u64::from(is_long));
        cpu.gpr[6] = second - 8;
        assert_eq!(execute(&mut cpu, RSTORSSP), Ok(()));
        assert_eq!(execute(&mut cpu, SAVEPREVSSP), Ok(()));
        assert_eq!(cpu.state.ssp, second);
        cpu.gpr[6] = first - 8;
        assert_eq!(execute(&mut cpu, RSTORSSP), Ok(()));
        assert_eq!(execute(&mut cpu, SAVEPREVSSP), Ok(()));
        assert_eq!(cpu.state.ssp, first);
    }
}
