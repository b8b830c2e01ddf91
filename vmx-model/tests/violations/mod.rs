//! For every check of VM entry a VMCS that breaks it and no other, from `data/violations.toml`.
//!
//! Shared with the tests of `x86-interp`, which execute VMLAUNCH with these VMCSs.

#![expect(clippy::unwrap_used, reason = "a failure is the test's failure")]

use std::collections::BTreeMap;

use serde::Deserialize;
use vmx_model::arch::{ArchState, Efer};
use vmx_model::capability::{VmxCapabilities, VmxProfile, msr};
use vmx_model::field::Field;
use vmx_model::sample::{Guest, root_state, valid_vmcs};
use vmx_model::vmcs::Vmcs;

/// A way to break one check.
#[derive(Deserialize)]
pub(crate) struct Violation {
    /// The check.
    pub(crate) check: String,
    /// What the VMCS and the processor are before.
    base: String,
    /// A processor or a state of it that the check needs.
    pub(crate) environment: Option<String>,
    /// Whether no VMCS breaks this check alone.
    #[serde(default)]
    pub(crate) with_others: bool,
    set: Vec<(String, String)>,
}

/// A processor in VMX root operation, and a VMCS.
pub(crate) struct Setting {
    pub(crate) profile: VmxProfile,
    pub(crate) state: ArchState,
    pub(crate) vmcs: Vmcs,
}

impl Violation {
    /// Returns the guest that it starts from, and whether the profile is its own.
    pub(crate) fn guest(&self) -> (Guest, bool) {
        let guest = match &*self.base {
            "protected" | "host32" => Guest::Protected,
            "pae" => Guest::Pae,
            "v86" => Guest::Virtual8086,
            "real" => Guest::Real,
            "unrestricted" => Guest::Unpaged,
            _ => Guest::Long,
        };
        let changes_msrs = ["no-ept-options", "smm-controls"];
        let environment = self.environment.as_deref();
        let is_own = environment.is_some_and(|name| changes_msrs.contains(&name))
            || matches!(&*self.base, "minimal" | "default" | "tertiary");
        (guest, is_own)
    }

    /// Breaks the check.
    pub(crate) fn apply(&self, vmcs: &mut Vmcs) {
        for (id, change) in &self.set {
            apply(vmcs, Field::from_id(id).unwrap(), change);
        }
    }
}

#[derive(Deserialize)]
struct Violations {
    violation: Vec<Violation>,
}

fn number(text: &str) -> u64 {
    u64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap()
}

/// Applies `value`, `|bits` or `^bits` to a field.
fn apply(vmcs: &mut Vmcs, field: Field, change: &str) {
    let old = vmcs.get(field);
    let value = match change.split_at(1) {
        ("|", bits) => old | number(bits),
        ("^", bits) => old ^ number(bits),
        _ => number(change),
    };
    vmcs.set(field, value);
}

fn apply_all(vmcs: &mut Vmcs, changes: &[(&str, &str)]) {
    for (id, change) in changes {
        apply(vmcs, Field::from_id(id).unwrap(), change);
    }
}

/// Returns what a violation starts from.
pub(crate) fn base(violation: &Violation) -> Setting {
    let profile = match &*violation.base {
        "minimal" => VmxProfile::minimal(),
        "default" => VmxProfile::emulator_default(),
        _ => VmxProfile::everything(),
    };
    base_on(violation, profile)
}

/// As [`base`], with a profile that has what the base needs.
pub(crate) fn base_on(violation: &Violation, mut profile: VmxProfile) -> Setting {
    let mut state = root_state(&profile);
    let mut vmcs = valid_vmcs(&profile, violation.guest().0);
    let ept = [
        ("secondary-proc-controls", "|0x82"),
        ("ept-pointer", "0x1e"),
    ];
    match &*violation.base {
        "user" => apply_all(
            &mut vmcs,
            &[
                ("guest-cs-selector", "0x0b"),
                ("guest-cs-access-rights", "0xa0fb"),
                ("guest-ss-selector", "0x13"),
                ("guest-ss-access-rights", "0xc0f3"),
            ],
        ),
        "unrestricted-long" => apply_all(&mut vmcs, &ept),
        "pae" => {
            apply_all(
                &mut vmcs,
                &[("secondary-proc-controls", "|0x2"), ("ept-pointer", "0x1e")],
            );
        }
        "host32" => {
            state.efer = Efer::empty();
            apply_all(
                &mut vmcs,
                &[("exit-controls", "^0x200"), ("host-ia32-efer", "0x0")],
            );
        }
        "tertiary" => apply_all(&mut vmcs, &[("proc-controls", "|0x20000")]),
        "long" | "minimal" | "default" | "protected" | "v86" | "real" | "unrestricted" => {}
        other => panic!("no base {other}"),
    }
    match violation.environment.as_deref() {
        Some("no-ept-options") => profile = with_msrs(&[(0x48c, 0x0f01_0613_41c1)]),
        Some("smm-controls") => profile = with_msrs(&[(0x490, 0x0050_ffff_0000_11fb)]),
        Some("legacy-processor") => state.efer = Efer::empty(),
        Some("long-processor") => state.efer = Efer::LMA | Efer::LME,
        Some(other) => panic!("no environment {other}"),
        None => {}
    }
    if violation.base == "tertiary" {
        profile = with_msrs(&[(0x48e, 0xfffb_fffe_0400_6172), (0x492, 0x1)]);
    }
    Setting {
        profile,
        state,
        vmcs,
    }
}

/// Returns the profile `everything` with some capability MSRs changed.
fn with_msrs(changed: &[(u32, u64)]) -> VmxProfile {
    let everything = VmxProfile::everything();
    let mut values: BTreeMap<u32, u64> = (msr::IA32_VMX_BASIC..=msr::IA32_VMX_EXIT_CTLS2)
        .filter_map(|index| Some((index, everything.caps.msr(index)?)))
        .collect();
    values.extend(changed.iter().copied());
    let values: Vec<(u32, u64)> = values.into_iter().collect();
    VmxProfile::new("changed", VmxCapabilities::new(&values), everything.facts)
}

/// Returns the violations, in the order of the checks.
pub(crate) fn violations() -> Vec<Violation> {
    toml::from_str::<Violations>(include_str!("../data/violations.toml"))
        .unwrap()
        .violation
}
