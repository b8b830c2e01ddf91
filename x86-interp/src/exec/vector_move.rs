//! Moves and bitwise logic of vector registers.
//!
//! SDM Vol. 1, "SSE Data Transfer Instructions", "SSE2 Data Movement Instructions", "SSE Logical
//! Instructions", and the forms that AVX and AVX-512 add. They need no arithmetic, and code that
//! only copies memory uses nothing else. VZEROUPPER and VZEROALL are here too. A memory operand of
//! an aligned move is a multiple of the vector's length, or #GP(0).

use iced_x86::{Code, Mnemonic};
use vmx_model::event::Exception;

use super::simd::vector::{Elements, Faults, is_vector_form};
use super::{Row, Traits};
use crate::insn::{Insn, Operand, Plain};
use crate::mem::Access;
use crate::width::Width;
use crate::{Cpu, Exec};

/// Returns who executes an instruction of this file.
#[rustfmt::skip]
pub(crate) fn lookup(code: Code) -> Option<Row> {
    use Mnemonic as M;
    if !is_vector_form(code) {
        return None;
    }
    let plain: Plain = match code.mnemonic() {
        M::Movaps | M::Vmovaps | M::Movntps | M::Vmovntps | M::Vmovdqa32 => move_aligned::<4>,
        M::Movapd | M::Vmovapd | M::Movdqa | M::Vmovdqa | M::Vmovdqa64 | M::Movntpd | M::Vmovntpd
        | M::Movntdq | M::Vmovntdq | M::Movntdqa | M::Vmovntdqa => move_aligned::<8>,
        M::Vmovdqu8 => move_unaligned::<1>,
        M::Vmovdqu16 => move_unaligned::<2>,
        M::Movups | M::Vmovups | M::Vmovdqu32 => move_unaligned::<4>,
        M::Movupd | M::Vmovupd | M::Movdqu | M::Vmovdqu | M::Vmovdqu64 | M::Lddqu
        | M::Vlddqu => move_unaligned::<8>,
        M::Movd | M::Vmovd => move_low::<u32>,
        M::Movq | M::Vmovq => move_low::<u64>,
        M::Movss | M::Vmovss => move_scalar::<u32>,
        M::Movsd | M::Vmovsd => move_scalar::<u64>,
        M::Movlps | M::Vmovlps | M::Movlpd | M::Vmovlpd => move_half::<0>,
        M::Movhps | M::Vmovhps | M::Movhpd | M::Vmovhpd => move_half::<1>,
        M::Movhlps | M::Vmovhlps => movhlps,
        M::Movlhps | M::Vmovlhps => movlhps,
        M::Vzeroupper => vzeroupper,
        M::Vzeroall => vzeroall,
        M::Xorps | M::Vxorps | M::Pxor | M::Vpxor | M::Vpxord => xor::<4>,
        M::Xorpd | M::Vxorpd | M::Vpxorq => xor::<8>,
        M::Orps | M::Vorps | M::Por | M::Vpor | M::Vpord => or::<4>,
        M::Orpd | M::Vorpd | M::Vporq => or::<8>,
        M::Andps | M::Vandps | M::Pand | M::Vpand | M::Vpandd => and::<4>,
        M::Andpd | M::Vandpd | M::Vpandq => and::<8>,
        M::Andnps | M::Vandnps | M::Pandn | M::Vpandn | M::Vpandnd => and_not::<4>,
        M::Andnpd | M::Vandnpd | M::Vpandnq => and_not::<8>,
        _ => return None,
    };
    let traits = Traits::empty();
    Some(Row { plain, traits })
}

/// MOVAPS, MOVAPD, MOVDQA, MOVNTPS, MOVNTPD, MOVNTDQ, MOVNTDQA.
fn move_aligned<const BYTES: usize>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_vector(insn)?;
    let memory = match insn.operands[0] {
        Operand::Memory => Some(Access::Write),
        _ if insn.operands[1] == Operand::Memory => Some(Access::Read),
        _ => None,
    };
    if let Some(access) = memory {
        let bytes = u64::from(insn.vector.bytes);
        // Where no element is active, nothing else is looked at.
        let at = match insn.vector.mask {
            0 => cpu.operand_linear(insn, usize::from(insn.vector.bytes), access)?,
            _ => cpu.unchecked_linear(insn),
        };
        if at.0 % bytes != 0 {
            return Err(Exception::gp(0).into());
        }
    }
    move_elements(cpu, insn, BYTES)
}

/// MOVUPS, MOVUPD, MOVDQU, LDDQU.
fn move_unaligned<const BYTES: usize>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_vector(insn)?;
    move_elements(cpu, insn, BYTES)
}

fn move_elements(cpu: &mut Cpu, insn: &Insn, bytes: usize) -> Exec {
    let elements = Elements::of(insn, bytes);
    let value = match insn.operands[1] {
        Operand::Memory => cpu.load_elements(insn, elements, cpu.active(insn, elements.count))?,
        _ => cpu.register_lanes(insn, 1),
    };
    cpu.write_vector(insn, value, elements)
}

