//! Random instructions of a given form, with random state.

use super::Bits;
use super::aim;
use super::case::{CODE, CODE_OFFSET, Case, DATA, DATA_BYTES, State};
use super::forms;
use super::random::{Random, Vectors};
use iced_x86::{
    Code, Decoder, DecoderOptions, Encoder, EncodingKind, Instruction, OpCodeOperandKind as Kind,
    OpKind, Register, RoundingControl,
};

use x86_interp::fpu::FpuState;

/// Bytes of the pool that data pages are a window of.
const POOL_BYTES: usize = 1 << 16;

/// The status flags and DF.
const FLAGS: u64 = 0xcd5;
/// Bit 1 and IF, which a user-mode program finds set.
const FIXED_FLAGS: u64 = 0x202;

/// A source of cases of one form; each depends on the seed, the form and its number alone.
pub(super) struct Generator {
    code: Code,
    bits: Bits,
    seed: u64,
    pool: Vec<u8>,
}

impl Generator {
    pub(super) fn new(code: Code, bits: Bits, seed: u64) -> Self {
        let seed = super::super::mix(seed, code as u64);
        let mut random = Random::new(seed);
        let lanes = (0..POOL_BYTES / 16).flat_map(|_| random.lanes());
        let pool = lanes.collect();
        Self {
            code,
            bits,
            seed,
            pool,
        }
    }

    /// Returns the values that memory is filled with.
    pub(super) fn pool(&self) -> &[u8] {
        &self.pool
    }

    /// Returns case `number`; `None` if no attempt gave one.
    pub(super) fn case(&self, number: u64) -> Option<Case> {
        let random = Random::new(super::super::mix(self.seed, number));
        let mut draft = Draft {
            random,
            bits: self.bits,
        };
        (0..60).find_map(|_| draft.attempt(self.code))
    }
}

/// What makes one case.
pub(super) struct Draft {
    pub(super) random: Random,
    pub(super) bits: Bits,
}

impl Draft {
    fn attempt(&mut self, code: Code) -> Option<Case> {
        let rip = CODE + CODE_OFFSET;
        let i = self.instruction(code)?;
        let mut encoder = Encoder::new(self.bits.number());
        encoder.encode(&i, rip).ok()?;
        let mut bytes = encoder.take_buffer();
        if self.random.one_in(8) {
            let prefixes = [0x66, 0x67, 0x2e, 0x36, 0x3e, 0x26, 0xf2, 0xf3, 0x65, 0xf0];
            bytes.insert(0, self.random.pick(&prefixes));
        }
        let options = DecoderOptions::NONE;
        let i = Decoder::with_ip(self.bits.number(), &bytes, rip, options).decode();
        if i.is_invalid() || i.len() != bytes.len() || i.code() != code {
            return None;
        }
        if forms::is_branch(code) && self.bits == Bits::B64 && bytes.contains(&0x66) {
            return None;
        }
        let rflags = self.random.next() & FLAGS | FIXED_FLAGS;
        let window = self.random.below((POOL_BYTES - DATA_BYTES) as u64) as usize & !3;
        let mut case = Case {
            bits: self.bits,
            instruction: i,
            bytes,
            state: State {
                gpr: core::array::from_fn(|_| self.value()),
                rip,
                rflags,
                fpu: self.fpu(code),
            },
            window,
            patches: Vec::new(),
        };
        aim::aim(self, &mut case)?;
        // The code page, the stub and the like are each side's own.
        let is_foreign = case.address().is_some_and(aim::is_foreign);
        (!is_foreign).then_some(case)
    }

    /// Returns the state of the FPU and the vector registers: those of AVX-512 where the form can
    /// reach them, and at times where it must clear them or leave them alone.
    fn fpu(&mut self, code: Code) -> FpuState {
        let info = code.op_code();
        let has_opmask =
            |k: &Kind| matches!(k, Kind::k_reg | Kind::k_rm | Kind::k_vvvv | Kind::k_or_mem);
        let is_avx512 =
            code.encoding() == EncodingKind::EVEX || info.op_kinds().iter().any(has_opmask);
        let is_vex = code.encoding() == EncodingKind::VEX;
        let is_wide = is_avx512 || is_vex && self.random.one_in(16);
        self.random.fpu(match is_wide && super::host::has_avx512() {
            true => Vectors::Avx512,
            false => Vectors::Avx,
        })
    }

    /// Returns an integer that a register of the mode holds.
    pub(super) fn value(&mut self) -> u64 {
        let value = self.random.integer();
        match self.bits {
            Bits::B64 => value,
            Bits::B32 => value & 0xffff_ffff,
        }
    }

