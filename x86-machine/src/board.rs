//! The board: the devices that all processors share, the ports and addresses where they answer,
//! and the way of an interrupt message from its sender to the processors.
//!
//! [`Seat`] is a processor's place on the board; it implements what the processor asks for
//! ([`x86_interp::bus::Bus`], [`x86_interp::bus::LocalApic`]).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmx_model::addr::Hpa;
use x86_interp::Kicker;
use x86_interp::bus::{self, Bus, Clock, Suspend};

use crate::acpi::Pm;
use crate::apic::{Delivery, Effect, LocalApic, Message};
use crate::clock::MachineClock;
use crate::fw_cfg::{self, FwCfg};
use crate::ioapic::{self, IoApic};
use crate::pic::Pic;
use crate::pit::{self, Pit};
use crate::rtc::Rtc;
use crate::serial::{self, Serial};

/// QEMU's debug-exit device: the process ends with status `value << 1 | 1`.
const DEBUG_EXIT: u16 = 0xf4;
/// The scratch register of QEMU's test device.
const SCRATCH: u16 = 0xe0;
/// The interrupt inputs of QEMU's test device.
const TEST_LINES: u16 = 0x2000;
/// The reset control register of Intel chip sets.
pub(crate) const RESET_CONTROL: u16 = 0xcf9;
/// The keyboard controller's command port: FEH pulses the reset line.
const KEYBOARD_COMMAND: u16 = 0x64;

/// Why the machine ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The debug-exit port was written with this value.
    DebugExit(u32),
    /// The machine was reset.
    Reset,
    /// The machine was switched off (ACPI state S5).
    PowerOff,
}

/// What a processor has to be told between two instructions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Signals {
    pub(crate) nmi: bool,
    pub(crate) init: bool,
    pub(crate) start_up: Option<u8>,
    /// The count of the APIC timer was written.
    pub(crate) timer: bool,
    /// IA32_TSC_DEADLINE was written with this value.
    pub(crate) deadline: Option<u64>,
}

impl Signals {
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The devices.
pub(crate) struct Board {
    pub(crate) apics: Vec<LocalApic>,
    pub(crate) signals: Vec<Signals>,
    pub(crate) kickers: Vec<Kicker>,
    pub(crate) serial: Serial,
    pub(crate) end: Option<End>,
    /// The time, in ticks of the clock, as of the last look at it.
    pub(crate) now: u64,
    ioapic: IoApic,
    pic: Pic,
    pit: Pit,
    /// The tick up to which the timer's interrupts have been raised.
    pit_seen: u64,
    rtc: Rtc,
    pm: Pm,
    fw_cfg: FwCfg,
    scratch: [u8; 4],
}

impl Board {
    /// Returns the devices; the real-time clock shows `began`, in seconds since 1970.
    pub(crate) fn new(cpus: usize, ram_bytes: u64, serial: Serial, began: i64) -> Self {
        Self {
            apics: (0..cpus).map(|n| LocalApic::new(n as u32)).collect(),
            signals: vec![Signals::default(); cpus],
            kickers: Vec::new(),
            serial,
            end: None,
            now: 0,
            ioapic: IoApic::default(),
            pic: Pic::default(),
            pit: Pit::default(),
            pit_seen: 0,
            rtc: Rtc::new(began),
            pm: Pm::default(),
            fw_cfg: FwCfg::new(cpus as u16, ram_bytes),
            scratch: [0; 4],
        }
    }

    /// Carries out what a write to the APIC of `cpu` causes.
    fn carry_out(&mut self, cpu: usize, effect: Effect) {
        match effect {
            Effect::None => {}
            Effect::Send(message) => self.send(&message, Some(cpu)),
            Effect::Eoi(vector) => {
                for message in self.ioapic.end_of_interrupt(vector) {
                    self.send(&message, None);
                }
            }
            Effect::Timer => self.signal(cpu, |s| s.timer = true),
        }
        // A changed priority may let an interrupt through.
        self.kickers[cpu].call_attention();
    }

    /// Takes a message to the processors that it is for.
    fn send(&mut self, message: &Message, sender: Option<usize>) {
        let from = sender.and_then(|n| self.apics.get(n)).map(LocalApic::id);
        let mut targets: Vec<usize> = (0..self.apics.len())
            .filter(|&n| self.apics[n].is_addressed(message.destination, from))
            .collect();
        if message.delivery == Delivery::LowestPriority {
            let lowest = targets.iter().copied().min_by_key(|&n| self.apics[n].ppr());
            targets = lowest.into_iter().collect();
        }
        for cpu in targets {
            self.deliver(cpu, message);
        }
    }

    fn deliver(&mut self, cpu: usize, message: &Message) {
        match message.delivery {
            Delivery::Fixed | Delivery::LowestPriority => {
                self.apics[cpu].accept(message.vector, message.is_level);
                self.kickers[cpu].call_attention();
            }
            Delivery::Nmi => self.signal(cpu, |s| s.nmi = true),
            Delivery::Init => self.signal(cpu, |s| s.init = true),
            Delivery::StartUp => self.signal(cpu, |s| s.start_up = Some(message.vector)),
            Delivery::ExtInt | Delivery::None => {}
        }
    }

