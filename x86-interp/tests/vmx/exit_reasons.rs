//! Every exit reason, by a guest that causes it: reason, exit qualification, instruction length and
//! information, and where the guest stands.
//!
//! SDM Vol. 3C, "Basic VM-Exit Information", "Information for VM Exits Due to Vectored Events",
//! "Information for VM Exits Due to Instruction Execution". The expected words are written by
//! hand, bit for bit, from the tables of these sections.

mod case;

use std::collections::BTreeSet;

use iced_x86::code_asm::*;
use vmx_model::controls::{
    ExitControls as X, PinControls as N, ProcControls as P, Scope, SecondaryControls as S,
};
use vmx_model::exit_reason::ExitReason;
use vmx_model::field::Field;
use vmx_model::sample::Guest;
use vmx_model::vmcs::Vmcs;
use x86_interp::Cpu;
use x86_interp::cpuid::Profile;

use self::case::{Case, case};
use crate::host::{Host, at, exit, or, pin, proc, secondary};

const RAX: usize = 0;
const RCX: usize = 1;
const RDX: usize = 2;
const RBX: usize = 3;
const RSI: usize = 6;

/// Instruction information of `[RBX]` in 64-bit mode: 64-bit addresses, DS, no index, base RBX.
const AT_RBX: u64 = 2 << 7 | 3 << 15 | 1 << 22 | 3 << 23;
/// Instruction information: the operand is a register.
const REGISTER: u64 = 1 << 10;

/// Events, windows, timers.
fn events() -> Vec<Case> {
    use ExitReason as E;
    vec![
        Case {
            event: Some(0x8000_0306),
            ..case(E::EXCEPTION_OR_NMI, "#UD", |a| a.ud2())
                .with(|v| v.set(Field::EXCEPTION_BITMAP, 1 << 6))
        },
        Case {
            event: Some(0x8000_0b0e),
            registers: &[(RBX, 0x4000_0008)],
            field: Some((Field::VM_EXIT_INTERRUPTION_ERROR_CODE, 2)),
            ..case(E::EXCEPTION_OR_NMI, "#PF", |a| a.mov(ptr(rbx), al))
                .with(|v| v.set(Field::EXCEPTION_BITMAP, 1 << 14))
                .qualified(0x4000_0008)
        },
        Case {
            event: Some(0x8000_0301),
            rip: 1,
            ..case(E::EXCEPTION_OR_NMI, "single step", |a| a.nop())
                .with(|v| {
                    v.set(Field::EXCEPTION_BITMAP, 1 << 1);
                    v.set(Field::GUEST_RFLAGS, 0x102);
                })
                .qualified(0x4000)
        },
        Case {
            event: Some(0x8000_0603),
            ..case(E::EXCEPTION_OR_NMI, "INT3", |a| a.int3())
                .with(|v| v.set(Field::EXCEPTION_BITMAP, 1 << 3))
                .long(1)
        },
        Case {
            event: Some(0x8000_0202),
            events: Cpu::inject_nmi,
            ..case(E::EXCEPTION_OR_NMI, "NMI", |a| a.nop()).with(|v| pin(v, N::NMI_EXITING))
        },
        Case {
            event: Some(0x8000_0031),
            events: |cpu| cpu.set_interrupt_line(Some(0x31)),
            ..case(E::EXTERNAL_INTERRUPT, "an interrupt, acknowledged", |a| {
                a.nop()
            })
            .with(|v| {
                pin(v, N::EXTERNAL_INTERRUPT_EXITING);
                exit(v, X::ACKNOWLEDGE_INTERRUPT_ON_EXIT);
            })
        },
        Case {
            events: |cpu| cpu.set_interrupt_line(Some(0x31)),
            ..case(E::EXTERNAL_INTERRUPT, "an interrupt, left pending", |a| {
                a.nop()
            })
            .with(|v| pin(v, N::EXTERNAL_INTERRUPT_EXITING))
        },
        case(E::TRIPLE_FAULT, "triple fault", |a| a.ud2())
            .with(|v| v.set(Field::GUEST_IDTR_LIMIT, 0)),
        Case {
            events: Cpu::signal_init,
            ..case(E::INIT_SIGNAL, "INIT", |a| a.nop())
        },
        Case {
            prepare: |host| host.cpu.signal_init(),
            ..case(
                E::INIT_SIGNAL,
                "INIT that was blocked in VMX root operation",
                |a| a.nop(),
            )
        },
        Case {
            events: |cpu| cpu.signal_start_up(0x9a),
            ..case(E::SIPI, "SIPI", |a| a.nop())
                .with(|v| v.set(Field::GUEST_ACTIVITY_STATE, 3))
                .qualified(0x9a)
        },
        Case {
            rip: 2,
            ..case(E::INTERRUPT_WINDOW, "interrupt window", |a| {
                a.sti()?;
                a.nop()?;
                a.nop()
            })
            .with(|v| proc(v, P::INTERRUPT_WINDOW_EXITING))
        },
        case(E::NMI_WINDOW, "NMI window", |a| a.nop()).with(|v| {
            pin(v, N::NMI_EXITING | N::VIRTUAL_NMIS);
            proc(v, P::NMI_WINDOW_EXITING);
        }),
        Case {
            rip: 1,
            ..case(E::MONITOR_TRAP_FLAG, "monitor trap flag", |a| a.nop())
                .with(|v| proc(v, P::MONITOR_TRAP_FLAG))
        },
        case(E::PREEMPTION_TIMER, "preemption timer", |a| a.nop())
            .with(|v| pin(v, N::ACTIVATE_VMX_PREEMPTION_TIMER)),
        case(E::ENTRY_FAIL_GUEST_STATE, "RFLAGS[1] is 0", |a| a.nop())
            .with(|v| v.set(Field::GUEST_RFLAGS, 0)),
        Case {
            // IA32_FS_BASE must not be loaded by VM entry.
            prepare: |host| host.set_word(at::MSRS, 0xc000_0100),
            ..case(
                E::ENTRY_FAIL_MSR_LOADING,
                "IA32_FS_BASE in the MSR-load area",
                |a| a.nop(),
            )
            .with(|v| v.set(Field::VM_ENTRY_MSR_LOAD_COUNT, 1))
            .qualified(1)
        },
    ]
}

