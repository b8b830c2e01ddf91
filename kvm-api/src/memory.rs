//! Guest memory: the caller's pages behind memory slots, as regions of physical memory.
//!
//! A slot gets a range of the host's synthetic physical space, and one at its guest-physical
//! address in the map that the instruction emulator uses. Both end at the slot's bounds, so that
//! nothing the guest does reaches beyond them.
#![expect(unsafe_code, reason = "guest RAM is the caller's memory")]

use crate::errno::{Errno, Result};
use crate::host::lock;
use crate::uapi::PAGE_SIZE;
use core::ptr::NonNull;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use vmx_model::addr::Hpa;
use x86_interp::mem::phys::{PhysMap, Protection};

/// Where the slots' ranges begin: above the hypervisor's own pages.
const SLOTS_BASE: u64 = 1 << 40;

/// The ranges of the host's physical space that slots have.
#[derive(Debug, Default)]
pub(crate) struct SlotRanges {
    /// End by first address.
    used: Mutex<BTreeMap<u64, u64>>,
}

impl SlotRanges {
    /// Takes the lowest free range of a size, and puts the caller's pages there.
    ///
    /// # Errors
    /// ENOMEM: no such range is free.
    pub(crate) fn insert(
        &self,
        memory: &PhysMap,
        pages: CallerPages,
        physical_address_bits: u8,
    ) -> Result<Hpa> {
        let mut used = lock(&self.used);
        let mut base = SLOTS_BASE;
        for (first, end) in &*used {
            if first - base >= pages.bytes {
                break;
            }
            base = *end;
        }
        let end = base
            .checked_add(pages.bytes)
            .filter(|end| end >> physical_address_bits == 0);
        let end = end.ok_or(Errno::ENOMEM)?;
        pages.add_to(memory, Hpa(base), Protection::ReadWrite);
        used.insert(base, end);
        Ok(Hpa(base))
    }

    /// Gives a range back. No processor uses it any more.
    pub(crate) fn remove(&self, memory: &PhysMap, base: Hpa) {
        memory.remove(base);
        lock(&self.used).remove(&base.0);
    }
}

/// Pages of the caller's memory; they need not be mapped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CallerPages {
    /// Address of the first page.
    pub(crate) address: u64,
    pub(crate) bytes: u64,
}

impl CallerPages {
    /// Puts the pages at a physical address. Pages at address 0 are no memory that a pointer can
    /// name: they stay away, and are found missing when they are touched.
    pub(crate) fn add_to(self, memory: &PhysMap, base: Hpa, protection: Protection) {
        let Some(host) = NonNull::new(self.address as *mut u8) else {
            return;
        };
        // SAFETY: the range is the caller's: by KVM_SET_USER_MEMORY_REGION it gives the pages to
        // the guest until the slot is deleted. They need not be mapped; who touches them checks
        // (`check_page`), and a mapping that vanishes is the caller's fault, as in the kernel.
        let added = unsafe { memory.add_foreign(base, host, self.bytes, protection) };
        debug_assert!(added.is_ok(), "slots do not overlap");
    }
}

/// What a page is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// Reads and instruction fetches.
    Read,
    /// Writes.
    Write,
}

/// Makes a page of the caller's present, as `get_user_pages()` does.
///
/// # Errors
/// EFAULT: it is not mapped, or not for what is wanted.
pub(crate) fn check_page(address: u64, wanted: Wanted) -> Result<()> {
    let advice = match wanted {
        Wanted::Read => libc::MADV_POPULATE_READ,
        Wanted::Write => libc::MADV_POPULATE_WRITE,
    };
    if address == 0 {
        return Err(Errno::EFAULT);
    }
    let page = address as *mut libc::c_void;
    // SAFETY: the advice populates pages that are mapped and touches no other memory; an address
    // that is not mapped is an error.
    match unsafe { libc::madvise(page, PAGE_SIZE as usize, advice) } {
        0 => Ok(()),
        // Before Linux 5.14 the advice is unknown: the page is then found missing when used.
        _ if Errno::last() == Errno::EINVAL && !is_populate_known() => Ok(()),
        _ => Err(Errno::EFAULT),
    }
}

