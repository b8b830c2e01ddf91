//! Accesses to control and debug registers.
//!
//! SDM Vol. 3C, "Guest/Host Masks and Read Shadows for CR0 and CR4", "CR3-Target Controls", and
//! "Instructions That Cause VM Exits Conditionally"; the exit qualifications are those of
//! "Exit Qualification for Control-Register Accesses" and "... for MOV DR".

use crate::arch::{Cr0, Cr4};
use crate::capability::VmxCapabilities;
use crate::controls::{ProcControls, SecondaryControls};
use crate::field::Field;
use crate::vmcs::Vmcs;

/// What becomes of a write to a control register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Write {
    /// The register gets this value, if it is valid; otherwise there is #GP(0).
    Value(u64),
    /// A VM exit for a control-register access, with this exit qualification.
    Exit(u64),
}

/// What becomes of a read of a control register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Read {
    /// The instruction reads this value.
    Value(u64),
    /// A VM exit for a control-register access, with this exit qualification.
    Exit(u64),
}

/// What becomes of MOV to or from CR8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Cr8 {
    /// It accesses CR8, that is the task priority of the local APIC.
    Register,
    /// It accesses VTPR in the virtual-APIC page: bits 7:4 of the byte at offset 80H.
    VirtualTpr,
    /// A VM exit for a control-register access, with this exit qualification.
    Exit(u64),
}

/// The access types of the exit qualification for control-register accesses, bits 5:4.
#[derive(Clone, Copy)]
enum Access {
    MovTo = 0,
    MovFrom = 1,
    Clts = 2,
    Lmsw = 3,
}

const fn qualification(register: u8, access: Access, gpr: u8) -> u64 {
    register as u64 | (access as u64) << 4 | (gpr as u64 & 0xf) << 8
}

/// Bits of a register with a guest/host mask: those of the mask are the host's.
struct Masked {
    mask: u64,
    shadow: u64,
}

impl Masked {
    const fn cr0(vmcs: &Vmcs) -> Self {
        Self {
            mask: vmcs.get(Field::CR0_GUEST_HOST_MASK),
            shadow: vmcs.get(Field::CR0_READ_SHADOW),
        }
    }

    const fn cr4(vmcs: &Vmcs) -> Self {
        Self {
            mask: vmcs.get(Field::CR4_GUEST_HOST_MASK),
            shadow: vmcs.get(Field::CR4_READ_SHADOW),
        }
    }

    const fn read(&self, register: u64) -> u64 {
        register & !self.mask | self.shadow & self.mask
    }

    const fn exits(&self, value: u64) -> bool {
        (value ^ self.shadow) & self.mask != 0
    }

    const fn merge(&self, value: u64, register: u64) -> u64 {
        value & !self.mask | register & self.mask
    }
}

/// Returns what MOV from CR0 and SMSW read where CR0 is `cr0`.
#[must_use]
pub const fn read_cr0(vmcs: &Vmcs, cr0: Cr0) -> u64 {
    Masked::cr0(vmcs).read(cr0.bits())
}

/// Returns what MOV from CR4 reads where CR4 is `cr4`.
#[must_use]
pub const fn read_cr4(vmcs: &Vmcs, cr4: Cr4) -> u64 {
    Masked::cr4(vmcs).read(cr4.bits())
}

/// Returns what becomes of MOV of `value` from the register `gpr` to CR0, which is `cr0`.
pub const fn mov_to_cr0(vmcs: &Vmcs, cr0: Cr0, value: u64, gpr: u8) -> Write {
    let masked = Masked::cr0(vmcs);
    if masked.exits(value) {
        Write::Exit(qualification(0, Access::MovTo, gpr))
    } else {
        Write::Value(masked.merge(value, cr0.bits()))
    }
}

/// Returns what becomes of MOV of `value` from the register `gpr` to CR4, which is `cr4`.
pub const fn mov_to_cr4(vmcs: &Vmcs, cr4: Cr4, value: u64, gpr: u8) -> Write {
    let masked = Masked::cr4(vmcs);
    if masked.exits(value) {
        Write::Exit(qualification(4, Access::MovTo, gpr))
    } else {
        Write::Value(masked.merge(value, cr4.bits()))
    }
}

