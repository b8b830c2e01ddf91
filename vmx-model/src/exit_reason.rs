//! The basic exit reasons.
//!
//! SDM Vol. 3C, appendix "VMX Basic Exit Reasons" and chapter "VM Exits". The set is open: an
//! [`ExitReason`] can hold any number.

use crate::controls::Scope;

/// A basic exit reason: bits 15:0 of the exit-reason field.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ExitReason(pub u16);

/// How a VM exit relates to the instruction stream; decides what RIP and RFLAGS.RF are saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ExitKind {
    /// Like a fault, by an instruction: RIP is saved as that of the instruction.
    Instruction,
    /// Like a fault, in the middle of an instruction or of the delivery of an event.
    Fault,
    /// Like a trap: RIP is saved as that of the next instruction.
    Trap,
    /// At a boundary between instructions, or in place of the delivery of an event.
    Event,
    /// A VM entry that failed: bit 31 of the exit-reason field is set, guest state is not saved.
    EntryFailure,
}

/// Bit 31 of the exit-reason field: the VM entry failed.
pub const ENTRY_FAILURE: u32 = 1 << 31;

struct Row {
    reason: ExitReason,
    id: &'static str,
    name: &'static str,
    linux: &'static str,
    kind: ExitKind,
    scope: Scope,
}

/// Declares the reasons: `NAME = number, "id", "name in Linux", kind, scope;`.
macro_rules! exit_reasons {
    ($(
        #[doc = $name:literal]
        $reason:ident = $number:literal, $id:literal, $linux:literal, $kind:ident, $scope:ident;
    )*) => {
        impl ExitReason {
            $(
                #[doc = $name]
                pub const $reason: Self = Self($number);
            )*
        }

        static TABLE: &[Row] = &[$(
            Row {
                reason: ExitReason::$reason,
                id: $id,
                name: $name.trim_ascii(),
                linux: $linux,
                kind: ExitKind::$kind,
                scope: Scope::$scope,
            },
        )*];
    };
}

