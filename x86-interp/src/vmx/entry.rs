//! VM entries: the model loads the guest's state into the processor, which then begins to be the
//! guest's (SDM Vol. 3C, chapter "VM Entries").

use vmx_model::entry::EntryRest;
use vmx_model::intercept;
use vmx_model::precondition::NotExecuted;
use vmx_model::processor::EntryOutcome;

use super::Attached;
use super::ept::EptInUse;
use crate::Cpu;

/// The instruction of a VM entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryInstruction {
    /// VMLAUNCH.
    Vmlaunch,
    /// VMRESUME.
    Vmresume,
}

/// What the address-space context in use is keyed by, besides PCID and privilege.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct AddressSpaceTag {
    /// VPID; 0 outside VMX non-root operation and without "enable VPID".
    pub(crate) vpid: u16,
    /// EPT pointer; 0 without EPT.
    pub(crate) eptp: u64,
}

impl Cpu {
    /// Executes VMLAUNCH or VMRESUME for native software in VMX root operation. When the guest was
    /// entered, [`Cpu::run`] runs it.
    ///
    /// # Errors
    /// #UD outside VMX operation, or a VM exit that cannot be (the processor is in VMX non-root
    /// operation already).
    pub fn vm_entry(&mut self, instruction: EntryInstruction) -> Result<EntryOutcome, NotExecuted> {
        let Some(mut attached) = self.vmx.attached.take() else {
            return Err(NotExecuted::Fault(vmx_model::event::Exception::UD));
        };
        self.bring_state_up_to_date();
        let Attached { processor, memory } = &mut attached;
        let outcome = match instruction {
            EntryInstruction::Vmlaunch => processor.vmlaunch(&mut &**memory, self),
            EntryInstruction::Vmresume => processor.vmresume(&mut &**memory, self),
        };
        self.vmx.attached = Some(attached);
        if let Ok(EntryOutcome::Entered(rest)) = &outcome {
            self.begin_non_root(rest);
        }
        outcome
    }

    /// What is left of a VM entry when guest state has been loaded.
    fn begin_non_root(&mut self, rest: &EntryRest) {
        let Some(vmcs) = self.processor().and_then(|p| p.current_vmcs()) else {
            return;
        };
        let vpid = intercept::vpid(vmcs);
        let proc = vmcs.proc();
        let ept = self.processor().and_then(EptInUse::of);
        self.vmx.is_non_root = true;
        self.vmx.ept = ept;
        self.note_boundary_controls(proc);
        self.end_monitoring();
        self.delivering = rest.event;
        self.vmx.is_injecting = rest.event.is_some();
        self.vmx.has_pending_mtf = rest.has_pending_mtf;
        self.start_preemption_timer(rest.preemption_timer);
        let eptp = ept.map_or(0, |e| e.eptp.0);
        self.set_address_space_tag(AddressSpaceTag { vpid, eptp });
        if rest.flushes_vpid_0 {
            self.flush_tlb_vpid(0);
            self.vmx.mappings.flush_pages();
        }
        self.begin_apic_virtualization();
    }

    /// VMFUNC has switched to another EPT pointer.
    pub(crate) fn switch_eptp(&mut self, eptp: u64) {
        let vpid = self.guest_vmcs().map_or(0, intercept::vpid);
        self.vmx.ept = self.processor().and_then(EptInUse::of);
        self.set_address_space_tag(AddressSpaceTag { vpid, eptp });
    }

    /// What changes for the processor itself when it is in VMX root operation again.
    pub(crate) fn enter_root(&mut self) {
        self.vmx.is_non_root = false;
        self.vmx.ept = None;
        self.vmx.has_pending_mtf = false;
        self.vmx.is_injecting = false;
        self.end_apic_virtualization();
        self.vmx.timer = None;
        self.set_address_space_tag(AddressSpaceTag::default());
    }
}
