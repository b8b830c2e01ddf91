//! Events, interrupts, mp_state, signal mask, debugging control, CPUID and MSR tables.

use crate::guest::Machine;
use crate::probe::{Probe, Words, hex};
use crate::requests::*;
use kvm_bindings::{kvm_mp_state, kvm_vcpu_events};

type Change = fn(&mut kvm_vcpu_events);

const PAYLOAD: u32 = 164;
const TRIPLE_FAULT: u32 = 218;

#[rustfmt::skip]
const EVENTS: &[(&str, &str, Change)] = &[
    ("same", "0", |_| {}),
    ("flag40", "EINVAL", |e| e.flags |= 0x40),
    ("payload_nocap", "EINVAL", |e| e.flags |= 0x10),
    ("tf_nocap", "EINVAL", |e| e.flags |= 0x20),
    ("exc32", "EINVAL", |e| (e.exception.injected, e.exception.nr) = (1, 32)),
    ("exc2", "EINVAL", |e| (e.exception.injected, e.exception.nr) = (1, 2)),
    ("exc31", "0", |e| (e.exception.injected, e.exception.nr) = (1, 31)),
    ("exc255_notinj", "0", |e| e.exception.nr = 255),
    ("exc_pending_nocap", "0", |e| (e.exception.pending, e.exception.nr) = (1, 200)),
    ("int", "0", |e| (e.interrupt.injected, e.interrupt.nr) = (1, 0x30)),
    ("shadow", "0", |e| e.interrupt.shadow = 2),
    ("shadow_junk", "0", |e| e.interrupt.shadow = 0xff),
    ("nmi3", "0", |e| e.nmi.pending = 3),
    ("sipi", "0", |e| { e.flags |= 2; e.sipi_vector = 0x12; }),
];

#[rustfmt::skip]
const EVENTS_PAYLOAD: &[(&str, &str, Change)] = &[
    ("payload", "0", |e| { e.exception.pending = 1; e.exception.nr = 1; e.exception_has_payload = 1; e.exception_payload = 0x4000; }),
    ("pending200", "EINVAL", |e| (e.exception.pending, e.exception.nr) = (1, 200)),
    ("pend_and_inj", "0", |e| { e.exception.pending = 1; e.exception.injected = 1; e.exception.nr = 14; }),
];

pub(super) fn script(probe: &mut Probe<'_>) {
    let machine = Machine::bare(probe);
    events(probe, &machine, EVENTS);
    round_trip(probe, &machine);
    let got = machine.vm.enable(probe, PAYLOAD, 1);
    probe.expect("events.payload_cap", "0", got);
    machine.case(probe, "events.payload_flags", "events.flags=0x1d");
    events(probe, &machine, EVENTS_PAYLOAD);
    let got = machine.vm.enable(probe, TRIPLE_FAULT, 1);
    probe.expect("events.tf_cap", "0", got);
    machine.case(probe, "events.tf_flags", "events.flags=0x3d");
    events(
        probe,
        &machine,
        &[("tf", "0", |e| (e.flags, e.triple_fault.pending) = (0x3d, 1))],
    );
    mp_states(probe, &machine);
    let machine = Machine::bare(probe);
    interrupts(probe, &machine);
    debugging(probe, &machine);
    cpuid(probe, &machine);
    without_devices(probe, &machine);
}

fn events(probe: &mut Probe<'_>, machine: &Machine, rows: &[(&str, &str, Change)]) {
    let fresh: kvm_vcpu_events = probe.read_struct(machine.vcpu, KVM_GET_VCPU_EVENTS);
    for (case, want, change) in rows {
        let mut events = fresh;
        change(&mut events);
        let got = probe.set(machine.vcpu, KVM_SET_VCPU_EVENTS, &events);
        probe.expect(&format!("events.{case}"), want, got);
        let _ = probe.set(machine.vcpu, KVM_SET_VCPU_EVENTS, &fresh);
    }
}

