//! The x87: the hot forms of loads, stores and arithmetic.
//!
//! They do what the plain handlers do, without the way there: a block holds them only if CR0 allows
//! it (`CodeMode::has_x87`). The work is in functions of their own, so that the handlers stay
//! without a frame. A pending exception, and a memory operand of 80 bits, go to the plain handler.

use iced_x86::Code;

use super::operand::address;
use super::{Handler, Uop, bail, header, host, next};
use crate::Cpu;
use crate::exec::fpu_arithmetic as plain;
use crate::fpu::FpuState;
use crate::mem::tlb::{read_host, write_host};
use crate::softfloat::convert::{self, Format};
use crate::softfloat::{Env, F80, Out, arithmetic};
use crate::width::Width;

/// What `Uop::detail` says besides the segment's number in bits 2:0.
pub(crate) mod detail {
    /// The instruction pops the stack.
    pub(crate) const POPS: u16 = 1 << 3;
}

/// What lies in memory.
trait InMemory {
    type Bits: Width;
    /// Returns the number that these bits are.
    fn number(bits: Self::Bits) -> Out;
    /// Returns what a store leaves of a number; no value if the store does not happen.
    fn stored(value: F80, env: &Env) -> Out<Option<u64>>;
}

struct Single;
struct Double;
struct Word;
struct Doubleword;
struct Quadword;

macro_rules! floating_point {
    ($name:ident, $bits:ty, $format:expr) => {
        impl InMemory for $name {
            type Bits = $bits;
            #[inline(always)]
            fn number(bits: $bits) -> Out {
                convert::widen(bits.to_u64(), $format)
            }
            #[inline(always)]
            fn stored(value: F80, env: &Env) -> Out<Option<u64>> {
                convert::narrow(value, $format, env)
            }
        }
    };
}
floating_point!(Single, u32, Format::SINGLE);
floating_point!(Double, u64, Format::DOUBLE);

macro_rules! integer {
    ($name:ident, $bits:ty) => {
        impl InMemory for $name {
            type Bits = $bits;
            #[inline(always)]
            fn number(bits: $bits) -> Out {
                Out::exact(convert::from_integer(bits.to_i64()))
            }
            #[inline(always)]
            fn stored(value: F80, env: &Env) -> Out<Option<u64>> {
                let out = convert::to_integer(value, <$bits>::BITS, env.rounding);
                Out {
                    value: Some(out.value as u64),
                    flags: out.flags,
                    is_rounded_up: out.is_rounded_up,
                }
            }
        }
    };
}
integer!(Word, u16);
integer!(Doubleword, u32);
integer!(Quadword, u64);

/// An operation on two numbers.
trait Operation {
    fn apply(a: F80, b: F80, env: &Env) -> Out;
}

macro_rules! operations {
    ($($name:ident $function:ident),*) => {$(
        struct $name;
        impl Operation for $name {
            #[inline(always)]
            fn apply(a: F80, b: F80, env: &Env) -> Out {
                arithmetic::$function(a, b, env)
            }
        }
    )*};
}
operations!(Add add, Subtract subtract, SubtractReversed subtract_reversed,
    Multiply multiply, Divide divide, DivideReversed divide_reversed);

/// Whether an exception is pending: #MF, or nothing, as CR0 says.
#[inline(always)]
unsafe fn is_pending(cpu: *mut Cpu) -> bool {
    // SAFETY: `uop`, "Safety".
    unsafe {
        let fpu: *const FpuState = &raw const *(*cpu).fpu;
        (*fpu).is_exception_pending()
    }
}

/// Notes the last instruction.
#[inline(always)]
unsafe fn note(cpu: *mut Cpu, op: *const Uop) {
    // SAFETY: `uop`, "Safety".
    let (cpu, op, block) = unsafe { (&mut *cpu, &*op, &*(*header(op)).block) };
    let length = block.insns[usize::from(op.insn)].length;
    let next = block.rip.wrapping_add(u64::from(op.next_offset));
    cpu.state.rip = next.wrapping_sub(u64::from(length)) & block.rip_mask;
    cpu.note_x87();
}

/// Notes the last instruction, with a memory operand at this offset of its segment.
#[inline(always)]
unsafe fn note_memory(cpu: *mut Cpu, op: *const Uop, offset: u64) {
    // SAFETY: `uop`, "Safety".
    unsafe {
        let segment = usize::from((*op).detail & 7);
        let fpu: *mut FpuState = &raw mut *(*cpu).fpu;
        (*fpu).data_pointer = offset;
        (*fpu).data_selector = (&raw const (*cpu).state.segments[segment].selector).read();
        note(cpu, op);
    }
}

