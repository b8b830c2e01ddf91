//! Arithmetic on vector registers: SSE to SSE4, AVX, AVX2 and AVX-512.
//!
//! SDM Vol. 1, "Programming with Intel Streaming SIMD Extensions (Intel SSE)" and the chapters
//! after it. A handler is made from a function of 128-bit lanes: [`integer`] has those on integers,
//! [`float`] those that the host's own unit computes under the guest's MXCSR, the files beside it
//! those that are computed in software ([`binary`]); [`vector`] and [`under_mxcsr`] apply them to
//! the operands, whatever the encoding. A row is a mnemonic and its forms with V.

pub(super) mod accumulate;
mod approximate;
mod arithmetic;
mod binary;
pub(super) mod blend;
pub(super) mod compare_mask;
pub(super) mod compress;
mod crypto;
mod dot;
pub(super) mod element;
mod exponent;
#[cfg(target_arch = "x86_64")]
pub(super) mod float;
mod fused;
pub(super) mod gather;
mod half;
pub(super) mod insert;
pub(super) mod integer;
mod integers;
mod lanes;
pub(super) mod mmx;
mod mmx_convert;
pub(super) mod narrow;
pub(super) mod opmask;
pub(super) mod permute;
mod predicate;
mod round;
pub(super) mod scatter;
mod select;
pub(super) mod sha;
pub(super) mod table;
pub(super) mod text;
mod under_mxcsr;
pub(crate) mod vector;

#[cfg(test)]
mod gather_tests;
#[cfg(test)]
mod masking_tests;
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
