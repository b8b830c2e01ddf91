//! The control words of a VMCS, bit by bit.
//!
//! SDM Vol. 3C, chapter "Virtual Machine Control Structures", sections "VM-Execution Control
//! Fields", "VM-Exit Control Fields" and "VM-Entry Control Fields". Which settings a processor
//! allows is in [`crate::capability`]; which word counts as zero because it is not activated is
//! in [`crate::vmcs`].

use bitflags::bitflags;

/// Names one control word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ControlWord {
    /// Pin-based VM-execution controls.
    Pin,
    /// Primary processor-based VM-execution controls.
    Proc,
    /// Secondary processor-based VM-execution controls.
    Secondary,
    /// Tertiary processor-based VM-execution controls.
    Tertiary,
    /// Primary VM-exit controls.
    Exit,
    /// VM-entry controls.
    Entry,
    /// Secondary VM-exit controls.
    SecondaryExit,
    /// VM-function controls.
    VmFunction,
}

/// How far this model goes with a control.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Modelled.
    In,
    /// Named, but never allowed to be 1 by a profile of this crate.
    Stub,
    /// Belongs to a feature that is left out (SMM dual monitor).
    Out,
}

/// One row of the table of controls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Control {
    /// The stable name, such as `proc2.enable-ept`.
    pub id: &'static str,
    /// The SDM's name.
    pub name: &'static str,
    /// The word that the control is in.
    pub word: ControlWord,
    /// The bit within the word.
    pub bit: u8,
    /// How far this model goes with it.
    pub scope: Scope,
}

