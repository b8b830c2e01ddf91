//! Selectors, segment descriptors and gates as they lie in memory.
//!
//! SDM Vol. 3A, "Segment Selectors", "Segment Descriptors", "System Descriptor Types", "Call
//! Gates", "IDT Descriptors", "64-Bit Mode IDT", "TSS Descriptor". Pure values; reading and
//! checking them is [`crate::segmentation`].

use vmx_model::arch::{AccessRights, Segment};

/// A segment selector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Selector(pub(crate) u16);

impl Selector {
    /// Returns the requested privilege level.
    pub(crate) const fn rpl(self) -> u8 {
        (self.0 & 3) as u8
    }

    /// Whether this is a null selector: index 0 of the GDT, any RPL.
    pub(crate) const fn is_null(self) -> bool {
        self.0 & !3 == 0
    }

    /// Whether the selector refers to the LDT.
    pub(crate) const fn is_ldt(self) -> bool {
        self.0 & 4 != 0
    }

    /// Returns the offset of the descriptor in its table, in bytes.
    pub(crate) const fn table_offset(self) -> u64 {
        (self.0 & !7) as u64
    }

    /// Returns the selector as error code: without RPL (SDM Vol. 3A, "Error Code").
    pub(crate) const fn error_code(self) -> u32 {
        (self.0 & !3) as u32
    }

    /// Returns this selector with another RPL.
    pub(crate) const fn with_rpl(self, rpl: u8) -> Self {
        Self(self.0 & !3 | (rpl & 3) as u16)
    }
}

/// What a system descriptor (S = 0) describes. Sizes are in bytes: 2, 4 or 8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum System {
    /// Nothing: a reserved type.
    Reserved,
    /// A task-state segment.
    Tss {
        /// Size of the general registers that it holds.
        size: u8,
        /// Whether the busy bit is set.
        is_busy: bool,
    },
    /// A local descriptor table.
    Ldt,
    /// A call gate with the size of what it pushes.
    CallGate(u8),
    /// A task gate.
    TaskGate,
    /// An interrupt gate with the size of what it pushes.
    InterruptGate(u8),
    /// A trap gate with the size of what it pushes.
    TrapGate(u8),
}

const fn tss(size: u8, is_busy: bool) -> System {
    System::Tss { size, is_busy }
}

/// SDM Vol. 3A, "System-Segment and Gate-Descriptor Types", column "32-Bit Mode".
const LEGACY_TYPES: [System; 16] = [
    System::Reserved,
    tss(2, false),
    System::Ldt,
    tss(2, true),
    System::CallGate(2),
    System::TaskGate,
    System::InterruptGate(2),
    System::TrapGate(2),
    System::Reserved,
    tss(4, false),
    System::Reserved,
    tss(4, true),
    System::CallGate(4),
    System::Reserved,
    System::InterruptGate(4),
    System::TrapGate(4),
];

/// The same table, column "IA-32e Mode".
const IA32E_TYPES: [System; 16] = [
    System::Reserved,
    System::Reserved,
    System::Ldt,
    System::Reserved,
    System::Reserved,
    System::Reserved,
    System::Reserved,
    System::Reserved,
    System::Reserved,
    tss(8, false),
    System::Reserved,
    tss(8, true),
    System::CallGate(8),
    System::Reserved,
    System::InterruptGate(8),
    System::TrapGate(8),
];

/// Which column of the table of system types applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Column {
    /// Outside IA-32e mode.
    Legacy,
    /// In IA-32e mode.
    Ia32e,
}

/// The type bit that marks a code or data segment as accessed.
pub(crate) const ACCESSED: u64 = 1 << 40;
/// The type bit that marks a TSS as busy.
pub(crate) const TSS_BUSY: u64 = 1 << 41;

/// A descriptor: its first eight bytes, and the upper eight of a 16-byte one (0 otherwise).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Descriptor {
    /// Bytes 0 to 7.
    pub(crate) low: u64,
    /// Bytes 8 to 15.
    pub(crate) high: u64,
}

impl Descriptor {
    /// Returns the access rights, in the VMCS's format.
    pub(crate) const fn access(self) -> AccessRights {
        AccessRights((self.low >> 40) as u32 & 0xf0ff)
    }

