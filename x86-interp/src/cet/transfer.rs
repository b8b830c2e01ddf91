//! What far transfers, events and returns do to shadow stacks.
//!
//! SDM Vol. 1, "Shadow Stack Usage on Privilege Level Switch"; Vol. 2: CALL, JMP, RET, INT
//! n/INTO/INT3/INT1, IRET, SYSCALL, SYSENTER, "Operation". A transfer is first checked, which changes
//! nothing, and carried out when the frame on the ordinary stack cannot fault any more.

use vmx_model::arch::{Cr4, Segment, SegmentRegister};
use vmx_model::event::Exception;

use super::{CetControl, Cp};
use crate::descriptor::{Column, Selector};
use crate::mem::stack::Stack;
use crate::mode::Mode;
use crate::{Cpu, Exec};

/// Which shadow stack a transfer goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The one in use.
    Current,
    /// That of the new privilege level: IA32_PLn_SSP.
    Level,
    /// An entry of the interrupt shadow-stack table.
    Table(u8),
}

/// A transfer that may come back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    /// The new privilege level.
    pub(crate) level: u8,
    pub(crate) source: Source,
    /// Whether it goes to 64-bit code.
    pub(crate) to_long: bool,
    /// The linear address to return to.
    pub(crate) return_lip: u64,
}

/// A checked [`Entry`].
pub(crate) struct CheckedEntry {
    level: u8,
    /// What IA32_PL3_SSP gets.
    user_ssp: Option<u64>,
    stack: Option<NewStack>,
}

/// Whether a token at `ssp`, and CS, LIP and SSP below it, lie in a naturally aligned region of 32
/// bytes.
const fn has_room_for_frame(ssp: u64) -> bool {
    ssp & 0x1f == 0x18
}

impl CheckedEntry {
    /// A transfer while CR4.CET is clear.
    const NOTHING: Self = Self {
        level: 0,
        user_ssp: None,
        stack: None,
    };
}

/// A shadow stack to be used.
struct NewStack {
    ssp: u64,
    has_token: bool,
    /// CS, LIP and SSP to be pushed.
    frame: Option<[u64; 3]>,
}

/// Where a return goes.
#[derive(Clone, Copy)]
pub(crate) struct Return<'a> {
    pub(crate) code: &'a Segment,
    pub(crate) selector: Selector,
    pub(crate) offset: u64,
    /// Whether it is by IRET.
    pub(crate) is_iret: bool,
}

/// A checked [`Return`].
pub(crate) struct CheckedReturn {
    ssp: Option<u64>,
    /// The token to be set free.
    token: Option<u64>,
}

impl Cpu {
    /// Returns the linear address of `rip` in the present code segment.
    pub(crate) fn lip_of(&self, rip: u64) -> u64 {
        match self.mode() {
            Mode::Long => rip,
            _ => {
                self.state
                    .segment(SegmentRegister::Cs)
                    .base
                    .wrapping_add(rip)
                    & 0xffff_ffff
            }
        }
    }

    /// Whether a code segment is one of 64-bit code.
    pub(crate) fn is_long_code(&self, code: &Segment) -> bool {
        self.column() == Column::Ia32e && code.access.is_long()
    }

    /// Checks what a CALL, or an event, does that pushes `count` values on `stack`: those first.
    ///
    /// # Errors
    /// The fault of a push, or as [`Self::check_shadow_entry`].
    pub(crate) fn check_entry_under_cet(
        &mut self,
        stack: &Stack,
        size: u8,
        count: usize,
        entry: &Entry,
    ) -> Exec<CheckedEntry> {
        if !self.state.cr4.contains(Cr4::CET) {
            return Ok(CheckedEntry::NOTHING);
        }
        self.check_frame(stack, size, count)?;
        self.check_shadow_entry(entry)
    }

