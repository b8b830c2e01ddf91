//! Saving and loading the state of logical processors and of their registry.

use std::sync::Arc;

use super::{LogicalProcessor, VmxoffDetection};
use crate::addr::Hpa;
use crate::capability::VmxProfile;
use crate::exit::VmxAbort;
use crate::precondition::VmxOperation;
use crate::registry::{CpuId, RestoreError, SavedVmcs, VmcsRegistry};

const VERSION: u32 = 1;

/// The state of a [`LogicalProcessor`], to be saved and loaded.
///
/// The profile, the registry and the observer are not part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ProcessorState {
    version: u32,
    id: CpuId,
    operation: VmxOperation,
    vmxon_pointer: Option<Hpa>,
    current: Option<SavedVmcs>,
    is_init_pending: bool,
    abort: Option<VmxAbort>,
    vmxoff_detection: VmxoffDetection,
}

impl LogicalProcessor {
    /// Returns the state to be saved.
    #[must_use]
    pub fn save(&self) -> ProcessorState {
        ProcessorState {
            version: VERSION,
            id: self.id,
            operation: self.operation,
            vmxon_pointer: self.vmxon_pointer,
            current: self.current.as_ref().map(SavedVmcs::of),
            is_init_pending: self.is_init_pending,
            abort: self.abort,
            vmxoff_detection: self.vmxoff_detection,
        }
    }

    /// Returns the processor whose state was saved; `registry` is the one that was saved with it.
    ///
    /// # Errors
    ///
    /// If the state is of another version or contradicts itself or the registry.
    pub fn restore(
        profile: Arc<VmxProfile>,
        registry: Arc<VmcsRegistry>,
        state: ProcessorState,
    ) -> Result<Self, RestoreError> {
        state.validate()?;
        let current = state
            .current
            .map(|saved| registry.attach(state.id, saved))
            .transpose()?;
        Ok(Self {
            operation: state.operation,
            vmxon_pointer: state.vmxon_pointer,
            current,
            is_init_pending: state.is_init_pending,
            abort: state.abort,
            vmxoff_detection: state.vmxoff_detection,
            ..Self::new(state.id, profile, registry)
        })
    }
}

impl ProcessorState {
    fn validate(&self) -> Result<(), RestoreError> {
        if self.version != VERSION {
            return Err(RestoreError::Version(self.version));
        }
        let is_in_vmx_operation = self.operation != VmxOperation::Outside;
        let has_current = self.current.is_some();
        let is_consistent = self.vmxon_pointer.is_some() == is_in_vmx_operation
            && (is_in_vmx_operation || !has_current)
            && (self.operation != VmxOperation::NonRoot || has_current);
        if is_consistent {
            Ok(())
        } else {
            Err(RestoreError::Inconsistent)
        }
    }
}
