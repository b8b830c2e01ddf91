//! The state of a whole processor, to be saved and loaded.
//!
//! [`CpuState`] holds everything that decides what the processor does next; caches (translations,
//! decoded blocks) are rebuilt. Memory, devices, the local APIC, the clock and the VMX state of the
//! logical processor ([`vmx_model::processor::ProcessorState`]) have owners of their own, who save
//! them beside it.

use serde::{Deserialize, Serialize};
use vmx_model::arch::ArchState;
use vmx_model::event::Event;

use crate::Cpu;
use crate::cpuid::CpuidTable;
use crate::events::Events;
use crate::fpu::FpuState;
use crate::msr::Msrs;
use crate::system::SystemRegisters;
use crate::vmx::VmxContextState;

/// The version of [`CpuState`] that this crate writes and reads.
const VERSION: u32 = 2;

/// The state of a processor between two instructions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuState {
    version: u32,
    gpr: [u64; 16],
    arch: ArchState,
    system: SystemRegisters,
    fpu: FpuState,
    msrs: Msrs,
    cpuid: CpuidTable,
    events: Events,
    delivering: Option<Event>,
    vmx: VmxContextState,
    retired: u64,
}

/// Why a state was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RestoreError {
    /// It was saved by another version of this crate, with this version of the format.
    Version(u32),
    /// It was in VMX non-root operation, and no logical processor that is has been attached.
    NotInNonRoot,
}

impl core::fmt::Display for RestoreError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Version(version) => write!(f, "processor state has version {version}"),
            Self::NotInNonRoot => {
                f.write_str("no logical processor in VMX non-root operation is attached")
            }
        }
    }
}

impl core::error::Error for RestoreError {}

impl Cpu {
    /// Returns the state to be saved. The processor must not be inside [`Cpu::run`].
    ///
    /// # Examples
    /// ```
    /// use x86_interp::Cpu;
    /// use x86_interp::bus::{EmptyBus, InstructionClock};
    /// use x86_interp::mem::phys::PhysMap;
    ///
    /// let clock = || Box::new(InstructionClock::default());
    /// let cpu = Cpu::new(PhysMap::new(), Box::new(EmptyBus), clock());
    /// let saved = cpu.save();
    /// let mut other = Cpu::new(PhysMap::new(), Box::new(EmptyBus), clock());
    /// other.restore(&saved)?;
    /// assert_eq!(other.save(), saved);
    /// # Ok::<(), x86_interp::state::RestoreError>(())
    /// ```
    #[must_use]
    pub fn save(&self) -> CpuState {
        let mut gpr = [0; 16];
        gpr.copy_from_slice(&self.gpr[..16]);
        CpuState {
            version: VERSION,
            gpr,
            arch: self.arch_state(),
            system: self.system.clone(),
            fpu: (*self.fpu).clone(),
            msrs: self.msrs.clone(),
            cpuid: self.cpuid.clone(),
            events: self.events.clone(),
            delivering: self.delivering,
            vmx: self.vmx_context(),
            retired: self.retired,
        }
    }

    /// Goes back to a state that was saved. A logical processor has to be attached before.
    ///
    /// The TSC goes on as the clock and the saved offset make it: under an
    /// [`InstructionClock`](crate::bus::InstructionClock) where it was; under another clock whoever
    /// loads writes the TSC.
    ///
    /// # Errors
    /// See [`RestoreError`]; then nothing has changed.
    pub fn restore(&mut self, state: &CpuState) -> Result<(), RestoreError> {
        if state.version != VERSION {
            return Err(RestoreError::Version(state.version));
        }
        self.set_vmx_context(&state.vmx)?;
        self.gpr[..16].copy_from_slice(&state.gpr);
        self.system = state.system.clone();
        *self.fpu = state.fpu.clone();
        self.msrs = state.msrs.clone();
        self.cpuid = state.cpuid.clone();
        self.events = state.events.clone();
        self.delivering = state.delivering;
        self.retired = state.retired;
        self.pending_stop = None;
        self.drop_blocks();
        self.set_arch_state(&state.arch);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
