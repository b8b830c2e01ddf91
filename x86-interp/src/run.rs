//! The run loop: from event to event, from block to block.
//!
//! Between blocks the loop looks at what may have happened meanwhile (a kick, an event to deliver,
//! the end of the budget), finds or builds the block at RIP, and lets its micro-ops run until they
//! leave. A repeated string instruction may complete in portions: its handler returns `Ok` with
//! `next_rip` unchanged, and the loop comes back to it after looking for events. It is counted as
//! one instruction, when it completes.
#![expect(unsafe_code, reason = "entry into micro-op handlers")]

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use vmx_model::arch::{Cr0, Rflags, SegmentRegister};

use crate::block::{self, Block, BlockCache, CodeMode, Key};
use crate::events::Boundary;
use crate::fault::{Exec, Fault};
use crate::fetch::Fetched;
use crate::mem::tlb::NO_CONTEXT;
use crate::mem::{Access, Privilege, guard};
use crate::stop::Stop;
use crate::uop::branch::{JumpCache, Patch};
use crate::uop::moves::is_simple;
use crate::uop::{Left, Uop, stack};
use crate::{Cpu, mode::Mode};

/// The value of [`Hot::limit`] that ends the run.
const KICK: i64 = i64::MAX;

/// The value of [`Hot::limit`] that makes the run loop look for events.
const ATTENTION: i64 = i64::MAX - 1;

/// How often a block is built anew while somebody else changes its bytes; then its first
/// instruction is executed outside of blocks.
const REBUILDS: usize = 4;

/// Bytes of the longest instruction (SDM Vol. 2A, "Instruction Format").
const LONGEST_INSN: usize = 15;

/// How many instructions a portion of a repeated string instruction stands for.
const PORTION_INSNS: u64 = 1024;

/// Portions of repeated string instructions that a run may take, however small its budget.
const FEW_PORTIONS: u64 = 16;

/// Work of a turn of the run loop, beyond what is counted elsewhere; see [`Slice::work`].
const TURN_WORK: i64 = 1;
/// Work of the delivery of an exception.
const DELIVERY_WORK: i64 = 5;
/// Work of building a block, and of each instruction in it.
const BLOCK_WORK: i64 = 5;
const INSN_WORK: i64 = 2;

/// Bytes of the longest block.
const LONGEST_BLOCK: usize = block::MAX_INSNS * LONGEST_INSN;

/// Registers of the run loop that micro-ops use at every block.
pub(crate) struct Hot {
    /// Instructions left, minus those of the blocks that were entered.
    pub(crate) budget: i64,
    /// A block is not entered if that would take the budget below this: 0, or more if another
    /// thread wants something.
    pub(crate) limit: Arc<AtomicI64>,
    /// The number of retired instructions when `budget` is used up.
    pub(crate) end: u64,
    /// Moves when code may have changed without a store of this processor.
    pub(crate) epoch: u64,
    /// Whether the current instruction wrote to a line that holds decoded code.
    pub(crate) code_written: bool,
    /// Why handlers returned.
    pub(crate) left: Left,
    /// Address-space context of hot memory accesses; [`NO_CONTEXT`] sends them the slow way.
    pub(crate) context: u64,
    /// The micro-op that accessed memory last.
    pub(crate) at: Current,
    /// What entries of `jumps` must be tagged with to count.
    pub(crate) jump_tag: u64,
    pub(crate) jumps: JumpCache,
    /// The link to write when the block at `state.rip` is found.
    pub(crate) patch: Patch,
}

/// A micro-op of a block that this processor's cache owns; read only while that block runs.
pub(crate) struct Current(pub(crate) *const Uop);

// SAFETY: the pointer is followed by the processor that owns the block, which goes with it.
unsafe impl Send for Current {}

impl Default for Current {
    fn default() -> Self {
        Self(core::ptr::null())
    }
}

