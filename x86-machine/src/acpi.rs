//! ACPI (ACPI Specification 6.5): the tables that describe the machine, and the fixed hardware that
//! they name: PM1 event and control blocks, and the power-management timer.

use acpi_tables::aml::{Name, Package, ZERO};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use zerocopy::{Immutable, IntoBytes};

use crate::ioapic;
use crate::pit::TICKS_PER_SECOND;

/// Where the root pointer is: on a 16-byte boundary of the BIOS area, where it is looked for.
pub const RSDP: u64 = 0xe_0000;

/// The first port of the fixed hardware: PM1 status and enable, then control, then the timer.
const PM_BASE: u16 = 0x600;
const PM_CONTROL: u16 = PM_BASE + 4;
const PM_TIMER: u16 = PM_BASE + 8;
/// In PM1 control: the sleep type, and that sleep begins.
const SLEEP_TYPE_SHIFT: u32 = 10;
const SLEEP_ENABLE: u16 = 1 << 13;
/// ACPI mode is on, and there is no other.
const SCI_ENABLE: u16 = 1;
/// The sleep type of the state S5, soft off.
const SOFT_OFF: u8 = 5;
const TIMER_HZ: u128 = 3_579_545;
const SCI: u8 = 9;

const OEM: [u8; 6] = *b"SOFTVM";
const OEM_TABLE: [u8; 8] = *b"SOFTVMX ";

/// The fixed hardware.
#[derive(Clone, Debug, Default)]
pub struct Pm {
    enabled: u16,
    control: u16,
}

impl Pm {
    /// Reads a port; `None` if it is none of these.
    #[must_use]
    pub fn read(&self, port: u16, now_ticks: u64) -> Option<u32> {
        Some(match port {
            PM_BASE => 0,
            0x602 => u32::from(self.enabled),
            PM_CONTROL => u32::from(self.control | SCI_ENABLE),
            PM_TIMER => (u128::from(now_ticks) * TIMER_HZ / TICKS_PER_SECOND) as u32,
            _ => return None,
        })
    }

    /// Writes a port; `None` if it is none of these, else whether the machine is to be off.
    pub fn write(&mut self, port: u16, value: u32) -> Option<bool> {
        match port {
            PM_BASE | PM_TIMER => {}
            0x602 => self.enabled = value as u16,
            PM_CONTROL => {
                self.control = value as u16 & !SLEEP_ENABLE;
                let kind = (value >> SLEEP_TYPE_SHIFT & 7) as u8;
                return Some(value as u16 & SLEEP_ENABLE != 0 && kind == SOFT_OFF);
            }
            _ => return None,
        }
        Some(false)
    }
}

/// Where an ISA interrupt is connected, if not to the input of its number.
#[derive(Clone, Copy, IntoBytes, Immutable)]
#[repr(C, packed)]
struct SourceOverride {
    kind: u8,
    length: u8,
    bus: u8,
    source: u8,
    input: [u8; 4],
    flags: [u8; 2],
}

impl SourceOverride {
    fn new(source: u8, input: u32, flags: u16) -> Self {
        Self {
            kind: 2,
            length: 10,
            bus: 0,
            source,
            input: input.to_le_bytes(),
            flags: flags.to_le_bytes(),
        }
    }
}

impl Aml for SourceOverride {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(self.as_bytes());
    }
}

/// Returns the tables for so many processors, to be put at [`RSDP`].
#[must_use]
pub fn tables(cpus: usize) -> Vec<u8> {
    let mut area = Area(vec![0; 0x40]);
    let dsdt = area.add(dsdt().as_slice());
    let fadt = area.add_aml(&fadt(dsdt).finalize());
    let madt = area.add_aml(&madt(cpus));
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, 1);
    for table in [fadt, madt] {
        xsdt.add_entry(table);
    }
    let xsdt = area.add_aml(&xsdt);
    let root = bytes_of(&Rsdp::new(OEM, xsdt));
    area.0[..root.len()].copy_from_slice(&root);
    area.0
}

/// The tables so far.
struct Area(Vec<u8>);

impl Area {
    /// Adds a table; returns its address.
    fn add(&mut self, table: &[u8]) -> u64 {
        let at = self.0.len().next_multiple_of(16);
        self.0.resize(at, 0);
        self.0.extend(table);
        RSDP + at as u64
    }

    fn add_aml(&mut self, table: &dyn Aml) -> u64 {
        self.add(&bytes_of(table))
    }
}

