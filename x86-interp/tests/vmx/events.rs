//! Events of guests: what exits, in which order, what is injected, and what an exit leaves.
//!
//! SDM Vol. 3C, "Event Injection", "Information for VM Exits That Occur During Event Delivery",
//! "Other Causes of VM Exits"; Vol. 3A, "Prioritization of Concurrent Events".

use iced_x86::code_asm::*;
use vmx_model::arch::{Activity, Interruptibility, Rflags};
use vmx_model::controls::{PinControls as N, ProcControls as P, SecondaryControls as S};
use vmx_model::exit_reason::ExitReason as E;
use vmx_model::field::Field;
use vmx_model::sample::Guest;
use vmx_model::vmcs::Vmcs;
use x86_interp::Cpu;
use x86_interp::cpuid::Profile;

use crate::host::{Code, Host, at, or, pin, proc, secondary};

const INJECT: Field = Field::VM_ENTRY_INTERRUPTION_INFORMATION;
const EVENT: Field = Field::VM_EXIT_INTERRUPTION_INFORMATION;
const DELIVERY: Field = Field::IDT_VECTORING_INFORMATION;

fn nops(a: &mut CodeAssembler) -> Result<(), iced_x86::IcedError> {
    a.nop()?;
    a.nop()?;
    a.nop()
}

fn long(change: impl Fn(&mut Vmcs), code: Code) -> Host {
    Host::new(Guest::Long, change, code)
}

#[test]
fn the_host_starts_afresh_after_an_exit() {
    let mut host = long(
        |v| {
            v.set(INJECT, 0x8000_0700);
            v.set(Field::GUEST_RFLAGS, 0x8d7);
            v.set(Field::GUEST_ACTIVITY_STATE, 1);
            v.set(Field::GUEST_DR7, 0x455);
        },
        nops,
    );
    assert_eq!(host.reason(), E::MONITOR_TRAP_FLAG);
    let state = host.cpu.arch_state();
    assert_eq!(state.rflags, Rflags::FIXED1);
    assert_eq!(state.activity, Activity::Active);
    assert_eq!(state.interruptibility, Interruptibility::empty());
    assert_eq!(
        (state.pending_debug, state.dr7, state.debugctl),
        (0, 0x400, 0)
    );
    assert_eq!(host.read(INJECT) >> 31, 0, "the valid bit is cleared");
    assert_eq!(host.read(Field::GUEST_RIP), at::CODE);
}

#[test]
fn an_exit_during_delivery_names_the_event_and_its_length() {
    for (injected, length, error_code) in [
        (0x8000_0030, 0, 0x183),
        (0x8000_0430, 2, 0x182),
        (0x8000_0603, 1, 0x1a),
        (0x8000_0202, 0, 0x13),
    ] {
        let mut host = long(
            |v| {
                v.set(INJECT, injected);
                v.set(Field::VM_ENTRY_INSTRUCTION_LENGTH, length);
                v.set(Field::EXCEPTION_BITMAP, 1 << 13);
                v.set(Field::GUEST_RFLAGS, 0x202);
            },
            nops,
        );
        assert_eq!(host.reason(), E::EXCEPTION_OR_NMI, "{injected:#x}");
        assert_eq!(host.read(EVENT), 0x8000_0b0d);
        assert_eq!(
            host.read(Field::VM_EXIT_INTERRUPTION_ERROR_CODE),
            error_code
        );
        assert_eq!(host.read(DELIVERY), injected);
        if length != 0 {
            assert_eq!(host.read(Field::VM_EXIT_INSTRUCTION_LENGTH), length);
        }
        assert_eq!(host.read(Field::GUEST_RIP), at::CODE);
    }
}

#[test]
fn a_double_fault_that_exits_is_no_exit_during_delivery() {
    let mut host = long(|v| v.set(Field::EXCEPTION_BITMAP, 1 << 8), |a| a.ud2());
    assert_eq!(host.reason(), E::EXCEPTION_OR_NMI);
    assert_eq!(host.read(EVENT), 0x8000_0b08);
    assert_eq!(host.read(Field::VM_EXIT_INTERRUPTION_ERROR_CODE), 0);
    assert_eq!(host.read(DELIVERY) >> 31, 0);
}

