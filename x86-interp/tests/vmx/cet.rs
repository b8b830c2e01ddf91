//! Control-flow Enforcement Technology in guests: the state that VM entries load and VM exits save,
//! #CP as an event, supervisor shadow stacks under EPT.
//!
//! SDM Vol. 3C, "Loading Guest Control Registers, Debug Registers, and MSRs", "Saving Control
//! Registers, Debug Registers, and MSRs", "VM-Entry Controls for Event Injection", "EPT Violations".

use iced_x86::code_asm::*;
use vmx_model::arch::{Cr0, Cr4};
use vmx_model::capability::VmxProfile;
use vmx_model::controls::{EntryControls, ExitControls, SecondaryControls as S};
use vmx_model::exit_reason::ExitReason as E;
use vmx_model::field::Field;
use vmx_model::sample::Guest;
use vmx_model::vmcs::Vmcs;
use x86_interp::cpuid::Profile;

use crate::host::{Code, Host, at, exit, or, secondary};

/// A page of 2 MiB that the guest has as supervisor shadow stacks.
const SHADOW: u64 = 0x20_0000;
const SSP: u64 = SHADOW + 0x1000;
const SH_STK_EN: u64 = 1;
const ENDBR_EN: u64 = 4;
const TRACKER: u64 = 1 << 11;
const EVENT: Field = Field::VM_EXIT_INTERRUPTION_INFORMATION;

/// A 64-bit guest with shadow stacks on a processor with CET, with CET state loaded.
fn guest(change: impl Fn(&mut Vmcs), code: Code) -> Host {
    let change = |v: &mut Vmcs| {
        or(v, Field::GUEST_CR0, Cr0::WP.bits());
        or(v, Field::GUEST_CR4, Cr4::CET.bits());
        or(
            v,
            Field::ENTRY_CONTROLS,
            EntryControls::LOAD_CET_STATE.bits().into(),
        );
        exit(v, ExitControls::LOAD_CET_STATE);
        v.set(Field::GUEST_IA32_S_CET, SH_STK_EN);
        v.set(Field::GUEST_SSP, SSP);
        v.set(Field::GUEST_IA32_INTERRUPT_SSP_TABLE_ADDR, 0x1230);
        v.set(Field::HOST_IA32_S_CET, 2);
        v.set(Field::HOST_SSP, 0x4440);
        v.set(Field::HOST_IA32_INTERRUPT_SSP_TABLE_ADDR, 0x5550);
        change(v);
    };
    let mut host = Host::on(VmxProfile::everything(), Guest::Long, change, code);
    host.cpu.set_cpuid(Profile::EVERYTHING.table());
    // Present, not writable, accessed, dirty, 2 MiB.
    host.set_word(at::PML4 + 0x2008, SHADOW | 0xe1);
    host
}

fn call(a: &mut CodeAssembler) -> Result<(), iced_x86::IcedError> {
    let mut target = a.create_label();
    a.call(target)?;
    a.nop()?;
    a.set_label(&mut target)?;
    a.vmcall()
}

#[test]
fn entries_load_and_exits_save_the_state_of_cet() {
    let mut host = guest(|_| {}, call);
    assert_eq!(host.reason(), E::VMCALL);
    assert_eq!(host.read(Field::GUEST_SSP), SSP - 8);
    assert_eq!(host.word(SSP - 8), at::CODE + 5);
    assert_eq!(host.read(Field::GUEST_IA32_S_CET), SH_STK_EN);
    let table = host.read(Field::GUEST_IA32_INTERRUPT_SSP_TABLE_ADDR);
    assert_eq!(table, 0x1230);
    let state = host.cpu.arch_state();
    let loaded = (state.s_cet, state.ssp, state.interrupt_ssp_table);
    assert_eq!(loaded, (2, 0x4440, 0x5550));
    // Without the controls the guest runs with what the host has, which is saved all the same.
    let none = |v: &mut Vmcs| {
        let bits = |v: &Vmcs, field, bit: u32| v.get(field) & !u64::from(bit);
        let entry = bits(
            v,
            Field::ENTRY_CONTROLS,
            EntryControls::LOAD_CET_STATE.bits(),
        );
        v.set(Field::ENTRY_CONTROLS, entry);
        let exit = bits(v, Field::EXIT_CONTROLS, ExitControls::LOAD_CET_STATE.bits());
        v.set(Field::EXIT_CONTROLS, exit);
    };
    let mut host = guest(none, call);
    assert_eq!(host.reason(), E::VMCALL);
    assert_eq!(host.read(Field::GUEST_SSP), 0);
    assert_eq!(host.read(Field::GUEST_IA32_S_CET), 0);
    assert_eq!(host.cpu.arch_state().s_cet, 0);
}

