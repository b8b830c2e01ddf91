//! Checks on the VM-execution control fields.
//!
//! SDM Vol. 3C, "VM-Execution Control Fields" of "Checks on VMX Controls".

use super::Finding;
use super::checks;
use super::helpers::{
    allowed, beyond_physical, beyond_structures, has, holds, is_structure, lacks, ones, zero,
};
use super::view::View;
use crate::addr::Hpa;
use crate::capability::EptVpidCap;
use crate::controls::{
    ExitControls, PinControls, ProcControls, SecondaryControls, VmFunctionControls,
};
use crate::field::Field as F;

checks! {
    ExecutionControls |v|

    /// Reserved bits in the pin-based VM-execution controls must be set properly.
    "ctl-pin-reserved" ctl_pin_reserved [PIN_CONTROLS]
        when true
        => allowed(v, F::PIN_CONTROLS, v.caps().pin());

    /// Reserved bits in the primary processor-based VM-execution controls must be set properly.
    "ctl-proc-reserved" ctl_proc_reserved [PROC_CONTROLS]
        when true
        => allowed(v, F::PROC_CONTROLS, v.caps().proc());

    /// If the secondary processor-based VM-execution controls are activated, their reserved bits must be cleared.
    "ctl-proc2-reserved" ctl_proc2_reserved [PROC_CONTROLS, SECONDARY_PROC_CONTROLS]
        when v.proc()?.contains(ProcControls::ACTIVATE_SECONDARY_CONTROLS)
        => allowed(v, F::SECONDARY_PROC_CONTROLS, v.caps().secondary());

    /// If the tertiary processor-based VM-execution controls are activated, their reserved bits must be cleared.
    "ctl-proc3-reserved" ctl_proc3_reserved [PROC_CONTROLS, TERTIARY_PROC_CONTROLS]
        when v.proc()?.contains(ProcControls::ACTIVATE_TERTIARY_CONTROLS)
        => zero(v, F::TERTIARY_PROC_CONTROLS, !v.caps().tertiary_may1().bits());

    /// The CR3-target count must not exceed IA32_VMX_MISC\[24:16\].
    "ctl-cr3-target-count" ctl_cr3_target_count [CR3_TARGET_COUNT]
        when true
        => holds(
            v.get(F::CR3_TARGET_COUNT)? <= u64::from(v.caps().cr3_target_max()),
            F::CR3_TARGET_COUNT,
            0,
        );

    /// Bits 11:0 of the address of I/O bitmap A must be 0.
    "ctl-io-bitmap-a-align" ctl_io_bitmap_a_align [PROC_CONTROLS, IO_BITMAP_A_ADDRESS]
        when v.proc()?.contains(ProcControls::USE_IO_BITMAPS)
        => zero(v, F::IO_BITMAP_A_ADDRESS, 0xfff);

    /// The address of I/O bitmap A must not set any bit beyond the physical-address width.
    "ctl-io-bitmap-a-width" ctl_io_bitmap_a_width [PROC_CONTROLS, IO_BITMAP_A_ADDRESS]
        when v.proc()?.contains(ProcControls::USE_IO_BITMAPS)
        => zero(v, F::IO_BITMAP_A_ADDRESS, beyond_structures(v));

    /// Bits 11:0 of the address of I/O bitmap B must be 0.
    "ctl-io-bitmap-b-align" ctl_io_bitmap_b_align [PROC_CONTROLS, IO_BITMAP_B_ADDRESS]
        when v.proc()?.contains(ProcControls::USE_IO_BITMAPS)
        => zero(v, F::IO_BITMAP_B_ADDRESS, 0xfff);

    /// The address of I/O bitmap B must not set any bit beyond the physical-address width.
    "ctl-io-bitmap-b-width" ctl_io_bitmap_b_width [PROC_CONTROLS, IO_BITMAP_B_ADDRESS]
        when v.proc()?.contains(ProcControls::USE_IO_BITMAPS)
        => zero(v, F::IO_BITMAP_B_ADDRESS, beyond_structures(v));

    /// Bits 11:0 of the MSR-bitmap address must be 0.
    "ctl-msr-bitmap-align" ctl_msr_bitmap_align [PROC_CONTROLS, MSR_BITMAP_ADDRESS]
        when v.proc()?.contains(ProcControls::USE_MSR_BITMAPS)
        => zero(v, F::MSR_BITMAP_ADDRESS, 0xfff);

    /// The MSR-bitmap address must not set any bit beyond the physical-address width.
    "ctl-msr-bitmap-width" ctl_msr_bitmap_width [PROC_CONTROLS, MSR_BITMAP_ADDRESS]
        when v.proc()?.contains(ProcControls::USE_MSR_BITMAPS)
        => zero(v, F::MSR_BITMAP_ADDRESS, beyond_structures(v));

    /// Bits 11:0 of the virtual-APIC address must be 0.
    "ctl-virtual-apic-align" ctl_virtual_apic_align [PROC_CONTROLS, VIRTUAL_APIC_ADDRESS]
        when v.proc()?.contains(ProcControls::USE_TPR_SHADOW)
        => zero(v, F::VIRTUAL_APIC_ADDRESS, 0xfff);

    /// The virtual-APIC address must not set any bit beyond the physical-address width.
    "ctl-virtual-apic-width" ctl_virtual_apic_width [PROC_CONTROLS, VIRTUAL_APIC_ADDRESS]
        when v.proc()?.contains(ProcControls::USE_TPR_SHADOW)
        => zero(v, F::VIRTUAL_APIC_ADDRESS, beyond_structures(v));

    /// Bits 31:4 of the TPR threshold must be 0 unless virtual interrupts are delivered.
    "ctl-tpr-threshold-reserved" ctl_tpr_threshold_reserved
        [PROC_CONTROLS, SECONDARY_PROC_CONTROLS, TPR_THRESHOLD]
        when v.proc()?.contains(ProcControls::USE_TPR_SHADOW)
            && !v.secondary()?.contains(SecondaryControls::VIRTUAL_INTERRUPT_DELIVERY)
        => zero(v, F::TPR_THRESHOLD, 0xffff_fff0);

    /// Bits 3:0 of the TPR threshold must not be greater than bits 7:4 of VTPR unless APIC accesses are virtualized or virtual interrupts are delivered.
    "ctl-tpr-threshold-vtpr" ctl_tpr_threshold_vtpr
        [PROC_CONTROLS, SECONDARY_PROC_CONTROLS, VIRTUAL_APIC_ADDRESS, TPR_THRESHOLD; Memory]
        when v.proc()?.contains(ProcControls::USE_TPR_SHADOW)
            && !v.secondary()?.intersects(VIRTUALIZES_TPR)
            && is_structure(v, F::VIRTUAL_APIC_ADDRESS)?
        => threshold_within_vtpr(v);

    /// If "NMI exiting" is 0, "virtual NMIs" must be 0.
    "ctl-vnmi-requires-nmi-exiting" ctl_vnmi_requires_nmi_exiting [PIN_CONTROLS]
        when !v.pin()?.contains(PinControls::NMI_EXITING)
        => zero(v, F::PIN_CONTROLS, PinControls::VIRTUAL_NMIS.bits().into());

    /// If "virtual NMIs" is 0, "NMI-window exiting" must be 0.
    "ctl-nmi-window-requires-vnmi" ctl_nmi_window_requires_vnmi [PIN_CONTROLS, PROC_CONTROLS]
        when !v.pin()?.contains(PinControls::VIRTUAL_NMIS)
        => zero(v, F::PROC_CONTROLS, ProcControls::NMI_WINDOW_EXITING.bits().into());

    /// Bits 11:0 of the APIC-access address must be 0.
    "ctl-apic-access-align" ctl_apic_access_align
        [PROC_CONTROLS, SECONDARY_PROC_CONTROLS, APIC_ACCESS_ADDRESS]
        when v.secondary()?.contains(SecondaryControls::VIRTUALIZE_APIC_ACCESSES)
        => zero(v, F::APIC_ACCESS_ADDRESS, 0xfff);

    /// The APIC-access address must not set any bit beyond the physical-address width.
    "ctl-apic-access-width" ctl_apic_access_width
        [PROC_CONTROLS, SECONDARY_PROC_CONTROLS, APIC_ACCESS_ADDRESS]
        when v.secondary()?.contains(SecondaryControls::VIRTUALIZE_APIC_ACCESSES)
        => zero(v, F::APIC_ACCESS_ADDRESS, beyond_structures(v));

    /// If "use TPR shadow" is 0, "virtualize x2APIC mode" must be 0.
    "ctl-x2apic-mode-requires-tpr-shadow" ctl_x2apic_mode_requires_tpr_shadow
        [PROC_CONTROLS, SECONDARY_PROC_CONTROLS]
        when !v.proc()?.contains(ProcControls::USE_TPR_SHADOW)
        => lacks(v.secondary()?, SecondaryControls::VIRTUALIZE_X2APIC_MODE);

    /// If "use TPR shadow" is 0, "APIC-register virtualization" must be 0.
    "ctl-apic-register-virt-requires-tpr-shadow" ctl_apic_register_virt_requires_tpr_shadow
        [PROC_CONTROLS, SECONDARY_PROC_CONTROLS]
        when !v.proc()?.contains(ProcControls::USE_TPR_SHADOW)
        => lacks(v.secondary()?, SecondaryControls::APIC_REGISTER_VIRTUALIZATION);

    /// If "use TPR shadow" is 0, "virtual-interrupt delivery" must be 0.
    "ctl-vid-requires-tpr-shadow" ctl_vid_requires_tpr_shadow
        [PROC_CONTROLS, SECONDARY_PROC_CONTROLS]
        when !v.proc()?.contains(ProcControls::USE_TPR_SHADOW)
        => lacks(v.secondary()?, SecondaryControls::VIRTUAL_INTERRUPT_DELIVERY);

    /// If "virtualize x2APIC mode" is 1, "virtualize APIC accesses" must be 0.
    "ctl-x2apic-mode-excludes-apic-access" ctl_x2apic_mode_excludes_apic_access
        [PROC_CONTROLS, SECONDARY_PROC_CONTROLS]
        when v.secondary()?.contains(SecondaryControls::VIRTUALIZE_X2APIC_MODE)
        => lacks(v.secondary()?, SecondaryControls::VIRTUALIZE_APIC_ACCESSES);

    /// If "virtual-interrupt delivery" is 1, "external-interrupt exiting" must be 1.
    "ctl-vid-requires-ext-int-exiting" ctl_vid_requires_ext_int_exiting
        [PROC_CONTROLS, SECONDARY_PROC_CONTROLS, PIN_CONTROLS]
        when v.secondary()?.contains(SecondaryControls::VIRTUAL_INTERRUPT_DELIVERY)
        => ones(v, F::PIN_CONTROLS, PinControls::EXTERNAL_INTERRUPT_EXITING.bits().into());

    /// If "process posted interrupts" is 1, "virtual-interrupt delivery" must be 1.
    "ctl-pi-requires-vid" ctl_pi_requires_vid
        [PIN_CONTROLS, PROC_CONTROLS, SECONDARY_PROC_CONTROLS]
        when v.pin()?.contains(PinControls::PROCESS_POSTED_INTERRUPTS)
        => has(v.secondary()?, SecondaryControls::VIRTUAL_INTERRUPT_DELIVERY);

    /// If "process posted interrupts" is 1, "acknowledge interrupt on exit" must be 1.
    "ctl-pi-requires-ack-on-exit" ctl_pi_requires_ack_on_exit [PIN_CONTROLS, EXIT_CONTROLS]
        when v.pin()?.contains(PinControls::PROCESS_POSTED_INTERRUPTS)
        => ones(v, F::EXIT_CONTROLS, ExitControls::ACKNOWLEDGE_INTERRUPT_ON_EXIT.bits().into());

    /// Bits 15:8 of the posted-interrupt notification vector must be 0.
    "ctl-pi-vector" ctl_pi_vector [PIN_CONTROLS, POSTED_INTERRUPT_NOTIFICATION_VECTOR]
        when v.pin()?.contains(PinControls::PROCESS_POSTED_INTERRUPTS)
        => zero(v, F::POSTED_INTERRUPT_NOTIFICATION_VECTOR, 0xff00);

    /// Bits 5:0 of the posted-interrupt descriptor address must be 0.
    "ctl-pi-descriptor-align" ctl_pi_descriptor_align
        [PIN_CONTROLS, POSTED_INTERRUPT_DESCRIPTOR_ADDRESS]
        when v.pin()?.contains(PinControls::PROCESS_POSTED_INTERRUPTS)
        => zero(v, F::POSTED_INTERRUPT_DESCRIPTOR_ADDRESS, 0x3f);

    /// The posted-interrupt descriptor address must not set any bit beyond the physical-address width.
    "ctl-pi-descriptor-width" ctl_pi_descriptor_width
        [PIN_CONTROLS, POSTED_INTERRUPT_DESCRIPTOR_ADDRESS]
        when v.pin()?.contains(PinControls::PROCESS_POSTED_INTERRUPTS)
        => zero(v, F::POSTED_INTERRUPT_DESCRIPTOR_ADDRESS, beyond_structures(v));

    /// If "enable VPID" is 1, the VPID must not be 0000H.
    "ctl-vpid-nonzero" ctl_vpid_nonzero [PROC_CONTROLS, SECONDARY_PROC_CONTROLS, VPID]
        when v.secondary()?.contains(SecondaryControls::ENABLE_VPID)
        => holds(v.get(F::VPID)? != 0, F::VPID, 0);

    /// The EPT memory type (bits 2:0 of the EPTP) must be one that the processor supports.
    "ctl-eptp-memory-type" ctl_eptp_memory_type
        [PROC_CONTROLS, SECONDARY_PROC_CONTROLS, EPT_POINTER]
        when v.secondary()?.contains(SecondaryControls::ENABLE_EPT)
        => eptp_memory_type(v);

    /// Bits 5:3 of the EPTP (1 less than the EPT page-walk length) must be a length that the processor supports.
    "ctl-eptp-walk-length" ctl_eptp_walk_length
        [PROC_CONTROLS, SECONDARY_PROC_CONTROLS, EPT_POINTER]
        when v.secondary()?.contains(SecondaryControls::ENABLE_EPT)
        => eptp_walk_length(v);

    /// Bit 6 of the EPTP must be 0 if accessed and dirty flags are not supported.
    "ctl-eptp-ad" ctl_eptp_ad [PROC_CONTROLS, SECONDARY_PROC_CONTROLS, EPT_POINTER]
        when v.secondary()?.contains(SecondaryControls::ENABLE_EPT)
            && !v.caps().ept_vpid().contains(EptVpidCap::ACCESSED_DIRTY)
        => zero(v, F::EPT_POINTER, 1 << 6);

    /// Bit 7 of the EPTP must be 0 if supervisor shadow-stack control is not supported.
    "ctl-eptp-sss" ctl_eptp_sss [PROC_CONTROLS, SECONDARY_PROC_CONTROLS, EPT_POINTER]
        when v.secondary()?.contains(SecondaryControls::ENABLE_EPT)
            && !v.caps().ept_vpid().contains(EptVpidCap::SUPERVISOR_SHADOW_STACK)
        => zero(v, F::EPT_POINTER, 1 << 7);

    /// Bits 11:8 of the EPTP must be 0.
    "ctl-eptp-reserved" ctl_eptp_reserved [PROC_CONTROLS, SECONDARY_PROC_CONTROLS, EPT_POINTER]
        when v.secondary()?.contains(SecondaryControls::ENABLE_EPT)
        => zero(v, F::EPT_POINTER, 0xf00);

    /// The EPTP must not set any bit beyond the physical-address width.
    "ctl-eptp-width" ctl_eptp_width [PROC_CONTROLS, SECONDARY_PROC_CONTROLS, EPT_POINTER]
        when v.secondary()?.contains(SecondaryControls::ENABLE_EPT)
        => zero(v, F::EPT_POINTER, beyond_physical(v));

    /// If "enable PML" is 1, "enable EPT" must be 1.
    "ctl-pml-requires-ept" ctl_pml_requires_ept [PROC_CONTROLS, SECONDARY_PROC_CONTROLS]
        when v.secondary()?.contains(SecondaryControls::ENABLE_PML)
        => has(v.secondary()?, SecondaryControls::ENABLE_EPT);

    /// Bits 11:0 of the PML address must be 0.
    "ctl-pml-align" ctl_pml_align [PROC_CONTROLS, SECONDARY_PROC_CONTROLS, PML_ADDRESS]
        when v.secondary()?.contains(SecondaryControls::ENABLE_PML)
        => zero(v, F::PML_ADDRESS, 0xfff);

    /// The PML address must not set any bit beyond the physical-address width.
    "ctl-pml-width" ctl_pml_width [PROC_CONTROLS, SECONDARY_PROC_CONTROLS, PML_ADDRESS]
        when v.secondary()?.contains(SecondaryControls::ENABLE_PML)
        => zero(v, F::PML_ADDRESS, beyond_structures(v));

    /// If "unrestricted guest" is 1, "enable EPT" must be 1.
    "ctl-unrestricted-requires-ept" ctl_unrestricted_requires_ept
        [PROC_CONTROLS, SECONDARY_PROC_CONTROLS]
        when v.secondary()?.contains(SecondaryControls::UNRESTRICTED_GUEST)
        => has(v.secondary()?, SecondaryControls::ENABLE_EPT);

    /// If "mode-based execute control for EPT" is 1, "enable EPT" must be 1.
    "ctl-mbec-requires-ept" ctl_mbec_requires_ept [PROC_CONTROLS, SECONDARY_PROC_CONTROLS]
        when v.secondary()?.contains(SecondaryControls::MODE_BASED_EXECUTE_CONTROL)
        => has(v.secondary()?, SecondaryControls::ENABLE_EPT);

    /// Reserved bits in the VM-function controls must be clear.
    "ctl-vmfunc-reserved" ctl_vmfunc_reserved
        [PROC_CONTROLS, SECONDARY_PROC_CONTROLS, VM_FUNCTION_CONTROLS]
        when v.secondary()?.contains(SecondaryControls::ENABLE_VM_FUNCTIONS)
        => zero(v, F::VM_FUNCTION_CONTROLS, !v.caps().vm_function_may1().bits());

    /// If "EPTP switching" is 1, "enable EPT" must be 1.
    "ctl-eptp-switching-requires-ept" ctl_eptp_switching_requires_ept
        [PROC_CONTROLS, SECONDARY_PROC_CONTROLS, VM_FUNCTION_CONTROLS]
        when v.vm_functions()?.contains(VmFunctionControls::EPTP_SWITCHING)
        => has(v.secondary()?, SecondaryControls::ENABLE_EPT);

    /// Bits 11:0 of the EPTP-list address must be 0.
    "ctl-eptp-list-align" ctl_eptp_list_align
        [PROC_CONTROLS, SECONDARY_PROC_CONTROLS, VM_FUNCTION_CONTROLS, EPTP_LIST_ADDRESS]
        when v.vm_functions()?.contains(VmFunctionControls::EPTP_SWITCHING)
        => zero(v, F::EPTP_LIST_ADDRESS, 0xfff);

    /// The EPTP-list address must not set any bit beyond the physical-address width.
    "ctl-eptp-list-width" ctl_eptp_list_width
        [PROC_CONTROLS, SECONDARY_PROC_CONTROLS, VM_FUNCTION_CONTROLS, EPTP_LIST_ADDRESS]
        when v.vm_functions()?.contains(VmFunctionControls::EPTP_SWITCHING)
        => zero(v, F::EPTP_LIST_ADDRESS, beyond_structures(v));

    /// Bits 11:0 of the VMREAD-bitmap address must be 0.
    "ctl-vmread-bitmap-align" ctl_vmread_bitmap_align
        [PROC_CONTROLS, SECONDARY_PROC_CONTROLS, VMREAD_BITMAP_ADDRESS]
        when v.secondary()?.contains(SecondaryControls::VMCS_SHADOWING)
        => zero(v, F::VMREAD_BITMAP_ADDRESS, 0xfff);

    /// The VMREAD-bitmap address must not set any bit beyond the physical-address width.
    "ctl-vmread-bitmap-width" ctl_vmread_bitmap_width
        [PROC_CONTROLS, SECONDARY_PROC_CONTROLS, VMREAD_BITMAP_ADDRESS]
        when v.secondary()?.contains(SecondaryControls::VMCS_SHADOWING)
        => zero(v, F::VMREAD_BITMAP_ADDRESS, beyond_structures(v));

    /// Bits 11:0 of the VMWRITE-bitmap address must be 0.
    "ctl-vmwrite-bitmap-align" ctl_vmwrite_bitmap_align
        [PROC_CONTROLS, SECONDARY_PROC_CONTROLS, VMWRITE_BITMAP_ADDRESS]
        when v.secondary()?.contains(SecondaryControls::VMCS_SHADOWING)
        => zero(v, F::VMWRITE_BITMAP_ADDRESS, 0xfff);

    /// The VMWRITE-bitmap address must not set any bit beyond the physical-address width.
    "ctl-vmwrite-bitmap-width" ctl_vmwrite_bitmap_width
        [PROC_CONTROLS, SECONDARY_PROC_CONTROLS, VMWRITE_BITMAP_ADDRESS]
        when v.secondary()?.contains(SecondaryControls::VMCS_SHADOWING)
        => zero(v, F::VMWRITE_BITMAP_ADDRESS, beyond_structures(v));

    /// Bits 11:0 of the virtualization-exception information address must be 0.
    "ctl-ve-info-align" ctl_ve_info_align
        [PROC_CONTROLS, SECONDARY_PROC_CONTROLS, VE_INFORMATION_ADDRESS]
        when v.secondary()?.contains(SecondaryControls::EPT_VIOLATION_VE)
        => zero(v, F::VE_INFORMATION_ADDRESS, 0xfff);

    /// The virtualization-exception information address must not set any bit beyond the physical-address width.
    "ctl-ve-info-width" ctl_ve_info_width
        [PROC_CONTROLS, SECONDARY_PROC_CONTROLS, VE_INFORMATION_ADDRESS]
        when v.secondary()?.contains(SecondaryControls::EPT_VIOLATION_VE)
        => zero(v, F::VE_INFORMATION_ADDRESS, beyond_structures(v));

    /// If "use TSC scaling" is 1, the TSC multiplier must not be 0.
    "ctl-tsc-multiplier-nonzero" ctl_tsc_multiplier_nonzero
        [PROC_CONTROLS, SECONDARY_PROC_CONTROLS, TSC_MULTIPLIER]
        when v.secondary()?.contains(SecondaryControls::USE_TSC_SCALING)
        => holds(v.get(F::TSC_MULTIPLIER)? != 0, F::TSC_MULTIPLIER, 0);
}

