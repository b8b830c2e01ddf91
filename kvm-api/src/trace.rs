//! What KVM does to VMX: each operation of the calling thread's logical processor, recorded.
//!
//! A `Recorder` is an observer of `vmx-model`; [`create_vcpu`] makes a VM and a vCPU under one.

use crate::errno::Result;
use crate::host::lock;
use crate::system::Kvm;
use serde::Serialize;
use std::sync::{Arc, Mutex};
use vmx_model::field::Field;
use vmx_model::observer::{Completion, Observer, Operation, Transition};

/// What was being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Virtualization is enabled on the processors, with the first VM.
    Enable,
    /// KVM_CREATE_VCPU.
    Create,
}

/// One VMX operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VmxOperation {
    /// What it was part of.
    pub phase: Phase,
    /// The mnemonic, in lower case.
    pub op: &'static str,
    /// The field of a VMREAD or VMWRITE, by its name in Linux or, without one, in the manual.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<&'static str>,
    /// The field's encoding.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encoding: Option<u64>,
    /// The value read or written, the address of a region, or the tag of an invalidation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<u64>,
}

/// Collects the operations of a logical processor.
#[derive(Clone, Debug, Default)]
struct Recorder(Arc<Mutex<Vec<(Operation, Completion)>>>);

impl Observer for Recorder {
    fn transition(&mut self, transition: &Transition<'_>) {
        lock(&self.0).push((transition.operation, transition.completion));
    }
}

/// Makes a VM and its first vCPU, and returns the VMX operations on the calling thread's
/// processor.
///
/// The first phase is empty if another VM exists: the processors are then in VMX operation.
///
/// # Errors
/// Those of KVM_CREATE_VM and KVM_CREATE_VCPU.
pub fn create_vcpu(kvm: &Arc<Kvm>) -> Result<Vec<VmxOperation>> {
    let cpu = kvm.host().this_cpu()?;
    let recorder = Recorder::default();
    let before = cpu
        .lock()
        .vmx()
        .set_observer(Some(Box::new(recorder.clone())));
    let mut operations = Vec::new();
    let made = (|| {
        let vm = kvm.create_vm(0)?;
        operations.extend(recorder.take(Phase::Enable));
        vm.create_vcpu(0)?;
        operations.extend(recorder.take(Phase::Create));
        Ok(vm)
    })();
    cpu.lock().vmx().set_observer(before);
    made.map(|_| operations)
}

impl Recorder {
    fn take(&self, phase: Phase) -> Vec<VmxOperation> {
        let done = std::mem::take(&mut *lock(&self.0));
        done.into_iter()
            .map(|(operation, end)| describe(phase, operation, end))
            .collect()
    }
}

fn describe(phase: Phase, operation: Operation, completion: Completion) -> VmxOperation {
    let plain = |op, value| VmxOperation {
        phase,
        op,
        field: None,
        encoding: None,
        value,
    };
    let access = |op, encoding: u64, value| VmxOperation {
        field: field_name(encoding),
        encoding: Some(encoding),
        ..plain(op, value)
    };
    let read = match completion {
        Completion::Value(value) => Some(value),
        _ => None,
    };
    match operation {
        Operation::Vmxon { pointer } => plain("vmxon", Some(pointer.0)),
        Operation::Vmxoff => plain("vmxoff", None),
        Operation::Vmclear { pointer } => plain("vmclear", Some(pointer.0)),
        Operation::Vmptrld { pointer } => plain("vmptrld", Some(pointer.0)),
        Operation::Vmptrst => plain("vmptrst", read),
        Operation::Vmread { encoding } => access("vmread", encoding, read),
        Operation::Vmwrite { encoding, value } => access("vmwrite", encoding, Some(value)),
        Operation::Vmlaunch => plain("vmlaunch", None),
        Operation::Vmresume => plain("vmresume", None),
        Operation::Vmcall => plain("vmcall", None),
        Operation::Vmfunc { eax, .. } => plain("vmfunc", Some(u64::from(eax))),
        Operation::Invept { descriptor, .. } => plain("invept", Some(descriptor[0])),
        Operation::Invvpid { descriptor, .. } => plain("invvpid", Some(descriptor[0])),
        Operation::VmExit { reason } => plain("vmexit", Some(u64::from(reason))),
        Operation::Init => plain("init", None),
        Operation::Reset => plain("reset", None),
    }
}

fn field_name(encoding: u64) -> Option<&'static str> {
    let (field, _) = Field::from_encoding(u32::try_from(encoding).ok()?)?;
    Some(field.linux_name().unwrap_or(field.name()))
}
