//! What crosses the lanes of a vector: permutations, broadcasts, and pieces of 128 bits and more.
//!
//! SDM Vol. 1, "Intel Advanced Vector Extensions (Intel AVX)" and "Intel Advanced Vector Extensions
//! 2 (Intel AVX2)" of "Instruction Set Summary". VPERMILPS and VPERMILPD, which stay within a lane,
//! are here for their two forms: controlled by a vector or by the immediate.

use iced_x86::{Code, Mnemonic};

use super::lanes::{build, get};
use super::vector::{Elements, Faults, Value, collect, each_lane, element, is_vector_form};
use crate::exec::Row;
use crate::exec::form::plain;
use crate::insn::{Insn, Operand, Plain};
use crate::{Cpu, Exec};

/// Returns who executes an instruction of this file.
#[rustfmt::skip]
pub(crate) fn lookup(code: Code) -> Option<Row> {
    use Mnemonic as M;
    if !is_vector_form(code) {
        return None;
    }
    let handler: Plain = match code.mnemonic() {
        M::Vpermd | M::Vpermps => permute::<4>,
        M::Vpermq | M::Vpermpd => permute_quadwords,
        M::Vpermilps => permute_in_lane_single,
        M::Vpermilpd => permute_in_lane_double,
        M::Vperm2f128 | M::Vperm2i128 => permute_two,
        M::Vinsertf128 | M::Vinserti128 => insert_piece::<8, 16>,
        M::Vextractf128 | M::Vextracti128 => extract_piece::<8, 16>,
        M::Vbroadcastss | M::Vpbroadcastd => broadcast::<4, 4>,
        M::Vbroadcastsd | M::Vpbroadcastq => broadcast::<8, 8>,
        M::Vbroadcastf128 | M::Vbroadcasti128 => broadcast::<8, 16>,
        M::Vpbroadcastb => broadcast::<1, 1>,
        M::Vpbroadcastw => broadcast::<2, 2>,
        _ => return None,
    };
    plain(handler)
}

/// VPERMD, VPERMPS and their like: element n is that of the last source which element n of the
/// first source numbers.
pub(super) fn permute<const BYTES: usize>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_vector(insn)?;
    let elements = Elements::of(insn, BYTES);
    let table = cpu.read_vector(insn, 2, elements, Faults::Whole)?;
    let indices = cpu.register_lanes(insn, 1);
    let value = collect(elements, |n| {
        let index = element(&indices, n, BYTES) as usize & (elements.count - 1);
        element(&table, index, BYTES)
    });
    cpu.write_vector(insn, value, elements)
}

/// VPERMQ and VPERMPD: by a vector, or within each 256 bits by the immediate.
fn permute_quadwords(cpu: &mut Cpu, insn: &Insn) -> Exec {
    if !insn.has_immediate() {
        return permute::<8>(cpu, insn);
    }
    cpu.check_vector(insn)?;
    let elements = Elements::of(insn, 8);
    let table = cpu.read_vector(insn, 1, elements, Faults::Whole)?;
    let by = usize::from(insn.immediate_byte());
    let value = collect(elements, |n| {
        element(&table, n & !3 | by >> (2 * (n & 3)) & 3, 8)
    });
    cpu.write_vector(insn, value, elements)
}

/// VPERMILPS.
fn permute_in_lane_single(cpu: &mut Cpu, insn: &Insn) -> Exec {
    if insn.has_immediate() {
        let by = u32::from(insn.immediate_byte());
        return cpu.lane_by_lane(insn, 4, Faults::Whole, |_, b, _| {
            build(4, |n| get::<u32>(b, by >> (2 * n) & 3))
        });
    }
    cpu.lane_by_lane(insn, 4, Faults::Whole, |a, b, _| {
        build(4, |n| get::<u32>(a, get::<u32>(b, n) & 3))
    })
}

