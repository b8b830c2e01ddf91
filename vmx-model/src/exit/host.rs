//! The host's state after a VM exit, and VMX aborts.
//!
//! SDM Vol. 3C, "Loading Host State" and "VMX Aborts".

use super::{VmExit, uses_pae_paging};
use crate::addr::Hpa;
use crate::arch::{
    AccessRights, Activity, ArchState, Cr0, Cr4, DescriptorTable, Efer, Interruptibility, Rflags,
    Segment,
};
use crate::capability::VmxProfile;
use crate::controls::{ExitControls, PinControls};
use crate::event::EventType;
use crate::exit_reason::ExitReason;
use crate::field::Field;
use crate::memory::PhysicalMemory;
use crate::vmcs::Vmcs;

/// Why a VM exit cannot be completed: the VMX-abort indicator.
///
/// SDM Vol. 3C, "VMX Aborts". The processor writes the indicator to bytes 7:4 of the current VMCS
/// region and shuts down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[repr(u32)]
pub enum VmxAbort {
    /// There was a failure in saving guest MSRs.
    SavingGuestMsrs = 1,
    /// Host checking of the page-directory-pointer-table entries failed.
    HostPdptes = 2,
    /// The current VMCS has been corrupted.
    CorruptedVmcs = 3,
    /// There was a failure on loading host MSRs.
    LoadingHostMsrs = 4,
    /// There was a machine-check event during the VM exit.
    MachineCheck = 5,
    /// The processor was in IA-32e mode and "host address-space size" was 0.
    LeavingIa32eMode = 6,
}

/// Bits of CR0 that neither VM entry nor VM exit changes: ET, CD, NW, 63:32, 28:19, 17 and 15:6.
pub(crate) const CR0_UNCHANGED: u64 = 0xffff_ffff_7ffa_ffd0;

/// Turns `state`, which is that at the VM exit, into the state that the exit leaves the processor
/// in.
///
/// SDM Vol. 3C, "Loading Host State".
///
/// # Errors
/// The VMX abort that the exit ends in; the processor is in shutdown then, whatever its state.
pub fn load_host_state(
    state: &mut ArchState,
    vmcs: &Vmcs,
    exit: &VmExit,
    profile: &VmxProfile,
    memory: &dyn PhysicalMemory,
) -> Result<(), VmxAbort> {
    let is_64_bit = vmcs.exit().contains(ExitControls::HOST_ADDRESS_SPACE_SIZE);
    if state.efer.contains(Efer::LMA) && !is_64_bit {
        return Err(VmxAbort::LeavingIa32eMode);
    }
    load_host_control_registers(state, vmcs, profile);
    load_host_msrs(state, vmcs);
    load_host_segments(state, vmcs, is_64_bit);
    state.rip = vmcs.get(Field::HOST_RIP);
    state.rsp = vmcs.get(Field::HOST_RSP);
    state.rflags = Rflags::FIXED1;
    state.activity = Activity::Active;
    state.interruptibility = host_interruptibility(vmcs, state.interruptibility, exit);
    state.pending_debug = 0;
    if uses_pae_paging(state.cr0, state.cr4, state.efer) {
        load_host_pdptes(state, profile, memory)?;
    }
    Ok(())
}

/// "Checking and Loading Host Page-Directory-Pointer-Table Entries".
#[cold]
fn load_host_pdptes(
    state: &mut ArchState,
    profile: &VmxProfile,
    memory: &dyn PhysicalMemory,
) -> Result<(), VmxAbort> {
    state.pdptes = read_pdptes(state.cr3, memory);
    let is_valid = |pdpte: &u64| pdpte_reserved_bits(*pdpte, profile) == 0;
    if state.pdptes.iter().all(is_valid) {
        Ok(())
    } else {
        Err(VmxAbort::HostPdptes)
    }
}

/// "Loading Host Control Registers, Debug Registers, MSRs": the registers.
fn load_host_control_registers(host: &mut ArchState, vmcs: &Vmcs, profile: &VmxProfile) {
    let cr0 = vmcs.get(Field::HOST_CR0) & !CR0_UNCHANGED | host.cr0.bits() & CR0_UNCHANGED;
    host.cr0 = Cr0::from_bits_retain(cr0);
    let width = u32::from(profile.facts.physical_address_bits.min(63));
    host.cr3 = vmcs.get(Field::HOST_CR3) & ((1 << width) - 1);
    host.cr4 = Cr4::from_bits_retain(vmcs.get(Field::HOST_CR4));
    if vmcs.exit().contains(ExitControls::HOST_ADDRESS_SPACE_SIZE) {
        host.cr4 |= Cr4::PAE;
    } else {
        host.cr4 -= Cr4::PCIDE;
    }
    host.dr7 = 0x400;
    host.debugctl = 0;
}

