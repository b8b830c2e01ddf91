//! One row for each rule of the debug registers.

use vmx_model::arch::Cr4;
use vmx_model::event::Exception;

use crate::test_cpu::{GP, UD, execute, long_mode, user};
use crate::{Cpu, Exec};

/// Executes MOV DRn, RAX.
fn load(cpu: &mut Cpu, number: u8, value: u64) -> Exec {
    cpu.gpr[0] = value;
    execute(cpu, &[0x0f, 0x23, 0xc0 | number << 3])
}

/// Executes MOV RBX, DRn.
fn store(cpu: &mut Cpu, number: u8) -> Exec<u64> {
    execute(cpu, &[0x0f, 0x21, 0xc3 | number << 3])?;
    Ok(cpu.gpr[3])
}

#[test]
fn fixed_bits_stay() {
    let rows: &[(u8, u64, u64)] = &[
        (0, u64::MAX, u64::MAX),
        (6, 0, 0xffff_0ff0),
        (6, 0xffff_ffff, 0xffff_efff),
        (7, 0, 0x400),
        (7, 0xffff_ffff & !(1 << 13), 0xffff_07ff),
    ];
    for &(number, value, expected) in rows {
        let mut cpu = long_mode();
        assert_eq!(load(&mut cpu, number, value), Ok(()));
        assert_eq!(store(&mut cpu, number), Ok(expected));
    }
}

#[test]
fn upper_halves_of_dr6_and_dr7_are_reserved() {
    assert_eq!(load(&mut long_mode(), 6, 1 << 32), GP);
    assert_eq!(load(&mut long_mode(), 7, 1 << 32), GP);
}

#[test]
fn dr4_and_dr5_are_other_names_unless_de() {
    let mut cpu = long_mode();
    assert_eq!(load(&mut cpu, 5, 0x401), Ok(()));
    assert_eq!(store(&mut cpu, 7), Ok(0x401));
    cpu.state.cr4 |= Cr4::DE;
    assert_eq!(load(&mut cpu, 5, 0x401), UD);
    assert_eq!(load(&mut user(cpu), 4, 0), UD);
}

#[test]
fn general_detect_comes_after_privilege() {
    let mut cpu = long_mode();
    assert_eq!(load(&mut cpu, 7, 1 << 13), Ok(()));
    let db = Exception::db(1 << 13);
    assert_eq!(store(&mut cpu, 0), Err(db.into()));
    assert_eq!(load(&mut cpu, 0, 1), Err(db.into()));
    assert_eq!(load(&mut user(cpu), 0, 1), GP);
}
