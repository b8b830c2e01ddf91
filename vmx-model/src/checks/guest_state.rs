//! Checks on the rest of the guest's state: descriptor tables, RIP, RFLAGS and SSP, non-register
//! state, PDPTEs.

/// SDM Vol. 3C, "Checks on Guest Descriptor-Table Registers".
pub(super) mod descriptor_tables {
    use super::super::checks;
    use super::super::helpers::{canonical, zero};
    use crate::field::Field as F;

    checks! {
        GuestDescriptorTables |v|

        /// The base address of GDTR must be canonical.
        "guest-gdtr-base-canonical" guest_gdtr_base_canonical [GUEST_GDTR_BASE]
            when true
            => canonical(v, F::GUEST_GDTR_BASE);

        /// Bits 31:16 of the limit of GDTR must be 0.
        "guest-gdtr-limit-high" guest_gdtr_limit_high [GUEST_GDTR_LIMIT]
            when true
            => zero(v, F::GUEST_GDTR_LIMIT, 0xffff_0000);

        /// The base address of IDTR must be canonical.
        "guest-idtr-base-canonical" guest_idtr_base_canonical [GUEST_IDTR_BASE]
            when true
            => canonical(v, F::GUEST_IDTR_BASE);

        /// Bits 31:16 of the limit of IDTR must be 0.
        "guest-idtr-limit-high" guest_idtr_limit_high [GUEST_IDTR_LIMIT]
            when true
            => zero(v, F::GUEST_IDTR_LIMIT, 0xffff_0000);
    }
}

/// SDM Vol. 3C, "Checks on Guest RIP, RFLAGS, and SSP".
pub(super) mod rip {
    use super::super::checks;
    use super::super::helpers::{identical_high_bits, injects, ones, zero};
    use super::super::view::View;
    use crate::arch::SegmentRegister::Cs;
    use crate::arch::{Cr0, Rflags};
    use crate::controls::EntryControls;
    use crate::event::EventType;
    use crate::field::Field as F;

    checks! {
        GuestRip |v|

        /// Bits 63:32 of the RIP field must be 0 unless the guest is in 64-bit mode.
        "guest-rip-high" guest_rip_high [ENTRY_CONTROLS, GUEST_CS_ACCESS_RIGHTS, GUEST_RIP]
            when !is_64_bit(v)?
            => zero(v, F::GUEST_RIP, u64::MAX << 32);

        /// In 64-bit mode, bits 63:N of the RIP field must be identical, N being the linear-address width.
        "guest-rip-canonical" guest_rip_canonical
            [ENTRY_CONTROLS, GUEST_CS_ACCESS_RIGHTS, GUEST_RIP]
            when is_64_bit(v)?
            => identical_high_bits(v, F::GUEST_RIP);

        /// Bits 63:22, 15, 5 and 3 of the RFLAGS field must be 0.
        "guest-rflags-reserved-zero" guest_rflags_reserved_zero [GUEST_RFLAGS]
            when true
            => zero(v, F::GUEST_RFLAGS, 0xffff_ffff_ffc0_8028);

        /// Bit 1 of the RFLAGS field must be 1.
        "guest-rflags-bit1" guest_rflags_bit1 [GUEST_RFLAGS]
            when true
            => ones(v, F::GUEST_RFLAGS, 2);

        /// The VM flag must be 0 if "IA-32e mode guest" is 1.
        "guest-rflags-vm-ia32e" guest_rflags_vm_ia32e [ENTRY_CONTROLS, GUEST_RFLAGS]
            when v.entry()?.contains(EntryControls::IA32E_MODE_GUEST)
            => zero(v, F::GUEST_RFLAGS, Rflags::VM.bits());

        /// The VM flag must be 0 if bit 0 of the CR0 field (PE) is 0.
        "guest-rflags-vm-real" guest_rflags_vm_real [GUEST_CR0, GUEST_RFLAGS]
            when !v.cr0()?.contains(Cr0::PE)
            => zero(v, F::GUEST_RFLAGS, Rflags::VM.bits());

        /// The IF flag must be 1 if an external interrupt is injected.
        "guest-rflags-if-extint" guest_rflags_if_extint
            [VM_ENTRY_INTERRUPTION_INFORMATION, GUEST_RFLAGS]
            when injects(v, EventType::ExternalInterrupt)?
            => ones(v, F::GUEST_RFLAGS, Rflags::IF.bits());

        /// Bits 1:0 of the SSP field must be 0.
        "guest-ssp-align" guest_ssp_align [ENTRY_CONTROLS, GUEST_SSP]
            when v.entry()?.contains(EntryControls::LOAD_CET_STATE)
            => zero(v, F::GUEST_SSP, 3);

        /// Bits 63:N of the SSP field must be identical, N being the linear-address width.
        "guest-ssp-identical" guest_ssp_identical [ENTRY_CONTROLS, GUEST_SSP]
            when v.entry()?.contains(EntryControls::LOAD_CET_STATE)
            => identical_high_bits(v, F::GUEST_SSP);
    }

