//! The table of VMCS fields against the specification's list, and lookup of every encoding.
#![expect(clippy::unwrap_used, reason = "a failure is the test's failure")]

use std::sync::Arc;

use serde::Deserialize;
use vmx_model::addr::Hpa;
use vmx_model::capability::VmxProfile;
use vmx_model::field::{Condition, Field, Half, Kind, Width};
use vmx_model::memory::PhysicalMemory;
use vmx_model::outcome::VmxOutcome;
use vmx_model::processor::{LogicalProcessor, Vmread};
use vmx_model::registry::{CpuId, VmcsRegistry};

#[derive(Deserialize)]
struct Row {
    id: String,
    name: String,
    encoding: u32,
    width: String,
    kind: String,
    access: String,
    exists_if: Vec<String>,
    linux: String,
}

#[derive(Deserialize)]
struct Table {
    field: Vec<Row>,
}

fn spec() -> Vec<Row> {
    let table: Table = toml::from_str(include_str!("data/vmcs-fields.toml")).unwrap();
    table.field
}

/// Returns the id of a condition as the specification writes it.
fn condition_id(condition: &Condition) -> String {
    let (word, bits) = match *condition {
        Condition::Always => return "always".into(),
        Condition::Seam => return "seam".into(),
        Condition::Cr3Targets(n) => return format!("misc.cr3-targets>{}", n - 1),
        Condition::Pin(c) => ("pin.", u64::from(c.bits())),
        Condition::Proc(c) => ("proc.", u64::from(c.bits())),
        Condition::Secondary(c) => ("proc2.", u64::from(c.bits())),
        Condition::Tertiary(c) => ("proc3.", c.bits()),
        Condition::Exit(c) => ("exit.", u64::from(c.bits())),
        Condition::Entry(c) => ("entry.", u64::from(c.bits())),
        Condition::SecondaryExit(c) => ("exit2.", c.bits()),
        Condition::VmFunction(c) => ("vmfunc.", c.bits()),
    };
    vmx_model::controls::CONTROLS
        .iter()
        .find(|control| control.id.starts_with(word) && 1 << control.bit == bits)
        .map(|control| control.id.to_owned())
        .unwrap()
}

#[test]
fn the_table_is_the_specifications() {
    let spec = spec();
    assert_eq!(spec.len(), Field::COUNT);
    for (row, field) in spec.iter().zip(Field::ALL) {
        let width = match field.width() {
            Width::W16 => "16",
            Width::W32 => "32",
            Width::W64 => "64",
            Width::Natural => "nat",
        };
        let kind = match field.kind() {
            Kind::Control => "control",
            Kind::ReadOnly => "read-only",
            Kind::Guest => "guest",
            Kind::Host => "host",
        };
        assert_eq!(row.id, field.id());
        assert_eq!(row.name, field.name());
        assert_eq!(row.encoding, field.encoding(), "{}", row.id);
        assert_eq!(row.width, width, "{}", row.id);
        assert_eq!(row.kind, kind, "{}", row.id);
        assert_eq!(row.linux, field.linux_name().unwrap_or(""), "{}", row.id);
        let conditions: Vec<String> = field.exists_if().iter().map(condition_id).collect();
        assert_eq!(row.exists_if, conditions, "{}", row.id);
    }
}

#[test]
fn there_are_206_fields_and_284_encodings_and_no_other_encoding_is_one() {
    let mut expected: Vec<(u32, (Field, Half))> = Vec::new();
    for row in spec() {
        let field = Field::from_id(&row.id).unwrap();
        expected.push((row.encoding, (field, Half::Full)));
        if row.access == "full+high" {
            expected.push((row.encoding + 1, (field, Half::High)));
        }
    }
    assert_eq!(expected.len(), 284);
    let found: Vec<_> = (0..=0x1ffff)
        .filter_map(|e| Field::from_encoding(e).map(|f| (e, f)))
        .collect();
    assert_eq!(found, expected);
    for bit in 17..32 {
        assert_eq!(Field::from_encoding(0x681e | 1 << bit), None);
    }
}

struct Pages(Vec<u8>);

impl PhysicalMemory for Pages {
    fn read(&self, address: Hpa, bytes: &mut [u8]) {
        let at = address.0 as usize;
        bytes.copy_from_slice(&self.0[at..at + bytes.len()]);
    }

    fn write(&mut self, address: Hpa, bytes: &[u8]) {
        let at = address.0 as usize;
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

/// A processor in VMX root operation with a current VMCS.
fn root(profile: VmxProfile) -> LogicalProcessor {
    const VMXON: Hpa = Hpa(0x1000);
    const VMCS: Hpa = Hpa(0x2000);
    let mut memory = Pages(vec![0; 0x3000]);
    let revision = profile.caps.revision_id().to_le_bytes();
    memory.write(VMXON, &revision);
    memory.write(VMCS, &revision);
    let mut processor = LogicalProcessor::new(CpuId(0), Arc::new(profile), VmcsRegistry::new());
    for outcome in [
        processor.vmxon(VMXON, &memory),
        processor.vmclear(VMCS, &mut memory),
        processor.vmptrld(VMCS, &memory),
    ] {
        assert_eq!(outcome, Ok(VmxOutcome::Succeed));
    }
    processor
}

#[test]
fn the_short_ways_of_vmread_and_vmwrite_do_what_the_long_ways_do() {
    for profile in [VmxProfile::minimal(), VmxProfile::everything()] {
        let (mut short, mut long) = (root(profile.clone()), root(profile));
        for encoding in (0..0x8000).chain([0x1_0000_681e, u64::MAX]) {
            let value = encoding.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let written = long.vmwrite(encoding, value);
            if short.try_vmwrite(encoding, value) {
                assert_eq!(written, Ok(VmxOutcome::Succeed), "{encoding:#x}");
            } else {
                assert_eq!(short.vmwrite(encoding, value), written, "{encoding:#x}");
            }
            let read = long.vmread(encoding);
            match short.try_vmread(encoding) {
                Some(value) => assert_eq!(read, Ok(Vmread::Value(value)), "{encoding:#x}"),
                None => assert!(!matches!(read, Ok(Vmread::Value(_))), "{encoding:#x}"),
            }
        }
        for field in Field::ALL {
            assert_eq!(short.read(field), long.read(field), "{field}");
        }
    }
}
