//! x87 arithmetic, comparison and data transfer (SDM Vol. 1, "x87 FPU Instruction Set"; Vol. 2: the
//! instructions).
//!
//! Choice: the opcode register is not updated: processors do so for unmasked exceptions only.

use core::cmp::Ordering;

use iced_x86::{Code, Mnemonic};
use vmx_model::arch::Rflags;

use super::fpu_stack::{InMemory, register};
use super::{Row, Traits};
use crate::fpu::FpuState;
use crate::insn::{Insn, Operand, Plain};
use crate::softfloat::convert::{self, Format};
use crate::softfloat::{
    Class, Env, F80, Out, Rounding, arithmetic, compare, flag, remainder, special_one,
};
use crate::{Cpu, Exec};

/// Returns who executes an instruction of this file.
pub(crate) fn lookup(code: Code) -> Option<Row> {
    let plain = transfer(code)
        .or_else(|| computing(code))
        .or_else(|| comparing(code));
    plain.map(|plain| Row {
        plain,
        traits: Traits::empty(),
    })
}

fn transfer(code: Code) -> Option<Plain> {
    use Mnemonic as M;
    Some(match code.mnemonic() {
        M::Fld => fld,
        M::Fild | M::Fbld => fild,
        M::Fld1 => |cpu, insn| constant(cpu, insn, [F80::ONE; 4]),
        M::Fldz => |cpu, insn| constant(cpu, insn, [F80::ZERO; 4]),
        M::Fldl2t => |cpu, insn| constant(cpu, insn, around(0x4000, 0xd49a_784b_cd1b_8afe, false)),
        M::Fldl2e => |cpu, insn| constant(cpu, insn, around(0x3fff, 0xb8aa_3b29_5c17_f0bc, true)),
        M::Fldpi => |cpu, insn| constant(cpu, insn, around(0x4000, 0xc90f_daa2_2168_c235, true)),
        M::Fldlg2 => |cpu, insn| constant(cpu, insn, around(0x3ffd, 0x9a20_9a84_fbcf_f799, true)),
        M::Fldln2 => |cpu, insn| constant(cpu, insn, around(0x3ffe, 0xb172_17f7_d1cf_79ac, true)),
        M::Fst => |cpu, insn| fst(cpu, insn, false),
        M::Fstp => |cpu, insn| fst(cpu, insn, true),
        M::Fstpnce => fstpnce,
        M::Fist => |cpu, insn| fist(cpu, insn, None, false),
        M::Fistp => |cpu, insn| fist(cpu, insn, None, true),
        M::Fisttp => |cpu, insn| fist(cpu, insn, Some(Rounding::Zero), true),
        M::Fbstp => fbstp,
        M::Fxch => fxch,
        M::Ffreep => ffreep,
        M::Fcmovb | M::Fcmove | M::Fcmovbe | M::Fcmovu => |cpu, insn| fcmov(cpu, insn, true),
        M::Fcmovnb | M::Fcmovne | M::Fcmovnbe | M::Fcmovnu => |cpu, insn| fcmov(cpu, insn, false),
        _ => return None,
    })
}

