//! The synthetic physical address space: numbers that are the same in every run, resolved to host
//! memory only when a TLB entry is filled.
//!
//! A [`PhysMap`] is shared by all processors of a machine (or all of KVM's logical processors).
//! An address that lies in no region belongs to the [`crate::bus::Bus`].
#![expect(unsafe_code, reason = "guest RAM is host memory behind raw pointers")]

mod owned;

use std::any::Any;
use std::cell::Cell;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock, Weak};

use vmx_model::addr::Hpa;
use vmx_model::memory::PhysicalMemory;

pub use self::owned::OwnedRam;
use super::code::{CodePage, CodeTable};
use super::guard;

const PAGE: u64 = 4096;

/// From how many bytes on a read is worth a string instruction.
const BULK: usize = 128;

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

/// Number of pages whose host address a [`View`] remembers.
const REMEMBERED: usize = 256;

/// A page number that no page has.
const NO_PAGE: u64 = u64::MAX;

/// The regions as a processor last saw them.
#[derive(Clone, Debug)]
pub(crate) struct View {
    generation: u64,
    regions: Arc<[Region]>,
    /// Pages of paging structures and where they are, found by the page number's low bits.
    remembered: Box<[Cell<(u64, u64)>; REMEMBERED]>,
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
    /// Reads at `offset`; the bytes lie inside the page. False if the host memory has vanished.
    #[must_use]
    pub(crate) fn read(&self, offset: u64, bytes: &mut [u8]) -> bool {
        let at = self.place(offset, bytes.len());
        let mut done = 0;
        if bytes.len() >= BULK {
            done = bytes.len() / 8 * 8;
            let to = bytes.as_mut_ptr() as u64;
            // SAFETY: from inside the page, into the buffer.
            if !unsafe { guard::copy_words(to, at, done as u64 / 8) } {
                return false;
            }
        }
        while done < bytes.len() {
            let size = piece(bytes.len() - done);
            // SAFETY: inside the page.
            let Some(word) = (unsafe { load_sized(at + done as u64, size) }) else {
                return false;
            };
            bytes[done..done + size].copy_from_slice(&word.to_le_bytes()[..size]);
            done += size;
        }
        true
    }

    /// Whether the page holds these bytes at `offset`.
    pub(crate) fn holds(&self, offset: u64, bytes: &[u8]) -> bool {
        if bytes.len() <= 16 {
            return self.holds_few(offset, bytes);
        }
        bytes.chunks(64).enumerate().all(|(n, part)| {
            let mut now = [0; 64];
            let now = &mut now[..part.len()];
            self.read(offset + 64 * n as u64, now) && now == part
        })
    }

    fn holds_few(&self, offset: u64, bytes: &[u8]) -> bool {
        let at = self.place(offset, bytes.len());
        let mut done = 0;
        while done < bytes.len() {
            let size = piece(bytes.len() - done);
            let mut expected = [0; 8];
            expected[..size].copy_from_slice(&bytes[done..done + size]);
            // SAFETY: inside the page.
            let now = unsafe { load_sized(at + done as u64, size) };
            if now != Some(u64::from_le_bytes(expected)) {
                return false;
            }
            done += size;
        }
        true
    }

