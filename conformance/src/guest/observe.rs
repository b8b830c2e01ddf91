//! Runs a vCPU and writes what is seen in the words of an expectation.
//!
//! An expectation is a line of words. The first ones are exits, each of which costs one KVM_RUN:
//!
//! | word | exit |
//! |---|---|
//! | `HLT`, `SHUTDOWN`, `IRQ_WINDOW_OPEN`, ... | KVM_EXIT_* without details |
//! | `#PF(0x2)@+0x5` | HLT of the stub of an exception: error code, saved RIP from the start of the code |
//! | `INT(0x20)@+0x5` | the same for a vector above 31 |
//! | `out:0x10/1=5a` | port, size and data of an OUT; `/1*4` if there are several elements |
//! | `in:0x60/1<77` | an IN, and the data that is given back |
//! | `read:0x90010/2<1122`, `write:0x90010/2=1122` | MMIO |
//! | `rdmsr:0x277/4<55`, `wrmsr:0x277/4=55` | MSR exits: reason; `<!` gives back an error |
//! | `DEBUG(1)@+0x1/0xffff4ff0` | exception, linear address, DR6 |
//! | `FAIL_ENTRY(0x80000021)`, `INTERNAL_ERROR(1)` | reason, suberror |
//! | `EINTR`, `EFAULT`, ... | KVM_RUN failed |
//!
//! Words with `=` that follow are state: registers (`rax=0x1`), `fl=CF|ZF` (arithmetic flags;
//! `logic`, `cfof`, `cf` and `zf` are fewer of them, where an instruction leaves some undefined),
//! segment fields (`cs.base=0x0`), `cr0`..., memory (`m4:0x5000=0x11223344`, `mx:0x5000/3=aabbcc`),
//! `run.if_flag`, `msr:0x277`, `events.…`, `dr0`...

use super::layout::*;
use super::machine::Machine;
use crate::backend::{Outcome, outcome_text};
use crate::probe::{Probe, Words, hex};
use crate::requests::*;
use kvm_bindings::{
    kvm_debugregs, kvm_dtable, kvm_mp_state, kvm_regs, kvm_segment, kvm_sregs, kvm_vcpu_events,
};

/// No KVM_RUN of a case lasts longer.
const RUN_LIMIT_MS: u32 = 1000;

/// Runs and writes; see the module.
pub fn observe(probe: &mut Probe<'_>, machine: &Machine, want: &str) -> String {
    let mut seen = Vec::new();
    for word in want.split_whitespace() {
        let is_state = word.contains('=') && !is_exit(word);
        seen.push(if is_state {
            state(probe, machine, word)
        } else {
            step(probe, machine, word)
        });
    }
    seen.join(" ")
}

fn is_exit(word: &str) -> bool {
    ["out:", "write:", "wrmsr:"]
        .iter()
        .any(|kind| word.starts_with(kind))
}

/// One KVM_RUN, written as the word that is wanted would be.
fn step(probe: &mut Probe<'_>, machine: &Machine, want: &str) -> String {
    let outcome = probe.run(machine.vcpu, RUN_LIMIT_MS);
    let seen = exit(probe, machine, outcome);
    match want.split_once('<') {
        Some((head, answer)) if head == seen => {
            respond(probe, machine, answer);
            want.to_owned()
        }
        _ => seen,
    }
}

/// The exits without details, by number.
const PLAIN_EXITS: &[(u64, &str)] = &[
    (0, "UNKNOWN"),
    (1, "EXCEPTION"),
    (3, "HYPERCALL"),
    (7, "IRQ_WINDOW_OPEN"),
    (8, "SHUTDOWN"),
    (10, "INTR"),
    (11, "SET_TPR"),
    (24, "SYSTEM_EVENT"),
    (33, "X86_BUS_LOCK"),
    (39, "MEMORY_FAULT"),
];

/// The exit that `kvm_run` holds, as a word.
pub fn exit(probe: &mut Probe<'_>, machine: &Machine, outcome: Outcome) -> String {
    if outcome != Ok(0) {
        return outcome_text(outcome);
    }
    let run = Words::from_bytes(probe.read(machine.run, 0, 0x100));
    match run.get(8, 4) {
        2 => port_exit(probe, machine, &run),
        4 => debug_exit(&run),
        5 => halt(probe, machine),
        6 => memory_exit(&run),
        9 => format!("FAIL_ENTRY({:#x})", run.get(32, 8)),
        17 => format!("INTERNAL_ERROR({})", run.get(32, 4)),
        29 => format!("rdmsr:{:#x}/{}", run.get(44, 4), run.get(40, 4)),
        30 => format!(
            "wrmsr:{:#x}/{}={:x}",
            run.get(44, 4),
            run.get(40, 4),
            run.get(48, 8)
        ),
        reason => match PLAIN_EXITS.iter().find(|(number, _)| *number == reason) {
            Some((_, name)) => (*name).to_owned(),
            None => format!("EXIT({reason})"),
        },
    }
}

