//! The MSRs, CR0.WP and CR4.CET, the state components, RESET and INIT.

use vmx_model::arch::{Cr0, Cr4};

use super::cet;
use crate::Cpu;
use crate::cpuid::{CpuidTable, Feature, Profile};
use crate::test_cpu::{DATA, GP, execute, long_mode};

const U_CET: u32 = 0x6a0;
const S_CET: u32 = 0x6a2;
const PL0_SSP: u32 = 0x6a4;
const PL3_SSP: u32 = 0x6a7;
const TABLE_ADDR: u32 = 0x6a8;

/// A processor with everything but the features `missing`.
fn without(missing: &[Feature]) -> Cpu {
    let mut entries = Profile::EVERYTHING.table().entries().to_vec();
    for &(feature, leaf, index, output, bit) in Feature::ALL {
        let entry = entries
            .iter_mut()
            .find(|e| e.function == leaf && (!e.has_index || e.index == index));
        if let Some(entry) = entry.filter(|_| missing.contains(&feature)) {
            *entry.output_mut(output) &= !(1 << bit);
        }
    }
    let mut cpu = long_mode();
    cpu.set_cpuid(CpuidTable::new(entries));
    cpu
}

#[test]
fn control_registers_have_the_bits_of_their_features() {
    // (missing, accepted, refused)
    type Row<'a> = (&'a [Feature], &'a [u64], &'a [u64]);
    let rows: [Row<'_>; 4] = [
        (
            &[],
            &[
                0,
                1,
                2,
                0x3f,
                0x400,
                0x800,
                0x7fff_f000,
                !0xfff,
                0xff00_0000_0000_083f,
            ],
            &[0xc00, 0xc3f, 0x40, 0x80, 0x100, 0x200, 1 << 57],
        ),
        (
            &[Feature::CetIbt],
            &[0, 3],
            &[4, 8, 0x10, 0x20, 0x400, 0x800, 0x1000],
        ),
        (&[Feature::CetSs], &[0, 0x3c, 0x800, 0x1000], &[1, 2]),
        (&[Feature::CetSs, Feature::CetIbt], &[], &[0]),
    ];
    for (missing, accepted, refused) in rows {
        for index in [U_CET, S_CET] {
            let mut cpu = without(missing);
            for &value in accepted {
                assert_eq!(cpu.write_msr(index, value), Ok(()), "{index:#x} {value:#x}");
                assert_eq!(cpu.read_msr(index), Ok(value));
            }
            for &value in refused {
                assert_eq!(cpu.write_msr(index, value), GP, "{index:#x} {value:#x}");
            }
            assert_eq!(cpu.read_msr(index).is_ok(), !accepted.is_empty());
        }
    }
}

#[test]
fn pointers_are_canonical_and_aligned() {
    for index in PL0_SSP..=PL3_SSP {
        let mut cpu = long_mode();
        for value in [0, 4, 8, 0xff00_0000_0000_0000, 0x00ff_ffff_ffff_fffc] {
            assert_eq!(cpu.write_msr(index, value), Ok(()));
            assert_eq!(cpu.read_msr(index), Ok(value));
        }
        for value in [1, 2, 3, 1 << 57, 1 << 63] {
            assert_eq!(cpu.write_msr(index, value), GP);
        }
        assert!(without(&[Feature::CetSs]).read_msr(index).is_err());
    }
    let mut cpu = long_mode();
    assert_eq!(cpu.write_msr(TABLE_ADDR, 0x1233), Ok(()));
    assert_eq!(cpu.read_msr(TABLE_ADDR), Ok(0x1233));
    assert_eq!(cpu.write_msr(TABLE_ADDR, 1 << 57), GP);
    assert!(without(&[Feature::CetSs]).read_msr(TABLE_ADDR).is_err());
}

/// MOV to CR4 from RAX, MOV to CR0 from RAX.
#[test]
fn cet_needs_write_protection() {
    const TO_CR4: &[u8] = &[0x0f, 0x22, 0xe0];
    const TO_CR0: &[u8] = &[0x0f, 0x22, 0xc0];
    let mut cpu = long_mode();
    cpu.gpr[0] = (cpu.state.cr4 | Cr4::CET).bits();
    assert_eq!(execute(&mut cpu, TO_CR4), GP);
    cpu.state.cr0 |= Cr0::WP;
    assert_eq!(execute(&mut cpu, TO_CR4), Ok(()));
    cpu.gpr[0] = (cpu.state.cr0 - Cr0::WP).bits();
    assert_eq!(execute(&mut cpu, TO_CR0), GP);
    cpu.state.cr4 -= Cr4::CET;
    assert_eq!(execute(&mut cpu, TO_CR0), Ok(()));
    for (missing, is_there) in [
        (&[Feature::CetSs][..], true),
        (&[Feature::CetIbt], true),
        (&[Feature::CetSs, Feature::CetIbt], false),
    ] {
        let mut cpu = without(missing);
        cpu.state.cr0 |= Cr0::WP;
        cpu.gpr[0] = (cpu.state.cr4 | Cr4::CET).bits();
        assert_eq!(execute(&mut cpu, TO_CR4).is_ok(), is_there);
    }
}

