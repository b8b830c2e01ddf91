//! x87 control and state: FNINIT, FNCLEX, FNSTCW, FLDCW, FNSTSW, FNSTENV, FLDENV, FNSAVE, FRSTOR,
//! FFREE, FINCSTP, FDECSTP, FNOP, FWAIT, EMMS.
//!
//! SDM Vol. 1, "x87 FPU Control Instructions", "x87 FPU Environment"; Vol. 2: the instructions.

use iced_x86::{Code, Mnemonic};
use vmx_model::arch::Cr0;
use vmx_model::event::{Exception, vector};

use super::{Row, Traits};
use crate::cpuid::Feature;
use crate::fpu::FpuState;
use crate::insn::{Insn, Operand, Plain};
use crate::{Cpu, Exec};

/// Bits of the control word that exist; bit 6 always reads as one.
const CONTROL_BITS: u16 = 0x1f3f;
const CONTROL_FIXED1: u16 = 0x40;
/// All exception masks of the control word.
const CONTROL_MASKS: u16 = 0x3f;
/// C1 of the status word.
const STATUS_C1: u16 = 1 << 9;
/// Bytes of the eight registers behind the environment.
const REGISTERS_BYTES: usize = 80;

/// Returns who executes an instruction of this file.
pub(crate) fn lookup(code: Code) -> Option<Row> {
    let plain: Plain = match code.mnemonic() {
        Mnemonic::Fninit => fninit,
        Mnemonic::Fnclex => fnclex,
        Mnemonic::Fnstcw => fnstcw,
        Mnemonic::Fldcw => fldcw,
        Mnemonic::Fnstsw => fnstsw,
        Mnemonic::Fnstenv => fnstenv,
        Mnemonic::Fldenv => fldenv,
        Mnemonic::Fnsave => fnsave,
        Mnemonic::Frstor => frstor,
        Mnemonic::Ffree => ffree,
        Mnemonic::Fincstp => fincstp,
        Mnemonic::Fdecstp => fdecstp,
        Mnemonic::Fnop => fnop,
        // Instructions of the 8087 and 80287 that do nothing since.
        Mnemonic::Fneni | Mnemonic::Fndisi | Mnemonic::Fnsetpm => no_operation,
        Mnemonic::Wait => fwait,
        Mnemonic::Emms => emms,
        _ => return None,
    };
    let traits = Traits::empty();
    Some(Row { plain, traits })
}

/// FNINIT.
fn fninit(cpu: &mut Cpu, _: &Insn) -> Exec {
    cpu.check_x87()?;
    cpu.fpu.init_x87();
    Ok(())
}

/// FNCLEX.
fn fnclex(cpu: &mut Cpu, _: &Insn) -> Exec {
    cpu.check_x87()?;
    cpu.fpu.clear_exceptions();
    Ok(())
}

/// FNSTCW.
fn fnstcw(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_x87()?;
    cpu.write(insn, 0, cpu.fpu.control)
}

/// FLDCW: may unmask an exception that has happened.
fn fldcw(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_waiting_x87()?;
    let value = cpu.read::<u16>(insn, 0)?;
    cpu.fpu.control = value & CONTROL_BITS | CONTROL_FIXED1;
    cpu.fpu.update_summary();
    Ok(())
}

/// FNSTSW.
fn fnstsw(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_x87()?;
    cpu.write(insn, 0, cpu.fpu.status)
}

/// FNSTENV: then all exceptions are masked.
fn fnstenv(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_x87()?;
    let layout = Layout::of(cpu, insn);
    let bytes = layout.environment(&cpu.fpu);
    cpu.store_operand(insn, &bytes[..layout.bytes()])?;
    cpu.fpu.control |= CONTROL_MASKS;
    cpu.fpu.update_summary();
    Ok(())
}

/// FLDENV.
fn fldenv(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_waiting_x87()?;
    let layout = Layout::of(cpu, insn);
    let mut bytes = [0; 28];
    cpu.load_operand(insn, &mut bytes[..layout.bytes()])?;
    layout.load_environment(&bytes, &mut cpu.fpu);
    cpu.drop_deprecated_selectors();
    Ok(())
}

