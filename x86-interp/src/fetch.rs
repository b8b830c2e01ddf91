//! Fetching an instruction outside of blocks: one that lies in two pages, or not in RAM.
//!
//! How long an instruction is, only its bytes tell: behind the first page they are fetched one by
//! one, so that none is fetched that is not needed. What lies in two pages and was decoded before
//! is known again by its bytes.

use iced_x86::Decoder;
use vmx_model::arch::SegmentRegister;
use vmx_model::event::Exception;

use crate::insn::Insn;
use crate::mem::{Access, Privilege};
use crate::mode::Mode;
use crate::stop::{Stop, Unimplemented};
use crate::{Cpu, Exec, decode, exec};

/// How many instructions are remembered.
const KNOWN: usize = 64;

/// An instruction that was fetched byte by byte.
struct Known {
    rip: u64,
    /// What it was decoded for: the mode, and the default size of the code.
    mode: (Mode, u32),
    bytes: [u8; 15],
    insn: Insn,
}

/// Instructions that were fetched byte by byte, by the page of their RIP.
#[derive(Default)]
pub(crate) struct Fetched(Vec<Option<Known>>);

impl Fetched {
    fn index(rip: u64) -> usize {
        (rip >> 12) as usize % KNOWN
    }

    /// Forgets everything: what instructions there are may have changed.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    fn get(&self, rip: u64, mode: (Mode, u32)) -> Option<&Known> {
        let known = self.0.get(Self::index(rip))?.as_ref()?;
        (known.rip == rip && known.mode == mode).then_some(known)
    }

    fn enter(&mut self, known: Known) {
        self.0.resize_with(KNOWN, || None);
        let index = Self::index(known.rip);
        self.0[index] = Some(known);
    }
}

/// What the bytes at RIP are.
pub(crate) enum Decoded {
    /// An instruction.
    Insn(Insn),
    /// No instruction that the processor has.
    Undefined,
    /// More bytes than an instruction may have.
    TooLong,
    /// An instruction that nobody executes.
    Unimplemented(Unimplemented),
}

impl Cpu {
    /// Goes on fetching as long as the bytes are those of the instruction that was here before;
    /// returns it if all are.
    fn fetch_known(&mut self, bytes: &mut [u8; 15], have: &mut usize) -> Exec<Option<Insn>> {
        let mode = (self.mode(), self.code_bits());
        let Some(known) = self.engine.fetched.get(self.state.rip, mode) else {
            return Ok(None);
        };
        let (expected, insn) = (known.bytes, known.insn.clone());
        let length = usize::from(insn.length);
        while bytes[..*have] == expected[..*have] && *have < length {
            bytes[*have] = self.fetch_byte(*have)?;
            *have += 1;
        }
        let is_known = bytes[..length] == expected[..length] && *have == length;
        Ok(is_known.then_some(insn))
    }

    /// Remembers an instruction that does not lie in one page.
    fn remember_fetched(&mut self, insn: &Insn, bytes: [u8; 15]) {
        let rip = self.state.rip;
        let last = rip.wrapping_add(u64::from(insn.length) - 1);
        if rip >> 12 != last >> 12 {
            let mode = (self.mode(), self.code_bits());
            self.engine.fetched.enter(Known {
                rip,
                mode,
                bytes,
                insn: insn.clone(),
            });
        }
    }

    /// Fetches byte number `n` of the instruction at RIP.
    fn fetch_byte(&mut self, n: usize) -> Exec<u8> {
        let at = self.state.rip.wrapping_add(n as u64) & self.rip_mask();
        let linear = self.linear(SegmentRegister::Cs, at, 1, Access::Execute)?;
        let mut byte = [0];
        self.load_bytes_linear(linear, &mut byte, Access::Execute, Privilege::Current)?;
        Ok(byte[0])
    }

    /// Whether these bytes are the beginning of an instruction that is longer.
    fn needs_more(&self, bytes: &[u8]) -> bool {
        let options = self.cpuid.features().decoder_options();
        let mut decoder = Decoder::with_ip(self.code_bits(), bytes, 0, options);
        decoder.decode().is_invalid() && decoder.last_error() == iced_x86::DecoderError::NoMoreBytes
    }

    /// Fetches and decodes the instruction at RIP.
    pub(crate) fn fetch(&mut self) -> Exec<Insn> {
        match self.decode_next()? {
            Decoded::Insn(insn) => Ok(insn),
            Decoded::Undefined => Err(Exception::UD.into()),
            Decoded::TooLong => Err(Exception::gp(0).into()),
            Decoded::Unimplemented(what) => Err(self.stop(Stop::Unimplemented(what))),
        }
    }

