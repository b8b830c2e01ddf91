//! Request numbers of the KVM ioctls on x86 (`include/uapi/linux/kvm.h`; api.rst, "API
//! description"): type 0xAE in bits 15:8, number in 7:0, size of the argument in 29:16, direction
//! in 31:30.

/// The ioctl type of KVM.
pub const KVMIO: u32 = 0xae;

macro_rules! requests {
    ($($name:ident = $value:literal;)*) => {
        $(
            #[doc = concat!("api.rst, \"", stringify!($name), "\".")]
            pub const $name: u32 = $value;
        )*

        /// Every request by name.
        pub const REQUESTS: &[(&str, u32)] = &[$((stringify!($name), $name)),*];
    };
}

requests! {
    KVM_GET_API_VERSION = 0x0000_ae00;
    KVM_CREATE_VM = 0x0000_ae01;
    KVM_CHECK_EXTENSION = 0x0000_ae03;
    KVM_GET_VCPU_MMAP_SIZE = 0x0000_ae04;
    KVM_GET_MSR_INDEX_LIST = 0xc004_ae02;
    KVM_GET_MSR_FEATURE_INDEX_LIST = 0xc004_ae0a;
    KVM_GET_MSRS = 0xc008_ae88;
    KVM_SET_MSRS = 0x4008_ae89;
    KVM_GET_SUPPORTED_CPUID = 0xc008_ae05;
    KVM_GET_EMULATED_CPUID = 0xc008_ae09;
    KVM_GET_SUPPORTED_HV_CPUID = 0xc008_aec1;
    KVM_X86_GET_MCE_CAP_SUPPORTED = 0x8008_ae9d;
    KVM_GET_DEVICE_ATTR = 0x4018_aee2;
    KVM_HAS_DEVICE_ATTR = 0x4018_aee3;
    KVM_SET_DEVICE_ATTR = 0x4018_aee1;
    KVM_CREATE_VCPU = 0x0000_ae41;
    KVM_ENABLE_CAP = 0x4068_aea3;
    KVM_SET_USER_MEMORY_REGION = 0x4020_ae46;
    KVM_SET_USER_MEMORY_REGION2 = 0x40a0_ae49;
    KVM_GET_DIRTY_LOG = 0x4010_ae42;
    KVM_CLEAR_DIRTY_LOG = 0xc018_aec0;
    KVM_SET_MEMORY_ATTRIBUTES = 0x4020_aed2;
    KVM_CREATE_GUEST_MEMFD = 0xc040_aed4;
    KVM_SET_NR_MMU_PAGES = 0x0000_ae44;
    KVM_GET_NR_MMU_PAGES = 0x0000_ae45;
    KVM_SET_TSS_ADDR = 0x0000_ae47;
    KVM_SET_IDENTITY_MAP_ADDR = 0x4008_ae48;
    KVM_CREATE_IRQCHIP = 0x0000_ae60;
    KVM_GET_IRQCHIP = 0xc208_ae62;
    KVM_SET_IRQCHIP = 0x8208_ae63;
    KVM_IRQ_LINE = 0x4008_ae61;
    KVM_IRQ_LINE_STATUS = 0xc008_ae67;
    KVM_SET_GSI_ROUTING = 0x4008_ae6a;
    KVM_SIGNAL_MSI = 0x4020_aea5;
    KVM_CREATE_PIT = 0x0000_ae64;
    KVM_CREATE_PIT2 = 0x4040_ae77;
    KVM_GET_PIT = 0xc048_ae65;
    KVM_SET_PIT = 0x8048_ae66;
    KVM_GET_PIT2 = 0x8070_ae9f;
    KVM_SET_PIT2 = 0x4070_aea0;
    KVM_REINJECT_CONTROL = 0x0000_ae71;
    KVM_SET_BOOT_CPU_ID = 0x0000_ae78;
    KVM_IRQFD = 0x4020_ae76;
    KVM_IOEVENTFD = 0x4040_ae79;
    KVM_REGISTER_COALESCED_MMIO = 0x4010_ae67;
    KVM_UNREGISTER_COALESCED_MMIO = 0x4010_ae68;
    KVM_SET_CLOCK = 0x4030_ae7b;
    KVM_GET_CLOCK = 0x8030_ae7c;
    KVM_SET_TSC_KHZ = 0x0000_aea2;
    KVM_GET_TSC_KHZ = 0x0000_aea3;
    KVM_X86_SET_MSR_FILTER = 0x4188_aec6;
    KVM_SET_PMU_EVENT_FILTER = 0x4020_aeb2;
    KVM_CREATE_DEVICE = 0xc00c_aee0;
    KVM_RESET_DIRTY_RINGS = 0x0000_aec7;
    KVM_GET_STATS_FD = 0x0000_aece;
    KVM_XEN_HVM_CONFIG = 0x4038_ae7a;
    KVM_XEN_HVM_GET_ATTR = 0xc048_aec8;
    KVM_XEN_HVM_SET_ATTR = 0x4048_aec9;
    KVM_XEN_HVM_EVTCHN_SEND = 0x400c_aed0;
    KVM_XEN_VCPU_GET_ATTR = 0xc048_aeca;
    KVM_XEN_VCPU_SET_ATTR = 0x4048_aecb;
    KVM_HYPERV_EVENTFD = 0x4018_aebd;
    KVM_MEMORY_ENCRYPT_OP = 0xc008_aeba;
    KVM_MEMORY_ENCRYPT_REG_REGION = 0x8010_aebb;
    KVM_MEMORY_ENCRYPT_UNREG_REGION = 0x8010_aebc;
    KVM_RUN = 0x0000_ae80;
    KVM_GET_REGS = 0x8090_ae81;
    KVM_SET_REGS = 0x4090_ae82;
    KVM_GET_SREGS = 0x8138_ae83;
    KVM_SET_SREGS = 0x4138_ae84;
    KVM_GET_SREGS2 = 0x8140_aecc;
    KVM_SET_SREGS2 = 0x4140_aecd;
    KVM_TRANSLATE = 0xc018_ae85;
    KVM_INTERRUPT = 0x4004_ae86;
    KVM_NMI = 0x0000_ae9a;
    KVM_SMI = 0x0000_aeb7;
    KVM_SET_CPUID = 0x4008_ae8a;
    KVM_SET_CPUID2 = 0x4008_ae90;
    KVM_GET_CPUID2 = 0xc008_ae91;
    KVM_SET_SIGNAL_MASK = 0x4004_ae8b;
    KVM_GET_FPU = 0x81a0_ae8c;
    KVM_SET_FPU = 0x41a0_ae8d;
    KVM_GET_XSAVE = 0x9000_aea4;
    KVM_GET_XSAVE2 = 0x9000_aecf;
    KVM_SET_XSAVE = 0x5000_aea5;
    KVM_GET_XCRS = 0x8188_aea6;
    KVM_SET_XCRS = 0x4188_aea7;
    KVM_GET_LAPIC = 0x8400_ae8e;
    KVM_SET_LAPIC = 0x4400_ae8f;
    KVM_GET_MP_STATE = 0x8004_ae98;
    KVM_SET_MP_STATE = 0x4004_ae99;
    KVM_SET_GUEST_DEBUG = 0x4048_ae9b;
    KVM_GET_DEBUGREGS = 0x8080_aea1;
    KVM_SET_DEBUGREGS = 0x4080_aea2;
    KVM_GET_VCPU_EVENTS = 0x8040_ae9f;
    KVM_SET_VCPU_EVENTS = 0x4040_aea0;
    KVM_TPR_ACCESS_REPORTING = 0xc028_ae92;
    KVM_SET_VAPIC_ADDR = 0x4008_ae93;
    KVM_X86_SETUP_MCE = 0x4008_ae9c;
    KVM_X86_SET_MCE = 0x4040_ae9e;
    KVM_KVMCLOCK_CTRL = 0x0000_aead;
    KVM_GET_NESTED_STATE = 0xc080_aebe;
    KVM_SET_NESTED_STATE = 0x4080_aebf;
    KVM_GET_ONE_REG = 0x4010_aeab;
    KVM_SET_ONE_REG = 0x4010_aeac;
    KVM_GET_REG_LIST = 0xc008_aeb0;
    KVM_PRE_FAULT_MEMORY = 0xc040_aed5;
}

