//! The same state and the same instruction on this processor and on the host's.
#![expect(
    unsafe_code,
    reason = "the host processor executes the instruction under test"
)]

use std::arch::asm;
use std::arch::is_x86_feature_detected;

use vmx_model::addr::Hpa;
use vmx_model::arch::Cr4;

use crate::Cpu;
use crate::cpuid::Profile;
use crate::system::SystemRegisters;
use crate::test_cpu::{DATA, execute, long_mode};
use crate::xstate;

/// Where the emulated processor has the image to load, the image it saved, and the operand.
const INPUT: u64 = DATA;
const OUTPUT: u64 = DATA + 0x1000;
const OPERAND: u64 = DATA + 0x2000;

const CASES: usize = 300;

/// An area for FXSAVE or XSAVE.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Image([u8; 1024]);

const EMPTY: Image = Image([0; 1024]);

/// Executes an instruction between FXRSTOR64 and FXSAVE64 on the host; its operand is at RDI.
type Native = fn(&Image, &mut Image, &mut Image);

/// An instruction: its name, its bytes, and the host's execution of it.
macro_rules! instruction {
    ($name:literal, $($byte:literal),+) => {
        ($name, &[$($byte),+], |input, output, operand| {
            let mut own = EMPTY;
            // SAFETY: the areas have the size and alignment that the instructions need. The FPU
            // and SSE state of the thread is saved first and restored last, so the compiler sees no
            // register change; the instruction writes at most 1024 bytes at RDI.
            unsafe {
                asm!(
                    "fxsave64 [{own}]",
                    "fxrstor64 [{input}]",
                    concat!(".byte 0x90", $(", ", $byte),+),
                    "fxsave64 [{output}]",
                    "fxrstor64 [{own}]",
                    own = in(reg) &mut own,
                    input = in(reg) input,
                    output = in(reg) output,
                    in("rdi") operand,
                );
            }
        })
    };
}

/// What must hold of the image that an instruction starts from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Start {
    /// Any state.
    Any,
    /// No unmasked exception: the instruction waits for pending ones.
    Masked,
}

type Instruction = (&'static str, &'static [u8], Native);

