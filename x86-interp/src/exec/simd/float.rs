//! Floating-point arithmetic of SSE, SSE2 and SSE3.
//!
//! SDM Vol. 1, "SSE and SSE2 SIMD Floating-Point Exceptions". The host executes the operation
//! under the guest's MXCSR with all exceptions masked; what it flags decides whether #XM comes
//! before the result is written. RCPPS and its kin are missing: their approximations differ
//! between processors, and the same guest shall compute the same everywhere.
#![expect(
    unsafe_code,
    reason = "the host's SIMD unit computes, under a given MXCSR"
)]

use core::arch::asm;

use iced_x86::{Code, Mnemonic};
use vmx_model::arch::{Cr4, Rflags};
use vmx_model::event::Exception;

use super::vector::{Elements, Faults, Value, blend, from_bytes, is_vector_form, to_bytes};
use crate::exec::Row;
use crate::exec::form::plain;
use crate::insn::{Insn, Plain, VectorForm};
use crate::{Cpu, Exec};

/// Bits of MXCSR.
mod mxcsr {
    /// All exception flags.
    pub(super) const FLAGS: u32 = 0x3f;
    /// Invalid operation, denormal, division by zero: found before anything is computed.
    pub(super) const BEFORE_COMPUTATION: u32 = 7;
    pub(super) const UE: u32 = 1 << 4;
    pub(super) const RC_SHIFT: u32 = 13;
    pub(super) const RC: u32 = 3 << RC_SHIFT;
    pub(super) const MASK_SHIFT: u32 = 7;
    pub(super) const MASKS: u32 = FLAGS << MASK_SHIFT;
    pub(super) const UM: u32 = UE << MASK_SHIFT;
    pub(super) const FTZ: u32 = 1 << 15;
}

/// A result that may underflow.
#[derive(Clone, Copy)]
pub(super) enum Rounded {
    /// It may not: the operation does not round to a floating-point number.
    Never,
    /// Elements of single precision.
    Single,
    /// Elements of double precision.
    Double,
}

impl Rounded {
    /// Whether one of the elements in the low `bytes` bytes of `value` is denormal.
    fn has_denormal(self, value: &Value, bytes: usize) -> bool {
        let (width, fraction) = match self {
            Self::Never => return false,
            Self::Single => (4, 23),
            Self::Double => (8, 52),
        };
        to_bytes(*value)[..bytes]
            .chunks_exact(width)
            .any(|element| {
                let bits = element
                    .iter()
                    .rev()
                    .fold(0_u64, |all, &b| all << 8 | u64::from(b));
                let magnitude = bits & ((1 << (8 * width - 1)) - 1);
                magnitude != 0 && magnitude >> fraction == 0
            })
    }
}

/// Executes an instruction of two XMM registers (and an immediate) on the host.
macro_rules! on_host {
    ($name:literal $(, $immediate:literal)?) => {
        |to: u128, from: u128, mxcsr: &mut u32| -> u128 {
            let (mut own, mut to, from) = (0_u32, to, from);
            // SAFETY: works on the locals alone; MXCSR is put back, and no exception is unmasked.
            unsafe {
                asm!(
                    "stmxcsr [{own}]", "ldmxcsr [{guest}]",
                    "movups {x}, [{to}]", "movups {y}, [{from}]",
                    concat!($name, " {x}, {y}" $(, ", ", $immediate)?),
                    "movups [{to}], {x}",
                    "stmxcsr [{guest}]", "ldmxcsr [{own}]",
                    own = in(reg) &raw mut own, guest = in(reg) core::ptr::from_mut(mxcsr),
                    to = in(reg) &raw mut to, from = in(reg) &raw const from,
                    x = out(xmm_reg) _, y = out(xmm_reg) _,
                    options(nostack),
                );
            }
            to
        }
    };
}

