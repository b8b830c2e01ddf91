//! Memory slots: which guest-physical pages are which pages of user space (api.rst,
//! "KVM_SET_USER_MEMORY_REGION2", "KVM_GET_DIRTY_LOG", "KVM_CLEAR_DIRTY_LOG").
//!
//! [`Memslots`] is an immutable snapshot, sorted by guest frame; a change makes a new one. A vCPU
//! works on a snapshot until it is kicked. Dirty bitmaps are shared by the snapshots.

use crate::errno::{Errno, Result};
use crate::memory::CallerPages;
use crate::uapi::{MEM_MAX_NR_PAGES, PAGE_SIZE, TASK_SIZE_MAX, USER_MEM_SLOTS};
use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, kvm_userspace_memory_region2};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use vmx_model::addr::Hpa;

/// Address spaces of a VM: one, as no SMM is offered.
const ADDRESS_SPACES: u32 = 1;

/// What dirty logging does with a new bitmap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NewBitmap {
    /// All pages are clean.
    Clear,
    /// All pages are dirty (`KVM_DIRTY_LOG_INITIALLY_SET`).
    InitiallySet,
}

/// A memory slot.
#[derive(Clone, Debug)]
pub(crate) struct Slot {
    /// The slot's number.
    pub(crate) id: u16,
    /// First guest frame.
    pub(crate) base_gfn: u64,
    /// Pages.
    pub(crate) npages: u64,
    /// Address in user space of the first page.
    pub(crate) userspace_addr: u64,
    /// `KVM_MEM_LOG_DIRTY_PAGES`, `KVM_MEM_READONLY`.
    pub(crate) flags: u32,
    /// Where the pages lie in the host's physical space.
    pub(crate) hpa: Hpa,
    /// One bit a page, while the slot logs.
    pub(crate) dirty: Option<Arc<DirtyBitmap>>,
}

impl Slot {
    /// Whether the guest may not write.
    pub(crate) const fn is_read_only(&self) -> bool {
        self.flags & KVM_MEM_READONLY != 0
    }

    /// Returns the address in user space of a guest frame of the slot.
    pub(crate) const fn page_address(&self, gfn: u64) -> u64 {
        self.userspace_addr
            .wrapping_add(gfn.wrapping_sub(self.base_gfn) * PAGE_SIZE)
    }

    /// Returns the host-physical address of a guest frame of the slot.
    pub(crate) const fn page_hpa(&self, gfn: u64) -> Hpa {
        Hpa(self
            .hpa
            .0
            .wrapping_add(gfn.wrapping_sub(self.base_gfn) * PAGE_SIZE))
    }

    /// Returns the pages of user space behind the slot.
    pub(crate) const fn caller_pages(&self) -> CallerPages {
        CallerPages {
            address: self.userspace_addr,
            bytes: self.npages * PAGE_SIZE,
        }
    }

    /// Whether the slot holds a guest frame.
    pub(crate) const fn contains(&self, gfn: u64) -> bool {
        gfn.wrapping_sub(self.base_gfn) < self.npages
    }

    const fn overlaps(&self, other: &Self) -> bool {
        self.base_gfn < other.base_gfn + other.npages
            && other.base_gfn < self.base_gfn + self.npages
    }
}

/// The pages of a slot that were written, one bit each.
#[derive(Debug)]
pub(crate) struct DirtyBitmap {
    words: Box<[AtomicU64]>,
}

impl DirtyBitmap {
    fn new(npages: u64, kind: NewBitmap) -> Result<Self> {
        let len = usize::try_from(npages.div_ceil(64)).map_err(|_| Errno::ENOMEM)?;
        let mut words = Vec::new();
        words.try_reserve_exact(len).map_err(|_| Errno::ENOMEM)?;
        let fill = if kind == NewBitmap::InitiallySet {
            u64::MAX
        } else {
            0
        };
        words.resize_with(len, || AtomicU64::new(fill));
        Ok(Self {
            words: words.into_boxed_slice(),
        })
    }

    /// Marks a page, counted from the slot's start.
    pub(crate) fn mark(&self, page: u64) {
        if let Some(word) = self.words.get((page / 64) as usize) {
            word.fetch_or(1 << (page % 64), Ordering::Relaxed);
        }
    }

    fn load(&self) -> Vec<u64> {
        self.words
            .iter()
            .map(|word| word.load(Ordering::Relaxed))
            .collect()
    }

