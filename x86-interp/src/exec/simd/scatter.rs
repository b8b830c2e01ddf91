//! Gathers and scatters under an opmask (SDM Vol. 1, "Intel AVX-512 instructions"; Vol. 2, "Vector
//! SIB (VSIB) Memory Addressing").
//!
//! Elements are accessed from the lowest on. At a fault those that are done stay done, and their
//! bits of the opmask are clear; at the end all of them are.

use iced_x86::{Code, EncodingKind, Mnemonic};
use vmx_model::event::Exception;

use super::vector::{Elements, collect, each_lane, element};
use crate::exec::Row;
use crate::exec::form::plain;
use crate::insn::{Insn, Operand};
use crate::mem::{Access, Privilege};
use crate::{Cpu, Exec};

/// Returns who executes an instruction of this file.
pub(crate) fn lookup(code: Code) -> Option<Row> {
    use Mnemonic as M;
    if code.encoding() != EncodingKind::EVEX {
        return None;
    }
    plain(match code.mnemonic() {
        M::Vgatherdps | M::Vpgatherdd => gather::<4, 4>,
        M::Vgatherdpd | M::Vpgatherdq => gather::<4, 8>,
        M::Vgatherqps | M::Vpgatherqd => gather::<8, 4>,
        M::Vgatherqpd | M::Vpgatherqq => gather::<8, 8>,
        M::Vscatterdps | M::Vpscatterdd => scatter::<4, 4>,
        M::Vscatterdpd | M::Vpscatterdq => scatter::<4, 8>,
        M::Vscatterqps | M::Vpscatterqd => scatter::<8, 4>,
        M::Vscatterqpd | M::Vpscatterqq => scatter::<8, 8>,
        _ => return None,
    })
}

/// Elements that indices of `INDEX` bytes number.
fn elements<const INDEX: usize, const BYTES: usize>(insn: &Insn) -> Elements {
    Elements {
        bytes: BYTES,
        count: usize::from(insn.vector.bytes) / INDEX.max(BYTES),
    }
}

/// A gather. The destination is not the index, or #UD.
fn gather<const INDEX: usize, const BYTES: usize>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_vector(insn)?;
    let Operand::Vector(to) = insn.operands[0] else {
        return Err(Exception::UD.into());
    };
    if to == insn.vector.index {
        return Err(Exception::UD.into());
    }
    let elements = elements::<INDEX, BYTES>(insn);
    let of = cpu.indexed(insn, INDEX, BYTES);
    let active = cpu.active(insn, elements.count);
    for n in (0..elements.count).filter(|n| active >> n & 1 != 0) {
        let loaded = cpu.load_indexed(insn, &of, n)?;
        cpu.set_element(to, n, BYTES, loaded);
        // Choice: what lies beyond the vector length becomes zero with the first element.
        let value = cpu.register_lanes(insn, 0);
        let value = each_lane(insn.lane_count(), |lane| value[lane]);
        cpu.fpu.set_lanes(usize::from(to & 31), value);
        cpu.clear_mask_bit(insn, n);
    }
    let value = cpu.register_lanes(insn, 0);
    let value = collect(elements, |n| element(&value, n, BYTES));
    cpu.fpu.set_lanes(usize::from(to & 31), value);
    cpu.clear_mask(insn);
    Ok(())
}

/// A scatter.
fn scatter<const INDEX: usize, const BYTES: usize>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_vector(insn)?;
    let elements = elements::<INDEX, BYTES>(insn);
    let of = cpu.indexed(insn, INDEX, BYTES);
    let value = cpu.register_lanes(insn, 1);
    let active = cpu.active(insn, elements.count);
    for n in (0..elements.count).filter(|n| active >> n & 1 != 0) {
        let at = cpu.indexed_linear(insn, &of, n, Access::Write)?;
        let bytes = element(&value, n, BYTES).to_le_bytes();
        cpu.store_bytes_linear(at, &bytes[..BYTES], Privilege::Current)?;
        cpu.clear_mask_bit(insn, n);
    }
    cpu.clear_mask(insn);
    Ok(())
}

impl Cpu {
    /// Notes that element `n` is done.
    fn clear_mask_bit(&mut self, insn: &Insn, n: usize) {
        self.fpu.opmask[usize::from(insn.vector.mask & 7)] &= !(1 << n);
    }

    /// Notes that all elements are done.
    fn clear_mask(&mut self, insn: &Insn) {
        self.fpu.opmask[usize::from(insn.vector.mask & 7)] = 0;
    }
}
