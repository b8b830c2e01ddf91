//! The hypervisor's VMX side: root-mode software on the logical processors of [`crate::host`].
//!
//! [`CurrentVmcs`] is the VMCS that is current on this thread's processor; `setup` is what
//! KVM_CREATE_VCPU does to it.

pub(crate) mod ept;
pub(crate) mod setup;

use crate::host::{HostCpu, HostProcessor};
use std::cell::RefCell;
use std::sync::MutexGuard;
use vmx_model::addr::Hpa;
use vmx_model::field::Field;
use vmx_model::processor::LogicalProcessor;

/// The VMCS that is current on this thread's logical processor, for VMREAD and VMWRITE.
pub(crate) struct CurrentVmcs<'a> {
    processor: RefCell<MutexGuard<'a, HostProcessor>>,
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
        self.processor.borrow_mut().vmx().current_pointer()
    }

    /// VMREAD.
    #[inline]
    pub(crate) fn read(&self, field: Field) -> u64 {
        let [value] = self.read_all([field]);
        value
    }

    /// VMREADs, one after the other.
    #[inline(always)]
    pub(crate) fn read_all<const N: usize>(&self, fields: [Field; N]) -> [u64; N] {
        let quick = self.processor.borrow().try_read(fields);
        quick.unwrap_or_else(|| fields.map(|field| self.read_observed(field)))
    }

    #[cold]
    fn read_observed(&self, field: Field) -> u64 {
        let value = self.processor.borrow_mut().vmx().read(field);
        debug_assert!(value.is_ok(), "VMREAD of {}", field.name());
        value.unwrap_or(0)
    }

    /// VMWRITE.
    #[inline]
    pub(crate) fn write(&mut self, field: Field, value: u64) {
        let written = self.vmx().write(field, value);
        debug_assert!(written.is_ok(), "VMWRITE of {}", field.name());
    }

    /// INVVPID.
    pub(crate) fn invvpid(&mut self, kind: u64, vpid: u16) {
        let done = self.vmx().invvpid(kind, [u64::from(vpid), 0]);
        debug_assert!(matches!(done, Ok(Ok(_))), "INVVPID of type {kind}");
        if let Ok(Ok(which)) = done {
            self.processor().invalidate(which);
        }
    }

    /// INVEPT of one context.
    pub(crate) fn invept(&mut self, ept_pointer: u64) {
        const SINGLE_CONTEXT: u64 = 1;
        let done = self.vmx().invept(SINGLE_CONTEXT, [ept_pointer, 0]);
        debug_assert!(matches!(done, Ok(Ok(_))), "INVEPT of {ept_pointer:#x}");
        if let Ok(Ok(which)) = done {
            self.processor().invalidate(which);
        }
    }

    /// Returns how many instructions the processor has retired.
    pub(crate) fn retired(&self) -> u64 {
        self.processor.borrow().retired()
    }

    /// Returns the VMX state, for its other instructions.
    pub(crate) fn vmx(&mut self) -> &mut LogicalProcessor {
        self.processor.get_mut().vmx()
    }

    /// Returns the processor.
    pub(crate) fn processor(&mut self) -> &mut HostProcessor {
        self.processor.get_mut()
    }
}