/// FNSAVE: the environment, the registers from ST(0) on; then FNINIT.
fn fnsave(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_x87()?;
    let layout = Layout::of(cpu, insn);
    let mut bytes = [0; 28 + REGISTERS_BYTES];
    bytes[..28].copy_from_slice(&layout.environment(&cpu.fpu));
    for i in 0..8 {
        let at = layout.bytes() + 10 * i;
        bytes[at..at + 10].copy_from_slice(&cpu.fpu.registers[cpu.fpu.physical(i)]);
    }
    cpu.store_operand(insn, &bytes[..layout.bytes() + REGISTERS_BYTES])?;
    cpu.fpu.init_x87();
    Ok(())
}

/// FRSTOR.
fn frstor(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_waiting_x87()?;
    let layout = Layout::of(cpu, insn);
    let mut bytes = [0; 28 + REGISTERS_BYTES];
    cpu.load_operand(insn, &mut bytes[..layout.bytes() + REGISTERS_BYTES])?;
    let mut environment = [0; 28];
    environment.copy_from_slice(&bytes[..28]);
    layout.load_environment(&environment, &mut cpu.fpu);
    cpu.drop_deprecated_selectors();
    for i in 0..8 {
        let at = layout.bytes() + 10 * i;
        let n = cpu.fpu.physical(i);
        cpu.fpu.registers[n].copy_from_slice(&bytes[at..at + 10]);
    }
    Ok(())
}

/// FFREE. C1 is undefined; processors clear it.
fn ffree(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_waiting_x87()?;
    if let Operand::X87(i) = insn.operands[0] {
        cpu.fpu.valid &= !(1 << cpu.fpu.physical(usize::from(i)));
        cpu.fpu.status &= !STATUS_C1;
    }
    Ok(())
}

/// FINCSTP.
fn fincstp(cpu: &mut Cpu, _: &Insn) -> Exec {
    rotate(cpu, 1)
}

/// FDECSTP.
fn fdecstp(cpu: &mut Cpu, _: &Insn) -> Exec {
    rotate(cpu, 7)
}

fn rotate(cpu: &mut Cpu, by: usize) -> Exec {
    cpu.check_waiting_x87()?;
    cpu.fpu.set_top(cpu.fpu.top() + by);
    cpu.fpu.status &= !STATUS_C1;
    Ok(())
}

/// FNOP.
fn fnop(cpu: &mut Cpu, _: &Insn) -> Exec {
    cpu.check_waiting_x87()
}

/// FNENI, FNDISI, FNSETPM.
fn no_operation(cpu: &mut Cpu, _: &Insn) -> Exec {
    cpu.check_x87()
}

/// FWAIT: #NM needs both CR0.MP and CR0.TS.
fn fwait(cpu: &mut Cpu, _: &Insn) -> Exec {
    if cpu.state.cr0.contains(Cr0::MP | Cr0::TS) {
        return Err(Exception::NM.into());
    }
    cpu.check_x87_exception()
}

/// EMMS.
fn emms(cpu: &mut Cpu, _: &Insn) -> Exec {
    cpu.check_mmx()?;
    cpu.fpu.valid = 0;
    cpu.fpu.set_top(0);
    Ok(())
}

impl Cpu {
    /// #NM if CR0.EM or CR0.TS is set: for x87 instructions.
    pub(crate) fn check_x87(&self) -> Exec {
        if self.state.cr0.intersects(Cr0::EM | Cr0::TS) {
            return Err(Exception::NM.into());
        }
        Ok(())
    }

    /// As [`Self::check_x87`], then #MF if an exception is pending: for waiting instructions.
    pub(crate) fn check_waiting_x87(&self) -> Exec {
        self.check_x87()?;
        self.check_x87_exception()
    }

    /// For MMX instructions: #UD if CR0.EM is set, #NM if CR0.TS is, #MF.
    pub(crate) fn check_mmx(&self) -> Exec {
        if self.state.cr0.contains(Cr0::EM) {
            return Err(Exception::UD.into());
        }
        self.check_waiting_x87()
    }

