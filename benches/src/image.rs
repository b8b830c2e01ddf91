//! A bootable image of a program: the low memory of a machine, and a boot sector for machines that
//! insist on a BIOS.
//!
//! | physical address | what |
//! |---|---|
//! | [`Image::BASE`] | global descriptor table: 08H 64-bit code, 10H data, 18H 32-bit code |
//! | +1000H | page tables: the first 32 MiB mapped one to one by 4-KiB pages |
//! | [`Image::ENTRY`] | the stub: marks begin, calls the program, marks end, prints RAX, ends |
//! | [`Image::ENTRY`] + 400H | the program |
//! | below [`Image::STACK`] | stack |
//! | [`Image::DATA`] | the program's data area |
//!
//! The stub writes [`BEGIN`] and [`END`] to [`MARK_PORT`] around the program, then 16 hexadecimal
//! digits of the result and a line feed; then it asks QEMU (port F4H), then Bochs (port 8900H) to
//! end, and halts.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use crate::programs::{Bits, Group, Program};

/// The debug port of Bochs and QEMU.
pub const MARK_PORT: u16 = 0xe9;
/// Written before the program begins.
pub const BEGIN: u8 = b'<';
/// Written when the program has ended.
pub const END: u8 = b'>';

/// A program ready to boot.
#[derive(Clone, Debug)]
pub struct Image {
    /// The bytes from [`Image::BASE`] on.
    pub bytes: Vec<u8>,
    /// Mode in which [`Image::ENTRY`] is to be entered.
    pub bits: Bits,
}

impl Image {
    /// Where [`Image::bytes`] belongs.
    pub const BASE: u64 = 0x10000;
    /// Page-map level 4 table.
    pub const CR3: u64 = Self::BASE + 0x1000;
    /// First instruction.
    pub const ENTRY: u64 = 0x30000;
    /// Initial stack pointer.
    pub const STACK: u64 = 0x80000;
    /// The data area.
    pub const DATA: u64 = 0x40_0000;
    /// RAM that a machine needs.
    pub const RAM_BYTES: u64 = 32 << 20;
    /// The global descriptor table: null, 64-bit code, data, 32-bit code.
    pub const GDT: [u64; 4] = [
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00cf_9b00_0000_ffff,
    ];

    /// Builds the image of `program` with a number of iterations.
    ///
    /// # Panics
    /// Never: a test builds the image of every program.
    #[must_use]
    pub fn new(program: &Program, iterations: u32) -> Self {
        let mut bytes = vec![0; (Self::ENTRY - Self::BASE) as usize];
        for (i, descriptor) in Self::GDT.iter().enumerate() {
            bytes[8 * i..8 * i + 8].copy_from_slice(&descriptor.to_le_bytes());
        }
        fill_page_tables(&mut bytes);
        let bitness = if program.bits == Bits::Long64 { 64 } else { 32 };
        let mut a = CodeAssembler::new(bitness).expect("32 and 64 are bitnesses");
        let target = Self::ENTRY + 0x400;
        emit_stub(&mut a, program, iterations, target).expect("a test builds every image");
        let stub = a.assemble(Self::ENTRY).expect("a test builds every image");
        bytes.extend(stub);
        bytes.resize((target - Self::BASE) as usize, 0x90);
        bytes.extend(program.assemble(target));
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        Self {
            bytes,
            bits: program.bits,
        }
    }

    /// Returns a disk image: a boot sector that loads the image and enters it, then the image.
    ///
    /// # Panics
    /// Never: a test builds the disk of every program.
    #[must_use]
    pub fn disk(&self) -> Vec<u8> {
        let sectors = self.bytes.len() / 512;
        let mut disk = boot_sector(self.bits, sectors as u16).expect("a test builds every disk");
        assert!(disk.len() <= 510, "the boot sector fits a sector");
        disk.resize(510, 0);
        disk.extend([0x55, 0xaa]);
        disk.extend(&self.bytes);
        // 20 cylinders, 16 heads, 63 sectors: a geometry that every BIOS takes.
        disk.resize(20 * 16 * 63 * 512, 0);
        disk
    }
}

