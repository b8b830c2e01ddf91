//! Defects that users found in the VMX of Bochs, as cases: what the SDM says instead. The number in
//! a name is that of the report in the tracker of Bochs (github.com/bochs-emu/Bochs).
//!
//! The same images, booted by a BIOS on Bochs 2.7 (model corei7_skylake_x), fail there for 132, 211,
//! 217, both MOV to CR0 of 614, 648 and 862_vmxon_without_paging; that version has no posted
//! interrupts (556).

use crate::hypervisor::image::{GUEST_DATA, GUEST_DIRECTORY, PML, POSTED, enable_ept};
use crate::hypervisor::{Hypervisor, Start, hypervisor, vmxon};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use vmx_model::controls::{ExitControls, PinControls, ProcControls, SecondaryControls};
use vmx_model::field::Field;
use vmx_model::sample::Guest as Mode;
use vmx_model::vmcs::Vmcs;

pub(super) fn rows() -> Vec<Hypervisor> {
    let mut rows = vmxon_rows();
    rows.extend(cr0_rows());
    rows.extend(nmi_rows());
    rows.extend(posted_interrupt_rows());
    rows.extend([pending_debug(), page_modification_log()]);
    rows
}

/// SDM Vol. 3C, "VMXON": #GP(0) where CR0 has not the fixed bits of VMX operation. 862: Bochs looked
/// at CR0.PE instead of CR0.PG.
fn vmxon_rows() -> Vec<Hypervisor> {
    vec![
        vmxon(
            "862_vmxon_without_paging",
            Start::VmxonUnpaged,
            "exception 13 (0x0)",
        ),
        vmxon("862_vmxon_with_paging", Start::VmxonPaged, "VMX operation"),
    ]
}

const GP: u64 = 1 << 13;
const UD: u64 = 1 << 6;
const EVENT: &[Field] = &[
    Field::EXIT_REASON,
    Field::VM_EXIT_INTERRUPTION_INFORMATION,
    Field::VM_EXIT_INTERRUPTION_ERROR_CODE,
    Field::GUEST_CR0,
];
const FAILED_ENTRY: &[Field] = &[Field::EXIT_REASON, Field::EXIT_QUALIFICATION];
const FAILED_BY_GUEST_STATE: &str = "exit-reason=0x80000021 exit-qualification=0x0";
const GP_BY_MOV_TO_CR0: &str = "exit-reason=0x0 vm-exit-interruption-information=0x80000b0d \
     vm-exit-interruption-error-code=0x0 guest-cr0=0x80010031";
const PE: i32 = 1;
const PG: u32 = 1 << 31;

/// Changes CR0 by AND.
fn and_cr0(a: &mut CodeAssembler, mask: u32) -> Result<(), IcedError> {
    a.mov(eax, cr0)?;
    a.and(eax, mask as i32)?;
    a.mov(cr0, eax)
}

/// SDM Vol. 3C, "Changes to Instruction Behavior in VMX Non-Root Operation", MOV to CR0: #GP for a
/// value not supported in VMX operation, but PE and PG are free under "unrestricted guest"; and
/// "Checks on Guest Control Registers, Debug Registers, and MSRs". 614: Bochs did not look at
/// "unrestricted guest".
///
/// 863 is about RSM to an unrestricted guest, which set PE and PG. This processor is never in SMM,
/// and outside SMM RSM is #UD (SDM Vol. 2B, "RSM") and leaves them as they are.
fn cr0_rows() -> Vec<Hypervisor> {
    let intercepts = |vmcs: &mut Vmcs| vmcs.set(Field::EXCEPTION_BITMAP, GP | UD);
    vec![
        hypervisor(
            "614_pg_is_fixed_without_unrestricted_guest",
            Mode::Protected,
            |a| and_cr0(a, !PG),
            GP_BY_MOV_TO_CR0,
        )
        .vmcs(intercepts)
        .reads(EVENT),
        hypervisor(
            "614_pe_and_pg_are_fixed_without_unrestricted_guest",
            Mode::Protected,
            |a| and_cr0(a, !(PG | 1)),
            GP_BY_MOV_TO_CR0,
        )
        .vmcs(intercepts)
        .reads(EVENT),
        hypervisor(
            "614_entry_without_pg_and_unrestricted_guest",
            Mode::Protected,
            |a| a.vmcall(),
            FAILED_BY_GUEST_STATE,
        )
        .vmcs(|vmcs| vmcs.set(Field::GUEST_CR0, 0x1_0031))
        .reads(FAILED_ENTRY),
        hypervisor(
            "614_unrestricted_guest_clears_pe",
            Mode::Unpaged,
            |a| {
                and_cr0(a, !(PE as u32))?;
                a.vmcall()
            },
            "exit-reason=0x12 guest-cr0=0x10030",
        )
        .reads(&[Field::EXIT_REASON, Field::GUEST_CR0]),
        hypervisor(
            "863_rsm_outside_smm_leaves_cr0_of_an_unrestricted_guest",
            Mode::Real,
            |a| a.rsm(),
            "exit-reason=0x0 vm-exit-interruption-information=0x80000306 \
             vm-exit-interruption-error-code=0x0 guest-cr0=0x10030",
        )
        .vmcs(intercepts)
        .reads(EVENT),
    ]
}

