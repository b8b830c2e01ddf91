//! The pair of interrupt controllers of a PC (Intel 8259A datasheet), cascaded by input 2, with the
//! edge/level control registers of later chip sets.

/// Ports of the first controller; those of the second are 80H higher.
pub const COMMAND: u16 = 0x20;
/// The data port of the first controller.
pub const DATA: u16 = 0x21;
/// The command port of the second controller.
pub const SECOND_COMMAND: u16 = 0xa0;
/// The data port of the second controller.
pub const SECOND_DATA: u16 = 0xa1;
/// The edge/level control registers.
pub const ELCR: u16 = 0x4d0;

/// The input of the first controller that the second one is connected to.
const CASCADE: u8 = 2;
/// Inputs that are edge-triggered whatever is written: timer, keyboard, cascade; clock, FPU.
const ALWAYS_EDGE: [u8; 2] = [0x07, 0x21];

/// What the next write to the data port is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Expected {
    #[default]
    Mask,
    Icw2,
    Icw3,
    Icw4,
}

/// One controller.
#[derive(Clone, Debug, Default)]
struct Chip {
    requests: u8,
    in_service: u8,
    mask: u8,
    lines: u8,
    level: u8,
    vector_base: u8,
    /// The input with the highest priority.
    first: u8,
    expected: Expected,
    wants_icw4: bool,
    is_single: bool,
    reads_in_service: bool,
    is_polled: bool,
    ends_by_itself: bool,
    rotates: bool,
    has_special_mask: bool,
    is_special_nested: bool,
}

impl Chip {
    /// Returns how far an input is from the one with the highest priority.
    fn distance(&self, input: u8) -> u8 {
        input.wrapping_sub(self.first) & 7
    }

    /// Returns the input of a set that has the highest priority.
    fn best(&self, inputs: u8) -> Option<u8> {
        (0..8)
            .map(|n| (self.first + n) & 7)
            .find(|n| inputs >> n & 1 != 0)
    }

    /// Returns the input that asks for service, and may.
    fn pending(&self) -> Option<u8> {
        let asking = self.best(self.requests & !self.mask)?;
        let mut busy = self.in_service;
        if self.has_special_mask {
            busy &= !self.mask;
        }
        if self.is_special_nested {
            busy &= !(1 << CASCADE);
        }
        let is_free = |n| self.distance(asking) < self.distance(n);
        self.best(busy).is_none_or(is_free).then_some(asking)
    }

    fn set_line(&mut self, input: u8, is_high: bool) {
        let bit = 1 << input;
        let was_high = self.lines & bit != 0;
        self.lines = if is_high {
            self.lines | bit
        } else {
            self.lines & !bit
        };
        if self.level & bit != 0 {
            self.requests = self.requests & !bit | self.lines & bit;
        } else if is_high && !was_high {
            self.requests |= bit;
        }
    }

    /// Takes an input into service.
    fn acknowledge(&mut self, input: u8) {
        let bit = 1 << input;
        if self.level & bit == 0 {
            self.requests &= !bit;
        }
        if !self.ends_by_itself {
            self.in_service |= bit;
        } else if self.rotates {
            self.first = (input + 1) & 7;
        }
    }

    fn end(&mut self, input: Option<u8>, rotates: bool) {
        let Some(input) = input else {
            return;
        };
        self.in_service &= !(1 << input);
        if rotates {
            self.first = (input + 1) & 7;
        }
    }

    fn write_command(&mut self, value: u8) {
        if value & 0x10 != 0 {
            self.initialize(value);
        } else if value & 8 != 0 {
            self.write_ocw3(value);
        } else {
            self.write_ocw2(value);
        }
    }

    /// ICW1.
    fn initialize(&mut self, value: u8) {
        *self = Self {
            lines: self.lines,
            level: self.level,
            expected: Expected::Icw2,
            wants_icw4: value & 1 != 0,
            is_single: value & 2 != 0,
            ..Self::default()
        };
    }

    fn write_ocw2(&mut self, value: u8) {
        let named = value & 7;
        match value >> 5 {
            0 => self.rotates = false,
            1 => self.end(self.best(self.in_service), false),
            3 => self.end(Some(named), false),
            4 => self.rotates = true,
            5 => self.end(self.best(self.in_service), true),
            6 => self.first = (named + 1) & 7,
            7 => self.end(Some(named), true),
            _ => {}
        }
    }

