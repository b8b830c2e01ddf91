//! What each VMX instruction checks before it does its work: the ordered preconditions.
//!
//! SDM Vol. 3C, chapter "VMX Instruction Reference", the pseudo-code of each instruction. One row
//! of a table is one step of `vm-instruction-errors`; the first row whose condition holds decides.
//! Steps before the memory operand is read are judged here, so that whoever executes instructions
//! asks instead of deciding; steps on the operand belong to the executor, and the steps after it
//! to [`crate::processor::LogicalProcessor`].

use crate::arch::{Cr0, Cr4, Efer, Rflags};
use crate::capability::{EptVpidCap, VmxCapabilities};
use crate::event::Exception;
use crate::exit_reason::ExitReason;

/// The instructions of VMX, and GETSEC, which has a VM exit of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[expect(missing_docs, reason = "the names are the mnemonics")]
pub enum Instruction {
    Vmxon,
    Vmxoff,
    Vmclear,
    Vmptrld,
    Vmptrst,
    Vmread,
    Vmwrite,
    Vmlaunch,
    Vmresume,
    Vmcall,
    Vmfunc,
    Invept,
    Invvpid,
    Getsec,
}

impl Instruction {
    /// Every instruction, in the order of the enumeration.
    pub const ALL: [Self; 14] = [
        Self::Vmxon,
        Self::Vmxoff,
        Self::Vmclear,
        Self::Vmptrld,
        Self::Vmptrst,
        Self::Vmread,
        Self::Vmwrite,
        Self::Vmlaunch,
        Self::Vmresume,
        Self::Vmcall,
        Self::Vmfunc,
        Self::Invept,
        Self::Invvpid,
        Self::Getsec,
    ];

    /// Returns the mnemonic in capitals.
    #[must_use]
    pub const fn mnemonic(self) -> &'static str {
        match self {
            Self::Vmxon => "VMXON",
            Self::Vmxoff => "VMXOFF",
            Self::Vmclear => "VMCLEAR",
            Self::Vmptrld => "VMPTRLD",
            Self::Vmptrst => "VMPTRST",
            Self::Vmread => "VMREAD",
            Self::Vmwrite => "VMWRITE",
            Self::Vmlaunch => "VMLAUNCH",
            Self::Vmresume => "VMRESUME",
            Self::Vmcall => "VMCALL",
            Self::Vmfunc => "VMFUNC",
            Self::Invept => "INVEPT",
            Self::Invvpid => "INVVPID",
            Self::Getsec => "GETSEC",
        }
    }

    /// Returns the basic exit reason of this instruction in VMX non-root operation.
    #[must_use]
    pub const fn exit_reason(self) -> ExitReason {
        match self {
            Self::Vmxon => ExitReason::VMXON,
            Self::Vmxoff => ExitReason::VMXOFF,
            Self::Vmclear => ExitReason::VMCLEAR,
            Self::Vmptrld => ExitReason::VMPTRLD,
            Self::Vmptrst => ExitReason::VMPTRST,
            Self::Vmread => ExitReason::VMREAD,
            Self::Vmwrite => ExitReason::VMWRITE,
            Self::Vmlaunch => ExitReason::VMLAUNCH,
            Self::Vmresume => ExitReason::VMRESUME,
            Self::Vmcall => ExitReason::VMCALL,
            Self::Vmfunc => ExitReason::VMFUNC,
            Self::Invept => ExitReason::INVEPT,
            Self::Invvpid => ExitReason::INVVPID,
            Self::Getsec => ExitReason::GETSEC,
        }
    }

    /// Returns the ordered steps of this instruction.
    #[must_use]
    pub const fn steps(self) -> &'static [Step] {
        match self {
            Self::Vmxon => VMXON,
            Self::Vmxoff => VMXOFF,
            Self::Vmclear => VMCLEAR,
            Self::Vmptrld => VMPTRLD,
            Self::Vmptrst => VMPTRST,
            Self::Vmread => VMREAD,
            Self::Vmwrite => VMWRITE,
            Self::Vmlaunch => VMLAUNCH,
            Self::Vmresume => VMRESUME,
            Self::Vmcall => VMCALL,
            Self::Vmfunc => VMFUNC,
            Self::Invept => INVEPT,
            Self::Invvpid => INVVPID,
            Self::Getsec => GETSEC,
        }
    }
}

