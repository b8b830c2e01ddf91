//! Guest-physical mappings: what EPT walks found (SDM Vol. 3C, "Information That May Be Cached").
//!
//! A page walk of a guest asks EPT once for each paging structure and once for the page. This cache
//! answers most of that: it is flushed by INVEPT and with the TLB, but not by what concerns linear
//! addresses only.

use vmx_model::addr::{Gpa, Hpa};

use super::ept::EptInUse;
use crate::mem::walk::{Allowed, Physical};

/// Number of entries for each of the two uses.
const ENTRIES: usize = 128;

/// What an address is used for: each use has entries of its own, so that the many pages of data do
/// not replace the few paging structures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum MappingUse {
    /// A paging structure of the guest.
    PagingStructure = 0,
    /// Data or code, at a supervisor-mode linear address.
    SupervisorPage = 1,
    /// Data or code, at a user-mode linear address.
    UserPage = 2,
    /// A shadow stack, at a supervisor-mode linear address.
    SupervisorShadowStack = 3,
}

/// What a mapping depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    eptp: u64,
    page: u64,
    used_for: MappingUse,
    has_mode_based_execute: bool,
    epoch: u32,
}

impl Key {
    fn new(ept: &EptInUse, gpa: Gpa, used_for: MappingUse, epoch: u32) -> Self {
        Self {
            eptp: ept.eptp.0,
            page: gpa.0 & !0xfff,
            used_for,
            has_mode_based_execute: ept.rules.has_mode_based_execute,
            epoch,
        }
    }

    fn slot(&self) -> usize {
        let half = usize::from(self.used_for != MappingUse::PagingStructure);
        half * ENTRIES + ((self.page >> 12) as usize & (ENTRIES - 1))
    }
}

/// The mappings that a processor remembers.
#[derive(Debug)]
pub(crate) struct GuestPhysicalMappings {
    entries: Box<[Option<(Key, Physical)>; 2 * ENTRIES]>,
    is_empty: bool,
    /// Moves when the mappings of data and code are forgotten.
    epoch: u32,
}

impl Default for GuestPhysicalMappings {
    fn default() -> Self {
        Self {
            entries: Box::new([None; 2 * ENTRIES]),
            is_empty: true,
            epoch: 1,
        }
    }
}

impl GuestPhysicalMappings {
    /// Returns where `gpa` is, if it is known that EPT permits `needed` there and has set the flags
    /// that such an access sets.
    #[inline]
    pub(crate) fn find(
        &self,
        ept: &EptInUse,
        gpa: Gpa,
        used_for: MappingUse,
        needed: Allowed,
    ) -> Option<Physical> {
        let key = Key::new(ept, gpa, used_for, self.epoch_of(used_for));
        let (found, mapping) = self.entries[key.slot()]?;
        let is_hit = found == key && mapping.allowed.contains(needed);
        is_hit.then_some(Physical {
            address: Hpa(mapping.address.0 | gpa.0 & 0xfff),
            ..mapping
        })
    }

    /// Remembers what a walk for `gpa` found.
    pub(crate) fn enter(
        &mut self,
        ept: &EptInUse,
        gpa: Gpa,
        used_for: MappingUse,
        found: &Physical,
    ) {
        let key = Key::new(ept, gpa, used_for, self.epoch_of(used_for));
        let page = Physical {
            address: found.address.page(),
            ..*found
        };
        self.entries[key.slot()] = Some((key, page));
        self.is_empty = false;
    }

    fn epoch_of(&self, used_for: MappingUse) -> u32 {
        match used_for {
            MappingUse::PagingStructure => 0,
            MappingUse::SupervisorPage
            | MappingUse::UserPage
            | MappingUse::SupervisorShadowStack => self.epoch,
        }
    }

    /// Forgets the mappings of data and code, with the combined mappings that are made of them.
    ///
    /// Choice: they might be kept; but software that changes the last EPT entry of a page, such as
    /// its dirty flag, between an exit and an entry without a VPID sees processors obey it.
    pub(crate) fn flush_pages(&mut self) {
        self.epoch = self.epoch.wrapping_add(1).max(1);
    }

    /// Forgets all mappings.
    pub(crate) fn flush(&mut self) {
        if !self.is_empty {
            self.entries.fill(None);
            self.is_empty = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmx_model::capability::EptVpidCap;
    use vmx_model::ept::{EptRules, Eptp};

    fn ept(eptp: u64, has_mode_based_execute: bool) -> EptInUse {
        EptInUse {
            eptp: Eptp(eptp),
            rules: EptRules {
                cap: EptVpidCap::all(),
                physical_address_bits: 46,
                has_mode_based_execute,
            },
        }
    }

    const GPA: Gpa = Gpa(0x1234);
    const USE: MappingUse = MappingUse::SupervisorPage;

    fn known() -> GuestPhysicalMappings {
        let mut mappings = GuestPhysicalMappings::default();
        let found = Physical {
            address: Hpa(0x7234),
            allowed: Allowed::READ,
        };
        mappings.enter(&ept(0x101e, false), GPA, USE, &found);
        mappings
    }

    #[test]
    fn a_mapping_is_found_for_other_bytes_of_its_page() {
        let found = known().find(&ept(0x101e, false), Gpa(0x1fff), USE, Allowed::READ);
        assert_eq!(found.map(|f| f.address), Some(Hpa(0x7fff)));
    }

    #[test]
    fn a_mapping_is_not_found_for_what_it_was_not_walked_for() {
        let mappings = known();
        let now = ept(0x101e, false);
        for (ept, gpa, used_for, needed) in [
            (now, GPA, USE, Allowed::WRITE),
            (now, GPA, MappingUse::UserPage, Allowed::READ),
            (now, GPA, MappingUse::PagingStructure, Allowed::READ),
            (now, Gpa(GPA.0 + (128 << 12)), USE, Allowed::READ),
            (ept(0x201e, false), GPA, USE, Allowed::READ),
            (ept(0x105e, false), GPA, USE, Allowed::READ),
            (ept(0x101e, true), GPA, USE, Allowed::READ),
        ] {
            assert_eq!(mappings.find(&ept, gpa, used_for, needed), None);
        }
    }

    #[test]
    fn a_flush_of_pages_keeps_paging_structures() {
        let mut mappings = known();
        let now = ept(0x101e, false);
        let found = Physical {
            address: Hpa(0x9000),
            allowed: Allowed::READ,
        };
        let structure = MappingUse::PagingStructure;
        mappings.enter(&now, GPA, structure, &found);
        mappings.flush_pages();
        assert_eq!(mappings.find(&now, GPA, USE, Allowed::READ), None);
        assert!(mappings.find(&now, GPA, structure, Allowed::READ).is_some());
    }

    #[test]
    fn a_flush_forgets() {
        let mut mappings = known();
        mappings.flush();
        let now = ept(0x101e, false);
        assert_eq!(mappings.find(&now, GPA, USE, Allowed::READ), None);
    }
}