/// Executes a conversion between operand `$to` and `$from`, one a general-purpose register.
macro_rules! convert_on_host {
    (to_integer $name:literal $r:literal) => {
        |from: u128, mxcsr: &mut u32| -> u64 {
            let (mut own, mut result) = (0_u32, 0_u64);
            // SAFETY: as in `on_host`.
            unsafe {
                asm!(
                    "stmxcsr [{own}]", "ldmxcsr [{guest}]",
                    "movups {y}, [{from}]",
                    concat!($name, " {r", $r, "}, {y}"),
                    "stmxcsr [{guest}]", "ldmxcsr [{own}]",
                    own = in(reg) &raw mut own, guest = in(reg) core::ptr::from_mut(mxcsr),
                    from = in(reg) &raw const from,
                    r = inout(reg) result, y = out(xmm_reg) _,
                    options(nostack),
                );
            }
            result
        }
    };
    (from_integer $name:literal $r:literal) => {
        |to: u128, from: u64, mxcsr: &mut u32| -> u128 {
            let (mut own, mut to) = (0_u32, to);
            // SAFETY: as in `on_host`.
            unsafe {
                asm!(
                    "stmxcsr [{own}]", "ldmxcsr [{guest}]",
                    "movups {x}, [{to}]",
                    concat!($name, " {x}, {r", $r, "}"),
                    "movups [{to}], {x}",
                    "stmxcsr [{guest}]", "ldmxcsr [{own}]",
                    own = in(reg) &raw mut own, guest = in(reg) core::ptr::from_mut(mxcsr),
                    to = in(reg) &raw mut to,
                    r = in(reg) from, x = out(xmm_reg) _,
                    options(nostack),
                );
            }
            to
        }
    };
}

