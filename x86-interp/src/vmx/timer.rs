//! The VMX-preemption timer (SDM Vol. 3C, "VMX-Preemption Timer").
//!
//! It counts down once each time that bit X of the TSC changes, X being IA32_VMX_MISC\[4:0\]. Here it
//! is the value of the clock at which it will have reached zero.

use vmx_model::arch::Activity;
use vmx_model::controls::ExitControls;
use vmx_model::processor::LogicalProcessor;

use crate::Cpu;

/// An active timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct PreemptionTimer {
    deadline: Deadline,
    /// IA32_VMX_MISC\[4:0\].
    rate_shift: u32,
    /// The number of retired instructions before which the timer is not looked at.
    next_look: u64,
}

/// When the timer will have reached zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
enum Deadline {
    /// At this value of the clock.
    At(u64),
    /// `periods` changes of bit X after the VM entry, for which the clock has not been read yet.
    After {
        periods: u32,
        /// The number of retired instructions at the VM entry.
        entered: u64,
        /// What the processor's TSC was ahead of the clock by.
        tsc_offset: u64,
    },
}

/// How many ticks of the clock a timer is away if the clock need not be read at VM entry: seven
/// milliseconds of a usual TSC. A clock that does not count instructions is read for it within the
/// instructions that it wants to be looked at after, which is far less.
const FAR: u64 = 1 << 24;

impl Cpu {
    /// Starts the timer at `value`, or leaves it inactive.
    pub(crate) fn start_preemption_timer(&mut self, value: Option<u32>) {
        let Some(periods) = value else {
            self.vmx.timer = None;
            return;
        };
        let profile = self.processor().map(LogicalProcessor::profile);
        let rate_shift = profile.map_or(0, |profile| profile.caps.preemption_timer_shift());
        let mut timer = PreemptionTimer {
            deadline: Deadline::After {
                periods,
                entered: self.retired,
                tsc_offset: self.msrs.tsc_offset,
            },
            rate_shift,
            next_look: self.retired,
        };
        // Of the first period less than all may be left.
        let at_least = (u64::from(periods) << rate_shift).saturating_sub(1 << rate_shift);
        let is_saved = self.guest_vmcs().is_some_and(|vmcs| {
            vmcs.exit()
                .contains(ExitControls::SAVE_VMX_PREEMPTION_TIMER_VALUE)
        });
        if at_least >= FAR && !is_saved {
            self.look_later(&mut timer, at_least);
        } else {
            let left = self.preemption_timer_ticks(&mut timer);
            if left != 0 {
                self.look_later(&mut timer, left);
            }
        }
        self.vmx.timer = Some(timer);
    }

    fn look_later(&self, timer: &mut PreemptionTimer, ticks_left: u64) {
        let instructions = self.clock.instructions_within(ticks_left).max(1);
        timer.next_look = self.retired.saturating_add(instructions);
    }

    /// Returns the ticks of the clock until zero.
    fn preemption_timer_ticks(&mut self, timer: &mut PreemptionTimer) -> u64 {
        let deadline = match timer.deadline {
            Deadline::At(deadline) => deadline,
            Deadline::After {
                periods,
                entered,
                tsc_offset,
            } => {
                let then = self.clock.tsc(entered);
                // The part of the period at the VM entry that had passed by the processor's own TSC.
                let passed = then.wrapping_add(tsc_offset) & ((1 << timer.rate_shift) - 1);
                let ticks = (u64::from(periods) << timer.rate_shift).saturating_sub(passed);
                then.wrapping_add(ticks)
            }
        };
        timer.deadline = Deadline::At(deadline);
        deadline.saturating_sub(self.clock.tsc(self.retired))
    }

    /// Returns what the timer shows; 0 if it is inactive or has expired.
    pub(crate) fn preemption_timer_value(&mut self) -> u32 {
        let Some(mut timer) = self.vmx.timer else {
            return 0;
        };
        let left = self.preemption_timer_ticks(&mut timer);
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

    /// Whether the timer is active and, while instructions retire, has to be looked at.
    #[inline]
    pub(crate) fn has_preemption_timer_work(&self) -> bool {
        self.vmx.timer.is_some_and(|timer| {
            let is_active = self.state.activity == Activity::Active && !self.monitor.is_waiting();
            !is_active || self.retired >= timer.next_look
        })
    }

    /// Whether the timer is active and has reached zero. While instructions retire, the clock is
    /// read no more often than it says that it must be.
    pub(crate) fn is_preemption_timer_expired(&mut self) -> bool {
        if !self.has_preemption_timer_work() {
            return false;
        }
        let Some(mut timer) = self.vmx.timer else {
            return false;
        };
        let left = self.preemption_timer_ticks(&mut timer);
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

    #[test]
    fn a_timer_that_is_far_counts_from_the_entry_as_well() {
        let mut cpu = long_mode();
        let profile = Arc::new(VmxProfile::emulator_default());
        let period = 1 << profile.caps.preemption_timer_shift();
        let p = LogicalProcessor::new(CpuId(0), profile, VmcsRegistry::new());
        let _ = cpu.attach_processor(Box::new(p), RootSoftware::Guest);
        let periods = 2 * (super::FAR / period) as u32;
        // The last tick of a period, again.
        cpu.retired = 10 * period - 1;
        cpu.start_preemption_timer(Some(periods));
        assert!(!cpu.has_preemption_timer_work());
        cpu.retired += 1;
        assert_eq!(cpu.preemption_timer_value(), periods - 1);
        let end = cpu.retired + (u64::from(periods) - 1) * period;
        let look = cpu.timer_horizon(u64::MAX);
        assert!(look < end, "{look} {end}");
        cpu.retired = look;
        assert!(!cpu.is_preemption_timer_expired());
        cpu.retired = cpu.timer_horizon(u64::MAX);
        assert_eq!(cpu.retired, end);
        assert!(cpu.is_preemption_timer_expired());
    }
}
