//! Paging: linear to physical addresses.
//!
//! SDM Vol. 3A, "Paging": 32-bit, PAE, 4-level and 5-level paging, access rights, shadow-stack
//! addresses, protection keys, page-fault exceptions, accessed and dirty flags. [`Cpu::walk`] is
//! the only entry; whoever caches its answers (the TLB) is a neighbour. Every paging-structure
//! access and the final address go through [`Cpu::guest_physical`].

use bitflags::bitflags;
use vmx_model::addr::{Gpa, Hpa, Linear};
use vmx_model::arch::{ArchState, Cr0, Cr4, Efer, Rflags};
use vmx_model::event::Exception;

use super::phys::Replaced;
use super::{Access, Privilege};
use crate::cpuid::Feature;
use crate::{Cpu, Exec};

bitflags! {
    /// Kinds of access that a translation allows.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct Allowed: u8 {
        /// Data reads.
        const READ = 1 << 0;
        /// Data writes; for a linear address only once the dirty flag is set.
        const WRITE = 1 << 1;
        /// Instruction fetches.
        const EXECUTE = 1 << 2;
    }

    /// Error code of a page fault (SDM Vol. 3A, "Page-Fault Exceptions").
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct PageFault: u32 {
        /// The fault was not caused by a non-present page.
        const P = 1 << 0;
        /// A write.
        const WR = 1 << 1;
        /// A user-mode access.
        const US = 1 << 2;
        /// A reserved bit was set in a paging-structure entry.
        const RSVD = 1 << 3;
        /// An instruction fetch.
        const ID = 1 << 4;
        /// A protection-key violation.
        const PK = 1 << 5;
        /// A shadow-stack access.
        const SS = 1 << 6;
    }
}

impl From<Access> for Allowed {
    fn from(access: Access) -> Self {
        match access {
            Access::Read => Self::READ,
            Access::Write => Self::WRITE,
            Access::Execute => Self::EXECUTE,
        }
    }
}

/// What the walk found.
///
/// `allowed` holds for accesses of the same privilege (user-mode, supervisor-mode by CPL, implicit
/// supervisor-mode, to a shadow stack) under the present CR0.WP, CR4.SMEP/SMAP/PKE/PKS, EFER.NXE,
/// RFLAGS.AC, PKRU and IA32_PKRS: a cache of it has to be tagged with, or flushed upon a change of,
/// these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Translation {
    /// The physical address of the byte.
    pub(crate) physical: Hpa,
    /// Size of the page that paging found; EPT may map it by smaller ones.
    pub(crate) linear_page_bytes: u64,
    /// What accesses the translation allows.
    pub(crate) allowed: Allowed,
    /// Whether the page is global: it survives MOV to CR3.
    pub(crate) is_global: bool,
}

/// What an access with a physical address is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// The PDPTEs, when CR3 is loaded.
    Pdptes,
    /// A paging-structure entry, on the way to this linear address.
    PagingStructure(Linear),
    /// The data or code at this linear address, with the rights that paging gives to it.
    Page(Linear, PageRights),
    /// The shadow stack at this linear address, with its rights, and whether it is of user mode.
    ShadowStack(Linear, PageRights, bool),
}

/// The host-physical side of a guest-physical address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Physical {
    pub(crate) address: Hpa,
    pub(crate) allowed: Allowed,
}

/// Bits of a paging-structure entry.
mod entry {
    pub(super) const P: u64 = 1 << 0;
    pub(super) const RW: u64 = 1 << 1;
    pub(super) const US: u64 = 1 << 2;
    pub(super) const A: u64 = 1 << 5;
    pub(super) const D: u64 = 1 << 6;
    pub(super) const PS: u64 = 1 << 7;
    pub(super) const G: u64 = 1 << 8;
    pub(super) const XD: u64 = 1 << 63;
    /// Bits 51:12.
    pub(super) const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
}

/// A paging mode (SDM Vol. 3A, "Paging Modes and Control Bits").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PagingMode {
    Bits32,
    Pae,
    Level4,
    Level5,
}

