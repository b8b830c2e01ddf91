//! Two processors that are told what to do and asked what they answered.

use std::sync::Arc;

use vmx_model::addr::Hpa;
use vmx_model::capability::VmxProfile;
use vmx_model::exit_reason::ExitReason;
use vmx_model::field::Field;
use vmx_model::naive::Answer;
use vmx_model::naive::machine::Machine;
use vmx_model::naive::sequence::{Action, BITMAPS, Blocking, Header, REGIONS, vmxon_region};
use vmx_model::outcome::VmxOutcome;
use vmx_model::precondition::VmxOperation;
use vmx_model::registry::LaunchState;
use vmx_model::sanitizer::Item;

pub(crate) const A: Hpa = REGIONS[0];
pub(crate) const B: Hpa = REGIONS[1];
pub(crate) const MISALIGNED: Hpa = Hpa(0x1008);
pub(crate) const TOO_WIDE: Hpa = Hpa(1 << 60);
pub(crate) const LAUNCH: Action = Action::Vmlaunch(Blocking::None);
pub(crate) const RESUME: Action = Action::Vmresume(Blocking::None);
pub(crate) const SUCCEED: Answer = Answer::Outcome(VmxOutcome::Succeed);
pub(crate) const INVALID: Answer = Answer::Outcome(VmxOutcome::FailInvalid);

pub(crate) const fn valid(number: u32) -> Answer {
    Answer::Outcome(VmxOutcome::FailValid(number))
}

/// Two processors, and what they answer.
pub(crate) struct Host(pub(crate) Machine);

impl Host {
    /// Outside VMX operation.
    pub(crate) fn outside() -> Self {
        Self(Machine::new(&Arc::new(VmxProfile::everything()), 2))
    }

    /// Processor 0 in VMX root operation without a current VMCS.
    pub(crate) fn root() -> Self {
        Self::outside().then(Action::Vmxon(vmxon_region(0)), SUCCEED)
    }

    /// Processor 0 in VMX root operation; A is current and clear, and can be launched.
    pub(crate) fn current() -> Self {
        Self::root()
            .then(Action::Vmclear(A), SUCCEED)
            .then(Action::Vmptrld(A), SUCCEED)
            .then(Action::Prepare(None), Answer::Done)
    }

    /// Processor 0 in VMX non-root operation.
    pub(crate) fn guest() -> Self {
        Self::current().then(LAUNCH, Answer::Entered)
    }

    /// Processor 0 in VMX root operation; A is current and launched.
    pub(crate) fn launched() -> Self {
        Self::guest().then(Action::Exit(ExitReason::CPUID), Answer::Exited)
    }

    /// Processor 0 in VMX non-root operation with B as the shadow VMCS of A.
    pub(crate) fn shadowing() -> Self {
        Self::root()
            .then(Action::Vmclear(B), SUCCEED)
            .then(Action::StoreHeader(B, Header::Shadow), Answer::Done)
            .enter_with_shadow()
    }

    /// Makes A current and launches it, with B, whose header says so, as its shadow VMCS.
    #[track_caller]
    pub(crate) fn enter_with_shadow(self) -> Self {
        self.then(Action::Vmclear(A), SUCCEED)
            .then(Action::Vmptrld(A), SUCCEED)
            .then(Action::Prepare(Some(B)), Answer::Done)
            .write(Field::VMREAD_BITMAP_ADDRESS, BITMAPS[0].0)
            .write(Field::VMWRITE_BITMAP_ADDRESS, BITMAPS[0].0)
            .then(LAUNCH, Answer::Entered)
    }

    #[track_caller]
    pub(crate) fn then(self, action: Action, answer: Answer) -> Self {
        self.on(0, action, answer)
    }

    #[track_caller]
    pub(crate) fn on(mut self, cpu: u32, action: Action, answer: Answer) -> Self {
        assert_eq!(self.0.execute(cpu, action), answer, "{action:x?}");
        self
    }

    #[track_caller]
    pub(crate) fn write(self, field: Field, value: u64) -> Self {
        self.then(Action::Vmwrite(field.encoding().into(), value), SUCCEED)
    }

    #[track_caller]
    pub(crate) fn reads(self, field: Field, value: u64) -> Self {
        self.then(
            Action::Vmread(field.encoding().into()),
            Answer::Value(value),
        )
    }

    /// The VM-instruction error field of the current VMCS.
    #[track_caller]
    pub(crate) fn error(self, number: u64) -> Self {
        self.reads(Field::VM_INSTRUCTION_ERROR, number)
    }

    #[track_caller]
    pub(crate) fn current_is(self, pointer: Option<Hpa>) -> Self {
        assert_eq!(self.0.cpus[0].current_pointer(), pointer);
        self
    }

    #[track_caller]
    pub(crate) fn operation_is(self, operation: VmxOperation) -> Self {
        assert_eq!(self.0.cpus[0].operation(), operation);
        self
    }

    #[track_caller]
    pub(crate) fn launch_is(self, pointer: Hpa, launch: LaunchState) -> Self {
        assert_eq!(self.0.registry.status(pointer).launch, launch);
        self
    }

    #[track_caller]
    pub(crate) fn active_on(self, pointer: Hpa, cpus: &[u32]) -> Self {
        let active_on = self.0.registry.status(pointer).active_on;
        let active_on: Vec<u32> = active_on.into_iter().map(|cpu| cpu.0).collect();
        assert_eq!(active_on, cpus);
        self
    }

    /// The sanitizer named exactly this since it was asked last.
    #[track_caller]
    pub(crate) fn misuse(mut self, items: &[Item]) -> Self {
        assert_eq!(self.0.take_misuse(), items);
        self
    }

    pub(crate) fn changed(mut self, change: impl FnOnce(&mut Machine)) -> Self {
        change(&mut self.0);
        self
    }

    pub(crate) fn field(&self, field: Field) -> u64 {
        self.0.cpus[0].current_vmcs().unwrap().get(field)
    }
}
