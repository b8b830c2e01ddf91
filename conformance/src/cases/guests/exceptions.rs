//! Exceptions: delivery, error codes, priorities, double and triple faults
//! (SDM Vol. 3A, "Interrupt and Exception Handling").

use crate::guest::Mode::*;
use crate::guest::{Guest, guest};
use iced_x86::code_asm::*;

const RAX_99: &[(&str, u64)] = &[("rax", 99)];
/// The gate of #GP in a 32-bit table, absent.
const ABSENT_GP: &[(u64, &[u8])] = &[(0x3000 + 13 * 8 + 5, &[0x0e])];
const ABSENT_GP_DF: &[(u64, &[u8])] = &[
    (0x3000 + 13 * 8 + 5, &[0x0e]),
    (0x3000 + 8 * 8 + 5, &[0x0e]),
];

#[rustfmt::skip]
pub(super) fn rows() -> Vec<Guest> {
    vec![
        guest("ud2_real", Real, |a| a.ud2(), "#UD@+0x0 rsp=0x7ffa"),
        guest("ud2_protected_16", Protected16, |a| a.ud2(), "#UD@+0x0 rsp=0x7ffa"),
        guest("ud2_protected_32", Protected32, |a| a.ud2(), "#UD@+0x0 rsp=0x7ff4"),
        guest("ud2_ring_3", User32, |a| a.ud2(), "#UD@+0x0 rsp=0x8fec cs=0x8 ss=0x10 m4:0x8ff0=0x1b m4:0x8ff8=0x8000 m4:0x8ffc=0x23"),
        guest("ud2_paged32", Paged32, |a| a.ud2(), "#UD@+0x0 rsp=0x7ff4"),
        guest("ud2_pae", PagedPae, |a| a.ud2(), "#UD@+0x0 rsp=0x7ff4"),
        guest("ud2_long", Long, |a| a.ud2(), "#UD@+0x0 rsp=0x7fd8 m8:0x7fe0=0x8 m8:0x7ff0=0x8000 m8:0x7ff8=0x10"),
        guest("ud2_long_ring_3", LongUser, |a| a.ud2(), "#UD@+0x0 rsp=0x8fd8 cs=0x8 ss=0x0 m8:0x8fe0=0x1b m8:0x8ff8=0x23"),
        guest("ud2_compatibility", Compatibility, |a| a.ud2(), "#UD@+0x0 rsp=0x7fd8 m8:0x7fe0=0x8"),
        guest("long_mode_aligns_the_stack", Long, |a| { a.mov(esp, 0x7ff5)?; a.ud2() }, "#UD@+0x5 rsp=0x7fc8 m8:0x7fe0=0x7ff5"),
        guest("divide", Real, |a| { a.xor(cx, cx)?; a.div(cx) }, "#DE@+0x2 rax=0x0"),
        guest("int3", Protected32, |a| a.int3(), "#BP@+0x1"),
        guest("int3_ring_3", User32, |a| a.int3(), "#BP@+0x1 cs=0x8"),
        guest("int_n", Real, |a| a.int(0x21), "INT(0x21)@+0x2 rsp=0x7ffa"),
        guest("int_clears_if_and_tf", Protected32, |a| { a.sti()?; a.int(0x30) }, "INT(0x30)@+0x3 rflags=0x2 m4:0x7ffc=0x202"),
        guest("int_n_ring_3_allowed", User32, |a| a.int(0x30), "INT(0x30)@+0x2 cs=0x8"),
        guest("int_n_ring_3_refused", User32, |a| a.int(0x31), "#GP(0x18a)@+0x0"),
        guest("int_3_long_form", Protected32, |a| a.db(&[0xcd, 3]), "#BP@+0x2"),
        guest("into_taken", Protected32, |a| { a.mov(al, 0x7f)?; a.inc(al)?; a.into() }, "#OF@+0x5"),
        guest("into_not_taken", Protected32, |a| { a.xor(eax, eax)?; a.into() }, "HLT"),
        guest("into_in_64_bit_mode", Long, |a| a.db(&[0xce]), "#UD@+0x0"),
        guest("bound_inside", Protected32, |a| { a.mov(eax, 5)?; a.bound(eax, qword_ptr(0x5000)) }, "HLT").memory(&[(0x5000, &[1, 0, 0, 0, 9, 0, 0, 0])]),
        guest("bound_outside", Protected32, |a| { a.mov(eax, 10)?; a.bound(eax, qword_ptr(0x5000)) }, "#BR@+0x5").memory(&[(0x5000, &[1, 0, 0, 0, 9, 0, 0, 0])]),
        guest("lock_on_a_register", Protected32, |a| a.db(&[0xf0, 0x01, 0xc0]), "#UD@+0x0"),
        guest("lock_on_a_load", Protected32, |a| a.db(&[0xf0, 0x8b, 0x05, 0, 0x50, 0, 0]), "#UD@+0x0"),
        guest("instruction_of_16_bytes", Protected32, |a| a.db(&[0x3e, 0x3e, 0x3e, 0x3e, 0x3e, 0x3e, 0x3e, 0x3e, 0x3e, 0x3e, 0x3e, 0x3e, 0x3e, 0x3e, 0x3e, 0x90]), "#GP(0x0)@+0x0"),
        guest("removed_in_64_bit_mode", Long, |a| a.db(&[0x27]), "#UD@+0x0"),
        guest("ldt_of_real_mode", Real, |a| a.db(&[0x0f, 0x00, 0xc0]), "#UD@+0x0"),
        guest("device_not_available", Protected32, |a| a.fnop(), "#NM@+0x0").system(|s| s.cr0 |= 8),
        guest("emulated_x87", Protected32, |a| a.fninit(), "#NM@+0x0").system(|s| s.cr0 |= 4),
        guest("clts", Protected32, |a| { a.clts()?; a.mov(eax, cr0) }, "HLT rax=0x31").system(|s| s.cr0 |= 8),
        guest("alignment_check", User32, |a| { a.push(0x4_0002)?; a.popfd()?; a.mov(eax, dword_ptr(0x5001)) }, "#AC(0x0)@+0x6").system(|s| s.cr0 |= 1 << 18),
        guest("alignment_check_not_in_ring_0", Protected32, |a| { a.push(0x4_0002)?; a.popfd()?; a.mov(eax, dword_ptr(0x5001)) }, "HLT").system(|s| s.cr0 |= 1 << 18),
        guest("gp_through_an_absent_gate_is_a_double_fault", Protected32, |a| { a.mov(eax, 0x100)?; a.mov(ds, eax) }, "#DF(0x0)@+0x5").memory(ABSENT_GP),
        guest("double_fault_through_an_absent_gate_is_a_triple_fault", Protected32, |a| { a.mov(eax, 0x100)?; a.mov(ds, eax) }, "SHUTDOWN").memory(ABSENT_GP_DF),
        guest("absent_gate_alone", Protected32, |a| a.int(0x0d), "#NP(0x6a)@+0x0").memory(ABSENT_GP),
        guest("gate_beyond_the_limit", Protected32, |a| a.int(0x40), "#GP(0x202)@+0x0").system(|s| s.idt.limit = 0x1ff),
        guest("page_fault_then_absent_gate_is_a_double_fault", Long, |a| a.mov(bl, byte_ptr(0x40_0000)), "#DF(0x0)@+0x0 cr2=0x400000").memory(&[(0x3000 + 14 * 16 + 5, &[0x0e])]),
        guest("triple_fault_real", Real, |a| a.int3(), "SHUTDOWN").system(|s| s.idt.limit = 0),
        guest("triple_fault_protected", Protected32, |a| a.ud2(), "SHUTDOWN SHUTDOWN rip=0x1000").system(|s| s.idt.limit = 0),
        guest("triple_fault_long", Long, |a| a.ud2(), "SHUTDOWN").system(|s| s.idt.limit = 0),
        guest("trap_gate_keeps_if", Protected32, |a| { a.sti()?; a.int(0x30) }, "INT(0x30)@+0x3 rflags=0x202").memory(&[(0x3000 + 0x30 * 8 + 5, &[0xef])]),
        guest("interrupt_through_a_data_segment", Protected32, |a| a.int(0x30), "#GP(0x10)@+0x0").memory(&[(0x3000 + 0x30 * 8 + 2, &[0x10])]),
        guest("interrupt_stack_table", Long, |a| a.ud2(), "#UD@+0x0 rsp=0x6fd8").memory(&[(0x3000 + 6 * 16 + 4, &[1]), (0x700 + 0x24, &[0x00, 0x70])]),
        guest("vmcall_of_an_unknown_hypercall", Real, |a| a.vmcall(), "HLT rax=0xfffffc18 rip=0x1004").registers(RAX_99),
        guest("vmx_instruction_outside_vmx_operation", Long, |a| a.vmxoff(), "#UD@+0x0"),
        guest("monitor_style_ud0", Protected32, |a| a.db(&[0x0f, 0xff, 0xc0]), "#UD@+0x0"),
        guest("pop_ss_then_fault", Protected32, |a| { a.push(0x40)?; a.pop(ss) }, "#SS(0x40)@+0x2 rsp=0x7fec"),
        guest("rsm_outside_smm", Protected32, |a| a.rsm(), "#UD@+0x0"),
    ]
}
