//! Control registers in VMX operation: masks and shadows, VM exits, fixed bits, the TPR shadow
//! (SDM Vol. 3C, "Guest/Host Masks and Read Shadows for CR0 and CR4", "Restrictions on VMX
//! Operation", "TPR Virtualization").

use vmx_model::arch::Cr0;
use vmx_model::event::Exception;
use vmx_model::exit::VmExit;
use vmx_model::exit_reason::ExitReason;
use vmx_model::intercept::control_register::{self, Cr8, LmswOperand, Read, Write};
use vmx_model::precondition::VmxOperation;

use crate::insn::{Insn, Operand};
use crate::vmx::info::register_number;
use crate::{Cpu, Exec};

impl Cpu {
    /// Returns CR0 as software sees it.
    pub(crate) fn visible_cr0(&self) -> u64 {
        let cr0 = self.state.cr0;
        self.guest_vmcs()
            .map_or(cr0.bits(), |v| control_register::read_cr0(v, cr0))
    }

    /// Returns CR4 as software sees it.
    pub(crate) fn visible_cr4(&self) -> u64 {
        let cr4 = self.state.cr4;
        self.guest_vmcs()
            .map_or(cr4.bits(), |v| control_register::read_cr4(v, cr4))
    }

    /// MOV from CR3 or CR8 to operand 0: returns the value.
    ///
    /// # Errors
    /// The VM exit.
    pub(crate) fn ask_about_cr_read(&mut self, number: u8, insn: &Insn) -> Exec<u64> {
        let gpr = register_number(insn.operands[0]) as u8;
        let cr3 = self.state.cr3;
        match (number, self.guest_vmcs()) {
            (8, Some(vmcs)) => match control_register::mov_from_cr8(vmcs, gpr) {
                Cr8::Register => Ok(self.read_cr8()),
                Cr8::VirtualTpr => Ok(u64::from(self.virtual_tpr() >> 4)),
                Cr8::Exit(qualification) => Err(self.cr_exit(insn, qualification)),
            },
            (8, None) => Ok(self.read_cr8()),
            (_, Some(vmcs)) => match control_register::mov_from_cr3(vmcs, cr3, gpr) {
                Read::Value(value) => Ok(value),
                Read::Exit(qualification) => Err(self.cr_exit(insn, qualification)),
            },
            (_, None) => Ok(cr3),
        }
    }

    /// MOV of `value` from operand 1 to CR0, CR3 or CR4: returns what the register is to get.
    ///
    /// # Errors
    /// The VM exit.
    pub(crate) fn ask_about_cr_write(&mut self, number: u8, value: u64, insn: &Insn) -> Exec<u64> {
        let gpr = register_number(insn.operands[1]) as u8;
        let (cr0, cr4) = (self.state.cr0, self.state.cr4);
        let Some(vmcs) = self.guest_vmcs() else {
            return Ok(value);
        };
        let write = match number {
            0 => control_register::mov_to_cr0(vmcs, cr0, value, gpr),
            3 => control_register::mov_to_cr3(vmcs, value, gpr),
            _ => control_register::mov_to_cr4(vmcs, cr4, value, gpr),
        };
        self.settle(write, insn)
    }

    /// MOV of `value` from operand 1 to CR8.
    ///
    /// # Errors
    /// The VM exit, or #GP(0).
    pub(crate) fn move_to_cr8(&mut self, value: u64, insn: &Insn) -> Exec {
        let gpr = register_number(insn.operands[1]) as u8;
        match self
            .guest_vmcs()
            .map(|vmcs| control_register::mov_to_cr8(vmcs, gpr))
        {
            None | Some(Cr8::Register) => self.write_cr8(value),
            Some(Cr8::Exit(qualification)) => Err(self.cr_exit(insn, qualification)),
            Some(Cr8::VirtualTpr) if value > 0xf => Err(Exception::gp(0).into()),
            Some(Cr8::VirtualTpr) => {
                self.set_virtual_tpr((value as u8) << 4);
                Ok(())
            }
        }
    }

    /// CLTS: returns the new CR0.
    ///
    /// # Errors
    /// The VM exit.
    pub(crate) fn ask_about_clts(&mut self, insn: &Insn) -> Exec<Cr0> {
        let cr0 = self.state.cr0;
        let Some(vmcs) = self.guest_vmcs() else {
            return Ok(cr0 - Cr0::TS);
        };
        let write = control_register::clts(vmcs, cr0);
        self.settle(write, insn).map(Cr0::from_bits_retain)
    }

    /// LMSW of `source`: returns the new CR0.
    ///
    /// # Errors
    /// The VM exit.
    pub(crate) fn ask_about_lmsw(&mut self, source: u16, insn: &Insn) -> Exec<u64> {
        let cr0 = self.state.cr0;
        let Some(vmcs) = self.guest_vmcs() else {
            return Ok(cr0.bits() & !0xe | u64::from(source) & 0xf);
        };
        let is_memory = insn.operands[0] == Operand::Memory;
        let operand = if is_memory {
            LmswOperand::Memory
        } else {
            LmswOperand::Register
        };
        match control_register::lmsw(vmcs, cr0, source, operand) {
            Write::Value(value) => Ok(value),
            Write::Exit(qualification) => {
                let mut exit = VmExit::new(ExitReason::CR_ACCESS)
                    .of_length(insn.length)
                    .qualified(qualification);
                if is_memory {
                    exit = exit.at_linear(self.unchecked_linear(insn).0);
                }
                Err(self.vm_exit(exit))
            }
        }
    }

    fn settle(&mut self, write: Write, insn: &Insn) -> Exec<u64> {
        match write {
            Write::Value(value) => Ok(value),
            Write::Exit(qualification) => Err(self.cr_exit(insn, qualification)),
        }
    }

    fn cr_exit(&mut self, insn: &Insn, qualification: u64) -> crate::Fault {
        self.exit_by(ExitReason::CR_ACCESS, insn, qualification, 0)
    }

    /// #GP(0) for a value of CR0 that VMX operation does not allow.
    pub(crate) fn check_cr0_in_vmx(&self, value: u64) -> Exec {
        let Some(processor) = self.processor() else {
            return Ok(());
        };
        let caps = &processor.profile().caps;
        let is_allowed = match (processor.operation(), self.guest_vmcs()) {
            (VmxOperation::Outside, _) => true,
            (_, Some(vmcs)) => control_register::is_cr0_supported(vmcs, caps, value),
            (_, None) => {
                let (must1, may1) = (caps.cr0_fixed0(), caps.cr0_fixed1());
                value & must1 == must1 && value & !may1 == 0
            }
        };
        if is_allowed {
            Ok(())
        } else {
            Err(Exception::gp(0).into())
        }
    }

    /// #GP(0) for a value of CR4 that VMX operation does not allow.
    pub(crate) fn check_cr4_in_vmx(&self, value: u64) -> Exec {
        let Some(processor) = self.processor() else {
            return Ok(());
        };
        let is_outside = processor.operation() == VmxOperation::Outside;
        if is_outside || control_register::is_cr4_supported(&processor.profile().caps, value) {
            Ok(())
        } else {
            Err(Exception::gp(0).into())
        }
    }
}
