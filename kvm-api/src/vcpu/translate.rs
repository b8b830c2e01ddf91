//! KVM_TRANSLATE: guest-linear to guest-physical addresses, walked in software (api.rst,
//! "KVM_TRANSLATE"; SDM Vol. 3A, "Paging").

use crate::memslots::Memslots;
use crate::uaccess::UserPtr;
use crate::vcpu::Loaded;
use kvm_bindings::kvm_translation;
use vmx_model::arch::{Cr0, Cr4};

/// No guest-physical address (`INVALID_GPA`); without paging, a linear address may be it.
const INVALID_GPA: u64 = u64::MAX;

const PRESENT: u64 = 1;
const PAGE_SIZE_BIT: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// How the guest pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Paging {
    None,
    /// Two levels of 32-bit entries; with CR4.PSE 4-MiB pages.
    Bits32 {
        large_pages: bool,
    },
    /// Three levels, of which the first is held in registers.
    Pae,
    /// Four or five levels.
    Long {
        levels: u32,
    },
}

impl Loaded<'_> {
    /// Translates a linear address as a supervisor-mode read; nothing is marked as accessed.
    /// `writeable` is always 1 and `usermode` 0, as in the kernel.
    pub(crate) fn translate(&self, translation: &mut kvm_translation) {
        let physical = self.guest_physical(translation.linear_address);
        translation.physical_address = physical.unwrap_or(INVALID_GPA);
        translation.valid = u8::from(translation.physical_address != INVALID_GPA);
        translation.writeable = 1;
        translation.usermode = 0;
    }

    /// Returns the guest-physical address of a linear one, if it is mapped.
    pub(crate) fn guest_physical(&self, linear: u64) -> Option<u64> {
        let slots = self.vm.memslots();
        match self.paging() {
            Paging::None => Some(linear),
            Paging::Bits32 { large_pages } => {
                walk_32(&slots, self.state.cr3, linear as u32, large_pages)
            }
            Paging::Pae => {
                let pdpte = self.state.pdptrs[(linear >> 30 & 3) as usize];
                present(pdpte).and_then(|entry| walk(&slots, entry, linear & 0xffff_ffff, 2))
            }
            Paging::Long { levels } => walk(&slots, self.state.cr3, linear, levels),
        }
    }

    fn paging(&self) -> Paging {
        let cr4 = Cr4::from_bits_retain(self.state.cr4);
        if self.state.cr0 & Cr0::PG.bits() == 0 {
            Paging::None
        } else if self.is_long_mode() {
            Paging::Long {
                levels: if cr4.contains(Cr4::LA57) { 5 } else { 4 },
            }
        } else if cr4.contains(Cr4::PAE) {
            Paging::Pae
        } else {
            Paging::Bits32 {
                large_pages: cr4.contains(Cr4::PSE),
            }
        }
    }

    /// Loads the PDPTEs that CR3 points to; what is not in a slot is not present
    /// (`load_pdptrs()`).
    pub(crate) fn load_pdptrs(&mut self) {
        let slots = self.vm.memslots();
        let table = self.state.cr3 & 0xffff_ffe0;
        for (index, pdpte) in self.state.pdptrs.iter_mut().enumerate() {
            *pdpte = read(&slots, table + 8 * index as u64).unwrap_or(0);
        }
    }
}

const fn present(entry: u64) -> Option<u64> {
    if entry & PRESENT != 0 {
        Some(entry)
    } else {
        None
    }
}

/// Walks tables of 512 entries of eight bytes.
fn walk(slots: &Memslots, root: u64, linear: u64, levels: u32) -> Option<u64> {
    let mut table = root & ADDRESS;
    for level in (1..=levels).rev() {
        let shift = 12 + 9 * (level - 1);
        let entry = present(read(slots, table + 8 * (linear >> shift & 0x1ff))?)?;
        let is_page = level == 1 || (level <= 3 && entry & PAGE_SIZE_BIT != 0);
        if is_page {
            let offset = (1 << shift) - 1;
            return Some(entry & ADDRESS & !offset | linear & offset);
        }
        table = entry & ADDRESS;
    }
    None
}

/// Walks tables of 1024 entries of four bytes.
fn walk_32(slots: &Memslots, cr3: u64, linear: u32, large_pages: bool) -> Option<u64> {
    let linear = u64::from(linear);
    let entry_at = |table: u64, index: u64| {
        let at = (table & 0xffff_f000) + 4 * (index & 0x3ff);
        read::<u32>(slots, at).and_then(|entry| present(u64::from(entry)))
    };
    let pde = entry_at(cr3, linear >> 22)?;
    if large_pages && pde & PAGE_SIZE_BIT != 0 {
        // PSE-36: bits 20:13 are bits 39:32 of the address.
        let base = pde & 0xffc0_0000 | (pde >> 13 & 0xff) << 32;
        return Some(base | linear & 0x3f_ffff);
    }
    let pte = entry_at(pde, linear >> 12)?;
    Some(pte & 0xffff_f000 | linear & 0xfff)
}

/// Reads an aligned value of guest memory.
fn read<T: crate::uaccess::Plain>(slots: &Memslots, gpa: u64) -> Option<T> {
    let slot = slots.find(gpa >> 12)?;
    let offset = gpa - (slot.base_gfn << 12);
    UserPtr(slot.userspace_addr).offset(offset).read().ok()
}
