//! What software does to memory that VMX uses: accesses, reuse, memory type.

use super::State;
use super::structures::{Structure, WrittenBy};
use crate::addr::Hpa;
use crate::observer::{AccessKind, MemoryAccess};
use crate::registry::CpuId;
use crate::sanitizer::Item;

impl State {
    pub(super) fn memory_access(&mut self, access: &MemoryAccess) {
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

    pub(super) fn memory_freed(&mut self, cpu: CpuId, page: Hpa) {
        let Some(region) = self.regions.remove(&page) else {
            return;
        };
        if !region.active_on.is_empty() {
            let detail = "the VMCS is active".to_owned();
            self.report(Item::VmcsFreed, cpu, Some(page), detail);
        }
    }

    pub(super) fn memory_type(&mut self, cpu: CpuId, page: Hpa, memory_type: u8) {
        let wanted = self.capabilities.region_memory_type();
        if memory_type != wanted {
            let detail = format!("memory type {memory_type}, not {wanted}");
            self.report(Item::RegionMemtype, cpu, Some(page), detail);
        }
    }
}
