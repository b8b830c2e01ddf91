//! Images of our own on the bare machine: boot, devices, several processors, VMX in root operation.

mod processors;

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use vmx_model::addr::Hpa;
use vmx_model::field::Field;
use x86_machine::{Config, Image, Machine, Outcome};

use processors::*;

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
    let rip = first.rip.expect("software of the image");
    assert!((APPLICATION.into()..u64::from(APPLICATION) + 0x100).contains(&rip));
    assert_eq!(first.history.last().and_then(|step| step.rip), Some(rip));
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
