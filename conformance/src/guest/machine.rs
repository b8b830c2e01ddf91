//! [`Vm`] and [`Machine`]: a virtual machine with memory and vCPUs, by the ioctls of every VMM.
#![expect(
    clippy::missing_errors_doc,
    reason = "an outcome is what a case looks at, not an error of ours"
)]

use super::layout::*;
use super::setup::{self, Mode};
use super::{Code, observe};
use crate::backend::{Handle, Mapping, Memory, Outcome, Pointer};
use crate::probe::{Probe, Words};
use crate::requests::*;
use iced_x86::IcedError;
use iced_x86::code_asm::CodeAssembler;
use kvm_bindings::{kvm_regs, kvm_sregs};

/// The bytes of `kvm_cpuid2` and 100 entries.
const CPUID_TABLE: usize = 8 + 40 * 100;
/// The size of the mapping of a vCPU.
const VCPU_MAPPING: u64 = 12288;

/// A system and a VM.
#[derive(Clone, Copy, Debug)]
pub struct Vm {
    /// `/dev/kvm`.
    pub system: Handle,
    /// The VM.
    pub vm: Handle,
}

impl Vm {
    /// Opens the system and makes a VM.
    pub fn new(probe: &mut Probe<'_>) -> Vm {
        let system = probe.open();
        let (vm, _) = probe.create(system, KVM_CREATE_VM, 0);
        Vm { system, vm }
    }

    /// KVM_SET_USER_MEMORY_REGION of a slot backed by a mapping.
    pub fn set_slot(&self, probe: &mut Probe<'_>, slot: &Slot) -> Outcome {
        let backing = slot.backing.map(|(memory, at)| Pointer {
            offset: 24,
            memory,
            at,
        });
        let region = region(slot.slot, slot.flags, slot.at, slot.size);
        probe.send_pointers(
            self.vm,
            KVM_SET_USER_MEMORY_REGION,
            region,
            backing.as_slice(),
        )
    }

    /// Makes a vCPU and maps its `kvm_run`.
    pub fn vcpu(&self, probe: &mut Probe<'_>, id: u64) -> (Handle, Memory) {
        let (vcpu, _) = probe.create(self.vm, KVM_CREATE_VCPU, id);
        let (run, _) = probe.map(vcpu, (VCPU_MAPPING, 0), Mapping::Shared);
        (vcpu, run)
    }

    /// KVM_ENABLE_CAP on the VM.
    pub fn enable(&self, probe: &mut Probe<'_>, capability: u32, argument: u64) -> Outcome {
        probe.send(self.vm, KVM_ENABLE_CAP, enable_cap(capability, argument))
    }
}

/// A memory slot.
#[derive(Clone, Copy, Debug, Default)]
pub struct Slot {
    /// Its number, with the address space in the upper half.
    pub slot: u32,
    /// KVM_MEM_*.
    pub flags: u32,
    /// The guest-physical address.
    pub at: u64,
    /// The size in bytes.
    pub size: u64,
    /// The mapping behind it, and where in the mapping; nothing is address 0.
    pub backing: Option<(Memory, u64)>,
}

/// A `kvm_userspace_memory_region` without its userspace address.
#[must_use]
pub fn region(slot: u32, flags: u32, at: u64, size: u64) -> Words {
    Words::sized(32)
        .u32(0, slot)
        .u32(4, flags)
        .u64(8, at)
        .u64(16, size)
}

/// A `kvm_enable_cap` with one argument.
#[must_use]
pub fn enable_cap(capability: u32, argument: u64) -> Words {
    Words::sized(104).u32(0, capability).u64(8, argument)
}

/// A VM with a slot at 0 and one vCPU.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// The VM.
    pub vm: Vm,
    /// The vCPU.
    pub vcpu: Handle,
    /// Its `kvm_run`, pio page and coalesced ring.
    pub run: Memory,
    /// What is behind the slot at 0.
    pub memory: Memory,
    /// The mode it was made for.
    pub mode: Mode,
}

impl Machine {
    /// A VM whose vCPU is as the ioctls make it: nothing is written to it.
    pub fn bare(probe: &mut Probe<'_>) -> Machine {
        let vm = Vm::new(probe);
        Machine::with_vm(probe, vm)
    }

    /// The same in a VM that exists.
    pub fn with_vm(probe: &mut Probe<'_>, vm: Vm) -> Machine {
        let memory = probe.allocate(MEMORY);
        let slot = Slot {
            size: MEMORY,
            backing: Some((memory, 0)),
            ..Slot::default()
        };
        let _ = vm.set_slot(probe, &slot);
        let (vcpu, run) = vm.vcpu(probe, 0);
        Machine {
            vm,
            vcpu,
            run,
            memory,
            mode: Mode::Real,
        }
    }

