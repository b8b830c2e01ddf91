//! Rules of the save instructions, one row each; layouts are compared with the host's in `host`.

use vmx_model::addr::Hpa;
use vmx_model::arch::{Cr0, Cr4};

use crate::cpuid::Profile;
use crate::test_cpu::{DATA, GP, NM, UD, execute, long_mode, user};
use crate::xstate;
use crate::{Cpu, Exec};

mod avx512;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod host;

const XSAVE: [u8; 4] = [0x48, 0x0f, 0xae, 0x27];
const XSAVEOPT: [u8; 4] = [0x48, 0x0f, 0xae, 0x37];
const XSAVEC: [u8; 4] = [0x48, 0x0f, 0xc7, 0x27];
const XSAVES: [u8; 4] = [0x48, 0x0f, 0xc7, 0x2f];
const XRSTOR: [u8; 4] = [0x48, 0x0f, 0xae, 0x2f];
const XRSTORS: [u8; 4] = [0x48, 0x0f, 0xc7, 0x1f];
const FXSAVE: [u8; 4] = [0x48, 0x0f, 0xae, 0x07];
const FXRSTOR: [u8; 4] = [0x48, 0x0f, 0xae, 0x0f];
const XGETBV: [u8; 3] = [0x0f, 0x01, 0xd0];
const XSETBV: [u8; 3] = [0x0f, 0x01, 0xd1];
const STMXCSR: [u8; 3] = [0x0f, 0xae, 0x1f];
const LDMXCSR: [u8; 3] = [0x0f, 0xae, 0x17];

/// A processor with all components enabled and asked for, and RDI at DATA.
fn ready() -> Cpu {
    let mut cpu = long_mode();
    cpu.state.cr4 |= Cr4::OSXSAVE | Cr4::OSFXSR;
    cpu.system.xcr0 = 0x207;
    cpu.set_edx_eax(u64::MAX);
    cpu.gpr[7] = DATA;
    cpu
}

fn put(cpu: &Cpu, at: u64, value: u64) {
    cpu.phys.write_bytes(Hpa(DATA + at), &value.to_le_bytes());
}

fn get(cpu: &Cpu, at: u64) -> u64 {
    let word = cpu.phys.view().load_entry(Hpa(DATA + at), 8);
    word.expect("RAM")
}

#[test]
fn who_minds_osxsave_osfxsr_ts_and_em() {
    // Without CR4.OSXSAVE and CR4.OSFXSR, with TS, with EM, in user mode.
    type Row = (&'static str, &'static [u8], Exec, Exec, Exec, Exec);
    let rows: &[Row] = &[
        ("XSAVE", &XSAVE, UD, NM, Ok(()), Ok(())),
        ("XSAVEOPT", &XSAVEOPT, UD, NM, Ok(()), Ok(())),
        ("XSAVEC", &XSAVEC, UD, NM, Ok(()), Ok(())),
        ("XSAVES", &XSAVES, UD, NM, Ok(()), GP),
        ("XRSTOR", &XRSTOR, UD, NM, Ok(()), Ok(())),
        ("FXSAVE", &FXSAVE, Ok(()), NM, NM, Ok(())),
        ("FXRSTOR", &FXRSTOR, Ok(()), NM, NM, Ok(())),
        ("STMXCSR", &STMXCSR, UD, NM, UD, Ok(())),
        ("LDMXCSR", &LDMXCSR, UD, NM, UD, Ok(())),
    ];
    for (name, code, without, with_ts, with_em, in_user_mode) in rows {
        let run = |change: fn(&mut Cpu)| {
            let mut cpu = ready();
            change(&mut cpu);
            execute(&mut cpu, code)
        };
        assert_eq!(run(|_| {}), Ok(()), "{name}");
        assert_eq!(run(|c| c.state.cr4 = Cr4::PAE), *without, "{name}");
        assert_eq!(run(|c| c.state.cr0 |= Cr0::TS), *with_ts, "{name} with TS");
        assert_eq!(run(|c| c.state.cr0 |= Cr0::EM), *with_em, "{name} with EM");
        assert_eq!(
            execute(&mut user(ready()), code),
            *in_user_mode,
            "{name} in user mode"
        );
    }
}

