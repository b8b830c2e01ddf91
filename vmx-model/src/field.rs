//! The fields of a VMCS: one table, in the order of their encodings.
//!
//! SDM Vol. 3C, "Field Encoding in VMCS" (appendix B) and "VMREAD and VMWRITE" of the section
//! "VMCS Types / Software Use of the VMCS". A [`Field`] is the dense index of a row, so that the
//! values of a VMCS are an array; [`Field::from_encoding`] finds the row for an encoding as
//! VMREAD and VMWRITE get it.

use crate::capability::VmxCapabilities;
use crate::controls::{
    EntryControls, ExitControls, PinControls, ProcControls, SecondaryControls,
    SecondaryExitControls, TertiaryControls, VmFunctionControls,
};

/// A VMCS field: the index of its row in the table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Field(u8);

/// How many bits a field has: bits 14:13 of its encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Width {
    /// 16 bits.
    W16 = 0,
    /// 64 bits; such a field has a second encoding for its high half.
    W64 = 1,
    /// 32 bits.
    W32 = 2,
    /// As many as a linear address: 64 on a processor with Intel 64, otherwise 32.
    Natural = 3,
}

/// What a field is for: bits 11:10 of its encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// VM-execution, VM-exit and VM-entry control fields.
    Control = 0,
    /// VM-exit information fields, which VMWRITE may write only where IA32_VMX_MISC\[29\] is 1.
    ReadOnly = 1,
    /// The guest-state area.
    Guest = 2,
    /// The host-state area.
    Host = 3,
}

/// Which part of a field an encoding accesses: its bit 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Half {
    /// The whole field.
    Full,
    /// Bits 63:32 of a 64-bit field.
    High,
}

/// When a field exists: if one of its conditions holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// On every processor with VMX.
    Always,
    /// Only with SEAM, which this model leaves out.
    Seam,
    /// If the processor has at least this many CR3-target values.
    Cr3Targets(u8),
    /// If this pin-based control may be 1.
    Pin(PinControls),
    /// If this primary processor-based control may be 1.
    Proc(ProcControls),
    /// If this secondary processor-based control may be 1.
    Secondary(SecondaryControls),
    /// If this tertiary processor-based control may be 1.
    Tertiary(TertiaryControls),
    /// If this VM-exit control may be 1.
    Exit(ExitControls),
    /// If this VM-entry control may be 1.
    Entry(EntryControls),
    /// If this secondary VM-exit control may be 1.
    SecondaryExit(SecondaryExitControls),
    /// If this VM function may be enabled.
    VmFunction(VmFunctionControls),
}

impl Condition {
    fn holds(self, caps: &VmxCapabilities) -> bool {
        match self {
            Self::Always => true,
            Self::Seam => false,
            Self::Cr3Targets(n) => caps.cr3_target_max() >= u32::from(n),
            Self::Pin(control) => caps.pin_may1().contains(control),
            Self::Proc(control) => caps.proc_may1().contains(control),
            Self::Secondary(control) => caps.secondary_may1().contains(control),
            Self::Tertiary(control) => caps.tertiary_may1().contains(control),
            Self::Exit(control) => caps.exit_may1().contains(control),
            Self::Entry(control) => caps.entry_may1().contains(control),
            Self::SecondaryExit(control) => caps.secondary_exit_may1().contains(control),
            Self::VmFunction(control) => caps.vm_function_may1().contains(control),
        }
    }
}

/// One row of the table.
struct Row {
    encoding: u16,
    id: &'static str,
    name: &'static str,
    linux: &'static str,
    exists_if: &'static [Condition],
}

/// Expands a condition as the table below writes it.
macro_rules! condition {
    (Always) => {
        Condition::Always
    };
    (Seam) => {
        Condition::Seam
    };
    (Cr3Targets $n:literal) => {
        Condition::Cr3Targets($n)
    };
    (Pin $c:ident) => {
        Condition::Pin(PinControls::$c)
    };
    (Proc $c:ident) => {
        Condition::Proc(ProcControls::$c)
    };
    (Secondary $c:ident) => {
        Condition::Secondary(SecondaryControls::$c)
    };
    (Tertiary $c:ident) => {
        Condition::Tertiary(TertiaryControls::$c)
    };
    (Exit $c:ident) => {
        Condition::Exit(ExitControls::$c)
    };
    (Entry $c:ident) => {
        Condition::Entry(EntryControls::$c)
    };
    (SecondaryExit $c:ident) => {
        Condition::SecondaryExit(SecondaryExitControls::$c)
    };
    (VmFunction $c:ident) => {
        Condition::VmFunction(VmFunctionControls::$c)
    };
}

/// Declares the fields: `NAME = encoding, "id", "name in Linux", [exists if one of];` below a
/// heading of kind and width. A row whose encoding contradicts its heading does not compile.
macro_rules! fields {
    ($(
        $kind:ident $width:ident {
            $(
                #[doc = $name:literal]
                $field:ident = $encoding:literal, $id:literal, $linux:literal,
                [$($word:ident $($bit:tt)?),*];
            )*
        }
    )*) => {
        #[repr(u8)]
        #[allow(non_camel_case_types, clippy::upper_case_acronyms, reason = "names of constants")]
        enum Index { $($( $field, )*)* }

        const TABLE: &[Row] = &[$($(
            {
                let heading = (Width::$width as u16) << 13 | (Kind::$kind as u16) << 10;
                assert!($encoding & 0xfc01 == heading, "the encoding contradicts its heading");
                Row {
                    encoding: $encoding,
                    id: $id,
                    name: $name.trim_ascii(),
                    linux: $linux,
                    exists_if: &[$(condition!($word $($bit)?)),*],
                }
            },
        )*)*];

        impl Field {
            $($(
                #[doc = $name]
                pub const $field: Self = Self(Index::$field as u8);
            )*)*
        }
    };
}

