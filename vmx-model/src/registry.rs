//! What the logical processors of a host know together about VMCS regions.
//!
//! SDM Vol. 3C, "Organization of VMCS Data" and "Software Use of Virtual-Machine Control
//! Structures". A [`VmcsRegistry`] knows, for every region, its launch state, on which logical
//! processors it is active, and where its newest data is. It is locked by VMCLEAR, VMPTRLD,
//! VMXOFF, VMXON, RESET and accesses to a shadow VMCS only; the launch state of an active VMCS is read and changed without
//! the lock.
//!
//! The values of the current VMCS are held by its [`crate::processor::LogicalProcessor`]. Those of
//! a VMCS that is active but not current are parked here, under the processor that holds them:
//! so a VMCLEAR that software asks of another processor does not need that processor's thread
//! ([`VmcsRegistry::remote_vmclear`]).

mod saved;

pub(crate) use saved::SavedVmcs;
pub use saved::{RegistryState, RestoreError};

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::addr::Hpa;
use crate::memory::PhysicalMemory;
use crate::region::{self, RegionHeader, RegionLayout};
use crate::vmcs::Vmcs;

/// The number of a logical processor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct CpuId(pub u32);

/// The launch state of a VMCS (SDM Vol. 3C, "Software Use of Virtual-Machine Control Structures").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[repr(u8)]
pub enum LaunchState {
    /// The region was never the operand of VMCLEAR.
    #[default]
    Undefined = 0,
    /// "Clear": VMLAUNCH may be used.
    Clear = 1,
    /// "Launched": VMRESUME may be used.
    Launched = 2,
}

/// Where the newest values of a VMCS are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum DataLocation {
    /// In the region.
    #[default]
    Memory,
    /// On a logical processor.
    Cached(CpuId),
}

/// What the registry knows about one region.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct RegionStatus {
    /// The launch state.
    pub launch: LaunchState,
    /// The processors on which the VMCS is active; more than one is a software error.
    pub active_on: BTreeSet<CpuId>,
    /// Where the newest values are.
    pub data: DataLocation,
    /// Whether a processor executed VMXOFF while the VMCS was active on it.
    pub is_left_by_vmxoff: bool,
}

/// How a VMCLEAR on behalf of another processor's software ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum RemoteVmclear {
    /// The VMCS was active on that processor, not current: its data are in memory now and its
    /// launch state is clear.
    Done,
    /// The VMCS is not active on that processor; nothing changed.
    NotActive,
    /// The VMCS is current on that processor: it has to execute VMCLEAR itself
    /// ([`crate::processor::LogicalProcessor::vmclear`]); software sends it an IPI.
    Current,
}

/// The parts of a region's state that its processor changes without the registry's lock.
#[derive(Debug, Default)]
pub(crate) struct RegionFlags {
    launch: AtomicU8,
    is_left_by_vmxoff: AtomicBool,
}

impl RegionFlags {
    pub(crate) fn launch(&self) -> LaunchState {
        match self.launch.load(Ordering::Acquire) {
            1 => LaunchState::Clear,
            2 => LaunchState::Launched,
            _ => LaunchState::Undefined,
        }
    }

    pub(crate) fn set_launch(&self, launch: LaunchState) {
        self.launch.store(launch as u8, Ordering::Release);
    }

    pub(crate) fn is_left_by_vmxoff(&self) -> bool {
        self.is_left_by_vmxoff.load(Ordering::Acquire)
    }

    fn set_left_by_vmxoff(&self, is_left: bool) {
        self.is_left_by_vmxoff.store(is_left, Ordering::Release);
    }
}

/// An active VMCS as the processor holds it.
#[derive(Debug)]
pub(crate) struct ActiveVmcs {
    pub(crate) pointer: Hpa,
    /// The first dword of the region, as it was when the VMCS became active.
    pub(crate) header: RegionHeader,
    pub(crate) values: Box<Vmcs>,
    pub(crate) flags: Arc<RegionFlags>,
}

impl ActiveVmcs {
    /// Writes the values back to the region.
    pub(crate) fn write_back(&self, memory: &mut dyn PhysicalMemory) {
        let layout = RegionLayout::of_revision(self.header.revision());
        layout.write(memory, self.pointer, &self.values);
    }

    fn load(memory: &dyn PhysicalMemory, pointer: Hpa, flags: Arc<RegionFlags>) -> Self {
        let header = RegionHeader::read(memory, pointer);
        let values = RegionLayout::of_revision(header.revision()).read(memory, pointer);
        Self {
            pointer,
            header,
            values,
            flags,
        }
    }
}

#[derive(Debug, Default)]
struct Region {
    flags: Arc<RegionFlags>,
    active_on: BTreeSet<CpuId>,
    data: DataLocation,
    /// The values held by processors on which the VMCS is active but not current.
    parked: BTreeMap<CpuId, ActiveVmcs>,
}

impl Region {
    fn status(&self) -> RegionStatus {
        RegionStatus {
            launch: self.flags.launch(),
            active_on: self.active_on.clone(),
            data: self.data,
            is_left_by_vmxoff: self.flags.is_left_by_vmxoff(),
        }
    }

    /// What VMCLEAR on `cpu` does to the state of the region.
    fn clear(&mut self, cpu: CpuId) {
        self.flags.set_launch(LaunchState::Clear);
        self.flags.set_left_by_vmxoff(false);
        self.leave(cpu);
    }