/// Instructions that exit by one control, or always.
fn instructions() -> Vec<Case> {
    use ExitReason as E;
    let rdtsc = |v: &mut Vmcs| proc(v, P::RDTSC_EXITING);
    vec![
        case(E::CPUID, "CPUID", |a| a.cpuid()).long(2),
        case(E::HLT, "HLT", |a| a.hlt())
            .with(|v| proc(v, P::HLT_EXITING))
            .long(1),
        case(E::INVD, "INVD", |a| a.invd()).long(2),
        case(E::INVLPG, "INVLPG", |a| a.invlpg(ptr(rbx + 8)))
            .with(|v| proc(v, P::INVLPG_EXITING))
            .long(4)
            .qualified(at::DATA + 8),
        case(E::RDPMC, "RDPMC", |a| a.rdpmc())
            .with(|v| proc(v, P::RDPMC_EXITING))
            .long(2),
        case(E::RDTSC, "RDTSC", |a| a.rdtsc()).with(rdtsc).long(2),
        case(E::RDTSCP, "RDTSCP", |a| a.rdtscp())
            .with(|v| {
                proc(v, P::RDTSC_EXITING);
                secondary(v, S::ENABLE_RDTSCP);
            })
            .long(3),
        case(E::MWAIT, "MWAIT", |a| a.mwait())
            .with(|v| proc(v, P::MWAIT_EXITING))
            .long(3),
        Case {
            registers: &[(RAX, at::DATA)],
            rip: 3,
            ..case(E::MWAIT, "MWAIT behind MONITOR", |a| {
                a.monitor()?;
                a.mwait()
            })
            .with(|v| proc(v, P::MWAIT_EXITING))
            .long(3)
            .qualified(1)
        },
        Case {
            registers: &[(RAX, at::DATA)],
            ..case(E::MONITOR, "MONITOR", |a| a.monitor())
                .with(|v| proc(v, P::MONITOR_EXITING))
                .long(3)
        },
        case(E::PAUSE, "PAUSE", |a| a.pause())
            .with(|v| proc(v, P::PAUSE_EXITING))
            .long(2),
        case(E::WBINVD, "WBINVD", |a| a.wbinvd())
            .with(|v| secondary(v, S::WBINVD_EXITING))
            .long(2),
        Case {
            registers: &[(RAX, 1)],
            ..case(E::XSETBV, "XSETBV", |a| a.xsetbv())
                .with(|v| or(v, Field::GUEST_CR4, 1 << 18))
                .long(3)
        },
        case(E::RDMSR, "RDMSR", |a| a.rdmsr()).long(2),
        case(E::WRMSR, "WRMSR", |a| a.wrmsr()).long(2),
        case(E::RDRAND, "RDRAND RBX", |a| a.rdrand(rbx))
            .with(|v| secondary(v, S::RDRAND_EXITING))
            .informed(4, 3 << 3 | 2 << 11),
        case(E::RDSEED, "RDSEED CX", |a| a.rdseed(cx))
            .with(|v| secondary(v, S::RDSEED_EXITING))
            .informed(4, 1 << 3),
        Case {
            prepare: has_every_feature,
            ..case(E::UMWAIT, "UMWAIT ECX", |a| a.umwait(ecx))
                .with(|v| {
                    proc(v, P::RDTSC_EXITING);
                    secondary(v, S::ENABLE_USER_WAIT_AND_PAUSE);
                })
                .informed(4, 1 << 3 | 1 << 11)
        },
        Case {
            prepare: has_every_feature,
            ..case(E::TPAUSE, "TPAUSE EBX", |a| a.tpause(ebx))
                .with(|v| {
                    proc(v, P::RDTSC_EXITING);
                    secondary(v, S::ENABLE_USER_WAIT_AND_PAUSE);
                })
                .informed(4, 3 << 3 | 1 << 11)
        },
        case(E::INVPCID, "INVPCID RCX, [RBX]", |a| {
            a.invpcid(rcx, ptr(rbx))
        })
        .with(|v| {
            proc(v, P::INVLPG_EXITING);
            secondary(v, S::ENABLE_INVPCID);
        })
        .informed(5, AT_RBX | 1 << 28),
        Case {
            // A processor with a supervisor state component.
            prepare: |host| host.cpu.msrs_mut().xss = 1 << 8,
            registers: &[(RAX, 1 << 8)],
            ..case(E::XSAVES, "XSAVES [RBX+10H]", |a| a.xsaves(ptr(rbx + 0x10)))
                .with(exits_by_xss)
                .qualified(0x10)
                .informed(4, AT_RBX)
        },
        Case {
            prepare: |host| host.cpu.msrs_mut().xss = 1 << 8,
            registers: &[(RAX, 1 << 8)],
            ..case(E::XRSTORS, "XRSTORS [RBX+10H]", |a| {
                a.xrstors(ptr(rbx + 0x10))
            })
            .with(exits_by_xss)
            .qualified(0x10)
            .informed(4, AT_RBX)
        },
        case(E::GDTR_IDTR_ACCESS, "LGDT [RBX+10H]", |a| {
            a.lgdt(ptr(rbx + 0x10))
        })
        .with(|v| secondary(v, S::DESCRIPTOR_TABLE_EXITING))
        .qualified(0x10)
        .informed(4, AT_RBX | 1 << 11 | 2 << 28),
        case(E::LDTR_TR_ACCESS, "LLDT [RBX+10H]", |a| {
            a.lldt(word_ptr(rbx + 0x10))
        })
        .with(|v| secondary(v, S::DESCRIPTOR_TABLE_EXITING))
        .qualified(0x10)
        .informed(4, AT_RBX | 2 << 28),
        case(E::LDTR_TR_ACCESS, "STR EBX", |a| a.str(ebx))
            .with(|v| secondary(v, S::DESCRIPTOR_TABLE_EXITING))
            .informed(3, REGISTER | 3 << 3 | 1 << 28),
        Case {
            prepare: |host| {
                // An available 32-bit TSS at 28H.
                host.set_word(at::GDT + 0x28, 0x0000_8914_0000_0067);
            },
            guest: Guest::Unpaged,
            ..case(E::TASK_SWITCH, "JMP 28H:0", |a| {
                a.db(&[0xea, 0, 0, 0, 0, 0x28, 0])
            })
            .qualified(0x28 | 2 << 30)
            .long(7)
        },
    ]
}

