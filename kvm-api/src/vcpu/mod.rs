//! A vCPU: its state, and the ioctls that get and set it (api.rst, "vcpu ioctls").
//!
//! [`Vcpu`] is the object behind a descriptor. An ioctl takes its mutex and loads it on the
//! calling thread's logical processor (`vcpu_load()`): what the handlers work on is a [`Loaded`].

mod completion;
pub(crate) mod control;
mod cpuid;
mod emulate;
mod enter;
mod events;
mod exits;
mod exits_io;
mod fpu;
mod ioctls;
mod msr;
mod pace;
mod regs;
mod run;
pub(crate) mod state;
mod translate;
mod tsc;

pub(crate) use completion::{IoAccess, IoSpace};
pub(crate) use ioctls::{IOCTLS, read_msr_entries};
pub(crate) use msr::{feature_index_list, index_list, system_value};
pub(crate) use tsc::MAX_GUEST_TSC_KHZ;

use crate::errno::{Errno, Result};
use crate::fd::{Backing, FileId};
use crate::host::{HostCpu, lock};
use crate::run_page::RunPage;
use crate::uapi::VCPU_MMAP_SIZE;
use crate::vm::Vm;
use crate::vmx::CurrentVmcs;
use crate::vmx::setup::VmxPages;
use emulate::Emulator;
use fpu::LiveFpu;
use pace::Pace;
use state::VcpuState;
use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard};
use vmx_model::registry::CpuId;
use x86_interp::mem::phys::PhysMap;
use x86_interp::run::Kicker;

/// A virtual processor.
#[derive(Debug)]
pub struct Vcpu {
    vm: Arc<Vm>,
    core: Arc<VcpuCore>,
}

/// What of a vCPU lives as long as its VM: closing its descriptor does not free its id.
pub(crate) struct VcpuCore {
    id: u32,
    vpid: u16,
    pages: VmxPages,
    run: RunPage,
    file: FileId,
    /// The descriptor, until it is handed out.
    fd: Mutex<Option<OwnedFd>>,
    /// Ends a run of the processor that the VMCS was last active on.
    kicker: Mutex<Option<Kicker>>,
    inner: Mutex<Inner>,
}

impl core::fmt::Debug for VcpuCore {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("VcpuCore")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

struct Inner {
    state: VcpuState,
    /// The processor on which the VMCS is active (`vcpu->cpu`).
    cpu: Option<CpuId>,
    caches: Caches,
}

/// What a vCPU holds that can be made anew.
pub(crate) struct Caches {
    /// The VMCS has been launched since the last VMCLEAR.
    pub(crate) launched: bool,
    /// [`VcpuCore::kick`] knows the processor.
    pub(crate) has_kicker: bool,
    /// The EPT pointer in the VMCS, and the generation of the mappings that the processor may hold.
    pub(crate) ept: Option<(u64, u64)>,
    /// The floating-point registers as the processor had them; then the area is out of date.
    pub(crate) fpu: Option<Box<LiveFpu>>,
    /// An MSR that the processor holds has been written by software.
    pub(crate) msrs_are_dirty: bool,
    /// IA32_KERNEL_GS_BASE as the processor was given it, or was last seen to have it.
    pub(crate) kernel_gs_base: u64,
    pub(crate) pace: Pace,
    pub(crate) emulator: Option<Box<Emulator>>,
    /// Moves with the guest's CPUID.
    pub(crate) cpuid_generation: u64,
    /// The CPUID that the emulator has.
    pub(crate) emulator_cpuid: Option<u64>,
}

impl Caches {
    /// Forgets what follows from a state that has been replaced.
    pub(crate) fn renew(&mut self) {
        self.ept = None;
        self.fpu = None;
        self.msrs_are_dirty = true;
        self.cpuid_generation += 1;
    }
}

impl Default for Caches {
    fn default() -> Self {
        Self {
            launched: false,
            has_kicker: false,
            ept: None,
            fpu: None,
            msrs_are_dirty: true,
            kernel_gs_base: 0,
            pace: Pace::default(),
            emulator: None,
            cpuid_generation: 0,
            emulator_cpuid: None,
        }
    }
}

/// A vCPU that is loaded on this thread's logical processor: its VMCS is current there.
pub(crate) struct Loaded<'a> {
    pub(crate) state: &'a mut VcpuState,
    pub(crate) vmcs: CurrentVmcs<'a>,
    pub(crate) vm: &'a Vm,
    pub(crate) run: &'a RunPage,
    pub(crate) core: &'a VcpuCore,
    pub(crate) caches: &'a mut Caches,
}

impl Vcpu {
    pub(crate) fn new(vm: Arc<Vm>, core: Arc<VcpuCore>) -> Self {
        Self { vm, core }
    }

    /// Returns the id given to KVM_CREATE_VCPU.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.core.id
    }

    /// Returns the memory that the vCPU shares with user space: `struct kvm_run`, the page of port
    /// I/O data and the page of the coalesced ring. It lives as long as the vCPU; the guest's exits
    /// change it.
    #[must_use]
    pub fn run_page(&self) -> core::ptr::NonNull<u8> {
        self.core.run.backing().start()
    }

    pub(crate) fn file(&self) -> FileId {
        self.core.file
    }

    /// Performs `body` with the vCPU loaded on this thread's processor (`vcpu_load()`,
    /// `vcpu_put()`).
    ///
    /// # Errors
    /// Those of `body`; ENOMEM: the thread's processor cannot be made.
    pub(crate) fn with<R>(&self, body: impl FnOnce(&mut Loaded<'_>) -> Result<R>) -> Result<R> {
        self.core.with(&self.vm, body)
    }
}

