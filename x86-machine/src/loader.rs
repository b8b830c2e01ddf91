//! Loaders: what kind of image it is, where its parts go, and in which state it is entered.
//!
//! Multiboot images (Multiboot Specification 0.6.96) in ELF32 or ELF64 files, ELF files with a PVH
//! entry point, other ELF32 files (entered like a multiboot image), other ELF64 files (entered by
//! Linux's 64-bit boot protocol), Linux kernels, and flat binaries (entered like a boot sector).

mod elf;
mod linux;
mod pvh;

use core::ops::Range;

use vmx_model::addr::Hpa;
use vmx_model::arch::{AccessRights, ArchState, Cr0, Segment, SegmentRegister};
use x86_interp::mem::phys::PhysMap;

/// What is to be booted.
#[derive(Clone, Debug, Default)]
pub struct Image {
    /// The file.
    pub bytes: Vec<u8>,
    /// The command line; a multiboot image sees it behind the program's name.
    pub command_line: String,
    /// A module.
    pub module: Option<Vec<u8>>,
}

/// Why an image cannot be booted.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The file ends before its headers do.
    Truncated,
    /// The image, or what goes with it, does not fit the machine's memory.
    TooLarge,
    /// A kind of image that is not supported, by name.
    Unsupported(&'static str),
    /// A flag of the multiboot header that is not supported.
    MultibootFlags(u32),
}

impl core::fmt::Display for Error {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Truncated => f.write_str("the image is truncated"),
            Self::TooLarge => f.write_str("the image does not fit the memory of the machine"),
            Self::Unsupported(what) => write!(f, "{what} are not supported"),
            Self::MultibootFlags(flags) => {
                write!(f, "multiboot header flags {flags:#x} are not supported")
            }
        }
    }
}

impl core::error::Error for Error {}

const MULTIBOOT_HEADER: u32 = 0x1bad_b002;
const MULTIBOOT_LOADED: u64 = 0x2bad_b002;
/// The boot information of a multiboot image and its module go to the first room in here that the
/// image leaves; a module that does not fit goes to the end of memory.
const LOW_ROOM: Range<u64> = 0x9000..0x9_0000;
/// In the boot information: the entry for the module, and the command line.
const MODULE_ENTRY: u64 = 0x80;
const COMMAND_LINE: u64 = 0x400;
const COMMAND_LINE_BYTES: usize = 0xc00;
const INFORMATION_BYTES: u64 = COMMAND_LINE + COMMAND_LINE_BYTES as u64;
/// Where a boot sector is loaded.
const BOOT_SECTOR: u64 = 0x7c00;

/// Memory below 4 GiB, as the loader sees it.
pub(crate) struct Memory<'a> {
    pub(crate) phys: &'a PhysMap,
    pub(crate) bytes: u64,
    /// Memory from 4 GiB on.
    pub(crate) high_bytes: u64,
}

impl Memory<'_> {
    fn check(&self, at: u64, length: u64) -> Result<(), Error> {
        let end = at.checked_add(length).ok_or(Error::TooLarge)?;
        if end > self.bytes {
            Err(Error::TooLarge)
        } else {
            Ok(())
        }
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<(), Error> {
        self.check(at, bytes.len() as u64)?;
        self.phys.write_bytes(Hpa(at), bytes);
        Ok(())
    }
}

/// The state in which an image is entered.
pub(crate) struct Entry {
    pub(crate) state: ArchState,
    pub(crate) registers: [u64; 16],
}

/// Loads an image; `reset` is the processor's state after RESET.
pub(crate) fn load(image: &Image, memory: &Memory<'_>, reset: &ArchState) -> Result<Entry, Error> {
    if linux::is_kernel(&image.bytes) {
        return linux::load(image, memory, reset);
    }
    if !image.bytes.starts_with(b"\x7fELF") {
        memory.write(BOOT_SECTOR, &image.bytes)?;
        return Ok(enter_boot_sector(reset));
    }
    let flags = multiboot_flags(&image.bytes);
    let mut loaded = elf::load(&image.bytes, memory)?;
    let mut registers = [0; 16];
    if let Some(flags) = flags {
        if flags & 0xfffc != 0 {
            return Err(Error::MultibootFlags(flags));
        }
        registers[0] = MULTIBOOT_LOADED;
        registers[3] = write_information(image, memory, &mut loaded.used)?;
    } else if let Some(entry) = loaded.pvh_entry {
        return pvh::enter(image, memory, &mut loaded.used, entry, reset);
    } else if loaded.is_64 {
        return linux::enter_loaded(image, memory, &loaded, reset);
    }
    Ok(Entry {
        state: protected_mode(reset, loaded.entry),
        registers,
    })
}

