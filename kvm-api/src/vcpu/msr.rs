//! Model-specific registers of a vCPU: one table (api.rst, "KVM_GET_MSR_INDEX_LIST",
//! "KVM_GET_MSRS", "KVM_SET_MSRS"; SDM Vol. 4).
//!
//! A row says where an MSR lives, what it holds after reset, which list names it, and what may be
//! written to it. Access by the guest and by the host (the ioctls) differ where the row says so.
//! An index without a row does not exist.

use crate::cpuid;
use crate::vcpu::Loaded;
use vmx_model::arch::{Cr0, Efer};
use vmx_model::field::Field;
use x86_interp::cpuid::Feature;

/// Who accesses an MSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Initiator {
    /// The guest, by RDMSR or WRMSR.
    Guest,
    /// User space, by KVM_GET_MSRS or KVM_SET_MSRS.
    Host,
}

/// Why an access is refused: `KVM_MSR_EXIT_REASON_INVAL` or `_UNKNOWN`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MsrError {
    /// The MSR exists; the access or value is invalid.
    Invalid,
    /// There is no such MSR.
    Unknown,
}

/// Where an MSR lives.
#[derive(Clone, Copy, Debug)]
enum Home {
    /// In the vCPU's map, with this value after reset.
    Stored(u64),
    /// In a field of the VMCS.
    Vmcs(Field),
    /// It always reads as this.
    Constant(u64),
    /// It has code of its own.
    Own(
        fn(&Loaded<'_>, u32) -> u64,
        fn(&mut Loaded<'_>, u32, u64, Initiator) -> Written,
    ),
}

type Written = Result<(), MsrError>;

/// What may be written.
#[derive(Clone, Copy, Debug)]
enum Write {
    /// Any value.
    Any,
    /// Only bits of the mask.
    Bits(u64),
    /// The guest's writes are refused; the host may write any value.
    HostOnly,
    /// A feature MSR: refused to the guest; the host may write what it supports, and after the
    /// first KVM_RUN only the value that it holds.
    Feature,
    /// Nothing.
    Never,
    /// A canonical address.
    Canonical,
    /// Any address; it is stored sign-extended from the width of linear addresses.
    Extended,
    /// Any value, which is dropped.
    Ignored,
    /// What the function accepts.
    If(fn(u32, u64) -> bool),
}

/// Which lists name an MSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum List {
    /// KVM_GET_MSR_INDEX_LIST.
    Index,
    /// KVM_GET_MSR_INDEX_LIST and KVM_GET_MSR_FEATURE_INDEX_LIST.
    IndexAndFeature,
    /// Neither.
    No,
}

struct Row {
    first: u32,
    last: u32,
    home: Home,
    write: Write,
    list: List,
}

const fn one(index: u32, home: Home, write: Write, list: List) -> Row {
    Row {
        first: index,
        last: index,
        home,
        write,
        list,
    }
}

const fn range(first: u32, last: u32, home: Home, write: Write) -> Row {
    Row {
        first,
        last,
        home,
        write,
        list: List::No,
    }
}

const TSC: u32 = 0x10;
const TSC_ADJUST: u32 = 0x3b;
const EFER: u32 = 0xc000_0080;

const ZERO: Home = Home::Stored(0);

/// The MSRs, by index.
const MSRS: &[Row] = &[
    // P5_MC_ADDR, P5_MC_TYPE.
    range(0, 1, Home::Constant(0), Write::Never),
    one(TSC, Home::Own(read_tsc, write_tsc), Write::Any, List::Index),
    one(0x17, Home::Constant(0), Write::Never, List::No),
    one(
        0x1b,
        Home::Own(|v, _| v.state.apic_base, write_apic_base),
        Write::Any,
        List::No,
    ),
    one(0x2a, Home::Constant(0), Write::Never, List::No),
    one(0x34, ZERO, Write::HostOnly, List::Index),
    // FEAT_CTL: without VMX, SGX and LMCE in CPUID only the lock bit.
    one(
        0x3a,
        ZERO,
        Write::If(|_, value| value & !1 == 0),
        List::Index,
    ),
    one(
        TSC_ADJUST,
        Home::Own(read_stored, write_tsc_adjust),
        Write::Any,
        List::Index,
    ),
    // BIOS_UPDT_TRIG.
    one(0x79, Home::Constant(0), Write::Ignored, List::No),
    one(
        0x8b,
        Home::Stored(0x1_0000_0000),
        Write::HostOnly,
        List::IndexAndFeature,
    ),
    // FSB_FREQ.
    one(0xcd, Home::Constant(3), Write::Never, List::No),
    one(
        0xce,
        Home::Stored(1 << 31),
        Write::Feature,
        List::IndexAndFeature,
    ),
    one(0xfe, Home::Constant(0x508), Write::Never, List::No),
    one(
        0x10a,
        Home::Stored(ARCH_CAPABILITIES),
        Write::Feature,
        List::IndexAndFeature,
    ),
    // BBL_CR_CTL3.
    one(0x11e, Home::Constant(0xbe70_2111), Write::Never, List::No),
    one(0x140, ZERO, Write::Bits(0), List::Index),
    one(
        0x174,
        Home::Vmcs(Field::GUEST_IA32_SYSENTER_CS),
        Write::Any,
        List::Index,
    ),
    one(
        0x175,
        Home::Vmcs(Field::GUEST_IA32_SYSENTER_ESP),
        Write::Extended,
        List::Index,
    ),
    one(
        0x176,
        Home::Vmcs(Field::GUEST_IA32_SYSENTER_EIP),
        Write::Extended,
        List::Index,
    ),
    one(0x179, Home::Stored(0x20), Write::Never, List::No),
    one(0x17a, ZERO, Write::Any, List::Index),
    one(
        0x17b,
        Home::Own(read_stored, write_mcg_ctl),
        Write::Any,
        List::Index,
    ),
    one(
        0x198,
        Home::Constant(0x400_0000_03e8),
        Write::Never,
        List::No,
    ),
    one(0x199, Home::Constant(0), Write::Never, List::No),
    one(0x1a0, Home::Stored(0x1800), Write::Any, List::Index),
    one(
        0x1d9,
        Home::Vmcs(Field::GUEST_IA32_DEBUGCTL),
        Write::Bits(2),
        List::Index,
    ),
    // Last-branch and last-exception records.
    range(0x1db, 0x1de, Home::Constant(0), Write::Ignored),
    range(0x200, 0x20f, ZERO, Write::If(is_valid_variable_mtrr)),
    one(0x250, ZERO, Write::If(is_valid_fixed_mtrr), List::No),
    range(0x258, 0x259, ZERO, Write::If(is_valid_fixed_mtrr)),
    range(0x268, 0x26f, ZERO, Write::If(is_valid_fixed_mtrr)),
    one(
        0x277,
        Home::Vmcs(Field::GUEST_IA32_PAT),
        Write::If(is_valid_pat),
        List::Index,
    ),
    one(0x2ff, ZERO, Write::If(is_valid_mtrr_def_type), List::No),
    one(
        0x345,
        Home::Stored(0),
        Write::Feature,
        List::IndexAndFeature,
    ),
    range(
        0x400,
        0x47f,
        Home::Own(read_stored, write_mc_bank),
        Write::Any,
    ),
    // RAPL: power units and energy counters.
    one(0x606, Home::Constant(0), Write::Never, List::No),
    one(0x611, Home::Constant(0), Write::Never, List::No),
    one(0x619, Home::Constant(0), Write::Never, List::No),
    one(0x639, Home::Constant(0), Write::Never, List::No),
    one(0x641, Home::Constant(0), Write::Never, List::No),
    // TSC_DEADLINE: without an in-kernel local APIC it holds nothing.
    one(0x6e0, Home::Constant(0), Write::Ignored, List::Index),
    one(0xda0, ZERO, Write::Bits(0), List::Index),
    one(0x4b56_4d05, Home::Stored(1), Write::Bits(1), List::Index),
    one(
        EFER,
        Home::Own(|v, _| v.state.efer, write_efer),
        Write::Any,
        List::No,
    ),
    one(0xc000_0081, ZERO, Write::Any, List::Index),
    one(0xc000_0082, ZERO, Write::Canonical, List::Index),
    one(0xc000_0083, ZERO, Write::Canonical, List::Index),
    one(0xc000_0084, ZERO, Write::Any, List::Index),
    one(
        0xc000_0100,
        Home::Vmcs(Field::GUEST_FS_BASE),
        Write::Canonical,
        List::No,
    ),
    one(
        0xc000_0101,
        Home::Vmcs(Field::GUEST_GS_BASE),
        Write::Canonical,
        List::No,
    ),
    one(0xc000_0102, ZERO, Write::Canonical, List::Index),
    one(0xc000_0103, ZERO, Write::Bits(0xffff_ffff), List::Index),
];

/// RDCL_NO, SKIP_L1DFL_VMENTRY, SSB_NO, MDS_NO, PSCHANGE_MC_NO, TAA_NO.
const ARCH_CAPABILITIES: u64 = 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 8;

fn row(index: u32) -> Option<&'static Row> {
    let after = MSRS.partition_point(|row| row.first <= index);
    MSRS[..after].last().filter(|row| index <= row.last)
}