/// The controls with which VTPR is not the guest's CR8, so that the TPR threshold is free.
const VIRTUALIZES_TPR: SecondaryControls = SecondaryControls::VIRTUALIZE_APIC_ACCESSES
    .union(SecondaryControls::VIRTUAL_INTERRUPT_DELIVERY);

/// Byte offset of VTPR in the virtual-APIC page.
const VTPR: u64 = 0x80;

fn threshold_within_vtpr<V: View>(v: &V) -> Finding {
    let vtpr = v.read_u32(Hpa(v.get(F::VIRTUAL_APIC_ADDRESS)?).offset(VTPR))?;
    let threshold = v.get(F::TPR_THRESHOLD)? as u32 & 0xf;
    holds(threshold <= vtpr >> 4 & 0xf, F::TPR_THRESHOLD, 0xf)
}

fn eptp_memory_type<V: View>(v: &V) -> Finding {
    let supported = match v.get(F::EPT_POINTER)? & 7 {
        0 => v.caps().ept_vpid().contains(EptVpidCap::MEMORY_TYPE_UC),
        6 => v.caps().ept_vpid().contains(EptVpidCap::MEMORY_TYPE_WB),
        _ => false,
    };
    holds(supported, F::EPT_POINTER, 7)
}

fn eptp_walk_length<V: View>(v: &V) -> Finding {
    let supported = match v.get(F::EPT_POINTER)? >> 3 & 7 {
        3 => v.caps().ept_vpid().contains(EptVpidCap::WALK_LENGTH_4),
        4 => v.caps().ept_vpid().contains(EptVpidCap::WALK_LENGTH_5),
        _ => false,
    };
    holds(supported, F::EPT_POINTER, 7 << 3)
}