/// VPERMILPD: bit 1 of an element controls, or each element's own bit of the immediate.
fn permute_in_lane_double(cpu: &mut Cpu, insn: &Insn) -> Exec {
    if insn.has_immediate() {
        let by = u32::from(insn.immediate_byte());
        return cpu.lane_by_lane(insn, 8, Faults::Whole, |_, b, lane| {
            build(2, |n| get::<u64>(b, by >> (2 * lane as u32 + n) & 1))
        });
    }
    cpu.lane_by_lane(insn, 8, Faults::Whole, |a, b, _| {
        build(2, |n| get::<u64>(a, get::<u64>(b, n) as u32 >> 1 & 1))
    })
}

/// VPERM2F128 and VPERM2I128: each half is one of the four of both sources, or zero.
fn permute_two(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_vector(insn)?;
    let elements = Elements::of(insn, 8);
    let b = cpu.read_vector(insn, 2, elements, Faults::Whole)?;
    let a = cpu.register_lanes(insn, 1);
    let halves = [a[0], a[1], b[0], b[1]];
    let by = insn.immediate_byte();
    let value = each_lane(2, |half| match by >> (4 * half) {
        control if control & 8 != 0 => 0,
        control => halves[usize::from(control & 3)],
    });
    cpu.write_vector(insn, value, elements)
}

/// Returns which piece of `bytes` bytes the immediate numbers, as its first 128-bit lane.
fn piece(insn: &Insn, bytes: usize) -> usize {
    let pieces = (usize::from(insn.vector.bytes) / bytes).max(1);
    (usize::from(insn.immediate_byte()) & (pieces - 1)) * bytes / 16
}

/// VINSERTF128 and its like: `PIECE` bytes of the last source replace some of the first. The opmask
/// is one of elements of `BYTES` bytes.
pub(super) fn insert_piece<const BYTES: usize, const PIECE: usize>(
    cpu: &mut Cpu,
    insn: &Insn,
) -> Exec {
    cpu.check_vector(insn)?;
    let part = Elements {
        bytes: BYTES,
        count: PIECE / BYTES,
    };
    let new = cpu.read_vector(insn, 2, part, Faults::Whole)?;
    let old = cpu.register_lanes(insn, 1);
    let first = piece(insn, PIECE);
    let value = each_lane(insn.lane_count(), |lane| {
        match lane.checked_sub(first).filter(|&n| n < PIECE / 16) {
            Some(n) => new[n],
            None => old[lane],
        }
    });
    cpu.write_vector(insn, value, Elements::of(insn, BYTES))
}

/// VEXTRACTF128 and its like: `PIECE` bytes of the source go to a register or to memory.
pub(super) fn extract_piece<const BYTES: usize, const PIECE: usize>(
    cpu: &mut Cpu,
    insn: &Insn,
) -> Exec {
    cpu.check_vector(insn)?;
    let source = cpu.register_lanes(insn, 1);
    let first = piece(insn, PIECE);
    let value = each_lane(PIECE / 16, |lane| source[first + lane]);
    let part = Elements {
        bytes: BYTES,
        count: PIECE / BYTES,
    };
    if insn.operands[0] == Operand::Memory {
        // The opmask suppresses no fault: type E6NF.
        cpu.probe_operand(insn, PIECE)?;
    }
    cpu.write_vector(insn, value, part)
}

/// VBROADCASTSS and its like: `SOURCE` bytes, again and again. The opmask is one of elements of
/// `BYTES` bytes; of memory those are accessed that are wanted anywhere.
pub(super) fn broadcast<const BYTES: usize, const SOURCE: usize>(
    cpu: &mut Cpu,
    insn: &Insn,
) -> Exec {
    cpu.check_vector(insn)?;
    let elements = Elements::of(insn, BYTES);
    let source: Value = match insn.operands[1] {
        Operand::Vector(_) => cpu.register_lanes(insn, 1),
        Operand::Memory => {
            let one = Elements {
                bytes: BYTES,
                count: SOURCE / BYTES,
            };
            let active = cpu.active(insn, elements.count);
            let copies = (0..elements.count).step_by(one.count);
            let wanted = copies.fold(0, |wanted, from| wanted | active >> from);
            cpu.load_elements(insn, one, wanted)?
        }
        _ => [cpu.read::<u64>(insn, 1)?.into(), 0, 0, 0],
    };
    let value = collect(elements, |n| element(&source, n % (SOURCE / BYTES), BYTES));
    cpu.write_vector(insn, value, elements)
}
