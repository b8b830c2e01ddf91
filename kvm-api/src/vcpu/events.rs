//! Exceptions, interrupts, NMIs and run state of a vCPU (api.rst, "KVM_GET_VCPU_EVENTS",
//! "KVM_INTERRUPT", "KVM_NMI", "KVM_GET_MP_STATE", "KVM_SET_GUEST_DEBUG").

use crate::errno::{Errno, Result};
use crate::vcpu::Loaded;
use crate::vcpu::state::{QueuedException, QueuedInterrupt};
use kvm_bindings::*;
use vmx_model::arch::Interruptibility;
use vmx_model::event::vector;
use vmx_model::field::Field;

const DB_VECTOR: u8 = 1;
const NMI_VECTOR: u8 = 2;
const BP_VECTOR: u8 = 3;
const OF_VECTOR: u8 = 4;

const VALID_FLAGS: u32 = KVM_VCPUEVENT_VALID_NMI_PENDING
    | KVM_VCPUEVENT_VALID_SIPI_VECTOR
    | KVM_VCPUEVENT_VALID_SHADOW
    | KVM_VCPUEVENT_VALID_SMM
    | KVM_VCPUEVENT_VALID_PAYLOAD
    | KVM_VCPUEVENT_VALID_TRIPLE_FAULT;

/// Whether an exception in the delivery of another makes a double fault.
const fn make_double_fault(first: u8, second: u8) -> bool {
    const fn is_contributory(number: u8) -> bool {
        matches!(number, vector::DE | vector::TS..=vector::GP)
    }
    match first {
        vector::PF => second == vector::PF || is_contributory(second),
        _ => is_contributory(first) && is_contributory(second),
    }
}

