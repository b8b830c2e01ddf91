//! Moves and bitwise logic of XMM registers.
//!
//! SDM Vol. 1, "SSE Data Transfer Instructions", "SSE2 Data Movement Instructions", "SSE Logical
//! Instructions". They need no arithmetic, and code that only copies memory uses nothing else.
//! VZEROUPPER and VZEROALL are here too. A memory operand of 128 bits is aligned, or #GP(0), but for MOVUPS, MOVUPD and MOVDQU.

use iced_x86::Code;
use vmx_model::event::Exception;

use super::{Row, Traits};
use crate::insn::{Insn, Operand, Plain};
use crate::mem::{Access, Privilege};
use crate::width::Width;
use crate::{Cpu, Exec};

/// Returns who executes an instruction of this file.
#[rustfmt::skip]
pub(crate) fn lookup(code: Code) -> Option<Row> {
    use Code as C;
    let plain: Plain = match code {
        C::Movaps_xmm_xmmm128 | C::Movaps_xmmm128_xmm | C::Movapd_xmm_xmmm128
        | C::Movapd_xmmm128_xmm | C::Movdqa_xmm_xmmm128 | C::Movdqa_xmmm128_xmm
        | C::Movntps_m128_xmm | C::Movntpd_m128_xmm | C::Movntdq_m128_xmm
        | C::Movntdqa_xmm_m128 => move_aligned,
        C::Movups_xmm_xmmm128 | C::Movups_xmmm128_xmm | C::Movupd_xmm_xmmm128
        | C::Movupd_xmmm128_xmm | C::Movdqu_xmm_xmmm128 | C::Movdqu_xmmm128_xmm
        | C::Lddqu_xmm_m128 => move_unaligned,
        C::Movd_xmm_rm32 => load_zeroing::<u32>,
        C::Movq_xmm_rm64 | C::Movq_xmm_xmmm64 => load_zeroing::<u64>,
        C::Movd_rm32_xmm => store_low::<u32>,
        C::Movq_rm64_xmm => store_low::<u64>,
        C::Movq_xmmm64_xmm => movq_store,
        C::Movss_xmm_xmmm32 | C::Movss_xmmm32_xmm => move_scalar::<u32>,
        C::Movsd_xmm_xmmm64 | C::Movsd_xmmm64_xmm => move_scalar::<u64>,
        C::Movlps_xmm_m64 | C::Movlpd_xmm_m64 => load_half::<0>,
        C::Movhps_xmm_m64 | C::Movhpd_xmm_m64 => load_half::<1>,
        C::Movlps_m64_xmm | C::Movlpd_m64_xmm => store_half::<0>,
        C::Movhps_m64_xmm | C::Movhpd_m64_xmm => store_half::<1>,
        C::Movhlps_xmm_xmm => movhlps,
        C::Movlhps_xmm_xmm => movlhps,
        C::VEX_Vzeroupper => vzeroupper,
        C::VEX_Vzeroall => vzeroall,
        C::Xorps_xmm_xmmm128 | C::Xorpd_xmm_xmmm128 | C::Pxor_xmm_xmmm128 => xor,
        C::Orps_xmm_xmmm128 | C::Orpd_xmm_xmmm128 | C::Por_xmm_xmmm128 => or,
        C::Andps_xmm_xmmm128 | C::Andpd_xmm_xmmm128 | C::Pand_xmm_xmmm128 => and,
        C::Andnps_xmm_xmmm128 | C::Andnpd_xmm_xmmm128 | C::Pandn_xmm_xmmm128 => and_not,
        _ => return None,
    };
    let traits = Traits::empty();
    Some(Row { plain, traits })
}

/// MOVAPS, MOVAPD, MOVDQA, MOVNTPS, MOVNTPD, MOVNTDQ, MOVNTDQA.
fn move_aligned(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_sse()?;
    let value = cpu.read_xmm(insn, 1, Alignment::Aligned)?;
    cpu.write_xmm(insn, value, Alignment::Aligned)
}

/// MOVUPS, MOVUPD, MOVDQU, LDDQU.
fn move_unaligned(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_sse()?;
    let value = cpu.read_xmm(insn, 1, Alignment::Any)?;
    cpu.write_xmm(insn, value, Alignment::Any)
}

/// MOVD and MOVQ to a register: the rest is cleared.
fn load_zeroing<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_sse()?;
    let value = cpu.read_low::<W>(insn, 1)?.to_u64();
    cpu.write_xmm(insn, [value, 0], Alignment::Any)
}

