//! APIC virtualization in the processor: accesses to the APIC-access page and to x2APIC MSRs, the
//! virtual TPR, virtual interrupts, posted interrupts (SDM Vol. 3C, chapter "APIC Virtualization
//! and Virtual Interrupts").
//!
//! [`vmx_model::virtual_apic`] decides. Translations to the APIC-access page never enter the TLB, so
//! that each access passes here.

use serde::{Deserialize, Serialize};
use vmx_model::addr::Hpa;
use vmx_model::arch::{Activity, Rflags};
use vmx_model::event::{EventType, Exception};
use vmx_model::exit::VmExit;
use vmx_model::exit_reason::ExitReason;
use vmx_model::field::Field;
use vmx_model::intercept::{self, ApicAccess};
use vmx_model::virtual_apic::{self, ApicTrap, Effect, VirtualApic, X2apic};

use crate::events::{Boundary, SHADOW, interrupt};
use crate::mem::Access;
use crate::mem::phys::Replaced;
use crate::{Cpu, Exec};

/// Offset of the requests' state in the posted-interrupt descriptor; bit 0 is ON.
const OUTSTANDING: u64 = 32;

/// What of APIC virtualization lasts from one instruction to the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ApicVirtualization {
    /// The APIC-access page and the virtual-APIC page, with "virtualize APIC accesses".
    pages: Option<(u64, u64)>,
    /// The APIC-access page of the guest before: a change of it flushes the TLB.
    last_page: Option<u64>,
    /// Where the instruction in progress has written to the virtual-APIC page.
    written: Option<u16>,
    /// The VM exit that follows it.
    trap: Option<ApicTrap>,
    /// Whether a virtual interrupt is recognized.
    is_recognized: bool,
}

impl ApicVirtualization {
    /// Whether there is something to do at the next instruction boundary.
    #[inline]
    pub(crate) fn has_boundary_work(&self) -> bool {
        self.written.is_some() || self.trap.is_some() || self.is_recognized
    }
}

impl Cpu {
    /// VM entry: notes the pages, and lets the model evaluate what waits.
    pub(crate) fn begin_apic_virtualization(&mut self) {
        let Some(vmcs) = self.guest_vmcs() else {
            return;
        };
        let access = intercept::apic_access_page(vmcs).map(|page| page.0);
        let page = vmcs.get(Field::VIRTUAL_APIC_ADDRESS);
        if access.is_some() && access != self.vmx.apic.last_page {
            self.flush_tlb_all();
            self.vmx.apic.last_page = access;
        }
        self.vmx.apic.pages = access.map(|access| (access, page));
        self.with_virtual_apic(|apic| apic.enter());
    }

    /// VM exit: what was recognized is forgotten.
    pub(crate) fn end_apic_virtualization(&mut self) {
        self.vmx.apic = ApicVirtualization {
            last_page: self.vmx.apic.last_page,
            ..ApicVirtualization::default()
        };
    }