/// Executes a comparison on the host: the flags that it sets.
macro_rules! compare_on_host {
    ($name:literal) => {
        |to: u128, from: u128, mxcsr: &mut u32| -> u64 {
            let (mut own, mut flags) = (0_u32, 0_u64);
            // SAFETY: as in `on_host`; the stack is used and left as it was.
            unsafe {
                asm!(
                    "stmxcsr [{own}]", "ldmxcsr [{guest}]",
                    "movups {x}, [{to}]", "movups {y}, [{from}]",
                    concat!($name, " {x}, {y}"),
                    "pushfq", "pop {flags}",
                    "stmxcsr [{guest}]", "ldmxcsr [{own}]",
                    own = in(reg) &raw mut own, guest = in(reg) core::ptr::from_mut(mxcsr),
                    to = in(reg) &raw const to, from = in(reg) &raw const from,
                    flags = inout(reg) flags,
                    x = out(xmm_reg) _, y = out(xmm_reg) _,
                );
            }
            flags
        }
    };
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

/// A handler: a comparison by the predicate in the immediate.
macro_rules! predicate {
    ($name:literal, $method:ident, $bytes:literal) => {{
        fn handler(cpu: &mut Cpu, insn: &Insn) -> Exec {
            const BY_PREDICATE: [fn(u128, u128, &mut u32) -> u128; 8] = [
                on_host!($name, "0"),
                on_host!($name, "1"),
                on_host!($name, "2"),
                on_host!($name, "3"),
                on_host!($name, "4"),
                on_host!($name, "5"),
                on_host!($name, "6"),
                on_host!($name, "7"),
            ];
            let compare = BY_PREDICATE[usize::from(insn.immediate_byte() & 7)];
            cpu.$method(insn, $bytes, Rounded::Never, compare)
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
    use Rounded::{Double, Never, Single};
    Some(match mnemonic {
        M::Addps | M::Vaddps => packed!("addps", 4, Single),
        M::Addpd | M::Vaddpd => packed!("addpd", 8, Double),
        M::Addss | M::Vaddss => scalar!("addss", 4, Single),
        M::Addsd | M::Vaddsd => scalar!("addsd", 8, Double),
        M::Subps | M::Vsubps => packed!("subps", 4, Single),
        M::Subpd | M::Vsubpd => packed!("subpd", 8, Double),
        M::Subss | M::Vsubss => scalar!("subss", 4, Single),
        M::Subsd | M::Vsubsd => scalar!("subsd", 8, Double),
        M::Mulps | M::Vmulps => packed!("mulps", 4, Single),
        M::Mulpd | M::Vmulpd => packed!("mulpd", 8, Double),
        M::Mulss | M::Vmulss => scalar!("mulss", 4, Single),
        M::Mulsd | M::Vmulsd => scalar!("mulsd", 8, Double),
        M::Divps | M::Vdivps => packed!("divps", 4, Single),
        M::Divpd | M::Vdivpd => packed!("divpd", 8, Double),
        M::Divss | M::Vdivss => scalar!("divss", 4, Single),
        M::Divsd | M::Vdivsd => scalar!("divsd", 8, Double),
        M::Addsubps | M::Vaddsubps => packed!("addsubps", 4, Single),
        M::Addsubpd | M::Vaddsubpd => packed!("addsubpd", 8, Double),
        M::Haddps | M::Vhaddps => packed!("haddps", 4, Single),
        M::Haddpd | M::Vhaddpd => packed!("haddpd", 8, Double),
        M::Hsubps | M::Vhsubps => packed!("hsubps", 4, Single),
        M::Hsubpd | M::Vhsubpd => packed!("hsubpd", 8, Double),
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

#[rustfmt::skip]
fn comparison(mnemonic: Mnemonic) -> Option<Plain> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Cmpps | M::Vcmpps => predicate!("cmpps", packed_float, 4),
        M::Cmppd | M::Vcmppd => predicate!("cmppd", packed_float, 8),
        M::Cmpss | M::Vcmpss => predicate!("cmpss", scalar_float, 4),
        M::Cmpsd | M::Vcmpsd => predicate!("cmpsd", scalar_float, 8),
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
    use Rounded::{Never, Single};
    Some(match mnemonic {
        M::Cvtps2pd | M::Vcvtps2pd => widening!("cvtps2pd", 8),
        M::Cvtpd2ps | M::Vcvtpd2ps => narrowing!("cvtpd2ps", 4, Single),
        M::Cvtss2sd | M::Vcvtss2sd => scalar!("cvtss2sd", 4, Never),
        M::Cvtsd2ss | M::Vcvtsd2ss => scalar!("cvtsd2ss", 8, Single),
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

/// 1.0 in each element: what no operation raises an exception for.
fn ones(element_bytes: usize) -> u128 {
    match element_bytes {
        8 => 0x3ff0_0000_0000_0000_3ff0_0000_0000_0000,
        _ => 0x3f80_0000_3f80_0000_3f80_0000_3f80_0000,
    }
}

/// A function of lanes under a given MXCSR.
type OnLanes = fn(u128, u128, &mut u32) -> u128;

impl Cpu {
    /// Reads the lowest element of operand `n`; a register is read whole. Nothing is read from
    /// memory for an element that is masked off.
    pub(super) fn read_element(&mut self, insn: &Insn, n: usize, bytes: usize) -> Exec<u128> {
        let element = Elements { bytes, count: 1 };
        Ok(self.read_vector(insn, n, element, Faults::Suppressed)?[0])
    }

    /// Elements that are masked off take no part: both sources are 1.0 there.
    fn without_inactive(&self, insn: &Insn, elements: Elements, value: Value) -> Value {
        if insn.vector.mask == 0 {
            return value;
        }
        let active = self.active(insn, elements.count);
        blend(elements, active, value, [ones(elements.bytes); 4])
    }

    /// Operand 0 becomes a function of both sources, lane by lane.
    pub(super) fn packed_float(
        &mut self,
        insn: &Insn,
        element_bytes: usize,
        rounded: Rounded,
        f: OnLanes,
    ) -> Exec {
        self.check_vector(insn)?;
        let elements = Elements::of(insn, element_bytes);
        let b = self.read_vector(insn, insn.last_source(), elements, Faults::Suppressed)?;
        let a = self.register_lanes(insn, insn.first_source());
        let a = self.without_inactive(insn, elements, a);
        let b = self.without_inactive(insn, elements, b);
        let value = self.compute(
            &insn.vector,
            |value| rounded.has_denormal(value, elements.total()),
            |mxcsr| map_lanes(insn.lane_count(), |lane| f(a[lane], b[lane], mxcsr)),
        )?;
        self.write_vector(insn, value, elements)
    }

    /// The lowest element of operand 0 becomes a function of those of both sources; the rest of its
    /// low 128 bits is that of the first one.
    pub(super) fn scalar_float(
        &mut self,
        insn: &Insn,
        element_bytes: usize,
        rounded: Rounded,
        f: OnLanes,
    ) -> Exec {
        self.check_vector(insn)?;
        // CVTSS2SD and CVTSD2SS write another precision than they read.
        let result_bytes = match insn.code.mnemonic() {
            Mnemonic::Cvtss2sd | Mnemonic::Vcvtss2sd => 8,
            Mnemonic::Cvtsd2ss | Mnemonic::Vcvtsd2ss => 4,
            _ => element_bytes,
        };
        let b = self.read_element(insn, insn.last_source(), element_bytes)?;
        let a = self.register_lanes(insn, insn.first_source())[0];
        let value = if self.active(insn, 1) == 0 {
            a
        } else {
            let has_denormal =
                |value: &u128| rounded.has_denormal(&[*value, 0, 0, 0], result_bytes);
            self.compute(&insn.vector, has_denormal, |mxcsr| f(a, b, mxcsr))?
        };
        self.write_scalar(insn, value, result_bytes)
    }

    /// Operand 0 becomes a function of operand 1, whose elements are half as wide.
    pub(super) fn widening_float(&mut self, insn: &Insn, element_bytes: usize, f: OnLanes) -> Exec {
        self.check_vector(insn)?;
        let elements = Elements::of(insn, element_bytes);
        let narrow = Elements {
            bytes: element_bytes / 2,
            ..elements
        };
        let b = self.read_vector(insn, insn.last_source(), narrow, Faults::Suppressed)?;
        let bytes = to_bytes(self.without_inactive(insn, narrow, b));
        let value = self.compute(
            &insn.vector,
            |_| false,
            |mxcsr| {
                map_lanes(insn.lane_count(), |lane| {
                    let half = from_bytes(&bytes[8 * lane..8 * lane + 8])[0];
                    f(0, half, mxcsr)
                })
            },
        )?;
        self.write_vector(insn, value, elements)
    }

    /// Operand 0 becomes a function of operand 1, whose elements are twice as wide.
    pub(super) fn narrowing_float(
        &mut self,
        insn: &Insn,
        element_bytes: usize,
        rounded: Rounded,
        f: OnLanes,
    ) -> Exec {
        self.check_vector(insn)?;
        let wide = Elements::of(insn, 2 * element_bytes);
        let elements = Elements {
            bytes: element_bytes,
            ..wide
        };
        let b = self.read_vector(insn, insn.last_source(), wide, Faults::Suppressed)?;
        let b = self.without_inactive(insn, wide, b);
        let value = self.compute(
            &insn.vector,
            |value| rounded.has_denormal(value, elements.total()),
            |mxcsr| {
                let halves = map_lanes(insn.lane_count(), |lane| f(0, b[lane], mxcsr));
                let bytes: Vec<u8> = halves
                    .iter()
                    .flat_map(|h| (*h as u64).to_le_bytes())
                    .collect();
                from_bytes(&bytes)
            },
        )?;
        self.write_vector(insn, value, elements)
    }

    /// Computes by `f` under the guest's MXCSR; exceptions are flagged, and #XM is raised where one
    /// is unmasked (#UD without CR4.OSXMMEXCPT).
    ///
    /// While underflow is unmasked, flush-to-zero has no effect and a tiny result counts even if it
    /// is exact (SDM Vol. 1, "Numeric Underflow Exception (#U)").
    pub(super) fn compute<T>(
        &mut self,
        form: &VectorForm,
        has_denormal: impl FnOnce(&T) -> bool,
        f: impl FnOnce(&mut u32) -> T,
    ) -> Exec<T> {
        let mut before = self.fpu.mxcsr;
        if let Some(rounding) = form.rounding {
            before = before & !mxcsr::RC | u32::from(rounding) << mxcsr::RC_SHIFT;
        }
        if form.suppresses_exceptions {
            return Ok(f(&mut (before & !mxcsr::FLAGS | mxcsr::MASKS)));
        }
        let is_underflow_masked = before & mxcsr::UM != 0;
        let ignored = if is_underflow_masked { 0 } else { mxcsr::FTZ };
        let mut after = before & !mxcsr::FLAGS & !ignored | mxcsr::MASKS;
        let value = f(&mut after);
        let mut raised = after & mxcsr::FLAGS;
        if !is_underflow_masked && has_denormal(&value) {
            raised |= mxcsr::UE;
        }
        let unmasked = raised & !(before >> mxcsr::MASK_SHIFT);
        if unmasked & mxcsr::BEFORE_COMPUTATION != 0 {
            raised &= mxcsr::BEFORE_COMPUTATION;
        }
        self.fpu.mxcsr = before | raised;
        if unmasked == 0 {
            return Ok(value);
        }
        let is_enabled = self.state.cr4.contains(Cr4::OSXMMEXCPT);
        Err(if is_enabled {
            Exception::plain(19)
        } else {
            Exception::UD
        }
        .into())
    }
}

/// Applies `f` to the first `count` lanes in turn; the others are zero.
fn map_lanes(count: usize, mut f: impl FnMut(usize) -> u128) -> Value {
    let mut value = [0; 4];
    for (lane, slot) in value.iter_mut().enumerate().take(count) {
        *slot = f(lane);
    }
    value
}
