//! The extended page-table mechanism: judging EPT paging-structure entries.
//!
//! SDM Vol. 3C, "The Extended Page Table Mechanism (EPT)". [`judge`] says what one entry is: not
//! present, misconfigured, a reference to the next table, or a page. [`walk::Walk`] goes from the
//! EPTP to a page, an entry at a time: the caller reads and writes the entries, so that it may do
//! so with whatever atomicity it has. Violations are described by [`Violation`].

pub mod log;
pub mod walk;

use crate::addr::{Gpa, Hpa};
use crate::capability::{EptVpidCap, VmxProfile};
use crate::controls::SecondaryControls;
use crate::field::Field;
use crate::vmcs::Vmcs;

/// The extended-page-table pointer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Eptp(pub u64);

impl Eptp {
    /// Returns the EPT page-walk length, 4 or 5 in a valid EPTP.
    #[must_use]
    pub const fn walk_length(self) -> u8 {
        (self.0 >> 3 & 7) as u8 + 1
    }

    /// Returns the level of the first EPT paging structure, at most 5 whatever the EPTP.
    const fn first_level(self) -> Level {
        if self.walk_length() < 5 {
            self.walk_length()
        } else {
            5
        }
    }

    /// Whether accessed and dirty flags for EPT are enabled.
    #[must_use]
    pub const fn has_accessed_dirty(self) -> bool {
        self.0 & 1 << 6 != 0
    }

    /// Whether supervisor shadow-stack control is enabled.
    #[must_use]
    pub const fn has_supervisor_shadow_stack_control(self) -> bool {
        self.0 & 1 << 7 != 0
    }

    /// Returns the address of the first EPT paging structure.
    #[must_use]
    pub const fn table(self) -> Hpa {
        Hpa(self.0 & ADDRESS)
    }

    /// Returns the EP4TA, bits 51:12, which tags the translations.
    #[must_use]
    pub const fn ep4ta(self) -> u64 {
        self.0 & ADDRESS
    }

    /// Whether the processor can use the EPTP: the rules of VM entry and of EPTP switching.
    #[must_use]
    pub fn is_valid(self, profile: &VmxProfile) -> bool {
        let cap = profile.caps.ept_vpid();
        let has_memory_type = match self.0 & 7 {
            0 => cap.contains(EptVpidCap::MEMORY_TYPE_UC),
            6 => cap.contains(EptVpidCap::MEMORY_TYPE_WB),
            _ => false,
        };
        let has_length = match self.walk_length() {
            4 => cap.contains(EptVpidCap::WALK_LENGTH_4),
            5 => cap.contains(EptVpidCap::WALK_LENGTH_5),
            _ => false,
        };
        has_memory_type
            && has_length
            && (cap.contains(EptVpidCap::ACCESSED_DIRTY) || !self.has_accessed_dirty())
            && (cap.contains(EptVpidCap::SUPERVISOR_SHADOW_STACK)
                || !self.has_supervisor_shadow_stack_control())
            && self.0 & 0xf00 == 0
            && profile.facts.is_physical(self.0)
    }
}

/// The address bits of an entry.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Read access, bit 0 of an entry.
const READ: u64 = 1 << 0;
/// Write access, bit 1.
const WRITE: u64 = 1 << 1;
/// Execute access; with mode-based execute control, for supervisor-mode linear addresses: bit 2.
const EXECUTE: u64 = 1 << 2;
/// Ignore PAT, bit 6 of an entry that maps a page.
const IGNORE_PAT: u64 = 1 << 6;
/// The entry maps a page, bit 7 of a PDPTE or PDE.
const MAPS_PAGE: u64 = 1 << 7;
/// Accessed, bit 8.
const ACCESSED: u64 = 1 << 8;
/// Dirty, bit 9 of an entry that maps a page.
const DIRTY: u64 = 1 << 9;
/// Execute access for user-mode linear addresses, bit 10, with mode-based execute control.
const USER_EXECUTE: u64 = 1 << 10;
/// Supervisor shadow stack, bit 60 of an entry that maps a page, with supervisor shadow-stack
/// control.
const SUPERVISOR_SHADOW_STACK: u64 = 1 << 60;
/// Suppress #VE, bit 63.
const SUPPRESS_VE: u64 = 1 << 63;

/// What the rules for an entry depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EptRules {
    /// The EPT capabilities of the processor.
    pub cap: EptVpidCap,
    /// Its physical-address width.
    pub physical_address_bits: u8,
    /// Whether "mode-based execute control for EPT" is 1.
    pub has_mode_based_execute: bool,
}

impl EptRules {
    /// Returns the rules in force with a VMCS.
    #[must_use]
    pub fn of(vmcs: &Vmcs, profile: &VmxProfile) -> Self {
        let secondary = vmcs.secondary();
        Self {
            cap: profile.caps.ept_vpid(),
            physical_address_bits: profile.facts.physical_address_bits,
            has_mode_based_execute: secondary
                .contains(SecondaryControls::MODE_BASED_EXECUTE_CONTROL),
        }
    }

