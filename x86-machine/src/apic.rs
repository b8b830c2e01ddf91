//! The local APIC as a state machine (SDM Vol. 3A, "Advanced Programmable Interrupt Controller
//! (APIC)"): xAPIC and x2APIC mode, timer, interprocessor interrupts, priorities.
//!
//! It knows neither processors nor a clock: times come in as ticks of the time-stamp counter, and
//! what leaves the chip is returned as an [`Effect`].

mod message;
mod timer;

pub use message::{Delivery, Destination, Message};
pub use timer::Expiry;

/// Register numbers: the offset in the xAPIC page divided by 16, or the x2APIC MSR less 800H.
mod register {
    pub(super) const ID: u32 = 0x02;
    pub(super) const VERSION: u32 = 0x03;
    pub(super) const TPR: u32 = 0x08;
    pub(super) const PPR: u32 = 0x0a;
    pub(super) const EOI: u32 = 0x0b;
    pub(super) const LDR: u32 = 0x0d;
    pub(super) const DFR: u32 = 0x0e;
    pub(super) const SVR: u32 = 0x0f;
    pub(super) const ISR: u32 = 0x10;
    pub(super) const TMR: u32 = 0x18;
    pub(super) const IRR: u32 = 0x20;
    pub(super) const ESR: u32 = 0x28;
    pub(super) const ICR: u32 = 0x30;
    pub(super) const ICR_HIGH: u32 = 0x31;
    pub(super) const LVT_TIMER: u32 = 0x32;
    pub(super) const LVT_ERROR: u32 = 0x37;
    pub(super) const INITIAL_COUNT: u32 = 0x38;
    pub(super) const CURRENT_COUNT: u32 = 0x39;
    pub(super) const DIVIDE: u32 = 0x3e;
    pub(super) const SELF_IPI: u32 = 0x3f;
}

/// IA32_APIC_BASE: this is the bootstrap processor.
const BASE_BSP: u64 = 1 << 8;
/// IA32_APIC_BASE: x2APIC mode.
const BASE_EXTD: u64 = 1 << 10;
/// IA32_APIC_BASE: enabled.
const BASE_EN: u64 = 1 << 11;
/// Spurious-interrupt vector register: the APIC is enabled by software.
const SVR_ENABLED: u32 = 1 << 8;
/// LVT: masked.
const LVT_MASKED: u32 = 1 << 16;
/// LVT entries that may be written: timer, thermal, performance, LINT0, LINT1, error.
const LVT_WRITABLE: [u32; 6] = [0x7_00ff, 0x1_07ff, 0x1_07ff, 0x1_a7ff, 0x1_a7ff, 0x1_00ff];
/// Version 14H with six LVT entries.
const VERSION: u32 = 0x5_0014;
/// ESR: a vector below 16 was sent, received, or named; an illegal register was addressed.
const ESR_SEND_ILLEGAL: u32 = 1 << 5;
const ESR_RECEIVE_ILLEGAL: u32 = 1 << 6;

/// What a register write causes outside of this APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// A message is sent.
    Send(Message),
    /// The handler of a level-triggered vector has finished.
    Eoi(u8),
    /// The timer has been set: [`LocalApic::start_timer`] wants the time.
    Timer,
}

/// One local APIC.
#[derive(Clone, Debug)]
pub struct LocalApic {
    /// The ID that the hardware gave.
    initial_id: u32,
    id: u32,
    base: u64,
    tpr: u8,
    svr: u32,
    ldr: u32,
    dfr: u32,
    isr: [u32; 8],
    tmr: [u32; 8],
    irr: [u32; 8],
    esr: u32,
    errors: u32,
    icr: u64,
    lvt: [u32; 6],
    initial_count: u32,
    divide: u32,
    /// When the count began.
    started: u64,
    /// When the timer interrupts next.
    expires: Option<u64>,
    /// IA32_TSC_DEADLINE.
    tsc_deadline: u64,
}

