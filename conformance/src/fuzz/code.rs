//! Random bytes and random instructions as guest code, from random states, in every mode, on the
//! emulator: whatever they are, KVM_RUN returns, and what it returns is an exit or an errno that a
//! guest can cause. Memory lies between pages that nobody may touch.

use super::{Case, Target};
use crate::backend::emulated::EmulatedKernel;
use crate::backend::host::SystemBackend;
use crate::backend::{Backend, Errno, Outcome};
use crate::guest::{Machine, Mode, layout};
use crate::probe::{Probe, Words};
use crate::requests::{KVM_GET_SREGS, KVM_SET_FPU, KVM_SET_REGS, KVM_SET_SREGS, KVM_SET_XCRS};
use kvm_bindings::{kvm_fpu, kvm_regs, kvm_sregs, kvm_xcrs};
use std::panic::{AssertUnwindSafe, catch_unwind};
use zerocopy::IntoBytes;

const MODES: [Mode; 10] = [
    Mode::Real,
    Mode::Protected16,
    Mode::Protected32,
    Mode::User32,
    Mode::Paged32,
    Mode::PagedPse,
    Mode::PagedPae,
    Mode::Long,
    Mode::LongUser,
    Mode::Compatibility,
];

/// The bytes of code.
const LENGTH: usize = 64;
/// The runs of a case, and how long each may last.
const RUNS: u32 = 24;
const RUN_LIMIT_MS: u32 = 10;
/// The KVM_EXIT_* that a guest can cause: IO, DEBUG, HLT, MMIO, SHUTDOWN, FAIL_ENTRY, SET_TPR,
/// INTERNAL_ERROR.
const EXITS: [u64; 8] = [IO, 4, 5, MMIO, 8, 9, 11, 17];
/// Bits of CR4.
const OSFXSR: u64 = 1 << 9;
const OSXSAVE: u64 = 1 << 18;
const IO: u64 = 2;
const MMIO: u64 = 6;

/// Executes random bytes and instructions.
pub struct Code {
    backend: SystemBackend<EmulatedKernel>,
    exits: std::collections::BTreeMap<u64, u64>,
    endless: u64,
}

impl Default for Code {
    fn default() -> Code {
        let backend = SystemBackend::new(EmulatedKernel);
        Code {
            backend,
            exits: std::collections::BTreeMap::new(),
            endless: 0,
        }
    }
}

/// Random numbers (SplitMix64).
struct Random {
    seed: u64,
    number: u64,
}

impl Random {
    fn new(seed: u64) -> Random {
        Random { seed, number: 0 }
    }

