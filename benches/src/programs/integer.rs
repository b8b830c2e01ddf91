//! Integer programs: shifts and adds, a sieve, recursion, CRC-32, quicksort.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::{Bits, Group, Program};

const fn integer(
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
        group: Group::Integer,
        iterations,
        emit,
        expected,
    }
}

pub(super) const ALU: Program = integer(
    "alu",
    "xorshift and adds in registers",
    400_000,
    emit_alu,
    alu,
);

fn emit_alu(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut top = a.create_label();
    a.mov(rax, 0x9E37_79B9_7F4A_7C15u64)?;
    a.mov(rcx, rdi)?;
    a.xor(edx, edx)?;
    a.set_label(&mut top)?;
    a.mov(rbx, rax)?;
    a.shl(rbx, 13)?;
    a.xor(rax, rbx)?;
    a.mov(rbx, rax)?;
    a.shr(rbx, 7)?;
    a.xor(rax, rbx)?;
    a.mov(rbx, rax)?;
    a.shl(rbx, 17)?;
    a.xor(rax, rbx)?;
    a.add(rdx, rax)?;
    a.lea(rdx, qword_ptr(rdx + rcx * 2 + 1))?;
    a.dec(rcx)?;
    a.jnz(top)?;
    a.mov(rax, rdx)?;
    a.ret()
}

fn alu(iterations: u32, _: u64) -> u64 {
    let (mut x, mut sum) = (0x9E37_79B9_7F4A_7C15u64, 0u64);
    for left in (1..=u64::from(iterations)).rev() {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        sum = sum.wrapping_add(x).wrapping_add(left * 2 + 1);
    }
    sum
}

pub(super) const SIEVE: Program = integer(
    "sieve",
    "primes below 8192 in bytes",
    100,
    emit_sieve,
    sieve,
);

fn emit_sieve(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut outer = a.create_label();
    let mut fill = a.create_label();
    let mut next = a.create_label();
    let mut mark = a.create_label();
    let mut skip = a.create_label();
    a.mov(r8, rdi)?;
    a.xor(r9d, r9d)?;
    a.set_label(&mut outer)?;
    a.xor(ecx, ecx)?;
    a.set_label(&mut fill)?;
    a.mov(byte_ptr(rsi + rcx), 1)?;
    a.inc(ecx)?;
    a.cmp(ecx, 8192)?;
    a.jb(fill)?;
    a.mov(ecx, 2)?;
    a.set_label(&mut next)?;
    a.cmp(byte_ptr(rsi + rcx), 0)?;
    a.je(skip)?;
    a.inc(r9)?;
    a.lea(edx, dword_ptr(rcx + rcx))?;
    a.set_label(&mut mark)?;
    a.cmp(edx, 8192)?;
    a.jae(skip)?;
    a.mov(byte_ptr(rsi + rdx), 0)?;
    a.add(edx, ecx)?;
    a.jmp(mark)?;
    a.set_label(&mut skip)?;
    a.inc(ecx)?;
    a.cmp(ecx, 8192)?;
    a.jb(next)?;
    a.dec(r8)?;
    a.jnz(outer)?;
    a.mov(rax, r9)?;
    a.ret()
}

fn sieve(iterations: u32, _: u64) -> u64 {
    let is_prime = |n: u64| {
        (2..n)
            .take_while(|d| d * d <= n)
            .all(|d| !n.is_multiple_of(d))
    };
    u64::from(iterations) * (2..8192).filter(|&n| is_prime(n)).count() as u64
}

pub(super) const FIB: Program = integer(
    "fib",
    "recursive Fibonacci: push, pop, call, return",
    60,
    emit_fib,
    fib,
);

fn emit_fib(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut outer = a.create_label();
    let mut recurse = a.create_label();
    let mut function = a.create_label();
    a.mov(r8, rdi)?;
    a.xor(r9d, r9d)?;
    a.set_label(&mut outer)?;
    a.mov(edi, 18)?;
    a.call(function)?;
    a.add(r9, rax)?;
    a.add(r9, r8)?;
    a.dec(r8)?;
    a.jnz(outer)?;
    a.mov(rax, r9)?;
    a.ret()?;
    a.set_label(&mut function)?;
    a.cmp(edi, 2)?;
    a.jae(recurse)?;
    a.mov(eax, edi)?;
    a.ret()?;
    a.set_label(&mut recurse)?;
    a.push(rbx)?;
    a.mov(ebx, edi)?;
    a.lea(edi, dword_ptr(rbx - 1))?;
    a.call(function)?;
    a.push(rax)?;
    a.lea(edi, dword_ptr(rbx - 2))?;
    a.call(function)?;
    a.pop(rdx)?;
    a.add(rax, rdx)?;
    a.pop(rbx)?;
    a.ret()
}

fn fib(iterations: u32, _: u64) -> u64 {
    let n = u64::from(iterations);
    2584 * n + n * (n + 1) / 2
}

pub(super) const CRC32: Program = integer(
    "crc32",
    "CRC-32 by table over 4 KiB",
    100,
    emit_crc32,
    crc32,
);

/// Offset of the buffer behind the table in the data area.
const CRC_BUFFER: i32 = 0x400;