/// The run loop's own state; none of it is architectural.
#[derive(Default)]
pub(crate) struct Engine {
    pub(crate) blocks: BlockCache,
    /// Instructions in no block.
    pub(crate) fetched: Fetched,
    /// [`crate::mem::phys::PhysMap::code_marks`] as last seen.
    code_marks: u64,
    /// The reason behind [`Left::Fault`].
    pub(crate) fault: Option<Fault>,
    /// Portions of repeated string instructions that were not the last, in this run.
    pub(crate) portions: u64,
    /// Work that is left to the slice; see [`Slice::work`].
    patience: i64,
    /// See [`Cpu::set_only_processors_write`].
    only_processors_write: bool,
    /// The local APIC had no interrupt when it was last asked, and nobody has called attention or
    /// begun a run since.
    pub(crate) is_apic_quiet: bool,
}

impl Default for Hot {
    fn default() -> Self {
        Self {
            budget: 0,
            limit: Arc::default(),
            end: 0,
            epoch: 0,
            code_written: false,
            left: Left::Onward,
            context: NO_CONTEXT,
            at: Current::default(),
            jump_tag: 0,
            jumps: JumpCache::default(),
            patch: Patch::NONE,
        }
    }
}

/// How far a processor runs until it is asked whether it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Instructions: up to 63 more are executed, to the end of a block.
    pub instructions: u64,
    /// What takes much longer than an instruction of hot code, in units of about 100 nanoseconds:
    /// building blocks, walking paging structures, delivering events, portions of repeated string
    /// instructions. It is counted, not measured, so that a run can be repeated.
    pub work: u32,
}

/// Ends a processor's run from any thread.
#[derive(Clone, Debug)]
pub struct Kicker(Arc<AtomicI64>);

impl Kicker {
    /// Makes [`Cpu::run`] return [`Stop::Kick`]: the present run at the next block, or if there is
    /// none the next run before its first instruction.
    pub fn kick(&self) {
        self.0.store(KICK, Ordering::Release);
    }

    /// Makes a running processor look for events (a changed interrupt line) at the next block.
    pub fn call_attention(&self) {
        self.0.fetch_max(ATTENTION, Ordering::Release);
    }
}

impl Cpu {
    /// Returns a handle with which any thread can end a run of this processor.
    #[must_use]
    pub fn kicker(&self) -> Kicker {
        Kicker(Arc::clone(&self.hot.limit))
    }

    /// Returns the number of instructions retired since the processor was made.
    #[must_use]
    pub fn retired(&self) -> u64 {
        self.retired
    }

    /// Runs until something stops the processor, at most `budget` instructions: fewer if repeated
    /// string instructions, each of which counts as one, take much longer than others.
    pub fn run(&mut self, budget: u64) -> Stop {
        self.run_with_slack(budget, 0)
    }

    /// As [`Self::run`], but ends behind a whole block: up to 63 instructions later. Exactness
    /// costs a look around at each of the last instructions.
    pub fn run_whole_blocks(&mut self, budget: u64) -> Stop {
        self.run_with_slack(budget, block::MAX_INSNS as u64 - 1)
    }

    fn run_with_slack(&mut self, budget: u64, slack: u64) -> Stop {
        self.begin_run();
        self.be_patient();
        self.run_slice(budget, slack)
    }

    /// Allows any amount of work: there is no slice.
    pub(crate) fn be_patient(&mut self) {
        self.engine.patience = i64::MAX;
    }

    /// Runs until something stops the processor. At the end of each slice `next` says how long the
    /// next one is; if there is none the answer is [`Stop::Budget`]. Unlike a number of calls
    /// of [`Self::run`] this does not expect memory to have been written from outside
    /// in between.
    pub fn run_in_slices(&mut self, first: Slice, next: &mut dyn FnMut() -> Option<Slice>) -> Stop {
        self.begin_run();
        let mut slice = first;
        loop {
            self.engine.patience = i64::from(slice.work);
            let stop = self.run_slice(slice.instructions, block::MAX_INSNS as u64 - 1);
            if stop != Stop::Budget {
                return stop;
            }
            let Some(following) = next() else {
                return stop;
            };
            slice = following;
        }
    }

