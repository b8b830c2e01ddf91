//! The registers, as software outside the processor reads and writes them: a hypervisor that is
//! native code, a debugger, a loader.

use crate::Cpu;
use crate::msr::Msrs;
use crate::system::SystemRegisters;

impl Cpu {
    /// Sets one general-purpose register by number; numbers above 15 are ignored.
    pub fn set_gpr(&mut self, number: usize, value: u64) {
        if let Some(gpr) = self.gpr[..16].get_mut(number) {
            *gpr = value;
        }
    }

    /// Returns one general-purpose register by number; numbers above 15 read as 0.
    #[must_use]
    pub fn gpr(&self, number: usize) -> u64 {
        self.gpr[..16].get(number).copied().unwrap_or(0)
    }

    /// Returns RIP.
    #[must_use]
    pub fn rip(&self) -> u64 {
        self.state.rip
    }

    /// Sets RIP.
    pub fn set_rip(&mut self, rip: u64) {
        self.state.rip = rip;
        self.next_rip = rip;
    }

    /// Returns the system registers that VM entry does not load.
    #[must_use]
    pub fn system_registers(&self) -> &SystemRegisters {
        &self.system
    }

    /// Returns the system registers that VM entry does not load, for changing them.
    pub fn system_registers_mut(&mut self) -> &mut SystemRegisters {
        &mut self.system
    }

    /// Returns the MSRs that VM entry does not load.
    #[must_use]
    pub fn msrs(&self) -> &Msrs {
        &self.msrs
    }

    /// Returns the MSRs that VM entry does not load, for changing them.
    pub fn msrs_mut(&mut self) -> &mut Msrs {
        &mut self.msrs
    }
}
