//! Indirect-branch tracking (SDM Vol. 1, "Indirect Branch Tracking").
//!
//! The state of a tracker is the bit TRACKER of IA32_U_CET or IA32_S_CET. The run loop asks
//! [`Cpu::check_endbranch`] before an instruction: what sets the bit ends its block.

use iced_x86::Code;
use vmx_model::arch::Cr4;
use vmx_model::event::Exception;

use super::{CetControl, Cp};
use crate::fetch::Decoded;
use crate::mem::{Access, Privilege};
use crate::mode::Mode;
use crate::{Cpu, Exec};

impl Cpu {
    /// A near indirect CALL or JMP, with or without the NOTRACK prefix: the tracker waits, unless
    /// tracking is suppressed.
    pub(crate) fn track_near(&mut self, is_no_track: bool) {
        let cet = self.cet();
        let is_excepted = is_no_track && cet.contains(CetControl::NO_TRACK_EN);
        let is_tracked = cet.contains(CetControl::ENDBR_EN) && !cet.contains(CetControl::SUPPRESS);
        if is_tracked && !is_excepted {
            self.change_cet(self.cpl(), |cet| cet | CetControl::TRACKER);
        }
    }

    /// A far transfer, an event or a fast system call to privilege level `level`: the tracker
    /// waits, and tracking is no more suppressed.
    pub(crate) fn track_far(&mut self, level: u8) {
        if self.cet_at(level).contains(CetControl::ENDBR_EN) {
            self.change_cet(level, |cet| cet | CetControl::TRACKER);
            self.change_cet(level, |cet| cet - CetControl::SUPPRESS);
        }
    }

    /// ENDBRANCH of the present mode: the tracker is idle, and tracking is no more suppressed.
    pub(crate) fn end_branch(&mut self) {
        if self.cet().contains(CetControl::ENDBR_EN) {
            let both = CetControl::TRACKER | CetControl::SUPPRESS;
            self.change_cet(self.cpl(), |cet| cet - both);
        }
    }

    /// Before an instruction: #CP(ENDBRANCH) if the tracker waits, and it is not ENDBRANCH of the
    /// present mode, nor INT3 or INT1, whose traps come first, nor in a page that the legacy code
    /// page bitmap excepts.
    ///
    /// # Errors
    /// #CP, or the fault of the fetch, which comes first.
    #[inline]
    pub(crate) fn check_endbranch(&mut self) -> Exec {
        let waiting = CetControl::ENDBR_EN | CetControl::TRACKER;
        if self.cet().contains(waiting) {
            self.require_endbranch()
        } else {
            Ok(())
        }
    }

    #[cold]
    fn require_endbranch(&mut self) -> Exec {
        let endbranch = if self.mode() == Mode::Long {
            Code::Endbr64
        } else {
            Code::Endbr32
        };
        match self.decode_next()? {
            Decoded::Insn(insn)
                if insn.code == endbranch || matches!(insn.code, Code::Int3 | Code::Int1) =>
            {
                Ok(())
            }
            _ => self.treat_as_legacy(),
        }
    }

    /// "Legacy Compatibility Treatment": the bit of the instruction's page in the bitmap lets it
    /// pass; tracking is then suppressed until the next ENDBRANCH, unless SUPPRESS_DIS is set.
    ///
    /// Choice: the bitmap is read with the privilege of CPL.
    fn treat_as_legacy(&mut self) -> Exec {
        let cet = self.cet();
        if !cet.contains(CetControl::LEG_IW_EN) {
            return Err(Cp::Endbranch.into());
        }
        let page = (self.linear_rip().0 & self.linear_mask()) >> 12;
        let base = (cet & CetControl::BITMAP_BASE).bits();
        let at = self.canonical_range(base.wrapping_add(page >> 3), 1, Exception::gp(0))?;
        let bits: u8 = self.load_linear(at, Access::Read, Privilege::Current)?;
        if bits >> (page & 7) & 1 == 0 {
            return Err(Cp::Endbranch.into());
        }
        let is_suppressed = !cet.contains(CetControl::SUPPRESS_DIS);
        self.change_cet(self.cpl(), |mut cet| {
            cet.remove(CetControl::TRACKER);
            cet.set(CetControl::SUPPRESS, is_suppressed);
            cet
        });
        Ok(())
    }

    /// Returns the bits of a linear address that count in the present mode.
    fn linear_mask(&self) -> u64 {
        match self.mode() {
            Mode::Long if self.state.cr4.contains(Cr4::LA57) => (1 << 57) - 1,
            Mode::Long => (1 << 48) - 1,
            _ => 0xffff_ffff,
        }
    }
}
