//! Floating-point arithmetic of SSE, SSE2 and SSE3.
//!
//! SDM Vol. 1, "SSE and SSE2 SIMD Floating-Point Exceptions". The host executes the operation
//! under the guest's MXCSR with all exceptions masked; what it flags decides whether #XM comes
//! before the result is written ([`super::under_mxcsr`]). What not every host computes, or not alike,
//! is computed in software, in the files beside this one.
#![expect(
    unsafe_code,
    reason = "the host's SIMD unit computes, under a given MXCSR"
)]

use core::arch::asm;

use iced_x86::{Code, Mnemonic};
use vmx_model::arch::Rflags;

use super::arithmetic::{Arithmetic, OfElements, Pairs, add, divide, multiply, narrow, subtract};
use super::binary::{Element, Format};
use super::under_mxcsr::{Rounded, all_masked, with_flags};
use super::vector::{Elements, is_vector_form};
use crate::exec::Row;
use crate::exec::form::plain;
use crate::insn::{Insn, Plain};
use crate::{Cpu, Exec};

/// Executes an instruction of two XMM registers on the host.
macro_rules! on_host {
    ($name:literal) => {
        |to: u128, from: u128, mxcsr: &mut u32| -> u128 {
            let (mut own, mut guest) = (0_u32, all_masked(*mxcsr));
            let (mut to, from) = (to, from);
            // SAFETY: works on the locals alone; MXCSR is put back, and no exception is unmasked.
            unsafe {
                asm!(
                    "stmxcsr [{own}]", "ldmxcsr [{guest}]",
                    "movups {x}, [{to}]", "movups {y}, [{from}]",
                    concat!($name, " {x}, {y}"),
                    "movups [{to}], {x}",
                    "stmxcsr [{guest}]", "ldmxcsr [{own}]",
                    own = in(reg) &raw mut own, guest = in(reg) &raw mut guest,
                    to = in(reg) &raw mut to, from = in(reg) &raw const from,
                    x = out(xmm_reg) _, y = out(xmm_reg) _,
                    options(nostack),
                );
            }
            *mxcsr = with_flags(*mxcsr, guest);
            to
        }
    };
}

/// Executes a conversion between operand `$to` and `$from`, one a general-purpose register.
macro_rules! convert_on_host {
    (to_integer $name:literal $r:literal) => {
        |from: u128, mxcsr: &mut u32| -> u64 {
            let (mut own, mut guest) = (0_u32, all_masked(*mxcsr));
            let mut result = 0_u64;
            // SAFETY: as in `on_host`.
            unsafe {
                asm!(
                    "stmxcsr [{own}]", "ldmxcsr [{guest}]",
                    "movups {y}, [{from}]",
                    concat!($name, " {r", $r, "}, {y}"),
                    "stmxcsr [{guest}]", "ldmxcsr [{own}]",
                    own = in(reg) &raw mut own, guest = in(reg) &raw mut guest,
                    from = in(reg) &raw const from,
                    r = inout(reg) result, y = out(xmm_reg) _,
                    options(nostack),
                );
            }
            *mxcsr = with_flags(*mxcsr, guest);
            result
        }
    };
    (from_integer $name:literal $r:literal) => {
        |to: u128, from: u64, mxcsr: &mut u32| -> u128 {
            let (mut own, mut guest, mut to) = (0_u32, all_masked(*mxcsr), to);
            // SAFETY: as in `on_host`.
            unsafe {
                asm!(
                    "stmxcsr [{own}]", "ldmxcsr [{guest}]",
                    "movups {x}, [{to}]",
                    concat!($name, " {x}, {r", $r, "}"),
                    "movups [{to}], {x}",
                    "stmxcsr [{guest}]", "ldmxcsr [{own}]",
                    own = in(reg) &raw mut own, guest = in(reg) &raw mut guest,
                    to = in(reg) &raw mut to,
                    r = in(reg) from, x = out(xmm_reg) _,
                    options(nostack),
                );
            }
            *mxcsr = with_flags(*mxcsr, guest);
            to
        }
    };
}