/// PML4, PDPT, PD, 16 page tables.
fn fill_page_tables(bytes: &mut [u8]) {
    let mut put = |address: u64, value: u64| {
        let at = (address - Image::BASE) as usize;
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
    };
    put(Image::CR3, (Image::CR3 + 0x1000) | 7);
    put(Image::CR3 + 0x1000, (Image::CR3 + 0x2000) | 7);
    for table in 0..16 {
        let at = Image::CR3 + 0x3000 + table * 0x1000;
        put(Image::CR3 + 0x2000 + table * 8, at | 7);
        for page in 0..512 {
            put(at + page * 8, ((table * 512 + page) << 12) | 7);
        }
    }
}

fn emit_stub(
    a: &mut CodeAssembler,
    program: &Program,
    iterations: u32,
    target: u64,
) -> Result<(), IcedError> {
    let bits = program.bits;
    let mut digit = a.create_label();
    let mut letter = a.create_label();
    let mut halt = a.create_label();
    a.mov(eax, 0x10)?;
    for segment in [ds, es, ss, fs, gs] {
        a.mov(segment, eax)?;
    }
    a.mov(esp, Image::STACK as u32)?;
    if program.group.is_floating_point() {
        emit_floating_point(a)?;
    }
    if program.group == Group::Avx {
        emit_avx(a)?;
    }
    a.mov(edi, iterations)?;
    a.mov(esi, Image::DATA as u32)?;
    a.mov(al, i32::from(BEGIN))?;
    a.out(i32::from(MARK_PORT), al)?;
    a.call(target)?;
    if bits == Bits::Long64 {
        a.mov(r8, rax)?;
    } else {
        a.mov(ebx, eax)?;
    }
    a.mov(al, i32::from(END))?;
    a.out(i32::from(MARK_PORT), al)?;
    a.mov(ecx, 16)?;
    a.set_label(&mut digit)?;
    if bits == Bits::Long64 {
        a.rol(r8, 4)?;
        a.mov(eax, r8d)?;
        a.and(eax, 15)?;
    } else {
        // The upper eight digits of a 32-bit result are 0.
        a.xor(eax, eax)?;
        a.cmp(ecx, 8)?;
        a.ja(letter)?;
        a.rol(ebx, 4)?;
        a.mov(eax, ebx)?;
        a.and(eax, 15)?;
    }
    a.set_label(&mut letter)?;
    a.add(al, i32::from(b'0'))?;
    let mut small = a.create_label();
    a.cmp(al, i32::from(b'9'))?;
    a.jbe(small)?;
    a.add(al, i32::from(b'a' - b'9' - 1))?;
    a.set_label(&mut small)?;
    a.out(i32::from(MARK_PORT), al)?;
    a.dec(ecx)?;
    a.jnz(digit)?;
    a.mov(al, i32::from(b'\n'))?;
    a.out(i32::from(MARK_PORT), al)?;
    emit_end(a)?;
    a.set_label(&mut halt)?;
    a.hlt()?;
    a.jmp(halt)
}

/// Switches SSE and the x87 on, in 64-bit mode.
fn emit_floating_point(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(rax, cr4)?;
    // OSFXSR, OSXMMEXCPT.
    a.or(rax, 0x600)?;
    a.mov(cr4, rax)?;
    a.mov(rax, cr0)?;
    // Not EM, not TS, but MP.
    a.and(rax, !0xc)?;
    a.or(rax, 2)?;
    a.mov(cr0, rax)?;
    a.fninit()
}

/// Switches AVX on, in 64-bit mode.
fn emit_avx(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(rax, cr4)?;
    // OSXSAVE.
    a.or(rax, 0x4_0000)?;
    a.mov(cr4, rax)?;
    a.xor(ecx, ecx)?;
    a.xor(edx, edx)?;
    // x87, SSE and AVX.
    a.mov(eax, 7)?;
    a.xsetbv()
}

