//! Whose status flags nobody looks at.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::{ConditionalForms, binary, shift, unary};

/// Finds out whose status flags nobody looks at: `dead[n]` for each instruction.
pub(crate) fn dead_flags(run: &[Instruction]) -> Vec<bool> {
    let mut dead = vec![false; run.len()];
    let mut live = STATUS;
    for (n, i) in run.iter().enumerate().rev() {
        if !is_pure(i) {
            live = STATUS;
            continue;
        }
        let changed = i.rflags_modified() & STATUS;
        dead[n] = changed != 0 && changed & live == 0;
        // A shift by CL may leave the flags alone.
        let may_skip = shift(i.mnemonic()).is_some() && i.op1_register() == Register::CL;
        if !may_skip {
            live &= !changed;
        }
        live |= i.rflags_read() & STATUS;
    }
    dead
}

/// The six status flags in the decoder's bits.
const STATUS: u32 = iced_x86::RflagsBits::OF
    | iced_x86::RflagsBits::SF
    | iced_x86::RflagsBits::ZF
    | iced_x86::RflagsBits::AF
    | iced_x86::RflagsBits::CF
    | iced_x86::RflagsBits::PF;

/// Whether the instruction touches registers and status flags only and cannot fault.
fn is_pure(i: &Instruction) -> bool {
    let m = i.mnemonic();
    let known = binary(m).is_some()
        || unary(m).is_some()
        || shift(m).is_some()
        || i.is_setcc_any()
        || i.is_cmovcc_any()
        || matches!(
            m,
            Mnemonic::Mov
                | Mnemonic::Movzx
                | Mnemonic::Movsx
                | Mnemonic::Movsxd
                | Mnemonic::Xchg
                | Mnemonic::Lea
                | Mnemonic::Imul
                | Mnemonic::Bswap
                | Mnemonic::Cbw
                | Mnemonic::Cwde
                | Mnemonic::Cdqe
                | Mnemonic::Cwd
                | Mnemonic::Cdq
                | Mnemonic::Cqo
        );
    let is_register_form = (0..i.op_count()).all(|n| match i.op_kind(n) {
        OpKind::Register => i.op_register(n).is_gpr(),
        OpKind::Memory => m == Mnemonic::Lea,
        OpKind::MemorySegSI
        | OpKind::MemorySegESI
        | OpKind::MemorySegRSI
        | OpKind::MemorySegDI
        | OpKind::MemorySegEDI
        | OpKind::MemorySegRDI
        | OpKind::MemoryESDI
        | OpKind::MemoryESEDI
        | OpKind::MemoryESRDI => false,
        _ => true,
    });
    known && is_register_form
}
