//! Random cases: an instruction of a given form, with registers that make its memory operand, its
//! stack and its branch target lie in the two pages that both sides have.

use core::fmt;

use iced_x86::{
    Code, Decoder, DecoderOptions, Encoder, Instruction, Mnemonic, OpCodeOperandKind as Kind,
    OpKind, Register,
};

use crate::Bits;
use crate::forms;

/// Bytes of a page.
pub(crate) const PAGE: usize = 4096;
/// The page of the instruction.
pub(crate) const CODE: u64 = 0x1080_0000;
/// The page of the data and the stack, with nothing around it.
pub(crate) const DATA: u64 = 0x1090_0000;

/// Offset of the instruction in its page.
const CODE_OFFSET: u64 = 0x800;

/// The status flags and DF.
const FLAGS: u64 = 0xcd5;

/// One instruction with the state that it starts from.
pub(crate) struct Case {
    pub(crate) instruction: Instruction,
    pub(crate) bytes: Vec<u8>,
    pub(crate) gpr: [u64; 16],
    pub(crate) rip: u64,
    pub(crate) rflags: u64,
    /// Pieces of the data page: offset and bytes.
    pub(crate) memory: Vec<(usize, Vec<u8>)>,
}

impl Case {
    /// Returns the offset of the instruction in the code page.
    pub(crate) fn code_offset(&self) -> usize {
        (self.rip - CODE) as usize
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let code = self.instruction.code();
        write!(f, "{code:?} {:02x?} flags {:#x}", self.bytes, self.rflags)?;
        write!(f, "\n  gpr {:x?}\n  memory {:x?}", self.gpr, self.memory)
    }
}

/// A source of cases.
pub(crate) struct Generator {
    state: u64,
    bits: Bits,
}

impl Generator {
    /// Returns a generator whose cases depend on `seed` only.
    pub(crate) fn new(seed: u64, bits: Bits) -> Self {
        Self { state: seed, bits }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }

    /// Returns a number that is likely to lie on an edge.
    fn value(&mut self) -> u64 {
        let random = self.next();
        let edge = self.pick(&[8u32, 16, 32, 64]);
        let sign = 1u64 << (edge - 1);
        let value = match self.below(8) {
            0 => self.below(4),
            1 => self.below(4).wrapping_neg(),
            2 => sign.wrapping_add(self.below(3)).wrapping_sub(1),
            3 => 1u64 << self.below(64),
            4 => random & self.next() & self.next(),
            5 => random >> self.below(64),
            _ => random,
        };
        match self.bits {
            Bits::B64 => value,
            Bits::B32 => value & 0xffff_ffff,
        }
    }

    /// Returns an offset into the data page, at times so near an end that an operand crosses it.
    fn place(&mut self) -> u64 {
        match self.below(24) {
            0 => PAGE as u64 - self.below(17),
            1 => self.below(17),
            _ => 1024 + self.below(2048),
        }
    }

    /// Returns a place in the code page, outside the instruction; at times within short reach.
    fn target(&mut self) -> u64 {
        if self.one_in(2) {
            return CODE + CODE_OFFSET + 24 + self.below(90);
        }
        let offset = self.below(PAGE as u64);
        // A prefix that is added later moves the target of a relative branch.
        let is_own = (CODE_OFFSET - 8..CODE_OFFSET + 24).contains(&offset);
        CODE + if is_own { 0 } else { offset }
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count + 8);
        while bytes.len() < count {
            let word = self.value();
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.truncate(count);
        bytes
    }

    fn bitness(&self) -> u32 {
        match self.bits {
            Bits::B64 => 64,
            Bits::B32 => 32,
        }
    }

    /// Returns a case of the form; `None` if no attempt gave one.
    pub(crate) fn case(&mut self, code: Code) -> Option<Case> {
        (0..40).find_map(|_| self.attempt(code))
    }

