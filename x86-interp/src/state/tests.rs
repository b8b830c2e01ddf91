//! What is saved comes back; a run that is saved and loaded in the middle goes on as before.

use proptest::prelude::*;
use vmx_model::addr::Hpa;

use super::{CpuState, RestoreError};
use crate::cpuid::{CpuidTable, Profile};
use crate::stop::Stop;
use crate::test_cpu::{CODE, DATA, long_mode, real_mode};
use crate::{Cpu, system::SystemRegisters};

/// Replaces every integer of a state by a random one that its type holds: no field is forgotten.
fn scramble(value: &mut serde_json::Value, random: &mut SystemRegisters) {
    match value {
        serde_json::Value::Array(items) => items.iter_mut().for_each(|v| scramble(v, random)),
        serde_json::Value::Object(fields) => {
            for (name, field) in fields {
                // The version and the table of CPUID leaves have rules of their own.
                if name != "version" && name != "cpuid" {
                    scramble(field, random);
                }
            }
        }
        serde_json::Value::Bool(b) => *b = random.next_random() & 1 != 0,
        serde_json::Value::Number(n) => {
            // Small enough for every integer type, and never what it was.
            let old = n.as_u64().unwrap_or(0);
            let new = random.next_random() % 120;
            *n = if new == old { new + 1 } else { new }.into();
        }
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_loaded_state_is_saved_the_same(seed in any::<u64>()) {
        let mut random = SystemRegisters { random: seed, ..SystemRegisters::default() };
        let mut json = serde_json::to_value(long_mode().save()).expect("a state is plain data");
        scramble(&mut json, &mut random);
        // Bit 1 of RFLAGS is always one; non-root operation needs a logical processor.
        json["vmx"]["is_non_root"] = false.into();
        json["arch"]["rsp"] = json["gpr"][4].clone();
        let state: CpuState = serde_json::from_value(json).expect("every field holds a small number");
        let mut cpu = real_mode();
        cpu.restore(&state).expect("the version is right");
        let mut again = cpu.save();
        again.arch.rflags = state.arch.rflags;
        prop_assert_eq!(again, state);
    }
}

#[test]
fn another_version_is_refused() {
    let mut cpu = long_mode();
    let mut state = cpu.save();
    state.version += 1;
    state.gpr[0] = 1;
    assert_eq!(cpu.restore(&state), Err(RestoreError::Version(3)));
    assert_eq!(cpu.gpr[0], 0);
}

#[test]
fn a_cpuid_table_is_saved_as_its_leaves() {
    let table = Profile::DEFAULT.table();
    let json = serde_json::to_string(&table).expect("a table is plain data");
    let again: CpuidTable = serde_json::from_str(&json).expect("it was written by us");
    assert_eq!(again, table);
}

/// RDTSC, RDRAND, arithmetic with flags and stores, in a loop.
const PROGRAM: &[u8] = &[
    0x0f, 0x31, // rdtsc
    0x48, 0x01, 0xc3, // add rbx, rax
    0x48, 0x0f, 0xc7, 0xf1, // rdrand rcx
    0x48, 0x11, 0xcb, // adc rbx, rcx
    0x48, 0x89, 0x1e, // mov [rsi], rbx
    0x9c, // pushfq
    0x5d, // pop rbp
    0x48, 0x01, 0x2e, // add [rsi], rbp
    0xeb, 0xea, // jmp to the start
];

fn machine() -> Cpu {
    let mut cpu = long_mode();
    cpu.phys.write_bytes(Hpa(CODE), PROGRAM);
    cpu.gpr[6] = DATA;
    cpu.gpr[4] = DATA + 0x800;
    cpu
}

#[test]
fn a_run_goes_on_where_it_was_saved() {
    for first in [0, 1, 7, 100, 1001] {
        let mut straight = machine();
        let mut before = machine();
        assert_eq!(straight.run(2000), Stop::Budget);
        assert!(first == 0 || before.run(first) == Stop::Budget);

        let json = serde_json::to_string(&before.save()).expect("a state is plain data");
        let mut after = machine();
        let mut memory = [0; 0x1000];
        before.phys.read_bytes(Hpa(DATA), &mut memory);
        after.phys.write_bytes(Hpa(DATA), &memory);
        let state = serde_json::from_str(&json).expect("it was written by us");
        after.restore(&state).expect("the version is right");
        assert_eq!(after.run(2000 - first), Stop::Budget);
        assert_eq!(
            after.save(),
            straight.save(),
            "saved after {first} instructions"
        );
    }
}
