//! Writes of the guest that end in the KVM instead of user space: events and coalesced zones
//! (api.rst, "KVM_IOEVENTFD", "KVM_REGISTER_COALESCED_MMIO").

use crate::errno::{Errno, Result};
use crate::host::lock;
use crate::run_page::{RunPage, offset};
use crate::uapi::CoalescedZone;
use crate::vcpu::{IoAccess, IoSpace};
use crate::vm::Vm;
use event::Event;
use kvm_bindings::kvm_ioeventfd;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Mutex, MutexGuard, OnceLock};

mod event;

/// Flags of `struct kvm_ioeventfd`.
mod flag {
    pub(super) const DATAMATCH: u32 = 1 << 0;
    pub(super) const PIO: u32 = 1 << 1;
    pub(super) const DEASSIGN: u32 = 1 << 2;
    pub(super) const VIRTIO_CCW_NOTIFY: u32 = 1 << 3;
    pub(super) const FAST_MMIO: u32 = 1 << 4;
    pub(super) const VALID: u32 = DATAMATCH | PIO | DEASSIGN | VIRTIO_CCW_NOTIFY | FAST_MMIO;
}

/// Coalesced zones that a bus takes (`NR_IOBUS_DEVS`).
const MAX_ZONES: usize = 1000;
/// Entries of the ring in its page (`KVM_COALESCED_MMIO_MAX`).
const RING_ENTRIES: u32 = (4096 - 8) / 24;

/// A bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bus {
    Port,
    Memory,
    /// That of virtio on s390, to which nothing of ours writes.
    Ccw,
}

impl From<IoSpace> for Bus {
    fn from(space: IoSpace) -> Self {
        match space {
            IoSpace::Port => Self::Port,
            IoSpace::Memory => Self::Memory,
        }
    }
}

/// An event that a write signals.
#[derive(Debug)]
struct IoEvent {
    bus: Bus,
    address: u64,
    /// Bytes of the write; 0 is any.
    length: u32,
    /// The value that must be written; any if there is none.
    datamatch: Option<u64>,
    event: Event,
}

impl IoEvent {
    fn of(args: &kvm_ioeventfd, event: Event) -> Self {
        let bus = if args.flags & flag::PIO != 0 {
            Bus::Port
        } else if args.flags & flag::VIRTIO_CCW_NOTIFY != 0 {
            Bus::Ccw
        } else {
            Bus::Memory
        };
        Self {
            bus,
            address: args.addr,
            length: args.len,
            datamatch: (args.flags & flag::DATAMATCH != 0).then_some(args.datamatch),
            event,
        }
    }

    fn collides(&self, other: &Self) -> bool {
        let same_place = self.bus == other.bus && self.address == other.address;
        let any_length = self.length == 0 || other.length == 0;
        let any_value = self.datamatch.is_none() || other.datamatch.is_none();
        let same_value = any_value || self.datamatch == other.datamatch;
        same_place && (any_length || self.length == other.length && same_value)
    }

    fn is_same(&self, other: &Self) -> bool {
        self.event.id() == other.event.id()
            && (self.bus, self.address, self.length, self.datamatch)
                == (other.bus, other.address, other.length, other.datamatch)
    }

    fn matches(&self, access: &IoAccess) -> bool {
        self.bus == access.space.into()
            && self.address == access.address
            && (self.length == 0
                || self.length == u32::from(access.size)
                    && self.datamatch.is_none_or(|value| value == access.data))
    }
}

/// A zone whose writes are put into the ring.
#[derive(Clone, Copy, Debug)]
struct Zone {
    bus: Bus,
    address: u64,
    bytes: u64,
}

impl Zone {
    fn of(zone: &CoalescedZone) -> Result<Self> {
        let bus = match zone.pio {
            0 => Bus::Memory,
            1 => Bus::Port,
            _ => return Err(Errno::EINVAL),
        };
        Ok(Self {
            bus,
            address: zone.addr,
            bytes: u64::from(zone.size),
        })
    }

    /// Whether a range lies inside (`coalesced_mmio_in_range()`).
    fn holds(&self, bus: Bus, address: u64, bytes: u64) -> bool {
        let is_above = address >= self.address;
        let end = address.checked_add(bytes);
        let own_end = self.address.wrapping_add(self.bytes);
        self.bus == bus && is_above && end.is_some_and(|end| end <= own_end)
    }
}

/// What is on the buses.
#[derive(Debug, Default)]
struct Devices {
    events: Vec<IoEvent>,
    zones: Vec<Zone>,
}

/// The buses of a VM.
#[derive(Debug, Default)]
pub(crate) struct IoBus {
    devices: Mutex<Devices>,
    /// Whether there is anything; looked at before the lock is taken.
    is_used: AtomicBool,
    /// The pages of the first vCPU: the ring is there for all of them.
    ring: OnceLock<RunPage>,
}

impl IoBus {
    fn change(&self) -> MutexGuard<'_, Devices> {
        self.is_used.store(true, Ordering::Relaxed);
        lock(&self.devices)
    }

    /// Notes the pages of a vCPU; those of the first one hold the ring.
    pub(crate) fn set_ring(&self, pages: &RunPage) {
        let _ = self.ring.set(pages.clone());
    }

    /// Takes a write of the guest; false if it is user space's.
    pub(crate) fn takes(&self, access: &IoAccess) -> bool {
        if !self.is_used.load(Ordering::Relaxed) {
            return false;
        }
        let devices = lock(&self.devices);
        if let Some(found) = devices.events.iter().find(|e| e.matches(access)) {
            found.event.signal();
            return true;
        }
        let size = u64::from(access.size);
        let bus = access.space.into();
        let is_coalesced = |z: &Zone| z.holds(bus, access.address, size);
        devices.zones.iter().any(is_coalesced)
            && self.ring.get().is_some_and(|ring| put(ring, access))
    }
}

