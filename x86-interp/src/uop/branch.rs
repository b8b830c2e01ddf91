//! Near branches: direct ones with links to their successors, indirect ones through the jump
//! cache, and compare-and-branch pairs.

use std::arch::asm;
use std::hint::black_box;
use std::sync::atomic::Ordering;

use super::moves::conditions;
use super::operand::{address, get, imm, set};
use super::stack::{pop_place, push_place, set_stack_pointer};
use super::{Handler, Header, Left, Link, Uop, bail, enter, header, host, next};
use crate::Cpu;
use crate::block::Block;
use crate::flags::LazyFlags;
use crate::mem::tlb::{self, read_host, write_host};
use crate::width::Width;

/// Number of jump-cache entries.
const JUMPS: usize = 4096;

/// A tag that no jump has.
const NO_TAG: u64 = u64::MAX;

/// The block that begins at a RIP.
#[derive(Clone, Copy)]
pub(crate) struct Jump {
    rip: u64,
    tag: u64,
    entry: *const Uop,
}

/// From RIP to block, valid for one tag: code mode and context.
pub(crate) struct JumpCache {
    jumps: Box<[Jump; JUMPS]>,
    /// Where the jumps into each [`tlb::region`] of linear addresses are: the first and the last
    /// index.
    regions: [Option<(u16, u16)>; tlb::REGIONS],
    /// [`crate::mem::tlb::Tlb::numberings`] when contexts were last numbered for the tags.
    numberings: u32,
}

// SAFETY: the entries lead to blocks of the same processor, which moves between threads as a whole.
unsafe impl Send for JumpCache {}

impl Default for JumpCache {
    fn default() -> Self {
        Self {
            jumps: Box::new([Self::EMPTY; JUMPS]),
            regions: [None; tlb::REGIONS],
            numberings: 0,
        }
    }
}

impl JumpCache {
    const EMPTY: Jump = Jump {
        rip: 0,
        tag: NO_TAG,
        entry: core::ptr::null(),
    };

    #[inline(always)]
    fn index(rip: u64) -> usize {
        (rip ^ rip >> 12) as usize & (JUMPS - 1)
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.jumps.fill(Self::EMPTY);
        self.regions = [None; tlb::REGIONS];
    }

    /// Remembers a block that begins at `rip`, at the linear address `linear`.
    pub(crate) fn enter(&mut self, rip: u64, tag: u64, entry: *const Uop, linear: u64) {
        let n = Self::index(rip);
        self.jumps[n] = Jump { rip, tag, entry };
        let region = &mut self.regions[tlb::region(linear)];
        let (first, last) = region.unwrap_or((n as u16, n as u16));
        *region = Some((first.min(n as u16), last.max(n as u16)));
    }

    /// Forgets all that leads into the page, of whatever size up to 4 MiB, around a linear address.
    pub(crate) fn forget_page(&mut self, linear: u64) {
        if let Some((first, last)) = self.regions[tlb::region(linear)].take() {
            self.jumps[usize::from(first)..=usize::from(last)].fill(Self::EMPTY);
        }
    }

    /// Forgets everything when context numbers are given out anew.
    pub(crate) fn note_numberings(&mut self, numberings: u32) {
        if self.numberings != numberings {
            self.numberings = numberings;
            self.clear();
        }
    }

    /// Returns the first micro-op of the block at `rip`, or null.
    #[inline(always)]
    fn find(&self, rip: u64, tag: u64) -> *const Uop {
        let jump = &self.jumps[Self::index(rip)];
        if jump.rip == rip && jump.tag == tag {
            jump.entry
        } else {
            core::ptr::null()
        }
    }
}

/// Returns the first micro-op of the block at `rip` from the jump cache, or null.
///
/// # Safety
/// `uop`, "Safety".
#[inline(always)]
unsafe fn find(cpu: *const Cpu, rip: u64) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe { (*cpu).hot.jumps.find(rip, (*cpu).hot.jump_tag) }
}

