//! KVM_CREATE_VCPU and what it freezes (api.rst, "KVM_CREATE_VCPU", "KVM_SET_BOOT_CPU_ID").

use crate::backend::Handle;
use crate::guest::Vm;
use crate::probe::Probe;
use crate::requests::*;

const CAP_MAX_VCPU_ID: u32 = 128;

fn create(probe: &mut Probe<'_>, vm: Handle, case: &str, want: &str, id: u64) -> Handle {
    let made = probe.create(vm, KVM_CREATE_VCPU, id);
    probe.expect_fd(case, want, made)
}

pub(super) fn script(probe: &mut Probe<'_>) {
    let Vm { system, vm } = Vm::new(probe);
    let capability = probe.value(system, KVM_CHECK_EXTENSION, CAP_MAX_VCPU_ID.into());
    let ids = capability.unwrap_or(0) as u64;
    create(probe, vm, "id0", "fd", 0);
    create(probe, vm, "dup0", "EEXIST", 0);
    create(probe, vm, "id5", "fd", 5);
    create(
        probe,
        vm,
        "id_max_minus1",
        "fd",
        ids.saturating_sub(1).max(9),
    );
    create(probe, vm, "id_max", "EINVAL", ids);
    create(probe, vm, "id_neg", "EINVAL", u64::MAX);
    closed_id_stays(probe);
    boot_id(probe, ids);
    greatest_id(probe);
    no_descriptor_left(probe);
    full_vm(probe);
}

fn closed_id_stays(probe: &mut Probe<'_>) {
    let vm = Vm::new(probe).vm;
    let (vcpu, _) = probe.create(vm, KVM_CREATE_VCPU, 2);
    probe.close(vcpu);
    create(probe, vm, "reopen_closed", "EEXIST", 2);
}

fn boot_id(probe: &mut Probe<'_>, ids: u64) {
    let vm = Vm::new(probe).vm;
    let got = probe.value(vm, KVM_SET_BOOT_CPU_ID, ids + 1);
    probe.expect("boot_id_max1", "EINVAL", got);
    let got = probe.value(vm, KVM_SET_BOOT_CPU_ID, 3);
    probe.expect("boot_id_3", "0", got);
    for (case, id, want) in [
        ("boot_apicbase0", 0, "0xfee00800"),
        ("boot_apicbase3", 3, "0xfee00900"),
    ] {
        let (vcpu, _) = probe.create(vm, KVM_CREATE_VCPU, id);
        let sregs: kvm_bindings::kvm_sregs = probe.read_struct(vcpu, KVM_GET_SREGS);
        probe.check(case, want, &format!("{:#x}", sregs.apic_base));
    }
    let got = probe.value(vm, KVM_SET_BOOT_CPU_ID, 0);
    probe.expect("boot_id_late", "EBUSY", got);
}

fn greatest_id(probe: &mut Probe<'_>) {
    let vm = Vm::new(probe);
    let got = vm.enable(probe, CAP_MAX_VCPU_ID, 4);
    probe.expect("cap_maxid_4", "0", got);
    create(probe, vm.vm, "cap_maxid_id4", "EINVAL", 4);
    create(probe, vm.vm, "cap_maxid_id3", "fd", 3);
    for (case, want, value) in [
        ("cap_maxid_again", "0", 4),
        ("cap_maxid_change", "EINVAL", 5),
        ("cap_maxid_big", "EINVAL", 100_000),
    ] {
        let got = vm.enable(probe, CAP_MAX_VCPU_ID, value);
        probe.expect(case, want, got);
    }
    let vm = Vm::new(probe);
    let _ = probe.value(vm.vm, KVM_SET_BOOT_CPU_ID, 8);
    let got = vm.enable(probe, CAP_MAX_VCPU_ID, 4);
    probe.expect("cap_maxid_below_bsp", "EINVAL", got);
}

fn no_descriptor_left(probe: &mut Probe<'_>) {
    let vm = Vm::new(probe).vm;
    probe.exhaust_descriptors(true);
    create(probe, vm, "emfile", "EMFILE", 9);
    probe.exhaust_descriptors(false);
    create(probe, vm, "emfile_retry", "fd", 9);
}

/// A full VM refuses a duplicate id with EINVAL, not EEXIST.
fn full_vm(probe: &mut Probe<'_>) {
    let Vm { system, vm } = Vm::new(probe);
    let most = probe.value(system, KVM_CHECK_EXTENSION, 66).unwrap_or(0);
    for id in 0..most as u64 {
        let (vcpu, outcome) = probe.create(vm, KVM_CREATE_VCPU, id);
        if outcome.is_err() {
            break;
        }
        probe.close(vcpu);
    }
    create(probe, vm, "many_dup", "EINVAL", 0);
}