fields! {
    // "16-Bit Control Fields".
    Control W16 {
        /// Virtual-processor identifier (VPID)
        VPID = 0x0000, "vpid", "VIRTUAL_PROCESSOR_ID", [Secondary ENABLE_VPID];
        /// Posted-interrupt notification vector
        POSTED_INTERRUPT_NOTIFICATION_VECTOR = 0x0002, "posted-interrupt-notification-vector", "POSTED_INTR_NV",
            [Pin PROCESS_POSTED_INTERRUPTS];
        /// EPTP index
        EPTP_INDEX = 0x0004, "eptp-index", "", [Secondary EPT_VIOLATION_VE];
        /// HLAT prefix size
        HLAT_PREFIX_SIZE = 0x0006, "hlat-prefix-size", "", [Tertiary ENABLE_HLAT];
        /// Last PID-pointer index
        LAST_PID_POINTER_INDEX = 0x0008, "last-pid-pointer-index", "LAST_PID_POINTER_INDEX",
            [Tertiary IPI_VIRTUALIZATION];
        /// Virtual timer vector
        VIRTUAL_TIMER_VECTOR = 0x000a, "virtual-timer-vector", "",
            [Tertiary APIC_TIMER_VIRTUALIZATION];
    }
    // "16-Bit Guest-State Fields".
    Guest W16 {
        /// Guest ES selector
        GUEST_ES_SELECTOR = 0x0800, "guest-es-selector", "GUEST_ES_SELECTOR", [Always];
        /// Guest CS selector
        GUEST_CS_SELECTOR = 0x0802, "guest-cs-selector", "GUEST_CS_SELECTOR", [Always];
        /// Guest SS selector
        GUEST_SS_SELECTOR = 0x0804, "guest-ss-selector", "GUEST_SS_SELECTOR", [Always];
        /// Guest DS selector
        GUEST_DS_SELECTOR = 0x0806, "guest-ds-selector", "GUEST_DS_SELECTOR", [Always];
        /// Guest FS selector
        GUEST_FS_SELECTOR = 0x0808, "guest-fs-selector", "GUEST_FS_SELECTOR", [Always];
        /// Guest GS selector
        GUEST_GS_SELECTOR = 0x080a, "guest-gs-selector", "GUEST_GS_SELECTOR", [Always];
        /// Guest LDTR selector
        GUEST_LDTR_SELECTOR = 0x080c, "guest-ldtr-selector", "GUEST_LDTR_SELECTOR", [Always];
        /// Guest TR selector
        GUEST_TR_SELECTOR = 0x080e, "guest-tr-selector", "GUEST_TR_SELECTOR", [Always];
        /// Guest interrupt status
        GUEST_INTERRUPT_STATUS = 0x0810, "guest-interrupt-status", "GUEST_INTR_STATUS",
            [Secondary VIRTUAL_INTERRUPT_DELIVERY];
        /// PML index
        PML_INDEX = 0x0812, "pml-index", "GUEST_PML_INDEX", [Secondary ENABLE_PML];
        /// Guest UINV
        GUEST_UINV = 0x0814, "guest-uinv", "", [Entry LOAD_UINV, Exit CLEAR_UINV];
    }
    // "16-Bit Host-State Fields".
    Host W16 {
        /// Host ES selector
        HOST_ES_SELECTOR = 0x0c00, "host-es-selector", "HOST_ES_SELECTOR", [Always];
        /// Host CS selector
        HOST_CS_SELECTOR = 0x0c02, "host-cs-selector", "HOST_CS_SELECTOR", [Always];
        /// Host SS selector
        HOST_SS_SELECTOR = 0x0c04, "host-ss-selector", "HOST_SS_SELECTOR", [Always];
        /// Host DS selector
        HOST_DS_SELECTOR = 0x0c06, "host-ds-selector", "HOST_DS_SELECTOR", [Always];
        /// Host FS selector
        HOST_FS_SELECTOR = 0x0c08, "host-fs-selector", "HOST_FS_SELECTOR", [Always];
        /// Host GS selector
        HOST_GS_SELECTOR = 0x0c0a, "host-gs-selector", "HOST_GS_SELECTOR", [Always];
        /// Host TR selector
        HOST_TR_SELECTOR = 0x0c0c, "host-tr-selector", "HOST_TR_SELECTOR", [Always];
    }
    // "64-Bit Control Fields".
    Control W64 {
        /// Address of I/O bitmap A
        IO_BITMAP_A_ADDRESS = 0x2000, "io-bitmap-a-address", "IO_BITMAP_A", [Always];
        /// Address of I/O bitmap B
        IO_BITMAP_B_ADDRESS = 0x2002, "io-bitmap-b-address", "IO_BITMAP_B", [Always];
        /// Address of MSR bitmaps
        MSR_BITMAP_ADDRESS = 0x2004, "msr-bitmap-address", "MSR_BITMAP", [Proc USE_MSR_BITMAPS];
        /// VM-exit MSR-store address
        VM_EXIT_MSR_STORE_ADDRESS = 0x2006, "vm-exit-msr-store-address", "VM_EXIT_MSR_STORE_ADDR",
            [Always];
        /// VM-exit MSR-load address
        VM_EXIT_MSR_LOAD_ADDRESS = 0x2008, "vm-exit-msr-load-address", "VM_EXIT_MSR_LOAD_ADDR",
            [Always];
        /// VM-entry MSR-load address
        VM_ENTRY_MSR_LOAD_ADDRESS = 0x200a, "vm-entry-msr-load-address", "VM_ENTRY_MSR_LOAD_ADDR",
            [Always];
        /// Executive-VMCS pointer
        EXECUTIVE_VMCS_POINTER = 0x200c, "executive-vmcs-pointer", "", [Always];
        /// PML address
        PML_ADDRESS = 0x200e, "pml-address", "PML_ADDRESS", [Secondary ENABLE_PML];
        /// TSC offset
        TSC_OFFSET = 0x2010, "tsc-offset", "TSC_OFFSET", [Always];
        /// Virtual-APIC address
        VIRTUAL_APIC_ADDRESS = 0x2012, "virtual-apic-address", "VIRTUAL_APIC_PAGE_ADDR",
            [Proc USE_TPR_SHADOW];
        /// APIC-access address
        APIC_ACCESS_ADDRESS = 0x2014, "apic-access-address", "APIC_ACCESS_ADDR",
            [Secondary VIRTUALIZE_APIC_ACCESSES];
        /// Posted-interrupt descriptor address
        POSTED_INTERRUPT_DESCRIPTOR_ADDRESS = 0x2016, "posted-interrupt-descriptor-address", "POSTED_INTR_DESC_ADDR",
            [Pin PROCESS_POSTED_INTERRUPTS];
        /// VM-function controls
        VM_FUNCTION_CONTROLS = 0x2018, "vm-function-controls", "VM_FUNCTION_CONTROL",
            [Secondary ENABLE_VM_FUNCTIONS];
        /// EPT pointer (EPTP)
        EPT_POINTER = 0x201a, "ept-pointer", "EPT_POINTER", [Secondary ENABLE_EPT];
        /// EOI-exit bitmap 0
        EOI_EXIT_BITMAP_0 = 0x201c, "eoi-exit-bitmap-0", "EOI_EXIT_BITMAP0",
            [Secondary VIRTUAL_INTERRUPT_DELIVERY];
        /// EOI-exit bitmap 1
        EOI_EXIT_BITMAP_1 = 0x201e, "eoi-exit-bitmap-1", "EOI_EXIT_BITMAP1",
            [Secondary VIRTUAL_INTERRUPT_DELIVERY];
        /// EOI-exit bitmap 2
        EOI_EXIT_BITMAP_2 = 0x2020, "eoi-exit-bitmap-2", "EOI_EXIT_BITMAP2",
            [Secondary VIRTUAL_INTERRUPT_DELIVERY];
        /// EOI-exit bitmap 3
        EOI_EXIT_BITMAP_3 = 0x2022, "eoi-exit-bitmap-3", "EOI_EXIT_BITMAP3",
            [Secondary VIRTUAL_INTERRUPT_DELIVERY];
        /// EPTP-list address
        EPTP_LIST_ADDRESS = 0x2024, "eptp-list-address", "EPTP_LIST_ADDRESS",
            [VmFunction EPTP_SWITCHING];
        /// VMREAD-bitmap address
        VMREAD_BITMAP_ADDRESS = 0x2026, "vmread-bitmap-address", "VMREAD_BITMAP",
            [Secondary VMCS_SHADOWING];
        /// VMWRITE-bitmap address
        VMWRITE_BITMAP_ADDRESS = 0x2028, "vmwrite-bitmap-address", "VMWRITE_BITMAP",
            [Secondary VMCS_SHADOWING];
        /// Virtualization-exception information address
        VE_INFORMATION_ADDRESS = 0x202a, "ve-information-address", "VE_INFORMATION_ADDRESS",
            [Secondary EPT_VIOLATION_VE];
        /// XSS-exiting bitmap
        XSS_EXITING_BITMAP = 0x202c, "xss-exiting-bitmap", "XSS_EXIT_BITMAP",
            [Secondary ENABLE_XSAVES_XRSTORS];
        /// ENCLS-exiting bitmap
        ENCLS_EXITING_BITMAP = 0x202e, "encls-exiting-bitmap", "ENCLS_EXITING_BITMAP",
            [Secondary ENABLE_ENCLS_EXITING];
        /// Sub-page-permission-table pointer (SPPTP)
        SPPTP = 0x2030, "spptp", "", [Secondary SUB_PAGE_WRITE_PERMISSIONS];
        /// TSC multiplier
        TSC_MULTIPLIER = 0x2032, "tsc-multiplier", "TSC_MULTIPLIER", [Secondary USE_TSC_SCALING];
        /// Tertiary processor-based VM-execution controls
        TERTIARY_PROC_CONTROLS = 0x2034, "tertiary-proc-controls", "TERTIARY_VM_EXEC_CONTROL",
            [Proc ACTIVATE_TERTIARY_CONTROLS];
        /// ENCLV-exiting bitmap
        ENCLV_EXITING_BITMAP = 0x2036, "enclv-exiting-bitmap", "", [Secondary ENABLE_ENCLV_EXITING];
        /// Low PASID directory address
        LOW_PASID_DIRECTORY_ADDRESS = 0x2038, "low-pasid-directory-address", "",
            [Secondary PASID_TRANSLATION];
        /// High PASID directory address
        HIGH_PASID_DIRECTORY_ADDRESS = 0x203a, "high-pasid-directory-address", "",
            [Secondary PASID_TRANSLATION];
        /// Shared EPT pointer
        SHARED_EPT_POINTER = 0x203c, "shared-ept-pointer", "SHARED_EPT_POINTER", [Seam];
        /// PCONFIG-exiting bitmap
        PCONFIG_EXITING_BITMAP = 0x203e, "pconfig-exiting-bitmap", "", [Secondary ENABLE_PCONFIG];
        /// HLAT pointer (HLATP)
        HLATP = 0x2040, "hlatp", "", [Tertiary ENABLE_HLAT];
        /// PID-pointer table address
        PID_POINTER_TABLE_ADDRESS = 0x2042, "pid-pointer-table-address", "PID_POINTER_TABLE",
            [Tertiary IPI_VIRTUALIZATION];
        /// Secondary VM-exit controls
        SECONDARY_EXIT_CONTROLS = 0x2044, "secondary-exit-controls", "SECONDARY_VM_EXIT_CONTROLS",
            [Exit ACTIVATE_SECONDARY_CONTROLS];
        /// IA32_SPEC_CTRL mask
        SPEC_CTRL_MASK = 0x204a, "spec-ctrl-mask", "", [Tertiary VIRTUALIZE_IA32_SPEC_CTRL];
        /// IA32_SPEC_CTRL shadow
        SPEC_CTRL_SHADOW = 0x204c, "spec-ctrl-shadow", "", [Tertiary VIRTUALIZE_IA32_SPEC_CTRL];
        /// Guest deadline shadow
        GUEST_DEADLINE_SHADOW = 0x204e, "guest-deadline-shadow", "",
            [Tertiary APIC_TIMER_VIRTUALIZATION];
        /// Injected-event data
        INJECTED_EVENT_DATA = 0x2052, "injected-event-data", "INJECTED_EVENT_DATA",
            [Entry LOAD_IA32_FRED];
    }
    // "64-Bit Read-Only Data Fields".
    ReadOnly W64 {
        /// Guest-physical address
        GUEST_PHYSICAL_ADDRESS = 0x2400, "guest-physical-address", "GUEST_PHYSICAL_ADDRESS",
            [Secondary ENABLE_EPT];
        /// MSR data
        MSR_DATA = 0x2402, "msr-data", "", [Tertiary ENABLE_MSR_LIST_INSTRUCTIONS];
        /// Original-event data
        ORIGINAL_EVENT_DATA = 0x2404, "original-event-data", "ORIGINAL_EVENT_DATA",
            [Entry LOAD_IA32_FRED];
    }
    // "64-Bit Guest-State Fields".
    Guest W64 {
        /// VMCS link pointer
        VMCS_LINK_POINTER = 0x2800, "vmcs-link-pointer", "VMCS_LINK_POINTER", [Always];
        /// Guest IA32_DEBUGCTL
        GUEST_IA32_DEBUGCTL = 0x2802, "guest-ia32-debugctl", "GUEST_IA32_DEBUGCTL", [Always];
        /// Guest IA32_PAT
        GUEST_IA32_PAT = 0x2804, "guest-ia32-pat", "GUEST_IA32_PAT",
            [Entry LOAD_IA32_PAT, Exit SAVE_IA32_PAT];
        /// Guest IA32_EFER
        GUEST_IA32_EFER = 0x2806, "guest-ia32-efer", "GUEST_IA32_EFER",
            [Entry LOAD_IA32_EFER, Exit SAVE_IA32_EFER];
        /// Guest IA32_PERF_GLOBAL_CTRL
        GUEST_IA32_PERF_GLOBAL_CTRL = 0x2808, "guest-ia32-perf-global-ctrl", "GUEST_IA32_PERF_GLOBAL_CTRL",
            [Entry LOAD_IA32_PERF_GLOBAL_CTRL, Exit SAVE_IA32_PERF_GLOBAL_CTRL];
        /// Guest PDPTE0
        GUEST_PDPTE0 = 0x280a, "guest-pdpte0", "GUEST_PDPTR0", [Secondary ENABLE_EPT];
        /// Guest PDPTE1
        GUEST_PDPTE1 = 0x280c, "guest-pdpte1", "GUEST_PDPTR1", [Secondary ENABLE_EPT];
        /// Guest PDPTE2
        GUEST_PDPTE2 = 0x280e, "guest-pdpte2", "GUEST_PDPTR2", [Secondary ENABLE_EPT];
        /// Guest PDPTE3
        GUEST_PDPTE3 = 0x2810, "guest-pdpte3", "GUEST_PDPTR3", [Secondary ENABLE_EPT];
        /// Guest IA32_BNDCFGS
        GUEST_IA32_BNDCFGS = 0x2812, "guest-ia32-bndcfgs", "GUEST_BNDCFGS",
            [Entry LOAD_IA32_BNDCFGS, Exit CLEAR_IA32_BNDCFGS];
        /// Guest IA32_RTIT_CTL
        GUEST_IA32_RTIT_CTL = 0x2814, "guest-ia32-rtit-ctl", "GUEST_IA32_RTIT_CTL",
            [Entry LOAD_IA32_RTIT_CTL, Exit CLEAR_IA32_RTIT_CTL];
        /// Guest IA32_LBR_CTL
        GUEST_IA32_LBR_CTL = 0x2816, "guest-ia32-lbr-ctl", "",
            [Entry LOAD_GUEST_IA32_LBR_CTL, Exit CLEAR_IA32_LBR_CTL];
        /// Guest IA32_PKRS
        GUEST_IA32_PKRS = 0x2818, "guest-ia32-pkrs", "", [Entry LOAD_PKRS];
        /// Guest IA32_FRED_CONFIG
        GUEST_IA32_FRED_CONFIG = 0x281a, "guest-ia32-fred-config", "GUEST_IA32_FRED_CONFIG",
            [Entry LOAD_IA32_FRED, SecondaryExit SAVE_IA32_FRED];
        /// Guest IA32_FRED_RSP1
        GUEST_IA32_FRED_RSP1 = 0x281c, "guest-ia32-fred-rsp1", "GUEST_IA32_FRED_RSP1",
            [Entry LOAD_IA32_FRED, SecondaryExit SAVE_IA32_FRED];
        /// Guest IA32_FRED_RSP2
        GUEST_IA32_FRED_RSP2 = 0x281e, "guest-ia32-fred-rsp2", "GUEST_IA32_FRED_RSP2",
            [Entry LOAD_IA32_FRED, SecondaryExit SAVE_IA32_FRED];
        /// Guest IA32_FRED_RSP3
        GUEST_IA32_FRED_RSP3 = 0x2820, "guest-ia32-fred-rsp3", "GUEST_IA32_FRED_RSP3",
            [Entry LOAD_IA32_FRED, SecondaryExit SAVE_IA32_FRED];
        /// Guest IA32_FRED_STKLVLS
        GUEST_IA32_FRED_STKLVLS = 0x2822, "guest-ia32-fred-stklvls", "GUEST_IA32_FRED_STKLVLS",
            [Entry LOAD_IA32_FRED, SecondaryExit SAVE_IA32_FRED];
        /// Guest IA32_FRED_SSP1
        GUEST_IA32_FRED_SSP1 = 0x2824, "guest-ia32-fred-ssp1", "GUEST_IA32_FRED_SSP1",
            [Entry LOAD_IA32_FRED, SecondaryExit SAVE_IA32_FRED];
        /// Guest IA32_FRED_SSP2
        GUEST_IA32_FRED_SSP2 = 0x2826, "guest-ia32-fred-ssp2", "GUEST_IA32_FRED_SSP2",
            [Entry LOAD_IA32_FRED, SecondaryExit SAVE_IA32_FRED];
        /// Guest IA32_FRED_SSP3
        GUEST_IA32_FRED_SSP3 = 0x2828, "guest-ia32-fred-ssp3", "GUEST_IA32_FRED_SSP3",
            [Entry LOAD_IA32_FRED, SecondaryExit SAVE_IA32_FRED];
        /// Guest IA32_SPEC_CTRL
        GUEST_IA32_SPEC_CTRL = 0x282e, "guest-ia32-spec-ctrl", "",
            [Entry LOAD_GUEST_IA32_SPEC_CTRL];
        /// Guest deadline
        GUEST_DEADLINE = 0x2830, "guest-deadline", "", [Tertiary APIC_TIMER_VIRTUALIZATION];
    }
    // "64-Bit Host-State Fields".
    Host W64 {
        /// Host IA32_PAT
        HOST_IA32_PAT = 0x2c00, "host-ia32-pat", "HOST_IA32_PAT", [Exit LOAD_IA32_PAT];
        /// Host IA32_EFER
        HOST_IA32_EFER = 0x2c02, "host-ia32-efer", "HOST_IA32_EFER", [Exit LOAD_IA32_EFER];
        /// Host IA32_PERF_GLOBAL_CTRL
        HOST_IA32_PERF_GLOBAL_CTRL = 0x2c04, "host-ia32-perf-global-ctrl", "HOST_IA32_PERF_GLOBAL_CTRL",
            [Exit LOAD_IA32_PERF_GLOBAL_CTRL];
        /// Host IA32_PKRS
        HOST_IA32_PKRS = 0x2c06, "host-ia32-pkrs", "", [Exit LOAD_PKRS];
        /// Host IA32_FRED_CONFIG
        HOST_IA32_FRED_CONFIG = 0x2c08, "host-ia32-fred-config", "HOST_IA32_FRED_CONFIG",
            [SecondaryExit LOAD_IA32_FRED];
        /// Host IA32_FRED_RSP1
        HOST_IA32_FRED_RSP1 = 0x2c0a, "host-ia32-fred-rsp1", "HOST_IA32_FRED_RSP1",
            [SecondaryExit LOAD_IA32_FRED];
        /// Host IA32_FRED_RSP2
        HOST_IA32_FRED_RSP2 = 0x2c0c, "host-ia32-fred-rsp2", "HOST_IA32_FRED_RSP2",
            [SecondaryExit LOAD_IA32_FRED];
        /// Host IA32_FRED_RSP3
        HOST_IA32_FRED_RSP3 = 0x2c0e, "host-ia32-fred-rsp3", "HOST_IA32_FRED_RSP3",
            [SecondaryExit LOAD_IA32_FRED];
        /// Host IA32_FRED_STKLVLS
        HOST_IA32_FRED_STKLVLS = 0x2c10, "host-ia32-fred-stklvls", "HOST_IA32_FRED_STKLVLS",
            [SecondaryExit LOAD_IA32_FRED];
        /// Host IA32_FRED_SSP1
        HOST_IA32_FRED_SSP1 = 0x2c12, "host-ia32-fred-ssp1", "HOST_IA32_FRED_SSP1",
            [SecondaryExit LOAD_IA32_FRED];
        /// Host IA32_FRED_SSP2
        HOST_IA32_FRED_SSP2 = 0x2c14, "host-ia32-fred-ssp2", "HOST_IA32_FRED_SSP2",
            [SecondaryExit LOAD_IA32_FRED];
        /// Host IA32_FRED_SSP3
        HOST_IA32_FRED_SSP3 = 0x2c16, "host-ia32-fred-ssp3", "HOST_IA32_FRED_SSP3",
            [SecondaryExit LOAD_IA32_FRED];
        /// Host IA32_SPEC_CTRL
        HOST_IA32_SPEC_CTRL = 0x2c1a, "host-ia32-spec-ctrl", "",
            [SecondaryExit LOAD_HOST_IA32_SPEC_CTRL];
    }
    // "32-Bit Control Fields".
    Control W32 {
        /// Pin-based VM-execution controls
        PIN_CONTROLS = 0x4000, "pin-controls", "PIN_BASED_VM_EXEC_CONTROL", [Always];
        /// Primary processor-based VM-execution controls
        PROC_CONTROLS = 0x4002, "proc-controls", "CPU_BASED_VM_EXEC_CONTROL", [Always];
        /// Exception bitmap
        EXCEPTION_BITMAP = 0x4004, "exception-bitmap", "EXCEPTION_BITMAP", [Always];
        /// Page-fault error-code mask
        PAGE_FAULT_ERROR_CODE_MASK = 0x4006, "page-fault-error-code-mask", "PAGE_FAULT_ERROR_CODE_MASK",
            [Always];
        /// Page-fault error-code match
        PAGE_FAULT_ERROR_CODE_MATCH = 0x4008, "page-fault-error-code-match", "PAGE_FAULT_ERROR_CODE_MATCH",
            [Always];
        /// CR3-target count
        CR3_TARGET_COUNT = 0x400a, "cr3-target-count", "CR3_TARGET_COUNT", [Always];
        /// Primary VM-exit controls
        EXIT_CONTROLS = 0x400c, "exit-controls", "VM_EXIT_CONTROLS", [Always];
        /// VM-exit MSR-store count
        VM_EXIT_MSR_STORE_COUNT = 0x400e, "vm-exit-msr-store-count", "VM_EXIT_MSR_STORE_COUNT",
            [Always];
        /// VM-exit MSR-load count
        VM_EXIT_MSR_LOAD_COUNT = 0x4010, "vm-exit-msr-load-count", "VM_EXIT_MSR_LOAD_COUNT",
            [Always];
        /// VM-entry controls
        ENTRY_CONTROLS = 0x4012, "entry-controls", "VM_ENTRY_CONTROLS", [Always];
        /// VM-entry MSR-load count
        VM_ENTRY_MSR_LOAD_COUNT = 0x4014, "vm-entry-msr-load-count", "VM_ENTRY_MSR_LOAD_COUNT",
            [Always];
        /// VM-entry interruption-information field
        VM_ENTRY_INTERRUPTION_INFORMATION = 0x4016, "vm-entry-interruption-information", "VM_ENTRY_INTR_INFO_FIELD",
            [Always];
        /// VM-entry exception error code
        VM_ENTRY_EXCEPTION_ERROR_CODE = 0x4018, "vm-entry-exception-error-code", "VM_ENTRY_EXCEPTION_ERROR_CODE",
            [Always];
        /// VM-entry instruction length
        VM_ENTRY_INSTRUCTION_LENGTH = 0x401a, "vm-entry-instruction-length", "VM_ENTRY_INSTRUCTION_LEN",
            [Always];
        /// TPR threshold
        TPR_THRESHOLD = 0x401c, "tpr-threshold", "TPR_THRESHOLD", [Proc USE_TPR_SHADOW];
        /// Secondary processor-based VM-execution controls
        SECONDARY_PROC_CONTROLS = 0x401e, "secondary-proc-controls", "SECONDARY_VM_EXEC_CONTROL",
            [Proc ACTIVATE_SECONDARY_CONTROLS];
        /// PLE_Gap
        PLE_GAP = 0x4020, "ple-gap", "PLE_GAP", [Secondary PAUSE_LOOP_EXITING];
        /// PLE_Window
        PLE_WINDOW = 0x4022, "ple-window", "PLE_WINDOW", [Secondary PAUSE_LOOP_EXITING];
        /// Instruction-timeout control
        INSTRUCTION_TIMEOUT_CONTROL = 0x4024, "instruction-timeout-control", "NOTIFY_WINDOW",
            [Secondary INSTRUCTION_TIMEOUT];
        /// SEAM guest key id
        SEAM_GUEST_KEYID = 0x4026, "seam-guest-keyid", "", [Seam];
    }
    // "32-Bit Read-Only Data Fields".
    ReadOnly W32 {
        /// VM-instruction error
        VM_INSTRUCTION_ERROR = 0x4400, "vm-instruction-error", "VM_INSTRUCTION_ERROR", [Always];
        /// Exit reason
        EXIT_REASON = 0x4402, "exit-reason", "VM_EXIT_REASON", [Always];
        /// VM-exit interruption information
        VM_EXIT_INTERRUPTION_INFORMATION = 0x4404, "vm-exit-interruption-information", "VM_EXIT_INTR_INFO",
            [Always];
        /// VM-exit interruption error code
        VM_EXIT_INTERRUPTION_ERROR_CODE = 0x4406, "vm-exit-interruption-error-code", "VM_EXIT_INTR_ERROR_CODE",
            [Always];
        /// IDT-vectoring information
        IDT_VECTORING_INFORMATION = 0x4408, "idt-vectoring-information", "IDT_VECTORING_INFO_FIELD",
            [Always];
        /// IDT-vectoring error code
        IDT_VECTORING_ERROR_CODE = 0x440a, "idt-vectoring-error-code", "IDT_VECTORING_ERROR_CODE",
            [Always];
        /// VM-exit instruction length
        VM_EXIT_INSTRUCTION_LENGTH = 0x440c, "vm-exit-instruction-length", "VM_EXIT_INSTRUCTION_LEN",
            [Always];
        /// VM-exit instruction information
        VM_EXIT_INSTRUCTION_INFORMATION = 0x440e, "vm-exit-instruction-information", "VMX_INSTRUCTION_INFO",
            [Always];
    }
    // "32-Bit Guest-State Fields".
    Guest W32 {
        /// Guest ES limit
        GUEST_ES_LIMIT = 0x4800, "guest-es-limit", "GUEST_ES_LIMIT", [Always];
        /// Guest CS limit
        GUEST_CS_LIMIT = 0x4802, "guest-cs-limit", "GUEST_CS_LIMIT", [Always];
        /// Guest SS limit
        GUEST_SS_LIMIT = 0x4804, "guest-ss-limit", "GUEST_SS_LIMIT", [Always];
        /// Guest DS limit
        GUEST_DS_LIMIT = 0x4806, "guest-ds-limit", "GUEST_DS_LIMIT", [Always];
        /// Guest FS limit
        GUEST_FS_LIMIT = 0x4808, "guest-fs-limit", "GUEST_FS_LIMIT", [Always];
        /// Guest GS limit
        GUEST_GS_LIMIT = 0x480a, "guest-gs-limit", "GUEST_GS_LIMIT", [Always];
        /// Guest LDTR limit
        GUEST_LDTR_LIMIT = 0x480c, "guest-ldtr-limit", "GUEST_LDTR_LIMIT", [Always];
        /// Guest TR limit
        GUEST_TR_LIMIT = 0x480e, "guest-tr-limit", "GUEST_TR_LIMIT", [Always];
        /// Guest GDTR limit
        GUEST_GDTR_LIMIT = 0x4810, "guest-gdtr-limit", "GUEST_GDTR_LIMIT", [Always];
        /// Guest IDTR limit
        GUEST_IDTR_LIMIT = 0x4812, "guest-idtr-limit", "GUEST_IDTR_LIMIT", [Always];
        /// Guest ES access rights
        GUEST_ES_ACCESS_RIGHTS = 0x4814, "guest-es-access-rights", "GUEST_ES_AR_BYTES", [Always];
        /// Guest CS access rights
        GUEST_CS_ACCESS_RIGHTS = 0x4816, "guest-cs-access-rights", "GUEST_CS_AR_BYTES", [Always];
        /// Guest SS access rights
        GUEST_SS_ACCESS_RIGHTS = 0x4818, "guest-ss-access-rights", "GUEST_SS_AR_BYTES", [Always];
        /// Guest DS access rights
        GUEST_DS_ACCESS_RIGHTS = 0x481a, "guest-ds-access-rights", "GUEST_DS_AR_BYTES", [Always];
        /// Guest FS access rights
        GUEST_FS_ACCESS_RIGHTS = 0x481c, "guest-fs-access-rights", "GUEST_FS_AR_BYTES", [Always];
        /// Guest GS access rights
        GUEST_GS_ACCESS_RIGHTS = 0x481e, "guest-gs-access-rights", "GUEST_GS_AR_BYTES", [Always];
        /// Guest LDTR access rights
        GUEST_LDTR_ACCESS_RIGHTS = 0x4820, "guest-ldtr-access-rights", "GUEST_LDTR_AR_BYTES",
            [Always];
        /// Guest TR access rights
        GUEST_TR_ACCESS_RIGHTS = 0x4822, "guest-tr-access-rights", "GUEST_TR_AR_BYTES", [Always];
        /// Guest interruptibility state
        GUEST_INTERRUPTIBILITY_STATE = 0x4824, "guest-interruptibility-state", "GUEST_INTERRUPTIBILITY_INFO",
            [Always];
        /// Guest activity state
        GUEST_ACTIVITY_STATE = 0x4826, "guest-activity-state", "GUEST_ACTIVITY_STATE", [Always];
        /// Guest SMBASE
        GUEST_SMBASE = 0x4828, "guest-smbase", "", [Always];
        /// Guest IA32_SYSENTER_CS
        GUEST_IA32_SYSENTER_CS = 0x482a, "guest-ia32-sysenter-cs", "GUEST_SYSENTER_CS", [Always];
        /// VMX-preemption timer value
        VMX_PREEMPTION_TIMER_VALUE = 0x482e, "vmx-preemption-timer-value", "VMX_PREEMPTION_TIMER_VALUE",
            [Pin ACTIVATE_VMX_PREEMPTION_TIMER];
    }
    // "32-Bit Host-State Fields".
    Host W32 {
        /// Host IA32_SYSENTER_CS
        HOST_IA32_SYSENTER_CS = 0x4c00, "host-ia32-sysenter-cs", "HOST_IA32_SYSENTER_CS", [Always];
    }
    // "Natural-Width Control Fields".
    Control Natural {
        /// CR0 guest/host mask
        CR0_GUEST_HOST_MASK = 0x6000, "cr0-guest-host-mask", "CR0_GUEST_HOST_MASK", [Always];
        /// CR4 guest/host mask
        CR4_GUEST_HOST_MASK = 0x6002, "cr4-guest-host-mask", "CR4_GUEST_HOST_MASK", [Always];
        /// CR0 read shadow
        CR0_READ_SHADOW = 0x6004, "cr0-read-shadow", "CR0_READ_SHADOW", [Always];
        /// CR4 read shadow
        CR4_READ_SHADOW = 0x6006, "cr4-read-shadow", "CR4_READ_SHADOW", [Always];
        /// CR3-target value 0
        CR3_TARGET_VALUE_0 = 0x6008, "cr3-target-value-0", "CR3_TARGET_VALUE0", [Cr3Targets 1];
        /// CR3-target value 1
        CR3_TARGET_VALUE_1 = 0x600a, "cr3-target-value-1", "CR3_TARGET_VALUE1", [Cr3Targets 2];
        /// CR3-target value 2
        CR3_TARGET_VALUE_2 = 0x600c, "cr3-target-value-2", "CR3_TARGET_VALUE2", [Cr3Targets 3];
        /// CR3-target value 3
        CR3_TARGET_VALUE_3 = 0x600e, "cr3-target-value-3", "CR3_TARGET_VALUE3", [Cr3Targets 4];
    }
    // "Natural-Width Read-Only Data Fields".
    ReadOnly Natural {
        /// Exit qualification
        EXIT_QUALIFICATION = 0x6400, "exit-qualification", "EXIT_QUALIFICATION", [Always];
        /// I/O RCX
        IO_RCX = 0x6402, "io-rcx", "", [Always];
        /// I/O RSI
        IO_RSI = 0x6404, "io-rsi", "", [Always];
        /// I/O RDI
        IO_RDI = 0x6406, "io-rdi", "", [Always];
        /// I/O RIP
        IO_RIP = 0x6408, "io-rip", "", [Always];
        /// Guest-linear address
        GUEST_LINEAR_ADDRESS = 0x640a, "guest-linear-address", "GUEST_LINEAR_ADDRESS", [Always];
    }
    // "Natural-Width Guest-State Fields".
    Guest Natural {
        /// Guest CR0
        GUEST_CR0 = 0x6800, "guest-cr0", "GUEST_CR0", [Always];
        /// Guest CR3
        GUEST_CR3 = 0x6802, "guest-cr3", "GUEST_CR3", [Always];
        /// Guest CR4
        GUEST_CR4 = 0x6804, "guest-cr4", "GUEST_CR4", [Always];
        /// Guest ES base
        GUEST_ES_BASE = 0x6806, "guest-es-base", "GUEST_ES_BASE", [Always];
        /// Guest CS base
        GUEST_CS_BASE = 0x6808, "guest-cs-base", "GUEST_CS_BASE", [Always];
        /// Guest SS base
        GUEST_SS_BASE = 0x680a, "guest-ss-base", "GUEST_SS_BASE", [Always];
        /// Guest DS base
        GUEST_DS_BASE = 0x680c, "guest-ds-base", "GUEST_DS_BASE", [Always];
        /// Guest FS base
        GUEST_FS_BASE = 0x680e, "guest-fs-base", "GUEST_FS_BASE", [Always];
        /// Guest GS base
        GUEST_GS_BASE = 0x6810, "guest-gs-base", "GUEST_GS_BASE", [Always];
        /// Guest LDTR base
        GUEST_LDTR_BASE = 0x6812, "guest-ldtr-base", "GUEST_LDTR_BASE", [Always];
        /// Guest TR base
        GUEST_TR_BASE = 0x6814, "guest-tr-base", "GUEST_TR_BASE", [Always];
        /// Guest GDTR base
        GUEST_GDTR_BASE = 0x6816, "guest-gdtr-base", "GUEST_GDTR_BASE", [Always];
        /// Guest IDTR base
        GUEST_IDTR_BASE = 0x6818, "guest-idtr-base", "GUEST_IDTR_BASE", [Always];
        /// Guest DR7
        GUEST_DR7 = 0x681a, "guest-dr7", "GUEST_DR7", [Always];
        /// Guest RSP
        GUEST_RSP = 0x681c, "guest-rsp", "GUEST_RSP", [Always];
        /// Guest RIP
        GUEST_RIP = 0x681e, "guest-rip", "GUEST_RIP", [Always];
        /// Guest RFLAGS
        GUEST_RFLAGS = 0x6820, "guest-rflags", "GUEST_RFLAGS", [Always];
        /// Guest pending debug exceptions
        GUEST_PENDING_DEBUG_EXCEPTIONS = 0x6822, "guest-pending-debug-exceptions", "GUEST_PENDING_DBG_EXCEPTIONS",
            [Always];
        /// Guest IA32_SYSENTER_ESP
        GUEST_IA32_SYSENTER_ESP = 0x6824, "guest-ia32-sysenter-esp", "GUEST_SYSENTER_ESP", [Always];
        /// Guest IA32_SYSENTER_EIP
        GUEST_IA32_SYSENTER_EIP = 0x6826, "guest-ia32-sysenter-eip", "GUEST_SYSENTER_EIP", [Always];
        /// Guest IA32_S_CET
        GUEST_IA32_S_CET = 0x6828, "guest-ia32-s-cet", "GUEST_S_CET", [Entry LOAD_CET_STATE];
        /// Guest SSP
        GUEST_SSP = 0x682a, "guest-ssp", "GUEST_SSP", [Entry LOAD_CET_STATE];
        /// Guest IA32_INTERRUPT_SSP_TABLE_ADDR
        GUEST_IA32_INTERRUPT_SSP_TABLE_ADDR = 0x682c, "guest-ia32-interrupt-ssp-table-addr", "GUEST_INTR_SSP_TABLE",
            [Entry LOAD_CET_STATE];
    }
    // "Natural-Width Host-State Fields".
    Host Natural {
        /// Host CR0
        HOST_CR0 = 0x6c00, "host-cr0", "HOST_CR0", [Always];
        /// Host CR3
        HOST_CR3 = 0x6c02, "host-cr3", "HOST_CR3", [Always];
        /// Host CR4
        HOST_CR4 = 0x6c04, "host-cr4", "HOST_CR4", [Always];
        /// Host FS base
        HOST_FS_BASE = 0x6c06, "host-fs-base", "HOST_FS_BASE", [Always];
        /// Host GS base
        HOST_GS_BASE = 0x6c08, "host-gs-base", "HOST_GS_BASE", [Always];
        /// Host TR base
        HOST_TR_BASE = 0x6c0a, "host-tr-base", "HOST_TR_BASE", [Always];
        /// Host GDTR base
        HOST_GDTR_BASE = 0x6c0c, "host-gdtr-base", "HOST_GDTR_BASE", [Always];
        /// Host IDTR base
        HOST_IDTR_BASE = 0x6c0e, "host-idtr-base", "HOST_IDTR_BASE", [Always];
        /// Host IA32_SYSENTER_ESP
        HOST_IA32_SYSENTER_ESP = 0x6c10, "host-ia32-sysenter-esp", "HOST_IA32_SYSENTER_ESP",
            [Always];
        /// Host IA32_SYSENTER_EIP
        HOST_IA32_SYSENTER_EIP = 0x6c12, "host-ia32-sysenter-eip", "HOST_IA32_SYSENTER_EIP",
            [Always];
        /// Host RSP
        HOST_RSP = 0x6c14, "host-rsp", "HOST_RSP", [Always];
        /// Host RIP
        HOST_RIP = 0x6c16, "host-rip", "HOST_RIP", [Always];
        /// Host IA32_S_CET
        HOST_IA32_S_CET = 0x6c18, "host-ia32-s-cet", "HOST_S_CET", [Exit LOAD_CET_STATE];
        /// Host SSP
        HOST_SSP = 0x6c1a, "host-ssp", "HOST_SSP", [Exit LOAD_CET_STATE];
        /// Host IA32_INTERRUPT_SSP_TABLE_ADDR
        HOST_IA32_INTERRUPT_SSP_TABLE_ADDR = 0x6c1c, "host-ia32-interrupt-ssp-table-addr", "HOST_INTR_SSP_TABLE",
            [Exit LOAD_CET_STATE];
    }
}

