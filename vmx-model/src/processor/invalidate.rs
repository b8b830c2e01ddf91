//! INVEPT, INVVPID and VMFUNC.
//!
//! SDM Vol. 3C, "INVEPT", "INVVPID", "VMFUNC" of the chapter "VMX Instruction Reference", and
//! "EPTP Switching". The processor judges the operands; which cached translations there are to
//! drop is known to whoever has a TLB.

use super::LogicalProcessor;
use crate::addr::{Hpa, Linear};
use crate::capability::EptVpidCap;
use crate::controls::{SecondaryControls, VmFunctionControls};
use crate::ept::Eptp;
use crate::error;
use crate::event::Exception;
use crate::field::Field;
use crate::memory::PhysicalMemory;
use crate::observer::{Completion, Operation};
use crate::outcome::VmxOutcome;
use crate::precondition::{Instruction, NotExecuted};

/// The cached translations that an INVEPT or INVVPID drops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Invalidation {
    /// Guest-physical and combined mappings of one EP4TA (bits 51:12 of an EPTP).
    SingleContextEpt {
        /// The EP4TA, in place.
        ep4ta: u64,
    },
    /// All guest-physical and combined mappings.
    AllContextsEpt,
    /// Linear and combined mappings of one linear address under one VPID.
    IndividualAddress {
        /// The VPID.
        vpid: u16,
        /// The linear address.
        address: Linear,
    },
    /// Linear and combined mappings of one VPID.
    SingleContext {
        /// The VPID.
        vpid: u16,
    },
    /// Linear and combined mappings of all VPIDs but 0.
    AllContexts,
    /// Linear and combined mappings of one VPID, but for global translations.
    SingleContextRetainingGlobals {
        /// The VPID.
        vpid: u16,
    },
}

/// What VMFUNC comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Vmfunc {
    /// #UD.
    Undefined,
    /// VM exit with basic exit reason 59.
    Exit,
    /// EPTP switching: the EPTP of the current VMCS is this one now.
    Switched {
        /// The new EPTP.
        eptp: u64,
    },
}

impl LogicalProcessor {
    /// Judges the type operand of INVEPT, before the descriptor is read.
    ///
    /// # Errors
    ///
    /// VMfail(28) if the processor does not support the type.
    pub fn check_invept_type(&mut self, kind: u64) -> Result<(), VmxOutcome> {
        let needed = match kind {
            1 => EptVpidCap::INVEPT_SINGLE_CONTEXT,
            2 => EptVpidCap::INVEPT_ALL_CONTEXTS,
            _ => return Err(self.fail(error::INVALID_INVEPT_INVVPID_OPERAND)),
        };
        self.require_type(needed)
    }

    /// Judges the type operand of INVVPID, before the descriptor is read.
    ///
    /// # Errors
    ///
    /// VMfail(28) if the processor does not support the type.
    pub fn check_invvpid_type(&mut self, kind: u64) -> Result<(), VmxOutcome> {
        let needed = match kind {
            0 => EptVpidCap::INVVPID_INDIVIDUAL_ADDRESS,
            1 => EptVpidCap::INVVPID_SINGLE_CONTEXT,
            2 => EptVpidCap::INVVPID_ALL_CONTEXTS,
            3 => EptVpidCap::INVVPID_RETAINING_GLOBALS,
            _ => return Err(self.fail(error::INVALID_INVEPT_INVVPID_OPERAND)),
        };
        self.require_type(needed)
    }

    fn require_type(&mut self, needed: EptVpidCap) -> Result<(), VmxOutcome> {
        if self.profile.caps.ept_vpid().contains(needed) {
            Ok(())
        } else {
            Err(self.fail(error::INVALID_INVEPT_INVVPID_OPERAND))
        }
    }

    /// INVEPT with its descriptor as two 64-bit words.
    ///
    /// Choice: bits 127:64 of the descriptor are not looked at, as in the manual's pseudo-code and
    /// in KVM, although its figure says that they must be zero.
    ///
    /// # Errors
    ///
    /// Outside VMX operation #UD; in VMX non-root operation a VM exit.
    pub fn invept(
        &mut self,
        kind: u64,
        descriptor: [u64; 2],
    ) -> Result<Result<Invalidation, VmxOutcome>, NotExecuted> {
        let operation = Operation::Invept { kind, descriptor };
        self.require_root(Instruction::Invept, operation)?;
        let judged = self.judge_invept(kind, descriptor[0]);
        Ok(self.invalidated(operation, judged))
    }