    /// Returns an offset into the data pages, at times so near an end or the middle that an
    /// operand crosses it, otherwise a multiple of `alignment` more often than not.
    pub(super) fn place(&mut self, alignment: u64) -> u64 {
        let (end, random) = (DATA_BYTES as u64, &mut self.random);
        let offset = match random.below(32) {
            0 => end - random.below(66),
            1 => random.below(17),
            2 => random.below(8).wrapping_neg(),
            3 | 4 => end / 2 - random.below(66),
            _ => 2048 + random.below(4096),
        };
        if random.one_in(4) {
            offset
        } else {
            offset & !(alignment - 1)
        }
    }

    /// Returns a place in the code page, outside the instruction; at times within short reach.
    pub(super) fn target(&mut self) -> u64 {
        if self.random.one_in(2) {
            return CODE + CODE_OFFSET + 40 + self.random.below(80);
        }
        let offset = self.random.below(4096);
        // A prefix that is added later moves the target of a relative branch.
        let is_own = (CODE_OFFSET - 8..CODE_OFFSET + 40).contains(&offset);
        CODE + if is_own { 0 } else { offset }
    }

    /// Builds an instruction of the form with random operands.
    fn instruction(&mut self, code: Code) -> Option<Instruction> {
        let mut i = Instruction::default();
        i.set_code(code);
        let info = code.op_code();
        for n in 0..info.op_count() {
            self.operand(&mut i, n, info.op_kind(n))?;
        }
        if i.is_string_instruction() {
            match self.random.below(3) {
                0 => i.set_has_rep_prefix(true),
                1 => i.set_has_repne_prefix(true),
                _ => {}
            }
        }
        let is_memory = i.op_count() > 0 && i.op0_kind() == OpKind::Memory;
        if info.can_use_lock_prefix() && is_memory && self.random.one_in(3) {
            i.set_has_lock_prefix(true);
        }
        if code.encoding() == EncodingKind::EVEX {
            self.evex(&mut i);
        }
        Some(i)
    }

    /// Adds what an EVEX prefix says besides operands, as far as the form has it: opmask, zeroing,
    /// broadcast, rounding control and suppression of exceptions.
    fn evex(&mut self, i: &mut Instruction) {
        let (info, random) = (i.code().op_code(), &mut self.random);
        let needs_mask = info.require_op_mask_register();
        if needs_mask || info.can_use_op_mask_register() && !random.one_in(4) {
            i.set_op_mask(Register::K1 + random.below(7) as u32);
            let can_zero = info.can_use_zeroing_masking() && i.op0_kind() != OpKind::Memory;
            i.set_zeroing_masking(can_zero && random.one_in(2));
        }
        if (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory) {
            i.set_is_broadcast(info.can_broadcast() && random.one_in(2));
        } else if info.can_use_rounding_control() && random.one_in(2) {
            use RoundingControl as R;
            let all = [
                R::RoundToNearest,
                R::RoundDown,
                R::RoundUp,
                R::RoundTowardZero,
            ];
            i.set_rounding_control(random.pick(&all));
        } else if info.can_suppress_all_exceptions() && random.one_in(2) {
            i.set_suppress_all_exceptions(true);
        }
    }

    fn operand(&mut self, i: &mut Instruction, n: u32, kind: Kind) -> Option<()> {
        if let Some((may_be_memory, class)) = register_class(kind) {
            if may_be_memory && self.random.one_in(2) {
                self.memory_operand(i, n, None);
                return Some(());
            }
            let register = self.register(i.code(), class);
            i.set_op_register(n, register);
            return Some(());
        }
        if let Some(register) = fixed_register(kind) {
            i.set_op_register(n, register);
            return Some(());
        }
        let long = self.bits == Bits::B64;
        match kind {
            Kind::mem => self.memory_operand(i, n, None),
            Kind::mem_vsib32x | Kind::mem_vsib64x => {
                self.memory_operand(i, n, Some(Class::Xmm));
            }
            Kind::mem_vsib32y | Kind::mem_vsib64y => {
                self.memory_operand(i, n, Some(Class::Ymm));
            }
            Kind::mem_vsib32z | Kind::mem_vsib64z => {
                self.memory_operand(i, n, Some(Class::Zmm));
            }
            Kind::mem_offs => {
                i.set_op_kind(n, OpKind::Memory);
                i.set_memory_displacement64(DATA.wrapping_add(self.place(8)));
                i.set_memory_displ_size(self.bits.number() / 8);
            }
            Kind::seg_rBX_al => {
                i.set_op_kind(n, OpKind::Memory);
                i.set_memory_base(select(long, Register::RBX, Register::EBX));
                i.set_memory_index(Register::AL);
            }
            Kind::seg_rSI => {
                i.set_op_kind(n, select(long, OpKind::MemorySegRSI, OpKind::MemorySegESI));
            }
            Kind::es_rDI => {
                i.set_op_kind(n, select(long, OpKind::MemoryESRDI, OpKind::MemoryESEDI));
            }
            Kind::seg_rDI => {
                i.set_op_kind(n, select(long, OpKind::MemorySegRDI, OpKind::MemorySegEDI));
            }
            _ => return self.immediate_operand(i, n, kind),
        }
        Some(())
    }

