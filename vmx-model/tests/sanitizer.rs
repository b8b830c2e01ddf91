//! Every item of the sanitizer: one use that is reported by this name, and one like it that is not.
#![expect(clippy::unwrap_used, reason = "a failure is the test's failure")]

use std::sync::{Arc, Mutex};

use vmx_model::addr::Hpa;
use vmx_model::arch::SegmentRegister;
use vmx_model::capability::VmxProfile;
use vmx_model::controls::{ProcControls, SecondaryControls};
use vmx_model::event::Exception;
use vmx_model::exit_reason::ExitReason;
use vmx_model::field::Field;
use vmx_model::naive::Answer;
use vmx_model::naive::machine::Machine;
use vmx_model::naive::sequence::{Action, Blocking, Header, REGIONS, vmxon_region};
use vmx_model::observer::{
    AccessKind, Completion, MemoryAccess, Observer, Operation, StaleTranslation, Transition,
};
use vmx_model::outcome::VmxOutcome;
use vmx_model::registry::CpuId;
use vmx_model::sanitizer::{Item, Sanitizer};

const A: Hpa = REGIONS[0];
const B: Hpa = REGIONS[1];
const C: Hpa = REGIONS[2];
const LAUNCH: Action = Action::Vmlaunch(Blocking::None);
const RESUME: Action = Action::Vmresume(Blocking::None);

/// Two processors in VMX root operation; A is current on processor 0 and can be launched.
fn host() -> Machine {
    let mut machine = Machine::new(&Arc::new(VmxProfile::everything()), 2);
    for cpu in 0..2 {
        act(&mut machine, cpu, Action::Vmxon(vmxon_region(cpu)));
    }
    act(&mut machine, 0, Action::Vmclear(A));
    act(&mut machine, 0, Action::Vmptrld(A));
    act(&mut machine, 0, Action::Prepare(None));
    assert_eq!(machine.take_misuse(), []);
    machine
}

#[track_caller]
fn act(machine: &mut Machine, cpu: u32, action: Action) -> Answer {
    let answer = machine.execute(cpu, action);
    let is_good = match answer {
        Answer::Outcome(outcome) => outcome == VmxOutcome::Succeed,
        Answer::Undefined | Answer::Exits(_) | Answer::EntryFailed(..) => false,
        _ => true,
    };
    assert!(is_good, "{action:x?} gives {answer:x?}");
    answer
}

#[track_caller]
fn write(machine: &mut Machine, cpu: u32, field: Field, value: u64) {
    act(
        machine,
        cpu,
        Action::Vmwrite(field.encoding().into(), value),
    );
}

fn allow(machine: &mut Machine, field: Field, bits: u32) {
    let vmcs = machine.cpus[0].current_vmcs().unwrap();
    let value = vmcs.get(field) | u64::from(bits);
    write(machine, 0, field, value);
}

fn access(machine: &mut Machine, cpu: u32, at: Hpa, length_bytes: u64, kind: AccessKind) {
    let access = MemoryAccess {
        cpu: CpuId(cpu),
        address: at,
        length_bytes,
        kind,
    };
    let observer = machine.cpus[cpu as usize].observer().unwrap();
    observer.memory_access(&access);
}

fn exit(machine: &mut Machine, cpu: u32) {
    act(machine, cpu, Action::Exit(ExitReason::CPUID));
}

/// A is left at processor 0 and launched at processor 1.
fn migrated() -> Machine {
    let mut m = host();
    act(&mut m, 0, LAUNCH);
    exit(&mut m, 0);
    act(&mut m, 0, Action::Vmclear(A));
    act(&mut m, 1, Action::Vmptrld(A));
    m.registers[1].state.segment_mut(SegmentRegister::Gs).base = 0x9000;
    m
}

/// A guest of processor 0 with a virtual-APIC page at C.
fn guest_with_virtual_apic_page() -> Machine {
    let mut m = host();
    let shadow = ProcControls::USE_TPR_SHADOW.bits();
    allow(&mut m, Field::PROC_CONTROLS, shadow);
    write(&mut m, 0, Field::VIRTUAL_APIC_ADDRESS, C.0);
    act(&mut m, 0, LAUNCH);
    m
}

type Use = fn() -> Machine;

