//! Random sequences of instructions for several processors.

use crate::addr::Hpa;
use crate::exit_reason::ExitReason;
use crate::field::{Field, Width};
pub use crate::random::Random;

/// The pages that instructions name as VMCS regions.
pub const REGIONS: [Hpa; 6] = [
    Hpa(0x1000),
    Hpa(0x2000),
    Hpa(0x3000),
    Hpa(0x4000),
    Hpa(0x5000),
    Hpa(0x6000),
];

/// The first page of those that VMXON usually names, one for each processor.
pub const VMXON_REGIONS: Hpa = Hpa(0x10000);

/// VMREAD and VMWRITE bitmaps: all zero, all ones, and byte n = 37 n.
pub const BITMAPS: [Hpa; 3] = [Hpa(0x20000), Hpa(0x21000), Hpa(0x22000)];

/// VM-entry MSR-load areas: the first entry of one can be loaded, that of the other cannot.
pub const MSR_AREAS: [Hpa; 2] = [Hpa(0x23000), Hpa(0x24000)];

/// Pointers that are no region: misaligned, beyond any physical-address width, all ones, and a page
/// with no memory behind it.
const NO_REGIONS: [Hpa; 4] = [Hpa(0x1004), Hpa(1 << 53), Hpa(u64::MAX), Hpa(0x7fff_f000)];

/// An instruction with its operands, or something else that happens to a processor or to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "the names are the mnemonics and their operands"
)]
pub enum Action {
    Vmxon(Hpa),
    Vmxoff,
    Vmclear(Hpa),
    Vmptrld(Hpa),
    Vmptrst,
    Vmread(u64),
    Vmwrite(u64, u64),
    Vmlaunch(Blocking),
    Vmresume(Blocking),
    Vmcall,
    Vmfunc(u32, u32),
    Invept(u64, [u64; 2]),
    Invvpid(u64, [u64; 2]),
    /// VMWRITE of every writable field, so that VM entry succeeds; with VMCS shadowing if a link
    /// pointer is given.
    Prepare(Option<Hpa>),
    /// A VM exit with this reason, if the processor is in VMX non-root operation.
    Exit(ExitReason),
    Init,
    Reset,
    /// Another processor executes VMCLEAR because this one asks it to.
    RemoteVmclear(u32, Hpa),
    /// An ordinary store to the first dword of a region.
    StoreHeader(Hpa, Header),
    /// An ordinary copy of a region.
    Copy(Hpa, Hpa),
}

/// Whether events are blocked by MOV SS when a VM entry is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocking {
    /// They are not.
    None,
    /// They are.
    MovSs,
}

/// What is stored to the first dword of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// The right revision identifier.
    Ordinary,
    /// The right revision identifier and the shadow-VMCS indicator.
    Shadow,
    /// Another revision identifier.
    Foreign,
}

impl Header {
    /// Returns the dword, for processors with this revision identifier.
    #[must_use]
    pub const fn dword(self, revision: u32) -> u32 {
        match self {
            Self::Ordinary => revision,
            Self::Shadow => revision | 1 << 31,
            Self::Foreign => revision ^ 1,
        }
    }
}

/// An action and the processor that it happens on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The processor's number.
    pub cpu: u32,
    /// What happens.
    pub action: Action,
}

/// How software uses VMCSs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discipline {
    /// Each processor has regions of its own, VMCLEARs them before it uses them, and stays in VMX
    /// operation: nothing undefined happens.
    WellBehaved,
    /// Anything.
    Wild,
}

/// Returns a sequence of about `length` steps on `cpus` processors. Most processors begin with
/// VMXON.
#[must_use]
pub fn sequence(
    random: &mut Random,
    discipline: Discipline,
    cpus: u32,
    length: usize,
) -> Vec<Step> {
    let mut generator = Generator {
        random,
        discipline,
        cpus,
        cpu: 0,
        steps: Vec::with_capacity(2 * length),
    };
    for cpu in 0..cpus {
        generator.cpu = cpu;
        generator.begin();
    }
    while generator.steps.len() < length {
        generator.cpu = generator.random.below(u64::from(cpus)) as u32;
        generator.act();
    }
    generator.steps
}

struct Generator<'a> {
    random: &'a mut Random,
    discipline: Discipline,
    cpus: u32,
    /// The processor that acts.
    cpu: u32,
    steps: Vec<Step>,
}

/// Returns the page that `cpu` usually gives to VMXON.
#[must_use]
pub const fn vmxon_region(cpu: u32) -> Hpa {
    VMXON_REGIONS.offset(cpu as u64 * 0x1000)
}

/// Fields of which most values let VM entry succeed.
const BENIGN: [Field; 5] = [
    Field::TSC_OFFSET,
    Field::CR0_READ_SHADOW,
    Field::CR4_GUEST_HOST_MASK,
    Field::EXCEPTION_BITMAP,
    Field::GUEST_IA32_SYSENTER_CS,
];