    /// Checks what a CALL, or an event, does to shadow stacks. What it pushes on the ordinary stack
    /// has been checked.
    ///
    /// # Errors
    /// #GP(0), or the page fault of an access.
    fn check_shadow_entry(&mut self, entry: &Entry) -> Exec<CheckedEntry> {
        let from = self.cpl();
        let old = self.state.ssp;
        let leaves_user = self.has_shadow_stack() && from == 3 && entry.level != 3;
        let mut checked = CheckedEntry {
            level: entry.level,
            user_ssp: leaves_user.then(|| self.adjusted_ssp()),
            stack: None,
        };
        if !self.has_shadow_stack_at(entry.level) {
            return Ok(checked);
        }
        let ssp = match entry.source {
            Source::Current => old,
            Source::Level => self.msrs.pl_ssp[usize::from(entry.level & 3)],
            Source::Table(index) => {
                let table = self.state.interrupt_ssp_table;
                let at = self.system_linear(table, 8 * u64::from(index));
                self.load_system(at)?
            }
        };
        let has_token = entry.source != Source::Current;
        if has_token && !has_room_for_frame(ssp) || !entry.to_long && ssp >> 32 != 0 {
            return Err(Exception::gp(0).into());
        }
        if has_token {
            self.check_shadow_store(ssp, 8, entry.level)?;
            if self.load_shadow(ssp, 8, entry.level)? != ssp {
                return Err(Exception::gp(0).into());
            }
        }
        let cs = u64::from(self.state.segment(SegmentRegister::Cs).selector);
        let is_pushed = from == entry.level || from != 3;
        let frame = is_pushed.then_some([cs, entry.return_lip, old]);
        if frame.is_some() {
            self.check_shadow_frame_store(ssp, entry.level)?;
        }
        checked.stack = Some(NewStack {
            ssp,
            has_token,
            frame,
        });
        Ok(checked)
    }

    /// Takes the fault that a push of CS, LIP and SSP would take.
    fn check_shadow_frame_store(&mut self, ssp: u64, level: u8) -> Exec {
        if ssp & 7 != 0 {
            self.check_shadow_store(ssp.wrapping_sub(4), 4, level)?;
        }
        let top = ssp & !7;
        for n in 1..=3 {
            self.check_shadow_store(top.wrapping_sub(8 * n), 8, level)?;
        }
        Ok(())
    }

    /// Carries out what was checked: sets the busy bit of the token, pushes CS, LIP and SSP, loads
    /// SSP. The tracker of the new level waits.
    ///
    /// # Errors
    /// #GP(0) if another processor has taken the shadow stack meanwhile.
    pub(crate) fn enter_shadow(&mut self, checked: CheckedEntry) -> Exec {
        let level = checked.level;
        if let Some(stack) = checked.stack {
            if stack.has_token && !self.set_token_busy(stack.ssp, level)? {
                return Err(Exception::gp(0).into());
            }
            self.state.ssp = match stack.frame {
                Some(frame) => self.push_shadow_frame(stack.ssp, frame, level)?,
                None => stack.ssp,
            };
        }
        if let Some(ssp) = checked.user_ssp {
            self.msrs.pl_ssp[3] = ssp;
        }
        self.track_far(level);
        Ok(())
    }

    /// Pushes CS, LIP and SSP, below a hole if `ssp` is not aligned to eight bytes. Returns SSP.
    pub(crate) fn push_shadow_frame(&mut self, ssp: u64, frame: [u64; 3], level: u8) -> Exec<u64> {
        self.check_shadow_frame_store(ssp, level)?;
        if ssp & 7 != 0 {
            self.store_shadow(ssp.wrapping_sub(4), 0, 4, level)?;
        }
        let mut top = ssp & !7;
        for value in frame {
            top = top.wrapping_sub(8);
            self.store_shadow(top, value, 8, level)?;
        }
        Ok(top)
    }

    /// JMP far, which pushes nothing: SSP must fit code that is not 64-bit code.
    ///
    /// # Errors
    /// #GP(0).
    pub(crate) fn check_shadow_jump(&self, code: &Segment) -> Exec {
        let is_wide = self.state.ssp >> 32 != 0 && !self.is_long_code(code);
        if is_wide && self.has_shadow_stack() {
            return Err(Exception::gp(0).into());
        }
        Ok(())
    }