impl Loaded<'_> {
    /// Returns the pending and injected events (`kvm_vcpu_ioctl_x86_get_vcpu_events()`).
    pub(crate) fn get_vcpu_events(&mut self) -> kvm_vcpu_events {
        self.process_nmis();
        let enabled = self.vm.config().enabled.clone();
        if !enabled.exception_payload {
            self.deliver_payload();
        }
        let exception = &self.state.exception;
        let is_soft = matches!(exception.vector, BP_VECTOR | OF_VECTOR);
        let compatible = !enabled.exception_payload && exception.pending;
        let mut events = kvm_vcpu_events::default();
        events.exception.injected = u8::from(!is_soft && (exception.injected || compatible));
        events.exception.pending = u8::from(!is_soft && exception.pending);
        events.exception.nr = exception.vector;
        events.exception.has_error_code = u8::from(exception.error_code.is_some());
        events.exception.error_code = exception.error_code.unwrap_or(0);
        events.exception_has_payload = u8::from(exception.payload.is_some());
        events.exception_payload = exception.payload.unwrap_or(0);
        let interrupt = self.state.interrupt;
        events.interrupt.injected = u8::from(interrupt.injected && !interrupt.soft);
        events.interrupt.nr = interrupt.nr;
        events.interrupt.shadow = self.interrupt_shadow();
        events.nmi.injected = u8::from(self.state.nmi.injected);
        events.nmi.pending = self.state.nmi.pending as u8;
        events.nmi.masked = u8::from(self.is_nmi_masked());
        events.flags =
            KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_SMM;
        if enabled.exception_payload {
            events.flags |= KVM_VCPUEVENT_VALID_PAYLOAD;
        }
        if enabled.triple_fault_event {
            events.triple_fault.pending = u8::from(self.state.triple_fault);
            events.flags |= KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
        }
        events
    }

    /// Replaces the pending and injected events (`kvm_vcpu_ioctl_x86_set_vcpu_events()`). As in
    /// the kernel, the last two refusals come when the rest has been taken.
    pub(crate) fn set_vcpu_events(&mut self, given: &kvm_vcpu_events) -> Result<()> {
        let enabled = self.vm.config().enabled.clone();
        let has = |flag: u32| given.flags & flag != 0;
        let exception = checked_exception(given, enabled.exception_payload)?;
        self.process_nmis();
        self.state.exception = exception;
        self.state.interrupt = QueuedInterrupt {
            injected: given.interrupt.injected != 0,
            soft: given.interrupt.soft != 0,
            nr: given.interrupt.nr,
        };
        if has(KVM_VCPUEVENT_VALID_SHADOW) {
            self.set_interrupt_shadow(given.interrupt.shadow);
        }
        self.state.nmi.injected = given.nmi.injected != 0;
        if has(KVM_VCPUEVENT_VALID_NMI_PENDING) {
            self.state.nmi.pending = 0;
            self.state.nmi.queued = u32::from(given.nmi.pending);
        }
        self.set_nmi_masked(given.nmi.masked != 0);
        let smi = &given.smi;
        let any_smi = smi.smm | smi.pending | smi.smm_inside_nmi | smi.latched_init != 0;
        if has(KVM_VCPUEVENT_VALID_SMM) && any_smi {
            return Err(Errno::EINVAL);
        }
        if has(KVM_VCPUEVENT_VALID_TRIPLE_FAULT) {
            if !enabled.triple_fault_event {
                return Err(Errno::EINVAL);
            }
            self.state.triple_fault = given.triple_fault.pending != 0;
        }
        Ok(())
    }

    /// Brings the count of pending NMIs up to date: two, or one while one is blocked or being
    /// delivered (`process_nmi()`).
    pub(crate) fn process_nmis(&mut self) {
        let limit = if self.is_nmi_masked() || self.state.nmi.injected {
            1
        } else {
            2
        };
        let queued = core::mem::take(&mut self.state.nmi.queued);
        self.state.nmi.pending = self.state.nmi.pending.saturating_add(queued).min(limit);
    }

    /// Takes the payload of a pending exception to DR6 or CR2 (`kvm_deliver_exception_payload()`).
    pub(crate) fn deliver_payload(&mut self) {
        let vector = self.state.exception.vector;
        let Some(payload) = self.state.exception.payload.take() else {
            return;
        };
        match vector {
            DB_VECTOR => {
                // Bits 3:0 are replaced, BS, BD and BT are added, RTM and BLD are inverted in DR6.
                const ACTIVE_LOW: u64 = 0xffff_0ff0;
                let dr6 = self.state.dr6 & !15 | ACTIVE_LOW | payload;
                self.state.dr6 = (dr6 ^ (payload & ACTIVE_LOW)) & !(1 << 12);
            }
            14 => self.state.cr2 = payload,
            _ => {}
        }
    }

    /// Queues an external interrupt (`KVM_INTERRUPT` without an in-kernel irqchip): it replaces a
    /// queued one, and is delivered at the next entry.
    pub(crate) fn interrupt(&mut self, irq: u32) -> Result<()> {
        let nr = u8::try_from(irq).map_err(|_| Errno::EINVAL)?;
        self.state.interrupt = QueuedInterrupt {
            injected: true,
            soft: false,
            nr,
        };
        Ok(())
    }

    /// Asks for an NMI.
    pub(crate) fn nmi(&mut self) {
        self.state.nmi.queued = self.state.nmi.queued.saturating_add(1);
    }

    /// Queues an exception (`kvm_queue_exception()`, `kvm_multiple_exception()`). With one that is
    /// still to be delivered it makes a double fault, or shuts the guest down, or takes its place
    /// (SDM Vol. 3A, "Interrupt 8, Double Fault Exception (#DF)").
    pub(crate) fn queue_exception(
        &mut self,
        vector: u8,
        error_code: Option<u32>,
        payload: Option<u64>,
    ) {
        let before = &self.state.exception;
        let waits = before.pending || before.injected;
        if waits && before.vector == vector::DF {
            self.state.triple_fault = true;
            return;
        }
        let doubles = waits && make_double_fault(before.vector, vector);
        let (vector, error_code, payload) = if doubles {
            (vector::DF, Some(0), None)
        } else {
            (vector, error_code, payload)
        };
        self.state.exception = QueuedException {
            pending: true,
            injected: false,
            vector,
            error_code,
            payload,
        };
    }

    /// Returns the run state; without an in-kernel local APIC it is always RUNNABLE.
    pub(crate) fn get_mp_state(&self) -> kvm_mp_state {
        kvm_mp_state {
            mp_state: self.state.mp_state,
        }
    }

    /// Sets the run state.
    pub(crate) fn set_mp_state(&mut self, state: kvm_mp_state) -> Result<()> {
        if state.mp_state != KVM_MP_STATE_RUNNABLE {
            return Err(Errno::EINVAL);
        }
        self.state.mp_state = state.mp_state;
        Ok(())
    }

    /// Sets up debugging of the guest (`kvm_arch_vcpu_ioctl_set_guest_debug()`).
    pub(crate) fn set_guest_debug(&mut self, debug: &kvm_guest_debug) -> Result<()> {
        let control = debug.control;
        if control & (KVM_GUESTDBG_INJECT_DB | KVM_GUESTDBG_INJECT_BP) != 0 {
            if self.state.exception.pending || self.state.triple_fault {
                return Err(Errno::EBUSY);
            }
            let db = control & KVM_GUESTDBG_INJECT_DB != 0;
            self.queue_exception(if db { DB_VECTOR } else { BP_VECTOR }, None, None);
        }
        let rflags = self.rflags();
        let enabled = control & KVM_GUESTDBG_ENABLE != 0;
        self.state.debug.control = if enabled { control } else { 0 };
        if self.state.debug.uses_hardware_breakpoints() {
            self.state
                .debug
                .effective_db
                .copy_from_slice(&debug.arch.debugreg[..4]);
            self.state.debug.dr7 = debug.arch.debugreg[7];
        }
        self.update_debug_registers();
        if self.state.debug.single_steps() {
            self.state.debug.singlestep_rip = self.linear_rip();
        }
        self.set_rflags(rflags);
        self.update_exception_bitmap();
        Ok(())
    }

    fn interruptibility(&self) -> Interruptibility {
        let word = self.vmcs.read(Field::GUEST_INTERRUPTIBILITY_STATE) as u32;
        Interruptibility::from_bits_retain(word)
    }

    fn set_interruptibility(&mut self, state: Interruptibility) {
        self.vmcs
            .write(Field::GUEST_INTERRUPTIBILITY_STATE, u64::from(state.bits()));
    }

    /// Returns `KVM_X86_SHADOW_INT_*` (`vmx_get_interrupt_shadow()`).
    pub(crate) fn interrupt_shadow(&self) -> u8 {
        let state = self.interruptibility();
        let flag = |on: bool, value: u32| if on { value as u8 } else { 0 };
        flag(
            state.contains(Interruptibility::STI),
            KVM_X86_SHADOW_INT_STI,
        ) | flag(
            state.contains(Interruptibility::MOV_SS),
            KVM_X86_SHADOW_INT_MOV_SS,
        )
    }

    /// Sets blocking by MOV SS or by STI, or neither (`vmx_set_interrupt_shadow()`).
    pub(crate) fn set_interrupt_shadow(&mut self, mask: u8) {
        let mut state = self.interruptibility();
        state.remove(Interruptibility::STI | Interruptibility::MOV_SS);
        if u32::from(mask) & KVM_X86_SHADOW_INT_MOV_SS != 0 {
            state.insert(Interruptibility::MOV_SS);
        } else if u32::from(mask) & KVM_X86_SHADOW_INT_STI != 0 {
            state.insert(Interruptibility::STI);
        }
        self.set_interruptibility(state);
    }

    /// Whether NMIs are blocked.
    pub(crate) fn is_nmi_masked(&self) -> bool {
        self.interruptibility().contains(Interruptibility::NMI)
    }

    /// Blocks or unblocks NMIs.
    pub(crate) fn set_nmi_masked(&mut self, masked: bool) {
        let mut state = self.interruptibility();
        state.set(Interruptibility::NMI, masked);
        self.set_interruptibility(state);
    }
}

/// Checks KVM_SET_VCPU_EVENTS as far as nothing has been changed, and returns the exception.
fn checked_exception(given: &kvm_vcpu_events, has_payloads: bool) -> Result<QueuedException> {
    let with_payload = given.flags & KVM_VCPUEVENT_VALID_PAYLOAD != 0;
    if given.flags & !VALID_FLAGS != 0 || (with_payload && !has_payloads) {
        return Err(Errno::EINVAL);
    }
    let e = &given.exception;
    let pending = with_payload && e.pending != 0;
    let injected = e.injected != 0 && !pending;
    if (injected || pending) && (e.nr > 31 || e.nr == NMI_VECTOR) {
        return Err(Errno::EINVAL);
    }
    let payload = pending && given.exception_has_payload != 0;
    Ok(QueuedException {
        pending,
        injected,
        vector: e.nr,
        error_code: (e.has_error_code != 0).then_some(e.error_code),
        payload: payload.then_some(given.exception_payload),
    })
}
