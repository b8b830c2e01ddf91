//! Which micro-ops an instruction becomes.
//!
//! [`Emit`] collects the micro-ops of one instruction. What has no hot form becomes one micro-op
//! that calls the plain handler.

mod bmi;
mod control;
mod flags;
mod general;
#[cfg(target_arch = "x86_64")]
mod simd;
#[cfg(target_arch = "x86_64")]
mod vex;
mod x87;

use iced_x86::{ConditionCode, Instruction, Mnemonic, OpKind};
use vmx_model::arch::SegmentRegister;

use super::moves::{self, detail};
use super::operand::{BASE, FLAT32, INDEXED, SPARE};
use super::{Handler, Link, Slot, Uop, branch, stack};
use crate::block::CodeMode;
use crate::insn::{Encoding, Insn, MemoryOperand, Operand, RegisterOffset, ZERO_REGISTER};

pub(crate) use flags::dead_flags;

/// A decoded instruction as the selection sees it.
#[derive(Clone, Copy)]
pub(crate) struct Candidate<'a> {
    pub(crate) iced: &'a Instruction,
    pub(crate) insn: &'a Insn,
    /// Nobody looks at the status flags that it sets.
    pub(crate) is_dead: bool,
}

/// The micro-ops of a block under construction.
pub(crate) struct Emit<'a> {
    slots: &'a mut Vec<Slot>,
    mode: &'a CodeMode,
    /// RIP of the block.
    rip: u64,
    /// Number of the instruction in the block.
    insn: u8,
    /// Offset of the following instruction from the block's start.
    next_offset: u16,
    /// Slots of the instruction's micro-ops.
    uops: Vec<usize>,
    /// Where to go on behind the instruction, if not in the next slot.
    end: Option<usize>,
}

/// A micro-op without handler and operands.
fn blank(handler: Handler) -> Uop {
    Uop {
        handler,
        disp: 0,
        imm: 0,
        dst: ZERO_REGISTER,
        src: ZERO_REGISTER,
        base: ZERO_REGISTER,
        index: ZERO_REGISTER,
        scale_shift: 0,
        slot: 0,
        insn: 0,
        rest: 1,
        next_offset: 0,
        detail: 0,
    }
}

/// What a handler needs besides its address.
#[derive(Clone, Copy, Default)]
struct Fields {
    dst: RegisterOffset,
    src: RegisterOffset,
    imm: i32,
    disp: u64,
    base: RegisterOffset,
    index: RegisterOffset,
    detail: u16,
}

/// The memory operand of a micro-op.
struct Memory {
    /// [`BASE`], [`INDEXED`] or [`FLAT32`].
    kind: usize,
    operand: MemoryOperand,
}

/// How a memory operand is used.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    Read,
    Write,
}

impl<'a> Emit<'a> {
    /// Starts behind the header in `slots`.
    pub(crate) fn new(slots: &'a mut Vec<Slot>, mode: &'a CodeMode, rip: u64) -> Self {
        Self {
            slots,
            mode,
            rip,
            insn: 0,
            next_offset: 0,
            uops: Vec::new(),
            end: None,
        }
    }

    /// Goes on to instruction `n` of the block, `length` bytes long.
    pub(crate) fn advance(&mut self, n: usize, length: u8) {
        self.insn = n as u8;
        self.next_offset += u16::from(length);
    }
}

impl Emit<'_> {
    /// Emits the instruction by its plain handler.
    pub(crate) fn plain(&mut self, handler: Handler) {
        self.push(blank(handler));
    }

    /// Emits the end of a block that goes on with the following instruction.
    pub(crate) fn fall_through(&mut self) {
        let next = self.next_rip();
        self.push(blank(branch::jump));
        self.link(next, next);
    }

    /// Emits hot micro-ops for the instruction; false if it has none, and nothing was emitted.
    pub(crate) fn hot(&mut self, c: Candidate<'_>) -> bool {
        if c.insn.locked || is_repeated(c.insn) {
            return false;
        }
        if self.mode.is_cet_active && control::is_under_cet(c.iced) {
            return false;
        }
        let before = self.slots.len();
        self.uops.clear();
        self.end = None;
        if self.select(c).is_none() {
            self.slots.truncate(before);
            return false;
        }
        self.set_rests();
        true
    }

    fn next_rip(&self) -> u64 {
        self.rip.wrapping_add(u64::from(self.next_offset)) & self.mode.rip_mask()
    }

    fn push(&mut self, uop: Uop) {
        self.uops.push(self.slots.len());
        let uop = Uop {
            slot: self.slots.len() as u8,
            insn: self.insn,
            next_offset: self.next_offset,
            ..uop
        };
        self.slots.push(Slot { uop });
    }

    fn with(&mut self, handler: Handler, f: Fields) {
        self.push(Uop {
            dst: f.dst,
            src: f.src,
            imm: f.imm,
            disp: f.disp,
            base: f.base,
            index: f.index,
            detail: f.detail,
            ..blank(handler)
        });
    }

    fn with_memory(&mut self, handler: Handler, m: &Memory, f: Fields) {
        self.push(Uop {
            dst: f.dst,
            src: f.src,
            imm: f.imm,
            disp: m.operand.displacement,
            base: m.operand.base,
            index: m.operand.index,
            scale_shift: m.operand.scale_shift,
            detail: f.detail,
            ..blank(handler)
        });
    }

    fn link(&mut self, taken_rip: u64, fall_rip: u64) {
        let link = Link {
            taken: core::ptr::null(),
            fall: core::ptr::null(),
            taken_rip,
            fall_rip,
        };
        self.slots.push(Slot { link });
    }

    /// Ends a branch: whoever bails out of it comes here.
    fn leave(&mut self) {
        self.end = Some(self.slots.len());
        self.push(blank(branch::leave));
    }

    /// Writes into the instruction's micro-ops how far the end of the instruction is.
    fn set_rests(&mut self) {
        let end = self.end.unwrap_or(self.slots.len());
        for &n in &self.uops {
            self.slots[n].uop.rest = (end - n) as u8;
        }
    }
}

