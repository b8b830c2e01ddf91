//! Guest programs, written with an assembler, each with its result computed natively.
//!
//! Convention: (E)DI is the number of iterations (at least 1), (E)SI the address of
//! [`DATA_BYTES`] bytes of zeroed RAM aligned to 4 KiB, the stack is valid; the result is in RAX
//! (EAX for 32-bit code), the program ends with RET and may change every other register.

mod avx;
mod flat32;
mod integer;
mod memory;
mod sha256;
mod sse;
mod vm;
mod vmx;
mod x87;

use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, qword_ptr, rax, rsi};

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
    /// SSE and SSE2.
    Sse,
    /// AVX, AVX2, FMA and BMI.
    Avx,
    /// The x87.
    X87,
    /// VMX instructions: the program is a hypervisor.
    Vmx,
}

impl Group {
    /// All groups.
    pub const ALL: [Self; 6] = [
        Self::Integer,
        Self::Rep,
        Self::Sse,
        Self::Avx,
        Self::X87,
        Self::Vmx,
    ];

    /// Returns its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Integer => "integer",
            Self::Rep => "rep",
            Self::Sse => "sse",
            Self::Avx => "avx",
            Self::X87 => "x87",
            Self::Vmx => "vmx",
        }
    }

    /// Whether its programs need CR4.OSFXSR and CR0.MP, and CR0.EM clear.
    #[must_use]
    pub const fn is_floating_point(self) -> bool {
        matches!(self, Self::Sse | Self::Avx | Self::X87)
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

/// Position, velocity and time step of the planet of `orbit` and `orbit87`.
const ORBIT: [f64; 5] = [1.0, 0.125, -0.25, 0.875, 0.001];

/// Writes [`ORBIT`] to the data area.
fn emit_orbit_data(a: &mut CodeAssembler) -> Result<(), IcedError> {
    for (n, value) in ORBIT.into_iter().enumerate() {
        a.mov(rax, value.to_bits())?;
        a.mov(qword_ptr(rsi + 8 * n), rax)?;
    }
    Ok(())
}

/// The result of `orbit` and `orbit87`.
fn orbit(iterations: u32, _: u64) -> u64 {
    let [mut x, mut y, mut vx, mut vy, dt] = ORBIT;
    for _ in 0..iterations {
        let square = x * x + y * y;
        let pull = dt / (square * square.sqrt());
        vx -= x * pull;
        x += vx * dt;
        vy -= y * pull;
        y += vy * dt;
    }
    x.to_bits()
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
    sse::MANDEL,
    sse::ORBIT,
    sse::MATRIX,
    sse::BLEND,
    avx::MANDEL,
    avx::MATRIX,
    avx::SCAN,
    avx::BLEND,
    avx::BITS,
    x87::ORBIT87,
    x87::HORNER,
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
