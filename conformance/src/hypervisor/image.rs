//! The image: what is where in memory, and the ELF file with a multiboot header that loads it
//! (Multiboot Specification 0.6.96, "OS image format").

use vmx_model::arch::Cr4;
use vmx_model::controls::SecondaryControls;
use vmx_model::field::{Field, Kind};
use vmx_model::sample::Guest as Mode;
use vmx_model::vmcs::Vmcs;

/// The code of the guest, and that of its NMI handler.
pub const GUEST: u64 = 0x8000;
/// See [`GUEST`].
pub const GUEST_NMI: u64 = 0x8400;
/// The IDT of a guest in 64-bit mode; its stack grows down from here.
const GUEST_IDT: u64 = 0x8800;
/// A page that the guest may write.
pub const GUEST_DATA: u64 = 0x9000;
/// The page directory of a guest with 32-bit paging: linear 0 and 4 MiB are physical 0, and linear
/// FEC0_0000H is itself.
pub const GUEST_DIRECTORY: u64 = 0xa000;

/// The file's code, by the mode of the processor that executes it: 32-bit after the loader, 64-bit
/// up to VM entry, 64-bit after a VM exit, and handlers of exceptions.
const HEADER: u64 = 0x10_0000;
pub(super) const ENTRY: u64 = HEADER + 0x10;
pub(super) const ENTER: u64 = 0x10_1000;
pub(super) const EXIT: u64 = 0x10_2000;
pub(super) const HANDLERS: u64 = 0x10_3000;
/// Pairs of an encoding and a value, then a word of ones.
pub(super) const VMCS_FIELDS: u64 = 0x10_4000;
/// Encodings, then a word of ones.
pub(super) const READ_FIELDS: u64 = 0x10_6000;
/// Where the next result goes, and how many exits are left.
pub(super) const NEXT: u64 = 0x10_6800;
/// See [`NEXT`].
pub(super) const LEFT: u64 = NEXT + 8;
/// A pointer for VMXON, VMCLEAR and VMPTRLD.
pub(super) const POINTER: u64 = NEXT + 16;
pub(super) const GDT: u64 = 0x10_6900;
/// Operands of LGDT and of LIDT (32-bit and 64-bit).
pub(super) const GDTR: u64 = 0x10_6a00;
pub(super) const IDTR: u64 = 0x10_6a10;
/// The values of the fields that were read, exit after exit.
pub const RESULTS: u64 = 0x10_7000;
/// The IDT for 32-bit code, then that for 64-bit code.
pub(super) const IDT_32: u64 = 0x10_8000;
pub(super) const IDT_64: u64 = 0x10_8800;
/// The stack grows down from here.
pub(super) const STACK: u64 = 0x10_a000;
pub(super) const VMXON_REGION: u64 = 0x11_0000;
pub(super) const VMCS_REGION: u64 = 0x11_1000;
/// Page tables: 4 GiB of identity, by pages of 2 MiB.
pub(super) const PML4: u64 = 0x12_0000;
/// EPT: the lowest 2 MiB by pages of 4 KiB, and the pages of the APICs.
const EPT_PML4: u64 = 0x13_0000;
/// A page for the page-modification log, one for the virtual-APIC page, one with descriptors of
/// posted interrupts.
pub const PML: u64 = 0x14_0000;
/// See [`PML`].
pub const VIRTUAL_APIC: u64 = 0x14_1000;
/// See [`PML`].
pub const POSTED: u64 = 0x14_2000;
const END: u64 = 0x14_3000;

/// Selectors: 64-bit code, data, TSS, 32-bit code.
pub(super) const CODE_64: u16 = 0x08;
pub(super) const CODE_32: u16 = 0x28;

/// Vectors that have a handler: NMI, #UD, #GP, #PF.
pub(super) const VECTORS: [u64; 4] = [2, 6, 13, 14];
/// The room for a handler, of 32-bit code and then of 64-bit code.
pub(super) const HANDLER_BYTES: u64 = 0x20;