    fn begin_run(&mut self) {
        self.engine.is_apic_quiet = false;
        self.outside_may_have_written();
    }

    /// Notes work of a slice; see [`Slice::work`].
    pub(crate) fn note_work(&mut self, work: i64) {
        self.engine.patience -= work;
        if !self.has_patience() {
            // The next block is not entered.
            self.hot.limit.fetch_max(ATTENTION, Ordering::Relaxed);
        }
    }

    /// Whether the slice has work left.
    pub(crate) fn has_patience(&self) -> bool {
        self.engine.patience >= 0
    }

    fn run_slice(&mut self, budget: u64, slack: u64) -> Stop {
        let end = self.retired.saturating_add(budget.min(i64::MAX as u64 / 2));
        let deliveries = self.events.deliveries().saturating_add(budget);
        let portions = (budget / PORTION_INSNS).max(FEW_PORTIONS);
        self.engine.portions = 0;
        loop {
            // An endless row of faulting handlers retires nothing, a long repetition little.
            let is_late = self.engine.portions >= portions || !self.has_patience();
            if self.events.deliveries() > deliveries || is_late {
                return Stop::Budget;
            }
            self.engine.patience -= TURN_WORK;
            let mut result = self.run_once(end, slack);
            if let Err(Fault::Exception(exception)) = result {
                self.engine.patience -= DELIVERY_WORK;
                result = self.raise(exception);
            }
            if let Err(Fault::VmExit) = result {
                result = self.complete_vm_exit();
            }
            if result.is_err() {
                return self.take_stop();
            }
        }
    }

    pub(crate) fn take_stop(&mut self) -> Stop {
        self.pending_stop.take().unwrap_or(Stop::Kick)
    }

    /// Handles what is pending at this instruction boundary, then runs blocks.
    fn run_once(&mut self, end: u64, slack: u64) -> Exec {
        self.hot.code_written = false;
        self.look_around(end)?;
        if self.attend()? == Boundary::Delivered {
            self.outside_may_have_written();
            return Ok(());
        }
        self.check_endbranch()?;
        let end = self.timer_horizon(end.saturating_add(slack));
        if !self.needs_step() {
            self.run_blocks(end, false)?;
            self.commit_shadow();
            return Ok(());
        }
        let step = self.begin_step();
        self.run_blocks(end, true)?;
        self.end_step(step);
        Ok(())
    }

    /// Runs blocks from RIP until they leave.
    fn run_blocks(&mut self, end: u64, is_step: bool) -> Exec {
        let left = end.wrapping_sub(self.retired) as i64;
        // Stepping builds no long block at each instruction.
        let mut block = self.find_block(is_step || left == 1)?;
        // SAFETY: the cache owns the block until the next call of `find_block`.
        if block.is_some_and(|b| unsafe { (*b).count() } as i64 > left) {
            block = self.find_block(true)?;
        }
        let Some(block) = block else {
            return self.execute_outside_blocks();
        };
        self.hot.end = end;
        // SAFETY: as above.
        let block = unsafe { &*block };
        let (entry, count) = (block.entry(), block.count());
        self.hot.budget = left - count as i64;
        // SAFETY: `entry` is the first micro-op of a block of this processor's cache.
        let failed = unsafe { guard::enter(self, entry) };
        if let Some(host) = failed {
            self.abandon(host);
        }
        self.retired = end.wrapping_sub(self.hot.budget as u64);
        match self.hot.left {
            Left::Onward => Ok(()),
            Left::Fault => self.engine.fault.take().map_or(Ok(()), Err),
        }
    }

    /// Says whether guest memory is written by processors only: then nothing else is looked for at
    /// each access to a device and at the beginning of each run. Who writes nevertheless calls
    /// [`Self::outside_has_written`] before the next run.
    pub fn set_only_processors_write(&mut self, only: bool) {
        self.engine.only_processors_write = only;
    }