unsafe fn load<M: InMemory, const A: u8>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    #[inline(never)]
    unsafe fn work<M: InMemory>(cpu: *mut Cpu, op: *const Uop, offset: u64, bits: M::Bits) {
        // SAFETY: `uop`, "Safety".
        unsafe {
            note_memory(cpu, op, offset);
            (*cpu).fpu.load(&plain::loaded(M::number(bits)));
        }
    }
    // SAFETY: `uop`, "Safety".
    unsafe {
        let offset = address::<A>(cpu, op);
        if is_pending(cpu) {
            bail!(cpu, op);
        }
        let at = host!(cpu, op, offset, M::Bits, read);
        work::<M>(cpu, op, offset, read_host::<M::Bits>(at));
        next!(cpu, op.add(1))
    }
}

unsafe fn compute<M: InMemory, O: Operation, const A: u8>(
    cpu: *mut Cpu,
    op: *const Uop,
) -> *const Uop {
    #[inline(never)]
    unsafe fn work<M: InMemory, O: Operation>(
        cpu: *mut Cpu,
        op: *const Uop,
        offset: u64,
        bits: M::Bits,
    ) {
        // SAFETY: `uop`, "Safety".
        unsafe {
            note_memory(cpu, op, offset);
            plain::combine(&mut (*cpu).fpu, 0, Some(M::number(bits)), O::apply, false);
        }
    }
    // SAFETY: `uop`, "Safety".
    unsafe {
        let offset = address::<A>(cpu, op);
        if is_pending(cpu) {
            bail!(cpu, op);
        }
        let at = host!(cpu, op, offset, M::Bits, read);
        work::<M, O>(cpu, op, offset, read_host::<M::Bits>(at));
        next!(cpu, op.add(1))
    }
}

unsafe fn compute_registers<O: Operation>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    #[inline(never)]
    unsafe fn work<O: Operation>(cpu: *mut Cpu, op: *const Uop) {
        // SAFETY: `uop`, "Safety".
        unsafe {
            note(cpu, op);
            let fpu = &mut (*cpu).fpu;
            let second = fpu.st(usize::from((*op).src)).map(Out::exact);
            let pops = (*op).detail & detail::POPS != 0;
            plain::combine(fpu, usize::from((*op).dst), second, O::apply, pops);
        }
    }
    // SAFETY: `uop`, "Safety".
    unsafe {
        if is_pending(cpu) {
            bail!(cpu, op);
        }
        work::<O>(cpu, op);
        next!(cpu, op.add(1))
    }
}

unsafe fn store<M: InMemory, const A: u8>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    /// Whether the number was stored; if not, nothing has happened.
    #[inline(never)]
    unsafe fn work<M: InMemory>(cpu: *mut Cpu, op: *const Uop, offset: u64, host: u64) -> bool {
        // SAFETY: `uop`, "Safety".
        unsafe {
            let fpu = &mut (*cpu).fpu;
            let Some(value) = fpu.st(0) else {
                return false;
            };
            let out = M::stored(value, &fpu.env());
            let (Some(bits), true) = (out.value, fpu.masks(out.flags)) else {
                return false;
            };
            write_host(host, M::Bits::from_u64(bits));
            fpu.accept(&out);
            if (*op).detail & detail::POPS != 0 {
                fpu.pop();
            }
            note_memory(cpu, op, offset);
            true
        }
    }
    // SAFETY: `uop`, "Safety".
    unsafe {
        let offset = address::<A>(cpu, op);
        if is_pending(cpu) {
            bail!(cpu, op);
        }
        let at = host!(cpu, op, offset, M::Bits, write);
        if !work::<M>(cpu, op, offset, at) {
            bail!(cpu, op);
        }
        next!(cpu, op.add(1))
    }
}

