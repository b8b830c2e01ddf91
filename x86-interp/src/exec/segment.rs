//! Segment-register and descriptor-table instructions.
//!
//! SDM Vol. 1, "Segment Register Instructions", "System Instructions"; Vol. 2: MOV (to a segment
//! register), POP, LDS/LES/LFS/LGS/LSS, LLDT, LTR, SLDT, STR, LGDT, LIDT, SGDT,
//! SIDT, LAR, LSL, VERR, VERW, ARPL, RDFSBASE/RDGSBASE/WRFSBASE/WRGSBASE.

use crate::vmx::info;
use iced_x86::{Code, Mnemonic};
use vmx_model::arch::{Cr4, DescriptorTable, Interruptibility, Rflags, SegmentRegister};
use vmx_model::event::Exception;
use vmx_model::intercept::Instruction;

use super::{Row, Traits};
use crate::descriptor::{Column, Descriptor, Selector, System};
use crate::insn::{Insn, Operand, Plain};
use crate::mode::Mode;
use crate::{Cpu, Exec};

/// Returns who executes an instruction of this file.
pub(crate) fn lookup(code: Code) -> Option<Row> {
    use Mnemonic::*;
    let (plain, traits): (Plain, Traits) = match code {
        Code::Mov_Sreg_rm16 | Code::Mov_Sreg_r32m16 | Code::Mov_Sreg_r64m16 => {
            (mov_to_segment, Traits::ENDS_BLOCK)
        }
        _ if is_pop_of_segment(code) => (pop_segment, Traits::ENDS_BLOCK),
        _ => match code.mnemonic() {
            Lds => (lds, Traits::ENDS_BLOCK),
            Les => (les, Traits::ENDS_BLOCK),
            Lfs => (lfs, Traits::ENDS_BLOCK),
            Lgs => (lgs, Traits::ENDS_BLOCK),
            Lss => (lss, Traits::ENDS_BLOCK),
            Lldt => (lldt, Traits::ENDS_BLOCK),
            Ltr => (ltr, Traits::ENDS_BLOCK),
            Sldt => (sldt, Traits::empty()),
            Str => (str, Traits::empty()),
            Lgdt => (lgdt, Traits::ENDS_BLOCK),
            Lidt => (lidt, Traits::ENDS_BLOCK),
            Sgdt => (sgdt, Traits::empty()),
            Sidt => (sidt, Traits::empty()),
            Lar => (lar, Traits::empty()),
            Lsl => (lsl, Traits::empty()),
            Verr => (verr, Traits::empty()),
            Verw => (verw, Traits::empty()),
            Arpl => (arpl, Traits::empty()),
            Rdfsbase => (rdfsbase, Traits::empty()),
            Rdgsbase => (rdgsbase, Traits::empty()),
            Wrfsbase => (wrfsbase, Traits::ENDS_BLOCK),
            Wrgsbase => (wrgsbase, Traits::ENDS_BLOCK),
            _ => return None,
        },
    };
    Some(Row { plain, traits })
}

fn is_pop_of_segment(code: Code) -> bool {
    matches!(
        code,
        Code::Popw_ES
            | Code::Popd_ES
            | Code::Popw_SS
            | Code::Popd_SS
            | Code::Popw_DS
            | Code::Popd_DS
            | Code::Popw_FS
            | Code::Popd_FS
            | Code::Popq_FS
            | Code::Popw_GS
            | Code::Popd_GS
            | Code::Popq_GS
    )
}

/// Returns the segment register that is operand `n`.
fn segment_operand(insn: &Insn, n: usize) -> Exec<SegmentRegister> {
    match insn.operands[n] {
        Operand::Segment(s) => Ok(s),
        _ => Err(Exception::UD.into()),
    }
}

/// MOV Sreg, r/m16. A load of CS is #UD; a load of SS blocks events until after the next
/// instruction.
fn mov_to_segment(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let register = segment_operand(insn, 0)?;
    if register == SegmentRegister::Cs {
        return Err(Exception::UD.into());
    }
    let selector = Selector(cpu.read::<u16>(insn, 1)?);
    let segment = cpu.segment_for(register, selector)?;
    cpu.set_segment(register, segment);
    if register == SegmentRegister::Ss {
        cpu.block_events(Interruptibility::MOV_SS);
    }
    Ok(())
}

fn write_selector(cpu: &mut Cpu, insn: &Insn, selector: u16) -> Exec {
    match (insn.operands[0], insn.operand_bytes) {
        (Operand::Register(_), 4) => cpu.write(insn, 0, u32::from(selector)),
        (Operand::Register(_), 8) => cpu.write(insn, 0, u64::from(selector)),
        _ => cpu.write(insn, 0, selector),
    }
}

