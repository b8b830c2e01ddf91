//! The processor.

use std::sync::Arc;

use vmx_model::addr::{Hpa, Linear};
use vmx_model::arch::{ArchState, Rflags, SegmentRegister};
use vmx_model::event::{Event, Exception};

use crate::bus::{Bus, Clock, LocalApic};
use crate::cpuid::{CpuidTable, Feature, Profile};
use crate::events::Events;
use crate::exec::monitor::Monitor;
use crate::fault::{Exec, Fault};
use crate::flags::LazyFlags;
use crate::fpu::FpuState;
use crate::insn::{Insn, Operand, RegisterOffset};
use crate::mem::phys::{PhysMap, View};
use crate::mem::tlb::Tlb;
use crate::mem::translate::CurrentContext;
use crate::mode::Mode;
use crate::msr::Msrs;
use crate::reset::reset_state;
use crate::run::{Engine, Hot};
use crate::stop::Stop;
use crate::system::SystemRegisters;
use crate::vmx::VmxContext;
use crate::width::Width;

/// General-purpose registers by number, a spare, and the register that is always zero.
pub(crate) type RegisterFile = [u64; 18];

/// One logical processor.
#[repr(C)]
pub struct Cpu {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8-R15, spare, zero.
    pub(crate) gpr: RegisterFile,
    pub(crate) hot: Hot,
    pub(crate) flags: LazyFlags,
    pub(crate) tlb: Tlb,
    pub(crate) current_context: CurrentContext,
    /// The rest of the architectural state. While the processor runs, `rsp` is stale (the register
    /// file has it) and the status flags of `rflags` may be (see [`Cpu::rflags`]).
    pub(crate) state: ArchState,
    /// Where execution goes on when the current instruction completes.
    pub(crate) next_rip: u64,
    /// Events that wait, and blocking of events.
    pub(crate) events: Events,
    /// The event in delivery: what a second exception is combined with, and what a VM exit reports
    /// as IDT-vectoring information.
    pub(crate) delivering: Option<Event>,
    pub(crate) phys: Arc<PhysMap>,
    /// The memory map as last seen.
    pub(crate) view: View,
    pub(crate) bus: Box<dyn Bus>,
    pub(crate) clock: Box<dyn Clock>,
    /// System registers outside `state`.
    pub(crate) system: SystemRegisters,
    /// x87, MMX, SSE and AVX registers.
    /// Behind a pointer, so that a hypervisor exchanges the registers at little cost.
    pub(crate) fpu: Box<FpuState>,
    /// MSRs outside `state`.
    pub(crate) msrs: Msrs,
    /// What CPUID reports.
    pub(crate) cpuid: CpuidTable,
    /// The local APIC, if one is attached.
    pub(crate) apic: Option<Box<dyn LocalApic>>,
    /// The reason behind [`Fault::Stop`].
    pub(crate) pending_stop: Option<Stop>,
    /// Instructions retired since the processor was made.
    pub(crate) retired: u64,
    pub(crate) engine: Engine,
    pub(crate) monitor: Monitor,
    /// VMX: the logical processor and what is pending for it.
    pub(crate) vmx: VmxContext,
}

impl Cpu {
    /// Returns a processor in the state after RESET, attached to memory, devices and a clock.
    #[must_use]
    pub fn new(phys: Arc<PhysMap>, bus: Box<dyn Bus>, clock: Box<dyn Clock>) -> Self {
        let hot = Hot::default();
        phys.attach(&hot.limit);
        Self {
            gpr: [0; 18],
            hot,
            flags: LazyFlags::default(),
            tlb: Tlb::default(),
            current_context: CurrentContext::default(),
            view: phys.view(),
            state: reset_state(),
            next_rip: 0,
            events: Events::default(),
            delivering: None,
            phys,
            bus,
            clock,
            system: SystemRegisters::default(),
            fpu: Box::default(),
            msrs: Msrs::default(),
            cpuid: Profile::DEFAULT.table(),
            apic: None,
            pending_stop: None,
            retired: 0,
            engine: Engine::default(),
            monitor: Monitor::default(),
            vmx: VmxContext::default(),
        }
    }

