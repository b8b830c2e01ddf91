//! The clock of a VM: nanoseconds since it was made, or since what user space has set (api.rst,
//! "KVM_GET_CLOCK", "KVM_SET_CLOCK").
//!
//! It follows the host's clock also where time-stamp counters count instructions. No paravirtual
//! clock is offered to the guest, so there is no master clock, and no flag is reported.

use crate::errno::{Errno, Result};
use crate::host::lock;
use crate::vm::Vm;
use kvm_bindings::{KVM_CLOCK_HOST_TSC, KVM_CLOCK_REALTIME, KVM_CLOCK_TSC_STABLE, kvm_clock_data};
use std::sync::Mutex;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// The flags that exist, which KVM_CHECK_EXTENSION tells.
pub(crate) const VALID_FLAGS: u32 = KVM_CLOCK_TSC_STABLE | KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC;

/// When the clock had which value.
#[derive(Debug)]
pub(crate) struct VmClock(Mutex<(Instant, u64)>);

impl Default for VmClock {
    fn default() -> Self {
        Self(Mutex::new((Instant::now(), 0)))
    }
}

impl VmClock {
    fn now(&self) -> u64 {
        let (then, value) = *lock(&self.0);
        value.wrapping_add(then.elapsed().as_nanos() as u64)
    }

    fn set(&self, value: u64) {
        *lock(&self.0) = (Instant::now(), value);
    }
}

impl Vm {
    /// Returns the VM's clock: api.rst, "KVM_GET_CLOCK".
    #[must_use]
    pub fn get_clock(&self) -> kvm_clock_data {
        kvm_clock_data {
            clock: self.clock().now(),
            ..Default::default()
        }
    }

    /// Sets the VM's clock; with `KVM_CLOCK_REALTIME` it goes on from when that time was: api.rst,
    /// "KVM_SET_CLOCK".
    ///
    /// # Errors
    /// EINVAL: unknown flags.
    pub fn set_clock(&self, data: &kvm_clock_data) -> Result<()> {
        if data.flags & !VALID_FLAGS != 0 {
            return Err(Errno::EINVAL);
        }
        let mut elapsed = 0;
        if data.flags & KVM_CLOCK_REALTIME != 0 {
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            let now = now.map_or(0, |time| time.as_nanos() as u64);
            elapsed = now.saturating_sub(data.realtime);
        }
        self.clock().set(data.clock.wrapping_add(elapsed));
        Ok(())
    }
}
