//! Repeated string instructions, which the emulator executes an iteration at a time (SDM Vol. 2,
//! "REP/REPE/REPZ/REPNE/REPNZ").

use super::RCX;

/// A repeated string instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Repeat {
    /// The mask of the address size, by which RCX counts.
    mask: u64,
    /// For CMPS and SCAS: the value of ZF with which it goes on.
    while_zero: Option<bool>,
}

impl Repeat {
    /// Recognizes one by its prefixes and opcode.
    pub(super) fn of(bytes: &[u8], code_bits: u32) -> Option<Self> {
        let mut rep = None;
        let mut address_override = false;
        for byte in bytes {
            match byte {
                0xf2 | 0xf3 => rep = Some(*byte == 0xf3),
                0x67 => address_override = true,
                0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0x66 | 0xf0 => {}
                0x40..=0x4f if code_bits == 64 => {}
                0x6c..=0x6f | 0xa4 | 0xa5 | 0xaa..=0xad => {
                    return rep.map(|_| Self::new(code_bits, address_override, None));
                }
                0xa6 | 0xa7 | 0xae | 0xaf => {
                    return rep.map(|equal| Self::new(code_bits, address_override, Some(equal)));
                }
                _ => return None,
            }
        }
        None
    }

    const fn new(code_bits: u32, address_override: bool, while_zero: Option<bool>) -> Self {
        let bits = match (code_bits, address_override) {
            (64, false) => 64,
            (64, true) | (32, false) | (16, true) => 32,
            _ => 16,
        };
        Self {
            mask: u64::MAX >> (64 - bits),
            while_zero,
        }
    }

    pub(super) const fn count(&self, regs: &[u64; 16]) -> u64 {
        regs[RCX] & self.mask
    }

    /// Returns RCX with another count; a 32-bit count clears the upper half.
    pub(super) const fn with_count(&self, rcx: u64, count: u64) -> u64 {
        let kept = if self.mask == 0xffff {
            rcx & !0xffff
        } else {
            0
        };
        kept | count & self.mask
    }

    pub(super) fn goes_on(&self, zero: bool) -> bool {
        self.while_zero.is_none_or(|wanted| wanted == zero)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_string_instructions_are_recognized() {
        let mask = |bytes: &[u8], bits| Repeat::of(bytes, bits).map(|repeat| repeat.mask);
        assert_eq!(mask(&[0xf3, 0x6c], 16), Some(0xffff));
        assert_eq!(mask(&[0x67, 0xf3, 0xa4], 16), Some(0xffff_ffff));
        assert_eq!(mask(&[0xf3, 0x48, 0xa5], 64), Some(u64::MAX));
        assert_eq!(mask(&[0xa4], 32), None);
        assert_eq!(mask(&[0xf3, 0x90], 32), None);
        let scas = Repeat::of(&[0xf2, 0xae], 32).expect("REPNE SCASB");
        assert!(scas.goes_on(false) && !scas.goes_on(true));
    }

    #[test]
    fn the_count_has_the_address_size() {
        let short = Repeat::new(16, false, None);
        assert_eq!(short.with_count(0x1_0005, 4), 0x1_0004);
        let long = Repeat::new(64, true, None);
        assert_eq!(long.with_count(u64::MAX, 4), 4);
    }
}
