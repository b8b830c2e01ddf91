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
        let now = self.clock.tsc(self.retired);
        // The part of the present period that has passed by the processor's own TSC.
        let passed = now.wrapping_add(self.msrs.tsc_offset) & ((1 << rate_shift) - 1);
        let ticks = (u64::from(value) << rate_shift).saturating_sub(passed);
        let mut timer = PreemptionTimer {
            deadline_tsc: now.wrapping_add(ticks),
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
        // The period that has begun counts: its change of bit X is still to come.
        left.div_ceil(1 << timer.rate_shift)
            .min(u64::from(u32::MAX)) as u32
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use vmx_model::capability::VmxProfile;
    use vmx_model::processor::LogicalProcessor;
    use vmx_model::registry::{CpuId, VmcsRegistry};

    use crate::test_cpu::long_mode;
    use crate::vmx::RootSoftware;

    #[test]
    fn the_timer_counts_the_changes_of_a_bit_of_the_tsc() {
        let mut cpu = long_mode();
        let profile = Arc::new(VmxProfile::coffee_lake());
        let period = 1 << profile.caps.preemption_timer_shift();
        let p = LogicalProcessor::new(CpuId(0), profile, VmcsRegistry::new());
        let _ = cpu.attach_processor(Box::new(p), RootSoftware::Guest);
        // The last tick of a period: bit X changes with the next one.
        cpu.retired = 10 * period - 1;
        cpu.start_preemption_timer(Some(2));
        assert_eq!(cpu.preemption_timer_value(), 2);
        cpu.retired += 1;
        assert_eq!(cpu.preemption_timer_value(), 1);
        cpu.retired += period - 1;
        assert!(!cpu.is_preemption_timer_expired());
        cpu.retired += 1;
        assert!(cpu.is_preemption_timer_expired());
        assert_eq!(cpu.preemption_timer_value(), 0);
    }
}
