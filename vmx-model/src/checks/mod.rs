//! The checks of VM entry: one table, three consumers.
//!
//! SDM Vol. 3C, chapter "VM Entries": "Checks on VMX Controls and Host-State Area" and "Checking
//! and Loading Guest State". One sentence of the SDM is one row, a [`Check`], with a stable name,
//! its section, the fields that it reads, and whether it also looks at the processor or at memory.
//!
//! - `first_failure` is VM entry: the first row, in the SDM's order, that does not hold. Groups
//!   of rows of which every field is as it was when they last held are not run again, but for
//!   their rows that look at the processor or at memory.
//! - [`diagnose`] names *all* rows that do not hold, with the offending bits.
//! - [`judge`] takes a VMCS of which only some fields are known (a dump) and answers pass, fail or
//!   unknown for each row.
//!
//! The rows are in the sub-modules, in the SDM's order, and are written once: a row is generic over
//! the [`View`] it looks through, and a getter of a view answers `None` for what it does not know.

mod address_space;
mod entry_controls;
mod execution_controls;
mod exit_controls;
mod guest_registers;
mod guest_segments;
mod guest_state;
mod helpers;
mod host_registers;
mod host_segments;
pub mod view;

use crate::field::Field;
pub use view::{EntryEnvironment, FullView, PartialView, View};

/// A part of the checks: one section of the SDM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Group {
    /// "VM-Execution Control Fields".
    ExecutionControls,
    /// "VM-Exit Control Fields".
    ExitControls,
    /// "VM-Entry Control Fields".
    EntryControls,
    /// "Checks on Host Control Registers, MSRs, and SSP".
    HostRegisters,
    /// "Checks on Host Segment and Descriptor-Table Registers".
    HostSegments,
    /// "Checks Related to Address-Space Size".
    AddressSpace,
    /// "Checks on Guest Control Registers, Debug Registers, and MSRs".
    GuestRegisters,
    /// "Checks on Guest Segment Registers".
    GuestSegments,
    /// "Checks on Guest Descriptor-Table Registers".
    GuestDescriptorTables,
    /// "Checks on Guest RIP, RFLAGS, and SSP".
    GuestRip,
    /// "Checks on Guest Non-Register State".
    GuestNonRegister,
    /// "Checks on Guest Page-Directory-Pointer-Table Entries".
    GuestPdptes,
}

/// How VM entry ends when a check does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Consequence {
    /// VMfailValid(7): VM entry with invalid control field(s).
    InvalidControls,
    /// VMfailValid(8): VM entry with invalid host-state field(s).
    InvalidHostState,
    /// A VM exit with basic exit reason 33 and bit 31 set.
    InvalidGuestState,
}

impl Group {
    /// Every group, in the SDM's order.
    pub const ALL: [Self; 12] = [
        Self::ExecutionControls,
        Self::ExitControls,
        Self::EntryControls,
        Self::HostRegisters,
        Self::HostSegments,
        Self::AddressSpace,
        Self::GuestRegisters,
        Self::GuestSegments,
        Self::GuestDescriptorTables,
        Self::GuestRip,
        Self::GuestNonRegister,
        Self::GuestPdptes,
    ];

    /// Returns the title of the section of the SDM.
    #[must_use]
    pub const fn section(self) -> &'static str {
        match self {
            Self::ExecutionControls => "VM-Execution Control Fields",
            Self::ExitControls => "VM-Exit Control Fields",
            Self::EntryControls => "VM-Entry Control Fields",
            Self::HostRegisters => "Checks on Host Control Registers, MSRs, and SSP",
            Self::HostSegments => "Checks on Host Segment and Descriptor-Table Registers",
            Self::AddressSpace => "Checks Related to Address-Space Size",
            Self::GuestRegisters => "Checks on Guest Control Registers, Debug Registers, and MSRs",
            Self::GuestSegments => "Checks on Guest Segment Registers",
            Self::GuestDescriptorTables => "Checks on Guest Descriptor-Table Registers",
            Self::GuestRip => "Checks on Guest RIP, RFLAGS, and SSP",
            Self::GuestNonRegister => "Checks on Guest Non-Register State",
            Self::GuestPdptes => "Checks on Guest Page-Directory-Pointer-Table Entries",
        }
    }

    /// Returns how VM entry ends when a check of the group does not hold.
    #[must_use]
    pub const fn consequence(self) -> Consequence {
        match self {
            Self::ExecutionControls | Self::ExitControls | Self::EntryControls => {
                Consequence::InvalidControls
            }
            Self::HostRegisters | Self::HostSegments | Self::AddressSpace => {
                Consequence::InvalidHostState
            }
            _ => Consequence::InvalidGuestState,
        }
    }

    /// Returns the checks of the group, in the SDM's order.
    #[must_use]
    pub const fn checks(self) -> &'static [Check] {
        match self {
            Self::ExecutionControls => execution_controls::CHECKS,
            Self::ExitControls => exit_controls::CHECKS,
            Self::EntryControls => entry_controls::CHECKS,
            Self::HostRegisters => host_registers::CHECKS,
            Self::HostSegments => host_segments::CHECKS,
            Self::AddressSpace => address_space::CHECKS,
            Self::GuestRegisters => guest_registers::CHECKS,
            Self::GuestSegments => guest_segments::CHECKS,
            Self::GuestDescriptorTables => guest_state::descriptor_tables::CHECKS,
            Self::GuestRip => guest_state::rip::CHECKS,
            Self::GuestNonRegister => guest_state::non_register::CHECKS,
            Self::GuestPdptes => guest_state::pdptes::CHECKS,
        }
    }

    const fn bit(self) -> u16 {
        1 << self as u8
    }

    fn first_failure(self, view: &FullView<'_>, is_clean: bool) -> Option<&'static Check> {
        match self {
            Self::ExecutionControls => execution_controls::first_failure(view, is_clean),
            Self::ExitControls => exit_controls::first_failure(view, is_clean),
            Self::EntryControls => entry_controls::first_failure(view, is_clean),
            Self::HostRegisters => host_registers::first_failure(view, is_clean),
            Self::HostSegments => host_segments::first_failure(view, is_clean),
            Self::AddressSpace => address_space::first_failure(view, is_clean),
            Self::GuestRegisters => guest_registers::first_failure(view, is_clean),
            Self::GuestSegments => guest_segments::first_failure(view, is_clean),
            Self::GuestDescriptorTables => {
                guest_state::descriptor_tables::first_failure(view, is_clean)
            }
            Self::GuestRip => guest_state::rip::first_failure(view, is_clean),
            Self::GuestNonRegister => guest_state::non_register::first_failure(view, is_clean),
            Self::GuestPdptes => guest_state::pdptes::first_failure(view, is_clean),
        }
    }
}

