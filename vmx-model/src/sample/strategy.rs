//! Near-valid VMCSs for proptest (feature `proptest`).

use std::ops::RangeInclusive;
use std::sync::Arc;

use proptest::strategy::{NewTree, Strategy, ValueTree};
use proptest::test_runner::TestRunner;

use super::near_valid::{NearValid, Surroundings, generate};
use crate::random::Random;

/// Returns a strategy for valid VMCSs of which some checks are broken: how many is in `broken`.
///
/// A value shrinks to fewer fields that differ from the sample.
///
/// # Examples
/// ```
/// use std::sync::Arc;
/// use proptest::prelude::*;
/// use vmx_model::capability::VmxProfile;
/// use vmx_model::sample::near_valid::Surroundings;
/// use vmx_model::sample::strategy::near_valid;
///
/// let around = Arc::new(Surroundings::new(VmxProfile::emulator_default()));
/// proptest!(|(near in near_valid(Arc::clone(&around), 0..=2))| {
///     let mut vmcs = near.vmcs(&around.profile);
///     let first = vmcs.first_failure(around.environment());
///     prop_assert_eq!(first, around.diagnose(&vmcs).first().map(|failure| failure.check));
/// });
/// ```
#[must_use]
pub const fn near_valid(
    around: Arc<Surroundings>,
    broken: RangeInclusive<usize>,
) -> NearValidStrategy {
    NearValidStrategy { around, broken }
}

/// See [`near_valid`].
#[derive(Clone, Debug)]
pub struct NearValidStrategy {
    around: Arc<Surroundings>,
    broken: RangeInclusive<usize>,
}

impl Strategy for NearValidStrategy {
    type Tree = NearValidTree;
    type Value = NearValid;

    fn new_tree(&self, runner: &mut TestRunner) -> NewTree<Self> {
        let seed = proptest::num::u64::ANY.new_tree(runner)?.current();
        let (least, most) = (*self.broken.start(), *self.broken.end());
        let choices = (most.saturating_sub(least) as u64).saturating_add(1);
        let broken = least + Random::new(!seed).below(choices) as usize;
        Ok(NearValidTree {
            current: generate(&self.around, seed, broken),
            next: 0,
            taken: None,
        })
    }
}

/// See [`NearValidStrategy`]: takes the changes back, one after the other.
#[derive(Clone, Debug)]
pub struct NearValidTree {
    current: NearValid,
    /// The change that is to be taken back next.
    next: usize,
    /// What there was before the last one was taken back.
    taken: Option<NearValid>,
}

impl ValueTree for NearValidTree {
    type Value = NearValid;

    fn current(&self) -> NearValid {
        self.current.clone()
    }

    fn simplify(&mut self) -> bool {
        if self.next >= self.current.changes.len() {
            return false;
        }
        self.taken = Some(self.current.clone());
        self.current.changes.remove(self.next);
        true
    }

    fn complicate(&mut self) -> bool {
        let Some(before) = self.taken.take() else {
            return false;
        };
        self.current = before;
        self.next += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capability::VmxProfile;
    use crate::field::Field;
    use proptest::test_runner::TestError;

    #[test]
    fn a_failing_value_shrinks_to_the_changes_that_matter() {
        let around = Arc::new(Surroundings::new(VmxProfile::emulator_default()));
        let changes_pin = |near: &NearValid| {
            let mut fields = near.changes.iter().map(|(field, _)| *field);
            fields.any(|field| field == Field::PIN_CONTROLS)
        };
        let strategy = near_valid(around, 1..=3);
        let result = TestRunner::deterministic().run(&strategy, |near| {
            proptest::prop_assert!(!changes_pin(&near));
            Ok(())
        });
        let Err(TestError::Fail(_, least)) = result else {
            panic!("nothing changed the pin-based controls: {result:?}");
        };
        assert_eq!(least.changes.len(), 1, "{least:?}");
    }
}
