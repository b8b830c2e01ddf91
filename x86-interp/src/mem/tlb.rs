//! The software TLB: from linear pages to host pages.
//!
//! Direct-mapped, with one tag for each kind of access. A tag is the linear page with the number
//! of the address-space context in its low 12 bits, so that one comparison of
//! `(address + size - 1) & !0xfff | context` covers the hit, the permission, the context and that
//! the access stays in one page. What must not be fast (MMIO, writes to ROM, to pages that hold
//! decoded code, or whose dirty flag is clear) has no tag.
//!
//! Contexts are numbered as they appear; forgetting the numbers flushes.
#![expect(
    unsafe_code,
    reason = "the TLB turns linear addresses into host pointers"
)]

use vmx_model::addr::Hpa;

use super::Access;
use super::code::CodePage;
use super::guard;
use super::phys::RamPage;
use crate::width::Width;

/// Number of entries.
pub(crate) const ENTRIES: usize = 1024;

/// A tag that no access has: the context number 0xfff is never given out.
const INVALID: u64 = u64::MAX;

/// A context number that no translation has.
pub(crate) const NO_CONTEXT: u64 = 0xffe;

/// The last context number.
const LAST_CONTEXT: u16 = 0xffd;

/// One entry.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Entry {
    pub(crate) read: u64,
    pub(crate) write: u64,
    pub(crate) execute: u64,
    /// Host address minus linear address.
    pub(crate) addend: u64,
}

const EMPTY: Entry = Entry {
    read: INVALID,
    write: INVALID,
    execute: INVALID,
    addend: 0,
};

/// The rest of an entry.
#[derive(Clone, Copy)]
struct Behind {
    /// The physical page.
    physical: u64,
    /// The tag of an allowed write, whether it may be fast or not.
    write: u64,
    code: *const CodePage,
}

impl Behind {
    const EMPTY: Self = Self {
        physical: 0,
        write: INVALID,
        code: core::ptr::null(),
    };
}

// SAFETY: `code` is only read through, by atomics, and outlives its entry (see `write_beside_code`).
unsafe impl Send for Behind {}

/// What a walk found, to be entered.
pub(crate) struct Found<'a> {
    pub(crate) physical: Hpa,
    pub(crate) ram: RamPage<'a>,
    pub(crate) read: bool,
    pub(crate) write: bool,
    pub(crate) execute: bool,
    /// The size of the linear page that the 4 KiB belong to.
    pub(crate) linear_page_bytes: u64,
}

impl Found<'_> {
    /// Returns a translation that serves no data accesses.
    pub(crate) fn for_code_only(self) -> Self {
        Self {
            read: false,
            write: false,
            ..self
        }
    }
}

/// An address space, as far as cached translations depend on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Context {
    /// User-mode accesses.
    pub(crate) is_user: bool,
    /// Supervisor-mode accesses may reach user pages although CR4.SMAP is set (RFLAGS.AC).
    pub(crate) is_smap_off: bool,
    /// Shadow-stack accesses.
    pub(crate) is_shadow_stack: bool,
    /// PCID, 0 without CR4.PCIDE.
    pub(crate) pcid: u16,
    /// VPID; 0 outside VMX non-root operation.
    pub(crate) vpid: u16,
    /// EPT pointer in use; 0 without EPT.
    pub(crate) eptp: u64,
    /// The bits of CR0, CR4 and EFER that translations depend on.
    pub(crate) modes: u64,
}

/// The TLB.
pub(crate) struct Tlb {
    entries: Box<[Entry; ENTRIES]>,
    /// The rest of each entry.
    behind: Box<[Behind; ENTRIES]>,
    contexts: Vec<(Context, u16)>,
    next_context: u16,
    /// How often numbers of contexts have been given out anew.
    numberings: u32,
    /// Where pieces of pages of 2 and 4 MiB have been entered since the last flush, for each
    /// [`region`]: the first and the last index.
    pieces: [Option<(u16, u16)>; REGIONS],
    /// Whether a piece of a page of 1 GiB has been entered since the last flush.
    has_gigantic: bool,
}

impl Default for Tlb {
    fn default() -> Self {
        Self {
            entries: Box::new([EMPTY; ENTRIES]),
            behind: Box::new([Behind::EMPTY; ENTRIES]),
            contexts: Vec::new(),
            next_context: 0,
            numberings: 0,
            pieces: [None; REGIONS],
            has_gigantic: false,
        }
    }
}