const INSTRUCTIONS: &[(Instruction, Start)] = &[
    (instruction!("NOP", 0x90), Start::Any),
    (instruction!("FNINIT", 0xdb, 0xe3), Start::Any),
    (instruction!("FNCLEX", 0xdb, 0xe2), Start::Any),
    (instruction!("FNSTCW", 0xd9, 0x3f), Start::Any),
    (instruction!("FNSTSW", 0xdd, 0x3f), Start::Any),
    (instruction!("FNSTENV", 0xd9, 0x37), Start::Any),
    (
        instruction!("FNSTENV, 14 bytes", 0x66, 0xd9, 0x37),
        Start::Any,
    ),
    (instruction!("FNSAVE", 0xdd, 0x37), Start::Any),
    (
        instruction!("FNSAVE, 94 bytes", 0x66, 0xdd, 0x37),
        Start::Any,
    ),
    (instruction!("FLDCW", 0xd9, 0x2f), Start::Masked),
    (instruction!("FLDENV", 0xd9, 0x27), Start::Masked),
    (
        instruction!("FLDENV, 14 bytes", 0x66, 0xd9, 0x27),
        Start::Masked,
    ),
    (instruction!("FRSTOR", 0xdd, 0x27), Start::Masked),
    (
        instruction!("FRSTOR, 94 bytes", 0x66, 0xdd, 0x27),
        Start::Masked,
    ),
    (instruction!("FFREE", 0xdd, 0xc3), Start::Masked),
    (instruction!("FINCSTP", 0xd9, 0xf7), Start::Masked),
    (instruction!("FDECSTP", 0xd9, 0xf6), Start::Masked),
    (instruction!("FNOP", 0xd9, 0xd0), Start::Masked),
    (instruction!("EMMS", 0x0f, 0x77), Start::Masked),
    (instruction!("FXSAVE64", 0x48, 0x0f, 0xae, 0x07), Start::Any),
    (instruction!("FXSAVE", 0x0f, 0xae, 0x07), Start::Any),
    (instruction!("STMXCSR", 0x0f, 0xae, 0x1f), Start::Any),
    (
        instruction!("MOVAPS XMM1, [RDI]", 0x0f, 0x28, 0x0f),
        Start::Any,
    ),
    (
        instruction!("MOVAPS [RDI], XMM1", 0x0f, 0x29, 0x0f),
        Start::Any,
    ),
    (
        instruction!("MOVDQA XMM9, [RDI]", 0x66, 0x44, 0x0f, 0x6f, 0x0f),
        Start::Any,
    ),
    (
        instruction!("MOVUPS XMM1, [RDI + 7]", 0x0f, 0x10, 0x4f, 0x07),
        Start::Any,
    ),
    (
        instruction!(
            "MOVDQU [RDI + 7], XMM15",
            0xf3,
            0x44,
            0x0f,
            0x7f,
            0x7f,
            0x07
        ),
        Start::Any,
    ),
    (
        instruction!("MOVNTDQ [RDI], XMM2", 0x66, 0x0f, 0xe7, 0x17),
        Start::Any,
    ),
    (
        instruction!("MOVD XMM1, [RDI]", 0x66, 0x0f, 0x6e, 0x0f),
        Start::Any,
    ),
    (
        instruction!("MOVQ XMM1, RDI's memory", 0x66, 0x48, 0x0f, 0x6e, 0x0f),
        Start::Any,
    ),
    (
        instruction!("MOVD [RDI], XMM1", 0x66, 0x0f, 0x7e, 0x0f),
        Start::Any,
    ),
    (
        instruction!(
            "MOVQ [RDI], XMM1, 64-bit operand",
            0x66,
            0x48,
            0x0f,
            0x7e,
            0x0f
        ),
        Start::Any,
    ),
    (
        instruction!("MOVQ XMM1, [RDI]", 0xf3, 0x0f, 0x7e, 0x0f),
        Start::Any,
    ),
    (
        instruction!("MOVQ [RDI], XMM1", 0x66, 0x0f, 0xd6, 0x0f),
        Start::Any,
    ),
    (
        instruction!("MOVQ XMM3, XMM1", 0x66, 0x0f, 0xd6, 0xcb),
        Start::Any,
    ),
    (
        instruction!("MOVSS XMM1, [RDI]", 0xf3, 0x0f, 0x10, 0x0f),
        Start::Any,
    ),
    (
        instruction!("MOVSS [RDI], XMM1", 0xf3, 0x0f, 0x11, 0x0f),
        Start::Any,
    ),
    (
        instruction!("MOVSS XMM1, XMM2", 0xf3, 0x0f, 0x10, 0xca),
        Start::Any,
    ),
    (
        instruction!("MOVSD XMM1, [RDI]", 0xf2, 0x0f, 0x10, 0x0f),
        Start::Any,
    ),
    (
        instruction!("MOVSD [RDI], XMM1", 0xf2, 0x0f, 0x11, 0x0f),
        Start::Any,
    ),
    (
        instruction!("MOVSD XMM1, XMM2", 0xf2, 0x0f, 0x10, 0xca),
        Start::Any,
    ),
    (
        instruction!("MOVLPS XMM1, [RDI]", 0x0f, 0x12, 0x0f),
        Start::Any,
    ),
    (
        instruction!("MOVHPS XMM1, [RDI]", 0x0f, 0x16, 0x0f),
        Start::Any,
    ),
    (
        instruction!("MOVLPD [RDI], XMM1", 0x66, 0x0f, 0x13, 0x0f),
        Start::Any,
    ),
    (
        instruction!("MOVHPD [RDI], XMM1", 0x66, 0x0f, 0x17, 0x0f),
        Start::Any,
    ),
    (
        instruction!("MOVHLPS XMM1, XMM2", 0x0f, 0x12, 0xca),
        Start::Any,
    ),
    (
        instruction!("MOVLHPS XMM1, XMM2", 0x0f, 0x16, 0xca),
        Start::Any,
    ),
    (
        instruction!("XORPS XMM1, XMM1", 0x0f, 0x57, 0xc9),
        Start::Any,
    ),
    (
        instruction!("PXOR XMM1, [RDI]", 0x66, 0x0f, 0xef, 0x0f),
        Start::Any,
    ),
    (
        instruction!("ORPD XMM1, [RDI]", 0x66, 0x0f, 0x56, 0x0f),
        Start::Any,
    ),
    (
        instruction!("POR XMM1, XMM2", 0x66, 0x0f, 0xeb, 0xca),
        Start::Any,
    ),
    (
        instruction!("ANDPS XMM1, [RDI]", 0x0f, 0x54, 0x0f),
        Start::Any,
    ),
    (
        instruction!("PAND XMM1, XMM2", 0x66, 0x0f, 0xdb, 0xca),
        Start::Any,
    ),
    (
        instruction!("ANDNPD XMM1, [RDI]", 0x66, 0x0f, 0x55, 0x0f),
        Start::Any,
    ),
    (
        instruction!("PANDN XMM1, XMM2", 0x66, 0x0f, 0xdf, 0xca),
        Start::Any,
    ),
];