fn is_repeated(insn: &Insn) -> bool {
    insn.repeat != crate::insn::Repeat::None
}

/// log2 of an operand's size in bytes.
fn size_of_operand(i: &Instruction, n: u32) -> Option<usize> {
    let bytes = match i.op_kind(n) {
        OpKind::Register => i.op_register(n).size(),
        OpKind::Memory => i.memory_size().size(),
        _ => return None,
    };
    (bytes.is_power_of_two() && bytes <= 8).then(|| bytes.trailing_zeros() as usize)
}

/// Returns the immediate if it is a sign-extended 32-bit one as far as `size` counts.
fn small(value: u64, size: usize) -> Option<i32> {
    let low = value as i32;
    (size < 3 || i64::from(low) as u64 == value).then_some(low)
}

/// The number of a condition code as instructions encode it.
fn condition(i: &Instruction) -> Option<usize> {
    Some(match i.condition_code() {
        ConditionCode::o => 0,
        ConditionCode::no => 1,
        ConditionCode::b => 2,
        ConditionCode::ae => 3,
        ConditionCode::e => 4,
        ConditionCode::ne => 5,
        ConditionCode::be => 6,
        ConditionCode::a => 7,
        ConditionCode::s => 8,
        ConditionCode::ns => 9,
        ConditionCode::p => 10,
        ConditionCode::np => 11,
        ConditionCode::l => 12,
        ConditionCode::ge => 13,
        ConditionCode::le => 14,
        ConditionCode::g => 15,
        ConditionCode::None => return None,
    })
}

/// The place of a binary operation in the tables of `alu`.
fn binary(m: Mnemonic) -> Option<usize> {
    const ORDER: [Mnemonic; 9] = [
        Mnemonic::Add,
        Mnemonic::Or,
        Mnemonic::Adc,
        Mnemonic::Sbb,
        Mnemonic::And,
        Mnemonic::Sub,
        Mnemonic::Xor,
        Mnemonic::Cmp,
        Mnemonic::Test,
    ];
    ORDER.iter().position(|&o| o == m)
}

fn unary(m: Mnemonic) -> Option<usize> {
    const ORDER: [Mnemonic; 4] = [Mnemonic::Inc, Mnemonic::Dec, Mnemonic::Neg, Mnemonic::Not];
    ORDER.iter().position(|&o| o == m)
}

fn shift(m: Mnemonic) -> Option<usize> {
    const ORDER: [Mnemonic; 5] = [
        Mnemonic::Rol,
        Mnemonic::Ror,
        Mnemonic::Shl,
        Mnemonic::Shr,
        Mnemonic::Sar,
    ];
    let m = if m == Mnemonic::Sal { Mnemonic::Shl } else { m };
    ORDER.iter().position(|&o| o == m)
}

trait ConditionalForms {
    fn is_setcc_any(&self) -> bool;
    fn is_cmovcc_any(&self) -> bool;
}

impl ConditionalForms for Instruction {
    fn is_setcc_any(&self) -> bool {
        self.condition_code() != ConditionCode::None && self.op_count() == 1 && !self.is_jcc()
    }
    fn is_cmovcc_any(&self) -> bool {
        self.condition_code() != ConditionCode::None && self.op_count() == 2
    }
}

trait Branches {
    fn is_jcc(&self) -> bool;
}

impl Branches for Instruction {
    fn is_jcc(&self) -> bool {
        self.is_jcc_short_or_near()
    }
}

#[cfg(not(target_arch = "x86_64"))]
impl Emit<'_> {
    /// Other hosts execute vector instructions by their plain handlers.
    fn simd(&mut self, _: Candidate<'_>) -> Option<()> {
        None
    }

    fn vex(&mut self, _: Candidate<'_>) -> Option<()> {
        None
    }
}

