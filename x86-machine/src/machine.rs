//! The bare machine: processors, RAM and a board of devices, for images that want the processor
//! for themselves. A hypervisor in the image is in VMX root operation directly.
//!
//! All processors take turns on one thread, each for at most `QUANTUM` instructions: under
//! [`ClockSource::Instructions`] the same image gives the same run. Time is the time-stamp counter
//! of all processors: a turn begins when the one before it has ended, so that no processor ever
//! reads a time that another one has left behind.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use vmx_model::addr::Hpa;
use vmx_model::arch::Activity;
use vmx_model::capability::VmxProfile;
use vmx_model::processor::LogicalProcessor;
use vmx_model::registry::{CpuId, VmcsRegistry};
use vmx_model::sanitizer::{Report, Sanitizer};
use x86_interp::bus::{Clock, HostClock};
use x86_interp::cpuid::Profile;
use x86_interp::mem::phys::{OwnedRam, PhysMap};
use x86_interp::stop::Unimplemented;
use x86_interp::vmx::RootSoftware;
use x86_interp::{Cpu, Stop};

use crate::acpi;
use crate::board::{Board, End, Seat, Signals, lock};
use crate::clock::MachineClock;
use crate::loader::{self, Image, Memory};
use crate::serial::Serial;

/// The longest turn of a processor, in instructions.
const QUANTUM: u64 = 2000;
/// How long nothing may happen, in ticks, while a halted guest may wait for its preemption timer.
const PATIENCE: u64 = 1 << 34;
/// Where RAM below 4 GiB ends at the latest.
const RAM_LIMIT: u64 = 0xc000_0000;
/// A window of RAM that test environments use as memory of a device.
const TEST_MEMORY: Hpa = Hpa(0xff00_0000);

/// What the real-time clock shows at tick 0 of a run that is to be the same each time: the first
/// second of 2025.
const DETERMINISTIC_EPOCH: i64 = 1_735_689_600;

fn seconds_since_1970() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |time| time.as_secs() as i64)
}

/// What time is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClockSource {
    /// One tick per instruction: the same in every run.
    #[default]
    Instructions,
    /// The host's monotonic clock, as a TSC of 1 GHz.
    Host,
}

/// What the machine is made of.
#[derive(Clone, Debug)]
pub struct Config {
    /// Processors, 1 to 255.
    pub cpus: usize,
    /// RAM in MiB.
    pub memory_mib: u64,
    /// What time is.
    pub clock: ClockSource,
    /// What CPUID reports.
    pub cpuid: &'static Profile,
    /// The VMX capabilities.
    pub vmx: VmxProfile,
    /// Whether uses of VMCSs that the SDM leaves undefined are reported.
    pub sanitizes: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            cpus: 1,
            memory_mib: 128,
            clock: ClockSource::default(),
            cpuid: &Profile::DEFAULT,
            vmx: VmxProfile::emulator_default(),
            sanitizes: false,
        }
    }
}

/// Why a machine cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConfigError {
    /// No processor, or more than an APIC ID can number.
    Processors,
    /// No memory, or more than the host gives.
    Memory,
}

impl core::fmt::Display for ConfigError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Processors => "a machine has 1 to 255 processors",
            Self::Memory => "there is no memory of this size",
        })
    }
}

impl core::error::Error for ConfigError {}

/// Why [`Machine::run`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Outcome {
    /// The image ended the machine.
    End(End),
    /// A processor is in the shutdown state: a triple fault outside VMX non-root operation.
    Shutdown(CpuId),
    /// Every processor waits for an event, and none is coming.
    Idle,
    /// A processor does not implement an instruction that its CPUID offers.
    Unimplemented(CpuId, Unimplemented),
    /// A VMX abort, with its indicator.
    VmxAbort(CpuId, u32),
    /// The limit of ticks is reached.
    Limit,
    /// A processor stopped for a reason that a bare machine does not have.
    Unexpected(CpuId, Stop),
}

struct Seated {
    cpu: Box<Cpu>,
    clock: MachineClock,
    rest: Rest,
}

