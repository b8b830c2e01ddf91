//! Selection by the sign bits of a vector register: variable blends and conditional moves.
//!
//! SDM Vol. 1, "Packed Blending Instructions" and "Conditional SIMD Packed Loads and Stores" of
//! AVX and AVX2. A conditional move accesses no element whose mask is clear, so there it does not
//! fault either; a store that faults has stored nothing.

use iced_x86::{Code, Mnemonic};

use super::vector::{Elements, Faults, Value, blend, element, is_vector_form};
use crate::exec::Row;
use crate::exec::form::plain;
use crate::insn::{Encoding, Insn, MemoryOperand, Operand, Plain};
use crate::{Cpu, Exec};

/// Returns who executes an instruction of this file.
pub(crate) fn lookup(code: Code) -> Option<Row> {
    use Mnemonic as M;
    let handler: Plain = match code.mnemonic() {
        M::Maskmovdqu | M::Vmaskmovdqu => store_bytes,
        _ if !is_vector_form(code) => return None,
        M::Pblendvb | M::Vpblendvb => blend_variable::<1>,
        M::Blendvps | M::Vblendvps => blend_variable::<4>,
        M::Blendvpd | M::Vblendvpd => blend_variable::<8>,
        M::Vmaskmovps | M::Vpmaskmovd => move_conditionally::<4>,
        M::Vmaskmovpd | M::Vpmaskmovq => move_conditionally::<8>,
        _ => return None,
    };
    plain(handler)
}

/// Returns a bit for each element whose sign is set.
pub(super) fn signs(value: &Value, elements: Elements) -> u64 {
    let sign = |n| element(value, n, elements.bytes) >> (8 * elements.bytes - 1);
    (0..elements.count).fold(0, |mask, n| mask | sign(n) << n)
}

/// PBLENDVB, BLENDVPS, BLENDVPD: the mask is XMM0, or the last operand of a form with VEX.
fn blend_variable<const BYTES: usize>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_vector(insn)?;
    let elements = Elements::of(insn, BYTES);
    let is_legacy = insn.vector.encoding == Encoding::Legacy;
    let (first, second) = if is_legacy { (0, 1) } else { (1, 2) };
    let b = cpu.read_vector(insn, second, elements, Faults::Whole)?;
    let a = cpu.register_lanes(insn, first);
    let mask = match is_legacy {
        true => cpu.fpu.lanes(0),
        false => cpu.register_lanes(insn, 3),
    };
    let value = blend(elements, signs(&mask, elements), b, a);
    cpu.write_vector(insn, value, elements)
}

/// VMASKMOVPS, VMASKMOVPD, VPMASKMOVD, VPMASKMOVQ: what a load leaves out becomes zero.
fn move_conditionally<const BYTES: usize>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_vector(insn)?;
    let elements = Elements::of(insn, BYTES);
    let active = signs(&cpu.register_lanes(insn, 1), elements);
    if insn.operands[0] == Operand::Memory {
        let value = cpu.register_lanes(insn, 2);
        return cpu.store_active(insn, value, elements, active);
    }
    let value = cpu.load_elements(insn, elements, active)?;
    cpu.write_vector(insn, value, elements)
}

/// The place of RDI in the register file.
const RDI: u8 = 7 * 8;

/// MASKMOVDQU: bytes of operand 1 whose mask bytes are negative, to memory at DS:RDI.
fn store_bytes(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_vector(insn)?;
    let [value, mask] = [1, 2].map(|n| cpu.register_lanes(insn, n));
    cpu.store_masked_bytes(insn, value, &mask, 16)
}

impl Cpu {
    /// Stores those of the lowest `count` bytes of `value` whose bytes in `mask` are negative at
    /// DS:RDI: all or, at a fault, none.
    pub(super) fn store_masked_bytes(
        &mut self,
        insn: &Insn,
        value: Value,
        mask: &Value,
        count: usize,
    ) -> Exec {
        let bytes = Elements { bytes: 1, count };
        let memory = MemoryOperand {
            base: RDI,
            ..insn.memory
        };
        let at_rdi = Insn {
            memory,
            ..insn.clone()
        };
        self.store_active(&at_rdi, value, bytes, signs(mask, bytes))
    }
}
