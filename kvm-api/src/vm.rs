//! A VM: its ioctls, memory slots and configuration (api.rst, "VM ioctls").

use crate::caps;
use crate::clock::VmClock;
use crate::dispatch::{Row, done, get, put};
use crate::enable_cap;
use crate::errno::{Errno, Result};
use crate::fd::{Backing, FileId};
use crate::guest_memory::GuestMemory;
use crate::host::{Host, TSC_KHZ, lock};
use crate::io_bus::IoBus;
use crate::memslots::{Harvest, Memslots, NewBitmap, check_slot_number};
use crate::msr_filter::MsrFilter;
use crate::registry::{self, Object};
use crate::uaccess::UserPtr;
use crate::uapi::*;
use crate::vcpu::{MAX_GUEST_TSC_KHZ, Vcpu, VcpuCore};
use kvm_bindings::{
    KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, kvm_create_device, kvm_enable_cap, kvm_msr_filter,
    kvm_userspace_memory_region, kvm_userspace_memory_region2,
};
use std::collections::BTreeMap;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard};

/// The VM ioctls. A request that is not here is ENOTTY.
pub(crate) const IOCTLS: &[Row<Arc<Vm>>] = &[
    Row::new(KVM_CHECK_EXTENSION, |vm, arg| Ok(vm.check_extension(arg))),
    Row::new(KVM_CREATE_VCPU, create_vcpu_fd),
    Row::new(KVM_SET_USER_MEMORY_REGION, |vm, arg| {
        done(get(arg).and_then(|region| vm.set_user_memory_region(region)))
    }),
    Row::new(KVM_SET_USER_MEMORY_REGION2, |vm, arg| {
        done(get(arg).and_then(|region| vm.set_user_memory_region2(region)))
    }),
    Row::new(KVM_GET_DIRTY_LOG, |vm, arg| done(vm.get_dirty_log_to(arg))),
    Row::new(KVM_CLEAR_DIRTY_LOG, |vm, arg| {
        done(vm.clear_dirty_log_from(arg))
    }),
    Row::new(KVM_SET_TSS_ADDR, |vm, arg| done(vm.set_tss_address(arg))),
    Row::new(KVM_SET_IDENTITY_MAP_ADDR, |vm, arg| {
        done(vm.set_identity_map_address_from(arg))
    }),
    Row::new(KVM_SET_BOOT_CPU_ID, |vm, arg| done(vm.set_boot_cpu_id(arg))),
    Row::new(KVM_SET_NR_MMU_PAGES, |vm, arg| {
        done(vm.set_nr_mmu_pages(arg))
    }),
    Row::new(KVM_X86_SET_MSR_FILTER, |vm, arg| {
        done(get(arg).and_then(|filter| vm.set_msr_filter(&filter)))
    }),
    Row::new(KVM_SET_TSC_KHZ, |vm, arg| done(vm.set_tsc_khz(arg as u32))),
    Row::new(KVM_GET_TSC_KHZ, |vm, _| Ok(i64::from(vm.get_tsc_khz()))),
    Row::new(KVM_GET_CLOCK, |vm, arg| put(arg, &vm.get_clock())),
    Row::new(KVM_SET_CLOCK, |vm, arg| {
        done(get(arg).and_then(|data| vm.set_clock(&data)))
    }),
    Row::new(KVM_IOEVENTFD, |vm, arg| {
        done(get(arg).and_then(|args| vm.ioeventfd(&args)))
    }),
    Row::new(KVM_REGISTER_COALESCED_MMIO, |vm, arg| {
        done(get(arg).and_then(|zone| vm.register_coalesced_mmio(&zone)))
    }),
    Row::new(KVM_UNREGISTER_COALESCED_MMIO, |vm, arg| {
        done(get(arg).and_then(|zone| vm.unregister_coalesced_mmio(&zone)))
    }),
    Row::new(KVM_CREATE_DEVICE, |_, arg| {
        get::<kvm_create_device>(arg).and(Err(Errno::ENODEV))
    }),
    Row::new(KVM_ENABLE_CAP, |vm, arg| {
        done(get(arg).and_then(|cap| vm.enable_cap(&cap)))
    }),
];

