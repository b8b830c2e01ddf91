//! The VMX capability MSRs, and the processors (profiles) that this crate knows.
//!
//! SDM Vol. 3D, appendix "VMX Capability Reporting Facility" (appendix A). [`VmxCapabilities`]
//! holds the MSRs 480H to 493H as they are read; [`VmxProfile`] adds what VM entry has to know
//! about the rest of the processor, and a name.

mod profiles;

use crate::controls::{
    EntryControls, ExitControls, PinControls, ProcControls, SecondaryControls,
    SecondaryExitControls, TertiaryControls, VmFunctionControls,
};
use crate::field::FieldSet;
pub use profiles::{PROFILE_NAMES, VmxProfile};

/// The indexes of the VMX capability MSRs.
#[allow(missing_docs, reason = "the names are the SDM's own")]
pub mod msr {
    pub const IA32_VMX_BASIC: u32 = 0x480;
    pub const IA32_VMX_PINBASED_CTLS: u32 = 0x481;
    pub const IA32_VMX_PROCBASED_CTLS: u32 = 0x482;
    pub const IA32_VMX_EXIT_CTLS: u32 = 0x483;
    pub const IA32_VMX_ENTRY_CTLS: u32 = 0x484;
    pub const IA32_VMX_MISC: u32 = 0x485;
    pub const IA32_VMX_CR0_FIXED0: u32 = 0x486;
    pub const IA32_VMX_CR0_FIXED1: u32 = 0x487;
    pub const IA32_VMX_CR4_FIXED0: u32 = 0x488;
    pub const IA32_VMX_CR4_FIXED1: u32 = 0x489;
    pub const IA32_VMX_VMCS_ENUM: u32 = 0x48a;
    pub const IA32_VMX_PROCBASED_CTLS2: u32 = 0x48b;
    pub const IA32_VMX_EPT_VPID_CAP: u32 = 0x48c;
    pub const IA32_VMX_TRUE_PINBASED_CTLS: u32 = 0x48d;
    pub const IA32_VMX_TRUE_PROCBASED_CTLS: u32 = 0x48e;
    pub const IA32_VMX_TRUE_EXIT_CTLS: u32 = 0x48f;
    pub const IA32_VMX_TRUE_ENTRY_CTLS: u32 = 0x490;
    pub const IA32_VMX_VMFUNC: u32 = 0x491;
    pub const IA32_VMX_PROCBASED_CTLS3: u32 = 0x492;
    pub const IA32_VMX_EXIT_CTLS2: u32 = 0x493;
}

const FIRST: u32 = msr::IA32_VMX_BASIC;
const COUNT: usize = (msr::IA32_VMX_EXIT_CTLS2 - FIRST + 1) as usize;

bitflags::bitflags! {
    /// IA32_VMX_EPT_VPID_CAP.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct EptVpidCap: u64 {
        /// Execute-only EPT translations.
        const EXECUTE_ONLY = 1 << 0;
        /// An EPT page-walk length of 4.
        const WALK_LENGTH_4 = 1 << 6;
        /// An EPT page-walk length of 5.
        const WALK_LENGTH_5 = 1 << 7;
        /// EPT paging structures of memory type UC.
        const MEMORY_TYPE_UC = 1 << 8;
        /// EPT paging structures of memory type WB.
        const MEMORY_TYPE_WB = 1 << 14;
        /// EPT pages of 2 MiB.
        const PAGE_2M = 1 << 16;
        /// EPT pages of 1 GiB.
        const PAGE_1G = 1 << 17;
        /// INVEPT.
        const INVEPT = 1 << 20;
        /// Accessed and dirty flags for EPT.
        const ACCESSED_DIRTY = 1 << 21;
        /// Advanced VM-exit information for EPT violations.
        const ADVANCED_EXIT_INFORMATION = 1 << 22;
        /// Supervisor shadow-stack control.
        const SUPERVISOR_SHADOW_STACK = 1 << 23;
        /// INVEPT, single context.
        const INVEPT_SINGLE_CONTEXT = 1 << 25;
        /// INVEPT, all contexts.
        const INVEPT_ALL_CONTEXTS = 1 << 26;
        /// INVVPID.
        const INVVPID = 1 << 32;
        /// INVVPID, individual address.
        const INVVPID_INDIVIDUAL_ADDRESS = 1 << 40;
        /// INVVPID, single context.
        const INVVPID_SINGLE_CONTEXT = 1 << 41;
        /// INVVPID, all contexts.
        const INVVPID_ALL_CONTEXTS = 1 << 42;
        /// INVVPID, single context retaining globals.
        const INVVPID_RETAINING_GLOBALS = 1 << 43;
        const _ = !0;
    }
}

