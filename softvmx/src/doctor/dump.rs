//! Finds VMCS dumps in a log: as Linux's `dump_vmcs()` and Xen's `vmcs_dump_vcpu()` print them, and
//! as a JSON object of field names.
//!
//! A log is a stream of words: what stands in brackets or parentheses (times, levels, names of
//! functions), marks of quotation and the name of the module are dropped, so that prefixes and lines
//! that a mail program broke do no harm. A table of phrases says which value is which field.

use std::collections::BTreeMap;

use vmx_model::field::Field;
use vmx_model::msr_area::MsrEntry;

/// The values of one dump.
pub type Fields = BTreeMap<Field, u64>;

/// A dump of a VMCS in a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dump {
    /// The line it begins at, from 1.
    pub line: usize,
    /// What is known of the VMCS.
    pub fields: Fields,
    /// The entry of the VM-entry MSR-load area that Xen names as the one that was refused.
    pub msr: Option<MsrEntry>,
}

/// A part of a dump, in the order in which they come.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Section {
    Guest,
    Host,
    Control,
}

/// Words of a log, and the fields of the values that stand at its `_`.
type Phrase = (&'static str, &'static [Field]);

/// Builds a phrase for each guest segment register, as Linux and as Xen print them.
macro_rules! segments {
    ($($name:literal $selector:ident $access:ident $limit:ident $base:ident),* $(,)?) => {
        &[$(
            (
                concat!($name, ": sel _ attr _ limit _ base _"),
                &[Field::$selector, Field::$access, Field::$limit, Field::$base],
            ),
            (
                concat!($name, ": _ _ _ _"),
                &[Field::$selector, Field::$access, Field::$limit, Field::$base],
            ),
        )*]
    };
}

const SEGMENTS: &[Phrase] = segments![
    "CS" GUEST_CS_SELECTOR GUEST_CS_ACCESS_RIGHTS GUEST_CS_LIMIT GUEST_CS_BASE,
    "DS" GUEST_DS_SELECTOR GUEST_DS_ACCESS_RIGHTS GUEST_DS_LIMIT GUEST_DS_BASE,
    "SS" GUEST_SS_SELECTOR GUEST_SS_ACCESS_RIGHTS GUEST_SS_LIMIT GUEST_SS_BASE,
    "ES" GUEST_ES_SELECTOR GUEST_ES_ACCESS_RIGHTS GUEST_ES_LIMIT GUEST_ES_BASE,
    "FS" GUEST_FS_SELECTOR GUEST_FS_ACCESS_RIGHTS GUEST_FS_LIMIT GUEST_FS_BASE,
    "GS" GUEST_GS_SELECTOR GUEST_GS_ACCESS_RIGHTS GUEST_GS_LIMIT GUEST_GS_BASE,
    "LDTR" GUEST_LDTR_SELECTOR GUEST_LDTR_ACCESS_RIGHTS GUEST_LDTR_LIMIT GUEST_LDTR_BASE,
    "TR" GUEST_TR_SELECTOR GUEST_TR_ACCESS_RIGHTS GUEST_TR_LIMIT GUEST_TR_BASE,
];

const GDTR: &[Field] = &[Field::GUEST_GDTR_LIMIT, Field::GUEST_GDTR_BASE];
const IDTR: &[Field] = &[Field::GUEST_IDTR_LIMIT, Field::GUEST_IDTR_BASE];
const GUEST_SYSENTER: &[Field] = &[
    Field::GUEST_IA32_SYSENTER_ESP,
    Field::GUEST_IA32_SYSENTER_CS,
    Field::GUEST_IA32_SYSENTER_EIP,
];
const HOST_SYSENTER: &[Field] = &[
    Field::HOST_IA32_SYSENTER_ESP,
    Field::HOST_IA32_SYSENTER_CS,
    Field::HOST_IA32_SYSENTER_EIP,
];

