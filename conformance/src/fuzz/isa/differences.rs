//! What is not compared, and why: flags that the SDM leaves undefined, results that it lets a
//! processor choose, and the few places where vendors differ. Everything else is compared.

mod faults;

use super::case::{Case, DATA, Outcome, describe, hex};
use iced_x86::{Code, Mnemonic, OpKind};
use std::ops::Range;
use x86_interp::fpu::FpuState;

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

/// Bytes of a memory operand that are not compared.
#[rustfmt::skip]
const POINTERS: &[(&[Code], [Range<usize>; 2])] = {
    use Code::*;
    &[
        // The x87 pointers: AMD processors save them only while an exception is pending (SDM Vol.
        // 1, "x87 FPU Instruction and Data (Operand) Pointers"); and MXCSR_MASK (SDM Vol. 1,
        // "Guidelines for Writing to the MXCSR Register"), where they have a bit of their own.
        (&[Fxsave_m512byte, Fxsave64_m512byte], [6..24, 28..32]),
        (&[Fnstenv_m28byte, Fnsave_m108byte], [12..28, 0..0]),
        (&[Fnstenv_m14byte, Fnsave_m94byte], [6..14, 0..0]),
    ]
};

/// Says in what the outcomes and the memory after them differ.
pub(super) fn difference(
    case: &Case,
    host: &Outcome,
    ours: &Outcome,
    memory: [&[u8]; 2],
) -> Option<String> {
    if host.exception != ours.exception && !faults::is_same(case, host, ours) {
        let (host, ours) = (host.exception, ours.exception);
        return Some(format!("exception: host {host:x?}, ours {ours:x?}"));
    }
    let host = &faults::as_specified(case, host);
    let (a, b) = (&host.state, &ours.state);
    if let Some(n) = (0..16).find(|&n| a.gpr[n] != b.gpr[n] && !is_upper_half(case, n)) {
        return Some(format!("gpr {n}: host {:x}, ours {:x}", a.gpr[n], b.gpr[n]));
    }
    if a.rip != b.rip {
        return Some(format!("rip: host {:x}, ours {:x}", a.rip, b.rip));
    }
    let flags = (a.rflags ^ b.rflags) & compared_flags(case, host);
    if flags != 0 {
        let (a, b) = (a.rflags, b.rflags);
        return Some(format!("rflags {flags:#x}: host {a:x}, ours {b:x}"));
    }
    fpu_difference(case, &a.fpu, &b.fpu).or_else(|| memory_difference(case, memory))
}

/// Whether register `n` is one that 32-bit code cannot see.
fn is_upper_half(case: &Case, n: usize) -> bool {
    case.bits == super::Bits::B32 && n >= 8
}

fn fpu_difference(case: &Case, host: &FpuState, ours: &FpuState) -> Option<String> {
    let host = comparable(case, host.clone(), ours);
    let ours = comparable(case, ours.clone(), &host);
    if host == ours {
        return None;
    }
    if host.opmask != ours.opmask {
        let (host, ours) = (host.opmask, ours.opmask);
        return Some(format!("opmask: host {host:x?}, ours {ours:x?}"));
    }
    if let Some(n) = (0..32).find(|&n| host.vector[n] != ours.vector[n]) {
        let (host, ours) = (host.vector[n], ours.vector[n]);
        return Some(format!("vector {n}: host {host:016x?}, ours {ours:016x?}"));
    }
    let [host, ours] = [host, ours].map(|fpu| describe(&fpu));
    Some(format!("fpu:\n  host {host}\n  ours {ours}"))
}

/// Returns the state without what is not compared.
fn comparable(case: &Case, mut fpu: FpuState, other: &FpuState) -> FpuState {
    // The pointers: see `POINTERS`.
    (fpu.opcode, fpu.code_selector, fpu.data_selector) = (0, 0, 0);
    (fpu.instruction_pointer, fpu.data_pointer) = (0, 0);
    fpu.status &= !hidden_status(case, &fpu);
    if is_transcendental(case.instruction.mnemonic()) {
        take_neighbours(&mut fpu, other);
    }
    if is_cvtpi2ps_of_memory(case) {
        fpu.status &= !0x3800;
        fpu.valid = 0;
    }
    take_approximations(case, &mut fpu, other);
    fpu
}

/// CVTPI2PS makes TOP 0 and all registers valid (SDM Vol. 2, "CVTPI2PS"); that of AMD processors
/// does not if the source is in memory, as CVTPI2PD on both.
fn is_cvtpi2ps_of_memory(case: &Case) -> bool {
    let i = &case.instruction;
    i.code() == Code::Cvtpi2ps_xmm_mmm64 && i.op1_kind() == OpKind::Memory
}