fn computing(code: Code) -> Option<Plain> {
    use Mnemonic as M;
    Some(match code.mnemonic() {
        M::Fadd | M::Fiadd => |cpu, insn| binary(cpu, insn, arithmetic::add, false),
        M::Faddp => |cpu, insn| binary(cpu, insn, arithmetic::add, true),
        M::Fsub | M::Fisub => |cpu, insn| binary(cpu, insn, arithmetic::subtract, false),
        M::Fsubp => |cpu, insn| binary(cpu, insn, arithmetic::subtract, true),
        M::Fsubr | M::Fisubr => |cpu, insn| binary(cpu, insn, arithmetic::subtract_reversed, false),
        M::Fsubrp => |cpu, insn| binary(cpu, insn, arithmetic::subtract_reversed, true),
        M::Fmul | M::Fimul => |cpu, insn| binary(cpu, insn, arithmetic::multiply, false),
        M::Fmulp => |cpu, insn| binary(cpu, insn, arithmetic::multiply, true),
        M::Fdiv | M::Fidiv => |cpu, insn| binary(cpu, insn, arithmetic::divide, false),
        M::Fdivp => |cpu, insn| binary(cpu, insn, arithmetic::divide, true),
        M::Fdivr | M::Fidivr => |cpu, insn| binary(cpu, insn, arithmetic::divide_reversed, false),
        M::Fdivrp => |cpu, insn| binary(cpu, insn, arithmetic::divide_reversed, true),
        M::Fsqrt => |cpu, insn| unary(cpu, insn, arithmetic::square_root),
        M::Frndint => |cpu, insn| unary(cpu, insn, convert::round_to_integral),
        M::Fabs => |cpu, insn| sign(cpu, insn, |v| if v.sign() { v.negate() } else { v }),
        M::Fchs => |cpu, insn| sign(cpu, insn, F80::negate),
        M::Fscale => fscale,
        M::Fxtract => fxtract,
        M::Fprem => |cpu, insn| fprem(cpu, insn, false),
        M::Fprem1 => |cpu, insn| fprem(cpu, insn, true),
        _ => return None,
    })
}

fn comparing(code: Code) -> Option<Plain> {
    use Mnemonic as M;
    Some(match code.mnemonic() {
        M::Fcom | M::Ficom => |cpu, insn| fcom(cpu, insn, true, 0),
        M::Fcomp | M::Ficomp => |cpu, insn| fcom(cpu, insn, true, 1),
        M::Fcompp => |cpu, insn| fcom(cpu, insn, true, 2),
        M::Fucom => |cpu, insn| fcom(cpu, insn, false, 0),
        M::Fucomp => |cpu, insn| fcom(cpu, insn, false, 1),
        M::Fucompp => |cpu, insn| fcom(cpu, insn, false, 2),
        M::Fcomi => |cpu, insn| fcomi(cpu, insn, true, false),
        M::Fcomip => |cpu, insn| fcomi(cpu, insn, true, true),
        M::Fucomi => |cpu, insn| fcomi(cpu, insn, false, false),
        M::Fucomip => |cpu, insn| fcomi(cpu, insn, false, true),
        M::Ftst => ftst,
        M::Fxam => fxam,
        _ => return None,
    })
}

/// Returns a constant by rounding control: the nearest is `low`, which is above or below the
/// number.
const fn around(high: u16, low: u64, is_above: bool) -> [F80; 4] {
    let nearest = F80 { high, low };
    let (down, up) = if is_above {
        (low - 1, low)
    } else {
        (low, low + 1)
    };
    let down = F80 { high, low: down };
    let up = F80 { high, low: up };
    [nearest, down, up, down]
}

fn constant(cpu: &mut Cpu, insn: &Insn, by_rounding: [F80; 4]) -> Exec {
    cpu.begin_x87(insn)?;
    let value = by_rounding[cpu.fpu.env().rounding as usize];
    cpu.fpu.load(&Out::exact(value));
    Ok(())
}

/// FLD.
fn fld(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.begin_x87(insn)?;
    if let Operand::X87(i) = insn.operands[0] {
        let value = cpu.fpu.st(i.into());
        load_register(&mut cpu.fpu, value);
        return Ok(());
    }
    let wide = cpu.x87_memory(insn)?;
    let is_small = insn.code != Code::Fld_m80fp;
    cpu.fpu.load(&if is_small { loaded(wide) } else { wide });
    Ok(())
}

/// What FLD makes of a number of a smaller format: a NaN becomes quiet.
pub(crate) fn loaded(wide: Out) -> Out {
    special_one(wide.value).unwrap_or(wide)
}