/// POP Sreg.
fn pop_segment(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let register = segment_operand(insn, 0)?;
    let mut stack = cpu.stack();
    let selector = Selector(cpu.stack_value(&stack, 0, 2)? as u16);
    stack.move_by(u64::from(insn.operand_bytes));
    let segment = cpu.segment_for(register, selector)?;
    // The pointer moves by the old SS's B flag.
    cpu.set_stack_pointer(&stack);
    cpu.set_segment(register, segment);
    if register == SegmentRegister::Ss {
        cpu.block_events(Interruptibility::MOV_SS);
    }
    Ok(())
}

fn lds(cpu: &mut Cpu, insn: &Insn) -> Exec {
    load_far_pointer(cpu, insn, SegmentRegister::Ds)
}

fn les(cpu: &mut Cpu, insn: &Insn) -> Exec {
    load_far_pointer(cpu, insn, SegmentRegister::Es)
}

fn lfs(cpu: &mut Cpu, insn: &Insn) -> Exec {
    load_far_pointer(cpu, insn, SegmentRegister::Fs)
}

fn lgs(cpu: &mut Cpu, insn: &Insn) -> Exec {
    load_far_pointer(cpu, insn, SegmentRegister::Gs)
}

/// LSS. Differs from MOV SS: the SDM names no blocking of events.
fn lss(cpu: &mut Cpu, insn: &Insn) -> Exec {
    load_far_pointer(cpu, insn, SegmentRegister::Ss)
}

/// LDS, LES, LFS, LGS, LSS.
fn load_far_pointer(cpu: &mut Cpu, insn: &Insn, register: SegmentRegister) -> Exec {
    let (selector, offset) = cpu.read_far_pointer(insn)?;
    let segment = cpu.segment_for(register, selector)?;
    cpu.set_segment(register, segment);
    match insn.operand_bytes {
        2 => cpu.write(insn, 0, offset as u16),
        4 => cpu.write(insn, 0, offset as u32),
        _ => cpu.write(insn, 0, offset),
    }
}

impl Cpu {
    /// Reads the far pointer in memory of `insn`: an offset of the operand size, then a selector.
    pub(crate) fn read_far_pointer(&mut self, insn: &Insn) -> Exec<(Selector, u64)> {
        let at = self.effective_address(insn);
        let segment = insn.memory.segment;
        let offset = match insn.operand_bytes {
            2 => u64::from(self.load::<u16>(segment, at)?),
            4 => u64::from(self.load::<u32>(segment, at)?),
            _ => self.load::<u64>(segment, at)?,
        };
        let mask = crate::mem::access::address_mask(insn.address_bytes);
        let behind = at.wrapping_add(u64::from(insn.operand_bytes)) & mask;
        Ok((Selector(self.load::<u16>(segment, behind)?), offset))
    }

    /// #UD in real-address and virtual-8086 mode: "is not recognized".
    fn require_protected(&self) -> Exec {
        if self.mode().is_real_style() {
            return Err(Exception::UD.into());
        }
        Ok(())
    }

    /// #GP(0) unless the CPL is 0.
    pub(crate) fn require_cpl0(&self) -> Exec {
        if self.cpl() != 0 {
            return Err(Exception::gp(0).into());
        }
        Ok(())
    }

    /// #GP(0) for SGDT, SIDT, SLDT, SMSW and STR if CR4.UMIP is set and the CPL is not 0.
    pub(crate) fn check_umip(&self) -> Exec {
        if self.state.cr4.contains(Cr4::UMIP) {
            self.require_cpl0()?;
        }
        Ok(())
    }
}

fn lldt(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.require_protected()?;
    cpu.require_cpl0()?;
    cpu.ask_about_operand(Instruction::LdtrTr, insn, info::system_register)?;
    let selector = Selector(cpu.read::<u16>(insn, 0)?);
    let segment = cpu.local_table_for(selector, Exception::gp, Exception::np)?;
    cpu.set_segment(SegmentRegister::Ldtr, segment);
    Ok(())
}

fn ltr(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.require_protected()?;
    cpu.require_cpl0()?;
    cpu.ask_about_operand(Instruction::LdtrTr, insn, info::system_register)?;
    let selector = Selector(cpu.read::<u16>(insn, 0)?);
    let segment = cpu.task_register_for(selector)?;
    cpu.set_segment(SegmentRegister::Tr, segment);
    Ok(())
}

