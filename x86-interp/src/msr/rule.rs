//! What single MSRs read and accept.
//!
//! SDM Vol. 4, "Architectural MSRs"; Vol. 3A, "Memory Type Range Registers (MTRRs)", "Page
//! Attribute Table (PAT)", "Local APIC Status and Location"; Vol. 3B, "Time-Stamp Counter".

use vmx_model::arch::{Cr0, Efer};

use crate::Cpu;
use crate::cet::CetControl;
use crate::cpuid::Feature;
use crate::mem::walk::physical_mask;

/// IA32_MISC_ENABLE after RESET: fast strings, no BTS, no PEBS, MONITOR.
pub(super) const MISC_ENABLE_RESET: u64 = MISC_ENABLE_FIXED | 1 << 18 | 1;
/// Bits of IA32_MISC_ENABLE that always read as one: BTS and PEBS are unavailable.
const MISC_ENABLE_FIXED: u64 = 1 << 11 | 1 << 12;
/// Bits of IA32_MISC_ENABLE that can be changed: fast strings, thermal control, SpeedStep, MONITOR,
/// "Limit CPUID Maxval", "xTPR Message Disable".
///
/// Choice: those of SpeedStep and xTPR messages are kept without a meaning, as KVM does.
const MISC_ENABLE_WRITABLE: u64 =
    1 | 1 << 3 | 1 << 16 | 1 << 18 | MISC_ENABLE_LIMIT_CPUID | 1 << 23;
/// IA32_MISC_ENABLE: CPUID leaf 0 says that 2 is the highest leaf.
pub(crate) const MISC_ENABLE_LIMIT_CPUID: u64 = 1 << 22;
/// IA32_MISC_ENABLE: the execute-disable feature is not there.
///
/// Choice: IA32_EFER.NXE that is set already stays in effect.
pub(crate) const MISC_ENABLE_XD_DISABLE: u64 = 1 << 34;

/// Bits of IA32_APIC_BASE.
mod apic {
    pub(super) const BSP: u64 = 1 << 8;
    pub(super) const EXTD: u64 = 1 << 10;
    pub(super) const EN: u64 = 1 << 11;
}

/// IA32_FEATURE_CONTROL: lock, VMXON inside SMX operation, VMXON outside SMX operation.
pub(super) fn feature_control(cpu: &Cpu, value: u64) -> bool {
    let smx = if cpu.has(Feature::Smx) { 2 } else { 0 };
    cpu.msrs.feature_control & 1 == 0 && value & !(5 | smx) == 0
}

/// Writes the TSC: IA32_TSC_ADJUST moves by the same amount.
pub(super) fn write_tsc(cpu: &mut Cpu, value: u64) -> Option<()> {
    let moved = value.wrapping_sub(cpu.tsc());
    cpu.msrs.tsc_offset = cpu.msrs.tsc_offset.wrapping_add(moved);
    cpu.msrs.tsc_adjust = cpu.msrs.tsc_adjust.wrapping_add(moved);
    Some(())
}

/// Writes IA32_TSC_ADJUST: the TSC moves by the same amount.
pub(super) fn write_tsc_adjust(cpu: &mut Cpu, value: u64) -> Option<()> {
    let moved = value.wrapping_sub(cpu.msrs.tsc_adjust);
    cpu.msrs.tsc_offset = cpu.msrs.tsc_offset.wrapping_add(moved);
    cpu.msrs.tsc_adjust = value;
    Some(())
}

pub(super) fn write_tsc_deadline(cpu: &mut Cpu, value: u64) -> Option<()> {
    cpu.msrs.tsc_deadline = value;
    if let Some(apic) = &mut cpu.apic {
        apic.set_tsc_deadline(value);
    }
    Some(())
}

pub(super) fn read_apic_base(cpu: &mut Cpu) -> u64 {
    match &mut cpu.apic {
        Some(apic) => apic.base(),
        None => cpu.msrs.apic_base,
    }
}

/// IA32_APIC_BASE: no reserved bits, and only the transitions that the figure "Local x2APIC State
/// Transitions" has.
pub(super) fn write_apic_base(cpu: &mut Cpu, value: u64) -> Option<()> {
    let old = read_apic_base(cpu);
    let physical = physical_mask(cpu.cpuid.physical_address_bits()) & !0xfff;
    let extd = if cpu.has(Feature::X2apic) {
        apic::EXTD
    } else {
        0
    };
    let mode = |v: u64| (v & apic::EN != 0, v & apic::EXTD != 0);
    let is_transition = match (mode(old), mode(value)) {
        // x2APIC mode without the enable bit does not exist.
        (_, (false, true)) => false,
        // From disabled to x2APIC mode, and from x2APIC back to xAPIC mode.
        ((false, _), (true, true)) | ((true, true), (true, false)) => false,
        _ => true,
    };
    if value & !(physical | apic::BSP | apic::EN | extd) != 0 || !is_transition {
        return None;
    }
    match &mut cpu.apic {
        Some(apic) => apic.set_base(value).then_some(()),
        None => {
            cpu.msrs.apic_base = value;
            Some(())
        }
    }
}