impl PagingMode {
    /// Returns the paging mode; `None` without paging.
    pub(crate) fn of(state: &ArchState) -> Option<Self> {
        if !state.cr0.contains(Cr0::PG) {
            None
        } else if !state.cr4.contains(Cr4::PAE) {
            Some(Self::Bits32)
        } else if !state.efer.contains(Efer::LMA) {
            Some(Self::Pae)
        } else if state.cr4.contains(Cr4::LA57) {
            Some(Self::Level5)
        } else {
            Some(Self::Level4)
        }
    }

    /// Returns the lowest bit of the linear address that each table's index is taken from.
    const fn shifts(self) -> &'static [u32] {
        match self {
            Self::Bits32 => &[22, 12],
            Self::Pae => &[21, 12],
            Self::Level4 => &[39, 30, 21, 12],
            Self::Level5 => &[48, 39, 30, 21, 12],
        }
    }

    const fn index_bits(self) -> u32 {
        match self {
            Self::Bits32 => 10,
            _ => 9,
        }
    }

    const fn entry_bytes(self) -> usize {
        match self {
            Self::Bits32 => 4,
            _ => 8,
        }
    }

    /// Whether protection keys exist in this mode.
    const fn has_keys(self) -> bool {
        matches!(self, Self::Level4 | Self::Level5)
    }
}

/// An access whose translation is asked for.
#[derive(Clone, Copy)]
struct Request {
    linear: Linear,
    access: Access,
    is_user: bool,
    is_implicit: bool,
    is_shadow_stack: bool,
}

impl Request {
    /// Returns what the final access is for.
    const fn purpose(&self, rights: PageRights) -> Purpose {
        if self.is_shadow_stack {
            Purpose::ShadowStack(self.linear, rights, self.is_user)
        } else {
            Purpose::Page(self.linear, rights)
        }
    }
}

/// What the entries on the way say together; without paging everything is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageRights {
    /// It is a user-mode address.
    pub(crate) is_user: bool,
    /// It may be written.
    pub(crate) is_writable: bool,
    /// Instructions may be fetched from it.
    pub(crate) is_executable: bool,
}

impl Default for PageRights {
    fn default() -> Self {
        Self {
            is_user: true,
            is_writable: true,
            is_executable: true,
        }
    }
}

/// What the entries on the way say together, and the protection key of the page.
#[derive(Clone, Copy)]
struct Rights {
    page: PageRights,
    key: u32,
    /// It is a shadow-stack address: only the leaf is not writable, and its dirty flag is set.
    is_shadow_stack: bool,
}

/// An entry that the walk used.
#[derive(Clone, Copy, Default)]
struct Used {
    at: Gpa,
    value: u64,
}

/// The entries that a walk used, and where they led.
struct Path {
    used: [Used; 5],
    count: usize,
    leaf_shift: u32,
    rights: Rights,
}

impl Path {
    fn leaf(&self) -> u64 {
        self.used[self.count - 1].value
    }
}

impl Cpu {
    /// Translates a linear address for one access, and sets accessed and dirty flags. A faulting
    /// access sets none.
    ///
    /// # Errors
    /// #PF, or what [`Self::guest_physical`] answers.
    pub(crate) fn walk(
        &mut self,
        linear: Linear,
        access: Access,
        privilege: Privilege,
    ) -> Exec<Translation> {
        let is_implicit = privilege == Privilege::Supervisor;
        let mut request = Request {
            linear,
            access,
            is_user: match privilege {
                Privilege::Current => self.cpl() == 3,
                Privilege::UserShadowStack => true,
                Privilege::Supervisor | Privilege::SupervisorShadowStack => false,
            },
            is_implicit,
            is_shadow_stack: privilege.is_shadow_stack(),
        };
        if !self.state.efer.contains(Efer::LMA) {
            request.linear = Linear(linear.0 & 0xffff_ffff);
        }
        match PagingMode::of(&self.state) {
            None => self.unpaged(request),
            Some(mode) => self.paged(mode, request),
        }
    }

    /// Translates a guest-physical address: through EPT, if that is in use.
    pub(crate) fn guest_physical(
        &mut self,
        address: Gpa,
        access: Access,
        purpose: Purpose,
    ) -> Exec<Physical> {
        if let Some(ept) = self.ept_in_use() {
            return self.through_ept(ept, address, access, purpose);
        }
        Ok(Physical {
            address: Hpa(address.0),
            allowed: Allowed::all(),
        })
    }

