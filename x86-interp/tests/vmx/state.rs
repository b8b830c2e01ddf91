//! Guest state across VM exits, MSR areas, and what guests may not do (SDM Vol. 3C, "Saving Guest
//! State", "Saving MSRs", "VMX Aborts", "Restrictions on VMX Operation").

use iced_x86::code_asm::*;
use vmx_model::addr::Hpa;
use vmx_model::arch::SegmentRegister;
use vmx_model::capability::VmxProfile;
use vmx_model::controls::{
    ExitControls as X, PinControls as N, ProcControls as P, SecondaryControls as S,
};
use vmx_model::event::Exception;
use vmx_model::exit_reason::ExitReason as E;
use vmx_model::field::Field;
use vmx_model::sample::{Guest, root_state};
use vmx_model::vmcs::Vmcs;
use x86_interp::Cpu;

use crate::host::{Code, Host, at, exit, pin, proc, secondary};

const EVENT: Field = Field::VM_EXIT_INTERRUPTION_INFORMATION;
const GP: u64 = 0x8000_0b0d;

fn long(change: impl Fn(&mut Vmcs), code: Code) -> Host {
    Host::new(Guest::Long, change, code)
}

#[test]
fn what_a_guest_changes_is_saved() {
    let mut host = long(
        |v| {
            proc(v, P::USE_MSR_BITMAPS);
            exit(v, X::SAVE_DEBUG_CONTROLS | X::SAVE_IA32_PAT);
            v.set(Field::GUEST_CR4, v.get(Field::GUEST_CR4) | 1 << 16);
        },
        |a| {
            for (msr, value) in [(0x174, 0x77), (0x277, 0x0006_0606)] {
                a.mov(ecx, msr)?;
                a.mov(eax, value)?;
                a.xor(edx, edx)?;
                a.wrmsr()?;
            }
            a.mov(rax, 0x455_u64)?;
            a.mov(dr7, rax)?;
            a.mov(rax, 0x1234_5678_u64)?;
            a.wrgsbase(rax)?;
            a.mov(rsp, at::DATA)?;
            a.std()?;
            a.vmcall()
        },
    );
    assert_eq!(host.reason(), E::VMCALL);
    for (field, value) in [
        (Field::GUEST_IA32_SYSENTER_CS, 0x77),
        (Field::GUEST_IA32_PAT, 0x0006_0606),
        (Field::GUEST_DR7, 0x455),
        (Field::GUEST_GS_BASE, 0x1234_5678),
        (Field::GUEST_RSP, at::DATA),
        (Field::GUEST_CR3, at::PML4),
        (Field::GUEST_GDTR_BASE, at::GDT),
        (Field::GUEST_IDTR_LIMIT, 0xfff),
        (Field::VMCS_LINK_POINTER, u64::MAX),
    ] {
        assert_eq!(host.read(field), value, "{}", field.name());
    }
    assert_ne!(host.read(Field::GUEST_RFLAGS) & 1 << 10, 0, "DF");
}

#[test]
fn the_base_of_fs_is_loaded_with_a_null_selector_too() {
    let mut host = long(
        |v| {
            v.set(Field::HOST_FS_SELECTOR, 0);
            v.set(Field::HOST_FS_BASE, 0x1234_5000);
        },
        |a| a.vmcall(),
    );
    assert_eq!(host.reason(), E::VMCALL);
    let state = host.cpu.arch_state();
    let segment = state.segment(SegmentRegister::Fs);
    assert!(segment.access.is_unusable());
    assert_eq!(segment.base, 0x1234_5000);
}

#[test]
fn smsw_and_mov_see_the_same_shadow_of_cr0() {
    let mut host = long(
        |v| {
            v.set(Field::CR0_GUEST_HOST_MASK, 0xa);
            v.set(Field::CR0_READ_SHADOW, 0x8);
        },
        |a| {
            a.smsw(rbx)?;
            a.mov(rcx, cr0)?;
            a.vmcall()
        },
    );
    assert_eq!(host.reason(), E::VMCALL);
    let [_, by_mov, _, by_smsw, ..] = host.cpu.general_registers();
    assert_eq!((by_mov, by_smsw & 0xa), (by_smsw, 8));
    assert_eq!(host.read(Field::GUEST_CR0) & 8, 0);
}

