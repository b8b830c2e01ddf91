//! KVM_GET_MSRS and KVM_SET_MSRS (api.rst): the count says how far they came.

use crate::backend::outcome_text;
use crate::guest::Machine;
use crate::guest::observe::read_msr;
use crate::probe::{Probe, Words};
use crate::requests::*;

const HIGH: u64 = 1 << 60;

/// A write by the VMM: case, MSR, value; the count and what reads back.
#[rustfmt::skip]
const WRITES: &[(&str, u32, u64, &str)] = &[
    ("pat_ok", 0x277, 0x0007_0406_0007_0406, "1 0x7040600070406"),
    ("pat_bad", 0x277, 0x0202_0202_0202_0202, "0 0x7040600070406"),
    ("fsbase_noncanon", 0xc000_0100, HIGH, "0 0x0"),
    ("lstar_noncanon", 0xc000_0082, HIGH, "0 0x0"),
    ("sysenter_noncanon", 0x176, HIGH, "1 0x0"),
    ("star", 0xc000_0081, 0x1122_3344_5566_7788, "1 0x1122334455667788"),
    ("lstar", 0xc000_0082, 0xffff_8000_0000_0000, "1 0xffff800000000000"),
    ("kernel_gs_base", 0xc000_0102, 0x1234, "1 0x1234"),
    ("tsc_aux", 0xc000_0103, 7, "1 0x7"),
    ("efer_lme", 0xc000_0080, 0x100, "1 0x100"),
    ("efer_rsvd", 0xc000_0080, 2, "0 0x100"),
    ("apicbase_bad", 0x1b, 0xfee0_0901, "0 0xfee00900"),
    ("apicbase_ok", 0x1b, 0xfee0_0900, "1 0xfee00900"),
    ("mtrr_def", 0x2ff, 0xc06, "1 0xc06"),
    ("mtrr_def_bad", 0x2ff, 2, "0 0xc06"),
    ("mtrr_base_bad", 0x200, 2, "0 0x0"),
    ("mtrr_fixed", 0x250, 0x0606_0606_0606_0606, "1 0x606060606060606"),
    ("mcg_status", 0x17a, 1, "1 0x1"),
    ("mcg_cap", 0x179, 1, "0 0x20"),
    ("misc_enable", 0x1a0, 1, "1 0x1"),
    ("x2apic_msr", 0x808, 0x10, "0 0x0"),
    ("tsc_deadline", 0x6e0, 0x1000, "1 0x0"),
];

fn entries(list: &[(u32, u64)]) -> Words {
    let mut words = Words::sized(8 + 16 * list.len().max(1)).u32(0, list.len() as u32);
    for (at, (index, data)) in list.iter().enumerate() {
        words = words.u32(8 + 16 * at, *index).u64(16 + 16 * at, *data);
    }
    words
}

pub(super) fn script(probe: &mut Probe<'_>) {
    let machine = Machine::bare(probe);
    let vcpu = machine.vcpu;
    let mut list = entries(&[(0x277, 0), (0x1234_5678, 0), (0x1b, 0x99)]);
    let got = outcome_text(probe.bytes(vcpu, KVM_GET_MSRS, list.bytes_mut()));
    let got = format!(
        "{got} first={:#x} third={:#x}",
        list.get(16, 8),
        list.get(48, 8)
    );
    probe.check("get_partial", "1 first=0x7040600070406 third=0x99", &got);
    let list = entries(&[(0x174, 8), (0x1234_5678, 0), (0x175, 0x1000)]);
    let got = probe.send(vcpu, KVM_SET_MSRS, list);
    probe.expect("set_partial", "1", got);
    machine.case(probe, "set_partial_read", "msr:0x174=0x8 msr:0x175=0x0");
    for (case, index, value, want) in WRITES {
        let got = outcome_text(probe.send(vcpu, KVM_SET_MSRS, entries(&[(*index, *value)])));
        let back = read_msr(probe, &machine, *index).unwrap_or(0);
        probe.check(case, want, &format!("{got} {back:#x}"));
    }
    let many = Words::sized(8 + 16 * 256).u32(0, 256);
    let got = probe.send(vcpu, KVM_SET_MSRS, many.clone());
    probe.expect("set_256", "E2BIG", got);
    let got = probe.send(vcpu, KVM_GET_MSRS, many);
    probe.expect("get_256", "E2BIG", got);
    let got = probe.send(vcpu, KVM_SET_MSRS, entries(&[]));
    probe.expect("set_0", "0", got);
    for (case, request) in [("set_null", KVM_SET_MSRS), ("get_null", KVM_GET_MSRS)] {
        let got = probe.value(vcpu, request, 0);
        probe.expect(case, "EFAULT", got);
    }
    let got = probe.send(
        vcpu,
        KVM_GET_MSRS,
        entries(&[(0x277, 0)]).u32(4, 7).u32(12, 9),
    );
    probe.expect("get_pad", "1", got);
}
