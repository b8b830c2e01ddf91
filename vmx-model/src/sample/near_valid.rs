//! Near-valid VMCSs: valid ones of which a few conditions are broken.
//!
//! A VMCS of random values hardly ever gets beyond the reserved bits of its first control field. A
//! near-valid one reaches every check: [`generate`] begins with a VMCS of [`super::valid_vmcs`],
//! changes it at random in ways that leave it valid, and then breaks some checks, each by changing
//! fields that the check reads. It needs nothing but a seed; the module `strategy` (feature
//! `proptest`) makes the same for property tests, and shrinks.

use super::{Guest, root_state, valid_vmcs};
use crate::addr::Hpa;
use crate::arch::ArchState;
use crate::capability::VmxProfile;
use crate::checks::{self, Check, EntryEnvironment, Failure, FullView};
use crate::field::{Field, Kind};
use crate::memory::PhysicalMemory;
use crate::random::Random;
use crate::vmcs::Vmcs;

/// The VMCS that is entered, the VMXON region, and two regions that a VMCS link pointer may name:
/// an ordinary VMCS and a shadow VMCS.
pub const CURRENT_VMCS: Hpa = Hpa(0x2000);
/// See [`CURRENT_VMCS`].
pub const VMXON_POINTER: Hpa = Hpa(0x3000);
/// See [`CURRENT_VMCS`].
pub const OTHER_VMCS: Hpa = Hpa(0x4000);
/// See [`CURRENT_VMCS`].
pub const SHADOW_VMCS: Hpa = Hpa(0x6000);

/// How many changes are tried that are to leave a VMCS valid, at most.
const VARIATIONS: u64 = 24;
/// How many changes are tried to break a check.
const TRIES: usize = 24;

/// A processor in VMX root operation, and memory that holds VMCS regions and else zeroes;
/// stores elsewhere are dropped.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// The processor.
    pub profile: VmxProfile,
    /// Its state.
    pub state: ArchState,
    /// Its memory.
    pub memory: Regions,
}

/// Memory of zeroes but for some regions, each a page.
#[derive(Clone, Debug)]
pub struct Regions(Vec<(Hpa, Vec<u8>)>);

impl Regions {
    fn new(revisions: [(Hpa, u32); 4]) -> Self {
        let pages = revisions.into_iter().map(|(region, revision)| {
            let mut page = vec![0; 0x1000];
            page[..4].copy_from_slice(&revision.to_le_bytes());
            (region, page)
        });
        Self(pages.collect())
    }
}

impl PhysicalMemory for Regions {
    fn read(&self, address: Hpa, bytes: &mut [u8]) {
        for (n, byte) in (0..).zip(bytes) {
            let at = address.offset(n);
            let page = self.0.iter().find(|(region, _)| *region == at.page());
            *byte = page.map_or(0, |(_, page)| page[at.page_offset() as usize]);
        }
    }

    fn write(&mut self, address: Hpa, bytes: &[u8]) {
        for (n, byte) in (0..).zip(bytes) {
            let at = address.offset(n);
            if let Some((_, page)) = self.0.iter_mut().find(|(region, _)| *region == at.page()) {
                page[at.page_offset() as usize] = *byte;
            }
        }
    }
}

impl Surroundings {
    /// Returns the surroundings for a processor.
    #[must_use]
    pub fn new(profile: VmxProfile) -> Self {
        let revision = profile.caps.revision_id();
        Self {
            state: root_state(&profile),
            memory: Regions::new([
                (CURRENT_VMCS, revision),
                (VMXON_POINTER, revision),
                (OTHER_VMCS, revision),
                (SHADOW_VMCS, revision | 1 << 31),
            ]),
            profile,
        }
    }

    /// Returns them as VM entry sees them.
    #[must_use]
    pub fn environment(&self) -> EntryEnvironment<'_> {
        EntryEnvironment {
            profile: &self.profile,
            state: &self.state,
            current_vmcs: CURRENT_VMCS,
            memory: &self.memory,
        }
    }

    /// Returns all checks that do not hold.
    #[must_use]
    pub fn diagnose(&self, vmcs: &Vmcs) -> Vec<Failure> {
        checks::diagnose(&FullView::new(vmcs, self.environment()))
    }

    fn breaks(&self, vmcs: &Vmcs, check: &Check) -> bool {
        check.is_broken(&FullView::new(vmcs, self.environment()))
    }
}

/// How a VMCS differs from a sample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NearValid {
    /// The sample.
    pub guest: Guest,
    /// Fields that have another value.
    pub changes: Vec<(Field, u64)>,
    /// The checks that were broken on purpose.
    pub broken: Vec<&'static str>,
}

impl NearValid {
    /// Returns the VMCS, for the profile that it was generated for.
    #[must_use]
    pub fn vmcs(&self, profile: &VmxProfile) -> Vmcs {
        let mut vmcs = valid_vmcs(profile, self.guest);
        for (field, value) in &self.changes {
            vmcs.set(*field, *value);
        }
        vmcs
    }
}

