//! What the processor itself recorded of the VM entry that a dump is of.
//!
//! SDM Vol. 3C, "VM-Entry Failures During or After Loading Guest State" and "VM Instruction Error
//! Numbers". It tells where to look when no check is violated: an MSR that could not be loaded, a
//! VM-instruction error, or no failed VM entry at all.

use vmx_model::error;
use vmx_model::exit_reason::ExitReason;
use vmx_model::field::Field;
use vmx_model::msr_area::{MsrEntry, refused_on_load};

use super::dump::Dump;

/// Bit 31 of the exit reason: VM entry failed.
const ENTRY_FAILURE: u64 = 1 << 31;

/// What the processor recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// VMLAUNCH or VMRESUME ended in VMfail with this VM-instruction error.
    InstructionError(u32),
    /// VM entry failed with this basic exit reason and qualification.
    EntryFailure(ExitReason, u64),
    /// VM entry did not fail: this exit came after it.
    Exit(ExitReason),
}

impl Outcome {
    /// Returns what is known of the VM entry that a dump is of.
    #[must_use]
    pub fn of(dump: &Dump) -> Option<Self> {
        let error = dump.fields.get(&Field::VM_INSTRUCTION_ERROR).copied();
        let reason = dump.fields.get(&Field::EXIT_REASON).copied();
        let qualification = dump.fields.get(&Field::EXIT_QUALIFICATION).copied();
        let basic = |reason: u64| ExitReason(reason as u16);
        match (error, reason) {
            (Some(error), _) if error != 0 => Some(Self::InstructionError(error as u32)),
            (_, Some(reason)) if reason & ENTRY_FAILURE != 0 => {
                let qualification = qualification.unwrap_or(0);
                Some(Self::EntryFailure(basic(reason), qualification))
            }
            // Without an error, an exit reason of before a VMfail cannot be told from one of now.
            (Some(_), Some(reason)) => Some(Self::Exit(basic(reason))),
            _ => None,
        }
    }

    /// Returns a sentence, which names the cause as far as the processor recorded it.
    #[must_use]
    pub fn sentence(self, msr: Option<&MsrEntry>) -> String {
        match self {
            Self::InstructionError(number) => format!(
                "VM-instruction error {number}: {}",
                error::meaning(number).unwrap_or("reserved")
            ),
            Self::EntryFailure(reason, qualification) => {
                let detail = failure_detail(reason, qualification, msr);
                format!("VM entry failed with exit reason {}{detail}", name(reason))
            }
            Self::Exit(reason) => format!(
                "VM entry did not fail: VM-instruction error 0, and the last VM exit has reason {}",
                name(reason)
            ),
        }
    }
}

fn name(reason: ExitReason) -> String {
    format!("{} ({})", reason.0, reason.name().unwrap_or("reserved"))
}

fn failure_detail(reason: ExitReason, qualification: u64, msr: Option<&MsrEntry>) -> String {
    if reason == ExitReason::ENTRY_FAIL_MSR_LOADING {
        let refused = msr.map_or_else(String::new, msr_detail);
        return format!(", entry {qualification} of the VM-entry MSR-load area{refused}");
    }
    let detail = match qualification {
        2 => ": loading the PDPTEs",
        3 => ": an NMI injected while blocking by STI",
        4 => ": the VMCS link pointer",
        _ => "",
    };
    detail.to_owned()
}

fn msr_detail(msr: &MsrEntry) -> String {
    let why = match refused_on_load(msr) {
        Some(rule) => format!(", which {} forbids", rule.id),
        None if holds_address(msr.index) && !is_canonical(msr.data) => {
            ", which is not canonical".to_owned()
        }
        None => String::new(),
    };
    format!(": MSR {:#x}, value {:#x}{why}", msr.index, msr.data)
}

/// Whether an MSR holds a linear address, which WRMSR wants to be canonical (SDM Vol. 4).
const fn holds_address(index: u32) -> bool {
    matches!(
        index,
        // SYSENTER_ESP and EIP; LSTAR and CSTAR; KERNEL_GS_BASE; DS_AREA
        0x175 | 0x176 | 0xc000_0082 | 0xc000_0083 | 0xc000_0102 | 0x600
        // last branch and last exception; the last-branch stack, both layouts
        | 0x1db..=0x1de | 0x40..=0x47 | 0x60..=0x67 | 0x680..=0x69f | 0x6c0..=0x6df
    )
}

/// Whether an address is canonical with 57 bits, and so perhaps with 48.
const fn is_canonical(address: u64) -> bool {
    (address << 7) as i64 >> 7 == address as i64
}