/// What reads back when everything is set at once.
fn round_trip(probe: &mut Probe<'_>, machine: &Machine) {
    let fresh: kvm_vcpu_events = probe.read_struct(machine.vcpu, KVM_GET_VCPU_EVENTS);
    let mut events = fresh;
    (events.exception.injected, events.exception.nr) = (1, 13);
    (events.exception.has_error_code, events.exception.error_code) = (1, 0x1234);
    (
        events.interrupt.injected,
        events.interrupt.nr,
        events.interrupt.shadow,
    ) = (1, 0x44, 1);
    (events.nmi.injected, events.nmi.pending, events.nmi.masked) = (1, 3, 1);
    let _ = probe.set(machine.vcpu, KVM_SET_VCPU_EVENTS, &events);
    let want = "events.exception.injected=0x1 events.exception.nr=0xd \
                events.exception.error_code=0x1234 events.interrupt.injected=0x1 \
                events.interrupt.nr=0x44 events.interrupt.shadow=0x1 events.nmi.injected=0x1 \
                events.nmi.pending=0x1 events.nmi.masked=0x1 events.flags=0xd";
    machine.case(probe, "events.roundtrip", want);
    let _ = probe.set(machine.vcpu, KVM_SET_VCPU_EVENTS, &fresh);
    for (case, request) in [
        ("events.null", KVM_SET_VCPU_EVENTS),
        ("events.get_null", KVM_GET_VCPU_EVENTS),
    ] {
        let got = probe.value(machine.vcpu, request, 0);
        probe.expect(case, "EFAULT", got);
    }
}

fn mp_states(probe: &mut Probe<'_>, machine: &Machine) {
    for mp_state in 0..12 {
        let got = probe.set(machine.vcpu, KVM_SET_MP_STATE, &kvm_mp_state { mp_state });
        let want = if mp_state == 0 { "0" } else { "EINVAL" };
        probe.expect(&format!("mp.noirqchip_{mp_state}"), want, got);
    }
}

fn interrupts(probe: &mut Probe<'_>, machine: &Machine) {
    for (case, want, vector) in [
        ("interrupt_256", "EINVAL", 256),
        ("interrupt_255", "0", 255),
        ("interrupt_twice", "0", 0x31),
    ] {
        let got = machine.interrupt(probe, vector);
        probe.expect(case, want, got);
    }
    machine.case(
        probe,
        "interrupt_held",
        "events.interrupt.injected=0x1 events.interrupt.nr=0x31",
    );
    let got = machine.interrupt(probe, 3);
    probe.expect("interrupt_3", "0", got);
    let got = probe.value(machine.vcpu, KVM_INTERRUPT, 0);
    probe.expect("interrupt_null", "EFAULT", got);
    let got = probe.value(machine.vcpu, KVM_NMI, 0);
    probe.expect("nmi", "0", got);
    machine.case(probe, "nmi_held", "events.nmi.pending=0x1");
    for _ in 0..3 {
        let _ = probe.value(machine.vcpu, KVM_NMI, 0);
    }
    machine.case(probe, "nmi_many", "events.nmi.pending=0x2");
}

fn debugging(probe: &mut Probe<'_>, machine: &Machine) {
    for (case, want, length) in [
        ("sigmask_8", "0", 8),
        ("sigmask_4", "EINVAL", 4),
        ("sigmask_16", "EINVAL", 16),
    ] {
        let got = probe.send(
            machine.vcpu,
            KVM_SET_SIGNAL_MASK,
            Words::sized(20).u32(0, length),
        );
        probe.expect(case, want, got);
    }
    let got = probe.value(machine.vcpu, KVM_SET_SIGNAL_MASK, 0);
    probe.expect("sigmask_null", "0", got);
    for (case, want, control) in [
        ("dbg_off", "0", 0),
        ("dbg_unknown", "0", 0xfff3_0000),
        ("dbg_inject_db", "0", 0x4_0001),
        ("dbg_inject_busy", "EBUSY", 0x4_0001),
    ] {
        let got = probe.send(
            machine.vcpu,
            KVM_SET_GUEST_DEBUG,
            Words::sized(72).u32(0, control),
        );
        probe.expect(case, want, got);
    }
    let got = probe.value(machine.vcpu, KVM_SET_TSC_KHZ, 0);
    probe.expect("tsckhz0", "0", got);
    let got = probe.value(machine.vcpu, KVM_GET_TSC_KHZ, 0);
    let some = got.is_ok_and(|khz| khz > 0);
    probe.check("get_tsckhz", "true", &some.to_string());
}

/// A `kvm_cpuid2` of one or more entries: function, flags, EAX.
fn table(count: u32, entries: &[(u32, u32, u32)]) -> Words {
    let mut words = Words::sized(8 + 40 * 16).u32(0, count);
    for (index, (function, flags, eax)) in entries.iter().enumerate() {
        let at = 8 + 40 * index;
        words = words
            .u32(at, *function)
            .u32(at + 8, *flags)
            .u32(at + 12, *eax);
    }
    words
}