/// Returns the indexes for KVM_GET_MSR_INDEX_LIST.
pub(crate) fn index_list() -> Vec<u32> {
    MSRS.iter()
        .filter(|row| row.list != List::No)
        .map(|row| row.first)
        .collect()
}

/// Returns the indexes for KVM_GET_MSR_FEATURE_INDEX_LIST.
pub(crate) fn feature_index_list() -> Vec<u32> {
    let features = MSRS.iter().filter(|row| row.list == List::IndexAndFeature);
    features.map(|row| row.first).collect()
}

/// Returns what KVM_GET_MSRS on the system descriptor reads: the value of a feature MSR, 0 for
/// another that is in the index list.
pub(crate) fn system_value(index: u32) -> Option<u64> {
    let row = row(index).filter(|row| row.list != List::No)?;
    match (row.list, row.home) {
        (List::IndexAndFeature, Home::Stored(value) | Home::Constant(value)) => Some(value),
        _ => Some(0),
    }
}

impl Loaded<'_> {
    /// Reads an MSR.
    pub(crate) fn get_msr(&self, index: u32, initiator: Initiator) -> Result<u64, MsrError> {
        let row = row(index).ok_or(MsrError::Unknown)?;
        if initiator == Initiator::Guest && index == 0xce && self.hides_platform_info() {
            return Err(MsrError::Invalid);
        }
        if initiator == Initiator::Guest && !self.guest_has_msr(index) {
            return Err(MsrError::Invalid);
        }
        Ok(match row.home {
            Home::Stored(_) => read_stored(self, index),
            Home::Vmcs(field) => self.vmcs.read(field),
            Home::Constant(value) => value,
            Home::Own(read, _) => read(self, index),
        })
    }

    /// Writes an MSR.
    pub(crate) fn set_msr(&mut self, index: u32, value: u64, who: Initiator) -> Written {
        let row = row(index).ok_or(MsrError::Unknown)?;
        if who == Initiator::Guest && !self.guest_has_msr(index) {
            return Err(MsrError::Invalid);
        }
        let value = self.checked_value(row, index, value, who)?;
        match row.home {
            Home::Stored(_) => {
                self.state.msrs.insert(index, value);
                self.caches.msrs_are_dirty = true;
            }
            Home::Vmcs(field) => self.vmcs.write(field, value),
            Home::Constant(_) => {}
            Home::Own(_, write) => write(self, index, value, who)?,
        }
        Ok(())
    }

    fn checked_value(
        &self,
        row: &Row,
        index: u32,
        value: u64,
        who: Initiator,
    ) -> Result<u64, MsrError> {
        let good = match row.write {
            Write::Any | Write::Ignored => true,
            Write::Bits(mask) => value & !mask == 0,
            Write::HostOnly => who == Initiator::Host,
            Write::Feature => {
                let held = self.state.has_run && value != read_stored(self, index);
                let supported = system_value(index).unwrap_or(0);
                who == Initiator::Host && !held && value & !supported == 0
            }
            Write::Never => false,
            Write::Canonical => self.is_canonical(value),
            Write::Extended => return Ok(self.extended(value)),
            Write::If(accepts) => accepts(index, value),
        };
        if good {
            Ok(value)
        } else {
            Err(MsrError::Invalid)
        }
    }

    /// Whether the guest's CPUID lets it use an MSR that depends on a feature.
    fn guest_has_msr(&self, index: u32) -> bool {
        let needs = match index {
            0x10a => Feature::ArchCapabilities,
            0xda0 => Feature::Xsaves,
            0xc000_0103 => Feature::Rdtscp,
            _ => return true,
        };
        let rdpid = index == 0xc000_0103 && cpuid::has(&self.state.cpuid, Feature::Rdpid);
        rdpid || cpuid::has(&self.state.cpuid, needs)
    }

    fn hides_platform_info(&self) -> bool {
        self.vm.config().enabled.hides_platform_info
    }

    /// Returns the width of linear addresses that CPUID allows.
    fn linear_address_bits(&self) -> u32 {
        let la57 = self.state.cr4 & vmx_model::arch::Cr4::LA57.bits() != 0;
        if la57 { 57 } else { 48 }
    }

    fn extended(&self, value: u64) -> u64 {
        let shift = 64 - self.linear_address_bits();
        ((value << shift).cast_signed() >> shift).cast_unsigned()
    }

    /// Whether an address is canonical in the guest's paging mode.
    pub(crate) fn is_canonical(&self, value: u64) -> bool {
        self.extended(value) == value
    }
}