    fn signal(&mut self, cpu: usize, change: impl FnOnce(&mut Signals)) {
        change(&mut self.signals[cpu]);
        self.kickers[cpu].kick();
    }

    /// Raises or lowers an interrupt line: that of the I/O APIC, and of the PIC if it has one of
    /// this number. Line 0, the timer's, is input 2 of the I/O APIC.
    fn set_line(&mut self, line: usize, level: bool) {
        let input = if line == 0 { 2 } else { line };
        if let Some(message) = self.ioapic.set_line(input, level) {
            self.send(&message, None);
        }
        self.pic.set_line(line, level);
        self.look_at_pic();
    }

    /// The PIC's output is connected to the bootstrap processor.
    fn look_at_pic(&self) {
        if self.has_external_interrupt(0) {
            self.kickers[0].call_attention();
        }
    }

    /// Whether the PIC interrupts a processor: through LINT0, or directly where the APIC is off.
    fn has_external_interrupt(&self, cpu: usize) -> bool {
        cpu == 0 && self.apics[0].takes_external_interrupts() && self.pic.is_raised()
    }

    pub(crate) fn has_interrupt(&self, cpu: usize) -> bool {
        self.has_external_interrupt(cpu) || self.apics[cpu].pending().is_some()
    }

    fn acknowledge(&mut self, cpu: usize) -> Option<u8> {
        if self.has_external_interrupt(cpu) {
            return Some(self.pic.acknowledge());
        }
        self.apics[cpu].acknowledge()
    }

    /// Returns the tick of the next event that no processor causes.
    pub(crate) fn next_event(&self) -> Option<u64> {
        self.pit.next_interrupt(self.pit_seen)
    }

    /// Lets the time be `now`.
    pub(crate) fn advance(&mut self, now: u64) {
        self.now = now;
        // Edges that nobody could see pass are one.
        if self.next_event().is_some_and(|at| at <= now) {
            self.set_line(pit::INTERRUPT, false);
            self.set_line(pit::INTERRUPT, true);
        }
        self.pit_seen = now;
    }

    fn seconds(&self) -> u64 {
        self.now / pit::TICKS_PER_SECOND as u64
    }

    /// Reads a byte of the devices with ports of a byte.
    fn byte_read(&mut self, port: u16) -> Option<u8> {
        let (now, seconds) = (self.now, self.seconds());
        self.pic
            .read(port)
            .or_else(|| self.pit.read(port, now))
            .or_else(|| self.rtc.read(port, seconds))
    }

    /// Writes a byte to the devices with ports of a byte; false if there is none.
    fn byte_write(&mut self, port: u16, value: u8) -> bool {
        if self.pic.write(port, value) {
            self.look_at_pic();
            return true;
        }
        if self.pit.write(port, value, self.now) {
            self.pit_seen = self.now;
            let level = self.pit.output(self.now);
            self.set_line(pit::INTERRUPT, level);
            // What the processor is to run until may have changed.
            self.kickers[0].kick();
            return true;
        }
        self.rtc.write(port, value)
    }

    /// The serial port receives bytes.
    pub(crate) fn receive(&mut self, bytes: &[u8]) {
        self.serial.receive(bytes);
        self.update_serial_line();
    }

    fn update_serial_line(&mut self) {
        let level = self.serial.interrupts();
        self.set_line(serial::INTERRUPT, level);
    }

    fn finish(&mut self, end: End) {
        self.end.get_or_insert(end);
        for kicker in &self.kickers {
            kicker.kick();
        }
    }

    fn port_read(&mut self, port: u16, size: usize) -> u32 {
        if size > 1 && (SCRATCH..SCRATCH + 4).contains(&port) {
            return (0..size as u16).rev().fold(0, |word, n| {
                word << 8 | self.port_read(port.wrapping_add(n), 1)
            });
        }
        match port {
            serial::BASE..0x400 => {
                let value = self.serial.read(port - serial::BASE);
                self.update_serial_line();
                u32::from(value)
            }
            0x511 => u32::from(self.fw_cfg.read()),
            _ if let Some(value) = self.pm.read(port, self.now) => value,
            _ if size == 1
                && let Some(value) = self.byte_read(port) =>
            {
                u32::from(value)
            }
            SCRATCH..0xe4 => u32::from(self.scratch[usize::from(port - SCRATCH)]),
            _ => u32::MAX >> (32 - 8 * size.clamp(1, 4)),
        }
    }

