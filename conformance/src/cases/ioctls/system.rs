//! The system descriptor (api.rst, "System ioctls").

use crate::backend::{DescriptorCall, Handle, Mapping};
use crate::probe::{Probe, Words};
use crate::requests::*;

/// Numbers on the system descriptor: case, wanted, request, argument.
const NUMBERS: &[(&str, &str, u32, u64)] = &[
    ("api_version", "12", KVM_GET_API_VERSION, 0),
    ("api_version_arg1", "EINVAL", KVM_GET_API_VERSION, 1),
    ("mmap_size", "12288", KVM_GET_VCPU_MMAP_SIZE, 0),
    ("mmap_size_arg1", "EINVAL", KVM_GET_VCPU_MMAP_SIZE, 1),
    ("check_ext_neg1", "0", KVM_CHECK_EXTENSION, u64::MAX),
    ("check_ext_big", "0", KVM_CHECK_EXTENSION, 0x7fff_ffff),
    ("check_ext_hi32", "0", KVM_CHECK_EXTENSION, 1 << 32),
    ("check_ext_user_memory", "1", KVM_CHECK_EXTENSION, 3),
    ("unknown_kvmio", "EINVAL", foreign(0xae, 0xff), 0),
    ("unknown_type", "EINVAL", foreign(b'X', 0x99), 0),
    ("vm_ioctl_on_sys", "EINVAL", KVM_CREATE_VCPU, 0),
    ("vcpu_ioctl_on_sys", "EINVAL", KVM_RUN, 0),
    ("msr_list_null", "EFAULT", KVM_GET_MSR_INDEX_LIST, 0),
    ("feat_msrs_null", "EFAULT", KVM_GET_MSRS, 0),
    ("cpuid_null", "EFAULT", KVM_GET_SUPPORTED_CPUID, 0),
    ("emul_cpuid_null", "EFAULT", KVM_GET_EMULATED_CPUID, 0),
    (
        "feat_list_null",
        "EFAULT",
        KVM_GET_MSR_FEATURE_INDEX_LIST,
        0,
    ),
];

const BAD_TYPES: &[(&str, u64)] = &[
    ("create_vm_type_6", 6),
    ("create_vm_type_1f", 31),
    ("create_vm_type_20", 32),
    ("create_vm_type_3f", 63),
    ("create_vm_type_40", 64),
    ("create_vm_type_100000000", 1 << 32),
    ("create_vm_type_ffffffffffffffff", u64::MAX),
];

pub(super) fn script(probe: &mut Probe<'_>) {
    let system = probe.open();
    for (case, want, request, argument) in NUMBERS {
        let got = probe.value(system, *request, *argument);
        probe.expect(case, want, got);
    }
    create_vm(probe, system);
    plain_calls(probe, system);
    msr_lists(probe, system);
    feature_msrs(probe, system);
    supported_cpuid(probe, system);
}

fn create_vm(probe: &mut Probe<'_>, system: Handle) {
    let made = probe.create(system, KVM_CREATE_VM, 0);
    let vm = probe.expect_fd("create_vm_type_0", "fd", made);
    let cloexec = probe.descriptor(vm, DescriptorCall::CloseOnExec);
    probe.expect("create_vm_cloexec", "1", cloexec);
    let mode = probe.descriptor(vm, DescriptorCall::AccessMode);
    probe.expect("create_vm_accmode", "2", mode);
    let read_only = probe.open_read_only();
    let made = probe.create(read_only, KVM_CREATE_VM, 0);
    probe.expect_fd("create_vm_rdonly", "fd", made);
    for (case, kind) in BAD_TYPES {
        let made = probe.create(system, KVM_CREATE_VM, *kind);
        probe.expect_fd(case, "EINVAL", made);
    }
}

fn plain_calls(probe: &mut Probe<'_>, system: Handle) {
    let calls = [
        ("read_sys", "EINVAL", DescriptorCall::Read(8)),
        ("write_sys", "EINVAL", DescriptorCall::Write),
        ("lseek_sys", "0", DescriptorCall::Seek(4096)),
    ];
    for (case, want, call) in calls {
        let got = probe.descriptor(system, call);
        probe.expect(case, want, got);
    }
    let (_, got) = probe.map(system, (4096, 0), Mapping::ReadOnly);
    probe.expect("mmap_sys", "ENODEV", got);
}