/// Executes a comparison on the host: the flags that it sets.
macro_rules! compare_on_host {
    ($name:literal) => {
        |to: u128, from: u128, mxcsr: &mut u32| -> u64 {
            let (mut own, mut guest, mut flags) = (0_u32, all_masked(*mxcsr), 0_u64);
            // SAFETY: as in `on_host`; the stack is used and left as it was.
            unsafe {
                asm!(
                    "stmxcsr [{own}]", "ldmxcsr [{guest}]",
                    "movups {x}, [{to}]", "movups {y}, [{from}]",
                    concat!($name, " {x}, {y}"),
                    "pushfq", "pop {flags}",
                    "stmxcsr [{guest}]", "ldmxcsr [{own}]",
                    own = in(reg) &raw mut own, guest = in(reg) &raw mut guest,
                    to = in(reg) &raw const to, from = in(reg) &raw const from,
                    flags = inout(reg) flags,
                    x = out(xmm_reg) _, y = out(xmm_reg) _,
                );
            }
            *mxcsr = with_flags(*mxcsr, guest);
            flags
        }
    };
}

/// A handler: arithmetic by the host's instruction `$name` on elements of type `$e`, of which the pairs
/// with even numbers go through `$even` and the others through `$odd`.
macro_rules! arithmetic {
    ($pairs:ident $e:ident $rounded:ident $name:literal, $even:ident $odd:ident) => {{
        fn handler(cpu: &mut Cpu, insn: &Insn) -> Exec {
            let functions: [OfElements; 2] = [$even, $odd];
            let f = Arithmetic {
                pairs: Pairs::$pairs,
                format: <$e>::FORMAT,
                functions,
            };
            let (bytes, f) = (<$e>::BITS as usize / 8, f.on_host::<$e>(on_host!($name)));
            match Pairs::$pairs {
                Pairs::Lowest => cpu.scalar_float(insn, bytes, Rounded::$rounded, f),
                _ => cpu.packed_float(insn, bytes, Rounded::$rounded, f),
            }
        }
        handler as Plain
    }};
}

/// A handler: the host's instruction `$name` on elements of `$bytes` bytes, lane by lane.
macro_rules! packed {
    ($name:literal, $bytes:literal, $rounded:expr) => {{
        fn handler(cpu: &mut Cpu, insn: &Insn) -> Exec {
            cpu.packed_float(insn, $bytes, $rounded, on_host!($name))
        }
        handler as Plain
    }};
}

/// A handler: the host's instruction `$name` on the lowest elements, of `$bytes` bytes in memory.
macro_rules! scalar {
    ($name:literal, $bytes:literal, $rounded:expr) => {{
        fn handler(cpu: &mut Cpu, insn: &Insn) -> Exec {
            cpu.scalar_float(insn, $bytes, $rounded, on_host!($name))
        }
        handler as Plain
    }};
}

/// A handler: a conversion to elements twice as wide, of `$bytes` bytes.
macro_rules! widening {
    ($name:literal, $bytes:literal) => {{
        fn handler(cpu: &mut Cpu, insn: &Insn) -> Exec {
            cpu.widening_float(insn, $bytes, on_host!($name))
        }
        handler as Plain
    }};
}

/// A handler: a conversion to elements half as wide, of `$bytes` bytes.
macro_rules! narrowing {
    ($name:literal, $bytes:literal, $rounded:expr) => {{
        fn handler(cpu: &mut Cpu, insn: &Insn) -> Exec {
            cpu.narrowing_float(insn, $bytes, $rounded, on_host!($name))
        }
        handler as Plain
    }};
}

/// A handler: a comparison that sets ZF, PF and CF and clears the other status flags.
macro_rules! ordered {
    ($name:literal, $bytes:literal) => {{
        fn handler(cpu: &mut Cpu, insn: &Insn) -> Exec {
            cpu.check_vector(insn)?;
            let from = cpu.read_element(insn, 1, $bytes)?;
            let to = cpu.register_lanes(insn, 0)[0];
            let compare = compare_on_host!($name);
            let flags = cpu.compute(&insn.vector, |_| false, |m| compare(to, from, m))?;
            cpu.set_status(Rflags::STATUS, Rflags::from_bits_retain(flags));
            Ok(())
        }
        handler as Plain
    }};
}

/// A handler: a conversion to a general-purpose register.
macro_rules! to_integer {
    ($name:literal, $bytes:literal) => {{
        fn handler(cpu: &mut Cpu, insn: &Insn) -> Exec {
            cpu.check_vector(insn)?;
            let from = cpu.read_element(insn, 1, $bytes)?;
            let convert = match is_quadword(insn.code, 0) {
                true => convert_on_host!(to_integer $name ":r"),
                false => convert_on_host!(to_integer $name ":e"),
            };
            let value = cpu.compute(&insn.vector, |_| false, |m| convert(from, m))?;
            // The upper half of a doubleword's register is cleared.
            cpu.write(insn, 0, value)
        }
        handler as Plain
    }};
}

