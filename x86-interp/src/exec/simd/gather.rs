//! Gathers: elements from addresses that a vector register indexes (SDM Vol. 1, "VEX.256 and
//! VEX.128 Data Gather"; Vol. 2, "Vector SIB (VSIB) Memory Addressing").
//!
//! A mask of elements is extended from their signs. Elements are loaded from the lowest on. At a fault those that are done stay done: the
//! destination has them, and their masks are clear.

use iced_x86::{Code, EncodingKind, Mnemonic};
use vmx_model::addr::Linear;
use vmx_model::event::Exception;

use super::blend::signs;
use super::vector::{Elements, Value, blend, element};
use crate::exec::Row;
use crate::exec::form::plain;
use crate::insn::{Insn, Operand, Plain};
use crate::mem::access::address_mask;
use crate::mem::{Access, Privilege};
use crate::{Cpu, Exec};

/// Returns who executes an instruction of this file.
pub(crate) fn lookup(code: Code) -> Option<Row> {
    use Mnemonic as M;
    if code.encoding() != EncodingKind::VEX {
        return None;
    }
    let handler: Plain = match code.mnemonic() {
        M::Vgatherdps | M::Vpgatherdd => gather::<4, 4>,
        M::Vgatherdpd | M::Vpgatherdq => gather::<4, 8>,
        M::Vgatherqps | M::Vpgatherqd => gather::<8, 4>,
        M::Vgatherqpd | M::Vpgatherqq => gather::<8, 8>,
        _ => return None,
    };
    plain(handler)
}

/// The elements that a VSIB operand addresses.
#[derive(Clone, Copy)]
pub(super) struct Indexed {
    /// The index register.
    indices: Value,
    /// Bytes of an index.
    index_bytes: usize,
    /// Bytes of an element in memory.
    pub(super) bytes: usize,
}

impl Cpu {
    /// Returns what the VSIB operand of `insn` addresses.
    pub(super) fn indexed(&self, insn: &Insn, index_bytes: usize, bytes: usize) -> Indexed {
        Indexed {
            indices: self.fpu.lanes(usize::from(insn.vector.index & 31)),
            index_bytes,
            bytes,
        }
    }

    /// Returns the linear address of element `n` of a VSIB operand.
    pub(super) fn indexed_linear(
        &self,
        insn: &Insn,
        of: &Indexed,
        n: usize,
        access: Access,
    ) -> Exec<Linear> {
        let index = element(&of.indices, n, of.index_bytes);
        let index = match of.index_bytes {
            4 => i64::from(index as i32) as u64,
            _ => index,
        };
        let offset = self
            .effective_address(insn)
            .wrapping_add(index << insn.memory.scale_shift)
            & address_mask(insn.address_bytes);
        self.linear(insn.memory.segment, offset, of.bytes as u64, access)
    }

    /// Loads element `n` of a VSIB operand.
    pub(super) fn load_indexed(&mut self, insn: &Insn, of: &Indexed, n: usize) -> Exec<u64> {
        let at = self.indexed_linear(insn, of, n, Access::Read)?;
        let mut bytes = [0; 8];
        let place = &mut bytes[..of.bytes];
        self.load_bytes_linear(at, place, Access::Read, Privilege::Current)?;
        Ok(u64::from_le_bytes(bytes))
    }
}

/// A gather with a mask in a vector register, which ends as zero. Destination, mask and index are
/// three registers, or #UD.
fn gather<const INDEX: usize, const BYTES: usize>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_vector(insn)?;
    let (Operand::Vector(to), Operand::Vector(mask)) = (insn.operands[0], insn.operands[2]) else {
        return Err(Exception::UD.into());
    };
    let index = insn.vector.index;
    if to == mask || to == index || mask == index {
        return Err(Exception::UD.into());
    }
    let elements = Elements {
        bytes: BYTES,
        count: usize::from(insn.vector.bytes) / INDEX.max(BYTES),
    };
    let of = cpu.indexed(insn, INDEX, BYTES);
    let active = signs(&cpu.register_lanes(insn, 2), elements);
    for n in 0..elements.count {
        let ones = u64::MAX * (active >> n & 1);
        cpu.set_element(mask, n, BYTES, ones);
    }
    for n in (0..elements.count).filter(|n| active >> n & 1 != 0) {
        let loaded = cpu.load_indexed(insn, &of, n)?;
        cpu.set_element(to, n, BYTES, loaded);
        cpu.set_element(mask, n, BYTES, 0);
    }
    let total = from_low(cpu.register_lanes(insn, 0), elements);
    cpu.fpu.set_lanes(usize::from(to & 31), total);
    cpu.fpu.set_lanes(usize::from(mask & 31), [0; 4]);
    Ok(())
}

/// Keeps `elements` and clears what lies beyond them.
fn from_low(value: Value, elements: Elements) -> Value {
    let none = [0; 4];
    let kept = u64::MAX >> (64 - elements.count.clamp(1, 64));
    let all = Elements {
        count: 64 / elements.bytes,
        ..elements
    };
    blend(all, kept, value, none)
}

impl Cpu {
    /// Writes one element of a vector register; the others stay.
    pub(super) fn set_element(&mut self, register: u8, n: usize, bytes: usize, value: u64) {
        let words = &mut self.fpu.vector[usize::from(register & 31)];
        let bit = 8 * bytes * n;
        let mask = u64::MAX >> (64 - 8 * bytes) << (bit % 64);
        let word = &mut words[bit / 64];
        *word = *word & !mask | value << (bit % 64) & mask;
    }
}