#[test]
fn rdtscp_reads_the_processors_own_tsc_aux() {
    let mut host = long(
        |v| secondary(v, S::ENABLE_RDTSCP),
        |a| {
            a.rdtscp()?;
            a.vmcall()
        },
    );
    host.cpu.msrs_mut().tsc_aux = 0x4321;
    assert_eq!(host.reason(), E::VMCALL);
    assert_eq!(host.cpu.general_registers()[1], 0x4321);
}

#[test]
fn the_preemption_timer_is_saved_if_the_control_says_so() {
    for (control, wanted) in [
        (X::empty(), 0x1000),
        (X::SAVE_VMX_PREEMPTION_TIMER_VALUE, 0x1000 - 3),
    ] {
        let mut host = long(
            |v| {
                pin(v, N::ACTIVATE_VMX_PREEMPTION_TIMER);
                exit(v, control);
                v.set(Field::VMX_PREEMPTION_TIMER_VALUE, 0x1000);
            },
            |a| {
                // The default profile counts every tick, and a tick is an instruction.
                for _ in 0..3 {
                    a.nop()?;
                }
                a.vmcall()
            },
        );
        assert_eq!(host.reason(), E::VMCALL);
        assert_eq!(host.read(Field::VMX_PREEMPTION_TIMER_VALUE), wanted);
    }
}

#[test]
fn msrs_are_stored_and_loaded_by_an_exit_or_it_aborts() {
    let stores = |v: &mut Vmcs| v.set(Field::VM_EXIT_MSR_STORE_COUNT, 1);
    let mut host = long(
        |v| {
            stores(v);
            v.set(Field::GUEST_IA32_SYSENTER_CS, 0x99);
        },
        |a| a.vmcall(),
    );
    host.set_word(at::MSRS, 0x174);
    assert_eq!(host.reason(), E::VMCALL);
    assert_eq!(host.word(at::MSRS + 8), 0x99);
    let mut host = long(|v| v.set(Field::VM_EXIT_MSR_LOAD_COUNT, 1), |a| a.vmcall());
    host.set_word(at::MSRS, 0xc000_0102);
    host.set_word(at::MSRS + 8, 0x5555);
    assert_eq!(host.reason(), E::VMCALL);
    assert_eq!(host.cpu.read_msr(0xc000_0102), Ok(0x5555));
    // An x2APIC register can neither be stored nor loaded.
    type Change = fn(&mut Vmcs);
    let aborts: [(Change, u64); 2] = [
        (|v| v.set(Field::VM_EXIT_MSR_STORE_COUNT, 1), 1),
        (|v| v.set(Field::VM_EXIT_MSR_LOAD_COUNT, 1), 4),
    ];
    for (change, indicator) in aborts {
        let mut host = long(change, |a| a.vmcall());
        host.set_word(at::MSRS, 0x80b);
        let stopped = host.enter(|_| {}).expect_err("a VMX abort");
        assert!(
            stopped.starts_with(&format!("VmxAbort({indicator})")),
            "{stopped}"
        );
        assert_eq!(host.word(at::VMCS) >> 32, indicator);
    }
}

/// SDM Vol. 3C, "VM-Entry Failures During or After Loading Guest State": host state is loaded as by
/// a VM exit. What the area has loaded before, and host state does not replace, stays.
#[test]
fn an_entry_that_fails_at_its_msr_load_area_keeps_what_was_loaded_before() {
    let loads = |v: &mut Vmcs| v.set(Field::VM_ENTRY_MSR_LOAD_COUNT, 3);
    let mut host = long(loads, |a| a.nop());
    // IA32_PAT, IA32_SYSENTER_CS; IA32_FS_BASE must not be there.
    for (n, (msr, value)) in (0..).zip([(0x277, 0x0006_0606), (0x174, 0x77), (0xc000_0100, 0)]) {
        host.set_word(at::MSRS + 16 * n, msr);
        host.set_word(at::MSRS + 16 * n + 8, value);
    }
    assert_eq!(host.reason(), E::ENTRY_FAIL_MSR_LOADING);
    assert_eq!(host.read(Field::EXIT_QUALIFICATION), 3);
    assert_eq!(host.cpu.read_msr(0x277), Ok(0x0006_0606));
    let of_host = host.read(Field::HOST_IA32_SYSENTER_CS);
    assert_eq!(host.cpu.read_msr(0x174), Ok(of_host));
}

