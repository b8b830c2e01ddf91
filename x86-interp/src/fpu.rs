//! The state of the x87 FPU, MMX, SSE, AVX and AVX-512.
//!
//! SDM Vol. 1, "x87 FPU Execution Environment", "SSE2 Programming Environment", "Programming
//! with AVX" and "Programming with Intel AVX-512". This is state only: arithmetic is elsewhere. The MMX registers are the significands
//! of the x87 registers.

use serde::{Deserialize, Serialize};

/// MXCSR after RESET.
pub const MXCSR_RESET: u32 = 0x1f80;
/// Bits of MXCSR that exist: all flags, masks, rounding, FTZ and DAZ.
pub const MXCSR_MASK: u32 = 0xffff;

/// Bits of the x87 status word.
mod status {
    pub(super) const EXCEPTIONS: u16 = 0x3f;
    pub(super) const ES: u16 = 1 << 7;
    pub(super) const B: u16 = 1 << 15;
    pub(super) const TOP_SHIFT: u32 = 11;
    /// Everything that FNCLEX clears: exceptions, SF, ES, B.
    pub(super) const CLEARED_BY_FNCLEX: u16 = 0x80ff;
}

/// The x87, MMX, SSE, AVX and AVX-512 registers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FpuState {
    /// Control word.
    pub control: u16,
    /// Status word; bits 13:11 are TOP.
    pub status: u16,
    /// Bit n: physical register n is not empty (the abridged tag word of FXSAVE).
    pub valid: u8,
    /// Opcode of the last instruction, 11 bits.
    pub opcode: u16,
    /// Instruction pointer of the last instruction.
    pub instruction_pointer: u64,
    /// Operand pointer of the last instruction.
    pub data_pointer: u64,
    /// Selector that goes with `instruction_pointer`.
    pub code_selector: u16,
    /// Selector that goes with `data_pointer`.
    pub data_selector: u16,
    /// The physical registers R0 to R7; ST(i) is R((TOP + i) mod 8).
    pub registers: [[u8; 10]; 8],
    /// MXCSR.
    pub mxcsr: u32,
    /// ZMM0 to ZMM31; their low parts are the YMM and XMM registers.
    pub vector: [[u64; 8]; 32],
    /// The opmask registers K0 to K7.
    pub opmask: [u64; 8],
}

impl Default for FpuState {
    /// The state after RESET (SDM Vol. 3A, "Processor State After Reset").
    fn default() -> Self {
        Self {
            control: 0x40,
            valid: 0xff,
            ..Self::initial()
        }
    }
}

impl FpuState {
    /// Returns the initial configuration of all components, as after FNINIT (SDM Vol. 1, "Initial
    /// State of the XSAVE-Managed State").
    #[must_use]
    pub const fn initial() -> Self {
        Self {
            control: 0x37f,
            status: 0,
            valid: 0,
            opcode: 0,
            instruction_pointer: 0,
            data_pointer: 0,
            code_selector: 0,
            data_selector: 0,
            registers: [[0; 10]; 8],
            mxcsr: MXCSR_RESET,
            vector: [[0; 8]; 32],
            opmask: [0; 8],
        }
    }

    /// FNINIT: the registers keep their contents, but are tagged empty.
    pub(crate) fn init_x87(&mut self) {
        *self = Self {
            registers: self.registers,
            mxcsr: self.mxcsr,
            vector: self.vector,
            opmask: self.opmask,
            ..Self::initial()
        };
    }

    /// FNCLEX.
    pub(crate) fn clear_exceptions(&mut self) {
        self.status &= !status::CLEARED_BY_FNCLEX;
    }

    /// Returns TOP.
    #[must_use]
    pub const fn top(&self) -> usize {
        (self.status >> status::TOP_SHIFT & 7) as usize
    }

    /// Sets TOP.
    pub(crate) fn set_top(&mut self, top: usize) {
        self.status =
            self.status & !(7 << status::TOP_SHIFT) | (top as u16 & 7) << status::TOP_SHIFT;
    }

    /// Returns the number of the physical register behind ST(i).
    #[must_use]
    pub const fn physical(&self, i: usize) -> usize {
        (self.top() + i) & 7
    }

