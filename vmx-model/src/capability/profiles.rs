//! The processors that this crate knows.
//!
//! SDM Vol. 3D, appendix "VMX Capability Reporting Facility": the values of the MSRs for each.

use super::{VmxCapabilities, msr};
use crate::arch::{CpuFacts, Cr4, Efer};
use crate::field::FieldSet;

/// A processor as far as VMX is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmxProfile {
    /// What the profile is called.
    pub name: &'static str,
    /// The VMX capability MSRs.
    pub caps: VmxCapabilities,
    /// What VM entry has to know about the rest of the processor.
    pub facts: CpuFacts,
    /// The VMCS fields that exist.
    pub fields: FieldSet,
}

/// The names of the profiles, for [`VmxProfile::by_name`].
pub const PROFILE_NAMES: [&str; 5] = [
    "emulator-default",
    "everything",
    "minimal",
    "coffee-lake-i7-8750h-class",
    "broadwell-i7-5600u",
];

impl VmxProfile {
    /// Returns a profile of these capabilities and facts.
    #[must_use]
    pub fn new(name: &'static str, caps: VmxCapabilities, facts: CpuFacts) -> Self {
        let fields = FieldSet::existing(&caps);
        Self {
            name,
            caps,
            facts,
            fields,
        }
    }

    /// Returns the profile of this name, one of [`PROFILE_NAMES`].
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        Some(match name {
            "emulator-default" => Self::emulator_default(),
            "everything" => Self::everything(),
            "minimal" => Self::minimal(),
            "coffee-lake-i7-8750h-class" => Self::coffee_lake(),
            "broadwell-i7-5600u" => Self::broadwell(),
            _ => return None,
        })
    }

    /// Returns every profile.
    #[must_use]
    pub fn all() -> Vec<Self> {
        PROFILE_NAMES
            .iter()
            .filter_map(|name| Self::by_name(name))
            .collect()
    }

    /// Returns the default: every control that the model implements, but CET, PKS, "save
    /// IA32_PERF_GLOBAL_CTRL" and the secondary VM-exit controls. The VMX-preemption timer counts
    /// with the TSC: where a tick is an instruction, a slower one hardly moves in a short guest.
    #[must_use]
    pub fn emulator_default() -> Self {
        let facts = CpuFacts {
            physical_address_bits: 46,
            linear_address_bits: 57,
            cr4_supported: CR4_SKYLAKE | Cr4::UMIP | Cr4::LA57 | Cr4::PKE,
            ..facts_of_intel64()
        };
        let caps = [
            (msr::IA32_VMX_BASIC, 0xd8_1000_0000_0001),
            (msr::IA32_VMX_PINBASED_CTLS, 0xff_0000_0016),
            (msr::IA32_VMX_PROCBASED_CTLS, 0xfff9_fffe_0401_e172),
            (msr::IA32_VMX_EXIT_CTLS, 0x7f_ffff_0003_6dff),
            (msr::IA32_VMX_ENTRY_CTLS, 0xf3ff_0000_11ff),
            (msr::IA32_VMX_MISC, 0x6004_01e0),
            (msr::IA32_VMX_CR0_FIXED0, 0x8000_0021),
            (msr::IA32_VMX_CR0_FIXED1, 0xffff_ffff),
            (msr::IA32_VMX_CR4_FIXED0, 0x2000),
            (msr::IA32_VMX_CR4_FIXED1, facts.cr4_supported.bits()),
            (msr::IA32_VMX_PROCBASED_CTLS2, 0x0657_7fff_0000_0000),
            (msr::IA32_VMX_EPT_VPID_CAP, 0x0f01_0673_4141),
            (msr::IA32_VMX_TRUE_PINBASED_CTLS, 0xff_0000_0016),
            (msr::IA32_VMX_TRUE_PROCBASED_CTLS, 0xfff9_fffe_0400_6172),
            (msr::IA32_VMX_TRUE_EXIT_CTLS, 0x7f_ffff_0003_6dfb),
            (msr::IA32_VMX_TRUE_ENTRY_CTLS, 0xf3ff_0000_11fb),
            (msr::IA32_VMX_VMFUNC, 1),
        ];
        Self::new("emulator-default", VmxCapabilities::new(&caps), facts)
    }

    /// Returns a processor with everything that the model implements.
    #[must_use]
    pub fn everything() -> Self {
        let facts = CpuFacts {
            physical_address_bits: 52,
            linear_address_bits: 57,
            cr4_supported: CR4_SKYLAKE
                | Cr4::UMIP
                | Cr4::LA57
                | Cr4::PKE
                | Cr4::SMXE
                | Cr4::CET
                | Cr4::PKS,
            has_rtm: true,
            ..facts_of_intel64()
        };
        let exit = 0xf07f_ffff_u64 << 32;
        let entry = 0x0050_f3ff_u64 << 32;
        let caps = [
            (msr::IA32_VMX_BASIC, 0x1d8_1000_0000_0002),
            (msr::IA32_VMX_PINBASED_CTLS, 0xff_0000_0016),
            (msr::IA32_VMX_PROCBASED_CTLS, 0xfff9_fffe_0401_e172),
            (msr::IA32_VMX_EXIT_CTLS, exit | 0x3_6dff),
            (msr::IA32_VMX_ENTRY_CTLS, entry | 0x11ff),
            (msr::IA32_VMX_MISC, 0x6004_01e0),
            (msr::IA32_VMX_CR0_FIXED0, 0x8000_0021),
            (msr::IA32_VMX_CR0_FIXED1, 0xffff_ffff),
            (msr::IA32_VMX_CR4_FIXED0, 0x2000),
            (msr::IA32_VMX_CR4_FIXED1, facts.cr4_supported.bits()),
            (msr::IA32_VMX_PROCBASED_CTLS2, 0x0657_7fff_0000_0000),
            (msr::IA32_VMX_EPT_VPID_CAP, 0x0f01_06f3_41c1),
            (msr::IA32_VMX_TRUE_PINBASED_CTLS, 0xff_0000_0016),
            (msr::IA32_VMX_TRUE_PROCBASED_CTLS, 0xfff9_fffe_0400_6172),
            (msr::IA32_VMX_TRUE_EXIT_CTLS, exit | 0x3_6dfb),
            (msr::IA32_VMX_TRUE_ENTRY_CTLS, entry | 0x11fb),
            (msr::IA32_VMX_VMFUNC, 1),
        ];
        Self::new("everything", VmxCapabilities::new(&caps), facts)
    }

    /// Returns a processor with no optional control: no secondary controls, no TPR shadow, no MSR
    /// bitmaps, no TRUE MSRs, no activity state but active; 36-bit addresses.
    #[must_use]
    pub fn minimal() -> Self {
        let facts = CpuFacts {
            physical_address_bits: 36,
            cr4_supported: Cr4::from_bits_retain(0x27ff),
            ..facts_of_intel64()
        };
        let proc = 0x6398_1e8c_u64 | 0x0401_e172;
        let caps = [
            (msr::IA32_VMX_BASIC, 0x18_0400_0000_0003),
            (msr::IA32_VMX_PINBASED_CTLS, 0x1f_0000_0016),
            (msr::IA32_VMX_PROCBASED_CTLS, proc << 32 | 0x0401_e172),
            (msr::IA32_VMX_EXIT_CTLS, 0x3_efff_0003_6dff),
            (msr::IA32_VMX_ENTRY_CTLS, 0x13ff_0000_11ff),
            (msr::IA32_VMX_MISC, 0x0004_0000),
            (msr::IA32_VMX_CR0_FIXED0, 0x8000_0021),
            (msr::IA32_VMX_CR0_FIXED1, 0xffff_ffff),
            (msr::IA32_VMX_CR4_FIXED0, 0x2000),
            (msr::IA32_VMX_CR4_FIXED1, facts.cr4_supported.bits()),
        ];
        Self::new("minimal", VmxCapabilities::new(&caps), facts)
    }

    /// Returns an Intel Core of the Coffee Lake kind (i7-8750H): no posted interrupts, no APIC
    /// virtualization, no VMCS shadowing.
    #[must_use]
    pub fn coffee_lake() -> Self {
        let facts = CpuFacts {
            physical_address_bits: 39,
            cr4_supported: Cr4::from_bits_retain(0x37_27ff),
            has_rtm: true,
            has_sgx: true,
            ..facts_of_intel64()
        };
        let caps = [
            (msr::IA32_VMX_BASIC, 0xda_0400_0000_0004),
            (msr::IA32_VMX_PINBASED_CTLS, 0x7f_0000_0016),
            (msr::IA32_VMX_PROCBASED_CTLS, 0xfff9_fffe_0401_e172),
            (msr::IA32_VMX_EXIT_CTLS, 0x01ff_ffff_0003_6dff),
            (msr::IA32_VMX_ENTRY_CTLS, 0x0003_ffff_0000_11ff),
            (msr::IA32_VMX_MISC, 0x7004_c1e7),
            (msr::IA32_VMX_CR0_FIXED0, 0x8000_0021),
            (msr::IA32_VMX_CR0_FIXED1, 0xffff_ffff),
            (msr::IA32_VMX_CR4_FIXED0, 0x2000),
            (msr::IA32_VMX_CR4_FIXED1, 0x37_27ff),
            (msr::IA32_VMX_VMCS_ENUM, 0x2e),
            (msr::IA32_VMX_PROCBASED_CTLS2, 0x005f_bcff_0000_0000),
            (msr::IA32_VMX_EPT_VPID_CAP, 0x0f01_0673_4141),
            (msr::IA32_VMX_TRUE_PINBASED_CTLS, 0x7f_0000_0016),
            (msr::IA32_VMX_TRUE_PROCBASED_CTLS, 0xfff9_fffe_0400_6172),
            (msr::IA32_VMX_TRUE_EXIT_CTLS, 0x01ff_ffff_0003_6dfb),
            (msr::IA32_VMX_TRUE_ENTRY_CTLS, 0x0003_ffff_0000_11fb),
            (msr::IA32_VMX_VMFUNC, 1),
        ];
        Self::new(
            "coffee-lake-i7-8750h-class",
            VmxCapabilities::new(&caps),
            facts,
        )
    }

    /// Returns an Intel Core i7-5600U (Broadwell).
    #[must_use]
    pub fn broadwell() -> Self {
        let facts = CpuFacts {
            physical_address_bits: 39,
            cr4_supported: Cr4::from_bits_retain(0x37_67ff),
            has_rtm: true,
            ..facts_of_intel64()
        };
        let caps = [
            (msr::IA32_VMX_BASIC, 0xda_0400_0000_0012),
            (msr::IA32_VMX_PINBASED_CTLS, 0x7f_0000_0016),
            (msr::IA32_VMX_PROCBASED_CTLS, 0xfff9_fffe_0401_e172),
            (msr::IA32_VMX_EXIT_CTLS, 0x7f_ffff_0003_6dff),
            (msr::IA32_VMX_ENTRY_CTLS, 0xffff_0000_11ff),
            (msr::IA32_VMX_MISC, 0x3004_81e5),
            (msr::IA32_VMX_CR0_FIXED0, 0x8000_0021),
            (msr::IA32_VMX_CR0_FIXED1, 0xffff_ffff),
            (msr::IA32_VMX_CR4_FIXED0, 0x2000),
            (msr::IA32_VMX_CR4_FIXED1, 0x37_67ff),
            (msr::IA32_VMX_VMCS_ENUM, 0x2a),
            (msr::IA32_VMX_PROCBASED_CTLS2, 0x0005_7cff_0000_0000),
            (msr::IA32_VMX_EPT_VPID_CAP, 0x0f01_0633_4141),
            (msr::IA32_VMX_TRUE_PINBASED_CTLS, 0x7f_0000_0016),
            (msr::IA32_VMX_TRUE_PROCBASED_CTLS, 0xfff9_fffe_0400_6172),
            (msr::IA32_VMX_TRUE_EXIT_CTLS, 0x7f_ffff_0003_6dfb),
            (msr::IA32_VMX_TRUE_ENTRY_CTLS, 0xffff_0000_11fb),
            (msr::IA32_VMX_VMFUNC, 1),
        ];
        Self::new("broadwell-i7-5600u", VmxCapabilities::new(&caps), facts)
    }
}

/// CR4 as a Skylake-class processor supports it.
const CR4_SKYLAKE: Cr4 = Cr4::from_bits_retain(0x37_27ff);

const fn facts_of_intel64() -> CpuFacts {
    CpuFacts {
        physical_address_bits: 39,
        linear_address_bits: 48,
        cr4_supported: CR4_SKYLAKE,
        efer_supported: Efer::from_bits_retain(0xd01),
        debugctl_supported: 0x3,
        perf_global_ctrl_supported: 0x7_0000_000f,
        has_rtm: false,
        has_sgx: false,
        has_long_mode: true,
    }
}