/// A handler: a conversion from a general-purpose register or memory.
macro_rules! from_integer {
    ($name:literal) => {{
        fn handler(cpu: &mut Cpu, insn: &Insn) -> Exec {
            cpu.check_vector(insn)?;
            let n = insn.last_source();
            let (from, convert): (u64, FromInteger) = match is_quadword(insn.code, n as u32) {
                true => (
                    cpu.read::<u64>(insn, n)?,
                    convert_on_host!(from_integer $name ":r"),
                ),
                false => (
                    u64::from(cpu.read::<u32>(insn, n)?),
                    convert_on_host!(from_integer $name ":e"),
                ),
            };
            let to = cpu.register_lanes(insn, insn.first_source())[0];
            let value = cpu.compute(&insn.vector, |_| false, |m| convert(to, from, m))?;
            cpu.write_vector(insn, [value, 0, 0, 0], Elements { bytes: 16, count: 1 })
        }
        handler as Plain
    }};
}

/// Converts an integer into the lowest element of a vector.
type FromInteger = fn(u128, u64, &mut u32) -> u128;

/// Whether operand `n` is a general-purpose register of 64 bits, or memory of as many.
fn is_quadword(code: Code, n: u32) -> bool {
    use iced_x86::OpCodeOperandKind as K;
    matches!(code.op_code().op_kind(n), K::r64_reg | K::r64_or_mem)
}

/// Returns who executes an instruction of this file.
pub(super) fn lookup(code: Code) -> Option<Row> {
    let tables = [arithmetic, comparison, conversion];
    if !is_vector_form(code) {
        return None;
    }
    tables
        .iter()
        .find_map(|table| table(code.mnemonic()))
        .and_then(plain)
}

#[rustfmt::skip]
fn arithmetic(mnemonic: Mnemonic) -> Option<Plain> {
    use Mnemonic as M;
    use Rounded::Never;
    Some(match mnemonic {
        M::Addps | M::Vaddps => arithmetic!(Each u32 Single "addps", add add),
        M::Addpd | M::Vaddpd => arithmetic!(Each u64 Double "addpd", add add),
        M::Addss | M::Vaddss => arithmetic!(Lowest u32 Single "addss", add add),
        M::Addsd | M::Vaddsd => arithmetic!(Lowest u64 Double "addsd", add add),
        M::Subps | M::Vsubps => arithmetic!(Each u32 Single "subps", subtract subtract),
        M::Subpd | M::Vsubpd => arithmetic!(Each u64 Double "subpd", subtract subtract),
        M::Subss | M::Vsubss => arithmetic!(Lowest u32 Single "subss", subtract subtract),
        M::Subsd | M::Vsubsd => arithmetic!(Lowest u64 Double "subsd", subtract subtract),
        M::Mulps | M::Vmulps => arithmetic!(Each u32 Single "mulps", multiply multiply),
        M::Mulpd | M::Vmulpd => arithmetic!(Each u64 Double "mulpd", multiply multiply),
        M::Mulss | M::Vmulss => arithmetic!(Lowest u32 Single "mulss", multiply multiply),
        M::Mulsd | M::Vmulsd => arithmetic!(Lowest u64 Double "mulsd", multiply multiply),
        M::Divps | M::Vdivps => arithmetic!(Each u32 Single "divps", divide divide),
        M::Divpd | M::Vdivpd => arithmetic!(Each u64 Double "divpd", divide divide),
        M::Divss | M::Vdivss => arithmetic!(Lowest u32 Single "divss", divide divide),
        M::Divsd | M::Vdivsd => arithmetic!(Lowest u64 Double "divsd", divide divide),
        M::Addsubps | M::Vaddsubps => arithmetic!(Each u32 Single "addsubps", subtract add),
        M::Addsubpd | M::Vaddsubpd => arithmetic!(Each u64 Double "addsubpd", subtract add),
        M::Haddps | M::Vhaddps => arithmetic!(Neighbours u32 Single "haddps", add add),
        M::Haddpd | M::Vhaddpd => arithmetic!(Neighbours u64 Double "haddpd", add add),
        M::Hsubps | M::Vhsubps => arithmetic!(Neighbours u32 Single "hsubps", subtract subtract),
        M::Hsubpd | M::Vhsubpd => arithmetic!(Neighbours u64 Double "hsubpd", subtract subtract),
        M::Sqrtps | M::Vsqrtps => packed!("sqrtps", 4, Never),
        M::Sqrtpd | M::Vsqrtpd => packed!("sqrtpd", 8, Never),
        M::Sqrtss | M::Vsqrtss => scalar!("sqrtss", 4, Never),
        M::Sqrtsd | M::Vsqrtsd => scalar!("sqrtsd", 8, Never),
        M::Minps | M::Vminps => packed!("minps", 4, Never),
        M::Minpd | M::Vminpd => packed!("minpd", 8, Never),
        M::Minss | M::Vminss => scalar!("minss", 4, Never),
        M::Minsd | M::Vminsd => scalar!("minsd", 8, Never),
        M::Maxps | M::Vmaxps => packed!("maxps", 4, Never),
        M::Maxpd | M::Vmaxpd => packed!("maxpd", 8, Never),
        M::Maxss | M::Vmaxss => scalar!("maxss", 4, Never),
        M::Maxsd | M::Vmaxsd => scalar!("maxsd", 8, Never),
        _ => return None,
    })
}