fn has_every_feature(host: &mut Host) {
    host.cpu.set_cpuid(Profile::EVERYTHING.table());
}

fn exits_by_xss(v: &mut Vmcs) {
    secondary(v, S::ENABLE_XSAVES_XRSTORS);
    v.set(Field::XSS_EXITING_BITMAP, 1 << 8);
    or(v, Field::GUEST_CR4, 1 << 18);
}

/// Control registers, debug registers, ports.
fn registers_and_ports() -> Vec<Case> {
    use ExitReason as E;
    let ts_is_the_hosts = |v: &mut Vmcs| {
        or(v, Field::CR0_GUEST_HOST_MASK, 8);
    };
    vec![
        case(E::CR_ACCESS, "MOV CR3, RBX", |a| a.mov(cr3, rbx))
            .with(|v| proc(v, P::CR3_LOAD_EXITING))
            .qualified(0x303)
            .long(3),
        case(E::CR_ACCESS, "MOV RCX, CR3", |a| a.mov(rcx, cr3))
            .with(|v| proc(v, P::CR3_STORE_EXITING))
            .qualified(0x113)
            .long(3),
        Case {
            registers: &[(RDX, 0x8000_0039)],
            ..case(E::CR_ACCESS, "MOV CR0, RDX", |a| a.mov(cr0, rdx))
                .with(ts_is_the_hosts)
                .qualified(0x200)
                .long(3)
        },
        case(E::CR_ACCESS, "CLTS", |a| a.clts())
            .with(|v| {
                or(v, Field::CR0_GUEST_HOST_MASK, 8);
                or(v, Field::CR0_READ_SHADOW, 8);
            })
            .qualified(0x20)
            .long(2),
        Case {
            registers: &[(RBX, 0x1239)],
            ..case(E::CR_ACCESS, "LMSW BX", |a| a.lmsw(bx))
                .with(ts_is_the_hosts)
                .qualified(0x1239_0030)
        },
        case(E::CR_ACCESS, "MOV CR8, RBX", |a| a.mov(cr8, rbx))
            .with(|v| proc(v, P::CR8_LOAD_EXITING))
            .qualified(0x308)
            .long(4),
        case(E::DR_ACCESS, "MOV DR7, RBX", |a| a.mov(dr7, rbx))
            .with(|v| proc(v, P::MOV_DR_EXITING))
            .qualified(0x307)
            .long(3),
        case(E::DR_ACCESS, "MOV RBX, DR6", |a| a.mov(rbx, dr6))
            .with(|v| proc(v, P::MOV_DR_EXITING))
            .qualified(0x316)
            .long(3),
        case(E::IO_INSTRUCTION, "IN AL, 60H", |a| a.in_(al, 0x60))
            .with(|v| proc(v, P::UNCONDITIONAL_IO_EXITING))
            .qualified(0x60_0048)
            .long(2),
        Case {
            registers: &[(RDX, 0x3f8), (RCX, 2), (RSI, at::DATA + 3)],
            field: Some((Field::GUEST_LINEAR_ADDRESS, at::DATA + 3)),
            ..case(E::IO_INSTRUCTION, "REP OUTSB", |a| a.rep().outsb())
                .with(|v| proc(v, P::UNCONDITIONAL_IO_EXITING))
                .qualified(0x3f8_0030)
                .informed(2, 2 << 7 | 3 << 15)
        },
    ]
}

