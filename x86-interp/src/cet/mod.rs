//! Control-flow Enforcement Technology: shadow stacks and indirect-branch tracking.
//!
//! SDM Vol. 1, "Control-flow Enforcement Technology (CET)"; Vol. 3A, "Interrupt 21-Control
//! Protection Exception (#CP)". Here is what several instructions and event delivery share:
//! `shadow_stack` accesses shadow stacks and their tokens, `transfer` says what far transfers and
//! events do to them, `endbranch` keeps the trackers. SSP, IA32_S_CET and
//! IA32_INTERRUPT_SSP_TABLE_ADDR are in [`ArchState`](vmx_model::arch::ArchState), since VM entries
//! load them; the other MSRs in [`Msrs`](crate::msr::Msrs).

pub(crate) mod components;
mod endbranch;
mod shadow_stack;
pub(crate) mod task;
pub(crate) mod transfer;

use bitflags::bitflags;
use vmx_model::arch::{Cr0, Cr4};
use vmx_model::event::{Exception, vector};

use crate::mode::Mode;
use crate::{Cpu, Fault};

bitflags! {
    /// IA32_U_CET and IA32_S_CET.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct CetControl: u64 {
        /// Shadow stacks are in use.
        const SH_STK_EN = 1 << 0;
        /// WRSSD and WRSSQ exist.
        const WR_SHSTK_EN = 1 << 1;
        /// Indirect branches are tracked.
        const ENDBR_EN = 1 << 2;
        /// The legacy code page bitmap is asked where ENDBRANCH is missing.
        const LEG_IW_EN = 1 << 3;
        /// The NOTRACK prefix is heeded.
        const NO_TRACK_EN = 1 << 4;
        /// Tracking is not suppressed behind a legacy code page.
        const SUPPRESS_DIS = 1 << 5;
        /// Tracking is suppressed.
        const SUPPRESS = 1 << 10;
        /// The tracker is in the state WAIT_FOR_ENDBRANCH.
        const TRACKER = 1 << 11;
        /// EB_LEG_BITMAP_BASE.
        const BITMAP_BASE = u64::MAX << 12;
        /// What belongs to shadow stacks.
        const SHADOW_STACK = Self::SH_STK_EN.bits() | Self::WR_SHSTK_EN.bits();
        /// What belongs to indirect-branch tracking.
        const TRACKING = 0x3c | Self::SUPPRESS.bits() | Self::TRACKER.bits() | Self::BITMAP_BASE.bits();
    }
}

/// The reasons of #CP: its error code (SDM Vol. 3A, "Interrupt 21-Control Protection Exception
/// (#CP)"). The bit ENCL is never set: there are no enclaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cp {
    NearRet = 1,
    FarRetIret = 2,
    Endbranch = 3,
    Rstorssp = 4,
    Setssbsy = 5,
}

impl From<Cp> for Fault {
    fn from(reason: Cp) -> Self {
        Exception::with_code(vector::CP, reason as u32).into()
    }
}

impl Cpu {
    /// Returns IA32_U_CET (level 3) or IA32_S_CET (levels 0 to 2), as far as it is in effect:
    /// nothing unless CR4.CET and CR0.PE are set.
    #[inline]
    pub(crate) fn cet_at(&self, level: u8) -> CetControl {
        if !self.state.cr4.contains(Cr4::CET) || !self.state.cr0.contains(Cr0::PE) {
            return CetControl::empty();
        }
        CetControl::from_bits_retain(if level == 3 {
            self.msrs.u_cet
        } else {
            self.state.s_cet
        })
    }

    /// Returns what of CET is in effect for the code that runs: nothing in virtual-8086 mode.
    #[inline]
    pub(crate) fn cet(&self) -> CetControl {
        if !self.state.cr4.contains(Cr4::CET) || self.mode() == Mode::Virtual8086 {
            return CetControl::empty();
        }
        self.cet_at(self.cpl())
    }

    /// Whether shadow stacks are in use by the code that runs: "ShadowStackEnabled(CPL)".
    pub(crate) fn has_shadow_stack(&self) -> bool {
        self.cet().contains(CetControl::SH_STK_EN)
    }

    /// Whether shadow stacks are in use at a privilege level, outside virtual-8086 mode.
    pub(crate) fn has_shadow_stack_at(&self, level: u8) -> bool {
        self.cet_at(level).contains(CetControl::SH_STK_EN)
    }

    /// Whether the code that runs needs the plain handlers of near branches and ENDBRANCH.
    #[inline]
    pub(crate) fn is_cet_active(&self) -> bool {
        self.state.cr4.contains(Cr4::CET)
            && self
                .cet()
                .intersects(CetControl::SH_STK_EN | CetControl::ENDBR_EN)
    }

    fn change_cet(&mut self, level: u8, change: impl FnOnce(CetControl) -> CetControl) {
        let register = if level == 3 {
            &mut self.msrs.u_cet
        } else {
            &mut self.state.s_cet
        };
        *register = change(CetControl::from_bits_retain(*register)).bits();
    }
}

#[cfg(test)]
mod tests;
