//! Compression of the active elements of a vector to its low end, and expansion.
//!
//! SDM Vol. 1, "Intel AVX-512 instructions": VPCOMPRESS, VPEXPAND, VCOMPRESSPS, VEXPANDPS and their
//! like. In memory only as many elements are accessed as the opmask lets through.

use iced_x86::{Code, EncodingKind, Mnemonic};

use super::vector::{Elements, Value, collect, each_lane, element};
use crate::exec::Row;
use crate::exec::form::plain;
use crate::insn::{Insn, Operand};
use crate::{Cpu, Exec};

/// Returns who executes an instruction of this file.
pub(crate) fn lookup(code: Code) -> Option<Row> {
    use Mnemonic as M;
    if code.encoding() != EncodingKind::EVEX {
        return None;
    }
    plain(match code.mnemonic() {
        M::Vpcompressb => compress::<1>,
        M::Vpcompressw => compress::<2>,
        M::Vpcompressd | M::Vcompressps => compress::<4>,
        M::Vpcompressq | M::Vcompresspd => compress::<8>,
        M::Vpexpandb => expand::<1>,
        M::Vpexpandw => expand::<2>,
        M::Vpexpandd | M::Vexpandps => expand::<4>,
        M::Vpexpandq | M::Vexpandpd => expand::<8>,
        _ => return None,
    })
}

/// The active elements of operand 1 go to the low end of operand 0.
fn compress<const BYTES: usize>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_vector(insn)?;
    let elements = Elements::of(insn, BYTES);
    let active = cpu.active(insn, elements.count);
    let source = cpu.register_lanes(insn, 1);
    let packed: Vec<u64> = (0..elements.count)
        .filter(|n| active >> n & 1 != 0)
        .map(|n| element(&source, n, BYTES))
        .collect();
    let Operand::Vector(register) = insn.operands[0] else {
        let count = packed.len();
        let value = collect(Elements { count, ..elements }, |n| packed[n]);
        return cpu.store_active(insn, value, elements, low_ones(count));
    };
    let register = usize::from(register & 31);
    let old = match insn.vector.is_zeroing {
        true => [0; 4],
        false => cpu.fpu.lanes(register),
    };
    let value = collect(elements, |n| match packed.get(n) {
        Some(&element) => element,
        None => element(&old, n, BYTES),
    });
    cpu.fpu.set_lanes(register, value);
    Ok(())
}

/// The low elements of operand 1 go to the active elements of operand 0.
fn expand<const BYTES: usize>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_vector(insn)?;
    let elements = Elements::of(insn, BYTES);
    let active = cpu.active(insn, elements.count);
    let source: Value = match insn.operands[1] {
        Operand::Memory => {
            cpu.load_elements(insn, elements, low_ones(active.count_ones() as usize))?
        }
        _ => cpu.register_lanes(insn, 1),
    };
    let place = |n: usize| (active & !(u64::MAX << n)).count_ones() as usize;
    let value = collect(elements, |n| element(&source, place(n), BYTES));
    let value = each_lane(insn.lane_count(), |lane| value[lane]);
    cpu.write_vector(insn, value, elements)
}

fn low_ones(count: usize) -> u64 {
    match count {
        0 => 0,
        _ => u64::MAX >> (64 - count.min(64)),
    }
}
