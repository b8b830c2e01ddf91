//! Programs that are hypervisors: they need a processor with VMX, and run on it directly.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use vmx_model::exit_reason::ExitReason;
use vmx_model::field::{Field, Kind};

use super::{Bits, Group, Program};

pub(super) const ROUND_TRIP: Program = Program {
    name: "vmcall",
    what: "VMCALL exit, three VMREADs, a VMWRITE, VMRESUME",
    bits: Bits::Long64,
    group: Group::Vmx,
    iterations: 20_000,
    emit: emit_round_trip,
    expected: round_trip,
};

pub(super) const VMCS: Program = Program {
    name: "vmcs",
    what: "a VMREAD and a VMWRITE",
    bits: Bits::Long64,
    group: Group::Vmx,
    iterations: 100_000,
    emit: emit_vmcs,
    expected: vmcs,
};

const VMCALL_BYTES: u64 = 3;

/// Where in the data area the VMXON region and the VMCS are, and a pointer to either.
const VMXON_REGION: i32 = 0;
const VMCS_REGION: i32 = 0x1000;
const POINTER: i32 = 0x2000;

const IA32_FEATURE_CONTROL: u32 = 0x3a;
/// Locked, VMX allowed outside SMX.
const FEATURE_CONTROL_VMX: u32 = 5;
const IA32_VMX_BASIC: u32 = 0x480;
const CR0_NE: i32 = 1 << 5;
const CR4_VMXE: i32 = 1 << 13;
/// "IA-32e mode guest" of the VM-entry, "host address-space size" of the VM-exit controls.
const LONG_MODE: i32 = 1 << 9;

/// Control fields, the MSR whose low half has the bits that must be 1, and what is set besides.
const CONTROLS: [(Field, u32, i32); 4] = [
    (Field::PIN_CONTROLS, 0x481, 0),
    (Field::PROC_CONTROLS, 0x482, 0),
    (Field::EXIT_CONTROLS, 0x483, LONG_MODE),
    (Field::ENTRY_CONTROLS, 0x484, LONG_MODE),
];

/// Guest state as the program's own mode has it, and what else has a constant value. Everything
/// that is not named is 0.
const CONSTANTS: &[(Field, i64)] = &[
    (Field::VMCS_LINK_POINTER, -1),
    (Field::GUEST_DR7, 0x400),
    (Field::GUEST_RFLAGS, 2),
    (Field::GUEST_CS_SELECTOR, 0x08),
    (Field::GUEST_CS_LIMIT, 0xffff_ffff),
    (Field::GUEST_CS_ACCESS_RIGHTS, 0xa09b),
    (Field::GUEST_SS_SELECTOR, 0x10),
    (Field::GUEST_SS_LIMIT, 0xffff_ffff),
    (Field::GUEST_SS_ACCESS_RIGHTS, 0xc093),
    (Field::GUEST_DS_SELECTOR, 0x10),
    (Field::GUEST_DS_LIMIT, 0xffff_ffff),
    (Field::GUEST_DS_ACCESS_RIGHTS, 0xc093),
    (Field::GUEST_ES_ACCESS_RIGHTS, 0x1_0000),
    (Field::GUEST_FS_ACCESS_RIGHTS, 0x1_0000),
    (Field::GUEST_GS_ACCESS_RIGHTS, 0x1_0000),
    (Field::GUEST_LDTR_ACCESS_RIGHTS, 0x1_0000),
    (Field::GUEST_TR_LIMIT, 0x67),
    (Field::GUEST_TR_ACCESS_RIGHTS, 0x8b),
    (Field::GUEST_TR_SELECTOR, 0x20),
    (Field::HOST_CS_SELECTOR, 0x08),
    (Field::HOST_SS_SELECTOR, 0x10),
    (Field::HOST_DS_SELECTOR, 0x10),
    (Field::HOST_TR_SELECTOR, 0x20),
];

/// Executes VMXON, VMCLEAR and VMPTRLD with regions in the data area (RSI).
fn emit_enable(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut is_locked = a.create_label();
    a.mov(ecx, IA32_FEATURE_CONTROL)?;
    a.rdmsr()?;
    a.test(al, 1)?;
    a.jnz(is_locked)?;
    a.mov(eax, FEATURE_CONTROL_VMX)?;
    a.xor(edx, edx)?;
    a.wrmsr()?;
    a.set_label(&mut is_locked)?;
    a.mov(rax, cr0)?;
    a.or(rax, CR0_NE)?;
    a.mov(cr0, rax)?;
    a.mov(rax, cr4)?;
    a.or(rax, CR4_VMXE)?;
    a.mov(cr4, rax)?;
    a.mov(ecx, IA32_VMX_BASIC)?;
    a.rdmsr()?;
    a.mov(dword_ptr(rsi + VMXON_REGION), eax)?;
    a.mov(dword_ptr(rsi + VMCS_REGION), eax)?;
    a.mov(qword_ptr(rsi + POINTER), rsi)?;
    a.vmxon(qword_ptr(rsi + POINTER))?;
    a.lea(rax, qword_ptr(rsi + VMCS_REGION))?;
    a.mov(qword_ptr(rsi + POINTER), rax)?;
    a.vmclear(qword_ptr(rsi + POINTER))?;
    a.vmptrld(qword_ptr(rsi + POINTER))
}

