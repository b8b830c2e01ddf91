//! The x87 register stack and its exceptions, for the instructions that compute.
//!
//! SDM Vol. 1, "x87 FPU Data Registers", "Stack Overflow or Underflow Exception", "x87 FPU
//! Floating-Point Exception Handling". An exception before a computation (IE, DE, ZE) that is not
//! masked leaves registers and memory as they are; one after it (OE, UE, PE) does not.

use iced_x86::Code;
use vmx_model::arch::SegmentRegister;

use crate::fpu::FpuState;
use crate::insn::{Insn, Operand};
use crate::softfloat::convert::{self, Format};
use crate::softfloat::{Env, F80, Out, flag};
use crate::width::Width;
use crate::{Cpu, Exec};

/// SF of the status word.
const STACK_FAULT: u16 = 1 << 6;
/// Condition codes.
const C0: u16 = 1 << 8;
const C1: u16 = 1 << 9;
const C2: u16 = 1 << 10;
const C3: u16 = 1 << 14;
/// Exceptions that are found before a computation.
const BEFORE: u8 = flag::IE | flag::DE | flag::ZE;

impl FpuState {
    /// Returns ST(i); `None` if it is empty.
    pub(crate) fn st(&self, i: usize) -> Option<F80> {
        let n = self.physical(i);
        let is_valid = self.valid >> n & 1 != 0;
        is_valid.then(|| F80::from_bytes(&self.registers[n]))
    }

    /// Sets ST(i).
    pub(crate) fn set_st(&mut self, i: usize, value: F80) {
        let n = self.physical(i);
        self.registers[n] = value.to_bytes();
        self.valid |= 1 << n;
    }

    /// Makes ST(0) of a value.
    pub(crate) fn push(&mut self, value: F80) {
        self.set_top(self.top() + 7);
        self.set_st(0, value);
    }

    /// Makes ST(0) empty and ST(1) ST(0).
    pub(crate) fn pop(&mut self) {
        self.valid &= !(1 << self.physical(0));
        self.set_top(self.top() + 1);
    }

    /// Whether a push has room.
    pub(crate) fn has_room(&self) -> bool {
        self.valid >> self.physical(7) & 1 == 0
    }

    /// Returns how to compute.
    pub(crate) fn env(&self) -> Env {
        Env::of(self.control)
    }

    pub(crate) fn set_c1(&mut self, c1: bool) {
        self.status = self.status & !C1 | if c1 { C1 } else { 0 };
    }

    /// Sets C3, C2 and C0.
    pub(crate) fn set_conditions(&mut self, c3: bool, c2: bool, c0: bool) {
        self.status &= !(C3 | C2 | C0);
        for (is_set, bit) in [(c3, C3), (c2, C2), (c0, C0)] {
            self.status |= if is_set { bit } else { 0 };
        }
    }

    /// Clears C2: a reduction is complete.
    pub(crate) fn clear_c2(&mut self) {
        self.status &= !C2;
    }

    /// Sets C2: a reduction is not complete.
    pub(crate) fn set_c2(&mut self) {
        self.status |= C2;
    }

    /// Notes exceptions; true if there is a result: none of those before the computation is
    /// unmasked.
    pub(crate) fn raise(&mut self, flags: u8) -> bool {
        let stops = flags & BEFORE & !(self.control as u8) != 0;
        let flags = if stops { flags & BEFORE } else { flags };
        self.status |= u16::from(flags);
        self.update_summary();
        !stops
    }

    /// A stack underflow; true if the masked response follows.
    pub(crate) fn underflow(&mut self) -> bool {
        self.set_c1(false);
        self.status |= STACK_FAULT;
        self.raise(flag::IE)
    }

    /// A stack overflow; true if the masked response follows.
    pub(crate) fn overflow(&mut self) -> bool {
        self.status |= STACK_FAULT;
        let responds = self.raise(flag::IE);
        self.set_c1(true);
        responds
    }

    /// Whether all of these exceptions are masked.
    pub(crate) fn masks(&self, flags: u8) -> bool {
        flags & !(self.control as u8) == 0
    }

    /// Notes what a computation met; true if its result is to be stored.
    pub(crate) fn accept<T>(&mut self, out: &Out<T>) -> bool {
        let has_result = self.raise(out.flags);
        self.set_c1(has_result && out.is_rounded_up);
        has_result
    }

    /// As [`Self::accept`], and stores the result in ST(i).
    pub(crate) fn store(&mut self, i: usize, out: &Out) -> bool {
        let has_result = self.accept(out);
        if has_result {
            self.set_st(i, out.value);
        }
        has_result
    }

    /// Pushes what a load gives.
    pub(crate) fn load(&mut self, out: &Out) {
        self.set_c1(false);
        if !self.has_room() {
            if self.overflow() {
                self.push(F80::INDEFINITE);
            }
        } else {
            // A denormal is loaded even where DE is not masked.
            let has_value = self.raise(out.flags) || out.flags & flag::IE == 0;
            if has_value {
                self.push(out.value);
            }
        }
    }
}