/// MOVD and MOVQ to a general-purpose register or memory.
fn store_low<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_sse()?;
    let value = cpu.read_low::<W>(insn, 1)?;
    cpu.write(insn, 0, value)
}

/// MOVQ to a register or memory: the rest of a register is cleared.
fn movq_store(cpu: &mut Cpu, insn: &Insn) -> Exec {
    match insn.operands[0] {
        Operand::Vector(_) => load_zeroing::<u64>(cpu, insn),
        _ => store_low::<u64>(cpu, insn),
    }
}

/// MOVSS, MOVSD: a load clears the rest of the register, a move between registers keeps it.
fn move_scalar<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    match insn.operands[..2] {
        [Operand::Vector(to), Operand::Vector(_)] => {
            cpu.check_sse()?;
            let [low, high] = cpu.fpu.xmm(usize::from(to));
            let value = cpu.read_low::<W>(insn, 1)?.to_u64();
            cpu.write_xmm(insn, [low & !W::MASK | value, high], Alignment::Any)
        }
        [Operand::Vector(_), _] => load_zeroing::<W>(cpu, insn),
        _ => store_low::<W>(cpu, insn),
    }
}

/// MOVLPS, MOVLPD (half 0), MOVHPS, MOVHPD (half 1) from memory: the other half stays.
fn load_half<const HALF: usize>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_sse()?;
    let mut value = cpu.destination(insn);
    value[HALF] = cpu.read::<u64>(insn, 1)?;
    cpu.write_xmm(insn, value, Alignment::Any)
}

/// MOVLPS, MOVLPD (half 0), MOVHPS, MOVHPD (half 1) to memory.
fn store_half<const HALF: usize>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_sse()?;
    let value = cpu.read_xmm(insn, 1, Alignment::Any)?;
    cpu.write(insn, 0, value[HALF])
}

/// MOVHLPS: the high half to the low one.
fn movhlps(cpu: &mut Cpu, insn: &Insn) -> Exec {
    combine(cpu, insn, |to, from| [from[1], to[1]])
}

/// MOVLHPS: the low half to the high one.
fn movlhps(cpu: &mut Cpu, insn: &Insn) -> Exec {
    combine(cpu, insn, |to, from| [to[0], from[0]])
}

/// VZEROUPPER.
fn vzeroupper(cpu: &mut Cpu, _: &Insn) -> Exec {
    cpu.check_avx()?;
    let count = cpu.vector_registers();
    for register in &mut cpu.fpu.vector[..count] {
        register[2..].fill(0);
    }
    Ok(())
}

/// VZEROALL.
fn vzeroall(cpu: &mut Cpu, _: &Insn) -> Exec {
    cpu.check_avx()?;
    let count = cpu.vector_registers();
    cpu.fpu.vector[..count].fill([0; 4]);
    Ok(())
}

/// XORPS, XORPD, PXOR.
fn xor(cpu: &mut Cpu, insn: &Insn) -> Exec {
    combine(cpu, insn, |a, b| [a[0] ^ b[0], a[1] ^ b[1]])
}

/// ORPS, ORPD, POR.
fn or(cpu: &mut Cpu, insn: &Insn) -> Exec {
    combine(cpu, insn, |a, b| [a[0] | b[0], a[1] | b[1]])
}

/// ANDPS, ANDPD, PAND.
fn and(cpu: &mut Cpu, insn: &Insn) -> Exec {
    combine(cpu, insn, |a, b| [a[0] & b[0], a[1] & b[1]])
}

/// ANDNPS, ANDNPD, PANDN: the destination is the one that is inverted.
fn and_not(cpu: &mut Cpu, insn: &Insn) -> Exec {
    combine(cpu, insn, |a, b| [!a[0] & b[0], !a[1] & b[1]])
}

fn combine(cpu: &mut Cpu, insn: &Insn, f: impl Fn([u64; 2], [u64; 2]) -> [u64; 2]) -> Exec {
    cpu.check_sse()?;
    let source = cpu.read_xmm(insn, 1, Alignment::Aligned)?;
    let value = f(cpu.destination(insn), source);
    cpu.write_xmm(insn, value, Alignment::Aligned)
}

/// What an instruction demands of a 128-bit memory operand.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Alignment {
    Aligned,
    Any,
}

