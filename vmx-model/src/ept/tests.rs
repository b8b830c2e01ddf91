//! Tests of EPT: single entries by table, walks against a model written another way.

use super::walk::{Step, Translation, Walk};
use super::*;
use crate::capability::VmxProfile;
use proptest::prelude::*;

const RULES: EptRules = EptRules {
    cap: EptVpidCap::all(),
    physical_address_bits: 40,
    has_mode_based_execute: false,
};
const NO_OPTIONS: EptRules = EptRules {
    cap: EptVpidCap::WALK_LENGTH_4.union(EptVpidCap::MEMORY_TYPE_WB),
    ..RULES
};
const MODE_BASED: EptRules = EptRules {
    has_mode_based_execute: true,
    ..RULES
};

fn page_at(address: u64, shift: u8, memory_type: u8) -> Judgement {
    Judgement::Page(Page {
        address: Hpa(address),
        shift,
        memory_type,
        ignores_pat: false,
    })
}

#[test]
fn entries_are_what_the_manual_says() {
    use Judgement::{Misconfigured, NotPresent, Table};
    let check = |rules, level, entry, expected| {
        assert_eq!(
            judge(entry, level, rules),
            expected,
            "level {level} entry {entry:#x}"
        );
    };
    // Present: any of bits 2:0, and bit 10 with mode-based execute control only.
    check(&RULES, 4, 0, NotPresent);
    check(&RULES, 1, 0xffff_ffff_ffff_fbf8, NotPresent);
    check(&RULES, 1, 1 << 10, NotPresent);
    check(
        &MODE_BASED,
        1,
        0x1000 | 6 << 3 | 1 << 10,
        page_at(0x1000, 12, 6),
    );
    // Writable or, without the capability, executable but not readable.
    check(&RULES, 1, 0x1002, Misconfigured);
    check(&RULES, 3, 0x1006, Misconfigured);
    check(&RULES, 1, 0x1034, page_at(0x1000, 12, 6));
    check(&NO_OPTIONS, 1, 0x1034, Misconfigured);
    // Bits beyond MAXPHYADDR; bits 62:52 are ignored.
    check(&RULES, 1, 1 << 40 | 7, Misconfigured);
    check(&RULES, 4, 1 << 51 | 7, Misconfigured);
    check(&RULES, 4, 0x7ff0_0000_0000_1007, Table(Hpa(0x1000)));
    // Reserved bits of entries that refer to a table.
    for (level, reserved) in [(5, 0xf8), (4, 0xf8), (3, 0x78), (2, 0x78)] {
        check(&RULES, level, 0x1007, Table(Hpa(0x1000)));
        check(&RULES, level, 0x1f07, Table(Hpa(0x1000)));
        for bit in (0..8).map(|bit| 1 << bit).filter(|bit| reserved & bit != 0) {
            check(&RULES, level, 0x1007 | bit, Misconfigured);
        }
    }
    // Memory types of pages.
    for (memory_type, valid) in (0..8).zip([true, true, false, false, true, true, true, false]) {
        let expected = if valid {
            page_at(0x1000, 12, memory_type)
        } else {
            Misconfigured
        };
        check(&RULES, 1, 0x1007 | u64::from(memory_type) << 3, expected);
    }
    // Large pages: low address bits, capability.
    check(&RULES, 2, 0x40_00b7, page_at(0x40_0000, 21, 6));
    check(&RULES, 2, 0x50_00b7, Misconfigured);
    check(&NO_OPTIONS, 2, 0x40_00b7, Misconfigured);
    check(&RULES, 3, 0x4000_00b7, page_at(0x4000_0000, 30, 6));
    check(&RULES, 3, 0x4020_00b7, Misconfigured);
    check(&NO_OPTIONS, 3, 0x4000_00b7, Misconfigured);
}

#[test]
fn an_eptp_is_valid_as_the_checks_of_vm_entry_say() {
    let default = VmxProfile::emulator_default();
    let everything = VmxProfile::everything();
    let check = |eptp, in_default, in_everything| {
        assert_eq!(Eptp(eptp).is_valid(&default), in_default, "{eptp:#x}");
        assert_eq!(Eptp(eptp).is_valid(&everything), in_everything, "{eptp:#x}");
    };
    check(0x101e, true, true);
    check(0x105e, true, true);
    check(0x1018, true, true);
    check(0x1026, false, true);
    check(0x109e, false, true);
    check(0x101d, false, false);
    check(0x1016, false, false);
    check(0x111e, false, false);
    check(1 << 46 | 0x1e, false, true);
    check(1 << 52 | 0x1e, false, false);
}

fn violation(access: Access, permissions: u64) -> Violation {
    Violation {
        access,
        permissions: Permissions(permissions),
        is_convertible: true,
        is_supervisor_shadow_stack_page: false,
    }
}