fn cpuid(probe: &mut Probe<'_>, machine: &Machine) {
    const WIDTHS: u32 = 0x8000_0008;
    let rows = [
        ("cpuid.zero", "0", table(0, &[])),
        ("cpuid.257", "E2BIG", table(257, &[])),
        ("cpuid.vaddr50", "EINVAL", table(1, &[(WIDTHS, 0, 0x3230)])),
        ("cpuid.vaddr48", "0", table(1, &[(WIDTHS, 0, 0x3030)])),
        ("cpuid.vaddr0", "0", table(1, &[(WIDTHS, 0, 0x30)])),
        ("cpuid.vaddr57", "0", table(1, &[(WIDTHS, 0, 0x3930)])),
        (
            "cpuid.dup",
            "0",
            table(2, &[(WIDTHS, 0, 0x3930), (WIDTHS, 0, 0x3930)]),
        ),
    ];
    for (case, want, words) in rows {
        let got = probe.send(machine.vcpu, KVM_SET_CPUID2, words);
        probe.expect(case, want, got);
    }
    let got = probe.value(machine.vcpu, KVM_SET_CPUID2, 0);
    probe.expect("cpuid.null", "EFAULT", got);
    for (case, want, count) in [
        ("cpuid.get_short", "E2BIG nent=1", 1),
        ("cpuid.get", "0 nent=2", 10),
    ] {
        let mut words = table(count, &[]);
        let got = probe.bytes(machine.vcpu, KVM_GET_CPUID2, words.bytes_mut());
        let got = crate::backend::outcome_text(got);
        probe.check(case, want, &format!("{got} nent={}", words.get(0, 4)));
    }
    let odd = table(1, &[(0x4000_0000, 0xf0, 1)]).u32(4, 9).u32(8 + 28, 5);
    let got = probe.send(machine.vcpu, KVM_SET_CPUID2, odd);
    probe.expect("cpuid.flags", "0", got);
    let mut words = table(10, &[]);
    let _ = probe.bytes(machine.vcpu, KVM_GET_CPUID2, words.bytes_mut());
    let want = "0000004000000000f000000001000000000000000000000000000000050000000000000000000000";
    probe.check("cpuid.flags_read", want, &hex(&words.bytes()[8..48]));
    // The old form: function, EAX to EDX, padding.
    let old = Words::sized(8 + 24).u32(0, 1).u32(8, 7).u32(12, 1);
    let got = probe.send(machine.vcpu, KVM_SET_CPUID, old);
    probe.expect("cpuid.v1", "0", got);
}

/// What needs an in-kernel interrupt controller.
fn without_devices(probe: &mut Probe<'_>, machine: &Machine) {
    let rows = [
        ("lapic_none", KVM_GET_LAPIC, 1024),
        ("setlapic_none", KVM_SET_LAPIC, 1024),
        ("vapic_none", KVM_SET_VAPIC_ADDR, 8),
    ];
    for (case, request, length) in rows {
        let got = probe.send(machine.vcpu, request, Words::sized(length));
        probe.expect(case, "EINVAL", got);
    }
    let got = probe.value(machine.vcpu, KVM_KVMCLOCK_CTRL, 0);
    probe.expect("kvmclock_ctrl", "EINVAL", got);
    clock(probe, machine);
}

/// The clock of the VM: clock, flags.
fn clock(probe: &mut Probe<'_>, machine: &Machine) {
    let vm = machine.vm.vm;
    let mut data = Words::sized(48);
    let got = probe.bytes(vm, KVM_GET_CLOCK, data.bytes_mut());
    let flags = data.get(8, 4);
    let text = crate::backend::outcome_text(got);
    probe.check(
        "getclock",
        "0 flags=0x0",
        &format!("{text} flags={flags:#x}"),
    );
    for (case, want, clock, flags) in [
        ("setclock", "0", 123_456, 0),
        ("setclock_f1", "EINVAL", 0, 1),
        ("setclock_f16", "EINVAL", 0, 16),
    ] {
        let data = Words::sized(48).u64(0, clock).u32(8, flags);
        let got = probe.send(vm, KVM_SET_CLOCK, data);
        probe.expect(case, want, got);
    }
    let _ = probe.bytes(vm, KVM_GET_CLOCK, data.bytes_mut());
    let goes_on = (123_456..60_000_000_000).contains(&data.get(0, 8));
    probe.check("setclock_goes_on", "true", &goes_on.to_string());
    for (case, request) in [
        ("getclock_null", KVM_GET_CLOCK),
        ("setclock_null", KVM_SET_CLOCK),
    ] {
        let got = probe.value(vm, request, 0);
        probe.expect(case, "EFAULT", got);
    }
}