#[test]
fn a_second_exception_is_asked_about_before_it_becomes_a_double_fault() {
    let mut host = long(|v| v.set(Field::EXCEPTION_BITMAP, 1 << 13), |a| a.ud2());
    assert_eq!(host.reason(), E::EXCEPTION_OR_NMI);
    assert_eq!(host.read(EVENT), 0x8000_0b0d);
    assert_eq!(host.read(DELIVERY), 0x8000_0306);
}

#[test]
fn an_event_that_exits_changes_neither_dr6_nor_cr2() {
    let bitmap = |v: &mut Vmcs| {
        v.set(Field::EXCEPTION_BITMAP, 1 << 14 | 1 << 1);
        v.set(Field::GUEST_RFLAGS, 0x102);
    };
    let mut host = long(bitmap, |a| a.nop());
    host.cpu.system_registers_mut().dr6 = 0xffff_0ff0;
    assert_eq!(host.reason(), E::EXCEPTION_OR_NMI);
    assert_eq!(host.read(Field::EXIT_QUALIFICATION), 0x4000);
    assert_eq!(host.cpu.system_registers_mut().dr6, 0xffff_0ff0);
    let mut host = long(
        |v| v.set(Field::EXCEPTION_BITMAP, 1 << 14),
        |a| a.mov(rax, qword_ptr(0x4000_0000)),
    );
    host.cpu.system_registers_mut().cr2 = 0x1234;
    assert_eq!(host.reason(), E::EXCEPTION_OR_NMI);
    assert_eq!(host.read(Field::EXIT_QUALIFICATION), 0x4000_0000);
    assert_eq!(host.cpu.system_registers_mut().cr2, 0x1234);
}

#[test]
fn int_n_does_not_exit_but_int1_int3_and_exceptions_do() {
    let rows: [(Code, u64); 3] = [
        (|a| a.int1(), 0x8000_0501),
        (|a| a.int3(), 0x8000_0603),
        (|a| a.ud2(), 0x8000_0306),
    ];
    let all = |v: &mut Vmcs| v.set(Field::EXCEPTION_BITMAP, 0xffff_ffff);
    for (code, event) in rows {
        let mut host = long(all, code);
        assert_eq!(host.reason(), E::EXCEPTION_OR_NMI);
        assert_eq!(host.read(EVENT), event);
        assert_eq!(host.read(Field::GUEST_RIP), at::CODE);
    }
    let mut host = long(all, |a| a.int(6));
    host.set_handler(6);
    assert_eq!(host.reason(), E::VMCALL);
    assert_eq!(host.read(Field::GUEST_RIP), at::HANDLER);
}

#[test]
fn an_injected_event_pushes_what_its_type_says() {
    // The interruption information, the length, the words on the stack: error code or RIP first.
    for (injected, length, pushed) in [
        (0x8000_0040, 0, [at::CODE, 8]),
        (0x8000_0440, 2, [at::CODE + 2, 8]),
        (0x8000_0b0d, 0, [0x1234, at::CODE]),
        (0x8000_0306, 0, [at::CODE, 8]),
        (0x8000_0501, 1, [at::CODE + 1, 8]),
    ] {
        let mut host = long(
            |v| {
                v.set(INJECT, injected);
                v.set(Field::VM_ENTRY_INSTRUCTION_LENGTH, length);
                v.set(Field::VM_ENTRY_EXCEPTION_ERROR_CODE, 0x1234);
                v.set(Field::EXCEPTION_BITMAP, 0xffff_ffff);
                pin(v, N::EXTERNAL_INTERRUPT_EXITING | N::NMI_EXITING);
                v.set(Field::GUEST_RFLAGS, 0x202);
            },
            nops,
        );
        host.set_handler(injected & 0xff);
        assert_eq!(host.reason(), E::VMCALL, "{injected:#x}");
        let stack = host.read(Field::GUEST_RSP);
        assert_eq!(
            [host.word(stack), host.word(stack + 8)],
            pushed,
            "{injected:#x}"
        );
        let flags = stack + 16 + u64::from(injected & 0x800 != 0) * 8;
        assert_eq!(host.word(flags), 0x202, "RF is that of the guest's RFLAGS");
    }
}