    fn attempt(&mut self, code: Code) -> Option<Case> {
        let rip = CODE + CODE_OFFSET;
        let i = self.instruction(code)?;
        let mut encoder = Encoder::new(self.bitness());
        encoder.encode(&i, rip).ok()?;
        let mut bytes = encoder.take_buffer();
        if self.one_in(8) {
            let prefix = self.pick(&[0x66, 0x67, 0x2e, 0x36, 0x3e, 0x26, 0xf2, 0xf3]);
            bytes.insert(0, prefix);
        }
        let options = DecoderOptions::NONE;
        let i = Decoder::with_ip(self.bitness(), &bytes, rip, options).decode();
        let is_whole = !i.is_invalid() && i.len() == bytes.len();
        if !is_whole || !forms::is_compared(i.code(), self.bits) {
            return None;
        }
        if forms::is_branch(i.code()) && self.bits == Bits::B64 && bytes.contains(&0x66) {
            return None;
        }
        let mut case = Case {
            instruction: i,
            bytes,
            gpr: core::array::from_fn(|_| self.value()),
            rip,
            rflags: self.next() & FLAGS | 2,
            memory: Vec::new(),
        };
        self.aim(&mut case)?;
        self.adjust(&mut case)?;
        Some(case)
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
            match self.below(3) {
                0 => i.set_has_rep_prefix(true),
                1 => i.set_has_repne_prefix(true),
                _ => {}
            }
        }
        let is_memory = i.op_count() > 0 && i.op0_kind() == OpKind::Memory;
        if info.can_use_lock_prefix() && is_memory && self.one_in(3) {
            i.set_has_lock_prefix(true);
        }
        Some(i)
    }

    fn operand(&mut self, i: &mut Instruction, n: u32, kind: Kind) -> Option<()> {
        if let Some((register, size)) = register_class(kind) {
            if register == Choice::RegisterOrMemory && self.one_in(2) {
                return self.memory_operand(i, n);
            }
            i.set_op_kind(n, OpKind::Register);
            let register = self.register(size);
            i.set_op_register(n, register);
            return Some(());
        }
        if let Some(register) = fixed_register(kind) {
            i.set_op_kind(n, OpKind::Register);
            i.set_op_register(n, register);
            return Some(());
        }
        let near = self.target();
        let word = self.value();
        match kind {
            Kind::mem => return self.memory_operand(i, n),
            Kind::mem_offs => {
                let at = DATA + self.place();
                i.set_op_kind(n, OpKind::Memory);
                i.set_memory_displacement64(at);
                i.set_memory_displ_size(self.bitness() / 8);
            }
            Kind::seg_rBX_al => {
                i.set_op_kind(n, OpKind::Memory);
                let long = self.bits == Bits::B64;
                i.set_memory_base(if long { Register::RBX } else { Register::EBX });
                i.set_memory_index(Register::AL);
            }
            Kind::seg_rSI => {
                let long = self.bits == Bits::B64;
                i.set_op_kind(
                    n,
                    if long {
                        OpKind::MemorySegRSI
                    } else {
                        OpKind::MemorySegESI
                    },
                );
            }
            Kind::es_rDI => {
                let long = self.bits == Bits::B64;
                i.set_op_kind(
                    n,
                    if long {
                        OpKind::MemoryESRDI
                    } else {
                        OpKind::MemoryESEDI
                    },
                );
            }
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

    fn register(&mut self, size: usize) -> Register {
        let count = if self.bits == Bits::B64 { 16 } else { 8 };
        let n = self.below(count) as u32;
        match size {
            1 if self.one_in(5) => Register::AH + self.below(4) as u32,
            1 if n < 4 || self.bits == Bits::B64 => {
                [Register::AL, Register::SPL][usize::from(n >= 4)] + if n >= 4 { n - 4 } else { n }
            }
            1 => Register::AL + (n & 3),
            2 => Register::AX + n,
            4 => Register::EAX + n,
            0 => Register::ES + self.below(6) as u32,
            _ => Register::RAX + n,
        }
    }

    fn memory_operand(&mut self, i: &mut Instruction, n: u32) -> Option<()> {
        i.set_op_kind(n, OpKind::Memory);
        let long = self.bits == Bits::B64;
        let size = if long { 8 } else { 4 };
        let (base, index) = (self.register(size), self.register(size));
        match self.below(8) {
            0 if long => {
                i.set_memory_base(Register::RIP);
                i.set_memory_displacement64(DATA + self.place());
                return Some(());
            }
            1 => {
                i.set_memory_displacement64(DATA + self.place());
                i.set_memory_displ_size(size as u32);
                return Some(());
            }
            2 => i.set_memory_index(index),
            3..5 => {
                i.set_memory_base(base);
                i.set_memory_index(index);
            }
            _ => i.set_memory_base(base),
        }
        if i.memory_index() != Register::None {
            i.set_memory_index_scale(1 << self.below(4));
        }
        let small = self.pick(&[
            0u64,
            0,
            1,
            0x7f,
            0x80,
            0xffff_ff80,
            0x1234_5678,
            0x8000_0000,
        ]);
        let displacement = if long {
            i64::from(small as i32) as u64
        } else {
            small
        };
        i.set_memory_displacement64(displacement);
        i.set_memory_displ_size(if displacement == 0 { 0 } else { size as u32 });
        Some(())
    }

    /// Sets the registers so that the memory operand lies in the data page, and fills it.
    fn aim(&mut self, case: &mut Case) -> Option<()> {
        let i = case.instruction;
        if !(0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory) {
            return Some(());
        }
        let mut target = DATA + self.place();
        if i.mnemonic() == Mnemonic::Cmpxchg16b && !self.one_in(8) {
            target &= !15;
        }
        let (base, index) = (i.memory_base(), i.memory_index());
        let number = |r: Register| r.full_register().number();
        let scale = u64::from(i.memory_index_scale());
        let rest = target.wrapping_sub(i.memory_displacement64());
        if i.mnemonic() == Mnemonic::Xlatb {
            let size = base.size();
            let table = target.wrapping_sub(case.gpr[0] & 0xff);
            set_low(&mut case.gpr[3], size, table);
        } else if base != Register::None && !i.is_ip_rel_memory_operand() {
            let n = number(base);
            if index == Register::None {
                set_low(&mut case.gpr[n], base.size(), rest);
            } else if number(index) == n {
                set_low(&mut case.gpr[n], base.size(), rest / (1 + scale));
            } else {
                let part = case.gpr[number(index)].wrapping_mul(scale);
                set_low(&mut case.gpr[n], base.size(), rest.wrapping_sub(part));
            }
        } else if index != Register::None {
            let mask = if index.size() == 4 {
                0xffff_ffff
            } else {
                u64::MAX
            };
            set_low(
                &mut case.gpr[number(index)],
                index.size(),
                (rest & mask) / scale,
            );
        }
        let at = self.address(case);
        self.fill(case, at, 32);
        Some(())
    }

    /// Returns the address of the memory operand.
    fn address(&self, case: &Case) -> u64 {
        let i = case.instruction;
        let value = |r: Register, _: usize, _: usize| match r {
            Register::AL => Some(case.gpr[0] & 0xff),
            _ if r.is_gpr64() => Some(case.gpr[r.number()]),
            _ if r.is_gpr32() => Some(case.gpr[r.number()] & 0xffff_ffff),
            _ if r.is_gpr16() => Some(case.gpr[r.number()] & 0xffff),
            _ => Some(0),
        };
        let n = (0..i.op_count()).find(|&n| i.op_kind(n) == OpKind::Memory);
        n.and_then(|n| i.virtual_address(n, 0, value)).unwrap_or(0)
    }

    /// Puts random bytes around `address`, as far as the data page reaches.
    fn fill(&mut self, case: &mut Case, address: u64, count: usize) {
        let bytes = self.bytes(count);
        put(case, address, &bytes);
    }

    /// Sets what instructions use implicitly.
    fn adjust(&mut self, case: &mut Case) -> Option<()> {
        use Mnemonic as M;
        let i = case.instruction;
        match i.mnemonic() {
            M::Push
            | M::Pushf
            | M::Pushfd
            | M::Pushfq
            | M::Pusha
            | M::Pushad
            | M::Pop
            | M::Popa
            | M::Popad => self.adjust_stack(case),
            M::Popf | M::Popfd | M::Popfq => {
                self.adjust_stack(case);
                // Neither TF, NT nor AC.
                let image = self.next() & !0x4_4100;
                let at = case.gpr[4];
                put(case, at, &image.to_le_bytes());
            }
            M::Enter | M::Leave => {
                self.adjust_stack(case);
                let frame = DATA + self.place();
                case.gpr[5] = frame;
                self.fill(case, frame, 16);
            }
            M::Ret => {
                self.adjust_stack(case);
                let target = self.target();
                let at = case.gpr[4];
                put(case, at, &target.to_le_bytes());
            }
            M::Jmp | M::Call => {
                if i.mnemonic() == M::Call {
                    self.adjust_stack(case);
                }
                self.adjust_target(case);
            }
            M::Bt | M::Bts | M::Btr | M::Btc => return self.adjust_bit_index(case),
            M::Div | M::Idiv => self.adjust_dividend(case),
            M::Cmpxchg | M::Cmpxchg8b | M::Cmpxchg16b => self.adjust_comparand(case),
            M::Bound => self.adjust_bounds(case),
            M::Loop | M::Loope | M::Loopne | M::Jcxz | M::Jecxz | M::Jrcxz if self.one_in(2) => {
                let junk = self.pick(&[0, 0, 1 << 16, 1 << 31]);
                case.gpr[1] = self.below(3) | junk;
            }
            _ if i.is_string_instruction() => self.adjust_strings(case),
            _ => {}
        }
        Some(())
    }

    fn adjust_stack(&mut self, case: &mut Case) {
        let i = case.instruction;
        let is_base = i.memory_base().full_register() == Register::RSP;
        let is_index = i.memory_index().full_register() == Register::RSP;
        if !is_base && !is_index || i.mnemonic() == Mnemonic::Pop {
            let at = DATA + self.place();
            case.gpr[4] = at;
            self.fill(case, at.wrapping_sub(32), 96);
        }
    }

    fn adjust_target(&mut self, case: &mut Case) {
        let i = case.instruction;
        let target = self.target();
        match i.op0_kind() {
            OpKind::Register => case.gpr[i.op0_register().full_register().number()] = target,
            OpKind::Memory => {
                let at = self.address(case);
                put(case, at, &target.to_le_bytes());
            }
            _ => {}
        }
    }

    /// Keeps a bit index in a register from reaching far beyond the data page.
    fn adjust_bit_index(&mut self, case: &mut Case) -> Option<()> {
        let i = case.instruction;
        if i.op0_kind() != OpKind::Memory || i.op1_kind() != OpKind::Register {
            return Some(());
        }
        let register = i.op1_register();
        let full = register.full_register();
        if [i.memory_base(), i.memory_index()]
            .iter()
            .any(|r| r.full_register() == full)
        {
            return None;
        }
        let index = self.below(4000).wrapping_sub(2000);
        set_low(&mut case.gpr[full.number()], register.size(), index);
        Some(())
    }

    fn adjust_dividend(&mut self, case: &mut Case) {
        match self.below(4) {
            0 => {}
            1 => case.gpr[2] = 0,
            2 => case.gpr[2] = ((case.gpr[0] as i64) >> 63) as u64,
            _ => {
                case.gpr[2] = self.below(16);
                case.gpr[0] &= 0x7ff;
            }
        }
        if self.bits == Bits::B32 {
            case.gpr[2] &= 0xffff_ffff;
        }
    }

    fn adjust_comparand(&mut self, case: &mut Case) {
        if self.one_in(2) {
            return;
        }
        let i = case.instruction;
        if i.op0_kind() == OpKind::Register {
            let r = i.op0_register().full_register().number();
            case.gpr[r] = case.gpr[0];
            return;
        }
        let (mut image, second) = (
            case.gpr[0].to_le_bytes().to_vec(),
            case.gpr[2].to_le_bytes(),
        );
        match i.mnemonic() {
            Mnemonic::Cmpxchg8b => {
                image.truncate(4);
                image.extend_from_slice(&second[..4]);
            }
            Mnemonic::Cmpxchg16b => image.extend_from_slice(&second),
            _ => {}
        }
        let at = self.address(case);
        put(case, at, &image);
    }

    fn adjust_bounds(&mut self, case: &mut Case) {
        if self.one_in(2) {
            let size = case.instruction.op0_register().size();
            let at = self.address(case);
            let wide = [
                vec![0; size - 1],
                vec![0x80],
                vec![0xff; size - 1],
                vec![0x7f],
            ];
            put(case, at, &wide.concat());
        }
    }

    fn adjust_strings(&mut self, case: &mut Case) {
        let kinds: Vec<_> = (0..2).map(|n| case.instruction.op_kind(n)).collect();
        let short = [
            OpKind::MemorySegSI,
            OpKind::MemoryESDI,
            OpKind::MemorySegESI,
        ];
        let is_narrow = kinds
            .iter()
            .any(|k| short.contains(k) || *k == OpKind::MemoryESEDI);
        for n in [6, 7] {
            let at = self.place();
            let junk = if is_narrow && self.bits == Bits::B64 {
                self.next() << 32
            } else {
                0
            };
            case.gpr[n] = (DATA + at) | junk;
            let level = self.pick(&[0u8, 0, 0xff]);
            let bytes: Vec<u8> = (0..64)
                .map(|_| if self.one_in(20) { 1 } else { level })
                .collect();
            put(case, (DATA + at).wrapping_sub(32), &bytes);
            if self.one_in(2) {
                case.gpr[0] = if level == 0 { 0 } else { u64::from(u32::MAX) };
            }
        }
        let junk = if is_narrow && self.bits == Bits::B64 {
            self.next() << 32
        } else {
            0
        };
        case.gpr[1] = self.below(40) | junk;
    }
}

/// Puts `bytes` into the case's memory at `address`, as far as the data page reaches.
fn put(case: &mut Case, address: u64, bytes: &[u8]) {
    for (n, &byte) in bytes.iter().enumerate() {
        let offset = address.wrapping_add(n as u64).wrapping_sub(DATA);
        if offset < PAGE as u64 {
            case.memory.push((offset as usize, vec![byte]));
        }
    }
}

/// Sets the low `bytes` bytes of a register and keeps the others.
fn set_low(register: &mut u64, bytes: usize, value: u64) {
    let mask = u64::MAX >> (64 - 8 * bytes);
    *register = *register & !mask | value & mask;
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

/// Whether an operand may be memory.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Choice {
    Register,
    RegisterOrMemory,
}

/// Returns what a register operand may be, and its size; 0 is a segment register.
fn register_class(kind: Kind) -> Option<(Choice, usize)> {
    use Choice::{Register as R, RegisterOrMemory as Rm};
    Some(match kind {
        Kind::r8_or_mem => (Rm, 1),
        Kind::r16_or_mem => (Rm, 2),
        Kind::r32_or_mem => (Rm, 4),
        Kind::r64_or_mem => (Rm, 8),
        Kind::r8_reg | Kind::r8_opcode => (R, 1),
        Kind::r16_reg | Kind::r16_rm | Kind::r16_opcode | Kind::r16_reg_mem => (R, 2),
        Kind::r32_reg | Kind::r32_rm | Kind::r32_opcode | Kind::r32_vvvv | Kind::r32_reg_mem => {
            (R, 4)
        }
        Kind::r64_reg | Kind::r64_rm | Kind::r64_opcode | Kind::r64_vvvv | Kind::r64_reg_mem => {
            (R, 8)
        }
        Kind::seg_reg => (R, 0),
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
        _ => return None,
    })
}