/// Number of [`region`]s.
pub(crate) const REGIONS: usize = 64;

/// The largest linear page of which [`Tlb::flush_page`] finds the pieces.
const LARGE_PAGE_BITS: u32 = 22;

/// Returns which of [`REGIONS`] classes the 4 MiB around a linear address belong to.
#[inline]
pub(crate) fn region(linear: u64) -> usize {
    let mixed = (linear >> LARGE_PAGE_BITS).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 58) as usize
}

/// What [`Tlb::flush_page`] has forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PageFlush {
    /// Some translations of known contexts, those of the page among them.
    Page,
    /// All translations: numbers of contexts are void.
    Everything,
}

#[inline(always)]
fn index(linear: u64) -> usize {
    (linear >> 12) as usize & (ENTRIES - 1)
}

impl Tlb {
    /// Returns the entry that would hold `linear`.
    #[inline(always)]
    pub(crate) fn entry(&self, linear: u64) -> &Entry {
        &self.entries[index(linear)]
    }

    /// Returns the physical address of `linear`, if an access of this kind is known to be allowed.
    #[inline]
    pub(crate) fn translate(&self, linear: u64, context: u64, access: Access) -> Option<u64> {
        let e = self.entry(linear);
        let behind = &self.behind[index(linear)];
        let tag_now = match access {
            Access::Read => e.read,
            Access::Write => behind.write,
            Access::Execute => e.execute,
        };
        (tag_now == linear & !0xfff | context).then_some(behind.physical | linear & 0xfff)
    }

    /// Writes where the fast way is closed because the page holds decoded code. Returns whether
    /// code was changed; `None` if the page is not known to be writable.
    #[inline]
    pub(crate) fn write_beside_code<W: Width>(
        &self,
        linear: u64,
        context: u64,
        value: W,
    ) -> Option<bool> {
        let behind = &self.behind[index(linear)];
        if behind.write != tag::<W>(linear, context) {
            return None;
        }
        // SAFETY: as in `read`; the code page lives as long as the processor's view of the map,
        // and a new view comes with a flush.
        let code = unsafe {
            if !guard::store(linear.wrapping_add(self.entry(linear).addend), value) {
                return None;
            }
            &*behind.code
        };
        Some(code.written(linear & 0xfff, W::BYTES))
    }

    /// Returns the number of `context`.
    pub(crate) fn number(&mut self, context: &Context) -> u16 {
        if let Some(&(_, number)) = self.contexts.iter().rev().find(|(c, _)| c == context) {
            return number;
        }
        if self.next_context > LAST_CONTEXT {
            self.entries.fill(EMPTY);
            self.behind.fill(Behind::EMPTY);
            self.contexts.clear();
            self.next_context = 0;
            self.numberings = self.numberings.wrapping_add(1);
        }
        let number = self.next_context;
        self.next_context += 1;
        self.contexts.push((*context, number));
        number
    }

    /// Returns a number that changes when context numbers given out before may be given out again.
    pub(crate) const fn numberings(&self) -> u32 {
        self.numberings
    }

    /// Enters a translation to a page of RAM.
    pub(crate) fn enter(&mut self, linear: u64, context: u64, found: &Found<'_>) {
        let page = linear & !0xfff;
        let tag = |is_served| if is_served { page | context } else { INVALID };
        let n = index(linear);
        self.entries[n] = Entry {
            read: tag(found.read),
            write: tag(found.write && !found.ram.code.has_code()),
            execute: tag(found.execute),
            addend: (found.ram.host.as_ptr() as u64).wrapping_sub(page),
        };
        self.behind[n] = Behind {
            physical: found.physical.page().0,
            write: tag(found.write),
            code: found.ram.code,
        };
        if found.linear_page_bytes > 4096 {
            self.note_piece(linear, n as u16, found.linear_page_bytes);
        }
    }

    fn note_piece(&mut self, linear: u64, n: u16, page_bytes: u64) {
        if page_bytes > 1 << LARGE_PAGE_BITS {
            self.has_gigantic = true;
            return;
        }
        let pieces = &mut self.pieces[region(linear)];
        let (first, last) = pieces.unwrap_or((n, n));
        *pieces = Some((first.min(n), last.max(n)));
    }

