//! The table of MSRs.

use vmx_model::arch::{ArchState, SegmentRegister};

use super::{DEBUGCTL_SUPPORTED, Msrs, rule};
use crate::Cpu;
use crate::cpuid::Feature;

/// Where the value of an MSR is.
#[derive(Clone, Copy)]
enum Home {
    /// In [`Msrs`].
    Msrs(fn(&mut Msrs) -> &mut u64),
    /// In one of the arrays of [`Msrs`].
    Element(fn(&mut Msrs) -> &mut [u64], usize),
    /// In [`ArchState`].
    State(fn(&mut ArchState) -> &mut u64),
    /// The base of a segment.
    Base(SegmentRegister),
    /// It is always this.
    Constant(u64),
    /// It is computed.
    Computed(fn(&mut Cpu) -> u64),
    /// It cannot be read.
    WriteOnly,
}

/// What WRMSR does.
#[derive(Clone, Copy)]
enum Rule {
    /// #GP(0).
    ReadOnly,
    /// Any value is stored.
    Any,
    /// A value without other bits is stored.
    Bits(u64),
    /// A canonical address is stored.
    Canonical,
    /// A value that passes is stored.
    If(fn(&Cpu, u64) -> bool),
    /// A value is stored, or refused with `None`, and the rest of the processor follows.
    Do(fn(&mut Cpu, u64) -> Option<()>),
}

/// One MSR.
#[derive(Clone, Copy)]
pub struct Msr {
    /// ECX of RDMSR and WRMSR.
    pub index: u32,
    /// The SDM's name.
    pub name: &'static str,
    feature: Feature,
    /// Another feature that brings it as well.
    alternative: Option<Feature>,
    home: Home,
    rule: Rule,
}

impl Msr {
    /// Whether the processor has it.
    #[must_use]
    pub fn exists(&self, cpu: &Cpu) -> bool {
        cpu.has(self.feature) || self.alternative.is_some_and(|feature| cpu.has(feature))
    }

    pub(super) fn read(&self, cpu: &mut Cpu) -> Option<u64> {
        if !self.exists(cpu) {
            return None;
        }
        match self.home {
            Home::Constant(value) => Some(value),
            Home::Computed(read) => Some(read(cpu)),
            Home::WriteOnly => None,
            _ => self.place(cpu).copied(),
        }
    }

    pub(super) fn write(&self, cpu: &mut Cpu, value: u64) -> Option<()> {
        if !self.exists(cpu) {
            return None;
        }
        let is_allowed = match self.rule {
            Rule::ReadOnly => false,
            Rule::Any => true,
            Rule::Bits(bits) => value & !bits == 0,
            Rule::Canonical => cpu.cpuid.facts().is_canonical(value),
            Rule::If(is_allowed) => is_allowed(cpu, value),
            Rule::Do(write) => return write(cpu, value),
        };
        if is_allowed {
            *self.place(cpu)? = value;
        }
        is_allowed.then_some(())
    }

    fn place<'a>(&self, cpu: &'a mut Cpu) -> Option<&'a mut u64> {
        match self.home {
            Home::Msrs(place) => Some(place(&mut cpu.msrs)),
            Home::Element(array, n) => array(&mut cpu.msrs).get_mut(n),
            Home::State(place) => Some(place(&mut cpu.state)),
            Home::Base(register) => Some(&mut cpu.state.segment_mut(register).base),
            Home::Constant(_) | Home::Computed(_) | Home::WriteOnly => None,
        }
    }
}

/// Returns the row of an MSR.
pub(super) fn find(index: u32) -> Option<&'static Msr> {
    let row = MSRS.binary_search_by_key(&index, |m| m.index).ok()?;
    Some(&MSRS[row])
}

const fn row(index: u32, name: &'static str, feature: Feature, home: Home, rule: Rule) -> Msr {
    Msr {
        index,
        name,
        feature,
        alternative: None,
        home,
        rule,
    }
}

/// IA32_U_CET or IA32_S_CET: shadow stacks bring it, and so does indirect-branch tracking.
const fn cet(index: u32, name: &'static str, home: Home) -> Msr {
    Msr {
        alternative: Some(Feature::CetIbt),
        ..row(index, name, Feature::CetSs, home, Rule::If(rule::cet))
    }
}

const fn shadow_stack_pointer(index: u32, name: &'static str) -> Msr {
    let home = Home::Element(|m| &mut m.pl_ssp, (index - 0x6a4) as usize);
    row(
        index,
        name,
        Feature::CetSs,
        home,
        Rule::If(rule::shadow_stack_pointer),
    )
}

const fn variable(index: u32, name: &'static str) -> Msr {
    let n = (index - 0x200) as usize;
    let rule = if n & 1 == 0 {
        rule::mtrr_base
    } else {
        rule::mtrr_mask
    };
    let home = Home::Element(|m| &mut m.mtrr_variable, n);
    row(index, name, Feature::Mtrr, home, Rule::If(rule))
}

