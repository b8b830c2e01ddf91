//! The I/O bitmaps and the MSR bitmaps.
//!
//! SDM Vol. 3C, "I/O-Bitmap Addresses" and "MSR-Bitmap Address"; the exit qualification is that of
//! "Exit Qualification for I/O Instructions".

use crate::addr::Hpa;
use crate::controls::ProcControls;
use crate::field::Field;
use crate::memory::PhysicalMemory;
use crate::vmcs::Vmcs;

/// Whether an access of `bytes` (1, 2 or 4) ports from `port` on causes a VM exit.
///
/// An access that wraps around the 16-bit port space always does with I/O bitmaps.
#[must_use]
pub fn io_exits(vmcs: &Vmcs, memory: &dyn PhysicalMemory, port: u16, bytes: u8) -> bool {
    if !vmcs.proc().contains(ProcControls::USE_IO_BITMAPS) {
        return vmcs.proc().contains(ProcControls::UNCONDITIONAL_IO_EXITING);
    }
    (0..u16::from(bytes)).any(|n| match port.checked_add(n) {
        Some(port) => io_bit(vmcs, memory, port),
        None => true,
    })
}

/// Bitmap A has the ports up to 7FFFH, bitmap B the others.
fn io_bit(vmcs: &Vmcs, memory: &dyn PhysicalMemory, port: u16) -> bool {
    let bitmap = if port < 0x8000 {
        Field::IO_BITMAP_A_ADDRESS
    } else {
        Field::IO_BITMAP_B_ADDRESS
    };
    bit(Hpa(vmcs.get(bitmap)), memory, u32::from(port & 0x7fff))
}

fn bit(bitmap: Hpa, memory: &dyn PhysicalMemory, number: u32) -> bool {
    memory.read_u8(bitmap.offset(u64::from(number / 8))) >> (number % 8) & 1 != 0
}

/// An access to an I/O port, as its exit qualification tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoAccess {
    /// The port.
    pub port: u16,
    /// 1, 2 or 4.
    pub bytes: u8,
    /// Whether the port is read.
    pub direction: IoDirection,
    /// Whether this is INS or OUTS.
    pub is_string: bool,
    /// Whether there is a REP prefix.
    pub is_repeated: bool,
    /// Whether the port is an immediate operand rather than DX.
    pub is_immediate: bool,
}

/// Whether a port is read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoDirection {
    /// OUT, OUTS.
    Out = 0,
    /// IN, INS.
    In = 1,
}

impl IoAccess {
    /// Returns the exit qualification.
    #[must_use]
    pub const fn qualification(&self) -> u64 {
        (self.bytes as u64).wrapping_sub(1) & 7
            | (self.direction as u64) << 3
            | (self.is_string as u64) << 4
            | (self.is_repeated as u64) << 5
            | (self.is_immediate as u64) << 6
            | (self.port as u64) << 16
    }
}

/// Whether RDMSR of an MSR causes a VM exit.
#[must_use]
pub fn rdmsr_exits(vmcs: &Vmcs, memory: &dyn PhysicalMemory, index: u32) -> bool {
    msr_exits(vmcs, memory, index, 0)
}

/// Whether WRMSR of an MSR causes a VM exit.
#[must_use]
pub fn wrmsr_exits(vmcs: &Vmcs, memory: &dyn PhysicalMemory, index: u32) -> bool {
    msr_exits(vmcs, memory, index, 0x800)
}

