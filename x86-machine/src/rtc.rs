//! The real-time clock of a PC and its memory (Motorola MC146818 datasheet): index port 70H, data
//! port 71H. The time of day can be read; alarms and periodic interrupts do not exist.

use time::OffsetDateTime;

/// The index port; the data port is the next one.
pub const INDEX: u16 = 0x70;
/// The data port.
pub const DATA: u16 = 0x71;

const STATUS_A: usize = 10;
const STATUS_B: usize = 11;
const STATUS_C: usize = 12;
const STATUS_D: usize = 13;
/// Where PCs keep the century.
const CENTURY: usize = 0x32;

const BINARY: u8 = 4;
const HOURS_24: u8 = 2;
/// In the hours of a clock that counts to 12.
const PM: u8 = 0x80;

/// The clock.
#[derive(Clone, Debug)]
pub struct Rtc {
    index: u8,
    memory: [u8; 128],
    /// Seconds since 1970 when the machine began.
    began: i64,
}

impl Rtc {
    /// Returns a clock that shows `began`, in seconds since 1970, at tick 0.
    #[must_use]
    pub fn new(began: i64) -> Self {
        let mut memory = [0; 128];
        // The divider runs, the slowest periodic rate; 24 hours; the battery is good.
        (memory[STATUS_A], memory[STATUS_B], memory[STATUS_D]) = (0x26, HOURS_24, 0x80);
        Self {
            index: 0,
            memory,
            began,
        }
    }

    /// Reads a port; `None` if it is neither of these. `seconds` have passed.
    #[must_use]
    pub fn read(&self, port: u16, seconds: u64) -> Option<u8> {
        match port {
            INDEX => Some(self.index),
            DATA => Some(self.register(usize::from(self.index), seconds)),
            _ => None,
        }
    }

    /// Writes a port; false if it is neither of these.
    pub fn write(&mut self, port: u16, value: u8) -> bool {
        match port {
            // Bit 7 is the NMI mask.
            INDEX => self.index = value & 0x7f,
            DATA => match usize::from(self.index) {
                STATUS_C | STATUS_D => {}
                index => self.memory[index] = value,
            },
            _ => return false,
        }
        true
    }

    fn register(&self, index: usize, seconds: u64) -> u8 {
        let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
        let at = self.began.saturating_add(seconds);
        let now = OffsetDateTime::from_unix_timestamp(at).unwrap_or(OffsetDateTime::UNIX_EPOCH);
        let year = now.year().clamp(0, 9999);
        match index {
            0 => self.number(now.second()),
            2 => self.number(now.minute()),
            4 => self.hours(now.hour()),
            6 => self.number(now.weekday().number_from_sunday()),
            7 => self.number(now.day()),
            8 => self.number(now.month().into()),
            9 => self.number((year % 100) as u8),
            CENTURY => self.number((year / 100) as u8),
            _ => self.memory[index],
        }
    }

    fn number(&self, value: u8) -> u8 {
        if self.memory[STATUS_B] & BINARY != 0 {
            value
        } else {
            ((value / 10) << 4) | (value % 10)
        }
    }

    fn hours(&self, hour: u8) -> u8 {
        if self.memory[STATUS_B] & HOURS_24 != 0 {
            return self.number(hour);
        }
        let is_pm = if hour >= 12 { PM } else { 0 };
        self.number((hour + 11) % 12 + 1) | is_pm
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 31 December 2025, 23:59:58, a Wednesday.
    const BEGAN: i64 = 1_767_225_598;

    fn show(rtc: &mut Rtc, seconds: u64) -> Vec<u8> {
        let registers = [0, 2, 4, 6, 7, 8, 9, 0x32];
        let read = |n: u8| {
            assert!(rtc.write(INDEX, n | 0x80));
            rtc.read(DATA, seconds).expect("a port of the clock")
        };
        registers.map(read).to_vec()
    }

    #[test]
    fn the_time_of_day_is_decimal_and_goes_on() {
        let mut rtc = Rtc::new(BEGAN);
        let before = [0x58, 0x59, 0x23, 0x04, 0x31, 0x12, 0x25, 0x20];
        assert_eq!(show(&mut rtc, 0), before);
        let after = [0x00, 0x00, 0x00, 0x05, 0x01, 0x01, 0x26, 0x20];
        assert_eq!(show(&mut rtc, 2), after);
    }

    #[test]
    fn binary_and_twelve_hours() {
        let mut rtc = Rtc::new(BEGAN);
        rtc.write(INDEX, 11);
        rtc.write(DATA, BINARY);
        assert_eq!(show(&mut rtc, 0)[..3], [58, 59, PM | 11]);
        assert_eq!(show(&mut rtc, 2)[2], 12);
    }

    #[test]
    fn memory_is_kept_and_no_time_is_too_far() {
        let mut rtc = Rtc::new(i64::MAX);
        for (index, value, kept) in [(0x40, 7, 7), (13, 0, 0x80)] {
            rtc.write(INDEX, index);
            rtc.write(DATA, value);
            assert_eq!(rtc.read(DATA, 0), Some(kept));
        }
        assert_eq!(show(&mut rtc, u64::MAX).len(), 8);
    }
}
