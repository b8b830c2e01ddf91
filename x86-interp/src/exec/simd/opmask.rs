//! Instructions on opmask registers.
//!
//! SDM Vol. 1, "Opmask instructions" of AVX-512; the functions follow the "Operation" sections of
//! SDM Vol. 2. They have VEX prefixes, and need the state components of AVX-512.

use iced_x86::{Code, Mnemonic};
use vmx_model::arch::Rflags;

use crate::exec::Row;
use crate::exec::form::plain;
use crate::insn::{Insn, Operand, Plain};
use crate::width::Width;
use crate::{Cpu, Exec};

/// A handler: operand 0 becomes a function of the others, registers or an immediate, all taken as
/// `$t`.
macro_rules! mask {
    ($t:ty, $f:expr) => {{
        fn handler(cpu: &mut Cpu, insn: &Insn) -> Exec {
            cpu.check_avx512()?;
            let [a, b] = [1, 2].map(|n| cpu.opmask_operand(insn, n) as $t);
            let f: fn($t, $t) -> $t = $f;
            cpu.set_opmask(insn, u64::from(f(a, b)));
            Ok(())
        }
        handler as Plain
    }};
}

/// A handler: operand 0 becomes operand 1 shifted by the immediate; nothing is left beyond the
/// width.
macro_rules! shift {
    ($t:ty, $shift:ident) => {{
        fn handler(cpu: &mut Cpu, insn: &Insn) -> Exec {
            cpu.check_avx512()?;
            let value = cpu.opmask_operand(insn, 1) as $t;
            let shifted = value.$shift(u32::from(insn.immediate_byte()));
            cpu.set_opmask(insn, u64::from(shifted.unwrap_or(0)));
            Ok(())
        }
        handler as Plain
    }};
}

/// A handler: ZF if `$zero` of operands 0 and 1 is 0, CF if `$carry` of them is; the other status
/// flags are cleared.
macro_rules! test {
    ($t:ty, $zero:expr, $carry:expr) => {{
        fn handler(cpu: &mut Cpu, insn: &Insn) -> Exec {
            cpu.check_avx512()?;
            let [a, b] = [0, 1].map(|n| cpu.opmask_operand(insn, n) as $t);
            let zero: fn($t, $t) -> $t = $zero;
            let carry: fn($t, $t) -> $t = $carry;
            let mut flags = Rflags::empty();
            flags.set(Rflags::ZF, zero(a, b) == 0);
            flags.set(Rflags::CF, carry(a, b) == 0);
            cpu.set_status(Rflags::STATUS, flags);
            Ok(())
        }
        handler as Plain
    }};
}