/// The item, a use that is reported, and one like it that is not.
const CASES: &[(Item, Use, Use)] = &[
    (
        Item::UseBeforeVmclear,
        || {
            let mut m = host();
            act(&mut m, 0, Action::Vmptrld(B));
            m
        },
        || {
            let mut m = host();
            act(&mut m, 0, Action::Vmclear(B));
            act(&mut m, 0, Action::Vmptrld(B));
            m
        },
    ),
    (
        Item::ActiveOnTwoCpus,
        || {
            let mut m = host();
            act(&mut m, 1, Action::Vmptrld(A));
            m
        },
        || {
            let mut m = host();
            act(&mut m, 0, Action::Vmclear(A));
            act(&mut m, 1, Action::Vmptrld(A));
            m
        },
    ),
    (
        Item::VmclearForeignActive,
        || {
            let mut m = host();
            act(&mut m, 1, Action::Vmclear(A));
            m
        },
        || {
            let mut m = host();
            act(&mut m, 0, Action::Vmclear(B));
            act(&mut m, 0, Action::Vmptrld(B));
            // Not a VMCLEAR on processor 1, but by processor 0 for it.
            act(&mut m, 1, Action::RemoteVmclear(0, A));
            m
        },
    ),
    (
        Item::VmresumeAfterVmxoff,
        || {
            let mut m = host();
            act(&mut m, 0, LAUNCH);
            exit(&mut m, 0);
            act(&mut m, 0, Action::Vmxoff);
            act(&mut m, 0, Action::Vmxon(vmxon_region(0)));
            act(&mut m, 0, Action::Vmptrld(A));
            let _ = m.take_misuse();
            act(&mut m, 0, RESUME);
            m
        },
        || {
            let mut m = host();
            act(&mut m, 0, LAUNCH);
            exit(&mut m, 0);
            act(&mut m, 0, RESUME);
            m
        },
    ),
    (
        Item::VmxoffWithActive,
        || {
            let mut m = host();
            act(&mut m, 0, Action::Vmxoff);
            m
        },
        || {
            let mut m = host();
            act(&mut m, 0, Action::Vmclear(A));
            act(&mut m, 0, Action::Vmxoff);
            m
        },
    ),
    (
        Item::MemoryAccessActive,
        || {
            let mut m = host();
            access(&mut m, 0, A.offset(8), 8, AccessKind::Read);
            m
        },
        || {
            let mut m = host();
            access(&mut m, 0, B.offset(8), 8, AccessKind::Write);
            m
        },
    ),
    (
        Item::WriteRevisionActive,
        || {
            let mut m = host();
            access(&mut m, 0, A, 4, AccessKind::Write);
            m
        },
        || {
            let mut m = host();
            access(&mut m, 0, B, 4, AccessKind::Write);
            m
        },
    ),
    (
        Item::SharedRegion,
        || {
            let mut m = host();
            act(&mut m, 1, Action::Vmclear(vmxon_region(0)));
            m
        },
        || {
            let mut m = host();
            act(&mut m, 1, Action::Vmclear(B));
            m
        },
    ),
    (
        Item::Overlap,
        || {
            let mut m = host();
            write(&mut m, 0, Field::VM_EXIT_MSR_STORE_ADDRESS, A.0 + 0x800);
            write(&mut m, 0, Field::VM_EXIT_MSR_STORE_COUNT, 1);
            act(&mut m, 0, LAUNCH);
            m
        },
        || {
            let mut m = host();
            // The same area for storing and loading is the usual way.
            for field in [
                Field::VM_EXIT_MSR_STORE_ADDRESS,
                Field::VM_ENTRY_MSR_LOAD_ADDRESS,
            ] {
                write(&mut m, 0, field, C.0 + 0x800);
            }
            for field in [
                Field::VM_EXIT_MSR_STORE_COUNT,
                Field::VM_ENTRY_MSR_LOAD_COUNT,
            ] {
                write(&mut m, 0, field, 1);
            }
            act(&mut m, 0, LAUNCH);
            m
        },
    ),
    (
        Item::MsrListTooLong,
        || {
            let mut m = host();
            write(&mut m, 0, Field::VM_EXIT_MSR_LOAD_ADDRESS, 0x40_0000);
            write(&mut m, 0, Field::VM_EXIT_MSR_LOAD_COUNT, 0x1001);
            act(&mut m, 0, LAUNCH);
            m
        },
        || {
            let mut m = host();
            write(&mut m, 0, Field::VM_EXIT_MSR_LOAD_ADDRESS, 0x40_0000);
            write(&mut m, 0, Field::VM_EXIT_MSR_LOAD_COUNT, 512);
            act(&mut m, 0, LAUNCH);
            m
        },
    ),
    (
        Item::ReferencedMemoryModified,
        || {
            let mut m = guest_with_virtual_apic_page();
            access(&mut m, 1, C.offset(0x80), 4, AccessKind::Write);
            m
        },
        || {
            let mut m = guest_with_virtual_apic_page();
            access(&mut m, 1, C.offset(0x80), 4, AccessKind::Read);
            exit(&mut m, 0);
            access(&mut m, 1, C.offset(0x80), 4, AccessKind::Write);
            m
        },
    ),
    (
        Item::RegionMemtype,
        || {
            let mut m = host();
            m.cpus[0].observer().unwrap().memory_type(CpuId(0), A, 0);
            m
        },
        || {
            let mut m = host();
            m.cpus[0].observer().unwrap().memory_type(CpuId(0), A, 6);
            m
        },
    ),
    (
        Item::VmcsFreed,
        || {
            let mut m = host();
            m.cpus[0].observer().unwrap().memory_freed(CpuId(0), A);
            m
        },
        || {
            let mut m = host();
            act(&mut m, 0, Action::Vmclear(A));
            m.cpus[0].observer().unwrap().memory_freed(CpuId(0), A);
            m
        },
    ),
    (Item::ShadowLinkLaunched, || linked(true), || linked(false)),
    (
        Item::StaleTlb,
        || {
            let mut m = host();
            let translation = StaleTranslation {
                cpu: CpuId(0),
                vpid: 1,
                ep4ta: Some(0x1000),
                address: 0x2000,
            };
            let observer = m.cpus[0].observer().unwrap();
            observer.stale_translation(&translation);
            m
        },
        host,
    ),
    (
        Item::HostStateStale,
        || {
            let mut m = migrated();
            act(&mut m, 1, LAUNCH);
            m
        },
        || {
            let mut m = migrated();
            for field in [
                Field::HOST_FS_BASE,
                Field::HOST_GS_BASE,
                Field::HOST_TR_BASE,
                Field::HOST_GDTR_BASE,
            ] {
                write(&mut m, 1, field, 0x9000);
            }
            act(&mut m, 1, LAUNCH);
            m
        },
    ),
    (
        Item::ExitInfoUndefined,
        || {
            let mut m = host();
            act(&mut m, 0, LAUNCH);
            exit(&mut m, 0);
            let encoding = Field::GUEST_PHYSICAL_ADDRESS.encoding();
            act(&mut m, 0, Action::Vmread(encoding.into()));
            m
        },
        || {
            let mut m = host();
            act(&mut m, 0, LAUNCH);
            act(&mut m, 0, Action::Exit(ExitReason::EPT_VIOLATION));
            let encoding = Field::GUEST_PHYSICAL_ADDRESS.encoding();
            act(&mut m, 0, Action::Vmread(encoding.into()));
            m
        },
    ),
];

