//! Guest-physical addresses through EPT (SDM Vol. 3C, "The Extended Page Table Mechanism (EPT)").
//!
//! The model judges each entry; this module reads and updates the entries, and turns what the model
//! says into VM exits and virtualization exceptions.

use vmx_model::addr::Gpa;
use vmx_model::ept::log::{self, Delivery};
use vmx_model::ept::walk::{Step, Translation, Walk};
use vmx_model::ept::{self, EptRules, Eptp, LinearAccess, Violation};
use vmx_model::event::{Exception, vector};
use vmx_model::exit::VmExit;
use vmx_model::exit_reason::ExitReason;
use vmx_model::processor::LogicalProcessor;

use super::mappings::MappingUse;
use crate::mem::Access;
use crate::mem::walk::{Allowed, PageRights, Physical, Purpose};
use crate::{Cpu, Exec, Fault};

/// Exit qualification of an EPT violation or a full log: NMI unblocking due to IRET.
const NMI_UNBLOCKING: u64 = 1 << 12;

/// EPT as it is in use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EptInUse {
    pub(crate) eptp: Eptp,
    pub(crate) rules: EptRules,
}

impl EptInUse {
    /// Returns EPT as the current VMCS of `processor` has it.
    pub(crate) fn of(processor: &LogicalProcessor) -> Option<Self> {
        let vmcs = processor.current_vmcs()?;
        let eptp = ept::eptp(vmcs)?;
        Some(Self {
            eptp,
            rules: EptRules::of(vmcs, processor.profile()),
        })
    }
}

impl Cpu {
    /// Translates a guest-physical address through EPT.
    ///
    /// # Errors
    /// The VM exit for an EPT violation, an EPT misconfiguration or a full log; or #VE.
    pub(crate) fn through_ept(
        &mut self,
        ept: EptInUse,
        gpa: Gpa,
        access: Access,
        purpose: Purpose,
    ) -> Exec<Physical> {
        let used_for = mapping_use(purpose);
        let needed = needed(kind(ept.eptp, access, purpose));
        if self.is_watching() {
            let found = self.translate_anew(ept, gpa, access, purpose);
            self.watch_mapping(&ept, gpa, used_for, needed, found.as_ref().ok());
            return found;
        }
        let mappings = &self.vmx.mappings;
        if let Some(known) = mappings.find(&ept, gpa, used_for, needed) {
            return Ok(known);
        }
        let found = self.translate_anew(ept, gpa, access, purpose)?;
        self.vmx.mappings.enter(&ept, gpa, used_for, &found);
        Ok(found)
    }

    /// Translates without what is remembered.
    fn translate_anew(
        &mut self,
        ept: EptInUse,
        gpa: Gpa,
        access: Access,
        purpose: Purpose,
    ) -> Exec<Physical> {
        loop {
            let found = self.walk_ept(ept, gpa, access, purpose)?;
            if found.sets_dirty {
                self.log_modification(gpa)?;
            }
            if self.update_ept(&found)? {
                return Ok(physical(ept, gpa, &found, purpose));
            }
            // Somebody else changed an entry on the way: walk again, as hardware does.
        }
    }

    fn walk_ept(
        &mut self,
        ept: EptInUse,
        gpa: Gpa,
        access: Access,
        purpose: Purpose,
    ) -> Exec<Translation> {
        let kind = kind(ept.eptp, access, purpose);
        let used_for = mapping_use(purpose);
        let is_user = used_for == MappingUse::UserPage;
        let mut walk = match Walk::new(ept.eptp, gpa, kind, is_user) {
            Ok(walk) if used_for == MappingUse::SupervisorShadowStack => {
                walk.to_supervisor_shadow_stack()
            }
            Ok(walk) => walk,
            Err(violation) => return Err(self.ept_violation(ept, gpa, &violation, purpose)),
        };
        loop {
            let at = walk.entry_address();
            let entry = self.view.load_entry(at, 8);
            let entry = entry.ok_or_else(|| self.host_fault(at))?;
            match walk.step(entry, &ept.rules) {
                Step::Next => {}
                Step::Done(translation) => return Ok(translation),
                Step::Violation(violation) => {
                    return Err(self.ept_violation(ept, gpa, &violation, purpose));
                }
                Step::Misconfiguration => {
                    let exit = VmExit::new(ExitReason::EPT_MISCONFIGURATION).at_physical(gpa);
                    return Err(self.vm_exit(exit));
                }
            }
        }
    }

