//! Programs of AVX, AVX2, FMA and BMI: what compilers make for x86-64-v3.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::sse::{self, PICTURE, blended, emit_pictures, pictures};
use super::{Bits, Group, Program};

const fn avx(
    name: &'static str,
    what: &'static str,
    iterations: u32,
    emit: fn(&mut CodeAssembler) -> Result<(), IcedError>,
    expected: fn(u32, u64) -> u64,
) -> Program {
    Program {
        name,
        what,
        bits: Bits::Long64,
        group: Group::Avx,
        iterations,
        emit,
        expected,
    }
}

/// Moves a constant to all lanes of a register, by way of RAX.
fn constant(
    a: &mut CodeAssembler,
    to: AsmRegisterYmm,
    low: AsmRegisterXmm,
    value: f64,
) -> Result<(), IcedError> {
    a.mov(rax, value.to_bits())?;
    a.vmovq(low, rax)?;
    a.vbroadcastsd(to, low)
}

pub(super) const MANDEL: Program = avx(
    "vmandel",
    "points of the Mandelbrot set in scalar double precision with VEX prefixes",
    2000,
    emit_mandel,
    sse::mandel,
);

fn emit_mandel(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut outer = a.create_label();
    let mut step = a.create_label();
    let mut done = a.create_label();
    for (to, low, value) in [
        (ymm2, xmm2, -1.5),
        (ymm3, xmm3, 0.01),
        (ymm7, xmm7, 4.0),
        (ymm8, xmm8, 0.000_917),
    ] {
        constant(a, to, low, value)?;
    }
    a.xor(edx, edx)?;
    a.set_label(&mut outer)?;
    a.vaddsd(xmm2, xmm2, xmm8)?;
    a.vxorpd(xmm0, xmm0, xmm0)?;
    a.vxorpd(xmm1, xmm1, xmm1)?;
    a.mov(ecx, sse::STEPS)?;
    a.set_label(&mut step)?;
    a.vmulsd(xmm4, xmm0, xmm0)?;
    a.vmulsd(xmm5, xmm1, xmm1)?;
    a.vaddsd(xmm6, xmm4, xmm5)?;
    a.vucomisd(xmm6, xmm7)?;
    a.ja(done)?;
    a.vmulsd(xmm1, xmm1, xmm0)?;
    a.vaddsd(xmm1, xmm1, xmm1)?;
    a.vaddsd(xmm1, xmm1, xmm3)?;
    a.vsubsd(xmm4, xmm4, xmm5)?;
    a.vaddsd(xmm0, xmm4, xmm2)?;
    a.inc(rdx)?;
    a.dec(ecx)?;
    a.jnz(step)?;
    a.set_label(&mut done)?;
    a.dec(edi)?;
    a.jnz(outer)?;
    a.mov(rax, rdx)?;
    a.vzeroupper()?;
    a.ret()
}

pub(super) const MATRIX: Program = avx(
    "fma",
    "products of 4x4 matrices in packed double precision by fused multiply-add",
    10_000,
    emit_matrix,
    matrix,
);

/// A rotation: its powers stay bounded.
const ROTATION: [[f64; 4]; 4] = [
    [0.8, -0.6, 0.0, 0.0],
    [0.6, 0.8, 0.0, 0.0],
    [0.0, 0.0, 0.28, -0.96],
    [0.0, 0.0, 0.96, 0.28],
];

fn emit_matrix(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut top = a.create_label();
    for (n, value) in ROTATION.iter().flatten().enumerate() {
        a.mov(rax, value.to_bits())?;
        a.mov(qword_ptr(rsi + 8 * n), rax)?;
        // The product begins with another matrix of these numbers.
        a.mov(qword_ptr(rsi + 128 + 8 * (15 - n)), rax)?;
    }
    for (n, row) in [ymm8, ymm9, ymm10, ymm11].into_iter().enumerate() {
        a.vmovapd(row, ymmword_ptr(rsi + 32 * n))?;
    }
    a.set_label(&mut top)?;
    for n in 0..4 {
        let at = 128 + 32 * n;
        a.vbroadcastsd(ymm0, qword_ptr(rsi + at))?;
        a.vbroadcastsd(ymm1, qword_ptr(rsi + at + 8))?;
        a.vbroadcastsd(ymm2, qword_ptr(rsi + at + 16))?;
        a.vbroadcastsd(ymm3, qword_ptr(rsi + at + 24))?;
        a.vmulpd(ymm0, ymm0, ymm8)?;
        a.vfmadd231pd(ymm0, ymm1, ymm9)?;
        a.vfmadd231pd(ymm0, ymm2, ymm10)?;
        a.vfmadd213pd(ymm3, ymm11, ymm0)?;
        a.vmovupd(ymmword_ptr(rsi + at), ymm3)?;
    }
    a.dec(edi)?;
    a.jnz(top)?;
    a.mov(rax, qword_ptr(rsi + 128))?;
    a.vzeroupper()?;
    a.ret()
}

