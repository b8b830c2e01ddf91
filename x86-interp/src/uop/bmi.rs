//! BMI1, BMI2 and the bit counts: the hot forms. Operands in memory come through the spare register.

use super::operand::{get, imm, set};
use super::{Handler, Uop, next};
use crate::Cpu;
use crate::alu::{bits, extract};
use crate::flags::LazyFlags;
use crate::width::Width;

/// Handlers by size: 32, 64 bits.
pub(crate) type BySize = [Handler; 2];

macro_rules! sizes {
    ($f:ident $(, $x:ty)*) => {
        [$f::<u32 $(, $x)*>, $f::<u64 $(, $x)*>]
    };
}

/// A function of one operand that sets all status flags.
trait Unary {
    fn apply<W: Width>(a: W) -> (W, LazyFlags);
}

/// A function of two operands that sets all status flags.
trait Flagged {
    fn apply<W: Width>(a: W, b: W) -> (W, LazyFlags);
}

/// A function of two operands that leaves the flags alone.
trait Quiet {
    fn apply<W: Width>(a: W, b: W) -> W;
}

macro_rules! functions {
    ($trait:ident -> $result:ty: $($name:ident, |$($x:ident),+| $body:expr;)*) => {$(
        struct $name;
        impl $trait for $name {
            #[inline(always)]
            fn apply<W: Width>($($x: W),+) -> $result {
                $body
            }
        }
    )*};
}

/// Flags of a result with CF chosen: OF and AF are 0.
#[inline(always)]
fn with_carry<W: Width>(result: W, carry: bool) -> (W, LazyFlags) {
    (result, LazyFlags::carry_overflow(result, carry, false))
}

/// A result of the value functions, which name each flag.
#[inline(always)]
fn named<W: Width>((result, flags): (W, vmx_model::arch::Rflags)) -> (W, LazyFlags) {
    (result, LazyFlags::from_rflags(flags))
}

functions! { Unary -> (W, LazyFlags):
    Blsr, |a| with_carry(extract::blsr(a).0, a == W::default());
    Blsi, |a| with_carry(extract::blsi(a).0, a != W::default());
    Blsmsk, |a| with_carry(extract::blsmsk(a).0, a == W::default());
    Tzcnt, |a| with_carry(bits::tzcnt(a).0, a == W::default());
    Lzcnt, |a| with_carry(bits::lzcnt(a).0, a == W::default());
    Popcnt, |a| named(bits::popcnt(a));
}

functions! { Flagged -> (W, LazyFlags):
    Andn, |a, b| {
        let result = W::from_u64(!a.to_u64() & b.to_u64());
        (result, LazyFlags::logic(result))
    };
    Bzhi, |a, b| with_carry(extract::bzhi(a, b).0, b.to_u64() as u8 >= W::BITS as u8);
    Bextr, |a, b| named(extract::bextr(a, b));
}

/// The shift count of an operand.
#[inline(always)]
fn count<W: Width>(b: W) -> u32 {
    b.to_u64() as u32 & (W::BITS - 1)
}

functions! { Quiet -> W:
    Shlx, |a, b| W::from_u64(a.to_u64() << count(b));
    Shrx, |a, b| W::from_u64(a.to_u64() >> count(b));
    Sarx, |a, b| W::from_u64((a.to_i64() >> count(b)) as u64);
    Pdep, |a, b| extract::pdep(a, b);
    Pext, |a, b| extract::pext(a, b);
}

unsafe fn unary<W: Width, O: Unary>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe {
        let (result, flags) = O::apply(get::<W>(cpu, (*op).src));
        set(cpu, (*op).dst, result);
        (*cpu).flags = flags;
        next!(cpu, op.add(1))
    }
}

unsafe fn flagged<W: Width, O: Flagged>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe {
        let (a, b) = (get::<W>(cpu, (*op).src), get::<W>(cpu, (*op).base));
        let (result, flags) = O::apply(a, b);
        set(cpu, (*op).dst, result);
        (*cpu).flags = flags;
        next!(cpu, op.add(1))
    }
}

