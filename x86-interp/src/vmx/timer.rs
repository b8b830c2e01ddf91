//! The VMX-preemption timer (SDM Vol. 3C, "VMX-Preemption Timer").
//!
//! It counts down once each time that bit X of the TSC changes, X being IA32_VMX_MISC\[4:0\]. Here it
//! is the value of the TSC at which it will have reached zero.

use vmx_model::arch::Activity;

use crate::Cpu;

/// An active timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct PreemptionTimer {
    deadline_tsc: u64,
    /// IA32_VMX_MISC\[4:0\].
    rate_shift: u32,
    /// The number of retired instructions before which the timer is not looked at.
    next_look: u64,
}

impl Cpu {
    /// Starts the timer at `value`, or leaves it inactive.
    pub(crate) fn start_preemption_timer(&mut self, value: Option<u32>) {
        let Some(value) = value else {
            self.vmx.timer = None;
            return;
        };
        let rate_shift = self
            .processor()
            .map_or(0, |p| p.profile().caps.preemption_timer_shift());
        let ticks = u64::from(value) << rate_shift;
        let mut timer = PreemptionTimer {
            deadline_tsc: self.clock.tsc(self.retired).wrapping_add(ticks),
            rate_shift,
            next_look: self.retired,
        };
        if ticks != 0 {
            self.look_later(&mut timer, ticks);
        }
        self.vmx.timer = Some(timer);
    }

    fn look_later(&self, timer: &mut PreemptionTimer, ticks_left: u64) {
        let instructions = self.clock.instructions_within(ticks_left).max(1);
        timer.next_look = self.retired.saturating_add(instructions);
    }

    fn preemption_timer_ticks(&mut self, timer: &PreemptionTimer) -> u64 {
        let now = self.clock.tsc(self.retired);
        timer.deadline_tsc.saturating_sub(now)
    }

    /// Returns what the timer shows; 0 if it is inactive or has expired.
    pub(crate) fn preemption_timer_value(&mut self) -> u32 {
        let Some(timer) = self.vmx.timer else {
            return 0;
        };
        let left = self.preemption_timer_ticks(&timer);
        (left >> timer.rate_shift).min(u64::from(u32::MAX)) as u32
    }

    /// Returns the number of retired instructions at which the timer has to be looked at again, if
    /// that is before `end`.
    #[inline]
    pub(crate) fn timer_horizon(&mut self, end: u64) -> u64 {
        match self.vmx.timer {
            None => end,
            Some(timer) => end.min(timer.next_look.max(self.retired + 1)),
        }
    }

    /// Whether the timer is active and has reached zero. While instructions retire, the clock is
    /// read no more often than it says that it must be.
    pub(crate) fn is_preemption_timer_expired(&mut self) -> bool {
        let Some(mut timer) = self.vmx.timer else {
            return false;
        };
        if self.state.activity == Activity::Active && self.retired < timer.next_look {
            return false;
        }
        let left = self.preemption_timer_ticks(&timer);
        self.look_later(&mut timer, left);
        self.vmx.timer = Some(timer);
        left == 0
    }
}