    fn immediate_operand(&mut self, i: &mut Instruction, n: u32, kind: Kind) -> Option<()> {
        let near = self.target();
        let word = self.random.integer();
        match kind {
            Kind::imm8 => immediate(i, n, OpKind::Immediate8, word & 0xff),
            Kind::imm8_const_1 => immediate(i, n, OpKind::Immediate8, 1),
            Kind::imm16 => immediate(i, n, OpKind::Immediate16, word & 0xffff),
            Kind::imm32 => immediate(i, n, OpKind::Immediate32, word & 0xffff_ffff),
            Kind::imm64 => immediate(i, n, OpKind::Immediate64, word),
            Kind::imm32sex64 => {
                immediate(i, n, OpKind::Immediate32to64, i64::from(word as i32) as u64);
            }
            Kind::imm8sex16 => sign_extended(i, n, OpKind::Immediate8to16, word),
            Kind::imm8sex32 => sign_extended(i, n, OpKind::Immediate8to32, word),
            Kind::imm8sex64 => sign_extended(i, n, OpKind::Immediate8to64, word),
            Kind::br16_1 | Kind::br16_2 => {
                i.set_op_kind(n, OpKind::NearBranch16);
                i.set_near_branch16((near as u16).wrapping_add(0x700));
            }
            Kind::br32_1 | Kind::br32_4 => {
                i.set_op_kind(n, OpKind::NearBranch32);
                i.set_near_branch32(near as u32);
            }
            Kind::br64_1 | Kind::br64_4 => {
                i.set_op_kind(n, OpKind::NearBranch64);
                i.set_near_branch64(near);
            }
            _ => return None,
        }
        Some(())
    }

    fn register(&mut self, code: Code, class: Class) -> Register {
        let long = self.bits == Bits::B64;
        let is_vector = matches!(class, Class::Xmm | Class::Ymm | Class::Zmm);
        // Few numbers at times, so that operands meet.
        let count = match self.random.below(4) {
            0 => 2,
            _ if long && is_vector && code.encoding() == EncodingKind::EVEX => 32,
            _ if long => 16,
            _ => 8,
        };
        let n = self.random.below(count) as u32;
        match class {
            Class::Byte if self.random.one_in(5) => Register::AH + self.random.below(4) as u32,
            Class::Byte if n < 4 => Register::AL + n,
            Class::Byte if long => Register::SPL + (n - 4),
            Class::Byte => Register::AL + (n & 3),
            Class::Word => Register::AX + n,
            Class::Doubleword => Register::EAX + n,
            Class::Quadword => Register::RAX + n,
            Class::Segment => Register::ES + n % 6,
            Class::Mmx => Register::MM0 + (n & 7),
            Class::Xmm => Register::XMM0 + n,
            Class::Ymm => Register::YMM0 + n,
            Class::Zmm => Register::ZMM0 + n,
            Class::Opmask => Register::K0 + (n & 7),
            Class::Stack => Register::ST0 + (n & 7),
        }
    }

    /// Sets operand `n` to memory; `index` is the class of the index register of a VSIB operand.
    fn memory_operand(&mut self, i: &mut Instruction, n: u32, index: Option<Class>) {
        i.set_op_kind(n, OpKind::Memory);
        let long = self.bits == Bits::B64;
        let (class, size) = match long {
            true => (Class::Quadword, 8),
            false => (Class::Doubleword, 4),
        };
        let base = self.register(i.code(), class);
        if let Some(vector) = index {
            i.set_memory_base(base);
            i.set_memory_index(self.register(i.code(), vector));
        } else {
            match self.random.below(8) {
                0 if long => {
                    i.set_memory_base(Register::RIP);
                    i.set_memory_displacement64(DATA.wrapping_add(self.place(16)));
                    return;
                }
                1 => {
                    i.set_memory_displacement64(DATA.wrapping_add(self.place(16)));
                    i.set_memory_displ_size(size);
                    return;
                }
                2 => i.set_memory_index(self.register(i.code(), class)),
                3..5 => {
                    i.set_memory_base(base);
                    i.set_memory_index(self.register(i.code(), class));
                }
                _ => i.set_memory_base(base),
            }
        }
        if i.memory_index() != Register::None {
            i.set_memory_index_scale(1 << self.random.below(4));
        }
        let small = [0, 0, 1, 0x7f, 0x80, 0xffff_ff80, 0x1234_5678, 0x8000_0000];
        let mut small = self.random.pick::<u64>(&small);
        let is_short = self.random.one_in(3);
        if is_short {
            // One byte: EVEX multiplies it by the size of the operand.
            let unit = 1 << self.random.below(7);
            small = (self.random.next() as i8 as u64).wrapping_mul(unit) & 0xffff_ffff;
        }
        let displacement = match long {
            true => i64::from(small as i32) as u64,
            false => small,
        };
        i.set_memory_displacement64(displacement);
        i.set_memory_displ_size(match displacement {
            0 => 0,
            _ if is_short => 1,
            _ => size,
        });
    }
}