    fn write_ocw3(&mut self, value: u8) {
        if value & 0x40 != 0 {
            self.has_special_mask = value & 0x20 != 0;
        }
        self.is_polled = value & 4 != 0;
        if value & 2 != 0 {
            self.reads_in_service = value & 1 != 0;
        }
    }

    fn write_data(&mut self, value: u8) {
        self.expected = match self.expected {
            Expected::Mask => {
                self.mask = value;
                return;
            }
            Expected::Icw2 => {
                self.vector_base = value & 0xf8;
                match (self.is_single, self.wants_icw4) {
                    (false, _) => Expected::Icw3,
                    (true, true) => Expected::Icw4,
                    (true, false) => Expected::Mask,
                }
            }
            // How the two are connected is known.
            Expected::Icw3 if self.wants_icw4 => Expected::Icw4,
            Expected::Icw3 => Expected::Mask,
            Expected::Icw4 => {
                self.is_special_nested = value & 0x10 != 0;
                self.ends_by_itself = value & 2 != 0;
                Expected::Mask
            }
        };
    }

    fn read_command(&mut self) -> u8 {
        if core::mem::take(&mut self.is_polled) {
            let Some(input) = self.pending() else {
                return 0;
            };
            self.acknowledge(input);
            return 0x80 | input;
        }
        if self.reads_in_service {
            self.in_service
        } else {
            self.requests
        }
    }
}

/// The two controllers.
#[derive(Clone, Debug)]
pub struct Pic {
    chips: [Chip; 2],
}

impl Default for Pic {
    /// As firmware leaves them: vectors 08H and 70H, the inputs of the second one open.
    fn default() -> Self {
        let chip = |vector_base, mask| Chip {
            vector_base,
            mask,
            ..Chip::default()
        };
        Self {
            chips: [chip(0x08, !(1 << CASCADE)), chip(0x70, 0)],
        }
    }
}

impl Pic {
    /// Whether the processor is asked for attention.
    #[must_use]
    pub fn is_raised(&self) -> bool {
        self.chips[0].pending().is_some()
    }

    /// Raises or lowers one of the 16 inputs; others do not exist.
    pub fn set_line(&mut self, input: usize, is_high: bool) {
        if let Some(chip) = self.chips.get_mut(input / 8) {
            chip.set_line((input % 8) as u8, is_high);
            self.cascade();
        }
    }

    /// Lets the second controller's output be seen by the first.
    fn cascade(&mut self) {
        let is_raised = self.chips[1].pending().is_some();
        let first = &mut self.chips[0];
        // The output falls and rises again for each request.
        if !is_raised {
            first.requests &= !(1 << CASCADE);
        }
        first.set_line(CASCADE, is_raised);
    }

    /// Returns the vector for the processor's interrupt acknowledge: the spurious one, of input 7,
    /// if nothing asks any more.
    pub fn acknowledge(&mut self) -> u8 {
        let Some(input) = self.chips[0].pending() else {
            return self.chips[0].vector_base | 7;
        };
        self.chips[0].acknowledge(input);
        if input != CASCADE {
            return self.chips[0].vector_base | input;
        }
        let second = &mut self.chips[1];
        let input = match second.pending() {
            Some(input) => {
                second.acknowledge(input);
                input
            }
            None => 7,
        };
        let vector = second.vector_base | input;
        // The next request of the second controller is another edge.
        self.chips[0].lines &= !(1 << CASCADE);
        self.cascade();
        vector
    }

    /// Reads a port; `None` if it is none of these.
    pub fn read(&mut self, port: u16) -> Option<u8> {
        let value = match port {
            COMMAND => self.chips[0].read_command(),
            DATA => self.chips[0].mask,
            SECOND_COMMAND => self.chips[1].read_command(),
            SECOND_DATA => self.chips[1].mask,
            ELCR => self.chips[0].level,
            0x4d1 => self.chips[1].level,
            _ => return None,
        };
        self.cascade();
        Some(value)
    }

