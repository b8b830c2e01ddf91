//! One x86 processor: it executes instructions, and asks [`vmx_model`] about everything VMX.
//!
//! The crate has two classes of instruction. Every instruction has a *plain handler* in `exec`:
//! the reference, written with the SDM's order of accesses. Hot families also have specialised
//! micro-op handlers; a property test holds both equal.
//!
//! Citations are to the Intel SDM by volume and section title.
#[cfg(target_endian = "big")]
compile_error!("the register file is addressed by byte offset: little-endian hosts only");

pub(crate) mod alu;
pub(crate) mod block;
pub mod bus;
pub(crate) mod cet;
pub mod cpu;
pub mod cpuid;
pub(crate) mod decode;
pub(crate) mod deliver;
pub(crate) mod descriptor;
pub mod events;
pub(crate) mod exec;
pub mod fault;
mod fetch;
pub(crate) mod flags;
pub mod fpu;
pub mod insn;
pub mod mem;
pub mod mode;
pub mod msr;
pub mod native;
#[cfg(test)]
mod protection;
pub mod registers;
pub(crate) mod reset;
pub mod run;
pub(crate) mod segmentation;
mod softfloat;
pub mod state;
pub mod stop;
pub mod system;
pub(crate) mod task;
#[cfg(test)]
pub(crate) mod test_cpu;
pub(crate) mod uop;
pub mod vmx;
pub mod width;
pub mod xstate;

pub use cpu::Cpu;
pub use fault::{Exec, Fault};
pub use run::Kicker;
pub use stop::Stop;

/// Whether an instruction form has a plain handler; without one it ends in
/// [`Stop::Unimplemented`].
#[must_use]
pub fn implements(code: iced_x86::Code) -> bool {
    exec::lookup(code).is_some()
}