#[test]
fn a_fault_of_iret_reports_that_nmis_are_unblocked() {
    let mut host = long(
        |v| {
            pin(v, N::NMI_EXITING | N::VIRTUAL_NMIS);
            v.set(Field::GUEST_INTERRUPTIBILITY_STATE, 8);
            v.set(Field::EXCEPTION_BITMAP, 1 << 14);
            v.set(Field::GUEST_RSP, 0x4000_0000);
        },
        |a| a.iretq(),
    );
    assert_eq!(host.reason(), E::EXCEPTION_OR_NMI);
    assert_eq!(host.read(EVENT), 0x8000_1b0e);
    assert_eq!(host.read(Field::GUEST_INTERRUPTIBILITY_STATE), 0);
}

#[test]
fn the_monitor_trap_flag_exits_between_iterations_and_before_hlt_sleeps() {
    let mtf = |v: &mut Vmcs| proc(v, P::MONITOR_TRAP_FLAG);
    let mut host = long(mtf, |a| a.rep().stosb());
    let mut registers = [0; 16];
    (registers[1], registers[7]) = (3, at::DATA);
    host.cpu.set_general_registers(&registers);
    assert_eq!(host.reason(), E::MONITOR_TRAP_FLAG);
    assert_eq!(host.read(Field::GUEST_RIP), at::CODE);
    assert_eq!(host.cpu.general_registers()[1], 2);
    let mut host = long(mtf, |a| a.hlt());
    assert_eq!(host.reason(), E::MONITOR_TRAP_FLAG);
    assert_eq!(host.read(Field::GUEST_ACTIVITY_STATE), 1);
    assert_eq!(host.read(Field::GUEST_RIP), at::CODE + 1);
}

#[test]
fn control_registers_keep_what_vmx_operation_fixes() {
    let rows: [Code; 2] = [
        // CR4 without VMXE; CR0 without NE.
        |a| {
            a.mov(eax, 0x20)?;
            a.mov(cr4, rax)
        },
        |a| {
            a.mov(eax, 0x8001_0011_u32)?;
            a.mov(cr0, rax)
        },
    ];
    for code in rows {
        let mut host = long(|v| v.set(Field::EXCEPTION_BITMAP, 1 << 13), code);
        assert_eq!(host.reason(), E::EXCEPTION_OR_NMI);
        assert_eq!(host.read(EVENT), GP);
        // The same in VMX root operation.
        let mut root = long(|_| {}, code);
        let mut state = root_state(&VmxProfile::emulator_default());
        (state.cr3, state.rip) = (at::PML4, at::CODE);
        root.cpu.set_arch_state(&state);
        assert_eq!(root.cpu.execute_plain(), Ok(()));
        assert_eq!(root.cpu.execute_plain(), Err(Exception::gp(0).into()));
    }
}

#[test]
fn an_unusable_segment_faults_when_it_is_used() {
    let mut host = Host::new(
        Guest::Unpaged,
        |v| {
            v.set(Field::GUEST_DS_ACCESS_RIGHTS, 0x1_0000);
            v.set(Field::EXCEPTION_BITMAP, 1 << 13);
        },
        |a| a.mov(eax, dword_ptr(at::DATA as u32)),
    );
    assert_eq!(host.reason(), E::EXCEPTION_OR_NMI);
    assert_eq!(host.read(EVENT), GP);
    assert_eq!(host.read(Field::GUEST_DS_ACCESS_RIGHTS), 0x1_0000);
}