impl LocalApic {
    /// Returns an APIC in the state after RESET; number 0 belongs to the bootstrap processor.
    #[must_use]
    pub fn new(id: u32) -> Self {
        let bsp = if id == 0 { BASE_BSP } else { 0 };
        let mut apic = Self {
            initial_id: id,
            id,
            base: 0xfee0_0000 | BASE_EN | bsp,
            tpr: 0,
            svr: 0,
            ldr: 0,
            dfr: 0,
            isr: [0; 8],
            tmr: [0; 8],
            irr: [0; 8],
            esr: 0,
            errors: 0,
            icr: 0,
            lvt: [0; 6],
            initial_count: 0,
            divide: 0,
            started: 0,
            expires: None,
            tsc_deadline: 0,
        };
        apic.init();
        apic
    }

    /// Sets what INIT sets: everything but the ID and IA32_APIC_BASE ("Local APIC State After It
    /// Receives an INIT-Deassert IPI", "Local APIC State After Power-Up or Reset").
    pub fn init(&mut self) {
        *self = Self {
            initial_id: self.initial_id,
            id: self.id,
            base: self.base,
            tpr: 0,
            svr: 0xff,
            ldr: 0,
            dfr: u32::MAX,
            isr: [0; 8],
            tmr: [0; 8],
            irr: [0; 8],
            esr: 0,
            errors: 0,
            icr: 0,
            lvt: [LVT_MASKED; 6],
            initial_count: 0,
            divide: 0,
            started: 0,
            expires: None,
            tsc_deadline: 0,
        };
    }

    /// Returns the APIC ID.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Returns IA32_APIC_BASE.
    #[must_use]
    pub fn base(&self) -> u64 {
        self.base
    }

    /// Writes IA32_APIC_BASE, whose transition has been checked. Disabling the APIC resets it, and
    /// x2APIC mode does not preserve an ID that software wrote ("x2APIC State Transitions").
    pub fn set_base(&mut self, value: u64) {
        let was = self.base;
        self.base = value;
        if value & BASE_EN == 0 && was & BASE_EN != 0 {
            self.init();
            self.id = self.initial_id;
        }
        if self.is_x2apic() {
            self.id = self.initial_id;
            self.ldr = (self.id & !0xf) << 12 | 1 << (self.id & 0xf);
        }
    }

    /// Returns the address of the register page, if registers are in memory.
    #[must_use]
    pub fn page(&self) -> Option<u64> {
        let is_mapped = self.base & (BASE_EN | BASE_EXTD) == BASE_EN;
        is_mapped.then_some(self.base & !0xfff)
    }

    /// Whether the APIC is in x2APIC mode.
    #[must_use]
    pub fn is_x2apic(&self) -> bool {
        self.base & (BASE_EN | BASE_EXTD) == BASE_EN | BASE_EXTD
    }

    fn is_enabled(&self) -> bool {
        self.base & BASE_EN != 0 && self.svr & SVR_ENABLED != 0
    }

    /// Returns the task-priority class, as CR8 shows it.
    #[must_use]
    pub fn cr8(&self) -> u64 {
        u64::from(self.tpr >> 4)
    }

    /// Sets the task priority through CR8.
    pub fn set_cr8(&mut self, value: u64) {
        self.tpr = ((value & 0xf) << 4) as u8;
    }

    /// Returns the processor priority ("Task and Processor Priorities").
    #[must_use]
    pub fn ppr(&self) -> u8 {
        let in_service = highest(&self.isr).unwrap_or(0);
        if self.tpr >> 4 >= in_service >> 4 {
            self.tpr
        } else {
            in_service & 0xf0
        }
    }

    /// Returns the vector that the processor should get now.
    #[must_use]
    pub fn pending(&self) -> Option<u8> {
        let is_listening = self.base & BASE_EN != 0;
        highest(&self.irr).filter(|&v| is_listening && v >> 4 > self.ppr() >> 4)
    }

