//! The plain handlers: every instruction once, in the SDM's order of accesses.
//!
//! Files follow SDM Vol. 1, "Instruction Set Summary". Each has a table from the decoder's code to
//! a [`Row`]; [`lookup`] asks them in turn.

mod arithmetic;
mod bcd;
mod bit;
mod cache;
mod common;
mod condition;
mod control;
mod control_register;
mod cpuid;
mod debug_register;
mod far;
mod fast_call;
mod flags;
mod form;
pub(crate) mod fpu_arithmetic;
mod fpu_stack;
mod fpu_state;
mod fpu_transcendental;
pub(crate) mod interrupt;
mod io;
pub(crate) mod iret;
mod logic;
pub(crate) mod monitor;
mod msr;
mod nothing;
mod protection;
pub(crate) mod segment;
mod shadow_stack;
mod shift;
pub(crate) mod simd;
mod stack;
mod string;
mod time;
mod transfer;
mod user_wait;
mod vector_move;
mod vmx;
pub(crate) mod xsave;

use iced_x86::Code;

use crate::insn::Plain;

/// A row of an instruction table.
#[derive(Clone, Copy)]
pub(crate) struct Row {
    /// Who executes the instruction.
    pub(crate) plain: Plain,
    /// What the block builder has to know.
    pub(crate) traits: Traits,
}

bitflags::bitflags! {
    /// What the block builder has to know about an instruction.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct Traits: u8 {
        /// It may transfer control, change mode, mappings or interruptibility, or stop: a block
        /// ends behind it.
        const ENDS_BLOCK = 1 << 0;
        /// It serialises or reaches the outside: code may have changed behind our back.
        const OUTSIDE = 1 << 1;
    }
}

/// The tables of the files, in the order in which they are asked.
const TABLES: &[fn(Code) -> Option<Row>] = &[
    arithmetic::lookup,
    bit::lookup,
    logic::lookup,
    segment::lookup,
    far::lookup,
    iret::lookup,
    interrupt::lookup,
    fast_call::lookup,
    shift::lookup,
    transfer::lookup,
    string::lookup,
    stack::lookup,
    nothing::lookup,
    shadow_stack::lookup,
    flags::lookup,
    control::lookup,
    condition::lookup,
    bcd::lookup,
    vmx::lookup,
    control_register::lookup,
    debug_register::lookup,
    cpuid::lookup,
    msr::lookup,
    time::lookup,
    user_wait::lookup,
    io::lookup,
    cache::lookup,
    monitor::lookup,
    protection::lookup,
    fpu_state::lookup,
    fpu_arithmetic::lookup,
    fpu_transcendental::lookup,
    xsave::lookup,
    vector_move::lookup,
    simd::opmask::lookup,
    simd::compare_mask::lookup,
    simd::table::lookup,
    simd::accumulate::lookup,
    simd::element::lookup,
    simd::narrow::lookup,
    simd::compress::lookup,
    simd::scatter::lookup,
    simd::integer::lookup,
    simd::blend::lookup,
    simd::gather::lookup,
    simd::insert::lookup,
    simd::permute::lookup,
    simd::sha::lookup,
    simd::text::lookup,
    simd::mmx::lookup,
    simd::lookup,
];

/// Returns who executes an instruction; `None` if nobody does yet.
pub(crate) fn lookup(code: Code) -> Option<Row> {
    TABLES.iter().find_map(|table| table(code))
}
