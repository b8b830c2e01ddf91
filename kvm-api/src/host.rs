//! The machine that the hypervisor runs on: synthetic physical memory, logical processors, a clock.
//!
//! One per process. A logical processor belongs to the thread that uses vCPUs, as a physical CPU
//! does to the code that runs on it. The hypervisor's own pages (VMXON and VMCS regions, bitmaps,
//! MSR areas, EPT tables) are numbers in the synthetic physical space that come out the same in
//! every run.

use crate::errno::{Errno, Result};
use crate::fd::FileId;
use crate::memory::SlotRanges;
use crate::vmx::setup::kernel_state;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError};
use vmx_model::addr::Hpa;
use vmx_model::capability::VmxProfile;
use vmx_model::field::Field;
use vmx_model::processor::{Invalidation, LogicalProcessor};
use vmx_model::registry::{CpuId, RemoteVmclear, VmcsRegistry};
use x86_interp::Cpu;
use x86_interp::bus::{Clock, EmptyBus, HostClock, InstructionClock};
use x86_interp::mem::phys::{OwnedRam, PhysMap};
use x86_interp::vmx::RootSoftware;

/// Frequency of the host's time-stamp counter.
pub(crate) const TSC_KHZ: u32 = 2_500_000;
/// Where the hypervisor's own pages begin.
const PAGES_BASE: u64 = 0x1_0000_0000;
/// Pages that are added to the pool at a time.
const CHUNK_PAGES: u64 = 256;
const PAGE: u64 = 4096;

/// The clock of the host's processors: the host's own, or a count of instructions, with which the
/// same inputs give the same trace.
#[derive(Clone, Debug)]
pub(crate) struct KvmClock {
    host: HostClock,
    counts_instructions: Arc<AtomicBool>,
}

impl KvmClock {
    fn new() -> Self {
        let host = HostClock::new(u64::from(TSC_KHZ));
        Self {
            host,
            counts_instructions: Arc::default(),
        }
    }
}

impl Clock for KvmClock {
    fn tsc(&mut self, instructions: u64) -> u64 {
        if self.counts_instructions.load(Ordering::Relaxed) {
            return InstructionClock::default().tsc(instructions);
        }
        self.host.tsc(instructions)
    }

    fn instructions_within(&self, ticks: u64) -> u64 {
        if self.counts_instructions.load(Ordering::Relaxed) {
            return InstructionClock::default().instructions_within(ticks);
        }
        self.host.instructions_within(ticks)
    }
}

/// The machine under KVM.
pub(crate) struct Host {
    profile: Arc<VmxProfile>,
    registry: Arc<VmcsRegistry>,
    memory: Arc<PhysMap>,
    pages: Mutex<PagePool>,
    clock: KvmClock,
    next_cpu: AtomicU32,
    vpids: Mutex<BTreeSet<u16>>,
    virtualization: Mutex<Virtualization>,
    slot_ranges: SlotRanges,
    /// Bitmaps of VMCS shadowing, made with the first vCPU.
    shadow_bitmaps: OnceLock<(Hpa, Hpa)>,
}

impl core::fmt::Debug for Host {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Host")
            .field("profile", &self.profile.name)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct PagePool {
    chunks: u64,
    free: BTreeSet<Hpa>,
}

/// Which logical processors are in VMX operation, and for how many VMs.
#[derive(Default)]
struct Virtualization {
    vms: usize,
    processors: Vec<Arc<HostCpu>>,
    /// Those whose thread has ended: the next new threads take them.
    idle: Vec<Arc<HostCpu>>,
}

/// A logical processor of the host.
pub(crate) struct HostCpu {
    id: CpuId,
    vmxon_region: Hpa,
    processor: Mutex<HostProcessor>,
}

/// The processor proper: its VMX state, and once it has to run guests, the rest.
pub(crate) struct HostProcessor {
    /// The VMX state, until there is a [`Cpu`] to attach it to.
    vmx: Option<Box<LogicalProcessor>>,
    cpu: Option<Box<Cpu>>,
    /// The vCPU whose MSRs the processor holds.
    owner: Option<FileId>,
}

impl HostProcessor {
    /// Whether the processor holds the MSRs of this vCPU.
    pub(crate) fn belongs_to(&self, vcpu: FileId) -> bool {
        self.owner == Some(vcpu)
    }