fn port_exit(probe: &mut Probe<'_>, machine: &Machine, run: &Words) -> String {
    let (size, port, count) = (run.get(33, 1), run.get(34, 2), run.get(36, 4));
    let times = if count == 1 {
        String::new()
    } else {
        format!("*{count}")
    };
    let head = format!("{port:#x}/{size}{times}");
    if run.get(32, 1) == 0 {
        return format!("in:{head}");
    }
    let length = (size * count).min(4096) as u32;
    let data = probe.read(machine.run, run.get(40, 8).min(8192), length);
    format!("out:{head}={}", hex(&data))
}

fn memory_exit(run: &Words) -> String {
    let (address, length) = (run.get(32, 8), run.get(48, 4).min(8));
    match run.get(52, 1) {
        0 => format!("read:{address:#x}/{length}"),
        _ => format!(
            "write:{address:#x}/{length}={}",
            hex(&run.bytes()[40..][..length as usize])
        ),
    }
}

fn debug_exit(run: &Words) -> String {
    let offset = run.get(40, 8).wrapping_sub(CODE);
    format!(
        "DEBUG({})@+{offset:#x}/{:#x}",
        run.get(32, 4),
        run.get(48, 8)
    )
}

/// Gives back what an IN, a load or an MSR access asked for.
fn respond(probe: &mut Probe<'_>, machine: &Machine, answer: &str) {
    let run = Words::from_bytes(probe.read(machine.run, 0, 0x100));
    let bytes: Vec<u8> = (0..answer.len() / 2)
        .filter_map(|i| u8::from_str_radix(answer.get(2 * i..2 * i + 2)?, 16).ok())
        .collect();
    match run.get(8, 4) {
        2 => machine.set_run(probe, run.get(40, 8), &bytes),
        6 => machine.set_run(probe, 40, &bytes),
        29 | 30 if answer == "!" => machine.set_run(probe, 32, &[1]),
        29 | 30 => machine.set_run(probe, 48, &bytes),
        _ => {}
    }
}

/// The names of the exceptions, by vector.
const EXCEPTIONS: [&str; 22] = [
    "DE", "DB", "NMI", "BP", "OF", "BR", "UD", "NM", "DF", "CSO", "TS", "NP", "SS", "GP", "PF",
    "15", "MF", "AC", "MC", "XM", "VE", "CP",
];

/// HLT of the code, or of the stub of a vector with what the processor pushed.
fn halt(probe: &mut Probe<'_>, machine: &Machine) -> String {
    let regs: kvm_regs = probe.read_struct(machine.vcpu, KVM_GET_REGS);
    let from_stubs = regs.rip.wrapping_sub(STUBS + 1);
    if from_stubs >= 256 * STUB_SIZE || !from_stubs.is_multiple_of(STUB_SIZE) {
        return "HLT".to_owned();
    }
    let vector = from_stubs / STUB_SIZE;
    let sregs: kvm_sregs = probe.read_struct(machine.vcpu, KVM_GET_SREGS);
    let has_code = machine_pushes_codes(machine) && matches!(vector, 8 | 10..=14 | 17 | 21);
    let width = match machine.mode.bits() {
        16 => 2,
        _ if machine.mode.is_long() => 8,
        _ => 4,
    };
    let stack = regs.rsp.wrapping_add(sregs.ss.base);
    let frame = |probe: &mut Probe<'_>, word: u32| {
        probe.read_number(machine.memory, stack + u64::from(word * width), width)
    };
    let code = if has_code {
        format!("({:#x})", frame(probe, 0))
    } else {
        String::new()
    };
    let saved = frame(probe, u32::from(has_code)).wrapping_sub(CODE);
    match EXCEPTIONS.get(vector as usize) {
        Some(name) => format!("#{name}{code}@+{saved:#x}"),
        None => format!("INT({vector:#x})@+{saved:#x}"),
    }
}

