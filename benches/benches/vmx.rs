//! VMREAD and VMWRITE, and the way into a guest and out again, below any hypervisor.

use benches::root::Root;
use criterion::{Criterion, criterion_group, criterion_main};
use std::hint::black_box;
use vmx_model::field::Field;

fn vmx(c: &mut Criterion) {
    let mut group = c.benchmark_group("vmx");
    let mut root = Root::new().expect("a guest");
    group.bench_function("VM entry and VM exit", |b| {
        b.iter(|| root.round_trip().expect("in and out"));
    });
    let processor = root.processor().expect("attached");
    let encoding = u64::from(Field::GUEST_RIP.encoding());
    group.bench_function("VMREAD and VMWRITE by encoding", |b| {
        b.iter(|| {
            let value = processor.vmread(black_box(encoding)).expect("executed");
            let written = processor.vmwrite(black_box(encoding), 0x1000);
            (value, written)
        });
    });
    group.bench_function("VMREAD and VMWRITE by field", |b| {
        b.iter(|| {
            let value = processor.read(black_box(Field::GUEST_RIP));
            (value, processor.write(black_box(Field::GUEST_RIP), 0x1000))
        });
    });
    group.finish();
}

criterion_group!(benches, vmx);
criterion_main!(benches);
