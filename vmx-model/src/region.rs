//! The bytes of a VMCS region: what VMCLEAR writes to memory and VMPTRLD reads from it.
//!
//! SDM Vol. 3C, "Format of the VMCS Region". The first eight bytes are architectural: the VMCS
//! revision identifier with the shadow-VMCS indicator, and the VMX-abort indicator. The format of
//! the rest is the implementation's own; the revision identifier says which.
//!
//! Our layout, [`RegionLayout::V1`]:
//!
//! | bytes | what |
//! |---|---|
//! | 3:0 | bits 30:0 VMCS revision identifier, bit 31 shadow-VMCS indicator; never written by us |
//! | 7:4 | VMX-abort indicator; written by a VMX abort only |
//! | 15:8 | written by VMCLEAR of a VMCS that is not active: a mark, `VMCLEAR` |
//! | 63:16 | unused, kept |
//! | 64 + 8 * n | the field of table row n ([`Field::ALL`]), 64 bits, little-endian |
//!
//! Every content decodes: a field takes the bits that its width has. A page of zeroes is a VMCS
//! whose fields are all zero.

use crate::addr::Hpa;
use crate::field::{Field, Half};
use crate::memory::PhysicalMemory;
use crate::vmcs::Vmcs;

/// The size of the page that a VMCS or VMXON region lies in, in bytes.
///
/// Differs: a processor may report a smaller region in IA32_VMX_BASIC\[44:32\]. Alignment gives each
/// region a page of its own, and our layout uses it.
pub const REGION_BYTES: u64 = 4096;

const ABORT_INDICATOR: u64 = 4;
const FIELDS: u64 = 64;
const FIELDS_BYTES: usize = 8 * Field::COUNT;

const _: () = assert!(FIELDS as usize + FIELDS_BYTES <= REGION_BYTES as usize);

/// The first dword of a region.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct RegionHeader(pub u32);

impl RegionHeader {
    /// Bit 31: the shadow-VMCS indicator.
    pub const SHADOW: u32 = 1 << 31;

    /// Reads the header of the region at `pointer`.
    pub fn read(memory: &dyn PhysicalMemory, pointer: Hpa) -> Self {
        Self(memory.read_u32(pointer))
    }

    /// Returns the VMCS revision identifier.
    #[must_use]
    pub const fn revision(self) -> u32 {
        self.0 & !Self::SHADOW
    }

    /// Whether this is a shadow VMCS.
    #[must_use]
    pub const fn is_shadow(self) -> bool {
        self.0 & Self::SHADOW != 0
    }
}

/// How the fields lie in a region.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum RegionLayout {
    /// The layout that the module describes.
    #[default]
    V1,
}

impl RegionLayout {
    /// Returns the layout of regions with this revision identifier.
    ///
    /// The revision identifiers of real processors stand for formats that are not published; under
    /// a real processor's profile they name our first layout.
    #[must_use]
    pub const fn of_revision(_revision: u32) -> Self {
        Self::V1
    }

    /// Reads the fields of the region at `pointer`.
    #[must_use]
    pub fn read(self, memory: &dyn PhysicalMemory, pointer: Hpa) -> Box<Vmcs> {
        let mut bytes = [0; FIELDS_BYTES];
        memory.read(pointer.offset(FIELDS), &mut bytes);
        let mut vmcs = Box::<Vmcs>::default();
        let (words, _) = bytes.as_chunks::<8>();
        for (field, word) in Field::ALL.iter().zip(words) {
            vmcs.set(*field, u64::from_le_bytes(*word));
        }
        vmcs
    }

    /// Writes the fields of `vmcs` to the region at `pointer`; the first eight bytes stay.
    pub fn write(self, memory: &mut dyn PhysicalMemory, pointer: Hpa, vmcs: &Vmcs) {
        let mut bytes = [0; FIELDS_BYTES];
        let (words, _) = bytes.as_chunks_mut::<8>();
        for (field, word) in Field::ALL.iter().zip(words) {
            *word = vmcs.get(*field).to_le_bytes();
        }
        memory.write(pointer.offset(FIELDS), &bytes);
    }

    /// Reads one field of the region at `pointer`.
    #[must_use]
    pub fn read_field(self, memory: &dyn PhysicalMemory, pointer: Hpa, field: Field) -> u64 {
        memory.read_u64(pointer.offset(offset_of(field))) & field.value_mask()
    }

    /// Writes one field, or its high half, of the region at `pointer`.
    pub fn write_field(
        self,
        memory: &mut dyn PhysicalMemory,
        pointer: Hpa,
        (field, half): (Field, Half),
        value: u64,
    ) {
        let old = self.read_field(memory, pointer, field);
        let new = match half {
            Half::Full => value & field.value_mask(),
            Half::High => old & 0xffff_ffff | value << 32,
        };
        memory.write_u64(pointer.offset(offset_of(field)), new);
    }
}

const fn offset_of(field: Field) -> u64 {
    FIELDS + 8 * field.index() as u64
}

const CLEARED: u64 = 8;
const CLEARED_MARK: u64 = u64::from_le_bytes(*b"VMCLEAR\0");

/// Marks the region at `pointer` as the operand of VMCLEAR, and returns whether there is memory
/// that can hold the mark: without it there is no VMCS to remember.
pub(crate) fn mark_cleared(memory: &mut dyn PhysicalMemory, pointer: Hpa) -> bool {
    memory.write_u64(pointer.offset(CLEARED), CLEARED_MARK);
    memory.read_u64(pointer.offset(CLEARED)) == CLEARED_MARK
}

/// Writes the VMX-abort indicator of the region at `pointer` (SDM Vol. 3C, "VMX Aborts").
pub fn write_abort_indicator(memory: &mut dyn PhysicalMemory, pointer: Hpa, indicator: u32) {
    memory.write_u32(pointer.offset(ABORT_INDICATOR), indicator);
}

/// Reads the VMX-abort indicator of the region at `pointer`.
#[must_use]
pub fn read_abort_indicator(memory: &dyn PhysicalMemory, pointer: Hpa) -> u32 {
    memory.read_u32(pointer.offset(ABORT_INDICATOR))
}