    fn take(&self) -> Vec<u64> {
        self.words
            .iter()
            .map(|word| word.swap(0, Ordering::Relaxed))
            .collect()
    }

    fn clear(&self, first_page: u64, mask: &[u64]) {
        let first = (first_page / 64) as usize;
        for (word, clear) in self.words.iter().skip(first).zip(mask) {
            word.fetch_and(!clear, Ordering::Relaxed);
        }
    }
}

/// The slots of a VM at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Memslots {
    /// Sorted by first frame, none overlapping.
    slots: Vec<Slot>,
}

/// What a call of KVM_SET_USER_MEMORY_REGION did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// The region was as it is.
    Nothing,
    /// A new slot: no mapping changes.
    Create,
    /// The slot has gone: its mappings must go.
    Delete,
    /// The slot has moved: its old mappings must go.
    Move,
    /// Dirty logging was switched on or off: mappings change their permissions.
    FlagsOnly,
}

impl Memslots {
    /// Returns the slots in order of their first frame.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Slot> {
        self.slots.iter()
    }

    /// Returns the slot that holds a guest frame.
    pub(crate) fn find(&self, gfn: u64) -> Option<&Slot> {
        let after = self.slots.partition_point(|slot| slot.base_gfn <= gfn);
        self.slots[..after].last().filter(|slot| slot.contains(gfn))
    }

    /// Says where the pages of a new slot lie.
    pub(crate) fn assign(&mut self, id: u16, hpa: Hpa) {
        for slot in self.slots.iter_mut().filter(|slot| slot.id == id) {
            slot.hpa = hpa;
        }
    }

    /// Returns the slot of a number.
    pub(crate) fn by_id(&self, id: u16) -> Option<&Slot> {
        self.slots.iter().find(|slot| slot.id == id)
    }

    /// Returns the slots after a region has been set, in the kernel's order of checks
    /// (`__kvm_set_memory_region()`).
    pub(crate) fn set(
        &self,
        region: &kvm_userspace_memory_region2,
        max_gfn: u64,
        new_bitmap: NewBitmap,
    ) -> Result<(Self, Change)> {
        check_region(region)?;
        let id = (region.slot & 0xffff) as u16;
        let old = self.by_id(id);
        if region.memory_size == 0 {
            old.ok_or(Errno::EINVAL)?;
            return Ok((self.with(id, None), Change::Delete));
        }
        let mut new = Slot {
            id,
            base_gfn: region.guest_phys_addr / PAGE_SIZE,
            npages: region.memory_size / PAGE_SIZE,
            userspace_addr: region.userspace_addr,
            flags: region.flags,
            hpa: old.map_or(Hpa(0), |slot| slot.hpa),
            dirty: None,
        };
        let change = classify(old, &new)?;
        if change == Change::Nothing {
            return Ok((self.clone(), change));
        }
        if matches!(change, Change::Create | Change::Move) {
            let others = self.slots.iter().filter(|slot| slot.id != id);
            if others.into_iter().any(|slot| slot.overlaps(&new)) {
                return Err(Errno::EEXIST);
            }
        }
        new.dirty = dirty_bitmap(old, &new, new_bitmap)?;
        if change != Change::FlagsOnly && new.base_gfn + new.npages - 1 > max_gfn {
            return Err(Errno::EINVAL);
        }
        Ok((self.with(id, Some(new)), change))
    }

    fn with(&self, id: u16, new: Option<Slot>) -> Self {
        let mut slots: Vec<Slot> = self
            .slots
            .iter()
            .filter(|slot| slot.id != id)
            .cloned()
            .collect();
        slots.extend(new);
        slots.sort_by_key(|slot| slot.base_gfn);
        Self { slots }
    }

    /// Returns the slot and its bitmap, in the checks of the dirty-log ioctls.
    pub(crate) fn logging(&self, slot: u32) -> Result<(&Slot, &DirtyBitmap)> {
        check_slot_number(slot)?;
        let slot = self.by_id((slot & 0xffff) as u16).ok_or(Errno::ENOENT)?;
        let dirty = slot.dirty.as_deref().ok_or(Errno::ENOENT)?;
        Ok((slot, dirty))
    }
}