/// Returns what becomes of MOV of `value` from the register `gpr` to CR3.
pub fn mov_to_cr3(vmcs: &Vmcs, value: u64, gpr: u8) -> Write {
    let targets = [
        Field::CR3_TARGET_VALUE_0,
        Field::CR3_TARGET_VALUE_1,
        Field::CR3_TARGET_VALUE_2,
        Field::CR3_TARGET_VALUE_3,
    ];
    let count = vmcs.get(Field::CR3_TARGET_COUNT).min(4) as usize;
    let exits = vmcs.proc().contains(ProcControls::CR3_LOAD_EXITING)
        && !targets
            .iter()
            .take(count)
            .any(|&target| vmcs.get(target) == value);
    if exits {
        Write::Exit(qualification(3, Access::MovTo, gpr))
    } else {
        Write::Value(value)
    }
}

/// Returns what becomes of MOV from CR3, which is `cr3`, to the register `gpr`.
pub const fn mov_from_cr3(vmcs: &Vmcs, cr3: u64, gpr: u8) -> Read {
    if vmcs.proc().contains(ProcControls::CR3_STORE_EXITING) {
        Read::Exit(qualification(3, Access::MovFrom, gpr))
    } else {
        Read::Value(cr3)
    }
}

/// Returns what becomes of MOV from the register `gpr` to CR8.
pub const fn mov_to_cr8(vmcs: &Vmcs, gpr: u8) -> Cr8 {
    if vmcs.proc().contains(ProcControls::CR8_LOAD_EXITING) {
        return Cr8::Exit(qualification(8, Access::MovTo, gpr));
    }
    cr8_without_exit(vmcs)
}

/// Returns what becomes of MOV from CR8 to the register `gpr`.
pub const fn mov_from_cr8(vmcs: &Vmcs, gpr: u8) -> Cr8 {
    if vmcs.proc().contains(ProcControls::CR8_STORE_EXITING) {
        return Cr8::Exit(qualification(8, Access::MovFrom, gpr));
    }
    cr8_without_exit(vmcs)
}

const fn cr8_without_exit(vmcs: &Vmcs) -> Cr8 {
    if vmcs.proc().contains(ProcControls::USE_TPR_SHADOW) {
        Cr8::VirtualTpr
    } else {
        Cr8::Register
    }
}

/// Returns what becomes of CLTS where CR0 is `cr0`: with TS the host's, it exits if the guest sees
/// TS as 1, and does nothing otherwise.
pub const fn clts(vmcs: &Vmcs, cr0: Cr0) -> Write {
    let Masked { mask, shadow } = Masked::cr0(vmcs);
    let ts = Cr0::TS.bits();
    if mask & ts == 0 {
        Write::Value(cr0.bits() & !ts)
    } else if shadow & ts != 0 {
        Write::Exit(qualification(0, Access::Clts, 0))
    } else {
        Write::Value(cr0.bits())
    }
}

/// The operand of LMSW.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LmswOperand {
    /// A register.
    Register,
    /// A memory operand, whose linear address the VM exit reports.
    Memory,
}

/// Returns what becomes of LMSW of `source` where CR0 is `cr0`. LMSW cannot clear PE.
pub const fn lmsw(vmcs: &Vmcs, cr0: Cr0, source: u16, operand: LmswOperand) -> Write {
    let Masked { mask, shadow } = Masked::cr0(vmcs);
    let pe = Cr0::PE.bits();
    let rest = 0xe;
    let source = source as u64;
    let sets_pe = mask & pe != 0 && source & pe != 0 && shadow & pe == 0;
    if sets_pe || (source ^ shadow) & mask & rest != 0 {
        let memory = matches!(operand, LmswOperand::Memory) as u64;
        return Write::Exit(qualification(0, Access::Lmsw, 0) | memory << 6 | source << 16);
    }
    let loaded = cr0.bits() & !rest | source & rest | source & pe;
    Write::Value(loaded & !mask | cr0.bits() & mask)
}

