//! The hypervisor's VMX side: root-mode software on the logical processors of [`crate::host`].
//!
//! [`CurrentVmcs`] is the VMCS that is current on this thread's processor; `setup` is what
//! KVM_CREATE_VCPU does to it.

pub(crate) mod ept;
pub(crate) mod setup;

use crate::host::HostCpu;
use std::cell::RefCell;
use std::sync::MutexGuard;
use vmx_model::addr::Hpa;
use vmx_model::field::Field;
use vmx_model::processor::LogicalProcessor;

/// The VMCS that is current on this thread's logical processor, for VMREAD and VMWRITE.
pub(crate) struct CurrentVmcs<'a> {
    processor: RefCell<MutexGuard<'a, LogicalProcessor>>,
}

impl<'a> CurrentVmcs<'a> {
    /// Takes the processor; the caller makes a VMCS current on it.
    pub(crate) fn new(cpu: &'a HostCpu) -> Self {
        Self {
            processor: RefCell::new(cpu.lock()),
        }
    }

    /// Returns the current-VMCS pointer.
    pub(crate) fn pointer(&self) -> Option<Hpa> {
        self.processor.borrow().current_pointer()
    }

    /// VMREAD.
    pub(crate) fn read(&self, field: Field) -> u64 {
        let value = self.processor.borrow_mut().read(field);
        debug_assert!(value.is_ok(), "VMREAD of {}", field.name());
        value.unwrap_or(0)
    }

    /// VMWRITE.
    pub(crate) fn write(&mut self, field: Field, value: u64) {
        let written = self.processor.get_mut().write(field, value);
        debug_assert!(written.is_ok(), "VMWRITE of {}", field.name());
    }

    /// INVVPID; the translations go with the processor's TLB.
    pub(crate) fn invvpid(&mut self, kind: u64, vpid: u16) {
        let done = self.processor.get_mut().invvpid(kind, [u64::from(vpid), 0]);
        debug_assert!(matches!(done, Ok(Ok(_))), "INVVPID of type {kind}");
    }

    /// Returns the processor, for its other instructions.
    pub(crate) fn processor(&mut self) -> &mut LogicalProcessor {
        self.processor.get_mut()
    }
}