    /// Writes at `offset`; the bytes lie inside the page. Returns whether that changed code;
    /// `None` if the host memory has vanished, or cannot be written.
    #[must_use]
    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) -> Option<bool> {
        let at = self.place(offset, bytes.len());
        let mut done = 0;
        while done < bytes.len() {
            let size = piece(bytes.len() - done);
            let mut word = [0; 8];
            word[..size].copy_from_slice(&bytes[done..done + size]);
            // SAFETY: inside the page.
            if !unsafe { store_sized(at + done as u64, size, u64::from_le_bytes(word)) } {
                return None;
            }
            done += size;
        }
        Some(self.code.written(offset, bytes.len()))
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
/// `host` names `size` bytes of a region: 1, 2, 4 or 8.
unsafe fn load_sized(host: u64, size: usize) -> Option<u64> {
    // SAFETY: the caller's.
    unsafe {
        match size {
            8 => guard::load::<u64>(host),
            4 => guard::load::<u32>(host).map(u64::from),
            2 => guard::load::<u16>(host).map(u64::from),
            _ => guard::load::<u8>(host).map(u64::from),
        }
    }
}

/// # Safety
/// `host` names `size` bytes of a region: 1, 2, 4 or 8.
unsafe fn store_sized(host: u64, size: usize, value: u64) -> bool {
    // SAFETY: the caller's.
    unsafe {
        match size {
            8 => guard::store(host, value),
            4 => guard::store(host, value as u32),
            2 => guard::store(host, value as u16),
            _ => guard::store(host, value as u8),
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
            remembered: Box::new([const { Cell::new((NO_PAGE, 0)) }; REMEMBERED]),
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

    /// Calls `f` with the place of each byte in the buffer and in host memory.
    fn for_each_byte(&self, address: Hpa, length: usize, mut f: impl FnMut(usize, Option<u64>)) {
        let mut done = 0;
        while done < length {
            let at = address.offset(done as u64);
            let part = (length - done).min((PAGE - at.page_offset()) as usize);
            let page = self.host_page(at);
            for i in 0..part {
                let host = page.map(|p| p.host.as_ptr() as u64 + at.page_offset() + i as u64);
                f(done + i, host);
            }
            done += part;
        }
    }

    /// Fills `bytes` from memory; all ones where there is none, or its host memory has vanished.
    pub fn read_bytes(&self, address: Hpa, bytes: &mut [u8]) {
        let length = bytes.len();
        self.for_each_byte(address, length, |i, host| {
            // SAFETY: inside a page of a region.
            bytes[i] = host
                .and_then(|at| unsafe { guard::load(at) })
                .unwrap_or(0xff);
        });
    }

    /// Stores `bytes`; dropped where there is no memory, or it cannot be written. Does not honour
    /// [`Protection::ReadOnly`]: this is the host program's own access.
    pub fn write_bytes(&self, address: Hpa, bytes: &[u8]) {
        self.for_each_byte(address, bytes.len(), |i, host| {
            if let Some(at) = host {
                // SAFETY: inside a page of a region.
                unsafe { guard::store(at, bytes[i]) };
            }
        });
    }
}

/// Paging-structure entries: naturally aligned words of 4 or 8 bytes.
impl View {
    /// Reads an entry in one access; all ones where there is no memory. `None` if its host memory
    /// has vanished.
    pub(crate) fn load_entry(&self, address: Hpa, bytes: usize) -> Option<u64> {
        let number = address.0 >> 12;
        let slot = &self.remembered[number as usize % REMEMBERED];
        let (remembered, mut host) = slot.get();
        if remembered != number {
            let Some(page) = self.page(address) else {
                return Some(u64::MAX >> (64 - 8 * bytes.clamp(1, 8)));
            };
            host = page.host.as_ptr() as u64;
            slot.set((number, host));
        }
        let offset = address.page_offset() & !(bytes as u64 - 1);
        // SAFETY: inside a page of a region.
        unsafe { load_sized(host + offset, bytes) }
    }

    /// Replaces an entry if it still is `old`. A write to where there is no RAM is dropped.
    pub(crate) fn replace_entry(&self, address: Hpa, bytes: usize, old: u64, new: u64) -> Replaced {
        let Some((page, at)) = self.entry(address, bytes) else {
            return Replaced::Done;
        };
        if page.protection == Protection::ReadOnly {
            return Replaced::Done;
        }
        // SAFETY: inside a page of a region, aligned to its size.
        let result = unsafe {
            if bytes == 4 {
                guard::compare_exchange(at, old as u32, new as u32).map(|r| r.is_ok())
            } else {
                guard::compare_exchange(at, old, new).map(|r| r.is_ok())
            }
        };
        match result {
            None => Replaced::Vanished,
            Some(false) => Replaced::Changed,
            Some(true) if page.code.written(address.page_offset(), bytes) => Replaced::DoneOverCode,
            Some(true) => Replaced::Done,
        }
    }

    /// Returns the page of an entry, and the entry's host address.
    fn entry(&self, address: Hpa, bytes: usize) -> Option<(RamPage<'_>, u64)> {
        let page = self.page(address)?;
        let offset = address.page_offset() & !(bytes as u64 - 1);
        Some((page, page.host.as_ptr() as u64 + offset))
    }

    /// Returns the physical address that host memory backs.
    pub(crate) fn address_of_host(&self, host: u64) -> Option<Hpa> {
        let place = |r: &Region| host.wrapping_sub(r.host.as_ptr() as u64);
        let region = self.regions.iter().find(|r| place(r) < r.bytes)?;
        Some(region.base.offset(place(region)))
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
    /// The host memory cannot be written.
    Vanished,
}

impl PhysicalMemory for &PhysMap {
    fn read(&self, address: Hpa, bytes: &mut [u8]) {
        self.read_bytes(address, bytes);
    }

    fn write(&mut self, address: Hpa, bytes: &[u8]) {
        self.write_bytes(address, bytes);
    }
}