    /// A machine in a mode, about to execute [`CODE`].
    pub fn new(probe: &mut Probe<'_>, mode: Mode) -> Machine {
        Machine::with_pages(probe, mode, &[])
    }

    /// The same with leaf paging-structure entries of the case.
    pub fn with_pages(probe: &mut Probe<'_>, mode: Mode, pages: &[(u64, u64)]) -> Machine {
        let machine = Machine {
            mode,
            ..Machine::bare(probe)
        };
        for (at, bytes) in setup::tables(mode)
            .into_iter()
            .chain(setup::paging(mode, pages))
        {
            machine.poke(probe, at, &bytes);
        }
        machine.enter_mode(probe);
        machine
    }

    /// Another vCPU of the same VM, in the same mode.
    pub fn another(&self, probe: &mut Probe<'_>, id: u64) -> Machine {
        let (vcpu, run) = self.vm.vcpu(probe, id);
        let machine = Machine { vcpu, run, ..*self };
        machine.enter_mode(probe);
        machine
    }

    fn enter_mode(&self, probe: &mut Probe<'_>) {
        if self.mode.needs_cpuid() {
            let _ = self.adopt_cpuid(probe);
        }
        let _ = self.change_system(probe, |_| {});
        self.set_registers(probe, &[]);
    }

    /// KVM_SET_CPUID2 with the supported table.
    pub fn adopt_cpuid(&self, probe: &mut Probe<'_>) -> Outcome {
        let mut table = Words::sized(CPUID_TABLE).u32(0, 100);
        let _ = probe.bytes(self.vm.system, KVM_GET_SUPPORTED_CPUID, table.bytes_mut());
        let entries = table.get(0, 4) as usize;
        table.bytes_mut().truncate(8 + 40 * entries.min(100));
        probe.send(self.vcpu, KVM_SET_CPUID2, table)
    }

    /// Sets the system registers of the mode, then changes them.
    pub fn change_system(&self, probe: &mut Probe<'_>, change: fn(&mut kvm_sregs)) -> Outcome {
        let mut sregs: kvm_sregs = probe.read_struct(self.vcpu, KVM_GET_SREGS);
        setup::system_registers(self.mode, &mut sregs);
        change(&mut sregs);
        probe.set(self.vcpu, KVM_SET_SREGS, &sregs)
    }

    /// Bytes into guest-physical memory, by the VMM.
    pub fn poke(&self, probe: &mut Probe<'_>, at: u64, bytes: &[u8]) {
        probe.write(self.memory, at, bytes);
    }

    /// Puts code, and a HLT behind it, at [`CODE`].
    pub fn load(&self, probe: &mut Probe<'_>, code: Code) {
        self.load_at(probe, CODE, code);
    }

    /// Puts code, and a HLT behind it, somewhere.
    ///
    /// # Panics
    /// If the code cannot be encoded: a mistake in the case.
    pub fn load_at(&self, probe: &mut Probe<'_>, at: u64, code: Code) {
        let bytes = assemble(self.mode.bits(), at, code);
        let bytes = bytes.unwrap_or_else(|error| panic!("{}: {error}", probe.group()));
        self.poke(probe, at, &bytes);
    }

    /// All registers 0, RFLAGS 2, RSP and RIP at their places; then those named.
    pub fn set_registers(&self, probe: &mut Probe<'_>, named: &[(&str, u64)]) {
        let mut regs = kvm_regs {
            rip: CODE,
            rsp: STACK,
            rflags: 2,
            ..kvm_regs::default()
        };
        for (name, value) in named {
            if let Some(register) = observe::register_mut(&mut regs, name) {
                *register = *value;
            }
        }
        let _ = probe.set(self.vcpu, KVM_SET_REGS, &regs);
    }

    /// Writes bytes into the `kvm_run` of the vCPU.
    pub fn set_run(&self, probe: &mut Probe<'_>, offset: u64, bytes: &[u8]) {
        probe.write(self.run, offset, bytes);
    }

    /// KVM_INTERRUPT.
    pub fn interrupt(&self, probe: &mut Probe<'_>, vector: u32) -> Outcome {
        probe.send(self.vcpu, KVM_INTERRUPT, vector.to_le_bytes())
    }

    /// Runs as often as exits are wanted and notes what was seen: see [`observe`].
    pub fn case(&self, probe: &mut Probe<'_>, case: &str, want: &str) {
        let got = observe::observe(probe, self, want);
        probe.check(case, want, &got);
    }
}

/// The bytes of code for a width at an address, with a HLT behind it.
///
/// # Errors
/// If the code cannot be encoded: a mistake in the case.
pub fn assemble(bits: u32, at: u64, code: Code) -> Result<Vec<u8>, IcedError> {
    let mut assembler = CodeAssembler::new(bits)?;
    code(&mut assembler)?;
    assembler.hlt()?;
    assembler.assemble(at)
}
