//! The x87 register stack and its exceptions, for the instructions that compute.
//!
//! SDM Vol. 1, "x87 FPU Data Registers", "Stack Overflow or Underflow Exception", "x87 FPU
//! Floating-Point Exception Handling". An exception before a computation (IE, DE, ZE) that is not
//! masked leaves registers and memory as they are; one after it (OE, UE, PE) does not.

use iced_x86::MemorySize;
use vmx_model::arch::SegmentRegister;

use crate::cpuid::Feature;
use crate::fpu::FpuState;
use crate::insn::{Insn, Operand};
use crate::softfloat::convert::{self, Format};
use crate::softfloat::{Env, F80, Out, flag};
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

impl Cpu {
    /// What every x87 instruction begins with that is not a control instruction: #NM, #MF; then it
    /// is the last instruction.
    pub(crate) fn begin_x87(&mut self, insn: &Insn) -> Exec {
        self.check_waiting_x87()?;
        self.fpu.instruction_pointer = self.state.rip;
        self.fpu.code_selector = self.state.segment(SegmentRegister::Cs).selector;
        if insn.operands.contains(&Operand::Memory) {
            self.fpu.data_pointer = self.effective_address(insn);
            let segment = insn.memory.segment;
            self.fpu.data_selector = self.state.segment(segment).selector;
        }
        if self.has(Feature::FcsFdsDeprecated) {
            self.drop_deprecated_selectors();
        }
        Ok(())
    }

    /// Reads the memory operand as a number, as it is.
    pub(crate) fn x87_memory(&mut self, insn: &Insn) -> Exec<Out> {
        let mut bytes = [0; 10];
        let size = insn.code.op_code().memory_size();
        self.load_operand(insn, &mut bytes[..size.size()])?;
        let number = |n: usize| {
            bytes[..n]
                .iter()
                .rev()
                .fold(0, |v, &b| v << 8 | u64::from(b))
        };
        Ok(match size {
            MemorySize::Float32 => convert::widen(number(4), Format::SINGLE),
            MemorySize::Float64 => convert::widen(number(8), Format::DOUBLE),
            MemorySize::Int16 => Out::exact(convert::from_integer(number(2) as i16 as i64)),
            MemorySize::Int32 => Out::exact(convert::from_integer(number(4) as i32 as i64)),
            MemorySize::Int64 => Out::exact(convert::from_integer(number(8) as i64)),
            MemorySize::Bcd => Out::exact(convert::from_decimal(&bytes)),
            _ => Out::exact(F80::from_bytes(&bytes)),
        })
    }
}
