//! General-purpose, segment, control and debug registers of a vCPU (api.rst, "KVM_GET_REGS",
//! "KVM_GET_SREGS", "KVM_GET_SREGS2", "KVM_GET_DEBUGREGS", "KVM_GET_XCRS").

use crate::cpuid;
use crate::errno::{Errno, Result};
use crate::vcpu::Loaded;
use crate::vcpu::state::QueuedInterrupt;
use kvm_bindings::{
    KVM_SREGS2_FLAGS_PDPTRS_VALID, kvm_debugregs, kvm_dtable, kvm_regs, kvm_segment, kvm_sregs,
    kvm_sregs2, kvm_xcr, kvm_xcrs,
};
use vmx_model::arch::{Cr0, Cr4, Efer, Rflags, SegmentRegister};
use vmx_model::field::Field;
use x86_interp::cpuid::Feature;

/// The four fields of a segment register.
struct SegmentFields {
    selector: Field,
    base: Field,
    limit: Field,
    access: Field,
}

macro_rules! segment_fields {
    ($($name:ident: $selector:ident $base:ident $limit:ident $access:ident;)*) => {
        $(const $name: SegmentFields = SegmentFields {
            selector: Field::$selector,
            base: Field::$base,
            limit: Field::$limit,
            access: Field::$access,
        };)*
    };
}

segment_fields! {
    ES: GUEST_ES_SELECTOR GUEST_ES_BASE GUEST_ES_LIMIT GUEST_ES_ACCESS_RIGHTS;
    CS: GUEST_CS_SELECTOR GUEST_CS_BASE GUEST_CS_LIMIT GUEST_CS_ACCESS_RIGHTS;
    SS: GUEST_SS_SELECTOR GUEST_SS_BASE GUEST_SS_LIMIT GUEST_SS_ACCESS_RIGHTS;
    DS: GUEST_DS_SELECTOR GUEST_DS_BASE GUEST_DS_LIMIT GUEST_DS_ACCESS_RIGHTS;
    FS: GUEST_FS_SELECTOR GUEST_FS_BASE GUEST_FS_LIMIT GUEST_FS_ACCESS_RIGHTS;
    GS: GUEST_GS_SELECTOR GUEST_GS_BASE GUEST_GS_LIMIT GUEST_GS_ACCESS_RIGHTS;
    TR: GUEST_TR_SELECTOR GUEST_TR_BASE GUEST_TR_LIMIT GUEST_TR_ACCESS_RIGHTS;
    LDTR: GUEST_LDTR_SELECTOR GUEST_LDTR_BASE GUEST_LDTR_LIMIT GUEST_LDTR_ACCESS_RIGHTS;
}

/// Returns selector, base, limit and access rights of a segment register.
pub(crate) fn segment_fields(register: SegmentRegister) -> [Field; 4] {
    let SegmentFields {
        selector,
        base,
        limit,
        access,
    } = match register {
        SegmentRegister::Es => ES,
        SegmentRegister::Cs => CS,
        SegmentRegister::Ss => SS,
        SegmentRegister::Ds => DS,
        SegmentRegister::Fs => FS,
        SegmentRegister::Gs => GS,
        SegmentRegister::Ldtr => LDTR,
        SegmentRegister::Tr => TR,
    };
    [selector, base, limit, access]
}

/// Bit 0 of the type of a code or data segment: it has been accessed.
const ACCESSED: u8 = 1;

