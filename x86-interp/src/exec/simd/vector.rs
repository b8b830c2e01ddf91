//! Vector operands in every encoding: legacy SSE, VEX and EVEX.
//!
//! SDM Vol. 1, "Programming with AVX" and "Programming with Intel AVX-512"; Vol. 2, "Intel AVX-512
//! Encoding". An operation is a function of 128-bit lanes; what is here reads its operands, applies
//! it to as many lanes as the vector is long, and writes the result under the opmask. Destructive
//! forms of two operands are forms of three whose first source is the destination.

use iced_x86::{Code, OpCodeOperandKind};
use vmx_model::event::Exception;

use crate::insn::{Encoding, Insn, Operand};
use crate::mem::{Access, Privilege};
use crate::{Cpu, Exec};

/// A vector of 512 bits as 128-bit lanes, the lowest first.
pub(crate) type Value = [u128; 4];

/// Elements of a vector that an operation reads or writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Elements {
    /// Bytes of each.
    pub(crate) bytes: usize,
    /// How many there are.
    pub(crate) count: usize,
}

impl Elements {
    /// Elements of so many bytes that fill the vector of `insn`.
    pub(crate) const fn of(insn: &Insn, bytes: usize) -> Self {
        Self {
            bytes,
            count: insn.vector.bytes as usize / bytes,
        }
    }

    /// Bytes of all.
    pub(crate) const fn total(self) -> usize {
        self.bytes * self.count
    }
}

/// What an EVEX memory operand does where the opmask has zeros (SDM Vol. 2, "Exception
/// Classifications of EVEX-Encoded Instructions": types with and without fault suppression).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Faults {
    /// Elements that are masked off are not accessed.
    Suppressed,
    /// The operand is accessed whole.
    Whole,
}

/// Whether a form works on vector registers: MMX, string instructions and the comparisons into
/// opmask registers share mnemonics with such forms.
pub(crate) fn is_vector_form(code: Code) -> bool {
    use OpCodeOperandKind as K;
    let is_other = |k: &K| {
        matches!(
            k,
            K::mm_reg | K::mm_or_mem | K::mm_rm | K::seg_rSI | K::es_rDI | K::k_reg | K::k_rm
        )
    };
    !code.op_code().op_kinds().iter().any(is_other)
}

impl Insn {
    /// Returns the number of the last operand that is no immediate.
    pub(crate) fn last_source(&self) -> usize {
        let is_source = |o: &&Operand| !matches!(o, Operand::None | Operand::Immediate(_));
        self.operands.iter().take_while(is_source).count().max(1) - 1
    }

    /// Returns the number of the first source: the destination of a form with two operands.
    pub(crate) fn first_source(&self) -> usize {
        usize::from(self.last_source() >= 2)
    }

    /// Returns the immediate byte, the last operand; 0 if there is none.
    pub(crate) fn immediate_byte(&self) -> u8 {
        let find = |o: &Operand| match o {
            Operand::Immediate(value) => Some(*value as u8),
            _ => None,
        };
        self.operands.iter().rev().find_map(find).unwrap_or(0)
    }

    /// Whether the last operand is an immediate.
    pub(crate) fn has_immediate(&self) -> bool {
        let is_immediate = |o: &Operand| matches!(o, Operand::Immediate(_));
        self.operands.iter().any(is_immediate)
    }

    /// Returns how many 128-bit lanes the vector has.
    pub(crate) const fn lane_count(&self) -> usize {
        self.vector.bytes as usize / 16
    }
}

/// Applies `f` to the first `count` lanes, given their numbers; the others are zero.
pub(crate) fn each_lane(count: usize, f: impl Fn(usize) -> u128) -> Value {
    core::array::from_fn(|lane| if lane < count { f(lane) } else { 0 })
}