/// Whether a processor had something to do in its last turn.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rest {
    None,
    /// It stopped at HLT, or waits for a start-up IPI.
    Halted,
    /// It waits at MWAIT, but not for ever.
    AtMwait,
}

/// The far end of a machine's serial line.
#[derive(Clone)]
pub struct SerialLine(Arc<Mutex<Board>>);

impl SerialLine {
    /// Sends bytes to the machine, which keeps them until it reads them.
    pub fn send(&self, bytes: &[u8]) {
        lock(&self.0).receive(bytes);
    }

    /// Returns how many bytes the machine has not read.
    #[must_use]
    pub fn unread(&self) -> usize {
        lock(&self.0).serial.unread()
    }
}

/// A machine.
pub struct Machine {
    board: Arc<Mutex<Board>>,
    cpus: Vec<Seated>,
    phys: Arc<PhysMap>,
    low_bytes: u64,
    high_bytes: u64,
    host_clock: Option<HostClock>,
    now: u64,
    sanitizer: Option<Sanitizer>,
}

impl Machine {
    /// Returns a machine after RESET; what its serial port transmits goes to `serial`.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn new(config: &Config, serial: Box<dyn Write + Send>) -> Result<Self, ConfigError> {
        if !(1..256).contains(&config.cpus) {
            return Err(ConfigError::Processors);
        }
        let (phys, low_bytes) = make_memory(config.memory_mib)?;
        let began = match config.clock {
            ClockSource::Instructions => DETERMINISTIC_EPOCH,
            ClockSource::Host => seconds_since_1970(),
        };
        let ram_bytes = config.memory_mib << 20;
        let mut board = Board::new(config.cpus, ram_bytes, Serial::new(serial), began);
        board.apics[0].enter_virtual_wire_mode();
        let tables = acpi::tables(config.cpus);
        if acpi::RSDP + tables.len() as u64 <= low_bytes {
            phys.write_bytes(Hpa(acpi::RSDP), &tables);
        }
        let mut machine = Self {
            board: Arc::new(Mutex::new(board)),
            cpus: Vec::new(),
            phys,
            low_bytes,
            high_bytes: ram_bytes - low_bytes,
            host_clock: (config.clock == ClockSource::Host).then(|| HostClock::new(1_000_000)),
            now: 0,
            sanitizer: config
                .sanitizes
                .then(|| Sanitizer::new(config.vmx.caps.clone())),
        };
        let registry = VmcsRegistry::new();
        for n in 0..config.cpus {
            machine.add_processor(n, config, &registry);
        }
        Ok(machine)
    }

    fn add_processor(&mut self, n: usize, config: &Config, registry: &Arc<VmcsRegistry>) {
        let clock = MachineClock::new(self.host_clock);
        let seat = Seat::new(&self.board, n, clock.clone());
        let bus = Box::new(seat.clone());
        let its_clock = Box::new(clock.clone());
        let mut cpu = Box::new(Cpu::new(Arc::clone(&self.phys), bus, its_clock));
        cpu.set_cpuid(config.cpuid.table());
        cpu.set_local_apic(Box::new(seat));
        // No device of the board writes memory; what others write is noted in `run`.
        cpu.set_only_processors_write(true);
        cpu.set_waits_at_mwait(true);
        cpu.system_registers_mut().apic_id = n as u32;
        let mut vmx = config.vmx.clone();
        vmx.facts = cpu.cpuid_table().facts();
        cpu.set_vmx_capabilities(vmx.caps.clone());
        let id = CpuId(n as u32);
        let mut processor = LogicalProcessor::new(id, Arc::new(vmx), Arc::clone(registry));
        if let Some(sanitizer) = &self.sanitizer {
            let _ = processor.set_observer(Some(Box::new(sanitizer.clone())));
        }
        let _ = cpu.attach_processor(Box::new(processor), RootSoftware::Guest);
        if n != 0 {
            // An application processor: not the BSP, and waiting for a start-up IPI.
            cpu.msrs_mut().apic_base &= !0x100;
            let mut state = cpu.arch_state();
            state.activity = Activity::WaitForSipi;
            cpu.set_arch_state(&state);
        }
        lock(&self.board).kickers.push(cpu.kicker());
        self.cpus.push(Seated {
            cpu,
            clock,
            rest: Rest::None,
        });
    }

    /// Loads an image, which the bootstrap processor is going to enter.
    ///
    /// # Errors
    /// See [`loader::Error`].
    pub fn load(&mut self, image: &Image) -> Result<(), loader::Error> {
        let memory = Memory {
            phys: &self.phys,
            bytes: self.low_bytes,
            high_bytes: self.high_bytes,
        };
        let bootstrap = &mut self.cpus[0].cpu;
        let entry = loader::load(image, &memory, &bootstrap.arch_state())?;
        bootstrap.set_arch_state(&entry.state);
        bootstrap.set_general_registers(&entry.registers);
        Ok(())
    }

    /// Returns the memory.
    #[must_use]
    pub fn memory(&self) -> &PhysMap {
        &self.phys
    }

    /// Returns a processor, for looking at it.
    #[must_use]
    pub fn processor(&self, n: usize) -> Option<&Cpu> {
        self.cpus.get(n).map(|seated| &*seated.cpu)
    }

    /// Returns the far end of the serial line, from which any thread can send.
    #[must_use]
    pub fn serial_line(&self) -> SerialLine {
        SerialLine(Arc::clone(&self.board))
    }

    /// Takes the sanitizer's reports.
    #[must_use]
    pub fn take_reports(&self) -> Vec<Report> {
        self.sanitizer
            .as_ref()
            .map(Sanitizer::take_reports)
            .unwrap_or_default()
    }

    /// Runs until the machine ends, or its time reaches `limit_ticks`.
    pub fn run(&mut self, limit_ticks: u64) -> Outcome {
        let mut quiet_since = self.now;
        for seated in &mut self.cpus {
            seated.cpu.outside_has_written();
        }
        loop {
            let start = self.now;
            for n in 0..self.cpus.len() {
                match self.take_turn(n, self.now) {
                    Ok(ran) => self.now += ran,
                    Err(outcome) => return outcome,
                }
                if let Some(end) = lock(&self.board).end {
                    return Outcome::End(end);
                }
            }
            if self.now != start {
                quiet_since = self.now;
            } else if let Some(outcome) = self.wait(quiet_since) {
                return outcome;
            }
            self.look_at_clock();
            if self.now >= limit_ticks {
                return Outcome::Limit;
            }
        }
    }

    fn look_at_clock(&mut self) {
        if let Some(host) = &mut self.host_clock {
            self.now = host.tsc(0);
        }
        lock(&self.board).advance(self.now);
    }

    /// Lets a processor run; returns how many instructions it has retired.
    fn take_turn(&mut self, n: usize, start: u64) -> Result<u64, Outcome> {
        let first = self.cpus[n].cpu.retired();
        self.cpus[n].clock.set(first, start);
        let mut left = QUANTUM;
        loop {
            let elapsed = self.cpus[n].cpu.retired() - first;
            let expires = self.attend(n, start + elapsed);
            let within = expires.map_or(left, |at| at.saturating_sub(start + elapsed));
            let budget = left.min(within.max(1));
            let before = self.cpus[n].cpu.retired();
            let stop = self.cpus[n].cpu.run_whole_blocks(budget);
            let ran = self.cpus[n].cpu.retired() - before;
            left = left.saturating_sub(ran);
            let rest = match stop {
                Stop::Halt => Rest::Halted,
                Stop::Wait => Rest::AtMwait,
                _ => Rest::None,
            };
            self.cpus[n].rest = rest;
            let is_over = left == 0 || rest != Rest::None || stop == Stop::Budget && ran == 0;
            if let Some(outcome) = outcome_of(CpuId(n as u32), stop) {
                return Err(outcome);
            }
            if is_over || lock(&self.board).end.is_some() {
                return Ok(self.cpus[n].cpu.retired() - first);
            }
        }
    }

    /// Hands a processor what has come for it, and lets its timer see the time; returns when that
    /// expires.
    fn attend(&mut self, n: usize, now: u64) -> Option<u64> {
        let cpu = &mut self.cpus[n].cpu;
        let now = if self.host_clock.is_some() {
            self.now
        } else {
            now
        };
        let mut board = lock(&self.board);
        board.advance(now);
        let signals = std::mem::take(&mut board.signals[n]);
        let apic = &mut board.apics[n];
        if signals.timer {
            apic.start_timer(now);
        }
        if let Some(deadline) = signals.deadline {
            let offset = cpu.msrs().tsc_offset;
            let is_off = deadline == 0;
            apic.set_tsc_deadline(if is_off {
                0
            } else {
                deadline.wrapping_sub(offset).max(1)
            });
        }
        if apic.advance(now).clears_deadline {
            cpu.msrs_mut().tsc_deadline = 0;
        }
        let expires = apic.expires();
        let event = if n == 0 { board.next_event() } else { None };
        let expires = [expires, event].into_iter().flatten().min();
        drop(board);
        signal(cpu, signals);
        expires
    }

    /// Nobody could run: the time goes on to the next expiry of a timer.
    fn wait(&mut self, quiet_since: u64) -> Option<Outcome> {
        let board = lock(&self.board);
        let has_signals = board.signals.iter().any(|s| !s.is_empty());
        let wakes = (0..self.cpus.len()).any(|n| board.has_interrupt(n));
        let timers = board.apics.iter().filter_map(|a| a.expires());
        let next = timers.chain(board.next_event()).min();
        drop(board);
        if has_signals || self.cpus.iter().any(|c| c.rest == Rest::None) {
            self.now += 1;
            return None;
        }
        let has_guest = self.cpus.iter().any(|c| c.cpu.is_non_root());
        match next {
            Some(at) if !has_guest => self.now = at.max(self.now + 1),
            Some(at) => self.now = at.clamp(self.now + 1, self.now + QUANTUM),
            None if has_guest && self.now - quiet_since < PATIENCE => self.now += QUANTUM,
            None if self.cpus.iter().any(|c| c.rest == Rest::AtMwait) => self.now += QUANTUM,
            None if wakes && self.now == quiet_since => self.now += 1,
            None => return Some(Outcome::Idle),
        }
        if self.host_clock.is_some() {
            std::thread::sleep(Duration::from_micros(100));
        }
        None
    }
}

