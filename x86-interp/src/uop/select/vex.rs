//! Which micro-ops an instruction of AVX, AVX2 or FMA becomes.

use iced_x86::{Code, Mnemonic};

use super::{Candidate, Emit, Fields, Memory, Use, size_of_operand};
use crate::insn::Operand;
use crate::uop::Handler;
use crate::uop::operand::{BASE, FLAT32, SPARE};
use crate::uop::simd::vex::{self, moves};
use crate::uop::simd::{float, integer, moves as legacy};
use crate::uop::{moves as general, simd};

/// By kind of address: `BASE`, `INDEXED`.
type Kinds = [Handler; 2];

/// What an instruction that is no operation on vectors alone becomes.
#[derive(Clone, Copy)]
enum Move {
    /// To a register, from so many bytes.
    Load(Kinds, usize),
    /// Between registers of any kind.
    Registers(Handler),
    /// The last source is a general-purpose register of this size (its binary logarithm), or memory
    /// that is loaded into one.
    FromGeneral(Handler, usize),
    /// The destination is a general-purpose register, or memory of this size.
    ToGeneral(Handler, usize),
    /// As the legacy form.
    Legacy(simd::Forms),
}

/// The handlers of the legacy form, which does the same.
const fn of_legacy(handlers: [Handler; 3]) -> Kinds {
    [handlers[0], handlers[1]]
}

/// Returns the handlers of a store, and its size.
#[rustfmt::skip]
fn store(mnemonic: Mnemonic, length: u8) -> Option<(Kinds, usize)> {
    use Mnemonic as M;
    let whole = |kind: usize| match length {
        32 => (moves::STORE_32[kind], 32),
        _ => (of_legacy(legacy::STORE[kind]), 16),
    };
    Some(match mnemonic {
        M::Vmovdqa | M::Vmovaps | M::Vmovapd | M::Vmovntdq | M::Vmovntps | M::Vmovntpd => whole(0),
        M::Vmovdqu | M::Vmovups | M::Vmovupd => whole(1),
        M::Vmovss | M::Vmovd => (of_legacy(legacy::STORE_LOW[0]), 4),
        M::Vmovsd | M::Vmovq => (of_legacy(legacy::STORE_LOW[1]), 8),
        M::Vmovlps | M::Vmovlpd => (of_legacy(legacy::STORE_HALF[0]), 8),
        M::Vmovhps | M::Vmovhpd => (of_legacy(legacy::STORE_HALF[1]), 8),
        M::Vextractf128 | M::Vextracti128 => (moves::STORE_LANE, 16),
        _ => return None,
    })
}

/// Returns what an instruction with a general-purpose operand or flags for its result does, and those
/// without operands.
#[rustfmt::skip]
fn other(c: Candidate<'_>, is_64: bool) -> Option<Move> {
    use Mnemonic as M;
    use Move::{FromGeneral, Legacy, Load, Registers, ToGeneral};
    let m = c.iced.mnemonic();
    let wide = usize::from(c.insn.vector.bytes == 32);
    let is_quad = |n: u32| usize::from(size_of_operand(c.iced, n) == Some(3));
    let (to, from) = (c.insn.operands[0], c.insn.operands[1]);
    let has_memory = c.insn.operands.contains(&Operand::Memory);
    Some(match m {
        M::Vmovdqa | M::Vmovaps | M::Vmovapd | M::Vmovntdqa if has_memory => Load(moves::LOAD_ALIGNED[wide], 16 << wide),
        M::Vptest if has_memory => Load(moves::TEST[wide].1, 16 << wide),
        M::Vptest => Registers(moves::TEST[wide].0),
        M::Vmovd | M::Vmovq => match (to, from) {
            (_, Operand::Register(_)) => Registers(moves::FROM_GENERAL[usize::from(m == M::Vmovq)]),
            (Operand::Register(_), _) => Registers(legacy::TO_GENERAL[usize::from(m == M::Vmovq)]),
            _ => return None,
        },
        M::Vpmovmskb => Registers([integer::SIGNS[0], moves::SIGNS[0]][wide]),
        M::Vmovmskps => Registers([integer::SIGNS[1], moves::SIGNS[1]][wide]),
        M::Vmovmskpd => Registers([integer::SIGNS[2], moves::SIGNS[2]][wide]),
        M::Vcvtsi2ss => FromGeneral(moves::FROM_INTEGER[0][is_quad(2)], 2 + is_quad(2)),
        M::Vcvtsi2sd => FromGeneral(moves::FROM_INTEGER[1][is_quad(2)], 2 + is_quad(2)),
        M::Vpinsrb => FromGeneral(moves::INSERT[0], 0),
        M::Vpinsrw => FromGeneral(moves::INSERT[1], 1),
        M::Vpinsrd => FromGeneral(moves::INSERT[2], 2),
        M::Vpinsrq => FromGeneral(moves::INSERT[3], 3),
        M::Vpextrb => ToGeneral(moves::EXTRACT[0], 0),
        M::Vpextrw => ToGeneral(moves::EXTRACT[1], 1),
        M::Vpextrd | M::Vextractps => ToGeneral(moves::EXTRACT[2], 2),
        M::Vpextrq => ToGeneral(moves::EXTRACT[3], 3),
        M::Vzeroupper => Registers(moves::ZERO_UPPER[usize::from(is_64)]),
        M::Vzeroall => Registers(moves::ZERO_ALL[usize::from(is_64)]),
        _ => Legacy(float::forms(same_as(m, is_quad(0))?)?),
    })
}

