//! ELF files (System V ABI, "Object Files"): the program headers, as far as loading needs them.

use core::ops::Range;

use super::{Error, Memory};

const PT_LOAD: u64 = 1;
const PT_NOTE: u64 = 4;
/// Of the owner "Xen": the physical address of the PVH entry point.
const XEN_ELFNOTE_PHYS32_ENTRY: u64 = 18;

/// Positions of the fields that differ between the classes.
struct Layout {
    is_64: bool,
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn number(&self, at: u64, size: usize) -> Result<u64, Error> {
        let at = usize::try_from(at).map_err(|_| Error::Truncated)?;
        let end = at.checked_add(size).ok_or(Error::Truncated)?;
        let bytes = self.0.get(at..end).ok_or(Error::Truncated)?;
        Ok(bytes.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b)))
    }
}

/// A piece of the file.
struct Segment {
    kind: u64,
    offset: u64,
    physical: u64,
    file_bytes: u64,
    memory_bytes: u64,
}

impl Layout {
    /// Reads a word of the class's size: by its place in ELF32 and ELF64.
    fn word(&self, file: &Reader<'_>, base: u64, at32: u64, at64: u64) -> Result<u64, Error> {
        let (at, size) = if self.is_64 { (at64, 8) } else { (at32, 4) };
        file.number(base.checked_add(at).ok_or(Error::Truncated)?, size)
    }

    fn half(&self, file: &Reader<'_>, at32: u64, at64: u64) -> Result<u64, Error> {
        file.number(if self.is_64 { at64 } else { at32 }, 2)
    }

    fn segment(&self, file: &Reader<'_>, at: u64) -> Result<Segment, Error> {
        Ok(Segment {
            kind: file.number(at, 4)?,
            offset: self.word(file, at, 4, 8)?,
            physical: self.word(file, at, 12, 24)?,
            file_bytes: self.word(file, at, 16, 32)?,
            memory_bytes: self.word(file, at, 20, 40)?,
        })
    }
}

/// What was loaded.
pub(super) struct Loaded {
    /// The entry point.
    pub(super) entry: u32,
    /// Whether it is an ELF64 file.
    pub(super) is_64: bool,
    /// The PVH entry point.
    pub(super) pvh_entry: Option<u32>,
    /// The memory of the segments.
    pub(super) used: Vec<Range<u64>>,
}

/// Loads the segments.
pub(super) fn load(bytes: &[u8], memory: &Memory<'_>) -> Result<Loaded, Error> {
    let file = Reader(bytes);
    let layout = Layout {
        is_64: file.number(4, 1)? == 2,
    };
    let headers = layout.word(&file, 0, 28, 32)?;
    let size = layout.half(&file, 42, 54)?;
    let mut used = Vec::new();
    let mut pvh_entry = None;
    for n in 0..layout.half(&file, 44, 56)? {
        let at = headers.checked_add(n * size).ok_or(Error::Truncated)?;
        let segment = layout.segment(&file, at)?;
        match segment.kind {
            PT_LOAD => {
                place(bytes, &segment, memory)?;
                let length = segment.memory_bytes.max(segment.file_bytes);
                used.push(segment.physical..segment.physical.saturating_add(length));
            }
            PT_NOTE => pvh_entry = pvh_entry.or(find_pvh_entry(&file, &segment)?),
            _ => {}
        }
    }
    let entry = u32::try_from(layout.word(&file, 0, 24, 24)?).map_err(|_| Error::TooLarge)?;
    Ok(Loaded {
        entry,
        is_64: layout.is_64,
        pvh_entry,
        used,
    })
}

/// Looks through the notes of a segment.
fn find_pvh_entry(file: &Reader<'_>, segment: &Segment) -> Result<Option<u32>, Error> {
    let end = segment.offset.saturating_add(segment.file_bytes);
    let mut at = segment.offset;
    while at.saturating_add(12) <= end {
        let (name_bytes, bytes) = (file.number(at, 4)?, file.number(at + 4, 4)?);
        let kind = file.number(at + 8, 4)?;
        let name = at + 12;
        let content = name.saturating_add(name_bytes.next_multiple_of(4));
        let is_xen =
            name_bytes == 4 && file.number(name, 4)? == u64::from(u32::from_le_bytes(*b"Xen\0"));
        if is_xen && kind == XEN_ELFNOTE_PHYS32_ENTRY {
            return Ok(Some(file.number(content, 4)? as u32));
        }
        at = content.saturating_add(bytes.next_multiple_of(4));
    }
    Ok(None)
}

/// Writes a segment; memory behind it is zero already.
fn place(bytes: &[u8], segment: &Segment, memory: &Memory<'_>) -> Result<(), Error> {
    memory.check(
        segment.physical,
        segment.memory_bytes.max(segment.file_bytes),
    )?;
    let start = usize::try_from(segment.offset).map_err(|_| Error::Truncated)?;
    let length = usize::try_from(segment.file_bytes).map_err(|_| Error::Truncated)?;
    let end = start.checked_add(length).ok_or(Error::Truncated)?;
    memory.write(
        segment.physical,
        bytes.get(start..end).ok_or(Error::Truncated)?,
    )
}