fn matrix(iterations: u32, _: u64) -> u64 {
    let mut product = ROTATION;
    for (n, value) in ROTATION.iter().flatten().enumerate() {
        product[(15 - n) / 4][(15 - n) % 4] = *value;
    }
    for _ in 0..iterations {
        for row in &mut product {
            let mut sum = ROTATION[0].map(|v| v * row[0]);
            for k in 1..4 {
                for (s, v) in sum.iter_mut().zip(ROTATION[k]) {
                    *s = row[k].mul_add(v, *s);
                }
            }
            *row = sum;
        }
    }
    product[0][0].to_bits()
}

pub(super) const SCAN: Program = avx(
    "scan",
    "searching 64 KiB for a byte, 64 bytes at a time, as memchr does",
    200,
    emit_scan,
    scan,
);

/// Bytes to search.
const HAYSTACK: i32 = 64 << 10;
/// Where the needle is.
const NEEDLE: i32 = HAYSTACK - 77;

fn emit_scan(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut outer = a.create_label();
    let mut block = a.create_label();
    let mut found = a.create_label();
    let mut second = a.create_label();
    a.mov(byte_ptr(rsi + NEEDLE), 0x5a)?;
    a.xor(edx, edx)?;
    a.set_label(&mut outer)?;
    a.mov(eax, 0x5a)?;
    a.vmovd(xmm0, eax)?;
    a.vpbroadcastb(ymm0, xmm0)?;
    a.xor(ecx, ecx)?;
    a.set_label(&mut block)?;
    a.vpcmpeqb(ymm1, ymm0, ymmword_ptr(rsi + rcx))?;
    a.vpcmpeqb(ymm2, ymm0, ymmword_ptr(rsi + rcx + 32))?;
    a.vpor(ymm3, ymm1, ymm2)?;
    a.vpmovmskb(eax, ymm3)?;
    a.test(eax, eax)?;
    a.jnz(found)?;
    a.add(rcx, 64)?;
    a.cmp(ecx, HAYSTACK)?;
    a.jb(block)?;
    a.set_label(&mut found)?;
    a.vpmovmskb(eax, ymm1)?;
    a.tzcnt(eax, eax)?;
    a.cmp(eax, 32)?;
    a.jb(second)?;
    a.vpmovmskb(eax, ymm2)?;
    a.tzcnt(eax, eax)?;
    a.add(eax, 32)?;
    a.set_label(&mut second)?;
    a.add(rax, rcx)?;
    a.add(rdx, rax)?;
    a.dec(edi)?;
    a.jnz(outer)?;
    a.mov(rax, rdx)?;
    a.vzeroupper()?;
    a.ret()
}

fn scan(iterations: u32, _: u64) -> u64 {
    u64::from(iterations) * NEEDLE as u64
}

pub(super) const BLEND: Program = avx(
    "vblend",
    "blending 16 KiB of pixels with packed integers of 256 bits",
    200,
    emit_blend,
    blend,
);