const fn fixed(index: u32, name: &'static str, n: usize) -> Msr {
    let home = Home::Element(|m| &mut m.mtrr_fixed, n);
    row(index, name, Feature::Mtrr, home, Rule::If(rule::mtrr_fixed))
}

const fn bank(index: u32, name: &'static str) -> Msr {
    let n = (index - 0x400) as usize;
    let rule = if n & 3 == 0 {
        Rule::If(rule::machine_check_control)
    } else {
        Rule::Bits(0)
    };
    let home = Home::Element(|m| &mut m.mc_banks, n);
    row(index, name, Feature::Mca, home, rule)
}

use Feature as F;
use Home::{Base, Computed, Constant, Msrs as Own, State, WriteOnly};
use Rule::{Any, Bits, Canonical, Do, If, ReadOnly};

/// Every MSR but the VMX capability MSRs and the x2APIC registers, in ascending order.
#[rustfmt::skip]
pub const MSRS: &[Msr] = &[
    row(0x10, "IA32_TIME_STAMP_COUNTER", F::Tsc, Computed(Cpu::tsc), Do(rule::write_tsc)),
    row(0x17, "IA32_PLATFORM_ID", F::Msr, Constant(0), ReadOnly),
    row(0x1b, "IA32_APIC_BASE", F::Apic, Computed(rule::read_apic_base), Do(rule::write_apic_base)),
    row(0x3a, "IA32_FEATURE_CONTROL", F::Vmx, Own(|m| &mut m.feature_control), If(rule::feature_control)),
    row(0x3b, "IA32_TSC_ADJUST", F::TscAdjust, Own(|m| &mut m.tsc_adjust), Do(rule::write_tsc_adjust)),
    row(0x48, "IA32_SPEC_CTRL", F::SpecCtrl, Own(|m| &mut m.spec_ctrl), Bits(7)),
    row(0x49, "IA32_PRED_CMD", F::SpecCtrl, WriteOnly, Do(rule::command)),
    row(0x79, "IA32_BIOS_UPDT_TRIG", F::Msr, WriteOnly, Do(rule::ignore)),
    row(0x8b, "IA32_BIOS_SIGN_ID", F::Msr, Own(|m| &mut m.bios_sign_id), Any),
    // Maximum non-turbo ratio 20.
    row(0xce, "MSR_PLATFORM_INFO", F::LongMode, Constant(0x1400), ReadOnly),
    row(0xe1, "IA32_UMWAIT_CONTROL", F::Waitpkg, Own(|m| &mut m.umwait_control), Bits(0xffff_fffd)),
    // Eight variable ranges, fixed ranges, write combining.
    row(0xfe, "IA32_MTRRCAP", F::Mtrr, Constant(0x508), ReadOnly),
    // Not affected by RDCL, L1TF, SSB, MDS, machine check on page-size change, TAA, SBDR and SSDP,
    // FBSDP, PSDP, BHI, GDS, RFDS.
    row(0x10a, "IA32_ARCH_CAPABILITIES", F::ArchCapabilities, Constant(0x0c10_e179), ReadOnly),
    row(0x174, "IA32_SYSENTER_CS", F::Sep, State(|s| &mut s.sysenter_cs), Do(rule::write_sysenter_cs)),
    row(0x175, "IA32_SYSENTER_ESP", F::Sep, State(|s| &mut s.sysenter_esp), Canonical),
    row(0x176, "IA32_SYSENTER_EIP", F::Sep, State(|s| &mut s.sysenter_eip), Canonical),
    // Four banks.
    row(0x179, "IA32_MCG_CAP", F::Mca, Constant(4), ReadOnly),
    row(0x17a, "IA32_MCG_STATUS", F::Mca, Own(|m| &mut m.mcg_status), Bits(7)),
    row(0x1a0, "IA32_MISC_ENABLE", F::Msr, Own(|m| &mut m.misc_enable), Do(rule::write_misc_enable)),
    row(0x1d9, "IA32_DEBUGCTL", F::Msr, State(|s| &mut s.debugctl), Bits(DEBUGCTL_SUPPORTED)),
    row(0x1fc, "MSR_POWER_CTL", F::Monitor, Own(|m| &mut m.power_ctl), Any),
    variable(0x200, "IA32_MTRR_PHYSBASE0"),
    variable(0x201, "IA32_MTRR_PHYSMASK0"),
    variable(0x202, "IA32_MTRR_PHYSBASE1"),
    variable(0x203, "IA32_MTRR_PHYSMASK1"),
    variable(0x204, "IA32_MTRR_PHYSBASE2"),
    variable(0x205, "IA32_MTRR_PHYSMASK2"),
    variable(0x206, "IA32_MTRR_PHYSBASE3"),
    variable(0x207, "IA32_MTRR_PHYSMASK3"),
    variable(0x208, "IA32_MTRR_PHYSBASE4"),
    variable(0x209, "IA32_MTRR_PHYSMASK4"),
    variable(0x20a, "IA32_MTRR_PHYSBASE5"),
    variable(0x20b, "IA32_MTRR_PHYSMASK5"),
    variable(0x20c, "IA32_MTRR_PHYSBASE6"),
    variable(0x20d, "IA32_MTRR_PHYSMASK6"),
    variable(0x20e, "IA32_MTRR_PHYSBASE7"),
    variable(0x20f, "IA32_MTRR_PHYSMASK7"),
    fixed(0x250, "IA32_MTRR_FIX64K_00000", 0),
    fixed(0x258, "IA32_MTRR_FIX16K_80000", 1),
    fixed(0x259, "IA32_MTRR_FIX16K_A0000", 2),
    fixed(0x268, "IA32_MTRR_FIX4K_C0000", 3),
    fixed(0x269, "IA32_MTRR_FIX4K_C8000", 4),
    fixed(0x26a, "IA32_MTRR_FIX4K_D0000", 5),
    fixed(0x26b, "IA32_MTRR_FIX4K_D8000", 6),
    fixed(0x26c, "IA32_MTRR_FIX4K_E0000", 7),
    fixed(0x26d, "IA32_MTRR_FIX4K_E8000", 8),
    fixed(0x26e, "IA32_MTRR_FIX4K_F0000", 9),
    fixed(0x26f, "IA32_MTRR_FIX4K_F8000", 10),
    row(0x277, "IA32_PAT", F::Pat, State(|s| &mut s.pat), If(rule::pat)),
    row(0x2ff, "IA32_MTRR_DEF_TYPE", F::Mtrr, Own(|m| &mut m.mtrr_def_type), If(rule::mtrr_def_type)),
    bank(0x400, "IA32_MC0_CTL"),
    bank(0x401, "IA32_MC0_STATUS"),
    bank(0x402, "IA32_MC0_ADDR"),
    bank(0x403, "IA32_MC0_MISC"),
    bank(0x404, "IA32_MC1_CTL"),
    bank(0x405, "IA32_MC1_STATUS"),
    bank(0x406, "IA32_MC1_ADDR"),
    bank(0x407, "IA32_MC1_MISC"),
    bank(0x408, "IA32_MC2_CTL"),
    bank(0x409, "IA32_MC2_STATUS"),
    bank(0x40a, "IA32_MC2_ADDR"),
    bank(0x40b, "IA32_MC2_MISC"),
    bank(0x40c, "IA32_MC3_CTL"),
    bank(0x40d, "IA32_MC3_STATUS"),
    bank(0x40e, "IA32_MC3_ADDR"),
    bank(0x40f, "IA32_MC3_MISC"),
    cet(0x6a0, "IA32_U_CET", Own(|m| &mut m.u_cet)),
    cet(0x6a2, "IA32_S_CET", State(|s| &mut s.s_cet)),
    shadow_stack_pointer(0x6a4, "IA32_PL0_SSP"),
    shadow_stack_pointer(0x6a5, "IA32_PL1_SSP"),
    shadow_stack_pointer(0x6a6, "IA32_PL2_SSP"),
    shadow_stack_pointer(0x6a7, "IA32_PL3_SSP"),
    row(0x6a8, "IA32_INTERRUPT_SSP_TABLE_ADDR", F::CetSs, State(|s| &mut s.interrupt_ssp_table), Canonical),
    row(0x6e0, "IA32_TSC_DEADLINE", F::TscDeadline, Own(|m| &mut m.tsc_deadline), Do(rule::write_tsc_deadline)),
    row(0x6e1, "IA32_PKRS", F::Pks, State(|s| &mut s.pkrs), Do(rule::write_pkrs)),
    row(0xda0, "IA32_XSS", F::Xsaves, Own(|m| &mut m.xss), If(rule::xss)),
    row(0xc000_0080, "IA32_EFER", F::LongMode, Computed(rule::read_efer), Do(rule::write_efer)),
    row(0xc000_0081, "IA32_STAR", F::LongMode, Own(|m| &mut m.star), Any),
    row(0xc000_0082, "IA32_LSTAR", F::LongMode, Own(|m| &mut m.lstar), Canonical),
    row(0xc000_0083, "IA32_CSTAR", F::LongMode, Own(|m| &mut m.cstar), Canonical),
    row(0xc000_0084, "IA32_FMASK", F::LongMode, Own(|m| &mut m.fmask), Bits(0xffff_ffff)),
    row(0xc000_0100, "IA32_FS_BASE", F::LongMode, Base(SegmentRegister::Fs), Canonical),
    row(0xc000_0101, "IA32_GS_BASE", F::LongMode, Base(SegmentRegister::Gs), Canonical),
    row(0xc000_0102, "IA32_KERNEL_GS_BASE", F::LongMode, Own(|m| &mut m.kernel_gs_base), Canonical),
    row(0xc000_0103, "IA32_TSC_AUX", F::Rdtscp, Own(|m| &mut m.tsc_aux), Bits(0xffff_ffff)),
];
