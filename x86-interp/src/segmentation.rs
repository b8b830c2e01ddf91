//! Reading descriptors and loading segment registers with all checks.
//!
//! SDM Vol. 3A, "Protection", sections "Privilege Level Checking When Accessing Data Segments",
//! "Privilege Checking When Loading the SS Register", "Segment Loading Instructions in IA-32e
//! Mode"; Vol. 2, the operations of MOV, POP, LDS, LLDT and LTR. Every function checks first;
//! the last thing that may fault is setting the accessed or busy bit.

use vmx_model::addr::Linear;
use vmx_model::arch::{AccessRights, Segment, SegmentRegister};
use vmx_model::event::Exception;

use crate::descriptor::{ACCESSED, Column, Descriptor, Selector, System, TSS_BUSY};
use crate::mem::{Access, Privilege};
use crate::mode::Mode;
use crate::{Cpu, Exec};

/// Which exception reports a bad selector: #GP, or #TS while a stack or a task is switched.
pub(crate) type Selected = fn(u32) -> Exception;

/// Access rights of every segment in virtual-8086 mode.
pub(crate) const VIRTUAL_8086_RIGHTS: AccessRights = AccessRights(0xf3);

/// Returns the hidden part of a segment register in virtual-8086 mode.
pub(crate) fn virtual_8086_segment(selector: u16) -> Segment {
    Segment {
        base: u64::from(selector) << 4,
        limit: 0xffff,
        access: VIRTUAL_8086_RIGHTS,
        selector,
    }
}

/// Returns what a null selector leaves in a segment register.
///
/// Choice: base and limit become 0, as on Intel processors, where FS and GS lose their base too.
pub(crate) fn null_segment(selector: Selector) -> Segment {
    Segment {
        access: AccessRights::UNUSABLE,
        selector: selector.0,
        ..Segment::default()
    }
}

/// Returns SS after a null selector was loaded in 64-bit mode: it still holds the CPL.
pub(crate) fn null_stack_segment(selector: Selector, cpl: u8) -> Segment {
    Segment {
        access: AccessRights::UNUSABLE.with_dpl(cpl),
        ..null_segment(selector)
    }
}

impl Cpu {
    /// Returns the column of the system-descriptor types that applies.
    pub(crate) fn column(&self) -> Column {
        if self.mode().is_ia32e() {
            Column::Ia32e
        } else {
            Column::Legacy
        }
    }

    fn descriptor_address(&self, selector: Selector, bytes: u64, fault: Selected) -> Exec<Linear> {
        if !self.is_in_table(selector, bytes) {
            return Err(fault(selector.error_code()).into());
        }
        let base = if selector.is_ldt() {
            self.state.segment(SegmentRegister::Ldtr).base
        } else {
            self.state.gdtr.base
        };
        Ok(self.system_linear(base, selector.table_offset()))
    }

    /// Whether the first `bytes` bytes of the descriptor of `selector` are within the limit of its
    /// table.
    pub(crate) fn is_in_table(&self, selector: Selector, bytes: u64) -> bool {
        let ldtr = self.state.segment(SegmentRegister::Ldtr);
        let limit = if !selector.is_ldt() {
            u64::from(self.state.gdtr.limit)
        } else if ldtr.access.is_unusable() {
            return false;
        } else {
            u64::from(ldtr.limit)
        };
        selector.table_offset() + bytes - 1 <= limit
    }

    /// Returns the linear address `offset` bytes into a system table or segment.
    pub(crate) fn system_linear(&self, base: u64, offset: u64) -> Linear {
        let linear = base.wrapping_add(offset);
        if self.mode().is_ia32e() {
            Linear(linear)
        } else {
            Linear(linear & 0xffff_ffff)
        }
    }

    /// Loads from a system table or segment.
    pub(crate) fn load_system(&mut self, at: Linear) -> Exec<u64> {
        self.load_linear(at, Access::Read, Privilege::Supervisor)
    }

