//! The interval timer of a PC (Intel 8254 datasheet) and the port that belongs to it, 61H: channel 0
//! interrupts, channel 2 is the speaker's, and what software measures time with.
//!
//! Time is given from outside, in ticks of the machine's clock of [`TICKS_PER_SECOND`].

/// The port of channel 0; 1 and 2 follow, then the control port.
pub const BASE: u16 = 0x40;
/// The control port of channel 2's gate and output.
pub const SPEAKER: u16 = 0x61;
/// Its interrupt.
pub const INTERRUPT: usize = 0;

/// The timer's own frequency in Hz.
const FREQUENCY: u128 = 1_193_182;
/// The machine's clock.
pub const TICKS_PER_SECOND: u128 = 1_000_000_000;

/// Returns the timer's periods in so many ticks.
fn periods(ticks: u64) -> u64 {
    (u128::from(ticks) * FREQUENCY / TICKS_PER_SECOND) as u64
}

/// Returns the first tick at which so many periods have passed.
fn ticks(periods: u64) -> u64 {
    (u128::from(periods) * TICKS_PER_SECOND).div_ceil(FREQUENCY) as u64
}

/// Which bytes of a count a port takes and gives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Access {
    Low,
    High,
    #[default]
    Both,
}

/// One channel.
#[derive(Clone, Debug, Default)]
struct Channel {
    mode: u8,
    access: Access,
    is_bcd: bool,
    /// 1 to 65536; 0 before the first count is written.
    count: u64,
    /// When counting began, in periods.
    began: u64,
    is_gated_off: bool,
    /// The low byte that was written, when the high one is to follow.
    low: Option<u8>,
    reads_high: bool,
    latched: Option<u16>,
    status: Option<u8>,
}

impl Channel {
    fn is_periodic(&self) -> bool {
        matches!(self.mode, 2 | 3)
    }

    fn elapsed(&self, now: u64) -> u64 {
        now.saturating_sub(self.began)
    }

    /// Returns what the counter holds.
    fn value(&self, now: u64) -> u16 {
        if self.count == 0 {
            return 0;
        }
        let elapsed = self.elapsed(now);
        let left = match self.mode {
            2 => self.count - elapsed % self.count,
            3 => self.count - 2 * elapsed % self.count,
            _ => self.count.wrapping_sub(elapsed),
        } as u16;
        if self.is_bcd { to_bcd(left) } else { left }
    }

    /// Returns the output.
    fn output(&self, now: u64) -> bool {
        if self.count == 0 {
            return self.mode != 0;
        }
        let elapsed = self.elapsed(now);
        match self.mode {
            0 | 1 => elapsed >= self.count,
            2 => elapsed % self.count != self.count - 1,
            3 => 2 * (elapsed % self.count) < self.count,
            _ => elapsed != self.count,
        }
    }

    /// Returns the first period after `now` in which the output rises.
    fn next_rise(&self, now: u64) -> Option<u64> {
        if self.count == 0 || self.is_gated_off {
            return None;
        }
        if self.is_periodic() {
            let passed = self.elapsed(now) / self.count;
            return Some(self.began + (passed + 1) * self.count);
        }
        let at = self.began + self.count + u64::from(self.mode >= 4);
        (at > now).then_some(at)
    }

    fn write(&mut self, value: u8, now: u64) {
        let value = u16::from(value);
        let count = match (self.access, self.low.take()) {
            (Access::Low, _) => value,
            (Access::High, _) => value << 8,
            (Access::Both, None) => {
                self.low = Some(value as u8);
                return;
            }
            (Access::Both, Some(low)) => value << 8 | u16::from(low),
        };
        let count = if self.is_bcd { from_bcd(count) } else { count };
        let whole = if self.is_bcd { 10_000 } else { 0x1_0000 };
        self.count = if count == 0 { whole } else { u64::from(count) };
        self.began = now;
    }

    fn read(&mut self, now: u64) -> u8 {
        if let Some(status) = self.status.take() {
            return status;
        }
        let value = self.latched.unwrap_or_else(|| self.value(now));
        let is_high = match self.access {
            Access::Low => false,
            Access::High => true,
            Access::Both => {
                self.reads_high = !self.reads_high;
                !self.reads_high
            }
        };
        if is_high || self.access != Access::Both {
            self.latched = None;
        }
        if is_high {
            (value >> 8) as u8
        } else {
            value as u8
        }
    }

    fn latch(&mut self, now: u64) {
        let value = self.value(now);
        self.latched.get_or_insert(value);
    }

    fn latch_status(&mut self, now: u64) {
        let access = match self.access {
            Access::Low => 1,
            Access::High => 2,
            Access::Both => 3,
        };
        let mut status = access << 4 | self.mode << 1 | u8::from(self.is_bcd);
        status |= u8::from(self.output(now)) << 7 | u8::from(self.count == 0) << 6;
        self.status.get_or_insert(status);
    }

    fn program(&mut self, control: u8) {
        let mode = control >> 1 & 7;
        *self = Self {
            mode: if mode > 5 { mode - 4 } else { mode },
            access: match control >> 4 & 3 {
                1 => Access::Low,
                2 => Access::High,
                _ => Access::Both,
            },
            is_bcd: control & 1 != 0,
            is_gated_off: self.is_gated_off,
            ..Self::default()
        };
    }

    /// The gate's edge starts the count again, in the modes that it does so.
    fn set_gate(&mut self, is_on: bool, now: u64) {
        if is_on && self.is_gated_off && !matches!(self.mode, 0 | 4) {
            self.began = now;
        }
        self.is_gated_off = !is_on;
    }
}

fn to_bcd(value: u16) -> u16 {
    (0..4).fold(0, |bcd, n| bcd | (value / 10_u16.pow(n) % 10) << (4 * n))
}

