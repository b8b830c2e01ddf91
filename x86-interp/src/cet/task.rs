//! Shadow stacks in task switches.
//!
//! SDM Vol. 3A, "Task Switching", tables "Exception Conditions Checked During a Task Switch" and
//! "Task-State Segment (TSS)": the 32-bit TSS holds SSP behind the other fields. A CALL, a JMP or an
//! event switches to the shadow stack that the new TSS names; IRET goes back to the one that the
//! frame on the old shadow stack, or IA32_PL3_SSP, names.

use vmx_model::arch::{Cr4, Rflags, SegmentRegister};
use vmx_model::event::Exception;

use super::{CetControl, Cp};
use crate::descriptor::Selector;
use crate::mem::{Access, Privilege};
use crate::task::TaskSource;
use crate::{Cpu, Exec};

/// Where the 32-bit TSS has SSP.
const TSS_SSP: u64 = 104;
/// The limit that a TSS has at least while CR4.CET is set.
pub(crate) const TSS_LIMIT: u32 = 107;

/// What a task switch has found out about shadow stacks in the old task.
#[derive(Default)]
pub(crate) struct TaskShadow {
    /// The switch is by IRET.
    is_return: bool,
    /// SSP in the new TSS.
    ssp: u64,
    /// CS, LIP and SSP of the old task, to be pushed on the shadow stack of the new one.
    frame: Option<[u64; 3]>,
    /// CS and LIP that an IRET has to go back to.
    expected: Option<[u64; 2]>,
    /// What IA32_PL3_SSP gets.
    user_ssp: Option<u64>,
    /// The SSP that an IRET goes back to, and the token that it sets free with the level of its
    /// shadow stack.
    previous: Option<(u64, u64, u8)>,
}

impl Cpu {
    /// Reads what a task switch needs, before anything changes.
    ///
    /// # Errors
    /// The fault of an access.
    pub(crate) fn check_task_shadow(
        &mut self,
        source: TaskSource,
        tss_base: u64,
        new_cs: Selector,
        new_flags: Rflags,
        return_rip: u64,
    ) -> Exec<TaskShadow> {
        let mut found = TaskShadow {
            is_return: source == TaskSource::Iret,
            ..TaskShadow::default()
        };
        if !self.state.cr4.contains(Cr4::CET) {
            return Ok(found);
        }
        if source != TaskSource::Iret {
            let at = self.system_linear(tss_base, TSS_SSP);
            let ssp: u32 = self.load_linear(at, Access::Read, Privilege::Supervisor)?;
            found.ssp = u64::from(ssp);
        }
        if !self.has_shadow_stack() {
            return Ok(found);
        }
        let (from, ssp) = (self.cpl(), self.state.ssp);
        let level = if new_flags.contains(Rflags::VM) {
            3
        } else {
            new_cs.rpl()
        };
        match source {
            TaskSource::Jmp => {}
            TaskSource::Call | TaskSource::TaskGate if from == 3 && level < 3 => {
                found.user_ssp = Some(ssp);
            }
            TaskSource::Call | TaskSource::TaskGate => {
                let cs = self.state.segment(SegmentRegister::Cs).selector;
                found.frame = Some([u64::from(cs), self.lip_of(return_rip), ssp]);
            }
            TaskSource::Iret => {
                let (mut next, mut after) = (self.msrs.pl_ssp[3], ssp);
                if level == from || level < 3 {
                    let mut load = |n: u64| {
                        let at = self.shadow_offset(ssp, 8 * n);
                        self.load_shadow(at, 8, from)
                    };
                    let (cs, lip) = (load(2)?, load(1)?);
                    next = load(0)?;
                    found.expected = Some([cs, lip]);
                    after = self.shadow_offset(ssp, 24);
                }
                self.check_shadow_store(after, 8, from)?;
                found.previous = Some((next, after, from));
            }
        }
        Ok(found)
    }

    /// Leaves the old task's shadow stack, at the commit point.
    pub(crate) fn leave_task_shadow(&mut self, found: &TaskShadow) -> Exec {
        if let Some(ssp) = found.user_ssp {
            self.msrs.pl_ssp[3] = ssp;
        }
        if let Some((_, token, level)) = found.previous {
            if token & 7 == 0 {
                self.clear_token_busy(token, level)?;
            }
            self.state.ssp = 0;
        }
        Ok(())
    }

    /// Goes to the new task's shadow stack, when its segments have been loaded.
    ///
    /// # Errors
    /// #TS(`tss`), #CP(FAR-RET/IRET), or the page fault of an access, in the new task.
    pub(crate) fn enter_task_shadow(&mut self, found: &TaskShadow, tss: Selector) -> Exec {
        let ts: Exec = Err(Exception::ts(tss.error_code()).into());
        let level = self.cpl();
        if self.rflags().contains(Rflags::VM) {
            let both = CetControl::SH_STK_EN | CetControl::ENDBR_EN;
            return if self.cet_at(3).intersects(both) {
                ts
            } else {
                Ok(())
            };
        }
        if let Some(expected) = found.expected {
            let cs = self.state.segment(SegmentRegister::Cs).selector;
            if expected != [u64::from(cs), self.lip_of(self.next_rip)] {
                return Err(Cp::FarRetIret.into());
            }
        }
        if found.is_return {
            return self.return_to_task_shadow(found, level);
        }
        if self.has_shadow_stack_at(level) {
            let ssp = found.ssp;
            if ssp & 7 != 0 || !self.set_token_busy(ssp, level)? {
                return ts;
            }
            self.state.ssp = match found.frame {
                Some(frame) => self.push_shadow_frame(ssp, frame, level)?,
                None => ssp,
            };
        }
        self.track_far(level);
        Ok(())
    }

    fn return_to_task_shadow(&mut self, found: &TaskShadow, level: u8) -> Exec {
        if !self.has_shadow_stack_at(level) {
            return Ok(());
        }
        let previous = found.previous.map_or(self.msrs.pl_ssp[3], |(ssp, ..)| ssp);
        if previous & 3 != 0 || previous >> 32 != 0 {
            return Err(Cp::FarRetIret.into());
        }
        self.state.ssp = previous;
        Ok(())
    }
}
