//! The micro-ops that execute an instruction by its plain handler.

use std::hint::black_box;

use vmx_model::addr::Hpa;

use super::{Left, Uop, header, next};
use crate::Cpu;
use crate::insn::Repeat;

/// Work of a plain handler; see [`crate::run::Slice::work`].
const PLAIN_WORK: i64 = 1;

/// Any instruction that goes on with the following one.
pub(crate) unsafe fn plain(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe {
        if execute(cpu, op) {
            next!(cpu, op.add(1));
        }
    }
    black_box(core::ptr::null())
}

/// The way out of a hot handler: executes its instruction by the plain handler.
#[cold]
#[inline(never)]
pub(crate) unsafe fn bail(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    #[cfg(test)]
    BAILED.set(true);
    // SAFETY: `uop`, "Safety".
    unsafe {
        if execute(cpu, op) {
            next!(cpu, op.add(usize::from((*op).rest)));
        }
    }
    black_box(core::ptr::null())
}

#[cfg(test)]
thread_local! {
    /// A hot handler has handed over to a plain one.
    pub(crate) static BAILED: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// An instruction that ends its block and behind which code may be another.
pub(crate) unsafe fn plain_outside(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe {
        (*cpu).outside_may_have_written();
        plain_end(cpu, op)
    }
}

/// Any instruction that ends its block.
pub(crate) unsafe fn plain_end(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe {
        if execute(cpu, op) {
            (*cpu).leave_after(op);
        }
    }
    black_box(core::ptr::null())
}

/// Executes the instruction of `op` by its plain handler; false if the run has to be left, with
/// `state.rip`, the instruction count and `hot.left` set. If true, `state.rip` is the following
/// instruction's.
#[inline(never)]
unsafe fn execute(cpu: *mut Cpu, op: *const Uop) -> bool {
    // SAFETY: `uop`, "Safety".
    let (cpu, op, header) = unsafe { (&mut *cpu, &*op, &*header(op)) };
    // SAFETY: as above; the block outlives the call, and no handler changes it.
    let block = unsafe { &*header.block };
    cpu.note_work(PLAIN_WORK);
    let insn = &block.insns[usize::from(op.insn)];
    let next = block.rip.wrapping_add(u64::from(op.next_offset)) & block.rip_mask;
    cpu.state.rip = next.wrapping_sub(u64::from(insn.length)) & block.rip_mask;
    cpu.next_rip = next;
    let undone = header.count - i64::from(op.insn);
    cpu.retired = cpu.hot.end.wrapping_sub((cpu.hot.budget + undone) as u64);
    if let Err(fault) = (insn.plain)(cpu, insn) {
        cpu.hot.budget += undone;
        cpu.engine.fault = Some(fault);
        cpu.hot.left = Left::Fault;
        return false;
    }
    if insn.repeat != Repeat::None && cpu.next_rip == cpu.state.rip {
        cpu.events.is_mid_repeat = true;
        cpu.hot.budget += undone;
        cpu.hot.left = Left::Onward;
        return false;
    }
    cpu.state.rip = cpu.next_rip;
    if cpu.hot.code_written {
        cpu.hot.budget += undone - 1;
        cpu.hot.left = Left::Onward;
        return false;
    }
    true
}

impl Cpu {
    /// Ends a run whose last access of memory failed, at this host address: the instruction has
    /// changed nothing (see [`super`]).
    #[cold]
    pub(crate) fn abandon(&mut self, host: u64) {
        let op = self.hot.at.0;
        // SAFETY: `uop`, "Safety": the micro-op belongs to the block that was left just now.
        let (op, header) = unsafe { (&*op, &*header(op)) };
        // SAFETY: as above.
        let block = unsafe { &*header.block };
        let length = block.insns[usize::from(op.insn)].length;
        let next = block.rip.wrapping_add(u64::from(op.next_offset));
        self.state.rip = next.wrapping_sub(u64::from(length)) & block.rip_mask;
        self.hot.budget += header.count - i64::from(op.insn);
        self.hot.left = Left::Fault;
        let at = self.view.address_of_host(host).unwrap_or(Hpa(u64::MAX));
        self.engine.fault = Some(self.host_fault(at));
    }

    /// Leaves the run behind the completed instruction of `op`, the last of its block, whose plain
    /// handler has set `state.rip`.
    fn leave_after(&mut self, op: *const Uop) {
        // SAFETY: `uop`, "Safety".
        let undone = unsafe { (*header(op)).count - i64::from((*op).insn) - 1 };
        self.hot.budget += undone;
        self.hot.left = Left::Onward;
    }
}
