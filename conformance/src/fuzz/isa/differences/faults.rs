//! What of a fault is the processor's own: which of several accesses comes first, what is left of
//! the registers, and operands that the processors of one vendor refuse.

use super::super::Bits;
use super::super::case::{CODE, CODE_BYTES, Case, DATA, DATA_BYTES, Outcome, State};
use iced_x86::{EncodingKind, Mnemonic, OpKind, Register};

/// Vector, error code, address of a page fault.
type Exception = (u8, u32, u64);

const GP: Exception = (13, 0, 0);
const PAGE_FAULT: u8 = 14;
/// Error codes of a read and of a write by a user-mode program, of a page that is not present.
const READ: u32 = 4;
const WRITE: u32 = 6;

/// The status flags.
const STATUS: u64 = 0x8d5;
/// TOP in the x87 status word.
const TOP: u16 = 0x3800;

/// The bytes of memory operand `n`, by the registers of `state`: their addresses in order.
fn operand_bytes(case: &Case, state: &State, n: u32) -> impl Iterator<Item = u64> + use<> {
    let i = &case.instruction;
    let first = i.virtual_address(n, 0, |r, _, _| match r {
        Register::AL => Some(state.gpr[0] & 0xff),
        _ if r.is_gpr() => Some(state.gpr[r.number()] & u64::MAX >> (64 - 8 * r.size())),
        _ => Some(0),
    });
    let mask = match case.bits {
        Bits::B64 => u64::MAX,
        Bits::B32 => 0xffff_ffff,
    };
    let bytes = i.memory_size().size() as u64;
    let bytes = if first.is_some() { bytes } else { 0 };
    (0..bytes).map(move |n| first.unwrap_or(0).wrapping_add(n) & mask)
}

/// Whether a byte lies in none of the pages that both sides have.
fn is_absent(address: u64) -> bool {
    let data = DATA..DATA + DATA_BYTES as u64;
    let code = CODE..CODE + CODE_BYTES as u64;
    !data.contains(&address) && !code.contains(&address)
}

/// Whether the segment of operand `n` is null: 32-bit code finds FS and GS so.
fn has_null_segment(case: &Case, n: u32) -> bool {
    let i = &case.instruction;
    let is_es = matches!(
        i.op_kind(n),
        OpKind::MemoryESDI | OpKind::MemoryESEDI | OpKind::MemoryESRDI
    );
    let segment = if is_es {
        Register::ES
    } else {
        i.memory_segment()
    };
    case.bits == Bits::B32 && matches!(segment, Register::FS | Register::GS)
}

/// Whether the exceptions differ only in what the SDM leaves open.
pub(super) fn is_same(case: &Case, host: &Outcome, ours: &Outcome) -> bool {
    is_other_comparand(case, host, ours)
        || is_other_part(case, host, ours)
        || is_wrapped_element(case, host, ours)
}

/// Whether the host reports an element of a conditional move at an address that has wrapped at the
/// address size, and ours beyond it. The SDM wraps effective addresses (Vol. 1, "Specifying an
/// Offset"), which an operand has one of; AMD processors compute one for each element.
fn is_wrapped_element(case: &Case, host: &Outcome, ours: &Outcome) -> bool {
    use Mnemonic as M;
    let i = &case.instruction;
    let is_conditional = matches!(
        i.mnemonic(),
        M::Vmaskmovps | M::Vmaskmovpd | M::Vpmaskmovd | M::Vpmaskmovq
    );
    let address_bytes = i.memory_base().size().max(i.memory_index().size());
    let bits = 8 * address_bytes as u32;
    let is_below = bits < case.bits.number();
    let (Some((PAGE_FAULT, a, x)), Some((PAGE_FAULT, b, y))) = (host.exception, ours.exception)
    else {
        return false;
    };
    is_conditional && is_below && a == b && y >> bits == 1 && x == y & ((1 << bits) - 1)
}