fn select<T>(condition: bool, a: T, b: T) -> T {
    if condition { a } else { b }
}

fn immediate(i: &mut Instruction, n: u32, kind: OpKind, value: u64) {
    let is_second = n > 0 && matches!(i.op_kind(n - 1), OpKind::Immediate8 | OpKind::Immediate16);
    if is_second {
        i.set_op_kind(n, OpKind::Immediate8_2nd);
        i.set_immediate8_2nd(value as u8);
        return;
    }
    i.set_op_kind(n, kind);
    match kind {
        OpKind::Immediate8 => i.set_immediate8(value as u8),
        OpKind::Immediate16 => i.set_immediate16(value as u16),
        OpKind::Immediate32 => i.set_immediate32(value as u32),
        OpKind::Immediate64 => i.set_immediate64(value),
        _ => i.set_immediate32to64(value as i64),
    }
}

fn sign_extended(i: &mut Instruction, n: u32, kind: OpKind, value: u64) {
    i.set_op_kind(n, kind);
    match kind {
        OpKind::Immediate8to16 => i.set_immediate8to16(i16::from(value as i8)),
        OpKind::Immediate8to32 => i.set_immediate8to32(i32::from(value as i8)),
        _ => i.set_immediate8to64(i64::from(value as i8)),
    }
}

/// A class of registers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Byte,
    Word,
    Doubleword,
    Quadword,
    Segment,
    Mmx,
    Xmm,
    Ymm,
    Zmm,
    Opmask,
    Stack,
}

/// Returns what a register operand may be, and whether it may be memory instead.
fn register_class(kind: Kind) -> Option<(bool, Class)> {
    use Class as C;
    use Kind as K;
    Some(match kind {
        K::r8_or_mem => (true, C::Byte),
        K::r16_or_mem => (true, C::Word),
        K::r32_or_mem => (true, C::Doubleword),
        K::r64_or_mem => (true, C::Quadword),
        K::mm_or_mem => (true, C::Mmx),
        K::xmm_or_mem => (true, C::Xmm),
        K::ymm_or_mem => (true, C::Ymm),
        K::zmm_or_mem => (true, C::Zmm),
        K::k_or_mem => (true, C::Opmask),
        K::r8_reg | K::r8_opcode => (false, C::Byte),
        K::r16_reg | K::r16_rm | K::r16_opcode | K::r16_reg_mem => (false, C::Word),
        K::r32_reg | K::r32_rm | K::r32_opcode | K::r32_vvvv | K::r32_reg_mem => {
            (false, C::Doubleword)
        }
        K::r64_reg | K::r64_rm | K::r64_opcode | K::r64_vvvv | K::r64_reg_mem => {
            (false, C::Quadword)
        }
        K::mm_reg | K::mm_rm => (false, C::Mmx),
        K::xmm_reg | K::xmm_rm | K::xmm_vvvv | K::xmm_is4 | K::xmm_is5 => (false, C::Xmm),
        K::ymm_reg | K::ymm_rm | K::ymm_vvvv | K::ymm_is4 | K::ymm_is5 => (false, C::Ymm),
        K::zmm_reg | K::zmm_rm | K::zmm_vvvv => (false, C::Zmm),
        K::k_reg | K::k_rm | K::k_vvvv => (false, C::Opmask),
        K::sti_opcode => (false, C::Stack),
        K::seg_reg => (false, C::Segment),
        _ => return None,
    })
}

fn fixed_register(kind: Kind) -> Option<Register> {
    Some(match kind {
        Kind::al => Register::AL,
        Kind::cl => Register::CL,
        Kind::ax => Register::AX,
        Kind::dx => Register::DX,
        Kind::eax => Register::EAX,
        Kind::rax => Register::RAX,
        Kind::es => Register::ES,
        Kind::cs => Register::CS,
        Kind::ss => Register::SS,
        Kind::ds => Register::DS,
        Kind::fs => Register::FS,
        Kind::gs => Register::GS,
        Kind::st0 => Register::ST0,
        _ => return None,
    })
}
