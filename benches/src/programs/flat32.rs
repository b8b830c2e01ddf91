//! A flat 32-bit program: sieve, recursion and a bit loop in 32-bit code.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::{Bits, Group, Program};

pub(super) const FLAT32: Program = Program {
    name: "flat32",
    what: "sieve, recursion and Collatz in flat 32-bit code",
    bits: Bits::Flat32,
    group: Group::Integer,
    iterations: 60,
    emit,
    expected,
};

fn emit(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut outer = a.create_label();
    let mut fib = a.create_label();
    let mut recurse = a.create_label();
    a.mov(ebp, edi)?;
    a.push(0)?;
    a.set_label(&mut outer)?;
    emit_sieve(a)?;
    emit_collatz(a)?;
    a.push(12)?;
    a.call(fib)?;
    a.add(esp, 4)?;
    a.add(dword_ptr(esp), eax)?;
    a.dec(ebp)?;
    a.jnz(outer)?;
    a.pop(eax)?;
    a.ret()?;
    a.set_label(&mut fib)?;
    a.mov(eax, dword_ptr(esp + 4))?;
    a.cmp(eax, 2)?;
    a.jae(recurse)?;
    a.ret()?;
    a.set_label(&mut recurse)?;
    a.dec(eax)?;
    a.push(eax)?;
    a.call(fib)?;
    a.mov(ecx, dword_ptr(esp + 8))?;
    a.sub(ecx, 2)?;
    a.mov(dword_ptr(esp), eax)?;
    a.push(ecx)?;
    a.call(fib)?;
    a.add(esp, 4)?;
    a.pop(ecx)?;
    a.add(eax, ecx)?;
    a.ret()
}

/// Adds the number of primes below 2048 to the word on the stack.
fn emit_sieve(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut fill = a.create_label();
    let mut next = a.create_label();
    let mut mark = a.create_label();
    let mut skip = a.create_label();
    a.xor(ecx, ecx)?;
    a.set_label(&mut fill)?;
    a.mov(byte_ptr(esi + ecx), 1)?;
    a.inc(ecx)?;
    a.cmp(ecx, 2048)?;
    a.jb(fill)?;
    a.mov(ecx, 2)?;
    a.set_label(&mut next)?;
    a.cmp(byte_ptr(esi + ecx), 0)?;
    a.je(skip)?;
    a.inc(dword_ptr(esp))?;
    a.lea(edx, dword_ptr(ecx + ecx))?;
    a.set_label(&mut mark)?;
    a.cmp(edx, 2048)?;
    a.jae(skip)?;
    a.mov(byte_ptr(esi + edx), 0)?;
    a.add(edx, ecx)?;
    a.jmp(mark)?;
    a.set_label(&mut skip)?;
    a.inc(ecx)?;
    a.cmp(ecx, 2048)?;
    a.jb(next)
}

/// Adds the length of the Collatz sequence of EBP + 26 to the word on the stack.
fn emit_collatz(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut top = a.create_label();
    let mut even = a.create_label();
    let mut done = a.create_label();
    a.lea(eax, dword_ptr(ebp + 26))?;
    a.set_label(&mut top)?;
    a.cmp(eax, 1)?;
    a.je(done)?;
    a.inc(dword_ptr(esp))?;
    a.shr(eax, 1)?;
    a.jnc(even)?;
    a.lea(eax, dword_ptr(eax + eax * 2 + 2))?;
    a.add(eax, eax)?;
    a.set_label(&mut even)?;
    a.jmp(top)?;
    a.set_label(&mut done)?;
    a.nop()
}

fn expected(iterations: u32, _: u64) -> u64 {
    let is_prime = |n: u32| {
        (2..n)
            .take_while(|d| d * d <= n)
            .all(|d| !n.is_multiple_of(d))
    };
    let primes = (2..2048).filter(|&n| is_prime(n)).count() as u32;
    let mut sum = 0u32;
    for left in (1..=iterations).rev() {
        let (mut x, mut steps) = (left + 26, 0);
        while x != 1 {
            // An odd x = 2h + 1 becomes 2 (3h + 2) = 3x + 1.
            x = if x % 2 == 0 { x / 2 } else { 3 * x + 1 };
            steps += 1;
        }
        sum = sum.wrapping_add(primes + steps + 144);
    }
    u64::from(sum)
}
