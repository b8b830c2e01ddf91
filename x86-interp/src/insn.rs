//! A decoded instruction: operands resolved once, so that handlers never look at the decoder's
//! types.

use crate::Cpu;
use crate::fault::Exec;
use vmx_model::arch::SegmentRegister;

/// A plain handler: executes one instruction.
///
/// On entry `cpu.state.rip` is the instruction's own address and `cpu.next_rip` the following one;
/// a handler that transfers control sets `cpu.next_rip`. On `Err` nothing has changed (see
/// [`crate::Fault`]). The caller commits `next_rip` on `Ok`.
pub type Plain = fn(&mut Cpu, &Insn) -> Exec;

/// Byte offset into the register file: 8 x the register's number, + 1 for AH, CH, DH, BH.
pub type RegisterOffset = u8;

/// The register-file slot that always reads zero: the missing base or index.
pub const ZERO_REGISTER: RegisterOffset = 17 * 8;

/// An operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Operand {
    /// There is no such operand.
    #[default]
    None,
    /// A general-purpose register.
    Register(RegisterOffset),
    /// The instruction's memory operand, [`Insn::memory`].
    Memory,
    /// An immediate, already sign- or zero-extended to 64 bits as the instruction demands.
    Immediate(u64),
    /// A segment register.
    Segment(SegmentRegister),
    /// A control register, by number.
    Control(u8),
    /// A debug register, by number.
    Debug(u8),
    /// A near branch target: the new RIP, already truncated to the operand size.
    Branch(u64),
    /// A far pointer in the instruction.
    Far {
        /// The selector.
        selector: u16,
        /// The offset.
        offset: u32,
    },
    /// An MMX register, by number.
    Mmx(u8),
    /// A vector register, by number.
    Vector(u8),
    /// An opmask register, by number.
    Opmask(u8),
    /// An x87 stack register, by number.
    X87(u8),
}

/// The memory operand of an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryOperand {
    /// Base register or [`ZERO_REGISTER`].
    pub base: RegisterOffset,
    /// Index register or [`ZERO_REGISTER`].
    pub index: RegisterOffset,
    /// log2 of the scale.
    pub scale_shift: u8,
    /// The segment in effect, overrides applied.
    pub segment: SegmentRegister,
    /// Displacement, sign-extended; for RIP-relative operands the absolute offset.
    pub displacement: u64,
}

impl Default for MemoryOperand {
    fn default() -> Self {
        Self {
            base: ZERO_REGISTER,
            index: ZERO_REGISTER,
            scale_shift: 0,
            segment: SegmentRegister::Ds,
            displacement: 0,
        }
    }
}

/// A repeat prefix on an instruction that honours it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Repeat {
    /// None.
    #[default]
    None,
    /// REP or REPE.
    Rep,
    /// REPNE.
    Repne,
}

/// How a vector instruction is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Encoding {
    /// Without VEX or EVEX prefix: what lies beyond bit 127 of the destination stays.
    #[default]
    Legacy,
    /// With a VEX prefix.
    Vex,
    /// With an EVEX prefix.
    Evex,
}

/// What the encoding of a vector instruction says besides its operands (SDM Vol. 2, "Intel AVX-512
/// Encoding").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct VectorForm {
    /// How it is encoded.
    pub encoding: Encoding,
    /// Vector length in bytes: 16, 32 or 64; 16 where the encoding ignores it.
    pub bytes: u8,
    /// Number of the vector register that indexes a VSIB operand; 0 if there is none.
    pub index: u8,
    /// Number of the opmask register; 0 if there is none.
    pub mask: u8,
    /// Elements that are masked off become zero; otherwise they stay.
    pub is_zeroing: bool,
    /// Bytes of the one element in memory that stands for all; 0 without broadcast.
    pub broadcast_bytes: u8,
    /// Rounding control in place of MXCSR's.
    pub rounding: Option<u8>,
    /// No floating-point exception is raised or noted.
    pub suppresses_exceptions: bool,
}

/// A decoded instruction.
#[derive(Clone, Debug)]
pub struct Insn {
    /// The operation, as the decoder names it: for tables and diagnostics only.
    pub code: iced_x86::Code,
    /// Length in bytes, 1 to 15.
    pub length: u8,
    /// Effective operand size in bytes: 2, 4 or 8 (for byte operations that of the prefixes).
    pub operand_bytes: u8,
    /// Effective address size in bytes: 2, 4 or 8.
    pub address_bytes: u8,
    /// Repeat prefix.
    pub repeat: Repeat,
    /// Whether there is a LOCK prefix.
    pub locked: bool,
    /// Whether the prefix of DS is the segment prefix, which is NOTRACK for near indirect branches.
    pub is_no_track: bool,
    /// The operands in the SDM's order.
    pub operands: [Operand; 4],
    /// The memory operand, if an operand is [`Operand::Memory`]; also the source segment of string
    /// instructions.
    pub memory: MemoryOperand,
    /// Of vector instructions: what the encoding says.
    pub vector: VectorForm,
    /// Who executes it.
    pub plain: Plain,
}
