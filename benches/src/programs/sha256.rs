//! SHA-256 compression of generated blocks (FIPS 180-4), as a compiler without vector
//! instructions would write it.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::{Bits, Group, Program};

pub(super) const SHA256: Program = Program {
    name: "sha256",
    what: "SHA-256 compression function",
    bits: Bits::Long64,
    group: Group::Integer,
    iterations: 1500,
    emit,
    expected,
};

/// First 32 bits of the fractional parts of the square roots of the first 8 primes.
const H0: [u32; 8] = [
    0x6a09_e667,
    0xbb67_ae85,
    0x3c6e_f372,
    0xa54f_f53a,
    0x510e_527f,
    0x9b05_688c,
    0x1f83_d9ab,
    0x5be0_cd19,
];

/// Returns the first 32 bits of the fractional parts of the cube roots of the first 64 primes.
fn round_constants() -> [u32; 64] {
    let is_prime = |n: u64| {
        (2..n)
            .take_while(|d| d * d <= n)
            .all(|d| !n.is_multiple_of(d))
    };
    let mut k = [0; 64];
    for (slot, p) in k.iter_mut().zip((2u64..).filter(|&n| is_prime(n))) {
        // The integer cube root of p x 2^96 is the cube root of p with 32 fractional bits.
        let target = u128::from(p) << 96;
        let (mut low, mut high) = (0u128, 8u128 << 32);
        while high - low > 1 {
            let middle = u128::midpoint(low, high);
            if middle * middle * middle <= target {
                low = middle;
            } else {
                high = middle;
            }
        }
        *slot = low as u32;
    }
    k
}

/// Offset of the message schedule in the data area; the state is at 0.
const W: i32 = 0x100;

fn emit(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut outer = a.create_label();
    let mut k = a.create_label();
    let saved = [r8d, r9d, r10d, r11d, r12d, r13d, r14d, r15d];
    for (i, h) in H0.iter().enumerate() {
        a.mov(dword_ptr(rsi + 4 * i as i32), *h)?;
    }
    a.set_label(&mut outer)?;
    emit_schedule(a)?;
    for (i, register) in saved.into_iter().enumerate() {
        a.mov(register, dword_ptr(rsi + 4 * i as i32))?;
    }
    emit_rounds(a, k)?;
    for (i, register) in saved.into_iter().enumerate() {
        a.add(dword_ptr(rsi + 4 * i as i32), register)?;
    }
    a.dec(rdi)?;
    a.jnz(outer)?;
    a.mov(eax, dword_ptr(rsi))?;
    a.shl(rax, 32)?;
    a.mov(ecx, dword_ptr(rsi + 28))?;
    a.or(rax, rcx)?;
    a.ret()?;
    a.set_label(&mut k)?;
    a.dd(&round_constants())
}

/// Fills W: word i of the block is i x 01010101H + iteration; then the expansion.
fn emit_schedule(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut fill = a.create_label();
    let mut expand = a.create_label();
    a.xor(ecx, ecx)?;
    a.set_label(&mut fill)?;
    a.imul_3(eax, ecx, 0x0101_0101)?;
    a.add(eax, edi)?;
    a.mov(dword_ptr(rsi + rcx * 4 + W), eax)?;
    a.inc(ecx)?;
    a.cmp(ecx, 16)?;
    a.jb(fill)?;
    a.set_label(&mut expand)?;
    for (back, r1, r2, s, into) in [(15, 7, 18, 3, eax), (2, 17, 19, 10, edx)] {
        a.mov(into, dword_ptr(rsi + rcx * 4 + (W - 4 * back)))?;
        a.mov(ebx, into)?;
        a.mov(r8d, into)?;
        a.ror(into, r1)?;
        a.ror(ebx, r2)?;
        a.shr(r8d, s)?;
        a.xor(into, ebx)?;
        a.xor(into, r8d)?;
    }
    a.add(eax, edx)?;
    a.add(eax, dword_ptr(rsi + rcx * 4 + (W - 4 * 16)))?;
    a.add(eax, dword_ptr(rsi + rcx * 4 + (W - 4 * 7)))?;
    a.mov(dword_ptr(rsi + rcx * 4 + W), eax)?;
    a.inc(ecx)?;
    a.cmp(ecx, 64)?;
    a.jb(expand)
}