/// Whether a slot number (address space in the high half) is one that user space may name.
pub(crate) fn check_slot_number(slot: u32) -> Result<()> {
    let bad = slot >> 16 >= ADDRESS_SPACES || slot & 0xffff >= USER_MEM_SLOTS;
    if bad { Err(Errno::EINVAL) } else { Ok(()) }
}

fn check_region(region: &kvm_userspace_memory_region2) -> Result<()> {
    let known = KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY;
    let unaligned = !(region.memory_size | region.guest_phys_addr | region.userspace_addr)
        .is_multiple_of(PAGE_SIZE);
    let user_end = region.userspace_addr.checked_add(region.memory_size);
    let refused = region.slot & 0xffff >= USER_MEM_SLOTS
        || region.flags & !known != 0
        || unaligned
        || user_end.is_none_or(|end| end > TASK_SIZE_MAX)
        || region.slot >> 16 >= ADDRESS_SPACES
        || region
            .guest_phys_addr
            .checked_add(region.memory_size)
            .is_none()
        || region.memory_size / PAGE_SIZE > MEM_MAX_NR_PAGES;
    if refused { Err(Errno::EINVAL) } else { Ok(()) }
}

fn classify(old: Option<&Slot>, new: &Slot) -> Result<Change> {
    let Some(old) = old else {
        return Ok(Change::Create);
    };
    if new.userspace_addr != old.userspace_addr
        || new.npages != old.npages
        || (new.flags ^ old.flags) & KVM_MEM_READONLY != 0
    {
        return Err(Errno::EINVAL);
    }
    Ok(if new.base_gfn != old.base_gfn {
        Change::Move
    } else if new.flags != old.flags {
        Change::FlagsOnly
    } else {
        Change::Nothing
    })
}

fn dirty_bitmap(
    old: Option<&Slot>,
    new: &Slot,
    kind: NewBitmap,
) -> Result<Option<Arc<DirtyBitmap>>> {
    if new.flags & KVM_MEM_LOG_DIRTY_PAGES == 0 {
        return Ok(None);
    }
    match old.and_then(|slot| slot.dirty.clone()) {
        Some(bitmap) => Ok(Some(bitmap)),
        None => DirtyBitmap::new(new.npages, kind).map(|bitmap| Some(Arc::new(bitmap))),
    }
}

/// What the caller of KVM_GET_DIRTY_LOG sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Harvest {
    /// The bits are cleared, the pages protected again.
    Clear,
    /// The bits stay (`KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2`).
    Keep,
}

impl DirtyBitmap {
    /// Returns the bits for KVM_GET_DIRTY_LOG.
    pub(crate) fn harvest(&self, how: Harvest) -> Vec<u64> {
        match how {
            Harvest::Clear => self.take(),
            Harvest::Keep => self.load(),
        }
    }

    /// Clears the bits of `mask`, whose first bit is page `first_page` (a multiple of 64).
    pub(crate) fn clear_range(&self, first_page: u64, mask: &[u64]) {
        self.clear(first_page, mask);
    }
}