const GUEST: &[Phrase] = &[
    (
        "CR0: actual _ shadow _ gh_mask _",
        &[
            Field::GUEST_CR0,
            Field::CR0_READ_SHADOW,
            Field::CR0_GUEST_HOST_MASK,
        ],
    ),
    (
        "CR4: actual _ shadow _ gh_mask _",
        &[
            Field::GUEST_CR4,
            Field::CR4_READ_SHADOW,
            Field::CR4_GUEST_HOST_MASK,
        ],
    ),
    (
        "CR3: actual _ target_count _",
        &[Field::GUEST_CR3, Field::CR3_TARGET_COUNT],
    ),
    ("CR3 _", &[Field::GUEST_CR3]),
    ("PDPTR0 _", &[Field::GUEST_PDPTE0]),
    ("PDPTR1 _", &[Field::GUEST_PDPTE1]),
    ("PDPTR2 _", &[Field::GUEST_PDPTE2]),
    ("PDPTR3 _", &[Field::GUEST_PDPTE3]),
    ("PDPTE0 _", &[Field::GUEST_PDPTE0]),
    ("PDPTE1 _", &[Field::GUEST_PDPTE1]),
    ("PDPTE2 _", &[Field::GUEST_PDPTE2]),
    ("PDPTE3 _", &[Field::GUEST_PDPTE3]),
    ("Sysenter RSP _ CS:RIP _:_", GUEST_SYSENTER),
    ("RSP _", &[Field::GUEST_RSP]),
    ("RIP _", &[Field::GUEST_RIP]),
    ("RFLAGS _", &[Field::GUEST_RFLAGS]),
    ("DR7 _", &[Field::GUEST_DR7]),
    ("GDTR: limit _ base _", GDTR),
    ("GDTR: _ _", GDTR),
    ("IDTR: limit _ base _", IDTR),
    ("IDTR: _ _", IDTR),
    ("EFER _", &[Field::GUEST_IA32_EFER]),
    ("PAT _", &[Field::GUEST_IA32_PAT]),
    ("DebugCtl _", &[Field::GUEST_IA32_DEBUGCTL]),
    (
        "DebugExceptions _",
        &[Field::GUEST_PENDING_DEBUG_EXCEPTIONS],
    ),
    ("PerfGlobCtl _", &[Field::GUEST_IA32_PERF_GLOBAL_CTRL]),
    ("BndCfgS _", &[Field::GUEST_IA32_BNDCFGS]),
    ("SM Base _", &[Field::GUEST_SMBASE]),
    ("Interruptibility _", &[Field::GUEST_INTERRUPTIBILITY_STATE]),
    ("ActivityState _", &[Field::GUEST_ACTIVITY_STATE]),
    ("InterruptStatus _", &[Field::GUEST_INTERRUPT_STATUS]),
    ("S_CET _", &[Field::GUEST_IA32_S_CET]),
    ("SSP TABLE _", &[Field::GUEST_IA32_INTERRUPT_SSP_TABLE_ADDR]),
    ("SSP _", &[Field::GUEST_SSP]),
];

const HOST: &[Phrase] = &[
    ("Sysenter RSP _ CS:RIP _:_", HOST_SYSENTER),
    ("RIP _", &[Field::HOST_RIP]),
    ("RSP _", &[Field::HOST_RSP]),
    ("CS _", &[Field::HOST_CS_SELECTOR]),
    ("SS _", &[Field::HOST_SS_SELECTOR]),
    ("DS _", &[Field::HOST_DS_SELECTOR]),
    ("ES _", &[Field::HOST_ES_SELECTOR]),
    ("FS _", &[Field::HOST_FS_SELECTOR]),
    ("GS _", &[Field::HOST_GS_SELECTOR]),
    ("TR _", &[Field::HOST_TR_SELECTOR]),
    ("FSBase _", &[Field::HOST_FS_BASE]),
    ("GSBase _", &[Field::HOST_GS_BASE]),
    ("TRBase _", &[Field::HOST_TR_BASE]),
    ("GDTBase _", &[Field::HOST_GDTR_BASE]),
    ("IDTBase _", &[Field::HOST_IDTR_BASE]),
    ("CR0 _", &[Field::HOST_CR0]),
    ("CR3 _", &[Field::HOST_CR3]),
    ("CR4 _", &[Field::HOST_CR4]),
    ("EFER _", &[Field::HOST_IA32_EFER]),
    ("PAT _", &[Field::HOST_IA32_PAT]),
    ("PerfGlobCtl _", &[Field::HOST_IA32_PERF_GLOBAL_CTRL]),
    ("S_CET _", &[Field::HOST_IA32_S_CET]),
    ("SSP TABLE _", &[Field::HOST_IA32_INTERRUPT_SSP_TABLE_ADDR]),
    ("SSP _", &[Field::HOST_SSP]),
];