impl Cpu {
    /// Returns operand 0, a register, as it is before the instruction.
    pub(super) fn destination(&self, insn: &Insn) -> [u64; 2] {
        match insn.operands[0] {
            Operand::Vector(n) => self.fpu.xmm(usize::from(n & 15)),
            _ => [0; 2],
        }
    }

    pub(super) fn read_xmm(
        &mut self,
        insn: &Insn,
        n: usize,
        alignment: Alignment,
    ) -> Exec<[u64; 2]> {
        match insn.operands[n] {
            Operand::Vector(n) => Ok(self.fpu.xmm(usize::from(n & 15))),
            _ => {
                let at = self.operand_linear(insn, 16, Access::Read)?;
                check_alignment(at.0, alignment)?;
                let mut bytes = [0; 16];
                self.load_bytes_linear(at, &mut bytes, Access::Read, Privilege::Current)?;
                let value = u128::from_le_bytes(bytes);
                Ok([value as u64, (value >> 64) as u64])
            }
        }
    }

    pub(super) fn write_xmm(&mut self, insn: &Insn, value: [u64; 2], alignment: Alignment) -> Exec {
        match insn.operands[0] {
            Operand::Vector(n) => {
                self.fpu.set_xmm(usize::from(n & 15), value);
                Ok(())
            }
            _ => {
                let at = self.operand_linear(insn, 16, Access::Write)?;
                check_alignment(at.0, alignment)?;
                let value = u128::from(value[1]) << 64 | u128::from(value[0]);
                self.store_bytes_linear(at, &value.to_le_bytes(), Privilege::Current)
            }
        }
    }

    /// Reads the low part of operand `n`: a vector or general-purpose register, or memory.
    fn read_low<W: Width>(&mut self, insn: &Insn, n: usize) -> Exec<W> {
        match insn.operands[n] {
            Operand::Vector(n) => Ok(W::from_u64(self.fpu.xmm(usize::from(n & 15))[0])),
            _ => self.read(insn, n),
        }
    }
}

fn check_alignment(linear: u64, alignment: Alignment) -> Exec {
    if alignment == Alignment::Aligned && linear & 0xf != 0 {
        return Err(Exception::gp(0).into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use vmx_model::arch::{Cr0, Cr4};

    use crate::test_cpu::{DATA, GP, NM, UD, execute, long_mode};

    #[test]
    fn vzeroupper_and_vzeroall_need_avx_enabled() {
        let start = || {
            let mut cpu = long_mode();
            cpu.state.cr4 |= Cr4::OSXSAVE;
            cpu.system.xcr0 = 7;
            cpu.fpu.vector = [[1, 2, 3, 4]; 16];
            cpu
        };
        for (code, expected) in [
            ([0xc5, 0xf8, 0x77], [1, 2, 0, 0]),
            ([0xc5, 0xfc, 0x77], [0; 4]),
        ] {
            let mut cpu = start();
            assert_eq!(execute(&mut cpu, &code), Ok(()));
            assert_eq!(cpu.fpu.vector, [expected; 16]);
            cpu.state.cr0 |= Cr0::TS;
            assert_eq!(execute(&mut cpu, &code), NM);
            cpu.system.xcr0 = 3;
            assert_eq!(execute(&mut cpu, &code), UD);
            let mut cpu = start();
            cpu.state.cr4.remove(Cr4::OSXSAVE);
            assert_eq!(execute(&mut cpu, &code), UD);
        }
    }

    #[test]
    fn aligned_forms_need_alignment() {
        // MOVAPS xmm, m; MOVAPS m, xmm; PXOR xmm, m; MOVUPS xmm, m.
        let rows: [(&[u8], _); 4] = [
            (&[0x0f, 0x28, 0x07], GP),
            (&[0x0f, 0x29, 0x07], GP),
            (&[0x66, 0x0f, 0xef, 0x07], GP),
            (&[0x0f, 0x10, 0x07], Ok(())),
        ];
        for (code, unaligned) in rows {
            let mut cpu = long_mode();
            cpu.state.cr4 |= Cr4::OSFXSR;
            cpu.gpr[7] = DATA;
            assert_eq!(execute(&mut cpu, code), Ok(()));
            cpu.gpr[7] = DATA + 8;
            assert_eq!(execute(&mut cpu, code), unaligned);
            cpu.state.cr0 |= Cr0::TS;
            assert_eq!(execute(&mut cpu, code), NM);
            cpu.state.cr0 |= Cr0::EM;
            assert_eq!(execute(&mut cpu, code), UD);
        }
    }
}
