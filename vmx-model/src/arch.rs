//! The architectural state that a VM entry loads and a VM exit saves.
//!
//! SDM Vol. 3C, "Guest Register State" and "Guest Non-Register State". The interpreter keeps its
//! cold registers in an [`ArchState`], so that VM entry and exit are copies of words that both
//! sides know.

use bitflags::bitflags;

/// Access rights of a segment in the format of the VMCS (SDM Vol. 3C, "Guest Register State",
/// table "Format of Access Rights"): bits 3:0 type, 4 S, 6:5 DPL, 7 P, 12 AVL, 13 L, 14 D/B, 15 G,
/// 16 unusable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct AccessRights(pub u32);

impl AccessRights {
    /// The value of a null or otherwise unusable segment.
    pub const UNUSABLE: Self = Self(1 << 16);

    /// Returns the four-bit segment type.
    #[must_use]
    pub const fn segment_type(self) -> u8 {
        (self.0 & 0xf) as u8
    }

    /// Whether this is a code or data segment (S = 1) rather than a system segment.
    #[must_use]
    pub const fn is_code_or_data(self) -> bool {
        self.0 & (1 << 4) != 0
    }

    /// Whether this is a code segment.
    #[must_use]
    pub const fn is_code(self) -> bool {
        self.0 & 0x18 == 0x18
    }

    /// Whether this is a conforming code segment.
    #[must_use]
    pub const fn is_conforming(self) -> bool {
        self.0 & 0x1c == 0x1c
    }

    /// Whether data can be written: a data segment with the writable bit.
    #[must_use]
    pub const fn is_writable(self) -> bool {
        self.0 & 0x1a == 0x12
    }

    /// Whether data can be read: any data segment, or a readable code segment.
    #[must_use]
    pub const fn is_readable(self) -> bool {
        self.0 & 0x18 == 0x10 || self.0 & 0x1a == 0x1a
    }

    /// Whether this is an expand-down data segment.
    #[must_use]
    pub const fn is_expand_down(self) -> bool {
        self.0 & 0x1c == 0x14
    }

    /// Returns the descriptor privilege level.
    #[must_use]
    pub const fn dpl(self) -> u8 {
        ((self.0 >> 5) & 3) as u8
    }

    /// Returns these rights with another descriptor privilege level.
    #[must_use]
    pub const fn with_dpl(self, dpl: u8) -> Self {
        Self(self.0 & !0x60 | ((dpl as u32 & 3) << 5))
    }

    /// Whether the segment is present.
    #[must_use]
    pub const fn is_present(self) -> bool {
        self.0 & (1 << 7) != 0
    }

    /// Whether CS.L is set: 64-bit code.
    #[must_use]
    pub const fn is_long(self) -> bool {
        self.0 & (1 << 13) != 0
    }

    /// Whether D/B is set: 32-bit code, stack or upper bound.
    #[must_use]
    pub const fn is_big(self) -> bool {
        self.0 & (1 << 14) != 0
    }

    /// Whether the limit counts 4-KiB units.
    #[must_use]
    pub const fn is_granular(self) -> bool {
        self.0 & (1 << 15) != 0
    }

    /// Whether the segment is unusable.
    #[must_use]
    pub const fn is_unusable(self) -> bool {
        self.0 & (1 << 16) != 0
    }
}

/// A segment register with its hidden part. The limit is in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Segment {
    /// Base address.
    pub base: u64,
    /// Limit in bytes, expanded from the descriptor by its granularity.
    pub limit: u32,
    /// Access rights in the format of the VMCS.
    pub access: AccessRights,
    /// The visible selector.
    pub selector: u16,
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct DescriptorTable {
    /// Linear address of the table.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u16,
}

/// Names of the segment registers, in the order of their encoding in instructions, then LDTR, TR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[repr(u8)]
#[allow(missing_docs, reason = "the names are the documentation")]
pub enum SegmentRegister {
    Es = 0,
    Cs = 1,
    Ss = 2,
    Ds = 3,
    Fs = 4,
    Gs = 5,
    Ldtr = 6,
    Tr = 7,
}

/// Activity state (SDM Vol. 3C, "Guest Non-Register State").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[repr(u8)]
pub enum Activity {
    /// Executing instructions.
    #[default]
    Active = 0,
    /// HLT was executed.
    Hlt = 1,
    /// A triple fault or another serious error happened.
    Shutdown = 2,
    /// Waiting for a startup IPI.
    WaitForSipi = 3,
}

