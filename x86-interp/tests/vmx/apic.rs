//! Virtual interrupts of guests (SDM Vol. 3C, chapter "APIC Virtualization and Virtual
//! Interrupts").

use iced_x86::code_asm::*;
use vmx_model::controls::{
    ExitControls as X, PinControls as N, ProcControls as P, SecondaryControls as S,
};
use vmx_model::exit_reason::ExitReason as E;
use vmx_model::field::Field;
use vmx_model::sample::Guest;
use vmx_model::vmcs::Vmcs;

use crate::host::{Code, Host, at, exit, pin, proc, secondary};

const STATUS: Field = Field::GUEST_INTERRUPT_STATUS;

/// A 64-bit guest with virtual-interrupt delivery and interrupts enabled, and a handler for 41H.
fn host(change: impl Fn(&mut Vmcs), code: Code) -> Host {
    let host = Host::new(
        Guest::Long,
        |v| {
            pin(v, N::EXTERNAL_INTERRUPT_EXITING);
            exit(v, X::ACKNOWLEDGE_INTERRUPT_ON_EXIT);
            proc(v, P::USE_TPR_SHADOW | P::USE_MSR_BITMAPS);
            secondary(v, S::VIRTUAL_INTERRUPT_DELIVERY | S::VIRTUALIZE_X2APIC_MODE);
            v.set(Field::GUEST_RFLAGS, 0x202);
            change(v);
        },
        code,
    );
    host.set_handler(0x41);
    host
}

fn request(host: &Host, vector: u64) {
    let register = at::VIRTUAL_APIC + 0x200 + 16 * (vector / 32);
    host.set_word(register, 1 << (vector % 32));
}

#[test]
fn a_virtual_interrupt_is_delivered_at_entry_and_ends_hlt() {
    for activity in [0, 1] {
        let mut host = host(
            |v| {
                v.set(STATUS, 0x41);
                v.set(Field::GUEST_ACTIVITY_STATE, activity);
            },
            |a| a.cpuid(),
        );
        request(&host, 0x41);
        assert_eq!(host.reason(), E::VMCALL);
        assert_eq!(host.read(Field::GUEST_RIP), at::HANDLER);
        assert_eq!(host.read(STATUS), 0x4100, "in service");
        assert_eq!(host.word(at::VIRTUAL_APIC + 0x220), 0);
        assert_eq!(host.word(at::VIRTUAL_APIC + 0x120), 1 << 1);
        assert_eq!(host.word(at::VIRTUAL_APIC + 0xa0), 0x40, "VPPR");
    }
}

#[test]
fn a_virtual_interrupt_waits_for_its_priority_and_for_if() {
    let low: Code = |a| {
        a.mov(ecx, 0x808)?;
        a.xor(edx, edx)?;
        a.mov(eax, 0x30)?;
        a.wrmsr()?;
        a.cpuid()
    };
    let mut waiting = host(|v| v.set(STATUS, 0x41), low);
    request(&waiting, 0x41);
    waiting.set_word(at::VIRTUAL_APIC + 0x80, 0x40);
    assert_eq!(waiting.reason(), E::VMCALL, "when VTPR sinks");
    assert_eq!(waiting.word(at::VIRTUAL_APIC + 0x80), 0x30);
    let closed = |v: &mut Vmcs| {
        v.set(STATUS, 0x41);
        v.set(Field::GUEST_RFLAGS, 2);
    };
    let mut closed = host(closed, |a| {
        a.nop()?;
        a.sti()?;
        a.nop()?;
        a.cpuid()
    });
    request(&closed, 0x41);
    assert_eq!(
        closed.reason(),
        E::VMCALL,
        "behind the instruction after STI"
    );
    let stack = closed.read(Field::GUEST_RSP);
    assert_eq!(closed.word(stack), at::CODE + 3);
}

