//! A second, deliberately simple model of the VMX state machine, and random sequences to compare
//! the two with.
//!
//! [`NaiveMachine`] is written from the transitions of the VMCS state machine alone: maps of field
//! values by encoding, no caches, no shared state between processors, no table but that of the
//! fields. [`compare::run_sequences`] drives it and
//! [`crate::processor::LogicalProcessor`]s with the same random sequences and says where they
//! differ. Only the verdict on VM entry is asked of [`crate::checks`]: all of them, not the fast
//! first failure that the processor asks for.

pub mod compare;
mod entry;
mod invalidate;
mod invariants;
pub mod machine;
pub mod sequence;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::addr::Hpa;
use crate::capability::VmxProfile;
use crate::controls::SecondaryControls;
use crate::exit_reason::{ENTRY_FAILURE, ExitReason};
use crate::field::{Field, Kind, Width};
use crate::outcome::VmxOutcome;
use crate::precondition::VmxOperation;
use crate::registry::LaunchState;
use crate::sanitizer::Item;
use crate::vmcs::Vmcs;
use sequence::{Action, Blocking};

/// What a step of a sequence comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// VMsucceed or VMfail.
    Outcome(VmxOutcome),
    /// What VMREAD or VMPTRST read.
    Value(u64),
    /// #UD.
    Undefined,
    /// The instruction causes a VM exit with this basic exit reason.
    Exits(ExitReason),
    /// VM entry succeeded.
    Entered,
    /// VM entry failed with this exit reason and qualification; host state was loaded.
    EntryFailed(u32, u64),
    /// A VM exit took place.
    Exited,
    /// An INIT signal does what it does outside VMX operation.
    Init,
    /// An INIT signal stays pending.
    Pending,
    /// Nothing to tell.
    Done,
}

/// The fields of a VMCS by encoding; one that is missing is 0.
type Fields = BTreeMap<u32, u64>;

#[derive(Clone, Debug, Default)]
struct Page {
    header: u32,
    fields: Fields,
}

#[derive(Clone, Debug, Default)]
struct NaiveCpu {
    operation: VmxOperation,
    vmxon_pointer: Option<Hpa>,
    current: Option<Hpa>,
    /// The VMCSs that are active here, with the data that the processor holds.
    active: BTreeMap<Hpa, Page>,
    is_init_pending: bool,
}

/// Processors and their memory, as simply as possible.
#[derive(Clone, Debug)]
pub struct NaiveMachine {
    profile: Arc<VmxProfile>,
    cpus: Vec<NaiveCpu>,
    pages: BTreeMap<Hpa, Page>,
    launch: BTreeMap<Hpa, LaunchState>,
    left_by_vmxoff: BTreeSet<Hpa>,
    misuse: Vec<Item>,
}

impl NaiveMachine {
    /// Returns `cpus` processors outside VMX operation, whose regions have the right revision
    /// identifier and are otherwise zero.
    #[must_use]
    pub fn new(profile: Arc<VmxProfile>, cpus: u32) -> Self {
        let header = profile.caps.revision_id();
        let own = (0..cpus).map(sequence::vmxon_region);
        let pages = sequence::REGIONS.into_iter().chain(own).map(|pointer| {
            let fields = Fields::new();
            (pointer, Page { header, fields })
        });
        Self {
            cpus: vec![NaiveCpu::default(); cpus as usize],
            pages: pages.collect(),
            launch: BTreeMap::new(),
            left_by_vmxoff: BTreeSet::new(),
            misuse: Vec::new(),
            profile,
        }
    }

    /// Returns a processor's operation, VMXON pointer and current-VMCS pointer.
    #[must_use]
    pub fn pointers(&self, cpu: u32) -> (VmxOperation, Option<Hpa>, Option<Hpa>) {
        let cpu = &self.cpus[cpu as usize];
        (cpu.operation, cpu.vmxon_pointer, cpu.current)
    }

