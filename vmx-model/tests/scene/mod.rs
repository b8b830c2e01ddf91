//! What surrounds a VMCS whose checks are judged: shared by tests.

use std::collections::BTreeMap;

use vmx_model::addr::Hpa;
use vmx_model::arch::ArchState;
use vmx_model::capability::VmxProfile;
use vmx_model::checks::{self, EntryEnvironment, FullView};
use vmx_model::memory::PhysicalMemory;
use vmx_model::vmcs::Vmcs;

/// Memory of a few 32-bit words; the rest is 0.
struct Words(BTreeMap<u64, u32>);

impl PhysicalMemory for Words {
    fn read(&self, address: Hpa, bytes: &mut [u8]) {
        for (n, byte) in (0..).zip(bytes) {
            let at = address.offset(n).0;
            let word = self.0.get(&(at & !3)).copied().unwrap_or(0);
            *byte = word.to_le_bytes()[(at & 3) as usize];
        }
    }

    fn write(&mut self, _address: Hpa, _bytes: &[u8]) {
        unreachable!("checks do not write");
    }
}

const CURRENT_VMCS: Hpa = Hpa(0x2000);

/// Regions at 2000H (the current VMCS), 4000H (a VMCS), 6000H (a shadow VMCS).
fn memory(profile: &VmxProfile) -> Words {
    let revision = profile.caps.revision_id();
    Words(BTreeMap::from([
        (0x2000, revision),
        (0x4000, revision),
        (0x6000, revision | 1 << 31),
    ]))
}

/// A processor, its state and memory, around a VMCS.
pub(crate) struct Scene {
    pub(crate) profile: VmxProfile,
    state: ArchState,
    memory: Words,
}

impl Scene {
    /// A state of a processor.
    pub(crate) fn of(profile: VmxProfile, state: ArchState) -> Self {
        let memory = memory(&profile);
        Self {
            profile,
            state,
            memory,
        }
    }

    pub(crate) fn environment(&self) -> EntryEnvironment<'_> {
        EntryEnvironment {
            profile: &self.profile,
            state: &self.state,
            current_vmcs: CURRENT_VMCS,
            memory: &self.memory,
        }
    }

    /// Returns the checks that a VMCS breaks.
    pub(crate) fn diagnose(&self, vmcs: &Vmcs) -> Vec<&'static str> {
        let view = FullView::new(vmcs, self.environment());
        checks::diagnose(&view)
            .iter()
            .map(|failure| failure.check.id)
            .collect()
    }
}
