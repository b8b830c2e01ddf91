//! What happens between instructions: blocking, pending events, traps.
//!
//! SDM Vol. 3A, "Prioritization of Concurrent Events", "Masking Exceptions and Interrupts When
//! Switching Stacks", Vol. 3B, "Debug Exceptions".

use serde::{Deserialize, Serialize};
use vmx_model::arch::Interruptibility;

use crate::Cpu;

/// Events that wait for an instruction boundary.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Events {
    /// Blocking that the instruction in progress starts; it holds for the next one.
    shadow: Interruptibility,
}

impl Cpu {
    /// Blocks events until after the next instruction, by STI or by MOV or POP to SS.
    ///
    /// Of several such instructions in a row only the first one blocks.
    pub(crate) fn block_events(&mut self, by: Interruptibility) {
        if !self.state.interruptibility.intersects(by) {
            self.events.shadow |= by;
        }
    }
}
