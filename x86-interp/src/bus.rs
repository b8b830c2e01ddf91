//! The seams of the processor: devices, clock, local APIC.
//!
//! These are trait objects on slow paths; RAM never passes through them (see [`crate::mem`]).

use vmx_model::addr::Hpa;

/// The answer of a device that cannot complete an access now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suspend;

/// What answers physical addresses without RAM, and ports.
///
/// `size` is 1, 2, 4 or 8 bytes for memory, 1, 2 or 4 for ports. A wider or page-crossing access
/// arrives in pieces, in ascending order of addresses.
///
/// # Errors
/// Every method may answer [`Suspend`]: the instruction is then abandoned without effect and
/// [`crate::Stop::Suspended`] returned; when the processor runs again, the instruction starts
/// anew and repeats its accesses.
#[allow(missing_docs, reason = "one sentence above covers the four accesses")]
#[allow(clippy::missing_errors_doc, reason = "above")]
pub trait Bus: Send {
    fn memory_read(&mut self, address: Hpa, size: usize) -> Result<u64, Suspend>;
    fn memory_write(&mut self, address: Hpa, size: usize, value: u64) -> Result<(), Suspend>;
    fn port_read(&mut self, port: u16, size: usize) -> Result<u32, Suspend>;
    fn port_write(&mut self, port: u16, size: usize, value: u32) -> Result<(), Suspend>;
    /// Learns before an access, to a register of the local APIC also, how many instructions the
    /// processor has retired: what shows the time may take it from there.
    fn time_passes(&mut self, _retired: u64) {}
}

/// A bus without devices: reads give all ones, writes are dropped.
#[derive(Clone, Copy, Debug, Default)]
pub struct EmptyBus;

impl Bus for EmptyBus {
    fn memory_read(&mut self, _: Hpa, size: usize) -> Result<u64, Suspend> {
        Ok(u64::MAX >> (64 - 8 * size.clamp(1, 8)))
    }
    fn memory_write(&mut self, _: Hpa, _: usize, _: u64) -> Result<(), Suspend> {
        Ok(())
    }
    fn port_read(&mut self, _: u16, size: usize) -> Result<u32, Suspend> {
        Ok(u32::MAX >> (32 - 8 * size.clamp(1, 4)))
    }
    fn port_write(&mut self, _: u16, _: usize, _: u32) -> Result<(), Suspend> {
        Ok(())
    }
}

/// Where the time-stamp counter comes from.
pub trait Clock: Send {
    /// Returns the counter that a processor which has retired `instructions` instructions reads,
    /// before its own IA32_TSC adjustment.
    fn tsc(&mut self, instructions: u64) -> u64;

    /// Returns how many instructions may be executed before a counter that has `ticks` left is
    /// looked at again: not more than it takes, where that is known.
    fn instructions_within(&self, ticks: u64) -> u64;
}

/// How many instructions are executed between two looks at a clock that does not count them.
const GLANCE: u64 = 4096;

/// TSC = instructions retired times a ratio: the same inputs give the same trace.
#[derive(Clone, Copy, Debug)]
pub struct InstructionClock {
    /// TSC ticks per instruction.
    pub ratio: u64,
}

impl Default for InstructionClock {
    fn default() -> Self {
        Self { ratio: 1 }
    }
}

impl Clock for InstructionClock {
    fn tsc(&mut self, instructions: u64) -> u64 {
        instructions.wrapping_mul(self.ratio)
    }

    fn instructions_within(&self, ticks: u64) -> u64 {
        ticks.div_ceil(self.ratio.max(1))
    }
}

/// The host's monotonic clock, scaled to a TSC frequency.
#[derive(Clone, Copy, Debug)]
pub struct HostClock {
    start: std::time::Instant,
    khz: u64,
}

impl HostClock {
    /// Starts a counter of `khz` kHz at 0.
    #[must_use]
    pub fn new(khz: u64) -> Self {
        Self {
            start: std::time::Instant::now(),
            khz,
        }
    }
}

impl Clock for HostClock {
    fn tsc(&mut self, _: u64) -> u64 {
        let elapsed = self.start.elapsed();
        let millis = elapsed.as_secs() * 1000 + u64::from(elapsed.subsec_millis());
        let nanos = u64::from(elapsed.subsec_nanos() % 1_000_000);
        // Whole milliseconds and the rest apart: 64 bits hold either product.
        let of_millis = millis.wrapping_mul(self.khz);
        of_millis.wrapping_add(nanos * self.khz / 1_000_000)
    }

    fn instructions_within(&self, _: u64) -> u64 {
        GLANCE
    }
}

/// What the processor needs from its local APIC.
pub trait LocalApic: Send {
    /// Returns the task priority as CR8 shows it (bits 7:4 of TPR).
    fn cr8(&mut self) -> u64;
    /// Sets the task priority through CR8.
    fn set_cr8(&mut self, value: u64);
    /// Reads IA32_APIC_BASE.
    fn base(&mut self) -> u64;
    /// Writes IA32_APIC_BASE; false if the value is refused (#GP(0)).
    fn set_base(&mut self, value: u64) -> bool;
    /// Whether an external interrupt is pending for delivery. After a no, a running processor asks
    /// again only when [`crate::Kicker::call_attention`] tells it to.
    fn has_interrupt(&mut self) -> bool;
    /// Acknowledges the pending external interrupt and returns its vector.
    fn acknowledge(&mut self) -> Option<u8>;
    /// Goes through INIT with the processor.
    fn init(&mut self) {}
    /// Performs the EOI of posted-interrupt processing.
    fn end_of_interrupt(&mut self) {}
    /// Reads an x2APIC register by its MSR index; `None` is #GP(0).
    fn read_x2apic(&mut self, _index: u32) -> Option<u64> {
        None
    }
    /// Writes an x2APIC register by its MSR index; `None` is #GP(0).
    fn write_x2apic(&mut self, _index: u32, _value: u64) -> Option<()> {
        None
    }
    /// Learns that IA32_TSC_DEADLINE was written; 0 disarms the timer.
    fn set_tsc_deadline(&mut self, _deadline_tsc: u64) {}
}