#[test]
fn an_injected_nmi_blocks_virtual_nmis_until_iret() {
    let mut host = long(
        |v| {
            pin(v, N::NMI_EXITING | N::VIRTUAL_NMIS);
            proc(v, P::NMI_WINDOW_EXITING);
            v.set(INJECT, 0x8000_0202);
        },
        nops,
    );
    host.set_handler(2);
    assert_eq!(host.reason(), E::VMCALL);
    assert_eq!(host.read(Field::GUEST_INTERRUPTIBILITY_STATE), 8);
    host.skip();
    assert_eq!(host.reason(), E::NMI_WINDOW);
    assert_eq!(host.read(Field::GUEST_INTERRUPTIBILITY_STATE), 0);
    assert_eq!(host.read(Field::GUEST_RIP), at::CODE);
}

#[test]
fn without_virtual_nmis_iret_leaves_nmis_blocked() {
    let mut host = long(
        |v| {
            pin(v, N::NMI_EXITING);
            v.set(INJECT, 0x8000_0202);
        },
        |a| a.vmcall(),
    );
    host.set_handler(2);
    assert_eq!(host.reason(), E::VMCALL);
    host.skip();
    let reason = host.enter(Cpu::inject_nmi).expect("a VM exit");
    assert_eq!(reason, u64::from(E::VMCALL.0), "the NMI waits");
    assert_eq!(host.read(Field::GUEST_RIP), at::CODE);
}

#[test]
fn events_that_exit_in_hlt_save_hlt() {
    type Row = (fn(&mut Vmcs), fn(&mut Cpu), E);
    let rows: [Row; 6] = [
        (
            |v| pin(v, N::EXTERNAL_INTERRUPT_EXITING),
            |cpu| cpu.set_interrupt_line(Some(0x20)),
            E::EXTERNAL_INTERRUPT,
        ),
        (
            |v| pin(v, N::NMI_EXITING),
            Cpu::inject_nmi,
            E::EXCEPTION_OR_NMI,
        ),
        (|_| {}, Cpu::signal_init, E::INIT_SIGNAL),
        (
            |v| {
                proc(v, P::INTERRUPT_WINDOW_EXITING);
                v.set(Field::GUEST_RFLAGS, 0x202);
            },
            |_| {},
            E::INTERRUPT_WINDOW,
        ),
        (
            |v| {
                pin(v, N::NMI_EXITING | N::VIRTUAL_NMIS);
                proc(v, P::NMI_WINDOW_EXITING);
            },
            |_| {},
            E::NMI_WINDOW,
        ),
        (
            |v| pin(v, N::ACTIVATE_VMX_PREEMPTION_TIMER),
            |_| {},
            E::PREEMPTION_TIMER,
        ),
    ];
    for (change, events, wanted) in rows {
        let in_hlt = |v: &mut Vmcs| {
            v.set(Field::GUEST_ACTIVITY_STATE, 1);
            change(v);
        };
        let mut host = long(in_hlt, nops);
        assert_eq!(host.enter(events), Ok(wanted.0.into()));
        assert_eq!(host.read(Field::GUEST_ACTIVITY_STATE), 1, "{wanted:?}");
        assert_eq!(host.read(Field::GUEST_RIP), at::CODE);
    }
}

