//! Every check of VM entry through a guest: code in VMX root operation writes a VMCS that breaks one
//! check, field by field, and executes VMLAUNCH.
//!
//! SDM Vol. 3C, chapter "VM Entries". The VMCSs are those of the tests of `vmx-model`.

use std::sync::Arc;

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use vmx_model::addr::Hpa;
use vmx_model::arch::{AccessRights, ArchState, Efer, SegmentRegister};
use vmx_model::capability::VmxProfile;
use vmx_model::checks::{self, Consequence};
use vmx_model::exit_reason::{ENTRY_FAILURE, ExitReason};
use vmx_model::field::{Field, Kind};
use vmx_model::processor::LogicalProcessor;
use vmx_model::registry::{CpuId, VmcsRegistry};
use vmx_model::sample::{Guest, root_state, valid_vmcs};
use vmx_model::vmcs::Vmcs;
use x86_interp::bus::{EmptyBus, InstructionClock};
use x86_interp::cpuid::Profile;
use x86_interp::mem::phys::{OwnedRam, PhysMap};
use x86_interp::vmx::RootSoftware;
use x86_interp::{Cpu, Stop};

use crate::violations::{Setting, base, violations};

/// Where the samples put their regions: the current VMCS, a VMCS, a shadow VMCS.
const REGIONS: [u64; 3] = [0x2000, 0x4000, 0x6000];
const VMXON: u64 = 0x8000;
/// The hypervisor's PML4, PDPT and PD; the PD serves PAE paging as well, whose PDPTEs follow.
const TABLES: u64 = 0x1_0000;
const PDPTES: u64 = TABLES + 0x3000;
const CODE: u64 = 0x2_0000;
const FIELDS: u64 = 0x3_0000;
const MSRS: u64 = 0x4_0000;
/// The host RIP of the samples.
const HOST_RIP: u64 = 0x1000;

/// How VMLAUNCH ended, as the code that executed it sees it.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// VMfailInvalid.
    Invalid,
    /// VMfailValid with the VM-instruction error.
    Valid(u64),
    /// At the host RIP, with exit reason and qualification.
    Exit(u64, u64),
    /// Not at all.
    Stopped(Stop),
}

/// Writes the fields of the list at RSI, executes VMLAUNCH, and looks at the end of it.
fn launch(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut next = a.create_label();
    let mut done = a.create_label();
    a.set_label(&mut next)?;
    a.mov(rax, ptr(rsi))?;
    a.cmp(rax, -1)?;
    a.je(done)?;
    a.vmwrite(rax, qword_ptr(rsi + 8))?;
    a.add(rsi, 16)?;
    a.jmp(next)?;
    a.set_label(&mut done)?;
    a.vmlaunch()?;
    a.setb(bl)?;
    a.setz(bh)?;
    a.mov(eax, Field::VM_INSTRUCTION_ERROR.encoding())?;
    a.vmread(rcx, rax)?;
    a.hlt()
}

/// The same for a processor outside 64-bit mode, whose VMCS has been written already.
fn launch_only(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.vmlaunch()?;
    a.setb(bl)?;
    a.setz(bh)?;
    a.mov(eax, Field::VM_INSTRUCTION_ERROR.encoding())?;
    a.vmread(ecx, eax)?;
    a.hlt()
}

/// The host's handler of VM exits.
fn after_exit(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(ebx, -1)?;
    a.mov(eax, Field::EXIT_REASON.encoding())?;
    a.vmread(rcx, rax)?;
    a.mov(eax, Field::EXIT_QUALIFICATION.encoding())?;
    a.vmread(rdx, rax)?;
    a.hlt()
}

fn after_exit_32(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(ebx, -1)?;
    a.mov(eax, Field::EXIT_REASON.encoding())?;
    a.vmread(ecx, eax)?;
    a.mov(eax, Field::EXIT_QUALIFICATION.encoding())?;
    a.vmread(edx, eax)?;
    a.hlt()
}