unsafe fn quiet<W: Width, O: Quiet>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe {
        let (a, b) = (get::<W>(cpu, (*op).src), get::<W>(cpu, (*op).base));
        set(cpu, (*op).dst, O::apply(a, b));
        next!(cpu, op.add(1))
    }
}

unsafe fn rorx<W: Width>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe {
        let a = get::<W>(cpu, (*op).src).to_u64();
        let by = count(imm::<W>(op));
        let result = if W::BITS == 64 {
            a.rotate_right(by)
        } else {
            u64::from((a as u32).rotate_right(by))
        };
        set(cpu, (*op).dst, W::from_u64(result));
        next!(cpu, op.add(1))
    }
}

/// MULX: the upper half to `dst`, written last, the lower one to `index`.
unsafe fn mulx<W: Width>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe {
        let (a, b) = (get::<W>(cpu, (*op).src), get::<W>(cpu, RDX));
        let product = u128::from(a.to_u64()) * u128::from(b.to_u64());
        set(cpu, (*op).index, W::from_u64(product as u64));
        set(cpu, (*op).dst, W::from_u64((product >> W::BITS) as u64));
        next!(cpu, op.add(1))
    }
}

/// RDX in the register file.
const RDX: u8 = 2 * 8;

/// PDEP and PEXT where the host executes them itself.
#[cfg(target_arch = "x86_64")]
mod host {
    use core::arch::x86_64::{_pdep_u64, _pext_u64};

    use super::*;

    macro_rules! on_host {
        ($name:ident, $intrinsic:ident) => {
            #[target_feature(enable = "bmi2")]
            pub(super) unsafe fn $name<W: Width>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
                // SAFETY: `uop`, "Safety"; the handler is chosen where the host has BMI2.
                unsafe {
                    let (a, b) = (get::<W>(cpu, (*op).src), get::<W>(cpu, (*op).base));
                    let result = $intrinsic(a.to_u64(), b.to_u64());
                    set(cpu, (*op).dst, W::from_u64(result));
                    next!(cpu, op.add(1))
                }
            }
        };
    }
    on_host!(pdep, _pdep_u64);
    on_host!(pext, _pext_u64);

    pub(super) const PDEP: BySize = sizes!(pdep);
    pub(super) const PEXT: BySize = sizes!(pext);
}

/// Of one operand: BLSR, BLSI, BLSMSK, TZCNT, LZCNT, POPCNT.
pub(crate) const UNARY: [BySize; 6] = [
    sizes!(unary, Blsr),
    sizes!(unary, Blsi),
    sizes!(unary, Blsmsk),
    sizes!(unary, Tzcnt),
    sizes!(unary, Lzcnt),
    sizes!(unary, Popcnt),
];
/// Of two, in `src` and `base`: ANDN, BZHI, BEXTR, SHLX, SHRX, SARX, PDEP, PEXT.
pub(crate) const BINARY: [BySize; 8] = [
    sizes!(flagged, Andn),
    sizes!(flagged, Bzhi),
    sizes!(flagged, Bextr),
    sizes!(quiet, Shlx),
    sizes!(quiet, Shrx),
    sizes!(quiet, Sarx),
    sizes!(quiet, Pdep),
    sizes!(quiet, Pext),
];
/// RORX.
pub(crate) const RORX: BySize = sizes!(rorx);
/// MULX.
pub(crate) const MULX: BySize = sizes!(mulx);

/// Returns row `op` of [`BINARY`], or what this host does faster.
pub(crate) fn binary(op: usize) -> BySize {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("bmi2") {
        match op {
            6 => return host::PDEP,
            7 => return host::PEXT,
            _ => {}
        }
    }
    BINARY[op]
}

/// All handlers of this file.
#[cfg(test)]
pub(crate) fn handlers() -> Vec<Handler> {
    let mut all: Vec<Handler> = UNARY.iter().chain(&BINARY).flatten().copied().collect();
    all.extend(RORX);
    all.extend(MULX);
    #[cfg(target_arch = "x86_64")]
    all.extend(host::PDEP.iter().chain(&host::PEXT));
    all
}
