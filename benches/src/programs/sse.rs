//! Programs of SSE and SSE2: scalar and packed floating point, packed integers, block moves.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::{Bits, Group, Program};

const fn sse(
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
        group: Group::Sse,
        iterations,
        emit,
        expected,
    }
}

/// Moves a constant to the low half of a register, by way of RAX.
fn constant(a: &mut CodeAssembler, to: AsmRegisterXmm, value: f64) -> Result<(), IcedError> {
    a.mov(rax, value.to_bits())?;
    a.movq(to, rax)
}

pub(super) const MANDEL: Program = sse(
    "mandel",
    "points of the Mandelbrot set in scalar double precision",
    2000,
    emit_mandel,
    mandel,
);

/// The steps after which a point is taken for one of the set.
pub(super) const STEPS: i32 = 200;

fn emit_mandel(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut outer = a.create_label();
    let mut step = a.create_label();
    let mut done = a.create_label();
    constant(a, xmm2, -1.5)?;
    constant(a, xmm3, 0.01)?;
    constant(a, xmm7, 4.0)?;
    constant(a, xmm8, 0.000_917)?;
    a.xor(edx, edx)?;
    a.set_label(&mut outer)?;
    a.addsd(xmm2, xmm8)?;
    a.xorpd(xmm0, xmm0)?;
    a.xorpd(xmm1, xmm1)?;
    a.mov(ecx, STEPS)?;
    a.set_label(&mut step)?;
    a.movapd(xmm4, xmm0)?;
    a.mulsd(xmm4, xmm0)?;
    a.movapd(xmm5, xmm1)?;
    a.mulsd(xmm5, xmm1)?;
    a.movapd(xmm6, xmm4)?;
    a.addsd(xmm6, xmm5)?;
    a.ucomisd(xmm6, xmm7)?;
    a.ja(done)?;
    a.mulsd(xmm1, xmm0)?;
    a.addsd(xmm1, xmm1)?;
    a.addsd(xmm1, xmm3)?;
    a.subsd(xmm4, xmm5)?;
    a.addsd(xmm4, xmm2)?;
    a.movapd(xmm0, xmm4)?;
    a.inc(rdx)?;
    a.dec(ecx)?;
    a.jnz(step)?;
    a.set_label(&mut done)?;
    a.dec(edi)?;
    a.jnz(outer)?;
    a.mov(rax, rdx)?;
    a.ret()
}

pub(super) fn mandel(iterations: u32, _: u64) -> u64 {
    let (mut re, im, mut total) = (-1.5, 0.01, 0);
    for _ in 0..iterations {
        re += 0.000_917;
        let (mut x, mut y) = (0.0_f64, 0.0_f64);
        for _ in 0..STEPS {
            let (xx, yy) = (x * x, y * y);
            if xx + yy > 4.0 {
                break;
            }
            y = y * x * 2.0 + im;
            x = xx - yy + re;
            total += 1;
        }
    }
    total
}

pub(super) const ORBIT: Program = sse(
    "orbit",
    "a planet's orbit: divisions and roots in double precision, operands in memory",
    20_000,
    emit_orbit,
    super::orbit,
);

fn emit_orbit(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut top = a.create_label();
    super::emit_orbit_data(a)?;
    a.set_label(&mut top)?;
    a.movsd_2(xmm0, qword_ptr(rsi))?;
    a.movsd_2(xmm1, qword_ptr(rsi + 8))?;
    a.movapd(xmm2, xmm0)?;
    a.mulsd(xmm2, xmm0)?;
    a.movapd(xmm3, xmm1)?;
    a.mulsd(xmm3, xmm1)?;
    a.addsd(xmm2, xmm3)?;
    a.sqrtsd(xmm3, xmm2)?;
    a.mulsd(xmm2, xmm3)?;
    a.movsd_2(xmm4, qword_ptr(rsi + 32))?;
    a.divsd(xmm4, xmm2)?;
    for (position, at) in [(xmm0, 0), (xmm1, 8)] {
        a.movapd(xmm5, position)?;
        a.mulsd(xmm5, xmm4)?;
        a.movsd_2(xmm6, qword_ptr(rsi + 16 + at))?;
        a.subsd(xmm6, xmm5)?;
        a.movsd_2(qword_ptr(rsi + 16 + at), xmm6)?;
        a.mulsd(xmm6, qword_ptr(rsi + 32))?;
        a.addsd(position, xmm6)?;
        a.movsd_2(qword_ptr(rsi + at), position)?;
    }
    a.dec(edi)?;
    a.jnz(top)?;
    a.mov(rax, qword_ptr(rsi))?;
    a.ret()
}

pub(super) const MATRIX: Program = sse(
    "matrix",
    "products of 4x4 matrices in packed single precision",
    5000,
    emit_matrix,
    matrix,
);

/// A rotation: its powers stay bounded.
const ROTATION: [[f32; 4]; 4] = [
    [0.8, -0.6, 0.0, 0.0],
    [0.6, 0.8, 0.0, 0.0],
    [0.0, 0.0, 0.28, -0.96],
    [0.0, 0.0, 0.96, 0.28],
];

