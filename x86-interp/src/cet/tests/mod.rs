//! CET, rule by rule: the expectations are the SDM's.

use vmx_model::addr::Hpa;
use vmx_model::arch::{Cr0, Cr4};
use vmx_model::event::{Exception, vector};

use super::Cp;
use crate::test_cpu::{long_mode, user};
use crate::{Cpu, Exec, Fault};

mod instructions;
mod near;
mod pages;
mod registers;

/// A page of supervisor shadow stacks.
const SUPERVISOR: u64 = 0x8000;
/// A page of user shadow stacks.
const USER: u64 = 0x9000;
/// A page that is not there.
const ABSENT: u64 = 0xa000;
/// Tops of the two kinds of shadow stack in use.
const SSP: [u64; 2] = [SUPERVISOR + 0x800, USER + 0x800];
/// IA32_U_CET and IA32_S_CET: SH_STK_EN, WR_SHSTK_EN.
const SHADOW_STACKS: u64 = 3;
/// The page table of the first 2 MiB.
const TABLE: u64 = 0x13000;

const fn cp(reason: Cp) -> Exec {
    Err(Fault::Exception(Exception::with_code(
        vector::CP,
        reason as u32,
    )))
}

fn pf(code: u32, at: u64) -> Exec {
    Err(Exception::pf(code, at).into())
}

/// 64-bit mode at level 0 or 3 with shadow stacks in use, in pages of 4 KiB.
fn cet(level: u8) -> Cpu {
    let mut cpu = long_mode();
    let entries = [(0x10000, 0x11007), (0x11000, 0x12007), (0x12000, TABLE | 7)];
    for (at, entry) in entries {
        cpu.phys.write_bytes(Hpa(at), &u64::to_le_bytes(entry));
    }
    for page in 0..32 {
        map(&mut cpu, page << 12, 0x67);
    }
    map(&mut cpu, SUPERVISOR, 0x61);
    map(&mut cpu, USER, 0x65);
    map(&mut cpu, ABSENT, 0);
    cpu.state.cr0 |= Cr0::WP;
    cpu.state.cr4 |= Cr4::CET;
    cpu.state.s_cet = SHADOW_STACKS;
    cpu.msrs.u_cet = SHADOW_STACKS;
    cpu.state.ssp = SSP[usize::from(level == 3)];
    cpu.gpr[4] = 0x6000;
    if level == 3 { user(cpu) } else { cpu }
}

/// Maps the page at `at` to itself, with these flags.
fn map(cpu: &mut Cpu, at: u64, flags: u64) {
    let entry = TABLE + (at >> 12) * 8;
    cpu.phys
        .write_bytes(Hpa(entry), &(at | flags).to_le_bytes());
    cpu.flush_tlb_all();
}

fn store(cpu: &mut Cpu, at: u64, value: u64) {
    cpu.phys.write_bytes(Hpa(at), &value.to_le_bytes());
}

fn quadword(cpu: &Cpu, at: u64) -> u64 {
    let mut bytes = [0; 8];
    cpu.phys.read_bytes(Hpa(at), &mut bytes);
    u64::from_le_bytes(bytes)
}

fn doubleword(cpu: &Cpu, at: u64) -> u32 {
    quadword(cpu, at) as u32
}
