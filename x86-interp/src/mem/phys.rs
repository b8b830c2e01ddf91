//! The synthetic physical address space: numbers that are the same in every run, resolved to host
//! memory only when a TLB entry is filled.
//!
//! A [`PhysMap`] is shared by all processors of a machine (or all of KVM's logical processors).
//! An address that lies in no region belongs to the [`crate::bus::Bus`].
#![expect(unsafe_code, reason = "guest RAM is host memory behind raw pointers")]

use std::alloc::Layout;
use std::any::Any;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicI64, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock, Weak};

use vmx_model::addr::Hpa;
use vmx_model::memory::PhysicalMemory;

use super::code::{CodePage, CodeTable};
use super::tlb::{read_host, write_host};

const PAGE: u64 = 4096;

/// Zeroed, page-aligned host memory that this crate owns.
#[derive(Debug)]
pub struct OwnedRam {
    pointer: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the memory is plain bytes without thread affinity; all accesses through `PhysMap` are
// volatile or atomic.
unsafe impl Send for OwnedRam {}
// SAFETY: as above.
unsafe impl Sync for OwnedRam {}

impl OwnedRam {
    /// Allocates `pages` pages of 4 KiB; `None` if `pages` is 0, too large, or memory is short.
    #[must_use]
    pub fn new(pages: usize) -> Option<Self> {
        let bytes = pages.checked_mul(PAGE as usize).filter(|&b| b != 0)?;
        let layout = Layout::from_size_align(bytes, PAGE as usize).ok()?;
        // SAFETY: the layout has a non-zero size.
        let pointer = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) })?;
        Some(Self { pointer, layout })
    }

    /// Returns the address of the first byte.
    #[must_use]
    pub fn as_ptr(&self) -> NonNull<u8> {
        self.pointer
    }

    /// Returns the size in bytes.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.layout.size()
    }
}

impl Drop for OwnedRam {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { std::alloc::dealloc(self.pointer.as_ptr(), self.layout) }
    }
}

/// Whether the processor may write a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// RAM.
    ReadWrite,
    /// ROM: writes go to the bus.
    ReadOnly,
}

/// A page-aligned piece of the physical address space that is backed by host memory.
#[derive(Clone, Debug)]
pub struct Region {
    base: Hpa,
    bytes: u64,
    host: NonNull<u8>,
    protection: Protection,
    code: Arc<CodeTable>,
    _owner: Option<Arc<dyn Any + Send + Sync>>,
}

// SAFETY: a region is a description; the memory behind it is accessed by volatile and atomic
// operations only.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

/// A page of host memory behind a physical page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostPage {
    /// The first byte of the page.
    pub host: NonNull<u8>,
    /// Whether the processor may write it.
    pub protection: Protection,
}

/// Why a region was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RegionError {
    /// Address or size is not a multiple of 4096, or the size is 0.
    Unaligned,
    /// The region wraps around or overlaps another.
    Overlap,
}

impl core::fmt::Display for RegionError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Unaligned => "region is not page-aligned",
            Self::Overlap => "region wraps around or overlaps another one",
        })
    }
}

impl core::error::Error for RegionError {}

/// Returns the code table for a range of host memory. Regions over the same memory share one: a
/// table that covers only a part of what they share is replaced.
fn code_table(regions: &mut [Region], host: core::ops::Range<u64>) -> Arc<CodeTable> {
    let overlaps = |t: &CodeTable, r: &core::ops::Range<u64>| {
        t.range().start < r.end && r.start < t.range().end
    };
    let mut range = host.clone();
    let mut count = 0;
    let mut found = None;
    for region in regions.iter().filter(|r| overlaps(&r.code, &host)) {
        let table = region.code.range();
        range = range.start.min(table.start)..range.end.max(table.end);
        if found.is_none_or(|f: &Arc<CodeTable>| !Arc::ptr_eq(f, &region.code)) {
            count += 1;
        }
        found = Some(&region.code);
    }
    if let (Some(table), 1) = (found, count)
        && table.range() == range
    {
        return Arc::clone(table);
    }
    let table = CodeTable::new(range.start, range.end - range.start);
    for region in regions.iter_mut().filter(|r| overlaps(&r.code, &range)) {
        region.code = Arc::clone(&table);
    }
    table
}

/// The regions as a processor last saw them.
#[derive(Clone, Debug)]
pub(crate) struct View {
    generation: u64,
    regions: Arc<[Region]>,
}

