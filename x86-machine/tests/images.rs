//! Images of our own on the bare machine: boot, devices, several processors, VMX in root operation.

use std::io::Write;
use std::sync::{Arc, Mutex};

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use vmx_model::addr::Hpa;
use vmx_model::capability::VmxProfile;
use vmx_model::field::Field;
use x86_machine::{Config, End, Image, Machine, Outcome};

/// Where the image is loaded; its code is behind the multiboot header.
const BASE: u32 = 0x10_0000;
const ENTRY: u32 = BASE + 0x10;
/// Where application processors begin in real mode (start-up vector 8), and then in 32-bit code.
const TRAMPOLINE: u64 = 0x8000;
const APPLICATION: u32 = 0x12_0000;
const PAGE_DIRECTORY: u32 = 0x20_0000;
/// A table of pointers to VMXON regions, one of pointers to VMCS regions.
const VMXON_POINTERS: u32 = 0x9000;
const VMCS_POINTERS: u32 = 0x9100;
/// Words that the processors share.
const COUNT: u32 = 0x500;
const RESULT: u32 = 0x504;
const NUMBER: u32 = 0x508;
const SIGNAL: u32 = 0x518;
const LIMIT_TICKS: u64 = 20_000_000;

type Code = fn(&mut CodeAssembler) -> Result<(), IcedError>;