    /// Notes that memory has been written other than by a processor: decoded code is compared with
    /// memory before it runs again.
    pub fn outside_has_written(&mut self) {
        self.hot.epoch = self.hot.epoch.wrapping_add(1);
    }

    /// As [`Self::outside_has_written`], unless only processors write.
    pub(crate) fn outside_may_have_written(&mut self) {
        if !self.engine.only_processors_write {
            self.outside_has_written();
        }
    }

    /// Looks for kicks, stops, events and the end of the budget.
    fn look_around(&mut self, end: u64) -> Exec {
        if self.hot.limit.load(Ordering::Relaxed) != 0 {
            self.engine.is_apic_quiet = false;
            if self.hot.limit.swap(0, Ordering::Acquire) == KICK {
                return Err(self.kicked());
            }
        }
        self.refresh_map();
        let marks = self.phys.code_marks();
        if marks != self.engine.code_marks {
            self.engine.code_marks = marks;
            self.tlb.protect_all();
        }
        if self.pending_stop.is_some() {
            return Err(Fault::Stop);
        }
        if self.retired >= end {
            return Err(self.stop(Stop::Budget));
        }
        Ok(())
    }

    /// Returns the block at RIP, valid now; `None` if the instruction there cannot be in a block.
    fn find_block(&mut self, is_step: bool) -> Exec<Option<*const Block>> {
        if self.engine.blocks.is_full() {
            self.drop_blocks();
        }
        let rip = self.state.rip;
        let linear = self.linear(SegmentRegister::Cs, rip, 1, Access::Execute)?;
        let address = self.translate(linear, Access::Execute, Privilege::Current)?;
        let mode = self.code_mode(is_step);
        let key = Key {
            address,
            rip,
            mode: self.engine.blocks.mode_number(&mode),
        };
        let found = match self.engine.blocks.get(&key) {
            Some(block) if block.is_valid(self.hot.epoch) => Some(core::ptr::from_ref(block)),
            Some(block) if self.is_as_in_memory(block) => Some(core::ptr::from_ref(block)),
            _ => self.validate_block(key, &mode),
        };
        if let Some(block) = found {
            self.prepare(block, &key, &mode);
        }
        Ok(found)
    }

    /// Sets what hot micro-ops need, and remembers how `block` is found.
    fn prepare(&mut self, block: *const Block, key: &Key, mode: &CodeMode) {
        let context = self.context();
        self.hot.context = if self.needs_slow_accesses() {
            NO_CONTEXT
        } else {
            context
        };
        self.hot.jumps.note_numberings(self.tlb.numberings());
        self.hot.jump_tag = u64::from(key.mode) << 12 | context;
        // SAFETY: the cache owns the block.
        let block = unsafe { &*block };
        let patch = std::mem::replace(&mut self.hot.patch, Patch::NONE);
        if !mode.is_step {
            let linear = mode.cs_base.wrapping_add(key.rip) & mode.rip_mask();
            let tag = self.hot.jump_tag;
            self.hot.jumps.enter(key.rip, tag, block.entry(), linear);
            patch.apply(block);
        }
    }

    /// Whether every data access has to be looked at: none may use the TLB directly.
    pub(crate) fn needs_slow_accesses(&self) -> bool {
        let checks_alignment = self.state.cr0.contains(Cr0::AM)
            && self.state.rflags.contains(Rflags::AC)
            && self.cpl() == 3;
        checks_alignment || self.state.dr7 & 0xff != 0
    }

    /// Drops all blocks, and what leads to them. Only between runs of handlers.
    pub(crate) fn drop_blocks(&mut self) {
        self.engine.blocks.clear();
        self.engine.fetched.clear();
        self.hot.jumps.clear();
        self.hot.patch = Patch::NONE;
    }

    /// Compares a block with memory that is marked as code already; it is valid then.
    pub(crate) fn is_as_in_memory(&self, block: &Block) -> bool {
        let (offset, bytes) = (block.address.page_offset(), &block.bytes);
        let Some(ram) = self.view.page(block.address) else {
            return false;
        };
        match ram.code.marked_generation(offset, bytes.len()) {
            Some(generation) if ram.holds(offset, bytes) => {
                block.validate(self.hot.epoch.wrapping_add(generation));
                true
            }
            _ => false,
        }
    }

