//! An image of our own on a machine with some processors, and what such code does again and again.
#![allow(dead_code, reason = "each test binary uses some of it")]

use std::io::Write;
use std::sync::{Arc, Mutex};

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use vmx_model::addr::Hpa;
use vmx_model::capability::VmxProfile;
use x86_machine::{Config, End, Image, Machine, Outcome};

/// Where the image is loaded; its code is behind the multiboot header.
pub(crate) const BASE: u32 = 0x10_0000;
pub(crate) const ENTRY: u32 = BASE + 0x10;
/// Where application processors begin in real mode (start-up vector 8), and then in 32-bit code.
pub(crate) const TRAMPOLINE: u64 = 0x8000;
pub(crate) const APPLICATION: u32 = 0x12_0000;
pub(crate) const PAGE_DIRECTORY: u32 = 0x20_0000;
/// A table of pointers to VMXON regions, one of pointers to VMCS regions.
pub(crate) const VMXON_POINTERS: u32 = 0x9000;
pub(crate) const VMCS_POINTERS: u32 = 0x9100;
/// Words that the processors share.
pub(crate) const COUNT: u32 = 0x500;
pub(crate) const RESULT: u32 = 0x504;
pub(crate) const NUMBER: u32 = 0x508;
pub(crate) const SIGNAL: u32 = 0x518;
pub(crate) const LIMIT_TICKS: u64 = 20_000_000;

pub(crate) type Code = fn(&mut CodeAssembler) -> Result<(), IcedError>;

pub(crate) fn assemble(
    bitness: u32,
    at: u32,
    code: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Vec<u8> {
    let mut a = CodeAssembler::new(bitness).expect("a bitness");
    code(&mut a).expect("instructions");
    a.assemble(u64::from(at)).expect("encodable")
}

/// Returns an ELF32 file with a multiboot header and this code.
pub(crate) fn multiboot_elf(code: &[u8]) -> Vec<u8> {
    let mut words = vec![
        0x464c_457f,
        0x0001_0101,
        0,
        0,
        0x0003_0002,
        1,
        ENTRY,
        52,
        0,
        0,
    ];
    words.extend([0x0020_0034, 1, 0]);
    let length = code.len() as u32 + 16;
    words.extend([1, 84, BASE, BASE, length, length + 64, 7, 4]);
    words.extend([0x1bad_b002, 0, 0x1bad_b002_u32.wrapping_neg(), 0]);
    let mut file: Vec<u8> = words.iter().flat_map(|w: &u32| w.to_le_bytes()).collect();
    file.extend(code);
    file
}

/// A serial line that the test can read.
#[derive(Clone, Default)]
pub(crate) struct Line(pub(crate) Arc<Mutex<Vec<u8>>>);

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("one thread").extend(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

pub(crate) fn machine(cpus: usize, sanitizes: bool, code: Code) -> (Machine, Line) {
    let config = Config {
        cpus,
        memory_mib: 8,
        sanitizes,
        ..Config::default()
    };
    let line = Line::default();
    let mut machine = Machine::new(&config, Box::new(line.clone())).expect("a configuration");
    let bytes = multiboot_elf(&assemble(32, ENTRY, code));
    let image = Image {
        bytes,
        command_line: "a b".to_owned(),
        module: None,
    };
    machine.load(&image).expect("loadable");
    (machine, line)
}

pub(crate) fn exit_value(outcome: Outcome) -> u32 {
    match outcome {
        Outcome::End(End::DebugExit(value)) => value,
        other => panic!("{other:?}"),
    }
}

/// Ends the machine with the value in EAX.
pub(crate) fn exit(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.out(0xf4, eax)?;
    a.hlt()
}

/// Enters VMX operation with the VMXON pointer number ESI: 32-bit paging by 4 MiB pages, identity.
pub(crate) fn enter_vmx(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(eax, PAGE_DIRECTORY)?;
    a.mov(cr3, eax)?;
    a.mov(eax, 0x2010)?;
    a.mov(cr4, eax)?;
    a.mov(eax, 0x8000_0031_u32)?;
    a.mov(cr0, eax)?;
    a.mov(ecx, 0x3a)?;
    a.mov(eax, 5)?;
    a.xor(edx, edx)?;
    a.wrmsr()?;
    a.vmxon(qword_ptr(esi * 8 + VMXON_POINTERS))
}

/// INIT and a start-up IPI to all the others.
pub(crate) fn start_others(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(edi, 0xfee0_0300_u32)?;
    a.mov(dword_ptr(edi), 0x000c_4500)?;
    a.mov(dword_ptr(edi), 0x000c_4608)
}

/// Waits until `count` others have finished, and ends with the result.
pub(crate) fn wait_and_exit(a: &mut CodeAssembler, count: i32) -> Result<(), IcedError> {
    let mut wait = a.create_label();
    a.set_label(&mut wait)?;
    a.pause()?;
    a.cmp(dword_ptr(COUNT), count)?;
    a.jne(wait)?;
    a.mov(eax, dword_ptr(RESULT))?;
    exit(a)
}

/// Ends the work of an application processor.
pub(crate) fn finish(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.lock().inc(dword_ptr(COUNT))?;
    a.hlt()
}

/// Writes what several processors need: trampoline, GDT, page directory, regions.
pub(crate) fn prepare(machine: &Machine, application: Code) {
    let memory = machine.memory();
    let mut trampoline = vec![0xfa, 0x0f, 0x01, 0x16, 0x00, 0x81, 0x66, 0xb8, 1, 0, 0, 0];
    trampoline.extend([0x0f, 0x22, 0xc0, 0x66, 0xea]);
    trampoline.extend(APPLICATION.to_le_bytes());
    trampoline.extend([8, 0]);
    memory.write_bytes(Hpa(TRAMPOLINE), &trampoline);
    memory.write_bytes(Hpa(0x8100), &[23, 0, 0x10, 0x81, 0, 0]);
    for (n, descriptor) in [0, 0x00cf_9a00_0000_ffff_u64, 0x00cf_9200_0000_ffff]
        .iter()
        .enumerate()
    {
        memory.write_bytes(Hpa(0x8110 + 8 * n as u64), &descriptor.to_le_bytes());
    }
    for n in 0..1024_u32 {
        let entry = (n << 22 | 0x83).to_le_bytes();
        memory.write_bytes(Hpa(u64::from(PAGE_DIRECTORY + 4 * n)), &entry);
    }
    let revision = VmxProfile::emulator_default()
        .caps
        .revision_id()
        .to_le_bytes();
    for n in 0..4_u64 {
        for (table, region) in [(VMXON_POINTERS, 0x30_0000), (VMCS_POINTERS, 0x31_0000)] {
            let region = region + n * 0x1000;
            memory.write_bytes(Hpa(region), &revision);
            memory.write_bytes(Hpa(u64::from(table) + 8 * n), &u64::to_le_bytes(region));
        }
    }
    let code = assemble(32, APPLICATION, |a| {
        a.mov(eax, 0x10)?;
        a.mov(ds, eax)?;
        a.mov(esi, 1)?;
        a.lock().xadd(dword_ptr(NUMBER), esi)?;
        a.inc(esi)?;
        application(a)
    });
    memory.write_bytes(Hpa(u64::from(APPLICATION)), &code);
}
