//! Tests of the run loop: counts, kicks, self-modifying code.

use std::sync::Arc;

use iced_x86::code_asm::*;
use vmx_model::addr::Hpa;
use vmx_model::arch::{AccessRights, ArchState, Cr0, Efer, Rflags, SegmentRegister};

use crate::bus::{Bus, EmptyBus, InstructionClock, Suspend};
use crate::mem::phys::{OwnedRam, PhysMap};
use crate::run::Slice;
use crate::test_cpu::{DATA, execute, long_mode};
use crate::{Cpu, Stop};

/// Where the tests put code.
pub(crate) const CODE: u64 = 0x1000;
/// Top of the tests' stack.
pub(crate) const STACK: u64 = 0x20000;

/// What kind of code a test runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bits {
    Real16,
    Flat32,
    Long64,
}

/// Returns a processor with `pages` pages of RAM at 0, without paging, about to execute `code`.
pub(crate) fn processor(bits: Bits, pages: usize, code: &[u8]) -> Cpu {
    let map = PhysMap::new();
    let ram = OwnedRam::new(pages).expect("some pages of RAM");
    map.add_owned(Hpa(0), Arc::new(ram)).expect("an empty map");
    map.write_bytes(Hpa(CODE), code);
    let mut cpu = Cpu::new(map, Box::new(EmptyBus), Box::<InstructionClock>::default());
    cpu.set_arch_state(&state(bits, &cpu.arch_state()));
    cpu
}

fn state(bits: Bits, reset: &ArchState) -> ArchState {
    let mut state = reset.clone();
    state.rip = CODE;
    state.rsp = STACK;
    state.rflags = Rflags::FIXED1;
    let (data, code, limit) = match bits {
        Bits::Real16 => (0x93, 0x93, 0xffff),
        Bits::Flat32 => (0xc093, 0xc09b, u32::MAX),
        Bits::Long64 => (0xc093, 0xa09b, u32::MAX),
    };
    for s in &mut state.segments[..6] {
        s.base = 0;
        s.limit = limit;
        s.access = AccessRights(data);
    }
    state.segment_mut(SegmentRegister::Cs).access = AccessRights(code);
    if bits != Bits::Real16 {
        state.cr0 |= Cr0::PE;
    }
    if bits == Bits::Long64 {
        state.efer = Efer::LME | Efer::LMA;
    }
    state
}

fn assemble(
    bits: u32,
    f: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>,
) -> Vec<u8> {
    let mut a = CodeAssembler::new(bits).expect("a known bitness");
    f(&mut a).expect("valid instructions");
    a.assemble(CODE).expect("encodable")
}

/// A loop of 2 instructions, 1000 times, behind one instruction and before a jump to itself.
fn counted_loop() -> Vec<u8> {
    assemble(64, |a| {
        let mut top = a.create_label();
        let mut end = a.create_label();
        a.mov(ecx, 1000)?;
        a.set_label(&mut top)?;
        a.dec(ecx)?;
        a.jne(top)?;
        a.set_label(&mut end)?;
        a.jmp(end)
    })
}

#[test]
fn a_run_stops_after_exactly_its_budget() {
    for budget in [0, 1, 2, 3, 100, 101, 1999, 2000, 2001, 2002, 5000] {
        let mut cpu = processor(Bits::Long64, 64, &counted_loop());
        assert_eq!(cpu.run(budget), Stop::Budget);
        assert_eq!(cpu.retired(), budget);
        let expected = 1000_u64.saturating_sub(budget / 2);
        let count = cpu.general_registers()[1];
        assert_eq!(
            count,
            if budget == 0 { 0 } else { expected },
            "budget {budget}"
        );
    }
}

#[test]
fn a_run_of_whole_blocks_ends_behind_a_block() {
    // A block of 50 instructions.
    let code = assemble(64, |a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        for _ in 0..49 {
            a.inc(rax)?;
        }
        a.jmp(top)
    });
    for budget in [0, 1, 36, 37, 49, 50, 51, 99, 100, 2000, 2001] {
        let mut cpu = processor(Bits::Long64, 64, &code);
        assert_eq!(cpu.run_whole_blocks(budget), Stop::Budget);
        let beyond = cpu.retired() - budget;
        assert!(beyond < 64, "budget {budget}: {beyond}");
        let is_whole = cpu.retired().is_multiple_of(50);
        assert!(is_whole, "budget {budget}: {}", cpu.retired());
    }
}

