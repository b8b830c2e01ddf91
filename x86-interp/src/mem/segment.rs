//! Logical to linear addresses (SDM Vol. 3A, "Logical and Linear Addresses", "Limit Checking",
//! "Type Checking").

use vmx_model::addr::Linear;
use vmx_model::arch::{Segment, SegmentRegister};
use vmx_model::event::Exception;

use super::Access;
use crate::mode::Mode;
use crate::{Cpu, Exec};

impl Cpu {
    /// Returns the linear address of `bytes` bytes at `segment:offset`, or the fault that an
    /// access of this kind takes: #SS(0) for the stack segment, else #GP(0).
    pub(crate) fn linear(
        &self,
        register: SegmentRegister,
        offset: u64,
        bytes: u64,
        access: Access,
    ) -> Exec<Linear> {
        let segment = self.state.segment(register);
        let fault = if register == SegmentRegister::Ss {
            Exception::ss(0)
        } else {
            Exception::gp(0)
        };
        if self.mode() == Mode::Long {
            let base = match register {
                SegmentRegister::Fs | SegmentRegister::Gs => segment.base,
                _ => 0,
            };
            let linear = base.wrapping_add(offset);
            let last = linear.wrapping_add(bytes.saturating_sub(1));
            if !self.is_canonical(linear) || !self.is_canonical(last) {
                return Err(fault.into());
            }
            return Ok(Linear(linear));
        }
        if !is_type_allowed(segment, access) || !is_inside(segment, offset, bytes) {
            return Err(fault.into());
        }
        Ok(Linear(segment.base.wrapping_add(offset) & 0xffff_ffff))
    }
}

fn is_type_allowed(segment: &Segment, access: Access) -> bool {
    let rights = segment.access;
    if rights.is_unusable() {
        return false;
    }
    match access {
        Access::Read => rights.is_readable(),
        Access::Write => rights.is_writable(),
        Access::Execute => true,
    }
}

fn is_inside(segment: &Segment, offset: u64, bytes: u64) -> bool {
    let Some(last) = offset.checked_add(bytes.saturating_sub(1)) else {
        return false;
    };
    let limit = u64::from(segment.limit);
    if segment.access.is_expand_down() {
        let top = if segment.access.is_big() {
            0xffff_ffff
        } else {
            0xffff
        };
        offset > limit && last <= top
    } else {
        last <= limit
    }
}
