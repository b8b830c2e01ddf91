//! Integer arithmetic, logic and shifts with their flags
//! (SDM Vol. 1, "General-Purpose Instructions").

use crate::guest::Mode::*;
use crate::guest::{Guest, guest};
use iced_x86::code_asm::*;

pub(super) fn rows() -> Vec<Guest> {
    vec![
        guest(
            "add8_overflow",
            Real,
            |a| {
                a.mov(al, 0x7f)?;
                a.add(al, 1)
            },
            "HLT rax=0x80 fl=AF|SF|OF",
        ),
        guest(
            "add8_carry",
            Real,
            |a| {
                a.mov(al, 0xff)?;
                a.add(al, 1)
            },
            "HLT rax=0x0 fl=CF|PF|AF|ZF",
        ),
        guest(
            "add32",
            Protected32,
            |a| {
                a.mov(eax, 0x7fff_ffff)?;
                a.add(eax, 1)
            },
            "HLT rax=0x80000000 fl=PF|AF|SF|OF",
        ),
        guest(
            "add64",
            Long,
            |a| {
                a.mov(rax, 0x7fff_ffff_ffff_ffffu64)?;
                a.add(rax, 1)
            },
            "HLT rax=0x8000000000000000 fl=PF|AF|SF|OF",
        ),
        guest(
            "paged",
            Paged32,
            |a| {
                a.mov(eax, 5)?;
                a.add(eax, 1)
            },
            "HLT rax=0x6 fl=PF",
        ),
        guest("ud", Long, |a| a.ud2(), "#UD@+0x0"),
    ]
}