/// MOVD and MOVQ: the rest of a vector register is cleared.
fn move_low<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_vector(insn)?;
    let value = cpu.read_low::<W>(insn, 1)?;
    match insn.operands[0] {
        Operand::Vector(_) => {
            let value = [u128::from(value.to_u64()), 0, 0, 0];
            cpu.write_vector(insn, value, WHOLE_LANE)
        }
        _ => cpu.write(insn, 0, value),
    }
}

/// The low 128 bits of a register as one element.
const WHOLE_LANE: Elements = Elements {
    bytes: 16,
    count: 1,
};

/// MOVSS, MOVSD: a load clears the rest of the register, a move between registers takes it from the
/// first source.
fn move_scalar<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_vector(insn)?;
    let Operand::Vector(_) = insn.operands[0] else {
        if cpu.active(insn, 1) == 0 {
            return Ok(());
        }
        let value = cpu.read_low::<W>(insn, 1)?;
        return cpu.write(insn, 0, value);
    };
    let last = insn.last_source();
    if insn.operands[last] == Operand::Memory {
        let is_active = cpu.active(insn, 1) != 0;
        let low = match is_active {
            true => u128::from(cpu.read_low::<W>(insn, last)?.to_u64()),
            false => 0,
        };
        return cpu.write_scalar(insn, low, W::BYTES);
    }
    let rest = cpu.register_lanes(insn, insn.first_source())[0];
    let low = cpu.read_low::<W>(insn, last)?.to_u64();
    let value = rest & !u128::from(W::MASK) | u128::from(low);
    cpu.write_scalar(insn, value, W::BYTES)
}

/// MOVLPS, MOVLPD (half 0), MOVHPS, MOVHPD (half 1): from memory, the other half that of the first
/// source; or to memory.
fn move_half<const HALF: usize>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_vector(insn)?;
    let shift = 64 * HALF;
    if insn.operands[0] == Operand::Memory {
        let value = cpu.register_lanes(insn, 1)[0];
        return cpu.write(insn, 0, (value >> shift) as u64);
    }
    let loaded = cpu.read::<u64>(insn, insn.last_source())?;
    let rest = cpu.register_lanes(insn, insn.first_source())[0];
    let value = rest & !(u128::from(u64::MAX) << shift) | u128::from(loaded) << shift;
    cpu.write_vector(insn, [value, 0, 0, 0], WHOLE_LANE)
}

/// MOVHLPS: the high half to the low one.
fn movhlps(cpu: &mut Cpu, insn: &Insn) -> Exec {
    combine::<16>(cpu, insn, |a, b| a >> 64 << 64 | b >> 64)
}

/// MOVLHPS: the low half to the high one.
fn movlhps(cpu: &mut Cpu, insn: &Insn) -> Exec {
    combine::<16>(cpu, insn, |a, b| u128::from(a as u64) | b << 64)
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
    cpu.fpu.vector[..count].fill([0; 8]);
    Ok(())
}

/// XORPS, XORPD, PXOR.
fn xor<const BYTES: usize>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    combine::<BYTES>(cpu, insn, |a, b| a ^ b)
}

/// ORPS, ORPD, POR.
fn or<const BYTES: usize>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    combine::<BYTES>(cpu, insn, |a, b| a | b)
}

/// ANDPS, ANDPD, PAND.
fn and<const BYTES: usize>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    combine::<BYTES>(cpu, insn, |a, b| a & b)
}

/// ANDNPS, ANDNPD, PANDN: the first source is the one that is inverted.
fn and_not<const BYTES: usize>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    combine::<BYTES>(cpu, insn, |a, b| !a & b)
}

fn combine<const BYTES: usize>(cpu: &mut Cpu, insn: &Insn, f: impl Fn(u128, u128) -> u128) -> Exec {
    cpu.lane_by_lane(insn, BYTES, Faults::Suppressed, |a, b, _| f(a, b))
}

impl Cpu {
    /// Reads the low part of operand `n`: a vector or general-purpose register, or memory.
    fn read_low<W: Width>(&mut self, insn: &Insn, n: usize) -> Exec<W> {
        match insn.operands[n] {
            Operand::Vector(_) => Ok(W::from_u64(self.register_lanes(insn, n)[0] as u64)),
            _ => self.read(insn, n),
        }
    }
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
            cpu.fpu.vector = [[1, 2, 3, 4, 5, 6, 7, 8]; 32];
            cpu
        };
        for (code, expected) in [
            ([0xc5, 0xf8, 0x77], [1, 2, 0, 0, 0, 0, 0, 0]),
            ([0xc5, 0xfc, 0x77], [0; 8]),
        ] {
            let mut cpu = start();
            assert_eq!(execute(&mut cpu, &code), Ok(()));
            assert_eq!(cpu.fpu.vector[..16], [expected; 16]);
            assert_eq!(cpu.fpu.vector[16..], [[1, 2, 3, 4, 5, 6, 7, 8]; 16]);
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
