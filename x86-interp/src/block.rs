//! Blocks: runs of decoded instructions, and the cache that owns them.
//!
//! A block begins at one physical address and one RIP, lies in one page, holds at most
//! [`MAX_INSNS`] instructions and was decoded for one [`CodeMode`]. Its first slot is a
//! [`Header`], then come the micro-ops.
#![expect(
    unsafe_code,
    reason = "blocks are memory that micro-op handlers walk by raw pointers"
)]

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};

use iced_x86::{Decoder, Instruction};
use vmx_model::addr::Hpa;

use crate::cpuid::FeatureSet;
use crate::decode;
use crate::exec::{self, Row, Traits};
use crate::insn::Insn;
use crate::uop::select::{self, Candidate, Emit};
use crate::uop::{Header, Slot, Uop, plain};

/// The largest number of instructions in a block.
pub(crate) const MAX_INSNS: usize = 64;

/// Returns how many instructions a block of a mode has at most.
pub(crate) const fn max_insns(mode: &CodeMode) -> usize {
    if mode.is_step { 1 } else { MAX_INSNS }
}

/// The cache is emptied when it holds this many blocks.
const MAX_BLOCKS: usize = 7 << 13;

/// The cache is emptied when this many blocks are out of use, and half as many as are in use.
const MAX_RETIRED: usize = 1 << 11;

/// How many dropped blocks are freed when a new one is added: to free all at once would take a
/// processor out of its guest for a tenth of a second.
const FREED_AT_ONCE: usize = 4;

/// The cache is emptied when blocks were decoded for this many modes.
const MAX_MODES: usize = 1 << 12;

/// What a block was decoded for, besides its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub(crate) struct CodeMode {
    /// CS base; 0 in 64-bit mode.
    pub(crate) cs_base: u64,
    /// The last offset that may be fetched.
    pub(crate) cs_limit: u64,
    /// 16, 32 or 64.
    pub(crate) bits: u32,
    /// Blocks of one instruction.
    pub(crate) is_step: bool,
    /// Bit n: segment register n is flat (base 0, limit 4 GiB) and readable.
    pub(crate) flat_read: u8,
    /// Bit n: segment register n is flat and writable.
    pub(crate) flat_write: u8,
    /// What the stack is like: one of the kinds in `uop::stack`.
    pub(crate) stack: u8,
    /// SSE instructions neither fault nor trap to system software: CR4.OSFXSR is set, CR0.EM and
    /// CR0.TS are clear.
    pub(crate) has_sse: bool,
    /// Instructions with a VEX or EVEX prefix exist: see [`Mode::has_vex`](crate::mode::Mode::has_vex).
    pub(crate) has_vex: bool,
    /// AVX instructions neither fault nor trap to system software: CR4.OSXSAVE is set, XCR0 enables
    /// the registers, CR0.TS is clear.
    pub(crate) has_avx: bool,
    /// x87 instructions neither fault nor trap to system software: CR0.EM and CR0.TS are clear.
    pub(crate) has_x87: bool,
    /// Shadow stacks or indirect-branch tracking are in use: near branches and ENDBRANCH have no hot
    /// form then.
    pub(crate) is_cet_active: bool,
}

impl CodeMode {
    pub(crate) fn rip_mask(&self) -> u64 {
        rip_mask(self.bits)
    }
}

/// Returns the bits of RIP that count in code of 16, 32 or 64 bits. In 16-bit code EIP has 32: only
/// branches with 16-bit operands clear its upper half, and going on beyond FFFFH meets the limit.
pub(crate) const fn rip_mask(bits: u32) -> u64 {
    if bits == 64 { u64::MAX } else { 0xffff_ffff }
}

/// Where a block begins and what it was decoded for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) address: Hpa,
    pub(crate) rip: u64,
    /// Index into the cache's modes.
    pub(crate) mode: u32,
}

/// A block.
pub(crate) struct Block {
    /// Where its code is.
    pub(crate) address: Hpa,
    pub(crate) rip: u64,
    pub(crate) rip_mask: u64,
    pub(crate) mode: CodeMode,
    pub(crate) insns: Box<[Insn]>,
    /// The bytes it was decoded from.
    pub(crate) bytes: Box<[u8]>,
    /// Header and micro-ops; from `Box::into_raw`.
    slots: *mut [Slot],
}

// SAFETY: a block owns its slots; what it points to is its own or shared by atomics.
unsafe impl Send for Block {}

impl Block {
    /// Returns the first micro-op.
    pub(crate) fn entry(&self) -> *const Uop {
        self.slots.cast::<Slot>().wrapping_add(1).cast()
    }

    fn header(&self) -> *mut Header {
        self.slots.cast()
    }

