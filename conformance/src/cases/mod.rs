//! The cases: guests as rows of tables, and scripts of ioctls.

mod bochs;
mod guests;
mod ioctls;

use crate::backend::Backend;
use crate::backend::dry::DryBackend;
use crate::guest::Guest;
use crate::hypervisor::Hypervisor;
use crate::probe::{Probe, Record};

/// What is run at once, in a VM or several of its own: one guest, or one script with many results.
pub struct Unit {
    /// `group.case` of a guest, or the group of a script (`group/part` if it has several).
    pub name: String,
    play: Play,
}

enum Play {
    Guest(Box<Guest>),
    Hypervisor(Box<Hypervisor>),
    Script(Script),
}

/// A script of calls that notes results by name.
pub type Script = fn(&mut Probe<'_>);

impl Unit {
    fn guest(group: &str, guest: Guest) -> Unit {
        Unit {
            name: format!("{group}.{}", guest.id),
            play: Play::Guest(Box::new(guest)),
        }
    }

    fn hypervisor(group: &str, hypervisor: Hypervisor) -> Unit {
        Unit {
            name: format!("{group}.{}", hypervisor.id),
            play: Play::Hypervisor(Box::new(hypervisor)),
        }
    }

    fn script(group: &str, script: Script) -> Unit {
        Unit {
            name: group.to_owned(),
            play: Play::Script(script),
        }
    }

    /// Runs on a backend; `note` hears each result at once.
    pub fn play(&self, backend: &mut dyn Backend, note: &mut dyn FnMut(&Record)) {
        backend.reset();
        let group = self.name.split('/').next().unwrap_or(&self.name);
        let mut probe = Probe::new(backend, group, note);
        match &self.play {
            Play::Guest(guest) => guest.play(&mut probe),
            Play::Hypervisor(hypervisor) => hypervisor.play(&mut probe),
            Play::Script(script) => script(&mut probe),
        }
        backend.reset();
    }

    /// The results that it has, with what they want.
    #[must_use]
    pub fn results(&self) -> Vec<Record> {
        let mut records = Vec::new();
        self.play(&mut DryBackend, &mut |record| records.push(record.clone()));
        records
    }

    /// Whether it executes guest code through the guest framework, or a hypervisor's.
    #[must_use]
    pub fn is_guest(&self) -> bool {
        matches!(self.play, Play::Guest(_) | Play::Hypervisor(_))
    }

    /// Whether it needs a bare machine with VMX, which a KVM has not to give.
    #[must_use]
    pub fn needs_bare_machine(&self) -> bool {
        matches!(self.play, Play::Hypervisor(_))
    }
}

/// All units, in the order of the reports.
#[must_use]
pub fn units() -> Vec<Unit> {
    let guests = guests::GROUPS.iter().flat_map(|(group, rows)| {
        rows()
            .into_iter()
            .map(|guest| Unit::guest(group, guest))
            .collect::<Vec<_>>()
    });
    let scripts = ioctls::GROUPS
        .iter()
        .chain(guests::SCRIPTS.iter().copied().flatten());
    let hypervisors = bochs::rows()
        .into_iter()
        .map(|hypervisor| Unit::hypervisor("bochs", hypervisor));
    guests
        .chain(hypervisors)
        .chain(scripts.map(|(group, script)| Unit::script(group, *script)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_code_of_every_guest_can_be_encoded() {
        let broken: Vec<String> = units()
            .into_iter()
            .filter_map(|unit| match unit.play {
                Play::Guest(guest) => guest.encoded().err().map(|e| format!("{}: {e}", unit.name)),
                Play::Hypervisor(hypervisor) => {
                    let image = hypervisor.image().err();
                    image.map(|e| format!("{}: {e}", unit.name))
                }
                Play::Script(_) => None,
            })
            .collect();
        assert!(broken.is_empty(), "{broken:#?}");
    }

    #[test]
    fn no_two_results_have_one_name() {
        let mut seen = BTreeSet::new();
        for record in units().iter().flat_map(Unit::results) {
            assert!(seen.insert(record.id.clone()), "{} twice", record.id);
        }
    }

    #[test]
    fn there_are_as_many_cases_as_promised() {
        let units = units();
        assert!(units.iter().map(|unit| unit.results().len()).sum::<usize>() >= 900);
        assert!(units.iter().filter(|unit| unit.is_guest()).count() >= 300);
    }
}
