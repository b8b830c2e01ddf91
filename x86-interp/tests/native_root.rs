//! A guest under native software in VMX root operation: entries, exits, EPT, injection, windows.

use std::sync::Arc;

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use vmx_model::addr::Hpa;
use vmx_model::capability::VmxProfile;
use vmx_model::controls::{PinControls, ProcControls, SecondaryControls};
use vmx_model::exit_reason::ExitReason;
use vmx_model::field::Field;
use vmx_model::processor::{EntryOutcome, LogicalProcessor};
use vmx_model::registry::{CpuId, VmcsRegistry};
use vmx_model::sample::{Guest, root_state, valid_vmcs};
use vmx_model::vmcs::Vmcs;
use x86_interp::bus::{EmptyBus, InstructionClock};
use x86_interp::mem::phys::{OwnedRam, PhysMap};
use x86_interp::vmx::{EntryInstruction, RootSoftware};
use x86_interp::{Cpu, Stop};

const VMXON: Hpa = Hpa(0x10_0000);
const VMCS: Hpa = Hpa(0x10_1000);
const PML4: u64 = 0x10_2000;
/// The guest's memory: one page at guest-physical 1000H, where its code is.
const CODE: u64 = 0x1000;
const CODE_HPA: u64 = 0x20_1000;

struct Host {
    cpu: Cpu,
    phys: Arc<PhysMap>,
    is_launched: bool,
}