/// `LOOKUP[width << 8 | kind << 6 | index]` is the row of an encoding, or `NONE`.
static LOOKUP: [u8; 1024] = {
    let mut lookup = [NONE; 1024];
    let mut row = 0;
    while row < TABLE.len() {
        lookup[lookup_index(TABLE[row].encoding as u32)] = row as u8;
        row += 1;
    }
    lookup
};
const NONE: u8 = 0xff;

const fn lookup_index(encoding: u32) -> usize {
    let width = (encoding >> 13) & 3;
    let kind = (encoding >> 10) & 3;
    let index = (encoding >> 1) & 0x3f;
    (width << 8 | kind << 6 | index) as usize
}

impl Field {
    /// How many fields there are.
    pub const COUNT: usize = TABLE.len();

    /// Every field, in the order of the encodings.
    pub const ALL: [Self; Self::COUNT] = {
        let mut all = [Self(0); Self::COUNT];
        let mut row = 0;
        while row < Self::COUNT {
            all[row] = Self(row as u8);
            row += 1;
        }
        all
    };

    /// Returns the field that `encoding` accesses, and which part of it; `None` if there is no
    /// such field in any processor that this model knows.
    ///
    /// # Examples
    /// ```
    /// use vmx_model::field::{Field, Half};
    /// assert_eq!(Field::from_encoding(0x681e), Some((Field::GUEST_RIP, Half::Full)));
    /// assert_eq!(Field::from_encoding(0x2011), Some((Field::TSC_OFFSET, Half::High)));
    /// assert_eq!(Field::from_encoding(0x681f), None);
    /// ```
    #[must_use]
    pub fn from_encoding(encoding: u32) -> Option<(Self, Half)> {
        if encoding & 0xffff_9380 != 0 {
            return None;
        }
        let field = match LOOKUP[lookup_index(encoding)] {
            NONE => return None,
            row => Self(row),
        };
        match encoding & 1 {
            0 => Some((field, Half::Full)),
            _ if field.width() == Width::W64 => Some((field, Half::High)),
            _ => None,
        }
    }

