//! KVM_CREATE_VCPU on an Intel processor: the ordered sequence of VMX operations of Linux 6.12
//! (`vmx_vcpu_create()`, `vmx_vcpu_load()`, `init_vmcs()`, `vmx_vcpu_reset()`).
//!
//! It is that of a processor and kernel with EPT, "unrestricted guest", VPID, a TPR shadow, MSR
//! bitmaps, secondary controls, loading of IA32_EFER and IA32_PAT, PAUSE-loop exiting, PML,
//! XSAVES, VM functions, TSC scaling, nested virtualization with VMCS shadowing and IA-32
//! emulation; and without APIC virtualization, processor trace, MPX, SGX, bus-lock detection and
//! notification exits. What the trace shows is compared with `tests/data/create-vcpu.toml`.

use crate::errno::Result;
use crate::host::Host;
use crate::vcpu::Loaded;
use crate::vcpu::control::CR0_GUEST_OWNED;
use crate::vcpu::state::RDX;
use vmx_model::addr::Hpa;
use vmx_model::arch::{AccessRights, ArchState, Cr0, Cr4, Efer, Rflags, Segment, SegmentRegister};
use vmx_model::capability::{Allowed, VmxCapabilities};
use vmx_model::controls::{
    EntryControls, ExitControls, PinControls, ProcControls, SecondaryControls,
};
use vmx_model::field::Field;
use x86_interp::cpuid::Feature;
use x86_interp::mem::phys::PhysMap;

/// The pages of a vCPU's VMX structures.
#[derive(Debug)]
pub(crate) struct VmxPages {
    /// The VMCS region.
    pub(crate) vmcs: Hpa,
    /// The MSR bitmap.
    pub(crate) msr_bitmap: Hpa,
    /// The page-modification log.
    pub(crate) pml: Hpa,
    /// The MSR areas: the guest's, then the host's in the upper half.
    pub(crate) msr_areas: Hpa,
}

/// Host state that is the same for every vCPU (`vmx_set_constant_host_state()`).
mod host_state {
    /// PG AM WP NE ET MP PE.
    pub(super) const CR0: u64 = 0x8005_0033;
    pub(super) const CR3: u64 = 0x1_0000_0000;
    /// PAE MCE PGE OSFXSR OSXMMEXCPT VMXE.
    pub(super) const CR4: u64 = 0x26e0;
    pub(super) const CS: u64 = 0x10;
    pub(super) const SS: u64 = 0x18;
    pub(super) const TR: u64 = 0x40;
    pub(super) const IDTR_BASE: u64 = 0xffff_fe00_0000_0000;
    /// Native code goes on where it entered the guest: nothing is ever fetched from here.
    pub(super) const RIP: u64 = 0xffff_ffff_8100_0000;
    pub(super) const SYSENTER_CS: u64 = 0x10;
    pub(super) const SYSENTER_EIP: u64 = 0xffff_ffff_8120_0000;
    pub(super) const PAT: u64 = 0x0407_0506_0007_0106;
    /// SCE LME LMA NXE.
    pub(super) const EFER: u64 = 0xd01;
    /// Per-processor structures, by the processor's number.
    pub(super) const TSS: u64 = 0xffff_fe00_0000_3000;
    pub(super) const GDT: u64 = 0xffff_fe00_0000_1000;
    pub(super) const ENTRY_STACK: u64 = 0xffff_fe00_0000_3000;
    pub(super) const PER_CPU: u64 = 0x3_b000;
}

/// Returns the state of a processor that executes the kernel: 64-bit mode, VMX enabled.
pub(crate) fn kernel_state() -> ArchState {
    let mut state = ArchState {
        cr0: Cr0::from_bits_retain(host_state::CR0),
        cr3: host_state::CR3,
        cr4: Cr4::from_bits_retain(host_state::CR4),
        dr7: 0x400,
        rflags: Rflags::FIXED1,
        efer: Efer::from_bits_retain(host_state::EFER),
        pat: host_state::PAT,
        ..ArchState::default()
    };
    let code = Segment {
        selector: host_state::CS as u16,
        limit: u32::MAX,
        access: AccessRights(0xa09b),
        base: 0,
    };
    let stack = Segment {
        selector: host_state::SS as u16,
        access: AccessRights(0xc093),
        ..code
    };
    *state.segment_mut(SegmentRegister::Cs) = code;
    *state.segment_mut(SegmentRegister::Ss) = stack;
    state
}

