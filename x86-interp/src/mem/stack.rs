//! A stack to push a frame on or pop one from: the current one, or the one that a change of
//! privilege level, a gate or a task switch selects before it is loaded into SS:RSP.
//!
//! SDM Vol. 1, "Procedure Stack", Vol. 3A, "Stack Switching", "Exception- or Interrupt-Handler
//! Procedures". A frame is checked completely before its first byte is written.

use vmx_model::addr::Linear;
use vmx_model::arch::{Segment, SegmentRegister};
use vmx_model::event::Exception;

use super::segment::limited;
use super::{Access, Privilege};
use crate::mode::Mode;
use crate::{Cpu, Exec};

/// A stack segment with a stack pointer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stack {
    /// What SS holds, or will hold.
    pub(crate) segment: Segment,
    /// The stack pointer.
    pub(crate) pointer: u64,
    /// Width of the stack pointer.
    size: StackSize,
    /// On whose behalf the stack is accessed.
    privilege: Privilege,
    /// What an access outside the segment raises.
    fault: Exception,
}

/// The stack-address size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StackSize {
    /// SP.
    Word,
    /// ESP.
    Doubleword,
    /// RSP, in 64-bit mode: without base and limit.
    Quadword,
}

impl StackSize {
    /// Returns the size outside 64-bit mode, by the B flag.
    const fn of(segment: &Segment) -> Self {
        if segment.access.is_big() {
            Self::Doubleword
        } else {
            Self::Word
        }
    }

    const fn mask(self) -> u64 {
        match self {
            Self::Word => 0xffff,
            Self::Doubleword => 0xffff_ffff,
            Self::Quadword => u64::MAX,
        }
    }
}

impl Stack {
    /// Returns a stack outside 64-bit mode that a change of privilege level switches to.
    /// `error_code` is that of the #SS which an access outside the segment raises.
    ///
    /// Choice: pushes on it are made as implicit supervisor accesses; the SDM does not say whether
    /// EFLAGS.AC lifts SMAP for them.
    pub(crate) fn inner(segment: Segment, pointer: u64, error_code: u32) -> Self {
        Self {
            segment,
            pointer,
            size: StackSize::of(&segment),
            privilege: Privilege::Supervisor,
            fault: Exception::ss(error_code),
        }
    }

    /// Returns a stack of 64-bit mode at privilege level 0 to 2.
    pub(crate) fn long(segment: Segment, pointer: u64) -> Self {
        Self {
            size: StackSize::Quadword,
            ..Self::inner(segment, pointer, 0)
        }
    }

    /// Moves the pointer by `bytes`, modulo the stack-address size; the rest of it stays.
    pub(crate) fn move_by(&mut self, bytes: u64) {
        let mask = self.size.mask();
        self.pointer = self.pointer & !mask | self.pointer.wrapping_add(bytes) & mask;
    }

    /// Returns the stack pointer that counts.
    pub(crate) const fn offset(&self) -> u64 {
        self.pointer & self.size.mask()
    }
}

impl Cpu {
    /// Returns the current stack.
    pub(crate) fn stack(&self) -> Stack {
        let segment = *self.state.segment(SegmentRegister::Ss);
        Stack {
            segment,
            pointer: self.gpr[4],
            size: match self.mode() {
                Mode::Long => StackSize::Quadword,
                _ => StackSize::of(&segment),
            },
            privilege: Privilege::Current,
            fault: Exception::ss(0),
        }
    }

    /// Returns the current stack, accessed as 64-bit mode does: the code that the frame is for
    /// runs there.
    pub(crate) fn stack_as_long(&self) -> Stack {
        Stack {
            size: StackSize::Quadword,
            ..self.stack()
        }
    }

    /// Loads the stack pointer from `stack`: SP, ESP or RSP by its address size.
    pub(crate) fn set_stack_pointer(&mut self, stack: &Stack) {
        let mask = stack.size.mask();
        self.gpr[4] = match stack.size {
            StackSize::Word => self.gpr[4] & !mask | stack.pointer & mask,
            _ => stack.pointer & mask,
        };
    }

    fn stack_linear(&self, stack: &Stack, offset: u64, bytes: u64, access: Access) -> Exec<Linear> {
        if stack.size == StackSize::Quadword {
            return self.canonical_range(offset, bytes, stack.fault);
        }
        let rights = stack.segment.access;
        let is_checked = self.mode() != Mode::Real;
        let is_allowed = match access {
            Access::Write => rights.is_writable(),
            _ => rights.is_readable(),
        };
        if is_checked && !is_allowed || rights.is_unusable() {
            return Err(stack.fault.into());
        }
        limited(&stack.segment, offset, bytes, stack.fault)
    }

    /// Pushes `values`, the first one first, each of `size` bytes, and moves the pointer. All of
    /// the frame is checked before any of it is written.
    pub(crate) fn push_frame(&mut self, stack: &mut Stack, size: u8, values: &[u64]) -> Exec {
        let (places, after) = self.frame_places(stack, size, values.len())?;
        for (place, value) in places.iter().zip(values) {
            let bytes = value.to_le_bytes();
            self.store_bytes_linear(*place, &bytes[..usize::from(size)], stack.privilege)?;
        }
        *stack = after;
        Ok(())
    }

    /// Takes the fault that a push of `count` values of `size` bytes would take.
    pub(crate) fn check_frame(&mut self, stack: &Stack, size: u8, count: usize) -> Exec {
        self.frame_places(stack, size, count).map(|_| ())
    }

    /// Returns where the values of a frame go, all of them checked, and the stack below them.
    fn frame_places(
        &mut self,
        stack: &Stack,
        size: u8,
        count: usize,
    ) -> Exec<([Linear; FRAME_VALUES], Stack)> {
        let mut places = [Linear(0); FRAME_VALUES];
        let mut after = *stack;
        for place in places.iter_mut().take(count) {
            after.move_by(u64::from(size).wrapping_neg());
            let linear =
                self.stack_linear(&after, after.offset(), u64::from(size), Access::Write)?;
            *place = linear;
        }
        for place in places.iter().take(count) {
            self.check_store(*place, usize::from(size), stack.privilege)?;
        }
        Ok((places, after))
    }

    /// Returns the value of `size` bytes at `displacement` bytes above the pointer.
    pub(crate) fn stack_value(&mut self, stack: &Stack, displacement: u64, size: u8) -> Exec<u64> {
        let mut at = *stack;
        at.move_by(displacement);
        let linear = self.stack_linear(&at, at.offset(), u64::from(size), Access::Read)?;
        let mut bytes = [0; 8];
        let part = &mut bytes[..usize::from(size)];
        self.load_bytes_linear(linear, part, Access::Read, stack.privilege)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Pops a value of `size` bytes and moves the pointer of `stack`.
    pub(crate) fn pop_value(&mut self, stack: &mut Stack, size: u8) -> Exec<u64> {
        let value = self.stack_value(stack, 0, size)?;
        stack.move_by(u64::from(size));
        Ok(value)
    }

    /// Takes the fault that a store of `bytes` bytes at `linear` would take.
    pub(crate) fn check_store(
        &mut self,
        linear: Linear,
        bytes: usize,
        privilege: Privilege,
    ) -> Exec {
        self.translate(linear, Access::Write, privilege)?;
        let last = linear.offset(bytes as u64 - 1);
        if last.page() != linear.page() {
            self.translate(last.page(), Access::Write, privilege)?;
        }
        Ok(())
    }
}

/// The longest frame: 31 parameters of a call gate with SS, ESP, CS and EIP.
const FRAME_VALUES: usize = 35;