fn from_bcd(bcd: u16) -> u16 {
    (0..4).fold(0, |value, n| value + (bcd >> (4 * n) & 15) * 10_u16.pow(n))
}

/// The timer.
#[derive(Clone, Debug, Default)]
pub struct Pit {
    channels: [Channel; 3],
    /// Bits 0 and 1 of port 61H: the gate of channel 2, and whether the speaker is on.
    speaker: u8,
}

impl Pit {
    /// Reads a port of the timer or port 61H; `None` if it is none of these.
    pub fn read(&mut self, port: u16, now_ticks: u64) -> Option<u8> {
        let now = periods(now_ticks);
        match port {
            BASE..0x43 => Some(self.channels[usize::from(port - BASE)].read(now)),
            SPEAKER => {
                let output = u8::from(self.channels[2].output(now)) << 5;
                // The refresh bit changes every 15 microseconds.
                let refresh = ((now / 18) & 1) as u8;
                Some(self.speaker | output | refresh << 4)
            }
            _ => None,
        }
    }

    /// Writes a port of the timer or port 61H; false if it is none of these.
    pub fn write(&mut self, port: u16, value: u8, now_ticks: u64) -> bool {
        let now = periods(now_ticks);
        match port {
            BASE..0x43 => self.channels[usize::from(port - BASE)].write(value, now),
            0x43 => self.control(value, now),
            SPEAKER => {
                self.speaker = value & 3;
                self.channels[2].set_gate(value & 1 != 0, now);
            }
            _ => return false,
        }
        true
    }

    fn control(&mut self, value: u8, now: u64) {
        match (value >> 6, value >> 4 & 3) {
            (3, which) => {
                for n in (0..3).filter(|n| value >> (n + 1) & 1 != 0) {
                    if which & 2 == 0 {
                        self.channels[n].latch(now);
                    }
                    if which & 1 == 0 {
                        self.channels[n].latch_status(now);
                    }
                }
            }
            (n, 0) => self.channels[usize::from(n)].latch(now),
            (n, _) => self.channels[usize::from(n)].program(value),
        }
    }

    /// Returns the level of channel 0's output.
    #[must_use]
    pub fn output(&self, now_ticks: u64) -> bool {
        self.channels[0].output(periods(now_ticks))
    }

    /// Returns the first tick after `now_ticks` at which channel 0 interrupts.
    #[must_use]
    pub fn next_interrupt(&self, now_ticks: u64) -> Option<u64> {
        self.channels[0].next_rise(periods(now_ticks)).map(ticks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tick at which so many periods have passed.
    fn at(periods: u64) -> u64 {
        ticks(periods)
    }

    fn started(control: u8, count: u16) -> Pit {
        let mut pit = Pit::default();
        assert!(pit.write(0x43, control, 0));
        for byte in count.to_le_bytes() {
            assert!(pit.write(BASE, byte, 0));
        }
        pit
    }

    #[test]
    fn ticks_and_periods_agree() {
        for n in [0, 1, 2, 1000, 1_193_182, 1 << 40] {
            assert_eq!(periods(ticks(n)), n);
        }
        assert_eq!(ticks(1_193_182), 1_000_000_000);
    }

    #[test]
    fn a_rate_generator_interrupts_each_time() {
        let pit = started(0x34, 1000);
        assert_eq!(pit.next_interrupt(0), Some(at(1000)));
        assert_eq!(pit.next_interrupt(at(1000)), Some(at(2000)));
        assert_eq!(pit.next_interrupt(at(2999)), Some(at(3000)));
    }

    #[test]
    fn a_count_interrupts_once() {
        let pit = started(0x30, 500);
        assert!(!pit.output(at(499)));
        assert!(pit.output(at(500)));
        assert_eq!(pit.next_interrupt(0), Some(at(500)));
        assert_eq!(pit.next_interrupt(at(500)), None);
    }

    #[test]
    fn a_latched_count_stands_still_until_it_is_read() {
        let mut pit = started(0x34, 0);
        pit.write(0x43, 0, at(1));
        let bytes = [pit.read(BASE, at(9)), pit.read(BASE, at(10))];
        assert_eq!(bytes, [Some(0xff), Some(0xff)]);
        let low = pit.read(BASE, at(0x102));
        assert_eq!(low, Some(0xfe));
        assert_eq!(pit.read(BASE, at(0x102)), Some(0xfe));
    }

    #[test]
    fn the_read_back_command_gives_status_before_count() {
        let mut pit = started(0x34, 0x1234);
        pit.write(0x43, 0xc2, 0);
        let bytes: Vec<_> = (0..3).map(|_| pit.read(BASE, 0)).collect();
        assert_eq!(bytes, [Some(0xb4), Some(0x34), Some(0x12)]);
    }

    #[test]
    fn channel_2_is_seen_at_port_61h() {
        let mut pit = Pit::default();
        pit.write(SPEAKER, 1, 0);
        pit.write(0x43, 0xb0, 0);
        pit.write(0x42, 100, 0);
        pit.write(0x42, 0, 0);
        let output = |pit: &mut Pit, now| pit.read(SPEAKER, now).map(|v| v & 0x20);
        assert_eq!(output(&mut pit, at(99)), Some(0));
        assert_eq!(output(&mut pit, at(100)), Some(0x20));
    }

    #[test]
    fn decimal_counts() {
        let mut pit = started(0x35, 0x1000);
        assert_eq!(pit.next_interrupt(0), Some(at(1000)));
        assert_eq!(pit.read(BASE, at(1)), Some(0x99));
        assert_eq!(pit.read(BASE, at(1)), Some(0x09));
    }
}
