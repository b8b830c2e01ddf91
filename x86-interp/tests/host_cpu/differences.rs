//! What is not compared, and why: flags that the SDM leaves undefined, and the few places where
//! vendors differ.

use iced_x86::{Code, Mnemonic, OpKind};

use crate::generate::{CODE, Case, DATA, PAGE};
use crate::native::Outcome;

const CF: u64 = 1;
const PF: u64 = 1 << 2;
const AF: u64 = 1 << 4;
const ZF: u64 = 1 << 6;
const SF: u64 = 1 << 7;
const OF: u64 = 1 << 11;
/// The status flags, DF, and the flags that POPF can reach.
const COMPARED: u64 = 0x24_4dd5;

/// Flags that the SDM leaves undefined: Vol. 2, "Flags Affected" of each instruction; Vol. 1,
/// appendix "EFLAGS Cross-Reference".
#[rustfmt::skip]
const UNDEFINED: &[(&[Mnemonic], u64)] = {
    use Mnemonic::*;
    &[
        (&[And, Or, Xor, Test], AF),
        (&[Andn, Blsi, Blsr, Bzhi], AF | PF),
        // ZF is 0 by its nature.
        (&[Blsmsk], AF | PF),
        (&[Bextr], AF | SF | PF),
        (&[Mul, Imul], SF | ZF | AF | PF),
        (&[Div, Idiv], CF | OF | SF | ZF | AF | PF),
        (&[Bt, Bts, Btr, Btc], OF | SF | AF | PF),
        (&[Bsf, Bsr], CF | OF | SF | AF | PF),
        (&[Tzcnt, Lzcnt], OF | SF | AF | PF),
        (&[Shl, Sal, Shr, Sar, Shld, Shrd], AF),
        (&[Daa, Das], OF),
        (&[Aaa, Aas], OF | SF | ZF | PF),
        (&[Aam, Aad], OF | AF | CF),
    ]
};

/// Returns the flags that are compared after the case.
pub(crate) fn compared_flags(case: &Case, host: &Outcome) -> u64 {
    let mnemonic = case.instruction.mnemonic();
    let i = &case.instruction;
    let is_comparison = is_cmps(case) || is_scas(case);
    let is_repeated = i.has_rep_prefix() || i.has_repne_prefix();
    if host.exception.is_some() && is_comparison && is_repeated {
        // "When a fault occurs during the execution of a CMPS or SCAS instruction that is prefixed
        // by REPE or REPNE, the EFLAGS value is restored to the state prior to the execution of
        // the instruction" (SDM Vol. 2, "REP/REPE/REPZ/REPNE/REPNZ"). AMD processors leave the
        // flags of the last completed iteration.
        return 0;
    }
    let undefined = UNDEFINED
        .iter()
        .filter(|(list, _)| list.contains(&mnemonic));
    let by_mnemonic = undefined.fold(0, |mask, &(_, flags)| mask | flags);
    COMPARED & !by_mnemonic & !undefined_by_count(case)
}

/// OF of a shift or rotate by more than one place, and CF of a SHL or SHR by the width or more.
fn undefined_by_count(case: &Case) -> u64 {
    use Mnemonic as M;
    let Some((count, bits)) = shift_count(case) else {
        return 0;
    };
    let of = if count > 1 { OF } else { 0 };
    let is_beyond = match case.instruction.mnemonic() {
        M::Shl | M::Sal | M::Shr => count >= bits,
        M::Shld | M::Shrd => count > bits,
        _ => false,
    };
    of | if is_beyond { CF | SF | ZF | PF } else { 0 }
}