/// Returns the flags of the multiboot header, if there is one in the first 8192 bytes.
fn multiboot_flags(bytes: &[u8]) -> Option<u32> {
    let head = &bytes[..bytes.len().min(8192)];
    let words: Vec<u32> = head
        .chunks_exact(4)
        .map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]]))
        .collect();
    words
        .windows(3)
        .find(|w| {
            let sum = w[0].wrapping_add(w[1]).wrapping_add(w[2]);
            w[0] == MULTIBOOT_HEADER && sum == 0
        })
        .map(|w| w[1])
}

/// Takes the first whole pages of `within` that nothing uses, if there are enough.
fn take_room(used: &mut Vec<Range<u64>>, within: &Range<u64>, bytes: u64) -> Option<u64> {
    let mut at = within.start;
    let is_free = |at: u64| {
        let end = at.checked_add(bytes).filter(|&end| end <= within.end)?;
        Some(used.iter().all(|r| end <= r.start || r.end <= at))
    };
    while !is_free(at)? {
        at += 0x1000;
    }
    used.push(at..at + bytes);
    Some(at)
}

/// Writes the multiboot information: memory, command line, module; returns where it is.
fn write_information(
    image: &Image,
    memory: &Memory<'_>,
    used: &mut Vec<Range<u64>>,
) -> Result<u64, Error> {
    let mut line = format!("image {}", image.command_line).into_bytes();
    line.push(0);
    if line.len() > COMMAND_LINE_BYTES {
        return Err(Error::TooLarge);
    }
    let base = take_room(used, &LOW_ROOM, INFORMATION_BYTES).ok_or(Error::TooLarge)?;
    let line_at = base + COMMAND_LINE;
    memory.write(line_at, &line)?;
    let mut words = [0_u32; 14];
    // Flags: memory, command line, modules.
    words[0] = 1 | 1 << 2 | 1 << 3;
    words[1] = 640;
    words[2] = (memory.bytes.saturating_sub(1 << 20) >> 10) as u32;
    words[4] = line_at as u32;
    if let Some(module) = &image.module {
        let length = module.len() as u64;
        let top = memory.bytes.saturating_sub(length) & !0xfff;
        let at = take_room(used, &LOW_ROOM, length)
            .or_else(|| take_room(used, &(top..memory.bytes), length))
            .ok_or(Error::TooLarge)?;
        memory.write(at, module)?;
        words[5] = 1;
        words[6] = (base + MODULE_ENTRY) as u32;
        let entry = [at as u32, (at + length) as u32, line_at as u32, 0];
        memory.write(base + MODULE_ENTRY, &to_bytes(&entry))?;
    }
    memory.write(base, &to_bytes(&words))?;
    Ok(base)
}

fn to_bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

/// Returns the state of a multiboot machine: 32-bit protected mode, flat segments, no paging.
fn protected_mode(reset: &ArchState, entry: u32) -> ArchState {
    let mut state = reset.clone();
    let flat = |selector, access| Segment {
        base: 0,
        limit: u32::MAX,
        access: AccessRights(access),
        selector,
    };
    use SegmentRegister::{Cs, Ds, Es, Fs, Gs, Ss};
    for register in [Es, Ss, Ds, Fs, Gs] {
        *state.segment_mut(register) = flat(0x10, 0xc093);
    }
    *state.segment_mut(Cs) = flat(8, 0xc09b);
    state.cr0 = Cr0::PE | Cr0::ET;
    state.rip = u64::from(entry);
    state
}

/// Returns the state in which firmware enters a boot sector.
fn enter_boot_sector(reset: &ArchState) -> Entry {
    let mut state = reset.clone();
    let cs = state.segment_mut(SegmentRegister::Cs);
    (cs.selector, cs.base) = (0, 0);
    state.rip = BOOT_SECTOR;
    state.rsp = BOOT_SECTOR;
    let mut registers = [0; 16];
    registers[4] = BOOT_SECTOR;
    Entry { state, registers }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_taken_where_nothing_is() {
        let mut used = vec![0x8000..0xa86c, 0xb000..0xda30];
        let take = |used: &mut _, bytes| take_room(used, &(0x9000..0x1_2000), bytes);
        assert_eq!(take(&mut used, 0x1000), Some(0xe000));
        assert_eq!(take(&mut used, 0x2000), Some(0xf000));
        assert_eq!(take(&mut used, 0x1001), None);
        assert_eq!(take(&mut used, 0x1000), Some(0x1_1000));
        assert_eq!(take(&mut used, 1), None);
        assert_eq!(take(&mut used, u64::MAX), None);
    }
}