/// VMX instructions.
fn vmx_instructions() -> Vec<Case> {
    use ExitReason as E;
    vec![
        case(E::VMCALL, "VMCALL", |a| a.vmcall()).long(3),
        case(E::VMCLEAR, "VMCLEAR [RBX+10H]", |a| {
            a.vmclear(ptr(rbx + 0x10))
        })
        .qualified(0x10)
        .informed(5, AT_RBX),
        case(E::VMLAUNCH, "VMLAUNCH", |a| a.vmlaunch()).long(3),
        case(E::VMPTRLD, "VMPTRLD [RBX+10H]", |a| {
            a.vmptrld(ptr(rbx + 0x10))
        })
        .qualified(0x10)
        .informed(4, AT_RBX),
        case(E::VMPTRST, "VMPTRST [RBX-10H]", |a| {
            a.vmptrst(ptr(rbx - 0x10))
        })
        .qualified(0x10_u64.wrapping_neg())
        .informed(4, AT_RBX),
        case(E::VMREAD, "VMREAD RBX, RCX", |a| a.vmread(rbx, rcx))
            .informed(3, REGISTER | 3 << 3 | 1 << 28),
        case(E::VMRESUME, "VMRESUME", |a| a.vmresume()).long(3),
        case(E::VMWRITE, "VMWRITE RDX, [RBX+RCX*4+10H]", |a| {
            a.vmwrite(rdx, qword_ptr(rbx + rcx * 4 + 0x10))
        })
        .qualified(0x10)
        .informed(5, 2 | 2 << 7 | 3 << 15 | 1 << 18 | 3 << 23 | 2 << 28),
        case(E::VMXOFF, "VMXOFF", |a| a.vmxoff()).long(3),
        case(E::VMXON, "VMXON [RBX+10H]", |a| a.vmxon(ptr(rbx + 0x10)))
            .qualified(0x10)
            .informed(5, AT_RBX),
        case(E::INVEPT, "INVEPT RCX, [RBX]", |a| a.invept(rcx, ptr(rbx)))
            .informed(5, AT_RBX | 1 << 28),
        case(E::INVVPID, "INVVPID RDX, [RBX]", |a| {
            a.invvpid(rdx, ptr(rbx))
        })
        .informed(5, AT_RBX | 2 << 28),
        Case {
            guest: Guest::Unpaged,
            ..case(E::VMFUNC, "VMFUNC without a VM function", |a| a.vmfunc())
                .with(|v| secondary(v, S::ENABLE_VM_FUNCTIONS))
                .long(3)
        },
    ]
}

