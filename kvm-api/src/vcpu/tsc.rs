//! The guest's time-stamp counter: frequency and offset (api.rst, "KVM_SET_TSC_KHZ"; SDM Vol. 3C,
//! "TSC Offset and TSC Multiplier").

use crate::errno::{Errno, Result};
use crate::host::TSC_KHZ;
use crate::vcpu::Loaded;
use crate::vmx::setup::TSC_RATIO_ONE;
use vmx_model::field::Field;

/// The highest frequency that scaling reaches (`kvm_caps.max_guest_tsc_khz`).
pub(crate) const MAX_GUEST_TSC_KHZ: u32 = 0x7fff_ffff;

impl Loaded<'_> {
    /// Sets the frequency; 0 is the host's.
    pub(crate) fn set_tsc_khz(&mut self, khz: u32) -> Result<()> {
        if khz >= MAX_GUEST_TSC_KHZ {
            return Err(Errno::EINVAL);
        }
        let khz = if khz == 0 { TSC_KHZ } else { khz };
        let ratio = u128::from(TSC_RATIO_ONE) * u128::from(khz) / u128::from(TSC_KHZ);
        let now = self.guest_tsc();
        self.state.tsc_khz = khz;
        self.state.tsc_ratio = ratio as u64;
        self.vmcs.write(Field::TSC_MULTIPLIER, ratio as u64);
        self.set_guest_tsc(now);
        Ok(())
    }

    /// Returns the guest's time-stamp counter.
    pub(crate) fn guest_tsc(&self) -> u64 {
        self.scaled_host_tsc().wrapping_add(self.tsc_offset())
    }

    /// Makes the guest's counter continue from a value.
    pub(crate) fn set_guest_tsc(&mut self, value: u64) {
        let offset = value.wrapping_sub(self.scaled_host_tsc());
        self.set_tsc_offset(offset);
    }

    /// Makes the guest's counter begin at 0.
    pub(crate) fn start_tsc(&mut self) {
        self.set_guest_tsc(0);
    }

    /// Returns what is added to the scaled counter of the host.
    pub(crate) fn tsc_offset(&self) -> u64 {
        self.state.tsc_offset
    }

    /// Sets what is added to the scaled counter of the host.
    pub(crate) fn set_tsc_offset(&mut self, offset: u64) {
        self.state.tsc_offset = offset;
        self.vmcs.write(Field::TSC_OFFSET, offset);
    }

    fn scaled_host_tsc(&self) -> u64 {
        let host = u128::from(self.vm.host().tsc(self.vmcs.retired()));
        ((host * u128::from(self.state.tsc_ratio)) >> 48) as u64
    }
}
