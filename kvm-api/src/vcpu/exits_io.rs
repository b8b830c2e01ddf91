//! VM exits by IN and OUT, RDMSR and WRMSR, CPUID, and accesses to control and debug registers
//! (`handle_io()`, `kvm_emulate_rdmsr()`, `kvm_emulate_cpuid()`, `handle_cr()`, `handle_dr()`).

use crate::errno::Result;
use crate::msr_filter::MsrAccess;
use crate::run_page::offset;
use crate::vcpu::Loaded;
use crate::vcpu::completion::{Completion, IoAccess, IoSpace};
use crate::vcpu::msr::{Initiator, MsrError};
use crate::vcpu::run::Next;
use kvm_bindings::*;
use vmx_model::arch::Cr4;
use vmx_model::event::vector;

const RAX: usize = 0;
const RCX: usize = 1;
const RDX: usize = 2;
const RBX: usize = 3;

/// Bits of DR6 that are always 1, and those that a MOV changes (`DR6_VOLATILE`).
const DR6_FIXED_1: u64 = 0xfffe_0ff0;
const DR6_VOLATILE: u64 = 0x0001_e80f;
const DR7_FIXED_1: u64 = 0x400;
const DR7_VOLATILE: u64 = 0xffff_2bff;

impl Loaded<'_> {
    /// `handle_io()`.
    pub(crate) fn handle_io(&mut self) -> Result<Next> {
        let qualification = self.qualification();
        let is_string = qualification & 0x10 != 0;
        if is_string {
            return self.emulate();
        }
        let size = (qualification & 7) as u8 + 1;
        let port = (qualification >> 16) as u16;
        let is_in = qualification & 8 != 0;
        let linear_rip = self.linear_rip();
        let access = IoAccess {
            space: IoSpace::Port,
            address: u64::from(port),
            size,
            data: self.state.regs[RAX] & (u64::MAX >> (64 - 8 * u32::from(size))),
        };
        if is_in {
            self.state.completion = Completion::PortIn { linear_rip, size };
        } else if self.vm.io_bus().takes(&access) {
            return Ok(self.skip_instruction());
        } else {
            self.run.write(offset::PIO_DATA, access.data as u32);
            self.leave_port_out(port, linear_rip);
        }
        Ok(self.port_exit(&access, is_in, 1))
    }

    /// An OUT is stepped over with the next KVM_RUN; with the quirk OUT_7E_INC_RIP one to port 7EH
    /// at once.
    fn leave_port_out(&mut self, port: u16, linear_rip: u64) {
        let has_quirk = || {
            let disabled = self.vm.config().enabled.disabled_quirks;
            disabled & u64::from(KVM_X86_QUIRK_OUT_7E_INC_RIP) == 0
        };
        if port == 0x7e && has_quirk() {
            let _ = self.skip_instruction();
        } else {
            self.state.completion = Completion::PortOut { linear_rip };
        }
    }

    /// KVM_EXIT_IO. The data are in the port I/O page.
    pub(crate) fn port_exit(&mut self, access: &IoAccess, is_in: bool, count: u32) -> Next {
        let direction = if is_in {
            KVM_EXIT_IO_IN
        } else {
            KVM_EXIT_IO_OUT
        };
        self.run.write(offset::EXIT, direction as u8);
        self.run.write(offset::EXIT + 1, access.size);
        self.run.write(offset::EXIT + 2, access.address as u16);
        self.run.write(offset::EXIT + 4, count);
        self.run.write(offset::EXIT + 8, offset::PIO_DATA as u64);
        self.return_reason(KVM_EXIT_IO)
    }

    /// KVM_EXIT_MMIO.
    pub(crate) fn mmio_exit(&mut self, access: &IoAccess, is_write: bool) -> Next {
        self.run.write(offset::EXIT, access.address);
        self.run.write(offset::EXIT + 8, access.data);
        self.run.write(offset::EXIT + 16, u32::from(access.size));
        self.run.write(offset::EXIT + 20, u8::from(is_write));
        self.return_reason(KVM_EXIT_MMIO)
    }

    /// Takes the value of an IN (`complete_fast_pio_in()`).
    pub(crate) fn complete_port_in(&mut self, linear_rip: u64, size: u8) -> Next {
        if self.linear_rip() != linear_rip {
            return Next::Resume;
        }
        let data = u64::from(self.run.read::<u32>(offset::PIO_DATA));
        let rax = self.state.regs[RAX];
        self.state.regs[RAX] = match size {
            1 => rax & !0xff | data & 0xff,
            2 => rax & !0xffff | data & 0xffff,
            _ => data,
        };
        self.skip_instruction()
    }

    /// `kvm_emulate_cpuid()`.
    pub(crate) fn handle_cpuid(&mut self) -> Next {
        self.update_cpuid_runtime();
        let [rax, rcx, ..] = self.state.regs;
        let [eax, ebx, ecx, edx] = self.cpuid_answer(rax as u32, rcx as u32);
        self.state.regs[RAX] = u64::from(eax);
        self.state.regs[RBX] = u64::from(ebx);
        self.state.regs[RCX] = u64::from(ecx);
        self.state.regs[RDX] = u64::from(edx);
        self.skip_instruction()
    }

    /// RDMSR.
    pub(crate) fn handle_rdmsr(&mut self) -> Next {
        let index = self.state.regs[RCX] as u32;
        if !self.vm.msr_filter().allows(index, MsrAccess::Read) {
            return self.refuse_msr(KVM_MSR_EXIT_REASON_FILTER, MsrAccess::Read, 0);
        }
        match self.get_msr(index, Initiator::Guest) {
            Ok(value) => {
                self.put_edx_eax(value);
                self.skip_instruction()
            }
            Err(error) => self.refuse_msr(reason(error), MsrAccess::Read, 0),
        }
    }

    /// WRMSR.
    pub(crate) fn handle_wrmsr(&mut self) -> Next {
        let [rax, rcx, rdx, ..] = self.state.regs;
        let (index, value) = (rcx as u32, rax & 0xffff_ffff | rdx << 32);
        if !self.vm.msr_filter().allows(index, MsrAccess::Write) {
            return self.refuse_msr(KVM_MSR_EXIT_REASON_FILTER, MsrAccess::Write, value);
        }
        match self.set_msr(index, value, Initiator::Guest) {
            Ok(()) => self.skip_instruction(),
            Err(error) => self.refuse_msr(reason(error), MsrAccess::Write, value),
        }
    }

    fn put_edx_eax(&mut self, value: u64) {
        self.state.regs[RAX] = value & 0xffff_ffff;
        self.state.regs[RDX] = value >> 32;
    }

    /// #GP, or to user space if it has asked for the reason (`kvm_msr_user_space()`).
    fn refuse_msr(&mut self, reason: u32, access: MsrAccess, value: u64) -> Next {
        if self.vm.config().enabled.user_space_msr & u64::from(reason) == 0 {
            return self.inject_gp();
        }
        let index = self.state.regs[RCX] as u32;
        // error and its padding, reason, index, data.
        self.run.write(offset::EXIT, 0_u64);
        self.run.write(offset::EXIT + 8, reason);
        self.run.write(offset::EXIT + 12, index);
        self.run.write(offset::EXIT + 16, value);
        let (completion, exit) = match access {
            MsrAccess::Read => (Completion::ReadMsr, KVM_EXIT_X86_RDMSR),
            MsrAccess::Write => (Completion::WriteMsr, KVM_EXIT_X86_WRMSR),
        };
        self.state.completion = completion;
        self.return_reason(exit)
    }

    /// Takes what user space made of a RDMSR.
    pub(crate) fn complete_read_msr(&mut self) -> Next {
        if self.run.read::<u8>(offset::EXIT) != 0 {
            return self.inject_gp();
        }
        let value: u64 = self.run.read(offset::EXIT + 16);
        self.put_edx_eax(value);
        self.skip_instruction()
    }

    /// Takes what user space made of a WRMSR.
    pub(crate) fn complete_write_msr(&mut self) -> Next {
        if self.run.read::<u8>(offset::EXIT) != 0 {
            return self.inject_gp();
        }
        self.skip_instruction()
    }

    /// `handle_cr()`: CR8 is the task priority; the others go by the emulator, which has the rules.
    pub(crate) fn handle_cr(&mut self) -> Result<Next> {
        let qualification = self.qualification();
        let (number, kind) = (qualification & 15, qualification >> 4 & 3);
        let register = (qualification >> 8 & 15) as usize;
        match (number, kind) {
            (8, 0) => Ok(self.handle_set_cr8(register)),
            (8, 1) => {
                self.state.regs[register] = self.state.cr8;
                Ok(self.skip_instruction())
            }
            _ => self.emulate(),
        }
    }

    /// A lowered task priority is told to user space.
    fn handle_set_cr8(&mut self, register: usize) -> Next {
        let (before, value) = (self.state.cr8, self.state.regs[register]);
        if value > 15 {
            return self.inject_gp();
        }
        self.state.cr8 = value;
        match self.skip_instruction() {
            Next::Resume if before > value => self.return_reason(KVM_EXIT_SET_TPR),
            next => next,
        }
    }

    /// `handle_dr()`.
    pub(crate) fn handle_dr(&mut self) -> Next {
        const GD: u64 = 1 << 13;
        const BD: u64 = 1 << 13;
        let qualification = self.qualification();
        let (number, register) = (
            (qualification & 7) as usize,
            (qualification >> 8 & 15) as usize,
        );
        if matches!(number, 4 | 5) && self.state.cr4 & Cr4::DE.bits() != 0 {
            return self.inject_ud();
        }
        if self.cpl() > 0 {
            return self.inject_gp();
        }
        if self.state.dr7 & GD != 0 {
            self.queue_exception(vector::DB, None, Some(BD));
            return Next::Resume;
        }
        if qualification & 0x10 != 0 {
            self.state.regs[register] = self.debug_register(number);
        } else if !self.set_debug_register(number, self.state.regs[register]) {
            return self.inject_gp();
        }
        self.skip_instruction()
    }

    fn debug_register(&self, number: usize) -> u64 {
        match number {
            0..=3 => self.state.db[number],
            4 | 6 => self.state.dr6,
            _ => self.state.dr7,
        }
    }

    /// `kvm_set_dr()`; false for an upper half of DR6 or DR7 that is not 0.
    fn set_debug_register(&mut self, number: usize, value: u64) -> bool {
        if number > 3 && value >> 32 != 0 {
            return false;
        }
        match number {
            0..=3 => self.state.db[number] = value,
            4 | 6 => self.state.dr6 = value & DR6_VOLATILE | DR6_FIXED_1 | 1 << 16,
            _ => self.state.dr7 = value & DR7_VOLATILE | DR7_FIXED_1,
        }
        self.update_debug_registers();
        true
    }

    /// Returns the current privilege level: that of SS.
    pub(crate) fn cpl(&self) -> u64 {
        use vmx_model::field::Field;
        self.vmcs.read(Field::GUEST_SS_ACCESS_RIGHTS) >> 5 & 3
    }
}

const fn reason(error: MsrError) -> u32 {
    match error {
        MsrError::Invalid => KVM_MSR_EXIT_REASON_INVAL,
        MsrError::Unknown => KVM_MSR_EXIT_REASON_UNKNOWN,
    }
}
