//! QEMU's firmware configuration device, its traditional interface (QEMU documentation,
//! "QEMU Firmware Configuration (fw_cfg) Device"): a selector port, and a port from which the
//! selected item is read byte by byte.

use std::collections::BTreeMap;

/// The selector port; data is at the next one.
pub const SELECTOR: u16 = 0x510;

const SIGNATURE: u16 = 0;
const ID: u16 = 1;
const RAM_SIZE: u16 = 3;
const NB_CPUS: u16 = 5;
const MAX_CPUS: u16 = 0xf;
/// Guest memory limit that some test environments look for; 0 is none.
const MAX_RAM: u16 = 0x11;

/// One device.
#[derive(Clone, Debug)]
pub struct FwCfg {
    items: BTreeMap<u16, Vec<u8>>,
    selected: u16,
    position: usize,
}

impl FwCfg {
    /// Returns a device that describes a machine of this size.
    #[must_use]
    pub fn new(cpus: u16, ram_bytes: u64) -> Self {
        let items = [
            (SIGNATURE, b"QEMU".to_vec()),
            (ID, 1_u32.to_le_bytes().to_vec()),
            (RAM_SIZE, ram_bytes.to_le_bytes().to_vec()),
            (NB_CPUS, cpus.to_le_bytes().to_vec()),
            (MAX_CPUS, cpus.to_le_bytes().to_vec()),
            (MAX_RAM, 0_u64.to_le_bytes().to_vec()),
        ];
        Self {
            items: items.into(),
            selected: 0,
            position: 0,
        }
    }

    /// Selects an item and goes to its beginning.
    pub fn select(&mut self, item: u16) {
        (self.selected, self.position) = (item, 0);
    }

    /// Reads the next byte of the selected item; 0 behind its end.
    pub fn read(&mut self) -> u8 {
        let item = self.items.get(&self.selected);
        let byte = item.and_then(|bytes| bytes.get(self.position)).copied();
        self.position = self.position.saturating_add(1);
        byte.unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_are_read_byte_by_byte_and_end_in_zeros() {
        let mut device = FwCfg::new(3, 1 << 20);
        device.select(NB_CPUS);
        assert_eq!([device.read(), device.read(), device.read()], [3, 0, 0]);
        device.select(SIGNATURE);
        assert_eq!(std::array::from_fn(|_| device.read()), *b"QEMU");
        device.select(0x4242);
        assert_eq!(device.read(), 0);
    }
}
