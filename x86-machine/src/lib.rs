//! What stands around a processor: interrupt controllers, timers, loaders, the bare machine.
//!
//! Devices ([`apic`], [`ioapic`], [`pic`], [`pit`], [`rtc`], [`serial`], [`fw_cfg`], [`acpi`]) are
//! state machines without host I/O, threads or clocks; [`machine`] wires them to processors and
//! RAM, and [`loader`] puts an image there.
//!
//! Citations are to the Intel SDM by volume and section title.

pub mod acpi;
pub mod apic;
pub(crate) mod board;
mod clock;
pub mod fw_cfg;
pub mod ioapic;
pub mod loader;
pub mod machine;
pub mod pic;
pub mod pit;
pub mod rtc;
pub mod serial;

pub use board::End;
pub use loader::Image;
pub use machine::{ClockSource, Config, Machine, Outcome, SerialLine};