    /// Attaches a local APIC: it then holds CR8 and IA32_APIC_BASE.
    pub fn set_local_apic(&mut self, apic: Box<dyn LocalApic>) {
        self.apic = Some(apic);
    }

    /// Replaces what CPUID reports, and with it what instructions and control bits exist.
    pub fn set_cpuid(&mut self, table: CpuidTable) {
        self.cpuid = table;
        self.drop_blocks();
        self.flush_tlb_all();
    }

    /// Returns what CPUID reports, without the bits that depend on the processor's state.
    #[must_use]
    pub fn cpuid_table(&self) -> &CpuidTable {
        &self.cpuid
    }

    /// Whether CPUID offers `feature`.
    #[must_use]
    pub fn has(&self, feature: Feature) -> bool {
        self.cpuid.features().has(feature)
    }

    /// Returns RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    #[must_use]
    pub fn general_registers(&self) -> [u64; 16] {
        core::array::from_fn(|n| self.gpr[n])
    }

    /// Replaces RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub fn set_general_registers(&mut self, registers: &[u64; 16]) {
        self.gpr[..16].copy_from_slice(registers);
    }

    /// Returns the state that VM entry loads and VM exit saves, RSP and the status flags included.
    #[must_use]
    pub fn arch_state(&self) -> ArchState {
        ArchState {
            rsp: self.gpr[4],
            rflags: self.rflags(),
            ..self.state.clone()
        }
    }

    /// Makes `state` what [`Self::arch_state`] returns.
    pub(crate) fn bring_state_up_to_date(&mut self) {
        self.state.rsp = self.gpr[4];
        self.state.rflags = self.rflags();
    }

    /// Replaces the state that VM entry loads and VM exit saves, unchecked, and forgets all
    /// translations.
    pub fn set_arch_state(&mut self, state: &ArchState) {
        self.state = state.clone();
        self.gpr[4] = state.rsp;
        self.next_rip = state.rip;
        self.set_rflags(state.rflags);
        self.flush_tlb_all();
    }

    /// Returns the operating mode.
    #[must_use]
    pub fn mode(&self) -> Mode {
        Mode::of(&self.state)
    }

    /// Returns the current privilege level: the DPL of SS; 0 in real-address mode.
    #[must_use]
    pub fn cpl(&self) -> u8 {
        match self.mode() {
            Mode::Real => 0,
            _ => self.state.segment(SegmentRegister::Ss).access.dpl(),
        }
    }

    /// Whether `address` is canonical under the current paging mode.
    #[must_use]
    pub fn is_canonical(&self, address: u64) -> bool {
        let bits = if self.state.cr4.contains(vmx_model::arch::Cr4::LA57) {
            57
        } else {
            48
        };
        ((address << (64 - bits)) as i64 >> (64 - bits)) as u64 == address
    }

    /// Whether `address` is canonical in the widest paging mode that the processor has: what MSRs,
    /// bases of segments and tables, and invalidations take, whatever the paging mode is now.
    #[must_use]
    pub fn is_canonical_base(&self, address: u64) -> bool {
        self.cpuid.facts().is_canonical(address)
    }

    /// Reads a register-file slot.
    #[inline(always)]
    pub(crate) fn register<W: Width>(&self, offset: RegisterOffset) -> W {
        let shift = u32::from(offset & 7) * 8;
        W::from_u64(self.gpr[usize::from(offset >> 3)] >> shift)
    }

    /// Writes a register-file slot: a 32-bit write clears the upper half, narrower writes keep the
    /// rest.
    #[inline(always)]
    pub(crate) fn set_register<W: Width>(&mut self, offset: RegisterOffset, value: W) {
        let slot = &mut self.gpr[usize::from(offset >> 3)];
        let shift = u32::from(offset & 7) * 8;
        *slot = if W::BITS >= 32 {
            value.to_u64()
        } else {
            *slot & !(W::MASK << shift) | value.to_u64() << shift
        };
    }

    /// Returns RFLAGS with the status flags up to date.
    #[must_use]
    pub fn rflags(&self) -> Rflags {
        self.state.rflags.difference(Rflags::STATUS) | self.flags.to_rflags()
    }

    /// Replaces RFLAGS as a whole; bit 1 reads as one.
    pub fn set_rflags(&mut self, rflags: Rflags) {
        self.state.rflags = rflags | Rflags::FIXED1;
        self.flags = LazyFlags::from_rflags(rflags);
    }

    /// Replaces those flags of `mask` (status flags only) by the ones in `flags`.
    pub(crate) fn set_status(&mut self, mask: Rflags, flags: Rflags) {
        let kept = if mask.contains(Rflags::STATUS) {
            Rflags::empty()
        } else {
            self.flags.to_rflags().difference(mask)
        };
        self.flags = LazyFlags::from_rflags(kept | flags.intersection(mask));
    }

    /// Reads operand `n` of `insn`.
    pub(crate) fn read<W: Width>(&mut self, insn: &Insn, n: usize) -> Exec<W> {
        match insn.operands[n] {
            Operand::Register(r) => Ok(self.register(r)),
            Operand::Memory => {
                let offset = self.effective_address(insn);
                self.load(insn.memory.segment, offset)
            }
            Operand::Immediate(value) | Operand::Branch(value) => Ok(W::from_u64(value)),
            Operand::Segment(s) => Ok(W::from_u64(u64::from(self.state.segment(s).selector))),
            _ => Err(Exception::UD.into()),
        }
    }

    /// Reads operand `n`, which the instruction is going to write: a fault reports a write.
    pub(crate) fn read_for_update<W: Width>(&mut self, insn: &Insn, n: usize) -> Exec<W> {
        match insn.operands[n] {
            Operand::Memory => {
                let offset = self.effective_address(insn);
                self.load_for_update(insn.memory.segment, offset)
            }
            _ => self.read(insn, n),
        }
    }

    /// Writes operand `n`.
    pub(crate) fn write<W: Width>(&mut self, insn: &Insn, n: usize, value: W) -> Exec {
        match insn.operands[n] {
            Operand::Register(r) => {
                self.set_register(r, value);
                Ok(())
            }
            Operand::Memory => {
                let offset = self.effective_address(insn);
                self.store(insn.memory.segment, offset, value)
            }
            _ => Err(Exception::UD.into()),
        }
    }

    /// Records that the run loop has to return with `stop`.
    pub(crate) fn stop(&mut self, stop: Stop) -> Fault {
        self.pending_stop = Some(stop);
        Fault::Stop
    }

    /// Records that the host memory behind `at` cannot be accessed.
    #[cold]
    pub(crate) fn host_fault(&mut self, at: Hpa) -> Fault {
        self.stop(Stop::HostFault(at))
    }

    /// Records that the bus asked to be called again.
    pub(crate) fn suspend(&mut self) -> Fault {
        self.stop(Stop::Suspended)
    }

    /// Executes one instruction by its plain handler, without delivering what it raises.
    ///
    /// # Errors
    /// What ended the instruction.
    pub fn execute_plain(&mut self) -> Exec {
        self.be_patient();
        self.check_endbranch()?;
        self.execute_outside_blocks()
    }

    /// As [`Self::execute_plain`], within a slice, whose work it adds to.
    pub(crate) fn execute_outside_blocks(&mut self) -> Exec {
        self.refresh_map();
        let insn = self.fetch()?;
        self.next_rip = self.state.rip.wrapping_add(u64::from(insn.length)) & self.rip_mask();
        (insn.plain)(self, &insn)?;
        self.state.rip = self.next_rip;
        self.retired += 1;
        Ok(())
    }

    /// Returns the bits of RIP that count in the current mode.
    pub(crate) fn rip_mask(&self) -> u64 {
        crate::block::rip_mask(self.code_bits())
    }

    /// Returns the default operand and address size of the code: 16, 32 or 64.
    pub(crate) fn code_bits(&self) -> u32 {
        let cs = self.state.segment(SegmentRegister::Cs).access;
        match self.mode() {
            Mode::Long => 64,
            _ if cs.is_big() => 32,
            _ => 16,
        }
    }

    /// Returns the linear address of the current instruction.
    #[must_use]
    pub fn linear_rip(&self) -> Linear {
        let base = match self.mode() {
            Mode::Long => 0,
            _ => self.state.segment(SegmentRegister::Cs).base,
        };
        Linear(base.wrapping_add(self.state.rip))
    }
}