#[test]
fn one_run_equals_many_short_ones() {
    let mut whole = processor(Bits::Long64, 64, &counted_loop());
    assert_eq!(whole.run(1500), Stop::Budget);
    let mut parts = processor(Bits::Long64, 64, &counted_loop());
    for n in 0.. {
        let left = 1500 - parts.retired();
        if left == 0 {
            break;
        }
        assert_eq!(parts.run(left.min(n % 7 + 1)), Stop::Budget);
    }
    assert_eq!(whole.arch_state(), parts.arch_state());
    assert_eq!(whole.general_registers(), parts.general_registers());
}

#[test]
fn a_kick_before_the_run_ends_it_before_its_first_instruction() {
    let mut cpu = processor(Bits::Long64, 64, &counted_loop());
    cpu.kicker().kick();
    assert_eq!(cpu.run(10), Stop::Kick);
    assert_eq!(cpu.retired(), 0);
    assert_eq!(cpu.run(10), Stop::Budget);
}

#[test]
fn a_kick_from_another_thread_ends_an_endless_loop() {
    let mut cpu = processor(Bits::Long64, 64, &counted_loop());
    let kicker = cpu.kicker();
    let thread = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(20));
        kicker.kick();
    });
    assert_eq!(cpu.run(u64::MAX), Stop::Kick);
    thread.join().expect("the kicking thread does not panic");
}

#[test]
fn an_instruction_that_changes_the_next_one_is_obeyed() {
    let code = assemble(64, |a| {
        // The store replaces the immediate of the MOV behind it.
        let mut target = a.create_label();
        a.lea(rbx, ptr(target))?;
        a.mov(byte_ptr(rbx + 1), 42)?;
        a.set_label(&mut target)?;
        a.mov(eax, 1)
    });
    let mut cpu = processor(Bits::Long64, 64, &code);
    assert_eq!(cpu.run(3), Stop::Budget);
    assert_eq!(cpu.general_registers()[0], 42);
}

#[test]
fn code_that_was_run_and_then_overwritten_is_decoded_anew() {
    let code = assemble(64, |a| {
        let mut top = a.create_label();
        a.lea(rbx, ptr(top))?;
        a.set_label(&mut top)?;
        a.mov(eax, 0)?;
        a.add(edx, eax)?;
        a.inc(byte_ptr(rbx + 1))?;
        a.jmp(top)
    });
    let mut cpu = processor(Bits::Long64, 64, &code);
    assert_eq!(cpu.run(1 + 4 * 10), Stop::Budget);
    assert_eq!(cpu.general_registers()[2], (0..10).sum::<u64>());
}

#[test]
fn code_written_from_outside_between_runs_is_seen() {
    let mut cpu = processor(Bits::Long64, 64, &[0xb8, 1, 0, 0, 0, 0xeb, 0xf9]);
    assert_eq!(cpu.run(100), Stop::Budget);
    assert_eq!(cpu.general_registers()[0], 1);
    cpu.phys.write_bytes(Hpa(CODE + 1), &[9]);
    assert_eq!(cpu.run(2), Stop::Budget);
    assert_eq!(cpu.general_registers()[0], 9);
}

/// At its fifth port write a device changes an instruction.
struct Patcher {
    map: Arc<PhysMap>,
    at: Hpa,
    writes: u32,
}

impl Bus for Patcher {
    fn memory_read(&mut self, _: Hpa, _: usize) -> Result<u64, Suspend> {
        Ok(0)
    }
    fn memory_write(&mut self, _: Hpa, _: usize, _: u64) -> Result<(), Suspend> {
        Ok(())
    }
    fn port_read(&mut self, _: u16, _: usize) -> Result<u32, Suspend> {
        Ok(0)
    }
    fn port_write(&mut self, _: u16, _: usize, _: u32) -> Result<(), Suspend> {
        self.writes += 1;
        if self.writes == 5 {
            // dec ebx
            self.map.write_bytes(self.at, &[0xff, 0xcb]);
        }
        Ok(())
    }
}

/// The jumps that are linked lead to blocks that were last compared before the port was written.
#[test]
fn code_written_by_a_device_is_seen_behind_linked_jumps() {
    let code = assemble(64, |a| {
        let (mut top, mut middle, mut last) =
            (a.create_label(), a.create_label(), a.create_label());
        a.set_label(&mut top)?;
        a.out(0x10, al)?;
        a.jmp(middle)?;
        a.int3()?;
        a.set_label(&mut middle)?;
        a.inc(ebx)?;
        a.jmp(last)?;
        a.int3()?;
        a.set_label(&mut last)?;
        a.inc(ecx)?;
        a.jmp(top)
    });
    let inc = code.windows(2).position(|w| w == [0xff, 0xc3]);
    let at = Hpa(CODE + inc.expect("inc ebx") as u64);
    let mut cpu = processor(Bits::Long64, 64, &code);
    let map = Arc::clone(&cpu.phys);
    cpu.bus = Box::new(Patcher { map, at, writes: 0 });
    assert_eq!(cpu.run(6 * 7), Stop::Budget);
    let registers = cpu.general_registers();
    assert_eq!((registers[1], registers[3]), (7, 4 - 3));
    assert_eq!(cpu.retired(), 6 * 7);
}

