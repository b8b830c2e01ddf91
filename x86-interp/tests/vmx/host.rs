//! A processor under native software in VMX root operation, and guests to run on it.

use std::sync::Arc;

use iced_x86::IcedError;
use iced_x86::code_asm::CodeAssembler;
use vmx_model::addr::Hpa;
use vmx_model::capability::VmxProfile;
use vmx_model::controls::{ExitControls, PinControls, ProcControls, SecondaryControls};
use vmx_model::exit_reason::ExitReason;
use vmx_model::field::Field;
use vmx_model::processor::{EntryOutcome, LogicalProcessor};
use vmx_model::registry::{CpuId, VmcsRegistry};
use vmx_model::sample::{Guest, root_state, valid_vmcs};
use vmx_model::vmcs::Vmcs;
use x86_interp::bus::{EmptyBus, InstructionClock};
use x86_interp::mem::phys::{OwnedRam, PhysMap};
use x86_interp::vmx::{EntryInstruction, RootSoftware};
use x86_interp::{Cpu, Stop};

/// Where things are, in 4 MiB of RAM.
pub(crate) mod at {
    pub(crate) const VMXON: u64 = 0x10_0000;
    pub(crate) const VMCS: u64 = 0x10_1000;
    /// Page tables of 64-bit guests: one PML4, one PDPT, one PD of 2-MiB pages.
    pub(crate) const PML4: u64 = 0x11_0000;
    /// EPT tables of guests without paging: as the page tables, and a page table for the first
    /// 2 MiB.
    pub(crate) const EPT: u64 = 0x12_0000;
    /// A page of zeroes, for bitmaps.
    pub(crate) const ZEROES: u64 = 0x13_0000;
    pub(crate) const VIRTUAL_APIC: u64 = 0x13_1000;
    pub(crate) const APIC_ACCESS: u64 = 0x13_2000;
    pub(crate) const PML: u64 = 0x13_3000;
    pub(crate) const MSRS: u64 = 0x13_4000;
    pub(crate) const GDT: u64 = 0x13_5000;
    pub(crate) const IDT: u64 = 0x13_6000;
    pub(crate) const POSTED: u64 = 0x13_7000;
    pub(crate) const VE_AREA: u64 = 0x13_8000;
    pub(crate) const EPTP_LIST: u64 = 0x13_9000;
    /// The guest's code, data and stack.
    pub(crate) const CODE: u64 = 0x14_0000;
    pub(crate) const HANDLER: u64 = 0x14_1000;
    pub(crate) const DATA: u64 = 0x14_2000;
    pub(crate) const STACK: u64 = 0x14_4000;
    /// A page that EPT does not map.
    pub(crate) const HOLE: u64 = 0x15_0000;
    /// A page whose EPT entry is misconfigured.
    pub(crate) const MISCONFIGURED: u64 = 0x15_1000;
}

pub(crate) type Code = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// A processor whose current VMCS is that of a guest.
pub(crate) struct Host {
    pub(crate) cpu: Cpu,
    pub(crate) phys: Arc<PhysMap>,
    is_launched: bool,
}

impl Host {
    /// A processor that is to enter `code`; `change` is applied to a valid VMCS.
    pub(crate) fn new(guest: Guest, change: impl Fn(&mut Vmcs), code: Code) -> Self {
        Self::on(VmxProfile::emulator_default(), guest, change, code)
    }

    /// As [`Self::new`], with the VMX capabilities of `profile`.
    pub(crate) fn on(
        profile: VmxProfile,
        guest: Guest,
        change: impl Fn(&mut Vmcs),
        code: Code,
    ) -> Self {
        let profile = Arc::new(profile);
        let phys = PhysMap::new();
        let ram = Arc::new(OwnedRam::new(1024).expect("4 MiB"));
        phys.add_owned(Hpa(0), ram).expect("an empty map");
        fill_memory(&phys, &profile, guest, code);
        let bus = Box::new(EmptyBus);
        let mut cpu = Cpu::new(Arc::clone(&phys), bus, Box::<InstructionClock>::default());
        let mut vmcs = valid_vmcs(&profile, guest);
        place(&mut vmcs, guest);
        change(&mut vmcs);
        cpu.set_arch_state(&root_state(&profile));
        let processor = processor(&profile, &phys, vmcs);
        let before = cpu.attach_processor(Box::new(processor), RootSoftware::Native);
        assert!(before.is_none());
        Self {
            cpu,
            phys,
            is_launched: false,
        }
    }