/// PAT after reset.
const PAT_RESET: u64 = 0x0007_0406_0007_0406;
/// Default ratio of TSC scaling: 1, with 48 fractional bits.
pub(crate) const TSC_RATIO_ONE: u64 = 1 << 48;
/// Entries of the page-modification log, less one.
const PML_INDEX_START: u64 = 511;

impl VmxPages {
    /// Allocates the pages and executes VMCLEAR for the VMCS (`alloc_loaded_vmcs()`).
    ///
    /// # Errors
    /// ENOMEM.
    pub(crate) fn new(host: &std::sync::Arc<Host>) -> Result<Self> {
        let mut pages = Vec::with_capacity(4);
        for _ in 0..4 {
            match host.alloc_page() {
                Ok(page) => pages.push(page),
                Err(errno) => {
                    pages.into_iter().for_each(|page| host.free_page(page));
                    return Err(errno);
                }
            }
        }
        let [vmcs, msr_bitmap, pml, msr_areas] = pages[..] else {
            unreachable!("four pages")
        };
        let mut memory: &PhysMap = host.memory();
        memory.write_bytes(vmcs, &host.profile().caps.revision_id().to_le_bytes());
        let cleared = host.this_cpu()?.lock().vmx().vmclear(vmcs, &mut memory);
        debug_assert!(
            cleared.is_ok_and(|o| o.is_success()),
            "VMCLEAR of our own region"
        );
        fill_msr_bitmap(memory, msr_bitmap);
        Ok(Self {
            vmcs,
            msr_bitmap,
            pml,
            msr_areas,
        })
    }

    /// Gives the pages back.
    pub(crate) fn free(&self, host: &Host) {
        for page in [self.vmcs, self.msr_bitmap, self.pml, self.msr_areas] {
            host.free_page(page);
        }
    }
}

/// MSRs that the guest may read and write without an exit.
const PASSED_THROUGH: &[u32] = &[0xc000_0100, 0xc000_0101, 0xc000_0102, 0x174, 0x175, 0x176];
const MSR_TSC: u32 = 0x10;

/// Fills the bitmap with ones, but for the MSRs that pass through and reads of the TSC.
fn fill_msr_bitmap(memory: &PhysMap, page: Hpa) {
    let mut bitmap = [0xff_u8; 4096];
    let mut clear = |index: u32, write: usize| {
        let high = if index >= 0xc000_0000 { 1024 } else { 0 };
        let bit = (index & 0x1fff) as usize;
        bitmap[write + high + bit / 8] &= !(1 << (bit % 8));
    };
    clear(MSR_TSC, 0);
    for index in PASSED_THROUGH {
        clear(*index, 0);
        clear(*index, 2048);
    }
    memory.write_bytes(page, &bitmap);
}

/// Chooses a control word: what is required, what is wanted and allowed, what must be 1
/// (`adjust_vmx_controls()`).
const fn adjust(required: u32, wanted: u32, allowed: Allowed) -> u64 {
    (((required | wanted) & allowed.may1) | allowed.must1) as u64
}

/// `vmx_pin_based_exec_ctrl()`.
fn pin_controls(caps: &VmxCapabilities) -> u64 {
    let required = PinControls::EXTERNAL_INTERRUPT_EXITING | PinControls::NMI_EXITING;
    let wanted = PinControls::VIRTUAL_NMIS | PinControls::ACTIVATE_VMX_PREEMPTION_TIMER;
    adjust(required.bits(), wanted.bits(), caps.pin())
}

/// `vmx_exec_control()`: with EPT the guest's CR3 and INVLPG do not exit; without an in-kernel
/// local APIC there is no TPR shadow and CR8 exits.
fn proc_controls(caps: &VmxCapabilities) -> u64 {
    let required = ProcControls::HLT_EXITING
        | ProcControls::CR8_LOAD_EXITING
        | ProcControls::CR8_STORE_EXITING
        | ProcControls::UNCONDITIONAL_IO_EXITING
        | ProcControls::MOV_DR_EXITING
        | ProcControls::USE_TSC_OFFSETTING
        | ProcControls::MWAIT_EXITING
        | ProcControls::MONITOR_EXITING
        | ProcControls::RDPMC_EXITING;
    let wanted = ProcControls::USE_MSR_BITMAPS | ProcControls::ACTIVATE_SECONDARY_CONTROLS;
    adjust(required.bits(), wanted.bits(), caps.proc())
}