    /// Reads the descriptor of `selector`, which is not null: eight bytes.
    pub(crate) fn descriptor(&mut self, selector: Selector, fault: Selected) -> Exec<Descriptor> {
        let at = self.descriptor_address(selector, 8, fault)?;
        let low = self.load_system(at)?;
        Ok(Descriptor { low, high: 0 })
    }

    /// Reads the descriptor of `selector`, 16 bytes if it is a system descriptor in IA-32e mode.
    pub(crate) fn system_descriptor(
        &mut self,
        selector: Selector,
        fault: Selected,
    ) -> Exec<Descriptor> {
        let descriptor = self.descriptor(selector, fault)?;
        if !self.mode().is_ia32e() || descriptor.access().is_code_or_data() {
            return Ok(descriptor);
        }
        let descriptor = self.upper_half(selector, descriptor.low, fault)?;
        if descriptor.is_upper_type_zero() {
            Ok(descriptor)
        } else {
            Err(fault(selector.error_code()).into())
        }
    }

    /// Completes a descriptor of 16 bytes.
    pub(crate) fn upper_half(
        &mut self,
        selector: Selector,
        low: u64,
        fault: Selected,
    ) -> Exec<Descriptor> {
        let at = self.descriptor_address(selector, 16, fault)?;
        let high = self.load_system(at.offset(8))?;
        Ok(Descriptor { low, high })
    }

    /// Sets bits of the type of the descriptor of `selector` in memory.
    fn set_type_bits(&mut self, selector: Selector, bits: u64) -> Exec {
        self.change_type(selector, |byte| byte | (bits >> 40) as u8)
    }

    /// Sets the busy bit of the TSS descriptor of `selector`.
    pub(crate) fn set_busy(&mut self, selector: Selector) -> Exec {
        self.set_type_bits(selector, TSS_BUSY)
    }

    /// Clears the busy bit of the TSS descriptor of `selector`.
    pub(crate) fn clear_busy(&mut self, selector: Selector) -> Exec {
        self.change_type(selector, |byte| byte & !((TSS_BUSY >> 40) as u8))
    }

    /// Takes the fault that a change of the type of the descriptor of `selector` would take.
    pub(crate) fn probe_type_change(&mut self, selector: Selector) -> Exec {
        let at = self
            .descriptor_address(selector, 8, Exception::gp)?
            .offset(5);
        self.translate(at, Access::Write, Privilege::Supervisor)?;
        Ok(())
    }

    fn change_type(&mut self, selector: Selector, change: impl Fn(u8) -> u8) -> Exec {
        let at = self
            .descriptor_address(selector, 8, Exception::gp)?
            .offset(5);
        let byte: u8 = self.load_linear(at, Access::Write, Privilege::Supervisor)?;
        self.store_linear(at, change(byte), Privilege::Supervisor)
    }

    /// Returns the segment of a code or data descriptor, marked as accessed here and in memory.
    pub(crate) fn accessed(&mut self, selector: Selector, descriptor: Descriptor) -> Exec<Segment> {
        if descriptor.low & ACCESSED == 0 {
            self.set_type_bits(selector, ACCESSED)?;
        }
        let low = descriptor.low | ACCESSED;
        Ok(Descriptor { low, high: 0 }.segment(selector))
    }

    /// Returns what a segment register but CS, LDTR and TR holds after it was loaded with
    /// `selector` in the current mode.
    pub(crate) fn segment_for(
        &mut self,
        register: SegmentRegister,
        selector: Selector,
    ) -> Exec<Segment> {
        match (self.mode(), register) {
            (Mode::Real, _) => Ok(self.real_segment(register, selector)),
            (Mode::Virtual8086, _) => Ok(virtual_8086_segment(selector.0)),
            (_, SegmentRegister::Ss) => self.stack_segment_for(selector),
            _ if selector.is_null() => Ok(null_segment(selector)),
            _ => self.data_segment_at(selector, self.cpl(), Exception::gp),
        }
    }

    /// Real-address mode: only selector and base change; limit and rights stay ("big real mode").
    pub(crate) fn real_segment(&self, register: SegmentRegister, selector: Selector) -> Segment {
        let old = *self.state.segment(register);
        let mut segment = Segment {
            base: u64::from(selector.0) << 4,
            selector: selector.0,
            ..old
        };
        if old.access.is_unusable() {
            segment.access = AccessRights(0x93);
            segment.limit = 0xffff;
        }
        segment
    }