    /// Enters the guest, lets `events` happen, and runs to the next VM exit. Returns the exit
    /// reason, that of a failed VM entry as well; what comes instead of a VM exit is an error.
    pub(crate) fn enter(&mut self, events: impl Fn(&mut Cpu)) -> Result<u64, String> {
        let instruction = match self.is_launched {
            true => EntryInstruction::Vmresume,
            false => EntryInstruction::Vmlaunch,
        };
        match self.cpu.vm_entry(instruction).expect("executed") {
            EntryOutcome::Failed(_) => {}
            EntryOutcome::Entered(_) => {
                self.is_launched = true;
                events(&mut self.cpu);
                let stop = self.cpu.run(1000);
                if stop != Stop::VmExit {
                    let rip = self.cpu.arch_state().rip;
                    return Err(format!("{stop:?} at {rip:#x}"));
                }
            }
            other => return Err(format!("{other:?}")),
        }
        assert!(!self.cpu.is_non_root());
        Ok(self.read(Field::EXIT_REASON))
    }

    pub(crate) fn read(&mut self, field: Field) -> u64 {
        let processor = self.cpu.processor_mut().expect("attached");
        processor.read(field).expect("a current VMCS")
    }

    pub(crate) fn write(&mut self, field: Field, value: u64) {
        let processor = self.cpu.processor_mut().expect("attached");
        processor.write(field, value).expect("writable");
    }

    /// Enters the guest and returns the basic exit reason.
    #[track_caller]
    pub(crate) fn reason(&mut self) -> ExitReason {
        ExitReason(self.enter(|_| {}).expect("a VM exit") as u16)
    }

    /// Skips the instruction that caused the exit.
    pub(crate) fn skip(&mut self) {
        let next = self.read(Field::GUEST_RIP) + self.read(Field::VM_EXIT_INSTRUCTION_LENGTH);
        self.write(Field::GUEST_RIP, next);
    }

    /// Gives a 64-bit guest a code segment and a gate that leads to VMCALL and IRETQ.
    pub(crate) fn set_handler(&self, vector: u64) {
        self.set_word(at::GDT + 8, 0x00af_9b00_0000_ffff);
        self.set_word(at::GDT + 16, 0x00cf_9300_0000_ffff);
        let offset = at::HANDLER;
        let gate = offset & 0xffff | 8 << 16 | 0x8e << 40 | (offset >> 16 & 0xffff) << 48;
        self.set_word(at::IDT + 16 * vector, gate);
        self.set_word(at::IDT + 16 * vector + 8, 0);
        // VMCALL; IRETQ.
        let code = [0x0f, 0x01, 0xc1, 0x48, 0xcf];
        self.phys.write_bytes(Hpa(at::HANDLER), &code);
    }

    pub(crate) fn word(&self, address: u64) -> u64 {
        let mut bytes = [0; 8];
        self.phys.read_bytes(Hpa(address), &mut bytes);
        u64::from_le_bytes(bytes)
    }

    pub(crate) fn set_word(&self, address: u64, value: u64) {
        self.phys.write_bytes(Hpa(address), &value.to_le_bytes());
    }
}

/// A processor in VMX root operation with `vmcs` as its current VMCS.
fn processor(profile: &Arc<VmxProfile>, phys: &Arc<PhysMap>, vmcs: Vmcs) -> LogicalProcessor {
    let mut processor = LogicalProcessor::new(CpuId(0), Arc::clone(profile), VmcsRegistry::new());
    let mut memory = &**phys;
    let steps = [
        processor.vmxon(Hpa(at::VMXON), &memory),
        processor.vmclear(Hpa(at::VMCS), &mut memory),
        processor.vmptrld(Hpa(at::VMCS), &memory),
    ];
    assert!(steps.into_iter().all(|s| s.expect("executed").is_success()));
    *processor.current_vmcs_mut().expect("current") = vmcs;
    processor
}

