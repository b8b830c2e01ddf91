//! What an opmask lets an instruction do to memory: which faults it suppresses, and what is done
//! before one that it does not (SDM Vol. 2, "Exception Classifications of EVEX-Encoded
//! Instructions").

use vmx_model::addr::Hpa;
use vmx_model::arch::{Cr0, Cr4};

use crate::test_cpu::{NM, UD, avx512_cpuid, execute, long_mode, protected_mode};
use crate::{Cpu, Exec, Fault};

/// VMOVDQU32 [RDI]{K1}, ZMM0.
const STORE: &[u8] = &[0x62, 0xf1, 0x7e, 0x49, 0x7f, 0x07];
/// VMOVDQU32 ZMM0{K1}, [RDI].
const LOAD: &[u8] = &[0x62, 0xf1, 0x7e, 0x49, 0x6f, 0x07];
/// VEXTRACTI32X4 [RDI]{K1}, ZMM0, 1.
const EXTRACT: &[u8] = &[0x62, 0xf3, 0x7d, 0x49, 0x39, 0x07, 0x01];
/// VPERMD ZMM0{K1}, ZMM1, [RDI].
const PERMUTE: &[u8] = &[0x62, 0xf2, 0x75, 0x49, 0x36, 0x07];
/// VPCOMPRESSD [RDI]{K1}, ZMM0.
const COMPRESS: &[u8] = &[0x62, 0xf2, 0x7d, 0x49, 0x8b, 0x07];
/// VPADDD ZMM0{K1}, ZMM1, [RDI]{1to16}.
const ADD_BROADCAST: &[u8] = &[0x62, 0xf1, 0x75, 0x59, 0xfe, 0x07];
/// VBROADCASTI32X4 ZMM0{K1}, [RDI].
const BROADCAST: &[u8] = &[0x62, 0xf2, 0x7d, 0x49, 0x5a, 0x07];
/// VPGATHERDD ZMM0{K1}, [RDI + ZMM1 * 4].
pub(super) const GATHER: &[u8] = &[0x62, 0xf2, 0x7d, 0x49, 0x90, 0x04, 0x8f];
/// VPSCATTERDD [RDI + ZMM1 * 4]{K1}, ZMM0.
pub(super) const SCATTER: &[u8] = &[0x62, 0xf2, 0x7d, 0x49, 0xa0, 0x04, 0x8f];
/// KANDW K1, K2, K3.
const KANDW: &[u8] = &[0xc5, 0xec, 0x41, 0xcb];
/// VPADDD ZMM0, ZMM1, ZMM2.
const ADD: &[u8] = &[0x62, 0xf1, 0x75, 0x48, 0xfe, 0xc2];

/// A page that is not present; those around it are.
pub(super) const HOLE: u64 = 0x6000;
/// A page directory and a page table.
const DIRECTORY: u64 = 0x14000;
pub(super) const TABLE: u64 = 0x15000;

/// A processor whose ZMM0 has n + 1 in doubleword n, and whose ZMM1 has n.
pub(super) fn ready(at: u64, mask: u64) -> Cpu {
    let mut cpu = long_mode();
    cpu.set_cpuid(avx512_cpuid());
    cpu.state.cr4 |= Cr4::OSXSAVE | Cr4::OSFXSR;
    cpu.system.xcr0 = 0xe7;
    let put = |at: u64, entry: u64| cpu.phys.write_bytes(Hpa(at), &entry.to_le_bytes());
    put(cpu.state.cr3 + 0x1000, DIRECTORY | 7);
    put(DIRECTORY, TABLE | 7);
    for page in (0..0x20_u64).filter(|&page| page != HOLE >> 12) {
        put(TABLE + 8 * page, page << 12 | 7);
    }
    let doublewords = |first: u64| {
        core::array::from_fn(|n| {
            let low = 2 * n as u64 + first;
            (low + 1) << 32 | low
        })
    };
    (cpu.fpu.vector[0], cpu.fpu.vector[1]) = (doublewords(1), doublewords(0));
    cpu.fpu.opmask[1] = mask;
    cpu.gpr[7] = at;
    cpu
}

pub(super) fn bytes<const N: usize>(cpu: &Cpu, at: u64) -> [u8; N] {
    let mut bytes = [0; N];
    cpu.phys.read_bytes(Hpa(at), &mut bytes);
    bytes
}

#[track_caller]
pub(super) fn assert_page_fault(end: Exec, address: u64, error: u32) {
    let Err(Fault::Exception(e)) = end else {
        panic!("{end:x?} is no exception");
    };
    assert_eq!(
        (e.vector, e.error_code, e.payload),
        (14, Some(error), address)
    );
}