    /// Says whose MSRs the processor holds.
    pub(crate) fn set_owner(&mut self, vcpu: FileId) {
        self.owner = Some(vcpu);
    }

    /// Returns the VMX state.
    pub(crate) fn vmx(&mut self) -> &mut LogicalProcessor {
        match (&mut self.cpu, &mut self.vmx) {
            (Some(cpu), _) => cpu.processor_mut().expect("it was attached"),
            (None, Some(vmx)) => vmx,
            (None, None) => unreachable!("the VMX state is here or attached"),
        }
    }

    /// As [`LogicalProcessor::try_read`].
    #[inline]
    pub(crate) fn try_read<const N: usize>(&self, fields: [Field; N]) -> Option<[u64; N]> {
        self.cpu.as_ref()?.processor()?.try_read(fields)
    }

    /// Returns the processor that executes instructions.
    #[inline]
    pub(crate) fn cpu(&mut self, host: &Host) -> &mut Cpu {
        if self.vmx.is_some() {
            self.make_cpu(host);
        }
        self.cpu.as_mut().expect("it was made with the VMX state")
    }

    #[cold]
    fn make_cpu(&mut self, host: &Host) {
        let clock = Box::new(host.clock());
        let mut cpu = Box::new(Cpu::new(host.memory.clone(), Box::new(EmptyBus), clock));
        cpu.set_arch_state(&kernel_state());
        if let Some(vmx) = self.vmx.take() {
            cpu.attach_processor(vmx, RootSoftware::Native);
        }
        self.cpu = Some(cpu);
    }

    /// Returns how many instructions the processor has retired.
    pub(crate) fn retired(&self) -> u64 {
        self.cpu.as_ref().map_or(0, |cpu| cpu.retired())
    }

    /// Executes INVVPID or INVEPT: what it names is dropped.
    pub(crate) fn invalidate(&mut self, which: Invalidation) {
        if let Some(cpu) = &mut self.cpu {
            cpu.drop_translations(which);
        }
    }
}

thread_local! {
    /// The logical processor of this thread.
    static THIS_CPU: RefCell<Option<CpuOfThread>> = const { RefCell::new(None) };
}

/// A thread's hold on its logical processor; the end of the thread lets it go.
struct CpuOfThread {
    host: Arc<Host>,
    cpu: Arc<HostCpu>,
}

impl Drop for CpuOfThread {
    fn drop(&mut self) {
        lock(&self.host.virtualization).idle.push(self.cpu.clone());
    }
}

/// The logical processor that a thread has for the length of a call.
pub(crate) struct ThisCpu {
    cpu: Arc<HostCpu>,
    /// To whom the processor goes back after the call.
    lent_by: Option<Arc<Host>>,
}

impl core::ops::Deref for ThisCpu {
    type Target = HostCpu;

    fn deref(&self) -> &HostCpu {
        &self.cpu
    }
}

impl Drop for ThisCpu {
    fn drop(&mut self) {
        if let Some(host) = self.lent_by.take() {
            lock(&host.virtualization).idle.push(self.cpu.clone());
        }
    }
}

impl Host {
    /// Returns the host of this process.
    pub(crate) fn of_process() -> Arc<Self> {
        static HOST: LazyLock<Arc<Host>> = LazyLock::new(|| Arc::new(Host::new()));
        HOST.clone()
    }

    fn new() -> Self {
        Self {
            profile: Arc::new(VmxProfile::emulator_default()),
            registry: VmcsRegistry::new(),
            memory: PhysMap::new(),
            pages: Mutex::default(),
            clock: KvmClock::new(),
            next_cpu: AtomicU32::new(0),
            vpids: Mutex::default(),
            virtualization: Mutex::default(),
            slot_ranges: SlotRanges::default(),
            shadow_bitmaps: OnceLock::new(),
        }
    }

