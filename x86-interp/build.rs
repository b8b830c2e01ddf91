//! Selects how micro-ops are dispatched: by sibling calls where the optimiser makes them jumps,
//! by a loop in unoptimised builds, under Miri, and with the feature `loop-dispatch`.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(tail_dispatch)");
    let optimised = std::env::var("OPT_LEVEL").is_ok_and(|level| level != "0");
    let by_loop = std::env::var_os("CARGO_FEATURE_LOOP_DISPATCH").is_some()
        || std::env::var_os("CARGO_CFG_MIRI").is_some();
    if optimised && !by_loop {
        println!("cargo::rustc-cfg=tail_dispatch");
    }
}