fn set_pin(vmcs: &mut Vmcs, controls: PinControls) {
    let pin = vmcs.pin() | controls;
    vmcs.set(Field::PIN_CONTROLS, pin.bits().into());
}

fn set_secondary(vmcs: &mut Vmcs, controls: SecondaryControls) {
    let secondary = vmcs.secondary() | controls;
    vmcs.set(Field::SECONDARY_PROC_CONTROLS, secondary.bits().into());
}

/// Injects an NMI into a guest that is blocked by NMI.
fn inject_blocked_nmi(vmcs: &mut Vmcs) {
    vmcs.set(Field::VM_ENTRY_INTERRUPTION_INFORMATION, 0x8000_0202);
    vmcs.set(Field::GUEST_INTERRUPTIBILITY_STATE, 8);
}

fn virtual_nmis(vmcs: &mut Vmcs) {
    set_pin(vmcs, PinControls::NMI_EXITING | PinControls::VIRTUAL_NMIS);
}

/// Sends an NMI to this processor, by the local APIC's interrupt command register.
fn send_nmi(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(ebx, 0xfee0_0300_u32)?;
    match a.bitness() {
        64 => a.mov(dword_ptr(rbx), 0x4_4400),
        _ => a.mov(dword_ptr(ebx), 0x4_4400),
    }
}

fn wait(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.mov(ecx, 10_000)?;
    a.set_label(&mut again)?;
    a.dec(ecx)?;
    a.jnz(again)
}

/// SDM Vol. 3C, "Checks on Guest Non-Register State": no blocking by NMI where an NMI is injected
/// under "virtual NMIs", and only there (648, from discussion 626: Bochs had no such check).
/// "Architectural State Before a VM Exit": an NMI blocks further ones, but only after its VM exit
/// completes (211).
fn nmi_rows() -> Vec<Hypervisor> {
    vec![
        hypervisor(
            "648_virtual_nmi_into_blocking_by_nmi",
            Mode::Long,
            |a| a.vmcall(),
            FAILED_BY_GUEST_STATE,
        )
        .vmcs(|vmcs| {
            virtual_nmis(vmcs);
            inject_blocked_nmi(vmcs);
        })
        .reads(FAILED_ENTRY),
        hypervisor(
            "626_nmi_into_blocking_by_nmi_without_virtual_nmis",
            Mode::Long,
            |a| a.cpuid(),
            "exit-reason=0x12 guest-rip=0x8400 guest-interruptibility-state=0x8",
        )
        .vmcs(inject_blocked_nmi)
        .reads(&[
            Field::EXIT_REASON,
            Field::GUEST_RIP,
            Field::GUEST_INTERRUPTIBILITY_STATE,
        ]),
        hypervisor(
            "211_nmi_exit_blocks_nmis_in_root_operation",
            Mode::Unpaged,
            |a| {
                let mut here = a.create_label();
                send_nmi(a)?;
                a.set_label(&mut here)?;
                a.jmp(here)
            },
            NMI_EXITS,
        )
        .vmcs(virtual_nmis)
        .reads(&[
            Field::EXIT_REASON,
            Field::VM_EXIT_INTERRUPTION_INFORMATION,
            Field::GUEST_INTERRUPTIBILITY_STATE,
        ])
        .resumes(2, |a| {
            send_nmi(a)?;
            wait(a)
        }),
    ]
}

