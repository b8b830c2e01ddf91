//! Ports and memory-mapped devices (SDM Vol. 1, "Input/Output"; api.rst, "KVM_EXIT_IO", "KVM_EXIT_MMIO").

use crate::guest::Mode::*;
use crate::guest::setup::{P, RW};
use crate::guest::{Guest, guest};
use iced_x86::code_asm::*;

const TEXT: &[(u64, &[u8])] = &[(0x5000, b"ABCDEFGH")];
/// Two pages without memory, behind each other in linear space, and apart in physical space.
const DEVICES: &[(u64, u64)] = &[
    (0x40_0000, 0x9_0000 | P | RW),
    (0x40_1000, 0xa_0000 | P | RW),
];

#[rustfmt::skip]
pub(super) fn rows() -> Vec<Guest> {
    vec![
        guest("out_immediate", Real, |a| { a.mov(al, 0x5a)?; a.out(0x10, al) }, "out:0x10/1=5a HLT"),
        guest("out_16", Real, |a| { a.mov(dx, 0x1234)?; a.mov(ax, 0x1122)?; a.out(dx, ax) }, "out:0x1234/2=2211 HLT"),
        guest("out_32", Protected32, |a| { a.mov(edx, 0xffff)?; a.mov(eax, 0x1122_3344)?; a.out(dx, eax) }, "out:0xffff/4=44332211 HLT"),
        guest("in_8", Real, |a| { a.mov(ax, 0x1234)?; a.in_(al, 0x60) }, "in:0x60/1<77 HLT rax=0x1277"),
        guest("in_16", Protected32, |a| { a.mov(eax, 0x1111_1111)?; a.in_(ax, 0x60) }, "in:0x60/2<efbe HLT rax=0x1111beef"),
        guest("in_32_clears_the_upper_half", Long, |a| { a.mov(rax, u64::MAX)?; a.mov(edx, 0x60)?; a.in_(eax, dx) }, "in:0x60/4<efcdab89 HLT rax=0x89abcdef"),
        guest("out_then_in", Real, |a| { a.mov(al, 1)?; a.out(0x70, al)?; a.in_(al, 0x71) }, "out:0x70/1=01 in:0x71/1<26 HLT rax=0x26"),
        guest("outsb", Real, |a| { a.mov(dx, 0x3f8)?; a.mov(si, 0x5000)?; a.outsb() }, "out:0x3f8/1=41 HLT rsi=0x5001").memory(TEXT),
        guest("outsd", Protected32, |a| { a.mov(edx, 0x3f8)?; a.mov(esi, 0x5000)?; a.outsd() }, "out:0x3f8/4=41424344 HLT rsi=0x5004").memory(TEXT),
        guest("rep_outsb", Real, |a| { a.mov(dx, 0x60)?; a.mov(si, 0x5000)?; a.mov(cx, 3)?; a.rep().outsb() }, "out:0x60/1=41 out:0x60/1=42 out:0x60/1=43 HLT rcx=0x0 rsi=0x5003").memory(TEXT),
        guest("insb", Real, |a| { a.mov(dx, 0x60)?; a.mov(di, 0x6000)?; a.insb() }, "in:0x60/1<41 HLT rdi=0x6001 m1:0x6000=0x41"),
        guest("rep_insb", Real, |a| { a.mov(dx, 0x60)?; a.mov(di, 0x6000)?; a.mov(cx, 4)?; a.rep().insb() }, "in:0x60/1*4<7778797a HLT rcx=0x0 rdi=0x6004 mx:0x6000/5=7778797a00"),
        guest("rep_insw", Protected32, |a| { a.mov(edx, 0x1f0)?; a.mov(edi, 0x6000)?; a.mov(ecx, 2)?; a.rep().insw() }, "in:0x1f0/2*2<11223344 HLT rcx=0x0 rdi=0x6004 mx:0x6000/5=1122334400"),
        guest("rep_insb_zero_count", Real, |a| { a.mov(dx, 0x60)?; a.xor(cx, cx)?; a.rep().insb() }, "HLT rdi=0x0"),
        guest("ring_3_out_by_iopl", User32, |a| { a.mov(al, 9)?; a.out(0x80, al)?; a.ud2() }, "out:0x80/1=09 #UD@+0x4").prepare(|p, m| m.set_registers(p, &[("rflags", 0x3002)])),
        guest("ring_3_out_by_the_bitmap", User32, |a| { a.mov(al, 9)?; a.out(0x10, al)?; a.out(0x08, al) }, "out:0x10/1=09 #GP(0x0)@+0x4")
            .memory(&[(0x766, &[0x68, 0]), (0x768, &[0xff, 0xff, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff])]),
        guest("read_8", Real, |a| { a.mov(ax, 0x9000)?; a.mov(ds, ax)?; a.mov(al, byte_ptr(0x20)) }, "read:0x90020/1<99 HLT rax=0x9099"),
        guest("read_16", Protected32, |a| a.mov(ax, word_ptr(0x9_0020)), "read:0x90020/2<1122 HLT rax=0x2211"),
        guest("read_32_unaligned", Protected32, |a| a.mov(eax, dword_ptr(0x9_0021)), "read:0x90021/4<01020304 HLT rax=0x4030201"),
        guest("read_64", Long, |a| a.mov(rbx, qword_ptr(0x9_0020)), "read:0x90020/8<0102030405060708 HLT rbx=0x807060504030201"),
        guest("write_8", Protected32, |a| a.mov(byte_ptr(0x9_0010), 0xab), "write:0x90010/1=ab HLT"),
        guest("write_16", Protected32, |a| a.mov(word_ptr(0x9_0010), 0xabcd), "write:0x90010/2=cdab HLT"),
        guest("write_32", Protected32, |a| a.mov(dword_ptr(0x9_0010), 0x1234_5678), "write:0x90010/4=78563412 HLT"),
        guest("write_64", Long, |a| { a.mov(rbx, 0x0102_0304_0506_0708_u64)?; a.mov(qword_ptr(0x9_0010), rbx) }, "write:0x90010/8=0807060504030201 HLT"),
        guest("read_across_pages", Protected32, |a| a.mov(eax, dword_ptr(0x9_0ffe)), "read:0x90ffe/2<1122 read:0x91000/2<3344 HLT rax=0x44332211"),
        guest("write_across_pages", Protected32, |a| a.mov(dword_ptr(0x9_0ffd), 0x1122_3344), "write:0x90ffd/3=443322 write:0x91000/1=11 HLT"),
        guest("read_across_pages_apart", Long, |a| a.mov(eax, dword_ptr(0x40_0ffe)), "read:0x90ffe/2<1122 read:0xa0000/2<3344 HLT rax=0x44332211").pages(DEVICES),
        guest("half_memory_half_device", Protected32, |a| a.mov(eax, dword_ptr(0x7_fffe)), "read:0x80000/2<3344 HLT rax=0x4433eeee").memory(&[(0x7_fffe, &[0xee, 0xee])]),
        guest("half_memory_half_device_write", Protected32, |a| a.mov(dword_ptr(0x7_fffe), 0x1122_3344), "write:0x80000/2=2211 HLT m2:0x7fffe=0x3344"),
        guest("read_modify_write", Protected32, |a| a.inc(byte_ptr(0x9_0010)), "read:0x90010/1<0f write:0x90010/1=10 HLT fl=AF"),
        guest("or_to_device", Protected32, |a| a.or(dword_ptr(0x9_0010), 0x80), "read:0x90010/4<01000000 write:0x90010/4=81000000 HLT"),
        guest("xchg_with_device", Protected32, |a| { a.mov(eax, 5)?; a.xchg(dword_ptr(0x9_0010), eax) }, "read:0x90010/4<09000000 write:0x90010/4=05000000 HLT rax=0x9"),
        guest("movs_from_device", Protected32, |a| { a.mov(esi, 0x9_0000)?; a.mov(edi, 0x6000)?; a.mov(ecx, 2)?; a.rep().movsb() }, "read:0x90000/1<61 read:0x90001/1<62 HLT m2:0x6000=0x6261"),
        guest("movs_to_device", Protected32, |a| { a.mov(esi, 0x5000)?; a.mov(edi, 0x9_0000)?; a.mov(ecx, 2)?; a.rep().movsd() }, "write:0x90000/4=41424344 write:0x90004/4=45464748 HLT rcx=0x0").memory(TEXT),
        guest("stos_to_device", Protected32, |a| { a.mov(edi, 0x9_0000)?; a.mov(ax, 0x1122)?; a.mov(ecx, 2)?; a.rep().stosw() }, "write:0x90000/2=2211 write:0x90002/2=2211 HLT rcx=0x0 rdi=0x90004"),
        guest("movzx_from_device", Long, |a| a.movzx(eax, byte_ptr(0x9_0010)), "read:0x90010/1<80 HLT rax=0x80"),
        guest("movsx_from_device", Long, |a| a.movsx(rax, byte_ptr(0x9_0010)), "read:0x90010/1<80 HLT rax=0xffffffffffffff80"),
        guest("cmp_with_device", Protected32, |a| a.cmp(byte_ptr(0x9_0010), 5), "read:0x90010/1<05 HLT zf=ZF"),
        guest("test_with_device", Protected32, |a| a.test(byte_ptr(0x9_0010), 1), "read:0x90010/1<02 HLT zf=ZF"),
        guest("push_from_device", Protected32, |a| a.push(dword_ptr(0x9_0010)), "read:0x90010/4<44332211 HLT rsp=0x7ffc m4:0x7ffc=0x11223344"),
        guest("pop_to_device", Protected32, |a| { a.push(7)?; a.pop(dword_ptr(0x9_0010)) }, "write:0x90010/4=07000000 HLT rsp=0x8000"),
        guest("call_through_device", Protected32, |a| a.call(dword_ptr(0x9_0010)), "read:0x90010/4<00200000 HLT rip=0x2001 rsp=0x7ffc").memory(&[(0x2000, &[0xf4])]),
        guest("high_address", Long, |a| a.mov(al, byte_ptr(0x40_0000)), "read:0xfee00000/1<01 HLT rax=0x1").pages(&[(0x40_0000, 0xfee0_0000 | P | RW)]),
    ]
}
