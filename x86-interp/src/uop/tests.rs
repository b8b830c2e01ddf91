//! Hot micro-ops against plain handlers: random straight-line code with a branch at its end, from
//! the same random state, in four kinds of code.
//!
//! The fast side runs twice, the second time from the restored state, so that translations, links
//! and jump targets are known and the hot forms really run.

mod vex;

use proptest::prelude::*;
use vmx_model::addr::Hpa;
use vmx_model::arch::{AccessRights, Activity, Cr0, Cr4, Rflags, SegmentRegister};

use crate::cpuid::Profile;
use crate::fpu::FpuState;
use crate::run::tests::{Bits, CODE, processor};
use crate::{Cpu, Stop};

const PAGES: usize = 16;
const RAM: usize = PAGES * 4096;

/// What kind of code runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Real16,
    Flat32,
    Segmented32,
    Long64,
}

const KINDS: [Kind; 4] = [Kind::Real16, Kind::Flat32, Kind::Segmented32, Kind::Long64];

/// A small generator: the property's input is its seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
    /// A value that likes to lie at a boundary or to be an address in RAM.
    fn value(&mut self) -> u64 {
        match self.below(8) {
            0 => self.next(),
            1 => self.pick(&[
                0,
                1,
                0x7f,
                0x80,
                0xff,
                0x7fff,
                0x8000,
                0x7fff_ffff,
                0x8000_0000,
            ]),
            2 => u64::MAX - self.below(3),
            3 => 1 << 63,
            _ => 0x2000 + self.below(0xb000),
        }
    }
}

/// One-byte opcodes with ModRM and an immediate of 0, 1 or 4 (operand-size) bytes.
const MODRM: &[(u8, u8)] = &[
    (0x63, 0),
    (0x69, 4),
    (0x6b, 1),
    (0x80, 1),
    (0x81, 4),
    (0x83, 1),
    (0x84, 0),
    (0x85, 0),
    (0x86, 0),
    (0x87, 0),
    (0x88, 0),
    (0x89, 0),
    (0x8a, 0),
    (0x8b, 0),
    (0x8d, 0),
    (0xc0, 1),
    (0xc1, 1),
    (0xc6, 1),
    (0xc7, 4),
    (0xd0, 0),
    (0xd1, 0),
    (0xd2, 0),
    (0xd3, 0),
    (0xfe, 0),
];
/// One-byte opcodes without ModRM.
const SHORT: &[(u8, u8)] = &[
    (0x68, 4),
    (0x6a, 1),
    (0x90, 0),
    (0x98, 0),
    (0x99, 0),
    (0xa8, 1),
    (0xa9, 4),
    (0xc9, 0),
];

/// Second opcode bytes of SSE and SSE2 with ModRM, all under any of the prefixes.
const VECTOR: &[u8] = &[
    0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x28, 0x29, 0x2a, 0x2c, 0x2d, 0x2e, 0x2f, 0x50,
    0x51, 0x54, 0x55, 0x56, 0x57, 0x58, 0x59, 0x5a, 0x5c, 0x5d, 0x5e, 0x5f, 0x6e, 0x6f, 0x7e, 0x7f,
    0xd6, 0xe7,
];

/// Appends an instruction on vector registers.
fn vector(r: &mut Random, kind: Kind, code: &mut Vec<u8>) {
    let prefix = r.pick(&[0, 0x66, 0xf2, 0xf3]);
    code.extend((prefix != 0).then_some(prefix));
    if kind == Kind::Long64 && r.one_in(3) {
        code.push(0x40 | r.below(16) as u8);
    }
    let opcode = match r.below(8) {
        // Packed integers, all of the table's rows 6, 7, D, E and F.
        0..3 => r.pick(&[0x60, 0xd0, 0xe0, 0xf0]) + r.below(16) as u8,
        3 => r.pick(&[0x70, 0x71, 0x72, 0x73, 0xc6]),
        _ => r.pick(VECTOR),
    };
    code.extend([0x0f, opcode]);
    modrm(r, kind, code);
    if matches!(opcode, 0x70..=0x73 | 0xc6) {
        code.push(r.value() as u8);
    }
}

