//! Tests of the MSR areas.

use super::*;
use crate::capability::VmxProfile;
use std::collections::{BTreeMap, BTreeSet};

/// Memory as a vector from address 0.
struct Bytes(Vec<u8>);

impl PhysicalMemory for Bytes {
    fn read(&self, address: Hpa, bytes: &mut [u8]) {
        let at = address.0 as usize;
        bytes.copy_from_slice(&self.0[at..at + bytes.len()]);
    }

    fn write(&mut self, address: Hpa, bytes: &[u8]) {
        let at = address.0 as usize;
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

/// MSRs that exist if they are in the map.
struct Msrs(BTreeMap<u32, u64>);

impl MsrAccess for Msrs {
    fn read_msr(&mut self, index: u32) -> Option<u64> {
        self.0.get(&index).copied()
    }

    fn write_msr(&mut self, index: u32, value: u64) -> Option<()> {
        *self.0.get_mut(&index)? = value;
        Some(())
    }
}

fn memory(entries: &[(u32, u32, u64)]) -> Bytes {
    let mut bytes = Vec::new();
    for (index, reserved, data) in entries {
        bytes.extend(index.to_le_bytes());
        bytes.extend(reserved.to_le_bytes());
        bytes.extend(data.to_le_bytes());
    }
    Bytes(bytes)
}

fn area(count: u32) -> MsrArea {
    MsrArea {
        address: Hpa(0),
        count,
    }
}

const EXISTING: [u32; 8] = [0x10, 0x174, 0x79, 0x8b, 0x9b, 0x9e, 0x80b, 0xc000_0102];

fn msrs() -> Msrs {
    let special = [IA32_FS_BASE, IA32_GS_BASE];
    Msrs(
        EXISTING
            .into_iter()
            .chain(special)
            .map(|index| (index, 0))
            .collect(),
    )
}

/// Loads the one entry between two good ones.
fn load_with(entry: (u32, u32, u64)) -> (Result<(), (u64, &'static str)>, Msrs) {
    let memory = memory(&[(0x10, 0, 1), entry, (0x174, 0, 3)]);
    let mut msrs = msrs();
    let caps = VmxProfile::emulator_default().caps;
    let done = load(area(3), &caps, &memory, &mut msrs);
    (done.map_err(|entry| (entry.number, entry.rule.id)), msrs)
}

#[test]
fn good_entries_are_loaded_in_order() {
    let (done, msrs) = load_with((0xc000_0102, 0, 2));
    assert_eq!(done, Ok(()));
    assert_eq!(
        (msrs.0[&0x10], msrs.0[&0xc000_0102], msrs.0[&0x174]),
        (1, 2, 3)
    );
    let (done, msrs) = load_with((0x10, 0, 2));
    assert_eq!((done, msrs.0[&0x10]), (Ok(()), 2));
}

#[test]
fn the_first_bad_entry_ends_the_load() {
    let bad = [
        ("msr-load-fs-base", (IA32_FS_BASE, 0, 2)),
        ("msr-load-gs-base", (IA32_GS_BASE, 0, 2)),
        ("msr-load-x2apic", (0x80b, 0, 2)),
        ("msr-load-smm-only", (0x9b, 0, 2)),
        ("msr-load-model-specific", (0x79, 0, 2)),
        ("msr-load-model-specific", (0x8b, 0, 2)),
        ("msr-load-reserved", (0x10, 1 << 31, 2)),
    ];
    for (rule, entry) in bad {
        let (index, reserved, data) = entry;
        assert_eq!(
            refused_on_load(&MsrEntry {
                index,
                reserved,
                data
            })
            .map(|rule| rule.id),
            Some(rule)
        );
        let (done, msrs) = load_with(entry);
        assert_eq!(done, Err((2, rule)));
        assert_eq!(
            (msrs.0[&0x10], msrs.0[&0x174]),
            (1, 0),
            "{rule}: as far as it got"
        );
    }
    assert_eq!(load_with((0x1234, 0, 2)).0, Err((2, "msr-load-wrmsr")));
}

#[test]
fn the_load_ends_at_the_recommended_maximum() {
    let caps = VmxProfile::emulator_default().caps;
    let entries = vec![(0x10, 0, 1); caps.msr_list_max() as usize];
    let memory = memory(&entries);
    assert_eq!(
        load(area(caps.msr_list_max()), &caps, &memory, &mut msrs()),
        Ok(())
    );
    let limit = u64::from(caps.msr_list_max()) + 1;
    assert_eq!(
        load(area(u32::MAX), &caps, &memory, &mut msrs())
            .map_err(|entry| (entry.number, entry.rule.id)),
        Err((limit, "msr-load-count-limit"))
    );
}

#[test]
fn values_are_stored_until_one_cannot_be() {
    let caps = VmxProfile::emulator_default().caps;
    let mut memory = memory(&[(0x174, 0, 0), (0x10, 0, 0)]);
    let mut msrs = msrs();
    msrs.0.insert(0x174, 0x1122_3344_5566_7788);
    msrs.0.insert(0x10, 99);
    assert_eq!(store(area(2), &caps, &mut memory, &mut msrs), Ok(()));
    assert_eq!(memory.read_u64(Hpa(8)), 0x1122_3344_5566_7788);
    assert_eq!(memory.read_u64(Hpa(24)), 99);
    for bad in [(0x9e, 0, 0), (0x80b, 0, 0), (0x1234, 0, 0), (0x10, 1, 0)] {
        let mut memory = self::memory(&[(0x10, 0, 0), bad]);
        assert_eq!(
            store(area(2), &caps, &mut memory, &mut msrs),
            Err(2),
            "{bad:x?}"
        );
        assert_eq!(memory.read_u64(Hpa(8)), 99);
    }
}

#[test]
fn the_rules_are_the_specifications() {
    let known = include_str!("../../tests/data/vm-entry-checks.toml");
    let covered = include_str!("tests.rs");
    let known = known.split('"').filter(|w| w.starts_with("msr-load-"));
    let known: BTreeSet<&str> = known.collect();
    let ours: BTreeSet<&str> = LOAD_RULES.iter().map(|rule| rule.id).collect();
    assert_eq!(ours, known);
    for rule in ours {
        assert!(covered.contains(&format!("\"{rule}\"")), "{rule}");
    }
}