    /// Whether the guest is in 64-bit mode.
    fn is_64_bit<V: View>(v: &V) -> Option<bool> {
        Some(v.entry()?.contains(EntryControls::IA32E_MODE_GUEST) && v.access(Cs)?.is_long())
    }
}

/// SDM Vol. 3C, "Checks on Guest Non-Register State".
pub(super) mod non_register {
    use super::super::Finding;
    use super::super::checks;
    use super::super::helpers::{
        beyond_structures, holds, injects, is_structure, link_word, ones, zero, zero_bits,
    };
    use super::super::view::View;
    use crate::addr::Hpa;
    use crate::arch::Rflags;
    use crate::arch::SegmentRegister::Ss;
    use crate::controls::{PinControls, SecondaryControls};
    use crate::event::{EventType, InterruptionInfo, vector};
    use crate::field::Field as F;

    checks! {
        GuestNonRegister |v|

        /// The activity state must be 0 to 3.
        "guest-activity-reserved" guest_activity_reserved [GUEST_ACTIVITY_STATE]
            when true
            => holds(v.get(F::GUEST_ACTIVITY_STATE)? <= 3, F::GUEST_ACTIVITY_STATE, 0);

        /// The activity state must be one that the processor supports.
        "guest-activity-unsupported" guest_activity_unsupported [GUEST_ACTIVITY_STATE]
            when matches!(v.get(F::GUEST_ACTIVITY_STATE)?, 1..=3)
            => activity_supported(v);

        /// The activity state must not be HLT if the DPL of SS is not 0.
        "guest-activity-hlt-dpl" guest_activity_hlt_dpl
            [GUEST_SS_ACCESS_RIGHTS, GUEST_ACTIVITY_STATE]
            when v.access(Ss)?.dpl() != 0
            => holds(v.get(F::GUEST_ACTIVITY_STATE)? != HLT, F::GUEST_ACTIVITY_STATE, 0);

        /// The activity state must be active if there is blocking by STI or by MOV SS.
        "guest-activity-blocking" guest_activity_blocking
            [GUEST_INTERRUPTIBILITY_STATE, GUEST_ACTIVITY_STATE]
            when v.get(F::GUEST_INTERRUPTIBILITY_STATE)? & 3 != 0
            => holds(v.get(F::GUEST_ACTIVITY_STATE)? == 0, F::GUEST_ACTIVITY_STATE, 0);

        /// Into HLT only an external interrupt, an NMI, #DB, #MC or a pending MTF VM exit may be injected.
        "guest-activity-hlt-injection" guest_activity_hlt_injection
            [VM_ENTRY_INTERRUPTION_INFORMATION, GUEST_ACTIVITY_STATE]
            when v.event()?.is_valid() && v.get(F::GUEST_ACTIVITY_STATE)? == HLT
            => holds(wakes_hlt(v.event()?), F::VM_ENTRY_INTERRUPTION_INFORMATION, 0x7ff);

        /// Into shutdown only an NMI or #MC may be injected.
        "guest-activity-shutdown-injection" guest_activity_shutdown_injection
            [VM_ENTRY_INTERRUPTION_INFORMATION, GUEST_ACTIVITY_STATE]
            when v.event()?.is_valid() && v.get(F::GUEST_ACTIVITY_STATE)? == SHUTDOWN
            => holds(wakes_shutdown(v.event()?), F::VM_ENTRY_INTERRUPTION_INFORMATION, 0x7ff);

        /// Into wait-for-SIPI nothing may be injected.
        "guest-activity-sipi-injection" guest_activity_sipi_injection
            [GUEST_ACTIVITY_STATE, VM_ENTRY_INTERRUPTION_INFORMATION]
            when v.get(F::GUEST_ACTIVITY_STATE)? == WAIT_FOR_SIPI
            => zero(v, F::VM_ENTRY_INTERRUPTION_INFORMATION, 1 << 31);

        /// Bits 31:5 of the interruptibility state must be 0, and bit 4 without SGX.
        "guest-int-reserved" guest_int_reserved [GUEST_INTERRUPTIBILITY_STATE]
            when true
            => zero(
                v,
                F::GUEST_INTERRUPTIBILITY_STATE,
                if v.facts().has_sgx { 0xffff_ffe0 } else { 0xffff_fff0 },
            );

        /// There must not be blocking both by STI and by MOV SS.
        "guest-int-sti-movss" guest_int_sti_movss [GUEST_INTERRUPTIBILITY_STATE]
            when true
            => holds(
                v.get(F::GUEST_INTERRUPTIBILITY_STATE)? & 3 != 3,
                F::GUEST_INTERRUPTIBILITY_STATE,
                3,
            );

        /// There must not be blocking by STI if the IF flag is 0.
        "guest-int-sti-if" guest_int_sti_if [GUEST_RFLAGS, GUEST_INTERRUPTIBILITY_STATE]
            when !v.rflags()?.contains(Rflags::IF)
            => zero(v, F::GUEST_INTERRUPTIBILITY_STATE, 1);

        /// There must not be blocking by STI if an external interrupt is injected.
        "guest-int-extint-sti" guest_int_extint_sti
            [VM_ENTRY_INTERRUPTION_INFORMATION, GUEST_INTERRUPTIBILITY_STATE]
            when injects(v, EventType::ExternalInterrupt)?
            => zero(v, F::GUEST_INTERRUPTIBILITY_STATE, 1);

        /// There must not be blocking by MOV SS if an external interrupt is injected.
        "guest-int-extint-movss" guest_int_extint_movss
            [VM_ENTRY_INTERRUPTION_INFORMATION, GUEST_INTERRUPTIBILITY_STATE]
            when injects(v, EventType::ExternalInterrupt)?
            => zero(v, F::GUEST_INTERRUPTIBILITY_STATE, 2);

        /// There must not be blocking by MOV SS if an NMI is injected.
        "guest-int-nmi-movss" guest_int_nmi_movss
            [VM_ENTRY_INTERRUPTION_INFORMATION, GUEST_INTERRUPTIBILITY_STATE]
            when injects(v, EventType::Nmi)?
            => zero(v, F::GUEST_INTERRUPTIBILITY_STATE, 2);

        /// There must not be blocking by STI if an NMI is injected.
        "guest-int-nmi-sti" guest_int_nmi_sti
            [VM_ENTRY_INTERRUPTION_INFORMATION, GUEST_INTERRUPTIBILITY_STATE] = 3
            when injects(v, EventType::Nmi)?
            => zero(v, F::GUEST_INTERRUPTIBILITY_STATE, 1);

        /// Outside SMM there must not be blocking by SMI.
        "guest-int-smi-outside-smm" guest_int_smi_outside_smm [GUEST_INTERRUPTIBILITY_STATE]
            when true
            => zero(v, F::GUEST_INTERRUPTIBILITY_STATE, 4);

        /// There must not be virtual-NMI blocking if an NMI is injected under virtual NMIs.
        "guest-int-nmi-blocked" guest_int_nmi_blocked
            [PIN_CONTROLS, VM_ENTRY_INTERRUPTION_INFORMATION, GUEST_INTERRUPTIBILITY_STATE]
            when v.pin()?.contains(PinControls::VIRTUAL_NMIS) && injects(v, EventType::Nmi)?
            => zero(v, F::GUEST_INTERRUPTIBILITY_STATE, 8);

        /// Reserved bits of the pending debug exceptions must be 0.
        "guest-pdbg-reserved" guest_pdbg_reserved [GUEST_PENDING_DEBUG_EXCEPTIONS]
            when true
            => zero(v, F::GUEST_PENDING_DEBUG_EXCEPTIONS, pending_debug_reserved(v));

        /// BS must be pending if the guest single-steps and there is blocking by STI or MOV SS or the activity state is HLT.
        "guest-pdbg-bs-required" guest_pdbg_bs_required [
                GUEST_INTERRUPTIBILITY_STATE, GUEST_ACTIVITY_STATE, GUEST_RFLAGS,
                GUEST_IA32_DEBUGCTL, GUEST_PENDING_DEBUG_EXCEPTIONS
            ]
            when (v.get(F::GUEST_INTERRUPTIBILITY_STATE)? & 3 != 0 || v.get(F::GUEST_ACTIVITY_STATE)? == HLT)
                && is_single_stepping(v)?
            => ones(v, F::GUEST_PENDING_DEBUG_EXCEPTIONS, BS);

        /// BS must not be pending if the guest does not single-step and there is blocking by STI or MOV SS or the activity state is HLT.
        "guest-pdbg-bs-forbidden" guest_pdbg_bs_forbidden [
                GUEST_INTERRUPTIBILITY_STATE, GUEST_ACTIVITY_STATE, GUEST_RFLAGS,
                GUEST_IA32_DEBUGCTL, GUEST_PENDING_DEBUG_EXCEPTIONS
            ]
            when (v.get(F::GUEST_INTERRUPTIBILITY_STATE)? & 3 != 0 || v.get(F::GUEST_ACTIVITY_STATE)? == HLT)
                && !is_single_stepping(v)?
            => zero(v, F::GUEST_PENDING_DEBUG_EXCEPTIONS, BS);

        /// If RTM is pending, bits 11:0, 15:13 and 63:17 of the pending debug exceptions must be 0 and bit 12 must be 1.
        "guest-pdbg-rtm-only" guest_pdbg_rtm_only [GUEST_PENDING_DEBUG_EXCEPTIONS]
            when v.get(F::GUEST_PENDING_DEBUG_EXCEPTIONS)? & RTM != 0
            => zero_bits(
                v.get(F::GUEST_PENDING_DEBUG_EXCEPTIONS)? ^ (1 << 12),
                F::GUEST_PENDING_DEBUG_EXCEPTIONS,
                !RTM,
            );

        /// If RTM is pending, there must not be blocking by MOV SS.
        "guest-pdbg-rtm-movss" guest_pdbg_rtm_movss
            [GUEST_PENDING_DEBUG_EXCEPTIONS, GUEST_INTERRUPTIBILITY_STATE]
            when v.get(F::GUEST_PENDING_DEBUG_EXCEPTIONS)? & RTM != 0
            => zero(v, F::GUEST_INTERRUPTIBILITY_STATE, 2);

        /// Bits 11:0 of the VMCS link pointer must be 0 unless it is all ones.
        "guest-link-align" guest_link_align [VMCS_LINK_POINTER] = 4
            when v.get(F::VMCS_LINK_POINTER)? != u64::MAX
            => zero(v, F::VMCS_LINK_POINTER, 0xfff);

        /// The VMCS link pointer must not set any bit beyond the physical-address width unless it is all ones.
        "guest-link-width" guest_link_width [VMCS_LINK_POINTER] = 4
            when v.get(F::VMCS_LINK_POINTER)? != u64::MAX
            => zero(v, F::VMCS_LINK_POINTER, beyond_structures(v));

        /// The region at the VMCS link pointer must begin with the VMCS revision identifier.
        "guest-link-revision" guest_link_revision [VMCS_LINK_POINTER; Memory] = 4
            when v.get(F::VMCS_LINK_POINTER)? != u64::MAX && is_structure(v, F::VMCS_LINK_POINTER)?
            => link_word(v, 0x7fff_ffff, v.caps().revision_id());

        /// The region at the VMCS link pointer must be that of a shadow VMCS if and only if "VMCS shadowing" is 1.
        "guest-link-shadow-bit" guest_link_shadow_bit
            [VMCS_LINK_POINTER, PROC_CONTROLS, SECONDARY_PROC_CONTROLS; Memory] = 4
            when v.get(F::VMCS_LINK_POINTER)? != u64::MAX && is_structure(v, F::VMCS_LINK_POINTER)?
            => link_word(v, 1 << 31, shadow_bit(v)?);

        /// The VMCS link pointer must not be the current-VMCS pointer.
        "guest-link-not-current" guest_link_not_current [VMCS_LINK_POINTER; Processor] = 4
            when v.get(F::VMCS_LINK_POINTER)? != u64::MAX && is_structure(v, F::VMCS_LINK_POINTER)?
            => holds(
                v.current_vmcs()? != Hpa(v.get(F::VMCS_LINK_POINTER)?),
                F::VMCS_LINK_POINTER,
                0,
            );
    }

