//! Checks on the guest control registers, debug registers and MSRs.
//!
//! SDM Vol. 3C, "Checks on Guest Control Registers, Debug Registers, and MSRs".

use super::checks;
use super::helpers::{beyond_physical, canonical, equal_to, holds, memory_types, ones, zero};
use super::view::View;
use crate::arch::{Cr0, Cr4, Efer};
use crate::controls::{EntryControls, SecondaryControls};
use crate::field::Field as F;

checks! {
    GuestRegisters |v|

    /// The CR0 field must set every bit that is fixed to 1 in VMX operation, other than CD and NW, and PE and PG of an unrestricted guest.
    "guest-cr0-must-one" guest_cr0_must_one [GUEST_CR0, PROC_CONTROLS, SECONDARY_PROC_CONTROLS]
        when true
        => ones(v, F::GUEST_CR0, cr0_fixed_to_1(v)?);

    /// The CR0 field must clear every bit that is fixed to 0 in VMX operation, other than CD and NW.
    "guest-cr0-must-zero" guest_cr0_must_zero [GUEST_CR0]
        when true
        => zero(v, F::GUEST_CR0, !v.caps().cr0_fixed1() & !CD_NW);

    /// If bit 31 of the CR0 field (PG) is 1, bit 0 (PE) must be 1.
    "guest-cr0-pg-requires-pe" guest_cr0_pg_requires_pe [GUEST_CR0]
        when v.cr0()?.contains(Cr0::PG)
        => ones(v, F::GUEST_CR0, Cr0::PE.bits());

    /// The CR4 field must set every bit that is fixed to 1 in VMX operation.
    "guest-cr4-must-one" guest_cr4_must_one [GUEST_CR4]
        when true
        => ones(v, F::GUEST_CR4, v.caps().cr4_fixed0());

    /// The CR4 field must clear every bit that is fixed to 0 in VMX operation.
    "guest-cr4-must-zero" guest_cr4_must_zero [GUEST_CR4]
        when true
        => zero(v, F::GUEST_CR4, !v.caps().cr4_fixed1());

    /// If bit 23 of the CR4 field (CET) is 1, bit 16 of the CR0 field (WP) must be 1.
    "guest-cr4-cet-requires-wp" guest_cr4_cet_requires_wp [GUEST_CR4, GUEST_CR0]
        when v.cr4()?.contains(Cr4::CET)
        => ones(v, F::GUEST_CR0, Cr0::WP.bits());

    /// Bits reserved in IA32_DEBUGCTL must be 0 in the field for that register.
    "guest-debugctl" guest_debugctl [ENTRY_CONTROLS, GUEST_IA32_DEBUGCTL]
        when v.entry()?.contains(EntryControls::LOAD_DEBUG_CONTROLS)
        => zero(v, F::GUEST_IA32_DEBUGCTL, !v.facts().debugctl_supported);

    /// If "IA-32e mode guest" is 1, bit 31 of the CR0 field (PG) must be 1.
    "guest-ia32e-requires-pg" guest_ia32e_requires_pg [ENTRY_CONTROLS, GUEST_CR0]
        when v.entry()?.contains(EntryControls::IA32E_MODE_GUEST)
        => ones(v, F::GUEST_CR0, Cr0::PG.bits());

    /// If "IA-32e mode guest" is 1, bit 5 of the CR4 field (PAE) must be 1.
    "guest-ia32e-requires-pae" guest_ia32e_requires_pae [ENTRY_CONTROLS, GUEST_CR4]
        when v.entry()?.contains(EntryControls::IA32E_MODE_GUEST)
        => ones(v, F::GUEST_CR4, Cr4::PAE.bits());

    /// If "IA-32e mode guest" is 0, bit 17 of the CR4 field (PCIDE) must be 0.
    "guest-legacy-forbids-pcide" guest_legacy_forbids_pcide [ENTRY_CONTROLS, GUEST_CR4]
        when !v.entry()?.contains(EntryControls::IA32E_MODE_GUEST)
        => zero(v, F::GUEST_CR4, Cr4::PCIDE.bits());

    /// The CR3 field must not set any bit beyond the physical-address width.
    "guest-cr3-width" guest_cr3_width [GUEST_CR3]
        when true
        => zero(v, F::GUEST_CR3, beyond_physical(v));

    /// If "load debug controls" is 1, bits 63:32 of the DR7 field must be 0.
    "guest-dr7-high" guest_dr7_high [ENTRY_CONTROLS, GUEST_DR7]
        when v.entry()?.contains(EntryControls::LOAD_DEBUG_CONTROLS)
        => zero(v, F::GUEST_DR7, u64::MAX << 32);

    /// The IA32_SYSENTER_ESP field must contain a canonical address.
    "guest-sysenter-esp-canonical" guest_sysenter_esp_canonical [GUEST_IA32_SYSENTER_ESP]
        when true
        => canonical(v, F::GUEST_IA32_SYSENTER_ESP);

    /// The IA32_SYSENTER_EIP field must contain a canonical address.
    "guest-sysenter-eip-canonical" guest_sysenter_eip_canonical [GUEST_IA32_SYSENTER_EIP]
        when true
        => canonical(v, F::GUEST_IA32_SYSENTER_EIP);

    /// Bits reserved in IA32_PERF_GLOBAL_CTRL must be 0 in the field for that register.
    "guest-perf-global-ctrl" guest_perf_global_ctrl [ENTRY_CONTROLS, GUEST_IA32_PERF_GLOBAL_CTRL]
        when v.entry()?.contains(EntryControls::LOAD_IA32_PERF_GLOBAL_CTRL)
        => zero(v, F::GUEST_IA32_PERF_GLOBAL_CTRL, !v.facts().perf_global_ctrl_supported);

    /// Each of the 8 bytes of the IA32_PAT field must be 0, 1, 4, 5, 6 or 7.
    "guest-pat" guest_pat [ENTRY_CONTROLS, GUEST_IA32_PAT]
        when v.entry()?.contains(EntryControls::LOAD_IA32_PAT)
        => memory_types(v, F::GUEST_IA32_PAT);

    /// Bits reserved in IA32_EFER must be 0 in the field for that register.
    "guest-efer-reserved" guest_efer_reserved [ENTRY_CONTROLS, GUEST_IA32_EFER]
        when v.entry()?.contains(EntryControls::LOAD_IA32_EFER)
        => zero(v, F::GUEST_IA32_EFER, !v.facts().efer_supported.bits());

    /// LMA in the IA32_EFER field must be "IA-32e mode guest".
    "guest-efer-lma" guest_efer_lma [ENTRY_CONTROLS, GUEST_IA32_EFER]
        when v.entry()?.contains(EntryControls::LOAD_IA32_EFER)
        => equal_to(
            v,
            F::GUEST_IA32_EFER,
            Efer::LMA.bits(),
            v.entry()?.contains(EntryControls::IA32E_MODE_GUEST),
        );

    /// LME in the IA32_EFER field must be equal to LMA if bit 31 of the CR0 field (PG) is 1.
    "guest-efer-lme" guest_efer_lme [ENTRY_CONTROLS, GUEST_CR0, GUEST_IA32_EFER]
        when v.entry()?.contains(EntryControls::LOAD_IA32_EFER) && v.cr0()?.contains(Cr0::PG)
        => equal_to(
            v,
            F::GUEST_IA32_EFER,
            Efer::LME.bits(),
            v.get(F::GUEST_IA32_EFER)? & Efer::LMA.bits() != 0,
        );

    /// Bits 9:6 of the IA32_S_CET field must be 0.
    "guest-s-cet-reserved" guest_s_cet_reserved [ENTRY_CONTROLS, GUEST_IA32_S_CET]
        when v.entry()?.contains(EntryControls::LOAD_CET_STATE)
        => zero(v, F::GUEST_IA32_S_CET, 0x3c0);

    /// Bits 10 and 11 of the IA32_S_CET field must not both be 1.
    "guest-s-cet-suppress-tracker" guest_s_cet_suppress_tracker [ENTRY_CONTROLS, GUEST_IA32_S_CET]
        when v.entry()?.contains(EntryControls::LOAD_CET_STATE)
        => holds(v.get(F::GUEST_IA32_S_CET)? & 0xc00 != 0xc00, F::GUEST_IA32_S_CET, 0xc00);

    /// The IA32_INTERRUPT_SSP_TABLE_ADDR field must contain a canonical address.
    "guest-issp-table-canonical" guest_issp_table_canonical
        [ENTRY_CONTROLS, GUEST_IA32_INTERRUPT_SSP_TABLE_ADDR]
        when v.entry()?.contains(EntryControls::LOAD_CET_STATE)
        => canonical(v, F::GUEST_IA32_INTERRUPT_SSP_TABLE_ADDR);

    /// Bits 63:32 of the IA32_PKRS field must be 0.
    "guest-pkrs" guest_pkrs [ENTRY_CONTROLS, GUEST_IA32_PKRS]
        when v.entry()?.contains(EntryControls::LOAD_PKRS)
        => zero(v, F::GUEST_IA32_PKRS, u64::MAX << 32);
}

/// CD and NW, which VM entry does not check.
const CD_NW: u64 = Cr0::CD.bits() | Cr0::NW.bits();

/// Returns the bits of CR0 that the guest must set: PE and PG may be 0 in an unrestricted guest.
fn cr0_fixed_to_1<V: View>(v: &V) -> Option<u64> {
    let fixed = v.caps().cr0_fixed0() & !CD_NW;
    let is_unrestricted = v
        .secondary()?
        .contains(SecondaryControls::UNRESTRICTED_GUEST);
    let free = if is_unrestricted {
        (Cr0::PE | Cr0::PG).bits()
    } else {
        0
    };
    Some(fixed & !free)
}