    /// The bits of an entry that make it present.
    const fn present(self) -> u64 {
        let user = if self.has_mode_based_execute {
            USER_EXECUTE
        } else {
            0
        };
        READ | WRITE | EXECUTE | user
    }

    const fn beyond_physical(self) -> u64 {
        let width = self.physical_address_bits as u32;
        if width >= 52 {
            0
        } else {
            ADDRESS & (u64::MAX << width)
        }
    }
}

/// Returns the EPTP of a VMCS, if EPT is enabled.
#[must_use]
pub fn eptp(vmcs: &Vmcs) -> Option<Eptp> {
    let is_enabled = vmcs.secondary().contains(SecondaryControls::ENABLE_EPT);
    is_enabled.then(|| Eptp(vmcs.get(Field::EPT_POINTER)))
}

/// What an entry permits, or the AND of what the entries of a walk permit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permissions(u64);

impl Permissions {
    /// Everything is permitted: what a walk starts with.
    pub const ALL: Self = Self(READ | WRITE | EXECUTE | USER_EXECUTE);
    /// Nothing is permitted: what a walk ends with at an address that EPT cannot translate.
    pub const NONE: Self = Self(0);

    const fn and(self, entry: u64) -> Self {
        Self(self.0 & entry)
    }

    /// Whether data may be read.
    #[must_use]
    pub const fn can_read(self) -> bool {
        self.0 & READ != 0
    }

    /// Whether data may be written.
    #[must_use]
    pub const fn can_write(self) -> bool {
        self.0 & WRITE != 0
    }

    /// Whether instructions may be fetched, from linear addresses of this kind.
    #[must_use]
    pub const fn can_fetch(self, rules: &EptRules, is_user: bool) -> bool {
        let bit = if rules.has_mode_based_execute && is_user {
            USER_EXECUTE
        } else {
            EXECUTE
        };
        self.0 & bit != 0
    }

    /// Whether an access is permitted.
    #[must_use]
    pub const fn allow(self, rules: &EptRules, access: Access, is_user: bool) -> bool {
        match access {
            Access::Read => self.can_read(),
            Access::Write => self.can_write(),
            Access::ReadWrite => self.can_read() && self.can_write(),
            Access::Fetch => self.can_fetch(rules, is_user),
        }
    }

    /// Bits 6:3 of the exit qualification of a violation.
    const fn qualification(self, rules: &EptRules) -> u64 {
        let user = if rules.has_mode_based_execute && self.0 & USER_EXECUTE != 0 {
            1 << 6
        } else {
            0
        };
        (self.0 & 7) << 3 | user
    }
}

/// How guest-physical memory is accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// A data read.
    Read,
    /// A data write.
    Write,
    /// A read-modify-write: a change of the accessed or dirty flag of a guest's paging structure;
    /// also any access to one where EPT has accessed and dirty flags.
    ReadWrite,
    /// An instruction fetch.
    Fetch,
}

impl Access {
    /// Returns how EPT sees a read of a guest paging-structure entry.
    #[must_use]
    pub const fn of_paging_structure(eptp: Eptp) -> Self {
        if eptp.has_accessed_dirty() {
            Self::ReadWrite
        } else {
            Self::Read
        }
    }

    const fn writes(self) -> bool {
        matches!(self, Self::Write | Self::ReadWrite)
    }

    /// Bits 2:0 of the exit qualification of a violation.
    const fn qualification(self) -> u64 {
        match self {
            Self::Read => 1,
            Self::Write => 2,
            Self::ReadWrite => 3,
            Self::Fetch => 4,
        }
    }
}

/// A level of the EPT paging structures; 1 is that of EPT PTEs, 5 that of EPT PML5Es.
pub type Level = u8;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Judgement {
    /// The entry is not present: an EPT violation.
    NotPresent,
    /// The entry is set to something that is not supported: an EPT misconfiguration.
    Misconfigured,
    /// The entry refers to the next table.
    Table(Hpa),
    /// The entry maps a page.
    Page(Page),
}

/// A page that an entry maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// Where the page begins.
    pub address: Hpa,
    /// log2 of its size in bytes: 12, 21 or 30.
    pub shift: u8,
    /// The EPT memory type: 0 UC, 1 WC, 4 WT, 5 WP, 6 WB.
    pub memory_type: u8,
    /// Whether the guest's PAT is ignored.
    pub ignores_pat: bool,
}