/// The second NMI is held back in root operation and exits after VMRESUME.
const NMI_EXITS: &str = "exit-reason=0x0 vm-exit-interruption-information=0x80000202 \
     guest-interruptibility-state=0x0; exit-reason=0x0 \
     vm-exit-interruption-information=0x80000202 guest-interruptibility-state=0x0";

fn post_interrupts(vmcs: &mut Vmcs, descriptor: u64) {
    set_pin(
        vmcs,
        PinControls::EXTERNAL_INTERRUPT_EXITING | PinControls::PROCESS_POSTED_INTERRUPTS,
    );
    set_secondary(vmcs, SecondaryControls::VIRTUAL_INTERRUPT_DELIVERY);
    let proc = vmcs.proc() | ProcControls::USE_TPR_SHADOW;
    vmcs.set(Field::PROC_CONTROLS, proc.bits().into());
    let exit = vmcs.exit() | ExitControls::ACKNOWLEDGE_INTERRUPT_ON_EXIT;
    vmcs.set(Field::EXIT_CONTROLS, exit.bits().into());
    vmcs.set(Field::POSTED_INTERRUPT_NOTIFICATION_VECTOR, 0xf2);
    vmcs.set(Field::POSTED_INTERRUPT_DESCRIPTOR_ADDRESS, descriptor);
}

/// SDM Vol. 3C, "VM-Execution Control Fields": bits 5:0 of the posted-interrupt descriptor address
/// are 0. 556: Bochs wanted bits 11:0 to be 0.
fn posted_interrupt_rows() -> Vec<Hypervisor> {
    vec![
        hypervisor(
            "556_posted_interrupt_descriptor_of_64_bytes_in_a_page",
            Mode::Long,
            |a| a.vmcall(),
            "exit-reason=0x12",
        )
        .vmcs(|vmcs| post_interrupts(vmcs, POSTED + 0x40)),
        hypervisor(
            "556_posted_interrupt_descriptor_that_is_not_aligned",
            Mode::Long,
            |a| a.vmcall(),
            "VMfailValid(7)",
        )
        .vmcs(|vmcs| post_interrupts(vmcs, POSTED + 0x20)),
    ]
}

/// SDM Vol. 3C, "Saving Non-Register State": pending debug exceptions are 0 unless one was pending.
/// 132: POPF sets RFLAGS.TF, CPUID exits instead of executing, and Bochs set BS.
fn pending_debug() -> Hypervisor {
    hypervisor(
        "132_no_pending_bs_at_the_exit_of_an_instruction_under_tf",
        Mode::Long,
        |a| {
            a.push(0x102)?;
            a.popfq()?;
            a.cpuid()
        },
        "exit-reason=0xa guest-rip=0x8006 guest-rflags=0x102 guest-pending-debug-exceptions=0x0",
    )
    .reads(&[
        Field::EXIT_REASON,
        Field::GUEST_RIP,
        Field::GUEST_RFLAGS,
        Field::GUEST_PENDING_DEBUG_EXCEPTIONS,
    ])
}

/// SDM Vol. 3C, "Page-Modification Logging": what is logged is the guest-physical address with bits
/// 11:0 cleared. 217: those of the guest's paging structures were not. The code and the data are
/// mapped by the second entry of the page directory, at 4 MiB.
fn page_modification_log() -> Hypervisor {
    hypervisor(
        "217_page_modification_log_entries_are_aligned",
        Mode::Protected,
        |a| {
            a.mov(dword_ptr(0x40_0000 + GUEST_DATA + 0xabc), 1)?;
            a.vmcall()
        },
        "exit-reason=0x12 pml-index=0x1fd; [0x140ff8]=0xa000; [0x140ff0]=0x9000; [0x140fe8]=0x0",
    )
    .vmcs(|vmcs| {
        enable_ept(vmcs);
        set_secondary(vmcs, SecondaryControls::ENABLE_PML);
        let rip = vmcs.get(Field::GUEST_RIP);
        vmcs.set(Field::GUEST_RIP, 0x40_0000 + rip);
    })
    .reads(&[Field::EXIT_REASON, Field::PML_INDEX])
    .words(&[PML + 0xff8, PML + 0xff0, PML + 0xfe8])
}

const _: () = assert!(GUEST_DIRECTORY == 0xa000 && GUEST_DATA == 0x9000 && PML == 0x14_0000);
