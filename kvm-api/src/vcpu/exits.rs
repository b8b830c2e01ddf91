//! What each VM exit leads to: one row for each reason (`vmx_exit_handlers[]`).

use crate::errno::Result;
use crate::guest_memory::{GuestAccess, Resolved};
use crate::run_page::offset;
use crate::vcpu::Loaded;
use crate::vcpu::completion::Completion;
use crate::vcpu::run::Next;
use kvm_bindings::*;
use vmx_model::addr::Gpa;
use vmx_model::controls::ProcControls;
use vmx_model::event::{EventType, InterruptionInfo, vector};
use vmx_model::exit_reason::ExitReason;
use vmx_model::field::Field;

type Handler = fn(&mut Loaded<'_>) -> Result<Next>;

/// The handlers. A reason that is not here should not occur: KVM_EXIT_INTERNAL_ERROR.
const HANDLERS: &[(ExitReason, Handler)] = &[
    (ExitReason::IO_INSTRUCTION, |vcpu| vcpu.handle_io()),
    (ExitReason::EPT_VIOLATION, |vcpu| {
        vcpu.handle_ept_violation()
    }),
    (ExitReason::EPT_MISCONFIGURATION, |vcpu| vcpu.emulate()),
    (ExitReason::EXTERNAL_INTERRUPT, |_| Ok(Next::Resume)),
    (ExitReason::CPUID, |vcpu| Ok(vcpu.handle_cpuid())),
    (ExitReason::HLT, |vcpu| Ok(vcpu.handle_hlt())),
    (ExitReason::RDMSR, |vcpu| Ok(vcpu.handle_rdmsr())),
    (ExitReason::WRMSR, |vcpu| Ok(vcpu.handle_wrmsr())),
    (ExitReason::CR_ACCESS, |vcpu| vcpu.handle_cr()),
    (ExitReason::DR_ACCESS, |vcpu| Ok(vcpu.handle_dr())),
    (ExitReason::EXCEPTION_OR_NMI, |vcpu| {
        Ok(vcpu.handle_exception())
    }),
    (ExitReason::TRIPLE_FAULT, |vcpu| {
        Ok(vcpu.return_reason(KVM_EXIT_SHUTDOWN))
    }),
    (ExitReason::INTERRUPT_WINDOW, |vcpu| {
        Ok(vcpu.close_window(ProcControls::INTERRUPT_WINDOW_EXITING))
    }),
    (ExitReason::NMI_WINDOW, |vcpu| {
        Ok(vcpu.close_window(ProcControls::NMI_WINDOW_EXITING))
    }),
    (ExitReason::TASK_SWITCH, |vcpu| vcpu.emulate()),
    (ExitReason::INVD, |vcpu| Ok(vcpu.skip_instruction())),
    (ExitReason::WBINVD, |vcpu| Ok(vcpu.skip_instruction())),
    (ExitReason::PAUSE, |vcpu| Ok(vcpu.skip_instruction())),
    (ExitReason::MWAIT, |vcpu| Ok(vcpu.handle_monitor_mwait())),
    (ExitReason::MONITOR, |vcpu| Ok(vcpu.handle_monitor_mwait())),
    (ExitReason::RDPMC, |vcpu| Ok(vcpu.inject_gp())),
    (ExitReason::XSETBV, |vcpu| Ok(vcpu.handle_xsetbv())),
    (ExitReason::VMCALL, |vcpu| Ok(vcpu.handle_vmcall())),
    (ExitReason::RDRAND, |vcpu| Ok(vcpu.inject_ud())),
    (ExitReason::RDSEED, |vcpu| Ok(vcpu.inject_ud())),
    (ExitReason::PREEMPTION_TIMER, |vcpu| {
        vcpu.vmcs
            .write(Field::VMX_PREEMPTION_TIMER_VALUE, 0xffff_ffff);
        Ok(Next::Resume)
    }),
    (ExitReason::MONITOR_TRAP_FLAG, |_| Ok(Next::Resume)),
    (ExitReason::VMCLEAR, |vcpu| Ok(vcpu.inject_ud())),
    (ExitReason::VMLAUNCH, |vcpu| Ok(vcpu.inject_ud())),
    (ExitReason::VMPTRLD, |vcpu| Ok(vcpu.inject_ud())),
    (ExitReason::VMPTRST, |vcpu| Ok(vcpu.inject_ud())),
    (ExitReason::VMREAD, |vcpu| Ok(vcpu.inject_ud())),
    (ExitReason::VMRESUME, |vcpu| Ok(vcpu.inject_ud())),
    (ExitReason::VMWRITE, |vcpu| Ok(vcpu.inject_ud())),
    (ExitReason::VMXOFF, |vcpu| Ok(vcpu.inject_ud())),
    (ExitReason::VMXON, |vcpu| Ok(vcpu.inject_ud())),
    (ExitReason::INVEPT, |vcpu| Ok(vcpu.inject_ud())),
    (ExitReason::INVVPID, |vcpu| Ok(vcpu.inject_ud())),
    (ExitReason::VMFUNC, |vcpu| Ok(vcpu.inject_ud())),
];

/// Exits that may come in the middle of the delivery of an event.
const MAY_INTERRUPT_DELIVERY: &[ExitReason] = &[
    ExitReason::EXCEPTION_OR_NMI,
    ExitReason::EPT_VIOLATION,
    ExitReason::EPT_MISCONFIGURATION,
    ExitReason::TASK_SWITCH,
    ExitReason::EXTERNAL_INTERRUPT,
];

const SUBERROR_DELIVERY: u32 = KVM_INTERNAL_ERROR_DELIVERY_EV;
const SUBERROR_UNEXPECTED: u32 = KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON;

/// The always-one bits of DR6.
const DR6_ACTIVE_LOW: u64 = 0xffff_0ff0;
/// Single step.
pub(crate) const DR6_BS: u64 = 1 << 14;

impl Loaded<'_> {
    /// `vmx_handle_exit()`.
    pub(crate) fn handle_exit(&mut self) -> Result<Next> {
        let [reason, delivering] = self
            .vmcs
            .read_all([Field::EXIT_REASON, Field::IDT_VECTORING_INFORMATION]);
        let reason = ExitReason(reason as u16);
        let delivers = InterruptionInfo(delivering as u32).is_valid();
        if delivers && !MAY_INTERRUPT_DELIVERY.contains(&reason) {
            let qualification = self.vmcs.read(Field::EXIT_QUALIFICATION);
            let data = [delivering, u64::from(reason.0), qualification, 0];
            return Ok(self.internal_error(SUBERROR_DELIVERY, &data));
        }
        match HANDLERS.iter().find(|row| row.0 == reason) {
            Some((_, handler)) => handler(self),
            None => {
                let data = [u64::from(reason.0), 0];
                Ok(self.internal_error(SUBERROR_UNEXPECTED, &data))
            }
        }
    }

    pub(crate) fn qualification(&self) -> u64 {
        self.vmcs.read(Field::EXIT_QUALIFICATION)
    }

    pub(crate) fn return_reason(&mut self, reason: u32) -> Next {
        self.set_exit_reason(reason);
        Next::Return
    }

    /// KVM_EXIT_INTERNAL_ERROR.
    pub(crate) fn internal_error(&mut self, suberror: u32, data: &[u64]) -> Next {
        self.run.write(offset::EXIT, suberror);
        self.run.write(offset::EXIT + 4, data.len() as u32);
        for (index, word) in data.iter().enumerate() {
            self.run.write(offset::EXIT + 8 + 8 * index, *word);
        }
        self.return_reason(KVM_EXIT_INTERNAL_ERROR)
    }

    /// An instruction that cannot be emulated: its bytes, if they could be fetched, and what the
    /// VM exit said (`prepare_emulation_failure_exit()`).
    pub(crate) fn emulation_failure(&mut self, bytes: &[u8]) -> Next {
        let info = [
            Field::EXIT_REASON,
            Field::EXIT_QUALIFICATION,
            Field::IDT_VECTORING_INFORMATION,
            Field::VM_EXIT_INTERRUPTION_INFORMATION,
            Field::VM_EXIT_INTERRUPTION_ERROR_CODE,
        ]
        .map(|field| self.vmcs.read(field));
        let mut data = vec![u64::from(!bytes.is_empty())];
        if !bytes.is_empty() {
            // The size, then fifteen bytes.
            let mut instruction = [0; 16];
            instruction[0] = bytes.len() as u8;
            instruction[1..=bytes.len()].copy_from_slice(bytes);
            data.extend(
                instruction
                    .chunks_exact(8)
                    .map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes"))),
            );
        }
        data.extend(info);
        self.internal_error(KVM_INTERNAL_ERROR_EMULATION, &data)
    }

    /// `kvm_skip_emulated_instruction()`: behind the instruction; a trap flag takes effect.
    pub(crate) fn skip_instruction(&mut self) -> Next {
        let [length, rflags] = self
            .vmcs
            .read_all([Field::VM_EXIT_INSTRUCTION_LENGTH, Field::GUEST_RFLAGS]);
        let trap = rflags & (1 << 8) != 0;
        self.advance_rip(length);
        self.set_interrupt_shadow(0);
        if trap {
            self.single_step_trap()
        } else {
            Next::Resume
        }
    }

    /// Moves RIP on, within the width of the code.
    fn advance_rip(&mut self, length: u64) {
        let rip = self.state.rip.wrapping_add(length);
        let access = self.vmcs.read(Field::GUEST_CS_ACCESS_RIGHTS);
        let is_64_bit = self.is_long_mode() && access & (1 << 13) != 0;
        // Beyond 4 GiB the width counts only if the old RIP was below (`vmx_skip...()`).
        let crosses = (rip ^ self.state.rip) >> 31 == 3;
        self.state.rip = if crosses && !is_64_bit {
            rip & 0xffff_ffff
        } else {
            rip
        };
    }

    /// `kvm_vcpu_do_singlestep()`.
    pub(crate) fn single_step_trap(&mut self) -> Next {
        if self.state.debug.single_steps() {
            let rip = self.linear_rip();
            return self.debug_exit(vector::DB, rip, DR6_BS | DR6_ACTIVE_LOW);
        }
        self.queue_exception(vector::DB, None, Some(DR6_BS));
        Next::Resume
    }

    /// KVM_EXIT_DEBUG.
    fn debug_exit(&mut self, exception: u8, pc: u64, dr6: u64) -> Next {
        let dr7 = self.vmcs.read(Field::GUEST_DR7);
        self.run.write(offset::EXIT, u32::from(exception));
        self.run.write(offset::EXIT + 4, 0_u32);
        for (index, word) in [pc, dr6, dr7].into_iter().enumerate() {
            self.run.write(offset::EXIT + 8 + 8 * index, word);
        }
        self.return_reason(KVM_EXIT_DEBUG)
    }

    pub(crate) fn inject_gp(&mut self) -> Next {
        self.queue_exception(vector::GP, Some(0), None);
        Next::Resume
    }

    pub(crate) fn inject_ud(&mut self) -> Next {
        self.queue_exception(vector::UD, None, None);
        Next::Resume
    }

    fn close_window(&mut self, control: ProcControls) -> Next {
        let controls = self.state.controls.proc & !u64::from(control.bits());
        self.write_proc_controls(controls);
        Next::Resume
    }

    fn handle_hlt(&mut self) -> Next {
        match self.skip_instruction() {
            Next::Return => Next::Return,
            Next::Resume => self.return_reason(KVM_EXIT_HLT),
        }
    }

    /// `handle_exception_nmi()`.
    fn handle_exception(&mut self) -> Next {
        let info = InterruptionInfo(self.vmcs.read(Field::VM_EXIT_INTERRUPTION_INFORMATION) as u32);
        let code = self.vmcs.read(Field::VM_EXIT_INTERRUPTION_ERROR_CODE) as u32;
        self.state.event_instruction_length = self.vmcs.read(Field::VM_EXIT_INSTRUCTION_LENGTH);
        match info.vector() {
            vector::DB => {
                if info.kind() == Some(EventType::PrivilegedSoftwareException) {
                    let _ = self.skip_instruction();
                }
                self.handle_debug_exception()
            }
            vector::BP => {
                let pc = self.linear_rip();
                let dr6 = self.state.dr6;
                self.debug_exit(vector::BP, pc, dr6)
            }
            vector::UD => self.handle_undefined(),
            vector::AC => {
                self.queue_exception(vector::AC, Some(code), None);
                Next::Resume
            }
            other => {
                self.run.write(offset::EXIT, u32::from(other));
                self.run.write(offset::EXIT + 4, code);
                self.return_reason(KVM_EXIT_EXCEPTION)
            }
        }
    }

    fn handle_debug_exception(&mut self) -> Next {
        let causes = self.qualification();
        let debug = self.state.debug;
        if !debug.single_steps() && !debug.uses_hardware_breakpoints() {
            self.queue_exception(vector::DB, None, Some(causes));
            return Next::Resume;
        }
        let pc = self.linear_rip();
        self.debug_exit(vector::DB, pc, causes | DR6_ACTIVE_LOW)
    }

    /// #UD: a VMMCALL becomes a VMCALL (quirk FIX_HYPERCALL_INSN), anything else is the guest's.
    fn handle_undefined(&mut self) -> Next {
        const VMMCALL: [u8; 3] = [0x0f, 0x01, 0xd9];
        const VMCALL: [u8; 3] = [0x0f, 0x01, 0xc1];
        let kept = self.vm.config().enabled.disabled_quirks
            & u64::from(KVM_X86_QUIRK_FIX_HYPERCALL_INSN)
            == 0;
        let mut bytes = [0; 3];
        let is_vmmcall = self.read_linear(self.linear_rip(), &mut bytes) == 3 && bytes == VMMCALL;
        if kept && is_vmmcall && self.write_linear(self.linear_rip(), &VMCALL) {
            return Next::Resume;
        }
        self.inject_ud()
    }

    fn handle_monitor_mwait(&mut self) -> Next {
        // Choice: as with the quirk MWAIT_NEVER_UD_FAULTS, both do nothing.
        self.skip_instruction()
    }

    /// `kvm_emulate_xsetbv()`.
    fn handle_xsetbv(&mut self) -> Next {
        let [rax, rcx, rdx, ..] = self.state.regs;
        let value = rax & 0xffff_ffff | rdx << 32;
        if rcx as u32 != 0 || !self.is_valid_xcr0(value) {
            return self.inject_gp();
        }
        self.state.xcr0 = value;
        self.skip_instruction()
    }

    /// `kvm_emulate_hypercall()`: none is offered but MAP_GPA_RANGE, if user space takes it.
    fn handle_vmcall(&mut self) -> Next {
        const KVM_EPERM: i64 = -1;
        const KVM_ENOSYS: i64 = -1000;
        const MAP_GPA_RANGE: u64 = 12;
        let [rax, rcx, rdx, rbx, _, _, rsi, ..] = self.state.regs;
        let is_64_bit =
            self.is_long_mode() && self.vmcs.read(Field::GUEST_CS_ACCESS_RIGHTS) & (1 << 13) != 0;
        let width = if is_64_bit { u64::MAX } else { 0xffff_ffff };
        let ring = self.vmcs.read(Field::GUEST_SS_ACCESS_RIGHTS) >> 5 & 3;
        let nr = rax & width;
        let taken = self.vm.config().enabled.exit_hypercall & (1 << MAP_GPA_RANGE) != 0;
        if ring == 0 && nr == MAP_GPA_RANGE && taken {
            let words = [nr, rbx & width, rcx & width, rdx & width, rsi & width, 0, 0];
            for (index, word) in words.into_iter().enumerate() {
                self.run.write(offset::EXIT + 8 * index, word);
            }
            self.run.write(offset::EXIT + 56, 0_u64);
            self.run.write(offset::EXIT + 64, u64::from(is_64_bit));
            self.state.completion = Completion::Hypercall;
            return self.return_reason(KVM_EXIT_HYPERCALL);
        }
        let result = if ring == 0 { KVM_ENOSYS } else { KVM_EPERM };
        self.state.regs[0] = result.cast_unsigned() & width;
        self.skip_instruction()
    }

    /// Takes the result of a hypercall from user space.
    pub(crate) fn complete_hypercall(&mut self) -> Next {
        let result: u64 = self.run.read(offset::EXIT + 56);
        let is_64_bit = self.run.read::<u64>(offset::EXIT + 64) & 1 != 0;
        self.state.regs[0] = if is_64_bit {
            result
        } else {
            result & 0xffff_ffff
        };
        self.skip_instruction()
    }

    /// `handle_ept_violation()`: the page is mapped, or the access is MMIO.
    fn handle_ept_violation(&mut self) -> Result<Next> {
        const WRITE: u64 = 1 << 1;
        const FETCH: u64 = 1 << 2;
        let qualification = self.qualification();
        let gpa = Gpa(self.vmcs.read(Field::GUEST_PHYSICAL_ADDRESS));
        let access = if qualification & WRITE != 0 {
            GuestAccess::Write
        } else {
            GuestAccess::Read
        };
        match self.vm.memory().resolve(gpa, access)? {
            Resolved::Mapped => Ok(Next::Resume),
            Resolved::Mmio if qualification & FETCH != 0 => Ok(self.emulation_failure(&[])),
            Resolved::Mmio => self.emulate(),
        }
    }
}
