//! One logical processor's VMX state, and the VMX instructions that change it.
//!
//! SDM Vol. 3C, "Introduction to Virtual Machine Extensions", "Virtual Machine Control
//! Structures" and the chapter "VMX Instruction Reference". A [`LogicalProcessor`] is outside VMX
//! operation, in VMX root operation or in VMX non-root operation; in VMX operation it has a VMXON
//! pointer and may have a current VMCS, whose values it holds from VMPTRLD until VMCLEAR. Regions
//! are known to the [`VmcsRegistry`] that the processors of a host share.
//!
//! The methods named after instructions are what the instruction does after the preconditions of
//! [`crate::precondition`] and after its operands were read. Native code that is root-mode
//! software (a hypervisor in the same program) calls them directly.

mod entry;
mod exit;
mod fields;
mod init;
mod invalidate;
mod state;

pub use entry::{EntryFailed, EntryOutcome};
pub use exit::Registers;
pub use fields::Vmread;
pub use init::InitOutcome;
pub use invalidate::{Invalidation, Vmfunc};
pub use state::ProcessorState;

use std::sync::Arc;

use crate::addr::Hpa;
use crate::arch::ArchState;
use crate::capability::VmxProfile;
use crate::controls::SecondaryControls;
use crate::error;
use crate::event::Exception;
use crate::exit::VmxAbort;
use crate::field::Field;
use crate::memory::PhysicalMemory;
use crate::observer::{Completion, Observer, Operation, Transition};
use crate::outcome::VmxOutcome;
use crate::precondition::{Instruction, NotExecuted, VmxOperation};
use crate::region::RegionHeader;
use crate::registry::{ActiveVmcs, CpuId, RemoteVmclear, VmcsRegistry};
use crate::vmcs::Vmcs;

/// What a VMX instruction that is executed by root-mode software comes to, or why it is not
/// executed.
pub type Executed = Result<VmxOutcome, NotExecuted>;

/// Whether a processor notices that VMXOFF came between VMLAUNCH and VMRESUME.
///
/// The architecture allows both (SDM Vol. 3C, "VM Instruction Error Numbers", error 6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum VmxoffDetection {
    /// VMRESUME works as if nothing had happened.
    #[default]
    Unnoticed,
    /// VMRESUME gives error 6.
    Noticed,
}

/// The VMX state of one logical processor.
///
/// # Examples
///
/// ```
/// use std::sync::Arc;
/// use vmx_model::addr::Hpa;
/// use vmx_model::capability::VmxProfile;
/// use vmx_model::field::Field;
/// use vmx_model::memory::PhysicalMemory;
/// use vmx_model::outcome::VmxOutcome;
/// use vmx_model::processor::LogicalProcessor;
/// use vmx_model::registry::{CpuId, VmcsRegistry};
///
/// struct Memory(Vec<u8>);
///
/// impl PhysicalMemory for Memory {
///     fn read(&self, address: Hpa, bytes: &mut [u8]) {
///         let at = address.0 as usize;
///         bytes.copy_from_slice(&self.0[at..at + bytes.len()]);
///     }
///     fn write(&mut self, address: Hpa, bytes: &[u8]) {
///         let at = address.0 as usize;
///         self.0[at..at + bytes.len()].copy_from_slice(bytes);
///     }
/// }
///
/// let profile = Arc::new(VmxProfile::emulator_default());
/// let mut memory = Memory(vec![0; 0x3000]);
/// let (vmxon_region, vmcs) = (Hpa(0x1000), Hpa(0x2000));
/// for region in [vmxon_region, vmcs] {
///     memory.write_u32(region, profile.caps.revision_id());
/// }
/// let mut cpu = LogicalProcessor::new(CpuId(0), profile, VmcsRegistry::new());
/// assert_eq!(cpu.vmxon(vmxon_region, &memory), Ok(VmxOutcome::Succeed));
/// assert_eq!(cpu.vmclear(vmcs, &mut memory), Ok(VmxOutcome::Succeed));
/// assert_eq!(cpu.vmptrld(vmcs, &memory), Ok(VmxOutcome::Succeed));
/// cpu.write(Field::GUEST_RIP, 0xfff0).unwrap();
/// assert_eq!(cpu.read(Field::GUEST_RIP), Ok(0xfff0));
/// // A pointer that is no region: VMfailValid(9), VMPTRLD with invalid physical address.
/// assert_eq!(cpu.vmptrld(Hpa(0x2008), &memory), Ok(VmxOutcome::FailValid(9)));
/// ```
pub struct LogicalProcessor {
    id: CpuId,
    profile: Arc<VmxProfile>,
    registry: Arc<VmcsRegistry>,
    operation: VmxOperation,
    /// Some if and only if the processor is in VMX operation.
    vmxon_pointer: Option<Hpa>,
    /// Some only in VMX operation; in VMX non-root operation always.
    current: Option<ActiveVmcs>,
    is_init_pending: bool,
    /// The VMX abort that shut the processor down.
    abort: Option<VmxAbort>,
    vmxoff_detection: VmxoffDetection,
    observer: Option<Box<dyn Observer>>,
}