    /// Writes a port; false if it is none of these.
    pub fn write(&mut self, port: u16, value: u8) -> bool {
        match port {
            COMMAND => self.chips[0].write_command(value),
            DATA => self.chips[0].write_data(value),
            SECOND_COMMAND => self.chips[1].write_command(value),
            SECOND_DATA => self.chips[1].write_data(value),
            ELCR => self.chips[0].level = value & !ALWAYS_EDGE[0],
            0x4d1 => self.chips[1].level = value & !ALWAYS_EDGE[1],
            _ => return false,
        }
        self.cascade();
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Vectors 20H and 28H, everything open.
    fn ready() -> Pic {
        let mut pic = Pic::default();
        for (command, data, base, icw3) in [
            (COMMAND, DATA, 0x20, 4),
            (SECOND_COMMAND, SECOND_DATA, 0x28, 2),
        ] {
            assert!(pic.write(command, 0x11));
            for value in [base, icw3, 1, 0] {
                assert!(pic.write(data, value));
            }
        }
        pic
    }

    #[test]
    fn an_edge_is_served_once_and_the_lower_number_first() {
        let mut pic = ready();
        pic.set_line(4, true);
        pic.set_line(1, true);
        pic.set_line(1, false);
        assert_eq!(pic.acknowledge(), 0x21);
        assert!(!pic.is_raised(), "1 is in service");
        pic.write(COMMAND, 0x20);
        assert!(pic.is_raised());
        assert_eq!(pic.acknowledge(), 0x24);
        pic.write(COMMAND, 0x20);
        assert!(!pic.is_raised(), "the line is still high");
    }

    #[test]
    fn the_second_controller_comes_through_the_cascade() {
        let mut pic = ready();
        pic.set_line(11, true);
        pic.set_line(8, true);
        assert_eq!(pic.acknowledge(), 0x28);
        for port in [SECOND_COMMAND, COMMAND] {
            pic.write(port, 0x20);
        }
        assert!(pic.is_raised());
        assert_eq!(pic.acknowledge(), 0x2b);
        pic.write(SECOND_COMMAND, 0x63);
        pic.write(COMMAND, 0x62);
        assert!(!pic.is_raised());
        pic.write(COMMAND, 0x0b);
        assert_eq!(pic.read(COMMAND), Some(0));
    }

    #[test]
    fn a_level_asks_again_until_it_falls() {
        let mut pic = ready();
        pic.write(ELCR + 1, 0xff);
        assert_eq!(pic.read(ELCR + 1), Some(0xde));
        pic.set_line(10, true);
        for _ in 0..2 {
            assert_eq!(pic.acknowledge(), 0x2a);
            pic.write(SECOND_COMMAND, 0x20);
            pic.write(COMMAND, 0x20);
        }
        pic.set_line(10, false);
        assert!(!pic.is_raised());
    }

    #[test]
    fn a_request_that_is_masked_meanwhile_is_spurious() {
        let mut pic = ready();
        pic.set_line(3, true);
        pic.write(DATA, 8);
        assert!(!pic.is_raised());
        assert_eq!(pic.acknowledge(), 0x27);
        pic.write(COMMAND, 0x0b);
        assert_eq!(pic.read(COMMAND), Some(0), "nothing is in service");
    }

    #[test]
    fn automatic_end_and_rotation() {
        let mut pic = ready();
        pic.write(COMMAND, 0x11);
        for value in [0x20, 4, 3, 0] {
            pic.write(DATA, value);
        }
        pic.write(COMMAND, 0x80);
        for input in [0, 1] {
            pic.set_line(input, true);
        }
        assert_eq!(pic.acknowledge(), 0x20);
        pic.set_line(0, false);
        pic.set_line(0, true);
        assert_eq!(pic.acknowledge(), 0x21, "0 is last now");
        assert_eq!(pic.acknowledge(), 0x20);
    }

    #[test]
    fn a_poll_takes_the_request() {
        let mut pic = ready();
        pic.set_line(5, true);
        pic.write(COMMAND, 0x0c);
        assert_eq!(pic.read(COMMAND), Some(0x85));
        pic.write(COMMAND, 0x0c);
        assert_eq!(pic.read(COMMAND), Some(0));
    }
}