/// Work of comparing a block with memory; see [`crate::run::Slice::work`].
const COMPARISON_WORK: i64 = 1;

/// In front of a block that must not be entered as it is: enters it if only its code might have
/// changed, and has not, else leaves the run.
#[cold]
#[inline(never)]
pub(crate) unsafe fn reconsider(cpu: *mut Cpu, entry: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe {
        (*cpu).note_work(COMPARISON_WORK);
        let header = entry.cast::<Header>().sub(1);
        let budget = (*cpu).hot.budget.wrapping_sub((*header).count);
        let is_allowed = budget >= (*cpu).hot.limit.load(Ordering::Relaxed);
        if is_allowed && (*cpu).is_as_in_memory(&*(*header).block) {
            (*cpu).hot.budget = budget;
            next!(cpu, entry);
        }
        (*cpu).state.rip = (*(*header).block).rip;
        (*cpu).hot.left = Left::Onward;
    }
    black_box(core::ptr::null())
}

/// Leaves the run at `state.rip`.
pub(crate) unsafe fn leave(cpu: *mut Cpu, _: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe { (*cpu).hot.left = Left::Onward };
    black_box(core::ptr::null())
}

/// A successor without a link, as all in other pages are: looks into the jump cache, else leaves the
/// run, which may link it.
#[inline(never)]
unsafe fn unlinked<const TAKEN: bool>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety"; the link lies in memory that the block owns and that is only
    // reached through raw pointers.
    unsafe {
        let link = op.add(1).cast::<Link>().cast_mut();
        let (rip, place) = if TAKEN {
            ((*link).taken_rip, &raw mut (*link).taken)
        } else {
            ((*link).fall_rip, &raw mut (*link).fall)
        };
        let entry = find(cpu, rip);
        if !entry.is_null() {
            let from = &*(*header(op)).block;
            if from.linear_page(rip) == from.linear_page(from.rip) {
                join(place, header(op), entry);
            }
            enter!(cpu, entry);
        }
        (*cpu).state.rip = rip;
        (*cpu).hot.left = Left::Onward;
        (*cpu).hot.patch = Patch {
            place,
            from: header(op),
            rip,
        };
    }
    black_box(core::ptr::null())
}

/// A link to be written when the block it should lead to is found.
#[derive(Clone, Copy)]
pub(crate) struct Patch {
    pub(crate) place: *mut *const Uop,
    pub(crate) from: *const Header,
    /// Where the link is to lead.
    pub(crate) rip: u64,
}

// SAFETY: leads to blocks of the same processor.
unsafe impl Send for Patch {}

impl Patch {
    /// Nothing to link.
    pub(crate) const NONE: Self = Self {
        place: core::ptr::null_mut(),
        from: core::ptr::null(),
        rip: 0,
    };

    /// Lets the link lead to `found`, if both blocks lie in one page: then whatever voids one
    /// voids the other.
    pub(crate) fn apply(self, found: &Block) {
        if self.place.is_null() {
            return;
        }
        // SAFETY: a patch is applied before any block is freed.
        unsafe {
            if self.rip == found.rip {
                join(self.place, self.from, found.entry());
            }
        }
    }
}

/// Lets the link at `place`, of the block of `from`, lead to `entry` if both blocks lie in one page
/// and mode.
///
/// # Safety
/// `uop`, "Safety".
#[inline(never)]
unsafe fn join(place: *mut *const Uop, from: *const Header, entry: *const Uop) {
    // SAFETY: `uop`, "Safety".
    unsafe {
        let from = &*(*from).block;
        let found = &*(*entry.cast::<Header>().sub(1)).block;
        let page = |b: &Block| b.linear_page(b.rip);
        let is_near = page(from) == page(found) && from.generation() == found.generation();
        if is_near && from.mode == found.mode {
            *place = entry;
        }
    }
}