fn random_image(random: &mut SystemRegisters) -> Image {
    let mut image = EMPTY;
    for word in image.0.chunks_exact_mut(8) {
        // A few plain values among the random ones: zeros, ones, infinities.
        let value = match random.next_random() % 4 {
            0 => 0,
            1 => 0x8000_0000_0000_0000,
            _ => random.next_random(),
        };
        word.copy_from_slice(&value.to_le_bytes());
    }
    image
}

/// Makes `image` one that FXRSTOR64 takes, with canonical pointers.
fn make_valid(image: &mut Image, start: Start) {
    let mask = |range: core::ops::Range<usize>, value: u64, image: &mut Image| {
        for (byte, m) in image.0[range].iter_mut().zip(value.to_le_bytes()) {
            *byte &= m;
        }
    };
    mask(6..8, 0x7ff, image);
    mask(8..16, 0x7fff_ffff_ffff, image);
    mask(16..24, 0x7fff_ffff_ffff, image);
    mask(24..32, 0xffff, image);
    if start == Start::Masked {
        image.0[0] |= 0x3f;
    }
}

fn emulated(code: &[u8], input: &Image, operand: &mut Image) -> Image {
    let mut cpu = processor();
    cpu.phys.write_bytes(Hpa(INPUT), &input.0);
    cpu.phys.write_bytes(Hpa(OPERAND), &operand.0);
    (cpu.gpr[6], cpu.gpr[2], cpu.gpr[7]) = (INPUT, OUTPUT, OPERAND);
    for code in [&[0x48, 0x0f, 0xae, 0x0e], code, &[0x48, 0x0f, 0xae, 0x02]] {
        execute(&mut cpu, code).expect("no instruction of the table faults");
    }
    let mut output = EMPTY;
    cpu.phys.read_bytes(Hpa(OUTPUT), &mut output.0);
    cpu.phys.read_bytes(Hpa(OPERAND), &mut operand.0);
    output
}

fn processor() -> Cpu {
    let mut cpu = long_mode();
    cpu.set_cpuid(Profile::EVERYTHING.table());
    cpu.state.cr4 |= Cr4::OSFXSR | Cr4::OSXSAVE;
    cpu.system.xcr0 = 7;
    cpu
}

/// Leaves out what differs between processors: MXCSR_MASK (AMD's have bit 17), and the opcode and
/// the pointers of the last x87 instruction, which AMD's save as zeros unless an exception is
/// pending (also when the host's kernel switches threads between two instructions).
fn comparable(mut image: Image) -> [u8; 1024] {
    image.0[28..32].fill(0);
    let is_pending = image.0[2] & 0x80 != 0;
    if !is_pending {
        image.0[6..24].fill(0);
    }
    image.0
}

/// As [`comparable`], for what an instruction stores: an area, an environment, or words.
fn comparable_operand(name: &str, mut image: Image) -> [u8; 1024] {
    let (status, pointers) = match name {
        _ if name.starts_with("FXSAVE") => return comparable(image),
        "FNSTENV" | "FNSAVE" => (4, 12..28),
        "FNSTENV, 14 bytes" | "FNSAVE, 94 bytes" => (2, 6..14),
        _ => return image.0,
    };
    if image.0[status] & 0x80 == 0 {
        image.0[pointers].fill(0);
    }
    image.0
}

