//! Arithmetic on vector registers: SSE to SSE4, AVX, AVX2 and AVX-512.
//!
//! SDM Vol. 1, "Programming with Intel Streaming SIMD Extensions (Intel SSE)" and the chapters
//! after it. A handler is made from a function of 128-bit lanes: [`integer`] has those on integers,
//! [`float`] those that the host's own unit computes under the guest's MXCSR; [`vector`] applies
//! them to the operands, whatever the encoding. A row is a mnemonic and its forms with V.

mod crypto;
#[cfg(target_arch = "x86_64")]
pub(super) mod float;
pub(super) mod integer;
mod lanes;
pub(super) mod mmx;
pub(crate) mod vector;

#[cfg(all(test, target_arch = "x86_64"))]
mod tests;

use iced_x86::Code;

use super::Row;
use crate::insn::{Insn, Operand};

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
