//! Which accesses are virtualized, and what follows a write, row by row.

use super::*;

use ProcControls as P;
use SecondaryControls as S;

/// The virtual-APIC page, at address 0.
struct Page([u8; 4096]);

impl PhysicalMemory for Page {
    fn read(&self, address: Hpa, bytes: &mut [u8]) {
        let at = address.0 as usize;
        bytes.copy_from_slice(&self.0[at..at + bytes.len()]);
    }

    fn write(&mut self, address: Hpa, bytes: &[u8]) {
        let at = address.0 as usize;
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

fn vmcs(secondary: SecondaryControls) -> Vmcs {
    let mut vmcs = Vmcs::new();
    let proc = P::ACTIVATE_SECONDARY_CONTROLS | P::USE_TPR_SHADOW;
    vmcs.set(Field::PROC_CONTROLS, proc.bits().into());
    vmcs.set(Field::SECONDARY_PROC_CONTROLS, secondary.bits().into());
    vmcs
}

fn page(words: &[(u16, u32)]) -> Page {
    let mut page = Page([0; 4096]);
    for &(at, word) in words {
        page.write_u32(Hpa(at.into()), word);
    }
    page
}

/// Returns the registers, of the 256, that satisfy a predicate for four bytes.
fn registers(is_virtualized: impl Fn(u16, usize) -> bool) -> Vec<u16> {
    (0..256).filter(|n| is_virtualized(n << 4, 4)).collect()
}

#[test]
fn the_registers_that_can_be_read_depend_on_the_controls() {
    let mut all = vec![2, 3, 8, 0xb];
    all.extend(0xd..=0x28);
    all.extend(0x30..=0x38);
    all.push(0x3e);
    for (secondary, wanted) in [
        (S::empty(), vec![8]),
        (S::VIRTUAL_INTERRUPT_DELIVERY, vec![8]),
        (S::APIC_REGISTER_VIRTUALIZATION, all),
    ] {
        let vmcs = vmcs(secondary);
        assert_eq!(registers(|at, n| is_read_virtualized(&vmcs, at, n)), wanted);
    }
}

#[test]
fn the_registers_that_can_be_written_depend_on_the_controls() {
    let mut all = vec![2, 8, 0xb, 0xd, 0xe, 0xf, 0x28];
    all.extend(0x30..=0x38);
    all.push(0x3e);
    for (secondary, wanted) in [
        (S::empty(), vec![8]),
        (S::VIRTUAL_INTERRUPT_DELIVERY, vec![8, 0xb, 0x30]),
        (S::APIC_REGISTER_VIRTUALIZATION, all),
    ] {
        let vmcs = vmcs(secondary);
        assert_eq!(
            registers(|at, n| is_write_virtualized(&vmcs, at, n)),
            wanted
        );
    }
}

#[test]
fn an_access_beyond_four_bytes_or_without_tpr_shadow_is_not_virtualized() {
    let mut vmcs = vmcs(S::APIC_REGISTER_VIRTUALIZATION);
    for (at, bytes, is_virtualized) in [
        (0x80, 4, true),
        (0x82, 2, true),
        (0x83, 1, true),
        (0x80, 8, false),
        (0x81, 4, false),
        (0x84, 1, false),
    ] {
        assert_eq!(is_read_virtualized(&vmcs, at, bytes), is_virtualized);
        assert_eq!(is_write_virtualized(&vmcs, at, bytes), is_virtualized);
    }
    vmcs.set(
        Field::PROC_CONTROLS,
        P::ACTIVATE_SECONDARY_CONTROLS.bits().into(),
    );
    assert!(!is_read_virtualized(&vmcs, 0x80, 4));
    assert!(!is_write_virtualized(&vmcs, 0x80, 4));
}

#[test]
fn a_vtpr_below_the_threshold_is_a_trap_without_virtual_interrupt_delivery() {
    for (tpr, threshold, wanted) in [
        (0x5f, 5, Effect::None),
        (0x4f, 5, Effect::Trap(ApicTrap::TprBelowThreshold)),
        (0, 0, Effect::None),
    ] {
        let mut vmcs = vmcs(S::VIRTUALIZE_APIC_ACCESSES);
        vmcs.set(Field::TPR_THRESHOLD, threshold);
        let mut page = page(&[(0x80, tpr)]);
        let mut apic = VirtualApic::of(&mut vmcs, &mut page).expect("TPR shadow");
        assert_eq!(apic.emulate_write(0x80), wanted);
        assert_eq!(apic.enter(), wanted);
    }
}

const RECOGNIZED: Effect = Effect::Evaluated {
    is_recognized: true,
};
const UNRECOGNIZED: Effect = Effect::Evaluated {
    is_recognized: false,
};

#[test]
fn an_icr_write_is_a_self_ipi_if_it_can_be() {
    for (icr, wanted) in [
        (0x4_0031, RECOGNIZED),
        (0x4_4831, RECOGNIZED),
        (0x4_000f, Effect::Trap(ApicTrap::Write(0x300))),
        (0x0_0031, Effect::Trap(ApicTrap::Write(0x300))),
        (0x8_0031, Effect::Trap(ApicTrap::Write(0x300))),
        (0xc_0031, Effect::Trap(ApicTrap::Write(0x300))),
        (0x4_0131, Effect::Trap(ApicTrap::Write(0x300))),
        (0x4_1031, Effect::Trap(ApicTrap::Write(0x300))),
        (0x4_8031, Effect::Trap(ApicTrap::Write(0x300))),
    ] {
        let mut vmcs = vmcs(S::VIRTUAL_INTERRUPT_DELIVERY);
        let mut page = page(&[(0x300, icr)]);
        let mut apic = VirtualApic::of(&mut vmcs, &mut page).expect("TPR shadow");
        assert_eq!(apic.emulate_write(0x300), wanted, "{icr:#x}");
    }
}

#[test]
fn a_virtual_interrupt_is_recognized_delivered_and_ended() {
    let mut vmcs = vmcs(S::VIRTUAL_INTERRUPT_DELIVERY);
    let mut page = page(&[(0x80, 0x20)]);
    let mut apic = VirtualApic::of(&mut vmcs, &mut page).expect("TPR shadow");
    // 21H is of the class of VTPR, 45H and 8FH are above it.
    assert_eq!(apic.post([1 << 0x21, 1 << 5, 1 << 15, 0]), RECOGNIZED);
    assert_eq!(apic.deliver(), 0x8f);
    assert_eq!(
        (apic.rvi(), apic.svi(), apic.read(0xa0)),
        (0x45, 0x8f, 0x80)
    );
    assert_eq!(apic.evaluate(), UNRECOGNIZED);
    assert_eq!(apic.emulate_write(0xb0), RECOGNIZED);
    assert_eq!(apic.deliver(), 0x45);
    assert_eq!(apic.emulate_write(0xb0), UNRECOGNIZED);
    assert_eq!((apic.rvi(), apic.svi(), apic.read(0xa0)), (0x21, 0, 0x20));
    assert_eq!(apic.set_tpr(0x10), RECOGNIZED);
}

#[test]
fn an_eoi_of_a_vector_in_the_bitmap_is_a_trap() {
    let mut vmcs = vmcs(S::VIRTUAL_INTERRUPT_DELIVERY);
    vmcs.set(Field::EOI_EXIT_BITMAP_2, 1 << 15);
    vmcs.set(Field::GUEST_INTERRUPT_STATUS, 0x8f00);
    let mut page = page(&[(0x100 + 0x40, 1 << 15)]);
    let mut apic = VirtualApic::of(&mut vmcs, &mut page).expect("TPR shadow");
    assert_eq!(apic.emulate_write(0xb0), Effect::Trap(ApicTrap::Eoi(0x8f)));
    assert_eq!((apic.svi(), apic.read(0x140)), (0, 0));
}

#[test]
fn x2apic_registers_are_virtual_as_the_controls_say() {
    let mode = S::VIRTUALIZE_X2APIC_MODE;
    let mut page = page(&[(0x80, 0x35), (0x20, 7)]);
    for (secondary, index, wanted) in [
        (S::empty(), 0x808, X2apic::Normal),
        (mode, 0x808, X2apic::Virtual(0x35)),
        (mode, 0x802, X2apic::Normal),
        (
            mode | S::APIC_REGISTER_VIRTUALIZATION,
            0x802,
            X2apic::Virtual(7),
        ),
        (
            mode | S::APIC_REGISTER_VIRTUALIZATION,
            0x900,
            X2apic::Normal,
        ),
    ] {
        assert_eq!(read_x2apic(&vmcs(secondary), &page, index), wanted);
    }
    let all = mode | S::VIRTUAL_INTERRUPT_DELIVERY;
    for (secondary, index, value, wanted) in [
        (mode, 0x80b, 0, X2apic::Normal),
        (mode, 0x808, 0x100, X2apic::Fault),
        (all, 0x80b, 1, X2apic::Fault),
        (all, 0x83f, 0x100, X2apic::Fault),
        (all, 0x830, 0, X2apic::Normal),
        (
            all,
            0x83f,
            15,
            X2apic::Virtual(Effect::Trap(ApicTrap::Write(0x3f0))),
        ),
        (all, 0x83f, 0x41, X2apic::Virtual(RECOGNIZED)),
        (all, 0x808, 0xf0, X2apic::Virtual(UNRECOGNIZED)),
    ] {
        let answer = write_x2apic(&mut vmcs(secondary), &mut page, index, value);
        assert_eq!(answer, wanted, "{index:#x} {value:#x}");
    }
}