#[track_caller]
fn assert_same(ours: [u8; 1024], theirs: [u8; 1024], context: &str) {
    let differs = (0..1024).find(|&n| ours[n] != theirs[n]);
    if let Some(n) = differs {
        panic!(
            "byte {n} is {:02x}, the host's {:02x}: {context}",
            ours[n], theirs[n]
        );
    }
}

#[test]
fn x87_control_and_fxsave_leave_what_the_host_leaves() {
    let mut random = SystemRegisters::default();
    for &((name, code, native), start) in INSTRUCTIONS {
        for case in 0..CASES {
            let mut input = random_image(&mut random);
            make_valid(&mut input, start);
            let operand = random_image(&mut random);
            let (mut ours, mut theirs, mut output) = (operand, operand, EMPTY);
            native(&input, &mut output, &mut theirs);
            let seen = emulated(code, &input, &mut ours);
            let context = format!("{name}, case {case}, from {:02x?}", &input.0[..32]);
            assert_same(comparable(seen), comparable(output), &context);
            let operand = |image: Image| comparable_operand(name, image);
            assert_same(
                operand(ours),
                operand(theirs),
                &format!("operand of {context}"),
            );
        }
    }
}

/// Executes XRSTOR64 and then a saving instruction with the given masks.
macro_rules! xsave_native {
    ($save:literal) => {
        |input: &Image, output: &mut Image, restore: u32, save: u32| {
            let mut own = EMPTY;
            // SAFETY: as in `instruction`; components 0 to 2 of the thread are saved first and
            // restored last.
            unsafe {
                asm!(
                    "mov eax, 7",
                    "xor edx, edx",
                    "xsave64 [{own}]",
                    "mov eax, {restore:e}",
                    "xrstor64 [{input}]",
                    "mov eax, {save:e}",
                    concat!($save, " [{output}]"),
                    "mov eax, 7",
                    "xrstor64 [{own}]",
                    own = in(reg) &mut own,
                    input = in(reg) input,
                    output = in(reg) output,
                    restore = in(reg) restore,
                    save = in(reg) save,
                    out("eax") _,
                    out("edx") _,
                );
            }
        }
    };
}

type NativeXsave = fn(&Image, &mut Image, u32, u32);

#[test]
fn xsave_and_xrstor_leave_what_the_host_leaves() {
    if !is_x86_feature_detected!("xsavec") || !is_x86_feature_detected!("avx") {
        eprintln!("skipped: the host has no XSAVEC or no AVX");
        return;
    }
    let rows: &[(&str, [u8; 4], NativeXsave)] = &[
        ("XSAVE64", super::XSAVE, xsave_native!("xsave64")),
        ("XSAVEC64", super::XSAVEC, xsave_native!("xsavec64")),
    ];
    let mut random = SystemRegisters::default();
    for &(name, save, native) in rows {
        for case in 0..CASES {
            let mut input = random_image(&mut random);
            make_valid(&mut input, Start::Any);
            input.0[512..576].fill(0);
            input.0[512] = (random.next_random() & 7) as u8;
            let restore = random.next_random() as u32 & 7;
            let saved = random.next_random() as u32 & 7;
            let before = random_image(&mut random);
            let mut output = before;
            output.0[512..576].fill(0);
            let mut ours = output;
            // What XRSTOR does not load comes from the thread's own state: load all first.
            let all = 7 | restore;
            native(&input, &mut output, all, saved);
            xsave_emulated(save, &input, &mut ours, all, saved);
            let context = format!(
                "{name}, case {case}, XSTATE_BV {:x}, save {saved:x}",
                input.0[512]
            );
            assert_same(comparable(ours), comparable(output), &context);
        }
    }
}

