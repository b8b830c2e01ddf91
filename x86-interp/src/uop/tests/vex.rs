//! Every form with a VEX prefix that has a micro-op, on random states.

use std::collections::{BTreeMap, BTreeSet};

use iced_x86::{Code, Decoder, DecoderOptions, EncodingKind};

use vmx_model::addr::Hpa;
use vmx_model::arch::{ArchState, Cr0};

use super::{Kind, Random, memory, modrm, prepared};
use crate::block::CodeMode;
use crate::run::tests::CODE;
use crate::uop::Slot;
use crate::uop::plain::BAILED;
use crate::uop::select::{Candidate, Emit};
use crate::{Cpu, Stop, decode, exec};

/// The bytes of a VEX prefix of three bytes.
fn prefix(map: u8, fields: u8, extensions: u8) -> [u8; 3] {
    [0xc4, map | extensions << 5, fields]
}

/// Appends a random instruction with a VEX prefix, not always one that exists.
pub(super) fn random(r: &mut Random, kind: Kind, code: &mut Vec<u8>) {
    let extensions = if kind == Kind::Long64 {
        r.next() as u8
    } else {
        7
    };
    let unused = if r.one_in(2) { 0x78 } else { 0 };
    let map = 1 + r.below(3) as u8;
    code.extend(prefix(map, r.next() as u8 | unused, extensions & 7));
    let opcode = r.next() as u8;
    code.push(opcode);
    modrm(r, kind, code);
    if map == 3 || matches!(opcode, 0x70..=0x73 | 0xc2 | 0xc4..=0xc6) {
        code.push(r.value() as u8);
    }
}

/// The mode of 64-bit code with everything switched on.
fn mode() -> CodeMode {
    CodeMode {
        cs_limit: u64::MAX,
        bits: 64,
        stack: crate::uop::stack::LONG,
        has_sse: true,
        has_vex: true,
        has_avx: true,
        has_x87: true,
        ..CodeMode::default()
    }
}

/// Returns the form of an instruction that has a micro-op, and its length.
fn hot_form(bytes: &[u8]) -> Option<(Code, usize)> {
    let iced = Decoder::new(64, bytes, DecoderOptions::NONE).decode();
    if iced.is_invalid() || iced.code().encoding() != EncodingKind::VEX {
        return None;
    }
    let insn = decode::resolve(&iced, exec::lookup(iced.code())?.plain);
    let mut slots: Vec<Slot> = Vec::new();
    let mode = mode();
    let mut emit = Emit::new(&mut slots, &mode, 0);
    emit.advance(0, insn.length);
    let candidate = Candidate {
        iced: &iced,
        insn: &insn,
        is_dead: false,
    };
    emit.hot(candidate).then(|| (iced.code(), iced.len()))
}

/// A random instruction of this opcode (map, fields of the prefix, opcode, register): registers, or memory at an address that is RAM, at times
/// misaligned or at the end of a page.
fn instruction(r: &mut Random, [map, fields, opcode, reg]: [u8; 4], is_memory: bool) -> Vec<u8> {
    let mut code = prefix(map, fields, r.next() as u8 & 7).to_vec();
    code.push(opcode);
    let reg = reg << 3;
    if is_memory {
        let indexed = r.one_in(3);
        if indexed {
            // [reg + reg * scale + disp32]
            code.extend([0x84 | reg, r.next() as u8]);
        } else {
            // [rdi + disp32] or [r15 + disp32]
            code.push(0x87 | reg);
        }
        let displacement = r.pick(&[0_u32, 32, 16, 8, 1, 0xff0, 0xff9]);
        code.extend(displacement.to_le_bytes());
    } else {
        code.push(0xc0 | reg | r.below(8) as u8);
    }
    // An immediate byte, if the instruction has one.
    code.push(if r.one_in(2) {
        r.below(8) as u8
    } else {
        r.next() as u8
    });
    code
}

/// An element of single or double precision, of all kinds, or an integer.
fn element(r: &mut Random, is_double: bool) -> u64 {
    let (fraction, bias) = if is_double { (52, 0x3ff) } else { (23, 0x7f) };
    let exponent = match r.below(16) {
        0 => 0,
        1 => 1,
        2 => 2 * bias,
        3 => 2 * bias + 1,
        4 => bias / 2 + r.below(3),
        5 => bias + bias / 2 - r.below(3),
        _ => bias + r.below(16) - 8,
    };
    let bits = match r.below(4) {
        0 => 0,
        1 => (1 << fraction) - 1 - r.below(2),
        _ => r.next() & ((1 << fraction) - 1),
    };
    let sign = r.below(2) << (if is_double { 63 } else { 31 });
    sign | exponent << fraction | bits
}

fn vector(r: &mut Random) -> [u64; 8] {
    let kind = r.below(5);
    core::array::from_fn(|_| match kind {
        0 => r.next(),
        1 => element(r, true),
        2 => element(r, false) | element(r, false) << 32,
        3 => r.pick(&[0, 1, 7, 16, 31, u64::MAX, 0x80]),
        _ => ((r.below(4096) as f64) / 8.0).to_bits(),
    })
}