#[test]
fn an_instruction_across_a_page_boundary_runs() {
    let mut code = vec![0x90; 4094];
    code.extend([0xb8, 7, 0, 0, 0, 0xeb, 0xfe]);
    let mut cpu = processor(Bits::Long64, 64, &code);
    assert_eq!(cpu.run(4094 + 1 + 100), Stop::Budget);
    assert_eq!(cpu.general_registers()[0], 7);
    assert_eq!(cpu.arch_state().rip, CODE + 4094 + 5);
}

#[test]
fn locked_updates_of_two_processors_lose_nothing() {
    let code = assemble(64, |a| {
        let mut top = a.create_label();
        a.mov(ecx, 100_000)?;
        a.set_label(&mut top)?;
        a.lock().add(dword_ptr(0x8000), 1)?;
        a.mov(eax, 1)?;
        a.lock().xadd(qword_ptr(0x8010), rax)?;
        a.dec(ecx)?;
        a.jne(top)?;
        a.hlt()
    });
    let mut first = processor(Bits::Long64, 64, &code);
    let mut second = Cpu::new(
        Arc::clone(&first.phys),
        Box::new(EmptyBus),
        Box::<InstructionClock>::default(),
    );
    second.set_arch_state(&first.arch_state());
    let thread = std::thread::spawn(move || second.run(u64::MAX));
    assert_eq!(first.run(u64::MAX), Stop::Halt);
    assert_eq!(thread.join().expect("no panic"), Stop::Halt);
    for address in [0x8000, 0x8010] {
        let mut bytes = [0; 4];
        first.phys.read_bytes(Hpa(address), &mut bytes);
        assert_eq!(u32::from_le_bytes(bytes), 200_000);
    }
}

#[test]
fn code_that_another_processor_writes_is_seen() {
    // The reader spins on the immediate of its own MOV; the writer writes beside it for a while,
    // then changes the immediate.
    let reader = [0xb8, 0, 0, 0, 0, 0x85, 0xc0, 0x74, 0xf7, 0xf4];
    let writer = assemble(64, |a| {
        let mut top = a.create_label();
        a.mov(ecx, 3_000_000)?;
        a.set_label(&mut top)?;
        a.mov(dword_ptr(0x2800), ecx)?;
        a.dec(ecx)?;
        a.jne(top)?;
        a.mov(byte_ptr(0x2001), 1)?;
        a.hlt()
    });
    let mut second = processor(Bits::Long64, 64, &writer);
    second.phys.write_bytes(Hpa(0x2000), &reader);
    let map = Arc::clone(&second.phys);
    let mut first = Cpu::new(map, Box::new(EmptyBus), Box::<InstructionClock>::default());
    let mut state = second.arch_state();
    state.rip = 0x2000;
    first.set_arch_state(&state);
    let thread = std::thread::spawn(move || second.run(u64::MAX));
    std::thread::sleep(std::time::Duration::from_millis(2));
    assert_eq!(first.run(5_000_000_000), Stop::Halt);
    assert_eq!(thread.join().expect("no panic"), Stop::Halt);
}

/// REP MOVS and STOS of these sizes against a byte-by-byte copy: overlapping, across pages.
#[test]
fn repeated_moves_and_fills_go_upward_element_by_element() {
    let cases = [
        (0x8000, 0xa010, 1900),
        (0x8ff9, 0x9003, 700),
        (0x9003, 0x8ff9, 700),
        (0x8000, 0x8004, 300),
        (0x8001, 0x8fff, 2100),
    ];
    for (from, to, bytes) in cases {
        for (opcode, element) in [([0xf3, 0xa4], 1_u64), ([0xf3, 0xa5], 4)] {
            let mut code = vec![0xbe];
            code.extend((from as u32).to_le_bytes());
            code.push(0xbf);
            code.extend((to as u32).to_le_bytes());
            code.push(0xb9);
            code.extend((bytes as u32).to_le_bytes());
            code.extend(opcode);
            code.extend([0xb0, 0x5a, 0xb9, 100, 0, 0, 0, 0xf3, 0xaa, 0xf4]);
            let mut cpu = processor(Bits::Long64, 64, &code);
            let mut memory: Vec<u8> = (0..0x10000_u32).map(|n| (n * 7 + (n >> 8)) as u8).collect();
            cpu.phys.write_bytes(Hpa(0x8000), &memory[0x8000..]);
            let length = bytes as u64 * element;
            for n in (0..length).step_by(element as usize) {
                let (s, d) = ((from + n) as usize, (to + n) as usize);
                memory.copy_within(s..s + element as usize, d);
            }
            let end = (to + length) as usize;
            memory[end..end + 100].fill(0x5a);
            assert_eq!(cpu.run(1000), Stop::Halt);
            assert_eq!(cpu.retired(), 8, "a repeated instruction counts once");
            let registers = cpu.general_registers();
            assert_eq!(registers[6], from + length);
            assert_eq!(registers[7], to + length + 100);
            let mut now = vec![0; 0x8000];
            cpu.phys.read_bytes(Hpa(0x8000), &mut now);
            assert!(now == memory[0x8000..], "{from:x} to {to:x}, {length}");
        }
    }
}