    /// Loads the four PDPTEs of PAE paging for this value of CR3 (SDM Vol. 3A, "PDPTE Registers").
    ///
    /// # Errors
    /// #GP(0) if a present one has a reserved bit set.
    pub(crate) fn read_pdptes(&mut self, cr3: u64) -> Exec<[u64; 4]> {
        let mut pdptes = [0; 4];
        for (n, pdpte) in pdptes.iter_mut().enumerate() {
            let at = Gpa((cr3 & 0xffff_ffe0) + 8 * n as u64);
            *pdpte = self.paging_entry(at, 8, Purpose::Pdptes)?;
        }
        // Bits 2:1, 8:5, and what lies beyond MAXPHYADDR.
        let reserved = 0x1e6 | !physical_mask(self.cpuid.physical_address_bits());
        if pdptes
            .iter()
            .any(|e| e & entry::P != 0 && e & reserved != 0)
        {
            return Err(Exception::gp(0).into());
        }
        Ok(pdptes)
    }

    fn unpaged(&mut self, request: Request) -> Exec<Translation> {
        let purpose = request.purpose(PageRights::default());
        let physical = self.guest_physical(Gpa(request.linear.0), request.access, purpose)?;
        Ok(Translation {
            physical: physical.address,
            linear_page_bytes: 4096,
            allowed: physical.allowed,
            is_global: false,
        })
    }

    fn paged(&mut self, mode: PagingMode, request: Request) -> Exec<Translation> {
        loop {
            let path = self.descend(mode, request)?;
            let (allowed, is_key_denied) = self.allowed(mode, &path.rights, request);
            if !allowed.contains(request.access.into()) {
                let mut code = PageFault::P;
                code.set(PageFault::PK, is_key_denied);
                return Err(self.page_fault(mode, request, code));
            }
            if self.mark(mode, &path, request)? {
                return self.finish(&path, request, allowed);
            }
            // Somebody else changed an entry on the way: walk again, as hardware does.
        }
    }

    /// Follows the entries to the page; #PF if one is not present or has a reserved bit set.
    fn descend(&mut self, mode: PagingMode, request: Request) -> Exec<Path> {
        let mut path = Path {
            used: [Used::default(); 5],
            count: 0,
            leaf_shift: 12,
            rights: Rights {
                page: PageRights::default(),
                key: 0,
                is_shadow_stack: false,
            },
        };
        let mut table = self.root(mode, request)?;
        for &shift in mode.shifts() {
            let index = request.linear.0 >> shift & ((1 << mode.index_bits()) - 1);
            let at = Gpa(table + index * mode.entry_bytes() as u64);
            let purpose = Purpose::PagingStructure(request.linear);
            let value = self.paging_entry(at, mode.entry_bytes(), purpose)?;
            if value & entry::P == 0 {
                return Err(self.page_fault(mode, request, PageFault::empty()));
            }
            let is_leaf = shift == 12 || self.is_large(mode, shift, value);
            if value & self.reserved(mode, shift, is_leaf) != 0 {
                return Err(self.page_fault(mode, request, PageFault::P | PageFault::RSVD));
            }
            path.used[path.count] = Used { at, value };
            path.count += 1;
            let is_shadow_leaf = value & (entry::RW | entry::D) == entry::D;
            path.rights.is_shadow_stack = path.rights.page.is_writable && is_shadow_leaf;
            path.rights.page.is_user &= value & entry::US != 0;
            path.rights.page.is_writable &= value & entry::RW != 0;
            path.rights.page.is_executable &= value & entry::XD == 0;
            if is_leaf {
                path.leaf_shift = shift;
                path.rights.key = (value >> 59) as u32 & 0xf;
                break;
            }
            table = value & entry::ADDRESS;
        }
        Ok(path)
    }

    /// Returns the address of the first table.
    fn root(&mut self, mode: PagingMode, request: Request) -> Exec<u64> {
        let mask = physical_mask(self.cpuid.physical_address_bits());
        match mode {
            PagingMode::Bits32 => Ok(self.state.cr3 & 0xffff_f000),
            PagingMode::Pae => {
                let pdpte = self.state.pdptes[(request.linear.0 >> 30) as usize & 3];
                if pdpte & entry::P == 0 {
                    return Err(self.page_fault(mode, request, PageFault::empty()));
                }
                Ok(pdpte & entry::ADDRESS & mask)
            }
            _ => Ok(self.state.cr3 & entry::ADDRESS & mask),
        }
    }