/// Sets what depends on where things are.
pub(super) fn adapt(vmcs: &mut Vmcs, mode: Mode) {
    let directory = match mode {
        Mode::Long => PML4,
        _ => GUEST_DIRECTORY,
    };
    for (field, value) in [
        (Field::HOST_CR3, PML4),
        (Field::HOST_RIP, EXIT),
        (Field::HOST_RSP, STACK),
        (Field::HOST_GDTR_BASE, GDT),
        (Field::HOST_IDTR_BASE, IDT_64),
        (Field::GUEST_CR3, directory),
        (Field::GUEST_RIP, GUEST),
        (Field::GUEST_RSP, GUEST_IDT),
        (Field::GUEST_GDTR_BASE, GDT),
        (Field::GUEST_GDTR_LIMIT, 0x2f),
        (Field::GUEST_IDTR_BASE, GUEST_IDT),
        (Field::GUEST_IDTR_LIMIT, 0xff),
        (Field::PML_ADDRESS, PML),
        (Field::PML_INDEX, 511),
        (Field::VIRTUAL_APIC_ADDRESS, VIRTUAL_APIC),
    ] {
        vmcs.set(field, value);
    }
    if mode == Mode::Protected {
        let cr4 = vmcs.get(Field::GUEST_CR4) | Cr4::PSE.bits();
        vmcs.set(Field::GUEST_CR4, cr4);
    }
    if vmcs.secondary().contains(SecondaryControls::ENABLE_EPT) {
        enable_ept(vmcs);
    }
}

/// Sets "enable EPT", and the EPTP: write-back, four levels, accessed and dirty flags.
pub fn enable_ept(vmcs: &mut Vmcs) {
    let secondary = vmcs.secondary() | SecondaryControls::ENABLE_EPT;
    vmcs.set(Field::SECONDARY_PROC_CONTROLS, secondary.bits().into());
    vmcs.set(Field::EPT_POINTER, EPT_PML4 | 0x5e);
}

/// The parts of an image.
pub(super) struct Image {
    pub(super) entry: Vec<u8>,
    pub(super) enter: Vec<u8>,
    pub(super) exit: Vec<u8>,
    pub(super) handlers: Vec<u8>,
    pub(super) guest: Vec<u8>,
    pub(super) nmi: Vec<u8>,
    pub(super) vmcs: Vmcs,
    pub(super) fields: &'static [Field],
    pub(super) exits: usize,
}

impl Image {
    /// The file: headers, and one segment each for the guest's memory and the hypervisor's.
    pub(super) fn elf(&self) -> Vec<u8> {
        let low = self.low();
        let high = self.high();
        let headers = 52 + 2 * 32;
        let mut words: Vec<u32> = vec![0x464c_457f, 0x0001_0101, 0, 0, 0x0003_0002, 1];
        words.extend([ENTRY as u32, 52, 0, 0, 0x0020_0034, 2, 0]);
        let mut offset = headers;
        for (at, bytes) in [(HEADER, &high), (GUEST, &low)] {
            let length = bytes.len() as u32;
            words.extend([1, offset, at as u32, at as u32, length, length, 7, 4]);
            offset += length;
        }
        let head = words.iter().flat_map(|word| word.to_le_bytes());
        head.chain(high).chain(low).collect()
    }

    fn low(&self) -> Vec<u8> {
        let mut memory = Memory::new(GUEST, GUEST_DIRECTORY + 0x1000);
        memory.put(GUEST, &self.guest);
        memory.put(GUEST_NMI, &self.nmi);
        let gate = gate(GUEST_NMI, CODE_64);
        memory.put_words(GUEST_IDT + 2 * 16, &[gate, 0]);
        for directory in [0, 4] {
            memory.put(GUEST_DIRECTORY + directory, &0x87_u32.to_le_bytes());
        }
        let apic = 0xfec0_0097_u32;
        memory.put(GUEST_DIRECTORY + 0x3fb * 4, &apic.to_le_bytes());
        memory.bytes
    }

    fn high(&self) -> Vec<u8> {
        let mut memory = Memory::new(HEADER, END);
        let magic = [0x1bad_b002_u32, 0, 0x1bad_b002_u32.wrapping_neg(), 0];
        memory.put(HEADER, &magic.map(u32::to_le_bytes).concat());
        memory.put(ENTRY, &self.entry);
        memory.put(ENTER, &self.enter);
        memory.put(EXIT, &self.exit);
        memory.put(HANDLERS, &self.handlers);
        memory.put_words(VMCS_FIELDS, &self.vmwrites());
        let reads = self.fields.iter().map(|field| field.encoding().into());
        let reads: Vec<u64> = reads.chain([u64::MAX]).collect();
        memory.put_words(READ_FIELDS, &reads);
        memory.put_words(NEXT, &[RESULTS, self.exits as u64]);
        put_descriptors(&mut memory);
        put_page_tables(&mut memory);
        put_ept(&mut memory);
        memory.bytes
    }