    /// Returns what the processors can do.
    pub(crate) fn profile(&self) -> &Arc<VmxProfile> {
        &self.profile
    }

    /// Returns the physical memory.
    pub(crate) fn memory(&self) -> &Arc<PhysMap> {
        &self.memory
    }

    /// Returns the ranges of physical memory that slots have.
    pub(crate) fn slot_ranges(&self) -> &SlotRanges {
        &self.slot_ranges
    }

    /// Returns the clock of the processors.
    pub(crate) fn clock(&self) -> KvmClock {
        self.clock.clone()
    }

    /// Reads the time-stamp counter of a processor that has retired so many instructions.
    pub(crate) fn tsc(&self, retired: u64) -> u64 {
        self.clock().tsc(retired)
    }

    /// Lets the time-stamp counters count retired instructions, or follow the host's clock again.
    pub(crate) fn count_instructions(&self, count: bool) {
        self.clock
            .counts_instructions
            .store(count, Ordering::Relaxed);
    }

    /// Returns a zeroed page: always the lowest that is free.
    ///
    /// # Errors
    /// ENOMEM.
    pub(crate) fn alloc_page(&self) -> Result<Hpa> {
        let mut pool = lock(&self.pages);
        if pool.free.is_empty() {
            let base = Hpa(PAGES_BASE + pool.chunks * CHUNK_PAGES * PAGE);
            let ram = OwnedRam::new(CHUNK_PAGES as usize).ok_or(Errno::ENOMEM)?;
            self.memory
                .add_owned(base, Arc::new(ram))
                .map_err(|_| Errno::ENOMEM)?;
            pool.chunks += 1;
            pool.free
                .extend((0..CHUNK_PAGES).map(|page| base.offset(page * PAGE)));
        }
        let page = pool
            .free
            .pop_first()
            .expect("the pool has just been filled");
        self.memory.write_bytes(page, &[0; PAGE as usize]);
        Ok(page)
    }

    /// Gives a page back.
    pub(crate) fn free_page(&self, page: Hpa) {
        lock(&self.pages).free.insert(page);
    }

    /// Returns the VMREAD and VMWRITE bitmaps of VMCS shadowing, in which every access exits.
    ///
    /// # Errors
    /// ENOMEM.
    pub(crate) fn shadow_bitmaps(&self) -> Result<(Hpa, Hpa)> {
        if let Some(pages) = self.shadow_bitmaps.get() {
            return Ok(*pages);
        }
        let pages = (self.alloc_page()?, self.alloc_page()?);
        for page in [pages.0, pages.1] {
            self.memory.write_bytes(page, &[0xff; PAGE as usize]);
        }
        Ok(*self.shadow_bitmaps.get_or_init(|| pages))
    }

    /// Returns a VPID that is not in use, 0 if there is none left.
    pub(crate) fn alloc_vpid(&self) -> u16 {
        let mut used = lock(&self.vpids);
        let free = (1..=u16::MAX)
            .find(|vpid| !used.contains(vpid))
            .unwrap_or(0);
        used.insert(free);
        free
    }

    /// Gives a VPID back.
    pub(crate) fn free_vpid(&self, vpid: u16) {
        lock(&self.vpids).remove(&vpid);
    }

    /// Enables virtualization for one more VM: on every processor, for the first (as in 6.12,
    /// `kvm_enable_virtualization()`).
    ///
    /// # Errors
    /// ENOMEM.
    pub(crate) fn enable_virtualization(self: &Arc<Self>) -> Result<()> {
        self.this_cpu()?;
        let mut virtualization = lock(&self.virtualization);
        virtualization.vms += 1;
        if virtualization.vms == 1 {
            for cpu in &virtualization.processors {
                cpu.vmxon(self);
            }
        }
        Ok(())
    }

    /// Disables virtualization for one VM: on every processor, for the last.
    pub(crate) fn disable_virtualization(&self) {
        let mut virtualization = lock(&self.virtualization);
        virtualization.vms -= 1;
        if virtualization.vms == 0 {
            for cpu in &virtualization.processors {
                cpu.vmxoff();
            }
        }
    }

