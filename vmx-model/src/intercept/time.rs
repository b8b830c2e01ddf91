//! What the guest sees of time: the time-stamp counter, the VMX-preemption timer, PAUSE loops.
//!
//! SDM Vol. 3C, "Time-Stamp Counter Offset and Multiplier", "VMX-Preemption Timer", and PAUSE in
//! "Instructions That Cause VM Exits Conditionally". Time comes in as a value of the TSC.

use crate::capability::VmxCapabilities;
use crate::controls::{ProcControls, SecondaryControls};
use crate::field::Field;
use crate::vmcs::Vmcs;

/// Returns what RDTSC, RDTSCP and RDMSR of IA32_TIME_STAMP_COUNTER read in the guest where the
/// counter is `tsc`.
#[must_use]
pub fn guest_tsc(vmcs: &Vmcs, tsc: u64) -> u64 {
    if !vmcs.proc().contains(ProcControls::USE_TSC_OFFSETTING) {
        return tsc;
    }
    let scaled = if vmcs
        .secondary()
        .contains(SecondaryControls::USE_TSC_SCALING)
    {
        ((u128::from(tsc) * u128::from(vmcs.get(Field::TSC_MULTIPLIER))) >> 48) as u64
    } else {
        tsc
    };
    scaled.wrapping_add(vmcs.get(Field::TSC_OFFSET))
}

/// Returns the value of the VMX-preemption timer at `now`, both times as values of the TSC, if it
/// was `start` at the VM entry at `entered`; 0 is expired.
#[must_use]
pub fn preemption_timer(caps: &VmxCapabilities, start: u32, entered: u64, now: u64) -> u32 {
    let shift = caps.preemption_timer_shift();
    let ticks = (now >> shift).wrapping_sub(entered >> shift);
    u64::from(start).saturating_sub(ticks) as u32
}

/// Returns the value of the TSC at which a VMX-preemption timer of `start` that was loaded at
/// `entered` expires.
#[must_use]
pub fn preemption_deadline(caps: &VmxCapabilities, start: u32, entered: u64) -> u64 {
    let shift = caps.preemption_timer_shift();
    if start == 0 {
        return entered;
    }
    (entered >> shift).wrapping_add(start.into()) << shift
}

/// What a processor remembers to detect loops of PAUSE.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PauseLoop {
    first: u64,
    last: Option<u64>,
}

impl PauseLoop {
    /// Returns what is remembered at a VM entry: nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            first: 0,
            last: None,
        }
    }

    /// Whether PAUSE at privilege level `cpl` and time `tsc` causes a VM exit.
    #[must_use]
    pub fn pause_exits(&mut self, vmcs: &Vmcs, cpl: u8, tsc: u64) -> bool {
        if vmcs.proc().contains(ProcControls::PAUSE_EXITING) {
            return true;
        }
        if cpl != 0
            || !vmcs
                .secondary()
                .contains(SecondaryControls::PAUSE_LOOP_EXITING)
        {
            return false;
        }
        let since_last = self.last.map(|last| tsc.wrapping_sub(last));
        self.last = Some(tsc);
        match since_last {
            Some(gap) if gap <= vmcs.get(Field::PLE_GAP) => {
                tsc.wrapping_sub(self.first) > vmcs.get(Field::PLE_WINDOW)
            }
            _ => {
                self.first = tsc;
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capability::VmxProfile;
    use proptest::prelude::*;

    fn vmcs(proc: ProcControls, secondary: SecondaryControls) -> Vmcs {
        let mut vmcs = Vmcs::new();
        let proc = proc | ProcControls::ACTIVATE_SECONDARY_CONTROLS;
        vmcs.set(Field::PROC_CONTROLS, proc.bits().into());
        vmcs.set(Field::SECONDARY_PROC_CONTROLS, secondary.bits().into());
        vmcs
    }

    #[test]
    fn scaling_needs_offsetting() {
        let mut vmcs = vmcs(ProcControls::empty(), SecondaryControls::USE_TSC_SCALING);
        vmcs.set(Field::TSC_MULTIPLIER, 3 << 47);
        vmcs.set(Field::TSC_OFFSET, u64::MAX);
        assert_eq!(guest_tsc(&vmcs, 1000), 1000);
        let proc = ProcControls::USE_TSC_OFFSETTING | ProcControls::ACTIVATE_SECONDARY_CONTROLS;
        vmcs.set(Field::PROC_CONTROLS, proc.bits().into());
        assert_eq!(guest_tsc(&vmcs, 1000), 1499);
        vmcs.set(Field::SECONDARY_PROC_CONTROLS, 0);
        assert_eq!(guest_tsc(&vmcs, 1000), 999);
    }

    #[test]
    fn a_loop_of_pauses_exits_after_the_window() {
        let mut vmcs = vmcs(ProcControls::empty(), SecondaryControls::PAUSE_LOOP_EXITING);
        vmcs.set(Field::PLE_GAP, 10);
        vmcs.set(Field::PLE_WINDOW, 25);
        let mut pauses = PauseLoop::new();
        let at = |pauses: &mut PauseLoop, tsc| pauses.pause_exits(&vmcs, 0, tsc);
        assert!(!at(&mut pauses, 100));
        assert!(!at(&mut pauses, 110));
        assert!(!at(&mut pauses, 120));
        assert!(at(&mut pauses, 126));
        assert!(!at(&mut pauses, 137), "a gap of 11 begins a new loop");
        assert!(!pauses.pause_exits(&vmcs, 3, 1000), "PLE is for CPL 0");
    }

    proptest! {
        /// The timer is 0 from its deadline on and not before.
        #[test]
        fn the_deadline_is_when_the_timer_is_zero(start: u32, entered in 0..u64::MAX / 2) {
            for profile in VmxProfile::all() {
                let caps = &profile.caps;
                let deadline = preemption_deadline(caps, start, entered);
                prop_assert_eq!(preemption_timer(caps, start, entered, deadline), 0);
                if start != 0 {
                    prop_assert_ne!(preemption_timer(caps, start, entered, deadline - 1), 0);
                }
                prop_assert_eq!(preemption_timer(caps, start, entered, entered), start);
            }
        }
    }
}
