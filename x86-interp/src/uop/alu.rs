//! Arithmetic, logic, shifts: the hot forms.

use vmx_model::arch::Rflags;

use super::operand::{address, get, imm, set};
use super::{Handler, Uop, host, next};
use crate::Cpu;
use crate::alu::shift::{self, Shifted};
use crate::flags::LazyFlags;
use crate::mem::tlb::{read_host, write_host};
use crate::width::Width;

/// An operation on two operands.
trait Binary {
    /// Whether the result is written.
    const WRITES: bool = true;
    /// Returns the result and the flags.
    fn apply<W: Width>(a: W, b: W, flags: LazyFlags) -> (W, LazyFlags);
}

macro_rules! binary {
    ($($(#[$doc:meta])* $name:ident, $writes:literal, |$a:ident, $b:ident, $f:ident| $body:expr;)*) => {$(
        $(#[$doc])*
        struct $name;
        impl Binary for $name {
            const WRITES: bool = $writes;
            #[inline(always)]
            fn apply<W: Width>($a: W, $b: W, $f: LazyFlags) -> (W, LazyFlags) {
                $body
            }
        }
    )*};
}

#[inline(always)]
fn word<W: Width>(a: W, b: W, f: impl Fn(u64, u64) -> u64) -> W {
    W::from_u64(f(a.to_u64(), b.to_u64()))
}

#[inline(always)]
fn sum<W: Width>(a: W, b: W, carry: bool) -> (W, LazyFlags) {
    let r = word(a, b, |a, b| {
        a.wrapping_add(b).wrapping_add(u64::from(carry))
    });
    (r, LazyFlags::add(a, b, r))
}

#[inline(always)]
fn difference<W: Width>(a: W, b: W, borrow: bool) -> (W, LazyFlags) {
    let r = word(a, b, |a, b| {
        a.wrapping_sub(b).wrapping_sub(u64::from(borrow))
    });
    (r, LazyFlags::sub(a, b, r))
}

#[inline(always)]
fn logic<W: Width>(a: W, b: W, f: impl Fn(u64, u64) -> u64) -> (W, LazyFlags) {
    let r = word(a, b, f);
    (r, LazyFlags::logic(r))
}

binary! {
    /// ADD.
    Add, true, |a, b, _f| sum(a, b, false);
    /// OR.
    Or, true, |a, b, _f| logic(a, b, |a, b| a | b);
    /// ADC.
    Adc, true, |a, b, f| sum(a, b, f.cf());
    /// SBB.
    Sbb, true, |a, b, f| difference(a, b, f.cf());
    /// AND.
    And, true, |a, b, _f| logic(a, b, |a, b| a & b);
    /// SUB.
    Sub, true, |a, b, _f| difference(a, b, false);
    /// XOR.
    Xor, true, |a, b, _f| logic(a, b, |a, b| a ^ b);
    /// CMP.
    Cmp, false, |a, b, _f| difference(a, b, false);
    /// TEST.
    Test, false, |a, b, _f| logic(a, b, |a, b| a & b);
}

/// Handlers by size: 8, 16, 32, 64 bits.
pub(crate) type BySize = [Handler; 4];

/// One handler for each size.
macro_rules! sizes {
    ($f:ident $(, $x:tt)*) => {
        [$f::<u8 $(, $x)*>, $f::<u16 $(, $x)*>, $f::<u32 $(, $x)*>, $f::<u64 $(, $x)*>]
    };
}
pub(crate) use sizes;

/// One handler for each kind of address and size.
macro_rules! addresses {
    ($f:ident $(, $x:tt)*) => {
        [sizes!($f $(, $x)*, 0), sizes!($f $(, $x)*, 1), sizes!($f $(, $x)*, 2)]
    };
}
pub(crate) use addresses;

/// One row for each binary operation, in the order of the instruction encoding, then TEST.
macro_rules! operations {
    ($rows:ident, $f:ident $(, $x:tt)*) => {
        [
            $rows!($f, Add $(, $x)*), $rows!($f, Or $(, $x)*), $rows!($f, Adc $(, $x)*),
            $rows!($f, Sbb $(, $x)*), $rows!($f, And $(, $x)*), $rows!($f, Sub $(, $x)*),
            $rows!($f, Xor $(, $x)*), $rows!($f, Cmp $(, $x)*), $rows!($f, Test $(, $x)*),
        ]
    };
}

/// Register and register.
pub(crate) const RR: [BySize; 9] = operations!(sizes, rr, false);
/// As [`RR`], where nobody looks at the flags.
pub(crate) const RR_DEAD: [BySize; 9] = operations!(sizes, rr, true);
/// Register and immediate.
pub(crate) const RI: [BySize; 9] = operations!(sizes, ri, false);
/// As [`RI`], where nobody looks at the flags.
pub(crate) const RI_DEAD: [BySize; 9] = operations!(sizes, ri, true);
/// Register and memory.
pub(crate) const RM: [[BySize; 3]; 9] = operations!(addresses, rm);
/// Memory and register.
pub(crate) const MR: [[BySize; 3]; 9] = operations!(addresses, mr);
/// Memory and immediate.
pub(crate) const MI: [[BySize; 3]; 9] = operations!(addresses, mi);

unsafe fn rr<W: Width, O: Binary, const DEAD: bool>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe {
        let (a, b) = (get::<W>(cpu, (*op).dst), get::<W>(cpu, (*op).src));
        finish::<W, O, DEAD>(cpu, op, a, b);
        next!(cpu, op.add(1))
    }
}

unsafe fn ri<W: Width, O: Binary, const DEAD: bool>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe {
        let (a, b) = (get::<W>(cpu, (*op).dst), imm::<W>(op));
        finish::<W, O, DEAD>(cpu, op, a, b);
        next!(cpu, op.add(1))
    }
}

