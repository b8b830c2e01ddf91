//! One row for each rule of an MSR.

use vmx_model::arch::{Cr0, Efer};
use vmx_model::msr_area::MsrAccess;

use super::MSRS;
use crate::Cpu;
use crate::cpuid::Profile;
use crate::test_cpu::{GP, UD, execute, long_mode, protected_mode, user};

const RDMSR: [u8; 2] = [0x0f, 0x32];
const WRMSR: [u8; 2] = [0x0f, 0x30];

fn write(cpu: &mut Cpu, index: u32, value: u64) -> Option<()> {
    MsrAccess::write_msr(cpu, index, value)
}

fn read(cpu: &mut Cpu, index: u32) -> Option<u64> {
    MsrAccess::read_msr(cpu, index)
}

#[test]
fn the_table_is_sorted() {
    assert!(MSRS.is_sorted_by(|a, b| a.index < b.index));
}

/// Accepted and refused values; what is accepted reads back, but for the MSRs that say otherwise.
#[test]
fn values_are_accepted_or_refused() {
    let rows: &[(u32, &[u64], &[u64])] = &[
        (0x10, &[0, u64::MAX], &[]),
        (0x17, &[], &[0]),
        (
            0x1b,
            &[0xfee0_0900, 0xfee0_0d00],
            &[0xfee0_0901, 1 << 52 | 0xfee0_0900, 0xfee0_0400],
        ),
        (0x3b, &[5, u64::MAX], &[]),
        (0xfe, &[], &[0x508]),
        (0x174, &[0x10], &[]),
        (0x1fc, &[0, 0x0024_005f], &[]),
        (
            0x175,
            &[0, 0xffff_8000_0000_0000, 0x00ff_ffff_ffff_ffff],
            &[1 << 63, 1 << 56],
        ),
        (0x17a, &[7], &[8]),
        (0x1a0, &[0x4_1800, 0x4_00c5_1809], &[1 << 35, 1 << 24, 2]),
        (0x1d9, &[0, 2, 3], &[4, 1 << 14]),
        (0x200, &[6, 0xf_f000], &[2, 7, 0x100, 1 << 52]),
        (0x201, &[0x800, 0xf_f800], &[1, 0x400]),
        (0x250, &[0x0606_0606_0606_0606], &[2, 7 << 56]),
        (0x277, &[0x0007_0406_0007_0406], &[2, 3 << 8, 8 << 56]),
        (0x2ff, &[0xc06], &[0xc02, 0x106, 1 << 12]),
        (0x400, &[0, u64::MAX], &[1, u64::MAX << 1]),
        (0x401, &[0], &[1]),
        (0x480, &[], &[0, 1]),
        (0x6e1, &[0xffff_ffff], &[1 << 32]),
        (0xda0, &[0], &[1, 0x100]),
        (0xc000_0080, &[0xd01, 0x501], &[2, 1 << 9, 1 << 12]),
        (0xc000_0081, &[u64::MAX], &[]),
        (0xc000_0082, &[u64::MAX], &[1 << 63]),
        (0xc000_0084, &[0xffff_ffff], &[1 << 32]),
        (0xc000_0100, &[u64::MAX], &[1 << 63]),
        (0xc000_0103, &[0xffff_ffff], &[1 << 32]),
        (0x12345, &[], &[0]),
        (0x802, &[], &[0]),
    ];
    for &(index, accepted, refused) in rows {
        let mut cpu = long_mode();
        for &value in accepted {
            assert_eq!(
                write(&mut cpu, index, value),
                Some(()),
                "{index:x} {value:x}"
            );
            assert_eq!(read(&mut cpu, index), Some(value), "{index:x}");
        }
        let before = read(&mut cpu, index);
        for &value in refused {
            assert_eq!(write(&mut cpu, index, value), None, "{index:x} {value:x}");
            assert_eq!(read(&mut cpu, index), before, "{index:x}");
        }
    }
}

#[test]
fn every_msr_of_the_table_can_be_used_without_a_panic() {
    for profile in Profile::ALL {
        for msr in MSRS {
            let mut cpu = long_mode();
            cpu.set_cpuid(profile.table());
            for value in [0, 1, 6, 0xffff_ffff, u64::MAX] {
                let before = read(&mut cpu, msr.index);
                let done = write(&mut cpu, msr.index, value);
                assert!(
                    msr.exists(&cpu) || (before, done) == (None, None),
                    "{}",
                    msr.name
                );
                if done.is_none() {
                    assert_eq!(read(&mut cpu, msr.index), before, "{}", msr.name);
                }
            }
        }
    }
}

#[test]
fn the_x2apic_state_machine_has_no_way_back_but_through_disabled() {
    let mut cpu = long_mode();
    assert_eq!(write(&mut cpu, 0x1b, 0xfee0_0d00), Some(()));
    assert_eq!(write(&mut cpu, 0x1b, 0xfee0_0900), None);
    assert_eq!(write(&mut cpu, 0x1b, 0xfee0_0100), Some(()));
    assert_eq!(write(&mut cpu, 0x1b, 0xfee0_0d00), None);
    assert_eq!(write(&mut cpu, 0x1b, 0xfee0_0900), Some(()));
}