#[test]
fn reset_and_init_clear_everything() {
    for clear in [Cpu::reset, Cpu::init] {
        let mut cpu = cet(0);
        cpu.state.interrupt_ssp_table = 0x1000;
        cpu.msrs.pl_ssp = [8, 16, 24, 32];
        clear(&mut cpu);
        let state = &cpu.state;
        assert_eq!(
            (state.ssp, state.s_cet, state.interrupt_ssp_table),
            (0, 0, 0)
        );
        assert_eq!((cpu.msrs.u_cet, cpu.msrs.pl_ssp), (0, [0; 4]));
    }
}

#[test]
fn cpuid_tells_of_the_state_components() {
    let table = Profile::EVERYTHING.table();
    let leaf = |index| {
        let e = table.answer(0xd, index);
        [e.eax, e.ebx, e.ecx, e.edx]
    };
    assert_eq!(leaf(1)[2..], [0x1800, 0]);
    assert_eq!(leaf(11), [16, 0, 1, 0]);
    assert_eq!(leaf(12), [24, 0, 1, 0]);
    assert_eq!(leaf(0)[0] & 0x1800, 0);
    let default = Profile::DEFAULT.table();
    assert_eq!(default.answer(0xd, 1).ecx, 0);
    assert_eq!(default.answer(0xd, 11).eax, 0);
    let mut cpu = long_mode();
    assert_eq!(cpu.write_msr(0xda0, 0x1800), Ok(()));
    assert_eq!(cpu.write_msr(0xda0, 0x2000), GP);
    let mut cpu = without(&[Feature::CetSs]);
    assert_eq!(cpu.write_msr(0xda0, 0x800), Ok(()));
    assert_eq!(cpu.write_msr(0xda0, 0x1000), GP);
}

const XSAVES: &[u8] = &[0x0f, 0xc7, 0x2e];
const XRSTORS: &[u8] = &[0x0f, 0xc7, 0x1e];

/// XSAVES and XRSTORS with XSAVE enabled, IA32_XSS and the components of CET asked for, at RSI.
fn with_xsaves() -> Cpu {
    let mut cpu = long_mode();
    cpu.state.cr4 |= Cr4::OSXSAVE;
    cpu.system.xcr0 = 3;
    cpu.msrs.xss = 0x1800;
    cpu.gpr[0] = 0x1800;
    cpu.gpr[6] = DATA;
    cpu.msrs.u_cet = 0x3f;
    cpu.msrs.pl_ssp = [0x10, 0x20, 0x30, 0x44];
    cpu
}

#[test]
fn xsaves_and_xrstors_hold_the_registers() {
    let mut cpu = with_xsaves();
    assert_eq!(execute(&mut cpu, XSAVES), Ok(()));
    let word = |cpu: &Cpu, n: u64| super::quadword(cpu, DATA + n);
    assert_eq!(word(&cpu, 512), 0x1800);
    assert_eq!(word(&cpu, 520), 1 << 63 | 0x1800);
    let saved: Vec<u64> = (0..5).map(|n| word(&cpu, 576 + 8 * n)).collect();
    assert_eq!(saved, [0x3f, 0x44, 0x10, 0x20, 0x30]);
    cpu.msrs.u_cet = 1;
    cpu.msrs.pl_ssp = [8; 4];
    assert_eq!(execute(&mut cpu, XRSTORS), Ok(()));
    assert_eq!(cpu.msrs.u_cet, 0x3f);
    assert_eq!(cpu.msrs.pl_ssp, [0x10, 0x20, 0x30, 0x44]);
    // What is not in the area becomes 0; what is not asked for stays.
    super::store(&mut cpu, DATA + 512, 0x1000);
    cpu.gpr[0] = 0x800;
    assert_eq!(execute(&mut cpu, XRSTORS), Ok(()));
    assert_eq!(cpu.msrs.u_cet, 0);
    assert_eq!(cpu.msrs.pl_ssp, [0x10, 0x20, 0x30, 0]);
    assert_eq!(cpu.xinuse() & 0x1800, 0x1000);
    // XSAVEC saves no supervisor component, XSAVE in the standard form neither.
    for code in [[0x0f, 0xc7, 0x26], [0x0f, 0xae, 0x26]] {
        cpu.gpr[0] = 0x1803;
        super::store(&mut cpu, DATA + 512, 0);
        assert_eq!(execute(&mut cpu, &code), Ok(()));
        assert_eq!(word(&cpu, 512) & 0x1800, 0);
    }
}

#[test]
fn xrstors_loads_nothing_that_wrmsr_refuses() {
    for (at, value) in [
        (576, 0x40),
        (576, 0xc00),
        (576, 1 << 57),
        (584, 1),
        (592, 2),
        (608, 1 << 63),
    ] {
        let mut cpu = with_xsaves();
        assert_eq!(execute(&mut cpu, XSAVES), Ok(()));
        super::store(&mut cpu, DATA + at, value);
        cpu.msrs.u_cet = 1;
        assert_eq!(execute(&mut cpu, XRSTORS), GP, "{at} {value:#x}");
        assert_eq!(cpu.msrs.u_cet, 1);
    }
}
