//! What the TLB answers is what a fresh walk answers, whatever software has changed in between, as
//! long as it invalidates what it must (SDM Vol. 3A, "Invalidation of TLBs and Paging-Structure
//! Caches").

use proptest::prelude::*;
use vmx_model::addr::{Hpa, Linear};
use vmx_model::arch::{Cr0, Cr4, Rflags, SegmentRegister};

use crate::mem::{Access, Privilege};
use crate::test_cpu::long_mode;
use crate::{Cpu, Exec};

/// The two address spaces have their tables here; each has four tables of one page.
const SPACES: [u64; 2] = [0x4000, 0x8000];
/// Pages of each address space, from linear address 0 on, identity-mapped.
const PAGES: u64 = 16;
/// Pieces that are looked at of the page of 2 MiB at linear address 2 MiB of each address space.
const PIECES: u64 = 4;
const EFER: u32 = 0xc000_0080;
const PKRS: u32 = 0x6e1;

/// What software does between two accesses.
#[derive(Clone, Debug)]
enum Step {
    /// Changes an entry, then INVLPG.
    Entry {
        space: usize,
        page: u64,
        flags: u64,
    },
    /// Changes the entry of the page of 2 MiB, then INVLPG of one piece of it.
    LargeEntry {
        space: usize,
        piece: u64,
        flags: u64,
    },
    Wp(bool),
    Cr4(u64),
    Nxe(bool),
    Ac(bool),
    User(bool),
    Pkru(u32),
    Pkrs(u32),
    /// MOV to CR3, bit 63 set or not.
    Cr3 {
        space: usize,
        keeps: bool,
    },
    /// An instruction that changes PTEs of a whole space and reloads CR3.
    Reload {
        space: usize,
        flags: u64,
    },
}

fn entry_at(space: usize, page: u64) -> Hpa {
    Hpa(SPACES[space] + 0x3000 + 8 * page)
}

/// Returns the linear address of a page, or after the pages of a piece of the page of 2 MiB.
fn linear_of(page: u64) -> Linear {
    Linear(match page.checked_sub(PAGES) {
        None => page << 12,
        Some(piece) => 1 << 21 | piece << 12,
    })
}

fn set_large_entry(cpu: &Cpu, space: usize, flags: u64) {
    const PS: u64 = 1 << 7;
    let at = Hpa(SPACES[space] + 0x2000 + 8);
    cpu.phys.write_bytes(at, &(PS | flags).to_le_bytes());
}

fn set_entry(cpu: &Cpu, space: usize, page: u64, flags: u64) {
    let value = page << 12 | flags;
    cpu.phys
        .write_bytes(entry_at(space, page), &value.to_le_bytes());
}

fn start() -> Cpu {
    let mut cpu = long_mode();
    for (space, table) in SPACES.into_iter().enumerate() {
        for level in 0..3 {
            let value = (table + 0x1000 * (level + 1)) | 7;
            cpu.phys
                .write_bytes(Hpa(table + 0x1000 * level), &value.to_le_bytes());
        }
        for page in 0..PAGES {
            set_entry(&cpu, space, page, 7);
        }
        set_large_entry(&cpu, space, 7);
    }
    cpu.write_cr3(SPACES[0]).expect("a valid CR3");
    cpu.write_cr4((Cr4::PAE | Cr4::PCIDE).bits())
        .expect("PCID 0 is in use");
    cpu
}

