//! AVX, AVX2 and FMA: the hot forms with a VEX prefix.
//!
//! A block holds them only if AVX is usable (`CodeMode::has_avx`) and the host has AVX2 and FMA
//! ([`is_supported`]), so no handler asks. An operation is a [`Kernel`]: a function of whole vectors of
//! 256 bits, which serves every vector length, scalars and memory operands of every size; what lies
//! beyond the vector's length is computed too and thrown away. In a micro-op `detail` is the number
//! of the first source, `src` that of the last one, and `imm` the immediate byte or the number of
//! the third source.

mod float;
mod fused;
mod immediate;
mod integer;
mod lanes;
pub(crate) mod moves;
mod scalar;

use core::arch::x86_64::*;

use iced_x86::Mnemonic;

use super::float::{ROUNDING_NOTED, SIGNIFICANT};
use super::moves::merge;
use super::place;
use crate::Cpu;
use crate::mem::tlb::Unaligned;
use crate::uop::operand::{BASE, INDEXED, address};
use crate::uop::{Handler, Uop, bail, next};

pub(crate) use float::immediate;

/// Whether the host executes what the handlers here are made of.
pub(crate) fn is_supported() -> bool {
    std::arch::is_x86_feature_detected!("avx2")
        && std::arch::is_x86_feature_detected!("fma")
        && std::arch::is_x86_feature_detected!("bmi2")
}

/// The handlers of an operation: its last source a register; memory, by kind of address (`BASE` or
/// `INDEXED`).
#[derive(Clone, Copy)]
pub(crate) struct Forms {
    pub(crate) register: Handler,
    pub(crate) memory: [Handler; 2],
    /// Size of the operand in memory.
    pub(crate) bytes: usize,
}

/// How much memory a source is, for a vector of some length.
#[derive(Clone, Copy)]
enum Size {
    /// The vector's length.
    Whole,
    Half,
    Quarter,
    Eighth,
    /// VMOVDDUP: 8 bytes for a vector of 16, otherwise the whole.
    EightOrWhole,
    Bytes(usize),
}

impl Size {
    const fn of(self, length: usize) -> usize {
        match self {
            Self::Whole => length,
            Self::Half => length / 2,
            Self::Quarter => length / 4,
            Self::Eighth => length / 8,
            Self::EightOrWhole if length == 16 => 8,
            Self::EightOrWhole => length,
            Self::Bytes(n) => n,
        }
    }
}

/// What a kernel works on.
#[derive(Clone, Copy)]
struct Sources {
    /// The first source.
    a: __m256i,
    /// The last source: what may be in memory.
    b: __m256i,
    /// The third source, of those that have one.
    c: __m256i,
    /// The immediate byte.
    imm: i32,
}

/// An operation on vectors.
trait Kernel {
    /// The memory that the last source is.
    const MEMORY: Size;
    /// It is floating-point arithmetic: done here only where it raises no exception flag that is
    /// not set already. Sources are then zero beyond the vector's length.
    const IS_FLOAT: bool = false;
    /// The rest of a scalar's register is that of the third source, not of the first one.
    const KEEPS_THIRD: bool = false;
    /// Returns the result and, for floating-point arithmetic, all ones where it is none for here.
    ///
    /// # Safety
    /// The host has what [`is_supported`] asks for.
    unsafe fn apply(s: Sources) -> (__m256i, __m256i);
}

/// A register's low 256 bits.
///
/// # Safety
/// As [`place`].
#[inline(always)]
unsafe fn get_32(cpu: *mut Cpu, number: u8) -> __m256i {
    // SAFETY: as in `place`.
    unsafe { (*place(cpu, number).cast::<Unaligned<__m256i>>()).0 }
}

/// The low `bytes` bytes of a value, the rest 0.
///
/// # Safety
/// As [`Kernel::apply`].
#[inline(always)]
unsafe fn low(value: __m256i, bytes: usize) -> __m256i {
    // SAFETY: the caller's.
    unsafe {
        let lane = _mm256_castsi256_si128(value);
        let lane = match bytes {
            4 => _mm_castps_si128(_mm_move_ss(_mm_setzero_ps(), _mm_castsi128_ps(lane))),
            8 => _mm_move_epi64(lane),
            16 => lane,
            _ => return value,
        };
        _mm256_zextsi128_si256(lane)
    }
}

/// Writes a register: `value` up to `length`, of a scalar (4 or 8) the other low 128 bits from
/// `rest`, and 0 beyond.
///
/// # Safety
/// As [`place`] and [`Kernel::apply`].
#[inline(always)]
unsafe fn put(cpu: *mut Cpu, number: u8, length: usize, value: __m256i, rest: __m256i) {
    // SAFETY: the caller's.
    unsafe {
        let lane = _mm256_castsi256_si128(value);
        let rest = _mm256_castsi256_si128(rest);
        let value = match length {
            4 => _mm256_zextsi128_si256(merge::<u32>(rest, lane)),
            8 => _mm256_zextsi128_si256(merge::<u64>(rest, lane)),
            16 => _mm256_zextsi128_si256(lane),
            _ => value,
        };
        let register = place(cpu, number).cast::<Unaligned<__m256i>>();
        *register = Unaligned(value);
        *register.add(1) = Unaligned(_mm256_setzero_si256());
    }
}