fn read_stored(vcpu: &Loaded<'_>, index: u32) -> u64 {
    let reset = match row(index).map(|row| row.home) {
        Some(Home::Stored(reset)) => reset,
        _ => 0,
    };
    vcpu.state.msrs.get(&index).copied().unwrap_or(reset)
}

fn read_tsc(vcpu: &Loaded<'_>, _: u32) -> u64 {
    vcpu.guest_tsc()
}

fn write_tsc(vcpu: &mut Loaded<'_>, _: u32, value: u64, who: Initiator) -> Written {
    let before = vcpu.guest_tsc();
    vcpu.set_guest_tsc(value);
    if who == Initiator::Guest {
        let adjust = read_stored(vcpu, TSC_ADJUST).wrapping_add(value.wrapping_sub(before));
        vcpu.state.msrs.insert(TSC_ADJUST, adjust);
    }
    Ok(())
}

/// A guest's write moves the counter; the host's only sets the register. Without the feature in
/// CPUID it is dropped.
fn write_tsc_adjust(vcpu: &mut Loaded<'_>, index: u32, value: u64, who: Initiator) -> Written {
    if !cpuid::has(&vcpu.state.cpuid, Feature::TscAdjust) {
        return Ok(());
    }
    if who == Initiator::Guest {
        let moved = value.wrapping_sub(read_stored(vcpu, index));
        let offset = vcpu.tsc_offset().wrapping_add(moved);
        vcpu.set_tsc_offset(offset);
    }
    vcpu.state.msrs.insert(index, value);
    Ok(())
}

