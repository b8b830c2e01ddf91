//! The state after RESET, INIT and a start-up IPI.
//!
//! SDM Vol. 3A, "Processor State After Reset", table "IA-32 and Intel 64 Processor States
//! Following Power-up, Reset, or INIT", and "MP Initialization Protocol Algorithm".

use vmx_model::arch::{
    AccessRights, Activity, ArchState, Cr0, DescriptorTable, Interruptibility, Rflags, Segment,
    SegmentRegister,
};

use crate::Cpu;
use crate::events::Events;
use crate::fpu::FpuState;
use crate::msr::Msrs;
use crate::system::{DR6_FIXED1, SystemRegisters};

/// Access rights of a data segment and, after RESET, of CS: present, read/write, accessed.
const READ_WRITE: AccessRights = AccessRights(0x93);
/// IA32_PAT after RESET (SDM Vol. 3A, "Programming the PAT").
const PAT_RESET: u64 = 0x0007_0406_0007_0406;
/// Returns the architectural state after RESET.
pub(crate) fn reset_state() -> ArchState {
    let mut state = ArchState {
        cr0: Cr0::CD | Cr0::NW | Cr0::ET,
        pat: PAT_RESET,
        ..ArchState::default()
    };
    init_registers(&mut state);
    state
}

/// Sets what RESET and INIT set alike.
fn init_registers(state: &mut ArchState) {
    state.cr3 = 0;
    state.cr4 = Default::default();
    state.efer = Default::default();
    state.dr7 = 0x400;
    state.rsp = 0;
    state.rip = 0xfff0;
    state.rflags = Rflags::FIXED1;
    state.segments = [data_segment(0); 8];
    *state.segment_mut(SegmentRegister::Cs) = Segment {
        base: 0xffff_0000,
        ..data_segment(0xf000)
    };
    state.segment_mut(SegmentRegister::Ldtr).access = AccessRights(0x82);
    state.segment_mut(SegmentRegister::Tr).access = AccessRights(0x8b);
    state.gdtr = DescriptorTable {
        base: 0,
        limit: 0xffff,
    };
    state.idtr = state.gdtr;
    state.activity = Activity::Active;
    state.interruptibility = Interruptibility::empty();
    state.pending_debug = 0;
    state.pdptes = [0; 4];
    state.s_cet = 0;
    state.ssp = 0;
    state.interrupt_ssp_table = 0;
}

fn data_segment(selector: u16) -> Segment {
    Segment {
        base: u64::from(selector) << 4,
        limit: 0xffff,
        access: READ_WRITE,
        selector,
    }
}

impl Cpu {
    /// Puts the processor into the state after RESET.
    pub fn reset(&mut self) {
        self.state = reset_state();
        self.system = SystemRegisters {
            apic_id: self.system.apic_id,
            random: self.system.random,
            ..SystemRegisters::default()
        };
        self.msrs = Msrs {
            bios_sign_id: self.msrs.bios_sign_id,
            vmx: self.msrs.vmx.clone(),
            // The TSC starts at 0.
            tsc_offset: self.clock.tsc(self.retired).wrapping_neg(),
            ..Msrs::default()
        };
        *self.fpu = FpuState::default();
        self.clear_registers();
    }

    /// Puts the processor into the state after INIT: like RESET, but the cache bits of CR0, the
    /// MSRs other than those of CET and the FPU state stay.
    pub fn init(&mut self) {
        let cache_bits = self.state.cr0.intersection(Cr0::CD | Cr0::NW);
        init_registers(&mut self.state);
        self.state.cr0 = cache_bits | Cr0::ET;
        self.system.cr2 = 0;
        self.system.breakpoints = [0; 4];
        self.system.dr6 = DR6_FIXED1;
        self.msrs.u_cet = 0;
        self.msrs.pl_ssp = [0; 4];
        self.clear_registers();
    }

    /// Starts a processor that waits for a start-up IPI at `vector` x 4096 in real-address mode.
    pub fn start_up(&mut self, vector: u8) {
        let selector = u16::from(vector) << 8;
        *self.state.segment_mut(SegmentRegister::Cs) = data_segment(selector);
        self.state.rip = 0;
        self.next_rip = 0;
        self.state.activity = Activity::Active;
    }

    fn clear_registers(&mut self) {
        self.gpr = [0; 18];
        let signature = self.cpuid.find(1, 0).map(|entry| entry.eax);
        self.gpr[2] = u64::from(signature.unwrap_or_default());
        self.next_rip = self.state.rip;
        self.events = Events::default();
        self.delivering = None;
        self.flush_tlb_all();
        self.set_rflags(Rflags::FIXED1);
    }
}