/// Returns a valid VMCS of which this many checks are broken, or fewer where none of some tries
/// broke one.
#[must_use]
pub fn generate(surroundings: &Surroundings, seed: u64, broken: usize) -> NearValid {
    let mut random = Random::new(seed);
    let profile = &surroundings.profile;
    let possible = Guest::ALL.into_iter().filter(|g| g.is_possible(profile));
    let guest = random.pick(&possible.collect::<Vec<_>>());
    let checks: Vec<&'static Check> = checks::all().collect();
    let mut vmcs = valid_vmcs(profile, guest);
    let sample = vmcs.clone();
    for _ in 0..random.below(VARIATIONS) {
        vary(surroundings, &mut random, &checks, &mut vmcs);
    }
    let mut names = Vec::new();
    for _ in 0..broken {
        let check = random.pick(&checks);
        if break_check(surroundings, &mut random, check, &mut vmcs) {
            names.push(check.id);
        }
    }
    // One that was broken later may have mended it.
    names.retain(|id| checks::by_id(id).is_some_and(|c| surroundings.breaks(&vmcs, c)));
    let changes = vmcs.differences(&sample);
    NearValid {
        guest,
        changes: changes.map(|field| (field, vmcs.get(field))).collect(),
        broken: names,
    }
}

/// Changes the VMCS if that leaves it valid.
fn vary(around: &Surroundings, random: &mut Random, checks: &[&'static Check], vmcs: &mut Vmcs) {
    let mut changed = vmcs.clone();
    let check = random.pick(checks);
    change(random, check, &mut changed);
    if changed.first_failure(around.environment()).is_none() {
        *vmcs = changed;
    }
}

/// Changes fields that a check reads until it does not hold; returns whether it does not.
fn break_check(around: &Surroundings, random: &mut Random, check: &Check, vmcs: &mut Vmcs) -> bool {
    for _ in 0..TRIES {
        let mut changed = vmcs.clone();
        for _ in 0..=random.below(3) {
            change(random, check, &mut changed);
        }
        if around.breaks(&changed, check) {
            *vmcs = changed;
            return true;
        }
    }
    around.breaks(vmcs, check)
}

/// Gives one of the fields that a check reads another value.
fn change(random: &mut Random, check: &Check, vmcs: &mut Vmcs) {
    if check.inputs.is_empty() {
        return;
    }
    let field = random.pick(check.inputs);
    let value = other_value(random, field, vmcs);
    vmcs.set(field, value);
}

/// Values at the borders of what checks ask for.
const BORDERS: [u64; 16] = [
    0,
    1,
    2,
    3,
    7,
    8,
    0xff,
    0xfff,
    0x1000,
    OTHER_VMCS.0,
    SHADOW_VMCS.0,
    0x1_0000,
    1 << 46,
    0x8000_0000,
    1 << 63,
    u64::MAX,
];

fn other_value(random: &mut Random, field: Field, vmcs: &Vmcs) -> u64 {
    let old = vmcs.get(field);
    if field == Field::VM_ENTRY_INTERRUPTION_INFORMATION && !random.is_one_in(4) {
        // A valid bit, a type, a vector, and sometimes an error code.
        let error_code = u64::from(random.is_one_in(3)) << 11;
        return 1 << 31 | error_code | random.below(8) << 8 | random.below(34);
    }
    match random.below(8) {
        0..4 => old ^ 1 << random.below(field.value_mask().count_ones().into()),
        4 | 5 => random.pick(&BORDERS),
        6 => vmcs.get(random.pick(&Field::ALL)),
        _ => random.next(),
    }
}

/// Returns a VMCS every field of which has a random value.
#[must_use]
pub fn uniform(seed: u64) -> Vmcs {
    let mut random = Random::new(seed);
    let mut vmcs = Vmcs::new();
    for field in Field::ALL {
        let value = random.next();
        if field.kind() != Kind::ReadOnly {
            vmcs.set(field, value);
        }
    }
    vmcs
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn what_is_not_broken_is_valid() {
        for profile in VmxProfile::all() {
            let around = Surroundings::new(profile);
            for seed in 0..200 {
                let vmcs = generate(&around, seed, 0).vmcs(&around.profile);
                assert_eq!(around.diagnose(&vmcs), [], "{} {seed}", around.profile.name);
            }
        }
    }

    #[test]
    fn broken_checks_are_among_those_that_do_not_hold() {
        let around = Surroundings::new(VmxProfile::everything());
        let mut reached = BTreeSet::new();
        for seed in 0..6000 {
            let near = generate(&around, seed, 2);
            let failures = around.diagnose(&near.vmcs(&around.profile));
            for id in &near.broken {
                assert!(failures.iter().any(|f| f.check.id == *id), "{id} {seed}");
                reached.insert(*id);
            }
        }
        // Of 284; the rest asks for another state of the processor.
        assert!(reached.len() >= 240, "{}", reached.len());
    }

    #[test]
    fn the_same_seed_gives_the_same_vmcs() {
        let around = Surroundings::new(VmxProfile::emulator_default());
        assert_eq!(generate(&around, 7, 2), generate(&around, 7, 2));
        assert_ne!(generate(&around, 7, 2), generate(&around, 8, 2));
    }

    #[test]
    fn a_vmcs_of_random_values_is_never_valid() {
        let around = Surroundings::new(VmxProfile::emulator_default());
        let failure = |seed| uniform(seed).first_failure(around.environment());
        assert!((0..100).all(|seed| failure(seed).is_some()));
    }
}
