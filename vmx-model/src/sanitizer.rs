//! Names the uses of VMX structures that the architecture forbids or leaves undefined.
//!
//! The processor model gives such uses one of the results that hardware may give; the sanitizer
//! says that software must not rely on it (SDM Vol. 3C, "Software Use of Virtual-Machine Control
//! Structures" and the sections that [`Item::section`] names). A [`Sanitizer`] is a handle: give a
//! clone of it to each [`crate::processor::LogicalProcessor`] of a host as its observer, and tell
//! it about accesses to memory and about the TLB where that is known. It keeps its own account of
//! regions, from transitions only.

mod accesses;
mod entry;
mod exit_information;
mod item;
mod structures;

pub use item::Item;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use self::structures::Structure;
use crate::addr::Hpa;
use crate::capability::VmxCapabilities;
use crate::error;
use crate::field::Field;
use crate::observer::{
    Completion, MemoryAccess, Observer, Operation, StaleTranslation, Transition,
};
use crate::outcome::VmxOutcome;
use crate::registry::CpuId;

/// How many transitions a report shows.
const HISTORY: usize = 16;

/// How many reports are kept until they are taken.
const REPORTS: usize = 4096;

/// A transition, as reports show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Step {
    /// The processor.
    pub cpu: CpuId,
    /// What it did.
    pub operation: Operation,
    /// How it ended.
    pub completion: Completion,
    /// RIP of the software that did it, unless that is native code.
    pub rip: Option<u64>,
}

/// One undefined or forbidden use.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Report {
    /// What was done.
    pub item: Item,
    /// On which processor.
    pub cpu: CpuId,
    /// RIP of the software that did it, unless that is native code.
    pub rip: Option<u64>,
    /// The region that it concerns.
    pub vmcs: Option<Hpa>,
    /// What exactly.
    pub detail: String,
    /// The last transitions of all processors, the newest last.
    pub history: Vec<Step>,
}

impl core::fmt::Display for Report {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let item = self.item;
        write!(
            f,
            "{}: processor {}: {}",
            item.name(),
            self.cpu.0,
            self.detail
        )?;
        if let Some(vmcs) = self.vmcs {
            write!(f, " (region {vmcs:#x})")?;
        }
        if let Some(rip) = self.rip {
            write!(f, " by the instruction at {rip:#x}")?;
        }
        write!(
            f,
            ":{} SDM Vol. 3C, \"{}\"",
            item.sentence(),
            item.section()
        )?;
        if let Some(step) = self.history.last() {
            write!(f, "; at {:?} on processor {}", step.operation, step.cpu.0)?;
        }
        Ok(())
    }
}

/// The observer that reports undefined uses. Clones share one account.
///
/// # Examples
///
/// ```
/// use std::sync::Arc;
/// use vmx_model::capability::VmxProfile;
/// use vmx_model::processor::LogicalProcessor;
/// use vmx_model::registry::{CpuId, VmcsRegistry};
/// use vmx_model::sanitizer::Sanitizer;
///
/// let profile = Arc::new(VmxProfile::emulator_default());
/// let registry = VmcsRegistry::new();
/// let sanitizer = Sanitizer::new(profile.caps.clone());
/// for n in 0..2 {
///     let id = CpuId(n);
///     let mut cpu = LogicalProcessor::new(id, Arc::clone(&profile), Arc::clone(&registry));
///     cpu.set_observer(Some(Box::new(sanitizer.clone())));
/// }
/// assert!(sanitizer.take_reports().is_empty());
/// ```
#[derive(Clone, Debug)]
pub struct Sanitizer {
    state: Arc<Mutex<State>>,
}