fn list(probe: &mut Probe<'_>, system: Handle, request: u32, count: u32) -> (String, Words) {
    let mut list = Words::sized(4 + 4 * 512).u32(0, count);
    let outcome = probe.bytes(system, request, list.bytes_mut());
    (crate::backend::outcome_text(outcome), list)
}

fn msr_lists(probe: &mut Probe<'_>, system: Handle) {
    let (got, answer) = list(probe, system, KVM_GET_MSR_INDEX_LIST, 0);
    let needed = answer.get(0, 4) as u32;
    probe.check(
        "msr_list_0",
        "E2BIG needed=true",
        &format!("{got} needed={}", needed > 0),
    );
    let (got, answer) = list(
        probe,
        system,
        KVM_GET_MSR_INDEX_LIST,
        needed.saturating_sub(1),
    );
    let (says, untouched) = (answer.get(0, 4) == u64::from(needed), answer.get(4, 4) == 0);
    let got = format!("{got} needed={says} untouched={untouched}");
    probe.check("msr_list_short", "E2BIG needed=true untouched=true", &got);
    let (got, answer) = list(probe, system, KVM_GET_MSR_INDEX_LIST, 500);
    let lowered = answer.get(0, 4) == u64::from(needed);
    probe.check(
        "msr_list_more",
        "0 lowered=true",
        &format!("{got} lowered={lowered}"),
    );
    let (got, answer) = list(probe, system, KVM_GET_MSR_FEATURE_INDEX_LIST, 0);
    let some = answer.get(0, 4) > 0;
    probe.check(
        "feat_list_0",
        "E2BIG some=true",
        &format!("{got} some={some}"),
    );
}

fn feature_msrs(probe: &mut Probe<'_>, system: Handle) {
    for (case, want, count) in [
        ("feat_msrs_zero", "0", 0),
        ("feat_msrs_256", "E2BIG", 256),
        ("feat_msrs_255", "0", 255),
    ] {
        let msrs = Words::sized(8 + 16 * 256).u32(0, count);
        let got = probe.send(system, KVM_GET_MSRS, msrs);
        probe.expect(case, want, got);
    }
}

fn cpuid(
    probe: &mut Probe<'_>,
    system: Handle,
    request: u32,
    entries: u32,
    pad: u32,
) -> (String, u32) {
    // A word of padding of the second entry.
    let mut table = Words::sized(8 + 40 * 300)
        .u32(0, entries)
        .u32(8 + 40 + 36, pad);
    let outcome = probe.bytes(system, request, table.bytes_mut());
    (
        crate::backend::outcome_text(outcome),
        table.get(0, 4) as u32,
    )
}

fn supported_cpuid(probe: &mut Probe<'_>, system: Handle) {
    let (got, _) = cpuid(probe, system, KVM_GET_SUPPORTED_CPUID, 0, 0);
    probe.check("cpuid_0", "E2BIG", &got);
    let (got, left) = cpuid(probe, system, KVM_GET_SUPPORTED_CPUID, 1, 0);
    probe.check("cpuid_1", "E2BIG nent=1", &format!("{got} nent={left}"));
    let (got, held) = cpuid(probe, system, KVM_GET_SUPPORTED_CPUID, 256, 0);
    probe.check(
        "cpuid_256",
        "0 lowered=true",
        &format!("{got} lowered={}", held < 256),
    );
    for (case, want, entries) in [
        ("cpuid_exact", "0", held),
        ("cpuid_less1", "E2BIG", held.saturating_sub(1)),
        ("cpuid_huge", "0", 100_000),
    ] {
        let (got, _) = cpuid(probe, system, KVM_GET_SUPPORTED_CPUID, entries, 0);
        probe.check(case, want, &got);
    }
    let (got, _) = cpuid(probe, system, KVM_GET_EMULATED_CPUID, 4, 1);
    probe.check("emul_cpuid_pad", "EINVAL", &got);
    let (got, _) = cpuid(probe, system, KVM_GET_SUPPORTED_CPUID, 256, 1);
    probe.check("sup_cpuid_pad", "0", &got);
}