fn assemble(
    bitness: u32,
    at: u32,
    code: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Vec<u8> {
    let mut a = CodeAssembler::new(bitness).expect("a bitness");
    code(&mut a).expect("instructions");
    a.assemble(u64::from(at)).expect("encodable")
}

/// Returns an ELF32 file with a multiboot header and this code.
fn multiboot_elf(code: &[u8]) -> Vec<u8> {
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
struct Line(Arc<Mutex<Vec<u8>>>);

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("one thread").extend(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn machine(cpus: usize, sanitizes: bool, code: Code) -> (Machine, Line) {
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

/// Returns an ELF64 file with this code at its entry point, and a note that names a PVH entry point.
fn elf64(code: &[u8], pvh_entry: Option<u32>) -> Vec<u8> {
    const HEADERS: u64 = 64 + 2 * 56;
    let note_bytes = if pvh_entry.is_some() { 20 } else { 0 };
    let at = HEADERS + note_bytes;
    let length = code.len() as u64;
    let words = [
        [
            0x0001_0102_464c_457f,
            0,
            0x0000_0001_003e_0002,
            ENTRY.into(),
        ],
        [64, 0, 0x0038_0040_0000_0000, 2],
        [0x7_0000_0001, at, ENTRY.into(), ENTRY.into()],
        [length, length, 8, 0x4_0000_0004],
        [HEADERS, 0, 0, note_bytes],
        [note_bytes, 4, 0, 0],
    ];
    let mut file: Vec<u8> = words.as_flattened()[..22]
        .iter()
        .flat_map(|w: &u64| w.to_le_bytes())
        .collect();
    if let Some(entry) = pvh_entry {
        let note = [4, 4, 18, u32::from_le_bytes(*b"Xen\0"), entry];
        file.extend(note.iter().flat_map(|w| w.to_le_bytes()));
    }
    file.extend(code);
    file
}

fn boot(bytes: Vec<u8>) -> u32 {
    let config = Config {
        memory_mib: 8,
        ..Config::default()
    };
    let mut machine = Machine::new(&config, Box::new(Line::default())).expect("a configuration");
    let image = Image {
        bytes,
        command_line: "Z".to_owned(),
        module: Some(vec![0x45]),
    };
    machine.load(&image).expect("loadable");
    exit_value(machine.run(LIMIT_TICKS))
}

#[test]
fn a_pvh_image_finds_its_start_information() {
    let code = assemble(32, ENTRY + 2, |a| {
        let mut wrong = a.create_label();
        a.mov(eax, 1)?;
        a.cmp(dword_ptr(ebx), 0x336e_c578_u32 as i32)?;
        a.jne(wrong)?;
        // One module, 'E'; a memory map; the command line.
        a.cmp(dword_ptr(ebx + 12), 1)?;
        a.jne(wrong)?;
        a.mov(esi, dword_ptr(ebx + 16))?;
        a.mov(esi, dword_ptr(esi))?;
        a.movzx(eax, byte_ptr(esi))?;
        a.cmp(dword_ptr(ebx + 48), 4)?;
        a.jne(wrong)?;
        a.mov(esi, dword_ptr(ebx + 24))?;
        a.mov(ah, byte_ptr(esi))?;
        a.set_label(&mut wrong)?;
        exit(a)
    });
    let code = [&[0x0f, 0x0b], code.as_slice()].concat();
    assert_eq!(boot(elf64(&code, Some(ENTRY + 2))), 0x5a45);
}

#[test]
fn an_elf64_image_begins_in_64_bit_mode_with_boot_parameters() {
    let code = assemble(64, ENTRY, |a| {
        a.mov(ebx, dword_ptr(rsi + 0x218))?;
        a.movzx(ecx, byte_ptr(rbx))?;
        a.mov(ebx, dword_ptr(rsi + 0x228))?;
        a.movzx(eax, byte_ptr(rbx))?;
        a.shl(rax, 40)?;
        a.shr(rax, 32)?;
        a.add(eax, ecx)?;
        a.out(0xf4, eax)
    });
    assert_eq!(boot(elf64(&code, None)), 0x5a45);
}

fn exit_value(outcome: Outcome) -> u32 {
    match outcome {
        Outcome::End(End::DebugExit(value)) => value,
        other => panic!("{other:?}"),
    }
}

/// Ends the machine with the value in EAX.
fn exit(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.out(0xf4, eax)?;
    a.hlt()
}

#[test]
fn a_multiboot_image_sees_its_command_line_and_prints_it() {
    let (mut machine, line) = machine(1, false, |a| {
        let mut next = a.create_label();
        let mut done = a.create_label();
        a.cmp(eax, 0x2bad_b002_u32 as i32)?;
        a.jne(done)?;
        a.mov(esi, dword_ptr(ebx + 16))?;
        a.mov(edx, 0x3f8)?;
        a.set_label(&mut next)?;
        a.lodsb()?;
        a.test(al, al)?;
        a.jz(done)?;
        a.out(dx, al)?;
        a.jmp(next)?;
        a.set_label(&mut done)?;
        a.mov(eax, 21)?;
        exit(a)
    });
    assert_eq!(exit_value(machine.run(LIMIT_TICKS)), 21);
    assert_eq!(*line.0.lock().expect("one thread"), b"image a b");
}

#[test]
fn what_is_sent_on_the_serial_line_is_received() {
    let (mut machine, _) = machine(1, false, |a| {
        let mut next = a.create_label();
        let mut done = a.create_label();
        a.xor(ebx, ebx)?;
        a.set_label(&mut next)?;
        a.mov(edx, 0x3fd)?;
        a.in_(al, dx)?;
        a.test(al, 1)?;
        a.jz(done)?;
        a.mov(edx, 0x3f8)?;
        a.in_(al, dx)?;
        a.shl(ebx, 8)?;
        a.mov(bl, al)?;
        a.jmp(next)?;
        a.set_label(&mut done)?;
        a.mov(eax, ebx)?;
        exit(a)
    });
    let line = machine.serial_line();
    line.send(b"ab");
    line.send(b"c");
    assert_eq!(line.unread(), 3);
    assert_eq!(exit_value(machine.run(LIMIT_TICKS)), 0x61_6263);
    assert_eq!(line.unread(), 0);
}

#[test]
fn the_apic_timer_wakes_a_halted_processor() {
    let (mut machine, _) = machine(1, false, |a| {
        a.mov(word_ptr(0x5000), 0x7ff)?;
        a.mov(dword_ptr(0x5002), 0x4000)?;
        a.lidt(fword_ptr(0x5000))?;
        // A GDT like the one that the segments came from.
        a.mov(dword_ptr(0x5108), 0xffff)?;
        a.mov(dword_ptr(0x510c), 0x00cf_9a00)?;
        a.mov(dword_ptr(0x5110), 0xffff)?;
        a.mov(dword_ptr(0x5114), 0x00cf_9200)?;
        a.mov(word_ptr(0x5008), 0x17)?;
        a.mov(dword_ptr(0x500a), 0x5100)?;
        a.lgdt(fword_ptr(0x5008))?;
        a.mov(esp, 0x7000)?;
        a.mov(edi, 0xfee0_0000_u32)?;
        a.mov(dword_ptr(edi + 0xf0), 0x1ff)?;
        a.mov(dword_ptr(edi + 0x320), 0x20)?;
        a.mov(dword_ptr(edi + 0x380), 100_000)?;
        a.sti()?;
        a.hlt()?;
        a.mov(eax, 1)?;
        exit(a)
    });
    let handler = assemble(32, 0x6000, |a| {
        a.mov(eax, 7)?;
        exit(a)
    });
    machine.memory().write_bytes(Hpa(0x6000), &handler);
    // Gate 20H of the IDT at 4000H.
    let gate = 0x0000_8e00_0008_6000_u64.to_le_bytes();
    machine.memory().write_bytes(Hpa(0x4100), &gate);
    assert_eq!(exit_value(machine.run(LIMIT_TICKS)), 7);
}

#[test]
fn a_machine_whose_processors_all_halt_for_good_is_idle() {
    let (mut machine, _) = machine(2, false, |a| {
        a.cli()?;
        a.hlt()
    });
    assert_eq!(machine.run(LIMIT_TICKS), Outcome::Idle);
}

/// Enters VMX operation with the VMXON pointer number ESI: 32-bit paging by 4 MiB pages, identity.
fn enter_vmx(a: &mut CodeAssembler) -> Result<(), IcedError> {
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
fn start_others(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(edi, 0xfee0_0300_u32)?;
    a.mov(dword_ptr(edi), 0x000c_4500)?;
    a.mov(dword_ptr(edi), 0x000c_4608)
}

/// Waits until `count` others have finished, and ends with the result.
fn wait_and_exit(a: &mut CodeAssembler, count: i32) -> Result<(), IcedError> {
    let mut wait = a.create_label();
    a.set_label(&mut wait)?;
    a.pause()?;
    a.cmp(dword_ptr(COUNT), count)?;
    a.jne(wait)?;
    a.mov(eax, dword_ptr(RESULT))?;
    exit(a)
}

/// Ends the work of an application processor.
fn finish(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.lock().inc(dword_ptr(COUNT))?;
    a.hlt()
}

/// Writes what several processors need: trampoline, GDT, page directory, regions.
fn prepare(machine: &Machine, application: Code) {
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

const HOST_RIP: u32 = Field::HOST_RIP.encoding();

#[test]
fn four_processors_are_in_vmx_root_operation_each_with_a_vmcs_of_its_own() {
    let (mut machine, _) = machine(4, true, |a| {
        a.xor(esi, esi)?;
        enter_vmx(a)?;
        start_others(a)?;
        wait_and_exit(a, 3)
    });
    prepare(&machine, |a| {
        enter_vmx(a)?;
        a.vmclear(qword_ptr(esi * 8 + VMCS_POINTERS))?;
        a.vmptrld(qword_ptr(esi * 8 + VMCS_POINTERS))?;
        a.mov(ebx, HOST_RIP)?;
        a.vmwrite(ebx, esi)?;
        a.vmread(ecx, ebx)?;
        a.lock().add(dword_ptr(RESULT), ecx)?;
        finish(a)
    });
    assert_eq!(exit_value(machine.run(LIMIT_TICKS)), 1 + 2 + 3);
    assert_eq!(machine.take_reports(), []);
}

/// The bootstrap processor writes a VMCS, the other one reads it.
fn migrate(first: Code) -> (Option<u32>, Vec<vmx_model::sanitizer::Report>) {
    let (mut machine, _) = machine(2, true, first);
    prepare(&machine, |a| {
        enter_vmx(a)?;
        a.vmptrld(qword_ptr(VMCS_POINTERS))?;
        a.mov(ebx, HOST_RIP)?;
        a.vmread(ecx, ebx)?;
        a.mov(dword_ptr(RESULT), ecx)?;
        finish(a)
    });
    let outcome = machine.run(LIMIT_TICKS);
    (Some(exit_value(outcome)), machine.take_reports())
}

fn write_vmcs(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.xor(esi, esi)?;
    enter_vmx(a)?;
    a.vmclear(qword_ptr(VMCS_POINTERS))?;
    a.vmptrld(qword_ptr(VMCS_POINTERS))?;
    a.mov(ebx, HOST_RIP)?;
    a.mov(eax, 0x1234)?;
    a.vmwrite(ebx, eax)
}

#[test]
fn a_vmcs_that_was_cleared_moves_to_another_processor() {
    let (value, reports) = migrate(|a| {
        write_vmcs(a)?;
        a.vmclear(qword_ptr(VMCS_POINTERS))?;
        start_others(a)?;
        wait_and_exit(a, 1)
    });
    assert_eq!(value, Some(0x1234));
    assert_eq!(reports, []);
}

#[test]
fn a_vmcs_that_moves_without_vmclear_is_reported() {
    let (_, reports) = migrate(|a| {
        write_vmcs(a)?;
        start_others(a)?;
        wait_and_exit(a, 1)
    });
    let first = reports.first().expect("a report");
    assert_eq!(first.vmcs, Some(Hpa(0x31_0000)));
    assert_eq!(first.cpu.0, 1);
}

/// Reads the TSC 20,000 times under a lock, and counts in RESULT how often it was behind the time
/// that the last reader of any processor saw.
fn compare_times(a: &mut CodeAssembler) -> Result<(), IcedError> {
    const LOCK: u32 = 0x50c;
    const LAST: u32 = 0x510;
    let mut next = a.create_label();
    let mut not_behind = a.create_label();
    a.mov(ebp, 20_000)?;
    a.set_label(&mut next)?;
    a.mov(ebx, 1)?;
    a.xchg(dword_ptr(LOCK), ebx)?;
    a.test(ebx, ebx)?;
    a.jnz(next)?;
    a.rdtsc()?;
    a.cmp(eax, dword_ptr(LAST))?;
    a.jae(not_behind)?;
    a.inc(dword_ptr(RESULT))?;
    a.set_label(&mut not_behind)?;
    a.mov(dword_ptr(LAST), eax)?;
    a.mov(dword_ptr(LOCK), 0)?;
    a.dec(ebp)?;
    a.jnz(next)
}

#[test]
fn no_processor_sees_a_time_that_another_one_has_left_behind() {
    let (mut machine, _) = machine(3, false, |a| {
        start_others(a)?;
        compare_times(a)?;
        wait_and_exit(a, 2)
    });
    prepare(&machine, |a| {
        compare_times(a)?;
        finish(a)
    });
    assert_eq!(exit_value(machine.run(LIMIT_TICKS)), 0);
}

#[test]
fn a_device_shows_the_time_of_the_access() {
    // The power-management timer ticks once in 280 instructions; the loop has 2 more.
    let (mut machine, _) = machine(1, false, |a| {
        let mut next = a.create_label();
        let mut wait = a.create_label();
        a.mov(edx, 0x608)?;
        a.mov(ebp, 3)?;
        a.xor(esi, esi)?;
        a.set_label(&mut next)?;
        a.in_(eax, dx)?;
        a.mov(ebx, eax)?;
        a.mov(ecx, 140)?;
        a.set_label(&mut wait)?;
        a.dec(ecx)?;
        a.jnz(wait)?;
        a.in_(eax, dx)?;
        a.sub(eax, ebx)?;
        a.lea(esi, dword_ptr(eax + esi * 4))?;
        a.dec(ebp)?;
        a.jnz(next)?;
        a.mov(eax, esi)?;
        exit(a)
    });
    // Each time one tick.
    assert_eq!(exit_value(machine.run(LIMIT_TICKS)), 0b01_0101);
}

/// Waits at MWAIT until the word at SIGNAL is not 0, and counts the waits in EBP.
fn wait_at_mwait(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    let mut done = a.create_label();
    a.xor(ebp, ebp)?;
    a.set_label(&mut again)?;
    a.mov(eax, SIGNAL)?;
    a.xor(ecx, ecx)?;
    a.xor(edx, edx)?;
    a.monitor()?;
    a.cmp(dword_ptr(SIGNAL), 0)?;
    a.jne(done)?;
    a.mwait()?;
    a.inc(ebp)?;
    a.jmp(again)?;
    a.set_label(&mut done)?;
    a.nop()
}

#[test]
fn a_store_wakes_a_processor_that_waits_at_mwait() {
    let (mut machine, _) = machine(2, false, |a| {
        let mut delay = a.create_label();
        a.mov(dword_ptr(SIGNAL), 0)?;
        start_others(a)?;
        a.mov(ecx, 1_000_000)?;
        a.set_label(&mut delay)?;
        a.dec(ecx)?;
        a.jnz(delay)?;
        a.inc(dword_ptr(SIGNAL))?;
        wait_and_exit(a, 1)
    });
    prepare(&machine, |a| {
        wait_at_mwait(a)?;
        a.mov(dword_ptr(RESULT), ebp)?;
        finish(a)
    });
    // The other one has had a thousand turns meanwhile.
    let waits = exit_value(machine.run(LIMIT_TICKS));
    assert!((1..100).contains(&waits), "{waits}");
}

#[test]
fn a_machine_that_waits_at_mwait_without_a_timer_goes_on() {
    let (mut machine, _) = machine(1, false, |a| {
        a.mov(dword_ptr(SIGNAL), 0)?;
        wait_at_mwait(a)
    });
    assert_eq!(machine.run(LIMIT_TICKS), Outcome::Limit);
}