/// `vmx_secondary_exec_control()` for a guest without CPUID: the features that a guest must have
/// are off, RDRAND and RDSEED exit.
fn secondary_controls(caps: &VmxCapabilities, vpid: u16) -> u64 {
    let mut wanted = SecondaryControls::WBINVD_EXITING
        | SecondaryControls::ENABLE_EPT
        | SecondaryControls::UNRESTRICTED_GUEST
        | SecondaryControls::PAUSE_LOOP_EXITING
        | SecondaryControls::RDRAND_EXITING
        | SecondaryControls::RDSEED_EXITING
        | SecondaryControls::USE_TSC_SCALING;
    if vpid != 0 {
        wanted |= SecondaryControls::ENABLE_VPID;
    }
    adjust(0, wanted.bits(), caps.secondary())
}

fn exit_controls(caps: &VmxCapabilities) -> u64 {
    let required = ExitControls::SAVE_DEBUG_CONTROLS
        | ExitControls::ACKNOWLEDGE_INTERRUPT_ON_EXIT
        | ExitControls::HOST_ADDRESS_SPACE_SIZE;
    adjust(
        required.bits(),
        ExitControls::LOAD_IA32_PAT.bits(),
        caps.exit(),
    )
}

fn entry_controls(caps: &VmxCapabilities) -> u64 {
    let required = EntryControls::LOAD_DEBUG_CONTROLS;
    adjust(
        required.bits(),
        EntryControls::LOAD_IA32_PAT.bits(),
        caps.entry(),
    )
}

/// Secondary controls that follow a feature of the guest's CPUID, and whether the control is
/// there for the feature or against it (`vmx_adjust_sec_exec_feature()`, `..._exiting()`).
const FEATURE_CONTROLS: &[(SecondaryControls, Feature, bool)] = &[
    (
        SecondaryControls::ENABLE_XSAVES_XRSTORS,
        Feature::Xsaves,
        true,
    ),
    (SecondaryControls::ENABLE_RDTSCP, Feature::Rdtscp, true),
    (SecondaryControls::ENABLE_INVPCID, Feature::Invpcid, true),
    (SecondaryControls::RDRAND_EXITING, Feature::Rdrand, false),
    (SecondaryControls::RDSEED_EXITING, Feature::Rdseed, false),
];

