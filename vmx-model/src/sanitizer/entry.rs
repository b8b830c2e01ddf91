//! What VM entry uses: the structures that a VMCS names, its link pointer, its host state.

use super::State;
use super::structures::{self, Structure};
use crate::addr::Hpa;
use crate::arch::{ArchState, SegmentRegister};
use crate::field::Field;
use crate::observer::{Completion, Transition};
use crate::registry::CpuId;
use crate::sanitizer::Item;
use crate::vmcs::Vmcs;

/// The host-state fields that belong to one processor.
pub(super) const HOST_STATE: [Field; 4] = [
    Field::HOST_FS_BASE,
    Field::HOST_GS_BASE,
    Field::HOST_TR_BASE,
    Field::HOST_GDTR_BASE,
];

impl State {
    /// What VM entry uses, once the controls and the host state were accepted.
    pub(super) fn entry(&mut self, t: &Transition<'_>) {
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
}
