//! Programs whose point is memory: a pointer chase, many pages, byte loops, REP.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::{Bits, Group, Program};

pub(super) const CHASE: Program = Program {
    name: "chase",
    what: "pointer chase over 256 KiB",
    bits: Bits::Long64,
    group: Group::Integer,
    iterations: 200,
    emit: emit_chase,
    expected: chase,
};

/// Builds a list of 4096 nodes 64 bytes apart, node i followed by 5 i + 1, then walks it.
fn emit_chase(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut build = a.create_label();
    let mut outer = a.create_label();
    let mut walk = a.create_label();
    a.xor(ecx, ecx)?;
    a.set_label(&mut build)?;
    a.lea(eax, dword_ptr(rcx + rcx * 4 + 1))?;
    a.and(eax, 4095)?;
    a.shl(eax, 6)?;
    a.add(rax, rsi)?;
    a.mov(edx, ecx)?;
    a.shl(edx, 6)?;
    a.mov(qword_ptr(rsi + rdx), rax)?;
    a.inc(ecx)?;
    a.cmp(ecx, 4096)?;
    a.jb(build)?;
    a.mov(rbx, rsi)?;
    a.xor(eax, eax)?;
    a.set_label(&mut outer)?;
    a.mov(ecx, 4000)?;
    a.set_label(&mut walk)?;
    a.mov(rbx, qword_ptr(rbx))?;
    a.dec(ecx)?;
    a.jnz(walk)?;
    a.add(rax, rbx)?;
    a.dec(rdi)?;
    a.jnz(outer)?;
    a.ret()
}

fn chase(iterations: u32, data: u64) -> u64 {
    let (mut node, mut sum) = (0u64, 0u64);
    for _ in 0..iterations {
        for _ in 0..4000 {
            node = (5 * node + 1) & 4095;
        }
        sum = sum.wrapping_add(data + node * 64);
    }
    sum
}

pub(super) const PAGES: Program = Program {
    name: "pages",
    what: "one word on each of 4096 pages: TLB misses",
    bits: Bits::Long64,
    group: Group::Integer,
    iterations: 30,
    emit: emit_pages,
    expected: pages,
};

fn emit_pages(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut outer = a.create_label();
    let mut page = a.create_label();
    a.xor(eax, eax)?;
    a.set_label(&mut outer)?;
    a.mov(rbx, rsi)?;
    a.xor(ecx, ecx)?;
    a.set_label(&mut page)?;
    a.add(qword_ptr(rbx), rcx)?;
    a.add(rax, qword_ptr(rbx))?;
    a.add(rbx, 4096)?;
    a.inc(ecx)?;
    a.cmp(ecx, 4096)?;
    a.jb(page)?;
    a.dec(rdi)?;
    a.jnz(outer)?;
    a.ret()
}

fn pages(iterations: u32, _: u64) -> u64 {
    let n = u64::from(iterations);
    (n * (n + 1) / 2) * (4095 * 4096 / 2)
}

pub(super) const STRING: Program = Program {
    name: "string",
    what: "byte loops: copy, upper case, length",
    bits: Bits::Long64,
    group: Group::Integer,
    iterations: 200,
    emit: emit_string,
    expected: string,
};

/// Offset of the copy in the data area.
const COPY: i32 = 0x2000;

fn emit_string(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut fill = a.create_label();
    let mut outer = a.create_label();
    let mut copy = a.create_label();
    let mut other = a.create_label();
    let mut done = a.create_label();
    a.xor(ecx, ecx)?;
    a.set_label(&mut fill)?;
    a.mov(eax, ecx)?;
    a.and(eax, 63)?;
    a.add(eax, 64)?;
    a.mov(byte_ptr(rsi + rcx), al)?;
    a.inc(ecx)?;
    a.cmp(ecx, 2000)?;
    a.jb(fill)?;
    a.mov(byte_ptr(rsi + rcx), 0)?;
    a.xor(eax, eax)?;
    a.set_label(&mut outer)?;
    a.xor(ecx, ecx)?;
    a.set_label(&mut copy)?;
    a.movzx(edx, byte_ptr(rsi + rcx))?;
    a.test(dl, dl)?;
    a.jz(done)?;
    a.lea(ebx, dword_ptr(rdx - 97))?;
    a.cmp(ebx, 25)?;
    a.ja(other)?;
    a.and(edx, 0xdf)?;
    a.inc(rax)?;
    a.set_label(&mut other)?;
    a.mov(byte_ptr(rsi + rcx + COPY), dl)?;
    a.inc(rcx)?;
    a.jmp(copy)?;
    a.set_label(&mut done)?;
    a.add(rax, rcx)?;
    a.dec(rdi)?;
    a.jnz(outer)?;
    a.ret()
}

fn string(iterations: u32, _: u64) -> u64 {
    let lower = (0..2000u32)
        .filter(|i| (97..=122).contains(&((i & 63) + 64)))
        .count() as u64;
    u64::from(iterations) * (lower + 2000)
}

pub(super) const REP: Program = Program {
    name: "rep",
    what: "REP STOSQ and REP MOVSB of 64 KiB",
    bits: Bits::Long64,
    group: Group::Rep,
    iterations: 100,
    emit: emit_rep,
    expected: rep,
};

fn emit_rep(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut outer = a.create_label();
    a.mov(r8, rdi)?;
    a.mov(rbx, rsi)?;
    a.xor(r9d, r9d)?;
    a.cld()?;
    a.set_label(&mut outer)?;
    a.mov(rdi, rbx)?;
    a.mov(rax, r8)?;
    a.mov(ecx, 8192)?;
    a.rep().stosq()?;
    a.mov(rsi, rbx)?;
    a.mov(ecx, 65536)?;
    a.rep().movsb()?;
    a.add(r9, qword_ptr(rdi - 8))?;
    a.dec(r8)?;
    a.jnz(outer)?;
    a.mov(rax, r9)?;
    a.ret()
}

fn rep(iterations: u32, _: u64) -> u64 {
    let n = u64::from(iterations);
    n * (n + 1) / 2
}