#[test]
fn the_qualification_has_its_layout() {
    let linear = LinearAccess {
        address: 0,
        is_final: true,
        is_user: true,
        is_writable: true,
        is_execute_disabled: true,
        is_shadow_stack: false,
    };
    let structure = LinearAccess {
        is_final: false,
        ..linear
    };
    let check = |violation: Violation, rules, linear: Option<&LinearAccess>, expected| {
        assert_eq!(violation.qualification(rules, linear), expected);
    };
    check(violation(Access::Read, 0), &RULES, None, 0x1);
    check(violation(Access::Write, READ), &RULES, Some(&linear), 0xf8a);
    check(
        violation(Access::Write, READ),
        &NO_OPTIONS,
        Some(&linear),
        0x18a,
    );
    check(
        violation(Access::ReadWrite, READ | EXECUTE),
        &RULES,
        Some(&structure),
        0xab,
    );
    check(
        violation(Access::Fetch, USER_EXECUTE),
        &RULES,
        Some(&structure),
        0x84,
    );
    check(
        violation(Access::Fetch, USER_EXECUTE),
        &MODE_BASED,
        Some(&structure),
        0xc4,
    );
}

#[test]
fn an_address_beyond_the_walk_is_a_violation() {
    assert!(Walk::new(Eptp(0x1e), Gpa(1 << 48), Access::Read, false).is_err());
    assert!(Walk::new(Eptp(0x26), Gpa(1 << 48), Access::Read, false).is_ok());
    assert!(Walk::new(Eptp(0x26), Gpa(1 << 57), Access::Read, false).is_err());
    assert!(Walk::new(Eptp(u64::MAX), Gpa(u64::MAX), Access::Read, false).is_err());
}

/// Runs a walk over four entries, one for each level from 4 down.
fn run(eptp: Eptp, access: Access, entries: [u64; 4], rules: &EptRules) -> (Step, usize) {
    let mut walk = Walk::new(eptp, Gpa(0x1234_5678), access, false).unwrap();
    for (n, entry) in entries.into_iter().enumerate() {
        assert_eq!(usize::from(walk.level()), 4 - n);
        match walk.step(entry, rules) {
            Step::Next => {}
            end => return (end, n + 1),
        }
    }
    unreachable!("a walk ends at level 1");
}

#[test]
fn accessed_and_dirty_flags_are_set_where_they_are_enabled() {
    let entries = [0x1007, 0x2107, 0x3007, 0x4137];
    let done = |eptp, access| match run(eptp, access, entries, &RULES).0 {
        Step::Done(translation) => translation,
        other => panic!("{other:?}"),
    };
    let with: Translation = done(Eptp(0x5e), Access::Write);
    let changed: Vec<(u64, u64)> = with
        .updates()
        .iter()
        .map(|u| (u.entry.0, u.new & !u.old))
        .collect();
    assert_eq!(
        changed,
        [
            (0, ACCESSED),
            (0x2000 + 8 * 0x91, ACCESSED),
            (0x3000 + 8 * 0x145, DIRTY)
        ]
    );
    assert!(with.sets_dirty && with.is_dirty);
    let read = done(Eptp(0x5e), Access::Read);
    assert_eq!(read.updates().len(), 2);
    assert!(!read.sets_dirty && !read.is_dirty);
    let without = done(Eptp(0x1e), Access::Write);
    assert!(without.updates().is_empty() && !without.sets_dirty && !without.is_dirty);
    assert_eq!(without.address(Gpa(0x1234_5678)), Hpa(0x4678));
}

/// An entry that is plausible: mostly present, with some odd bits.
fn entry() -> impl Strategy<Value = u64> {
    let odd = prop_oneof![4 => Just(0), 1 => (0..64_u32).prop_map(|bit| 1 << bit)];
    let base = prop_oneof![
        Just(0x7_u64),
        Just(0x5),
        Just(0x3),
        Just(0x1),
        Just(0x4),
        Just(0x37)
    ];
    (base, odd).prop_map(|(base, odd)| (base | 0x4000_0000) ^ odd)
}

