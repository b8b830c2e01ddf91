//! Comparisons and tests into opmask registers, and moves between these and vectors.
//!
//! SDM Vol. 1, "Intel AVX-512 instructions": VPCMP, VPTESTM, VPTESTNM, VPSHUFBITQMB, VPMOVM2*,
//! VPMOV*2M, VPBROADCASTM*.

use iced_x86::{Code, EncodingKind, Mnemonic};

use super::blend::signs;
use super::lanes::{Lane, build, compare, get};
use super::vector::{Elements, Faults, collect, each_lane};
use crate::exec::Row;
use crate::exec::form::plain;
use crate::insn::{Insn, Plain};
use crate::{Cpu, Exec};

/// A handler: a result bit is the sign bit that a function of the lanes of both sources has in an
/// element of so many bytes.
macro_rules! bits {
    ($bytes:literal, $f:expr) => {{
        fn handler(cpu: &mut Cpu, insn: &Insn) -> Exec {
            compare_elements(cpu, insn, $bytes, Faults::Suppressed, |a, b| $f(a, b))
        }
        handler as Plain
    }};
}

/// Returns who executes an instruction of this file.
#[rustfmt::skip]
pub(crate) fn lookup(code: Code) -> Option<Row> {
    use Mnemonic as M;
    if code.encoding() != EncodingKind::EVEX {
        return None;
    }
    plain(match code.mnemonic() {
        M::Vpcmpeqb => bits!(1, |a, b| compare(a, b, |x: u8, y| x == y)),
        M::Vpcmpeqw => bits!(2, |a, b| compare(a, b, |x: u16, y| x == y)),
        M::Vpcmpeqd => bits!(4, |a, b| compare(a, b, |x: u32, y| x == y)),
        M::Vpcmpeqq => bits!(8, |a, b| compare(a, b, |x: u64, y| x == y)),
        M::Vpcmpgtb => bits!(1, |a, b| compare(a, b, |x: i8, y| x > y)),
        M::Vpcmpgtw => bits!(2, |a, b| compare(a, b, |x: i16, y| x > y)),
        M::Vpcmpgtd => bits!(4, |a, b| compare(a, b, |x: i32, y| x > y)),
        M::Vpcmpgtq => bits!(8, |a, b| compare(a, b, |x: i64, y| x > y)),
        M::Vpcmpub => compare_by_predicate::<u8>,
        M::Vpcmpuw => compare_by_predicate::<u16>,
        M::Vpcmpud => compare_by_predicate::<u32>,
        M::Vpcmpuq => compare_by_predicate::<u64>,
        M::Vpcmpb => compare_by_predicate::<i8>,
        M::Vpcmpw => compare_by_predicate::<i16>,
        M::Vpcmpd => compare_by_predicate::<i32>,
        M::Vpcmpq => compare_by_predicate::<i64>,
        M::Vptestmb => bits!(1, |a, b| compare(a, b, |x: u8, y| x & y != 0)),
        M::Vptestmw => bits!(2, |a, b| compare(a, b, |x: u16, y| x & y != 0)),
        M::Vptestmd => bits!(4, |a, b| compare(a, b, |x: u32, y| x & y != 0)),
        M::Vptestmq => bits!(8, |a, b| compare(a, b, |x: u64, y| x & y != 0)),
        M::Vptestnmb => bits!(1, |a, b| compare(a, b, |x: u8, y| x & y == 0)),
        M::Vptestnmw => bits!(2, |a, b| compare(a, b, |x: u16, y| x & y == 0)),
        M::Vptestnmd => bits!(4, |a, b| compare(a, b, |x: u32, y| x & y == 0)),
        M::Vptestnmq => bits!(8, |a, b| compare(a, b, |x: u64, y| x & y == 0)),
        M::Vpshufbitqmb => bits!(1, pick_bits),
        M::Vpmovb2m => signs_to_mask::<1>,
        M::Vpmovw2m => signs_to_mask::<2>,
        M::Vpmovd2m => signs_to_mask::<4>,
        M::Vpmovq2m => signs_to_mask::<8>,
        M::Vpmovm2b => mask_to_elements::<1>,
        M::Vpmovm2w => mask_to_elements::<2>,
        M::Vpmovm2d => mask_to_elements::<4>,
        M::Vpmovm2q => mask_to_elements::<8>,
        M::Vpbroadcastmb2q => broadcast_mask::<8>,
        M::Vpbroadcastmw2d => broadcast_mask::<4>,
        _ => return None,
    })
}

fn compare_elements(
    cpu: &mut Cpu,
    insn: &Insn,
    element_bytes: usize,
    faults: Faults,
    f: impl Fn(u128, u128) -> u128,
) -> Exec {
    cpu.check_vector(insn)?;
    let elements = Elements::of(insn, element_bytes);
    let b = cpu.read_vector(insn, 2, elements, faults)?;
    let a = cpu.register_lanes(insn, 1);
    let value = each_lane(insn.lane_count(), |lane| f(a[lane], b[lane]));
    cpu.write_opmask(insn, signs(&value, elements), elements.count);
    Ok(())
}

/// VPCMP: the immediate says how (SDM Vol. 2, "Pseudo-Op and VPCMP* Implementation").
fn compare_by_predicate<L: Lane + Ord>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let by = insn.immediate_byte() & 7;
    let bytes = L::BITS as usize / 8;
    compare_elements(cpu, insn, bytes, Faults::Suppressed, |a, b| {
        compare(a, b, |x: L, y: L| {
            let holds = match by & 3 {
                0 => x == y,
                1 => x < y,
                2 => x <= y,
                _ => false,
            };
            holds != (by & 4 != 0)
        })
    })
}

/// VPSHUFBITQMB: the sign of a byte is the bit of the quadword of `a` which that of `b` numbers.
fn pick_bits(a: u128, b: u128) -> u128 {
    build(16, |n| {
        let at = get::<u8>(b, n) & 63;
        ((get::<u64>(a, n / 8) >> at) as u8) << 7
    })
}

/// VPMOVB2M, VPMOVW2M, VPMOVD2M, VPMOVQ2M.
fn signs_to_mask<const BYTES: usize>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_vector(insn)?;
    let elements = Elements::of(insn, BYTES);
    let value = cpu.register_lanes(insn, 1);
    cpu.set_opmask(insn, signs(&value, elements));
    Ok(())
}

/// VPMOVM2B, VPMOVM2W, VPMOVM2D, VPMOVM2Q.
fn mask_to_elements<const BYTES: usize>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_vector(insn)?;
    let elements = Elements::of(insn, BYTES);
    let mask = cpu.opmask_operand(insn, 1);
    let value = collect(elements, |n| 0_u64.wrapping_sub(mask >> n & 1));
    cpu.write_vector(insn, value, elements)
}

/// VPBROADCASTMB2Q, VPBROADCASTMW2D: as many bits as a vector of 512 bits has elements, zero-extended.
fn broadcast_mask<const BYTES: usize>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_vector(insn)?;
    let elements = Elements::of(insn, BYTES);
    let mask = cpu.opmask_operand(insn, 1) & ((1 << (64 / BYTES)) - 1);
    cpu.write_vector(insn, collect(elements, |_| mask), elements)
}