/// Goes to the successor `$side` of the link behind `$op`.
macro_rules! go {
    ($cpu:ident, $op:ident, $side:ident, $taken:literal) => {{
        let entry = (*$op.add(1).cast::<Link>()).$side;
        if entry.is_null() {
            return unlinked::<$taken>($cpu, $op);
        }
        enter!($cpu, entry)
    }};
}

/// Goes to one of the two successors. Two real branches: were the next micro-op selected by a
/// conditional move, every iteration of a guest loop would wait for the guest's comparison.
macro_rules! branch {
    ($cpu:ident, $op:ident, $condition:expr) => {{
        if $condition {
            asm!("/* taken */", options(nomem, nostack, preserves_flags));
            go!($cpu, $op, taken, true)
        }
        asm!("/* not taken */", options(nomem, nostack, preserves_flags));
        go!($cpu, $op, fall, false)
    }};
}

/// A direct jump, or the end of a block that goes on with the following instruction.
pub(crate) unsafe fn jump(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe { go!(cpu, op, taken, true) }
}

/// Jcc.
pub(crate) const JCC: [Handler; 16] = conditions!(jcc);

unsafe fn jcc<const CC: u8>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe { branch!(cpu, op, (*cpu).flags.holds::<CC>()) }
}

/// The first instruction of a pair that ends in Jcc.
trait Compare {
    /// Whether the result is written.
    const WRITES: bool;
    /// Returns the result and the flags.
    fn apply<W: Width>(a: W, b: W, before: LazyFlags) -> (W, LazyFlags);
    /// Whether condition code `CC` holds; `r` and `flags` are from `apply`.
    fn holds<W: Width, const CC: u8>(a: W, b: W, r: W, flags: LazyFlags) -> bool;
}

/// CMP.
struct Cmp;

impl Compare for Cmp {
    const WRITES: bool = false;
    #[inline(always)]
    fn apply<W: Width>(a: W, b: W, _: LazyFlags) -> (W, LazyFlags) {
        let r = W::from_u64(a.to_u64().wrapping_sub(b.to_u64()));
        (r, LazyFlags::sub(a, b, r))
    }
    #[inline(always)]
    fn holds<W: Width, const CC: u8>(a: W, b: W, r: W, flags: LazyFlags) -> bool {
        let holds = match CC >> 1 {
            1 => a < b,
            2 => a == b,
            3 => a <= b,
            4 => r.to_i64() < 0,
            6 => a.to_i64() < b.to_i64(),
            7 => a.to_i64() <= b.to_i64(),
            _ => return flags.holds::<CC>(),
        };
        holds != (CC & 1 != 0)
    }
}

/// SUB.
struct Sub;

impl Compare for Sub {
    const WRITES: bool = true;
    #[inline(always)]
    fn apply<W: Width>(a: W, b: W, before: LazyFlags) -> (W, LazyFlags) {
        Cmp::apply(a, b, before)
    }
    #[inline(always)]
    fn holds<W: Width, const CC: u8>(a: W, b: W, r: W, flags: LazyFlags) -> bool {
        Cmp::holds::<W, CC>(a, b, r, flags)
    }
}

/// TEST.
struct Test;

impl Compare for Test {
    const WRITES: bool = false;
    #[inline(always)]
    fn apply<W: Width>(a: W, b: W, _: LazyFlags) -> (W, LazyFlags) {
        let r = W::from_u64(a.to_u64() & b.to_u64());
        (r, LazyFlags::logic(r))
    }
    #[inline(always)]
    fn holds<W: Width, const CC: u8>(_: W, _: W, r: W, flags: LazyFlags) -> bool {
        let holds = match CC >> 1 {
            0 | 1 => false,
            2 | 3 => r == W::default(),
            4 | 6 => r.to_i64() < 0,
            7 => r.to_i64() <= 0,
            _ => return flags.holds::<CC>(),
        };
        holds != (CC & 1 != 0)
    }
}

/// AND.
struct And;

