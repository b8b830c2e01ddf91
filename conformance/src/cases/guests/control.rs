//! Control transfer, the stack and mode switches by the guest itself
//! (SDM Vol. 1, "Procedure Calls, Interrupts, and Exceptions"; Vol. 3A, "Mode Switching").

use crate::guest::Mode::*;
use crate::guest::{Guest, guest};
use iced_x86::code_asm::*;

#[rustfmt::skip]
pub(super) fn rows() -> Vec<Guest> {
    vec![
        guest("jcc_loop", Protected32, |a| {
            let mut top = a.create_label();
            a.mov(ecx, 1000)?; a.set_label(&mut top)?; a.add(eax, ecx)?; a.dec(ecx)?; a.jnz(top)
        }, "HLT rax=0x7a314 rcx=0x0"),
        guest("loop_counts_cx_in_real_mode", Real, |a| {
            let mut top = a.create_label();
            a.mov(ecx, 0x1_0003)?; a.set_label(&mut top)?; a.inc(ax)?; a.loop_(top)
        }, "HLT rax=0x3 rcx=0x10000"),
        guest("jecxz", Long, |a| { a.mov(rcx, 0x1_0000_0000_u64)?; a.db(&[0x67, 0xe3, 0x05])?; a.mov(eax, 1) }, "HLT rax=0x0"),
        guest("call_ret", Real, |a| {
            let (mut over, mut function) = (a.create_label(), a.create_label());
            a.call(function)?; a.jmp(over)?; a.set_label(&mut function)?; a.mov(ax, 7)?; a.ret()?; a.set_label(&mut over)?; a.nop()
        }, "HLT rax=0x7 rsp=0x8000 m2:0x7ffe=0x1003"),
        guest("ret_immediate", Protected32, |a| {
            let (mut over, mut function) = (a.create_label(), a.create_label());
            a.push(1)?; a.push(2)?; a.call(function)?; a.jmp(over)?;
            a.set_label(&mut function)?; a.mov(eax, dword_ptr(esp + 4))?; a.ret_1(8)?; a.set_label(&mut over)?; a.nop()
        }, "HLT rax=0x2 rsp=0x8000"),
        guest("call_indirect", Long, |a| { a.mov(eax, 0x2000)?; a.call(rax) }, "HLT rip=0x2001 rsp=0x7ff8 m8:0x7ff8=0x1007").memory(&[(0x2000, &[0xf4])]),
        guest("call_memory", Protected32, |a| a.call(dword_ptr(0x5000)), "HLT rip=0x2001 rsp=0x7ffc").memory(&[(0x2000, &[0xf4]), (0x5000, &[0, 0x20, 0, 0])]),
        guest("far_call_and_return", Real, |a| { a.db(&[0x9a, 0x00, 0x00, 0x00, 0x02])?; a.mov(bx, 5) }, "HLT rax=0x33 rbx=0x5 cs=0x0 rsp=0x8000").memory(&[(0x2000, &[0xb0, 0x33, 0xcb])]),
        guest("far_jump_to_16_bit_code", Protected32, |a| a.db(&[0xea, 0x00, 0x20, 0, 0, 0x38, 0]), "HLT cs=0x38 cs.db=0x0 cs.limit=0xffff rip=0x2004 rax=0x1234").memory(&[(0x2000, &[0xb8, 0x34, 0x12, 0xf4])]),
        guest("push_pop_widths", Protected32, |a| { a.db(&[0x66, 0x68, 0x34, 0x12])?; a.push(0x5678)?; a.pop(eax)?; a.pop(bx) }, "HLT rax=0x5678 rbx=0x1234 rsp=0x8000"),
        guest("push_sign_extends", Long, |a| { a.push(-2)?; a.pop(rax) }, "HLT rax=0xfffffffffffffffe rsp=0x8000"),
        guest("push_sp_is_the_old_value", Real, |a| { a.push(sp)?; a.pop(ax) }, "HLT rax=0x8000"),
        guest("pop_sp", Protected32, |a| { a.push(0x7000)?; a.pop(esp) }, "HLT rsp=0x7000"),
        guest("pusha_popa", Protected32, |a| { a.mov(ebx, 9)?; a.pushad()?; a.xor(ebx, ebx)?; a.popad() }, "HLT rbx=0x9 rsp=0x8000 m4:0x7fec=0x8000"),
        guest("pushf_popf", Real, |a| { a.push(0x0ed5_u32)?; a.popf() }, "HLT rflags=0xed7"),
        guest("popf_keeps_vm_and_rf", Protected32, |a| { a.push(0x0003_0ad5)?; a.popfd() }, "HLT rflags=0xad7"),
        guest("popf_in_ring_3_keeps_iopl_and_if", User32, |a| { a.push(0x3200)?; a.popfd()?; a.pushfd()?; a.pop(eax)?; a.ud2() }, "#UD@+0x8 rax=0x2"),
        guest("enter_leave", Protected32, |a| { a.mov(ebp, 0x1111)?; a.enter(16, 0)?; a.mov(eax, ebp)?; a.mov(ebx, esp)?; a.leave() }, "HLT rax=0x7ffc rbx=0x7fec rsp=0x8000 rbp=0x1111"),
        guest("enter_nested", Real, |a| { a.mov(bp, 0x7800)?; a.enter(4, 2) }, "HLT rsp=0x7ff6 rbp=0x7ffe m2:0x7ffc=0xbeef m2:0x7ffa=0x7ffe").memory(&[(0x77fe, &[0xef, 0xbe])]),
        guest("near_jump_wraps_at_64k", Real, |a| a.db(&[0xe9, 0x00, 0xf0]), "HLT rip=0x4").memory(&[(3, &[0xf4])]),
        guest("iret_real", Real, |a| { a.pushf()?; a.push(0_u32)?; a.push(0x2000_u32)?; a.iret() }, "HLT rip=0x2001 rsp=0x8000 rflags=0x2").memory(&[(0x2000, &[0xf4])]),
        guest("iret_to_ring_3", Protected32, |a| {
            a.push(0x23)?; a.push(0x7000)?; a.push(0x2)?; a.push(0x1b)?; a.push(0x2000)?; a.iretd()
        }, "#UD@+0x1000 cs=0x8 m4:0x8ff0=0x1b m4:0x8ff8=0x7000 m4:0x8ffc=0x23").memory(&[(0x2000, &[0x0f, 0x0b])]),
        guest("iretq_to_ring_3", Long, |a| {
            a.push(0x23)?; a.push(0x7000)?; a.push(0x2)?; a.push(0x1b)?; a.push(0x2000)?; a.iretq()
        }, "#PF(0x15)@+0x1000 cs=0x8 cr2=0x2000"),
        guest("call_gate_to_ring_0", User32, |a| a.db(&[0x9a, 0, 0, 0, 0, 0x60, 0]), "HLT cs=0x8 ss=0x10 rip=0x2001 rsp=0x8ff0 m4:0x8ff0=0x1007 m4:0x8ffc=0x23").memory(&[(0x2000, &[0xf4])]),
        guest("real_to_protected", Real, |a| {
            a.db(&[0x0f, 0x01, 0x16, 0x00, 0x51])?; a.mov(eax, cr0)?; a.or(eax, 1)?; a.mov(cr0, eax)?;
            a.db(&[0xea, 0x00, 0x20, 0x08, 0x00])
        }, "HLT cr0=0x60000011 cs=0x8 cs.db=0x1 rip=0x2006 rax=0x11223344")
            .memory(&[(0x5100, &[0x17, 0, 0, 0x52, 0, 0]), (0x5208, &[0xff, 0xff, 0, 0, 0, 0x9b, 0xcf, 0]), (0x2000, &[0xb8, 0x44, 0x33, 0x22, 0x11, 0xf4])]),
        guest("real_to_long", Real, |a| {
            a.db(&[0x0f, 0x01, 0x16, 0x00, 0x51])?; a.mov(eax, 0x20)?; a.mov(cr4, eax)?; a.mov(eax, 0x1_0000)?; a.mov(cr3, eax)?;
            a.mov(ecx, 0xc000_0080_u32)?; a.mov(eax, 0x100)?; a.xor(edx, edx)?; a.wrmsr()?;
            a.mov(eax, cr0)?; a.or(eax, 0x8000_0001_u32)?; a.mov(cr0, eax)?; a.db(&[0xea, 0x00, 0x20, 0x08, 0x00])
        }, "HLT cr0=0xe0000011 efer=0x500 cs.l=0x1 rip=0x200b rax=0x1122334455667788")
            .memory(&[
                (0x5100, &[0x0f, 0, 0, 0x52, 0, 0]), (0x5208, &[0xff, 0xff, 0, 0, 0, 0x9b, 0xaf, 0]),
                (0x1_0000, &[0x03, 0x10, 1]), (0x1_1000, &[0x03, 0x20, 1]), (0x1_2000, &[0x83]),
                (0x2000, &[0x48, 0xb8, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0xf4]),
            ]).prepare(|p, m| { let _ = m.adopt_cpuid(p); }),
        guest("clear_pg_in_64_bit_mode", Long, |a| { a.mov(rax, cr0)?; a.btr(rax, 31)?; a.mov(cr0, rax) }, "#GP(0x0)@+0x8"),
        guest("set_pg_without_pe", Real, |a| { a.mov(eax, cr0)?; a.or(eax, 0x8000_0000_u32)?; a.mov(cr0, eax) }, "#GP@+0x9"),
        guest("cr4_reserved_bit", Protected32, |a| { a.mov(eax, 0x8000_0000_u32)?; a.mov(cr4, eax) }, "#GP(0x0)@+0x5"),
        guest("cr8", Long, |a| { a.mov(eax, 5)?; a.mov(cr8, rax)?; a.mov(rbx, cr8) }, "HLT rbx=0x5 cr8=0x5"),
        guest("smsw_lmsw", Protected32, |a| { a.mov(eax, 0xe)?; a.lmsw(ax)?; a.smsw(ebx) }, "HLT rbx=0x3f"),
        guest("lmsw_cannot_clear_pe", Protected32, |a| { a.xor(eax, eax)?; a.lmsw(ax)?; a.mov(ebx, cr0) }, "HLT rbx=0x31"),
        guest("syscall", Long, |a| {
            a.mov(ecx, 0xc000_0080_u32)?; a.rdmsr()?; a.or(eax, 1)?; a.wrmsr()?;
            a.mov(ecx, 0xc000_0081_u32)?; a.xor(eax, eax)?; a.mov(edx, 0x0010_0008)?; a.wrmsr()?;
            a.mov(ecx, 0xc000_0082_u32)?; a.mov(eax, 0x2000)?; a.xor(edx, edx)?; a.wrmsr()?;
            a.mov(ecx, 0xc000_0084_u32)?; a.mov(eax, 1)?; a.wrmsr()?; a.stc()?; a.syscall()
        }, "HLT rip=0x2001 rcx=0x1039 r11=0x47 fl=PF|ZF cs=0x8 ss=0x10").memory(&[(0x2000, &[0xf4])]),
        guest("syscall_without_sce", Long, |a| a.syscall(), "#UD@+0x0"),
        guest("sysenter", Protected32, |a| {
            a.mov(ecx, 0x174)?; a.mov(eax, 8)?; a.xor(edx, edx)?; a.wrmsr()?; a.mov(ecx, 0x175)?; a.mov(eax, 0x6000)?; a.wrmsr()?;
            a.mov(ecx, 0x176)?; a.mov(eax, 0x2000)?; a.wrmsr()?; a.sysenter()
        }, "HLT rip=0x2001 rsp=0x6000 cs=0x8 ss=0x10").memory(&[(0x2000, &[0xf4])]),
        guest("swapgs", Long, |a| {
            a.mov(ecx, 0xc000_0102_u32)?; a.mov(eax, 0x5000)?; a.xor(edx, edx)?; a.wrmsr()?; a.swapgs()?; a.mov(rbx, qword_ptr(0x8).gs())
        }, "HLT rbx=0x1122 gs.base=0x5000 msr:0xc0000102=0x0").memory(&[(0x5008, &[0x22, 0x11])]),
    ]
}
