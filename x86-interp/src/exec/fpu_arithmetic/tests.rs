//! The same x87 and MMX state and operands through the same instruction, on this processor and on the
//! host's.
#![expect(
    unsafe_code,
    reason = "the host processor executes the instruction under test"
)]

use std::arch::asm;

use iced_x86::{Code, Encoder, Instruction, MemoryOperand, OpCodeOperandKind as Kind, Register};
use proptest::prelude::*;
use vmx_model::addr::Hpa;
use vmx_model::arch::{Cr4, Rflags};

use crate::fpu::FpuState;
use crate::test_cpu::{DATA, execute, long_mode};

/// Cases of each form.
const CASES: u32 = 100;

fn cases() -> u32 {
    let wanted = std::env::var("X87_CASES").ok();
    wanted.and_then(|n| n.parse().ok()).unwrap_or(CASES)
}

/// Hides what differs between vendors.
///
/// - Comparisons with an unmasked exception: Intel processors leave C0, C2 and C3, or the flags (SDM
///   Vol. 2, "FCOM/FCOMP/FCOMPP", "FCOMI/FCOMIP/FUCOMI/FUCOMIP"); those of AMD set them.
/// - FCOMI and its like: Intel processors clear C1, those of AMD do not.
/// - Transcendental functions: which neighbour of the true value it is (C1). FYL2X of a power of 2:
///   those of AMD say that an exact result is inexact (SDM Vol. 1, "Inexact-Result (Precision)
///   Exception (#P)").
fn hide(code: Code, mut state: State) -> State {
    use iced_x86::Mnemonic as M;
    const IE_DE: u16 = 3;
    let fpu = fpu_of(&state.fxsave);
    let is_refused = fpu.status & !fpu.control & IE_DE != 0;
    let hidden = match code.mnemonic() {
        M::Fcom | M::Fcomp | M::Fcompp | M::Ficom | M::Ficomp | M::Ftst if is_refused => 0x4500,
        M::Fucom | M::Fucomp | M::Fucompp if is_refused => 0x4500,
        M::Fcomi | M::Fcomip | M::Fucomi | M::Fucomip => {
            if is_refused {
                state.rflags = 0;
            }
            0x0200
        }
        _ => 0,
    };
    let hidden = match code.mnemonic() {
        M::Fyl2x => 0x82a0,
        _ if is_transcendental(code) => 0x0200,
        _ => hidden,
    };
    let status = fpu.status & !hidden;
    state.fxsave[2..4].copy_from_slice(&status.to_le_bytes());
    state
}

/// What an instruction reads and writes: an FXSAVE area, an operand in memory, flags.
#[derive(Clone, PartialEq, Eq)]
#[repr(C, align(16))]
struct State {
    fxsave: [u8; 512],
    memory: [u8; 16],
    rflags: u64,
}

/// A page of code on the host.
struct Page(*mut u8);