proptest! {
    /// A walk says what a look at all its entries says.
    #[test]
    fn a_walk_is_the_sum_of_its_entries(
        entries in [entry(), entry(), entry(), entry()],
        access in proptest::sample::select(&[
            Access::Read,
            Access::Write,
            Access::ReadWrite,
            Access::Fetch,
        ]),
    ) {
        let (end, used) = run(Eptp(0x5e), access, entries, &RULES);
        let used = &entries[..used];
        let all = used.iter().fold(7, |all, entry| all & entry);
        let needed = match access {
            Access::Read => 1,
            Access::Write => 2,
            Access::ReadWrite => 3,
            Access::Fetch => 4,
        };
        match end {
            Step::Done(translation) => {
                prop_assert_eq!(all & needed, needed);
                prop_assert!(translation.updates().len() <= used.len());
            }
            Step::Violation(violation) => {
                prop_assert!(all & needed != needed || used[used.len() - 1] & 7 == 0);
                prop_assert_eq!(violation.qualification(&RULES, None), needed | all << 3);
                prop_assert_eq!(violation.is_convertible, used[used.len() - 1] >> 63 == 0);
            }
            Step::Misconfiguration => prop_assert!(used[used.len() - 1] & 7 != 0),
            Step::Next => prop_assert!(false, "the walk has ended"),
        }
    }
}

mod logs {
    use crate::addr::{Gpa, Hpa};
    use crate::arch::Cr0;
    use crate::controls::{ProcControls, SecondaryControls};
    use crate::ept::log::{Delivery, convert_violation, log_modification};
    use crate::exit::VmExit;
    use crate::exit_reason::ExitReason;
    use crate::field::Field;
    use crate::memory::PhysicalMemory;
    use crate::vmcs::Vmcs;

    struct Page([u8; 4096]);

    impl PhysicalMemory for Page {
        fn read(&self, address: Hpa, bytes: &mut [u8]) {
            let at = address.page_offset() as usize;
            bytes.copy_from_slice(&self.0[at..at + bytes.len()]);
        }

        fn write(&mut self, address: Hpa, bytes: &[u8]) {
            let at = address.page_offset() as usize;
            self.0[at..at + bytes.len()].copy_from_slice(bytes);
        }
    }

    fn vmcs(secondary: SecondaryControls) -> Vmcs {
        let mut vmcs = Vmcs::new();
        let proc = ProcControls::ACTIVATE_SECONDARY_CONTROLS;
        vmcs.set(Field::PROC_CONTROLS, proc.bits().into());
        vmcs.set(Field::SECONDARY_PROC_CONTROLS, secondary.bits().into());
        vmcs
    }

    #[test]
    fn the_log_counts_down_and_is_full_below_zero() {
        let mut vmcs = vmcs(SecondaryControls::ENABLE_PML);
        let mut memory = Page([0; 4096]);
        vmcs.set(Field::PML_INDEX, 1);
        assert_eq!(
            log_modification(&mut vmcs, &mut memory, Gpa(0x1234)),
            Ok(())
        );
        assert_eq!(
            log_modification(&mut vmcs, &mut memory, Gpa(0x5678)),
            Ok(())
        );
        assert_eq!(memory.read_u64(Hpa(8)), 0x1000);
        assert_eq!(memory.read_u64(Hpa(0)), 0x5000);
        assert_eq!(vmcs.get(Field::PML_INDEX), 0xffff);
        let full = log_modification(&mut vmcs, &mut memory, Gpa(0x9000)).unwrap_err();
        assert_eq!(full.reason, ExitReason::PML_FULL);
        assert_eq!(vmcs.get(Field::PML_INDEX), 0xffff);
    }

    #[test]
    fn without_the_control_nothing_is_logged() {
        let mut memory = Page([0; 4096]);
        let mut vmcs = vmcs(SecondaryControls::empty());
        vmcs.set(Field::PML_INDEX, 0xffff);
        assert_eq!(
            log_modification(&mut vmcs, &mut memory, Gpa(0x1000)),
            Ok(())
        );
        assert_eq!(memory.0, [0; 4096]);
    }

    #[test]
    fn a_violation_becomes_ve_once() {
        let vmcs = vmcs(SecondaryControls::EPT_VIOLATION_VE);
        let mut memory = Page([0; 4096]);
        let exit = VmExit::new(ExitReason::EPT_VIOLATION)
            .qualified(0x181)
            .at_linear(0x1111)
            .at_physical(Gpa(0x2222));
        let mut convert = |convertible, cr0, delivery| {
            convert_violation(&vmcs, &mut memory, &exit, convertible, cr0, delivery)
        };
        assert!(!convert(false, Cr0::PE, Delivery::None));
        assert!(!convert(true, Cr0::empty(), Delivery::None));
        assert!(!convert(true, Cr0::PE, Delivery::Underway));
        assert!(convert(true, Cr0::PE, Delivery::None));
        assert!(
            !convert(true, Cr0::PE, Delivery::None),
            "the area is in use"
        );
        assert_eq!(memory.read_u64(Hpa(0)), 0xffff_ffff_0000_0030);
        assert_eq!(memory.read_u64(Hpa(8)), 0x181);
        assert_eq!(memory.read_u64(Hpa(16)), 0x1111);
        assert_eq!(memory.read_u64(Hpa(24)), 0x2222);
    }
}
