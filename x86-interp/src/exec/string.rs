//! String instructions: MOVS, CMPS, SCAS, LODS, STOS (SDM Vol. 1, "String Instructions"; INS and
//! OUTS are with the other port accesses).
//!
//! A repeated instruction works in portions, so that events are recognised between iterations: a
//! handler that stops with iterations left returns `Ok` and leaves `next_rip` at the instruction
//! itself. A fault leaves the registers after the last completed iteration, and the status flags
//! as they were before the instruction.

use iced_x86::{Code, Mnemonic};
use vmx_model::arch::{Rflags, SegmentRegister};

use super::Row;
use super::form::{BySize, ending, operand_bytes, sized};
use crate::alu::add::sub;
use crate::insn::{Insn, Repeat};
use crate::mem::access::address_mask;
use crate::width::Width;
use crate::{Cpu, Exec};

pub(crate) const RSI: u8 = 6;
pub(crate) const RDI: u8 = 7;

/// The largest number of iterations before events are looked for.
const PORTION: u32 = 1024;

/// Work of a piece moved at once, and how many single iterations are one unit; see
/// [`crate::run::Slice::work`].
const PIECE_WORK: i64 = 4;
const ITERATIONS_OF_WORK: u32 = 8;

/// Returns the row of a string instruction.
pub(crate) fn lookup(code: Code) -> Option<Row> {
    if !code.is_string_instruction() {
        return None;
    }
    let handlers: BySize = match code.mnemonic() {
        Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsd | Mnemonic::Movsq => sized!(movs),
        Mnemonic::Cmpsb | Mnemonic::Cmpsw | Mnemonic::Cmpsd | Mnemonic::Cmpsq => sized!(cmps),
        Mnemonic::Scasb | Mnemonic::Scasw | Mnemonic::Scasd | Mnemonic::Scasq => sized!(scas),
        Mnemonic::Lodsb | Mnemonic::Lodsw | Mnemonic::Lodsd | Mnemonic::Lodsq => sized!(lods),
        Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => sized!(stos),
        _ => return None,
    };
    let size = operand_bytes(code, 0)?.ilog2();
    ending(*handlers.get(size as usize)?)
}

/// MOVS.
pub(crate) fn movs<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    for _ in 0..PAGES {
        let Some(bytes) = bulk::<W>(cpu, insn) else {
            break;
        };
        let (from, to) = (source(cpu, insn), destination(cpu, insn));
        let Some(bytes) = cpu.copy_in_pages(from, to, bytes, W::BYTES as u64) else {
            break;
        };
        advance_by(cpu, insn, RSI, bytes);
        advance_by(cpu, insn, RDI, bytes);
        count_down::<W>(cpu, insn, bytes);
    }
    repeat(cpu, insn, |cpu| {
        let value = load_source::<W>(cpu, insn)?;
        store_destination(cpu, insn, value)?;
        advance::<W>(cpu, insn, RSI);
        advance::<W>(cpu, insn, RDI);
        Ok(())
    })
}

/// LODS.
pub(crate) fn lods<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    repeat(cpu, insn, |cpu| {
        let value = load_source::<W>(cpu, insn)?;
        cpu.set_register(0, value);
        advance::<W>(cpu, insn, RSI);
        Ok(())
    })
}

/// STOS.
pub(crate) fn stos<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    for _ in 0..PAGES {
        let Some(bytes) = bulk::<W>(cpu, insn) else {
            break;
        };
        let value = cpu.register::<W>(0);
        let to = destination(cpu, insn);
        let Some(bytes) = cpu.fill_page(to, bytes, value) else {
            break;
        };
        advance_by(cpu, insn, RDI, bytes);
        count_down::<W>(cpu, insn, bytes);
    }
    repeat(cpu, insn, |cpu| {
        store_destination(cpu, insn, cpu.register::<W>(0))?;
        advance::<W>(cpu, insn, RDI);
        Ok(())
    })
}

/// CMPS: the source minus the destination.
pub(crate) fn cmps<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    repeat_while(cpu, insn, |cpu| {
        let a = load_source::<W>(cpu, insn)?;
        let b = load_destination::<W>(cpu, insn)?;
        advance::<W>(cpu, insn, RSI);
        advance::<W>(cpu, insn, RDI);
        Ok(sub(a, b, false).1)
    })
}

/// SCAS: the accumulator minus the destination.
pub(crate) fn scas<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    repeat_while(cpu, insn, |cpu| {
        let b = load_destination::<W>(cpu, insn)?;
        advance::<W>(cpu, insn, RDI);
        Ok(sub(cpu.register::<W>(0), b, false).1)
    })
}

/// The largest number of pieces moved at once before events are looked for.
const PAGES: u32 = 64;

/// The shortest run of bytes worth more than one iteration.
const BULK: u64 = 64;

