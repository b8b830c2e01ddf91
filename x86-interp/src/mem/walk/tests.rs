//! The walk against a naive one written separately, and one table of faults.

use std::sync::Arc;

use proptest::prelude::*;
use vmx_model::addr::{Hpa, Linear};
use vmx_model::arch::{AccessRights, Cr0, Cr4, Efer, Rflags, SegmentRegister};
use vmx_model::event::Exception;

use super::{Allowed, PagingMode};
use crate::bus::{EmptyBus, InstructionClock};
use crate::cpuid::Profile;
use crate::mem::phys::{OwnedRam, PhysMap};
use crate::mem::{Access, Privilege};
use crate::{Cpu, Fault};

const RAM_PAGES: usize = 16;

fn cpu() -> Cpu {
    let phys = PhysMap::new();
    let ram = Arc::new(OwnedRam::new(RAM_PAGES).expect("memory is there"));
    phys.add_owned(Hpa(0), ram).expect("the map is empty");
    let mut cpu = Cpu::new(
        phys,
        Box::new(EmptyBus),
        Box::new(InstructionClock::default()),
    );
    cpu.set_cpuid(Profile::EVERYTHING.table());
    cpu
}

/// Everything that decides a translation.
#[derive(Clone, Debug)]
struct Setting {
    mode: u8,
    cr0_wp: bool,
    cr4: u64,
    nxe: bool,
    user: bool,
    implicit: bool,
    /// Data accesses are shadow-stack accesses.
    shadow: bool,
    ac: bool,
    pkru: u32,
    pkrs: u32,
    linear: u64,
    access: u8,
    /// Flags and stray bits of the entries, from the root on.
    entries: [u64; 5],
}

const MODES: [PagingMode; 4] = [
    PagingMode::Bits32,
    PagingMode::Pae,
    PagingMode::Level4,
    PagingMode::Level5,
];
const ACCESSES: [Access; 3] = [Access::Read, Access::Write, Access::Execute];

impl Setting {
    fn mode(&self) -> PagingMode {
        MODES[usize::from(self.mode)]
    }
    fn access(&self) -> Access {
        ACCESSES[usize::from(self.access)]
    }
    fn is_shadow(&self) -> bool {
        self.shadow && self.access() != Access::Execute
    }
    fn privilege(&self) -> Privilege {
        if self.is_shadow() {
            Privilege::shadow_stack(if self.user { 3 } else { 0 })
        } else if self.implicit {
            Privilege::Supervisor
        } else {
            Privilege::Current
        }
    }

    fn apply(&self, cpu: &mut Cpu) {
        let s = &mut cpu.state;
        s.cr0 = Cr0::PE | Cr0::PG;
        s.cr0.set(Cr0::WP, self.cr0_wp);
        s.cr4 = Cr4::from_bits_retain(self.cr4);
        s.cr4.set(Cr4::PAE, self.mode() != PagingMode::Bits32);
        s.cr4.set(Cr4::LA57, self.mode() == PagingMode::Level5);
        s.efer.set(Efer::NXE, self.nxe);
        s.efer.set(Efer::LMA | Efer::LME, self.mode >= 2);
        s.rflags.set(Rflags::AC, self.ac);
        s.pkrs = u64::from(self.pkrs);
        let dpl = if self.user { 3 } else { 0 };
        s.segment_mut(SegmentRegister::Ss).access = AccessRights(0xc093).with_dpl(dpl);
        s.cr3 = 0x1000;
        cpu.system.pkru = self.pkru;
        self.write_entries(cpu);
    }

    /// Table `n` lies in page `n + 1`; the last one points to page 8.
    fn write_entries(&self, cpu: &mut Cpu) {
        let shifts = self.mode().shifts();
        if self.mode() == PagingMode::Pae {
            cpu.state.pdptes = [0x1000 | self.entries[4] & 1; 4];
        }
        for (n, &shift) in shifts.iter().enumerate() {
            let bytes = self.mode().entry_bytes();
            let slots = 4096 / bytes as u64;
            let index = self.linear >> shift & (slots - 1);
            let next = if shift == 12 {
                0x8000
            } else {
                0x2000 + 0x1000 * n as u64
            };
            let value = self.entries[n] & !0x000f_ffff | next | self.entries[n] & 0xfff;
            let at = Hpa(0x1000 * (n as u64 + 1) + index * bytes as u64);
            cpu.phys.write_bytes(at, &value.to_le_bytes()[..bytes]);
        }
    }
}