/// Returns the legacy form that does the same: no vector register is written.
fn same_as(mnemonic: Mnemonic, quad: usize) -> Option<Code> {
    use Code as C;
    Some(match mnemonic {
        Mnemonic::Vucomiss | Mnemonic::Vcomiss => C::Ucomiss_xmm_xmmm32,
        Mnemonic::Vucomisd | Mnemonic::Vcomisd => C::Ucomisd_xmm_xmmm64,
        Mnemonic::Vcvttss2si => [C::Cvttss2si_r32_xmmm32, C::Cvttss2si_r64_xmmm32][quad],
        Mnemonic::Vcvttsd2si => [C::Cvttsd2si_r32_xmmm64, C::Cvttsd2si_r64_xmmm64][quad],
        _ => return None,
    })
}

/// The mnemonic under which the handlers of an operation are found.
fn operation(c: Candidate<'_>) -> Mnemonic {
    use Mnemonic as M;
    let has_memory = c.insn.operands.contains(&Operand::Memory);
    match c.iced.mnemonic() {
        M::Vmovdqa | M::Vmovaps | M::Vmovapd => M::Vmovdqu,
        M::Vmovss if has_memory => M::Vmovd,
        M::Vmovsd if has_memory => M::Vmovq,
        m => m,
    }
}

/// Number or offset of a register operand.
fn register(operand: Operand) -> u8 {
    match operand {
        Operand::Vector(n) | Operand::Register(n) => n,
        _ => 0,
    }
}

impl Emit<'_> {
    /// Emits micro-ops for an instruction with a VEX prefix on vector registers.
    pub(super) fn vex(&mut self, c: Candidate<'_>) -> Option<()> {
        if !vex::is_supported() {
            return None;
        }
        let operands = c.insn.operands;
        let byte = operands.iter().find_map(|o| match o {
            Operand::Immediate(value) => Some(vex::immediate(c.iced.mnemonic(), *value as u8)),
            _ => None,
        });
        // The last source stands before the immediate, or the third source.
        let last = match operands {
            [_, _, _, Operand::Vector(_)] => 2,
            _ => c.insn.last_source(),
        };
        let third = match operands {
            [_, _, _, Operand::Vector(n)] => n,
            _ => register(operands[0]),
        };
        let fields = Fields {
            dst: register(operands[0]),
            src: register(operands[last]),
            imm: i32::from(byte.unwrap_or(third)),
            detail: u16::from(register(operands[usize::from(last >= 2)])),
            ..Fields::default()
        };
        if operands[0] == Operand::Memory
            && let Some((handlers, bytes)) = store(c.iced.mnemonic(), c.insn.vector.bytes)
        {
            return self.vex_memory(c, handlers, bytes, Use::Write, fields);
        }
        if let Some(movement) = other(c, self.mode.bits == 64) {
            return self.vex_move(c, movement, last, fields);
        }
        let forms = vex::forms_of(operation(c), c.insn.vector.bytes, byte.is_some())?;
        match (operands[0], operands[last]) {
            (Operand::Vector(_), Operand::Memory) => {
                self.vex_memory(c, forms.memory, forms.bytes, Use::Read, fields)
            }
            (Operand::Vector(_), Operand::Vector(_)) => {
                self.with(forms.register, fields);
                Some(())
            }
            _ => None,
        }
    }

    fn vex_move(&mut self, c: Candidate<'_>, m: Move, last: usize, fields: Fields) -> Option<()> {
        match m {
            Move::Load(handlers, bytes) => {
                self.vex_memory(c, handlers, bytes, Use::Read, fields)?;
            }
            Move::Registers(handler) => self.with(handler, fields),
            Move::FromGeneral(handler, size) => {
                let src = match c.insn.operands[last] {
                    Operand::Register(src) => src,
                    Operand::Memory => self.load(c, size).map(|()| SPARE)?,
                    _ => return None,
                };
                self.with(handler, Fields { src, ..fields });
            }
            Move::ToGeneral(handler, size) => match c.insn.operands[0] {
                Operand::Register(_) => self.with(handler, fields),
                Operand::Memory => {
                    self.with(
                        handler,
                        Fields {
                            dst: SPARE,
                            ..fields
                        },
                    );
                    self.store_spare(c, size)?;
                }
                _ => return None,
            },
            Move::Legacy(forms) => {
                if c.insn.operands[last] == Operand::Memory {
                    let handlers = of_legacy(forms.memory);
                    return self.vex_memory(c, handlers, forms.bytes, Use::Read, fields);
                }
                self.with(forms.register, fields);
            }
        }
        Some(())
    }

    /// Emits a store of the spare register; only where the address needs it not.
    fn store_spare(&mut self, c: Candidate<'_>, size: usize) -> Option<()> {
        let before = self.uops.len();
        let memory = self.memory(c, 1 << size, Use::Write)?;
        if self.uops.len() != before {
            // The address went through the spare register.
            return None;
        }
        let fields = Fields {
            src: SPARE,
            ..Fields::default()
        };
        self.with_memory(general::MOV_MR[memory.kind][size], &memory, fields);
        Some(())
    }

    fn vex_memory(
        &mut self,
        c: Candidate<'_>,
        handlers: Kinds,
        bytes: usize,
        how: Use,
        fields: Fields,
    ) -> Option<()> {
        let mut memory = self.memory(c, bytes, how)?;
        if memory.kind == usize::from(FLAT32) {
            let segment = memory.operand.segment;
            let to_spare = Fields {
                dst: SPARE,
                ..Fields::default()
            };
            self.with_memory(general::LEA[usize::from(FLAT32)][2], &memory, to_spare);
            memory = Memory {
                kind: usize::from(BASE),
                ..Self::spare(segment)
            };
        }
        self.with_memory(handlers[memory.kind], &memory, fields);
        Some(())
    }
}
