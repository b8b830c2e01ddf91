//! Which MSRs the guest may access: KVM_X86_SET_MSR_FILTER (api.rst, "KVM_X86_SET_MSR_FILTER").

use crate::errno::{Errno, Result};
use crate::uaccess::UserPtr;
use kvm_bindings::{
    KVM_MSR_FILTER_DEFAULT_DENY, KVM_MSR_FILTER_READ, KVM_MSR_FILTER_WRITE, kvm_msr_filter,
    kvm_msr_filter_range,
};

/// Bytes of the longest bitmap.
const MAX_BITMAP_BYTES: u32 = 0x600;

/// What the guest does with an MSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MsrAccess {
    Read = KVM_MSR_FILTER_READ as isize,
    Write = KVM_MSR_FILTER_WRITE as isize,
}

/// A filter.
#[derive(Clone, Debug, Default)]
pub(crate) struct MsrFilter {
    default_deny: bool,
    ranges: Vec<Range>,
}

#[derive(Clone, Debug)]
struct Range {
    flags: u32,
    base: u32,
    count: u32,
    /// A set bit allows the access.
    bitmap: Vec<u8>,
}

impl MsrFilter {
    /// Copies a filter in, in the kernel's order of checks.
    pub(crate) fn from_user(given: &kvm_msr_filter) -> Result<Self> {
        let default_deny = given.flags & KVM_MSR_FILTER_DEFAULT_DENY != 0;
        let is_empty = given.ranges.iter().all(|range| range.nmsrs == 0);
        if given.flags & !KVM_MSR_FILTER_DEFAULT_DENY != 0 || (default_deny && is_empty) {
            return Err(Errno::EINVAL);
        }
        let used = given.ranges.iter().filter(|range| range.nmsrs != 0);
        let ranges = used.map(Range::from_user).collect::<Result<_>>()?;
        Ok(Self {
            default_deny,
            ranges,
        })
    }

    /// Whether the guest may access an MSR (`kvm_msr_allowed()`); x2APIC registers are never
    /// filtered.
    pub(crate) fn allows(&self, index: u32, access: MsrAccess) -> bool {
        if (0x800..=0x8ff).contains(&index) {
            return true;
        }
        let range = self.ranges.iter().find(|range| range.covers(index, access));
        range.map_or(!self.default_deny, |range| range.bit(index))
    }
}

impl Range {
    fn from_user(given: &kvm_msr_filter_range) -> Result<Self> {
        let known = KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE;
        // In longs, as the kernel's BITS_TO_LONGS.
        let bytes = u64::from(given.nmsrs).div_ceil(64) * 8;
        if given.flags == 0 || given.flags & !known != 0 || bytes > u64::from(MAX_BITMAP_BYTES) {
            return Err(Errno::EINVAL);
        }
        let bitmap = UserPtr(given.bitmap as u64).read_array(bytes as usize)?;
        Ok(Self {
            flags: given.flags,
            base: given.base,
            count: given.nmsrs,
            bitmap,
        })
    }

    fn covers(&self, index: u32, access: MsrAccess) -> bool {
        self.flags & access as u32 != 0 && index.wrapping_sub(self.base) < self.count
    }

    fn bit(&self, index: u32) -> bool {
        let bit = index.wrapping_sub(self.base) as usize;
        self.bitmap
            .get(bit / 8)
            .is_some_and(|byte| byte >> (bit % 8) & 1 != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(flags: u32, ranges: &[kvm_msr_filter_range]) -> Result<MsrFilter> {
        let mut given = kvm_msr_filter {
            flags,
            ..Default::default()
        };
        given.ranges[..ranges.len()].copy_from_slice(ranges);
        MsrFilter::from_user(&given)
    }

    fn range(flags: u32, base: u32, nmsrs: u32, bitmap: &mut [u8]) -> kvm_msr_filter_range {
        kvm_msr_filter_range {
            flags,
            base,
            nmsrs,
            bitmap: bitmap.as_mut_ptr(),
        }
    }

    #[test]
    fn a_range_decides_by_its_bits() {
        let mut bits = [0b10, 0, 0, 0, 0, 0, 0, 0];
        let held = filter(0, &[range(1, 0x277, 2, &mut bits)]).expect("a good filter");
        assert!(!held.allows(0x277, MsrAccess::Read));
        assert!(held.allows(0x278, MsrAccess::Read));
        assert!(held.allows(0x277, MsrAccess::Write));
        assert!(held.allows(0x279, MsrAccess::Read));
        let held = filter(1, &[range(3, 0x277, 2, &mut bits)]).expect("a good filter");
        assert!(!held.allows(0x10, MsrAccess::Read));
        assert!(held.allows(0x808, MsrAccess::Write));
    }

    #[test]
    fn bad_filters_are_refused() {
        let mut bits = [0; 8];
        assert_eq!(filter(2, &[]).err(), Some(Errno::EINVAL));
        assert_eq!(filter(1, &[]).err(), Some(Errno::EINVAL));
        assert!(filter(0, &[]).is_ok());
        for flags in [0, 4] {
            let bad = filter(0, &[range(flags, 0, 8, &mut bits)]);
            assert_eq!(bad.err(), Some(Errno::EINVAL), "{flags}");
        }
        assert_eq!(
            filter(0, &[range(1, 0, 0x3001, &mut bits)]).err(),
            Some(Errno::EINVAL)
        );
        let nowhere = kvm_msr_filter_range {
            bitmap: core::ptr::null_mut(),
            ..range(1, 0, 8, &mut bits)
        };
        assert_eq!(filter(0, &[nowhere]).err(), Some(Errno::EFAULT));
    }
}
