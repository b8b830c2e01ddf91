//! Paging: translation, access rights, error codes, accessed and dirty flags
//! (SDM Vol. 3A, "Paging").

use crate::guest::Mode::*;
use crate::guest::setup::{A, D, P, PS, RW, US, XD};
use crate::guest::{Guest, guest};
use iced_x86::code_asm::*;

const CR0_WP: u64 = 1 << 16;
const CR4_SMEP: u64 = 1 << 20;
const CR4_SMAP: u64 = 1 << 21;

/// The linear address of the page that a row maps as it likes, and the one behind it.
const PAGE: u64 = 0x40_0000;
const NEXT: u64 = 0x40_1000;

#[rustfmt::skip]
pub(super) fn rows() -> Vec<Guest> {
    vec![
        guest("read_absent", Long, |a| a.mov(bl, byte_ptr(0x40_0000)), "#PF(0x0)@+0x0 cr2=0x400000"),
        guest("write_absent", Long, |a| a.mov(byte_ptr(0x40_0123), 1), "#PF(0x2)@+0x0 cr2=0x400123"),
        guest("user_read_absent", LongUser, |a| a.mov(bl, byte_ptr(0x40_0000)), "#PF(0x4)@+0x0 cr2=0x400000"),
        guest("user_read_supervisor", LongUser, |a| a.mov(bl, byte_ptr(0x40_0000)), "#PF(0x5)@+0x0 cr2=0x400000").pages(&[(PAGE, 0x5000 | P | RW)]),
        guest("user_write_read_only", LongUser, |a| a.mov(byte_ptr(0x40_0000), 1), "#PF(0x7)@+0x0").pages(&[(PAGE, 0x5000 | P | US)]),
        guest("supervisor_write_read_only_wp", Long, |a| a.mov(byte_ptr(0x40_0000), 1), "#PF(0x3)@+0x0 m1:0x5000=0x0").pages(&[(PAGE, 0x5000 | P)]),
        guest("supervisor_write_read_only_no_wp", Long, |a| a.mov(byte_ptr(0x40_0000), 1), "HLT m1:0x5000=0x1 m8:0x14000=0x5061").pages(&[(PAGE, 0x5000 | P)]).system(|s| s.cr0 &= !CR0_WP),
        guest("read_modify_write_reports_a_write", Long, |a| a.inc(byte_ptr(0x40_0000)), "#PF(0x3)@+0x0").pages(&[(PAGE, 0x5000 | P)]),
        guest("fetch_execute_disable", Long, |a| { a.mov(eax, 0x40_0000)?; a.jmp(rax) }, "#PF(0x11)@+0x3ff000 cr2=0x400000").pages(&[(PAGE, 0x5000 | P | RW | XD)]),
        guest("fetch_absent", Long, |a| { a.mov(eax, 0x40_0000)?; a.jmp(rax) }, "#PF(0x10)@+0x3ff000 cr2=0x400000"),
        guest("execute_disable_reserved_without_nxe", Long, |a| a.mov(bl, byte_ptr(0x40_0000)), "#PF(0x9)@+0x0").pages(&[(PAGE, 0x5000 | P | RW | XD)]).system(|s| s.efer &= !0x800),
        guest("reserved_address_bit", Long, |a| a.mov(bl, byte_ptr(0x40_0000)), "#PF(0x9)@+0x0").pages(&[(PAGE, 0x5000 | P | RW | 1 << 51)]),
        guest("read_sets_accessed", Long, |a| a.mov(bl, byte_ptr(0x40_0000)), "HLT rbx=0x77 m8:0x14000=0x5023").pages(&[(PAGE, 0x5000 | P | RW)]).memory(&[(0x5000, &[0x77])]),
        guest("write_sets_dirty", Long, |a| a.mov(byte_ptr(0x40_0000), 1), "HLT m8:0x14000=0x5063 m8:0x12010=0x14027").pages(&[(PAGE, 0x5000 | P | RW)]),
        guest("fault_leaves_dirty_alone", Long, |a| a.mov(byte_ptr(0x40_0000), 1), "#PF(0x3)@+0x0 m8:0x14000=0x5021").pages(&[(PAGE, 0x5000 | P | A)]),
        guest("large_page", Long, |a| a.mov(bl, byte_ptr(0x40_5000)), "HLT rbx=0x77 m8:0x12010=0xa3").pages(&[(PAGE, P | RW | PS)]).memory(&[(0x5000, &[0x77])]),
        guest("large_page_write_sets_dirty", Long, |a| a.mov(byte_ptr(0x40_5000), 9), "HLT m1:0x5000=0x9 m8:0x12010=0xe3").pages(&[(PAGE, P | RW | PS)]),
        guest("write_across_pages_second_absent", Long, |a| a.mov(dword_ptr(0x40_0ffe), 0x1122_3344), "#PF(0x2)@+0x0 cr2=0x401000 m4:0x5ffc=0x0").pages(&[(PAGE, 0x5000 | P | RW)]),
        guest("access_across_pages_apart", Long, |a| { a.mov(dword_ptr(0x40_0ffe), 0x1122_3344)?; a.mov(eax, dword_ptr(0x40_0ffe)) }, "HLT rax=0x11223344 m2:0x5ffe=0x3344 m2:0x7000=0x1122").pages(&[(PAGE, 0x5000 | P | RW), (NEXT, 0x7000 | P | RW)]),
        guest("instruction_across_pages", Long, |a| { a.mov(eax, 0x40_0ffe)?; a.jmp(rax) }, "HLT rax=0x11223344 rip=0x401004").pages(&[(PAGE, 0x5000 | P), (NEXT, 0x7000 | P)]).memory(&[(0x5ffe, &[0xb8, 0x44]), (0x7000, &[0x33, 0x22, 0x11, 0xf4])]),
        guest("instruction_across_pages_second_absent", Long, |a| { a.mov(eax, 0x40_0ffe)?; a.jmp(rax) }, "#PF(0x10)@+0x3ffffe cr2=0x401000").pages(&[(PAGE, 0x5000 | P)]).memory(&[(0x5ffe, &[0xb8, 0x44])]),
        guest("smap", Long, |a| a.mov(bl, byte_ptr(0x40_0000)), "#PF(0x1)@+0x0").pages(&[(PAGE, 0x5000 | P | RW | US)]).system(|s| s.cr4 |= CR4_SMAP),
        guest("smap_with_ac", Long, |a| { a.stac()?; a.mov(bl, byte_ptr(0x40_0000)) }, "HLT rbx=0x77").pages(&[(PAGE, 0x5000 | P | RW | US)]).memory(&[(0x5000, &[0x77])]).system(|s| s.cr4 |= CR4_SMAP),
        guest("smep", Long, |a| { a.mov(eax, 0x40_0000)?; a.jmp(rax) }, "#PF(0x11)@+0x3ff000").pages(&[(PAGE, 0x5000 | P | RW | US)]).system(|s| s.cr4 |= CR4_SMEP),
        guest("invlpg_after_a_change", Long, |a| {
            a.mov(bl, byte_ptr(0x40_0000))?; a.mov(qword_ptr(0x1_4000), 0x6003)?; a.invlpg(byte_ptr(0x40_0000))?; a.mov(cl, byte_ptr(0x40_0000))
        }, "HLT rbx=0x55 rcx=0x66").pages(&[(PAGE, 0x5000 | P | RW)]).memory(&[(0x5000, &[0x55]), (0x6000, &[0x66])]),
        guest("cr3_reload_after_a_change", Long, |a| {
            a.mov(bl, byte_ptr(0x40_0000))?; a.mov(qword_ptr(0x1_4000), 0x6003)?; a.mov(rax, cr3)?; a.mov(cr3, rax)?; a.mov(cl, byte_ptr(0x40_0000))
        }, "HLT rbx=0x55 rcx=0x66").pages(&[(PAGE, 0x5000 | P | RW)]).memory(&[(0x5000, &[0x55]), (0x6000, &[0x66])]),
        guest("absent_becomes_present_without_flush", Long, |a| { a.mov(qword_ptr(0x1_3100), 0x6003)?; a.mov(cl, byte_ptr(0x2_0000)) }, "HLT rcx=0x66").memory(&[(0x6000, &[0x66])]),
        guest("rep_movs_stops_at_the_fault", Long, |a| { a.mov(esi, 0x5000)?; a.mov(edi, 0x40_0ffc)?; a.mov(ecx, 8)?; a.rep().movsb() }, "#PF(0x2)@+0xf cr2=0x401000 rcx=0x4 rsi=0x5004 rdi=0x401000 m4:0x6ffc=0x4030201").pages(&[(PAGE, 0x6000 | P | RW)]).memory(&[(0x5000, &[1, 2, 3, 4, 5, 6, 7, 8])]),
        guest("cr3_reserved_bit", Long, |a| { a.mov(rax, 0x10_0000_0001_0000_u64)?; a.mov(cr3, rax) }, "#GP(0x0)@+0xa"),
        guest("compatibility_read_absent", Compatibility, |a| a.mov(bl, byte_ptr(0x40_0000)), "#PF(0x0)@+0x0 cr2=0x400000"),
        // 32-bit paging.
        guest("paged32_read_absent", Paged32, |a| a.mov(bl, byte_ptr(0x40_0000)), "#PF(0x0)@+0x0 cr2=0x400000"),
        guest("paged32_mapped", Paged32, |a| { a.mov(bl, byte_ptr(0x40_0000))?; a.mov(byte_ptr(0x40_0001), 5) }, "HLT rbx=0x77 m1:0x5001=0x5 m4:0x12000=0x5063").pages(&[(PAGE, 0x5000 | P | RW)]).memory(&[(0x5000, &[0x77])]),
        guest("paged32_read_only", Paged32, |a| a.mov(byte_ptr(0x40_0000), 1), "#PF(0x3)@+0x0").pages(&[(PAGE, 0x5000 | P)]),
        guest("paged32_read_only_no_wp", Paged32, |a| a.mov(byte_ptr(0x40_0000), 1), "HLT m1:0x5000=0x1").pages(&[(PAGE, 0x5000 | P)]).system(|s| s.cr0 &= !CR0_WP),
        guest("paged32_user_read_supervisor", PagedUser32, |a| a.mov(bl, byte_ptr(0x40_0000)), "#PF(0x5)@+0x0").pages(&[(PAGE, 0x5000 | P | RW)]),
        guest("paged32_user_write_read_only", PagedUser32, |a| a.mov(byte_ptr(0x40_0000), 1), "#PF(0x7)@+0x0").pages(&[(PAGE, 0x5000 | P | US)]),
        guest("paged32_turned_on_by_the_guest", Protected32, |a| {
            a.mov(eax, 0x1_0000)?; a.mov(cr3, eax)?; a.mov(eax, cr0)?; a.or(eax, 0x8000_0000_u32)?; a.mov(cr0, eax)?; a.mov(ebx, dword_ptr(0x2000))
        }, "HLT rbx=0x11223344 cr0=0x80000031").memory(&[(0x1_0000, &[0x03, 0x10, 1]), (0x1_1004, &[0x03, 0x10]), (0x1_1008, &[0x03, 0x50]), (0x5000, &[0x44, 0x33, 0x22, 0x11])]),
        guest("paged32_walk_ends_at_4_gbytes", Paged32, |a| a.mov(bl, byte_ptr(0xffff_f000_u32)), "#PF(0x0)@+0x0 cr2=0xfffff000"),
        // 4-MByte pages.
        guest("pse_page", PagedPse, |a| { a.mov(bl, byte_ptr(0x40_5000))?; a.mov(byte_ptr(0x40_5001), 5) }, "HLT rbx=0x77 m1:0x5001=0x5 m4:0x10004=0xe3").pages(&[(PAGE, P | RW | PS)]).memory(&[(0x5000, &[0x77])]),
        guest("pse_absent", PagedPse, |a| a.mov(bl, byte_ptr(0x40_5000)), "#PF(0x0)@+0x0 cr2=0x405000"),
        guest("pse_read_only", PagedPse, |a| a.mov(byte_ptr(0x40_5000), 1), "#PF(0x3)@+0x0").pages(&[(PAGE, P | PS)]),
        guest("pse_bit_ignored_without_cr4_pse", PagedPse, |a| a.mov(bl, byte_ptr(0x5000)), "SHUTDOWN").system(|s| s.cr4 = 0),
        // PAE paging.
        guest("pae_mapped", PagedPae, |a| { a.mov(bl, byte_ptr(0x40_0000))?; a.mov(byte_ptr(0x40_0001), 5) }, "HLT rbx=0x77 m1:0x5001=0x5 m8:0x13000=0x5063").pages(&[(PAGE, 0x5000 | P | RW)]).memory(&[(0x5000, &[0x77])]),
        guest("pae_absent", PagedPae, |a| a.mov(byte_ptr(0x40_0000), 1), "#PF(0x2)@+0x0 cr2=0x400000"),
        guest("pae_absent_pdpte", PagedPae, |a| a.mov(bl, byte_ptr(0x4000_0000)), "#PF(0x0)@+0x0 cr2=0x40000000"),
        guest("pae_large_page", PagedPae, |a| a.mov(bl, byte_ptr(0x40_5000)), "HLT rbx=0x77 m8:0x11010=0xa3").pages(&[(PAGE, P | RW | PS)]).memory(&[(0x5000, &[0x77])]),
        guest("pae_execute_disable", PagedPae, |a| { a.mov(eax, 0x40_0000)?; a.jmp(eax) }, "#PF(0x11)@+0x3ff000").pages(&[(PAGE, 0x5000 | P | RW | XD)]),
        guest("pae_pdptes_are_registers", PagedPae, |a| { a.mov(dword_ptr(0x1_0000), 0)?; a.mov(bl, byte_ptr(0x40_0000)) }, "HLT rbx=0x77").pages(&[(PAGE, 0x5000 | P | RW | A | D)]).memory(&[(0x5000, &[0x77])]),
        guest("pae_reserved_pdpte_bit", PagedPae, |a| { a.mov(dword_ptr(0x1_0000), 0x1_1003)?; a.mov(eax, cr3)?; a.mov(cr3, eax) }, "#GP(0x0)@+0xd"),
    ]
}
