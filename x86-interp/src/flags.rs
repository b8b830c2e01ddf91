//! The status flags, kept as the last result and a word from which the flags follow on demand.
//!
//! Most instructions set all six status flags, few look at one. So an instruction stores its
//! result (sign-extended to 64 bits) and a word `aux`:
//!
//! | bits of `aux` | meaning |
//! |---|---|
//! | 31 | CF: the carry out of the most significant bit |
//! | 30 | the carry into the most significant bit; OF is bit 31 XOR bit 30 |
//! | 15:8 | XORed into the result's low byte before its parity is taken |
//! | 3 | AF: the carry out of bit 3 |
//! | 0 | inverts SF |
//!
//! Bits 15:8 and 0 make every combination of flags representable (POPF, SAHF).

use vmx_model::arch::Rflags;

use crate::width::Width;

/// CF in `aux`.
const CARRY: u64 = 1 << 31;
/// The carry into the most significant bit in `aux`.
const CARRY_IN: u64 = 1 << 30;
/// AF in `aux`.
const ADJUST: u64 = 1 << 3;

/// The status flags. See the module.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LazyFlags {
    result: u64,
    aux: u64,
}

impl Default for LazyFlags {
    fn default() -> Self {
        Self::from_rflags(Rflags::empty())
    }
}

impl LazyFlags {
    /// The flags of a logical operation: CF, OF and AF are 0.
    #[inline(always)]
    pub(crate) fn logic<W: Width>(result: W) -> Self {
        Self {
            result: result.to_i64() as u64,
            aux: 0,
        }
    }

    /// The flags of `result = a + b (+ carry)`.
    #[inline(always)]
    pub(crate) fn add<W: Width>(a: W, b: W, result: W) -> Self {
        let (a, b, r) = (a.to_u64(), b.to_u64(), result.to_u64());
        Self::from_carries::<W>(result, (a & b) | ((a | b) & !r))
    }

    /// The flags of `result = a - b (- borrow)`.
    #[inline(always)]
    pub(crate) fn sub<W: Width>(a: W, b: W, result: W) -> Self {
        let (a, b, r) = (a.to_u64(), b.to_u64(), result.to_u64());
        Self::from_carries::<W>(result, (!a & b) | ((!a | b) & r))
    }

    /// The flags of an addition or subtraction with this vector of carries out of each bit.
    #[inline(always)]
    fn from_carries<W: Width>(result: W, carries: u64) -> Self {
        let top = if W::BITS == 64 {
            carries >> 32
        } else {
            carries << (32 - W::BITS)
        };
        Self {
            result: result.to_i64() as u64,
            aux: (top & (CARRY | CARRY_IN)) | (carries & ADJUST),
        }
    }

    /// A result with chosen CF and OF, and AF 0.
    #[inline(always)]
    pub(crate) fn carry_overflow<W: Width>(result: W, carry: bool, overflow: bool) -> Self {
        Self {
            result: result.to_i64() as u64,
            aux: (u64::from(carry) * CARRY) | (u64::from(carry != overflow) * CARRY_IN),
        }
    }

    /// The flags of an ordered comparison of floating-point numbers: ZF and CF; the others are 0.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code))]
    pub(crate) fn ordered(is_equal: bool, is_less: bool) -> Self {
        Self {
            result: u64::from(!is_equal),
            aux: (u64::from(is_less) * (CARRY | CARRY_IN)) | (u64::from(is_equal) << 8),
        }
    }

    /// Returns these flags with CF as it was in `before`, and the same OF.
    #[inline(always)]
    pub(crate) fn keeping_carry(self, before: Self) -> Self {
        let change = (self.aux ^ before.aux) & CARRY;
        Self {
            result: self.result,
            aux: self.aux ^ change ^ change >> 1,
        }
    }

    /// Returns these flags with another CF and OF.
    #[inline(always)]
    pub(crate) fn with_carry_overflow(self, carry: bool, overflow: bool) -> Self {
        let new = Self::carry_overflow(0_u64, carry, overflow).aux;
        Self {
            result: self.result,
            aux: self.aux & !(CARRY | CARRY_IN) | new,
        }
    }

    /// CF.
    #[inline(always)]
    pub(crate) fn cf(self) -> bool {
        self.aux & CARRY != 0
    }

    /// ZF.
    #[inline(always)]
    pub(crate) fn zf(self) -> bool {
        self.result == 0
    }

    /// SF.
    #[inline(always)]
    pub(crate) fn sf(self) -> bool {
        (self.result >> 63) ^ (self.aux & 1) != 0
    }

    /// OF.
    #[inline(always)]
    pub(crate) fn of(self) -> bool {
        self.aux.wrapping_add(CARRY_IN) & CARRY != 0
    }

    /// PF.
    #[inline(always)]
    pub(crate) fn pf(self) -> bool {
        let byte = (self.result ^ self.aux >> 8) as u8;
        let nibble = byte ^ byte >> 4;
        0x9669 >> (nibble & 15) & 1 != 0
    }

