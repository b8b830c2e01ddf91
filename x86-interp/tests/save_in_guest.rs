//! A processor that is saved in VMX non-root operation, in the middle of a guest, and restored into
//! a fresh one goes on as if nothing had happened.

use std::sync::Arc;

use iced_x86::code_asm::*;
use vmx_model::addr::Hpa;
use vmx_model::capability::VmxProfile;
use vmx_model::controls::PinControls;
use vmx_model::exit_reason::ExitReason;
use vmx_model::field::Field;
use vmx_model::processor::{EntryOutcome, LogicalProcessor};
use vmx_model::registry::{CpuId, VmcsRegistry};
use vmx_model::sample::{Guest, root_state, valid_vmcs};
use x86_interp::bus::{EmptyBus, InstructionClock};
use x86_interp::mem::phys::{OwnedRam, PhysMap};
use x86_interp::state::RestoreError;
use x86_interp::vmx::{EntryInstruction, RootSoftware};
use x86_interp::{Cpu, Stop};

const VMXON: Hpa = Hpa(0x10_0000);
const VMCS: Hpa = Hpa(0x10_1000);
const PML4: u64 = 0x10_2000;
const CODE: u64 = 0x1000;
/// Where the guest's page is, and its size with that of the EPT structures and VMCS regions.
const CODE_HPA: u64 = 0x20_1000;
const RAM_BYTES: usize = 4 << 20;
/// Value of the VMX-preemption timer; the default profile counts every tick.
const TIMER: u64 = 640;
const INSTRUCTIONS: u64 = TIMER;

fn fresh() -> (Cpu, Arc<PhysMap>) {
    let phys = PhysMap::new();
    let ram = Arc::new(OwnedRam::new(RAM_BYTES / 4096).expect("4 MiB"));
    phys.add_owned(Hpa(0), ram).expect("an empty map");
    let bus = Box::new(EmptyBus);
    let cpu = Cpu::new(Arc::clone(&phys), bus, Box::<InstructionClock>::default());
    (cpu, phys)
}

/// A real-mode guest that counts, with EPT and the preemption timer, about to be entered.
fn guest() -> (Cpu, Arc<PhysMap>, Arc<VmcsRegistry>) {
    let (mut cpu, phys) = fresh();
    let profile = Arc::new(VmxProfile::emulator_default());
    let revision = profile.caps.revision_id().to_le_bytes();
    phys.write_bytes(VMXON, &revision);
    phys.write_bytes(VMCS, &revision);
    for table in [PML4, PML4 + 0x1000, PML4 + 0x2000] {
        phys.write_bytes(Hpa(table), &((table + 0x1000) | 7).to_le_bytes());
    }
    let pte = Hpa(PML4 + 0x3000 + (CODE >> 12) * 8);
    phys.write_bytes(pte, &(CODE_HPA | 0x37).to_le_bytes());
    phys.write_bytes(Hpa(CODE_HPA), &counting_loop());

    let registry = VmcsRegistry::new();
    let mut processor =
        LogicalProcessor::new(CpuId(0), Arc::clone(&profile), Arc::clone(&registry));
    let mut memory = &*phys;
    let outcomes = [
        processor.vmxon(VMXON, &memory),
        processor.vmclear(VMCS, &mut memory),
        processor.vmptrld(VMCS, &memory),
    ];
    assert!(outcomes.iter().all(|o| o.is_ok_and(|o| o.is_success())));
    let mut vmcs = valid_vmcs(&profile, Guest::Real);
    let pin = vmcs.get(Field::PIN_CONTROLS);
    let timer = PinControls::ACTIVATE_VMX_PREEMPTION_TIMER.bits();
    vmcs.set(Field::PIN_CONTROLS, pin | u64::from(timer));
    vmcs.set(Field::VMX_PREEMPTION_TIMER_VALUE, TIMER);
    vmcs.set(Field::EPT_POINTER, PML4 | 0x1e);
    vmcs.set(Field::GUEST_RIP, CODE);
    vmcs.set(Field::GUEST_RSP, CODE + 0x800);
    *processor.current_vmcs_mut().expect("current") = vmcs;
    cpu.set_arch_state(&root_state(&profile));
    let none = cpu.attach_processor(Box::new(processor), RootSoftware::Native);
    assert!(none.is_none());
    (cpu, phys, registry)
}

