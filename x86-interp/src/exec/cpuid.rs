//! CPUID.
//!
//! SDM Vol. 2A, "CPUID-CPU Identification". The leaves are in [`crate::cpuid`]; here are the bits
//! that depend on the processor's state.

use iced_x86::{Code, Mnemonic};
use vmx_model::arch::Cr4;
use vmx_model::intercept::Instruction;

use super::{Row, Traits};
use crate::cpuid::{CpuidEntry, Feature};
use crate::insn::Insn;
use crate::mode::Mode;
use crate::msr::{MISC_ENABLE_LIMIT_CPUID, MISC_ENABLE_XD_DISABLE};
use crate::{Cpu, Exec, xstate};

/// Returns who executes an instruction of this file.
pub(crate) fn lookup(code: Code) -> Option<Row> {
    (code.mnemonic() == Mnemonic::Cpuid).then_some(Row {
        plain: cpuid,
        traits: Traits::ENDS_BLOCK.union(Traits::OUTSIDE),
    })
}

/// CPUID.
fn cpuid(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.ask(Instruction::Cpuid, insn)?;
    let answer = cpu.cpuid_answer(cpu.gpr[0] as u32, cpu.gpr[1] as u32);
    cpu.gpr[0] = u64::from(answer.eax);
    cpu.gpr[3] = u64::from(answer.ebx);
    cpu.gpr[1] = u64::from(answer.ecx);
    cpu.gpr[2] = u64::from(answer.edx);
    Ok(())
}

impl Cpu {
    /// Returns what CPUID answers now, the bits that depend on the processor's state included.
    #[must_use]
    pub fn cpuid_answer(&mut self, function: u32, index: u32) -> CpuidEntry {
        let mut answer = self.cpuid.answer(function, index);
        let cr4 = self.state.cr4;
        let disabled = self.msrs.misc_enable;
        match (answer.function, answer.index) {
            (1, _) => {
                answer.ebx = answer.ebx & 0x00ff_ffff | self.system.apic_id << 24;
                set_bit(&mut answer.ecx, 27, cr4.contains(Cr4::OSXSAVE));
                if !self.is_apic_enabled() {
                    set_bit(&mut answer.edx, 9, false);
                }
            }
            (7, 0) => set_bit(&mut answer.ecx, 4, cr4.contains(Cr4::PKE)),
            (0xb, level) => {
                answer.ecx = answer.ecx & !0xff | level & 0xff;
                answer.edx = self.system.apic_id;
            }
            (0xd, 0) if self.has(Feature::Xsave) => {
                answer.ebx = xstate::standard_bytes(self.system.xcr0);
            }
            (0xd, 1) if self.has(Feature::Xsavec) => {
                answer.ebx = xstate::compacted_bytes(self.system.xcr0 | self.msrs.xss);
            }
            (0, _) if disabled & MISC_ENABLE_LIMIT_CPUID != 0 => answer.eax = answer.eax.min(2),
            (0x8000_0001, _) => {
                // SYSCALL is there in 64-bit mode only.
                if self.mode() != Mode::Long {
                    set_bit(&mut answer.edx, 11, false);
                }
                if disabled & MISC_ENABLE_XD_DISABLE != 0 {
                    set_bit(&mut answer.edx, 20, false);
                }
            }
            _ => {}
        }
        answer
    }

    fn is_apic_enabled(&mut self) -> bool {
        const ENABLE: u64 = 1 << 11;
        let base = match &mut self.apic {
            Some(apic) => apic.base(),
            None => self.msrs.apic_base,
        };
        base & ENABLE != 0
    }
}

fn set_bit(word: &mut u32, bit: u32, value: bool) {
    *word = *word & !(1 << bit) | u32::from(value) << bit;
}