fn emit_crc32(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut entry = a.create_label();
    let mut bit = a.create_label();
    let mut even = a.create_label();
    let mut fill = a.create_label();
    let mut outer = a.create_label();
    let mut byte = a.create_label();
    a.xor(ecx, ecx)?;
    a.set_label(&mut entry)?;
    a.mov(eax, ecx)?;
    a.mov(edx, 8)?;
    a.set_label(&mut bit)?;
    a.shr(eax, 1)?;
    a.jnc(even)?;
    a.xor(eax, 0xEDB8_8320u32)?;
    a.set_label(&mut even)?;
    a.dec(edx)?;
    a.jnz(bit)?;
    a.mov(dword_ptr(rsi + rcx * 4), eax)?;
    a.inc(ecx)?;
    a.cmp(ecx, 256)?;
    a.jb(entry)?;
    a.xor(ecx, ecx)?;
    a.set_label(&mut fill)?;
    a.imul_3(eax, ecx, 7)?;
    a.mov(byte_ptr(rsi + rcx + CRC_BUFFER), al)?;
    a.inc(ecx)?;
    a.cmp(ecx, 4096)?;
    a.jb(fill)?;
    a.mov(eax, -1)?;
    a.set_label(&mut outer)?;
    a.xor(ecx, ecx)?;
    a.set_label(&mut byte)?;
    a.movzx(edx, byte_ptr(rsi + rcx + CRC_BUFFER))?;
    a.xor(dl, al)?;
    a.movzx(edx, dl)?;
    a.shr(eax, 8)?;
    a.xor(eax, dword_ptr(rsi + rdx * 4))?;
    a.inc(ecx)?;
    a.cmp(ecx, 4096)?;
    a.jb(byte)?;
    a.dec(rdi)?;
    a.jnz(outer)?;
    a.ret()
}

fn crc32(iterations: u32, _: u64) -> u64 {
    let mut crc = u32::MAX;
    for _ in 0..iterations {
        for i in 0..4096u32 {
            crc ^= (i * 7) & 0xff;
            for _ in 0..8 {
                crc = (crc >> 1) ^ if crc & 1 == 1 { 0xEDB8_8320 } else { 0 };
            }
        }
    }
    u64::from(crc)
}

pub(super) const QSORT: Program =
    integer("qsort", "quicksort of 1024 words", 40, emit_qsort, qsort);

fn emit_qsort(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut outer = a.create_label();
    let mut fill = a.create_label();
    let mut sort = a.create_label();
    a.mov(r8, rdi)?;
    a.xor(r9d, r9d)?;
    a.set_label(&mut outer)?;
    a.mov(eax, r8d)?;
    a.xor(ecx, ecx)?;
    a.set_label(&mut fill)?;
    a.imul_3(eax, eax, 1_664_525)?;
    a.add(eax, 1_013_904_223)?;
    a.mov(dword_ptr(rsi + rcx * 4), eax)?;
    a.inc(ecx)?;
    a.cmp(ecx, 1024)?;
    a.jb(fill)?;
    a.mov(rdi, rsi)?;
    a.lea(rdx, qword_ptr(rsi + 1023 * 4))?;
    a.call(sort)?;
    a.mov(eax, dword_ptr(rsi + 512 * 4))?;
    a.add(r9, rax)?;
    a.dec(r8)?;
    a.jnz(outer)?;
    a.mov(rax, r9)?;
    a.ret()?;
    emit_sort(a, &mut sort)
}

/// Sorts the words from RDI to RDX, inclusive (Lomuto's partition).
fn emit_sort(a: &mut CodeAssembler, sort: &mut CodeLabel) -> Result<(), IcedError> {
    let mut body = a.create_label();
    let mut scan = a.create_label();
    let mut keep = a.create_label();
    let mut done = a.create_label();
    a.set_label(sort)?;
    a.cmp(rdi, rdx)?;
    a.jb(body)?;
    a.ret()?;
    a.set_label(&mut body)?;
    a.mov(eax, dword_ptr(rdx))?;
    a.mov(rcx, rdi)?;
    a.mov(rbx, rdi)?;
    a.set_label(&mut scan)?;
    a.cmp(rbx, rdx)?;
    a.jae(done)?;
    a.mov(r10d, dword_ptr(rbx))?;
    a.cmp(r10d, eax)?;
    a.jae(keep)?;
    a.mov(r11d, dword_ptr(rcx))?;
    a.mov(dword_ptr(rcx), r10d)?;
    a.mov(dword_ptr(rbx), r11d)?;
    a.add(rcx, 4)?;
    a.set_label(&mut keep)?;
    a.add(rbx, 4)?;
    a.jmp(scan)?;
    a.set_label(&mut done)?;
    a.mov(r10d, dword_ptr(rcx))?;
    a.mov(dword_ptr(rdx), r10d)?;
    a.mov(dword_ptr(rcx), eax)?;
    a.push(rdx)?;
    a.push(rcx)?;
    a.lea(rdx, qword_ptr(rcx - 4))?;
    a.call(*sort)?;
    a.pop(rcx)?;
    a.pop(rdx)?;
    a.lea(rdi, qword_ptr(rcx + 4))?;
    a.jmp(*sort)
}

fn qsort(iterations: u32, _: u64) -> u64 {
    let mut sum = 0u64;
    for seed in (1..=iterations).rev() {
        let mut x = seed;
        let mut words = [0u32; 1024];
        for w in &mut words {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *w = x;
        }
        words.sort_unstable();
        sum = sum.wrapping_add(u64::from(words[512]));
    }
    sum
}
