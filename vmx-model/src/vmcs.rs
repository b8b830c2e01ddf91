//! The data of one VMCS as a processor holds it: a value for every field.
//!
//! SDM Vol. 3C, chapter "Virtual Machine Control Structures". [`Vmcs`] is a dense array by
//! [`Field`]; typed getters apply the rule that the controls of a word that is not activated count
//! as 0 (SDM Vol. 3C, "Processor-Based VM-Execution Controls"). Which region of memory the data
//! came from and whether it is current is the business of the processor.

use crate::checks::{self, Check, CleanGroups, EntryEnvironment, FullView, Group};
use crate::controls::{
    EntryControls, ExitControls, PinControls, ProcControls, SecondaryControls,
    SecondaryExitControls, TertiaryControls, VmFunctionControls,
};
use crate::field::{Field, Half};

/// The values of all fields of a VMCS.
///
/// A value never has a bit outside its field's width.
///
/// # Examples
/// ```
/// use vmx_model::field::Field;
/// use vmx_model::vmcs::Vmcs;
/// let mut vmcs = Vmcs::new();
/// vmcs.set(Field::GUEST_CS_SELECTOR, 0x1_0008);
/// assert_eq!(vmcs.get(Field::GUEST_CS_SELECTOR), 8);
/// ```
#[derive(Clone)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(into = "VmcsState", try_from = "VmcsState"))]
pub struct Vmcs {
    values: [u64; Field::COUNT],
    clean: CleanGroups,
}

impl Vmcs {
    /// Returns a VMCS of which every field is 0.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            values: [0; Field::COUNT],
            clean: CleanGroups::NONE,
        }
    }

    /// Returns the value of a field.
    #[must_use]
    #[inline]
    pub const fn get(&self, field: Field) -> u64 {
        self.values[field.index()]
    }

    /// Sets a field to the bits of `value` that fit its width.
    ///
    /// Choice: reserved bits of access-rights fields are kept as written, so that VM entry can
    /// judge them; the SDM lets a VMWRITE drop them, as KVM and Bochs do (mask 1F0FFH).
    #[inline]
    pub const fn set(&mut self, field: Field, value: u64) {
        let value = value & field.value_mask();
        let changed = self.values[field.index()] ^ value;
        if changed != 0 {
            self.values[field.index()] = value;
            self.clean.forget(field, changed);
        }
    }

    /// Returns the first check of VM entry that does not hold, in the SDM's order.
    ///
    /// Groups of checks that held before and of which no field has changed since are not run
    /// again, but for their checks that look at the processor or at memory; so the VMCS must stay
    /// with one profile, or [`Vmcs::forget_checks`] be called.
    #[must_use]
    pub fn first_failure(&mut self, environment: EntryEnvironment<'_>) -> Option<&'static Check> {
        let view = FullView::new(self, environment);
        let (failure, clean) = checks::first_failure(&view, self.clean);
        self.clean = clean;
        failure
    }

    /// Forgets which checks held.
    pub const fn forget_checks(&mut self) {
        self.clean = CleanGroups::NONE;
    }

    /// Returns the groups of checks that need not be run again as they are.
    pub fn clean_groups(&self) -> impl Iterator<Item = Group> {
        self.clean.iter()
    }

    /// Returns what VMREAD of this part of the field reads.
    #[must_use]
    pub const fn read(&self, field: Field, half: Half) -> u64 {
        match half {
            Half::Full => self.get(field),
            Half::High => self.get(field) >> 32,
        }
    }

    /// Does what VMWRITE of this part of the field does: a write of the high half keeps the low.
    pub const fn write(&mut self, field: Field, half: Half, value: u64) {
        match half {
            Half::Full => self.set(field, value),
            Half::High => self.set(field, self.get(field) & 0xffff_ffff | value << 32),
        }
    }

    /// Returns the pin-based VM-execution controls.
    #[must_use]
    pub const fn pin(&self) -> PinControls {
        PinControls::from_bits_retain(self.get(Field::PIN_CONTROLS) as u32)
    }

    /// Returns the primary processor-based VM-execution controls.
    #[must_use]
    pub const fn proc(&self) -> ProcControls {
        ProcControls::from_bits_retain(self.get(Field::PROC_CONTROLS) as u32)
    }

    /// Returns the secondary processor-based VM-execution controls; none if not activated.
    #[must_use]
    pub const fn secondary(&self) -> SecondaryControls {
        if self
            .proc()
            .contains(ProcControls::ACTIVATE_SECONDARY_CONTROLS)
        {
            SecondaryControls::from_bits_retain(self.get(Field::SECONDARY_PROC_CONTROLS) as u32)
        } else {
            SecondaryControls::empty()
        }
    }

    /// Returns the tertiary processor-based VM-execution controls; none if not activated.
    #[must_use]
    pub const fn tertiary(&self) -> TertiaryControls {
        if self
            .proc()
            .contains(ProcControls::ACTIVATE_TERTIARY_CONTROLS)
        {
            TertiaryControls::from_bits_retain(self.get(Field::TERTIARY_PROC_CONTROLS))
        } else {
            TertiaryControls::empty()
        }
    }

    /// Returns the primary VM-exit controls.
    #[must_use]
    pub const fn exit(&self) -> ExitControls {
        ExitControls::from_bits_retain(self.get(Field::EXIT_CONTROLS) as u32)
    }

    /// Returns the secondary VM-exit controls; none if not activated.
    #[must_use]
    pub const fn secondary_exit(&self) -> SecondaryExitControls {
        if self
            .exit()
            .contains(ExitControls::ACTIVATE_SECONDARY_CONTROLS)
        {
            SecondaryExitControls::from_bits_retain(self.get(Field::SECONDARY_EXIT_CONTROLS))
        } else {
            SecondaryExitControls::empty()
        }
    }

    /// Returns the VM-entry controls.
    #[must_use]
    pub const fn entry(&self) -> EntryControls {
        EntryControls::from_bits_retain(self.get(Field::ENTRY_CONTROLS) as u32)
    }

    /// Returns the VM-function controls; none unless "enable VM functions" is 1.
    #[must_use]
    pub const fn vm_functions(&self) -> VmFunctionControls {
        if self
            .secondary()
            .contains(SecondaryControls::ENABLE_VM_FUNCTIONS)
        {
            VmFunctionControls::from_bits_retain(self.get(Field::VM_FUNCTION_CONTROLS))
        } else {
            VmFunctionControls::empty()
        }
    }

    /// Returns the fields in which two VMCSs differ.
    pub fn differences(&self, other: &Self) -> impl Iterator<Item = Field> {
        Field::ALL
            .into_iter()
            .filter(|field| self.get(*field) != other.get(*field))
    }
}

