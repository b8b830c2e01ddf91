//! Port accesses against a bus that records them.

use std::sync::{Arc, Mutex};

use vmx_model::addr::Hpa;
use vmx_model::arch::{AccessRights, Rflags, SegmentRegister};

use crate::bus::{Bus, Suspend};
use crate::test_cpu::{DATA, GP, execute, long_mode, protected_mode, real_mode, user};
use crate::{Cpu, Exec, Fault};

/// Answers 0x1122_3344 and counts down to a suspension.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<(Vec<PortAccess>, Option<u32>)>>);

/// Port, size, and the value if it is a write.
type PortAccess = (u16, usize, Option<u32>);

impl Recorder {
    fn access(&self, port: u16, size: usize, value: Option<u32>) -> Result<u32, Suspend> {
        let mut state = self.0.lock().expect("nobody panics here");
        if let Some(left) = &mut state.1 {
            if *left == 0 {
                return Err(Suspend);
            }
            *left -= 1;
        }
        state.0.push((port, size, value));
        Ok(0x1122_3344)
    }
    fn seen(&self) -> Vec<PortAccess> {
        self.0.lock().expect("nobody panics here").0.clone()
    }
    fn suspend_after(&self, count: Option<u32>) {
        self.0.lock().expect("nobody panics here").1 = count;
    }
}

impl Bus for Recorder {
    fn memory_read(&mut self, _: Hpa, _: usize) -> Result<u64, Suspend> {
        Ok(0)
    }
    fn memory_write(&mut self, _: Hpa, _: usize, _: u64) -> Result<(), Suspend> {
        Ok(())
    }
    fn port_read(&mut self, port: u16, size: usize) -> Result<u32, Suspend> {
        self.access(port, size, None)
    }
    fn port_write(&mut self, port: u16, size: usize, value: u32) -> Result<(), Suspend> {
        self.access(port, size, Some(value)).map(|_| ())
    }
}

fn with_recorder(mut cpu: Cpu) -> (Cpu, Recorder) {
    let recorder = Recorder::default();
    cpu.bus = Box::new(recorder.clone());
    (cpu, recorder)
}

#[test]
fn in_and_out_have_three_sizes() {
    let (mut cpu, recorder) = with_recorder(long_mode());
    let start = 0x5555_6666_7777_8888;
    let rows: &[(&[u8], u64)] = &[
        (&[0xe4, 0x80], 0x5555_6666_7777_8844),
        (&[0xec], 0x5555_6666_7777_8844),
        (&[0x66, 0xed], 0x5555_6666_7777_3344),
        (&[0xed], 0x1122_3344),
    ];
    cpu.gpr[2] = 0x0dea_d3f8;
    for (code, expected) in rows {
        cpu.gpr[0] = start;
        assert_eq!(execute(&mut cpu, code), Ok(()));
        assert_eq!(cpu.gpr[0], *expected);
    }
    cpu.gpr[0] = start;
    for code in [&[0xe6, 0x80][..], &[0xee], &[0x66, 0xef], &[0xef]] {
        assert_eq!(execute(&mut cpu, code), Ok(()));
    }
    let port = 0xd3f8;
    let out = [
        (0x80, 1, Some(0x88)),
        (port, 1, Some(0x88)),
        (port, 2, Some(0x8888)),
        (port, 4, Some(0x7777_8888)),
    ];
    let expected: Vec<_> = [
        (0x80, 1, None),
        (port, 1, None),
        (port, 2, None),
        (port, 4, None),
    ]
    .into_iter()
    .chain(out)
    .map(|(p, s, v)| (if p == 0x80 { p } else { cpu.gpr[2] as u16 }, s, v))
    .collect();
    assert_eq!(recorder.seen(), expected);
}

#[test]
fn strings_go_both_ways_and_survive_a_suspension() {
    let (mut cpu, recorder) = with_recorder(long_mode());
    cpu.gpr[1] = 3;
    cpu.gpr[2] = 0x10;
    cpu.gpr[7] = DATA;
    recorder.suspend_after(Some(1));
    let rep_insw = [0xf3, 0x66, 0x6d];
    assert_eq!(execute(&mut cpu, &rep_insw), Err(Fault::Stop));
    assert_eq!((cpu.gpr[1], cpu.gpr[7]), (2, DATA + 2));
    recorder.suspend_after(None);
    cpu.pending_stop = None;
    assert_eq!(execute(&mut cpu, &rep_insw), Ok(()));
    assert_eq!((cpu.gpr[1], cpu.gpr[7]), (0, DATA + 6));
    assert_eq!(
        cpu.phys.view().load_entry(Hpa(DATA), 8),
        Some(0x3344_3344_3344)
    );

    cpu.gpr[1] = 2;
    cpu.gpr[6] = DATA + 2;
    cpu.set_rflags(Rflags::DF);
    assert_eq!(execute(&mut cpu, &[0xf3, 0x66, 0x6f]), Ok(()));
    assert_eq!((cpu.gpr[1], cpu.gpr[6]), (0, DATA - 2));
    assert_eq!(recorder.seen().last(), Some(&(0x10, 2, Some(0x3344))));
}