impl Page {
    fn new() -> Self {
        let all = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), 4096, all, flags, -1, 0) };
        assert_ne!(at, libc::MAP_FAILED);
        Self(at.cast())
    }

    /// Executes `code`, which uses the x87 FPU, the flags and the memory at RDI alone.
    fn run(&self, code: &[u8], state: &mut State) {
        // SAFETY: the page is ours and large enough; the code is one instruction and a RET; no
        // exception is pending before it, and none is looked for after it.
        unsafe {
            std::ptr::copy_nonoverlapping(code.as_ptr(), self.0, code.len());
            *self.0.add(code.len()) = 0xc3;
            asm!(
                "fxrstor64 [rsi]",
                "push qword ptr [rsi + 528]", "popfq",
                "call r11",
                "pushfq", "pop [rsi + 528]",
                "fxsave64 [rsi]",
                "fninit",
                in("r11") self.0,
                in("rsi") std::ptr::from_mut(state), in("rdi") (&raw mut state.memory),
                out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
                out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
                out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
                out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
                out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
                out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
            );
        }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`.
        unsafe { libc::munmap(self.0.cast(), 4096) };
    }
}

fn forms() -> Vec<Code> {
    let is_ours = |&c: &Code| {
        let is_x87 = super::lookup(c).is_some();
        let is_mmx = crate::exec::simd::mmx::lookup(c).is_some();
        let is_x87 = is_x87 || crate::exec::fpu_transcendental::lookup(c).is_some();
        c.op_code().mode64() && (is_x87 || is_mmx && !has_other_operands(c))
    };
    Code::values().filter(is_ours).collect()
}

/// Whether it uses registers that are not in an FXSAVE area.
fn has_other_operands(code: Code) -> bool {
    let is_other = |n| {
        matches!(
            code.op_code().op_kind(n),
            Kind::r32_reg | Kind::r64_reg | Kind::r32_or_mem | Kind::r64_or_mem | Kind::seg_rDI
        )
    };
    (0..code.op_code().op_count()).any(is_other)
}

/// Encodes `code` with ST(i), MM0 and MM1, XMM1, or memory at RDI.
fn encode(code: Code, i: u32, immediate: u8) -> Vec<u8> {
    let mut insn = Instruction::new();
    insn.set_code(code);
    for n in 0..code.op_code().op_count() {
        match code.op_code().op_kind(n) {
            Kind::st0 => insn.set_op_register(n, Register::ST0),
            Kind::sti_opcode => insn.set_op_register(n, Register::ST0 + i),
            Kind::mm_reg | Kind::mm_rm => insn.set_op_register(n, Register::MM0 + n),
            Kind::mm_or_mem if i < 4 => insn.set_op_register(n, Register::MM0 + n),
            Kind::xmm_reg | Kind::xmm_rm => insn.set_op_register(n, Register::XMM1),
            Kind::imm8 => {
                insn.set_op_kind(n, iced_x86::OpKind::Immediate8);
                insn.set_immediate8(immediate);
            }
            _ => {
                insn.set_op_kind(n, iced_x86::OpKind::Memory);
                insn.set_memory_base(MemoryOperand::with_base(Register::RDI).base);
            }
        }
    }
    let mut encoder = Encoder::new(64);
    encoder
        .encode(&insn, 0)
        .expect("the form takes these operands");
    encoder.take_buffer()
}

/// The x87 part of an FXSAVE area.
fn fpu_of(area: &[u8; 512]) -> FpuState {
    let word = |at: usize| u16::from_le_bytes([area[at], area[at + 1]]);
    let mut fpu = FpuState::initial();
    (fpu.control, fpu.status, fpu.valid) = (word(0), word(2), area[4]);
    for i in 0..8 {
        let n = fpu.physical(i);
        fpu.registers[n].copy_from_slice(&area[32 + 16 * i..42 + 16 * i]);
    }
    let number = |at: usize| {
        area[at..at + 8]
            .iter()
            .rev()
            .fold(0, |v, &b| v << 8 | u64::from(b))
    };
    fpu.set_xmm(1, [number(XMM1), number(XMM1 + 8)]);
    fpu
}

/// Where XMM1 is in an FXSAVE area.
const XMM1: usize = 176;

fn run_here(code: &[u8], state: &State) -> State {
    let mut cpu = long_mode();
    *cpu.fpu = fpu_of(&state.fxsave);
    cpu.set_rflags(Rflags::from_bits_retain(state.rflags));
    cpu.gpr[7] = DATA;
    cpu.state.cr4 |= Cr4::OSFXSR;
    cpu.phys.write_bytes(Hpa(DATA), &state.memory);
    execute(&mut cpu, code).expect("no exception is pending");
    let mut after = state.clone();
    cpu.phys.read_bytes(Hpa(DATA), &mut after.memory);
    after.rflags = cpu.rflags().bits();
    let fpu = &cpu.fpu;
    after.fxsave[..2].copy_from_slice(&fpu.control.to_le_bytes());
    after.fxsave[2..4].copy_from_slice(&fpu.status.to_le_bytes());
    after.fxsave[4] = fpu.valid;
    for i in 0..8 {
        let at = 32 + 16 * i;
        after.fxsave[at..at + 10].copy_from_slice(&fpu.registers[fpu.physical(i)]);
    }
    let [low, high] = fpu.xmm(1).map(u64::to_le_bytes);
    after.fxsave[XMM1..XMM1 + 8].copy_from_slice(&low);
    after.fxsave[XMM1 + 8..XMM1 + 16].copy_from_slice(&high);
    after
}

fn extended() -> impl Strategy<Value = [u8; 10]> {
    let exponent = prop_oneof![
        4 => 0x3fc0u16..0x4040,
        3 => 0x3ffcu16..0x4003,
        2 => Just(0u16),
        2 => Just(0x7fffu16),
        1 => 1u16..4,
        1 => 0x7ffbu16..0x7fff,
        1 => 0x3f80u16..0x3f90,
        1 => 0x3c00u16..0x3c10,
        1 => 0x407du16..0x4081,
        1 => 0x43fcu16..0x4401,
        1 => 0u16..0x8000,
    ];
    let low = prop_oneof![
        4 => any::<u64>().prop_map(|v| v | 1 << 63),
        2 => Just(1u64 << 63),
        1 => Just(0u64),
        1 => Just(u64::MAX),
        1 => any::<u64>(),
        1 => any::<u64>().prop_map(|v| v | 3 << 62),
        2 => (0u64..1000, 0u32..64).prop_map(|(v, s)| v << s),
        1 => (0u32..64).prop_map(|s| u64::MAX << s),
        1 => (0u32..40).prop_map(|s| 1 << 63 | 1u64 << s),
        1 => Just(1u64 << 63 | 1),
    ];
    (exponent, low, any::<bool>()).prop_map(|(exponent, low, sign)| {
        let mut bytes = [0; 10];
        bytes[..8].copy_from_slice(&low.to_le_bytes());
        let high = exponent | u16::from(sign) << 15;
        bytes[8..].copy_from_slice(&high.to_le_bytes());
        bytes
    })
}

fn memory() -> impl Strategy<Value = [u8; 16]> {
    let double = prop_oneof![
        any::<u64>(),
        (0x3f0u64..0x420, any::<u64>()).prop_map(|(e, f)| e << 52 | f >> 12),
        (0u64..3, any::<u64>()).prop_map(|(e, f)| e << 52 | f >> 12),
        any::<u64>().prop_map(|f| 0x7ff << 52 | f >> 12),
        (0u32..20, any::<u32>()).prop_map(|(e, f)| u64::from((e + 0x78) << 23 | f >> 9)),
        any::<u32>().prop_map(|f| u64::from(f >> 9)),
        any::<u32>().prop_map(|f| u64::from(0xff << 23 | f >> 9)),
        Just(0u64),
        0u64..100,
    ];
    let digits = prop::collection::vec(0u8..10, 20).prop_map(|d| {
        let mut bytes = [0; 16];
        for n in 0..9 {
            bytes[n] = d[2 * n] << 4 | d[2 * n + 1];
        }
        bytes[9] = d[18] << 7;
        bytes
    });
    let number = (double, extended()).prop_map(|(d, e)| {
        let mut bytes = [0; 16];
        bytes[..10].copy_from_slice(&e);
        bytes[15] = e[0];
        bytes[..8].copy_from_slice(&d.to_le_bytes());
        bytes
    });
    let wide = extended().prop_map(|e| {
        let mut bytes = [0; 16];
        bytes[..10].copy_from_slice(&e);
        bytes
    });
    prop_oneof![4 => number, 1 => digits, 1 => wide]
}

fn state() -> impl Strategy<Value = State> {
    let control = (
        0u16..4,
        0u16..4,
        prop_oneof![3 => Just(0x3fu16), 1 => 0u16..64],
    );
    let valid = prop_oneof![3 => Just(0u8), 4 => any::<u8>(), 6 => Just(0xffu8)];
    (
        prop::collection::vec(extended(), 8),
        memory(),
        (control, any::<u16>(), valid, 0u64..256),
    )
        .prop_map(
            |(registers, memory, ((rounding, precision, masks), status, valid, rflags))| {
                let mut fxsave = [0; 512];
                let control = 0x40 | rounding << 10 | precision << 8 | masks;
                // Flags of masked exceptions only: nothing is pending.
                let status = status & 0x7f40 | status & masks;
                fxsave[..2].copy_from_slice(&control.to_le_bytes());
                fxsave[2..4].copy_from_slice(&status.to_le_bytes());
                fxsave[4] = valid;
                fxsave[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
                fxsave[XMM1..XMM1 + 10].copy_from_slice(&registers[7]);
                for (i, register) in registers.iter().enumerate() {
                    fxsave[32 + 16 * i..42 + 16 * i].copy_from_slice(register);
                }
                let rflags = rflags & 0xd5 | 2;
                State {
                    fxsave,
                    memory,
                    rflags,
                }
            },
        )
}

impl core::fmt::Debug for State {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(&summary(self))
    }
}

fn is_transcendental(code: Code) -> bool {
    crate::exec::fpu_transcendental::lookup(code).is_some()
}

/// Whether the result is defined, and does not depend on how many bits of pi a processor has.
fn is_in_range(code: Code, state: &State) -> bool {
    use iced_x86::Mnemonic as M;
    let fpu = fpu_of(&state.fxsave);
    let exponent = |i: usize| {
        let register = fpu.registers[fpu.physical(i)];
        i32::from(u16::from_le_bytes([register[8], register[9]]) & 0x7fff)
    };
    // A NaN, or small, or so large that it is refused.
    let of = |limit: i32| exponent(0) < limit || exponent(0) == 0x7fff;
    match code.mnemonic() {
        M::Fsin | M::Fcos | M::Fsincos | M::Fptan => of(0x3ffe) || exponent(0) >= 0x403e,
        M::F2xm1 => of(0x3fff),
        M::Fyl2xp1 => of(0x3ffd),
        _ => true,
    }
}

/// Takes numbers that differ by one unit in the last place, as the SDM allows it ("Transcendental
/// Instruction Accuracy"), from `other`.
fn take_neighbours(state: &mut State, other: &State) {
    for at in (0..8).map(|i| 32 + 16 * i) {
        let number = |area: &[u8; 512]| {
            let bytes = area[at..at + 10].iter().rev();
            let bits = bytes.fold(0_u128, |v, &b| v << 8 | u128::from(b));
            // Without the integer bit, so that the exponents follow each other.
            bits >> 64 << 63 | bits & ((1 << 63) - 1)
        };
        if number(&state.fxsave).abs_diff(number(&other.fxsave)) <= 1 {
            state.fxsave[at..at + 10].copy_from_slice(&other.fxsave[at..at + 10]);
        }
    }
}

/// What is compared.
fn summary(state: &State) -> String {
    let hex = |bytes: &[u8]| {
        bytes
            .iter()
            .rev()
            .map(|b| format!("{b:02x}"))
            .collect::<String>()
    };
    let fpu = fpu_of(&state.fxsave);
    let mut text = format!(
        "control {:04x} status {:04x} valid {:02x} flags {:02x} memory {}\n",
        fpu.control,
        fpu.status,
        fpu.valid,
        state.rflags & 0xd5,
        hex(&state.memory[..10])
    );
    for i in 0..8 {
        text += &format!(" {}", hex(&fpu.registers[fpu.physical(i)]));
    }
    text += &format!(" {:x?}", fpu.xmm(1));
    text
}

fn check(code: Code, page: &Page) -> Result<(), String> {
    let config = ProptestConfig {
        cases: cases(),
        failure_persistence: None,
        max_shrink_iters: 0,
        ..ProptestConfig::default()
    };
    let seed = proptest::test_runner::TestRng::deterministic_rng(Default::default());
    let mut runner = proptest::test_runner::TestRunner::new_with_rng(config, seed);
    let outcome = runner.run(&(state(), 0u32..8), |(state, i)| {
        let bytes = encode(code, i, state.memory[15]);
        let mut there = state.clone();
        page.run(&bytes, &mut there);
        let here = run_here(&bytes, &state);
        if is_transcendental(code) && !is_in_range(code, &state) {
            return Ok(());
        }
        let mut seen = there.clone();
        if is_transcendental(code) {
            take_neighbours(&mut seen, &here);
        }
        if summary(&hide(code, here.clone())) != summary(&hide(code, seen)) {
            let [before, here, there] = [&state, &here, &there].map(summary);
            let text = format!("{code:?} st({i})\nbefore {before}\nhere   {here}\nthere  {there}");
            return Err(TestCaseError::fail(text));
        }
        Ok(())
    });
    outcome.map_err(|e| match e {
        proptest::test_runner::TestError::Fail(reason, _) => reason.to_string(),
        abort => abort.to_string(),
    })
}

#[test]
fn x87_forms_agree_with_the_host_cpu() {
    let page = Page::new();
    let failures: Vec<_> = forms()
        .into_iter()
        .filter_map(|code| check(code, &page).err())
        .collect();
    for failure in &failures {
        eprintln!("{failure}\n");
    }
    assert!(failures.is_empty(), "{} forms differ", failures.len());
}