    /// Returns the base address; the upper half comes from a 16-byte descriptor.
    pub(crate) const fn base(self) -> u64 {
        (self.low >> 16) & 0xff_ffff | (self.low >> 56) << 24 | self.high << 32
    }

    /// Returns the limit in bytes.
    pub(crate) const fn limit(self) -> u32 {
        let raw = (self.low & 0xffff | (self.low >> 32) & 0xf_0000) as u32;
        if self.access().is_granular() {
            raw << 12 | 0xfff
        } else {
            raw
        }
    }

    /// Returns the hidden part of a segment register that holds this segment.
    pub(crate) const fn segment(self, selector: Selector) -> Segment {
        Segment {
            base: self.base(),
            limit: self.limit(),
            access: self.access(),
            selector: selector.0,
        }
    }

    /// Returns what a system descriptor describes; [`System::Reserved`] for code and data.
    pub(crate) fn system(self, column: Column) -> System {
        let rights = self.access();
        if rights.is_code_or_data() {
            return System::Reserved;
        }
        let kind = usize::from(rights.segment_type());
        match column {
            Column::Legacy => LEGACY_TYPES[kind],
            Column::Ia32e => IA32E_TYPES[kind],
        }
    }

    /// Returns the target selector of a gate.
    pub(crate) const fn gate_selector(self) -> Selector {
        Selector((self.low >> 16) as u16)
    }

    /// Returns the target offset of a gate of `size` bytes.
    pub(crate) const fn gate_offset(self, size: u8) -> u64 {
        let low = self.low & 0xffff;
        match size {
            2 => low,
            4 => low | (self.low >> 32) & 0xffff_0000,
            _ => low | (self.low >> 32) & 0xffff_0000 | self.high << 32,
        }
    }

    /// Returns the number of parameters that a call gate copies.
    pub(crate) const fn parameter_count(self) -> usize {
        ((self.low >> 32) & 0x1f) as usize
    }

    /// Returns the interrupt-stack-table index of a 64-bit gate.
    pub(crate) const fn interrupt_stack(self) -> u8 {
        ((self.low >> 32) & 7) as u8
    }

    /// Whether the type field of the upper half (bits 12:8 of its second doubleword) is zero, as
    /// it has to be.
    pub(crate) const fn is_upper_type_zero(self) -> bool {
        (self.high >> 40) & 0x1f == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flat_code_descriptor_is_taken_apart() {
        let d = Descriptor {
            low: 0x12cf_9b34_5678_ffff,
            high: 0,
        };
        assert_eq!(d.base(), 0x1234_5678);
        assert_eq!(d.limit(), 0xffff_ffff);
        assert_eq!(d.access().0, 0xc09b);
    }

    #[test]
    fn a_byte_granular_limit_is_taken_as_it_is() {
        let d = Descriptor {
            low: 0x0003_9200_0000_1234,
            high: 0,
        };
        assert_eq!(d.limit(), 0x3_1234);
    }

    #[test]
    fn gate_offsets_have_the_size_of_the_gate() {
        let d = Descriptor {
            low: 0x1122_8e05_0008_3344,
            high: 0x5566_7788,
        };
        assert_eq!(d.gate_offset(2), 0x3344);
        assert_eq!(d.gate_offset(4), 0x1122_3344);
        assert_eq!(d.gate_offset(8), 0x5566_7788_1122_3344);
        assert_eq!(d.gate_selector().0, 8);
        assert_eq!(d.interrupt_stack(), 5);
        assert_eq!(d.system(Column::Ia32e), System::InterruptGate(8));
        assert_eq!(d.system(Column::Legacy), System::InterruptGate(4));
    }

    #[test]
    fn sixteen_bit_types_do_not_exist_in_ia32e_mode() {
        for kind in 0..8_u64 {
            let d = Descriptor {
                low: (0x80 | kind) << 40,
                high: 0,
            };
            let expected = if kind == 2 {
                System::Ldt
            } else {
                System::Reserved
            };
            assert_eq!(d.system(Column::Ia32e), expected, "type {kind}");
        }
    }
}