fn bytes_of(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// The differentiated description: how to switch off.
fn dsdt() -> Sdt {
    let mut dsdt = Sdt::new(*b"DSDT", 36, 6, OEM, OEM_TABLE, 1);
    let off = Package::new(vec![&SOFT_OFF, &ZERO, &ZERO, &ZERO]);
    dsdt.append_slice(&bytes_of(&Name::new("_S5_".into(), &off)));
    dsdt.update_checksum();
    dsdt
}

fn fadt(dsdt: u64) -> FADTBuilder {
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, 1).dsdt_64(dsdt);
    fadt.dsdt = (dsdt as u32).into();
    for flag in [
        Flags::Wbinvd,
        Flags::ProcC1,
        Flags::PwrButton,
        Flags::SlpButton,
        Flags::TmrValExt,
        Flags::ResetRegSup,
    ] {
        fadt = fadt.flag(flag);
    }
    fadt.sci_int = u16::from(SCI).into();
    fadt.pm1a_evt_blk = u32::from(PM_BASE).into();
    fadt.pm1_evt_len = 4;
    fadt.pm1a_cnt_blk = u32::from(PM_CONTROL).into();
    fadt.pm1_cnt_len = 2;
    fadt.pm_tmr_blk = u32::from(PM_TIMER).into();
    fadt.pm_tmr_len = 4;
    fadt.century = 0x32;
    // No power states beyond C1; legacy devices are there, a keyboard controller and VGA are not.
    fadt.p_lvl2_lat = 0xffff.into();
    fadt.p_lvl3_lat = 0xffff.into();
    fadt.iapc_boot_arch = (1 | 1 << 2).into();
    fadt.reset_reg = GAS::new(
        AddressSpace::SystemIo,
        8,
        0,
        AccessSize::ByteAccess,
        u64::from(crate::board::RESET_CONTROL),
    );
    fadt.reset_value = 6;
    fadt
}

fn madt(cpus: usize) -> MADT {
    let address = LocalInterruptController::Address(0xfee0_0000);
    let mut madt = MADT::new(OEM, OEM_TABLE, 1, address);
    for n in 0..cpus.min(255) as u8 {
        madt.add_structure(ProcessorLocalApic::new(n, n, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, ioapic::BASE as u32, 0));
    madt.add_structure(SourceOverride::new(0, 2, 0));
    // The SCI: level, active high.
    madt.add_structure(SourceOverride::new(SCI, u32::from(SCI), 0xd));
    madt
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(bytes: &[u8], at: usize, size: usize) -> u64 {
        let number = bytes[at..at + size].iter().rev();
        number.fold(0, |n, b| n << 8 | u64::from(*b))
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, b| sum.wrapping_add(*b))
    }

    #[test]
    fn every_table_is_found_from_the_root_and_has_its_checksum() {
        let all = tables(3);
        assert_eq!((sum(&all[..20]), sum(&all[..36])), (0, 0));
        let table = |address: u64| {
            let at = (address - RSDP) as usize;
            let table = &all[at..at + word(&all, at + 4, 4) as usize];
            assert_eq!(sum(table), 0, "{:?}", &table[..4]);
            table
        };
        let xsdt = table(word(&all, 24, 8));
        let entries: Vec<_> = xsdt[36..].chunks(8).map(|c| table(word(c, 0, 8))).collect();
        assert_eq!(&entries[0][..4], b"FACP");
        assert_eq!(&entries[1][..4], b"APIC");
        let dsdt = table(word(entries[0], 140, 8));
        let aml = [8, b'_', b'S', b'5', b'_', 0x12, 7, 4, 10, 5, 0, 0, 0];
        assert_eq!(dsdt[36..], aml);
        let kinds = [0, 0, 0, 1, 2, 2];
        let mut rest = &entries[1][44..];
        for kind in kinds {
            assert_eq!(rest[0], kind);
            rest = &rest[usize::from(rest[1])..];
        }
        assert!(rest.is_empty());
    }

    #[test]
    fn the_timer_counts_and_soft_off_switches_off() {
        let mut pm = Pm::default();
        assert_eq!(pm.read(PM_TIMER, 1_000_000_000), Some(3_579_545));
        assert_eq!(pm.read(PM_CONTROL, 0), Some(1));
        assert_eq!(pm.write(PM_CONTROL, 5 << 10), Some(false));
        assert_eq!(pm.write(PM_CONTROL, 5 << 10 | 1 << 13), Some(true));
        assert_eq!(pm.write(PM_CONTROL, 3 << 10 | 1 << 13), Some(false));
        assert_eq!(pm.write(0x610, 0), None);
    }
}