impl Compare for And {
    const WRITES: bool = true;
    #[inline(always)]
    fn apply<W: Width>(a: W, b: W, before: LazyFlags) -> (W, LazyFlags) {
        Test::apply(a, b, before)
    }
    #[inline(always)]
    fn holds<W: Width, const CC: u8>(a: W, b: W, r: W, flags: LazyFlags) -> bool {
        Test::holds::<W, CC>(a, b, r, flags)
    }
}

/// ADD.
struct Add;

impl Compare for Add {
    const WRITES: bool = true;
    #[inline(always)]
    fn apply<W: Width>(a: W, b: W, _: LazyFlags) -> (W, LazyFlags) {
        let r = W::from_u64(a.to_u64().wrapping_add(b.to_u64()));
        (r, LazyFlags::add(a, b, r))
    }
    #[inline(always)]
    fn holds<W: Width, const CC: u8>(_: W, _: W, r: W, flags: LazyFlags) -> bool {
        by_result::<W, CC>(r, flags)
    }
}

/// DEC (`b` is 1) and INC (`b` is -1).
struct Step;

impl Compare for Step {
    const WRITES: bool = true;
    #[inline(always)]
    fn apply<W: Width>(a: W, b: W, before: LazyFlags) -> (W, LazyFlags) {
        let r = W::from_u64(a.to_u64().wrapping_sub(b.to_u64()));
        let flags = if b == W::from_u64(1) {
            LazyFlags::sub(a, b, r)
        } else {
            LazyFlags::add(a, W::from_u64(1), r)
        };
        (r, flags.keeping_carry(before))
    }
    #[inline(always)]
    fn holds<W: Width, const CC: u8>(_: W, _: W, r: W, flags: LazyFlags) -> bool {
        by_result::<W, CC>(r, flags)
    }
}

#[inline(always)]
fn by_result<W: Width, const CC: u8>(r: W, flags: LazyFlags) -> bool {
    let holds = match CC >> 1 {
        2 => r == W::default(),
        4 => r.to_i64() < 0,
        _ => return flags.holds::<CC>(),
    };
    holds != (CC & 1 != 0)
}

/// By size (8, 32, 64 bits) and condition code.
pub(crate) type Fused = [[Handler; 16]; 3];

macro_rules! fused {
    ($f:ident, $o:ident) => {
        [
            conditions!($f, u8, $o),
            conditions!($f, u32, $o),
            conditions!($f, u64, $o),
        ]
    };
}

/// Register and register: CMP, TEST, SUB, AND, ADD.
pub(crate) const FUSED_RR: [Fused; 5] = [
    fused!(fused_rr, Cmp),
    fused!(fused_rr, Test),
    fused!(fused_rr, Sub),
    fused!(fused_rr, And),
    fused!(fused_rr, Add),
];
/// Register and immediate: CMP, TEST, SUB, AND, ADD, and DEC or INC.
pub(crate) const FUSED_RI: [Fused; 6] = [
    fused!(fused_ri, Cmp),
    fused!(fused_ri, Test),
    fused!(fused_ri, Sub),
    fused!(fused_ri, And),
    fused!(fused_ri, Add),
    fused!(fused_ri, Step),
];

unsafe fn fused_rr<W: Width, O: Compare, const CC: u8>(
    cpu: *mut Cpu,
    op: *const Uop,
) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe {
        let (a, b) = (get::<W>(cpu, (*op).dst), get::<W>(cpu, (*op).src));
        branch!(cpu, op, compare::<W, O, CC>(cpu, op, a, b))
    }
}

unsafe fn fused_ri<W: Width, O: Compare, const CC: u8>(
    cpu: *mut Cpu,
    op: *const Uop,
) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe {
        let (a, b) = (get::<W>(cpu, (*op).dst), imm::<W>(op));
        branch!(cpu, op, compare::<W, O, CC>(cpu, op, a, b))
    }
}

