//! One row for each rule of the control registers.

use vmx_model::addr::Hpa;
use vmx_model::arch::{AccessRights, Cr0, Cr4, Efer, SegmentRegister};

use crate::cpuid::Profile;
use crate::test_cpu::{DATA, GP, UD, execute, long_mode, protected_mode, real_mode, user};
use crate::{Cpu, Exec};

const PE: u64 = Cr0::PE.bits();
const PG: u64 = Cr0::PG.bits();
const WP: u64 = Cr0::WP.bits();
const ET: u64 = Cr0::ET.bits();
const NW: u64 = Cr0::NW.bits();
const CD: u64 = Cr0::CD.bits();

fn pae() -> Cpu {
    let mut cpu = protected_mode();
    cpu.state.cr3 = DATA;
    cpu.state.cr4 = Cr4::PAE;
    cpu.state.cr0 |= Cr0::PG;
    cpu
}

/// Executes MOV CRn, RAX.
fn load(cpu: &mut Cpu, number: u8, value: u64) -> Exec {
    cpu.gpr[0] = value;
    let modrm = 0xc0 | (number & 7) << 3;
    if number == 8 {
        return execute(cpu, &[0x44, 0x0f, 0x22, modrm]);
    }
    // Not a fetch through the paging that the test sets up, but from the register file of `pae`.
    let code = [0x0f, 0x22, modrm];
    execute(cpu, &code)
}