exit_reasons! {
    /// Exception or non-maskable interrupt.
    EXCEPTION_OR_NMI = 0, "exception-or-nmi", "EXCEPTION_NMI", Event, In;
    /// External interrupt.
    EXTERNAL_INTERRUPT = 1, "external-interrupt", "EXTERNAL_INTERRUPT", Event, In;
    /// Triple fault.
    TRIPLE_FAULT = 2, "triple-fault", "TRIPLE_FAULT", Event, In;
    /// INIT signal.
    INIT_SIGNAL = 3, "init-signal", "INIT_SIGNAL", Event, In;
    /// Start-up IPI.
    SIPI = 4, "sipi", "SIPI_SIGNAL", Event, In;
    /// I/O system-management interrupt.
    IO_SMI = 5, "io-smi", "", Event, Out;
    /// Other SMI.
    OTHER_SMI = 6, "other-smi", "", Event, Out;
    /// Interrupt window.
    INTERRUPT_WINDOW = 7, "interrupt-window", "INTERRUPT_WINDOW", Event, In;
    /// NMI window.
    NMI_WINDOW = 8, "nmi-window", "NMI_WINDOW", Event, In;
    /// Task switch.
    TASK_SWITCH = 9, "task-switch", "TASK_SWITCH", Fault, In;
    /// CPUID.
    CPUID = 10, "cpuid", "CPUID", Instruction, In;
    /// GETSEC.
    GETSEC = 11, "getsec", "", Instruction, Out;
    /// HLT.
    HLT = 12, "hlt", "HLT", Instruction, In;
    /// INVD.
    INVD = 13, "invd", "INVD", Instruction, In;
    /// INVLPG.
    INVLPG = 14, "invlpg", "INVLPG", Instruction, In;
    /// RDPMC.
    RDPMC = 15, "rdpmc", "RDPMC", Instruction, In;
    /// RDTSC.
    RDTSC = 16, "rdtsc", "RDTSC", Instruction, In;
    /// RSM.
    RSM = 17, "rsm", "", Instruction, Out;
    /// VMCALL.
    VMCALL = 18, "vmcall", "VMCALL", Instruction, In;
    /// VMCLEAR.
    VMCLEAR = 19, "vmclear", "VMCLEAR", Instruction, In;
    /// VMLAUNCH.
    VMLAUNCH = 20, "vmlaunch", "VMLAUNCH", Instruction, In;
    /// VMPTRLD.
    VMPTRLD = 21, "vmptrld", "VMPTRLD", Instruction, In;
    /// VMPTRST.
    VMPTRST = 22, "vmptrst", "VMPTRST", Instruction, In;
    /// VMREAD.
    VMREAD = 23, "vmread", "VMREAD", Instruction, In;
    /// VMRESUME.
    VMRESUME = 24, "vmresume", "VMRESUME", Instruction, In;
    /// VMWRITE.
    VMWRITE = 25, "vmwrite", "VMWRITE", Instruction, In;
    /// VMXOFF.
    VMXOFF = 26, "vmxoff", "VMOFF", Instruction, In;
    /// VMXON.
    VMXON = 27, "vmxon", "VMON", Instruction, In;
    /// Control-register access.
    CR_ACCESS = 28, "cr-access", "CR_ACCESS", Instruction, In;
    /// MOV DR.
    DR_ACCESS = 29, "dr-access", "DR_ACCESS", Instruction, In;
    /// I/O instruction.
    IO_INSTRUCTION = 30, "io-instruction", "IO_INSTRUCTION", Instruction, In;
    /// RDMSR.
    RDMSR = 31, "rdmsr", "MSR_READ", Instruction, In;
    /// WRMSR.
    WRMSR = 32, "wrmsr", "MSR_WRITE", Instruction, In;
    /// VM-entry failure due to invalid guest state.
    ENTRY_FAIL_GUEST_STATE = 33, "entry-fail-guest-state", "INVALID_STATE", EntryFailure, In;
    /// VM-entry failure due to MSR loading.
    ENTRY_FAIL_MSR_LOADING = 34, "entry-fail-msr-loading", "MSR_LOAD_FAIL", EntryFailure, In;
    /// MWAIT.
    MWAIT = 36, "mwait", "MWAIT_INSTRUCTION", Instruction, In;
    /// Monitor trap flag.
    MONITOR_TRAP_FLAG = 37, "monitor-trap-flag", "MONITOR_TRAP_FLAG", Event, In;
    /// MONITOR.
    MONITOR = 39, "monitor", "MONITOR_INSTRUCTION", Instruction, In;
    /// PAUSE.
    PAUSE = 40, "pause", "PAUSE_INSTRUCTION", Instruction, In;
    /// VM-entry failure due to machine-check event.
    ENTRY_FAIL_MCE = 41, "entry-fail-mce", "MCE_DURING_VMENTRY", EntryFailure, Out;
    /// TPR below threshold.
    TPR_BELOW_THRESHOLD = 43, "tpr-below-threshold", "TPR_BELOW_THRESHOLD", Trap, In;
    /// APIC access.
    APIC_ACCESS = 44, "apic-access", "APIC_ACCESS", Fault, In;
    /// Virtualized EOI.
    VIRTUALIZED_EOI = 45, "virtualized-eoi", "EOI_INDUCED", Trap, In;
    /// Access to GDTR or IDTR.
    GDTR_IDTR_ACCESS = 46, "gdtr-idtr-access", "GDTR_IDTR", Instruction, In;
    /// Access to LDTR or TR.
    LDTR_TR_ACCESS = 47, "ldtr-tr-access", "LDTR_TR", Instruction, In;
    /// EPT violation.
    EPT_VIOLATION = 48, "ept-violation", "EPT_VIOLATION", Fault, In;
    /// EPT misconfiguration.
    EPT_MISCONFIGURATION = 49, "ept-misconfiguration", "EPT_MISCONFIG", Fault, In;
    /// INVEPT.
    INVEPT = 50, "invept", "INVEPT", Instruction, In;
    /// RDTSCP.
    RDTSCP = 51, "rdtscp", "RDTSCP", Instruction, In;
    /// VMX-preemption timer expired.
    PREEMPTION_TIMER = 52, "preemption-timer", "PREEMPTION_TIMER", Event, In;
    /// INVVPID.
    INVVPID = 53, "invvpid", "INVVPID", Instruction, In;
    /// WBINVD or WBNOINVD.
    WBINVD = 54, "wbinvd", "WBINVD", Instruction, In;
    /// XSETBV.
    XSETBV = 55, "xsetbv", "XSETBV", Instruction, In;
    /// APIC write.
    APIC_WRITE = 56, "apic-write", "APIC_WRITE", Trap, In;
    /// RDRAND.
    RDRAND = 57, "rdrand", "RDRAND", Instruction, In;
    /// INVPCID.
    INVPCID = 58, "invpcid", "INVPCID", Instruction, In;
    /// VMFUNC.
    VMFUNC = 59, "vmfunc", "VMFUNC", Instruction, In;
    /// ENCLS.
    ENCLS = 60, "encls", "ENCLS", Instruction, Stub;
    /// RDSEED.
    RDSEED = 61, "rdseed", "RDSEED", Instruction, In;
    /// Page-modification log full.
    PML_FULL = 62, "pml-full", "PML_FULL", Fault, In;
    /// XSAVES.
    XSAVES = 63, "xsaves", "XSAVES", Instruction, In;
    /// XRSTORS.
    XRSTORS = 64, "xrstors", "XRSTORS", Instruction, In;
    /// PCONFIG.
    PCONFIG = 65, "pconfig", "", Instruction, Stub;
    /// SPP-related event.
    SPP_EVENT = 66, "spp-event", "", Fault, Stub;
    /// UMWAIT.
    UMWAIT = 67, "umwait", "UMWAIT", Instruction, In;
    /// TPAUSE.
    TPAUSE = 68, "tpause", "TPAUSE", Instruction, In;
    /// LOADIWKEY.
    LOADIWKEY = 69, "loadiwkey", "", Instruction, Stub;
    /// ENCLV.
    ENCLV = 70, "enclv", "", Instruction, Stub;
    /// ENQCMD PASID translation failure.
    ENQCMD_PASID_FAILURE = 72, "enqcmd-pasid-failure", "", Fault, Stub;
    /// ENQCMDS PASID translation failure.
    ENQCMDS_PASID_FAILURE = 73, "enqcmds-pasid-failure", "", Fault, Stub;
    /// Bus lock.
    BUS_LOCK = 74, "bus-lock", "BUS_LOCK", Trap, Stub;
    /// Instruction timeout.
    INSTRUCTION_TIMEOUT = 75, "instruction-timeout", "NOTIFY", Event, Stub;
    /// SEAMCALL.
    SEAMCALL = 76, "seamcall", "", Instruction, Out;
    /// TDCALL.
    TDCALL = 77, "tdcall", "", Instruction, Out;
    /// RDMSRLIST.
    RDMSRLIST = 78, "rdmsrlist", "", Instruction, Stub;
    /// WRMSRLIST.
    WRMSRLIST = 79, "wrmsrlist", "", Instruction, Stub;
    /// URDMSR.
    URDMSR = 80, "urdmsr", "", Instruction, Stub;
    /// UWRMSR.
    UWRMSR = 81, "uwrmsr", "", Instruction, Stub;
    /// RDMSR (immediate).
    RDMSR_IMM = 84, "rdmsr-imm", "", Instruction, Stub;
    /// WRMSRNS (immediate).
    WRMSRNS_IMM = 85, "wrmsrns-imm", "", Instruction, Stub;
}