    /// Forgets all translations. Context numbers given out before are void.
    pub(crate) fn flush(&mut self) {
        self.flush_contexts(|_| true);
    }

    /// Forgets the translations of some contexts, whose numbers are then void.
    pub(crate) fn flush_contexts(&mut self, which: impl Fn(&Context) -> bool) {
        self.contexts.retain(|(c, _)| !which(c));
        if self.contexts.is_empty() {
            self.pieces = [None; REGIONS];
            self.has_gigantic = false;
        }
    }

    /// Forgets the translations of the page (of whatever size) that holds `linear`, in all
    /// contexts.
    pub(crate) fn flush_page(&mut self, linear: u64) -> PageFlush {
        if self.has_gigantic {
            self.flush();
            return PageFlush::Everything;
        }
        self.entries[index(linear)] = EMPTY;
        self.behind[index(linear)] = Behind::EMPTY;
        if let Some((first, last)) = self.pieces[region(linear)].take() {
            let range = usize::from(first)..=usize::from(last);
            self.entries[range.clone()].fill(EMPTY);
            self.behind[range].fill(Behind::EMPTY);
        }
        PageFlush::Page
    }

    /// Takes away the right to write fast to a host page.
    pub(crate) fn protect_host_page(&mut self, host: u64) {
        for e in self.entries.iter_mut() {
            if e.write != INVALID && (e.write & !0xfff).wrapping_add(e.addend) == host {
                e.write = INVALID;
            }
        }
    }

    /// Takes away all rights to write fast.
    pub(crate) fn protect_all(&mut self) {
        for e in self.entries.iter_mut() {
            e.write = INVALID;
        }
    }

    /// Returns the host address of bytes of one page, through the tag that `tag_of` names.
    fn piece(
        &self,
        linear: u64,
        context: u64,
        bytes: u64,
        tag_of: fn(&Entry) -> u64,
    ) -> Option<u64> {
        let e = self.entry(linear);
        let is_inside = bytes != 0 && (linear & 0xfff) + bytes <= 4096;
        (is_inside && tag_of(e) == linear & !0xfff | context).then(|| linear.wrapping_add(e.addend))
    }

    /// Copies `bytes` bytes inside two pages, upward; false, and nothing is copied, if one of them
    /// is not known or has vanished, or if the destination begins inside the source.
    pub(crate) fn copy(&self, from: u64, to: u64, context: u64, bytes: u64) -> bool {
        let (Some(source), Some(destination)) = (
            self.piece(from, context, bytes, |e| e.read),
            self.piece(to, context, bytes, |e| e.write),
        ) else {
            return false;
        };
        if destination.wrapping_sub(source) < bytes {
            return false;
        }
        let words = bytes / 8;
        // SAFETY: valid entries hold host pages, and both pieces lie inside them.
        unsafe {
            // What is there at the beginning is there to the end: pages vanish as a whole.
            guard::can_store(destination)
                && guard::load::<u8>(source).is_some()
                && guard::copy_words(destination, source, words)
                && (words * 8..bytes).all(|n| {
                    guard::load::<u8>(source + n)
                        .is_some_and(|byte| guard::store(destination + n, byte))
                })
        }
    }

    /// Fills `bytes` bytes, a multiple of `W`, inside one page; false if it is not known.
    pub(crate) fn fill<W: Width>(&self, to: u64, context: u64, bytes: u64, value: W) -> bool {
        let Some(destination) = self.piece(to, context, bytes, |e| e.write) else {
            return false;
        };
        let repeated = (u64::MAX / W::MASK).wrapping_mul(value.to_u64());
        let words = bytes / 8;
        // SAFETY: a valid entry holds a host page, and the piece lies inside it.
        unsafe {
            guard::fill_words(destination, repeated, words)
                && (words * 8..bytes)
                    .step_by(W::BYTES)
                    .all(|n| guard::store(destination + n, value))
        }
    }

    /// Whether a `W` at `linear` is known to lie in one writable page of RAM.
    pub(crate) fn is_writable<W: Width>(&self, linear: u64, context: u64) -> bool {
        self.behind[index(linear)].write == tag::<W>(linear, context)
    }