/// Whether, and how, a logical processor is in VMX operation (SDM Vol. 3C, "Introduction to VMX
/// Operation").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum VmxOperation {
    /// Outside VMX operation.
    #[default]
    Outside,
    /// VMX root operation.
    Root,
    /// VMX non-root operation.
    NonRoot,
}

/// The form of an instruction's ModR/M operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum OperandForm {
    /// mod = 11: a register.
    Register,
    /// A memory operand, or none at all.
    Memory,
}

/// What VMREAD and VMWRITE find in VMX non-root operation when they look at the controls and the
/// VMREAD and VMWRITE bitmaps (see [`crate::processor::LogicalProcessor::shadow_access`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum ShadowAccess {
    /// The access causes a VM exit.
    Exits,
    /// The access goes to the VMCS that the VMCS link pointer names.
    Shadowed,
}

/// The processor state that the preconditions look at.
#[derive(Clone, Debug)]
pub struct ExecutionContext<'a> {
    /// Outside, root or non-root.
    pub operation: VmxOperation,
    /// CR0, as it is (not as the guest reads it through the CR0 shadow).
    pub cr0: Cr0,
    /// CR4, as it is.
    pub cr4: Cr4,
    /// RFLAGS.
    pub rflags: Rflags,
    /// IA32_EFER.
    pub efer: Efer,
    /// CS.L.
    pub is_cs_long: bool,
    /// The current privilege level.
    pub cpl: u8,
    /// Whether the A20M pin masks address bit 20.
    pub is_a20_masked: bool,
    /// Whether the processor is in SMX operation.
    pub is_in_smx: bool,
    /// IA32_FEATURE_CONTROL.
    pub feature_control: u64,
    /// The form of the operand.
    pub operand: OperandForm,
    /// For VMREAD and VMWRITE in VMX non-root operation.
    pub shadow_access: ShadowAccess,
    /// The VMX capability MSRs.
    pub capabilities: &'a VmxCapabilities,
}

/// Why a VMX instruction is not executed at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum NotExecuted {
    /// It faults.
    Fault(Exception),
    /// It causes a VM exit with this basic exit reason, before any operand is read.
    Exit(ExitReason),
}

/// In which operation a step applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applies {
    /// Always.
    Any,
    /// Outside VMX operation.
    Outside,
    /// In VMX root operation.
    Root,
    /// In VMX non-root operation.
    NonRoot,
    /// In VMX root operation and outside VMX operation.
    RootOrOutside,
}

impl Applies {
    const fn to(self, operation: VmxOperation) -> bool {
        matches!(
            (self, operation),
            (Self::Any, _)
                | (Self::Outside | Self::RootOrOutside, VmxOperation::Outside)
                | (Self::Root | Self::RootOrOutside, VmxOperation::Root)
                | (Self::NonRoot, VmxOperation::NonRoot)
        )
    }

    /// Returns the name that the table of steps uses.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Any => "any",
            Self::Outside => "outside",
            Self::Root => "root",
            Self::NonRoot => "non-root",
            Self::RootOrOutside => "root-or-outside",
        }
    }
}

