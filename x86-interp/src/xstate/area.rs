//! The extended state as one XSAVE area in the standard form, for software outside the processor.
//!
//! api.rst, "KVM_GET_XSAVE": the layout that hypervisors exchange.

use super::legacy::{self, Pointers, Region};
use super::{EXTENDED, LEGACY_BYTES, SSE, X87, supported};
use crate::Cpu;
use crate::cet::components::CetComponents;
use crate::exec::xsave::Extended;
use crate::fpu::{FpuState, MXCSR_MASK};

/// Bytes of an area that holds every state component.
pub const AREA_BYTES: usize = 4096;

/// Where XSTATE_BV is.
const XSTATE_BV: usize = LEGACY_BYTES as usize;
/// Vector registers, whatever the mode can reach.
const VECTOR_REGISTERS: usize = 16;

impl Cpu {
    /// Returns the x87, MMX, SSE and AVX registers.
    #[must_use]
    pub fn fpu(&self) -> &FpuState {
        &self.fpu
    }

    /// Exchanges the x87, MMX, SSE, AVX and AVX-512 registers with those of `other`.
    pub fn swap_fpu(&mut self, other: &mut Box<FpuState>) {
        core::mem::swap(&mut self.fpu, other);
    }

    /// Returns the x87, MMX, SSE and AVX registers for changing them.
    pub fn fpu_mut(&mut self) -> &mut FpuState {
        &mut self.fpu
    }

    /// Writes the state of all supported components, as XSAVE64 does; the other bytes stay.
    pub fn save_xstate(&self, area: &mut [u8; AREA_BYTES]) {
        let mut region: Region = [0; legacy::DEFINED_BYTES];
        legacy::put_x87(&mut region, &self.fpu, Pointers::Wide);
        legacy::put_mxcsr(&mut region, &self.fpu);
        legacy::put_xmm(&mut region, &self.fpu, VECTOR_REGISTERS);
        area[..region.len()].copy_from_slice(&region);
        let offered = supported(self.cpuid.features());
        for component in EXTENDED.iter().filter(|c| offered & c.mask != 0) {
            let bytes = self.component_bytes(component, VECTOR_REGISTERS);
            let at = component.offset as usize;
            area[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        let in_use = self.xinuse() & offered;
        area[XSTATE_BV..XSTATE_BV + 8].copy_from_slice(&in_use.to_le_bytes());
        area[XSTATE_BV + 8..XSTATE_BV + 16].fill(0);
    }

    /// Loads the state of all supported components, as XRSTOR64 does; reserved bits of MXCSR are
    /// dropped.
    pub fn restore_xstate(&mut self, area: &[u8; AREA_BYTES]) {
        let mut region: Region = [0; legacy::DEFINED_BYTES];
        region.copy_from_slice(&area[..legacy::DEFINED_BYTES]);
        let mut word = [0; 8];
        word.copy_from_slice(&area[XSTATE_BV..XSTATE_BV + 8]);
        let present = u64::from_le_bytes(word) & supported(self.cpuid.features());
        let mut next = Extended {
            fpu: FpuState::initial(),
            pkru: 0,
            cet: CetComponents::default(),
            count: VECTOR_REGISTERS,
        };
        if present & X87 != 0 {
            legacy::take_x87(&region, &mut next.fpu, Pointers::Wide);
        }
        if present & SSE != 0 {
            legacy::take_xmm(&region, &mut next.fpu, VECTOR_REGISTERS);
        }
        next.fpu.mxcsr = legacy::raw_mxcsr(&region) & MXCSR_MASK;
        for component in EXTENDED.iter().filter(|c| present & c.mask != 0) {
            let at = component.offset as usize;
            next.take(component, &area[at..at + component.size as usize]);
        }
        *self.fpu = next.fpu;
        self.write_pkru(next.pkru);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_cpu::long_mode;

    #[test]
    fn a_saved_area_restores_the_state() {
        let mut cpu = long_mode();
        cpu.fpu.control = 0x77f;
        cpu.fpu.status = 0x3000;
        cpu.fpu.registers[3] = [7; 10];
        cpu.fpu.mxcsr = 0x1fa0;
        cpu.fpu.vector[15] = [1, 2, 3, 4, 0, 0, 0, 0];
        cpu.system.pkru = 0x5555_0000;
        let mut area = [0; AREA_BYTES];
        cpu.save_xstate(&mut area);
        assert_eq!(area[XSTATE_BV..XSTATE_BV + 8], 0x207_u64.to_le_bytes());
        let mut other = long_mode();
        other.restore_xstate(&area);
        assert_eq!(other.fpu, cpu.fpu);
        assert_eq!(other.system.pkru, cpu.system.pkru);
    }

    #[test]
    fn components_that_are_not_in_the_area_are_initial() {
        let mut cpu = long_mode();
        cpu.fpu.vector = [[9; 8]; 32];
        cpu.fpu.opmask = [9; 8];
        cpu.system.pkru = 5;
        let mut area = [0; AREA_BYTES];
        area[legacy::MXCSR..legacy::MXCSR + 4].copy_from_slice(&0xffff_1fa0_u32.to_le_bytes());
        cpu.restore_xstate(&area);
        let expected = FpuState {
            mxcsr: 0x1fa0,
            ..FpuState::initial()
        };
        assert_eq!((&*cpu.fpu, cpu.system.pkru), (&expected, 0));
    }
}
