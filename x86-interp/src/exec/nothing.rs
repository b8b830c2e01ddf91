//! Instructions without effect, and those that are always undefined (SDM Vol. 1, "Miscellaneous
//! Instructions").
//!
//! The reserved NOP space and prefetch hints do nothing, and do not access their memory operand.
//! PAUSE may exit, and is with the VMX instructions.

use iced_x86::{Code, Mnemonic};
use vmx_model::event::Exception;

use super::Row;
use super::form::{ending, plain};
use crate::insn::Insn;
use crate::{Cpu, Exec};

/// Returns the row of an instruction that does nothing, or is undefined by definition.
pub(crate) fn lookup(code: Code) -> Option<Row> {
    match code.mnemonic() {
        Mnemonic::Nop
        | Mnemonic::Reservednop
        | Mnemonic::Prefetch
        | Mnemonic::Prefetchw
        | Mnemonic::Prefetchwt1
        | Mnemonic::Prefetchnta
        | Mnemonic::Prefetcht0
        | Mnemonic::Prefetcht1
        | Mnemonic::Prefetcht2
        | Mnemonic::Prefetchit0
        | Mnemonic::Prefetchit1 => plain(nop),
        Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2 => ending(ud),
        _ => None,
    }
}

/// NOP and what behaves like it.
pub(crate) fn nop(_: &mut Cpu, _: &Insn) -> Exec {
    Ok(())
}

/// UD0, UD1, UD2.
pub(crate) fn ud(_: &mut Cpu, _: &Insn) -> Exec {
    Err(Exception::UD.into())
}
