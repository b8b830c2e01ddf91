//! The state of a whole VM, to be saved in the middle of a run and loaded into a fresh one.
//!
//! Everything that matters is here, what KVM_RUN has yet to finish included; the contents of
//! guest memory are the caller's. What processors cache is made anew.

use crate::enable_cap::Enabled;
use crate::errno::{Errno, Result};
use crate::run_page::RunPage;
use crate::system::Kvm;
use crate::uapi::VCPU_MMAP_SIZE;
use crate::vcpu::Loaded;
use crate::vcpu::state::VcpuState;
use crate::vm::{Vm, VmConfig};
use kvm_bindings::kvm_userspace_memory_region2;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use vmx_model::field::{Field, Kind};

/// The version of [`VmState`].
const VERSION: u32 = 1;

/// A VM without the contents of its memory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VmState {
    version: u32,
    config: ConfigState,
    slots: Vec<SlotState>,
    vcpus: Vec<SavedVcpu>,
}

/// A memory slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotState {
    /// Its number.
    pub slot: u32,
    /// `KVM_MEM_LOG_DIRTY_PAGES`, `KVM_MEM_READONLY`.
    pub flags: u32,
    /// First guest-physical address.
    pub guest_phys_addr: u64,
    /// Bytes.
    pub memory_size: u64,
    /// The caller's address when it was saved.
    pub userspace_addr: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct ConfigState {
    max_vcpu_ids: Option<u32>,
    bsp_vcpu_id: u32,
    identity_map_address: u64,
    manual_dirty_log: u64,
    tsc_khz: u32,
    enabled: Enabled,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct SavedVcpu {
    id: u32,
    state: VcpuState,
    /// What the guest's TSC showed.
    tsc: u64,
    /// Encodings and values of the VMCS fields that are the guest's or the software's settings.
    vmcs: Vec<(u32, u64)>,
    /// The pages shared with user space.
    run: Vec<u8>,
}

/// Control fields that belong to the vCPU's state; the others are addresses and tags of the host.
const CONTROL_FIELDS: &[Field] = &[
    Field::PIN_CONTROLS,
    Field::PROC_CONTROLS,
    Field::SECONDARY_PROC_CONTROLS,
    Field::EXIT_CONTROLS,
    Field::ENTRY_CONTROLS,
    Field::EXCEPTION_BITMAP,
    Field::CR0_GUEST_HOST_MASK,
    Field::CR4_GUEST_HOST_MASK,
    Field::CR0_READ_SHADOW,
    Field::CR4_READ_SHADOW,
    Field::VM_ENTRY_INTERRUPTION_INFORMATION,
    Field::VM_ENTRY_EXCEPTION_ERROR_CODE,
    Field::VM_ENTRY_INSTRUCTION_LENGTH,
    Field::TSC_MULTIPLIER,
    Field::PLE_GAP,
    Field::PLE_WINDOW,
];

/// Returns the fields to be saved: guest state, exit information, and some controls.
fn saved_fields(vm: &Vm) -> impl Iterator<Item = Field> {
    let exists = vm.host().profile().fields;
    let of_guest = Field::ALL.iter().copied().filter(move |field| {
        matches!(field.kind(), Kind::Guest | Kind::ReadOnly) && exists.contains(*field)
    });
    of_guest.chain(CONTROL_FIELDS.iter().copied())
}

impl VmState {
    /// Returns the memory slots.
    #[must_use]
    pub fn slots(&self) -> &[SlotState] {
        &self.slots
    }
}

impl Vm {
    /// Saves the VM, but for the contents of its memory. No vCPU may be running: one that is, is
    /// waited for.
    ///
    /// # Errors
    /// ENOMEM: no logical processor for this thread.
    pub fn save(&self) -> Result<VmState> {
        let config = self.config().clone();
        let slots = self.memslots();
        let slots = slots.iter().map(|slot| SlotState {
            slot: u32::from(slot.id),
            flags: slot.flags,
            guest_phys_addr: slot.base_gfn << 12,
            memory_size: slot.npages << 12,
            userspace_addr: slot.userspace_addr,
        });
        let vcpus = self.cores().into_iter();
        Ok(VmState {
            version: VERSION,
            config: ConfigState::of(config),
            slots: slots.collect(),
            vcpus: vcpus
                .map(|(id, core)| core.with(self, |vcpu| Ok(vcpu.save(id))))
                .collect::<Result<_>>()?,
        })
    }
}

impl Kvm {
    /// Makes a VM and its vCPUs from a saved state. `address` says where the memory of each slot
    /// is now.
    ///
    /// # Errors
    /// EINVAL: a state of another version, or one that contradicts itself; and those of
    /// KVM_CREATE_VM, KVM_SET_USER_MEMORY_REGION and KVM_CREATE_VCPU.
    pub fn load_vm(
        self: &Arc<Self>,
        state: &VmState,
        address: impl Fn(&SlotState) -> u64,
    ) -> Result<Arc<Vm>> {
        if state.version != VERSION {
            return Err(Errno::EINVAL);
        }
        let vm = self.create_vm(0)?;
        state.config.apply(&mut vm.config());
        for slot in &state.slots {
            vm.set_user_memory_region2(kvm_userspace_memory_region2 {
                slot: slot.slot,
                flags: slot.flags,
                guest_phys_addr: slot.guest_phys_addr,
                memory_size: slot.memory_size,
                userspace_addr: address(slot),
                ..Default::default()
            })?;
        }
        for saved in &state.vcpus {
            vm.create_vcpu(u64::from(saved.id))?
                .with(|vcpu| vcpu.load(saved))?;
        }
        Ok(vm)
    }
}

impl ConfigState {
    fn of(config: VmConfig) -> Self {
        Self {
            max_vcpu_ids: config.max_vcpu_ids,
            bsp_vcpu_id: config.bsp_vcpu_id,
            identity_map_address: config.identity_map_address,
            manual_dirty_log: config.manual_dirty_log,
            tsc_khz: config.tsc_khz,
            enabled: config.enabled,
        }
    }

    fn apply(&self, config: &mut VmConfig) {
        config.max_vcpu_ids = self.max_vcpu_ids;
        config.bsp_vcpu_id = self.bsp_vcpu_id;
        config.identity_map_address = self.identity_map_address;
        config.manual_dirty_log = self.manual_dirty_log;
        config.tsc_khz = self.tsc_khz;
        config.enabled = self.enabled.clone();
    }
}

impl Loaded<'_> {
    fn save(&mut self, id: u32) -> SavedVcpu {
        self.fpu();
        let mut run = vec![0; VCPU_MMAP_SIZE as usize];
        self.run.read_bytes(0, &mut run);
        let read = |field: Field| (field.encoding(), self.vmcs.read(field));
        let vmcs = saved_fields(self.vm).map(read).collect();
        SavedVcpu {
            id,
            tsc: self.guest_tsc(),
            state: self.state.clone(),
            vmcs,
            run,
        }
    }

    fn load(&mut self, saved: &SavedVcpu) -> Result<()> {
        let fits = saved.run.len() as u64 <= VCPU_MMAP_SIZE;
        let fields: Vec<Field> = saved_fields(self.vm).collect();
        let known = |encoding: u32| Field::from_encoding(encoding).map(|(field, _)| field);
        let values: Option<Vec<(Field, u64)>> = saved
            .vmcs
            .iter()
            .map(|(encoding, value)| Some((known(*encoding)?, *value)))
            .collect();
        let values = values.filter(|values| values.iter().all(|row| fields.contains(&row.0)));
        let (Some(values), true) = (values, fits) else {
            return Err(Errno::EINVAL);
        };
        for (field, value) in values {
            self.vmcs.write(field, value);
        }
        *self.state = saved.state.clone();
        self.caches.renew();
        self.set_guest_tsc(saved.tsc);
        let run: &RunPage = self.run;
        run.write_bytes(0, &saved.run);
        Ok(())
    }
}
