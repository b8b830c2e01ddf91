//! The interpreter on guest programs, through the public API of `x86-interp` only.
//!
//! Unit: one element is one guest instruction, so criterion's "elements/s" is instructions per
//! second. Each measured run is a whole run of a program from cold caches, result checked; it is
//! long enough that first touches of memory do not count.

use benches::bare;
use benches::image::Image;
use benches::programs::{PROGRAMS, Program};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use x86_interp::{Cpu, Stop};

/// Iterations of a measured run, in multiples of the program's own number.
const LENGTH: u32 = 8;

/// Runs the program to its end and checks what it computed.
fn run(cpu: &mut Cpu, program: &Program) {
    assert_eq!(cpu.run(u64::MAX), Stop::Halt, "{}", program.name);
    let expected = program.expected(program.iterations * LENGTH, Image::DATA);
    assert_eq!(
        bare::result(cpu, program.bits),
        expected,
        "{}",
        program.name
    );
}

fn interpreter(c: &mut Criterion) {
    let mut group = c.benchmark_group("interpreter");
    group.sample_size(10);
    for program in PROGRAMS {
        let image = Image::new(program, program.iterations * LENGTH);
        let processor = || bare::processor(&image).expect("memory for a guest");
        let mut cpu = processor();
        run(&mut cpu, program);
        group.throughput(Throughput::Elements(cpu.retired()));
        group.bench_function(program.name, |b| {
            b.iter_batched(
                processor,
                |mut cpu| run(&mut cpu, program),
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, interpreter);
criterion_main!(benches);
