//! APIC virtualization: the virtual-APIC page, virtual interrupts, posted interrupts.
//!
//! SDM Vol. 3C, chapter "APIC Virtualization and Virtual Interrupts". The executor finds out which
//! physical page an access goes to; here is decided whether the access is virtualized, and what a
//! completed write to the virtual-APIC page comes to ([`VirtualApic::emulate_write`]). RVI and SVI
//! are the two bytes of the field "guest interrupt status".

use crate::addr::Hpa;
use crate::controls::{PinControls, ProcControls, SecondaryControls};
use crate::exit::VmExit;
use crate::exit_reason::ExitReason;
use crate::field::Field;
use crate::memory::PhysicalMemory;
use crate::vmcs::Vmcs;

/// Offsets in the virtual-APIC page.
mod offset {
    pub(super) const TPR: u16 = 0x80;
    pub(super) const PPR: u16 = 0xa0;
    pub(super) const EOI: u16 = 0xb0;
    pub(super) const ISR: u16 = 0x100;
    pub(super) const IRR: u16 = 0x200;
    pub(super) const ICR: u16 = 0x300;
    pub(super) const ICR_HIGH: u16 = 0x310;
    pub(super) const SELF_IPI: u16 = 0x3f0;
}

/// ICR: reserved bits, destination shorthands without "self", level triggering, delivery status, and
/// every delivery mode but "fixed".
const ICR_NOT_SELF_FIXED: u32 = 0xfffb_b700;
/// ICR: destination shorthand "self".
const ICR_SELF: u32 = 1 << 18;

/// A VM exit that follows the completion of an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum ApicTrap {
    /// VTPR is below the TPR threshold.
    TprBelowThreshold,
    /// A write to the virtual-APIC page, at this offset, that software is to emulate.
    Write(u16),
    /// An EOI for a vector of the EOI-exit bitmap.
    Eoi(u8),
}

impl ApicTrap {
    /// Returns the VM exit.
    #[must_use]
    pub fn exit(self) -> VmExit {
        match self {
            Self::TprBelowThreshold => VmExit::new(ExitReason::TPR_BELOW_THRESHOLD),
            Self::Write(at) => VmExit::new(ExitReason::APIC_WRITE).qualified(at.into()),
            Self::Eoi(vector) => VmExit::new(ExitReason::VIRTUALIZED_EOI).qualified(vector.into()),
        }
    }
}

/// What a change of the virtual APIC leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Effect {
    /// Nothing.
    None,
    /// A VM exit when the instruction has completed.
    Trap(ApicTrap),
    /// Pending virtual interrupts were evaluated: one is recognized now, or none.
    Evaluated {
        /// Whether one is recognized.
        is_recognized: bool,
    },
}

/// What RDMSR or WRMSR of an MSR from 800H to 8FFH comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum X2apic<T> {
    /// It operates as outside VMX non-root operation.
    Normal,
    /// It is virtualized.
    Virtual(T),
    /// #GP(0).
    Fault,
}

/// Returns the virtual-APIC page, with "use TPR shadow".
#[must_use]
pub const fn virtual_apic_page(vmcs: &Vmcs) -> Option<Hpa> {
    if vmcs.proc().contains(ProcControls::USE_TPR_SHADOW) {
        Some(Hpa(vmcs.get(Field::VIRTUAL_APIC_ADDRESS)))
    } else {
        None
    }
}

/// Whether virtual interrupts are delivered.
#[must_use]
pub fn delivers_virtual_interrupts(vmcs: &Vmcs) -> bool {
    vmcs.secondary()
        .contains(SecondaryControls::VIRTUAL_INTERRUPT_DELIVERY)
}

fn virtualizes_registers(vmcs: &Vmcs) -> bool {
    vmcs.secondary()
        .contains(SecondaryControls::APIC_REGISTER_VIRTUALIZATION)
}

/// Whether an access lies in the low four bytes of an aligned 16-byte region.
const fn is_in_register(at: u16, bytes: usize) -> bool {
    (at & 0xf) as usize + bytes <= 4
}

