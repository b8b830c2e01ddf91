//! Names the uses of VMX structures that the architecture forbids or leaves undefined.
//!
//! The processor model gives such uses one of the results that hardware may give; the sanitizer
//! says that software must not rely on it (SDM Vol. 3C, "Software Use of Virtual-Machine Control
//! Structures" and the sections that [`Item::section`] names). A [`Sanitizer`] is a handle: give a
//! clone of it to each [`crate::processor::LogicalProcessor`] of a host as its observer, and tell
//! it about accesses to memory and about the TLB where that is known. It keeps its own account of
//! regions, from transitions only.

mod exit_information;
mod item;
mod structures;

pub use item::Item;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use self::structures::{Structure, WrittenBy};
use crate::addr::Hpa;
use crate::arch::{ArchState, SegmentRegister};
use crate::capability::VmxCapabilities;
use crate::error;
use crate::field::Field;
use crate::observer::{
    AccessKind, Completion, MemoryAccess, Observer, Operation, StaleTranslation, Transition,
};
use crate::outcome::VmxOutcome;
use crate::registry::CpuId;
use crate::vmcs::Vmcs;

/// How many transitions a report shows.
const HISTORY: usize = 16;

/// How many reports are kept until they are taken.
const REPORTS: usize = 4096;

/// The host-state fields that belong to one processor.
const HOST_STATE: [Field; 4] = [
    Field::HOST_FS_BASE,
    Field::HOST_GS_BASE,
    Field::HOST_TR_BASE,
    Field::HOST_GDTR_BASE,
];

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
        let is_host_state = HOST_STATE
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

    /// What VM entry uses, once the controls and the host state were accepted.
    fn entry(&mut self, t: &Transition<'_>) {
        let has_entered = t.completion == Completion::Entered;
        let is_used = has_entered || matches!(t.completion, Completion::EntryFailed(_));
        let (Some(pointer), Some(vmcs), true) = (t.vmcs, t.values, is_used) else {
            return;
        };
        let structures = structures::of(vmcs, pointer);
        self.judge_overlap(t.cpu, pointer, &structures);
        self.judge_msr_lists(t.cpu, pointer, vmcs);
        self.judge_link_pointer(t.cpu, pointer, vmcs);
        if let Some(host) = t.host {
            self.judge_host_state(t.cpu, pointer, vmcs, host);
        }
        self.region(pointer).last_entered_on = Some(t.cpu);
        if has_entered {
            self.cpu(t.cpu).in_use = structures;
        }
    }

    fn judge_overlap(&mut self, cpu: CpuId, pointer: Hpa, structures: &[Structure]) {
        if let Some((one, other)) = structures::harmful_overlap(structures) {
            let detail = format!(
                "the {} at {:#x} overlaps the {} at {:#x}",
                one.name, one.start, other.name, other.start
            );
            self.report(Item::Overlap, cpu, Some(pointer), detail);
        }
    }

    fn judge_msr_lists(&mut self, cpu: CpuId, pointer: Hpa, vmcs: &Vmcs) {
        let longest = u64::from(self.capabilities.msr_list_max());
        for (name, _, count, _) in structures::MSR_LISTS {
            let count = vmcs.get(*count);
            if count > longest {
                let detail = format!("the {name} has {count} entries, more than {longest}");
                self.report(Item::MsrListTooLong, cpu, Some(pointer), detail);
            }
        }
    }

    fn judge_link_pointer(&mut self, cpu: CpuId, pointer: Hpa, vmcs: &Vmcs) {
        let link = Hpa(vmcs.get(Field::VMCS_LINK_POINTER));
        let is_active = self
            .regions
            .get(&link)
            .is_some_and(|region| !region.active_on.is_empty());
        if is_active {
            let detail = format!("the link pointer {link:#x} names an active VMCS");
            self.report(Item::ShadowLinkLaunched, cpu, Some(pointer), detail);
        }
    }

    fn judge_host_state(&mut self, cpu: CpuId, pointer: Hpa, vmcs: &Vmcs, host: &ArchState) {
        let region = self.region(pointer);
        if region.last_entered_on.is_none_or(|last| last == cpu) {
            return;
        }
        let on_this_cpu = [
            host.segment(SegmentRegister::Fs).base,
            host.segment(SegmentRegister::Gs).base,
            host.segment(SegmentRegister::Tr).base,
            host.gdtr.base,
        ];
        let stale = HOST_STATE.iter().zip(on_this_cpu).find(|(field, value)| {
            !region.written_host_state.contains(&field.encoding()) && vmcs.get(**field) != *value
        });
        if let Some((field, value)) = stale {
            let detail = format!(
                "{field} is {:#x}, but {value:#x} on this processor",
                vmcs.get(*field)
            );
            self.report(Item::HostStateStale, cpu, Some(pointer), detail);
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

    fn memory_access(&mut self, access: &MemoryAccess) {
        if access.length_bytes == 0 {
            return;
        }
        let last = access.address.offset(access.length_bytes - 1).page();
        for page in [access.address.page(), last] {
            self.judge_region_access(access, page);
            if page == last {
                break;
            }
        }
        self.judge_structure_access(access);
    }

    /// Judges the part of an access that lies in the page at `page`.
    fn judge_region_access(&mut self, access: &MemoryAccess, page: Hpa) {
        let is_vmxon_region = self
            .cpus
            .values()
            .any(|cpu| cpu.vmxon_pointer == Some(page));
        let Some(region) = self.regions.get(&page) else {
            if is_vmxon_region {
                self.report_access(Item::MemoryAccessActive, access, page);
            }
            return;
        };
        let first = access.address.0.saturating_sub(page.0);
        let is_abort_indicator =
            access.address.0 >= page.0 && first == 4 && access.length_bytes <= 4;
        let is_excused = region.is_aborted && is_abort_indicator;
        let is_active = !region.active_on.is_empty() || is_vmxon_region;
        if !is_active || is_excused {
            return;
        }
        let item = match access.kind {
            AccessKind::Read => Item::MemoryAccessActive,
            _ if first < 4 => Item::WriteRevisionActive,
            _ => Item::MemoryAccessActive,
        };
        self.report_access(item, access, page);
    }

    fn report_access(&mut self, item: Item, access: &MemoryAccess, region: Hpa) {
        let detail = format!(
            "{:?} of {} bytes at {:#x}",
            access.kind, access.length_bytes, access.address
        );
        self.report(item, access.cpu, Some(region), detail);
    }

    /// Judges a write by one processor to what another uses in VMX non-root operation.
    fn judge_structure_access(&mut self, access: &MemoryAccess) {
        let is_modified = |structure: &&Structure| {
            let is_allowed = match (structure.written_by, access.kind) {
                (_, AccessKind::Read) => true,
                (WrittenBy::ProcessorAndLocked, AccessKind::LockedWrite) => true,
                (WrittenBy::Nobody, _) => !structure.name.contains("MSR-load"),
                _ => false,
            };
            !is_allowed && structure.overlaps(access.address, access.length_bytes)
        };
        let others = self.cpus.iter().filter(|(cpu, _)| **cpu != access.cpu);
        // A write to the region itself is judged as an access to an active region.
        let mut modified = others.filter_map(|(cpu, other)| {
            let named = other.in_use.iter().skip(1);
            named
                .clone()
                .find(is_modified)
                .map(|s| (*cpu, other.current, *s))
        });
        if let Some((owner, vmcs, structure)) = modified.next() {
            let detail = format!(
                "{:?} to the {} that processor {} uses",
                access.kind, structure.name, owner.0
            );
            self.report(Item::ReferencedMemoryModified, access.cpu, vmcs, detail);
        }
    }

    fn memory_freed(&mut self, cpu: CpuId, page: Hpa) {
        let Some(region) = self.regions.remove(&page) else {
            return;
        };
        if !region.active_on.is_empty() {
            let detail = "the VMCS is active".to_owned();
            self.report(Item::VmcsFreed, cpu, Some(page), detail);
        }
    }

    fn memory_type(&mut self, cpu: CpuId, page: Hpa, memory_type: u8) {
        let wanted = self.capabilities.region_memory_type();
        if memory_type != wanted {
            let detail = format!("memory type {memory_type}, not {wanted}");
            self.report(Item::RegionMemtype, cpu, Some(page), detail);
        }
    }
}