    /// Compares the block of `key` with memory, and builds it if it is not there or differs.
    #[cold]
    fn validate_block(&mut self, key: Key, mode: &CodeMode) -> Option<*const Block> {
        for _ in 0..REBUILDS {
            if self.engine.blocks.get(&key).is_none() {
                let ram = self.view.page(key.address)?;
                let offset = key.address.page_offset();
                let mut bytes = [0; LONGEST_BLOCK];
                let room = block::max_insns(mode) * LONGEST_INSN;
                let bytes = &mut bytes[..room.min(4096 - offset as usize)];
                if !ram.read(offset, bytes) {
                    return None;
                }
                let features = self.cpuid.features();
                let generation = ram.code.generation();
                let block = block::build(&key, mode, &features, bytes, generation)?;
                self.engine.patience -= BLOCK_WORK + INSN_WORK * block.count() as i64;
                self.engine.blocks.insert(key, block);
            }
            let block = self.engine.blocks.get(&key)?;
            let ram = self.view.page(key.address)?;
            let (offset, length) = (key.address.page_offset(), block.bytes.len());
            if ram.code.mark(offset, length) {
                self.tlb.protect_host_page(ram.host.as_ptr() as u64);
                let marks = self.phys.code_marked(&self.hot.limit, ATTENTION);
                if marks == self.engine.code_marks {
                    self.engine.code_marks = marks + 1;
                }
            }
            let generation = ram.code.generation().load(Ordering::SeqCst);
            if ram.holds(offset, &block.bytes) {
                block.validate(self.hot.epoch.wrapping_add(generation));
                return Some(block);
            }
            self.engine.blocks.retire(&key);
        }
        None
    }

    /// Returns which segment registers are flat and readable, and flat and writable.
    fn flat_segments(&self) -> (u8, u8) {
        let (mut read, mut write) = (0, 0);
        for (n, s) in self.state.segments[..6].iter().enumerate() {
            if s.base != 0 || s.limit != u32::MAX {
                continue;
            }
            let rights = s.access;
            let is_readable = is_simple(rights.0, false)
                || rights.is_code() && rights.is_readable() && !rights.is_unusable();
            read |= u8::from(is_readable) << n;
            write |= u8::from(is_simple(rights.0, true)) << n;
        }
        (read, write)
    }

    /// Returns what code at RIP has to be decoded for.
    fn code_mode(&self, is_step: bool) -> CodeMode {
        let is_long = self.mode() == Mode::Long;
        let cs = self.state.segment(SegmentRegister::Cs);
        let (flat_read, flat_write) = if is_long {
            (0, 0)
        } else {
            self.flat_segments()
        };
        let is_flat = flat_write >> SegmentRegister::Ss as u32 & 1 != 0;
        let is_big = self.state.segment(SegmentRegister::Ss).access.is_big();
        let stack = match (is_long, is_flat && is_big) {
            (true, _) => stack::LONG,
            (false, true) => stack::FLAT,
            (false, false) => stack::SEGMENTED,
        };
        CodeMode {
            cs_base: if is_long { 0 } else { cs.base },
            cs_limit: if is_long {
                u64::MAX
            } else {
                u64::from(cs.limit)
            },
            bits: self.code_bits(),
            is_step,
            flat_read,
            flat_write,
            stack,
            has_sse: self.check_sse().is_ok(),
            has_vex: self.mode().has_vex(),
            has_avx: self.check_avx().is_ok(),
            is_cet_active: self.is_cet_active(),
            has_x87: !self.state.cr0.intersects(Cr0::EM | Cr0::TS),
        }
    }
}

const _: () = {
    const fn is_send<T: Send>() {}
    is_send::<Cpu>();
};

#[cfg(test)]
pub(crate) mod tests;