    fn judge_invept(&mut self, kind: u64, eptp: u64) -> Result<Invalidation, VmxOutcome> {
        self.check_invept_type(kind)?;
        if kind == 2 {
            return Ok(Invalidation::AllContextsEpt);
        }
        let eptp = Eptp(eptp);
        if !eptp.is_valid(&self.profile) {
            return Err(self.fail(error::INVALID_INVEPT_INVVPID_OPERAND));
        }
        let ep4ta = eptp.ep4ta();
        Ok(Invalidation::SingleContextEpt { ep4ta })
    }

    /// INVVPID with its descriptor as two 64-bit words.
    ///
    /// # Errors
    ///
    /// Outside VMX operation #UD; in VMX non-root operation a VM exit.
    pub fn invvpid(
        &mut self,
        kind: u64,
        descriptor: [u64; 2],
    ) -> Result<Result<Invalidation, VmxOutcome>, NotExecuted> {
        let operation = Operation::Invvpid { kind, descriptor };
        self.require_root(Instruction::Invvpid, operation)?;
        let judged = self.judge_invvpid(kind, descriptor);
        Ok(self.invalidated(operation, judged))
    }

    fn judge_invvpid(
        &mut self,
        kind: u64,
        [tag, address]: [u64; 2],
    ) -> Result<Invalidation, VmxOutcome> {
        self.check_invvpid_type(kind)?;
        let Ok(vpid) = u16::try_from(tag) else {
            return Err(self.fail(error::INVALID_INVEPT_INVVPID_OPERAND));
        };
        let is_vpid_wrong = vpid == 0 && kind != 2;
        let is_address_wrong = kind == 0 && !self.profile.facts.is_canonical(address);
        if is_vpid_wrong || is_address_wrong {
            return Err(self.fail(error::INVALID_INVEPT_INVVPID_OPERAND));
        }
        Ok(match kind {
            0 => Invalidation::IndividualAddress {
                vpid,
                address: Linear(address),
            },
            1 => Invalidation::SingleContext { vpid },
            3 => Invalidation::SingleContextRetainingGlobals { vpid },
            _ => Invalidation::AllContexts,
        })
    }

    fn invalidated(
        &mut self,
        operation: Operation,
        judged: Result<Invalidation, VmxOutcome>,
    ) -> Result<Invalidation, VmxOutcome> {
        let outcome = judged.err().unwrap_or(VmxOutcome::Succeed);
        let _ = self.completed(operation, outcome);
        judged
    }

    /// VMFUNC.
    pub fn vmfunc(&mut self, eax: u32, ecx: u32, memory: &dyn PhysicalMemory) -> Vmfunc {
        let outcome = self.judge_vmfunc(eax, ecx, memory);
        if let Vmfunc::Switched { eptp } = outcome {
            self.switch_eptp(eptp, ecx);
        }
        let completion = match outcome {
            Vmfunc::Undefined => Completion::Fault(Exception::UD),
            Vmfunc::Exit => Completion::Exits(Instruction::Vmfunc.exit_reason()),
            Vmfunc::Switched { eptp } => Completion::Value(eptp),
        };
        self.report_current(Operation::Vmfunc { eax, ecx }, completion);
        outcome
    }

    fn judge_vmfunc(&self, eax: u32, ecx: u32, memory: &dyn PhysicalMemory) -> Vmfunc {
        let non_root = crate::precondition::VmxOperation::NonRoot;
        let Some(vmcs) = self.current_vmcs().filter(|_| self.operation == non_root) else {
            return Vmfunc::Undefined;
        };
        let is_enabled = vmcs
            .secondary()
            .contains(SecondaryControls::ENABLE_VM_FUNCTIONS);
        if !is_enabled || eax > 63 {
            return Vmfunc::Undefined;
        }
        let is_function_enabled = vmcs.vm_functions().bits() & 1 << eax != 0;
        let is_eptp_switching = 1 << eax == VmFunctionControls::EPTP_SWITCHING.bits();
        if !is_function_enabled || !is_eptp_switching || ecx >= 512 {
            return Vmfunc::Exit;
        }
        let list = Hpa(vmcs.get(Field::EPTP_LIST_ADDRESS));
        let eptp = memory.read_u64(list.offset(8 * u64::from(ecx)));
        if Eptp(eptp).is_valid(&self.profile) {
            Vmfunc::Switched { eptp }
        } else {
            Vmfunc::Exit
        }
    }

    fn switch_eptp(&mut self, eptp: u64, ecx: u32) {
        let has_eptp_index = self.profile.fields.contains(Field::EPTP_INDEX);
        if let Some(vmcs) = self.current_vmcs_mut() {
            vmcs.set(Field::EPT_POINTER, eptp);
            if has_eptp_index {
                vmcs.set(Field::EPTP_INDEX, u64::from(ecx));
            }
        }
    }
}
