//! Arithmetic on vector registers: SSE to SSE4, AVX, AVX2 and AVX-512.
//!
//! SDM Vol. 1, "Programming with Intel Streaming SIMD Extensions (Intel SSE)" and the chapters
//! after it. A handler is made from a function of 128-bit lanes: [`integer`] has those on integers,
//! [`float`] those that the host's own unit computes under the guest's MXCSR, the files beside it
//! those that are computed in software ([`binary`]); [`vector`] and [`under_mxcsr`] apply them to
//! the operands, whatever the encoding. A row is a mnemonic and its forms with V.

mod approximate;
mod binary;
pub(super) mod blend;
mod crypto;
mod dot;
mod exponent;
#[cfg(target_arch = "x86_64")]
pub(super) mod float;
mod fused;
mod half;
pub(super) mod gather;
pub(super) mod insert;
pub(super) mod integer;
mod integers;
mod lanes;
pub(super) mod mmx;
mod mmx_convert;
mod predicate;
mod round;
mod select;
mod under_mxcsr;
pub(super) mod permute;
pub(super) mod sha;
pub(super) mod text;
pub(crate) mod vector;

#[cfg(all(test, target_arch = "x86_64"))]
mod tests;

use iced_x86::Code;

use super::Row;
use crate::insn::{Insn, Operand};

/// The tables of floating-point instructions.
const FLOAT: &[fn(Code) -> Option<Row>] = &[
    #[cfg(target_arch = "x86_64")]
    float::lookup,
    approximate::lookup,
    dot::lookup,
    exponent::lookup,
    fused::lookup,
    half::lookup,
    integers::lookup,
    mmx_convert::lookup,
    predicate::lookup,
    round::lookup,
    select::lookup,
];

/// Returns who executes a floating-point instruction of this directory. Those of [`float`] need an
/// x86-64 host.
pub(crate) fn lookup(code: Code) -> Option<Row> {
    FLOAT.iter().find_map(|table| table(code))
}

/// Returns the immediate byte that is operand `n`.
fn immediate(insn: &Insn, n: usize) -> u8 {
    match insn.operands[n] {
        Operand::Immediate(value) => value as u8,
        _ => 0,
    }
}