    /// Returns the launch state of a region.
    #[must_use]
    pub fn launch(&self, pointer: Hpa) -> LaunchState {
        self.launch.get(&pointer).copied().unwrap_or_default()
    }

    /// Whether a processor executed VMXOFF while the VMCS was active on it, and no VMCLEAR came
    /// since.
    #[must_use]
    pub fn is_left_by_vmxoff(&self, pointer: Hpa) -> bool {
        self.left_by_vmxoff.contains(&pointer)
    }

    /// Returns the processors on which a VMCS is active.
    #[must_use]
    pub fn active_on(&self, pointer: Hpa) -> Vec<u32> {
        let cpus = self.cpus.iter().zip(0..);
        cpus.filter(|(cpu, _)| cpu.active.contains_key(&pointer))
            .map(|(_, n)| n)
            .collect()
    }

    /// Takes the undefined uses of the last step.
    pub fn take_misuse(&mut self) -> Vec<Item> {
        std::mem::take(&mut self.misuse)
    }

    /// Returns the current VMCS of a processor as values by field.
    #[must_use]
    pub fn current_values(&self, cpu: u32) -> Option<Vmcs> {
        let cpu = &self.cpus[cpu as usize];
        cpu.current
            .map(|pointer| values(&cpu.active[&pointer].fields))
    }

    /// Returns the header and the values that the memory of a region holds.
    #[must_use]
    pub fn memory_values(&self, pointer: Hpa) -> Option<(u32, Vmcs)> {
        let page = self.pages.get(&pointer)?;
        Some((page.header, values(&page.fields)))
    }

    /// After a VM exit: takes over what the exit saved, which is not this model's business.
    pub fn adopt_saved_state(&mut self, cpu: u32, vmcs: &Vmcs) {
        let Some(fields) = self.fields(cpu) else {
            return;
        };
        let is_saved =
            |field: &Field| field.kind() == Kind::Guest || *field == Field::ENTRY_CONTROLS;
        for field in Field::ALL.into_iter().filter(is_saved) {
            fields.insert(field.encoding(), vmcs.get(field));
        }
    }

    /// Does one step.
    pub fn execute(&mut self, cpu: u32, action: Action) -> Answer {
        match action {
            Action::Vmxon(pointer) => self.vmxon(cpu, pointer),
            Action::Vmxoff => self.in_root(cpu, ExitReason::VMXOFF, Self::vmxoff),
            Action::Vmclear(pointer) => {
                self.in_root(cpu, ExitReason::VMCLEAR, |m, cpu| m.vmclear(cpu, pointer))
            }
            Action::Vmptrld(pointer) => {
                self.in_root(cpu, ExitReason::VMPTRLD, |m, cpu| m.vmptrld(cpu, pointer))
            }
            Action::Vmptrst => self.in_root(cpu, ExitReason::VMPTRST, |m, cpu| {
                let current = m.cpus[cpu as usize].current;
                Answer::Value(current.map_or(u64::MAX, |pointer| pointer.0))
            }),
            Action::Vmread(encoding) => self.vmread(cpu, encoding),
            Action::Vmwrite(encoding, value) => self.vmwrite(cpu, encoding, value),
            Action::Vmlaunch(blocking) => self.in_root(cpu, ExitReason::VMLAUNCH, |m, cpu| {
                m.vm_entry(cpu, blocking, LaunchState::Clear)
            }),
            Action::Vmresume(blocking) => self.in_root(cpu, ExitReason::VMRESUME, |m, cpu| {
                m.vm_entry(cpu, blocking, LaunchState::Launched)
            }),
            Action::Vmcall => self.in_root(cpu, ExitReason::VMCALL, |m, cpu| m.fail(cpu, 1)),
            Action::Vmfunc(eax, ecx) => self.vmfunc(cpu, eax, ecx),
            Action::Invept(kind, descriptor) => self.in_root(cpu, ExitReason::INVEPT, |m, cpu| {
                m.invept(cpu, kind, descriptor)
            }),
            Action::Invvpid(kind, descriptor) => {
                self.in_root(cpu, ExitReason::INVVPID, |m, cpu| {
                    m.invvpid(cpu, kind, descriptor)
                })
            }
            Action::Prepare(link) => self.prepare(cpu, link),
            Action::Exit(reason) => self.exit(cpu, reason),
            Action::Init => self.init(cpu),
            Action::Reset => self.reset(cpu),
            Action::RemoteVmclear(owner, pointer) => self.remote_vmclear(owner, pointer),
            Action::StoreHeader(pointer, header) => {
                let revision = self.profile.caps.revision_id();
                self.page(pointer).header = header.dword(revision);
                Answer::Done
            }
            Action::Copy(from, to) => {
                let page = self.page(from).clone();
                *self.page(to) = page;
                Answer::Done
            }
        }
    }

