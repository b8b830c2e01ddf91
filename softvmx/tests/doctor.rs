//! The doctor on public dumps: the cause that the thread found is named, and nothing else is; healthy
//! and partial dumps raise no alarm. Each file names its thread.

use softvmx::doctor::{dump, examine};
use vmx_model::capability::VmxProfile;
use vmx_model::field::Field;

/// The dumps, and the checks that each violates.
const DUMPS: [(&str, &str, &[&str]); 22] = [
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
        include_str!("data/dumps/linux-2023-tr-if.txt"),
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
    (
        "SMI in the shadow of STI",
        include_str!("data/dumps/linux-2022-smm-sti.txt"),
        &["guest-int-sti-if"],
    ),
    (
        "SMI in the shadow of STI, partial",
        include_str!("data/dumps/linux-2024-smm-sti-partial.txt"),
        &["guest-int-sti-if"],
    ),
    (
        "DR7, partial: suspected, for want of the controls",
        include_str!("data/dumps/xen-2023-dr7-partial.txt"),
        &[],
    ),
    (
        "drakvuf, second",
        include_str!("data/dumps/xen-2018-drakvuf-388-cr3-second.txt"),
        &["guest-cr3-width"],
    ),
    // What the processor recorded tells the cause of these: no check is violated.
    ("lbr", include_str!("data/dumps/xen-2020-lbr-msr.txt"), &[]),
    (
        "rflags",
        include_str!("data/dumps/linux-2020-rflags-clobbered.txt"),
        &[],
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
        "partial, the control state",
        include_str!("data/dumps/partial-xen-2018-drakvuf-465.txt"),
        &[],
    ),
    (
        "healthy Linux, an exit that was not expected",
        include_str!("data/dumps/healthy-linux-2024-ve.txt"),
        &[],
    ),
    (
        "healthy Linux, a triple fault",
        include_str!("data/dumps/healthy-linux-2023-triple-fault.txt"),
        &[],
    ),
    (
        "partial, virtual-8086 mode",
        include_str!("data/dumps/partial-linux-2020-dosemu.txt"),
        &[],
    ),
    (
        "partial, without the control state",
        include_str!("data/dumps/partial-linux-2026-svsm.txt"),
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
fn an_address_that_only_some_processors_have_is_undecided() {
    let dump = dump::find(include_str!("data/dumps/linux-2023-tr-if.txt")).remove(0);
    let is_gdtr = |check: &vmx_model::checks::Check| check.id == "guest-gdtr-base-canonical";
    let any = examine(&dump, None);
    assert!(any.undecided.iter().any(|check| is_gdtr(check)));
    let lake = examine(&dump, Some(&VmxProfile::coffee_lake()));
    assert!(lake.failures.iter().any(|failure| is_gdtr(failure.check)));
}

#[test]
fn what_lacks_the_controls_only_is_suspected() {
    for (name, text, _) in DUMPS {
        let suspects = examine(&dump::find(text)[0], None).suspects;
        let ids: Vec<_> = suspects.iter().map(|check| check.id).collect();
        let expected: &[&str] = if name.starts_with("DR7") {
            &["guest-dr7-high"]
        } else {
            &[]
        };
        assert_eq!(ids, expected, "{name}");
    }
}

#[test]
fn what_the_processor_recorded_names_the_cause() {
    let recorded = [
        (
            include_str!("data/dumps/linux-2022-smm-sti.txt"),
            "VM entry failed with exit reason 33 (VM-entry failure due to invalid guest state)",
        ),
        (
            include_str!("data/dumps/xen-2020-lbr-msr.txt"),
            "entry 2 of the VM-entry MSR-load area: MSR 0x1dd, value 0x1ffff80676f52be5, which is \
             not canonical",
        ),
        (
            include_str!("data/dumps/xen-2019-nested-error-code.txt"),
            "VM-instruction error 7: VM entry with invalid control field(s)",
        ),
        (
            include_str!("data/dumps/linux-2020-rflags-clobbered.txt"),
            "VM entry did not fail: VM-instruction error 0, and the last VM exit has reason 48",
        ),
    ];
    for (text, expected) in recorded {
        let said = examine(&dump::find(text)[0], None).recorded();
        assert!(
            said.as_ref().is_some_and(|said| said.contains(expected)),
            "{said:?}"
        );
    }
    let healthy = include_str!("data/dumps/healthy-linux-6.txt");
    assert_eq!(examine(&dump::find(healthy)[0], None).recorded(), None);
}

#[test]
fn qemus_line_belongs_to_the_dump_before_it() {
    let text = "*** Guest State ***\nRFLAGS=0x00000002 DR7 = 0x400\n\
                KVM: entry failed, hardware error 0x8\n\
                *** Guest State ***\nRFLAGS=0x00000002 DR7 = 0x400\n";
    let dumps = dump::find(text);
    let errors: Vec<_> = dumps
        .iter()
        .map(|dump| dump.fields.get(&Field::VM_INSTRUCTION_ERROR).copied())
        .collect();
    assert_eq!(errors, [Some(8), None]);
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
    let from_log = dump::find(include_str!("data/dumps/linux-2023-tr-if.txt")).remove(0);
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
