//! Random sequences of instructions for several processors.

use crate::addr::Hpa;
use crate::exit_reason::ExitReason;
use crate::field::{Field, Width};

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

/// A small generator of pseudo-random numbers (SplitMix64): the same seed gives the same numbers
/// everywhere.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Returns a generator for `seed`.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns the next number.
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a number below `bound`, which must not be 0.
    pub const fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    fn is_one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// Returns a sequence of `length` steps on `cpus` processors. Most processors begin with VMXON.
#[must_use]
pub fn sequence(random: &mut Random, cpus: u32, length: usize) -> Vec<Step> {
    let mut steps = Vec::with_capacity(length + 4 * cpus as usize);
    for cpu in 0..cpus {
        if !random.is_one_in(8) {
            begin(random, cpu, &mut steps);
        }
    }
    for _ in 0..length {
        let cpu = random.below(u64::from(cpus)) as u32;
        let action = action(random, cpus);
        steps.push(Step { cpu, action });
    }
    steps
}

/// What software does first: VMXON, and mostly a VMCS that can be launched.
fn begin(random: &mut Random, cpu: u32, steps: &mut Vec<Step>) {
    let region = REGIONS[cpu as usize % REGIONS.len()];
    let usual = [
        Action::Vmxon(vmxon_region(cpu)),
        Action::Vmclear(region),
        Action::Vmptrld(region),
        Action::Prepare(None),
    ];
    let count = if random.is_one_in(3) { 1 } else { usual.len() };
    steps.extend(usual[..count].iter().map(|action| Step {
        cpu,
        action: *action,
    }));
}

/// Returns the page that `cpu` usually gives to VMXON.
#[must_use]
pub const fn vmxon_region(cpu: u32) -> Hpa {
    VMXON_REGIONS.offset(cpu as u64 * 0x1000)
}

type Generate = fn(&mut Random, u32) -> Action;

/// Weight and generator.
const ACTIONS: &[(u64, Generate)] = &[
    (4, |r, cpus| Action::Vmxon(any_pointer(r, cpus))),
    (2, |_, _| Action::Vmxoff),
    (10, |r, cpus| Action::Vmclear(any_pointer(r, cpus))),
    (16, |r, cpus| Action::Vmptrld(any_pointer(r, cpus))),
    (3, |_, _| Action::Vmptrst),
    (12, |r, _| Action::Vmread(any_encoding(r))),
    (14, any_vmwrite),
    (9, |r, _| Action::Vmlaunch(any_blocking(r))),
    (7, |r, _| Action::Vmresume(any_blocking(r))),
    (8, any_prepare),
    (12, any_exit),
    (1, |_, _| Action::Vmcall),
    (1, |r, _| {
        Action::Vmfunc(r.below(3) as u32, r.below(600) as u32)
    }),
    (2, |r, _| Action::Invept(r.below(4), any_descriptor(r))),
    (2, |r, _| Action::Invvpid(r.below(5), any_descriptor(r))),
    (2, |_, _| Action::Init),
    (1, |_, _| Action::Reset),
    (2, |r, cpus| {
        Action::RemoteVmclear(r.below(u64::from(cpus)) as u32, r.pick(&REGIONS))
    }),
    (2, any_store),
    (2, |r, _| Action::Copy(r.pick(&REGIONS), r.pick(&REGIONS))),
];

fn action(random: &mut Random, cpus: u32) -> Action {
    let total: u64 = ACTIONS.iter().map(|(weight, _)| weight).sum();
    let mut n = random.below(total);
    for (weight, generate) in ACTIONS {
        if n < *weight {
            return generate(random, cpus);
        }
        n -= weight;
    }
    Action::Vmptrst
}

fn any_pointer(random: &mut Random, cpus: u32) -> Hpa {
    match random.below(16) {
        0 => random.pick(&NO_REGIONS),
        1 => vmxon_region(random.below(u64::from(cpus)) as u32),
        _ => random.pick(&REGIONS),
    }
}

fn any_blocking(random: &mut Random) -> Blocking {
    if random.is_one_in(8) {
        Blocking::MovSs
    } else {
        Blocking::None
    }
}

fn any_field(random: &mut Random) -> Field {
    random.pick(&Field::ALL)
}

fn any_encoding(random: &mut Random) -> u64 {
    let known = u64::from(any_field(random).encoding());
    match random.below(16) {
        0 => random.next(),
        1 => random.below(1 << 16),
        2 => known | 1 << (15 + random.below(49)),
        3 | 4 => known | 1,
        5 | 6 => u64::from(Field::VM_INSTRUCTION_ERROR.encoding()),
        7 => u64::from(Field::EXIT_REASON.encoding()),
        _ => known,
    }
}

/// Fields of which most values let VM entry succeed.
const BENIGN: [Field; 5] = [
    Field::TSC_OFFSET,
    Field::CR0_READ_SHADOW,
    Field::CR4_GUEST_HOST_MASK,
    Field::EXCEPTION_BITMAP,
    Field::GUEST_IA32_SYSENTER_CS,
];

fn any_vmwrite(random: &mut Random, _: u32) -> Action {
    let value = any_value(random);
    if random.is_one_in(2) {
        let field = random.pick(&BENIGN);
        let is_high = field.width() == Width::W64 && random.is_one_in(2);
        return Action::Vmwrite(u64::from(field.encoding()) | u64::from(is_high), value);
    }
    let encoding = any_encoding(random);
    let field = u32::try_from(encoding).ok().and_then(Field::from_encoding);
    match field.map(|(field, _)| field) {
        // What these name is memory of which the naive model knows no bytes.
        Some(
            Field::VM_ENTRY_MSR_LOAD_COUNT
            | Field::VM_EXIT_MSR_LOAD_COUNT
            | Field::VM_EXIT_MSR_STORE_COUNT,
        ) => Action::Vmwrite(encoding, 0),
        Some(Field::VMREAD_BITMAP_ADDRESS | Field::VMWRITE_BITMAP_ADDRESS) => {
            Action::Vmwrite(encoding & !1, random.pick(&BITMAPS).0)
        }
        _ => Action::Vmwrite(encoding, value),
    }
}

fn any_value(random: &mut Random) -> u64 {
    match random.below(5) {
        0 => 0,
        1 => u64::MAX,
        2 => 1 << random.below(64),
        3 => random.pick(&REGIONS).0,
        _ => random.next(),
    }
}

fn any_descriptor(random: &mut Random) -> [u64; 2] {
    let first = match random.below(4) {
        0 => random.next(),
        1 => 0,
        2 => random.below(1 << 16),
        // An EPTP: write-back, a walk of four levels.
        _ => random.pick(&REGIONS).0 | 0x1e,
    };
    let second = any_value(random);
    [first, second]
}

fn any_prepare(random: &mut Random, _: u32) -> Action {
    let link = random.is_one_in(3).then(|| random.pick(&REGIONS));
    Action::Prepare(link)
}

fn any_exit(random: &mut Random, _: u32) -> Action {
    Action::Exit(random.pick(&[
        ExitReason::EXTERNAL_INTERRUPT,
        ExitReason::CPUID,
        ExitReason::HLT,
        ExitReason::VMCALL,
        ExitReason::EPT_VIOLATION,
    ]))
}

fn any_store(random: &mut Random, _: u32) -> Action {
    let region = random.pick(&REGIONS);
    let header = random.pick(&[Header::Ordinary, Header::Shadow, Header::Foreign]);
    Action::StoreHeader(region, header)
}