    fn in_root(
        &mut self,
        cpu: u32,
        reason: ExitReason,
        execute: impl FnOnce(&mut Self, u32) -> Answer,
    ) -> Answer {
        match self.cpus[cpu as usize].operation {
            VmxOperation::Outside => Answer::Undefined,
            VmxOperation::NonRoot => Answer::Exits(reason),
            VmxOperation::Root => execute(self, cpu),
        }
    }

    fn page(&mut self, pointer: Hpa) -> &mut Page {
        self.pages.entry(pointer).or_default()
    }

    /// Returns the fields of the current VMCS.
    fn fields(&mut self, cpu: u32) -> Option<&mut Fields> {
        let cpu = &mut self.cpus[cpu as usize];
        let page = cpu.active.get_mut(&cpu.current?)?;
        Some(&mut page.fields)
    }

    fn fail(&mut self, cpu: u32, number: u32) -> Answer {
        Answer::Outcome(match self.fields(cpu) {
            Some(fields) => {
                fields.insert(0x4400, u64::from(number));
                VmxOutcome::FailValid(number)
            }
            None => VmxOutcome::FailInvalid,
        })
    }

    fn is_wrong_pointer(&self, pointer: Hpa) -> bool {
        let width = u32::from(self.profile.facts.physical_address_bits);
        let limit = if self.profile.caps.limits_addresses_to_32_bits() {
            32
        } else {
            width
        };
        pointer.page_offset() != 0 || u128::from(pointer.0) >= 1 << limit
    }

    /// Returns the first dword at `pointer`; where no memory is, all ones.
    fn header(&self, pointer: Hpa) -> u32 {
        self.pages
            .get(&pointer)
            .map_or(u32::MAX, |page| page.header)
    }

    fn vmxon(&mut self, n: u32, pointer: Hpa) -> Answer {
        match self.cpus[n as usize].operation {
            VmxOperation::NonRoot => return Answer::Exits(ExitReason::VMXON),
            VmxOperation::Root => return self.fail(n, 15),
            VmxOperation::Outside => {}
        }
        let revision = self.profile.caps.revision_id();
        if self.is_wrong_pointer(pointer) || self.header(pointer) != revision {
            return Answer::Outcome(VmxOutcome::FailInvalid);
        }
        let is_shared = self
            .cpus
            .iter()
            .any(|cpu| cpu.vmxon_pointer == Some(pointer));
        if is_shared || !self.active_on(pointer).is_empty() {
            self.misuse.push(Item::SharedRegion);
        }
        let cpu = &mut self.cpus[n as usize];
        cpu.operation = VmxOperation::Root;
        cpu.vmxon_pointer = Some(pointer);
        Answer::Outcome(VmxOutcome::Succeed)
    }

    fn vmxoff(&mut self, n: u32) -> Answer {
        let cpu = &mut self.cpus[n as usize];
        cpu.operation = VmxOperation::Outside;
        cpu.vmxon_pointer = None;
        cpu.current = None;
        for pointer in cpu.active.keys() {
            self.left_by_vmxoff.insert(*pointer);
            self.misuse.push(Item::VmxoffWithActive);
        }
        Answer::Outcome(VmxOutcome::Succeed)
    }

