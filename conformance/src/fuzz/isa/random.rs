//! Random numbers that lie on edges: of integers, of floating-point formats, of decimal digits.

use x86_interp::fpu::FpuState;

/// The vector registers that a case uses; the others are in their initial configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Vectors {
    /// YMM0 to YMM15.
    Avx,
    /// ZMM0 to ZMM31 and the opmask registers.
    Avx512,
}

/// A generator (SplitMix64).
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub(super) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub(super) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }

    /// An integer that is likely to lie on an edge of some width.
    pub(super) fn integer(&mut self) -> u64 {
        let random = self.next();
        let edge = self.pick(&[8_u32, 16, 32, 64]);
        let sign = 1_u64 << (edge - 1);
        match self.below(8) {
            0 => self.below(4),
            1 => self.below(4).wrapping_neg(),
            2 => sign.wrapping_add(self.below(3)).wrapping_sub(1),
            3 => 1 << self.below(64),
            4 => random & self.next() & self.next(),
            5 => random >> self.below(64),
            _ => random,
        }
    }

    /// A number in a binary format of `exponent` and `fraction` bits: zero, denormal, near one, at
    /// the ends of the range, infinite, quiet or signalling NaN, or near an integer type's limit.
    fn binary(&mut self, exponent: u32, fraction: u32) -> u64 {
        let (largest, bias) = ((1_u64 << exponent) - 1, (1_u64 << (exponent - 1)) - 1);
        let e = match self.below(12) {
            0 | 1 => 0,
            2 => largest,
            3 => 1 + self.below(2),
            4 => largest - 1 - self.below(2),
            5..=8 => bias - 2 + self.below(5),
            9 => (bias + self.below(66)).min(largest - 1),
            10 => bias - self.below(bias),
            _ => self.below(largest),
        };
        let ones = (1_u64 << fraction) - 1;
        let f = match self.below(8) {
            0 | 1 => 0,
            2 => 1,
            3 => ones - self.below(2),
            4 => 1 << (fraction - 1),
            5 => ones & (u64::MAX << self.below(u64::from(fraction))),
            6 => (1 << (fraction - 1)) | 1,
            _ => self.next() & ones,
        };
        (self.below(2) << (exponent + fraction)) | (e << fraction) | f
    }

    /// A double extended-precision number, among them pseudo-denormals and unnormals.
    pub(super) fn extended(&mut self) -> [u8; 10] {
        let exponent = match self.below(10) {
            0 => 0,
            1 => 0x7fff,
            2 => 1 + self.below(3),
            3 => 0x7ffe - self.below(3),
            4 => self.pick(&[0x3f80, 0x3c00, 0x407e, 0x43fe]) + self.below(4),
            5 => self.below(0x8000),
            6 => 0x3fff + self.below(66),
            _ => 0x3ffd + self.below(5),
        };
        let significand = match self.below(10) {
            0 | 1 => 1 << 63,
            2 => 0,
            3 => u64::MAX,
            4 => self.next(),
            5 => self.next() | (3 << 62),
            6 => u64::MAX << self.below(64),
            7 => (1 << 63) | (1 << self.below(63)),
            _ => self.next() | (1 << 63),
        };
        let mut bytes = [0; 10];
        bytes[..8].copy_from_slice(&significand.to_le_bytes());
        let high = exponent as u16 | ((self.next() as u16) << 15);
        bytes[8..].copy_from_slice(&high.to_le_bytes());
        bytes
    }

    /// Packed decimal digits with a sign, as FBLD takes them.
    fn decimal(&mut self) -> [u8; 16] {
        let mut bytes = [0; 16];
        for byte in &mut bytes[..9] {
            *byte = (self.below(10) << 4 | self.below(10)) as u8;
        }
        bytes[9] = (self.next() as u8) & 0x80;
        bytes
    }

    /// Sixteen bytes: lanes of one kind.
    pub(super) fn lanes(&mut self) -> [u8; 16] {
        let mut bytes = [0; 16];
        let kind = self.below(12);
        let width = match kind {
            0 => 1,
            1 => 2,
            2..=4 => 4,
            5 => return self.decimal(),
            6 => {
                bytes[..10].copy_from_slice(&self.extended());
                return bytes;
            }
            _ => 8,
        };
        for lane in bytes.chunks_exact_mut(width) {
            let value = match kind {
                1 if self.one_in(2) => self.binary(5, 10),
                2 | 3 => self.binary(8, 23),
                7..=9 => self.binary(11, 52),
                10 => self.next(),
                _ => self.integer(),
            };
            lane.copy_from_slice(&value.to_le_bytes()[..width]);
        }
        bytes
    }

    /// The state of the x87 FPU, and the vector registers as far as they are used.
    pub(super) fn fpu(&mut self, registers: Vectors) -> FpuState {
        let mut fpu = FpuState::initial();
        let (count, words) = match registers {
            Vectors::Avx => (16, 4),
            Vectors::Avx512 => (32, 8),
        };
        for register in &mut fpu.vector[..count] {
            for half in register[..words].chunks_exact_mut(2) {
                let [low, high] = halves(self.lanes());
                half.copy_from_slice(&[low, high]);
            }
        }
        if registers == Vectors::Avx512 {
            for mask in &mut fpu.opmask {
                *mask = match self.below(4) {
                    0 => 0,
                    1 => u64::MAX,
                    _ => self.next(),
                };
            }
        }
        if self.one_in(2) {
            // Equal lanes, for comparisons.
            let count = count as u64;
            let (to, from) = (self.below(count) as usize, self.below(count) as usize);
            fpu.vector[to] = fpu.vector[from];
        }
        for n in 0..8 {
            fpu.registers[n] = self.extended();
        }
        let masks = self.mostly(0x3f, 0x3f) as u16;
        fpu.control = 0x40 | masks | ((self.below(4) << 10 | self.below(4) << 8) as u16);
        let flags = self.next() as u16 & if self.one_in(8) { 0x3f } else { masks };
        fpu.status = self.next() as u16 & 0x7f40 | flags;
        if flags & !masks != 0 {
            fpu.status |= 0x8080;
        }
        fpu.valid = match self.below(8) {
            0 => 0,
            1 | 2 => self.next() as u8,
            _ => 0xff,
        };
        let masks = self.mostly(0x3f, 0x3f) as u32;
        let rest = self.next() as u32;
        fpu.mxcsr = (masks << 7) | rest & if self.one_in(2) { 0xe03f } else { 0x603f };
        fpu
    }

    /// `usual` most of the time, otherwise any of the bits of `all`.
    fn mostly(&mut self, usual: u64, all: u64) -> u64 {
        if self.one_in(4) {
            self.next() & all
        } else {
            usual
        }
    }
}

/// The two quadwords of sixteen bytes.
fn halves(bytes: [u8; 16]) -> [u64; 2] {
    let both = u128::from_le_bytes(bytes);
    [both as u64, (both >> 64) as u64]
}