/// A virtual machine.
#[derive(Debug)]
pub struct Vm {
    backing: Backing,
    host: Arc<Host>,
    vcpus: Mutex<BTreeMap<u32, Arc<VcpuCore>>>,
    memory: Arc<GuestMemory>,
    msr_filter: Mutex<Arc<MsrFilter>>,
    config: Mutex<VmConfig>,
    clock: VmClock,
    io_bus: IoBus,
}

impl Drop for Vm {
    fn drop(&mut self) {
        for core in std::mem::take(&mut *lock(&self.vcpus)).into_values() {
            core.destroy(self);
        }
        self.host.disable_virtualization();
    }
}

fn create_vcpu_fd(vm: &Arc<Vm>, id: u64) -> Result<i64> {
    let (vcpu, fd) = vm.create_vcpu_with_fd(id)?;
    registry::insert(vcpu.file(), Object::Vcpu(vcpu));
    Ok(i64::from(fd.into_raw_fd()))
}

/// What VM ioctls have set, but the memory slots.
#[derive(Clone, Debug, Default)]
pub(crate) struct VmConfig {
    /// vCPUs made so far; an id whose descriptor was closed still counts.
    pub(crate) created_vcpus: u32,
    /// Ids are below this, if set.
    pub(crate) max_vcpu_ids: Option<u32>,
    /// Id of the bootstrap processor.
    pub(crate) bsp_vcpu_id: u32,
    /// Guest-physical address of the EPT identity table; 0 is the default address.
    pub(crate) identity_map_address: u64,
    /// Options of `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2`.
    pub(crate) manual_dirty_log: u64,
    /// TSC frequency of new vCPUs.
    pub(crate) tsc_khz: u32,
    /// What KVM_ENABLE_CAP has set beyond the above.
    pub(crate) enabled: enable_cap::Enabled,
}

impl Vm {
    /// Makes a VM, and enables virtualization on the host for it.
    pub(crate) fn new(backing: Backing, host: Arc<Host>) -> Result<Self> {
        let memory = Arc::new(GuestMemory::new(host.clone())?);
        host.enable_virtualization()?;
        Ok(Self {
            backing,
            host,
            vcpus: Mutex::default(),
            memory,
            msr_filter: Mutex::default(),
            config: Mutex::new(VmConfig {
                tsc_khz: TSC_KHZ,
                ..VmConfig::default()
            }),
            clock: VmClock::default(),
            io_bus: IoBus::default(),
        })
    }

    /// Returns the machine that the VM runs on.
    pub(crate) const fn host(&self) -> &Arc<Host> {
        &self.host
    }

    /// Makes a vCPU: api.rst, "KVM_CREATE_VCPU".
    ///
    /// # Errors
    /// EINVAL: the id is out of range, or the VM has 1024 vCPUs; EEXIST: the id is taken; EMFILE,
    /// ENFILE: no descriptor; ENOMEM.
    pub fn create_vcpu(self: &Arc<Self>, id: u64) -> Result<Arc<Vcpu>> {
        self.create_vcpu_with_fd(id).map(|(vcpu, _)| vcpu)
    }

    fn create_vcpu_with_fd(self: &Arc<Self>, id: u64) -> Result<(Arc<Vcpu>, OwnedFd)> {
        let id = self.count_vcpu(id)?;
        match self.build_vcpu(id) {
            Ok((core, fd)) => {
                core.post_create(self)?;
                Ok((Arc::new(Vcpu::new(self.clone(), core)), fd))
            }
            Err(errno) => {
                self.config().created_vcpus -= 1;
                Err(errno)
            }
        }
    }

    /// Checks the id and counts the vCPU, before anything is built.
    fn count_vcpu(&self, id: u64) -> Result<u32> {
        let mut config = self.config();
        let limit = config.max_vcpu_ids.unwrap_or(MAX_VCPU_IDS);
        let is_full = config.created_vcpus >= MAX_VCPUS;
        let id = u32::try_from(id).ok().filter(|id| *id < limit && !is_full);
        let id = id.ok_or(Errno::EINVAL)?;
        config.created_vcpus += 1;
        Ok(id)
    }

