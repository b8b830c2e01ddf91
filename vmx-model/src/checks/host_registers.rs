//! Checks on the host control registers, MSRs and SSP.
//!
//! SDM Vol. 3C, "Checks on Host Control Registers, MSRs, and SSP".

use super::Finding;
use super::checks;
use super::helpers::{beyond_physical, canonical, equal_to, holds, memory_types, ones, zero};
use super::view::View;
use crate::arch::{Cr0, Cr4, Efer};
use crate::controls::ExitControls;
use crate::field::Field as F;

checks! {
    HostRegisters |v|

    /// The CR0 field must set every bit that is fixed to 1 in VMX operation, other than CD and NW.
    "host-cr0-must-one" host_cr0_must_one [HOST_CR0]
        when true
        => ones(v, F::HOST_CR0, v.caps().cr0_fixed0() & !CD_NW);

    /// The CR0 field must clear every bit that is fixed to 0 in VMX operation, other than CD and NW.
    "host-cr0-must-zero" host_cr0_must_zero [HOST_CR0]
        when true
        => zero(v, F::HOST_CR0, !v.caps().cr0_fixed1() & !CD_NW);

    /// The CR4 field must set every bit that is fixed to 1 in VMX operation.
    "host-cr4-must-one" host_cr4_must_one [HOST_CR4]
        when true
        => ones(v, F::HOST_CR4, v.caps().cr4_fixed0());

    /// The CR4 field must clear every bit that is fixed to 0 in VMX operation.
    "host-cr4-must-zero" host_cr4_must_zero [HOST_CR4]
        when true
        => zero(v, F::HOST_CR4, !v.caps().cr4_fixed1());

    /// If bit 23 of the CR4 field (CET) is 1, bit 16 of the CR0 field (WP) must be 1.
    "host-cr4-cet-requires-wp" host_cr4_cet_requires_wp [HOST_CR4, HOST_CR0]
        when v.get(F::HOST_CR4)? & Cr4::CET.bits() != 0
        => ones(v, F::HOST_CR0, Cr0::WP.bits());

    /// The CR3 field must not set any bit beyond the physical-address width.
    "host-cr3-width" host_cr3_width [HOST_CR3]
        when true
        => zero(v, F::HOST_CR3, beyond_physical(v));

    /// The IA32_SYSENTER_ESP field must contain a canonical address.
    "host-sysenter-esp-canonical" host_sysenter_esp_canonical [HOST_IA32_SYSENTER_ESP]
        when true
        => canonical(v, F::HOST_IA32_SYSENTER_ESP);

    /// The IA32_SYSENTER_EIP field must contain a canonical address.
    "host-sysenter-eip-canonical" host_sysenter_eip_canonical [HOST_IA32_SYSENTER_EIP]
        when true
        => canonical(v, F::HOST_IA32_SYSENTER_EIP);

    /// Bits reserved in IA32_PERF_GLOBAL_CTRL must be 0 in the field for that register.
    "host-perf-global-ctrl" host_perf_global_ctrl [EXIT_CONTROLS, HOST_IA32_PERF_GLOBAL_CTRL]
        when v.exit()?.contains(ExitControls::LOAD_IA32_PERF_GLOBAL_CTRL)
        => zero(v, F::HOST_IA32_PERF_GLOBAL_CTRL, !v.facts().perf_global_ctrl_supported);

    /// Each of the 8 bytes of the IA32_PAT field must be 0, 1, 4, 5, 6 or 7.
    "host-pat" host_pat [EXIT_CONTROLS, HOST_IA32_PAT]
        when v.exit()?.contains(ExitControls::LOAD_IA32_PAT)
        => memory_types(v, F::HOST_IA32_PAT);

    /// Bits reserved in IA32_EFER must be 0 in the field for that register.
    "host-efer-reserved" host_efer_reserved [EXIT_CONTROLS, HOST_IA32_EFER]
        when v.exit()?.contains(ExitControls::LOAD_IA32_EFER)
        => zero(v, F::HOST_IA32_EFER, !v.facts().efer_supported.bits());

    /// LMA in the IA32_EFER field must be "host address-space size".
    "host-efer-lma" host_efer_lma [EXIT_CONTROLS, HOST_IA32_EFER]
        when v.exit()?.contains(ExitControls::LOAD_IA32_EFER)
        => equal_to(
            v,
            F::HOST_IA32_EFER,
            Efer::LMA.bits(),
            v.exit()?.contains(ExitControls::HOST_ADDRESS_SPACE_SIZE),
        );

    /// LME in the IA32_EFER field must be "host address-space size".
    "host-efer-lme" host_efer_lme [EXIT_CONTROLS, HOST_IA32_EFER]
        when v.exit()?.contains(ExitControls::LOAD_IA32_EFER)
        => equal_to(
            v,
            F::HOST_IA32_EFER,
            Efer::LME.bits(),
            v.exit()?.contains(ExitControls::HOST_ADDRESS_SPACE_SIZE),
        );

    /// Bits reserved in IA32_S_CET must be 0 in the field for that register, and bits 10 and 11 not both 1.
    "host-s-cet-reserved" host_s_cet_reserved [EXIT_CONTROLS, HOST_IA32_S_CET]
        when v.exit()?.contains(ExitControls::LOAD_CET_STATE)
        => s_cet(v, F::HOST_IA32_S_CET);

    /// The IA32_S_CET field must contain a canonical address, or one of 32 bits for a 32-bit host.
    "host-s-cet-address" host_s_cet_address [EXIT_CONTROLS, HOST_IA32_S_CET]
        when v.exit()?.contains(ExitControls::LOAD_CET_STATE)
        => host_address(v, F::HOST_IA32_S_CET);

    /// Bits 1:0 of the SSP field must be 0.
    "host-ssp-align" host_ssp_align [EXIT_CONTROLS, HOST_SSP]
        when v.exit()?.contains(ExitControls::LOAD_CET_STATE)
        => zero(v, F::HOST_SSP, 3);

    /// The SSP field must contain a canonical address, or one of 32 bits for a 32-bit host.
    "host-ssp-address" host_ssp_address [EXIT_CONTROLS, HOST_SSP]
        when v.exit()?.contains(ExitControls::LOAD_CET_STATE)
        => host_address(v, F::HOST_SSP);

    /// The IA32_INTERRUPT_SSP_TABLE_ADDR field must contain a canonical address.
    "host-issp-table-canonical" host_issp_table_canonical
        [EXIT_CONTROLS, HOST_IA32_INTERRUPT_SSP_TABLE_ADDR]
        when v.exit()?.contains(ExitControls::LOAD_CET_STATE)
        => canonical(v, F::HOST_IA32_INTERRUPT_SSP_TABLE_ADDR);

    /// Bits 63:32 of the IA32_PKRS field must be 0.
    "host-pkrs" host_pkrs [EXIT_CONTROLS, HOST_IA32_PKRS]
        when v.exit()?.contains(ExitControls::LOAD_PKRS)
        => zero(v, F::HOST_IA32_PKRS, u64::MAX << 32);
}

/// CD and NW, which VM entry does not check.
const CD_NW: u64 = Cr0::CD.bits() | Cr0::NW.bits();

/// Requires the reserved bits of IA32_S_CET to be 0.
fn s_cet<V: View>(v: &V, field: F) -> Finding {
    let value = v.get(field)?;
    let both = if value & 0xc00 == 0xc00 { 0xc00 } else { 0 };
    let bits = value & 0x3c0 | both;
    holds(bits == 0, field, bits)
}

/// Requires an address that the host can have: canonical, or of 32 bits.
fn host_address<V: View>(v: &V, field: F) -> Finding {
    if v.exit()?.contains(ExitControls::HOST_ADDRESS_SPACE_SIZE) {
        canonical(v, field)
    } else {
        zero(v, field, u64::MAX << 32)
    }
}