impl ExitReason {
    /// Returns every reason that the SDM names, by number.
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|row| row.reason)
    }

    fn row(self) -> Option<&'static Row> {
        // The first reasons have no gap between their numbers.
        let at_its_number = TABLE.get(usize::from(self.0));
        if let Some(row) = at_its_number.filter(|row| row.reason == self) {
            return Some(row);
        }
        let index = TABLE.binary_search_by_key(&self, |row| row.reason).ok()?;
        TABLE.get(index)
    }

    /// Returns the stable name, such as `cr-access`.
    #[must_use]
    pub fn id(self) -> Option<&'static str> {
        self.row().map(|row| row.id)
    }

    /// Returns the SDM's name.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        self.row().map(|row| row.name.trim_end_matches('.'))
    }

    /// Returns the name that Linux prints in its tracepoints, if it has one.
    #[must_use]
    pub fn linux_name(self) -> Option<&'static str> {
        self.row()
            .map(|row| row.linux)
            .filter(|name| !name.is_empty())
    }

    /// Returns how such an exit relates to the instruction stream.
    #[must_use]
    pub fn kind(self) -> Option<ExitKind> {
        self.row().map(|row| row.kind)
    }

    /// Returns how far this model goes with the reason.
    #[must_use]
    pub fn scope(self) -> Option<Scope> {
        self.row().map(|row| row.scope)
    }
}

impl core::fmt::Debug for ExitReason {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self.id() {
            Some(id) => write!(f, "{} ({id})", self.0),
            None => write!(f, "{}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct Row {
        number: u16,
        id: String,
        name: String,
        kind: String,
        linux: String,
        scope: String,
    }

    #[derive(serde::Deserialize)]
    struct Table {
        reason: Vec<Row>,
    }

    #[test]
    fn the_table_is_the_specifications() {
        let spec: Table = toml::from_str(include_str!("../tests/data/exit-reasons.toml")).unwrap();
        assert_eq!(spec.reason.len(), 80);
        assert_eq!(ExitReason::all().count(), 80);
        for row in spec.reason {
            let reason = ExitReason(row.number);
            assert_eq!(reason.id(), Some(&*row.id));
            assert_eq!(reason.name(), Some(&*row.name), "{}", row.id);
            assert_eq!(reason.linux_name().unwrap_or(""), row.linux, "{}", row.id);
            let kind = format!("{:?}", reason.kind().unwrap()).to_lowercase();
            assert_eq!(kind, row.kind.replace('-', ""), "{}", row.id);
            let scope = format!("{:?}", reason.scope().unwrap()).to_lowercase();
            assert_eq!(scope, row.scope, "{}", row.id);
        }
    }

    #[test]
    fn a_number_without_a_name_can_be_held() {
        for number in [35, 38, 42, 71, 82, 83, 0xffff] {
            assert_eq!(ExitReason(number).id(), None);
        }
    }
}