/// Real-address mode pushes no error codes.
fn machine_pushes_codes(machine: &Machine) -> bool {
    machine.mode != super::Mode::Real
}

/// One `name=value` word with the value that is seen.
fn state(probe: &mut Probe<'_>, machine: &Machine, word: &str) -> String {
    let name = word.split('=').next().unwrap_or(word);
    let value = value_of(probe, machine, name).unwrap_or_else(|| "no-such-name".to_owned());
    format!("{name}={value}")
}

fn value_of(probe: &mut Probe<'_>, machine: &Machine, name: &str) -> Option<String> {
    let number = |value: u64| Some(format!("{value:#x}"));
    let mut regs: kvm_regs = kvm_regs::default();
    if let Some((_, mask)) = FLAG_SETS.iter().find(|(set, _)| *set == name) {
        regs = probe.read_struct(machine.vcpu, KVM_GET_REGS);
        return Some(flag_names(regs.rflags & mask));
    }
    if register_mut(&mut regs, name).is_some() {
        regs = probe.read_struct(machine.vcpu, KVM_GET_REGS);
        return number(*register_mut(&mut regs, name)?);
    }
    if let Some(place) = name.strip_prefix("mx:") {
        let (at, length) = place.split_once('/')?;
        let bytes = probe.read(machine.memory, parse(at)?, length.parse().ok()?);
        return Some(hex(&bytes));
    }
    if let Some(place) = name
        .strip_prefix('m')
        .filter(|rest| rest.contains(':') && !rest.starts_with('s'))
    {
        let (width, at) = place.split_once(':')?;
        return number(probe.read_number(machine.memory, parse(at)?, width.parse().ok()?));
    }
    if let Some(field) = name.strip_prefix("run.") {
        let (offset, width) = run_field(field)?;
        return number(probe.read_number(machine.run, offset, width));
    }
    if let Some(index) = name.strip_prefix("msr:") {
        return number(read_msr(probe, machine, parse(index)? as u32)?);
    }
    if let Some(field) = name.strip_prefix("events.") {
        let events: kvm_vcpu_events = probe.read_struct(machine.vcpu, KVM_GET_VCPU_EVENTS);
        return number(event_field(&events, field)?);
    }
    if let Some(register) = name.strip_prefix("dr") {
        let debug: kvm_debugregs = probe.read_struct(machine.vcpu, KVM_GET_DEBUGREGS);
        return number(debug_register(&debug, register.parse().ok()?)?);
    }
    if name == "mp_state" {
        let state: kvm_mp_state = probe.read_struct(machine.vcpu, KVM_GET_MP_STATE);
        return number(state.mp_state.into());
    }
    let sregs: kvm_sregs = probe.read_struct(machine.vcpu, KVM_GET_SREGS);
    number(system_field(&sregs, name)?)
}

fn parse(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// The value of one MSR, if KVM_GET_MSRS reads it.
pub fn read_msr(probe: &mut Probe<'_>, machine: &Machine, index: u32) -> Option<u64> {
    let mut msrs = Words::sized(24).u32(0, 1).u32(8, index);
    let outcome = probe.bytes(machine.vcpu, KVM_GET_MSRS, msrs.bytes_mut());
    (outcome == Ok(1)).then(|| msrs.get(16, 8))
}

const FLAGS: [(u64, &str); 7] = [
    (1, "CF"),
    (4, "PF"),
    (0x10, "AF"),
    (0x40, "ZF"),
    (0x80, "SF"),
    (0x400, "DF"),
    (0x800, "OF"),
];

/// Flags by the name of the set: all, those that a logic instruction defines, those of a
/// multiplication, and one by one.
const FLAG_SETS: [(&str, u64); 5] = [
    ("fl", 0xcd5),
    ("logic", 0xcc5),
    ("cfof", 0x801),
    ("cf", 1),
    ("zf", 0x40),
];

/// `CF|ZF`, or `-` if none is set.
fn flag_names(rflags: u64) -> String {
    let names: Vec<&str> = FLAGS
        .iter()
        .filter(|(bit, _)| rflags & bit != 0)
        .map(|(_, name)| *name)
        .collect();
    if names.is_empty() {
        "-".to_owned()
    } else {
        names.join("|")
    }
}

/// A general register by its name.
pub fn register_mut<'r>(regs: &'r mut kvm_regs, name: &str) -> Option<&'r mut u64> {
    Some(match name {
        "rax" => &mut regs.rax,
        "rbx" => &mut regs.rbx,
        "rcx" => &mut regs.rcx,
        "rdx" => &mut regs.rdx,
        "rsi" => &mut regs.rsi,
        "rdi" => &mut regs.rdi,
        "rsp" => &mut regs.rsp,
        "rbp" => &mut regs.rbp,
        "r8" => &mut regs.r8,
        "r9" => &mut regs.r9,
        "r10" => &mut regs.r10,
        "r11" => &mut regs.r11,
        "r12" => &mut regs.r12,
        "r13" => &mut regs.r13,
        "r14" => &mut regs.r14,
        "r15" => &mut regs.r15,
        "rip" => &mut regs.rip,
        "rflags" => &mut regs.rflags,
        _ => return None,
    })
}

