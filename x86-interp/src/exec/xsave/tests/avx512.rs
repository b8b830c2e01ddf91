//! The components of AVX-512: places, modes, XCR0; and the compacted form beside the host's, whose
//! layout is the same on every vendor's processor.

use vmx_model::addr::Hpa;
use vmx_model::arch::Cr4;

use super::{XGETBV, XRSTOR, XRSTORS, XSAVE, XSAVEC, XSAVES, XSETBV, get, put};
use crate::Cpu;
use crate::cpuid::{Feature, FeatureSet};
use crate::fpu::FpuState;
use crate::test_cpu::{DATA, GP, avx512_cpuid, execute, long_mode, protected_mode};
use crate::xstate;

/// XSAVE and XRSTOR without REX.W, for code that is not 64-bit.
const XSAVE_32: [u8; 3] = [0x0f, 0xae, 0x27];
const XRSTOR_32: [u8; 3] = [0x0f, 0xae, 0x2f];

pub(super) fn prepare(mut cpu: Cpu) -> Cpu {
    cpu.set_cpuid(avx512_cpuid());
    cpu.state.cr4 |= Cr4::OSXSAVE | Cr4::OSFXSR;
    cpu.system.xcr0 = 0x2e7;
    cpu.set_edx_eax(u64::MAX);
    cpu.gpr[7] = DATA;
    cpu
}

/// A state in which every quadword is another.
fn distinct() -> FpuState {
    let mut fpu = FpuState::initial();
    fpu.vector = core::array::from_fn(|n| core::array::from_fn(|k| (n * 8 + k + 1) as u64));
    fpu.opmask = core::array::from_fn(|n| 0x1000 + n as u64);
    fpu
}

#[test]
fn the_standard_form_has_the_components_at_their_places() {
    let mut cpu = prepare(long_mode());
    *cpu.fpu = distinct();
    execute(&mut cpu, &XSAVE).expect("XSAVE");
    assert_eq!(get(&cpu, 512), 0xe6);
    assert_eq!(get(&cpu, 1088), 0x1000);
    assert_eq!(get(&cpu, 1088 + 56), 0x1007);
    assert_eq!(get(&cpu, 1152), 5);
    assert_eq!(get(&cpu, 1152 + 511 - 7), 16 * 8);
    assert_eq!(get(&cpu, 1664), 16 * 8 + 1);
    assert_eq!(get(&cpu, 1664 + 1023 - 7), 32 * 8);
    *cpu.fpu = FpuState::initial();
    execute(&mut cpu, &XRSTOR).expect("XRSTOR");
    assert_eq!(*cpu.fpu, distinct());
    // What the area does not have becomes zero, and only what is asked for.
    put(&cpu, 512, 0x46);
    cpu.set_edx_eax(0xa0);
    execute(&mut cpu, &XRSTOR).expect("XRSTOR");
    let mut expected = distinct();
    expected.opmask = [0; 8];
    expected.vector[16..].fill([0; 8]);
    assert_eq!(*cpu.fpu, expected);
}

#[test]
fn the_compacted_form_leaves_out_what_is_not_asked_for() {
    for (save, restore) in [(XSAVEC, XRSTOR), (XSAVES, XRSTORS)] {
        let mut cpu = prepare(long_mode());
        *cpu.fpu = distinct();
        cpu.set_edx_eax(0xa0);
        execute(&mut cpu, &save).expect("a save");
        assert_eq!((get(&cpu, 512), get(&cpu, 520)), (0xa0, 1 << 63 | 0xa0));
        assert_eq!(get(&cpu, 576), 0x1000);
        assert_eq!(get(&cpu, 640), 16 * 8 + 1);
        *cpu.fpu = FpuState::initial();
        execute(&mut cpu, &restore).expect("a restore");
        assert_eq!(cpu.fpu.opmask, distinct().opmask);
        assert_eq!(cpu.fpu.vector[16..], distinct().vector[16..]);
        assert_eq!(cpu.fpu.vector[..16], [[0; 8]; 16]);
    }
}

/// SDM Vol. 1, "AVX-512 State": outside 64-bit mode the registers that cannot be reached are
/// neither saved nor loaded.
#[test]
fn code_of_32_bits_saves_and_loads_what_it_reaches() {
    let mut cpu = prepare(protected_mode());
    *cpu.fpu = distinct();
    cpu.phys.write_bytes(Hpa(DATA), &[0xcc; 3072]);
    put(&cpu, 512, 0);
    put(&cpu, 520, 0);
    put(&cpu, 528, 0);
    execute(&mut cpu, &XSAVE_32).expect("XSAVE");
    assert_eq!(get(&cpu, 1088 + 56), 0x1007);
    assert_eq!(get(&cpu, 1152 + 255 - 7), 8 * 8);
    assert_eq!(get(&cpu, 1152 + 256), 0xcccc_cccc_cccc_cccc);
    assert_eq!(get(&cpu, 1664), 0xcccc_cccc_cccc_cccc);
    *cpu.fpu = FpuState::initial();
    execute(&mut cpu, &XRSTOR_32).expect("XRSTOR");
    let mut expected = distinct();
    expected.vector[8..].fill([0; 8]);
    assert_eq!(*cpu.fpu, expected);
}

#[test]
fn the_components_are_enabled_together_and_with_avx() {
    for (value, is_valid) in [
        (0x27, false),
        (0x67, false),
        (0xe3, false),
        (0xc7, false),
        (0xe1, false),
        (0xe7, true),
        (0x2e7, true),
    ] {
        let mut cpu = prepare(long_mode());
        cpu.gpr[1] = 0;
        cpu.set_edx_eax(value);
        let expected = if is_valid { Ok(()) } else { GP };
        assert_eq!(execute(&mut cpu, &XSETBV), expected, "{value:x}");
    }
}

#[test]
fn xgetbv_tells_which_components_are_in_use() {
    type Row = (fn(&mut FpuState), u64);
    let rows: [Row; 4] = [
        (|_| {}, 0),
        (|fpu| fpu.opmask[7] = 1, xstate::OPMASK),
        (|fpu| fpu.vector[15][7] = 1, xstate::ZMM_HI256),
        (|fpu| fpu.vector[16][0] = 1, xstate::HI16_ZMM),
    ];
    for (change, expected) in rows {
        let mut cpu = prepare(long_mode());
        *cpu.fpu = FpuState::initial();
        change(&mut cpu.fpu);
        cpu.gpr[1] = 1;
        execute(&mut cpu, &XGETBV).expect("XGETBV");
        assert_eq!(cpu.edx_eax(), expected);
    }
}

#[test]
fn cpuid_tells_sizes_and_places() {
    let table = avx512_cpuid();
    let rows = [
        (0, [0x2e7, 576, 2696, 0]),
        (5, [64, 1088, 0, 0]),
        (6, [512, 1152, 0, 0]),
        (7, [1024, 1664, 0, 0]),
    ];
    for (subleaf, expected) in rows {
        let found = table.answer(0xd, subleaf);
        let words = [found.eax, found.ebx, found.ecx, found.edx];
        assert_eq!(words, expected, "{subleaf}");
    }
    assert_eq!(xstate::standard_bytes(0xe7), 2688);
    assert_eq!(xstate::compacted_bytes(0xe7), 576 + 256 + 64 + 512 + 1024);
    let without = FeatureSet::default().with(Feature::Avx);
    assert_eq!(xstate::supported(without), 7);
}