/// Takes approximations of reciprocals that are as near as the SDM demands from `other`: a relative
/// error of at most 1.5 * 2^-12 (Vol. 2, "RCPPS", "RSQRTPS") or less than 2^-14 (Vol. 2, "VRCP14PS",
/// "VRSQRT14PS"), so that two may differ by twice that.
fn take_approximations(case: &Case, fpu: &mut FpuState, other: &FpuState) {
    use Mnemonic as M;
    let (bound, is_double) = match case.instruction.mnemonic() {
        M::Rcpps | M::Rcpss | M::Rsqrtps | M::Rsqrtss => (3.0 / 4096.0, false),
        M::Vrcpps | M::Vrcpss | M::Vrsqrtps | M::Vrsqrtss => (3.0 / 4096.0, false),
        M::Vrcp14ps | M::Vrcp14ss | M::Vrsqrt14ps | M::Vrsqrt14ss => (2.0 / 16384.0, false),
        M::Vrcp14pd | M::Vrcp14sd | M::Vrsqrt14pd | M::Vrsqrt14sd => (2.0 / 16384.0, true),
        _ => return,
    };
    let register = case.instruction.op0_register().number() & 31;
    let words = fpu.vector[register].iter_mut();
    for (mine, &theirs) in words.zip(&other.vector[register]) {
        if is_double {
            let [a, b] = [*mine, theirs].map(f64::from_bits);
            if is_near(a, b, bound, f64::MIN_POSITIVE) {
                *mine = theirs;
            }
            continue;
        }
        for shift in [0, 32] {
            let single = |word: u64| f64::from(f32::from_bits((word >> shift) as u32));
            let (a, b) = (single(*mine), single(theirs));
            if is_near(a, b, bound, f32::MIN_POSITIVE.into()) {
                let place = 0xffff_ffff << shift;
                *mine = *mine & !place | theirs & place;
            }
        }
    }
}

/// Whether two finite numbers of one sign differ relatively by at most `bound`, or one is zero and
/// the other so near the smallest normal number that the true value may be tiny: it is flushed.
fn is_near(a: f64, b: f64, bound: f64, smallest: f64) -> bool {
    let is_one_sign = a.is_sign_negative() == b.is_sign_negative();
    let (small, large) = (a.abs().min(b.abs()), a.abs().max(b.abs()));
    let is_flushed = small == 0.0 && large >= smallest && large <= smallest * (1.0 + bound);
    is_one_sign && large.is_finite() && (large - small <= bound * large || is_flushed)
}

/// Whether a comparison found an unmasked invalid operand or denormal.
fn is_refused(fpu: &FpuState) -> bool {
    fpu.status & !fpu.control & 3 != 0
}

/// Bits of the status word that are not compared.
///
/// - Comparisons with an unmasked exception: Intel processors leave C0, C2 and C3 (SDM Vol. 2,
///   "FCOM/FCOMP/FCOMPP"); those of AMD set them.
/// - FCOMI and its like: Intel processors clear C1 (SDM Vol. 2, "FCOMI/FCOMIP/FUCOMI/FUCOMIP"),
///   those of AMD do not.
/// - Transcendental functions: which neighbour of the true value it is (C1). FYL2X of a power of
///   2: those of AMD say that an exact result is inexact (SDM Vol. 1, "Inexact-Result (Precision)
///   Exception (#P)").
fn hidden_status(case: &Case, fpu: &FpuState) -> u16 {
    use Mnemonic as M;
    let mnemonic = case.instruction.mnemonic();
    match mnemonic {
        M::Fcom | M::Fcomp | M::Fcompp | M::Ficom | M::Ficomp | M::Ftst if is_refused(fpu) => {
            0x4500
        }
        M::Fucom | M::Fucomp | M::Fucompp if is_refused(fpu) => 0x4500,
        M::Fcomi | M::Fcomip | M::Fucomi | M::Fucomip => 0x0200,
        M::Fyl2x => 0x82a0,
        _ if is_transcendental(mnemonic) => 0x0200,
        _ => 0,
    }
}

fn is_transcendental(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Fsin | M::Fcos | M::Fsincos | M::Fptan | M::Fpatan | M::F2xm1 | M::Fyl2x | M::Fyl2xp1
    )
}

/// Takes numbers that differ by one unit in the last place, as the SDM allows it (Vol. 1,
/// "Transcendental Instruction Accuracy"), from `other`.
fn take_neighbours(fpu: &mut FpuState, other: &FpuState) {
    let number = |bytes: &[u8; 10]| {
        let bits = bytes.iter().rev();
        let bits = bits.fold(0_u128, |v, &b| v << 8 | u128::from(b));
        // Without the integer bit, so that the exponents follow each other.
        bits >> 64 << 63 | bits & ((1 << 63) - 1)
    };
    for (mine, theirs) in fpu.registers.iter_mut().zip(&other.registers) {
        if number(mine).abs_diff(number(theirs)) <= 1 {
            *mine = *theirs;
        }
    }
}