fn make_memory(mib: u64) -> Result<(Arc<PhysMap>, u64), ConfigError> {
    let bytes = mib.checked_mul(1 << 20).ok_or(ConfigError::Memory)?;
    let low = bytes.min(RAM_LIMIT);
    let phys = PhysMap::new();
    let pieces = [
        (Hpa(0), low),
        (Hpa(1 << 32), bytes - low),
        (TEST_MEMORY, 0x1_0000),
    ];
    for (base, bytes) in pieces.into_iter().filter(|p| p.1 != 0) {
        let ram = OwnedRam::new((bytes / 4096) as usize).ok_or(ConfigError::Memory)?;
        phys.add_owned(base, Arc::new(ram))
            .map_err(|_| ConfigError::Memory)?;
    }
    if low == 0 {
        Err(ConfigError::Memory)
    } else {
        Ok((phys, low))
    }
}

fn signal(cpu: &mut Cpu, signals: Signals) {
    if signals.nmi {
        cpu.inject_nmi();
    }
    if signals.init {
        cpu.signal_init();
    }
    if let Some(vector) = signals.start_up {
        cpu.signal_start_up(vector);
    }
}

/// What ends the machine, of what stops a processor.
fn outcome_of(cpu: CpuId, stop: Stop) -> Option<Outcome> {
    Some(match stop {
        Stop::Budget | Stop::Kick | Stop::Halt | Stop::Wait => return None,
        Stop::Shutdown => Outcome::Shutdown(cpu),
        Stop::Unimplemented(which) => Outcome::Unimplemented(cpu, which),
        Stop::VmxAbort(indicator) => Outcome::VmxAbort(cpu, indicator),
        Stop::VmExit | Stop::Suspended | Stop::HostFault(_) => Outcome::Unexpected(cpu, stop),
    })
}