impl LogicalProcessor {
    /// Returns a processor after RESET: outside VMX operation.
    #[must_use]
    pub fn new(id: CpuId, profile: Arc<VmxProfile>, registry: Arc<VmcsRegistry>) -> Self {
        Self {
            id,
            profile,
            registry,
            operation: VmxOperation::Outside,
            vmxon_pointer: None,
            current: None,
            is_init_pending: false,
            abort: None,
            vmxoff_detection: VmxoffDetection::default(),
            observer: None,
        }
    }

    /// Chooses whether VMRESUME gives error 6 after VMXOFF.
    pub fn set_vmxoff_detection(&mut self, detection: VmxoffDetection) {
        self.vmxoff_detection = detection;
    }

    /// Sets who sees the processor's transitions, and returns who did before.
    pub fn set_observer(
        &mut self,
        observer: Option<Box<dyn Observer>>,
    ) -> Option<Box<dyn Observer>> {
        std::mem::replace(&mut self.observer, observer)
    }

    /// Returns who sees the processor's transitions, to be told of accesses to memory.
    pub fn observer(&mut self) -> Option<&mut (dyn Observer + 'static)> {
        self.observer.as_deref_mut()
    }

    /// Returns the number of the processor.
    #[must_use]
    pub const fn id(&self) -> CpuId {
        self.id
    }

    /// Returns the processor's profile.
    #[must_use]
    pub fn profile(&self) -> &VmxProfile {
        &self.profile
    }

    /// Returns the registry that the processor shares with others.
    #[must_use]
    pub const fn registry(&self) -> &Arc<VmcsRegistry> {
        &self.registry
    }

    /// Returns whether the processor is outside VMX operation, in root or in non-root operation.
    #[must_use]
    #[inline]
    pub const fn operation(&self) -> VmxOperation {
        self.operation
    }

    /// Returns the operand of the VMXON that began VMX operation.
    #[must_use]
    pub const fn vmxon_pointer(&self) -> Option<Hpa> {
        self.vmxon_pointer
    }

    /// Returns the current-VMCS pointer.
    #[must_use]
    pub fn current_pointer(&self) -> Option<Hpa> {
        self.current.as_ref().map(|current| current.pointer)
    }

    /// Returns the values of the current VMCS.
    #[must_use]
    #[inline]
    pub fn current_vmcs(&self) -> Option<&Vmcs> {
        self.current.as_ref().map(|current| &*current.values)
    }

    /// Returns the values of the current VMCS for what the processor itself changes while it is in
    /// VMX non-root operation (the PML index, the EPTP, the guest interrupt status, ...).
    #[inline]
    pub fn current_vmcs_mut(&mut self) -> Option<&mut Vmcs> {
        self.current.as_mut().map(|current| &mut *current.values)
    }

    /// Returns the VMX abort that shut the processor down, if one did: only RESET ends this.
    #[must_use]
    pub const fn abort(&self) -> Option<VmxAbort> {
        self.abort
    }

    /// VMXON.
    ///
    /// Whoever executes it also clears address-range monitoring, and disables tracing by Intel PT
    /// where IA32_VMX_MISC\[14\] is 0.
    ///
    /// # Errors
    ///
    /// In VMX non-root operation the instruction causes a VM exit.
    pub fn vmxon(&mut self, pointer: Hpa, memory: &dyn PhysicalMemory) -> Executed {
        let operation = Operation::Vmxon { pointer };
        let outcome = match self.operation {
            VmxOperation::NonRoot => return self.exits(Instruction::Vmxon, operation),
            VmxOperation::Root => self.fail(error::VMXON_IN_ROOT),
            VmxOperation::Outside if !self.is_region_pointer(pointer) => VmxOutcome::FailInvalid,
            VmxOperation::Outside => self.enter_vmx_operation(pointer, memory),
        };
        Ok(self.completed(operation, outcome))
    }