#[test]
fn elements_that_are_masked_off_do_not_fault() {
    for code in [STORE, LOAD] {
        for (mask, faults) in [(1, false), (3, true), (2, true)] {
            let end = execute(&mut ready(HOLE - 4, mask), code);
            assert_eq!(end.is_err(), faults, "{mask}");
        }
    }
    for code in [
        STORE,
        LOAD,
        ADD_BROADCAST,
        BROADCAST,
        COMPRESS,
        GATHER,
        SCATTER,
    ] {
        assert_eq!(execute(&mut ready(HOLE, 0), code), Ok(()), "{code:x?}");
    }
}

#[test]
fn a_store_faults_where_an_element_reaches_the_next_page_and_stores_nothing() {
    let mut cpu = ready(HOLE - 6, 3);
    cpu.phys.write_bytes(Hpa(HOLE - 6), &[0xcc; 6]);
    assert_page_fault(execute(&mut cpu, STORE), HOLE, 2);
    assert_eq!(bytes(&cpu, HOLE - 6), [0xcc; 6]);
    cpu.fpu.opmask[1] = 1;
    assert_eq!(execute(&mut cpu, STORE), Ok(()));
    assert_eq!(bytes(&cpu, HOLE - 6), [1, 0, 0, 0, 0xcc, 0xcc]);
}

#[test]
fn some_forms_access_their_operand_whole() {
    assert_page_fault(execute(&mut ready(HOLE, 0), EXTRACT), HOLE, 2);
    assert_page_fault(execute(&mut ready(HOLE, 0), PERMUTE), HOLE, 0);
}

#[test]
fn a_compression_stores_as_many_elements_as_are_active() {
    let mut cpu = ready(HOLE - 8, 0x8002);
    assert_eq!(execute(&mut cpu, COMPRESS), Ok(()));
    assert_eq!(bytes(&cpu, HOLE - 8), [2, 0, 0, 0, 16, 0, 0, 0]);
    cpu.fpu.opmask[1] = 0x8003;
    assert_page_fault(execute(&mut cpu, COMPRESS), HOLE, 2);
}

#[test]
fn a_broadcast_reads_the_elements_that_are_wanted_anywhere() {
    // Elements 1 of the second copy and 0 of the third.
    for (mask, faults) in [(1 << 5, true), (1 << 8, false)] {
        let end = execute(&mut ready(HOLE - 4, mask), BROADCAST);
        assert_eq!(end.is_err(), faults, "{mask:x}");
    }
}

#[test]
fn gathers_and_scatters_keep_what_is_done_at_a_fault() {
    for (code, error) in [(GATHER, 0), (SCATTER, 2)] {
        let mut cpu = ready(HOLE - 8, 0b1101);
        cpu.phys.write_bytes(Hpa(HOLE - 8), &[0x11; 8]);
        assert_page_fault(execute(&mut cpu, code), HOLE, error);
        assert_eq!(cpu.fpu.opmask[1], 0b1100);
        let (first, stored) = (cpu.fpu.vector[0][0], bytes(&cpu, HOLE - 8));
        match error {
            0 => assert_eq!((first, stored), (2 << 32 | 0x1111_1111, [0x11; 8])),
            _ => assert_eq!(
                (first, stored),
                (2 << 32 | 1, [1, 0, 0, 0, 0x11, 0x11, 0x11, 0x11])
            ),
        }
        cpu.gpr[7] = HOLE - 16;
        assert_eq!(execute(&mut cpu, code), Ok(()));
        assert_eq!(cpu.fpu.opmask[1], 0);
    }
}

#[test]
fn an_operand_of_a_16_bit_address_goes_on_beyond_64_kib() {
    let mut cpu = protected_mode();
    cpu.set_cpuid(avx512_cpuid());
    cpu.state.cr4 |= Cr4::OSXSAVE | Cr4::OSFXSR;
    cpu.system.xcr0 = 0xe7;
    cpu.fpu.opmask[1] = 2;
    cpu.gpr[3] = 0xfffc;
    cpu.phys.write_bytes(Hpa(0x1_0000), &[5, 0, 0, 0]);
    // The same bytes: there [RDI] is [BX].
    let code = [&[0x67], LOAD].concat();
    assert_eq!(execute(&mut cpu, &code), Ok(()));
    assert_eq!(cpu.fpu.vector[0][0] >> 32, 5);
}

#[test]
fn the_components_of_avx512_have_to_be_enabled() {
    for code in [ADD, KANDW] {
        let mut cpu = ready(0, 0);
        assert_eq!(execute(&mut cpu, code), Ok(()));
        cpu.state.cr0 |= Cr0::TS;
        assert_eq!(execute(&mut cpu, code), NM);
        cpu.system.xcr0 = 7;
        assert_eq!(execute(&mut cpu, code), UD);
    }
}