    fn next(&mut self) -> u64 {
        self.number += 1;
        super::mix(self.seed, self.number)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn pick(&mut self, of: &[u8]) -> u8 {
        of[self.below(of.len() as u64) as usize]
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        let words = std::iter::repeat_with(|| self.next().to_le_bytes());
        words
            .take(length.div_ceil(8))
            .flatten()
            .take(length)
            .collect()
    }

    /// A register: an address in memory or at its edge, a boundary, anything.
    fn register(&mut self) -> u64 {
        match self.below(8) {
            0 => self.next(),
            1 => layout::MEMORY - self.below(64),
            2 => (1 << self.below(64)) - self.below(2),
            3 => self.below(256),
            _ => self.below(layout::MEMORY),
        }
    }

    /// The bytes of something like an instruction: prefixes, an opcode of any map, ModRM and more.
    fn instruction(&mut self, code: &mut Vec<u8>) {
        const PREFIXES: [u8; 11] = [
            0x66, 0x67, 0xf2, 0xf3, 0xf0, 0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65,
        ];
        while self.one_in(4) {
            code.push(self.pick(&PREFIXES));
        }
        match self.below(12) {
            0..4 => code.push(self.next() as u8),
            4..7 => code.extend([0x0f, self.next() as u8]),
            7 => code.extend([0x0f, self.pick(&[0x38, 0x3a]), self.next() as u8]),
            8 => {
                // VEX of a map that exists.
                let map = 0xe0 | (1 + self.below(3)) as u8;
                code.extend([0xc4, map, self.next() as u8 & 0x7f, self.next() as u8]);
            }
            9 => {
                let map = (self.next() as u8 & 0xf0) | self.pick(&[1, 2, 3]);
                code.extend([0x62, map, self.next() as u8 | 4]);
                code.extend([self.next() as u8, self.next() as u8]);
            }
            10 => code.extend([0xc5, self.next() as u8, self.next() as u8]),
            _ => code.extend([0x40 | self.below(16) as u8, self.next() as u8]),
        }
        code.extend(
            self.next()
                .to_le_bytes()
                .iter()
                .take(self.below(7) as usize),
        );
    }

    /// The code of a case: any bytes, or instructions.
    fn code(&mut self) -> Vec<u8> {
        if self.one_in(4) {
            return self.bytes(LENGTH);
        }
        let mut code = Vec::new();
        while code.len() < LENGTH {
            self.instruction(&mut code);
        }
        code
    }
}

impl Code {
    /// What each run of a case gave: the outcome, and the exit reason.
    fn execute(&mut self, mode: Mode, code: &[u8], random: &mut Random) -> Vec<(Outcome, u64)> {
        self.backend.reset();
        let mut ignore = |_: &crate::probe::Record| {};
        let mut probe = Probe::new(&mut self.backend, "code", &mut ignore);
        let machine = Machine::new(&mut probe, mode);
        machine.poke(&mut probe, layout::DATA, &random.bytes(0x2000));
        machine.poke(&mut probe, layout::CODE, code);
        randomize_system(&mut probe, &machine, random);
        randomize_registers(&mut probe, &machine, random);
        let mut seen = Vec::new();
        for _ in 0..RUNS {
            let outcome = probe.run(machine.vcpu, RUN_LIMIT_MS);
            let reason = probe.read_number(machine.run, 8, 4);
            seen.push((outcome, reason));
            if outcome.is_err() {
                break;
            }
            if reason == u64::from(kvm_bindings::KVM_EXIT_FAIL_ENTRY) {
                break;
            }
            // An exit for I/O goes on sometimes, as if the device had answered with what is there.
            let goes_on = reason == IO || reason == MMIO;
            if !goes_on || random.one_in(4) {
                machine.poke(&mut probe, layout::CODE, &random.code());
                randomize_registers(&mut probe, &machine, random);
            }
        }
        seen
    }
}

/// All general registers, RIP in the code, flags that are often a few only.
fn randomize_registers(probe: &mut Probe<'_>, machine: &Machine, random: &mut Random) {
    let mut regs = kvm_regs::default();
    for word in regs.as_mut_bytes().chunks_exact_mut(8) {
        word.copy_from_slice(&random.register().to_le_bytes());
    }
    let start = random.below(LENGTH as u64);
    regs.rip = layout::CODE + if random.one_in(2) { 0 } else { start };
    let flags = match random.below(32) {
        0 => random.next(),
        1..8 => random.next() & 0x24_4fd5,
        _ => random.next() & 0xcd5,
    };
    regs.rflags = flags | 2;
    let _ = probe.set(machine.vcpu, KVM_SET_REGS, &regs);
}

/// CPUID, some bits of the system registers, XCR0, and the floating-point state. What KVM refuses
/// stays as it is.
fn randomize_system(probe: &mut Probe<'_>, machine: &Machine, random: &mut Random) {
    if random.one_in(2) {
        let _ = machine.adopt_cpuid(probe);
        let mut sregs: kvm_sregs = probe.read_struct(machine.vcpu, KVM_GET_SREGS);
        sregs.cr4 |= OSFXSR | OSXSAVE;
        let _ = probe.set(machine.vcpu, KVM_SET_SREGS, &sregs);
        let xcr0 = [7, 0xe7][random.below(2) as usize];
        let words = Words::sized(size_of::<kvm_xcrs>()).u32(0, 1).u64(16, xcr0);
        let _ = probe.send(machine.vcpu, KVM_SET_XCRS, words);
    }
    if random.one_in(3) {
        let mut sregs: kvm_sregs = probe.read_struct(machine.vcpu, KVM_GET_SREGS);
        let bytes = sregs.as_mut_bytes();
        for _ in 0..=random.below(3) {
            let at = random.below(bytes.len() as u64) as usize;
            bytes[at] ^= 1 << random.below(8);
        }
        let _ = probe.set(machine.vcpu, KVM_SET_SREGS, &sregs);
    }
    if random.one_in(2) {
        let fpu = random.bytes(size_of::<kvm_fpu>());
        let _ = probe.send(machine.vcpu, KVM_SET_FPU, fpu);
    }
}

impl Target for Code {
    fn name(&self) -> &'static str {
        "code"
    }

    fn run(&mut self, case: Case) -> Result<(), String> {
        let mode = MODES[(case.number % MODES.len() as u64) as usize];
        let mut random = Random::new(case.seed);
        let code = random.code();
        let described = || format!("{mode:?}, begins with {}", crate::probe::hex(&code));
        let seen = catch_unwind(AssertUnwindSafe(|| self.execute(mode, &code, &mut random)));
        let seen = seen.map_err(|_| format!("panic: {}", described()))?;
        for (outcome, reason) in seen {
            match outcome {
                Ok(0) if EXITS.contains(&reason) => *self.exits.entry(reason).or_default() += 1,
                Err(Errno(libc::EINTR)) => self.endless += 1,
                _ => return Err(format!("{outcome:?}, exit {reason}: {}", described())),
            }
        }
        Ok(())
    }

    fn summary(&self) -> String {
        let exits: Vec<String> = self
            .exits
            .iter()
            .map(|(reason, count)| format!("{count} of reason {reason}"))
            .collect();
        format!(
            "exits: {}; {} endless runs ended by a signal",
            exits.join(", "),
            self.endless
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_bytes_do_no_harm() {
        let mut target = Code::default();
        for number in 0..200 {
            assert_eq!(
                target.run(Case {
                    number,
                    seed: super::super::mix(9, number)
                }),
                Ok(())
            );
        }
        assert!(
            target.exits.values().sum::<u64>() > 100,
            "{}",
            target.summary()
        );
    }
}
