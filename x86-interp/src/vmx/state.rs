//! Saving and loading the processor's side of VMX.

use serde::{Deserialize, Serialize};
use vmx_model::intercept::time::PauseLoop;
use vmx_model::precondition::VmxOperation;
use vmx_model::vmcs::Vmcs;

use super::apic::ApicVirtualization;
use super::ept::EptInUse;
use super::timer::PreemptionTimer;
use super::{AddressSpaceTag, RootSoftware};
use crate::Cpu;
use crate::state::RestoreError;

/// What of [`super::VmxContext`] is saved. The logical processor is saved by its owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VmxContextState {
    root: RootSoftware,
    is_non_root: bool,
    has_pending_mtf: bool,
    is_injecting: bool,
    apic: ApicVirtualization,
    pause_loop: PauseLoop,
    timer: Option<PreemptionTimer>,
    tag: AddressSpaceTag,
}

impl Cpu {
    /// Returns the state to be saved.
    pub(crate) fn vmx_context(&self) -> VmxContextState {
        VmxContextState {
            root: self.vmx.root,
            is_non_root: self.vmx.is_non_root,
            has_pending_mtf: self.vmx.has_pending_mtf,
            is_injecting: self.vmx.is_injecting,
            apic: self.vmx.apic,
            pause_loop: self.vmx.pause_loop,
            timer: self.vmx.timer,
            tag: self.current_context.tag(),
        }
    }

    /// Loads a state that was saved, or changes nothing if the attached logical processor is not
    /// in the operation that it was in.
    pub(crate) fn set_vmx_context(&mut self, state: &VmxContextState) -> Result<(), RestoreError> {
        let operation = self.processor().map(|p| p.operation());
        if state.is_non_root != (operation == Some(VmxOperation::NonRoot)) {
            return Err(RestoreError::NotInNonRoot);
        }
        self.vmx.root = state.root;
        self.vmx.is_non_root = state.is_non_root;
        self.vmx.has_pending_mtf = state.has_pending_mtf;
        self.vmx.is_injecting = state.is_injecting;
        self.vmx.apic = state.apic;
        self.vmx.pause_loop = state.pause_loop;
        self.vmx.timer = state.timer;
        self.vmx.pending_exit = None;
        self.set_address_space_tag(state.tag);
        self.vmx.ept = None;
        if let Some(proc) = self.guest_vmcs().map(Vmcs::proc) {
            self.vmx.ept = self.processor().and_then(EptInUse::of);
            self.note_boundary_controls(proc);
        }
        Ok(())
    }
}