    /// Lets the virtual APIC change, if there is one, and notes what that leads to.
    fn with_virtual_apic(&mut self, change: impl FnOnce(&mut VirtualApic<'_>) -> Effect) {
        let Some((processor, mut memory)) = self.processor_and_memory() else {
            return;
        };
        let vmcs = processor.current_vmcs_mut();
        let apic = vmcs.and_then(|vmcs| VirtualApic::of(vmcs, &mut memory));
        if let Some(mut apic) = apic {
            let effect = change(&mut apic);
            self.note_apic_effect(effect);
        }
    }

    fn note_apic_effect(&mut self, effect: Effect) {
        match effect {
            Effect::None => {}
            Effect::Trap(trap) => self.vmx.apic.trap = Some(trap),
            Effect::Evaluated { is_recognized } => self.vmx.apic.is_recognized = is_recognized,
        }
    }

    /// Whether a physical address is in the APIC-access page of the guest.
    #[inline]
    pub(crate) fn is_apic_access_page(&self, at: Hpa) -> bool {
        matches!(self.vmx.apic.pages, Some((page, _)) if page == at.page().0)
    }

    /// A linear access to the APIC-access page: returns where it goes instead.
    ///
    /// # Errors
    /// The VM exit.
    pub(crate) fn virtualize_apic_access(
        &mut self,
        at: Hpa,
        bytes: usize,
        access: Access,
    ) -> Exec<Hpa> {
        let offset = at.page_offset() as u16;
        let pages = self.vmx.apic.pages;
        let (Some((_, virtual_page)), Some(vmcs)) = (pages, self.guest_vmcs()) else {
            return Ok(at);
        };
        let is_virtualized = match access {
            Access::Read => virtual_apic::is_read_virtualized(vmcs, offset, bytes),
            Access::Write => virtual_apic::is_write_virtualized(vmcs, offset, bytes),
            Access::Execute => false,
        };
        if is_virtualized {
            return Ok(Hpa(virtual_page).offset(offset.into()));
        }
        Err(self.apic_access_exit(access, offset))
    }

    fn apic_access_exit(&mut self, access: Access, offset: u16) -> crate::Fault {
        let access = match access {
            _ if self.delivering.is_some() => ApicAccess::Delivery,
            Access::Read => ApicAccess::Read,
            Access::Write => ApicAccess::Write,
            Access::Execute => ApicAccess::Fetch,
        };
        let length = match access {
            ApicAccess::Read | ApicAccess::Write => self.next_rip.wrapping_sub(self.state.rip),
            _ => 0,
        };
        let exit = VmExit::new(ExitReason::APIC_ACCESS)
            .of_length(length.min(15) as u8)
            .qualified(intercept::apic_access_qualification(access, offset));
        self.vm_exit(exit)
    }

    /// A guest-physical access, by a page walk, to the APIC-access page.
    ///
    /// # Errors
    /// The VM exit.
    pub(crate) fn check_physical_apic_access(&mut self, at: Hpa) -> Exec {
        if !self.is_apic_access_page(at) {
            return Ok(());
        }
        let access = match self.delivering {
            Some(_) => ApicAccess::PhysicalDelivery,
            None => ApicAccess::Physical,
        };
        let qualification = intercept::apic_access_qualification(access, 0);
        Err(self.vm_exit(VmExit::new(ExitReason::APIC_ACCESS).qualified(qualification)))
    }

    /// Notes a store of the instruction in progress that was virtualized.
    pub(crate) fn note_virtual_apic_write(&mut self, at: Hpa) {
        self.vmx.apic.written = Some(at.page_offset() as u16);
        // The next instruction waits for the emulation of the write.
        self.hot.code_written = true;
    }

    /// RDMSR of an x2APIC register that is virtualized.
    pub(crate) fn read_virtual_x2apic(&mut self, index: u32) -> Option<u64> {
        match virtual_apic::read_x2apic(self.guest_vmcs()?, &&*self.phys, index) {
            X2apic::Virtual(value) => Some(value),
            X2apic::Normal | X2apic::Fault => None,
        }
    }

    /// WRMSR of an x2APIC register: whether it was virtualized.
    ///
    /// # Errors
    /// #GP(0).
    pub(crate) fn write_virtual_x2apic(&mut self, index: u32, value: u64) -> Exec<bool> {
        if !self.is_non_root() {
            return Ok(false);
        }
        let Some((processor, mut memory)) = self.processor_and_memory() else {
            return Ok(false);
        };
        let Some(vmcs) = processor.current_vmcs_mut() else {
            return Ok(false);
        };
        match virtual_apic::write_x2apic(vmcs, &mut memory, index, value) {
            X2apic::Normal => Ok(false),
            X2apic::Fault => Err(Exception::gp(0).into()),
            X2apic::Virtual(effect) => {
                self.note_apic_effect(effect);
                Ok(true)
            }
        }
    }

    /// Returns VTPR.
    pub(crate) fn virtual_tpr(&mut self) -> u8 {
        let mut tpr = 0;
        self.with_virtual_apic(|apic| {
            tpr = apic.tpr();
            Effect::None
        });
        tpr
    }

    /// Sets VTPR, as MOV to CR8 does.
    pub(crate) fn set_virtual_tpr(&mut self, value: u8) {
        self.with_virtual_apic(|apic| apic.set_tpr(value));
    }

    /// APIC-write emulation, and the VM exits that follow an instruction: before everything else.
    ///
    /// # Errors
    /// The VM exit.
    pub(crate) fn attend_to_virtual_apic(&mut self) -> Exec<Boundary> {
        if !self.is_non_root() {
            return Ok(Boundary::Execute);
        }
        if let Some(offset) = self.vmx.apic.written.take() {
            self.with_virtual_apic(|apic| apic.emulate_write(offset));
        }
        let sleeps = matches!(
            self.state.activity,
            Activity::Shutdown | Activity::WaitForSipi
        );
        if sleeps {
            return Ok(Boundary::Execute);
        }
        match self.vmx.apic.trap.take() {
            Some(trap) => Err(self.vm_exit(trap.exit())),
            None => Ok(Boundary::Execute),
        }
    }

    /// Delivers the virtual interrupt that is recognized, where one is let through.
    pub(crate) fn attend_to_virtual_interrupt_delivery(&mut self) -> Exec<Boundary> {
        let is_open =
            self.rflags().contains(Rflags::IF) && !self.is_blocked(SHADOW) && self.is_listening();
        if !self.is_non_root() || !self.vmx.apic.is_recognized || !is_open {
            return Ok(Boundary::Execute);
        }
        let mut vector = 0;
        self.with_virtual_apic(|apic| {
            vector = apic.deliver();
            Effect::Evaluated {
                is_recognized: false,
            }
        });
        self.deliver(interrupt(vector, EventType::ExternalInterrupt))?;
        Ok(Boundary::Delivered)
    }

    /// An external interrupt was acknowledged: false unless it is the notification of posted
    /// interrupts, which are then processed.
    pub(crate) fn process_posted_interrupts(
        &mut self,
        vector: Option<u8>,
        is_by_apic: bool,
    ) -> Exec<bool> {
        let Some(vmcs) = self.guest_vmcs() else {
            return Ok(false);
        };
        let notification = virtual_apic::posted_interrupt_vector(vmcs);
        if notification.is_none() || notification != vector {
            return Ok(false);
        }
        let descriptor = Hpa(vmcs.get(Field::POSTED_INTERRUPT_DESCRIPTOR_ADDRESS));
        self.take_bits(descriptor.offset(OUTSTANDING), 1)?;
        if let Some(apic) = self.apic.as_mut().filter(|_| is_by_apic) {
            apic.end_of_interrupt();
        }
        let mut requests = [0; 4];
        for (n, word) in (0_u64..).zip(&mut requests) {
            *word = self.take_bits(descriptor.offset(8 * n), u64::MAX)?;
        }
        self.with_virtual_apic(|apic| apic.post(requests));
        Ok(true)
    }

    /// Clears bits of a word of memory, atomically; returns the word before.
    fn take_bits(&mut self, at: Hpa, bits: u64) -> Exec<u64> {
        loop {
            let old = self.view.load_entry(at, 8);
            let old = old.ok_or_else(|| self.host_fault(at))?;
            let replaced = self.view.replace_entry(at, 8, old, old & !bits);
            match replaced {
                Replaced::Vanished => return Err(self.host_fault(at)),
                Replaced::Changed => {}
                _ => return Ok(old),
            }
        }
    }
}