    /// Makes ES and B follow from the exception flags and masks, as loads of these words do.
    pub(crate) fn update_summary(&mut self) {
        let summary = status::ES | status::B;
        if self.has_unmasked_exception() {
            self.status |= summary;
        } else {
            self.status &= !summary;
        }
    }

    fn has_unmasked_exception(&self) -> bool {
        self.status & !self.control & status::EXCEPTIONS != 0
    }

    /// Whether an unmasked exception waits for the next waiting instruction.
    #[must_use]
    pub const fn is_exception_pending(&self) -> bool {
        self.status & status::ES != 0
    }

    /// Returns the full tag word: 0 valid, 1 zero, 2 special, 3 empty.
    #[must_use]
    pub fn tag_word(&self) -> u16 {
        (0..8).fold(0, |word, n| word | self.tag(n) << (2 * n))
    }

    fn tag(&self, n: usize) -> u16 {
        if self.valid >> n & 1 == 0 {
            return 3;
        }
        let value = &self.registers[n];
        let exponent = u16::from_le_bytes([value[8], value[9]]) & 0x7fff;
        let is_integer_bit = value[7] & 0x80 != 0;
        match exponent {
            0 if value[..8] == [0; 8] => 1,
            0 | 0x7fff => 2,
            _ if is_integer_bit => 0,
            _ => 2,
        }
    }

    /// Loads a full tag word: only empty or not is kept.
    pub(crate) fn set_tag_word(&mut self, word: u16) {
        let is_valid = |n: &usize| word >> (2 * n) & 3 != 3;
        self.valid = (0..8).filter(is_valid).fold(0, |valid, n| valid | 1 << n);
    }

    /// Returns the low 128 bits of a vector register.
    #[must_use]
    pub const fn xmm(&self, n: usize) -> [u64; 2] {
        [self.vector[n][0], self.vector[n][1]]
    }

    /// Returns a whole vector register as 128-bit lanes, the lowest first.
    #[must_use]
    pub fn lanes(&self, n: usize) -> [u128; 4] {
        let register = &self.vector[n];
        core::array::from_fn(|lane| {
            u128::from(register[2 * lane + 1]) << 64 | u128::from(register[2 * lane])
        })
    }

    /// Sets a whole vector register.
    pub(crate) fn set_lanes(&mut self, n: usize, value: [u128; 4]) {
        for (lane, bits) in value.into_iter().enumerate() {
            self.vector[n][2 * lane] = bits as u64;
            self.vector[n][2 * lane + 1] = (bits >> 64) as u64;
        }
    }

    /// Sets the low 128 bits of a vector register; the rest stays.
    pub(crate) const fn set_xmm(&mut self, n: usize, value: [u64; 2]) {
        self.vector[n][0] = value[0];
        self.vector[n][1] = value[1];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_follow_from_contents() {
        let one = [0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x3f];
        let infinity = [0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x7f];
        let denormal = [1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let unnormal = [0, 0, 0, 0, 0, 0, 0, 0x40, 0xff, 0x3f];
        let mut fpu = FpuState::initial();
        fpu.valid = 0x1f;
        fpu.registers[..5].copy_from_slice(&[one, [0; 10], infinity, denormal, unnormal]);
        assert_eq!(fpu.tag_word(), 0b11_11_11_10_10_10_01_00);
        fpu.set_tag_word(0x5557);
        assert_eq!(fpu.valid, 0xfe);
        assert_eq!(FpuState::default().tag_word(), 0x5555);
    }

    #[test]
    fn the_summary_follows_the_masks() {
        let mut fpu = FpuState::initial();
        fpu.status = 0x3801;
        fpu.update_summary();
        assert_eq!(fpu.status, 0x3801);
        fpu.control = 0x37e;
        fpu.update_summary();
        assert_eq!(fpu.status, 0xb881);
        assert_eq!(fpu.top(), 7);
        assert_eq!(fpu.physical(3), 2);
        fpu.clear_exceptions();
        assert_eq!(fpu.status, 0x3800);
    }
}