    /// Makes the VMCS inactive on `cpu`. What another processor holds stays there: only that
    /// processor can write it back.
    fn leave(&mut self, cpu: CpuId) {
        self.active_on.remove(&cpu);
        if self.data == DataLocation::Cached(cpu) {
            self.data = self
                .active_on
                .first()
                .map_or(DataLocation::Memory, |other| DataLocation::Cached(*other));
        }
    }
}

/// The VMCS regions of a host, shared by its logical processors.
#[derive(Debug, Default)]
pub struct VmcsRegistry {
    regions: Mutex<BTreeMap<Hpa, Region>>,
}

impl VmcsRegistry {
    /// Returns a registry that knows no region.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Returns what is known about the region at `pointer`.
    #[must_use]
    pub fn status(&self, pointer: Hpa) -> RegionStatus {
        self.lock()
            .get(&pointer)
            .map(Region::status)
            .unwrap_or_default()
    }

    /// Returns the regions that are active on `cpu`, by address.
    #[must_use]
    pub fn active_on(&self, cpu: CpuId) -> Vec<Hpa> {
        self.lock()
            .iter()
            .filter(|(_, region)| region.active_on.contains(&cpu))
            .map(|(pointer, _)| *pointer)
            .collect()
    }

    /// Forgets the region at `pointer`: software gave its memory to another use, so that its
    /// launch state is undefined again. What processors hold of it is dropped.
    pub fn forget(&self, pointer: Hpa) {
        self.lock().remove(&pointer);
    }

    /// Executes VMCLEAR for `pointer` on `owner`, whose thread is elsewhere: what the handler of
    /// the IPI does that native software sends to move a VMCS to another processor.
    ///
    /// Only a VMCS that is not current on `owner` can be taken from it in this way.
    pub fn remote_vmclear(
        &self,
        owner: CpuId,
        pointer: Hpa,
        memory: &mut dyn PhysicalMemory,
    ) -> RemoteVmclear {
        let mut regions = self.lock();
        let Some(region) = regions.get_mut(&pointer) else {
            return RemoteVmclear::NotActive;
        };
        if !region.active_on.contains(&owner) {
            return RemoteVmclear::NotActive;
        }
        let Some(parked) = region.parked.remove(&owner) else {
            return RemoteVmclear::Current;
        };
        parked.write_back(memory);
        region.clear(owner);
        RemoteVmclear::Done
    }

    /// VMPTRLD: returns the VMCS at `pointer` as `cpu` holds it, loaded from memory if it was not
    /// active on `cpu`.
    pub(crate) fn activate(
        &self,
        cpu: CpuId,
        pointer: Hpa,
        memory: &dyn PhysicalMemory,
    ) -> ActiveVmcs {
        let mut regions = self.lock();
        let region = regions.entry(pointer).or_default();
        if let Some(parked) = region.parked.remove(&cpu) {
            return parked;
        }
        region.active_on.insert(cpu);
        region.data = DataLocation::Cached(cpu);
        ActiveVmcs::load(memory, pointer, Arc::clone(&region.flags))
    }

    /// Keeps a VMCS that is no longer current on `cpu` but still active.
    pub(crate) fn park(&self, cpu: CpuId, vmcs: ActiveVmcs) {
        let mut regions = self.lock();
        // A region that was forgotten meanwhile is not active any more.
        if let Some(region) = regions.get_mut(&vmcs.pointer)
            && region.active_on.contains(&cpu)
        {
            region.parked.insert(cpu, vmcs);
        }
    }

    /// Lets `access` work on the values of a VMCS that is active, but not current, on `cpu`; `None`
    /// if it is not.
    pub(crate) fn with_parked<T>(
        &self,
        cpu: CpuId,
        pointer: Hpa,
        access: impl FnOnce(&mut Vmcs) -> T,
    ) -> Option<T> {
        let mut regions = self.lock();
        let parked = regions.get_mut(&pointer)?.parked.get_mut(&cpu)?;
        Some(access(&mut parked.values))
    }

    /// VMCLEAR of `pointer` on `cpu`, which held `current` of it if it was current; what the
    /// processor holds goes to memory.
    pub(crate) fn clear(
        &self,
        cpu: CpuId,
        pointer: Hpa,
        current: Option<ActiveVmcs>,
        memory: &mut dyn PhysicalMemory,
    ) {
        let mut regions = self.lock();
        // A guest may VMCLEAR any number of addresses; only those with memory are remembered.
        if !regions.contains_key(&pointer) && !region::mark_cleared(memory, pointer) {
            return;
        }
        let region = regions.entry(pointer).or_default();
        if let Some(held) = current.or_else(|| region.parked.remove(&cpu)) {
            held.write_back(memory);
            held.flags.set_launch(LaunchState::Clear);
        }
        region.clear(cpu);
    }

    /// VMXOFF on `cpu`: every VMCS that is still active there is marked.
    pub(crate) fn vmxoff(&self, cpu: CpuId) {
        for region in self.lock().values() {
            if region.active_on.contains(&cpu) {
                region.flags.set_left_by_vmxoff(true);
            }
        }
    }

    /// RESET of `cpu`: what it held is lost.
    pub(crate) fn reset(&self, cpu: CpuId) {
        for region in self.lock().values_mut() {
            region.parked.remove(&cpu);
            region.leave(cpu);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Hpa, Region>> {
        // No code that holds the lock leaves a region half changed, so a panic elsewhere in it
        // does not poison what it protects.
        self.regions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