    /// The fields that are not 0, with their values.
    fn vmwrites(&self) -> Vec<u64> {
        let written = Field::ALL
            .into_iter()
            .filter(|field| field.kind() != Kind::ReadOnly && self.vmcs.get(*field) != 0);
        written
            .flat_map(|field| [field.encoding().into(), self.vmcs.get(field)])
            .chain([u64::MAX])
            .collect()
    }
}

fn put_descriptors(memory: &mut Memory) {
    let descriptors = [
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        // A TSS at 0: never used.
        0x0000_8b00_0000_0067,
        0,
        0x00cf_9b00_0000_ffff,
    ];
    memory.put_words(GDT, &descriptors);
    for (register, base, limit) in [
        (GDTR, GDT, 0x2f_u16),
        (IDTR, IDT_32, 0x7ff),
        (IDTR + 0x10, IDT_64, 0x7ff),
    ] {
        memory.put(register, &limit.to_le_bytes());
        memory.put(register + 2, &base.to_le_bytes());
    }
    for (n, vector) in VECTORS.into_iter().enumerate() {
        let handler = HANDLERS + n as u64 * 2 * HANDLER_BYTES;
        memory.put_words(IDT_32 + vector * 8, &[gate(handler, CODE_32)]);
        let gate = gate(handler + HANDLER_BYTES, CODE_64);
        memory.put_words(IDT_64 + vector * 16, &[gate, 0]);
    }
}

/// The first eight bytes of an interrupt gate to a handler below 4 GiB.
fn gate(handler: u64, selector: u16) -> u64 {
    handler & 0xffff | u64::from(selector) << 16 | 0x8e00 << 32 | (handler >> 16) << 48
}

fn put_page_tables(memory: &mut Memory) {
    const DIRECTORIES: u64 = PML4 + 0x2000;
    memory.put_words(PML4, &[(PML4 + 0x1000) | 7]);
    for n in 0..4 {
        memory.put_words(PML4 + 0x1000 + n * 8, &[(DIRECTORIES + n * 0x1000) | 7]);
    }
    let pages: Vec<u64> = (0..2048).map(|n| n << 21 | 0x87).collect();
    memory.put_words(DIRECTORIES, &pages);
}

fn put_ept(memory: &mut Memory) {
    const POINTERS: u64 = EPT_PML4 + 0x1000;
    const DIRECTORY: u64 = EPT_PML4 + 0x2000;
    const TABLE: u64 = EPT_PML4 + 0x3000;
    const LAST_DIRECTORY: u64 = EPT_PML4 + 0x4000;
    memory.put_words(EPT_PML4, &[POINTERS | 7]);
    memory.put_words(POINTERS, &[DIRECTORY | 7, 0, 0, LAST_DIRECTORY | 7]);
    memory.put_words(DIRECTORY, &[TABLE | 7]);
    // Write-back.
    let pages: Vec<u64> = (0..512).map(|n| n << 12 | 0x37).collect();
    memory.put_words(TABLE, &pages);
    // Uncacheable: the page of 2 MiB with the local APIC.
    let apic = 0xfee0_0000_u64;
    memory.put_words(LAST_DIRECTORY + (apic >> 21 & 511) * 8, &[apic | 0x87]);
}

/// Memory from an address on.
struct Memory {
    base: u64,
    bytes: Vec<u8>,
}

impl Memory {
    fn new(base: u64, end: u64) -> Self {
        Self {
            base,
            bytes: vec![0; (end - base) as usize],
        }
    }

    fn put(&mut self, at: u64, bytes: &[u8]) {
        let start = (at - self.base) as usize;
        let room = &mut self.bytes[start..start + bytes.len()];
        assert!(room.iter().all(|b| *b == 0), "parts overlap at {at:#x}");
        room.copy_from_slice(bytes);
    }

    fn put_words(&mut self, at: u64, words: &[u64]) {
        for (n, word) in words.iter().enumerate() {
            self.put(at + n as u64 * 8, &word.to_le_bytes());
        }
    }
}
