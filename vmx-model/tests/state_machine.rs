//! Random sequences on the processors and on the naive model.

use std::sync::Arc;

use vmx_model::capability::VmxProfile;
use vmx_model::naive::compare::{Statistics, run_sequences};

fn run(profile: VmxProfile, seed: u64, count: u64) -> Statistics {
    let profile = Arc::new(profile);
    let mut statistics = Statistics::default();
    for cpus in 1..=4 {
        match run_sequences(&profile, seed, count, cpus) {
            Ok(run) => statistics.add(&run),
            Err(divergence) => panic!("{} with {cpus} processors: {divergence}", profile.name),
        }
    }
    statistics
}

#[test]
fn random_sequences_agree_with_the_naive_model() {
    let statistics = run(VmxProfile::everything(), 1, 50);
    println!("{statistics:?}");
}