/// A single instruction would be executed by its plain handler.
const NOP: u8 = 0x90;
/// No instruction: a block ends here.
const NOTHING: [u8; 2] = [0x0f, 0x04];

/// Numbers that raise nothing, whether taken as two of single or one of double precision.
fn calm(r: &mut Random) -> [u64; 8] {
    let mut number = || {
        let sign = u64::from(r.one_in(32)) << 31;
        sign | (0x7f + r.below(8) - 4) << 23 | r.next() & 0x7f_ffff
    };
    core::array::from_fn(|_| number() | number() << 32)
}

/// Two processors that are used over and over: one for each kind of handler.
struct Pair {
    plain: Cpu,
    fast: Cpu,
    state: ArchState,
    memory: Vec<u8>,
}

impl Pair {
    fn new() -> Self {
        let make = || {
            let mut cpu = prepared(&mut Random(3), Kind::Long64, &[]);
            cpu.system.xcr0 = 7;
            cpu
        };
        let plain = make();
        let state = plain.arch_state();
        let (mut memory, mut r) = (memory(&plain), Random(2));
        for (n, numbers) in memory[0x3000..0x7000].chunks_mut(64).enumerate() {
            let vector = if n < 0x80 {
                calm(&mut r)
            } else {
                vector(&mut r)
            };
            let vector = vector.map(u64::to_le_bytes);
            numbers.copy_from_slice(vector.as_flattened());
        }
        assert!(!state.cr0.contains(Cr0::TS), "chosen so");
        Self {
            memory,
            fast: make(),
            plain,
            state,
        }
    }

    /// Runs an instruction, with [`NOP`] in front, both ways; returns whether it completed.
    fn agree(&mut self, seed: u64, code: &[u8], what: &str) -> bool {
        load(&mut self.plain, seed, code, &self.state, &self.memory);
        let mxcsr = self.plain.fpu.mxcsr;
        assert!(self.plain.execute_plain().is_ok(), "the NOP in front");
        let is_complete = self.plain.execute_plain().is_ok();
        if !is_complete {
            // #XM leaves its cause there.
            self.plain.fpu.mxcsr = mxcsr;
        }
        let context = format!("{what} {code:02x?} {seed:#x}");
        load(&mut self.fast, seed, code, &self.state, &self.memory);
        let fast = &mut self.fast;
        let (gpr, state, flags) = (fast.gpr, fast.state.clone(), fast.flags);
        let (fpu, before) = (fast.fpu.clone(), memory(fast));
        let count = 1 + u64::from(is_complete);
        // The second time, translations are known.
        for _ in 0..2 {
            fast.gpr = gpr;
            fast.state = state.clone();
            fast.flags = flags;
            fast.fpu = fpu.clone();
            fast.phys.write_bytes(Hpa(0), &before);
            BAILED.set(false);
            assert_eq!(fast.run(count), Stop::Budget, "{context}");
            compare(fast, &self.plain, &context);
        }
        is_complete
    }
}

/// Compares what both kinds of handler left.
fn compare(fast: &Cpu, plain: &Cpu, context: &str) {
    let registers = |cpu: &Cpu| cpu.general_registers();
    assert_eq!(registers(fast), registers(plain), "{context}");
    assert_eq!(fast.arch_state(), plain.arch_state(), "{context}");
    assert_eq!(fast.fpu.mxcsr, plain.fpu.mxcsr, "{context}: MXCSR");
    for (n, found) in fast.fpu.vector.iter().enumerate() {
        let expected = &plain.fpu.vector[n];
        assert!(
            found == expected,
            "{context}: ZMM{n} {found:x?}, not {expected:x?}"
        );
    }
    assert!(fast.fpu == plain.fpu, "{context}: x87 or opmasks");
    assert!(memory(fast) == memory(plain), "{context}: memory");
}

/// Prepares a processor: numbers in the vector registers, addresses in the others.
fn load(cpu: &mut Cpu, seed: u64, code: &[u8], state: &ArchState, memory: &[u8]) {
    let mut r = Random(seed);
    cpu.phys.write_bytes(Hpa(0), memory);
    cpu.phys.write_bytes(Hpa(CODE), code);
    cpu.set_arch_state(state);
    cpu.fpu.mxcsr = r.pick(&[
        0x1fa0, 0x1fa0, 0x1fa0, 0x1fa0, 0x1fa0, 0x1fa0, 0x1fbf, 0x1f80, 0x7fa0, 0x9fe0, 0x0020,
    ]);
    let is_calm = r.one_in(2);
    cpu.fpu.vector = core::array::from_fn(|_| match is_calm {
        true => calm(&mut r),
        false => vector(&mut r),
    });
    let mut registers = core::array::from_fn(|_| match is_calm || r.one_in(2) {
        true => r.pick(&[0x3000, 0x3040, 0x4010, 0x20, 8, 0]),
        false => r.value(),
    });
    if is_calm || r.one_in(2) {
        (registers[7], registers[15]) = (0x3000, 0x4000);
    }
    cpu.set_general_registers(&registers);
}

