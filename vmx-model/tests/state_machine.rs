//! Properties of the VMX state machine: random sequences on the processors and on the naive model,
//! the invariants that need steps of their own, saving and loading, threads.
#![expect(clippy::unwrap_used, reason = "a failure is the test's failure")]

use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use vmx_model::addr::Hpa;
use vmx_model::arch::Rflags;
use vmx_model::capability::VmxProfile;
use vmx_model::controls::{ExitControls, ProcControls, SecondaryControls};
use vmx_model::exit::VmExit;
use vmx_model::exit_reason::ExitReason;
use vmx_model::field::{Field, Kind, Width};
use vmx_model::memory::PhysicalMemory;
use vmx_model::naive::Answer;
use vmx_model::naive::compare::{Statistics, run_sequence, run_sequences};
use vmx_model::naive::machine::{Machine, Pages};
use vmx_model::naive::sequence::{
    Action, Blocking, Discipline, REGIONS, Random, sequence, vmxon_region,
};
use vmx_model::outcome::VmxOutcome;
use vmx_model::processor::{LogicalProcessor, ProcessorState};
use vmx_model::region::RegionLayout;
use vmx_model::registry::{
    CpuId, DataLocation, LaunchState, RegistryState, RemoteVmclear, VmcsRegistry,
};
use vmx_model::vmcs::Vmcs;

const A: Hpa = REGIONS[0];
const B: Hpa = REGIONS[1];
const LAUNCH: Action = Action::Vmlaunch(Blocking::None);
const RESUME: Action = Action::Vmresume(Blocking::None);
const SUCCEED: Answer = Answer::Outcome(VmxOutcome::Succeed);

/// Sequences for each profile and number of processors; Miri is slow.
const COUNT: u64 = if cfg!(miri) { 1 } else { 40 };

#[test]
fn random_sequences_agree_with_the_naive_model() {
    let mut statistics = Statistics::default();
    for profile in VmxProfile::all() {
        let profile = Arc::new(profile);
        for cpus in 1..=4 {
            match run_sequences(&profile, 1000 * u64::from(cpus), COUNT, cpus) {
                Ok(run) => statistics.add(&run),
                Err(divergence) => panic!("{} with {cpus}: {divergence}", profile.name),
            }
        }
    }
    if cfg!(miri) {
        return;
    }
    // The sequences reach what they are for.
    let counts = [
        statistics.entries,
        statistics.failed_entries,
        statistics.exits,
        statistics.failures,
        statistics.shadow_accesses,
        statistics.misuses,
    ];
    assert!(counts.iter().all(|count| *count >= 20), "{statistics:?}");
}

/// A processor in VMX root operation with A current; its values let VM entry succeed.
fn with_current(profile: VmxProfile) -> Machine {
    let mut machine = Machine::new(&Arc::new(profile), 2);
    for action in [
        Action::Vmxon(vmxon_region(0)),
        Action::Vmclear(A),
        Action::Vmptrld(A),
    ] {
        assert_eq!(machine.execute(0, action), SUCCEED);
    }
    assert_eq!(machine.execute(0, Action::Prepare(None)), Answer::Done);
    machine
}

fn read(machine: &mut Machine, encoding: u64) -> u64 {
    match machine.execute(0, Action::Vmread(encoding)) {
        Answer::Value(value) => value,
        answer => panic!("VMREAD of {encoding:#x} gives {answer:?}"),
    }
}

fn writable_fields() -> Vec<Field> {
    let profile = VmxProfile::everything();
    let fields = profile.fields.iter();
    fields
        .filter(|field| field.kind() != Kind::ReadOnly)
        .collect()
}

/// Values of all writable fields.
fn values() -> impl Strategy<Value = Vec<u64>> {
    proptest::collection::vec(any::<u64>(), writable_fields().len())
}

