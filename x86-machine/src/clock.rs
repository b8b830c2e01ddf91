//! The time of a machine, as one of its processors and the devices see it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use x86_interp::bus::{Clock, HostClock};

/// The machine's time, as one processor sees it; clones are the same clock.
#[derive(Clone)]
pub(crate) struct MachineClock {
    /// Added to the number of retired instructions.
    skew: Arc<AtomicU64>,
    host: Option<HostClock>,
}

impl MachineClock {
    /// Returns the host's clock, or else one that counts instructions.
    pub(crate) fn new(host: Option<HostClock>) -> Self {
        Self {
            skew: Arc::default(),
            host,
        }
    }

    /// Lets the time be `now` when the processor has retired `instructions` instructions.
    pub(crate) fn set(&self, instructions: u64, now: u64) {
        let skew = now.wrapping_sub(instructions);
        self.skew.store(skew, Ordering::Relaxed);
    }
}

impl Clock for MachineClock {
    fn tsc(&mut self, instructions: u64) -> u64 {
        match &mut self.host {
            Some(host) => host.tsc(instructions),
            None => instructions.wrapping_add(self.skew.load(Ordering::Relaxed)),
        }
    }

    fn instructions_within(&self, ticks: u64) -> u64 {
        self.host
            .as_ref()
            .map_or(ticks, |h| h.instructions_within(ticks))
    }
}
