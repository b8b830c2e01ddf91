//! Arithmetic on XMM registers: SSE, SSE2, SSSE3 and SSE4 in their legacy encodings.
//!
//! SDM Vol. 1, "Programming with Intel Streaming SIMD Extensions (Intel SSE)" and the chapters
//! after it. A handler is made from a function of values: [`integer`] has those on integer lanes,
//! [`float`] those that the host's own unit computes under the guest's MXCSR.

mod crypto;
#[cfg(target_arch = "x86_64")]
pub(super) mod float;
pub(super) mod integer;
mod lanes;
pub(super) mod mmx;

#[cfg(all(test, target_arch = "x86_64"))]
mod tests;

use iced_x86::Code;

use super::Row;
use super::vector_move::Alignment;
use crate::insn::{Insn, Operand};
use crate::{Cpu, Exec};

/// Returns who executes a floating-point instruction of this directory.
#[cfg(target_arch = "x86_64")]
pub(crate) fn lookup(code: Code) -> Option<Row> {
    float::lookup(code)
}

/// Floating-point arithmetic needs an x86-64 host today.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn lookup(_: Code) -> Option<Row> {
    None
}

/// Returns the immediate byte that is operand `n`.
fn immediate(insn: &Insn, n: usize) -> u8 {
    match insn.operands[n] {
        Operand::Immediate(value) => value as u8,
        _ => 0,
    }
}

const fn join(halves: [u64; 2]) -> u128 {
    (halves[1] as u128) << 64 | halves[0] as u128
}

const fn split(value: u128) -> [u64; 2] {
    [value as u64, (value >> 64) as u64]
}

impl Cpu {
    /// Reads operand `n`: a register whole, or `BYTES` bytes of memory; 16 bytes are aligned.
    fn read_lanes<const BYTES: usize>(&mut self, insn: &Insn, n: usize) -> Exec<u128> {
        match (insn.operands[n], BYTES) {
            (Operand::Vector(_), _) | (_, 16) => {
                self.read_xmm(insn, n, Alignment::Aligned).map(join)
            }
            (_, 8) => self.read::<u64>(insn, n).map(u128::from),
            (_, 4) => self.read::<u32>(insn, n).map(u128::from),
            _ => self.read::<u16>(insn, n).map(u128::from),
        }
    }

    /// Writes operand 0, a register.
    fn write_lanes(&mut self, insn: &Insn, value: u128) -> Exec {
        self.write_xmm(insn, split(value), Alignment::Any)
    }
}
