//! From linear to physical addresses through the TLB, and its flushes.

use vmx_model::addr::{Hpa, Linear};
use vmx_model::arch::{Cr0, Cr4, Efer, Rflags, SegmentRegister};

use super::phys::Protection;
use super::tlb::{Context, Found, NO_CONTEXT, PageFlush};
use super::walk::{Allowed, Translation};
use super::{Access, Privilege};
use crate::vmx::AddressSpaceTag;
use crate::{Cpu, Exec};

/// What [`Cpu::context`] was last computed from, in no state of the processor.
const UNKNOWN: u64 = u64::MAX;

/// The address-space context in use, and what follows from it.
#[derive(Clone, Debug)]
pub(crate) struct CurrentContext {
    /// Context number for accesses with the privilege of CPL.
    number: u64,
    inputs: u64,
    /// VPID and EPT pointer in use.
    tag: AddressSpaceTag,
}

impl Default for CurrentContext {
    fn default() -> Self {
        Self {
            number: 0,
            inputs: UNKNOWN,
            tag: AddressSpaceTag::default(),
        }
    }
}

impl CurrentContext {
    /// Returns the VPID and EPT pointer in use.
    pub(crate) const fn tag(&self) -> AddressSpaceTag {
        self.tag
    }
}

/// Work of a walk of paging structures, and of what follows from it; see
/// [`crate::run::Slice::work`].
const WALK_WORK: i64 = 3;

impl Cpu {
    /// Translates a linear address through paging (and EPT) for one access.
    ///
    /// # Errors
    /// As [`Self::walk`].
    pub(crate) fn translate(
        &mut self,
        linear: Linear,
        access: Access,
        privilege: Privilege,
    ) -> Exec<Hpa> {
        let context = self.context_for(privilege);
        if let Some(physical) = self.tlb.translate(linear.0, context, access) {
            return Ok(Hpa(physical));
        }
        self.note_work(WALK_WORK);
        let found = self.walk(linear, access, privilege)?;
        if self.is_apic_access_page(found.physical) {
            // Each access is looked at; a fetch, here.
            return match access {
                Access::Execute => self.virtualize_apic_access(found.physical, 1, access),
                _ => Ok(found.physical),
            };
        }
        let context = self.context_for(privilege);
        self.remember(linear, context, &found);
        Ok(found.physical)
    }

    /// Enters what a walk found into the TLB, if it is RAM.
    fn remember(&mut self, linear: Linear, context: u64, found: &Translation) {
        let Some(ram) = self.view.page(found.physical) else {
            return;
        };
        let is_writable = ram.protection == Protection::ReadWrite;
        let found = Found {
            physical: found.physical,
            ram,
            read: found.allowed.contains(Allowed::READ),
            write: found.allowed.contains(Allowed::WRITE) && is_writable,
            execute: found.allowed.contains(Allowed::EXECUTE),
            linear_page_bytes: found.linear_page_bytes,
        };
        let found = if self.is_watching() {
            found.for_code_only()
        } else {
            found
        };
        self.tlb.enter(linear.0, context, &found);
    }

    /// Returns the number of the address-space context for accesses with the privilege of CPL.
    #[inline]
    pub(crate) fn context(&mut self) -> u64 {
        if self.context_inputs() != self.current_context.inputs {
            self.compute_context();
        }
        self.current_context.number
    }

    /// What the context depends on and instructions change without a flush.
    #[inline]
    fn context_inputs(&self) -> u64 {
        let rights = self.state.segment(SegmentRegister::Ss).access.0;
        u64::from(rights & 0x60)
            | (self.state.rflags & (Rflags::AC | Rflags::VM)).bits()
            | (self.state.cr0 & Cr0::PE).bits()
    }

    #[cold]
    fn compute_context(&mut self) {
        let is_user = self.cpl() == 3;
        let has_smap = self.state.cr4.contains(Cr4::SMAP);
        let is_smap_off = !is_user && has_smap && self.state.rflags.contains(Rflags::AC);
        self.current_context.number = self.context_number(is_user, is_smap_off, false);
        self.current_context.inputs = self.context_inputs();
    }

    fn context_for(&mut self, privilege: Privilege) -> u64 {
        match privilege {
            Privilege::Current => self.context(),
            Privilege::Supervisor => self.context_number(false, false, false),
            Privilege::UserShadowStack => self.context_number(true, false, true),
            Privilege::SupervisorShadowStack => self.context_number(false, false, true),
        }
    }