/// The allowed settings of a 32-bit control word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowed {
    /// Bits that must be 1 (the allowed 0-settings: a bit of 1 here forbids 0).
    pub must1: u32,
    /// Bits that may be 1 (the allowed 1-settings).
    pub may1: u32,
}

impl Allowed {
    const fn from_msr(value: u64) -> Self {
        Self {
            must1: value as u32,
            may1: (value >> 32) as u32,
        }
    }
}

/// The VMX capability MSRs of a processor.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct VmxCapabilities {
    msrs: [u64; COUNT],
}

impl VmxCapabilities {
    /// Returns capabilities with the MSRs that `values` names; the others are 0.
    ///
    /// IA32_VMX_VMCS_ENUM is derived from the fields that exist, unless it is given.
    ///
    /// # Panics
    /// If an index is not that of a VMX capability MSR.
    #[must_use]
    pub fn new(values: &[(u32, u64)]) -> Self {
        let mut caps = Self { msrs: [0; COUNT] };
        for &(index, value) in values {
            caps.msrs[(index - FIRST) as usize] = value;
        }
        if caps.raw(msr::IA32_VMX_VMCS_ENUM) == 0 {
            let highest = FieldSet::existing(&caps)
                .iter()
                .map(|f| f.encoding_index())
                .max();
            let value = u64::from(highest.unwrap_or(0)) << 1;
            caps.msrs[(msr::IA32_VMX_VMCS_ENUM - FIRST) as usize] = value;
        }
        caps
    }

    fn raw(&self, index: u32) -> u64 {
        self.msrs[(index - FIRST) as usize]
    }

    /// Returns what RDMSR of a capability MSR gives; `None` where it does not exist (#GP).
    #[must_use]
    pub fn msr(&self, index: u32) -> Option<u64> {
        let exists = match index {
            msr::IA32_VMX_BASIC..=msr::IA32_VMX_VMCS_ENUM => true,
            msr::IA32_VMX_PROCBASED_CTLS2 => self
                .proc_may1()
                .contains(ProcControls::ACTIVATE_SECONDARY_CONTROLS),
            msr::IA32_VMX_EPT_VPID_CAP => self
                .secondary_may1()
                .intersects(SecondaryControls::ENABLE_EPT | SecondaryControls::ENABLE_VPID),
            msr::IA32_VMX_TRUE_PINBASED_CTLS..=msr::IA32_VMX_TRUE_ENTRY_CTLS => {
                self.has_true_msrs()
            }
            msr::IA32_VMX_VMFUNC => self
                .secondary_may1()
                .contains(SecondaryControls::ENABLE_VM_FUNCTIONS),
            msr::IA32_VMX_PROCBASED_CTLS3 => self
                .proc_may1()
                .contains(ProcControls::ACTIVATE_TERTIARY_CONTROLS),
            msr::IA32_VMX_EXIT_CTLS2 => self
                .exit_may1()
                .contains(ExitControls::ACTIVATE_SECONDARY_CONTROLS),
            _ => false,
        };
        exists.then(|| self.raw(index))
    }

    /// Returns the VMCS revision identifier, IA32_VMX_BASIC\[30:0\].
    #[must_use]
    pub fn revision_id(&self) -> u32 {
        self.raw(msr::IA32_VMX_BASIC) as u32 & 0x7fff_ffff
    }

