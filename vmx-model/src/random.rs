//! A source of pseudo-random numbers for samples and sequences.

/// A small generator of pseudo-random numbers (SplitMix64): the same seed gives the same numbers
/// everywhere.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Returns a generator for `seed`.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns the next number.
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a number below `bound`, which must not be 0.
    pub const fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// Returns one of the choices, of which there must be one.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// Returns `true` once in `n` times; `n` must not be 0.
    pub const fn is_one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}
