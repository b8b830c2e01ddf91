//! Four processors of one machine, each with a hypervisor that runs a guest; and a VMCS, with the
//! guest in it, that goes from one to the next.

mod processors;

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use vmx_model::addr::Hpa;
use vmx_model::capability::VmxProfile;
use vmx_model::controls::{ExitControls, PinControls};
use vmx_model::exit_reason::ExitReason;
use vmx_model::field::{Field, Kind, Width};
use vmx_model::sample::{Guest, valid_vmcs};
use vmx_model::sanitizer::{Item, Report};
use vmx_model::vmcs::Vmcs;
use x86_machine::Machine;

use processors::*;

/// Pairs of the encoding and the value of a field; -1 ends them.
const FIELDS: u32 = 0x13_0000;
/// Where a VM exit leads.
const HANDLER: u32 = 0x13_4000;
const GUEST: u32 = 0x13_8000;
/// A word for each processor: what its guest has done.
const DONE: u32 = 0x520;
/// Whose turn it is.
const TURN: u32 = 0x540;
/// VM exits of a guest.
const EXITS: i32 = 200;

/// A guest like its hypervisor: protected mode with the same page tables.
fn vmcs() -> Vmcs {
    let mut vmcs = valid_vmcs(&VmxProfile::emulator_default(), Guest::Protected);
    let exit = vmcs.exit() - ExitControls::HOST_ADDRESS_SPACE_SIZE;
    for (field, value) in [
        (Field::EXIT_CONTROLS, exit.bits().into()),
        (Field::HOST_IA32_EFER, 0),
        (Field::HOST_CR3, PAGE_DIRECTORY.into()),
        (Field::HOST_CR4, 0x2010),
        (Field::HOST_RIP, HANDLER.into()),
        (Field::HOST_GDTR_BASE, 0x8110),
        (Field::GUEST_CR3, PAGE_DIRECTORY.into()),
        (Field::GUEST_CR4, 0x2010),
        (Field::GUEST_RIP, GUEST.into()),
        (Field::GUEST_RSP, 0x7000),
    ] {
        vmcs.set(field, value);
    }
    assert!(!vmcs.pin().contains(PinControls::EXTERNAL_INTERRUPT_EXITING));
    vmcs
}

/// Lists what 32-bit code writes: a field of 64 bits in two halves.
fn list_fields(machine: &Machine, vmcs: &Vmcs) {
    let profile = VmxProfile::emulator_default();
    let writable = |f: &Field| profile.fields.contains(*f) && f.kind() != Kind::ReadOnly;
    let mut words = Vec::new();
    for field in Field::ALL.into_iter().filter(writable) {
        let value = vmcs.get(field);
        words.extend([field.encoding(), value as u32]);
        if field.width() == Width::W64 {
            words.extend([field.encoding() | 1, (value >> 32) as u32]);
        }
    }
    words.push(u32::MAX);
    let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    machine.memory().write_bytes(Hpa(FIELDS.into()), &bytes);
}

/// Writes the fields of the list, by EDI, to the current VMCS.
fn write_fields(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut next, mut done) = (a.create_label(), a.create_label());
    a.mov(edi, FIELDS)?;
    a.set_label(&mut next)?;
    a.mov(eax, dword_ptr(edi))?;
    a.cmp(eax, -1)?;
    a.je(done)?;
    a.vmwrite(eax, dword_ptr(edi + 4))?;
    a.add(edi, 8)?;
    a.jmp(next)?;
    a.set_label(&mut done)?;
    a.nop()
}

/// Skips the guest's VMCALL; another exit leads to `other`.
fn skip_vmcall(a: &mut CodeAssembler, other: CodeLabel) -> Result<(), IcedError> {
    a.mov(eax, Field::EXIT_REASON.encoding())?;
    a.vmread(ecx, eax)?;
    a.cmp(ecx, i32::from(ExitReason::VMCALL.0))?;
    a.jne(other)?;
    a.mov(eax, Field::GUEST_RIP.encoding())?;
    a.vmread(ecx, eax)?;
    a.add(ecx, 3)?;
    a.vmwrite(eax, ecx)
}

/// The bootstrap processor, number 0, waits for the others; these halt.
fn end(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut is_other = a.create_label();
    a.test(esi, esi)?;
    a.jnz(is_other)?;
    wait_and_exit(a, 3)?;
    a.set_label(&mut is_other)?;
    finish(a)
}