impl VcpuCore {
    /// Builds a vCPU up to `vcpu_put()`.
    ///
    /// # Errors
    /// ENOMEM; EMFILE, ENFILE: no descriptor, without which there is no memory to share.
    pub(crate) fn create(vm: &Vm, id: u32) -> Result<Self> {
        let host = vm.host();
        let shadow = host.shadow_bitmaps()?;
        let name = CString::new(format!("kvm-vcpu:{id}")).map_err(|_| Errno::EINVAL)?;
        let (backing, fd) = Backing::new(&name, VCPU_MMAP_SIZE)?;
        let core = Self {
            id,
            pages: VmxPages::new(host)?,
            vpid: host.alloc_vpid(),
            file: backing.id(),
            run: RunPage::new(Arc::new(backing)),
            fd: Mutex::new(Some(fd)),
            kicker: Mutex::default(),
            inner: Mutex::new(Inner {
                state: VcpuState::new(vm.get_tsc_khz()),
                cpu: None,
                caches: Caches::default(),
            }),
        };
        core.with(vm, |vcpu| {
            vcpu.set_up(&core.pages, core.vpid, shadow);
            let boot = vm.config().bsp_vcpu_id == id;
            vcpu.state.apic_base = 0xfee0_0800 | u64::from(boot) << 8;
            Ok(())
        })?;
        Ok(core)
    }

    /// Says how to end a run of the processor that the VMCS is active on.
    pub(crate) fn set_kicker(&self, kicker: Kicker) {
        *lock(&self.kicker) = Some(kicker);
    }

    /// Makes the vCPU leave the guest (`kvm_vcpu_kick()`). If it is not there, its processor takes
    /// one VM exit for nothing, as by an interprocessor interrupt that comes too late.
    pub(crate) fn kick(&self) {
        if let Some(kicker) = &*lock(&self.kicker) {
            kicker.kick();
        }
    }

    /// Returns the descriptor, once.
    pub(crate) fn take_fd(&self) -> Result<OwnedFd> {
        lock(&self.fd).take().ok_or(Errno::EMFILE)
    }

    pub(crate) fn with<R>(
        &self,
        vm: &Vm,
        body: impl FnOnce(&mut Loaded<'_>) -> Result<R>,
    ) -> Result<R> {
        let mut inner = lock(&self.inner);
        let cpu = vm.host().this_cpu()?;
        let mut loaded = self.load(vm, &cpu, &mut inner);
        body(&mut loaded)
    }

    /// Returns the pages that the vCPU shares with user space.
    pub(crate) const fn run_page(&self) -> &RunPage {
        &self.run
    }

    /// `vmx_vcpu_load_vmcs()`: takes the VMCS from the processor it was last active on, and makes
    /// it current here.
    fn load<'a>(
        &'a self,
        vm: &'a Vm,
        cpu: &'a HostCpu,
        inner: &'a mut MutexGuard<'_, Inner>,
    ) -> Loaded<'a> {
        let inner = &mut **inner;
        let has_moved = inner.cpu != Some(cpu.id());
        if has_moved && let Some(owner) = inner.cpu {
            vm.host().clear_vmcs(owner, self.pages.vmcs);
        }
        inner.cpu = Some(cpu.id());
        if has_moved {
            inner.caches.launched = false;
            inner.caches.ept = None;
            inner.caches.has_kicker = false;
        }
        let mut vmcs = CurrentVmcs::new(cpu);
        if vmcs.pointer() != Some(self.pages.vmcs) {
            let memory: &PhysMap = vm.host().memory();
            let loaded = vmcs.vmx().vmptrld(self.pages.vmcs, &memory);
            debug_assert!(
                loaded.is_ok_and(|o| o.is_success()),
                "VMPTRLD of our own region"
            );
        }
        let mut loaded = Loaded {
            state: &mut inner.state,
            vmcs,
            vm,
            run: &self.run,
            core: self,
            caches: &mut inner.caches,
        };
        if has_moved {
            loaded.write_per_cpu_host_state(cpu.id().0);
        }
        loaded
    }

    /// What follows when the descriptor exists: the guest's TSC begins at 0
    /// (`kvm_arch_vcpu_postcreate()`).
    pub(crate) fn post_create(&self, vm: &Vm) -> Result<()> {
        self.with(vm, |vcpu| {
            vcpu.start_tsc();
            Ok(())
        })
    }

    /// Ends the vCPU with its VM: the VMCS is cleared, its pages are given back.
    pub(crate) fn destroy(&self, vm: &Vm) {
        let mut inner = lock(&self.inner);
        if let Some(owner) = inner.cpu.take() {
            vm.host().clear_vmcs(owner, self.pages.vmcs);
        }
        self.pages.free(vm.host());
        vm.host().free_vpid(self.vpid);
    }
}

impl Loaded<'_> {
    /// Returns the address bits that are reserved by the guest's MAXPHYADDR: CPUID's, or 36.
    pub(crate) fn reserved_gpa_bits(&self) -> u64 {
        let leaf = crate::cpuid::find(&self.state.cpuid, 0x8000_0008, 0);
        let has_leaf = crate::cpuid::find(&self.state.cpuid, 0x8000_0000, 0)
            .is_some_and(|entry| entry.eax >= 0x8000_0008);
        let bits = leaf
            .filter(|_| has_leaf)
            .map_or(36, |entry| entry.eax & 0xff);
        if bits >= 64 { 0 } else { u64::MAX << bits }
    }
}