impl Loaded<'_> {
    /// Writes what depends on the processor that the VMCS has moved to (`vmx_vcpu_load_vmcs()`).
    pub(crate) fn write_per_cpu_host_state(&mut self, cpu: u32) {
        let area = u64::from(cpu) * host_state::PER_CPU;
        self.vmcs.write(Field::HOST_TR_BASE, host_state::TSS + area);
        self.vmcs
            .write(Field::HOST_GDTR_BASE, host_state::GDT + area);
        self.vmcs.write(
            Field::HOST_IA32_SYSENTER_ESP,
            host_state::ENTRY_STACK + area,
        );
    }

    /// Everything of KVM_CREATE_VCPU between VMPTRLD and `vcpu_put()`.
    pub(crate) fn set_up(&mut self, pages: &VmxPages, vpid: u16, shadow: (Hpa, Hpa)) {
        self.vmcs.write(Field::TSC_MULTIPLIER, TSC_RATIO_ONE);
        self.update_debug_registers();
        self.init_vmcs(pages, vpid, shadow);
        self.reset(vpid);
    }

    /// `init_vmcs()`.
    fn init_vmcs(&mut self, pages: &VmxPages, vpid: u16, (vmread, vmwrite): (Hpa, Hpa)) {
        let host = self.vm.host().clone();
        let caps = &host.profile().caps;
        self.vmcs.write(Field::VMREAD_BITMAP_ADDRESS, vmread.0);
        self.vmcs.write(Field::VMWRITE_BITMAP_ADDRESS, vmwrite.0);
        self.vmcs
            .write(Field::MSR_BITMAP_ADDRESS, pages.msr_bitmap.0);
        self.vmcs.write(Field::VMCS_LINK_POINTER, u64::MAX);
        self.vmcs.write(Field::PIN_CONTROLS, pin_controls(caps));
        self.state.controls.pin = pin_controls(caps);
        self.write_proc_controls(proc_controls(caps));
        self.write_secondary_controls(secondary_controls(caps, vpid));
        self.vmcs.write(Field::PLE_GAP, 128);
        self.vmcs.write(Field::PAGE_FAULT_ERROR_CODE_MASK, 0);
        self.vmcs.write(Field::PAGE_FAULT_ERROR_CODE_MATCH, 0);
        self.vmcs.write(Field::CR3_TARGET_COUNT, 0);
        self.vmcs.write(Field::HOST_FS_SELECTOR, 0);
        self.vmcs.write(Field::HOST_GS_SELECTOR, 0);
        self.write_constant_host_state();
        self.write_control_fields(pages, exit_controls(caps), entry_controls(caps), vpid);
        self.write_initial_guest_msrs();
    }

    /// `vmx_set_constant_host_state()` and the FS and GS bases.
    fn write_constant_host_state(&mut self) {
        let fields = [
            (Field::HOST_CR0, host_state::CR0),
            (Field::HOST_CR3, host_state::CR3),
            (Field::HOST_CR4, host_state::CR4),
            (Field::HOST_CS_SELECTOR, host_state::CS),
            (Field::HOST_DS_SELECTOR, 0),
            (Field::HOST_ES_SELECTOR, 0),
            (Field::HOST_SS_SELECTOR, host_state::SS),
            (Field::HOST_TR_SELECTOR, host_state::TR),
            (Field::HOST_IDTR_BASE, host_state::IDTR_BASE),
            (Field::HOST_RIP, host_state::RIP),
            (Field::HOST_IA32_SYSENTER_CS, host_state::SYSENTER_CS),
            (Field::HOST_IA32_SYSENTER_EIP, host_state::SYSENTER_EIP),
            (Field::HOST_IA32_PAT, host_state::PAT),
            (Field::HOST_IA32_EFER, host_state::EFER),
            (Field::HOST_FS_BASE, 0),
            (Field::HOST_GS_BASE, 0),
        ];
        self.write_all(&fields);
    }

    fn write_control_fields(&mut self, pages: &VmxPages, exit: u64, entry: u64, vpid: u16) {
        self.write_all(&[
            (Field::VM_FUNCTION_CONTROLS, 0),
            (Field::VM_EXIT_MSR_STORE_COUNT, 0),
            (Field::VM_EXIT_MSR_LOAD_COUNT, 0),
            (
                Field::VM_EXIT_MSR_LOAD_ADDRESS,
                pages.msr_areas.offset(2048).0,
            ),
            (Field::VM_ENTRY_MSR_LOAD_COUNT, 0),
            (Field::VM_ENTRY_MSR_LOAD_ADDRESS, pages.msr_areas.0),
            (Field::GUEST_IA32_PAT, PAT_RESET),
        ]);
        self.write_exit_controls(exit);
        self.write_entry_controls(entry);
        self.vmcs
            .write(Field::CR0_GUEST_HOST_MASK, !CR0_GUEST_OWNED);
        self.update_cr4_mask();
        if vpid != 0 {
            self.vmcs.write(Field::VPID, u64::from(vpid));
        }
        self.vmcs.write(Field::XSS_EXITING_BITMAP, 0);
        self.vmcs.write(Field::PML_ADDRESS, pages.pml.0);
        self.vmcs.write(Field::PML_INDEX, PML_INDEX_START);
    }

    /// The rest of `init_vmcs()`, with the switch of IA32_EFER by VM entry and exit.
    fn write_initial_guest_msrs(&mut self) {
        self.write_all(&[
            (Field::GUEST_IA32_SYSENTER_CS, 0),
            (Field::GUEST_IA32_SYSENTER_ESP, 0),
            (Field::GUEST_IA32_SYSENTER_EIP, 0),
            (Field::GUEST_IA32_DEBUGCTL, 0),
            (Field::VIRTUAL_APIC_ADDRESS, 0),
            (Field::TPR_THRESHOLD, 0),
            (Field::GUEST_IA32_EFER, 0),
        ]);
        let entry = self.state.controls.entry | u64::from(EntryControls::LOAD_IA32_EFER.bits());
        let exit = self.state.controls.exit | u64::from(ExitControls::LOAD_IA32_EFER.bits());
        self.write_entry_controls(entry);
        self.write_exit_controls(exit);
    }

    /// `vmx_vcpu_reset()` and the register part of `kvm_vcpu_reset()`.
    fn reset(&mut self, vpid: u16) {
        self.write_segments_at_reset();
        self.write_all(&[
            (Field::GUEST_GDTR_BASE, 0),
            (Field::GUEST_GDTR_LIMIT, 0xffff),
            (Field::GUEST_IDTR_BASE, 0),
            (Field::GUEST_IDTR_LIMIT, 0xffff),
            (Field::GUEST_ACTIVITY_STATE, 0),
            (Field::GUEST_INTERRUPTIBILITY_STATE, 0),
            (Field::GUEST_PENDING_DEBUG_EXCEPTIONS, 0),
            (Field::VM_ENTRY_INTERRUPTION_INFORMATION, 0),
        ]);
        self.invalidate_vpid(vpid);
        self.state.regs[RDX] = 0x600;
        self.vmcs.write(Field::GUEST_RFLAGS, 2);
        self.state.rip = 0xfff0;
        self.set_cr0(0x6000_0010);
        self.set_cr4(0);
        self.set_efer(0);
        self.update_exception_bitmap();
    }

    /// `seg_setup()` of each register, CS twice, then TR and LDTR.
    fn write_segments_at_reset(&mut self) {
        self.write_segment(SEGMENTS[0], [0, 0, 0xffff, 0x9b]);
        self.vmcs.write(Field::GUEST_CS_SELECTOR, 0xf000);
        self.vmcs.write(Field::GUEST_CS_BASE, 0xffff_0000);
        for segment in &SEGMENTS[1..6] {
            self.write_segment(*segment, [0, 0, 0xffff, 0x93]);
        }
        self.write_segment(SEGMENTS[6], [0, 0, 0xffff, 0x8b]);
        self.write_segment(SEGMENTS[7], [0, 0, 0xffff, 0x82]);
    }

    fn write_segment(&mut self, fields: [Field; 4], values: [u64; 4]) {
        for (field, value) in fields.into_iter().zip(values) {
            self.vmcs.write(field, value);
        }
    }

    fn write_all(&mut self, fields: &[(Field, u64)]) {
        for (field, value) in fields {
            self.vmcs.write(*field, *value);
        }
    }

    /// `vpid_sync_context()`: INVVPID of this VPID alone.
    fn invalidate_vpid(&mut self, vpid: u16) {
        const SINGLE_CONTEXT: u64 = 1;
        if vpid != 0 {
            self.vmcs.invvpid(SINGLE_CONTEXT, vpid);
        }
    }

    /// Brings the controls that follow the guest's CPUID up to date
    /// (`vmx_vcpu_after_set_cpuid()`).
    pub(crate) fn update_feature_controls(&mut self) {
        let mut controls = self.state.controls.secondary;
        for (control, feature, wanted) in FEATURE_CONTROLS {
            let bit = u64::from(control.bits());
            let has = crate::cpuid::has(&self.state.cpuid, *feature);
            controls = if has == *wanted {
                controls | bit
            } else {
                controls & !bit
            };
        }
        self.write_secondary_controls(controls);
        self.update_cr4_mask();
    }
}