    /// Returns this thread's logical processor. It comes into being with the thread's first call,
    /// and enters VMX operation at once if there is a VM.
    ///
    /// # Errors
    /// ENOMEM.
    pub(crate) fn this_cpu(self: &Arc<Self>) -> Result<ThisCpu> {
        let held = THIS_CPU.try_with(|held| held.borrow().as_ref().map(|held| held.cpu.clone()));
        if let Ok(Some(cpu)) = held {
            return Ok(ThisCpu { cpu, lent_by: None });
        }
        let idle = lock(&self.virtualization).idle.pop();
        let cpu = match idle {
            Some(cpu) => cpu,
            None => self.add_cpu()?,
        };
        if held.is_err() {
            // A handler of a thread that has let its processor go, and is about to end.
            let lent_by = Some(self.clone());
            return Ok(ThisCpu { cpu, lent_by });
        }
        THIS_CPU.set(Some(CpuOfThread {
            host: self.clone(),
            cpu: cpu.clone(),
        }));
        Ok(ThisCpu { cpu, lent_by: None })
    }

    fn add_cpu(&self) -> Result<Arc<HostCpu>> {
        let id = CpuId(self.next_cpu.fetch_add(1, Ordering::Relaxed));
        let cpu = Arc::new(HostCpu::new(self, id)?);
        let mut virtualization = lock(&self.virtualization);
        if virtualization.vms != 0 {
            cpu.vmxon(self);
        }
        virtualization.processors.push(cpu.clone());
        Ok(cpu)
    }

    /// Has the processor on which a VMCS was last active execute VMCLEAR
    /// (`loaded_vmcs_clear()`, there by an IPI). The caller holds no processor.
    pub(crate) fn clear_vmcs(&self, owner: CpuId, vmcs: Hpa) {
        let mut memory: &PhysMap = &self.memory;
        if self.registry.remote_vmclear(owner, vmcs, &mut memory) != RemoteVmclear::Current {
            return;
        }
        let known = lock(&self.virtualization).processors.clone();
        let Some(cpu) = known.into_iter().find(|cpu| cpu.id == owner) else {
            return;
        };
        // The vCPU's mutex is held, so its thread is not running this VMCS: the wait is short.
        let cleared = cpu.lock().vmx().vmclear(vmcs, &mut memory);
        debug_assert!(
            cleared.is_ok_and(|o| o.is_success()),
            "VMCLEAR in VMX root operation"
        );
    }
}

impl HostCpu {
    fn new(host: &Host, id: CpuId) -> Result<Self> {
        let vmxon_region = host.alloc_page()?;
        let revision = host.profile.caps.revision_id();
        host.memory
            .write_bytes(vmxon_region, &revision.to_le_bytes());
        let vmx = LogicalProcessor::new(id, host.profile.clone(), host.registry.clone());
        let processor = HostProcessor {
            vmx: Some(Box::new(vmx)),
            cpu: None,
            owner: None,
        };
        Ok(Self {
            id,
            vmxon_region,
            processor: Mutex::new(processor),
        })
    }

    /// Returns the number of the processor.
    pub(crate) const fn id(&self) -> CpuId {
        self.id
    }

    /// Returns the processor, which only its own thread keeps for long.
    pub(crate) fn lock(&self) -> MutexGuard<'_, HostProcessor> {
        lock(&self.processor)
    }

    fn vmxon(&self, host: &Host) {
        let memory: &PhysMap = &host.memory;
        let outcome = self.lock().vmx().vmxon(self.vmxon_region, &memory);
        debug_assert!(
            outcome.is_ok_and(|o| o.is_success()),
            "VMXON of our own region"
        );
    }

    fn vmxoff(&self) {
        let outcome = self.lock().vmx().vmxoff();
        debug_assert!(
            outcome.is_ok_and(|o| o.is_success()),
            "VMXOFF in VMX root operation"
        );
    }
}

pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
