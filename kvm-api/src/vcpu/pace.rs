//! How far a guest runs between two looks at the clock, and how long between two looks at pending
//! signals: a signal ends KVM_RUN within a millisecond, whatever the guest executes.
//!
//! Guest code may become a hundred times slower from one instruction to the next. So a stretch,
//! between two looks at signals, consists of slices so short that even a slow one takes no
//! millisecond; how many instructions a slice has follows from how long the last one took.

use std::time::{Duration, Instant};
use x86_interp::run::Slice;

/// How long the guest runs between two looks at pending signals.
const STRETCH: Duration = Duration::from_micros(200);
/// How long a slice should take.
const SLICE: Duration = Duration::from_micros(20);
/// The bounds of a slice. The upper one holds for code that suddenly misses every cache.
const INSTRUCTIONS: (u64, u64) = (64, 1 << 14);
/// Work of a slice, of about 100 nanoseconds each.
const WORK: u32 = 200;

/// The pace of a vCPU's guest: it outlives a KVM_RUN.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    instructions: u64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { instructions: 4096 }
    }
}

impl Pace {
    /// Begins a stretch.
    pub(crate) fn begin(&mut self) -> Stretch<'_> {
        Stretch {
            pace: self,
            began: None,
        }
    }

    /// Takes over how long the last slice took.
    fn adapt(&mut self, took: Duration) {
        let nanos = took.as_nanos().max(1);
        let wanted = u128::from(self.instructions) * SLICE.as_nanos() / nanos;
        let wanted = u64::try_from(wanted).unwrap_or(u64::MAX);
        self.instructions = wanted.clamp(INSTRUCTIONS.0, INSTRUCTIONS.1);
    }
}

/// Slices between two looks at pending signals.
#[derive(Debug)]
pub(crate) struct Stretch<'a> {
    pace: &'a mut Pace,
    /// When the second slice began, and the present one. The first is not timed: most end with
    /// a VM exit.
    began: Option<(Instant, Instant)>,
}

impl Stretch<'_> {
    /// Returns the present slice.
    pub(crate) fn slice(&self) -> Slice {
        Slice {
            instructions: self.pace.instructions,
            work: WORK,
        }
    }

    /// Returns the next slice, when one has ended; none if it is time to look at signals.
    pub(crate) fn next(&mut self) -> Option<Slice> {
        self.next_at(Instant::now())
    }

    fn next_at(&mut self, now: Instant) -> Option<Slice> {
        let first = match self.began {
            None => now,
            Some((first, last)) => {
                self.pace.adapt(now - last);
                first
            }
        };
        self.began = Some((first, now));
        (now - first < STRETCH).then(|| self.slice())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How long a stretch takes in which an instruction takes as long as `cost` says at that time.
    fn length(pace: &mut Pace, cost: impl Fn(Duration) -> Duration) -> Duration {
        let began = Instant::now();
        let mut now = began;
        let mut stretch = pace.begin();
        let mut slice = Some(stretch.slice());
        while let Some(Slice { instructions, .. }) = slice {
            let count = u32::try_from(instructions).expect("not many");
            now += cost(now - began) * count;
            slice = stretch.next_at(now);
        }
        now - began
    }

    #[test]
    fn a_stretch_is_short_for_fast_and_for_slow_code() {
        let mut pace = Pace::default();
        let (fast, slow) = (Duration::from_nanos(1), Duration::from_nanos(1500));
        for cost in [fast, slow, fast, slow] {
            // The first stretch after a change may be longer.
            length(&mut pace, |_| cost);
            let settled = length(&mut pace, |_| cost);
            assert!(
                settled < Duration::from_micros(500),
                "{settled:?} of {cost:?}"
            );
        }
    }

    #[test]
    fn code_that_becomes_slow_lengthens_one_slice_only() {
        let mut pace = Pace::default();
        length(&mut pace, |_| Duration::from_nanos(1));
        let turned = length(&mut pace, |at| {
            let is_slow = at > Duration::from_micros(60);
            Duration::from_nanos(if is_slow { 40 } else { 1 })
        });
        assert!(turned < Duration::from_millis(1), "{turned:?}");
    }
}
