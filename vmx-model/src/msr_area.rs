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

/// A rule of "Loading MSRs".
#[derive(Debug, PartialEq, Eq)]
pub struct LoadRule {
    /// The stable name.
    pub id: &'static str,
    /// What the SDM asks for.
    pub sentence: &'static str,
}

/// The entry of an area that cannot be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadFailure {
    /// Its number, from 1.
    pub number: u64,
    /// The rule that it breaks.
    pub rule: &'static LoadRule,
}

/// Declares the rules of "Loading MSRs".
macro_rules! load_rules {
    ($($rule:ident = $id:literal, $sentence:literal;)*) => {
        $(const $rule: LoadRule = LoadRule { id: $id, sentence: $sentence };)*

        /// The rules of "Loading MSRs", as [`load`] looks at them.
        pub static LOAD_RULES: &[LoadRule] = &[$($rule),*];
    };
}

load_rules! {
    COUNT_LIMIT = "msr-load-count-limit", "The count must not exceed the recommended maximum of IA32_VMX_MISC[27:25].";
    NO_FS_BASE = "msr-load-fs-base", "Bits 31:0 must not be C0000100H (IA32_FS_BASE).";
    NO_GS_BASE = "msr-load-gs-base", "Bits 31:0 must not be C0000101H (IA32_GS_BASE).";
    NO_X2APIC = "msr-load-x2apic", "Bits 31:8 must not be 000008H (an MSR of the x2APIC), whatever the mode of the APIC.";
    NO_SMM_ONLY = "msr-load-smm-only", "Bits 31:0 must not be an MSR that can be written in SMM only.";
    NO_MODEL_SPECIFIC = "msr-load-model-specific", "Bits 31:0 must not be an MSR that cannot be loaded for model-specific reasons.";
    RESERVED = "msr-load-reserved", "Bits 63:32 must be 0.";
    WRMSR = "msr-load-wrmsr", "WRMSR of bits 31:0 and 127:64 at CPL 0 must not fault.";
}

/// Loads the MSRs of an area, in order.
///
/// # Errors
/// The first entry that cannot be loaded; those before it are loaded. A VM entry fails with exit
/// reason 34 and its number as qualification, a VM exit ends in
/// [`VmxAbort::LoadingHostMsrs`](crate::exit::VmxAbort::LoadingHostMsrs).
pub fn load(
    area: MsrArea,
    caps: &VmxCapabilities,
    memory: &dyn PhysicalMemory,
    msrs: &mut dyn MsrAccess,
) -> Result<(), LoadFailure> {
    for number in 1..=area.count {
        let fail = |rule| {
            let number = u64::from(number);
            Err(LoadFailure { number, rule })
        };
        // Choice: more entries than IA32_VMX_MISC recommends are undefined; like KVM, the first
        // of them fails.
        if number > caps.msr_list_max() {
            return fail(&COUNT_LIMIT);
        }
        let entry = area.entry(number, memory);
        if let Some(rule) = refused_on_load(&entry) {
            return fail(rule);
        }
        if msrs.write_msr(entry.index, entry.data).is_none() {
            return fail(&WRMSR);
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

/// Returns the first rule of "Loading MSRs" that `entry` breaks by itself, whatever WRMSR would do.
#[must_use]
pub const fn refused_on_load(entry: &MsrEntry) -> Option<&'static LoadRule> {
    match entry.index {
        IA32_FS_BASE => Some(&NO_FS_BASE),
        IA32_GS_BASE => Some(&NO_GS_BASE),
        index if is_x2apic(index) => Some(&NO_X2APIC),
        IA32_SMM_MONITOR_CTL => Some(&NO_SMM_ONLY),
        IA32_BIOS_UPDT_TRIG | IA32_BIOS_SIGN_ID => Some(&NO_MODEL_SPECIFIC),
        _ if entry.reserved != 0 => Some(&RESERVED),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
