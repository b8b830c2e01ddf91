//! KVM_ENABLE_CAP (api.rst, "Capabilities that can be enabled").

use crate::guest::Vm;
use crate::guest::machine::enable_cap;
use crate::probe::Probe;
use crate::requests::*;

/// Case, wanted, capability, argument.
type Row = (&'static str, &'static str, u32, u64);

const ON_VM: &[Row] = &[
    ("unknown", "EINVAL", 9999, 0),
    ("userspace_basic", "EINVAL", 3, 0),
    ("quirks", "0", 116, u64::MAX),
    ("quirks2", "EINVAL", 213, 1 << 40),
    ("quirks2ok", "0", 213, 1),
    ("x2apic", "0", 129, 3),
    ("disexits", "0", 143, 4),
    ("disexits_bad", "EINVAL", 143, 1 << 20),
    ("platinfo", "0", 159, 0),
    ("halt_poll", "0", 182, 0),
    ("halt_poll_big", "EINVAL", 182, 1 << 32),
    ("hypercall", "0", 201, 1 << 12),
    ("hypercall_bad", "EINVAL", 201, 1),
    ("buslock3", "EINVAL", 193, 3),
    ("pmu_bad", "EINVAL", 212, 32),
    ("apicbus0", "EINVAL", 237, 0),
    ("apicbus_noirqchip", "ENXIO", 237, 10),
    ("usermsr_bad", "EINVAL", 188, 16),
    ("usermsr", "0", 188, 7),
    ("payload", "0", 164, 1),
    ("triple_fault", "0", 218, 1),
    ("exit_emul", "0", 204, 1),
    ("exit_emul2", "EINVAL", 204, 2),
];

const ON_VCPU: &[Row] = &[
    ("v_unknown", "EINVAL", 9999, 0),
    ("v_pvcpuid", "0", 190, 1),
    ("v_vmcap", "EINVAL", 129, 1),
];

pub(super) fn script(probe: &mut Probe<'_>) {
    let vm = Vm::new(probe);
    for (case, want, capability, argument) in ON_VM {
        let got = vm.enable(probe, *capability, *argument);
        probe.expect(case, want, got);
    }
    let got = probe.send(vm.vm, KVM_ENABLE_CAP, enable_cap(129, 0).u32(4, 1));
    probe.expect("flags", "EINVAL", got);
    let got = probe.value(vm.vm, KVM_ENABLE_CAP, 0);
    probe.expect("null", "EFAULT", got);
    let (vcpu, _) = vm.vcpu(probe, 0);
    let got = vm.enable(probe, 212, 1);
    probe.expect("pmu_late", "EINVAL", got);
    let got = vm.enable(probe, 220, 0);
    probe.expect("nxhuge_late", "EINVAL", got);
    for (case, want, capability, argument) in ON_VCPU {
        let got = probe.send(vcpu, KVM_ENABLE_CAP, enable_cap(*capability, *argument));
        probe.expect(case, want, got);
    }
}