#[test]
fn shutdown_and_wait_for_sipi_block_what_they_should() {
    let exits = |v: &mut Vmcs| pin(v, N::EXTERNAL_INTERRUPT_EXITING | N::NMI_EXITING);
    let everything = |cpu: &mut Cpu| {
        cpu.set_interrupt_line(Some(0x20));
        cpu.signal_start_up(0x55);
        cpu.signal_init();
    };
    let mut host = long(
        |v| {
            exits(v);
            v.set(Field::GUEST_ACTIVITY_STATE, 2);
        },
        |a| a.nop(),
    );
    assert_eq!(host.enter(everything), Ok(E::INIT_SIGNAL.0.into()));
    assert_eq!(host.read(Field::GUEST_ACTIVITY_STATE), 2);
    let mut host = long(
        |v| {
            exits(v);
            v.set(Field::GUEST_ACTIVITY_STATE, 3);
        },
        |a| a.nop(),
    );
    assert_eq!(host.enter(everything), Ok(E::SIPI.0.into()));
    assert_eq!(host.read(Field::EXIT_QUALIFICATION), 0x55);
}

#[test]
fn pdptes_are_loaded_through_ept_without_a_linear_address() {
    let mut host = Host::new(
        Guest::Unpaged,
        |_| {},
        |a| {
            a.mov(eax, 0x2020)?;
            a.mov(cr4, eax)?;
            a.mov(eax, at::HOLE as u32)?;
            a.mov(cr3, eax)?;
            a.mov(eax, cr0)?;
            a.or(eax, 0x8000_0000_u32 as i32)?;
            a.mov(cr0, eax)
        },
    );
    assert_eq!(host.reason(), E::EPT_VIOLATION);
    assert_eq!(host.read(Field::EXIT_QUALIFICATION), 1);
    assert_eq!(host.read(Field::GUEST_PHYSICAL_ADDRESS), at::HOLE);
}

#[test]
fn the_mode_of_a_guest_that_changed_it_is_saved() {
    // An unrestricted guest without paging leaves protected mode.
    let mut host = Host::new(
        Guest::Unpaged,
        |_| {},
        |a| {
            a.mov(eax, cr0)?;
            a.and(eax, -2)?;
            a.mov(cr0, eax)?;
            a.vmcall()
        },
    );
    assert_eq!(host.reason(), E::VMCALL);
    assert_eq!(host.read(Field::GUEST_CR0) & 1, 0);
    let entry = host.read(Field::ENTRY_CONTROLS);
    assert_eq!(entry >> 9 & 1, 0, "IA-32e mode guest");
    let mut host = long(|_| {}, |a| a.vmcall());
    assert_eq!(host.reason(), E::VMCALL);
    assert_eq!(host.read(Field::ENTRY_CONTROLS) >> 9 & 1, 1);
    let state = host.cpu.arch_state();
    assert_eq!(state.segment(SegmentRegister::Cs).access.dpl(), 0);
}

/// A guest reads a page before and after the host changes its mapping; in between the host executes
/// `invalidate` by software that it runs.
fn read_twice(vpid: u64, has_ept: bool, invalidate: impl Fn(&mut Host)) -> (u64, u64) {
    const OTHER: u64 = 0x17_0000;
    let guest = if has_ept { Guest::Unpaged } else { Guest::Long };
    let mut host = Host::new(
        guest,
        |v| {
            v.set(Field::HOST_CR3, at::PML4);
            v.set(Field::HOST_RIP, at::HANDLER);
            if vpid != 0 {
                secondary(v, S::ENABLE_VPID);
                v.set(Field::VPID, vpid);
            }
        },
        |a| {
            // The same bytes in 32-bit and 64-bit mode: MOV ECX, [EBX]; VMCALL; JMP back.
            a.db(&[0x8b, 0x0b, 0x0f, 0x01, 0xc1, 0xeb, 0xf9])
        },
    );
    // A page table for the first 2 MiB, which EPT has already.
    let table = if has_ept {
        at::EPT + 0x3000
    } else {
        at::PML4 + 0x3000
    };
    if !has_ept {
        for n in 0..512 {
            host.set_word(table + 8 * n, n << 12 | 7);
        }
        host.set_word(at::PML4 + 0x2000, table | 7);
    }
    let entry = table + 8 * (at::DATA >> 12);
    let rights = host.word(entry) & 0xfff;
    host.set_word(at::DATA, 1);
    host.set_word(OTHER, 2);
    let mut registers = [0; 16];
    registers[3] = at::DATA;
    host.cpu.set_general_registers(&registers);
    let read = |host: &mut Host| {
        assert_eq!(host.reason(), E::VMCALL);
        host.skip();
        host.cpu.general_registers()[1]
    };
    let first = read(&mut host);
    host.set_word(entry, OTHER | rights);
    invalidate(&mut host);
    (first, read(&mut host))
}