#[test]
fn sixteen_bit_code_goes_on_beyond_64_kib_as_far_as_the_limit_allows() {
    // NOP at FFFEH and FFFFH, then INC AX at 10000H; HLT.
    let code = [0x90, 0x90, 0x40, 0xf4];
    for (limit, count, rip) in [(u32::MAX, 1_u64, 0x1_0002_u64), (0xffff, 0, 0x2001)] {
        let mut cpu = processor(Bits::Real16, 32, &[]);
        cpu.phys.write_bytes(Hpa(0xfffe), &code);
        // #GP: HLT at 2000H.
        cpu.phys.write_bytes(Hpa(13 * 4), &[0x00, 0x20, 0, 0]);
        cpu.phys.write_bytes(Hpa(0x2000), &[0xf4]);
        let mut state = cpu.arch_state();
        state.rip = 0xfffe;
        state.segment_mut(SegmentRegister::Cs).limit = limit;
        state.segment_mut(SegmentRegister::Ss).limit = u32::MAX;
        state.rsp = 0x8000;
        cpu.set_arch_state(&state);
        assert_eq!(cpu.run(100), Stop::Halt, "{limit:#x}");
        assert_eq!(cpu.general_registers()[0] & 0xffff, count, "{limit:#x}");
        assert_eq!(cpu.arch_state().rip, rip, "{limit:#x}");
    }
}

#[test]
fn a_branch_with_a_16_bit_operand_clears_the_upper_half_of_eip() {
    // JMP +4 at 1FFFCH: with a 16-bit operand to 0002H, with a 32-bit operand to 20004H.
    for (code, rip) in [
        (&[0xe9, 0x03, 0x00][..], 0x0003_u64),
        (&[0x66, 0xe9, 0x02, 0x00, 0x00, 0x00], 0x2_0005),
    ] {
        let mut cpu = processor(Bits::Real16, 64, &[]);
        cpu.phys.write_bytes(Hpa(0x1_fffc), code);
        cpu.phys.write_bytes(Hpa(0x0002), &[0xf4]);
        cpu.phys.write_bytes(Hpa(0x2_0004), &[0xf4]);
        let mut state = cpu.arch_state();
        state.rip = 0x1_fffc;
        state.segment_mut(SegmentRegister::Cs).limit = u32::MAX;
        cpu.set_arch_state(&state);
        assert_eq!(cpu.run(100), Stop::Halt, "{code:x?}");
        assert_eq!(cpu.arch_state().rip, rip, "{code:x?}");
    }
}

#[test]
fn a_long_repetition_is_left_when_the_time_is_over() {
    let code = assemble(64, |a| {
        a.mov(rcx, 1_u64 << 40)?;
        a.xor(esi, esi)?;
        a.rep().lodsb()?;
        a.hlt()
    });
    let mut cpu = processor(Bits::Long64, 8, &code);
    let mut done = 0;
    for budget in [1000, 1, 1 << 17] {
        assert_eq!(cpu.run(budget), Stop::Budget);
        assert_eq!(cpu.retired(), 2);
        let left = cpu.general_registers()[1];
        let iterations = (1 << 40) - left - done;
        assert!(
            iterations > 0 && iterations <= budget.max(16 * 1024),
            "{iterations}"
        );
        done += iterations;
    }
}

