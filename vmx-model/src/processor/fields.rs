//! VMREAD and VMWRITE: by encoding as an instruction executes them, by [`Field`] for software that
//! is native code, and on the shadow VMCS in VMX non-root operation.
//!
//! SDM Vol. 3C, "VMREAD", "VMWRITE" of the chapter "VMX Instruction Reference" and "VMCS
//! Shadowing Bitmap Addresses".

use super::LogicalProcessor;
use crate::addr::Hpa;
use crate::controls::SecondaryControls;
use crate::error;
use crate::field::{Field, Half, Kind};
use crate::memory::PhysicalMemory;
use crate::observer::{Completion, Operation};
use crate::outcome::VmxOutcome;
use crate::precondition::{Instruction, NotExecuted, ShadowAccess, VmxOperation};
use crate::region::{RegionHeader, RegionLayout};
use crate::vmcs::Vmcs;

/// What VMREAD comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Vmread {
    /// VMsucceed with the value of the field, zero-extended.
    Value(u64),
    /// VMfail.
    Fail(VmxOutcome),
}

impl LogicalProcessor {
    /// Returns the values of a VMCS field by encoding: VMREAD in VMX root operation.
    ///
    /// # Errors
    ///
    /// Outside VMX operation #UD; in VMX non-root operation a VM exit (but see
    /// [`LogicalProcessor::shadow_vmread`]).
    pub fn vmread(&mut self, encoding: u64) -> Result<Vmread, NotExecuted> {
        let operation = Operation::Vmread { encoding };
        self.require_root(Instruction::Vmread, operation)?;
        let read = match self.readable(encoding) {
            Ok((field, half)) => match &self.current {
                Some(current) => Vmread::Value(current.values.read(field, half)),
                None => Vmread::Fail(VmxOutcome::FailInvalid),
            },
            Err(number) => Vmread::Fail(self.fail(number)),
        };
        self.report_vmread(operation, read);
        Ok(read)
    }

    /// Whether VMREAD and VMWRITE have a VMCS to work on: the current one in VMX root operation, the
    /// one that the VMCS link pointer names in VMX non-root operation. If not, they end with
    /// VMfailInvalid before VMWRITE reads its memory operand.
    ///
    /// # Errors
    ///
    /// VMfailInvalid.
    pub fn access_target(&self) -> Result<(), VmxOutcome> {
        let target = match self.operation {
            VmxOperation::NonRoot => self.link_pointer(),
            _ => self.current_pointer(),
        };
        target.map(|_| ()).ok_or(VmxOutcome::FailInvalid)
    }

    /// VMWRITE in VMX root operation.
    ///
    /// # Errors
    ///
    /// Outside VMX operation #UD; in VMX non-root operation a VM exit (but see
    /// [`LogicalProcessor::shadow_vmwrite`]).
    pub fn vmwrite(&mut self, encoding: u64, value: u64) -> Result<VmxOutcome, NotExecuted> {
        let operation = Operation::Vmwrite { encoding, value };
        self.require_root(Instruction::Vmwrite, operation)?;
        let outcome = match self.writable(encoding) {
            Ok((field, half)) => match &mut self.current {
                Some(current) => {
                    current.values.write(field, half, value);
                    VmxOutcome::Succeed
                }
                None => VmxOutcome::FailInvalid,
            },
            Err(number) => self.fail(number),
        };
        Ok(self.completed(operation, outcome))
    }

    /// VMREAD in VMX root operation, if it succeeds and nobody observes; `None` says nothing:
    /// [`LogicalProcessor::vmread`] has the answer then.
    #[inline]
    #[must_use]
    pub fn try_vmread(&self, encoding: u64) -> Option<u64> {
        let (field, half) = self.unobserved(encoding)?;
        Some(self.current.as_ref()?.values.read(field, half))
    }

    /// VMWRITE in VMX root operation, if it succeeds and nobody observes; false says that nothing
    /// was done: [`LogicalProcessor::vmwrite`] has the answer then.
    #[inline]
    #[must_use]
    pub fn try_vmwrite(&mut self, encoding: u64, value: u64) -> bool {
        match (self.unobserved(encoding), &mut self.current) {
            (Some((field, half)), Some(current)) if field.kind() != Kind::ReadOnly => {
                current.values.write(field, half, value);
                true
            }
            _ => false,
        }
    }

