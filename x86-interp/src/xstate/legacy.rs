//! The legacy region of an XSAVE area, which is the image of FXSAVE.
//!
//! SDM Vol. 1, "Legacy Region of an XSAVE Area"; Vol. 2A, "FXSAVE-Save x87 FPU, MMX Technology, and
//! SSE State".

use crate::fpu::{FpuState, MXCSR_MASK, MXCSR_RESET};

/// Bytes of the region that FXSAVE writes in 64-bit mode; the rest is left to software.
pub(crate) const DEFINED_BYTES: usize = 416;
/// Where MXCSR is.
pub(crate) const MXCSR: usize = 24;
/// Where MXCSR_MASK is.
const MASK: usize = 28;
/// Where ST(0) is; the others follow at distances of 16 bytes.
const ST: usize = 32;
/// Where XMM0 is.
pub(crate) const XMM: usize = 160;

/// A legacy region.
pub(crate) type Region = [u8; DEFINED_BYTES];

/// How the instruction and operand pointers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pointers {
    /// 32-bit offset and selector.
    Selectors,
    /// 64-bit offset: REX.W.
    Wide,
}

/// Reads a little-endian word of the region.
fn word<const N: usize>(region: &Region, at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&region[at..at + N]);
    bytes
}

/// Writes the x87 state.
pub(crate) fn put_x87(region: &mut Region, fpu: &FpuState, pointers: Pointers) {
    region[0..2].copy_from_slice(&fpu.control.to_le_bytes());
    region[2..4].copy_from_slice(&fpu.status.to_le_bytes());
    region[4..6].copy_from_slice(&[fpu.valid, 0]);
    region[6..8].copy_from_slice(&fpu.opcode.to_le_bytes());
    put_pointer(
        region,
        8,
        fpu.instruction_pointer,
        fpu.code_selector,
        pointers,
    );
    put_pointer(region, 16, fpu.data_pointer, fpu.data_selector, pointers);
    for i in 0..8 {
        let at = ST + 16 * i;
        region[at..at + 10].copy_from_slice(&fpu.registers[fpu.physical(i)]);
        region[at + 10..at + 16].fill(0);
    }
}

fn put_pointer(region: &mut Region, at: usize, offset: u64, selector: u16, pointers: Pointers) {
    let value = match pointers {
        Pointers::Wide => offset,
        Pointers::Selectors => offset & 0xffff_ffff | u64::from(selector) << 32,
    };
    region[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

/// Reads the x87 state.
pub(crate) fn take_x87(region: &Region, fpu: &mut FpuState, pointers: Pointers) {
    fpu.control = u16::from_le_bytes(word(region, 0)) & 0x1f7f | 0x40;
    fpu.status = u16::from_le_bytes(word(region, 2));
    fpu.valid = region[4];
    fpu.opcode = u16::from_le_bytes(word(region, 6)) & 0x7ff;
    (fpu.instruction_pointer, fpu.code_selector) = take_pointer(region, 8, pointers);
    (fpu.data_pointer, fpu.data_selector) = take_pointer(region, 16, pointers);
    for i in 0..8 {
        fpu.registers[fpu.physical(i)] = word(region, ST + 16 * i);
    }
    fpu.update_summary();
}

fn take_pointer(region: &Region, at: usize, pointers: Pointers) -> (u64, u16) {
    let value = u64::from_le_bytes(word(region, at));
    match pointers {
        Pointers::Wide => (value, 0),
        Pointers::Selectors => (value & 0xffff_ffff, (value >> 32) as u16),
    }
}

/// Writes MXCSR and MXCSR_MASK.
pub(crate) fn put_mxcsr(region: &mut Region, fpu: &FpuState) {
    region[MXCSR..MASK].copy_from_slice(&fpu.mxcsr.to_le_bytes());
    region[MASK..ST].copy_from_slice(&MXCSR_MASK.to_le_bytes());
}

/// Reads MXCSR; `None` if a reserved bit is set.
pub(crate) fn mxcsr(region: &Region) -> Option<u32> {
    let value = raw_mxcsr(region);
    (value & !MXCSR_MASK == 0).then_some(value)
}

/// Reads MXCSR, reserved bits included.
pub(crate) fn raw_mxcsr(region: &Region) -> u32 {
    u32::from_le_bytes(word(region, MXCSR))
}

/// Writes the first `count` XMM registers.
pub(crate) fn put_xmm(region: &mut Region, fpu: &FpuState, count: usize) {
    for n in 0..count {
        let [low, high] = fpu.xmm(n);
        let at = XMM + 16 * n;
        region[at..at + 8].copy_from_slice(&low.to_le_bytes());
        region[at + 8..at + 16].copy_from_slice(&high.to_le_bytes());
    }
}

/// Reads the first `count` XMM registers.
pub(crate) fn take_xmm(region: &Region, fpu: &mut FpuState, count: usize) {
    for n in 0..count {
        let at = XMM + 16 * n;
        let half = |at| u64::from_le_bytes(word(region, at));
        fpu.set_xmm(n, [half(at), half(at + 8)]);
    }
}

/// Puts the x87 state into its initial configuration.
pub(crate) fn init_x87(fpu: &mut FpuState) {
    fpu.registers = [[0; 10]; 8];
    fpu.init_x87();
}

/// Whether the x87 state is in its initial configuration.
pub(crate) fn is_x87_initial(fpu: &FpuState) -> bool {
    *fpu == FpuState {
        mxcsr: fpu.mxcsr,
        vector: fpu.vector,
        opmask: fpu.opmask,
        ..FpuState::initial()
    }
}

/// Puts the first `count` XMM registers into their initial configuration.
pub(crate) fn init_xmm(fpu: &mut FpuState, count: usize) {
    for n in 0..count {
        fpu.set_xmm(n, [0; 2]);
    }
}

/// Whether all XMM registers are zero.
pub(crate) fn is_xmm_initial(fpu: &FpuState) -> bool {
    fpu.vector[..16].iter().all(|v| v[0] | v[1] == 0)
}

/// Whether MXCSR has its initial value.
pub(crate) const fn is_mxcsr_initial(fpu: &FpuState) -> bool {
    fpu.mxcsr == MXCSR_RESET
}
