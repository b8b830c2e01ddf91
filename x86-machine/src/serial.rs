//! The 16550 UART (National Semiconductor PC16550D datasheet), as far as a polled or interrupt
//! driven console needs: what is transmitted goes to a writer at once.

use std::collections::VecDeque;
use std::io::Write;

/// Its first port: COM1.
pub const BASE: u16 = 0x3f8;
/// Its interrupt.
pub const INTERRUPT: usize = 4;

const LCR_DLAB: u8 = 0x80;
const IER_RECEIVED: u8 = 1;
const IER_TRANSMITTER_EMPTY: u8 = 2;
const MCR_LOOPBACK: u8 = 0x10;

/// One UART.
pub struct Serial {
    out: Box<dyn Write + Send>,
    received: VecDeque<u8>,
    divisor: u16,
    ier: u8,
    fcr: u8,
    lcr: u8,
    mcr: u8,
    scratch: u8,
    is_empty_pending: bool,
}

impl core::fmt::Debug for Serial {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Serial")
            .field("ier", &self.ier)
            .finish_non_exhaustive()
    }
}

impl Serial {
    /// Returns a UART that transmits to `out`.
    #[must_use]
    pub fn new(out: Box<dyn Write + Send>) -> Self {
        Self {
            out,
            received: VecDeque::new(),
            divisor: 12,
            ier: 0,
            fcr: 0,
            lcr: 3,
            mcr: 0,
            scratch: 0,
            is_empty_pending: false,
        }
    }

    /// Receives bytes.
    pub fn receive(&mut self, bytes: &[u8]) {
        self.received.extend(bytes);
    }

    /// Returns how many received bytes have not been read.
    #[must_use]
    pub fn unread(&self) -> usize {
        self.received.len()
    }

    /// Whether its interrupt line is raised.
    #[must_use]
    pub fn interrupts(&self) -> bool {
        self.mcr & 8 != 0 && self.identification() & 1 == 0
    }

    fn identification(&self) -> u8 {
        if self.ier & IER_RECEIVED != 0 && !self.received.is_empty() {
            4
        } else if self.ier & IER_TRANSMITTER_EMPTY != 0 && self.is_empty_pending {
            2
        } else {
            1
        }
    }

    /// Reads register `n`.
    pub fn read(&mut self, n: u16) -> u8 {
        let has_latch = self.lcr & LCR_DLAB != 0;
        match n {
            0 if has_latch => self.divisor as u8,
            0 => self.received.pop_front().unwrap_or(0),
            1 if has_latch => (self.divisor >> 8) as u8,
            1 => self.ier,
            2 => {
                let id = self.identification();
                if id == 2 {
                    self.is_empty_pending = false;
                }
                id | if self.fcr & 1 != 0 { 0xc0 } else { 0 }
            }
            3 => self.lcr,
            4 => self.mcr,
            5 => 0x60 | u8::from(!self.received.is_empty()),
            6 if self.mcr & MCR_LOOPBACK != 0 => {
                let m = self.mcr;
                (m & 2) << 3 | (m & 1) << 5 | (m & 4) << 4 | (m & 8) << 4
            }
            6 => 0xb0,
            _ => self.scratch,
        }
    }

    /// Writes register `n`.
    pub fn write(&mut self, n: u16, value: u8) {
        let has_latch = self.lcr & LCR_DLAB != 0;
        match n {
            0 if has_latch => self.divisor = self.divisor & 0xff00 | u16::from(value),
            0 => self.transmit(value),
            1 if has_latch => self.divisor = self.divisor & 0xff | u16::from(value) << 8,
            1 => {
                self.is_empty_pending |= value & !self.ier & IER_TRANSMITTER_EMPTY != 0;
                self.ier = value & 0xf;
            }
            2 => self.fcr = value,
            3 => self.lcr = value,
            4 => self.mcr = value & 0x1f,
            7 => self.scratch = value,
            _ => {}
        }
    }

    fn transmit(&mut self, byte: u8) {
        if self.mcr & MCR_LOOPBACK != 0 {
            self.received.push_back(byte);
        } else {
            // A host that does not listen is a cable that is not plugged in.
            let _ = self.out.write_all(&[byte]);
            if byte == b'\n' {
                let _ = self.out.flush();
            }
        }
        self.is_empty_pending = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_transmitter_is_always_empty_and_says_so_once_by_interrupt() {
        let mut uart = Serial::new(Box::new(Vec::new()));
        uart.write(4, 8);
        assert!(!uart.interrupts());
        uart.write(1, 2);
        assert!(uart.interrupts());
        assert_eq!(uart.read(2), 2);
        assert!(!uart.interrupts());
        assert_eq!(uart.read(5) & 0x20, 0x20);
    }

    #[test]
    fn the_divisor_hides_behind_the_latch_bit() {
        let mut uart = Serial::new(Box::new(Vec::new()));
        uart.write(3, 0x83);
        uart.write(0, 0x34);
        uart.write(1, 0x12);
        assert_eq!((uart.read(0), uart.read(1)), (0x34, 0x12));
        uart.write(3, 3);
        assert_eq!(uart.read(1), 0);
    }

    #[test]
    fn loopback_receives_what_is_sent() {
        let mut uart = Serial::new(Box::new(Vec::new()));
        uart.write(4, 0x10);
        uart.write(0, b'x');
        assert_eq!(uart.read(5) & 1, 1);
        assert_eq!(uart.read(0), b'x');
    }
}
