//! The doctor on public dumps: the cause that the thread found is named, and nothing else is; healthy
//! and partial dumps raise no alarm. Each file names its thread.

use softvmx::doctor::{dump, examine};
use vmx_model::capability::VmxProfile;
use vmx_model::field::Field;

/// The dumps, and the checks that each violates.
const DUMPS: [(&str, &str, &[&str]); 11] = [
    (
        "edk2",
        include_str!("data/dumps/linux-2016-edk2-if.txt"),
        &["guest-rflags-if-extint"],
    ),
    (
        "accessed",
        include_str!("data/dumps/linux-2021-accessed.txt"),
        &["guest-ds-type-accessed"],
    ),
    (
        "tr",
        include_str!("data/dumps/linux-2022-tr-if.txt"),
        &[
            "guest-tr-type",
            "guest-tr-present",
            "guest-tr-g-high",
            "guest-tr-usable",
            "guest-rflags-if-extint",
        ],
    ),
    (
        "drakvuf",
        include_str!("data/dumps/xen-2018-drakvuf-388-cr3.txt"),
        &["guest-cr3-width"],
    ),
    (
        "icebp",
        include_str!("data/dumps/xen-2019-icebp.txt"),
        &["guest-pdbg-bs-required"],
    ),
    // What broke these is not a check of the SDM on every processor: an older rule for SSP, an error
    // code that only some processors want, a cause that the thread did not find.
    ("ssp", include_str!("data/dumps/linux-2021-ssp.txt"), &[]),
    (
        "nested",
        include_str!("data/dumps/xen-2019-nested-error-code.txt"),
        &[],
    ),
    (
        "syzbot",
        include_str!("data/dumps/linux-2017-syzbot.txt"),
        &[],
    ),
    (
        "healthy Linux",
        include_str!("data/dumps/healthy-linux-6.txt"),
        &[],
    ),
    (
        "healthy Xen",
        include_str!("data/dumps/healthy-xen-2020.txt"),
        &[],
    ),
    (
        "heading only",
        "*** Guest State ***\nRFLAGS=0x00000002\n",
        &[],
    ),
];

#[test]
fn the_cause_is_named_and_nothing_else() {
    for (name, text, expected) in DUMPS {
        let dumps = dump::find(text);
        assert_eq!(dumps.len(), 1, "{name}");
        let failures = examine(&dumps[0], None).failures;
        let ids: Vec<_> = failures.iter().map(|failure| failure.check.id).collect();
        assert_eq!(ids, expected, "{name}");
    }
}

#[test]
fn what_depends_on_the_processor_is_named_for_a_profile() {
    let dump = dump::find(include_str!("data/dumps/xen-2019-nested-error-code.txt")).remove(0);
    let failures = examine(&dump, Some(&VmxProfile::coffee_lake())).failures;
    let ids: Vec<_> = failures.iter().map(|failure| failure.check.id).collect();
    assert_eq!(ids, ["inj-error-code-required"]);
}

#[test]
fn each_dump_of_a_log_is_found() {
    let log: Vec<&str> = DUMPS.iter().map(|(_, text, _)| *text).collect();
    assert_eq!(dump::find(&log.join("\n")).len(), DUMPS.len());
}

#[test]
fn lines_that_mail_broke_are_read() {
    let dump = dump::find(include_str!("data/dumps/linux-2021-accessed.txt")).remove(0);
    assert_eq!(dump.fields[&Field::CR0_READ_SHADOW], 0xe000_0031);
    assert_eq!(dump.fields[&Field::GUEST_SS_BASE], 0x211_1000);
}

#[test]
fn json_says_the_same_as_the_log() {
    let from_log = dump::find(include_str!("data/dumps/linux-2022-tr-if.txt")).remove(0);
    let fields = from_log.fields.iter();
    let object: serde_json::Map<_, _> = fields
        .map(|(field, value)| (field.id().to_owned(), format!("{value:#x}").into()))
        .collect();
    let text = serde_json::to_string(&object).unwrap();
    assert_eq!(dump::find(&text)[0].fields, from_log.fields);
}

#[test]
fn words_without_meaning_do_no_harm() {
    for text in [
        "",
        "{}",
        "[1]",
        "*** Host State ***",
        "*** Guest State ***\n]]]((( CR3 = 0xg",
    ] {
        assert!(
            dump::find(text).iter().all(|dump| dump.fields.is_empty()),
            "{text}"
        );
    }
}