fn write_apic_base(vcpu: &mut Loaded<'_>, _: u32, value: u64, who: Initiator) -> Written {
    const EN: u64 = 1 << 11;
    const EXTD: u64 = 1 << 10;
    let old = vcpu.state.apic_base & (EN | EXTD);
    let new = value & (EN | EXTD);
    // x2APIC mode is entered from xAPIC mode and left by disabling (SDM Vol. 3A, "x2APIC State
    // Transitions").
    let jumps = (old == EN | EXTD && new == EN) || (old == 0 && new == EN | EXTD);
    if who == Initiator::Guest && jumps {
        return Err(MsrError::Invalid);
    }
    vcpu.set_apic_base_by_host(value)
        .map_err(|_| MsrError::Invalid)
}

/// `set_efer()`: LMA stays; the host need not respect CPUID.
fn write_efer(vcpu: &mut Loaded<'_>, _: u32, value: u64, who: Initiator) -> Written {
    let known = (Efer::SCE | Efer::LME | Efer::LMA | Efer::NXE).bits();
    let old = vcpu.state.efer;
    let mut allowed = known;
    if who == Initiator::Guest {
        let needs = [
            (Efer::SCE, Feature::Syscall),
            (Efer::LME, Feature::LongMode),
            (Efer::NXE, Feature::Nx),
        ];
        for (bit, _) in needs
            .iter()
            .filter(|row| !cpuid::has(&vcpu.state.cpuid, row.1))
        {
            allowed &= !bit.bits();
        }
        let paging = vcpu.state.cr0 & Cr0::PG.bits() != 0;
        if paging && (old ^ value) & Efer::LME.bits() != 0 {
            return Err(MsrError::Invalid);
        }
    }
    if value & !allowed != 0 {
        return Err(MsrError::Invalid);
    }
    vcpu.set_efer(value & !Efer::LMA.bits() | old & Efer::LMA.bits());
    Ok(())
}