/// Returns element `n` of elements of `bytes` bytes, at most 8.
pub(crate) const fn element(value: &Value, n: usize, bytes: usize) -> u64 {
    let bit = 8 * bytes * n;
    (value[(bit / 128) & 3] >> (bit % 128)) as u64 & u64::MAX >> (64 - 8 * bytes)
}

/// Makes a vector: `f` says what is in element n. What lies beyond the elements is zero.
pub(crate) fn collect(elements: Elements, f: impl Fn(usize) -> u64) -> Value {
    let mut value = [0; 4];
    for n in 0..elements.count {
        let bit = 8 * elements.bytes * n;
        let bits = f(n) & u64::MAX >> (64 - 8 * elements.bytes);
        value[(bit / 128) & 3] |= u128::from(bits) << (bit % 128);
    }
    value
}

/// Returns the bytes of a vector.
pub(crate) fn to_bytes(value: Value) -> [u8; 64] {
    let mut bytes = [0; 64];
    for (piece, lane) in bytes.chunks_exact_mut(16).zip(value) {
        piece.copy_from_slice(&lane.to_le_bytes());
    }
    bytes
}

/// Returns the vector of these bytes; what is missing is zero.
pub(crate) fn from_bytes(bytes: &[u8]) -> Value {
    core::array::from_fn(|lane| {
        let mut piece = [0; 16];
        let from = bytes.get(16 * lane..).unwrap_or_default();
        let length = from.len().min(16);
        piece[..length].copy_from_slice(&from[..length]);
        u128::from_le_bytes(piece)
    })
}

/// Takes from `new` the elements that are set in `active`, the others from `old`.
pub(crate) fn blend(elements: Elements, active: u64, new: Value, old: Value) -> Value {
    let (mut to, from) = (to_bytes(new), to_bytes(old));
    for n in (0..elements.count).filter(|n| active >> n & 1 == 0) {
        let place = n * elements.bytes..(n + 1) * elements.bytes;
        to[place.clone()].copy_from_slice(&from[place]);
    }
    from_bytes(&to)
}

impl Cpu {
    /// #UD or #NM if system software has not enabled the registers of the encoding.
    pub(crate) fn check_vector(&self, insn: &Insn) -> Exec {
        match insn.vector.encoding {
            Encoding::Legacy => self.check_sse(),
            Encoding::Vex => self.check_avx(),
            Encoding::Evex => self.check_avx512(),
        }
    }

    /// Returns which of `count` elements the opmask lets through.
    pub(crate) fn active(&self, insn: &Insn, count: usize) -> u64 {
        let all = u64::MAX >> (64 - count.clamp(1, 64));
        match insn.vector.mask {
            0 => all,
            n => self.fpu.opmask[usize::from(n & 7)] & all,
        }
    }

    /// Returns vector register operand `n`; zero if it is none.
    pub(crate) fn register_lanes(&self, insn: &Insn, n: usize) -> Value {
        match insn.operands[n] {
            Operand::Vector(register) => self.fpu.lanes(usize::from(register & 31)),
            _ => [0; 4],
        }
    }

    /// Reads operand `n`: a register whole, or `elements` in memory, or one of them for all. A
    /// legacy operand of 16 bytes must be aligned.
    pub(crate) fn read_vector(
        &mut self,
        insn: &Insn,
        n: usize,
        elements: Elements,
        faults: Faults,
    ) -> Exec<Value> {
        if let Operand::Vector(_) = insn.operands[n] {
            return Ok(self.register_lanes(insn, n));
        }
        if insn.vector.encoding == Encoding::Legacy && elements.total() == 16 {
            let at = self.operand_linear(insn, 16, Access::Read)?;
            if at.0 & 15 != 0 {
                return Err(Exception::gp(0).into());
            }
        }
        let active = match faults {
            Faults::Suppressed => self.active(insn, elements.count),
            Faults::Whole => u64::MAX,
        };
        self.load_elements(insn, elements, active)
    }

