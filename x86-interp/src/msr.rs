//! Model-specific registers.
//!
//! SDM Vol. 4, "Architectural MSRs". [`Msrs`] holds those that no VM entry loads through a VMCS
//! field of their own; the others are in [`vmx_model::arch::ArchState`].

use serde::{Deserialize, Serialize};

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
    pub bios_sign_id: u64,
    pub xss: u64,
    pub spec_ctrl: u64,
    pub umwait_control: u64,
    pub mtrr_def_type: u64,
    pub mtrr_fixed: [u64; 11],
    pub mtrr_variable: [u64; 16],
    pub mcg_status: u64,
    /// IA32_MCi_CTL, STATUS, ADDR, MISC of four banks.
    pub mc_banks: [u64; 16],
    /// IA32_VMX_BASIC (480H) to IA32_VMX_EXIT_CTLS2 (493H).
    pub vmx_capabilities: [u64; 20],
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
            misc_enable: 1,
            bios_sign_id: 0,
            xss: 0,
            spec_ctrl: 0,
            umwait_control: 0,
            mtrr_def_type: 0,
            mtrr_fixed: [0; 11],
            mtrr_variable: [0; 16],
            mcg_status: 0,
            mc_banks: [0; 16],
            vmx_capabilities: [0; 20],
        }
    }
}