unsafe fn rm<W: Width, O: Binary, const A: u8>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe {
        let at = host!(cpu, op, address::<A>(cpu, op), W, read);
        let (a, b) = (get::<W>(cpu, (*op).dst), read_host::<W>(at));
        finish::<W, O, false>(cpu, op, a, b);
        next!(cpu, op.add(1))
    }
}

/// Writes the result to the destination register.
///
/// # Safety
/// `uop`, "Safety".
#[inline(always)]
unsafe fn finish<W: Width, O: Binary, const DEAD: bool>(cpu: *mut Cpu, op: *const Uop, a: W, b: W) {
    // SAFETY: `uop`, "Safety".
    unsafe {
        let (result, flags) = O::apply(a, b, (*cpu).flags);
        if O::WRITES {
            set(cpu, (*op).dst, result);
        }
        if !DEAD {
            (*cpu).flags = flags;
        }
    }
}

/// The body of a form with a memory destination.
macro_rules! update {
    ($cpu:ident, $op:ident, $W:ident, $O:ident, $A:ident, $b:expr) => {{
        let at = if $O::WRITES {
            host!($cpu, $op, address::<$A>($cpu, $op), $W, write)
        } else {
            host!($cpu, $op, address::<$A>($cpu, $op), $W, read)
        };
        let (result, flags) = $O::apply(read_host::<$W>(at), $b, (*$cpu).flags);
        if $O::WRITES {
            write_host(at, result);
        }
        (*$cpu).flags = flags;
        next!($cpu, $op.add(1))
    }};
}

unsafe fn mr<W: Width, O: Binary, const A: u8>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe { update!(cpu, op, W, O, A, get::<W>(cpu, (*op).src)) }
}

unsafe fn mi<W: Width, O: Binary, const A: u8>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe { update!(cpu, op, W, O, A, imm::<W>(op)) }
}

/// An operation on one operand.
trait Unary {
    /// Returns the result and the flags.
    fn apply<W: Width>(a: W, flags: LazyFlags) -> (W, LazyFlags);
}