fn write_all(machine: &mut Machine, values: &[u64]) {
    for (field, value) in writable_fields().into_iter().zip(values) {
        let action = Action::Vmwrite(field.encoding().into(), *value);
        assert_eq!(machine.execute(0, action), SUCCEED);
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 1 } else { 64 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_seed_agrees_with_the_naive_model(seed: u64, cpus in 1_u32..=4, profile in 0_usize..5) {
        let profile = Arc::new(VmxProfile::all().swap_remove(profile));
        if let Err(divergence) = run_sequence(&profile, seed, cpus) {
            return Err(TestCaseError::fail(divergence.to_string()));
        }
    }

    /// Invariants vmread-roundtrip and high-low.
    #[test]
    fn vmread_reads_what_vmwrite_wrote(index in any::<prop::sample::Index>(), value: u64) {
        let field = *index.get(&writable_fields());
        let encoding = u64::from(field.encoding());
        let mut machine = with_current(VmxProfile::everything());
        prop_assert_eq!(machine.execute(0, Action::Vmwrite(encoding, value)), SUCCEED);
        prop_assert_eq!(read(&mut machine, encoding), value & field.value_mask());
        if field.width() == Width::W64 {
            prop_assert_eq!(read(&mut machine, encoding | 1), value >> 32);
        }
        let typed = machine.cpus[0].read(field);
        prop_assert_eq!(typed, Ok(value & field.value_mask()));
    }

    /// Invariants vmclear-flush and vmptrst-inverse.
    #[test]
    fn a_copy_of_a_cleared_region_has_the_same_fields(values in values()) {
        let mut machine = with_current(VmxProfile::everything());
        write_all(&mut machine, &values);
        let before = machine.cpus[0].current_vmcs().cloned();
        prop_assert_eq!(machine.execute(0, Action::Vmclear(A)), SUCCEED);
        prop_assert_eq!(machine.execute(0, Action::Copy(A, B)), Answer::Done);
        prop_assert_eq!(machine.execute(0, Action::Vmptrld(B)), SUCCEED);
        prop_assert_eq!(machine.execute(0, Action::Vmptrst), Answer::Value(B.0));
        prop_assert_eq!(machine.cpus[0].current_vmcs(), before.as_ref());
    }

    #[test]
    fn a_copy_of_an_active_region_has_old_data(value in 1_u64..) {
        let mut machine = with_current(VmxProfile::everything());
        let encoding = Field::TSC_OFFSET.encoding().into();
        prop_assert_eq!(machine.execute(0, Action::Vmwrite(encoding, value)), SUCCEED);
        prop_assert_eq!(machine.execute(0, Action::Copy(A, B)), Answer::Done);
        prop_assert_eq!(machine.execute(0, Action::Vmptrld(B)), SUCCEED);
        prop_assert_eq!(read(&mut machine, encoding), 0);
    }

    #[test]
    fn any_bytes_are_a_region(bytes in proptest::collection::vec(any::<u8>(), 4096)) {
        let mut memory = Pages::default();
        memory.add(A);
        memory.add(B);
        memory.write(A, &bytes);
        let vmcs = RegionLayout::V1.read(&memory, A);
        for field in Field::ALL {
            prop_assert_eq!(vmcs.get(field) & !field.value_mask(), 0);
            prop_assert_eq!(RegionLayout::V1.read_field(&memory, A, field), vmcs.get(field));
        }
        RegionLayout::V1.write(&mut memory, B, &vmcs);
        prop_assert_eq!(RegionLayout::V1.read(&memory, B), vmcs);
    }

    /// INVEPT accepts an EPTP if and only if VM entry does.
    #[test]
    fn invept_judges_an_eptp_as_vm_entry_does(base in 0_u64..1 << 40, low: u16, high in 0_u64..64) {
        for eptp in [base << 12 | u64::from(low & 0xfff), base << 12 | 0x1e, high << 46 | 0x5e] {
            let mut machine = with_current(VmxProfile::everything());
            let controls = [
                (Field::SECONDARY_PROC_CONTROLS, SecondaryControls::ENABLE_EPT.bits()),
                (Field::PROC_CONTROLS, ProcControls::ACTIVATE_SECONDARY_CONTROLS.bits()),
            ];
            let vmcs = machine.cpus[0].current_vmcs_mut().unwrap();
            for (field, bits) in controls {
                vmcs.set(field, vmcs.get(field) | u64::from(bits));
            }
            vmcs.set(Field::EPT_POINTER, eptp);
            let is_accepted = machine.execute(0, Action::Invept(1, [eptp, 0])) == SUCCEED;
            let entry = machine.execute(0, LAUNCH);
            let fails = Answer::Outcome(VmxOutcome::FailValid(7));
            let expected = if is_accepted { Answer::Entered } else { fails };
            prop_assert_eq!(entry, expected, "EPTP {:#x}", eptp);
        }
    }

    /// Invariant exit-reentry.
    #[test]
    fn vmresume_goes_on_where_the_guest_was(rip in 0_u64..1 << 46, rsp: u64, sysenter_cs: u64) {
        let mut machine = with_current(VmxProfile::everything());
        // An exit that saves what the entry loads by control.
        let save = (ExitControls::SAVE_DEBUG_CONTROLS | ExitControls::SAVE_IA32_EFER).bits();
        let vmcs = machine.cpus[0].current_vmcs_mut().unwrap();
        vmcs.set(Field::EXIT_CONTROLS, vmcs.get(Field::EXIT_CONTROLS) | u64::from(save));
        vmcs.set(Field::GUEST_IA32_SYSENTER_CS, sysenter_cs);
        prop_assert_eq!(machine.execute(0, LAUNCH), Answer::Entered);
        machine.registers[0].state.rip = rip;
        machine.registers[0].state.rsp = rsp;
        machine.registers[0].state.rflags |= Rflags::CF;
        let guest = machine.registers[0].state.clone();
        let exit = Action::Exit(ExitReason::EXTERNAL_INTERRUPT);
        prop_assert_eq!(machine.execute(0, exit), Answer::Exited);
        prop_assert_ne!(&machine.registers[0].state, &guest);
        prop_assert_eq!(machine.execute(0, RESUME), Answer::Entered);
        prop_assert_eq!(&machine.registers[0].state, &guest);
    }

    /// A machine that is saved and loaded between two steps goes on as one that is not.
    #[test]
    fn a_loaded_machine_goes_on_where_the_saved_one_was(seed: u64, at in 0_usize..64) {
        let profile = Arc::new(VmxProfile::everything());
        let discipline = if seed % 2 == 0 { Discipline::Wild } else { Discipline::WellBehaved };
        let steps = sequence(&mut Random::new(seed), discipline, 3, 64);
        let mut one = Machine::new(&profile, 3);
        let mut other = Machine::new(&profile, 3);
        for (n, step) in steps.iter().enumerate() {
            if n == at {
                save_and_load(&mut other, &profile);
            }
            let answers = [&mut one, &mut other].map(|m| m.execute(step.cpu, step.action));
            prop_assert_eq!(answers[0], answers[1]);
        }
        prop_assert_eq!(one.registry.save(), other.registry.save());
        let states = |m: &Machine| m.cpus.iter().map(LogicalProcessor::save).collect::<Vec<_>>();
        prop_assert_eq!(states(&one), states(&other));
    }
}

fn save_and_load(machine: &mut Machine, profile: &Arc<VmxProfile>) {
    let json = serde_json::to_string(&machine.registry.save()).unwrap();
    let saved: RegistryState = serde_json::from_str(&json).unwrap();
    machine.registry = VmcsRegistry::restore(saved).unwrap();
    for cpu in &mut machine.cpus {
        let json = serde_json::to_string(&cpu.save()).unwrap();
        let saved: ProcessorState = serde_json::from_str(&json).unwrap();
        let observer = cpu.set_observer(None);
        let registry = Arc::clone(&machine.registry);
        *cpu = LogicalProcessor::restore(Arc::clone(profile), registry, saved).unwrap();
        cpu.set_observer(observer);
    }
}

#[test]
fn state_of_another_version_or_another_registry_is_refused() {
    let machine = with_current(VmxProfile::everything());
    let profile = Arc::new(VmxProfile::everything());
    let saved = machine.cpus[0].save();
    let stranger = VmcsRegistry::new();
    assert!(LogicalProcessor::restore(Arc::clone(&profile), stranger, saved.clone()).is_err());
    let json = serde_json::to_string(&saved).unwrap();
    for (from, to) in [
        ("{\"version\":1", "{\"version\":2"),
        ("\"Root\"", "\"Outside\""),
    ] {
        let changed = json.replacen(from, to, 1);
        assert_ne!(changed, json);
        let saved: ProcessorState = serde_json::from_str(&changed).unwrap();
        let registry = Arc::clone(&machine.registry);
        assert!(LogicalProcessor::restore(Arc::clone(&profile), registry, saved).is_err());
    }
    let json = serde_json::to_string(&machine.registry.save()).unwrap();
    let newer = json.replacen("\"version\":1", "\"version\":9", 1);
    let saved: RegistryState = serde_json::from_str(&newer).unwrap();
    assert!(VmcsRegistry::restore(saved).is_err());
}

#[test]
fn vmclear_of_addresses_without_memory_leaves_nothing_behind() {
    let mut machine = with_current(VmxProfile::emulator_default());
    let before = machine.registry.save();
    for n in 0..100 {
        let nowhere = Hpa(0x4000_0000 + (n << 12));
        assert_eq!(machine.execute(0, Action::Vmclear(nowhere)), SUCCEED);
    }
    assert_eq!(machine.registry.save(), before);
    assert_eq!(machine.execute(0, Action::Vmclear(B)), SUCCEED);
    assert_ne!(machine.registry.save(), before);
    assert_eq!(machine.registry.status(B).launch, LaunchState::Clear);
}

#[test]
fn a_zeroed_page_is_a_vmcs_of_zeroes() {
    let mut memory = Pages::default();
    memory.add(A);
    assert_eq!(*RegionLayout::V1.read(&memory, A), Vmcs::new());
}

#[test]
fn native_software_reads_and_writes_as_the_instructions_do() {
    let profile = VmxProfile::all()
        .into_iter()
        .find(|profile| !profile.caps.writes_read_only_fields())
        .unwrap();
    let missing = Field::ALL
        .into_iter()
        .find(|field| !profile.fields.contains(*field))
        .unwrap();
    let mut machine = with_current(profile);
    // With and without an observer: the fast way and the instruction's.
    for _ in 0..2 {
        let cpu = &mut machine.cpus[0];
        assert_eq!(cpu.write(Field::GUEST_RIP, 5), Ok(()));
        assert_eq!(cpu.read(Field::GUEST_RIP), Ok(5));
        assert_eq!(cpu.read(missing), Err(VmxOutcome::FailValid(12)));
        assert_eq!(cpu.write(missing, 1), Err(VmxOutcome::FailValid(12)));
        let read_only = cpu.write(Field::EXIT_REASON, 1);
        assert_eq!(read_only, Err(VmxOutcome::FailValid(13)));
        assert_eq!(cpu.read(Field::VM_INSTRUCTION_ERROR), Ok(13));
        cpu.set_observer(None);
    }
    assert_eq!(machine.execute(0, Action::Vmclear(A)), SUCCEED);
    let cpu = &mut machine.cpus[0];
    assert_eq!(cpu.read(Field::GUEST_RIP), Err(VmxOutcome::FailInvalid));
    assert_eq!(cpu.write(Field::GUEST_RIP, 1), Err(VmxOutcome::FailInvalid));
}

/// Memory that threads share.
#[derive(Clone)]
struct Shared(Arc<Mutex<Pages>>);

impl PhysicalMemory for Shared {
    fn read(&self, address: Hpa, bytes: &mut [u8]) {
        self.0.lock().unwrap().read(address, bytes);
    }

    fn write(&mut self, address: Hpa, bytes: &[u8]) {
        self.0.lock().unwrap().write(address, bytes);
    }
}

#[test]
fn a_vmcs_moves_between_threads_by_a_remote_vmclear() {
    let profile = Arc::new(VmxProfile::emulator_default());
    let registry = VmcsRegistry::new();
    let mut pages = Pages::default();
    for page in [A, B, vmxon_region(0), vmxon_region(1)] {
        pages.add(page);
        pages.write_u32(page, profile.caps.revision_id());
    }
    let mut memory = Shared(Arc::new(Mutex::new(pages)));
    let cpu = |n| LogicalProcessor::new(CpuId(n), Arc::clone(&profile), Arc::clone(&registry));
    let mut there = cpu(0);
    let mut its_memory = memory.clone();
    // A thread that leaves A active on its processor, not current, and goes on with B.
    let owner = std::thread::spawn(move || {
        let succeed = Ok(VmxOutcome::Succeed);
        assert_eq!(there.vmxon(vmxon_region(0), &its_memory), succeed);
        for region in [A, B] {
            assert_eq!(there.vmclear(region, &mut its_memory), succeed);
            assert_eq!(there.vmptrld(region, &its_memory), succeed);
            assert_eq!(there.write(Field::GUEST_RIP, region.0), Ok(()));
        }
        there
    });
    let mut there = owner.join().unwrap();
    let mut here = cpu(1);
    let succeed = Ok(VmxOutcome::Succeed);
    assert_eq!(here.vmxon(vmxon_region(1), &memory), succeed);
    let remote = here.remote_vmclear(CpuId(0), B, &mut memory);
    assert_eq!(remote, RemoteVmclear::Current);
    let remote = here.remote_vmclear(CpuId(1), A, &mut memory);
    assert_eq!(remote, RemoteVmclear::NotActive);
    assert_eq!(registry.status(A).data, DataLocation::Cached(CpuId(0)));
    let remote = here.remote_vmclear(CpuId(0), A, &mut memory);
    assert_eq!(remote, RemoteVmclear::Done);
    assert_eq!(registry.status(A).launch, LaunchState::Clear);
    assert_eq!(registry.status(A).data, DataLocation::Memory);
    assert_eq!(registry.active_on(CpuId(0)), [B]);
    assert_eq!(here.vmptrld(A, &memory), succeed);
    assert_eq!(here.read(Field::GUEST_RIP), Ok(A.0));
    assert_eq!(there.read(Field::GUEST_RIP), Ok(B.0));
}

const ROUNDS: u32 = if cfg!(miri) { 5 } else { 500 };

/// A processor's own sequence of VMWRITEs, VMPTRLDs, VMCLEARs and VMREADs on two regions; returns
/// what the VMREADs read.
fn own_sequence(n: u32, memory: &mut Shared, cpu: &mut LogicalProcessor) -> Vec<u64> {
    let regions = [REGIONS[2 * n as usize], REGIONS[2 * n as usize + 1]];
    let mut random = Random::new(n.into());
    let succeed = Ok(VmxOutcome::Succeed);
    assert_eq!(cpu.vmxon(vmxon_region(n), memory), succeed);
    let mut read = Vec::new();
    for _ in 0..ROUNDS {
        let region = regions[random.below(2) as usize];
        if random.below(3) == 0 {
            assert_eq!(cpu.vmclear(region, memory), succeed);
        }
        assert_eq!(cpu.vmptrld(region, memory), succeed);
        read.push(cpu.read(Field::GUEST_RIP).unwrap());
        cpu.write(Field::GUEST_RIP, random.next()).unwrap();
    }
    read
}

#[test]
fn processors_on_threads_do_not_disturb_each_other() {
    let profile = Arc::new(VmxProfile::emulator_default());
    let run = |is_concurrent: bool| -> Vec<Vec<u64>> {
        let registry = VmcsRegistry::new();
        let mut pages = Pages::default();
        for page in REGIONS.into_iter().chain((0..3).map(vmxon_region)) {
            pages.add(page);
            pages.write_u32(page, profile.caps.revision_id());
        }
        let memory = Shared(Arc::new(Mutex::new(pages)));
        let start = |n| {
            let mut memory = memory.clone();
            let registry = Arc::clone(&registry);
            let mut cpu = LogicalProcessor::new(CpuId(n), Arc::clone(&profile), registry);
            std::thread::spawn(move || own_sequence(n, &mut memory, &mut cpu))
        };
        if is_concurrent {
            let threads: Vec<_> = (0..3).map(start).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        } else {
            (0..3).map(|n| start(n).join().unwrap()).collect()
        }
    };
    assert_eq!(run(true), run(false));
}

#[test]
fn a_vm_exit_after_an_msr_that_cannot_be_loaded_is_a_vmx_abort() {
    let mut machine = with_current(VmxProfile::everything());
    let area = REGIONS[3];
    // IA32_GS_BASE, which no MSR area may name.
    machine.memory.write_u32(area, 0xc000_0101);
    machine.memory.write_u32(area.offset(4), 0);
    for (field, value) in [
        (Field::VM_EXIT_MSR_LOAD_ADDRESS, area.0),
        (Field::VM_EXIT_MSR_LOAD_COUNT, 1),
    ] {
        let action = Action::Vmwrite(field.encoding().into(), value);
        assert_eq!(machine.execute(0, action), SUCCEED);
    }
    assert_eq!(machine.execute(0, LAUNCH), Answer::Entered);
    let Machine {
        cpus,
        registers,
        memory,
        ..
    } = &mut machine;
    let exit = VmExit::new(ExitReason::CPUID);
    assert!(cpus[0].vm_exit(&exit, memory, &mut registers[0]).is_err());
    assert_eq!(vmx_model::region::read_abort_indicator(memory, A), 4);
}
