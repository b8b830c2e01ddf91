//! Which micro-ops an instruction of SSE or SSE2 becomes.

use iced_x86::Code;

use super::{Candidate, Emit, Fields, Use};
use crate::insn::Operand;
use crate::uop::Handler;
use crate::uop::simd::{Forms, float, integer, moves};

/// A move between a vector register and memory.
enum Move {
    /// From memory: handlers by kind of address, size in bytes.
    Load([Handler; 3], usize),
    /// To memory.
    Store([Handler; 3], usize),
    /// Between registers of any kind.
    Registers(Handler),
}

/// Returns what a moving instruction does; `has_memory` says whether an operand is in memory.
#[rustfmt::skip]
fn movement(code: Code, has_memory: bool) -> Option<Move> {
    use Code as C;
    use Move::{Load, Registers, Store};
    use moves as m;
    Some(match (code, has_memory) {
        (C::Movaps_xmm_xmmm128 | C::Movapd_xmm_xmmm128 | C::Movdqa_xmm_xmmm128, true) => Load(m::LOAD[0], 16),
        (C::Movups_xmm_xmmm128 | C::Movupd_xmm_xmmm128 | C::Movdqu_xmm_xmmm128 | C::Lddqu_xmm_m128, true) => Load(m::LOAD[1], 16),
        (C::Movaps_xmmm128_xmm | C::Movapd_xmmm128_xmm | C::Movdqa_xmmm128_xmm, true)
        | (C::Movntps_m128_xmm | C::Movntpd_m128_xmm | C::Movntdq_m128_xmm, true) => Store(m::STORE[0], 16),
        (C::Movups_xmmm128_xmm | C::Movupd_xmmm128_xmm | C::Movdqu_xmmm128_xmm, true) => Store(m::STORE[1], 16),
        (C::Movaps_xmm_xmmm128 | C::Movapd_xmm_xmmm128 | C::Movdqa_xmm_xmmm128, false)
        | (C::Movups_xmm_xmmm128 | C::Movupd_xmm_xmmm128 | C::Movdqu_xmm_xmmm128, false)
        | (C::Movaps_xmmm128_xmm | C::Movapd_xmmm128_xmm | C::Movdqa_xmmm128_xmm, false)
        | (C::Movups_xmmm128_xmm | C::Movupd_xmmm128_xmm | C::Movdqu_xmmm128_xmm, false) => Registers(m::MOVE),
        (C::Movss_xmm_xmmm32 | C::Movd_xmm_rm32, true) => Load(m::LOAD_LOW[0], 4),
        (C::Movsd_xmm_xmmm64 | C::Movq_xmm_xmmm64 | C::Movq_xmm_rm64, true) => Load(m::LOAD_LOW[1], 8),
        (C::Movss_xmmm32_xmm | C::Movd_rm32_xmm, true) => Store(m::STORE_LOW[0], 4),
        (C::Movsd_xmmm64_xmm | C::Movq_xmmm64_xmm | C::Movq_rm64_xmm, true) => Store(m::STORE_LOW[1], 8),
        (C::Movss_xmm_xmmm32 | C::Movss_xmmm32_xmm, false) => Registers(m::MERGE_LOW[0]),
        (C::Movsd_xmm_xmmm64 | C::Movsd_xmmm64_xmm, false) => Registers(m::MERGE_LOW[1]),
        (C::Movq_xmm_xmmm64 | C::Movq_xmmm64_xmm, false) => Registers(m::MOVE_LOW),
        (C::Movd_xmm_rm32, false) => Registers(m::FROM_GENERAL[0]),
        (C::Movq_xmm_rm64, false) => Registers(m::FROM_GENERAL[1]),
        (C::Movd_rm32_xmm, false) => Registers(m::TO_GENERAL[0]),
        (C::Movq_rm64_xmm, false) => Registers(m::TO_GENERAL[1]),
        (C::Movlps_xmm_m64 | C::Movlpd_xmm_m64, true) => Load(m::LOAD_HALF[0], 8),
        (C::Movhps_xmm_m64 | C::Movhpd_xmm_m64, true) => Load(m::LOAD_HALF[1], 8),
        (C::Movlps_m64_xmm | C::Movlpd_m64_xmm, true) => Store(m::STORE_HALF[0], 8),
        (C::Movhps_m64_xmm | C::Movhpd_m64_xmm, true) => Store(m::STORE_HALF[1], 8),
        _ => return None,
    })
}

/// Number or offset of a register operand.
fn register(operand: Operand) -> u8 {
    match operand {
        Operand::Vector(n) | Operand::Register(n) => n,
        _ => 0,
    }
}

impl Emit<'_> {
    /// Emits a micro-op for an instruction on vector registers.
    pub(super) fn simd(&mut self, c: Candidate<'_>) -> Option<()> {
        let code = c.iced.code();
        let has_memory = c.insn.operands[..2].contains(&Operand::Memory);
        let fields = Fields {
            dst: register(c.insn.operands[0]),
            src: register(c.insn.operands[1]),
            ..Fields::default()
        };
        if let Some(forms) = integer::forms(code).or_else(|| float::forms(code)) {
            return self.forms(c, forms, fields);
        }
        let registers = integer::mask_of_signs(code).or_else(|| float::from_integer(code));
        if let Some(handler) = registers {
            if has_memory {
                return None;
            }
            self.with(handler, fields);
            return Some(());
        }
        match movement(code, has_memory)? {
            Move::Load(handlers, bytes) => {
                let memory = self.memory(c, bytes, Use::Read)?;
                self.with_memory(handlers[memory.kind], &memory, fields);
            }
            Move::Store(handlers, bytes) => {
                let memory = self.memory(c, bytes, Use::Write)?;
                self.with_memory(handlers[memory.kind], &memory, fields);
            }
            Move::Registers(handler) => self.with(handler, fields),
        }
        Some(())
    }

    fn forms(&mut self, c: Candidate<'_>, forms: Forms, fields: Fields) -> Option<()> {
        // The last operand may be an immediate.
        let immediate = c.insn.operands.iter().find_map(|o| match o {
            Operand::Immediate(value) => Some((value & 0xff) as i32),
            _ => None,
        });
        let fields = Fields {
            imm: immediate.unwrap_or(0),
            ..fields
        };
        if c.insn.operands[1] == Operand::Memory {
            let memory = self.memory(c, forms.bytes, Use::Read)?;
            self.with_memory(forms.memory[memory.kind], &memory, fields);
        } else {
            self.with(forms.register, fields);
        }
        Some(())
    }
}
