//! ELF files with a PVH entry point (Xen, "x86/HVM direct boot ABI"; the note
//! `XEN_ELFNOTE_PHYS32_ENTRY`): uncompressed Linux kernels, among others.

use core::ops::Range;

use vmx_model::arch::ArchState;

use super::{Entry, Error, Image, LOW_ROOM, Memory, linux, protected_mode, take_room};
use crate::acpi;

/// `XEN_HVM_START_MAGIC_VALUE`.
const MAGIC: u32 = 0x336e_c578;
/// The version of the structure that has a memory map.
const VERSION: u32 = 1;
/// Behind the start information: the entry for the module, the memory map, the command line.
const MODULE_ENTRY: u64 = 0x40;
const MEMORY_MAP: u64 = 0x80;
const COMMAND_LINE: u64 = 0x400;
const COMMAND_LINE_BYTES: usize = 0xc00;
const BYTES: u64 = COMMAND_LINE + COMMAND_LINE_BYTES as u64;

/// Writes what a loaded kernel finds (`struct hvm_start_info`), and returns the state at its
/// 32-bit entry point: EBX is the address of the start information.
pub(super) fn enter(
    image: &Image,
    memory: &Memory<'_>,
    used: &mut Vec<Range<u64>>,
    entry: u32,
    reset: &ArchState,
) -> Result<Entry, Error> {
    let base = take_room(used, &LOW_ROOM, BYTES).ok_or(Error::TooLarge)?;
    let mut line = image.command_line.clone().into_bytes();
    line.push(0);
    if line.len() > COMMAND_LINE_BYTES {
        return Err(Error::TooLarge);
    }
    memory.write(base + COMMAND_LINE, &line)?;
    let map = linux::memory_map(memory);
    let mut entries = Vec::new();
    for (range, kind) in &map {
        entries.extend([range.start, range.end - range.start, u64::from(*kind)]);
    }
    memory.write(base + MEMORY_MAP, &quadwords(&entries))?;
    let modules = match &image.module {
        Some(module) => {
            let at = place_module(module, memory, used)?;
            let entry = [at, module.len() as u64, 0, 0];
            memory.write(base + MODULE_ENTRY, &quadwords(&entry))?;
            1
        }
        None => 0,
    };
    let information = [
        u64::from(MAGIC) | u64::from(VERSION) << 32,
        modules << 32,
        base + MODULE_ENTRY,
        base + COMMAND_LINE,
        acpi::RSDP,
        base + MEMORY_MAP,
        map.len() as u64,
    ];
    memory.write(base, &quadwords(&information))?;
    let mut registers = [0; 16];
    registers[3] = base;
    Ok(Entry {
        state: protected_mode(reset, entry),
        registers,
    })
}

/// Puts the module at the end of memory.
fn place_module(
    module: &[u8],
    memory: &Memory<'_>,
    used: &mut Vec<Range<u64>>,
) -> Result<u64, Error> {
    let length = module.len() as u64;
    let top = memory.bytes.saturating_sub(length) & !0xfff;
    let at = take_room(used, &(top..memory.bytes), length).ok_or(Error::TooLarge)?;
    memory.write(at, module)?;
    Ok(at)
}

fn quadwords(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}
