//! Where things lie in a guest's physical memory.

/// The global descriptor table.
pub const GDT: u64 = 0x600;
/// The task-state segment.
pub const TSS: u64 = 0x700;
/// The code of the case.
pub const CODE: u64 = 0x1000;
/// A second piece of code: a handler, ring 3, another vCPU.
pub const MORE_CODE: u64 = 0x2000;
/// The interrupt descriptor table (in real-address mode the vector table is at 0).
pub const IDT: u64 = 0x3000;
/// One HLT for each vector.
pub const STUBS: u64 = 0x4000;
/// The distance of two stubs.
pub const STUB_SIZE: u64 = 8;
/// Data of the case.
pub const DATA: u64 = 0x5000;
/// The stack at the start grows down from here.
pub const STACK: u64 = 0x8000;
/// The stack of ring 0 for a guest in ring 3.
pub const RING0_STACK: u64 = 0x9000;
/// The paging structures: root, then the others.
pub const PAGING: u64 = 0x1_0000;
/// The size of the memory slot at 0.
pub const MEMORY: u64 = 0x8_0000;
/// An address without memory that every mode can reach.
pub const MMIO: u64 = 0x9_0000;

/// 64-bit or 32-bit code of ring 0.
pub const CODE_SELECTOR: u16 = 0x08;
/// Data of ring 0.
pub const DATA_SELECTOR: u16 = 0x10;
/// Code of ring 3.
pub const USER_CODE_SELECTOR: u16 = 0x18 | 3;
/// Data of ring 3.
pub const USER_DATA_SELECTOR: u16 = 0x20 | 3;
/// The task register.
pub const TSS_SELECTOR: u16 = 0x28;
/// Code of ring 0 of another kind: 64-bit in compatibility mode, 32-bit in 64-bit mode and for
/// 16-bit guests, else 16-bit.
pub const OTHER_CODE_SELECTOR: u16 = 0x38;
/// A descriptor whose present bit is clear.
pub const ABSENT_SELECTOR: u16 = 0x40;
/// A read-only data segment with a limit of 0xfff.
pub const SMALL_SELECTOR: u16 = 0x48;
/// A writable data segment with base 0x5000 and a limit of 0xf.
pub const TINY_SELECTOR: u16 = 0x50;
/// An expand-down data segment with limit 0xfff.
pub const EXPAND_DOWN_SELECTOR: u16 = 0x58;
/// A call gate to ring 0 (32-bit guests), usable from ring 3.
pub const GATE_SELECTOR: u16 = 0x60;
/// Execute-only code of ring 0.
pub const EXECUTE_ONLY_SELECTOR: u16 = 0x68;
/// Conforming code of ring 0.
pub const CONFORMING_SELECTOR: u16 = 0x70;
