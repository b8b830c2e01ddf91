//! What an observer that watches memory is told: ordinary accesses, and translations that EPT does
//! not back any more.
//!
//! While there is such an observer, data has no fast way to memory: the TLB holds code only, so that
//! each access is seen here and each guest-physical address is translated anew. SDM Vol. 3C,
//! "Guidelines for Use of the INVEPT Instruction": a processor may go on using a guest-physical
//! mapping that it used before, until INVEPT or an EPT violation invalidates it.

use std::collections::BTreeMap;

use vmx_model::addr::{Gpa, Hpa};
use vmx_model::observer::{AccessKind, MemoryAccess, StaleTranslation};

use super::ept::EptInUse;
use super::mappings::MappingUse;
use crate::Cpu;
use crate::mem::walk::{Allowed, Physical};

/// The EP4TA, the page and the use of a guest-physical mapping.
type Key = (u64, u64, MappingUse);

/// Keeps what the observer is told.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    /// The mappings that the processor has used and that nothing has invalidated.
    used: BTreeMap<Key, (Hpa, Allowed)>,
    /// Whether the update of memory that is carried out is atomic.
    is_locked: bool,
}

impl Cpu {
    /// Begins or ends to watch, as the observer of the processor wishes.
    pub(super) fn choose_watch(&mut self) {
        let processor = self.processor_mut();
        let observer = processor.and_then(|processor| processor.observer());
        let is_wanted = observer.is_some_and(|observer| observer.watches_memory());
        if is_wanted != self.vmx.watch.is_some() {
            self.vmx.watch = is_wanted.then(Box::default);
            self.flush_tlb_all();
        }
    }

    /// Whether each access to memory is to be seen.
    #[inline]
    pub(crate) fn is_watching(&self) -> bool {
        self.vmx.watch.is_some()
    }

    /// Says that stores, from now on, are or are not part of a locked update.
    pub(crate) fn note_locked(&mut self, is_locked: bool) {
        if let Some(watch) = &mut self.vmx.watch {
            watch.is_locked = is_locked;
        }
    }

    /// Tells the observer of an access inside one page, if it watches.
    #[inline]
    pub(crate) fn note_memory_access(&mut self, at: Hpa, bytes: usize, is_write: bool) {
        if let Some(watch) = &self.vmx.watch {
            let kind = match (is_write, watch.is_locked) {
                (false, _) => AccessKind::Read,
                (true, false) => AccessKind::Write,
                (true, true) => AccessKind::LockedWrite,
            };
            self.tell_memory_access(at, bytes, kind);
        }
    }

    /// Tells the observer, if there is one, at which instruction the processor is.
    #[inline]
    pub(crate) fn tell_where_software_is(&mut self) {
        let rip = self.state.rip;
        if let Some(processor) = self.processor_mut() {
            let cpu = processor.id();
            if let Some(observer) = processor.observer() {
                observer.software_at(cpu, rip);
            }
        }
    }

    #[cold]
    fn tell_memory_access(&mut self, at: Hpa, bytes: usize, kind: AccessKind) {
        self.tell_where_software_is();
        let Some(processor) = self.processor_mut() else {
            return;
        };
        let cpu = processor.id();
        if let Some(observer) = processor.observer() {
            observer.memory_access(&MemoryAccess {
                cpu,
                address: at,
                length_bytes: bytes as u64,
                kind,
            });
        }
    }

    /// Compares what EPT says now, `None` for a violation, with the mapping that was used before.
    pub(super) fn watch_mapping(
        &mut self,
        ept: &EptInUse,
        gpa: Gpa,
        used_for: MappingUse,
        needed: Allowed,
        now: Option<&Physical>,
    ) {
        let (page, ep4ta) = (gpa.0 & !0xfff, ept.eptp.0 & 0x000f_ffff_ffff_f000);
        let key = (ep4ta, page, used_for);
        let Some(watch) = &mut self.vmx.watch else {
            return;
        };
        let known = match now {
            Some(now) => {
                let now = (now.address.page(), now.allowed);
                watch.used.insert(key, now)
            }
            None => watch.used.remove(&key),
        };
        let is_stale = known.is_some_and(|(address, allowed)| match now {
            Some(now) => now.address.page() != address || !now.allowed.contains(allowed),
            None => allowed.contains(needed),
        });
        if is_stale {
            self.tell_stale_translation(ep4ta, gpa);
        }
    }

    #[cold]
    fn tell_stale_translation(&mut self, ep4ta: u64, gpa: Gpa) {
        self.tell_where_software_is();
        let vpid = self.current_context.tag().vpid;
        let Some(processor) = self.processor_mut() else {
            return;
        };
        let cpu = processor.id();
        if let Some(observer) = processor.observer() {
            observer.stale_translation(&StaleTranslation {
                cpu,
                vpid,
                ep4ta: Some(ep4ta),
                address: gpa.0,
            });
        }
    }

    /// Notes INVEPT of one EP4TA, or of all.
    pub(crate) fn note_invept(&mut self, ep4ta: Option<u64>) {
        if let Some(watch) = &mut self.vmx.watch {
            watch
                .used
                .retain(|(used, ..), _| ep4ta.is_some_and(|ep4ta| *used != ep4ta));
        }
    }
}