/// APIC virtualization.
fn apic() -> Vec<Case> {
    use ExitReason as E;
    vec![
        Case {
            registers: &[(RBX, 4)],
            prepare: |host| host.set_word(at::VIRTUAL_APIC + 0x80, 0x50),
            rip: 4,
            ..case(E::TPR_BELOW_THRESHOLD, "MOV CR8, RBX", |a| {
                a.mov(cr8, rbx)?;
                a.nop()
            })
            .with(|v| {
                proc(v, P::USE_TPR_SHADOW);
                v.set(Field::TPR_THRESHOLD, 5);
            })
        },
        Case {
            registers: &[(RBX, at::APIC_ACCESS)],
            ..case(E::APIC_ACCESS, "read of an APIC register", |a| {
                a.mov(eax, ptr(rbx + 0x20))
            })
            .with(|v| secondary(v, S::VIRTUALIZE_APIC_ACCESSES))
            .qualified(0x20)
        },
        Case {
            registers: &[(RBX, at::APIC_ACCESS)],
            ..case(E::APIC_ACCESS, "write of an APIC register", |a| {
                a.mov(ptr(rbx + 0x300), eax)
            })
            .with(|v| secondary(v, S::VIRTUALIZE_APIC_ACCESSES))
            .qualified(0x1300)
        },
        case(E::APIC_ACCESS, "instruction fetch", |a| a.nop())
            .with(|v| {
                secondary(v, S::VIRTUALIZE_APIC_ACCESSES);
                v.set(Field::APIC_ACCESS_ADDRESS, at::CODE);
            })
            .qualified(0x2000),
        case(E::APIC_ACCESS, "event delivery", |a| a.int3())
            .with(|v| {
                secondary(v, S::VIRTUALIZE_APIC_ACCESSES);
                v.set(Field::APIC_ACCESS_ADDRESS, at::IDT);
            })
            .qualified(0x3030),
        Case {
            registers: &[(RBX, at::APIC_ACCESS)],
            rip: 6,
            prepare: |host| host.set_word(at::VIRTUAL_APIC + 0x120, 1 << 9),
            ..case(E::VIRTUALIZED_EOI, "EOI of a vector in the bitmap", |a| {
                a.mov(ptr(rbx + 0xb0), eax)?;
                a.nop()
            })
            .with(|v| {
                virtual_interrupts(v);
                v.set(Field::GUEST_INTERRUPT_STATUS, 0x4900);
                v.set(Field::EOI_EXIT_BITMAP_1, 1 << 9);
            })
            .qualified(0x49)
        },
        Case {
            registers: &[(RBX, at::APIC_ACCESS), (RAX, 0x55)],
            rip: 6,
            ..case(E::APIC_WRITE, "write of an LVT entry", |a| {
                a.mov(ptr(rbx + 0x320), eax)?;
                a.nop()
            })
            .with(virtual_interrupts)
            .qualified(0x320)
        },
    ]
}

