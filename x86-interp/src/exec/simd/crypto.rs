//! AES-NI, PCLMULQDQ and the Galois field instructions, one lane.
//!
//! SDM Vol. 1, "Advanced Encryption Standard New Instructions (AES-NI)", "PCLMULQDQ Instruction"
//! and "Galois Field New Instructions (GFNI)". The substitution table is computed from its definition, the inverse in GF(2^8) and
//! an affine map (FIPS 197, "SubBytes() Transformation").

use super::lanes::{build, get};

/// Multiplies in GF(2^8) modulo x^8 + x^4 + x^3 + x + 1.
pub(super) const fn multiply(mut a: u8, mut b: u8) -> u8 {
    let mut product = 0;
    while b != 0 {
        if b & 1 != 0 {
            product ^= a;
        }
        a = (a << 1) ^ (if a & 0x80 != 0 { 0x1b } else { 0 });
        b >>= 1;
    }
    product
}

/// The inverse in GF(2^8), a^254; 0 for 0.
const fn invert(a: u8) -> u8 {
    let mut result = 1;
    let mut n = 0;
    while n < 254 {
        result = multiply(result, a);
        n += 1;
    }
    result
}

/// SubBytes and its inverse.
const TABLES: [[u8; 256]; 2] = {
    let mut tables = [[0; 256]; 2];
    let mut n = 0;
    while n < 256 {
        let b = invert(n as u8);
        let mapped =
            b ^ b.rotate_left(1) ^ b.rotate_left(2) ^ b.rotate_left(3) ^ b.rotate_left(4) ^ 0x63;
        tables[0][n] = mapped;
        tables[1][mapped as usize] = n as u8;
        n += 1;
    }
    tables
};
static INVERSES: [u8; 256] = {
    let mut table = [0; 256];
    let mut n = 0;
    while n < 256 {
        table[n] = invert(n as u8);
        n += 1;
    }
    table
};
static SUBSTITUTE: [u8; 256] = TABLES[0];
static SUBSTITUTE_INVERSE: [u8; 256] = TABLES[1];

/// ShiftRows, then SubBytes: byte 4c + r is row r of column c.
fn shift_and_substitute(state: u128) -> u128 {
    build(16, |n| {
        let from = (n + 4 * (n % 4)) % 16;
        SUBSTITUTE[usize::from(get::<u8>(state, from))]
    })
}

/// InvShiftRows, then InvSubBytes.
fn unshift_and_substitute(state: u128) -> u128 {
    build(16, |n| {
        let from = (n + 16 - 4 * (n % 4)) % 16;
        SUBSTITUTE_INVERSE[usize::from(get::<u8>(state, from))]
    })
}

/// Multiplies each column by the circulant matrix whose first row is `row`.
fn mix(state: u128, row: [u8; 4]) -> u128 {
    build(16, |n| {
        let column = n & !3;
        (0..4).fold(0, |sum, k| {
            let byte = get::<u8>(state, column + (n + k) % 4);
            sum ^ multiply(byte, row[k as usize])
        })
    })
}

const MIX: [u8; 4] = [2, 3, 1, 1];
const MIX_INVERSE: [u8; 4] = [14, 11, 13, 9];

/// AESENC.
pub(super) fn encrypt(state: u128, key: u128) -> u128 {
    mix(shift_and_substitute(state), MIX) ^ key
}

/// AESENCLAST.
pub(super) fn encrypt_last(state: u128, key: u128) -> u128 {
    shift_and_substitute(state) ^ key
}

/// AESDEC.
pub(super) fn decrypt(state: u128, key: u128) -> u128 {
    mix(unshift_and_substitute(state), MIX_INVERSE) ^ key
}

/// AESDECLAST.
pub(super) fn decrypt_last(state: u128, key: u128) -> u128 {
    unshift_and_substitute(state) ^ key
}

/// AESIMC.
pub(super) fn inverse_mix(key: u128) -> u128 {
    mix(key, MIX_INVERSE)
}

/// AESKEYGENASSIST.
pub(super) fn assist(_: u128, key: u128, round_constant: u8) -> u128 {
    build(4, |n| {
        let word = get::<u32>(key, n | 1).to_le_bytes();
        let word = u32::from_le_bytes(word.map(|b| SUBSTITUTE[usize::from(b)]));
        match n & 1 {
            0 => word,
            _ => word.rotate_right(8) ^ u32::from(round_constant),
        }
    })
}

/// PCLMULQDQ: the product without carries of the quadwords that the immediate selects.
pub(super) fn carryless(a: u128, b: u128, selectors: u8) -> u128 {
    let x = u128::from(get::<u64>(a, u32::from(selectors & 1)));
    let y = get::<u64>(b, u32::from(selectors >> 4 & 1));
    let bits = (0..64).filter(|n| y >> n & 1 != 0);
    bits.fold(0, |product, n| product ^ x << n)
}

/// The inverse in GF(2^8); 0 for 0.
pub(super) fn inverse(a: u8) -> u8 {
    INVERSES[usize::from(a)]
}

/// GF2P8AFFINEQB: each byte times the matrix of its quadword, whose byte 7 is the row of bit 0, plus
/// a constant.
pub(super) fn affine(a: u128, matrices: u128, constant: u8) -> u128 {
    build(16, |n| {
        let matrix = get::<u64>(matrices, n / 8).to_be_bytes();
        let byte = get::<u8>(a, n);
        let rows = matrix.iter().enumerate();
        rows.fold(constant, |sum, (bit, row)| {
            sum ^ ((row & byte).count_ones() as u8 & 1) << bit
        })
    })
}
