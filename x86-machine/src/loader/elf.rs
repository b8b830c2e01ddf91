//! ELF files (System V ABI, "Object Files"): the program headers, as far as loading needs them.

use core::ops::Range;

use super::{Error, Memory};

const PT_LOAD: u32 = 1;

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

/// A piece of the file that is loaded.
struct Segment {
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

    fn segment(&self, file: &Reader<'_>, at: u64) -> Result<Option<Segment>, Error> {
        if file.number(at, 4)? != u64::from(PT_LOAD) {
            return Ok(None);
        }
        Ok(Some(Segment {
            offset: self.word(file, at, 4, 8)?,
            physical: self.word(file, at, 12, 24)?,
            file_bytes: self.word(file, at, 16, 32)?,
            memory_bytes: self.word(file, at, 20, 40)?,
        }))
    }
}

/// What was loaded.
pub(super) struct Loaded {
    /// The entry point.
    pub(super) entry: u32,
    /// The memory of the segments.
    pub(super) used: Vec<Range<u64>>,
}

/// Loads the segments.
pub(super) fn load(bytes: &[u8], memory: &Memory<'_>, is_multiboot: bool) -> Result<Loaded, Error> {
    let file = Reader(bytes);
    let layout = Layout {
        is_64: file.number(4, 1)? == 2,
    };
    if layout.is_64 && !is_multiboot {
        return Err(Error::Unsupported("ELF64 files without a multiboot header"));
    }
    let headers = layout.word(&file, 0, 28, 32)?;
    let size = layout.half(&file, 42, 54)?;
    let mut used = Vec::new();
    for n in 0..layout.half(&file, 44, 56)? {
        let at = headers.checked_add(n * size).ok_or(Error::Truncated)?;
        if let Some(segment) = layout.segment(&file, at)? {
            place(bytes, &segment, memory)?;
            let length = segment.memory_bytes.max(segment.file_bytes);
            used.push(segment.physical..segment.physical.saturating_add(length));
        }
    }
    let entry = u32::try_from(layout.word(&file, 0, 24, 24)?).map_err(|_| Error::TooLarge)?;
    Ok(Loaded { entry, used })
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
