//! The guest's memory management unit as KVM runs it: slots, the EPT structures that are built
//! from them, dirty logging (`arch/x86/kvm/mmu`).
//!
//! Whoever changes mappings while vCPUs run takes [`GuestMemory::exclusive`]: every vCPU has then
//! left the guest, and invalidates its translations before it enters again.

use crate::errno::Result;
use crate::host::{Host, lock};
use crate::memory::{Wanted, check_page, is_writable_already};
use crate::memslots::{Change, Memslots, NewBitmap, Slot, max_gfn};
use crate::uaccess::UserPtr;
use crate::vmx::ept::{EptTables, Writable};
use kvm_bindings::kvm_userspace_memory_region2;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use vmx_model::addr::{Gpa, Hpa};
use x86_interp::mem::phys::{PhysMap, Protection};

/// What an access of the guest wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GuestAccess {
    /// A read or an instruction fetch.
    Read,
    /// A write.
    Write,
}

/// What became of an EPT violation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resolved {
    /// The page is mapped now: the guest tries again.
    Mapped,
    /// There is no memory for such an access: it goes to user space as MMIO.
    Mmio,
}

/// The memory of one VM.
#[derive(Debug)]
pub(crate) struct GuestMemory {
    host: Arc<Host>,
    slots: Mutex<Arc<Memslots>>,
    /// Held while the slots are changed.
    changing: Mutex<()>,
    /// The slots at their guest-physical addresses, for the instruction emulator.
    physical: Arc<PhysMap>,
    ept: Mutex<EptTables>,
    /// That of the structures as long as they live.
    ept_pointer: u64,
    /// Held for reading by each vCPU that is in the guest.
    in_guest: RwLock<()>,
    /// Moves when translations must be invalidated.
    generation: AtomicU64,
}

impl GuestMemory {
    pub(crate) fn new(host: Arc<Host>) -> Result<Self> {
        let ept = EptTables::new(host.clone())?;
        Ok(Self {
            slots: Mutex::default(),
            changing: Mutex::default(),
            physical: PhysMap::new(),
            ept_pointer: ept.pointer(),
            ept: Mutex::new(ept),
            in_guest: RwLock::new(()),
            generation: AtomicU64::new(0),
            host,
        })
    }

    /// Returns the slots as they are now.
    pub(crate) fn slots(&self) -> Arc<Memslots> {
        lock(&self.slots).clone()
    }

    /// Returns guest-physical memory.
    pub(crate) fn physical(&self) -> &Arc<PhysMap> {
        &self.physical
    }

    /// Returns the EPT pointer.
    pub(crate) const fn ept_pointer(&self) -> u64 {
        self.ept_pointer
    }