fn xsave_emulated(save: [u8; 4], input: &Image, output: &mut Image, restore: u32, saved: u32) {
    let mut cpu = processor();
    cpu.phys.write_bytes(Hpa(INPUT), &input.0);
    cpu.phys.write_bytes(Hpa(OUTPUT), &output.0);
    for (code, at, mask) in [(super::XRSTOR, INPUT, restore), (save, OUTPUT, saved)] {
        cpu.gpr[7] = at;
        cpu.set_edx_eax(u64::from(mask));
        execute(&mut cpu, &code).expect("the area is valid");
    }
    cpu.phys.read_bytes(Hpa(OUTPUT), &mut output.0);
}

/// An area for the components of AVX-512 in the compacted form.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Wide([u8; 4096]);

/// The components that are compared: in the compacted form every vendor has them at the same place.
const COMPONENTS: u64 = xstate::X87 | xstate::SSE | xstate::AVX | xstate::AVX512;

/// On the host: loads all of `input`, and saves the components of `saved`.
fn wide_native(input: &Wide, output: &mut Wide, saved: u32) {
    let mut own = Wide([0; 4096]);
    // SAFETY: as in `instruction`; all components that change are saved first and restored last.
    unsafe {
        asm!(
            "mov eax, {all}",
            "xor edx, edx",
            "xsave64 [{own}]",
            "xrstor64 [{input}]",
            "mov eax, {saved:e}",
            "xsavec64 [{output}]",
            "mov eax, {all}",
            "xrstor64 [{own}]",
            own = in(reg) &mut own,
            input = in(reg) input,
            output = in(reg) output,
            saved = in(reg) saved,
            all = const COMPONENTS,
            out("eax") _,
            out("edx") _,
        );
    }
}

fn wide_emulated(input: &Wide, output: &mut Wide, saved: u32) {
    let mut cpu = super::avx512::prepare(long_mode());
    cpu.system.xcr0 = COMPONENTS;
    cpu.phys.write_bytes(Hpa(INPUT), &input.0);
    cpu.phys.write_bytes(Hpa(OUTPUT), &output.0);
    let all = COMPONENTS as u32;
    for (code, at, mask) in [(super::XRSTOR, INPUT, all), (super::XSAVEC, OUTPUT, saved)] {
        cpu.gpr[7] = at;
        cpu.set_edx_eax(u64::from(mask));
        execute(&mut cpu, &code).expect("the area is valid");
    }
    cpu.phys.read_bytes(Hpa(OUTPUT), &mut output.0);
}

#[test]
fn the_components_of_avx512_are_where_the_host_has_them() {
    if !is_x86_feature_detected!("avx512f") || !is_x86_feature_detected!("xsavec") {
        eprintln!("skipped: the host has no AVX-512 or no XSAVEC");
        return;
    }
    let mut random = SystemRegisters::default();
    for case in 0..CASES {
        let mut input = Wide([0; 4096]);
        for piece in input.0[..3072].chunks_exact_mut(1024) {
            piece.copy_from_slice(&random_image(&mut random).0);
        }
        let mut legacy = EMPTY;
        legacy.0.copy_from_slice(&input.0[..1024]);
        make_valid(&mut legacy, Start::Any);
        input.0[..1024].copy_from_slice(&legacy.0);
        input.0[512..576].fill(0);
        let layout = COMPONENTS | 1 << 63;
        input.0[512..520].copy_from_slice(&(random.next_random() & COMPONENTS).to_le_bytes());
        input.0[520..528].copy_from_slice(&layout.to_le_bytes());
        let saved = random.next_random() as u32 & COMPONENTS as u32;
        let mut output = Wide([0; 4096]);
        let mut ours = output;
        wide_native(&input, &mut output, saved);
        wide_emulated(&input, &mut ours, saved);
        for (n, (ours, theirs)) in ours.0.chunks(1024).zip(output.0.chunks(1024)).enumerate() {
            let [mut ours, mut theirs] = [ours, theirs].map(|piece| {
                let mut image = EMPTY;
                image.0.copy_from_slice(piece);
                image
            });
            if n == 0 {
                (ours, theirs) = (Image(comparable(ours)), Image(comparable(theirs)));
            }
            let in_use = input.0[512];
            let context = format!("piece {n}, case {case}, XSTATE_BV {in_use:x}, save {saved:x}");
            assert_same(ours.0, theirs.0, &context);
        }
    }
}