/// Whether each side reports a fault of an operand of CMPS, and both operands fault: the order of the
/// two reads is the processor's own (SDM Vol. 2, "CMPS/CMPSB/CMPSW/CMPSD/CMPSQ", names none).
fn is_other_comparand(case: &Case, host: &Outcome, ours: &Outcome) -> bool {
    use Mnemonic as M;
    let i = &case.instruction;
    let is_comparison = matches!(i.mnemonic(), M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq);
    if !is_comparison || !i.is_string_instruction() {
        return false;
    }
    let fault = |n: u32| {
        if has_null_segment(case, n) {
            return Some(GP);
        }
        let absent = operand_bytes(case, &host.state, n).find(|&at| is_absent(at));
        absent.map(|at| (PAGE_FAULT, READ, at))
    };
    let (Some(a), Some(b)) = (fault(0), fault(1)) else {
        return false;
    };
    let is_one = |outcome: &Outcome| outcome.exception.is_some_and(|e| e == a || e == b);
    is_one(host) && is_one(ours)
}

/// Whether the operand consists of several accesses, of which any may come first, and both sides
/// report a byte of it that is in no page (SDM Vol. 3A, "Interrupt 14-Page-Fault Exception").
fn is_other_part(case: &Case, host: &Outcome, ours: &Outcome) -> bool {
    use Mnemonic as M;
    let is_in_parts = matches!(
        case.instruction.mnemonic(),
        M::Fxsave
            | M::Fxsave64
            | M::Fxrstor
            | M::Fxrstor64
            | M::Fnsave
            | M::Frstor
            | M::Fnstenv
            | M::Fldenv
            | M::Maskmovq
            | M::Maskmovdqu
            | M::Vmaskmovdqu
    );
    let (Some((PAGE_FAULT, a, x)), Some((PAGE_FAULT, b, y))) = (host.exception, ours.exception)
    else {
        return false;
    };
    let is_of_operand =
        |at: u64| is_absent(at) && operand_bytes(case, &case.state, 0).any(|byte| byte == at);
    is_in_parts && a == b && is_of_operand(x) && is_of_operand(y)
}

/// Whether the host refuses a masked store for bytes that are masked off: "Exceptions associated
/// with addressing memory and page faults may still be signaled (implementation dependent)" where
/// the mask is zero (SDM Vol. 2, "MASKMOVDQU", "MASKMOVQ"). AMD processors access the operand whole
/// under any mask.
pub(super) fn is_masked_off(case: &Case, host: &Outcome, ours: &Outcome) -> bool {
    use Mnemonic as M;
    let i = &case.instruction;
    let fpu = &case.state.fpu;
    let mask = match i.mnemonic() {
        M::Maskmovdqu | M::Vmaskmovdqu => {
            let [low, high, ..] = fpu.vector[i.op2_register().number()];
            [low.to_le_bytes(), high.to_le_bytes()].concat()
        }
        M::Maskmovq => fpu.registers[i.op2_register().number()][..8].to_vec(),
        _ => return false,
    };
    let is_active = |n: usize| mask[n] & 0x80 != 0;
    match host.exception {
        _ if ours.exception.is_some() => false,
        Some(GP) => (0..mask.len()).all(|n| !is_active(n)),
        Some((PAGE_FAULT, WRITE, at)) => {
            is_absent(at)
                && operand_bytes(case, &case.state, 0)
                    .enumerate()
                    .all(|(n, byte)| !is_active(n) || !is_absent(byte))
        }
        _ => false,
    }
}

/// Whether Intel processors refuse by #GP what those of AMD accept; `is_untouched` says that ours
/// has changed nothing.
pub(super) fn is_refused_here(
    case: &Case,
    host: &Outcome,
    ours: &Outcome,
    is_untouched: bool,
) -> bool {
    use Mnemonic as M;
    let i = &case.instruction;
    let has_reason = match i.mnemonic() {
        // Exceptions Type 4 (SDM Vol. 2, "SHA1MSG1" and the others): an operand that is not aligned
        // is #GP. AMD processors do not ask for alignment.
        M::Sha1rnds4
        | M::Sha1nexte
        | M::Sha1msg1
        | M::Sha1msg2
        | M::Sha256rnds2
        | M::Sha256msg1
        | M::Sha256msg2 => is_unaligned(case),
        // The alignment of the operand is not among the faults that the opmask suppresses (SDM Vol.
        // 2, "Type E1 Exceptions of EVEX-Encoded Instructions"). AMD processors do not look at it
        // where no element is active.
        M::Vmovaps | M::Vmovapd | M::Vmovdqa32 | M::Vmovdqa64 => {
            i.op_mask() != Register::None && host.exception.is_none() && is_unaligned(case)
        }
        // AMD processors have bit 17 of MXCSR, Intel's raise #GP.
        M::Ldmxcsr | M::Vldmxcsr | M::Fxrstor | M::Fxrstor64 => host.state.fpu.mxcsr >> 17 & 1 != 0,
        _ => false,
    };
    has_reason && ours.exception == Some(GP) && host.exception != Some(GP) && is_untouched
}