/// Whether a page of the caller's can be written as it is: present, its own and not to be copied
/// (`get_user_page_fast_only()` with `FOLL_WRITE`). A shared page is reported as not writable.
pub(crate) fn is_writable_already(address: u64) -> bool {
    /// Bits of `/proc/PID/pagemap`: the page is mapped by nobody else, and is present.
    const MINE_ALONE: u64 = 1 << 56 | 1 << 63;
    let mut entry = [0; 8];
    let read = File::open("/proc/self/pagemap")
        .and_then(|map| map.read_exact_at(&mut entry, address / PAGE_SIZE * 8));
    let is_mine = read.is_ok() && u64::from_le_bytes(entry) & MINE_ALONE == MINE_ALONE;
    is_mine && check_page(address, Wanted::Write).is_ok()
}

/// Whether the kernel knows the advice, by a page that is there.
fn is_populate_known() -> bool {
    static PAGE: u8 = 0;
    let address = (&raw const PAGE as u64) & !(PAGE_SIZE - 1);
    let page = address as *mut libc::c_void;
    // SAFETY: as in `check_page`.
    unsafe { libc::madvise(page, PAGE_SIZE as usize, libc::MADV_POPULATE_READ) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use x86_interp::mem::phys::OwnedRam;

    #[test]
    fn ranges_are_reused_from_the_lowest() {
        let memory = PhysMap::new();
        let ranges = SlotRanges::default();
        let ram = OwnedRam::new(4).expect("four pages");
        let address = ram.as_ptr().as_ptr() as u64;
        let add = |pages: u64| {
            let pages = CallerPages {
                address,
                bytes: pages * PAGE_SIZE,
            };
            ranges.insert(&memory, pages, 46).expect("there is room").0
        };
        let (a, b, c) = (add(2), add(1), add(4));
        assert_eq!(
            [a, b, c],
            [SLOTS_BASE, SLOTS_BASE + 0x2000, SLOTS_BASE + 0x3000]
        );
        ranges.remove(&memory, Hpa(a));
        assert_eq!(add(3), SLOTS_BASE + 0x7000);
        assert_eq!(add(2), a);
    }

    #[test]
    fn a_range_beyond_the_address_width_is_refused() {
        let memory = PhysMap::new();
        let pages = CallerPages {
            address: 0,
            bytes: 1 << 45,
        };
        assert_eq!(
            SlotRanges::default().insert(&memory, pages, 40),
            Err(Errno::ENOMEM)
        );
    }

    #[test]
    fn a_page_is_writable_once_it_has_been_written() {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping; the test never takes it away.
        let pages = unsafe { libc::mmap(core::ptr::null_mut(), 8192, protection, flags, -1, 0) };
        let address = pages as u64;
        assert!(!is_writable_already(address), "it is not there yet");
        check_page(address, Wanted::Read).expect("it is mapped");
        assert!(!is_writable_already(address), "it is the zero page");
        check_page(address, Wanted::Write).expect("it is mapped for writes");
        assert!(is_writable_already(address));
        assert!(!is_writable_already(address + PAGE_SIZE));
        assert!(!is_writable_already(0x1000));
    }

    #[test]
    fn pages_are_checked_for_what_they_are_wanted_for() {
        static CONSTANT: [u64; 1024] = [7; 1024];
        let constant = (CONSTANT.as_ptr() as u64 + 4095) & !4095;
        assert_eq!(check_page(constant, Wanted::Read), Ok(()));
        assert_eq!(check_page(constant, Wanted::Write), Err(Errno::EFAULT));
        let ram = OwnedRam::new(1).expect("a page");
        assert_eq!(
            check_page(ram.as_ptr().as_ptr() as u64, Wanted::Write),
            Ok(())
        );
        for missing in [0, 0x1000, 0x7fff_ffff_e000] {
            assert_eq!(
                check_page(missing, Wanted::Read),
                Err(Errno::EFAULT),
                "{missing:#x}"
            );
        }
    }
}
