//! VM exits: from VMX non-root to VMX root operation.
//!
//! SDM Vol. 3C, chapter "VM Exits", in its order: record, save, store MSRs, load host state, load
//! MSRs.

use super::LogicalProcessor;
use crate::addr::Hpa;
use crate::arch::ArchState;
use crate::exit::{self, VmExit, VmxAbort};
use crate::memory::PhysicalMemory;
use crate::msr_area::{self, MsrAccess, MsrArea};
use crate::observer::{Completion, Operation};
use crate::precondition::VmxOperation;
use crate::region;

/// The registers of the processor that enters and exits, as VM entry and VM exit change them.
pub trait Registers: MsrAccess {
    /// Returns what the registers hold.
    fn state(&self) -> &ArchState;

    /// Returns what the registers hold, for guest or host state to be loaded into it;
    /// [`Registers::state_is_loaded`] follows.
    fn state_mut(&mut self) -> &mut ArchState;

    /// Guest or host state has been loaded; the MSRs of an MSR-load area follow.
    fn state_is_loaded(&mut self);
}

impl LogicalProcessor {
    /// A VM exit from VMX non-root operation, where `registers` hold the guest's state. Afterwards
    /// the processor is in VMX root operation and host state was loaded into them.
    ///
    /// # Errors
    ///
    /// The VMX abort that the exit ended in: its indicator is in the VMCS region and the processor
    /// is in shutdown until RESET.
    ///
    /// # Panics
    ///
    /// If there is no current VMCS, which cannot be in VMX non-root operation.
    pub fn vm_exit(
        &mut self,
        exit: &VmExit,
        memory: &mut dyn PhysicalMemory,
        registers: &mut dyn Registers,
    ) -> Result<(), VmxAbort> {
        debug_assert_eq!(self.operation, VmxOperation::NonRoot);
        self.operation = VmxOperation::Root;
        let done = self.save_and_load(exit, memory, registers);
        let operation = Operation::VmExit {
            reason: exit.reason.0.into(),
        };
        if let Err(abort) = done {
            self.shut_down(abort, memory);
        }
        let completion = done.map_or_else(
            |abort| Completion::Aborted(abort as u32),
            |()| Completion::Done,
        );
        self.report_current(operation, completion);
        done
    }

    fn save_and_load(
        &mut self,
        exit: &VmExit,
        memory: &mut dyn PhysicalMemory,
        registers: &mut dyn Registers,
    ) -> Result<(), VmxAbort> {
        let profile = &*self.profile;
        let current = self.current.as_mut();
        let vmcs = &mut *current
            .expect("VMX non-root operation has a current VMCS")
            .values;
        exit::record_exit(vmcs, exit);
        exit::save_guest_state(vmcs, registers.state(), exit, profile);
        let store = MsrArea::exit_store(vmcs);
        if !store.is_empty() {
            msr_area::store(store, &profile.caps, memory, registers)
                .map_err(|_| VmxAbort::SavingGuestMsrs)?;
        }
        exit::load_host_state(registers.state_mut(), vmcs, exit, profile, memory)?;
        registers.state_is_loaded();
        self.load_exit_msrs(memory, registers)
    }

    /// Loads the VM-exit MSR-load area.
    pub(super) fn load_exit_msrs(
        &self,
        memory: &dyn PhysicalMemory,
        registers: &mut dyn Registers,
    ) -> Result<(), VmxAbort> {
        let load = self.current_vmcs().map(MsrArea::exit_load);
        match load.filter(|area| !area.is_empty()) {
            None => Ok(()),
            Some(area) => msr_area::load(area, &self.profile.caps, memory, registers)
                .map_err(|_| VmxAbort::LoadingHostMsrs),
        }
    }

    /// A VMX abort: the indicator goes to bytes 7:4 of the current VMCS region, then the processor
    /// shuts down.
    pub(super) fn shut_down(&mut self, abort: VmxAbort, memory: &mut dyn PhysicalMemory) {
        self.abort = Some(abort);
        let pointer = self.current_pointer().unwrap_or(Hpa(u64::MAX));
        region::write_abort_indicator(memory, pointer, abort as u32);
    }
}
