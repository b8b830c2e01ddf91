//! VMX by guests that run: what `vmx-model` decides and `x86-interp` carries out, together.
//!
//! SDM Vol. 3C, chapters "VMX Non-Root Operation", "VM Entries", "VM Exits", "APIC Virtualization
//! and Virtual Interrupts".

mod apic;
mod behaviours;
mod cet;
mod entry_checks;
mod events;
mod exit_reasons;
mod host;
mod memory;
mod state;
#[path = "../../../vmx-model/tests/violations/mod.rs"]
mod violations;
mod watch;
