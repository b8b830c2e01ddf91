//! A 128-bit value as lanes of integers; lane 0 is the lowest.

/// An integer that is a lane.
pub(super) trait Lane: Copy {
    /// Width in bits.
    const BITS: u32;
    /// The low bits of `value`.
    fn take(value: u128) -> Self;
    /// The bits of the lane, zero-extended.
    fn give(self) -> u128;
}

macro_rules! lane {
    ($($t:ident $u:ident),+) => {$(
        impl Lane for $t {
            const BITS: u32 = $t::BITS;
            fn take(value: u128) -> Self {
                value as $t
            }
            fn give(self) -> u128 {
                u128::from(self as $u)
            }
        }
    )+};
}

lane!(u8 u8, i8 u8, u16 u16, i16 u16, u32 u32, i32 u32, u64 u64, i64 u64);

/// Returns lane `n`.
pub(super) fn get<L: Lane>(value: u128, n: u32) -> L {
    L::take(value >> (n * L::BITS))
}

/// Makes a value of lanes: `f` says what is in lane n. Lanes beyond `count` are zero.
pub(super) fn build<L: Lane>(count: u32, f: impl Fn(u32) -> L) -> u128 {
    (0..count).fold(0, |all, n| all | f(n).give() << (n * L::BITS))
}

/// Applies `f` to each lane.
pub(super) fn map<L: Lane>(a: u128, f: impl Fn(L) -> L) -> u128 {
    build(128 / L::BITS, |n| f(get(a, n)))
}

/// Applies `f` to each pair of lanes.
pub(super) fn zip<L: Lane>(a: u128, b: u128, f: impl Fn(L, L) -> L) -> u128 {
    build(128 / L::BITS, |n| f(get(a, n), get(b, n)))
}

/// All ones in the lanes where `f` holds.
pub(super) fn compare<L: Lane>(a: u128, b: u128, f: impl Fn(L, L) -> bool) -> u128 {
    zip(a, b, |x: L, y: L| {
        L::take(if f(x, y) { u128::MAX } else { 0 })
    })
}

/// Interleaves the lanes of the low (`half` 0) or high (`half` 1) halves, `a` first.
pub(super) fn unpack<L: Lane>(a: u128, b: u128, half: u32) -> u128 {
    let count = 128 / L::BITS;
    let first = half * count / 2;
    build(count, |n| {
        get::<L>(if n % 2 == 0 { a } else { b }, first + n / 2)
    })
}

/// Narrows the lanes of `a`, then those of `b`.
pub(super) fn pack<L: Lane, N: Lane>(a: u128, b: u128, f: impl Fn(L) -> N) -> u128 {
    let half = 128 / L::BITS;
    build(2 * half, |n| f(get(if n < half { a } else { b }, n % half)))
}

/// Combines neighbours: first those of `a`, then those of `b`.
pub(super) fn horizontal<L: Lane>(a: u128, b: u128, f: impl Fn(L, L) -> L) -> u128 {
    let half = 64 / L::BITS;
    build(2 * half, |n| {
        let from = if n < half { a } else { b };
        let first = n % half * 2;
        f(get(from, first), get(from, first + 1))
    })
}