    fn context_number(&mut self, is_user: bool, is_smap_off: bool, is_shadow_stack: bool) -> u64 {
        let context = Context {
            is_user,
            is_smap_off,
            is_shadow_stack,
            pcid: self.pcid(),
            vpid: self.current_context.tag.vpid,
            eptp: self.current_context.tag.eptp,
            modes: self.paging_modes(),
        };
        u64::from(self.tlb.number(&context))
    }

    /// Returns the bits of CR0, CR4 and EFER that translations depend on: VM entry and VM exit
    /// change them without a flush.
    fn paging_modes(&self) -> u64 {
        let cr0 = self.state.cr0 & (Cr0::PG | Cr0::WP);
        let cr4 = self.state.cr4
            & (Cr4::PSE | Cr4::PAE | Cr4::LA57 | Cr4::SMEP | Cr4::SMAP | Cr4::PKE | Cr4::PKS);
        let efer = self.state.efer & (Efer::NXE | Efer::LMA);
        cr0.bits() | cr4.bits() | efer.bits() << 40
    }

    /// Notes which VPID and EPT pointer are in use: VM entry, VM exit, EPTP switching.
    pub(crate) fn set_address_space_tag(&mut self, tag: AddressSpaceTag) {
        self.current_context.tag = tag;
        self.forget_context();
    }

    /// Forgets the translations of one VPID.
    pub(crate) fn flush_tlb_vpid(&mut self, vpid: u16) {
        self.tlb.flush_contexts(|c| c.vpid == vpid);
        self.forget_context();
    }

    /// Forgets the translations of one EP4TA (bits 51:12 of an EPT pointer).
    pub(crate) fn flush_tlb_ep4ta(&mut self, ep4ta: u64) {
        self.tlb
            .flush_contexts(|c| c.eptp & 0x000f_ffff_ffff_f000 == ep4ta && c.eptp != 0);
        self.vmx.mappings.flush();
        self.forget_context();
    }

    /// Returns the current PCID: 0 unless CR4.PCIDE is set.
    fn pcid(&self) -> u16 {
        if self.state.cr4.contains(Cr4::PCIDE) {
            (self.state.cr3 & 0xfff) as u16
        } else {
            0
        }
    }

    /// Forgets all translations of the current VPID, global ones included, and must follow each
    /// change of what translations depend on: paging bits of CR0, CR4 and EFER, PKRU, PKRS.
    pub(crate) fn flush_tlb_all(&mut self) {
        self.tlb.flush();
        self.vmx.mappings.flush();
        self.forget_context();
    }

    /// Forgets the translations of the current PCID that are not global (MOV to CR3).
    pub(crate) fn flush_tlb_non_global(&mut self) {
        self.flush_tlb_pcid(self.pcid());
    }

    /// Forgets the translations of one PCID.
    pub(crate) fn flush_tlb_pcid(&mut self, pcid: u16) {
        let vpid = self.current_context.tag.vpid;
        self.tlb
            .flush_contexts(|c| c.pcid == pcid && c.vpid == vpid);
        self.forget_context();
    }

    /// Forgets the translations of the page that holds `linear`, in all contexts (INVLPG).
    pub(crate) fn flush_tlb_page(&mut self, linear: Linear) {
        match self.tlb.flush_page(linear.0) {
            PageFlush::Page => self.hot.jumps.forget_page(linear.0),
            PageFlush::Everything => self.forget_context(),
        }
    }

    /// Notes that CR3, and with it perhaps the PCID, has changed without a flush.
    pub(crate) fn address_space_changed(&mut self) {
        self.forget_context();
    }

    /// Makes the next access compute its context anew. Remembered jump targets carry the number of
    /// their context: those of contexts that were flushed are void, the others are found again.
    fn forget_context(&mut self) {
        self.current_context.inputs = UNKNOWN;
        self.hot.context = NO_CONTEXT;
    }

    /// Takes over changes of the physical memory map: drops every cached host pointer.
    pub(crate) fn refresh_map(&mut self) {
        if self.view.generation() != self.phys.generation() {
            self.flush_tlb_all();
            self.drop_blocks();
            self.view = self.phys.view();
        }
    }
}
