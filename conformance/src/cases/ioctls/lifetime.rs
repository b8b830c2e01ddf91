//! How long descriptors, mappings and VMs live, and to whom they belong.

use crate::backend::{Argument, Bytes, Call, DescriptorCall, Handle, Mapping, Place};
use crate::guest::Machine;
use crate::probe::Probe;
use crate::requests::*;
use kvm_bindings::kvm_regs;

fn get_regs(probe: &mut Probe<'_>, vcpu: Handle, case: &str, want: &str) {
    let mut regs = kvm_regs::default();
    let got = probe.get(vcpu, KVM_GET_REGS, &mut regs);
    probe.expect(case, want, got);
}

pub(super) fn script(probe: &mut Probe<'_>) {
    let machine = Machine::new(probe, crate::guest::Mode::Real);
    machine.load(probe, |_| Ok(()));
    forked(probe, &machine);
    elsewhere(probe, &machine);
    probe.close(machine.vm.vm);
    get_regs(probe, machine.vcpu, "vmclosed_getregs", "0");
    machine.case(probe, "vmclosed_run", "HLT rip=0x1001");
    probe.close(machine.vm.system);
    get_regs(probe, machine.vcpu, "sysclosed", "0");
    probe.close(machine.vcpu);
    let reason = probe.read_number(machine.run, 8, 4);
    probe.check("run_after_close", "5", &reason.to_string());
    let other = Machine::bare(probe);
    let duplicate = probe.duplicate(other.vcpu);
    probe.close(other.vcpu);
    get_regs(probe, duplicate, "dup", "0");
    get_regs(probe, other.vcpu, "closed_fd", "EBADF");
    let cloexec = probe.descriptor(duplicate, DescriptorCall::CloseOnExec);
    probe.expect("dup_is_not_cloexec", "0", cloexec);
}

/// Another address space gets EIO from everything but the system.
fn forked(probe: &mut Probe<'_>, machine: &Machine) {
    let rows = [
        ("fork_create_vcpu", "EIO", machine.vm.vm, KVM_CREATE_VCPU),
        ("fork_get_regs", "EIO", machine.vcpu, KVM_GET_REGS),
        (
            "fork_check_ext_vm",
            "EIO",
            machine.vm.vm,
            KVM_CHECK_EXTENSION,
        ),
        (
            "fork_api_version",
            "12",
            machine.vm.system,
            KVM_GET_API_VERSION,
        ),
        (
            "fork_vcpu_foreign_type",
            "EIO",
            machine.vcpu,
            foreign(b'X', 1),
        ),
    ];
    let calls = rows.map(|(_, _, handle, request)| (handle, request));
    let outcomes = probe.forked(&calls);
    for ((case, want, _, _), got) in rows.into_iter().zip(outcomes) {
        probe.expect(case, want, got);
    }
}

/// A child that shares the memory is the same to KVM; a receiver of the descriptor is not; mapping
/// a vCPU is nobody's privilege.
fn elsewhere(probe: &mut Probe<'_>, machine: &Machine) {
    let vcpu = machine.vcpu;
    let regs = Argument::Bytes(Bytes(vec![0; size_of::<kvm_regs>()]));
    let get_regs = Call::Ioctl(vcpu, KVM_GET_REGS, regs);
    let got = probe.elsewhere(Place::Vforked, get_regs.clone());
    probe.expect("vfork_get_regs", "0", got);
    let got = probe.elsewhere(Place::Receiver(vcpu), get_regs);
    probe.expect("scm_rights", "EIO", got);
    let map = probe.mapping_of(vcpu, (4096, 0), Mapping::Shared);
    let got = probe.elsewhere(Place::Forked, map);
    probe.expect("fork_mmap_vcpu", "0", got);
}