    #[inline]
    fn unobserved(&self, encoding: u64) -> Option<(Field, Half)> {
        let is_plain = self.observer.is_none() && self.operation == VmxOperation::Root;
        let encoding = u32::try_from(encoding).ok().filter(|_| is_plain)?;
        let found = Field::from_encoding(encoding)?;
        self.profile.fields.contains(found.0).then_some(found)
    }

    /// Returns the values of the current VMCS, where native code that is root-mode software can
    /// access them as VMREAD and VMWRITE do and nobody observes.
    #[inline]
    fn unobserved_values(&self) -> Option<&Vmcs> {
        let is_plain = self.observer.is_none() && self.operation == VmxOperation::Root;
        let current = self.current.as_ref().filter(|_| is_plain)?;
        Some(&current.values)
    }

    /// VMREADs of fields by native code that is root-mode software, if they succeed and nobody
    /// observes; `None` says nothing: [`LogicalProcessor::read`] of each has the answer then.
    #[inline]
    #[must_use]
    pub fn try_read<const N: usize>(&self, fields: [Field; N]) -> Option<[u64; N]> {
        let values = self.unobserved_values()?;
        let known = &self.profile.fields;
        let has_all = fields.iter().all(|field| known.contains(*field));
        has_all.then(|| fields.map(|field| values.get(field)))
    }

    /// VMREAD by native code that is root-mode software.
    ///
    /// # Errors
    ///
    /// As the instruction fails: VMfailInvalid without a current VMCS (and outside VMX root
    /// operation, where the instruction would not be executed), VMfailValid(12) for a field that
    /// the processor does not have.
    #[inline]
    pub fn read(&mut self, field: Field) -> Result<u64, VmxOutcome> {
        if let Some([value]) = self.try_read([field]) {
            return Ok(value);
        }
        match self.vmread(u64::from(field.encoding())) {
            Ok(Vmread::Value(value)) => Ok(value),
            Ok(Vmread::Fail(outcome)) => Err(outcome),
            Err(_) => Err(VmxOutcome::FailInvalid),
        }
    }

    /// VMWRITE by native code that is root-mode software.
    ///
    /// # Errors
    ///
    /// As [`LogicalProcessor::read`], and VMfailValid(13) for a read-only field.
    #[inline]
    pub fn write(&mut self, field: Field, value: u64) -> Result<(), VmxOutcome> {
        if self.observer.is_none()
            && self.operation == VmxOperation::Root
            && !matches!(field.kind(), Kind::ReadOnly)
            && self.profile.fields.contains(field)
            && let Some(current) = &mut self.current
        {
            current.values.set(field, value);
            return Ok(());
        }
        match self.vmwrite(u64::from(field.encoding()), value) {
            Ok(VmxOutcome::Succeed) => Ok(()),
            Ok(outcome) => Err(outcome),
            Err(_) => Err(VmxOutcome::FailInvalid),
        }
    }

    /// Judges whether VMREAD or VMWRITE in VMX non-root operation causes a VM exit or goes to the
    /// shadow VMCS. `encoding` is the whole operand: 64 bits in 64-bit mode, else zero-extended
    /// from 32.
    #[must_use]
    pub fn shadow_access(
        &self,
        instruction: Instruction,
        encoding: u64,
        memory: &dyn PhysicalMemory,
    ) -> ShadowAccess {
        let bitmap = match instruction {
            Instruction::Vmread => Field::VMREAD_BITMAP_ADDRESS,
            Instruction::Vmwrite => Field::VMWRITE_BITMAP_ADDRESS,
            _ => return ShadowAccess::Exits,
        };
        let Some(vmcs) = self.current_vmcs() else {
            return ShadowAccess::Exits;
        };
        let is_shadowing = vmcs.secondary().contains(SecondaryControls::VMCS_SHADOWING);
        if !is_shadowing || encoding >> 15 != 0 {
            return ShadowAccess::Exits;
        }
        let byte = memory.read_u8(Hpa(vmcs.get(bitmap)).offset(encoding >> 3));
        if byte & 1 << (encoding & 7) != 0 {
            ShadowAccess::Exits
        } else {
            ShadowAccess::Shadowed
        }
    }

