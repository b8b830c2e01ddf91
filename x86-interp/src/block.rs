//! Blocks: runs of decoded instructions, and the cache that owns them.
//!
//! A block begins at one physical address and one RIP, lies in one page, holds at most
//! [`MAX_INSNS`] instructions and was decoded for one [`CodeMode`]. Its first slot is a
//! [`Header`], then come the micro-ops.
#![expect(
    unsafe_code,
    reason = "blocks are memory that micro-op handlers walk by raw pointers"
)]

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};

use iced_x86::{Decoder, DecoderOptions, Instruction};
use vmx_model::addr::Hpa;

use crate::cpuid::FeatureSet;
use crate::decode;
use crate::exec::{self, Row, Traits};
use crate::insn::Insn;
use crate::uop::{Header, Slot, Uop, plain};

/// The largest number of instructions in a block.
pub(crate) const MAX_INSNS: usize = 64;

/// The cache is emptied when it holds this many blocks.
const MAX_BLOCKS: usize = 1 << 16;

/// What a block was decoded for, besides its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub(crate) struct CodeMode {
    /// What the processor has: an instruction that it lacks is not in a block.
    pub(crate) features: FeatureSet,
    /// CS base; 0 in 64-bit mode.
    pub(crate) cs_base: u64,
    /// The last offset that may be fetched.
    pub(crate) cs_limit: u64,
    /// 16, 32 or 64.
    pub(crate) bits: u32,
    /// Blocks of one instruction.
    pub(crate) is_step: bool,
}

impl CodeMode {
    fn rip_mask(&self) -> u64 {
        match self.bits {
            64 => u64::MAX,
            32 => 0xffff_ffff,
            _ => 0xffff,
        }
    }
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
    pub(crate) rip: u64,
    pub(crate) rip_mask: u64,
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
    modes: Vec<CodeMode>,
    /// Blocks that are no more found, but that links may still lead to.
    retired: Vec<Box<Block>>,
}

impl BlockCache {
    /// Returns the number that stands for `mode` in keys.
    pub(crate) fn mode_number(&mut self, mode: &CodeMode) -> u32 {
        let found = self.modes.iter().rposition(|m| m == mode);
        let number = found.unwrap_or_else(|| {
            self.modes.push(*mode);
            self.modes.len() - 1
        });
        number as u32
    }

    /// Returns a block of the cache.
    pub(crate) fn get(&self, key: &Key) -> Option<&Block> {
        self.blocks.get(key).map(|b| &**b)
    }

    /// Drops all blocks. Only between runs of handlers.
    pub(crate) fn clear(&mut self) {
        self.blocks.clear();
        self.retired.clear();
        self.modes.clear();
    }

    /// Takes a block out of use.
    pub(crate) fn retire(&mut self, key: &Key) {
        self.retired.extend(self.blocks.remove(key));
    }

    /// Adds a block. Only between runs of handlers: it may free other blocks.
    pub(crate) fn insert(&mut self, key: Key, block: Box<Block>) -> &Block {
        if self.blocks.len() + self.retired.len() >= MAX_BLOCKS {
            self.blocks.clear();
            self.retired.clear();
        }
        self.blocks.entry(key).insert_entry(block).into_mut()
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
    insn: Insn,
    traits: Traits,
}

/// Decodes the block at `rip` from `bytes`, the rest of its page; `None` if not even the first
/// instruction can be taken from there.
pub(crate) fn build(
    rip: u64,
    mode: &CodeMode,
    bytes: &[u8],
    generation: *const AtomicU64,
) -> Option<Box<Block>> {
    let room = mode.cs_limit.checked_sub(rip)?.saturating_add(1);
    let bytes = &bytes[..bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX))];
    let limit = if mode.is_step { 1 } else { MAX_INSNS };
    let decoded = decode_run(rip, mode, bytes, limit);
    if decoded.is_empty() {
        return None;
    }
    let length = decoded.iter().map(|d| usize::from(d.insn.length)).sum();
    Some(finish(rip, mode, &bytes[..length], decoded, generation))
}

/// Decodes up to `limit` instructions, up to the first that ends a block or that cannot be decoded
/// or executed here.
fn decode_run(rip: u64, mode: &CodeMode, bytes: &[u8], limit: usize) -> Vec<Decoded> {
    let mut decoder = Decoder::with_ip(mode.bits, bytes, rip, DecoderOptions::NONE);
    let mut run: Vec<Decoded> = Vec::new();
    let mut i = Instruction::default();
    while run.len() < limit && decoder.can_decode() {
        decoder.decode_out(&mut i);
        if i.is_invalid() || !mode.features.allows(i.code()) {
            break;
        }
        let Some(Row { plain, traits }) = exec::lookup(i.code()) else {
            break;
        };
        run.push(Decoded {
            insn: decode::resolve(&i, plain),
            traits,
        });
        if traits.contains(Traits::ENDS_BLOCK) {
            break;
        }
    }
    run
}

/// Turns decoded instructions into a block.
fn finish(
    rip: u64,
    mode: &CodeMode,
    bytes: &[u8],
    decoded: Vec<Decoded>,
    generation: *const AtomicU64,
) -> Box<Block> {
    let mut slots = Vec::with_capacity(decoded.len() + 2);
    slots.push(Slot {
        header: Header {
            count: decoded.len() as i64,
            stamp: 0,
            generation,
            block: core::ptr::null(),
        },
    });
    let mut offset = 0;
    let mut ends = false;
    for (n, d) in decoded.iter().enumerate() {
        offset += u16::from(d.insn.length);
        ends = d.traits.contains(Traits::ENDS_BLOCK);
        let handler = if ends { plain::plain_end } else { plain::plain };
        slots.push(Slot {
            uop: generic(handler, slots.len(), n, offset),
        });
    }
    if !ends {
        let last = decoded.len() - 1;
        slots.push(Slot {
            uop: generic(plain::block_end, slots.len(), last, offset),
        });
    }
    let block = Box::new(Block {
        rip,
        rip_mask: mode.rip_mask(),
        insns: decoded.into_iter().map(|d| d.insn).collect(),
        bytes: bytes.into(),
        slots: Box::into_raw(slots.into_boxed_slice()),
    });
    let address: *const Block = &raw const *block;
    // SAFETY: the slots are this block's own, and slot 0 is the header.
    unsafe { (*block.slots)[0].header.block = address };
    block
}

fn generic(handler: crate::uop::Handler, slot: usize, insn: usize, next_offset: u16) -> Uop {
    Uop {
        handler,
        disp: 0,
        imm: 0,
        dst: 0,
        src: 0,
        base: 0,
        index: 0,
        scale_shift: 0,
        slot: slot as u8,
        insn: insn as u8,
        segment: 0,
        next_offset,
        spare: 0,
    }
}