/// The naive walk: mode by mode, entry by entry, as in the tables of the SDM's chapter.
struct Naive<'a> {
    cpu: &'a Cpu,
    s: &'a Setting,
    touched: Vec<(u64, usize, u64)>,
}

type NaiveResult = Result<u64, u32>;

impl Naive<'_> {
    fn read(&mut self, at: u64, bytes: usize) -> u64 {
        let mut b = [0; 8];
        self.cpu.phys.read_bytes(Hpa(at), &mut b[..bytes]);
        let value = u64::from_le_bytes(b);
        self.touched.push((at, bytes, value));
        value
    }

    fn code(&self, low: u32) -> u32 {
        let write = (self.s.access() == Access::Write) as u32 * 2;
        let user = (self.s.user && (self.s.is_shadow() || !self.s.implicit)) as u32 * 4;
        let shadow = self.s.is_shadow() as u32 * 64;
        let smep = self.s.cr4 & Cr4::SMEP.bits() != 0;
        let nx = self.s.nxe && self.s.mode != 0;
        let fetch = (self.s.access() == Access::Execute && (smep || nx)) as u32 * 16;
        low | write | user | fetch | shadow
    }

    fn entry(
        &mut self,
        at: u64,
        may_be_leaf: bool,
        leaf_bits: u32,
        is_last: bool,
    ) -> Result<(u64, bool), u32> {
        let pae = self.s.mode() == PagingMode::Pae;
        let e = self.read(at, 8);
        if e & 1 == 0 {
            return Err(self.code(0));
        }
        let leaf = is_last || (may_be_leaf && e & 0x80 != 0);
        // MAXPHYADDR is 52 here: no address bit is reserved.
        let mut bad = (e >> 63 != 0 && !self.s.nxe) || (pae && (e >> 52) & 0x7ff != 0);
        bad |= !may_be_leaf && !is_last && e & 0x80 != 0;
        if leaf && !is_last {
            bad |= (13..leaf_bits).any(|b| e >> b & 1 != 0);
        }
        if bad {
            Err(self.code(9))
        } else {
            Ok((e, leaf))
        }
    }

    fn walk(&mut self) -> NaiveResult {
        let l = self.s.linear;
        let (page, bits, entries) = match self.s.mode() {
            PagingMode::Bits32 => self.walk32(l & 0xffff_ffff)?,
            _ => self.walk64(l)?,
        };
        self.permit(&entries)?;
        Ok(page | l & ((1 << bits) - 1))
    }

    fn walk32(&mut self, l: u64) -> Result<(u64, u32, Vec<u64>), u32> {
        let pde = self.read(0x1000 + (l >> 22) * 4, 4);
        if pde & 1 == 0 {
            return Err(self.code(0));
        }
        if pde & 0x80 != 0 && self.s.cr4 & Cr4::PSE.bits() != 0 {
            if pde & 1 << 21 != 0 {
                return Err(self.code(9));
            }
            let page = pde & 0xffc0_0000 | (pde >> 13 & 0xff) << 32;
            return Ok((page, 22, vec![pde]));
        }
        let pte = self.read((pde & 0xffff_f000) + (l >> 12 & 0x3ff) * 4, 4);
        if pte & 1 == 0 {
            return Err(self.code(0));
        }
        Ok((pte & 0xffff_f000, 12, vec![pde, pte]))
    }

    fn walk64(&mut self, l: u64) -> Result<(u64, u32, Vec<u64>), u32> {
        const FRAME: u64 = 0x000f_ffff_ffff_f000;
        let mut entries = vec![];
        let mut table = 0x1000;
        let tops: &[u32] = match self.s.mode() {
            PagingMode::Level5 => &[48, 39],
            PagingMode::Level4 => &[39],
            _ => &[],
        };
        for &top in tops {
            let (e, _) = self.entry(table + (l >> top & 511) * 8, false, 0, false)?;
            entries.push(e);
            table = e & FRAME;
        }
        if self.s.mode() == PagingMode::Pae {
            if self.cpu.state.pdptes[(l >> 30 & 3) as usize] & 1 == 0 {
                return Err(self.code(0));
            }
        } else {
            let (e, large) = self.entry(table + (l >> 30 & 511) * 8, true, 30, false)?;
            entries.push(e);
            if large {
                return Ok((e & FRAME & !0x3fff_ffff, 30, entries));
            }
            table = e & FRAME;
        }
        let (e, large) = self.entry(table + (l >> 21 & 511) * 8, true, 21, false)?;
        entries.push(e);
        if large {
            return Ok((e & FRAME & !0x1f_ffff, 21, entries));
        }
        let (e, _) = self.entry((e & FRAME) + (l >> 12 & 511) * 8, false, 12, true)?;
        entries.push(e);
        Ok((e & FRAME, 12, entries))
    }

    fn permit(&self, entries: &[u64]) -> Result<(), u32> {
        let s = self.s;
        let has = |bit: Cr4| s.cr4 & bit.bits() != 0;
        let user_page = entries.iter().all(|e| e & 4 != 0);
        let writable = entries.iter().all(|e| e & 2 != 0);
        let nx = entries.iter().any(|e| e >> 63 != 0);
        let user = s.user && (s.is_shadow() || !s.implicit);
        let write = s.access() == Access::Write;
        let fetch = s.access() == Access::Execute;
        let key = entries[entries.len() - 1] >> 59 & 15;
        let mut pk = false;
        if s.mode >= 2 && !fetch {
            let (ad, wd) = (1 << (2 * key), 2 << (2 * key));
            if has(Cr4::PKE) && user_page {
                pk = s.pkru & ad != 0 || (s.pkru & wd != 0 && write && (user || s.cr0_wp));
            }
            if has(Cr4::PKS) && !user_page && !user {
                pk = s.pkrs & ad != 0 || (s.pkrs & wd != 0 && write && s.cr0_wp);
            }
        }
        let denied = if s.is_shadow() {
            let (leaf, above) = entries.split_last().expect("there is a leaf");
            let stack = leaf & 0x42 == 0x40 && above.iter().all(|e| e & 2 != 0);
            !stack || user_page != user
        } else if user {
            !user_page || (write && !writable) || (fetch && nx)
        } else {
            (write && !writable && s.cr0_wp)
                || (fetch && (nx || (user_page && has(Cr4::SMEP))))
                || (!fetch && user_page && has(Cr4::SMAP) && (s.implicit || !s.ac))
        };
        if denied || pk {
            return Err(self.code(1 | if pk { 32 } else { 0 }));
        }
        Ok(())
    }
}

