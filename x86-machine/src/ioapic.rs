//! The I/O APIC (Intel 82093AA datasheet; SDM Vol. 3A, "Message Signalled Interrupts" for the
//! format of what it sends): 24 redirection entries, edge and level.

use crate::apic::{Delivery, Destination, Message};

/// Where its registers are.
pub const BASE: u64 = 0xfec0_0000;
/// How many inputs it has.
pub const INPUTS: usize = 24;

const MASKED: u64 = 1 << 16;
const LEVEL: u64 = 1 << 15;
const REMOTE_IRR: u64 = 1 << 14;
const LOGICAL: u64 = 1 << 11;
/// Delivery status and remote IRR are not written by software.
const READ_ONLY: u64 = 1 << 12 | REMOTE_IRR;

/// One I/O APIC.
#[derive(Clone, Debug)]
pub struct IoApic {
    select: u8,
    id: u32,
    entries: [u64; INPUTS],
    lines: u32,
}

impl Default for IoApic {
    fn default() -> Self {
        Self {
            select: 0,
            id: 0,
            entries: [MASKED; INPUTS],
            lines: 0,
        }
    }
}

impl IoApic {
    /// Reads a register of its page.
    #[must_use]
    pub fn read(&self, offset: u64) -> u32 {
        match (offset, self.select) {
            (0, _) => u32::from(self.select),
            (0x10, 0 | 2) => self.id,
            (0x10, 1) => (INPUTS as u32 - 1) << 16 | 0x20,
            (0x10, 0x10..=0x3f) => {
                let entry = self.entries[usize::from(self.select - 0x10) >> 1];
                (entry >> (32 * (self.select & 1))) as u32
            }
            _ => 0,
        }
    }

    /// Writes a register of its page; returns what it sends.
    pub fn write(&mut self, offset: u64, value: u32) -> Option<Message> {
        match (offset, self.select) {
            (0, _) => self.select = value as u8,
            (0x10, 0) => self.id = value & 0x0f00_0000,
            (0x10, 0x10..=0x3f) => {
                let n = usize::from(self.select - 0x10) >> 1;
                self.write_entry(n, self.select & 1, value);
                return self.deliver_level(n);
            }
            // The EOI register of version 20H.
            (0x40, _) => return self.end_of_interrupt(value as u8).into_iter().next(),
            _ => {}
        }
        None
    }

    fn write_entry(&mut self, n: usize, half: u8, value: u32) {
        let entry = &mut self.entries[n];
        let shift = 32 * half;
        let writable = (0xffff_ffff << shift) & !READ_ONLY;
        *entry = *entry & !writable | u64::from(value) << shift & writable;
        if *entry & LEVEL == 0 {
            *entry &= !REMOTE_IRR;
        }
    }

    /// Raises or lowers an input; returns what is sent.
    pub fn set_line(&mut self, n: usize, level: bool) -> Option<Message> {
        let entry = *self.entries.get(n)?;
        let was = self.lines >> n & 1 != 0;
        self.lines = self.lines & !(1 << n) | u32::from(level) << n;
        if entry & LEVEL != 0 {
            return self.deliver_level(n);
        }
        (level && !was && entry & MASKED == 0).then(|| message(entry))
    }

    fn deliver_level(&mut self, n: usize) -> Option<Message> {
        let entry = &mut self.entries[n];
        let is_due = *entry & (LEVEL | MASKED | REMOTE_IRR) == LEVEL && self.lines >> n & 1 != 0;
        if !is_due {
            return None;
        }
        *entry |= REMOTE_IRR;
        Some(message(*entry))
    }

    /// Learns that the handler of `vector` has finished; returns what is sent again.
    pub fn end_of_interrupt(&mut self, vector: u8) -> Vec<Message> {
        let mut sent = Vec::new();
        for n in 0..INPUTS {
            let entry = &mut self.entries[n];
            if *entry as u8 == vector && *entry & REMOTE_IRR != 0 {
                *entry &= !REMOTE_IRR;
                sent.extend(self.deliver_level(n));
            }
        }
        sent
    }
}

fn message(entry: u64) -> Message {
    let to = (entry >> 56) as u32;
    Message {
        delivery: Delivery::of(entry as u32),
        vector: entry as u8,
        destination: match entry & LOGICAL {
            0 => Destination::Physical(to),
            _ => Destination::Logical(to),
        },
        is_level: entry & LEVEL != 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(entry: u32) -> IoApic {
        let mut chip = IoApic::default();
        chip.write(0, 0x10 + 2 * 3);
        chip.write(0x10, entry);
        chip
    }

    #[test]
    fn an_edge_is_sent_once() {
        let mut chip = program(0x44);
        assert_eq!(chip.set_line(3, true).map(|m| m.vector), Some(0x44));
        assert_eq!(chip.set_line(3, true), None);
        assert_eq!(chip.set_line(3, false), None);
        assert!(chip.set_line(3, true).is_some());
    }

    #[test]
    fn a_level_is_sent_again_at_the_end_of_the_interrupt_while_it_lasts() {
        let mut chip = program(0x8044);
        assert!(chip.set_line(3, true).is_some_and(|m| m.is_level));
        assert_eq!(chip.read(0x10) & 0x4000, 0x4000);
        assert_eq!(chip.end_of_interrupt(0x44).len(), 1);
        assert_eq!(chip.set_line(3, false), None);
        assert_eq!(chip.end_of_interrupt(0x44), []);
        assert_eq!(chip.read(0x10) & 0x4000, 0);
    }

    #[test]
    fn a_masked_input_is_silent_and_inputs_beyond_the_last_do_not_exist() {
        let mut chip = program(0x1_0044);
        assert_eq!(chip.set_line(3, true), None);
        assert_eq!(chip.set_line(24, true), None);
    }
}