fn virtual_interrupts(v: &mut Vmcs) {
    pin(v, N::EXTERNAL_INTERRUPT_EXITING);
    proc(v, P::USE_TPR_SHADOW);
    secondary(
        v,
        S::VIRTUALIZE_APIC_ACCESSES
            | S::APIC_REGISTER_VIRTUALIZATION
            | S::VIRTUAL_INTERRUPT_DELIVERY,
    );
}

/// EPT and the page-modification log.
fn ept() -> Vec<Case> {
    use ExitReason as E;
    vec![
        Case {
            guest: Guest::Unpaged,
            registers: &[(RBX, at::HOLE + 0x10)],
            field: Some((Field::GUEST_PHYSICAL_ADDRESS, at::HOLE + 0x10)),
            // A write; a linear address, final; without paging a user-mode address, writable.
            ..case(E::EPT_VIOLATION, "write to a hole", |a| {
                a.mov(dword_ptr(ebx), eax)
            })
            .qualified(0x782)
        },
        Case {
            guest: Guest::Unpaged,
            registers: &[(RBX, at::HOLE)],
            field: Some((Field::GUEST_LINEAR_ADDRESS, at::HOLE)),
            rip: at::HOLE - at::CODE,
            ..case(E::EPT_VIOLATION, "fetch from a hole", |a| a.jmp(ebx)).qualified(0x784)
        },
        Case {
            guest: Guest::Unpaged,
            registers: &[(RBX, at::MISCONFIGURED + 4)],
            field: Some((Field::GUEST_PHYSICAL_ADDRESS, at::MISCONFIGURED + 4)),
            ..case(
                E::EPT_MISCONFIGURATION,
                "read of a misconfigured page",
                |a| a.mov(eax, dword_ptr(ebx)),
            )
        },
        Case {
            guest: Guest::Unpaged,
            ..case(E::PML_FULL, "write with a full log", |a| {
                a.mov(dword_ptr(ebx), eax)
            })
            .with(|v| {
                or(v, Field::EPT_POINTER, 1 << 6);
                secondary(v, S::ENABLE_PML);
                v.set(Field::PML_INDEX, 0xffff);
            })
        },
    ]
}

fn cases() -> Vec<Case> {
    let groups = [
        events(),
        instructions(),
        registers_and_ports(),
        vmx_instructions(),
        apic(),
        ept(),
    ];
    groups.into_iter().flatten().collect()
}

#[test]
fn guests_exit_with_the_exact_information() {
    let wrong: Vec<String> = cases().iter().flat_map(Case::run).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_exit_reason_in_scope_is_caused_by_a_guest() {
    let caused: BTreeSet<u16> = cases().iter().map(|c| c.reason.0).collect();
    let wanted: BTreeSet<u16> = (0..256)
        .filter(|&n| ExitReason(n).scope() == Some(Scope::In))
        .collect();
    assert_eq!(wanted.len(), 58);
    assert_eq!(caused, wanted);
}