#[test]
fn cr0_rules() {
    type Row = (&'static str, fn() -> Cpu, u64, Exec);
    let rows: &[Row] = &[
        ("PE off", protected_mode, ET, Ok(())),
        ("PG without PE", protected_mode, PG, GP),
        ("NW without CD", protected_mode, PE | NW, GP),
        ("CD and NW", protected_mode, PE | NW | CD, Ok(())),
        ("upper half", long_mode, PE | PG | 1 << 32, GP),
        ("PG off in 64-bit mode", long_mode, PE, GP),
        (
            "reserved low bits are ignored",
            protected_mode,
            PE | 0x1ff8_ffc0,
            Ok(()),
        ),
        ("no privilege", || user(protected_mode()), PE, GP),
    ];
    for (name, cpu, value, expected) in rows {
        let mut cpu = cpu();
        let before = cpu.state.clone();
        assert_eq!(load(&mut cpu, 0, *value), *expected, "{name}");
        if expected.is_err() {
            assert_eq!(cpu.state, before, "{name}");
        }
    }
    let mut cpu = protected_mode();
    load(&mut cpu, 0, PE | 0x1ff8_ffc0).expect("no rule is broken");
    assert_eq!(cpu.state.cr0.bits(), PE | ET);
}

#[test]
fn ia32e_mode_begins_and_ends_with_cr0_pg() {
    let start = || {
        let mut cpu = long_mode();
        cpu.state.cr0.remove(Cr0::PG);
        cpu.state.efer.remove(Efer::LMA);
        cpu.state.segment_mut(SegmentRegister::Cs).access = AccessRights(0xc09b);
        cpu
    };
    let mut cpu = start();
    assert_eq!(load(&mut cpu, 0, PE | PG), Ok(()));
    assert!(cpu.state.efer.contains(Efer::LMA));
    assert_eq!(load(&mut cpu, 0, PE), Ok(()));
    assert!(!cpu.state.efer.contains(Efer::LMA));

    type Change = (&'static str, fn(&mut Cpu));
    let changes: &[Change] = &[
        ("CR4.PAE", |c| c.state.cr4.remove(Cr4::PAE)),
        ("CS.L", |c| {
            c.state.segment_mut(SegmentRegister::Cs).access.0 |= 1 << 13;
        }),
        ("16-bit TSS", |c| {
            c.state.segment_mut(SegmentRegister::Tr).access = AccessRights(0x83);
        }),
    ];
    for (name, change) in changes {
        let mut cpu = start();
        change(&mut cpu);
        assert_eq!(load(&mut cpu, 0, PE | PG), GP, "{name}");
        assert!(!cpu.state.efer.contains(Efer::LMA), "{name}");
    }
}

#[test]
fn cr4_rules() {
    let bit = |b: Cr4| Cr4::PAE.bits() | b.bits();
    type Row = (&'static str, fn() -> Cpu, u64, Exec);
    let rows: &[Row] = &[
        (
            "known bits",
            long_mode,
            bit(Cr4::SMEP | Cr4::UMIP | Cr4::OSXSAVE),
            Ok(()),
        ),
        (
            "reserved bit 15",
            long_mode,
            bit(Cr4::from_bits_retain(1 << 15)),
            GP,
        ),
        (
            "reserved bit 63",
            long_mode,
            bit(Cr4::from_bits_retain(1 << 63)),
            GP,
        ),
        ("feature not offered", long_mode, bit(Cr4::SMXE), GP),
        ("PAE off in IA-32e mode", long_mode, 0, GP),
        ("LA57 in IA-32e mode", long_mode, bit(Cr4::LA57), GP),
        ("LA57 outside", protected_mode, Cr4::LA57.bits(), Ok(())),
        ("PCIDE", long_mode, bit(Cr4::PCIDE), Ok(())),
        (
            "PCIDE outside IA-32e mode",
            protected_mode,
            Cr4::PCIDE.bits(),
            GP,
        ),
        (
            "PCIDE with CR3[11:0]",
            || {
                let mut c = long_mode();
                c.state.cr3 |= 8;
                c
            },
            bit(Cr4::PCIDE),
            GP,
        ),
        ("no privilege", || user(long_mode()), bit(Cr4::PGE), GP),
    ];
    for (name, cpu, value, expected) in rows {
        let mut cpu = cpu();
        let before = cpu.state.clone();
        assert_eq!(load(&mut cpu, 4, *value), *expected, "{name}");
        if expected.is_err() {
            assert_eq!(cpu.state, before, "{name}");
        } else {
            assert_eq!(cpu.state.cr4.bits(), *value, "{name}");
        }
    }
}

#[test]
fn cr4_follows_the_profile() {
    let mut cpu = long_mode();
    cpu.set_cpuid(Profile::DEFAULT.table());
    assert_eq!(load(&mut cpu, 4, (Cr4::PAE | Cr4::PKS).bits()), GP);
    assert_eq!(load(&mut cpu, 4, (Cr4::PAE | Cr4::PKE).bits()), Ok(()));
}

#[test]
fn cr3_rules() {
    let rows: &[(&str, u64, Cr4, Exec)] = &[
        ("plain", 0x10000, Cr4::empty(), Ok(())),
        ("bit 52", 0x10000 | 1 << 52, Cr4::empty(), GP),
        ("bit 63", 0x10000 | 1 << 63, Cr4::empty(), GP),
        ("bit 63 with PCIDE", 0x10000 | 1 << 63, Cr4::PCIDE, Ok(())),
        ("bit 62 with PCIDE", 0x10000 | 1 << 62, Cr4::PCIDE, GP),
    ];
    for (name, value, cr4, expected) in rows {
        let mut cpu = long_mode();
        cpu.state.cr4 |= *cr4;
        assert_eq!(load(&mut cpu, 3, *value), *expected, "{name}");
        assert_eq!(cpu.state.cr3, 0x10000, "{name}");
    }
}

#[test]
fn pdptes_are_loaded_and_checked() {
    let with_pdpte = |value: u64| {
        let mut cpu = pae();
        // The code lies in the first GiB, which the PDPTEs loaded before still map.
        cpu.phys.write_bytes(Hpa(0x4000), &0x83_u64.to_le_bytes());
        cpu.state.pdptes = [0x4001, 0, 0, 0];
        cpu.phys.write_bytes(Hpa(DATA), &0x4001_u64.to_le_bytes());
        cpu.phys.write_bytes(Hpa(DATA + 8), &value.to_le_bytes());
        cpu
    };
    let mut cpu = with_pdpte(0x5001);
    assert_eq!(load(&mut cpu, 3, DATA), Ok(()));
    assert_eq!(cpu.state.pdptes, [0x4001, 0x5001, 0, 0]);
    for (number, value) in [
        (3, DATA),
        (4, (Cr4::PAE | Cr4::PGE).bits()),
        (0, PE | PG | CD),
    ] {
        let mut cpu = with_pdpte(0x5003);
        assert_eq!(load(&mut cpu, number, value), GP, "CR{number}");
        assert_eq!(cpu.state.pdptes, [0x4001, 0, 0, 0], "CR{number}");
    }
    // WP does not load them.
    assert_eq!(load(&mut with_pdpte(0x5003), 0, PE | PG | WP), Ok(()));
}

#[test]
fn cr8_has_four_bits() {
    let mut cpu = long_mode();
    assert_eq!(load(&mut cpu, 8, 0x10), GP);
    assert_eq!(load(&mut cpu, 8, 0xa), Ok(()));
    assert_eq!(execute(&mut cpu, &[0x44, 0x0f, 0x20, 0xc3]), Ok(()));
    assert_eq!(cpu.gpr[3], 0xa);
}

#[test]
fn lmsw_sets_pe_but_does_not_clear_it() {
    let mut cpu = real_mode();
    cpu.gpr[0] = 0xffff;
    assert_eq!(execute(&mut cpu, &[0x0f, 0x01, 0xf0]), Ok(()));
    assert_eq!(cpu.state.cr0.bits() & 0xf, 0xf);
    cpu.gpr[0] = 0;
    assert_eq!(execute(&mut cpu, &[0x0f, 0x01, 0xf0]), Ok(()));
    assert_eq!(cpu.state.cr0.bits() & 0xf, PE);
}

#[test]
fn smsw_obeys_umip() {
    let mut cpu = user(long_mode());
    cpu.gpr[0] = u64::MAX;
    assert_eq!(execute(&mut cpu, &[0x0f, 0x01, 0xe0]), Ok(()));
    assert_eq!(cpu.gpr[0], cpu.state.cr0.bits() & 0xffff_ffff);
    cpu.state.cr4 |= Cr4::UMIP;
    assert_eq!(execute(&mut cpu, &[0x0f, 0x01, 0xe0]), GP);
}

#[test]
fn invpcid_rules() {
    // INVPCID RCX, [RBX]
    let code = [0x66, 0x0f, 0x38, 0x82, 0x0b];
    let noncanonical = 1 << 63;
    let rows: &[(u64, u64, u64, Exec)] = &[
        (0, 0, 0, Ok(())),
        (0, 1, 0, GP),
        (0, 0, noncanonical, GP),
        (1, 1, 0, GP),
        (1, 0, noncanonical, Ok(())),
        (2, 1, 0, Ok(())),
        (3, 0x1000, 0, GP),
        (4, 0, 0, GP),
    ];
    for &(kind, pcid, linear, expected) in rows {
        let mut cpu = long_mode();
        (cpu.gpr[1], cpu.gpr[3]) = (kind, DATA);
        cpu.phys.write_bytes(Hpa(DATA), &pcid.to_le_bytes());
        cpu.phys.write_bytes(Hpa(DATA + 8), &linear.to_le_bytes());
        assert_eq!(
            execute(&mut cpu, &code),
            expected,
            "{kind} {pcid:x} {linear:x}"
        );
        assert_eq!(execute(&mut user(cpu), &code), GP);
    }
}

#[test]
fn unknown_control_registers_are_ud() {
    assert_eq!(execute(&mut long_mode(), &[0x0f, 0x20, 0xc8]), UD);
}
