//! What VM and vCPU descriptors do with everything that is not theirs.

use crate::backend::{DescriptorCall, Mapping};
use crate::guest::Machine;
use crate::probe::Probe;
use crate::requests::*;

const ON_VM: &[(&str, u32)] = &[
    ("vm_unknown", foreign(0xae, 0xff)),
    ("vm_foreign", foreign(b'X', 0x99)),
    ("vm_sysioctl", KVM_CREATE_VM),
    ("vm_apiver", KVM_GET_API_VERSION),
    ("vm_mmapsize", KVM_GET_VCPU_MMAP_SIZE),
    ("vm_supcpuid", KVM_GET_SUPPORTED_CPUID),
    ("vm_run", KVM_RUN),
    ("vm_wrongsize", misshapen(1, 0x46, 8)),
];

const ON_VCPU: &[(&str, u32)] = &[
    ("vcpu_unknown", foreign(0xae, 0xff)),
    ("vcpu_foreign", foreign(b'X', 0x99)),
    ("vcpu_createvcpu", KVM_CREATE_VCPU),
    ("vcpu_checkext", KVM_CHECK_EXTENSION),
    ("vcpu_wrongsize", misshapen(2, 0x81, 8)),
    ("vcpu_wrongdir", misshapen(1, 0x81, 144)),
];

pub(super) fn script(probe: &mut Probe<'_>) {
    let machine = Machine::bare(probe);
    let (vm, vcpu) = (machine.vm.vm, machine.vcpu);
    for (case, request) in ON_VM {
        let got = probe.value(vm, *request, 0);
        probe.expect(case, "ENOTTY", got);
    }
    for (case, request) in ON_VCPU {
        let got = probe.value(vcpu, *request, 0);
        probe.expect(case, "EINVAL", got);
    }
    let calls = [
        ("vm_read", "EINVAL", vm, DescriptorCall::Read(8)),
        ("vm_write", "EINVAL", vm, DescriptorCall::Write),
        ("vm_lseek", "0", vm, DescriptorCall::Seek(5)),
        ("vcpu_lseek", "0", vcpu, DescriptorCall::Seek(5)),
        ("vcpu_read", "EINVAL", vcpu, DescriptorCall::Read(8)),
        ("vcpu_poll", "5", vcpu, DescriptorCall::Poll),
        ("vcpu_cloexec", "1", vcpu, DescriptorCall::CloseOnExec),
        ("vcpu_accmode", "2", vcpu, DescriptorCall::AccessMode),
    ];
    for (case, want, handle, call) in calls {
        let got = probe.descriptor(handle, call);
        probe.expect(case, want, got);
    }
    let link = probe.link(vcpu);
    probe.check("vcpu_link", "anon_inode:kvm-vcpu:0", &link);
    let (_, got) = probe.map(vm, (4096, 0), Mapping::ReadOnly);
    probe.expect("vm_mmap", "ENODEV", got);
    mappings(probe, &machine);
}

/// Pages 0 to 2 are run, pio and coalesced ring; behind them a touch is SIGBUS (7).
fn mappings(probe: &mut Probe<'_>, machine: &Machine) {
    let rows = [
        ("mmap_off_0", 0, 4096, 0, "0 signal=0"),
        ("mmap_off_1", 1, 4096, 0, "0 signal=0"),
        ("mmap_off_2", 2, 4096, 0, "0 signal=0"),
        ("mmap_off_3", 3, 4096, 0, "0 signal=7"),
        ("mmap_off_4", 4, 4096, 0, "0 signal=7"),
        ("mmap_20k", 0, 20480, 16384, "0 signal=7"),
        ("mmap_dirtyring_off", 64, 4096, 0, "0 signal=7"),
    ];
    for (case, page, length, place, want) in rows {
        let (memory, outcome) = probe.map(machine.vcpu, (length, page * 4096), Mapping::Shared);
        let signal = probe.touch(memory, place);
        let texts = [outcome, signal].map(crate::backend::outcome_text);
        probe.check(case, want, &format!("{} signal={}", texts[0], texts[1]));
    }
    let (_, got) = probe.map(machine.vcpu, (4096, 0), Mapping::Private);
    probe.expect("mmap_private", "0", got);
}