/// What a check looks at beyond the fields of the VMCS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Beyond {
    /// Nothing but the capabilities of the processor, which do not change.
    Nothing,
    /// The state of the logical processor at the VM entry.
    Processor,
    /// Memory that the VMCS points to.
    Memory,
}

/// The bits of a field that break a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Offence {
    /// The field to blame.
    pub field: Field,
    /// Its bits to blame; 0 where it is the whole value, or another field's.
    pub bits: u64,
}

/// What a row says about one VMCS; `None` is "unknown".
type Finding = Option<Result<(), Offence>>;

/// One check of VM entry.
pub struct Check {
    /// The stable name.
    pub id: &'static str,
    /// The section it is in.
    pub group: Group,
    /// What the SDM asks for.
    pub sentence: &'static str,
    /// The fields that it reads.
    pub inputs: &'static [Field],
    /// What else it looks at.
    pub beyond: Beyond,
    /// The exit qualification, for a check of the guest's state.
    pub qualification: u64,
    on_full: for<'a, 'b> fn(&'a FullView<'b>) -> Finding,
    on_partial: for<'a, 'b> fn(&'a PartialView<'b>) -> Finding,
}

impl Check {
    /// Returns whether the check does not hold.
    #[must_use]
    pub fn is_broken(&self, view: &FullView<'_>) -> bool {
        matches!((self.on_full)(view), Some(Err(_)))
    }
}

impl core::fmt::Debug for Check {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.id)
    }
}

impl PartialEq for Check {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for Check {}

/// Declares the checks of one group.
///
/// A row is `"id" name [fields that it reads] when condition => requirement;`, where the
/// condition is a `bool` and the requirement a [`Finding`]; `?` leaves either as unknown. `, Memory`
/// or `, Processor` behind the fields says what else it looks at, `= n` behind the list is the exit
/// qualification.
macro_rules! checks {
    (
        $group:ident |$v:ident|
        $(
            #[doc = $sentence:literal]
            $id:literal $name:ident [$($input:ident),* $(; $beyond:ident)?] $(= $qualification:literal)?
            when $when:expr => $require:expr;
        )*
    ) => {
        $(
            #[inline(always)]
            fn $name<V: $crate::checks::View>($v: &V) -> $crate::checks::Finding {
                let when = || -> Option<bool> { Some($when) };
                let require = || -> $crate::checks::Finding { $require };
                match when() {
                    Some(false) => Some(Ok(())),
                    Some(true) => require(),
                    None => require().filter(Result::is_ok),
                }
            }
        )*

        pub(in crate::checks) const CHECKS: &[$crate::checks::Check] = &[$(
            $crate::checks::Check {
                id: $id,
                group: $crate::checks::Group::$group,
                sentence: $sentence.trim_ascii(),
                inputs: &[$($crate::field::Field::$input),*],
                beyond: $crate::checks::beyond!($($beyond)?),
                qualification: 0 $(+ $qualification)?,
                on_full: |view| $name(view),
                on_partial: |view| $name(view),
            },
        )*];

        /// Returns the first check that does not hold. If the group is clean, its rows that read
        /// nothing but fields are known to hold.
        pub(in crate::checks) fn first_failure(
            view: &$crate::checks::FullView<'_>,
            is_clean: bool,
        ) -> Option<&'static $crate::checks::Check> {
            let mut index = 0;
            $(
                let always = !matches!(
                    $crate::checks::beyond!($($beyond)?),
                    $crate::checks::Beyond::Nothing
                );
                if (always || !is_clean) && matches!($name(view), Some(Err(_))) {
                    return CHECKS.get(index);
                }
                index += 1;
            )*
            let _ = index;
            None
        }
    };
}
use checks;

