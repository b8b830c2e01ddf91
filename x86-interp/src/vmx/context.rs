//! The processor state that the preconditions of VMX instructions look at.

use vmx_model::arch::SegmentRegister;
use vmx_model::event::Exception;
use vmx_model::exit::VmExit;
use vmx_model::precondition::{
    self, ExecutionContext, Instruction, NotExecuted, OperandForm, ShadowAccess,
};

use super::info::{displacement, instruction_info};
use crate::insn::{Insn, Operand};
use crate::{Cpu, Exec, Fault};

impl Cpu {
    /// Judges everything that comes before a VMX instruction's operands are accessed.
    pub(crate) fn check_vmx(&mut self, instruction: Instruction, insn: &Insn) -> Exec {
        self.check_vmx_access(instruction, insn, ShadowAccess::Exits)
    }

    /// As [`Cpu::check_vmx`], for VMREAD and VMWRITE whose shadow bitmaps were looked at.
    pub(crate) fn check_vmx_access(
        &mut self,
        instruction: Instruction,
        insn: &Insn,
        shadow_access: ShadowAccess,
    ) -> Exec {
        self.tell_where_software_is();
        let Some(processor) = self.processor() else {
            return Err(Exception::UD.into());
        };
        let context = ExecutionContext {
            operation: processor.operation(),
            cr0: self.state.cr0,
            cr4: self.state.cr4,
            rflags: self.state.rflags,
            efer: self.state.efer,
            is_cs_long: self.state.segment(SegmentRegister::Cs).access.is_long(),
            cpl: self.cpl(),
            is_a20_masked: false,
            is_in_smx: false,
            feature_control: self.msrs.feature_control,
            operand: operand_form(instruction, insn),
            shadow_access,
            capabilities: &processor.profile().caps,
        };
        let judged = precondition::check(instruction, &context);
        judged.map_err(|e| self.not_executed(e, instruction, insn))
    }

    /// Turns the model's answer into the fault or VM exit of `insn`.
    pub(crate) fn not_executed(
        &mut self,
        answer: NotExecuted,
        instruction: Instruction,
        insn: &Insn,
    ) -> Fault {
        match answer {
            NotExecuted::Fault(exception) => exception.into(),
            NotExecuted::Exit(reason) => {
                let exit = VmExit::new(reason)
                    .of_length(insn.length)
                    .qualified(displacement(insn))
                    .informed(instruction_info(instruction, insn));
                self.vm_exit(exit)
            }
        }
    }
}

/// VMREAD and VMWRITE have a register form; of the others with an operand it is undefined.
fn operand_form(instruction: Instruction, insn: &Insn) -> OperandForm {
    let may_be_register = matches!(instruction, Instruction::Vmread | Instruction::Vmwrite);
    let has_memory = insn.operands.contains(&Operand::Memory);
    let has_any = insn.operands[0] != Operand::None;
    if has_any && !has_memory && !may_be_register {
        OperandForm::Register
    } else {
        OperandForm::Memory
    }
}
