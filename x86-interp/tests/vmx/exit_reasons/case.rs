//! A guest, and what its VM exit has to say.

use vmx_model::exit_reason::{ENTRY_FAILURE, ExitReason};
use vmx_model::field::Field;
use vmx_model::sample::Guest;
use vmx_model::vmcs::Vmcs;
use x86_interp::Cpu;

use super::RBX;
use crate::host::{Code, Host, at};

/// A guest and the VM exit that it comes to.
pub(super) struct Case {
    pub(super) reason: ExitReason,
    pub(super) name: &'static str,
    pub(super) guest: Guest,
    pub(super) vmcs: fn(&mut Vmcs),
    pub(super) prepare: fn(&mut Host),
    pub(super) events: fn(&mut Cpu),
    pub(super) code: Code,
    pub(super) registers: &'static [(usize, u64)],
    /// Guest RIP less the address of the code.
    pub(super) rip: u64,
    pub(super) qualification: u64,
    pub(super) length: Option<u64>,
    pub(super) information: Option<u64>,
    /// The VM-exit interruption information.
    pub(super) event: Option<u64>,
    /// What else a field holds.
    pub(super) field: Option<(Field, u64)>,
}

pub(super) fn case(reason: ExitReason, name: &'static str, code: Code) -> Case {
    Case {
        reason,
        name,
        guest: Guest::Long,
        vmcs: |_| {},
        prepare: |_| {},
        events: |_| {},
        code,
        registers: &[],
        rip: 0,
        qualification: 0,
        length: None,
        information: None,
        event: None,
        field: None,
    }
}

impl Case {
    /// The instruction that exits is this long and has this information.
    pub(super) fn informed(self, length: u64, information: u64) -> Self {
        Self {
            information: Some(information),
            ..self.long(length)
        }
    }

    pub(super) fn long(self, length: u64) -> Self {
        Self {
            length: Some(length),
            ..self
        }
    }

    pub(super) fn qualified(self, qualification: u64) -> Self {
        Self {
            qualification,
            ..self
        }
    }

    pub(super) fn with(self, vmcs: fn(&mut Vmcs)) -> Self {
        Self { vmcs, ..self }
    }

    /// Runs the guest; returns what is not as wanted.
    pub(super) fn run(&self) -> Vec<String> {
        let mut host = Host::new(self.guest, self.vmcs, self.code);
        let mut registers = [0; 16];
        registers[RBX] = at::DATA;
        for &(n, value) in self.registers {
            registers[n] = value;
        }
        host.cpu.set_general_registers(&registers);
        (self.prepare)(&mut host);
        let reason = match host.enter(self.events) {
            Ok(reason) => reason,
            Err(instead) => return vec![format!("{}: {instead}", self.name)],
        };
        let is_failure = matches!(self.reason.0, 33 | 34);
        let failure = u64::from(ENTRY_FAILURE) * u64::from(is_failure);
        let mut wanted = vec![
            (Field::EXIT_QUALIFICATION, self.qualification),
            (Field::GUEST_RIP, at::CODE + self.rip),
            (
                Field::VM_EXIT_INTERRUPTION_INFORMATION,
                self.event.unwrap_or(0),
            ),
        ];
        wanted.extend(self.length.map(|n| (Field::VM_EXIT_INSTRUCTION_LENGTH, n)));
        let information = Field::VM_EXIT_INSTRUCTION_INFORMATION;
        wanted.extend(self.information.map(|n| (information, n)));
        wanted.extend(self.field);
        let mut wrong = Vec::new();
        if reason != failure | u64::from(self.reason.0) {
            wrong.push(format!("{}: exit reason is {reason:#x}", self.name));
        }
        for (field, value) in wanted {
            let found = host.read(field);
            if found != value {
                let (name, field) = (self.name, field.name());
                wrong.push(format!("{name}: {field} is {found:#x}, not {value:#x}"));
            }
        }
        wrong
    }
}
