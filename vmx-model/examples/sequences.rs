//! Runs random VMX instruction sequences on the processors and on the naive model:
//! `cargo run --release -p vmx-model --features naive --example sequences -- [SEED [COUNT [CPUS]]]`.

use std::process::ExitCode;
use std::sync::Arc;

use vmx_model::capability::{PROFILE_NAMES, VmxProfile};
use vmx_model::naive::compare::run_sequences;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default| {
        let argument = arguments.next();
        argument.map_or(Ok(default), |argument| argument.parse::<u64>())
    };
    let (Ok(seed), Ok(count), Ok(cpus)) = (number(1), number(1000), number(4)) else {
        eprintln!("usage: sequences [SEED [COUNT [CPUS]]]");
        return ExitCode::from(2);
    };
    let cpus = cpus.clamp(1, 6) as u32;
    for profile in PROFILE_NAMES.into_iter().filter_map(VmxProfile::by_name) {
        let profile = Arc::new(profile);
        match run_sequences(&profile, seed, count, cpus) {
            Ok(statistics) => println!("{}: {statistics:?}", profile.name),
            Err(divergence) => {
                println!("{}: {divergence}", profile.name);
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}