/// A vector register: numbers that are normal, zero, large, tiny or none.
fn vector_register(r: &mut Random) -> [u64; 8] {
    let number = |r: &mut Random| match r.below(8) {
        0 => 0,
        1 => r.next(),
        2 => r
            .pick(&[
                f64::MAX,
                f64::MIN_POSITIVE,
                f64::INFINITY,
                f64::NAN,
                -0.0,
                5e-324,
            ])
            .to_bits(),
        3 => u64::from((r.next() as f32).to_bits()) << 32 | u64::from(1.5f32.to_bits()),
        4 => u64::from(r.pick(&[f32::MAX, 1e-40, f32::NAN]).to_bits()) * 0x1_0000_0001,
        _ => (r.next() as i32 as f64 / 4096.0).to_bits(),
    };
    core::array::from_fn(|_| number(r))
}

/// A number as the x87 holds it: normal, integer, zero, infinite, or any bits.
fn x87_register(r: &mut Random) -> [u8; 10] {
    let (exponent, low) = match r.below(8) {
        0 => (0, 0),
        1 => (0x7fff, 1 << 63 | r.below(2) << 62),
        2 => (r.next() as u16, r.next()),
        3 => (
            0x3fff + r.below(40) as u16,
            1 << 63 | r.below(1 << 20) << 43,
        ),
        _ => (
            (0x3fe0 + r.below(64) as u16) | ((r.below(2) as u16) << 15),
            1 << 63 | r.next(),
        ),
    };
    let mut bytes = [0; 10];
    bytes[..8].copy_from_slice(&low.to_le_bytes());
    bytes[8..].copy_from_slice(&exponent.to_le_bytes());
    bytes
}

/// Fills the x87 with numbers, some registers empty, some exceptions unmasked or pending.
fn prepare_x87(r: &mut Random, fpu: &mut FpuState) {
    fpu.control = r.pick(&[0x37f, 0x37f, 0x27f, 0x07f, 0xf7f, 0x340, 0x37e]);
    fpu.status = (r.next() as u16) & 0x7f00 | r.pick(&[0, 0, 0x20, 0x3f]);
    fpu.valid = r.pick(&[0xff, 0x0f, 0x3c, 0xf0, 0xfe, r.0 as u8]);
    fpu.registers = core::array::from_fn(|_| x87_register(r));
    fpu.update_summary();
}

/// Appends an instruction that goes on with the next one.
fn straight(r: &mut Random, kind: Kind, code: &mut Vec<u8>) {
    if kind != Kind::Real16 && r.one_in(5) {
        return vex::random(r, kind, code);
    }
    if r.one_in(3) {
        return vector(r, kind, code);
    }
    if r.one_in(5) {
        if r.one_in(8) {
            code.push(r.pick(&[0x2e, 0x36, 0x64]));
        }
        code.push(0xd8 | r.below(8) as u8);
        return modrm(r, kind, code);
    }
    let wide = prefixes(r, kind, code);
    let imm = |r: &mut Random, n: u8| match n {
        4 if wide => 4,
        4 => 2,
        n => usize::from(n) * usize::from(r.0 != 0),
    };
    let (opcode, has_modrm, bytes): (Vec<u8>, bool, u8) = match r.below(12) {
        0..4 => (vec![(r.below(8) << 3 | r.below(4)) as u8], true, 0),
        4 => (vec![(r.below(8) << 3 | 4) as u8], false, 1),
        5 => (vec![(0x50 + r.below(16)) as u8], false, 0),
        6 => (vec![(0xb0 + r.below(8)) as u8], false, 1),
        7 | 8 => {
            let (op, n) = r.pick(MODRM);
            (vec![op], true, n)
        }
        9 => {
            let (op, n) = r.pick(SHORT);
            (vec![op], false, n)
        }
        10 => (
            vec![0x0f, (r.pick(&[0x40, 0x90]) + r.below(16)) as u8],
            true,
            0,
        ),
        _ => (vec![0x0f, r.pick(&[0xaf, 0xb6, 0xb7, 0xbe, 0xbf])], true, 0),
    };
    code.extend(opcode);
    if has_modrm {
        modrm(r, kind, code);
    }
    let n = imm(r, bytes);
    code.extend(r.value().to_le_bytes().iter().take(n));
}