    /// Builds a vCPU; whether its id is free is looked at afterwards, as in the kernel.
    fn build_vcpu(&self, id: u32) -> Result<(Arc<VcpuCore>, OwnedFd)> {
        let built = VcpuCore::create(self, id);
        let mut vcpus = lock(&self.vcpus);
        let core = match built {
            Err(_) if vcpus.contains_key(&id) => return Err(Errno::EEXIST),
            built => built?,
        };
        let fd = if vcpus.contains_key(&id) {
            Err(Errno::EEXIST)
        } else {
            core.take_fd()
        };
        match fd {
            Ok(fd) => {
                let core = Arc::new(core);
                self.io_bus.set_ring(core.run_page());
                vcpus.insert(id, core.clone());
                Ok((core, fd))
            }
            Err(errno) => {
                core.destroy(self);
                Err(errno)
            }
        }
    }

    /// Returns the file behind the VM's descriptor.
    pub(crate) const fn file(&self) -> FileId {
        self.backing.id()
    }

    /// Returns the configuration, locked.
    pub(crate) fn config(&self) -> MutexGuard<'_, VmConfig> {
        lock(&self.config)
    }

    /// Returns the clock.
    pub(crate) const fn clock(&self) -> &VmClock {
        &self.clock
    }

    /// Returns the buses.
    pub(crate) const fn io_bus(&self) -> &IoBus {
        &self.io_bus
    }

    /// Returns the slots as they are now.
    pub(crate) fn memslots(&self) -> Arc<Memslots> {
        self.memory.slots()
    }

    /// Returns the guest's memory.
    pub(crate) fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Returns the guest's memory, to be held by the emulator.
    pub(crate) fn memory_handle(&self) -> Arc<GuestMemory> {
        self.memory.clone()
    }

    /// Returns the MSR filter.
    pub(crate) fn msr_filter(&self) -> Arc<MsrFilter> {
        lock(&self.msr_filter).clone()
    }

    /// Returns the vCPUs by id.
    pub(crate) fn cores(&self) -> Vec<(u32, Arc<VcpuCore>)> {
        lock(&self.vcpus)
            .iter()
            .map(|(id, core)| (*id, core.clone()))
            .collect()
    }

    /// Returns a vCPU that was made before: a second handle to it.
    #[must_use]
    pub fn vcpu(self: &Arc<Self>, id: u32) -> Option<Arc<Vcpu>> {
        let core = lock(&self.vcpus).get(&id).cloned()?;
        Some(Arc::new(Vcpu::new(self.clone(), core)))
    }

    /// Makes every vCPU leave the guest.
    fn kick_all(&self) {
        lock(&self.vcpus).values().for_each(|core| core.kick());
    }

    /// Returns the value of a capability for this VM: api.rst, "KVM_CHECK_EXTENSION".
    #[must_use]
    pub fn check_extension(&self, capability: u64) -> i64 {
        caps::vm_value(capability)
    }

    /// Makes, moves, deletes or changes a memory slot: api.rst, "KVM_SET_USER_MEMORY_REGION".
    ///
    /// # Errors
    /// EINVAL: flags other than LOG_DIRTY_PAGES and READONLY, and as
    /// [`Self::set_user_memory_region2`].
    pub fn set_user_memory_region(&self, region: kvm_userspace_memory_region) -> Result<()> {
        if region.flags & !(KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY) != 0 {
            return Err(Errno::EINVAL);
        }
        self.set_user_memory_region2(kvm_userspace_memory_region2 {
            slot: region.slot,
            flags: region.flags,
            guest_phys_addr: region.guest_phys_addr,
            memory_size: region.memory_size,
            userspace_addr: region.userspace_addr,
            ..Default::default()
        })
    }

    /// Makes, moves, deletes or changes a memory slot: api.rst, "KVM_SET_USER_MEMORY_REGION2".
    ///
    /// The guest reaches the caller's memory at `userspace_addr` as long as the slot is there;
    /// pages that are not mapped are EFAULT from KVM_RUN.
    ///
    /// # Errors
    /// EINVAL: slot number, flags, an address or size that is not of whole pages or not of user
    /// space, a size above 2^31 - 1 pages, the end above the processor's MAXPHYADDR, a slot to be
    /// deleted that is not there, or a change of size, user address or READONLY. EEXIST: it
    /// overlaps another slot. ENOMEM: no memory for the dirty bitmap.
    #[allow(clippy::needless_pass_by_value, reason = "as in the kvm-ioctls crate")]
    pub fn set_user_memory_region2(&self, region: kvm_userspace_memory_region2) -> Result<()> {
        let new_bitmap = match self.config().manual_dirty_log & 2 {
            0 => NewBitmap::Clear,
            _ => NewBitmap::InitiallySet,
        };
        self.memory
            .set_region(&region, new_bitmap, &|| self.kick_all())
    }

    /// Returns the pages of a slot that the guest has written: api.rst, "KVM_GET_DIRTY_LOG".
    ///
    /// # Errors
    /// EINVAL: the slot number; ENOENT: no slot, or it does not log.
    pub fn get_dirty_log(&self, slot: u32) -> Result<Vec<u64>> {
        let slots = self.memslots();
        let (slot, dirty) = slots.logging(slot)?;
        if self.config().manual_dirty_log & 1 != 0 {
            return Ok(dirty.harvest(Harvest::Keep));
        }
        let bits = dirty.harvest(Harvest::Clear);
        self.memory.protect(slot, 0, &bits, &|| self.kick_all());
        Ok(bits)
    }

    fn get_dirty_log_to(&self, arg: u64) -> Result<()> {
        let log: DirtyLog = get(arg)?;
        let bits = self.get_dirty_log(log.slot)?;
        UserPtr(log.dirty_bitmap).write_array(&bits)
    }

    /// Clears bits of a slot's dirty log: api.rst, "KVM_CLEAR_DIRTY_LOG".
    ///
    /// # Errors
    /// EINVAL: slot number, `first_page` not a multiple of 64, a range outside the slot, or a
    /// length that is no multiple of 64 and does not end at the slot's end. ENOENT: no slot, or
    /// it does not log.
    pub fn clear_dirty_log(
        &self,
        slot: u32,
        first_page: u64,
        pages: u32,
        bits: &[u64],
    ) -> Result<()> {
        self.clear_dirty_log_with(slot, first_page, pages, |_| Ok(bits.to_vec()))
    }

    fn clear_dirty_log_with(
        &self,
        slot: u32,
        first_page: u64,
        pages: u32,
        bits: impl FnOnce(usize) -> Result<Vec<u64>>,
    ) -> Result<()> {
        check_slot_number(slot)?;
        if !first_page.is_multiple_of(64) {
            return Err(Errno::EINVAL);
        }
        let slots = self.memslots();
        let (slot, dirty) = slots.logging(slot)?;
        let rest = slot.npages.checked_sub(first_page).ok_or(Errno::EINVAL)?;
        let pages = u64::from(pages);
        if pages > rest || (pages < rest && pages % 64 != 0) {
            return Err(Errno::EINVAL);
        }
        let words = usize::try_from(pages.div_ceil(64)).expect("at most 2^31 pages");
        let mut mask = bits(words)?;
        mask.resize(words, 0);
        if let (Some(last), 1..) = (mask.last_mut(), pages % 64) {
            *last &= (1 << (pages % 64)) - 1;
        }
        dirty.clear_range(first_page, &mask);
        self.memory
            .protect(slot, first_page, &mask, &|| self.kick_all());
        Ok(())
    }

    fn clear_dirty_log_from(&self, arg: u64) -> Result<()> {
        let log: ClearDirtyLog = get(arg)?;
        let bitmap = UserPtr(log.dirty_bitmap);
        self.clear_dirty_log_with(log.slot, log.first_page, log.num_pages, |words| {
            bitmap.read_array(words)
        })
    }

    /// Sets where the three pages of the TSS for virtual-8086 mode lie: api.rst,
    /// "KVM_SET_TSS_ADDR". With "unrestricted guest", which our processor has, nothing uses them.
    ///
    /// # Errors
    /// EINVAL: above 0xffffd000.
    pub fn set_tss_address(&self, address: u64) -> Result<()> {
        if address > 0xffff_d000 {
            Err(Errno::EINVAL)
        } else {
            Ok(())
        }
    }

    /// Sets where the identity-mapped page table lies: api.rst, "KVM_SET_IDENTITY_MAP_ADDR". With
    /// "unrestricted guest" nothing uses it.
    ///
    /// # Errors
    /// EINVAL: a vCPU exists.
    pub fn set_identity_map_address(&self, address: u64) -> Result<()> {
        let mut config = self.config();
        if config.created_vcpus != 0 {
            return Err(Errno::EINVAL);
        }
        config.identity_map_address = if address == 0 { 0xfffb_c000 } else { address };
        Ok(())
    }

    fn set_identity_map_address_from(&self, arg: u64) -> Result<()> {
        if self.config().created_vcpus != 0 {
            return Err(Errno::EINVAL);
        }
        self.set_identity_map_address(get(arg)?)
    }

    /// Says which vCPU is the bootstrap processor: api.rst, "KVM_SET_BOOT_CPU_ID".
    ///
    /// # Errors
    /// EBUSY: a vCPU exists; EINVAL: above the largest id.
    pub fn set_boot_cpu_id(&self, id: u64) -> Result<()> {
        let mut config = self.config();
        if config.created_vcpus != 0 {
            return Err(Errno::EBUSY);
        }
        // The kernel compares with ">", so that the number of ids itself passes.
        let limit = config.max_vcpu_ids.unwrap_or(MAX_VCPU_IDS);
        let id = u32::try_from(id)
            .ok()
            .filter(|id| *id <= limit)
            .ok_or(Errno::EINVAL)?;
        config.bsp_vcpu_id = id;
        Ok(())
    }

    /// Limits the pages of shadow page tables, of which we have none: api.rst,
    /// "KVM_SET_NR_MMU_PAGES".
    ///
    /// # Errors
    /// EINVAL: below 64.
    pub fn set_nr_mmu_pages(&self, pages: u64) -> Result<()> {
        // The kernel takes an unsigned int.
        if pages & 0xffff_ffff < 64 {
            Err(Errno::EINVAL)
        } else {
            Ok(())
        }
    }

    /// Replaces the filter of MSRs: api.rst, "KVM_X86_SET_MSR_FILTER".
    ///
    /// # Errors
    /// EINVAL: flags, a default of deny without a range, a range without or with unknown flags, a
    /// bitmap above 1536 bytes. EFAULT: a bitmap.
    pub fn set_msr_filter(&self, filter: &kvm_msr_filter) -> Result<()> {
        *lock(&self.msr_filter) = Arc::new(MsrFilter::from_user(filter)?);
        self.kick_all();
        Ok(())
    }

    /// Sets the TSC frequency of vCPUs made from now on; 0 is the host's: api.rst,
    /// "KVM_SET_TSC_KHZ".
    ///
    /// # Errors
    /// EINVAL: beyond what scaling reaches.
    pub fn set_tsc_khz(&self, khz: u32) -> Result<()> {
        if khz >= MAX_GUEST_TSC_KHZ {
            return Err(Errno::EINVAL);
        }
        self.config().tsc_khz = if khz == 0 { TSC_KHZ } else { khz };
        Ok(())
    }

    /// Returns the TSC frequency of new vCPUs: api.rst, "KVM_GET_TSC_KHZ".
    #[must_use]
    pub fn get_tsc_khz(&self) -> u32 {
        self.config().tsc_khz
    }

    /// Enables a capability: api.rst, "KVM_ENABLE_CAP" and "Capabilities that can be enabled on
    /// VMs".
    ///
    /// # Errors
    /// EINVAL: flags, an unknown capability, or its own rules.
    pub fn enable_cap(&self, cap: &kvm_enable_cap) -> Result<()> {
        enable_cap::enable_on_vm(self, cap)
    }
}