#[test]
fn areas_are_aligned() {
    for (code, alignment) in [
        (XSAVE, 64),
        (XSAVEC, 64),
        (XRSTOR, 64),
        (FXSAVE, 16),
        (FXRSTOR, 16),
    ] {
        let mut cpu = ready();
        cpu.gpr[7] = DATA + alignment / 2;
        assert_eq!(execute(&mut cpu, &code), GP);
        cpu.gpr[7] = DATA + alignment;
        assert_eq!(execute(&mut cpu, &code), Ok(()));
    }
}

#[test]
fn xrstor_refuses_bad_headers() {
    const COMPACTED: u64 = 1 << 63;
    // XSTATE_BV, XCOMP_BV, bytes 23:16, bytes 31:24, MXCSR.
    let rows: &[([u64; 5], Exec, Exec)] = &[
        ([0x207, 0, 0, 0, 0], Ok(()), GP),
        ([0x200, 0, 0, 1, 0], Ok(()), GP),
        ([8, 0, 0, 0, 0], GP, GP),
        ([0, 1, 0, 0, 0], GP, GP),
        ([0, 0, 1, 0, 0], GP, GP),
        ([0, 0, 0, 0, 1 << 16], GP, GP),
        ([7, COMPACTED | 7, 0, 0, 0], Ok(()), Ok(())),
        ([0, COMPACTED | 7, 0, 0, 1 << 16], Ok(()), Ok(())),
        ([2, COMPACTED | 7, 0, 0, 1 << 16], GP, GP),
        ([4, COMPACTED | 3, 0, 0, 0], GP, GP),
        ([0, COMPACTED | 8, 0, 0, 0], GP, GP),
        ([0, COMPACTED | 7, 0, 1, 0], GP, GP),
    ];
    for ([bv, comp, third, fourth, mxcsr], plain, supervisor) in rows {
        let cpu = || {
            let cpu = ready();
            for (n, value) in [bv, comp, third, fourth].into_iter().enumerate() {
                put(&cpu, 512 + 8 * n as u64, *value);
            }
            put(&cpu, 24, *mxcsr);
            cpu
        };
        let name = format!("{bv:x} {comp:x} {third} {fourth} {mxcsr:x}");
        let mut first = cpu();
        first.fpu.vector[3] = [1, 2, 3, 4, 5, 6, 7, 8];
        let before = first.fpu.clone();
        assert_eq!(execute(&mut first, &XRSTOR), *plain, "XRSTOR {name}");
        if plain.is_err() {
            assert_eq!(first.fpu, before);
        }
        assert_eq!(execute(&mut cpu(), &XRSTORS), *supervisor, "XRSTORS {name}");
    }
}

#[test]
fn what_is_not_in_the_area_is_initialised() {
    let mut cpu = ready();
    cpu.system.pkru = 5;
    cpu.fpu.vector = [[1, 2, 3, 4, 5, 6, 7, 8]; 32];
    cpu.fpu.control = 0x77f;
    put(&cpu, 24, 0x1fa0);
    cpu.set_edx_eax(4);
    execute(&mut cpu, &XRSTOR).expect("XRSTOR");
    // Only what XCR0 enables: here no component of AVX-512.
    assert_eq!(cpu.fpu.vector[..16], [[1, 2, 0, 0, 5, 6, 7, 8]; 16]);
    assert_eq!(cpu.fpu.vector[16..], [[1, 2, 3, 4, 5, 6, 7, 8]; 16]);
    assert_eq!(
        (cpu.fpu.mxcsr, cpu.fpu.control, cpu.system.pkru),
        (0x1fa0, 0x77f, 5)
    );
    cpu.set_edx_eax(0x203);
    execute(&mut cpu, &XRSTOR).expect("XRSTOR");
    assert_eq!(cpu.fpu.vector[..16], [[0, 0, 0, 0, 5, 6, 7, 8]; 16]);
    assert_eq!((cpu.fpu.control, cpu.system.pkru), (0x37f, 0));
}