fn apply(cpu: &mut Cpu, step: &Step) -> Exec {
    match *step {
        Step::Entry { space, page, flags } => {
            set_entry(cpu, space, page, flags);
            cpu.flush_tlb_page(Linear(page << 12));
        }
        Step::LargeEntry {
            space,
            piece,
            flags,
        } => {
            set_large_entry(cpu, space, flags);
            cpu.flush_tlb_page(linear_of(PAGES + piece));
        }
        Step::Wp(wp) => {
            let mut cr0 = cpu.state.cr0;
            cr0.set(Cr0::WP, wp);
            cpu.write_cr0(cr0.bits())?;
        }
        Step::Cr4(bits) => cpu.write_cr4(bits | (Cr4::PAE | Cr4::PCIDE).bits())?,
        Step::Nxe(nxe) => cpu.write_msr(EFER, 0x500 | u64::from(nxe) << 11)?,
        Step::Ac(ac) => {
            let mut rflags = cpu.rflags();
            rflags.set(Rflags::AC, ac);
            cpu.set_rflags(rflags);
        }
        Step::User(user) => {
            let ss = cpu.state.segment_mut(SegmentRegister::Ss);
            ss.access = ss.access.with_dpl(if user { 3 } else { 0 });
        }
        Step::Pkru(value) => cpu.write_pkru(value),
        Step::Pkrs(value) => cpu.write_msr(PKRS, u64::from(value))?,
        Step::Cr3 { space, keeps } => {
            cpu.write_cr3(SPACES[space] | space as u64 | u64::from(keeps) << 63)?;
        }
        Step::Reload { space, flags } => {
            for page in 0..PAGES {
                // No global pages: those would survive.
                set_entry(cpu, space, page, flags & !0x100);
            }
            cpu.write_cr4((Cr4::PAE | Cr4::PCIDE).bits())?;
            cpu.flush_tlb_all();
            cpu.write_cr3(SPACES[space] | space as u64)?;
        }
    }
    Ok(())
}

fn flags() -> impl Strategy<Value = u64> {
    let keys = prop_oneof![Just(0u64), 0u64..4].prop_map(|k| k << 59);
    let bits = prop_oneof![3 => Just(7u64), 1 => Just(6u64), 2 => 0u64..8, 1 => Just(0x107u64), 1 => Just(0x67u64)];
    (bits, keys, prop::bool::weighted(0.2)).prop_map(|(b, k, x)| b | k | u64::from(x) << 63)
}

fn step() -> impl Strategy<Value = Step> {
    let cr4 = (Cr4::SMEP | Cr4::SMAP | Cr4::PKE | Cr4::PKS | Cr4::PGE).bits();
    prop_oneof![
        3 => (0usize..2, 0..PAGES, flags()).prop_map(|(space, page, flags)| Step::Entry { space, page, flags }),
        2 => (0usize..2, 0..PIECES, flags()).prop_map(|(space, piece, flags)| Step::LargeEntry { space, piece, flags }),
        1 => any::<bool>().prop_map(Step::Wp),
        1 => prop::bits::u64::masked(cr4).prop_map(Step::Cr4),
        1 => any::<bool>().prop_map(Step::Nxe),
        2 => any::<bool>().prop_map(Step::Ac),
        2 => any::<bool>().prop_map(Step::User),
        1 => (0u32..256).prop_map(Step::Pkru),
        1 => (0u32..256).prop_map(Step::Pkrs),
        2 => (0usize..2, any::<bool>()).prop_map(|(space, keeps)| Step::Cr3 { space, keeps }),
        1 => (0usize..2, flags()).prop_map(|(space, flags)| Step::Reload { space, flags }),
    ]
}

type Look = (u64, u8, bool);

fn look() -> impl Strategy<Value = Look> {
    (0..PAGES + PIECES, 0u8..3, prop::bool::weighted(0.2))
}

fn check(cpu: &mut Cpu, &(page, access, implicit): &Look) {
    let access = [Access::Read, Access::Write, Access::Execute][usize::from(access)];
    let privilege = if implicit {
        Privilege::Supervisor
    } else {
        Privilege::Current
    };
    let linear = linear_of(page).offset(0x123);
    let cached = cpu.translate(linear, access, privilege);
    let fresh = cpu.walk(linear, access, privilege).map(|t| t.physical);
    assert_eq!(cached, fresh, "{access:?} {privilege:?} of page {page}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_tlb_answers_as_a_walk_does(run in prop::collection::vec((step(), prop::collection::vec(look(), 6)), 1..40)) {
        let mut cpu = start();
        for (step, looks) in &run {
            // A step that faults changes nothing.
            let _ = apply(&mut cpu, step);
            looks.iter().for_each(|look| check(&mut cpu, look));
        }
    }
}