/// Runs in slices until `next` was asked `times` times; returns how many instructions each had.
fn lengths_of_slices(cpu: &mut Cpu, slice: Slice, times: usize) -> Vec<u64> {
    let mut lengths = Vec::new();
    let kicker = cpu.kicker();
    for _ in 0..times {
        let before = cpu.retired();
        let mut asked = 0;
        let stop = cpu.run_in_slices(slice, &mut || {
            asked += 1;
            None
        });
        assert_eq!((stop, asked), (Stop::Budget, 1));
        lengths.push(cpu.retired() - before);
    }
    kicker.kick();
    assert_eq!(cpu.run_in_slices(slice, &mut || None), Stop::Kick);
    lengths
}

/// A loop that rewrites an operand of its own is decoded anew at each turn: a slice of it is short,
/// however many instructions it may have, and one of a plain loop is not.
#[test]
fn a_slice_of_code_that_is_decoded_again_and_again_is_short() {
    let slice = Slice {
        instructions: 1 << 14,
        work: 200,
    };
    let modifying = [0xfe, 0x05, 1, 0, 0, 0, 0xb3, 0, 0xeb, 0xf6];
    let mut cpu = processor(Bits::Long64, 64, &modifying);
    let lengths = lengths_of_slices(&mut cpu, slice, 8);
    assert!(
        lengths.iter().all(|&n| (1..200).contains(&n)),
        "{lengths:?}"
    );
    let mut cpu = processor(Bits::Long64, 64, &[0xeb, 0xfe]);
    let lengths = lengths_of_slices(&mut cpu, slice, 8);
    let whole = slice.instructions..slice.instructions + 64;
    assert!(lengths.iter().all(|n| whole.contains(n)), "{lengths:?}");
}

/// A repeated string instruction that misses the TLB at each access ends its portion with the slice.
#[test]
fn a_slice_of_repeated_comparisons_is_short() {
    let slice = Slice {
        instructions: 1 << 14,
        work: 40,
    };
    let mut cpu = processor(Bits::Flat32, 64, &[0xf3, 0xa6, 0xeb, 0xfc]);
    let (counter, source, destination) = (1, 6, 7);
    let mut registers = cpu.general_registers();
    (
        registers[counter],
        registers[source],
        registers[destination],
    ) = (0x10000, 0x10000, 0x20000);
    cpu.set_general_registers(&registers);
    let mut left = registers[counter];
    for _ in 0..4 {
        let stop = cpu.run_in_slices(slice, &mut || None);
        assert_eq!(stop, Stop::Budget);
        let now = cpu.general_registers()[counter];
        assert!((1..=500).contains(&(left - now)), "{left} {now}");
        left = now;
    }
}

/// Blocks that nothing leads to any more are freed long before they fill the cache.
#[test]
fn self_modifying_code_does_not_fill_the_cache_with_dead_blocks() {
    let modifying = [0xfe, 0x05, 1, 0, 0, 0, 0xb3, 0, 0xeb, 0xf6];
    let mut cpu = processor(Bits::Long64, 64, &modifying);
    for _ in 0..20 {
        assert_eq!(cpu.run(1500), Stop::Budget);
        assert!(cpu.engine.blocks.in_memory() < 5000);
    }
    assert_eq!(cpu.general_registers()[3] & 0xff, 30_000 / 3 % 256);
}

#[test]
fn a_plain_handler_repeats_whatever_runs_have_worked() {
    let mut cpu = long_mode();
    for count in [20, 900] {
        // REPNE SCASB: it goes an iteration at a time.
        (cpu.gpr[0], cpu.gpr[1], cpu.gpr[7]) = (1, count, DATA);
        assert_eq!(execute(&mut cpu, &[0xf2, 0xae]), Ok(()));
        assert_eq!(cpu.gpr[1], 0);
    }
}

/// So is a slice in which each turn executes an instruction that lies in two pages, outside of blocks.
#[test]
fn an_instruction_in_no_block_does_not_lengthen_its_slice() {
    let slice = Slice {
        instructions: 1 << 14,
        work: 200,
    };
    // inc byte [0x2000]; nop; mov eax, imm32, whose operand that is; jmp back.
    let code = [
        0xfe, 0x05, 4, 0, 0, 0, 0x90, 0xb8, 0, 0, 0, 0, 0xe9, 0xef, 0xff, 0xff, 0xff,
    ];
    let begin = 0x2000 - 10;
    let mut bytes = vec![0x90; begin - CODE as usize];
    bytes.extend(code);
    let mut cpu = processor(Bits::Long64, 64, &bytes);
    let mut state = cpu.arch_state();
    state.rip = begin as u64;
    cpu.set_arch_state(&state);
    let lengths = lengths_of_slices(&mut cpu, slice, 8);
    assert!(
        lengths.iter().all(|&n| (1..1000).contains(&n)),
        "{lengths:?}"
    );
}