    /// Replaces the naturally aligned `W` at `linear` by `new` if it is `old`, atomically. Returns
    /// whether that changed code, or the value that is there instead; `None` if the host memory
    /// has vanished.
    pub(crate) fn compare_exchange<W: Width>(
        &self,
        linear: u64,
        context: u64,
        old: W,
        new: W,
    ) -> Option<Result<bool, W>> {
        assert!(self.is_writable::<W>(linear, context) && linear.is_multiple_of(W::BYTES as u64));
        let host = linear.wrapping_add(self.entry(linear).addend);
        // SAFETY: a valid entry holds a host page, the access is aligned and inside it; `code` as
        // in `write_beside_code`.
        let (result, code) = unsafe {
            let result = guard::compare_exchange(host, old, new)?;
            (result, &*self.behind[index(linear)].code)
        };
        Some(result.map(|_| code.written(linear & 0xfff, W::BYTES)))
    }

    /// Looks `linear` up for a read of `W` in `context`; returns the value.
    #[inline(always)]
    pub(crate) fn read<W: Width>(&self, linear: u64, context: u64) -> Option<W> {
        let e = self.entry(linear);
        if e.read != tag::<W>(linear, context) {
            return None;
        }
        // SAFETY: a valid entry holds a host page, and the comparison keeps the access inside it.
        unsafe { guard::load(linear.wrapping_add(e.addend)) }
    }

    /// As [`Self::read`], if the page may be written.
    #[inline(always)]
    pub(crate) fn read_for_update<W: Width>(&self, linear: u64, context: u64) -> Option<W> {
        let e = self.entry(linear);
        if e.write != tag::<W>(linear, context) {
            return None;
        }
        // SAFETY: as in `read`.
        unsafe { guard::load(linear.wrapping_add(e.addend)) }
    }

    /// Looks `linear` up for a write of `W` in `context`, and writes; false if it is not there.
    #[inline(always)]
    pub(crate) fn write<W: Width>(&self, linear: u64, context: u64, value: W) -> bool {
        let e = self.entry(linear);
        if e.write != tag::<W>(linear, context) {
            return false;
        }
        // SAFETY: as in `read`.
        unsafe { guard::store(linear.wrapping_add(e.addend), value) }
    }

    /// Whether an entry leads to this host page.
    pub(crate) fn has_host_page(&self, host: u64) -> bool {
        let leads =
            |tag: u64, e: &Entry| tag != INVALID && (tag & !0xfff).wrapping_add(e.addend) == host;
        self.entries
            .iter()
            .any(|e| leads(e.read, e) || leads(e.write, e))
    }
}

/// The tag that an access of `W` at `linear` must find.
#[inline(always)]
pub(crate) fn tag<W: Width>(linear: u64, context: u64) -> u64 {
    (linear.wrapping_add(W::BYTES as u64 - 1) & !0xfff) | context
}

/// The tag that an access of 16 bytes at `linear` must find.
#[inline(always)]
#[cfg(target_arch = "x86_64")]
pub(crate) fn tag_16(linear: u64, context: u64) -> u64 {
    (linear.wrapping_add(15) & !0xfff) | context
}

/// The tag that an access of `bytes` bytes at `linear` must find.
#[inline(always)]
#[cfg(target_arch = "x86_64")]
pub(crate) fn tag_of(linear: u64, bytes: usize, context: u64) -> u64 {
    (linear.wrapping_add(bytes as u64 - 1) & !0xfff) | context
}

/// A value at any address.
#[derive(Clone, Copy)]
#[repr(C, packed)]
pub(crate) struct Unaligned<W>(pub(crate) W);

/// Reads guest memory: one access, visible to no optimisation.
///
/// # Safety
/// `host` is readable for `W`.
#[inline(always)]
pub(crate) unsafe fn read_host<W: Width>(host: u64) -> W {
    // SAFETY: the caller's.
    unsafe { (host as *const Unaligned<W>).read_volatile().0 }
}

/// Writes guest memory: one access, visible to no optimisation.
///
/// # Safety
/// `host` is writable for `W`.
#[inline(always)]
pub(crate) unsafe fn write_host<W: Width>(host: u64, value: W) {
    // SAFETY: the caller's.
    unsafe { (host as *mut Unaligned<W>).write_volatile(Unaligned(value)) }
}