/// Returns the masked count of a shift or rotate, and the width of its operand.
fn shift_count(case: &Case) -> Option<(u64, u64)> {
    use Mnemonic as M;
    let i = &case.instruction;
    let is_shift = matches!(
        i.mnemonic(),
        M::Shl | M::Sal | M::Shr | M::Sar | M::Rol | M::Ror | M::Rcl | M::Rcr | M::Shld | M::Shrd
    );
    if !is_shift {
        return None;
    }
    let last = i.op_count() - 1;
    let count = match i.op_kind(last) {
        OpKind::Register => case.gpr[1],
        _ => i.immediate(last),
    };
    let bits = match i.op0_kind() {
        OpKind::Register => i.op0_register().size(),
        _ => i.memory_size().size(),
    } as u64
        * 8;
    Some((count & if bits == 64 { 63 } else { 31 }, bits))
}

/// Whether nothing can be compared: the host lacks the instruction, or vendors differ in the
/// whole, or the SDM leaves the result undefined.
pub(crate) fn is_incomparable(case: &Case, host: &Outcome) -> bool {
    use Mnemonic as M;
    let i = &case.instruction;
    match i.mnemonic() {
        // Not every host has it.
        M::Movdiri => matches!(host.exception, Some((6, ..))),
        // AMD processors take a repeat prefix on LOOPE and LOOPNE as part of the condition; Intel
        // processors ignore it.
        M::Loope | M::Loopne => i.has_rep_prefix() || i.has_repne_prefix(),
        // The register forms of 0F 0D are NOPs on Intel processors, undefined on AMD's.
        M::Reservednop => matches!(
            i.code(),
            Code::Reservednop_rm16_r16_0F0D
                | Code::Reservednop_rm32_r32_0F0D
                | Code::Reservednop_rm64_r64_0F0D
        ),
        // The result of a double shift by more than the width is undefined.
        M::Shld | M::Shrd => shift_count(case).is_some_and(|(count, bits)| count > bits),
        // The source is a word on Intel processors, a doubleword on AMD's.
        M::Movsxd => i.code() == Code::Movsxd_r16_rm16,
        // Where a fault ends them, AMD processors have pushed or popped the first registers.
        M::Pusha | M::Pushad | M::Popa | M::Popad => host.exception.is_some(),
        // The result of BSWAP of a 16-bit register is undefined.
        M::Bswap => i.op0_register().size() == 2,
        _ => false,
    }
}

fn is_cmps(case: &Case) -> bool {
    use Mnemonic as M;
    let i = &case.instruction;
    // An instruction of SSE2 is called CMPSD too.
    i.is_string_instruction() && matches!(i.mnemonic(), M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq)
}

fn is_scas(case: &Case) -> bool {
    use Mnemonic as M;
    matches!(
        case.instruction.mnemonic(),
        M::Scasb | M::Scasw | M::Scasd | M::Scasq
    )
}

/// Whether each side reports a fault of an operand of CMPS, and both operands fault: the order of the
/// two reads is the processor's own (SDM Vol. 2, "CMPS/CMPSB/CMPSW/CMPSD/CMPSQ", names none).
pub(crate) fn is_other_comparand(case: &Case, host: &Outcome, ours: &Outcome) -> bool {
    if !is_cmps(case) {
        return false;
    }
    let faults = [0, 1].map(|n| operand_fault(case, host, n));
    let is_one = |e: Option<_>| e.is_some() && faults.contains(&e);
    !faults.contains(&None) && is_one(host.exception) && is_one(ours.exception)
}

/// The fault of one operand of CMPS by itself: the first byte in no page that both sides have.
fn operand_fault(case: &Case, host: &Outcome, n: u32) -> Option<(u8, u32, u64)> {
    let i = &case.instruction;
    let first = i.virtual_address(n, 0, |r, _, _| {
        let is_flat = r.is_segment_register();
        Some(if is_flat { 0 } else { host.gpr[r.number()] })
    })?;
    let has = |page: u64, at: u64| (page..page + PAGE as u64).contains(&at);
    let mut bytes = (0..i.memory_size().size() as u64).map(|n| first.wrapping_add(n));
    let absent = bytes.find(|&at| !has(DATA, at) && !has(CODE, at))?;
    Some((14, 4, absent))
}