/// The four bitmaps of 1 KiB: low and high MSRs, for reads and, at 800H, for writes.
fn msr_exits(vmcs: &Vmcs, memory: &dyn PhysicalMemory, index: u32, offset: u64) -> bool {
    if !vmcs.proc().contains(ProcControls::USE_MSR_BITMAPS) {
        return true;
    }
    let high = match index {
        0..=0x1fff => 0,
        0xc000_0000..=0xc000_1fff => 0x400,
        _ => return true,
    };
    let bitmap = Hpa(vmcs.get(Field::MSR_BITMAP_ADDRESS)).offset(offset + high);
    bit(bitmap, memory, index & 0x1fff)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// Bits by their number from address 0 on.
    struct Bits(BTreeSet<u64>);

    impl PhysicalMemory for Bits {
        fn read(&self, address: Hpa, bytes: &mut [u8]) {
            for (n, byte) in (0..).zip(bytes) {
                let first = (address.0 + n) * 8;
                *byte = (0..8)
                    .map(|bit| u8::from(self.0.contains(&(first + bit))) << bit)
                    .sum();
            }
        }

        fn write(&mut self, _: Hpa, _: &[u8]) {
            unreachable!("bitmaps are read");
        }
    }

    fn vmcs(controls: ProcControls) -> Vmcs {
        let mut vmcs = Vmcs::new();
        vmcs.set(Field::PROC_CONTROLS, controls.bits().into());
        vmcs.set(Field::IO_BITMAP_A_ADDRESS, 0x1000);
        vmcs.set(Field::IO_BITMAP_B_ADDRESS, 0x2000);
        vmcs.set(Field::MSR_BITMAP_ADDRESS, 0x3000);
        vmcs
    }

    #[test]
    fn without_bitmaps_the_control_decides() {
        let memory = Bits(BTreeSet::new());
        assert!(io_exits(
            &vmcs(ProcControls::UNCONDITIONAL_IO_EXITING),
            &memory,
            0xffff,
            4
        ));
        assert!(!io_exits(&vmcs(ProcControls::empty()), &memory, 0xffff, 4));
        assert!(rdmsr_exits(&vmcs(ProcControls::empty()), &memory, 0x10));
    }

    #[test]
    fn an_access_that_wraps_exits() {
        let memory = Bits(BTreeSet::new());
        let vmcs = vmcs(ProcControls::USE_IO_BITMAPS);
        assert!(io_exits(&vmcs, &memory, 0xfffd, 4));
        assert!(io_exits(&vmcs, &memory, 0xffff, 2));
        assert!(!io_exits(&vmcs, &memory, 0xfffc, 4));
        assert!(!io_exits(&vmcs, &memory, 0xffff, 1));
    }

    #[test]
    fn the_qualification_has_its_layout() {
        let out = IoAccess {
            port: 0x3f8,
            bytes: 1,
            direction: IoDirection::Out,
            is_string: false,
            is_repeated: false,
            is_immediate: false,
        };
        assert_eq!(out.qualification(), 0x03f8_0000);
        let insd = IoAccess {
            port: 0xffff,
            bytes: 4,
            direction: IoDirection::In,
            is_string: true,
            is_repeated: true,
            is_immediate: true,
        };
        assert_eq!(insd.qualification(), 0xffff_007b);
    }

    proptest! {
        #[test]
        fn one_bit_is_one_port(port: u16, probe: u16, size in 0..3_u32) {
            let bytes = 1_u8 << size;
            let vmcs = vmcs(ProcControls::USE_IO_BITMAPS);
            let memory = Bits(BTreeSet::from([0x1000 * 8 + u64::from(port)]));
            let end = u32::from(probe) + u32::from(bytes);
            let hit = u32::from(port) >= u32::from(probe) && u32::from(port) < end;
            prop_assert_eq!(io_exits(&vmcs, &memory, probe, bytes), hit || end > 0x1_0000);
            prop_assert!(io_exits(&vmcs, &memory, port, bytes));
        }

        #[test]
        fn one_bit_is_one_msr_and_direction(index in 0..0x2000_u32, which in 0..4_u32, other: u32) {
            let vmcs = vmcs(ProcControls::USE_MSR_BITMAPS);
            let bit = 0x3000 * 8 + u64::from(which) * 0x2000 + u64::from(index);
            let memory = Bits(BTreeSet::from([bit]));
            let high = if which & 1 == 0 { 0 } else { 0xc000_0000 };
            prop_assert_eq!(rdmsr_exits(&vmcs, &memory, high | index), which < 2);
            prop_assert_eq!(wrmsr_exits(&vmcs, &memory, high | index), which >= 2);
            let in_range = matches!(other, 0..=0x1fff | 0xc000_0000..=0xc000_1fff);
            if other != high | index {
                prop_assert_eq!(rdmsr_exits(&vmcs, &memory, other), !in_range);
            }
        }
    }
}