const CONTROL: &[Phrase] = &[
    ("PinBased _", &[Field::PIN_CONTROLS]),
    ("CPUBased _", &[Field::PROC_CONTROLS]),
    ("SecondaryExec _", &[Field::SECONDARY_PROC_CONTROLS]),
    ("TertiaryExec _", &[Field::TERTIARY_PROC_CONTROLS]),
    ("EntryControls _", &[Field::ENTRY_CONTROLS]),
    ("ExitControls _", &[Field::EXIT_CONTROLS]),
    ("SecondaryExitControls _", &[Field::SECONDARY_EXIT_CONTROLS]),
    ("ExceptionBitmap _", &[Field::EXCEPTION_BITMAP]),
    (
        "VMEntry: intr_info _ errcode _ ilen _",
        &[
            Field::VM_ENTRY_INTERRUPTION_INFORMATION,
            Field::VM_ENTRY_EXCEPTION_ERROR_CODE,
            Field::VM_ENTRY_INSTRUCTION_LENGTH,
        ],
    ),
    (
        "reason _ qualification _",
        &[Field::EXIT_REASON, Field::EXIT_QUALIFICATION],
    ),
    ("TPR Threshold _", &[Field::TPR_THRESHOLD]),
    ("APIC-access addr _", &[Field::APIC_ACCESS_ADDRESS]),
    ("virt-APIC addr _", &[Field::VIRTUAL_APIC_ADDRESS]),
    (
        "PostedIntrVec _",
        &[Field::POSTED_INTERRUPT_NOTIFICATION_VECTOR],
    ),
    ("EPT pointer _", &[Field::EPT_POINTER]),
    ("Virtual processor ID _", &[Field::VPID]),
    ("VMfunc controls _", &[Field::VM_FUNCTION_CONTROLS]),
];

impl Section {
    const fn phrases(self) -> [&'static [Phrase]; 2] {
        match self {
            Self::Guest => [GUEST, SEGMENTS],
            Self::Host => [HOST, &[]],
            Self::Control => [CONTROL, &[]],
        }
    }
}

/// Returns the dumps in a text: a JSON object, or a log with any number of dumps.
#[must_use]
pub fn find(text: &str) -> Vec<Dump> {
    match serde_json::from_str::<serde_json::Value>(text) {
        Ok(value) => from_json(&value).into_iter().collect(),
        Err(_) => from_log(text),
    }
}

/// Reads an object of field names (ours, or Linux's) and numbers; a string is hexadecimal. The
/// object may be the member `fields` of another.
fn from_json(value: &serde_json::Value) -> Option<Dump> {
    let object = value.get("fields").unwrap_or(value).as_object()?;
    let fields = object.iter().filter_map(|(name, value)| {
        let field = Field::ALL
            .into_iter()
            .find(|f| f.id() == name || f.linux_name() == Some(name))?;
        let value = match value {
            serde_json::Value::String(digits) => hexadecimal(digits.trim_start_matches("0x")),
            value => value.as_u64(),
        };
        Some((field, value? & field.value_mask()))
    });
    let fields = fields.collect();
    Some(Dump {
        line: 1,
        fields,
        msr: None,
    })
}

fn from_log(text: &str) -> Vec<Dump> {
    let mut dumps: Vec<Dump> = Vec::new();
    let mut words: Vec<String> = Vec::new();
    let mut section = None;
    // What lines before a dump say of it.
    let mut notes = Dump::default();
    for (line, number) in text.lines().zip(1..) {
        let Some(next) = heading(line) else {
            note(line, dumps.last_mut(), &mut notes);
            if section.is_some() {
                words.extend(words_of(line));
            }
            continue;
        };
        finish(&mut dumps, section, &mut words);
        if next == Section::Guest || section.is_none_or(|last| next <= last) {
            let noted = std::mem::take(&mut notes);
            dumps.push(Dump {
                line: number,
                ..noted
            });
        }
        section = Some(next);
    }
    finish(&mut dumps, section, &mut words);
    dumps.retain(|dump| !dump.fields.is_empty());
    dumps
}