    const HLT: u64 = 1;
    const SHUTDOWN: u64 = 2;
    const WAIT_FOR_SIPI: u64 = 3;

    /// Single step, in the pending debug exceptions.
    const BS: u64 = 1 << 14;
    /// A debug exception inside an RTM region, in the pending debug exceptions.
    const RTM: u64 = 1 << 16;
    /// IA32_DEBUGCTL.BTF: single-step on branches.
    const BTF: u64 = 1 << 1;

    fn activity_supported<V: View>(v: &V) -> Finding {
        let state = v.get(F::GUEST_ACTIVITY_STATE)?;
        let supported = v.caps().misc() >> 5 >> (state & 3) & 1 != 0;
        holds(supported, F::GUEST_ACTIVITY_STATE, 0)
    }

    /// Whether the event may be injected into HLT.
    fn wakes_hlt(event: InterruptionInfo) -> bool {
        match event.kind() {
            Some(EventType::ExternalInterrupt | EventType::Nmi) => true,
            Some(EventType::HardwareException) => {
                matches!(event.vector(), vector::DB | vector::MC)
            }
            Some(EventType::Other) => event.vector() == 0,
            _ => false,
        }
    }

    /// Whether the event may be injected into shutdown.
    fn wakes_shutdown(event: InterruptionInfo) -> bool {
        matches!(
            (event.kind(), event.vector()),
            (Some(EventType::Nmi), vector::NMI) | (Some(EventType::HardwareException), vector::MC)
        )
    }