fn sldt(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.require_protected()?;
    cpu.check_umip()?;
    cpu.ask_about_operand(Instruction::LdtrTr, insn, info::system_register)?;
    write_selector(cpu, insn, cpu.state.segment(SegmentRegister::Ldtr).selector)
}

fn str(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.require_protected()?;
    cpu.check_umip()?;
    cpu.ask_about_operand(Instruction::LdtrTr, insn, info::system_register)?;
    write_selector(cpu, insn, cpu.state.segment(SegmentRegister::Tr).selector)
}

fn lgdt(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.state.gdtr = load_table_register(cpu, insn)?;
    Ok(())
}

fn lidt(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.state.idtr = load_table_register(cpu, insn)?;
    Ok(())
}

/// LGDT, LIDT: limit, then 24, 32 or 64 bits of base.
fn load_table_register(cpu: &mut Cpu, insn: &Insn) -> Exec<DescriptorTable> {
    cpu.require_cpl0()?;
    cpu.ask_about_operand(Instruction::GdtrIdtr, insn, info::table_register)?;
    let at = cpu.effective_address(insn);
    let segment = insn.memory.segment;
    let limit = cpu.load::<u16>(segment, at)?;
    let behind = at.wrapping_add(2) & crate::mem::access::address_mask(insn.address_bytes);
    let base = if cpu.mode() == Mode::Long {
        let base = cpu.load::<u64>(segment, behind)?;
        if !cpu.is_canonical_base(base) {
            return Err(Exception::gp(0).into());
        }
        base
    } else {
        let base = u64::from(cpu.load::<u32>(segment, behind)?);
        let is_word = matches!(insn.code, Code::Lgdt_m1632_16 | Code::Lidt_m1632_16);
        if is_word { base & 0xff_ffff } else { base }
    };
    Ok(DescriptorTable { base, limit })
}

fn sgdt(cpu: &mut Cpu, insn: &Insn) -> Exec {
    store_table_register(cpu, insn, cpu.state.gdtr)
}

fn sidt(cpu: &mut Cpu, insn: &Insn) -> Exec {
    store_table_register(cpu, insn, cpu.state.idtr)
}

/// SGDT, SIDT: the whole base, whatever the operand size.
fn store_table_register(cpu: &mut Cpu, insn: &Insn, table: DescriptorTable) -> Exec {
    cpu.check_umip()?;
    cpu.ask_about_operand(Instruction::GdtrIdtr, insn, info::table_register)?;
    let bytes = if cpu.mode() == Mode::Long { 10 } else { 6 };
    let mut image = [0; 10];
    image[..2].copy_from_slice(&table.limit.to_le_bytes());
    image[2..].copy_from_slice(&table.base.to_le_bytes());
    let at = cpu.effective_address(insn);
    cpu.store_bytes(insn.memory.segment, at, &image[..bytes])
}

impl Cpu {
    /// Reads the descriptor that LAR, LSL, VERR or VERW look at; `None` if they cannot see it.
    fn visible_descriptor(&mut self, selector: Selector) -> Exec<Option<Descriptor>> {
        if selector.is_null() || !self.is_in_table(selector, 8) {
            return Ok(None);
        }
        let mut descriptor = self.descriptor(selector, Exception::gp)?;
        let rights = descriptor.access();
        let level = self.cpl().max(selector.rpl());
        if !rights.is_conforming() && rights.dpl() < level {
            return Ok(None);
        }
        if !rights.is_code_or_data() && self.column() == Column::Ia32e {
            if !self.is_in_table(selector, 16) {
                return Ok(None);
            }
            let low = descriptor.low;
            descriptor = self.upper_half(selector, low, Exception::gp)?;
            if !descriptor.is_upper_type_zero() {
                return Ok(None);
            }
        }
        Ok(Some(descriptor))
    }
}

/// LAR: the second doubleword of the descriptor, masked by 00FxFF00H.
///
/// Choice: the undefined bits 19:16 are the descriptor's, as on real processors.
fn lar(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.require_protected()?;
    let selector = Selector(cpu.read::<u16>(insn, 1)?);
    let found = cpu.visible_descriptor(selector)?;
    let column = cpu.column();
    let Some(descriptor) = found.filter(|d| is_valid_for_lar(*d, column)) else {
        cpu.set_status(Rflags::ZF, Rflags::empty());
        return Ok(());
    };
    let rights = (descriptor.low >> 32) & 0x00ff_ff00;
    write_by_size(cpu, insn, rights)?;
    cpu.set_status(Rflags::ZF, Rflags::ZF);
    Ok(())
}