/// Puts a write into the ring; false if it is full, or user space has put nonsense into it.
fn put(ring: &RunPage, access: &IoAccess) -> bool {
    const LAST: usize = offset::COALESCED_RING + 4;
    let first: u32 = ring.read(offset::COALESCED_RING);
    let last: u32 = ring.read(LAST);
    let next = last.wrapping_add(1) % RING_ENTRIES;
    if last >= RING_ENTRIES || next == first {
        return false;
    }
    let at = offset::COALESCED_RING + 8 + 24 * last as usize;
    ring.write(at, access.address);
    ring.write(at + 8, u32::from(access.size));
    ring.write(at + 12, u32::from(access.space == IoSpace::Port));
    ring.write_bytes(
        at + 16,
        &access.data.to_le_bytes()[..usize::from(access.size)],
    );
    fence(Ordering::Release);
    ring.write(LAST, next);
    true
}

impl Vm {
    /// Lets a write of the guest signal an eventfd instead of an exit, or ends that: api.rst,
    /// "KVM_IOEVENTFD".
    ///
    /// # Errors
    /// EINVAL: the length, an address that wraps around, unknown flags, a value for any length, a
    /// descriptor that is no eventfd. EBADF. EEXIST: something else is there. ENOENT: nothing to be
    /// ended.
    pub fn ioeventfd(&self, args: &kvm_ioeventfd) -> Result<()> {
        if args.flags & flag::DEASSIGN != 0 {
            return self.deassign_ioeventfd(args);
        }
        let has_value = args.flags & flag::DATAMATCH != 0;
        let is_valid = matches!(args.len, 0 | 1 | 2 | 4 | 8)
            && args.addr.checked_add(u64::from(args.len)).is_some()
            && args.flags & !flag::VALID == 0
            && !(args.len == 0 && has_value);
        if !is_valid {
            return Err(Errno::EINVAL);
        }
        let new = IoEvent::of(args, Event::of(args.fd)?);
        let mut devices = self.io_bus().change();
        if devices.events.iter().any(|e| e.collides(&new)) {
            return Err(Errno::EEXIST);
        }
        devices.events.push(new);
        Ok(())
    }

    fn deassign_ioeventfd(&self, args: &kvm_ioeventfd) -> Result<()> {
        let gone = IoEvent::of(args, Event::of(args.fd)?);
        let mut devices = self.io_bus().change();
        let found = devices.events.iter().position(|e| e.is_same(&gone));
        devices.events.remove(found.ok_or(Errno::ENOENT)?);
        Ok(())
    }

    /// Puts the guest's writes to a zone into the ring instead of an exit: api.rst,
    /// "KVM_REGISTER_COALESCED_MMIO". The ring is the third page of the first vCPU that was made.
    ///
    /// # Errors
    /// EINVAL: neither ports nor memory. ENOSPC: 1000 zones are there.
    pub fn register_coalesced_mmio(&self, zone: &CoalescedZone) -> Result<()> {
        let zone = Zone::of(zone)?;
        let mut devices = self.io_bus().change();
        if devices.zones.iter().filter(|z| z.bus == zone.bus).count() >= MAX_ZONES {
            return Err(Errno::ENOSPC);
        }
        devices.zones.push(zone);
        Ok(())
    }

    /// Ends all zones that contain this one: api.rst, "KVM_UNREGISTER_COALESCED_MMIO".
    ///
    /// # Errors
    /// EINVAL: neither ports nor memory.
    pub fn unregister_coalesced_mmio(&self, zone: &CoalescedZone) -> Result<()> {
        let zone = Zone::of(zone)?;
        let mut devices = self.io_bus().change();
        devices
            .zones
            .retain(|z| !z.holds(zone.bus, zone.address, zone.bytes));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zone(bus: Bus, address: u64, bytes: u64) -> Zone {
        Zone {
            bus,
            address,
            bytes,
        }
    }

    #[test]
    fn a_zone_holds_what_lies_inside_of_it() {
        let memory = zone(Bus::Memory, 0x1000, 0x10);
        for (address, bytes, held) in [
            (0x1000, 1, true),
            (0x100f, 1, true),
            (0x100f, 2, false),
            (0xfff, 1, false),
            (0x1010, 1, false),
            (u64::MAX, 1, false),
        ] {
            assert_eq!(memory.holds(Bus::Memory, address, bytes), held);
            assert!(!memory.holds(Bus::Port, address, bytes));
        }
        let wrapping = zone(Bus::Memory, u64::MAX, 0xffff_ffff);
        assert!(!wrapping.holds(Bus::Memory, u64::MAX, 1));
    }

    #[test]
    fn a_descriptor_that_is_no_eventfd_is_refused() {
        let event = |fd| Event::of(fd).map(|_| ());
        assert_eq!(event(-1), Err(Errno::EBADF));
        let file = std::fs::File::open("/proc/self/stat").expect("procfs");
        use std::os::fd::AsRawFd;
        assert_eq!(event(file.as_raw_fd()), Err(Errno::EINVAL));
    }
}
