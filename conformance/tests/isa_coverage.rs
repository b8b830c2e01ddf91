//! The page `docs/isa-coverage.md` is what the tables and the recorded proofs say, and no profile
//! offers an instruction that is not proved.
//!
//! `UPDATE=1 cargo test -p conformance --test isa_coverage` writes the page anew;
//! `conformance fuzz isa --cases 12000 --record conformance/isa_proved.txt` the proofs.

use conformance::fuzz::isa::{Bits, Proved, coverage, forms, parse_proved, proved_cases};
use iced_x86::Code;
use std::path::{Path, PathBuf};
use x86_interp::cpuid::Profile;

const PROVED: &str = include_str!("../isa_proved.txt");

/// Forms that the profiles offer and that this comparison cannot prove, and why.
const UNPROVABLE: &[(&[Code], &str)] = &[
    (
        &[Code::Bswap_r16, Code::Movsxd_r16_rm16],
        "the result is undefined, or differs between vendors",
    ),
    (
        &[
            Code::Reservednop_rm16_r16_0F0D,
            Code::Reservednop_rm32_r32_0F0D,
            Code::Reservednop_rm64_r64_0F0D,
        ],
        "undefined on the processors of AMD",
    ),
    (&[Code::Serialize], "the recording host does not have it"),
    (&[Code::Ud0], "the decoder has no operands for it"),
];

/// Forms that the profiles offer and that nobody executes yet: they stop the processor by name.
const GAPS: &[Code] = &[
    Code::Cvtpi2ps_xmm_mmm64,
    Code::Cvtpi2pd_xmm_mmm64,
    Code::Cvttps2pi_mm_xmmm64,
    Code::Cvttpd2pi_mm_xmmm128,
    Code::Cvtps2pi_mm_xmmm64,
    Code::Cvtpd2pi_mm_xmmm128,
    Code::Rsqrtps_xmm_xmmm128,
    Code::Rsqrtss_xmm_xmmm32,
    Code::Rcpps_xmm_xmmm128,
    Code::Rcpss_xmm_xmmm32,
    Code::Maskmovdqu_rDI_xmm_xmm,
];

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name)
}

fn proved() -> Proved {
    parse_proved(PROVED)
}

#[test]
fn the_page_of_the_instructions_is_what_the_tables_say() {
    let wanted = coverage::page(&proved());
    let path = file("docs/isa-coverage.md");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &wanted).expect("the page can be written");
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == wanted,
        "docs/isa-coverage.md is stale: run this test with UPDATE=1"
    );
}

/// Why a profile must not offer the form; nothing if it may.
fn objection(code: Code, proved: &Proved) -> Option<String> {
    if GAPS.contains(&code) {
        return None;
    }
    if !forms::is_supported(code) {
        return Some(format!("{code:?} is not executed"));
    }
    let is_unprovable = UNPROVABLE.iter().any(|(codes, _)| codes.contains(&code));
    if is_unprovable || forms::why_uncompared(code).is_some() {
        return None;
    }
    let cases: u64 = Bits::ALL
        .iter()
        .map(|&bits| proved_cases(proved, code, bits))
        .sum();
    (cases == 0).then(|| format!("{code:?} is not proved"))
}

#[test]
fn a_profile_offers_nothing_that_is_not_proved() {
    let proved = proved();
    let mut objections = Vec::new();
    for profile in Profile::ALL.iter().filter(|p| p.name != "everything") {
        let features = profile.features();
        let offered = coverage::all_forms().filter(|&c| features.allows(c));
        let found = offered.filter_map(|code| objection(code, &proved));
        objections.extend(found.map(|o| format!("{}: {o}", profile.name)));
    }
    assert!(objections.is_empty(), "{}", objections.join("\n"));
}