fn fill_memory(phys: &PhysMap, profile: &VmxProfile, guest: Guest, code: Code) {
    let put = |address: u64, word: u64| phys.write_bytes(Hpa(address), &word.to_le_bytes());
    let revision = u64::from(profile.caps.revision_id());
    put(at::VMXON, revision);
    put(at::VMCS, revision);
    for (tables, rights, large) in [(at::PML4, 7, 0x87), (at::EPT, 7, 0xb7)] {
        put(tables, (tables + 0x1000) | rights);
        put(tables + 0x1000, (tables + 0x2000) | rights);
        for n in 0..2 {
            put(tables + 0x2000 + 8 * n, n << 21 | large);
        }
    }
    put(at::EPT + 0x2000, (at::EPT + 0x3000) | 7);
    for n in 0..512 {
        put(at::EPT + 0x3000 + 8 * n, n << 12 | 0x37);
    }
    set_ept_entry(phys, at::HOLE, 0);
    set_ept_entry(phys, at::MISCONFIGURED, 6);
    let bits = if guest == Guest::Long { 64 } else { 32 };
    let mut a = CodeAssembler::new(bits).expect("a bitness");
    code(&mut a).expect("instructions");
    phys.write_bytes(Hpa(at::CODE), &a.assemble(at::CODE).expect("encodable"));
}

/// Sets the EPT entry of a page of the first 2 MiB.
pub(crate) fn set_ept_entry(phys: &PhysMap, page: u64, entry: u64) {
    phys.write_bytes(
        Hpa(at::EPT + 0x3000 + 8 * (page >> 12)),
        &entry.to_le_bytes(),
    );
}

/// Sets the fields that say where the guest's things are.
fn place(vmcs: &mut Vmcs, guest: Guest) {
    if guest.is_unrestricted() {
        vmcs.set(Field::EPT_POINTER, at::EPT | 0x1e);
    } else {
        vmcs.set(Field::GUEST_CR3, at::PML4);
    }
    for (field, value) in [
        (Field::GUEST_RIP, at::CODE),
        (Field::GUEST_RSP, at::STACK),
        (Field::GUEST_GDTR_BASE, at::GDT),
        (Field::GUEST_GDTR_LIMIT, 0xff),
        (Field::GUEST_IDTR_BASE, at::IDT),
        (Field::GUEST_IDTR_LIMIT, 0xfff),
        (Field::IO_BITMAP_A_ADDRESS, at::ZEROES),
        (Field::IO_BITMAP_B_ADDRESS, at::ZEROES),
        (Field::MSR_BITMAP_ADDRESS, at::ZEROES),
        (Field::VIRTUAL_APIC_ADDRESS, at::VIRTUAL_APIC),
        (Field::APIC_ACCESS_ADDRESS, at::APIC_ACCESS),
        (Field::PML_ADDRESS, at::PML),
        (Field::POSTED_INTERRUPT_DESCRIPTOR_ADDRESS, at::POSTED),
        (Field::VE_INFORMATION_ADDRESS, at::VE_AREA),
        (Field::EPTP_LIST_ADDRESS, at::EPTP_LIST),
        (Field::VM_ENTRY_MSR_LOAD_ADDRESS, at::MSRS),
        (Field::VM_EXIT_MSR_STORE_ADDRESS, at::MSRS),
        (Field::VM_EXIT_MSR_LOAD_ADDRESS, at::MSRS),
    ] {
        vmcs.set(field, value);
    }
}

/// Sets pin-based controls.
pub(crate) fn pin(vmcs: &mut Vmcs, controls: PinControls) {
    or(vmcs, Field::PIN_CONTROLS, controls.bits().into());
}

/// Sets primary processor-based controls.
pub(crate) fn proc(vmcs: &mut Vmcs, controls: ProcControls) {
    or(vmcs, Field::PROC_CONTROLS, controls.bits().into());
}

/// Sets secondary processor-based controls.
pub(crate) fn secondary(vmcs: &mut Vmcs, controls: SecondaryControls) {
    let bits = controls.bits().into();
    or(vmcs, Field::SECONDARY_PROC_CONTROLS, bits);
}

/// Sets VM-exit controls.
pub(crate) fn exit(vmcs: &mut Vmcs, controls: ExitControls) {
    or(vmcs, Field::EXIT_CONTROLS, controls.bits().into());
}

/// Sets bits of a field.
pub(crate) fn or(vmcs: &mut Vmcs, field: Field, bits: u64) {
    vmcs.set(field, vmcs.get(field) | bits);
}