impl Host {
    /// A processor in VMX root operation whose current VMCS is that of a real-mode guest with EPT.
    fn new(
        change: impl Fn(&mut Vmcs),
        code: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> Self {
        let profile = Arc::new(VmxProfile::emulator_default());
        let phys = PhysMap::new();
        let ram = Arc::new(OwnedRam::new(1024).expect("4 MiB"));
        phys.add_owned(Hpa(0), ram).expect("an empty map");
        let bus = Box::new(EmptyBus);
        let mut cpu = Cpu::new(Arc::clone(&phys), bus, Box::<InstructionClock>::default());
        let revision = profile.caps.revision_id().to_le_bytes();
        phys.write_bytes(VMXON, &revision);
        phys.write_bytes(VMCS, &revision);
        for (n, table) in [PML4, PML4 + 0x1000, PML4 + 0x2000].into_iter().enumerate() {
            let entry = (PML4 + 0x1000 * (n as u64 + 1)) | 7;
            phys.write_bytes(Hpa(table), &entry.to_le_bytes());
        }
        map(&phys, CODE, CODE_HPA | 0x37);
        let mut a = CodeAssembler::new(16).expect("a bitness");
        code(&mut a).expect("instructions");
        phys.write_bytes(Hpa(CODE_HPA), &a.assemble(CODE).expect("encodable"));
        let mut processor =
            LogicalProcessor::new(CpuId(0), Arc::clone(&profile), VmcsRegistry::new());
        let mut memory = &*phys;
        assert!(
            processor
                .vmxon(VMXON, &memory)
                .expect("executed")
                .is_success()
        );
        assert!(
            processor
                .vmclear(VMCS, &mut memory)
                .expect("executed")
                .is_success()
        );
        assert!(
            processor
                .vmptrld(VMCS, &memory)
                .expect("executed")
                .is_success()
        );
        let mut sample = valid_vmcs(&profile, Guest::Real);
        sample.set(Field::EPT_POINTER, PML4 | 0x1e);
        sample.set(Field::GUEST_RIP, CODE);
        sample.set(Field::GUEST_RSP, CODE + 0x800);
        change(&mut sample);
        *processor.current_vmcs_mut().expect("current") = sample;
        cpu.set_arch_state(&root_state(&profile));
        assert!(
            cpu.attach_processor(Box::new(processor), RootSoftware::Native)
                .is_none()
        );
        Self {
            cpu,
            phys,
            is_launched: false,
        }
    }

    /// Enters the guest and runs it to its next VM exit.
    fn enter(&mut self) -> ExitReason {
        let instruction = match self.is_launched {
            true => EntryInstruction::Vmresume,
            false => EntryInstruction::Vmlaunch,
        };
        let outcome = self.cpu.vm_entry(instruction).expect("executed");
        assert!(matches!(outcome, EntryOutcome::Entered(_)), "{outcome:?}");
        self.is_launched = true;
        assert_eq!(self.cpu.run(1000), Stop::VmExit);
        assert!(!self.cpu.is_non_root());
        ExitReason(self.read(Field::EXIT_REASON) as u16)
    }

    fn read(&mut self, field: Field) -> u64 {
        self.cpu
            .processor_mut()
            .expect("attached")
            .read(field)
            .expect("a current VMCS")
    }

    fn write(&mut self, field: Field, value: u64) {
        self.cpu
            .processor_mut()
            .expect("attached")
            .write(field, value)
            .expect("writable");
    }

    /// Skips the instruction that caused the exit.
    fn skip(&mut self) {
        let next = self.read(Field::GUEST_RIP) + self.read(Field::VM_EXIT_INSTRUCTION_LENGTH);
        self.write(Field::GUEST_RIP, next);
    }
}

/// Maps a guest page by an EPT PTE.
fn map(phys: &PhysMap, gpa: u64, pte: u64) {
    phys.write_bytes(Hpa(PML4 + 0x3000 + (gpa >> 12) * 8), &pte.to_le_bytes());
}

/// Sets a primary processor-based control.
fn with_proc(control: ProcControls) -> impl Fn(&mut Vmcs) {
    move |vmcs| {
        let proc = vmcs.get(Field::PROC_CONTROLS) | u64::from(control.bits());
        vmcs.set(Field::PROC_CONTROLS, proc);
    }
}

/// Sets a pin-based control.
fn with_pin(control: PinControls) -> impl Fn(&mut Vmcs) {
    move |vmcs| {
        let pin = vmcs.get(Field::PIN_CONTROLS) | u64::from(control.bits());
        vmcs.set(Field::PIN_CONTROLS, pin);
    }
}

fn endless(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut top = a.create_label();
    a.set_label(&mut top)?;
    a.nop()?;
    a.jmp(top)
}

#[test]
fn cpuid_vmcall_and_port_accesses_exit_with_their_information() {
    let mut host = Host::new(with_proc(ProcControls::UNCONDITIONAL_IO_EXITING), |a| {
        a.mov(eax, 7)?;
        a.cpuid()?;
        a.mov(bx, 0x1234)?;
        a.vmcall()?;
        a.out(0x80, al)?;
        a.mov(dx, 0x3f8)?;
        a.in_(ax, dx)?;
        a.nop()
    });
    assert_eq!(host.enter(), ExitReason::CPUID);
    assert_eq!(host.read(Field::VM_EXIT_INSTRUCTION_LENGTH), 2);
    assert_eq!(host.cpu.general_registers()[0], 7);
    host.skip();
    assert_eq!(host.enter(), ExitReason::VMCALL);
    assert_eq!(host.cpu.general_registers()[3], 0x1234);
    host.skip();
    assert_eq!(host.enter(), ExitReason::IO_INSTRUCTION);
    assert_eq!(host.read(Field::EXIT_QUALIFICATION), 0x80_0040);
    host.skip();
    assert_eq!(host.enter(), ExitReason::IO_INSTRUCTION);
    assert_eq!(host.read(Field::EXIT_QUALIFICATION), 0x3f8_0009);
}

#[test]
fn an_unmapped_guest_page_is_an_ept_violation_until_it_is_mapped() {
    let mut host = Host::new(
        |_| {},
        |a| {
            a.mov(word_ptr(0x5010), 0xbeef)?;
            a.mov(ax, word_ptr(0x5010))?;
            a.cpuid()
        },
    );
    assert_eq!(host.enter(), ExitReason::EPT_VIOLATION);
    // A write, of a linear address, final; without paging writable and a user-mode address.
    assert_eq!(host.read(Field::EXIT_QUALIFICATION), 0x782);
    assert_eq!(host.read(Field::GUEST_PHYSICAL_ADDRESS), 0x5010);
    assert_eq!(host.read(Field::GUEST_LINEAR_ADDRESS), 0x5010);
    map(&host.phys, 0x5000, 0x20_5000 | 0x37);
    assert_eq!(host.enter(), ExitReason::CPUID);
    assert_eq!(host.cpu.general_registers()[0] & 0xffff, 0xbeef);
    let mut word = [0; 2];
    host.phys.read_bytes(Hpa(0x20_5010), &mut word);
    assert_eq!(word, 0xbeef_u16.to_le_bytes());
}

#[test]
fn a_misconfigured_entry_exits_as_such() {
    let mut host = Host::new(|_| {}, |a| a.mov(al, byte_ptr(0x6000)));
    map(&host.phys, 0x6000, 6);
    assert_eq!(host.enter(), ExitReason::EPT_MISCONFIGURATION);
    assert_eq!(host.read(Field::GUEST_PHYSICAL_ADDRESS), 0x6000);
}

#[test]
fn an_injected_interrupt_runs_the_handler_first() {
    let inject = |vmcs: &mut Vmcs| {
        vmcs.set(Field::GUEST_RFLAGS, 0x202);
        vmcs.set(Field::GUEST_IDTR_BASE, CODE + 0x400);
        vmcs.set(Field::GUEST_IDTR_LIMIT, 0x3ff);
        vmcs.set(Field::VM_ENTRY_INTERRUPTION_INFORMATION, 0x8000_0020);
    };
    let mut host = Host::new(inject, |a| a.vmcall());
    // Vector 20H: handler at 0:1100H, which executes CPUID.
    host.phys
        .write_bytes(Hpa(CODE_HPA + 0x400 + 0x80), &[0x00, 0x11, 0, 0]);
    host.phys
        .write_bytes(Hpa(CODE_HPA + 0x100), &[0x0f, 0xa2, 0xcf]);
    assert_eq!(host.enter(), ExitReason::CPUID);
    assert_eq!(host.read(Field::GUEST_RIP), 0x1100);
    assert_eq!(host.read(Field::GUEST_RFLAGS), 2);
    assert_eq!(host.read(Field::GUEST_RSP), CODE + 0x800 - 6);
    host.skip();
    assert_eq!(host.enter(), ExitReason::VMCALL);
    assert_eq!(host.read(Field::GUEST_RFLAGS), 0x202);
}

#[test]
fn the_interrupt_window_opens_behind_the_instruction_after_sti() {
    let mut host = Host::new(with_proc(ProcControls::INTERRUPT_WINDOW_EXITING), |a| {
        a.nop()?;
        a.sti()?;
        a.nop()?;
        a.nop()?;
        a.cpuid()
    });
    assert_eq!(host.enter(), ExitReason::INTERRUPT_WINDOW);
    assert_eq!(host.read(Field::GUEST_RIP), CODE + 3);
}

#[test]
fn the_preemption_timer_exits_in_time() {
    let timer = |vmcs: &mut Vmcs| {
        with_pin(PinControls::ACTIVATE_VMX_PREEMPTION_TIMER)(vmcs);
        vmcs.set(Field::VMX_PREEMPTION_TIMER_VALUE, 64);
    };
    let mut host = Host::new(timer, endless);
    let before = host.cpu.retired();
    assert_eq!(host.enter(), ExitReason::PREEMPTION_TIMER);
    // The default profile counts with the TSC, and a tick is an instruction.
    assert_eq!(host.cpu.retired() - before, 64);
}

#[test]
fn the_monitor_trap_flag_exits_behind_each_instruction() {
    let mut host = Host::new(with_proc(ProcControls::MONITOR_TRAP_FLAG), endless);
    for rip in [CODE + 1, CODE, CODE + 1] {
        assert_eq!(host.enter(), ExitReason::MONITOR_TRAP_FLAG);
        assert_eq!(host.read(Field::GUEST_RIP), rip);
    }
}

#[test]
fn a_triple_fault_and_an_intercepted_exception_exit() {
    let mut host = Host::new(|vmcs| vmcs.set(Field::GUEST_IDTR_LIMIT, 0), |a| a.ud2());
    assert_eq!(host.enter(), ExitReason::TRIPLE_FAULT);
    assert_eq!(host.read(Field::GUEST_RIP), CODE);
    let mut host = Host::new(
        |vmcs| vmcs.set(Field::EXCEPTION_BITMAP, 1 << 6),
        |a| a.ud2(),
    );
    assert_eq!(host.enter(), ExitReason::EXCEPTION_OR_NMI);
    assert_eq!(
        host.read(Field::VM_EXIT_INTERRUPTION_INFORMATION),
        0x8000_0306
    );
}

#[test]
fn a_kick_takes_the_guest_out_by_an_external_interrupt() {
    let mut host = Host::new(with_pin(PinControls::EXTERNAL_INTERRUPT_EXITING), endless);
    host.cpu.kicker().kick();
    assert_eq!(host.enter(), ExitReason::EXTERNAL_INTERRUPT);
}

#[test]
fn mode_changes_in_an_unrestricted_guest_survive_exits() {
    let vpid = |vmcs: &mut Vmcs| {
        let secondary = vmcs.get(Field::SECONDARY_PROC_CONTROLS);
        let vpid = u64::from(SecondaryControls::ENABLE_VPID.bits());
        vmcs.set(Field::SECONDARY_PROC_CONTROLS, secondary | vpid);
        vmcs.set(Field::VPID, 1);
    };
    let mut host = Host::new(vpid, |a| {
        a.mov(eax, cr0)?;
        a.or(eax, 1)?;
        a.mov(cr0, eax)?;
        a.vmcall()?;
        a.mov(eax, cr0)?;
        a.vmcall()
    });
    assert_eq!(host.enter(), ExitReason::VMCALL);
    assert_eq!(host.read(Field::GUEST_CR0) & 1, 1);
    host.skip();
    assert_eq!(host.enter(), ExitReason::VMCALL);
    assert_eq!(host.cpu.general_registers()[0] & 1, 1);
}

#[test]
fn mtf_exits_before_the_handler_of_a_fault() {
    const HANDLER: u64 = CODE + 0x200;
    const TABLE: u64 = CODE + 0x400;
    let mut host = Host::new(
        |vmcs| {
            with_proc(ProcControls::MONITOR_TRAP_FLAG)(vmcs);
            vmcs.set(Field::GUEST_IDTR_BASE, TABLE);
            vmcs.set(Field::GUEST_IDTR_LIMIT, 0x3ff);
        },
        |a| a.ud2(),
    );
    // Vector 6 of the interrupt vector table.
    let entry = (HANDLER as u32).to_le_bytes();
    host.phys.write_bytes(Hpa(CODE_HPA + 0x400 + 24), &entry);
    assert_eq!(host.enter(), ExitReason::MONITOR_TRAP_FLAG);
    assert_eq!(host.read(Field::GUEST_RIP), HANDLER);
}