/// Pushes what is in a register.
pub(crate) fn load_register(fpu: &mut FpuState, value: Option<F80>) {
    match value {
        None => {
            if fpu.underflow() {
                fpu.push(F80::INDEFINITE);
            }
        }
        Some(value) => fpu.load(&Out::exact(value)),
    }
}

/// FILD, FBLD.
fn fild(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.begin_x87(insn)?;
    let out = cpu.x87_memory(insn)?;
    cpu.fpu.load(&out);
    Ok(())
}

/// FST, FSTP.
fn fst(cpu: &mut Cpu, insn: &Insn, pops: bool) -> Exec {
    cpu.begin_x87(insn)?;
    if let Operand::X87(i) = insn.operands[0] {
        store_register(&mut cpu.fpu, i.into(), pops);
        return Ok(());
    }
    let value = cpu.fpu.st(0);
    if store_number(cpu, insn, value)? && pops {
        cpu.fpu.pop();
    }
    Ok(())
}

/// Copies ST(0) to ST(i).
pub(crate) fn store_register(fpu: &mut FpuState, i: usize, pops: bool) {
    let value = fpu.st(0);
    fpu.set_c1(false);
    if value.is_some() || fpu.underflow() {
        fpu.set_st(i, value.unwrap_or(F80::INDEFINITE));
        if pops {
            fpu.pop();
        }
    }
}

/// FSTPNCE, which the SDM does not list: FSTP without a look whether ST(0) is empty.
fn fstpnce(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.begin_x87(insn)?;
    let fpu = &mut cpu.fpu;
    fpu.set_c1(false);
    if let Some(value) = fpu.st(0) {
        fpu.set_st(register(insn, 0), value);
    }
    fpu.pop();
    Ok(())
}

/// Stores a number of 32, 64 or 80 bits; true if it was.
fn store_number(cpu: &mut Cpu, insn: &Insn, value: Option<F80>) -> Exec<bool> {
    let env = cpu.fpu.env();
    let number = value.unwrap_or(F80::INDEFINITE);
    let kind = InMemory::of(insn.code);
    let format = match kind {
        InMemory::Single => Format::SINGLE,
        InMemory::Double => Format::DOUBLE,
        _ => {
            let bytes = number.to_bytes();
            return store_bytes(cpu, insn, value, &Out::exact(Some(())), &bytes);
        }
    };
    let out = convert::narrow(number, format, &env);
    let bytes = out.value.unwrap_or(0).to_le_bytes();
    let out = Out {
        value: out.value.map(|_| ()),
        flags: out.flags,
        is_rounded_up: out.is_rounded_up,
    };
    store_bytes(cpu, insn, value, &out, &bytes[..kind.bytes()])
}

/// Writes the result of a store, and notes its exceptions; true if it was written. `value` is what
/// was to be stored: nothing if the register was empty.
fn store_bytes(
    cpu: &mut Cpu,
    insn: &Insn,
    value: Option<F80>,
    out: &Out<Option<()>>,
    bytes: &[u8],
) -> Exec<bool> {
    let before = cpu.fpu.status;
    let is_stored = match value {
        None => cpu.fpu.underflow(),
        Some(_) => cpu.fpu.accept(out) && out.value.is_some(),
    };
    let written = match bytes {
        // A fault of the operand comes before the exception that keeps it from being written.
        _ if !is_stored => cpu.probe_operand(insn, bytes.len()),
        &[a, b, c, d, e, f, g, h] => {
            let word = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
            cpu.write::<u64>(insn, 0, word)
        }
        &[a, b, c, d] => cpu.write::<u32>(insn, 0, u32::from_le_bytes([a, b, c, d])),
        bytes => cpu.store_operand(insn, bytes),
    };
    if written.is_err() {
        cpu.fpu.status = before;
    } else {
        cpu.note_x87_memory(insn);
    }
    written.map(|()| is_stored)
}

