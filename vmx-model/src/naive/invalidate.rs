//! INVEPT, INVVPID and VMFUNC of the naive model: which operands are accepted.

use super::{Answer, NaiveMachine};
use crate::exit_reason::ExitReason;
use crate::outcome::VmxOutcome;
use crate::precondition::VmxOperation;

impl NaiveMachine {
    pub(super) fn vmfunc(&mut self, n: u32, eax: u32, _ecx: u32) -> Answer {
        if self.cpus[n as usize].operation != VmxOperation::NonRoot {
            return Answer::Undefined;
        }
        // "Enable VM functions" is bit 13 of the secondary controls, which bit 31 of the primary
        // activates. No sequence enables a function that works.
        let fields = self.fields(n).cloned().unwrap_or_default();
        let get = |encoding| fields.get(&encoding).copied().unwrap_or(0);
        let is_enabled = get(0x4002) >> 31 & 1 == 1 && get(0x401e) >> 13 & 1 == 1;
        if is_enabled && eax < 64 {
            Answer::Exits(ExitReason::VMFUNC)
        } else {
            Answer::Undefined
        }
    }

    pub(super) fn invept(&mut self, n: u32, kind: u64, descriptor: [u64; 2]) -> Answer {
        let cap = self.profile.caps.ept_vpid().bits();
        let is_supported = matches!(kind, 1 | 2) && cap >> (24 + kind) & 1 == 1;
        let eptp = descriptor[0];
        let is_eptp_right = || {
            let walk_bit = match eptp >> 3 & 7 {
                3 => 6,
                4 => 7,
                _ => return false,
            };
            let type_bit = match eptp & 7 {
                0 => 8,
                6 => 14,
                _ => return false,
            };
            let width = u32::from(self.profile.facts.physical_address_bits);
            let has = |bit: u32| cap >> bit & 1 == 1;
            has(walk_bit)
                && has(type_bit)
                && (eptp >> 6 & 1 == 0 || has(21))
                && (eptp >> 7 & 1 == 0 || has(23))
                && eptp >> 8 & 0xf == 0
                && u128::from(eptp) < 1 << width
        };
        if is_supported && (kind == 2 || is_eptp_right()) {
            Answer::Outcome(VmxOutcome::Succeed)
        } else {
            self.fail(n, 28)
        }
    }

    pub(super) fn invvpid(&mut self, n: u32, kind: u64, [tag, address]: [u64; 2]) -> Answer {
        let cap = self.profile.caps.ept_vpid().bits();
        let is_supported = kind < 4 && cap >> (40 + kind) & 1 == 1;
        let high = self.profile.facts.linear_address_bits - 1;
        let sign = address >> high;
        let is_canonical = sign == 0 || sign == u64::MAX >> high;
        let is_wrong =
            !is_supported || tag >= 1 << 16 || kind != 2 && tag == 0 || kind == 0 && !is_canonical;
        if is_wrong {
            self.fail(n, 28)
        } else {
            Answer::Outcome(VmxOutcome::Succeed)
        }
    }
}