#[test]
fn cp_exits_by_the_exception_bitmap_with_its_error_code() {
    let mut host = guest(
        |v| v.set(Field::EXCEPTION_BITMAP, 1 << 21),
        |a| {
            let mut target = a.create_label();
            a.call(target)?;
            a.set_label(&mut target)?;
            a.nop()?;
            // CALL of the next instruction has pushed nothing on the shadow stack.
            a.ret()
        },
    );
    assert_eq!(host.reason(), E::EXCEPTION_OR_NMI);
    assert_eq!(host.read(EVENT), 0x8000_0b15);
    assert_eq!(host.read(Field::VM_EXIT_INTERRUPTION_ERROR_CODE), 1);
    assert_eq!(host.read(Field::GUEST_RIP), at::CODE + 6);
    assert_eq!(host.read(Field::GUEST_SSP), SSP);
    assert_eq!(host.read(Field::EXIT_QUALIFICATION), 0);
}

/// The tracker goes through the VMCS: a guest that is entered while it waits must begin with
/// ENDBR64.
#[test]
fn the_tracker_is_part_of_the_state() {
    let waits = |v: &mut Vmcs| {
        v.set(Field::GUEST_IA32_S_CET, ENDBR_EN | TRACKER);
        v.set(Field::EXCEPTION_BITMAP, 1 << 21);
    };
    let mut host = guest(waits, |a| a.vmcall());
    assert_eq!(host.reason(), E::EXCEPTION_OR_NMI);
    assert_eq!(host.read(Field::VM_EXIT_INTERRUPTION_ERROR_CODE), 3);
    assert_eq!(host.read(Field::GUEST_IA32_S_CET), ENDBR_EN | TRACKER);
    let mut host = guest(waits, |a| {
        a.endbr64()?;
        a.vmcall()
    });
    assert_eq!(host.reason(), E::VMCALL);
    assert_eq!(host.read(Field::GUEST_IA32_S_CET), ENDBR_EN);
}

/// Vector 21 with an error code, which only a processor with CET takes; and an external interrupt.
/// Both push CS, LIP and SSP.
#[test]
fn injected_events_push_on_the_shadow_stack() {
    for (injected, code, is_pushed) in [(0x8000_0b15, 2, true), (0x8000_0030, 0, false)] {
        let mut host = guest(
            |v| {
                v.set(Field::VM_ENTRY_INTERRUPTION_INFORMATION, injected);
                v.set(Field::VM_ENTRY_EXCEPTION_ERROR_CODE, code);
                or(v, Field::GUEST_RFLAGS, 0x200);
                v.set(Field::GUEST_IA32_S_CET, SH_STK_EN | ENDBR_EN);
                v.set(Field::EXCEPTION_BITMAP, 1 << 21);
            },
            |a| a.nop(),
        );
        host.set_handler(injected & 0xff);
        // The handler does not begin with ENDBR64.
        assert_eq!(host.reason(), E::EXCEPTION_OR_NMI);
        assert_eq!(host.read(EVENT), 0x8000_0b15);
        assert_eq!(host.read(Field::VM_EXIT_INTERRUPTION_ERROR_CODE), 3);
        assert_eq!(host.read(Field::GUEST_RIP), at::HANDLER);
        assert_eq!(host.read(Field::GUEST_SSP), SSP - 24);
        let frame = [8, 16, 24].map(|n| host.word(SSP - n));

        assert_eq!(frame[1..], [at::CODE, SSP]);

        let top = host.read(Field::GUEST_RSP);
        assert_eq!(host.word(top) == code, is_pushed);
    }
}

/// EPT entry of the page of 2 MiB with the shadow stacks, bit 7 of the EPTP, and the qualification
/// of the exit if there is one.
#[test]
fn supervisor_shadow_stacks_need_their_bit_under_ept() {
    const BIT: u64 = 1 << 60;
    // Read, write and execute as given, write-back, 2 MiB.
    let entry = |rights: u64, bit: u64| SHADOW | 0xb0 | rights | bit;
    for (control, entry, expected) in [
        (0, entry(7, 0), None),
        (0, entry(5, 0), Some(0x21aa)),
        (0, entry(5, BIT), Some(0x21aa)),
        (0x80, entry(7, 0), Some(0x21ba)),
        (0x80, entry(7, BIT), None),
        (0x80, entry(5, BIT), None),
        (0x80, entry(5, 0), Some(0x21aa)),
        (0x80, entry(4, BIT), Some(0x61a2)),
    ] {
        let mut host = guest(
            |v| {
                v.set(Field::EPT_POINTER, at::EPT | 0x1e | control);
                secondary(v, S::ENABLE_EPT);
            },
            call,
        );
        host.set_word(at::EPT + 0x2008, entry);
        let reason = host.reason();
        let Some(qualification) = expected else {
            assert_eq!(reason, E::VMCALL, "{control:#x} {entry:#x}");
            continue;
        };
        assert_eq!(reason, E::EPT_VIOLATION, "{control:#x} {entry:#x}");
        assert_eq!(host.read(Field::GUEST_PHYSICAL_ADDRESS), SSP - 8);
        assert_eq!(host.read(Field::GUEST_LINEAR_ADDRESS), SSP - 8);
        let found = host.read(Field::EXIT_QUALIFICATION);
        assert_eq!(found, qualification, "{control:#x} {entry:#x}: {found:#x}");
        assert_eq!(host.read(Field::GUEST_SSP), SSP);
        assert_eq!(host.read(Field::GUEST_RIP), at::CODE);
    }
}