bitflags! {
    /// Interruptibility state (SDM Vol. 3C, "Guest Non-Register State").
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
    pub struct Interruptibility: u32 {
        /// Blocking by STI.
        const STI = 1 << 0;
        /// Blocking by MOV SS or POP SS.
        const MOV_SS = 1 << 1;
        /// Blocking by SMI.
        const SMI = 1 << 2;
        /// Blocking by NMI (virtual-NMI blocking under virtual NMIs).
        const NMI = 1 << 3;
        /// Enclave interruption.
        const ENCLAVE = 1 << 4;
        const _ = !0;
    }
}

bitflags! {
    /// CR0.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
    pub struct Cr0: u64 {
        /// Protection enable.
        const PE = 1 << 0;
        /// Monitor coprocessor.
        const MP = 1 << 1;
        /// Emulation.
        const EM = 1 << 2;
        /// Task switched.
        const TS = 1 << 3;
        /// Extension type.
        const ET = 1 << 4;
        /// Numeric error.
        const NE = 1 << 5;
        /// Write protect.
        const WP = 1 << 16;
        /// Alignment mask.
        const AM = 1 << 18;
        /// Not write-through.
        const NW = 1 << 29;
        /// Cache disable.
        const CD = 1 << 30;
        /// Paging.
        const PG = 1 << 31;
        const _ = !0;
    }

    /// CR4.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
    pub struct Cr4: u64 {
        /// Virtual-8086 mode extensions.
        const VME = 1 << 0;
        /// Protected-mode virtual interrupts.
        const PVI = 1 << 1;
        /// Time stamp disable.
        const TSD = 1 << 2;
        /// Debugging extensions.
        const DE = 1 << 3;
        /// Page size extensions.
        const PSE = 1 << 4;
        /// Physical address extension.
        const PAE = 1 << 5;
        /// Machine-check enable.
        const MCE = 1 << 6;
        /// Page global enable.
        const PGE = 1 << 7;
        /// Performance-monitoring counter enable.
        const PCE = 1 << 8;
        /// Operating system support for FXSAVE and FXRSTOR.
        const OSFXSR = 1 << 9;
        /// Operating system support for unmasked SIMD floating-point exceptions.
        const OSXMMEXCPT = 1 << 10;
        /// User-mode instruction prevention.
        const UMIP = 1 << 11;
        /// 57-bit linear addresses.
        const LA57 = 1 << 12;
        /// VMX enable.
        const VMXE = 1 << 13;
        /// SMX enable.
        const SMXE = 1 << 14;
        /// Enables RDFSBASE, RDGSBASE, WRFSBASE and WRGSBASE.
        const FSGSBASE = 1 << 16;
        /// PCID enable.
        const PCIDE = 1 << 17;
        /// XSAVE and processor extended states enable.
        const OSXSAVE = 1 << 18;
        /// Key locker enable.
        const KL = 1 << 19;
        /// Supervisor-mode execution prevention.
        const SMEP = 1 << 20;
        /// Supervisor-mode access prevention.
        const SMAP = 1 << 21;
        /// Protection keys for user-mode pages.
        const PKE = 1 << 22;
        /// Control-flow enforcement technology.
        const CET = 1 << 23;
        /// Protection keys for supervisor-mode pages.
        const PKS = 1 << 24;
        /// User interrupts enable.
        const UINTR = 1 << 25;
        /// Linear-address masking for supervisor pointers.
        const LAM_SUP = 1 << 28;
        /// Flexible return and event delivery.
        const FRED = 1 << 32;
        const _ = !0;
    }

    /// IA32_EFER.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
    pub struct Efer: u64 {
        /// SYSCALL enable.
        const SCE = 1 << 0;
        /// IA-32e mode enable.
        const LME = 1 << 8;
        /// IA-32e mode active.
        const LMA = 1 << 10;
        /// Execute-disable bit enable.
        const NXE = 1 << 11;
        const _ = !0;
    }

    /// RFLAGS.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
    pub struct Rflags: u64 {
        /// Carry flag.
        const CF = 1 << 0;
        /// Bit 1 is always one.
        const FIXED1 = 1 << 1;
        /// Parity flag.
        const PF = 1 << 2;
        /// Auxiliary carry flag.
        const AF = 1 << 4;
        /// Zero flag.
        const ZF = 1 << 6;
        /// Sign flag.
        const SF = 1 << 7;
        /// Trap flag.
        const TF = 1 << 8;
        /// Interrupt enable flag.
        const IF = 1 << 9;
        /// Direction flag.
        const DF = 1 << 10;
        /// Overflow flag.
        const OF = 1 << 11;
        /// I/O privilege level.
        const IOPL = 3 << 12;
        /// Nested task.
        const NT = 1 << 14;
        /// Resume flag.
        const RF = 1 << 16;
        /// Virtual-8086 mode.
        const VM = 1 << 17;
        /// Alignment check, or access control.
        const AC = 1 << 18;
        /// Virtual interrupt flag.
        const VIF = 1 << 19;
        /// Virtual interrupt pending.
        const VIP = 1 << 20;
        /// ID flag.
        const ID = 1 << 21;
        /// The six arithmetic status flags.
        const STATUS = 0x8d5;
        const _ = !0;
    }
}