    fn enter_vmx_operation(&mut self, pointer: Hpa, memory: &dyn PhysicalMemory) -> VmxOutcome {
        let header = RegionHeader::read(memory, pointer);
        if header.is_shadow() || header.revision() != self.profile.caps.revision_id() {
            return VmxOutcome::FailInvalid;
        }
        self.operation = VmxOperation::Root;
        self.vmxon_pointer = Some(pointer);
        VmxOutcome::Succeed
    }

    /// VMXOFF.
    ///
    /// A pending INIT is not blocked any more: see [`LogicalProcessor::take_pending_init`].
    ///
    /// # Errors
    ///
    /// Outside VMX operation #UD; in VMX non-root operation a VM exit.
    pub fn vmxoff(&mut self) -> Executed {
        let operation = Operation::Vmxoff;
        self.require_root(Instruction::Vmxoff, operation)?;
        let before = self.current_pointer();
        self.park_current();
        self.registry.vmxoff(self.id);
        self.operation = VmxOperation::Outside;
        self.vmxon_pointer = None;
        self.report(
            operation,
            before,
            Completion::Outcome(VmxOutcome::Succeed),
            None,
        );
        Ok(VmxOutcome::Succeed)
    }

    /// VMCLEAR.
    ///
    /// # Errors
    ///
    /// Outside VMX operation #UD; in VMX non-root operation a VM exit.
    pub fn vmclear(&mut self, pointer: Hpa, memory: &mut dyn PhysicalMemory) -> Executed {
        let operation = Operation::Vmclear { pointer };
        self.require_root(Instruction::Vmclear, operation)?;
        if !self.is_region_pointer(pointer) {
            let outcome = self.fail(error::VMCLEAR_INVALID_ADDRESS);
            return Ok(self.completed(operation, outcome));
        }
        if Some(pointer) == self.vmxon_pointer {
            let outcome = self.fail(error::VMCLEAR_VMXON_POINTER);
            return Ok(self.completed(operation, outcome));
        }
        let before = self.current_pointer();
        let held = self.current.take_if(|current| current.pointer == pointer);
        self.registry.clear(self.id, pointer, held, memory);
        self.report(
            operation,
            before,
            Completion::Outcome(VmxOutcome::Succeed),
            None,
        );
        Ok(VmxOutcome::Succeed)
    }

    /// Has another processor execute VMCLEAR: [`VmcsRegistry::remote_vmclear`], shown to this
    /// processor's observer as what it is, a VMCLEAR on `owner`.
    pub fn remote_vmclear(
        &mut self,
        owner: CpuId,
        pointer: Hpa,
        memory: &mut dyn PhysicalMemory,
    ) -> RemoteVmclear {
        let done = self.registry.remote_vmclear(owner, pointer, memory);
        if let (RemoteVmclear::Done, Some(observer)) = (done, &mut self.observer) {
            observer.transition(&Transition {
                cpu: owner,
                operation: Operation::Vmclear { pointer },
                vmcs: None,
                completion: Completion::Outcome(VmxOutcome::Succeed),
                values: None,
                host: None,
            });
        }
        done
    }

    /// VMPTRLD.
    ///
    /// # Errors
    ///
    /// Outside VMX operation #UD; in VMX non-root operation a VM exit.
    pub fn vmptrld(&mut self, pointer: Hpa, memory: &dyn PhysicalMemory) -> Executed {
        let operation = Operation::Vmptrld { pointer };
        self.require_root(Instruction::Vmptrld, operation)?;
        let before = self.current_pointer();
        let outcome = match self.judge_vmptrld(pointer, memory) {
            Some(number) => self.fail(number),
            None => {
                self.make_current(pointer, memory);
                VmxOutcome::Succeed
            }
        };
        self.report(operation, before, Completion::Outcome(outcome), None);
        Ok(outcome)
    }

    /// Returns the error number if VMPTRLD of `pointer` fails.
    fn judge_vmptrld(&self, pointer: Hpa, memory: &dyn PhysicalMemory) -> Option<u32> {
        if !self.is_region_pointer(pointer) {
            return Some(error::VMPTRLD_INVALID_ADDRESS);
        }
        if Some(pointer) == self.vmxon_pointer {
            return Some(error::VMPTRLD_VMXON_POINTER);
        }
        let header = RegionHeader::read(memory, pointer);
        let has_wrong_revision = header.revision() != self.profile.caps.revision_id();
        let is_refused_shadow = header.is_shadow() && !self.may_shadow();
        (has_wrong_revision || is_refused_shadow).then_some(error::VMPTRLD_WRONG_REVISION)
    }