    fn note_shared(&mut self, n: u32, pointer: Hpa) {
        let others = (0..).zip(&self.cpus).filter(|(other, _)| *other != n);
        let is_shared = others
            .map(|(_, other)| other.vmxon_pointer)
            .any(|vmxon| vmxon == Some(pointer));
        if is_shared {
            self.misuse.push(Item::SharedRegion);
        }
    }

    fn is_active_elsewhere(&self, n: u32, pointer: Hpa) -> bool {
        self.active_on(pointer).iter().any(|other| *other != n)
    }

    fn vmclear(&mut self, n: u32, pointer: Hpa) -> Answer {
        if self.is_wrong_pointer(pointer) {
            return self.fail(n, 2);
        }
        if self.cpus[n as usize].vmxon_pointer == Some(pointer) {
            return self.fail(n, 3);
        }
        self.note_shared(n, pointer);
        if self.is_active_elsewhere(n, pointer) {
            self.misuse.push(Item::VmclearForeignActive);
        }
        self.clear(n, pointer);
        Answer::Outcome(VmxOutcome::Succeed)
    }

    fn clear(&mut self, n: u32, pointer: Hpa) {
        self.launch.insert(pointer, LaunchState::Clear);
        self.left_by_vmxoff.remove(&pointer);
        let cpu = &mut self.cpus[n as usize];
        if cpu.current == Some(pointer) {
            cpu.current = None;
        }
        if let Some(held) = cpu.active.remove(&pointer) {
            // Only where there is memory.
            if let Some(page) = self.pages.get_mut(&pointer) {
                page.fields = held.fields;
            }
        }
    }

    fn remote_vmclear(&mut self, owner: u32, pointer: Hpa) -> Answer {
        let cpu = &self.cpus[owner as usize];
        if cpu.active.contains_key(&pointer) && cpu.current != Some(pointer) {
            if self.is_active_elsewhere(owner, pointer) {
                self.misuse.push(Item::VmclearForeignActive);
            }
            self.note_shared(owner, pointer);
            self.clear(owner, pointer);
        }
        Answer::Done
    }

    fn vmptrld(&mut self, n: u32, pointer: Hpa) -> Answer {
        if self.is_wrong_pointer(pointer) {
            return self.fail(n, 9);
        }
        if self.cpus[n as usize].vmxon_pointer == Some(pointer) {
            return self.fail(n, 10);
        }
        let header = self.header(pointer);
        let is_shadow = header >> 31 == 1;
        let may_shadow = self
            .profile
            .caps
            .secondary_may1()
            .contains(SecondaryControls::VMCS_SHADOWING);
        if header << 1 >> 1 != self.profile.caps.revision_id() || is_shadow && !may_shadow {
            return self.fail(n, 11);
        }
        self.note_shared(n, pointer);
        if self.launch(pointer) == LaunchState::Undefined {
            self.misuse.push(Item::UseBeforeVmclear);
        }
        if self.is_active_elsewhere(n, pointer) {
            self.misuse.push(Item::ActiveOnTwoCpus);
        }
        let in_memory = self.page(pointer).clone();
        let cpu = &mut self.cpus[n as usize];
        cpu.active.entry(pointer).or_insert(in_memory);
        cpu.current = Some(pointer);
        Answer::Outcome(VmxOutcome::Succeed)
    }

    /// Returns the field that an encoding names.
    fn field(&self, encoding: u64) -> Option<Field> {
        let is_named = |field: &Field| {
            let full = u64::from(field.encoding());
            full == encoding || field.width() == Width::W64 && full + 1 == encoding
        };
        let mut existing = Field::ALL.into_iter().filter(is_named);
        existing.find(|field| field.exists(&self.profile.caps))
    }

