//! A case, and what came of it.

use super::Bits;
use iced_x86::{Instruction, OpKind};
use std::fmt;
use x86_interp::fpu::FpuState;

/// The page of the instruction.
pub(super) const CODE: u64 = 0x1080_0000;
/// Bytes of the code page.
pub(super) const CODE_BYTES: usize = 4096;
/// Offset of the instruction in its page.
pub(super) const CODE_OFFSET: u64 = 0x800;
/// Two pages of data and stack, with nothing around them.
pub(super) const DATA: u64 = 0x1090_0000;
/// Bytes of data.
pub(super) const DATA_BYTES: usize = 8192;

/// Registers that both sides have.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct State {
    pub(super) gpr: [u64; 16],
    pub(super) rip: u64,
    pub(super) rflags: u64,
    pub(super) fpu: FpuState,
}

/// The state after an instruction, and the exception that it raised.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Outcome {
    pub(super) state: State,
    /// Vector, error code, address of a page fault.
    pub(super) exception: Option<(u8, u32, u64)>,
}

/// One instruction with the state that it starts from.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) bits: Bits,
    pub(super) instruction: Instruction,
    pub(super) bytes: Vec<u8>,
    pub(super) state: State,
    /// Where the data pages begin in the pool of values.
    pub(super) window: usize,
    /// What differs from the pool: offset in the data pages and byte.
    pub(super) patches: Vec<(u16, u8)>,
}

impl Case {
    /// Puts `bytes` into memory at `address`, as far as the data pages reach.
    pub(super) fn put(&mut self, address: u64, bytes: &[u8]) {
        for (n, &byte) in bytes.iter().enumerate() {
            let offset = address.wrapping_add(n as u64).wrapping_sub(DATA);
            if offset < DATA_BYTES as u64 {
                self.patches.push((offset as u16, byte));
            }
        }
    }

    /// Returns the address of the memory operand, the base of a VSIB operand.
    pub(super) fn address(&self) -> Option<u64> {
        let i = &self.instruction;
        let n = (0..i.op_count()).find(|&n| i.op_kind(n) == OpKind::Memory)?;
        i.virtual_address(n, 0, |r, _, _| match r {
            iced_x86::Register::AL => Some(self.state.gpr[0] & 0xff),
            _ if r.is_gpr64() => Some(self.state.gpr[r.number()]),
            _ if r.is_gpr32() => Some(self.state.gpr[r.number()] & 0xffff_ffff),
            _ if r.is_gpr16() => Some(self.state.gpr[r.number()] & 0xffff),
            _ => Some(0),
        })
    }

    /// Returns the memory before the instruction.
    pub(super) fn memory<'a>(&self, pool: &[u8], into: &'a mut [u8; DATA_BYTES]) -> &'a [u8] {
        into.copy_from_slice(&pool[self.window..self.window + DATA_BYTES]);
        for &(offset, byte) in &self.patches {
            into[usize::from(offset)] = byte;
        }
        into
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (code, s) = (self.instruction.code(), &self.state);
        write!(f, "{code:?} {:02x?}", self.bytes)?;
        write!(f, " flags {:#x}\n  gpr {:x?}", s.rflags, s.gpr)?;
        if let Some(address) = self.address() {
            write!(f, "\n  operand at {address:#x}")?;
        }
        write!(f, "\n  {}", describe(&s.fpu))
    }
}

/// The FPU in one line: control, status, tags, ST(0) to ST(7), MXCSR.
pub(super) fn describe(fpu: &FpuState) -> String {
    let st = (0..8).map(|i| hex(&fpu.registers[fpu.physical(i)]));
    let st: Vec<String> = st.collect();
    let (control, status, valid) = (fpu.control, fpu.status, fpu.valid);
    let mxcsr = fpu.mxcsr;
    format!(
        "fcw {control:04x} fsw {status:04x} valid {valid:02x} mxcsr {mxcsr:04x} st {}",
        st.join(" ")
    )
}

/// Bytes as one number.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().rev().map(|b| format!("{b:02x}")).collect()
}
