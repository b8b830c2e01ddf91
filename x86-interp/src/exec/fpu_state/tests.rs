//! The rules that the host cannot show; what it can is in `exec::xsave::host`.

use vmx_model::addr::Hpa;
use vmx_model::arch::Cr0;
use vmx_model::event::{Exception, vector};

use crate::test_cpu::{DATA, NM, UD, execute, long_mode, protected_mode, real_mode};
use crate::{Cpu, Exec};

const MF: Exec = Err(crate::Fault::Exception(Exception::plain(vector::MF)));

#[test]
fn who_minds_ts_em_mp_and_pending_exceptions() {
    // With TS, with EM, with a pending exception.
    type Row = (&'static str, &'static [u8], Exec, Exec, Exec);
    let rows: &[Row] = &[
        ("FNINIT", &[0xdb, 0xe3], NM, NM, Ok(())),
        ("FNCLEX", &[0xdb, 0xe2], NM, NM, Ok(())),
        ("FNSTCW", &[0xd9, 0x3f], NM, NM, Ok(())),
        ("FNSTSW", &[0xdf, 0xe0], NM, NM, Ok(())),
        ("FNSTENV", &[0xd9, 0x37], NM, NM, Ok(())),
        ("FNSAVE", &[0xdd, 0x37], NM, NM, Ok(())),
        ("FLDCW", &[0xd9, 0x2f], NM, NM, MF),
        ("FLDENV", &[0xd9, 0x27], NM, NM, MF),
        ("FRSTOR", &[0xdd, 0x27], NM, NM, MF),
        ("FNOP", &[0xd9, 0xd0], NM, NM, MF),
        ("FFREE", &[0xdd, 0xc0], NM, NM, MF),
        ("FWAIT", &[0x9b], Ok(()), Ok(()), MF),
        ("EMMS", &[0x0f, 0x77], NM, UD, MF),
    ];
    for (name, code, with_ts, with_em, pending) in rows {
        let run = |change: fn(&mut Cpu)| {
            let mut cpu = long_mode();
            cpu.gpr[7] = DATA;
            change(&mut cpu);
            execute(&mut cpu, code)
        };
        assert_eq!(run(|_| {}), Ok(()), "{name}");
        assert_eq!(run(|c| c.state.cr0 |= Cr0::TS), *with_ts, "{name} with TS");
        assert_eq!(run(|c| c.state.cr0 |= Cr0::EM), *with_em, "{name} with EM");
        assert_eq!(
            run(raise_invalid),
            *pending,
            "{name} with a pending exception"
        );
        let without_ne = |c: &mut Cpu| {
            raise_invalid(c);
            c.state.cr0.remove(Cr0::NE);
        };
        assert_eq!(run(without_ne), Ok(()), "{name} without NE");
    }
    let mut cpu = long_mode();
    cpu.state.cr0 |= Cr0::TS | Cr0::MP;
    assert_eq!(execute(&mut cpu, &[0x9b]), NM, "FWAIT with TS and MP");
}

fn raise_invalid(cpu: &mut Cpu) {
    cpu.fpu.control = 0x37e;
    cpu.fpu.status = 1;
    cpu.fpu.update_summary();
}

/// Fills the environment, stores it, clears it, and loads it.
fn environment_of(mut cpu: Cpu, bytes: usize) -> Vec<u8> {
    let fill = |cpu: &mut Cpu| {
        cpu.fpu.init_x87();
        cpu.fpu.opcode = 0x123;
        cpu.fpu.instruction_pointer = 0x8765_4321;
        cpu.fpu.data_pointer = 0xcdef_0123;
        (cpu.fpu.code_selector, cpu.fpu.data_selector) = (0x1111, 0x2222);
    };
    cpu.set_cpuid(crate::cpuid::Profile::MINIMAL.table());
    fill(&mut cpu);
    cpu.gpr[7] = DATA;
    // FNSTENV [EDI], FNINIT, FLDENV [EDI] with the address size of 32 bits.
    let (store, load): (&[u8], &[u8]) = if cpu.code_bits() == 16 {
        (&[0x67, 0x66, 0xd9, 0x37], &[0x67, 0x66, 0xd9, 0x27])
    } else {
        (&[0xd9, 0x37], &[0xd9, 0x27])
    };
    let narrow = |code: &[u8]| match (bytes, code) {
        (14, [0x67, 0x66, rest @ ..]) => [&[0x67], rest].concat(),
        (14, _) => [&[0x66], code].concat(),
        _ => code.to_vec(),
    };
    execute(&mut cpu, &narrow(store)).expect("FNSTENV does not fault");
    let mut seen = vec![0; bytes];
    cpu.phys.read_bytes(Hpa(DATA), &mut seen);
    cpu.fpu.init_x87();
    execute(&mut cpu, &narrow(load)).expect("FLDENV does not fault");
    cpu.phys.write_bytes(Hpa(DATA), &[0; 28]);
    execute(&mut cpu, &narrow(store)).expect("FNSTENV does not fault");
    let mut again = vec![0; bytes];
    cpu.phys.read_bytes(Hpa(DATA), &mut again);
    assert_eq!(seen, again, "FLDENV loads what FNSTENV stored");
    seen
}

#[test]
fn the_environment_has_four_layouts() {
    let words = |words: &[u16]| -> Vec<u8> { words.iter().flat_map(|w| w.to_le_bytes()).collect() };
    assert_eq!(
        environment_of(protected_mode(), 28),
        words(&[
            0x37f, 0xffff, 0, 0xffff, 0xffff, 0xffff, 0x4321, 0x8765, 0x1111, 0x123, 0x0123,
            0xcdef, 0x2222, 0xffff
        ])
    );
    assert_eq!(
        environment_of(protected_mode(), 14),
        words(&[0x37f, 0, 0xffff, 0x4321, 0x1111, 0x0123, 0x2222])
    );
    assert_eq!(
        environment_of(real_mode(), 28),
        words(&[
            0x37f, 0xffff, 0, 0xffff, 0xffff, 0xffff, 0x4321, 0xffff, 0x5123, 0x0876, 0x0123,
            0xffff, 0xf000, 0x0cde
        ])
    );
    assert_eq!(
        environment_of(real_mode(), 14),
        words(&[0x37f, 0, 0xffff, 0x4321, 0x5123, 0x0123, 0xf000])
    );
}
