//! Control registers: MOV CR, CLTS, LMSW, SMSW, INVLPG, INVPCID.
//!
//! SDM Vol. 2: the instructions; Vol. 3A, "Control Registers", "Initializing IA-32e Mode",
//! "Invalidation of TLBs and Paging-Structure Caches". The effect of each write is a method
//! `write_crN`, which task switches and others use as well.

use crate::vmx::info;
use iced_x86::{Code, Mnemonic};
use vmx_model::addr::Linear;
use vmx_model::arch::{ArchState, Cr0, Cr4, Efer, SegmentRegister};
use vmx_model::event::Exception;
use vmx_model::intercept::Instruction;

use super::{Row, Traits};
use crate::insn::{Insn, Operand, Plain};
use crate::mem::walk::{PagingMode, physical_mask};
use crate::{Cpu, Exec};

/// Returns who executes an instruction of this file.
pub(crate) fn lookup(code: Code) -> Option<Row> {
    let serialising = Traits::ENDS_BLOCK | Traits::OUTSIDE;
    let (plain, traits): (Plain, Traits) = match code {
        Code::Mov_r32_cr | Code::Mov_r64_cr => (mov_from_cr, Traits::empty()),
        Code::Mov_cr_r32 | Code::Mov_cr_r64 => (mov_to_cr, serialising),
        _ => match code.mnemonic() {
            Mnemonic::Clts => (clts, Traits::ENDS_BLOCK),
            Mnemonic::Lmsw => (lmsw, serialising),
            Mnemonic::Smsw => (smsw, Traits::empty()),
            Mnemonic::Invlpg => (invlpg, serialising),
            Mnemonic::Invpcid => (invpcid, serialising),
            _ => return None,
        },
    };
    Some(Row { plain, traits })
}

/// MOV from CR0, CR2, CR3, CR4, CR8.
fn mov_from_cr(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let number = control_register(insn.operands[1])?;
    cpu.require_cpl0()?;
    let value = match number {
        0 => cpu.visible_cr0(),
        2 => cpu.system.cr2,
        4 => cpu.visible_cr4(),
        _ => cpu.ask_about_cr_read(number, insn)?,
    };
    cpu.write_native(insn, 0, value)
}

/// MOV to CR0, CR2, CR3, CR4, CR8.
fn mov_to_cr(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let number = control_register(insn.operands[0])?;
    cpu.require_cpl0()?;
    let value = cpu.read_native(insn, 1)?;
    match number {
        2 => {
            cpu.system.cr2 = value;
            return Ok(());
        }
        8 => return cpu.move_to_cr8(value, insn),
        _ => {}
    }
    let value = cpu.ask_about_cr_write(number, value, insn)?;
    match number {
        0 => cpu.write_cr0(value),
        3 => cpu.write_cr3(value),
        _ => cpu.write_cr4(value),
    }
}

/// Returns the number of a control register that exists; #UD for the others.
fn control_register(operand: Operand) -> Exec<u8> {
    match operand {
        Operand::Control(n @ (0 | 2 | 3 | 4 | 8)) => Ok(n),
        _ => Err(Exception::UD.into()),
    }
}

/// CLTS.
fn clts(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.require_cpl0()?;
    cpu.state.cr0 = cpu.ask_about_clts(insn)?;
    Ok(())
}

/// LMSW: loads CR0[3:0], but cannot clear PE.
fn lmsw(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.require_cpl0()?;
    let source = cpu.read::<u16>(insn, 0)?;
    let value = cpu.ask_about_lmsw(source, insn)?;
    cpu.write_cr0(value)
}

/// SMSW: a register gets as much of CR0 as it holds, memory 16 bits.
fn smsw(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_umip()?;
    let value = cpu.visible_cr0();
    match (insn.code, insn.operands[0]) {
        (Code::Smsw_rm16, _) | (_, Operand::Memory) => cpu.write(insn, 0, value as u16),
        (Code::Smsw_r32m16, _) => cpu.write(insn, 0, value as u32),
        _ => cpu.write(insn, 0, value),
    }
}

/// INVLPG: an address that is not canonical invalidates nothing.
fn invlpg(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.require_cpl0()?;
    let linear = cpu.unchecked_linear(insn);
    cpu.ask_about(Instruction::Invlpg, insn, linear.0, 0)?;
    if cpu.is_canonical(linear.0) {
        cpu.flush_tlb_page(linear);
    }
    Ok(())
}