/// Returns who executes an instruction of this file.
#[rustfmt::skip]
pub(crate) fn lookup(code: Code) -> Option<Row> {
    use Mnemonic as M;
    plain(match code.mnemonic() {
        M::Kmovb => kmov::<u8>,
        M::Kmovw => kmov::<u16>,
        M::Kmovd => kmov::<u32>,
        M::Kmovq => kmov::<u64>,
        M::Kandb => mask!(u8, |a, b| a & b),
        M::Kandw => mask!(u16, |a, b| a & b),
        M::Kandd => mask!(u32, |a, b| a & b),
        M::Kandq => mask!(u64, |a, b| a & b),
        M::Kandnb => mask!(u8, |a, b| !a & b),
        M::Kandnw => mask!(u16, |a, b| !a & b),
        M::Kandnd => mask!(u32, |a, b| !a & b),
        M::Kandnq => mask!(u64, |a, b| !a & b),
        M::Korb => mask!(u8, |a, b| a | b),
        M::Korw => mask!(u16, |a, b| a | b),
        M::Kord => mask!(u32, |a, b| a | b),
        M::Korq => mask!(u64, |a, b| a | b),
        M::Kxorb => mask!(u8, |a, b| a ^ b),
        M::Kxorw => mask!(u16, |a, b| a ^ b),
        M::Kxord => mask!(u32, |a, b| a ^ b),
        M::Kxorq => mask!(u64, |a, b| a ^ b),
        M::Kxnorb => mask!(u8, |a, b| !(a ^ b)),
        M::Kxnorw => mask!(u16, |a, b| !(a ^ b)),
        M::Kxnord => mask!(u32, |a, b| !(a ^ b)),
        M::Kxnorq => mask!(u64, |a, b| !(a ^ b)),
        M::Knotb => mask!(u8, |a, _| !a),
        M::Knotw => mask!(u16, |a, _| !a),
        M::Knotd => mask!(u32, |a, _| !a),
        M::Knotq => mask!(u64, |a, _| !a),
        M::Kaddb => mask!(u8, u8::wrapping_add),
        M::Kaddw => mask!(u16, u16::wrapping_add),
        M::Kaddd => mask!(u32, u32::wrapping_add),
        M::Kaddq => mask!(u64, u64::wrapping_add),
        M::Kunpckbw => mask!(u16, |a, b| a << 8 | b & 0xff),
        M::Kunpckwd => mask!(u32, |a, b| a << 16 | b & 0xffff),
        M::Kunpckdq => mask!(u64, |a, b| a << 32 | b & 0xffff_ffff),
        M::Kshiftlb => shift!(u8, checked_shl),
        M::Kshiftlw => shift!(u16, checked_shl),
        M::Kshiftld => shift!(u32, checked_shl),
        M::Kshiftlq => shift!(u64, checked_shl),
        M::Kshiftrb => shift!(u8, checked_shr),
        M::Kshiftrw => shift!(u16, checked_shr),
        M::Kshiftrd => shift!(u32, checked_shr),
        M::Kshiftrq => shift!(u64, checked_shr),
        M::Kortestb => test!(u8, |a, b| a | b, |a, b| !(a | b)),
        M::Kortestw => test!(u16, |a, b| a | b, |a, b| !(a | b)),
        M::Kortestd => test!(u32, |a, b| a | b, |a, b| !(a | b)),
        M::Kortestq => test!(u64, |a, b| a | b, |a, b| !(a | b)),
        M::Ktestb => test!(u8, |a, b| a & b, |a, b| !a & b),
        M::Ktestw => test!(u16, |a, b| a & b, |a, b| !a & b),
        M::Ktestd => test!(u32, |a, b| a & b, |a, b| !a & b),
        M::Ktestq => test!(u64, |a, b| a & b, |a, b| !a & b),
        _ => return None,
    })
}

/// KMOV: the rest of a register is cleared.
fn kmov<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_avx512()?;
    let value = match insn.operands[1] {
        Operand::Opmask(_) => W::from_u64(cpu.opmask_operand(insn, 1)),
        _ => cpu.read::<W>(insn, 1)?,
    };
    match insn.operands[0] {
        Operand::Opmask(_) => cpu.set_opmask(insn, value.to_u64()),
        Operand::Memory => cpu.write(insn, 0, value)?,
        _ => cpu.write(insn, 0, value.to_u64())?,
    }
    Ok(())
}

impl Cpu {
    /// Returns opmask register operand `n`; 0 if it is none.
    pub(super) fn opmask_operand(&self, insn: &Insn, n: usize) -> u64 {
        match insn.operands[n] {
            Operand::Opmask(register) => self.fpu.opmask[usize::from(register & 7)],
            _ => 0,
        }
    }

    /// Sets the whole of opmask register operand 0.
    pub(super) fn set_opmask(&mut self, insn: &Insn, value: u64) {
        if let Operand::Opmask(register) = insn.operands[0] {
            self.fpu.opmask[usize::from(register & 7)] = value;
        }
    }

    /// Sets opmask register operand 0 to the results of `count` elements; those that the opmask
    /// masks off are 0.
    pub(super) fn write_opmask(&mut self, insn: &Insn, results: u64, count: usize) {
        self.set_opmask(insn, results & self.active(insn, count));
    }
}