#[test]
fn an_interrupt_window_keeps_virtual_interrupts_back() {
    let window = |v: &mut Vmcs| {
        v.set(STATUS, 0x41);
        proc(v, P::INTERRUPT_WINDOW_EXITING);
    };
    let mut host = host(window, |a| a.cpuid());
    request(&host, 0x41);
    assert_eq!(host.reason(), E::INTERRUPT_WINDOW);
    assert_eq!(host.read(STATUS), 0x41);
}

#[test]
fn a_self_ipi_by_the_x2apic_register_is_delivered() {
    let send: Code = |a| {
        a.mov(ecx, 0x83f)?;
        a.xor(edx, edx)?;
        a.mov(eax, 0x41)?;
        a.wrmsr()?;
        a.cpuid()
    };
    let mut delivered = host(|_| {}, send);
    assert_eq!(delivered.reason(), E::VMCALL);
    assert_eq!(delivered.read(STATUS), 0x4100);
    let mut low = host(
        |_| {},
        |a| {
            a.mov(ecx, 0x83f)?;
            a.wrmsr()
        },
    );
    assert_eq!(low.reason(), E::APIC_WRITE, "a vector below 16");
    assert_eq!(low.read(Field::EXIT_QUALIFICATION), 0x3f0);
}

#[test]
fn posted_interrupts_are_processed_without_an_exit() {
    let posting = |v: &mut Vmcs| {
        pin(v, N::PROCESS_POSTED_INTERRUPTS);
        v.set(Field::POSTED_INTERRUPT_NOTIFICATION_VECTOR, 0xf2);
    };
    for activity in [0, 1] {
        let mut host = host(
            |v| {
                posting(v);
                v.set(Field::GUEST_ACTIVITY_STATE, activity);
            },
            |a| {
                a.nop()?;
                a.cpuid()
            },
        );
        host.set_word(at::POSTED + 8, 1 << 1);
        // ON, and software's bits, which stay.
        host.set_word(at::POSTED + 32, 0xab00_0001);
        let reason = host.enter(|cpu| cpu.set_interrupt_line(Some(0xf2)));
        assert_eq!(reason, Ok(E::VMCALL.0.into()));
        assert_eq!(host.read(STATUS), 0x4100);
        assert_eq!(host.word(at::POSTED + 8), 0);
        assert_eq!(host.word(at::POSTED + 32), 0xab00_0000);
    }
    let mut other = host(posting, |a| a.cpuid());
    let reason = other.enter(|cpu| cpu.set_interrupt_line(Some(0x55)));
    assert_eq!(reason, Ok(E::EXTERNAL_INTERRUPT.0.into()));
    let event = Field::VM_EXIT_INTERRUPTION_INFORMATION;
    assert_eq!(other.read(event), 0x8000_0055);
}

#[test]
fn accesses_to_the_apic_access_page_go_to_the_virtual_apic_page() {
    let mut host = Host::new(
        Guest::Long,
        |v| {
            proc(v, P::USE_TPR_SHADOW);
            secondary(
                v,
                S::VIRTUALIZE_APIC_ACCESSES | S::APIC_REGISTER_VIRTUALIZATION,
            );
        },
        |a| {
            a.mov(rbx, at::APIC_ACCESS)?;
            a.mov(dword_ptr(rbx + 0x80), 0x55)?;
            a.mov(dword_ptr(rbx + 0x310), -1)?;
            a.mov(eax, dword_ptr(rbx + 0x80))?;
            a.vmcall()
        },
    );
    host.set_word(at::APIC_ACCESS + 0x80, 0x99);
    assert_eq!(host.reason(), E::VMCALL);
    assert_eq!(host.cpu.general_registers()[0], 0x55);
    assert_eq!(host.word(at::VIRTUAL_APIC + 0x80), 0x55);
    assert_eq!(host.word(at::VIRTUAL_APIC + 0x310), 0xff00_0000);
    assert_eq!(host.word(at::APIC_ACCESS + 0x80), 0x99, "untouched");
}
