//! CRC32: the Castagnoli polynomial 11EDC6F41H, bits reflected (SDM Vol. 2, "CRC32").

use crate::width::Width;

/// 11EDC6F41H without its top bit, reflected.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// Accumulates `data` into `crc`.
pub(crate) fn crc32<W: Width>(crc: u32, data: W) -> u32 {
    let bytes = data.to_u64().to_le_bytes();
    bytes[..W::BYTES].iter().fold(crc, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            let feedback = if crc & 1 != 0 { POLYNOMIAL } else { 0 };
            (crc >> 1) ^ feedback
        })
    })
}
