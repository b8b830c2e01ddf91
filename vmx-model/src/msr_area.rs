//! The VM-entry MSR-load, VM-exit MSR-store and VM-exit MSR-load areas.
//!
//! SDM Vol. 3C, "Loading MSRs" of the chapters "VM Entries" and "VM Exits", "Saving MSRs". An entry
//! is 16 bytes: 31:0 index, 63:32 reserved, 127:64 data. What RDMSR and WRMSR of an index do is the
//! business of whoever owns the MSRs, behind [`MsrAccess`].

use crate::addr::Hpa;
use crate::capability::VmxCapabilities;
use crate::field::Field;
use crate::memory::PhysicalMemory;
use crate::vmcs::Vmcs;

/// The MSRs of a processor, as RDMSR and WRMSR at CPL 0 see them.
pub trait MsrAccess {
    /// Returns what RDMSR reads; `None` where it would fault.
    fn read_msr(&mut self, index: u32) -> Option<u64>;

    /// Does what WRMSR does; `None`, and nothing done, where it would fault.
    fn write_msr(&mut self, index: u32, value: u64) -> Option<()>;
}

/// One entry of an MSR area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct MsrEntry {
    /// Bits 31:0, the index of the MSR.
    pub index: u32,
    /// Bits 63:32, which must be 0.
    pub reserved: u32,
    /// Bits 127:64, the value.
    pub data: u64,
}

/// An MSR area: where it is and how many entries it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsrArea {
    address: Hpa,
    count: u32,
}

impl MsrArea {
    /// Returns the VM-entry MSR-load area.
    #[must_use]
    pub const fn entry_load(vmcs: &Vmcs) -> Self {
        Self::of(
            vmcs,
            Field::VM_ENTRY_MSR_LOAD_ADDRESS,
            Field::VM_ENTRY_MSR_LOAD_COUNT,
        )
    }

    /// Returns the VM-exit MSR-store area.
    #[must_use]
    pub const fn exit_store(vmcs: &Vmcs) -> Self {
        Self::of(
            vmcs,
            Field::VM_EXIT_MSR_STORE_ADDRESS,
            Field::VM_EXIT_MSR_STORE_COUNT,
        )
    }

    /// Returns the VM-exit MSR-load area.
    #[must_use]
    pub const fn exit_load(vmcs: &Vmcs) -> Self {
        Self::of(
            vmcs,
            Field::VM_EXIT_MSR_LOAD_ADDRESS,
            Field::VM_EXIT_MSR_LOAD_COUNT,
        )
    }

    const fn of(vmcs: &Vmcs, address: Field, count: Field) -> Self {
        Self {
            address: Hpa(vmcs.get(address)),
            count: vmcs.get(count) as u32,
        }
    }

    /// Whether there is nothing to load or store.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn slot(&self, number: u32) -> Hpa {
        self.address.offset(16 * u64::from(number - 1))
    }

    fn entry(&self, number: u32, memory: &dyn PhysicalMemory) -> MsrEntry {
        let slot = self.slot(number);
        MsrEntry {
            index: memory.read_u32(slot),
            reserved: memory.read_u32(slot.offset(4)),
            data: memory.read_u64(slot.offset(8)),
        }
    }
}

/// Loads the MSRs of an area, in order.
///
/// # Errors
/// The number, from 1, of the first entry that cannot be loaded; those before it are loaded. A
/// VM entry fails with exit reason 34 and this qualification, a VM exit ends in
/// [`VmxAbort::LoadingHostMsrs`](crate::exit::VmxAbort::LoadingHostMsrs).
pub fn load(
    area: MsrArea,
    caps: &VmxCapabilities,
    memory: &dyn PhysicalMemory,
    msrs: &mut dyn MsrAccess,
) -> Result<(), u64> {
    for number in 1..=area.count {
        let failure = Err(u64::from(number));
        // Choice: more entries than IA32_VMX_MISC recommends are undefined; like KVM, the first
        // of them fails.
        if number > caps.msr_list_max() {
            return failure;
        }
        let entry = area.entry(number, memory);
        if refused_on_load(&entry).is_some() || msrs.write_msr(entry.index, entry.data).is_none() {
            return failure;
        }
    }
    Ok(())
}

/// Stores the MSRs of an area, in order.
///
/// # Errors
/// The number, from 1, of the first entry that cannot be stored: the VM exit ends in
/// [`VmxAbort::SavingGuestMsrs`](crate::exit::VmxAbort::SavingGuestMsrs).
pub fn store(
    area: MsrArea,
    caps: &VmxCapabilities,
    memory: &mut dyn PhysicalMemory,
    msrs: &mut dyn MsrAccess,
) -> Result<(), u64> {
    for number in 1..=area.count {
        let failure = Err(u64::from(number));
        if number > caps.msr_list_max() {
            return failure;
        }
        let entry = area.entry(number, memory);
        let is_refused =
            is_x2apic(entry.index) || entry.index == IA32_SMBASE || entry.reserved != 0;
        let Some(value) = (!is_refused).then(|| msrs.read_msr(entry.index)).flatten() else {
            return failure;
        };
        memory.write_u64(area.slot(number).offset(8), value);
    }
    Ok(())
}

const IA32_FS_BASE: u32 = 0xc000_0100;
const IA32_GS_BASE: u32 = 0xc000_0101;
const IA32_SMM_MONITOR_CTL: u32 = 0x9b;
const IA32_SMBASE: u32 = 0x9e;
const IA32_BIOS_UPDT_TRIG: u32 = 0x79;
const IA32_BIOS_SIGN_ID: u32 = 0x8b;

const fn is_x2apic(index: u32) -> bool {
    index >> 8 == 8
}

/// Returns the stable name of the first rule of "Loading MSRs" that `entry` breaks by itself,
/// whatever WRMSR would do.
#[must_use]
pub const fn refused_on_load(entry: &MsrEntry) -> Option<&'static str> {
    match entry.index {
        IA32_FS_BASE => Some("msr-load-fs-base"),
        IA32_GS_BASE => Some("msr-load-gs-base"),
        index if is_x2apic(index) => Some("msr-load-x2apic"),
        IA32_SMM_MONITOR_CTL => Some("msr-load-smm-only"),
        IA32_BIOS_UPDT_TRIG | IA32_BIOS_SIGN_ID => Some("msr-load-model-specific"),
        _ if entry.reserved != 0 => Some("msr-load-reserved"),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