/// Writes RAX to a field of the current VMCS; changes RDX.
fn emit_write(a: &mut CodeAssembler, field: Field) -> Result<(), IcedError> {
    a.mov(edx, field.encoding())?;
    a.vmwrite(rdx, rax)
}

/// Makes the current VMCS one whose guest is in the mode of this program.
fn emit_fields(a: &mut CodeAssembler, guest: CodeLabel, host: CodeLabel) -> Result<(), IcedError> {
    // VMWRITE to a field that the processor has not fails, and changes nothing.
    for field in Field::ALL
        .into_iter()
        .filter(|f| f.kind() != Kind::ReadOnly)
    {
        a.xor(eax, eax)?;
        emit_write(a, field)?;
    }
    for &(field, value) in CONSTANTS {
        a.mov(rax, value)?;
        emit_write(a, field)?;
    }
    for (field, msr, besides) in CONTROLS {
        a.mov(ecx, msr)?;
        a.rdmsr()?;
        a.or(eax, besides)?;
        emit_write(a, field)?;
    }
    for (register, fields) in [
        (cr0, [Field::GUEST_CR0, Field::HOST_CR0]),
        (cr3, [Field::GUEST_CR3, Field::HOST_CR3]),
        (cr4, [Field::GUEST_CR4, Field::HOST_CR4]),
    ] {
        a.mov(rax, register)?;
        fields.into_iter().try_for_each(|f| emit_write(a, f))?;
    }
    a.mov(rax, rsp)?;
    emit_write(a, Field::GUEST_RSP)?;
    emit_write(a, Field::HOST_RSP)?;
    a.lea(rax, qword_ptr(guest))?;
    emit_write(a, Field::GUEST_RIP)?;
    a.lea(rax, qword_ptr(host))?;
    emit_write(a, Field::HOST_RIP)
}

fn emit_round_trip(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut guest = a.create_label();
    let mut exit = a.create_label();
    let mut done = a.create_label();
    a.mov(r12, rdi)?;
    a.xor(r13d, r13d)?;
    emit_enable(a)?;
    emit_fields(a, guest, exit)?;
    a.vmlaunch()?;
    a.jmp(done)?;
    a.set_label(&mut guest)?;
    a.vmcall()?;
    a.jmp(guest)?;
    a.set_label(&mut exit)?;
    a.mov(edx, Field::EXIT_REASON.encoding())?;
    a.vmread(rax, rdx)?;
    a.add(r13, rax)?;
    a.mov(edx, Field::VM_EXIT_INSTRUCTION_LENGTH.encoding())?;
    a.vmread(rbx, rdx)?;
    a.add(r13, rbx)?;
    a.mov(edx, Field::GUEST_RIP.encoding())?;
    a.vmread(rax, rdx)?;
    a.add(rax, rbx)?;
    a.vmwrite(rdx, rax)?;
    a.dec(r12)?;
    a.jz(done)?;
    a.vmresume()?;
    a.set_label(&mut done)?;
    a.mov(rax, r13)?;
    a.vmxoff()?;
    a.ret()
}

fn round_trip(iterations: u32, _: u64) -> u64 {
    u64::from(iterations) * (u64::from(ExitReason::VMCALL.0) + VMCALL_BYTES)
}

fn emit_vmcs(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.mov(r12, rdi)?;
    emit_enable(a)?;
    a.mov(edx, Field::GUEST_RSP.encoding())?;
    a.xor(eax, eax)?;
    a.vmwrite(rdx, rax)?;
    a.set_label(&mut again)?;
    a.vmread(rax, rdx)?;
    a.add(rax, r12)?;
    a.vmwrite(rdx, rax)?;
    a.dec(r12)?;
    a.jnz(again)?;
    a.vmxoff()?;
    a.ret()
}

fn vmcs(iterations: u32, _: u64) -> u64 {
    let n = u64::from(iterations);
    n * (n + 1) / 2
}
