use super::*;

fn enabled() -> LocalApic {
    let mut apic = LocalApic::new(0);
    assert_eq!(apic.write_page(0xf0, 0x1ff), Effect::None);
    apic
}

#[test]
fn a_vector_waits_for_the_processor_priority() {
    let mut apic = enabled();
    apic.accept(0x41, false);
    apic.accept(0x52, false);
    assert_eq!(apic.acknowledge(), Some(0x52));
    assert_eq!(apic.ppr(), 0x50);
    assert_eq!(apic.pending(), None);
    assert_eq!(apic.write_page(0xb0, 0), Effect::None);
    apic.set_cr8(4);
    assert_eq!(apic.pending(), None);
    apic.set_cr8(3);
    assert_eq!(apic.acknowledge(), Some(0x41));
}

#[test]
fn the_end_of_a_level_triggered_interrupt_is_told() {
    let mut apic = enabled();
    apic.accept(0x41, true);
    assert_eq!(apic.acknowledge(), Some(0x41));
    assert_eq!(apic.write_page(0xb0, 0), Effect::Eoi(0x41));
}

#[test]
fn the_timer_counts_once_or_again() {
    let mut apic = enabled();
    apic.write_page(0x3e0, 0xb);
    apic.write_page(0x320, 0x2_0030);
    assert_eq!(apic.write_page(0x380, 100), Effect::Timer);
    apic.start_timer(1000);
    assert_eq!(apic.read_page(0x390, 1040), 60);
    assert!(!apic.advance(1099).has_expired);
    assert!(apic.advance(1100).has_expired);
    assert_eq!(apic.expires(), Some(1200));
    assert_eq!(apic.acknowledge(), Some(0x30));
    apic.write_page(0x320, 0x30);
    apic.start_timer(2000);
    assert!(apic.advance(2100).has_expired);
    assert_eq!(apic.expires(), None);
}

#[test]
fn the_deadline_is_cleared_when_it_is_reached() {
    let mut apic = enabled();
    apic.write_page(0x320, 0x4_0030);
    apic.set_tsc_deadline(500);
    assert_eq!(apic.advance(499), Expiry::default());
    assert!(apic.advance(500).clears_deadline);
    assert_eq!(apic.pending(), Some(0x30));
}

#[test]
fn the_registers_of_each_mode_are_reached_in_that_mode_only() {
    let mut apic = enabled();
    assert_eq!(apic.read_msr(0x802, 0), None);
    apic.set_base(apic.base() | 0x400);
    assert_eq!(apic.page(), None);
    assert_eq!(apic.read_msr(0x803, 0), Some(u64::from(VERSION)));
    assert_eq!(apic.write_msr(0x80b, 1), None);
    assert_eq!(apic.write_msr(0x808, 0x100), None);
    let sent = apic.write_msr(0x83f, 0x77);
    assert!(matches!(sent, Some(Effect::Send(m)) if m.destination == Destination::Own));
}

#[test]
fn a_message_with_an_illegal_vector_is_an_error() {
    let mut apic = enabled();
    assert_eq!(apic.write_page(0x300, 0x4_0005), Effect::None);
    apic.write_page(0x280, 0);
    assert_eq!(apic.read_page(0x280, 0), ESR_SEND_ILLEGAL);
}

#[test]
fn logical_destinations_match_flat_and_clustered() {
    let mut apic = enabled();
    apic.write_page(0xd0, 0x2200_0000);
    assert!(apic.is_addressed(Destination::Logical(0x02), None));
    assert!(!apic.is_addressed(Destination::Logical(0x01), None));
    apic.write_page(0xe0, 0);
    assert!(apic.is_addressed(Destination::Logical(0x22), None));
    assert!(!apic.is_addressed(Destination::Logical(0x12), None));
}

/// SDM Vol. 3A, "APIC Timer": in one-shot mode the timer remains at its 0 value until reprogrammed.
#[test]
fn a_change_to_periodic_mode_does_not_start_a_timer_that_has_expired() {
    let mut apic = enabled();
    apic.write_page(0x3e0, 0xb);
    apic.write_page(0x320, 0x30);
    assert_eq!(apic.write_page(0x380, 100), Effect::Timer);
    apic.start_timer(1000);
    assert!(apic.advance(1100).has_expired);
    assert_eq!(apic.write_page(0x320, 0x2_0030), Effect::None);
    assert_eq!(apic.expires(), None);
    assert_eq!(apic.read_page(0x390, 1101), 0);
}

#[test]
fn a_change_of_mode_lets_a_running_timer_run() {
    let mut apic = enabled();
    apic.write_page(0x3e0, 0xb);
    apic.write_page(0x320, 0x30);
    apic.write_page(0x380, 100);
    apic.start_timer(1000);
    apic.write_page(0x320, 0x2_0030);
    assert_eq!(apic.read_page(0x390, 1060), 40);
    assert!(apic.advance(1100).has_expired);
    assert_eq!(apic.read_page(0x390, 1110), 90);
}

/// SDM Vol. 3A, "State Changes From xAPIC Mode to x2APIC Mode": an APIC ID that was written to the
/// memory-mapped register is not preserved.
#[test]
fn x2apic_mode_and_reset_bring_the_id_of_the_hardware_back() {
    const XAPIC: u64 = 0xfee0_0800;
    let mut apic = LocalApic::new(3);
    let rename = |apic: &mut LocalApic| {
        apic.write_page(0x20, 9 << 24);
        assert_eq!(apic.read_page(0x20, 0) >> 24, 9);
    };
    rename(&mut apic);
    apic.set_base(XAPIC | 1 << 10);
    assert_eq!(apic.read_msr(0x802, 0), Some(3));
    apic.set_base(0xfee0_0000);
    apic.set_base(XAPIC);
    rename(&mut apic);
    apic.set_base(0xfee0_0000);
    apic.set_base(XAPIC);
    assert_eq!(apic.read_page(0x20, 0) >> 24, 3);
}
