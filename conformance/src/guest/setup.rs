//! The modes of a guest: segment registers, descriptor tables, paging structures
//! (SDM Vol. 3A, "Protected-Mode Memory Management", "Paging", "Interrupt and Exception Handling").

use super::layout::*;
use kvm_bindings::{kvm_segment, kvm_sregs};
use std::collections::BTreeMap;

/// The mode a guest starts in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Real-address mode, all segments at 0.
    Real,
    /// Protected mode with 16-bit segments, flat.
    Protected16,
    /// Protected mode with 32-bit segments, flat.
    Protected32,
    /// The same in ring 3.
    User32,
    /// Protected mode with 32-bit paging and 4-KByte pages.
    Paged32,
    /// The same in ring 3.
    PagedUser32,
    /// Protected mode with 32-bit paging and 4-MByte pages (CR4.PSE).
    PagedPse,
    /// Protected mode with PAE paging.
    PagedPae,
    /// 64-bit mode with 4-level paging.
    Long,
    /// The same in ring 3.
    LongUser,
    /// Compatibility mode, 32-bit code segment.
    Compatibility,
}

/// Present.
pub const P: u64 = 1;
/// Writable.
pub const RW: u64 = 2;
/// User.
pub const US: u64 = 4;
/// Accessed.
pub const A: u64 = 0x20;
/// Dirty.
pub const D: u64 = 0x40;
/// Page size.
pub const PS: u64 = 0x80;
/// Execute disable.
pub const XD: u64 = 1 << 63;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_NE: u64 = 1 << 5;
const CR0_WP: u64 = 1 << 16;
const CR0_PG: u64 = 1 << 31;
const CR4_PSE: u64 = 1 << 4;
const CR4_PAE: u64 = 1 << 5;
const EFER_LONG: u64 = 0x500;
const EFER_NXE: u64 = 0x800;

impl Mode {
    /// The privilege level of the code.
    #[must_use]
    pub fn ring(self) -> u8 {
        match self {
            Mode::User32 | Mode::PagedUser32 | Mode::LongUser => 3,
            _ => 0,
        }
    }

    /// The width that the code is assembled for.
    #[must_use]
    pub fn bits(self) -> u32 {
        match self {
            Mode::Real | Mode::Protected16 => 16,
            Mode::Long | Mode::LongUser => 64,
            _ => 32,
        }
    }

    /// Whether IA32_EFER.LMA is 1.
    #[must_use]
    pub fn is_long(self) -> bool {
        matches!(self, Mode::Long | Mode::LongUser | Mode::Compatibility)
    }

    /// Whether paging is on.
    #[must_use]
    pub fn is_paged(self) -> bool {
        self.paging() != Paging::None
    }

    /// Whether the vCPU must know the features of the host's processor.
    #[must_use]
    pub fn needs_cpuid(self) -> bool {
        self.is_paged()
    }