    /// Sets the accessed and dirty flags of a walk; false if an entry has changed meanwhile.
    fn update_ept(&mut self, found: &Translation) -> Exec<bool> {
        for u in found.updates() {
            if !self.update_entry(u.entry, 8, u.old, u.new)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn log_modification(&mut self, gpa: Gpa) -> Exec {
        let unblocking = self.nmi_unblocking();
        let Some((processor, mut memory)) = self.processor_and_memory() else {
            return Ok(());
        };
        let Some(vmcs) = processor.current_vmcs_mut() else {
            return Ok(());
        };
        match log::log_modification(vmcs, &mut memory, gpa) {
            Ok(()) => Ok(()),
            Err(exit) => {
                let qualification = exit.qualification | unblocking;
                Err(self.vm_exit(exit.qualified(qualification)))
            }
        }
    }

    /// Returns the VM exit for an EPT violation, or the virtualization exception that it is
    /// converted to.
    fn ept_violation(
        &mut self,
        ept: EptInUse,
        gpa: Gpa,
        violation: &Violation,
        purpose: Purpose,
    ) -> Fault {
        let linear = linear_access(purpose);
        let qualification = violation.qualification(&ept.rules, linear.as_ref());
        let mut exit = VmExit::new(ExitReason::EPT_VIOLATION)
            .qualified(qualification | self.nmi_unblocking())
            .at_physical(gpa);
        if let Some(linear) = linear {
            exit = exit.at_linear(linear.address);
        }
        let delivery = match self.delivering {
            Some(_) => Delivery::Underway,
            None => Delivery::None,
        };
        let cr0 = self.state.cr0;
        let is_converted = self.guest_vmcs().is_some_and(|vmcs| {
            let convertible = violation.is_convertible;
            log::convert_violation(vmcs, &mut &*self.phys, &exit, convertible, cr0, delivery)
        });
        if is_converted {
            return Exception::plain(vector::VE).into();
        }
        self.vm_exit(exit)
    }

    fn nmi_unblocking(&self) -> u64 {
        if self.events.is_nmi_unblocked {
            NMI_UNBLOCKING
        } else {
            0
        }
    }
}

/// Returns how EPT sees an access.
fn kind(eptp: Eptp, access: Access, purpose: Purpose) -> ept::Access {
    match (purpose, access) {
        // A flag is set by a locked update; processors report it as both (SDM Vol. 3C, "EPT
        // Violations", leaves bit 0 to the implementation).
        (Purpose::PagingStructure(_), Access::Write) => ept::Access::ReadWrite,
        (_, Access::Write) => ept::Access::Write,
        (Purpose::Pdptes | Purpose::PagingStructure(_), _) => {
            ept::Access::of_paging_structure(eptp)
        }
        (Purpose::Page(..) | Purpose::ShadowStack(..), Access::Read) => ept::Access::Read,
        (Purpose::Page(..) | Purpose::ShadowStack(..), Access::Execute) => ept::Access::Fetch,
    }
}

/// Returns what a remembered mapping must permit.
fn needed(kind: ept::Access) -> Allowed {
    match kind {
        ept::Access::Read => Allowed::READ,
        ept::Access::Write => Allowed::WRITE,
        ept::Access::ReadWrite => Allowed::READ | Allowed::WRITE,
        ept::Access::Fetch => Allowed::EXECUTE,
    }
}

fn mapping_use(purpose: Purpose) -> MappingUse {
    match purpose {
        Purpose::Pdptes | Purpose::PagingStructure(_) => MappingUse::PagingStructure,
        Purpose::Page(_, rights) if rights.is_user => MappingUse::UserPage,
        Purpose::ShadowStack(_, _, true) => MappingUse::UserPage,
        Purpose::Page(..) => MappingUse::SupervisorPage,
        Purpose::ShadowStack(..) => MappingUse::SupervisorShadowStack,
    }
}

fn linear_access(purpose: Purpose) -> Option<LinearAccess> {
    let (linear, rights, is_final) = match purpose {
        Purpose::Pdptes => return None,
        Purpose::PagingStructure(linear) => (linear, PageRights::default(), false),
        Purpose::Page(linear, rights) | Purpose::ShadowStack(linear, rights, _) => {
            (linear, rights, true)
        }
    };
    Some(LinearAccess {
        address: linear.0,
        is_final,
        is_user: rights.is_user,
        is_writable: rights.is_writable,
        is_execute_disabled: !rights.is_executable,
        is_shadow_stack: matches!(purpose, Purpose::ShadowStack(..)),
    })
}

fn physical(ept: EptInUse, gpa: Gpa, found: &Translation, purpose: Purpose) -> Physical {
    let used_for = mapping_use(purpose);
    let is_user = used_for == MappingUse::UserPage;
    // The walk has judged both reads and writes of such a page.
    let is_judged = used_for == MappingUse::SupervisorShadowStack
        && ept.eptp.has_supervisor_shadow_stack_control();
    let mut allowed = Allowed::empty();
    allowed.set(Allowed::READ, found.permissions.can_read());
    let is_logged = ept.eptp.has_accessed_dirty() && !found.is_dirty;
    let is_writable = found.permissions.can_write() || is_judged;
    allowed.set(Allowed::WRITE, is_writable && !is_logged);
    allowed.set(
        Allowed::EXECUTE,
        found.permissions.can_fetch(&ept.rules, is_user),
    );
    Physical {
        address: found.address(gpa),
        allowed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmx_model::addr::Linear;

    #[test]
    fn setting_a_flag_of_a_paging_structure_is_a_read_and_a_write() {
        const WITHOUT_FLAGS: Eptp = Eptp(0x1e);
        const WITH_FLAGS: Eptp = Eptp(0x5e);
        let structure = Purpose::PagingStructure(Linear(0x1000));
        for (eptp, access, wanted) in [
            (WITHOUT_FLAGS, Access::Read, ept::Access::Read),
            (WITHOUT_FLAGS, Access::Write, ept::Access::ReadWrite),
            (WITH_FLAGS, Access::Read, ept::Access::ReadWrite),
            (WITH_FLAGS, Access::Write, ept::Access::ReadWrite),
        ] {
            assert_eq!(kind(eptp, access, structure), wanted);
        }
    }
}
