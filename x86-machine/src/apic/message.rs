//! Interrupt messages between APICs (SDM Vol. 3A, "Issuing Interprocessor Interrupts").

/// How an interrupt message is delivered (SDM, "Interrupt Command Register (ICR)").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// A vector.
    Fixed,
    /// A vector, for the processor with the lowest priority.
    LowestPriority,
    /// A non-maskable interrupt.
    Nmi,
    /// INIT.
    Init,
    /// A start-up IPI.
    StartUp,
    /// As from an 8259.
    ExtInt,
    /// SMI, INIT level de-assert and reserved modes: nothing is delivered.
    None,
}

impl Delivery {
    /// Returns the mode that bits 10:8 of an ICR, LVT or redirection entry name.
    #[must_use]
    pub fn of(word: u32) -> Self {
        match word >> 8 & 7 {
            0 => Self::Fixed,
            1 => Self::LowestPriority,
            4 => Self::Nmi,
            5 => Self::Init,
            6 => Self::StartUp,
            7 => Self::ExtInt,
            _ => Self::None,
        }
    }
}

/// Who gets a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// The APIC with this ID; all ones is everyone.
    Physical(u32),
    /// Those whose logical ID matches.
    Logical(u32),
    /// The sender.
    Own,
    /// Everyone.
    All,
    /// Everyone but the sender.
    Others,
}

/// An interrupt message on its way to the APICs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// How.
    pub delivery: Delivery,
    /// The vector.
    pub vector: u8,
    /// To whom.
    pub destination: Destination,
    /// Whether it comes from a level-triggered source.
    pub is_level: bool,
}
