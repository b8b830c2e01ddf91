//! Linux kernels in bzImage files (Linux, Documentation/arch/x86/boot.rst, "The Linux/x86 Boot
//! Protocol"), entered by the 32-bit protocol; and ELF64 files, entered by the 64-bit protocol.

use core::ops::Range;

use vmx_model::arch::{AccessRights, ArchState, Cr0, Cr4, Efer, SegmentRegister};

use super::elf::Loaded;
use super::{Entry, Error, Image, Memory, protected_mode, to_bytes};

/// Offsets in the setup header and in `struct boot_params`, which holds the header at the same
/// place.
mod at {
    pub(super) const E820_ENTRIES: usize = 0x1e8;
    pub(super) const HEADER: usize = 0x1f1;
    pub(super) const SETUP_SECTORS: usize = 0x1f1;
    pub(super) const JUMP: usize = 0x201;
    pub(super) const MAGIC: usize = 0x202;
    pub(super) const VERSION: usize = 0x206;
    pub(super) const LOADER: usize = 0x210;
    pub(super) const LOAD_FLAGS: usize = 0x211;
    pub(super) const RAMDISK: usize = 0x218;
    pub(super) const COMMAND_LINE: usize = 0x228;
    pub(super) const RAMDISK_MAX: usize = 0x22c;
    pub(super) const COMMAND_LINE_BYTES: usize = 0x238;
    pub(super) const INIT_BYTES: usize = 0x260;
    pub(super) const E820: usize = 0x2d0;
}

/// The oldest protocol that is taken: the first with a size of the kernel's working memory.
const OLDEST: u64 = 0x20a;
const LOADED_HIGH: u64 = 1;
/// A loader without a number of its own.
const UNDEFINED_LOADER: u8 = 0xff;
/// Where the parts go.
const BOOT_PARAMS: u64 = 0x1_0000;
const COMMAND_LINE: u64 = 0x2_0000;
const GDT: u64 = 0x3_0000;
const PAGE_TABLES: u64 = 0x4_0000;
const KERNEL: u64 = 0x10_0000;
/// Memory that is not usable: what firmware keeps below 1 MiB, and the BIOS area.
const LOW_END: u64 = 0x9_fc00;
const BIOS: Range<u64> = 0xe_0000..0x10_0000;

/// Descriptors of flat code segments.
const CODE_32: u64 = 0x00cf_9b00_0000_ffff;
const CODE_64: u64 = 0x00af_9b00_0000_ffff;

const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;

/// Whether a file is a kernel.
pub(super) fn is_kernel(bytes: &[u8]) -> bool {
    bytes.get(at::MAGIC..at::MAGIC + 4) == Some(b"HdrS")
}

/// The setup header of a file.
struct Header<'a>(&'a [u8]);

impl Header<'_> {
    fn number(&self, at: usize, size: usize) -> Result<u64, Error> {
        let bytes = self.0.get(at..at + size).ok_or(Error::Truncated)?;
        Ok(bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b)))
    }

    /// Returns the bytes of the header.
    fn bytes(&self) -> Result<&[u8], Error> {
        let end = at::MAGIC + self.number(at::JUMP, 1)? as usize;
        self.0.get(at::HEADER..end).ok_or(Error::Truncated)
    }
}

/// Loads a kernel; the module is its initial RAM disk.
pub(super) fn load(image: &Image, memory: &Memory<'_>, reset: &ArchState) -> Result<Entry, Error> {
    let header = Header(&image.bytes);
    if header.number(at::VERSION, 2)? < OLDEST {
        return Err(Error::Unsupported(
            "Linux kernels with a boot protocol before 2.10",
        ));
    }
    if header.number(at::LOAD_FLAGS, 1)? & LOADED_HIGH == 0 {
        return Err(Error::Unsupported("Linux zImage files"));
    }
    let sectors = match header.number(at::SETUP_SECTORS, 1)? {
        0 => 4,
        sectors => sectors,
    };
    let setup = 512 * (sectors as usize + 1);
    let kernel = image.bytes.get(setup..).ok_or(Error::Truncated)?;
    memory.write(KERNEL, kernel)?;
    memory.check(KERNEL, header.number(at::INIT_BYTES, 4)?)?;

    let mut params = vec![0; 4096];
    let bytes = header.bytes()?;
    params[at::HEADER..at::HEADER + bytes.len()].copy_from_slice(bytes);
    params[at::LOADER] = UNDEFINED_LOADER;
    let longest = header.number(at::COMMAND_LINE_BYTES, 4)?;
    write_command_line(image, longest, memory)?;
    put(&mut params, at::COMMAND_LINE, &[COMMAND_LINE as u32]);
    if let Some(module) = &image.module {
        let limit = header.number(at::RAMDISK_MAX, 4)?.saturating_add(1);
        let first = KERNEL.saturating_add(header.number(at::INIT_BYTES, 4)?);
        let place = place_ram_disk(module, first..limit, memory)?;
        put(
            &mut params,
            at::RAMDISK,
            &[place as u32, module.len() as u32],
        );
    }
    write_map(&mut params, memory);
    memory.write(BOOT_PARAMS, &params)?;
    enter(memory, reset, CODE_32)
}