#[test]
fn ins_to_a_page_that_is_not_there_does_not_touch_the_port() {
    let (mut cpu, recorder) = with_recorder(long_mode());
    cpu.gpr[7] = 1 << 40;
    assert!(matches!(
        execute(&mut cpu, &[0x6c]),
        Err(Fault::Exception(_))
    ));
    assert_eq!(recorder.seen(), []);
}

/// Gives the processor a TSS at DATA with a bitmap at 0x68 that permits only ports 0x10 to 0x13.
fn with_bitmap(mut cpu: Cpu) -> Cpu {
    cpu.phys.write_bytes(Hpa(DATA + 0x66), &[0x68, 0]);
    cpu.phys
        .write_bytes(Hpa(DATA + 0x68), &[0xff, 0xff, 0xf0, 0xff]);
    let tr = cpu.state.segment_mut(SegmentRegister::Tr);
    (tr.base, tr.limit, tr.access) = (DATA, 0x6b, AccessRights(0x8b));
    cpu
}

fn input(cpu: Cpu, port: u8, code: u8) -> Exec {
    let (mut cpu, recorder) = with_recorder(cpu);
    let result = execute(&mut cpu, &[code, port]);
    assert_eq!(recorder.seen().len(), usize::from(result.is_ok()));
    result
}

#[test]
fn the_bitmap_permits_what_iopl_does_not() {
    const INB: u8 = 0xe4;
    const IND: u8 = 0xe5;
    type Row = (&'static str, fn() -> Cpu, u8, u8, Exec);
    let rows: &[Row] = &[
        ("CPL 0", || with_bitmap(protected_mode()), 0x80, INB, Ok(())),
        (
            "permitted",
            || with_bitmap(user(protected_mode())),
            0x13,
            INB,
            Ok(()),
        ),
        (
            "permitted, all four",
            || with_bitmap(user(protected_mode())),
            0x10,
            IND,
            Ok(()),
        ),
        (
            "permitted in 64-bit mode",
            || with_bitmap(user(long_mode())),
            0x13,
            INB,
            Ok(()),
        ),
        (
            "denied",
            || with_bitmap(user(protected_mode())),
            0x14,
            INB,
            GP,
        ),
        (
            "one of four denied",
            || with_bitmap(user(protected_mode())),
            0x11,
            IND,
            GP,
        ),
        (
            "second byte beyond the limit",
            || with_bitmap(user(protected_mode())),
            0x18,
            INB,
            GP,
        ),
        (
            "beyond the limit",
            || with_bitmap(user(protected_mode())),
            0x80,
            INB,
            GP,
        ),
        (
            "IOPL 3",
            || {
                let mut c = with_bitmap(user(protected_mode()));
                c.state.rflags |= Rflags::IOPL;
                c
            },
            0x80,
            INB,
            Ok(()),
        ),
        (
            "virtual-8086 ignores IOPL",
            || {
                let mut c = with_bitmap(user(protected_mode()));
                c.state.rflags |= Rflags::IOPL | Rflags::VM;
                c
            },
            0x80,
            INB,
            GP,
        ),
        (
            "virtual-8086, permitted",
            || {
                let mut c = with_bitmap(user(protected_mode()));
                c.state.rflags |= Rflags::VM;
                c
            },
            0x10,
            INB,
            Ok(()),
        ),
        (
            "16-bit TSS",
            || {
                let mut c = with_bitmap(user(protected_mode()));
                c.state.segment_mut(SegmentRegister::Tr).access = AccessRights(0x83);
                c
            },
            0x10,
            INB,
            GP,
        ),
        ("real mode", real_mode, 0x80, INB, Ok(())),
    ];
    for (name, cpu, port, code, expected) in rows {
        assert_eq!(input(cpu(), *port, *code), *expected, "{name}");
    }
}