    /// Whether the code is as it was when the block was last compared with memory.
    pub(crate) fn is_valid(&self, epoch: u64) -> bool {
        // SAFETY: slot 0 is the header, and its page's table outlives the block.
        unsafe {
            let header = self.header();
            let generation = (*(*header).generation).load(Ordering::Acquire);
            (*header).stamp == generation.wrapping_add(epoch)
        }
    }

    /// Notes that the block agreed with memory at this sum of generation and epoch.
    pub(crate) fn validate(&self, stamp: u64) {
        // SAFETY: slot 0 is the header; only this processor's thread uses the block.
        unsafe { (*self.header()).stamp = stamp };
    }

    /// Returns the code generation of the block's page.
    pub(crate) fn generation(&self) -> *const AtomicU64 {
        // SAFETY: slot 0 is the header.
        unsafe { (*self.header()).generation }
    }

    /// Returns the number of the linear page that holds `rip`.
    pub(crate) fn linear_page(&self, rip: u64) -> u64 {
        self.mode.cs_base.wrapping_add(rip) >> 12
    }

    /// Returns the number of instructions.
    pub(crate) fn count(&self) -> usize {
        self.insns.len()
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: from `Box::into_raw` in `Builder::finish`, freed once.
        drop(unsafe { Box::from_raw(self.slots) });
    }
}

/// A processor's blocks.
#[derive(Default)]
pub(crate) struct BlockCache {
    blocks: HashMap<Key, Box<Block>, BuildHasherDefault<KeyHasher>>,
    modes: HashMap<CodeMode, u32, BuildHasherDefault<KeyHasher>>,
    /// The modes last asked for: a processor goes to and fro between few.
    recent_modes: [Option<(CodeMode, u32)>; 2],
    /// Blocks that are no more found, but that links may still lead to.
    #[expect(clippy::vec_box, reason = "links point to what is in the boxes")]
    retired: Vec<Box<Block>>,
    /// Blocks that nothing leads to, to be freed little by little.
    dropped: VecDeque<Box<dyn Iterator<Item = Box<Block>> + Send>>,
}

impl BlockCache {
    /// Returns the number that stands for `mode` in keys.
    pub(crate) fn mode_number(&mut self, mode: &CodeMode) -> u32 {
        let known = self.recent_modes.iter().flatten().find(|(m, _)| m == mode);
        if let Some((_, number)) = known {
            return *number;
        }
        let next = self.modes.len() as u32;
        let number = *self.modes.entry(*mode).or_insert(next);
        self.recent_modes = [Some((*mode, number)), self.recent_modes[0]];
        number
    }

    /// Returns a block of the cache.
    pub(crate) fn get(&self, key: &Key) -> Option<&Block> {
        self.blocks.get(key).map(|b| &**b)
    }

    /// Drops all blocks. Only between runs of handlers.
    pub(crate) fn clear(&mut self) {
        if self.blocks.len() + self.retired.len() != 0 {
            // As much room as before: to move many blocks to a larger table takes long as well.
            let room = HashMap::with_capacity_and_hasher(self.blocks.len(), Default::default());
            let blocks = core::mem::replace(&mut self.blocks, room);
            let retired = core::mem::take(&mut self.retired);
            let all = blocks.into_values().chain(retired);
            self.dropped.push_back(Box::new(all));
        }
        self.modes.clear();
        self.recent_modes = [None; 2];
    }

    /// Returns how many blocks there are at most, those to be freed included.
    #[cfg(test)]
    pub(crate) fn in_memory(&self) -> usize {
        let dropped = self
            .dropped
            .iter()
            .filter_map(|blocks| blocks.size_hint().1);
        self.blocks.len() + self.retired.len() + dropped.sum::<usize>()
    }

    /// Frees some of the blocks that were dropped.
    fn free_some(&mut self) {
        for _ in 0..FREED_AT_ONCE {
            let Some(blocks) = self.dropped.front_mut() else {
                return;
            };
            if blocks.next().is_none() {
                self.dropped.pop_front();
            }
        }
    }

    /// Takes a block out of use.
    pub(crate) fn retire(&mut self, key: &Key) {
        self.retired.extend(self.blocks.remove(key));
    }

    /// Whether it is time to drop all blocks.
    pub(crate) fn is_full(&self) -> bool {
        let (used, retired) = (self.blocks.len(), self.retired.len());
        used >= MAX_BLOCKS || retired >= MAX_RETIRED + used / 2 || self.modes.len() >= MAX_MODES
    }

    /// Adds a block.
    pub(crate) fn insert(&mut self, key: Key, block: Box<Block>) {
        self.free_some();
        self.retired.extend(self.blocks.insert(key, block));
    }
}