    /// Acknowledges the pending vector: it is in service.
    pub fn acknowledge(&mut self) -> Option<u8> {
        let vector = self.pending()?;
        set(&mut self.irr, vector, false);
        set(&mut self.isr, vector, true);
        Some(vector)
    }

    /// Accepts a vector.
    pub fn accept(&mut self, vector: u8, is_level: bool) {
        if vector < 16 {
            self.note_error(ESR_RECEIVE_ILLEGAL);
        } else if self.is_enabled() {
            set(&mut self.irr, vector, true);
            set(&mut self.tmr, vector, is_level);
        }
    }

    /// Whether a message with this destination is for this APIC; `sender` is an APIC ID.
    #[must_use]
    pub fn is_addressed(&self, destination: Destination, sender: Option<u32>) -> bool {
        if self.base & BASE_EN == 0 {
            return false;
        }
        match destination {
            Destination::Own => sender == Some(self.id),
            Destination::All => true,
            Destination::Others => sender != Some(self.id),
            Destination::Physical(id) if self.is_x2apic() => id == u32::MAX || id == self.id,
            Destination::Physical(id) => id & 0xff == 0xff || id == self.id,
            Destination::Logical(mask) => self.is_addressed_logically(mask),
        }
    }

    fn is_addressed_logically(&self, mask: u32) -> bool {
        if self.is_x2apic() {
            return mask == u32::MAX
                || mask >> 16 == self.ldr >> 16 && mask & self.ldr & 0xffff != 0;
        }
        let logical = self.ldr >> 24;
        let mask = mask & 0xff;
        match self.dfr >> 28 {
            0xf => mask & logical != 0,
            _ => mask == 0xff || mask >> 4 == logical >> 4 && mask & logical & 0xf != 0,
        }
    }

    /// Reads an x2APIC register by its MSR; `None` is #GP(0).
    #[must_use]
    pub fn read_msr(&self, index: u32, now: u64) -> Option<u64> {
        let register = index.checked_sub(0x800)?;
        let is_absent = matches!(
            register,
            register::EOI | register::DFR | register::ICR_HIGH | register::SELF_IPI
        );
        if !self.is_x2apic() || is_absent || !exists(register) {
            return None;
        }
        Some(match register {
            register::ICR => self.icr,
            register::ID => u64::from(self.id),
            _ => u64::from(self.read(register, now)),
        })
    }

    /// Writes an x2APIC register by its MSR; `None` is #GP(0).
    pub fn write_msr(&mut self, index: u32, value: u64) -> Option<Effect> {
        let register = index.checked_sub(0x800)?;
        let high = value >> 32;
        match register {
            _ if !self.is_x2apic() => None,
            register::ICR => {
                let reserved = 0xfff3_2000;
                (value & reserved == 0).then(|| {
                    self.icr = value;
                    self.send()
                })
            }
            _ if high != 0 => None,
            register::EOI | register::ESR if value != 0 => None,
            register::SELF_IPI => (value < 0x100).then(|| self.send_to_self(value as u8)),
            _ => (is_writable_in_x2apic(register) && self.has_no_reserved(register, value as u32))
                .then(|| self.write(register, value as u32)),
        }
    }

    fn has_no_reserved(&self, register: u32, value: u32) -> bool {
        let writable = match register {
            register::TPR => 0xff,
            register::SVR => 0x3ff,
            register::DIVIDE => 0xb,
            register::LVT_TIMER..=register::LVT_ERROR => {
                LVT_WRITABLE[(register - register::LVT_TIMER) as usize] | 0x1000
            }
            _ => u32::MAX,
        };
        value & !writable == 0
    }

    /// Reads four bytes of the register page.
    #[must_use]
    pub fn read_page(&self, offset: u64, now: u64) -> u32 {
        if offset & 0xc != 0 {
            return 0;
        }
        self.read((offset >> 4) as u32, now)
    }

