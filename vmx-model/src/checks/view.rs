//! What a check of VM entry can see: a whole VMCS with its processor and memory, or a part of it.

use std::collections::BTreeMap;

use crate::addr::Hpa;
use crate::arch::{AccessRights, ArchState, CpuFacts, Cr0, Cr4, Rflags, SegmentRegister};
use crate::capability::{VmxCapabilities, VmxProfile};
use crate::controls::{
    EntryControls, ExitControls, PinControls, ProcControls, SecondaryControls,
    SecondaryExitControls, TertiaryControls, VmFunctionControls,
};
use crate::event::InterruptionInfo;
use crate::exit::GUEST_SEGMENTS;
use crate::field::Field;
use crate::memory::PhysicalMemory;
use crate::vmcs::Vmcs;

/// Where a VMCS is about to be used: its surroundings at VMLAUNCH or VMRESUME.
#[derive(Clone, Copy)]
pub struct EntryEnvironment<'a> {
    /// The processor.
    pub profile: &'a VmxProfile,
    /// The state of the logical processor, in VMX root operation.
    pub state: &'a ArchState,
    /// The current-VMCS pointer.
    pub current_vmcs: Hpa,
    /// Physical memory.
    pub memory: &'a dyn PhysicalMemory,
}

/// What a check can see; `None` is "not known".
pub trait View {
    /// Returns the value of a field.
    fn get(&self, field: Field) -> Option<u64>;

    /// Returns the processor.
    fn profile(&self) -> &VmxProfile;

    /// Returns the state of the logical processor before the VM entry.
    fn state(&self) -> Option<&ArchState>;

    /// Returns the current-VMCS pointer.
    fn current_vmcs(&self) -> Option<Hpa>;

    /// Fills `bytes` from memory at `address`.
    fn read(&self, address: Hpa, bytes: &mut [u8]) -> Option<()>;

    /// Reads a 32-bit word of memory.
    fn read_u32(&self, address: Hpa) -> Option<u32> {
        let mut bytes = [0; 4];
        self.read(address, &mut bytes)?;
        Some(u32::from_le_bytes(bytes))
    }

    /// Reads a 64-bit word of memory.
    fn read_u64(&self, address: Hpa) -> Option<u64> {
        let mut bytes = [0; 8];
        self.read(address, &mut bytes)?;
        Some(u64::from_le_bytes(bytes))
    }

    /// Returns the VMX capabilities of the processor.
    #[inline]
    fn caps(&self) -> &VmxCapabilities {
        &self.profile().caps
    }

    /// Returns the rest of what is to know of the processor.
    #[inline]
    fn facts(&self) -> &CpuFacts {
        &self.profile().facts
    }

    /// As [`Vmcs::pin`].
    #[inline]
    fn pin(&self) -> Option<PinControls> {
        Some(PinControls::from_bits_retain(
            self.get(Field::PIN_CONTROLS)? as u32,
        ))
    }

    /// As [`Vmcs::proc`].
    #[inline]
    fn proc(&self) -> Option<ProcControls> {
        Some(ProcControls::from_bits_retain(
            self.get(Field::PROC_CONTROLS)? as u32,
        ))
    }

    /// As [`Vmcs::secondary`].
    #[inline]
    fn secondary(&self) -> Option<SecondaryControls> {
        if !self
            .proc()?
            .contains(ProcControls::ACTIVATE_SECONDARY_CONTROLS)
        {
            return Some(SecondaryControls::empty());
        }
        let value = self.get(Field::SECONDARY_PROC_CONTROLS)?;
        Some(SecondaryControls::from_bits_retain(value as u32))
    }

    /// As [`Vmcs::tertiary`].
    #[inline]
    fn tertiary(&self) -> Option<TertiaryControls> {
        if !self
            .proc()?
            .contains(ProcControls::ACTIVATE_TERTIARY_CONTROLS)
        {
            return Some(TertiaryControls::empty());
        }
        Some(TertiaryControls::from_bits_retain(
            self.get(Field::TERTIARY_PROC_CONTROLS)?,
        ))
    }

    /// As [`Vmcs::exit`].
    #[inline]
    fn exit(&self) -> Option<ExitControls> {
        Some(ExitControls::from_bits_retain(
            self.get(Field::EXIT_CONTROLS)? as u32,
        ))
    }