fn emit_blend(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut outer = a.create_label();
    let mut pixel = a.create_label();
    emit_pictures(a)?;
    a.vpxor(xmm7, xmm7, xmm7)?;
    a.mov(eax, 0x00c0_00c0)?;
    a.vmovd(xmm6, eax)?;
    a.vpbroadcastd(ymm6, xmm6)?;
    a.xor(edx, edx)?;
    a.set_label(&mut outer)?;
    a.xor(ecx, ecx)?;
    a.set_label(&mut pixel)?;
    a.vmovdqa(ymm0, ymmword_ptr(rsi + rcx))?;
    a.vmovdqu(ymm1, ymmword_ptr(rsi + rcx + PICTURE))?;
    a.vpunpcklbw(ymm2, ymm0, ymm7)?;
    a.vpunpckhbw(ymm3, ymm0, ymm7)?;
    a.vpmullw(ymm2, ymm2, ymm6)?;
    a.vpmullw(ymm3, ymm3, ymm6)?;
    a.vpsrlw(ymm2, ymm2, 8)?;
    a.vpsrlw(ymm3, ymm3, 8)?;
    a.vpackuswb(ymm0, ymm2, ymm3)?;
    a.vpaddusb(ymm0, ymm0, ymm1)?;
    a.vmovdqa(ymmword_ptr(rsi + rcx), ymm0)?;
    a.vextracti128(xmm4, ymm0, 1)?;
    a.vpxor(xmm4, xmm4, xmm0)?;
    a.vmovq(rax, xmm4)?;
    a.add(rdx, rax)?;
    a.add(ecx, 32)?;
    a.cmp(ecx, PICTURE)?;
    a.jb(pixel)?;
    a.rorx(rdx, rdx, 1)?;
    a.dec(edi)?;
    a.jnz(outer)?;
    a.mov(rax, rdx)?;
    a.vzeroupper()?;
    a.ret()
}

fn blend(iterations: u32, _: u64) -> u64 {
    let [mut to, from] = pictures();
    let word = |bytes: &[u8]| {
        bytes
            .iter()
            .rev()
            .fold(0, |all, &b| all << 8 | u64::from(b))
    };
    let mut sum = 0_u64;
    for _ in 0..iterations {
        for (to, &from) in to.iter_mut().zip(&from) {
            *to = blended(*to, from);
        }
        for pixels in to.chunks(32) {
            sum = sum.wrapping_add(word(&pixels[..8]) ^ word(&pixels[16..24]));
        }
        sum = sum.rotate_right(1);
    }
    sum
}

pub(super) const BITS: Program = avx(
    "bits",
    "a hash of the bit manipulation instructions",
    100_000,
    emit_bits,
    bits,
);

fn emit_bits(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut top = a.create_label();
    a.mov(rax, SEED)?;
    a.mov(r8, FACTOR)?;
    a.mov(r9, MASK)?;
    a.set_label(&mut top)?;
    a.mov(rdx, rax)?;
    a.mulx(r10, r11, r8)?;
    a.xor(r10, r11)?;
    a.andn(rcx, rax, r10)?;
    a.rorx(rax, r10, 23)?;
    a.shlx(rbx, rcx, rdi)?;
    a.shrx(rcx, rcx, r10)?;
    a.add(rax, rbx)?;
    a.xor(rax, rcx)?;
    a.blsr(rbx, rax)?;
    a.tzcnt(rcx, rbx)?;
    a.bzhi(rbx, rbx, rcx)?;
    a.lzcnt(rcx, rax)?;
    a.add(rax, rbx)?;
    a.add(rax, rcx)?;
    a.pext(rbx, rax, r9)?;
    a.popcnt(rcx, rbx)?;
    a.pdep(rbx, rbx, r9)?;
    a.xor(rax, rbx)?;
    a.add(rax, rcx)?;
    a.dec(edi)?;
    a.jnz(top)?;
    a.ret()
}

const SEED: u64 = 0x0123_4567_89ab_cdef;
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
const MASK: u64 = 0x0ff0_1234_00ff_8001;

fn bits(iterations: u32, _: u64) -> u64 {
    let mut hash = SEED;
    for left in (1..=iterations).rev() {
        let product = u128::from(hash) * u128::from(FACTOR);
        let mixed = (product >> 64) as u64 ^ product as u64;
        let rest = !hash & mixed;
        hash = mixed.rotate_right(23);
        hash = hash.wrapping_add(rest << (left & 63)) ^ rest >> (mixed & 63);
        // There are no bits below the lowest one: BZHI gives 0.
        hash = hash.wrapping_add(u64::from(hash.leading_zeros()));
        // PEXT, then PDEP of what it gives.
        let picked = hash & MASK;
        hash = (hash ^ picked).wrapping_add(u64::from(picked.count_ones()));
    }
    hash
}