/// Lets code in VMX root operation, at the host RIP, execute one invalidation.
fn execute(host: &mut Host, code: &[u8], kind: u64, descriptor: [u64; 2]) {
    host.set_word(at::MSRS, descriptor[0]);
    host.set_word(at::MSRS + 8, descriptor[1]);
    host.phys.write_bytes(Hpa(at::HANDLER), code);
    let mut registers = host.cpu.general_registers();
    (registers[0], registers[1]) = (kind, at::MSRS);
    host.cpu.set_general_registers(&registers);
    assert_eq!(host.cpu.arch_state().rip, at::HANDLER);
    assert_eq!(host.cpu.execute_plain(), Ok(()));
    let carry_or_zero = host.cpu.arch_state().rflags.bits() & 0x41;
    assert_eq!(carry_or_zero, 0, "VMsucceed");
    (registers[0], registers[1]) = (0, 0);
    host.cpu.set_general_registers(&registers);
}

/// INVEPT RAX, [RCX]; INVVPID RAX, [RCX].
const INVEPT: [u8; 5] = [0x66, 0x0f, 0x38, 0x80, 0x01];
const INVVPID: [u8; 5] = [0x66, 0x0f, 0x38, 0x81, 0x01];

#[test]
fn translations_are_tagged_and_invalidated_by_vpid() {
    assert_eq!(read_twice(0, false, |_| {}), (1, 2), "VPID 0 is flushed");
    assert_eq!(read_twice(7, false, |_| {}), (1, 1), "still there");
    let rows = [
        (0, [7, at::DATA], 2),
        (1, [7, 0], 2),
        (2, [0, 0], 2),
        (3, [7, 0], 2),
        (1, [8, 0], 1),
    ];
    for (kind, descriptor, wanted) in rows {
        let invalidate = |host: &mut Host| execute(host, &INVVPID, kind, descriptor);
        assert_eq!(read_twice(7, false, invalidate), (1, wanted), "type {kind}");
    }
}

#[test]
fn invept_drops_guest_physical_mappings_and_invvpid_keeps_none_that_it_names() {
    for (kind, descriptor) in [(1, [at::EPT | 0x1e, 0]), (2, [0, 0])] {
        let invalidate = |host: &mut Host| execute(host, &INVEPT, kind, descriptor);
        assert_eq!(read_twice(7, true, invalidate), (1, 2), "type {kind}");
    }
    let other = |host: &mut Host| execute(host, &INVEPT, 1, [0x9000 | 0x1e, 0]);
    assert_eq!(read_twice(7, true, other), (1, 1), "another EP4TA");
    let by_vpid = |host: &mut Host| execute(host, &INVVPID, 1, [7, 0]);
    assert_eq!(
        read_twice(7, true, by_vpid),
        (1, 1),
        "INVVPID leaves guest-physical mappings"
    );
}

#[test]
fn vm_entry_ends_the_monitoring_of_an_address() {
    let mut host = long(
        |v| proc(v, P::MWAIT_EXITING),
        |a| {
            a.monitor()?;
            a.vmcall()?;
            a.mwait()
        },
    );
    let mut registers = [0; 16];
    registers[0] = at::DATA;
    host.cpu.set_general_registers(&registers);
    assert_eq!(host.reason(), E::VMCALL);
    host.skip();
    assert_eq!(host.reason(), E::MWAIT);
    assert_eq!(host.read(Field::EXIT_QUALIFICATION), 0, "not armed");
}
