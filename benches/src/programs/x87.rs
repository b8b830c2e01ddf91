//! Programs of the x87 with precision control at double precision, so that the results are those of
//! double-precision arithmetic.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::{Bits, Group, Program};

/// The control word: double precision, round to nearest, all exceptions masked.
const CONTROL: i32 = 0x27f;

pub(super) const ORBIT87: Program = Program {
    name: "orbit87",
    what: "the program orbit on the x87",
    bits: Bits::Long64,
    group: Group::X87,
    iterations: 10_000,
    emit: emit_orbit,
    expected: super::orbit,
};

/// Initializes the x87; the word at `[rsi + 64]` is used.
fn emit_init(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.fninit()?;
    a.mov(word_ptr(rsi + 64), CONTROL)?;
    a.fldcw(word_ptr(rsi + 64))
}

fn emit_orbit(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut top = a.create_label();
    emit_init(a)?;
    super::emit_orbit_data(a)?;
    a.set_label(&mut top)?;
    a.fld(qword_ptr(rsi + 32))?;
    a.fld(qword_ptr(rsi))?;
    a.fmul_2(st0, st0)?;
    a.fld(qword_ptr(rsi + 8))?;
    a.fmul_2(st0, st0)?;
    a.faddp(st1, st0)?;
    a.fld(st0)?;
    a.fsqrt()?;
    a.fmulp(st1, st0)?;
    a.fdivp(st1, st0)?;
    for at in [0, 8] {
        a.fld(qword_ptr(rsi + at))?;
        a.fmul_2(st0, st1)?;
        a.fsubr(qword_ptr(rsi + 16 + at))?;
        a.fst(qword_ptr(rsi + 16 + at))?;
        a.fmul(qword_ptr(rsi + 32))?;
        a.fadd(qword_ptr(rsi + at))?;
        a.fstp(qword_ptr(rsi + at))?;
    }
    a.fstp(st0)?;
    a.dec(edi)?;
    a.jnz(top)?;
    a.fninit()?;
    a.mov(rax, qword_ptr(rsi))?;
    a.ret()
}

pub(super) const HORNER: Program = Program {
    name: "horner",
    what: "a polynomial on the stack of the x87",
    bits: Bits::Long64,
    group: Group::X87,
    iterations: 5000,
    emit: emit_horner,
    expected: horner,
};

/// The coefficients, highest power first.
const COEFFICIENTS: [f64; 6] = [0.11, -0.7, 0.35, 1.3, -0.9, 0.4];

fn emit_horner(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut top = a.create_label();
    emit_init(a)?;
    for (n, c) in COEFFICIENTS.into_iter().enumerate() {
        a.mov(rax, c.to_bits())?;
        a.mov(qword_ptr(rsi + 8 * n), rax)?;
    }
    // x = 1 / (1 + remaining iterations); the sum is at the bottom of the stack.
    a.fldz()?;
    a.set_label(&mut top)?;
    a.mov(dword_ptr(rsi + 72), edi)?;
    a.fild(dword_ptr(rsi + 72))?;
    a.fld1()?;
    a.fadd_2(st1, st0)?;
    a.fdivrp(st1, st0)?;
    a.fld(qword_ptr(rsi))?;
    for n in 1..COEFFICIENTS.len() {
        a.fmul_2(st0, st1)?;
        a.fadd(qword_ptr(rsi + 8 * n))?;
    }
    a.fxch(st0, st1)?;
    a.fstp(st0)?;
    a.faddp(st1, st0)?;
    a.dec(edi)?;
    a.jnz(top)?;
    a.fstp(qword_ptr(rsi + 72))?;
    a.fninit()?;
    a.mov(rax, qword_ptr(rsi + 72))?;
    a.ret()
}

fn horner(iterations: u32, _: u64) -> u64 {
    let mut sum = 0.0_f64;
    for left in (1..=iterations).rev() {
        let x = 1.0 / (f64::from(left) + 1.0);
        let value = COEFFICIENTS[1..]
            .iter()
            .fold(COEFFICIENTS[0], |v, c| v * x + c);
        sum += value;
    }
    sum.to_bits()
}
