//! Guests: a virtual machine in a mode, code for it, and what is to be seen.
//!
//! [`Machine`] makes the VM, its memory and a vCPU that is about to execute [`layout::CODE`];
//! [`setup`] builds the descriptor tables and page tables of each [`Mode`]; [`observe`] runs it and
//! writes what happened in the words of the expectation.

pub mod layout;
pub mod machine;
pub mod observe;
pub mod setup;

pub use machine::{Machine, Vm};
pub use setup::Mode;

use crate::probe::Probe;
use iced_x86::IcedError;
use iced_x86::code_asm::CodeAssembler;
use kvm_bindings::kvm_sregs;

/// Code of a guest.
pub type Code = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// A guest that executes code once: a row of a table of cases.
#[derive(Clone)]
pub struct Guest {
    /// The name of the case in its group.
    pub id: &'static str,
    /// Exits, registers and memory that are to be seen: see [`observe`].
    pub want: &'static str,
    mode: Mode,
    code: Code,
    registers: &'static [(&'static str, u64)],
    memory: &'static [(u64, &'static [u8])],
    pages: &'static [(u64, u64)],
    system: Option<fn(&mut kvm_sregs)>,
    prepare: Option<fn(&mut Probe<'_>, &Machine)>,
}

/// A guest in a mode with its code and what is to be seen.
#[must_use]
pub fn guest(id: &'static str, mode: Mode, code: Code, want: &'static str) -> Guest {
    Guest {
        id,
        want,
        mode,
        code,
        registers: &[],
        memory: &[],
        pages: &[],
        system: None,
        prepare: None,
    }
}

impl Guest {
    /// Registers at the start.
    #[must_use]
    pub fn registers(self, registers: &'static [(&'static str, u64)]) -> Guest {
        Guest { registers, ..self }
    }

    /// Bytes in guest-physical memory at the start.
    #[must_use]
    pub fn memory(self, memory: &'static [(u64, &'static [u8])]) -> Guest {
        Guest { memory, ..self }
    }

    /// Leaf paging-structure entries: linear address and entry.
    #[must_use]
    pub fn pages(self, pages: &'static [(u64, u64)]) -> Guest {
        Guest { pages, ..self }
    }

    /// A last change of the system registers.
    #[must_use]
    pub fn system(self, change: fn(&mut kvm_sregs)) -> Guest {
        Guest {
            system: Some(change),
            ..self
        }
    }

    /// A last act before it runs.
    #[must_use]
    pub fn prepare(self, act: fn(&mut Probe<'_>, &Machine)) -> Guest {
        Guest {
            prepare: Some(act),
            ..self
        }
    }

    /// The bytes of its code.
    ///
    /// # Errors
    /// If the code cannot be encoded.
    pub fn encoded(&self) -> Result<Vec<u8>, IcedError> {
        machine::assemble(self.mode.bits(), layout::CODE, self.code)
    }

    /// Runs it and notes what was seen under the group's own name.
    pub fn play(&self, probe: &mut Probe<'_>) {
        let machine = Machine::with_pages(probe, self.mode, self.pages);
        for (address, bytes) in self.memory {
            machine.poke(probe, *address, bytes);
        }
        machine.load(probe, self.code);
        machine.set_registers(probe, self.registers);
        if let Some(change) = self.system {
            let _ = machine.change_system(probe, change);
        }
        if let Some(act) = self.prepare {
            act(probe, &machine);
        }
        machine.case(probe, "", self.want);
    }
}
