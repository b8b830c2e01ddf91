//! Code that is executed for the first time: decoding and building blocks.
//!
//! Unit: one element is one guest instruction.

use std::sync::Arc;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use vmx_model::addr::Hpa;
use x86_interp::bus::{EmptyBus, InstructionClock};
use x86_interp::mem::phys::{OwnedRam, PhysMap};
use x86_interp::{Cpu, Stop};

/// add ax, 0x1234: three bytes, in 16-bit code.
const ADD: [u8; 3] = [0x05, 0x34, 0x12];
const COUNT: u64 = 16_000;

/// A processor in real-address mode before straight-line code that nobody has executed.
fn processor() -> Cpu {
    let phys = PhysMap::new();
    let ram = OwnedRam::new(16).expect("16 pages");
    phys.add_owned(Hpa(0), Arc::new(ram)).expect("an empty map");
    phys.write_bytes(Hpa(0), &ADD.repeat(COUNT as usize));
    let clock = Box::<InstructionClock>::default();
    let mut cpu = Cpu::new(phys, Box::new(EmptyBus), clock);
    let mut state = cpu.arch_state();
    let cs = state.segment_mut(vmx_model::arch::SegmentRegister::Cs);
    (cs.base, cs.selector) = (0, 0);
    state.rip = 0;
    cpu.set_arch_state(&state);
    cpu
}

fn code(c: &mut Criterion) {
    let mut group = c.benchmark_group("first execution");
    group.throughput(Throughput::Elements(COUNT));
    group.bench_function("decode (one instruction at a time)", |b| {
        b.iter_batched(
            processor,
            |mut cpu| {
                for _ in 0..COUNT {
                    assert_eq!(cpu.run(1), Stop::Budget);
                }
            },
            BatchSize::LargeInput,
        );
    });
    group.bench_function("block build", |b| {
        b.iter_batched(
            processor,
            |mut cpu| assert_eq!(cpu.run(COUNT), Stop::Budget),
            BatchSize::LargeInput,
        );
    });
    group.finish();
}

criterion_group!(benches, code);
criterion_main!(benches);
