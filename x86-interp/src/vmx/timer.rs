//! The VMX-preemption timer (SDM Vol. 3C, "VMX-Preemption Timer").
//!
//! It counts down once each time that bit X of the TSC changes, X being IA32_VMX_MISC\[4:0\]. Here it
//! is the value of the TSC at which it will have reached zero.

use crate::Cpu;

/// An active timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct PreemptionTimer {
    deadline_tsc: u64,
    /// IA32_VMX_MISC\[4:0\].
    rate_shift: u32,
}

impl Cpu {
    /// Starts the timer at `value`, or leaves it inactive.
    pub(crate) fn start_preemption_timer(&mut self, value: Option<u32>) {
        let rate_shift = self
            .processor()
            .map_or(0, |p| p.profile().caps.preemption_timer_shift());
        let now = self.clock.tsc(self.retired);
        self.vmx.timer = value.map(|value| PreemptionTimer {
            deadline_tsc: now.wrapping_add(u64::from(value) << rate_shift),
            rate_shift,
        });
    }

    /// Returns what the timer shows; 0 if it is inactive or has expired.
    pub(crate) fn preemption_timer_value(&mut self) -> u32 {
        let Some(timer) = self.vmx.timer else {
            return 0;
        };
        let left = timer
            .deadline_tsc
            .saturating_sub(self.clock.tsc(self.retired));
        (left >> timer.rate_shift).min(u64::from(u32::MAX)) as u32
    }

    /// Returns the number of retired instructions at which the timer has to be looked at again, if
    /// that is before `end`.
    #[inline]
    pub(crate) fn timer_horizon(&mut self, end: u64) -> u64 {
        match self.vmx.timer {
            None => end,
            Some(timer) => {
                let left = timer
                    .deadline_tsc
                    .saturating_sub(self.clock.tsc(self.retired));
                let instructions = self.clock.instructions_within(left).max(1);
                end.min(self.retired.saturating_add(instructions))
            }
        }
    }

    /// Whether the timer is active and has reached zero.
    pub(crate) fn is_preemption_timer_expired(&mut self) -> bool {
        self.vmx
            .timer
            .is_some_and(|t| self.clock.tsc(self.retired) >= t.deadline_tsc)
    }
}