    /// Returns the size of a VMCS region in bytes, IA32_VMX_BASIC\[44:32\].
    #[must_use]
    pub fn region_size_bytes(&self) -> u32 {
        (self.raw(msr::IA32_VMX_BASIC) >> 32) as u32 & 0x1fff
    }

    /// Returns the memory type to use for VMCS regions and what they name, IA32_VMX_BASIC\[53:50\].
    #[must_use]
    pub fn region_memory_type(&self) -> u8 {
        (self.raw(msr::IA32_VMX_BASIC) >> 50) as u8 & 0xf
    }

    /// Whether VMX structures must lie below 4 GiB, IA32_VMX_BASIC\[48\].
    #[must_use]
    pub fn limits_addresses_to_32_bits(&self) -> bool {
        self.raw(msr::IA32_VMX_BASIC) & 1 << 48 != 0
    }

    /// Whether INS and OUTS report instruction information, IA32_VMX_BASIC\[54\].
    #[must_use]
    pub fn reports_ins_outs_information(&self) -> bool {
        self.raw(msr::IA32_VMX_BASIC) & 1 << 54 != 0
    }

    /// Whether the TRUE control MSRs exist, IA32_VMX_BASIC\[55\].
    #[must_use]
    pub fn has_true_msrs(&self) -> bool {
        self.raw(msr::IA32_VMX_BASIC) & 1 << 55 != 0
    }

    /// Whether a hardware exception may be injected with or without an error code whatever its
    /// vector, IA32_VMX_BASIC\[56\].
    #[must_use]
    pub fn injects_any_error_code(&self) -> bool {
        self.raw(msr::IA32_VMX_BASIC) & 1 << 56 != 0
    }

    /// Whether nested exceptions may be injected (FRED), IA32_VMX_BASIC\[58\].
    #[must_use]
    pub fn has_nested_exceptions(&self) -> bool {
        self.raw(msr::IA32_VMX_BASIC) & 1 << 58 != 0
    }

    fn either(&self, plain: u32, true_msr: u32) -> Allowed {
        Allowed::from_msr(self.raw(if self.has_true_msrs() {
            true_msr
        } else {
            plain
        }))
    }

    /// Returns the allowed settings of the pin-based controls.
    #[must_use]
    pub fn pin(&self) -> Allowed {
        self.either(
            msr::IA32_VMX_PINBASED_CTLS,
            msr::IA32_VMX_TRUE_PINBASED_CTLS,
        )
    }

    /// Returns the allowed settings of the primary processor-based controls.
    #[must_use]
    pub fn proc(&self) -> Allowed {
        self.either(
            msr::IA32_VMX_PROCBASED_CTLS,
            msr::IA32_VMX_TRUE_PROCBASED_CTLS,
        )
    }

    /// Returns the allowed settings of the primary VM-exit controls.
    #[must_use]
    pub fn exit(&self) -> Allowed {
        self.either(msr::IA32_VMX_EXIT_CTLS, msr::IA32_VMX_TRUE_EXIT_CTLS)
    }

    /// Returns the allowed settings of the VM-entry controls.
    #[must_use]
    pub fn entry(&self) -> Allowed {
        self.either(msr::IA32_VMX_ENTRY_CTLS, msr::IA32_VMX_TRUE_ENTRY_CTLS)
    }

    /// Returns the allowed settings of the secondary processor-based controls.
    #[must_use]
    pub fn secondary(&self) -> Allowed {
        Allowed::from_msr(self.msr(msr::IA32_VMX_PROCBASED_CTLS2).unwrap_or(0))
    }

    /// Returns the pin-based controls that may be 1.
    #[must_use]
    pub fn pin_may1(&self) -> PinControls {
        PinControls::from_bits_retain(self.pin().may1)
    }

    /// Returns the primary processor-based controls that may be 1.
    #[must_use]
    pub fn proc_may1(&self) -> ProcControls {
        ProcControls::from_bits_retain(self.proc().may1)
    }