    /// Returns the fields that VMREAD and VMWRITE work on, or how they end without.
    fn target(&mut self, n: u32, encoding: u64, is_write: bool) -> Result<&mut Fields, Answer> {
        let reason = if is_write {
            ExitReason::VMWRITE
        } else {
            ExitReason::VMREAD
        };
        let operation = self.cpus[n as usize].operation;
        let pointer = match operation {
            VmxOperation::Outside => return Err(Answer::Undefined),
            VmxOperation::Root => self.cpus[n as usize].current,
            VmxOperation::NonRoot if !self.is_shadowed(n, encoding, is_write) => {
                return Err(Answer::Exits(reason));
            }
            VmxOperation::NonRoot => self.link_pointer(n),
        };
        let Some(pointer) = pointer else {
            return Err(Answer::Outcome(VmxOutcome::FailInvalid));
        };
        let Some(field) = self.field(encoding) else {
            return Err(self.fail(n, 12));
        };
        if is_write
            && field.kind() == Kind::ReadOnly
            && !self.profile.caps.writes_read_only_fields()
        {
            return Err(self.fail(n, 13));
        }
        match operation {
            VmxOperation::Root => self
                .fields(n)
                .ok_or(Answer::Outcome(VmxOutcome::FailInvalid)),
            _ if self.cpus[n as usize].active.contains_key(&pointer) => {
                let held = self.cpus[n as usize].active.get_mut(&pointer);
                held.map(|page| &mut page.fields).ok_or(Answer::Done)
            }
            _ => Ok(&mut self.page(pointer).fields),
        }
    }

    fn link_pointer(&mut self, n: u32) -> Option<Hpa> {
        let link = self.fields(n)?.get(&0x2800).copied().unwrap_or(0);
        (link != u64::MAX).then_some(Hpa(link))
    }

    fn is_shadowed(&mut self, n: u32, encoding: u64, is_write: bool) -> bool {
        let Some(fields) = self.fields(n) else {
            return false;
        };
        let get = |encoding| fields.get(&encoding).copied().unwrap_or(0);
        let has_shadowing = get(0x4002) >> 31 & 1 == 1 && get(0x401e) >> 14 & 1 == 1;
        let bitmap = Hpa(get(if is_write { 0x2028 } else { 0x2026 }));
        has_shadowing
            && encoding < 1 << 15
            && bitmap_byte(bitmap, encoding / 8) >> (encoding % 8) & 1 == 0
    }

    fn vmread(&mut self, n: u32, encoding: u64) -> Answer {
        let is_high = encoding % 2 == 1;
        match self.target(n, encoding, false) {
            Err(answer) => answer,
            Ok(fields) => {
                let value = fields.get(&(encoding as u32 & !1)).copied().unwrap_or(0);
                Answer::Value(if is_high { value >> 32 } else { value })
            }
        }
    }

    fn vmwrite(&mut self, n: u32, encoding: u64, value: u64) -> Answer {
        match self.target(n, encoding, true) {
            Err(answer) => answer,
            Ok(fields) => {
                let field = fields.entry(encoding as u32 & !1).or_insert(0);
                *field = match (encoding % 2 == 1, encoding >> 13) {
                    (true, _) => *field % (1 << 32) + (value << 32),
                    (_, 0) => value % (1 << 16),
                    (_, 2) => value % (1 << 32),
                    _ => value,
                };
                Answer::Outcome(VmxOutcome::Succeed)
            }
        }
    }

    fn prepare(&mut self, n: u32, link: Option<Hpa>) -> Answer {
        for (encoding, value) in entry::valid_values(&self.profile, link) {
            let answer = self.vmwrite(n, encoding, value);
            if answer != Answer::Outcome(VmxOutcome::Succeed) {
                return answer;
            }
        }
        Answer::Done
    }