/// Flags, stack, memory and the generator behind RDRAND, over and over.
fn counting_loop() -> Vec<u8> {
    let mut a = CodeAssembler::new(16).expect("a bitness");
    let mut top = a.create_label();
    let mut code = || {
        a.set_label(&mut top)?;
        a.rdrand(eax)?;
        a.add(ebx, eax)?;
        a.pushf()?;
        a.pop(cx)?;
        a.adc(word_ptr(CODE + 0x900), cx)?;
        a.jmp(top)
    };
    code().expect("instructions");
    a.assemble(CODE).expect("encodable")
}

fn enter(cpu: &mut Cpu) {
    let outcome = cpu.vm_entry(EntryInstruction::Vmlaunch).expect("executed");
    assert!(matches!(outcome, EntryOutcome::Entered(_)), "{outcome:?}");
}

/// Saves everything as JSON, and restores it into a fresh processor with fresh memory.
fn moved(cpu: &Cpu, phys: &PhysMap, registry: &VmcsRegistry) -> (Cpu, Arc<PhysMap>) {
    let processor = cpu.processor().expect("attached");
    let saved = (registry.save(), processor.save(), cpu.save());
    let json = serde_json::to_string(&saved).expect("plain data");
    let mut memory = vec![0; RAM_BYTES];
    phys.read_bytes(Hpa(0), &mut memory);

    let (registry, processor, state) = serde_json::from_str(&json).expect("written by us");
    let (mut cpu, phys) = fresh();
    phys.write_bytes(Hpa(0), &memory);
    assert_eq!(cpu.restore(&state), Err(RestoreError::NotInNonRoot));
    let registry = VmcsRegistry::restore(registry).expect("the same version");
    let profile = Arc::new(VmxProfile::emulator_default());
    let processor = LogicalProcessor::restore(profile, registry, processor);
    let processor = Box::new(processor.expect("consistent"));
    assert!(
        cpu.attach_processor(processor, RootSoftware::Native)
            .is_none()
    );
    cpu.restore(&state).expect("the processor is attached");
    (cpu, phys)
}

/// Everything there is to see at the end: reason, registers, the guest's page.
fn ending(mut cpu: Cpu, phys: &PhysMap) -> (u64, String, Vec<u8>) {
    let processor = cpu.processor_mut().expect("attached");
    let reason = processor.read(Field::EXIT_REASON).expect("a current VMCS");
    let vmcs = serde_json::to_string(&processor.save()).expect("plain data");
    let state = serde_json::to_string(&cpu.save()).expect("plain data");
    let mut page = vec![0; 4096];
    phys.read_bytes(Hpa(CODE_HPA), &mut page);
    (reason, state + &vmcs, page)
}

#[test]
fn a_guest_goes_on_where_it_was_saved() {
    let (mut straight, phys, _) = guest();
    enter(&mut straight);
    assert_eq!(straight.run(2 * INSTRUCTIONS), Stop::VmExit);
    let expected = ending(straight, &phys);
    assert_eq!(expected.0, u64::from(ExitReason::PREEMPTION_TIMER.0));

    for first in [0, 1, 5, 100, INSTRUCTIONS - 1] {
        let (mut cpu, phys, registry) = guest();
        enter(&mut cpu);
        assert_eq!(cpu.run(first), Stop::Budget);
        assert!(cpu.is_non_root());
        let (mut cpu, phys) = moved(&cpu, &phys, &registry);
        assert_eq!(cpu.run(2 * INSTRUCTIONS), Stop::VmExit);
        assert!(ending(cpu, &phys) == expected, "saved after {first}");
    }
}
