//! Exceptions and events, in the words that the VMCS uses for them.
//!
//! SDM Vol. 3C, "VM-Entry Controls for Event Injection" and "Information for VM Exits Due to
//! Vectored Events".

/// Exception and interrupt vectors with a name of their own.
#[allow(missing_docs, reason = "the names are the documentation")]
pub mod vector {
    pub const DE: u8 = 0;
    pub const DB: u8 = 1;
    pub const NMI: u8 = 2;
    pub const BP: u8 = 3;
    pub const OF: u8 = 4;
    pub const BR: u8 = 5;
    pub const UD: u8 = 6;
    pub const NM: u8 = 7;
    pub const DF: u8 = 8;
    pub const TS: u8 = 10;
    pub const NP: u8 = 11;
    pub const SS: u8 = 12;
    pub const GP: u8 = 13;
    pub const PF: u8 = 14;
    pub const MF: u8 = 16;
    pub const AC: u8 = 17;
    pub const MC: u8 = 18;
    pub const XM: u8 = 19;
    pub const VE: u8 = 20;
    pub const CP: u8 = 21;
}

/// An exception that an instruction or the delivery of an event raises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Exception {
    /// The vector.
    pub vector: u8,
    /// The error code, where the exception has one.
    pub error_code: Option<u32>,
    /// For #PF the faulting linear address; for #DB the bits that DR6 and the exit qualification
    /// get (in the format of the exit qualification); otherwise 0.
    pub payload: u64,
}

impl Exception {
    /// #UD.
    pub const UD: Self = Self::plain(vector::UD);
    /// #NM.
    pub const NM: Self = Self::plain(vector::NM);
    /// #DE.
    pub const DE: Self = Self::plain(vector::DE);

    /// An exception without error code.
    #[must_use]
    pub const fn plain(vector: u8) -> Self {
        Self {
            vector,
            error_code: None,
            payload: 0,
        }
    }

    /// An exception with an error code.
    #[must_use]
    pub const fn with_code(vector: u8, error_code: u32) -> Self {
        Self {
            vector,
            error_code: Some(error_code),
            payload: 0,
        }
    }

    /// #GP(error_code).
    #[must_use]
    pub const fn gp(error_code: u32) -> Self {
        Self::with_code(vector::GP, error_code)
    }

    /// #SS(error_code).
    #[must_use]
    pub const fn ss(error_code: u32) -> Self {
        Self::with_code(vector::SS, error_code)
    }

    /// #TS(error_code).
    #[must_use]
    pub const fn ts(error_code: u32) -> Self {
        Self::with_code(vector::TS, error_code)
    }

    /// #NP(error_code).
    #[must_use]
    pub const fn np(error_code: u32) -> Self {
        Self::with_code(vector::NP, error_code)
    }

    /// #PF(error_code) at `address`.
    #[must_use]
    pub const fn pf(error_code: u32, address: u64) -> Self {
        Self {
            vector: vector::PF,
            error_code: Some(error_code),
            payload: address,
        }
    }

    /// #DB with the given causes.
    #[must_use]
    pub const fn db(causes: u64) -> Self {
        Self {
            vector: vector::DB,
            error_code: None,
            payload: causes,
        }
    }
}

/// The type of an event, as in bits 10:8 of the interruption-information fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[repr(u8)]
pub enum EventType {
    /// External interrupt.
    ExternalInterrupt = 0,
    /// Non-maskable interrupt.
    Nmi = 2,
    /// Hardware exception.
    HardwareException = 3,
    /// Software interrupt: INT n.
    SoftwareInterrupt = 4,
    /// Privileged software exception: INT1.
    PrivilegedSoftwareException = 5,
    /// Software exception: INT3 or INTO.
    SoftwareException = 6,
    /// Other event: a pending MTF VM exit.
    Other = 7,
}

/// An event to deliver through the IDT (or, for [`EventType::Other`], a pending MTF VM exit).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Event {
    /// The vector.
    pub vector: u8,
    /// What kind of event it is.
    pub kind: EventType,
    /// The error code to push, if any.
    pub error_code: Option<u32>,
    /// Length in bytes of the instruction, for software interrupts and exceptions; else 0.
    pub instruction_length: u8,
    /// As [`Exception::payload`].
    pub payload: u64,
}

impl From<Exception> for Event {
    fn from(e: Exception) -> Self {
        Self {
            vector: e.vector,
            kind: EventType::HardwareException,
            error_code: e.error_code,
            instruction_length: 0,
            payload: e.payload,
        }
    }
}

/// The interruption-information format: bits 7:0 vector, 10:8 type, 11 error code valid,
/// 12 NMI unblocking due to IRET, 31 valid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct InterruptionInfo(pub u32);

impl InterruptionInfo {
    /// Bit 31: the field is valid.
    pub const VALID: u32 = 1 << 31;
    /// Bit 11: an error code goes with the event.
    pub const ERROR_CODE: u32 = 1 << 11;
    /// Bit 12: NMI unblocking due to IRET.
    pub const NMI_UNBLOCKING: u32 = 1 << 12;

    /// Returns the information for `event`, valid.
    #[must_use]
    pub const fn for_event(event: &Event) -> Self {
        let code = if event.error_code.is_some() {
            Self::ERROR_CODE
        } else {
            0
        };
        Self(Self::VALID | (event.kind as u32) << 8 | event.vector as u32 | code)
    }

    /// Whether bit 31 is set.
    #[must_use]
    pub const fn is_valid(self) -> bool {
        self.0 & Self::VALID != 0
    }

    /// Whether an error code goes with the event.
    #[must_use]
    pub const fn has_error_code(self) -> bool {
        self.0 & Self::ERROR_CODE != 0
    }

    /// Returns the vector.
    #[must_use]
    pub const fn vector(self) -> u8 {
        self.0 as u8
    }

    /// Returns the type; `None` for the reserved type 1.
    #[must_use]
    pub const fn kind(self) -> Option<EventType> {
        Some(match (self.0 >> 8) & 7 {
            0 => EventType::ExternalInterrupt,
            2 => EventType::Nmi,
            3 => EventType::HardwareException,
            4 => EventType::SoftwareInterrupt,
            5 => EventType::PrivilegedSoftwareException,
            6 => EventType::SoftwareException,
            7 => EventType::Other,
            _ => return None,
        })
    }
}