/// IA32_PRED_CMD: bit 0 is a command.
pub(super) fn command(_: &mut Cpu, value: u64) -> Option<()> {
    (value & !1 == 0).then_some(())
}

/// A write without effect.
pub(super) fn ignore(_: &mut Cpu, _: u64) -> Option<()> {
    Some(())
}

/// Choice: IA32_SYSENTER_CS keeps the 32 bits that its VMCS field holds, as under KVM.
pub(super) fn write_sysenter_cs(cpu: &mut Cpu, value: u64) -> Option<()> {
    cpu.state.sysenter_cs = value & 0xffff_ffff;
    Some(())
}

pub(super) fn write_misc_enable(cpu: &mut Cpu, value: u64) -> Option<()> {
    let mut known = MISC_ENABLE_WRITABLE | MISC_ENABLE_FIXED;
    if cpu.has(Feature::Nx) {
        known |= MISC_ENABLE_XD_DISABLE;
    }
    let is_valid = value & !known == 0;
    cpu.msrs.misc_enable = if is_valid {
        value | MISC_ENABLE_FIXED
    } else {
        cpu.msrs.misc_enable
    };
    is_valid.then_some(())
}

/// IA32_MCi_CTL. Choice: all bits or none, which P6 family processors and KVM require.
pub(super) fn machine_check_control(_: &Cpu, value: u64) -> bool {
    value == 0 || value == u64::MAX
}

/// PAT: eight memory types, UC- among them.
pub(super) fn pat(_: &Cpu, value: u64) -> bool {
    value
        .to_le_bytes()
        .iter()
        .all(|t| matches!(t, 0 | 1 | 4..=7))
}

const fn is_memory_type(value: u64) -> bool {
    matches!(value as u8, 0 | 1 | 4..=6)
}

pub(super) fn mtrr_base(cpu: &Cpu, value: u64) -> bool {
    let physical = physical_mask(cpu.cpuid.physical_address_bits()) & !0xfff;
    value & !(physical | 0xff) == 0 && is_memory_type(value)
}

pub(super) fn mtrr_mask(cpu: &Cpu, value: u64) -> bool {
    let physical = physical_mask(cpu.cpuid.physical_address_bits()) & !0xfff;
    value & !(physical | 1 << 11) == 0
}

pub(super) fn mtrr_fixed(_: &Cpu, value: u64) -> bool {
    value
        .to_le_bytes()
        .iter()
        .all(|&t| is_memory_type(u64::from(t)))
}

pub(super) fn mtrr_def_type(_: &Cpu, value: u64) -> bool {
    value & !0xcff == 0 && is_memory_type(value)
}

/// IA32_U_CET and IA32_S_CET: no reserved bits, not both SUPPRESS and TRACKER, a canonical bitmap
/// base (SDM Vol. 1, "Control-flow Enforcement Technology (CET)"; Vol. 4, "Architectural MSRs").
pub(crate) fn cet(cpu: &Cpu, value: u64) -> bool {
    let mut defined = CetControl::empty();
    if cpu.has(Feature::CetSs) {
        defined |= CetControl::SHADOW_STACK;
    }
    if cpu.has(Feature::CetIbt) {
        defined |= CetControl::TRACKING;
    }
    let both = CetControl::SUPPRESS | CetControl::TRACKER;
    let control = CetControl::from_bits_retain(value);
    defined.contains(control)
        && !control.contains(both)
        && cpu.is_canonical_base(value & CetControl::BITMAP_BASE.bits())
}

/// IA32_PL0_SSP to IA32_PL3_SSP: canonical, and aligned to four bytes.
pub(crate) fn shadow_stack_pointer(cpu: &Cpu, value: u64) -> bool {
    value & 3 == 0 && cpu.is_canonical_base(value)
}

/// IA32_XSS: the supervisor state components that there are.
pub(super) fn xss(cpu: &Cpu, value: u64) -> bool {
    value & !crate::xstate::supported_by_xss(cpu.cpuid.features()) == 0
}

pub(super) fn write_pkrs(cpu: &mut Cpu, value: u64) -> Option<()> {
    if value >> 32 != 0 {
        return None;
    }
    cpu.state.pkrs = value;
    cpu.flush_tlb_all();
    Some(())
}

pub(super) fn read_efer(cpu: &mut Cpu) -> u64 {
    cpu.state.efer.bits()
}

/// IA32_EFER: no reserved bits, LME only while paging is off; LMA is not changed.
pub(super) fn write_efer(cpu: &mut Cpu, value: u64) -> Option<()> {
    let old = cpu.state.efer;
    let new = Efer::from_bits_retain(value) & !Efer::LMA | old & Efer::LMA;
    let changed = old ^ new;
    let is_paging = cpu.state.cr0.contains(Cr0::PG);
    let mut supported = cpu.cpuid.efer_supported() | Efer::LMA;
    if cpu.msrs.misc_enable & MISC_ENABLE_XD_DISABLE != 0 {
        supported = (supported - Efer::NXE) | (old & Efer::NXE);
    }
    if !supported.contains(new) || (changed.contains(Efer::LME) && is_paging) {
        return None;
    }
    cpu.state.efer = new;
    if changed.contains(Efer::NXE) {
        cpu.flush_tlb_all();
    }
    Some(())
}