    /// Fetches the bytes at RIP, and says what they are.
    ///
    /// # Errors
    /// The fault of the fetch.
    pub(crate) fn decode_next(&mut self) -> Exec<Decoded> {
        let mut bytes = [0; 15];
        let rip = self.state.rip;
        let mut have = self.fetch_from_page(&mut bytes[..14])?;
        if let Some(insn) = self.fetch_known(&mut bytes, &mut have)? {
            return Ok(Decoded::Insn(insn));
        }
        loop {
            let options = self.cpuid.features().decoder_options();
            let mut decoder = Decoder::with_ip(self.code_bits(), &bytes[..have], rip, options);
            let i = decoder.decode();
            if !i.is_invalid() {
                let features = self.cpuid.features();
                if !decode::exists(i.code(), &features, self.mode().has_vex()) {
                    return Ok(Decoded::Undefined);
                }
                let Some(row) = exec::lookup(i.code()) else {
                    let length = i.len() as u8;
                    return Ok(Decoded::Unimplemented(Unimplemented { rip, bytes, length }));
                };
                let insn = decode::resolve(&i, row.plain);
                self.remember_fetched(&insn, bytes);
                return Ok(Decoded::Insn(insn));
            }
            if have == 15 && self.needs_more(&bytes[1..]) {
                return Ok(Decoded::TooLong);
            }
            if decoder.last_error() != iced_x86::DecoderError::NoMoreBytes {
                return Ok(Decoded::Undefined);
            }
            bytes[have] = self.fetch_byte(have)?;
            have += 1;
        }
    }

    /// Fills `bytes` with what the page at RIP has inside the limit of CS, if it is RAM; returns
    /// how much that is. Elsewhere a byte is fetched only when the decoder asks for it.
    fn fetch_from_page(&mut self, bytes: &mut [u8]) -> Exec<usize> {
        let rip = self.state.rip;
        let linear = self.linear(SegmentRegister::Cs, rip, 1, Access::Execute)?;
        let at = self.translate(linear, Access::Execute, Privilege::Current)?;
        let last = match self.mode() {
            Mode::Long => u64::MAX,
            _ => u64::from(self.state.segment(SegmentRegister::Cs).limit).min(self.rip_mask()),
        };
        let Some(ram) = self.view.page(at) else {
            return Ok(0);
        };
        let room = (4096 - at.page_offset()).min(last.wrapping_sub(rip).saturating_add(1));
        let count = bytes.len().min(room as usize);
        if !ram.read(at.page_offset(), &mut bytes[..count]) {
            return Err(self.host_fault(at));
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use vmx_model::addr::Hpa;

    use crate::run::tests::{Bits, processor};
    use crate::{Cpu, Stop};

    /// Three bytes before the end of a page.
    const AT: u64 = 0x1ffd;

    /// Executes the instruction at [`AT`], after a write of `bytes` to it; returns EAX and how far
    /// RIP went.
    fn execute(cpu: &mut Cpu, bytes: &[u8]) -> (u64, u64) {
        cpu.phys.write_bytes(Hpa(AT), bytes);
        let mut state = cpu.arch_state();
        state.rip = AT;
        cpu.set_arch_state(&state);
        cpu.outside_has_written();
        assert_eq!(cpu.run(1), Stop::Budget);
        (cpu.general_registers()[0], cpu.arch_state().rip - AT)
    }

    #[test]
    fn an_instruction_in_two_pages_is_what_its_bytes_are_now() {
        let mut cpu = processor(Bits::Flat32, 16, &[]);
        // MOV EAX, imm32, the same again, and with other bytes in the second page.
        for value in [0x1234_5678_u32, 0x1234_5678, 0x4321_5678, 0x4321_5679] {
            let mut code = vec![0xb8];
            code.extend(value.to_le_bytes());
            assert_eq!(execute(&mut cpu, &code), (value.into(), 5));
        }
        // A longer one and a shorter one with the same beginning: LEA.
        assert_eq!(execute(&mut cpu, &[0x8d, 0x84, 0x20, 1, 0, 0, 0]).1, 7);
        assert_eq!(execute(&mut cpu, &[0x8d, 0x84, 0x20, 2, 0, 0, 0]).1, 7);
        assert_eq!(execute(&mut cpu, &[0x8d, 0x44, 0x20, 1]).1, 4);
        assert_eq!(execute(&mut cpu, &[0x8d, 0x40, 0x20]).1, 3);
        assert_eq!(execute(&mut cpu, &[0x8d, 0x44, 0x20, 2]).1, 4);
    }
}