    fn port_write(&mut self, port: u16, size: usize, value: u32) {
        if size > 1 && (SCRATCH..SCRATCH + 4).contains(&port) {
            for n in 0..size {
                self.port_write(port.wrapping_add(n as u16), 1, value >> (8 * n) & 0xff);
            }
            return;
        }
        match port {
            serial::BASE..0x400 => {
                self.serial.write(port - serial::BASE, value as u8);
                self.update_serial_line();
            }
            fw_cfg::SELECTOR if size == 2 => self.fw_cfg.select(value as u16),
            SCRATCH..0xe4 => self.scratch[usize::from(port - SCRATCH)] = value as u8,
            DEBUG_EXIT => self.finish(End::DebugExit(value)),
            TEST_LINES..0x2018 => self.set_line(usize::from(port - TEST_LINES), value != 0),
            RESET_CONTROL if value & 4 != 0 => self.finish(End::Reset),
            KEYBOARD_COMMAND if value as u8 == 0xfe => self.finish(End::Reset),
            _ => match self.pm.write(port, value) {
                Some(true) => self.finish(End::PowerOff),
                Some(false) => {}
                None if size == 1 => {
                    let _ = self.byte_write(port, value as u8);
                }
                None => {}
            },
        }
    }

    fn memory_read(&mut self, cpu: usize, address: u64, size: usize) -> u64 {
        let offset = address & 0xfff;
        if self.apics[cpu].page() == Some(address & !0xfff) {
            let value = self.apics[cpu].read_page(offset & !3, self.now);
            return u64::from(value >> (8 * (offset & 3)));
        }
        if address & !0xfff == ioapic::BASE {
            return u64::from(self.ioapic.read(offset));
        }
        u64::MAX >> (64 - 8 * size.clamp(1, 8))
    }

    fn memory_write(&mut self, cpu: usize, address: u64, value: u64) {
        let offset = address & 0xfff;
        if self.apics[cpu].page() == Some(address & !0xfff) {
            let effect = self.apics[cpu].write_page(offset, value as u32);
            self.carry_out(cpu, effect);
        } else if address & !0xfff == ioapic::BASE
            && let Some(message) = self.ioapic.write(offset, value as u32)
        {
            self.send(&message, None);
        }
    }
}

/// A processor's place on the board.
#[derive(Clone)]
pub(crate) struct Seat {
    board: Arc<Mutex<Board>>,
    cpu: usize,
    clock: MachineClock,
}

impl Seat {
    /// Returns the place of `cpu`, which has its time from `clock`.
    pub(crate) fn new(board: &Arc<Mutex<Board>>, cpu: usize, clock: MachineClock) -> Self {
        Self {
            board: Arc::clone(board),
            cpu,
            clock,
        }
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        lock(&self.board)
    }
}

/// Locks the board; what a panic of another thread left is as good as any other state.
pub(crate) fn lock(board: &Mutex<Board>) -> MutexGuard<'_, Board> {
    board.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Bus for Seat {
    fn memory_read(&mut self, address: Hpa, size: usize) -> Result<u64, Suspend> {
        Ok(self.board().memory_read(self.cpu, address.0, size))
    }

    fn memory_write(&mut self, address: Hpa, _: usize, value: u64) -> Result<(), Suspend> {
        self.board().memory_write(self.cpu, address.0, value);
        Ok(())
    }

    fn port_read(&mut self, port: u16, size: usize) -> Result<u32, Suspend> {
        Ok(self.board().port_read(port, size))
    }

    fn port_write(&mut self, port: u16, size: usize, value: u32) -> Result<(), Suspend> {
        self.board().port_write(port, size, value);
        Ok(())
    }

    fn time_passes(&mut self, retired: u64) {
        let now = self.clock.tsc(retired);
        let mut board = self.board();
        if now > board.now {
            board.advance(now);
        }
    }
}

impl bus::LocalApic for Seat {
    fn cr8(&mut self) -> u64 {
        self.board().apics[self.cpu].cr8()
    }

    fn set_cr8(&mut self, value: u64) {
        let mut board = self.board();
        board.apics[self.cpu].set_cr8(value);
        board.kickers[self.cpu].call_attention();
    }

    fn base(&mut self) -> u64 {
        self.board().apics[self.cpu].base()
    }

    fn set_base(&mut self, value: u64) -> bool {
        let mut board = self.board();
        board.apics[self.cpu].set_base(value);
        // Without an APIC, the PIC interrupts directly.
        board.kickers[self.cpu].call_attention();
        true
    }

    fn has_interrupt(&mut self) -> bool {
        self.board().has_interrupt(self.cpu)
    }

    fn acknowledge(&mut self) -> Option<u8> {
        self.board().acknowledge(self.cpu)
    }

    fn init(&mut self) {
        self.board().apics[self.cpu].init();
    }

    fn end_of_interrupt(&mut self) {
        let mut board = self.board();
        let effect = board.apics[self.cpu].end_of_interrupt();
        board.carry_out(self.cpu, effect);
    }

    fn read_x2apic(&mut self, index: u32) -> Option<u64> {
        let board = self.board();
        board.apics[self.cpu].read_msr(index, board.now)
    }

    fn write_x2apic(&mut self, index: u32, value: u64) -> Option<()> {
        let mut board = self.board();
        let effect = board.apics[self.cpu].write_msr(index, value)?;
        board.carry_out(self.cpu, effect);
        Some(())
    }

    fn set_tsc_deadline(&mut self, deadline_tsc: u64) {
        let cpu = self.cpu;
        self.board()
            .signal(cpu, |s| s.deadline = Some(deadline_tsc));
    }
}