/// Who decides a step.
#[derive(Clone, Copy, Debug)]
pub enum Rule {
    /// [`check`]: if the condition holds, this is the answer.
    Precondition(fn(&ExecutionContext<'_>) -> bool, NotExecuted),
    /// Whoever executes the instruction: the access to the memory operand.
    Operand,
    /// A method of the logical processor.
    Processor,
    /// Nobody: the dual-monitor treatment, SMX and machine checks are out of scope.
    OutOfScope,
}

/// One step of an instruction.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// In which operation the step applies.
    pub applies: Applies,
    /// The place among the steps of the same instruction and operation, from 1.
    pub order: u8,
    /// Who decides it, and how.
    pub rule: Rule,
}

/// Judges the preconditions of `instruction`: everything before its operands are accessed.
///
/// # Examples
///
/// ```
/// use vmx_model::arch::{Cr0, Cr4, Efer, Rflags};
/// use vmx_model::capability::VmxProfile;
/// use vmx_model::event::Exception;
/// use vmx_model::precondition::{
///     ExecutionContext, Instruction, NotExecuted, OperandForm, ShadowAccess, VmxOperation, check,
/// };
///
/// let profile = VmxProfile::emulator_default();
/// let mut context = ExecutionContext {
///     operation: VmxOperation::Root,
///     cr0: Cr0::PE | Cr0::PG | Cr0::NE,
///     cr4: Cr4::PAE | Cr4::VMXE,
///     rflags: Rflags::FIXED1,
///     efer: Efer::LME | Efer::LMA,
///     is_cs_long: true,
///     cpl: 0,
///     is_a20_masked: false,
///     is_in_smx: false,
///     feature_control: 5,
///     operand: OperandForm::Memory,
///     shadow_access: ShadowAccess::Exits,
///     capabilities: &profile.caps,
/// };
/// assert_eq!(check(Instruction::Vmptrld, &context), Ok(()));
/// context.cpl = 3;
/// let fault = NotExecuted::Fault(Exception::gp(0));
/// assert_eq!(check(Instruction::Vmptrld, &context), Err(fault));
/// ```
///
/// # Errors
///
/// The answer of the first step that does not let the instruction pass.
pub fn check(instruction: Instruction, context: &ExecutionContext<'_>) -> Result<(), NotExecuted> {
    for step in instruction.steps() {
        if let Rule::Precondition(condition, answer) = step.rule
            && step.applies.to(context.operation)
            && condition(context)
        {
            return Err(answer);
        }
    }
    Ok(())
}

const UD: NotExecuted = NotExecuted::Fault(Exception::UD);
const GP: NotExecuted = NotExecuted::Fault(Exception::gp(0));

const fn exits(instruction: Instruction) -> NotExecuted {
    NotExecuted::Exit(instruction.exit_reason())
}

const fn here(
    applies: Applies,
    order: u8,
    condition: fn(&ExecutionContext<'_>) -> bool,
    answer: NotExecuted,
) -> Step {
    Step {
        applies,
        order,
        rule: Rule::Precondition(condition, answer),
    }
}

const fn operand(applies: Applies, order: u8) -> Step {
    Step {
        applies,
        order,
        rule: Rule::Operand,
    }
}

const fn processor(applies: Applies, order: u8) -> Step {
    Step {
        applies,
        order,
        rule: Rule::Processor,
    }
}

const fn out_of_scope(applies: Applies, order: u8) -> Step {
    Step {
        applies,
        order,
        rule: Rule::OutOfScope,
    }
}

fn always(_: &ExecutionContext<'_>) -> bool {
    true
}

fn is_register_form(c: &ExecutionContext<'_>) -> bool {
    c.operand == OperandForm::Register
}

fn is_outside(c: &ExecutionContext<'_>) -> bool {
    c.operation == VmxOperation::Outside
}

fn is_non_root(c: &ExecutionContext<'_>) -> bool {
    c.operation == VmxOperation::NonRoot
}

fn is_unprivileged(c: &ExecutionContext<'_>) -> bool {
    c.cpl > 0
}

/// CR0.PE = 0, or RFLAGS.VM = 1, or (IA32_EFER.LMA = 1 and CS.L = 0).
fn is_mode_illegal(c: &ExecutionContext<'_>) -> bool {
    !c.cr0.contains(Cr0::PE)
        || c.rflags.contains(Rflags::VM)
        || (c.efer.contains(Efer::LMA) && !c.is_cs_long)
}

fn is_outside_or_mode_illegal(c: &ExecutionContext<'_>) -> bool {
    is_outside(c) || is_mode_illegal(c)
}

fn is_vmxe_clear_or_mode_illegal(c: &ExecutionContext<'_>) -> bool {
    !c.cr4.contains(Cr4::VMXE) || is_mode_illegal(c)
}

fn is_vmxon_undefined(c: &ExecutionContext<'_>) -> bool {
    is_register_form(c) || is_vmxe_clear_or_mode_illegal(c)
}

fn is_vmxon_undefined_in_vmx(c: &ExecutionContext<'_>) -> bool {
    is_register_form(c) || is_mode_illegal(c)
}

fn is_a20_masked(c: &ExecutionContext<'_>) -> bool {
    c.is_a20_masked
}

fn are_control_registers_unsupported(c: &ExecutionContext<'_>) -> bool {
    let caps = c.capabilities;
    let violates =
        |value: u64, fixed0: u64, fixed1: u64| value & fixed0 != fixed0 || value & !fixed1 != 0;
    violates(c.cr0.bits(), caps.cr0_fixed0(), caps.cr0_fixed1())
        || violates(c.cr4.bits(), caps.cr4_fixed0(), caps.cr4_fixed1())
}

/// IA32_FEATURE_CONTROL: bit 0 is the lock, bit 1 allows VMXON in SMX operation, bit 2 outside it.
fn is_feature_control_unlocked(c: &ExecutionContext<'_>) -> bool {
    c.feature_control & 1 == 0
}

fn is_vmxon_in_smx_disabled(c: &ExecutionContext<'_>) -> bool {
    c.is_in_smx && c.feature_control & 2 == 0
}

fn is_vmxon_outside_smx_disabled(c: &ExecutionContext<'_>) -> bool {
    !c.is_in_smx && c.feature_control & 4 == 0
}

fn is_shadow_access_denied(c: &ExecutionContext<'_>) -> bool {
    is_non_root(c) && c.shadow_access == ShadowAccess::Exits
}

fn is_invept_undefined(c: &ExecutionContext<'_>) -> bool {
    is_register_form(c) || !c.capabilities.ept_vpid().contains(EptVpidCap::INVEPT)
}

fn is_invvpid_undefined(c: &ExecutionContext<'_>) -> bool {
    is_register_form(c) || !c.capabilities.ept_vpid().contains(EptVpidCap::INVVPID)
}

fn is_smxe_clear(c: &ExecutionContext<'_>) -> bool {
    !c.cr4.contains(Cr4::SMXE)
}

use Applies::{Any, NonRoot, Outside, Root, RootOrOutside};

const VMXON: &[Step] = &[
    here(Outside, 1, is_register_form, UD),
    here(Outside, 2, is_vmxe_clear_or_mode_illegal, UD),
    here(Outside, 3, is_unprivileged, GP),
    here(Outside, 4, is_a20_masked, GP),
    here(Outside, 5, are_control_registers_unsupported, GP),
    here(Outside, 6, is_feature_control_unlocked, GP),
    here(Outside, 7, is_vmxon_in_smx_disabled, GP),
    here(Outside, 8, is_vmxon_outside_smx_disabled, GP),
    operand(Outside, 9),
    processor(Outside, 10),
    processor(Outside, 11),
    processor(Outside, 12),
    here(NonRoot, 1, is_vmxon_undefined, UD),
    here(NonRoot, 2, always, exits(Instruction::Vmxon)),
    here(Root, 1, is_vmxon_undefined_in_vmx, UD),
    here(Root, 2, is_unprivileged, GP),
    processor(Root, 3),
];

const VMXOFF: &[Step] = &[
    here(Any, 1, is_outside_or_mode_illegal, UD),
    here(Any, 2, is_non_root, exits(Instruction::Vmxoff)),
    here(Any, 3, is_unprivileged, GP),
    out_of_scope(Any, 4),
    processor(Any, 5),
];

const VMCLEAR: &[Step] = &[
    here(Any, 1, is_register_form, UD),
    here(Any, 2, is_outside_or_mode_illegal, UD),
    here(Any, 3, is_non_root, exits(Instruction::Vmclear)),
    here(Any, 4, is_unprivileged, GP),
    operand(Any, 5),
    processor(Any, 6),
    processor(Any, 7),
    processor(Any, 8),
];

const VMPTRLD: &[Step] = &[
    here(Any, 1, is_register_form, UD),
    here(Any, 2, is_outside_or_mode_illegal, UD),
    here(Any, 3, is_non_root, exits(Instruction::Vmptrld)),
    here(Any, 4, is_unprivileged, GP),
    operand(Any, 5),
    processor(Any, 6),
    processor(Any, 7),
    processor(Any, 8),
    processor(Any, 9),
];

const VMPTRST: &[Step] = &[
    here(Any, 1, is_register_form, UD),
    here(Any, 2, is_outside_or_mode_illegal, UD),
    here(Any, 3, is_non_root, exits(Instruction::Vmptrst)),
    here(Any, 4, is_unprivileged, GP),
    operand(Any, 5),
    processor(Any, 6),
];

const VMREAD: &[Step] = &[
    here(Any, 1, is_outside_or_mode_illegal, UD),
    here(Any, 2, is_shadow_access_denied, exits(Instruction::Vmread)),
    here(Any, 3, is_unprivileged, GP),
    processor(Any, 4),
    processor(Any, 5),
    operand(Any, 6),
    processor(Any, 7),
];

const VMWRITE: &[Step] = &[
    here(Any, 1, is_outside_or_mode_illegal, UD),
    here(Any, 2, is_shadow_access_denied, exits(Instruction::Vmwrite)),
    here(Any, 3, is_unprivileged, GP),
    processor(Any, 4),
    operand(Any, 5),
    processor(Any, 6),
    processor(Any, 7),
    processor(Any, 8),
];

const VMLAUNCH: &[Step] = &[
    here(Any, 1, is_outside_or_mode_illegal, UD),
    here(Any, 2, is_non_root, exits(Instruction::Vmlaunch)),
    here(Any, 3, is_unprivileged, GP),
    processor(Any, 4),
    processor(Any, 5),
    processor(Any, 6),
    processor(Any, 7),
    processor(Any, 8),
    processor(Any, 9),
    out_of_scope(Any, 10),
    processor(Any, 11),
    processor(Any, 12),
    out_of_scope(Any, 13),
    processor(Any, 14),
];

const VMRESUME: &[Step] = &[
    here(Any, 1, is_outside_or_mode_illegal, UD),
    here(Any, 2, is_non_root, exits(Instruction::Vmresume)),
    here(Any, 3, is_unprivileged, GP),
    processor(Any, 4),
    processor(Any, 5),
    processor(Any, 6),
    processor(Any, 7),
    processor(Any, 8),
];

const VMCALL: &[Step] = &[
    here(Outside, 1, always, UD),
    here(NonRoot, 2, always, exits(Instruction::Vmcall)),
    here(Root, 1, is_mode_illegal, UD),
    here(Root, 2, is_unprivileged, GP),
    processor(Root, 3),
    out_of_scope(Root, 4),
    out_of_scope(Root, 5),
    out_of_scope(Root, 6),
    out_of_scope(Root, 7),
    out_of_scope(Root, 8),
    out_of_scope(Root, 9),
    out_of_scope(Root, 10),
];

const VMFUNC: &[Step] = &[
    here(RootOrOutside, 1, always, UD),
    processor(NonRoot, 1),
    processor(NonRoot, 2),
    processor(NonRoot, 3),
    processor(NonRoot, 4),
    processor(NonRoot, 5),
    processor(NonRoot, 6),
];

const INVEPT: &[Step] = &[
    here(Any, 1, is_invept_undefined, UD),
    here(Any, 2, is_outside_or_mode_illegal, UD),
    here(Any, 3, is_non_root, exits(Instruction::Invept)),
    here(Any, 4, is_unprivileged, GP),
    processor(Any, 5),
    operand(Any, 6),
    processor(Any, 7),
    processor(Any, 8),
];

const INVVPID: &[Step] = &[
    here(Any, 1, is_invvpid_undefined, UD),
    here(Any, 2, is_outside_or_mode_illegal, UD),
    here(Any, 3, is_non_root, exits(Instruction::Invvpid)),
    here(Any, 4, is_unprivileged, GP),
    processor(Any, 5),
    operand(Any, 6),
    processor(Any, 7),
    processor(Any, 8),
    processor(Any, 9),
    processor(Any, 10),
];

const GETSEC: &[Step] = &[
    here(NonRoot, 1, is_smxe_clear, UD),
    here(NonRoot, 2, always, exits(Instruction::Getsec)),
];
