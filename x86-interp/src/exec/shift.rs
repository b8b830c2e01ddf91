//! Shifts and rotates: SDM Vol. 1, "Shift and Rotate Instructions"; RORX, SARX, SHLX, SHRX.

use iced_x86::{Code, Mnemonic};
use vmx_model::arch::Rflags;

use super::Row;
use super::form::{by_operand, sized};
use crate::alu::shift::{self, Shifted};
use crate::insn::Insn;
use crate::width::Width;
use crate::{Cpu, Exec};

/// Returns the row of a shift or rotate.
pub(crate) fn lookup(code: Code) -> Option<Row> {
    let handlers = match code.mnemonic() {
        Mnemonic::Shl | Mnemonic::Sal => sized!(shl),
        Mnemonic::Shr => sized!(shr),
        Mnemonic::Sar => sized!(sar),
        Mnemonic::Rol => sized!(rol),
        Mnemonic::Ror => sized!(ror),
        Mnemonic::Rcl => sized!(rcl),
        Mnemonic::Rcr => sized!(rcr),
        Mnemonic::Shld => sized!(shld),
        Mnemonic::Shrd => sized!(shrd),
        Mnemonic::Rorx => sized!(rorx),
        Mnemonic::Sarx => sized!(sarx),
        Mnemonic::Shlx => sized!(shlx),
        Mnemonic::Shrx => sized!(shrx),
        _ => return None,
    };
    by_operand(code, 0, handlers)
}

/// Shifts the destination in place. Memory is written, and checked for writing, even if the count
/// is 0.
fn in_place<W: Width>(cpu: &mut Cpu, insn: &Insn, f: impl Fn(W) -> Shifted<W>) -> Exec {
    let (flags, mask) = cpu.update::<W, _>(insn, 0, |a| {
        let s = f(a);
        (s.value, (s.flags, s.mask))
    })?;
    cpu.set_status(mask, flags);
    Ok(())
}

/// Declares handlers of shifts and rotates by operand 1.
macro_rules! shifts {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        pub(crate) fn $name<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
            let count = cpu.read::<u8>(insn, 1)?;
            in_place::<W>(cpu, insn, |a| shift::$name(a, count))
        }
    )*};
}

shifts! {
    /// SHL, SAL.
    shl;
    /// SHR.
    shr;
    /// SAR.
    sar;
    /// ROL.
    rol;
    /// ROR.
    ror;
}

/// RCL.
pub(crate) fn rcl<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let count = cpu.read::<u8>(insn, 1)?;
    let carry = cpu.rflags().contains(Rflags::CF);
    in_place::<W>(cpu, insn, |a| shift::rcl(a, count, carry))
}

/// RCR.
pub(crate) fn rcr<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let count = cpu.read::<u8>(insn, 1)?;
    let carry = cpu.rflags().contains(Rflags::CF);
    in_place::<W>(cpu, insn, |a| shift::rcr(a, count, carry))
}

/// SHLD.
pub(crate) fn shld<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let count = cpu.read::<u8>(insn, 2)?;
    let b = cpu.read::<W>(insn, 1)?;
    in_place::<W>(cpu, insn, |a| shift::shld(a, b, count))
}

/// SHRD.
pub(crate) fn shrd<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let count = cpu.read::<u8>(insn, 2)?;
    let b = cpu.read::<W>(insn, 1)?;
    in_place::<W>(cpu, insn, |a| shift::shrd(a, b, count))
}

/// Shifts operand 1 by operand 2 into operand 0; no flag changes.
fn flagless<W: Width>(cpu: &mut Cpu, insn: &Insn, f: fn(W, u8) -> Shifted<W>) -> Exec {
    let a = cpu.read::<W>(insn, 1)?;
    let count = cpu.read::<u8>(insn, 2)?;
    cpu.write(insn, 0, f(a, count).value)
}

/// RORX (BMI2).
pub(crate) fn rorx<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    flagless::<W>(cpu, insn, shift::ror)
}

/// SARX (BMI2).
pub(crate) fn sarx<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    flagless::<W>(cpu, insn, shift::sar)
}

/// SHLX (BMI2).
pub(crate) fn shlx<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    flagless::<W>(cpu, insn, shift::shl)
}

/// SHRX (BMI2).
pub(crate) fn shrx<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    flagless::<W>(cpu, insn, shift::shr)
}
