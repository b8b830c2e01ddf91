//! What the sanitizer reports: the uses of VMX structures that the manual forbids or leaves
//! undefined, as one table.

/// Declares the items: variant, stable name, SDM section title, sentence.
macro_rules! items {
    ($($(#[doc = $sentence:literal])+ $item:ident = $name:literal, $section:literal;)*) => {
        /// An undefined or forbidden use of a VMX structure.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
        pub enum Item {
            $($(#[doc = $sentence])+ $item,)*
        }

        impl Item {
            /// Every item, in the order of the table.
            pub const ALL: &[Self] = &[$(Self::$item),*];

            /// Returns the stable name, such as `use-before-vmclear`.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$item => $name,)* }
            }

            /// Returns the title of the SDM section that forbids the use.
            #[must_use]
            pub const fn section(self) -> &'static str {
                match self { $(Self::$item => $section,)* }
            }

            /// Returns what was done, in a sentence.
            #[must_use]
            pub const fn sentence(self) -> &'static str {
                match self { $(Self::$item => concat!($($sentence),+),)* }
            }
        }
    };
}

items! {
    /// VMPTRLD of a region that was never the operand of VMCLEAR since it got its use.
    UseBeforeVmclear = "use-before-vmclear", "Initializing a VMCS";
    /// VMPTRLD of a VMCS that is active on another processor.
    ActiveOnTwoCpus = "active-on-two-cpus", "Using VMCSs on Multiple Logical Processors";
    /// VMCLEAR of a VMCS that is active on another processor.
    VmclearForeignActive = "vmclear-foreign-active", "Using VMCSs on Multiple Logical Processors";
    /// VMRESUME of a VMCS that was active on a processor when it executed VMXOFF.
    VmresumeAfterVmxoff = "vmresume-after-vmxoff", "VM Instruction Error Numbers";
    /// VMXOFF while a VMCS is active on the processor: its data may be lost.
    VmxoffWithActive = "vmxoff-with-active", "Software Use of Virtual-Machine Control Structures";
    /// An ordinary access to the region of an active VMCS or to a VMXON region in use.
    MemoryAccessActive = "memory-access-active", "Software Access to Related Structures";
    /// A write of the revision identifier or shadow-VMCS indicator of an active VMCS.
    WriteRevisionActive = "write-revision-active", "Format of the VMCS Region";
    /// A VMXON region that is used as a VMCS or by two processors.
    SharedRegion = "shared-region", "VMXON Region";
    /// Structures that a VMCS names overlap, and the processor writes one of them.
    Overlap = "overlap", "Software Access to Related Structures";
    /// An MSR list longer than IA32_VMX_MISC recommends.
    MsrListTooLong = "msr-list-too-long", "VM-Exit Controls for MSRs";
    /// Another processor wrote a structure while the VMCS that names it was in use in VMX
    /// non-root operation.
    ReferencedMemoryModified = "referenced-memory-modified",
        "Software Access to Related Structures";
    /// A VMX structure in memory of another type than IA32_VMX_BASIC asks for.
    RegionMemtype = "region-memtype", "Format of the VMCS Region";
    /// Memory of an active VMCS was given to another use.
    VmcsFreed = "vmcs-freed", "Software Use of Virtual-Machine Control Structures";
    /// A VMCS link pointer names a VMCS that is current or active.
    ShadowLinkLaunched = "shadow-link-launched", "VMCS Types: Ordinary and Shadow";
    /// A translation was used that the paging structures do not back any more.
    StaleTlb = "stale-tlb", "Guidelines for Use of the INVEPT Instruction";
    /// Host-state fields of a VMCS that moved from another processor are that processor's.
    HostStateStale = "host-state-stale", "Using VMCSs on Multiple Logical Processors";
    /// VMREAD of an exit-information field that is undefined for the exit reason.
    ExitInfoUndefined = "exit-info-undefined", "Recording VM-Exit Information";
}