/// Whether a data read of the APIC-access page reads the virtual-APIC page instead of causing a VM
/// exit ("Virtualizing Reads from the APIC-Access Page").
#[must_use]
pub fn is_read_virtualized(vmcs: &Vmcs, at: u16, bytes: usize) -> bool {
    if virtual_apic_page(vmcs).is_none() || !is_in_register(at, bytes) {
        return false;
    }
    if !virtualizes_registers(vmcs) {
        return at == offset::TPR;
    }
    matches!(
        at >> 4,
        0x2 | 0x3 | 0x8 | 0xb | 0xd..=0x28 | 0x30..=0x38 | 0x3e
    )
}

/// Whether a data write of the APIC-access page writes to the virtual-APIC page instead of causing
/// a VM exit ("Virtualizing Writes to the APIC-Access Page").
#[must_use]
pub fn is_write_virtualized(vmcs: &Vmcs, at: u16, bytes: usize) -> bool {
    if virtual_apic_page(vmcs).is_none() || !is_in_register(at, bytes) {
        return false;
    }
    if virtualizes_registers(vmcs) {
        return matches!(
            at >> 4,
            0x2 | 0x8 | 0xb | 0xd..=0xf | 0x28 | 0x30..=0x38 | 0x3e
        );
    }
    match at {
        offset::TPR => true,
        offset::EOI | offset::ICR => delivers_virtual_interrupts(vmcs),
        _ => false,
    }
}

/// Returns what RDMSR of an x2APIC register comes to ("Virtualizing MSR-Based APIC Accesses").
pub fn read_x2apic(vmcs: &Vmcs, memory: &dyn PhysicalMemory, index: u32) -> X2apic<u64> {
    let is_virtual = vmcs
        .secondary()
        .contains(SecondaryControls::VIRTUALIZE_X2APIC_MODE)
        && (virtualizes_registers(vmcs) || index == 0x808);
    match (virtual_apic_page(vmcs), index) {
        (Some(page), 0x800..=0x8ff) if is_virtual => {
            X2apic::Virtual(memory.read_u64(page.offset(u64::from(index & 0xff) << 4)))
        }
        _ => X2apic::Normal,
    }
}

/// Returns what WRMSR of an x2APIC register comes to.
pub fn write_x2apic(
    vmcs: &mut Vmcs,
    memory: &mut dyn PhysicalMemory,
    index: u32,
    value: u64,
) -> X2apic<Effect> {
    let is_virtual = vmcs
        .secondary()
        .contains(SecondaryControls::VIRTUALIZE_X2APIC_MODE);
    let delivers = delivers_virtual_interrupts(vmcs);
    let largest = match index {
        0x808 if is_virtual => 0xff,
        0x80b if is_virtual && delivers => 0,
        0x83f if is_virtual && delivers => 0xff,
        _ => return X2apic::Normal,
    };
    let Some(mut apic) = VirtualApic::of(vmcs, memory) else {
        return X2apic::Normal;
    };
    if value > largest {
        return X2apic::Fault;
    }
    let at = (index as u16 & 0xff) << 4;
    apic.memory.write_u64(apic.page.offset(at.into()), value);
    X2apic::Virtual(match at {
        offset::SELF_IPI if value < 16 => Effect::Trap(ApicTrap::Write(at)),
        offset::SELF_IPI => apic.send_self_ipi(value as u8),
        _ => apic.emulate_write(at),
    })
}

/// Returns the notification vector, with "process posted interrupts".
#[must_use]
pub fn posted_interrupt_vector(vmcs: &Vmcs) -> Option<u8> {
    let vector = vmcs.get(Field::POSTED_INTERRUPT_NOTIFICATION_VECTOR) as u8;
    vmcs.pin()
        .contains(PinControls::PROCESS_POSTED_INTERRUPTS)
        .then_some(vector)
}

