//! Down-conversions of integers (SDM Vol. 1, "Intel AVX-512 instructions"): VPMOVQB and its like,
//! which truncate, and those that saturate signed (VPMOVSQB) or unsigned (VPMOVUSQB) integers.

use iced_x86::{Code, EncodingKind, Mnemonic};

use super::vector::{Elements, collect, element};
use crate::exec::Row;
use crate::exec::form::plain;
use crate::insn::Insn;
use crate::{Cpu, Exec};

/// What becomes of a number that does not fit.
const TRUNCATE: u8 = 0;
const SIGNED: u8 = 1;
const UNSIGNED: u8 = 2;

/// Returns who executes an instruction of this file.
#[rustfmt::skip]
pub(crate) fn lookup(code: Code) -> Option<Row> {
    use Mnemonic as M;
    if code.encoding() != EncodingKind::EVEX {
        return None;
    }
    plain(match code.mnemonic() {
        M::Vpmovqb => narrow::<8, 1, TRUNCATE>,
        M::Vpmovqw => narrow::<8, 2, TRUNCATE>,
        M::Vpmovqd => narrow::<8, 4, TRUNCATE>,
        M::Vpmovdb => narrow::<4, 1, TRUNCATE>,
        M::Vpmovdw => narrow::<4, 2, TRUNCATE>,
        M::Vpmovwb => narrow::<2, 1, TRUNCATE>,
        M::Vpmovsqb => narrow::<8, 1, SIGNED>,
        M::Vpmovsqw => narrow::<8, 2, SIGNED>,
        M::Vpmovsqd => narrow::<8, 4, SIGNED>,
        M::Vpmovsdb => narrow::<4, 1, SIGNED>,
        M::Vpmovsdw => narrow::<4, 2, SIGNED>,
        M::Vpmovswb => narrow::<2, 1, SIGNED>,
        M::Vpmovusqb => narrow::<8, 1, UNSIGNED>,
        M::Vpmovusqw => narrow::<8, 2, UNSIGNED>,
        M::Vpmovusqd => narrow::<8, 4, UNSIGNED>,
        M::Vpmovusdb => narrow::<4, 1, UNSIGNED>,
        M::Vpmovusdw => narrow::<4, 2, UNSIGNED>,
        M::Vpmovuswb => narrow::<2, 1, UNSIGNED>,
        _ => return None,
    })
}

/// The elements of operand 1, `FROM` bytes each, become those of operand 0, `TO` bytes each.
fn narrow<const FROM: usize, const TO: usize, const KIND: u8>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_vector(insn)?;
    let source = cpu.register_lanes(insn, 1);
    let elements = Elements {
        bytes: TO,
        ..Elements::of(insn, FROM)
    };
    let value = collect(elements, |n| {
        let number = element(&source, n, FROM);
        match KIND {
            SIGNED => saturate_signed(number, FROM, TO),
            UNSIGNED => number.min(u64::MAX >> (64 - 8 * TO)),
            _ => number,
        }
    });
    cpu.write_vector(insn, value, elements)
}

fn saturate_signed(number: u64, from: usize, to: usize) -> u64 {
    let shift = 64 - 8 * from;
    let number = (number << shift).cast_signed() >> shift;
    let largest = i64::MAX >> (64 - 8 * to);
    number.clamp(-largest - 1, largest).cast_unsigned()
}