/// INVPCID.
fn invpcid(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.require_enabled(Instruction::Invpcid)?;
    cpu.require_cpl0()?;
    cpu.ask_about_operand(Instruction::Invpcid, insn, info::invalidation)?;
    let kind = cpu.read_native(insn, 0)?;
    let mut descriptor = [0; 16];
    cpu.load_operand(insn, &mut descriptor)?;
    let descriptor = u128::from_le_bytes(descriptor);
    let (pcid, linear) = (descriptor as u64, (descriptor >> 64) as u64);
    let is_pcid_valid = pcid == 0 || cpu.state.cr4.contains(Cr4::PCIDE);
    let is_valid = pcid < 1 << 12
        && match kind {
            0 => is_pcid_valid && cpu.is_canonical_base(linear),
            1 => is_pcid_valid,
            2 | 3 => true,
            _ => false,
        };
    if !is_valid {
        return Err(Exception::gp(0).into());
    }
    match kind {
        0 => cpu.flush_tlb_page(Linear(linear)),
        1 => cpu.flush_tlb_pcid(pcid as u16),
        _ => cpu.flush_tlb_all(),
    }
    Ok(())
}

/// Bits of CR0 that exist.
const CR0_DEFINED: Cr0 = Cr0::PE
    .union(Cr0::MP)
    .union(Cr0::EM)
    .union(Cr0::TS)
    .union(Cr0::ET)
    .union(Cr0::NE)
    .union(Cr0::WP)
    .union(Cr0::AM)
    .union(Cr0::NW)
    .union(Cr0::CD)
    .union(Cr0::PG);

/// Bits of CR4 that decide how linear addresses are translated.
const CR4_PAGING: Cr4 = Cr4::PSE
    .union(Cr4::PAE)
    .union(Cr4::PGE)
    .union(Cr4::PCIDE)
    .union(Cr4::SMEP)
    .union(Cr4::SMAP)
    .union(Cr4::PKE)
    .union(Cr4::PKS)
    .union(Cr4::LA57);

impl Cpu {
    /// Loads CR0 as MOV to CR0 does: the PDPTEs and EFER.LMA follow.
    ///
    /// # Errors
    /// #GP(0).
    pub(crate) fn write_cr0(&mut self, value: u64) -> Exec {
        let old = self.state.cr0;
        let new = Cr0::from_bits_retain(value) & CR0_DEFINED | Cr0::ET;
        let efer = self.efer_with_paging(new);
        let is_protection_lost = self.state.cr4.contains(Cr4::CET) && !new.contains(Cr0::WP);
        if value >> 32 != 0
            || !is_cr0_consistent(new)
            || !self.may_switch_paging(new)
            || is_protection_lost
        {
            return Err(Exception::gp(0).into());
        }
        self.check_cr0_in_vmx(new.bits())?;
        let changed = old ^ new;
        let pdpte_bits = Cr0::CD | Cr0::NW | Cr0::PG;
        self.reload_pdptes(changed.intersects(pdpte_bits), new, self.state.cr4, efer)?;
        self.state.cr0 = new;
        self.state.efer = efer;
        if changed.intersects(Cr0::PG | Cr0::WP | Cr0::PE) {
            self.flush_tlb_all();
        }
        Ok(())
    }

    /// Returns EFER with LMA as this CR0 makes it.
    fn efer_with_paging(&self, cr0: Cr0) -> Efer {
        let mut efer = self.state.efer;
        let is_active = cr0.contains(Cr0::PG) && efer.contains(Efer::LME);
        efer.set(Efer::LMA, is_active);
        efer
    }

    /// Whether CR0.PG may become what it is in `new`.
    fn may_switch_paging(&self, new: Cr0) -> bool {
        let ArchState { cr0, cr4, efer, .. } = self.state;
        let cs_is_long = self.state.segment(SegmentRegister::Cs).access.is_long();
        match (cr0.contains(Cr0::PG), new.contains(Cr0::PG)) {
            (false, true) if efer.contains(Efer::LME) => {
                // A 16-bit TSS has type 1 or 3.
                let tr = self.state.segment(SegmentRegister::Tr).access;
                let has_tss16 = !tr.is_unusable() && tr.segment_type() & 0xd == 1;
                cr4.contains(Cr4::PAE) && !cs_is_long && !has_tss16
            }
            (true, false) => {
                let is_long = efer.contains(Efer::LMA) && cs_is_long;
                !is_long && !cr4.contains(Cr4::PCIDE)
            }
            _ => true,
        }
    }