/// FIST, FISTP, FISTTP.
fn fist(cpu: &mut Cpu, insn: &Insn, rounding: Option<Rounding>, pops: bool) -> Exec {
    cpu.begin_x87(insn)?;
    let value = cpu.fpu.st(0);
    let size = InMemory::of(insn.code).bytes();
    let rounding = rounding.unwrap_or(cpu.fpu.env().rounding);
    let number = value.unwrap_or(F80::INDEFINITE);
    let out = convert::to_integer(number, 8 * size as u32, rounding);
    let bytes = out.value.to_le_bytes();
    let is_stored = store_bytes(cpu, insn, value, &without_value(&out), &bytes[..size])?;
    if is_stored && pops {
        cpu.fpu.pop();
    }
    Ok(())
}

/// FBSTP.
fn fbstp(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.begin_x87(insn)?;
    let value = cpu.fpu.st(0);
    let rounding = cpu.fpu.env().rounding;
    let out = convert::to_decimal(value.unwrap_or(F80::INDEFINITE), rounding);
    if store_bytes(cpu, insn, value, &without_value(&out), &out.value)? {
        cpu.fpu.pop();
    }
    Ok(())
}

fn without_value<T>(out: &Out<T>) -> Out<Option<()>> {
    Out {
        value: Some(()),
        flags: out.flags,
        is_rounded_up: out.is_rounded_up,
    }
}

/// FXCH.
fn fxch(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.begin_x87(insn)?;
    exchange(&mut cpu.fpu, register(insn, 1));
    Ok(())
}

/// Exchanges ST(0) and ST(i).
pub(crate) fn exchange(fpu: &mut FpuState, i: usize) {
    fpu.set_c1(false);
    let (a, b) = (fpu.st(0), fpu.st(i));
    if (a.is_none() || b.is_none()) && !fpu.underflow() {
        return;
    }
    fpu.set_st(0, b.unwrap_or(F80::INDEFINITE));
    fpu.set_st(i, a.unwrap_or(F80::INDEFINITE));
}

/// FFREEP, which the SDM does not list.
fn ffreep(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.begin_x87(insn)?;
    let n = cpu.fpu.physical(register(insn, 0));
    cpu.fpu.valid &= !(1 << n);
    cpu.fpu.set_c1(false);
    cpu.fpu.pop();
    Ok(())
}

/// FCMOVcc: of the four conditions, or of their opposites.
fn fcmov(cpu: &mut Cpu, insn: &Insn, wanted: bool) -> Exec {
    cpu.begin_x87(insn)?;
    use Mnemonic as M;
    let mask = match insn.code.mnemonic() {
        M::Fcmovb | M::Fcmovnb => Rflags::CF,
        M::Fcmove | M::Fcmovne => Rflags::ZF,
        M::Fcmovbe | M::Fcmovnbe => Rflags::CF | Rflags::ZF,
        _ => Rflags::PF,
    };
    let moves = cpu.rflags().intersects(mask) == wanted;
    let fpu = &mut cpu.fpu;
    let (to, from) = (fpu.st(0), fpu.st(register(insn, 1)));
    match (to, from) {
        (Some(_), Some(from)) if moves => fpu.set_st(0, from),
        (Some(_), Some(_)) => {}
        _ => {
            if fpu.underflow() {
                fpu.set_st(0, F80::INDEFINITE);
            }
        }
    }
    Ok(())
}

type Binary = fn(F80, F80, &Env) -> Out;

/// An operation on two numbers: registers, or ST(0) and memory.
fn binary(cpu: &mut Cpu, insn: &Insn, operation: Binary, pops: bool) -> Exec {
    cpu.begin_x87(insn)?;
    let (to, second) = if insn.operands[0] == Operand::Memory {
        (0, Some(cpu.x87_memory(insn)?))
    } else {
        let second = cpu.fpu.st(register(insn, 1));
        (register(insn, 0), second.map(Out::exact))
    };
    combine(&mut cpu.fpu, to, second, operation, pops);
    Ok(())
}