    /// AF.
    #[inline(always)]
    pub(crate) fn af(self) -> bool {
        self.aux & ADJUST != 0
    }

    /// Whether condition code `CC` (the low four bits of Jcc's opcode) holds.
    #[inline(always)]
    pub(crate) fn holds<const CC: u8>(self) -> bool {
        let holds = match CC >> 1 {
            0 => self.of(),
            1 => self.cf(),
            2 => self.zf(),
            3 => self.cf() || self.zf(),
            4 => self.sf(),
            5 => self.pf(),
            6 => self.sf() != self.of(),
            _ => self.zf() || self.sf() != self.of(),
        };
        holds != (CC & 1 != 0)
    }

    /// Returns the six status flags in their places in RFLAGS.
    #[inline]
    pub(crate) fn to_rflags(self) -> Rflags {
        let bit = |flag: Rflags, is_set: bool| flag.bits() * u64::from(is_set);
        Rflags::from_bits_retain(
            bit(Rflags::CF, self.cf())
                | bit(Rflags::PF, self.pf())
                | bit(Rflags::AF, self.af())
                | bit(Rflags::ZF, self.zf())
                | bit(Rflags::SF, self.sf())
                | bit(Rflags::OF, self.of()),
        )
    }

    /// Holds the six status flags of `rflags`.
    #[inline]
    pub(crate) fn from_rflags(rflags: Rflags) -> Self {
        let bit = |flag: Rflags| u64::from(rflags.contains(flag));
        // A result of 0 has SF 0 and PF 1, one of 1 has SF 0 and PF 0.
        let not_zero = bit(Rflags::ZF) ^ 1;
        let parity_delta = bit(Rflags::PF) ^ not_zero ^ 1;
        Self {
            result: not_zero,
            aux: bit(Rflags::CF) << 31
                | (bit(Rflags::CF) ^ bit(Rflags::OF)) << 30
                | parity_delta << 8
                | bit(Rflags::AF) << 3
                | bit(Rflags::SF),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alu;

    fn all_combinations() -> impl Iterator<Item = Rflags> {
        (0..0x1000_u64)
            .map(Rflags::from_bits_retain)
            .filter(|f| Rflags::STATUS.contains(*f))
    }

    #[test]
    fn every_combination_survives() {
        for flags in all_combinations() {
            assert_eq!(LazyFlags::from_rflags(flags).to_rflags(), flags);
        }
    }

    #[test]
    fn a_kept_carry_changes_nothing_else() {
        for flags in all_combinations() {
            for before in all_combinations() {
                let mut expected = flags;
                expected.set(Rflags::CF, before.contains(Rflags::CF));
                let before = LazyFlags::from_rflags(before);
                let lazy = LazyFlags::from_rflags(flags).keeping_carry(before);
                assert_eq!(lazy.to_rflags(), expected);
            }
        }
    }

    #[test]
    fn byte_sums_and_differences_agree_with_the_value_functions() {
        for a in 0..=255_u8 {
            for b in 0..=255_u8 {
                for carry in [false, true] {
                    let (r, flags) = alu::add::add(a, b, carry);
                    assert_eq!(LazyFlags::add(a, b, r).to_rflags(), flags);
                    let (r, flags) = alu::add::sub(a, b, carry);
                    assert_eq!(LazyFlags::sub(a, b, r).to_rflags(), flags);
                }
                let r = a & b;
                assert_eq!(LazyFlags::logic(r).to_rflags(), alu::zsp(r));
            }
        }
    }

    fn agree<W: Width>(a: u64, b: u64) {
        let (a, b) = (W::from_u64(a), W::from_u64(b));
        let (r, flags) = alu::add::add(a, b, false);
        assert_eq!(LazyFlags::add(a, b, r).to_rflags(), flags);
        let (r, flags) = alu::add::sub(a, b, true);
        assert_eq!(LazyFlags::sub(a, b, r).to_rflags(), flags);
    }

    #[test]
    fn conditions_follow_the_flags() {
        for flags in all_combinations() {
            let lazy = LazyFlags::from_rflags(flags);
            let has = |f| flags.contains(f);
            let less = has(Rflags::SF) != has(Rflags::OF);
            assert_eq!(lazy.holds::<0>(), has(Rflags::OF));
            assert_eq!(lazy.holds::<3>(), !has(Rflags::CF));
            assert_eq!(lazy.holds::<6>(), has(Rflags::CF) || has(Rflags::ZF));
            assert_eq!(lazy.holds::<9>(), !has(Rflags::SF));
            assert_eq!(lazy.holds::<10>(), has(Rflags::PF));
            assert_eq!(lazy.holds::<12>(), less);
            assert_eq!(lazy.holds::<15>(), !(less || has(Rflags::ZF)));
        }
    }

    proptest::proptest! {
        #[test]
        fn sums_and_differences_agree_with_the_value_functions(a: u64, b: u64) {
            agree::<u16>(a, b);
            agree::<u32>(a, b);
            agree::<u64>(a, b);
        }
    }
}
