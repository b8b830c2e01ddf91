//! CPUID, MSRs, the time-stamp counter and debugging from inside the guest
//! (SDM Vol. 3B, "Debug, Branch Profile, TSC"; Vol. 4, "Model-Specific Registers").

use crate::guest::Mode::*;
use crate::guest::{Guest, guest};
use iced_x86::code_asm::*;

#[rustfmt::skip]
pub(super) fn rows() -> Vec<Guest> {
    vec![
        guest("rdmsr_apic_base", Protected32, |a| { a.mov(ecx, 0x1b)?; a.rdmsr() }, "HLT rax=0xfee00900 rdx=0x0"),
        guest("rdmsr_pat", Long, |a| { a.mov(ecx, 0x277)?; a.rdmsr() }, "HLT rax=0x70406 rdx=0x70406"),
        guest("wrmsr_pat", Long, |a| { a.mov(ecx, 0x277)?; a.mov(eax, 0x0006_0606)?; a.mov(edx, 0x0101_0101)?; a.wrmsr() }, "HLT msr:0x277=0x101010100060606"),
        guest("wrmsr_pat_bad_type", Long, |a| { a.mov(ecx, 0x277)?; a.mov(eax, 2)?; a.xor(edx, edx)?; a.wrmsr() }, "#GP(0x0)@+0xc"),
        guest("rdmsr_unknown", Real, |a| { a.mov(ecx, 0x1234_5678)?; a.rdmsr() }, "#GP@+0x6"),
        guest("wrmsr_unknown", Long, |a| { a.mov(ecx, 0x1234_5678)?; a.wrmsr() }, "#GP(0x0)@+0x5"),
        guest("wrmsr_read_only", Long, |a| { a.mov(ecx, 0xfe)?; a.wrmsr() }, "#GP(0x0)@+0x5"),
        guest("wrmsr_sysenter", Protected32, |a| { a.mov(ecx, 0x174)?; a.mov(eax, 0x1234)?; a.xor(edx, edx)?; a.wrmsr()?; a.xor(eax, eax)?; a.rdmsr() }, "HLT rax=0x1234 msr:0x174=0x1234"),
        guest("wrmsr_fs_base", Long, |a| { a.mov(ecx, 0xc000_0100_u32)?; a.mov(eax, 0x5000)?; a.xor(edx, edx)?; a.wrmsr()?; a.mov(bl, byte_ptr(0x8).fs()) }, "HLT rbx=0x42 fs.base=0x5000").memory(&[(0x5008, &[0x42])]),
        guest("wrmsr_non_canonical", Long, |a| { a.mov(ecx, 0xc000_0101_u32)?; a.xor(eax, eax)?; a.mov(edx, 0x1000_0000)?; a.wrmsr() }, "#GP(0x0)@+0xc"),
        guest("wrmsr_efer_reserved", Long, |a| { a.mov(ecx, 0xc000_0080_u32)?; a.rdmsr()?; a.or(eax, 2)?; a.wrmsr() }, "#GP(0x0)@+0xc"),
        guest("wrmsr_efer_lme_while_paging", Long, |a| { a.mov(ecx, 0xc000_0080_u32)?; a.rdmsr()?; a.btr(eax, 8)?; a.wrmsr() }, "#GP(0x0)@+0xb"),
        guest("wrmsr_uses_ecx_only", Long, |a| { a.mov(rcx, 0xffff_ffff_0000_0277_u64)?; a.rdmsr() }, "HLT rax=0x70406"),
        guest("rdtsc_advances", Protected32, |a| { a.rdtsc()?; a.mov(ebx, eax)?; a.mov(esi, edx)?; a.rdtsc()?; a.sub(eax, ebx)?; a.sbb(edx, esi)?; a.mov(ebx, edx)?; a.xor(eax, eax)?; a.xor(edx, edx) }, "HLT rbx=0x0"),
        guest("rdtsc_disabled_in_ring_3", User32, |a| a.rdtsc(), "#GP(0x0)@+0x0").system(|s| s.cr4 |= 4),
        guest("umip_sgdt_in_ring_3", LongUser, |a| a.sgdt(fword_ptr(0x5000)), "#GP(0x0)@+0x0").system(|s| s.cr4 |= 1 << 11),
        guest("cpuid_changes_four_registers", Long, |a| { a.mov(rax, 0xffff_ffff_8000_0000_u64)?; a.mov(rbx, u64::MAX)?; a.mov(rcx, u64::MAX)?; a.mov(rdx, u64::MAX)?; a.cpuid()?; a.shr(rax, 32)?; a.shr(rbx, 32)?; a.shr(rcx, 32)?; a.shr(rdx, 32) }, "HLT rax=0x0 rbx=0x0 rcx=0x0 rdx=0x0"),
        guest("trap_flag", Protected32, |a| { a.push(0x102)?; a.popfd()?; a.nop()?; a.nop() }, "#DB@+0x7 rflags=0x2 dr6=0xffff4ff0"),
        guest("trap_flag_after_hlt_less_loop", Real, |a| { a.push(0x102_u32)?; a.popf()?; a.inc(ax)?; a.inc(ax) }, "#DB@+0x5 rax=0x1"),
        guest("icebp", Protected32, |a| a.int1(), "#DB@+0x1"),
        guest("breakpoint_register_on_execution", Protected32, |a| { a.mov(eax, 0x1011)?; a.mov(dr0, eax)?; a.mov(eax, 0x402)?; a.mov(dr7, eax)?; a.nop()?; a.nop() }, "#DB@+0x11 dr6=0xffff0ff1"),
        guest("breakpoint_register_on_write", Protected32, |a| { a.mov(eax, 0x5000)?; a.mov(dr1, eax)?; a.mov(eax, 0x0010_0404 | 1 << 20)?; a.mov(dr7, eax)?; a.mov(byte_ptr(0x5000), 1)?; a.nop() }, "#DB@+0x17 m1:0x5000=0x1 dr6=0xffff0ff2"),
        guest("general_detect", Protected32, |a| { a.mov(eax, 0x2400)?; a.mov(dr7, eax)?; a.mov(ebx, dr0) }, "#DB@+0x8 dr6=0xffff2ff0 dr7=0x400"),
        guest("debug_registers_4_and_5_alias", Protected32, |a| a.db(&[0x0f, 0x21, 0xe3]), "HLT rbx=0xffff0ff0"),
        guest("debug_registers_4_and_5_with_de", Protected32, |a| a.db(&[0x0f, 0x21, 0xe3]), "#UD@+0x0").system(|s| s.cr4 |= 8),
        guest("dr7_high_bits_in_64_bit_mode", Long, |a| { a.mov(rax, 0x1_0000_0400_u64)?; a.mov(dr7, rax) }, "#GP(0x0)@+0xa"),
        guest("fninit_fnstcw", Protected32, |a| { a.fninit()?; a.fnstcw(word_ptr(0x5000)) }, "HLT m2:0x5000=0x37f"),
        guest("fnstsw", Protected32, |a| { a.mov(eax, 0xffff)?; a.fninit()?; a.fnstsw(ax) }, "HLT rax=0x0"),
        guest("ldmxcsr_stmxcsr", Protected32, |a| { a.mov(dword_ptr(0x5000), 0x1fa0)?; a.ldmxcsr(dword_ptr(0x5000))?; a.stmxcsr(dword_ptr(0x5004)) }, "HLT m4:0x5004=0x1fa0").system(|s| s.cr4 |= 0x200),
        guest("ldmxcsr_reserved", Protected32, |a| { a.mov(dword_ptr(0x5000), 0x1_0000)?; a.ldmxcsr(dword_ptr(0x5000)) }, "#GP(0x0)@+0xa").system(|s| s.cr4 |= 0x200),
        guest("ldmxcsr_without_osfxsr", Protected32, |a| a.ldmxcsr(dword_ptr(0x5000)), "#UD@+0x0"),
        guest("fxsave", Protected32, |a| { a.fninit()?; a.fxsave(byte_ptr(0x5000)) }, "HLT m2:0x5000=0x37f m2:0x5004=0x0"),
        guest("xgetbv_without_osxsave", Protected32, |a| { a.xor(ecx, ecx)?; a.xgetbv() }, "#UD@+0x2"),
        guest("xsetbv_without_x87", Long, |a| { a.xor(ecx, ecx)?; a.mov(eax, 2)?; a.xor(edx, edx)?; a.xsetbv() }, "#GP(0x0)@+0x9").system(|s| s.cr4 |= 1 << 18),
        guest("xgetbv", Long, |a| { a.xor(ecx, ecx)?; a.mov(eax, 3)?; a.xor(edx, edx)?; a.xsetbv()?; a.xor(eax, eax)?; a.xgetbv() }, "HLT rax=0x3 rdx=0x0").system(|s| s.cr4 |= 1 << 18),
        guest("wait_with_mp_and_ts", Protected32, |a| a.wait(), "#NM@+0x0").system(|s| s.cr0 |= 0xa),
        guest("invd_wbinvd", Protected32, |a| { a.wbinvd()?; a.mov(eax, 1) }, "HLT rax=0x1"),
        guest("pause_and_fences", Long, |a| { a.pause()?; a.mfence()?; a.lfence()?; a.mov(eax, 1) }, "HLT rax=0x1"),
        guest("code_written_by_the_guest", Protected32, |a| { a.mov(byte_ptr(0x1008), 9)?; a.mov(al, 1) }, "HLT rax=0x9"),
        guest("code_written_ahead_in_the_block", Long, |a| { a.lea(rdi, qword_ptr(0x100e))?; a.mov(byte_ptr(rdi), 0x40)?; a.nop()?; a.nop()?; a.mov(al, 1) }, "HLT rax=0x40"),
        guest("loop_that_patches_itself", Protected32, |a| {
            let mut top = a.create_label();
            a.mov(ecx, 3)?; a.set_label(&mut top)?; a.add(ebx, 1)?; a.inc(byte_ptr(0x1007))?; a.dec(ecx)?; a.jnz(top)
        }, "HLT rbx=0x6 m1:0x1007=0x4"),
        guest("code_written_through_an_alias", Long, |a| { a.mov(byte_ptr(0x40_000c), 0x33)?; a.mov(rbx, rbx)?; a.mov(al, 1) }, "HLT rax=0x33").pages(&[(0x40_0000, 0x1003)]),
        guest("string_store_over_code", Protected32, |a| { a.mov(edi, 0x1011)?; a.mov(eax, 0x90)?; a.mov(ecx, 2)?; a.rep().stosb()?; a.db(&[0x0f, 0x0b])?; a.mov(ebx, 7) }, "HLT rbx=0x7"),
    ]
}
