//! A bytecode interpreter: indirect jumps through a table.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::{Bits, Group, Program};

pub(super) const BYTECODE: Program = Program {
    name: "bcvm",
    what: "bytecode interpreter with a jump table",
    bits: Bits::Long64,
    group: Group::Integer,
    iterations: 60_000,
    emit,
    expected,
};

const ADD: u8 = 0;
const XOR: u8 = 1;
const ROTATE: u8 = 2;
const MULTIPLY: u8 = 3;
const STORE: u8 = 4;
const LOAD: u8 = 5;
const LOOP: u8 = 6;
const HALT: u8 = 7;

/// Opcode, operand.
const CODE: [u8; 20] = [
    ADD, 17, ROTATE, 5, STORE, 1, XOR, 0xa5, MULTIPLY, 13, ADD, 99, LOAD, 1, ROTATE, 11, LOOP, 0,
    HALT, 0,
];

/// Offset of the virtual machine's memory in the data area; the jump table is at 0.
const CELLS: i32 = 0x100;

fn emit(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut handlers: Vec<CodeLabel> = (0..8).map(|_| a.create_label()).collect();
    let mut code = a.create_label();
    for (i, handler) in handlers.iter().enumerate() {
        a.lea(rax, ptr(*handler))?;
        a.mov(qword_ptr(rsi + 8 * i as i32), rax)?;
    }
    a.lea(r12, ptr(code))?;
    a.xor(r9d, r9d)?;
    a.xor(r11d, r11d)?;
    emit_dispatch(a)?;
    for (opcode, handler) in handlers.iter_mut().enumerate() {
        a.set_label(handler)?;
        match opcode as u8 {
            ADD => a.add(r9, rbx)?,
            XOR => a.xor(r9, rbx)?,
            ROTATE => {
                a.mov(ecx, ebx)?;
                a.rol(r9, cl)?;
            }
            MULTIPLY => a.imul_2(r9, rbx)?,
            STORE => a.mov(qword_ptr(rsi + rbx * 8 + CELLS), r9)?,
            LOAD => a.add(r9, qword_ptr(rsi + rbx * 8 + CELLS))?,
            LOOP => {
                let mut over = a.create_label();
                a.dec(rdi)?;
                a.jz(over)?;
                a.mov(r11, rbx)?;
                a.set_label(&mut over)?;
                a.nop()?;
            }
            _ => {
                a.mov(rax, r9)?;
                a.ret()?;
                continue;
            }
        }
        emit_dispatch(a)?;
    }
    a.set_label(&mut code)?;
    a.db(&CODE)
}

/// EAX = opcode, RBX = operand at R12 + R11; jumps to the opcode's handler.
fn emit_dispatch(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.movzx(eax, byte_ptr(r12 + r11))?;
    a.movzx(ebx, byte_ptr(r12 + r11 + 1))?;
    a.add(r11, 2)?;
    a.jmp(qword_ptr(rsi + rax * 8))
}

fn expected(iterations: u32, _: u64) -> u64 {
    let (mut acc, mut pc, mut left) = (0u64, 0usize, iterations);
    let mut cells = [0u64; 256];
    loop {
        let (opcode, operand) = (CODE[pc], CODE[pc + 1]);
        pc += 2;
        match opcode {
            ADD => acc = acc.wrapping_add(u64::from(operand)),
            XOR => acc ^= u64::from(operand),
            ROTATE => acc = acc.rotate_left(u32::from(operand)),
            MULTIPLY => acc = acc.wrapping_mul(u64::from(operand)),
            STORE => cells[usize::from(operand)] = acc,
            LOAD => acc = acc.wrapping_add(cells[usize::from(operand)]),
            LOOP => {
                left -= 1;
                if left != 0 {
                    pc = usize::from(operand);
                }
            }
            _ => return acc,
        }
    }
}
