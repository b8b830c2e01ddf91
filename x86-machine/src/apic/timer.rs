//! The timer of a local APIC (SDM Vol. 3A, "APIC Timer"): one-shot, periodic, and TSC deadline.

use super::{LVT_MASKED, LocalApic};

/// What a time has come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expiry {
    /// The timer has reached zero.
    pub has_expired: bool,
    /// IA32_TSC_DEADLINE has been reached: it reads 0 now.
    pub clears_deadline: bool,
}

impl LocalApic {
    /// Arms the TSC-deadline timer; 0 disarms it. Ignored in the other timer modes.
    pub fn set_tsc_deadline(&mut self, deadline: u64) {
        if self.is_deadline_mode() {
            self.tsc_deadline = deadline;
            self.expires = (deadline != 0).then_some(deadline);
        }
    }

    pub(super) fn is_deadline_mode(&self) -> bool {
        self.lvt[0] >> 17 & 3 == 2
    }

    fn divisor(&self) -> u64 {
        let code = self.divide & 3 | self.divide >> 1 & 4;
        if code == 7 { 1 } else { 2 << code }
    }

    /// Starts the count that was written.
    pub fn start_timer(&mut self, now: u64) {
        if !self.is_deadline_mode() {
            self.rearm(now);
        }
    }

    pub(super) fn rearm(&mut self, now: u64) {
        self.started = now;
        let ticks = u64::from(self.initial_count) * self.divisor();
        self.expires = (ticks != 0).then(|| now.saturating_add(ticks));
    }

    pub(super) fn current_count(&self, now: u64) -> u32 {
        let Some(expires) = self.expires.filter(|_| !self.is_deadline_mode()) else {
            return 0;
        };
        let left = expires.saturating_sub(now.max(self.started));
        left.div_ceil(self.divisor()).min(u64::from(u32::MAX)) as u32
    }

    /// Returns when the timer expires, in ticks of the clock (for a TSC deadline: of the TSC).
    #[must_use]
    pub fn expires(&self) -> Option<u64> {
        self.expires
    }

    /// Lets the time be `now`: an expired timer interrupts.
    pub fn advance(&mut self, now: u64) -> Expiry {
        let Some(expires) = self.expires.filter(|&e| e <= now) else {
            return Expiry::default();
        };
        let is_deadline = self.is_deadline_mode();
        self.expires = None;
        if is_deadline {
            self.tsc_deadline = 0;
        } else if self.lvt[0] >> 17 & 3 == 1 {
            // Periods that nobody could see pass are one.
            let period = (u64::from(self.initial_count) * self.divisor()).max(1);
            let periods = (now - expires) / period + 1;
            self.started = expires.saturating_add((periods - 1) * period);
            self.expires = Some(expires.saturating_add(periods.saturating_mul(period)));
        }
        if self.lvt[0] & LVT_MASKED == 0 {
            self.accept(self.lvt[0] as u8, false);
        }
        Expiry {
            has_expired: true,
            clears_deadline: is_deadline,
        }
    }
}