/// Returns the exit qualification of MOV to (`Direction::To`) or from a debug register.
#[must_use]
pub const fn mov_dr_qualification(register: u8, direction: Direction, gpr: u8) -> u64 {
    let from = matches!(direction, Direction::From) as u64;
    register as u64 & 7 | from << 4 | (gpr as u64 & 0xf) << 8
}

/// Whether a MOV writes or reads the special register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// MOV to the special register.
    To,
    /// MOV from the special register.
    From,
}

/// Whether CR0 may have this value in VMX non-root operation. PE and PG are free in an unrestricted
/// guest, CD and NW always.
#[must_use]
pub fn is_cr0_supported(vmcs: &Vmcs, caps: &VmxCapabilities, value: u64) -> bool {
    let is_unrestricted = vmcs
        .secondary()
        .contains(SecondaryControls::UNRESTRICTED_GUEST);
    let mut free = Cr0::CD | Cr0::NW;
    if is_unrestricted {
        free |= Cr0::PE | Cr0::PG;
    }
    let must1 = caps.cr0_fixed0() & !free.bits();
    value & must1 == must1 && value & !caps.cr0_fixed1() & !free.bits() == 0
}

/// Whether CR4 may have this value in VMX operation.
#[must_use]
pub fn is_cr4_supported(caps: &VmxCapabilities, value: u64) -> bool {
    value & caps.cr4_fixed0() == caps.cr4_fixed0() && value & !caps.cr4_fixed1() == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capability::VmxProfile;
    use proptest::prelude::*;

    fn vmcs(fields: &[(Field, u64)]) -> Vmcs {
        let mut vmcs = Vmcs::new();
        for &(field, value) in fields {
            vmcs.set(field, value);
        }
        vmcs
    }

    #[test]
    fn cr3_targets_do_not_exit() {
        let mut vmcs = vmcs(&[
            (
                Field::PROC_CONTROLS,
                ProcControls::CR3_LOAD_EXITING.bits().into(),
            ),
            (Field::CR3_TARGET_COUNT, 2),
            (Field::CR3_TARGET_VALUE_0, 0x1000),
            (Field::CR3_TARGET_VALUE_1, 0x8000_0000_0000_2000),
            (Field::CR3_TARGET_VALUE_2, 0x3000),
        ]);
        assert_eq!(mov_to_cr3(&vmcs, 0x1000, 1), Write::Value(0x1000));
        assert_eq!(
            mov_to_cr3(&vmcs, 0x8000_0000_0000_2000, 1),
            Write::Value(0x8000_0000_0000_2000)
        );
        assert_eq!(mov_to_cr3(&vmcs, 0x2000, 1), Write::Exit(0x103));
        assert_eq!(mov_to_cr3(&vmcs, 0x3000, 15), Write::Exit(0xf03));
        vmcs.set(Field::PROC_CONTROLS, 0);
        assert_eq!(mov_to_cr3(&vmcs, 0x3000, 15), Write::Value(0x3000));
    }

    #[test]
    fn cr8_goes_where_the_controls_say() {
        let with = |controls: ProcControls| vmcs(&[(Field::PROC_CONTROLS, controls.bits().into())]);
        let exiting = with(ProcControls::CR8_LOAD_EXITING | ProcControls::USE_TPR_SHADOW);
        assert_eq!(mov_to_cr8(&exiting, 2), Cr8::Exit(0x208));
        assert_eq!(mov_from_cr8(&exiting, 2), Cr8::VirtualTpr);
        assert_eq!(
            mov_from_cr8(&with(ProcControls::CR8_STORE_EXITING), 0),
            Cr8::Exit(0x18)
        );
        assert_eq!(mov_to_cr8(&with(ProcControls::empty()), 0), Cr8::Register);
    }

    #[test]
    fn clts_depends_on_whose_ts_is() {
        let ts = Cr0::TS.bits();
        let cr0 = Cr0::PE | Cr0::TS;
        let guests = vmcs(&[(Field::CR0_READ_SHADOW, ts)]);
        assert_eq!(clts(&guests, cr0), Write::Value(Cr0::PE.bits()));
        let hosts = vmcs(&[
            (Field::CR0_GUEST_HOST_MASK, ts),
            (Field::CR0_READ_SHADOW, ts),
        ]);
        assert_eq!(clts(&hosts, cr0), Write::Exit(0x20));
        let seen_clear = vmcs(&[(Field::CR0_GUEST_HOST_MASK, ts)]);
        assert_eq!(clts(&seen_clear, cr0), Write::Value(cr0.bits()));
    }

    #[test]
    fn lmsw_exits_for_masked_bits_that_differ() {
        let masked = vmcs(&[
            (Field::CR0_GUEST_HOST_MASK, 0xf),
            (Field::CR0_READ_SHADOW, 0x3),
        ]);
        let cr0 = Cr0::from_bits_retain(0x11);
        assert_eq!(
            lmsw(&masked, cr0, 0x3, LmswOperand::Register),
            Write::Value(0x11)
        );
        // PE that the guest sees as 1 cannot be cleared, so 2 asks for nothing new.
        assert_eq!(
            lmsw(&masked, cr0, 0x2, LmswOperand::Register),
            Write::Value(0x11)
        );
        assert_eq!(
            lmsw(&masked, cr0, 0xb, LmswOperand::Memory),
            Write::Exit(0xb_0070)
        );
        let free = vmcs(&[]);
        assert_eq!(
            lmsw(&free, cr0, 0xfffe, LmswOperand::Register),
            Write::Value(0x1f)
        );
    }

    #[test]
    fn mov_dr_has_its_layout() {
        assert_eq!(mov_dr_qualification(7, Direction::To, 0), 7);
        assert_eq!(mov_dr_qualification(6, Direction::From, 13), 0xd16);
    }

    #[test]
    fn an_unrestricted_guest_may_leave_protected_mode() {
        let caps = VmxProfile::emulator_default().caps;
        let mut vmcs = vmcs(&[]);
        assert!(!is_cr0_supported(&vmcs, &caps, 0x20));
        assert!(is_cr0_supported(&vmcs, &caps, 0xe000_0021));
        vmcs.set(
            Field::PROC_CONTROLS,
            ProcControls::ACTIVATE_SECONDARY_CONTROLS.bits().into(),
        );
        vmcs.set(
            Field::SECONDARY_PROC_CONTROLS,
            SecondaryControls::UNRESTRICTED_GUEST.bits().into(),
        );
        assert!(is_cr0_supported(&vmcs, &caps, 0x20));
        assert!(!is_cr0_supported(&vmcs, &caps, 0x0));
        assert!(!is_cr0_supported(&vmcs, &caps, 0x1_0000_0020));
        assert!(is_cr4_supported(&caps, 0x2000));
        assert!(!is_cr4_supported(&caps, 0x20));
    }

    proptest! {
        /// A guest that does not exit reads back what it wrote.
        #[test]
        fn what_was_written_is_read(mask: u64, shadow: u64, cr: u64, value: u64) {
            let vmcs = vmcs(&[
                (Field::CR0_GUEST_HOST_MASK, mask),
                (Field::CR0_READ_SHADOW, shadow),
                (Field::CR4_GUEST_HOST_MASK, mask),
                (Field::CR4_READ_SHADOW, shadow),
            ]);
            let wanted = value & !mask | shadow & mask;
            for value in [value, wanted] {
                match mov_to_cr0(&vmcs, Cr0::from_bits_retain(cr), value, 0) {
                    Write::Value(new) => {
                        prop_assert_eq!(read_cr0(&vmcs, Cr0::from_bits_retain(new)), value);
                        prop_assert_eq!(new & mask, cr & mask);
                    }
                    Write::Exit(_) => prop_assert_ne!(value & mask, shadow & mask),
                }
                match mov_to_cr4(&vmcs, Cr4::from_bits_retain(cr), value, 0) {
                    Write::Value(new) => {
                        prop_assert_eq!(read_cr4(&vmcs, Cr4::from_bits_retain(new)), value);
                    }
                    Write::Exit(qualification) => prop_assert_eq!(qualification, 4),
                }
            }
        }
    }
}
