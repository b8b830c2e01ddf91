//! Guest programs, written with an assembler, each with its result computed natively.
//!
//! Convention: (E)DI is the number of iterations (at least 1), (E)SI the address of
//! [`DATA_BYTES`] bytes of zeroed RAM aligned to 4 KiB, the stack is valid; the result is in RAX
//! (EAX for 32-bit code), the program ends with RET and may change every other register.

mod flat32;
mod integer;
mod memory;
mod sha256;
mod vm;
mod vmx;

use iced_x86::IcedError;
use iced_x86::code_asm::CodeAssembler;

/// Size of the data area that a program may use.
pub const DATA_BYTES: u64 = 16 << 20;

/// What a program's code is written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bits {
    /// Flat 32-bit protected mode without paging.
    Flat32,
    /// 64-bit mode with 4-KiB pages.
    Long64,
}

/// What a program is mostly made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Integer instructions, memory and branches.
    Integer,
    /// REP, which does its work by the byte.
    Rep,
    /// VMX instructions: the program is a hypervisor.
    Vmx,
}

impl Group {
    /// All groups.
    pub const ALL: [Self; 3] = [Self::Integer, Self::Rep, Self::Vmx];

    /// Returns its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Integer => "integer",
            Self::Rep => "rep",
            Self::Vmx => "vmx",
        }
    }
}

/// A guest program.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    /// Its name.
    pub name: &'static str,
    /// What it does, in a few words.
    pub what: &'static str,
    /// Mode of its code.
    pub bits: Bits,
    /// Which geometric mean it counts for.
    pub group: Group,
    /// Iterations that take a fast engine some milliseconds.
    pub iterations: u32,
    emit: fn(&mut CodeAssembler) -> Result<(), IcedError>,
    expected: fn(iterations: u32, data: u64) -> u64,
}

impl Program {
    /// Returns the program's code for `origin`.
    ///
    /// # Panics
    /// Never: the programs are fixed, and a test assembles each.
    #[must_use]
    pub fn assemble(&self, origin: u64) -> Vec<u8> {
        let bitness = if self.bits == Bits::Long64 { 64 } else { 32 };
        let mut a = CodeAssembler::new(bitness).expect("32 and 64 are bitnesses");
        (self.emit)(&mut a).expect("a test assembles every program");
        a.assemble(origin).expect("a test assembles every program")
    }

    /// Returns the result for `iterations` with the data area at `data`.
    #[must_use]
    pub fn expected(&self, iterations: u32, data: u64) -> u64 {
        (self.expected)(iterations, data)
    }
}

/// All programs.
pub const PROGRAMS: &[Program] = &[
    integer::ALU,
    integer::SIEVE,
    integer::FIB,
    integer::CRC32,
    integer::QSORT,
    sha256::SHA256,
    vm::BYTECODE,
    memory::CHASE,
    memory::PAGES,
    memory::STRING,
    memory::REP,
    flat32::FLAT32,
    vmx::ROUND_TRIP,
    vmx::VMCS,
];

/// Returns the program of that name.
#[must_use]
pub fn by_name(name: &str) -> Option<&'static Program> {
    PROGRAMS.iter().find(|p| p.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_assembles_and_has_a_result_that_depends_on_the_iterations() {
        for p in PROGRAMS {
            assert!(!p.assemble(0x30000).is_empty(), "{}", p.name);
            assert_ne!(
                p.expected(1, 0x40_0000),
                p.expected(2, 0x40_0000),
                "{}",
                p.name
            );
        }
    }
}