macro_rules! unary {
    ($($(#[$doc:meta])* $name:ident, |$a:ident, $f:ident| $body:expr;)*) => {$(
        $(#[$doc])*
        struct $name;
        impl Unary for $name {
            #[inline(always)]
            fn apply<W: Width>($a: W, $f: LazyFlags) -> (W, LazyFlags) {
                $body
            }
        }
    )*};
}

unary! {
    /// INC.
    Inc, |a, f| {
        let (r, flags) = sum(a, W::from_u64(1), false);
        (r, flags.keeping_carry(f))
    };
    /// DEC.
    Dec, |a, f| {
        let (r, flags) = difference(a, W::from_u64(1), false);
        (r, flags.keeping_carry(f))
    };
    /// NEG.
    Neg, |a, _f| difference(W::default(), a, false);
    /// NOT.
    Not, |a, f| (W::from_u64(!a.to_u64()), f);
}

/// INC, DEC, NEG, NOT of a register.
pub(crate) const UNARY_R: [BySize; 4] = [
    sizes!(unary_r, Inc, false),
    sizes!(unary_r, Dec, false),
    sizes!(unary_r, Neg, false),
    sizes!(unary_r, Not, true),
];
/// As [`UNARY_R`], where nobody looks at the flags.
pub(crate) const UNARY_R_DEAD: [BySize; 4] = [
    sizes!(unary_r, Inc, true),
    sizes!(unary_r, Dec, true),
    sizes!(unary_r, Neg, true),
    sizes!(unary_r, Not, true),
];
/// INC, DEC, NEG, NOT of memory.
pub(crate) const UNARY_M: [[BySize; 3]; 4] = [
    addresses!(unary_m, Inc),
    addresses!(unary_m, Dec),
    addresses!(unary_m, Neg),
    addresses!(unary_m, Not),
];

unsafe fn unary_r<W: Width, O: Unary, const DEAD: bool>(
    cpu: *mut Cpu,
    op: *const Uop,
) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe {
        let (result, flags) = O::apply(get::<W>(cpu, (*op).dst), (*cpu).flags);
        set(cpu, (*op).dst, result);
        if !DEAD {
            (*cpu).flags = flags;
        }
        next!(cpu, op.add(1))
    }
}

unsafe fn unary_m<W: Width, O: Unary, const A: u8>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe {
        let at = host!(cpu, op, address::<A>(cpu, op), W, write);
        let (result, flags) = O::apply(read_host::<W>(at), (*cpu).flags);
        write_host(at, result);
        (*cpu).flags = flags;
        next!(cpu, op.add(1))
    }
}

/// A shift or rotate.
trait Shift {
    /// Returns the value and the flags that change.
    fn apply<W: Width>(a: W, count: u8) -> Shifted<W>;
}

macro_rules! shifts {
    ($($(#[$doc:meta])* $name:ident, $f:ident, |$a:ident, $count:ident| $body:expr;)*) => {$(
        $(#[$doc])*
        struct $name;
        impl Shift for $name {
            #[inline(always)]
            fn apply<W: Width>($a: W, $count: u8) -> Shifted<W> {
                // The value functions work for all widths and counts; counts below the width
                // have a shorter way.
                let $count = u32::from($count) & if W::BITS == 64 { 0x3f } else { 0x1f };
                if W::BITS < 32 || $count == 0 {
                    return shift::$f($a, $count as u8);
                }
                $body
            }
        }
    )*};
}

/// The result of a shift; `overflow` is OF.
#[inline(always)]
fn shifted<W: Width>(value: u64, carry: u64, overflow: impl Fn(u64, bool) -> bool) -> Shifted<W> {
    let value = W::from_u64(value);
    let carry = carry & 1 != 0;
    let overflow = overflow(value.to_u64(), carry);
    Shifted {
        value,
        flags: crate::alu::flag_if(Rflags::CF, carry) | crate::alu::flag_if(Rflags::OF, overflow),
        mask: Rflags::STATUS,
    }
}

#[inline(always)]
fn rotated<W: Width>(shifted: Shifted<W>) -> Shifted<W> {
    Shifted {
        mask: Rflags::CF | Rflags::OF,
        ..shifted
    }
}

#[inline(always)]
fn rotate_left<W: Width>(a: W, count: u32) -> u64 {
    if W::BITS == 64 {
        a.to_u64().rotate_left(count)
    } else {
        u64::from((a.to_u64() as u32).rotate_left(count))
    }
}

#[inline(always)]
fn top_bits_differ<W: Width>(value: u64) -> bool {
    (value ^ value << 1) & W::SIGN != 0
}

shifts! {
    /// ROL.
    Rol, rol, |a, count| {
        let r = rotate_left(a, count);
        rotated(shifted(r, r, |r, carry| carry != (r & W::SIGN != 0)))
    };
    /// ROR.
    Ror, ror, |a, count| {
        let r = rotate_left(a, W::BITS - count);
        rotated(shifted(r, r >> (W::BITS - 1), |r, _| top_bits_differ::<W>(r)))
    };
    /// SHL.
    Shl, shl, |a, count| {
        let a = a.to_u64();
        let carry = a >> (W::BITS - count);
        shifted(a << count, carry, |r, carry| carry != (r & W::SIGN != 0))
    };
    /// SHR.
    Shr, shr, |a, count| {
        let a = a.to_u64();
        shifted(a >> count, a >> (count - 1), |r, _| top_bits_differ::<W>(r))
    };
    /// SAR.
    Sar, sar, |a, count| {
        let a = a.to_i64();
        shifted((a >> count) as u64, (a >> (count - 1)) as u64, |_, _| false)
    };
}

/// One row for each shift.
macro_rules! all_shifts {
    ($f:ident $(, $x:tt)*) => {
        [
            sizes!($f, Rol $(, $x)*), sizes!($f, Ror $(, $x)*), sizes!($f, Shl $(, $x)*),
            sizes!($f, Shr $(, $x)*), sizes!($f, Sar $(, $x)*),
        ]
    };
}

/// ROL, ROR, SHL, SHR, SAR of a register by an immediate, which is in range and not 0.
pub(crate) const SHIFT_I: [BySize; 5] = all_shifts!(shift_i, false);
/// As [`SHIFT_I`], where nobody looks at the flags.
pub(crate) const SHIFT_I_DEAD: [BySize; 5] = all_shifts!(shift_i, true);
/// ROL, ROR, SHL, SHR, SAR of a register by CL.
pub(crate) const SHIFT_CL: [BySize; 5] = all_shifts!(shift_cl);

unsafe fn shift_i<W: Width, O: Shift, const DEAD: bool>(
    cpu: *mut Cpu,
    op: *const Uop,
) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe {
        let shifted = O::apply(get::<W>(cpu, (*op).dst), (*op).imm as u8);
        set(cpu, (*op).dst, shifted.value);
        if !DEAD {
            set_shift_flags(cpu, shifted);
        }
        next!(cpu, op.add(1))
    }
}

unsafe fn shift_cl<W: Width, O: Shift>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe {
        let shifted = O::apply(get::<W>(cpu, (*op).dst), get::<u8>(cpu, 8));
        set(cpu, (*op).dst, shifted.value);
        set_shift_flags(cpu, shifted);
        next!(cpu, op.add(1))
    }
}