impl Default for Vmcs {
    fn default() -> Self {
        Self::new()
    }
}

impl PartialEq for Vmcs {
    fn eq(&self, other: &Self) -> bool {
        self.values == other.values
    }
}

impl Eq for Vmcs {}

impl core::fmt::Debug for Vmcs {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let nonzero = Field::ALL.into_iter().filter(|field| self.get(*field) != 0);
        f.debug_map()
            .entries(
                nonzero.map(|field| (field, format_args!("{:#x}", self.get(field)).to_string())),
            )
            .finish()
    }
}

/// A VMCS as it is saved: the non-zero fields by their stable names.
#[cfg(feature = "serde")]
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
struct VmcsState {
    version: u32,
    fields: std::collections::BTreeMap<String, u64>,
}

#[cfg(feature = "serde")]
impl From<Vmcs> for VmcsState {
    fn from(vmcs: Vmcs) -> Self {
        let nonzero = Field::ALL.into_iter().filter(|field| vmcs.get(*field) != 0);
        let fields = nonzero
            .map(|field| (field.id().to_owned(), vmcs.get(field)))
            .collect();
        Self { version: 1, fields }
    }
}

#[cfg(feature = "serde")]
impl TryFrom<VmcsState> for Vmcs {
    type Error = String;

    fn try_from(state: VmcsState) -> Result<Self, String> {
        if state.version != 1 {
            return Err(format!("unknown version {} of a saved vmcs", state.version));
        }
        let mut vmcs = Self::new();
        for (id, value) in state.fields {
            let field = Field::from_id(&id).ok_or_else(|| format!("no vmcs field {id:?}"))?;
            vmcs.set(field, value);
        }
        Ok(vmcs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_word_that_is_not_activated_counts_as_zero() {
        let mut vmcs = Vmcs::new();
        for field in Field::ALL {
            vmcs.set(field, u64::MAX);
        }
        vmcs.set(Field::PROC_CONTROLS, 0);
        vmcs.set(Field::EXIT_CONTROLS, 0);
        assert!(vmcs.secondary().is_empty());
        assert!(vmcs.tertiary().is_empty());
        assert!(vmcs.secondary_exit().is_empty());
        assert!(vmcs.vm_functions().is_empty());
        vmcs.set(Field::PROC_CONTROLS, u64::MAX);
        assert_eq!(vmcs.secondary().bits(), u32::MAX);
        assert_eq!(vmcs.tertiary().bits(), u64::MAX);
        assert_eq!(vmcs.vm_functions().bits(), u64::MAX);
    }

    proptest! {
        #[test]
        fn a_field_holds_what_fits_it(index in 0..Field::COUNT, value: u64, high: u64) {
            let field = Field::from_index(index).unwrap();
            let mut vmcs = Vmcs::new();
            vmcs.write(field, Half::Full, value);
            prop_assert_eq!(vmcs.read(field, Half::Full), value & field.value_mask());
            prop_assert!(vmcs.differences(&Vmcs::new()).all(|changed| changed == field));
            if field.width() == crate::field::Width::W64 {
                vmcs.write(field, Half::High, high);
                prop_assert_eq!(vmcs.read(field, Half::High), high & 0xffff_ffff);
                prop_assert_eq!(vmcs.read(field, Half::Full) & 0xffff_ffff, value & 0xffff_ffff);
            }
        }
    }

    #[cfg(feature = "serde")]
    #[test]
    fn a_saved_vmcs_is_loaded_as_it_was() {
        let mut vmcs = Vmcs::new();
        for (n, field) in Field::ALL.into_iter().enumerate() {
            vmcs.set(field, (n as u64).wrapping_mul(0x1234_5678_9abc_def1));
        }
        let saved = serde_json::to_string(&vmcs).unwrap();
        assert_eq!(serde_json::from_str::<Vmcs>(&saved).unwrap(), vmcs);
        let newer = saved.replace("\"version\":1", "\"version\":2");
        assert!(serde_json::from_str::<Vmcs>(&newer).is_err());
    }
}