/// The virtual APIC of a guest: its page and the interrupt status in its VMCS.
pub struct VirtualApic<'a> {
    vmcs: &'a mut Vmcs,
    memory: &'a mut dyn PhysicalMemory,
    page: Hpa,
}

impl<'a> VirtualApic<'a> {
    /// Returns the virtual APIC, with "use TPR shadow".
    pub fn of(vmcs: &'a mut Vmcs, memory: &'a mut dyn PhysicalMemory) -> Option<Self> {
        let page = virtual_apic_page(vmcs)?;
        Some(Self { vmcs, memory, page })
    }

    fn read(&self, at: u16) -> u32 {
        self.memory.read_u32(self.page.offset(at.into()))
    }

    fn write(&mut self, at: u16, value: u32) {
        self.memory.write_u32(self.page.offset(at.into()), value);
    }

    /// Returns VTPR.
    #[must_use]
    pub fn tpr(&self) -> u8 {
        self.read(offset::TPR) as u8
    }

    /// Sets VTPR, as MOV to CR8 does, and virtualizes the TPR.
    pub fn set_tpr(&mut self, value: u8) -> Effect {
        self.write(offset::TPR, value.into());
        self.virtualize_tpr()
    }

    fn rvi(&self) -> u8 {
        self.vmcs.get(Field::GUEST_INTERRUPT_STATUS) as u8
    }

    fn svi(&self) -> u8 {
        (self.vmcs.get(Field::GUEST_INTERRUPT_STATUS) >> 8) as u8
    }

    fn set_status(&mut self, rvi: u8, svi: u8) {
        let status = u64::from(rvi) | u64::from(svi) << 8;
        self.vmcs.set(Field::GUEST_INTERRUPT_STATUS, status);
    }

    /// APIC-write emulation, after a write at `at` ("APIC-Write Emulation").
    pub fn emulate_write(&mut self, at: u16) -> Effect {
        let delivers = delivers_virtual_interrupts(self.vmcs);
        match at & !3 {
            offset::TPR => {
                let tpr = self.tpr();
                self.set_tpr(tpr)
            }
            offset::EOI if delivers => {
                self.write(offset::EOI, 0);
                self.end_of_interrupt()
            }
            offset::ICR if delivers => {
                let icr = self.read(offset::ICR);
                let vector = icr as u8;
                if icr & ICR_NOT_SELF_FIXED == 0 && icr & ICR_SELF != 0 && vector >= 16 {
                    self.send_self_ipi(vector)
                } else {
                    Effect::Trap(ApicTrap::Write(offset::ICR))
                }
            }
            offset::ICR_HIGH => {
                let high = self.read(offset::ICR_HIGH);
                self.write(offset::ICR_HIGH, high & 0xff00_0000);
                Effect::None
            }
            _ => Effect::Trap(ApicTrap::Write(at)),
        }
    }

    /// "TPR Virtualization".
    fn virtualize_tpr(&mut self) -> Effect {
        if delivers_virtual_interrupts(self.vmcs) {
            self.virtualize_ppr();
            return self.evaluate();
        }
        if self.is_tpr_below_threshold() {
            Effect::Trap(ApicTrap::TprBelowThreshold)
        } else {
            Effect::None
        }
    }

    fn is_tpr_below_threshold(&self) -> bool {
        let threshold = self.vmcs.get(Field::TPR_THRESHOLD) & 0xf;
        u64::from(self.tpr() >> 4) < threshold
    }

    /// "PPR Virtualization".
    fn virtualize_ppr(&mut self) {
        let (tpr, svi) = (self.tpr(), self.svi());
        let ppr = if tpr >> 4 >= svi >> 4 {
            tpr
        } else {
            svi & 0xf0
        };
        self.write(offset::PPR, ppr.into());
    }

    /// "EOI Virtualization".
    fn end_of_interrupt(&mut self) -> Effect {
        let vector = self.svi();
        self.set_bit(offset::ISR, vector, false);
        let svi = self.highest(offset::ISR);
        self.set_status(self.rvi(), svi);
        self.virtualize_ppr();
        if self.exits_on_eoi(vector) {
            Effect::Trap(ApicTrap::Eoi(vector))
        } else {
            self.evaluate()
        }
    }

