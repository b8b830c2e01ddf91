//! Gathers that fault and go on, and the registers that they refuse (SDM Vol. 2, "VPGATHERDD/VPGATHERQD"
//! and "VGATHERDPS/VGATHERDPD", "Description").

use vmx_model::addr::Hpa;

use super::masking_tests::{GATHER, HOLE, SCATTER, TABLE, assert_page_fault, ready};
use crate::Cpu;
use crate::test_cpu::{UD, avx512_cpuid, execute, protected_mode};

/// VPGATHERDD of four doublewords at RDI, with indices times four.
fn gather(to: u8, index: u8, mask: u8) -> [u8; 6] {
    let (modrm, sib) = (4 | to << 3, 0x87 | index << 3);
    [0xc4, 0xe2, (!mask & 15) << 3 | 1, 0x90, modrm, sib]
}

/// A mask of which elements 0, 2 and 3 are active; all have more bits than the sign counts.
const MASK: [u32; 8] = [
    0x8000_0001,
    0x7fff_ffff,
    0xc000_0000,
    0xffff_ffff,
    1,
    2,
    3,
    4,
];

fn words(doublewords: [u32; 8]) -> [u64; 8] {
    core::array::from_fn(|n| match doublewords.get(2 * n..2 * n + 2) {
        Some(&[low, high]) => u64::from(high) << 32 | u64::from(low),
        _ => 0,
    })
}

/// A processor whose XMM0 has n + 1 in doubleword n, XMM1 n, XMM2 [`MASK`], and whose elements 2 and
/// 3 at RDI are in the page that is not present.
fn half_present() -> Cpu {
    let mut cpu = ready(HOLE - 8, 0);
    cpu.fpu.vector[2] = words(MASK);
    cpu.phys.write_bytes(Hpa(HOLE - 8), &[0x11; 8]);
    cpu.phys.write_bytes(Hpa(HOLE), &[0x22; 8]);
    cpu
}

/// Makes the page present.
fn map(cpu: &Cpu) {
    let entry = HOLE | 7;
    cpu.phys
        .write_bytes(Hpa(TABLE + 8 * (HOLE >> 12)), &entry.to_le_bytes());
}

#[test]
fn a_gather_that_faults_keeps_what_is_done_and_goes_on_from_there() {
    let code = gather(0, 1, 2);
    let mut cpu = half_present();
    let rip = cpu.state.rip;
    assert_page_fault(execute(&mut cpu, &code), HOLE, 0);
    assert_eq!(cpu.state.rip, rip);
    assert_eq!(cpu.fpu.vector[0][..2], [2 << 32 | 0x1111_1111, 4 << 32 | 3]);
    // Element 0 is done, element 1 was never active, the others are extended from their signs.
    assert_eq!(cpu.fpu.vector[2][..2], [0, u64::MAX]);
    map(&cpu);
    // What is done is not done again.
    cpu.phys.write_bytes(Hpa(HOLE - 8), &[0x33; 8]);
    assert_eq!(execute(&mut cpu, &code), Ok(()));
    let done = 0x2222_2222_2222_2222;
    assert_eq!(cpu.fpu.vector[0][..4], [2 << 32 | 0x1111_1111, done, 0, 0]);
    assert_eq!(cpu.fpu.vector[2], [0; 8]);
}

#[test]
fn an_opmask_gather_goes_on_where_it_faulted() {
    let mut cpu = half_present();
    cpu.fpu.opmask[1] = 0b1101;
    assert_page_fault(execute(&mut cpu, GATHER), HOLE, 0);
    assert_eq!(cpu.fpu.opmask[1], 0b1100);
    assert_eq!(cpu.fpu.vector[0][..2], [2 << 32 | 0x1111_1111, 4 << 32 | 3]);
    map(&cpu);
    cpu.phys.write_bytes(Hpa(HOLE - 8), &[0x33; 8]);
    assert_eq!(execute(&mut cpu, GATHER), Ok(()));
    assert_eq!(cpu.fpu.opmask[1], 0);
    let done = 0x2222_2222_2222_2222;
    assert_eq!(
        cpu.fpu.vector[0][..3],
        [2 << 32 | 0x1111_1111, done, 6 << 32 | 5]
    );
}

#[test]
fn destination_index_and_mask_of_a_gather_are_three_registers() {
    for (to, index, mask) in [(0, 0, 2), (1, 2, 1), (0, 2, 2), (3, 3, 3)] {
        let mut cpu = half_present();
        let before = cpu.fpu.clone();
        assert_eq!(execute(&mut cpu, &gather(to, index, mask)), UD);
        assert_eq!(cpu.fpu, before);
    }
    for (to, index, mask) in [(0, 1, 3), (4, 1, 3), (3, 1, 0)] {
        let mut cpu = half_present();
        map(&cpu);
        assert_eq!(execute(&mut cpu, &gather(to, index, mask)), Ok(()));
    }
}

#[test]
fn a_gather_is_undefined_with_16_bit_addresses_and_without_vsib() {
    let mut cpu = protected_mode();
    cpu.set_cpuid(avx512_cpuid());
    let with_prefix = [&[0x67], &gather(0, 1, 2)[..]].concat();
    assert_eq!(execute(&mut cpu, &with_prefix), UD);
    let mut of_register = gather(0, 1, 2);
    of_register[4] |= 0xc0;
    assert_eq!(execute(&mut half_present(), &of_register), UD);
    let mut without_sib = gather(0, 1, 2);
    without_sib[4] = 7;
    assert_eq!(execute(&mut half_present(), &without_sib), UD);
}

/// GATHER or SCATTER with another byte at `at`.
fn changed(code: &[u8], at: usize, byte: u8) -> Vec<u8> {
    let mut code = code.to_vec();
    code[at] = byte;
    code
}

#[test]
fn opmask_gathers_and_scatters_refuse_registers_by_their_full_numbers() {
    let run = |code: &[u8]| {
        let mut cpu = half_present();
        map(&cpu);
        cpu.fpu.opmask[1] = 1;
        execute(&mut cpu, code)
    };
    for code in [GATHER, SCATTER] {
        assert_eq!(run(code), Ok(()));
        // K0; zeroing; broadcast; a register in EVEX.vvvv.
        for (at, byte) in [(3, 0x48), (3, 0xc9), (3, 0x59), (2, 0x75)] {
            assert_eq!(run(&changed(code, at, byte)), UD, "{at} {byte:x}");
        }
    }
    // ZMM1 and ZMM1; ZMM1 and ZMM17 either way; ZMM17 and ZMM17.
    let low = changed(GATHER, 5, 0x0c);
    assert_eq!(run(&low), UD);
    assert_eq!(run(&changed(&low, 3, 0x41)), Ok(()));
    assert_eq!(run(&changed(&low, 1, 0xe2)), Ok(()));
    assert_eq!(run(&changed(&changed(&low, 1, 0xe2), 3, 0x41)), UD);
    // The source of a scatter may be its index.
    assert_eq!(run(&changed(SCATTER, 5, 0x0c)), Ok(()));
}