/// Makes ST(`to`) the result of an operation on itself and a second number, if there is one.
#[inline]
pub(crate) fn combine(
    fpu: &mut FpuState,
    to: usize,
    second: Option<Out>,
    operation: impl Fn(F80, F80, &Env) -> Out,
    pops: bool,
) {
    let env = fpu.env();
    let has_result = match (fpu.st(to), second) {
        (Some(a), Some(b)) => {
            let mut out = operation(a, b.value, &env);
            if out.flags & (flag::IE | flag::ZE) == 0 && !a.is_nan() && !b.value.is_nan() {
                out.flags |= b.flags;
            }
            fpu.store(to, &out)
        }
        _ => {
            let responds = fpu.underflow();
            if responds {
                fpu.set_st(to, F80::INDEFINITE);
            }
            responds
        }
    };
    if has_result && pops {
        fpu.pop();
    }
}

fn unary(cpu: &mut Cpu, insn: &Insn, operation: fn(F80, &Env) -> Out) -> Exec {
    cpu.begin_x87(insn)?;
    let fpu = &mut cpu.fpu;
    let env = fpu.env();
    match fpu.st(0) {
        Some(value) => {
            fpu.store(0, &operation(value, &env));
        }
        None => {
            if fpu.underflow() {
                fpu.set_st(0, F80::INDEFINITE);
            }
        }
    }
    Ok(())
}

/// FABS, FCHS: of any bits.
fn sign(cpu: &mut Cpu, insn: &Insn, change: fn(F80) -> F80) -> Exec {
    cpu.begin_x87(insn)?;
    let fpu = &mut cpu.fpu;
    fpu.set_c1(false);
    match fpu.st(0) {
        Some(value) => fpu.set_st(0, change(value)),
        None => {
            if fpu.underflow() {
                fpu.set_st(0, F80::INDEFINITE);
            }
        }
    }
    Ok(())
}

/// FSCALE.
fn fscale(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.begin_x87(insn)?;
    let fpu = &mut cpu.fpu;
    let env = fpu.env();
    match (fpu.st(0), fpu.st(1)) {
        (Some(a), Some(b)) => {
            fpu.store(0, &remainder::scale(a, b, &env));
        }
        _ => {
            if fpu.underflow() {
                fpu.set_st(0, F80::INDEFINITE);
            }
        }
    }
    Ok(())
}

/// FXTRACT: the exponent takes the place of the number, the significand is pushed.
fn fxtract(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.begin_x87(insn)?;
    let fpu = &mut cpu.fpu;
    fpu.set_c1(false);
    let Some(value) = fpu.st(0) else {
        if fpu.underflow() {
            fpu.set_st(0, F80::INDEFINITE);
            fpu.push(F80::INDEFINITE);
        }
        return Ok(());
    };
    if !fpu.has_room() {
        if fpu.overflow() {
            fpu.set_st(0, F80::INDEFINITE);
            fpu.push(F80::INDEFINITE);
        }
        return Ok(());
    }
    let (exponent, significand) = remainder::extract(value);
    if fpu.store(0, &exponent) {
        fpu.push(significand);
    }
    Ok(())
}

/// FPREM, FPREM1.
fn fprem(cpu: &mut Cpu, insn: &Insn, is_nearest: bool) -> Exec {
    cpu.begin_x87(insn)?;
    let fpu = &mut cpu.fpu;
    let env = fpu.env();
    let (Some(a), Some(b)) = (fpu.st(0), fpu.st(1)) else {
        if fpu.underflow() {
            fpu.set_st(0, F80::INDEFINITE);
        }
        fpu.clear_c2();
        return Ok(());
    };
    let answer = remainder::remainder(a, b, is_nearest, &env);
    let is_defined = answer.out.flags & flag::IE == 0 && !a.is_nan() && !b.is_nan();
    let has_result = fpu.store(0, &answer.out);
    if has_result && is_defined {
        let q = answer.quotient;
        fpu.set_conditions(q & 2 != 0, answer.is_partial, q & 4 != 0);
        fpu.set_c1(q & 1 != 0);
    } else {
        fpu.set_c1(false);
        fpu.clear_c2();
    }
    Ok(())
}

