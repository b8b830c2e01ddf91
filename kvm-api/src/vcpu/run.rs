//! KVM_RUN (api.rst, "KVM_RUN"; `kvm_arch_vcpu_ioctl_run()`, `vcpu_run()`).

use crate::errno::{Errno, Result};
use crate::run_page::offset;
use crate::signals::Signals;
use crate::vcpu::Loaded;
use crate::vcpu::completion::Completion;
use kvm_bindings::*;
use vmx_model::arch::{Interruptibility, Rflags};
use vmx_model::field::Field;

/// How the run loop goes on after a VM exit has been handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Into the guest again.
    Resume,
    /// To user space: the run page says why.
    Return,
}

/// Registers that user space may exchange through the run page.
const SYNC_REGS: u64 = (KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS | KVM_SYNC_X86_EVENTS) as u64;

impl Loaded<'_> {
    /// Runs the guest until something concerns user space.
    pub(crate) fn run(&mut self, signals: &Signals) -> Result<()> {
        signals.begin(self.state.signal_mask);
        self.load_fpu();
        let result = self.run_with(signals);
        self.put_fpu();
        self.store_sync_regs(self.run.read(offset::VALID_REGS));
        self.post_run_save();
        result
    }

    fn run_with(&mut self, signals: &Signals) -> Result<()> {
        self.take_sync_regs()?;
        let cr8: u64 = self.run.read(offset::CR8);
        if cr8 > 15 {
            return Err(Errno::EINVAL);
        }
        self.state.cr8 = cr8;
        if self.complete()? == Next::Return {
            return Ok(());
        }
        if self.run.read::<u8>(offset::IMMEDIATE_EXIT) != 0 {
            return Err(Errno::EINTR);
        }
        self.set_exit_reason(KVM_EXIT_UNKNOWN);
        self.run_loop(signals)
    }

    /// `vcpu_run()`.
    fn run_loop(&mut self, signals: &Signals) -> Result<()> {
        loop {
            if signals.is_pending_lately() {
                self.set_exit_reason(KVM_EXIT_INTR);
                return Err(Errno::EINTR);
            }
            if self.enter_guest(signals)? == Next::Return {
                return Ok(());
            }
            if self.wants_interrupt_window() && self.is_ready_for_interrupt_injection() {
                self.set_exit_reason(KVM_EXIT_IRQ_WINDOW_OPEN);
                return Ok(());
            }
            // A VM exit was handled here: the guest runs on.
            let run = self.run;
            signals.block(|| run.read::<u8>(offset::IMMEDIATE_EXIT) != 0);
        }
    }

    pub(crate) fn set_exit_reason(&mut self, reason: u32) {
        self.run.write(offset::EXIT_REASON, reason);
    }

    /// Whether user space asks for an interrupt window.
    pub(crate) fn wants_interrupt_window(&self) -> bool {
        self.run.read::<u8>(offset::REQUEST_INTERRUPT_WINDOW) != 0
    }

    /// Whether the guest can take an external interrupt, and no event is half injected
    /// (`kvm_vcpu_ready_for_interrupt_injection()`).
    pub(crate) fn is_ready_for_interrupt_injection(&self) -> bool {
        let reinjects = self.state.exception.injected
            || self.state.interrupt.injected
            || self.state.nmi.injected;
        !reinjects && !self.state.exception.pending && self.is_interrupt_allowed()
    }

    fn is_interrupt_allowed(&self) -> bool {
        let blocking = u64::from((Interruptibility::STI | Interruptibility::MOV_SS).bits());
        self.vmcs.read(Field::GUEST_RFLAGS) & Rflags::IF.bits() != 0
            && self.vmcs.read(Field::GUEST_INTERRUPTIBILITY_STATE) & blocking == 0
    }

    /// `post_kvm_run_save()`.
    fn post_run_save(&mut self) {
        let interrupts = self.vmcs.read(Field::GUEST_RFLAGS) & Rflags::IF.bits() != 0;
        let ready = self.is_ready_for_interrupt_injection();
        self.run.write(offset::IF_FLAG, u8::from(interrupts));
        self.run
            .write(offset::READY_FOR_INTERRUPT_INJECTION, u8::from(ready));
        self.run.write(offset::FLAGS, 0_u16);
        self.run.write(offset::CR8, self.state.cr8);
        self.run.write(offset::APIC_BASE, self.state.apic_base);
    }

    /// Takes the registers that user space has changed in the run page (`sync_regs()`). Each set
    /// that was taken is marked clean, also when a later one is refused.
    fn take_sync_regs(&mut self) -> Result<()> {
        let valid: u64 = self.run.read(offset::VALID_REGS);
        let dirty: u64 = self.run.read(offset::DIRTY_REGS);
        if (valid | dirty) & !SYNC_REGS != 0 {
            return Err(Errno::EINVAL);
        }
        if self.is_dirty(KVM_SYNC_X86_REGS) {
            self.set_regs(&self.run.read(offset::SYNC_REGS));
            self.mark_clean(KVM_SYNC_X86_REGS);
        }
        if self.is_dirty(KVM_SYNC_X86_SREGS) {
            self.set_sregs(&self.run.read(offset::SYNC_SREGS))?;
            self.mark_clean(KVM_SYNC_X86_SREGS);
        }
        if self.is_dirty(KVM_SYNC_X86_EVENTS) {
            self.set_vcpu_events(&self.run.read(offset::SYNC_EVENTS))?;
            self.mark_clean(KVM_SYNC_X86_EVENTS);
        }
        Ok(())
    }

    fn is_dirty(&self, set: u32) -> bool {
        self.run.read::<u64>(offset::DIRTY_REGS) & u64::from(set) != 0
    }

    fn mark_clean(&self, set: u32) {
        let dirty: u64 = self.run.read(offset::DIRTY_REGS);
        self.run.write(offset::DIRTY_REGS, dirty & !u64::from(set));
    }

    /// `store_regs()`.
    fn store_sync_regs(&mut self, valid: u64) {
        if valid & u64::from(KVM_SYNC_X86_REGS) != 0 {
            self.run.write(offset::SYNC_REGS, self.get_regs());
        }
        if valid & u64::from(KVM_SYNC_X86_SREGS) != 0 {
            self.run.write(offset::SYNC_SREGS, self.get_sregs());
        }
        if valid & u64::from(KVM_SYNC_X86_EVENTS) != 0 {
            let events = self.get_vcpu_events();
            self.run.write(offset::SYNC_EVENTS, events);
        }
    }

    /// Finishes what the last KVM_RUN asked user space for.
    fn complete(&mut self) -> Result<Next> {
        match core::mem::take(&mut self.state.completion) {
            Completion::None => Ok(Next::Resume),
            Completion::PortOut { linear_rip } => {
                if self.linear_rip() == linear_rip {
                    return Ok(self.skip_instruction());
                }
                Ok(Next::Resume)
            }
            Completion::PortIn { linear_rip, size } => Ok(self.complete_port_in(linear_rip, size)),
            Completion::EmulatedRead { access, count } => self.complete_read(access, count),
            Completion::EmulatedWrite => self.complete_write(),
            Completion::ReadMsr => Ok(self.complete_read_msr()),
            Completion::WriteMsr => Ok(self.complete_write_msr()),
            Completion::Hypercall => Ok(self.complete_hypercall()),
        }
    }
}