/// A page of RAM or ROM.
#[derive(Clone, Copy)]
pub(crate) struct RamPage<'a> {
    pub(crate) host: NonNull<u8>,
    pub(crate) protection: Protection,
    pub(crate) code: &'a CodePage,
}

impl View {
    /// Returns the generation of the map when this was taken.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// Returns the page that holds `address`.
    pub(crate) fn page(&self, address: Hpa) -> Option<RamPage<'_>> {
        let page = address.page().0;
        let index = self.regions.partition_point(|r| r.base.0 <= page);
        let region = &self.regions[index.checked_sub(1)?];
        let offset = page - region.base.0;
        if offset >= region.bytes {
            return None;
        }
        // SAFETY: `offset` lies inside the region, whose memory is one allocation or mapping.
        let host = unsafe { region.host.add(offset as usize) };
        Some(RamPage {
            host,
            protection: region.protection,
            code: region.code.page(host.as_ptr() as u64),
        })
    }
}

impl RamPage<'_> {
    /// Reads at `offset`; the bytes lie inside the page.
    pub(crate) fn read(&self, offset: u64, bytes: &mut [u8]) {
        let at = self.place(offset, bytes.len());
        let mut done = 0;
        while done < bytes.len() {
            let size = piece(bytes.len() - done);
            // SAFETY: inside the page, which the map keeps valid.
            let word = unsafe { read_sized(at + done as u64, size) };
            bytes[done..done + size].copy_from_slice(&word.to_le_bytes()[..size]);
            done += size;
        }
    }

    /// Whether the page holds these bytes at `offset`.
    pub(crate) fn holds(&self, offset: u64, bytes: &[u8]) -> bool {
        bytes.chunks(64).enumerate().all(|(n, part)| {
            let mut now = [0; 64];
            let now = &mut now[..part.len()];
            self.read(offset + 64 * n as u64, now);
            now == part
        })
    }

    /// Writes at `offset`; the bytes lie inside the page. Returns whether that changed code.
    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) -> bool {
        let at = self.place(offset, bytes.len());
        let mut done = 0;
        while done < bytes.len() {
            let size = piece(bytes.len() - done);
            let mut word = [0; 8];
            word[..size].copy_from_slice(&bytes[done..done + size]);
            // SAFETY: inside the page, which the map keeps valid.
            unsafe { write_sized(at + done as u64, size, u64::from_le_bytes(word)) };
            done += size;
        }
        self.code.written(offset, bytes.len())
    }

    fn place(&self, offset: u64, length: usize) -> u64 {
        assert!(
            (offset & 0xfff) as usize + length <= PAGE as usize,
            "the caller cuts accesses at page boundaries"
        );
        self.host.as_ptr() as u64 + (offset & 0xfff)
    }
}

/// Returns the largest access of 8, 4, 2 or 1 bytes that fits `left`.
pub(crate) fn piece(left: usize) -> usize {
    match left {
        8.. => 8,
        4..8 => 4,
        2..4 => 2,
        _ => 1,
    }
}

/// # Safety
/// `host` is readable for `size` bytes: 1, 2, 4 or 8.
unsafe fn read_sized(host: u64, size: usize) -> u64 {
    // SAFETY: the caller's.
    unsafe {
        match size {
            8 => read_host::<u64>(host),
            4 => u64::from(read_host::<u32>(host)),
            2 => u64::from(read_host::<u16>(host)),
            _ => u64::from(read_host::<u8>(host)),
        }
    }
}

/// # Safety
/// `host` is writable for `size` bytes: 1, 2, 4 or 8.
unsafe fn write_sized(host: u64, size: usize, value: u64) {
    // SAFETY: the caller's.
    unsafe {
        match size {
            8 => write_host(host, value),
            4 => write_host(host, value as u32),
            2 => write_host(host, value as u16),
            _ => write_host(host, value as u8),
        }
    }
}

/// The synthetic physical address space.
#[derive(Debug, Default)]
pub struct PhysMap {
    regions: RwLock<Arc<[Region]>>,
    generation: AtomicU64,
    attached: Mutex<Vec<Weak<AtomicI64>>>,
    code_marks: AtomicU64,
}

impl PhysMap {
    /// Returns an empty address space.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Adds RAM that the map owns.
    ///
    /// # Errors
    /// See [`RegionError`].
    pub fn add_owned(&self, base: Hpa, ram: Arc<OwnedRam>) -> Result<(), RegionError> {
        let (host, bytes) = (ram.as_ptr(), ram.len_bytes() as u64);
        self.insert(base, host, bytes, Protection::ReadWrite, Some(ram))
    }

