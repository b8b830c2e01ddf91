//! The code of a hypervisor in VMX root operation.

use super::image::{
    CODE_64, ENTER, ENTRY, EXIT, GDTR, HANDLER_BYTES, HANDLERS, IDTR, LEFT, NEXT, PML4, POINTER,
    READ_FIELDS, RESULTS, STACK, VECTORS, VMCS_FIELDS, VMCS_REGION, VMXON_REGION,
};
use super::{Start, assemble, end};
use crate::guest::Code;
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use vmx_model::field::Field;

const IA32_FEATURE_CONTROL: u32 = 0x3a;
/// Locked, VMX allowed outside SMX.
const FEATURE_CONTROL_VMX: u32 = 5;
const IA32_VMX_BASIC: u32 = 0x480;
const IA32_EFER: u32 = 0xc000_0080;
const EFER_LME: u32 = 1 << 8;
/// PE, NE, and for 64-bit mode PG.
const CR0: u32 = 0x21;
const CR0_PG: u32 = 1 << 31;
/// VMXE, and for 64-bit mode PAE.
const CR4: u32 = 1 << 13;
const CR4_PAE: u32 = 1 << 5;
const DEBUG_EXIT: u32 = 0xf4;

/// Ends the machine.
fn finish(a: &mut CodeAssembler, value: u32) -> Result<(), IcedError> {
    a.mov(eax, value)?;
    a.out(DEBUG_EXIT, eax)?;
    a.hlt()
}

fn allow_vmx(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut is_locked = a.create_label();
    a.mov(ecx, IA32_FEATURE_CONTROL)?;
    a.rdmsr()?;
    a.test(al, 1)?;
    a.jnz(is_locked)?;
    a.mov(eax, FEATURE_CONTROL_VMX)?;
    a.xor(edx, edx)?;
    a.wrmsr()?;
    a.set_label(&mut is_locked)?;
    a.mov(ecx, IA32_VMX_BASIC)?;
    a.rdmsr()?;
    a.mov(dword_ptr(VMXON_REGION), eax)?;
    a.mov(dword_ptr(VMCS_REGION), eax)?;
    a.mov(dword_ptr(POINTER), VMXON_REGION as u32)
}

/// What the loader enters: 32-bit code without paging.
pub(super) fn protected(start: Start) -> Result<Vec<u8>, IcedError> {
    assemble(32, ENTRY, |a| {
        a.mov(esp, STACK as u32)?;
        a.lgdt(fword_ptr(GDTR))?;
        a.lidt(fword_ptr(IDTR))?;
        allow_vmx(a)?;
        if start == Start::VmxonUnpaged {
            a.mov(eax, CR0)?;
            a.mov(cr0, eax)?;
            a.mov(eax, CR4)?;
            a.mov(cr4, eax)?;
            a.vmxon(qword_ptr(POINTER))?;
            return finish(a, end::VMX_OPERATION);
        }
        a.mov(eax, CR4 | CR4_PAE)?;
        a.mov(cr4, eax)?;
        a.mov(eax, PML4 as u32)?;
        a.mov(cr3, eax)?;
        a.mov(ecx, IA32_EFER)?;
        a.mov(eax, EFER_LME)?;
        a.xor(edx, edx)?;
        a.wrmsr()?;
        a.mov(eax, CR0 | CR0_PG)?;
        a.mov(cr0, eax)?;
        a.push(u32::from(CODE_64))?;
        a.push(ENTER as u32)?;
        a.retf()
    })
}

/// 64-bit code up to VM entry.
pub(super) fn enter(start: Start) -> Result<Vec<u8>, IcedError> {
    assemble(64, ENTER, |a| {
        let mut failed = a.create_label();
        let mut next = a.create_label();
        let mut launch = a.create_label();
        a.lidt(tbyte_ptr(IDTR + 0x10))?;
        a.mov(esi, VMXON_REGION as u32)?;
        a.vmxon(qword_ptr(POINTER))?;
        a.jbe(failed)?;
        if start == Start::VmxonPaged {
            finish(a, end::VMX_OPERATION)?;
        }
        a.mov(dword_ptr(POINTER), VMCS_REGION as u32)?;
        a.mov(esi, VMCS_REGION as u32)?;
        a.vmclear(qword_ptr(POINTER))?;
        a.jbe(failed)?;
        a.vmptrld(qword_ptr(POINTER))?;
        a.jbe(failed)?;
        a.mov(ebx, VMCS_FIELDS as u32)?;
        a.set_label(&mut next)?;
        a.mov(rsi, qword_ptr(rbx))?;
        a.cmp(rsi, -1)?;
        a.je(launch)?;
        a.mov(rax, qword_ptr(rbx + 8))?;
        a.add(rbx, 16)?;
        a.vmwrite(rsi, rax)?;
        a.ja(next)?;
        a.set_label(&mut failed)?;
        a.mov(qword_ptr(RESULTS), rsi)?;
        finish(a, end::FAILED)?;
        a.set_label(&mut launch)?;
        a.vmlaunch()?;
        entry_failed(a)
    })
}

fn entry_failed(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(edx, Field::VM_INSTRUCTION_ERROR.encoding())?;
    a.vmread(rax, rdx)?;
    a.mov(qword_ptr(RESULTS), rax)?;
    finish(a, end::ENTRY_FAILED)
}

/// What a VM exit goes to: writes the fields down, and resumes until all exits were seen.
pub(super) fn exit(between: Code) -> Result<Vec<u8>, IcedError> {
    assemble(64, EXIT, |a| {
        let mut next = a.create_label();
        let mut all = a.create_label();
        let mut resume = a.create_label();
        a.mov(rdi, qword_ptr(NEXT))?;
        a.mov(ebx, READ_FIELDS as u32)?;
        a.set_label(&mut next)?;
        a.mov(rdx, qword_ptr(rbx))?;
        a.cmp(rdx, -1)?;
        a.je(all)?;
        a.vmread(rax, rdx)?;
        a.mov(qword_ptr(rdi), rax)?;
        a.add(rdi, 8)?;
        a.add(rbx, 8)?;
        a.jmp(next)?;
        a.set_label(&mut all)?;
        a.mov(qword_ptr(NEXT), rdi)?;
        a.dec(qword_ptr(LEFT))?;
        a.jnz(resume)?;
        finish(a, end::DONE)?;
        a.set_label(&mut resume)?;
        between(a)?;
        a.vmresume()?;
        entry_failed(a)
    })
}

/// Handlers of the exceptions, of 32-bit and of 64-bit code.
pub(super) fn handlers() -> Result<Vec<u8>, IcedError> {
    let mut bytes = Vec::new();
    for vector in VECTORS {
        for bits in [32, 64] {
            let at = HANDLERS + bytes.len() as u64;
            let mut handler = assemble(bits, at, |a| {
                // The error code, for those exceptions that have one.
                match bits {
                    32 => a.mov(eax, dword_ptr(esp))?,
                    _ => a.mov(eax, dword_ptr(rsp))?,
                }
                a.mov(dword_ptr(RESULTS), eax)?;
                finish(a, end::EXCEPTION | (vector as u32) << 8)
            })?;
            handler.resize(HANDLER_BYTES as usize, 0xcc);
            bytes.append(&mut handler);
        }
    }
    Ok(bytes)
}