    /// Returns the secondary processor-based controls that may be 1.
    #[must_use]
    pub fn secondary_may1(&self) -> SecondaryControls {
        SecondaryControls::from_bits_retain(self.secondary().may1)
    }

    /// Returns the tertiary processor-based controls that may be 1.
    #[must_use]
    pub fn tertiary_may1(&self) -> TertiaryControls {
        let value = self.msr(msr::IA32_VMX_PROCBASED_CTLS3).unwrap_or(0);
        TertiaryControls::from_bits_retain(value)
    }

    /// Returns the primary VM-exit controls that may be 1.
    #[must_use]
    pub fn exit_may1(&self) -> ExitControls {
        ExitControls::from_bits_retain(self.exit().may1)
    }

    /// Returns the VM-entry controls that may be 1.
    #[must_use]
    pub fn entry_may1(&self) -> EntryControls {
        EntryControls::from_bits_retain(self.entry().may1)
    }

    /// Returns the secondary VM-exit controls that may be 1.
    #[must_use]
    pub fn secondary_exit_may1(&self) -> SecondaryExitControls {
        let value = self.msr(msr::IA32_VMX_EXIT_CTLS2).unwrap_or(0);
        SecondaryExitControls::from_bits_retain(value)
    }

    /// Returns the VM functions that may be enabled.
    #[must_use]
    pub fn vm_function_may1(&self) -> VmFunctionControls {
        let value = self.msr(msr::IA32_VMX_VMFUNC).unwrap_or(0);
        VmFunctionControls::from_bits_retain(value)
    }

    /// Returns IA32_VMX_MISC.
    #[must_use]
    pub fn misc(&self) -> u64 {
        self.raw(msr::IA32_VMX_MISC)
    }

    /// Returns the log2 of the TSC ticks in one tick of the VMX-preemption timer,
    /// IA32_VMX_MISC\[4:0\].
    #[must_use]
    pub fn preemption_timer_shift(&self) -> u32 {
        self.misc() as u32 & 0x1f
    }

    /// Whether VM exits store IA32_EFER.LMA into "IA-32e mode guest", IA32_VMX_MISC\[5\].
    #[must_use]
    pub fn stores_efer_lma_on_exit(&self) -> bool {
        self.misc() & 1 << 5 != 0
    }

    /// Returns how many CR3-target values there are, IA32_VMX_MISC\[24:16\].
    #[must_use]
    pub fn cr3_target_max(&self) -> u32 {
        (self.misc() >> 16) as u32 & 0x1ff
    }

    /// Returns how many MSRs a list should hold at most, from IA32_VMX_MISC\[27:25\].
    #[must_use]
    pub fn msr_list_max(&self) -> u32 {
        (((self.misc() >> 25) as u32 & 7) + 1) * 512
    }

    /// Whether VMWRITE may write VM-exit information fields, IA32_VMX_MISC\[29\].
    #[must_use]
    pub fn writes_read_only_fields(&self) -> bool {
        self.misc() & 1 << 29 != 0
    }

    /// Whether software events may be injected with instruction length 0, IA32_VMX_MISC\[30\].
    #[must_use]
    pub fn injects_zero_length(&self) -> bool {
        self.misc() & 1 << 30 != 0
    }

    /// Returns the bits of CR0 that must be 1 in VMX operation.
    #[must_use]
    pub fn cr0_fixed0(&self) -> u64 {
        self.raw(msr::IA32_VMX_CR0_FIXED0)
    }

    /// Returns the bits of CR0 that may be 1 in VMX operation.
    #[must_use]
    pub fn cr0_fixed1(&self) -> u64 {
        self.raw(msr::IA32_VMX_CR0_FIXED1)
    }

    /// Returns the bits of CR4 that must be 1 in VMX operation.
    #[must_use]
    pub fn cr4_fixed0(&self) -> u64 {
        self.raw(msr::IA32_VMX_CR4_FIXED0)
    }

    /// Returns the bits of CR4 that may be 1 in VMX operation.
    #[must_use]
    pub fn cr4_fixed1(&self) -> u64 {
        self.raw(msr::IA32_VMX_CR4_FIXED1)
    }