    /// Adds memory that somebody else owns.
    ///
    /// # Errors
    /// See [`RegionError`].
    ///
    /// # Safety
    /// `host .. host + bytes` must stay reserved for this use until [`Self::remove`] has returned
    /// and every processor has noticed (see [`Self::generation`]). It need not be mapped all the
    /// time: see the crate's handling of host faults.
    pub unsafe fn add_foreign(
        &self,
        base: Hpa,
        host: NonNull<u8>,
        bytes: u64,
        protection: Protection,
    ) -> Result<(), RegionError> {
        self.insert(base, host, bytes, protection, None)
    }

    fn insert(
        &self,
        base: Hpa,
        host: NonNull<u8>,
        bytes: u64,
        protection: Protection,
        owner: Option<Arc<dyn Any + Send + Sync>>,
    ) -> Result<(), RegionError> {
        let at = host.as_ptr() as u64;
        if !(base.0 | bytes | at).is_multiple_of(PAGE) || bytes == 0 {
            return Err(RegionError::Unaligned);
        }
        let end = base.0.checked_add(bytes).ok_or(RegionError::Overlap)?;
        at.checked_add(bytes).ok_or(RegionError::Overlap)?;
        let mut guard = self.regions.write().unwrap_or_else(|e| e.into_inner());
        let hit = |r: &Region| r.base.0 < end && base.0 < r.base.0 + r.bytes;
        if guard.iter().any(hit) {
            return Err(RegionError::Overlap);
        }
        let mut all = guard.to_vec();
        let code = code_table(&mut all, at..at + bytes);
        all.push(Region {
            base,
            bytes,
            host,
            protection,
            code,
            _owner: owner,
        });
        all.sort_by_key(|r| r.base);
        *guard = all.into();
        self.generation.fetch_add(1, Ordering::Release);
        Ok(())
    }

    /// Adds a processor that uses this memory; `limit` is the word that calls its attention.
    pub(crate) fn attach(&self, limit: &Arc<AtomicI64>) {
        let mut all = self.attached.lock().unwrap_or_else(|e| e.into_inner());
        all.retain(|a| a.strong_count() != 0);
        all.push(Arc::downgrade(limit));
    }

    /// Tells the processors that a page which they may write fast holds decoded code now; `own` is
    /// the word of the one that decoded it. Returns [`Self::code_marks`] from before.
    pub(crate) fn code_marked(&self, own: &Arc<AtomicI64>, attention: i64) -> u64 {
        let before = self.code_marks.fetch_add(1, Ordering::SeqCst);
        let all = self.attached.lock().unwrap_or_else(|e| e.into_inner());
        for limit in all.iter().filter_map(Weak::upgrade) {
            if !Arc::ptr_eq(&limit, own) {
                limit.fetch_max(attention, Ordering::SeqCst);
            }
        }
        before
    }

    /// Returns a number that changes whenever a page gets its first decoded code.
    pub(crate) fn code_marks(&self) -> u64 {
        self.code_marks.load(Ordering::SeqCst)
    }

    /// Returns the present regions, for a processor to keep.
    pub(crate) fn view(&self) -> View {
        let guard = self.regions.read().unwrap_or_else(|e| e.into_inner());
        View {
            generation: self.generation(),
            regions: Arc::clone(&guard),
        }
    }

    /// Removes the region that starts at `base`; false if there is none.
    ///
    /// Processors may use the memory until they have noticed the new [`Self::generation`].
    pub fn remove(&self, base: Hpa) -> bool {
        let mut guard = self.regions.write().unwrap_or_else(|e| e.into_inner());
        let before = guard.len();
        let rest: Vec<_> = guard.iter().filter(|r| r.base != base).cloned().collect();
        let found = rest.len() != before;
        *guard = rest.into();
        self.generation.fetch_add(1, Ordering::Release);
        found
    }

    /// Returns a number that changes whenever a region is added or removed. A processor that has
    /// cached host pointers drops them when it sees a new one.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Returns the host page behind a physical page, if there is RAM or ROM.
    #[must_use]
    pub fn host_page(&self, address: Hpa) -> Option<HostPage> {
        let page = address.page().0;
        let guard = self.regions.read().unwrap_or_else(|e| e.into_inner());
        let index = guard.partition_point(|r| r.base.0 <= page).checked_sub(1)?;
        let region = &guard[index];
        let offset = page - region.base.0;
        if offset >= region.bytes {
            return None;
        }
        // SAFETY: `offset` lies inside the region, whose memory is one allocation or mapping.
        let host = unsafe { region.host.add(offset as usize) };
        Some(HostPage {
            host,
            protection: region.protection,
        })
    }