/// Expands to what a row of [`checks!`] looks at beyond fields.
macro_rules! beyond {
    () => {
        $crate::checks::Beyond::Nothing
    };
    ($beyond:ident) => {
        $crate::checks::Beyond::$beyond
    };
}
use beyond;

/// The groups whose checks read a field, by the field's index; for [`Vmcs::set`](crate::vmcs::Vmcs).
const GROUPS_OF_FIELD: [u16; Field::COUNT] = {
    let mut groups = [0; Field::COUNT];
    let mut group = 0;
    while group < Group::ALL.len() {
        let checks = Group::ALL[group].checks();
        let mut check = 0;
        while check < checks.len() {
            let inputs = checks[check].inputs;
            let mut input = 0;
            while input < inputs.len() {
                groups[inputs[input].index()] |= Group::ALL[group].bit();
                input += 1;
            }
            check += 1;
        }
        group += 1;
    }
    groups
};

const EVERY_GROUP: u16 = (1 << Group::ALL.len()) - 1;

/// The groups that have a check which looks at the processor or at memory: the others need not be
/// run again while they are clean.
const GROUPS_LOOKING_BEYOND: u16 = {
    let mut groups = 0;
    let mut group = 0;
    while group < Group::ALL.len() {
        let checks = Group::ALL[group].checks();
        let mut check = 0;
        while check < checks.len() {
            if !matches!(checks[check].beyond, Beyond::Nothing) {
                groups |= Group::ALL[group].bit();
            }
            check += 1;
        }
        group += 1;
    }
    groups
};

/// The groups whose checks hold as long as none of their fields is written.
///
/// Private to [`Vmcs`](crate::vmcs::Vmcs), which forgets a group when a field of it changes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CleanGroups(u16);

impl CleanGroups {
    /// No group is known to hold.
    pub(crate) const NONE: Self = Self(0);

    /// Forgets the groups that read the bits `changed` of `field`.
    #[inline]
    pub(crate) const fn forget(&mut self, field: Field, changed: u64) {
        let mut groups = GROUPS_OF_FIELD[field.index()];
        // Of RFLAGS the segment checks read VM, of CR0 they read PE: what a guest changes all the
        // time does not count.
        if matches!(field, Field::GUEST_RFLAGS) && changed & 1 << 17 == 0
            || matches!(field, Field::GUEST_CR0) && changed & 1 == 0
        {
            groups &= !Group::GuestSegments.bit();
        }
        self.0 &= !groups;
    }

    const fn contains(self, group: Group) -> bool {
        self.0 & group.bit() != 0
    }

    /// Returns the clean groups.
    pub(crate) fn iter(self) -> impl Iterator<Item = Group> {
        Group::ALL
            .into_iter()
            .filter(move |group| self.contains(*group))
    }
}

/// Returns every check, in the SDM's order.
pub fn all() -> impl Iterator<Item = &'static Check> {
    Group::ALL.into_iter().flat_map(Group::checks)
}

/// Returns the check with this stable name.
#[must_use]
pub fn by_id(id: &str) -> Option<&'static Check> {
    all().find(|check| check.id == id)
}

/// Returns the first check that does not hold, and the groups that then are known to hold.
pub(crate) fn first_failure(
    view: &FullView<'_>,
    clean: CleanGroups,
) -> (Option<&'static Check>, CleanGroups) {
    let mut known = clean;
    let mut left = !clean.0 & EVERY_GROUP | GROUPS_LOOKING_BEYOND;
    while left != 0 {
        let group = Group::ALL[left.trailing_zeros() as usize];
        if let Some(check) = group.first_failure(view, clean.contains(group)) {
            return (Some(check), known);
        }
        known.0 |= group.bit();
        left &= left - 1;
    }
    (None, known)
}

/// A check that does not hold, and what breaks it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The check.
    pub check: &'static Check,
    /// The field and bits to blame.
    pub offence: Offence,
}

/// Returns *all* checks that do not hold, in the SDM's order.
#[must_use]
pub fn diagnose(view: &FullView<'_>) -> Vec<Failure> {
    let failures = all().filter_map(|check| {
        let offence = (check.on_full)(view)?.err()?;
        Some(Failure { check, offence })
    });
    failures.collect()
}

/// What a check says about a VMCS of which not everything is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The check holds, whatever the unknown values are.
    Pass,
    /// The check does not hold, whatever the unknown values are.
    Fail(Offence),
    /// The check depends on something that is not known.
    Unknown,
}

/// Returns what `check` says about a VMCS of which not everything is known.
#[must_use]
pub fn judge(check: &Check, view: &PartialView<'_>) -> Verdict {
    match (check.on_partial)(view) {
        Some(Ok(())) => Verdict::Pass,
        Some(Err(offence)) => Verdict::Fail(offence),
        None => Verdict::Unknown,
    }
}