/// How often each form is tried with each kind of source and each value of W that it ignores.
fn cases() -> u64 {
    let chosen = std::env::var("PROPTEST_CASES").ok();
    chosen.and_then(|n| n.parse().ok()).unwrap_or(8)
}

/// What was seen of a form.
#[derive(Default)]
struct Seen {
    cases: u64,
    completed: u64,
    /// Completed without the plain handler's help.
    hot: u64,
}

#[test]
fn every_form_agrees_with_its_plain_handler() {
    let mut r = Random(1);
    let mut pair = Pair::new();
    let mut seen: BTreeMap<(String, bool), Seen> = BTreeMap::new();
    for (map, fields, opcode) in (1..=3)
        .flat_map(|map| (0..16).map(move |f| (map, f)))
        .flat_map(|(map, f)| (0..=255).map(move |opcode| (map, f, opcode)))
    {
        // W, L and the prefix that is implied.
        let fields = (fields & 8) << 4 | fields & 7;
        for is_memory in [false, true] {
            let mut here = BTreeSet::new();
            for case in 0..400 {
                let is_known = |key| seen.get(key).is_some_and(|s: &Seen| s.hot > 0);
                if case >= cases() && here.iter().all(is_known) {
                    break;
                }
                let vvvv = match r.one_in(2) {
                    true => 0x78,
                    false => (r.below(16) as u8) << 3,
                };
                // Of a group, the opcode goes on there.
                let reg = (case & 7) as u8;
                let mut code = instruction(&mut r, [map, fields | vvvv, opcode, reg], is_memory);
                let Some((form, length)) = hot_form(&code) else {
                    continue;
                };
                code.truncate(length);
                let code = [&[NOP], &*code, &NOTHING].concat();
                let state = r.next();
                let completed = pair.agree(state, &code, &format!("{form:?}"));
                let key = (format!("{form:?}"), is_memory);
                here.insert(key.clone());
                let seen = seen.entry(key).or_default();
                seen.cases += 1;
                seen.completed += u64::from(completed);
                seen.hot += u64::from(completed && !BAILED.get());
            }
        }
    }
    let cases: u64 = seen.values().map(|s| s.cases).sum();
    let forms: BTreeSet<_> = seen.keys().map(|(form, _)| form).collect();
    println!(
        "{} forms, {} with their kinds of source, {cases} cases",
        forms.len(),
        seen.len()
    );
    let never: Vec<_> = seen
        .iter()
        .filter(|(_, s)| s.hot == 0)
        .map(|(k, _)| k)
        .collect();
    assert!(never.is_empty(), "never hot: {never:?}");
    assert!(forms.len() > 500, "{} forms", forms.len());
}

/// What rounds up to the least normal number was tiny before, if not by much (SDM Vol. 1, "Numeric
/// Underflow Exception (#U)"): UE is set, which hot handlers do not do.
#[test]
fn the_least_normal_number_may_have_been_tiny() {
    const FACTOR: u64 = 0x1fff_ffff_ffff_ffff;
    const POWER: u64 = 0x2000_0000_0000_0000;
    // 0x1.fffffffffffffp-512 * 0x1p-511; 0x1.fffffep-64 * 0x1p-63; 0x1.fffffe4p-127.
    let single = |bits: u32| u64::from(bits) << 32 | u64::from(bits);
    let rows: [(&[u8], u64, u64); 8] = [
        (&[0xf2, 0x0f, 0x59, 0xc1], FACTOR, POWER),
        (&[0x66, 0x0f, 0x59, 0xc1], FACTOR, POWER),
        (&[0xc5, 0xfb, 0x59, 0xc1], FACTOR, POWER),
        (
            &[0xf3, 0x0f, 0x59, 0xc1],
            single(0x1fff_ffff),
            single(0x2000_0000),
        ),
        (
            &[0x0f, 0x59, 0xc1],
            single(0x1fff_ffff),
            single(0x2000_0000),
        ),
        (
            &[0xc5, 0xfc, 0x59, 0xc1],
            single(0x1fff_ffff),
            single(0x2000_0000),
        ),
        (&[0xf2, 0x0f, 0x5a, 0xc1], 0, 0x380f_ffff_e400_0000),
        (&[0xc5, 0xfb, 0x5a, 0xc1], 0, 0x380f_ffff_e400_0000),
    ];
    for (code, a, b) in rows {
        let mut pair = Pair::new();
        let code = [&[NOP], code, &NOTHING].concat();
        for cpu in [&mut pair.plain, &mut pair.fast] {
            cpu.phys.write_bytes(Hpa(CODE), &code);
            cpu.fpu.mxcsr = 0x1fa0;
            (cpu.fpu.vector[0], cpu.fpu.vector[1]) = ([a; 8], [b; 8]);
        }
        for _ in 0..2 {
            assert!(pair.plain.execute_plain().is_ok());
        }
        assert_eq!(pair.plain.fpu.mxcsr, 0x1fb0, "{code:02x?}");
        assert_eq!(pair.fast.run(2), Stop::Budget);
        assert_eq!(pair.fast.fpu.mxcsr, 0x1fb0, "{code:02x?}");
        assert!(pair.fast.fpu == pair.plain.fpu, "{code:02x?}");
    }
}