/// Appends random prefixes; returns whether the operand size is not 16 bits.
fn prefixes(r: &mut Random, kind: Kind, code: &mut Vec<u8>) -> bool {
    let mut wide = kind != Kind::Real16;
    if r.one_in(16) {
        code.push(r.pick(&[0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65]));
    }
    if r.one_in(4) {
        code.push(0x66);
        wide = !wide;
    }
    if r.one_in(12) {
        code.push(0x67);
    }
    if kind == Kind::Long64 && r.one_in(2) {
        let rex = 0x40 | r.below(16) as u8;
        code.push(rex);
        wide |= rex & 8 != 0;
    }
    wide
}

/// Appends a ModRM byte with what belongs to it. A wrong guess of the address size only makes
/// another instruction of the rest.
fn modrm(r: &mut Random, kind: Kind, code: &mut Vec<u8>) {
    let (mode, rm) = (r.pick(&[0, 1, 2, 3, 3]), r.below(8) as u8);
    code.push(mode << 6 | (r.below(8) as u8) << 3 | rm);
    let is_16 = kind == Kind::Real16;
    if mode != 3 && rm == 4 && !is_16 {
        code.push(r.next() as u8);
    }
    match mode {
        1 => code.push(r.next() as u8),
        2 if is_16 => code.extend((r.below(0x9000) as u16).to_le_bytes()),
        2 => code.extend((r.below(0x3000) as u32).to_le_bytes()),
        0 if rm == 6 && is_16 => code.extend((r.below(0x9000) as u16).to_le_bytes()),
        0 if rm == 5 && !is_16 => code.extend((r.below(0x9000) as u32).to_le_bytes()),
        _ => {}
    }
}

/// Appends a branch, often with a comparison in front.
fn branch(r: &mut Random, kind: Kind, code: &mut Vec<u8>) {
    if r.one_in(2) {
        let wide = prefixes(r, kind, code);
        match r.below(4) {
            0 => code.extend([
                r.pick(&[0x38, 0x39, 0x84, 0x85, 0x28, 0x29, 0x00, 0x01, 0x21]),
                0xc0 | r.next() as u8,
            ]),
            1 => code.extend([0x83, 0xc0 | r.next() as u8, r.value() as u8]),
            2 => code.extend([0xfe, 0xc0 | (r.next() as u8 & 0xf)]),
            _ => {
                code.extend([0xf7, 0xc0 | r.below(8) as u8]);
                let n = if wide { 4 } else { 2 };
                code.extend(r.value().to_le_bytes().iter().take(n));
            }
        }
    }
    match r.below(8) {
        0 => code.extend([0xeb, 1, 0x90]),
        1 => code.extend([0xc3]),
        2 => code.extend([0xc2, 8, 0]),
        3 => code.extend([0xff, r.pick(&[0xd0, 0xe0]) | r.below(8) as u8]),
        4 => code.extend([0xe8, 1, 0, 0, 0, 0x90]),
        _ => code.extend([(0x70 + r.below(16)) as u8, 1, 0x90]),
    }
}

fn program(r: &mut Random, kind: Kind) -> Vec<u8> {
    let mut code = Vec::new();
    for _ in 0..r.below(6) {
        straight(r, kind, &mut code);
    }
    branch(r, kind, &mut code);
    // No instruction: the block ends here.
    code.extend([0x0f, 0x04]);
    code
}