    /// Returns IA32_VMX_EPT_VPID_CAP, empty where it does not exist.
    #[must_use]
    pub fn ept_vpid(&self) -> EptVpidCap {
        EptVpidCap::from_bits_retain(self.msr(msr::IA32_VMX_EPT_VPID_CAP).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controls::{CONTROLS, ControlWord, Scope};

    #[derive(serde::Deserialize)]
    struct Table {
        profile: Vec<Profile>,
    }

    #[derive(serde::Deserialize)]
    struct Profile {
        id: String,
        values: std::collections::BTreeMap<String, toml::Value>,
    }

    #[test]
    fn the_profiles_are_the_specifications() {
        let spec: Table = toml::from_str(include_str!("../tests/data/profiles.toml")).unwrap();
        for expected in spec.profile {
            let profile = VmxProfile::by_name(&expected.id).unwrap();
            for (index, value) in expected.values {
                let index = u32::from_str_radix(&index, 16).unwrap();
                let value = value.as_str().unwrap().trim_start_matches("0x");
                let value = u64::from_str_radix(value, 16).unwrap();
                assert_eq!(
                    profile.caps.msr(index),
                    Some(value),
                    "{} {index:#x}",
                    expected.id
                );
            }
        }
    }

    fn may1(caps: &VmxCapabilities, word: ControlWord) -> u64 {
        match word {
            ControlWord::Pin => caps.pin_may1().bits().into(),
            ControlWord::Proc => caps.proc_may1().bits().into(),
            ControlWord::Secondary => caps.secondary_may1().bits().into(),
            ControlWord::Tertiary => caps.tertiary_may1().bits(),
            ControlWord::Exit => caps.exit_may1().bits().into(),
            ControlWord::Entry => caps.entry_may1().bits().into(),
            ControlWord::SecondaryExit => caps.secondary_exit_may1().bits(),
            ControlWord::VmFunction => caps.vm_function_may1().bits(),
        }
    }

    #[test]
    fn everything_allows_exactly_what_is_in_scope() {
        let caps = VmxProfile::everything().caps;
        for control in CONTROLS {
            let allowed = may1(&caps, control.word) & 1 << control.bit != 0;
            assert_eq!(allowed, control.scope == Scope::In, "{}", control.id);
        }
    }

    #[test]
    fn what_must_be_1_may_be_1() {
        for profile in VmxProfile::all() {
            let caps = &profile.caps;
            for Allowed { must1, may1 } in [
                caps.pin(),
                caps.proc(),
                caps.exit(),
                caps.entry(),
                caps.secondary(),
            ] {
                assert_eq!(must1 & !may1, 0, "{}", profile.name);
            }
            assert_eq!(caps.cr0_fixed0() & !caps.cr0_fixed1(), 0);
            assert_eq!(caps.cr4_fixed0() & !caps.cr4_fixed1(), 0);
            assert_eq!(
                caps.cr4_fixed1(),
                profile.facts.cr4_supported.bits(),
                "{}",
                profile.name
            );
        }
    }

    #[test]
    fn a_capability_msr_exists_where_its_control_may_be_1() {
        let minimal = VmxProfile::minimal().caps;
        assert_eq!(minimal.msr(msr::IA32_VMX_PROCBASED_CTLS2), None);
        assert_eq!(minimal.msr(msr::IA32_VMX_TRUE_EXIT_CTLS), None);
        assert_eq!(minimal.msr(msr::IA32_VMX_VMFUNC), None);
        assert_eq!(minimal.msr(0x494), None);
        assert_eq!(minimal.msr(0x47f), None);
        let default = VmxProfile::emulator_default();
        assert_eq!(default.caps.msr(msr::IA32_VMX_VMCS_ENUM), Some(0x32));
        assert_eq!(default.caps.msr(msr::IA32_VMX_EXIT_CTLS2), None);
        assert_eq!(default.fields.iter().count(), 153);
    }
}