/// Returns the name of a request, if KVM on x86 has it.
#[must_use]
pub fn request_name(request: u32) -> Option<&'static str> {
    REQUESTS
        .iter()
        .find(|row| row.1 == request)
        .map(|row| row.0)
}

/// Returns the ioctl type of a request.
#[must_use]
pub const fn request_type(request: u32) -> u32 {
    (request >> 8) & 0xff
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_carry_the_size_of_the_binding() {
        let size = |request: u32| ((request >> 16) & 0x3fff) as usize;
        assert_eq!(size(KVM_SET_REGS), size_of::<kvm_bindings::kvm_regs>());
        assert_eq!(size(KVM_SET_SREGS2), size_of::<kvm_bindings::kvm_sregs2>());
        assert_eq!(
            size(KVM_ENABLE_CAP),
            size_of::<kvm_bindings::kvm_enable_cap>()
        );
        assert_eq!(
            size(KVM_X86_SET_MSR_FILTER),
            size_of::<kvm_bindings::kvm_msr_filter>()
        );
        assert_eq!(
            size(KVM_SET_USER_MEMORY_REGION2),
            size_of::<kvm_bindings::kvm_userspace_memory_region2>()
        );
    }

    #[test]
    fn every_request_is_of_the_kvm_type_and_has_one_name() {
        for (index, (name, request)) in REQUESTS.iter().enumerate() {
            assert_eq!(request_type(*request), KVMIO, "{name}");
            assert!(
                !REQUESTS[..index].iter().any(|row| row.1 == *request),
                "{name}"
            );
        }
    }
}
