//! Floating-point operations on the operands of an instruction, and the exceptions that they raise.
//!
//! SDM Vol. 1, "SSE and SSE2 SIMD Floating-Point Exceptions". An operation is a function of 128-bit
//! lanes that is given an MXCSR and notes in it what it finds. The masks of overflow and underflow
//! are the guest's, all others are set; what the host executes has all set. What is here
//! applies it to the elements that the opmask lets through, and decides whether #XM comes before
//! the result is written.

use iced_x86::Mnemonic;
use vmx_model::arch::Cr4;
use vmx_model::event::Exception;

use super::vector::{Elements, Faults, Value, blend, from_bytes, to_bytes};
use crate::insn::{Insn, VectorForm};
use crate::{Cpu, Exec};

/// Bits of MXCSR.
mod mxcsr {
    /// All exception flags.
    pub(super) const FLAGS: u32 = 0x3f;
    /// Invalid operation, denormal, division by zero: found before anything is computed.
    pub(super) const BEFORE_COMPUTATION: u32 = 7;
    pub(super) const OE: u32 = 1 << 3;
    pub(super) const UE: u32 = 1 << 4;
    pub(super) const RC_SHIFT: u32 = 13;
    pub(super) const RC: u32 = 3 << RC_SHIFT;
    pub(super) const MASK_SHIFT: u32 = 7;
    pub(super) const MASKS: u32 = FLAGS << MASK_SHIFT;
    pub(super) const OM: u32 = OE << MASK_SHIFT;
    pub(super) const UM: u32 = UE << MASK_SHIFT;
    pub(super) const FTZ: u32 = 1 << 15;
}

/// Returns an MXCSR with all exceptions masked, for the host.
pub(super) const fn all_masked(mxcsr: u32) -> u32 {
    mxcsr | mxcsr::MASKS
}

/// Returns an MXCSR with the flags that the host has added to it.
pub(super) const fn with_flags(mxcsr: u32, host: u32) -> u32 {
    mxcsr | host & mxcsr::FLAGS
}

/// Which elements an operation is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// All.
    Packed,
    /// The lowest.
    Scalar,
}

/// A result that may underflow.
#[derive(Clone, Copy)]
pub(super) enum Rounded {
    /// It may not: the operation does not round to a floating-point number.
    Never,
    /// Elements of half precision.
    Half,
    /// Elements of single precision.
    Single,
    /// Elements of double precision.
    Double,
}

impl Rounded {
    /// Whether one of the elements in the low `bytes` bytes of `value` is denormal.
    pub(super) fn has_denormal(self, value: &Value, bytes: usize) -> bool {
        let (width, fraction) = match self {
            Self::Never => return false,
            Self::Half => (2, 10),
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

/// 1.0 in each element: what no operation raises an exception for.
fn ones(element_bytes: usize) -> u128 {
    match element_bytes {
        8 => 0x3ff0_0000_0000_0000_3ff0_0000_0000_0000,
        2 => 0x3c00_3c00_3c00_3c00_3c00_3c00_3c00_3c00,
        _ => 0x3f80_0000_3f80_0000_3f80_0000_3f80_0000,
    }
}

impl Cpu {
    /// Reads the lowest element of operand `n`; a register is read whole. Nothing is read from
    /// memory for an element that is masked off.
    pub(super) fn read_element(&mut self, insn: &Insn, n: usize, bytes: usize) -> Exec<u128> {
        let element = Elements { bytes, count: 1 };
        Ok(self.read_vector(insn, n, element, Faults::Suppressed)?[0])
    }

    /// Elements that are masked off take no part: both sources are 1.0 there.
    pub(super) fn without_inactive(&self, insn: &Insn, elements: Elements, value: Value) -> Value {
        if insn.vector.mask == 0 {
            return value;
        }
        let active = self.active(insn, elements.count);
        blend(elements, active, value, [ones(elements.bytes); 4])
    }

    /// Reads the last source, whose elements that are masked off take no part.
    fn read_active(&mut self, insn: &Insn, elements: Elements) -> Exec<Value> {
        self.check_vector(insn)?;
        let value = self.read_vector(insn, insn.last_source(), elements, Faults::Suppressed)?;
        Ok(self.without_inactive(insn, elements, value))
    }

    /// Operand 0 becomes a function of both sources, lane by lane.
    pub(super) fn packed_float(
        &mut self,
        insn: &Insn,
        element_bytes: usize,
        rounded: Rounded,
        f: impl Fn(u128, u128, &mut u32) -> u128,
    ) -> Exec {
        let elements = Elements::of(insn, element_bytes);
        let b = self.read_active(insn, elements)?;
        let a = self.register_lanes(insn, insn.first_source());
        let a = self.without_inactive(insn, elements, a);
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
        f: impl Fn(u128, u128, &mut u32) -> u128,
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
    pub(super) fn widening_float(
        &mut self,
        insn: &Insn,
        element_bytes: usize,
        f: impl Fn(u128, u128, &mut u32) -> u128,
    ) -> Exec {
        let elements = Elements::of(insn, element_bytes);
        let narrow = Elements {
            bytes: element_bytes / 2,
            ..elements
        };
        let bytes = to_bytes(self.read_active(insn, narrow)?);
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
        f: impl Fn(u128, u128, &mut u32) -> u128,
    ) -> Exec {
        let wide = Elements::of(insn, 2 * element_bytes);
        let elements = Elements {
            bytes: element_bytes,
            ..wide
        };
        let b = self.read_active(insn, wide)?;
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
        let masks = mxcsr::MASKS & !(mxcsr::OM | mxcsr::UM);
        let mut after = before & !mxcsr::FLAGS & !ignored | masks;
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
pub(super) fn map_lanes(count: usize, mut f: impl FnMut(usize) -> u128) -> Value {
    let mut value = [0; 4];
    for (lane, slot) in value.iter_mut().enumerate().take(count) {
        *slot = f(lane);
    }
    value
}