    /// #MF if an unmasked exception is pending.
    ///
    /// Choice: with CR0.NE = 0, where a processor asserts FERR#, nothing happens: there is no
    /// interrupt controller that the signal could reach.
    fn check_x87_exception(&self) -> Exec {
        if self.fpu.is_exception_pending() && self.state.cr0.contains(Cr0::NE) {
            return Err(Exception::plain(vector::MF).into());
        }
        Ok(())
    }

    /// Forgets FCS and FDS where CPUID deprecates them.
    pub(crate) fn drop_deprecated_selectors(&mut self) {
        if self.has(Feature::FcsFdsDeprecated) {
            self.fpu.code_selector = 0;
            self.fpu.data_selector = 0;
        }
    }
}

/// One of the four layouts of the x87 environment.
#[derive(Clone, Copy)]
struct Layout {
    is_wide: bool,
    is_real: bool,
}

impl Layout {
    fn of(cpu: &Cpu, insn: &Insn) -> Self {
        let is_narrow = matches!(
            insn.code,
            Code::Fnstenv_m14byte
                | Code::Fldenv_m14byte
                | Code::Fnsave_m94byte
                | Code::Frstor_m94byte
        );
        Self {
            is_wide: !is_narrow,
            is_real: cpu.mode().is_real_style(),
        }
    }

    const fn bytes(self) -> usize {
        if self.is_wide { 28 } else { 14 }
    }

    /// Returns the environment; the first [`Self::bytes`] count.
    fn environment(self, fpu: &FpuState) -> [u8; 28] {
        let ip = fpu.instruction_pointer as u32;
        let dp = fpu.data_pointer as u32;
        let opcode = u32::from(fpu.opcode);
        let [third, fourth, fifth, sixth] = if self.is_real {
            [ip, (ip >> 16) << 12 | opcode, dp, (dp >> 16) << 12]
        } else {
            // The 16-bit layout has no place for the opcode.
            let code = u32::from(fpu.code_selector) | opcode << 16;
            [ip, code, dp, u32::from(fpu.data_selector)]
        };
        let words = [
            u32::from(fpu.control),
            u32::from(fpu.status),
            u32::from(fpu.tag_word()),
            third,
            fourth,
            fifth,
            sixth,
        ];
        let mut bytes = [0; 28];
        for (n, &word) in words.iter().enumerate() {
            if self.is_wide {
                let word = word | self.fixed_ones(n);
                bytes[4 * n..4 * n + 4].copy_from_slice(&word.to_le_bytes());
            } else {
                bytes[2 * n..2 * n + 2].copy_from_slice(&(word as u16).to_le_bytes());
            }
        }
        bytes
    }

    /// Returns the reserved bits of word `n` of a 32-bit environment, which are stored as ones.
    fn fixed_ones(self, n: usize) -> u32 {
        match n {
            0..=2 => 0xffff_0000,
            3 | 5 if self.is_real => 0xffff_0000,
            6 if !self.is_real => 0xffff_0000,
            _ => 0,
        }
    }

    fn load_environment(self, bytes: &[u8; 28], fpu: &mut FpuState) {
        let word = |n: usize| {
            if self.is_wide {
                let at = 4 * n;
                u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
            } else {
                u32::from(u16::from_le_bytes([bytes[2 * n], bytes[2 * n + 1]]))
            }
        };
        fpu.control = word(0) as u16 & CONTROL_BITS | CONTROL_FIXED1;
        fpu.status = word(1) as u16;
        fpu.set_tag_word(word(2) as u16);
        if self.is_real {
            let high = |n: usize| (word(n) >> 12 & 0xffff) << 16;
            fpu.instruction_pointer = u64::from(word(3) & 0xffff | high(4));
            fpu.data_pointer = u64::from(word(5) & 0xffff | high(6));
            fpu.opcode = word(4) as u16 & 0x7ff;
        } else {
            fpu.instruction_pointer = u64::from(word(3));
            fpu.code_selector = word(4) as u16;
            fpu.data_pointer = u64::from(word(5));
            fpu.data_selector = word(6) as u16;
            // The 16-bit layout has no opcode, and clears it.
            fpu.opcode = (word(4) >> 16) as u16 & 0x7ff;
        }
        fpu.update_summary();
    }
}

#[cfg(test)]
mod tests;
