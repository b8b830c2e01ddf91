//! The three kinds of address that a virtualized processor handles.
//!
//! A bare `u64` never crosses a module as an address: a guest-physical address that is used as a
//! host-physical one is the classic hypervisor bug.

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
        #[repr(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// Returns the address of the 4-KiB page that holds this address.
            #[must_use]
            pub const fn page(self) -> Self {
                Self(self.0 & !0xfff)
            }

            /// Returns the offset within the 4-KiB page, in bytes.
            #[must_use]
            pub const fn page_offset(self) -> u64 {
                self.0 & 0xfff
            }

            /// Returns the address `bytes` further on, modulo 2^64.
            #[must_use]
            pub const fn offset(self, bytes: u64) -> Self {
                Self(self.0.wrapping_add(bytes))
            }
        }

        impl core::fmt::LowerHex for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                core::fmt::LowerHex::fmt(&self.0, f)
            }
        }
    };
}

address! {
    /// A linear address: what segmentation makes of a logical address.
    Linear
}
address! {
    /// A guest-physical address: what the guest's paging makes of a linear address when EPT is in
    /// use (SDM Vol. 3C, "The Extended Page Table Mechanism (EPT)").
    Gpa
}
address! {
    /// A (host-)physical address: what goes out on the bus.
    Hpa
}