    /// As [`Vmcs::secondary_exit`].
    #[inline]
    fn secondary_exit(&self) -> Option<SecondaryExitControls> {
        if !self
            .exit()?
            .contains(ExitControls::ACTIVATE_SECONDARY_CONTROLS)
        {
            return Some(SecondaryExitControls::empty());
        }
        Some(SecondaryExitControls::from_bits_retain(
            self.get(Field::SECONDARY_EXIT_CONTROLS)?,
        ))
    }

    /// As [`Vmcs::entry`].
    #[inline]
    fn entry(&self) -> Option<EntryControls> {
        Some(EntryControls::from_bits_retain(
            self.get(Field::ENTRY_CONTROLS)? as u32,
        ))
    }

    /// As [`Vmcs::vm_functions`].
    #[inline]
    fn vm_functions(&self) -> Option<VmFunctionControls> {
        if !self
            .secondary()?
            .contains(SecondaryControls::ENABLE_VM_FUNCTIONS)
        {
            return Some(VmFunctionControls::empty());
        }
        Some(VmFunctionControls::from_bits_retain(
            self.get(Field::VM_FUNCTION_CONTROLS)?,
        ))
    }

    /// Returns the VM-entry interruption information.
    #[inline]
    fn event(&self) -> Option<InterruptionInfo> {
        Some(InterruptionInfo(
            self.get(Field::VM_ENTRY_INTERRUPTION_INFORMATION)? as u32,
        ))
    }

    /// Returns the guest's CR0.
    #[inline]
    fn cr0(&self) -> Option<Cr0> {
        Some(Cr0::from_bits_retain(self.get(Field::GUEST_CR0)?))
    }

    /// Returns the guest's CR4.
    #[inline]
    fn cr4(&self) -> Option<Cr4> {
        Some(Cr4::from_bits_retain(self.get(Field::GUEST_CR4)?))
    }

    /// Returns the guest's RFLAGS.
    #[inline]
    fn rflags(&self) -> Option<Rflags> {
        Some(Rflags::from_bits_retain(self.get(Field::GUEST_RFLAGS)?))
    }

    /// Returns the access rights of a guest segment register.
    #[inline]
    fn access(&self, register: SegmentRegister) -> Option<AccessRights> {
        let [_, _, _, access] = GUEST_SEGMENTS[register as usize].1;
        Some(AccessRights(self.get(access)? as u32))
    }
}

/// A whole VMCS where it is about to be used.
pub struct FullView<'a> {
    vmcs: &'a Vmcs,
    environment: EntryEnvironment<'a>,
}

impl<'a> FullView<'a> {
    /// Returns the view of a VMCS in its surroundings.
    #[must_use]
    pub const fn new(vmcs: &'a Vmcs, environment: EntryEnvironment<'a>) -> Self {
        Self { vmcs, environment }
    }
}

impl View for FullView<'_> {
    #[inline]
    fn get(&self, field: Field) -> Option<u64> {
        Some(self.vmcs.get(field))
    }

    #[inline]
    fn profile(&self) -> &VmxProfile {
        self.environment.profile
    }

    #[inline]
    fn state(&self) -> Option<&ArchState> {
        Some(self.environment.state)
    }

    #[inline]
    fn current_vmcs(&self) -> Option<Hpa> {
        Some(self.environment.current_vmcs)
    }

    fn read(&self, address: Hpa, bytes: &mut [u8]) -> Option<()> {
        self.environment.memory.read(address, bytes);
        Some(())
    }
}

/// A VMCS of which only some fields are known, such as a dump in a log.
pub struct PartialView<'a> {
    profile: &'a VmxProfile,
    fields: BTreeMap<Field, u64>,
    state: Option<&'a ArchState>,
}

impl<'a> PartialView<'a> {
    /// Returns the view of these fields of a VMCS for this processor.
    #[must_use]
    pub fn new(profile: &'a VmxProfile, fields: impl IntoIterator<Item = (Field, u64)>) -> Self {
        let fields = fields.into_iter().collect();
        Self {
            profile,
            fields,
            state: None,
        }
    }

    /// Returns the view with the state of the logical processor before the VM entry known.
    #[must_use]
    pub const fn with_state(mut self, state: &'a ArchState) -> Self {
        self.state = Some(state);
        self
    }
}

impl View for PartialView<'_> {
    fn get(&self, field: Field) -> Option<u64> {
        self.fields.get(&field).copied()
    }

    fn profile(&self) -> &VmxProfile {
        self.profile
    }

    fn state(&self) -> Option<&ArchState> {
        self.state
    }

    fn current_vmcs(&self) -> Option<Hpa> {
        None
    }

    fn read(&self, _address: Hpa, _bytes: &mut [u8]) -> Option<()> {
        None
    }
}
