//! Random VMX instruction sequences: the processors of `vmx-model` and its naive model.

use super::{Case, Target};
use std::sync::Arc;
use vmx_model::capability::VmxProfile;
use vmx_model::naive::compare::{Statistics, run_sequence};

/// The sequences run on this many processors.
const CPUS: u32 = 4;

/// Compares the processors with the naive model, on one profile after the other.
#[derive(Debug)]
pub struct Vmx {
    profiles: Vec<Arc<VmxProfile>>,
    statistics: Statistics,
}

impl Default for Vmx {
    fn default() -> Self {
        Self {
            profiles: VmxProfile::all().into_iter().map(Arc::new).collect(),
            statistics: Statistics::default(),
        }
    }
}

impl Target for Vmx {
    fn name(&self) -> &'static str {
        "vmx"
    }

    fn run(&mut self, case: Case) -> Result<(), String> {
        let turn = case.number % self.profiles.len() as u64;
        let profile = &self.profiles[turn as usize];
        let run = run_sequence(profile, case.seed, CPUS)
            .map_err(|divergence| format!("profile {}, {divergence}", profile.name))?;
        self.statistics.add(&run);
        Ok(())
    }

    fn summary(&self) -> String {
        let s = &self.statistics;
        format!(
            "{} sequences on {CPUS} processors agree with the naive model: {} steps, {} VM entries, \
             {} failed VM entries, {} VM exits, {} VMfail, {} shadow accesses, {} undefined uses \
             reported",
            s.sequences,
            s.steps,
            s.entries,
            s.failed_entries,
            s.exits,
            s.failures,
            s.shadow_accesses,
            s.misuses
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_agree_with_the_naive_model() {
        let mut target = Vmx::default();
        for number in 0..50 {
            let case = Case {
                number,
                seed: number,
            };
            assert_eq!(target.run(case), Ok(()));
        }
        assert!(target.summary().starts_with("50 sequences"));
    }
}