    fn is_large(&self, mode: PagingMode, shift: u32, value: u64) -> bool {
        value & entry::PS != 0
            && match (mode, shift) {
                (PagingMode::Bits32, 22) => self.state.cr4.contains(Cr4::PSE),
                (_, 21) => true,
                (_, 30) => self.has(Feature::Page1gb),
                _ => false,
            }
    }

    /// Returns the reserved bits of a present entry.
    fn reserved(&self, mode: PagingMode, shift: u32, is_leaf: bool) -> u64 {
        let bits = self.cpuid.physical_address_bits();
        if mode == PagingMode::Bits32 {
            // PSE-36: bits 20:13 hold address bits 39:32, as far as MAXPHYADDR reaches.
            let high = (0xff << bits.saturating_sub(32)) & 0xff;
            return if is_leaf && shift == 22 {
                1 << 21 | high << 13
            } else {
                0
            };
        }
        let mut reserved = !physical_mask(bits) & entry::ADDRESS;
        if mode == PagingMode::Pae {
            reserved |= 0x7ff0_0000_0000_0000;
        }
        if !self.state.efer.contains(Efer::NXE) {
            reserved |= entry::XD;
        }
        match (is_leaf, shift) {
            (_, 12) => reserved,
            // Bit 12 is PAT; the other bits below the page's address are reserved.
            (true, _) => reserved | (((1 << shift) - 1) & !0x1fff),
            // An entry that might reference a page has PS = 0 here; one that never may, must.
            (false, _) => reserved | entry::PS,
        }
    }

    /// Returns what the rights allow (SDM Vol. 3A, "Determination of Access Rights"), and whether
    /// a protection key denies the requested access.
    fn allowed(&self, mode: PagingMode, rights: &Rights, request: Request) -> (Allowed, bool) {
        let by_page = if request.is_shadow_stack {
            shadow_stack_rights(rights, request.is_user)
        } else if request.is_user {
            user_rights(rights)
        } else {
            self.supervisor_rights(rights, request.is_implicit)
        };
        let denied = self.denied_by_key(mode, rights, request.is_user);
        (
            by_page.difference(denied),
            denied.contains(request.access.into()),
        )
    }

    fn supervisor_rights(&self, rights: &Rights, is_implicit: bool) -> Allowed {
        let ArchState { cr0, cr4, .. } = self.state;
        let mut allowed = Allowed::READ;
        allowed.set(
            Allowed::WRITE,
            rights.page.is_writable || !cr0.contains(Cr0::WP),
        );
        allowed.set(Allowed::EXECUTE, rights.page.is_executable);
        if !rights.page.is_user {
            return allowed;
        }
        let is_ac = !is_implicit && self.state.rflags.contains(Rflags::AC);
        if cr4.contains(Cr4::SMAP) && !is_ac {
            allowed.remove(Allowed::READ | Allowed::WRITE);
        }
        if cr4.contains(Cr4::SMEP) {
            allowed.remove(Allowed::EXECUTE);
        }
        allowed
    }

    /// Returns the data accesses that the page's protection key denies (SDM Vol. 3A, "Protection
    /// Keys").
    fn denied_by_key(&self, mode: PagingMode, rights: &Rights, is_user: bool) -> Allowed {
        let none = Allowed::empty();
        if !mode.has_keys() {
            return none;
        }
        let cr4 = self.state.cr4;
        let register = match rights.page.is_user {
            true if cr4.contains(Cr4::PKE) => self.system.pkru,
            false if cr4.contains(Cr4::PKS) && !is_user => self.state.pkrs as u32,
            _ => return none,
        };
        let pair = register >> (2 * rights.key);
        let is_write_protected = is_user || self.state.cr0.contains(Cr0::WP);
        if pair & 1 != 0 {
            Allowed::READ | Allowed::WRITE
        } else if pair & 2 != 0 && is_write_protected {
            Allowed::WRITE
        } else {
            none
        }
    }