    /// Returns the bits of the pending debug exceptions that must be 0: 10:4, 13, 15, 63:17; bit
    /// 11 (bus lock) as no processor here detects bus locks, bit 16 without RTM.
    fn pending_debug_reserved<V: View>(v: &V) -> u64 {
        let rtm = if v.facts().has_rtm { 0 } else { RTM };
        0xffff_ffff_fffe_a000 | 0xff0 | rtm
    }

    fn is_single_stepping<V: View>(v: &V) -> Option<bool> {
        let has_tf = v.rflags()?.contains(Rflags::TF);
        Some(has_tf && v.get(F::GUEST_IA32_DEBUGCTL)? & BTF == 0)
    }

    /// Returns bit 31 of the first word of the region that the link pointer should point to.
    fn shadow_bit<V: View>(v: &V) -> Option<u32> {
        let is_shadowing = v.secondary()?.contains(SecondaryControls::VMCS_SHADOWING);
        Some(u32::from(is_shadowing) << 31)
    }
}

/// SDM Vol. 3C, "Checks on Guest Page-Directory-Pointer-Table Entries".
pub(super) mod pdptes {
    use super::super::checks;
    use super::super::helpers::pdpte;
    use crate::arch::{Cr0, Cr4};
    use crate::controls::EntryControls;
    use crate::field::Field as F;