    /// VMREAD in VMX non-root operation of a field that does not cause a VM exit: reads the VMCS
    /// that the VMCS link pointer names.
    ///
    /// Choice: while that VMCS is active on this processor, its newest data are there and not in
    /// memory, and the access finds them; the manual leaves it to software to execute VMCLEAR first.
    pub fn shadow_vmread(&mut self, encoding: u64, memory: &dyn PhysicalMemory) -> Vmread {
        let operation = Operation::Vmread { encoding };
        let read = match (self.link_pointer(), self.readable(encoding)) {
            (None, _) => Vmread::Fail(VmxOutcome::FailInvalid),
            (Some(_), Err(number)) => Vmread::Fail(self.fail(number)),
            (Some(link), Ok((field, half))) => {
                let held = |values: &mut Vmcs| values.read(field, half);
                let held = self.registry.with_parked(self.id, link, held);
                Vmread::Value(held.unwrap_or_else(|| {
                    let value = layout_at(link, memory).read_field(memory, link, field);
                    match half {
                        Half::Full => value,
                        Half::High => value >> 32,
                    }
                }))
            }
        };
        self.report_vmread(operation, read);
        read
    }

    /// VMWRITE in VMX non-root operation of a field that does not cause a VM exit: writes the VMCS
    /// that the VMCS link pointer names, where [`LogicalProcessor::shadow_vmread`] reads it.
    ///
    /// Choice: an error number goes to the current VMCS, as on KVM and Bochs; the manual is silent.
    pub fn shadow_vmwrite(
        &mut self,
        encoding: u64,
        value: u64,
        memory: &mut dyn PhysicalMemory,
    ) -> VmxOutcome {
        let operation = Operation::Vmwrite { encoding, value };
        let outcome = match (self.link_pointer(), self.writable(encoding)) {
            (None, _) => VmxOutcome::FailInvalid,
            (Some(_), Err(number)) => self.fail(number),
            (Some(link), Ok((field, half))) => {
                let held = |values: &mut Vmcs| values.write(field, half, value);
                if self.registry.with_parked(self.id, link, held).is_none() {
                    layout_at(link, memory).write_field(memory, link, (field, half), value);
                }
                VmxOutcome::Succeed
            }
        };
        self.completed(operation, outcome)
    }

    /// Returns the VMCS link pointer of the current VMCS, unless it is all ones.
    fn link_pointer(&self) -> Option<Hpa> {
        let link = self.current_vmcs()?.get(Field::VMCS_LINK_POINTER);
        (link != u64::MAX).then_some(Hpa(link))
    }

    /// Returns the field that an encoding names on this processor, or the error number.
    fn readable(&self, encoding: u64) -> Result<(Field, Half), u32> {
        u32::try_from(encoding)
            .ok()
            .and_then(Field::from_encoding)
            .filter(|(field, _)| self.profile.fields.contains(*field))
            .ok_or(error::UNSUPPORTED_COMPONENT)
    }

    fn writable(&self, encoding: u64) -> Result<(Field, Half), u32> {
        let (field, half) = self.readable(encoding)?;
        if field.kind() == Kind::ReadOnly && !self.profile.caps.writes_read_only_fields() {
            return Err(error::VMWRITE_READ_ONLY);
        }
        Ok((field, half))
    }

    fn report_vmread(&mut self, operation: Operation, read: Vmread) {
        let completion = match read {
            Vmread::Value(value) => Completion::Value(value),
            Vmread::Fail(outcome) => Completion::Outcome(outcome),
        };
        self.report_current(operation, completion);
    }
}

fn layout_at(pointer: Hpa, memory: &dyn PhysicalMemory) -> RegionLayout {
    RegionLayout::of_revision(RegionHeader::read(memory, pointer).revision())
}