/// Returns the register of an x87 operand.
pub(crate) fn register(insn: &Insn, n: usize) -> usize {
    match insn.operands[n] {
        Operand::X87(i) => usize::from(i),
        _ => 0,
    }
}

/// What an x87 instruction finds in memory or leaves there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InMemory {
    Single,
    Double,
    Extended,
    Word,
    Doubleword,
    Quadword,
    Decimal,
}

impl InMemory {
    /// Returns that of an instruction with a memory operand.
    pub(crate) const fn of(code: Code) -> Self {
        use Code as C;
        match code {
            C::Fadd_m32fp
            | C::Fmul_m32fp
            | C::Fcom_m32fp
            | C::Fcomp_m32fp
            | C::Fsub_m32fp
            | C::Fsubr_m32fp
            | C::Fdiv_m32fp
            | C::Fdivr_m32fp
            | C::Fld_m32fp
            | C::Fst_m32fp
            | C::Fstp_m32fp => Self::Single,
            C::Fadd_m64fp
            | C::Fmul_m64fp
            | C::Fcom_m64fp
            | C::Fcomp_m64fp
            | C::Fsub_m64fp
            | C::Fsubr_m64fp
            | C::Fdiv_m64fp
            | C::Fdivr_m64fp
            | C::Fld_m64fp
            | C::Fst_m64fp
            | C::Fstp_m64fp => Self::Double,
            C::Fiadd_m16int
            | C::Fimul_m16int
            | C::Ficom_m16int
            | C::Ficomp_m16int
            | C::Fisub_m16int
            | C::Fisubr_m16int
            | C::Fidiv_m16int
            | C::Fidivr_m16int
            | C::Fild_m16int
            | C::Fist_m16int
            | C::Fistp_m16int
            | C::Fisttp_m16int => Self::Word,
            C::Fiadd_m32int
            | C::Fimul_m32int
            | C::Ficom_m32int
            | C::Ficomp_m32int
            | C::Fisub_m32int
            | C::Fisubr_m32int
            | C::Fidiv_m32int
            | C::Fidivr_m32int
            | C::Fild_m32int
            | C::Fist_m32int
            | C::Fistp_m32int
            | C::Fisttp_m32int => Self::Doubleword,
            C::Fild_m64int | C::Fistp_m64int | C::Fisttp_m64int => Self::Quadword,
            C::Fbld_m80bcd | C::Fbstp_m80bcd => Self::Decimal,
            _ => Self::Extended,
        }
    }

    /// Returns its size in bytes.
    pub(crate) const fn bytes(self) -> usize {
        match self {
            Self::Word => 2,
            Self::Single | Self::Doubleword => 4,
            Self::Double | Self::Quadword => 8,
            Self::Extended | Self::Decimal => 10,
        }
    }
}

impl Cpu {
    /// What every x87 instruction begins with that is not a control instruction: #NM, #MF. Then it
    /// is the last instruction; one with a memory operand is so after the access.
    pub(crate) fn begin_x87(&mut self, insn: &Insn) -> Exec {
        self.check_waiting_x87()?;
        if insn.operands[0] != Operand::Memory {
            self.note_x87();
        }
        Ok(())
    }

    /// Notes the last instruction.
    pub(crate) fn note_x87(&mut self) {
        self.fpu.instruction_pointer = self.state.rip;
        self.fpu.code_selector = self.state.segment(SegmentRegister::Cs).selector;
        self.drop_deprecated_selectors();
    }

    /// Notes the last instruction with a memory operand.
    pub(crate) fn note_x87_memory(&mut self, insn: &Insn) {
        self.fpu.data_pointer = self.effective_address(insn);
        self.fpu.data_selector = self.state.segment(insn.memory.segment).selector;
        self.note_x87();
    }

    /// Reads the memory operand as a number, as it is.
    pub(crate) fn x87_memory(&mut self, insn: &Insn) -> Exec<Out> {
        let out = match InMemory::of(insn.code) {
            InMemory::Single => convert::widen(self.read::<u32>(insn, 0)?.into(), Format::SINGLE),
            InMemory::Double => convert::widen(self.read::<u64>(insn, 0)?, Format::DOUBLE),
            InMemory::Word => {
                Out::exact(convert::from_integer(self.read::<u16>(insn, 0)?.to_i64()))
            }
            InMemory::Doubleword => {
                Out::exact(convert::from_integer(self.read::<u32>(insn, 0)?.to_i64()))
            }
            InMemory::Quadword => {
                Out::exact(convert::from_integer(self.read::<u64>(insn, 0)?.to_i64()))
            }
            long => {
                let mut bytes = [0; 10];
                self.load_operand(insn, &mut bytes)?;
                Out::exact(match long {
                    InMemory::Decimal => convert::from_decimal(&bytes),
                    _ => F80::from_bytes(&bytes),
                })
            }
        };
        self.note_x87_memory(insn);
        Ok(out)
    }
}
