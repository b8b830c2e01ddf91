//! Waiting for a store: MONITOR, MWAIT.
//!
//! SDM Vol. 3A, "MONITOR/MWAIT Instruction"; Vol. 2: the instructions. Stores are not watched: a
//! processor that waits compares the monitored line with what it held when it was armed, and ends
//! its wait without a cause now and then, for the sake of stores that leave it as it was.

use iced_x86::{Code, Mnemonic};
use vmx_model::addr::Hpa;
use vmx_model::event::Exception;
use vmx_model::intercept::Instruction;

use super::{Row, Traits};
use crate::insn::{Insn, Plain};
use crate::mem::{Access, Privilege};
use crate::stop::Stop;
use crate::{Cpu, Exec};

/// IA32_MISC_ENABLE: MONITOR and MWAIT are enabled.
const MISC_ENABLE_MONITOR: u64 = 1 << 18;
/// ECX of MWAIT: interrupts end the wait even if they are masked.
const INTERRUPT_BREAK: u32 = 1;
/// Bytes of the monitored range, as CPUID leaf 5 reports them.
const LINE_BYTES: usize = 64;
/// How often a waiting processor looks before its wait ends without a cause.
const PATIENCE: u32 = 64;

/// What MONITOR armed.
#[derive(Clone, Copy, Debug)]
struct Line {
    at: Hpa,
    held: [u8; LINE_BYTES],
}

/// A wait of MWAIT.
#[derive(Clone, Copy, Debug)]
struct Wait {
    line: Line,
    ends_by_masked_interrupt: bool,
    looks_left: u32,
}

/// The monitor hardware; none of it is saved with the processor's state.
#[derive(Clone, Debug, Default)]
pub(crate) struct Monitor {
    /// See [`Cpu::set_waits_at_mwait`].
    is_in_use: bool,
    armed: Option<Line>,
    wait: Option<Wait>,
}

impl Monitor {
    /// Whether the processor is in a wait.
    pub(crate) fn is_waiting(&self) -> bool {
        self.wait.is_some()
    }

    /// Ends a wait.
    pub(crate) fn wake(&mut self) {
        self.wait = None;
    }
}

/// Returns who executes an instruction of this file.
pub(crate) fn lookup(code: Code) -> Option<Row> {
    let (plain, traits): (Plain, Traits) = match code.mnemonic() {
        Mnemonic::Monitor => (monitor, Traits::empty()),
        Mnemonic::Mwait => (mwait, Traits::ENDS_BLOCK),
        _ => return None,
    };
    Some(Row { plain, traits })
}

/// MONITOR: a byte load from DS:rAX.
fn monitor(cpu: &mut Cpu, insn: &Insn) -> Exec {
    require_monitor(cpu)?;
    cpu.ask(Instruction::Monitor, insn)?;
    if cpu.gpr[1] as u32 != 0 {
        return Err(Exception::gp(0).into());
    }
    let offset = cpu.address_register(0, insn.address_bytes);
    let linear = cpu.linear(insn.memory.segment, offset, 1, Access::Read)?;
    let physical = cpu.translate(linear, Access::Read, Privilege::Current)?;
    cpu.events.is_monitoring = true;
    if cpu.monitor.is_in_use {
        let at = Hpa(physical.0 & !(LINE_BYTES as u64 - 1));
        cpu.monitor.armed = cpu.line(at).map(|held| Line { at, held });
    }
    Ok(())
}

/// MWAIT. Choice: unless the host program lets it wait, it behaves as if a store or another event
/// had ended the wait at once; that is always allowed. Its VM exit tells whether the range is
/// monitored; what has been stored there is seen only if the processor would wait.
fn mwait(cpu: &mut Cpu, insn: &Insn) -> Exec {
    require_monitor(cpu)?;
    let line = cpu.monitor.armed;
    let is_as_it_was = line.is_none_or(|line| cpu.line(line.at) == Some(line.held));
    let is_armed = cpu.events.is_monitoring && is_as_it_was;
    cpu.ask_about(Instruction::Mwait, insn, is_armed.into(), 0)?;
    let extensions = cpu.gpr[1] as u32;
    if extensions & !INTERRUPT_BREAK != 0 {
        return Err(Exception::gp(0).into());
    }
    cpu.events.is_monitoring = false;
    cpu.monitor.wait = cpu.monitor.armed.take().map(|line| Wait {
        line,
        ends_by_masked_interrupt: extensions & INTERRUPT_BREAK != 0,
        looks_left: PATIENCE,
    });
    Ok(())
}

/// #UD unless the CPL is 0 and MONITOR is enabled.
fn require_monitor(cpu: &Cpu) -> Exec {
    if cpu.cpl() != 0 || cpu.msrs.misc_enable & MISC_ENABLE_MONITOR == 0 {
        return Err(Exception::UD.into());
    }
    Ok(())
}

impl Cpu {
    /// Says whether MWAIT waits: then [`Self::run`] returns [`Stop::Wait`] as long as the wait
    /// lasts, and goes on with the wait, or behind it, when it is called again.
    pub fn set_waits_at_mwait(&mut self, waits: bool) {
        self.monitor = Monitor {
            is_in_use: waits,
            ..Monitor::default()
        };
    }