/// Everything is pending at once; what exits is taken away, one after the other.
#[test]
fn concurrent_events_exit_in_the_order_of_their_priorities() {
    let mut host = long(
        |v| {
            pin(
                v,
                N::EXTERNAL_INTERRUPT_EXITING
                    | N::NMI_EXITING
                    | N::VIRTUAL_NMIS
                    | N::ACTIVATE_VMX_PREEMPTION_TIMER,
            );
            proc(
                v,
                P::USE_TPR_SHADOW | P::NMI_WINDOW_EXITING | P::INTERRUPT_WINDOW_EXITING,
            );
            secondary(v, S::VIRTUALIZE_APIC_ACCESSES);
            v.set(Field::TPR_THRESHOLD, 5);
            v.set(Field::GUEST_RFLAGS, 0x202);
            v.set(Field::EXCEPTION_BITMAP, 1 << 1);
        },
        nops,
    );
    host.cpu.signal_init();
    host.cpu.inject_nmi();
    host.cpu.set_interrupt_line(Some(0x31));
    type Mend = fn(&mut Host);
    let order: [(E, u64, Mend); 8] = [
        (E::TPR_BELOW_THRESHOLD, 0, |h| {
            h.write(Field::TPR_THRESHOLD, 0);
        }),
        (E::INIT_SIGNAL, 0, |_| {}),
        (E::MONITOR_TRAP_FLAG, 0, |h| h.write(INJECT, 0)),
        (E::EXCEPTION_OR_NMI, 0x8000_0301, |h| {
            h.write(Field::GUEST_PENDING_DEBUG_EXCEPTIONS, 0);
        }),
        (E::PREEMPTION_TIMER, 0, |h| {
            h.write(Field::VMX_PREEMPTION_TIMER_VALUE, 0xffff);
        }),
        (E::NMI_WINDOW, 0, |h| {
            let proc = h.read(Field::PROC_CONTROLS) & !u64::from(P::NMI_WINDOW_EXITING.bits());
            h.write(Field::PROC_CONTROLS, proc);
        }),
        (E::EXCEPTION_OR_NMI, 0x8000_0202, |_| {}),
        (E::INTERRUPT_WINDOW, 0, |_| {}),
    ];
    for (n, (wanted, event, mend)) in order.into_iter().enumerate() {
        if n < 3 {
            host.write(INJECT, 0x8000_0700);
        }
        if n < 4 {
            host.write(Field::GUEST_PENDING_DEBUG_EXCEPTIONS, 0x4000);
        }
        assert_eq!(host.reason(), wanted, "{n}");
        assert_eq!(host.read(EVENT), event, "{n}");
        assert_eq!(host.read(Field::GUEST_RIP), at::CODE, "{n}");
        mend(&mut host);
    }
    let proc = host.read(Field::PROC_CONTROLS) & !u64::from(P::INTERRUPT_WINDOW_EXITING.bits());
    host.write(Field::PROC_CONTROLS, proc);
    assert_eq!(host.reason(), E::EXTERNAL_INTERRUPT);
}

#[test]
fn blocking_that_entry_loads_lasts_for_one_instruction() {
    for blocking in [1, 2] {
        let mut host = long(
            |v| {
                proc(v, P::INTERRUPT_WINDOW_EXITING);
                v.set(Field::GUEST_INTERRUPTIBILITY_STATE, blocking);
                v.set(Field::GUEST_RFLAGS, 0x202);
            },
            nops,
        );
        assert_eq!(host.reason(), E::INTERRUPT_WINDOW);
        assert_eq!(host.read(Field::GUEST_RIP), at::CODE + 1);
    }
}

#[test]
fn a_start_up_ipi_is_dropped_unless_the_guest_waits_for_it() {
    let mut host = long(|_| {}, |a| a.vmcall());
    let reason = host.enter(|cpu| cpu.signal_start_up(0x10));
    assert_eq!(reason, Ok(E::VMCALL.0.into()));
}

/// #UD, CPL and I/O-permission faults come before VM exits; MOV DR exits first.
#[test]
fn faults_of_privilege_come_before_exits() {
    let gp = Some(0x8000_0b0d);
    let rows: [(Code, E, Option<u64>); 8] = [
        (|a| a.hlt(), E::EXCEPTION_OR_NMI, gp),
        (|a| a.invd(), E::EXCEPTION_OR_NMI, gp),
        (|a| a.rdmsr(), E::EXCEPTION_OR_NMI, gp),
        (|a| a.mov(cr3, rax), E::EXCEPTION_OR_NMI, gp),
        (|a| a.invlpg(ptr(rax)), E::EXCEPTION_OR_NMI, gp),
        (|a| a.in_(al, 0x60), E::EXCEPTION_OR_NMI, gp),
        (|a| a.mov(rax, dr7), E::DR_ACCESS, None),
        (|a| a.cpuid(), E::CPUID, None),
    ];
    for (code, reason, event) in rows {
        let mut host = long(
            |v| {
                v.set(Field::GUEST_CS_SELECTOR, 0x0b);
                v.set(Field::GUEST_CS_ACCESS_RIGHTS, 0xa0fb);
                v.set(Field::GUEST_SS_SELECTOR, 0x13);
                v.set(Field::GUEST_SS_ACCESS_RIGHTS, 0xc0f3);
                v.set(Field::EXCEPTION_BITMAP, 1 << 13);
                v.set(Field::GUEST_TR_BASE, at::DATA);
                proc(
                    v,
                    P::HLT_EXITING
                        | P::CR3_LOAD_EXITING
                        | P::MOV_DR_EXITING
                        | P::INVLPG_EXITING
                        | P::UNCONDITIONAL_IO_EXITING,
                );
            },
            code,
        );
        // The I/O-map base lies beyond the limit of the TSS.
        host.set_word(at::DATA + 0x60, u64::MAX);
        assert_eq!(host.reason(), reason);
        assert_eq!(host.read(EVENT), event.unwrap_or(0));
    }
}

