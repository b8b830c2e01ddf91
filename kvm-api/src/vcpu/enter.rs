//! Into the guest and out again: event injection, VM entry, slices of execution, and what a VM
//! exit leaves behind (`vcpu_enter_guest()`, `vmx_vcpu_run()`).

use crate::errno::{Errno, Result};
use crate::run_page::offset;
use crate::signals::{Signals, UNBLOCKED};
use crate::vcpu::Loaded;
use crate::vcpu::run::Next;
use crate::vcpu::state::{QueuedException, QueuedInterrupt, RSP};
use kvm_bindings::*;
use std::sync::RwLockReadGuard;
use vmx_model::arch::{Cr0, Rflags};
use vmx_model::controls::ProcControls;
use vmx_model::event::{EventType, InterruptionInfo, vector};
use vmx_model::exit_reason::ExitReason;
use vmx_model::field::Field;
use vmx_model::outcome::VmxOutcome;
use vmx_model::processor::EntryOutcome;
use x86_interp::stop::{Stop, Unimplemented};
use x86_interp::vmx::EntryInstruction;

/// The vector of the host's interrupt that takes a processor out of the guest.
const RESCHEDULE_VECTOR: u8 = 0xfd;

/// How the guest was left.
enum Left {
    /// By a VM exit.
    Exit,
    /// The guest was not entered: VMfail with this error number.
    FailedInstruction(u64),
    /// VM entry failed; the exit reason says why.
    FailedEntry(u32),
    /// An instruction that the processor should have and has not.
    Unimplemented(Unimplemented),
    /// The caller's page behind guest memory has vanished.
    HostFault,
}

