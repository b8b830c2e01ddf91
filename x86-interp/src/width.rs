//! Operand widths as types: `u8`, `u16`, `u32`, `u64`.
//!
//! The only module (besides bit layouts) where a value may lose bits on purpose.

/// An operand of 8, 16, 32 or 64 bits.
pub trait Width:
    Copy + Default + PartialEq + Eq + PartialOrd + Ord + core::fmt::Debug + Send + Sync + 'static
{
    /// Width in bits.
    const BITS: u32;
    /// Width in bytes.
    const BYTES: usize;
    /// All ones of this width.
    const MASK: u64;
    /// The most significant bit of this width.
    const SIGN: u64;

    /// Truncates to this width.
    fn from_u64(value: u64) -> Self;
    /// Zero-extends to 64 bits.
    fn to_u64(self) -> u64;
    /// Sign-extends to 64 bits.
    fn to_i64(self) -> i64;
    /// Reads from the first bytes of a little-endian buffer of at least [`Self::BYTES`].
    fn from_le_slice(bytes: &[u8]) -> Self;
}

macro_rules! width {
    ($($t:ty, $s:ty);*) => {$(
        impl Width for $t {
            const BITS: u32 = <$t>::BITS;
            const BYTES: usize = size_of::<$t>();
            const MASK: u64 = <$t>::MAX as u64;
            const SIGN: u64 = 1 << (<$t>::BITS - 1);
            #[inline(always)]
            fn from_u64(value: u64) -> Self {
                value as $t
            }
            #[inline(always)]
            fn to_u64(self) -> u64 {
                u64::from(self)
            }
            #[inline(always)]
            fn to_i64(self) -> i64 {
                i64::from(self as $s)
            }
            #[inline(always)]
            fn from_le_slice(bytes: &[u8]) -> Self {
                let mut b = [0; size_of::<$t>()];
                b.copy_from_slice(&bytes[..size_of::<$t>()]);
                <$t>::from_le_bytes(b)
            }
        }
    )*};
}
width!(u8, i8; u16, i16; u32, i32; u64, i64);