/// Sets the flags of a shift or rotate.
///
/// # Safety
/// `uop`, "Safety".
#[inline(always)]
unsafe fn set_shift_flags<W: Width>(cpu: *mut Cpu, shifted: Shifted<W>) {
    let carry = shifted.flags.contains(Rflags::CF);
    let overflow = shifted.flags.contains(Rflags::OF);
    // SAFETY: `uop`, "Safety".
    unsafe {
        if shifted.mask == Rflags::STATUS {
            (*cpu).flags = LazyFlags::carry_overflow(shifted.value, carry, overflow);
        } else if !shifted.mask.is_empty() {
            (*cpu).flags = (*cpu).flags.with_carry_overflow(carry, overflow);
        }
    }
}

/// IMUL of two registers into the first: 16, 32, 64 bits (8 is not encodable).
pub(crate) const IMUL_RR: BySize = sizes!(imul_rr);
/// IMUL of a register and an immediate.
pub(crate) const IMUL_RI: BySize = sizes!(imul_ri);

unsafe fn imul_rr<W: Width>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe {
        multiply(cpu, op, get::<W>(cpu, (*op).dst), get::<W>(cpu, (*op).src));
        next!(cpu, op.add(1))
    }
}

unsafe fn imul_ri<W: Width>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe {
        multiply(cpu, op, get::<W>(cpu, (*op).src), imm::<W>(op));
        next!(cpu, op.add(1))
    }
}

/// # Safety
/// `uop`, "Safety".
#[inline(always)]
unsafe fn multiply<W: Width>(cpu: *mut Cpu, op: *const Uop, a: W, b: W) {
    let (low, overflow) = if W::BITS == 64 {
        a.to_i64().overflowing_mul(b.to_i64())
    } else {
        let wide = a.to_i64().wrapping_mul(b.to_i64());
        (wide, W::from_u64(wide as u64).to_i64() != wide)
    };
    let low = W::from_u64(low as u64);
    // SAFETY: `uop`, "Safety".
    unsafe {
        set(cpu, (*op).dst, low);
        (*cpu).flags = LazyFlags::carry_overflow(low, overflow, overflow);
    }
}