    fn exits_on_eoi(&self, vector: u8) -> bool {
        let bitmap = [
            Field::EOI_EXIT_BITMAP_0,
            Field::EOI_EXIT_BITMAP_1,
            Field::EOI_EXIT_BITMAP_2,
            Field::EOI_EXIT_BITMAP_3,
        ][usize::from(vector >> 6)];
        self.vmcs.get(bitmap) >> (vector & 63) & 1 != 0
    }

    /// "Self-IPI Virtualization".
    fn send_self_ipi(&mut self, vector: u8) -> Effect {
        self.set_bit(offset::IRR, vector, true);
        self.set_status(self.rvi().max(vector), self.svi());
        self.evaluate()
    }

    /// "Evaluation of Pending Virtual Interrupts".
    pub fn evaluate(&self) -> Effect {
        let has_window = self
            .vmcs
            .proc()
            .contains(ProcControls::INTERRUPT_WINDOW_EXITING);
        let ppr = self.read(offset::PPR) as u8;
        Effect::Evaluated {
            is_recognized: !has_window && self.rvi() >> 4 > ppr >> 4,
        }
    }

    /// What VM entry does: with virtual-interrupt delivery PPR virtualization and an evaluation, else
    /// the comparison of VTPR with the threshold where APIC accesses are virtualized ("VM Exits
    /// Induced by the TPR Threshold").
    pub fn enter(&mut self) -> Effect {
        let secondary = self.vmcs.secondary();
        if delivers_virtual_interrupts(self.vmcs) {
            self.virtualize_ppr();
            self.evaluate()
        } else if secondary.contains(SecondaryControls::VIRTUALIZE_APIC_ACCESSES)
            && self.is_tpr_below_threshold()
        {
            Effect::Trap(ApicTrap::TprBelowThreshold)
        } else {
            Effect::None
        }
    }

    /// "Virtual-Interrupt Delivery": the recognized virtual interrupt is in service now; returns its
    /// vector.
    pub fn deliver(&mut self) -> u8 {
        let vector = self.rvi();
        self.set_bit(offset::ISR, vector, true);
        self.write(offset::PPR, u32::from(vector & 0xf0));
        self.set_bit(offset::IRR, vector, false);
        let rvi = self.highest(offset::IRR);
        self.set_status(rvi, vector);
        vector
    }

    /// "Posted-Interrupt Processing": takes over the requests, which the executor has taken out of
    /// the posted-interrupt descriptor.
    pub fn post(&mut self, requests: [u64; 4]) -> Effect {
        let mut highest = 0;
        for (n, word) in (0_u16..).zip(requests) {
            for (half, bits) in [(0, word as u32), (1, (word >> 32) as u32)] {
                let register = 2 * n + half;
                let at = offset::IRR + 16 * register;
                if bits != 0 {
                    let irr = self.read(at);
                    self.write(at, irr | bits);
                    highest = (32 * register + 31 - bits.leading_zeros() as u16) as u8;
                }
            }
        }
        self.set_status(self.rvi().max(highest), self.svi());
        self.evaluate()
    }

    fn set_bit(&mut self, registers: u16, vector: u8, value: bool) {
        let at = registers + 16 * u16::from(vector >> 5);
        let bit = 1 << (vector & 31);
        let old = self.read(at);
        self.write(at, if value { old | bit } else { old & !bit });
    }

    /// Returns the highest vector of a set of eight registers; 0 if there is none.
    fn highest(&self, registers: u16) -> u8 {
        (0_u8..8)
            .rev()
            .find_map(|n| {
                let word = self.read(registers + 16 * u16::from(n));
                (word != 0).then(|| 32 * n + 31 - word.leading_zeros() as u8)
            })
            .unwrap_or(0)
    }
}

#[cfg(test)]
mod tests;
