//! Single elements into and out of XMM registers.
//!
//! SDM Vol. 1, "Insertion and Extractions from XMM Registers" of SSE4.1, and PINSRW and PEXTRW of
//! SSE2 and SSE4.1.

use iced_x86::{Code, Mnemonic};

use super::lanes::{Lane, build, get};
use super::vector::{Elements, is_vector_form};
use crate::exec::Row;
use crate::exec::form::plain;
use crate::insn::{Insn, Operand, Plain};
use crate::width::Width;
use crate::{Cpu, Exec};

/// Returns who executes an instruction of this file.
pub(crate) fn lookup(code: Code) -> Option<Row> {
    use Mnemonic as M;
    if !is_vector_form(code) {
        return None;
    }
    let handler: Plain = match code.mnemonic() {
        M::Pinsrb | M::Vpinsrb => insert::<u8>,
        M::Pinsrw | M::Vpinsrw => insert::<u16>,
        M::Pinsrd | M::Vpinsrd => insert::<u32>,
        M::Pinsrq | M::Vpinsrq => insert::<u64>,
        M::Pextrb | M::Vpextrb => extract::<u8>,
        M::Pextrw | M::Vpextrw => extract::<u16>,
        M::Pextrd | M::Vpextrd | M::Extractps | M::Vextractps => extract::<u32>,
        M::Pextrq | M::Vpextrq => extract::<u64>,
        M::Insertps | M::Vinsertps => insertps,
        _ => return None,
    };
    plain(handler)
}

/// PINSRB, PINSRW, PINSRD, PINSRQ.
fn insert<W: Width + Lane>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_vector(insn)?;
    let new = cpu.read::<W>(insn, insn.last_source())?;
    let at = u32::from(insn.immediate_byte()) % count::<W>();
    let old = cpu.register_lanes(insn, insn.first_source())[0];
    let value = build(count::<W>(), |n| if n == at { new } else { get(old, n) });
    cpu.write_vector(insn, [value, 0, 0, 0], Elements::of(insn, 16))
}

/// PEXTRB, PEXTRW, PEXTRD, PEXTRQ, EXTRACTPS: the rest of a register is cleared.
fn extract<W: Width + Lane>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_vector(insn)?;
    let at = u32::from(insn.immediate_byte()) % count::<W>();
    let value: W = get(cpu.register_lanes(insn, 1)[0], at);
    match insn.operands[0] {
        Operand::Memory => cpu.write(insn, 0, value),
        _ => cpu.write(insn, 0, value.to_u64()),
    }
}

/// How many elements a lane has.
const fn count<W: Width>() -> u32 {
    128 / W::BITS
}

/// INSERTPS: the immediate says which element of a register is the source, where it goes, and what
/// becomes zero.
fn insertps(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_vector(insn)?;
    let by = u32::from(insn.immediate_byte());
    let last = insn.last_source();
    let new: u32 = match insn.operands[last] {
        Operand::Memory => cpu.read(insn, last)?,
        _ => get(cpu.register_lanes(insn, last)[0], by >> 6),
    };
    let old = cpu.register_lanes(insn, insn.first_source())[0];
    let value = build(4, |n| match n {
        _ if by >> n & 1 != 0 => 0,
        _ if n == by >> 4 & 3 => new,
        _ => get(old, n),
    });
    cpu.write_vector(insn, [value, 0, 0, 0], Elements::of(insn, 16))
}