    fn for_each_byte(
        &self,
        address: Hpa,
        length: usize,
        mut f: impl FnMut(usize, Option<&AtomicU8>),
    ) {
        let mut done = 0;
        while done < length {
            let at = address.offset(done as u64);
            let part = (length - done).min((PAGE - at.page_offset()) as usize);
            let page = self.host_page(at);
            for i in 0..part {
                let byte = page.map(|p| {
                    // SAFETY: inside the page, which the map keeps valid; atomic access, so a
                    // concurrent guest access is no data race.
                    unsafe {
                        &*p.host
                            .as_ptr()
                            .add(at.page_offset() as usize + i)
                            .cast::<AtomicU8>()
                    }
                });
                f(done + i, byte);
            }
            done += part;
        }
    }

    /// Fills `bytes` from memory; all ones where there is none.
    pub fn read_bytes(&self, address: Hpa, bytes: &mut [u8]) {
        let length = bytes.len();
        self.for_each_byte(address, length, |i, byte| {
            bytes[i] = byte.map_or(0xff, |b| b.load(Ordering::Relaxed));
        });
    }

    /// Stores `bytes`; dropped where there is no memory. Does not honour [`Protection::ReadOnly`]:
    /// this is the host program's own access.
    pub fn write_bytes(&self, address: Hpa, bytes: &[u8]) {
        self.for_each_byte(address, bytes.len(), |i, byte| {
            if let Some(b) = byte {
                b.store(bytes[i], Ordering::Relaxed);
            }
        });
    }
}

/// Paging-structure entries: naturally aligned words of 4 or 8 bytes.
impl View {
    /// Reads an entry in one access; all ones where there is no memory.
    pub(crate) fn load_entry(&self, address: Hpa, bytes: usize) -> u64 {
        match self.entry(address, bytes) {
            Some((_, Entry::Four(word))) => u64::from(word.load(Ordering::Acquire)),
            Some((_, Entry::Eight(word))) => word.load(Ordering::Acquire),
            None => u64::MAX >> (64 - 8 * bytes.clamp(1, 8)),
        }
    }

    /// Replaces an entry if it still is `old`. A write to where there is no RAM is dropped.
    pub(crate) fn replace_entry(&self, address: Hpa, bytes: usize, old: u64, new: u64) -> Replaced {
        let Some((page, entry)) = self.entry(address, bytes) else {
            return Replaced::Done;
        };
        if page.protection == Protection::ReadOnly {
            return Replaced::Done;
        }
        let order = (Ordering::AcqRel, Ordering::Acquire);
        let is_done = match entry {
            Entry::Four(word) => word
                .compare_exchange(old as u32, new as u32, order.0, order.1)
                .is_ok(),
            Entry::Eight(word) => word.compare_exchange(old, new, order.0, order.1).is_ok(),
        };
        if !is_done {
            Replaced::Changed
        } else if page.code.written(address.page_offset(), bytes) {
            Replaced::DoneOverCode
        } else {
            Replaced::Done
        }
    }

    fn entry(&self, address: Hpa, bytes: usize) -> Option<(RamPage<'_>, Entry<'_>)> {
        let page = self.page(address)?;
        let offset = address.page_offset() as usize & !(bytes - 1);
        // SAFETY: `offset` is below the page's size.
        let at = unsafe { page.host.as_ptr().add(offset) };
        let entry = if bytes == 4 {
            // SAFETY: inside the page, which the map keeps valid; aligned to its size; atomic, so a
            // concurrent guest access is no data race.
            Entry::Four(unsafe { AtomicU32::from_ptr(at.cast()) })
        } else {
            // SAFETY: as above.
            Entry::Eight(unsafe { AtomicU64::from_ptr(at.cast()) })
        };
        Some((page, entry))
    }
}

/// What became of [`View::replace_entry`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Replaced {
    /// The entry was replaced.
    Done,
    /// The entry was replaced, and decoded code lay beside it.
    DoneOverCode,
    /// The entry was not the old one any more.
    Changed,
}

/// A paging-structure entry in memory.
enum Entry<'a> {
    Four(&'a AtomicU32),
    Eight(&'a AtomicU64),
}

impl PhysicalMemory for &PhysMap {
    fn read(&self, address: Hpa, bytes: &mut [u8]) {
        self.read_bytes(address, bytes);
    }

    fn write(&mut self, address: Hpa, bytes: &[u8]) {
        self.write_bytes(address, bytes);
    }
}
