//! What crosses the lanes of a vector, as AVX-512 adds it: permutations of one and two tables,
//! alignments, pieces under an opmask, and blends by it.
//!
//! SDM Vol. 1, "Intel AVX-512 instructions". What AVX and AVX2 have as well is in [`super::permute`].

use iced_x86::{Code, EncodingKind, Mnemonic};

use super::permute::{broadcast, extract_piece, insert_piece, permute};
use super::vector::{Elements, Faults, Value, blend, collect, each_lane, element};
use crate::exec::Row;
use crate::exec::form::plain;
use crate::insn::{Insn, Operand, Plain};
use crate::{Cpu, Exec};

/// Returns who executes an instruction of this file.
pub(crate) fn lookup(code: Code) -> Option<Row> {
    if code.encoding() != EncodingKind::EVEX {
        return None;
    }
    let mnemonic = code.mnemonic();
    permutations(mnemonic)
        .or_else(|| pieces(mnemonic))
        .or_else(|| blends(mnemonic))
        .and_then(plain)
}

#[rustfmt::skip]
fn permutations(mnemonic: Mnemonic) -> Option<Plain> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Vpermb => permute::<1>,
        M::Vpermw => permute::<2>,
        M::Vpermi2b => permute_over_index::<1>,
        M::Vpermi2w => permute_over_index::<2>,
        M::Vpermi2d | M::Vpermi2ps => permute_over_index::<4>,
        M::Vpermi2q | M::Vpermi2pd => permute_over_index::<8>,
        M::Vpermt2b => permute_over_table::<1>,
        M::Vpermt2w => permute_over_table::<2>,
        M::Vpermt2d | M::Vpermt2ps => permute_over_table::<4>,
        M::Vpermt2q | M::Vpermt2pd => permute_over_table::<8>,
        M::Valignd => align::<4>,
        M::Valignq => align::<8>,
        M::Vshuff32x4 | M::Vshufi32x4 => shuffle_lanes::<4>,
        M::Vshuff64x2 | M::Vshufi64x2 => shuffle_lanes::<8>,
        _ => return None,
    })
}

#[rustfmt::skip]
fn pieces(mnemonic: Mnemonic) -> Option<Plain> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Vinsertf32x4 | M::Vinserti32x4 => insert_piece::<4, 16>,
        M::Vinsertf64x2 | M::Vinserti64x2 => insert_piece::<8, 16>,
        M::Vinsertf32x8 | M::Vinserti32x8 => insert_piece::<4, 32>,
        M::Vinsertf64x4 | M::Vinserti64x4 => insert_piece::<8, 32>,
        M::Vextractf32x4 | M::Vextracti32x4 => extract_piece::<4, 16>,
        M::Vextractf64x2 | M::Vextracti64x2 => extract_piece::<8, 16>,
        M::Vextractf32x8 | M::Vextracti32x8 => extract_piece::<4, 32>,
        M::Vextractf64x4 | M::Vextracti64x4 => extract_piece::<8, 32>,
        M::Vbroadcastf32x2 | M::Vbroadcasti32x2 => broadcast::<4, 8>,
        M::Vbroadcastf32x4 | M::Vbroadcasti32x4 => broadcast::<4, 16>,
        M::Vbroadcastf64x2 | M::Vbroadcasti64x2 => broadcast::<8, 16>,
        M::Vbroadcastf32x8 | M::Vbroadcasti32x8 => broadcast::<4, 32>,
        M::Vbroadcastf64x4 | M::Vbroadcasti64x4 => broadcast::<8, 32>,
        _ => return None,
    })
}

#[rustfmt::skip]
fn blends(mnemonic: Mnemonic) -> Option<Plain> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Vpblendmb => blend_by_mask::<1>,
        M::Vpblendmw => blend_by_mask::<2>,
        M::Vpblendmd | M::Vblendmps => blend_by_mask::<4>,
        M::Vpblendmq | M::Vblendmpd => blend_by_mask::<8>,
        _ => return None,
    })
}

/// VPERMI2*: the destination has the indices, both sources are the tables.
fn permute_over_index<const BYTES: usize>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_vector(insn)?;
    let elements = Elements::of(insn, BYTES);
    let second = cpu.read_vector(insn, 2, elements, Faults::Whole)?;
    let [indices, first] = [0, 1].map(|n| cpu.register_lanes(insn, n));
    let value = pick(elements, &indices, [&first, &second]);
    cpu.write_vector(insn, value, elements)
}

/// VPERMT2*: the first source has the indices, the destination is the first table.
fn permute_over_table<const BYTES: usize>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_vector(insn)?;
    let elements = Elements::of(insn, BYTES);
    let second = cpu.read_vector(insn, 2, elements, Faults::Whole)?;
    let [first, indices] = [0, 1].map(|n| cpu.register_lanes(insn, n));
    let value = pick(elements, &indices, [&first, &second]);
    cpu.write_vector(insn, value, elements)
}

/// Picks elements of two tables by indices, which wrap.
fn pick(elements: Elements, indices: &Value, tables: [&Value; 2]) -> Value {
    let Elements { bytes, count } = elements;
    collect(elements, |n| {
        let index = element(indices, n, bytes) as usize & (2 * count - 1);
        element(tables[index / count], index % count, bytes)
    })
}

/// VALIGND, VALIGNQ: elements of the second source from the immediate on, then those of the first.
fn align<const BYTES: usize>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_vector(insn)?;
    let elements = Elements::of(insn, BYTES);
    let low = cpu.read_vector(insn, 2, elements, Faults::Whole)?;
    let high = cpu.register_lanes(insn, 1);
    let from = usize::from(insn.immediate_byte()) % elements.count;
    let value = collect(elements, |n| match n + from {
        n if n < elements.count => element(&low, n, BYTES),
        n => element(&high, n - elements.count, BYTES),
    });
    cpu.write_vector(insn, value, elements)
}

/// VSHUFF32X4 and its like: the low lanes are of the first source, the others of the second one.
fn shuffle_lanes<const BYTES: usize>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_vector(insn)?;
    let elements = Elements::of(insn, BYTES);
    let b = cpu.read_vector(insn, 2, elements, Faults::Whole)?;
    let a = cpu.register_lanes(insn, 1);
    let count = insn.lane_count();
    let by = usize::from(insn.immediate_byte());
    let value = each_lane(count, |lane| {
        let index = by >> (lane * count / 2) & (count - 1);
        if lane < count / 2 { a[index] } else { b[index] }
    });
    cpu.write_vector(insn, value, elements)
}

/// VPBLENDM*, VBLENDM*: the opmask selects between both sources; zeroing clears in place of the
/// first one.
fn blend_by_mask<const BYTES: usize>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_vector(insn)?;
    let elements = Elements::of(insn, BYTES);
    let b = cpu.read_vector(insn, 2, elements, Faults::Suppressed)?;
    let a = match insn.vector.is_zeroing {
        true => [0; 4],
        false => cpu.register_lanes(insn, 1),
    };
    let value = blend(elements, cpu.active(insn, elements.count), b, a);
    if let Operand::Vector(register) = insn.operands[0] {
        let value = each_lane(insn.lane_count(), |lane| value[lane]);
        cpu.fpu.set_lanes(usize::from(register & 31), value);
    }
    Ok(())
}
