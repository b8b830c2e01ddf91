//! The same operands through the same instruction, on this processor and on the host's.
#![expect(
    unsafe_code,
    reason = "the host processor executes the instruction under test"
)]

use std::arch::{asm, is_x86_feature_detected};

use iced_x86::{
    Code, CpuidFeature, Encoder, Instruction, MemoryOperand, OpCodeOperandKind as Kind, Register,
};
use proptest::prelude::*;
use vmx_model::addr::Hpa;
use vmx_model::arch::{Cr4, Rflags};
use vmx_model::event::Exception;

use super::vector::is_vector_form;
use super::{integer, lookup};
use crate::cpuid::Profile;
use crate::test_cpu::{DATA, GP, UD, execute, long_mode};
use crate::{Cpu, Fault};

/// What an instruction reads and writes here: XMM0, RAX, flags, MXCSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(16))]
struct State {
    to: u128,
    from: u128,
    rax: u64,
    rflags: u64,
    mxcsr: u32,
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

    /// Executes `code`, which uses XMM0, XMM1, RAX, the flags and the memory at RDI alone.
    fn run(&self, code: &[u8], state: &mut State) {
        let mut own = 0_u32;
        // SAFETY: the page is ours and large enough; the code is one instruction and a RET, all
        // exceptions are masked, and MXCSR is put back.
        unsafe {
            std::ptr::copy_nonoverlapping(code.as_ptr(), self.0, code.len());
            *self.0.add(code.len()) = 0xc3;
            asm!(
                "stmxcsr [r10]", "ldmxcsr [rsi + 48]",
                "movaps xmm0, [rsi]", "movaps xmm1, [rsi + 16]",
                "mov rax, [rsi + 32]",
                "call r11",
                "pushfq", "pop [rsi + 40]",
                "mov [rsi + 32], rax",
                "movaps [rsi], xmm0",
                "stmxcsr [rsi + 48]", "ldmxcsr [r10]",
                in("r10") &raw mut own, in("r11") self.0,
                in("rsi") std::ptr::from_mut(state), in("rdi") &raw const state.from,
                out("rax") _, out("xmm0") _, out("xmm1") _,
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

/// The legacy instruction forms of this directory that the host has.
fn forms() -> Vec<Code> {
    assert!(
        is_x86_feature_detected!("sse4.2"),
        "the oracle needs SSE4.2"
    );
    assert!(is_x86_feature_detected!("aes") && is_x86_feature_detected!("pclmulqdq"));
    // What is behind features of no profile is left to `conformance fuzz isa`.
    let offered = Profile::EVERYTHING.features();
    let is_ours = |&c: &Code| {
        let is_legacy = c.encoding() == iced_x86::EncodingKind::Legacy;
        let is_here = integer::lookup(c).is_some() || lookup(c).is_some();
        let is_usable = c.op_code().mode64() && offered.allows(c) && host_has(c);
        is_legacy && is_usable && is_vector_form(c) && is_here && !is_approximate(c)
    };
    Code::values().filter(is_ours).collect()
}

/// Whether the host has the form, of the features that processors with SSE4.2 and AES may lack.
fn host_has(code: Code) -> bool {
    code.cpuid_features().iter().all(|feature| match feature {
        CpuidFeature::GFNI => is_x86_feature_detected!("gfni"),
        CpuidFeature::SHA => is_x86_feature_detected!("sha"),
        _ => true,
    })
}

/// Encodes `code` with XMM0 or RAX first, then XMM1, RAX or [RDI] as the form and `memory` say.
fn encode(code: Code, memory: bool, immediate: u8) -> Vec<u8> {
    let mut insn = Instruction::new();
    insn.set_code(code);
    for n in 0..code.op_code().op_count() {
        let vector = if n == 0 && code.op_code().op_count() > 1 {
            Register::XMM0
        } else {
            Register::XMM1
        };
        match code.op_code().op_kind(n) {
            Kind::imm8 => {
                insn.set_op_kind(n, iced_x86::OpKind::Immediate8);
                insn.set_immediate8(immediate);
            }
            Kind::r32_reg => insn.set_op_register(n, Register::EAX),
            Kind::r64_reg => insn.set_op_register(n, Register::RAX),
            Kind::xmm_reg | Kind::xmm_rm => insn.set_op_register(n, vector),
            _ if memory => {
                insn.set_op_kind(n, iced_x86::OpKind::Memory);
                insn.set_memory_base(MemoryOperand::with_base(Register::RDI).base);
            }
            Kind::r32_or_mem => insn.set_op_register(n, Register::EAX),
            Kind::r64_or_mem => insn.set_op_register(n, Register::RAX),
            _ => insn.set_op_register(n, vector),
        }
    }
    let mut encoder = Encoder::new(64);
    encoder
        .encode(&insn, 0)
        .expect("the form takes these operands");
    encoder.take_buffer()
}

fn emulated(cpu: &mut Cpu, code: &[u8], state: &State) -> State {
    cpu.fpu.set_lanes(0, [state.to, 0, 0, 0]);
    cpu.fpu.set_lanes(1, [state.from, 0, 0, 0]);
    cpu.fpu.mxcsr = state.mxcsr;
    cpu.gpr[0] = state.rax;
    cpu.gpr[7] = DATA;
    cpu.phys.write_bytes(Hpa(DATA), &state.from.to_le_bytes());
    cpu.set_rflags(Rflags::from_bits_retain(state.rflags));
    assert_eq!(execute(cpu, code), Ok(()), "{code:02x?}");
    let mut from = [0; 16];
    cpu.phys.read_bytes(Hpa(DATA), &mut from);
    State {
        to: cpu.fpu.lanes(0)[0],
        from: u128::from_le_bytes(from),
        rax: cpu.gpr[0],
        rflags: cpu.rflags().bits(),
        mxcsr: cpu.fpu.mxcsr,
    }
}

/// Numbers at the edges of single and double precision and of the integers.
fn value() -> impl Strategy<Value = u128> {
    let single = prop::sample::select(vec![
        0_u32,
        1,
        0x007f_ffff,
        0x0080_0000,
        0x3f80_0000,
        0x7f7f_ffff,
        0x7f80_0000,
        0x7f80_0001,
        0x7fc0_0000,
        0x8000_0000,
        0x8000_0001,
        0xff80_0000,
        0xffff_ffff,
        0x4f00_0000,
        0x7fff_8000,
    ]);
    let double = prop::sample::select(vec![
        0_u64,
        1,
        0x000f_ffff_ffff_ffff,
        0x0010_0000_0000_0000,
        0x3ff0_0000_0000_0000,
        0x7fef_ffff_ffff_ffff,
        0x7ff0_0000_0000_0000,
        0x7ff0_0000_0000_0001,
        0x41e0_0000_0000_0000,
        0x43e0_0000_0000_0000,
        0x3690_0000_0000_0000,
        0x8000_0000_0000_0000,
        0xffff_ffff_ffff_ffff,
    ]);
    prop_oneof![
        any::<u128>(),
        prop::array::uniform4(single)
            .prop_map(|w| w.iter().fold(0, |v, &w| v << 32 | u128::from(w))),
        prop::array::uniform2(double)
            .prop_map(|[low, high]| u128::from(high) << 64 | u128::from(low)),
        (0_u128..150),
    ]
}

#[test]
fn every_form_is_as_on_the_host() {
    let page = Page::new();
    let forms = forms();
    assert!(forms.len() > 185, "only {} forms", forms.len());
    let mut cpu = long_mode();
    cpu.state.cr4 |= Cr4::OSFXSR | Cr4::OSXMMEXCPT;
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 1000,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let strategy = (
        value(),
        value(),
        any::<u64>(),
        any::<u8>(),
        any::<bool>(),
        any::<u32>(),
    );
    let cpu = std::cell::RefCell::new(&mut cpu);
    let result = runner.run(&strategy, |(to, from, rax, immediate, memory, random)| {
        // Rounding, FTZ, DAZ and flags at random; all exceptions masked.
        let mxcsr = random & 0xe07f | 0x1f80;
        for &code in &forms {
            let bytes = encode(code, memory && takes_memory(code), immediate);
            let before = State {
                to,
                from,
                rax,
                rflags: 0x202,
                mxcsr,
            };
            let mut native = before;
            page.run(&bytes, &mut native);
            let ours = emulated(&mut cpu.borrow_mut(), &bytes, &before);
            native.rflags &= Rflags::STATUS.bits();
            let ours = State {
                rflags: ours.rflags & Rflags::STATUS.bits(),
                ..ours
            };
            let changes_flags = sets_flags(code);
            if !changes_flags {
                prop_assert_eq!(ours.rflags, 0, "{:?} keeps the flags", code);
                native.rflags = 0;
            }
            prop_assert_eq!(ours, native, "{:?} from {:x?}", code, before);
        }
        Ok(())
    });
    result.expect("no form differs");
}

fn takes_memory(code: Code) -> bool {
    let kinds = code.op_code().op_kinds();
    kinds
        .iter()
        .any(|k| matches!(k, Kind::xmm_or_mem | Kind::r32_or_mem | Kind::r64_or_mem))
}

/// Whether processors differ in the result.
fn is_approximate(code: Code) -> bool {
    use iced_x86::Mnemonic as M;
    matches!(
        code.mnemonic(),
        M::Rcpps | M::Rcpss | M::Rsqrtps | M::Rsqrtss
    )
}

fn sets_flags(code: Code) -> bool {
    use iced_x86::Mnemonic as M;
    matches!(
        code.mnemonic(),
        M::Ptest | M::Comiss | M::Comisd | M::Ucomiss | M::Ucomisd
    )
}

/// #XM as the end of an instruction.
const XM: crate::Exec = Err(Fault::Exception(Exception::plain(19)));

#[test]
fn an_unmasked_exception_comes_before_the_result() {
    // DIVSD XMM0, XMM1; MULSD XMM0, XMM1.
    let divsd = [0xf2, 0x0f, 0x5e, 0xc1];
    let mulsd = [0xf2, 0x0f, 0x59, 0xc1];
    let one = 1.0_f64.to_bits();
    let power = |exponent: i64| ((exponent + 1023) as u64) << 52;
    let rows = [
        // MXCSR before, code, operands, end, flags after.
        (0x1d80, divsd, one, 0, XM, 0x04),
        (0x1f80, divsd, one, 0, Ok(()), 0x04),
        (0x1f00, divsd, 0, 0, XM, 0x01),
        // An exact tiny result counts only while underflow is unmasked; FTZ is ignored then.
        (
            0x1780,
            mulsd,
            0x0010_0000_0000_0000,
            0.5_f64.to_bits(),
            XM,
            0x10,
        ),
        (
            0x9780,
            mulsd,
            0x0010_0000_0000_0000,
            0.5_f64.to_bits(),
            XM,
            0x10,
        ),
        (
            0x1f80,
            mulsd,
            0x0010_0000_0000_0000,
            0.5_f64.to_bits(),
            Ok(()),
            0,
        ),
        // While overflow or underflow is unmasked, PE is for what an unbounded exponent would lose.
        (0x1b80, mulsd, power(1000), power(1000), XM, 0x08),
        (0x1b80, mulsd, power(1000) | 1, power(1000) | 1, XM, 0x28),
        (0x1b80, divsd, power(1000), power(-1000), XM, 0x08),
        (0x1b80, divsd, power(1000), power(-1000) | 1, XM, 0x28),
        (0x1780, mulsd, power(-1000), power(-1000), XM, 0x10),
        (0x1780, mulsd, power(-1000) | 1, power(-1000) | 1, XM, 0x30),
        (0x9780, divsd, power(-1000), power(1000), XM, 0x10),
        (0x1780, divsd, power(-1000), power(1000) | 1, XM, 0x30),
        // The denormal operand is found before anything is computed.
        (0x1680, mulsd, 1, 0.5_f64.to_bits(), XM, 0x02),
    ];
    for (mxcsr, code, a, b, end, flags) in rows {
        let mut cpu = long_mode();
        cpu.state.cr4 |= Cr4::OSFXSR | Cr4::OSXMMEXCPT;
        cpu.fpu.mxcsr = mxcsr;
        cpu.fpu.set_xmm(0, [a, 7]);
        cpu.fpu.set_xmm(1, [b, 0]);
        assert_eq!(execute(&mut cpu, &code), end, "{mxcsr:x} {a:x} {b:x}");
        assert_eq!(cpu.fpu.mxcsr, mxcsr | flags, "{mxcsr:x} {a:x} {b:x}");
        let is_kept = cpu.fpu.xmm(0) == [a, 7];
        assert_eq!(is_kept, end.is_err(), "{mxcsr:x} {a:x} {b:x}");
        if end == XM {
            cpu.state.cr4.remove(Cr4::OSXMMEXCPT);
            assert_eq!(execute(&mut cpu, &code), UD);
        }
    }
}

#[test]
fn packed_operands_in_memory_are_aligned() {
    // PADDB, ADDPS, CVTDQ2PS need alignment; ADDSD, CVTPS2PD and PMOVZXBW do not.
    let rows: [(&[u8], _); 6] = [
        (&[0x66, 0x0f, 0xfc, 0x07], GP),
        (&[0x0f, 0x58, 0x07], GP),
        (&[0x0f, 0x5b, 0x07], GP),
        (&[0xf2, 0x0f, 0x58, 0x07], Ok(())),
        (&[0x0f, 0x5a, 0x07], Ok(())),
        (&[0x66, 0x0f, 0x38, 0x30, 0x07], Ok(())),
    ];
    for (code, end) in rows {
        let mut cpu = long_mode();
        assert_eq!(execute(&mut cpu, code), UD, "without CR4.OSFXSR");
        cpu.state.cr4 |= Cr4::OSFXSR;
        cpu.gpr[7] = DATA + 1;
        assert_eq!(execute(&mut cpu, code), end, "{code:02x?}");
    }
}
