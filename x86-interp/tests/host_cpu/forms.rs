//! The instruction forms that are compared: every form of these mnemonics that
//! [`x86_interp::implements`] in the mode, and that a user-mode program can execute.

use iced_x86::{Code, Mnemonic, OpCodeOperandKind as Kind};

use crate::Bits;

/// Integer instructions without privilege.
#[rustfmt::skip]
const MNEMONICS: &[Mnemonic] = {
    use Mnemonic::*;
    &[
        Mov, Movnti, Movdiri, Movzx, Movsx, Movsxd, Movbe, Xchg, Xadd, Cmpxchg, Cmpxchg8b,
        Cmpxchg16b, Lea, Xlatb, Cbw, Cwde, Cdqe, Cwd, Cdq, Cqo, Bswap,
        Push, Pop, Pusha, Pushad, Popa, Popad, Pushf, Pushfd, Pushfq, Popf, Popfd, Popfq,
        Enter, Leave,
        Add, Adc, Sub, Sbb, Cmp, Neg, Inc, Dec, Mul, Imul, Div, Idiv, Adcx, Adox, Mulx,
        And, Or, Xor, Not, Test, Andn,
        Shl, Sal, Shr, Sar, Rol, Ror, Rcl, Rcr, Shld, Shrd, Rorx, Sarx, Shlx, Shrx,
        Bt, Bts, Btr, Btc, Bsf, Bsr, Tzcnt, Lzcnt, Popcnt, Crc32,
        Bextr, Bzhi, Blsi, Blsmsk, Blsr, Pdep, Pext,
        Daa, Das, Aaa, Aas, Aam, Aad,
        Clc, Stc, Cmc, Cld, Std, Lahf, Sahf, Salc,
        Jmp, Call, Ret, Loop, Loope, Loopne, Jcxz, Jecxz, Jrcxz, Bound,
        Jo, Jno, Jb, Jae, Je, Jne, Jbe, Ja, Js, Jns, Jp, Jnp, Jl, Jge, Jle, Jg,
        Seto, Setno, Setb, Setae, Sete, Setne, Setbe, Seta,
        Sets, Setns, Setp, Setnp, Setl, Setge, Setle, Setg,
        Cmovo, Cmovno, Cmovb, Cmovae, Cmove, Cmovne, Cmovbe, Cmova,
        Cmovs, Cmovns, Cmovp, Cmovnp, Cmovl, Cmovge, Cmovle, Cmovg,
        Movsb, Movsw, Movsd, Movsq, Cmpsb, Cmpsw, Cmpsd, Cmpsq, Scasb, Scasw, Scasd, Scasq,
        Lodsb, Lodsw, Lodsd, Lodsq, Stosb, Stosw, Stosd, Stosq,
        Nop, Reservednop, Endbr32, Endbr64, Prefetchnta, Prefetcht0, Prefetcht1, Prefetcht2,
        Prefetchw, Ud0, Ud1, Ud2,
    ]
};

/// Returns the forms to compare.
pub(crate) fn all(bits: Bits) -> Vec<Code> {
    Code::values().filter(|&c| is_compared(c, bits)).collect()
}

/// Whether `code` is compared.
pub(crate) fn is_compared(code: Code, bits: Bits) -> bool {
    let info = code.op_code();
    let is_in_mode = match bits {
        Bits::B64 => info.mode64(),
        Bits::B32 => info.mode32(),
    };
    is_in_mode
        && MNEMONICS.contains(&code.mnemonic())
        && x86_interp::implements(code)
        && !loads_special_register(code)
        && !is_far(code)
        // Intel ignores the operand-size prefix of near branches in 64-bit mode, AMD does not.
        && !(bits == Bits::B64 && info.operand_size() == 16 && is_branch(code))
}

/// Whether the form reads or writes a register that user mode cannot, or loads a segment register.
fn loads_special_register(code: Code) -> bool {
    let info = code.op_code();
    let is_special = |k| matches!(k, Kind::cr_reg | Kind::dr_reg | Kind::tr_reg);
    let is_pop = code.mnemonic() == Mnemonic::Pop;
    let is_segment = |k| {
        matches!(
            k,
            Kind::es | Kind::cs | Kind::ss | Kind::ds | Kind::fs | Kind::gs
        )
    };
    info.op_kinds().iter().any(|&k| is_special(k))
        || info.op_kind(0) == Kind::seg_reg
        || is_pop && is_segment(info.op_kind(0))
}

fn is_far(code: Code) -> bool {
    code.is_jmp_far()
        || code.is_jmp_far_indirect()
        || code.is_call_far()
        || code.is_call_far_indirect()
}

/// Whether the form is a near branch.
pub(crate) fn is_branch(code: Code) -> bool {
    code.is_jcc_short_or_near()
        || code.is_jmp_short_or_near()
        || code.is_jmp_near_indirect()
        || code.is_call_near()
        || code.is_call_near_indirect()
        || code.is_loop()
        || code.is_loopcc()
        || code.is_jcx_short()
        || code.mnemonic() == Mnemonic::Ret
}