/// "Loading Host Control Registers, Debug Registers, MSRs": the MSRs.
fn load_host_msrs(host: &mut ArchState, vmcs: &Vmcs) {
    let controls = vmcs.exit();
    host.sysenter_cs = vmcs.get(Field::HOST_IA32_SYSENTER_CS);
    host.sysenter_esp = vmcs.get(Field::HOST_IA32_SYSENTER_ESP);
    host.sysenter_eip = vmcs.get(Field::HOST_IA32_SYSENTER_EIP);
    if controls.contains(ExitControls::LOAD_IA32_EFER) {
        host.efer = Efer::from_bits_retain(vmcs.get(Field::HOST_IA32_EFER));
    } else {
        let is_64_bit = controls.contains(ExitControls::HOST_ADDRESS_SPACE_SIZE);
        host.efer.set(Efer::LMA | Efer::LME, is_64_bit);
    }
    if controls.contains(ExitControls::LOAD_IA32_PAT) {
        host.pat = vmcs.get(Field::HOST_IA32_PAT);
    }
    if controls.contains(ExitControls::LOAD_IA32_PERF_GLOBAL_CTRL) {
        host.perf_global_ctrl = vmcs.get(Field::HOST_IA32_PERF_GLOBAL_CTRL);
    }
    if controls.contains(ExitControls::LOAD_PKRS) {
        host.pkrs = vmcs.get(Field::HOST_IA32_PKRS);
    }
    if controls.contains(ExitControls::LOAD_CET_STATE) {
        host.s_cet = vmcs.get(Field::HOST_IA32_S_CET);
        host.ssp = vmcs.get(Field::HOST_SSP);
        host.interrupt_ssp_table = vmcs.get(Field::HOST_IA32_INTERRUPT_SSP_TABLE_ADDR);
    }
}

/// Flat data: type 3, S, DPL 0, P, D/B, G.
const HOST_DATA: AccessRights = AccessRights(0xc093);
/// Flat 32-bit code: type 11, S, DPL 0, P, D, G.
const HOST_CODE_32: AccessRights = AccessRights(0xc09b);
/// 64-bit code: type 11, S, DPL 0, P, L, G.
const HOST_CODE_64: AccessRights = AccessRights(0xa09b);
/// Busy 32- or 64-bit TSS, present.
const HOST_TSS: AccessRights = AccessRights(0x8b);

/// "Loading Host Segment and Descriptor-Table Registers".
fn load_host_segments(host: &mut ArchState, vmcs: &Vmcs, is_64_bit: bool) {
    let selector = |field| vmcs.get(field) as u16;
    let data = |field, base| {
        let selector = selector(field);
        let access = if selector == 0 {
            AccessRights::UNUSABLE
        } else {
            HOST_DATA
        };
        Segment {
            base,
            limit: u32::MAX,
            access,
            selector,
        }
    };
    host.segments = [
        data(Field::HOST_ES_SELECTOR, 0),
        Segment {
            base: 0,
            limit: u32::MAX,
            access: if is_64_bit {
                HOST_CODE_64
            } else {
                HOST_CODE_32
            },
            selector: selector(Field::HOST_CS_SELECTOR),
        },
        data(Field::HOST_SS_SELECTOR, 0),
        data(Field::HOST_DS_SELECTOR, 0),
        data(Field::HOST_FS_SELECTOR, vmcs.get(Field::HOST_FS_BASE)),
        data(Field::HOST_GS_SELECTOR, vmcs.get(Field::HOST_GS_BASE)),
        Segment {
            access: AccessRights::UNUSABLE,
            ..Segment::default()
        },
        Segment {
            base: vmcs.get(Field::HOST_TR_BASE),
            limit: 0x67,
            access: HOST_TSS,
            selector: selector(Field::HOST_TR_SELECTOR),
        },
    ];
    host.gdtr = DescriptorTable {
        base: vmcs.get(Field::HOST_GDTR_BASE),
        limit: 0xffff,
    };
    host.idtr = DescriptorTable {
        base: vmcs.get(Field::HOST_IDTR_BASE),
        limit: 0xffff,
    };
}

/// "Updating Non-Register State": NMIs are blocked after an exit that an NMI caused directly, and
/// where the guest ran with them blocked physically.
fn host_interruptibility(vmcs: &Vmcs, guest: Interruptibility, exit: &VmExit) -> Interruptibility {
    let by_nmi = exit.reason == ExitReason::EXCEPTION_OR_NMI
        && exit.interruption.kind() == Some(EventType::Nmi);
    let was_blocked =
        !vmcs.pin().contains(PinControls::VIRTUAL_NMIS) && guest.contains(Interruptibility::NMI);
    if by_nmi || was_blocked {
        Interruptibility::NMI
    } else {
        Interruptibility::empty()
    }
}

/// Reads the four PDPTEs that CR3 points to.
#[must_use]
pub fn read_pdptes(cr3: u64, memory: &dyn PhysicalMemory) -> [u64; 4] {
    let table = Hpa(cr3 & 0xffff_ffe0);
    [0, 8, 16, 24].map(|offset| memory.read_u64(table.offset(offset)))
}

/// Returns the reserved bits that a present PDPTE has set: 2:1, 8:5 and those beyond MAXPHYADDR.
#[must_use]
pub const fn pdpte_reserved_bits(pdpte: u64, profile: &VmxProfile) -> u64 {
    if pdpte & 1 == 0 {
        return 0;
    }
    let width = profile.facts.physical_address_bits as u32;
    let beyond = if width >= 64 { 0 } else { u64::MAX << width };
    pdpte & (0x1e6 | beyond)
}