/// The last guest frame of the VM's memory management unit, EPT's: MAXPHYADDR of the host.
pub(crate) const fn max_gfn(physical_address_bits: u8) -> u64 {
    (1 << (physical_address_bits - 12)) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    const RO: u32 = KVM_MEM_READONLY;
    const LOG: u32 = KVM_MEM_LOG_DIRTY_PAGES;
    const HVA: u64 = 0x7000_0000_0000;

    type Given = (u32, u32, u64, u64, u64);

    fn set(slots: &mut Memslots, (slot, flags, gpa, size, hva): Given) -> Result<Change> {
        let region = kvm_userspace_memory_region2 {
            slot,
            flags,
            guest_phys_addr: gpa,
            memory_size: size,
            userspace_addr: hva,
            ..Default::default()
        };
        let (new, change) = slots.set(&region, max_gfn(46), NewBitmap::Clear)?;
        *slots = new;
        Ok(change)
    }

    /// Each call in turn, on the same slots.
    fn check(calls: &[(Given, Result<Change>)]) {
        let mut slots = Memslots::default();
        for (call, expected) in calls {
            assert_eq!(set(&mut slots, *call), *expected, "{call:x?}");
        }
    }

    #[test]
    fn regions_are_made_moved_and_deleted() {
        check(&[
            ((0, 0, 0, 0x10000, HVA), Ok(Change::Create)),
            ((0, 0, 0, 0x10000, HVA), Ok(Change::Nothing)),
            ((0, 0, 0, 0x20000, HVA), Err(Errno::EINVAL)),
            ((0, 0, 0, 0x10000, HVA + 0x1000), Err(Errno::EINVAL)),
            ((0, 0, 0x40000, 0x10000, HVA), Ok(Change::Move)),
            ((0, 0, 0, 0x10000, HVA), Ok(Change::Move)),
            ((1, 0, 0xf000, 0x1000, HVA), Err(Errno::EEXIST)),
            ((1, 0, 0x10000, 0x1000, HVA), Ok(Change::Create)),
            ((1, 0, 0, 0x1000, HVA), Err(Errno::EEXIST)),
            ((1, 0, 0, 0, 0), Ok(Change::Delete)),
            ((1, 0, 0, 0, 0), Err(Errno::EINVAL)),
            ((0, 0, 0x1000, 0x10000, HVA), Ok(Change::Move)),
        ]);
    }

    #[test]
    fn bad_regions_are_refused() {
        let bad = [
            (3, 0, 0x100000, 0x1001, HVA),
            (3, 0, 0x100800, 0x1000, HVA),
            (3, 0, 0x100000, 0x1000, HVA + 8),
            (3, 0, 0x100000, 0x1000, 0xffff_8880_0000_0000),
            (3, 0, 0x100000, 0x2000, TASK_SIZE_MAX),
            (3, 4, 0x100000, 0x1000, HVA),
            (3, 8, 0x100000, 0x1000, HVA),
            (USER_MEM_SLOTS, 0, 0x100000, 0x1000, HVA),
            (0x10000, 0, 0x100000, 0x1000, HVA),
            (3, 0, 0xffff_ffff_ffff_f000, 0x2000, HVA),
            (3, 0, 0xffff_ffff_ffff_e000, 0x1000, HVA),
            (3, 0, 1 << 46, 0x1000, HVA),
            (3, 0, 0, 1 << 43, 0),
            (3, 0, 1, 0, 0),
        ];
        for region in bad {
            check(&[(region, Err(Errno::EINVAL))]);
        }
        check(&[((3, 0, (1 << 46) - 0x1000, 0x1000, 0), Ok(Change::Create))]);
    }

    #[test]
    fn flags_change_and_read_only_stays() {
        check(&[
            ((4, LOG, 0x200000, 0x1000, HVA), Ok(Change::Create)),
            ((4, 0, 0x200000, 0x1000, HVA), Ok(Change::FlagsOnly)),
            ((4, RO, 0x200000, 0x1000, HVA), Err(Errno::EINVAL)),
            ((5, RO, 0x300000, 0x1000, HVA), Ok(Change::Create)),
            ((5, 0, 0x300000, 0x1000, HVA), Err(Errno::EINVAL)),
            ((5, RO | LOG, 0x300000, 0x1000, HVA), Ok(Change::FlagsOnly)),
        ]);
    }

    #[test]
    fn a_frame_is_found_in_its_slot_only() {
        let mut slots = Memslots::default();
        set(&mut slots, (0, 0, 0x10000, 0x2000, HVA)).expect("a good region");
        set(&mut slots, (7, 0, 0x14000, 0x1000, HVA)).expect("a good region");
        let ids: Vec<_> = (0xf..0x16)
            .map(|gfn| slots.find(gfn).map(|slot| slot.id))
            .collect();
        assert_eq!(ids, [None, Some(0), Some(0), None, None, Some(7), None]);
    }

    #[test]
    fn dirty_bits_are_harvested_and_cleared() {
        let mut slots = Memslots::default();
        set(&mut slots, (0, LOG, 0, 0x80_000, HVA)).expect("a good region");
        let (_, dirty) = slots.logging(0).expect("it logs");
        dirty.mark(5);
        dirty.mark(70);
        dirty.mark(1 << 40);
        assert_eq!(dirty.harvest(Harvest::Keep), [1 << 5, 1 << 6]);
        dirty.clear_range(64, &[u64::MAX]);
        assert_eq!(dirty.harvest(Harvest::Clear), [1 << 5, 0]);
        assert_eq!(dirty.harvest(Harvest::Clear), [0, 0]);
        assert_eq!(slots.logging(1).err(), Some(Errno::ENOENT));
        assert_eq!(slots.logging(0x20000).err(), Some(Errno::EINVAL));
    }
}
