//! Accesses to shadow stacks, and their tokens (SDM Vol. 1, "Shadow Stacks", "Supervisor Shadow
//! Stack Token").
//!
//! Accesses are made for a privilege level, which is not always the CPL of the moment: an event goes
//! to the shadow stack of its handler.

use vmx_model::addr::{Hpa, Linear};
use vmx_model::event::Exception;

use crate::mem::{Access, Privilege};
use crate::mode::Mode;
use crate::{Cpu, Exec};

/// Bit 0 of a supervisor shadow-stack token.
const BUSY: u64 = 1;

impl Cpu {
    /// Returns the linear address of `bytes` bytes at `at` of a shadow stack: #GP(0) unless they
    /// are canonical; 32 bits outside IA-32e mode.
    fn shadow_linear(&self, at: u64, bytes: u64) -> Exec<Linear> {
        if self.mode().is_ia32e() {
            self.canonical_range(at, bytes, Exception::gp(0))
        } else {
            Ok(Linear(at & 0xffff_ffff))
        }
    }

    /// Loads `bytes` bytes, 4 or 8, from the shadow stack of a privilege level.
    pub(crate) fn load_shadow(&mut self, at: u64, bytes: usize, level: u8) -> Exec<u64> {
        let linear = self.shadow_linear(at, bytes as u64)?;
        let mut word = [0; 8];
        let part = &mut word[..bytes];
        self.load_bytes_linear(linear, part, Access::Read, Privilege::shadow_stack(level))?;
        Ok(u64::from_le_bytes(word))
    }

    /// Stores `bytes` bytes, 4 or 8, to the shadow stack of a privilege level.
    pub(crate) fn store_shadow(&mut self, at: u64, value: u64, bytes: usize, level: u8) -> Exec {
        let linear = self.shadow_linear(at, bytes as u64)?;
        let word = value.to_le_bytes();
        self.store_bytes_linear(linear, &word[..bytes], Privilege::shadow_stack(level))
    }

    /// Takes the fault that [`Self::store_shadow`] would take.
    pub(crate) fn check_shadow_store(&mut self, at: u64, bytes: usize, level: u8) -> Exec {
        let linear = self.shadow_linear(at, bytes as u64)?;
        self.check_store(linear, bytes, Privilege::shadow_stack(level))
    }

    /// Replaces the eight bytes at `at`, which is aligned, by what `change` makes of them, if it
    /// makes something: one locked read-modify-write. Returns what was there.
    pub(crate) fn update_shadow(
        &mut self,
        at: u64,
        level: u8,
        change: impl Fn(u64) -> Option<u64>,
    ) -> Exec<u64> {
        let linear = self.shadow_linear(at, 8)?;
        let privilege = Privilege::shadow_stack(level);
        loop {
            let physical = self.translate(linear, Access::Write, privilege)?;
            let mut word = [0; 8];
            self.load_bytes_linear(linear, &mut word, Access::Write, privilege)?;
            let old = u64::from_le_bytes(word);
            let Some(new) = change(old) else {
                return Ok(old);
            };
            if !self.is_plain_ram(physical) {
                self.store_bytes_linear(linear, &new.to_le_bytes(), privilege)?;
                return Ok(old);
            }
            if self.update_entry(physical, 8, old, new)? {
                self.note_locked(true);
                self.note_memory_access(physical, 8, true);
                self.note_locked(false);
                return Ok(old);
            }
            // Somebody else changed it between the load and the exchange.
        }
    }

    fn is_plain_ram(&self, at: Hpa) -> bool {
        self.view.page(at).is_some() && !self.is_apic_access_page(at)
    }

    /// Sets the busy bit of the token at `at`: false, and nothing is set, if it is not the token of
    /// a shadow stack that is free.
    pub(crate) fn set_token_busy(&mut self, at: u64, level: u8) -> Exec<bool> {
        let old = self.update_shadow(at, level, |old| (old == at).then_some(at | BUSY))?;
        Ok(old == at)
    }

    /// Clears the busy bit of the token at `at`: false, and nothing is cleared, if it is not the
    /// token of a busy shadow stack.
    pub(crate) fn clear_token_busy(&mut self, at: u64, level: u8) -> Exec<bool> {
        let old = self.update_shadow(at, level, |old| (old == at | BUSY).then_some(at))?;
        Ok(old == at | BUSY)
    }

    /// Returns `ssp` moved by `distance`, at the width of the present mode.
    pub(crate) fn shadow_offset(&self, ssp: u64, distance: u64) -> u64 {
        let sum = ssp.wrapping_add(distance);
        if self.mode() == Mode::Long {
            sum
        } else {
            sum & 0xffff_ffff
        }
    }
}