/// Returns a processor with random registers and memory in front of `code`.
fn prepared(r: &mut Random, kind: Kind, code: &[u8]) -> Cpu {
    let bits = match kind {
        Kind::Real16 => Bits::Real16,
        Kind::Flat32 | Kind::Segmented32 => Bits::Flat32,
        Kind::Long64 => Bits::Long64,
    };
    let mut cpu = processor(bits, PAGES, &[]);
    let mut memory = vec![0; RAM];
    for (n, word) in memory.chunks_mut(8).enumerate() {
        let value = (n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20 & 0xbfff;
        word.copy_from_slice(&value.to_le_bytes());
    }
    cpu.phys.write_bytes(Hpa(0), &memory);
    cpu.phys.write_bytes(Hpa(CODE), code);
    cpu.set_cpuid(Profile::X86_64_V3.table());
    cpu.system.xcr0 = if r.one_in(16) { 3 } else { 7 };
    let mut state = cpu.arch_state();
    for (s, base) in [
        (0, 0x3000),
        (2, 0x100),
        (3, 0x2000),
        (4, 0x5000),
        (5, 0x6008),
    ] {
        let segment = &mut state.segments[s];
        let is_based = match kind {
            Kind::Flat32 => s == 4,
            Kind::Long64 => s >= 4,
            _ => true,
        };
        if is_based {
            segment.base = base;
        }
        if kind == Kind::Segmented32 {
            segment.limit = 0xafff;
        }
    }
    if kind == Kind::Segmented32 && r.one_in(2) {
        let ss = state.segment_mut(SegmentRegister::Ss);
        ss.access = AccessRights(ss.access.0 & !0x4000);
    }
    state.rflags = Rflags::FIXED1 | Rflags::from_bits_retain(r.next()) & Rflags::STATUS;
    state.rsp = 0x4000 + r.below(0x4000);
    let mut registers = [0; 16];
    for register in &mut registers {
        *register = r.value();
        if kind != Kind::Long64 {
            *register &= 0xffff_ffff;
        }
    }
    registers[5] = 0x4000 + r.below(0x4000);
    state.cr4 |= Cr4::OSFXSR | Cr4::OSXMMEXCPT | Cr4::OSXSAVE;
    if r.one_in(16) {
        state.cr0 |= r.pick(&[Cr0::TS, Cr0::EM]);
    }
    cpu.fpu.mxcsr = r.pick(&[
        0x1fa0, 0x1fa0, 0x1fa0, 0x1f80, 0x1fbf, 0x3fa0, 0x9fe0, 0x0020,
    ]);
    prepare_x87(r, &mut cpu.fpu);
    cpu.fpu.vector = core::array::from_fn(|_| vector_register(r));
    cpu.set_general_registers(&registers);
    cpu.set_arch_state(&state);
    cpu
}

fn memory(cpu: &Cpu) -> Vec<u8> {
    let mut bytes = vec![0; RAM];
    cpu.phys.read_bytes(Hpa(0), &mut bytes);
    bytes
}

/// Runs both ways; returns whether at least one instruction completed.
fn agree(seed: u64, kind: Kind) -> bool {
    let mut r = Random(seed);
    let code = program(&mut r, kind);
    let state = r.next();
    let make = || prepared(&mut Random(state), kind, &code);
    agree_on(&code, make, &format!("{kind:?} seed {seed:#x}"))
}

/// Runs `code` both ways on processors that `make` makes; returns whether at least one instruction
/// completed.
fn agree_on(code: &[u8], make: impl Fn() -> Cpu, what: &str) -> bool {
    let mut plain = make();
    let mut count = 0;
    let inside = CODE..CODE + code.len() as u64;
    while count < 16 && inside.contains(&plain.state.rip) {
        let mxcsr = plain.fpu.mxcsr;
        if plain.execute_plain().is_err() {
            // #XM leaves its cause there.
            plain.fpu.mxcsr = mxcsr;
            break;
        }
        count += 1;
    }
    let now = plain.arch_state();
    let is_quiet = now.activity == Activity::Active
        && now.interruptibility.is_empty()
        && (now.rflags & !(Rflags::STATUS | Rflags::FIXED1 | Rflags::DF)).is_empty();
    if !is_quiet {
        // The branch led to other instructions, which are not this test's concern.
        return false;
    }
    let mut fast = make();
    let (gpr, saved, flags, before) = (fast.gpr, fast.state.clone(), fast.flags, memory(&fast));
    let fpu = fast.fpu.clone();
    for _ in 0..3 {
        fast.gpr = gpr;
        fast.state = saved.clone();
        fast.flags = flags;
        fast.fpu = fpu.clone();
        fast.phys.write_bytes(Hpa(0), &before);
        assert_eq!(fast.run(count), Stop::Budget, "{what} {code:02x?}");
        let context = format!("{what} {code:02x?}, {count} instructions");
        assert_eq!(
            fast.general_registers(),
            plain.general_registers(),
            "{context}"
        );
        assert_eq!(fast.arch_state(), plain.arch_state(), "{context}");
        assert_eq!(fast.fpu, plain.fpu, "{context}");
        assert!(memory(&fast) == memory(&plain), "{context}: memory");
    }
    count > 0
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn hot_forms_agree_with_plain_handlers(seed: u64) {
        for kind in KINDS {
            agree(seed, kind);
        }
    }
}

#[test]
fn most_random_programs_run() {
    for kind in KINDS {
        let ran = (0..200).filter(|&seed| agree(seed, kind)).count();
        assert!(ran > 100, "{kind:?}: {ran} of 200");
    }
}