fn put(params: &mut [u8], at: usize, words: &[u32]) {
    let bytes = to_bytes(words);
    params[at..at + bytes.len()].copy_from_slice(&bytes);
}

fn write_command_line(image: &Image, longest: u64, memory: &Memory<'_>) -> Result<(), Error> {
    let mut line = image.command_line.clone().into_bytes();
    if line.len() as u64 > longest {
        return Err(Error::TooLarge);
    }
    line.push(0);
    memory.write(COMMAND_LINE, &line)
}

/// Puts the RAM disk as high as the kernel allows it, within `room`.
fn place_ram_disk(module: &[u8], room: Range<u64>, memory: &Memory<'_>) -> Result<u64, Error> {
    let top = memory.bytes.min(room.end);
    let place = top
        .checked_sub(module.len() as u64)
        .ok_or(Error::TooLarge)?
        & !0xfff;
    if place < room.start {
        return Err(Error::TooLarge);
    }
    memory.write(place, module)?;
    Ok(place)
}

/// Returns the memory map: ranges and their E820 types.
pub(super) fn memory_map(memory: &Memory<'_>) -> Vec<(Range<u64>, u32)> {
    let mut ranges = vec![
        (0..LOW_END, E820_RAM),
        (LOW_END..0xa_0000, E820_RESERVED),
        (BIOS, E820_RESERVED),
        (0x10_0000..memory.bytes, E820_RAM),
        (1 << 32..(1 << 32) + memory.high_bytes, E820_RAM),
    ];
    ranges.retain(|(range, _)| !range.is_empty());
    ranges
}

/// Writes the E820 map.
fn write_map(params: &mut [u8], memory: &Memory<'_>) {
    let mut count = 0;
    for (range, kind) in memory_map(memory) {
        let place = at::E820 + 20 * count;
        let (base, length) = (range.start, range.end - range.start);
        let words = [
            base as u32,
            (base >> 32) as u32,
            length as u32,
            (length >> 32) as u32,
            kind,
        ];
        put(params, place, &words);
        count += 1;
    }
    params[at::E820_ENTRIES] = count as u8;
}

/// The state at the 32-bit entry point: flat segments 10H (code) and 18H (data), ESI at the
/// parameters.
fn enter(memory: &Memory<'_>, reset: &ArchState, code: u64) -> Result<Entry, Error> {
    let descriptors = [0, 0, code, 0x00cf_9300_0000_ffff];
    let gdt: Vec<u8> = descriptors.iter().flat_map(|d| d.to_le_bytes()).collect();
    memory.write(GDT, &gdt)?;
    let mut state = protected_mode(reset, KERNEL as u32);
    (state.gdtr.base, state.gdtr.limit) = (GDT, gdt.len() as u16 - 1);
    use SegmentRegister::{Cs, Ds, Es, Fs, Gs, Ss};
    state.segment_mut(Cs).selector = 0x10;
    for register in [Es, Ss, Ds, Fs, Gs] {
        state.segment_mut(register).selector = 0x18;
    }
    let mut registers = [0; 16];
    registers[6] = BOOT_PARAMS;
    Ok(Entry { state, registers })
}

/// Enters an ELF64 file that is loaded: 64-bit mode, the first 4 GiB mapped to themselves, flat
/// segments, RSI at the parameters, which are a boot loader's with a protocol of version 2.12.
pub(super) fn enter_loaded(
    image: &Image,
    memory: &Memory<'_>,
    loaded: &Loaded,
    reset: &ArchState,
) -> Result<Entry, Error> {
    let low = |range: &Range<u64>| range.start < LOW_END;
    if loaded.used.iter().any(low) {
        return Err(Error::Unsupported("ELF64 files for memory below 1 MiB"));
    }
    let mut params = vec![0; 4096];
    params[at::MAGIC..at::MAGIC + 4].copy_from_slice(b"HdrS");
    put(&mut params, at::VERSION, &[0x20c]);
    params[at::LOADER] = UNDEFINED_LOADER;
    params[at::LOAD_FLAGS] = LOADED_HIGH as u8;
    write_command_line(image, 0x7ff, memory)?;
    put(&mut params, at::COMMAND_LINE, &[COMMAND_LINE as u32]);
    if let Some(module) = &image.module {
        let first = loaded.used.iter().map(|r| r.end).max().unwrap_or(KERNEL);
        let place = place_ram_disk(module, first..1 << 32, memory)?;
        let words = [place as u32, module.len() as u32];
        put(&mut params, at::RAMDISK, &words);
    }
    write_map(&mut params, memory);
    memory.write(BOOT_PARAMS, &params)?;
    write_page_tables(memory)?;
    let mut entry = enter(memory, reset, CODE_64)?;
    entry.state.rip = u64::from(loaded.entry);
    entry.state.cr3 = PAGE_TABLES;
    entry.state.cr4 |= Cr4::PAE;
    entry.state.efer |= Efer::LME | Efer::LMA;
    entry.state.cr0 |= Cr0::PG;
    entry.state.segment_mut(SegmentRegister::Cs).access = AccessRights(0xa09b);
    Ok(entry)
}