/// Returns the second operand of a comparison: memory, a register, ST(1).
fn compared(cpu: &mut Cpu, insn: &Insn) -> Exec<Option<Out>> {
    if insn.operands[0] == Operand::Memory {
        return cpu.x87_memory(insn).map(Some);
    }
    let i = match insn.operands[1] {
        Operand::X87(i) => usize::from(i),
        _ => 1,
    };
    Ok(cpu.fpu.st(i).map(Out::exact))
}

/// Compares, and notes exceptions: `None` if there is no result.
fn compare_with(fpu: &mut FpuState, b: Option<Out>, is_strict: bool) -> Option<Option<Ordering>> {
    fpu.set_c1(false);
    let (Some(a), Some(b)) = (fpu.st(0), b) else {
        return fpu.underflow().then_some(None);
    };
    let mut out = compare::compare(a, b.value, is_strict);
    if out.value.is_some() {
        out.flags |= b.flags;
    }
    fpu.raise(out.flags).then_some(out.value)
}

/// FCOM, FUCOM, FICOM and those that pop.
fn fcom(cpu: &mut Cpu, insn: &Insn, is_strict: bool, pops: u32) -> Exec {
    cpu.begin_x87(insn)?;
    let b = compared(cpu, insn)?;
    let fpu = &mut cpu.fpu;
    if let Some(order) = compare_with(fpu, b, is_strict) {
        set_order(fpu, order);
        (0..pops).for_each(|_| fpu.pop());
    }
    Ok(())
}

fn set_order(fpu: &mut FpuState, order: Option<Ordering>) {
    let is = |o| order == Some(o) || order.is_none();
    fpu.set_conditions(is(Ordering::Equal), order.is_none(), is(Ordering::Less));
}

/// FCOMI, FUCOMI and those that pop.
fn fcomi(cpu: &mut Cpu, insn: &Insn, is_strict: bool, pops: bool) -> Exec {
    cpu.begin_x87(insn)?;
    let b = compared(cpu, insn)?;
    let Some(order) = compare_with(&mut cpu.fpu, b, is_strict) else {
        return Ok(());
    };
    let mut flags = Rflags::empty();
    let is = |o| order == Some(o) || order.is_none();
    flags.set(Rflags::ZF, is(Ordering::Equal));
    flags.set(Rflags::PF, order.is_none());
    flags.set(Rflags::CF, is(Ordering::Less));
    cpu.set_status(Rflags::STATUS, flags);
    if pops {
        cpu.fpu.pop();
    }
    Ok(())
}

/// FTST.
fn ftst(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.begin_x87(insn)?;
    let fpu = &mut cpu.fpu;
    if let Some(order) = compare_with(fpu, Some(Out::exact(F80::ZERO)), true) {
        set_order(fpu, order);
    }
    Ok(())
}

/// FXAM.
fn fxam(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.begin_x87(insn)?;
    let fpu = &mut cpu.fpu;
    let n = fpu.physical(0);
    let value = F80::from_bytes(&fpu.registers[n]);
    let (c3, c2, c0) = match fpu.st(0).map(F80::class) {
        None => (true, false, true),
        Some(Class::Unsupported) => (false, false, false),
        Some(Class::QuietNan | Class::SignalingNan) => (false, false, true),
        Some(Class::Normal) => (false, true, false),
        Some(Class::Infinity) => (false, true, true),
        Some(Class::Zero) => (true, false, false),
        Some(Class::Denormal) => (true, true, false),
    };
    fpu.set_conditions(c3, c2, c0);
    fpu.set_c1(value.sign());
    Ok(())
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests;