/// Asks QEMU's debug-exit device, then Bochs's shutdown port, to end the machine.
fn emit_end(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.xor(eax, eax)?;
    a.out(0xf4, eax)?;
    a.mov(edx, 0x8900)?;
    for byte in b"Shutdown" {
        a.mov(al, i32::from(*byte))?;
        a.out(dx, al)?;
    }
    Ok(())
}

/// Where the boot sector keeps its disk address packet.
const PACKET: i32 = 0x7d80;
/// Where the boot sector keeps the operand of LGDT.
const GDTR: i32 = 0x7da0;

/// Real-mode code at 7C00H: reads the sectors behind it to [`Image::BASE`] and enters the image.
fn boot_sector(bits: Bits, sectors: u16) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(16)?;
    let mut more = a.create_label();
    a.xor(ax, ax)?;
    a.mov(ds, eax)?;
    a.mov(es, eax)?;
    a.mov(ss, eax)?;
    a.mov(sp, 0x7c00)?;
    a.mov(cx, i32::from(sectors.div_ceil(32)))?;
    a.set_label(&mut more)?;
    a.push(cx)?;
    a.mov(si, PACKET)?;
    a.mov(ah, 0x42)?;
    a.int(0x13)?;
    a.pop(cx)?;
    // 32 sectors further on the disk, 16 KiB further in memory.
    a.mov(si, PACKET)?;
    a.add(word_ptr(si + 8), 32)?;
    a.add(word_ptr(si + 6), 0x400)?;
    a.loop_(more)?;
    a.cli()?;
    a.in_(al, 0x92)?;
    a.or(al, 2)?;
    a.out(0x92, al)?;
    a.mov(si, GDTR)?;
    a.lgdt(fword_ptr(si))?;
    if bits == Bits::Long64 {
        a.mov(eax, cr4)?;
        a.or(eax, 0x20)?;
        a.mov(cr4, eax)?;
        a.mov(eax, Image::CR3 as u32)?;
        a.mov(cr3, eax)?;
        a.mov(ecx, 0xc000_0080u32)?;
        a.rdmsr()?;
        a.or(eax, 0x100)?;
        a.wrmsr()?;
        a.mov(eax, cr0)?;
        a.or(eax, 0x8000_0001u32)?;
        a.mov(cr0, eax)?;
        emit_far_jump(&mut a, 0x08)?;
    } else {
        a.mov(eax, cr0)?;
        a.or(eax, 1)?;
        a.mov(cr0, eax)?;
        emit_far_jump(&mut a, 0x18)?;
    }
    let mut sector = a.assemble(0x7c00)?;
    // Disk address packet: size, sectors, offset, segment, 64-bit block.
    let packet = [0x10, 32, 0, (Image::BASE >> 4) as u16, 1, 0, 0, 0];
    let gdtr = [31, Image::BASE as u16, (Image::BASE >> 16) as u16];
    for (at, words) in [(PACKET, packet.as_slice()), (GDTR, &gdtr)] {
        sector.resize((at - 0x7c00) as usize, 0);
        sector.extend(words.iter().flat_map(|w| w.to_le_bytes()));
    }
    Ok(sector)
}

/// JMP ptr16:32 to the entry.
fn emit_far_jump(a: &mut CodeAssembler, selector: u16) -> Result<(), IcedError> {
    let mut bytes = vec![0x66, 0xea];
    bytes.extend((Image::ENTRY as u32).to_le_bytes());
    bytes.extend(selector.to_le_bytes());
    a.db(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::programs::PROGRAMS;

    #[test]
    fn every_program_has_an_image_and_a_disk() {
        for program in PROGRAMS {
            let image = Image::new(program, 1);
            assert_eq!(image.disk()[512..512 + image.bytes.len()], image.bytes);
            assert!(Image::BASE + image.bytes.len() as u64 <= Image::STACK - 0x1000);
        }
    }
}