    /// Reads the memory operand: its elements that are set in `active`; the others are zero.
    pub(crate) fn load_elements(
        &mut self,
        insn: &Insn,
        elements: Elements,
        active: u64,
    ) -> Exec<Value> {
        let mut bytes = [0_u8; 64];
        let Elements { bytes: size, count } = elements;
        let all = u64::MAX >> (64 - count.clamp(1, 64));
        let broadcast = usize::from(insn.vector.broadcast_bytes);
        if broadcast != 0 {
            if active & all != 0 {
                let mut element = [0_u8; 8];
                self.load_operand(insn, &mut element[..broadcast])?;
                for place in bytes.chunks_exact_mut(broadcast) {
                    place.copy_from_slice(&element[..broadcast]);
                }
            }
        } else if active & all == all {
            let total = elements.total();
            let at = self.operand_linear(insn, total, Access::Read)?;
            self.load_bytes_linear(at, &mut bytes[..total], Access::Read, Privilege::Current)?;
        } else {
            for n in (0..count).filter(|n| active >> n & 1 != 0) {
                let at = self.element_linear(insn, n * size, size, Access::Read)?;
                let place = &mut bytes[n * size..(n + 1) * size];
                self.load_bytes_linear(at, place, Access::Read, Privilege::Current)?;
            }
        }
        Ok(from_bytes(&bytes))
    }

    /// Returns the linear address of `bytes` bytes, `offset` bytes into the memory operand.
    pub(crate) fn element_linear(
        &self,
        insn: &Insn,
        offset: usize,
        bytes: usize,
        access: Access,
    ) -> Exec<vmx_model::addr::Linear> {
        // Only where the operand begins wraps at the address size.
        let first = self.effective_address(insn).wrapping_add(offset as u64);
        self.linear(insn.memory.segment, first, bytes as u64, access)
    }

    /// Writes `value` to operand 0, of which `elements` are under the opmask. What lies beyond them
    /// in a register is taken from `value` up to bit 127, and beyond that becomes zero or, in a
    /// legacy form, stays.
    pub(crate) fn write_vector(&mut self, insn: &Insn, value: Value, elements: Elements) -> Exec {
        let Operand::Vector(register) = insn.operands[0] else {
            return self.store_elements(insn, value, elements);
        };
        let register = usize::from(register & 31);
        if insn.vector.encoding == Encoding::Legacy {
            self.fpu
                .set_xmm(register, [value[0] as u64, (value[0] >> 64) as u64]);
            return Ok(());
        }
        let active = self.active(insn, elements.count);
        let old = match insn.vector.is_zeroing {
            true => [0; 4],
            false => self.fpu.lanes(register),
        };
        let blended = blend(elements, active, value, old);
        let lanes = elements.total().div_ceil(16);
        self.fpu
            .set_lanes(register, each_lane(lanes, |lane| blended[lane]));
        Ok(())
    }

    /// Writes the lowest element under the opmask, and the rest of the low 128 bits without it.
    pub(crate) fn write_scalar(&mut self, insn: &Insn, value: u128, bytes: usize) -> Exec {
        let mut value = value;
        if self.active(insn, 1) == 0 {
            let old = match insn.vector.is_zeroing {
                true => 0,
                false => self.register_lanes(insn, 0)[0],
            };
            let low = (1_u128 << (8 * bytes)) - 1;
            value = value & !low | old & low;
        }
        let Operand::Vector(register) = insn.operands[0] else {
            return Ok(());
        };
        self.write_low_register(insn, usize::from(register & 31), value);
        Ok(())
    }

    /// Writes an XMM register that no operand names; the rest of it as the encoding has it.
    pub(crate) fn write_low_register(&mut self, insn: &Insn, register: usize, value: u128) {
        match insn.vector.encoding {
            Encoding::Legacy => self
                .fpu
                .set_xmm(register, [value as u64, (value >> 64) as u64]),
            _ => self.fpu.set_lanes(register, [value, 0, 0, 0]),
        }
    }