/// Everything that VM entry loads and VM exit saves, but the general-purpose registers other than
/// RSP.
///
/// Optional state that a processor does not have (CET, PKS, ...) stays zero.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[allow(missing_docs, reason = "the names are the architecture's own")]
pub struct ArchState {
    pub cr0: Cr0,
    pub cr3: u64,
    pub cr4: Cr4,
    pub dr7: u64,
    pub rsp: u64,
    pub rip: u64,
    pub rflags: Rflags,
    /// ES, CS, SS, DS, FS, GS, LDTR, TR: indexed by [`SegmentRegister`].
    pub segments: [Segment; 8],
    pub gdtr: DescriptorTable,
    pub idtr: DescriptorTable,
    pub efer: Efer,
    pub pat: u64,
    pub debugctl: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub perf_global_ctrl: u64,
    pub bndcfgs: u64,
    pub rtit_ctl: u64,
    pub lbr_ctl: u64,
    pub s_cet: u64,
    pub ssp: u64,
    pub interrupt_ssp_table: u64,
    pub pkrs: u64,
    pub uinv: u8,
    /// The four PDPTEs of PAE paging, as loaded by the last MOV to CR3 or VM entry.
    pub pdptes: [u64; 4],
    pub activity: Activity,
    pub interruptibility: Interruptibility,
    /// Pending debug exceptions, in the format of the VMCS field.
    pub pending_debug: u64,
    pub smbase: u64,
}

impl ArchState {
    /// Returns a segment register.
    #[must_use]
    pub const fn segment(&self, register: SegmentRegister) -> &Segment {
        &self.segments[register as usize]
    }

    /// Returns a segment register for changing it.
    pub const fn segment_mut(&mut self, register: SegmentRegister) -> &mut Segment {
        &mut self.segments[register as usize]
    }
}

/// What a VMX model has to know about the processor beyond its VMX capability MSRs; derived from
/// one CPUID profile.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct CpuFacts {
    /// MAXPHYADDR, CPUID.80000008H:EAX\[7:0\].
    pub physical_address_bits: u8,
    /// Linear-address width: 48, or 57 with LA57.
    pub linear_address_bits: u8,
    /// Bits of CR4 that the processor supports.
    pub cr4_supported: Cr4,
    /// Bits of IA32_EFER that may be set.
    pub efer_supported: Efer,
    /// Bits of IA32_DEBUGCTL that may be set.
    pub debugctl_supported: u64,
    /// Bits of IA32_PERF_GLOBAL_CTRL that may be set.
    pub perf_global_ctrl_supported: u64,
    /// Whether RTM is supported (bit 16 of the pending debug exceptions).
    pub has_rtm: bool,
    /// Whether CPUID offers SGX (enclave interruption).
    pub has_sgx: bool,
    /// Whether the processor has Intel 64 (IA-32e mode).
    pub has_long_mode: bool,
}

impl CpuFacts {
    /// Whether `address` is canonical for the widest linear address that the processor has.
    #[must_use]
    pub const fn is_canonical(&self, address: u64) -> bool {
        let shift = 64 - self.linear_address_bits as u32;
        ((address << shift) as i64 >> shift) as u64 == address
    }

    /// Whether `address` has no bit beyond MAXPHYADDR.
    #[must_use]
    pub const fn is_physical(&self, address: u64) -> bool {
        self.physical_address_bits >= 64 || address >> self.physical_address_bits == 0
    }
}
