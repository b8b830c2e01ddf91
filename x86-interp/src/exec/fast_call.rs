//! Fast system calls, and SWAPGS.
//!
//! SDM Vol. 2: SYSENTER, SYSEXIT, SYSCALL, SYSRET, SWAPGS; Vol. 3A, "Performing Fast Calls to
//! System Procedures with the SYSENTER and SYSEXIT Instructions", "Fast System Calls in 64-Bit
//! Mode".

use iced_x86::{Code, Mnemonic};
use vmx_model::arch::{AccessRights, Efer, Rflags, Segment, SegmentRegister};
use vmx_model::event::Exception;

use super::{Row, Traits};
use crate::exec::iret::EFLAGS_MASK;
use crate::insn::{Insn, Plain};
use crate::mode::Mode;
use crate::{Cpu, Exec};

/// Returns who executes an instruction of this file.
pub(crate) fn lookup(code: Code) -> Option<Row> {
    let plain: Plain = match code.mnemonic() {
        Mnemonic::Syscall => syscall,
        Mnemonic::Sysret | Mnemonic::Sysretq => sysret,
        Mnemonic::Sysenter => sysenter,
        Mnemonic::Sysexit | Mnemonic::Sysexitq => sysexit,
        Mnemonic::Swapgs => swapgs,
        _ => return None,
    };
    let traits = Traits::ENDS_BLOCK;
    Some(Row { plain, traits })
}

/// Access rights of a flat 64-bit code segment of privilege level 0.
const CODE64: u32 = 0xa09b;
/// Access rights of a flat 32-bit code segment of privilege level 0.
const CODE32: u32 = 0xc09b;
/// Access rights of a flat 32-bit stack segment of privilege level 0.
const STACK: u32 = 0xc093;

const RCX: usize = 1;
const RDX: usize = 2;
const RSP: usize = 4;
const R11: usize = 11;

/// Returns a flat segment with fixed contents: the fast calls read no descriptor.
fn flat(selector: u16, rights: u32, level: u8) -> Segment {
    Segment {
        base: 0,
        limit: u32::MAX,
        access: AccessRights(rights).with_dpl(level),
        selector,
    }
}

impl Cpu {
    fn enter_flat(&mut self, code: Segment, stack: Segment, rip: u64) {
        self.set_segment(SegmentRegister::Ss, stack);
        self.enter_code(code, rip);
    }
}

/// SYSCALL: only in 64-bit mode.
fn syscall(cpu: &mut Cpu, _: &Insn) -> Exec {
    if cpu.mode() != Mode::Long || !cpu.state.efer.contains(Efer::SCE) {
        return Err(Exception::UD.into());
    }
    cpu.enter_shadow_by_call();
    let flags = cpu.rflags();
    cpu.gpr[RCX] = cpu.next_rip;
    cpu.gpr[R11] = flags.bits();
    let selector = (cpu.msrs.star >> 32) as u16;
    let code = flat(selector & !3, CODE64, 0);
    let stack = flat(selector.wrapping_add(8), STACK, 0);
    cpu.enter_flat(code, stack, cpu.msrs.lstar);
    let kept = !Rflags::from_bits_retain(cpu.msrs.fmask);
    let flags = flags.intersection(kept).difference(Rflags::RF);
    // A mask that clears TF also averts the single-step trap of this instruction.
    cpu.events.averts_step_trap = !flags.contains(Rflags::TF);
    cpu.set_rflags(flags);
    Ok(())
}

/// SYSRET: to 64-bit mode with REX.W, else to compatibility mode.
fn sysret(cpu: &mut Cpu, insn: &Insn) -> Exec {
    if cpu.mode() != Mode::Long || !cpu.state.efer.contains(Efer::SCE) {
        return Err(Exception::UD.into());
    }
    cpu.require_cpl0()?;
    let is_long = insn.code == Code::Sysretq;
    let rip = cpu.gpr[RCX];
    if is_long && !cpu.is_canonical(rip) {
        return Err(Exception::gp(0).into());
    }
    let base = (cpu.msrs.star >> 48) as u16;
    let stack = flat(base.wrapping_add(8) | 3, STACK, 3);
    let (code, rip) = if is_long {
        (flat(base.wrapping_add(16) | 3, CODE64, 3), rip)
    } else {
        (flat(base | 3, CODE32, 3), rip & 0xffff_ffff)
    };
    let loaded = EFLAGS_MASK & !(Rflags::RF | Rflags::VM).bits();
    cpu.leave_shadow_to_user();
    cpu.enter_flat(code, stack, rip);
    cpu.set_rflags(Rflags::from_bits_retain(cpu.gpr[R11] & loaded));

    Ok(())
}

/// SYSENTER: protected mode and IA-32e mode.
fn sysenter(cpu: &mut Cpu, _: &Insn) -> Exec {
    let selector = cpu.state.sysenter_cs as u16;
    if cpu.mode() == Mode::Real || selector & !3 == 0 {
        return Err(Exception::gp(0).into());
    }
    cpu.enter_shadow_by_call();
    let is_ia32e = cpu.mode().is_ia32e();
    let width = if is_ia32e { u64::MAX } else { 0xffff_ffff };
    let cleared = Rflags::VM | Rflags::IF | Rflags::RF;
    cpu.set_rflags(cpu.rflags().difference(cleared));
    cpu.gpr[RSP] = cpu.state.sysenter_esp & width;
    let code = flat(selector & !3, if is_ia32e { CODE64 } else { CODE32 }, 0);
    let stack = flat((selector & !3).wrapping_add(8), STACK, 0);
    cpu.enter_flat(code, stack, cpu.state.sysenter_eip & width);
    Ok(())
}

/// SYSEXIT: to 64-bit mode with REX.W.
fn sysexit(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let selector = cpu.state.sysenter_cs as u16;
    if selector & !3 == 0 || cpu.mode().is_real_style() || cpu.cpl() != 0 {
        return Err(Exception::gp(0).into());
    }
    let is_long = insn.code == Code::Sysexitq;
    let (rsp, rip) = (cpu.gpr[RCX], cpu.gpr[RDX]);
    if is_long && !(cpu.is_canonical(rsp) && cpu.is_canonical(rip)) {
        return Err(Exception::gp(0).into());
    }
    let base = selector & !3;
    let (code, stack, width) = if is_long {
        let code = flat(base.wrapping_add(32) | 3, CODE64, 3);
        (code, flat(base.wrapping_add(40) | 3, STACK, 3), u64::MAX)
    } else {
        let code = flat(base.wrapping_add(16) | 3, CODE32, 3);
        (code, flat(base.wrapping_add(24) | 3, STACK, 3), 0xffff_ffff)
    };
    cpu.leave_shadow_to_user();
    cpu.gpr[RSP] = rsp & width;
    cpu.enter_flat(code, stack, rip & width);
    Ok(())
}

/// SWAPGS: exchanges GS.base with IA32_KERNEL_GS_BASE.
fn swapgs(cpu: &mut Cpu, _: &Insn) -> Exec {
    if cpu.mode() != Mode::Long {
        return Err(Exception::UD.into());
    }
    cpu.require_cpl0()?;
    let old = *cpu.state.segment(SegmentRegister::Gs);
    let new = Segment {
        base: cpu.msrs.kernel_gs_base,
        ..old
    };
    cpu.msrs.kernel_gs_base = old.base;
    cpu.set_segment(SegmentRegister::Gs, new);
    Ok(())
}
