//! The request numbers of the KVM ioctls (api.rst), by the names of the kernel.

const fn request(direction: u32, number: u32, size: u32) -> u32 {
    direction << 30 | size << 16 | 0xae << 8 | number
}

const NONE: u32 = 0;
const WRITE: u32 = 1;
const READ: u32 = 2;
const BOTH: u32 = 3;

macro_rules! requests {
    ($($name:ident = $direction:ident $number:literal $size:literal;)*) => {
        $(
            #[doc = concat!("The ioctl `", stringify!($name), "`.")]
            pub const $name: u32 = request($direction, $number, $size);
        )*

        /// Every request above with its name.
        pub const ALL: &[(&str, u32)] = &[$((stringify!($name), $name)),*];
    };
}

requests! {
    KVM_GET_API_VERSION = NONE 0x0 0;
    KVM_CREATE_VM = NONE 0x1 0;
    KVM_CHECK_EXTENSION = NONE 0x3 0;
    KVM_GET_VCPU_MMAP_SIZE = NONE 0x4 0;
    KVM_GET_MSR_INDEX_LIST = BOTH 0x2 4;
    KVM_GET_MSR_FEATURE_INDEX_LIST = BOTH 0xa 4;
    KVM_GET_MSRS = BOTH 0x88 8;
    KVM_SET_MSRS = WRITE 0x89 8;
    KVM_GET_SUPPORTED_CPUID = BOTH 0x5 8;
    KVM_GET_EMULATED_CPUID = BOTH 0x9 8;
    KVM_GET_SUPPORTED_HV_CPUID = BOTH 0xc1 8;
    KVM_X86_GET_MCE_CAP_SUPPORTED = READ 0x9d 8;
    KVM_GET_DEVICE_ATTR = WRITE 0xe2 24;
    KVM_HAS_DEVICE_ATTR = WRITE 0xe3 24;
    KVM_SET_DEVICE_ATTR = WRITE 0xe1 24;
    KVM_CREATE_VCPU = NONE 0x41 0;
    KVM_ENABLE_CAP = WRITE 0xa3 104;
    KVM_SET_USER_MEMORY_REGION = WRITE 0x46 32;
    KVM_SET_USER_MEMORY_REGION2 = WRITE 0x49 160;
    KVM_GET_DIRTY_LOG = WRITE 0x42 16;
    KVM_CLEAR_DIRTY_LOG = BOTH 0xc0 24;
    KVM_SET_MEMORY_ATTRIBUTES = WRITE 0xd2 32;
    KVM_CREATE_GUEST_MEMFD = BOTH 0xd4 64;
    KVM_SET_NR_MMU_PAGES = NONE 0x44 0;
    KVM_GET_NR_MMU_PAGES = NONE 0x45 0;
    KVM_SET_TSS_ADDR = NONE 0x47 0;
    KVM_SET_IDENTITY_MAP_ADDR = WRITE 0x48 8;
    KVM_CREATE_IRQCHIP = NONE 0x60 0;
    KVM_GET_IRQCHIP = BOTH 0x62 520;
    KVM_SET_IRQCHIP = READ 0x63 520;
    KVM_IRQ_LINE = WRITE 0x61 8;
    KVM_IRQ_LINE_STATUS = BOTH 0x67 8;
    KVM_SET_GSI_ROUTING = WRITE 0x6a 8;
    KVM_SIGNAL_MSI = WRITE 0xa5 32;
    KVM_CREATE_PIT = NONE 0x64 0;
    KVM_CREATE_PIT2 = WRITE 0x77 64;
    KVM_GET_PIT = BOTH 0x65 72;
    KVM_SET_PIT = READ 0x66 72;
    KVM_GET_PIT2 = READ 0x9f 112;
    KVM_SET_PIT2 = WRITE 0xa0 112;
    KVM_REINJECT_CONTROL = NONE 0x71 0;
    KVM_SET_BOOT_CPU_ID = NONE 0x78 0;
    KVM_IRQFD = WRITE 0x76 32;
    KVM_IOEVENTFD = WRITE 0x79 64;
    KVM_REGISTER_COALESCED_MMIO = WRITE 0x67 16;
    KVM_UNREGISTER_COALESCED_MMIO = WRITE 0x68 16;
    KVM_SET_CLOCK = WRITE 0x7b 48;
    KVM_GET_CLOCK = READ 0x7c 48;
    KVM_SET_TSC_KHZ = NONE 0xa2 0;
    KVM_GET_TSC_KHZ = NONE 0xa3 0;
    KVM_X86_SET_MSR_FILTER = WRITE 0xc6 392;
    KVM_SET_PMU_EVENT_FILTER = WRITE 0xb2 32;
    KVM_CREATE_DEVICE = BOTH 0xe0 12;
    KVM_RESET_DIRTY_RINGS = NONE 0xc7 0;
    KVM_GET_STATS_FD = NONE 0xce 0;
    KVM_XEN_HVM_CONFIG = WRITE 0x7a 56;
    KVM_XEN_HVM_GET_ATTR = BOTH 0xc8 72;
    KVM_XEN_HVM_SET_ATTR = WRITE 0xc9 72;
    KVM_XEN_HVM_EVTCHN_SEND = WRITE 0xd0 12;
    KVM_XEN_VCPU_GET_ATTR = BOTH 0xca 72;
    KVM_XEN_VCPU_SET_ATTR = WRITE 0xcb 72;
    KVM_HYPERV_EVENTFD = WRITE 0xbd 24;
    KVM_MEMORY_ENCRYPT_OP = BOTH 0xba 8;
    KVM_MEMORY_ENCRYPT_REG_REGION = READ 0xbb 16;
    KVM_MEMORY_ENCRYPT_UNREG_REGION = READ 0xbc 16;
    KVM_RUN = NONE 0x80 0;
    KVM_GET_REGS = READ 0x81 144;
    KVM_SET_REGS = WRITE 0x82 144;
    KVM_GET_SREGS = READ 0x83 312;
    KVM_SET_SREGS = WRITE 0x84 312;
    KVM_GET_SREGS2 = READ 0xcc 320;
    KVM_SET_SREGS2 = WRITE 0xcd 320;
    KVM_TRANSLATE = BOTH 0x85 24;
    KVM_INTERRUPT = WRITE 0x86 4;
    KVM_NMI = NONE 0x9a 0;
    KVM_SMI = NONE 0xb7 0;
    KVM_SET_CPUID = WRITE 0x8a 8;
    KVM_SET_CPUID2 = WRITE 0x90 8;
    KVM_GET_CPUID2 = BOTH 0x91 8;
    KVM_SET_SIGNAL_MASK = WRITE 0x8b 4;
    KVM_GET_FPU = READ 0x8c 416;
    KVM_SET_FPU = WRITE 0x8d 416;
    KVM_GET_XSAVE = READ 0xa4 4096;
    KVM_GET_XSAVE2 = READ 0xcf 4096;
    KVM_SET_XSAVE = WRITE 0xa5 4096;
    KVM_GET_XCRS = READ 0xa6 392;
    KVM_SET_XCRS = WRITE 0xa7 392;
    KVM_GET_LAPIC = READ 0x8e 1024;
    KVM_SET_LAPIC = WRITE 0x8f 1024;
    KVM_GET_MP_STATE = READ 0x98 4;
    KVM_SET_MP_STATE = WRITE 0x99 4;
    KVM_SET_GUEST_DEBUG = WRITE 0x9b 72;
    KVM_GET_DEBUGREGS = READ 0xa1 128;
    KVM_SET_DEBUGREGS = WRITE 0xa2 128;
    KVM_GET_VCPU_EVENTS = READ 0x9f 64;
    KVM_SET_VCPU_EVENTS = WRITE 0xa0 64;
    KVM_TPR_ACCESS_REPORTING = BOTH 0x92 40;
    KVM_SET_VAPIC_ADDR = WRITE 0x93 8;
    KVM_X86_SETUP_MCE = WRITE 0x9c 8;
    KVM_X86_SET_MCE = WRITE 0x9e 64;
    KVM_KVMCLOCK_CTRL = NONE 0xad 0;
    KVM_GET_NESTED_STATE = BOTH 0xbe 128;
    KVM_SET_NESTED_STATE = WRITE 0xbf 128;
    KVM_GET_ONE_REG = WRITE 0xab 16;
    KVM_SET_ONE_REG = WRITE 0xac 16;
    KVM_GET_REG_LIST = BOTH 0xb0 8;
    KVM_PRE_FAULT_MEMORY = BOTH 0xd5 64;
}

/// A request that no ioctl has: this type, number and size without a direction.
#[must_use]
pub const fn foreign(kind: u8, number: u8) -> u32 {
    (kind as u32) << 8 | number as u32
}

/// A request of KVM's type with a direction (1 write, 2 read, 3 both) and size of its own.
#[must_use]
pub const fn misshapen(direction: u32, number: u32, size: u32) -> u32 {
    request(direction, number, size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_numbers_of_the_kernel() {
        assert_eq!(KVM_GET_API_VERSION, 0xae00);
        assert_eq!(KVM_GET_REGS, 0x8090_ae81);
        assert_eq!(KVM_SET_CPUID2, 0x4008_ae90);
        assert_eq!(KVM_GET_CPUID2, 0xc008_ae91);
    }
}