    /// Faults as a store of the elements that the opmask lets through would.
    pub(crate) fn probe_elements(&mut self, insn: &Insn, elements: Elements) -> Exec {
        let active = self.active(insn, elements.count);
        self.probe_active(insn, elements, active)
    }

    /// Faults as a store of the elements that are set in `active` would.
    fn probe_active(&mut self, insn: &Insn, elements: Elements, active: u64) -> Exec {
        let Elements { bytes: size, count } = elements;
        let all = u64::MAX >> (64 - count.clamp(1, 64));
        if active & all == all {
            return self.probe_operand(insn, elements.total());
        }
        for n in (0..count).filter(|n| active >> n & 1 != 0) {
            let at = self.element_linear(insn, n * size, size, Access::Write)?;
            self.translate(at, Access::Write, Privilege::Current)?;
            let last = at.offset(size as u64 - 1).0;
            if at.0 >> 12 != last >> 12 {
                let second_page = vmx_model::addr::Linear(last & !0xfff);
                self.translate(second_page, Access::Write, Privilege::Current)?;
            }
        }
        Ok(())
    }

    /// Stores the elements that the opmask lets through at the memory operand.
    fn store_elements(&mut self, insn: &Insn, value: Value, elements: Elements) -> Exec {
        let active = self.active(insn, elements.count);
        self.store_active(insn, value, elements, active)
    }

    /// Stores the elements that are set in `active` at the memory operand: all or, at a fault, none.
    pub(crate) fn store_active(
        &mut self,
        insn: &Insn,
        value: Value,
        elements: Elements,
        active: u64,
    ) -> Exec {
        let bytes = to_bytes(value);
        let Elements { bytes: size, count } = elements;
        let all = u64::MAX >> (64 - count.clamp(1, 64));
        if active & all == all {
            return self.store_operand(insn, &bytes[..elements.total()]);
        }
        self.probe_active(insn, elements, active)?;
        let is_active = |n: &usize| active >> n & 1 != 0;
        for n in (0..count).filter(is_active) {
            let at = self.element_linear(insn, n * size, size, Access::Write)?;
            let place = &bytes[n * size..(n + 1) * size];
            self.store_bytes_linear(at, place, Privilege::Current)?;
        }
        Ok(())
    }

    /// Operand 0 becomes, lane by lane, a function of the first source, the last source, and the
    /// lane's number.
    pub(crate) fn lane_by_lane(
        &mut self,
        insn: &Insn,
        element_bytes: usize,
        faults: Faults,
        f: impl Fn(u128, u128, usize) -> u128,
    ) -> Exec {
        self.check_vector(insn)?;
        let elements = Elements::of(insn, element_bytes);
        let b = self.read_vector(insn, insn.last_source(), elements, faults)?;
        let a = self.register_lanes(insn, insn.first_source());
        let value = each_lane(insn.lane_count(), |lane| f(a[lane], b[lane], lane));
        self.write_vector(insn, value, elements)
    }

    /// Operand 0 becomes a function of operand 1, whose elements are `ratio` times narrower: `f`
    /// gets those of one lane of the result in the low bits.
    pub(crate) fn widen(
        &mut self,
        insn: &Insn,
        element_bytes: usize,
        ratio: usize,
        f: impl Fn(u128) -> u128,
    ) -> Exec {
        self.check_vector(insn)?;
        let elements = Elements::of(insn, element_bytes);
        let narrow = Elements {
            bytes: element_bytes / ratio,
            ..elements
        };
        let source = self.read_vector(insn, insn.last_source(), narrow, Faults::Suppressed)?;
        let bytes = to_bytes(source);
        let value = each_lane(insn.lane_count(), |lane| {
            let from = 16 / ratio * lane;
            f(from_bytes(&bytes[from..from + 16 / ratio])[0])
        });
        self.write_vector(insn, value, elements)
    }
}