/// Runs four processors: number ESI executes `begin` in VMX root operation, `handler` at VM exits.
/// Returns what they have done, and the reports.
fn run(begin: Code, handler: Code, guest: Code) -> ([u32; 4], Vec<Report>) {
    let (mut machine, _) = machine(4, true, |a| {
        start_others(a)?;
        a.xor(esi, esi)?;
        a.mov(eax, APPLICATION + 0x100)?;
        a.jmp(eax)
    });
    prepare(&machine, |a| {
        a.mov(eax, APPLICATION + 0x100)?;
        a.jmp(eax)
    });
    let begin = assemble(32, APPLICATION + 0x100, |a| {
        enter_vmx(a)?;
        begin(a)
    });
    let code = [
        (APPLICATION + 0x100, begin),
        (HANDLER, assemble(32, HANDLER, handler)),
        (GUEST, assemble(32, GUEST, guest)),
    ];
    for (at, bytes) in code {
        machine.memory().write_bytes(Hpa(at.into()), &bytes);
    }
    list_fields(&machine, &vmcs());
    assert_eq!(exit_value(machine.run(LIMIT_TICKS)), 0);
    let done = [0, 1, 2, 3].map(|n| {
        let mut word = [0; 4];
        machine
            .memory()
            .read_bytes(Hpa(u64::from(DONE) + 4 * n), &mut word);
        u32::from_le_bytes(word)
    });
    (done, machine.take_reports())
}

#[test]
fn four_processors_each_run_a_guest_of_their_own() {
    let (done, reports) = run(
        |a| {
            a.vmclear(qword_ptr(esi * 8 + VMCS_POINTERS))?;
            a.vmptrld(qword_ptr(esi * 8 + VMCS_POINTERS))?;
            write_fields(a)?;
            a.xor(ebp, ebp)?;
            a.vmlaunch()?;
            end(a)
        },
        |a| {
            let mut over = a.create_label();
            skip_vmcall(a, over)?;
            a.inc(ebp)?;
            a.cmp(ebp, EXITS)?;
            a.je(over)?;
            a.vmresume()?;
            a.set_label(&mut over)?;
            a.vmclear(qword_ptr(esi * 8 + VMCS_POINTERS))?;
            end(a)
        },
        |a| {
            for _ in 0..EXITS {
                a.inc(dword_ptr(esi * 4 + DONE))?;
                a.vmcall()?;
            }
            Ok(())
        },
    );
    assert_eq!(done, [EXITS as u32; 4]);
    assert_eq!(reports, []);
}

/// Lets a VMCS go round: each processor in its turn lets the guest do one thing more, and executes
/// `handler` at its VM exit.
fn go_round(handler: Code) -> ([u32; 4], Vec<Report>) {
    run(
        |a| {
            let (mut wait, mut launch) = (a.create_label(), a.create_label());
            a.set_label(&mut wait)?;
            a.pause()?;
            a.cmp(dword_ptr(TURN), esi)?;
            a.jne(wait)?;
            a.test(esi, esi)?;
            let mut is_made = a.create_label();
            a.jnz(is_made)?;
            a.vmclear(qword_ptr(VMCS_POINTERS))?;
            a.vmptrld(qword_ptr(VMCS_POINTERS))?;
            write_fields(a)?;
            a.jmp(launch)?;
            a.set_label(&mut is_made)?;
            a.vmptrld(qword_ptr(VMCS_POINTERS))?;
            a.set_label(&mut launch)?;
            a.vmlaunch()?;
            // VMfail.
            a.inc(dword_ptr(TURN))?;
            end(a)
        },
        handler,
        |a| {
            // What the guest does is in the order of its RIP, which the VMCS holds.
            for n in 0..4_u32 {
                a.mov(dword_ptr(DONE + 4 * n), esi)?;
                a.inc(dword_ptr(DONE + 4 * n))?;
                a.vmcall()?;
            }
            Ok(())
        },
    )
}

#[test]
fn a_guest_goes_on_where_it_was_on_each_processor_that_its_vmcs_moves_to() {
    let (done, reports) = go_round(|a| {
        let mut over = a.create_label();
        skip_vmcall(a, over)?;
        a.set_label(&mut over)?;
        a.vmclear(qword_ptr(VMCS_POINTERS))?;
        a.inc(dword_ptr(TURN))?;
        end(a)
    });
    assert_eq!(done, [1, 2, 3, 4]);
    assert_eq!(reports, []);
}

#[test]
fn a_guest_whose_vmcs_moves_without_vmclear_is_reported_on_each_processor() {
    let (_, reports) = go_round(|a| {
        let mut over = a.create_label();
        skip_vmcall(a, over)?;
        a.set_label(&mut over)?;
        a.inc(dword_ptr(TURN))?;
        end(a)
    });
    let moves: Vec<u32> = reports
        .iter()
        .filter(|report| report.item == Item::ActiveOnTwoCpus)
        .map(|report| report.cpu.0)
        .collect();
    assert_eq!(moves, [1, 2, 3]);
    assert!(
        reports
            .iter()
            .all(|report| report.vmcs == Some(Hpa(0x31_0000)))
    );
}
