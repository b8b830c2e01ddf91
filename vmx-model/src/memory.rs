//! The physical memory that VMX structures lie in, as this crate needs it.

use crate::addr::Hpa;

/// Physical memory as the processor's VMX microcode sees it: VMCS regions, bitmaps, MSR areas,
/// virtual-APIC pages, EPT paging structures.
///
/// Reads of addresses with nothing behind them return all ones, writes there are dropped, as on a
/// bus where no device answers. Multi-byte accesses are little-endian and never cross a page
/// unless the caller's structure does.
pub trait PhysicalMemory {
    /// Fills `bytes` from memory at `address`.
    fn read(&self, address: Hpa, bytes: &mut [u8]);

    /// Stores `bytes` at `address`.
    fn write(&mut self, address: Hpa, bytes: &[u8]);

    /// Reads one byte.
    fn read_u8(&self, address: Hpa) -> u8 {
        let mut b = [0; 1];
        self.read(address, &mut b);
        b[0]
    }

    /// Reads a 32-bit word.
    fn read_u32(&self, address: Hpa) -> u32 {
        let mut b = [0; 4];
        self.read(address, &mut b);
        u32::from_le_bytes(b)
    }

    /// Reads a 64-bit word.
    fn read_u64(&self, address: Hpa) -> u64 {
        let mut b = [0; 8];
        self.read(address, &mut b);
        u64::from_le_bytes(b)
    }

    /// Writes a 32-bit word.
    fn write_u32(&mut self, address: Hpa, value: u32) {
        self.write(address, &value.to_le_bytes());
    }

    /// Writes a 64-bit word.
    fn write_u64(&mut self, address: Hpa, value: u64) {
        self.write(address, &value.to_le_bytes());
    }
}
