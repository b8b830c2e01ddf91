//! The processor's side of VMX: what is asked of [`vmx_model`], and what is done with the answers.
//!
//! Nothing about VMX is decided here. A [`LogicalProcessor`] is attached to a [`Cpu`]; the handlers
//! of `crate::exec` ask it (or its current VMCS) whether something causes a VM exit; `entry`
//! begins what a VM entry leaves to do, `exit` carries a VM exit out.
//!
//! The software in VMX root operation is either code that this processor executes (a hypervisor in
//! an image), or native code of the host program (a hypervisor in the same program): see
//! [`RootSoftware`].

mod apic;
mod ask;
mod boundary;
mod context;
mod control_register;
mod entry;
mod ept;
mod exit;
pub(crate) mod info;
mod mappings;
mod state;
mod timer;
mod watch;

pub(crate) use entry::AddressSpaceTag;
pub use entry::EntryInstruction;
pub(crate) use state::VmxContextState;

use std::sync::Arc;

use vmx_model::exit::VmExit;
use vmx_model::intercept::time::PauseLoop;
use vmx_model::precondition::VmxOperation;
use vmx_model::processor::LogicalProcessor;

use crate::mem::phys::PhysMap;
use crate::{Cpu, Fault};

/// Who is in VMX root operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum RootSoftware {
    /// Code that this processor executes: a VM exit goes on at the host RIP of the VMCS.
    #[default]
    Guest,
    /// Native code of the host program: a VM exit ends [`Cpu::run`].
    Native,
}

/// The VMX part of a processor.
#[derive(Default)]
pub(crate) struct VmxContext {
    attached: Option<Attached>,
    root: RootSoftware,
    /// Whether the processor is in VMX non-root operation: the logical processor knows it too, but
    /// this is asked often.
    is_non_root: bool,
    /// Whether an MTF VM exit is pending.
    pub(crate) has_pending_mtf: bool,
    /// Whether the event in delivery was injected by VM entry.
    pub(crate) is_injecting: bool,
    /// APIC virtualization.
    apic: apic::ApicVirtualization,
    /// Whether an interrupt or NMI window is waited for.
    has_window: bool,
    /// Whether the monitor trap flag is set.
    has_monitor_trap_flag: bool,
    /// EPT, in VMX non-root operation with "enable EPT".
    ept: Option<ept::EptInUse>,
    /// What walks of EPT found.
    pub(crate) mappings: mappings::GuestPhysicalMappings,
    /// PAUSE-loop exiting.
    pause_loop: PauseLoop,
    /// The VMX-preemption timer, while it is active.
    timer: Option<timer::PreemptionTimer>,
    /// What an observer is told that watches memory.
    watch: Option<Box<watch::Watch>>,
    /// The description behind [`Fault::VmExit`].
    pending_exit: Option<VmExit>,
}

/// A logical processor, and the memory that it works with: together, as both are taken out while
/// VM entries and VM exits have the rest of the [`Cpu`] for registers.
struct Attached {
    processor: Box<LogicalProcessor>,
    memory: Arc<PhysMap>,
}

impl Cpu {
    /// Attaches the VMX state of a logical processor, and returns what was attached before.
    ///
    /// Without one the processor has no VMX: its instructions are undefined. Whether its observer
    /// watches memory is asked here.
    pub fn attach_processor(
        &mut self,
        processor: Box<LogicalProcessor>,
        root: RootSoftware,
    ) -> Option<Box<LogicalProcessor>> {
        self.vmx.root = root;
        self.vmx.is_non_root = processor.operation() == VmxOperation::NonRoot;
        let memory = Arc::clone(&self.phys);
        let before = self.vmx.attached.replace(Attached { processor, memory });
        self.choose_watch();
        before.map(|before| before.processor)
    }

    /// Detaches the VMX state, for native software that moves to another processor.
    pub fn detach_processor(&mut self) -> Option<Box<LogicalProcessor>> {
        self.vmx.attached.take().map(|attached| attached.processor)
    }

    /// Returns the VMX state, if there is one.
    #[must_use]
    pub fn processor(&self) -> Option<&LogicalProcessor> {
        let attached = self.vmx.attached.as_ref()?;
        Some(&attached.processor)
    }

    /// Returns the VMX state for native software in VMX root operation, which executes VMX
    /// instructions as methods.
    pub fn processor_mut(&mut self) -> Option<&mut LogicalProcessor> {
        let attached = self.vmx.attached.as_mut()?;
        Some(&mut attached.processor)
    }

    /// Returns the VMX state, and the memory that it works with.
    pub(crate) fn processor_and_memory(&mut self) -> Option<(&mut LogicalProcessor, &PhysMap)> {
        let attached = self.vmx.attached.as_mut()?;
        Some((&mut attached.processor, &attached.memory))
    }

    /// Whether the processor is in VMX non-root operation.
    #[must_use]
    #[inline]
    pub fn is_non_root(&self) -> bool {
        self.vmx.is_non_root
    }

    /// Returns EPT, if guest-physical addresses go through it.
    #[inline]
    pub(crate) fn ept_in_use(&self) -> Option<ept::EptInUse> {
        self.vmx.ept
    }

    /// Records a VM exit that the current instruction or event causes.
    pub(crate) fn vm_exit(&mut self, exit: VmExit) -> Fault {
        self.vmx.pending_exit = Some(exit);
        Fault::VmExit
    }
}
