//! The pieces of a save area that an instruction writes.

use vmx_model::addr::Linear;

use crate::mem::{Access, Privilege};
use crate::xstate::legacy::{self, Pointers, Region};
use crate::xstate::{Component, LEGACY_BYTES, SSE, X87};
use crate::{Cpu, Exec};

/// The pieces of a save area that an instruction writes.
#[derive(Default)]
pub(super) struct Area {
    pieces: Vec<(u32, Vec<u8>)>,
}

impl Area {
    pub(super) fn legacy(&mut self, cpu: &Cpu, written: u64, has_mxcsr: bool, pointers: Pointers) {
        let mut region: Region = [0; legacy::DEFINED_BYTES];
        let mut put = |from: usize, to: usize, region: &Region| {
            self.pieces.push((from as u32, region[from..to].to_vec()));
        };
        if written & X87 != 0 {
            legacy::put_x87(&mut region, &cpu.fpu, pointers);
            put(0, legacy::MXCSR, &region);
            put(legacy::MXCSR + 8, legacy::XMM, &region);
        }
        if has_mxcsr {
            legacy::put_mxcsr(&mut region, &cpu.fpu);
            put(legacy::MXCSR, legacy::MXCSR + 8, &region);
        }
        if written & SSE != 0 {
            let count = cpu.vector_registers();
            legacy::put_xmm(&mut region, &cpu.fpu, count);
            put(legacy::XMM, legacy::XMM + 16 * count, &region);
        }
    }

    pub(super) fn header(&mut self, words: &[u64]) {
        let bytes = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        self.pieces.push((LEGACY_BYTES, bytes));
    }

    pub(super) fn extended(
        &mut self,
        cpu: &Cpu,
        written: u64,
        places: impl Iterator<Item = (Component, u32)>,
    ) {
        for (component, at) in places.filter(|(c, _)| written & c.mask != 0) {
            let bytes = cpu.component_bytes(&component, cpu.vector_registers());
            // Outside 64-bit mode nothing of ZMM16 to ZMM31 is saved.
            if !bytes.is_empty() {
                self.pieces.push((at, bytes));
            }
        }
    }

    /// Stores the pieces; all pages are checked before the first byte is written.
    pub(super) fn store(&self, cpu: &mut Cpu, area: Linear) -> Exec {
        for (at, bytes) in &self.pieces {
            let first = area.offset(u64::from(*at));
            for linear in [first, first.offset(bytes.len() as u64 - 1)] {
                cpu.translate(linear, Access::Write, Privilege::Current)?;
            }
        }
        for (at, bytes) in &self.pieces {
            cpu.store_bytes_linear(area.offset(u64::from(*at)), bytes, Privilege::Current)?;
        }
        Ok(())
    }
}
