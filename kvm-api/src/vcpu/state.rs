//! What a vCPU is made of beyond its VMCS: the software's own copy of registers, pending events
//! and settings (`struct kvm_vcpu_arch`).
//!
//! As in Linux, the general-purpose registers and RIP live here while the guest does not run;
//! CR0, CR4 and EFER are held as the guest sees them. Segments, RFLAGS and the rest of the guest
//! state are in the VMCS.

use crate::vcpu::completion::{Completion, Emulation};
use crate::vcpu::fpu::GuestFpu;
use crate::vmx::setup::TSC_RATIO_ONE;
use kvm_bindings::kvm_cpuid_entry2;
use std::collections::BTreeMap;

/// Number of RSP in the order of the instruction encoding.
pub(crate) const RSP: usize = 4;
/// Number of RDX.
pub(crate) const RDX: usize = 2;

/// An exception that waits for delivery (`struct kvm_queued_exception`).
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct QueuedException {
    /// It waits, and its side effects have not happened.
    pub(crate) pending: bool,
    /// It is being delivered.
    pub(crate) injected: bool,
    pub(crate) vector: u8,
    /// The error code, if the exception has one.
    pub(crate) error_code: Option<u32>,
    /// What goes to DR6 or CR2 at delivery.
    pub(crate) payload: Option<u64>,
}

/// An interrupt that waits for delivery (`struct kvm_queued_interrupt`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct QueuedInterrupt {
    pub(crate) injected: bool,
    /// It is a software interrupt.
    pub(crate) soft: bool,
    pub(crate) nr: u8,
}

/// Non-maskable interrupts of a vCPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Nmis {
    /// One is being delivered.
    pub(crate) injected: bool,
    /// How many wait.
    pub(crate) pending: u32,
    /// How many were asked for since `pending` was last brought up to date.
    pub(crate) queued: u32,
}

/// The guest's debugging by user space (api.rst, "KVM_SET_GUEST_DEBUG").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct GuestDebug {
    /// `KVM_GUESTDBG_*`; 0 without ENABLE.
    pub(crate) control: u32,
    /// DR7 of user space's breakpoints.
    pub(crate) dr7: u64,
    /// DR0-DR3 in effect: user space's, or the guest's.
    pub(crate) effective_db: [u64; 4],
    /// Linear RIP at which single-stepping was asked for.
    pub(crate) singlestep_rip: u64,
}

/// The software's copy of the control words; a VMWRITE of an unchanged value is skipped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct ControlShadows {
    pub(crate) pin: u64,
    pub(crate) proc: u64,
    pub(crate) secondary: u64,
    pub(crate) exit: u64,
    pub(crate) entry: u64,
}

/// The state of a vCPU that is not in its VMCS.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub(crate) struct VcpuState {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8-R15.
    pub(crate) regs: [u64; 16],
    pub(crate) rip: u64,
    pub(crate) cr0: u64,
    pub(crate) cr2: u64,
    pub(crate) cr3: u64,
    pub(crate) cr4: u64,
    pub(crate) cr8: u64,
    pub(crate) efer: u64,
    pub(crate) apic_base: u64,
    pub(crate) xcr0: u64,
    /// PDPTEs of PAE paging.
    pub(crate) pdptrs: [u64; 4],
    /// They came from user space and are not read from memory again.
    pub(crate) pdptrs_from_userspace: bool,
    pub(crate) db: [u64; 4],
    pub(crate) dr6: u64,
    pub(crate) dr7: u64,
    pub(crate) fpu: GuestFpu,
    /// MSRs whose home is here, by index; those absent have their reset value.
    pub(crate) msrs: BTreeMap<u32, u64>,
    #[serde(with = "cpuid_table")]
    pub(crate) cpuid: Vec<kvm_cpuid_entry2>,
    /// KVM_SET_CPUID2 has been used: CR4 is then compared with it as well.
    pub(crate) has_cpuid: bool,
    pub(crate) exception: QueuedException,
    pub(crate) interrupt: QueuedInterrupt,
    pub(crate) nmi: Nmis,
    pub(crate) triple_fault: bool,
    pub(crate) mp_state: u32,
    pub(crate) debug: GuestDebug,
    pub(crate) controls: ControlShadows,
    pub(crate) tsc_khz: u32,
    /// What the host's TSC is multiplied by, with 48 fractional bits.
    pub(crate) tsc_ratio: u64,
    pub(crate) tsc_offset: u64,
    /// What KVM_RUN has to finish first.
    pub(crate) completion: Completion,
    pub(crate) emulation: Emulation,
    /// Length of the instruction behind a software exception or interrupt.
    pub(crate) event_instruction_length: u64,
    /// The signal mask of KVM_RUN, if one was set.
    pub(crate) signal_mask: Option<u64>,
    /// KVM_RUN has been used: CPUID and feature MSRs are frozen.
    pub(crate) has_run: bool,
    /// CPUID features of paravirtualization are enforced.
    pub(crate) enforces_pv_cpuid: bool,
}

impl VcpuState {
    /// Returns the state before the vCPU's reset fills it.
    pub(crate) fn new(tsc_khz: u32) -> Self {
        Self {
            regs: [0; 16],
            rip: 0,
            cr0: 0,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            cr8: 0,
            efer: 0,
            apic_base: 0,
            xcr0: 1,
            pdptrs: [0; 4],
            pdptrs_from_userspace: false,
            db: [0; 4],
            dr6: 0xffff_0ff0,
            dr7: 0x400,
            fpu: GuestFpu::default(),
            msrs: BTreeMap::new(),
            cpuid: Vec::new(),
            has_cpuid: false,
            exception: QueuedException::default(),
            interrupt: QueuedInterrupt::default(),
            nmi: Nmis::default(),
            triple_fault: false,
            mp_state: 0,
            debug: GuestDebug::default(),
            controls: ControlShadows::default(),
            tsc_khz,
            tsc_ratio: TSC_RATIO_ONE,
            tsc_offset: 0,
            completion: Completion::None,
            emulation: Emulation::default(),
            event_instruction_length: 0,
            signal_mask: None,
            has_run: false,
            enforces_pv_cpuid: false,
        }
    }
}

/// CPUID entries as rows of ten words.
mod cpuid_table {
    use kvm_bindings::kvm_cpuid_entry2;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    type Row = (u32, u32, u32, [u32; 4], [u32; 3]);

    pub(super) fn serialize<S: Serializer>(
        table: &[kvm_cpuid_entry2],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let row = |e: &kvm_cpuid_entry2| -> Row {
            (
                e.function,
                e.index,
                e.flags,
                [e.eax, e.ebx, e.ecx, e.edx],
                e.padding,
            )
        };
        table
            .iter()
            .map(row)
            .collect::<Vec<_>>()
            .serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<kvm_cpuid_entry2>, D::Error> {
        let entry =
            |(function, index, flags, [eax, ebx, ecx, edx], padding): Row| kvm_cpuid_entry2 {
                function,
                index,
                flags,
                eax,
                ebx,
                ecx,
                edx,
                padding,
            };
        Ok(Vec::<Row>::deserialize(deserializer)?
            .into_iter()
            .map(entry)
            .collect())
    }
}