#[test]
fn feature_control_locks() {
    let mut cpu = long_mode();
    assert_eq!(read(&mut cpu, 0x3a), Some(0));
    assert_eq!(write(&mut cpu, 0x3a, 2), None);
    assert_eq!(write(&mut cpu, 0x3a, 5), Some(()));
    assert_eq!(write(&mut cpu, 0x3a, 5), None);
}

#[test]
fn lme_changes_only_without_paging() {
    let mut cpu = long_mode();
    assert_eq!(write(&mut cpu, 0xc000_0080, 0), None);
    assert_eq!(write(&mut cpu, 0xc000_0080, 0x100), Some(()));
    assert!(cpu.state.efer.contains(Efer::LMA), "LMA is read-only");
    let mut cpu = protected_mode();
    assert!(!cpu.state.cr0.contains(Cr0::PG));
    assert_eq!(write(&mut cpu, 0xc000_0080, 0x500), Some(()));
    assert_eq!(cpu.state.efer, Efer::LME, "LMA is not set by WRMSR");
}

#[test]
fn tsc_and_its_adjustment_move_together() {
    let mut cpu = long_mode();
    let tsc = read(&mut cpu, 0x10).expect("it exists");
    write(&mut cpu, 0x10, tsc + 1000).expect("it takes any value");
    assert_eq!(read(&mut cpu, 0x3b), Some(1000));
    write(&mut cpu, 0x3b, 400).expect("it takes any value");
    assert_eq!(read(&mut cpu, 0x10), Some(tsc + 400));
}

#[test]
fn rdmsr_and_wrmsr_use_edx_eax_and_need_cpl0() {
    let mut cpu = long_mode();
    cpu.gpr[1] = 0xffff_ffff_c000_0102;
    (cpu.gpr[0], cpu.gpr[2]) = (0xdead_0000_0000_1234, 0xdead_0000_0000_0056);
    assert_eq!(execute(&mut cpu, &WRMSR), Ok(()));
    assert_eq!(cpu.msrs.kernel_gs_base, 0x56_0000_1234);
    assert_eq!(execute(&mut cpu, &RDMSR), Ok(()));
    assert_eq!((cpu.gpr[0], cpu.gpr[2]), (0x1234, 0x56));
    cpu.gpr[1] = 0x999;
    assert_eq!(execute(&mut cpu, &RDMSR), GP);
    assert_eq!(execute(&mut cpu, &WRMSR), GP);
    cpu.gpr[1] = 0x10;
    let mut cpu = user(cpu);
    assert_eq!(execute(&mut cpu, &RDMSR), GP);
    assert_eq!(execute(&mut cpu, &WRMSR), GP);
    assert_ne!(GP, UD);
}

#[test]
fn vmx_capabilities_need_vmx() {
    let mut cpu = long_mode();
    assert_eq!(read(&mut cpu, 0x480), cpu.msrs.vmx.msr(0x480));
    assert!(read(&mut cpu, 0x480).is_some());
    cpu.set_cpuid(Profile::MINIMAL.table());
    assert_eq!(read(&mut cpu, 0x480), None);
}

#[test]
fn misc_enable_takes_execute_disable_and_cpuid_leaves_away() {
    const XD_DISABLE: u64 = 1 << 34;
    const LIMIT_CPUID: u64 = 1 << 22;
    const NXE: u64 = 1 << 11;
    let mut cpu = long_mode();
    let misc = read(&mut cpu, 0x1a0).expect("it is there");
    let efer = read(&mut cpu, 0xc000_0080).expect("it is there") & !NXE;
    let execute_disable = |cpu: &mut Cpu| cpu.cpuid_answer(0x8000_0001, 0).edx >> 20 & 1;
    assert_eq!(execute_disable(&mut cpu), 1);
    assert_eq!(write(&mut cpu, 0xc000_0080, efer), Some(()));
    assert_eq!(write(&mut cpu, 0x1a0, misc | XD_DISABLE), Some(()));
    assert_eq!(execute_disable(&mut cpu), 0);
    assert_eq!(write(&mut cpu, 0xc000_0080, efer | NXE), None);
    assert_eq!(write(&mut cpu, 0x1a0, misc | LIMIT_CPUID), Some(()));
    assert_eq!(execute_disable(&mut cpu), 1);
    assert_eq!(write(&mut cpu, 0xc000_0080, efer | NXE), Some(()));
    assert_eq!(cpu.cpuid_answer(0, 0).eax, 2);
    assert_eq!(write(&mut cpu, 0x1a0, misc), Some(()));
    assert!(cpu.cpuid_answer(0, 0).eax > 2);
}