fn memory_difference(case: &Case, [host, ours]: [&[u8]; 2]) -> Option<String> {
    if host == ours {
        return None;
    }
    if is_segment_push(case) {
        return segment_push_difference(case, [host, ours]);
    }
    let code = case.instruction.code();
    let row = POINTERS.iter().find(|(codes, _)| codes.contains(&code));
    let operand = case.address().unwrap_or(0);
    let is_hidden = |offset: usize| {
        let at = (DATA + offset as u64).wrapping_sub(operand) as usize;
        row.is_some_and(|(_, ranges)| ranges.iter().any(|r| r.contains(&at)))
    };
    let n = (0..host.len()).find(|&n| host[n] != ours[n] && !is_hidden(n))?;
    let piece = n..(n + 16).min(host.len());
    let at = DATA + n as u64;
    let [host, ours] = [host, ours].map(|bytes| hex(&bytes[piece.clone()]));
    Some(format!("memory at {at:#x}: host {host}, ours {ours}"))
}

fn is_segment_push(case: &Case) -> bool {
    let i = &case.instruction;
    i.mnemonic() == Mnemonic::Push
        && i.op0_kind() == OpKind::Register
        && i.op0_register().is_segment_register()
}

/// A push of a segment register writes a zero-extended doubleword, or the word alone as "all recent
/// Intel Core and Intel Atom processors" (SDM Vol. 2, "PUSH"): the upper word is not compared.
fn segment_push_difference(case: &Case, [host, ours]: [&[u8]; 2]) -> Option<String> {
    let upper = case.state.gpr[4].wrapping_sub(2).wrapping_sub(DATA);
    let differs = |n: usize| host[n] != ours[n] && (n as u64).wrapping_sub(upper) >= 2;
    let n = (0..host.len()).find(|&n| differs(n))?;
    Some(format!("memory at offset {n:#x} of the data pages"))
}

/// Returns the flags that are compared after the case.
fn compared_flags(case: &Case, host: &Outcome) -> u64 {
    use Mnemonic as M;
    let mnemonic = case.instruction.mnemonic();
    let is_fcomi = matches!(mnemonic, M::Fcomi | M::Fcomip | M::Fucomi | M::Fucomip);
    if is_fcomi && is_refused(&host.state.fpu) {
        // Intel processors leave the flags, as they leave C0, C2 and C3.
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
        OpKind::Register => case.state.gpr[1],
        _ => i.immediate(last),
    };
    let bits = match i.op0_kind() {
        OpKind::Register => i.op0_register().size(),
        _ => i.memory_size().size(),
    } as u64
        * 8;
    Some((count & if bits == 64 { 63 } else { 31 }, bits))
}

/// Whether nothing can be compared: vendors differ in the whole, or the SDM leaves the result
/// undefined. `is_untouched` says that ours has changed neither registers nor memory.
pub(super) fn is_incomparable(
    case: &Case,
    host: &Outcome,
    ours: &Outcome,
    is_untouched: bool,
) -> bool {
    faults::is_masked_off(case, host, ours)
        || faults::is_refused_here(case, host, ours, is_untouched)
        || is_of_vendor(case, host, ours, is_untouched)
}

fn is_of_vendor(case: &Case, host: &Outcome, ours: &Outcome, is_untouched: bool) -> bool {
    use Mnemonic as M;
    let i = &case.instruction;
    match i.mnemonic() {
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
        M::Pusha | M::Pushad | M::Popa | M::Popad => {
            host.exception.is_some() && host.exception == ours.exception && is_untouched
        }
        // The result of BSWAP of a 16-bit register is undefined.
        M::Bswap => i.op0_register().size() == 2,
        // Where it is no MMX instruction for AMD processors, no x87 exception comes before it.
        M::Cvtpi2ps => is_cvtpi2ps_of_memory(case) && case.state.fpu.is_exception_pending(),
        M::Fsin | M::Fcos | M::Fsincos | M::Fptan => !is_in_range(case, 0x3ffe, 0x403e),
        M::F2xm1 => !is_in_range(case, 0x3fff, 0x7fff),
        M::Fyl2xp1 => !is_in_range(case, 0x3ffd, 0x7fff),
        _ => false,
    }
}

/// Whether the result is defined, and does not depend on how many bits of pi a processor has (SDM
/// Vol. 1, "Approximation of Pi"): ST(0) has an exponent below `small`, or from `refused` on.
fn is_in_range(case: &Case, small: u16, refused: u16) -> bool {
    let fpu = &case.state.fpu;
    let register = fpu.registers[fpu.physical(0)];
    let exponent = u16::from_le_bytes([register[8], register[9]]) & 0x7fff;
    exponent < small || exponent >= refused
}