/// Keeps what a line says about the failure of the dump that follows, or, as QEMU's line stands on
/// either side of it, of the last one.
fn note(line: &str, last: Option<&mut Dump>, next: &mut Dump) {
    const ERROR: Field = Field::VM_INSTRUCTION_ERROR;
    let words = words_of(line);
    if let Some(error) = find_values("VMLAUNCH error: _", &words)
        .or_else(|| find_values("VMRESUME error: _", &words))
    {
        next.fields.insert(ERROR, error[0]);
    } else if let Some(error) = find_values("entry failed hardware error _", &words) {
        // With bit 31 it is the exit reason, which the dump has as well.
        let wanting = last.filter(|dump| !dump.fields.contains_key(&ERROR));
        if error[0] <= u64::from(u16::MAX) {
            wanting.unwrap_or(next).fields.insert(ERROR, error[0]);
        }
    } else if let Some(msr) = find_values("msr _ val _", &words) {
        let reserved = line.split_once("mbz ").map_or("0", |(_, rest)| rest);
        let reserved = reserved.trim_start_matches("0x").split(')').next();
        next.msr = Some(MsrEntry {
            index: msr[0] as u32,
            reserved: reserved.and_then(hexadecimal).unwrap_or(0) as u32,
            data: msr[1],
        });
    }
}

fn find_values(phrase: &str, words: &[String]) -> Option<Vec<u64>> {
    (0..words.len()).find_map(|at| values(phrase, &words[at..]))
}

fn heading(line: &str) -> Option<Section> {
    let headings = [
        ("*** Guest State ***", Section::Guest),
        ("*** Host State ***", Section::Host),
        ("*** Control State ***", Section::Control),
    ];
    headings
        .into_iter()
        .find_map(|(title, section)| line.contains(title).then_some(section))
}

/// Adds the fields of a section to the last dump.
fn finish(dumps: &mut [Dump], section: Option<Section>, words: &mut Vec<String>) {
    if let (Some(dump), Some(section)) = (dumps.last_mut(), section) {
        read_section(section, words, &mut dump.fields);
    }
    words.clear();
}

/// Returns the words of a line of a log, without what is not part of the dump.
fn words_of(line: &str) -> Vec<String> {
    let line = line.rsplit("kernel:").next().unwrap_or(line);
    let mut plain = String::new();
    let mut depth = 0_u32;
    for character in line.chars() {
        match character {
            '[' | '(' => depth += 1,
            ']' | ')' => depth = depth.saturating_sub(1),
            _ if depth > 0 => {}
            '=' | ',' | '>' | '|' | '\u{a0}' => plain.push(' '),
            _ => plain.push(character),
        }
    }
    let words = plain.split_whitespace().filter(|w| *w != "kvm_intel:");
    words
        .map(|word| word.strip_prefix("0x").unwrap_or(word).to_owned())
        .collect()
}

fn read_section(section: Section, words: &[String], fields: &mut Fields) {
    let mut at = 0;
    while at < words.len() {
        let rest = &words[at..];
        let phrases = section.phrases().into_iter().flatten();
        let found = phrases
            .filter_map(|&(phrase, names)| Some((values(phrase, rest)?, phrase, names)))
            .next();
        let Some((values, phrase, names)) = found else {
            at += 1;
            continue;
        };
        for (&field, value) in names.iter().zip(values) {
            // A later line of the section never overrides an earlier one.
            fields.entry(field).or_insert(value & field.value_mask());
        }
        at += phrase.split(' ').count();
    }
}

/// Returns the values of a phrase if the words begin with it.
fn values(phrase: &str, words: &[String]) -> Option<Vec<u64>> {
    let mut values = Vec::new();
    let mut words = words.iter();
    for expected in phrase.split(' ') {
        let word = words.next()?;
        match expected {
            "_" => values.push(hexadecimal(word)?),
            "_:_" => {
                let (first, second) = word.split_once(':')?;
                values.push(hexadecimal(first)?);
                values.push(hexadecimal(second)?);
            }
            _ if expected == word => {}
            _ => return None,
        }
    }
    Some(values)
}

fn hexadecimal(word: &str) -> Option<u64> {
    let is_number = !word.is_empty() && word.bytes().all(|b| b.is_ascii_hexdigit());
    is_number.then(|| u64::from_str_radix(word, 16).ok())?
}