fn is_valid_for_lar(descriptor: Descriptor, column: Column) -> bool {
    descriptor.access().is_code_or_data()
        || !matches!(
            descriptor.system(column),
            System::Reserved | System::InterruptGate(_) | System::TrapGate(_)
        )
}

/// LSL: the limit in bytes.
fn lsl(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.require_protected()?;
    let selector = Selector(cpu.read::<u16>(insn, 1)?);
    let found = cpu.visible_descriptor(selector)?;
    let column = cpu.column();
    let Some(descriptor) = found.filter(|d| is_valid_for_lsl(*d, column)) else {
        cpu.set_status(Rflags::ZF, Rflags::empty());
        return Ok(());
    };
    write_by_size(cpu, insn, u64::from(descriptor.limit()))?;
    cpu.set_status(Rflags::ZF, Rflags::ZF);
    Ok(())
}

fn is_valid_for_lsl(descriptor: Descriptor, column: Column) -> bool {
    descriptor.access().is_code_or_data()
        || matches!(descriptor.system(column), System::Ldt | System::Tss { .. })
}

fn write_by_size(cpu: &mut Cpu, insn: &Insn, value: u64) -> Exec {
    match insn.operand_bytes {
        2 => cpu.write(insn, 0, value as u16),
        4 => cpu.write(insn, 0, value as u32),
        _ => cpu.write(insn, 0, value),
    }
}

fn verr(cpu: &mut Cpu, insn: &Insn) -> Exec {
    verify(cpu, insn, |d| d.access().is_readable())
}

fn verw(cpu: &mut Cpu, insn: &Insn) -> Exec {
    verify(cpu, insn, |d| d.access().is_writable())
}

/// VERR, VERW.
fn verify(cpu: &mut Cpu, insn: &Insn, is_allowed: fn(Descriptor) -> bool) -> Exec {
    cpu.require_protected()?;
    let selector = Selector(cpu.read::<u16>(insn, 0)?);
    let found = cpu.visible_descriptor(selector)?;
    let zero = if found.is_some_and(is_allowed) {
        Rflags::ZF
    } else {
        Rflags::empty()
    };
    cpu.set_status(Rflags::ZF, zero);
    Ok(())
}

/// ARPL: raises the RPL of the first operand to that of the second.
fn arpl(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.require_protected()?;
    let source = Selector(cpu.read::<u16>(insn, 1)?);
    let destination = Selector(cpu.read_for_update::<u16>(insn, 0)?);
    if destination.rpl() >= source.rpl() {
        cpu.set_status(Rflags::ZF, Rflags::empty());
        return Ok(());
    }
    cpu.write(insn, 0, destination.with_rpl(source.rpl()).0)?;
    cpu.set_status(Rflags::ZF, Rflags::ZF);
    Ok(())
}

fn rdfsbase(cpu: &mut Cpu, insn: &Insn) -> Exec {
    read_base(cpu, insn, SegmentRegister::Fs)
}

fn rdgsbase(cpu: &mut Cpu, insn: &Insn) -> Exec {
    read_base(cpu, insn, SegmentRegister::Gs)
}

fn read_base(cpu: &mut Cpu, insn: &Insn, register: SegmentRegister) -> Exec {
    cpu.require_fsgsbase()?;
    write_by_size(cpu, insn, cpu.state.segment(register).base)
}

fn wrfsbase(cpu: &mut Cpu, insn: &Insn) -> Exec {
    write_base(cpu, insn, SegmentRegister::Fs)
}

fn wrgsbase(cpu: &mut Cpu, insn: &Insn) -> Exec {
    write_base(cpu, insn, SegmentRegister::Gs)
}

fn write_base(cpu: &mut Cpu, insn: &Insn, register: SegmentRegister) -> Exec {
    cpu.require_fsgsbase()?;
    let base = match insn.operand_bytes {
        4 => u64::from(cpu.read::<u32>(insn, 0)?),
        _ => cpu.read::<u64>(insn, 0)?,
    };
    if !cpu.is_canonical_base(base) {
        return Err(Exception::gp(0).into());
    }
    let segment = vmx_model::arch::Segment {
        base,
        ..*cpu.state.segment(register)
    };
    cpu.set_segment(register, segment);
    Ok(())
}

impl Cpu {
    fn require_fsgsbase(&self) -> Exec {
        if self.mode() != Mode::Long || !self.state.cr4.contains(Cr4::FSGSBASE) {
            return Err(Exception::UD.into());
        }
        Ok(())
    }
}