/// Does the first instruction's work; returns whether the condition holds.
///
/// # Safety
/// `uop`, "Safety".
#[inline(always)]
unsafe fn compare<W: Width, O: Compare, const CC: u8>(
    cpu: *mut Cpu,
    op: *const Uop,
    a: W,
    b: W,
) -> bool {
    // SAFETY: `uop`, "Safety".
    unsafe {
        let (result, flags) = O::apply(a, b, (*cpu).flags);
        if O::WRITES {
            set(cpu, (*op).dst, result);
        }
        (*cpu).flags = flags;
        O::holds::<W, CC>(a, b, result, flags)
    }
}

/// JMP to the address in a register: 16, 32, 64 bits.
pub(crate) const JUMP_R: [Handler; 3] = [jump_r::<u16>, jump_r::<u32>, jump_r::<u64>];
/// JMP to the address in memory.
pub(crate) const JUMP_M: [[Handler; 3]; 3] = [
    [jump_m::<u16, 0>, jump_m::<u32, 0>, jump_m::<u64, 0>],
    [jump_m::<u16, 1>, jump_m::<u32, 1>, jump_m::<u64, 1>],
    [jump_m::<u16, 2>, jump_m::<u32, 2>, jump_m::<u64, 2>],
];

unsafe fn jump_r<W: Width>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe {
        let entry = find(cpu, get::<W>(cpu, (*op).src).to_u64());
        if entry.is_null() {
            bail!(cpu, op);
        }
        enter!(cpu, entry)
    }
}

unsafe fn jump_m<W: Width, const A: u8>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe {
        let at = host!(cpu, op, address::<A>(cpu, op), W, read);
        let entry = find(cpu, read_host::<W>(at).to_u64());
        if entry.is_null() {
            bail!(cpu, op);
        }
        enter!(cpu, entry)
    }
}

/// A near call or return by operand size (16, 32, 64 bits) and kind of stack.
macro_rules! stacks {
    ($f:ident) => {
        [
            [$f::<u16, 0>, $f::<u16, 1>, $f::<u16, 2>],
            [$f::<u32, 0>, $f::<u32, 1>, $f::<u32, 2>],
            [$f::<u64, 0>, $f::<u64, 1>, $f::<u64, 2>],
        ]
    };
}
pub(crate) use stacks;

/// CALL, direct.
pub(crate) const CALL: [[Handler; 3]; 3] = stacks!(call);
/// CALL to the address in a register.
pub(crate) const CALL_R: [[Handler; 3]; 3] = stacks!(call_r);
/// RET; `imm` is what it releases besides the return address.
pub(crate) const RET: [[Handler; 3]; 3] = stacks!(ret);

unsafe fn call<W: Width, const S: u8>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe {
        let (pointer, place) = push_place::<W, S>(cpu);
        let at = host!(cpu, op, place, W, write);
        let back = (*op.add(1).cast::<Link>()).fall_rip;
        write_host(at, W::from_u64(back));
        set_stack_pointer::<S>(cpu, pointer);
        go!(cpu, op, taken, true)
    }
}

unsafe fn call_r<W: Width, const S: u8>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe {
        let entry = find(cpu, get::<W>(cpu, (*op).src).to_u64());
        if entry.is_null() {
            bail!(cpu, op);
        }
        let (pointer, place) = push_place::<W, S>(cpu);
        let at = host!(cpu, op, place, W, write);
        write_host(at, W::from_u64((*op).disp));
        set_stack_pointer::<S>(cpu, pointer);
        enter!(cpu, entry)
    }
}

unsafe fn ret<W: Width, const S: u8>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe {
        let (pointer, place) = pop_place::<W, S>(cpu);
        let at = host!(cpu, op, place, W, read);
        let entry = find(cpu, read_host::<W>(at).to_u64());
        if entry.is_null() {
            bail!(cpu, op);
        }
        let released = (*op).imm as u32;
        set_stack_pointer::<S>(cpu, pointer.wrapping_add(u64::from(released)));
        enter!(cpu, entry)
    }
}
