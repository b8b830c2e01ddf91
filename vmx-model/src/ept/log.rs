//! Page-modification logging and virtualization exceptions: what happens beside an access.
//!
//! SDM Vol. 3C, "Page-Modification Logging" and "Virtualization Exceptions".

use crate::addr::{Gpa, Hpa};
use crate::arch::Cr0;
use crate::controls::SecondaryControls;
use crate::exit::VmExit;
use crate::exit_reason::ExitReason;
use crate::field::Field;
use crate::memory::PhysicalMemory;
use crate::vmcs::Vmcs;

/// Logs an access that is about to set the dirty flag of `gpa`'s page, if page-modification logging
/// is on. The access counts only when this has succeeded.
///
/// # Errors
/// The VM exit "page-modification log full": nothing is logged, and no flag may be set.
pub fn log_modification(
    vmcs: &mut Vmcs,
    memory: &mut dyn PhysicalMemory,
    gpa: Gpa,
) -> Result<(), VmExit> {
    if !vmcs.secondary().contains(SecondaryControls::ENABLE_PML) {
        return Ok(());
    }
    let index = vmcs.get(Field::PML_INDEX);
    if index > 511 {
        return Err(VmExit::new(ExitReason::PML_FULL));
    }
    let entry = Hpa(vmcs.get(Field::PML_ADDRESS)).offset(8 * index);
    memory.write_u64(entry, gpa.page().0);
    vmcs.set(Field::PML_INDEX, index.wrapping_sub(1));
    Ok(())
}

/// Whether an exit comes while an event is being delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// No event is being delivered.
    None,
    /// An event is being delivered through the IDT.
    Underway,
}

/// Turns the VM exit of an EPT violation into a virtualization exception where that is enabled and
/// possible: returns whether #VE (vector 20, no error code) is to be raised instead of `exit`. The
/// virtualization-exception information area is written then.
#[must_use]
pub fn convert_violation(
    vmcs: &Vmcs,
    memory: &mut dyn PhysicalMemory,
    exit: &VmExit,
    is_convertible: bool,
    cr0: Cr0,
    delivery: Delivery,
) -> bool {
    const BUSY: u64 = 4;
    let is_enabled = vmcs
        .secondary()
        .contains(SecondaryControls::EPT_VIOLATION_VE);
    if !is_enabled || !is_convertible || !cr0.contains(Cr0::PE) || delivery == Delivery::Underway {
        return false;
    }
    let area = Hpa(vmcs.get(Field::VE_INFORMATION_ADDRESS));
    if memory.read_u32(area.offset(BUSY)) != 0 {
        return false;
    }
    memory.write_u32(area, ExitReason::EPT_VIOLATION.0.into());
    memory.write_u32(area.offset(BUSY), u32::MAX);
    memory.write_u64(area.offset(8), exit.qualification);
    memory.write_u64(area.offset(16), exit.guest_linear_address.unwrap_or(0));
    memory.write_u64(
        area.offset(24),
        exit.guest_physical_address.unwrap_or(Gpa(0)).0,
    );
    let index = vmcs.get(Field::EPTP_INDEX) as u16;
    memory.write(area.offset(32), &index.to_le_bytes());
    true
}