    /// Writes four bytes of the register page.
    pub fn write_page(&mut self, offset: u64, value: u32) -> Effect {
        if offset & 0xf != 0 {
            return Effect::None;
        }
        self.write((offset >> 4) as u32, value)
    }

    fn read(&self, register: u32, now: u64) -> u32 {
        let word = (register & 7) as usize;
        match register {
            register::ID => self.id << 24,
            register::VERSION => VERSION,
            register::TPR => u32::from(self.tpr),
            register::PPR => u32::from(self.ppr()),
            register::LDR => self.ldr,
            register::DFR => self.dfr,
            register::SVR => self.svr,
            register::ISR..register::TMR => self.isr[word],
            register::TMR..register::IRR => self.tmr[word],
            register::IRR..register::ESR => self.irr[word],
            register::ESR => self.esr,
            register::ICR => self.icr as u32,
            register::ICR_HIGH => (self.icr >> 32) as u32,
            register::LVT_TIMER..=register::LVT_ERROR => {
                self.lvt[(register - register::LVT_TIMER) as usize]
            }
            register::INITIAL_COUNT => self.initial_count,
            register::CURRENT_COUNT => self.current_count(now),
            register::DIVIDE => self.divide,
            _ => 0,
        }
    }

    fn write(&mut self, register: u32, value: u32) -> Effect {
        match register {
            register::ID if !self.is_x2apic() => self.id = value >> 24,
            register::TPR => self.tpr = value as u8,
            register::EOI => return self.end_of_interrupt(),
            register::LDR => self.ldr = value & 0xff00_0000,
            register::DFR => self.dfr = value | 0x0fff_ffff,
            register::SVR => self.set_svr(value),
            register::ESR => self.esr = std::mem::take(&mut self.errors),
            register::ICR => {
                self.icr = self.icr >> 32 << 32 | u64::from(value & !0x1000);
                return self.send();
            }
            register::ICR_HIGH => self.icr = u64::from(value) << 32 | self.icr & 0xffff_ffff,
            register::LVT_TIMER..=register::LVT_ERROR => self.set_lvt(register, value),
            register::INITIAL_COUNT => {
                self.initial_count = value;
                return Effect::Timer;
            }
            register::DIVIDE => {
                self.divide = value & 0xb;
                return Effect::Timer;
            }
            _ => {}
        }
        Effect::None
    }

    fn set_svr(&mut self, value: u32) {
        self.svr = value & 0x3ff;
        if value & SVR_ENABLED == 0 {
            for entry in &mut self.lvt {
                *entry |= LVT_MASKED;
            }
        }
    }

    /// Sets an LVT entry.
    ///
    /// Choice: a change between one-shot and periodic mode lets a running timer run, as in KVM;
    /// "TSC-Deadline Mode" may be read to say that it disarms the timer.
    fn set_lvt(&mut self, register: u32, value: u32) {
        let n = (register - register::LVT_TIMER) as usize;
        let mut value = value & LVT_WRITABLE[n];
        if self.svr & SVR_ENABLED == 0 {
            value |= LVT_MASKED;
        }
        let old = std::mem::replace(&mut self.lvt[n], value);
        // A change to or from TSC-deadline mode disarms the timer.
        if register == register::LVT_TIMER && (old ^ value) >> 18 & 1 != 0 {
            (self.initial_count, self.tsc_deadline, self.expires) = (0, 0, None);
        }
    }

    /// Ends the handling of the highest vector in service.
    pub fn end_of_interrupt(&mut self) -> Effect {
        let Some(vector) = highest(&self.isr) else {
            return Effect::None;
        };
        set(&mut self.isr, vector, false);
        let is_level = self.tmr[usize::from(vector >> 5)] >> (vector & 31) & 1 != 0;
        if is_level && self.svr & 1 << 12 == 0 {
            Effect::Eoi(vector)
        } else {
            Effect::None
        }
    }