    /// Returns the field with the stable name `id`.
    #[must_use]
    pub fn from_id(id: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|field| field.id() == id)
    }

    /// Returns the dense index, below [`Field::COUNT`].
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// Returns the field with this dense index.
    #[must_use]
    pub const fn from_index(index: usize) -> Option<Self> {
        if index < Self::COUNT {
            Some(Self(index as u8))
        } else {
            None
        }
    }

    const fn row(self) -> &'static Row {
        &TABLE[self.0 as usize]
    }

    /// Returns the encoding for access to the whole field.
    #[must_use]
    pub const fn encoding(self) -> u32 {
        self.row().encoding as u32
    }

    /// Returns the width.
    #[must_use]
    pub const fn width(self) -> Width {
        match self.row().encoding >> 13 {
            0 => Width::W16,
            1 => Width::W64,
            2 => Width::W32,
            _ => Width::Natural,
        }
    }

    /// Returns what the field is for.
    #[must_use]
    pub const fn kind(self) -> Kind {
        match (self.row().encoding >> 10) & 3 {
            0 => Kind::Control,
            1 => Kind::ReadOnly,
            2 => Kind::Guest,
            _ => Kind::Host,
        }
    }

    /// Returns the bits that the field can hold on a processor with Intel 64.
    #[must_use]
    pub const fn value_mask(self) -> u64 {
        match self.width() {
            Width::W16 => 0xffff,
            Width::W32 => 0xffff_ffff,
            Width::W64 | Width::Natural => u64::MAX,
        }
    }

    /// Returns the index in bits 9:1 of the encoding.
    #[must_use]
    pub const fn encoding_index(self) -> u32 {
        (self.encoding() >> 1) & 0x1ff
    }

    /// Returns the stable name, such as `guest-cs-selector`.
    #[must_use]
    pub const fn id(self) -> &'static str {
        self.row().id
    }

    /// Returns the SDM's name, such as `Guest CS selector`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.row().name
    }

    /// Returns the name in Linux, `arch/x86/include/asm/vmx.h`, if it has one.
    #[must_use]
    pub const fn linux_name(self) -> Option<&'static str> {
        let name = self.row().linux;
        if name.is_empty() { None } else { Some(name) }
    }

    /// Returns when the field exists: if any of these conditions holds.
    #[must_use]
    pub const fn exists_if(self) -> &'static [Condition] {
        self.row().exists_if
    }

    /// Whether a processor with these capabilities has the field.
    #[must_use]
    pub fn exists(self, caps: &VmxCapabilities) -> bool {
        self.exists_if()
            .iter()
            .any(|condition| condition.holds(caps))
    }
}

impl core::fmt::Debug for Field {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.id())
    }
}

impl core::fmt::Display for Field {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for Field {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.id())
    }
}

#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for Field {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let id = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        Self::from_id(&id).ok_or_else(|| serde::de::Error::custom("no such VMCS field"))
    }
}

/// A set of fields, such as those that a processor has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FieldSet([u64; Field::COUNT.div_ceil(64)]);

impl FieldSet {
    /// Returns the fields that a processor with these capabilities has.
    #[must_use]
    pub fn existing(caps: &VmxCapabilities) -> Self {
        let mut set = Self::default();
        for field in Field::ALL {
            if field.exists(caps) {
                set.insert(field);
            }
        }
        set
    }

    /// Adds a field.
    pub const fn insert(&mut self, field: Field) {
        self.0[field.index() / 64] |= 1 << (field.index() % 64);
    }

    /// Whether the set holds `field`.
    #[must_use]
    pub const fn contains(&self, field: Field) -> bool {
        self.0[field.index() / 64] & 1 << (field.index() % 64) != 0
    }

    /// Returns the fields in the order of their encodings.
    pub fn iter(&self) -> impl Iterator<Item = Field> + '_ {
        Field::ALL.into_iter().filter(|field| self.contains(*field))
    }
}