/// A conversion of elements of double precision to single precision.
const fn to_single(pairs: Pairs) -> Arithmetic {
    Arithmetic {
        pairs,
        format: Format::SINGLE,
        functions: [narrow; 2],
    }
}

#[rustfmt::skip]
fn comparison(mnemonic: Mnemonic) -> Option<Plain> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Comiss | M::Vcomiss => ordered!("comiss", 4),
        M::Comisd | M::Vcomisd => ordered!("comisd", 8),
        M::Ucomiss | M::Vucomiss => ordered!("ucomiss", 4),
        M::Ucomisd | M::Vucomisd => ordered!("ucomisd", 8),
        _ => return None,
    })
}

#[rustfmt::skip]
fn conversion(mnemonic: Mnemonic) -> Option<Plain> {
    use Mnemonic as M;
    use Rounded::Never;
    Some(match mnemonic {
        M::Cvtps2pd | M::Vcvtps2pd => widening!("cvtps2pd", 8),
        M::Cvtpd2ps | M::Vcvtpd2ps => |cpu, insn| {
            let f = to_single(Pairs::Each).on_host::<u64>(on_host!("cvtpd2ps"));
            cpu.narrowing_float(insn, 4, Rounded::Single, f)
        },
        M::Cvtss2sd | M::Vcvtss2sd => scalar!("cvtss2sd", 4, Never),
        M::Cvtsd2ss | M::Vcvtsd2ss => |cpu, insn| {
            let f = to_single(Pairs::Lowest).on_host::<u64>(on_host!("cvtsd2ss"));
            cpu.scalar_float(insn, 8, Rounded::Single, f)
        },
        M::Cvtdq2ps | M::Vcvtdq2ps => packed!("cvtdq2ps", 4, Never),
        M::Cvtdq2pd | M::Vcvtdq2pd => widening!("cvtdq2pd", 8),
        M::Cvtps2dq | M::Vcvtps2dq => packed!("cvtps2dq", 4, Never),
        M::Cvttps2dq | M::Vcvttps2dq => packed!("cvttps2dq", 4, Never),
        M::Cvtpd2dq | M::Vcvtpd2dq => narrowing!("cvtpd2dq", 4, Never),
        M::Cvttpd2dq | M::Vcvttpd2dq => narrowing!("cvttpd2dq", 4, Never),
        M::Cvtsi2ss | M::Vcvtsi2ss => from_integer!("cvtsi2ss"),
        M::Cvtsi2sd | M::Vcvtsi2sd => from_integer!("cvtsi2sd"),
        M::Cvtss2si | M::Vcvtss2si => to_integer!("cvtss2si", 4),
        M::Cvttss2si | M::Vcvttss2si => to_integer!("cvttss2si", 4),
        M::Cvtsd2si | M::Vcvtsd2si => to_integer!("cvtsd2si", 8),
        M::Cvttsd2si | M::Vcvttsd2si => to_integer!("cvttsd2si", 8),
        _ => return None,
    })
}