    fn send_to_self(&mut self, vector: u8) -> Effect {
        self.icr = u64::from(vector) | 1 << 18;
        self.send()
    }

    /// Sends what the ICR says.
    fn send(&mut self) -> Effect {
        let icr = self.icr as u32;
        let to = (self.icr >> 32) as u32;
        let to = if self.is_x2apic() { to } else { to >> 24 };
        let destination = match (icr >> 18 & 3, icr >> 11 & 1) {
            (0, 0) => Destination::Physical(to),
            (0, _) => Destination::Logical(to),
            (1, _) => Destination::Own,
            (2, _) => Destination::All,
            _ => Destination::Others,
        };
        let delivery = Delivery::of(icr);
        let is_deassert = icr & 0xc000 == 0x8000;
        if delivery == Delivery::Init && is_deassert {
            return Effect::None;
        }
        let vector = icr as u8;
        if vector < 16 && matches!(delivery, Delivery::Fixed | Delivery::LowestPriority) {
            self.note_error(ESR_SEND_ILLEGAL);
            return Effect::None;
        }
        Effect::Send(Message {
            delivery,
            vector,
            destination,
            is_level: false,
        })
    }

    fn note_error(&mut self, error: u32) {
        let is_new = self.errors & error == 0;
        self.errors |= error;
        let entry = self.lvt[5];
        if is_new && entry & LVT_MASKED == 0 && entry as u8 >= 16 {
            self.accept(entry as u8, false);
        }
    }

    /// Returns the LVT entry of LINT0 or LINT1, if it is not masked.
    #[must_use]
    pub fn local_interrupt(&self, pin: usize) -> Option<u32> {
        let entry = *self.lvt.get(3 + pin.min(1))?;
        (entry & LVT_MASKED == 0).then_some(entry)
    }

    /// Whether an external interrupt controller at LINT0 reaches the processor: where the APIC is
    /// off, or its entry for LINT0 is open and says so.
    #[must_use]
    pub fn takes_external_interrupts(&self) -> bool {
        let is_external = |entry: u32| Delivery::of(entry) == Delivery::ExtInt;
        self.base & BASE_EN == 0 || self.local_interrupt(0).is_some_and(is_external)
    }

    /// Brings the APIC of a bootstrap processor into virtual wire mode, in which firmware leaves it
    /// ("Local APIC Initialization"): enabled, LINT0 for an external interrupt controller, LINT1
    /// for NMIs.
    pub fn enter_virtual_wire_mode(&mut self) {
        self.svr |= SVR_ENABLED;
        self.lvt[3] = 0x8700 & LVT_WRITABLE[3];
        self.lvt[4] = 0x400;
    }
}

/// Whether a register has a number in x2APIC mode.
fn exists(register: u32) -> bool {
    matches!(
        register,
        register::ID
            | register::VERSION
            | register::TPR
            | register::PPR
            | register::LDR
            | register::SVR
            | register::ISR..=register::ESR
            | register::ICR
            | register::LVT_TIMER..=register::CURRENT_COUNT
            | register::DIVIDE
    )
}

fn is_writable_in_x2apic(register: u32) -> bool {
    matches!(
        register,
        register::TPR | register::EOI | register::SVR | register::ESR | register::LVT_TIMER
            ..=register::INITIAL_COUNT | register::DIVIDE
    )
}

/// Returns the highest vector of a set.
fn highest(set: &[u32; 8]) -> Option<u8> {
    let word = set.iter().rposition(|&w| w != 0)?;
    Some((32 * word as u32 + 31 - set[word].leading_zeros()) as u8)
}

fn set(vectors: &mut [u32; 8], vector: u8, value: bool) {
    let (word, bit) = (usize::from(vector >> 5), 1 << (vector & 31));
    if value {
        vectors[word] |= bit;
    } else {
        vectors[word] &= !bit;
    }
}

#[cfg(test)]
mod tests;