/// Writes a PML4 table, a page-directory-pointer table, and four page directories of 2-MiB pages.
fn write_page_tables(memory: &Memory<'_>) -> Result<(), Error> {
    const TABLE: u64 = 3;
    const PAGE: u64 = 0x83;
    let mut entries = vec![0_u64; 2 * 512];
    entries[0] = (PAGE_TABLES + 0x1000) | TABLE;
    for n in 0..4 {
        entries[512 + n as usize] = (PAGE_TABLES + 0x2000 + 0x1000 * n) | TABLE;
    }
    entries.extend((0..4 * 512).map(|n| n << 21 | PAGE));
    let bytes: Vec<u8> = entries.iter().flat_map(|e| e.to_le_bytes()).collect();
    memory.write(PAGE_TABLES, &bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmx_model::addr::Hpa;
    use x86_interp::mem::phys::{OwnedRam, PhysMap};

    /// A file that looks like a kernel of one setup sector, and three bytes.
    fn kernel() -> Vec<u8> {
        let mut bytes = vec![0; 2 * 512];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(at::SETUP_SECTORS, &[1]);
        put(at::JUMP, &[0x66]);
        put(at::MAGIC, b"HdrS");
        put(at::VERSION, &[0x0f, 0x02]);
        put(at::LOAD_FLAGS, &[1]);
        put(at::RAMDISK_MAX, &0x7fff_ffff_u32.to_le_bytes());
        put(at::COMMAND_LINE_BYTES, &[16]);
        put(at::INIT_BYTES, &0x1000_u32.to_le_bytes());
        bytes.extend([0x90, 0x90, 0xf4]);
        bytes
    }

    fn try_load(image: &Image) -> Result<(Entry, std::sync::Arc<PhysMap>), Error> {
        let phys = PhysMap::new();
        let ram = std::sync::Arc::new(OwnedRam::new(512).expect("2 MiB"));
        phys.add_owned(Hpa(0), ram).expect("an empty map");
        let memory = Memory {
            phys: &phys,
            bytes: 2 << 20,
            high_bytes: 0,
        };
        let entry = super::load(image, &memory, &ArchState::default())?;
        Ok((entry, phys))
    }

    fn word(phys: &PhysMap, at: u64) -> u32 {
        let mut bytes = [0; 4];
        phys.read_bytes(Hpa(at), &mut bytes);
        u32::from_le_bytes(bytes)
    }

    #[test]
    fn a_kernel_gets_its_parts_and_parameters() {
        let image = Image {
            bytes: kernel(),
            command_line: "quiet".to_owned(),
            module: Some(vec![7; 5000]),
        };
        let (entry, phys) = try_load(&image).expect("a good kernel");
        assert_eq!((entry.state.rip, entry.registers[6]), (KERNEL, BOOT_PARAMS));
        assert_eq!(word(&phys, KERNEL) & 0xff_ffff, 0xf4_9090);
        let param = |at: usize| word(&phys, BOOT_PARAMS + at as u64);
        assert_eq!(param(at::RAMDISK), 0x1f_e000);
        assert_eq!(param(at::RAMDISK + 4), 5000);
        assert_eq!(word(&phys, 0x1f_e000), 0x0707_0707);
        assert_eq!(
            word(&phys, u64::from(param(at::COMMAND_LINE))).to_le_bytes(),
            *b"quie"
        );
        assert_eq!(param(at::E820_ENTRIES) & 0xff, 4);
        assert_eq!(param(at::E820 + 60), 0x10_0000);
        assert_eq!(param(at::E820 + 68), 0x10_0000);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let with = |change: fn(&mut Image)| {
            let mut image = Image {
                bytes: kernel(),
                ..Image::default()
            };
            change(&mut image);
            try_load(&image).map(drop).err()
        };
        assert_eq!(with(|_| ()), None);
        for (change, error) in [
            (
                (|i| i.command_line = "x".repeat(17)) as fn(&mut Image),
                Error::TooLarge,
            ),
            (|i| i.module = Some(vec![0; 1 << 20]), Error::TooLarge),
            (|i| i.bytes.truncate(1023), Error::Truncated),
            (|i| i.bytes.truncate(0x240), Error::Truncated),
            (|i| i.bytes[at::INIT_BYTES + 3] = 1, Error::TooLarge),
            (
                |i| i.bytes[at::LOAD_FLAGS] = 0,
                Error::Unsupported("Linux zImage files"),
            ),
        ] {
            assert_eq!(with(change), Some(error));
        }
    }
}