impl Sanitizer {
    /// Returns a sanitizer for processors with these capabilities.
    #[must_use]
    pub fn new(capabilities: VmxCapabilities) -> Self {
        let state = State {
            capabilities,
            cpus: BTreeMap::new(),
            regions: BTreeMap::new(),
            history: VecDeque::new(),
            reports: Vec::new(),
        };
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// Takes the reports that were made since the last call, the oldest first; of very many, the
    /// first 4096.
    #[must_use]
    pub fn take_reports(&self) -> Vec<Report> {
        std::mem::take(&mut self.lock().reports)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer for Sanitizer {
    fn transition(&mut self, transition: &Transition<'_>) {
        self.lock().transition(transition);
    }

    fn software_at(&mut self, cpu: CpuId, rip: u64) {
        self.lock().cpu(cpu).rip = Some(rip);
    }

    fn watches_memory(&self) -> bool {
        true
    }

    fn memory_access(&mut self, access: &MemoryAccess) {
        self.lock().memory_access(access);
    }

    fn memory_freed(&mut self, cpu: CpuId, page: Hpa) {
        self.lock().memory_freed(cpu, page.page());
    }

    fn memory_type(&mut self, cpu: CpuId, page: Hpa, memory_type: u8) {
        self.lock().memory_type(cpu, page, memory_type);
    }

    fn stale_translation(&mut self, translation: &StaleTranslation) {
        let StaleTranslation {
            vpid,
            ep4ta,
            address,
            ..
        } = translation;
        let detail = match ep4ta {
            Some(ep4ta) => {
                format!("address {address:#x} under VPID {vpid:#x}, EP4TA {ep4ta:#x}")
            }
            None => format!("address {address:#x} under VPID {vpid:#x}"),
        };
        self.lock()
            .report(Item::StaleTlb, translation.cpu, None, detail);
    }
}

#[derive(Debug, Default)]
struct Cpu {
    /// Where its software is, as far as it was told.
    rip: Option<u64>,
    vmxon_pointer: Option<Hpa>,
    current: Option<Hpa>,
    /// The structures in use while the processor is in VMX non-root operation.
    in_use: Vec<Structure>,
}

#[derive(Debug, Default)]
struct Region {
    is_cleared: bool,
    active_on: BTreeSet<CpuId>,
    is_left_by_vmxoff: bool,
    is_aborted: bool,
    last_entered_on: Option<CpuId>,
    /// Host-state fields that were written since the VMCS became active.
    written_host_state: BTreeSet<u32>,
}

#[derive(Debug)]
struct State {
    capabilities: VmxCapabilities,
    cpus: BTreeMap<CpuId, Cpu>,
    regions: BTreeMap<Hpa, Region>,
    history: VecDeque<Step>,
    reports: Vec<Report>,
}

impl State {
    fn transition(&mut self, t: &Transition<'_>) {
        self.remember(t);
        let is_success = matches!(t.completion, Completion::Outcome(VmxOutcome::Succeed));
        match t.operation {
            Operation::Vmxon { pointer } if is_success => self.vmxon(t.cpu, pointer),
            Operation::Vmxoff if is_success => self.vmxoff(t.cpu),
            Operation::Vmclear { pointer } if is_success => self.vmclear(t.cpu, pointer),
            Operation::Vmptrld { pointer } if is_success => self.vmptrld(t.cpu, pointer),
            Operation::Vmwrite { encoding, .. } if is_success => self.vmwrite(t, encoding),
            Operation::Vmread { encoding } => self.vmread(t, encoding),
            Operation::Vmlaunch => self.entry(t),
            Operation::Vmresume => {
                self.vmresume(t);
                self.entry(t);
            }
            Operation::VmExit { .. } => self.exit(t),
            Operation::Reset => self.reset(t.cpu),
            _ => {}
        }
    }

    fn remember(&mut self, t: &Transition<'_>) {
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(Step {
            cpu: t.cpu,
            operation: t.operation,
            completion: t.completion,
            rip: self.rip(t.cpu),
        });
    }

    fn report(&mut self, item: Item, cpu: CpuId, vmcs: Option<Hpa>, detail: String) {
        if self.reports.len() >= REPORTS {
            return;
        }
        self.reports.push(Report {
            item,
            cpu,
            rip: self.rip(cpu),
            vmcs,
            detail,
            history: self.history.iter().copied().collect(),
        });
    }

    fn rip(&self, cpu: CpuId) -> Option<u64> {
        self.cpus.get(&cpu).and_then(|cpu| cpu.rip)
    }

    fn cpu(&mut self, cpu: CpuId) -> &mut Cpu {
        self.cpus.entry(cpu).or_default()
    }

    fn region(&mut self, pointer: Hpa) -> &mut Region {
        self.regions.entry(pointer).or_default()
    }

    /// Returns the processor, other than `cpu`, whose VMXON pointer is `pointer`.
    fn vmxon_owner(&self, cpu: CpuId, pointer: Hpa) -> Option<CpuId> {
        let mut others = self.cpus.iter().filter(|(other, _)| **other != cpu);
        others
            .find(|(_, other)| other.vmxon_pointer == Some(pointer))
            .map(|(other, _)| *other)
    }

    /// Returns a processor, other than `cpu`, on which the VMCS at `pointer` is active.
    fn foreign_owner(&self, cpu: CpuId, pointer: Hpa) -> Option<CpuId> {
        let active_on = &self.regions.get(&pointer)?.active_on;
        active_on.iter().find(|other| **other != cpu).copied()
    }

    fn vmxon(&mut self, cpu: CpuId, pointer: Hpa) {
        let is_active = !self.region(pointer).active_on.is_empty();
        if let Some(other) = self.vmxon_owner(cpu, pointer) {
            let detail = format!("the VMXON region of processor {} is used by VMXON", other.0);
            self.report(Item::SharedRegion, cpu, Some(pointer), detail);
        } else if is_active {
            let detail = "the region of an active VMCS is used by VMXON".to_owned();
            self.report(Item::SharedRegion, cpu, Some(pointer), detail);
        }
        self.cpu(cpu).vmxon_pointer = Some(pointer);
    }

    fn vmxoff(&mut self, cpu: CpuId) {
        let regions = self.regions.iter_mut();
        let left = regions.filter(|(_, region)| region.active_on.contains(&cpu));
        let left: Vec<Hpa> = left
            .map(|(pointer, region)| {
                region.is_left_by_vmxoff = true;
                *pointer
            })
            .collect();
        for pointer in left {
            let detail = "the VMCS is still active".to_owned();
            self.report(Item::VmxoffWithActive, cpu, Some(pointer), detail);
        }
        *self.cpu(cpu) = Cpu::default();
    }

    fn use_as_vmcs(&mut self, cpu: CpuId, pointer: Hpa) {
        if let Some(other) = self.vmxon_owner(cpu, pointer) {
            let detail = format!("the VMXON region of processor {} is a VMCS", other.0);
            self.report(Item::SharedRegion, cpu, Some(pointer), detail);
        }
    }

    fn vmclear(&mut self, cpu: CpuId, pointer: Hpa) {
        self.use_as_vmcs(cpu, pointer);
        if let Some(other) = self.foreign_owner(cpu, pointer) {
            let detail = format!("the VMCS is active on processor {}", other.0);
            self.report(Item::VmclearForeignActive, cpu, Some(pointer), detail);
        }
        let region = self.region(pointer);
        region.is_cleared = true;
        region.is_left_by_vmxoff = false;
        region.active_on.remove(&cpu);
        if self.cpu(cpu).current == Some(pointer) {
            self.cpu(cpu).current = None;
        }
    }

    fn vmptrld(&mut self, cpu: CpuId, pointer: Hpa) {
        self.use_as_vmcs(cpu, pointer);
        if !self.region(pointer).is_cleared {
            let detail = "the region was never the operand of VMCLEAR".to_owned();
            self.report(Item::UseBeforeVmclear, cpu, Some(pointer), detail);
        }
        if let Some(other) = self.foreign_owner(cpu, pointer) {
            let detail = format!("the VMCS is active on processor {}", other.0);
            self.report(Item::ActiveOnTwoCpus, cpu, Some(pointer), detail);
        }
        let region = self.region(pointer);
        if region.active_on.insert(cpu) {
            region.written_host_state.clear();
        }
        self.cpu(cpu).current = Some(pointer);
    }

    fn vmwrite(&mut self, t: &Transition<'_>, encoding: u64) {
        let is_host_state = entry::HOST_STATE
            .iter()
            .any(|field| u64::from(field.encoding()) == encoding);
        if let (true, Some(pointer)) = (is_host_state, t.vmcs) {
            self.region(pointer)
                .written_host_state
                .insert(encoding as u32);
        }
    }

    fn vmread(&mut self, t: &Transition<'_>, encoding: u64) {
        let field = u32::try_from(encoding).ok().and_then(Field::from_encoding);
        let (Some((field, _)), Some(vmcs), Completion::Value(_)) = (field, t.values, t.completion)
        else {
            return;
        };
        if self
            .region(t.vmcs.unwrap_or_default())
            .last_entered_on
            .is_some()
            && !exit_information::is_defined(vmcs, field)
        {
            let reason = vmcs.get(Field::EXIT_REASON) & 0xffff;
            let detail = format!("{field} is undefined after exit reason {reason}");
            self.report(Item::ExitInfoUndefined, t.cpu, t.vmcs, detail);
        }
    }

    fn vmresume(&mut self, t: &Transition<'_>) {
        let was_left = t
            .vmcs
            .is_some_and(|pointer| self.region(pointer).is_left_by_vmxoff);
        let is_launched = match t.completion {
            Completion::Entered | Completion::EntryFailed(_) | Completion::Aborted(_) => true,
            Completion::Outcome(VmxOutcome::FailValid(number)) => matches!(
                number,
                error::VMRESUME_AFTER_VMXOFF
                    | error::ENTRY_INVALID_CONTROL
                    | error::ENTRY_INVALID_HOST_STATE
            ),
            _ => false,
        };
        if was_left && is_launched {
            let detail = "VMXOFF came between VMLAUNCH and VMRESUME".to_owned();
            self.report(Item::VmresumeAfterVmxoff, t.cpu, t.vmcs, detail);
        }
    }

    fn exit(&mut self, t: &Transition<'_>) {
        self.cpu(t.cpu).in_use.clear();
        if let (Completion::Aborted(_), Some(pointer)) = (t.completion, t.vmcs) {
            self.region(pointer).is_aborted = true;
        }
    }

    fn reset(&mut self, cpu: CpuId) {
        for region in self.regions.values_mut() {
            region.active_on.remove(&cpu);
        }
        *self.cpu(cpu) = Cpu::default();
    }
}