    /// Returns a number that moves when translations must be invalidated.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Lets a vCPU into the guest, until the guard is dropped.
    pub(crate) fn enter(&self) -> RwLockReadGuard<'_, ()> {
        self.in_guest.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no vCPU is in the guest, and keeps them out; `kick` makes them leave.
    fn exclusive(&self, kick: &dyn Fn()) -> RwLockWriteGuard<'_, ()> {
        kick();
        let guard = self
            .in_guest
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        self.generation.fetch_add(1, Ordering::Release);
        guard
    }

    /// Sets a memory region (`__kvm_set_memory_region()`).
    pub(crate) fn set_region(
        &self,
        region: &kvm_userspace_memory_region2,
        new_bitmap: NewBitmap,
        kick: &dyn Fn(),
    ) -> Result<()> {
        let _changing = lock(&self.changing);
        let slots = self.slots();
        let bits = self.host.profile().facts.physical_address_bits;
        let (mut new, change) = slots.set(region, max_gfn(bits), new_bitmap)?;
        let id = (region.slot & 0xffff) as u16;
        match (change, slots.by_id(id)) {
            (Change::Nothing, _) => {}
            (Change::Create, _) | (_, None) => {
                self.create(&mut new, id, bits)?;
                *lock(&self.slots) = Arc::new(new);
            }
            (_, Some(old)) => self.replace(old, new, change, kick),
        }
        Ok(())
    }

    /// Takes a slot away, or puts it elsewhere, while no vCPU is in the guest.
    fn replace(&self, old: &Slot, new: Memslots, change: Change, kick: &dyn Fn()) {
        let _guard = self.exclusive(kick);
        lock(&self.ept).clear();
        self.physical.remove(slot_base(old));
        match new.by_id(old.id) {
            Some(slot) => self.show(slot),
            None => self.host.slot_ranges().remove(self.host.memory(), old.hpa),
        }
        debug_assert_eq!(new.by_id(old.id).is_none(), change == Change::Delete);
        *lock(&self.slots) = Arc::new(new);
    }

    fn create(&self, slots: &mut Memslots, id: u16, bits: u8) -> Result<()> {
        let Some(slot) = slots.by_id(id) else {
            return Ok(());
        };
        let ranges = self.host.slot_ranges();
        let hpa = ranges.insert(self.host.memory(), slot.caller_pages(), bits)?;
        self.show(slot);
        slots.assign(id, hpa);
        Ok(())
    }

    /// Puts a slot at its guest-physical address.
    fn show(&self, slot: &Slot) {
        // Writes of the emulator to a slot that logs go by its bus, where they are marked.
        let protection = if slot.is_read_only() || slot.dirty.is_some() {
            Protection::ReadOnly
        } else {
            Protection::ReadWrite
        };
        let base = slot_base(slot);
        slot.caller_pages().add_to(&self.physical, base, protection);
    }

    /// Maps the page that an EPT violation is about (`kvm_mmu_page_fault()`). A page is writable
    /// once it has been written, or counts as written: that keeps the dirty log, and a page that
    /// can only be read.
    ///
    /// # Errors
    /// EFAULT: the caller's page is not there; ENOMEM.
    pub(crate) fn resolve(&self, gpa: Gpa, access: GuestAccess) -> Result<Resolved> {
        // The slots and what is mapped from them do not change meanwhile.
        let _guard = self.enter();
        let slots = self.slots();
        let gfn = gpa.0 >> 12;
        let is_write = access == GuestAccess::Write;
        let Some(slot) = slots.find(gfn) else {
            return Ok(Resolved::Mmio);
        };
        if is_write && slot.is_read_only() {
            return Ok(Resolved::Mmio);
        }
        let wanted = if is_write {
            Wanted::Write
        } else {
            Wanted::Read
        };
        check_page(slot.page_address(gfn), wanted)?;
        let writable = if is_write || is_logged_and_writable(slot, gfn) {
            mark_dirty(slot, gfn);
            Writable::Yes
        } else {
            Writable::No
        };
        lock(&self.ept).map(gpa, slot.page_hpa(gfn), writable)?;
        Ok(Resolved::Mapped)
    }

    /// Writes guest memory of a slot that logs; false if there is none at the address.
    pub(crate) fn write_logged(&self, gpa: Gpa, bytes: &[u8]) -> bool {
        let slots = self.slots();
        let gfn = gpa.0 >> 12;
        let slot = slots
            .find(gfn)
            .filter(|slot| slot.dirty.is_some() && !slot.is_read_only());
        let Some(slot) = slot else { return false };
        mark_dirty(slot, gfn);
        let at = UserPtr(slot.page_address(gfn)).offset(gpa.page_offset());
        at.write_array(bytes).is_ok()
    }

    /// Marks a page that the emulator has written.
    pub(crate) fn mark_dirty(&self, gpa: Gpa) {
        if let Some(slot) = self.slots().find(gpa.0 >> 12) {
            mark_dirty(slot, gpa.0 >> 12);
        }
    }

    /// Protects the pages of a slot whose bits are set, so that the next write is seen.
    pub(crate) fn protect(&self, slot: &Slot, first_page: u64, bits: &[u64], kick: &dyn Fn()) {
        if bits.iter().all(|word| *word == 0) {
            return;
        }
        let _guard = self.exclusive(kick);
        let mut ept = lock(&self.ept);
        for (index, word) in bits.iter().enumerate() {
            for bit in (0..64).filter(|bit| word >> bit & 1 != 0) {
                let page = first_page + index as u64 * 64 + bit;
                if page < slot.npages {
                    ept.write_protect(Gpa((slot.base_gfn + page) << 12));
                }
            }
        }
    }
}

/// Returns a slot's address in the guest-physical map.
const fn slot_base(slot: &Slot) -> Hpa {
    Hpa(slot.base_gfn << 12)
}

/// Whether a read maps a page of a slot that logs for writes too, and so counts it as dirty: KVM
/// does so where the caller's page is writable without ado (`make_spte()`).
fn is_logged_and_writable(slot: &Slot, gfn: u64) -> bool {
    slot.dirty.is_some() && !slot.is_read_only() && is_writable_already(slot.page_address(gfn))
}

fn mark_dirty(slot: &Slot, gfn: u64) {
    if let Some(dirty) = &slot.dirty {
        dirty.mark(gfn - slot.base_gfn);
    }
}

impl Drop for GuestMemory {
    fn drop(&mut self) {
        let slots = self.slots();
        for slot in slots.iter() {
            self.host.slot_ranges().remove(self.host.memory(), slot.hpa);
        }
    }
}
