//! The VM-exit instruction-information field, and the qualification that is a displacement.
//!
//! SDM Vol. 3C, "Information for VM Exits Due to Instruction Execution". The layouts differ by
//! instruction; what they share is built by [`memory_operand`].

use iced_x86::Mnemonic;
use vmx_model::precondition::Instruction;

use crate::insn::{Insn, Operand, RegisterOffset, ZERO_REGISTER};
use crate::mem::access::address_mask;

/// Bit 10: the operand is a register.
const REGISTER_FORM: u32 = 1 << 10;
/// Bit 22: there is no index register.
const NO_INDEX: u32 = 1 << 22;
/// Bit 27: there is no base register.
const NO_BASE: u32 = 1 << 27;

/// Returns the instruction information of a VMX instruction.
pub(crate) fn instruction_info(instruction: Instruction, insn: &Insn) -> u32 {
    match instruction {
        Instruction::Vmclear | Instruction::Vmptrld | Instruction::Vmptrst | Instruction::Vmxon => {
            memory_operand(insn)
        }
        Instruction::Vmread => operand_and_encoding(insn, 0, 1),
        Instruction::Vmwrite => operand_and_encoding(insn, 1, 0),
        Instruction::Invept | Instruction::Invvpid => invalidation(insn),
        _ => 0,
    }
}

/// Returns the layout of VMREAD and VMWRITE: the operand `rm`, the field encoding's register in
/// operand `encoding`.
fn operand_and_encoding(insn: &Insn, rm: usize, encoding: usize) -> u32 {
    let reg2 = register_number(insn.operands[encoding]) << 28;
    match insn.operands[rm] {
        Operand::Memory => memory_operand(insn) | reg2,
        register => REGISTER_FORM | register_number(register) << 3 | reg2,
    }
}

/// Returns the part that describes the memory operand: scale, address size, segment, index, base.
pub(crate) fn memory_operand(insn: &Insn) -> u32 {
    let m = &insn.memory;
    let mut info = address_size(insn) | (m.segment as u32) << 15;
    if m.index == ZERO_REGISTER {
        info |= NO_INDEX;
    } else {
        info |= u32::from(m.scale_shift) | number(m.index) << 18;
    }
    if m.base == ZERO_REGISTER {
        info |= NO_BASE;
    } else {
        info |= number(m.base) << 23;
    }
    info
}

/// Returns bits 9:7: 0 for 16-bit addresses, 1 for 32-bit, 2 for 64-bit.
pub(crate) fn address_size(insn: &Insn) -> u32 {
    u32::from(insn.address_bytes)
        .trailing_zeros()
        .saturating_sub(1)
        << 7
}

/// Returns the number of a general-purpose register operand; 0 for anything else.
pub(crate) fn register_number(operand: Operand) -> u32 {
    match operand {
        Operand::Register(offset) => number(offset),
        _ => 0,
    }
}

fn number(offset: RegisterOffset) -> u32 {
    u32::from(offset >> 3)
}

/// Returns the exit qualification of an instruction whose qualification is the displacement of its
/// memory operand: 0 without one.
pub(crate) fn displacement(insn: &Insn) -> u64 {
    if insn.operands.contains(&Operand::Memory) {
        insn.memory.displacement & address_mask(insn.address_bytes)
    } else {
        0
    }
}

/// Returns the layout of LGDT, LIDT, SGDT and SIDT.
pub(crate) fn table_register(insn: &Insn) -> u32 {
    let identity = match insn.code.mnemonic() {
        Mnemonic::Sgdt => 0,
        Mnemonic::Sidt => 1,
        Mnemonic::Lgdt => 2,
        _ => 3,
    };
    let is_dword = u32::from(insn.operand_bytes != 2);
    memory_operand(insn) | is_dword << 11 | identity << 28
}

/// Returns the layout of LLDT, LTR, SLDT and STR.
pub(crate) fn system_register(insn: &Insn) -> u32 {
    let identity = match insn.code.mnemonic() {
        Mnemonic::Sldt => 0,
        Mnemonic::Str => 1,
        Mnemonic::Lldt => 2,
        _ => 3,
    };
    let operand = match insn.operands[0] {
        Operand::Memory => memory_operand(insn),
        register => REGISTER_FORM | register_number(register) << 3,
    };
    operand | identity << 28
}

/// Returns the layout of INVEPT, INVVPID and INVPCID.
pub(crate) fn invalidation(insn: &Insn) -> u32 {
    memory_operand(insn) | register_number(insn.operands[0]) << 28
}

/// Returns the layout of RDRAND and RDSEED.
pub(crate) fn random(insn: &Insn) -> u32 {
    let size = u32::from(insn.operand_bytes)
        .trailing_zeros()
        .saturating_sub(1);
    register_number(insn.operands[0]) << 3 | size << 11
}

/// Returns the layout of INS and OUTS; the segment counts for OUTS only.
pub(crate) fn string_port(insn: &Insn) -> u32 {
    let is_input = matches!(
        insn.code.mnemonic(),
        Mnemonic::Insb | Mnemonic::Insw | Mnemonic::Insd
    );
    let segment = if is_input {
        0
    } else {
        (insn.memory.segment as u32) << 15
    };
    address_size(insn) | segment
}