/// Compares result, error code and every entry in memory afterwards.
fn check(setting: &Setting) -> Result<u64, u32> {
    let mut cpu = cpu();
    setting.apply(&mut cpu);
    let (expected, touched) = {
        let mut naive = Naive {
            cpu: &cpu,
            s: setting,
            touched: vec![],
        };
        (naive.walk(), naive.touched)
    };
    let result = cpu.walk(
        Linear(setting.linear),
        setting.access(),
        setting.privilege(),
    );
    let seen = match result {
        Ok(t) => {
            assert!(t.allowed.contains(setting.access().into()));
            Ok(t.physical.0)
        }
        Err(Fault::Exception(Exception {
            vector: 14,
            error_code: Some(code),
            payload,
        })) => {
            let width = if setting.mode < 2 {
                0xffff_ffff
            } else {
                u64::MAX
            };
            assert_eq!(payload, setting.linear & width);
            Err(code)
        }
        Err(other) => panic!("{other:?}"),
    };
    assert_eq!(seen, expected, "{setting:x?}");
    for (n, &(at, bytes, before)) in touched.iter().enumerate() {
        let dirty = n + 1 == touched.len() && setting.access() == Access::Write;
        let marks = if expected.is_err() {
            0
        } else {
            0x20 | if dirty { 0x40 } else { 0 }
        };
        assert_eq!(
            cpu.phys.view().load_entry(Hpa(at), bytes),
            Some(before | marks),
            "{setting:x?}"
        );
    }
    seen
}