/// Selector, base, limit and access rights of CS, DS, ES, FS, GS, SS, TR, LDTR.
const SEGMENTS: [[Field; 4]; 8] = [
    [
        Field::GUEST_CS_SELECTOR,
        Field::GUEST_CS_BASE,
        Field::GUEST_CS_LIMIT,
        Field::GUEST_CS_ACCESS_RIGHTS,
    ],
    [
        Field::GUEST_DS_SELECTOR,
        Field::GUEST_DS_BASE,
        Field::GUEST_DS_LIMIT,
        Field::GUEST_DS_ACCESS_RIGHTS,
    ],
    [
        Field::GUEST_ES_SELECTOR,
        Field::GUEST_ES_BASE,
        Field::GUEST_ES_LIMIT,
        Field::GUEST_ES_ACCESS_RIGHTS,
    ],
    [
        Field::GUEST_FS_SELECTOR,
        Field::GUEST_FS_BASE,
        Field::GUEST_FS_LIMIT,
        Field::GUEST_FS_ACCESS_RIGHTS,
    ],
    [
        Field::GUEST_GS_SELECTOR,
        Field::GUEST_GS_BASE,
        Field::GUEST_GS_LIMIT,
        Field::GUEST_GS_ACCESS_RIGHTS,
    ],
    [
        Field::GUEST_SS_SELECTOR,
        Field::GUEST_SS_BASE,
        Field::GUEST_SS_LIMIT,
        Field::GUEST_SS_ACCESS_RIGHTS,
    ],
    [
        Field::GUEST_TR_SELECTOR,
        Field::GUEST_TR_BASE,
        Field::GUEST_TR_LIMIT,
        Field::GUEST_TR_ACCESS_RIGHTS,
    ],
    [
        Field::GUEST_LDTR_SELECTOR,
        Field::GUEST_LDTR_BASE,
        Field::GUEST_LDTR_LIMIT,
        Field::GUEST_LDTR_ACCESS_RIGHTS,
    ],
];