/// Returns how many bytes a repeated instruction may move at once; `None` if it has to go element
/// by element.
fn bulk<W: Width>(cpu: &Cpu, insn: &Insn) -> Option<u64> {
    let is_upward = !cpu.rflags().intersects(Rflags::DF | Rflags::TF);
    let goes_one_by_one = cpu.needs_slow_accesses() || cpu.has_monitor_trap_flag();
    if insn.repeat == Repeat::None || !is_upward || goes_one_by_one {
        return None;
    }
    let bytes = cpu.counter(insn).min(4096).wrapping_mul(W::BYTES as u64);
    (bytes >= BULK).then_some(bytes)
}

fn source(cpu: &Cpu, insn: &Insn) -> (SegmentRegister, u64) {
    let offset = cpu.address_register(RSI, insn.address_bytes);
    (insn.memory.segment, offset)
}

fn destination(cpu: &Cpu, insn: &Insn) -> (SegmentRegister, u64) {
    let offset = cpu.address_register(RDI, insn.address_bytes);
    (SegmentRegister::Es, offset)
}

/// Moves SI or DI up.
fn advance_by(cpu: &mut Cpu, insn: &Insn, number: u8, bytes: u64) {
    let next = cpu
        .address_register(number, insn.address_bytes)
        .wrapping_add(bytes);
    cpu.set_address_register(
        number,
        insn.address_bytes,
        next & address_mask(insn.address_bytes),
    );
}

fn count_down<W: Width>(cpu: &mut Cpu, insn: &Insn, bytes: u64) {
    cpu.note_work(PIECE_WORK);
    let done = bytes / W::BYTES as u64;
    cpu.set_counter(insn, cpu.counter(insn).wrapping_sub(done));
}

fn load_source<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec<W> {
    let offset = cpu.address_register(RSI, insn.address_bytes);
    cpu.load(insn.memory.segment, offset)
}

fn load_destination<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec<W> {
    let offset = cpu.address_register(RDI, insn.address_bytes);
    cpu.load(SegmentRegister::Es, offset)
}

fn store_destination<W: Width>(cpu: &mut Cpu, insn: &Insn, value: W) -> Exec {
    let offset = cpu.address_register(RDI, insn.address_bytes);
    cpu.store(SegmentRegister::Es, offset, value)
}

/// Moves SI or DI to the next element, by DF.
pub(crate) fn advance<W: Width>(cpu: &mut Cpu, insn: &Insn, number: u8) {
    let size = W::BYTES as u64;
    let step = if cpu.rflags().contains(Rflags::DF) {
        size.wrapping_neg()
    } else {
        size
    };
    let next = cpu
        .address_register(number, insn.address_bytes)
        .wrapping_add(step);
    cpu.set_address_register(
        number,
        insn.address_bytes,
        next & address_mask(insn.address_bytes),
    );
}

/// How many iterations may run before events are looked for: one if each has its single-step trap or
/// MTF VM exit.
pub(crate) fn portion(cpu: &Cpu) -> u32 {
    if cpu.rflags().contains(Rflags::TF) || cpu.has_monitor_trap_flag() {
        1
    } else {
        PORTION
    }
}

/// Counts the work of iterations one by one; whether the portion may go on with this one.
fn may_iterate(cpu: &mut Cpu, number: u32) -> bool {
    if !number.is_multiple_of(ITERATIONS_OF_WORK) {
        return true;
    }
    cpu.note_work(1);
    cpu.has_patience()
}

/// Runs `body` once, or with a repeat prefix as often as the counter tells.
pub(crate) fn repeat(cpu: &mut Cpu, insn: &Insn, body: impl Fn(&mut Cpu) -> Exec) -> Exec {
    if insn.repeat == Repeat::None {
        return body(cpu);
    }
    for n in 1..=portion(cpu) {
        let count = cpu.counter(insn);
        if count == 0 {
            return Ok(());
        }
        if !may_iterate(cpu, n) {
            break;
        }
        body(cpu)?;
        cpu.set_counter(insn, count - 1);
    }
    come_back_unless_done(cpu, insn);
    Ok(())
}

/// As [`repeat`], for a comparison: REPE ends with the first difference, REPNE with the first
/// match.
fn repeat_while(cpu: &mut Cpu, insn: &Insn, body: impl Fn(&mut Cpu) -> Exec<Rflags>) -> Exec {
    if insn.repeat == Repeat::None {
        let flags = body(cpu)?;
        cpu.set_status(Rflags::STATUS, flags);
        return Ok(());
    }
    let goes_on_if_equal = insn.repeat == Repeat::Rep;
    for n in 1..=portion(cpu) {
        let count = cpu.counter(insn);
        if count == 0 {
            return Ok(());
        }
        if !may_iterate(cpu, n) {
            break;
        }
        let flags = body(cpu)?;
        cpu.set_counter(insn, count - 1);
        if count == 1 || flags.contains(Rflags::ZF) != goes_on_if_equal {
            cpu.set_status(Rflags::STATUS, flags);
            return Ok(());
        }
    }
    come_back_unless_done(cpu, insn);
    Ok(())
}

/// Makes the instruction itself the next one if iterations are left.
fn come_back_unless_done(cpu: &mut Cpu, insn: &Insn) {
    if cpu.counter(insn) != 0 {
        cpu.next_rip = cpu.state.rip;
        cpu.engine.portions += 1;
    }
}