/// Fields of which most values make VM entry fail: controls, host state, guest state.
const BREAKING: [Field; 8] = [
    Field::PIN_CONTROLS,
    Field::ENTRY_CONTROLS,
    Field::HOST_CR0,
    Field::HOST_TR_SELECTOR,
    Field::GUEST_RFLAGS,
    Field::GUEST_CR4,
    Field::GUEST_ACTIVITY_STATE,
    Field::VMCS_LINK_POINTER,
];

type Generate = fn(&mut Generator<'_>) -> Vec<Action>;

/// Weight and generator.
const ACTIONS: &[(u64, Generate)] = &[
    (3, |g| vec![Action::Vmxon(g.any_vmxon_pointer())]),
    (2, |g| g.vmxoff()),
    (8, |g| vec![Action::Vmclear(g.any_pointer())]),
    (12, |g| vec![Action::Vmptrld(g.any_pointer())]),
    (3, |_| vec![Action::Vmptrst]),
    (12, |g| vec![Action::Vmread(g.any_encoding())]),
    (12, |g| g.vmwrite()),
    (8, |g| vec![Action::Vmlaunch(g.any_blocking())]),
    (8, |g| vec![Action::Vmresume(g.any_blocking())]),
    (6, |_| vec![Action::Prepare(None)]),
    (3, |g| g.prepare_shadowing()),
    (5, |g| g.enter()),
    (14, |g| g.exit()),
    (1, |_| vec![Action::Vmcall]),
    (2, |g| vec![Action::Vmfunc(g.below(70), g.below(600))]),
    (2, |g| {
        vec![Action::Invept(g.random.below(4), g.any_descriptor())]
    }),
    (2, |g| {
        vec![Action::Invvpid(g.random.below(5), g.any_descriptor())]
    }),
    (2, |_| vec![Action::Init]),
    (1, |_| vec![Action::Reset]),
    (2, |g| {
        vec![Action::RemoteVmclear(g.below(g.cpus), g.own_region())]
    }),
    (2, |g| g.store()),
    (2, |g| vec![Action::Copy(g.own_region(), g.own_region())]),
];

impl Generator<'_> {
    fn push(&mut self, action: Action) {
        let cpu = self.cpu;
        self.steps.push(Step { cpu, action });
    }

    fn below(&mut self, bound: u32) -> u32 {
        self.random.below(u64::from(bound)) as u32
    }

    fn is_wild(&self) -> bool {
        self.discipline == Discipline::Wild
    }

    /// What software does first: VMXON, VMCLEAR, and mostly a VMCS that can be launched.
    fn begin(&mut self) {
        if self.is_wild() && self.random.is_one_in(8) {
            return;
        }
        self.push(Action::Vmxon(vmxon_region(self.cpu)));
        if self.is_wild() && self.random.is_one_in(4) {
            return;
        }
        for region in self.own_regions() {
            self.push(Action::Vmclear(region));
        }
        let region = self.own_region();
        self.push(Action::Vmptrld(region));
        self.push(Action::Prepare(None));
    }

    fn act(&mut self) {
        let total: u64 = ACTIONS.iter().map(|(weight, _)| weight).sum();
        let mut n = self.random.below(total);
        for (weight, generate) in ACTIONS {
            if n < *weight {
                for action in generate(self) {
                    self.push(action);
                }
                return;
            }
            n -= weight;
        }
    }

    /// Returns the regions that well-behaved software uses on this processor.
    fn own_regions(&self) -> impl Iterator<Item = Hpa> + use<> {
        let own = REGIONS.into_iter().skip(self.cpu as usize);
        own.step_by(self.cpus as usize)
    }

    /// Returns a region that this processor may use.
    fn own_region(&mut self) -> Hpa {
        if self.is_wild() && self.random.is_one_in(4) {
            return self.random.pick(&REGIONS);
        }
        let own: Vec<Hpa> = self.own_regions().collect();
        self.random.pick(&own)
    }

    fn any_pointer(&mut self) -> Hpa {
        match self.random.below(16) {
            0 => self.random.pick(&NO_REGIONS),
            1 => self.any_vmxon_pointer(),
            _ => self.own_region(),
        }
    }

    fn any_vmxon_pointer(&mut self) -> Hpa {
        if self.is_wild() && self.random.is_one_in(8) {
            return self.own_region();
        }
        let cpu = if self.is_wild() {
            self.below(self.cpus)
        } else {
            self.cpu
        };
        vmxon_region(cpu)
    }

    fn any_blocking(&mut self) -> Blocking {
        if self.random.is_one_in(8) {
            Blocking::MovSs
        } else {
            Blocking::None
        }
    }

    fn any_field(&mut self) -> Field {
        self.random.pick(&Field::ALL)
    }

    fn any_encoding(&mut self) -> u64 {
        let known = u64::from(self.any_field().encoding());
        match self.random.below(16) {
            0 => self.random.next(),
            1 => self.random.below(1 << 16),
            2 => known | 1 << (15 + self.random.below(49)),
            3 | 4 => known | 1,
            5 | 6 => u64::from(Field::VM_INSTRUCTION_ERROR.encoding()),
            7 => u64::from(Field::EXIT_REASON.encoding()),
            _ => known,
        }
    }

    fn any_value(&mut self) -> u64 {
        match self.random.below(5) {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << self.random.below(64),
            3 => self.random.pick(&REGIONS).0,
            _ => self.random.next(),
        }
    }

    /// VMXOFF; mostly the processor comes back and goes on with a VMCS.
    fn vmxoff(&mut self) -> Vec<Action> {
        if !self.is_wild() {
            return Vec::new();
        }
        let mut actions = vec![Action::Vmxoff];
        if !self.random.is_one_in(3) {
            actions.push(Action::Vmxon(vmxon_region(self.cpu)));
            actions.push(Action::Vmptrld(self.own_region()));
            actions.push(Action::Vmresume(Blocking::None));
        }
        actions
    }

    fn vmwrite(&mut self) -> Vec<Action> {
        let value = self.any_value();
        let kind = self.random.below(12);
        if kind < 1 {
            let field = self.random.pick(&BREAKING);
            return vec![Action::Vmwrite(field.encoding().into(), value)];
        }
        if kind < 2 {
            return self.vmwrite_msr_area();
        }
        if kind < 9 {
            let field = self.random.pick(&BENIGN);
            let is_high = field.width() == Width::W64 && self.random.is_one_in(2);
            let encoding = u64::from(field.encoding()) | u64::from(is_high);
            return vec![Action::Vmwrite(encoding, value)];
        }
        let encoding = self.any_encoding();
        let field = u32::try_from(encoding).ok().and_then(Field::from_encoding);
        vec![match field.map(|(field, _)| field) {
            // What these name is memory of which the naive model knows no bytes.
            Some(Field::VM_EXIT_MSR_LOAD_COUNT | Field::VM_EXIT_MSR_STORE_COUNT) => {
                Action::Vmwrite(encoding, 0)
            }
            Some(Field::VM_ENTRY_MSR_LOAD_COUNT | Field::VM_ENTRY_MSR_LOAD_ADDRESS) => {
                return self.vmwrite_msr_area();
            }
            Some(Field::VMREAD_BITMAP_ADDRESS | Field::VMWRITE_BITMAP_ADDRESS) => {
                Action::Vmwrite(encoding & !1, self.random.pick(&BITMAPS).0)
            }
            _ => Action::Vmwrite(encoding, value),
        }]
    }

    /// Gives the current VMCS a VM-entry MSR-load area of at most one entry.
    fn vmwrite_msr_area(&mut self) -> Vec<Action> {
        let address = Field::VM_ENTRY_MSR_LOAD_ADDRESS.encoding().into();
        let count = Field::VM_ENTRY_MSR_LOAD_COUNT.encoding().into();
        vec![
            Action::Vmwrite(address, self.random.pick(&MSR_AREAS).0),
            Action::Vmwrite(count, self.random.below(2)),
        ]
    }

    /// Makes the current VMCS one that uses a shadow VMCS.
    fn prepare_shadowing(&mut self) -> Vec<Action> {
        let link = self.own_region();
        vec![
            Action::Vmclear(link),
            Action::StoreHeader(link, Header::Shadow),
            Action::Prepare(Some(link)),
        ]
    }

    /// VMLAUNCH or VMRESUME, whichever it takes, of a VMCS with right values; then what a guest
    /// does.
    fn enter(&mut self) -> Vec<Action> {
        let mut actions = vec![Action::Vmptrld(self.own_region())];
        if self.random.is_one_in(2) {
            actions.push(Action::Prepare(None));
        } else {
            actions.extend(self.prepare_shadowing());
        }
        if self.random.is_one_in(4) {
            let field = self.random.pick(&BREAKING);
            actions.push(Action::Vmwrite(field.encoding().into(), self.any_value()));
        }
        actions.push(Action::Vmlaunch(Blocking::None));
        actions.push(Action::Vmresume(Blocking::None));
        for _ in 0..self.below(6) {
            if self.random.is_one_in(2) {
                actions.push(Action::Vmread(self.any_encoding()));
            } else {
                actions.extend(self.vmwrite());
            }
        }
        actions
    }

    fn exit(&mut self) -> Vec<Action> {
        vec![Action::Exit(self.random.pick(&[
            ExitReason::EXTERNAL_INTERRUPT,
            ExitReason::CPUID,
            ExitReason::HLT,
            ExitReason::VMCALL,
            ExitReason::EPT_VIOLATION,
        ]))]
    }

    fn store(&mut self) -> Vec<Action> {
        let header = self.random.pick(&[
            Header::Ordinary,
            Header::Ordinary,
            Header::Shadow,
            Header::Foreign,
        ]);
        vec![Action::StoreHeader(self.own_region(), header)]
    }

    fn any_descriptor(&mut self) -> [u64; 2] {
        let first = match self.random.below(4) {
            0 => self.random.next(),
            1 => 0,
            2 => self.random.below(1 << 16),
            // An EPTP: write-back, a walk of four levels.
            _ => self.random.pick(&REGIONS).0 | 0x1e,
        };
        [first, self.any_value()]
    }
}