fn emit_matrix(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut top = a.create_label();
    for (n, value) in ROTATION.iter().flatten().enumerate() {
        let bits = value.to_bits();
        a.mov(dword_ptr(rsi + 4 * n), bits)?;
        // The product begins with another matrix of these numbers.
        a.mov(dword_ptr(rsi + 64 + 4 * (15 - n)), bits)?;
    }
    for (n, row) in [xmm8, xmm9, xmm10, xmm11].into_iter().enumerate() {
        a.movaps(row, xmmword_ptr(rsi + 16 * n))?;
    }
    a.set_label(&mut top)?;
    for n in 0..4 {
        a.movaps(xmm0, xmmword_ptr(rsi + 64 + 16 * n))?;
        a.pshufd(xmm1, xmm0, 0)?;
        a.mulps(xmm1, xmm8)?;
        for (broadcast, row) in [(0x55, xmm9), (0xaa, xmm10), (0xff, xmm11)] {
            a.movaps(xmm2, xmm0)?;
            a.shufps(xmm2, xmm2, broadcast)?;
            a.mulps(xmm2, row)?;
            a.addps(xmm1, xmm2)?;
        }
        a.movaps(xmmword_ptr(rsi + 64 + 16 * n), xmm1)?;
    }
    a.dec(edi)?;
    a.jnz(top)?;
    a.mov(rax, qword_ptr(rsi + 64))?;
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
                    *s += v * row[k];
                }
            }
            *row = sum;
        }
    }
    u64::from(product[0][1].to_bits()) << 32 | u64::from(product[0][0].to_bits())
}

pub(super) const BLEND: Program = sse(
    "blend",
    "blending 16 KiB of pixels with packed integers",
    100,
    emit_blend,
    blend,
);

/// Bytes of a picture.
pub(super) const PICTURE: i32 = 16 << 10;

/// Draws two pictures, one behind the other.
pub(super) fn emit_pictures(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut fill = a.create_label();
    a.xor(ecx, ecx)?;
    a.set_label(&mut fill)?;
    a.imul_3(eax, ecx, 37)?;
    a.mov(byte_ptr(rsi + rcx), al)?;
    a.imul_3(eax, ecx, 101)?;
    a.mov(byte_ptr(rsi + rcx + PICTURE), al)?;
    a.inc(ecx)?;
    a.cmp(ecx, PICTURE)?;
    a.jb(fill)
}

/// The two pictures.
pub(super) fn pictures() -> [Vec<u8>; 2] {
    [37, 101].map(|factor| (0..PICTURE).map(|n| (n * factor) as u8).collect())
}

/// A pixel of the blended picture.
pub(super) fn blended(to: u8, from: u8) -> u8 {
    (((u32::from(to) * 0xc0) >> 8) as u8).saturating_add(from)
}

fn emit_blend(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut outer = a.create_label();
    let mut pixel = a.create_label();
    emit_pictures(a)?;
    a.pxor(xmm7, xmm7)?;
    a.mov(eax, 0x00c0_00c0)?;
    a.movd(xmm6, eax)?;
    a.pshufd(xmm6, xmm6, 0)?;
    a.xor(edx, edx)?;
    a.set_label(&mut outer)?;
    a.xor(ecx, ecx)?;
    a.set_label(&mut pixel)?;
    a.movdqa(xmm0, xmmword_ptr(rsi + rcx))?;
    a.movdqu(xmm1, xmmword_ptr(rsi + rcx + PICTURE))?;
    a.movdqa(xmm2, xmm0)?;
    a.pcmpeqb(xmm2, xmm1)?;
    a.pmovmskb(eax, xmm2)?;
    a.add(rdx, rax)?;
    a.movdqa(xmm3, xmm0)?;
    a.punpcklbw(xmm0, xmm7)?;
    a.punpckhbw(xmm3, xmm7)?;
    a.pmullw(xmm0, xmm6)?;
    a.pmullw(xmm3, xmm6)?;
    a.psrlw(xmm0, 8)?;
    a.psrlw(xmm3, 8)?;
    a.packuswb(xmm0, xmm3)?;
    a.paddusb(xmm0, xmm1)?;
    a.movdqa(xmmword_ptr(rsi + rcx), xmm0)?;
    a.movq(rax, xmm0)?;
    a.xor(rdx, rax)?;
    a.add(ecx, 16)?;
    a.cmp(ecx, PICTURE)?;
    a.jb(pixel)?;
    a.dec(edi)?;
    a.jnz(outer)?;
    a.mov(rax, rdx)?;
    a.ret()
}

fn blend(iterations: u32, _: u64) -> u64 {
    let [mut to, from] = pictures();
    let mut sum = 0_u64;
    for _ in 0..iterations {
        for (to, from) in to.chunks_mut(16).zip(from.chunks(16)) {
            let pairs = to.iter_mut().zip(from).enumerate();
            let mut mask = 0;
            for (n, (to, &from)) in pairs {
                mask |= u64::from(*to == from) << n;
                *to = blended(*to, from);
            }
            sum = sum.wrapping_add(mask);
            let low = to[..8].iter().rev();
            sum ^= low.fold(0, |word, &b| word << 8 | u64::from(b));
        }
    }
    sum
}