    /// Loads CR3 as MOV to CR3 does.
    ///
    /// # Errors
    /// #GP(0).
    pub(crate) fn write_cr3(&mut self, value: u64) -> Exec {
        const NO_INVALIDATION: u64 = 1 << 63;
        let keeps = self.state.cr4.contains(Cr4::PCIDE) && value & NO_INVALIDATION != 0;
        let new = if keeps {
            value & !NO_INVALIDATION
        } else {
            value
        };
        let reserved = !physical_mask(self.cpuid.physical_address_bits());
        if self.state.efer.contains(Efer::LMA) && new & reserved != 0 {
            return Err(Exception::gp(0).into());
        }
        if PagingMode::of(&self.state) == Some(PagingMode::Pae) {
            self.state.pdptes = self.read_pdptes(new)?;
        }
        self.state.cr3 = new;
        if keeps {
            self.address_space_changed();
        } else {
            self.flush_tlb_non_global();
        }
        Ok(())
    }

    /// Loads CR4 as MOV to CR4 does: the PDPTEs follow.
    ///
    /// # Errors
    /// #GP(0).
    pub(crate) fn write_cr4(&mut self, value: u64) -> Exec {
        let new = Cr4::from_bits_retain(value);
        if !self.cpuid.cr4_supported().contains(new) || !self.may_load_cr4(new) {
            return Err(Exception::gp(0).into());
        }
        self.check_cr4_in_vmx(value)?;
        let changed = self.state.cr4 ^ new;
        let pdpte_bits = Cr4::PAE | Cr4::PGE | Cr4::PSE | Cr4::SMEP;
        let must_load = changed.intersects(pdpte_bits);
        self.reload_pdptes(must_load, self.state.cr0, new, self.state.efer)?;
        self.state.cr4 = new;
        if changed.intersects(CR4_PAGING) {
            self.flush_tlb_all();
        }
        Ok(())
    }

    fn may_load_cr4(&self, new: Cr4) -> bool {
        let ArchState {
            cr0,
            cr3,
            cr4: old,
            efer,
            ..
        } = self.state;
        let changed = old ^ new;
        if efer.contains(Efer::LMA) && (!new.contains(Cr4::PAE) || changed.contains(Cr4::LA57)) {
            return false;
        }
        if changed.contains(Cr4::PCIDE) && new.contains(Cr4::PCIDE) {
            return efer.contains(Efer::LMA) && cr3 & 0xfff == 0;
        }
        !new.contains(Cr4::CET) || cr0.contains(Cr0::WP)
    }

    /// Loads the PDPTEs if a change that loads them leaves PAE paging on.
    fn reload_pdptes(&mut self, must_load: bool, cr0: Cr0, cr4: Cr4, efer: Efer) -> Exec {
        let is_pae = cr0.contains(Cr0::PG) && cr4.contains(Cr4::PAE) && !efer.contains(Efer::LMA);
        if must_load && is_pae {
            self.state.pdptes = self.read_pdptes(self.state.cr3)?;
        }
        Ok(())
    }

    /// Returns CR8.
    pub(crate) fn read_cr8(&mut self) -> u64 {
        match &mut self.apic {
            Some(apic) => apic.cr8(),
            None => self.system.cr8,
        }
    }

    /// Loads CR8.
    ///
    /// # Errors
    /// #GP(0) if a bit beyond 3:0 is set.
    pub(crate) fn write_cr8(&mut self, value: u64) -> Exec {
        if value > 0xf {
            return Err(Exception::gp(0).into());
        }
        match &mut self.apic {
            Some(apic) => apic.set_cr8(value),
            None => self.system.cr8 = value,
        }
        Ok(())
    }
}

/// Whether PG comes with PE, and NW with CD.
fn is_cr0_consistent(cr0: Cr0) -> bool {
    (cr0.contains(Cr0::PE) || !cr0.contains(Cr0::PG))
        && (cr0.contains(Cr0::CD) || !cr0.contains(Cr0::NW))
}

#[cfg(test)]
mod tests;
