//! Condition codes: Jcc, SETcc, CMOVcc (SDM Vol. 1, "EFLAGS Condition Codes").

use iced_x86::{Code, ConditionCode, Mnemonic};
use vmx_model::arch::Rflags;

use super::Row;
use super::control::jump_to;
use super::form::{conditions, ending, plain};
use crate::insn::{Insn, Plain};
use crate::width::Width;
use crate::{Cpu, Exec};

const JCC: [Plain; 16] = conditions!(jcc);
const SETCC: [Plain; 16] = conditions!(setcc);
const CMOVCC: [[Plain; 16]; 3] = [
    conditions!(cmovcc, u16),
    conditions!(cmovcc, u32),
    conditions!(cmovcc, u64),
];

/// Returns the row of a conditional instruction.
pub(crate) fn lookup(code: Code) -> Option<Row> {
    let cc = condition_number(code)?;
    if code.is_jcc_short_or_near() {
        ending(JCC[cc])
    } else if super::form::operand_bytes(code, 0) == Some(1) {
        plain(SETCC[cc])
    } else {
        let size = match code.op_code().operand_size() {
            16 => 0,
            32 => 1,
            _ => 2,
        };
        plain(CMOVCC[size][cc])
    }
}

/// Returns the condition code as instructions encode it, of those that this file executes.
fn condition_number(code: Code) -> Option<usize> {
    // LOOPcc and the compare-and-add and floating-point forms have conditions, too.
    if matches!(code.mnemonic(), Mnemonic::Loope | Mnemonic::Loopne) {
        return None;
    }
    let ours = code.is_jcc_short_or_near()
        || matches!(operand_count_and_class(code), (1, true) | (2, true));
    if !ours {
        return None;
    }
    Some(match code.condition_code() {
        ConditionCode::o => 0,
        ConditionCode::no => 1,
        ConditionCode::b => 2,
        ConditionCode::ae => 3,
        ConditionCode::e => 4,
        ConditionCode::ne => 5,
        ConditionCode::be => 6,
        ConditionCode::a => 7,
        ConditionCode::s => 8,
        ConditionCode::ns => 9,
        ConditionCode::p => 10,
        ConditionCode::np => 11,
        ConditionCode::l => 12,
        ConditionCode::ge => 13,
        ConditionCode::le => 14,
        ConditionCode::g => 15,
        _ => return None,
    })
}

fn operand_count_and_class(code: Code) -> (u32, bool) {
    let info = code.op_code();
    (
        info.op_count(),
        super::form::operand_bytes(code, 0).is_some(),
    )
}

/// Whether condition code `CC` holds.
#[inline(always)]
pub(crate) fn holds<const CC: u8>(flags: Rflags) -> bool {
    let has = |flag| flags.contains(flag);
    let less = has(Rflags::SF) != has(Rflags::OF);
    let base = match CC >> 1 {
        0 => has(Rflags::OF),
        1 => has(Rflags::CF),
        2 => has(Rflags::ZF),
        3 => has(Rflags::CF) || has(Rflags::ZF),
        4 => has(Rflags::SF),
        5 => has(Rflags::PF),
        6 => less,
        _ => less || has(Rflags::ZF),
    };
    base != (CC & 1 != 0)
}

/// Jcc.
pub(crate) fn jcc<const CC: u8>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    if !holds::<CC>(cpu.rflags()) {
        return Ok(());
    }
    let target = cpu.read(insn, 0)?;
    jump_to(cpu, target)
}

/// SETcc.
pub(crate) fn setcc<const CC: u8>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let value = u8::from(holds::<CC>(cpu.rflags()));
    cpu.write(insn, 0, value)
}

/// CMOVcc: the source is always read, and the destination is always written: a 32-bit form clears
/// the upper half in any case.
pub(crate) fn cmovcc<W: Width, const CC: u8>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let source = cpu.read::<W>(insn, 1)?;
    let value = if holds::<CC>(cpu.rflags()) {
        source
    } else {
        cpu.read::<W>(insn, 0)?
    };
    cpu.write(insn, 0, value)
}