    /// Sets the accessed flags, and the dirty flag for a write; false if an entry has changed.
    fn mark(&mut self, mode: PagingMode, path: &Path, request: Request) -> Exec<bool> {
        for (n, used) in path.used[..path.count].iter().enumerate() {
            let is_leaf = n + 1 == path.count;
            let dirty = if is_leaf && request.access == Access::Write {
                entry::D
            } else {
                0
            };
            let new = used.value | entry::A | dirty;
            if new == used.value {
                continue;
            }
            let purpose = Purpose::PagingStructure(request.linear);
            let at = self.guest_physical(used.at, Access::Write, purpose)?;
            let bytes = mode.entry_bytes();
            if !self.update_entry(at.address, bytes, used.value, new)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn finish(&mut self, path: &Path, request: Request, allowed: Allowed) -> Exec<Translation> {
        let leaf = path.leaf();
        let page_bytes = 1 << path.leaf_shift;
        let mut page = leaf & entry::ADDRESS & !(page_bytes - 1);
        if path.leaf_shift == 22 {
            page |= (leaf >> 13 & 0xff) << 32;
        }
        let at = Gpa(page | request.linear.0 & (page_bytes - 1));
        let purpose = request.purpose(path.rights.page);
        let physical = self.guest_physical(at, request.access, purpose)?;
        let mut allowed = allowed & physical.allowed;
        if leaf & entry::D == 0 && request.access != Access::Write {
            allowed.remove(Allowed::WRITE);
        }
        Ok(Translation {
            physical: physical.address,
            linear_page_bytes: page_bytes,
            allowed,
            is_global: leaf & entry::G != 0 && self.state.cr4.contains(Cr4::PGE),
        })
    }

    /// Reads a paging-structure entry.
    fn paging_entry(&mut self, at: Gpa, bytes: usize, purpose: Purpose) -> Exec<u64> {
        let physical = self.guest_physical(at, Access::Read, purpose)?;
        self.check_physical_apic_access(physical.address)?;
        let entry = self.view.load_entry(physical.address, bytes);
        entry.ok_or_else(|| self.host_fault(physical.address))
    }

    /// Sets flags in a paging-structure entry; false if it has changed meanwhile.
    pub(crate) fn update_entry(&mut self, at: Hpa, bytes: usize, old: u64, new: u64) -> Exec<bool> {
        let replaced = self.view.replace_entry(at, bytes, old, new);
        self.hot.code_written |= replaced == Replaced::DoneOverCode;
        match replaced {
            Replaced::Vanished => Err(self.host_fault(at)),
            other => Ok(other != Replaced::Changed),
        }
    }

    fn page_fault(&self, mode: PagingMode, request: Request, cause: PageFault) -> crate::Fault {
        let mut code = cause;
        code.set(PageFault::WR, request.access == Access::Write);
        code.set(PageFault::US, request.is_user);
        code.set(PageFault::SS, request.is_shadow_stack);
        let has_nx = mode != PagingMode::Bits32 && self.state.efer.contains(Efer::NXE);
        let reports_fetch = has_nx || self.state.cr4.contains(Cr4::SMEP);
        let is_fetch = request.access == Access::Execute;
        code.set(PageFault::ID, is_fetch && reports_fetch);
        Exception::pf(code.bits(), request.linear.0).into()
    }
}

fn user_rights(rights: &Rights) -> Allowed {
    let mut allowed = Allowed::empty();
    if rights.page.is_user {
        allowed |= Allowed::READ;
        allowed.set(Allowed::WRITE, rights.page.is_writable);
        allowed.set(Allowed::EXECUTE, rights.page.is_executable);
    }
    allowed
}

/// Shadow-stack accesses reach shadow-stack addresses of their kind, whatever CR0.WP and CR4.SMAP say.
fn shadow_stack_rights(rights: &Rights, is_user: bool) -> Allowed {
    if rights.is_shadow_stack && rights.page.is_user == is_user {
        Allowed::READ | Allowed::WRITE
    } else {
        Allowed::empty()
    }
}

/// Returns the mask of a physical address of `bits` bits.
pub(crate) const fn physical_mask(bits: u8) -> u64 {
    if bits >= 64 {
        u64::MAX
    } else {
        (1 << bits) - 1
    }
}

#[cfg(test)]
mod coherence;
#[cfg(test)]
mod tests;
