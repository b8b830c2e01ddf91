//! The capabilities: what KVM_CHECK_EXTENSION says (api.rst, "KVM_CHECK_EXTENSION").
//!
//! One table of every capability that means something on x86. The value 0 is "not offered": the
//! ioctls and options behind it answer as in a kernel that lacks them. Values that we offer are
//! those of Linux 6.12 with `kvm_intel`.

use crate::clock::VALID_FLAGS;
use crate::uapi::{MAX_VCPU_IDS, MAX_VCPUS, USER_MEM_SLOTS};

/// A capability and its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    /// Its number.
    pub number: u32,
    /// Its name in `include/uapi/linux/kvm.h`.
    pub name: &'static str,
    /// What KVM_CHECK_EXTENSION returns.
    pub value: i64,
}

macro_rules! capabilities {
    ($($number:literal $name:ident = $value:expr;)*) => {
        /// Every capability of x86, by number.
        pub const CAPABILITIES: &[Capability] = &[$(
            Capability { number: $number, name: stringify!($name), value: $value }
        ),*];
    };
}

capabilities! {
    0 KVM_CAP_IRQCHIP = 0;
    1 KVM_CAP_HLT = 1;
    2 KVM_CAP_MMU_SHADOW_CACHE_CONTROL = 1;
    3 KVM_CAP_USER_MEMORY = 1;
    4 KVM_CAP_SET_TSS_ADDR = 1;
    6 KVM_CAP_VAPIC = 0;
    7 KVM_CAP_EXT_CPUID = 1;
    8 KVM_CAP_CLOCKSOURCE = 0;
    9 KVM_CAP_NR_VCPUS = 16;
    10 KVM_CAP_NR_MEMSLOTS = USER_MEM_SLOTS as i64;
    11 KVM_CAP_PIT = 0;
    12 KVM_CAP_NOP_IO_DELAY = 1;
    13 KVM_CAP_PV_MMU = 0;
    14 KVM_CAP_MP_STATE = 1;
    15 KVM_CAP_COALESCED_MMIO = 2;
    16 KVM_CAP_SYNC_MMU = 1;
    21 KVM_CAP_DESTROY_MEMORY_REGION_WORKS = 1;
    22 KVM_CAP_USER_NMI = 1;
    23 KVM_CAP_SET_GUEST_DEBUG = 1;
    24 KVM_CAP_REINJECT_CONTROL = 0;
    25 KVM_CAP_IRQ_ROUTING = 0;
    26 KVM_CAP_IRQ_INJECT_STATUS = 0;
    30 KVM_CAP_JOIN_MEMORY_REGIONS_WORKS = 1;
    31 KVM_CAP_MCE = 0;
    32 KVM_CAP_IRQFD = 0;
    33 KVM_CAP_PIT2 = 0;
    34 KVM_CAP_SET_BOOT_CPU_ID = 1;
    35 KVM_CAP_PIT_STATE2 = 0;
    36 KVM_CAP_IOEVENTFD = 1;
    37 KVM_CAP_SET_IDENTITY_MAP_ADDR = 1;
    38 KVM_CAP_XEN_HVM = 0;
    39 KVM_CAP_ADJUST_CLOCK = VALID_FLAGS as i64;
    40 KVM_CAP_INTERNAL_ERROR_DATA = 1;
    41 KVM_CAP_VCPU_EVENTS = 1;
    44 KVM_CAP_HYPERV = 0;
    45 KVM_CAP_HYPERV_VAPIC = 0;
    46 KVM_CAP_HYPERV_SPIN = 0;
    47 KVM_CAP_PCI_SEGMENT = 1;
    50 KVM_CAP_DEBUGREGS = 1;
    51 KVM_CAP_X86_ROBUST_SINGLESTEP = 1;
    54 KVM_CAP_ENABLE_CAP = 1;
    55 KVM_CAP_XSAVE = 1;
    56 KVM_CAP_XCRS = 1;
    59 KVM_CAP_ASYNC_PF = 0;
    60 KVM_CAP_TSC_CONTROL = 1;
    61 KVM_CAP_GET_TSC_KHZ = 1;
    66 KVM_CAP_MAX_VCPUS = MAX_VCPUS as i64;
    70 KVM_CAP_ONE_REG = 0;
    72 KVM_CAP_TSC_DEADLINE_TIMER = 0;
    74 KVM_CAP_SYNC_REGS = 7;
    76 KVM_CAP_KVMCLOCK_CTRL = 0;
    77 KVM_CAP_SIGNAL_MSI = 0;
    81 KVM_CAP_READONLY_MEM = 1;
    82 KVM_CAP_IRQFD_RESAMPLE = 0;
    89 KVM_CAP_DEVICE_CTRL = 1;
    95 KVM_CAP_EXT_EMUL_CPUID = 1;
    96 KVM_CAP_HYPERV_TIME = 0;
    97 KVM_CAP_IOAPIC_POLARITY_IGNORED = 0;
    98 KVM_CAP_ENABLE_CAP_VM = 1;
    100 KVM_CAP_IOEVENTFD_NO_LENGTH = 1;
    105 KVM_CAP_CHECK_EXTENSION_VM = 1;
    116 KVM_CAP_DISABLE_QUIRKS = 1;
    117 KVM_CAP_X86_SMM = 0;
    118 KVM_CAP_MULTI_ADDRESS_SPACE = 0;
    121 KVM_CAP_SPLIT_IRQCHIP = 0;
    122 KVM_CAP_IOEVENTFD_ANY_LENGTH = 1;
    123 KVM_CAP_HYPERV_SYNIC = 0;
    127 KVM_CAP_VCPU_ATTRIBUTES = 1;
    128 KVM_CAP_MAX_VCPU_ID = MAX_VCPU_IDS as i64;
    129 KVM_CAP_X2APIC_API = 3;
    136 KVM_CAP_IMMEDIATE_EXIT = 1;
    143 KVM_CAP_X86_DISABLE_EXITS = 15;
    148 KVM_CAP_HYPERV_SYNIC2 = 0;
    149 KVM_CAP_HYPERV_VP_INDEX = 0;
    153 KVM_CAP_GET_MSR_FEATURES = 1;
    154 KVM_CAP_HYPERV_EVENTFD = 0;
    155 KVM_CAP_HYPERV_TLBFLUSH = 0;
    157 KVM_CAP_NESTED_STATE = 0;
    159 KVM_CAP_MSR_PLATFORM_INFO = 1;
    161 KVM_CAP_HYPERV_SEND_IPI = 0;
    162 KVM_CAP_COALESCED_PIO = 1;
    163 KVM_CAP_HYPERV_ENLIGHTENED_VMCS = 0;
    164 KVM_CAP_EXCEPTION_PAYLOAD = 1;
    167 KVM_CAP_HYPERV_CPUID = 0;
    168 KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 = 3;
    173 KVM_CAP_PMU_EVENT_FILTER = 0;
    175 KVM_CAP_HYPERV_DIRECT_TLBFLUSH = 0;
    182 KVM_CAP_HALT_POLL = 1;
    183 KVM_CAP_ASYNC_PF_INT = 0;
    184 KVM_CAP_LAST_CPU = 1;
    185 KVM_CAP_SMALLER_MAXPHYADDR = 0;
    187 KVM_CAP_STEAL_TIME = 0;
    188 KVM_CAP_X86_USER_SPACE_MSR = 1;
    189 KVM_CAP_X86_MSR_FILTER = 1;
    190 KVM_CAP_ENFORCE_PV_FEATURE_CPUID = 1;
    191 KVM_CAP_SYS_HYPERV_CPUID = 0;
    192 KVM_CAP_DIRTY_LOG_RING = 0;
    193 KVM_CAP_X86_BUS_LOCK_EXIT = 0;
    195 KVM_CAP_SET_GUEST_DEBUG2 = 0x1f_0003;
    196 KVM_CAP_SGX_ATTRIBUTE = 0;
    197 KVM_CAP_VM_COPY_ENC_CONTEXT_FROM = 1;
    199 KVM_CAP_HYPERV_ENFORCE_CPUID = 0;
    200 KVM_CAP_SREGS2 = 1;
    201 KVM_CAP_EXIT_HYPERCALL = 4096;
    203 KVM_CAP_BINARY_STATS_FD = 0;
    204 KVM_CAP_EXIT_ON_EMULATION_FAILURE = 1;
    206 KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM = 1;
    208 KVM_CAP_XSAVE2 = 4096;
    209 KVM_CAP_SYS_ATTRIBUTES = 1;
    212 KVM_CAP_PMU_CAPABILITY = 0;
    213 KVM_CAP_DISABLE_QUIRKS2 = 511;
    214 KVM_CAP_VM_TSC_CONTROL = 1;
    215 KVM_CAP_SYSTEM_EVENT_DATA = 1;
    218 KVM_CAP_X86_TRIPLE_FAULT_EVENT = 1;
    219 KVM_CAP_X86_NOTIFY_VMEXIT = 0;
    220 KVM_CAP_VM_DISABLE_NX_HUGE_PAGES = 1;
    223 KVM_CAP_DIRTY_LOG_RING_ACQ_REL = 0;
    225 KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP = 0;
    226 KVM_CAP_PMU_EVENT_MASKED_EVENTS = 0;
    231 KVM_CAP_USER_MEMORY2 = 1;
    232 KVM_CAP_MEMORY_FAULT_INFO = 1;
    233 KVM_CAP_MEMORY_ATTRIBUTES = 0;
    234 KVM_CAP_GUEST_MEMFD = 0;
    235 KVM_CAP_VM_TYPES = 1;
    236 KVM_CAP_PRE_FAULT_MEMORY = 0;
    237 KVM_CAP_X86_APIC_BUS_CYCLES_NS = 1;
    238 KVM_CAP_X86_GUEST_MODE = 1;
    244 KVM_CAP_GUEST_MEMFD_FLAGS = 0;
}

/// MAXPHYADDR of the processor.
pub const PHYSICAL_ADDRESS_BITS: u8 = 46;

/// Returns the value of a capability on the system descriptor.
#[must_use]
pub fn system_value(number: u64) -> i64 {
    CAPABILITIES
        .binary_search_by_key(&number, |row| u64::from(row.number))
        .map_or(0, |index| CAPABILITIES[index].value)
}

/// Returns the value of a capability on a VM descriptor.
#[must_use]
pub fn vm_value(number: u64) -> i64 {
    system_value(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted() {
        assert!(CAPABILITIES.is_sorted_by(|a, b| a.number < b.number));
    }

    #[test]
    fn an_unknown_number_is_zero() {
        for number in [5, 17, 245, 0x7fff_ffff, 1 << 32, u64::MAX] {
            assert_eq!(system_value(number), 0, "{number:#x}");
        }
        assert_eq!(system_value(10), 32764);
    }
}