fn assemble(bits: u32, at: u64, code: fn(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    let mut a = CodeAssembler::new(bits).expect("a bitness");
    code(&mut a).expect("instructions");
    a.assemble(at).expect("encodable")
}

fn memory(profile: &VmxProfile, is_long: bool) -> Arc<PhysMap> {
    let phys = PhysMap::new();
    let ram = Arc::new(OwnedRam::new(512).expect("2 MiB"));
    phys.add_owned(Hpa(0), ram).expect("an empty map");
    let put = |address: u64, word: u64| phys.write_bytes(Hpa(address), &word.to_le_bytes());
    let revision = u64::from(profile.caps.revision_id());
    for region in [REGIONS[0], REGIONS[1], VMXON] {
        put(region, revision);
    }
    put(REGIONS[2], revision | 1 << 31);
    put(TABLES, (TABLES + 0x1000) | 7);
    put(TABLES + 0x1000, (TABLES + 0x2000) | 7);
    put(TABLES + 0x2000, 0x87);
    put(PDPTES, (TABLES + 0x2000) | 1);
    let (bits, start, handler) = match is_long {
        true => (64, launch as fn(&mut _) -> _, after_exit as fn(&mut _) -> _),
        false => (
            32,
            launch_only as fn(&mut _) -> _,
            after_exit_32 as fn(&mut _) -> _,
        ),
    };
    phys.write_bytes(Hpa(CODE), &assemble(bits, CODE, start));
    phys.write_bytes(Hpa(HOST_RIP), &assemble(bits, HOST_RIP, handler));
    phys
}

/// Writes the list of fields that the code is to write.
fn write_fields(phys: &PhysMap, profile: &VmxProfile, vmcs: &Vmcs) {
    let writable =
        |field: &Field| profile.fields.contains(*field) && field.kind() != Kind::ReadOnly;
    let mut at = FIELDS;
    for field in Field::ALL.into_iter().filter(writable) {
        let pair = [u64::from(field.encoding()), vmcs.get(field)];
        phys.write_bytes(Hpa(at), &pair.map(u64::to_le_bytes).concat());
        at += 16;
    }
    phys.write_bytes(Hpa(at), &u64::MAX.to_le_bytes());
}

/// Returns CR3 of a hypervisor in this mode.
fn tables(state: &ArchState) -> u64 {
    match state.efer.contains(Efer::LMA) {
        true => TABLES,
        false => PDPTES,
    }
}

/// The hypervisor's own state: the sample's, with paging that works.
fn hypervisor(state: &ArchState) -> ArchState {
    let mut state = state.clone();
    state.cr3 = tables(&state);
    state.rip = CODE;
    if !state.efer.contains(Efer::LMA) {
        state.pdptes = [(TABLES + 0x2000) | 1, 0, 0, 0];
        state.segment_mut(SegmentRegister::Cs).access = AccessRights(0xc09b);
    }
    state
}

/// Lets code write `vmcs` and execute VMLAUNCH.
fn vmlaunch(setting: &Setting, vmcs: &Vmcs, prepare: impl Fn(&PhysMap)) -> End {
    let is_long = setting.state.efer.contains(Efer::LMA);
    let phys = memory(&setting.profile, is_long);
    prepare(&phys);
    write_fields(&phys, &setting.profile, vmcs);
    let bus = Box::new(EmptyBus);
    let mut cpu = Cpu::new(Arc::clone(&phys), bus, Box::<InstructionClock>::default());
    cpu.set_cpuid(Profile::EVERYTHING.table());
    let profile = Arc::new(setting.profile.clone());
    let mut processor = LogicalProcessor::new(CpuId(0), profile, VmcsRegistry::new());
    let mut memory = &*phys;
    let steps = [
        processor.vmxon(Hpa(VMXON), &memory),
        processor.vmclear(Hpa(REGIONS[0]), &mut memory),
        processor.vmptrld(Hpa(REGIONS[0]), &memory),
    ];
    assert!(steps.into_iter().all(|s| s.expect("executed").is_success()));
    if !is_long {
        *processor.current_vmcs_mut().expect("current") = vmcs.clone();
    }
    let _ = cpu.attach_processor(Box::new(processor), RootSoftware::Guest);
    cpu.set_arch_state(&hypervisor(&setting.state));
    let mut registers = [0; 16];
    registers[6] = FIELDS;
    cpu.set_general_registers(&registers);
    match cpu.run(10_000) {
        Stop::Halt => {}
        stop => return End::Stopped(stop),
    }
    let [_, c, d, b, ..] = cpu.general_registers();
    match b & 0xffff {
        0x0001 => End::Invalid,
        0x0100 => End::Valid(c),
        0xffff => End::Exit(c, d),
        other => panic!("flags {other:#x}"),
    }
}

/// Makes the samples usable by a hypervisor that runs.
fn with_host_tables(mut vmcs: Vmcs, state: &ArchState) -> Vmcs {
    vmcs.set(Field::HOST_CR3, tables(state));
    vmcs
}

fn entered(end: &End) -> bool {
    matches!(end, End::Exit(reason, _) if reason & u64::from(ENTRY_FAILURE) == 0)
}

#[test]
fn every_check_decides_a_vmlaunch_that_a_guest_executes() {
    let mut wrong = Vec::new();
    for violation in violations() {
        let setting = base(&violation);
        let mut vmcs = with_host_tables(setting.vmcs.clone(), &setting.state);
        if !violation.with_others && violation.environment.is_none() {
            let end = vmlaunch(&setting, &vmcs, |_| {});
            if !entered(&end) {
                wrong.push(format!("{} before: {end:x?}", violation.check));
            }
        }
        violation.apply(&mut vmcs);
        let check = checks::by_id(&violation.check).expect("a check");
        let wanted = match check.group.consequence() {
            Consequence::InvalidControls => End::Valid(7),
            Consequence::InvalidHostState => End::Valid(8),
            Consequence::InvalidGuestState => {
                let reason = u32::from(ExitReason::ENTRY_FAIL_GUEST_STATE.0) | ENTRY_FAILURE;
                End::Exit(reason.into(), check.qualification)
            }
        };
        let end = vmlaunch(&setting, &vmcs, |_| {});
        if end != wanted {
            wrong.push(format!("{}: {end:x?}, not {wanted:x?}", violation.check));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn an_entry_of_the_msr_load_area_decides_a_vmlaunch_that_a_guest_executes() {
    let entry = |index: u64, data| [0x174, 3, index, data];
    let bad = [
        ("msr-load-fs-base", entry(0xc000_0100, 0)),
        ("msr-load-gs-base", entry(0xc000_0101, 0)),
        ("msr-load-x2apic", entry(0x80b, 0)),
        ("msr-load-smm-only", entry(0x9b, 0)),
        ("msr-load-model-specific", entry(0x79, 0)),
        ("msr-load-reserved", entry(0xc000_0102 | 1 << 32, 0)),
        ("msr-load-wrmsr", entry(0xc000_0102, 1 << 63)),
    ];
    let profile = VmxProfile::emulator_default();
    let state = root_state(&profile);
    let setting = Setting {
        vmcs: with_host_tables(valid_vmcs(&profile, Guest::Long), &state),
        state,
        profile,
    };
    let with_count = |count| {
        let mut vmcs = setting.vmcs.clone();
        vmcs.set(Field::VM_ENTRY_MSR_LOAD_ADDRESS, MSRS);
        vmcs.set(Field::VM_ENTRY_MSR_LOAD_COUNT, count);
        vmcs
    };
    let reason = u32::from(ExitReason::ENTRY_FAIL_MSR_LOADING.0) | ENTRY_FAILURE;
    let fails_at = |number| End::Exit(reason.into(), number);
    let put = |phys: &PhysMap, at: u64, words: &[u64]| {
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        phys.write_bytes(Hpa(at), &bytes);
    };
    for (rule, words) in bad {
        let end = vmlaunch(&setting, &with_count(2), |phys| put(phys, MSRS, &words));
        assert_eq!(end, fails_at(2), "{rule}");
    }
    let good = entry(0xc000_0102, 1);
    let end = vmlaunch(&setting, &with_count(2), |phys| put(phys, MSRS, &good));
    assert!(entered(&end), "{end:x?}");
    let fill = |phys: &PhysMap| (0..513).for_each(|n| put(phys, MSRS + 16 * n, &[0x174, 3]));
    let end = vmlaunch(&setting, &with_count(513), fill);
    assert_eq!(end, fails_at(513), "msr-load-count-limit");
}