/// Entries that are mostly good: present, with a few random flags and seldom stray bits.
fn some_entry() -> impl Strategy<Value = u64> {
    let stray = prop_oneof![
        12 => Just(0u64),
        1 => (0u32..64).prop_map(|b| 1 << b),
        1 => (0u64..16).prop_map(|key| key << 59),
        1 => Just(1 << 63),
    ];
    let shadow_stack = prop::sample::select(vec![0x41_u64, 0x45, 0xc1, 0xc5]);
    let flags = prop_oneof![
        6 => Just(0x7u64),
        2 => Just(0x87u64),
        3 => 0u64..0x1000,
        1 => shadow_stack,
    ];
    (flags, stray).prop_map(|(flags, stray)| flags | stray)
}

fn some_setting() -> impl Strategy<Value = Setting> {
    let cr4 = prop::bits::u64::masked(
        (Cr4::PSE | Cr4::PGE | Cr4::SMEP | Cr4::SMAP | Cr4::PKE | Cr4::PKS).bits(),
    );
    let linear = any::<u64>().prop_map(|l| ((l << 8) as i64 >> 8) as u64);
    (
        (
            0u8..4,
            any::<bool>(),
            cr4,
            any::<bool>(),
            any::<bool>(),
            prop::bool::weighted(0.1),
            prop::bool::weighted(0.3),
        ),
        (any::<bool>(), any::<u32>(), any::<u32>(), linear, 0u8..3),
        prop::array::uniform5(some_entry()),
    )
        .prop_map(
            |(
                (mode, cr0_wp, cr4, nxe, user, implicit, shadow),
                (ac, pkru, pkrs, linear, access),
                entries,
            )| Setting {
                mode,
                cr0_wp,
                cr4,
                nxe,
                user,
                implicit,
                shadow,
                ac,
                pkru,
                pkrs,
                linear,
                access,
                entries,
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn walk_agrees_with_the_naive_walk(setting in some_setting()) {
        let _ = check(&setting);
    }
}

/// A user-mode read of a present, writable user page in 4-level paging.
fn plain() -> Setting {
    Setting {
        mode: 2,
        cr0_wp: true,
        cr4: 0,
        nxe: true,
        user: true,
        implicit: false,
        shadow: false,
        ac: false,
        pkru: 0,
        pkrs: 0,
        linear: 0x1234_5678_9abc,
        access: 0,
        entries: [7; 5],
    }
}

#[test]
fn every_fault_has_its_error_code() {
    const USER: u32 = 4;
    type Change = fn(&mut Setting);
    let rows: &[(&str, Change, Result<u64, u32>)] = &[
        ("present", |_| {}, Ok(0x8abc)),
        ("not present", |s| s.entries[2] = 0, Err(USER)),
        ("reserved", |s| s.entries[0] |= 0x80, Err(USER | 9)),
        (
            "XD without NXE",
            |s| (s.nxe, s.entries[1]) = (false, 7 | 1 << 63),
            Err(USER | 9),
        ),
        (
            "write to read-only",
            |s| (s.access, s.entries[3]) = (1, 5),
            Err(USER | 3),
        ),
        ("supervisor page", |s| s.entries[1] = 3, Err(USER | 1)),
        (
            "shadow stack",
            |s| (s.shadow, s.access, s.entries[3]) = (true, 1, 0x45),
            Ok(0x8abc),
        ),
        (
            "shadow-stack write to a writable page",
            |s| (s.shadow, s.access, s.entries[3]) = (true, 1, 0x47),
            Err(USER | 0x43),
        ),
        (
            "fetch from XD",
            |s| (s.access, s.entries[0]) = (2, 7 | 1 << 63),
            Err(USER | 17),
        ),
        (
            "SMEP",
            |s| (s.access, s.user, s.cr4) = (2, false, Cr4::SMEP.bits()),
            Err(17),
        ),
        (
            "SMAP",
            |s| (s.user, s.cr4) = (false, Cr4::SMAP.bits()),
            Err(1),
        ),
        (
            "SMAP, AC",
            |s| (s.user, s.cr4, s.ac) = (false, Cr4::SMAP.bits(), true),
            Ok(0x8abc),
        ),
        (
            "SMAP, AC, implicit",
            |s| (s.implicit, s.cr4, s.ac) = (true, Cr4::SMAP.bits(), true),
            Err(1),
        ),
        (
            "WP clear",
            |s| (s.user, s.access, s.entries[3], s.cr0_wp) = (false, 1, 5, false),
            Ok(0x8abc),
        ),
        (
            "PKRU.AD",
            |s| (s.cr4, s.pkru) = (Cr4::PKE.bits(), 1),
            Err(USER | 33),
        ),
        (
            "PKRU.WD read",
            |s| (s.cr4, s.pkru) = (Cr4::PKE.bits(), 2),
            Ok(0x8abc),
        ),
        (
            "PKRU.WD write",
            |s| (s.cr4, s.pkru, s.access) = (Cr4::PKE.bits(), 2, 1),
            Err(USER | 35),
        ),
        (
            "PKRS.AD",
            |s| (s.cr4, s.pkrs, s.user, s.entries[3]) = (Cr4::PKS.bits(), 1, false, 3),
            Err(33),
        ),
        (
            "no NX, no SMEP: no I/D",
            |s| (s.mode, s.access, s.entries[0]) = (0, 2, 3),
            Err(USER | 1),
        ),
    ];
    for (name, change, expected) in rows {
        let mut setting = plain();
        change(&mut setting);
        assert_eq!(check(&setting), *expected, "{name}");
    }
}

#[test]
fn reserved_address_bits_follow_maxphyaddr() {
    let mut cpu = cpu();
    cpu.set_cpuid(Profile::DEFAULT.table());
    for bit in 40..52 {
        let mut setting = plain();
        setting.entries[3] |= 1 << bit;
        setting.apply(&mut cpu);
        let result = cpu.walk(Linear(setting.linear), Access::Read, Privilege::Current);
        let expected = if bit < 46 {
            Ok(0x8abc | 1 << bit)
        } else {
            Err(Exception::pf(13, setting.linear).into())
        };
        assert_eq!(result.map(|t| t.physical.0), expected, "bit {bit}");
    }
}

#[test]
fn pdptes_with_reserved_bits_are_refused() {
    for (value, ok) in [
        (0, true),
        (0x1e6, true),
        (1, true),
        (3, false),
        (0x21, false),
        (0xe19, true),
        (1 | 1 << 63, false),
    ] {
        let mut cpu = cpu();
        cpu.phys
            .write_bytes(Hpa(0x2000 + 0x20 + 8), &u64::to_le_bytes(value));
        let result = cpu.read_pdptes(0x2038);
        let expected = if ok {
            Ok([0, value, 0, 0])
        } else {
            Err(Exception::gp(0).into())
        };
        assert_eq!(result, expected, "{value:x}");
    }
}

#[test]
fn a_read_translation_is_not_writable_before_the_page_is_dirty() {
    let mut cpu = cpu();
    plain().apply(&mut cpu);
    let mut walk = |access| {
        let t = cpu.walk(Linear(plain().linear), access, Privilege::Current);
        t.expect("the page is there").allowed
    };
    assert_eq!(walk(Access::Read), Allowed::READ | Allowed::EXECUTE);
    assert_eq!(walk(Access::Write), Allowed::all());
    assert_eq!(walk(Access::Read), Allowed::all());
}
