//! The code that enters and leaves a case on the host: assembled for fixed addresses below 4 GiB.

use super::Bits;
use super::host::{CONTROL, Control};
use iced_x86::IcedError;
use iced_x86::code_asm::{
    AsmMemoryOperand, AsmRegister64, CodeAssembler, byte_ptr, dword_ptr, eax, edx, fword_ptr, ptr,
    qword_ptr, r8, r9, r10, r11, r12, r13, r14, r15, rax, rbp, rbx, rcx, rdi, rdx, rsi, rsp,
    word_ptr,
};
use std::mem::offset_of;

/// The state components that are loaded and saved: x87, SSE, AVX, and the three of AVX-512.
const COMPONENTS: u32 = 0xe7;

/// The general-purpose registers by number.
const GPR: [AsmRegister64; 16] = [
    rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15,
];
/// Where the number of RSP is.
const RSP: usize = 4;

/// The code and the addresses in it.
pub(super) struct Stub {
    pub(super) code: Vec<u8>,
    /// Where an instruction that completed goes on.
    pub(super) leave: u64,
    /// Where a signal handler goes on.
    pub(super) abandon: u64,
}

/// Assembles the stub for `address`; its entry is its first byte.
pub(super) fn assemble(address: u64, bits: Bits) -> Result<Stub, IcedError> {
    let enter = assemble_part(address, |a| enter(a, bits))?;
    let leave_at = address + enter.len() as u64;
    let leave = assemble_part(leave_at, leave)?;
    let abandon_at = leave_at + leave.len() as u64;
    let abandon = assemble_part(abandon_at, abandon)?;
    Ok(Stub {
        code: [enter, leave, abandon].concat(),
        leave: leave_at,
        abandon: abandon_at,
    })
}

fn assemble_part(
    address: u64,
    part: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    part(&mut a)?;
    a.assemble(address)
}

/// A field of the control page.
fn at(offset: usize) -> u64 {
    CONTROL + offset as u64
}

fn gpr_field(registers: usize, n: usize) -> AsmMemoryOperand {
    qword_ptr(at(registers + 8 * n))
}

const BEFORE: usize = offset_of!(Control, before);
const AFTER: usize = offset_of!(Control, after);
/// Offsets in [`super::host::Registers`].
const RIP: usize = 128;
const RFLAGS: usize = 136;

/// Saves what the C ABI wants kept, loads the state of the case and goes to its instruction.
fn enter(a: &mut CodeAssembler, bits: Bits) -> Result<(), IcedError> {
    for register in [rbx, rbp, r12, r13, r14, r15] {
        a.push(register)?;
    }
    a.pushfq()?;
    a.mov(qword_ptr(at(offset_of!(Control, host_rsp))), rsp)?;
    a.fnstcw(word_ptr(at(offset_of!(Control, host_control))))?;
    a.stmxcsr(dword_ptr(at(offset_of!(Control, host_mxcsr))))?;
    a.mov(eax, COMPONENTS)?;
    a.xor(edx, edx)?;
    a.xrstor64(ptr(at(offset_of!(Control, area_before))))?;
    a.mov(rsp, qword_ptr(at(offset_of!(Control, stack_top))))?;
    a.push(qword_ptr(at(BEFORE + RFLAGS)))?;
    a.popfq()?;
    for (n, &register) in GPR.iter().enumerate() {
        a.mov(register, gpr_field(BEFORE, n))?;
    }
    match bits {
        Bits::B64 => a.jmp(qword_ptr(at(BEFORE + RIP))),
        Bits::B32 => a.jmp(fword_ptr(at(offset_of!(Control, far)))),
    }
}

/// Saves the state of the case.
fn leave(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(gpr_field(AFTER, RSP), rsp)?;
    a.mov(rsp, qword_ptr(at(offset_of!(Control, stack_top))))?;
    for (n, &register) in GPR.iter().enumerate().filter(|&(n, _)| n != RSP) {
        a.mov(gpr_field(AFTER, n), register)?;
    }
    a.pushfq()?;
    a.pop(qword_ptr(at(AFTER + RFLAGS)))?;
    a.mov(eax, COMPONENTS)?;
    a.xor(edx, edx)?;
    a.xsave64(ptr(at(offset_of!(Control, area_after))))?;
    a.mov(byte_ptr(at(offset_of!(Control, has_completed))), 1)
}

/// Goes back to who entered.
fn abandon(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.fninit()?;
    a.fldcw(word_ptr(at(offset_of!(Control, host_control))))?;
    a.ldmxcsr(dword_ptr(at(offset_of!(Control, host_mxcsr))))?;
    a.vzeroupper()?;
    a.mov(rsp, qword_ptr(at(offset_of!(Control, host_rsp))))?;
    a.popfq()?;
    for register in [r15, r14, r13, r12, rbp, rbx] {
        a.pop(register)?;
    }
    a.ret()
}
