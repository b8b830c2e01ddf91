//! Accesses to host memory that may have vanished.
//!
//! The memory behind a region belongs to the host program, which may unmap or protect it at any
//! time. The host's processor then raises a fault at the access itself. Two ways lead out:
//!
//! - plain handlers, page walks and the decoder access memory by small functions whose faulting
//!   instruction is known by its address; [`recover`] makes them return a failure;
//! - hot micro-ops access memory directly. They hold nothing that would have to be dropped, and
//!   have changed nothing when they fault (see the module `uop`), so [`recover`] abandons them: it
//!   goes back to the frame that entered the block, as if the micro-ops had returned.
//!
//! The host program's handler of SIGSEGV and SIGBUS calls [`recover`]. Without one, and on hosts
//! other than x86-64, a fault ends the process as it always would.
#![expect(
    unsafe_code,
    reason = "accesses to host memory, and the way out of a fault there"
)]

use core::cell::Cell;

use crate::Cpu;
use crate::uop::{self, Uop};

#[cfg(not(all(target_arch = "x86_64", unix, not(miri))))]
mod portable;
#[cfg(all(target_arch = "x86_64", unix, not(miri)))]
mod x86_64;

#[cfg(not(all(target_arch = "x86_64", unix, not(miri))))]
use portable as host;
#[cfg(not(all(target_arch = "x86_64", unix, not(miri))))]
pub(crate) use portable::{compare_exchange, copy_words, fill_words, load, store};
#[cfg(all(target_arch = "x86_64", unix, not(miri)))]
use x86_64 as host;
#[cfg(all(target_arch = "x86_64", unix, not(miri)))]
pub(crate) use x86_64::{compare_exchange, copy_words, fill_words, load, store};

/// Registers of the host's processor at a fault, as far as [`recover`] uses them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostRegisters {
    /// The instruction that faulted.
    pub rip: u64,
    /// The stack pointer.
    pub rsp: u64,
    /// The first return register.
    pub rax: u64,
    /// The second return register.
    pub rdx: u64,
}

/// A run of micro-ops on this thread.
#[repr(C)]
struct Entered {
    /// The stack pointer to go back to. First: the entry stores it.
    stack: u64,
    cpu: *mut Cpu,
    /// The address that could not be accessed.
    address: Option<u64>,
}

std::thread_local! {
    static ENTERED: Cell<*mut Entered> = const { Cell::new(core::ptr::null_mut()) };
}

/// Runs micro-ops from `op` until they leave. Returns the host address of the access that failed,
/// if one did; `Hot::at` is then its micro-op.
///
/// # Safety
/// `uop`, "Safety".
pub(crate) unsafe fn enter(cpu: *mut Cpu, op: *const Uop) -> Option<u64> {
    let mut entered = Entered {
        stack: 0,
        cpu,
        address: None,
    };
    let entered = &raw mut entered;
    let outer = ENTERED.replace(entered);
    // SAFETY: the caller's; `entered` lives until the call has returned.
    unsafe { host::enter(cpu, op, entered) };
    ENTERED.set(outer);
    // SAFETY: as above.
    unsafe { (*entered).address }
}

/// Runs micro-ops; called by the entry.
///
/// # Safety
/// `uop`, "Safety".
unsafe extern "C" fn dispatch(cpu: *mut Cpu, op: *const Uop) {
    // SAFETY: the caller's.
    unsafe { uop::dispatch(cpu, op) };
}

/// Finds the way out of a fault at an access to guest memory: true if `registers` now say where to
/// go on. False: the fault is none of this crate's, and nothing has changed.
///
/// It only reads memory of the interrupted thread, so that a signal handler may call it.
///
/// # Safety
/// `registers` and `address` are those of a memory fault that this thread is handling, and it goes
/// on with the registers that are returned.
pub unsafe fn recover(registers: &mut HostRegisters, address: u64) -> bool {
    if host::is_guarded(registers.rip) {
        // SAFETY: guarded instructions use no stack: the return address is on top of it.
        registers.rip = unsafe { *(registers.rsp as *const u64) };
        registers.rsp = registers.rsp.wrapping_add(8);
        registers.rax = 1;
        registers.rdx = 1;
        return true;
    }
    let entered = ENTERED.get();
    if entered.is_null() {
        return false;
    }
    // SAFETY: set by `enter` on this thread, whose frame is still there.
    let entered = unsafe { &mut *entered };
    // SAFETY: the processor outlives the run.
    if !unsafe { (*entered.cpu).tlb.has_host_page(address & !0xfff) } {
        return false;
    }
    entered.address = Some(address);
    registers.rsp = entered.stack;
    registers.rip = host::abandoned();
    true
}

/// Reads and writes back a byte: whether memory can be written.
///
/// # Safety
/// `address` names a byte of a region.
pub(crate) unsafe fn can_store(address: u64) -> bool {
    // SAFETY: the caller's.
    unsafe { compare_exchange::<u8>(address, 0, 0) }.is_some()
}