/// Whether the memory operand, if there is one, is no multiple of its size.
fn is_unaligned(case: &Case) -> bool {
    let bytes = case.instruction.memory_size().size().max(1) as u64;
    case.address().is_some_and(|at| at % bytes != 0)
}

/// Returns what the host has done, but for what processors of AMD leave otherwise at a fault.
pub(super) fn as_specified(case: &Case, host: &Outcome) -> Outcome {
    let mut host = host.clone();
    if host.exception.is_none() {
        return host;
    }
    restore_flags(case, &mut host.state);
    restore_tags(case, &mut host);
    extend_mask(case, &mut host.state);
    host
}

/// "When a fault occurs during the execution of a CMPS or SCAS instruction that is prefixed by REPE
/// or REPNE, the EFLAGS value is restored to the state prior to the execution of the instruction"
/// (SDM Vol. 2, "REP/REPE/REPZ/REPNE/REPNZ"). AMD processors leave the flags of the last completed
/// iteration.
fn restore_flags(case: &Case, state: &mut State) {
    use Mnemonic as M;
    let i = &case.instruction;
    let is_comparison = matches!(
        i.mnemonic(),
        M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq | M::Scasb | M::Scasw | M::Scasd | M::Scasq
    );
    let is_repeated = i.has_rep_prefix() || i.has_repne_prefix();
    if is_comparison && i.is_string_instruction() && is_repeated {
        state.rflags = state.rflags & !STATUS | case.state.rflags & STATUS;
    }
}

/// AMD processors load TOP and the tags before a fault of the operand, or #XM; an instruction that
/// faults has not executed (SDM Vol. 3A, "Exception Classifications").
fn restore_tags(case: &Case, host: &mut Outcome) {
    use Mnemonic as M;
    let loads_tags = matches!(
        case.instruction.mnemonic(),
        M::Maskmovq
            | M::Cvtps2pi
            | M::Cvttps2pi
            | M::Cvtpd2pi
            | M::Cvttpd2pi
            | M::Cvtpi2ps
            | M::Cvtpi2pd
    );
    let (before, after) = (&case.state.fpu, &mut host.state.fpu);
    if loads_tags && host.exception.is_some_and(|(vector, ..)| vector != 16) {
        after.status = after.status & !TOP | before.status & TOP;
        after.valid = before.valid;
    }
}

/// Extends the elements of a gather's mask that are as they were from their signs: "MASK[i +31:i] :=
/// FFFFFFFFH; // extend from most significant bit" comes before any access (SDM Vol. 2,
/// "VGATHERDPS/VGATHERQPS", "Operation"). AMD processors clear each element that they have passed and
/// leave the others alone. What has no index is left alone by both.
fn extend_mask(case: &Case, state: &mut State) {
    let i = &case.instruction;
    if !i.is_vsib() || i.code().encoding() != EncodingKind::VEX {
        return;
    }
    let n = i.op2_register().number();
    let element = i.memory_size().size();
    let old = case.state.fpu.vector[n];
    let bits = 8 * element as u32;
    let ones = u64::MAX >> (64 - bits);
    let index = if i.is_vsib64() { 8 } else { 4 };
    let indices = i.memory_index().size() / index;
    for place in 0..indices.min(i.op2_register().size() / element) {
        let (word, shift) = (place * element / 8, (place * element % 8 * 8) as u32);
        let of = |value: u64| value >> shift & ones;
        let now = &mut state.fpu.vector[n][word];
        if of(*now) == of(old[word]) {
            let sign = of(old[word]) >> (bits - 1);
            *now = *now & !(ones << shift) | (ones * sign) << shift;
        }
    }
}