/// Returns what an entry at `level` is.
///
/// SDM Vol. 3C, "EPT Misconfigurations" and "EPT Violations".
///
/// # Examples
/// ```
/// use vmx_model::addr::Hpa;
/// use vmx_model::capability::EptVpidCap;
/// use vmx_model::ept::{EptRules, Judgement, judge};
/// let rules = EptRules {
///     cap: EptVpidCap::all(),
///     physical_address_bits: 46,
///     has_mode_based_execute: false,
/// };
/// assert_eq!(judge(0x5007, 4, &rules), Judgement::Table(Hpa(0x5000)));
/// assert_eq!(judge(0, 4, &rules), Judgement::NotPresent);
/// assert_eq!(judge(0x5002, 1, &rules), Judgement::Misconfigured); // writable, not readable
/// ```
pub const fn judge(entry: u64, level: Level, rules: &EptRules) -> Judgement {
    if entry & rules.present() == 0 {
        return Judgement::NotPresent;
    }
    let executes = entry & rules.present() & (EXECUTE | USER_EXECUTE) != 0;
    let is_unreadable = entry & READ == 0;
    let is_odd = is_unreadable
        && (entry & WRITE != 0 || executes && !rules.cap.contains(EptVpidCap::EXECUTE_ONLY));
    if is_odd || entry & rules.beyond_physical() != 0 {
        return Judgement::Misconfigured;
    }
    match level {
        1 => page(entry, 12),
        2 if entry & MAPS_PAGE != 0 => large_page(entry, 21, rules.cap, EptVpidCap::PAGE_2M),
        3 if entry & MAPS_PAGE != 0 => large_page(entry, 30, rules.cap, EptVpidCap::PAGE_1G),
        // Bits 6:3 are reserved where an entry refers to a table; bit 7 too above the PDPTEs.
        _ if entry & 0xf8 != 0 => Judgement::Misconfigured,
        _ => Judgement::Table(Hpa(entry & ADDRESS)),
    }
}

const fn large_page(entry: u64, shift: u8, cap: EptVpidCap, needed: EptVpidCap) -> Judgement {
    if cap.contains(needed) {
        page(entry, shift)
    } else {
        Judgement::Misconfigured
    }
}

const fn page(entry: u64, shift: u8) -> Judgement {
    let memory_type = (entry >> 3 & 7) as u8;
    let within = (1_u64 << shift) - 1;
    if matches!(memory_type, 2 | 3 | 7) || entry & ADDRESS & within != 0 {
        return Judgement::Misconfigured;
    }
    Judgement::Page(Page {
        address: Hpa(entry & ADDRESS),
        shift,
        memory_type,
        ignores_pat: entry & IGNORE_PAT != 0,
    })
}

/// The linear address whose use led to a guest-physical access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinearAccess {
    /// The linear address.
    pub address: u64,
    /// Whether the access is to the translation of the address, rather than to a guest
    /// paging-structure entry on the way there.
    pub is_final: bool,
    /// Whether the address is a user-mode address by the guest's paging; true without paging.
    pub is_user: bool,
    /// Whether the guest's paging lets it be written; true without paging.
    pub is_writable: bool,
    /// Whether the guest's paging forbids execution; false without paging.
    pub is_execute_disabled: bool,
    /// Whether the access is a shadow-stack access.
    pub is_shadow_stack: bool,
}

/// An EPT violation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    /// How memory was accessed.
    pub access: Access,
    /// The AND of what the entries of the walk permit.
    pub permissions: Permissions,
    /// Whether the entry that ended the walk lets the violation be converted to #VE.
    pub is_convertible: bool,
    /// Whether that entry maps a page of supervisor shadow stacks; false without supervisor
    /// shadow-stack control.
    pub is_supervisor_shadow_stack_page: bool,
}

impl Violation {
    /// Returns the exit qualification.
    ///
    /// SDM Vol. 3C, "Exit Qualification for EPT Violations". Bit 12, "NMI unblocking due to IRET",
    /// is the executor's to add.
    #[must_use]
    pub fn qualification(&self, rules: &EptRules, linear: Option<&LinearAccess>) -> u64 {
        let mut bits = self.access.qualification()
            | self.permissions.qualification(rules)
            | u64::from(self.is_supervisor_shadow_stack_page) << 14;
        let Some(linear) = linear else {
            return bits;
        };
        bits |= 1 << 7 | u64::from(linear.is_final) << 8 | u64::from(linear.is_shadow_stack) << 13;
        if linear.is_final && rules.cap.contains(EptVpidCap::ADVANCED_EXIT_INFORMATION) {
            bits |= u64::from(linear.is_user) << 9
                | u64::from(linear.is_writable) << 10
                | u64::from(linear.is_execute_disabled) << 11;
        }
        bits
    }
}

/// Returns the index of a guest-physical address into the table at `level`.
const fn index(address: Gpa, level: Level) -> u64 {
    address.0 >> (12 + 9 * (level as u32 - 1)) & 0x1ff
}

#[cfg(test)]
mod tests;