#[test]
fn the_guest_reads_the_time_stamp_counter_scaled_and_offset() {
    const OFFSET: u64 = 1 << 40;
    let read: Code = |a| {
        a.rdtsc()?;
        a.vmcall()?;
        a.mov(ecx, 0x10)?;
        a.rdmsr()?;
        a.vmcall()
    };
    for (scaling, factor) in [(false, 1), (true, 4)] {
        let mut host = long(
            |v| {
                proc(v, P::USE_TSC_OFFSETTING | P::USE_MSR_BITMAPS);
                v.set(Field::TSC_OFFSET, OFFSET);
                if scaling {
                    secondary(v, S::USE_TSC_SCALING);
                    v.set(Field::TSC_MULTIPLIER, factor << 48);
                }
            },
            read,
        );
        host.cpu.msrs_mut().tsc_offset = 1000;
        for _ in 0..2 {
            assert_eq!(host.reason(), E::VMCALL);
            let [low, _, high, ..] = host.cpu.general_registers();
            let seen = (high << 32 | low) - OFFSET;
            let root = host.cpu.read_msr(0x10).expect("the TSC");
            assert!(
                (1000 * factor..=root * factor).contains(&seen),
                "{seen} {root}"
            );
            host.skip();
        }
    }
}

/// A wait may end before its deadline, by the guest's TSC, and before the operating system's limit:
/// here always at once, and so never by the limit.
#[test]
fn user_waits_end_without_the_time_limit() {
    let mut host = long(
        |v| {
            proc(v, P::USE_TSC_OFFSETTING);
            v.set(Field::TSC_OFFSET, 1 << 40);
            secondary(v, S::ENABLE_USER_WAIT_AND_PAUSE);
        },
        |a| {
            a.mov(ebx, 1)?;
            a.rdtsc()?;
            a.add(edx, 1)?;
            a.stc()?;
            a.tpause(ebx)?;
            a.setb(cl)?;
            a.xor(eax, eax)?;
            a.xor(edx, edx)?;
            a.stc()?;
            a.tpause(ebx)?;
            a.setb(ch)?;
            a.vmcall()
        },
    );
    host.cpu.set_cpuid(Profile::EVERYTHING.table());
    host.cpu.msrs_mut().umwait_control = 1 << 2;
    assert_eq!(host.reason(), E::VMCALL);
    assert_eq!(host.cpu.general_registers()[1] & 0xffff, 0);
    assert!(host.cpu.retired() < 100);
}

#[test]
fn a_failed_entry_writes_reason_and_qualification_only() {
    let mut host = long(
        |v| {
            v.set(Field::GUEST_RFLAGS, 0);
            or(v, INJECT, 0x8000_0030);
        },
        nops,
    );
    let reason = host.enter(|_| {}).expect("an exit reason");
    assert_eq!(reason, 0x8000_0021);
    assert_eq!(host.read(INJECT), 0x8000_0030, "the valid bit stays");
    assert_eq!(host.read(Field::GUEST_RFLAGS), 0);
    host.write(Field::GUEST_RFLAGS, 0x202);
    host.set_handler(0x30);
    assert_eq!(
        host.reason(),
        E::VMCALL,
        "VMLAUNCH once more: it is not launched"
    );
}