/// Declares one `bitflags` type per word, and [`CONTROLS`] with a row per bit.
macro_rules! controls {
    ($(
        $(#[$word_doc:meta])*
        $word:ident $ty:ident: $int:ty {
            $( #[doc = $name:literal] $control:ident = $bit:literal, $id:literal, $scope:ident; )*
        }
    )*) => {
        $(
            bitflags! {
                $(#[$word_doc])*
                #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
                #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
                pub struct $ty: $int {
                    $(
                        #[doc = $name]
                        const $control = 1 << $bit;
                    )*
                    const _ = !0;
                }
            }
        )*

        /// Every control, word by word.
        pub static CONTROLS: &[Control] = &[$($(
            Control {
                id: $id,
                name: $name.trim_ascii(),
                word: ControlWord::$word,
                bit: $bit,
                scope: Scope::$scope,
            },
        )*)*];
    };
}

controls! {
    /// Pin-based VM-execution controls (SDM Vol. 3C, "Pin-Based VM-Execution Controls").
    Pin PinControls: u32 {
        /// External-interrupt exiting
        EXTERNAL_INTERRUPT_EXITING = 0, "pin.external-interrupt-exiting", In;
        /// NMI exiting
        NMI_EXITING = 3, "pin.nmi-exiting", In;
        /// Virtual NMIs
        VIRTUAL_NMIS = 5, "pin.virtual-nmis", In;
        /// Activate VMX-preemption timer
        ACTIVATE_VMX_PREEMPTION_TIMER = 6, "pin.activate-vmx-preemption-timer", In;
        /// Process posted interrupts
        PROCESS_POSTED_INTERRUPTS = 7, "pin.process-posted-interrupts", In;
    }

    /// Primary processor-based VM-execution controls (SDM Vol. 3C, "Processor-Based VM-Execution Controls").
    Proc ProcControls: u32 {
        /// Interrupt-window exiting
        INTERRUPT_WINDOW_EXITING = 2, "proc.interrupt-window-exiting", In;
        /// Use TSC offsetting
        USE_TSC_OFFSETTING = 3, "proc.use-tsc-offsetting", In;
        /// HLT exiting
        HLT_EXITING = 7, "proc.hlt-exiting", In;
        /// INVLPG exiting
        INVLPG_EXITING = 9, "proc.invlpg-exiting", In;
        /// MWAIT exiting
        MWAIT_EXITING = 10, "proc.mwait-exiting", In;
        /// RDPMC exiting
        RDPMC_EXITING = 11, "proc.rdpmc-exiting", In;
        /// RDTSC exiting
        RDTSC_EXITING = 12, "proc.rdtsc-exiting", In;
        /// CR3-load exiting
        CR3_LOAD_EXITING = 15, "proc.cr3-load-exiting", In;
        /// CR3-store exiting
        CR3_STORE_EXITING = 16, "proc.cr3-store-exiting", In;
        /// Activate tertiary controls
        ACTIVATE_TERTIARY_CONTROLS = 17, "proc.activate-tertiary-controls", Stub;
        /// CR8-load exiting
        CR8_LOAD_EXITING = 19, "proc.cr8-load-exiting", In;
        /// CR8-store exiting
        CR8_STORE_EXITING = 20, "proc.cr8-store-exiting", In;
        /// Use TPR shadow
        USE_TPR_SHADOW = 21, "proc.use-tpr-shadow", In;
        /// NMI-window exiting
        NMI_WINDOW_EXITING = 22, "proc.nmi-window-exiting", In;
        /// MOV-DR exiting
        MOV_DR_EXITING = 23, "proc.mov-dr-exiting", In;
        /// Unconditional I/O exiting
        UNCONDITIONAL_IO_EXITING = 24, "proc.unconditional-io-exiting", In;
        /// Use I/O bitmaps
        USE_IO_BITMAPS = 25, "proc.use-io-bitmaps", In;
        /// Monitor trap flag
        MONITOR_TRAP_FLAG = 27, "proc.monitor-trap-flag", In;
        /// Use MSR bitmaps
        USE_MSR_BITMAPS = 28, "proc.use-msr-bitmaps", In;
        /// MONITOR exiting
        MONITOR_EXITING = 29, "proc.monitor-exiting", In;
        /// PAUSE exiting
        PAUSE_EXITING = 30, "proc.pause-exiting", In;
        /// Activate secondary controls
        ACTIVATE_SECONDARY_CONTROLS = 31, "proc.activate-secondary-controls", In;
    }

    /// Secondary processor-based VM-execution controls.
    Secondary SecondaryControls: u32 {
        /// Virtualize APIC accesses
        VIRTUALIZE_APIC_ACCESSES = 0, "proc2.virtualize-apic-accesses", In;
        /// Enable EPT
        ENABLE_EPT = 1, "proc2.enable-ept", In;
        /// Descriptor-table exiting
        DESCRIPTOR_TABLE_EXITING = 2, "proc2.descriptor-table-exiting", In;
        /// Enable RDTSCP
        ENABLE_RDTSCP = 3, "proc2.enable-rdtscp", In;
        /// Virtualize x2APIC mode
        VIRTUALIZE_X2APIC_MODE = 4, "proc2.virtualize-x2apic-mode", In;
        /// Enable VPID
        ENABLE_VPID = 5, "proc2.enable-vpid", In;
        /// WBINVD exiting
        WBINVD_EXITING = 6, "proc2.wbinvd-exiting", In;
        /// Unrestricted guest
        UNRESTRICTED_GUEST = 7, "proc2.unrestricted-guest", In;
        /// APIC-register virtualization
        APIC_REGISTER_VIRTUALIZATION = 8, "proc2.apic-register-virtualization", In;
        /// Virtual-interrupt delivery
        VIRTUAL_INTERRUPT_DELIVERY = 9, "proc2.virtual-interrupt-delivery", In;
        /// PAUSE-loop exiting
        PAUSE_LOOP_EXITING = 10, "proc2.pause-loop-exiting", In;
        /// RDRAND exiting
        RDRAND_EXITING = 11, "proc2.rdrand-exiting", In;
        /// Enable INVPCID
        ENABLE_INVPCID = 12, "proc2.enable-invpcid", In;
        /// Enable VM functions
        ENABLE_VM_FUNCTIONS = 13, "proc2.enable-vm-functions", In;
        /// VMCS shadowing
        VMCS_SHADOWING = 14, "proc2.vmcs-shadowing", In;
        /// Enable ENCLS exiting
        ENABLE_ENCLS_EXITING = 15, "proc2.enable-encls-exiting", Stub;
        /// RDSEED exiting
        RDSEED_EXITING = 16, "proc2.rdseed-exiting", In;
        /// Enable PML
        ENABLE_PML = 17, "proc2.enable-pml", In;
        /// EPT-violation #VE
        EPT_VIOLATION_VE = 18, "proc2.ept-violation-ve", In;
        /// Conceal VMX from PT
        CONCEAL_VMX_FROM_PT = 19, "proc2.conceal-vmx-from-pt", Stub;
        /// Enable XSAVES/XRSTORS
        ENABLE_XSAVES_XRSTORS = 20, "proc2.enable-xsaves-xrstors", In;
        /// PASID translation
        PASID_TRANSLATION = 21, "proc2.pasid-translation", Stub;
        /// Mode-based execute control for EPT
        MODE_BASED_EXECUTE_CONTROL = 22, "proc2.mode-based-execute-control", In;
        /// Sub-page write permissions for EPT
        SUB_PAGE_WRITE_PERMISSIONS = 23, "proc2.sub-page-write-permissions", Stub;
        /// Intel PT uses guest physical addresses
        PT_USES_GUEST_PHYSICAL_ADDRESSES = 24, "proc2.pt-uses-guest-physical-addresses", Stub;
        /// Use TSC scaling
        USE_TSC_SCALING = 25, "proc2.use-tsc-scaling", In;
        /// Enable user wait and pause
        ENABLE_USER_WAIT_AND_PAUSE = 26, "proc2.enable-user-wait-and-pause", In;
        /// Enable PCONFIG
        ENABLE_PCONFIG = 27, "proc2.enable-pconfig", Stub;
        /// Enable ENCLV exiting
        ENABLE_ENCLV_EXITING = 28, "proc2.enable-enclv-exiting", Stub;
        /// VMM bus-lock detection
        VMM_BUS_LOCK_DETECTION = 30, "proc2.vmm-bus-lock-detection", Stub;
        /// Instruction timeout
        INSTRUCTION_TIMEOUT = 31, "proc2.instruction-timeout", Stub;
    }

    /// Tertiary processor-based VM-execution controls.
    Tertiary TertiaryControls: u64 {
        /// LOADIWKEY exiting
        LOADIWKEY_EXITING = 0, "proc3.loadiwkey-exiting", Stub;
        /// Enable HLAT
        ENABLE_HLAT = 1, "proc3.enable-hlat", Stub;
        /// EPT paging-write control
        EPT_PAGING_WRITE_CONTROL = 2, "proc3.ept-paging-write-control", Stub;
        /// Guest-paging verification
        GUEST_PAGING_VERIFICATION = 3, "proc3.guest-paging-verification", Stub;
        /// IPI virtualization
        IPI_VIRTUALIZATION = 4, "proc3.ipi-virtualization", Stub;
        /// Enable MSR-list instructions
        ENABLE_MSR_LIST_INSTRUCTIONS = 6, "proc3.enable-msr-list-instructions", Stub;
        /// Virtualize IA32_SPEC_CTRL
        VIRTUALIZE_IA32_SPEC_CTRL = 7, "proc3.virtualize-ia32-spec-ctrl", Stub;
        /// APIC-timer virtualization
        APIC_TIMER_VIRTUALIZATION = 8, "proc3.apic-timer-virtualization", Stub;
    }

    /// Primary VM-exit controls (SDM Vol. 3C, "VM-Exit Controls").
    Exit ExitControls: u32 {
        /// Save debug controls
        SAVE_DEBUG_CONTROLS = 2, "exit.save-debug-controls", In;
        /// Host address-space size
        HOST_ADDRESS_SPACE_SIZE = 9, "exit.host-address-space-size", In;
        /// Load IA32_PERF_GLOBAL_CTRL
        LOAD_IA32_PERF_GLOBAL_CTRL = 12, "exit.load-ia32-perf-global-ctrl", In;
        /// Acknowledge interrupt on exit
        ACKNOWLEDGE_INTERRUPT_ON_EXIT = 15, "exit.acknowledge-interrupt-on-exit", In;
        /// Save IA32_PAT
        SAVE_IA32_PAT = 18, "exit.save-ia32-pat", In;
        /// Load IA32_PAT
        LOAD_IA32_PAT = 19, "exit.load-ia32-pat", In;
        /// Save IA32_EFER
        SAVE_IA32_EFER = 20, "exit.save-ia32-efer", In;
        /// Load IA32_EFER
        LOAD_IA32_EFER = 21, "exit.load-ia32-efer", In;
        /// Save VMX-preemption timer value
        SAVE_VMX_PREEMPTION_TIMER_VALUE = 22, "exit.save-vmx-preemption-timer-value", In;
        /// Clear IA32_BNDCFGS
        CLEAR_IA32_BNDCFGS = 23, "exit.clear-ia32-bndcfgs", Stub;
        /// Conceal VMX from PT
        CONCEAL_VMX_FROM_PT = 24, "exit.conceal-vmx-from-pt", Stub;
        /// Clear IA32_RTIT_CTL
        CLEAR_IA32_RTIT_CTL = 25, "exit.clear-ia32-rtit-ctl", Stub;
        /// Clear IA32_LBR_CTL
        CLEAR_IA32_LBR_CTL = 26, "exit.clear-ia32-lbr-ctl", Stub;
        /// Clear UINV
        CLEAR_UINV = 27, "exit.clear-uinv", Stub;
        /// Load CET state
        LOAD_CET_STATE = 28, "exit.load-cet-state", In;
        /// Load PKRS
        LOAD_PKRS = 29, "exit.load-pkrs", In;
        /// Save IA32_PERF_GLOBAL_CTRL
        SAVE_IA32_PERF_GLOBAL_CTRL = 30, "exit.save-ia32-perf-global-ctrl", In;
        /// Activate secondary controls
        ACTIVATE_SECONDARY_CONTROLS = 31, "exit.activate-secondary-controls", In;
    }

    /// VM-entry controls (SDM Vol. 3C, "VM-Entry Controls").
    Entry EntryControls: u32 {
        /// Load debug controls
        LOAD_DEBUG_CONTROLS = 2, "entry.load-debug-controls", In;
        /// IA-32e mode guest
        IA32E_MODE_GUEST = 9, "entry.ia32e-mode-guest", In;
        /// Entry to SMM
        ENTRY_TO_SMM = 10, "entry.entry-to-smm", Out;
        /// Deactivate dual-monitor treatment
        DEACTIVATE_DUAL_MONITOR_TREATMENT = 11, "entry.deactivate-dual-monitor-treatment", Out;
        /// Load IA32_PERF_GLOBAL_CTRL
        LOAD_IA32_PERF_GLOBAL_CTRL = 13, "entry.load-ia32-perf-global-ctrl", In;
        /// Load IA32_PAT
        LOAD_IA32_PAT = 14, "entry.load-ia32-pat", In;
        /// Load IA32_EFER
        LOAD_IA32_EFER = 15, "entry.load-ia32-efer", In;
        /// Load IA32_BNDCFGS
        LOAD_IA32_BNDCFGS = 16, "entry.load-ia32-bndcfgs", Stub;
        /// Conceal VMX from PT
        CONCEAL_VMX_FROM_PT = 17, "entry.conceal-vmx-from-pt", Stub;
        /// Load IA32_RTIT_CTL
        LOAD_IA32_RTIT_CTL = 18, "entry.load-ia32-rtit-ctl", Stub;
        /// Load UINV
        LOAD_UINV = 19, "entry.load-uinv", Stub;
        /// Load CET state
        LOAD_CET_STATE = 20, "entry.load-cet-state", In;
        /// Load guest IA32_LBR_CTL
        LOAD_GUEST_IA32_LBR_CTL = 21, "entry.load-guest-ia32-lbr-ctl", Stub;
        /// Load PKRS
        LOAD_PKRS = 22, "entry.load-pkrs", In;
        /// Load IA32_FRED
        LOAD_IA32_FRED = 23, "entry.load-ia32-fred", Stub;
        /// Load guest IA32_SPEC_CTRL
        LOAD_GUEST_IA32_SPEC_CTRL = 24, "entry.load-guest-ia32-spec-ctrl", Stub;
    }

    /// Secondary VM-exit controls.
    SecondaryExit SecondaryExitControls: u64 {
        /// Save IA32_FRED
        SAVE_IA32_FRED = 0, "exit2.save-ia32-fred", Stub;
        /// Load IA32_FRED
        LOAD_IA32_FRED = 1, "exit2.load-ia32-fred", Stub;
        /// Load host IA32_SPEC_CTRL
        LOAD_HOST_IA32_SPEC_CTRL = 2, "exit2.load-host-ia32-spec-ctrl", Stub;
        /// Prematurely busy shadow stack
        PREMATURELY_BUSY_SHADOW_STACK = 3, "exit2.prematurely-busy-shadow-stack", Stub;
    }

    /// VM-function controls (SDM Vol. 3C, "VM-Function Controls").
    VmFunction VmFunctionControls: u64 {
        /// EPTP switching
        EPTP_SWITCHING = 0, "vmfunc.eptp-switching", In;
    }
}

/// Controls that have to be 1 on the first processors with VMX, and still count as 1 where the
/// "default1 class" is meant (SDM Vol. 3D, "Reserved Controls and Default Settings").
pub mod default1 {
    /// Pin-based VM-execution controls.
    pub const PIN: u32 = 0x16;
    /// Primary processor-based VM-execution controls.
    pub const PROC: u32 = 0x0401_e172;
    /// Primary VM-exit controls.
    pub const EXIT: u32 = 0x0003_6dff;
    /// VM-entry controls.
    pub const ENTRY: u32 = 0x0000_11ff;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct Row {
        id: String,
        word: String,
        bit: u8,
        scope: String,
    }

    #[derive(serde::Deserialize)]
    struct Table {
        control: Vec<Row>,
    }

    fn word_name(word: ControlWord) -> &'static str {
        match word {
            ControlWord::Pin => "pin",
            ControlWord::Proc => "proc",
            ControlWord::Secondary => "proc2",
            ControlWord::Tertiary => "proc3",
            ControlWord::Exit => "exit",
            ControlWord::Entry => "entry",
            ControlWord::SecondaryExit => "exit2",
            ControlWord::VmFunction => "vmfunc",
        }
    }

    #[test]
    fn the_table_is_the_specifications() {
        let spec: Table = toml::from_str(include_str!("../tests/data/controls.toml")).unwrap();
        assert_eq!(spec.control.len(), CONTROLS.len());
        for (row, control) in spec.control.iter().zip(CONTROLS) {
            assert_eq!(row.id, control.id);
            assert_eq!(row.word, word_name(control.word), "{}", row.id);
            assert_eq!(row.bit, control.bit, "{}", row.id);
            assert_eq!(
                row.scope,
                format!("{:?}", control.scope).to_lowercase(),
                "{}",
                row.id
            );
        }
    }
}