/// A guest whose link pointer names B, which is active or not.
fn linked(is_active: bool) -> Machine {
    let mut m = host();
    act(&mut m, 0, Action::StoreHeader(B, Header::Shadow));
    act(&mut m, 0, Action::Vmclear(B));
    act(&mut m, 0, Action::Vmptrld(B));
    if !is_active {
        act(&mut m, 0, Action::Vmclear(B));
    }
    act(&mut m, 0, Action::Vmptrld(A));
    let shadowing = SecondaryControls::VMCS_SHADOWING.bits();
    allow(&mut m, Field::SECONDARY_PROC_CONTROLS, shadowing);
    write(&mut m, 0, Field::VMCS_LINK_POINTER, B.0);
    act(&mut m, 0, LAUNCH);
    m
}

#[test]
fn every_item_is_reported_by_its_name_and_only_where_it_should() {
    let tested: Vec<Item> = CASES.iter().map(|(item, ..)| *item).collect();
    assert_eq!(tested, Item::ALL);
    for (item, misuse, good_use) in CASES {
        assert_eq!(misuse().take_misuse(), [*item]);
        assert_eq!(good_use().take_misuse(), [], "{}", item.name());
    }
}

#[test]
fn a_report_names_processor_region_manual_and_history() {
    let mut machine = host();
    let sanitizer = Sanitizer::new(VmxProfile::everything().caps);
    machine.cpus[1].set_observer(Some(Box::new(sanitizer.clone())));
    act(&mut machine, 1, Action::Vmptrld(B));
    let reports = sanitizer.take_reports();
    assert_eq!(reports.len(), 1);
    let report = &reports[0];
    assert_eq!((report.cpu, report.vmcs), (CpuId(1), Some(B)));
    assert_eq!(report.history.len(), 1);
    let text = report.to_string();
    for part in [
        "use-before-vmclear",
        "processor 1",
        "0x2000",
        "SDM Vol. 3C",
        "Vmptrld",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(sanitizer.take_reports().is_empty());
}

#[test]
fn an_access_that_crosses_into_an_active_region_is_reported() {
    let mut machine = host();
    access(&mut machine, 0, A.offset(0xffe), 8, AccessKind::Read);
    assert_eq!(machine.take_misuse(), [Item::MemoryAccessActive]);
    access(&mut machine, 0, Hpa(A.0 - 4), 8, AccessKind::Write);
    assert_eq!(machine.take_misuse(), [Item::WriteRevisionActive]);
    access(&mut machine, 0, Hpa(u64::MAX - 3), 8, AccessKind::Write);
    assert_eq!(machine.take_misuse(), []);
    access(&mut machine, 0, vmxon_region(1), 4, AccessKind::Read);
    assert_eq!(machine.take_misuse(), [Item::MemoryAccessActive]);
}

/// Keeps what it sees.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Vec<Seen>>>);

type Seen = (Operation, Option<Hpa>, Completion);

impl Observer for Recorder {
    fn transition(&mut self, t: &Transition<'_>) {
        let seen = (t.operation, t.vmcs, t.completion);
        self.0.lock().unwrap().push(seen);
    }
}

#[test]
fn an_observer_sees_every_transition_with_the_current_vmcs_before_it() {
    let recorder = Recorder::default();
    let mut machine = Machine::new(&Arc::new(VmxProfile::everything()), 1);
    machine.cpus[0].set_observer(Some(Box::new(recorder.clone())));
    let succeed = Completion::Outcome(VmxOutcome::Succeed);
    let vmxon = vmxon_region(0);
    let tsc_offset = Field::TSC_OFFSET.encoding().into();
    let write = Operation::Vmwrite {
        encoding: tsc_offset,
        value: 5,
    };
    let read = Operation::Vmread {
        encoding: tsc_offset,
    };
    let misaligned = Hpa(A.0 + 8);
    let wrong = Completion::Outcome(VmxOutcome::FailValid(9));
    let exit = Operation::VmExit { reason: 10 };
    let undefined = Completion::Fault(Exception::UD);
    let refused = Completion::Exits(ExitReason::VMXOFF);
    let expected = [
        (Action::Vmxoff, Operation::Vmxoff, None, undefined),
        (
            Action::Vmxon(vmxon),
            Operation::Vmxon { pointer: vmxon },
            None,
            succeed,
        ),
        (
            Action::Vmclear(A),
            Operation::Vmclear { pointer: A },
            None,
            succeed,
        ),
        (
            Action::Vmptrld(A),
            Operation::Vmptrld { pointer: A },
            None,
            succeed,
        ),
        (
            Action::Vmptrst,
            Operation::Vmptrst,
            Some(A),
            Completion::Value(A.0),
        ),
        (
            Action::Vmptrld(misaligned),
            Operation::Vmptrld {
                pointer: misaligned,
            },
            Some(A),
            wrong,
        ),
        (Action::Vmwrite(tsc_offset, 5), write, Some(A), succeed),
        (
            Action::Vmread(tsc_offset),
            read,
            Some(A),
            Completion::Value(5),
        ),
        (Action::Prepare(None), Operation::Vmptrst, None, succeed),
        (LAUNCH, Operation::Vmlaunch, Some(A), Completion::Entered),
        (Action::Vmxoff, Operation::Vmxoff, Some(A), refused),
        (
            Action::Exit(ExitReason::CPUID),
            exit,
            Some(A),
            Completion::Done,
        ),
        (
            Action::Vmclear(A),
            Operation::Vmclear { pointer: A },
            Some(A),
            succeed,
        ),
        (Action::Vmxoff, Operation::Vmxoff, None, succeed),
        (Action::Init, Operation::Init, None, Completion::Done),
        (Action::Reset, Operation::Reset, None, Completion::Done),
    ];
    for (action, operation, vmcs, completion) in expected {
        let _ = machine.execute(0, action);
        let seen = std::mem::take(&mut *recorder.0.lock().unwrap());
        if let Action::Prepare(_) = action {
            let is_vmwrite =
                |(operation, ..): &Seen| matches!(operation, Operation::Vmwrite { .. });
            assert!(!seen.is_empty() && seen.iter().all(is_vmwrite));
        } else {
            assert_eq!(seen, [(operation, vmcs, completion)], "{action:x?}");
        }
    }
}

#[test]
fn an_observer_may_ignore_what_it_does_not_need() {
    struct Counter(Arc<std::sync::atomic::AtomicU32>);
    impl Observer for Counter {
        fn transition(&mut self, _: &Transition<'_>) {
            self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }
    let count = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let mut machine = host();
    machine.cpus[0].set_observer(Some(Box::new(Counter(Arc::clone(&count)))));
    act(&mut machine, 0, Action::Vmptrst);
    act(&mut machine, 0, Action::Vmread(0x4402));
    access(&mut machine, 0, A, 4, AccessKind::Write);
    assert_eq!(count.load(std::sync::atomic::Ordering::Relaxed), 2);
}