    /// Checks what RET or IRET does to shadow stacks.
    ///
    /// # Errors
    /// #CP(FAR-RET/IRET), #GP(0), or the page fault of an access.
    pub(crate) fn check_shadow_return(&mut self, to: &Return<'_>) -> Exec<CheckedReturn> {
        let (from, level) = (self.cpl(), to.selector.rpl());
        let is_in_use = self.has_shadow_stack();
        let mut checked = CheckedReturn {
            ssp: None,
            token: None,
        };
        if !is_in_use && !self.has_shadow_stack_at(level) {
            return Ok(checked);
        }
        let mut after = self.state.ssp;
        let mut next = self.msrs.pl_ssp[3];
        if is_in_use {
            if after & 7 != 0 {
                return Err(Cp::FarRetIret.into());
            }
            if level == from || level != 3 {
                next = self.matching_shadow_frame(to)?;
                after = self.shadow_offset(after, 24);
            }
            // Choice: SSP of a level without shadow stacks is as the frame leaves it.
            checked.ssp = Some(after);
        }
        if self.has_shadow_stack_at(level) {
            let is_valid = if self.is_long_code(to.code) {
                self.is_canonical(next)
            } else {
                next >> 32 == 0
            };
            if !is_valid {
                return Err(Exception::gp(0).into());
            }
            checked.ssp = Some(next);
        }
        // IRET in IA-32e mode may come from a stack of the interrupt shadow-stack table.
        let is_switch = to.is_iret && self.mode().is_ia32e() && next != after;
        if is_in_use && (level != from || is_switch) {
            self.check_shadow_store(after, 8, from)?;
            checked.token = Some(after);
        }
        Ok(checked)
    }

    /// Compares CS and LIP on the shadow stack with those of a return, and returns the previous SSP.
    fn matching_shadow_frame(&mut self, to: &Return<'_>) -> Exec<u64> {
        let (ssp, level) = (self.state.ssp, self.cpl());
        let mut load = |n: u64| {
            let at = self.shadow_offset(ssp, 8 * n);
            self.load_shadow(at, 8, level)
        };
        let (cs, lip, previous) = (load(2)?, load(1)?, load(0)?);
        let expected = if self.is_long_code(to.code) {
            to.offset
        } else {
            to.code.base.wrapping_add(to.offset) & 0xffff_ffff
        };
        if cs != u64::from(to.selector.0) || lip != expected || previous & 3 != 0 {
            return Err(Cp::FarRetIret.into());
        }
        Ok(previous)
    }

    /// IRET to virtual-8086 mode, which knows no CET: #GP(0) if IA32_U_CET enables shadow stacks or
    /// tracking. The token of the shadow stack that is left is set free, if it is one.
    ///
    /// # Errors
    /// #GP(0), #CP(FAR-RET/IRET), or the page fault of an access.
    pub(crate) fn leave_shadow_to_virtual_8086(&mut self) -> Exec {
        if self
            .cet_at(3)
            .intersects(CetControl::SH_STK_EN | CetControl::ENDBR_EN)
        {
            return Err(Exception::gp(0).into());
        }
        if !self.has_shadow_stack() {
            return Ok(());
        }
        if self.state.ssp & 7 != 0 {
            return Err(Cp::FarRetIret.into());
        }
        self.clear_token_busy(self.state.ssp, self.cpl())?;
        Ok(())
    }

    /// Carries out what was checked, before the new code segment is loaded: sets the token free, if
    /// it is one, and loads SSP.
    pub(crate) fn leave_shadow(&mut self, checked: &CheckedReturn) -> Exec {
        if let Some(token) = checked.token {
            self.clear_token_busy(token, self.cpl())?;
        }
        if let Some(ssp) = checked.ssp {
            self.state.ssp = ssp;
        }
        Ok(())
    }

    /// SYSCALL and SYSENTER: IA32_PL3_SSP gets SSP, which becomes 0 if shadow stacks are in use at
    /// level 0; the tracker of level 0 waits.
    pub(crate) fn enter_shadow_by_call(&mut self) {
        if self.has_shadow_stack() {
            self.msrs.pl_ssp[3] = self.adjusted_ssp();
        }
        if self.has_shadow_stack_at(0) {
            self.state.ssp = 0;
        }
        self.track_far(0);
    }

    /// SYSRET and SYSEXIT: SSP gets IA32_PL3_SSP if shadow stacks are in use at level 3.
    pub(crate) fn leave_shadow_to_user(&mut self) {
        if self.has_shadow_stack_at(3) {
            self.state.ssp = self.msrs.pl_ssp[3];
        }
    }

    /// Returns SSP as IA32_PL3_SSP takes it ("LA_adjust"): canonical.
    fn adjusted_ssp(&self) -> u64 {
        if !self.mode().is_ia32e() {
            return self.state.ssp;
        }
        let shift = 64 - u32::from(self.cpuid.linear_address_bits());
        ((self.state.ssp << shift) as i64 >> shift) as u64
    }
}