impl Loaded<'_> {
    /// Enters the guest once, and handles the VM exit.
    pub(crate) fn enter_guest(&mut self, signals: &Signals) -> Result<Next> {
        if core::mem::take(&mut self.state.triple_fault) {
            self.set_exit_reason(KVM_EXIT_SHUTDOWN);
            return Ok(Next::Return);
        }
        self.process_nmis();
        self.inject_events();
        self.update_windows();
        self.load_guest_state();
        match self.run_guest(signals) {
            Left::Exit => {
                self.save_guest_state();
                self.complete_interrupts();
                self.handle_exit()
            }
            Left::FailedInstruction(error) => {
                self.cancel_injection();
                Ok(self.fail_entry(error))
            }
            Left::FailedEntry(reason) => {
                self.cancel_injection();
                Ok(self.fail_entry(u64::from(reason)))
            }
            Left::Unimplemented(which) => {
                self.save_guest_state();
                self.complete_interrupts();
                let length = usize::from(which.length).min(which.bytes.len());
                Ok(self.emulation_failure(&which.bytes[..length]))
            }
            Left::HostFault => {
                self.save_guest_state();
                self.complete_interrupts();
                Err(Errno::EFAULT)
            }
        }
    }

    /// `kvm_check_and_inject_events()`.
    fn inject_events(&mut self) {
        if self.state.exception.injected {
            self.inject_exception();
        } else if !self.state.exception.pending {
            if self.state.nmi.injected {
                self.inject(InterruptionInfo::VALID | event_type(EventType::Nmi) | 2);
            } else if self.state.interrupt.injected {
                self.inject_interrupt();
            }
        }
        if self.state.exception.pending {
            self.begin_exception();
            self.inject_exception();
            return;
        }
        let busy = self.state.exception.injected
            || self.state.nmi.injected
            || self.state.interrupt.injected;
        if self.state.nmi.pending != 0 && !busy && self.is_nmi_allowed() {
            self.state.nmi.pending -= 1;
            self.state.nmi.injected = true;
            self.inject(InterruptionInfo::VALID | event_type(EventType::Nmi) | 2);
        }
    }

    /// Carries out what an exception does before its delivery, and makes it injected.
    fn begin_exception(&mut self) {
        let exception = self.state.exception.vector;
        if is_fault(exception) {
            let rflags = self.rflags() | Rflags::RF.bits();
            self.set_rflags(rflags);
        }
        self.deliver_payload();
        const DR7_GD: u64 = 1 << 13;
        if exception == vector::DB && self.state.dr7 & DR7_GD != 0 {
            self.state.dr7 &= !DR7_GD;
            self.update_debug_registers();
        }
        self.state.exception.pending = false;
        self.state.exception.injected = true;
    }

    /// `vmx_inject_exception()`.
    fn inject_exception(&mut self) {
        let QueuedException {
            vector: number,
            error_code,
            ..
        } = self.state.exception;
        let soft = matches!(number, vector::BP | vector::OF);
        let kind = if soft {
            EventType::SoftwareException
        } else {
            EventType::HardwareException
        };
        let mut info = InterruptionInfo::VALID | event_type(kind) | u32::from(number);
        let protected = self.state.cr0 & Cr0::PE.bits() != 0;
        if let Some(code) = error_code.filter(|_| protected) {
            self.vmcs.write(
                Field::VM_ENTRY_EXCEPTION_ERROR_CODE,
                u64::from(code & 0xffff),
            );
            info |= InterruptionInfo::ERROR_CODE;
        }
        if soft {
            let length = self.state.event_instruction_length;
            self.vmcs.write(Field::VM_ENTRY_INSTRUCTION_LENGTH, length);
        }
        self.inject(info);
    }

    /// `vmx_inject_irq()`.
    fn inject_interrupt(&mut self) {
        let QueuedInterrupt { soft, nr, .. } = self.state.interrupt;
        let kind = if soft {
            EventType::SoftwareInterrupt
        } else {
            EventType::ExternalInterrupt
        };
        if soft {
            let length = self.state.event_instruction_length;
            self.vmcs.write(Field::VM_ENTRY_INSTRUCTION_LENGTH, length);
        }
        self.inject(InterruptionInfo::VALID | event_type(kind) | u32::from(nr));
    }

    fn inject(&mut self, info: u32) {
        self.vmcs
            .write(Field::VM_ENTRY_INTERRUPTION_INFORMATION, u64::from(info));
    }

    fn cancel_injection(&mut self) {
        self.vmcs.write(Field::VM_ENTRY_INTERRUPTION_INFORMATION, 0);
    }

    fn is_nmi_allowed(&self) -> bool {
        !self.is_nmi_masked() && self.interrupt_shadow() == 0
    }

    /// Asks for the windows in which what waits can be injected.
    fn update_windows(&mut self) {
        let mut controls = self.state.controls.proc;
        let mut set = |control: ProcControls, wanted: bool| {
            let bit = u64::from(control.bits());
            controls = if wanted {
                controls | bit
            } else {
                controls & !bit
            };
        };
        set(
            ProcControls::NMI_WINDOW_EXITING,
            self.state.nmi.pending != 0,
        );
        let window = self.wants_interrupt_window() && !self.is_ready_for_interrupt_injection();
        set(ProcControls::INTERRUPT_WINDOW_EXITING, window);
        self.write_proc_controls(controls);
    }

    /// Writes to the VMCS and the processor what VM entry does not take from the VMCS as it is.
    fn load_guest_state(&mut self) {
        self.load_memory();
        self.vmcs.write(Field::GUEST_RIP, self.state.rip);
        self.vmcs.write(Field::GUEST_RSP, self.state.regs[RSP]);
        if self.state.debug.single_steps() {
            self.set_interrupt_shadow(0);
        }
        if !self.state.has_run {
            self.vmcs.write(Field::PLE_WINDOW, 4096);
            self.vmcs
                .write(Field::VMX_PREEMPTION_TIMER_VALUE, 0xffff_ffff);
            self.state.has_run = true;
        }
        self.load_registers();
    }

    /// CR3, PDPTEs and the EPT pointer (`vmx_load_mmu_pgd()`).
    fn load_memory(&mut self) {
        let memory = self.vm.memory();
        let (pointer, generation) = (memory.ept_pointer(), memory.generation());
        if self.caches.ept != Some((pointer, generation)) {
            self.vmcs.write(Field::EPT_POINTER, pointer);
            self.vmcs.invept(pointer);
            self.caches.ept = Some((pointer, generation));
        }
        self.vmcs.write(Field::GUEST_CR3, self.state.cr3);
        if self.is_pae_paging() {
            for (field, pdpte) in PDPTES.into_iter().zip(self.state.pdptrs) {
                self.vmcs.write(field, pdpte);
            }
        }
    }

    /// Registers that no VMCS holds.
    fn load_registers(&mut self) {
        let state = &*self.state;
        let host = self.vm.host();
        let cpu = self.vmcs.processor().cpu(host);
        cpu.set_general_registers(&state.regs);
        let system = cpu.system_registers_mut();
        system.cr2 = state.cr2;
        system.cr8 = state.cr8;
        system.breakpoints = state.debug.effective_db;
        system.dr6 = state.dr6;
        system.xcr0 = state.xcr0;
        if self.caches.msrs_are_dirty || !self.vmcs.processor().belongs_to(self.core.file) {
            self.load_msrs();
        }
    }

    /// MSRs that no VMCS holds: on a processor only this vCPU's as long as it stays.
    fn load_msrs(&mut self) {
        let state = &*self.state;
        let msr = |index: u32| state.msrs.get(&index).copied().unwrap_or(0);
        let processor = self.vmcs.processor();
        let msrs = processor.cpu(self.vm.host()).msrs_mut();
        msrs.star = msr(0xc000_0081);
        msrs.lstar = msr(0xc000_0082);
        msrs.cstar = msr(0xc000_0083);
        msrs.fmask = msr(0xc000_0084);
        msrs.kernel_gs_base = msr(KERNEL_GS_BASE);
        msrs.tsc_aux = msr(0xc000_0103);
        self.caches.kernel_gs_base = msrs.kernel_gs_base;
        self.caches.msrs_are_dirty = false;
        processor.set_owner(self.core.file);
    }

    /// Enters the guest and runs it in slices until it exits.
    fn run_guest(&mut self, signals: &Signals) -> Left {
        let launched = self.caches.launched;
        let instruction = if launched {
            EntryInstruction::Vmresume
        } else {
            EntryInstruction::Vmlaunch
        };
        let vm = self.vm;
        let generation = vm.memory().generation();
        let guard = vm.memory().enter();
        if vm.memory().generation() != generation
            || self.caches.ept.map(|held| held.1) != Some(generation)
        {
            // A slot has changed since the EPT pointer was loaded: this entry is not made.
            drop(guard);
            self.load_memory();
            return self.run_guest(signals);
        }
        let host = vm.host();
        let cpu = self.vmcs.processor().cpu(host);
        if !core::mem::replace(&mut self.caches.has_kicker, true) {
            self.core.set_kicker(cpu.kicker());
        }
        let entered = cpu.vm_entry(instruction);
        let left = match entered {
            Ok(EntryOutcome::Entered(_)) => None,
            Ok(EntryOutcome::Fail(outcome)) => Some(Left::FailedInstruction(error(outcome))),
            Ok(EntryOutcome::Failed(failed)) => Some(Left::FailedEntry(failed.reason)),
            Ok(EntryOutcome::Aborted(_)) | Err(_) => Some(Left::FailedInstruction(0)),
        };
        left.unwrap_or_else(|| {
            self.caches.launched = true;
            self.run_slices(signals, guard)
        })
    }

    /// Runs the processor, which is in the guest, until it has left it.
    fn run_slices(&mut self, signals: &Signals, guard: RwLockReadGuard<'_, ()>) -> Left {
        let (vm, run, pace) = (self.vm, self.run, &mut self.caches.pace);
        let cpu = self.vmcs.processor().cpu(vm.host());
        let mut guard = Some(guard);
        loop {
            let in_guest = guard.take().unwrap_or_else(|| vm.memory().enter());
            let stop = if signals.are_blocked() {
                let mut stretch = pace.begin();
                cpu.run_in_slices(stretch.slice(), &mut || stretch.next())
            } else {
                cpu.run_in_slices(UNBLOCKED, &mut || None)
            };
            drop(in_guest);
            match stop {
                Stop::VmExit => return Left::Exit,
                Stop::Budget => {
                    signals.block(|| run.read::<u8>(offset::IMMEDIATE_EXIT) != 0);
                    if signals.is_pending() {
                        cpu.set_interrupt_line(Some(RESCHEDULE_VECTOR));
                    }
                }
                Stop::Kick => cpu.set_interrupt_line(Some(RESCHEDULE_VECTOR)),
                Stop::Unimplemented(which) => {
                    cpu.force_vm_exit();
                    return Left::Unimplemented(which);
                }
                Stop::HostFault(_) => {
                    cpu.force_vm_exit();
                    return Left::HostFault;
                }
                Stop::Halt | Stop::Wait | Stop::Shutdown | Stop::Suspended | Stop::VmxAbort(_) => {
                    cpu.force_vm_exit();
                    return Left::Exit;
                }
            }
        }
    }

    /// Takes from the VMCS and the processor what changes while the guest runs.
    fn save_guest_state(&mut self) {
        let vm = self.vm;
        let cpu = self.vmcs.processor().cpu(vm.host());
        cpu.set_interrupt_line(None);
        self.state.regs = cpu.general_registers();
        let system = cpu.system_registers();
        self.state.cr2 = system.cr2;
        self.state.dr6 = system.dr6;
        let kernel_gs_base = cpu.msrs().kernel_gs_base;
        if kernel_gs_base != self.caches.kernel_gs_base {
            // SWAPGS needs no exit.
            self.caches.kernel_gs_base = kernel_gs_base;
            self.state.msrs.insert(KERNEL_GS_BASE, kernel_gs_base);
        }
        let [rsp, rip, cr3] =
            self.vmcs
                .read_all([Field::GUEST_RSP, Field::GUEST_RIP, Field::GUEST_CR3]);
        self.state.regs[RSP] = rsp;
        self.state.rip = rip;
        self.state.cr3 = cr3;
        self.save_owned_control_bits();
        if self.is_pae_paging() {
            self.state.pdptrs = self.vmcs.read_all(PDPTES);
        }
    }

    /// The bits of CR0 and CR4 that the guest changes without an exit.
    fn save_owned_control_bits(&mut self) {
        let [cr0_mask, cr0, cr4_mask, cr4] = self.vmcs.read_all([
            Field::CR0_GUEST_HOST_MASK,
            Field::GUEST_CR0,
            Field::CR4_GUEST_HOST_MASK,
            Field::GUEST_CR4,
        ]);
        self.state.cr0 = self.state.cr0 & cr0_mask | cr0 & !cr0_mask;
        self.state.cr4 = self.state.cr4 & cr4_mask | cr4 & !cr4_mask;
    }

    /// `vmx_recover_nmi_blocking()` and `vmx_complete_interrupts()`: an event whose delivery was
    /// interrupted is injected again.
    fn complete_interrupts(&mut self) {
        self.state.nmi.injected = false;
        self.state.exception.injected = false;
        self.state.interrupt.injected = false;
        let [info, exit] = self
            .vmcs
            .read_all([Field::IDT_VECTORING_INFORMATION, Field::EXIT_REASON]);
        let info = InterruptionInfo(info as u32);
        if !info.is_valid() {
            self.recover_nmi_blocking(exit as u32);
            return;
        }
        let number = info.vector();
        self.state.event_instruction_length = self.vmcs.read(Field::VM_EXIT_INSTRUCTION_LENGTH);
        match info.kind() {
            Some(EventType::Nmi) => {
                self.state.nmi.injected = true;
                self.set_nmi_masked(false);
            }
            Some(EventType::HardwareException | EventType::SoftwareException) => {
                let code = self.vmcs.read(Field::IDT_VECTORING_ERROR_CODE) as u32;
                self.state.exception = QueuedException {
                    injected: true,
                    vector: number,
                    error_code: info.has_error_code().then_some(code),
                    ..QueuedException::default()
                };
            }
            Some(EventType::SoftwareInterrupt) => {
                self.state.interrupt = QueuedInterrupt {
                    injected: true,
                    soft: true,
                    nr: number,
                };
            }
            Some(EventType::ExternalInterrupt) => {
                self.state.interrupt = QueuedInterrupt {
                    injected: true,
                    soft: false,
                    nr: number,
                };
            }
            _ => {}
        }
    }

    /// An IRET that faulted has unblocked NMIs: they are blocked again.
    fn recover_nmi_blocking(&mut self, exit: u32) {
        if exit != u32::from(ExitReason::EXCEPTION_OR_NMI.0) {
            return;
        }
        let info = self.vmcs.read(Field::VM_EXIT_INTERRUPTION_INFORMATION) as u32;
        if info & InterruptionInfo::NMI_UNBLOCKING != 0 && info as u8 != vector::DF {
            self.set_nmi_masked(true);
        }
    }

    /// KVM_EXIT_FAIL_ENTRY.
    fn fail_entry(&mut self, reason: u64) -> Next {
        self.set_exit_reason(KVM_EXIT_FAIL_ENTRY);
        self.run.write(offset::EXIT, reason);
        self.run.write(offset::EXIT + 8, 0_u32);
        Next::Return
    }
}

const KERNEL_GS_BASE: u32 = 0xc000_0102;

/// The PDPTE fields.
const PDPTES: [Field; 4] = [
    Field::GUEST_PDPTE0,
    Field::GUEST_PDPTE1,
    Field::GUEST_PDPTE2,
    Field::GUEST_PDPTE3,
];

const fn event_type(kind: EventType) -> u32 {
    (kind as u32) << 8
}

/// Whether an exception is of the fault class and no #DB (`exception_type()`).
const fn is_fault(number: u8) -> bool {
    !matches!(
        number,
        vector::DB | vector::BP | vector::OF | vector::DF | vector::MC | vector::NMI
    )
}

fn error(outcome: VmxOutcome) -> u64 {
    match outcome {
        VmxOutcome::FailValid(number) => u64::from(number),
        _ => 0,
    }
}
