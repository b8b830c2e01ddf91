//! A walk of the EPT paging structures, an entry at a time.

use super::{
    ACCESSED, Access, DIRTY, EptRules, Eptp, Judgement, Level, Page, Permissions,
    SUPERVISOR_SHADOW_STACK, SUPPRESS_VE, Violation, index, judge,
};
use crate::addr::{Gpa, Hpa};

/// A translation on its way: the caller reads the entry at [`Walk::entry_address`] and gives it to
/// [`Walk::step`], until the walk has ended.
///
/// # Examples
/// ```
/// # use vmx_model::addr::{Gpa, Hpa};
/// # use vmx_model::capability::EptVpidCap;
/// # use vmx_model::ept::{Access, EptRules, Eptp};
/// # use vmx_model::ept::walk::{Step, Walk};
/// # let rules = EptRules {
/// #     cap: EptVpidCap::all(),
/// #     physical_address_bits: 46,
/// #     has_mode_based_execute: false,
/// # };
/// # let read = |at: Hpa| if at.0 < 0x4000 { at.0 + 0x1007 & !0xff8 } else { 0x7037 };
/// let mut walk = Walk::new(Eptp(0x101e), Gpa(0), Access::Write, false).expect("within 48 bits");
/// let translated = loop {
///     match walk.step(read(walk.entry_address()), &rules) {
///         Step::Next => {}
///         Step::Done(translated) => break translated,
///         other => panic!("{other:?}"),
///     }
/// };
/// assert_eq!(translated.address(Gpa(0x123)), Hpa(0x7123));
/// ```
#[derive(Clone, Debug)]
pub struct Walk {
    eptp: Eptp,
    gpa: Gpa,
    access: Access,
    is_user: bool,
    /// The access is one to a supervisor shadow stack, under supervisor shadow-stack control.
    is_to_shadow_stack: bool,
    level: Level,
    table: Hpa,
    permissions: Permissions,
    updates: [Update; 5],
    count: usize,
}

/// A change that a walk makes to an entry: flags to be set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Update {
    /// Where the entry is.
    pub entry: Hpa,
    /// What was read there.
    pub old: u64,
    /// What it becomes.
    pub new: u64,
}

/// What came of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Step {
    /// The walk goes on with the next entry.
    Next,
    /// The address is translated, and the access permitted.
    Done(Translation),
    /// An EPT violation.
    Violation(Violation),
    /// An EPT misconfiguration.
    Misconfiguration,
}

/// The result of a walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The page.
    pub page: Page,
    /// The AND of what the entries permit.
    pub permissions: Permissions,
    /// Whether the dirty flag of the page is set, or becomes set; false where EPT has no flags.
    pub is_dirty: bool,
    /// Whether the walk sets the dirty flag: with page-modification logging, the access is logged
    /// before the flags are set.
    pub sets_dirty: bool,
    updates: [Update; 5],
    count: usize,
}

impl Translation {
    /// Returns the host-physical address of a guest-physical address in the page.
    #[must_use]
    pub const fn address(&self, gpa: Gpa) -> Hpa {
        Hpa(self.page.address.0 | gpa.0 & ((1 << self.page.shift) - 1))
    }

    /// Returns the entries of which the walk sets accessed or dirty flags.
    #[must_use]
    pub fn updates(&self) -> &[Update] {
        &self.updates[..self.count]
    }
}

impl Walk {
    /// Returns the walk for an access to `gpa`; `is_user` says whether it is by a user-mode linear
    /// address, which counts with mode-based execute control.
    ///
    /// # Errors
    /// An EPT violation if the address is wider than the walk translates, 48 or 57 bits.
    pub const fn new(
        eptp: Eptp,
        gpa: Gpa,
        access: Access,
        is_user: bool,
    ) -> Result<Self, Violation> {
        let level = eptp.first_level();
        if gpa.0 >> (12 + 9 * level as u32) != 0 {
            let permissions = Permissions::NONE;
            return Err(Violation {
                access,
                permissions,
                is_convertible: false,
                is_supervisor_shadow_stack_page: false,
            });
        }
        Ok(Self {
            eptp,
            gpa,
            access,
            is_user,
            is_to_shadow_stack: false,
            level,
            table: eptp.table(),
            permissions: Permissions::ALL,
            updates: [Update {
                entry: Hpa(0),
                old: 0,
                new: 0,
            }; 5],
            count: 0,
        })
    }

    /// Returns the walk for a supervisor shadow-stack access.
    #[must_use]
    pub const fn to_supervisor_shadow_stack(mut self) -> Self {
        self.is_to_shadow_stack = self.eptp.has_supervisor_shadow_stack_control();
        self
    }

    /// Returns where the next entry is.
    #[must_use]
    pub const fn entry_address(&self) -> Hpa {
        self.table.offset(8 * index(self.gpa, self.level))
    }

    /// Returns the level of the next entry.
    #[must_use]
    pub const fn level(&self) -> Level {
        self.level
    }

    /// Takes the next entry.
    pub fn step(&mut self, entry: u64, rules: &EptRules) -> Step {
        let judgement = judge(entry, self.level, rules);
        if judgement == Judgement::Misconfigured {
            return Step::Misconfiguration;
        }
        let before = self.permissions;
        self.permissions = before.and(entry);
        match judgement {
            Judgement::Table(table) => {
                self.note(entry, ACCESSED);
                self.table = table;
                self.level -= 1;
                Step::Next
            }
            Judgement::Page(page) if self.permits(before, entry, rules) => {
                Step::Done(self.finish(entry, page))
            }
            _ => Step::Violation(Violation {
                access: self.access,
                permissions: self.permissions,
                is_convertible: entry & SUPPRESS_VE == 0,
                is_supervisor_shadow_stack_page: matches!(judgement, Judgement::Page(_))
                    && self.eptp.has_supervisor_shadow_stack_control()
                    && entry & SUPERVISOR_SHADOW_STACK != 0,
            }),
        }
    }

    /// Whether the access is permitted by `entry`, which maps the page, and by those before it.
    ///
    /// SDM Vol. 3C, "EPT Violations": under supervisor shadow-stack control a supervisor
    /// shadow-stack access needs bit 60 of the entry that maps the page, and not its bit 1.
    const fn permits(&self, before: Permissions, entry: u64, rules: &EptRules) -> bool {
        if self.is_to_shadow_stack {
            before.can_write()
                && self.permissions.can_read()
                && entry & SUPERVISOR_SHADOW_STACK != 0
        } else {
            self.permissions.allow(rules, self.access, self.is_user)
        }
    }

    fn finish(&mut self, entry: u64, page: Page) -> Translation {
        let dirty = if self.access.writes() { DIRTY } else { 0 };
        self.note(entry, ACCESSED | dirty);
        let has_flags = self.eptp.has_accessed_dirty();
        Translation {
            page,
            permissions: self.permissions,
            is_dirty: has_flags && (entry | dirty) & DIRTY != 0,
            sets_dirty: has_flags && dirty & !entry != 0,
            updates: self.updates,
            count: self.count,
        }
    }

    /// Notes that `flags` are to be set in the entry, where EPT has such flags and they are not.
    fn note(&mut self, entry: u64, flags: u64) {
        if self.eptp.has_accessed_dirty() && entry & flags != flags {
            let update = Update {
                entry: self.entry_address(),
                old: entry,
                new: entry | flags,
            };
            if let Some(slot) = self.updates.get_mut(self.count) {
                *slot = update;
                self.count += 1;
            }
        }
    }
}