/// Mixes the words of a [`Key`].
#[derive(Default)]
struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &b in bytes {
            self.write_u64(u64::from(b));
        }
    }
    fn write_u32(&mut self, word: u32) {
        self.write_u64(u64::from(word));
    }
    fn write_u64(&mut self, word: u64) {
        let mixed = (self.0.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ mixed >> 32;
    }
}

/// A decoded instruction with what the builder knows about it.
struct Decoded {
    iced: Instruction,
    insn: Insn,
    traits: Traits,
}

/// Decodes the block of `key` from `bytes`, the rest of its page, for a processor that has
/// `features`; `None` if not even the first instruction can be taken from there.
pub(crate) fn build(
    key: &Key,
    mode: &CodeMode,
    features: &FeatureSet,
    bytes: &[u8],
    generation: *const AtomicU64,
) -> Option<Box<Block>> {
    let rip = key.rip;
    let room = mode.cs_limit.checked_sub(rip)?.saturating_add(1);
    let bytes = &bytes[..bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX))];
    let decoded = decode_run(rip, mode, features, bytes);
    if decoded.is_empty() {
        return None;
    }
    let length = decoded.iter().map(|d| usize::from(d.insn.length)).sum();
    Some(finish(key, mode, &bytes[..length], decoded, generation))
}

/// Decodes instructions, as many as the mode takes, up to the first that ends a block or that cannot be decoded
/// or executed here.
fn decode_run(rip: u64, mode: &CodeMode, features: &FeatureSet, bytes: &[u8]) -> Vec<Decoded> {
    let limit = max_insns(mode);
    let mut decoder = Decoder::with_ip(mode.bits, bytes, rip, features.decoder_options());
    let mut run: Vec<Decoded> = Vec::new();
    let mut i = Instruction::default();
    while run.len() < limit && decoder.can_decode() {
        decoder.decode_out(&mut i);
        if i.is_invalid() || !decode::exists(i.code(), features, mode.has_vex) {
            break;
        }
        let Some(Row { plain, traits }) = exec::lookup(i.code()) else {
            break;
        };
        run.push(Decoded {
            iced: i,
            insn: decode::resolve(&i, plain),
            traits,
        });
        if traits.intersects(Traits::ENDS_BLOCK | Traits::OUTSIDE) {
            break;
        }
    }
    run
}

/// Turns decoded instructions into a block.
fn finish(
    key: &Key,
    mode: &CodeMode,
    bytes: &[u8],
    decoded: Vec<Decoded>,
    generation: *const AtomicU64,
) -> Box<Block> {
    let mut slots = Vec::with_capacity(decoded.len() + 4);
    slots.push(Slot {
        header: Header {
            count: decoded.len() as i64,
            stamp: 0,
            generation,
            block: core::ptr::null(),
        },
    });
    emit(key.rip, mode, &decoded, &mut slots);
    let block = Box::new(Block {
        address: key.address,
        rip: key.rip,
        rip_mask: mode.rip_mask(),
        mode: *mode,
        insns: decoded.into_iter().map(|d| d.insn).collect(),
        bytes: bytes.into(),
        slots: Box::into_raw(slots.into_boxed_slice()),
    });
    let address: *const Block = &raw const *block;
    // SAFETY: the slots are this block's own, and slot 0 is the header.
    unsafe { (*block.slots)[0].header.block = address };
    block
}

/// Emits the micro-ops of all instructions.
fn emit(rip: u64, mode: &CodeMode, decoded: &[Decoded], slots: &mut Vec<Slot>) {
    let iced: Vec<_> = decoded.iter().map(|d| d.iced).collect();
    let dead = select::dead_flags(&iced);
    let candidate = |n: usize| Candidate {
        iced: &decoded[n].iced,
        insn: &decoded[n].insn,
        is_dead: dead[n],
    };
    let mut emit = Emit::new(slots, mode, rip);
    let last = decoded.len() - 1;
    for (n, d) in decoded.iter().enumerate() {
        emit.advance(n, d.insn.length);
        let is_pair = n + 2 == decoded.len() && !mode.is_step;
        if is_pair && emit.fused(candidate(n), candidate(n + 1)) {
            return;
        }
        let ends = d.traits.contains(Traits::ENDS_BLOCK) || mode.is_step;
        if d.traits.contains(Traits::OUTSIDE) {
            emit.plain(plain::plain_outside);
        } else if mode.is_step || !emit.hot(candidate(n)) {
            emit.plain(if ends { plain::plain_end } else { plain::plain });
        }
    }
    if !decoded[last]
        .traits
        .intersects(Traits::ENDS_BLOCK | Traits::OUTSIDE)
        && !mode.is_step
    {
        emit.fall_through();
    }
}
