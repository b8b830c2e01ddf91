//! Logical to linear addresses (SDM Vol. 3A, "Logical and Linear Addresses", "Limit Checking",
//! "Type Checking", "Canonicality Checking").

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
        let mode = self.mode();
        if mode == Mode::Long {
            let base = match register {
                SegmentRegister::Fs | SegmentRegister::Gs => segment.base,
                _ => 0,
            };
            return self.canonical_range(base.wrapping_add(offset), bytes, fault);
        }
        // Real-address mode has limits, but no types.
        let is_checked = mode != Mode::Real;
        if is_checked && !is_type_allowed(segment, access) || segment.access.is_unusable() {
            return Err(fault.into());
        }
        limited(segment, offset, bytes, fault)
    }

    /// Returns `linear` if `bytes` bytes from it are canonical.
    pub(crate) fn canonical_range(
        &self,
        linear: u64,
        bytes: u64,
        fault: Exception,
    ) -> Exec<Linear> {
        let last = linear.wrapping_add(bytes.saturating_sub(1));
        if self.is_canonical(linear) && self.is_canonical(last) {
            Ok(Linear(linear))
        } else {
            Err(fault.into())
        }
    }

    /// Replaces a segment register, visible and hidden part: the only way in which instructions
    /// and events change one.
    pub(crate) fn set_segment(&mut self, register: SegmentRegister, segment: Segment) {
        *self.state.segment_mut(register) = segment;
    }
}

/// Returns the linear address of `bytes` bytes at `offset` of `segment`, outside 64-bit mode, if
/// they lie within its limit.
pub(crate) fn limited(
    segment: &Segment,
    offset: u64,
    bytes: u64,
    fault: Exception,
) -> Exec<Linear> {
    if is_inside(segment, offset, bytes) {
        Ok(Linear(segment.base.wrapping_add(offset) & 0xffff_ffff))
    } else {
        Err(fault.into())
    }
}

fn is_type_allowed(segment: &Segment, access: Access) -> bool {
    match access {
        Access::Read => segment.access.is_readable(),
        Access::Write => segment.access.is_writable(),
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

#[cfg(test)]
mod tests {
    use super::*;
    use vmx_model::arch::AccessRights;

    fn segment(limit: u32, access: u32) -> Segment {
        Segment {
            base: 0x1000,
            limit,
            access: AccessRights(access),
            selector: 8,
        }
    }

    #[test]
    fn limits_hold_for_the_last_byte() {
        // (limit, access rights, offset, bytes, inside)
        let rows = [
            (0xffff, 0x93, 0xfffe, 2, true),
            (0xffff, 0x93, 0xffff, 2, false),
            (0xffff_ffff, 0xc093, 0xffff_fffc, 4, true),
            (0xffff_ffff, 0xc093, 0xffff_fffd, 4, false),
            (0xfff, 0x97, 0x1000, 4, true),
            (0xfff, 0x97, 0xfff, 4, false),
            (0xfff, 0x97, 0xffff, 2, false),
            (0xfff, 0x4097, 0xffff, 2, true),
            (0xfff, 0x4097, 0xffff_ffff, 2, false),
            (0, 0x93, 0, 1, true),
            (0, 0x93, u64::MAX, 2, false),
        ];
        for (limit, access, offset, bytes, inside) in rows {
            assert_eq!(
                is_inside(&segment(limit, access), offset, bytes),
                inside,
                "{limit:#x} {access:#x} {offset:#x}+{bytes}"
            );
        }
    }

    #[test]
    fn linear_addresses_wrap_at_four_gib() {
        let mut s = segment(0xffff_ffff, 0xc093);
        s.base = 0xffff_f000;
        let at = limited(&s, 0x2000, 4, Exception::gp(0)).expect("inside the limit");
        assert_eq!(at, Linear(0x1000));
    }
}