#[test]
fn compacted_areas_have_no_gaps() {
    let mut cpu = ready();
    *cpu.fpu = crate::fpu::FpuState::initial();
    cpu.system.pkru = 0x55;
    execute(&mut cpu, &XSAVEC).expect("XSAVEC");
    assert_eq!((get(&cpu, 512), get(&cpu, 520)), (0x200, 1 << 63 | 0x207));
    assert_eq!(get(&cpu, 576 + 256), 0x55);
    cpu.set_edx_eax(0x200);
    cpu.fpu.mxcsr = 0x1f81;
    execute(&mut cpu, &XSAVES).expect("XSAVES");
    assert_eq!((get(&cpu, 512), get(&cpu, 520)), (0x200, 1 << 63 | 0x200));
    assert_eq!(get(&cpu, 576), 0x55);
    cpu.system.pkru = 0;
    execute(&mut cpu, &XRSTORS).expect("XRSTORS");
    assert_eq!(cpu.system.pkru, 0x55);
    // The standard form: PKRU has its own place, and other components' bits stay.
    put(&cpu, 512, 4);
    put(&cpu, 520, 0);
    execute(&mut cpu, &XSAVE).expect("XSAVE");
    assert_eq!((get(&cpu, 512), get(&cpu, 520)), (0x204, 0));
    assert_eq!(get(&cpu, 2688), 0x55);
}

#[test]
fn xcr0_rules() {
    let rows = [
        (0, GP),
        (1, Ok(())),
        (3, Ok(())),
        (5, GP),
        (7, Ok(())),
        (0x207, Ok(())),
        (0xe7, Ok(())),
        (0xe3, GP),
        (0x67, GP),
        (1 << 63 | 1, GP),
    ];
    for (value, expected) in rows {
        let mut cpu = ready();
        cpu.gpr[1] = 0;
        cpu.set_edx_eax(value);
        assert_eq!(execute(&mut cpu, &XSETBV), expected, "{value:x}");
        execute(&mut cpu, &XGETBV).expect("XGETBV");
        assert_eq!(cpu.edx_eax(), if expected.is_ok() { value } else { 0x207 });
        assert_eq!(execute(&mut user(cpu), &XSETBV), GP);
    }
    let mut cpu = ready();
    cpu.gpr[1] = 1;
    assert_eq!(execute(&mut cpu, &XSETBV), GP);
    *cpu.fpu = crate::fpu::FpuState::initial();
    cpu.fpu.vector[15][3] = 1;
    assert_eq!(execute(&mut cpu, &XGETBV), Ok(()));
    assert_eq!(cpu.edx_eax(), xstate::AVX);
    cpu.gpr[1] = 2;
    assert_eq!(execute(&mut cpu, &XGETBV), GP);
    cpu.state.cr4.remove(Cr4::OSXSAVE);
    assert_eq!(execute(&mut cpu, &XGETBV), UD);
    assert_eq!(execute(&mut cpu, &XSETBV), UD);
}

#[test]
fn components_need_their_features() {
    let mut cpu = ready();
    cpu.set_cpuid(Profile::X86_64_V4.table());
    assert!(cpu.is_valid_xcr0(0x2e7));
    cpu.set_cpuid(Profile::X86_64_V3.table());
    assert!(cpu.is_valid_xcr0(0x207));
    assert!(!cpu.is_valid_xcr0(0xe7));
    cpu.set_cpuid(Profile::X86_64_V2.table());
    assert!(cpu.is_valid_xcr0(0x203));
    assert!(!cpu.is_valid_xcr0(7));
}

#[test]
fn mxcsr_has_reserved_bits() {
    let mut cpu = ready();
    put(&cpu, 0, 0xffff);
    assert_eq!(execute(&mut cpu, &LDMXCSR), Ok(()));
    put(&cpu, 0, 0x1_0000);
    assert_eq!(execute(&mut cpu, &LDMXCSR), GP);
    assert_eq!(execute(&mut cpu, &STMXCSR), Ok(()));
    assert_eq!(get(&cpu, 0), 0xffff);
}
