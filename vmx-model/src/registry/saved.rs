//! The registry's state, to be saved and loaded.

use std::sync::{Arc, Mutex};

use super::{ActiveVmcs, CpuId, Region, RegionFlags, RegionStatus, VmcsRegistry};
use crate::addr::Hpa;
use crate::region::RegionHeader;
use crate::vmcs::Vmcs;

const VERSION: u32 = 1;

/// Why saved state cannot be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RestoreError {
    /// It has this version, which is not known.
    Version(u32),
    /// Its parts contradict each other.
    Inconsistent,
}

impl core::fmt::Display for RestoreError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Version(version) => write!(f, "unknown version {version} of saved VMX state"),
            Self::Inconsistent => f.write_str("saved VMX state contradicts itself"),
        }
    }
}

impl std::error::Error for RestoreError {}

/// A VMCS that a processor holds, as it is saved.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub(crate) struct SavedVmcs {
    pointer: Hpa,
    header: RegionHeader,
    values: Box<Vmcs>,
}

impl SavedVmcs {
    pub(crate) fn of(active: &ActiveVmcs) -> Self {
        Self {
            pointer: active.pointer,
            header: active.header,
            values: active.values.clone(),
        }
    }

    fn activate(self, flags: Arc<RegionFlags>) -> ActiveVmcs {
        ActiveVmcs {
            pointer: self.pointer,
            header: self.header,
            values: self.values,
            flags,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
struct SavedRegion {
    pointer: Hpa,
    status: RegionStatus,
    parked: Vec<(CpuId, SavedVmcs)>,
}

impl SavedRegion {
    fn of((pointer, region): (&Hpa, &Region)) -> Self {
        let parked = region.parked.iter();
        Self {
            pointer: *pointer,
            status: region.status(),
            parked: parked
                .map(|(cpu, active)| (*cpu, SavedVmcs::of(active)))
                .collect(),
        }
    }

    fn restore(self) -> (Hpa, Region) {
        let flags = Arc::new(RegionFlags::default());
        flags.set_launch(self.status.launch);
        flags.set_left_by_vmxoff(self.status.is_left_by_vmxoff);
        let parked = self.parked.into_iter();
        let region = Region {
            active_on: self.status.active_on,
            data: self.status.data,
            parked: parked
                .map(|(cpu, saved)| (cpu, saved.activate(Arc::clone(&flags))))
                .collect(),
            flags,
        };
        (self.pointer, region)
    }
}

/// The state of a [`VmcsRegistry`], to be saved and loaded. What processors hold of their current
/// VMCS is in [`crate::processor::ProcessorState`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct RegistryState {
    version: u32,
    regions: Vec<SavedRegion>,
}

impl VmcsRegistry {
    /// Returns the state to be saved, in the order of the regions' addresses.
    #[must_use]
    pub fn save(&self) -> RegistryState {
        RegistryState {
            version: VERSION,
            regions: self.lock().iter().map(SavedRegion::of).collect(),
        }
    }

    /// Returns the registry whose state was saved.
    ///
    /// # Errors
    ///
    /// If the state is of another version.
    pub fn restore(state: RegistryState) -> Result<Arc<Self>, RestoreError> {
        if state.version != VERSION {
            return Err(RestoreError::Version(state.version));
        }
        let regions = state.regions.into_iter().map(SavedRegion::restore);
        Ok(Arc::new(Self {
            regions: Mutex::new(regions.collect()),
        }))
    }

    /// Gives `cpu` its saved current VMCS back.
    pub(crate) fn attach(&self, cpu: CpuId, saved: SavedVmcs) -> Result<ActiveVmcs, RestoreError> {
        let regions = self.lock();
        let region = regions
            .get(&saved.pointer)
            .filter(|region| region.active_on.contains(&cpu))
            .ok_or(RestoreError::Inconsistent)?;
        Ok(saved.activate(Arc::clone(&region.flags)))
    }
}