    /// Ends the monitoring of an address, as VM entry does.
    pub(crate) fn end_monitoring(&mut self) {
        self.events.is_monitoring = false;
        self.monitor.armed = None;
    }

    /// Goes on with a wait that no event has ended.
    ///
    /// # Errors
    /// [`Stop::Wait`] while it lasts.
    pub(crate) fn attend_to_wait(&mut self) -> Exec {
        let Some(wait) = &mut self.monitor.wait else {
            return Ok(());
        };
        wait.looks_left = wait.looks_left.saturating_sub(1);
        let wait = *wait;
        let is_over = wait.looks_left == 0
            || self.line(wait.line.at) != Some(wait.line.held)
            || wait.ends_by_masked_interrupt && self.has_external_interrupt();
        if is_over {
            self.monitor.wake();
            return Ok(());
        }
        Err(self.stop(Stop::Wait))
    }

    /// Returns what a line of RAM holds.
    fn line(&self, at: Hpa) -> Option<[u8; LINE_BYTES]> {
        let mut held = [0; LINE_BYTES];
        let ram = self.view.page(at)?;
        ram.read(at.page_offset(), &mut held).then_some(held)
    }
}

#[cfg(test)]
mod tests {
    use iced_x86::code_asm::*;
    use vmx_model::addr::Hpa;

    use crate::run::tests::{Bits, processor};
    use crate::test_cpu::{DATA, GP, UD, execute, long_mode, user};
    use crate::{Cpu, Stop};

    const MONITOR: [u8; 3] = [0x0f, 0x01, 0xc8];
    const MWAIT: [u8; 3] = [0x0f, 0x01, 0xc9];
    /// The monitored line of [`waiting`].
    const LINE: u64 = 0x4000;

    #[test]
    fn both_are_undefined_in_user_mode() {
        for code in [MONITOR, MWAIT] {
            let mut cpu = long_mode();
            cpu.gpr[0] = DATA;
            assert_eq!(execute(&mut cpu, &code), Ok(()));
            assert_eq!(execute(&mut user(cpu), &code), UD);
        }
    }

    #[test]
    fn both_refuse_unknown_extensions() {
        let mut cpu = long_mode();
        cpu.gpr[1] = 1;
        assert_eq!(execute(&mut cpu, &MONITOR), GP);
        assert_eq!(execute(&mut cpu, &MWAIT), Ok(()));
        cpu.gpr[1] = 2;
        assert_eq!(execute(&mut cpu, &MWAIT), GP);
        cpu.msrs.misc_enable = 0;
        assert_eq!(execute(&mut cpu, &MONITOR), UD);
    }

    /// A processor that has executed MONITOR and then MWAIT with these extensions; HLT follows.
    fn waiting(extensions: u32) -> Cpu {
        let mut a = CodeAssembler::new(32).expect("32-bit code");
        let result = (|| {
            a.mov(eax, LINE as i32 + 8)?;
            a.xor(ecx, ecx)?;
            a.monitor()?;
            a.mov(ecx, extensions)?;
            a.mwait()?;
            a.hlt()?;
            a.assemble(crate::run::tests::CODE)
        })();
        let mut cpu = processor(Bits::Flat32, 16, &result.expect("it assembles"));
        cpu.set_waits_at_mwait(true);
        assert_eq!(cpu.run(100), Stop::Wait);
        assert_eq!(cpu.retired(), 5);
        cpu
    }

    #[test]
    fn a_wait_lasts_until_a_store_to_the_line() {
        let mut cpu = waiting(0);
        cpu.set_interrupt_line(Some(32));
        assert_eq!(cpu.run(100), Stop::Wait, "RFLAGS.IF is clear");
        cpu.phys.write_bytes(Hpa(LINE + 64), &[1]);
        assert_eq!(cpu.run(100), Stop::Wait, "another line");
        cpu.phys.write_bytes(Hpa(LINE + 63), &[1]);
        assert_eq!((cpu.run(100), cpu.retired()), (Stop::Halt, 6));
    }

    #[test]
    fn a_masked_interrupt_ends_a_wait_that_asks_for_it() {
        let mut cpu = waiting(1);
        assert_eq!(cpu.run(100), Stop::Wait);
        cpu.set_interrupt_line(Some(32));
        assert_eq!((cpu.run(100), cpu.retired()), (Stop::Halt, 6));
    }

    #[test]
    fn a_wait_ends_in_the_end() {
        let mut cpu = waiting(0);
        let runs = (0..1000).take_while(|_| cpu.run(100) == Stop::Wait).count();
        assert!((10..100).contains(&runs), "{runs}");
    }

    #[test]
    fn mwait_does_not_wait_without_monitor_or_permission() {
        let mut cpu = processor(Bits::Flat32, 16, &[0x0f, 0x01, 0xc9, 0xf4]);
        cpu.set_waits_at_mwait(true);
        assert_eq!((cpu.run(100), cpu.retired()), (Stop::Halt, 2));
        let mut cpu = long_mode();
        cpu.gpr[0] = DATA;
        assert_eq!(execute(&mut cpu, &MONITOR), Ok(()));
        assert_eq!(execute(&mut cpu, &MWAIT), Ok(()));
        assert!(!cpu.monitor.is_waiting());
    }
}