    fn make_current(&mut self, pointer: Hpa, memory: &dyn PhysicalMemory) {
        if self.current_pointer() == Some(pointer) {
            return;
        }
        self.park_current();
        self.current = Some(self.registry.activate(self.id, pointer, memory));
    }

    /// VMPTRST: returns the current-VMCS pointer, all ones if there is none. The outcome is
    /// VMsucceed.
    ///
    /// # Errors
    ///
    /// Outside VMX operation #UD; in VMX non-root operation a VM exit.
    pub fn vmptrst(&mut self) -> Result<Hpa, NotExecuted> {
        self.require_root(Instruction::Vmptrst, Operation::Vmptrst)?;
        let pointer = self.current_pointer().unwrap_or(Hpa(u64::MAX));
        self.report_current(Operation::Vmptrst, Completion::Value(pointer.0));
        Ok(pointer)
    }

    /// VMCALL. In VMX root operation it would activate the dual-monitor treatment of SMIs and SMM,
    /// which this processor does not support: it always fails with error 1.
    ///
    /// # Errors
    ///
    /// Outside VMX operation #UD; in VMX non-root operation a VM exit.
    pub fn vmcall(&mut self) -> Executed {
        self.require_root(Instruction::Vmcall, Operation::Vmcall)?;
        let outcome = self.fail(error::VMCALL_IN_ROOT);
        Ok(self.completed(Operation::Vmcall, outcome))
    }

    /// Whether `pointer` can be the address of a VMXON or VMCS region: 4-KiB aligned, no bit beyond
    /// the physical-address width.
    fn is_region_pointer(&self, pointer: Hpa) -> bool {
        let is_short = !self.profile.caps.limits_addresses_to_32_bits() || pointer.0 >> 32 == 0;
        pointer.page_offset() == 0 && self.profile.facts.is_physical(pointer.0) && is_short
    }

    fn may_shadow(&self) -> bool {
        self.profile
            .caps
            .secondary_may1()
            .contains(SecondaryControls::VMCS_SHADOWING)
    }

    fn park_current(&mut self) {
        if let Some(current) = self.current.take() {
            self.registry.park(self.id, current);
        }
    }

    /// VMfail(number): VMfailValid with a current VMCS, which gets the number; else VMfailInvalid.
    fn fail(&mut self, number: u32) -> VmxOutcome {
        match &mut self.current {
            Some(current) => {
                let error = Field::VM_INSTRUCTION_ERROR;
                current.values.set(error, u64::from(number));
                VmxOutcome::FailValid(number)
            }
            None => VmxOutcome::FailInvalid,
        }
    }

    fn require_root(
        &mut self,
        instruction: Instruction,
        operation: Operation,
    ) -> Result<(), NotExecuted> {
        match self.operation {
            VmxOperation::Root => Ok(()),
            VmxOperation::NonRoot => self.exits(instruction, operation),
            VmxOperation::Outside => {
                self.report_current(operation, Completion::Fault(Exception::UD));
                Err(NotExecuted::Fault(Exception::UD))
            }
        }
    }

    fn exits<T>(
        &mut self,
        instruction: Instruction,
        operation: Operation,
    ) -> Result<T, NotExecuted> {
        let reason = instruction.exit_reason();
        self.report_current(operation, Completion::Exits(reason));
        Err(NotExecuted::Exit(reason))
    }

    #[inline]
    fn completed(&mut self, operation: Operation, outcome: VmxOutcome) -> VmxOutcome {
        self.report_current(operation, Completion::Outcome(outcome));
        outcome
    }

    #[inline]
    fn report_current(&mut self, operation: Operation, completion: Completion) {
        if self.observer.is_some() {
            self.report(operation, self.current_pointer(), completion, None);
        }
    }

    fn report(
        &mut self,
        operation: Operation,
        vmcs: Option<Hpa>,
        completion: Completion,
        host: Option<&ArchState>,
    ) {
        if let Some(observer) = &mut self.observer {
            observer.transition(&Transition {
                cpu: self.id,
                operation,
                vmcs,
                completion,
                values: self.current.as_ref().map(|current| &*current.values),
                host,
            });
        }
    }
}

impl core::fmt::Debug for LogicalProcessor {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("LogicalProcessor")
            .field("id", &self.id)
            .field("profile", &self.profile.name)
            .field("operation", &self.operation)
            .field("vmxon_pointer", &self.vmxon_pointer)
            .field("current", &self.current)
            .field("is_init_pending", &self.is_init_pending)
            .field("abort", &self.abort)
            .finish_non_exhaustive()
    }
}