    fn paging(self) -> Paging {
        match self {
            Mode::Real | Mode::Protected16 | Mode::Protected32 | Mode::User32 => Paging::None,
            Mode::Paged32 | Mode::PagedUser32 => Paging::Bits32,
            Mode::PagedPse => Paging::Pse,
            Mode::PagedPae => Paging::Pae,
            Mode::Long | Mode::LongUser | Mode::Compatibility => Paging::FourLevel,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Paging {
    None,
    Bits32,
    Pse,
    Pae,
    FourLevel,
}

/// Bytes at guest-physical addresses.
pub type Image = BTreeMap<u64, Vec<u8>>;

/// The descriptor tables and stubs of a mode.
#[must_use]
pub fn tables(mode: Mode) -> Image {
    let mut image = Image::new();
    image.insert(STUBS, vec![0xf4; (256 * STUB_SIZE) as usize]);
    if mode == Mode::Real {
        let vectors = (0..256).flat_map(|v| ((STUBS + v * STUB_SIZE) as u32).to_le_bytes());
        image.insert(0, vectors.collect());
        return image;
    }
    image.insert(
        GDT,
        descriptors(mode)
            .iter()
            .flat_map(|d| d.to_le_bytes())
            .collect(),
    );
    image.insert(
        IDT,
        (0..256).flat_map(|vector| gate(mode, vector)).collect(),
    );
    image.insert(TSS, task_state(mode));
    image
}

/// A segment descriptor: base, limit (in the granularity), access byte, flags.
const fn descriptor(base: u64, limit: u64, access: u64, flags: u64) -> u64 {
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | access << 40
        | (limit >> 16 & 0xf) << 48
        | flags << 52
        | (base >> 24 & 0xff) << 56
}

fn descriptors(mode: Mode) -> [u64; 15] {
    let (flags, other) = match mode {
        Mode::Protected16 => (0x0, 0xc),
        Mode::Long | Mode::LongUser => (0xa, 0xc),
        Mode::Compatibility => (0xc, 0xa),
        _ => (0xc, 0x0),
    };
    let limit = if mode == Mode::Protected16 {
        0xffff
    } else {
        0xf_ffff
    };
    let data_flags = if mode == Mode::Protected16 { 0x0 } else { 0xc };
    let other_limit = if other == 0 { 0xffff } else { 0xf_ffff };
    let tss_type = if mode == Mode::Protected16 {
        0x81
    } else {
        0x89
    };
    [
        0,
        descriptor(0, limit, 0x9b, flags),
        descriptor(0, limit, 0x93, data_flags),
        descriptor(0, limit, 0xfb, flags),
        descriptor(0, limit, 0xf3, data_flags),
        descriptor(TSS, 0x7f, tss_type, 0),
        0,
        descriptor(0, other_limit, 0x9b, other),
        descriptor(0, limit, 0x13, data_flags),
        descriptor(0, 0xfff, 0x91, data_flags & 4),
        descriptor(DATA, 0xf, 0x93, data_flags & 4),
        descriptor(0, 0xfff, 0x97, data_flags & 4),
        call_gate(),
        descriptor(0, limit, 0x99, flags),
        descriptor(0, limit, 0x9f, flags),
    ]
}

/// A 32-bit call gate of privilege 3 to [`MORE_CODE`], without parameters.
const fn call_gate() -> u64 {
    MORE_CODE & 0xffff | (CODE_SELECTOR as u64) << 16 | 0xec << 40 | (MORE_CODE >> 16) << 48
}

/// An interrupt gate to the stub of a vector; INT3 and INTO may come from ring 3.
fn gate(mode: Mode, vector: u64) -> Vec<u8> {
    let target = STUBS + vector * STUB_SIZE;
    let kind = if mode == Mode::Protected16 {
        0x86
    } else {
        0x8e
    };
    let privilege = if matches!(vector, 3 | 4 | 0x30) {
        0x60
    } else {
        0
    };
    // In IA-32e mode a gate leads to a 64-bit code segment.
    let selector = match mode {
        Mode::Compatibility => OTHER_CODE_SELECTOR,
        _ => CODE_SELECTOR,
    };
    let low = target & 0xffff
        | u64::from(selector) << 16
        | (kind | privilege) << 40
        | (target >> 16 & 0xffff) << 48;
    let mut bytes = low.to_le_bytes().to_vec();
    if mode.is_long() {
        bytes.extend((target >> 32).to_le_bytes());
    }
    bytes
}

fn task_state(mode: Mode) -> Vec<u8> {
    let mut tss = vec![0; 0x80];
    match mode {
        Mode::Protected16 => {
            tss[2..4].copy_from_slice(&(RING0_STACK as u16).to_le_bytes());
            tss[4..6].copy_from_slice(&DATA_SELECTOR.to_le_bytes());
        }
        _ if mode.is_long() => tss[4..12].copy_from_slice(&RING0_STACK.to_le_bytes()),
        _ => {
            tss[4..8].copy_from_slice(&(RING0_STACK as u32).to_le_bytes());
            tss[8..10].copy_from_slice(&DATA_SELECTOR.to_le_bytes());
        }
    }
    tss[0x66..0x68].copy_from_slice(&0x80_u16.to_le_bytes());
    tss
}

/// Pages that map to themselves: where code, tables and data lie.
const IDENTITY: std::ops::Range<u64> = 0..0x20;
/// The same around the end of memory and [`MMIO`].
const WINDOW: std::ops::Range<u64> = 0x7e..0x94;

/// The paging structures: the pages above map to themselves, the given leaves replace or add.
#[must_use]
pub fn paging(mode: Mode, leaves: &[(u64, u64)]) -> Image {
    let user = if mode.ring() == 3 { US } else { 0 };
    let identity = IDENTITY.map(|page| (page << 12, page << 12 | P | RW | user));
    let window = WINDOW.map(|page| (page << 12, page << 12 | P | RW | user));
    let mut tables = Tables {
        words: BTreeMap::new(),
        next: PAGING + 0x1000,
    };
    let plan: &[(u32, u32)] = match mode.paging() {
        Paging::None => return Image::new(),
        Paging::Bits32 => &[(22, 10), (12, 10)],
        Paging::Pse => {
            tables.put(PAGING, 4, P | RW | PS);
            leaves
                .iter()
                .for_each(|(at, leaf)| tables.put(PAGING + (at >> 22) * 4, 4, *leaf));
            return tables.image();
        }
        Paging::Pae => &[(30, 2), (21, 9), (12, 9)],
        Paging::FourLevel => &[(39, 9), (30, 9), (21, 9), (12, 9)],
    };
    let width = if mode.paging() == Paging::Bits32 {
        4
    } else {
        8
    };
    for (linear, leaf) in identity.chain(window).chain(leaves.iter().copied()) {
        tables.map(plan, width, linear, leaf);
    }
    tables.image()
}

struct Tables {
    words: BTreeMap<u64, (u64, u64)>,
    next: u64,
}

impl Tables {
    fn put(&mut self, address: u64, width: u64, entry: u64) {
        self.words.insert(address, (width, entry));
    }

    fn map(&mut self, plan: &[(u32, u32)], width: u64, linear: u64, leaf: u64) {
        let mut table = PAGING;
        for (level, (shift, bits)) in plan.iter().enumerate() {
            let index = linear >> shift & ((1 << bits) - 1);
            let address = table + index * width;
            let is_last = level + 1 == plan.len();
            let is_large = leaf & PS != 0 && *shift == 21;
            if is_last || is_large {
                let leaf = if is_last { leaf & !PS } else { leaf };
                return self.put(address, width, leaf);
            }
            table = match self.words.get(&address) {
                Some((_, entry)) => entry & 0xf_ffff_f000,
                None => self.new_table(address, width, *shift),
            };
        }
    }

    fn new_table(&mut self, address: u64, width: u64, shift: u32) -> u64 {
        let table = self.next;
        self.next += 0x1000;
        // A PDPTE of PAE paging has no R/W and U/S bits.
        let rights = if width == 8 && shift == 30 && self.is_root(address) {
            P
        } else {
            P | RW | US
        };
        self.put(address, width, table | rights);
        table
    }

    fn is_root(&self, address: u64) -> bool {
        address & !0xfff == PAGING
    }

    fn image(self) -> Image {
        let mut image = Image::new();
        let mut last = (0, 0);
        for (at, (width, entry)) in self.words {
            let (start, end) = if at == last.1 { last } else { (at, at) };
            let bytes: &mut Vec<u8> = image.entry(start).or_default();
            bytes.extend_from_slice(&entry.to_le_bytes()[..width as usize]);
            last = (start, end + width);
        }
        image
    }
}

/// The system registers of a mode.
pub fn system_registers(mode: Mode, sregs: &mut kvm_sregs) {
    if mode == Mode::Real {
        for segment in data_segments(sregs) {
            (segment.base, segment.selector) = (0, 0);
        }
        (sregs.cs.base, sregs.cs.selector) = (0, 0);
        return;
    }
    let ring = mode.ring();
    let (code, data) = match ring {
        3 => (USER_CODE_SELECTOR, USER_DATA_SELECTOR),
        _ => (CODE_SELECTOR, DATA_SELECTOR),
    };
    sregs.cs = flat(mode, code, 0xb, ring);
    for segment in data_segments(sregs) {
        *segment = flat(mode, data, 0x3, ring);
    }
    sregs.tr = kvm_segment {
        base: TSS,
        limit: 0x7f,
        selector: TSS_SELECTOR,
        type_: if mode == Mode::Protected16 { 3 } else { 11 },
        present: 1,
        ..kvm_segment::default()
    };
    sregs.ldt = kvm_segment {
        unusable: 1,
        ..kvm_segment::default()
    };
    (sregs.gdt.base, sregs.gdt.limit) = (GDT, 15 * 8 - 1);
    (sregs.idt.base, sregs.idt.limit) = (IDT, if mode.is_long() { 0xfff } else { 0x7ff });
    sregs.cr0 = CR0_PE | CR0_ET | CR0_NE;
    if mode.is_paged() {
        sregs.cr0 |= CR0_PG | CR0_WP;
        sregs.cr3 = PAGING;
    }
    match mode.paging() {
        Paging::None | Paging::Bits32 => {}
        Paging::Pse => sregs.cr4 |= CR4_PSE,
        Paging::Pae => (sregs.cr4, sregs.efer) = (CR4_PAE, EFER_NXE),
        Paging::FourLevel => (sregs.cr4, sregs.efer) = (CR4_PAE, EFER_NXE | EFER_LONG),
    }
}

fn data_segments(sregs: &mut kvm_sregs) -> [&mut kvm_segment; 5] {
    [
        &mut sregs.ds,
        &mut sregs.es,
        &mut sregs.fs,
        &mut sregs.gs,
        &mut sregs.ss,
    ]
}

fn flat(mode: Mode, selector: u16, type_: u8, ring: u8) -> kvm_segment {
    let is_code = type_ & 8 != 0;
    let is_64 = is_code && matches!(mode, Mode::Long | Mode::LongUser);
    let is_16 = mode == Mode::Protected16;
    kvm_segment {
        base: 0,
        limit: if is_16 { 0xffff } else { 0xffff_ffff },
        selector,
        type_,
        present: 1,
        dpl: ring,
        db: u8::from(!is_16 && !is_64),
        s: 1,
        l: u8::from(is_64),
        g: u8::from(!is_16),
        ..kvm_segment::default()
    }
}