fn system_field(sregs: &kvm_sregs, name: &str) -> Option<u64> {
    if let Some((segment, field)) = name.split_once('.') {
        return match segment {
            "gdt" => table_field(&sregs.gdt, field),
            "idt" => table_field(&sregs.idt, field),
            _ => segment_field(segment_of(sregs, segment)?, field),
        };
    }
    Some(match name {
        "cr0" => sregs.cr0,
        "cr2" => sregs.cr2,
        "cr3" => sregs.cr3,
        "cr4" => sregs.cr4,
        "cr8" => sregs.cr8,
        "efer" => sregs.efer,
        "apic_base" => sregs.apic_base,
        _ => segment_of(sregs, name)?.selector.into(),
    })
}

fn segment_of<'s>(sregs: &'s kvm_sregs, name: &str) -> Option<&'s kvm_segment> {
    Some(match name {
        "cs" => &sregs.cs,
        "ds" => &sregs.ds,
        "es" => &sregs.es,
        "fs" => &sregs.fs,
        "gs" => &sregs.gs,
        "ss" => &sregs.ss,
        "tr" => &sregs.tr,
        "ldt" => &sregs.ldt,
        _ => return None,
    })
}

fn segment_field(segment: &kvm_segment, field: &str) -> Option<u64> {
    Some(match field {
        "base" => segment.base,
        "limit" => segment.limit.into(),
        "type" => segment.type_.into(),
        "present" => segment.present.into(),
        "dpl" => segment.dpl.into(),
        "db" => segment.db.into(),
        "s" => segment.s.into(),
        "l" => segment.l.into(),
        "g" => segment.g.into(),
        "avl" => segment.avl.into(),
        "unusable" => segment.unusable.into(),
        _ => return None,
    })
}

fn table_field(table: &kvm_dtable, field: &str) -> Option<u64> {
    match field {
        "base" => Some(table.base),
        "limit" => Some(table.limit.into()),
        _ => None,
    }
}

fn event_field(events: &kvm_vcpu_events, field: &str) -> Option<u64> {
    Some(match field {
        "exception.injected" => events.exception.injected.into(),
        "exception.nr" => events.exception.nr.into(),
        "exception.error_code" => events.exception.error_code.into(),
        "exception.pending" => events.exception.pending.into(),
        "interrupt.injected" => events.interrupt.injected.into(),
        "interrupt.nr" => events.interrupt.nr.into(),
        "interrupt.shadow" => events.interrupt.shadow.into(),
        "nmi.injected" => events.nmi.injected.into(),
        "nmi.pending" => events.nmi.pending.into(),
        "nmi.masked" => events.nmi.masked.into(),
        "flags" => events.flags.into(),
        _ => return None,
    })
}

fn debug_register(debug: &kvm_debugregs, number: usize) -> Option<u64> {
    match number {
        6 => Some(debug.dr6),
        7 => Some(debug.dr7),
        _ => debug.db.get(number).copied(),
    }
}

/// Offset and width of a field of `kvm_run`.
fn run_field(name: &str) -> Option<(u64, u32)> {
    Some(match name {
        "immediate_exit" => (1, 1),
        "exit_reason" => (8, 4),
        "ready" => (12, 1),
        "if_flag" => (13, 1),
        "flags" => (14, 2),
        "cr8" => (16, 8),
        "apic_base" => (24, 8),
        "data_offset" => (40, 8),
        "ndata" => (36, 4),
        "dr6" => (48, 8),
        "dr7" => (56, 8),
        "data0" => (40, 8),
        "dirty_regs" => (296, 8),
        "sync.rax" => (304, 8),
        "sync.rip" => (304 + 128, 8),
        "sync.cr0" => (448 + 224, 8),
        _ => return None,
    })
}