/// MCG_CTL exists with MCG_CTL_P in MCG_CAP, and is all zeros or all ones.
fn write_mcg_ctl(vcpu: &mut Loaded<'_>, index: u32, value: u64, who: Initiator) -> Written {
    let has_ctl = read_stored(vcpu, 0x179) & (1 << 8) != 0;
    if (!has_ctl && (value != 0 || who == Initiator::Guest)) || (value != 0 && value != u64::MAX) {
        return Err(MsrError::Invalid);
    }
    vcpu.state.msrs.insert(index, value);
    Ok(())
}

/// MCi_CTL is all zeros or all ones (bits 0 and 10 may differ); the guest writes only 0 to
/// MCi_STATUS.
fn write_mc_bank(vcpu: &mut Loaded<'_>, index: u32, value: u64, who: Initiator) -> Written {
    let banks = read_stored(vcpu, 0x179) & 0xff;
    let (bank, register) = (u64::from(index - 0x400) / 4, index & 3);
    let odd_ctl = register == 0 && value != 0 && value | 1 << 10 | 1 != u64::MAX;
    let odd_status = register == 1 && value != 0 && who == Initiator::Guest;
    if bank >= banks || odd_ctl || odd_status {
        return Err(MsrError::Invalid);
    }
    vcpu.state.msrs.insert(index, value);
    Ok(())
}

const fn is_memory_type(value: u64) -> bool {
    matches!(value & 0xff, 0 | 1 | 4 | 5 | 6)
}

fn each_byte(value: u64, accepts: fn(u64) -> bool) -> bool {
    value
        .to_le_bytes()
        .iter()
        .all(|byte| accepts(u64::from(*byte)))
}

fn is_valid_pat(_: u32, value: u64) -> bool {
    each_byte(value, |byte| is_memory_type(byte) || byte == 7)
}

fn is_valid_fixed_mtrr(_: u32, value: u64) -> bool {
    each_byte(value, is_memory_type)
}

fn is_valid_mtrr_def_type(_: u32, value: u64) -> bool {
    value & !0xcff == 0 && is_memory_type(value)
}

fn is_valid_variable_mtrr(index: u32, value: u64) -> bool {
    let reserved = if index & 1 == 0 { 0xf00 } else { 0x7ff };
    let high = value >> crate::caps::PHYSICAL_ADDRESS_BITS;
    value & reserved == 0 && high == 0 && (index & 1 == 1 || is_memory_type(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_does_not_overlap() {
        assert!(MSRS.is_sorted_by(|a, b| a.last < b.first));
        assert!(MSRS.iter().all(|row| row.first <= row.last));
    }

    #[test]
    fn listed_msrs_have_rows() {
        for index in index_list().into_iter().chain(feature_index_list()) {
            assert!(system_value(index).is_some(), "{index:#x}");
        }
        assert_eq!(system_value(0x1234_5678), None);
    }

    #[test]
    fn memory_types_are_checked() {
        assert!(is_valid_pat(0, 0x0007_0406_0007_0406));
        assert!(!is_valid_pat(0, 0x0202_0202_0202_0202));
        assert!(is_valid_mtrr_def_type(0, 0xc06));
        assert!(!is_valid_mtrr_def_type(0, 0xc02));
        assert!(!is_valid_variable_mtrr(0x200, 2));
        assert!(is_valid_variable_mtrr(0x201, 0x3fff_ffff_f800));
    }
}
