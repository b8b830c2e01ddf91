//! How a VMX instruction ends: VMsucceed, VMfailInvalid, VMfailValid(n).
//!
//! SDM Vol. 3C, "Conventions" of the chapter "VMX Instruction Reference".

use crate::arch::Rflags;

/// The architectural outcome of a VMX instruction that neither faulted nor caused a VM exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[must_use]
pub enum VmxOutcome {
    /// VMsucceed: the six status flags are cleared.
    Succeed,
    /// VMfailInvalid: CF is set, the other five are cleared.
    FailInvalid,
    /// VMfailValid: ZF is set, the other five are cleared, and the error number is in the
    /// VM-instruction error field of the current VMCS.
    FailValid(u32),
}

impl VmxOutcome {
    /// Returns `rflags` with the six status flags as this outcome leaves them.
    #[must_use]
    pub fn apply(self, rflags: Rflags) -> Rflags {
        let rest = rflags.difference(Rflags::STATUS);
        match self {
            Self::Succeed => rest,
            Self::FailInvalid => rest | Rflags::CF,
            Self::FailValid(_) => rest | Rflags::ZF,
        }
    }

    /// Whether this is VMsucceed.
    #[must_use]
    pub const fn is_success(self) -> bool {
        matches!(self, Self::Succeed)
    }
}