/// Defines a handler of an instruction on registers, which does the work on the x87 alone.
macro_rules! on_registers {
    ($(#[$doc:meta])* $name:ident, |$fpu:ident, $op:ident| $body:block) => {
        $(#[$doc])*
        unsafe fn $name(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
            #[inline(never)]
            unsafe fn work(cpu: *mut Cpu, op: *const Uop) {
                // SAFETY: `uop`, "Safety".
                let ($fpu, $op) = unsafe {
                    note(cpu, op);
                    (&mut (*cpu).fpu, &*op)
                };
                $body
            }
            // SAFETY: `uop`, "Safety".
            unsafe {
                if is_pending(cpu) {
                    bail!(cpu, op);
                }
                work(cpu, op);
                next!(cpu, op.add(1))
            }
        }
    };
}

on_registers!(
    /// FLD ST(i).
    load_register,
    |fpu, op| {
        let value = fpu.st(usize::from(op.src));
        plain::load_register(fpu, value);
    }
);
on_registers!(
    /// FST ST(i), FSTP ST(i).
    store_register,
    |fpu, op| { plain::store_register(fpu, usize::from(op.dst), op.detail & detail::POPS != 0) }
);
on_registers!(
    /// FXCH.
    exchange,
    |fpu, op| { plain::exchange(fpu, usize::from(op.src)) }
);

/// The handlers of an instruction with a memory operand, by kind of address, and its size.
pub(crate) fn memory_forms(code: Code) -> Option<([Handler; 3], usize)> {
    use Code as C;
    macro_rules! kinds {
        ($f:ident, $bytes:literal $(, $x:ty)*) => {
            ([$f::<$($x,)* 0>, $f::<$($x,)* 1>, $f::<$($x,)* 2>], $bytes)
        };
    }
    macro_rules! computing {
        ($($s:ident $d:ident $w:ident $l:ident $operation:ident;)*) => {
            Some(match code {
                $(C::$s => kinds!(compute, 4, Single, $operation),
                C::$d => kinds!(compute, 8, Double, $operation),
                C::$w => kinds!(compute, 2, Word, $operation),
                C::$l => kinds!(compute, 4, Doubleword, $operation),)*
                C::Fld_m32fp => kinds!(load, 4, Single),
                C::Fld_m64fp => kinds!(load, 8, Double),
                C::Fild_m16int => kinds!(load, 2, Word),
                C::Fild_m32int => kinds!(load, 4, Doubleword),
                C::Fild_m64int => kinds!(load, 8, Quadword),
                C::Fst_m32fp | C::Fstp_m32fp => kinds!(store, 4, Single),
                C::Fst_m64fp | C::Fstp_m64fp => kinds!(store, 8, Double),
                C::Fist_m16int | C::Fistp_m16int => kinds!(store, 2, Word),
                C::Fist_m32int | C::Fistp_m32int => kinds!(store, 4, Doubleword),
                C::Fistp_m64int => kinds!(store, 8, Quadword),
                _ => return None,
            })
        };
    }
    computing! {
        Fadd_m32fp Fadd_m64fp Fiadd_m16int Fiadd_m32int Add;
        Fsub_m32fp Fsub_m64fp Fisub_m16int Fisub_m32int Subtract;
        Fsubr_m32fp Fsubr_m64fp Fisubr_m16int Fisubr_m32int SubtractReversed;
        Fmul_m32fp Fmul_m64fp Fimul_m16int Fimul_m32int Multiply;
        Fdiv_m32fp Fdiv_m64fp Fidiv_m16int Fidiv_m32int Divide;
        Fdivr_m32fp Fdivr_m64fp Fidivr_m16int Fidivr_m32int DivideReversed;
    }
}

/// The handler of an instruction on registers alone.
pub(crate) fn register_form(code: Code) -> Option<Handler> {
    use Code as C;
    Some(match code {
        C::Fadd_st0_sti | C::Fadd_sti_st0 | C::Faddp_sti_st0 => compute_registers::<Add>,
        C::Fsub_st0_sti | C::Fsub_sti_st0 | C::Fsubp_sti_st0 => compute_registers::<Subtract>,
        C::Fsubr_st0_sti | C::Fsubr_sti_st0 | C::Fsubrp_sti_st0 => {
            compute_registers::<SubtractReversed>
        }
        C::Fmul_st0_sti | C::Fmul_sti_st0 | C::Fmulp_sti_st0 => compute_registers::<Multiply>,
        C::Fdiv_st0_sti | C::Fdiv_sti_st0 | C::Fdivp_sti_st0 => compute_registers::<Divide>,
        C::Fdivr_st0_sti | C::Fdivr_sti_st0 | C::Fdivrp_sti_st0 => {
            compute_registers::<DivideReversed>
        }
        C::Fld_sti => load_register,
        C::Fst_sti | C::Fstp_sti => store_register,
        C::Fxch_st0_sti => exchange,
        _ => return None,
    })
}

/// Whether the instruction pops the stack once.
pub(crate) fn pops(code: Code) -> bool {
    use iced_x86::Mnemonic as M;
    matches!(
        code.mnemonic(),
        M::Faddp | M::Fsubp | M::Fsubrp | M::Fmulp | M::Fdivp | M::Fdivrp | M::Fstp | M::Fistp
    )
}

/// All handlers, for the guard of tail dispatch.
#[cfg(test)]
pub(crate) fn handlers() -> Vec<Handler> {
    let memory = Code::values().filter_map(memory_forms);
    let all = memory.flat_map(|(handlers, _)| handlers);
    all.chain(Code::values().filter_map(register_form))
        .collect()
}
