//! The instruction forms that are compared: every form that [`x86_interp::implements`] in the mode,
//! but for those whose result is not a function of what a user-mode program can set up.

use super::Bits;
use iced_x86::{Code, Mnemonic, OpCodeOperandKind as Kind};

/// Instructions that are supported, and that this comparison cannot prove.
#[rustfmt::skip]
pub const UNCOMPARED: &[(&[Mnemonic], &str)] = {
    use Mnemonic::*;
    &[
        (&[Cpuid, Xgetbv, Rdpkru, Wrpkru], "tells or changes what the processor is"),
        (&[Rdtsc, Rdtscp, Rdpmc, Rdpid, Rdrand, Rdseed], "another value each time"),
        (&[Syscall, Sysenter, Int, Int1, Int3, Into, Iret, Iretd, Iretq, Hlt],
         "enters or leaves the operating system"),
        (&[Vmcall, Vmfunc, Vmlaunch, Vmresume, Vmptrld, Vmptrst, Vmclear, Vmread, Vmwrite, Vmxoff, Vmxon,
           Invept, Invvpid, Getsec], "not on every vendor's processor"),
        (&[Sgdt, Sidt, Sldt, Str, Smsw], "the operating system may emulate it (UMIP)"),
        (&[Lar, Lsl, Verr, Verw, Arpl, Lds, Les, Lfs, Lgs, Lss], "depends on the operating system's GDT"),
        (&[Rdfsbase, Rdgsbase, Wrfsbase, Wrgsbase], "the bases are the runtime's"),
        (&[Xsave, Xsave64, Xsavec, Xsavec64, Xsaveopt, Xsaveopt64, Xsaves, Xsaves64, Xrstor, Xrstor64, Xrstors,
           Xrstors64], "the host's tracking of components in use is its own"),
        (&[Monitor, Mwait, Umonitor, Umwait, Tpause], "waits"),
        (&[Xbegin, Xend, Xabort, Xtest], "transactions may abort for any reason"),
        (&[Incsspd, Incsspq, Saveprevssp, Rstorssp, Wrssd, Wrssq, Wrussd, Wrussq, Setssbsy,
           Clrssbsy], "shadow stacks are the operating system's"),
    ]
};

/// Returns why a supported form is not compared.
pub fn why_uncompared(code: Code) -> Option<&'static str> {
    let info = code.op_code();
    let mnemonic = code.mnemonic();
    let row = UNCOMPARED.iter().find(|(list, _)| list.contains(&mnemonic));
    if let Some((_, reason)) = row {
        return Some(reason);
    }
    if info.must_be_cpl0() || is_special(code) {
        return Some("privileged");
    }
    let io = [
        Mnemonic::In,
        Mnemonic::Out,
        Mnemonic::Insb,
        Mnemonic::Insw,
        Mnemonic::Insd,
        Mnemonic::Outsb,
        Mnemonic::Outsw,
        Mnemonic::Outsd,
        Mnemonic::Cli,
        Mnemonic::Sti,
    ];
    if io.contains(&mnemonic) {
        return Some("depends on IOPL");
    }
    if loads_segment(code) || is_far(code) {
        return Some("loads a segment register");
    }
    // AMD processors heed the operand-size prefix of near branches in 64-bit mode, Intel's do not.
    (is_branch(code) && info.operand_size() == 16 && info.mode64() && !info.mode32())
        .then_some("near branches with an operand-size prefix differ between vendors")
}

/// Whether the interpreter has the form, on a processor that has every feature.
pub fn is_supported(code: Code) -> bool {
    x86_interp::implements(code) && super::emulated::widest().features().allows(code)
}

/// Whether the form exists in code of so many bits.
pub fn exists(code: Code, bits: Bits) -> bool {
    match bits {
        Bits::B64 => code.op_code().mode64(),
        Bits::B32 => code.op_code().mode32(),
    }
}

/// Returns the forms to compare.
pub fn all(bits: Bits) -> Vec<Code> {
    let widest = super::emulated::widest().features();
    let is_compared = |&code: &Code| {
        exists(code, bits)
            && x86_interp::implements(code)
            && widest.allows(code)
            && why_uncompared(code).is_none()
            // As in `why_uncompared`, where the form exists in both modes.
            && !(bits == Bits::B64 && is_branch(code) && code.op_code().operand_size() == 16)
    };
    Code::values().filter(is_compared).collect()
}

fn is_special(code: Code) -> bool {
    let kinds = code.op_code().op_kinds();
    let is = |k: &Kind| matches!(k, Kind::cr_reg | Kind::dr_reg | Kind::tr_reg);
    kinds.iter().any(is)
}

fn loads_segment(code: Code) -> bool {
    let first = code.op_code().op_kind(0);
    let fixed = matches!(
        first,
        Kind::es | Kind::cs | Kind::ss | Kind::ds | Kind::fs | Kind::gs
    );
    first == Kind::seg_reg || code.mnemonic() == Mnemonic::Pop && fixed
}

fn is_far(code: Code) -> bool {
    code.is_jmp_far()
        || code.is_jmp_far_indirect()
        || code.is_call_far()
        || code.is_call_far_indirect()
        || code.mnemonic() == Mnemonic::Retf
}

/// Whether the form is a near branch.
pub(super) fn is_branch(code: Code) -> bool {
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