impl Emit<'_> {
    fn select(&mut self, c: Candidate<'_>) -> Option<()> {
        let m = c.iced.mnemonic();
        if let Some(op) = binary(m) {
            return self.binary(c, op);
        }
        if let Some(op) = unary(m) {
            return self.unary(c, op);
        }
        if let Some(op) = shift(m) {
            return self.shift(c, op);
        }
        match m {
            Mnemonic::Mov => self.mov(c),
            Mnemonic::Movzx => self.extend(c, 0),
            Mnemonic::Movsx | Mnemonic::Movsxd => self.extend(c, 1),
            Mnemonic::Lea => self.lea(c),
            Mnemonic::Xchg => self.xchg(c),
            Mnemonic::Imul => self.imul(c),
            Mnemonic::Push => self.push_operand(c),
            Mnemonic::Pop => self.pop_operand(c),
            Mnemonic::Leave => self.by_stack(c, &stack::LEAVE, Fields::default()),
            // Nothing to execute.
            Mnemonic::Nop
            | Mnemonic::Endbr32
            | Mnemonic::Endbr64
            | Mnemonic::Prefetchw
            | Mnemonic::Prefetchnta
            | Mnemonic::Prefetcht0
            | Mnemonic::Prefetcht1
            | Mnemonic::Prefetcht2 => Some(()),
            Mnemonic::Cbw | Mnemonic::Cwde | Mnemonic::Cdqe => self.implicit(c, &stack::EXTEND_A),
            Mnemonic::Cwd | Mnemonic::Cdq | Mnemonic::Cqo => self.implicit(c, &stack::SIGN_D),
            Mnemonic::Jmp => self.jmp(c),
            Mnemonic::Call => self.call(c),
            Mnemonic::Ret => self.ret(c),
            _ if c.iced.is_jcc() => self.jcc(c),
            _ if c.iced.is_setcc_any() => self.setcc(c),
            _ if c.iced.is_cmovcc_any() => self.cmovcc(c),
            _ if bmi::is_hot(c.iced) => self.bmi(c),
            _ if self.mode.has_x87 && x87::is_hot(c.iced.code()) => self.x87(c),
            _ if c.insn.vector.encoding == Encoding::Vex && self.mode.has_avx => self.vex(c),
            _ if self.mode.has_sse => self.simd(c),
            _ => None,
        }
    }

    /// Emits what the memory operand needs before it can be accessed.
    fn memory(&mut self, c: Candidate<'_>, bytes: usize, how: Use) -> Option<Memory> {
        let operand = c.insn.memory;
        let segment = operand.segment;
        let is_64 = self.mode.bits == 64;
        let is_based = matches!(segment, SegmentRegister::Fs | SegmentRegister::Gs);
        let flat = match how {
            Use::Read => self.mode.flat_read,
            Use::Write => self.mode.flat_write,
        };
        let kind = match (is_64, c.insn.address_bytes) {
            (true, 8) if is_based => return Some(self.segment_64(operand)),
            (true, 8) if operand.index == ZERO_REGISTER => BASE,
            (true, 8) => INDEXED,
            (true, 4) if !is_based => FLAT32,
            (true, _) => return None,
            (false, 4) if flat >> segment as u32 & 1 != 0 => FLAT32,
            (false, address_bytes) => {
                return Some(self.segmented(operand, address_bytes, bytes, how));
            }
        };
        Some(Memory {
            kind: usize::from(kind),
            operand,
        })
    }

    fn spare(segment: SegmentRegister) -> Memory {
        Memory {
            kind: usize::from(BASE),
            operand: MemoryOperand {
                base: SPARE,
                segment,
                ..MemoryOperand::default()
            },
        }
    }

    fn segment_64(&mut self, operand: MemoryOperand) -> Memory {
        self.linear(moves::segment_64, operand, operand.segment as u16)
    }

    fn segmented(&mut self, operand: MemoryOperand, address: u8, bytes: usize, how: Use) -> Memory {
        let mut word = operand.segment as u16 | ((bytes - 1) as u16) << detail::LAST_SHIFT;
        if how == Use::Write {
            word |= detail::WRITE;
        }
        if address == 2 {
            word |= detail::ADDRESS_16;
        }
        self.linear(moves::segmented, operand, word)
    }

    /// Emits the micro-op that moves the operand's linear address to the spare register.
    fn linear(&mut self, handler: Handler, operand: MemoryOperand, detail: u16) -> Memory {
        self.push(Uop {
            disp: operand.displacement,
            base: operand.base,
            index: operand.index,
            scale_shift: operand.scale_shift,
            detail,
            ..blank(handler)
        });
        Self::spare(operand.segment)
    }

    /// Emits a load of the memory operand into the spare register.
    fn load(&mut self, c: Candidate<'_>, size: usize) -> Option<()> {
        let memory = self.memory(c, 1 << size, Use::Read)?;
        let fields = Fields {
            dst: SPARE,
            ..Fields::default()
        };
        self.with_memory(moves::MOV_RM[memory.kind][size], &memory, fields);
        Some(())
    }

    /// Returns the register that holds an operand that is read: its own, or the spare one, into
    /// which memory is loaded first.
    fn source(&mut self, c: Candidate<'_>, operand: usize, size: usize) -> Option<u8> {
        match c.insn.operands[operand] {
            Operand::Register(number) => Some(number),
            Operand::Memory => {
                self.load(c, size)?;
                Some(SPARE)
            }
            _ => None,
        }
    }
}
