//! What the sanitizer sees of a guest's memory: accesses to VMX structures in use, and translations
//! that EPT does not back any more (SDM Vol. 3C, "Software Access to Related Structures" and
//! "Guidelines for Use of the INVEPT Instruction").

use iced_x86::code_asm::*;
use vmx_model::addr::Hpa;
use vmx_model::exit_reason::ExitReason as E;
use vmx_model::processor::Invalidation;
use vmx_model::sample::Guest;
use vmx_model::sanitizer::{Item, Sanitizer};
use x86_interp::vmx::RootSoftware;

use crate::host::{Code, Host, at, set_ept_entry};

/// A host whose sanitizer has seen all since VMXON.
fn sanitized(code: Code) -> (Host, Sanitizer) {
    let mut host = Host::new(Guest::Unpaged, |_| {}, code);
    let mut processor = host.cpu.detach_processor().expect("attached");
    let sanitizer = Sanitizer::new(processor.profile().caps.clone());
    let mut memory = &*host.phys;
    let (vmxon, vmcs) = (Hpa(at::VMXON), Hpa(at::VMCS));
    let before = [processor.vmclear(vmcs, &mut memory), processor.vmxoff()];
    let _ = processor.set_observer(Some(Box::new(sanitizer.clone())));
    let after = [
        processor.vmxon(vmxon, &memory),
        processor.vmclear(vmcs, &mut memory),
        processor.vmptrld(vmcs, &memory),
    ];
    let mut steps = before.into_iter().chain(after);
    assert!(steps.all(|step| step.expect("executed").is_success()));
    let _ = host.cpu.attach_processor(processor, RootSoftware::Native);
    (host, sanitizer)
}

/// Runs `code` to its VMCALL and returns the items that were reported.
fn items(code: Code) -> Vec<(Item, Option<Hpa>)> {
    let (mut host, sanitizer) = sanitized(code);
    assert_eq!(host.reason(), E::VMCALL);
    let reports = sanitizer.take_reports();
    // Each code begins with the access.
    assert!(reports.iter().all(|r| r.rip == Some(at::CODE)));
    reports.iter().map(|r| (r.item, r.vmcs)).collect()
}

#[test]
fn accesses_to_regions_in_use_are_reported_once_each() {
    let vmcs = Some(Hpa(at::VMCS));
    let vmxon = Some(Hpa(at::VMXON));
    let rows: [(Code, Item, Option<Hpa>); 5] = [
        (
            |a| {
                a.mov(eax, dword_ptr(at::VMCS as u32 + 0x100))?;
                a.vmcall()
            },
            Item::MemoryAccessActive,
            vmcs,
        ),
        (
            |a| {
                a.mov(byte_ptr(at::VMCS as u32 + 0xfff), al)?;
                a.vmcall()
            },
            Item::MemoryAccessActive,
            vmcs,
        ),
        (
            |a| {
                a.lock().add(dword_ptr(at::VMCS as u32 + 0x100), eax)?;
                a.vmcall()
            },
            Item::MemoryAccessActive,
            vmcs,
        ),
        (
            |a| {
                a.mov(dword_ptr(at::VMCS as u32), eax)?;
                a.vmcall()
            },
            Item::WriteRevisionActive,
            vmcs,
        ),
        (
            |a| {
                a.mov(dword_ptr(at::VMXON as u32 + 8), eax)?;
                a.vmcall()
            },
            Item::MemoryAccessActive,
            vmxon,
        ),
    ];
    for (code, item, region) in rows {
        assert_eq!(items(code), [(item, region)]);
    }
}

const DATA_ONLY: Code = |a| {
    a.mov(ecx, 0x1234_u32)?;
    a.mov(dword_ptr(at::DATA as u32), ecx)?;
    a.lock().add(dword_ptr(at::DATA as u32), ecx)?;
    a.xchg(dword_ptr(at::DATA as u32 + 4), ecx)?;
    a.mov(esi, at::DATA as u32)?;
    a.mov(edi, at::DATA as u32 + 0xffc)?;
    a.movsd()?;
    a.movsd()?;
    a.push(dword_ptr(at::DATA as u32 + 0x1000))?;
    a.pop(eax)?;
    a.vmcall()
};

#[test]
fn other_accesses_are_not_reported_and_do_the_same() {
    assert_eq!(items(DATA_ONLY), []);
    let (mut watched, _) = sanitized(DATA_ONLY);
    let mut other = Host::new(Guest::Unpaged, |_| {}, DATA_ONLY);
    assert_eq!(watched.reason(), other.reason());
    for address in (at::DATA..at::DATA + 0x2000).step_by(8) {
        assert_eq!(watched.word(address), other.word(address), "{address:#x}");
    }
    assert_eq!(watched.cpu.arch_state(), other.cpu.arch_state());
}

/// Reads a page, exits, and reads it again.
const READ_TWICE: Code = |a| {
    for _ in 0..2 {
        a.mov(eax, dword_ptr(at::DATA as u32))?;
        a.vmcall()?;
    }
    Ok(())
};

/// Changes the EPT entry of the page between the two reads; returns the second exit, and what was
/// reported.
fn remapped(entry: u64, invept: Option<Invalidation>) -> (E, Vec<Item>) {
    let (mut host, sanitizer) = sanitized(READ_TWICE);
    assert_eq!(host.reason(), E::VMCALL);
    host.skip();
    set_ept_entry(&host.phys, at::DATA, entry);
    if let Some(which) = invept {
        host.cpu.drop_translations(which);
    }
    let exit = host.reason();
    let reports = sanitizer.take_reports();
    (exit, reports.iter().map(|report| report.item).collect())
}

#[test]
fn a_mapping_that_changed_needs_invept() {
    const ELSEWHERE: u64 = at::STACK | 0x37;
    const ABSENT: u64 = 0;
    const SINGLE: Invalidation = Invalidation::SingleContextEpt { ep4ta: at::EPT };
    const OTHER: Invalidation = Invalidation::SingleContextEpt { ep4ta: at::CODE };
    for (entry, exit) in [(ELSEWHERE, E::VMCALL), (ABSENT, E::EPT_VIOLATION)] {
        assert_eq!(remapped(entry, None), (exit, vec![Item::StaleTlb]));
        assert_eq!(remapped(entry, Some(OTHER)), (exit, vec![Item::StaleTlb]));
        assert_eq!(remapped(entry, Some(SINGLE)), (exit, vec![]));
        let all = Some(Invalidation::AllContextsEpt);
        assert_eq!(remapped(entry, all), (exit, vec![]));
    }
}

#[test]
fn a_mapping_that_permits_more_needs_no_invept() {
    // From read-only to read and write, after an EPT violation and without one.
    let (mut host, sanitizer) = sanitized(|a| {
        a.mov(eax, dword_ptr(at::DATA as u32))?;
        a.mov(dword_ptr(at::DATA as u32), eax)?;
        a.vmcall()
    });
    set_ept_entry(&host.phys, at::DATA, at::DATA | 0x31);
    assert_eq!(host.reason(), E::EPT_VIOLATION);
    set_ept_entry(&host.phys, at::DATA, at::DATA | 0x37);
    assert_eq!(host.reason(), E::VMCALL);
    assert_eq!(sanitizer.take_reports(), []);
    assert_eq!(remapped(at::DATA | 0x37, None), (E::VMCALL, vec![]));
}
