//! KVM_ENABLE_CAP on a VM: one row for each capability that can be enabled (api.rst,
//! "Capabilities that can be enabled on VMs").

use crate::errno::{Errno, Result};
use crate::uapi::MAX_VCPU_IDS;
use crate::vm::{Vm, VmConfig};
use kvm_bindings::*;

/// What KVM_ENABLE_CAP has set.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Enabled {
    /// Quirks switched off: `KVM_X86_QUIRK_*`.
    pub(crate) disabled_quirks: u64,
    /// Exits switched off: `KVM_X86_DISABLE_EXITS_*`.
    pub(crate) disabled_exits: u64,
    /// The guest may not read MSR_PLATFORM_INFO.
    pub(crate) hides_platform_info: bool,
    /// Exceptions carry their payload apart.
    pub(crate) exception_payload: bool,
    /// `KVM_MSR_EXIT_REASON_*` that go to user space.
    pub(crate) user_space_msr: u64,
    /// Hypercalls that go to user space.
    pub(crate) exit_hypercall: u64,
    /// An instruction that cannot be emulated goes to user space, whatever its privilege.
    pub(crate) exit_on_emulation_failure: bool,
    /// `KVM_X2APIC_API_*`.
    #[serde(default)]
    pub(crate) x2apic_api: u64,
    /// KVM_SET_VCPU_EVENTS takes a triple fault.
    pub(crate) triple_fault_event: bool,
}

type Enable = fn(&mut VmConfig, &kvm_enable_cap) -> Result<()>;

/// The quirks of Linux 6.12.
const VALID_QUIRKS: u64 = 0x1ff;
/// MWAIT, HLT, PAUSE, CSTATE.
const VALID_DISABLED_EXITS: u64 = 0xf;

const VM_CAPABILITIES: &[(u32, Enable)] = &[
    (KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, |config, cap| {
        let allowed = if cap.args[0] & 1 == 0 { 1 } else { 3 };
        only(cap, allowed).map(|()| config.manual_dirty_log = cap.args[0])
    }),
    (KVM_CAP_HALT_POLL, |_, cap| only(cap, u64::from(u32::MAX))),
    (KVM_CAP_DISABLE_QUIRKS2, |config, cap| {
        only(cap, VALID_QUIRKS).map(|()| config.enabled.disabled_quirks |= cap.args[0])
    }),
    (KVM_CAP_DISABLE_QUIRKS, |config, cap| {
        config.enabled.disabled_quirks |= cap.args[0] & VALID_QUIRKS;
        Ok(())
    }),
    (KVM_CAP_X86_DISABLE_EXITS, |config, cap| {
        only(cap, VALID_DISABLED_EXITS).map(|()| config.enabled.disabled_exits |= cap.args[0])
    }),
    (KVM_CAP_MSR_PLATFORM_INFO, |config, cap| {
        config.enabled.hides_platform_info = cap.args[0] == 0;
        Ok(())
    }),
    (KVM_CAP_EXCEPTION_PAYLOAD, |config, cap| {
        config.enabled.exception_payload = cap.args[0] != 0;
        Ok(())
    }),
    (KVM_CAP_X86_USER_SPACE_MSR, |config, cap| {
        only(cap, 7).map(|()| config.enabled.user_space_msr = cap.args[0])
    }),
    (KVM_CAP_EXIT_HYPERCALL, |config, cap| {
        only(cap, 1 << 12).map(|()| config.enabled.exit_hypercall = cap.args[0])
    }),
    (KVM_CAP_EXIT_ON_EMULATION_FAILURE, |config, cap| {
        only(cap, 1).map(|()| config.enabled.exit_on_emulation_failure = cap.args[0] != 0)
    }),
    (KVM_CAP_X86_TRIPLE_FAULT_EVENT, |config, cap| {
        only(cap, 1).map(|()| config.enabled.triple_fault_event = cap.args[0] != 0)
    }),
    (KVM_CAP_X2APIC_API, |config, cap| {
        // For the in-kernel interrupt controller, which there is none of yet.
        let flags = KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;
        only(cap, u64::from(flags)).map(|()| config.enabled.x2apic_api |= cap.args[0])
    }),
    (KVM_CAP_X86_APIC_BUS_CYCLES_NS, |_, cap| {
        // The longest timer of the APIC must not overflow: a count of 32 bits, divided by 128.
        let longest = u64::from(u32::MAX) * 128;
        let is_valid = cap.args[0] != 0 && longest.checked_mul(cap.args[0]).is_some();
        // There is no in-kernel interrupt controller.
        Err(if is_valid {
            Errno::ENXIO
        } else {
            Errno::EINVAL
        })
    }),
    (KVM_CAP_MAX_VCPU_ID, max_vcpu_id),
    (KVM_CAP_VM_DISABLE_NX_HUGE_PAGES, |config, cap| {
        // Our memory management unit never splits a page for this; there is nothing to switch.
        let late = config.created_vcpus != 0;
        only(cap, 0).and(if late { Err(Errno::EINVAL) } else { Ok(()) })
    }),
];

/// Enables a capability on a VM.
pub(crate) fn enable_on_vm(vm: &Vm, cap: &kvm_enable_cap) -> Result<()> {
    if cap.flags != 0 {
        return Err(Errno::EINVAL);
    }
    let row = VM_CAPABILITIES
        .iter()
        .find(|row| row.0 == cap.cap)
        .ok_or(Errno::EINVAL)?;
    (row.1)(&mut vm.config(), cap)
}

/// Refuses bits outside `allowed`.
fn only(cap: &kvm_enable_cap, allowed: u64) -> Result<()> {
    if cap.args[0] & !allowed == 0 {
        Ok(())
    } else {
        Err(Errno::EINVAL)
    }
}

fn max_vcpu_id(config: &mut VmConfig, cap: &kvm_enable_cap) -> Result<()> {
    let ids = u32::try_from(cap.args[0]).map_err(|_| Errno::EINVAL)?;
    if ids > MAX_VCPU_IDS {
        return Err(Errno::EINVAL);
    }
    // The kernel holds 0 until the number is set, or the first vCPU freezes the default.
    let frozen = if config.created_vcpus == 0 {
        0
    } else {
        MAX_VCPU_IDS
    };
    let held = config.max_vcpu_ids.unwrap_or(frozen);
    if config.bsp_vcpu_id > ids || (held != 0 && held != ids) {
        return Err(Errno::EINVAL);
    }
    if ids != 0 {
        config.max_vcpu_ids = Some(ids);
    }
    Ok(())
}