/// The 64 rounds on a..h = R8D..R15D.
fn emit_rounds(a: &mut CodeAssembler, k: CodeLabel) -> Result<(), IcedError> {
    let mut round = a.create_label();
    a.lea(rbp, ptr(k))?;
    a.xor(ecx, ecx)?;
    a.set_label(&mut round)?;
    emit_sigma(a, r12d, [6, 11, 25])?;
    a.add(r15d, eax)?;
    a.mov(eax, r13d)?;
    a.xor(eax, r14d)?;
    a.and(eax, r12d)?;
    a.xor(eax, r14d)?;
    a.add(r15d, eax)?;
    a.add(r15d, dword_ptr(rbp + rcx * 4))?;
    a.add(r15d, dword_ptr(rsi + rcx * 4 + W))?;
    a.add(r11d, r15d)?;
    emit_sigma(a, r8d, [2, 13, 22])?;
    a.add(r15d, eax)?;
    a.mov(eax, r8d)?;
    a.or(eax, r9d)?;
    a.and(eax, r10d)?;
    a.mov(ebx, r8d)?;
    a.and(ebx, r9d)?;
    a.or(eax, ebx)?;
    a.add(r15d, eax)?;
    // Rotate the names: the new a is in R15D, the new e in R11D.
    a.mov(eax, r15d)?;
    for (to, from) in [(r15d, r14d), (r14d, r13d), (r13d, r12d), (r12d, r11d)] {
        a.mov(to, from)?;
    }
    for (to, from) in [(r11d, r10d), (r10d, r9d), (r9d, r8d), (r8d, eax)] {
        a.mov(to, from)?;
    }
    a.inc(ecx)?;
    a.cmp(ecx, 64)?;
    a.jb(round)
}

/// EAX = xor of three rotations of `x`.
fn emit_sigma(a: &mut CodeAssembler, x: AsmRegister32, by: [i32; 3]) -> Result<(), IcedError> {
    a.mov(eax, x)?;
    a.mov(ebx, x)?;
    a.mov(edx, x)?;
    a.ror(eax, by[0])?;
    a.ror(ebx, by[1])?;
    a.ror(edx, by[2])?;
    a.xor(eax, ebx)?;
    a.xor(eax, edx)
}

fn expected(iterations: u32, _: u64) -> u64 {
    let k = round_constants();
    let mut state = H0;
    for iteration in (1..=iterations).rev() {
        let mut w = [0u32; 64];
        for (i, word) in (0u32..16).zip(&mut w) {
            *word = (i * 0x0101_0101).wrapping_add(iteration);
        }
        for i in 16..64 {
            let s0 = w[i - 15].rotate_right(7) ^ w[i - 15].rotate_right(18) ^ (w[i - 15] >> 3);
            let s1 = w[i - 2].rotate_right(17) ^ w[i - 2].rotate_right(19) ^ (w[i - 2] >> 10);
            w[i] = w[i - 16]
                .wrapping_add(s0)
                .wrapping_add(w[i - 7])
                .wrapping_add(s1);
        }
        let mut v = state;
        for (k, w) in k.iter().zip(w) {
            let [a, b, c, d, e, f, g, h] = v;
            let s1 = e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25);
            let choice = (e & f) ^ (!e & g);
            let t1 = h
                .wrapping_add(s1)
                .wrapping_add(choice)
                .wrapping_add(*k)
                .wrapping_add(w);
            let s0 = a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22);
            let t2 = s0.wrapping_add((a & b) ^ (a & c) ^ (b & c));
            v = [t1.wrapping_add(t2), a, b, c, d.wrapping_add(t1), e, f, g];
        }
        for (s, v) in state.iter_mut().zip(v) {
            *s = s.wrapping_add(v);
        }
    }
    u64::from(state[0]) << 32 | u64::from(state[7])
}

#[cfg(test)]
mod tests {
    #[test]
    fn round_constants_begin_and_end_as_in_fips_180_4() {
        let k = super::round_constants();
        assert_eq!([k[0], k[1], k[63]], [0x428a_2f98, 0x7137_4491, 0xc671_78f2]);
    }
}
