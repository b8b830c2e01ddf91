//! Model-specific registers.
//!
//! SDM Vol. 4, "Architectural MSRs". [`Msrs`] holds those that no VM entry loads through a VMCS
//! field of their own; the others are in [`vmx_model::arch::ArchState`]. `table` has one row for
//! each MSR: when it exists, where its value is, and what may be written. RDMSR and WRMSR are in
//! `exec::msr`.

mod rule;
mod table;

use serde::{Deserialize, Serialize};
use vmx_model::capability::{VmxCapabilities, VmxProfile};
use vmx_model::event::Exception;
use vmx_model::msr_area::MsrAccess;

use crate::{Cpu, Exec};

pub(crate) use rule::{MISC_ENABLE_LIMIT_CPUID, MISC_ENABLE_XD_DISABLE, cet, shadow_stack_pointer};
pub use table::MSRS;

/// Bits of IA32_DEBUGCTL that may be set: LBR (no branch is recorded) and BTF.
pub const DEBUGCTL_SUPPORTED: u64 = 0x3;

/// The MSRs outside [`vmx_model::arch::ArchState`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the architecture's own")]
pub struct Msrs {
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub fmask: u64,
    pub kernel_gs_base: u64,
    pub tsc_aux: u64,
    pub tsc_adjust: u64,
    /// What is added to the clock: IA32_TSC minus the clock's counter.
    pub tsc_offset: u64,
    pub tsc_deadline: u64,
    /// IA32_APIC_BASE of a processor without a local APIC attached.
    pub apic_base: u64,
    pub feature_control: u64,
    pub misc_enable: u64,
    /// MSR_POWER_CTL.
    pub power_ctl: u64,
    pub bios_sign_id: u64,
    pub xss: u64,
    pub u_cet: u64,
    /// IA32_PL0_SSP to IA32_PL3_SSP.
    pub pl_ssp: [u64; 4],
    pub spec_ctrl: u64,
    pub umwait_control: u64,
    pub mtrr_def_type: u64,
    pub mtrr_fixed: [u64; 11],
    pub mtrr_variable: [u64; 16],
    pub mcg_status: u64,
    /// IA32_MCi_CTL, STATUS, ADDR, MISC of four banks.
    pub mc_banks: [u64; 16],
    /// IA32_VMX_BASIC to IA32_VMX_EXIT_CTLS2.
    pub vmx: VmxCapabilities,
}

impl Default for Msrs {
    fn default() -> Self {
        Self {
            star: 0,
            lstar: 0,
            cstar: 0,
            fmask: 0,
            kernel_gs_base: 0,
            tsc_aux: 0,
            tsc_adjust: 0,
            tsc_offset: 0,
            tsc_deadline: 0,
            apic_base: 0xfee0_0900,
            feature_control: 0,
            misc_enable: rule::MISC_ENABLE_RESET,
            power_ctl: 0,
            bios_sign_id: 1 << 32,
            xss: 0,
            u_cet: 0,
            pl_ssp: [0; 4],
            spec_ctrl: 0,
            umwait_control: 0,
            mtrr_def_type: 0,
            mtrr_fixed: [0; 11],
            mtrr_variable: [0; 16],
            mcg_status: 0,
            mc_banks: [0; 16],
            vmx: VmxProfile::emulator_default().caps,
        }
    }
}

impl Cpu {
    /// Reads an MSR as RDMSR does.
    ///
    /// # Examples
    /// ```
    /// use x86_interp::Cpu;
    /// use x86_interp::bus::{EmptyBus, InstructionClock};
    /// use x86_interp::mem::phys::PhysMap;
    ///
    /// let clock = Box::new(InstructionClock::default());
    /// let mut cpu = Cpu::new(PhysMap::new(), Box::new(EmptyBus), clock);
    /// cpu.write_msr(0x277, 0x0007_0406_0007_0406).unwrap();
    /// assert_eq!(cpu.read_msr(0x277), Ok(0x0007_0406_0007_0406));
    /// assert!(cpu.write_msr(0x277, 2).is_err(), "2 is no memory type");
    /// ```
    ///
    /// # Errors
    /// #GP(0) if there is no such MSR, or it cannot be read.
    pub fn read_msr(&mut self, index: u32) -> Exec<u64> {
        let value = match table::find(index) {
            Some(row) => row.read(self),
            None => self.read_msr_outside(index),
        };
        value.ok_or(Exception::gp(0).into())
    }

    /// Writes an MSR as WRMSR does.
    ///
    /// # Errors
    /// #GP(0) if there is no such MSR, or it does not take the value.
    pub fn write_msr(&mut self, index: u32, value: u64) -> Exec {
        let done = match table::find(index) {
            Some(row) => row.write(self, value),
            None => self.write_msr_outside(index, value),
        };
        done.ok_or(Exception::gp(0).into())
    }

    /// Replaces the VMX capability MSRs.
    pub fn set_vmx_capabilities(&mut self, capabilities: VmxCapabilities) {
        self.msrs.vmx = capabilities;
    }

    /// The VMX capability MSRs and, through the local APIC, the x2APIC registers.
    fn read_msr_outside(&mut self, index: u32) -> Option<u64> {
        match index {
            0x480..=0x4ff if self.has(crate::cpuid::Feature::Vmx) => self.msrs.vmx.msr(index),
            0x800..=0x8ff => {
                self.bus.time_passes(self.retired);
                self.apic.as_mut()?.read_x2apic(index)
            }
            _ => None,
        }
    }

    fn write_msr_outside(&mut self, index: u32, value: u64) -> Option<()> {
        match index {
            0x800..=0x8ff => {
                self.bus.time_passes(self.retired);
                self.apic.as_mut()?.write_x2apic(index, value)
            }
            _ => None,
        }
    }
}

impl MsrAccess for Cpu {
    fn read_msr(&mut self, index: u32) -> Option<u64> {
        Cpu::read_msr(self, index).ok()
    }

    fn write_msr(&mut self, index: u32, value: u64) -> Option<()> {
        Cpu::write_msr(self, index, value).ok()
    }
}

#[cfg(test)]
mod tests;
