//! System registers that neither VM entry nor VM exit touches, and who the processor is.
//!
//! SDM Vol. 3A, "Control Registers", "Debug Registers", "Extended Control Registers (Including
//! XCR0)". What VM entry loads is in [`vmx_model::arch::ArchState`]; MSRs are in [`crate::msr`].

use serde::{Deserialize, Serialize};

/// DR6 bits that always read as one (SDM Vol. 3B, "Debug Status Register (DR6)").
pub const DR6_FIXED1: u64 = 0xffff_0ff0;
/// DR7 bit 10, which always reads as one.
pub const DR7_FIXED1: u64 = 0x400;

/// System registers outside [`vmx_model::arch::ArchState`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SystemRegisters {
    /// CR2: the linear address of the last page fault.
    pub cr2: u64,
    /// CR8 of a processor without a local APIC attached; with one, the APIC holds it.
    pub cr8: u64,
    /// DR0 to DR3.
    pub breakpoints: [u64; 4],
    /// DR6.
    pub dr6: u64,
    /// XCR0.
    pub xcr0: u64,
    /// PKRU.
    pub pkru: u32,
    /// Initial APIC ID, as CPUID reports it.
    pub apic_id: u32,
    /// State of the deterministic generator behind RDRAND and RDSEED.
    pub random: u64,
}

impl Default for SystemRegisters {
    fn default() -> Self {
        Self {
            cr2: 0,
            cr8: 0,
            breakpoints: [0; 4],
            dr6: DR6_FIXED1,
            xcr0: 1,
            pkru: 0,
            apic_id: 0,
            random: 0x9e37_79b9_7f4a_7c15,
        }
    }
}

impl SystemRegisters {
    /// Returns the next number of the generator behind RDRAND and RDSEED (SplitMix64).
    pub(crate) fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
}