/// The host address of `$bytes` bytes at linear address `$va` through the TLB tag `$tag`; bails out
/// if the tag does not fit.
macro_rules! host_bytes {
    ($cpu:expr, $op:expr, $va:expr, $bytes:expr, $tag:ident) => {{
        let va: u64 = $va;
        let entry: *const $crate::mem::tlb::Entry = (*$cpu).tlb.entry(va);
        if (*entry).$tag != $crate::mem::tlb::tag_of(va, $bytes, (*$cpu).hot.context) {
            $crate::uop::bail!($cpu, $op);
        }
        // As in `host`.
        (&raw mut (*$cpu).hot.at.0).write_volatile($op);
        va.wrapping_add((*entry).addend)
    }};
}
use host_bytes;

/// Reads `bytes` bytes of guest memory; the rest of the value is 0.
///
/// # Safety
/// `host` is readable; and as [`Kernel::apply`].
#[inline(always)]
unsafe fn read(host: u64, bytes: usize) -> __m256i {
    /// One access, visible to no optimisation.
    macro_rules! at {
        ($t:ty) => {
            (host as *const Unaligned<$t>).read_volatile().0
        };
    }
    // SAFETY: the caller's.
    unsafe {
        let lane = match bytes {
            1 => _mm_cvtsi32_si128(i32::from(at!(u8))),
            2 => _mm_cvtsi32_si128(i32::from(at!(u16))),
            4 => _mm_cvtsi32_si128(at!(i32)),
            8 => _mm_cvtsi64_si128(at!(i64)),
            16 => at!(__m128i),
            _ => return at!(__m256i),
        };
        _mm256_zextsi128_si256(lane)
    }
}

/// Computes and writes; false if this is for the plain handler.
///
/// # Safety
/// `uop`, "Safety", and as [`Kernel::apply`].
#[inline(always)]
unsafe fn complete<K: Kernel, const LENGTH: usize>(
    cpu: *mut Cpu,
    op: *const Uop,
    b: __m256i,
) -> bool {
    // SAFETY: the caller's.
    unsafe {
        let first = get_32(cpu, (*op).detail as u8 & 31);
        let third = get_32(cpu, (*op).imm as u8 & 31);
        let rest = if K::KEEPS_THIRD { third } else { first };
        let sources = Sources {
            a: first,
            b,
            c: third,
            imm: (*op).imm,
        };
        if !K::IS_FLOAT {
            let (value, _) = K::apply(sources);
            put(cpu, (*op).dst, LENGTH, value, rest);
            return true;
        }
        let (value, bad) = K::apply(Sources {
            a: low(first, LENGTH),
            b: low(b, const { K::MEMORY.of(LENGTH) }),
            c: low(third, LENGTH),
            ..sources
        });
        let bad = _mm256_movemask_epi8(bad) as u32 & (u32::MAX >> (32 - LENGTH));
        if (*cpu).fpu.mxcsr & SIGNIFICANT != ROUNDING_NOTED || bad != 0 {
            return false;
        }
        put(cpu, (*op).dst, LENGTH, value, rest);
        true
    }
}

#[target_feature(enable = "avx2,fma,bmi2")]
unsafe fn register<K: Kernel, const LENGTH: usize>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety"; chosen only where the host is good for it.
    unsafe {
        let b = get_32(cpu, (*op).src);
        if !complete::<K, LENGTH>(cpu, op, b) {
            bail!(cpu, op);
        }
        next!(cpu, op.add(1))
    }
}

#[target_feature(enable = "avx2,fma,bmi2")]
unsafe fn memory<K: Kernel, const LENGTH: usize, const A: u8>(
    cpu: *mut Cpu,
    op: *const Uop,
) -> *const Uop {
    // SAFETY: as in `register`.
    unsafe {
        let bytes = const { K::MEMORY.of(LENGTH) };
        let at = host_bytes!(cpu, op, address::<A>(cpu, op), bytes, read);
        if !complete::<K, LENGTH>(cpu, op, read(at, bytes)) {
            bail!(cpu, op);
        }
        next!(cpu, op.add(1))
    }
}

/// The handlers of a kernel for results of `LENGTH` bytes.
fn forms<K: Kernel, const LENGTH: usize>() -> Forms {
    Forms {
        register: register::<K, LENGTH>,
        memory: [memory::<K, LENGTH, BASE>, memory::<K, LENGTH, INDEXED>],
        bytes: K::MEMORY.of(LENGTH),
    }
}

/// The handlers of a kernel for vectors of 16 or 32 bytes.
fn packed<K: Kernel>(length: u8) -> Forms {
    match length {
        32 => forms::<K, 32>(),
        _ => forms::<K, 16>(),
    }
}

/// Returns the handlers of an instruction on vectors of `length` bytes; some have others with an
/// immediate than with a register for their second operand.
pub(crate) fn forms_of(mnemonic: Mnemonic, length: u8, has_immediate: bool) -> Option<Forms> {
    if has_immediate {
        return immediate::table(mnemonic, length);
    }
    integer::table(mnemonic, length)
        .or_else(|| scalar::table(mnemonic))
        .or_else(|| float::table(mnemonic, length))
        .or_else(|| fused::table(mnemonic, length))
        .or_else(|| moves::table(mnemonic))
}

/// All handlers, for the guard of tail dispatch.
#[cfg(test)]
pub(crate) fn handlers() -> Vec<Handler> {
    let mut all = moves::handlers();
    for mnemonic in Mnemonic::values() {
        for (length, has_immediate) in [(16, false), (16, true), (32, false), (32, true)] {
            if let Some(forms) = forms_of(mnemonic, length, has_immediate) {
                all.push(forms.register);
                all.extend(forms.memory);
            }
        }
    }
    all
}