impl Loaded<'_> {
    /// `vmx_get_segment()`.
    fn segment(&self, fields: &SegmentFields) -> kvm_segment {
        let access = self.vmcs.read(fields.access) as u32;
        let bit = |n: u32| ((access >> n) & 1) as u8;
        kvm_segment {
            base: self.vmcs.read(fields.base),
            limit: self.vmcs.read(fields.limit) as u32,
            selector: self.vmcs.read(fields.selector) as u16,
            type_: (access & 15) as u8,
            // The VMX segment cache reports an unusable segment as not present.
            present: 1 - bit(16),
            dpl: ((access >> 5) & 3) as u8,
            db: bit(14),
            s: bit(4),
            l: bit(13),
            g: bit(15),
            avl: bit(12),
            unusable: bit(16),
            padding: 0,
        }
    }

    /// `__vmx_set_segment()` with "unrestricted guest".
    fn set_segment(&mut self, fields: &SegmentFields, segment: &kvm_segment, accessed: u8) {
        self.vmcs
            .write(fields.selector, u64::from(segment.selector));
        self.vmcs.write(fields.base, segment.base);
        self.vmcs.write(fields.limit, u64::from(segment.limit));
        self.vmcs
            .write(fields.access, u64::from(access_rights(segment, accessed)));
    }

    /// Returns the general-purpose registers.
    pub(crate) fn get_regs(&self) -> kvm_regs {
        let [
            rax,
            rcx,
            rdx,
            rbx,
            rsp,
            rbp,
            rsi,
            rdi,
            r8,
            r9,
            r10,
            r11,
            r12,
            r13,
            r14,
            r15,
        ] = self.state.regs;
        let rip = self.state.rip;
        let rflags = self.rflags();
        kvm_regs {
            rax,
            rbx,
            rcx,
            rdx,
            rsi,
            rdi,
            rsp,
            rbp,
            r8,
            r9,
            r10,
            r11,
            r12,
            r13,
            r14,
            r15,
            rip,
            rflags,
        }
    }

    /// Replaces the general-purpose registers and drops pending exceptions.
    pub(crate) fn set_regs(&mut self, r: &kvm_regs) {
        self.state.regs = [
            r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11,
            r.r12, r.r13, r.r14, r.r15,
        ];
        self.state.rip = r.rip;
        self.set_rflags(r.rflags | Rflags::FIXED1.bits());
        self.state.exception.pending = false;
    }

    /// Returns RFLAGS without the trap flag that user space's single-stepping has set.
    pub(crate) fn rflags(&self) -> u64 {
        let rflags = self.vmcs.read(Field::GUEST_RFLAGS);
        if self.state.debug.single_steps() {
            rflags & !Rflags::TF.bits()
        } else {
            rflags
        }
    }

    /// Sets RFLAGS, with the trap flag as long as user space steps from here.
    pub(crate) fn set_rflags(&mut self, rflags: u64) {
        let steps =
            self.state.debug.single_steps() && self.linear_rip() == self.state.debug.singlestep_rip;
        let trap = if steps { Rflags::TF.bits() } else { 0 };
        self.vmcs.write(Field::GUEST_RFLAGS, rflags | trap);
    }

    /// Returns the linear address of the next instruction (`kvm_get_linear_rip()`).
    pub(crate) fn linear_rip(&self) -> u64 {
        let long = self.vmcs.read(CS.access) & (1 << 13) != 0;
        if self.is_long_mode() && long {
            return self.state.rip;
        }
        let linear = self.vmcs.read(CS.base).wrapping_add(self.state.rip);
        linear & 0xffff_ffff
    }

    /// Whether EFER.LMA is set.
    pub(crate) fn is_long_mode(&self) -> bool {
        self.state.efer & Efer::LMA.bits() != 0
    }

    /// Whether the guest uses PAE paging with its four PDPTEs.
    pub(crate) fn is_pae_paging(&self) -> bool {
        !self.is_long_mode()
            && self.state.cr4 & Cr4::PAE.bits() != 0
            && self.state.cr0 & Cr0::PG.bits() != 0
    }

    fn table(&self, base: Field, limit: Field) -> kvm_dtable {
        kvm_dtable {
            base: self.vmcs.read(base),
            limit: self.vmcs.read(limit) as u16,
            ..Default::default()
        }
    }

    /// Returns the segment and control registers.
    pub(crate) fn get_sregs2(&self) -> kvm_sregs2 {
        let mut sregs = kvm_sregs2 {
            cs: self.segment(&CS),
            ds: self.segment(&DS),
            es: self.segment(&ES),
            fs: self.segment(&FS),
            gs: self.segment(&GS),
            ss: self.segment(&SS),
            tr: self.segment(&TR),
            ldt: self.segment(&LDTR),
            gdt: self.table(Field::GUEST_GDTR_BASE, Field::GUEST_GDTR_LIMIT),
            idt: self.table(Field::GUEST_IDTR_BASE, Field::GUEST_IDTR_LIMIT),
            cr0: self.state.cr0,
            cr2: self.state.cr2,
            cr3: self.state.cr3,
            cr4: self.state.cr4,
            cr8: self.state.cr8,
            efer: self.state.efer,
            apic_base: self.state.apic_base,
            flags: 0,
            pdptrs: [0; 4],
        };
        if self.is_pae_paging() {
            sregs.flags = u64::from(KVM_SREGS2_FLAGS_PDPTRS_VALID);
            sregs.pdptrs = self.state.pdptrs;
        }
        sregs
    }

    /// Returns the segment and control registers and the injected interrupt.
    pub(crate) fn get_sregs(&self) -> kvm_sregs {
        let s = self.get_sregs2();
        let mut sregs = kvm_sregs {
            cs: s.cs,
            ds: s.ds,
            es: s.es,
            fs: s.fs,
            gs: s.gs,
            ss: s.ss,
            tr: s.tr,
            ldt: s.ldt,
            gdt: s.gdt,
            idt: s.idt,
            cr0: s.cr0,
            cr2: s.cr2,
            cr3: s.cr3,
            cr4: s.cr4,
            cr8: s.cr8,
            efer: s.efer,
            apic_base: s.apic_base,
            interrupt_bitmap: [0; 4],
        };
        let interrupt = self.state.interrupt;
        if interrupt.injected && !interrupt.soft {
            sregs.interrupt_bitmap[usize::from(interrupt.nr / 64)] |= 1 << (interrupt.nr % 64);
        }
        sregs
    }

    /// Replaces the segment and control registers; the lowest bit of the bitmap becomes the
    /// injected interrupt.
    pub(crate) fn set_sregs(&mut self, s: &kvm_sregs) -> Result<()> {
        self.set_common_sregs(&kvm_sregs2 {
            cs: s.cs,
            ds: s.ds,
            es: s.es,
            fs: s.fs,
            gs: s.gs,
            ss: s.ss,
            tr: s.tr,
            ldt: s.ldt,
            gdt: s.gdt,
            idt: s.idt,
            cr0: s.cr0,
            cr2: s.cr2,
            cr3: s.cr3,
            cr4: s.cr4,
            cr8: s.cr8,
            efer: s.efer,
            apic_base: s.apic_base,
            flags: 0,
            pdptrs: [0; 4],
        })?;
        self.state.pdptrs_from_userspace = false;
        if self.is_pae_paging() {
            self.load_pdptrs();
        }
        let words = s.interrupt_bitmap.iter().enumerate();
        let mut bits = words.filter(|(_, word)| **word != 0);
        if let Some((index, word)) = bits.next() {
            let nr = (index as u32 * 64 + word.trailing_zeros()) as u8;
            self.state.interrupt = QueuedInterrupt {
                injected: true,
                soft: false,
                nr,
            };
        }
        Ok(())
    }

    /// Replaces the segment and control registers, PDPTEs included.
    pub(crate) fn set_sregs2(&mut self, s: &kvm_sregs2) -> Result<()> {
        let valid = u64::from(KVM_SREGS2_FLAGS_PDPTRS_VALID);
        let long = s.efer & Efer::LMA.bits() != 0;
        let pae = s.cr0 & Cr0::PG.bits() != 0 && s.cr4 & Cr4::PAE.bits() != 0 && !long;
        let has_pdptrs = s.flags & valid != 0;
        if s.flags & !valid != 0 || (has_pdptrs && !pae) {
            return Err(Errno::EINVAL);
        }
        self.set_common_sregs(s)?;
        self.state.pdptrs_from_userspace = has_pdptrs;
        if has_pdptrs {
            self.state.pdptrs = s.pdptrs;
        } else if self.is_pae_paging() {
            self.load_pdptrs();
        }
        Ok(())
    }

    /// `__set_sregs_common()`.
    fn set_common_sregs(&mut self, s: &kvm_sregs2) -> Result<()> {
        self.check_sregs(s)?;
        self.set_apic_base_by_host(s.apic_base)?;
        self.vmcs.write(Field::GUEST_IDTR_BASE, s.idt.base);
        self.vmcs
            .write(Field::GUEST_IDTR_LIMIT, u64::from(s.idt.limit));
        self.vmcs.write(Field::GUEST_GDTR_BASE, s.gdt.base);
        self.vmcs
            .write(Field::GUEST_GDTR_LIMIT, u64::from(s.gdt.limit));
        self.state.cr2 = s.cr2;
        self.state.cr3 = s.cr3;
        if s.cr8 <= 15 {
            self.state.cr8 = s.cr8;
        }
        self.set_efer(s.efer);
        self.set_cr0(s.cr0);
        self.set_cr4(s.cr4);
        for (fields, segment) in [
            (&CS, &s.cs),
            (&DS, &s.ds),
            (&ES, &s.es),
            (&FS, &s.fs),
            (&GS, &s.gs),
            (&SS, &s.ss),
        ] {
            self.set_segment(fields, segment, ACCESSED);
        }
        self.set_segment(&TR, &s.tr, ACCESSED);
        self.set_segment(&LDTR, &s.ldt, 0);
        Ok(())
    }

    /// `kvm_is_valid_sregs()`.
    fn check_sregs(&self, s: &kvm_sregs2) -> Result<()> {
        let long = s.efer & Efer::LME.bits() != 0 && s.cr0 & Cr0::PG.bits() != 0;
        let lma = s.efer & Efer::LMA.bits() != 0;
        let consistent = if long {
            let pae = s.cr4 & Cr4::PAE.bits() != 0;
            pae && lma && s.cr3 & self.reserved_gpa_bits() == 0
        } else {
            !lma && s.cs.l == 0
        };
        let good = consistent && self.is_valid_cr4(s.cr4) && is_valid_cr0(s.cr0);
        if good { Ok(()) } else { Err(Errno::EINVAL) }
    }

    /// Whether CR4 holds only bits of the processor and, once CPUID has been set, of the guest.
    pub(crate) fn is_valid_cr4(&self, cr4: u64) -> bool {
        let host = cr4 & cr4_reserved(cpuid::supported()) == 0;
        host && (!self.state.has_cpuid || cr4 & cr4_reserved(&self.state.cpuid) == 0)
    }

    /// Sets IA32_APIC_BASE, as KVM_SET_SREGS and KVM_SET_MSRS do.
    pub(crate) fn set_apic_base_by_host(&mut self, value: u64) -> Result<()> {
        const EN: u64 = 1 << 11;
        const EXTD: u64 = 1 << 10;
        let x2apic = cpuid::has(&self.state.cpuid, Feature::X2apic);
        let reserved = self.reserved_gpa_bits() | 0x2ff | if x2apic { 0 } else { EXTD };
        if value & reserved != 0 || value & (EN | EXTD) == EXTD {
            return Err(Errno::EINVAL);
        }
        self.state.apic_base = value;
        Ok(())
    }

    /// Returns the debug registers.
    pub(crate) fn get_debugregs(&self) -> kvm_debugregs {
        kvm_debugregs {
            db: self.state.db,
            dr6: self.state.dr6,
            dr7: self.state.dr7,
            ..Default::default()
        }
    }

    /// Replaces the debug registers, as given.
    pub(crate) fn set_debugregs(&mut self, d: &kvm_debugregs) -> Result<()> {
        if d.flags != 0 || d.dr6 >> 32 != 0 || d.dr7 >> 32 != 0 {
            return Err(Errno::EINVAL);
        }
        self.state.db = d.db;
        self.state.dr6 = d.dr6;
        self.state.dr7 = d.dr7;
        self.update_debug_registers();
        Ok(())
    }

    /// Returns XCR0.
    pub(crate) fn get_xcrs(&self) -> kvm_xcrs {
        let mut xcrs = kvm_xcrs {
            nr_xcrs: 1,
            ..Default::default()
        };
        xcrs.xcrs[0] = kvm_xcr {
            xcr: 0,
            value: self.state.xcr0,
            ..Default::default()
        };
        xcrs
    }

    /// Sets XCR0 from the first entry that names it.
    pub(crate) fn set_xcrs(&mut self, xcrs: &kvm_xcrs) -> Result<()> {
        if xcrs.nr_xcrs as usize > xcrs.xcrs.len() || xcrs.flags != 0 {
            return Err(Errno::EINVAL);
        }
        let given = &xcrs.xcrs[..xcrs.nr_xcrs as usize];
        match given.iter().find(|entry| entry.xcr == 0) {
            Some(entry) if !self.is_valid_xcr0(entry.value) => Err(Errno::EINVAL),
            Some(entry) => {
                self.state.xcr0 = entry.value;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// `__kvm_set_xcr()`.
    pub(crate) fn is_valid_xcr0(&self, xcr0: u64) -> bool {
        let leaf = cpuid::find(&self.state.cpuid, 0xd, 0);
        let guest = leaf.map_or(0, |e| u64::from(e.eax) | u64::from(e.edx) << 32);
        let allowed = guest & cpuid::supported_xcr0() | 1;
        let avx_without_sse = xcr0 & 4 != 0 && xcr0 & 2 == 0;
        xcr0 & 1 != 0 && !avx_without_sse && xcr0 & !allowed == 0
    }
}

/// `vmx_segment_access_rights()`.
fn access_rights(s: &kvm_segment, accessed: u8) -> u32 {
    let bit = |value: u8, n: u32| u32::from(value & 1) << n;
    let unusable = s.unusable != 0 || s.present == 0;
    u32::from((s.type_ | accessed) & 15)
        | bit(s.s, 4)
        | u32::from(s.dpl & 3) << 5
        | bit(s.present, 7)
        | bit(s.avl, 12)
        | bit(s.l, 13)
        | bit(s.db, 14)
        | bit(s.g, 15)
        | u32::from(unusable) << 16
}

/// `kvm_is_valid_cr0()`.
pub(crate) fn is_valid_cr0(cr0: u64) -> bool {
    let has = |bit: Cr0| cr0 & bit.bits() != 0;
    cr0 >> 32 == 0 && (!has(Cr0::NW) || has(Cr0::CD)) && (!has(Cr0::PG) || has(Cr0::PE))
}

/// CR4 bits that need a feature (`__cr4_reserved_bits()`).
const CR4_FEATURES: &[(Cr4, Feature)] = &[
    (Cr4::OSXSAVE, Feature::Xsave),
    (Cr4::SMEP, Feature::Smep),
    (Cr4::SMAP, Feature::Smap),
    (Cr4::FSGSBASE, Feature::Fsgsbase),
    (Cr4::PKE, Feature::Pku),
    (Cr4::LA57, Feature::La57),
    (Cr4::UMIP, Feature::Umip),
    (Cr4::VMXE, Feature::Vmx),
    (Cr4::PCIDE, Feature::Pcid),
];

/// VME PVI TSD DE PSE PAE MCE PGE PCE OSFXSR OSXMMEXCPT: no feature is asked for.
const CR4_ALWAYS: u64 = 0x7ff;

/// Returns the bits of CR4 that a CPUID table leaves reserved.
pub(crate) fn cr4_reserved(table: &[kvm_bindings::kvm_cpuid_entry2]) -> u64 {
    let allowed = CR4_FEATURES.iter().filter(|row| cpuid::has(table, row.1));
    !allowed.fold(CR4_ALWAYS, |bits, row| bits | row.0.bits())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn access_rights_are_packed_as_the_vmcs_has_them() {
        let code = kvm_segment {
            type_: 11,
            present: 1,
            s: 1,
            ..Default::default()
        };
        assert_eq!(access_rights(&code, 0), 0x9b);
        let data = kvm_segment {
            type_: 2,
            present: 1,
            s: 1,
            g: 1,
            db: 1,
            dpl: 3,
            ..code
        };
        assert_eq!(access_rights(&data, ACCESSED), 0xc0f3);
        assert_eq!(access_rights(&kvm_segment::default(), 0), 0x10000);
    }

    #[test]
    fn cr0_rules() {
        let rows = [
            (0x6000_0010, true),
            (0x8000_0000, false),
            (0x2000_0000, false),
        ];
        for (cr0, good) in rows {
            assert_eq!(is_valid_cr0(cr0), good, "{cr0:#x}");
        }
        assert!(!is_valid_cr0(1 << 32));
        assert!(is_valid_cr0(1 << 28 | 1 << 6));
    }
}