    fn vm_entry(&mut self, n: u32, blocking: Blocking, needed: LaunchState) -> Answer {
        let Some(pointer) = self.cpus[n as usize].current else {
            return Answer::Outcome(VmxOutcome::FailInvalid);
        };
        if self.cpus[n as usize].active[&pointer].header >> 31 == 1 {
            return Answer::Outcome(VmxOutcome::FailInvalid);
        }
        if blocking == Blocking::MovSs {
            return self.fail(n, 26);
        }
        if self.launch(pointer) != needed {
            let number = if needed == LaunchState::Clear { 4 } else { 5 };
            return self.fail(n, number);
        }
        if needed == LaunchState::Launched && self.left_by_vmxoff.contains(&pointer) {
            self.misuse.push(Item::VmresumeAfterVmxoff);
        }
        let fields = &self.cpus[n as usize].active[&pointer].fields;
        match entry::judge(&values(fields), pointer, self) {
            entry::Verdict::ControlsFail => self.fail(n, 7),
            entry::Verdict::HostStateFails => self.fail(n, 8),
            entry::Verdict::GuestStateFails(qualification) => {
                self.failed_entry(n, ExitReason::ENTRY_FAIL_GUEST_STATE, qualification)
            }
            // VM-entry MSR-load address and count.
            entry::Verdict::Enters
                if fields.get(&0x4014).is_some_and(|count| *count != 0)
                    && fields.get(&0x200a) == Some(&sequence::MSR_AREAS[1].0) =>
            {
                self.failed_entry(n, ExitReason::ENTRY_FAIL_MSR_LOADING, 1)
            }
            entry::Verdict::Enters => {
                self.launch.insert(pointer, LaunchState::Launched);
                self.cpus[n as usize].operation = VmxOperation::NonRoot;
                Answer::Entered
            }
        }
    }

    fn failed_entry(&mut self, n: u32, reason: ExitReason, qualification: u64) -> Answer {
        let reason = u32::from(reason.0) | ENTRY_FAILURE;
        if let Some(fields) = self.fields(n) {
            fields.insert(0x4402, u64::from(reason));
            fields.insert(0x6400, qualification);
        }
        Answer::EntryFailed(reason, qualification)
    }

    fn exit(&mut self, n: u32, reason: ExitReason) -> Answer {
        if self.cpus[n as usize].operation != VmxOperation::NonRoot {
            return Answer::Done;
        }
        self.cpus[n as usize].operation = VmxOperation::Root;
        if let Some(fields) = self.fields(n) {
            // Exit reason; qualification, interruption information and error code, IDT-vectoring
            // information, instruction length and information.
            fields.insert(0x4402, u64::from(reason.0));
            for encoding in [0x6400, 0x4404, 0x4406, 0x4408, 0x440c, 0x440e] {
                fields.insert(encoding, 0);
            }
            let injection = fields.entry(0x4016).or_insert(0);
            *injection %= 1 << 31;
        }
        Answer::Exited
    }

    fn init(&mut self, n: u32) -> Answer {
        let cpu = &mut self.cpus[n as usize];
        match cpu.operation {
            VmxOperation::Outside => Answer::Init,
            VmxOperation::Root => {
                cpu.is_init_pending = true;
                Answer::Pending
            }
            VmxOperation::NonRoot => Answer::Exits(ExitReason::INIT_SIGNAL),
        }
    }

    fn reset(&mut self, n: u32) -> Answer {
        self.cpus[n as usize] = NaiveCpu::default();
        Answer::Done
    }
}

/// Returns a byte of a VMREAD or VMWRITE bitmap.
fn bitmap_byte(bitmap: Hpa, n: u64) -> u8 {
    match sequence::BITMAPS.iter().position(|page| *page == bitmap) {
        Some(0) => 0,
        Some(2) => (37 * n) as u8,
        _ => 0xff,
    }
}

fn values(fields: &Fields) -> Vmcs {
    let mut vmcs = Vmcs::new();
    for field in Field::ALL {
        if let Some(value) = fields.get(&field.encoding()) {
            vmcs.set(field, *value);
        }
    }
    vmcs
}
