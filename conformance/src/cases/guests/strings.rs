//! String instructions and REP (SDM Vol. 1, "String Operations").

use crate::guest::Mode::*;
use crate::guest::{Guest, guest};
use iced_x86::code_asm::*;

const ABCD: &[(u64, &[u8])] = &[(0x5000, b"ABCDEFGH"), (0x6000, b"ABCxEFGH")];

#[rustfmt::skip]
pub(super) fn rows() -> Vec<Guest> {
    vec![
        guest("movsb", Real, |a| { a.mov(si, 0x5000)?; a.mov(di, 0x6000)?; a.movsb() }, "HLT rsi=0x5001 rdi=0x6001 m1:0x6000=0x41").memory(&[(0x5000, b"A")]),
        guest("movsw_down", Real, |a| { a.std()?; a.mov(si, 0x5000)?; a.mov(di, 0x6000)?; a.movsw() }, "HLT rsi=0x4ffe rdi=0x5ffe m2:0x6000=0x4241").memory(ABCD),
        guest("rep_movsb", Protected32, |a| { a.mov(esi, 0x5000)?; a.mov(edi, 0x7000)?; a.mov(ecx, 8)?; a.rep().movsb() }, "HLT rcx=0x0 rsi=0x5008 rdi=0x7008 mx:0x7000/8=4142434445464748").memory(ABCD),
        guest("rep_movsd", Protected32, |a| { a.mov(esi, 0x5000)?; a.mov(edi, 0x7000)?; a.mov(ecx, 2)?; a.rep().movsd() }, "HLT rcx=0x0 rsi=0x5008 mx:0x7000/8=4142434445464748").memory(ABCD),
        guest("rep_movsq", Long, |a| { a.mov(esi, 0x5000)?; a.mov(edi, 0x7000)?; a.mov(ecx, 1)?; a.rep().movsq() }, "HLT rcx=0x0 rsi=0x5008 mx:0x7000/8=4142434445464748").memory(ABCD),
        guest("rep_movs_overlapping_spreads", Protected32, |a| { a.mov(esi, 0x5000)?; a.mov(edi, 0x5001)?; a.mov(ecx, 7)?; a.rep().movsb() }, "HLT mx:0x5000/9=414141414141414100").memory(&[(0x5000, b"AB")]),
        guest("rep_movs_down", Protected32, |a| { a.std()?; a.mov(esi, 0x5007)?; a.mov(edi, 0x5008)?; a.mov(ecx, 8)?; a.rep().movsb() }, "HLT rsi=0x4fff rdi=0x5000 mx:0x5000/9=414142434445464748").memory(ABCD),
        guest("rep_with_zero_count", Real, |a| { a.mov(si, 0x5000)?; a.xor(cx, cx)?; a.rep().movsb() }, "HLT rsi=0x5000 rdi=0x0"),
        guest("rep_stosb", Real, |a| { a.mov(di, 0x6000)?; a.mov(al, 0x5a)?; a.mov(cx, 5)?; a.rep().stosb() }, "HLT rcx=0x0 rdi=0x6005 mx:0x6000/6=5a5a5a5a5a00"),
        guest("rep_stosd", Long, |a| { a.mov(edi, 0x6000)?; a.mov(eax, 0x1122_3344)?; a.mov(ecx, 2)?; a.rep().stosd() }, "HLT rdi=0x6008 m8:0x6000=0x1122334411223344"),
        guest("rep_stos_large", Long, |a| { a.mov(edi, 0x2_0000 - 0x4000)?; a.mov(al, 7)?; a.mov(ecx, 0x3000)?; a.rep().stosb() }, "HLT rdi=0x1f000 rcx=0x0 m8:0x1c000=0x707070707070707 m8:0x1eff8=0x707070707070707 m8:0x1f000=0x0"),
        guest("lodsw", Real, |a| { a.mov(si, 0x5000)?; a.lodsw() }, "HLT rax=0x4241 rsi=0x5002").memory(ABCD),
        guest("rep_lodsb_keeps_the_last", Protected32, |a| { a.mov(esi, 0x5000)?; a.mov(ecx, 3)?; a.rep().lodsb() }, "HLT rax=0x43 rsi=0x5003").memory(ABCD),
        guest("repe_cmpsb", Protected32, |a| { a.mov(esi, 0x5000)?; a.mov(edi, 0x6000)?; a.mov(ecx, 8)?; a.repe().cmpsb() }, "HLT rcx=0x4 rsi=0x5004 rdi=0x6004 fl=CF|PF|AF|SF").memory(ABCD),
        guest("repne_scasb", Protected32, |a| { a.mov(edi, 0x5000)?; a.mov(al, 0x44)?; a.mov(ecx, 8)?; a.repne().scasb() }, "HLT rcx=0x4 rdi=0x5004 zf=ZF").memory(ABCD),
        guest("repne_scasb_not_found", Real, |a| { a.mov(di, 0x5000)?; a.mov(al, 0x7a)?; a.mov(cx, 8)?; a.repne().scasb() }, "HLT rcx=0x0 rdi=0x5008 zf=-").memory(ABCD),
        guest("scasw", Real, |a| { a.mov(di, 0x5000)?; a.mov(ax, 0x4241)?; a.scasw() }, "HLT rdi=0x5002 zf=ZF").memory(ABCD),
        guest("segment_override_on_the_source", Real, |a| { a.mov(ax, 0x500)?; a.mov(es, ax)?; a.xor(di, di)?; a.db(&[0x26, 0xa4]) }, "HLT rsi=0x1 m1:0x5000=0x41").prepare(|p, m| { m.poke(p, 0x5000, b"A"); }),
        guest("si_wraps_in_real_mode", Real, |a| { a.mov(esi, 0x1_ffff)?; a.mov(di, 0x6000)?; a.movsb() }, "HLT rsi=0x10000 rdi=0x6001"),
        guest("address_size_32_in_64_bit_mode", Long, |a| { a.mov(rsi, 0x1_0000_5000_u64)?; a.mov(edi, 0x6000)?; a.mov(rcx, 0x1_0000_0002_u64)?; a.db(&[0x67, 0xf3, 0xa4]) }, "HLT rcx=0x0 rsi=0x5002 rdi=0x6002 m2:0x6000=0x4241").memory(&[(0x5000, b"AB")]),
    ]
}