    checks! {
        GuestPdptes |v|

        /// PDPTE0 must not set a reserved bit if it is present.
        "guest-pdpte0-reserved" guest_pdpte0_reserved [
                GUEST_CR0, GUEST_CR4, ENTRY_CONTROLS, PROC_CONTROLS, SECONDARY_PROC_CONTROLS,
                GUEST_CR3, GUEST_PDPTE0; Memory
            ] = 2
            when v.cr0()?.contains(Cr0::PG) && v.cr4()?.contains(Cr4::PAE)
                && !v.entry()?.contains(EntryControls::IA32E_MODE_GUEST)
            => pdpte(v, F::GUEST_PDPTE0, 0);

        /// PDPTE1 must not set a reserved bit if it is present.
        "guest-pdpte1-reserved" guest_pdpte1_reserved [
                GUEST_CR0, GUEST_CR4, ENTRY_CONTROLS, PROC_CONTROLS, SECONDARY_PROC_CONTROLS,
                GUEST_CR3, GUEST_PDPTE1; Memory
            ] = 2
            when v.cr0()?.contains(Cr0::PG) && v.cr4()?.contains(Cr4::PAE)
                && !v.entry()?.contains(EntryControls::IA32E_MODE_GUEST)
            => pdpte(v, F::GUEST_PDPTE1, 1);

        /// PDPTE2 must not set a reserved bit if it is present.
        "guest-pdpte2-reserved" guest_pdpte2_reserved [
                GUEST_CR0, GUEST_CR4, ENTRY_CONTROLS, PROC_CONTROLS, SECONDARY_PROC_CONTROLS,
                GUEST_CR3, GUEST_PDPTE2; Memory
            ] = 2
            when v.cr0()?.contains(Cr0::PG) && v.cr4()?.contains(Cr4::PAE)
                && !v.entry()?.contains(EntryControls::IA32E_MODE_GUEST)
            => pdpte(v, F::GUEST_PDPTE2, 2);

        /// PDPTE3 must not set a reserved bit if it is present.
        "guest-pdpte3-reserved" guest_pdpte3_reserved [
                GUEST_CR0, GUEST_CR4, ENTRY_CONTROLS, PROC_CONTROLS, SECONDARY_PROC_CONTROLS,
                GUEST_CR3, GUEST_PDPTE3; Memory
            ] = 2
            when v.cr0()?.contains(Cr0::PG) && v.cr4()?.contains(Cr4::PAE)
                && !v.entry()?.contains(EntryControls::IA32E_MODE_GUEST)
            => pdpte(v, F::GUEST_PDPTE3, 3);
    }
}