    /// SS, outside real-address and virtual-8086 mode.
    fn stack_segment_for(&mut self, selector: Selector) -> Exec<Segment> {
        let cpl = self.cpl();
        if selector.is_null() {
            let is_allowed = self.mode() == Mode::Long && cpl < 3 && selector.rpl() == cpl;
            return if is_allowed {
                Ok(null_stack_segment(selector, cpl))
            } else {
                Err(Exception::gp(0).into())
            };
        }
        self.stack_segment_at(selector, cpl, Exception::gp)
    }

    /// Checks a stack segment for privilege level `cpl`; a wrong one is reported by `fault`, one
    /// that is not present by #SS.
    pub(crate) fn stack_segment_at(
        &mut self,
        selector: Selector,
        cpl: u8,
        fault: Selected,
    ) -> Exec<Segment> {
        let descriptor = self.descriptor(selector, fault)?;
        let rights = descriptor.access();
        if selector.rpl() != cpl || !rights.is_writable() || rights.dpl() != cpl {
            return Err(fault(selector.error_code()).into());
        }
        if !rights.is_present() {
            return Err(Exception::ss(selector.error_code()).into());
        }
        self.accessed(selector, descriptor)
    }

    /// DS, ES, FS or GS with a selector that is not null, at privilege level `cpl`; a wrong one is
    /// reported by `fault`, one that is not present by #NP.
    pub(crate) fn data_segment_at(
        &mut self,
        selector: Selector,
        cpl: u8,
        fault: Selected,
    ) -> Exec<Segment> {
        let descriptor = self.descriptor(selector, fault)?;
        let rights = descriptor.access();
        let is_reachable = rights.is_conforming() || rights.dpl() >= cpl.max(selector.rpl());
        if !rights.is_readable() || !is_reachable {
            return Err(fault(selector.error_code()).into());
        }
        if !rights.is_present() {
            return Err(Exception::np(selector.error_code()).into());
        }
        self.accessed(selector, descriptor)
    }

    /// LDTR, for LLDT and task switches: a wrong selector is reported by `fault`, a segment that
    /// is not present by `absent`.
    pub(crate) fn local_table_for(
        &mut self,
        selector: Selector,
        fault: Selected,
        absent: Selected,
    ) -> Exec<Segment> {
        if selector.is_null() {
            return Ok(null_segment(selector));
        }
        if selector.is_ldt() {
            return Err(fault(selector.error_code()).into());
        }
        let descriptor = self.system_descriptor(selector, fault)?;
        if descriptor.system(self.column()) != System::Ldt {
            return Err(fault(selector.error_code()).into());
        }
        if !descriptor.access().is_present() {
            return Err(absent(selector.error_code()).into());
        }
        if !self.has_canonical_base(descriptor) {
            return Err(fault(selector.error_code()).into());
        }
        Ok(descriptor.segment(selector))
    }

    /// TR, for LTR: marks the TSS as busy, here and in memory.
    pub(crate) fn task_register_for(&mut self, selector: Selector) -> Exec<Segment> {
        let code = selector.error_code();
        if selector.is_null() || selector.is_ldt() {
            return Err(Exception::gp(code).into());
        }
        let descriptor = self.system_descriptor(selector, Exception::gp)?;
        let System::Tss { is_busy: false, .. } = descriptor.system(self.column()) else {
            return Err(Exception::gp(code).into());
        };
        if !descriptor.access().is_present() {
            return Err(Exception::np(code).into());
        }
        if !self.has_canonical_base(descriptor) {
            return Err(Exception::gp(code).into());
        }
        self.set_busy(selector)?;
        let low = descriptor.low | TSS_BUSY;
        Ok(Descriptor { low, ..descriptor }.segment(selector))
    }

    fn has_canonical_base(&self, descriptor: Descriptor) -> bool {
        !self.mode().is_ia32e() || self.is_canonical_base(descriptor.base())
    }
}
